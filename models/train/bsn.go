package train

import (
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/net"
)

// holes are the widths that a blind-spot network learns to predict across.
var holes = []int{1, 3, 5}

// bsnBatch makes count pieces of side×side for a blind-spot network, and a hole for
// all of them. The noise is that of a student's training; the network sees the noisy
// piece and is to predict the target, whose own noise is another.
func bsnBatch(slices []Slice, count, side int, rng *rand.Rand) (*kernels.Batch, error) {
	sx, sy := holes[rng.IntN(3)], holes[rng.IntN(3)]
	list, err := pieces(slices, count, side, nil, rng)
	if err != nil {
		return nil, err
	}
	n := side * side
	b := net.BSNBatch(make([]float32, count*n), count, side, side, sx, sy)
	b.Target, b.Weight = make([]float32, count*n), make([]float32, count*n)
	for k := range list {
		p := &list[k]
		copy(b.Inputs[0][k*n:], p.noisy)
		copy(b.Target[k*n:], p.target)
		weight := float32(math.Pow(lossNoise/noiseOf(p.sigma), 0.5))
		for i := range n {
			b.Weight[k*n+i] = weight
		}
	}
	return b, nil
}

// drawSeeds draws a seed for each piece of a batch, so that they can be made in any
// order.
func drawSeeds(count int, rng *rand.Rand) []uint64 {
	seeds := make([]uint64, count)
	for k := range seeds {
		seeds[k] = rng.Uint64()
	}
	return seeds
}
