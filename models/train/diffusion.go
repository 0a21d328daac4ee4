package train

import (
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/diffusion"
	"github.com/diffdenoise/denoised/models/net"
)

// startShare is the share of the training at t = 1, where sampling begins. Where few
// steps are enough (models.DefaultSteps), that is most of what counts.
const startShare = 0.5

// jitter is the standard deviation of what is added to the condition as written, in
// units of the noise: it keeps the network from reading the pixel's own noise out of
// the predictions of its neighbours.
const jitter = 0.1

// diffusionBatch makes count pieces of side×side for the diffusion network.
//
// In its leak-free form it is given the noisy piece, what the other networks make of
// it, and the noise, and is to find the target, whose noise is another. As written,
// it is given the blind-spot prediction and is to find the noisy piece itself. Both
// are counted from the base in units of the noise (net.Teacher.Condition, net.Unit).
func diffusionBatch(slices []Slice, meter kernels.Program, teacher *net.Teacher, count, side int,
	rng *rand.Rand) (*kernels.Batch, error) {
	sx, sy := holes[rng.IntN(3)], holes[rng.IntN(3)]
	list, err := pieces(slices, count, side, meter, rng)
	if err != nil {
		return nil, err
	}
	n, condition := side*side, teacher.Channels()
	b := &kernels.Batch{Count: count, Height: side, Width: side,
		Inputs: [][]float32{make([]float32, count*n), make([]float32, count*n*condition), make([]float32,
			count*net.TimeCode)},
		Target: make([]float32, count*n), Weight: make([]float32, count*n)}
	seeds, errs := drawSeeds(count, rng), make([]error, count)
	each(count, func(k int) {
		p, rng := &list[k], rand.New(rand.NewPCG(seeds[k], uint64(k)))
		given, base, err := teacher.Condition(&net.Noisy{Width: side, Height: side, Pixels: p.noisy, Sigma: p.given,
			Told: p.told, HoleX: sx, HoleY: sy})
		if err != nil {
			errs[k] = err
			return
		}
		unit := make([]float32, n)
		net.Unit(unit, p.given)
		copy(b.Inputs[1][k*n*condition:], given)
		target := p.target
		if teacher.Student == nil {
			target = p.noisy
			for i := range n {
				b.Inputs[1][k*n+i] += jitter * unit[i] * float32(rng.NormFloat64())
			}
		}

		image, eps := make([]float32, n), make([]float32, n)
		for i := range image {
			image[i] = (target[i] - base[i]) / unit[i]
			eps[i] = float32(rng.NormFloat64())
		}
		t := rng.Float64()
		if rng.Float64() < startShare {
			t = 1
		}
		state := b.Inputs[0][k*n:][:n]
		diffusion.Diffuse(state, b.Target[k*n:][:n], image, eps, t)
		net.StateInput(state, state, t)
		net.EncodeTime(b.Inputs[2][k*net.TimeCode:][:net.TimeCode], t)
		weight := float32(math.Pow(noiseOf(p.sigma)/lossNoise, 0.5))
		for i := range n {
			b.Weight[k*n+i] = weight
		}
	})
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}
