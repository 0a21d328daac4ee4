package diffusion_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/diffusion"
)

// model is a diffusion network without weights: it predicts v for a state at the time t. Its vector
// input is the time, and its state is given as it is.
type model func(v, x []float32, t float64)

// Run implements kernels.Program.
func (m model) Run(dst []float32, b *kernels.Batch) error {
	m(dst, b.Inputs[0], float64(b.Inputs[1][0]))
	return nil
}

// steps returns diffusion.Steps for a model.
func steps(n int) []kernels.SampleStep {
	var list []kernels.SampleStep
	for _, s := range diffusion.Steps(n) {
		list = append(list, kernels.SampleStep{State: 1, Vector: []float32{float32(s.T)}, Keep: float32(s.Keep),
			Add: float32(s.Add)})
	}
	return list
}

// pair samples from eps and from -eps.
func pair(t *testing.T, p kernels.Program, eps []float32, n int) (mean, spread []float32) {
	t.Helper()
	mean, spread = make([]float32, len(eps)), make([]float32, len(eps))
	b := &kernels.Batch{Count: 1, Height: 1, Width: len(eps), Inputs: [][]float32{nil, nil}}
	if err := kernels.SamplePair(p, mean, spread, eps, b, steps(n), nil); err != nil {
		t.Fatal(err)
	}
	return mean, spread
}

// sample samples from eps alone, by the equation of DDIM as it is written.
func sample(m model, eps []float32, n int) []float32 {
	x, v := slices.Clone(eps), make([]float32, len(eps))
	for i := range n {
		t, next := 1-float64(i)/float64(n), 1-float64(i+1)/float64(n)
		m(v, x, float64(float32(t)))
		a, s, na, ns := diffusion.Alpha(t), diffusion.Sigma(t), diffusion.Alpha(next), diffusion.Sigma(next)
		for k, state := range x {
			image, noise := a*float64(state)-s*float64(v[k]), s*float64(state)+a*float64(v[k])
			x[k] = float32(na*image + ns*noise)
		}
	}
	return x
}

// gaussian predicts exactly for values that are normal with a mean and a standard
// deviation, independent of each other.
func gaussian(mean, sd float64) model {
	return func(v, x []float32, t float64) {
		a, s := diffusion.Alpha(t), diffusion.Sigma(t)
		for i, state := range x {
			d := float64(state) - a*mean
			total := a*a*sd*sd + s*s
			image := mean + a*sd*sd/total*d
			eps := s / total * d
			v[i] = float32(a*eps - s*image)
		}
	}
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
		mean, sd := moments(sample(gaussian(0.7, 0.5), noise(20000, 3), steps))
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
		eps, calls := noise(1000, 5), 0
		g := gaussian(-1.5, 0.8)
		counted := model(func(v, x []float32, t float64) { calls++; g(v, x, t) })
		mean, spread := pair(t, counted, eps, steps)
		if calls != 2*steps {
			t.Errorf("%d steps: %d calls of the network, want %d", steps, calls, 2*steps)
		}
		one := sample(g, eps, steps)
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

func (m skewed) predict(v, x []float32, t float64) {
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
}

// TestSRDSVariance: even for a skewed distribution the pair
// varies less than two independent samples do.
func TestSRDSVariance(t *testing.T) {
	const n, steps = 4000, 10
	m := model(skewed{p: 0.35, low: 0, high: 2}.predict)
	eps, other := noise(n, 7), noise(n, 8)
	mean, _ := pair(t, m, eps, steps)
	one, two := sample(m, eps, steps), sample(m, other, steps)
	for i := range one {
		one[i] = (one[i] + two[i]) / 2
	}
	_, paired := moments(mean)
	_, independent := moments(one)
	if !(paired*paired < 0.42*independent*independent) {
		t.Errorf("variance of the pair is %.3f of that of two independent samples, want below 0.42",
			paired*paired/(independent*independent))
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

// TestSteps: the steps as factors are the equation.
func TestSteps(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 100} {
		m := model(skewed{p: 0.35, low: 0, high: 2}.predict)
		x := noise(500, 9)
		want, v := sample(m, x, n), make([]float32, len(x))
		list := steps(n)
		if len(list) != n || list[0].Vector[0] != 1 {
			t.Fatalf("%d steps: %+v", n, list)
		}
		for _, s := range list {
			m(v, x, float64(s.Vector[0]))
			for i := range x {
				x[i] = s.Keep*x[i] + s.Add*v[i]
			}
		}
		for i := range x {
			if math.Abs(float64(x[i]-want[i])) > 1e-4 {
				t.Fatalf("%d steps: value %d is %g, want %g", n, i, x[i], want[i])
			}
		}
	}
}
