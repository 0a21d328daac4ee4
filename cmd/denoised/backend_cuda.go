//go:build cuda && linux

package main

import (
	"fmt"

	"github.com/diffdenoise/denoised/kernels/cuda"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/remote"
)

const hasCUDA = true

// openCUDA opens the first device, which is the only one for a process; CUDA_VISIBLE_DEVICES says
// which one is the first. Nothing before this call loads NVIDIA's driver: package driver links none,
// and what the init function of gorgonia.org/cu calls is a function of package driver that does
// nothing. So the daemon, which never calls this, can be this build too.
func openCUDA(block bool) (*backend, error) {
	if err := driver.Available(); err != nil {
		return nil, err
	}
	b, err := cuda.Open(0, cuda.Options{Block: block})
	if err != nil {
		return nil, err
	}
	i := b.Info()
	return &backend{GraphBackend: b, close: b.Close, shapes: b.Shapes, info: remote.Info{
		Backend: b.Name(), Device: i.Name, Compute: fmt.Sprintf("%d.%d", i.Major, i.Minor),
		Driver: fmt.Sprintf("%d.%d", i.Driver/1000, i.Driver%1000/10), Memory: i.Memory, Kernels: b.Kernels(),
	}}, nil
}
