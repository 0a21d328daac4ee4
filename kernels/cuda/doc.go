// Package cuda computes networks and graphs on NVIDIA GPUs of compute capability 7.5 (Turing) and
// later, with kernels of its own (package kernel) through the CUDA driver (package driver).
//
// What is only run, networks of Load and graphs of Compile, is computed in halves with sums in single
// precision, on tensor cores. Images, noise maps, states of sampling and results stay in single
// precision.
//
// Everything but this comment has the build tag cuda and is for Linux. docs/cuda.md explains how the
// kernels compute, and how they are tested where there is no GPU.
package cuda
