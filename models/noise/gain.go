package noise

import (
	"math"

	"github.com/diffdenoise/denoised/internal/numeric"
)

// Tail of the residuals, their 90 % by their 50 % quantile: 2.44 for a normal
// distribution, 2.4 to 2.85 measured for every noise that the networks treat, 3.3
// and more where anatomy or correlated noise is all there is to see.
const tailNoise, tailAnatomy = 2.95, 3.25

// trust is 1 if the residuals in units of the estimate are spread like noise, 0
// if they are not: then nothing is known, and the image is to stay as it is.
func (b *buffers) trust(c *curve, gain []float32) float32 {
	b.vals = b.vals[:0]
	for _, p := range b.samples {
		if f := c.at(p.mean) * gain[p.cell]; f > 0 {
			b.vals = append(b.vals, abs(p.fine)/f)
		}
	}
	n := len(b.vals)
	if n < minSamples {
		return 0
	}
	high := numeric.Nth(b.vals, n*9/10)
	middle := numeric.Nth(b.vals[:n*9/10], n/2)
	if middle == 0 {
		return 0
	}
	tail := high / middle
	return min(max((tailAnatomy-tail)/(tailAnatomy-tailNoise), 0), 1)
}

// spatialGain returns, on a grid, how much the noise differs from the curve.
func (b *buffers) spatialGain(c *curve, w, h int) ([]float32, int, int) {
	gw, gh := (w+tile-1)/tile+1, (h+tile-1)/tile+1
	// sorted by cell, so that a row of a window is one piece
	b.first = numeric.Grow(b.first, gw*gh+2)
	clear(b.first)
	for _, p := range b.samples {
		b.first[p.cell+2]++
	}
	for k := range gw * gh {
		b.first[k+2] += b.first[k+1]
	}
	b.cells = numeric.Grow(b.cells, len(b.samples))
	for _, p := range b.samples {
		v := float32(-1) // where the curve is 0 there is nothing to compare
		if f := c.at(p.mean); f > 0 {
			v = abs(p.res) / f
			if b.filters.preferFar {
				v = abs(p.fine) / f
			}
		}
		b.cells[b.first[p.cell+1]] = v
		b.first[p.cell+1]++
	}
	b.gain, b.gain2 = numeric.Grow(b.gain, gw*gh), numeric.Grow(b.gain2, gw*gh)
	for gy := range gh {
		for gx := range gw {
			b.vals = b.vals[:0]
			for y := max(gy-reach/tile, 0); y < min(gy+reach/tile, gh); y++ {
				lo, hi := max(gx-reach/tile, 0), min(gx+reach/tile, gw)
				for _, v := range b.cells[b.first[y*gw+lo]:b.first[y*gw+hi]] {
					if v >= 0 {
						b.vals = append(b.vals, v)
					}
				}
			}
			n := float64(len(b.vals))
			g := 1.0
			if n > 0 {
				g = min(max(float64(robust(b.vals)), 1/maxGain), maxGain)
			}
			b.gain[gy*gw+gx] = float32(math.Exp(math.Log(g) * n / (n + prior)))
		}
	}
	b.tmp = numeric.Grow(b.tmp, gw)
	box3(b.gain2, b.gain, b.tmp, gw, gh)
	return b.gain2, gw, gh
}
