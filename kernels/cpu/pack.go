package cpu

import (
	"math"
	"unsafe"

	"github.com/diffdenoise/denoised/kernels"
)

// packed is a convolution in the layout of one instruction set.
//
// A pixel of the input is inStride floats, of which the first In count; a pixel
// of the output is outStride floats. Both are padded with channels whose weights
// are zero. The weights are cut into blocks of output channels; within a block
// they lie in the order in which the kernel consumes them, [ky][kx][in][block],
// so a row of three pixels of input is one contiguous run of taps.
type packed struct {
	inStride, outStride int
	floor               float32 // 0 for ReLU, else -Inf
	blocks              []packedBlock
}

type packedBlock struct {
	block
	at      int // first output channel
	weights []float32
	bias    []float32
}

// pack lays out the weights of c for pixels of inStride floats.
func pack(s *isa, c *kernels.Conv, inStride int) *packed {
	p := &packed{inStride: inStride, floor: float32(math.Inf(-1))}
	if c.ReLU {
		p.floor = 0
	}
	narrowest := s.blocks[len(s.blocks)-1].width
	for at := 0; at < c.Out; {
		b := s.blocks[0]
		for _, next := range s.blocks[1:] {
			if b.width > roundUp(c.Out-at, narrowest) {
				b = next
			}
		}
		pb := packedBlock{b, at, alignedFloats(9 * inStride * b.width), alignedFloats(b.width)}
		for o := range min(b.width, c.Out-at) {
			pb.bias[o] = c.Bias[at+o]
			for i := range c.In {
				for k := range 9 {
					pb.weights[(k*inStride+i)*b.width+o] = c.Weights[((at+o)*c.In+i)*9+k]
				}
			}
		}
		p.blocks = append(p.blocks, pb)
		at += b.width
		p.outStride = at
	}
	return p
}

// row is the work of one kernel call. It lives in a scratch area so that a call
// allocates nothing.
type row struct {
	y, res     []float32    // res may be nil
	x          [3][]float32 // the rows above, at and below, from the first tap on
	w, bias    []float32
	n          int // pixels
	taps       int // floats per row and pixel
	xs, ys     int // floats from one pixel to the next
	floor      float32
	rowPointer [3]*float32
}

// row computes n pixels of output. x0, x1 and x2 start one pixel before the
// pixel above, at and below y[0]; res, if not nil, is laid out as y.
func (p *packed) row(r *row, y, res, x0, x1, x2 []float32, n int) {
	if n == 0 {
		return
	}
	r.x = [3][]float32{x0, x1, x2}
	r.n, r.taps, r.xs, r.ys, r.floor = n, 3*p.inStride, p.inStride, p.outStride, p.floor
	for i := range p.blocks {
		b := &p.blocks[i]
		r.y, r.res = y[b.at:], nil
		if res != nil {
			r.res = res[b.at:]
		}
		r.w, r.bias = b.weights, b.bias
		r.check(b.width)
		b.run(r)
	}
}

// check panics unless all that a kernel of this width will touch lies within
// its slices: assembly has no bounds checks of its own.
func (r *row) check(width int) {
	last := (r.n-1)*r.xs + r.taps - 1
	_, _, _ = r.x[0][last], r.x[1][last], r.x[2][last]
	_ = r.y[(r.n-1)*r.ys+width-1]
	if r.res != nil {
		_ = r.res[(r.n-1)*r.ys+width-1]
	}
	_, _ = r.w[3*r.taps*width-1], r.bias[width-1]
}

func roundUp(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }

// alignedFloats returns n zeros that start at a cache line, so that no vector
// of weights straddles two.
func alignedFloats(n int) []float32 {
	const line = 16
	s := make([]float32, n+line)
	at := int(uintptr(unsafe.Pointer(unsafe.SliceData(s))) / 4 % line)
	return s[(line-at)%line:][:n:n]
}
