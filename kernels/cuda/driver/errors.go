//go:build cuda && linux

package driver

import (
	"errors"
	"fmt"
	"reflect"
)

var (
	// ErrOutOfMemory is what errors.Is finds in the error of an allocation that
	// the device or the host has no room for.
	ErrOutOfMemory = errors.New("out of memory")
	// ErrReleased is the error of using, or releasing again, what was released.
	ErrReleased = errors.New("was released before")
)

// Error is what a function of the driver reported. Much of the work is
// asynchronous: any later call may report what went wrong with an earlier one.
type Error struct {
	Call string // the function, such as "cuMemAlloc"
	Code int    // the CUresult, see include/v1/cuda.h
	Text string // the driver's own words for it
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s (CUDA error %d)", e.Call, e.Text, e.Code) }

// Is tells errors.Is of the codes that have an error of their own here.
func (e *Error) Is(target error) bool { return target == ErrOutOfMemory && e.Code == 2 }

// Lost reports whether the context is gone: every later call in this process
// will fail, also on other streams, and only a new process can use the device.
func (e *Error) Lost() bool {
	switch e.Code {
	case 4, // the driver is shutting down
		201,           // the context was destroyed
		214, 220, 226, // uncorrectable error of memory, of NVLink, or one that was contained to this process
		700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, // kernels that failed
		805, 806, 810, // the server of MPS does not answer, or has ended this client
		999: // unknown
		return true
	}
	return false
}

// wrap makes an *Error of an error of gorgonia.org/cu's.
func wrap(call string, err error) error {
	if err == nil {
		return nil
	}
	// Its type of results is not exported, but is an int.
	code := reflect.ValueOf(err)
	if code.Kind() != reflect.Int {
		return fmt.Errorf("%s: %w", call, err)
	}
	return failure(call, int(code.Int()))
}

// failure makes an *Error of a CUresult, nil of 0.
func failure(call string, code int) error {
	if code == 0 {
		return nil
	}
	return &Error{call, code, text(code)}
}
