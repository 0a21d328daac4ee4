package models

import (
	"context"
	"errors"
	"slices"

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

// errPrepared ends the denoising once the image is prepared.
var errPrepared = errors.New("prepared")

// Prepare returns what the student would be given of an image, or nil if Denoise would leave it
// as it is. The errors are those of Denoise.
func (m *Model) Prepare(ctx context.Context, img Image, series meter.Series) (*Prepared, error) {
	var out *Prepared
	_, err := m.denoise(ctx, img, Options{Strength: 1, Series: series},
		func(_ context.Context, _ *predicted, n *normalized, told *meter.Reading) error {
			out = &Prepared{Width: n.w, Height: n.h, Pixels: slices.Clone(n.y), Told: told.Told,
				Noise: noise.Map{Width: n.w, Height: n.h, Sigma: slices.Clone(told.Given),
					Median: told.Map.Median, Correlation: told.Map.Correlation}}
			return errPrepared
		})
	if err != nil && !errors.Is(err, errPrepared) {
		return nil, err
	}
	return out, nil
}
