package meter

import (
	"math"
	"slices"

	"github.com/diffdenoise/denoised/internal/numeric"
	"github.com/diffdenoise/denoised/models/net"
)

// side is that of a cell, pixels; powers the number of its powers.
const (
	side   = net.MeterCell
	powers = side * side
)

var cosines = numeric.Cosines[float64]()

// Settings of the second witness: the flattest cells of the tissue.
const (
	leastTissue = 0.15 // mean of a cell, of the brightest tissue; darker ones may be air, which is correlated otherwise
	mostTissue  = 0.95 // brighter ones may be saturated
	flatShare   = 0.1  // of the tissue's cells, flattest first, that count
	trimmed     = 0.1  // of their powers, the greatest, that are left out: anatomy
	leastFlat   = 12   // cells, if there are as many
	fewFlat     = 4    // fewer say nothing
)

// flattest sets r.flat to the cells of the tissue that have least of the lowest frequencies.
// Choosing by those hardly changes the others where all is noise.
func (r *Reading) flattest() {
	r.flat = r.flat[:0]
	c := &r.powers
	for i := range c.Powers {
		if m := c.Mean(i); c.Whole[i] && m > leastTissue && m < mostTissue && c.High(i) > 0 {
			r.flat = append(r.flat, i)
		}
	}
	slices.SortFunc(r.flat, func(a, b int) int {
		if d := c.Low(a) - c.Low(b); d != 0 {
			if d < 0 {
				return -1
			}
			return 1
		}
		return a - b
	})
	// small images have few; half of them are not flat
	n := max(int(flatShare*float64(len(r.flat))), min(leastFlat, len(r.flat)/2))
	if r.flat = r.flat[:n]; n < fewFlat {
		r.flat = r.flat[:0]
	}
}

// spectrum adds the powers of the flattest cells to what the image tells of its series: their
// means without the greatest ones, of the mean of all.
func (r *Reading) spectrum() {
	n := len(r.flat)
	if n == 0 {
		return
	}
	var mean [powers]float64
	sum := 0.0
	for k := 1; k < powers; k++ {
		r.levels = r.levels[:0]
		for _, i := range r.flat {
			r.levels = append(r.levels, r.powers.Powers[i][k])
		}
		slices.Sort(r.levels)
		for _, v := range r.levels[:n-int(trimmed*float64(n))] {
			mean[k] += float64(v)
		}
		sum += mean[k]
	}
	if !(sum > 0) {
		return
	}
	r.Series.Cells = float64(n)
	for u := range side {
		for v := 2; v < side; v++ {
			r.Series.Along[0][u] += mean[v*side+u] / sum * float64(n)
			r.Series.Along[1][u] += mean[u*side+v] / sum * float64(n)
		}
	}
}

// lags returns the correlation that the flattest cells tell: the powers along an axis are sums
// over the lags.
func (s *Series) lags() (t net.Told) {
	rx, ry := axisLags(s.Along[0]), axisLags(s.Along[1])
	for d := range 3 {
		t[2*d], t[2*d+1] = rx[d], ry[d]
	}
	t[6] = t[0] * t[1]
	return t
}

// axisLags returns the correlation at the lags 1 to 3 of which the powers are those given.
func axisLags(power [side]float64) (rho [3]float32) {
	var lag [4]float64
	for d := range lag {
		for u, p := range power {
			lag[d] += lagOf[d][u] * p
		}
	}
	if lag[0] > 0 {
		for d := range rho {
			rho[d] = float32(min(max(lag[d+1]/lag[0], -1), 1))
		}
	}
	return rho
}

// transform is the discrete cosine transform's power of white and of correlated noise: the share
// of lag d in the power of coefficient u, over both directions.
var transform = func() (t [side][side]float64) {
	for u, row := range cosines {
		for i := range side {
			for j := range side {
				t[u][max(i-j, j-i)] += row[i] * row[j]
			}
		}
	}
	return t
}()

// lagOf is the inverse of transform, [lag][coefficient].
var lagOf = func() (inverse [side][side]float64) {
	var a [side][2 * side]float64
	for u := range side {
		copy(a[u][:], transform[u][:])
		a[u][side+u] = 1
	}
	for k := range side { // Gauss and Jordan
		p := k
		for r := k + 1; r < side; r++ {
			if math.Abs(a[r][k]) > math.Abs(a[p][k]) {
				p = r
			}
		}
		a[k], a[p] = a[p], a[k]
		for c := 2*side - 1; c >= k; c-- {
			a[k][c] /= a[k][k]
		}
		for r := range side {
			if by := a[r][k]; r != k {
				for c := k; c < 2*side; c++ {
					a[r][c] -= by * a[k][c]
				}
			}
		}
	}
	for d := range side {
		copy(inverse[d][:], a[d][side:])
	}
	return inverse
}()

// share returns how much of noise of the given correlation a cell has beyond the lowest
// frequencies, of its variance.
func share(t net.Told) float64 {
	c := t.Correlation()
	sum := 0.0
	for v := range side {
		for u := range side {
			if u+v <= 2 {
				continue
			}
			p := 0.0
			for dy := range side {
				for dx := range side {
					p += transform[v][dy] * transform[u][dx] * c.At(dx, dy)
				}
			}
			sum += max(p, 0)
		}
	}
	return sum
}

// stronger returns by how much the flattest cells tell of stronger noise than the meter, as a
// logarithm: the median over them. ok is false where there are none.
func (r *Reading) stronger(t net.Told) (by float64, ok bool) {
	unit := share(t)
	if len(r.flat) == 0 || unit < leastShare*powers {
		return 0, false
	}
	r.levels = r.levels[:0]
	for _, i := range r.flat {
		if r.cells[i].weight > 0 {
			s := math.Log(float64(r.powers.High(i))/unit) / 2
			r.levels = append(r.levels, float32(s-r.cells[i].level))
		}
	}
	if len(r.levels) == 0 {
		return 0, false
	}
	slices.Sort(r.levels)
	return float64(r.levels[len(r.levels)/2]), true
}

// Settings of everywhere.
const (
	quietest  = 0.02  // of the tissue's cells, the quietest first: there is noise in these, too,
	quietNear = -0.55 // up to which logarithm of the ratio to what the meter tells,
	quietFar  = -0.7  // and from which on there is none
	fewQuiet  = 50    // fewer cells say nothing
)

// everywhere tells, from 0 to 1, whether what the meter tells of is in all of the tissue, as noise
// is. Fine anatomy without noise, as other filters leave it, looks like noise to the meter, but
// not in every cell.
func (r *Reading) everywhere(s *Series) float64 {
	unit := share(s.lags())
	if s.Cells == 0 || unit < leastShare*powers {
		return 1
	}
	r.levels = r.levels[:0]
	c := &r.powers
	for i, told := range r.cells {
		if m := c.Mean(i); c.Whole[i] && m > leastTissue && m < mostTissue && c.High(i) > 0 && told.weight > 0 {
			r.levels = append(r.levels, float32(math.Log(float64(c.High(i))/unit)/2-told.level))
		}
	}
	if len(r.levels) < fewQuiet {
		return 1
	}
	by := float64(numeric.Nth(r.levels, int(quietest*float64(len(r.levels)))))
	return min(max((by-quietFar)/(quietNear-quietFar), 0), 1)
}

// leastShare of the noise must be where the flattest cells look.
const leastShare = 0.01
