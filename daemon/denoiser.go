package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/store"
	"github.com/diffdenoise/denoised/models/train"
	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
)

// denoiser is a model as the pipeline wants it.
type denoiser struct {
	m    *models.Model
	high bool // asking the model reads its weights
	// adapt is what its student is trained on for the high pass of a series; nil if it is not.
	adapt kernels.GraphBackend
	// method is models.Revision and what is done besides.
	method string
	fitted string // hash of the student that was fitted to a series; empty for any other
}

// denoisers are the models of all kinds of images. By itself it is that of MR.
type denoisers struct {
	denoiser
	radiographs denoiser
}

// For implements pipeline.Chooser.
func (d denoisers) For(modality string) pipeline.Denoiser {
	if store.KindOf(modality) == store.Radiograph {
		return d.radiographs
	}
	return d.denoiser
}

// HasHigh implements pipeline.HighDenoiser.
func (d denoisers) HasHigh() bool { return d.high || d.radiographs.high }

// modelKey is a key of the configuration that names a model, what it says, and of what kind the images
// are that the model gets.
type modelKey struct {
	key, model string
	kind       store.Kind
}

// models are the keys of the models of MR and of radiographs.
func (c *Config) models() [2]modelKey {
	return [2]modelKey{{"denoise.model", c.Denoise.Model, store.MR},
		{"denoise.radiograph_model", c.Denoise.RadiographModel, store.Radiograph}}
}

// modelPath is what models.Open takes for a model of the configuration: a plain name is first looked
// for among the installed models, in the folder models of state_dir.
func (c *Config) modelPath(name string) string {
	return store.Find(name, filepath.Join(c.StateDir, "models"))
}

// openDenoisers opens the models that a configuration names.
func openDenoisers(on kernels.Backend, c *Config) (pipeline.Denoiser, error) {
	var adapt kernels.GraphBackend
	if c.Denoise.HighAdapt {
		local, err := cpu.Select() // also beside a card: a minute or two for a series, and nothing waits for it
		if err != nil {
			return nil, err
		}
		adapt = local
	}
	var opened [2]denoiser
	for i, k := range c.models() {
		m, err := models.OpenOn(on, c.modelPath(k.model))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.key, err)
		}
		opened[i] = denoiser{m: m, high: m.HasHigh(), adapt: adapt, method: models.Revision}
	}
	return denoisers{opened[0], opened[1]}, nil
}

// Model implements pipeline.Denoiser.
func (d denoiser) Model() derive.ModelInfo {
	return derive.ModelInfo{Name: d.m.Name(), Version: d.m.Version(), Hash: d.m.Hash(), Method: d.method,
		Fitted: d.fitted}
}

// Denoise implements pipeline.Denoiser.
func (d denoiser) Denoise(ctx context.Context, f *derive.Frame, known evidence.Sums, strength float64,
) (*pipeline.Denoised, error) {
	return denoised(d.m.Denoise(ctx, frameImage(f), models.Options{Strength: strength, Series: Known(known)}))
}

// Measure implements pipeline.Denoiser.
func (d denoiser) Measure(_ context.Context, f *derive.Frame) (evidence.Sums, error) {
	s, err := d.m.Measure(frameImage(f))
	return Told(s), err
}

// Told is what slices told of their series as sums that can be kept: weight and lags of the meter,
// number and powers of the flattest cells.
func Told(s meter.Series) evidence.Sums {
	if s == (meter.Series{}) {
		return nil
	}
	e := append(evidence.Sums{s.Weight}, s.Lags[:]...)
	e = append(append(append(e, s.Cells), s.Along[0][:]...), s.Along[1][:]...)
	for i, v := range e {
		// as many digits as say something, so that little is to be kept
		e[i], _ = strconv.ParseFloat(strconv.FormatFloat(v, 'g', digits, 64), 64)
	}
	return e
}

// digits of a number that is kept.
const digits = 6

// Known is the opposite of Told. What another method told is nothing.
func Known(e evidence.Sums) (s meter.Series) {
	if len(e) == 2+len(s.Lags)+len(s.Along[0])+len(s.Along[1]) {
		s.Weight, e = e[0], e[1:]
		e = e[copy(s.Lags[:], e):]
		s.Cells, e = e[0], e[1:]
		copy(s.Along[1][:], e[copy(s.Along[0][:], e):])
	}
	return s
}

// HasHigh implements pipeline.HighDenoiser.
func (d denoiser) HasHigh() bool { return d.high }

// DenoiseHigh implements pipeline.HighDenoiser. The noise that sampling starts
// from is the same for every image, so that the same image gives the same result on one backend.
func (d denoiser) DenoiseHigh(ctx context.Context, f *derive.Frame, known evidence.Sums, strength float64,
	progress func(done, total int)) (*pipeline.Denoised, error) {
	o := models.HighOptions{Strength: strength, Series: Known(known), Progress: progress}
	return denoised(d.m.High(ctx, frameImage(f), o))
}

// Adapts implements pipeline.Adaptive.
func (d denoiser) Adapts() bool { return d.adapt != nil && d.high }

// Adapt implements pipeline.Adaptive.
func (d denoiser) Adapt(ctx context.Context, frames []*derive.Frame, known evidence.Sums,
	progress func(done, total int)) (by pipeline.HighDenoiser, note string, err error) {
	fitted := d
	fitted.method, fitted.adapt = d.method+" adapted", nil
	if len(frames) == 0 {
		return fitted, "no frames", nil
	}
	images := make([]models.Image, len(frames))
	for i, f := range frames {
		images[i] = frameImage(f)
	}
	a, err := train.Adapt(ctx, d.adapt, d.m, images, Known(known), progress)
	switch {
	case errors.Is(err, train.ErrTooFew):
		return fitted, err.Error(), nil
	case err != nil:
		return nil, "", err
	case !a.Fitted:
		return fitted, "not better on the slices that were held out", nil
	}
	fitted.m, fitted.fitted = a.Model, a.Hash
	return fitted, fmt.Sprintf("error on slices that were held out %.3f of the noise's power, before %.3f", a.After,
			a.Before),
		nil
}

func frameImage(f *derive.Frame) models.Image {
	return models.Image{Width: f.Width, Height: f.Height, Pixels: f.Pixels, Skip: f.Skip}
}

func denoised(r *models.Result, err error) (*pipeline.Denoised, error) {
	if err != nil {
		return nil, err
	}
	d := &pipeline.Denoised{Pixels: r.Pixels, Sigma: r.Sigma, Told: Told(r.Series)}
	if g := r.Gate; g != nil && g.Action != gate.OK {
		d.Gate, d.Share = g.Reason, g.Blend
	}
	return d, nil
}
