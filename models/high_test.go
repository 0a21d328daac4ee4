package models

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/store"
)

func graphBackend(t *testing.T) kernels.GraphBackend {
	t.Helper()
	b, err := cpu.Select()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExtended(t *testing.T) {
	img := []float32{1, 2, 3}
	got := extended(img, 3, 1, -3, -2, 12, 5)
	want := []float32{2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2, 1}
	for r := range 5 {
		if row := got[r*12:][:12]; !slices.Equal(row, want) {
			t.Errorf("row %d is %v, want %v", r, row, want)
		}
	}
}

// TestHighRefuses: what High cannot do is an error, and a model without the networks
// says so.
func TestHighRefuses(t *testing.T) {
	student, err := Open(store.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	img := Image{Width: 8, Height: 8, Pixels: make([]float32, 64)}
	for _, o := range []HighOptions{{Strength: 1, Steps: -1}, {Strength: 1, Steps: 1 << 20}, {Strength: 1, Passes: 9}, {Strength: 2}} {
		if _, err := student.High(t.Context(), img, o); err == nil {
			t.Errorf("%+v passed", o)
		}
	}
	if !student.HasHigh() {
		if _, err := student.High(t.Context(), img, HighOptions{Strength: 1}); !errors.Is(err, store.ErrNoNetwork) {
			t.Errorf("model without the networks: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := student.High(ctx, img, HighOptions{Strength: 1}); err == nil {
		t.Error("cancelled call passed")
	}
}

// sampling is a backend whose programs can sample on its device: it does so as the interface says,
// and begins anew the first time, as it may after it has lost a device.
type sampling struct {
	kernels.GraphBackend
	calls int
}

type samplingProgram struct {
	kernels.Program
	on *sampling
}

func (s *sampling) Compile(g *kernels.Graph, params [][]float32) (kernels.Program, error) {
	p, err := s.GraphBackend.Compile(g, params)
	return samplingProgram{p, s}, err
}

func (p samplingProgram) SamplePair(mean, spread, eps []float32, b *kernels.Batch, steps []kernels.SampleStep,
	done func(runs int) error) error {
	if p.on.calls++; p.on.calls == 1 {
		if err := done(2); err != nil {
			return err
		}
	}
	states := [2][]float32{slices.Clone(eps), slices.Clone(eps)}
	for i := range eps {
		states[1][i] *= -1
	}
	for k, s := range steps {
		for _, x := range states {
			in, v := slices.Clone(x), make([]float32, len(x))
			for i := range in {
				in[i] *= s.State
			}
			if err := p.Run(v, &kernels.Batch{Count: 1, Height: b.Height, Width: b.Width, Inputs: [][]float32{in, b.Inputs[1], s.Vector}}); err != nil {
				return err
			}
			for i := range x {
				x[i] = s.Keep*x[i] + s.Add*v[i]
			}
		}
		if err := done(2 * (k + 1)); err != nil {
			return err
		}
	}
	for i, plus := range states[0] {
		mean[i], spread[i] = (plus+states[1][i])/2, float32(math.Abs(float64(plus-states[1][i])))/2
	}
	return nil
}

// TestHighSampler: a backend that samples on its device gives what the steps one by one give, and is
// told and stopped as they are.
func TestHighSampler(t *testing.T) {
	device := &sampling{GraphBackend: graphBackend(t)}
	plain, err := OpenOn(device.GraphBackend, store.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	there, err := OpenOn(device, store.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	img := Image{Width: 40, Height: 36, Pixels: make([]float32, 40*36)}
	for i := range img.Pixels {
		img.Pixels[i] = float32(300 + 100*math.Sin(float64(i%40)/5) + 15*rng.NormFloat64())
	}
	o := HighOptions{Strength: 1, Steps: 3, Passes: 2}
	want, err := plain.High(t.Context(), img, o)
	if err != nil {
		t.Fatal(err)
	}
	if want.Untouched != "" {
		t.Fatalf("the image came back as it was: %s", want.Untouched)
	}
	var told []int
	o.Progress = func(done, total int) {
		if told = append(told, done); total != 2*(1+2*3) {
			t.Errorf("%d calls in all", total)
		}
	}
	got, err := there.High(t.Context(), img, o)
	if err != nil {
		t.Fatal(err)
	}
	if device.calls != 2 {
		t.Errorf("%d pairs were sampled on the device, want 2", device.calls)
	}
	if len(got.Uncertainty) != len(want.Uncertainty) {
		t.Fatalf("%d values of uncertainty, want %d: %s", len(got.Uncertainty), len(want.Uncertainty), got.Untouched)
	}
	for i, v := range want.Pixels {
		if math.Abs(float64(got.Pixels[i]-v)) > 0.01 || math.Abs(float64(got.Uncertainty[i]-want.Uncertainty[i])) > 0.01 {
			t.Fatalf("pixel %d is %v ± %v, want %v ± %v", i, got.Pixels[i], got.Uncertainty[i], v, want.Uncertainty[i])
		}
	}
	if want := []int{1, 3, 3, 5, 7, 8, 10, 12, 14}; !slices.Equal(told, want) {
		t.Errorf("told of calls %v, want %v", told, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Progress = func(done, _ int) {
		if done == 10 {
			cancel()
		}
	}
	if _, err := there.High(ctx, img, o); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}
