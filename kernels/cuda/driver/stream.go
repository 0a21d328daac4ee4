//go:build cuda && linux

package driver

import (
	"fmt"
	"sync/atomic"
	"time"

	"gorgonia.org/cu"
)

// Stream is a queue of work for a device. Work on one stream runs in the order it
// was enqueued, work on two in any order, or at the same time. But for Sync and
// Destroy no method waits for work.
type Stream struct {
	device *Device
	stream cu.Stream
	gone   atomic.Bool
}

// NewStream makes a stream that depends on no other.
func (d *Device) NewStream() (*Stream, error) {
	s := &Stream{device: d}
	err := d.do("cuStreamCreate", func() (err error) {
		s.stream, err = cu.MakeStream(cu.NonBlocking)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a stream on GPU %d: %w", d.info.Ordinal, err)
	}
	d.count(func(c *Counts) { c.Streams++ })
	return s, nil
}

// do calls the driver for the stream.
func (s *Stream) do(call string, f func() error) error {
	if s.gone.Load() {
		return fmt.Errorf("stream %w", ErrReleased)
	}
	return s.device.do(call, f)
}

// CopyIn enqueues a copy of bytes of src, from offset on, to the device.
func (s *Stream) CopyIn(dst Ptr, src *Pinned, offset, bytes int) error {
	from, err := src.part(offset, bytes)
	if err == nil {
		err = s.do("cuMemcpyHtoDAsync", func() error {
			return cu.MemcpyHtoDAsync(cu.DevicePtr(dst), from, int64(bytes), s.stream)
		})
	}
	if err != nil {
		return fmt.Errorf("copy to GPU %d: %w", s.device.info.Ordinal, err)
	}
	return nil
}

// CopyOut enqueues a copy of bytes from the device to dst, from offset on.
func (s *Stream) CopyOut(dst *Pinned, offset int, src Ptr, bytes int) error {
	to, err := dst.part(offset, bytes)
	if err == nil {
		err = s.do("cuMemcpyDtoHAsync", func() error {
			return cu.MemcpyDtoHAsync(to, cu.DevicePtr(src), int64(bytes), s.stream)
		})
	}
	if err != nil {
		return fmt.Errorf("copy from GPU %d: %w", s.device.info.Ordinal, err)
	}
	return nil
}

// Copy enqueues a copy of bytes within the device's memory.
func (s *Stream) Copy(dst, src Ptr, bytes int) error {
	err := s.do("cuMemcpyDtoDAsync", func() error {
		return cu.MemcpyDtoDAsync(cu.DevicePtr(dst), cu.DevicePtr(src), int64(bytes), s.stream)
	})
	if err != nil {
		return fmt.Errorf("copy %d bytes on GPU %d: %w", bytes, s.device.info.Ordinal, err)
	}
	return nil
}

// Fill enqueues the setting of words of 4 bytes each, at an address that is a
// multiple of 4.
func (s *Stream) Fill(dst Ptr, word uint32, words int) error {
	err := s.do("cuMemsetD32Async", func() error {
		return cu.MemsetD32Async(cu.DevicePtr(dst), uint(word), int64(words), s.stream)
	})
	if err != nil {
		return fmt.Errorf("fill %d words on GPU %d: %w", words, s.device.info.Ordinal, err)
	}
	return nil
}

// Sync waits until all that was enqueued is done, and reports if it failed.
func (s *Stream) Sync() error {
	if err := s.do("cuStreamSynchronize", s.stream.Synchronize); err != nil {
		return fmt.Errorf("work on GPU %d: %w", s.device.info.Ordinal, err)
	}
	return nil
}

// Wait lets what is enqueued from now on run only after the work before e was last
// recorded, which may be on another stream.
func (s *Stream) Wait(e *Event) error {
	if e.gone.Load() {
		return fmt.Errorf("wait for an event: event %w", ErrReleased)
	}
	if err := s.do("cuStreamWaitEvent", func() error { return s.stream.Wait(e.event, 0) }); err != nil {
		return fmt.Errorf("wait for an event: %w", err)
	}
	return nil
}

// Destroy releases the stream. Work that is enqueued still runs.
func (s *Stream) Destroy() error {
	if s.gone.Swap(true) {
		return fmt.Errorf("destroy a stream: %w", ErrReleased)
	}
	s.device.count(func(c *Counts) { c.Streams-- })
	if err := s.device.do("cuStreamDestroy", s.stream.Destroy); err != nil {
		return fmt.Errorf("destroy a stream: %w", err)
	}
	return nil
}

// Event is a point in a stream's work.
type Event struct {
	device *Device
	event  cu.Event
	gone   atomic.Bool
}

// NewEvent makes an event that can also tell time.
func (d *Device) NewEvent() (*Event, error) {
	e := &Event{device: d}
	err := d.do("cuEventCreate", func() (err error) {
		e.event, err = cu.MakeEvent(cu.DefaultEvent)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make an event on GPU %d: %w", d.info.Ordinal, err)
	}
	d.count(func(c *Counts) { c.Events++ })
	return e, nil
}

// do calls the driver for the event.
func (e *Event) do(call string, f func() error) error {
	if e.gone.Load() {
		return fmt.Errorf("event %w", ErrReleased)
	}
	return e.device.do(call, f)
}

// Record makes the event the point that the stream has been filled to now.
func (e *Event) Record(s *Stream) error {
	if s.gone.Load() {
		return fmt.Errorf("record an event: stream %w", ErrReleased)
	}
	if err := e.do("cuEventRecord", func() error { return e.event.Record(s.stream) }); err != nil {
		return fmt.Errorf("record an event: %w", err)
	}
	return nil
}

// Since waits for both events and returns the time between them, to about half a
// microsecond.
func (e *Event) Since(start *Event) (time.Duration, error) {
	if start.gone.Load() {
		return 0, fmt.Errorf("time between events: event %w", ErrReleased)
	}
	var ms float64
	err := e.do("cuEventSynchronize", start.event.Synchronize)
	if err == nil {
		err = e.do("cuEventSynchronize", e.event.Synchronize)
	}
	if err == nil {
		err = e.do("cuEventElapsedTime", func() (err error) {
			ms, err = start.event.Elapsed(e.event)
			return err
		})
	}
	if err != nil {
		return 0, fmt.Errorf("time between events: %w", err)
	}
	return time.Duration(ms * float64(time.Millisecond)), nil
}

// Destroy releases the event.
func (e *Event) Destroy() error {
	if e.gone.Swap(true) {
		return fmt.Errorf("destroy an event: %w", ErrReleased)
	}
	e.device.count(func(c *Counts) { c.Events-- })
	if err := e.device.do("cuEventDestroy", func() error { return cu.DestroyEvent(&e.event) }); err != nil {
		return fmt.Errorf("destroy an event: %w", err)
	}
	return nil
}
