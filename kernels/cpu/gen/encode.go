package main

import (
	"fmt"
	"strings"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Neither avo nor Go's assembler knows the instructions of this file. They go
// through avo like all others, so that it finds registers for them, and are then
// replaced by their bytes. Operands are in the order of Go's assembly, the result
// last.

// tileRegister returns one of the eight registers of AMX, as an operand that avo
// leaves alone.
func tileRegister(n int) LabelRef { return LabelRef(fmt.Sprint("TMM", n)) }

// encoded is the operand of BYTE: the bytes, and in a comment what they mean.
type encoded struct {
	bytes   []byte
	meaning string
}

// Asm implements Op.
func (e encoded) Asm() string {
	list := make([]string, len(e.bytes))
	for i, b := range e.bytes {
		list[i] = fmt.Sprintf("$0x%02x", b)
	}
	return strings.Join(list, "; BYTE ") + " // " + e.meaning
}

func emit(opcode string, in, out []Op, operands ...Op) {
	Instruction(&ir.Instruction{Opcode: opcode, Operands: operands, Inputs: in, Outputs: out})
}

// dot adds to every float of acc the product of two pairs of bf16 numbers.
func dot(w, x, acc reg.VecVirtual) {
	emit("VDPBF16PS", []Op{w, x, acc}, []Op{acc}, w, x, acc)
}

// dotBytes adds to every integer of acc the product of four bytes of w, with sign, and
// of x, without, in the encoding of AVX-VNNI: Go's assembler has that of AVX512_VNNI.
func dotBytes(w, x, acc reg.VecVirtual) {
	emit("VPDPBUSD.VEX", []Op{w, x, acc}, []Op{acc}, w, x, acc)
}

// round2 makes bf16 numbers of the floats in low and high.
func round2(low, high, dst reg.VecVirtual) {
	emit("VCVTNE2PS2BF16", []Op{low, high}, []Op{dst}, low, high, dst)
}

// round1 makes bf16 numbers of the floats in src, in the lower half of dst.
func round1(src, dst reg.VecVirtual) {
	emit("VCVTNEPS2BF16", []Op{src}, []Op{dst}, src, dst.AsY())
}

func tileConfigure(m Mem) { emit("LDTILECFG", []Op{m}, nil, m) }
func tileRelease()        { emit("TILERELEASE", nil, nil) }

func tileZero(t LabelRef) { emit("TILEZERO", nil, nil, t) }

// tileLoad loads rows from m.Base on, m.Index apart.
func tileLoad(m Mem, t LabelRef) { emit("TILELOADD", []Op{m}, nil, m, t) }

func tileStore(t LabelRef, m Mem) { emit("TILESTORED", []Op{m}, nil, t, m) }

// tileDot adds to acc the product of the matrices a and b of bf16 numbers; b has
// two rows in each of its own.
func tileDot(b, a, acc LabelRef) { emit("TDPBF16PS", nil, nil, b, a, acc) }

// encode replaces the instructions above by their bytes. It runs when registers
// have been allocated.
func encode(fn *ir.Function) error {
	for _, i := range fn.Instructions() {
		n := func(k int) int { return number(i.Operands[k]) }
		var b []byte
		switch i.Opcode {
		case "VDPBF16PS":
			b = evex(2, 0x52, n(2), n(1), n(0))
		case "VCVTNE2PS2BF16":
			b = evex(3, 0x72, n(2), n(1), n(0))
		case "VCVTNEPS2BF16":
			b = evex(2, 0x72, n(1), 0, n(0))
		case "VPDPBUSD.VEX":
			b = vexYMM(1, 0x50, n(2), n(1), n(0))
		case "LDTILECFG":
			b = vexMem(0, 0x49, 0, i.Operands[0].(Mem))
		case "TILERELEASE":
			b = vexReg(0, 0x49, 0, 0, 0)
		case "TILEZERO":
			b = vexReg(3, 0x49, n(0), 0, 0)
		case "TILELOADD":
			b = vexMem(3, 0x4b, n(1), i.Operands[0].(Mem))
		case "TILESTORED":
			b = vexMem(2, 0x4b, n(0), i.Operands[1].(Mem))
		case "TDPBF16PS":
			b = vexReg(2, 0x5c, n(2), n(0), n(1))
		default:
			continue
		}
		asm := make([]string, len(i.Operands))
		for k, o := range i.Operands {
			asm[k] = o.Asm()
		}
		meaning := strings.TrimSpace(i.Opcode + " " + strings.Join(asm, ", "))
		i.Opcode, i.Operands = "BYTE", []Op{encoded{b, meaning}}
	}
	return nil
}

// number returns that of a register in the encoding.
func number(o Op) int {
	if t, ok := o.(LabelRef); ok {
		return int(t[3] - '0')
	}
	return int(reg.ToPhysical(o.(reg.Register)).PhysicalIndex())
}

// evex encodes an instruction on whole 512-bit registers in the second opcode map:
// prefix 0 none, 1 66, 2 F3, 3 F2 (Intel SDM volume 2, section 2.7.1).
func evex(prefix, opcode byte, dst, src1, src2 int) []byte {
	d, v, m := byte(dst), byte(src1), byte(src2)
	inverted := func(bit byte, at int) byte { return (^bit & 1) << at }
	return []byte{
		0x62,
		inverted(d>>3, 7) | inverted(m>>4, 6) | inverted(m>>3, 5) | inverted(d>>4, 4) | 2,
		(^v&15)<<3 | 4 | prefix,
		2<<5 | inverted(v>>4, 3),
		opcode,
		0xc0 | d&7<<3 | m&7,
	}
}

// vexReg encodes an instruction on registers below 8 in the second opcode map.
func vexReg(prefix, opcode byte, dst, src1, src2 int) []byte {
	return []byte{0xc4, 0xe2, (^byte(src1)&15)<<3 | prefix, opcode, 0xc0 | byte(dst)<<3 | byte(src2)}
}

// vexYMM encodes one on 256-bit registers.
func vexYMM(prefix, opcode byte, dst, src1, src2 int) []byte {
	d, m := byte(dst), byte(src2)
	return []byte{0xc4, (^d>>3&1)<<7 | 1<<6 | (^m>>3&1)<<5 | 2, (^byte(src1)&15)<<3 | 4 | prefix, opcode,
		0xc0 | d&7<<3 | m&7}
}

// vexMem encodes one on memory (SDM volume 2, sections 2.1.5 and 2.3.5).
func vexMem(prefix, opcode byte, register int, m Mem) []byte {
	base, index := byte(number(m.Base)), byte(0)
	if m.Index != nil {
		index = byte(number(m.Index))
		if m.Scale != 1 || index == 4 {
			panic("index of a tile must have scale 1")
		}
	}
	b := []byte{0xc4, (^index>>3&1)<<6 | (^(base>>3)&1)<<5 | 0x82, 0x78 | prefix, opcode}
	mode := byte(2)
	switch {
	case m.Disp == 0 && base&7 != 5:
		mode = 0
	case m.Disp >= -128 && m.Disp < 128:
		mode = 1
	}
	switch {
	case m.Index != nil:
		b = append(b, mode<<6|byte(register)<<3|4, index&7<<3|base&7)
	case base&7 == 4:
		panic("this base needs an index")
	default:
		b = append(b, mode<<6|byte(register)<<3|base&7)
	}
	for k := range []int{0, 1, 4}[mode] {
		b = append(b, byte(m.Disp>>(8*k)))
	}
	return b
}
