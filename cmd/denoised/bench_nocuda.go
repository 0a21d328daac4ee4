//go:build !cuda || !linux

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// run is never called: this build opens no GPU.
func (*gpuBench) run(*cobra.Command, *backend) error {
	return errors.New("bench: this program was built without CUDA")
}
