package kernels_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
)

// scaling is a Program that is no Sampler: its output is input 0 by the first number of the vector,
// and one number of input 1 on top. It fails in run number failAt.
type scaling struct {
	vector, runs, failAt int
}

var errScaling = errors.New("out of order")

func (p *scaling) Run(dst []float32, b *kernels.Batch) error {
	if p.runs++; p.runs == p.failAt {
		return errScaling
	}
	for i, x := range b.Inputs[0] {
		dst[i] = x*b.Inputs[p.vector][0] + b.Inputs[3-p.vector][i]
	}
	return nil
}

// TestSamplePair: what is no Sampler is run step by step, and gives what the equation says.
func TestSamplePair(t *testing.T) {
	steps := []kernels.SampleStep{{State: 0.5, Vector: []float32{2}, Keep: 0.25, Add: 4},
		{State: 1, Vector: []float32{3}, Keep: 1, Add: -1}}
	eps, c := []float32{1, -2, 0}, []float32{8, 4, 2}
	last := func(x, c float32) float32 {
		x = 0.25*x + 4*(0.5*x*2+c)
		return x - (3*x + c)
	}
	batch := func(vector int) *kernels.Batch {
		b := &kernels.Batch{Count: 1, Height: 1, Width: 3, Inputs: [][]float32{nil, c, c}}
		b.Inputs[vector] = nil
		return b
	}
	for vector := 1; vector <= 2; vector++ {
		mean, spread := make([]float32, 3), make([]float32, 3)
		var told []int
		err := kernels.SamplePair(&scaling{vector: vector}, mean, spread, eps, batch(vector), steps, func(runs int) error {
			told = append(told, runs)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range eps {
			plus, minus := last(e, c[i]), last(-e, c[i])
			if mean[i] != (plus+minus)/2 || spread[i] != float32(math.Abs(float64(plus-minus)))/2 {
				t.Errorf("value %d is %g ± %g, the two samples are %g and %g", i, mean[i], spread[i], plus, minus)
			}
		}
		if !slices.Equal(told, []int{1, 2, 3, 4}) {
			t.Errorf("told of runs %v", told)
		}
	}

	mean, spread := make([]float32, 3), make([]float32, 3)
	err := kernels.SamplePair(&scaling{vector: 1, failAt: 3}, mean, spread, eps, batch(1), steps, nil)
	if !errors.Is(err, errScaling) {
		t.Errorf("the network failed: %v", err)
	}
	enough := errors.New("enough")
	p := &scaling{vector: 1}
	err = kernels.SamplePair(p, mean, spread, eps, batch(1), steps, func(int) error { return enough })
	if err != enough || p.runs != 1 {
		t.Errorf("called off after %d runs: %v", p.runs, err)
	}
	of := func(b *kernels.Batch) error { return kernels.SamplePair(p, mean, spread, eps, b, steps, nil) }
	many := make([]kernels.SampleStep, kernels.MaxSampleSteps+1)
	for what, err := range map[string]error{
		"no steps":       kernels.SamplePair(p, mean, spread, eps, batch(1), nil, nil),
		"too many steps": kernels.SamplePair(p, mean, spread, eps, batch(1), many, nil),
		"a short mean":   kernels.SamplePair(p, mean[1:], spread, eps, batch(1), steps, nil),
		"a short spread": kernels.SamplePair(p, mean, spread[1:], eps, batch(1), steps, nil),
		"two samples":    of(&kernels.Batch{Count: 2, Inputs: batch(1).Inputs}),
		"a state":        of(&kernels.Batch{Count: 1, Inputs: [][]float32{eps, nil, nil}}),
		"no condition":   of(&kernels.Batch{Count: 1, Inputs: [][]float32{nil, nil, nil}}),
		"a vector":       of(&kernels.Batch{Count: 1, Inputs: [][]float32{nil, c, c}}),
	} {
		if err == nil {
			t.Errorf("%s: passed", what)
		}
	}
}
