package models

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/simulate"
)

// scanned sends a phantom slice through a scanner chain.
func scanned(t *testing.T, c simulate.Chain, seed uint64) *simulate.Acquired {
	t.Helper()
	v := phantom.New(phantom.Spec{Seed: seed, Slices: 1, Width: 256, Height: 256, Shading: true})
	a, err := c.Run(v.Truth[0], 256, 256, rand.New(rand.NewPCG(seed, 5)))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestMeasure: strength and correlation of the noise of scanner chains, in tissue.
func TestMeasure(t *testing.T) {
	m := defaultModel(t)
	for name, c := range map[string]struct {
		chain simulate.Chain
		lag   float64 // along x
	}{
		"white": {simulate.Chain{Noise: 0.04}, 0},
		"zero-filled": {simulate.Chain{NativeWidth: 196, NativeHeight: 196, FillX: 1.31, FillY: 1.31, Noise: 0.04},
			0.28},
		"Hamming": {simulate.Chain{NativeWidth: 160, NativeHeight: 160, FillX: 1.6, FillY: 1.6,
			Filter: simulate.Hamming, Noise: 0.04}, 0.84},
		"four coils": {simulate.Chain{Coils: 4, Noise: 0.04}, 0},
	} {
		var all meter.Series
		var noise []float64
		for seed := range uint64(3) {
			a := scanned(t, c.chain, 20+seed)
			img := Image{Width: a.Width, Height: a.Height, Pixels: a.Noisy}
			r, err := m.Denoise(context.Background(), img, Options{Strength: 1})
			if err != nil {
				t.Fatal(err)
			}
			noise = append(noise, r.Sigma)
			told, err := m.Measure(img)
			if err != nil || told != r.Series {
				t.Errorf("%s: Measure tells %v, %v, Denoise %v", name, told, err, r.Series)
			}
			all = all.Plus(told)
		}
		for _, sigma := range noise {
			if ratio := sigma / 0.04; ratio < 0.75 || ratio > 1.35 {
				t.Errorf("%s: %.2f of the noise is found", name, ratio)
			}
		}
		if lag := float64(all.Told()[0]); math.Abs(lag-c.lag) > 0.15 {
			t.Errorf("%s: correlation %.2f, want %.2f", name, lag, c.lag)
		}
	}
}

// TestSecondReading: noise that is of the lowest frequencies alone is told from anatomy of many sizes.
func TestSecondReading(t *testing.T) {
	m := defaultModel(t)
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 11))
		a, err := simulate.Chain{NativeWidth: 128, NativeHeight: 128, FillX: 2, FillY: 2, Filter: simulate.Hamming,
			Noise: 0.04}.Run(simulate.Leaves(256, 256, rng), 256, 256, rng)
		if err != nil {
			t.Fatal(err)
		}
		r, err := m.Denoise(t.Context(), Image{Width: a.Width, Height: a.Height, Pixels: a.Noisy}, Options{Strength: 1})
		if err != nil {
			t.Fatal(err)
		}
		if ratio := r.Sigma / 0.04; ratio < 0.75 || ratio > 1.35 {
			t.Errorf("seed %d: %.2f of the noise is found", seed, ratio)
		}
	}
}

// TestSeries: what slices tell is added in any order, and survives being written down.
func TestSeries(t *testing.T) {
	m := defaultModel(t)
	var parts []meter.Series
	for seed := range uint64(3) {
		a := scanned(t, simulate.Chain{Noise: 0.03}, seed)
		s, err := m.Measure(Image{Width: a.Width, Height: a.Height, Pixels: a.Noisy})
		if err != nil || s.Weight == 0 {
			t.Fatal(s, err)
		}
		parts = append(parts, s)
	}
	b, err := json.Marshal(parts[0])
	if err != nil {
		t.Fatal(err)
	}
	var again meter.Series
	if err := json.Unmarshal(b, &again); err != nil || again != parts[0] {
		t.Errorf("written down and read: %v, %v", again, err)
	}
	one, other := parts[0].Plus(parts[1]), parts[1].Plus(parts[0])
	if one != other || one.Weight <= parts[0].Weight {
		t.Error("the order counts")
	}
	if (meter.Series{}).Plus(parts[2]) != parts[2] {
		t.Error("nothing is not nothing")
	}
	// an image that cannot be denoised tells nothing
	if s, err := m.Measure(Image{Width: 2, Height: 2, Pixels: make([]float32, 4)}); err != nil ||
		s != (meter.Series{}) {
		t.Errorf("%v, %v", s, err)
	}
}

// TestKeepMeans: a result that lowers tissue keeps its mean, one that lowers air does not.
func TestKeepMeans(t *testing.T) {
	const side = 64
	n := &normalized{w: side, h: side, y: make([]float32, side*side), outside: make([]bool, side*side)}
	told := new(meter.Reading)
	p := &predicted{removed: make([]float32, side*side)}
	b := &scratch{inAir: make([]float32, side*side)}
	for i := range n.y {
		told.Map.Sigma = append(told.Map.Sigma, 0.04)
		if p.removed[i] = 0.05; i%side < side/2 {
			n.y[i], p.removed[i] = 0.5, 0.02
		} else {
			n.y[i] = 0.05
		}
	}
	b.keepMeans(p, n, told)
	for i, v := range p.removed {
		switch x := i % side; {
		case x < side/2-8 && math.Abs(float64(v)) > 1e-6:
			t.Fatalf("tissue at %d loses %g", x, v)
		case x > side/2+2 && v != 0.05:
			t.Fatalf("air at %d loses %g", x, v)
		}
	}
}

// TestInBand: where the noise has no high frequencies, those of the image stay as they are.
func TestInBand(t *testing.T) {
	a := scanned(t, simulate.Chain{NativeWidth: 128, NativeHeight: 128, FillX: 2, FillY: 2, Filter: simulate.Hamming,
		Noise: 0.04}, 3)
	seen := [2]int{}
	m := defaultModel(t)
	_, err := m.denoise(context.Background(), Image{Width: a.Width, Height: a.Height, Pixels: a.Noisy},
		Options{Strength: 1},
		func(_ context.Context, p *predicted, n *normalized, told *meter.Reading) error {
			seen = [2]int{n.w, n.h}
			if len(told.Given) != n.w*n.h || len(p.removed) != n.w*n.h || len(n.y) != n.w*n.h {
				t.Errorf("%d values, %d of the noise, for %d×%d pixels", len(n.y), len(told.Given), n.w, n.h)
			}
			clear(p.removed)
			return nil
		})
	if err != nil || seen[0] > 160 || seen[0] < 128 || seen[1] > 160 || seen[1] < 128 {
		t.Errorf("predicted on %v, %v", seen, err)
	}
}

// TestNegative: what lies below zero is guarded as what lies above it.
func TestNegative(t *testing.T) {
	const side = 128
	rng := rand.New(rand.NewPCG(4, 4))
	img := Image{Width: side, Height: side, Pixels: make([]float32, side*side)}
	for i := range img.Pixels {
		v := 600.0
		if i%side < side/2 {
			v = -600
		}
		img.Pixels[i] = float32(v + 24*rng.NormFloat64())
	}
	r, err := defaultModel(t).denoise(context.Background(), img, Options{Strength: 1},
		func(_ context.Context, p *predicted, n *normalized, told *meter.Reading) error {
			for i := range p.removed {
				if p.removed[i] = 0; i%side > 20 && i%side < 37 && i/side > 50 && i/side < 67 {
					p.removed[i] = 2.4 * told.Map.Sigma[i]
				}
			}
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	off := 0.0
	for i, v := range r.Pixels {
		off = max(off, math.Abs(float64(v-img.Pixels[i])))
	}
	if r.Gate == nil || r.Gate.Pass || off > 40 {
		t.Errorf("a blob of %.0f vanishes from what is below zero; the gate says %+v", off, r.Gate)
	}
}
