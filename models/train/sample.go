package train

import (
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/net"
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/simulate"
)

// tau is the strength of recorruption: the input has noise of sqrt(1+tau²) times
// the image's own, the target of sqrt(1+1/tau²) times.
const tau = 0.8

// pair is a square part of a slice as an input and a target whose own noises
// are uncorrelated.
type pair struct {
	input, target []float32
	own           []float32 // standard deviation of the input's noise; 0 where unknown
	image         []float32 // as it was
	radiograph    bool
}

// minBright is the least mean of a piece, of the scale: below it there is mostly
// air, of which one piece in ten is taken.
const minBright = 0.03

// drawn is the share of the scenes whose tissue is no slice but drawn (simulate.Leaves): slices
// teach what tissue looks like, but hardly what even areas do under faint noise, for all of them
// have noise of their own.
const drawn = 0.2

// take draws a rectangle of at most size×size from a slice of at least side×side, turned or
// mirrored at random, and returns its sides. There must be such slices.
func take(slices []Slice, side, size int, rng *rand.Rand) (p pair, w, h int) {
	// the scale of a slice hangs on its few brightest pixels
	scale := math.Exp(0.8*rng.Float64() - 0.6)
	if rng.Float64() < drawn {
		img := simulate.Leaves(size, size, rng)
		multiply(img, scale)
		return pair{input: img, target: img, own: make([]float32, len(img)), image: img,
			radiograph: slices[0].Radiograph}, size, size
	}
	for {
		s := &slices[rng.IntN(len(slices))]
		if s.Width < side || s.Height < side {
			continue
		}
		w, h := min(size, s.Width), min(size, s.Height)
		x0, y0 := rng.IntN(s.Width-w+1), rng.IntN(s.Height-h+1)
		y := part(s.Pixels, s.Width, x0, y0, w, h)
		sum := float32(0)
		for _, v := range y {
			sum += v
		}
		if sum < minBright*float32(len(y)) && rng.IntN(10) > 0 {
			continue
		}
		multiply(y, scale)
		p := pair{input: y, target: y, own: make([]float32, len(y)), image: y, radiograph: s.Radiograph}
		if m := s.Noise; m != nil && m.Median > 0 {
			local := &noise.Map{Width: w, Height: h, Sigma: part(m.Sigma, s.Width, x0, y0, w, h),
				Median: scale * m.Median, Correlation: m.Correlation}
			multiply(local.Sigma, scale)
			p.input, p.target = recorrupt(y, local, tau, rng)
			for i, v := range local.Sigma {
				p.own[i] = v * float32(math.Sqrt(1+tau*tau))
			}
		}
		turn := rng.IntN(8)
		turned := func(img []float32) []float32 { return net.Turned(img, w, h, turn) }
		p = pair{turned(p.input), turned(p.target), turned(p.own), turned(p.image), p.radiograph}
		if turn&4 == 4 {
			w, h = h, w
		}
		return p, w, h
	}
}

func multiply(v []float32, by float64) {
	for i := range v {
		v[i] *= float32(by)
	}
}

// piece is what a network is trained on or with: part of a noisy image and of the
// target, side×side, and what is known of the noise.
type piece struct {
	noisy, target []float32
	sigma         []float32         // standard deviation of all noise in noisy
	given         []float32         // sigma as networks are told it
	told          net.Told          // of its correlation, as networks are told it
	correlation   noise.Correlation // of the noise
}

// perScene is how many pieces are cut from one noisy image.
const perScene = 3

// sceneSides is the side of the image that noise is added to, in sides of a piece.
const sceneSides = 2

// scanned is the share of the scenes that come from a scanner chain; the others have the
// noise of corrupt.
const scanned = 0.65

// drawScene makes a noisy scene of at least side×side pixels and the target for it; with held
// also what it is without the added noise.
func drawScene(slices []Slice, side int, held bool, rng *rand.Rand) (s scene, target []float32, err error) {
	p, w, h := take(slices, side, sceneSides*side+64, rng)
	defer func() {
		if err == nil && !p.radiograph && rng.Float64() < blanked {
			s.blank(target)
		}
	}()
	if !held {
		p.image = nil
	}
	switch {
	case p.radiograph:
		if rng.Float64() < detected && min(w, h) >= side+2*edgeDetected+side/2 {
			return detect(p, w, h, side, rng)
		}
	case rng.Float64() < scanned && min(w, h) >= leastStored:
		if s, target, err = scan(p, w, h, rng); err != nil || min(s.w, s.h) >= side {
			return s, target, err
		}
	}
	n := min(w, h, sceneSides*side)
	cut := func(img []float32) []float32 { return window(img, w, 0, 0, n) }
	s = corrupt(cut(p.input), n, n, !p.radiograph, rng)
	for i, own := range cut(p.own) {
		s.sigma[i] = hypot(s.sigma[i], own)
	}
	if s.clean = nil; held {
		s.clean = cut(p.image)
	}
	return s, cut(p.target), nil
}

// measure sets what a meter tells of the scene, as one of a series: its other slices have told
// some of the correlation. Where the meter finds nothing, both stay.
func (s *scene) measure(by kernels.Program, given *[]float32, told *net.Told, rng *rand.Rand) error {
	var r meter.Reading
	if err := r.Read(by, s.noisy, s.w, s.h, noise.Outside(nil, s.noisy, s.w, s.h, nil), meter.Series{}); err != nil ||
		r.Map.Median == 0 {
		return err
	}
	*given, *told = r.Given, r.Told
	others := float32(0.8 * rng.Float64())
	for i, v := range net.Tell(s.correlation) {
		told[i] += others * (v - told[i])
	}
	return nil
}

// blanked is the share of the scenes whose air is blanked, as many scanners do it.
const blanked = 0.25

// blank sets to zero what has no signal in the target, 5×5 pixels and more of it.
func (s *scene) blank(target []float32) {
	const least = 0.03
	means := make([]float32, len(target))
	noise.Means(means, target, make([]float32, len(target)), make([]float64, s.w), s.w, s.h, 2)
	for i, m := range means {
		if m < least {
			s.noisy[i], target[i] = 0, 0
			if s.clean != nil {
				s.clean[i] = 0
			}
		}
	}
}

// pieces makes count pieces of side×side, cut from noisy scenes. Of their noise they tell what a
// meter does, if there is one, three times in four; else the truth, misjudged: networks are to
// follow what they are told.
func pieces(slices []Slice, count, side int, by kernels.Program, rng *rand.Rand) ([]piece, error) {
	list := make([]piece, count)
	scenes := (count + perScene - 1) / perScene
	seeds, errs := drawSeeds(scenes, rng), make([]error, scenes)
	each(scenes, func(k int) {
		rng := rand.New(rand.NewPCG(seeds[k], uint64(k)))
		s, target, err := drawScene(slices, side, false, rng)
		if err != nil {
			errs[k] = err
			return
		}
		given, told := misjudge(s.sigma, s.w, s.h, rng), net.Tell(misjudgeCorrelation(s.correlation, rng))
		if by != nil && rng.IntN(4) > 0 {
			if errs[k] = s.measure(by, &given, &told, rng); errs[k] != nil {
				return
			}
		}
		for j := k * perScene; j < min((k+1)*perScene, count); j++ {
			x, y := rng.IntN(s.w-side+1), rng.IntN(s.h-side+1)
			cut := func(img []float32) []float32 { return window(img, s.w, x, y, side) }
			list[j] = piece{cut(s.noisy), cut(target), cut(s.sigma), cut(given), told, s.correlation}
		}
	})
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

func window(img []float32, w, x0, y0, side int) []float32 { return part(img, w, x0, y0, side, side) }
