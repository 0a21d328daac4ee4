package net

import (
	"math"
	"testing"

	"github.com/diffdenoise/denoised/models/noise"
)

// TestToldCropped: of white noise, the share that is left is that of the frequencies, and it stays
// white; of zero-filled noise all is left, and it is white on the grid that was measured.
func TestToldCropped(t *testing.T) {
	white, share := Told{}.Cropped(2, 1)
	if math.Abs(share-math.Sqrt(0.5)) > 0.02 {
		t.Errorf("%.3f of white noise is left, want %.3f", share, math.Sqrt(0.5))
	}
	for i, v := range white {
		if math.Abs(float64(v)) > 0.05 {
			t.Errorf("lag %d of white noise is %.2f", i, v)
		}
	}
	// smoothed by a Gaussian of 1.4 pixels, nearly nothing is above a quarter of a cycle
	smooth := Tell(noise.Gaussian(1.4, 1.4).Correlation())
	cropped, share := smooth.Cropped(2, 2)
	if share < 0.95 || cropped[0] > 0.8*smooth[0] {
		t.Errorf("%.2f is left, correlation %.2f after %.2f", share, cropped[0], smooth[0])
	}
	if math.Abs(float64(cropped[0]-cropped[1])) > 1e-6 {
		t.Errorf("axes differ: %v", cropped)
	}
}

func TestToldTurned(t *testing.T) {
	a := Told{1, 2, 3, 4, 5, 6, 7}
	if b := a.Turned(); b == a || b.Turned() != a || b[0] != a[1] || b[6] != a[6] {
		t.Errorf("%v turned is %v", a, b)
	}
}

// TestLevels: what a meter is to say of a strength gives the strength back.
func TestLevels(t *testing.T) {
	said := make([]float32, MeterOut)
	for _, sigma := range []float64{0.1, 0.5, 1, 1.7, 9} {
		EncodeLevel(said, sigma)
		mean, spread := DecodeLevel(said)
		if math.Abs(math.Exp(mean)/sigma-1) > 1e-5 || spread > 0.6*levelStep {
			t.Errorf("%g comes back as %g, spread %g", sigma, math.Exp(mean), spread)
		}
	}
	if _, spread := DecodeLevel(make([]float32, MeterOut)); spread < 4 {
		t.Errorf("a cell of which nothing is said has the spread %g", spread)
	}
}

// TestCells: powers of a cosine and of a constant, and cells that are not whole.
func TestCells(t *testing.T) {
	const w, h = 3 * MeterCell, 2 * MeterCell
	y, skip := make([]float32, w*h), make([]bool, w*h)
	for i := range y {
		y[i] = 0.5 + 0.25*float32(math.Cos(math.Pi*3*(float64(i%MeterCell)+0.5)/MeterCell))
	}
	skip[w*h-1] = true
	var c Cells
	c.Measure(y, w, h, skip)
	if c.Width != 3 || c.Height != 2 || !c.Whole[0] || c.Whole[5] || c.Powers[5] != [64]float32{} {
		t.Fatalf("%d×%d cells, whole %v", c.Width, c.Height, c.Whole)
	}
	if m := c.Mean(0); math.Abs(m-0.5) > 1e-6 {
		t.Errorf("mean %g", m)
	}
	// the cosine's energy is 64·0.25²/2, all in one coefficient
	if got := c.Powers[0][3]; math.Abs(float64(got)-2) > 1e-4 || math.Abs(float64(c.High(0)-got)) > 1e-4 ||
		c.Low(0) > 1e-6 {
		t.Errorf("power %g, high %g, low %g", got, c.High(0), c.Low(0))
	}
	if in, scale := MeterInput(&Cells{}); in != nil || scale != 0 {
		t.Error("no cells have a scale")
	}
}

func TestFastLog(t *testing.T) {
	for v := float32(1e-6); v < 1e6; v *= 1.37 {
		if d := float64(fastLog(v)) - math.Log(float64(v)); math.Abs(d) > 0.005 {
			t.Errorf("logarithm of %g is off by %g", v, d)
		}
	}
}
