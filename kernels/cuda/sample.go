//go:build cuda && linux

package cuda

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
)

var _ kernels.Sampler = (*program)(nil)

// SamplePair implements kernels.Sampler. While done waits, for whom it may, others that lack the memory
// of this pair are told so. Of numbers beyond the largest half it says what Run says.
func (p *program) SamplePair(mean, spread, eps []float32, b *kernels.Batch, steps []kernels.SampleStep,
	done func(runs int) error) error {
	const op = "sample"
	vector, err := p.CheckSampling(mean, spread, eps, b, steps)
	if err != nil {
		return err
	}
	if len(eps) > maxState {
		return fmt.Errorf("%s: a state of %d numbers, the most are %d: %w", op, len(eps), maxState, kernels.ErrMemory)
	}
	if err := p.b.usable(); err != nil {
		return err
	}
	// Both samples at once, or one after the other at each step if memory is short.
	var c *plan
	for count := 2; count > 0 && c == nil; count-- {
		c, err = p.b.pool.get(key{p.res, sampling, b.Height, b.Width, count}, func() *layout { return p.samplingLayout(vector, b.Height, b.Width, count) })
		if err != nil && !errors.Is(err, driver.ErrOutOfMemory) {
			break
		}
	}
	if err != nil {
		return p.b.explained(op, err)
	}
	defer runtime.KeepAlive(p) // until the plan is idle
	defer p.b.pool.put(c)
	state := c.given(c.inputs[0])
	n := copy(state, eps)
	for i, e := range eps {
		state[n+i] = -e
	}
	for k, values := range b.Inputs {
		for i := range c.count {
			copy(c.given(c.inputs[k])[i*len(values):], values) // none of input 0 and the vector
		}
	}
	c.shift(b.Shifts)
	if err := c.begin(); err != nil {
		return p.b.explained(op, err)
	}
	for i := range steps {
		if err := c.step(c.inputs[vector], &steps[i]); err != nil {
			return p.b.explained(fmt.Sprintf("%s: step %d of %d", op, i+1, len(steps)), err)
		}
		if done == nil {
			continue
		}
		if err := p.b.pool.pause(func() error { return done(2 * (i + 1)) }); err != nil {
			return err
		}
	}
	err = p.b.kernels.SamplePair(c.stream, opGrid(n, 1), opBlock, 0, c.address(c.out), c.address(c.out), n)
	if err == nil {
		err = c.finish()
	}
	if err != nil {
		return p.b.explained(op, err)
	}
	inputs := append([][]float32{eps}, b.Inputs...)
	for _, s := range steps {
		inputs = append(inputs, s.Vector, []float32{s.State, s.Keep, s.Add})
	}
	if err := overflow(c.result()[:2*n], inputs...); err != nil {
		return p.b.explained(op, err)
	}
	copy(mean, c.result())
	copy(spread, c.result()[n:2*n])
	return nil
}

// maxState is the most numbers of a state: kernels count those of the pair in 32 bits.
const maxState = 1 << 30

// Before the numbers of the vector input, a plan for sampling has those of kernels.SampleStep.
const (
	stepState = iota
	stepKeep
	stepAdd
	stepNumbers = 4 // one is not used
)

// samplingLayout is one step of two states, count of which run through the graph at a time. Its inputs
// are those of the graph, but both states in place of input 0, and the numbers of a step with those of
// the vector input; then the shifts. The output takes the place of the states.
func (p *program) samplingLayout(vector, height, width, count int) *layout {
	l := newLayout(p.b, p.res, count)
	sizes := p.inputSizes(height, width)
	for k, n := range sizes {
		switch k {
		case 0:
			l.input(2 * n)
		case vector:
			l.input(stepNumbers + count*n)
		default:
			l.input(count * n)
		}
	}
	if n := p.Shifts(); n > 0 {
		l.shifts = l.input(n)
	}
	l.out = l.inputs[0]
	n := count * sizes[0]
	scalars := l.inputs[vector]
	v := l.free.take(4 * n)
	values := make([]tensor, len(p.Nodes))
	var state tensor
	for i := range p.Nodes {
		node := &p.Nodes[i]
		switch {
		case node.Op != kernels.OpInput:
		case node.K == 0:
			h, w := node.Size(height, width)
			state = l.tensor(h, w, node.Channels)
			values[i] = state
		case node.K == vector:
			values[i] = l.received(node, span{scalars.at + 4*stepNumbers, scalars.bytes - 4*stepNumbers}, height, width)
		default:
			values[i] = l.received(node, l.inputs[node.K], height, width)
		}
	}
	l.first, l.steps = l.steps, nil
	for part := range 2 / count {
		x := func() driver.Ptr { return l.address(l.inputs[0]) + driver.Ptr(4*n*part) }
		states := span{bytes: 4 * n} // of which a part is read and written
		l.add(moves("sample_input", states, state.span), func(on *driver.Stream) error {
			return l.b.kernels.SampleInput(on, l.grid(state), opBlock, 0, x(), l.address(scalars), l.address(state.span),
				state.height, state.width, state.channels, state.parts())
		})
		p.compute(l, append([]tensor(nil), values...), v, height, width)
		l.add(moves("sample_step", states, v, states), func(on *driver.Stream) error {
			return l.b.kernels.SampleStep(on, opGrid(n, 1), opBlock, 0, x(), l.address(v), l.address(scalars), n)
		})
	}
	return l
}

// begin enqueues the inputs of a plan for sampling, and what is done once with them.
func (p *plan) begin() error {
	if err := p.stream.CopyIn(p.memory, p.host, 0, p.in.bytes); err != nil {
		return err
	}
	for _, s := range p.first {
		if err := s.run(p.stream); err != nil {
			return err
		}
	}
	return nil
}

// step takes one step of a plan for sampling, which has its numbers in the input numbers.
func (p *plan) step(numbers span, s *kernels.SampleStep) error {
	// Whatever has read the numbers of the step before is done. The copy of begin may not be, but what it
	// takes from here is written over.
	to := p.given(numbers)
	to[stepState], to[stepKeep], to[stepAdd] = s.State, s.Keep, s.Add
	for i := range p.count {
		copy(to[stepNumbers+i*len(s.Vector):], s.Vector)
	}
	if err := p.stream.CopyIn(p.address(numbers), p.host, numbers.at, numbers.bytes); err != nil {
		return err
	}
	if err := p.graph.Launch(p.stream); err != nil {
		return err
	}
	return p.stream.Sync()
}
