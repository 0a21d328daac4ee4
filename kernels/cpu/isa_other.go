//go:build !amd64 || purego

package cpu

// native lists the assembly kernels of this build: none.
func native() []isa { return nil }
