// Package meter measures the noise of an image by a noise meter (net.MeterConfig): a small
// network that tells, for every few pixels, how strong the noise is and how it is correlated. A
// Reading makes a map of that, with what other slices of the series have told (Series).
package meter

import (
	"math"

	"github.com/diffdenoise/denoised/internal/numeric"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/noise"
)

// Reading is what a meter reads of one image. The zero value is ready; Read uses its memory
// again. It is for one goroutine at a time.
type Reading struct {
	// Map is the noise of the image, in its unit; all zero where nothing was found.
	Map noise.Map
	// Told is its correlation, as students are told it.
	Told net.Told
	// Given is the strength that networks are told, at every pixel: that of Map or, where the two
	// witnesses disagree, less.
	Given []float32
	// Series is what the image by itself tells of its series.
	Series Series

	powers   net.Cells
	cells    []cell
	strength []float32 // of the cells
	extended []float32
	skip     []bool
	in, out  []float32
	levels   []float32
	flat     []int // cells
}

// cell is what the meter tells of net.MeterCell×net.MeterCell pixels: the logarithm of the
// strength, in the scale of the image, and how much that weighs, one by its variance. A cell
// that says nothing weighs 0.
type cell struct{ level, weight float64 }

// Series is what slices of one series have told of their noise. The scanner's filters are the
// same in all of them, so that many slices tell better than one. The zero value is nothing; Series
// are values, and those of two parts of a series are added.
type Series struct {
	// Weight is of the places that told: what follows are sums over them.
	Weight float64 `json:"weight"`
	// Lags are the correlation as the meter has it, in the order of net.Told.
	Lags [len(net.Told{})]float64 `json:"lags"`
	// Cells are those that were the flattest of the tissue, and Along the sums of their powers at
	// the frequencies along x and y, over those of the other axis that structure hardly has. Each
	// slice counts by its number of cells.
	Cells float64          `json:"cells"`
	Along [2][side]float64 `json:"along"`
}

// Plus returns what two parts of a series tell together.
func (s Series) Plus(o Series) Series {
	s.Weight += o.Weight
	for i, v := range o.Lags {
		s.Lags[i] += v
	}
	s.Cells += o.Cells
	for axis := range o.Along {
		for u, v := range o.Along[axis] {
			s.Along[axis][u] += v
		}
	}
	return s
}

// Told returns the correlation as the meter has it; that of white noise where nothing is known.
func (s Series) Told() (t net.Told) {
	if s.Weight > 0 {
		for i, v := range s.Lags {
			t[i] = float32(min(max(v/s.Weight, -1), 1))
		}
	}
	return t
}

// Settings of Read.
const (
	tile      = 512  // of an image that the meter sees at a time, pixels
	margin    = 24   // more on every side, which is as far as it looks
	ownSpread = 0.15 // standard deviation of the logarithm in a cell that the meter does not know of
	leastSide = 32   // pixels; smaller images tell nothing
	// Neighbouring cells count by a Gaussian of this spread, as far as reach, cells. The whole
	// image counts by leastWeight.
	smoothing   = 1.0
	reach       = 3
	leastWeight = 1e-3
)

// Read lets a meter look at an image y of w×h pixels, 1 of which is about the brightest tissue.
// Pixels with skip set (nil: none) are no measurement. known is what other slices tell. Images
// that are too small, or show nothing, have no noise.
func (r *Reading) Read(p kernels.Program, y []float32, w, h int, skip []bool, known Series) error {
	r.Map.Width, r.Map.Height, r.Map.Median, r.Series, r.Told = w, h, 0, Series{}, net.Told{}
	r.Map.Sigma, r.Map.Correlation = numeric.Grow(r.Map.Sigma, w*h), noise.White()
	clear(r.Map.Sigma)
	r.Given = append(r.Given[:0], r.Map.Sigma...)
	if min(w, h) < leastSide {
		return nil
	}
	if err := r.look(p, y, w, h, skip); err != nil {
		return err
	}
	r.flattest()
	r.spectrum()
	all := known.Plus(r.Series)
	r.Told = all.Told()
	quiet := r.everywhere(&all)
	if quiet == 0 {
		r.Series, r.Told = Series{}, net.Told{}
		return nil
	}
	agree := r.agree(&all)
	r.Map.Correlation = r.Told.Correlation()
	r.spread()
	caution := float32(quiet * (leastGiven + (1-leastGiven)*agree))
	r.Given = numeric.Grow(r.Given, w*h)
	for i, s := range r.Map.Sigma {
		r.Given[i] = s * caution * min(1, s/faint)
	}
	return nil
}

// Settings of agree, logarithms of the ratio of two strengths.
const (
	near       = 0.35 // up to which the witnesses agree,
	far        = 0.8  // and from which on they do not
	nearApart  = 0.2  // the same for the correlation of neighbours that they tell, where noise is faint
	farApart   = 0.5
	believed   = 0.5 // how much the flattest cells count for where they agree
	leastGiven = 0.5 // of the strength is told to networks where they do not
	// Weaker noise, of the brightest tissue, is told to be weaker still: fine anatomy looks like it.
	faint = 6. / 255
)

// agree compares the two witnesses of the noise, the meter and the flattest cells of the tissue.
// Where they agree, from 0 to 1, the correlation is that of the flattest cells, which know it
// better, and the strength is between theirs. Noise is in all cells, so that it is never stronger
// than in the flattest ones. Where those tell of much more than the meter, they hold anatomy, which
// may have misled the meter, too; and so where they tell of another correlation.
func (r *Reading) agree(s *Series) float64 {
	if s.Cells == 0 {
		return 1 // dark images have no tissue
	}
	lags := s.lags()
	by, ok := r.stronger(lags)
	if !ok {
		return 1
	}
	agree := min(max((far-by)/(far-near), 0), 1)
	for i := range 2 { // neighbours along x and y
		apart := math.Abs(float64(lags[i] - r.Told[i]))
		alike := min(max((farApart-apart)/(farApart-nearApart), 0), 1)
		agree = min(agree, 1-r.faintness()*(1-alike))
	}
	for i, v := range lags {
		r.Told[i] += float32(agree) * (v - r.Told[i])
	}
	counts := 1. // noise is never stronger than in the flattest cells
	if by > 0 {
		counts = agree * believed
	}
	for i := range r.cells {
		r.cells[i].level += counts * by
	}
	return agree
}

// faintness tells whether the noise of the image is faint, from 0, at faint and above, to 1.
func (r *Reading) faintness() float64 {
	all := cell{}
	for _, c := range r.cells {
		all.level, all.weight = all.level+c.weight*c.level, all.weight+c.weight
	}
	if all.weight == 0 {
		return 0
	}
	return min(max(3*(1-math.Exp(all.level/all.weight)/faint), 0), 1)
}

// look sets the cells and what they tell of the series.
func (r *Reading) look(p kernels.Program, y []float32, w, h int, skip []bool) error {
	cw, ch := (w+side-1)/side, (h+side-1)/side
	r.cells = numeric.Grow(r.cells, cw*ch)
	clear(r.cells)
	ew, eh := cw*side, ch*side // continued by mirroring
	r.extended, r.skip = numeric.Grow(r.extended, ew*eh), numeric.Grow(r.skip, ew*eh)
	for v := range eh {
		from, to := numeric.Mirror(v, h)*w, v*ew
		copy(r.extended[to:], y[from:][:w])
		if skip != nil {
			copy(r.skip[to:], skip[from:][:w])
		} else {
			clear(r.skip[to:][:w])
		}
		for u := w; u < ew; u++ {
			i := to + numeric.Mirror(u, w)
			r.extended[to+u], r.skip[to+u] = r.extended[i], r.skip[i]
		}
	}
	r.powers.Measure(r.extended, ew, eh, r.skip)
	in, scale := net.MeterInput(&r.powers)
	if scale == 0 {
		return nil
	}
	const step, around = tile / side, margin / side
	for cy := 0; cy < ch; cy += step {
		for cx := 0; cx < cw; cx += step {
			x0, y0 := max(cx-around, 0), max(cy-around, 0)
			tw, th := min(cx+step+around, cw)-x0, min(cy+step+around, ch)-y0
			row := tw * net.MeterIn
			r.in, r.out = numeric.Grow(r.in, th*row), numeric.Grow(r.out, tw*th*net.MeterOut)
			for k := range th {
				copy(r.in[k*row:][:row], in[((y0+k)*cw+x0)*net.MeterIn:])
			}
			b := &kernels.Batch{Count: 1, Height: th, Width: tw, Inputs: [][]float32{r.in}}
			if err := p.Run(r.out, b); err != nil {
				return err
			}
			for v := cy; v < min(cy+step, ch); v++ {
				for u := cx; u < min(cx+step, cw); u++ {
					said := r.out[((v-y0)*tw+u-x0)*net.MeterOut:][:net.MeterOut]
					if r.measured(u, v, ew) {
						r.cells[v*cw+u] = r.tell(said, math.Log(scale))
					}
				}
			}
		}
	}
	return nil
}

// measured tells whether most of a cell is.
func (r *Reading) measured(cx, cy, w int) bool {
	n := 0
	for y := cy * side; y < (cy+1)*side; y++ {
		for _, skip := range r.skip[y*w+cx*side:][:side] {
			if !skip {
				n++
			}
		}
	}
	return 2*n >= side*side
}

// tell takes in what the meter said of one cell, in units of which scale is the logarithm.
func (r *Reading) tell(said []float32, scale float64) cell {
	for _, v := range said {
		if v-v != 0 {
			return cell{}
		}
	}
	level, spread := net.DecodeLevel(said)
	c := cell{level + scale, 1 / (spread*spread + ownSpread*ownSpread)}
	r.Series.Weight += c.weight
	for i := range r.Series.Lags {
		r.Series.Lags[i] += c.weight * float64(said[net.Levels+i])
	}
	return c
}

// spread makes the map of the cells.
func (r *Reading) spread() {
	w, h := r.Map.Width, r.Map.Height
	cw, ch := (w+side-1)/side, (h+side-1)/side
	r.smooth(cw, ch)
	r.levels = r.levels[:0]
	for i, c := range r.cells {
		if c.weight > 0 {
			r.levels = append(r.levels, r.strength[i])
		}
	}
	if len(r.levels) == 0 {
		return
	}
	r.Map.Median = float64(numeric.Nth(r.levels, len(r.levels)/2))
	between := func(v, n int) (a, b int, share float32) { // the cells around a pixel
		f := (float32(v)+0.5)/side - 0.5
		a = min(max(int(f), 0), n-1)
		return a, min(a+1, n-1), min(max(f-float32(a), 0), 1)
	}
	for y := range h {
		y0, y1, fy := between(y, ch)
		top, bottom, row := r.strength[y0*cw:][:cw], r.strength[y1*cw:][:cw], r.Map.Sigma[y*w:][:w]
		for x := range row {
			x0, x1, fx := between(x, cw)
			a, b := top[x0]+fx*(top[x1]-top[x0]), bottom[x0]+fx*(bottom[x1]-bottom[x0])
			row[x] = a + fy*(b-a)
		}
	}
}

// smooth sets the strength of every cell to the weighted mean of the cells around. Where none
// tells anything, those of the whole image do.
func (r *Reading) smooth(cw, ch int) {
	r.strength = numeric.Grow(r.strength, cw*ch)
	var kernel [reach + 1]float64
	for d := range kernel {
		kernel[d] = math.Exp(-float64(d*d) / (2 * smoothing * smoothing))
	}
	all := cell{}
	for _, c := range r.cells {
		all.level, all.weight = all.level+c.weight*c.level, all.weight+c.weight
	}
	if all.weight > 0 {
		all.level /= all.weight
	}
	for y := range ch {
		for x := range cw {
			sum := cell{leastWeight * all.level, leastWeight}
			for dy := max(-reach, -y); dy <= min(reach, ch-1-y); dy++ {
				for dx := max(-reach, -x); dx <= min(reach, cw-1-x); dx++ {
					c := r.cells[(y+dy)*cw+x+dx]
					k := kernel[max(dy, -dy)] * kernel[max(dx, -dx)] * c.weight
					sum.level, sum.weight = sum.level+k*c.level, sum.weight+k
				}
			}
			r.strength[y*cw+x] = float32(math.Exp(sum.level / sum.weight))
		}
	}
}
