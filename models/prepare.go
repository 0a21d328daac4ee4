package models

import (
	"context"
	"slices"

	"github.com/diffdenoise/denoised/internal/numeric"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/noise"
)

// Prepared is an image as the networks of a model see it: normalized, and on a coarser grid where
// the noise has no high frequencies.
type Prepared struct {
	Width, Height int
	Pixels        []float32
	// Noise is what networks are told of the noise: its strength at every pixel, and a correlation
	// of which Told is told.
	Noise noise.Map
	Told  net.Told
}

// surely is the share of the strength of the noise that networks must be told for an image to be prepared.
const surely = 0.5

// Prepare returns what the student would be given of an image, or nil if Denoise would leave it
// as it is, or if the noise is not surely known, so that networks are told of less than there is. The
// errors are those of Denoise.
func (m *Model) Prepare(ctx context.Context, img Image, series meter.Series) (*Prepared, error) {
	if err := img.check(1); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b := scratches.Get().(*scratch)
	defer scratches.Put(b)
	n, told := &b.normalized, &b.reading
	if n.normalize(img) != "" {
		return nil, nil
	}
	if err := m.measure(told, n, series); err != nil {
		return nil, err
	}
	var given, there float64
	for i, s := range told.Map.Sigma {
		given, there = given+float64(told.Given[i]), there+float64(s)
	}
	if !(told.Map.Median >= leastNoise && told.Map.Median <= mostNoise && given >= surely*there) {
		return nil, nil
	}
	p := &b.predicted
	p.removed, p.spread = numeric.Grow(p.removed, n.w*n.h), p.spread[:0]
	var out *Prepared
	err := b.inBand(ctx, m, p, n, told, func(_ context.Context, p *predicted, n *normalized,
		told *meter.Reading) error {
		out = &Prepared{Width: n.w, Height: n.h, Pixels: slices.Clone(n.y), Told: told.Told,
			Noise: noise.Map{Width: n.w, Height: n.h, Sigma: slices.Clone(told.Given),
				Median: told.Map.Median, Correlation: told.Map.Correlation}}
		clear(p.removed)
		return nil
	})
	return out, err
}
