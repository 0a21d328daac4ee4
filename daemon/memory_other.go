//go:build !linux

package daemon

// memoryAvailable is not known here.
func memoryAvailable() int64 { return 0 }
