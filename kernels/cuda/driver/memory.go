//go:build cuda && linux

package driver

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"gorgonia.org/cu"
)

// Ptr is an address in a device's memory. p+Ptr(n) is n bytes after p.
type Ptr uint64

// Alloc allocates device memory, at an address that is a multiple of 256. What is
// in it is not defined. The error is ErrOutOfMemory where there is not enough left.
func (d *Device) Alloc(bytes int) (Ptr, error) {
	if bytes < 1 {
		return 0, fmt.Errorf("allocate %d bytes on GPU %d", bytes, d.info.Ordinal)
	}
	var p cu.DevicePtr
	err := d.do("cuMemAlloc", func() (err error) {
		p, err = cu.MemAlloc(int64(bytes))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("allocate %d bytes on GPU %d: %w", bytes, d.info.Ordinal, err)
	}
	d.mu.Lock()
	d.allocs[Ptr(p)] = bytes
	d.mu.Unlock()
	d.count(func(c *Counts) { c.Allocations++; c.DeviceBytes += int64(bytes) })
	return Ptr(p), nil
}

// Free releases what Alloc returned. It waits for all work on the device.
func (d *Device) Free(p Ptr) error {
	d.mu.Lock()
	bytes, ok := d.allocs[p]
	delete(d.allocs, p)
	d.mu.Unlock()
	if !ok {
		return fmt.Errorf("free %#x on GPU %d: not allocated there, or %w", uint64(p), d.info.Ordinal, ErrReleased)
	}
	d.count(func(c *Counts) { c.Allocations--; c.DeviceBytes -= int64(bytes) })
	if err := d.do("cuMemFree", func() error { return cu.MemFree(cu.DevicePtr(p)) }); err != nil {
		return fmt.Errorf("free %d bytes on GPU %d: %w", bytes, d.info.Ordinal, err)
	}
	return nil
}

// Memory is how many bytes of the device's memory are free, for all processes
// together, and how many there are.
func (d *Device) Memory() (free, total int64, err error) {
	err = d.do("cuMemGetInfo", func() (err error) {
		free, total, err = cu.MemInfo()
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("free memory of GPU %d: %w", d.info.Ordinal, err)
	}
	return free, total, nil
}

// Pinned is host memory that stays where it is, which lets the device copy while
// the host does other things.
type Pinned struct {
	device *Device
	start  unsafe.Pointer
	bytes  int
	gone   atomic.Bool
}

// Pin allocates pinned host memory. The garbage collector has no part in it: it
// lives until Free. What is in it is not defined.
func (d *Device) Pin(bytes int) (*Pinned, error) {
	if bytes < 1 {
		return nil, fmt.Errorf("allocate %d bytes of pinned memory", bytes)
	}
	if d.closed.Load() {
		return nil, fmt.Errorf("allocate pinned memory: GPU %d %w", d.info.Ordinal, ErrReleased)
	}
	start, err := d.hostAlloc(bytes)
	if err != nil {
		return nil, fmt.Errorf("allocate %d bytes of pinned memory: %w", bytes, err)
	}
	d.count(func(c *Counts) { c.Pinned++; c.PinnedBytes += int64(bytes) })
	return &Pinned{device: d, start: start, bytes: bytes}, nil
}

// Bytes is the memory itself, nil after Free.
func (p *Pinned) Bytes() []byte {
	if p.gone.Load() {
		return nil
	}
	return unsafe.Slice((*byte)(p.start), p.bytes)
}

// Float32 is the same memory as whole float32, nil after Free.
func (p *Pinned) Float32() []float32 {
	if p.gone.Load() {
		return nil
	}
	return unsafe.Slice((*float32)(p.start), p.bytes/4)
}

// Free releases the memory, which no copy may be using any more and no slice refer to.
func (p *Pinned) Free() error {
	if p.gone.Swap(true) {
		return fmt.Errorf("free pinned memory: %w", ErrReleased)
	}
	p.device.count(func(c *Counts) { c.Pinned--; c.PinnedBytes -= int64(p.bytes) })
	if err := p.device.do("cuMemFreeHost", func() error { return cu.MemFreeHost(p.start) }); err != nil {
		return fmt.Errorf("free %d bytes of pinned memory: %w", p.bytes, err)
	}
	return nil
}

// part is the address of a range that must lie within the memory.
func (p *Pinned) part(offset, bytes int) (unsafe.Pointer, error) {
	if p.gone.Load() {
		return nil, fmt.Errorf("pinned memory %w", ErrReleased)
	}
	if offset < 0 || bytes < 1 || bytes > p.bytes || offset > p.bytes-bytes {
		return nil, fmt.Errorf("%d bytes at %d of %d bytes of pinned memory: %w", bytes, offset, p.bytes, errRange)
	}
	return unsafe.Add(p.start, offset), nil
}

var errRange = errors.New("out of range")
