//go:build cuda && linux

package cuda

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/cuda/kernel"
	"github.com/diffdenoise/denoised/kernels/internal/chain"
)

// network is a chain.Net on the device.
type network struct {
	b         *Backend
	res       *resident
	layers    []layer
	constants int
	queue
}

type layer struct {
	weights
	slope float32
	skip  int // as chain.Layer.Skip
	last  int // the last layer that reads what this one gives
	// block tells that this layer and the next are a residual block, which one kernel computes.
	block bool
}

// Load implements kernels.Backend. What the network has on the device is released after the garbage
// collector has found that it is not used any more.
func (b *Backend) Load(g *kernels.Graph, params [][]float32) (kernels.Network, error) {
	const op = "load network"
	net, err := chain.Of(g, params)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if err := b.usable(); err != nil {
		return nil, err
	}
	n := &network{b: b, constants: net.Constants}
	n.queue.init()
	var s store
	for i := range net.Layers {
		l := &net.Layers[i]
		given, in := l.Weights, l.In
		if i == 0 {
			given, in = withRests(&l.Conv), l.In+inputPixels
		}
		w, err := s.conv(given, l.Bias, l.Out, [2]int{in, 0}, 3)
		if err != nil {
			return nil, fmt.Errorf("%s: layer %d: %w", op, i, err)
		}
		w.in = l.In
		slope := kernels.Linear.Slope()
		if l.ReLU {
			slope = kernels.ReLU.Slope()
		}
		n.layers = append(n.layers, layer{weights: w, slope: slope, skip: l.Skip, last: i + 1})
		if l.Skip > 0 {
			n.layers[i-l.Skip].last = i
		}
	}
	for i := 1; i+2 < len(n.layers); i++ {
		a, c := &n.layers[i], &n.layers[i+1]
		a.block = !n.layers[i-1].block && a.slope == 0 && a.skip == 0 && a.last == i+1 &&
			c.slope == 1 && c.skip == 2 && a.out == c.out && chunksOf(a.out) <= maxGroups
	}
	if n.res, err = b.load(&s); err != nil {
		return nil, b.explained(op, err)
	}
	runtime.AddCleanup(n, func(r *resident) { r.release() }, n.res)
	return n, nil
}

// inputPixels is the pixels that the first layer sees as one. As network.cu makes them, what rounding has
// taken from them lies between the other kernels.NetIn channels and the constants.
const inputPixels = 4

// The kernels have room for exactly all constants.
var _ = [1]struct{}{}[kernel.Constants-kernels.MaxConstants]

// withRests returns the weights of a first layer, [out, in + inputPixels, 3, 3], with those of the pixels
// for their rests, too.
func withRests(l *kernels.Conv) []float32 {
	const taps = 9
	var w []float32
	for o := range l.Out {
		from := l.Weights[o*l.In*taps:][:l.In*taps]
		w = append(w, from[:kernels.NetIn*taps]...)
		w = append(w, from[:inputPixels*taps]...)
		w = append(w, from[kernels.NetIn*taps:]...)
	}
	return w
}

// The inputs of a plan, as numbers in layout.inputs: images, their noise at half resolution as the
// network sees it, and kernel.Constants of each.
const (
	inputImage = iota
	inputNoise
	inputConstants
)

// layout is count images of a size through all layers. The result takes the place of the images.
func (n *network) layout(height, width, count int) *layout {
	l := newLayout(n.b, n.res, count)
	h, w := (height+1)/2, (width+1)/2
	l.out = l.input(count * height * width)
	l.input(count * h * w)
	l.input(count * kernel.Constants)
	last := len(n.layers) - 1
	values := make([]tensor, last) // of each layer but the last
	var x tensor                   // the input of layer i
	fused := last > 0 && n.layers[0].chunks[0] == 1
	if !fused {
		x = l.netInput(&n.layers[0], height, width)
	}
	for i := 0; i < last; i++ {
		k := &n.layers[i]
		switch {
		case i == 0 && fused:
			x = l.head(k, height, width)
		case k.block:
			i++
			y := l.tensor(h, w, k.out)
			l.block(k, &n.layers[i], x, y)
			x = y
		default:
			y := l.tensor(h, w, k.out)
			l.convolve(n.convolution(i, x, values, y))
			if i == 0 {
				l.give(x.span)
			}
			x = y
		}
		values[i] = x
		for v := range i {
			if n.layers[v].last <= i && values[v].bytes > 0 {
				l.give(values[v].span)
				values[v] = tensor{}
			}
		}
	}
	l.tail(&n.layers[last], x, n.residual(last, values), height, width)
	return l
}

// convolution is layer i by itself.
func (n *network) convolution(i int, x tensor, values []tensor, y tensor) convolution {
	k := &n.layers[i]
	return convolution{weights: k.weights, size: 3, top: 1, slope: k.slope, x: [2]tensor{x}, residual: n.residual(i, values),
		y: y, height: x.height, width: x.width}
}

// residual is what layer i adds, if anything.
func (n *network) residual(i int, values []tensor) span {
	if skip := n.layers[i].skip; skip > 0 {
		return values[i-skip].span
	}
	return span{}
}

// netInput makes what the first layer reads.
func (l *layout) netInput(k *layer, height, width int) tensor {
	h, w := (height+1)/2, (width+1)/2
	chunks := k.chunks[0]
	t := l.tensor(h, w, k.in+inputPixels)
	l.add(moves("net_input", l.inputs[inputImage], l.inputs[inputNoise], t.span), func(on *driver.Stream) error {
		return l.b.kernels.NetInput(on, [3]int{(h*w + 255) / 256, l.count, 1}, [3]int{256, 1, 1}, 0,
			l.address(l.inputs[inputImage]), l.address(l.inputs[inputNoise]), l.address(l.inputs[inputConstants]),
			l.address(t.span), height, width, chunks)
	})
	return t
}

// head is the first layer, from the images on, where what that reads is one chunk.
func (l *layout) head(k *layer, height, width int) tensor {
	y := l.tensor((height+1)/2, (width+1)/2, k.out)
	blocks := tiles(y.height, y.width, kernel.ConvRows, kernel.ConvColumns)
	share := l.share(&k.weights, blocks)
	f := [...]func(on *driver.Stream, grid, block [3]int, shared int, y, noise, constants, weights, bias, out driver.Ptr, H, W, channels int, slope float32) error{
		l.b.kernels.NetHead1, l.b.kernels.NetHead2, l.b.kernels.NetHead3, l.b.kernels.NetHead4}[share-1]
	c := *k
	head := moves(fmt.Sprint("net_head_", share), l.inputs[inputImage], l.inputs[inputNoise], y.span)
	head.convolve(&c.weights, 3, l.count*y.height*y.width)
	l.add(head, func(on *driver.Stream) error {
		return f(on, [3]int{blocks, c.groups / share, l.count}, [3]int{kernel.ConvThreads, 1, 1}, 0,
			l.address(l.inputs[inputImage]), l.address(l.inputs[inputNoise]), l.address(l.inputs[inputConstants]),
			l.res.at(c.weights.weights), l.res.at(c.bias), l.address(y.span), height, width, c.out, c.slope)
	})
	return y
}

// blockKernel is a kernel of a residual block.
type blockKernel func(on *driver.Stream, grid, block [3]int, shared int, x, y, weightsA, biasA, weightsB, biasB driver.Ptr, height, width, channels int) error

// blockShape is one of the two sizes that blocks of threads of a residual block have.
type blockShape struct {
	name          string // of its kernels, before the number of chunks of channels
	rows, threads int
	shared        int // bytes for each chunk
	kernels       func(k *kernel.Set) [maxGroups]blockKernel
}

// blockShapes has the larger one first, which computes less twice.
var blockShapes = [...]blockShape{
	{"net_block_tall_", kernel.TallRows, kernel.TallThreads, kernel.TallShared, func(k *kernel.Set) [maxGroups]blockKernel {
		return [...]blockKernel{k.NetBlockTall1, k.NetBlockTall2, k.NetBlockTall3, k.NetBlockTall4}
	}},
	{"net_block_flat_", kernel.FlatRows, kernel.FlatThreads, kernel.FlatShared, func(k *kernel.Set) [maxGroups]blockKernel {
		return [...]blockKernel{k.NetBlockFlat1, k.NetBlockFlat2, k.NetBlockFlat3, k.NetBlockFlat4}
	}},
}

// allowBlocks lets residual blocks have the shared memory that they need, as far as the device has it.
func allowBlocks(k *kernel.Set, most int) error {
	for _, s := range blockShapes {
		for chunks := 1; chunks <= maxGroups && chunks*s.shared <= most; chunks++ {
			if err := k.AllowShared(fmt.Sprint(s.name, chunks), chunks*s.shared); err != nil {
				return err
			}
		}
	}
	return nil
}

// blockShape chooses for an image: the larger one, if the device has shared memory for it and there are
// blocks for all multiprocessors.
func (l *layout) blockShape(height, width, chunks int) blockShape {
	s := blockShapes[0]
	if chunks*s.shared > l.b.info.SharedPerBlock || tiles(height, width, s.rows, kernel.BlockColumns)*l.count < l.b.info.SMs {
		return blockShapes[1]
	}
	return s
}

// block is a residual block of two layers.
func (l *layout) block(a, c *layer, x, y tensor) {
	chunks := chunksOf(y.channels)
	s := l.blockShape(y.height, y.width, chunks)
	f := s.kernels(l.b.kernels)[chunks-1]
	grid := [3]int{tiles(y.height, y.width, s.rows, kernel.BlockColumns), 1, l.count}
	wa, wc := a.weights, c.weights
	both := moves(fmt.Sprint(s.name, chunks), x.span, y.span)
	for _, w := range []*weights{&wa, &wc} {
		both.convolve(w, 3, l.count*y.height*y.width)
	}
	l.add(both, func(on *driver.Stream) error {
		return f(on, grid, [3]int{s.threads, 1, 1}, chunks*s.shared, l.address(x.span), l.address(y.span),
			l.res.at(wa.weights), l.res.at(wa.bias), l.res.at(wc.weights), l.res.at(wc.bias), y.height, y.width, y.channels)
	})
}

// tail is the last layer, and the difference from the images.
func (l *layout) tail(k *layer, x tensor, residual span, height, width int) {
	grid := [3]int{tiles(x.height, x.width, kernel.ConvRows, kernel.ConvColumns), 1, l.count}
	c := *k
	tail := moves("net_tail", x.span, residual, l.inputs[inputImage], l.inputs[inputImage]) // the image is read and written
	tail.convolve(&c.weights, 3, l.count*x.height*x.width)
	l.add(tail, func(on *driver.Stream) error {
		image := l.address(l.inputs[inputImage])
		return l.b.kernels.NetTail(on, grid, [3]int{kernel.ConvThreads, 1, 1}, 0, l.address(x.span), l.res.at(c.weights.weights), l.res.at(c.bias),
			l.address(residual), image, image, height, width, c.chunks[0], c.slope)
	})
}

func (n *network) check(op string, dst, y, sigma []float32, width, height int, constants []float32) error {
	if len(constants) > n.constants {
		return &kernels.ShapeError{Op: op, What: "number of constants", Got: len(constants), Want: n.constants}
	}
	if err := kernels.CheckImage(op, dst, y, sigma, width, height); err != nil {
		return err
	}
	return n.b.usable()
}

// Forward implements kernels.Network. Calls that wait at the same time for images of the same size run
// as one batch, which changes no result. An image that the device has no memory for is cut into strips.
// Finite numbers of which a layer makes some beyond the largest half, 65504, are an error, and dst stays
// as it was.
func (n *network) Forward(dst, y, sigma []float32, width, height int, constants ...float32) error {
	const op = "forward"
	if err := n.check(op, dst, y, sigma, width, height, constants); err != nil {
		return err
	}
	c := getCall(dst, y, sigma, width, height, constants)
	defer c.put()
	return n.b.explained(op, n.wait(c))
}

// batchPixels bounds the images of a batch together: with more, they are no faster.
const batchPixels = 1 << 24

// plan returns a plan for most images of a size or fewer, with a power of 2 of them.
func (n *network) plan(height, width, most int) (*plan, error) {
	count := 1
	for 2*count <= most && 2*count*height*width <= batchPixels {
		count *= 2
	}
	for ; ; count /= 2 {
		p, err := n.b.pool.get(key{n.res, forward, height, width, count}, func() *layout { return n.layout(height, width, count) })
		if err == nil || count == 1 || !errors.Is(err, driver.ErrOutOfMemory) {
			return p, err
		}
	}
}

// strips runs one image as strips of rows. Around its own rows a strip has as many as a pixel's result
// depends on, so that results are the same bits.
func (n *network) strips(c *call) error {
	margin := 2 * len(n.layers)
	rows := c.height
	var p *plan
	for err := error(driver.ErrOutOfMemory); p == nil; {
		if rows = rows / 4 * 2; rows == 0 { // even, since a pixel of the network is two rows
			return fmt.Errorf("two rows of %d pixels and %d around them: %w", c.width, 2*margin, err)
		}
		height := min(c.height, rows+2*margin+c.height%2)
		if height == c.height {
			continue
		}
		p, err = n.plan(height, c.width, 1)
		if err != nil && !errors.Is(err, driver.ErrOutOfMemory) {
			return err
		}
	}
	defer n.b.pool.put(p)
	height := p.key.height
	out := make([]float32, len(c.y)) // dst may be y, of which the next strip reads
	for first := 0; first < c.height; first += rows {
		start := min(max(0, first-margin), c.height-height)
		piece := call{
			y: c.y[start*c.width:][:height*c.width], sigma: c.sigma[start*c.width:][:height*c.width],
			width: c.width, height: height, constants: c.constants,
		}
		piece.load(p, 0)
		if err := p.run(); err != nil {
			return err
		}
		to := out[first*c.width : min(first+rows, c.height)*c.width]
		copy(to, p.result()[(first-start)*c.width:])
		if err := overflow(to, piece.y, piece.sigma, piece.constants[:]); err != nil {
			return err
		}
	}
	copy(c.dst, out)
	return nil
}

// Trace implements kernels.Network. It runs layer by layer.
func (n *network) Trace(dst, y, sigma []float32, width, height int, constants ...float32) ([][]float32, error) {
	const op = "trace"
	if err := n.check(op, dst, y, sigma, width, height, constants); err != nil {
		return nil, err
	}
	h, w := (height+1)/2, (width+1)/2
	l := newLayout(n.b, n.res, 1)
	l.input(height * width)
	l.input(h * w)
	l.input(kernel.Constants)
	x := l.netInput(&n.layers[0], height, width)
	total := 0
	for i := range n.layers {
		total += h * w * n.layers[i].out
	}
	out := l.output(total)
	values := make([]tensor, len(n.layers))
	at := out.at
	for i := range n.layers {
		channels := n.layers[i].out
		dense := span{at, 4 * h * w * channels}
		at += dense.bytes
		if i == len(n.layers)-1 { // as Forward, not rounded to halves
			k := n.convolution(i, x, values, tensor{})
			k.dense = dense
			l.convolve(k)
			break
		}
		values[i] = l.tensor(h, w, channels)
		l.convolve(n.convolution(i, x, values, values[i]))
		l.widen(values[i], dense)
		x = values[i]
	}
	c := getCall(dst, y, sigma, width, height, constants)
	defer c.put()
	layers := make([][]float32, len(n.layers))
	err := n.b.pool.once(key{n.res, trace, height, width, 1}, l, func(p *plan) error {
		c.load(p, 0)
		if err := p.run(); err != nil {
			return err
		}
		values := p.result()
		for i := range layers {
			channels := n.layers[i].out
			layers[i] = make([]float32, h*w*channels)
			for j, v := range values[:len(layers[i])] {
				layers[i][j%channels*h*w+j/channels] = v
			}
			values = values[len(layers[i]):]
		}
		return nil
	})
	if err != nil {
		return nil, n.b.explained(op, err)
	}
	noise := layers[len(layers)-1]
	for r := range height {
		for c := range width {
			dst[r*width+c] = y[r*width+c] - noise[((r%2*2+c%2)*h+r/2)*w+c/2]
		}
	}
	runtime.KeepAlive(n)
	return layers, nil
}
