package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// roundRow writes the conversion of a row of activations.
func roundRow() {
	const name = "roundRowBF16"
	TEXT(name, NOSPLIT, "func(dst *uint32, src *float32, n uintptr)")
	Doc(name + " makes n*16 pairs of bf16 numbers of n*32 floats. n is at least 1.")
	Pragma("noescape")
	dst, src, n := Load(Param("dst"), GP64()), Load(Param("src"), GP64()), Load(Param("n"), GP64())
	low, high := ZMM(), ZMM()
	Label(name + "_loop")
	VMOVUPS(Mem{Base: src}, low)
	VMOVUPS(Mem{Base: src, Disp: 64}, high)
	round2(low, high, low)
	VMOVUPS(low, Mem{Base: dst})
	ADDQ(U32(128), src)
	ADDQ(Imm(64), dst)
	DECQ(n)
	JNZ(LabelRef(name + "_loop"))
	VZEROUPPER()
	RET()
}

// roundWeights writes the conversion of packed weights, which also brings those of
// two neighbouring taps together.
func roundWeights() {
	const name = "roundWeightsBF16"
	TEXT(name, NOSPLIT, "func(dst *uint32, src *float32, n, vectors uintptr)")
	Doc(
		name+" makes n rows of pairs of bf16 numbers of 2*n rows of floats, two of which follow each",
		"other: the first is the low half. A row is some vectors of 16. n and vectors are at least 1.",
	)
	Pragma("noescape")
	dst, even, n := Load(Param("dst"), GP64()), Load(Param("src"), GP64()), Load(Param("n"), GP64())
	length, odd, left := Load(Param("vectors"), GP64()), GP64(), GP64()
	SHLQ(Imm(6), length)
	low, high := ZMM(), ZMM()
	Label(name + "_row")
	LEAQ(Mem{Base: even, Index: length, Scale: 1}, odd)
	MOVQ(length, left)
	Label(name + "_vector")
	for _, v := range []struct {
		at  reg.Register
		sum reg.VecVirtual
	}{{even, low}, {odd, high}} {
		VMOVUPS(Mem{Base: v.at}, v.sum)
		round1(v.sum, v.sum)
		VPMOVZXWD(v.sum.AsY(), v.sum)
	}
	VPSLLD(Imm(16), high, high)
	VPORD(low, high, low)
	VMOVUPS(low, Mem{Base: dst})
	ADDQ(Imm(64), even)
	ADDQ(Imm(64), odd)
	ADDQ(Imm(64), dst)
	SUBQ(Imm(64), left)
	JNZ(LabelRef(name + "_vector"))
	MOVQ(odd, even)
	DECQ(n)
	JNZ(LabelRef(name + "_row"))
	VZEROUPPER()
	RET()
}

// finishRows writes what follows the sums of AMX: the end of tile.emit for sums that
// lie in memory.
func finishRows(nb int) {
	name := fmt.Sprintf("finishRow%d", 16*nb)
	TEXT(name, NOSPLIT, "func(y, res, sums, bias *float32, n, ys uintptr, floor, slope float32)")
	Doc(
		fmt.Sprintf("%s makes n pixels of %d output channels of their sums, which follow each other.", name, 16*nb),
		"y = max(floor, slope*z, z) + res with z = bias + sum, without slope*z for a slope of 0; res",
		"may be nil. ys is the stride of a pixel of y and res, in bytes.",
	)
	Pragma("noescape")
	y, res, sums := Load(Param("y"), GP64()), Load(Param("res"), GP64()), Load(Param("sums"), GP64())
	n, ys, at := Load(Param("n"), GP64()), Load(Param("ys"), GP64()), Load(Param("bias"), GP64())
	broadcast := func(name string) (reg.VecVirtual, Mem) {
		address, err := Param(name).Resolve()
		if err != nil {
			panic(err)
		}
		v := ZMM()
		VBROADCASTSS(address.Addr, v)
		return v, address.Addr
	}
	floor, _ := broadcast("floor")
	slope, address := broadcast("slope")
	bits := GP32()
	MOVL(address, bits)
	bias, z, below := make([]reg.VecVirtual, nb), make([]reg.VecVirtual, nb), ZMM()
	for j := range bias {
		bias[j], z[j] = ZMM(), ZMM()
		VMOVUPS(Mem{Base: at, Disp: 64 * j}, bias[j])
	}
	// The sum is the second source of the maximum, so a NaN survives.
	Label(name + "_pixel")
	for j := range z {
		VADDPS(Mem{Base: sums, Disp: 64 * j}, bias[j], z[j])
		VMAXPS(z[j], floor, z[j])
	}
	TESTL(bits, bits)
	JZ(LabelRef(name + "_linear"))
	for j := range z {
		VMULPS(slope, z[j], below)
		VMAXPS(z[j], below, z[j])
	}
	Label(name + "_linear")
	TESTQ(res, res)
	JZ(LabelRef(name + "_store"))
	for j := range z {
		VADDPS(Mem{Base: res, Disp: 64 * j}, z[j], z[j])
	}
	ADDQ(ys, res)
	Label(name + "_store")
	for j := range z {
		VMOVUPS(z[j], Mem{Base: y, Disp: 64 * j})
	}
	ADDQ(ys, y)
	ADDQ(U32(uint32(64*nb)), sums)
	DECQ(n)
	JNZ(LabelRef(name + "_pixel"))
	VZEROUPPER()
	RET()
}

// processorMaker writes the question who made the processor, which golang.org/x/sys
// does not answer.
func processorMaker() {
	TEXT("processorMaker", NOSPLIT, "func() (b, d, c, model uint32)")
	Doc("processorMaker returns leaf 0 of CPUID, twelve letters in this order, and EAX of leaf 1.")
	MOVL(U32(1), reg.EAX)
	XORL(reg.ECX, reg.ECX)
	CPUID()
	Store(reg.EAX, Return("model"))
	XORL(reg.EAX, reg.EAX)
	XORL(reg.ECX, reg.ECX)
	CPUID()
	Store(reg.EBX, Return("b"))
	Store(reg.EDX, Return("d"))
	Store(reg.ECX, Return("c"))
	RET()
}
