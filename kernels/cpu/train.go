package cpu

import (
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/diffdenoise/denoised/kernels"
)

// maxLanes is the most parts a batch is cut into. Each has sums of its own, which
// are added in order, so the result does not depend on the number of threads.
const maxLanes = 16

// callFloats bounds the multiply-adds of one kernel call for gradients, about
// 100 microseconds: assembly cannot be interrupted.
const callFloats = 5 << 20

// trainer is a kernels.Trainer.
type trainer struct {
	*graph
	o     kernels.TrainOptions
	state *kernels.State
	sets  []weightSet
	stale bool // sets do not hold the present parameters

	plan   *plan
	sweeps []*sweep // one per thread
	lanes  []*lane
	grads  [][]float32
}

// lane sums the gradients of some samples of a batch, in the order of the kernels:
// [ky][kx][in][out] with padded channels, for weights and biases of each set.
type lane struct {
	weights, biases [][]float32 // by set
	loss            float64
}

// Train implements kernels.GraphBackend.
func (b *Backend) Train(g *kernels.Graph, state *kernels.State, o kernels.TrainOptions) (kernels.Trainer, error) {
	n, err := newGraph(&b.isa, g)
	if err == nil {
		err = g.CheckParams(state.Params)
	}
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	for _, x := range [][][]float32{state.Mean, state.Squares, state.EMA} {
		if err := g.CheckParams(x); err != nil {
			return nil, fmt.Errorf("train: state: %w", err)
		}
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	t := &trainer{graph: n, o: o.WithDefaults(), state: state.Clone(), sets: n.newSets(true), stale: true}
	for i := range g.Params {
		t.grads = append(t.grads, make([]float32, g.Params[i].Len()))
	}
	return t, nil
}

// gradFloats is the length of the gradient of a weight set in the kernels' order.
func (n *graph) gradFloats(s *weightSet) int {
	return s.size * s.size * s.inStride * s.forward.outStride
}

// State implements kernels.Trainer.
func (t *trainer) State() *kernels.State { return t.state.Clone() }

// Gradient implements kernels.Trainer.
func (t *trainer) Gradient(b *kernels.Batch) (float64, [][]float32, error) {
	loss, err := t.gradient(b)
	if err != nil {
		return 0, nil, err
	}
	out := make([][]float32, len(t.grads))
	for i, g := range t.grads {
		out[i] = append([]float32(nil), g...)
	}
	return loss, out, nil
}

// Step implements kernels.Trainer.
func (t *trainer) Step(b *kernels.Batch, rate float64) (loss, norm float64, err error) {
	if loss, err = t.gradient(b); err != nil {
		return 0, 0, err
	}
	for _, g := range t.grads {
		sum := 0.0
		for _, v := range g {
			sum += float64(v) * float64(v)
		}
		norm += sum
	}
	norm = math.Sqrt(norm)
	if !finite(loss) || !finite(norm) {
		return loss, norm, fmt.Errorf("training step %d: loss %g, gradient norm %g", t.state.Step+1, loss, norm)
	}
	scale := 1.0
	if t.o.Clip > 0 && norm > t.o.Clip {
		scale = t.o.Clip / norm
	}
	t.state.Step++
	bias1 := 1 - math.Pow(t.o.Beta1, float64(t.state.Step))
	bias2 := 1 - math.Pow(t.o.Beta2, float64(t.state.Step))
	// early steps would otherwise be drawn to where training began
	ema := float32(min(t.o.EMA, float64(t.state.Step)/float64(t.state.Step+9)))
	t.each(len(t.grads), func(_, i int) {
		b1, b2 := float32(t.o.Beta1), float32(t.o.Beta2)
		step, root := float32(rate/bias1), float32(1/math.Sqrt(bias2))
		decay := float32(0)
		if len(t.Params[i].Shape) > 1 {
			decay = float32(rate * t.o.Decay)
		}
		p, m, s, e := t.state.Params[i], t.state.Mean[i], t.state.Squares[i], t.state.EMA[i]
		for j, g := range t.grads[i] {
			g *= float32(scale)
			m[j] = b1*m[j] + (1-b1)*g
			s[j] = b2*s[j] + (1-b2)*g*g
			p[j] -= decay*p[j] + step*m[j]/(sqrt(s[j])*root+1e-8)
			e[j] += (1 - ema) * (p[j] - e[j])
		}
	})
	t.stale = true
	return loss, norm, nil
}

func sqrt(v float32) float32 { return float32(math.Sqrt(float64(v))) }

// each calls f for 0 to n-1 on the trainer's threads, whose number is worker.
func (t *trainer) each(n int, f func(worker, i int)) {
	workers := min(t.o.Workers, n)
	if workers <= 1 {
		for i := range n {
			f(0, i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for k := range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(k, i)
			}
		})
	}
	wg.Wait()
}

// gradient sets t.grads and returns the loss.
func (t *trainer) gradient(b *kernels.Batch) (float64, error) {
	if err := t.Check(b, true); err != nil {
		return 0, err
	}
	if t.stale {
		t.each(len(t.sets), func(_, k int) { t.sets[k].fill(t.state.Params, nil, nil) })
		t.stale = false
	}
	if t.plan == nil || t.plan.h != b.Height || t.plan.w != b.Width {
		t.plan = t.newPlan(b.Height, b.Width, true)
		t.sweeps = nil
	}
	lanes := min(maxLanes, b.Count)
	workers := min(t.o.Workers, lanes)
	for len(t.sweeps) < workers {
		t.sweeps = append(t.sweeps, t.plan.newSweep(t.sets, t.state.Params, true))
	}
	for len(t.lanes) < lanes {
		l := new(lane)
		for k := range t.sets {
			l.weights = append(l.weights, aligned[float32](t.gradFloats(&t.sets[k])))
			l.biases = append(l.biases, aligned[float32](4*t.sets[k].forward.outStride))
		}
		t.lanes = append(t.lanes, l)
	}
	t.each(lanes, func(worker, i int) {
		l := t.lanes[i]
		l.loss = 0
		for k := range l.weights {
			clear(l.weights[k])
			clear(l.biases[k])
		}
		for k := i; k < b.Count; k += lanes {
			s := t.sweeps[worker]
			s.forward(b, k)
			l.loss += s.lossOf(b, k)
			s.backward(b, l)
		}
	})

	h, w := t.Output().Size(b.Height, b.Width)
	mean := 1 / (float64(b.Count) * float64(h) * float64(w) * float64(t.Output().Channels))
	loss := 0.0
	for _, l := range t.lanes[:lanes] {
		loss += l.loss
	}
	t.each(len(t.sets), func(_, k int) { t.collect(k, lanes, float32(mean)) })
	return loss * mean, nil
}

// collect adds the lanes' gradients of one set, in order, and brings them into the
// parameters' order.
func (t *trainer) collect(k, lanes int, scale float32) {
	s := &t.sets[k]
	sum, bias := t.lanes[0].weights[k], t.lanes[0].biases[k]
	for _, l := range t.lanes[1:lanes] {
		for j, v := range l.weights[k] {
			sum[j] += v
		}
		for j, v := range l.biases[k] {
			bias[j] += v
		}
	}
	dw, db := t.grads[s.weight], t.grads[s.bias]
	out, stride := len(db), s.forward.outStride
	taps := s.size * s.size
	for o := range out {
		db[o] = bias[o] * scale
		for i := range s.in {
			for tap := range taps {
				dw[(o*s.in+i)*taps+tap] = sum[(tap*s.inStride+i)*stride+o] * scale
			}
		}
	}
}

// lossOf returns the sum of the loss of sample k and sets the gradient of the output.
func (s *sweep) lossOf(b *kernels.Batch, k int) float64 {
	clear(s.touched)
	last := len(s.values) - 1
	y, d := &s.values[last], &s.dvalues[last]
	s.touched[last] = true
	n := y.h * y.w
	target := b.Target[k*n*y.channels:][:n*y.channels]
	sum := 0.0
	for r := range y.h {
		for c := range y.w {
			out, grad := s.mem[y.pixel(r, c):][:y.channels], s.dmem[d.pixel(r, c):][:d.stride]
			want := target[(r*y.w+c)*y.channels:][:y.channels]
			weight := float32(1)
			if b.Weight != nil {
				weight = b.Weight[k*n+r*y.w+c]
			}
			for j, v := range out {
				e := v - want[j]
				sum += float64(weight) * float64(e) * float64(e)
				grad[j] = 2 * weight * e
			}
			clear(grad[len(out):])
		}
	}
	return sum
}

// ones is the input of which the gradient of a bias is the product.
var ones = []float32{1, 0, 0, 0}

// backward takes the gradient of the output, which lossOf has set, to the
// parameters, and adds it to l.
func (s *sweep) backward(b *kernels.Batch, l *lane) {
	for i := len(s.Nodes) - 1; i >= 0; i-- {
		if !s.touched[i] || !s.needs[i] {
			continue
		}
		node, dy := &s.Nodes[i], &s.dvalues[i]
		switch node.Op {
		case kernels.OpInput:
		case kernels.OpConv:
			s.convolveBack(i, l)
		default:
			v := node.From[0]
			if !s.needs[v] {
				continue
			}
			dx := &s.dvalues[v]
			s.touch(v)
			shift := 0
			if node.Op == kernels.OpShift {
				shift = b.Shifts[node.K]
			}
			for r := range dy.h {
				for c := range dy.w {
					if at, ok := moved(node, dx, shift, r, c); ok {
						add(s.dmem[at:][:dx.channels], s.dmem[dy.pixel(r, c):])
					}
				}
			}
		}
	}
}

func add(dst, src []float32) {
	src = src[:len(dst)]
	for j, v := range src {
		dst[j] += v
	}
}

// touch makes the gradient of v ready to be added to.
func (s *sweep) touch(v kernels.Value) {
	if s.touched[v] {
		return
	}
	s.touched[v] = true
	d := &s.dvalues[v]
	for r := range d.h {
		clear(s.dmem[d.pixel(r, 0):][:d.w*d.stride])
	}
}

// pass adds a gradient to that of v, which has the same shape.
func (s *sweep) pass(dy *tensor, v kernels.Value) {
	if !s.needs[v] {
		return
	}
	dx := &s.dvalues[v]
	first := !s.touched[v]
	s.touched[v] = true
	for r := range dy.h {
		to, from := s.dmem[dx.pixel(r, 0):][:dx.w*dx.stride], s.dmem[dy.pixel(r, 0):]
		if first {
			copy(to, from)
		} else {
			add(to, from)
		}
	}
}

func (s *sweep) convolveBack(i int, l *lane) {
	node, y, dy := &s.Nodes[i], &s.values[i], &s.dvalues[i]
	c, w, set := node.Conv, s.weights(i), s.set[i]
	if c.Residual != kernels.None {
		s.pass(dy, c.Residual)
	}
	if c.Activation != kernels.Linear {
		// The sign of the result tells the sign of the sum. Zero counts as below.
		factor := [2]float32{1, c.Activation.Slope()}
		for r := range y.h {
			for q := range y.w {
				out, grad := s.mem[y.pixel(r, q):][:y.channels], s.dmem[dy.pixel(r, q):][:y.channels]
				for j, v := range out {
					grad[j] *= factor[(math.Float32bits(v)-1)>>31]
				}
			}
		}
	}

	// Weights and bias.
	dw, db := l.weights[set], l.biases[set]
	film := c.FiLM != kernels.None
	if film {
		dw = s.dfilm[i]
		clear(dw)
	}
	x := s.source(i)
	xs, xrow := x.stride, x.line()
	taps := c.Size * x.stride
	if c.Size == 2 {
		xs, xrow = 2*xs, 2*xrow
	}
	g := &s.grad
	g.xs, g.xrow, g.ys, g.yrow, g.dws, g.n = xs, xrow, dy.stride, dy.line(), w.forward.outStride, y.w
	var bias []float32
	if film {
		bias = make([]float32, 4*w.forward.outStride)
	} else {
		bias = db
	}
	rows := max(1, callFloats/(y.w*taps*w.forward.blocks[0].width))
	for r := 0; r < y.h; r += rows {
		g.h = min(rows, y.h-r)
		window := under(s.mem, x, c.Size, c.Top, r)
		for k := range w.forward.blocks {
			b := &w.forward.blocks[k]
			g.dy = s.dmem[dy.pixel(r, 0)+b.at:]
			for ky := range c.Size {
				g.x, g.taps, g.dw = window[ky], taps, dw[ky*taps*g.dws+b.at:]
				g.check(b.width)
				b.grad(g)
			}
			one := *g
			one.x, one.xs, one.xrow, one.taps, one.dw = ones, 0, 0, 4, bias[b.at:]
			one.check(b.width)
			b.grad(&one)
		}
	}
	if film {
		s.filmBack(i, l, dw, bias)
	}

	// Sources.
	dx := &s.djoined[i]
	first := true
	if !s.joins(i) {
		v := node.From[0]
		if !s.needs[v] {
			return
		}
		dx, first = &s.dvalues[v], !s.touched[v]
		s.touched[v] = true
	} else {
		any := false
		for _, v := range node.From {
			any = any || s.needs[v]
		}
		if !any {
			return
		}
	}
	s.start(dy)
	if c.Size == 2 {
		for r := range dy.h {
			from := s.window(s.dmem, dy, 1, 0, r)
			for k, p := range w.backward {
				to := s.dmem[dx.pixel(2*r+k/2, k%2):]
				var res []float32
				if !first {
					res = to
				}
				p.strided(&s.row, to, res, from, nil, dy.w, dy.stride, 2*dx.stride)
			}
		}
	} else {
		for r := range dx.h {
			to := s.dmem[dx.pixel(r, 0):]
			var res []float32
			if !first {
				res = to
			}
			w.backward[0].strided(&s.row, to, res, s.window(s.dmem, dy, c.Size, 2-c.Top, r), nil, dx.w, dy.stride,
				dx.stride)
		}
	}
	if s.joins(i) {
		s.scatter(i)
	}
}

// scatter takes the gradient of gathered sources back to them.
func (s *sweep) scatter(i int) {
	node, from := &s.Nodes[i], &s.djoined[i]
	at := 0
	for k, v := range node.From {
		dx := &s.dvalues[v]
		if s.needs[v] {
			half := 0
			if k == 0 && node.Conv.Up {
				half = 1
			}
			s.touch(v)
			for r := range from.h {
				p := from.pixel(r, 0) + at
				for c := range from.w {
					add(s.dmem[dx.pixel(r>>half, c>>half):][:dx.channels], s.dmem[p:])
					p += from.stride
				}
			}
		}
		at += dx.channels
	}
}

// filmBack turns the gradient of weights that FiLM has scaled into those of the
// weights and of the scale and offset. With w' = w·(1+a) and b' = b·(1+a)+o:
// dw = dw'·(1+a), db = db'·(1+a), da = Σ dw'·w + db'·b, do = db'.
func (s *sweep) filmBack(i int, l *lane, dw, db []float32) {
	node, set := &s.Nodes[i], s.set[i]
	c, w := node.Conv, s.weights(i)
	f := s.vector(s.mem, &s.values[c.FiLM])
	weights, biases := s.params[w.weight], s.params[w.bias]
	stride, taps := w.forward.outStride, w.size*w.size
	da, do := make([]float64, c.Out), make([]float64, c.Out)
	for o := range c.Out {
		scale := 1 + f[o]
		l.biases[set][o] += db[o] * scale
		do[o] = float64(db[o])
		da[o] = float64(db[o]) * float64(biases[o])
	}
	for i := range w.in {
		for tap := range taps {
			from := dw[(tap*w.inStride+i)*stride:][:c.Out]
			to := l.weights[set][(tap*w.inStride+i)*stride:][:c.Out]
			for o, v := range from {
				to[o] += v * (1 + f[o])
				da[o] += float64(v) * float64(weights[(o*w.in+i)*taps+tap])
			}
		}
	}
	if !s.needs[c.FiLM] {
		return
	}
	s.touch(c.FiLM)
	d := s.vector(s.dmem, &s.dvalues[c.FiLM])
	for o := range c.Out {
		d[o] += float32(da[o])
		d[c.Out+o] += float32(do[o])
	}
}
