//go:build cuda && linux && emulated

package driver

// Only tests are built with the tag emulated: a program that runs with a
// service's rights must not load what its environment names.

// #cgo CFLAGS: -DCUSHIM_OVERRIDE
import "C"
