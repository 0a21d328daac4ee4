package noise

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
)

// Lags is the largest lag of a Correlation, in pixels.
const Lags = 4

// Correlation is the autocorrelation of the noise on the native grid. It is the
// product of one along x and one along y, which is what filters, interpolation
// and zero-filling along the two axes of k-space make of white noise.
//
// The zero value is white noise of which nothing is known.
type Correlation struct {
	// X and Y are the autocorrelation along a row and along a column at lags 0 to
	// Lags; the one at (dx, dy) is X[|dx|]·Y[|dy|]. X[0] and Y[0] are 1.
	X, Y [Lags + 1]float64
	// Trust says how well it is known: 1 well, 0 not at all, and then the noise is
	// taken to be white.
	Trust float64
}

// White is the correlation of white noise.
func White() Correlation {
	c := Correlation{Trust: 1}
	c.X[0], c.Y[0] = 1, 1
	return c
}

// At returns the autocorrelation at the lag (dx, dy) of either sign.
func (c Correlation) At(dx, dy int) float64 { return at(&c.X, dx) * at(&c.Y, dy) }

func at(rho *[Lags + 1]float64, d int) float64 {
	if d = max(d, -d); d == 0 {
		return 1
	} else if d > Lags {
		return 0
	}
	return rho[d]
}

// holeCorrelation is what may be left between a pixel and the nearest one that a
// blind-spot network looks at.
const holeCorrelation = 0.15

// Holes returns the width along x and the height along y of the hole that a
// blind-spot network needs so that what it sees hardly knows the noise of the
// pixel it predicts: 1, 3 or 5 pixels, the pixel itself in the middle. A network
// whose branches are shifted by s hides 2s−1 of them. Noise whose correlation
// reaches beyond 2 pixels would need more than 5, and gets 5.
func (c Correlation) Holes() (sx, sy int) { return hole(&c.X), hole(&c.Y) }

func hole(rho *[Lags + 1]float64) int {
	for half := 2; half > 0; half-- {
		if math.Abs(rho[half]) > holeCorrelation {
			return 2*half + 1
		}
	}
	return 1
}

// Kernel returns a kernel that makes noise of this correlation.
func (c Correlation) Kernel() *Kernel {
	return NewKernel(taps(&c.X), taps(&c.Y))
}

// taps returns the symmetric taps whose autocorrelation comes closest to rho: the
// inverse transform of the square root of its power spectrum.
func taps(rho *[Lags + 1]float64) []float64 {
	return inverse(func(f float64) float64 {
		s := 1.0
		for k := 1; k <= Lags; k++ {
			s += 2 * rho[k] * math.Cos(2*math.Pi*f*float64(k))
		}
		return math.Sqrt(max(s, 0))
	})
}

// radius is how far kernels reach to either side, pixels.
const radius = 5

// inverse returns the values at -radius to radius of the inverse transform of a
// real and even amplitude, given from 0 to half a cycle per pixel.
func inverse(amplitude func(f float64) float64) []float64 {
	const n = 64 // frequencies
	var out [2*radius + 1]float64
	for j := range n {
		f := (float64(j) + 0.5) / (2 * n)
		a := amplitude(f)
		for k := range out {
			out[k] += a * math.Cos(2*math.Pi*f*float64(k-radius)) / n
		}
	}
	return out[:]
}

// Kernel makes noise: it is a separable filter of unit energy. Noise that is white
// and of unit variance keeps its variance and becomes correlated. A Kernel never
// changes and is safe for concurrent use.
type Kernel struct{ x, y []float32 }

// MaxTaps is the most taps of a kernel along one axis.
const MaxTaps = 31

// NewKernel returns the kernel of the given taps along x and along y, of any
// scale. It panics if an axis has more than MaxTaps, an even number of them, or
// no energy: kernels are not made of input.
func NewKernel(x, y []float64) *Kernel { return &Kernel{unit(x), unit(y)} }

func unit(taps []float64) []float32 {
	e := 0.0
	for _, v := range taps {
		e += v * v
	}
	if len(taps)%2 == 0 || len(taps) > MaxTaps || !(e > 0) || math.IsInf(e, 0) {
		panic(fmt.Sprintf("noise: no kernel of the taps %v", taps))
	}
	out := make([]float32, len(taps))
	for i, v := range taps {
		out[i] = float32(v / math.Sqrt(e))
	}
	// taps that are nothing but rounding cost time
	for len(out) > 1 && max(abs(out[0]), abs(out[len(out)-1])) < 1e-4 {
		out = out[1 : len(out)-1]
	}
	return out
}

// Gaussian returns the kernel of white noise that was smoothed with Gaussians of
// spread sx and sy pixels; 0 leaves an axis white. Spreads beyond MaxSpread are
// cut to it.
func Gaussian(sx, sy float64) *Kernel {
	axis := func(s float64) []float64 {
		s = min(max(s, 0), MaxSpread)
		return inverse(func(f float64) float64 { return math.Exp(-2 * math.Pi * math.Pi * s * s * f * f) })
	}
	return NewKernel(axis(sx), axis(sy))
}

// MaxSpread is the largest spread of a Gaussian kernel, pixels.
const MaxSpread = 1.4

// Correlation returns the autocorrelation of the noise that k makes.
func (k *Kernel) Correlation() Correlation {
	c := Correlation{Trust: 1}
	axis := func(rho *[Lags + 1]float64, taps []float32) {
		for d := range rho {
			for i := d; i < len(taps); i++ {
				rho[d] += float64(taps[i]) * float64(taps[i-d])
			}
		}
	}
	axis(&c.X, k.x)
	axis(&c.Y, k.y)
	return c
}

var drawing = sync.Pool{New: func() any { return new([]float32) }}

// Draw fills dst, w×h values, with noise of mean 0 and variance 1, the same up to
// the borders. It takes from rng (w + taps − 1)·(h + taps − 1) normal numbers, row
// by row, so the same generator gives the same values.
func (k *Kernel) Draw(dst []float32, w, h int, rng *rand.Rand) {
	dst = dst[:w*h]
	if len(k.x) == 1 && len(k.y) == 1 {
		for i := range dst {
			dst[i] = k.x[0] * k.y[0] * float32(rng.NormFloat64())
		}
		return
	}
	// rows are filtered as they are drawn, the last len(k.y) of them are kept
	n := len(k.y)
	white := w + len(k.x) - 1
	p := drawing.Get().(*[]float32)
	defer drawing.Put(p)
	*p = grow(*p, white+n*w)
	line, ring := (*p)[:white], (*p)[white:]
	for y := range h + n - 1 {
		for i := range line {
			line[i] = float32(rng.NormFloat64())
		}
		row := ring[y%n*w:][:w]
		clear(row)
		for j, t := range k.x {
			for i, v := range line[j:][:w] {
				row[i] += t * v
			}
		}
		if y < n-1 {
			continue
		}
		out := dst[(y-n+1)*w:][:w]
		clear(out)
		for j, t := range k.y {
			for i, v := range ring[(y-n+1+j)%n*w:][:w] {
				out[i] += t * v
			}
		}
	}
}

// Draw fills dst, Width×Height values, with noise of the map's strength and
// correlation, in the unit of the map.
func (m *Map) Draw(dst []float32, rng *rand.Rand) {
	m.Correlation.Kernel().Draw(dst, m.Width, m.Height, rng)
	for i, s := range m.Sigma {
		dst[i] *= s
	}
}
