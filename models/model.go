package models

import (
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/safetensors"
	"github.com/diffdenoise/denoised/models/store"
)

// Model is an opened model that denoises. It never changes and is safe for concurrent
// use.
type Model struct{ *store.Model }

// Default is store.Default.
func Default() (*Model, error) { return model(store.Default()) }

// Open is store.Open.
func Open(nameOrDir string) (*Model, error) { return model(store.Open(nameOrDir)) }

// OpenOn is store.OpenOn.
func OpenOn(backend kernels.Backend, nameOrDir string) (*Model, error) {
	return model(store.OpenOn(backend, nameOrDir))
}

// WithStudent is store.Model.WithStudent.
func (m *Model) WithStudent(f *safetensors.File) (*Model, error) {
	return model(m.Model.WithStudent(f))
}

func model(m *store.Model, err error) (*Model, error) {
	if err != nil {
		return nil, err
	}
	return &Model{m}, nil
}
