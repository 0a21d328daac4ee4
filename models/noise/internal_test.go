package noise

import (
	"fmt"
	"math"
	"math/cmplx"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/dsp/fourier"
)

// TestTransform: every kind of factor against another implementation, and back.
func TestTransform(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{1, 2, 3, 4, 5, 7, 8, 12, 26, 37, 48, 60, 64, 169, 256, 274, 300, 512} {
		f := newFFT(n)
		var w work
		w.size(n)
		lines := make([][]complex128, lanes)
		for l := range lines {
			lines[l] = make([]complex128, n)
			for i := range n {
				c := complex(rng.NormFloat64(), rng.NormFloat64())
				lines[l][i] = c
				w.re[i*lanes+l], w.im[i*lanes+l] = float32(real(c)), float32(imag(c))
			}
		}
		near := func(what string, want [][]complex128, scale float64) {
			for l, line := range want {
				for i, c := range line {
					got := complex(float64(w.re[i*lanes+l]), float64(w.im[i*lanes+l]))
					if d := cmplx.Abs(got-c*complex(scale, 0)) / scale; d > 3e-6*math.Sqrt(float64(n))*math.Log2(float64(n)+2) {
						t.Fatalf("%s of %d points: %v at %d, want %v", what, n, got, i, c)
					}
				}
			}
		}
		f.transform(&w)
		want := make([][]complex128, lanes)
		for l := range lines {
			want[l] = fourier.NewCmplxFFT(n).Coefficients(nil, lines[l])
		}
		near("transform", want, 1)
		f.inverse(&w)
		near("inverse", lines, float64(n))
	}
}

// TestResampleSizes: cropping to the same frequencies and filling back is the
// identity for band-limited images of any parity.
func TestResampleSizes(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	for _, size := range [][4]int{{64, 48, 40, 33}, {63, 49, 35, 32}, {50, 77, 27, 55}, {96, 64, 96, 40}} {
		w, h, nw, nh := size[0], size[1], size[2], size[3]
		g := &Grid{Width: w, Height: h, NativeWidth: nw, NativeHeight: nh, kw: (nw - 1) / 2, kh: (nh - 1) / 2}
		small := make([]float32, nw*nh)
		for i := range small {
			small[i] = rng.Float32()
		}
		big := g.Fill(nil, g.Crop(nil, g.Fill(nil, small)))
		again := g.Fill(nil, small)
		for i := range big {
			if math.Abs(float64(big[i]-again[i])) > 2e-5 {
				t.Fatalf("%v: pixel %d is %g, want %g", size, i, big[i], again[i])
			}
		}
	}
}

// TestOrder: by mean, equal ones as they come.
func TestOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	b := &buffers{samples: make([]sample, 5000)}
	for i := range b.samples {
		b.samples[i].mean = float32(rng.IntN(200)-100) / 7
	}
	keys := b.order()
	for i := 1; i < len(keys); i++ {
		p, q := uint32(keys[i-1]), uint32(keys[i])
		if a, b := b.samples[p].mean, b.samples[q].mean; a > b || a == b && p > q {
			t.Fatalf("place %d: %g (%d) before %g (%d)", i, a, p, b, q)
		}
	}
}

// TestCurve: the table leads to the right segment everywhere.
func TestCurve(t *testing.T) {
	c := &curve{mean: []float32{0.1, 0.11, 0.5, 0.500001, 3}, sigma: []float32{1, 2, 3, 5, 4}}
	c.index()
	for i := range 40000 {
		m := float32(i) / 10000
		want := c.sigma[0]
		for k := 1; k < len(c.mean); k++ {
			if m > c.mean[k-1] {
				f := min((m-c.mean[k-1])/(c.mean[k]-c.mean[k-1]), 1)
				want = c.sigma[k-1] + f*(c.sigma[k]-c.sigma[k-1])
			}
		}
		if got := c.at(m); math.Abs(float64(got-want)) > 1e-5 {
			t.Fatalf("at %g: %g, want %g", m, got, want)
		}
	}
	if got := c.at(float32(math.NaN())); got != 1 {
		t.Errorf("at NaN: %g", got)
	}
}

// TestSlowSizes: a side that is a large prime is not transformed.
func TestSlowSizes(t *testing.T) {
	for n, want := range map[int]int{1: 0, 2: 2, 512: 4, 274: 137, 1021: 1021} {
		if n > 1 {
			if got := slowest(n); got != want {
				t.Errorf("slowest factor of %d: %d, want %d", n, got, want)
			}
		}
	}
	const n = 1021 // 1021² pixels times twice 1021 is just within maxWork, 2039 is not
	if n*n > maxWork/(2*n) {
		t.Error("1021×1021 is refused")
	}
	img := make([]float32, 2039*2039)
	for i := range img {
		img[i] = float32(i % 7)
	}
	g, err := Detect(img, 2039, 2039)
	if err != nil || g.Filled() {
		t.Errorf("2039×2039: %v, %v", g, err)
	}
}

func ExampleDetect() {
	g, err := Detect(make([]float32, 64*64), 64, 64)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(g.NativeWidth, g.Filled())
	// Output: 64 false
}

func TestRicianBias(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, a := range []float64{0, 0.3, 1, 2.5, 7, 7.99, 8, 20} {
		const n = 400000
		sum := 0.0
		for range n {
			sum += math.Hypot(a+rng.NormFloat64(), rng.NormFloat64()) - a
		}
		if got := RicianBias(a); math.Abs(got-sum/n) > 0.006 {
			t.Errorf("bias at %g is %.4f, drawn %.4f", a, got, sum/n)
		}
	}
}

// TestSquared compares what a crop leaves of the noise of air with drawn noise.
func TestSquared(t *testing.T) {
	for _, c := range [][4]int{{256, 256, 256, 256}, {256, 192, 195, 192}, {256, 256, 195, 195}, {240, 256, 161, 171}, {256, 256, 129, 129}} {
		g := Filled(c[0], c[1], c[2], c[3])
		rng := rand.New(rand.NewPCG(3, uint64(c[2])))
		draw := func() []float32 {
			v := make([]float32, c[2]*c[3])
			for i := range v {
				v[i] = float32(rng.NormFloat64())
			}
			return g.Fill(nil, v)
		}
		re, im := draw(), draw()
		for i := range re {
			re[i] = float32(math.Hypot(float64(re[i]), float64(im[i])))
		}
		variance := func(v []float32) float64 {
			sum, squares := 0.0, 0.0
			for _, x := range v {
				sum, squares = sum+float64(x), squares+float64(x)*float64(x)
			}
			m := sum / float64(len(v))
			return squares/float64(len(v)) - m*m
		}
		if drawn := variance(g.Crop(nil, re)) / variance(re); math.Abs(g.squared()/drawn-1) > 0.06 {
			t.Errorf("%v: %.3f, drawn %.3f", c, g.squared(), drawn)
		}
	}
}

// TestFilled: what was cropped comes back, and a full matrix is one.
func TestFilled(t *testing.T) {
	if g := Filled(96, 64, 96, 64); g.Filled() || *g != *Full(96, 64) {
		t.Errorf("%+v", *g)
	}
	rng := rand.New(rand.NewPCG(4, 4))
	for _, n := range [][2]int{{63, 64}, {96, 33}, {57, 45}} {
		g := Filled(96, 64, n[0], n[1])
		v := make([]float32, n[0]*n[1])
		for i := range v {
			v[i] = rng.Float32()
		}
		if !g.Filled() {
			t.Errorf("%v is not filled", n)
		}
		for i, x := range g.Crop(nil, g.Fill(nil, v)) {
			if n[1]%2 == 1 && math.Abs(float64(x-v[i])) > 1e-4 {
				t.Fatalf("%v: pixel %d is %g, was %g", n, i, x, v[i])
			}
		}
	}
}
