// Package driver gives the parts of the CUDA driver API that the kernels need:
// devices, modules, memory, streams, graphs and events of NVIDIA GPUs. It is
// built with the tag cuda, on Linux, and needs cgo; without the tag it is empty.
//
// # Loading
//
// A program that is linked against libcuda.so.1 does not start on a computer
// without NVIDIA's driver, and gorgonia.org/cu ends the program from an init
// function if the driver has no GPU to offer. Neither may happen to a program
// that can do without a GPU. So nothing is linked: every function of the
// driver API is a trampoline in this package, which jumps through a table
// (tramp_*.S and names.h, generated from the header by gen). The table leads
// to a function that reports an error until Available, or whatever else comes
// first, loads the library with dlopen and fills it; cuInit as gorgonia.org/cu
// sees it always succeeds. lib/libcuda.so is an empty linker script: it answers
// the -lcuda that gorgonia.org/cu asks for.
//
// The same program therefore runs with a driver and without, and a program that
// never asks does not load it. Tests build with the tag emulated as well, and
// only then the environment variable DENOISED_CUDA_LIB names another library:
// kernels/cuda/kernel/emu makes one that runs kernels on the CPU.
//
// # The header
//
// include/v1/cuda.h is our own, at the level of CUDA 11.8. Later releases change
// prototypes that gorgonia.org/cu depends on, while drivers keep the old
// functions, so it must be this one that gorgonia.org/cu is compiled with, also
// where NVIDIA's is installed: build with
// CGO_CFLAGS=-I<repository>/kernels/cuda/driver/include/v1, as the Makefile does.
//
// # What goes through gorgonia.org/cu
//
// Queries of devices, the primary context, loading modules and finding
// functions, device memory, copies, fills, streams and events. The rest is called
// directly, in companion.go:
//
//   - cuMemHostAlloc, cuFuncSetAttribute (more than 48 KiB of shared memory),
//     stream capture and launching of graphs: gorgonia.org/cu has none of them.
//   - cuLaunchKernel: its Launch allocates twice in C, once per argument in Go,
//     and reads 8 bytes of every argument whatever its size, which the race
//     detector's pointer checks end the program for. Here a launch is one call
//     into C with one block of arguments, and allocates nothing.
//   - cuModuleLoadDataEx, for the compiler's message when a module does not
//     load: its options hold Go memory where the garbage collector does not see it.
//   - cuGetErrorString, for the driver's own words in errors.
//
// Its Ctx and BatchedContext are not used: every call of the first waits for
// another goroutine, the second leaks memory with every launch.
package driver

//go:generate go run ./gen
