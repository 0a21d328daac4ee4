package train_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models/train"
)

// heads is a volume of a phantom, its values multiplied.
func heads(source string, seed uint64, n int, by float32) dataset.Volume {
	v := phantom.New(phantom.Spec{Seed: seed, Width: 64, Height: 48, Slices: n, Sigma: 0.04})
	return volume(source, 64, 48, n, func(k int) []float32 {
		px := slices.Clone(v.Noisy[k])
		for i := range px {
			px[i] *= by
		}
		return px
	})
}

func volume(source string, w, h, n int, pixels func(k int) []float32) dataset.Volume {
	return dataset.Volume{Source: source, Slices: n, Read: func(k int) (dataset.Image, error) {
		return dataset.Image{Width: w, Height: h, Pixels: pixels(k)}, nil
	}}
}

func build(t *testing.T, o train.Options, volumes ...dataset.Volume) (*train.Set, error) {
	t.Helper()
	b := train.NewBuilder(o)
	for _, v := range volumes {
		if err := b.Add(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	return b.Build(t.Context())
}

func mustBuild(t *testing.T, o train.Options, volumes ...dataset.Volume) *train.Set {
	t.Helper()
	s, err := build(t, o, volumes...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sources(list []train.Slice) map[string]int {
	m := map[string]int{}
	for _, s := range list {
		m[s.Source]++
	}
	return m
}

// TestSetScale: whatever the unit of a volume, 1 is its 99.9th percentile, the
// same for all its slices, and the noise is in that unit.
func TestSetScale(t *testing.T) {
	for _, by := range []float32{1e-5, 1, 3000} {
		s := mustBuild(t, train.Options{}, heads("a", 1, 6, by), heads("b", 2, 6, 7*by))
		for _, part := range [][]train.Slice{s.Train, s.Validation} {
			var all []float32
			for _, c := range part {
				all = append(all, c.Pixels...)
				if c.Width != 64 || c.Height != 48 || len(c.Pixels) != 64*48 {
					t.Fatalf("slice of %d×%d, %d pixels", c.Width, c.Height, len(c.Pixels))
				}
				if c.Noise.Width != 64 || c.Noise.Height != 48 || len(c.Noise.Sigma) != 64*48 {
					t.Fatalf("noise map of %d×%d", c.Noise.Width, c.Noise.Height)
				}
			}
			slices.Sort(all)
			if p := all[int(0.999*float64(len(all)-1))]; math.Abs(float64(p)-1) > 2e-3 {
				t.Errorf("scale %g: 99.9th percentile is %g", by, p)
			}
		}
		if s.Summary.NoNoise > 3 || s.Summary.Noise < 0.02 || s.Summary.Noise > 0.06 {
			t.Errorf("scale %g: noise %.3f, made with 0.04; summary %+v", by, s.Summary.Noise, s.Summary)
		}
	}
}

// TestSetSkips: what no network should learn from is left out, each for its
// reason, and what remains is used.
func TestSetSkips(t *testing.T) {
	head := heads("", 3, 12, 100)
	pixels := func(k int) []float32 {
		img, _ := head.Read(k)
		return img.Pixels
	}
	nan := float32(math.NaN())
	change := func(f func(i int, v float32) float32) func(int) []float32 {
		return func(k int) []float32 {
			px := pixels(k)
			for i := range px {
				px[i] = f(i, px[i])
			}
			return px
		}
	}
	some := func(f func(i int, v float32) float32) func(int) []float32 { // only slice 2
		return func(k int) []float32 {
			if k == 2 {
				return change(f)(k)
			}
			return pixels(k)
		}
	}
	b := train.NewBuilder(train.Options{})
	failing := volume("failing", 64, 48, 3, pixels)
	read := failing.Read
	failing.Read = func(k int) (dataset.Image, error) {
		if k == 1 {
			return dataset.Image{}, errors.New("the disk is broken")
		}
		return read(k)
	}
	gone := volume("gone", 64, 48, 1, pixels)
	gone.Read = func(int) (dataset.Image, error) { return dataset.Image{}, &dataset.SkipError{Reason: "gone"} }
	for _, v := range []dataset.Volume{
		volume("good", 64, 48, 6, pixels),
		volume("another", 48, 64, 6, pixels),
		volume("constant", 64, 48, 2, change(func(int, float32) float32 { return 7 })),
		volume("one constant", 64, 48, 3, some(func(int, float32) float32 { return 7 })),
		volume("no number", 64, 48, 2, change(func(int, float32) float32 { return nan })),
		volume("mostly nan", 64, 48, 3, some(func(i int, v float32) float32 {
			if i%3 != 0 {
				return nan
			}
			return v
		})),
		volume("a little nan", 64, 48, 3, some(func(i int, v float32) float32 {
			if i < 64 {
				return nan
			}
			return v
		})),
		volume("small", 96, 31, 2, func(int) []float32 { return pixels(0)[:96*31] }),
		volume("air", 64, 48, 3, some(func(_ int, v float32) float32 { return v * 0.05 })),
		volume("phase", 64, 48, 2, change(func(i int, v float32) float32 { return v * float32(i%2*2-1) })),
		volume("negative", 64, 48, 2, change(func(_ int, v float32) float32 { return -1 - v })),
		volume("mask", 64, 48, 2, change(func(_ int, v float32) float32 { return float32(int(v/30) % 4) })),
		volume("lies", 64, 49, 2, pixels),
		volume("noise", 64, 48, 2, func(k int) []float32 {
			rng, px := rand.New(rand.NewPCG(1, uint64(k))), make([]float32, 64*48)
			for i := range px {
				px[i] = rng.Float32()
			}
			return px
		}),
		failing, gone,
	} {
		if err := b.Add(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	s, err := b.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	used := sources(slices.Concat(s.Train, s.Validation))
	for source, n := range map[string]int{"good": 6, "another": 6, "one constant": 2, "mostly nan": 2, "a little nan": 3, "air": 2, "failing": 2} {
		if used[source] != n {
			t.Errorf("%d slices of %q are used, want %d", used[source], source, n)
		}
		delete(used, source)
	}
	if len(used) > 0 {
		t.Errorf("also used: %v", used)
	}
	want := map[string]dataset.Skip{
		"constant":     {Reason: train.SkipConstant, Slices: 2},
		"one constant": {Reason: train.SkipConstant, Slices: 1},
		"no number":    {Reason: train.SkipNotFinite, Slices: 2},
		"mostly nan":   {Reason: train.SkipNotFinite, Slices: 1},
		"small":        {Reason: train.SkipTooSmall, Slices: 2},
		"air":          {Reason: train.SkipAir, Slices: 1},
		"phase":        {Reason: train.SkipSigned, Slices: 2},
		"negative":     {Reason: train.SkipSigned, Slices: 2},
		"mask":         {Reason: train.SkipLabels, Slices: 2},
		"lies":         {Reason: dataset.Unreadable, Slices: 2},
		"noise":        {Reason: train.SkipNoise, Slices: 2},
		"failing":      {Reason: dataset.Unreadable, Slices: 1},
		"gone":         {Reason: "gone", Slices: 1},
	}
	for _, skip := range s.Summary.Skipped {
		if w := want[skip.Source]; w.Reason != skip.Reason || w.Slices != skip.Slices {
			t.Errorf("skip %+v, want %+v", skip, w)
		}
		delete(want, skip.Source)
	}
	if len(want) > 0 || s.Summary.SkippedAll != 13 {
		t.Errorf("not skipped: %v of %d", want, s.Summary.SkippedAll)
	}
	for _, c := range slices.Concat(s.Train, s.Validation) {
		for i, p := range c.Pixels {
			if p-p != 0 {
				t.Fatalf("%s slice %d: pixel %d is %g", c.Source, c.Index, i, p)
			}
		}
		if c.Source == "a little nan" && c.Index == 2 && (c.Skip == nil || slices.Contains(c.Skip[:64], false)) {
			t.Error("what was no number is not masked")
		}
	}
	var text strings.Builder
	if err := s.Summary.Print(&text); err != nil || !strings.Contains(text.String(), "2 labels") {
		t.Errorf("%v:\n%s", err, text.String())
	}
}

func TestSetTooFew(t *testing.T) {
	_, err := build(t, train.Options{}, heads("a", 1, 5, 1), volume("small", 16, 16, 3, func(k int) []float32 { return make([]float32, 256) }))
	var few *train.TooFewError
	if !errors.As(err, &few) || few.Slices != 5 || !strings.Contains(err.Error(),
		"at least 9 are needed; left out: 3 constant; the first, small, because: every pixel is 0") {
		t.Errorf("five slices: %v", err)
	}
	if _, err = build(t, train.Options{}); !errors.As(err, &few) {
		t.Errorf("nothing: %v", err)
	}
}

// TestSetSplit: subjects stay together, there is always some of both, and the
// same seed gives the same split whatever the order.
func TestSetSplit(t *testing.T) {
	var volumes []dataset.Volume
	for i := range 10 {
		v := heads(fmt.Sprintf("v%d", i), uint64(i), 3, 1)
		v.Subject = fmt.Sprintf("subject %d", i/2)
		volumes = append(volumes, v)
	}
	s := mustBuild(t, train.Options{Seed: 3}, volumes...)
	train1, held := sources(s.Train), sources(s.Validation)
	if len(held) != 2 || len(train1) != 8 || s.Summary.Subjects != 5 || s.Summary.Split != "subject" {
		t.Fatalf("train %v, validation %v, %+v", train1, held, s.Summary)
	}
	for i := 0; i < 10; i += 2 {
		if a, b := fmt.Sprintf("v%d", i), fmt.Sprintf("v%d", i+1); (held[a] > 0) != (held[b] > 0) {
			t.Errorf("subject %d is on both sides", i/2)
		}
	}
	slices.Reverse(volumes)
	if r := mustBuild(t, train.Options{Seed: 3}, volumes...); r.Fingerprint() != s.Fingerprint() {
		t.Error("the order of the volumes changes the set")
	}
	differs := false
	for seed := range uint64(5) {
		r := mustBuild(t, train.Options{Seed: seed}, volumes...)
		differs = differs || r.Fingerprint() != s.Fingerprint()
	}
	if !differs {
		t.Error("the seed does not change the split")
	}

	// One patient: by volume. One volume: its last slices.
	for _, v := range volumes {
		v.Subject = "x"
	}
	for i := range volumes {
		volumes[i].Subject = "x"
	}
	s = mustBuild(t, train.Options{}, volumes...)
	if s.Summary.Split != "volume" || len(sources(s.Validation)) != 1 || len(s.Train) != 27 {
		t.Errorf("one subject: %+v", s.Summary)
	}
	s = mustBuild(t, train.Options{}, heads("a", 1, 20, 1))
	if s.Summary.Split != "slice" || len(s.Validation) != 2 || s.Validation[0].Index != 18 {
		t.Errorf("one volume: %+v", s.Summary)
	}
	// A large subject does not go into the validation if a small one can.
	for seed := range uint64(8) {
		s = mustBuild(t, train.Options{Seed: seed}, heads("large", 1, 20, 1), heads("small", 2, 3, 1))
		if held := sources(s.Validation); held["large"] > 0 || held["small"] != 3 {
			t.Errorf("seed %d: validation is %v", seed, held)
		}
	}
}

// TestSetLimit: beyond the memory limit a part of the slices is kept, the same
// in any order, and slices that cannot be kept are not even read.
func TestSetLimit(t *testing.T) {
	const per = 64 * 48 * 9
	reads := 0
	count := func(v dataset.Volume) dataset.Volume {
		read := v.Read
		v.Read = func(k int) (dataset.Image, error) { reads++; return read(k) }
		return v
	}
	var volumes []dataset.Volume
	for i := range 8 {
		volumes = append(volumes, count(heads(fmt.Sprintf("v%d", i), uint64(i), 10, 1)))
	}
	o := train.Options{MaxBytes: 20*per + per/2, Seed: 5}
	s := mustBuild(t, o, volumes...)
	if s.Summary.Slices != 20 || s.Summary.Bytes != 20*per || s.Summary.Left != 60 || len(sources(slices.Concat(s.Train, s.Validation))) < 5 {
		t.Errorf("summary %+v", s.Summary)
	}
	if reads >= 160 {
		t.Errorf("%d reads of 80 slices, each for scale and use", reads)
	}
	slices.Reverse(volumes)
	if r := mustBuild(t, o, volumes...); r.Fingerprint() != s.Fingerprint() {
		t.Error("the order of the volumes changes what is kept")
	}
	o.Seed = 6
	if r := mustBuild(t, o, volumes...); r.Fingerprint() == s.Fingerprint() {
		t.Error("the seed does not change what is kept")
	}
}

// TestSetModality: of two modalities the more frequent stays, with what has none.
func TestSetModality(t *testing.T) {
	a, b, c := heads("a", 1, 8, 1), heads("b", 2, 5, 1), heads("c", 3, 4, 1)
	a.Modality, b.Modality = "MR", "CR"
	s := mustBuild(t, train.Options{}, a, b, c)
	if used := sources(slices.Concat(s.Train, s.Validation)); used["a"] != 8 || used["b"] != 0 || used["c"] != 4 {
		t.Errorf("used %v", used)
	}
	if k := s.Summary.Skipped; len(k) != 1 || k[0].Reason != train.SkipOtherModality || k[0].Slices != 5 {
		t.Errorf("skipped %+v", k)
	}
}

// TestSetNativeGrid: a zero-filled image is cropped to the size it was measured in.
func TestSetNativeGrid(t *testing.T) {
	v := phantom.New(phantom.Spec{Width: 128, Height: 128, Slices: 10, Sigma: 0.05, ZeroFill: 1.6})
	s := mustBuild(t, train.Options{}, volume("filled", 128, 128, 10, func(k int) []float32 { return slices.Clone(v.Noisy[k]) }))
	if s.Summary.Cropped < 8 {
		t.Fatalf("%d of 10 slices cropped", s.Summary.Cropped)
	}
	for _, c := range s.Train {
		if c.Width != s.Train[0].Width || c.Height != s.Train[0].Height {
			t.Errorf("slices of one volume have different sizes")
		}
		if c.Cropped && (c.Width >= 96 || c.Width < 78 || len(c.Pixels) != c.Width*c.Height || len(c.Noise.Sigma) != c.Width*c.Height) {
			t.Errorf("slice %d is %d×%d with %d pixels", c.Index, c.Width, c.Height, len(c.Pixels))
		}
	}
}

func TestSetCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := train.NewBuilder(train.Options{Workers: 2, Progress: func(int, int) { cancel() }})
	if err := b.Add(ctx, heads("a", 1, 20, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Build(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Build of a cancelled context: %v", err)
	}
	if err := b.Add(ctx, heads("a", 1, 20, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Add to a cancelled context: %v", err)
	}
}

func ExampleBuilder() {
	head := phantom.New(phantom.Spec{Width: 64, Height: 64, Slices: 10, Sigma: 0.05})
	b := train.NewBuilder(train.Options{Seed: 1})
	err := b.Add(context.Background(), dataset.Volume{Source: "head", Slices: 10, Read: func(k int) (dataset.Image,
		error) {
		return dataset.Image{Width: 64, Height: 64, Pixels: slices.Clone(head.Noisy[k])}, nil
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	set, err := b.Build(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(set.Train), "slices to train on,", len(set.Validation), "for validation")
	// Output: 9 slices to train on, 1 for validation
}
