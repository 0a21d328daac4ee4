package train

import (
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/simulate"
)

// Range of the noise that networks learn, standard deviation at the brightest
// tissue, 1 is the scale of the slice.
const (
	leastNoise = 1. / 255
	mostNoise  = 26. / 255
)

// scene is an image with noise added to it.
type scene struct {
	w, h  int
	noisy []float32
	// clean is the image before; its own noise is in both.
	clean []float32
	// sigma is the standard deviation of the added noise, at every pixel.
	sigma []float32
	// correlation is that of the added noise.
	correlation noise.Correlation
	// lifted tells that noisy is a magnitude, whose noise is not zero in the mean.
	lifted bool
}

// corrupt adds noise of a kind and strength drawn from rng to a w×h image: constant,
// varying over the image, as counting or multiplicative noise, Rician, and
// correlated in one or both directions; Rician noise also as it is on the native grid of
// a zero-filled magnitude, if magnitudes are wanted.
func corrupt(clean []float32, w, h int, magnitude bool, rng *rand.Rand) scene {
	s := scene{w: w, h: h, clean: clean}
	level := leastNoise * math.Pow(mostNoise/leastNoise, rng.Float64())
	kernel, white := drawKernel(rng)
	s.correlation = kernel.Correlation()
	law := rng.IntN(4) // 0, 1: constant, 2: with the root of the signal, 3: with the signal
	field := rng.IntN(3) == 0
	switch {
	case white && !field && law == 2 && rng.IntN(2) == 0:
		s.noisy, s.sigma, _ = simulate.Poisson(1/(level*level))(clean, w, h, rng)
		return s
	case white && !field && law == 3 && rng.IntN(2) == 0 && level < 0.7:
		s.noisy, s.sigma, _ = simulate.Gamma(max(1/(level*level), 2))(clean, w, h, rng)
		return s
	}
	n := len(clean)
	s.noisy, s.sigma = make([]float32, n), make([]float32, n)
	strength := smoothField(w, h, rng)
	for i, v := range clean {
		sg := level
		switch v := float64(max(v, 0)); law {
		case 2:
			sg *= math.Sqrt(v + 0.02)
		case 3:
			sg *= v + 0.05
		}
		if field {
			sg *= strength(i%w, i/w)
		}
		s.sigma[i] = float32(sg)
	}
	draw := make([]float32, n)
	kernel.Draw(draw, w, h, rng)
	for i, v := range draw {
		s.noisy[i] = clean[i] + s.sigma[i]*v
	}
	if magnitude && law < 2 && rng.IntN(5) < 2 {
		s.lifted = true
		kernel.Draw(draw, w, h, rng) // the imaginary part
		for i, v := range draw {
			draw[i] = s.sigma[i] * v
		}
		grid := noise.Full(w, h)
		if white && rng.IntN(2) == 0 {
			grid = drawGrid(w, h, rng)
			s.noisy, draw = grid.Fill(nil, s.noisy), grid.Fill(nil, draw)
		}
		for i, v := range draw {
			s.noisy[i] = float32(math.Hypot(float64(s.noisy[i]), float64(v)))
		}
		if grid.Filled() {
			full := s.noisy
			s.noisy = grid.Crop(nil, full)
		}
	}
	return s
}

// drawGrid returns the grid of an image of which w×h were measured, zero-filled along
// one or both axes.
func drawGrid(w, h int, rng *rand.Rand) *noise.Grid {
	const multiple = 16 // of sizes that scanners make, and fast transforms
	fill := 1.1 + rng.Float64()
	axes := 1 + rng.IntN(3)
	side := func(n, axis int) int {
		if axes&axis == 0 {
			return n
		}
		return (int(fill*float64(n))/multiple + 1) * multiple
	}
	fullWidth, fullHeight := side(w, 1), side(h, 2)
	return noise.Filled(fullWidth, fullHeight, w, h)
}

// drawKernel returns the correlation of a scene's noise, white in half of them.
func drawKernel(rng *rand.Rand) (k *noise.Kernel, white bool) {
	switch u := rng.Float64(); {
	case u < 0.5:
		return noise.Gaussian(0, 0), true
	case u < 0.72: // smoothed by a filter
		a := noise.MaxSpread * math.Sqrt(rng.Float64())
		return noise.Gaussian(a, a), false
	case u < 0.86: // along one axis
		a := noise.MaxSpread * math.Sqrt(rng.Float64())
		if rng.IntN(2) == 0 {
			return noise.Gaussian(a, 0), false
		}
		return noise.Gaussian(0, a), false
	default: // zero-filled with soft edges, which cannot be cropped
		axis := func() []float64 {
			if rng.IntN(2) == 0 {
				return []float64{1}
			}
			return softLowPass(0.5/(1+rng.Float64()), 0.02+0.1*rng.Float64())
		}
		return noise.NewKernel(axis(), axis()), false
	}
}

// softLowPass returns the taps of a low-pass filter that falls from 1 to 0 around
// the edge, in cycles per pixel, over twice the given width.
func softLowPass(edge, width float64) []float64 {
	const radius, n = 10, 128
	taps := make([]float64, 2*radius+1)
	for j := range n {
		f := (float64(j) + 0.5) / (2 * n)
		a := 1 / (1 + math.Exp((f-edge)/(width/4)))
		for k := range taps {
			taps[k] += a * math.Cos(2*math.Pi*f*float64(k-radius))
		}
	}
	for k := range taps { // the cut at the ends would ring
		taps[k] *= 0.5 + 0.5*math.Cos(math.Pi*float64(k-radius)/(radius+1))
	}
	return taps
}

// smoothField returns a factor of the noise that varies slowly over the image,
// between a half and two.
func smoothField(w, h int, rng *rand.Rand) func(x, y int) float64 {
	type wave struct{ fx, fy, phase float64 }
	var waves [3]wave
	for i := range waves {
		waves[i] = wave{rng.NormFloat64() * 3 / float64(w+h), rng.NormFloat64() * 3 / float64(w+h), 2 * math.Pi * rng.Float64()}
	}
	return func(x, y int) float64 {
		sum := 0.0
		for _, v := range waves {
			sum += math.Sin(2*math.Pi*(v.fx*float64(x)+v.fy*float64(y)) + v.phase)
		}
		return math.Exp(math.Ln2 / 3 * sum)
	}
}

// misjudge returns a noise map as an estimate would be: times a factor that is near 1 and
// varies slowly, and mostly without what is finer than the places that it is measured at.
func misjudge(sigma []float32, w, h int, rng *rand.Rand) []float32 {
	out := make([]float32, len(sigma))
	if rng.IntN(4) > 0 {
		for i, s := range sigma {
			out[i] = s * s
		}
		noise.Means(out, out, make([]float32, len(out)), make([]float64, w), w, h, 4+rng.IntN(9))
		for i, v := range out {
			out[i] = float32(math.Sqrt(max(float64(v), 0)))
		}
	} else {
		copy(out, sigma)
	}
	all := math.Exp(0.1 * rng.NormFloat64())
	f := smoothField(w, h, rng)
	share := 0.25 * rng.Float64()
	for i := range out {
		out[i] *= float32(all * math.Pow(f(i%w, i/w), share))
	}
	return out
}

// recorrupt makes of an image y with noise of a known map the pair of method
// section 9: an input y + τz and a target y − z/τ, where z is drawn like the noise
// of y. Their noises are uncorrelated (Pang, Zheng, Quan, Ji 2021, Recorrupted-to-
// Recorrupted, equation 9), so that a network trained on the pair learns the image
// and not its noise. Where the map says that nothing is known, both are y.
func recorrupt(y []float32, m *noise.Map, tau float64, rng *rand.Rand) (input, target []float32) {
	if m == nil || m.Median == 0 {
		return y, y
	}
	z := make([]float32, len(y))
	m.Draw(z, rng)
	input, target = make([]float32, len(y)), make([]float32, len(y))
	up, down := float32(tau), float32(1/tau)
	for i, v := range y {
		input[i], target[i] = v+up*z[i], v-down*z[i]
	}
	return input, target
}
