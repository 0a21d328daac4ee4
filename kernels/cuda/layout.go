//go:build cuda && linux

package cuda

import (
	"fmt"

	"github.com/diffdenoise/denoised/kernels/arena"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/cuda/kernel"
)

// layout is a plan in the making: what lies where in its memory, and the launches, in order, for count
// samples. A value that has been read for the last time is given back, and others take its place.
type layout struct {
	b     *Backend
	res   *resident
	count int

	free    freeList
	base    driver.Ptr // of the memory, set before anything is launched
	inputs  []span
	shifts  span // the one of them that has integers
	in, out span // what is copied to the device before a run, and from it afterwards

	steps []step
	first []step // what a plan for sampling does once, before it repeats the steps
}

// step is one launch.
type step struct {
	cost
	run launch
}

// launch enqueues work.
type launch func(on *driver.Stream) error

// cost is what a launch must do at least: it reads its inputs and writes its output once, and computes
// nothing twice. flop counts two for each multiply-add of a convolution.
type cost struct {
	kernel      string
	flop, bytes float64
}

// moves is the cost of a launch that is all memory.
func moves(kernel string, spans ...span) cost {
	c := cost{kernel: kernel}
	for _, s := range spans {
		c.bytes += float64(s.bytes)
	}
	return c
}

// span is a range of the memory of a plan, in bytes. The zero value is none.
type span struct{ at, bytes int }

// tensor is a value: halves [sample, height, width, channels rounded up to a multiple of 16], or, for a
// vector, float32 [sample, channels], with the samples stride numbers apart.
type tensor struct {
	span
	height, width, channels int
	vector                  bool
	stride                  int
}

// parts returns how many times 8 channels a pixel has room for.
func (t tensor) parts() int { return 2 * chunksOf(t.channels) }

func newLayout(b *Backend, r *resident, count int) *layout {
	return &layout{b: b, res: r, count: count}
}

// address is that of a span, 0 if it is none.
func (l *layout) address(s span) driver.Ptr {
	if s.bytes == 0 {
		return 0
	}
	return l.base + driver.Ptr(s.at)
}

func (l *layout) add(c cost, f launch) { l.steps = append(l.steps, step{c, f}) }

// input places n numbers that each run is given. All inputs come before anything else.
func (l *layout) input(n int) span {
	s := l.free.take(4 * n)
	l.in.bytes = s.at + s.bytes
	l.inputs = append(l.inputs, s)
	return s
}

// output places n numbers that each run gives. There is one output.
func (l *layout) output(n int) span {
	l.out = l.free.take(4 * n)
	l.out.bytes = 4 * n // what fills it up to the next place is never written
	return l.out
}

func (l *layout) give(s span) { l.free.give(s) }

// tensor places a value.
func (l *layout) tensor(height, width, channels int) tensor {
	t := tensor{height: height, width: width, channels: channels}
	t.span = l.free.take(2 * l.count * height * width * kernel.GroupChannels * chunksOf(channels))
	return t
}

// vector places a vector.
func (l *layout) vector(channels int) tensor {
	return asVector(l.free.take(4*l.count*channels), channels)
}

// asVector is the vector in a span.
func asVector(s span, channels int) tensor {
	return tensor{span: s, height: 1, width: 1, channels: channels, vector: true, stride: channels}
}

// opGrid is the grid of operations on n things of each sample.
func opGrid(n, samples int) [3]int {
	return [3]int{(n + kernel.OpThreads - 1) / kernel.OpThreads, 1, samples}
}

var opBlock = [3]int{kernel.OpThreads, 1, 1}

// grid is that of an operation that makes t.
func (l *layout) grid(t tensor) [3]int { return opGrid(t.height*t.width*t.parts(), l.count) }

// round makes a tensor of numbers [sample, height, width, channels].
func (l *layout) round(from span, height, width, channels int) tensor {
	t := l.tensor(height, width, channels)
	l.add(moves("op_import", from, t.span), func(on *driver.Stream) error {
		return l.b.kernels.OpImport(on, l.grid(t), opBlock, 0, l.address(from), l.address(t.span), height, width, channels, t.parts())
	})
	return t
}

// widen writes a tensor as numbers [sample, height, width, channels].
func (l *layout) widen(t tensor, to span) {
	pixels := l.count * t.height * t.width
	l.add(moves("op_export", t.span, to), func(on *driver.Stream) error {
		return l.b.kernels.OpExport(on, opGrid(pixels*t.channels, 1), opBlock, 0, l.address(t.span), l.address(to), pixels, t.channels, t.parts())
	})
}

// convolution is what a launch of a convolution needs. Of y and dense one is given.
type convolution struct {
	weights
	size, top int
	up        int // 1: the first source is doubled in size
	slope     float32
	x         [2]tensor // the second may be none
	film      tensor    // or none
	residual  span      // or none
	y         tensor    // what it makes, as halves
	dense     span      // or as numbers
	height    int       // of what it makes
	width     int
}

// convolve adds the cost of a convolution that makes so many pixels.
func (c *cost) convolve(w *weights, size, pixels int) {
	taps := size * size
	c.flop += 2 * float64(w.in*w.out*taps) * float64(pixels)
	c.bytes += float64(2 * w.groups * (w.chunks[0] + w.chunks[1]) * taps * kernel.GroupChannels * kernel.GroupChannels)
}

// maxGroups is the most groups of 16 output channels that a block of threads computes.
const maxGroups = 4

// convolutionKernel is a kernel of conv.cu.
type convolutionKernel func(on *driver.Stream, grid, block [3]int, shared int, x0, x1, weights, bias, film, residual, y, dense driver.Ptr,
	height, width, chunks0, chunks1, out, window, up, filmStride int, slope float32) error

// convolutionKernels returns those for a size of the window, by the groups that a block computes, less 1.
func convolutionKernels(k *kernel.Set, size int) [maxGroups]convolutionKernel {
	if size == 3 {
		return [...]convolutionKernel{k.Conv31, k.Conv32, k.Conv33, k.Conv34}
	}
	return [...]convolutionKernel{k.Point1, k.Point2, k.Point3, k.Point4}
}

// tiles returns how many rectangles cover an image.
func tiles(height, width, rows, columns int) int {
	return (height + rows - 1) / rows * ((width + columns - 1) / columns)
}

// share returns how many groups of outputs a block of threads is to compute: as many as it can, since it
// then reads its input once, but fewer if there would not be a block for each multiprocessor.
func (l *layout) share(w *weights, tiles int) int {
	n := w.perBlock
	for n > 1 && tiles*l.count*(w.groups/n) < l.b.info.SMs {
		n--
		for w.groups%n != 0 {
			n--
		}
	}
	return n
}

// convolve adds a convolution.
func (l *layout) convolve(c convolution) {
	window, blocks := c.top, tiles(c.height, c.width, kernel.ConvRows, kernel.ConvColumns)
	if c.size != 3 {
		window, blocks = c.size, (c.height*c.width+kernel.PointPixels-1)/kernel.PointPixels
	}
	share := l.share(&c.weights, blocks)
	f := convolutionKernels(l.b.kernels, c.size)[share-1]
	grid := [3]int{blocks, c.groups / share, l.count}
	name := "conv3"
	if c.size != 3 {
		name = "point"
	}
	k := moves(fmt.Sprint(name, "_", share), c.x[0].span, c.x[1].span, c.residual, c.y.span, c.dense)
	k.convolve(&c.weights, c.size, l.count*c.height*c.width)
	l.add(k, func(on *driver.Stream) error {
		return f(on, grid, [3]int{kernel.ConvThreads, 1, 1}, 0,
			l.address(c.x[0].span), l.address(c.x[1].span), l.res.at(c.weights.weights), l.res.at(c.bias),
			l.address(c.film.span), l.address(c.residual), l.address(c.y.span), l.address(c.dense),
			c.height, c.width, c.chunks[0], c.chunks[1], c.weights.out, window, c.up, c.film.stride, c.slope)
	})
}

// freeList lays a memory out in spans.
type freeList struct{ arena.List }

// alignment of all that a freeList hands out.
const alignment = 256

func (f *freeList) take(bytes int) span {
	f.Align = alignment
	return span{f.Take(bytes), f.Size(bytes)}
}

func (f *freeList) give(s span) { f.Give(s.at, s.bytes) }
