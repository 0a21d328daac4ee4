package train

import (
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/diffusion"
)

// Shares of the times at which a diffusion network is trained.
const startShare = 0.1 // at t = 1, where sampling begins

// diffusionBatch makes count pieces of side×side for the diffusion network in its
// leak-free form: it is given the noisy piece, the blind-spot prediction fused with
// it, and the noise, and is to find the target, whose noise is another, counted from
// the fused prediction in units of the noise (models.Condition, models.Unit).
func diffusionBatch(slices []Slice, blind kernels.Program, count, side int, rng *rand.Rand) (*kernels.Batch, error) {
	n := side * side
	b := &kernels.Batch{Count: count, Height: side, Width: side,
		Inputs: [][]float32{make([]float32, count*n), make([]float32, count*n*models.TeacherCondition), make([]float32, count*models.TimeCode)},
		Target: make([]float32, count*n), Weight: make([]float32, count*n)}
	sx, sy := holes[rng.IntN(3)], holes[rng.IntN(3)]
	seeds := drawSeeds(count, rng)
	errs := make([]error, count)
	each(count, func(k int) {
		rng := rand.New(rand.NewPCG(seeds[k], uint64(k)))
		p := take(slices, side, rng)
		s := corrupt(p.input, side, side, rng)
		total := make([]float32, n)
		for i := range total {
			total[i] = hypot(s.sigma[i], p.own[i])
		}
		sigma := misjudge(total, side, side, rng)
		base, unit := make([]float32, n), make([]float32, n)
		if errs[k] = blind.Run(base, models.BSNBatch(s.noisy, 1, side, side, sx, sy)); errs[k] != nil {
			return
		}
		models.Posterior(base, s.noisy, base, sigma, side, side)
		models.Unit(unit, sigma)
		rhoX, rhoY := knownCorrelation(&s, rng)
		models.Condition(b.Inputs[1][k*n*models.TeacherCondition:], s.noisy, base, sigma, rhoX, rhoY)

		image, eps := make([]float32, n), make([]float32, n)
		for i := range image {
			image[i] = (p.target[i] - base[i]) / unit[i]
			eps[i] = float32(rng.NormFloat64())
		}
		t := rng.Float64()
		if rng.Float64() < startShare {
			t = 1
		}
		diffusion.Diffuse(b.Inputs[0][k*n:][:n], b.Target[k*n:][:n], image, eps, t)
		models.EncodeTime(b.Inputs[2][k*models.TimeCode:][:models.TimeCode], t)
		weight := float32(math.Pow(noiseOf(sigma)/lossNoise, 0.5))
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
