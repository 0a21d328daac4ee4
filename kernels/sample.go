package kernels

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// SampleStep is one step of sampling, from the state x to the next: the network is run on
// State·x, which is its input 0, and on Vector, and gives v. The next state is Keep·x + Add·v.
type SampleStep struct {
	State     float32
	Vector    []float32
	Keep, Add float32
}

// MaxSampleSteps is the most steps of SamplePair.
const MaxSampleSteps = 1 << 12

// Sampler is a Program that can do the whole of SamplePair on its device, so that the state of
// the sampling does not travel at every step.
type Sampler interface {
	Program

	// SamplePair is the function SamplePair on this program.
	SamplePair(mean, spread, eps []float32, b *Batch, steps []SampleStep, done func(runs int) error) error
}

// SamplePair samples twice, from eps and from -eps, and writes the mean of the two last states to
// mean, and half their absolute difference to spread. The three are as the output for one sample,
// and may not overlap. The program's graph has one vector input, and an output of the shape of
// input 0. A Sampler does it on its device; any other program is run step by step.
//
// b has a Count of 1 and all inputs but input 0 and the vector, for which it has nil. done, if not
// nil, is told on the caller's goroutine how many of the 2·len(steps) runs of the network are done,
// after each of them or after both of a step; if a device is lost sampling begins anew, and with it
// the count. An error that it returns ends the sampling and is returned as it is.
func SamplePair(p Program, mean, spread, eps []float32, b *Batch, steps []SampleStep, done func(runs int) error) error {
	if s, ok := p.(Sampler); ok {
		return s.SamplePair(mean, spread, eps, b, steps, done)
	}
	vector, err := checkSampling(mean, spread, eps, b, steps)
	if err != nil {
		return err
	}
	one := *b
	one.Inputs = slices.Clone(b.Inputs)
	one.Inputs[0] = make([]float32, len(eps))
	v := make([]float32, len(eps))
	copy(mean, eps)
	for i, e := range eps {
		spread[i] = -e
	}
	runs := 0
	for i, step := range steps {
		one.Inputs[vector] = step.Vector
		for _, x := range [][]float32{mean, spread} {
			for k, state := range x {
				one.Inputs[0][k] = step.State * state
			}
			if err := p.Run(v, &one); err != nil {
				return fmt.Errorf("sample step %d of %d: %w", i+1, len(steps), err)
			}
			for k, state := range x {
				x[k] = step.Keep*state + step.Add*v[k]
			}
			if runs++; done == nil {
				continue
			}
			if err := done(runs); err != nil {
				return err
			}
		}
	}
	for i, plus := range mean {
		minus := spread[i]
		mean[i], spread[i] = (plus+minus)/2, float32(math.Abs(float64(plus-minus)))/2
	}
	return nil
}

// checkSampling reports the first thing in a call of SamplePair that fits no graph, and returns
// the number of the vector input.
func checkSampling(mean, spread, eps []float32, b *Batch, steps []SampleStep) (vector int, err error) {
	if len(steps) < 1 || len(steps) > MaxSampleSteps {
		return 0, &ShapeError{"sample", "number of steps", len(steps), MaxSampleSteps}
	}
	if b.Count != 1 {
		return 0, &ShapeError{"sample", "number of samples", b.Count, 1}
	}
	missing := 0
	for k, in := range b.Inputs {
		if in == nil {
			missing, vector = missing+1, k
		}
	}
	if missing != 2 || b.Inputs[0] != nil {
		return 0, errors.New("sample: all inputs but input 0 and the vector are for the caller to give")
	}
	for _, dst := range []struct {
		what   string
		values []float32
	}{{"length of the mean", mean}, {"length of the spread", spread}} {
		if len(dst.values) != len(eps) {
			return 0, &ShapeError{"sample", dst.what, len(dst.values), len(eps)}
		}
	}
	return vector, nil
}

// SamplingVector returns the number of the vector input of a graph that can be sampled with, or
// why it cannot.
func (g *Graph) SamplingVector() (int, error) {
	vector := -1
	var state *Node
	for i := range g.Nodes {
		switch n := &g.Nodes[i]; {
		case n.Op != OpInput:
		case n.Vector && vector < 0:
			vector = n.K
		case n.Vector:
			return 0, errors.New("sample: the graph has several vector inputs, needed is one")
		case n.K == 0:
			state = n
		}
	}
	out := g.Output()
	if vector < 0 || state == nil || out.Channels != state.Channels || out.Down != state.Down ||
		out.Turned != state.Turned || out.Vector {
		return 0, errors.New("sample: the graph needs a vector input, and an output of the shape of input 0")
	}
	return vector, nil
}

// CheckSampling reports the first thing in a call of Sampler.SamplePair that does not fit g, and
// returns the number of the vector input.
func (g *Graph) CheckSampling(mean, spread, eps []float32, b *Batch, steps []SampleStep) (vector int, err error) {
	if vector, err = g.SamplingVector(); err != nil {
		return 0, err
	}
	given, err := checkSampling(mean, spread, eps, b, steps)
	switch {
	case err != nil:
		return 0, err
	case len(b.Inputs) != g.Inputs():
		return 0, &ShapeError{"sample", "number of inputs", len(b.Inputs), g.Inputs()}
	case given != vector:
		return 0, fmt.Errorf("sample: input %d is missing, and the vector is input %d", given, vector)
	}
	whole := *b
	whole.Inputs = slices.Clone(b.Inputs)
	whole.Inputs[0] = eps
	for i := range steps {
		whole.Inputs[vector] = steps[i].Vector
		if err := g.Check(&whole, false); err != nil {
			return 0, fmt.Errorf("sample step %d: %w", i+1, err)
		}
	}
	return vector, nil
}
