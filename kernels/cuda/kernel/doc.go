// Package kernel holds the CUDA kernels, `.cu` files of this folder, and launches them.
//
// The sources are compiled to PTX by clang and embedded; the driver turns that into code of
// the card when a [Set] is loaded. The same sources run as C++ in a host emulation (folder
// emu), which is what the tests do where there is no card. docs/cuda.md explains both.
//
// All but this comment has the build tag cuda.
package kernel

//go:generate go run ./gen
