package net

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/safetensors"
)

func readTensors(t *testing.T, path string) *safetensors.File {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Decode(b)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return f
}

// TestGolden compares every intermediate and the output with those of an
// independent implementation, on every instruction set of this machine.
func TestGolden(t *testing.T) {
	for _, name := range cpu.ISAs() {
		backend, err := cpu.New(name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewStudent(readTensors(t, filepath.Join("..", "testdata", "bootstrap", "weights.safetensors")),
			backend)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []string{"2x3", "51x37", "64x48"} {
			t.Run(string(name)+"/"+size, func(t *testing.T) {
				golden := readTensors(t, filepath.Join("..", "testdata", "golden_"+size+".safetensors"))
				y, sigma := golden.Tensors["input"], golden.Tensors["sigma"]
				got, err := s.Activations(y.Data, sigma.Data, y.Shape[1], y.Shape[0])
				if err != nil {
					t.Fatal(err)
				}
				checked, worst := 0, 0.0
				for what, want := range golden.Tensors {
					if what == "input" || what == "sigma" {
						continue
					}
					if len(got[what]) != len(want.Data) {
						t.Fatalf("%s has %d numbers, want %d", what, len(got[what]), len(want.Data))
					}
					e := RelativeError(got[what], want.Data)
					// Rounding to bf16 counts by the noise, below: where that is
					// most of the image, the output is a small difference.
					if !(e <= StudentTolerance(backend)) && (what != "output" ||
						StudentTolerance(backend) == GoldenTolerance) {
						t.Errorf("%s: relative error %.3g", what, e)
					}
					worst = max(worst, e)
					checked++
				}
				if checked != 10 { // head, eight blocks, output
					t.Errorf("golden file has %d results, want 10", checked)
				}
				t.Logf("largest relative error %.2g", worst)

				// The output is mostly the input, so its error flatters: the noise
				// that was predicted must be as right.
				noise, wantNoise := make([]float32, len(y.Data)), make([]float32, len(y.Data))
				for i, v := range y.Data {
					noise[i], wantNoise[i] = v-got["output"][i], v-golden.Tensors["output"].Data[i]
				}
				e := RelativeError(noise, wantNoise)
				if !(e <= StudentTolerance(backend)) {
					t.Errorf("predicted noise: relative error %.3g", e)
				}
				t.Logf("predicted noise: relative error %.2g", e)
			})
		}
	}
}

func TestStudentRefuses(t *testing.T) {
	backend, err := cpu.Select()
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		change func(*safetensors.File)
		want   string
	}{
		"format":         {func(f *safetensors.File) { f.Metadata = nil }, "format"},
		"missing head":   {func(f *safetensors.File) { delete(f.Tensors, "head.bias") }, "head.bias"},
		"missing tail":   {func(f *safetensors.File) { delete(f.Tensors, "tail.weight") }, "tail"},
		"missing part":   {func(f *safetensors.File) { delete(f.Tensors, "blocks.3.b.bias") }, "blocks.3.b"},
		"missing block":  {func(f *safetensors.File) { delete(f.Tensors, "blocks.3.a.weight") }, "uses"},
		"unknown tensor": {func(f *safetensors.File) { f.Tensors["extra"] = safetensors.Tensor{} }, "uses"},
		"wrong kernel": {func(f *safetensors.File) {
			w := f.Tensors["tail.weight"]
			f.Tensors["tail.weight"] = safetensors.Tensor{Shape: []int{4, 32, 9}, Data: w.Data}
		}, "tail"},
		"no channels": {func(f *safetensors.File) { f.Tensors["head.bias"] = safetensors.Tensor{Shape: []int{0}} }, "head.bias"},
	} {
		f := readTensors(t, filepath.Join("..", "default", "weights.safetensors"))
		c.change(f)
		if _, err := NewStudent(f, backend); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one about %q", what, err, c.want)
		}
	}
}
