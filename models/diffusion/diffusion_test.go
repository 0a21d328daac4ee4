package diffusion_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/diffdenoise/denoised/models/diffusion"
)

// gaussian predicts exactly for values that are normal with a mean and a standard
// deviation, independent of each other.
type gaussian struct {
	mean, sd float64
	calls    int
}

func (g *gaussian) Predict(_ context.Context, v, x []float32, t float64) error {
	g.calls++
	a, s := diffusion.Alpha(t), diffusion.Sigma(t)
	for i, state := range x {
		d := float64(state) - a*g.mean
		total := a*a*g.sd*g.sd + s*s
		image := g.mean + a*g.sd*g.sd/total*d
		eps := s / total * d
		v[i] = float32(a*eps - s*image)
	}
	return nil
}

func noise(n int, seed uint64) []float32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	e := make([]float32, n)
	for i := range e {
		e[i] = float32(rng.NormFloat64())
	}
	return e
}

func moments(x []float32) (mean, sd float64) {
	for _, v := range x {
		mean += float64(v)
	}
	mean /= float64(len(x))
	for _, v := range x {
		sd += (float64(v) - mean) * (float64(v) - mean)
	}
	return mean, math.Sqrt(sd / float64(len(x)))
}

// TestSampleContracts: the fewer steps, the less of the
// distribution's spread comes back, and with one step none.
func TestSampleContracts(t *testing.T) {
	last := -1.0
	for _, steps := range []int{1, 2, 4, 20, 1000} {
		x := noise(20000, 3)
		if err := diffusion.Sample(t.Context(), &gaussian{mean: 0.7, sd: 0.5}, x, steps); err != nil {
			t.Fatal(err)
		}
		mean, sd := moments(x)
		if math.Abs(mean-0.7) > 0.02 {
			t.Errorf("%d steps: mean %.3f, want 0.7", steps, mean)
		}
		if sd <= last {
			t.Errorf("%d steps: spread %.3f is not above that of fewer steps, %.3f", steps, sd, last)
		}
		if steps == 1 && sd > 1e-5 {
			t.Errorf("one step left a spread of %g", sd)
		}
		if steps == 1000 && math.Abs(sd-0.5) > 0.01 {
			t.Errorf("1000 steps: spread %.3f, want 0.5", sd)
		}
		last = sd
	}
}

// TestSRDSMean: for a symmetric distribution the pair gives the mean exactly, at any
// number of steps, and half the difference is what a sample is off by.
func TestSRDSMean(t *testing.T) {
	for _, steps := range []int{1, 3, 10} {
		eps := noise(1000, 5)
		mean, spread, one := make([]float32, 1000), make([]float32, 1000), append([]float32(nil), eps...)
		g := &gaussian{mean: -1.5, sd: 0.8}
		if err := diffusion.SRDS(t.Context(), g, mean, spread, eps, steps); err != nil {
			t.Fatal(err)
		}
		if g.calls != 2*steps {
			t.Errorf("%d steps: %d calls of the network, want %d", steps, g.calls, 2*steps)
		}
		if err := diffusion.Sample(t.Context(), g, one, steps); err != nil {
			t.Fatal(err)
		}
		for i := range mean {
			if math.Abs(float64(mean[i])+1.5) > 1e-5 {
				t.Fatalf("%d steps: mean %g, want -1.5", steps, mean[i])
			}
			if off := math.Abs(float64(one[i]) + 1.5); math.Abs(off-float64(spread[i])) > 1e-5 {
				t.Fatalf("%d steps: spread %g, a sample is off by %g", steps, spread[i], off)
			}
		}
	}
}

// skewed predicts for a mixture of two values, p of which are high.
type skewed struct{ p, low, high float64 }

func (m skewed) Predict(_ context.Context, v, x []float32, t float64) error {
	a, s := diffusion.Alpha(t), diffusion.Sigma(t)
	const width = 0.5
	for i, state := range x {
		total := a*a*width*width + s*s
		like := func(mean float64) float64 {
			d := float64(state) - a*mean
			return math.Exp(-d * d / (2 * total))
		}
		h, l := m.p*like(m.high), (1-m.p)*like(m.low)
		share := h / (h + l + 1e-300)
		image, eps := 0.0, 0.0
		for _, part := range []struct{ mean, weight float64 }{{m.high, share}, {m.low, 1 - share}} {
			d := float64(state) - a*part.mean
			image += part.weight * (part.mean + a*width*width/total*d)
			eps += part.weight * s / total * d
		}
		v[i] = float32(a*eps - s*image)
	}
	return nil
}

// TestSRDSVariance: even for a skewed distribution the pair
// varies less than two independent samples do.
func TestSRDSVariance(t *testing.T) {
	const n, steps = 4000, 10
	m := skewed{p: 0.35, low: 0, high: 2}
	eps, other := noise(n, 7), noise(n, 8)
	mean, spread := make([]float32, n), make([]float32, n)
	if err := diffusion.SRDS(t.Context(), m, mean, spread, eps, steps); err != nil {
		t.Fatal(err)
	}
	one, two := append([]float32(nil), eps...), append([]float32(nil), other...)
	for _, x := range [][]float32{one, two} {
		if err := diffusion.Sample(t.Context(), m, x, steps); err != nil {
			t.Fatal(err)
		}
	}
	for i := range one {
		one[i] = (one[i] + two[i]) / 2
	}
	_, pair := moments(mean)
	_, independent := moments(one)
	if !(pair*pair < 0.42*independent*independent) {
		t.Errorf("variance of the pair is %.3f of that of two independent samples, want below 0.42", pair*pair/(independent*independent))
	}
}

// TestDiffuse: v and the state give image and noise back.
func TestDiffuse(t *testing.T) {
	x0, eps := noise(50, 1), noise(50, 2)
	x, v := make([]float32, 50), make([]float32, 50)
	for _, at := range []float64{0, 0.2, 0.9, 1} {
		diffusion.Diffuse(x, v, x0, eps, at)
		a, s := diffusion.Alpha(at), diffusion.Sigma(at)
		if math.Abs(a*a+s*s-1) > 1e-12 {
			t.Errorf("t = %g: shares %g and %g", at, a, s)
		}
		for i := range x {
			image, e := a*float64(x[i])-s*float64(v[i]), s*float64(x[i])+a*float64(v[i])
			if math.Abs(image-float64(x0[i])) > 1e-5 || math.Abs(e-float64(eps[i])) > 1e-5 {
				t.Fatalf("t = %g: image %g, noise %g, want %g and %g", at, image, e, x0[i], eps[i])
			}
		}
	}
	if diffusion.Alpha(1) != 0 {
		t.Error("there is signal left at the start of sampling")
	}
}

// TestSteps: the steps as factors are those of Sample.
func TestSteps(t *testing.T) {
	for _, steps := range []int{1, 2, 3, 10, 100} {
		m := skewed{p: 0.35, low: 0, high: 2}
		want, x := noise(500, 9), noise(500, 9)
		if err := diffusion.Sample(t.Context(), m, want, steps); err != nil {
			t.Fatal(err)
		}
		v := make([]float32, len(x))
		list := diffusion.Steps(steps)
		if len(list) != steps || list[0].T != 1 {
			t.Fatalf("%d steps: %+v", steps, list)
		}
		for _, s := range list {
			if err := m.Predict(t.Context(), v, x, s.T); err != nil {
				t.Fatal(err)
			}
			for i := range x {
				x[i] = float32(s.Keep)*x[i] + float32(s.Add)*v[i]
			}
		}
		for i := range x {
			if math.Abs(float64(x[i]-want[i])) > 1e-4 {
				t.Fatalf("%d steps: value %d is %g, want %g", steps, i, x[i], want[i])
			}
		}
	}
}

type failing struct{ after int }

func (f *failing) Predict(context.Context, []float32, []float32, float64) error {
	if f.after--; f.after < 0 {
		return errors.New("out of order")
	}
	return nil
}

func TestSampleErrors(t *testing.T) {
	x := make([]float32, 4)
	if err := diffusion.Sample(t.Context(), &failing{2}, x, 4); err == nil {
		t.Error("the network's error was lost")
	}
	for _, steps := range []int{0, -1, diffusion.MaxSteps + 1} {
		if err := diffusion.Sample(t.Context(), &failing{1 << 30}, x, steps); err == nil {
			t.Errorf("%d steps passed", steps)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := diffusion.SRDS(ctx, &failing{1 << 30}, x, make([]float32, 4), make([]float32, 4), 3); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
