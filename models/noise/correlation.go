package noise

import (
	"cmp"
	"math"
	"slices"

	"github.com/diffdenoise/denoised/internal/numeric"
)

// Lags is the largest lag of a Correlation, pixels.
const Lags = 4

// Correlation is the autocorrelation of the noise on the native grid. It is taken
// to be even in x and in y, as filters and interpolation along the axes make it, and
// circular filters in k-space.
//
// The zero value is white noise of which nothing is known.
type Correlation struct {
	// Rho[|dy|][|dx|] is the autocorrelation at the lag (dx, dy); Rho[0][0] is 1.
	// Beyond Lags it is taken to be 0.
	Rho [Lags + 1][Lags + 1]float64
	// Trust says how well it is known: 1 well, 0 not at all, and then the noise is
	// taken to be white.
	Trust float64
}

// White is the correlation of white noise.
func White() Correlation {
	c := Correlation{Trust: 1}
	c.Rho[0][0] = 1
	return c
}

// At returns the autocorrelation at a lag of either sign.
func (c Correlation) At(dx, dy int) float64 {
	dx, dy = max(dx, -dx), max(dy, -dy)
	switch {
	case dx == 0 && dy == 0:
		return 1
	case dx > Lags || dy > Lags:
		return 0
	}
	return c.Rho[dy][dx]
}

// Squares returns the sum of the squares over all lags, at least 1: of n values of such noise, the
// mean square scatters as that of n by this independent ones.
func (c Correlation) Squares() float64 {
	sum := 0.0
	for dy := -Lags; dy <= Lags; dy++ {
		for dx := -Lags; dx <= Lags; dx++ {
			sum += c.At(dx, dy) * c.At(dx, dy)
		}
	}
	return max(sum, 1)
}

// holeCorrelation is what may be left between a pixel and the nearest one that a
// blind-spot network looks at.
const holeCorrelation = 0.15

// Holes returns the width along x and the height along y of the hole that a
// blind-spot network needs so that what it sees hardly knows the noise of the
// pixel it predicts: 1, 3 or 5 pixels, the pixel itself in the middle. A network
// whose branches are shifted by s hides 2s−1 of them. Noise whose correlation
// reaches beyond 2 pixels would need more than 5, and gets 5.
func (c Correlation) Holes() (sx, sy int) {
	hole := func(rho func(d int) float64) int {
		for half := 2; half > 0; half-- {
			if math.Abs(rho(half)) > holeCorrelation {
				return 2*half + 1
			}
		}
		return 1
	}
	return hole(func(d int) float64 { return c.At(d, 0) }), hole(func(d int) float64 { return c.At(0, d) })
}

// Settings of the measurement of a correlation.
const (
	blockSide  = numeric.CosineSide // of the blocks that spectra are taken of, pixels
	blockStep  = 4                  // from one block to the next, pixels
	flatBlocks = 0.2                // share of the blocks, flattest first, that count
	minBlocks  = 60                 // of one image: fewer say nothing, anatomy may look the same
	manyBlocks = 120                // say all they can
	maxBlocks  = 800                // of one image, every so many are taken
)

// block is the discrete cosine transform of 8×8 pixels, orthonormal, [v][u].
type block struct {
	c [blockSide * blockSide]float32
}

// cosines is the transform: [u][i].
var cosines = numeric.Cosines[float32]()

func (b *block) transform(img []float32, w int) {
	var t [blockSide][blockSide]float32
	for j := range blockSide {
		row := img[j*w:][:blockSide]
		for u := range blockSide {
			s := float32(0)
			for i, v := range row {
				s += cosines[u][i] * v
			}
			t[u][j] = s
		}
	}
	for v := range blockSide {
		for u := range blockSide {
			s := float32(0)
			for j, x := range t[u] {
				s += cosines[v][j] * x
			}
			b.c[v*blockSide+u] = s
		}
	}
}

// place is where a block lies, and how much the means around differ from its own.
type place struct {
	slope float32
	at    int32
}

// flatBlocks sets b.blocks to the blocks of img whose surroundings are flattest.
// What is between blocks is of lower frequencies than what is within them, so
// choosing by the one hardly changes the other where both are noise.
func (b *buffers) flatBlocks(img []float32, w, h int) {
	b.blocks = b.blocks[:0]
	if w < 2*blockSide || h < 2*blockSide {
		return
	}
	bw, bh := (w-blockSide)/blockStep+1, (h-blockSide)/blockStep+1
	// a block is four cells of 4×4 pixels
	cw, ch := w/blockStep, h/blockStep
	b.blockMeans, b.inside = numeric.Grow(b.blockMeans, cw*ch), numeric.Grow(b.inside, cw*ch)
	for cy := range ch {
		for cx := range cw {
			s, ok := float32(0), true
			for y := range blockStep {
				i := (cy*blockStep+y)*w + cx*blockStep
				for _, v := range img[i:][:blockStep] {
					s += v
				}
				for _, blank := range b.blank[i:][:blockStep] {
					ok = ok && !blank
				}
			}
			b.blockMeans[cy*cw+cx], b.inside[cy*cw+cx] = s, ok
		}
	}
	for y := range bh {
		for x := range bw {
			i := y*cw + x // cells right and below were not overwritten yet
			b.blockMeans[i] = (b.blockMeans[i] + b.blockMeans[i+1] + b.blockMeans[i+cw] + b.blockMeans[i+cw+1]) / blockSide
			b.inside[i] = b.inside[i] && b.inside[i+1] && b.inside[i+cw] && b.inside[i+cw+1]
		}
	}
	b.places = b.places[:0]
	const next = blockSide / blockStep // to the block beside
	for y := range bh {
		for x := range bw {
			i := y*cw + x
			if !b.inside[i] {
				continue
			}
			s, n := float32(0), 0
			add := func(ok bool, j int) {
				if ok && b.inside[j] {
					d := b.blockMeans[j] - b.blockMeans[i]
					s += d * d
					n++
				}
			}
			add(x >= next, i-next)
			add(x+next < bw, i+next)
			add(y >= next, i-next*cw)
			add(y+next < bh, i+next*cw)
			if s /= float32(n); n >= 3 && s-s == 0 {
				b.places = append(b.places, place{s, int32(y*blockStep*w + x*blockStep)})
			}
		}
	}
	slices.SortFunc(b.places, func(p, q place) int {
		return cmp.Or(cmp.Compare(p.slope, q.slope), cmp.Compare(p.at, q.at))
	})
	n := int(flatBlocks * float64(len(b.places)))
	for k := 0; k < n; k += 1 + n/maxBlocks {
		b.blocks = append(b.blocks, block{})
		last := &b.blocks[len(b.blocks)-1]
		last.transform(img[b.places[k].at:], w)
		for _, c := range last.c {
			if c-c != 0 { // values near the end of the range overflow
				b.blocks = b.blocks[:len(b.blocks)-1]
				break
			}
		}
	}
}

// powerTable is the power of every coefficient of a block, [v][u].
type powerTable [blockSide][blockSide]float64

// powers returns the typical power of the coefficients, each block in units of its
// own strength: the noise may differ from place to place, its spectrum does not.
func powers(bs []block, vals *[]float32) (s powerTable) {
	for v := range s {
		for u := range s[v] {
			s[v][u] = 1
		}
	}
	*vals = numeric.Grow(*vals, 2*len(bs))
	scale, of := (*vals)[:len(bs)], (*vals)[len(bs):]
	for range 3 {
		for k := range bs {
			sum, n := 0.0, 0.0
			for v := range s {
				for u := range s[v] {
					if u+v > 2 { // structure shows in the lowest ones
						c := float64(bs[k].c[v*blockSide+u])
						sum += c * c / s[v][u]
						n++
					}
				}
			}
			scale[k] = float32(math.Sqrt(sum / n))
		}
		for v := range s {
			for u := range s[v] {
				if u+v == 0 {
					continue
				}
				for k := range bs {
					of[k] = 0
					if scale[k] > 0 {
						of[k] = abs(bs[k].c[v*blockSide+u]) / scale[k]
					}
				}
				m := float64(numeric.Nth(of, len(of)/2)) / 0.6745
				s[v][u] = max(m*m, 1e-6)
			}
		}
	}
	// The mean of a block is the image's. In the spectrum of a separable filter it
	// is to its neighbours as they are to theirs.
	var x0, x1, y0, y1 float64
	for k := 1; k <= 3; k++ {
		x0, x1 = x0+s[k][0], x1+s[k][1]
		y0, y1 = y0+s[0][k], y1+s[1][k]
	}
	s[0][0] = math.Sqrt(s[0][1] * x0 / x1 * s[1][0] * y0 / y1)
	return s
}

// looksLikeNoise tells from 0 to 1 whether a spectrum is that of filtered noise.
// That is flat at low frequencies and falls off, if at all, further out; that of
// anatomy falls most steeply at the lowest ones.
func (s *powerTable) looksLikeNoise() float64 {
	mean := func(places ...[2]int) float64 {
		sum := 0.0
		for _, p := range places {
			sum += math.Log(s[p[0]][p[1]]*s[p[1]][p[0]]) / 2
		}
		return sum / float64(len(places))
	}
	// mean squares of the frequencies: 1.3, 9 and 28.5 in units of 1/16 cycle per pixel
	low := mean([2]int{0, 1}, [2]int{0, 1}, [2]int{1, 1})
	middle := mean([2]int{2, 2}, [2]int{0, 3}, [2]int{1, 3})
	high := mean([2]int{4, 4}, [2]int{0, 5}, [2]int{3, 4}, [2]int{2, 5})
	excess := low - middle - 0.5*max(middle-high, 0)
	steep := math.Log((s[0][1] + s[1][0]) / 2 / s[1][1])
	return min(ramp(excess, 0.75, 0.4), ramp(steep, 1, 0.8))
}

// ramp is 0 at zero and beyond, 1 at one and beyond.
func ramp(v, zero, one float64) float64 { return min(max((v-zero)/(one-zero), 0), 1) }

// toLags turns the powers of the coefficients along one axis into the
// autocorrelation, [lag][u]: the inverse of power = sum over lags.
var toLags = func() (inv [Lags + 1][blockSide]float64) {
	const n = blockSide
	var a [n][2 * n]float64 // powers by lags, and the unit matrix
	for u := range n {
		a[u][n+u] = 1
		for i := range n {
			for j := range n {
				a[u][max(i-j, j-i)] += float64(cosines[u][i]) * float64(cosines[u][j])
			}
		}
	}
	for k := range n { // Gauss and Jordan
		p := k
		for r := k + 1; r < n; r++ {
			if math.Abs(a[r][k]) > math.Abs(a[p][k]) {
				p = r
			}
		}
		a[k], a[p] = a[p], a[k]
		for c := 2*n - 1; c >= k; c-- {
			a[k][c] /= a[k][k]
		}
		for r := range n {
			if r != k {
				for c := 2*n - 1; c >= k; c-- {
					a[r][c] -= a[r][k] * a[k][c]
				}
			}
		}
	}
	for d := range inv {
		copy(inv[d][:], a[d][n:])
	}
	return inv
}()

// correlate measures the correlation on flat blocks.
func correlate(bs []block, vals *[]float32) Correlation {
	white := White()
	white.Trust = 0
	if len(bs) < minBlocks {
		return white
	}
	s := powers(bs, vals)
	trust := s.looksLikeNoise() * ramp(float64(len(bs)), minBlocks, manyBlocks)
	if trust == 0 {
		return white
	}
	c := Correlation{Trust: trust}
	var rows [Lags + 1][blockSide]float64
	for dy := range rows {
		for u := range blockSide {
			for v := range blockSide {
				rows[dy][u] += toLags[dy][v] * s[v][u]
			}
		}
	}
	for dy := range c.Rho {
		for dx := range c.Rho[dy] {
			for u := range blockSide {
				c.Rho[dy][dx] += toLags[dx][u] * rows[dy][u]
			}
		}
	}
	zero := c.Rho[0][0]
	if !(zero > 0) {
		return white
	}
	for dy := range c.Rho {
		for dx := range c.Rho[dy] {
			// where in doubt, white
			c.Rho[dy][dx] = trust * min(max(c.Rho[dy][dx]/zero, -1), 1)
		}
	}
	c.Rho[0][0] = 1
	// what the number of blocks cannot tell from white noise is white
	r, limit := &c.Rho, max(0.04, 1.5/math.Sqrt(float64(len(bs))))
	if max(math.Abs(r[0][1]), math.Abs(r[1][0]), math.Abs(r[1][1]), math.Abs(r[0][2]), math.Abs(r[2][0])) < limit {
		c.Rho = White().Rho
	}
	return c
}
