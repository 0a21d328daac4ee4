//go:build !purego

package cpu

import (
	"sync"
	"syscall"
)

// allowAMX asks Linux for the tile registers, which a process must before their
// first use (Documentation/arch/x86/xstate.rst).
var allowAMX = sync.OnceValue(func() bool {
	const (
		archReqXcompPerm  = 0x1023
		xfeatureXTileData = 18
	)
	_, _, errno := syscall.RawSyscall(syscall.SYS_ARCH_PRCTL, archReqXcompPerm, xfeatureXTileData, 0)
	return errno == 0
})
