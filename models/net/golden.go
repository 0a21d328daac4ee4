package net

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// GoldenTolerance is the relative error (norm of the difference by norm of the
// expected output, which is the noise for a student) that is allowed to backends
// with float32 throughout. Others say theirs: for a student by a method Tolerance, for
// graphs by a method GraphTolerance.
const GoldenTolerance = 1e-5

// StudentTolerance returns the relative error that is allowed to a student on a backend.
func StudentTolerance(on kernels.Backend) float64 {
	if b, ok := on.(interface{ Tolerance() float64 }); ok {
		return b.Tolerance()
	}
	return GoldenTolerance
}

// GraphTolerance is StudentTolerance for the other networks.
func GraphTolerance(on kernels.Backend) float64 {
	if b, ok := on.(interface{ GraphTolerance() float64 }); ok {
		return b.GraphTolerance()
	}
	return GoldenTolerance
}

// A golden file holds what a network is given and what it must give for it:
//
//	student: "input", "sigma" and "output", [H, W], and "told" [7]; without it all are 0
//	graphs:  "input0" and so on, [H, W, channels] or [channels], and "output"
//	         [H, W, channels]; metadata "shifts", separated by commas

// Sides of golden inputs.
const (
	goldenSide    = 32
	maxGoldenSide = 4096
)

// NewGolden computes golden vectors for the weights of a network in plain Go, from
// random inputs that depend on nothing but the architecture. What an instruction
// set computes can be compared with them.
func NewGolden(weights *safetensors.File) (*safetensors.File, error) {
	backend, err := cpu.New(cpu.Go)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(shape ...int) safetensors.Tensor {
		n := 1
		for _, d := range shape {
			n *= d
		}
		t := safetensors.Tensor{Shape: shape, Data: make([]float32, n)}
		for i := range t.Data {
			t.Data[i] = rng.Float32()
		}
		return t
	}
	f := &safetensors.File{Metadata: map[string]string{}, Tensors: map[string]safetensors.Tensor{}}
	if isStudent(weights) {
		f.Tensors["input"], f.Tensors["sigma"] = random(goldenSide, goldenSide), random(goldenSide, goldenSide)
		for i := range f.Tensors["sigma"].Data {
			f.Tensors["sigma"].Data[i] *= 0.1
		}
		f.Tensors["told"] = random(len(Told{}))
	} else {
		g, err := graphOf(weights.Metadata["format"])
		if err != nil {
			return nil, err
		}
		for i := range g.Nodes {
			n := &g.Nodes[i]
			switch name := fmt.Sprintf("input%d", n.K); {
			case n.Op == kernels.OpInput && n.Vector:
				f.Tensors[name] = random(n.Channels)
			case n.Op == kernels.OpInput:
				f.Tensors[name] = random(goldenSide, goldenSide, n.Channels)
			}
		}
		shifts := make([]string, g.Shifts())
		for i := range shifts {
			shifts[i] = "1"
		}
		if len(shifts) > 0 {
			f.Metadata["shifts"] = strings.Join(shifts, ",")
		}
	}
	out, shape, err := runGolden(weights, f, backend)
	if err != nil {
		return nil, fmt.Errorf("compute golden vectors: %w", err)
	}
	f.Tensors["output"] = safetensors.Tensor{Shape: shape, Data: out}
	return f, nil
}

func isStudent(weights *safetensors.File) bool {
	return strings.HasPrefix(weights.Metadata["format"], "denoised-student-")
}

// CheckGolden runs a network on golden vectors and returns the relative error of
// its output: that of a student is the noise, and not what it leaves of the image.
func CheckGolden(weights, golden *safetensors.File, on kernels.Backend) (float64, error) {
	want, ok := golden.Tensors["output"]
	if !ok {
		return 0, errors.New("there is no output")
	}
	got, shape, err := runGolden(weights, golden, on)
	if err != nil {
		return 0, err
	}
	if !shaped(want, shape...) {
		return 0, fmt.Errorf("the output has shape %v, want %v", want.Shape, shape)
	}
	out := want.Data
	if y := golden.Tensors["input"]; isStudent(weights) {
		out = make([]float32, len(got))
		for i, v := range y.Data {
			got[i], out[i] = v-got[i], v-want.Data[i]
		}
	}
	return RelativeError(got, out), nil
}

// runGolden returns what the network gives for the inputs of golden vectors.
func runGolden(weights, golden *safetensors.File, on kernels.Backend) (out []float32, shape []int, err error) {
	if isStudent(weights) {
		s, err := NewStudent(weights, on)
		if err != nil {
			return nil, nil, err
		}
		y, sigma := golden.Tensors["input"], golden.Tensors["sigma"]
		if len(y.Shape) != 2 || !shaped(sigma, y.Shape...) {
			return nil, nil, fmt.Errorf("input and sigma have shapes %v and %v", y.Shape, sigma.Shape)
		}
		var told Told
		if t, ok := golden.Tensors["told"]; ok {
			if !shaped(t, len(told)) {
				return nil, nil, fmt.Errorf("told has shape %v, want [%d]", t.Shape, len(told))
			}
			copy(told[:], t.Data)
		}
		out = make([]float32, len(y.Data))
		return out, y.Shape, s.Forward(out, y.Data, sigma.Data, told, y.Shape[1], y.Shape[0])
	}
	g, program, err := Compile(weights, on)
	if err != nil {
		return nil, nil, err
	}
	b := &kernels.Batch{Count: 1, Inputs: make([][]float32, g.Inputs())}
	for i := range g.Nodes {
		n := &g.Nodes[i]
		if n.Op != kernels.OpInput {
			continue
		}
		name := fmt.Sprintf("input%d", n.K)
		t := golden.Tensors[name]
		switch {
		case n.Vector:
			if !shaped(t, n.Channels) {
				return nil, nil, fmt.Errorf("%s has shape %v, want [%d]", name, t.Shape, n.Channels)
			}
		case b.Height == 0:
			if len(t.Shape) != 3 || min(t.Shape[0], t.Shape[1]) < 1 || max(t.Shape[0], t.Shape[1]) > maxGoldenSide || t.Shape[2] != n.Channels {
				return nil, nil, fmt.Errorf("%s has shape %v, want height, width and %d", name, t.Shape, n.Channels)
			}
			b.Height, b.Width = t.Shape[0], t.Shape[1]
		case !shaped(t, b.Height, b.Width, n.Channels):
			return nil, nil, fmt.Errorf("%s has shape %v, want [%d %d %d]", name, t.Shape, b.Height, b.Width, n.Channels)
		}
		b.Inputs[n.K] = t.Data
	}
	if text := golden.Metadata["shifts"]; text != "" {
		for word := range strings.SplitSeq(text, ",") {
			k, err := strconv.Atoi(word)
			if err != nil {
				return nil, nil, fmt.Errorf("shifts are %.40q", text)
			}
			b.Shifts = append(b.Shifts, k)
		}
	}
	h, w := g.Output().Size(b.Height, b.Width)
	shape = []int{h, w, g.Output().Channels}
	out = make([]float32, h*w*g.Output().Channels)
	if err := program.Run(out, b); err != nil {
		return nil, nil, err
	}
	if s, ok := program.(kernels.Sampler); ok {
		err = checkPair(s, g, b, out)
	}
	return out, shape, err
}

// checkPair holds a pair of samples of one step, from input 0 of b and its negative, to the output for b and
// to that for the negative. Graphs that cannot be sampled pass.
func checkPair(s kernels.Sampler, g *kernels.Graph, b *kernels.Batch, out []float32) error {
	vector, err := g.SamplingVector()
	if err != nil {
		return nil
	}
	one, negative := *b, *b
	one.Inputs, negative.Inputs = slices.Clone(b.Inputs), slices.Clone(b.Inputs)
	one.Inputs[0], one.Inputs[vector] = nil, nil
	negative.Inputs[0] = make([]float32, len(b.Inputs[0]))
	for i, v := range b.Inputs[0] {
		negative.Inputs[0][i] = -v
	}
	other := make([]float32, len(out))
	if err := s.Run(other, &negative); err != nil {
		return err
	}
	mean, spread := make([]float32, len(out)), make([]float32, len(out))
	if err := s.SamplePair(mean, spread, b.Inputs[0], &one, []kernels.SampleStep{{State: 1, Vector: b.Inputs[vector], Add: 1}}, nil); err != nil {
		return err
	}
	for i, v := range out {
		out, other := float64(v), float64(other[i])
		if far := 1e-5 * (math.Abs(out) + math.Abs(other)); !(math.Abs((out+other)/2-float64(mean[i])) <= far) || !(math.Abs(math.Abs(out-other)/2-float64(spread[i])) <= far) {
			return fmt.Errorf("a pair of samples of one step has mean %g and spread %g at number %d; the two have %g and %g", mean[i], spread[i], i, out, other)
		}
	}
	return nil
}

// RelativeError is the norm of got-want by the norm of want. It is NaN if got
// has one.
func RelativeError(got, want []float32) float64 {
	diff, norm := 0.0, 0.0
	for i := range want {
		d := float64(got[i]) - float64(want[i])
		diff += d * d
		norm += float64(want[i]) * float64(want[i])
	}
	if diff == 0 {
		return 0
	}
	return math.Sqrt(diff / norm)
}
