package train

import (
	"math/rand/v2"

	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/noise"
)

// tau is the strength of recorruption: the input has noise of sqrt(1+tau²) times
// the image's own, the target of sqrt(1+1/tau²) times (method section 9).
const tau = 0.5

// pair is a piece of a slice, side×side, as an input and a target whose own noises
// are uncorrelated.
type pair struct {
	input, target []float32
	own           []float32 // standard deviation of the input's noise; 0 where unknown
}

// minBright is the least mean of a piece, of the scale: below it there is mostly
// air, of which one piece in ten is taken.
const minBright = 0.03

// take draws a piece of side×side from the slices, turned or mirrored at random.
// Slices smaller than side are skipped; there must be larger ones.
func take(slices []Slice, side int, rng *rand.Rand) pair {
	for {
		s := &slices[rng.IntN(len(slices))]
		if s.Width < side || s.Height < side {
			continue
		}
		x0, y0 := rng.IntN(s.Width-side+1), rng.IntN(s.Height-side+1)
		y := window(s.Pixels, s.Width, x0, y0, side)
		sum := float32(0)
		for _, v := range y {
			sum += v
		}
		if sum < minBright*float32(len(y)) && rng.IntN(10) > 0 {
			continue
		}
		p := pair{input: y, target: y, own: make([]float32, len(y))}
		if m := s.Noise; m != nil && m.Median > 0 {
			local := &noise.Map{Width: side, Height: side, Sigma: window(m.Sigma, s.Width, x0, y0, side), Median: m.Median, Correlation: m.Correlation}
			p.input, p.target = recorrupt(y, local, tau, rng)
			const louder = 1.118033988749895 // sqrt(1+tau²)
			for i, v := range local.Sigma {
				p.own[i] = louder * v
			}
		}
		turn := rng.IntN(8)
		return pair{models.Turned(p.input, side, side, turn), models.Turned(p.target, side, side, turn), models.Turned(p.own, side, side, turn)}
	}
}

func window(img []float32, w, x0, y0, side int) []float32 {
	out := make([]float32, side*side)
	for r := range side {
		copy(out[r*side:][:side], img[(y0+r)*w+x0:])
	}
	return out
}
