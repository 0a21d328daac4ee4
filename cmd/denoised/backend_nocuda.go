//go:build !cuda || !linux

package main

import "errors"

const hasCUDA = false

func openCUDA(bool) (*backend, error) {
	return nil, errors.New("this program was built without CUDA: use " + cudaProgram + ", or use --backend auto")
}
