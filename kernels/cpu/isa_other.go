//go:build !amd64 || purego

package cpu

// native lists the assembly kernels of this build: none.
func native() []isa { return nil }

// fastBF16 is false where there is no such set.
func fastBF16() bool { return false }
