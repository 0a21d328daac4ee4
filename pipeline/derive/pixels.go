package derive

import (
	"fmt"
	"math"
)

// lookPixels bounds the pixels of a frame that are looked at to tell what kind it is.
const lookPixels = 1 << 16

// histogram counts the stored values of a frame, padding apart, in rows that lie evenly over it.
type histogram struct {
	least           int32 // the value that counts[0] is of
	counts          []uint32
	n               int   // pixels
	lowest, highest int32 // of those that are there
}

// histogram reads frame i. It allocates up to 256 KiB and the bytes of a row.
func (l *layout) histogram(c *cells, i int) (*histogram, error) {
	h := &histogram{least: c.min, counts: make([]uint32, c.max-c.min+1), lowest: math.MaxInt32, highest: math.MinInt32}
	row := make([]byte, l.columns*l.alloc/8)
	step := max(1, l.pixelsPerFrame()/lookPixels)
	for y := 0; y < l.rows; y += step {
		if err := l.pixels.ReadAt(row, int64(i)*l.frameBytes()+int64(y)*int64(len(row))); err != nil {
			return nil, fmt.Errorf("frame %d: %w", i+1, err)
		}
		for x := range l.columns {
			cell := c.cell(row, x)
			v := c.value(cell)
			if c.padded && c.isPadding(cell, v) {
				continue
			}
			h.counts[v-h.least]++
			h.n++
			h.lowest, h.highest = min(h.lowest, v), max(h.highest, v)
		}
	}
	return h, nil
}

const (
	// A frame with more than belowZero of its pixels below 0, or more than farBelow of
	// them below a twentieth of its largest value, negative, is no magnitude: resampling
	// takes few pixels below 0, and not far.
	belowZero = 0.1
	farBelow  = 0.01

	// A value that more than modeShare of the pixels have and that lies in the middle half of
	// the range is the zero of a phase or difference: what a magnitude has most of is air, and
	// that is dark. It takes a range of modeRange steps to have a middle.
	modeShare = 0.1
	modeRange = 64
	// A frame all of whose flatBins parts of the range hold more than flatShare of an even share is
	// the phase of noise.
	flatBins  = 16
	flatShare = 0.5
	flatRange = 256
	// A frame of at most gridValues values that lie on a grid is a class, a rank or a count.
	gridValues = 64
)

// below is the share of pixels below 0, or none if that is what a magnitude may have.
func (h *histogram) below(r rescale) float64 {
	if h.n == 0 {
		return 0
	}
	_, most := r.limits(h.lowest, h.highest)
	under, far := 0, 0
	for k, m := range h.counts {
		if m == 0 {
			continue
		}
		f := r.real(h.least + int32(k))
		if f < -0.5 {
			under += int(m)
		}
		if f < -0.05*max(most, 0)-0.5 {
			far += int(m)
		}
	}
	if float64(under) > belowZero*float64(h.n) || float64(far) > farBelow*float64(h.n) {
		return float64(under) / float64(h.n)
	}
	return 0
}

// odd says what the values have that those of no magnitude have; empty if nothing.
func (h *histogram) odd() string {
	if h.n == 0 || h.lowest == h.highest {
		return ""
	}
	span := int(h.highest - h.lowest)
	values, grid, mode := 0, 0, 0
	var bins [flatBins]int
	for k := int(h.lowest - h.least); k <= int(h.highest-h.least); k++ {
		if h.counts[k] == 0 {
			continue
		}
		at := k - int(h.lowest-h.least)
		values++
		grid = divisor(grid, at)
		bins[at*flatBins/(span+1)] += int(h.counts[k])
		if h.counts[k] > h.counts[mode] {
			mode = k
		}
	}
	middle := float64(mode-int(h.lowest-h.least)) / float64(span)
	if span >= modeRange && middle > 0.25 && middle < 0.75 && float64(h.counts[mode]) > modeShare*float64(h.n) {
		share := 100 * float64(h.counts[mode]) / float64(h.n)
		return fmt.Sprintf("%.0f %% of the pixels have one value in the middle of the range", share)
	}
	if grid > 1 && values <= gridValues {
		return fmt.Sprintf("its %d values lie on a grid of %d steps", values, grid)
	}
	if span < flatRange {
		return ""
	}
	for _, m := range bins {
		if float64(m) < flatShare*float64(h.n)/flatBins {
			return ""
		}
	}
	return "its values are spread evenly over the range"
}

// divisor is the greatest common divisor of a and b, neither negative.
func divisor(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// lookFrames are the frames that stand for all of an object: the first, the middle, the last.
func (l *layout) lookFrames() []int {
	list := []int{0}
	for _, i := range []int{l.frames / 2, l.frames - 1} {
		if i > list[len(list)-1] {
			list = append(list, i)
		}
	}
	return list
}

// oddPixels says what frames have that no magnitude has; empty if nothing.
func (l *layout) oddPixels(c *cells) (string, error) {
	for _, i := range l.lookFrames() {
		h, err := l.histogram(c, i)
		if err != nil {
			return "", err
		}
		if why := h.odd(); why != "" {
			return why, nil
		}
	}
	return "", nil
}
