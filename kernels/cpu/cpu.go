// Package cpu computes 3×3 convolution networks on one core at a time.
//
// A Backend is one instruction set: generated assembly for AVX-512 or AVX2, or
// plain Go, which runs everywhere. Its networks hold the packed weights and run
// a whole slice as one pass of rolling rows, so that activations stay in the
// second-level cache and no layer waits for another thread. Callers that have
// several cores run several slices.
//
// The page docs/kernels.md explains layout, packing and the generator.
package cpu

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/diffdenoise/denoised/kernels"
)

//go:generate go run -C gen . -out ../conv_amd64.s -stubs ../conv_amd64.go -pkg cpu

// ISA names an instruction set.
type ISA string

// Instruction sets. Which of them a machine has, ISAs tells.
const (
	Go     ISA = "go"     // plain Go, always there
	AVX2   ISA = "avx2"   // with FMA
	AVX512 ISA = "avx512" // foundation instructions
)

// EnvISA is the environment variable that overrides the choice of Select.
const EnvISA = "DENOISED_ISA"

// isa is how one instruction set computes.
type isa struct {
	name ISA
	// blocks are the row kernels by number of output channels, widest first.
	// Each width is a multiple of 4.
	blocks []block
	// peak runs multiply-adds that touch no memory and returns how many
	// floating-point operations that were; nil where there is no such loop.
	peak func(rounds int) float64
}

// block is a pair of kernels for width output channels: a row of a convolution,
// and the gradient of its weights.
type block struct {
	width int
	run   func(*row)
	grad  func(*gradRows)
}

var plainGo = isa{name: Go, blocks: []block{{goBlock, convRowGo, gradRowsGo}}}

// available lists what this machine can run, fastest first.
func available() []isa { return append(native(), plainGo) }

// ISAs returns the instruction sets that this machine can run, fastest first.
// The last one is always Go.
func ISAs() []ISA {
	var names []ISA
	for _, s := range available() {
		names = append(names, s.name)
	}
	return names
}

// Backend computes with one instruction set. It is a kernels.Backend.
type Backend struct{ isa isa }

var _ kernels.GraphBackend = (*Backend)(nil)

// New returns the backend of one instruction set. An unknown one, or one that
// this machine lacks, is an error that says what there is.
func New(name ISA) (*Backend, error) {
	for _, s := range available() {
		if s.name == name {
			return &Backend{s}, nil
		}
	}
	var have []string
	for _, n := range ISAs() {
		have = append(have, string(n))
	}
	if slices.Contains([]ISA{AVX2, AVX512}, name) {
		return nil, fmt.Errorf("instruction set %q is not available on this machine or in this build; there is %s", name, strings.Join(have, ", "))
	}
	return nil, fmt.Errorf("unknown instruction set %q; there is %s", name, strings.Join(have, ", "))
}

// Select returns the backend that the environment variable DENOISED_ISA names,
// or the fastest one if it is not set.
func Select() (*Backend, error) {
	name := os.Getenv(EnvISA)
	if name == "" {
		return &Backend{available()[0]}, nil
	}
	b, err := New(ISA(name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", EnvISA, err)
	}
	return b, nil
}

// ISA returns the instruction set of b.
func (b *Backend) ISA() ISA { return b.isa.name }

// Name returns "cpu/" and the instruction set.
func (b *Backend) Name() string { return "cpu/" + string(b.isa.name) }

// Peak runs independent multiply-adds on registers alone and returns how many
// floating-point operations that were: what a kernel of this instruction set
// could do at best. It returns 0 for plain Go, which has no such loop.
// A round is about a nanosecond.
func (b *Backend) Peak(rounds int) float64 {
	if b.isa.peak == nil {
		return 0
	}
	return b.isa.peak(rounds)
}

// Conv3x3 implements kernels.Backend. It packs the weights at each call;
// networks made by Load do that once.
func (b *Backend) Conv3x3(dst, src, residual []float32, height, width int, c *kernels.Conv) error {
	if err := c.Check(); err != nil {
		return err
	}
	if height < 1 || width < 1 || width > kernels.MaxPixels/height {
		return &kernels.ShapeError{Op: "convolution", What: "height times width", Got: height * width, Want: kernels.MaxPixels}
	}
	for _, s := range []struct {
		what      string
		got, want int
	}{
		{"length of the input", len(src), height * width * c.In},
		{"length of the output", len(dst), height * width * c.Out},
		{"length of the residual", len(residual), height * width * c.Out},
	} {
		if s.got != s.want && (s.what != "length of the residual" || residual != nil) {
			return &kernels.ShapeError{Op: "convolution", What: s.what, Got: s.got, Want: s.want}
		}
	}

	p := packConv(&b.isa, c, roundUp(c.In, 4))
	rowLen := (width + 2) * p.inStride
	rows := make([]float32, 4*rowLen) // three rows of input, and one of zeros
	zero := rows[3*rowLen:]
	input := func(r int) []float32 {
		if r < 0 || r >= height {
			return zero
		}
		return rows[r%3*rowLen:][:rowLen]
	}
	load := func(r int) {
		for i := range width {
			copy(input(r)[(i+1)*p.inStride:], src[(r*width+i)*c.In:][:c.In])
		}
	}
	out := alignedFloats(width * p.outStride)
	var res []float32
	if residual != nil {
		res = make([]float32, width*p.outStride)
	}
	job := new(row)
	load(0)
	for r := range height {
		if r+1 < height {
			load(r + 1)
		}
		for i := range width {
			if res != nil {
				copy(res[i*p.outStride:], residual[(r*width+i)*c.Out:][:c.Out])
			}
		}
		p.row(job, out, res, [3][]float32{input(r - 1), input(r), input(r + 1)}, width)
		for i := range width {
			copy(dst[(r*width+i)*c.Out:][:c.Out], out[i*p.outStride:])
		}
	}
	return nil
}
