package cpu

import (
	"math"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// eachWinograd runs a test on the kernels for Winograd's algorithm of this machine.
func eachWinograd(t *testing.T, test func(t *testing.T, set *winograd)) {
	for _, s := range available() {
		if s.wino != nil {
			t.Run(string(s.name), func(t *testing.T) { test(t, s.wino) })
		}
	}
}

// TestWinogradBand compares bands of every width around the tiles with the definition,
// on rows of exactly the promised length: no output is off by more than 10⁻⁴ of the
// root mean square (measured: 2·10⁻⁵), and nothing is written outside.
func TestWinogradBand(t *testing.T) {
	eachWinograd(t, func(t *testing.T, set *winograd) {
		worst := 0.0
		for _, channels := range [][2]int{{16, 16}, {32, 32}, {48, 24}, {16, 56}} {
			for _, n := range []int{1, 3, 4, 5, 8, 23, 24, 25, 32, 33, 70} {
				for _, relu := range []bool{false, true} {
					worst = max(worst, testWinogradBand(t, set, channels[0], channels[1], n, relu))
				}
			}
		}
		t.Logf("worst output is off by %.2g of the root mean square", worst)
		if worst == 0 || worst > 1e-4 {
			t.Errorf("worst output is off by %.3g of the root mean square", worst)
		}
	})
}

func testWinogradBand(t *testing.T, set *winograd, in, out, n int, relu bool) (worst float64) {
	t.Helper()
	c := kernelstest.RandomNet(1, 1, 0).Layers[0].Conv
	c.In, c.Out, c.ReLU = in, out, relu
	c.Weights, c.Bias = randoms(1, 9*in*out), randoms(2, out)
	p := packWinograd(set, &c, in)
	whole := roundUp(n, winogradRows)
	ys := p.outStride + 8
	src := randoms(3, (winogradRows+2)*(whole+2)*in)
	var x [winogradRows + 2][]float32
	for k := range x {
		x[k] = src[k*(whole+2)*in:][: (whole+2)*in : (whole+2)*in]
	}
	var y, res [winogradRows][]float32
	var touched []func() bool
	length := (whole-1)*ys + p.outStride
	residual := randoms(4, winogradRows*length)
	for k := range y {
		inner, changed := surrounded(length, float32(-1))
		y[k], touched = inner, append(touched, changed)
		if relu {
			res[k] = residual[k*length:][:length:length]
		}
	}
	p.band(new(winogradBand), y, res, x, n, ys)
	for k, changed := range touched {
		if changed() {
			t.Fatalf("%d to %d channels, %d columns: wrote outside of row %d", in, out, n, k)
		}
	}

	// The same rows and columns as an image, whose inside the band is.
	want := kernelstest.Reference(src, nil, winogradRows+2, whole+2, &c)
	sum, largest := 0.0, 0.0
	for k := range y {
		for col := range whole {
			for o := range ys {
				at := col*ys + o
				if o >= out {
					if o >= p.outStride && at < length && y[k][at] != -1 {
						t.Fatalf("%d to %d channels, %d columns: wrote between pixels at %d", in, out, n, at)
					}
					continue
				}
				v := want[((k+1)*(whole+2)+col+1)*out+o]
				if relu {
					v += float64(res[k][at])
				}
				sum += v * v
				largest = max(largest, math.Abs(float64(y[k][at])-v))
			}
		}
	}
	return largest / math.Sqrt(sum/float64(winogradRows*whole*out))
}

// TestWinogradCheck: a row that is one float short stops in Go, before assembly.
func TestWinogradCheck(t *testing.T) {
	make1 := func() *winogradBand {
		r := &winogradBand{stride: 16, ys: 8, u: make([]float32, 36*16*8), bias: make([]float32, 8)}
		for k := range r.x {
			r.x[k] = make([]float32, 10*16)
		}
		for k := range r.y {
			r.y[k], r.res[k] = make([]float32, 64), make([]float32, 64)
		}
		return r
	}
	check := func(r *winogradBand) func() {
		return func() {
			r.checkInput(2)
			r.checkOutput(2, 8)
		}
	}
	if panics(check(make1())) {
		t.Fatal("a good call fails")
	}
	for i, shorten := range []func(*winogradBand){
		func(r *winogradBand) { r.x[5] = r.x[5][1:] },
		func(r *winogradBand) { r.y[3] = r.y[3][1:] },
		func(r *winogradBand) { r.res[2] = r.res[2][1:] },
		func(r *winogradBand) { r.u = r.u[1:] },
		func(r *winogradBand) { r.bias = r.bias[1:] },
	} {
		r := make1()
		shorten(r)
		if !panics(check(r)) {
			t.Errorf("case %d: a short slice passed", i)
		}
	}
}

// TestWinogradAgrees: AVX2 and AVX-512 agree in every bit.
func TestWinogradAgrees(t *testing.T) {
	net := kernelstest.RandomNet(6, 32, 4)
	const width, height = 150, 61
	y, sigma := noise(1, width*height)
	var results [][]float32
	for _, s := range available() {
		if s.wino == nil {
			continue
		}
		n, err := (&Backend{s}).Load(net.Graph())
		if err != nil {
			t.Fatal(err)
		}
		out := make([]float32, len(y))
		if err := n.Forward(out, y, sigma, width, height); err != nil {
			t.Fatal(err)
		}
		results = append(results, out)
	}
	for _, r := range results {
		if !slices.Equal(r, results[0]) {
			t.Error("AVX2 and AVX-512 differ")
		}
	}
}
