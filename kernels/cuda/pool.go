//go:build cuda && linux

package cuda

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/diffdenoise/denoised/kernels/cuda/driver"
)

// plan is a layout with memory and a stream, ready to run again and again. It is for one goroutine at a
// time, which has it from pool.get to pool.put.
type plan struct {
	*layout
	key    key
	device *driver.Device
	memory driver.Ptr
	host   *driver.Pinned // in, and out after it
	stream *driver.Stream
	graph  *driver.Graph // all launches; nil in a plan that runs once
}

// key tells plans apart: what they compute, and for what size.
type key struct {
	res                  *resident
	kind                 kind
	height, width, count int
}

// kind is what a plan is for.
type kind int

const (
	forward  kind = iota // of a network
	trace                // of a network, all layers
	running              // of a program
	sampling             // of a program
	single               // one convolution
)

// newPlan allocates what a layout needs. With record, its launches are recorded once, so that a run is
// few calls of the driver.
func newPlan(d *driver.Device, k key, l *layout, record bool) (p *plan, err error) {
	p = &plan{layout: l, key: k, device: d}
	defer func() {
		if err != nil {
			p.destroy()
			p = nil
		}
	}()
	if p.memory, err = d.Alloc(l.free.End()); err != nil {
		return p, err
	}
	l.base = p.memory
	if p.host, err = d.Pin(l.in.bytes + l.out.bytes); err != nil {
		return p, err
	}
	if p.stream, err = d.NewStream(); err != nil {
		return p, err
	}
	if record {
		p.graph, err = p.stream.Capture(p.launch)
	}
	return p, err
}

// launch enqueues all launches.
func (p *plan) launch() error {
	for _, s := range p.steps {
		if err := s.run(p.stream); err != nil {
			return err
		}
	}
	return nil
}

// given returns where the numbers of an input are put before a run.
func (p *plan) given(s span) []float32 { return p.host.Float32()[s.at/4:][:s.bytes/4] }

// result returns where the numbers of the output are after a run.
func (p *plan) result() []float32 { return p.host.Float32()[p.in.bytes/4:] }

// run computes: inputs, launches, output.
func (p *plan) run() error {
	if err := p.start(); err != nil {
		return err
	}
	return p.finish()
}

// start enqueues the inputs and the launches.
func (p *plan) start() error {
	if err := p.stream.CopyIn(p.memory, p.host, 0, p.in.bytes); err != nil {
		return err
	}
	if p.graph == nil {
		return p.launch()
	}
	return p.graph.Launch(p.stream)
}

// finish enqueues the copy of the output and waits for all.
func (p *plan) finish() error {
	if err := p.stream.CopyOut(p.host, p.in.bytes, p.address(p.out), p.out.bytes); err != nil {
		return err
	}
	return p.stream.Sync()
}

// destroy releases what p has, of which some may be missing.
func (p *plan) destroy() error {
	var errs []error
	if p.stream != nil {
		errs = append(errs, p.stream.Sync())
	}
	if p.graph != nil {
		errs = append(errs, p.graph.Free())
	}
	if p.stream != nil {
		errs = append(errs, p.stream.Destroy())
	}
	if p.host != nil {
		errs = append(errs, p.host.Free())
	}
	if p.memory != 0 {
		errs = append(errs, p.device.Free(p.memory))
	}
	return errors.Join(errs...)
}

// pool makes plans, keeps those that are idle, and bounds the memory of all.
type pool struct {
	device *driver.Device
	budget int64

	mu     sync.Mutex
	freed  sync.Cond // a plan has been given back, or its holder pauses
	used   int64     // bytes of all plans
	busy   int       // plans in use
	paused int       // of these, those whose holders wait for somebody else
	idle   []*plan   // the one that was used last comes last
}

func newPool(d *driver.Device, budget int64) *pool {
	p := &pool{device: d, budget: budget}
	p.freed.L = &p.mu
	return p
}

// get returns a plan that is idle or makes one of what build returns. Where memory is short, plans that
// are idle make room, and plans that are in use are waited for, but for those in a pause. The error is
// driver.ErrOutOfMemory if all that is not enough.
func (p *pool) get(k key, build func() *layout) (*plan, error) {
	var l *layout
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for i, c := range slices.Backward(p.idle) {
			if c.key == k {
				p.idle = slices.Delete(p.idle, i, i+1)
				p.busy++
				return c, nil
			}
		}
		if l == nil {
			l = build()
		}
		bytes := int64(l.free.End())
		for bytes <= p.budget && p.used+bytes > p.budget && p.evict() {
		}
		if p.used+bytes <= p.budget {
			c, err := p.make(k, l, k.kind != single && k.kind != trace)
			if err == nil || !errors.Is(err, driver.ErrOutOfMemory) {
				return c, err
			}
			if p.evict() {
				continue
			}
		}
		if p.busy == p.paused || bytes > p.budget {
			return nil, fmt.Errorf("%d samples of %d×%d need %d bytes of %d: %w", k.count, k.width, k.height, bytes, p.budget, driver.ErrOutOfMemory)
		}
		p.freed.Wait()
	}
}

// make makes a plan, while others use the pool. The caller holds the lock.
func (p *pool) make(k key, l *layout, record bool) (*plan, error) {
	p.used += int64(l.free.End())
	p.busy++
	p.mu.Unlock()
	c, err := newPlan(p.device, k, l, record)
	p.mu.Lock()
	if err != nil {
		p.used -= int64(l.free.End())
		// While others are busy, to wake those that wait would make them try in turn, without end.
		if p.busy--; p.busy == p.paused {
			p.freed.Broadcast()
		}
	}
	return c, err
}

// What idle plans may hold beside device memory, which the budget bounds: streams and graphs, of which
// images of many small sizes would make thousands, and pinned memory, which the host lacks elsewhere.
const (
	maxIdle   = 64
	maxPinned = 1 << 30 // bytes; a single plan may have more
)

// put gives a plan back.
func (p *pool) put(c *plan) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	p.idle = append(p.idle, c)
	for len(p.idle) > maxIdle || len(p.idle) > 1 && p.pinned() > maxPinned {
		p.evict()
	}
	p.freed.Broadcast()
}

// shortPause is what others wait for as if it were work.
const shortPause = 200 * time.Millisecond

// pause calls f, in which the holder of a plan waits for somebody, who may be waiting for memory.
func (p *pool) pause(f func() error) error {
	var long, over bool
	timer := time.AfterFunc(shortPause, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if long = !over; long {
			p.paused++
			p.freed.Broadcast()
		}
	})
	defer func() {
		timer.Stop()
		p.mu.Lock()
		defer p.mu.Unlock()
		if over = true; long {
			p.paused--
		}
	}()
	return f()
}

// pinned returns the bytes of pinned memory of idle plans.
func (p *pool) pinned() int {
	n := 0
	for _, c := range p.idle {
		n += c.in.bytes + c.out.bytes
	}
	return n
}

// discard gives a plan back that is not to be used again.
func (p *pool) discard(c *plan) error {
	err := c.destroy()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	p.used -= int64(c.free.End())
	p.freed.Broadcast()
	return err
}

// once makes a plan for one use by f.
func (p *pool) once(k key, l *layout, f func(*plan) error) error {
	c, err := p.get(k, func() *layout { return l })
	if err != nil {
		return err
	}
	return errors.Join(f(c), p.discard(c))
}

// evict releases the plan that has been idle for longest, if there is one. The caller holds the lock.
func (p *pool) evict() bool {
	if len(p.idle) == 0 {
		return false
	}
	c := p.idle[0]
	p.idle = slices.Delete(p.idle, 0, 1)
	p.used -= int64(c.free.End())
	c.destroy() // an error here would be the device's, and show elsewhere
	return true
}

// forget releases the idle plans that read weights.
func (p *pool) forget(r *resident) error {
	return p.release(func(c *plan) bool { return c.res == r })
}

// close releases all idle plans.
func (p *pool) close() error { return p.release(func(*plan) bool { return true }) }

func (p *pool) release(which func(*plan) bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	p.idle = slices.DeleteFunc(p.idle, func(c *plan) bool {
		if !which(c) {
			return false
		}
		p.used -= int64(c.free.End())
		errs = append(errs, c.destroy())
		return true
	})
	return errors.Join(errs...)
}

// alloc allocates memory that is not a plan's, for which idle plans make room.
func (p *pool) alloc(to *driver.Ptr, bytes int) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if *to, err = p.device.Alloc(bytes); err == nil || !errors.Is(err, driver.ErrOutOfMemory) || !p.evict() {
			return err
		}
	}
}
