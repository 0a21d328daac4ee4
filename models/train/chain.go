package train

import (
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/simulate"
)

// Sides of the scenes that come from a scanner chain, stored pixels.
const (
	leastStored = 104
	mostStored  = 168
	edgeStored  = 10 // on every side that are cut off: k-space goes around the border of a piece
)

// drawChain draws a scanner and the size of the piece of a slice that goes through it, at most
// w×h. What the scanner stores is leastStored to mostStored pixels a side, if the piece allows.
func drawChain(w, h int, rng *rand.Rand) (c simulate.Chain, pw, ph int) {
	coin := func(share float64) bool { return rng.Float64() < share }
	// zero-filling, along both axes alike, one, or each by itself
	fill := func() float64 {
		if coin(0.35) {
			return []float64{4. / 3, 1.31, 1.5, 1.6, 2}[rng.IntN(5)]
		}
		return 1 + rng.Float64()
	}
	fx, fy := 1., 1.
	switch u := rng.Float64(); {
	case u < 0.3:
	case u < 0.6:
		fx = fill()
		fy = fx
	case u < 0.75:
		fx = fill()
	case u < 0.9:
		fy = fill()
	default:
		fx, fy = fill(), fill()
	}
	// how much finer than the matrix the slice is that plays the tissue
	finer := 1 + 1.6*rng.Float64()*rng.Float64()
	if coin(0.25) {
		finer = 1
	}
	stored := leastStored + rng.IntN(mostStored-leastStored+1)
	c.Acceleration = []int{1, 1, 1, 2, 2, 3}[rng.IntN(6)]
	axis := func(fill float64, limit int) (native, piece int) {
		native = even12(float64(stored)/fill, 12)
		if piece = max(even12(float64(native)*finer, 2), native); piece > limit {
			piece = limit / 2 * 2
			native = min(native, piece/12*12)
		}
		return native, piece
	}
	c.NativeWidth, pw = axis(fx, w)
	c.NativeHeight, ph = axis(fy, h)
	// sizes are even, as k-space is filled to even sizes
	c.FillX, c.FillY = fx, fy
	c.AlongX = coin(0.5)
	switch {
	case c.Acceleration > 1:
		c.Coils = []int{4, 8}[rng.IntN(2)]
	case coin(0.4):
		c.Coils = 1
	default:
		c.Coils = []int{2, 4, 4, 8}[rng.IntN(4)]
	}
	if c.Coils > 1 && coin(0.5) {
		c.CoilCorrelation = 0.5 * rng.Float64()
	}
	c.Adaptive = coin(0.5)
	c.Uniform = c.Coils > 1 && coin(0.5)
	if coin(0.2) {
		c.Partial, c.Homodyne = 0.6+0.3*rng.Float64(), coin(0.5)
	}
	c.Filter = []simulate.Filter{simulate.NoFilter, simulate.NoFilter, simulate.Hamming, simulate.Fermi,
		simulate.Fermi}[rng.IntN(5)]
	c.Round = coin(0.4)
	if coin(0.2) {
		c.Warp = 0.3 + 2*rng.Float64()
	}
	if coin(0.25) {
		c.Sharpen, c.SharpenSpread = 0.2+0.8*rng.Float64(), 0.6+0.9*rng.Float64()
	}
	c.Noise = leastNoise * math.Pow(mostNoise/leastNoise, rng.Float64())
	switch u := rng.Float64(); {
	case u < 0.6: // a scanner's: fine steps from zero
		c.Bits = 12
	case u < 0.85: // a window of an exporter
		c.Bits = []int{8, 12, 12}[rng.IntN(3)]
		c.Low, c.High = 0.08*rng.Float64()*rng.Float64(), 0.7+0.5*rng.Float64()
	}
	return c, pw, ph
}

// even12 rounds to a multiple, at least 48.
func even12(v float64, multiple int) int {
	return max(multiple*int(math.Round(v/float64(multiple))), 48)
}

// scan sends a part of an image through a scanner of its own. p.input is what the tissue is
// taken to be with the noise that the image has, p.target what is to be found; both are w×h.
func scan(p pair, w, h int, rng *rand.Rand) (s scene, target []float32, err error) {
	c, pw, ph := drawChain(w, h, rng)
	x0, y0 := rng.IntN(w-pw+1), rng.IntN(h-ph+1)
	cut := func(img []float32) []float32 { return part(img, w, x0, y0, pw, ph) }
	scanner, err := c.Scanner(pw, ph, rng)
	if err != nil {
		return scene{}, nil, err
	}
	s = scene{w: scanner.Width, h: scanner.Height, lifted: true}
	s.noisy, target = scanner.Acquire(cut(p.input), rng), scanner.Signal(cut(p.target))
	if p.image != nil {
		s.clean = scanner.Signal(cut(p.image))
	}
	s.sigma = scanner.Sigma
	for i, own := range scanner.Carried(cut(p.own)) {
		s.sigma[i] = hypot(s.sigma[i], own)
	}
	s.correlation = noise.Correlation{Rho: scanner.Rho, Trust: 1}
	iw, ih := s.w-2*edgeStored, s.h-2*edgeStored
	inner := func(img []float32) []float32 { return part(img, s.w, edgeStored, edgeStored, iw, ih) }
	s.noisy, target, s.sigma = inner(s.noisy), inner(target), inner(s.sigma)
	if s.clean != nil {
		s.clean = inner(s.clean)
	}
	s.w, s.h = iw, ih
	return s, target, nil
}

// part copies the w×h pixels at (x0, y0) of an image that is width wide.
func part(img []float32, width, x0, y0, w, h int) []float32 {
	out := make([]float32, w*h)
	for r := range h {
		copy(out[r*w:][:w], img[(y0+r)*width+x0:])
	}
	return out
}
