//go:build cuda && linux

package cuda

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/cuda/kernel"
)

// Options steer a Backend. The zero value is good for a device that nobody else uses.
type Options struct {
	// Memory is the most device memory, in bytes, that the values of networks and programs take while
	// they run and are kept ready to run again; weights come on top. 0: nine tenths of what is free at
	// Open.
	Memory int64
	// Block lets the processor rest while it waits for the device, at the cost of some microseconds each
	// time; else it spins.
	Block bool
}

// Backend computes on one device. It is a kernels.GraphBackend; its methods are safe for concurrent
// use, but for Close.
type Backend struct {
	device  *driver.Device
	info    driver.Info
	kernels *kernel.Set
	pool    *pool
	lost    atomic.Bool

	mu     sync.Mutex
	loaded map[owned]struct{} // what Close has to release
}

// owned is what something made by a Backend has on the device.
type owned interface{ free() error }

var _ kernels.GraphBackend = (*Backend)(nil)

// Open makes the device of an ordinal ready, counted from 0. driver.Available says why
// there is none.
func Open(ordinal int, o Options) (*Backend, error) {
	d, err := driver.Open(ordinal, o.Block)
	if err != nil {
		return nil, err
	}
	b := &Backend{device: d, info: d.Info(), loaded: make(map[owned]struct{})}
	if b.kernels, err = kernel.Load(d); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if o.Memory == 0 {
		var free int64
		free, _, err = d.Memory()
		o.Memory = free / 10 * 9
	}
	if err == nil {
		err = allowBlocks(b.kernels, b.info.SharedPerBlock)
	}
	if err != nil {
		return nil, errors.Join(err, b.kernels.Unload(), d.Close())
	}
	b.pool = newPool(d, o.Memory)
	return b, nil
}

// Close releases all that networks and programs of b have on the device, and the device. None of them
// may be in use, nor be used again.
func (b *Backend) Close() error {
	b.mu.Lock()
	loaded := b.loaded
	b.loaded = nil
	b.mu.Unlock()
	var errs []error
	for r := range loaded {
		errs = append(errs, r.free())
	}
	return errors.Join(append(errs, b.pool.close(), b.kernels.Unload(), b.device.Close())...)
}

// release frees what o has, unless it or Close has done so.
func (b *Backend) release(o owned) error {
	b.mu.Lock()
	_, ok := b.loaded[o]
	delete(b.loaded, o)
	b.mu.Unlock()
	if !ok {
		return nil
	}
	return o.free()
}

// Name returns "cuda/" and the compute capability, e.g. "cuda/sm_90".
func (b *Backend) Name() string { return fmt.Sprintf("cuda/sm_%d%d", b.info.Major, b.info.Minor) }

// Info describes the device.
func (b *Backend) Info() driver.Info { return b.info }

// Kernels names the architecture that the loaded kernels were compiled for.
func (b *Backend) Kernels() string { return b.kernels.Arch() }

// Memory returns how much memory the device has, and how much of it nobody uses, in bytes.
func (b *Backend) Memory() (free, total int64, err error) { return b.device.Memory() }

// Trim releases what is kept for later runs but not in use, as it is before the first run. The next
// ones make anew what they need.
func (b *Backend) Trim() error { return b.pool.close() }

// Shapes calls f as if the device had one multiprocessor, then very many, then as it is. So f runs the
// kernels for large images and those for small ones, of which layouts choose by what the device has. Nothing
// else may use b meanwhile.
func (b *Backend) Shapes(f func() error) error {
	own := b.info.SMs
	defer func() { b.info.SMs = own }()
	for _, n := range []int{1, 1000, own} {
		b.info.SMs = n
		if err := b.Trim(); err != nil { // plans stay what they are
			return err
		}
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// Tolerance is how far an output of a network may be off that of exact arithmetic, as a relative error:
// the norm of the difference by the norm of the output, which is the noise predicted and not what is
// left of the image. Of noise fainter than some hundredths of the range it is more: see docs/gpu.md.
func (b *Backend) Tolerance() float64 { return 1e-2 }

// GraphTolerance is the same of the output of a graph.
func (b *Backend) GraphTolerance() float64 { return 2e-3 }

// usable reports a device that has been lost.
func (b *Backend) usable() error {
	if b.lost.Load() {
		return fmt.Errorf("%s: %w", b.info.Name, kernels.ErrDevice)
	}
	return nil
}

// explained adds to an error of the driver what package kernels calls it, and remembers that the device
// is lost.
func (b *Backend) explained(op string, err error) error {
	if err == nil {
		return nil
	}
	var e *driver.Error
	switch {
	case errors.As(err, &e) && e.Lost():
		b.lost.Store(true)
		return fmt.Errorf("%s: %w: %w", op, kernels.ErrDevice, err)
	case errors.Is(err, driver.ErrOutOfMemory):
		return fmt.Errorf("%s: %w: %w", op, kernels.ErrMemory, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// Conv3x3 implements kernels.Backend. It packs and copies the weights at each call; networks made by
// Load do that once.
func (b *Backend) Conv3x3(dst, src, residual []float32, height, width int, c *kernels.Conv) error {
	const op = "convolution"
	if err := c.Check(); err != nil {
		return err
	}
	if height < 1 || width < 1 || width > kernels.MaxPixels/height {
		return &kernels.ShapeError{Op: op, What: "height times width", Got: height * width, Want: kernels.MaxPixels}
	}
	for _, s := range []struct {
		what      string
		got, want int
	}{
		{"length of the input", len(src), height * width * c.In},
		{"length of the output", len(dst), height * width * c.Out},
		{"length of the residual", len(residual), height * width * c.Out},
	} {
		if s.got != s.want && (s.what != "length of the residual" || residual != nil) {
			return &kernels.ShapeError{Op: op, What: s.what, Got: s.got, Want: s.want}
		}
	}
	if err := b.usable(); err != nil {
		return err
	}
	return b.explained(op, b.convolve(dst, src, residual, height, width, c))
}

func (b *Backend) convolve(dst, src, residual []float32, height, width int, c *kernels.Conv) error {
	var s store
	w, err := s.conv(c.Weights, c.Bias, c.Out, [2]int{c.In, 0}, 3)
	if err != nil {
		return err
	}
	r, err := b.load(&s)
	if err != nil {
		return err
	}
	defer r.release()

	l := newLayout(b, r, 1)
	from := l.input(len(src))
	var more span
	if residual != nil {
		more = l.input(len(residual))
	}
	k := convolution{weights: w, size: 3, top: 1, slope: 1, height: height, width: width}
	if c.ReLU {
		k.slope = 0
	}
	k.x[0] = l.round(from, height, width, c.In)
	if residual != nil {
		k.residual = l.round(more, height, width, c.Out).span
	}
	k.dense = l.output(len(dst))
	l.convolve(k)
	return b.pool.once(key{r, single, height, width, 1}, l, func(p *plan) error {
		copy(p.given(from), src)
		if residual != nil {
			copy(p.given(more), residual)
		}
		if err := p.run(); err != nil {
			return err
		}
		copy(dst, p.result())
		return nil
	})
}
