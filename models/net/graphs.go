package net

import (
	"fmt"
	"strings"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// EncodeGraph returns the weights file of a graph: its parameters by name, and the
// architecture (String of a BSNConfig or TeacherConfig) as metadata "format".
func EncodeGraph(architecture string, g *kernels.Graph, params [][]float32) (*safetensors.File, error) {
	if err := g.CheckParams(params); err != nil {
		return nil, fmt.Errorf("encode weights of %s: %w", architecture, err)
	}
	f := &safetensors.File{Metadata: map[string]string{"format": architecture},
		Tensors: map[string]safetensors.Tensor{}}
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
	params, err := parameters(f, g)
	return g, params, err
}

// parameters returns those of a graph, of a file that holds nothing else.
func parameters(f *safetensors.File, g *kernels.Graph) ([][]float32, error) {
	params := make([][]float32, len(g.Params))
	for i := range g.Params {
		p := &g.Params[i]
		t, ok := f.Tensors[p.Name]
		if !ok || !shaped(t, p.Shape...) {
			return nil, fmt.Errorf("weights %q have shape %v, want %v", p.Name, t.Shape, p.Shape)
		}
		params[i] = t.Data
	}
	if len(f.Tensors) != len(params) {
		return nil, fmt.Errorf("weights hold %d tensors, of which the network %.60q uses %d", len(f.Tensors),
			f.Metadata["format"], len(params))
	}
	return params, g.CheckParams(params)
}

// graphOf returns the graph of an architecture that a weights file names.
func graphOf(architecture string) (*kernels.Graph, error) {
	kind, _, _ := strings.Cut(architecture, " ")
	switch kind {
	case "denoised-meter-v1":
		c, err := parseMeter(architecture)
		if err != nil {
			return nil, err
		}
		return c.Graph(), nil
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

// Compile makes the network of a weights file, other than a student, on a backend. It is
// an error if the backend is no kernels.GraphBackend or the file is none that DecodeGraph
// takes.
func Compile(f *safetensors.File, on kernels.Backend) (*kernels.Graph, kernels.Program, error) {
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
