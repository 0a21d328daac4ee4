//go:build cuda && linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/store"
)

// run measures on a GPU and prints.
func (o *gpuBench) run(cmd *cobra.Command, on *backend) error {
	b, ok := on.GraphBackend.(*cuda.Backend)
	if !ok {
		return fmt.Errorf("bench: cannot measure on %s", on.Name())
	}
	m, err := models.OpenOn(b, o.model)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	slices.Sort(o.sizes)
	o.sizes = slices.Compact(o.sizes)
	if o.soak > 0 {
		return o.endure(cmd, b, m)
	}
	r := &gpuReport{Device: on.info.Device, Driver: on.info.Driver, Kernels: on.info.Kernels, Model: m.Name() + " " + m.Version(), Rounds: o.rounds}
	c, err := b.Ceilings()
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	r.Ceilings = gpuCeilings{c.Tensor / 1e12, c.Single / 1e12, c.Copy / 1e9}
	for _, size := range o.sizes {
		if err := o.size(cmd.Context(), r, b, m, &c, size); err != nil {
			return fmt.Errorf("bench: %d×%d: %w", size, size, err)
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%d×%d done\n", size, size)
	}
	if o.asJSON {
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.print(cmd.OutOrStdout())
}

// size measures everything at one size.
func (o *gpuBench) size(ctx context.Context, r *gpuReport, b *cuda.Backend, m *models.Model, c *cuda.Ceilings, size int) error {
	student, err := b.Load(m.Student().Graph())
	if err != nil {
		return err
	}
	y, sigma := benchFloats(size*size), make([]float32, size*size)
	for i := range sigma {
		sigma[i] = 0.05
	}
	forward := func(dst []float32) error { return student.Forward(dst, y, sigma, size, size) }
	for _, batch := range o.batches {
		if err := ctx.Err(); err != nil {
			return err
		}
		t, err := b.Measure(student, size, size, batch, o.rounds)
		if err != nil {
			return err
		}
		rate, err := throughput(ctx, 2*batch, size*size, forward)
		if err != nil {
			return err
		}
		r.Results = append(r.Results, result("student", size, batch, t, c, 1e3/rate))
	}
	for _, n := range []int{1, 4, 16} {
		rate, err := throughput(ctx, n, size*size, forward)
		if err != nil {
			return err
		}
		r.Series = append(r.Series, gpuSeries{size, n, rate})
	}
	if size%4 != 0 {
		return nil // what follows halves sizes twice
	}
	for _, name := range []string{store.NetworkBSN, store.NetworkDiffusion} {
		if !m.Has(name) {
			continue
		}
		g, p, err := m.Graph(name)
		if err != nil {
			return err
		}
		for _, batch := range o.batches {
			if err := ctx.Err(); err != nil {
				return err
			}
			t, err := b.Measure(p, size, size, batch, o.rounds)
			if err != nil {
				return err
			}
			in := benchBatch(g, batch, size)
			rate, err := throughput(ctx, 2, batch*size*size, func(dst []float32) error { return p.Run(dst, in) })
			if err != nil {
				return err
			}
			r.Results = append(r.Results, result(name, size, batch, t, c, 1e3/(rate*float64(batch))))
		}
		if name != store.NetworkDiffusion {
			continue
		}
		took, err := o.sample(ctx, g, p, size)
		if err != nil {
			return err
		}
		r.SRDS = append(r.SRDS, gpuSRDS{size, o.steps, 1e3 * took.Seconds()})
	}
	return nil
}

// result puts what was measured in numbers for a slice.
func result(net string, size, batch int, t *cuda.Timing, c *cuda.Ceilings, whole float64) gpuResult {
	seconds := t.Device.Seconds()
	x := gpuResult{
		Net: net, Size: size, Batch: batch, GFLOP: t.FLOP / float64(batch) / 1e9,
		Device: 1e3 * seconds / float64(batch), Whole: whole,
		TFLOPS: t.FLOP / seconds / 1e12, Tensor: t.FLOP / seconds / c.Tensor,
		GBs: t.Bytes / seconds / 1e9, Copy: t.Bytes / seconds / c.Copy,
		Roofline: max(t.FLOP/c.Tensor, t.Bytes/c.Copy) / seconds,
	}
	for _, k := range t.Kernels {
		s := k.Time.Seconds()
		x.Kernels = append(x.Kernels, gpuKernel{k.Kernel, k.Launches, 1e6 * s, k.FLOP / s / 1e12, k.Bytes / s / 1e9})
	}
	return x
}

// benchBatch fills the inputs of a graph.
func benchBatch(g *kernels.Graph, count, size int) *kernels.Batch {
	b := &kernels.Batch{Count: count, Height: size, Width: size, Inputs: make([][]float32, g.Inputs()), Shifts: make([]int, g.Shifts())}
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Op == kernels.OpInput {
			h, w := n.Size(size, size)
			b.Inputs[n.K] = benchFloats(count * h * w * n.Channels)
		}
	}
	for i := range b.Shifts {
		b.Shifts[i] = 1
	}
	return b
}

// throughput returns how many calls of run a second n goroutines make that call it again and again, each
// with memory of its own for the result.
func throughput(ctx context.Context, n, length int, run func(dst []float32) error) (float64, error) {
	const warmUp, lasts = 100 * time.Millisecond, 500 * time.Millisecond
	var counted, counting atomic.Int64
	stop := make(chan struct{})
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			dst := make([]float32, length)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if errs[i] = run(dst); errs[i] != nil {
					return
				}
				counted.Add(counting.Load())
			}
		})
	}
	time.Sleep(warmUp)
	counting.Store(1)
	began := time.Now()
	for ctx.Err() == nil && (time.Since(began) < lasts || counted.Load() < 3 && time.Since(began) < 20*lasts) {
		time.Sleep(lasts / 100)
	}
	calls, took := counted.Load(), time.Since(began)
	close(stop)
	wg.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return 0, err
	}
	if calls == 0 {
		return 0, fmt.Errorf("not one run within %v", took.Round(time.Millisecond))
	}
	return float64(calls) / took.Seconds(), nil
}

// sample returns the median time of the sampling of a slice.
func (o *gpuBench) sample(ctx context.Context, g *kernels.Graph, p kernels.Program, size int) (time.Duration, error) {
	s, ok := p.(kernels.Sampler)
	if !ok {
		return 0, errors.New("the network cannot sample on the device")
	}
	b := benchBatch(g, 1, size)
	eps := b.Inputs[0]
	b.Inputs[0] = nil
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Op == kernels.OpInput && n.Vector {
			b.Inputs[n.K] = nil
		}
	}
	steps := net.SampleSteps(o.steps)
	mean, spread := make([]float32, len(eps)), make([]float32, len(eps))
	var times []time.Duration
	for range max(o.rounds, 2) {
		began := time.Now()
		if err := s.SamplePair(mean, spread, eps, b, steps, func(int) error { return ctx.Err() }); err != nil {
			return 0, err
		}
		times = append(times, time.Since(began))
	}
	times = times[1:] // the first one made its plan
	slices.Sort(times)
	return times[len(times)/2], nil
}

// endure runs slices of the largest size, four at a time, and looks whether anything grows. How many
// plans there are depends on which slices met, so it looks when there are none.
func (o *gpuBench) endure(cmd *cobra.Command, b *cuda.Backend, m *models.Model) error {
	size := o.sizes[len(o.sizes)-1]
	y, sigma := benchFloats(size*size), make([]float32, size*size)
	for i := range sigma {
		sigma[i] = 0.05
	}
	run := func(slices int) error {
		const atOnce = 4
		errs := make([]error, atOnce)
		var wg sync.WaitGroup
		for i := range atOnce {
			wg.Go(func() {
				dst := make([]float32, size*size)
				for k := i; k < slices && errs[i] == nil; k += atOnce {
					if errs[i] = cmd.Context().Err(); errs[i] != nil {
						return
					}
					errs[i] = m.Student().Forward(dst, y, sigma, net.Told{}, size, size)
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	const parts = 10
	each := max(o.soak/parts, 1)
	var first driver.Counts
	var free int64
	for part := range parts {
		if err := run(each); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		working, total, err := b.Memory()
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d slices of %d×%d: %d of %d MiB in use; %v\n", (part+1)*each, size, size, (total-working)>>20, total>>20, driver.Live())
		if err := b.Trim(); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		left, _, err := b.Memory()
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		now := driver.Live()
		switch {
		case part < parts/2: // by then the driver has what it keeps for itself
			first, free = now, left
		case now != first:
			return fmt.Errorf("bench: handles or bytes have grown, from %v to %v", first, now)
		case left < free:
			return fmt.Errorf("bench: device memory in use has grown by %d bytes", free-left)
		}
	}
	return nil
}
