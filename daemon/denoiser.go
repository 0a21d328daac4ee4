package daemon

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// denoiser is a model as the pipeline wants it.
type denoiser struct{ m *models.Model }

// modelPath is what models.Open takes for denoise.model: a plain name is first looked
// for among the installed models, in the folder models of state_dir.
func (c *Config) modelPath() string {
	return models.Find(c.Denoise.Model, filepath.Join(c.StateDir, "models"))
}

func openDenoiser(nameOrDir string) (pipeline.Denoiser, error) {
	m, err := models.Open(nameOrDir)
	if err != nil {
		return nil, fmt.Errorf("denoise.model: %w", err)
	}
	return denoiser{m}, nil
}

// Model implements pipeline.Denoiser.
func (d denoiser) Model() derive.ModelInfo {
	return derive.ModelInfo{Name: d.m.Name(), Version: d.m.Version(), Hash: d.m.Hash()}
}

// Denoise implements pipeline.Denoiser.
func (d denoiser) Denoise(ctx context.Context, f *derive.Frame, strength float64) (*pipeline.Denoised, error) {
	r, err := d.m.Denoise(ctx, models.Image{Width: f.Width, Height: f.Height, Pixels: f.Pixels, Skip: f.Skip}, models.Options{Strength: strength})
	if err != nil {
		return nil, err
	}
	return &pipeline.Denoised{Pixels: r.Pixels, Sigma: r.Sigma}, nil
}
