//go:build cuda && linux && emulated

package train

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda"
)

// gpu is a backend on a device, which must have nothing left of the test when it ends.
func gpu(t *testing.T) kernels.GraphBackend {
	t.Helper()
	b, err := cuda.Open(0, cuda.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// TestRunOnGPU: all three stages train on a device; one that is stopped and resumed ends in the same bytes,
// and close to them if it is resumed on the processor.
func TestRunOnGPU(t *testing.T) {
	preset := small
	preset.Every = preset.Steps[0] // validating takes longest
	old := Presets
	Presets = append(slices.Clone(Presets), preset)
	t.Cleanup(func() { Presets = old })
	set, device := phantomSet(t), gpu(t)
	whole, parts := t.TempDir(), t.TempDir()
	if _, err := Run(t.Context(), device, set, Config{Stage: StageAll, Preset: preset.Name, Seed: 7, Out: whole}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := Config{Stage: StageBSN, Preset: preset.Name, Seed: 7, Out: parts, Resume: true, Progress: func(p Progress) {
		if p.Step == 4 {
			cancel()
		}
	}}
	if _, err := Run(ctx, device, set, c); !errors.Is(err, ErrStopped) {
		t.Fatalf("the error is %v, want %v", err, ErrStopped)
	}
	other := t.TempDir()
	if err := os.CopyFS(other, os.DirFS(parts)); err != nil {
		t.Fatal(err)
	}
	again, err := Run(t.Context(), device, set, c)
	if err != nil {
		t.Fatal(err)
	}
	file := StageBSN + ".safetensors"
	if !slices.Equal(read(t, filepath.Join(whole, file)), read(t, filepath.Join(parts, file))) {
		t.Errorf("%s differs after resuming", file)
	}
	c.Out = other
	host, err := Run(t.Context(), backend(t), set, c)
	if err != nil {
		t.Fatal(err)
	}
	diff, norm := 0.0, 0.0
	for name, want := range again.Networks[StageBSN].Tensors {
		for i, v := range want.Data {
			d := float64(host.Networks[StageBSN].Tensors[name].Data[i] - v)
			diff, norm = diff+d*d, norm+float64(v)*float64(v)
		}
	}
	if e := math.Sqrt(diff / norm); !(e < 1e-3) || e == 0 {
		t.Errorf("resumed on the processor the parameters are off by %g", e)
	}
}

// TestStepsOnGPU: steps of each stage end where the processor's end.
func TestStepsOnGPU(t *testing.T) {
	withSmall(t)
	set, host, device := phantomSet(t), backend(t), gpu(t)
	c := Config{Stage: StageAll, Preset: "small", Seed: 7, Out: t.TempDir()}
	if _, err := Run(t.Context(), host, set, c); err != nil {
		t.Fatal(err)
	}
	tr := &training{Config: c, preset: small, set: set, backend: host}
	for k, name := range Stages {
		s, err := tr.stage(t.Context(), k)
		if err != nil {
			t.Fatal(err)
		}
		var states [2]*kernels.State
		for i, b := range []kernels.GraphBackend{host, device} {
			trainer, err := b.Train(s.graph, kernels.NewState(s.graph.Init(c.Seed)),
				kernels.TrainOptions{Decay: s.decay, Clip: 1, EMA: s.ema})
			if err != nil {
				t.Fatal(err)
			}
			for step := range 3 {
				batch, err := s.batch(step, rand.New(rand.NewPCG(c.Seed, uint64(step))))
				if err != nil {
					t.Fatal(err)
				}
				if _, _, err := trainer.Step(batch, s.rateAt(step)); err != nil {
					t.Fatal(err)
				}
			}
			states[i] = trainer.State()
		}
		diff, norm := 0.0, 0.0
		for i, p := range states[0].Params {
			for j, want := range p {
				d := float64(states[1].Params[i][j]) - float64(want)
				diff, norm = diff+d*d, norm+float64(want)*float64(want)
			}
		}
		if e := math.Sqrt(diff / norm); !(e < 1e-4) {
			t.Errorf("%s: parameters are off by %g", name, e)
		} else {
			t.Logf("%s: parameters are off by %.1g", name, e)
		}
	}
}
