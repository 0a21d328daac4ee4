package noise

import "math"

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
	b.mean, b.a, b.sums = grow(b.mean, w*h), grow(b.a, w*h), grow(b.sums, w)
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
	dark := nth(b.vals, int(airShare*float64(len(b.vals))))
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

// Means sets dst to the means of the w×h image src over windows of 2·half+1 pixels a
// side, as far as they lie in the image. The sums slide, in double precision so that
// nothing of a bright edge stays behind. dst may be src; tmp is as large and sums as wide
// as the image, both are overwritten.
func Means(dst, src, tmp []float32, sums []float64, w, h, half int) {
	for y := range h {
		row, out := src[y*w:][:w], tmp[y*w:][:w]
		s, n := 0.0, min(half, w)
		for _, v := range row[:n] {
			s += float64(v)
		}
		inner := max(w-half, 0)
		for x := range out {
			if x < inner {
				s, n = s+float64(row[x+half]), n+1
			}
			if x > half {
				s, n = s-float64(row[x-half-1]), n-1
			}
			out[x] = float32(s / float64(n))
		}
	}
	clear(sums)
	n := min(half, h)
	for x, v := range tmp[:n*w] {
		sums[x%w] += float64(v)
	}
	for y := range h {
		if y+half < h {
			for x, v := range tmp[(y+half)*w:][:w] {
				sums[x] += float64(v)
			}
			n++
		}
		if y > half {
			for x, v := range tmp[(y-half-1)*w:][:w] {
				sums[x] -= float64(v)
			}
			n--
		}
		out, scale := dst[y*w:][:w], 1/float64(n)
		for x, s := range sums {
			out[x] = float32(s * scale)
		}
	}
}
