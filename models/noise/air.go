package noise

import (
	"math"

	"github.com/diffdenoise/denoised/internal/numeric"
)

// Settings of Air.
const (
	airWindow  = 2     // half the window of the local mean, pixels
	airShare   = 0.1   // of the pixels, the darkest, from whose mean the search starts
	airBand    = 0.15  // of that mean, how far pixels that belong to it may differ
	airPixels  = 256   // fewer are not believed
	airAgree   = 1.25  // the largest factor between the two ways to find the noise
	airSpread  = 0.655 // of a magnitude without signal, in standard deviations of the complex noise
	airOutside = 0.05  // least share of the noise outside the measured k-space
)

// Air returns the standard deviation of the complex noise of a zero-filled magnitude
// image, from its air, or 0 if the darkest part of the image is not that. native is what
// Crop made of the image, skip marks pixels of the image that are not looked at (nil:
// none).
//
// Where there is no signal, noise of a magnitude goes like the square of the complex
// noise. So its power reaches over twice the frequencies that were measured: the part
// outside them, which Crop takes away, holds no anatomy. It must agree with the mean, which
// is 1.253 standard deviations; tissue of the same mean has little there.
func Air(g *Grid, img, native []float32, skip []bool) float32 {
	w, h := g.Width, g.Height
	outside := 1 - g.squared()
	if !g.Filled() || outside < airOutside || len(img) != w*h || len(native) != g.NativeWidth*g.NativeHeight {
		return 0
	}
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	b.clean = g.Fill(b.clean, native)
	rest := b.clean
	for i, v := range img {
		rest[i] = v - rest[i]
	}
	b.mean, b.a, b.sums = numeric.Grow(b.mean, w*h), numeric.Grow(b.a, w*h), numeric.Grow(b.sums, w)
	means := b.mean
	Means(means, img, b.a, b.sums, w, h, airWindow)
	b.vals = b.vals[:0]
	for i, m := range means {
		if skip == nil || !skip[i] {
			b.vals = append(b.vals, m)
		}
	}
	if len(b.vals) < airPixels {
		return 0
	}
	dark := numeric.Nth(b.vals, int(airShare*float64(len(b.vals))))
	sum, squares, n := 0.0, 0.0, 0.0
	for i, m := range means {
		if (skip == nil || !skip[i]) && abs(m-dark) <= airBand*dark {
			sum, squares, n = sum+float64(m), squares+float64(rest[i])*float64(rest[i]), n+1
		}
	}
	if n < airPixels || sum <= 0 {
		return 0
	}
	byMean, byRest := sum/n/RicianBias(0), math.Sqrt(squares/n/outside)/airSpread
	if byRest > airAgree*byMean || byMean > airAgree*byRest {
		return 0
	}
	return float32(byMean)
}
