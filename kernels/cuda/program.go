//go:build cuda && linux

package cuda

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/cuda/kernel"
)

// program is a kernels.Graph on the device.
type program struct {
	*kernels.Graph
	b       *Backend
	res     *resident
	weights []weights  // of each node that is a convolution
	last    []int      // the last node that reads the value
	films   []*filmSet // of each node that is made with others
}

// filmSet is vectors that are made of the same one and do nothing but scale layers (FiLM). They are made
// as one vector: a graph may have many, and the time for a launch is much for each.
type filmSet struct {
	of      kernels.Value
	a       kernels.Activation
	nodes   []int
	weights weights
}

// Compile implements kernels.GraphBackend. What the program has on the device is released after the
// garbage collector has found that it is not used any more. The program is a kernels.Sampler.
func (b *Backend) Compile(g *kernels.Graph, params [][]float32) (kernels.Program, error) {
	const op = "compile"
	if err := g.CheckParams(params); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if err := b.usable(); err != nil {
		return nil, err
	}
	p := &program{Graph: cloneGraph(g), b: b, weights: make([]weights, len(g.Nodes)), last: make([]int, len(g.Nodes))}
	var s store
	p.films = p.findFilms()
	for i := range p.Nodes {
		n := &p.Nodes[i]
		for _, v := range n.Reads() {
			p.last[v] = i
		}
		if f := p.films[i]; f != nil && f.nodes[0] == i {
			var w, bias []float32
			for _, k := range f.nodes {
				w, bias = append(w, params[p.Nodes[k].Weight]...), append(bias, params[p.Nodes[k].Bias]...)
			}
			f.weights = s.linear(w, bias, len(bias))
		}
		if n.Op != kernels.OpConv || p.films[i] != nil {
			continue
		}
		var in [2]int
		for k, v := range n.From {
			in[k] = p.Nodes[v].Channels
		}
		var err error
		if shared := p.sharing(i, in); shared >= 0 {
			p.weights[i] = p.weights[shared]
		} else if n.Vector {
			p.weights[i] = s.linear(params[n.Weight], params[n.Bias], n.Channels)
		} else if p.weights[i], err = s.conv(params[n.Weight], params[n.Bias], n.Channels, in, n.Conv.Size); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", op, n.Conv.Name, err)
		}
	}
	var err error
	if p.res, err = b.load(&s); err != nil {
		return nil, b.explained(op, err)
	}
	runtime.AddCleanup(p, func(r *resident) { r.release() }, p.res)
	return p, nil
}

// cloneGraph copies what a program keeps of a graph.
func cloneGraph(g *kernels.Graph) *kernels.Graph {
	c := &kernels.Graph{Nodes: append([]kernels.Node(nil), g.Nodes...), Params: append([]kernels.Param(nil), g.Params...)}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		n.From = append([]kernels.Value(nil), n.From...)
		if n.Conv != nil {
			conv := *n.Conv
			n.Conv = &conv
		}
	}
	return c
}

// findFilms returns the set of each node, nil for most.
func (p *program) findFilms() []*filmSet {
	read := make([]bool, len(p.Nodes)) // other than to scale a layer
	read[len(p.Nodes)-1] = true
	for i := range p.Nodes {
		n := &p.Nodes[i]
		for _, v := range n.From {
			read[v] = true
		}
		if n.Conv != nil && n.Conv.Residual != kernels.None {
			read[n.Conv.Residual] = true
		}
	}
	sets := make([]*filmSet, len(p.Nodes))
	var all []*filmSet
	for i := range p.Nodes {
		n := &p.Nodes[i]
		if read[i] || !n.Vector || n.Op != kernels.OpConv || len(n.From) != 1 || n.Conv.FiLM != kernels.None || n.Conv.Residual != kernels.None {
			continue
		}
		for _, f := range all {
			if f.of == n.From[0] && f.a == n.Conv.Activation {
				sets[i] = f
			}
		}
		if sets[i] == nil {
			sets[i] = &filmSet{of: n.From[0], a: n.Conv.Activation}
			all = append(all, sets[i])
		}
		sets[i].nodes = append(sets[i].nodes, i)
	}
	return sets
}

// sharing returns an earlier convolution with the same weights, laid out alike for sources of in
// channels, or -1.
func (p *program) sharing(i int, in [2]int) int {
	n := &p.Nodes[i]
	for k := range i {
		o := &p.Nodes[k]
		if o.Op != kernels.OpConv || p.films[k] != nil || o.Weight != n.Weight || o.Vector != n.Vector || len(o.From) != len(n.From) {
			continue
		}
		if p.Nodes[o.From[0]].Channels == in[0] {
			return k
		}
	}
	return -1
}

// layout is count samples of a size through the graph. Its inputs are those of the graph, then the
// shifts.
func (p *program) layout(height, width, count int) *layout {
	l := newLayout(p.b, p.res, count)
	for _, n := range p.inputSizes(height, width) {
		l.input(count * n)
	}
	if n := p.Shifts(); n > 0 {
		l.shifts = l.input(n)
	}
	h, w := p.Output().Size(height, width)
	out := l.output(count * h * w * p.Output().Channels)
	values := make([]tensor, len(p.Nodes))
	for i := range p.Nodes {
		if n := &p.Nodes[i]; n.Op == kernels.OpInput {
			values[i] = l.received(n, l.inputs[n.K], height, width)
		}
	}
	for i := range p.Nodes {
		if n := &p.Nodes[i]; n.Op == kernels.OpInput && !n.Vector {
			l.give(l.inputs[n.K]) // all have been rounded when the first operation runs
		}
	}
	p.compute(l, values, out, height, width)
	return l
}

// inputSizes returns the numbers of each input for one sample.
func (p *program) inputSizes(height, width int) []int {
	sizes := make([]int, p.Inputs())
	for i := range p.Nodes {
		if n := &p.Nodes[i]; n.Op == kernels.OpInput {
			h, w := n.Size(height, width)
			sizes[n.K] = h * w * n.Channels
		}
	}
	return sizes
}

// received is the value of an input, made of the numbers that were given.
func (l *layout) received(n *kernels.Node, from span, height, width int) tensor {
	h, w := n.Size(height, width)
	if n.Vector {
		return asVector(from, n.Channels)
	}
	return l.round(from, h, w, n.Channels)
}

// compute adds all operations, from the values of the inputs to numbers in out.
func (p *program) compute(l *layout, values []tensor, out span, height, width int) {
	end := len(p.Nodes) - 1
	for i := range p.Nodes {
		n := &p.Nodes[i]
		h, w := n.Size(height, width)
		from := make([]tensor, len(n.From))
		for k, v := range n.From {
			from[k] = values[v]
		}
		switch {
		case n.Op == kernels.OpInput:
		case p.films[i] != nil:
			if f := p.films[i]; f.nodes[0] == i {
				l.film(f, p.Nodes, values)
			}
		case n.Vector:
			y := asVector(out, n.Channels)
			if i != end {
				y = l.vector(n.Channels)
			}
			values[i] = y
			l.linear(p.weights[i], n.Conv, from, values, y)
		case n.Op == kernels.OpConv:
			c := convolution{weights: p.weights[i], size: n.Conv.Size, top: n.Conv.Top, slope: n.Conv.Activation.Slope(), height: h, width: w}
			copy(c.x[:], from)
			if n.Conv.Up {
				c.up = 1
			}
			if f := n.Conv.FiLM; f != kernels.None {
				c.film = values[f]
			}
			if r := n.Conv.Residual; r != kernels.None {
				c.residual = values[r].span
			}
			if i == end {
				c.dense = out
			} else {
				values[i] = l.tensor(h, w, n.Channels)
				c.y = values[i]
			}
			l.convolve(c)
		default:
			values[i] = l.tensor(h, w, n.Channels)
			l.operation(n, from[0], values[i])
		}
		for v := range i {
			if p.last[v] <= i && p.Nodes[v].Op != kernels.OpInput && p.films[v] == nil && values[v].bytes > 0 {
				l.give(values[v].span)
				values[v] = tensor{}
			}
		}
	}
	if last := values[end]; last.bytes > 0 && !last.vector {
		l.widen(last, out)
		if p.Nodes[end].Op != kernels.OpInput {
			l.give(last.span)
		}
	} else if last.vector && last.at != out.at {
		l.add(moves("copy", last.span, out), func(on *driver.Stream) error {
			return on.Copy(l.address(out), l.address(last.span), 4*l.count*last.channels)
		})
	}
}

// operationKernels are the kernels of operations that are no convolutions.
var operationKernels = map[kernels.Op]string{kernels.OpRotate: "op_rotate", kernels.OpShift: "op_shift"}

// operation adds one that is no convolution.
func (l *layout) operation(n *kernels.Node, x, y tensor) {
	k, h, w, parts := l.b.kernels, y.height, y.width, y.parts()
	l.add(moves(operationKernels[n.Op], y.span, x.span), func(on *driver.Stream) error {
		to, a := l.address(y.span), l.address(x.span)
		switch n.Op {
		case kernels.OpRotate:
			return k.OpRotate(on, l.grid(y), opBlock, 0, a, to, h, w, parts, n.K)
		case kernels.OpShift:
			return k.OpShift(on, l.grid(y), opBlock, 0, a, to, l.address(l.shifts)+driver.Ptr(4*n.K), h, w, parts)
		}
		return fmt.Errorf("operation %d is unknown", n.Op)
	})
}

// linear adds a convolution of vectors.
func (l *layout) linear(w weights, c *kernels.Convolution, x []tensor, values []tensor, y tensor) {
	var second, film, residual tensor
	if len(x) > 1 {
		second = x[1]
	}
	if c.FiLM != kernels.None {
		film = values[c.FiLM]
	}
	if c.Residual != kernels.None {
		residual = values[c.Residual]
	}
	slope, first := c.Activation.Slope(), x[0]
	l.add(cost{kernel: "linear", flop: 2 * float64(l.count*w.in*w.out), bytes: 4 * float64(w.in*w.out)}, func(on *driver.Stream) error {
		return l.b.kernels.Linear(on, [3]int{(w.out + kernel.LinearThreads - 1) / kernel.LinearThreads, l.count, 1}, [3]int{kernel.LinearThreads, 1, 1}, 0,
			l.address(first.span), l.address(second.span), l.res.at(w.weights), l.res.at(w.bias), l.address(film.span), l.address(residual.span), l.address(y.span),
			first.channels, second.channels, w.out, film.stride, slope)
	})
}

// film makes the vectors of a set, each of which is a part of one.
func (l *layout) film(f *filmSet, nodes []kernels.Node, values []tensor) {
	all := l.vector(f.weights.out)
	l.linear(f.weights, nodes[f.nodes[0]].Conv, []tensor{values[f.of]}, values, all)
	at := all.at
	for _, i := range f.nodes {
		values[i] = asVector(span{at, 4 * nodes[i].Channels}, nodes[i].Channels)
		values[i].stride = all.channels
		at += values[i].bytes
	}
}

// programPixels bounds the inputs of a plan together: with more, they are no faster.
const programPixels = 1 << 22

// plan returns a plan for most samples of a size or fewer, with a power of 2 of them.
func (p *program) plan(height, width, most int) (*plan, error) {
	count := 1
	for 2*count <= min(most, maxBatch) && 2*count*height*width <= programPixels {
		count *= 2
	}
	for ; ; count /= 2 {
		c, err := p.b.pool.get(key{p.res, running, height, width, count}, func() *layout { return p.layout(height, width, count) })
		if err == nil || count == 1 || !errors.Is(err, driver.ErrOutOfMemory) {
			return c, err
		}
	}
}

// Run implements kernels.Program. Samples run together as far as memory allows. Finite numbers of which
// an operation makes some beyond the largest half, 65504, are an error.
func (p *program) Run(dst []float32, b *kernels.Batch) error {
	const op = "run"
	if err := p.Check(b, false); err != nil {
		return err
	}
	h, w := p.Output().Size(b.Height, b.Width)
	n := h * w * p.Output().Channels
	if len(dst) != b.Count*n {
		return &kernels.ShapeError{Op: op, What: "length of the output", Got: len(dst), Want: b.Count * n}
	}
	if err := p.b.usable(); err != nil {
		return err
	}
	for first := 0; first < b.Count; {
		done, err := p.run(dst[first*n:], b, first)
		if err != nil {
			return p.b.explained(op, err)
		}
		first += done
	}
	runtime.KeepAlive(p)
	return nil
}

// run computes samples of b from first on, and returns how many.
func (p *program) run(dst []float32, b *kernels.Batch, first int) (int, error) {
	c, err := p.plan(b.Height, b.Width, b.Count-first)
	if err != nil {
		return 0, err
	}
	defer p.b.pool.put(c)
	inputs := make([][]float32, len(b.Inputs))
	for k, values := range b.Inputs {
		n := len(values) / b.Count
		inputs[k] = values[first*n:][:c.count*n]
		copy(c.given(c.inputs[k]), inputs[k])
	}
	c.shift(b.Shifts)
	if err := c.run(); err != nil {
		return 0, err
	}
	n := len(dst) / (b.Count - first)
	result := c.result()[:c.count*n]
	if err := overflow(result, inputs...); err != nil {
		return 0, err
	}
	copy(dst, result)
	return c.count, nil
}

// shift gives a plan the rows of each shift.
func (p *plan) shift(rows []int) {
	for i, n := range rows {
		binary.NativeEndian.PutUint32(p.host.Bytes()[p.shifts.at+4*i:], uint32(n))
	}
}
