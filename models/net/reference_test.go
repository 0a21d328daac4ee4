package net

import (
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/kernels/cpu"
)

// TestReference compares small networks, whose files reference.py has written, with what it
// computed: an independent implementation, which has their shapes from their formats alone.
func TestReference(t *testing.T) {
	for _, network := range []string{"bsn", "diffusion"} {
		weights := readTensors(t, filepath.Join("testdata", network+".safetensors"))
		golden := readTensors(t, filepath.Join("testdata", network+".golden.safetensors"))
		for _, name := range cpu.ISAs() {
			backend, err := cpu.New(name)
			if err != nil {
				t.Fatal(err)
			}
			off, err := CheckGolden(weights, golden, backend)
			if err != nil {
				t.Fatalf("%s on %s: %v", network, name, err)
			}
			if !(off <= GraphTolerance(backend)) {
				t.Errorf("%s on %s: relative error %.3g", network, name, off)
			}
			t.Logf("%s on %s: relative error %.2g", network, name, off)
		}
		// It tells a wrong network from a right one.
		for tensor, p := range weights.Tensors {
			right := slices.Clone(p.Data)
			for i := range p.Data {
				p.Data[i] += 0.5
			}
			backend, err := cpu.Select()
			if err != nil {
				t.Fatal(err)
			}
			if off, err := CheckGolden(weights, golden, backend); err != nil || off <= 100*GoldenTolerance {
				t.Errorf("%s: a wrong %s is off by %.3g: %v", network, tensor, off, err)
			}
			copy(p.Data, right)
		}
	}
}

// TestReferenceInputs: what networks are given beside images is what reference.py gives them.
func TestReferenceInputs(t *testing.T) {
	golden := readTensors(t, filepath.Join("testdata", "bsn.golden.safetensors"))
	y := golden.Tensors["input0"]
	b := BSNBatch(y.Data, 1, y.Shape[1], y.Shape[0], 3, 5)
	if !slices.Equal(b.Inputs[1], golden.Tensors["input1"].Data) ||
		!slices.Equal(b.Inputs[2], golden.Tensors["input2"].Data) {
		t.Errorf("a hole of 3×5 pixels is %v and %v", b.Inputs[1], b.Inputs[2])
	}
	if want := golden.Metadata["shifts"]; want != "3,2,1" || !slices.Equal(b.Shifts, []int{3, 2, 1}) {
		t.Errorf("a hole of 3×5 pixels has the shifts %v, want %s", b.Shifts, want)
	}
	var code [TimeCode]float32
	EncodeTime(code[:], 0.7)
	for i, want := range readTensors(t, filepath.Join("testdata", "diffusion.golden.safetensors")).Tensors["input2"].Data {
		if math.Abs(float64(code[i]-want)) > 1e-6 {
			t.Errorf("the time 0.7 has %g at place %d, want %g", code[i], i, want)
		}
	}
}
