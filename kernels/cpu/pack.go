package cpu

import (
	"math"
	"unsafe"

	"github.com/diffdenoise/denoised/kernels"
)

// packed is a convolution in the layout of one instruction set.
//
// A pixel of the input is inStride floats, of which the first count; a pixel of
// the output is outStride floats. Both are padded with channels whose weights are
// zero. The weights are cut into blocks of output channels; within a block they
// lie in the order in which the kernel consumes them, [ky][kx][in][block], so a
// row of pixels of input under the window is one contiguous run of taps.
//
// Where the input is bf16, pairs are what the kernel reads: the weights of two
// neighbouring taps together, [ky][kx][in/2][block].
type packed struct {
	isa                 *isa
	shape               packShape
	inStride, outStride int
	floor, slope        float32 // of the activation
	blocks              []packedBlock
}

type packedBlock struct {
	block
	at      int // first output channel
	weights []float32
	pairs   []uint32 // nil for float32
	bias    []float32
}

// packShape says where the weights of a convolution lie: the one of output o,
// input i, row ky and column kx of the window is at base + o·so + i·si + ky·sy + kx·sx.
// So the same code packs a convolution and, with other strides, the one that takes
// the gradient of the output back to the input.
type packShape struct {
	in, out, ky, kx      int
	base, so, si, sy, sx int
}

// forwardShape is that of weights [out, in, size, size].
func forwardShape(in, out, size int) packShape {
	k := size * size
	return packShape{in: in, out: out, ky: size, kx: size, so: in * k, si: k, sy: size, sx: 1}
}

// backwardShape is that of the gradient towards the input, for stride 1: the
// window is turned by half a turn and input and output change places.
func backwardShape(in, out, size int) packShape {
	k := size * size
	return packShape{in: out, out: in, ky: size, kx: size, base: k - 1, so: k, si: in * k, sy: -size, sx: -1}
}

// newPacked makes room for the weights of s.
func newPacked(isa *isa, s packShape, inStride int, a kernels.Activation) *packed {
	p := &packed{isa: isa, shape: s, inStride: inStride, floor: float32(math.Inf(-1))}
	switch a {
	case kernels.ReLU:
		p.floor = 0
	case kernels.LeakyReLU:
		p.slope = kernels.LeakySlope
	}
	narrowest := isa.blocks[len(isa.blocks)-1].width
	for at := 0; at < s.out; {
		b := isa.blocks[0]
		for _, next := range isa.blocks[1:] {
			if b.width > roundUp(s.out-at, narrowest) {
				b = next
			}
		}
		n := s.ky * s.kx * inStride * b.width
		next := packedBlock{block: b, at: at, weights: aligned[float32](n), bias: aligned[float32](b.width)}
		if isa.bf16 != nil {
			next.pairs = aligned[uint32](n / 2)
		}
		p.blocks = append(p.blocks, next)
		at += b.width
		p.outStride = at
	}
	return p
}

// set lays out weights and bias; a nil bias is zero. scale, if not nil, multiplies
// weights and bias of each output, and offset is added to its bias. Who is done with
// the weights calls finish.
func (p *packed) set(weights, bias, scale, offset []float32) {
	s := &p.shape
	for k := range p.blocks {
		b := &p.blocks[k]
		n := min(b.width, s.out-b.at)
		for o := range n {
			if bias != nil {
				b.bias[o] = bias[b.at+o]
			}
			if scale != nil {
				b.bias[o] = b.bias[o]*scale[b.at+o] + offset[b.at+o]
			}
		}
		for ky := range s.ky {
			for kx := range s.kx {
				from := s.base + b.at*s.so + ky*s.sy + kx*s.sx
				to := b.weights[(ky*s.kx+kx)*p.inStride*b.width:]
				for i := range s.in {
					row, at := to[i*b.width:][:n], from+i*s.si
					for o := range row {
						row[o] = weights[at]
						at += s.so
					}
					if scale != nil {
						for o := range row {
							row[o] *= scale[b.at+o]
						}
					}
				}
			}
		}
	}
}

// finish rounds or moves weights that set has laid out, where the kernels want them so.
func (p *packed) finish() {
	for k := range p.blocks {
		if b := &p.blocks[k]; b.lanes != 0 {
			from := b.weights
			b.weights = aligned[float32](len(from))
			for i, v := range from {
				tap, o := i/b.width, i%b.width
				b.weights[(tap/b.lanes*b.width+o)*b.lanes+tap%b.lanes] = v
			}
		}
	}
	if p.isa.bf16 == nil {
		return
	}
	for k := range p.blocks {
		b := &p.blocks[k]
		p.isa.bf16.weights(b.pairs, b.weights, b.width)
	}
}

// packConv lays out the weights of c for pixels of inStride floats.
func packConv(isa *isa, c *kernels.Conv, inStride int) *packed {
	a := kernels.Linear
	if c.ReLU {
		a = kernels.ReLU
	}
	p := newPacked(isa, forwardShape(c.In, c.Out, 3), inStride, a)
	p.set(c.Weights, c.Bias, nil, nil)
	p.finish()
	return p
}

// row is the work of one kernel call. It lives in a scratch area so that a call
// allocates nothing.
type row struct {
	y, res       []float32 // res may be nil
	window                 // the rows under the window, from the first tap on
	w, bias      []float32
	pairs        []uint32 // of weights, for kernels of bf16
	n            int      // pixels
	rows         int      // of the window, 1 to 3
	taps         int      // numbers per row and pixel
	xs, ys       int      // numbers from one pixel to the next
	floor, slope float32
	rowPointer   [3]*float32
	pairPointer  [3]*uint32
	tiles        tileScratch
}

// window is the rows of input under a window, in the numbers that the instruction
// set computes with.
type window struct {
	x     [3][]float32
	halfs [3][]uint32 // pairs of bf16
}

// row computes n pixels of output. x are the rows under the window, at the first
// tap of y[0]; res, if not nil, is laid out as y.
func (p *packed) row(r *row, y, res []float32, x window, n int) {
	p.strided(r, y, res, x, nil, n, p.inStride, p.outStride)
}

// strided is row with other distances from one pixel to the next, in numbers, and, if
// it is not nil, another bias, [outStride].
func (p *packed) strided(r *row, y, res []float32, x window, bias []float32, n, xs, ys int) {
	if n == 0 {
		return
	}
	r.window = x
	r.n, r.rows, r.taps, r.xs, r.ys = n, p.shape.ky, p.shape.kx*p.inStride, xs, ys
	r.floor, r.slope = p.floor, p.slope
	for i := range p.blocks {
		b := &p.blocks[i]
		r.y, r.res = y[b.at:], nil
		if res != nil {
			r.res = res[b.at:]
		}
		r.w, r.pairs, r.bias = b.weights, b.pairs, b.bias
		if bias != nil {
			r.bias = bias[b.at:]
		}
		r.check(b.width)
		b.run(r)
	}
}

// check panics unless all that a kernel of this width will touch lies within
// its slices: assembly has no bounds checks of its own.
func (r *row) check(width int) {
	last := (r.n-1)*r.xs + r.taps - 1
	if r.pairs != nil {
		for _, x := range r.halfs[:r.rows] {
			_ = x[last/2]
		}
		_ = r.pairs[r.rows*r.taps/2*width-1]
	} else {
		for _, x := range r.x[:r.rows] {
			_ = x[last]
		}
		_ = r.w[r.rows*r.taps*width-1]
	}
	_ = r.y[(r.n-1)*r.ys+width-1]
	if r.res != nil {
		_ = r.res[(r.n-1)*r.ys+width-1]
	}
	_ = r.bias[width-1]
}

// gradRows is the work of one call of a kernel for the gradient of weights: for
// every tap t and channel o of a block it adds the sum over h rows and n pixels of
// x[r·xrow+p·xs+t] · dy[r·yrow+p·ys+o] to dw[t·dws+o].
type gradRows struct {
	dw, x, dy  []float32
	n, h, taps int
	xs, xrow   int // floats
	ys, yrow   int
	dws        int
}

// check is as that of row.
func (g *gradRows) check(width int) {
	_ = g.x[(g.h-1)*g.xrow+(g.n-1)*g.xs+g.taps-1]
	_ = g.dy[(g.h-1)*g.yrow+(g.n-1)*g.ys+width-1]
	_ = g.dw[(g.taps-1)*g.dws+width-1]
}

func roundUp(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }

// aligned returns n zeros that start at a cache line, so that no vector of weights
// straddles two.
func aligned[T float32 | uint32 | int32 | int8 | uint8](n int) []T {
	size := int(unsafe.Sizeof(T(0)))
	line := 64 / size
	s := make([]T, n+line)
	at := int(uintptr(unsafe.Pointer(unsafe.SliceData(s)))) / size % line
	return s[(line-at)%line:][:n:n]
}
