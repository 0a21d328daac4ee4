package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// dotRow writes the kernel of layers with few outputs: a vector holds 16 taps of one
// output, and its 16 sums are added in the end. So no lane is idle.
func dotRow() {
	const name, pixels = "dotRow4AVX512", 4
	TEXT(name, NOSPLIT,
		"func(y, res, w, bias *float32, x *[3]*float32, n, rows, taps, xs, ys uintptr, floor, slope float32)")
	Doc(
		fmt.Sprintf("%s is convRow32AVX512 for 4 output channels, without a slope. taps is a multiple of 16 and w is",
			name),
		"[rows*taps/16][4][16].",
	)
	Pragma("noescape")
	n, xoff := Load(Param("n"), GP64()), GP64()
	y, res, ys := Load(Param("y"), GP64()), Load(Param("res"), GP64()), Load(Param("ys"), GP64())
	XORQ(xoff, xoff)
	tile := func(p int) {
		label := fmt.Sprintf("%s_p%d", name, p)
		acc := make([][4]reg.VecVirtual, p)
		for i := range acc {
			for o := range acc[i] {
				acc[i][o] = ZMM()
				VPXORD(acc[i][o], acc[i][o], acc[i][o])
			}
		}
		w, rows, left := Load(Param("w"), GP64()), Load(Param("x"), GP64()), Load(Param("rows"), GP64())
		xs := Load(Param("xs"), GP64())
		var weights [4]reg.VecVirtual
		for o := range weights {
			weights[o] = ZMM()
		}
		value := ZMM()
		first, third, k := GP64(), GP64(), GP64()
		Label(label + "_row")
		MOVQ(Mem{Base: rows}, first)
		ADDQ(xoff, first)
		if p > 2 {
			LEAQ(Mem{Base: first, Index: xs, Scale: 2}, third)
		}
		Load(Param("taps"), k)
		Label(label + "_tap")
		for o := range weights {
			VMOVUPS(Mem{Base: w, Disp: 64 * o}, weights[o])
		}
		for i := range acc {
			m := Mem{Base: []reg.Register{first, third}[i/2]}
			if i%2 == 1 {
				m.Index, m.Scale = xs, 1
			}
			VMOVUPS(m, value)
			for o := range weights {
				VFMADD231PS(weights[o], value, acc[i][o])
			}
		}
		ADDQ(U32(256), w)
		ADDQ(Imm(64), first)
		if p > 2 {
			ADDQ(Imm(64), third)
		}
		SUBQ(Imm(16), k)
		JNZ(LabelRef(label + "_tap"))
		ADDQ(Imm(8), rows)
		DECQ(left)
		JNZ(LabelRef(label + "_row"))

		at := Load(Param("bias"), GP64())
		bias, floor, low, high := XMM(), XMM(), ZMM(), ZMM()
		VMOVUPS(Mem{Base: at}, bias)
		broadcastParam("floor", floor)
		for i, a := range acc {
			// Sums of even and odd outputs side by side, then of all four, then of the quarters.
			for _, o := range []int{0, 2} {
				VUNPCKLPS(a[o+1], a[o], low)
				VUNPCKHPS(a[o+1], a[o], high)
				VADDPS(low, high, a[o])
			}
			VUNPCKLPD(a[2], a[0], low)
			VUNPCKHPD(a[2], a[0], high)
			VADDPS(low, high, low)
			VEXTRACTF64X4(Imm(1), low, high.AsY())
			VADDPS(low.AsY(), high.AsY(), low.AsY())
			VEXTRACTF32X4(Imm(1), low.AsY(), high.AsX())
			VADDPS(low.AsX(), high.AsX(), low.AsX())
			VADDPS(low.AsX(), bias, low.AsX())
			VMAXPS(low.AsX(), floor, low.AsX())
			skip := fmt.Sprintf("%s_store%d", label, i)
			TESTQ(res, res)
			JZ(LabelRef(skip))
			VADDPS(Mem{Base: res}, low.AsX(), low.AsX())
			ADDQ(ys, res)
			Label(skip)
			VMOVUPS(low.AsX(), Mem{Base: y})
			ADDQ(ys, y)
		}
		LEAQ(Mem{Base: xoff, Index: xs, Scale: uint8(p)}, xoff)
	}
	Label(name + "_wide")
	CMPQ(n, Imm(pixels))
	JB(LabelRef(name + "_rest"))
	tile(pixels)
	SUBQ(Imm(pixels), n)
	JMP(LabelRef(name + "_wide"))
	Label(name + "_rest")
	TESTQ(n, n)
	JZ(LabelRef(name + "_done"))
	tile(1)
	DECQ(n)
	JMP(LabelRef(name + "_rest"))
	Label(name + "_done")
	VZEROUPPER()
	RET()
}
