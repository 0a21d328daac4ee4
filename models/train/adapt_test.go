package train

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/simulate"
)

// seriesOf makes the slices of a phantom that went through a scanner of the kind of a row.
func seriesOf(t *testing.T, row string, n int) (images []models.Image, truth [][]float32) {
	t.Helper()
	r, err := simulate.FindChain(row)
	if err != nil {
		t.Fatal(err)
	}
	v := phantom.New(phantom.Spec{Seed: 5, Slices: n, Width: 128, Height: 128})
	for k, px := range v.Truth {
		a, err := r.Chain(128, 128).Run(px, 128, 128, rand.New(rand.NewPCG(3, uint64(k))))
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, models.Image{Width: a.Width, Height: a.Height, Pixels: a.Noisy})
		truth = append(truth, a.Truth)
	}
	return images, truth
}

// TestAdapt: what is fitted to a series is not worse on its slices than what was there before, and
// what it says of the error of both is in the order of the errors.
func TestAdapt(t *testing.T) {
	m, err := models.Default()
	if err != nil {
		t.Fatal(err)
	}
	images, truth := seriesOf(t, "R = 2, Hamming, ×1.6", 9)
	a, err := Adapt(t.Context(), backend(t), m, images, meter.Series{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.Slices != len(images) || !(a.Before > 0 && a.Before < 1) || !(a.After < 1.1*a.Before) {
		t.Errorf("%d slices, error %.3f before and %.3f after", a.Slices, a.Before, a.After)
	}
	if a.Fitted == (a.Model == m) {
		t.Errorf("fitted %v, the model %p was %p", a.Fitted, a.Model, m)
	}
	errorOf := func(m *models.Model) (sum float64) {
		for k, img := range images {
			r, err := m.Denoise(t.Context(), img, models.Options{Strength: 1})
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range r.Pixels {
				d := float64(v - truth[k][i])
				sum += d * d
			}
		}
		return math.Sqrt(sum)
	}
	if before, after := errorOf(m), errorOf(a.Model); after > 1.005*before {
		t.Errorf("error %.4f before the fitting, %.4f after", before, after)
	}
}

// TestAdaptRefuses: too few slices are nothing to fit to, and whoever calls it off need not wait.
func TestAdaptRefuses(t *testing.T) {
	m, err := models.Default()
	if err != nil {
		t.Fatal(err)
	}
	images, _ := seriesOf(t, "plain magnitude, 4 %", 4)
	for name, list := range map[string][]models.Image{"none": nil, "four": images} {
		if _, err := Adapt(t.Context(), backend(t), m, list, meter.Series{}, nil); !errors.Is(err, ErrTooFew) {
			t.Errorf("%s: %v", name, err)
		}
	}
	images, _ = seriesOf(t, "plain magnitude, 4 %", 9)
	ctx, cancel := context.WithCancel(t.Context())
	_, err = Adapt(ctx, backend(t), m, images, meter.Series{}, func(done, _ int) {
		if done > 1 {
			t.Error("a step after the end")
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}
