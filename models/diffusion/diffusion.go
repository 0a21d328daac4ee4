// Package diffusion samples from a conditional diffusion model and knows nothing of
// its network but [Predictor]. Randomness is passed in: equal noise gives equal
// samples, bit for bit.
//
// The schedule is the cosine one with time from 0 (the image) to 1 (noise alone):
//
//	x_t = α(t)·x_0 + σ(t)·ε    α = cos(πt/2), σ = sin(πt/2)
//
// Its signal at t = 1 is exactly zero, as the start of sampling assumes (Lin et al.
// 2023, arXiv 2305.08891). The network predicts v = α·ε − σ·x_0 (Salimans and Ho
// 2022, arXiv 2202.00512), which says something at every t; at t = 1 it is −x_0.
package diffusion

import (
	"context"
	"fmt"
	"math"
)

// Predictor is a conditional diffusion network with its condition.
type Predictor interface {
	// Predict writes v for the state x at the time t, 0 to 1, to v. It keeps
	// neither slice. It is called by one goroutine.
	Predict(ctx context.Context, v, x []float32, t float64) error
}

// Alpha returns the share of the image in the state at time t.
func Alpha(t float64) float64 {
	if t >= 1 {
		return 0 // the cosine of a rounded π/2 is not
	}
	return math.Cos(math.Pi / 2 * t)
}

// Sigma returns the share of the noise in the state at time t.
func Sigma(t float64) float64 { return math.Sin(math.Pi / 2 * t) }

// Diffuse sets x to the state at time t of the image x0 with the noise eps, and v to
// what the network is to predict there.
func Diffuse(x, v, x0, eps []float32, t float64) {
	a, s := float32(Alpha(t)), float32(Sigma(t))
	for i, image := range x0 {
		e := eps[i]
		x[i] = a*image + s*e
		v[i] = a*e - s*image
	}
}

// Times returns the trailing grid of a number of steps: 1, 1−1/steps, …, 1/steps.
// It starts where the noise is pure (arXiv 2305.08891, section 3.3).
func Times(steps int) []float64 {
	t := make([]float64, steps)
	for i := range t {
		t[i] = 1 - float64(i)/float64(steps)
	}
	return t
}

// MaxSteps is the most steps of Sample.
const MaxSteps = 1000

// Sample turns the noise x, of variance 1, into a sample by deterministic DDIM
// steps (Song, Meng, Ermon 2021, equation 12 with η = 0). Nothing is clipped, so the
// result is an odd function of x about the mean as far as the network is.
func Sample(ctx context.Context, p Predictor, x []float32, steps int) error {
	if steps < 1 || steps > MaxSteps {
		return fmt.Errorf("sample: %d steps, allowed are 1 to %d", steps, MaxSteps)
	}
	v := make([]float32, len(x))
	times := Times(steps)
	for i, t := range times {
		if err := ctx.Err(); err != nil {
			return err
		}
		next := 0.0
		if i+1 < len(times) {
			next = times[i+1]
		}
		if err := p.Predict(ctx, v, x, t); err != nil {
			return fmt.Errorf("sample step %d of %d: %w", i+1, steps, err)
		}
		a, s := float32(Alpha(t)), float32(Sigma(t))
		na, ns := float32(Alpha(next)), float32(Sigma(next))
		for k, state := range x {
			image, eps := a*state-s*v[k], s*state+a*v[k]
			x[k] = na*image + ns*eps
		}
	}
	return nil
}

// Step is a step of Sample from the time T, as x = Keep·x + Add·v.
type Step struct{ T, Keep, Add float64 }

// Steps returns the steps of Sample, for who computes them where the network is.
func Steps(steps int) []Step {
	times := append(Times(steps), 0)
	list := make([]Step, steps)
	for i := range list {
		a, s := Alpha(times[i]), Sigma(times[i])
		na, ns := Alpha(times[i+1]), Sigma(times[i+1])
		// With image = a·x − s·v and eps = s·x + a·v, the next state is na·image + ns·eps.
		list[i] = Step{times[i], na*a + ns*s, ns*a - na*s}
	}
	return list
}

// SRDS is stabilized reverse diffusion sampling (arXiv 2504.00264): mean is the mean
// of the samples that start at +eps and −eps, and spread half their absolute
// difference, what the model leaves open at every pixel. For a distribution that is
// symmetric about its mean the former is that mean whatever the number of steps.
// mean and spread may not overlap eps.
func SRDS(ctx context.Context, p Predictor, mean, spread, eps []float32, steps int) error {
	copy(mean, eps)
	if err := Sample(ctx, p, mean, steps); err != nil {
		return err
	}
	for i, e := range eps {
		spread[i] = -e
	}
	if err := Sample(ctx, p, spread, steps); err != nil {
		return err
	}
	for i, plus := range mean {
		minus := spread[i]
		mean[i] = (plus + minus) / 2
		spread[i] = float32(math.Abs(float64(plus-minus))) / 2
	}
	return nil
}
