package train

import (
	"math/rand/v2"

	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/noise"
)

// tau is the strength of recorruption: the input has noise of sqrt(1+tau²) times
// the image's own, the target of sqrt(1+1/tau²) times.
const tau = 0.5

// pair is a square part of a slice as an input and a target whose own noises
// are uncorrelated.
type pair struct {
	input, target []float32
	own           []float32 // standard deviation of the input's noise; 0 where unknown
	image         []float32 // as it was
}

// minBright is the least mean of a piece, of the scale: below it there is mostly
// air, of which one piece in ten is taken.
const minBright = 0.03

// take draws a square of sceneSides·side or, from a smaller slice, as much as it has,
// turned or mirrored at random, and returns its side. Slices smaller than side are
// skipped; there must be larger ones.
func take(slices []Slice, side int, rng *rand.Rand) (p pair, n int) {
	for {
		s := &slices[rng.IntN(len(slices))]
		if s.Width < side || s.Height < side {
			continue
		}
		n := min(sceneSides*side, s.Width, s.Height)
		x0, y0 := rng.IntN(s.Width-n+1), rng.IntN(s.Height-n+1)
		y := window(s.Pixels, s.Width, x0, y0, n)
		sum := float32(0)
		for _, v := range y {
			sum += v
		}
		if sum < minBright*float32(len(y)) && rng.IntN(10) > 0 {
			continue
		}
		p := pair{input: y, target: y, own: make([]float32, len(y)), image: y}
		if m := s.Noise; m != nil && m.Median > 0 {
			local := &noise.Map{Width: n, Height: n, Sigma: window(m.Sigma, s.Width, x0, y0, n), Median: m.Median, Correlation: m.Correlation}
			p.input, p.target = recorrupt(y, local, tau, rng)
			const louder = 1.118033988749895 // sqrt(1+tau²)
			for i, v := range local.Sigma {
				p.own[i] = louder * v
			}
		}
		turn := rng.IntN(8)
		return pair{models.Turned(p.input, n, n, turn), models.Turned(p.target, n, n, turn), models.Turned(p.own, n, n, turn), models.Turned(p.image, n, n, turn)}, n
	}
}

// piece is what a network is trained on or with: part of a noisy image and of the
// target, side×side, and what is known of the noise.
type piece struct {
	noisy, target []float32
	sigma         []float32 // standard deviation of all noise in noisy
	given         []float32 // sigma as networks are told it
	rhoX, rhoY    float32   // its correlation as networks are told it
}

// perScene is how many pieces are cut from one noisy image.
const perScene = 2

// sceneSides is the side of the image that noise is added to and estimated on, in
// sides of a piece.
const sceneSides = 2

// pieces makes count pieces of side×side: scenes of twice that side are taken from
// the slices, noise is added and estimated as it is when images are denoised, and
// the pieces are cut from them. Every fourth scene is told the true noise, slightly
// misjudged, and so is one in which no noise was found: the networks are to follow
// what they are told.
func pieces(slices []Slice, count, side int, rng *rand.Rand) ([]piece, error) {
	list := make([]piece, count)
	scenes := (count + perScene - 1) / perScene
	seeds, errs := drawSeeds(scenes, rng), make([]error, scenes)
	each(scenes, func(k int) {
		rng := rand.New(rand.NewPCG(seeds[k], uint64(k)))
		p, n := take(slices, side, rng)
		s := corrupt(p.input, n, n, rng)
		total := make([]float32, n*n)
		for i := range total {
			total[i] = hypot(s.sigma[i], p.own[i])
		}
		var given []float32
		var rhoX, rhoY float32
		if rng.IntN(4) > 0 {
			m := new(noise.Map)
			if err := m.EstimateWith(noise.Known{Air: s.air}, s.noisy, n, n, nil); err != nil {
				errs[k] = err
				return
			}
			if m.Median > 0 {
				given, rhoX, rhoY = m.Sigma, float32(m.Correlation.At(1, 0)), float32(m.Correlation.At(0, 1))
			}
		}
		if given == nil {
			given = misjudge(total, n, n, rng)
			rhoX, rhoY = knownCorrelation(&s, rng)
		}
		for j := k * perScene; j < min((k+1)*perScene, count); j++ {
			x, y := rng.IntN(n-side+1), rng.IntN(n-side+1)
			list[j] = piece{window(s.noisy, n, x, y, side), window(p.target, n, x, y, side), window(total, n, x, y, side), window(given, n, x, y, side), rhoX, rhoY}
		}
	})
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

func window(img []float32, w, x0, y0, side int) []float32 {
	out := make([]float32, side*side)
	for r := range side {
		copy(out[r*side:][:side], img[(y0+r)*w+x0:])
	}
	return out
}
