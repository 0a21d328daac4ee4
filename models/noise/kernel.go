package noise

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/diffdenoise/denoised/internal/numeric"
)

// radius is how far kernels reach to either side, pixels.
const radius = 5

// side is how many taps they have along an axis.
const side = 2*radius + 1

// Kernel makes noise: it is a filter of unit energy, so that noise which is white
// and of variance 1 keeps its variance and becomes correlated. A Kernel never
// changes and is safe for concurrent use.
type Kernel struct {
	x, y  []float32 // of a separable one; nil otherwise
	taps  []float32 // [len][len], of one that is not
	reach int       // len = 2·reach + 1
}

// MaxTaps is the most taps of a kernel along one axis.
const MaxTaps = 31

// NewKernel returns the separable kernel of the given taps along x and along y, of
// any scale. It panics if an axis has more than MaxTaps, an even number of them, or
// no energy: kernels are not made of input.
func NewKernel(x, y []float64) *Kernel { return &Kernel{x: unit(x), y: unit(y)} }

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

// MaxSpread is the largest spread of a Gaussian kernel, pixels.
const MaxSpread = 1.4

// Gaussian returns the kernel of white noise that was smoothed with Gaussians of
// spread sx and sy pixels; 0 leaves an axis white. Spreads beyond MaxSpread are
// cut to it.
func Gaussian(sx, sy float64) *Kernel {
	axis := func(s float64) []float64 {
		s = min(max(s, 0), MaxSpread)
		var taps [side]float64
		for j := range freqs {
			a := math.Exp(-2 * math.Pi * math.Pi * s * s * freq(j) * freq(j))
			for k := range taps {
				taps[k] += a * cosine(j, k-radius)
			}
		}
		return taps[:]
	}
	return NewKernel(axis(sx), axis(sy))
}

// freqs is the number of frequencies, from 0 to half a cycle per pixel, that the
// transforms of kernels are computed with.
const freqs = 32

func freq(j int) float64 { return (float64(j) + 0.5) / (2 * freqs) }

func cosine(j, d int) float64 { return math.Cos(2 * math.Pi * freq(j) * float64(d)) }

// Kernel returns a kernel that makes noise of this correlation: the inverse
// transform of the square root of its power spectrum.
func (c Correlation) Kernel() *Kernel {
	// both transforms are separable: columns, then rows
	var half [Lags + 1][freqs]float64
	for dy := range half {
		for j := range freqs {
			for dx := range Lags + 1 {
				a := c.At(dx, dy) * cosine(j, dx)
				if dx > 0 {
					a *= 2
				}
				half[dy][j] += a
			}
		}
	}
	var amplitude [freqs][side]float64
	for i := range freqs {
		for j := range freqs {
			s := half[0][j]
			for dy := 1; dy <= Lags; dy++ {
				s += 2 * half[dy][j] * cosine(i, dy)
			}
			// a table that was cut off at Lags may dip below 0
			s = math.Sqrt(max(s, 0))
			for k := range side {
				amplitude[i][k] += s * cosine(j, k-radius)
			}
		}
	}
	var taps [side][side]float64
	e := 0.0
	for l := range side {
		for k := range side {
			for i := range freqs {
				taps[l][k] += amplitude[i][k] * cosine(i, l-radius)
			}
			e += taps[l][k] * taps[l][k]
		}
	}
	// separable ones are drawn several times as fast
	x, y, off := taps[radius][:], make([]float64, side), 0.0
	for l := range side {
		y[l] = taps[l][radius] / taps[radius][radius]
		for k := range side {
			off += (taps[l][k] - x[k]*y[l]) * (taps[l][k] - x[k]*y[l])
		}
	}
	if off < 1e-4*e {
		return NewKernel(x, y)
	}
	k := &Kernel{reach: radius, taps: make([]float32, 0, side*side)}
	for l := range side {
		for _, v := range taps[l] {
			k.taps = append(k.taps, float32(v/math.Sqrt(e)))
		}
	}
	return k
}

// size returns the taps along the axes.
func (k *Kernel) size() (nx, ny int) {
	if k.taps != nil {
		return 2*k.reach + 1, 2*k.reach + 1
	}
	return len(k.x), len(k.y)
}

func (k *Kernel) at(x, y int) float64 {
	if nx, ny := k.size(); x < 0 || y < 0 || x >= nx || y >= ny {
		return 0
	} else if k.taps != nil {
		return float64(k.taps[y*nx+x])
	}
	return float64(k.x[x]) * float64(k.y[y])
}

// Correlation returns the autocorrelation of the noise that k makes.
func (k *Kernel) Correlation() Correlation {
	c := Correlation{Trust: 1}
	nx, ny := k.size()
	for dy := range c.Rho {
		for dx := range c.Rho[dy] {
			for y := range ny {
				for x := range nx {
					c.Rho[dy][dx] += k.at(x, y) * (k.at(x+dx, y+dy) + k.at(x-dx, y+dy)) / 2
				}
			}
		}
	}
	return c
}

var drawing = sync.Pool{New: func() any { return new([]float32) }}

// Draw fills dst, w×h values, with noise of mean 0 and variance 1, the same up to
// the borders. It takes from rng (w + taps − 1)·(h + taps − 1) normal numbers, row
// by row, so the same generator gives the same values.
func (k *Kernel) Draw(dst []float32, w, h int, rng *rand.Rand) {
	dst = dst[:w*h]
	nx, ny := k.size()
	if nx == 1 && ny == 1 {
		for i := range dst {
			dst[i] = float32(k.at(0, 0)) * float32(rng.NormFloat64())
		}
		return
	}
	// the last ny rows are kept, filtered along x if the kernel is separable
	white := w + nx - 1
	width := white
	if k.taps == nil {
		width = w
	}
	p := drawing.Get().(*[]float32)
	defer drawing.Put(p)
	*p = numeric.Grow(*p, white+ny*width)
	line, ring := (*p)[:white], (*p)[white:]
	for y := range h + ny - 1 {
		row := ring[y%ny*width:][:width]
		if k.taps == nil {
			normal(line, rng)
			clear(row)
			filter(row, line, k.x)
		} else {
			normal(row, rng)
		}
		if y < ny-1 {
			continue
		}
		out := dst[(y-ny+1)*w:][:w]
		clear(out)
		for j := range ny {
			row := ring[(y-ny+1+j)%ny*width:][:width]
			if k.taps == nil {
				filter(out, row, k.y[j:j+1])
			} else {
				filter(out, row, k.taps[j*nx:][:nx])
			}
		}
	}
}

func normal(v []float32, rng *rand.Rand) {
	for i := range v {
		v[i] = float32(rng.NormFloat64())
	}
}

// filter adds src, filtered, to dst; src is longer by the taps but one.
func filter(dst, src, taps []float32) {
	for j, t := range taps {
		for i, v := range src[j:][:len(dst)] {
			dst[i] += t * v
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
