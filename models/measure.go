package models

import (
	"context"
	"errors"
	"fmt"
	"math"

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
	second     meter.Reading // of the image on that grid by itself
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
func (b *scratch) inBand(ctx context.Context, m *Model, p *predicted, n *normalized, told *meter.Reading,
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
	coarse := func(dst, sigma []float32) []float32 {
		dst = grid.Crop(dst, sigma)
		for i, s := range dst {
			dst[i] = max(s, 0) * float32(share)
		}
		return dst
	}
	c.reading.Given = coarse(c.reading.Given, told.Given)
	c.reading.Map.Sigma = coarse(c.reading.Map.Sigma, told.Map.Sigma)
	if err := b.secondReading(m, told); err != nil {
		return err
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

// Settings of secondReading.
const (
	// Correlation of neighbours from which on, and from where on most, the reading on the coarser
	// grid counts.
	leastSecond = 0.6
	mostSecond  = 0.8
	countSecond = 0.75 // of the logarithm of its ratio to the first, at most
	apartSecond = 0.6  // of that logarithm, at most
	tissue      = 0.15 // least value where the two are compared
)

// secondReading lets the meter look at the coarser image, too, and sets both strengths between
// its two readings. Where nearly all of the noise is of the lowest frequencies, the meter hardly
// tells it from anatomy at full size, and tells of two thirds of it.
func (b *scratch) secondReading(m *Model, told *meter.Reading) error {
	c := &b.cropped
	rho := max(told.Told[0], told.Told[1])
	weight := countSecond * min(max((rho-leastSecond)/(mostSecond-leastSecond), 0), 1)
	if weight == 0 {
		return nil
	}
	n := &c.normalized
	n.outside = noise.Outside(n.outside, n.y, n.w, n.h, nil)
	if err := m.measure(&c.second, n, meter.Series{}); err != nil {
		return err
	}
	sum, count := 0.0, 0.0
	for i, s := range c.second.Map.Sigma {
		if first := c.reading.Map.Sigma[i]; s > 0 && first > 0 && n.y[i] > tissue {
			sum, count = sum+math.Log(float64(s/first)), count+1
		}
	}
	if count == 0 {
		return nil
	}
	by := math.Exp(float64(weight) * min(max(sum/count, -apartSecond), apartSecond))
	for _, r := range []*meter.Reading{told, &c.reading} {
		r.Map.Median *= by
		for i := range r.Given {
			r.Given[i] *= float32(by)
			r.Map.Sigma[i] *= float32(by)
		}
	}
	return nil
}
