package cpu

import (
	"fmt"
	"math"
	"sync"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/arena"
)

// tensor says where a value lies in the memory of a sweep: rows of pixels, channels
// last, within a border of zeros that serves as the padding of convolutions.
type tensor struct {
	at, h, w  int
	channels  int
	stride    int // floats per pixel
	border    int // pixels on each side
	floats    int // with the border
	allocated bool
}

func newTensor(h, w, channels, stride, border int) tensor {
	return tensor{h: h, w: w, channels: channels, stride: stride, border: border, floats: (h + 2*border) * (w + 2*border) * stride}
}

// line is the distance from one row to the next, in floats.
func (t *tensor) line() int { return (t.w + 2*t.border) * t.stride }

// pixel is the place of row r and column c, which may lie in the border.
func (t *tensor) pixel(r, c int) int {
	return t.at + (r+t.border)*t.line() + (c+t.border)*t.stride
}

// graph is a kernels.Graph for one instruction set, with room for its weights in
// the order of the kernels.
type graph struct {
	*kernels.Graph
	isa    *isa
	border int
	// sets are the packed weights. Convolutions of the same parameters share one.
	sets  []weightSet
	set   []int  // of each node, -1 for none
	needs []bool // a parameter lies upstream of the node, so its gradient is wanted
	last  []int  // the last node that reads the value
}

// weightSet is the weights of one convolution, forward and backward.
type weightSet struct {
	weight, bias int // parameters
	size, in     int
	inStride     int
	activation   kernels.Activation
	forward      *packed
	backward     []*packed // one, or four for size 2
}

func newGraph(isa *isa, g *kernels.Graph) (*graph, error) {
	if err := g.Err(); err != nil {
		return nil, err
	}
	n := &graph{Graph: g, isa: isa, border: 1, set: make([]int, len(g.Nodes)), needs: make([]bool, len(g.Nodes)), last: make([]int, len(g.Nodes))}
	for i := range g.Nodes {
		node := &g.Nodes[i]
		n.set[i] = -1
		for _, v := range node.Reads() {
			n.last[v] = i
			n.needs[i] = n.needs[i] || n.needs[v]
		}
		if node.Op != kernels.OpConv {
			continue
		}
		n.needs[i] = true
		if node.Conv.Size == 3 && node.Conv.Top != 1 {
			n.border = 2
		}
	}
	n.last[len(g.Nodes)-1] = len(g.Nodes)
	for i := range g.Nodes {
		node := &g.Nodes[i]
		if node.Op != kernels.OpConv {
			continue
		}
		in := 0
		for _, v := range node.From {
			in += g.Nodes[v].Channels
		}
		want := weightSet{weight: node.Weight, bias: node.Bias, size: node.Conv.Size, in: in, inStride: n.sourceStride(i), activation: node.Conv.Activation}
		for k := range n.sets {
			s := &n.sets[k]
			if s.weight != want.weight {
				continue
			}
			if s.inStride != want.inStride || s.activation != want.activation {
				return nil, fmt.Errorf("graph, operation %d: %s is shared by convolutions of other kinds", i, node.Conv.Name)
			}
			n.set[i] = k
		}
		if n.set[i] < 0 {
			n.set[i] = len(n.sets)
			n.sets = append(n.sets, want)
		}
	}
	return n, nil
}

// stride returns the floats per pixel of a node's value.
func (n *graph) stride(i int) int {
	if n.Nodes[i].Op == kernels.OpConv {
		return n.wide(n.Nodes[i].Channels)
	}
	return roundUp(n.Nodes[i].Channels, 4)
}

// wide returns the floats per pixel of what a kernel writes.
func (n *graph) wide(channels int) int {
	return roundUp(channels, n.isa.blocks[len(n.isa.blocks)-1].width)
}

// joins tells whether the sources of a convolution are gathered into one tensor.
func (n *graph) joins(i int) bool {
	node := &n.Nodes[i]
	return node.Op == kernels.OpConv && (len(node.From) > 1 || node.Conv.Up)
}

// sourceStride returns the floats per pixel of what a convolution reads.
func (n *graph) sourceStride(i int) int {
	node := &n.Nodes[i]
	if !n.joins(i) {
		return n.stride(int(node.From[0]))
	}
	in := 0
	for _, v := range node.From {
		in += n.Nodes[v].Channels
	}
	return roundUp(in, 4)
}

// newSets makes room for all weights; backward too if training.
func (n *graph) newSets(training bool) []weightSet {
	sets := append([]weightSet(nil), n.sets...)
	for k := range sets {
		s := &sets[k]
		out := n.Params[s.bias].Len()
		s.forward = newPacked(n.isa, forwardShape(s.in, out, s.size), s.inStride, s.activation)
		if !training {
			continue
		}
		if s.size != 2 {
			s.backward = []*packed{newPacked(n.isa, backwardShape(s.in, out, s.size), n.wide(out), kernels.Linear)}
			continue
		}
		for k := range 4 {
			shape := backwardShape(s.in, out, 2)
			shape.ky, shape.kx, shape.base, shape.sy, shape.sx = 1, 1, k, 0, 0
			s.backward = append(s.backward, newPacked(n.isa, shape, n.wide(out), kernels.Linear))
		}
	}
	return sets
}

// fill lays the parameters out. scale and offset are those of FiLM, or nil.
func (s *weightSet) fill(params [][]float32, scale, offset []float32) {
	s.forward.set(params[s.weight], params[s.bias], scale, offset)
	s.forward.finish()
	for _, b := range s.backward {
		b.set(params[s.weight], nil, nil, nil)
		if scale != nil {
			b.scaleInputs(scale)
		}
		b.finish()
	}
}

// scaleInputs multiplies the weights of each input channel.
func (p *packed) scaleInputs(scale []float32) {
	for k := range p.blocks {
		b := &p.blocks[k]
		for tap := range p.shape.ky * p.shape.kx {
			for i, v := range scale[:p.shape.in] {
				row := b.weights[(tap*p.inStride+i)*b.width:][:b.width]
				for o := range row {
					row[o] *= v
				}
			}
		}
	}
}

// plan is a graph laid out for one size of input.
type plan struct {
	*graph
	h, w   int
	values []tensor // of each node
	joined []tensor // of each convolution that gathers its sources
	floats int
	// For training, the same for the gradients.
	dvalues, djoined []tensor
	dfloats          int
}

// newPlan lays out all values. With reuse, a value's memory goes to others once
// it has been read for the last time.
func (n *graph) newPlan(h, w int, training bool) *plan {
	p := &plan{graph: n, h: h, w: w, values: make([]tensor, len(n.Nodes)), joined: make([]tensor, len(n.Nodes))}
	p.dvalues, p.djoined = make([]tensor, len(n.Nodes)), make([]tensor, len(n.Nodes))
	free := arena.List{Align: 16}
	for i := range n.Nodes {
		node := &n.Nodes[i]
		nh, nw := node.Size(h, w)
		border := n.border
		if node.Vector {
			border = 0
		}
		p.values[i] = newTensor(nh, nw, node.Channels, n.stride(i), border)
		p.values[i].take(&free)
		if n.joins(i) {
			if node.Conv.Size == 2 {
				nh, nw = 2*nh, 2*nw
			}
			c := n.sets[n.set[i]].in
			p.joined[i] = newTensor(nh, nw, c, n.sourceStride(i), border)
			p.joined[i].take(&free)
		}
		if training {
			d := &p.dvalues[i]
			*d = newTensor(p.values[i].h, p.values[i].w, node.Channels, n.wide(node.Channels), border)
			d.at, p.dfloats = p.dfloats, p.dfloats+roundUp(d.floats, 16)
			if n.joins(i) {
				j := &p.djoined[i]
				*j = newTensor(p.joined[i].h, p.joined[i].w, p.joined[i].channels, n.wide(p.joined[i].channels), border)
				j.at, p.dfloats = p.dfloats, p.dfloats+roundUp(j.floats, 16)
			}
			continue
		}
		if n.joins(i) {
			p.joined[i].give(&free)
		}
		for v := range i + 1 {
			if n.last[v] <= i && p.values[v].allocated {
				p.values[v].give(&free)
			}
		}
	}
	p.floats = free.End()
	return p
}

// take places t in the memory that l lays out.
func (t *tensor) take(l *arena.List) { t.at, t.allocated = l.Take(t.floats), true }

// give lets others have the place of t.
func (t *tensor) give(l *arena.List) {
	t.allocated = false
	l.Give(t.at, t.floats)
}

// sweep is the memory of one sample's run.
type sweep struct {
	*plan
	sets   []weightSet // filled
	film   []weightSet // by node: weights with FiLM applied, of this sample
	mem    []float32
	reuse  bool // borders are dirty
	row    row
	halfs  halfRows
	params [][]float32

	// For training.
	dmem    []float32
	touched []bool // a gradient has been written
	grad    gradRows
	dfilm   [][]float32 // by node: gradient of the weights of one sample
}

func (p *plan) newSweep(sets []weightSet, params [][]float32, training bool) *sweep {
	s := &sweep{plan: p, sets: sets, params: params, mem: aligned[float32](p.floats), reuse: !training}
	s.film = make([]weightSet, len(p.Nodes))
	for i := range p.Nodes {
		node := &p.Nodes[i]
		if node.Op == kernels.OpConv && node.Conv.FiLM != kernels.None {
			w := p.sets[p.set[i]]
			s.film[i] = p.filmSet(&w, training)
		}
	}
	if training {
		s.dmem = aligned[float32](p.dfloats)
		s.touched = make([]bool, len(p.Nodes))
		s.dfilm = make([][]float32, len(p.Nodes))
		for i := range s.film {
			if f := &s.film[i]; f.forward != nil {
				s.dfilm[i] = aligned[float32](p.gradFloats(f))
			}
		}
	}
	return s
}

func (n *graph) filmSet(w *weightSet, training bool) weightSet {
	one := *n
	one.sets = []weightSet{*w}
	return one.newSets(training)[0]
}

// forward runs sample k of b. Its output is in s.values of the last node.
func (s *sweep) forward(b *kernels.Batch, k int) {
	for i := range s.Nodes {
		node, y := &s.Nodes[i], &s.values[i]
		if s.reuse {
			s.clearBorder(y)
		}
		switch node.Op {
		case kernels.OpInput:
			n := y.h * y.w * y.channels
			in := b.Inputs[node.K][k*n:][:n]
			for r := range y.h {
				for c := range y.w {
					p := s.mem[y.pixel(r, c):][:y.stride]
					m := copy(p, in[(r*y.w+c)*y.channels:][:y.channels])
					clear(p[m:])
				}
			}
		case kernels.OpConv:
			s.convolve(i)
		default:
			x := &s.values[node.From[0]]
			shift := 0
			if node.Op == kernels.OpShift {
				shift = b.Shifts[node.K]
			}
			for r := range y.h {
				for c := range y.w {
					out := s.mem[y.pixel(r, c):][:y.stride]
					if from, ok := moved(node, x, shift, r, c); ok {
						m := copy(out, s.mem[from:][:y.channels])
						clear(out[m:])
					} else {
						clear(out)
					}
				}
			}
		}
	}
}

// moved returns the place in x that goes to row r and column c of a rotation or
// shift; ok is false for a row that comes from outside.
func moved(node *kernels.Node, x *tensor, shift, r, c int) (place int, ok bool) {
	if node.Op == kernels.OpShift {
		return x.pixel(r-min(shift, r+1), c), r >= shift
	}
	switch node.K {
	case 1:
		return x.pixel(c, x.w-1-r), true
	case 2:
		return x.pixel(x.h-1-r, x.w-1-c), true
	case 3:
		return x.pixel(x.h-1-c, r), true
	}
	return x.pixel(r, c), true
}

func (s *sweep) clearBorder(t *tensor) {
	if t.border == 0 {
		return
	}
	line := t.line()
	clear(s.mem[t.at:][:t.border*line])
	clear(s.mem[t.at+(t.h+t.border)*line:][:t.border*line])
	side := t.border * t.stride
	for r := range t.h {
		row := s.mem[t.at+(r+t.border)*line:][:line]
		clear(row[:side])
		clear(row[line-side:])
	}
}

// source returns what convolution i reads, gathered if need be.
func (s *sweep) source(i int) *tensor {
	if s.joins(i) {
		return &s.joined[i]
	}
	return &s.values[s.Nodes[i].From[0]]
}

// weights returns the weights of convolution i for the present sample.
func (s *sweep) weights(i int) *weightSet {
	if s.film[i].forward != nil {
		return &s.film[i]
	}
	return &s.sets[s.set[i]]
}

// under returns the rows of x under the window of row r of convolution c.
func under(mem []float32, x *tensor, size, top, r int) (rows [3][]float32) {
	switch size {
	case 1:
		rows[0] = mem[x.pixel(r, 0):]
	case 2:
		rows[0], rows[1] = mem[x.pixel(2*r, 0):], mem[x.pixel(2*r+1, 0):]
	default:
		for k := range rows {
			rows[k] = mem[x.pixel(r-top+k, -1):]
		}
	}
	return rows
}

// halfRows holds the last three rows of a tensor in bf16, with the border.
type halfRows struct {
	numbers []uint32
	next    int // the first row that has not been rounded
}

// start makes window ready for the rows of a tensor, from the top.
func (s *sweep) start(x *tensor) {
	if n := 3 * x.line() / 2; s.isa.bf16 != nil && n > len(s.halfs.numbers) {
		s.halfs.numbers = aligned[uint32](n)
	}
	s.halfs.next = -x.border
}

// window is under in the numbers that the kernels read. Rows come in order, after
// a start with the tensor.
func (s *sweep) window(mem []float32, x *tensor, size, top, r int) (rows window) {
	if s.isa.bf16 == nil {
		rows.x = under(mem, x, size, top, r)
		return rows
	}
	first, column := r-top, -1
	switch size {
	case 1:
		first, column = r, 0
	case 2:
		first, column = 2*r, 0
	}
	n := x.line() / 2
	for k := range size {
		place := s.halfs.numbers[(first+k+3)%3*n:][:n]
		if first+k >= s.halfs.next {
			s.isa.bf16.row(place, mem[x.pixel(first+k, -x.border):][:2*n])
			s.halfs.next = first + k + 1
		}
		rows.halfs[k] = place[(x.border+column)*x.stride/2:]
	}
	return rows
}

func (s *sweep) convolve(i int) {
	node, y := &s.Nodes[i], &s.values[i]
	c := node.Conv
	if s.joins(i) {
		s.gather(i)
	}
	if c.FiLM != kernels.None {
		f := s.vector(s.mem, &s.values[c.FiLM])
		scale := make([]float32, c.Out)
		for o := range scale {
			scale[o] = 1 + f[o]
		}
		s.film[i].fill(s.params, scale, f[c.Out:])
	}
	x, w := s.source(i), s.weights(i).forward
	var residual *tensor
	if c.Residual != kernels.None {
		residual = &s.values[c.Residual]
	}
	xs := x.stride
	if c.Size == 2 {
		xs *= 2
	}
	s.start(x)
	for r := range y.h {
		var res []float32
		out := s.mem[y.pixel(r, 0):]
		if residual != nil && residual.stride == y.stride {
			res = s.mem[residual.pixel(r, 0):]
		}
		w.strided(&s.row, out, res, s.window(s.mem, x, c.Size, c.Top, r), nil, y.w, xs, y.stride)
		if residual != nil && res == nil {
			for q := range y.w {
				from := s.mem[residual.pixel(r, q):][:y.channels]
				for j, v := range from {
					out[q*y.stride+j] += v
				}
			}
		}
	}
}

func (s *sweep) vector(mem []float32, t *tensor) []float32 { return mem[t.at:][:t.channels] }

// gather copies the sources of convolution i into one tensor.
func (s *sweep) gather(i int) {
	node, to := &s.Nodes[i], &s.joined[i]
	if s.reuse {
		s.clearBorder(to)
	}
	at := 0
	for k, v := range node.From {
		x := &s.values[v]
		half := 0
		if k == 0 && node.Conv.Up {
			half = 1
		}
		for r := range to.h {
			p := to.pixel(r, 0) + at
			for c := range to.w {
				copy(s.mem[p:][:x.channels], s.mem[x.pixel(r>>half, c>>half):][:x.channels])
				p += to.stride
			}
		}
		at += x.channels
	}
	if at < to.stride {
		for r := range to.h {
			for c := range to.w {
				clear(s.mem[to.pixel(r, c)+at:][:to.stride-at])
			}
		}
	}
}

// output copies the last value to dst.
func (s *sweep) output(dst []float32) {
	y := &s.values[len(s.values)-1]
	for r := range y.h {
		for c := range y.w {
			copy(dst[(r*y.w+c)*y.channels:][:y.channels], s.mem[y.pixel(r, c):][:y.channels])
		}
	}
}

// program is a kernels.Program.
type program struct {
	*graph
	sets   []weightSet
	params [][]float32

	mu    sync.Mutex
	idle  []*sweep // of the sizes last used
	plans []*plan
}

// Compile implements kernels.GraphBackend.
func (b *Backend) Compile(g *kernels.Graph, params [][]float32) (kernels.Program, error) {
	n, err := newGraph(b.single(), g)
	if err == nil {
		err = g.CheckParams(params)
	}
	if err != nil {
		return nil, fmt.Errorf("compile: %w", err)
	}
	p := &program{graph: n, sets: n.newSets(false)}
	for _, v := range params {
		p.params = append(p.params, append([]float32(nil), v...))
	}
	for k := range p.sets {
		p.sets[k].fill(p.params, nil, nil)
	}
	return p, nil
}

// maxIdle is how many memories of runs a program keeps.
const maxIdle = 8

// Run implements kernels.Program.
func (p *program) Run(dst []float32, b *kernels.Batch) error {
	if err := p.Check(b, false); err != nil {
		return err
	}
	h, w := p.Output().Size(b.Height, b.Width)
	n := h * w * p.Output().Channels
	if len(dst) != b.Count*n {
		return &kernels.ShapeError{Op: "run", What: "length of the output", Got: len(dst), Want: b.Count * n}
	}
	s := p.take(b.Height, b.Width)
	for k := range b.Count {
		s.forward(b, k)
		s.output(dst[k*n:][:n])
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == maxIdle {
		p.idle = p.idle[1:]
	}
	p.idle = append(p.idle, s)
	return nil
}

func (p *program) take(h, w int) *sweep {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.idle {
		if s.h == h && s.w == w {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			return s
		}
	}
	p.idle = nil // memory of another size is not worth keeping
	for _, l := range p.plans {
		if l.h == h && l.w == w {
			return l.newSweep(p.sets, p.params, false)
		}
	}
	l := p.newPlan(h, w, false)
	p.plans = append(p.plans[max(0, len(p.plans)-3):], l)
	return l.newSweep(p.sets, p.params, false)
}

func finite(v float64) bool { return v-v == 0 && !math.IsInf(v, 0) }
