// Command gen writes the assembly row kernels of package cpu.
//
// It is a module of its own so that the product does not depend on the
// assembler library. Run it by "go generate ./kernels/cpu"; its output is
// committed, and `make kernels` fails when the two differ.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/pass"
	"github.com/mmcloughlin/avo/reg"
)

// isa is what differs between the instruction sets: the width of a vector and
// how many pixels fit into its registers beside the weights.
type isa struct {
	name   string
	bytes  int // of one vector
	pixels int // of the widest tile with two vectors per pixel
	taps   int // of the widest tile of a gradient, a multiple of 4
	vec    func() reg.VecVirtual
	pairs  bool // input and weights are pairs of bf16 numbers
	bytes8 bool // they are four bytes, and sums are integers: for the peak alone
}

var isas = []isa{
	{"AVX2", 32, 6, 4, func() reg.VecVirtual { return YMM() }, false, false},
	{"AVX512", 64, 8, 8, func() reg.VecVirtual { return ZMM() }, false, false},
	{"BF16", 64, 8, 0, func() reg.VecVirtual { return ZMM() }, true, false},
}

func main() {
	ConstraintExpr("amd64")
	ConstraintExpr("!purego")
	for _, s := range isas {
		for _, nb := range []int{1, 2} {
			convRow(s, nb)
			if !s.pairs {
				gradRows(s, nb)
				winogradProducts(s, nb)
				winogradOutput(s, nb)
			}
		}
		if !s.pairs {
			winogradInput(s)
		}
		peak(s)
	}
	peak(isa{"VNNI", 64, 0, 0, func() reg.VecVirtual { return ZMM() }, false, true})
	intRow("intRow32VNNI", 2, 64)
	intRow("intRow16VNNI", 1, 64)
	quantizeRow("quantizeRowAVX512", 64, func() reg.VecVirtual { return ZMM() })
	quantizeRow("quantizeRowAVX2", 32, func() reg.VecVirtual { return YMM() })
	intSums()
	sumsCode()
	intFinish()
	dotRow()
	roundRow()
	roundWeights()
	for _, nb := range []int{1, 2} {
		for _, np := range []int{1, 2} {
			tileRows(nb, np)
		}
		finishRows(nb)
	}
	tileCode()
	processorMaker()
	pass.Compile = pass.Concat(pass.Compile, pass.FunctionPass(encode))
	Generate()
}

// convRow writes one kernel: a row of n output pixels, nb vectors of output
// channels each. Wide tiles run while they fit; the remaining pixels have a
// tile of exactly their number, so nothing outside the row is touched.
func convRow(s isa, nb int) {
	name := fmt.Sprintf("convRow%d%s", nb*s.bytes/4, s.name)
	if s.pairs {
		TEXT(name, NOSPLIT, "func(y, res *float32, w *uint32, bias *float32, x *[3]*uint32, n, rows, taps, xs, ys uintptr, floor, slope float32)")
		Doc(
			fmt.Sprintf("%s computes n pixels of %d output channels, %d pixels at a time.", name, nb*s.bytes/4, s.pixels),
			"x holds the rows of input (1 to 3) at the first tap, taps the contiguous pairs of bf16 numbers",
			"per row and pixel (a multiple of 2), xs and ys the strides of a pixel in bytes. w is",
			"[rows*taps][channels] pairs, whose first number is in the low half.",
		)
	} else {
		TEXT(name, NOSPLIT, "func(y, res, w, bias *float32, x *[3]*float32, n, rows, taps, xs, ys uintptr, floor, slope float32)")
		Doc(
			fmt.Sprintf("%s computes n pixels of %d output channels, %d pixels at a time.", name, nb*s.bytes/4, s.pixels),
			"x holds the rows of input (1 to 3) at the first tap, taps the contiguous floats per row and",
			"pixel (a multiple of 4), xs and ys the strides of a pixel in bytes. w is [rows*taps][channels].",
		)
	}
	Doc(
		"y = max(floor, slope*z, z) + res with z = bias + sum, without slope*z for a slope of 0; res",
		"may be nil and has the stride of y.",
	)
	Pragma("noescape")

	t := tile{isa: s, nb: nb, name: name}
	t.xoff, t.yoff, t.n = GP64(), GP64(), GP64()
	t.s1, t.s3, t.s5, t.s7 = GP64(), GP64(), GP64(), GP64()
	Load(Param("xs"), t.s1)
	LEAQ(Mem{Base: t.s1, Index: t.s1, Scale: 2}, t.s3)
	if s.pixels > 5 {
		LEAQ(Mem{Base: t.s1, Index: t.s1, Scale: 4}, t.s5)
	}
	if s.pixels > 7 {
		LEAQ(Mem{Base: t.s3, Index: t.s1, Scale: 4}, t.s7)
	}
	Load(Param("n"), t.n)
	XORQ(t.xoff, t.xoff)
	XORQ(t.yoff, t.yoff)

	Label(name + "_wide")
	CMPQ(t.n, Imm(uint64(s.pixels)))
	JB(LabelRef(name + "_rest"))
	unroll := 4
	if s.pairs {
		unroll = 2
	}
	t.emit(s.pixels, unroll)
	step := GP64()
	Load(Param("xs"), step)
	IMUL3Q(Imm(uint64(s.pixels)), step, step)
	ADDQ(step, t.xoff)
	Load(Param("ys"), step)
	IMUL3Q(Imm(uint64(s.pixels)), step, step)
	ADDQ(step, t.yoff)
	SUBQ(Imm(uint64(s.pixels)), t.n)
	JMP(LabelRef(name + "_wide"))

	Label(name + "_rest")
	for p := s.pixels - 1; p > 0; p-- {
		CMPQ(t.n, Imm(uint64(p)))
		JE(LabelRef(fmt.Sprintf("%s_tail%d", name, p)))
	}
	JMP(LabelRef(name + "_done"))
	for p := s.pixels - 1; p > 0; p-- {
		Label(fmt.Sprintf("%s_tail%d", name, p))
		t.emit(p, 2)
		JMP(LabelRef(name + "_done"))
	}
	Label(name + "_done")
	VZEROUPPER()
	RET()
}

// tile is the state that the tiles of one kernel share.
type tile struct {
	isa
	nb             int
	name           string
	xoff, yoff, n  reg.GPVirtual // byte offsets of the tile in x and y; pixels left
	s1, s3, s5, s7 reg.GPVirtual // multiples of the pixel stride of x
}

// pixel addresses float u of pixel p behind base: every multiple of the stride
// up to seven is one index register and a scale.
func (t *tile) pixel(base reg.Register, p, u int) Mem {
	m := Mem{Base: base, Disp: 4 * u, Scale: 1}
	switch p {
	case 0:
		m.Scale = 0
	case 1, 2, 4:
		m.Index, m.Scale = t.s1, uint8(p)
	case 3, 6:
		m.Index, m.Scale = t.s3, uint8(p/3)
	case 5:
		m.Index = t.s5
	case 7:
		m.Index = t.s7
	}
	return m
}

// emit writes the body of a tile of p pixels with the loop over the taps
// unrolled: per tap it loads nb vectors of weights and broadcasts p floats.
func (t *tile) emit(p, unroll int) {
	label := fmt.Sprintf("%s_p%d", t.name, p)
	bias := GP64()
	Load(Param("bias"), bias)
	acc := make([][]reg.VecVirtual, p)
	for i := range acc {
		acc[i] = make([]reg.VecVirtual, t.nb)
		for j := range acc[i] {
			acc[i][j] = t.vec()
			if i == 0 {
				VMOVUPS(Mem{Base: bias, Disp: t.bytes * j}, acc[i][j])
			} else {
				VMOVAPS(acc[0][j], acc[i][j])
			}
		}
	}

	w, rows, left := GP64(), GP64(), GP64()
	Load(Param("w"), w)
	Load(Param("x"), rows)
	Load(Param("rows"), left)
	weights := make([]reg.VecVirtual, t.nb)
	for j := range weights {
		weights[j] = t.vec()
	}
	x, k := GP64(), GP64()
	Label(label + "_row")
	MOVQ(Mem{Base: rows}, x)
	ADDQ(t.xoff, x)
	Load(Param("taps"), k)
	Label(label + "_tap")
	value := t.vec()
	for u := range unroll {
		for j := range weights {
			VMOVUPS(Mem{Base: w, Disp: t.bytes * (u*t.nb + j)}, weights[j])
		}
		for i := range acc {
			VBROADCASTSS(t.pixel(x, i, u), value)
			for j := range weights {
				if t.pairs {
					dot(weights[j], value, acc[i][j])
				} else {
					VFMADD231PS(weights[j], value, acc[i][j])
				}
			}
		}
	}
	ADDQ(U32(uint32(t.bytes*t.nb*unroll)), w)
	ADDQ(Imm(uint64(4*unroll)), x)
	SUBQ(Imm(uint64(unroll)), k)
	JNZ(LabelRef(label + "_tap"))
	ADDQ(Imm(8), rows)
	DECQ(left)
	JNZ(LabelRef(label + "_row"))

	// The accumulator is the second source of the maximum, so a NaN survives.
	floor, at, res, ys := t.vec(), GP64(), GP64(), GP64()
	address, err := Param("floor").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(address.Addr, floor)
	for i := range acc {
		for j := range acc[i] {
			VMAXPS(acc[i][j], floor, acc[i][j])
		}
	}
	if address, err = Param("slope").Resolve(); err != nil {
		panic(err)
	}
	bits := GP32()
	MOVL(address.Addr, bits)
	TESTL(bits, bits)
	JZ(LabelRef(label + "_linear"))
	slope, below := t.vec(), t.vec()
	VBROADCASTSS(address.Addr, slope)
	for i := range acc {
		for j := range acc[i] {
			VMULPS(slope, acc[i][j], below)
			VMAXPS(acc[i][j], below, acc[i][j])
		}
	}
	Label(label + "_linear")
	Load(Param("ys"), ys)
	Load(Param("res"), res)
	TESTQ(res, res)
	JZ(LabelRef(label + "_store"))
	ADDQ(t.yoff, res)
	for i := range acc {
		for j := range acc[i] {
			VADDPS(Mem{Base: res, Disp: t.bytes * j}, acc[i][j], acc[i][j])
		}
		if i < p-1 {
			ADDQ(ys, res)
		}
	}
	Label(label + "_store")
	Load(Param("y"), at)
	ADDQ(t.yoff, at)
	for i := range acc {
		for j := range acc[i] {
			VMOVUPS(acc[i][j], Mem{Base: at, Disp: t.bytes * j})
		}
		if i < p-1 {
			ADDQ(ys, at)
		}
	}
}

// gradRows writes one kernel of the gradient of weights: for h rows of n pixels,
// the products of every tap of x with nb vectors of channels of dy, added to dw. A
// tile of taps keeps its sums in registers over all pixels.
func gradRows(s isa, nb int) {
	name := fmt.Sprintf("gradRows%d%s", nb*s.bytes/4, s.name)
	TEXT(name, NOSPLIT, "func(dw, x, dy *float32, n, h, taps, xs, xrow, ys, yrow, dws uintptr)")
	Doc(
		fmt.Sprintf("%s adds x[r*xrow+p*xs+t] * dy[r*yrow+p*ys+o] over h rows r and n pixels p to", name),
		fmt.Sprintf("dw[t*dws+o] for every tap t and %d channels o. taps is a multiple of 4; xs, xrow, ys, yrow", nb*s.bytes/4),
		"and dws are in bytes.",
	)
	Pragma("noescape")
	dw, x, taps := Load(Param("dw"), GP64()), Load(Param("x"), GP64()), Load(Param("taps"), GP64())
	xs, ys := Load(Param("xs"), GP64()), Load(Param("ys"), GP64())
	tile := func(n int) {
		label := fmt.Sprintf("%s_t%d", name, n)
		acc := make([][]reg.VecVirtual, n)
		for i := range acc {
			for range nb {
				v := s.vec()
				acc[i] = append(acc[i], v)
				VXORPS(v.AsX(), v.AsX(), v.AsX())
			}
		}
		xr, yr, h := GP64(), Load(Param("dy"), GP64()), Load(Param("h"), GP64())
		MOVQ(x, xr)
		Label(label + "_row")
		xp, yp, left := GP64(), GP64(), Load(Param("n"), GP64())
		MOVQ(xr, xp)
		MOVQ(yr, yp)
		values := make([]reg.VecVirtual, nb)
		for j := range values {
			values[j] = s.vec()
		}
		tap := s.vec()
		Label(label + "_pixel")
		for j := range values {
			VMOVUPS(Mem{Base: yp, Disp: s.bytes * j}, values[j])
		}
		for i := range acc {
			VBROADCASTSS(Mem{Base: xp, Disp: 4 * i}, tap)
			for j := range values {
				VFMADD231PS(values[j], tap, acc[i][j])
			}
		}
		ADDQ(xs, xp)
		ADDQ(ys, yp)
		DECQ(left)
		JNZ(LabelRef(label + "_pixel"))
		step := Load(Param("xrow"), GP64())
		ADDQ(step, xr)
		Load(Param("yrow"), step)
		ADDQ(step, yr)
		DECQ(h)
		JNZ(LabelRef(label + "_row"))
		Load(Param("dws"), step)
		for i := range acc {
			for j := range acc[i] {
				at := Mem{Base: dw, Disp: s.bytes * j}
				VADDPS(at, acc[i][j], acc[i][j])
				VMOVUPS(acc[i][j], at)
			}
			ADDQ(step, dw)
		}
		ADDQ(Imm(uint64(4*n)), x)
		SUBQ(Imm(uint64(n)), taps)
	}
	Label(name + "_wide")
	CMPQ(taps, Imm(uint64(s.taps)))
	JB(LabelRef(name + "_rest"))
	tile(s.taps)
	JMP(LabelRef(name + "_wide"))
	Label(name + "_rest")
	if s.taps > 4 {
		TESTQ(taps, taps)
		JZ(LabelRef(name + "_done"))
		tile(4)
		Label(name + "_done")
	}
	VZEROUPPER()
	RET()
}

// peakChains is the number of independent sums in the peak kernels: enough to
// hide the latency of every known multiply-add unit, few enough for 16 registers.
const peakChains = 12

// peak writes a loop of multiply-adds that touches no memory: the roof that
// benchmarks compare with.
func peak(s isa) {
	name := "peak" + s.name
	TEXT(name, NOSPLIT, "func(n uintptr)")
	what := "floats"
	switch {
	case s.pairs:
		what = "pairs of bf16 numbers"
	case s.bytes8:
		what = "fours of bytes"
	}
	Doc(fmt.Sprintf("%s runs n times %d independent multiply-adds of %d %s.", name, peakChains, s.bytes/4, what))
	n := Load(Param("n"), GP64())
	acc := make([]reg.VecVirtual, peakChains)
	for i := range acc {
		acc[i] = s.vec()
		x := acc[i].AsX()
		VXORPS(x, x, x)
	}
	a := s.vec()
	VXORPS(a.AsX(), a.AsX(), a.AsX())
	Label(name + "_loop")
	for i := range acc {
		switch {
		case s.pairs:
			dot(a, a, acc[i])
		case s.bytes8:
			VPDPBUSD(a, a, acc[i])
		default:
			VFMADD231PS(a, a, acc[i])
		}
	}
	DECQ(n)
	JNZ(LabelRef(name + "_loop"))
	VZEROUPPER()
	RET()
}
