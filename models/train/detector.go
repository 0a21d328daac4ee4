package train

import (
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/simulate"
)

// detected is the share of the scenes of radiographs that come from a detector; the others have the
// noise of corrupt.
const detected = 0.7

// Noise of a detector's scenes, of full scale.
const (
	leastDetected = 0.003
	mostDetected  = 0.08
)

// edgeDetected is how many pixels of a detector's image are cut off on every side, where its filters
// reach beyond what there is.
const edgeDetected = 8

// drawDetector draws a detector.
func drawDetector(rng *rand.Rand) (d simulate.Detector) {
	coin := func(share float64) bool { return rng.Float64() < share }
	d.Noise = leastDetected * math.Pow(mostDetected/leastDetected, rng.Float64())
	// with fewer quanta than some tens the logarithm of their number is no longer near its mean
	d.Range = min(1+2.5*rng.Float64(), 0.2/d.Noise)
	if !coin(0.15) {
		d.Blur = 0.3 + 0.9*rng.Float64()
	}
	if coin(0.6) {
		d.Electronic = 0.02 * math.Pow(100, rng.Float64())
	}
	switch u := rng.Float64(); {
	case u < 0.45:
	case u < 0.7:
		d.Storage, d.Steep = simulate.Presentation, 2+4*rng.Float64()
	case u < 0.9:
		d.Storage = simulate.Root
	default:
		d.Storage = simulate.Linear
	}
	if coin(0.5) {
		d.Enhance[0] = simulate.Unsharp{Gain: 0.2 + 1.3*rng.Float64()*rng.Float64(), Spread: 0.7 + 1.8*rng.Float64()}
		if coin(0.4) {
			d.Enhance[1] = simulate.Unsharp{Gain: 0.2 + 0.6*rng.Float64(), Spread: 3 + 3*rng.Float64()}
		}
	}
	d.Inverted = coin(0.4)
	d.Bits = []int{0, 8, 8, 10, 12, 12, 12, 14, 16}[rng.IntN(9)]
	if coin(0.15) {
		d.Open = [4]float64{0, 0, 1, 1}
		for range 1 + rng.IntN(2) {
			side := rng.IntN(4)
			d.Open[side] = math.Abs(d.Open[side] - 0.1 - 0.35*rng.Float64())
		}
		d.Bright = coin(0.5)
	}
	return d
}

// detect takes a part of a radiograph by a detector of its own, at a pixel of its own size: enlarged,
// it has edges as soft as those of a fine plate. p.input is what the rays met, with the grain that the
// image has; p.target what is to be found; both are w×h. The scene is at least side×side.
func detect(p pair, w, h, side int, rng *rand.Rand) (s scene, target []float32, err error) {
	stored := side + 2*edgeDetected + rng.IntN(side/2+1)
	size := 1.0 // of a pixel, in pixels of the image
	switch u := rng.Float64(); {
	case u < 0.25:
		size = 0.5 + 0.5*rng.Float64()
	case u < 0.5:
		size = 1 + rng.Float64()
	}
	size = min(size, float64(min(w, h))/float64(stored))
	n := int(size * float64(stored))
	x0, y0 := rng.IntN(w-n+1), rng.IntN(h-n+1)
	gain := 1.0
	cut := func(img []float32) []float32 {
		img = part(img, w, x0, y0, n, n)
		if n != stored {
			img, gain = resampled(img, n, stored)
		}
		return img
	}
	input := cut(p.input)
	d := drawDetector(rng)
	a, err := d.Run(input, stored, stored, rng)
	if err != nil {
		return scene{}, nil, err
	}
	s = scene{w: stored, h: stored, noisy: a.Noisy, sigma: a.Sigma, lifted: true,
		correlation: noise.Correlation{Rho: a.Rho, Trust: 1}}
	target = d.Signal(cut(p.target), stored, stored)
	if p.image != nil {
		s.clean = d.Signal(cut(p.image), stored, stored)
	}
	for i, own := range d.Carried(input, cut(p.own)) {
		s.sigma[i] = hypot(s.sigma[i], float32(gain)*own)
	}
	inside := stored - 2*edgeDetected
	inner := func(img []float32) []float32 { return window(img, stored, edgeDetected, edgeDetected, inside) }
	s.noisy, target, s.sigma = inner(s.noisy), inner(target), inner(s.sigma)
	if s.clean != nil {
		s.clean = inner(s.clean)
	}
	s.w, s.h = inside, inside
	return s, target, nil
}

// resampled returns an n×n image at size×size pixels by cubic convolution (Keys 1981), whose kernel
// is as much wider as there are fewer of them, and what that leaves of the standard deviation of
// white noise.
func resampled(img []float32, n, size int) (out []float32, gain float64) {
	step := float64(n) / float64(size)
	wide := max(step, 1)
	reach := int(math.Ceil(2 * wide))
	taps := make([][]float32, size)
	first := make([]int, size)
	energy := 0.0
	for k := range taps {
		at := (float64(k)+0.5)*step - 0.5
		first[k] = int(math.Floor(at)) - reach + 1
		row, sum, square := make([]float32, 2*reach), 0.0, 0.0
		for j := range row {
			v := keys((float64(first[k]+j) - at) / wide)
			row[j], sum, square = float32(v), sum+v, square+v*v
		}
		for j := range row {
			row[j] /= float32(sum)
		}
		taps[k], energy = row, energy+square/(sum*sum)
	}
	rows := make([]float32, size*n) // along x
	for y := range n {
		line := img[y*n:][:n]
		for k, row := range taps {
			v := float32(0)
			for j, t := range row {
				v += t * line[min(max(first[k]+j, 0), n-1)]
			}
			rows[y*size+k] = v
		}
	}
	out = make([]float32, size*size)
	for k, row := range taps {
		dst := out[k*size:][:size]
		for j, t := range row {
			for x, v := range rows[min(max(first[k]+j, 0), n-1)*size:][:size] {
				dst[x] += t * v
			}
		}
	}
	return out, energy / float64(size)
}

// keys is the kernel of cubic convolution.
func keys(x float64) float64 {
	switch x = math.Abs(x); {
	case x < 1:
		return (1.5*x-2.5)*x*x + 1
	case x < 2:
		return ((-0.5*x+2.5)*x-4)*x + 2
	}
	return 0
}
