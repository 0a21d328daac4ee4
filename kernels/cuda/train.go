//go:build cuda && linux

package cuda

import (
	"errors"
	"fmt"
	"math"
	"runtime"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
)

// trainer is a kernels.Trainer. All that it changes is on the device, where a step is one launch of a
// captured graph: the batch goes there, the loss and the norm of the gradient come back. Everything is
// computed in single precision. TrainOptions.Workers means nothing.
//
// Close releases its memory; otherwise the garbage collector does, some time.
type trainer struct {
	*kernels.Graph
	options kernels.TrainOptions
	layers  []trainLayer
	layer   []int  // of each node, -1 for none
	needs   []bool // by node: a parameter lies upstream, so the gradient is wanted

	// Where each parameter begins in the vectors on the device. Those that decay come first.
	offset  []int
	decayed int
	floats  int // of a vector

	*trainDevice
	step    int
	last    *kernels.State // the latest that the host knows
	failed  error          // of the device, or of a use after Close
	cleanup runtime.Cleanup
}

// trainDevice is what a trainer has on the device.
type trainDevice struct {
	b      *Backend
	stream *driver.Stream
	memory driver.Ptr // the vectors
	plan   *trainPlan // for batches of the shape of the last one
}

// Vectors of all parameters, in the order in which they lie on the device.
const (
	vectorParams = iota
	vectorMean
	vectorSquares
	vectorEMA
	vectorGradient
	vectors
)

// Train implements kernels.GraphBackend. The trainer is an io.Closer.
func (b *Backend) Train(g *kernels.Graph, s *kernels.State, o kernels.TrainOptions) (kernels.Trainer, error) {
	for _, x := range vectorsOf(s) {
		if err := g.CheckParams(*x); err != nil {
			return nil, fmt.Errorf("train: %w", err)
		}
	}
	t := &trainer{Graph: g, options: o.WithDefaults(), step: s.Step, last: s.Clone(), trainDevice: &trainDevice{b: b}}
	if err := t.findLayers(); err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	t.offset = make([]int, len(g.Params))
	for _, decays := range []bool{true, false} {
		for i := range g.Params {
			if len(g.Params[i].Shape) > 1 == decays {
				t.offset[i] = t.floats
				t.floats += g.Params[i].Len()
			}
		}
		if decays {
			t.decayed = t.floats
		}
	}
	if err := b.usable(); err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	if err := t.start(); err != nil {
		return nil, errors.Join(b.explained("train", err), t.free())
	}
	b.mu.Lock()
	b.loaded[t.trainDevice] = struct{}{}
	b.mu.Unlock()
	t.cleanup = runtime.AddCleanup(t, func(d *trainDevice) { d.release() }, t.trainDevice)
	return t, nil
}

// vectorsOf are the vectors of a state, in the order in which they lie on the device.
func vectorsOf(s *kernels.State) []*[][]float32 {
	return []*[][]float32{&s.Params, &s.Mean, &s.Squares, &s.EMA}
}

// start takes the state to the device.
func (t *trainer) start() (err error) {
	if t.stream, err = t.b.device.NewStream(); err != nil {
		return err
	}
	if err := t.b.pool.alloc(&t.memory, 4*vectors*t.floats); err != nil {
		return err
	}
	host, err := t.b.device.Pin(4 * vectors * t.floats)
	if err != nil {
		return err
	}
	defer host.Free()
	all := host.Float32()
	clear(all)
	for v, x := range vectorsOf(t.last) {
		for i, p := range *x {
			copy(all[v*t.floats+t.offset[i]:], p)
		}
	}
	if err := t.stream.CopyIn(t.memory, host, 0, 4*len(all)); err != nil {
		return err
	}
	return t.stream.Sync()
}

// vector returns the address of a vector.
func (t *trainer) vector(v int) driver.Ptr { return t.memory + driver.Ptr(4*v*t.floats) }

// Close releases the memory on the device. State still returns the state that was last asked for.
func (t *trainer) Close() error {
	t.cleanup.Stop()
	if t.failed == nil {
		t.failed = errors.New("the trainer is closed")
	}
	return t.release()
}

// release frees all, unless that has been done.
func (d *trainDevice) release() error { return d.b.release(d) }

// free implements owned. Some may be missing.
func (d *trainDevice) free() error {
	var errs []error
	if d.plan != nil {
		errs = append(errs, d.plan.free(d.b.device))
	}
	if d.memory != 0 {
		errs = append(errs, d.b.device.Free(d.memory))
	}
	if d.stream != nil {
		errs = append(errs, d.stream.Destroy())
	}
	return errors.Join(errs...)
}

// State implements kernels.Trainer. If the device has failed, it is the state that was last asked for,
// or the first one; Step says what has happened.
func (t *trainer) State() *kernels.State {
	if t.last.Step != t.step && t.failed == nil {
		s, err := t.download()
		if err != nil {
			t.failed = t.b.explained("read the state of training", err)
		} else {
			t.last = s
		}
	}
	return t.last.Clone()
}

// download returns the state on the device.
func (t *trainer) download() (*kernels.State, error) {
	all, err := t.read(vectorParams, vectorEMA+1)
	if err != nil {
		return nil, err
	}
	s := &kernels.State{Step: t.step}
	for v, x := range vectorsOf(s) {
		*x = t.split(all[v*t.floats:][:t.floats])
	}
	return s, nil
}

// read returns the vectors from first to end-1.
func (t *trainer) read(first, end int) ([]float32, error) {
	bytes := 4 * (end - first) * t.floats
	host, err := t.b.device.Pin(bytes)
	if err != nil {
		return nil, err
	}
	defer host.Free()
	if err := t.stream.CopyOut(host, 0, t.vector(first), bytes); err != nil {
		return nil, err
	}
	if err := t.stream.Sync(); err != nil {
		return nil, err
	}
	return append([]float32(nil), host.Float32()...), nil
}

// split cuts a vector into parameters.
func (t *trainer) split(vector []float32) [][]float32 {
	params := make([][]float32, len(t.Params))
	for i := range params {
		params[i] = vector[t.offset[i]:][:t.Params[i].Len()]
	}
	return params
}

// Gradient implements kernels.Trainer.
func (t *trainer) Gradient(b *kernels.Batch) (float64, [][]float32, error) {
	loss, _, err := t.run(b, [trainFactors]float32{})
	if err != nil {
		return 0, nil, err
	}
	g, err := t.read(vectorGradient, vectorGradient+1)
	if err != nil {
		return 0, nil, t.b.explained("read a gradient", err)
	}
	return loss, t.split(g), nil
}

// Step implements kernels.Trainer.
func (t *trainer) Step(b *kernels.Batch, rate float64) (loss, norm float64, err error) {
	o, step := &t.options, float64(t.step+1)
	// Early steps would otherwise be drawn to where training began.
	ema := min(o.EMA, step/(step+9))
	loss, norm, err = t.run(b, [trainFactors]float32{
		1,
		float32(rate / (1 - math.Pow(o.Beta1, step))),
		float32(1 / math.Sqrt(1-math.Pow(o.Beta2, step))),
		float32(rate * o.Decay),
		1 - float32(ema),
	})
	if err != nil {
		return 0, 0, err
	}
	if loss-loss != 0 || norm-norm != 0 { // the device has found the same, and has changed nothing
		return loss, norm, fmt.Errorf("training step %d: loss %g, gradient norm %g", t.step+1, loss, norm)
	}
	t.step++
	return loss, norm, nil
}

// run computes the loss and the gradient of a batch, and takes a step with factors, which are those of
// the kernel train_step.
func (t *trainer) run(b *kernels.Batch, factors [trainFactors]float32) (loss, norm float64, err error) {
	if t.failed != nil {
		return 0, 0, t.failed
	}
	if err := t.Check(b, true); err != nil {
		return 0, 0, err
	}
	if err := t.b.usable(); err != nil {
		return 0, 0, err
	}
	if p := t.plan; p == nil || p.count != b.Count || p.height != b.Height || p.width != b.Width {
		if p != nil {
			t.plan = nil
			err = p.free(t.b.device)
		}
		if err == nil {
			t.plan, err = t.newPlan(b.Count, b.Height, b.Width)
		}
		if err != nil {
			return 0, 0, t.b.explained(fmt.Sprintf("train on %d samples of %d×%d", b.Count, b.Height, b.Width), err)
		}
	}
	t.plan.fill(b, factors)
	err = t.plan.graph.Launch(t.stream)
	if err == nil {
		err = t.stream.Sync()
	}
	if err != nil {
		// Nobody knows how far the step has come.
		t.failed = t.b.explained(fmt.Sprintf("training step %d", t.step+1), err)
		return 0, 0, t.failed
	}
	loss, norm = t.plan.result()
	runtime.KeepAlive(t) // or the memory could be gone
	return loss, norm, nil
}
