// Package cpu computes 3×3 convolution networks on one core at a time.
//
// A Backend is one instruction set: generated assembly for AVX-512 or AVX2, or
// plain Go, which runs everywhere. Two more multiply bf16 numbers of 8 bits of
// mantissa, which is faster: see ISA. Its networks hold the packed weights and run
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

	// These round weights and activations to bf16 where they are multiplied, in
	// networks that Load has made, in Conv3x3 and in training. Sums, biases and
	// residuals stay float32, as do the weights that training changes and their
	// gradients. Graphs that Compile has made run in float32 throughout: what Load
	// takes predicts noise, which may be off by 0.4 %, but others may predict an image.
	AVX512BF16 ISA = "avx512bf16"
	AMX        ISA = "amx" // matrix registers; Linux only

	// These are AVX512 and AVX2 but for the inner layers of networks that Load has
	// made, which multiply weights of 8 bits with activations of 8 bits.
	AVX512VNNI ISA = "avx512vnni" // AVX512_VNNI and AVX512VL
	AVXVNNI    ISA = "avxvnni"    // AVX-VNNI

	// And these compute such layers by Winograd's algorithm, in float32. What it
	// subtracts is larger than the results, so more is lost by rounding.
	AVX512Winograd ISA = "avx512winograd"
	AVX2Winograd   ISA = "avx2winograd"
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
	// bf16 is nil where the kernels read float32.
	bf16 *bf16
	// ints, if not nil, are for the inner layers of networks that Load makes.
	ints *integers
	// wino, if not nil, is for these layers, too.
	wino *winograd
}

// block is a pair of kernels for width output channels: a row of a convolution,
// and the gradient of its weights.
type block struct {
	width int
	run   func(*row)
	grad  func(*gradRows)
	// lanes, if not 0, is how many taps of one output lie together: such a kernel
	// wants taps in multiples of that, and knows no slope.
	lanes int
}

var plainGo = isa{name: Go, blocks: []block{{width: goBlock, run: convRowGo, grad: gradRowsGo}}}

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
	if slices.Contains([]ISA{AVX2, AVX512, AVX512BF16, AMX, AVX512VNNI, AVXVNNI, AVX512Winograd, AVX2Winograd}, name) {
		return nil, fmt.Errorf("instruction set %q is not available on this machine or in this build; there is %s", name, strings.Join(have, ", "))
	}
	return nil, fmt.Errorf("unknown instruction set %q; there is %s", name, strings.Join(have, ", "))
}

// Select returns the backend that the environment variable DENOISED_ISA names, or
// the fastest one with float32 throughout if it is not set.
func Select() (*Backend, error) {
	return choose(func(s *isa) bool { return s.bf16 == nil && s.ints == nil && s.wino == nil })
}

// SelectInference is Select for networks that are only run: it takes a set with
// integers or bf16 where that is faster.
func SelectInference() (*Backend, error) {
	return choose(func(s *isa) bool { return s.name != AVX512BF16 || fastBF16() })
}

func choose(ok func(*isa) bool) (*Backend, error) {
	name := os.Getenv(EnvISA)
	if name == "" {
		return &Backend{fastest(ok)}, nil
	}
	b, err := New(ISA(name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", EnvISA, err)
	}
	return b, nil
}

// fastest returns the first instruction set that is ok.
func fastest(ok func(*isa) bool) isa {
	list := available()
	return list[slices.IndexFunc(list, func(s isa) bool { return ok(&s) })]
}

// single returns the instruction set for graphs that are only run.
func (b *Backend) single() *isa {
	if b.isa.bf16 == nil {
		return &b.isa
	}
	s := fastest(func(s *isa) bool { return s.bf16 == nil })
	return &s
}

// ISA returns the instruction set of b.
func (b *Backend) ISA() ISA { return b.isa.name }

// Tolerance is how far an output of a network may be off that of exact arithmetic,
// as a relative error: the norm of the difference by the norm of the output, which
// is the noise predicted and not what is left of the image.
func (b *Backend) Tolerance() float64 {
	switch {
	case b.isa.ints != nil:
		return 5e-2
	case b.isa.bf16 != nil:
		return 2e-2
	}
	return 1e-5
}

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
	var halfs []uint32                // the same
	if b.isa.bf16 != nil {
		halfs = aligned[uint32](len(rows) / 2)
	}
	place := func(r int) int {
		if r < 0 || r >= height {
			return 3 * rowLen
		}
		return r % 3 * rowLen
	}
	load := func(r int) {
		in := rows[place(r):][:rowLen]
		for i := range width {
			copy(in[(i+1)*p.inStride:], src[(r*width+i)*c.In:][:c.In])
		}
		if halfs != nil {
			b.isa.bf16.row(halfs[place(r)/2:][:rowLen/2], in)
		}
	}
	under := func(r int) (x window) {
		for k := range x.x {
			if at := place(r + k - 1); halfs != nil {
				x.halfs[k] = halfs[at/2:][:rowLen/2]
			} else {
				x.x[k] = rows[at:][:rowLen]
			}
		}
		return x
	}
	out := aligned[float32](width * p.outStride)
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
		p.row(job, out, res, under(r), width)
		for i := range width {
			copy(dst[(r*width+i)*c.Out:][:c.Out], out[i*p.outStride:])
		}
	}
	return nil
}
