package train

import (
	"context"

	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/noise"
)

// targets returns the training slices as the teacher sees them: denoised by the
// blind-spot and the diffusion network, one pair of one step. A student learns to
// find these under new noise, of every kind and strength (distillation with noise
// re-synthesis): recorrupted targets are noisy, and under faint noise that is most of
// what a gradient holds. Slices whose noise could not be measured stay as they are.
func (t *training) targets(ctx context.Context) ([]Slice, error) {
	teacher, err := t.teacher()
	if err != nil {
		return nil, err
	}
	if teacher.Diffusion, err = t.program(StageDiffusion); err != nil {
		return nil, err
	}
	out := make([]Slice, len(t.set.Train))
	errs := make([]error, len(out))
	each(len(out), func(k int) {
		s := t.set.Train[k]
		out[k] = s
		if s.Noise == nil || s.Noise.Median == 0 || ctx.Err() != nil {
			return
		}
		w, h := s.Width/4*4, s.Height/4*4 // the last rows and columns stay noisy and are cut off
		y, sigma := rectangle(s.Pixels, s.Width, w, h), rectangle(s.Noise.Sigma, s.Width, w, h)
		c := &s.Noise.Correlation
		sx, sy := c.Holes()
		clean, err := samplePair(teacher, &net.Noisy{Width: w, Height: h, Pixels: y, Sigma: sigma, Told: net.Tell(*c),
			HoleX: sx, HoleY: sy})
		if err != nil {
			errs[k] = err
			return
		}
		out[k] = Slice{Pixels: clean, Width: w, Height: h, Noise: &noise.Map{Width: w, Height: h, Sigma: make([]float32, w*h), Correlation: noise.White()},
			Source: s.Source, Index: s.Index, Cropped: s.Cropped, Radiograph: s.Radiograph}
	})
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return out, ctx.Err()
}

// rectangle returns the upper left w×h of an image that is width wide.
func rectangle(img []float32, width, w, h int) []float32 {
	out := make([]float32, w*h)
	for r := range h {
		copy(out[r*w:][:w], img[r*width:])
	}
	return out
}
