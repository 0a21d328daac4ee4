//go:build cuda && linux

package cuda

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/cuda/kernel"
)

// trainPlan is all that steps with batches of one shape need: a captured graph and its memory.
type trainPlan struct {
	count, height, width int
	memory               driver.Ptr
	host                 *driver.Pinned // what goes to the device, then what comes back
	graph                *driver.Graph

	// Offsets in host.
	shifts, target, weight, results int
	inputs                          []int
	mean                            float64 // what the sum of the losses is multiplied with
}

// trainFactors is the number of factors of the kernel train_step.
const trainFactors = 5

// fill puts what a step is about where the device reads it.
func (p *trainPlan) fill(b *kernels.Batch, factors [trainFactors]float32) {
	bytes, floats := p.host.Bytes(), p.host.Float32()
	copy(floats, factors[:])
	for k, s := range b.Shifts {
		binary.NativeEndian.PutUint32(bytes[p.shifts+4*k:], uint32(s))
	}
	for k, x := range b.Inputs {
		copy(floats[p.inputs[k]/4:], x)
	}
	copy(floats[p.target/4:], b.Target)
	weight := floats[p.weight/4 : p.results/4]
	if b.Weight != nil {
		copy(weight, b.Weight)
		return
	}
	for i := range weight {
		weight[i] = 1
	}
}

// result returns what the last launch has left.
func (p *trainPlan) result() (loss, norm float64) {
	at := p.host.Bytes()[p.results:]
	loss = math.Float64frombits(binary.NativeEndian.Uint64(at)) * p.mean
	return loss, math.Float64frombits(binary.NativeEndian.Uint64(at[8:]))
}

func (p *trainPlan) free(d *driver.Device) error {
	var errs []error
	if p.graph != nil {
		errs = append(errs, p.graph.Free())
	}
	if p.host != nil {
		errs = append(errs, p.host.Free())
	}
	if p.memory != 0 {
		errs = append(errs, d.Free(p.memory))
	}
	return errors.Join(errs...)
}

// trainLayer is the parameters of a convolution, which several operations may share. The kernels read
// the weights from a packed form of them.
type trainLayer struct {
	weight, bias int     // parameters
	out, size    int     // channels of the result, window
	in           [2]int  // channels of the sources
	needs        [2]bool // the gradient of the source is wanted
	forward      int     // where the packed weights are, in quads
	back         [2]int  // the same for the gradients of the sources; -1: there is none
	packed       int     // where those of the next layer begin
}

// quadsOf returns how many times four channels there are.
func quadsOf(channels int) int { return (channels + 3) / 4 }

// taps returns the number of rows of the packed weights.
func (l *trainLayer) taps() int { return 4 * l.size * l.size * (quadsOf(l.in[0]) + quadsOf(l.in[1])) }

// findLayers sets what the trainer knows of its graph.
func (t *trainer) findLayers() error {
	t.needs, t.layer = make([]bool, len(t.Nodes)), make([]int, len(t.Nodes))
	for i := range t.Nodes {
		n := &t.Nodes[i]
		for _, v := range n.Reads() {
			t.needs[i] = t.needs[i] || t.needs[v]
		}
		t.layer[i] = -1
		if n.Op != kernels.OpConv {
			continue
		}
		t.needs[i] = true
		l := trainLayer{weight: n.Weight, bias: n.Bias, out: n.Channels, size: n.Conv.Size}
		for s, v := range n.From {
			l.in[s] = t.Nodes[v].Channels
		}
		k := slices.IndexFunc(t.layers, func(o trainLayer) bool { return o.weight == l.weight })
		if k < 0 {
			k = len(t.layers)
			t.layers = append(t.layers, l)
		}
		if t.layers[k].in != l.in {
			return fmt.Errorf("graph, operation %d: %s is shared by convolutions of other kinds", i, n.Conv.Name)
		}
		for s, v := range n.From {
			t.layers[k].needs[s] = t.layers[k].needs[s] || t.needs[v]
		}
		t.layer[i] = k
	}
	if len(t.layers) == 0 {
		return errors.New("graph has no parameters")
	}
	at := 0
	for k := range t.layers {
		l := &t.layers[k]
		l.forward = at
		at += l.taps() * quadsOf(l.out)
		for s, c := range l.in {
			l.back[s] = -1
			if l.needs[s] {
				l.back[s] = at
				at += l.size * l.size * 4 * quadsOf(l.out) * quadsOf(c)
			}
		}
		l.packed = at
	}
	return nil
}

// lease is device memory from one operation to another.
type lease struct {
	span
	of          *planner
	first, last int // operations
}

// use extends a lease to an operation.
func (l *lease) use(op int) {
	if l == nil {
		return
	}
	if l.first < 0 {
		l.first = op
	}
	l.first, l.last = min(l.first, op), max(l.last, op)
}

// address is that of the memory, 0 of no lease, for the operation that is being recorded.
func (l *lease) address() driver.Ptr {
	if l == nil {
		return 0
	}
	if p := l.of; p.op < l.first || p.op > l.last {
		p.fail(fmt.Errorf("operation %d uses memory that is leased to operations %d to %d", p.op, l.first, l.last))
	}
	return l.of.memory + driver.Ptr(l.at)
}

// trainTensor is a value or a gradient, of all samples of a batch.
type trainTensor struct {
	*lease
	n, h, w, channels int
}

func (t *trainTensor) pixels() int { return t.n * t.h * t.w }
func (t *trainTensor) quads() int  { return quadsOf(t.channels) }
func (t *trainTensor) total() int  { return t.pixels() * t.quads() }

// maxQuads is how many quads a trainTensor may have: kernels count them in 32 bits.
const maxQuads = 1 << 30

// gradient is the derivative of the loss by a value: the sum of what the operations that read the
// value write to it.
type gradient struct {
	trainTensor
	writes []*write
}

// write is a part of a gradient, as the kernels' put takes it. All but the operation is known when
// the gradient has all its parts.
type write struct {
	op        int
	add, gate *lease
	slope     float32
	copied    *lease // what the operation copies, and nothing changes afterwards; may be nil
}

// planner lays a graph out for batches of one shape: as a list of operations, and the memory that
// each of them needs.
type planner struct {
	*trainer
	*trainPlan
	k *kernel.Set

	leases []*lease
	ops    []func(on *driver.Stream) error // nil: nothing to do
	op     int                             // the one that is being recorded
	err    error                           // the first one

	staging, packed, sums *lease
	values, kept          []trainTensor // by node: the value, and what FiLM is applied to
	grads                 []gradient    // by node
	parts                 []int         // by layer: partial sums of its gradient
	begin                 []int         // by layer: where they are, in quads of sums
}

func (p *planner) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// newLease returns memory that is not used yet.
func (p *planner) newLease(bytes int) *lease {
	l := &lease{span: span{bytes: bytes}, of: p, first: -1}
	p.leases = append(p.leases, l)
	return l
}

// newTensor returns a trainTensor like that of node i.
func (p *planner) newTensor(i int) trainTensor {
	n := &p.Nodes[i]
	h, w := n.Size(p.height, p.width)
	return p.tensorOf(h, w, n.Channels)
}

func (p *planner) tensorOf(h, w, channels int) trainTensor {
	t := trainTensor{n: p.count, h: h, w: w, channels: channels}
	if t.total() > maxQuads {
		p.fail(fmt.Errorf("a value has %d×%d pixels and %d channels in %d samples: %w", h, w, channels, t.n, kernels.ErrMemory))
	}
	t.lease = p.newLease(16 * t.total())
	return t
}

// do adds an operation and what it uses.
func (p *planner) do(op func(on *driver.Stream) error, uses ...*lease) {
	for _, l := range uses {
		l.use(len(p.ops))
	}
	p.ops = append(p.ops, op)
}

// ceil returns n/by, rounded up.
func ceil(n, by int) int { return (n + by - 1) / by }

// threads returns grid and block of a kernel with a thread for each of n elements.
func threads(n int) (grid, block [3]int) {
	return [3]int{ceil(n, kernel.TrainThreads), 1, 1}, [3]int{kernel.TrainThreads, 1, 1}
}

// trainBlocks is how many blocks of threads the work of an operation should be cut into: two for each
// multiprocessor of the largest cards. It is the same on all cards, so that results are, too.
const trainBlocks = 264

// layerBlocks is the number of blocks for the parameters of a layer.
const layerBlocks = 32

// newPlan makes the plan for batches of a shape.
func (t *trainer) newPlan(count, height, width int) (plan *trainPlan, err error) {
	p := &planner{trainer: t, trainPlan: &trainPlan{count: count, height: height, width: width}, k: t.b.kernels}
	defer func() {
		if err != nil {
			plan, err = nil, errors.Join(err, p.trainPlan.free(t.b.device))
		}
	}()
	h, w := t.Output().Size(height, width)
	p.mean = 1 / (float64(count) * float64(h) * float64(w) * float64(t.Output().Channels))
	table := p.stage()
	p.parts, p.begin = make([]int, len(t.layers)), make([]int, len(t.layers))
	p.values, p.kept, p.grads = make([]trainTensor, len(t.Nodes)), make([]trainTensor, len(t.Nodes)), make([]gradient, len(t.Nodes))

	p.do(func(on *driver.Stream) error { return on.CopyIn(p.staging.address(), p.host, 0, p.results) }, p.staging)
	p.packed, p.sums = p.newLease(16*t.layers[len(t.layers)-1].packed), p.newLease(0)
	p.do(func(on *driver.Stream) error {
		return p.k.TrainPack(on, [3]int{layerBlocks, len(p.layers), 1}, [3]int{kernel.TrainThreads, 1, 1}, 0, p.packed.address(), p.vector(vectorParams), p.staging.address()+driver.Ptr(table))
	}, p.packed, p.staging)
	for i := range t.Nodes {
		p.forward(i)
	}
	losses, nlosses := p.loss()
	for i := len(t.Nodes) - 1; i >= 0; i-- {
		if len(p.grads[i].writes) > 0 && t.needs[i] {
			p.backward(i)
		}
	}
	p.finish(table, losses, nlosses)
	p.settle()
	if p.err != nil {
		return nil, p.err
	}

	if err = t.b.pool.alloc(&p.memory, p.place()); err != nil {
		return nil, err
	}
	if p.host, err = t.b.device.Pin(p.results + 16); err != nil {
		return nil, err
	}
	for i, v := range p.table() {
		binary.NativeEndian.PutUint32(p.host.Bytes()[table+4*i:], uint32(v))
	}
	p.graph, err = t.stream.Capture(func() error {
		for i, op := range p.ops {
			if p.op = i; op == nil {
				continue
			}
			if err := op(t.stream); err != nil {
				return err
			}
		}
		return p.err
	})
	return p.trainPlan, err
}

// stage sets what lies where in the memory that goes to the device with each step, and returns where
// the table of layers is.
func (p *planner) stage() (table int) {
	at := 0
	next := func(numbers int) int {
		offset := at
		at += 16 * ceil(numbers, 4)
		return offset
	}
	next(trainFactors)
	p.shifts = next(p.Shifts())
	table = next(layerNumbers * len(p.layers))
	p.inputs = make([]int, p.Inputs())
	for i := range p.Nodes {
		if n := &p.Nodes[i]; n.Op == kernels.OpInput {
			h, w := n.Size(p.height, p.width)
			p.inputs[n.K] = next(p.count * h * w * n.Channels)
		}
	}
	h, w := p.Output().Size(p.height, p.width)
	p.target = next(p.count * h * w * p.Output().Channels)
	p.weight = next(p.count * h * w)
	p.results = at
	p.staging = p.newLease(at)
	return table
}

// layerNumbers is how many numbers the kernels' Layer has.
const layerNumbers = 14

// table returns the Layer of each layer.
func (p *planner) table() []int {
	var table []int
	for k := range p.layers {
		l := &p.layers[k]
		table = append(table, p.offset[l.weight], p.offset[l.bias], l.out, l.in[0], l.in[1], l.size,
			quadsOf(l.out), quadsOf(l.in[0]), quadsOf(l.in[1]), l.forward, l.back[0], l.back[1], p.begin[k], p.parts[k])
	}
	return table
}

// place gives each lease a place that no other has at the same time, and returns the bytes of all.
func (p *planner) place() int {
	slices.SortStableFunc(p.leases, func(a, b *lease) int { return cmp.Compare(a.first, b.first) })
	var free freeList
	var live []*lease
	for _, l := range p.leases {
		live = slices.DeleteFunc(live, func(o *lease) bool {
			if o.last >= l.first {
				return false
			}
			free.give(o.span)
			return true
		})
		l.span = free.take(l.bytes)
		live = append(live, l)
	}
	return free.End()
}

// forward adds the operation of node i.
func (p *planner) forward(i int) {
	n := &p.Nodes[i]
	p.values[i] = p.newTensor(i)
	y := &p.values[i]
	switch n.Op {
	case kernels.OpInput:
		grid, block := threads(y.total())
		p.do(func(on *driver.Stream) error {
			return p.k.TrainPad(on, grid, block, 0, y.address(), p.staging.address()+driver.Ptr(p.inputs[n.K]), y.pixels(), y.channels)
		}, y.lease, p.staging)
	case kernels.OpConv:
		p.convolve(i)
	default:
		p.move(y, &write{}, &p.values[n.From[0]], n, false)
	}
}

// backward adds the operations that take the gradient of node i to what it reads.
func (p *planner) backward(i int) {
	n, d := &p.Nodes[i], &p.grads[i].trainTensor
	switch n.Op {
	case kernels.OpConv:
		p.convolveBack(i)
	default:
		if v := n.From[0]; p.needs[v] {
			w := p.write(v)
			p.move(&p.grads[v].trainTensor, w, d, n, true)
		}
	}
}

// write returns a part of the gradient of v for the next operation to write.
func (p *planner) write(v kernels.Value) *write {
	g := &p.grads[v]
	if g.writes == nil {
		g.trainTensor = p.newTensor(int(v))
	}
	w := &write{op: len(p.ops)}
	g.writes = append(g.writes, w)
	return w
}

// pass makes d a part of the gradient of v. lasting says that no later operation changes d.
func (p *planner) pass(v kernels.Value, d *trainTensor, lasting bool) {
	if !p.needs[v] {
		return
	}
	w := p.write(v)
	if lasting {
		w.copied = d.lease
	}
	p.add(&p.grads[v].trainTensor, w, d)
}

// settle says how the parts of each gradient come together.
func (p *planner) settle() {
	for v := range p.grads {
		g := &p.grads[v]
		for k, w := range g.writes {
			if k > 0 {
				w.add = g.lease
			}
		}
		if len(g.writes) == 0 {
			continue
		}
		if n := &p.Nodes[v]; n.Op == kernels.OpConv && n.Conv.Activation != kernels.Linear {
			last := g.writes[len(g.writes)-1]
			last.gate, last.slope = p.values[v].lease, n.Conv.Activation.Slope()
			last.gate.use(last.op)
		}
		// The first part need not be copied if the second can be added to where it is.
		if w := g.writes[0]; w.copied != nil && len(g.writes) > 1 {
			p.ops[w.op] = nil
			second := g.writes[1]
			second.add = w.copied
			second.add.use(second.op)
		}
	}
}

// add adds the operation that makes dst of src.
func (p *planner) add(dst *trainTensor, w *write, src *trainTensor) {
	grid, block := threads(dst.total())
	p.do(func(on *driver.Stream) error {
		return p.k.TrainAdd(on, grid, block, 0, dst.address(), w.add.address(), w.gate.address(), src.address(), dst.total(), w.slope)
	}, dst.lease, src.lease, w.add)
}

// move adds the operation of a node that moves values, or the inverse of it.
func (p *planner) move(dst *trainTensor, w *write, src *trainTensor, n *kernels.Node, inverse bool) {
	p.do(func(on *driver.Stream) error {
		grid, block := threads(dst.total())
		add, gate := w.add.address(), w.gate.address()
		op := n.Op
		switch {
		case op == kernels.OpRotate && inverse:
			return p.k.TrainRotate(on, grid, block, 0, dst.address(), add, gate, src.address(), dst.n, dst.h, dst.w, dst.quads(), (4-n.K)%4, w.slope)
		case op == kernels.OpRotate:
			return p.k.TrainRotate(on, grid, block, 0, dst.address(), add, gate, src.address(), dst.n, dst.h, dst.w, dst.quads(), n.K, w.slope)
		default: // OpShift
			up := 0
			if inverse {
				up = 1
			}
			rows := p.staging.address() + driver.Ptr(p.shifts+4*n.K)
			return p.k.TrainShift(on, grid, block, 0, dst.address(), add, gate, src.address(), rows, dst.n, dst.h, dst.w, dst.quads(), up, w.slope)
		}
	}, dst.lease, src.lease, p.staging)
}

// tile is what a block of a convolution computes.
type tile struct{ pixels, channels int }

// tileOf chooses the tile for a result of the given pixels and quads, and the grid: what wastes little,
// and is small enough for all processors to get some.
func tileOf(pixels, quads int) (t tile, grid [3]int) {
	t = tile{128, channelsOf(quads)}
	across := ceil(4*quads, t.channels)
	for t.channels == 32 && t.pixels > 32 && ceil(pixels, t.pixels)*across < trainBlocks {
		t.pixels /= 2
	}
	return t, [3]int{ceil(pixels, t.pixels), across, 1}
}

// channelsOf returns how many channels a block should compute if there are quads.
func channelsOf(quads int) int {
	switch rest := 4 * quads % 32; {
	case 4*quads <= 8:
		return 8
	case rest > 0 && rest <= 16:
		return 16
	}
	return 32
}

var forwards = map[tile]func(k *kernel.Set, on *driver.Stream, grid, block [3]int, shared int,
	y, z, x0, x1, weights, bias, film, residual driver.Ptr, quads0, quads1, up, n, h, w, size, top, out int, slope float32) error{
	{128, 32}: (*kernel.Set).TrainForward128x32,
	{64, 32}:  (*kernel.Set).TrainForward64x32,
	{32, 32}:  (*kernel.Set).TrainForward32x32,
	{128, 16}: (*kernel.Set).TrainForward128x16,
	{128, 8}:  (*kernel.Set).TrainForward128x8,
}

var backwards = map[tile]func(k *kernel.Set, on *driver.Stream, grid, block [3]int, shared int,
	dst, add, gate, dz, weights driver.Ptr, outs, n, h, w, size, top, quads int, slope float32) error{
	{128, 32}: (*kernel.Set).TrainBackward128x32,
	{64, 32}:  (*kernel.Set).TrainBackward64x32,
	{32, 32}:  (*kernel.Set).TrainBackward32x32,
	{128, 16}: (*kernel.Set).TrainBackward128x16,
	{128, 8}:  (*kernel.Set).TrainBackward128x8,
}

var weighs = map[int]func(k *kernel.Set, on *driver.Stream, grid, block [3]int, shared int,
	sums, x0, x1, dz driver.Ptr, quads0, quads1, up, n, h, w, size, top, columns, length int) error{
	32: (*kernel.Set).TrainWeigh32,
	16: (*kernel.Set).TrainWeigh16,
	8:  (*kernel.Set).TrainWeigh8,
}

// sources returns what convolution i reads, and whether the first is doubled in size.
func (p *planner) sources(i int) (x [2]*lease, up int) {
	n := &p.Nodes[i]
	for s, v := range n.From {
		x[s] = p.values[v].lease
	}
	if n.Conv.Up {
		up = 1
	}
	return x, up
}

// convolve adds the convolution of node i.
func (p *planner) convolve(i int) {
	c, l, y := p.Nodes[i].Conv, &p.layers[p.layer[i]], &p.values[i]
	x, up := p.sources(i)
	var film, kept, residual *lease
	if c.FiLM != kernels.None {
		p.kept[i] = p.newTensor(i)
		film, kept = p.values[c.FiLM].lease, p.kept[i].lease
	}
	if c.Residual != kernels.None {
		residual = p.values[c.Residual].lease
	}
	t, grid := tileOf(y.pixels(), y.quads())
	p.do(func(on *driver.Stream) error {
		return forwards[t](p.k, on, grid, [3]int{kernel.TrainConvolveThreads, 1, 1}, 0,
			y.address(), kept.address(), x[0].address(), x[1].address(), p.packed.address()+driver.Ptr(16*l.forward), p.vector(vectorParams)+driver.Ptr(4*p.offset[l.bias]),
			film.address(), residual.address(), quadsOf(l.in[0]), quadsOf(l.in[1]), up, y.n, y.h, y.w, c.Size, c.Top, l.out, c.Activation.Slope())
	}, y.lease, kept, x[0], x[1], p.packed, film, residual)
}

// convolveBack takes the gradient of convolution i to its parameters and to what it reads.
func (p *planner) convolveBack(i int) {
	n, d, l := &p.Nodes[i], &p.grads[i].trainTensor, &p.layers[p.layer[i]]
	c := n.Conv
	if c.Residual != kernels.None {
		p.pass(c.Residual, d, c.FiLM == kernels.None)
	}
	if c.FiLM != kernels.None {
		p.filmBack(i)
	}
	p.weigh(i)
	for s, v := range n.From {
		if !p.needs[v] {
			continue
		}
		quads := quadsOf(l.in[s])
		columns := quads
		if c.Size == 2 {
			columns *= 4
		}
		t, grid := tileOf(d.pixels(), columns)
		back := func(dst *trainTensor, w *write) {
			p.do(func(on *driver.Stream) error {
				return backwards[t](p.k, on, grid, [3]int{kernel.TrainConvolveThreads, 1, 1}, 0,
					dst.address(), w.add.address(), w.gate.address(), d.address(), p.packed.address()+driver.Ptr(16*l.back[s]),
					d.quads(), d.n, d.h, d.w, c.Size, c.Top, quads, w.slope)
			}, dst.lease, d.lease, p.packed)
		}
		if s > 0 || !c.Up {
			w := p.write(v)
			back(&p.grads[v].trainTensor, w)
			continue
		}
		half := &p.values[v]
		full := p.tensorOf(2*half.h, 2*half.w, half.channels)
		back(&full, &write{})
		w := p.write(v)
		dst := &p.grads[v].trainTensor
		grid2, block := threads(dst.total())
		p.do(func(on *driver.Stream) error {
			return p.k.TrainFold(on, grid2, block, 0, dst.address(), w.add.address(), w.gate.address(), full.address(), dst.n, dst.h, dst.w, dst.quads(), w.slope)
		}, dst.lease, full.lease)
	}
}

// filmBack takes the gradient of convolution i back through FiLM.
func (p *planner) filmBack(i int) {
	v, d, z := p.Nodes[i].Conv.FiLM, &p.grads[i].trainTensor, p.kept[i]
	film := p.values[v].lease
	pixels := d.h * d.w
	length := ceil(pixels, max(1, min(ceil(trainBlocks, d.n), ceil(pixels, 32))))
	parts := ceil(pixels, length)
	sums := p.newLease(16 * d.n * parts * 2 * d.quads())
	p.do(func(on *driver.Stream) error {
		return p.k.TrainUnfilm(on, [3]int{d.n, parts, 1}, [3]int{kernel.TrainThreads, 1, 1}, 0, d.address(), sums.address(), z.address(), film.address(), pixels, d.channels, length)
	}, d.lease, sums, z.lease, film)
	if !p.needs[v] {
		return
	}
	w := p.write(v)
	dst := &p.grads[v].trainTensor
	grid, block := threads(dst.total())
	p.do(func(on *driver.Stream) error {
		return p.k.TrainFilmGradient(on, grid, block, 0, dst.address(), w.add.address(), w.gate.address(), sums.address(), d.n, parts, d.channels, w.slope)
	}, dst.lease, sums)
}

// weigh adds the operation for the gradient of the parameters of convolution i.
func (p *planner) weigh(i int) {
	c, d, k := p.Nodes[i].Conv, &p.grads[i].trainTensor, p.layer[i]
	l := &p.layers[k]
	x, up := p.sources(i)
	channels := channelsOf(d.quads())
	grid := [3]int{ceil(l.taps(), kernel.TrainWeighTaps), ceil(4*d.quads(), channels), 1}
	// Two rounds at least, or the sums of the parts would take longer than the parts.
	length := max(2, ceil(ceil(d.pixels(), kernel.TrainWeighPixels), ceil(trainBlocks, grid[0]*grid[1]))) * kernel.TrainWeighPixels
	grid[2] = ceil(d.pixels(), length)
	part := (l.taps() + 1) * d.quads()
	before := p.parts[k] * part
	p.parts[k] += grid[2]
	p.do(func(on *driver.Stream) error {
		return weighs[channels](p.k, on, grid, [3]int{kernel.TrainWeighThreads, 1, 1}, 0,
			p.sums.address()+driver.Ptr(16*(p.begin[k]+before)), x[0].address(), x[1].address(), d.address(),
			quadsOf(l.in[0]), quadsOf(l.in[1]), up, d.n, d.h, d.w, c.Size, c.Top, d.quads(), length)
	}, p.sums, x[0], x[1], d.lease)
}

// loss adds the operation for the loss and the gradient of the output, and returns where the sums of
// its blocks are.
func (p *planner) loss() (losses *lease, n int) {
	last := kernels.Value(len(p.Nodes) - 1)
	w := p.write(last)
	y, d := &p.values[last], &p.grads[last].trainTensor
	grid, threads := threads(y.total())
	grid[0] = min(grid[0], trainBlocks)
	losses = p.newLease(8 * grid[0])
	p.do(func(on *driver.Stream) error {
		return p.k.TrainLoss(on, grid, threads, 0, d.address(), losses.address(), y.address(), p.staging.address()+driver.Ptr(p.target), p.staging.address()+driver.Ptr(p.weight), w.gate.address(),
			y.pixels(), y.channels, w.slope)
	}, d.lease, losses, y.lease, p.staging)
	return losses, grid[0]
}

// finish adds the operations from partial sums to the step.
func (p *planner) finish(table int, losses *lease, nlosses int) {
	at := 0
	for k := range p.layers {
		l := &p.layers[k]
		p.begin[k] = at
		at += p.parts[k] * (l.taps() + 1) * quadsOf(l.out)
	}
	p.sums.bytes = 16 * at
	if at > maxQuads {
		p.fail(fmt.Errorf("sums of gradients take %d bytes: %w", p.sums.bytes, kernels.ErrMemory))
	}
	grid, block := [3]int{layerBlocks, len(p.layers), 1}, [3]int{kernel.TrainThreads, 1, 1}
	squares, result := p.newLease(8*grid[0]*grid[1]), p.newLease(32)
	p.do(func(on *driver.Stream) error {
		return p.k.TrainCollect(on, grid, block, 0, p.vector(vectorGradient), squares.address(), p.sums.address(), p.staging.address()+driver.Ptr(table), float32(p.mean))
	}, squares, p.sums, p.staging)
	p.do(func(on *driver.Stream) error {
		return p.k.TrainFinish(on, [3]int{1, 1, 1}, block, 0, result.address(), losses.address(), nlosses, squares.address(), grid[0]*grid[1], float32(p.options.Clip))
	}, result, losses, squares)
	p.do(func(on *driver.Stream) error {
		grid, block := threads(p.floats)
		return p.k.TrainStep(on, grid, block, 0, p.vector(vectorParams), p.vector(vectorMean), p.vector(vectorSquares), p.vector(vectorEMA), p.vector(vectorGradient),
			result.address(), p.staging.address(), p.floats, p.decayed, float32(p.options.Beta1), float32(p.options.Beta2))
	}, result, p.staging)
	p.do(func(on *driver.Stream) error { return on.CopyOut(p.host, p.results, result.address(), 16) }, result)
}
