package net

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/diffdenoise/denoised/internal/numeric"
	"github.com/diffdenoise/denoised/kernels"
)

// MeterConfig is the size of a noise meter: how many channels its layers have.
type MeterConfig struct{ Channels int }

// Graph returns the noise meter: it tells, for every cell of MeterCell×MeterCell pixels, how
// strong the noise is and how it is correlated.
//
//	input 0: what MeterInput makes of the image [H/8, W/8, MeterIn]
//	output:  [H/8, W/8, MeterOut]: how likely each level of the strength is, then Told
//
// H and W are multiples of MeterCell.
func (c MeterConfig) Graph() *kernels.Graph {
	g := new(kernels.Graph)
	x := g.Conv(kernels.Conv1("in.a", c.Channels, kernels.ReLU), g.Input(MeterIn))
	x = g.Conv(kernels.Conv1("in.b", c.Channels, kernels.ReLU), x)
	for i := range meterLayers {
		x = g.Conv(kernels.Conv3(fmt.Sprintf("around.%d", i), c.Channels, kernels.ReLU), x)
	}
	out := kernels.Conv1("out", MeterOut, kernels.Linear)
	out.Start = 0.1
	g.Conv(out, x)
	return g
}

// Properties of a noise meter.
const (
	MeterCell   = 8
	meterLayers = 3 // that look at the cells around: 3 cells to every side
	// meterPowers are the powers of a cell's discrete cosine transform.
	meterPowers = MeterCell * MeterCell
	// MeterIn is the number of channels that it sees: the powers of the cell, the mean of those
	// of the flattest cells of the image's tissue and of its dark parts, and the logarithm of
	// the cell's own mean.
	MeterIn = 3*meterPowers + 1
	// Levels are the strengths that it tells apart, evenly spaced in the logarithm.
	Levels   = 20
	MeterOut = Levels + len(Told{})
)

// Strengths are told in units of the scale that MeterInput returns: firstLevel is the logarithm
// of the least, levelStep that of the ratio of two neighbours.
const (
	firstLevel = -2.5
	levelStep  = 5. / (Levels - 1)
)

// Settings of MeterInput.
const (
	meterDark  = 0.1  // of the brightest tissue: darker cells are not tissue
	meterFlat  = 0.3  // share of the cells, flattest first, that are taken together
	meterFloor = 1e-3 // power below which nothing is told apart, of that of the scale
)

// Cells are the powers of an image's cells of MeterCell×MeterCell pixels.
type Cells struct {
	Width, Height int
	// Powers are those of the discrete cosine transform of each cell, orthonormal, [v][u]. The
	// mean of a cell is the root of its first power by MeterCell.
	Powers [][MeterCell * MeterCell]float32
	// Whole tells whether all pixels of a cell are measured. The powers of others are 0.
	Whole []bool
}

// Measure sets c from a w×h image whose sides are multiples of MeterCell. Pixels with skip set
// (nil: none) are not measured.
func (c *Cells) Measure(y []float32, w, h int, skip []bool) {
	const side = MeterCell
	c.Width, c.Height = w/side, h/side
	n := c.Width * c.Height
	c.Powers, c.Whole = numeric.Grow(c.Powers, n), numeric.Grow(c.Whole, n)
	for cell := range n {
		at := cell/c.Width*side*w + cell%c.Width*side
		c.Whole[cell] = cellPowers(&c.Powers[cell], y[at:], skip, at, w)
		for _, p := range c.Powers[cell] {
			// values far apart overflow
			c.Whole[cell] = c.Whole[cell] && p-p == 0
		}
		if !c.Whole[cell] {
			clear(c.Powers[cell][:])
		}
	}
}

// Mean returns the mean of a cell.
func (c *Cells) Mean(cell int) float64 { return math.Sqrt(float64(c.Powers[cell][0])) / MeterCell }

// Low returns what a cell has of the lowest frequencies, but for the mean, where structure
// shows; High the rest.
func (c *Cells) Low(cell int) (low float32) {
	p := &c.Powers[cell]
	return p[1] + p[2] + p[MeterCell] + p[MeterCell+1] + p[2*MeterCell]
}

// High is described at Low.
func (c *Cells) High(cell int) (high float32) {
	for _, v := range c.Powers[cell][1:] {
		high += v
	}
	return max(high-c.Low(cell), 0)
}

// HighPowers is the number of powers that High adds up.
const HighPowers = MeterCell*MeterCell - 6

// MeterInput returns what a meter sees, and the scale of what it tells: the logarithms of the
// powers of each cell, in units of the scale, which is the least power of the flattest cells.
// Cells that are not whole are zero. A scale of 0 means that there is nothing to be seen.
func MeterInput(c *Cells) (in []float32, scale float64) {
	n := len(c.Powers)
	type place struct {
		cell int
		flat float32
	}
	var tissue, dark []place
	high := make([]float32, 0, n)
	for cell := range n {
		v := c.High(cell)
		if !c.Whole[cell] || v == 0 {
			continue
		}
		high = append(high, v/HighPowers)
		if c.Mean(cell) > meterDark {
			tissue = append(tissue, place{cell, c.Low(cell)})
		} else {
			dark = append(dark, place{cell, c.Low(cell)})
		}
	}
	if len(high) == 0 {
		return nil, 0
	}
	scale = math.Sqrt(float64(numeric.Nth(high, len(high)/4)))
	if !(scale > 0) {
		return nil, 0
	}
	in = make([]float32, n*MeterIn)
	unit := float32(1 / (scale * scale))
	for cell := range n {
		if !c.Whole[cell] || c.Powers[cell][0] == 0 {
			continue
		}
		p := in[cell*MeterIn:][:MeterIn]
		for k, v := range c.Powers[cell] {
			p[k] = meterGain * fastLog(unit*v+meterFloor)
		}
		p[meterPowers*3] = meterGain * fastLog(float32(c.Mean(cell))/float32(scale)+meterFloor)
	}
	for k, places := range [][]place{tissue, dark} {
		slices.SortFunc(places, func(a, b place) int { return cmp.Or(cmp.Compare(a.flat, b.flat), a.cell-b.cell) })
		if places = places[:int(math.Ceil(meterFlat*float64(len(places))))]; len(places) == 0 {
			continue
		}
		var mean [meterPowers]float32
		for _, p := range places {
			for i, v := range in[p.cell*MeterIn:][:meterPowers] {
				mean[i] += v / float32(len(places))
			}
		}
		for cell := range n {
			if c.Whole[cell] && c.Powers[cell][0] != 0 {
				copy(in[cell*MeterIn+(k+1)*meterPowers:], mean[:])
			}
		}
	}
	return in, scale
}

// meterGain brings logarithms of powers to the size that layers start with.
const meterGain = 0.25

// cellPowers writes the powers of the discrete cosine transform of a cell, orthonormal, and tells
// whether all of its pixels are measured.
func cellPowers(dst *[MeterCell * MeterCell]float32, y []float32, skip []bool, at, w int) bool {
	const side = MeterCell
	var rows [side][side]float32 // [u][line]
	for line := range side {
		if skip != nil {
			for _, s := range skip[at+line*w:][:side] {
				if s {
					return false
				}
			}
		}
		for u, sum := range coefficients((*[side]float32)(y[line*w:])) {
			rows[u][line] = sum
		}
	}
	for u := range side {
		for v, sum := range coefficients(&rows[u]) {
			dst[v*side+u] = sum * sum
		}
	}
	return true
}

// coefficients is the discrete cosine transform of 8 values. The sums do not wait for each other.
func coefficients(px *[MeterCell]float32) [MeterCell]float32 {
	var a, b, c, d, e, f, g, h float32
	t := &meterColumns
	for i, v := range px {
		k := &t[i]
		a, b, c, d = a+k[0]*v, b+k[1]*v, c+k[2]*v, d+k[3]*v
		e, f, g, h = e+k[4]*v, f+k[5]*v, g+k[6]*v, h+k[7]*v
	}
	return [MeterCell]float32{a, b, c, d, e, f, g, h}
}

var meterCosines = numeric.Cosines[float32]()

// meterColumns are the same, [i][u].
var meterColumns = func() (t [MeterCell][MeterCell]float32) {
	for u, row := range meterCosines {
		for i, v := range row {
			t[i][u] = v
		}
	}
	return t
}()

// fastLog is the natural logarithm of a positive number to 0.005: of the mantissa by a parabola.
func fastLog(v float32) float32 {
	bits := math.Float32bits(v)
	exponent := float32(int32(bits>>23) - 127)
	m := math.Float32frombits(bits&0x7fffff | 0x3f800000)
	return 0.6931472 * (exponent + ((-0.33582878*m+2)*m - 1.65871022))
}

// EncodeLevel writes what a meter is to say of the strength sigma, in its scale: the two levels
// around it, so that their mean is its logarithm.
func EncodeLevel(dst []float32, sigma float64) {
	clear(dst[:Levels])
	at := (math.Log(max(sigma, 1e-9)) - firstLevel) / levelStep
	at = min(max(at, 0), Levels-1)
	k := min(int(at), Levels-2)
	dst[k], dst[k+1] = float32(float64(k+1)-at), float32(at-float64(k))
}

// DecodeLevel returns the mean of the logarithm of the strength and its standard deviation, of
// what a meter says of a cell. Likelihoods that a network has made are never quite that: those
// below zero count as zero.
func DecodeLevel(src []float32) (mean, spread float64) {
	sum, first, second := 0.0, 0.0, 0.0
	for k, p := range src[:Levels] {
		if p <= 0 {
			continue
		}
		at := float64(k)
		sum, first, second = sum+float64(p), first+float64(p)*at, second+float64(p)*at*at
	}
	if sum <= 0 {
		return firstLevel, levelStep * Levels
	}
	first, second = first/sum, second/sum
	return firstLevel + levelStep*first, levelStep * math.Sqrt(max(second-first*first, 0))
}

// String names the architecture, as weights files do.
func (c MeterConfig) String() string {
	return fmt.Sprintf("denoised-meter-v1 %d", c.Channels)
}

// parseMeter reads what String wrote.
func parseMeter(s string) (c MeterConfig, err error) {
	if _, err = fmt.Sscanf(s, "denoised-meter-v1 %d", &c.Channels); err != nil {
		return c, fmt.Errorf("weights are of format %.60q, want a noise meter", s)
	}
	return c, c.Graph().Err()
}
