package noise

import "math"

// Lags is the largest lag of a Correlation, pixels.
const Lags = 4

// Correlation is the autocorrelation of the noise on the native grid. It is taken
// to be even in x and in y, as filters and interpolation along the axes make it, and
// circular filters in k-space.
//
// The zero value is white noise of which nothing is known.
type Correlation struct {
	// Rho[|dy|][|dx|] is the autocorrelation at the lag (dx, dy); Rho[0][0] is 1.
	// Beyond Lags it is taken to be 0.
	Rho [Lags + 1][Lags + 1]float64
	// Trust says how well it is known: 1 well, 0 not at all, and then the noise is
	// taken to be white.
	Trust float64
}

// White is the correlation of white noise.
func White() Correlation {
	c := Correlation{Trust: 1}
	c.Rho[0][0] = 1
	return c
}

// At returns the autocorrelation at a lag of either sign.
func (c Correlation) At(dx, dy int) float64 {
	dx, dy = max(dx, -dx), max(dy, -dy)
	switch {
	case dx == 0 && dy == 0:
		return 1
	case dx > Lags || dy > Lags:
		return 0
	}
	return c.Rho[dy][dx]
}

// holeCorrelation is what may be left between a pixel and the nearest one that a
// blind-spot network looks at.
const holeCorrelation = 0.15

// Holes returns the width along x and the height along y of the hole that a
// blind-spot network needs so that what it sees hardly knows the noise of the
// pixel it predicts: 1, 3 or 5 pixels, the pixel itself in the middle. A network
// whose branches are shifted by s hides 2s−1 of them. Noise whose correlation
// reaches beyond 2 pixels would need more than 5, and gets 5.
func (c Correlation) Holes() (sx, sy int) {
	hole := func(rho func(d int) float64) int {
		for half := 2; half > 0; half-- {
			if math.Abs(rho(half)) > holeCorrelation {
				return 2*half + 1
			}
		}
		return 1
	}
	return hole(func(d int) float64 { return c.At(d, 0) }), hole(func(d int) float64 { return c.At(0, d) })
}
