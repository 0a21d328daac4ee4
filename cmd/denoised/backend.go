package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/daemon"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/kernels/remote"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/store"
)

// Values of --backend.
const (
	backendAuto = "auto" // the GPU if this build and this machine can, else the CPU
	backendCPU  = "cpu"
	backendCUDA = "cuda"
)

// cudaProgram is the name of the build that can use a GPU.
const cudaProgram = "denoised-cuda"

// backend is what a command computes on.
type backend struct {
	kernels.GraphBackend
	info  remote.Info
	close func() error
	// shapes calls a function so that it runs every kernel that the sizes of images choose among; nil on
	// the CPU.
	shapes func(func() error) error
}

// onGPU tells whether b is not the CPU.
func (b *backend) onGPU() bool { return b.info.Device != "" }

// backendFlag adds --backend to a command.
func backendFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "backend", backendAuto, "auto, cpu or cuda")
}

// checkBackend refuses what is no value of --backend.
func checkBackend(verb, name string) error {
	switch name {
	case backendAuto, backendCPU, backendCUDA:
		return nil
	}
	return usagef("%s: --backend %q; choose auto, cpu or cuda", verb, name)
}

// openBackend opens what --backend names; local chooses among the CPU's instruction sets, and with block the
// processor rests while it waits for a card. In a build that can use a GPU, why says what was chosen, and for
// auto for what reason.
func openBackend(name string, block bool, local func() (*cpu.Backend, error)) (b *backend, why string, err error) {
	if name == backendCUDA || name == backendAuto && hasCUDA {
		b, err := openTried(block)
		switch {
		case err == nil:
			return b, "computing on " + b.info.String(), nil
		case name == backendCUDA:
			return nil, "", err
		}
		why = fmt.Sprintf("computing on the CPU: %v", err)
	}
	c, err := local()
	if err != nil {
		return nil, "", err
	}
	return &backend{GraphBackend: c, close: func() error { return nil }}, why, nil
}

// openTried opens a GPU and lets it compute the golden vectors of the embedded networks, with the kernels for
// large images and with those for small ones: a card, a driver or a compiler that computes something else must
// never get an image.
func openTried(block bool) (*backend, error) {
	b, err := openCUDA(block)
	if err != nil {
		return nil, err
	}
	for _, name := range store.Embedded {
		var m *models.Model
		if m, err = models.OpenOn(b.GraphBackend, name); err == nil {
			err = b.shapes(func() error {
				_, err := m.Verify()
				return err
			})
		}
		if err != nil {
			break
		}
	}
	if err != nil {
		_ = b.close() // its errors follow from the first one
		why := "it does not compute the golden vectors"
		switch {
		case errors.Is(err, kernels.ErrMemory):
			why = "it has too little free memory"
		case errors.Is(err, kernels.ErrDevice):
			why = "it fails"
		}
		return nil, fmt.Errorf("%s is not used: %s: %w", b.info.Device, why, err)
	}
	return b, nil
}

// useBackend is openBackend for a command, which says there what was chosen.
func useBackend(cmd *cobra.Command, name string, local func() (*cpu.Backend, error)) (*backend, error) {
	b, why, err := openBackend(name, false, local)
	if err != nil {
		return nil, fmt.Errorf("--backend %s: %w", name, err)
	}
	if why != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", cmd.Name(), why)
	}
	return b, nil
}

// workerProgram is what the daemon starts to compute on a GPU: this program if it was built for it,
// else the other build if it lies beside, and not everybody may change it or put another in its place.
func workerProgram() daemon.WorkerProgram {
	self, err := os.Executable()
	if err != nil {
		return daemon.WorkerProgram{}
	}
	if !hasCUDA {
		dir := filepath.Dir(self)
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&0o002 != 0 {
			return daemon.WorkerProgram{}
		}
		self = filepath.Join(dir, cudaProgram)
		if info, err := os.Stat(self); err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o002 != 0 {
			return daemon.WorkerProgram{}
		}
	}
	return daemon.WorkerProgram{Path: self, Args: []string{"worker"}, Version: thisBuild().Version}
}
