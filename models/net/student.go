package net

import (
	"fmt"
	"strconv"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// Student is the small network of the daily work: it predicts the noise of one
// slice at half resolution and subtracts it. With H, W the slice, C channels:
//
//	u = pixel-unshuffle(y)             [H, W] → [4, H/2, W/2]
//	m = 10 · mean2×2(sigma)            [H, W] → [1, H/2, W/2]
//	h = Head(u, m, told)               12 → C; told is the same everywhere: Told
//	h = h + B(relu(A(h)))              C → C → C, for each block
//	r = pixel-shuffle(Tail(h))         C → 4, [H, W]
//	output = y - r
//
// All convolutions are 3×3 with bias and zero padding 1; an odd H or W is
// extended by repeating the last row or column and cropped again.
// A Student never changes and is safe for concurrent use.
type Student struct {
	graph     *kernels.Graph
	params    [][]float32
	blocks    int
	constants int // of the head: how much of Told it is told
	network   kernels.Network
}

// StudentFormat is the metadata "format" of the weights files of a Student.
const StudentFormat = "denoised-student-v3"

// studentFormats are those that are read, and how much of Told the networks are told.
var studentFormats = map[string]int{"denoised-student-v1": 0, "denoised-student-v2": 2, StudentFormat: len(Told{})}

// maxBlocks bounds the depth of a network that a weights file asks for.
const maxBlocks = 128

// NewStudent makes the network of a weights file on a backend. The file holds
// head, blocks.{0…}.a, blocks.{0…}.b and tail, each with .weight
// [out, in, 3, 3] and .bias [out], and nothing else; the number of channels
// and of blocks is whatever it holds.
func NewStudent(f *safetensors.File, backend kernels.Backend) (*Student, error) {
	s, err := studentOf(f)
	if err != nil {
		return nil, err
	}
	s.network, err = backend.Load(s.graph, s.params)
	return s, err
}

// studentOf is NewStudent without a backend.
func studentOf(f *safetensors.File) (*Student, error) {
	told, ok := studentFormats[f.Metadata["format"]]
	if !ok {
		return nil, fmt.Errorf("weights are of format %.40q, want %q or an earlier one", f.Metadata["format"],
			StudentFormat)
	}
	bias := f.Tensors["head.bias"]
	if len(bias.Shape) != 1 || bias.Shape[0] < 1 || bias.Shape[0] > kernels.MaxChannels {
		return nil, fmt.Errorf("weights \"head.bias\" have shape %v, want one dimension of 1 to %d", bias.Shape,
			kernels.MaxChannels)
	}
	s := &Student{constants: told}
	for s.blocks < maxBlocks {
		if _, ok := f.Tensors["blocks."+strconv.Itoa(s.blocks)+".a.weight"]; !ok {
			break
		}
		s.blocks++
	}
	s.graph = StudentConfig{Channels: bias.Shape[0], Blocks: s.blocks}.graph(told)
	var err error
	s.params, err = parameters(f, s.graph)
	return s, err
}

// Graph returns the network as backends take it, by kernels.Backend.Load. It may not be changed.
func (s *Student) Graph() (*kernels.Graph, [][]float32) { return s.graph, s.params }

// Forward denoises one slice on one core. dst, y and sigma are [height, width],
// row major; dst may be y. The scale of y is that of training: 1 is the 99.9th
// percentile of the slice. sigma is the standard deviation of the noise at each
// pixel in the same scale; told is the correlation of the noise (networks of earlier formats
// ignore what they do not know). The error is a *kernels.ShapeError.
func (s *Student) Forward(dst, y, sigma []float32, told Told, width, height int) error {
	return s.network.Forward(dst, y, sigma, width, height, told[:s.constants]...)
}

// Activations is Forward that also returns what is in between, by the names
// that golden vectors use: "head", "block0" and so on, each
// [C, ceil(height/2), ceil(width/2)], and "output" [height, width].
func (s *Student) Activations(y, sigma []float32, width, height int) (map[string][]float32, error) {
	dst := make([]float32, len(y))
	layers, err := s.network.Trace(dst, y, sigma, width, height)
	if err != nil {
		return nil, err
	}
	named := map[string][]float32{"head": layers[0], "output": dst}
	for i := range s.blocks {
		named["block"+strconv.Itoa(i)] = layers[2+2*i]
	}
	return named, nil
}

// Parameters returns the number of weights and biases.
func (s *Student) Parameters() int {
	n := 0
	for _, p := range s.params {
		n += len(p)
	}
	return n
}

func shaped(t safetensors.Tensor, want ...int) bool {
	if len(t.Shape) != len(want) {
		return false
	}
	for i := range want {
		if t.Shape[i] != want[i] {
			return false
		}
	}
	return true
}

// StudentConfig is the size of a Student.
type StudentConfig struct{ Channels, Blocks int }

// Graph returns the network of a Student at half resolution: input 0 is what the head
// sees [H/2, W/2, StudentIn], the output is the noise [H/2, W/2, 4], both
// pixel-unshuffled. The names of its parameters are those of a weights file.
func (c StudentConfig) Graph() *kernels.Graph { return c.graph(len(Told{})) }

// graph is Graph for a head that is told so many constants.
func (c StudentConfig) graph(told int) *kernels.Graph {
	g := new(kernels.Graph)
	h := g.Conv(kernels.Conv3("head", c.Channels, kernels.Linear), g.Input(kernels.NetIn+told))
	for i := range c.Blocks {
		name := "blocks." + strconv.Itoa(i)
		a := g.Conv(kernels.Conv3(name+".a", c.Channels, kernels.ReLU), h)
		b := kernels.Conv3(name+".b", c.Channels, kernels.Linear)
		b.Residual, b.Start = h, 0.2
		h = g.Conv(b, a)
	}
	tail := kernels.Conv3("tail", kernels.NetOut, kernels.Linear)
	tail.Start = 0.1
	g.Conv(tail, h)
	return g
}

// String describes the architecture.
func (c StudentConfig) String() string {
	return fmt.Sprintf("%s: residual 3x3 convolutions at half resolution, head %d to %d, %d blocks of two %d to %d with skip, tail %d to %d; conditioned on a map of the noise and its correlation",
		StudentFormat, StudentIn, c.Channels, c.Blocks, c.Channels, c.Channels, c.Channels, kernels.NetOut)
}

// StudentIn is the number of channels that the head of a student sees: four pixels,
// the noise, and what it is told of its correlation.
const StudentIn = kernels.NetIn + len(Told{})

// StudentGraph returns the network of a weights file of the present format for training, and its
// parameters.
func StudentGraph(f *safetensors.File) (*kernels.Graph, [][]float32, error) {
	if got := f.Metadata["format"]; got != StudentFormat {
		return nil, nil, fmt.Errorf("weights are of format %.40q, want %q", got, StudentFormat)
	}
	s, err := studentOf(f)
	if err != nil {
		return nil, nil, err
	}
	return s.graph, s.params, nil
}
