//go:build cuda && linux && emulated

package cuda

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// sampled is a small graph that can sample, with a batch for it: a state, a condition and a vector that
// scales a layer, with a shift besides.
func sampled(h, w int) (*kernels.Graph, *kernels.Batch) {
	g := new(kernels.Graph)
	x, c, v := g.Input(1), g.Input(2), g.Vector(3)
	a := kernels.Conv3("a", 9, kernels.LeakyReLU)
	a.FiLM = g.Conv(kernels.Conv1("film", 18, kernels.Linear), v)
	y := g.Conv(a, x, g.Shift(c, 0))
	d := g.Conv(kernels.Down2("down", 12, kernels.LeakyReLU), y)
	up := kernels.Conv3("up", 8, kernels.LeakyReLU)
	up.Up = true
	g.Conv(kernels.Conv3("out", 1, kernels.Linear), g.Conv(up, d, y))
	rng := rand.New(rand.NewPCG(uint64(h), uint64(w)))
	return g, &kernels.Batch{Count: 1, Height: h, Width: w, Inputs: [][]float32{nil, numbers(rng, h*w*2), nil}, Shifts: []int{2}}
}

func sampleSteps(n int) []kernels.SampleStep {
	var steps []kernels.SampleStep
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range n {
		steps = append(steps, kernels.SampleStep{State: 0.2 + 0.1*float32(i), Vector: numbers(rng, 3), Keep: 0.9 - 0.1*float32(i), Add: -0.3})
	}
	return steps
}

// stepByStep is what SamplePair is by definition.
func stepByStep(t *testing.T, p kernels.Program, eps []float32, b *kernels.Batch, steps []kernels.SampleStep) (mean, spread []float32) {
	t.Helper()
	var ends [2][]float32
	for i, sign := range []float32{1, -1} {
		x, in, v := make([]float32, len(eps)), make([]float32, len(eps)), make([]float32, len(eps))
		for j, e := range eps {
			x[j] = sign * e
		}
		for _, s := range steps {
			for j := range x {
				in[j] = s.State * x[j]
			}
			whole := *b
			whole.Inputs = [][]float32{in, b.Inputs[1], s.Vector}
			if err := p.Run(v, &whole); err != nil {
				t.Fatal(err)
			}
			for j := range x {
				x[j] = s.Keep*x[j] + s.Add*v[j]
			}
		}
		ends[i] = x
	}
	mean, spread = make([]float32, len(eps)), make([]float32, len(eps))
	for i, plus := range ends[0] {
		minus := ends[1][i]
		mean[i], spread[i] = (plus+minus)/2, float32(math.Abs(float64(plus-minus)))/2
	}
	return mean, spread
}

// TestSamplePair: sampling on the device is what the definition says, in any memory, and again in the
// memory of another run.
func TestSamplePair(t *testing.T) {
	const h, w = 12, 20
	g, batch := sampled(h, w)
	params := g.Init(3)
	rng := rand.New(rand.NewPCG(1, 2))
	var last []float32
	var enough int64
	for _, shortOf := range []int64{0, 1} {
		o := Options{}
		if enough > 0 {
			o.Memory = enough - shortOf // not for two samples at once
		}
		b := open(t, o)
		compiled, err := b.Compile(g, params)
		if err != nil {
			t.Fatal(err)
		}
		p := compiled.(*program)
		enough = int64(p.samplingLayout(2, h, w, 2).free.End())
		mean, spread := make([]float32, h*w), make([]float32, h*w)
		for n := 1; n <= 4; n += 3 {
			eps, steps := numbers(rng, h*w), sampleSteps(n)
			wantMean, wantSpread := stepByStep(t, p, eps, batch, steps)
			var told []int
			err := p.SamplePair(mean, spread, eps, batch, steps, func(runs int) error { told = append(told, runs); return nil })
			if err != nil {
				t.Fatal(err)
			}
			// The state is multiplied and added with one rounding less.
			if e := distance(mean, wantMean); !(e < 1e-3) {
				t.Errorf("%d steps: mean is off by %g", n, e)
			}
			if e := distance(spread, wantSpread); !(e < 1e-3) {
				t.Errorf("%d steps: spread is off by %g", n, e)
			}
			if want := []int{2, 4, 6, 8}[:n]; !slices.Equal(told, want) {
				t.Errorf("told of runs %v, want %v", told, want)
			}
		}
		rng = rand.New(rand.NewPCG(1, 2))
		if shortOf == 0 {
			last = slices.Clone(mean)
		} else if !slices.Equal(mean, last) {
			t.Error("both samples at once and one after the other differ")
		} else if n := b.pool.idle[len(b.pool.idle)-1].count; n != 1 {
			t.Errorf("%d samples at once, want 1 for lack of memory", n)
		}
	}
}

func distance(got, want []float32) float64 {
	diff, norm := 0.0, 0.0
	for i, w := range want {
		diff += float64(got[i]-w) * float64(got[i]-w)
		norm += float64(w) * float64(w)
	}
	return math.Sqrt(diff / norm)
}

// TestPausedSampling: who samples may wait for somebody who lacks the memory of the samples.
func TestPausedSampling(t *testing.T) {
	const h, w = 12, 20
	g, batch := sampled(h, w)
	b := open(t, Options{})
	compiled, err := b.Compile(g, g.Init(3))
	if err != nil {
		t.Fatal(err)
	}
	n := load(t, b, kernelstest.RandomNet(5, 16, 1))
	p := compiled.(*program)
	b.pool.budget = int64(p.samplingLayout(2, h, w, 2).free.End())
	img := newImage(1, 30, 30)
	mean, spread, eps := make([]float32, h*w), make([]float32, h*w), numbers(rand.New(rand.NewPCG(1, 2)), h*w)
	forward := make(chan error)
	err = p.SamplePair(mean, spread, eps, batch, sampleSteps(2), func(runs int) error {
		go func() {
			_, err := img.forward(n)
			forward <- err
		}()
		if err := <-forward; !errors.Is(err, kernels.ErrMemory) {
			t.Errorf("run %d: %v", runs, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if b.pool.paused != 0 || b.pool.busy != 0 {
		t.Errorf("%d paused, %d busy", b.pool.paused, b.pool.busy)
	}
	if _, err := img.forward(n); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestSampleRefusals(t *testing.T) {
	const h, w = 4, 8
	b := open(t, Options{})
	g, batch := sampled(h, w)
	compiled, err := b.Compile(g, g.Init(3))
	if err != nil {
		t.Fatal(err)
	}
	p := compiled.(kernels.Sampler)
	f := func(n int) []float32 { return make([]float32, n) }
	steps := sampleSteps(2)

	stop := errors.New("stop")
	calls := 0
	if err := p.SamplePair(f(h*w), f(h*w), f(h*w), batch, steps, func(int) error { calls++; return stop }); err != stop || calls != 1 {
		t.Errorf("stopped by %v after %d steps, want %v after 1", err, calls, stop)
	}
	if err := p.SamplePair(f(h*w), f(h*w), f(h*w), batch, steps, nil); err != nil {
		t.Errorf("with nobody to tell: %v", err)
	}
	for name, err := range map[string]error{
		"short mean":   p.SamplePair(f(h*w-1), f(h*w), f(h*w), batch, steps, nil),
		"long spread":  p.SamplePair(f(h*w), f(h*w+1), f(h*w), batch, steps, nil),
		"short eps":    p.SamplePair(f(h*w), f(h*w), f(h*w-1), batch, steps, nil),
		"no steps":     p.SamplePair(f(h*w), f(h*w), f(h*w), batch, nil, nil),
		"short vector": p.SamplePair(f(h*w), f(h*w), f(h*w), batch, []kernels.SampleStep{steps[0], {Vector: f(2)}}, nil),
		"two samples":  p.SamplePair(f(h*w), f(h*w), f(h*w), &kernels.Batch{Count: 2, Height: h, Width: w, Inputs: batch.Inputs, Shifts: batch.Shifts}, steps, nil),
		"odd height":   p.SamplePair(f(3*w), f(3*w), f(3*w), &kernels.Batch{Count: 1, Height: 3, Width: w, Inputs: batch.Inputs, Shifts: batch.Shifts}, steps, nil),
		"no shift":     p.SamplePair(f(h*w), f(h*w), f(h*w), &kernels.Batch{Count: 1, Height: h, Width: w, Inputs: batch.Inputs}, steps, nil),
		"an input 0":   p.SamplePair(f(h*w), f(h*w), f(h*w), &kernels.Batch{Count: 1, Height: h, Width: w, Inputs: [][]float32{f(h * w), batch.Inputs[1], nil}, Shifts: batch.Shifts}, steps, nil),
	} {
		if err == nil {
			t.Errorf("%s: passed", name)
		}
	}
	for name, build := range map[string]func(g *kernels.Graph){
		"no vector":         func(g *kernels.Graph) { g.Conv(kernels.Conv3("a", 1, kernels.Linear), g.Input(1)) },
		"output of a size":  func(g *kernels.Graph) { v := g.Input(1); g.Vector(1); g.Conv(kernels.Down2("a", 1, kernels.Linear), v) },
		"output of a width": func(g *kernels.Graph) { v := g.Input(1); g.Vector(1); g.Conv(kernels.Conv3("a", 2, kernels.Linear), v) },
	} {
		g := new(kernels.Graph)
		build(g)
		c, err := b.Compile(g, g.Init(1))
		if err != nil {
			t.Fatal(err)
		}
		batch := &kernels.Batch{Count: 1, Height: 2, Width: 2, Inputs: make([][]float32, g.Inputs())}
		if c.(kernels.Sampler).SamplePair(f(4), f(4), f(4), batch, []kernels.SampleStep{{Vector: f(1)}}, nil) == nil {
			t.Errorf("%s: passed", name)
		}
	}
}
