package daemon

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// denoiser is a model as the pipeline wants it.
type denoiser struct {
	m    *models.Model
	high bool // asking the model reads its weights
}

// modelPath is what models.Open takes for denoise.model: a plain name is first looked
// for among the installed models, in the folder models of state_dir.
func (c *Config) modelPath() string {
	return models.Find(c.Denoise.Model, filepath.Join(c.StateDir, "models"))
}

func openDenoiser(on kernels.Backend, nameOrDir string) (pipeline.Denoiser, error) {
	m, err := models.OpenOn(on, nameOrDir)
	if err != nil {
		return nil, fmt.Errorf("denoise.model: %w", err)
	}
	return denoiser{m, m.HasHigh()}, nil
}

// Model implements pipeline.Denoiser.
func (d denoiser) Model() derive.ModelInfo {
	return derive.ModelInfo{Name: d.m.Name(), Version: d.m.Version(), Hash: d.m.Hash(), Method: models.Revision}
}

// Denoise implements pipeline.Denoiser.
func (d denoiser) Denoise(ctx context.Context, f *derive.Frame, strength float64) (*pipeline.Denoised, error) {
	return denoised(d.m.Denoise(ctx, frameImage(f), models.Options{Strength: strength}))
}

// HasHigh implements pipeline.HighDenoiser.
func (d denoiser) HasHigh() bool { return d.high }

// DenoiseHigh implements pipeline.HighDenoiser. The noise that sampling starts
// from is the same for every image, so that the same image gives the same result on one backend.
func (d denoiser) DenoiseHigh(ctx context.Context, f *derive.Frame, strength float64, progress func(done, total int)) (*pipeline.Denoised, error) {
	return denoised(d.m.High(ctx, frameImage(f), models.HighOptions{Strength: strength, Progress: progress}))
}

func frameImage(f *derive.Frame) models.Image {
	return models.Image{Width: f.Width, Height: f.Height, Pixels: f.Pixels, Skip: f.Skip}
}

func denoised(r *models.Result, err error) (*pipeline.Denoised, error) {
	if err != nil {
		return nil, err
	}
	d := &pipeline.Denoised{Pixels: r.Pixels, Sigma: r.Sigma}
	if g := r.Gate; g != nil && g.Action != gate.OK {
		d.Gate, d.Share = g.Reason, g.Blend
	}
	return d, nil
}
