package noise_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/models/noise"
)

// measured returns the autocorrelation of v, which has mean 0 and variance 1.
func measured(v []float32, w, h, dx, dy int) float64 {
	sum := 0.0
	for y := range h - dy {
		for x := range w - dx {
			sum += float64(v[y*w+x]) * float64(v[(y+dy)*w+x+dx])
		}
	}
	return sum / float64((w-dx)*(h-dy))
}

// TestDraw: what is drawn has the variance and the correlation that was asked for,
// at the borders too, and the kernel of that correlation makes it again.
func TestDraw(t *testing.T) {
	const w, h = 700, 600
	for _, s := range [][2]float64{{0, 0}, {0.5, 0.5}, {1.2, 1.2}, {0, 1}, {0.8, 0.3}, {1.4, 1.4}} {
		k := noise.Gaussian(s[0], s[1])
		c := k.Correlation()
		dst := make([]float32, w*h)
		for _, k := range []*noise.Kernel{k, c.Kernel()} {
			k.Draw(dst, w, h, rand.New(rand.NewPCG(1, 1)))
			for dy := range noise.Lags + 1 {
				for dx := range noise.Lags + 1 {
					// the error of one lag is about 3/sqrt(w·h) for the longest correlation
					if got, want := measured(dst, w, h, dx, dy), c.At(dx, dy); math.Abs(got-want) > 0.03 {
						t.Errorf("spread %v: correlation %.3f at (%d, %d), want %.3f", s, got, dx, dy, want)
					}
				}
			}
		}
		edge := 0.0
		for i := range 400 {
			k.Draw(dst, 16, 16, rand.New(rand.NewPCG(uint64(i), 2)))
			for _, j := range []int{0, 15, 240, 255} {
				edge += float64(dst[j]*dst[j]) / 1600
			}
		}
		if math.Abs(edge-1) > 0.15 {
			t.Errorf("spread %v: variance %.3f in the corners", s, edge)
		}
	}
}

// TestGaussian: the autocorrelation of Gaussian-smoothed white noise is
// exp(-d²/4s²) once the Gaussian is well sampled.
func TestGaussian(t *testing.T) {
	for _, s := range []float64{0.8, 1.2, 1.4} {
		c := noise.Gaussian(s, 0).Correlation()
		for d, got := range c.Rho[0] {
			if want := math.Exp(-float64(d*d) / (4 * s * s)); math.Abs(got-want) > 0.01 {
				t.Errorf("spread %g: %.4f at lag %d, want %.4f", s, got, d, want)
			}
		}
		if got := c.At(0, 1); math.Abs(got) > 1e-6 {
			t.Errorf("spread %g along x: correlation %g along y", s, got)
		}
	}
}

func TestHoles(t *testing.T) {
	for _, c := range []struct {
		sx, sy float64
		wx, wy int
	}{
		{0, 0, 1, 1}, {0.2, 0, 1, 1}, {0.5, 0, 3, 1}, {0, 0.6, 1, 3}, {1.2, 0.5, 5, 3}, {1.4, 1.4, 5, 5},
	} {
		if x, y := noise.Gaussian(c.sx, c.sy).Correlation().Holes(); x != c.wx || y != c.wy {
			t.Errorf("spreads %g, %g: hole %d×%d, want %d×%d", c.sx, c.sy, x, y, c.wx, c.wy)
		}
	}
	if x, y := (noise.Correlation{}).Holes(); x != 1 || y != 1 {
		t.Errorf("zero value: hole %d×%d", x, y)
	}
	// zero-filling by 1.31, 1.5 and 2 (sinc), where it could not be undone
	for _, c := range []struct {
		rho  [noise.Lags + 1]float64
		want int
	}{{[...]float64{1, .284, -.208, .109, 0}, 5}, {[...]float64{1, .413, -.207, 0, .1}, 5}, {[...]float64{1, .637, 0, -.212, 0}, 3}} {
		n := noise.White()
		n.Rho[0] = c.rho
		if x, y := n.Holes(); x != c.want || y != 1 {
			t.Errorf("%v: hole %d×%d, want %d×1", c.rho, x, y, c.want)
		}
	}
}

// TestDisc: the noise of a circular k-space filter is not separable. Its correlation
// is 2·J1(πd)/(πd).
func TestDisc(t *testing.T) {
	const w, h = 700, 600
	want := noise.White()
	for dy := range want.Rho {
		for dx := range want.Rho[dy] {
			if d := math.Pi * math.Hypot(float64(dx), float64(dy)); d > 0 {
				want.Rho[dy][dx] = 2 * math.J1(d) / d
			}
		}
	}
	dst := make([]float32, w*h)
	want.Kernel().Draw(dst, w, h, rand.New(rand.NewPCG(5, 6)))
	for dy := range noise.Lags + 1 {
		for dx := range noise.Lags + 1 {
			if got, want := measured(dst, w, h, dx, dy), want.At(dx, dy); math.Abs(got-want) > 0.03 {
				t.Errorf("correlation %.3f at (%d, %d), want %.3f", got, dx, dy, want)
			}
		}
	}
}

// TestMapDraw: the local strength times the kernel, deterministic.
func TestMapDraw(t *testing.T) {
	const w, h = 300, 200
	m := &noise.Map{Width: w, Height: h, Sigma: make([]float32, w*h), Correlation: noise.Gaussian(0.7, 0.4).Correlation()}
	for i := range m.Sigma {
		m.Sigma[i] = 1 + float32(i%w/150)*4 // 1 on the left, 5 on the right
	}
	a, b := make([]float32, w*h), make([]float32, w*h)
	m.Draw(a, rand.New(rand.NewPCG(3, 4)))
	m.Draw(b, rand.New(rand.NewPCG(3, 4)))
	if !slices.Equal(a, b) {
		t.Error("the same generator gives two kinds of noise")
	}
	var sum [2]float64
	for i, v := range a {
		sum[i%w/150] += float64(v*v) / (w * h / 2)
	}
	if math.Abs(sum[0]-1) > 0.05 || math.Abs(sum[1]-25) > 1.25 {
		t.Errorf("variances %.3f and %.3f, want 1 and 25", sum[0], sum[1])
	}
}

func TestNewKernelPanics(t *testing.T) {
	for _, taps := range [][]float64{nil, {1, 1}, {0}, make([]float64, 33), {math.NaN()}, {math.Inf(1)}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("taps %v make a kernel", taps)
				}
			}()
			noise.NewKernel(taps, []float64{1})
		}()
	}
}

func BenchmarkDraw128(b *testing.B) {
	k, rng := noise.Gaussian(1.2, 0.5), rand.New(rand.NewPCG(1, 1))
	dst := make([]float32, 128*128)
	b.ReportAllocs()
	for b.Loop() {
		k.Draw(dst, 128, 128, rng)
	}
}

func ExampleKernel_Draw() {
	k := noise.Gaussian(0.5, 0) // correlated along rows
	n := make([]float32, 64*64)
	k.Draw(n, 64, 64, rand.New(rand.NewPCG(1, 1)))
	sx, sy := k.Correlation().Holes()
	fmt.Printf("%.2f %d×%d\n", k.Correlation().At(1, 0), sx, sy)
	// Output: 0.40 3×1
}
