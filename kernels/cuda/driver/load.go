//go:build cuda && linux

package driver

// #cgo CFLAGS: -I${SRCDIR}/include/v1 -Wall
// #cgo LDFLAGS: -Wl,--as-needed -L${SRCDIR}/lib -ldl
// #include "shim.h"
import "C"

import (
	"fmt"
	"strings"
	"sync"

	"gorgonia.org/cu"
)

// MinDriver is the oldest driver that can be used, as the version of CUDA it
// supports: 1000 times the major plus 10 times the minor number. It is the one
// that brought cuGraphInstantiateWithFlags, the latest of the functions needed.
const MinDriver = 11040

// Unavailable is the error of a computer without a usable GPU.
type Unavailable struct {
	Reason string // one line
}

func (e *Unavailable) Error() string { return "no CUDA: " + e.Reason }

// Available returns nil if there is at least one GPU and a driver that can be used,
// otherwise an *Unavailable that says why not. The first call loads the driver,
// which can take a second; the others return the same.
func Available() error { return available() }

var available = sync.OnceValue(func() error {
	if reason := load(); reason != "" {
		return &Unavailable{reason}
	}
	return nil
})

// load loads and starts the driver and returns what is wrong with it.
func load() string {
	var why *C.char
	switch C.cushim_open(&why) {
	case C.CUSHIM_ABSENT:
		return "no driver is installed: " + line(C.GoString(why))
	case C.CUSHIM_BROKEN:
		return "the driver's library does not load: " + line(C.GoString(why))
	}
	// The version is asked first, because an old library also lacks functions.
	version := cu.Version()
	if version >= 0 && version < MinDriver {
		return fmt.Sprintf("the driver is too old: it supports CUDA %s, needed is %s", release(version), release(MinDriver))
	}
	if name := C.cushim_lacking(); name != nil {
		return fmt.Sprintf("the driver's library is broken: it has no %s", C.GoString(name))
	}
	if version < 0 {
		return "the driver's library is broken: it does not tell its version"
	}
	if code := C.cushim_init(); code != C.CUDA_SUCCESS {
		return fmt.Sprintf("the driver does not start: %s (error %d of cuInit)", text(int(code)), int(code))
	}
	n, err := cu.NumDevices()
	if err != nil {
		return fmt.Sprintf("the driver does not tell its devices: %v", wrap("cuDeviceGetCount", err))
	}
	if n == 0 {
		return "the driver finds no GPU"
	}
	return ""
}

// release writes a version of CUDA as NVIDIA does.
func release(version int) string {
	return fmt.Sprintf("%d.%d", version/1000, version%1000/10)
}

// line makes one line of a message of the system's.
func line(s string) string { return strings.Join(strings.Fields(s), " ") }
