package net

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/diffusion"
)

// halving is a student that halves the image.
type halving struct{}

func (halving) Forward(dst, y, _ []float32, _ Told, _, _ int) error {
	for i, v := range y {
		dst[i] = v / 2
	}
	return nil
}

// smallTeacher returns the full method with small random networks.
func smallTeacher(t *testing.T, condition int) *Teacher {
	t.Helper()
	compile := func(g *kernels.Graph, seed uint64) kernels.Program {
		params := g.Init(seed)
		for _, p := range params { // some start at zero, and would hide what they see
			for i := range p {
				p[i] += float32(0.05 * math.Sin(float64(i)))
			}
		}
		p, err := graphBackend(t).Compile(g, params)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	g := TeacherConfig{Condition: condition, Channels: [3]int{4, 6, 8}, Code: 8}.Graph()
	return NewTeacher(g, compile(g, 2), compile(smallBSN.Graph(), 1), halving{})
}

// TestTeacher: a pair is counted from the base in units of the noise, and its condition is what the
// networks make of the image.
func TestTeacher(t *testing.T) {
	const w, h, steps = 16, 12, 3
	rng := rand.New(rand.NewPCG(1, 2))
	img := &Noisy{Width: w, Height: h, Told: Told{0.3, 0.2}, HoleX: 3, HoleY: 1}
	eps := make([]float32, w*h)
	for i := range eps {
		img.Pixels, img.Sigma = append(img.Pixels, rng.Float32()), append(img.Sigma, 0.05+0.02*rng.Float32())
		eps[i] = float32(rng.NormFloat64())
	}
	for _, channels := range []int{WrittenCondition, TeacherCondition} {
		teacher := smallTeacher(t, channels)
		if teacher.Channels() != channels {
			t.Fatalf("%d channels, want %d", teacher.Channels(), channels)
		}
		condition, base, err := teacher.Condition(img)
		if err != nil {
			t.Fatal(err)
		}
		blind := make([]float32, w*h)
		if err := teacher.Blind.Run(blind, BSNBatch(img.Pixels, 1, w, h, 3, 1)); err != nil {
			t.Fatal(err)
		}
		if channels == WrittenCondition && (!slices.Equal(base, blind) || !slices.Equal(condition, blind)) {
			t.Error("as written, base and condition are not the blind-spot prediction")
		}
		if channels == TeacherCondition {
			Posterior(blind, img.Pixels, blind, img.Sigma, w, h)
			const at = 5*w + 7
			y, s := img.Pixels[at], img.Sigma[at]
			want := []float32{y, y / 2, blind[at], 10 * s, 0.3, 0.2}
			if got := condition[at*channels:][:channels]; base[at] != y/2 || !slices.Equal(got, want) {
				t.Errorf("condition %v, want %v", got, want)
			}
		}
		mean, spread, err := teacher.Sample(img, eps, steps, nil)
		if err != nil {
			t.Fatal(err)
		}
		wantMean, wantSpread, unit := make([]float32, w*h), make([]float32, w*h), make([]float32, w*h)
		b := &kernels.Batch{Count: 1, Height: h, Width: w, Inputs: [][]float32{nil, condition, nil}}
		if err := kernels.SamplePair(teacher.Diffusion, wantMean, wantSpread, eps, b, SampleSteps(steps), nil); err != nil {
			t.Fatal(err)
		}
		Unit(unit, img.Sigma)
		for i := range mean {
			if m, s := base[i]+unit[i]*wantMean[i], unit[i]*wantSpread[i]; mean[i] != m || spread[i] != s {
				t.Fatalf("pixel %d is %g ± %g, want %g ± %g", i, mean[i], spread[i], m, s)
			}
		}
	}
}

// TestTeacherRuns: every run of a network is told, and can be the last.
func TestTeacherRuns(t *testing.T) {
	teacher := smallTeacher(t, TeacherCondition)
	img := &Noisy{Width: 4, Height: 4, Pixels: make([]float32, 16), Sigma: make([]float32, 16), HoleX: 1, HoleY: 1}
	var told []int
	note := func(runs int) error { told = append(told, runs); return nil }
	if _, _, err := teacher.Sample(img, make([]float32, 16), 2, note); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told, []int{1, 2, 3, 4, 5}) || Runs(2) != 5 {
		t.Errorf("told of runs %v", told)
	}
	enough := errors.New("enough")
	for last := 1; last <= Runs(2); last++ {
		calls := 0
		_, _, err := teacher.Sample(img, make([]float32, 16), 2, func(runs int) error {
			if calls++; runs == last {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) || calls != last {
			t.Errorf("called off after %d runs, want %d: %v", calls, last, err)
		}
	}
	for _, steps := range []int{-1, 0, diffusion.MaxSteps + 1} {
		if _, _, err := teacher.Sample(img, make([]float32, 16), steps, nil); err == nil {
			t.Errorf("%d steps passed", steps)
		}
	}
}

// TestNoisyTurned: with its axes exchanged, an image has the noise of the other axis.
func TestNoisyTurned(t *testing.T) {
	img := &Noisy{Width: 3, Height: 2, Pixels: []float32{1, 2, 3, 4, 5, 6}, Sigma: []float32{6, 5, 4, 3, 2, 1},
		Told: Told{1, 2, 3, 4, 5, 6, 7}, HoleX: 3, HoleY: 5}
	got := img.Turned(4)
	if got.Width != 2 || got.Height != 3 || got.HoleX != 5 || got.HoleY != 3 || got.Told != (Told{2, 1, 4, 3, 6, 5, 7}) ||
		!slices.Equal(got.Pixels, []float32{1, 4, 2, 5, 3, 6}) || !slices.Equal(got.Sigma, []float32{6, 3, 5, 2, 4, 1}) {
		t.Errorf("%+v", got)
	}
	got = img.Turned(1)
	if got.Width != 3 || got.HoleX != 3 || got.Told != img.Told || !slices.Equal(got.Pixels, []float32{3, 2, 1, 6, 5, 4}) {
		t.Errorf("mirrored: %+v", got)
	}
}
