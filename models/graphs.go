package models

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

// EncodeGraph returns the weights file of a graph: its parameters by name, and the
// architecture (String of a BSNConfig or TeacherConfig) as metadata "format".
func EncodeGraph(architecture string, g *kernels.Graph, params [][]float32) (*safetensors.File, error) {
	if err := g.CheckParams(params); err != nil {
		return nil, fmt.Errorf("encode weights of %s: %w", architecture, err)
	}
	f := &safetensors.File{Metadata: map[string]string{"format": architecture}, Tensors: map[string]safetensors.Tensor{}}
	for i, p := range params {
		f.Tensors[g.Params[i].Name] = safetensors.Tensor{Shape: g.Params[i].Shape, Data: p}
	}
	return f, nil
}

// DecodeGraph is the inverse of EncodeGraph. The file must hold the parameters of
// its architecture, finite and in their shapes, and nothing else.
func DecodeGraph(f *safetensors.File) (*kernels.Graph, [][]float32, error) {
	g, err := graphOf(f.Metadata["format"])
	if err != nil {
		return nil, nil, err
	}
	params := make([][]float32, len(g.Params))
	for i := range g.Params {
		p := &g.Params[i]
		t, ok := f.Tensors[p.Name]
		if !ok || !shaped(t, p.Shape...) {
			return nil, nil, fmt.Errorf("weights %q have shape %v, want %v", p.Name, t.Shape, p.Shape)
		}
		params[i] = t.Data
	}
	if len(f.Tensors) != len(params) {
		return nil, nil, fmt.Errorf("weights hold %d tensors, of which the network %.60q uses %d", len(f.Tensors), f.Metadata["format"], len(params))
	}
	if err := g.CheckParams(params); err != nil {
		return nil, nil, err
	}
	return g, params, nil
}

// graphOf returns the graph of an architecture that a weights file names.
func graphOf(architecture string) (*kernels.Graph, error) {
	kind, _, _ := strings.Cut(architecture, " ")
	switch kind {
	case "denoised-bsn-v1":
		c, err := parseBSN(architecture)
		if err != nil {
			return nil, err
		}
		return c.Graph(), nil
	case "denoised-diffusion-v2":
		c, err := parseTeacher(architecture)
		if err != nil {
			return nil, err
		}
		return c.Graph(), nil
	}
	return nil, fmt.Errorf("weights are of format %.60q, which this version does not know", architecture)
}

// Graph returns a network of the model, other than the student, on the model's
// backend: the same one at every call. The error wraps ErrNoNetwork if the model
// does not have it.
func (m *Model) Graph(network string) (*kernels.Graph, kernels.Program, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c, ok := m.compiled[network]; ok {
		return c.graph, c.program, nil
	}
	f, err := m.Network(network)
	if err != nil {
		return nil, nil, err
	}
	g, p, err := compile(f, m.backend)
	if err != nil {
		return nil, nil, fmt.Errorf("model %s: network %q: %w", m.Name(), network, err)
	}
	if m.compiled == nil {
		m.compiled = map[string]compiled{}
	}
	m.compiled[network] = compiled{g, p}
	return g, p, nil
}

// compiled is a network that Graph has made.
type compiled struct {
	graph   *kernels.Graph
	program kernels.Program
}

func compile(f *safetensors.File, on kernels.Backend) (*kernels.Graph, kernels.Program, error) {
	b, ok := on.(kernels.GraphBackend)
	if !ok {
		return nil, nil, fmt.Errorf("the backend %s runs no graphs", on.Name())
	}
	g, params, err := DecodeGraph(f)
	if err != nil {
		return nil, nil, err
	}
	p, err := b.Compile(g, params)
	return g, p, err
}

// A golden file holds what a network is given and what it must give for it:
//
//	student: "input", "sigma" and "output", [H, W]
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

// checkGolden runs a network on golden vectors and returns the relative error of
// its output: that of a student is the noise, and not what it leaves of the image.
func checkGolden(weights, golden *safetensors.File, on kernels.Backend) (float64, error) {
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
	return relativeError(got, out), nil
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
		out = make([]float32, len(y.Data))
		return out, y.Shape, s.Forward(out, y.Data, sigma.Data, [2]float32{}, y.Shape[1], y.Shape[0])
	}
	g, program, err := compile(weights, on)
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
