package models

import (
	"context"
	"errors"
	"fmt"

	"github.com/diffdenoise/denoised/internal/numeric"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/store"
)

// Measure tells what an image says of the noise of its series. The errors are those of Denoise.
func (m *Model) Measure(img Image) (meter.Series, error) {
	if err := img.check(1); err != nil {
		return meter.Series{}, err
	}
	b := scratches.Get().(*scratch)
	defer scratches.Put(b)
	if b.normalized.normalize(img) != "" {
		return meter.Series{}, nil
	}
	if err := m.measure(&b.reading, &b.normalized, meter.Series{}); err != nil {
		return meter.Series{}, err
	}
	return b.reading.Series, nil
}

// measure finds the noise of an image with what is known of its series: by the model's meter, or
// from the flattest parts of the image if it has none.
func (m *Model) measure(r *meter.Reading, n *normalized, known meter.Series) error {
	_, p, err := m.Graph(store.NetworkMeter)
	if errors.Is(err, store.ErrNoNetwork) {
		r.Series = meter.Series{}
		err = r.Map.EstimateWith(noise.Known{}, n.y, n.w, n.h, n.outside)
		r.Told, r.Given = net.Tell(r.Map.Correlation), append(r.Given[:0], r.Map.Sigma...)
		return err
	}
	if err != nil {
		return err
	}
	if err := r.Read(p, n.y, n.w, n.h, n.outside, known); err != nil {
		return fmt.Errorf("noise meter: %w", err)
	}
	return nil
}

// cropped is the rectangle of frequencies that an image is denoised in.
type cropped struct {
	normalized normalized
	reading    meter.Reading
	predicted  predicted
}

// Settings of inBand.
const (
	// Along an axis whose noise of neighbouring pixels has more than this correlation, hardly
	// any of the noise is of high frequency. Networks see it better on a coarser grid.
	leastCropped = 0.5
	cropGain     = 2.6 // factor by which the grid is coarser, less 1, per correlation beyond that
	leastCrop    = 1.2 // factor that is worth it
	mostCrop     = 2
	leastBand    = 48 // pixels of the coarser grid
)

// inBand predicts where the noise is: where it has no high frequencies, on a grid without them.
// The other frequencies of the image stay as they are.
func (b *scratch) inBand(ctx context.Context, p *predicted, n *normalized, told *meter.Reading,
	predict predictor) error {
	side := func(size int, rho float32) int {
		f := min(1+cropGain*(float64(rho)-leastCropped), mostCrop)
		if coarse := int(float64(size)/f) / 2 * 2; f >= leastCrop && coarse >= leastBand {
			return coarse
		}
		return size
	}
	w, h := side(n.w, told.Told[0]), side(n.h, told.Told[1])
	if w == n.w && h == n.h {
		return predict(ctx, p, n, told)
	}
	grid := noise.Coarser(n.w, n.h, w, h)
	if grid == nil {
		return predict(ctx, p, n, told)
	}
	w, h = grid.NativeWidth, grid.NativeHeight
	c := &b.cropped
	c.normalized.w, c.normalized.h, c.normalized.y = w, h, grid.Crop(c.normalized.y, n.y)
	lags, share := told.Told.Cropped(float64(n.w)/float64(w), float64(n.h)/float64(h))
	c.reading.Told, c.reading.Map.Correlation = lags, lags.Correlation()
	c.reading.Map.Width, c.reading.Map.Height = w, h
	c.reading.Given = grid.Crop(c.reading.Given, told.Given)
	for i, s := range c.reading.Given {
		c.reading.Given[i] = max(s, 0) * float32(share)
	}
	c.predicted.removed, c.predicted.spread = numeric.Grow(c.predicted.removed, w*h), c.predicted.spread[:0]
	if err := predict(ctx, &c.predicted, &c.normalized, &c.reading); err != nil {
		return err
	}
	p.removed = grid.Fill(p.removed, c.predicted.removed)
	if len(c.predicted.spread) > 0 {
		p.spread = grid.Fill(p.spread, c.predicted.spread)
		for i, u := range p.spread {
			p.spread[i] = max(u, 0)
		}
	}
	return nil
}
