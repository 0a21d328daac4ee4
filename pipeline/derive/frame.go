package derive

import (
	"encoding/binary"
	"fmt"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// RefusedError is returned for an object whose Verdict is not OK.
type RefusedError struct{ Verdict Verdict }

// Error says why.
func (e *RefusedError) Error() string {
	return "image stays untouched: " + e.Verdict.String()
}

// Frame is one image of an object.
type Frame struct {
	Width, Height int
	// Pixels are real values, row major, in steps of one stored value: what is stored, if
	// there is no rescale intercept, and what begins at 0 in a magnitude if there is one.
	Pixels []float32
	// Skip marks padding (PS3.3 C.7.5.1.1.2): never changed, never to be estimated
	// from. Nil means that there is none.
	Skip []bool
	// Min and Max are the range that BitsStored and PixelRepresentation allow, in the
	// unit of Pixels; Write clips to it.
	Min, Max float32
}

// Frames is the number of frames that can be denoised, 0 if Inspect objects.
func Frames(o *dcm.Object) int {
	v, l := inspect(o)
	if !v.OK() {
		return 0
	}
	return l.frames
}

// ReadFrame reads frame i, counted from 0. It allocates 6 to 7 bytes per pixel.
// The error is a *RefusedError if Inspect objects.
func ReadFrame(o *dcm.Object, i int) (*Frame, error) {
	v, l := inspect(o)
	if !v.OK() {
		return nil, &RefusedError{v}
	}
	if i < 0 || i >= l.frames {
		return nil, fmt.Errorf("read frame %d of %d: no such frame", i, l.frames)
	}
	c := newCells(o, l)
	raw := make([]byte, l.frameBytes())
	if err := l.pixels.ReadAt(raw, int64(i)*l.frameBytes()); err != nil {
		return nil, fmt.Errorf("read frame %d: %w", i, err)
	}
	r := l.rescale(i)
	f := &Frame{Width: l.columns, Height: l.rows}
	f.Min, f.Max = r.limits(c.min, c.max)
	f.Pixels = make([]float32, l.pixelsPerFrame())
	for k := range f.Pixels {
		cell := c.cell(raw, k)
		n := c.value(cell)
		f.Pixels[k] = r.real(n)
		if c.padded && c.isPadding(cell, n) {
			if f.Skip == nil {
				f.Skip = make([]bool, len(f.Pixels))
			}
			f.Skip[k] = true
		}
	}
	return f, nil
}

// Raster is one frame as it is stored, to be shown. Unlike a Frame it can be read
// of any image of one sample without compression, derived ones included.
type Raster struct {
	Width, Height, Frames int
	Signed                bool
	Stored                int // bits
	// Pixels are the stored values, row major, 16 bit little endian each; signed
	// ones in two's complement.
	Pixels []byte
}

// ReadRaster reads frame i, counted from 0. It allocates 2 to 4 bytes per pixel. The
// error is a *RefusedError if the pixels cannot be read.
func ReadRaster(o *dcm.Object, i int) (*Raster, error) {
	v, l := pixelLayout(o)
	if !v.OK() {
		return nil, &RefusedError{v}
	}
	if i < 0 || i >= l.frames {
		return nil, fmt.Errorf("read frame %d of %d: no such frame", i, l.frames)
	}
	c := newCells(o, l)
	raw := make([]byte, l.frameBytes())
	if err := l.pixels.ReadAt(raw, int64(i)*l.frameBytes()); err != nil {
		return nil, fmt.Errorf("read frame %d: %w", i, err)
	}
	out := raw
	if !c.wide {
		out = make([]byte, 2*l.pixelsPerFrame())
	}
	for k := range l.pixelsPerFrame() {
		binary.LittleEndian.PutUint16(out[2*k:], uint16(c.value(c.cell(raw, k))))
	}
	return &Raster{Width: l.columns, Height: l.rows, Frames: l.frames, Signed: l.signed, Stored: l.stored, Pixels: out}, nil
}

// cells knows how a stored value lies in its pixel cell.
type cells struct {
	wide     bool // two bytes
	signed   bool
	mask     uint16 // the stored bits
	sign     uint16 // the sign bit among them
	min, max int32
	padded   bool
	padLo    int32 // padding range, both ends included
	padHi    int32
}

func newCells(o *dcm.Object, l layout) *cells {
	c := &cells{wide: l.alloc == 16, signed: l.signed, mask: uint16(1<<l.stored - 1), sign: 1 << (l.stored - 1)}
	c.max = int32(1)<<l.stored - 1
	if l.signed {
		c.min, c.max = -(int32(1) << (l.stored - 1)), int32(1)<<(l.stored-1)-1
	}
	if lo, ok := c.padding(o, dcm.PixelPaddingValue); ok {
		hi := lo
		if x, ok := c.padding(o, dcm.PixelPaddingRangeLimit); ok {
			hi = x
		}
		c.padded, c.padLo, c.padHi = true, min(lo, hi), max(lo, hi)
	}
	return c
}

// padding reads a padding value. Its VR follows PixelRepresentation by the
// standard and often not in practice, so the 16 bits are taken as the pixels' are.
func (c *cells) padding(o *dcm.Object, t dcm.Tag) (int32, bool) {
	e := o.Find(t)
	if !e.OK() || e.Length() < 2 {
		return 0, false
	}
	var b [2]byte
	if e.ReadAt(b[:], 0) != nil {
		return 0, false
	}
	u := binary.LittleEndian.Uint16(b[:])
	if c.signed {
		return int32(int16(u)), true
	}
	return int32(u), true
}

func (c *cells) cell(raw []byte, k int) uint16 {
	if c.wide {
		return uint16(raw[2*k]) | uint16(raw[2*k+1])<<8
	}
	return uint16(raw[k])
}

func (c *cells) put(raw []byte, k int, cell uint16) {
	if c.wide {
		raw[2*k], raw[2*k+1] = byte(cell), byte(cell>>8)
	} else {
		raw[k] = byte(cell)
	}
}

// value is the stored value in a cell: bits above BitsStored are not part of it.
func (c *cells) value(cell uint16) int32 {
	n := int32(cell & c.mask)
	if c.signed && cell&c.sign != 0 {
		n -= int32(c.mask) + 1
	}
	return n
}

// isPadding compares the stored value and, for padding values that need more
// than the stored bits, the whole cell.
func (c *cells) isPadding(cell uint16, n int32) bool {
	if n >= c.padLo && n <= c.padHi {
		return true
	}
	if !c.wide || c.mask == 0xFFFF {
		return false
	}
	whole := int32(cell)
	if c.signed {
		whole = int32(int16(cell))
	}
	return whole >= c.padLo && whole <= c.padHi
}

// extends tells whether a signed image repeats the sign bit above BitsStored,
// as most do. It is a property of the whole frame.
func (c *cells) extends(raw []byte) bool {
	for k := 0; k < len(raw)/c.bytes(); k++ {
		if cell := c.cell(raw, k); cell&c.sign != 0 {
			return cell|c.mask == 0xFFFF
		}
	}
	return true
}

func (c *cells) bytes() int {
	if c.wide {
		return 2
	}
	return 1
}

// stats of one or more encoded frames.
type stats struct {
	changed, clipped, padding int64
	least, most               int32 // over pixels that are no padding
	any                       bool
}

// encode overwrites raw, the source's cells, with the denoised real values: rounded
// to nearest, clipped to the stored range, bits above BitsStored kept. Padding
// stays as it is, and no other pixel becomes padding: a value that would is
// moved to the nearest one that is not.
func (c *cells) encode(raw []byte, pixels []float32, rescale rescale, st *stats) error {
	extend := c.signed && c.wide && c.mask != 0xFFFF && c.extends(raw)
	lo, hi := float64(c.min), float64(c.max)+1
	least, most, changed := c.max, c.min, int64(0)
	any := false
	for k, v := range pixels {
		cell := c.cell(raw, k)
		old := c.value(cell)
		if c.padded && c.isPadding(cell, old) {
			st.padding++
			continue
		}
		var n int32
		switch r := rescale.stored(v) + 0.5; {
		case r >= lo && r < hi:
			if n = int32(r); float64(n) > r {
				n-- // floor of a negative number
			}
		case v-v != 0:
			return fmt.Errorf("pixel %d is not a finite number", k)
		case r < lo:
			n = c.min
			st.clipped++
		default:
			n = c.max
			st.clipped++
		}
		if n != old && c.padded && n >= c.padLo && n <= c.padHi {
			n = c.besidePadding(n, old)
		}
		if n != old {
			next := cell&^c.mask | uint16(n)&c.mask
			if extend && n < 0 {
				next |= ^c.mask
			} else if extend {
				next &= c.mask
			}
			if c.padded && c.isPadding(next, n) { // by its unused bits
				n = old
			} else {
				changed++
				c.put(raw, k, next)
			}
		}
		any = true
		least, most = min(least, n), max(most, n)
	}
	st.changed += changed
	if any && st.any {
		least, most = min(least, st.least), max(most, st.most)
	}
	if any {
		st.any, st.least, st.most = true, least, most
	}
	return nil
}

// besidePadding is the value nearest to n outside the padding range, or old if
// there is none.
func (c *cells) besidePadding(n, old int32) int32 {
	below, above := c.padLo-1, c.padHi+1
	lowOK, highOK := below >= c.min, above <= c.max
	switch {
	case lowOK && (!highOK || n-below < above-n || n-below == above-n && old < n):
		return below
	case highOK:
		return above
	}
	return old
}
