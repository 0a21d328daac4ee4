//go:build cuda && linux

package driver

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"gorgonia.org/cu"
)

// Info describes a device.
type Info struct {
	Name           string
	Ordinal        int
	Major, Minor   int   // compute capability
	Memory         int64 // bytes
	SMs            int   // streaming multiprocessors
	SharedPerBlock int   // bytes of shared memory that a block can have at most, see Function.SetShared
	SharedPerSM    int   // bytes
	L2             int   // bytes
	ClockMHz       int   // 0 where the driver does not tell
	MemoryMHz      int   // 0 where the driver does not tell
	BusBits        int   // width of the memory's bus, 0 where the driver does not tell
	Driver         int   // version of CUDA that the driver supports, as MinDriver
}

// Counts is what is alive and must be released.
type Counts struct {
	Devices, Modules, Allocations, Pinned, Streams, Events, Graphs int
	DeviceBytes, PinnedBytes                                       int64
}

// String lists what is not zero.
func (c Counts) String() string {
	var list []string
	for _, n := range []struct {
		n    int
		what string
	}{
		{c.Devices, "devices"}, {c.Modules, "modules"}, {c.Allocations, "allocations"}, {c.Pinned, "pinned buffers"},
		{c.Streams, "streams"}, {c.Events, "events"}, {c.Graphs, "graphs"},
	} {
		if n.n != 0 {
			list = append(list, fmt.Sprintf("%d %s", n.n, n.what))
		}
	}
	if list == nil {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

var (
	liveMu sync.Mutex // guards live and the live of every Device
	live   Counts
)

// Live is what this process has alive on all devices.
func Live() Counts {
	liveMu.Lock()
	defer liveMu.Unlock()
	return live
}

// Device is a GPU. Its methods, and those of all that is made with it, may be called from any
// goroutine; only the release of a thing must come after its last use, as ever.
type Device struct {
	device cu.Device
	ctx    cu.CUContext
	info   Info
	live   Counts
	closed atomic.Bool

	mu     sync.Mutex
	allocs map[Ptr]int // bytes
}

// Open makes ready the device with an ordinal below Count. All that open the same
// device in one process share its memory and its fate, and how they wait: with block
// the processor rests while it waits for the device, else it spins.
func Open(ordinal int, block bool) (*Device, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	d := &Device{allocs: make(map[Ptr]int)}
	err := d.open(ordinal, block)
	if err != nil {
		return nil, fmt.Errorf("open GPU %d: %w", ordinal, err)
	}
	d.count(func(c *Counts) { c.Devices++ })
	return d, nil
}

func (d *Device) open(ordinal int, block bool) (err error) {
	if d.device, err = cu.GetDevice(ordinal); err != nil {
		return wrap("cuDeviceGet", err)
	}
	if d.info, err = info(d.device, ordinal); err != nil {
		return err
	}
	if block {
		// A wish: a driver that refuses it, as some do once the context exists, spins.
		_ = d.device.SetPrimaryCtxFlags(cu.SchedBlockingSync)
	}
	d.ctx, err = d.device.RetainPrimaryCtx()
	return wrap("cuDevicePrimaryCtxRetain", err)
}

func info(d cu.Device, ordinal int) (i Info, err error) {
	i = Info{Ordinal: ordinal, Driver: cu.Version()}
	if i.Name, err = d.Name(); err != nil {
		return i, wrap("cuDeviceGetName", err)
	}
	if i.Memory, err = d.TotalMem(); err != nil {
		return i, wrap("cuDeviceTotalMem", err)
	}
	// gorgonia.org/cu does not name this one.
	const maxSharedMemoryPerBlockOptin cu.DeviceAttribute = 97
	for _, a := range []struct {
		attribute cu.DeviceAttribute
		value     *int
		needed    bool
	}{
		{cu.ComputeCapabilityMajor, &i.Major, true},
		{cu.ComputeCapabilityMinor, &i.Minor, true},
		{cu.MultiprocessorCount, &i.SMs, true},
		{maxSharedMemoryPerBlockOptin, &i.SharedPerBlock, true},
		{cu.MaxSharedMemoryPerMultiprocessor, &i.SharedPerSM, true},
		{cu.L2CacheSize, &i.L2, true},
		{cu.ClockRate, &i.ClockMHz, false},
		{cu.MemoryClockRate, &i.MemoryMHz, false},
		{cu.GlobalMemoryBusWidth, &i.BusBits, false},
	} {
		n, err := d.Attribute(a.attribute)
		if err != nil && a.needed {
			return i, fmt.Errorf("attribute %d: %w", a.attribute, wrap("cuDeviceGetAttribute", err))
		}
		*a.value = n
	}
	i.ClockMHz /= 1000 // the driver counts kHz
	i.MemoryMHz /= 1000
	return i, nil
}

// Info describes the device.
func (d *Device) Info() Info { return d.info }

// Close gives the device back. All that was made with it must be released before,
// or it stays open and an error says what is left.
func (d *Device) Close() error {
	if d.closed.Swap(true) {
		return fmt.Errorf("close GPU %d: %w", d.info.Ordinal, ErrReleased)
	}
	liveMu.Lock()
	left := d.live
	liveMu.Unlock()
	left.Devices = 0
	if left != (Counts{}) {
		d.closed.Store(false)
		return fmt.Errorf("close GPU %d: still alive on it: %v", d.info.Ordinal, left)
	}
	d.count(func(c *Counts) { c.Devices-- })
	if err := d.device.ReleasePrimaryCtx(); err != nil {
		return fmt.Errorf("close GPU %d: %w", d.info.Ordinal, wrap("cuDevicePrimaryCtxRelease", err))
	}
	return nil
}

// count changes the counts of what is alive.
func (d *Device) count(change func(*Counts)) {
	liveMu.Lock()
	defer liveMu.Unlock()
	change(&live)
	change(&d.live)
}

// do calls f, which calls the driver, with the device's context.
func (d *Device) do(call string, f func() error) error {
	if d.closed.Load() {
		return fmt.Errorf("GPU %d %w", d.info.Ordinal, ErrReleased)
	}
	// The current context belongs to the thread, which the goroutine could leave
	// between the two calls.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cu.SetCurrentContext(d.ctx); err != nil {
		return wrap("cuCtxSetCurrent", err)
	}
	return wrap(call, f())
}

// Module is a loaded file of kernels.
type Module struct {
	device *Device
	module cu.Module
	gone   atomic.Bool
}

// Load loads kernels: PTX, which the driver compiles, or machine code for the
// device's very architecture.
func (d *Device) Load(image []byte) (*Module, error) {
	m := &Module{device: d}
	err := d.do("cuModuleLoadData", func() (err error) {
		m.module, err = cu.LoadData(string(image))
		return err
	})
	if err != nil {
		err = fmt.Errorf("load a module of %d bytes on %s: %w", len(image), d.info.Name, err)
		if !d.closed.Load() {
			if log := d.loadLog(image); log != "" {
				err = fmt.Errorf("%w: %s", err, log)
			}
		}
		return nil, err
	}
	d.count(func(c *Counts) { c.Modules++ })
	return m, nil
}

// Unload releases the module and its functions.
func (m *Module) Unload() error {
	if m.gone.Swap(true) {
		return fmt.Errorf("unload a module: %w", ErrReleased)
	}
	m.device.count(func(c *Counts) { c.Modules-- })
	if err := m.device.do("cuModuleUnload", m.module.Unload); err != nil {
		return fmt.Errorf("unload a module: %w", err)
	}
	return nil
}

// Function is a kernel of a Module.
type Function struct {
	module   *Module
	function cu.Function
	name     string
}

// Function finds a kernel by its name.
func (m *Module) Function(name string) (*Function, error) {
	if m.gone.Load() {
		return nil, fmt.Errorf("find kernel %s: module %w", name, ErrReleased)
	}
	f := &Function{module: m, name: name}
	err := m.device.do("cuModuleGetFunction", func() (err error) {
		f.function, err = m.module.Function(name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find kernel %s: %w", name, err)
	}
	return f, nil
}

// SetShared lets launches of the function have up to bytes of dynamic shared
// memory per block. Without it they can have 48 KiB; Info().SharedPerBlock less the
// function's static shared memory is the most there is.
func (f *Function) SetShared(bytes int) error {
	if f.module.gone.Load() {
		return fmt.Errorf("allow %s shared memory: module %w", f.name, ErrReleased)
	}
	if bytes < 0 || bytes > 1<<31-1 {
		return fmt.Errorf("allow %s shared memory: %d bytes", f.name, bytes)
	}
	if err := f.module.device.setShared(f.function, bytes); err != nil {
		return fmt.Errorf("allow %s %d bytes of shared memory per block: %w", f.name, bytes, err)
	}
	return nil
}
