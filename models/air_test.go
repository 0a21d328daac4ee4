package models

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/diffdenoise/denoised/models/meter"
)

// TestAir: the air of a magnitude is found by its level, whatever the number of coils, and nothing else is
// taken for it; afterwards it is dark.
func TestAir(t *testing.T) {
	m := defaultModel(t)
	const side, sigma = headSide, 10. / 255
	bright := func(x, y int) float64 { return 0.5 + 0.2*math.Sin(float64(x)/9)*math.Cos(float64(y)/7) }
	disc := func(r float64) func(x, y int) float64 {
		return func(x, y int) float64 {
			if math.Hypot(float64(x-side/2), float64(y-side/2)) < r {
				return bright(x, y)
			}
			return 0
		}
	}
	for name, c := range map[string]struct {
		signal func(x, y int) float64
		coils  int
		level  float64 // 0: there is none
	}{
		"one coil":             {disc(80), 1, 1.25},
		"two coils":            {disc(80), 2, 1.88},
		"four coils":           {disc(80), 4, 2.74},
		"little air":           {disc(130), 1, 1.25},
		"no air":               {bright, 1, 0},
		"dark tissue, no air":  {func(x, y int) float64 { return max(bright(x, y)-disc(60)(x, y), 2*sigma) }, 1, 0},
		"fainter, no air":      {func(x, y int) float64 { return max(bright(x, y)-disc(60)(x, y), 1.5*sigma) }, 1, 0},
		"bright air is no air": {func(x, y int) float64 { return 6*sigma + disc(80)(x, y) }, 1, 0},
	} {
		rng := rand.New(rand.NewPCG(3, 9))
		y := make([]float32, side*side)
		for i := range y {
			v := c.signal(i%side, i/side) + sigma*rng.NormFloat64()
			squares := v * v
			for range 2*c.coils - 1 {
				z := sigma * rng.NormFloat64()
				squares += z * z
			}
			y[i] = float32(math.Sqrt(squares))
		}
		img := Image{Width: side, Height: side, Pixels: y}
		b := new(scratch)
		if why := b.normalized.normalize(img); why != "" {
			t.Fatal(name, why)
		}
		if err := m.measure(&b.reading, &b.normalized, meter.Series{}); err != nil {
			t.Fatal(err)
		}
		if level, _ := b.airLevel(&b.normalized, &b.reading); math.Abs(float64(level)-c.level) > 0.2*c.level {
			t.Errorf("%s: level %.2f, want %.2f", name, level, c.level)
		}
		r, err := m.Denoise(t.Context(), img, Options{Strength: 1})
		if err != nil {
			t.Fatal(err)
		}
		dark, n, off, lit := 0.0, 0.0, 0.0, 0.0
		for i, v := range r.Pixels {
			x, y := i%side, i/side
			if signal := c.signal(x, y); signal == 0 && math.Hypot(float64(x-side/2), float64(y-side/2)) > 90 {
				dark, n = dark+float64(v)/sigma, n+1
			} else if signal > 0 {
				off, lit = off+float64(v-img.Pixels[i])/sigma, lit+1
			}
		}
		if c.level > 0 && n > 0 && dark/n > 0.6 {
			t.Errorf("%s: air of %.2f standard deviations stays", name, dark/n)
		}
		if math.Abs(off/lit) > 0.15 {
			t.Errorf("%s: what is lit changes by %.2f standard deviations in the mean", name, off/lit)
		}
	}
}
