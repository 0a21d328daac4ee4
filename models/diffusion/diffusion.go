// Package diffusion is the arithmetic of a diffusion model, without its network: the schedule, and
// the steps of sampling that kernels.SamplePair takes.
//
// The schedule is the cosine one with time from 0 (the image) to 1 (noise alone):
//
//	x_t = α(t)·x_0 + σ(t)·ε    α = cos(πt/2), σ = sin(πt/2)
//
// Its signal at t = 1 is exactly zero, as the start of sampling assumes (Lin et al.
// 2023, arXiv 2305.08891). The network predicts v = α·ε − σ·x_0 (Salimans and Ho
// 2022, arXiv 2202.00512), which says something at every t; at t = 1 it is −x_0.
package diffusion

import "math"

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

// MaxSteps is the most steps of sampling.
const MaxSteps = 1000

// Step is a step of sampling from the time T: the state x becomes Keep·x + Add·v.
type Step struct{ T, Keep, Add float64 }

// Steps returns the deterministic DDIM steps (Song, Meng, Ermon 2021, equation 12 with η = 0) that
// turn noise of variance 1 into a sample. They start on the trailing grid of times: 1, 1−1/steps, …,
// 1/steps, the first where the noise is pure (arXiv 2305.08891, section 3.3). Nothing is clipped, so
// the sample is an odd function of the noise about the mean as far as the network is.
func Steps(steps int) []Step {
	list := make([]Step, steps)
	for i := range list {
		t, next := 1-float64(i)/float64(steps), 0.0
		if i+1 < steps {
			next = 1 - float64(i+1)/float64(steps)
		}
		a, s := Alpha(t), Sigma(t)
		na, ns := Alpha(next), Sigma(next)
		// With image = a·x − s·v and eps = s·x + a·v, the next state is na·image + ns·eps.
		list[i] = Step{t, na*a + ns*s, ns*a - na*s}
	}
	return list
}
