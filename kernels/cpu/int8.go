package cpu

import (
	"math"

	"github.com/diffdenoise/denoised/kernels"
)

// Layers of integers compute in groups of columns that begin at multiples of
// groupColumns: a group of one row has one scale, that of its largest number, and is
// kept with the pixel on either side of it.
const (
	groupColumns = 14
	groupPixels  = groupColumns + 2
	tileColumns  = groupColumns / 2 // what a kernel computes at once, or two of them
)

// integers is how an instruction set that multiplies bytes computes the inner layers
// of a network: weights are rounded to int8 once, activations to uint8 row by row,
// sums are int32, and what is added over rows of the window and layers stays float32.
//
// No sum overflows: the largest is MaxChannels·3·255·127, a tenth of the largest int32.
type integers struct {
	lanes  int        // of the vectors in which the kernels want offsets
	blocks []intBlock // widest first; each width is a multiple of lanes
	// quantize rounds a row of floats.
	quantize func(*quantizeRow)
	// tail is the set of the last layer, which has few outputs.
	tail func() isa
}

type intBlock struct {
	width int // output channels
	run   func(*intRow)
}

// intConv is a convolution in integers. The bytes of a pixel of its input are as many
// as the floats, those of padding channels the zero.
type intConv struct {
	stride, outStride int  // channels of a pixel, with padding
	positive          bool // the input is never below 0
	floor             float32
	blocks            []packedIntBlock
}

type packedIntBlock struct {
	intBlock
	at       int       // first output channel
	weights  []int8    // [3][3·stride/4][width][4]
	offsets  []int32   // [width/lanes][3][lanes]: what the zero of the input adds to the sum of a row
	channels []float32 // [2][width]: what a step of the weights is worth, bias
}

// zero is the byte of a 0, and top the steps from there to the largest number.
func (c *intConv) zero() (zero, top int) {
	if c.positive {
		return 0, 255
	}
	return 128, 127
}

// packInts rounds the weights of a convolution of 3×3 for pixels of stride channels.
func packInts(set *integers, c *kernels.Conv, stride int, positive bool) *intConv {
	p := &intConv{stride: stride, positive: positive, floor: float32(math.Inf(-1))}
	if c.ReLU {
		p.floor = 0
	}
	narrowest := set.blocks[len(set.blocks)-1].width
	for at := 0; at < c.Out; at = p.outStride {
		b := set.blocks[0]
		for _, next := range set.blocks[1:] {
			if b.width > roundUp(c.Out-at, narrowest) {
				b = next
			}
		}
		next := packedIntBlock{
			intBlock: b, at: at,
			weights: aligned[int8](9 * stride * b.width),
			offsets: aligned[int32](3 * b.width), channels: aligned[float32](2 * b.width),
		}
		for o := range min(b.width, c.Out-at) {
			next.set(c, o, stride, set.lanes)
			next.channels[b.width+o] = c.Bias[at+o]
		}
		if zero, _ := p.zero(); zero != 0 {
			for i := range next.offsets {
				next.offsets[i] *= -int32(zero)
			}
		} else {
			clear(next.offsets)
		}
		p.blocks = append(p.blocks, next)
		p.outStride = at + b.width
	}
	return p
}

// widen returns c with outputs that are 0, so that their number is a multiple of lanes.
func widen(c *kernels.Conv, lanes int) *kernels.Conv {
	out := roundUp(c.Out, lanes)
	if out == c.Out {
		return c
	}
	w := *c
	w.Out = out
	w.Weights, w.Bias = make([]float32, out*c.In*9), make([]float32, out)
	copy(w.Weights, c.Weights)
	copy(w.Bias, c.Bias)
	return &w
}

// snake is a way through the window from neighbour to neighbour.
var snake = [9]int{0, 1, 2, 5, 4, 3, 6, 7, 8}

// set rounds the weights of output o of the block. What rounding takes from one
// weight its neighbour in the window is given: what the window adds up to, which all
// that is smooth in an image sees, is then off by half a step at most. Sums of
// weights go to offsets.
func (b *packedIntBlock) set(c *kernels.Conv, o, stride, lanes int) {
	from := c.Weights[(b.at+o)*c.In*9:][:c.In*9]
	largest := float32(0)
	for _, w := range from {
		largest = max(largest, w, -w)
	}
	if largest == 0 {
		return
	}
	step := float64(largest) / 127
	b.channels[o] = float32(step)
	for i := range c.In {
		rest := 0.0
		for _, k := range snake {
			want := float64(from[9*i+k])/step + rest
			v := min(max(math.RoundToEven(want), -127), 127)
			rest = want - v
			tap := k/3*3*stride + k%3*stride + i
			b.weights[(tap/4*b.width+o)*4+tap%4] = int8(v)
			b.offsets[o/lanes*3*lanes+k/3*lanes+o%lanes] += int32(v)
		}
	}
}

// intRow is the work of one kernel call on integers.
type intRow struct {
	y, res       []float32 // res may be nil
	byteWindow             // the rows under the window, from a group on
	w            []int8
	offsets      []int32
	channels     []float32
	tiles        int // of seven pixels, two in a group
	stride, ys   int // channels from one pixel to the next, of x and of y
	floor        float32
	bytePointer  [3]*uint8
	scalePointer [3]*float32
	sums         []int32 // between two kernels, for sets that have two
}

// byteWindow is the rows of input under a window. The scales are what a step is
// worth in each tile.
type byteWindow struct {
	x      [3][]uint8
	scales [3][]float32
}

// row computes n pixels of output, and up to six more that y and res have room for.
func (c *intConv) row(r *intRow, y, res []float32, x byteWindow, n, ys int) {
	if n == 0 {
		return
	}
	r.byteWindow = x
	r.tiles, r.stride, r.ys, r.floor = (n+tileColumns-1)/tileColumns, c.stride, ys, c.floor
	for i := range c.blocks {
		b := &c.blocks[i]
		r.y, r.res = y[b.at:], nil
		if res != nil {
			r.res = res[b.at:]
		}
		r.w, r.offsets, r.channels = b.weights, b.offsets, b.channels
		r.check(b.width)
		b.run(r)
	}
}

// check is as that of row.
func (r *intRow) check(width int) {
	groups := (r.tiles + 1) / 2
	for k := range r.x {
		_ = r.x[k][groups*groupPixels*r.stride-1]
		_ = r.scales[k][r.tiles-1]
	}
	_ = r.w[9*r.stride*width-1]
	_ = r.offsets[3*width-1]
	_ = r.channels[2*width-1]
	last := (r.tiles*tileColumns-1)*r.ys + width - 1
	_ = r.y[last]
	if r.res != nil {
		_ = r.res[last]
	}
}

// quantizeRow is the work of rounding a row to groups of bytes: the largest number of
// a group is top steps from zero.
type quantizeRow struct {
	dst       []uint8   // [groups][groupPixels][channels]
	scales    []float32 // [2·groups], what a step is worth in each tile
	src       []float32 // [groups·groupColumns+2][channels]
	groups    int
	channels  int
	zero, top int
}

// check is as that of row.
func (q *quantizeRow) check() {
	_ = q.dst[q.groups*groupPixels*q.channels-1]
	_ = q.scales[2*q.groups-1]
	_ = q.src[(q.groups*groupColumns+2)*q.channels-1]
}

// roundMagic has steps of 1 in its last bits, so that adding it rounds.
const roundMagic = 3 << 22

// round rounds the groups that begin with src's second pixel.
func (c *intConv) round(q *quantizeRow, run func(*quantizeRow), dst []uint8, scales, src []float32, groups int) {
	if groups == 0 {
		return
	}
	q.zero, q.top = c.zero()
	q.dst, q.scales, q.src, q.groups, q.channels = dst, scales, src, groups, c.stride
	q.check()
	run(q)
}
