package net

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestPosterior(t *testing.T) {
	const w, h = 40, 30
	rng := rand.New(rand.NewPCG(1, 2))
	n := w * h
	y, blind, sigma, out := make([]float32, n), make([]float32, n), make([]float32, n), make([]float32, n)
	const noise, off = 0.1, 0.05 // of the pixel, and of the prediction
	truth := 0.5
	for i := range y {
		y[i] = float32(truth + noise*rng.NormFloat64())
		blind[i] = float32(truth + off*rng.NormFloat64())
		sigma[i] = noise
	}
	Posterior(out, y, blind, sigma, w, h)
	sum := 0.0
	for _, v := range out {
		sum += (float64(v) - truth) * (float64(v) - truth)
	}
	best := off * off * noise * noise / (off*off + noise*noise)
	if got := sum / float64(n); got > 1.3*best || got < 0.7*best {
		t.Errorf("mean square error %g, the best possible is %g", got, best)
	}
	clear(sigma)
	Posterior(out, y, blind, sigma, w, h)
	if !slices.Equal(out, y) {
		t.Error("without noise the pixel is not kept")
	}
	Posterior(out, y, y, sigma, w, h)
	if !slices.Equal(out, y) {
		t.Error("a perfect prediction without noise does not give the pixel")
	}
}
