package models

import (
	"cmp"
	"math"
	"slices"

	"github.com/diffdenoise/denoised/internal/numeric"
	"github.com/diffdenoise/denoised/models/meter"
)

// Settings of airLevel and darken, in standard deviations of the noise.
const (
	airCell   = 8    // side of the cells that are looked at, pixels
	airShare  = 0.05 // of the cells, the darkest first, that are to be air,
	leastAirs = 16   // and at least so many
	// The mean of a magnitude without signal is sqrt(2)·Γ(L+½)/Γ(L) of its noise for L coils, 1.25 for
	// one, 3.94 for 8, and its standard deviation 0.65 to 0.71, where signal has one of 1.
	darkestAir    = 0.9
	mostAirNoise  = 0.74 // standard deviation in a cell, of that of signal
	leastAirNoise = 0.4
	// The skewness times the mean is 0.8 for any number of coils; that of noise that was added to a
	// magnitude is 0.
	leastSkew    = 0.4
	sameAir      = 0.15 // share by which cells of air may differ in their mean
	brightTissue = 0.3  // mean of a cell
	airAround    = 5    // half the window over which a pixel's mean is compared with that of air, pixels
	// Means over 11×11 and 5×5 pixels above that of air, up to which all of a pixel is air, and from which
	// on nothing is, for white noise.
	nearAir, farAir           = 0.15, 0.4
	nearAirClose, farAirClose = 0.35, 0.7
)

// airOf is what a cell of airCell×airCell pixels tells of air.
type airOf struct{ mean, variance, third, sigma float64 } // third central moment; sigma as the meter has it

// airCells returns the cells that lie in what was measured.
func (b *scratch) airCells(n *normalized, told *meter.Reading) (cells []airOf) {
	for y := 0; y+airCell <= n.h; y += airCell {
	next:
		for x := 0; x+airCell <= n.w; x += airCell {
			c := airOf{}
			for r := range airCell {
				at := (y+r)*n.w + x
				for i := at; i < at+airCell; i++ {
					if n.outside[i] {
						continue next
					}
					c.mean, c.sigma = c.mean+float64(n.y[i]), c.sigma+float64(told.Map.Sigma[i])
				}
			}
			const size = airCell * airCell
			if c.mean, c.sigma = c.mean/size, c.sigma/size; !(c.sigma > 0) {
				continue
			}
			for r := range airCell {
				for _, v := range n.y[(y+r)*n.w+x:][:airCell] {
					d := float64(v) - c.mean
					c.variance, c.third = c.variance+d*d/size, c.third+d*d*d/size
				}
			}
			cells = append(cells, c)
		}
	}
	return cells
}

// airLevel returns the mean of the image's air, in standard deviations of the noise, and those of the noise of
// bright tissue, in the scale of n; 0 where there is no air, or none that is surely air. Air is dark and even, a
// magnitude's noise is weaker there than where there is signal, and it is skewed (Gudbjartsson and Patz, Magn.
// Reson. Med. 34 (1995) 910). No dark tissue is like that, nor air that had noise added to it afterwards.
func (b *scratch) airLevel(n *normalized, told *meter.Reading) (level, tissue float32) {
	cells := b.airCells(n, told)
	b.tmp = b.tmp[:0]
	for _, c := range cells {
		if c.mean > brightTissue {
			b.tmp = append(b.tmp, float32(c.sigma))
		}
	}
	few := max(int(airShare*float64(len(cells))), leastAirs)
	if len(b.tmp) < leastAirs || len(cells) < 2*few {
		return 0, 0
	}
	tissue = numeric.Nth(b.tmp, len(b.tmp)/2)
	// the meter may take the weaker noise of air for what there is
	unit := func(c airOf) float64 { return max(c.sigma, float64(tissue)) }
	slices.SortFunc(cells, func(a, b airOf) int { return cmp.Compare(a.mean/unit(a), b.mean/unit(b)) })
	// of those that are as dark, since the darkest are so by chance
	middle := cells[few/2].mean / unit(cells[few/2])
	var all airOf // sums, the moments in standard deviations
	count := 0.0
	for _, c := range cells {
		s := unit(c)
		switch m := c.mean / s; {
		case m > (1-sameAir)*middle && m < (1+sameAir)*middle:
			count++
			all.mean, all.variance, all.third = all.mean+m, all.variance+c.variance/(s*s), all.third+c.third/(s*s*s)
		}
	}
	if count < float64(few) {
		return 0, 0
	}
	mean, variance := all.mean/count, all.variance/count
	noise, skew := math.Sqrt(variance/inCell(told)), all.third/count/math.Pow(variance, 1.5)
	if mean < darkestAir || mean > highestAir || noise < leastAirNoise || noise > mostAirNoise ||
		skew*mean < leastSkew {
		return 0, 0
	}
	return float32(mean), tissue
}

// inCell returns the share of the noise's variance that a cell of airCell×airCell pixels has about its mean.
func inCell(told *meter.Reading) float64 {
	c, sum := &told.Map.Correlation, 0.0
	for dy := 1 - airCell; dy < airCell; dy++ {
		for dx := 1 - airCell; dx < airCell; dx++ {
			sum += float64((airCell-max(dy, -dy))*(airCell-max(dx, -dx))) * c.At(dx, dy)
		}
	}
	const size = airCell * airCell
	return min(max(1-sum/(size*size), 0.2), 1)
}

// findAir sets b.inAir, which is 0 before, to how surely each pixel is air, up to 1: its surroundings are as dark as
// the image's air, and nothing small and bright is near.
func (b *scratch) findAir(n *normalized, told *meter.Reading) {
	level, tissue := b.airLevel(n, told)
	if level == 0 {
		return
	}
	// means of correlated noise differ more
	chance := float32(math.Sqrt(min(told.Map.Correlation.Squares(), mostEnergy)))
	for _, by := range [...]struct {
		half      int
		near, far float32
	}{{airAround, nearAir, farAir}, {windowRemoved, nearAirClose, farAirClose}} {
		b.level = append(b.level[:0], n.y...)
		b.means(b.level, n.w, n.h, by.half)
		for i, v := range b.level {
			above := v/max(told.Map.Sigma[i], tissue) - level
			share := min(max((by.far*chance-above)/((by.far-by.near)*chance), 0), 1)
			if by.half == airAround {
				b.inAir[i] = share
			} else if b.inAir[i] = min(b.inAir[i], share); n.outside[i] {
				b.inAir[i] = 0
			}
		}
	}
}

// darken takes off what of the lift of the noise is left in air: the median that the result has there.
func (b *scratch) darken(p *predicted, n *normalized, told *meter.Reading) {
	b.level = b.level[:0]
	for i, share := range b.inAir {
		if share == 1 {
			b.level = append(b.level, (n.y[i]-p.removed[i])/max(told.Map.Sigma[i], minSigma))
		}
	}
	if len(b.level) == 0 {
		return
	}
	left := numeric.Nth(b.level, len(b.level)/2)
	if left <= 0 {
		return
	}
	for i, share := range b.inAir {
		if after := n.y[i] - p.removed[i]; share > 0 && after > 0 {
			p.removed[i] += min(share*left*told.Map.Sigma[i], after)
		}
	}
}
