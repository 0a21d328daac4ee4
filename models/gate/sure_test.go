package gate_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/noise"
)

// box is the 3×3 mean with the edge repeated: a linear denoiser.
func box(img []float32, w, h int) []float32 {
	out := make([]float32, len(img))
	for y := range h {
		for x := range w {
			for v := y - 1; v <= y+1; v++ {
				for u := x - 1; u <= x+1; u++ {
					out[y*w+x] += img[min(max(v, 0), h-1)*w+min(max(u, 0), w-1)] / 9
				}
			}
		}
	}
	return out
}

// TestSURE: the estimate is the true error, of linear and other denoisers, with white
// and correlated noise whose strength varies. Between seeds it scattered by 1 to 5 %.
func TestSURE(t *testing.T) {
	const w, h = 256, 192
	soft := func(img []float32, w, h int) []float32 { // shrinks what the mean does not explain
		out := box(img, w, h)
		for i, v := range img {
			d := v - out[i]
			out[i] += max(d-0.04, 0) + min(d+0.04, 0)
		}
		return out
	}
	nothing := func(img []float32, _, _ int) []float32 { return slices.Clone(img) }
	for _, k := range []struct {
		name   string
		kernel *noise.Kernel
	}{{"white", noise.Gaussian(0, 0)}, {"0.5", noise.Gaussian(0.5, 0.5)}, {"1.2, 0.4", noise.Gaussian(1.2, 0.4)}} {
		for name, f := range map[string]func([]float32, int, int) []float32{"box": box, "soft": soft, "nothing": nothing} {
			m := &noise.Map{Width: w, Height: h, Sigma: make([]float32, w*h), Correlation: k.kernel.Correlation()}
			clean, y, b := make([]float32, w*h), make([]float32, w*h), make([]float32, w*h)
			for i := range clean {
				clean[i] = float32(0.5 + 0.3*math.Sin(float64(i%w)/9)*math.Cos(float64(i/w)/7))
				m.Sigma[i] = 0.03 + 0.03*float32(i%w)/w
			}
			rng := rand.New(rand.NewPCG(1, 2))
			m.Draw(y, rng)
			for i, v := range clean {
				y[i] += v
			}
			m.Draw(b, rng)
			const eps = 0.02
			moved := slices.Clone(y)
			for i, v := range b {
				moved[i] += eps * v
			}
			fy := f(y, w, h)
			got, leak, err := gate.SURE(y, fy, f(moved, w, h), b, eps, m.Sigma, nil)
			if err != nil {
				t.Fatal(err)
			}
			var want, shared, energy float64
			for i, v := range clean {
				d := float64(fy[i] - v)
				want += d * d / (w * h)
				shared += d * float64(y[i]-v)
				energy += float64(m.Sigma[i]) * float64(m.Sigma[i])
			}
			if math.Abs(got/want-1) > 0.12 {
				t.Errorf("%s, noise %s: error %.3g estimated, %.3g true", name, k.name, got, want)
			}
			if math.Abs(leak-shared/energy) > 0.06 {
				t.Errorf("%s, noise %s: leak %.3f estimated, %.3f true", name, k.name, leak, shared/energy)
			}
		}
	}
}

func TestSURERefuses(t *testing.T) {
	v := make([]float32, 4)
	for _, f := range []func() error{
		func() error { _, _, err := gate.SURE(v, v[:3], v, v, 0.1, v, nil); return err },
		func() error { _, _, err := gate.SURE(v, v, v, v, 0, v, nil); return err },
		func() error { _, _, err := gate.SURE(v, v, v, v, 0.1, v, nil); return err }, // no noise
		func() error {
			_, _, err := gate.SURE(v, v, v, v, 0.1, []float32{1, 1, 1, 1}, []bool{true, true, true, true})
			return err
		},
	} {
		if f() == nil {
			t.Error("no error")
		}
	}
}

func ExampleSURE() {
	// a denoiser that halves everything, of an image that is nothing but noise
	const n = 1 << 16
	rng := rand.New(rand.NewPCG(1, 1))
	y, b, sigma := make([]float32, n), make([]float32, n), slices.Repeat([]float32{1}, n)
	fy, fyb := make([]float32, n), make([]float32, n)
	for i := range y {
		y[i], b[i] = float32(rng.NormFloat64()), float32(rng.NormFloat64())
		fy[i], fyb[i] = y[i]/2, (y[i]+0.1*b[i])/2
	}
	mse, leak, err := gate.SURE(y, fy, fyb, b, 0.1, sigma, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("error %.1f, leak %.1f\n", mse*4, leak) // the truth is 1/4
	// Output: error 1.0, leak 0.5
}
