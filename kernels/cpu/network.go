package cpu

import (
	"fmt"
	"sync"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/internal/chain"
)

// network runs a chain.Net by rolling rows.
//
// Stage 0 is the input at half resolution, stage s the output of layer s-1. At
// step t every stage s makes its row t-s, in order; so a stage is one row behind
// the one it reads, three rows of each are alive, and a slice is one sweep.
//
// Where layers are computed by Winograd's algorithm, a step is four rows of each.
//
// Wide images are cut into strips of columns, one sweep each. Stage s of a strip
// lies lean·s columns to the left of stage 0, like the bricks of a leaning wall: its
// right neighbours have then been computed in the same strip, and the few
// columns to its left are carried over from the strip before. Nothing is
// computed twice, and each pixel is the same sum in the same order whatever the
// strips.
type network struct {
	stages    []stage
	bf16      *bf16
	ints      *integers
	wino      *winograd
	constants constants
	strip     strip
	carry     int // columns carried over: for the left neighbour and for skips
	scratch   sync.Pool
}

// strip is how an instruction set wants images cut.
type strip struct {
	columns int // the aim for the width, in pixels of the half resolution
	unit    int // of the width, columns
	lean    int // columns from a stage to the next, a multiple of what is computed at once
	margin  int // columns that a row needs on its right: the neighbour, and what kernels write more
	rows    int // that a stage computes at a time
}

// With strips of float32, three rows of all layers of the default network are 1.3 MB
// beside 0.6 MB of weights, whatever the width of the image. Rows of bytes need a
// quarter of that, and strips of integers carry over so many columns that they are
// worth it only to bound the memory.
var (
	floatStrip    = strip{columns: 192, unit: 8, lean: 1, margin: 1, rows: 1}
	intStrip      = strip{columns: 2048, unit: groupColumns, lean: groupColumns, margin: groupPixels, rows: 1}
	winogradStrip = strip{columns: 192, unit: 8, lean: winogradRows, margin: 2 * winogradRows, rows: winogradRows}
)

type stage struct {
	*packed     // of layers in float32 or bf16
	ints        *intConv
	wino        *winogradConv
	next        *intConv // what reads this stage as bytes
	channels    int
	stride      int // floats per pixel
	skip        int // as chain.Layer.Skip
	rows        int // alive at a time, of float32
	rowLen      int // floats, within a scratch
	ring, saved int // where in a scratch the rows and the carried columns begin
	halfs       int // and the rows of bf16, always three
	bytes       int // or of bytes, likewise
	groupScales int // and what their steps are worth
	groups      int // in such a row
}

// inputStride is the floats per pixel of stage 0.
const inputStride = 8

// Load implements kernels.Backend.
func (b *Backend) Load(g *kernels.Graph, params [][]float32) (kernels.Network, error) {
	net, err := chain.Of(g, params)
	if err != nil {
		return nil, fmt.Errorf("load network: %w", err)
	}
	n := &network{bf16: b.isa.bf16, ints: b.isa.ints, wino: b.isa.wino, strip: floatStrip}
	last, lanes := len(net.Layers)-1, 1
	switch {
	case n.ints != nil:
		n.strip, lanes = intStrip, n.ints.lanes
	case n.wino != nil:
		n.strip, lanes = winogradStrip, n.wino.lanes
	}
	n.carry = n.strip.lean + 1
	rows := n.strip.rows + 2
	if n.bf16 != nil {
		rows = 1 // the next layer reads the rounded rows
	}
	n.stages = []stage{{channels: kernels.NetIn, stride: inputStride, rows: rows}}
	for i := range net.Layers {
		l := &net.Layers[i]
		from := &n.stages[i]
		next := stage{channels: l.Out, skip: l.Skip, rows: rows}
		switch {
		case i == 0:
			next.packed = packConv(&b.isa, widen(n.constants.take(&l.Conv, net.Constants), lanes), from.stride)
		case i == last && n.ints != nil:
			tail := n.ints.tail()
			next.packed = packConv(&tail, &l.Conv, from.stride)
		case i == last || n.ints == nil && n.wino == nil:
			next.packed = packConv(&b.isa, &l.Conv, from.stride)
		case n.wino != nil:
			next.wino = packWinograd(n.wino, &l.Conv, from.stride)
			next.stride = next.wino.outStride
		default:
			above := &net.Layers[i-1]
			next.ints = packInts(n.ints, &l.Conv, from.stride, above.ReLU)
			from.next, from.rows, next.stride = next.ints, 1, next.ints.outStride
		}
		if p := next.packed; p != nil {
			next.stride = p.outStride
			if n.bf16 != nil {
				for k := range p.blocks {
					p.blocks[k].weights = nil // not read any more
				}
			}
		}
		n.stages = append(n.stages, next)
		n.carry = max(n.carry, n.strip.lean*l.Skip)
	}
	for i := range net.Layers {
		if skip := net.Layers[i].Skip; skip > 0 {
			from := &n.stages[i+1-skip]
			from.rows = max(from.rows, skip+n.strip.rows)
		}
	}
	n.constants.stride = n.stages[1].stride
	n.scratch.New = func() any { return new(scratch) }
	return n, nil
}

// scratch is the memory of one sweep; a network keeps those that are idle.
type scratch struct {
	row    row
	ints   intRow
	round  quantizeRow
	band   winogradBand
	floats []float32
	halfs  []uint32
	bytes  []uint8
	scales []float32
	biases []float32 // of the first layer, see constants
	stages []stage   // with places for the present size
	zero   []float32
	spare  []float32 // a row that nobody reads
	zeros  []uint32
	none   byteWindow // x and scales of a row of zeros
	lo, hi []int      // columns of each stage in the present strip
}

// Forward implements kernels.Network.
func (n *network) Forward(dst, y, sigma []float32, width, height int, constants ...float32) error {
	if err := n.check("forward", dst, y, sigma, width, height, constants); err != nil {
		return err
	}
	n.forward(dst, y, sigma, width, height, constants, n.strip.columns, nil)
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
	n.forward(dst, y, sigma, width, height, constants, n.strip.columns, layers)
	return layers, nil
}

func (n *network) check(op string, dst, y, sigma []float32, width, height int, constants []float32) error {
	if most := n.constants.count; len(constants) > most {
		return &kernels.ShapeError{Op: op, What: "number of constants", Got: len(constants), Want: most}
	}
	return kernels.CheckImage(op, dst, y, sigma, width, height)
}

// cut cuts w columns into strips of about aim columns and returns the number of
// strips and their width. The last one is never empty.
func (s *strip) cut(w, aim int) (count, cols int) {
	count = max(1, (w+aim/2)/aim)
	cols = roundUp((w+count-1)/count, s.unit)
	return (w + cols - 1) / cols, cols
}

// forward computes a slice whose arguments have been checked. trace, if not
// nil, receives the output of every layer.
func (n *network) forward(dst, y, sigma []float32, width, height int, constants []float32, aim int, trace [][]float32) {
	w, h := (width+1)/2, (height+1)/2
	count, cols := n.strip.cut(w, aim)
	s := n.scratch.Get().(*scratch)
	defer n.scratch.Put(s)
	s.place(n, w-(count-1)*cols, cols, count, h)
	s.biases = n.constants.biases(s.biases, constants)

	last := len(n.stages) - 1
	for strip := range count {
		for i := range s.stages {
			s.lo[i] = max(0, strip*cols-n.strip.lean*i)
			s.hi[i] = max(0, (strip+1)*cols-n.strip.lean*i)
			if strip == count-1 {
				s.hi[i] = w
			}
		}
		rows := n.strip.rows
		for top := 0; top < h+last; top += rows {
			for i := max(0, top-h+1); i <= min(top+rows-1, last); i++ {
				first := top - i
				if s.stages[i].wino != nil {
					s.winograd(n, i, first, h)
				}
				for r := max(0, first); r < min(first+rows, h); r++ {
					st := &s.stages[i]
					body := s.line(i, r)[n.carry*st.stride:]
					lo, hi := s.lo[i], s.hi[i]
					if i == 0 {
						unshuffle(body, y, sigma, width, height, r, lo, hi)
					} else {
						s.layer(n, i, r, w, h)
						if trace != nil {
							planes(trace[i-1], body, st.channels, st.stride, w, h, r, lo, hi)
						}
					}
					if i == last {
						subtract(dst, y, body, st.stride, width, height, r, lo, hi)
						continue
					}
					s.settle(n, i, r, strip, count)
				}
			}
		}
	}
}

// layer computes row r of stage i from those before, unless winograd has.
func (s *scratch) layer(n *network, i, r, w, h int) {
	st := &s.stages[i]
	body := s.line(i, r)[n.carry*st.stride:]
	pixels := s.hi[i] - s.lo[i]
	switch res := s.residual(n, i, r); {
	case st.wino != nil:
	case st.ints != nil:
		st.ints.row(&s.ints, body, res, s.underBytes(i-1, r, h), pixels, st.stride)
	case i == 1 && s.biases != nil:
		s.head(n, body, res, s.under(0, r, h, s.left(n, i)), r, h, w, pixels)
	default:
		st.row(&s.row, body, res, s.under(i-1, r, h, s.left(n, i)), pixels)
	}
}

// left is where in a row of the stage before i the pixel lies that is left of the
// first of stage i.
func (s *scratch) left(n *network, i int) int {
	return (s.lo[i] - 1 - s.lo[i-1] + n.carry) * s.stages[i-1].stride
}

// residual is what is added to row r of stage i, or nil.
func (s *scratch) residual(n *network, i, r int) []float32 {
	st := &s.stages[i]
	if st.skip == 0 {
		return nil
	}
	return s.line(i-st.skip, r)[(s.lo[i]-s.lo[i-st.skip]+n.carry)*st.stride:]
}

// winograd computes the rows of stage i from first on, as many as are inside.
func (s *scratch) winograd(n *network, i, first, h int) {
	st := &s.stages[i]
	var y, res [winogradRows][]float32
	var x [winogradRows + 2][]float32
	for k := range y {
		if r := first + k; r >= 0 && r < h {
			y[k], res[k] = s.line(i, r)[n.carry*st.stride:], s.residual(n, i, r)
		} else {
			y[k], res[k] = s.spare, s.spare
		}
	}
	if st.skip == 0 {
		clear(res[:])
	}
	for k := range x {
		if r := first + k - 1; r >= 0 && r < h {
			x[k] = s.line(i-1, r)[s.left(n, i):]
		} else {
			x[k] = s.zero
		}
	}
	st.wino.band(&s.band, y, res, x, s.hi[i]-s.lo[i], st.stride)
}

// settle completes row r of stage i, which its layer has computed, by what lies
// beside it, and rounds it where that is what the next layer reads.
func (s *scratch) settle(n *network, i, r, strip, count int) {
	st := &s.stages[i]
	out := s.line(i, r)
	body := out[n.carry*st.stride:]
	pixels := s.hi[i] - s.lo[i]
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
		clear(body[pixels*st.stride:][:n.strip.margin*st.stride])
	}
	if n.bf16 != nil {
		n.bf16.row(s.half(i, r), out[:(n.carry+pixels+1)*st.stride])
	}
	if next := st.next; next != nil {
		x, scales := s.groups(i, r)
		from := out[(s.lo[i+1]-1-s.lo[i]+n.carry)*st.stride:]
		next.round(&s.round, n.ints.quantize, x, scales, from, (s.hi[i+1]-s.lo[i+1]+groupColumns-1)/groupColumns)
	}
}

// head computes a row of the first layer, whose bias differs along the border where
// there are constants.
func (s *scratch) head(n *network, y, res []float32, x window, r, h, w, pixels int) {
	st := &s.stages[1]
	lo, hi := s.lo[1], s.lo[1]+pixels
	for at := lo; at < hi; {
		to := hi
		switch {
		case at == 0:
			to = 1
		case at < w-1 && hi == w:
			to = w - 1
		}
		var under window
		for k := range x.x {
			if p := (at - lo) * inputStride; s.halfs != nil {
				under.halfs[k] = x.halfs[k][p/2:]
			} else {
				under.x[k] = x.x[k][p:]
			}
		}
		var add []float32
		if res != nil {
			add = res[(at-lo)*st.stride:]
		}
		bias := s.biases[border(r, h, at, w)*st.stride:][:st.stride]
		st.strided(&s.row, y[(at-lo)*st.stride:], add, under, bias, to-at, inputStride, st.stride)
		at = to
	}
}

// place lays the rows out for strips of cols columns, the last one lastCols.
func (s *scratch) place(n *network, lastCols, cols, count, h int) {
	if s.stages == nil {
		s.stages = append(s.stages, n.stages...)
		s.lo, s.hi = make([]int, len(n.stages)), make([]int, len(n.stages))
	}
	total, longest, halfs, bytes, scales, widest := 0, 0, 0, 0, 0, 0
	shared := 0 // the longest row of a stage that is read only as it is made
	for i := range s.stages {
		st := &s.stages[i]
		columns := lastCols
		if count > 1 {
			columns = max(cols, lastCols+n.strip.lean*i)
		}
		st.rowLen = roundUp((n.carry+columns+n.strip.margin)*st.stride, 16)
		if st.rows == 1 {
			shared = max(shared, st.rowLen)
		} else {
			st.ring = total
			total += st.rows * st.rowLen
		}
		if n.bf16 != nil {
			st.halfs = halfs
			halfs += 3 * st.rowLen / 2
		}
		if st.next != nil {
			st.groups = (columns+groupColumns-1)/groupColumns + 1
			st.bytes, st.groupScales = bytes, scales
			bytes += 3 * st.groups * groupPixels * st.stride
			scales += 3 * st.groups * 2
			widest = max(widest, st.groups*groupPixels*st.stride)
		}
		longest = max(longest, st.rowLen)
	}
	zero := total
	total += longest
	spare := total
	if n.wino != nil {
		total += longest
	}
	for i := range s.stages {
		st := &s.stages[i]
		if st.rows == 1 {
			st.ring = total
		}
	}
	total += shared
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
	if n.wino != nil {
		s.spare = s.floats[spare:][:longest]
	}
	if n.bf16 != nil {
		if need := halfs + longest/2; need > len(s.halfs) {
			s.halfs = aligned[uint32](need)
		}
		s.zeros = s.halfs[halfs:][:longest/2]
		clear(s.zeros)
	}
	if n.ints != nil {
		if need := bytes + widest; need > len(s.bytes) {
			s.bytes = aligned[uint8](need)
		}
		if need := scales + widest; need > len(s.scales) {
			s.scales = aligned[float32](need)
		}
		for k := range s.none.x { // a step of 0 makes any bytes zeros
			s.none.x[k], s.none.scales[k] = s.bytes[bytes:][:widest], s.scales[scales:][:widest]
			clear(s.none.scales[k])
		}
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

// groups is row r of stage i in bytes.
func (s *scratch) groups(i, r int) ([]uint8, []float32) {
	st := &s.stages[i]
	n := st.groups * groupPixels * st.stride
	return s.bytes[st.bytes+r%3*n:][:n], s.scales[st.groupScales+r%3*2*st.groups:][:2*st.groups]
}

// underBytes is what a convolution of row r reads of stage i in integers.
func (s *scratch) underBytes(i, r, h int) (x byteWindow) {
	for k := range x.x {
		if at := r + k - 1; at >= 0 && at < h {
			x.x[k], x.scales[k] = s.groups(i, at)
		} else {
			x.x[k], x.scales[k] = s.none.x[k], s.none.scales[k]
		}
	}
	return x
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
// 2 of kernels.Network, without the constants.
func unshuffle(x, y, sigma []float32, width, height, r, lo, hi int) {
	row0, row1 := 2*r*width, min(2*r+1, height-1)*width
	y0, y1 := y[row0:][:width], y[row1:][:width]
	s0, s1 := sigma[row0:][:width], sigma[row1:][:width]
	for c := lo; c < hi; c++ {
		a, b := 2*c, min(2*c+1, width-1)
		p := x[(c-lo)*inputStride:][:inputStride]
		p[0], p[1], p[2], p[3] = y0[a], y0[b], y1[a], y1[b]
		p[4] = (s0[a] + s0[b] + s1[a] + s1[b]) * (kernels.SigmaScale / 4.0)
		p[5], p[6], p[7] = 0, 0, 0
	}
}

// subtract writes the output for columns lo to hi of row r of the last layer:
// step 4 of kernels.Network.
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
