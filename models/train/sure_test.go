package train

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

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
			got, err := sure(y, fy, f(moved, w, h), b, eps, m.Sigma)
			if err != nil {
				t.Fatal(err)
			}
			want := 0.0
			for i, v := range clean {
				d := float64(fy[i] - v)
				want += d * d / (w * h)
			}
			if math.Abs(got/want-1) > 0.12 {
				t.Errorf("%s, noise %s: error %.3g estimated, %.3g true", name, k.name, got, want)
			}
		}
	}
}

func TestSURERefuses(t *testing.T) {
	v := make([]float32, 4)
	for what, err := range map[string]error{
		"a short result": second(sure(v, v[:3], v, v, 0.1, v)),
		"no step":        second(sure(v, v, v, v, 0, v)),
		"no pixels":      second(sure(nil, nil, nil, nil, 0.1, nil)),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func second(_ float64, err error) error { return err }

// TestSUREHalf: a denoiser that halves everything, of an image that is nothing but noise of variance
// 1, is off by 1/4.
func TestSUREHalf(t *testing.T) {
	const n = 1 << 16
	rng := rand.New(rand.NewPCG(1, 1))
	y, b, sigma := make([]float32, n), make([]float32, n), slices.Repeat([]float32{1}, n)
	fy, fyb := make([]float32, n), make([]float32, n)
	for i := range y {
		y[i], b[i] = float32(rng.NormFloat64()), float32(rng.NormFloat64())
		fy[i], fyb[i] = y[i]/2, (y[i]+0.1*b[i])/2
	}
	if mse, err := sure(y, fy, fyb, b, 0.1, sigma); err != nil || math.Abs(mse-0.25) > 0.0125 {
		t.Errorf("error %.3f, want 0.25: %v", mse, err)
	}
}
