package cpu

import (
	"fmt"
	"sync"

	"github.com/diffdenoise/denoised/kernels"
)

// stripColumns is the aim for the width of a strip, in pixels of the half
// resolution. Three rows of all layers of the default network are then 1.3 MB
// beside 0.6 MB of weights, whatever the width of the image.
const stripColumns = 192

// network runs a kernels.Net by rolling rows.
//
// Stage 0 is the input at half resolution, stage s the output of layer s-1. At
// step t every stage s makes its row t-s, in order; so a stage is one row behind
// the one it reads, three rows of each are alive, and a slice is one sweep.
//
// Wide images are cut into strips of columns, one sweep each. Stage s of a strip
// lies s columns to the left of stage 0, like the bricks of a leaning wall: its
// right neighbours have then been computed in the same strip, and the few
// columns to its left are carried over from the strip before. Nothing is
// computed twice, and each pixel is the same sum in the same order whatever the
// strips.
type network struct {
	stages  []stage
	bf16    *bf16
	carry   int // columns carried over: for the left neighbour and for skips
	scratch sync.Pool
}

type stage struct {
	*packed     // nil for stage 0
	channels    int
	stride      int // floats per pixel
	skip        int // as kernels.Layer.Skip
	rows        int // alive at a time, of float32
	rowLen      int // floats, within a scratch
	ring, saved int // where in a scratch the rows and the carried columns begin
	halfs       int // and the rows of bf16, always three
}

// inputStride is the floats per pixel of stage 0, NetIn and all constants.
const inputStride = 8

// Load implements kernels.Backend.
func (b *Backend) Load(net *kernels.Net) (kernels.Network, error) {
	if err := net.Check(); err != nil {
		return nil, fmt.Errorf("load network: %w", err)
	}
	n := &network{bf16: b.isa.bf16, carry: 2}
	rows := 3
	if n.bf16 != nil {
		rows = 1 // the next layer reads the rounded rows
	}
	n.stages = []stage{{channels: kernels.NetIn + net.Constants, stride: inputStride, rows: rows}}
	for i := range net.Layers {
		l := &net.Layers[i]
		p := packConv(&b.isa, &l.Conv, n.stages[i].stride)
		if n.bf16 != nil {
			for k := range p.blocks {
				p.blocks[k].weights = nil // not read any more
			}
		}
		n.stages = append(n.stages, stage{packed: p, channels: l.Out, stride: p.outStride, skip: l.Skip, rows: rows})
		if l.Skip > 0 {
			from := &n.stages[i+1-l.Skip]
			from.rows = max(from.rows, l.Skip+1)
			n.carry = max(n.carry, l.Skip)
		}
	}
	n.scratch.New = func() any { return new(scratch) }
	return n, nil
}

// scratch is the memory of one sweep; a network keeps those that are idle.
type scratch struct {
	row    row
	floats []float32
	halfs  []uint32
	stages []stage // with places for the present size
	zero   []float32
	zeros  []uint32
	lo, hi []int // columns of each stage in the present strip
}

// Forward implements kernels.Network.
func (n *network) Forward(dst, y, sigma []float32, width, height int, constants ...float32) error {
	if err := n.check("forward", dst, y, sigma, width, height, constants); err != nil {
		return err
	}
	n.forward(dst, y, sigma, width, height, constants, stripColumns, nil)
	return nil
}

// Trace implements kernels.Network.
func (n *network) Trace(dst, y, sigma []float32, width, height int, constants ...float32) ([][]float32, error) {
	if err := n.check("trace", dst, y, sigma, width, height, constants); err != nil {
		return nil, err
	}
	layers := make([][]float32, len(n.stages)-1)
	for i := range layers {
		layers[i] = make([]float32, n.stages[i+1].channels*((width+1)/2)*((height+1)/2))
	}
	n.forward(dst, y, sigma, width, height, constants, stripColumns, layers)
	return layers, nil
}

func (n *network) check(op string, dst, y, sigma []float32, width, height int, constants []float32) error {
	if most := n.stages[0].channels - kernels.NetIn; len(constants) > most {
		return &kernels.ShapeError{Op: op, What: "number of constants", Got: len(constants), Want: most}
	}
	return kernels.CheckImage(op, dst, y, sigma, width, height)
}

// strips cuts w columns into strips of about aim columns and returns the number
// of strips and their width. The last one is never empty.
func strips(w, aim int) (count, cols int) {
	count = max(1, (w+aim/2)/aim)
	cols = roundUp((w+count-1)/count, 8)
	return (w + cols - 1) / cols, cols
}

// forward computes a slice whose arguments have been checked. trace, if not
// nil, receives the output of every layer.
func (n *network) forward(dst, y, sigma []float32, width, height int, constants []float32, aim int, trace [][]float32) {
	w, h := (width+1)/2, (height+1)/2
	count, cols := strips(w, aim)
	s := n.scratch.Get().(*scratch)
	defer n.scratch.Put(s)
	s.place(n, w-(count-1)*cols, cols, count, h)

	last := len(n.stages) - 1
	for strip := range count {
		for i := range s.stages {
			s.lo[i] = max(0, strip*cols-i)
			s.hi[i] = max(0, (strip+1)*cols-i)
			if strip == count-1 {
				s.hi[i] = w
			}
		}
		for t := range h + last {
			for i := max(0, t-h+1); i <= min(t, last); i++ {
				r := t - i
				st := &s.stages[i]
				out := s.line(i, r)
				body := out[n.carry*st.stride:]
				lo, pixels := s.lo[i], s.hi[i]-s.lo[i]
				if i == 0 {
					unshuffle(body, y, sigma, width, height, constants, r, lo, lo+pixels)
				} else {
					// Column lo-1 of the stage before, and column lo of the residual.
					prev := &s.stages[i-1]
					at := (lo - 1 - s.lo[i-1] + n.carry) * prev.stride
					var res []float32
					if st.skip > 0 {
						res = s.line(i-st.skip, r)[(lo-s.lo[i-st.skip]+n.carry)*st.stride:]
					}
					st.row(&s.row, body, res, s.under(i-1, r, h, at), pixels)
					if trace != nil {
						planes(trace[i-1], body, st.channels, st.stride, w, h, r, lo, lo+pixels)
					}
				}
				if i == last {
					subtract(dst, y, body, st.stride, width, height, r, lo, lo+pixels)
					continue
				}
				// To the left the columns of the strip before, or the zero padding;
				// what the next strip will need is saved in their place.
				edge := out[:n.carry*st.stride]
				var saved []float32
				if count > 1 {
					saved = s.floats[st.saved+r*len(edge):][:len(edge)]
				}
				if strip == 0 {
					clear(edge)
				} else {
					copy(edge, saved)
				}
				if strip < count-1 {
					copy(saved, out[pixels*st.stride:])
				} else {
					clear(body[pixels*st.stride:][:st.stride])
				}
				if n.bf16 != nil {
					n.bf16.row(s.half(i, r), out[:(n.carry+pixels+1)*st.stride])
				}
			}
		}
	}
}

// place lays the rows out for strips of cols columns, the last one lastCols.
func (s *scratch) place(n *network, lastCols, cols, count, h int) {
	if s.stages == nil {
		s.stages = append(s.stages, n.stages...)
		s.lo, s.hi = make([]int, len(n.stages)), make([]int, len(n.stages))
	}
	total, longest, halfs := 0, 0, 0
	for i := range s.stages {
		st := &s.stages[i]
		widest := lastCols
		if count > 1 {
			widest = max(cols, lastCols+i)
		}
		st.rowLen = roundUp((n.carry+widest+1)*st.stride, 16)
		st.ring = total
		total += st.rows * st.rowLen
		if n.bf16 != nil {
			st.halfs = halfs
			halfs += 3 * st.rowLen / 2
		}
		longest = max(longest, st.rowLen)
	}
	zero := total
	total += longest
	for i := range s.stages {
		st := &s.stages[i]
		st.saved = total
		if count > 1 {
			total += h * n.carry * st.stride
		}
	}
	if total > len(s.floats) {
		s.floats = aligned[float32](total)
	}
	s.zero = s.floats[zero:][:longest]
	clear(s.zero)
	if n.bf16 != nil {
		if need := halfs + longest/2; need > len(s.halfs) {
			s.halfs = aligned[uint32](need)
		}
		s.zeros = s.halfs[halfs:][:longest/2]
		clear(s.zeros)
	}
}

// line is row r of stage i.
func (s *scratch) line(i, r int) []float32 {
	st := &s.stages[i]
	return s.floats[st.ring+r%st.rows*st.rowLen:][:st.rowLen]
}

// half is row r of stage i in bf16.
func (s *scratch) half(i, r int) []uint32 {
	st := &s.stages[i]
	return s.halfs[st.halfs+r%3*st.rowLen/2:][:st.rowLen/2]
}

// under is what a convolution of row r reads of stage i, from place at of the rows:
// rows r-1 to r+1, zeros above and below the image.
func (s *scratch) under(i, r, h, at int) (x window) {
	for k := range x.x {
		inside := r+k-1 >= 0 && r+k-1 < h
		switch {
		case s.halfs != nil && inside:
			x.halfs[k] = s.half(i, r+k-1)[at/2:]
		case s.halfs != nil:
			x.halfs[k] = s.zeros[at/2:]
		case inside:
			x.x[k] = s.line(i, r+k-1)[at:]
		default:
			x.x[k] = s.zero[at:]
		}
	}
	return x
}

// unshuffle makes columns lo to hi of row r of the network's input: steps 1 and
// 2 of kernels.Net.
func unshuffle(x, y, sigma []float32, width, height int, constants []float32, r, lo, hi int) {
	var more [inputStride - kernels.NetIn]float32
	copy(more[:], constants)

	row0, row1 := 2*r*width, min(2*r+1, height-1)*width
	y0, y1 := y[row0:][:width], y[row1:][:width]
	s0, s1 := sigma[row0:][:width], sigma[row1:][:width]
	for c := lo; c < hi; c++ {
		a, b := 2*c, min(2*c+1, width-1)
		p := x[(c-lo)*inputStride:][:inputStride]
		p[0], p[1], p[2], p[3] = y0[a], y0[b], y1[a], y1[b]
		p[4] = (s0[a] + s0[b] + s1[a] + s1[b]) * (kernels.SigmaScale / 4.0)
		p[5], p[6], p[7] = more[0], more[1], more[2]
	}
}

// subtract writes the output for columns lo to hi of row r of the last layer:
// step 4 of kernels.Net.
func subtract(dst, y, noise []float32, stride, width, height, r, lo, hi int) {
	for dy := range min(2, height-2*r) {
		from := (2*r + dy) * width
		in, out := y[from:][:width], dst[from:][:width]
		for c := lo; c < hi; c++ {
			v := noise[(c-lo)*stride+2*dy:][:2]
			out[2*c] = in[2*c] - v[0]
			if 2*c+1 < width {
				out[2*c+1] = in[2*c+1] - v[1]
			}
		}
	}
}

// planes copies a piece of a row into [channels, h, w].
func planes(dst, x []float32, channels, stride, w, h, r, lo, hi int) {
	for c := range channels {
		for i := lo; i < hi; i++ {
			dst[(c*h+r)*w+i] = x[(i-lo)*stride+c]
		}
	}
}
