package cpu

import (
	"math"

	"github.com/diffdenoise/denoised/kernels"
)

// winogradRows is how many rows and columns of output a tile of F(4×4, 3×3) has. It
// takes six of input.
const winogradRows = 4

// winograd is how an instruction set computes the inner layers of a network by
// F(4×4, 3×3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
// 2016): 36 multiplications for each weight where there are 144. Tiles of stage s begin
// s rows above multiples of four, and at multiples of four columns of the image.
type winograd struct {
	lanes  int // of a vector: channels of a pixel are multiples of it
	tiles  int // that blocks multiply at once
	input  func(r *winogradBand, n int)
	blocks []winogradBlock // widest first
}

type winogradBlock struct {
	width    int
	products func(r *winogradBand)
	output   func(r *winogradBand, n int)
}

// winogradConv is a convolution for winograd.
type winogradConv struct {
	set               *winograd
	stride, outStride int
	floor             float32
	blocks            []packedWinogradBlock
}

type packedWinogradBlock struct {
	winogradBlock
	at      int       // first output channel
	weights []float32 // [36][stride][width]
	bias    []float32
}

// winogradPad is a cache line, so that the 36 numbers of a tile do not share sets of the
// cache.
const winogradPad = 16

// winogradG is the matrix that transforms three weights to six.
var winogradG = [6][3]float64{
	{1.0 / 4, 0, 0},
	{-1.0 / 6, -1.0 / 6, -1.0 / 6},
	{-1.0 / 6, 1.0 / 6, -1.0 / 6},
	{1.0 / 24, 1.0 / 12, 1.0 / 6},
	{1.0 / 24, -1.0 / 12, 1.0 / 6},
	{0, 0, 1},
}

// packWinograd transforms the weights of c for pixels of stride floats.
func packWinograd(set *winograd, c *kernels.Conv, stride int) *winogradConv {
	p := &winogradConv{set: set, stride: stride, floor: float32(math.Inf(-1))}
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
		next := packedWinogradBlock{winogradBlock: b, at: at, weights: aligned[float32](36 * stride * b.width),
			bias: aligned[float32](b.width)}
		for o := range min(b.width, c.Out-at) {
			next.bias[o] = c.Bias[at+o]
			for i := range c.In {
				w := c.Weights[((at+o)*c.In+i)*9:][:9]
				for r, gr := range winogradG {
					for k, gk := range winogradG {
						sum := 0.0
						for ky := range 3 {
							for kx := range 3 {
								sum += gr[ky] * gk[kx] * float64(w[3*ky+kx])
							}
						}
						next.weights[((6*r+k)*stride+i)*b.width+o] = float32(sum)
					}
				}
			}
		}
		p.blocks = append(p.blocks, next)
		p.outStride = at + b.width
	}
	return p
}

// winogradBand is the work of four rows of output. It lives in a scratch area.
type winogradBand struct {
	y, res               [winogradRows][]float32     // res[0] may be nil
	x                    [winogradRows + 2][]float32 // from the pixel left of the first one
	stride, ys           int
	floor                float32
	u, bias              []float32
	v, m, tmp            []float32 // [36][tiles][stride], [36][tiles][width], of one tile
	yPointer, resPointer [winogradRows]*float32
	xPointer             [winogradRows + 2]*float32
}

// band computes n columns of four rows, and up to three more that rows have room for.
func (c *winogradConv) band(r *winogradBand, y, res [winogradRows][]float32, x [winogradRows + 2][]float32, n, ys int) {
	if n == 0 {
		return
	}
	widest := c.set.blocks[0].width
	if need := 36 * (c.set.tiles*c.stride + winogradPad); len(r.v) < need {
		r.v = aligned[float32](need)
	}
	if r.m == nil {
		r.m, r.tmp = aligned[float32](36*(c.set.tiles*widest+winogradPad)), aligned[float32](36*c.set.lanes)
	}
	r.stride, r.ys, r.floor = c.stride, ys, c.floor
	all := (n + winogradRows - 1) / winogradRows
	for first := 0; first < all; first += c.set.tiles {
		tiles := min(c.set.tiles, all-first)
		at := first * winogradRows
		for k := range x {
			r.x[k] = x[k][at*c.stride:]
		}
		r.checkInput(tiles)
		c.set.input(r, tiles)
		for i := range c.blocks {
			b := &c.blocks[i]
			r.u, r.bias = b.weights, b.bias
			for k := range y {
				r.y[k], r.res[k] = y[k][at*ys+b.at:], nil
				if res[0] != nil {
					r.res[k] = res[k][at*ys+b.at:]
				}
			}
			r.checkOutput(tiles, b.width)
			b.products(r)
			b.output(r, tiles)
		}
	}
}

// checkInput and checkOutput are as check of row.
func (r *winogradBand) checkInput(tiles int) {
	for _, x := range r.x {
		_ = x[(tiles*winogradRows+2)*r.stride-1]
	}
}

func (r *winogradBand) checkOutput(tiles, width int) {
	last := (tiles*winogradRows-1)*r.ys + width - 1
	for k := range r.y {
		_ = r.y[k][last]
		if r.res[0] != nil {
			_ = r.res[k][last]
		}
	}
	_ = r.u[36*r.stride*width-1]
	_ = r.bias[width-1]
}
