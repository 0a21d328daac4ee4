package remote

import (
	"fmt"
	"math"
	"slices"

	"github.com/diffdenoise/denoised/kernels"
)

// samplePair is kernels.Sampler's method for any program, whose arguments have been checked.
func samplePair(p kernels.Program, mean, spread, eps []float32, b *kernels.Batch, steps []kernels.SampleStep, done func(step int) error) error {
	if s, ok := p.(kernels.Sampler); ok {
		return s.SamplePair(mean, spread, eps, b, steps, done)
	}
	one := *b
	one.Inputs = slices.Clone(b.Inputs)
	vector := 1 + slices.IndexFunc(one.Inputs[1:], func(in []float32) bool { return in == nil })
	one.Inputs[0] = make([]float32, len(eps))
	v := make([]float32, len(eps))
	copy(mean, eps)
	for i, e := range eps {
		spread[i] = -e
	}
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
		}
		if done != nil {
			if err := done(i + 1); err != nil {
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
