//go:build cuda && linux

package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/cuda/kernel"
)

// Ceilings are what a device does at best, as measured: the most that any kernel can reach.
type Ceilings struct {
	Tensor float64 // FLOP/s of products of halves, summed in single precision
	Single float64 // FLOP/s in single precision
	Copy   float64 // bytes/s of device memory, read and written
}

// copyBytes is what the copy of Ceilings reads: far more than any cache holds.
const copyBytes = 256 << 20

// Ceilings measures for about a tenth of a second. Nobody else should use the device meanwhile.
func (b *Backend) Ceilings() (c Ceilings, err error) {
	const op = "measure the device"
	if err := b.usable(); err != nil {
		return c, err
	}
	bytes := copyBytes
	var memory driver.Ptr
	for {
		if err = b.pool.alloc(&memory, 2*bytes); !errors.Is(err, driver.ErrOutOfMemory) || bytes < 1<<20 {
			break
		}
		bytes /= 2
	}
	if err != nil {
		return c, b.explained(op, err)
	}
	defer b.device.Free(memory)
	on, err := b.device.NewStream()
	if err != nil {
		return c, b.explained(op, err)
	}
	defer on.Destroy()
	blocks := 8 * b.info.SMs
	grid, block := [3]int{blocks, 1, 1}, [3]int{kernel.PeakThreads, 1, 1}
	for _, m := range []struct {
		rate *float64
		work float64 // of a round
		run  func(on *driver.Stream, rounds int) error
	}{
		{&c.Tensor, float64(blocks*kernel.PeakThreads/32) * kernel.PeakChains * 2 * 16 * 16 * 8, func(on *driver.Stream, rounds int) error {
			return b.kernels.PeakTensor(on, grid, block, 0, memory, rounds, 0)
		}},
		{&c.Single, float64(blocks*kernel.PeakThreads) * kernel.PeakChains * 2, func(on *driver.Stream, rounds int) error {
			return b.kernels.PeakSingle(on, grid, block, 0, memory, rounds, 0)
		}},
		{&c.Copy, 2 * float64(bytes), func(on *driver.Stream, rounds int) error {
			for range rounds {
				if err := b.kernels.PeakCopy(on, grid, block, 0, memory+driver.Ptr(bytes), memory, bytes/16); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		// So many rounds that the beginning and the end of a launch do not count.
		for rounds := 1; ; rounds *= 4 {
			t, err := b.time(on, 3, func(on *driver.Stream) error { return m.run(on, rounds) })
			if err != nil {
				return c, b.explained(op, err)
			}
			if *m.rate = m.work * float64(rounds) / t.Seconds(); t > 3*time.Millisecond {
				break
			}
		}
	}
	return c, nil
}

// time returns the best of some rounds of a launch, after one that warms up.
func (b *Backend) time(on *driver.Stream, rounds int, run launch) (best time.Duration, err error) {
	start, err := b.device.NewEvent()
	if err != nil {
		return 0, err
	}
	defer start.Destroy()
	end, err := b.device.NewEvent()
	if err != nil {
		return 0, err
	}
	defer end.Destroy()
	for i := range rounds + 1 {
		if err := errors.Join(start.Record(on), run(on), end.Record(on)); err != nil {
			return 0, err
		}
		t, err := end.Since(start)
		if err != nil {
			return 0, err
		}
		if i == 1 || i > 1 && t < best {
			best = t
		}
	}
	return max(best, time.Nanosecond), nil
}

// Timing is how long a network or program takes on the device, without copies from and to the host.
type Timing struct {
	Device  time.Duration // of one run, the median of some rounds
	FLOP    float64       // of one run
	Bytes   float64       // that one run moves at least in device memory
	Kernels []KernelTiming
}

// KernelTiming is the part of a kernel in a Timing, by itself and not as part of a graph, so that the
// sum of all is more than the whole.
type KernelTiming struct {
	Kernel      string
	Launches    int
	Time        time.Duration // of all launches
	FLOP, Bytes float64       // of all launches
}

// Measure times a network or program of b for count images or samples of a size. The median is of so
// many rounds. Nobody else should use the device meanwhile.
func (b *Backend) Measure(what any, height, width, count, rounds int) (*Timing, error) {
	const op = "measure"
	if count < 1 || count > maxBatch || height < 1 || width < 1 || width > kernels.MaxPixels/height {
		return nil, fmt.Errorf("%s: %d samples of %d×%d, allowed are 1 to %d", op, count, width, height, maxBatch)
	}
	if rounds < 1 {
		return nil, fmt.Errorf("%s: %d rounds", op, rounds)
	}
	if err := b.usable(); err != nil {
		return nil, err
	}
	var p *plan
	var err error
	switch n := what.(type) {
	case *network:
		p, err = b.pool.get(key{n.res, forward, height, width, count}, func() *layout { return n.layout(height, width, count) })
	case *program:
		if m := n.Multiple(); height%m != 0 || width%m != 0 {
			return nil, &kernels.ShapeError{Op: op, What: "height or width", Got: height, Want: (height + m - 1) / m * m}
		}
		p, err = b.pool.get(key{n.res, running, height, width, count}, func() *layout { return n.layout(height, width, count) })
	default:
		return nil, fmt.Errorf("%s: %T is not of this backend", op, what)
	}
	if err != nil {
		return nil, b.explained(op, err)
	}
	defer b.pool.put(p)
	t, err := b.measure(p, rounds)
	runtime.KeepAlive(what)
	return t, b.explained(op, err)
}

func (b *Backend) measure(p *plan, rounds int) (*Timing, error) {
	// Numbers as of an image: a device that multiplies zeros draws less power, and is faster.
	for _, in := range p.inputs {
		for i := range p.given(in) {
			p.given(in)[i] = float32(uint32(i)*2654435761>>16) / (1 << 16)
		}
	}
	if p.shifts.bytes > 0 {
		clear(p.given(p.shifts))
	}
	if err := p.stream.CopyIn(p.memory, p.host, 0, p.in.bytes); err != nil {
		return nil, err
	}
	// As many runs between two events as make the time between launches small.
	once, err := b.time(p.stream, 2, p.graph.Launch)
	if err != nil {
		return nil, err
	}
	runs := 1 + int(2*time.Millisecond/once)
	t := new(Timing)
	var times []time.Duration
	for range rounds {
		all, err := b.time(p.stream, 1, func(on *driver.Stream) error {
			for range runs {
				if err := p.graph.Launch(on); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		times = append(times, all/time.Duration(runs))
	}
	slices.Sort(times)
	t.Device = times[len(times)/2]
	for _, s := range p.steps {
		took, err := b.time(p.stream, 3, s.run)
		if err != nil {
			return nil, err
		}
		t.FLOP += s.flop
		t.Bytes += s.bytes
		i := slices.IndexFunc(t.Kernels, func(k KernelTiming) bool { return k.Kernel == s.kernel })
		if i < 0 {
			i = len(t.Kernels)
			t.Kernels = append(t.Kernels, KernelTiming{Kernel: s.kernel})
		}
		k := &t.Kernels[i]
		k.Launches++
		k.Time += took
		k.FLOP += s.flop
		k.Bytes += s.bytes
	}
	return t, nil
}
