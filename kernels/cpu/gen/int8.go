package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Rows of integers lie in groups of groupColumns output columns: the pixels under
// their window, two more, follow each other. See docs/kernels.md.
const (
	groupColumns = 14
	groupPixels  = groupColumns + 2
	tileColumns  = groupColumns / 2
)

// broadcastParam returns a parameter in all lanes of v.
func broadcastParam(name string, v reg.Register) {
	address, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(address.Addr, v)
}

// intRow writes one kernel of integers: a row of output pixels of nb vectors of some
// bytes each. With one vector a tile is a whole group, but for the last of an odd
// number of half groups.
func intRow(name string, nb, bytes int) {
	width := nb * bytes / 4
	TEXT(name, NOSPLIT,
		"func(y, res *float32, w *int8, offsets *int32, channels *float32, x *[3]*uint8, scales *[3]*float32, tiles, taps, xs, ys uintptr, floor float32)")
	Doc(
		fmt.Sprintf("%s computes tiles of %d pixels of %d output channels. Of each of three rows, x is the first group and", name, tileColumns, width),
		fmt.Sprintf("scales the numbers that one step is worth in each tile. A group is %d pixels of xs bytes, for two tiles.", groupPixels),
		fmt.Sprintf("w is [3][taps/4][%d][4], taps (a multiple of 16) the contiguous bytes per row and pixel; ys is the stride of", width),
		fmt.Sprintf("a pixel of y and res in bytes. offsets is [%d][3][16] and channels [2][%d], scale and bias:",
			width/16, width),
		"y = max(floor, scale*z + bias) + res, where z is the sum over rows of the row's scale times",
		"(offset + sum of w*x); multiplications and additions that follow each other round once. res may be nil.",
	)
	Pragma("noescape")
	t := intTile{nb: nb, bytes: bytes, name: name}
	t.xoff, t.yoff, t.soff, t.step, t.s1, t.s3, t.s5 = GP64(), GP64(), GP64(), GP64(), GP64(), GP64(), GP64()
	Load(Param("xs"), t.s1)
	LEAQ(Mem{Base: t.s1, Index: t.s1, Scale: 2}, t.s3)
	LEAQ(Mem{Base: t.s1, Index: t.s1, Scale: 4}, t.s5)
	LEAQ(Mem{Base: t.s3, Index: t.s1, Scale: 4}, t.step)
	XORQ(t.xoff, t.xoff)
	XORQ(t.yoff, t.yoff)
	XORQ(t.soff, t.soff)
	tiles := Load(Param("tiles"), GP64())
	group := func() reg.Register {
		bytes := GP64()
		MOVQ(t.s1, bytes)
		SHLQ(Imm(4), bytes)
		return bytes
	}
	if nb == 1 {
		Label(name + "_group")
		CMPQ(tiles, Imm(2))
		JB(LabelRef(name + "_rest"))
		t.emit(2 * tileColumns)
		ADDQ(group(), t.xoff)
		ys := Load(Param("ys"), GP64())
		IMUL3Q(Imm(2*tileColumns), ys, ys)
		ADDQ(ys, t.yoff)
		ADDQ(Imm(8), t.soff)
		SUBQ(Imm(2), tiles)
		JMP(LabelRef(name + "_group"))
		Label(name + "_rest")
		TESTQ(tiles, tiles)
		JZ(LabelRef(name + "_done"))
		t.emit(tileColumns)
		Label(name + "_done")
	} else {
		Label(name + "_tile")
		t.emit(tileColumns)
		// To the second tile of a group, or over its last pixels to the next group.
		ADDQ(t.step, t.xoff)
		NEGQ(t.step)
		ADDQ(group(), t.step)
		ys := Load(Param("ys"), GP64())
		IMUL3Q(Imm(tileColumns), ys, ys)
		ADDQ(ys, t.yoff)
		ADDQ(Imm(4), t.soff)
		DECQ(tiles)
		JNZ(LabelRef(name + "_tile"))
	}
	VZEROUPPER()
	RET()
}

// intTile is the state that the tiles of one kernel share: byte offsets in x, y and
// scales, and multiples of the pixel stride of x.
type intTile struct {
	nb, bytes        int // vectors, and bytes of one
	name             string
	xoff, yoff, soff reg.GPVirtual
	step             reg.GPVirtual // seven pixels
	s1, s3, s5       reg.GPVirtual
}

// pixel addresses byte u of pixel p; second is the address of pixel 7.
func (t *intTile) pixel(first, second reg.Register, p, u int) Mem {
	m := Mem{Base: first, Disp: u, Scale: 1}
	if p >= tileColumns {
		m.Base = second
		p -= tileColumns
	}
	switch p {
	case 0:
		m.Scale = 0
	case 1, 2, 4:
		m.Index, m.Scale = t.s1, uint8(p)
	case 3, 6:
		m.Index, m.Scale = t.s3, uint8(p/3)
	case 5:
		m.Index = t.s5
	}
	return m
}

// emit writes a tile of p pixels. Integers are summed for one row of the window,
// then added as floats to the sums of all rows.
func (t *intTile) emit(p int) {
	label := fmt.Sprintf("%s_p%d", t.name, p)
	// All registers are in use, more than avo would find.
	vectors := []reg.VecPhysical{
		reg.Z0, reg.Z1, reg.Z2, reg.Z3, reg.Z4, reg.Z5, reg.Z6, reg.Z7, reg.Z8, reg.Z9, reg.Z10, reg.Z11, reg.Z12,
		reg.Z13, reg.Z14, reg.Z15,
		reg.Z16, reg.Z17, reg.Z18, reg.Z19, reg.Z20, reg.Z21, reg.Z22, reg.Z23, reg.Z24, reg.Z25, reg.Z26, reg.Z27,
		reg.Z28, reg.Z29, reg.Z30, reg.Z31,
	}
	take := func(n int) (list []reg.Register) {
		for _, v := range vectors[:n] {
			if t.bytes == 32 {
				v = v.AsY().(reg.VecPhysical)
			}
			list = append(list, v)
		}
		vectors = vectors[n:]
		return list
	}
	acc, sum := make([][]reg.Register, p), make([][]reg.Register, p)
	for i := range acc {
		acc[i], sum[i] = take(t.nb), take(t.nb)
		for _, v := range sum[i] {
			VPXORD(v, v, v)
		}
	}
	weights, value, floor := take(t.nb), take(1)[0], take(1)[0]
	w, row := Load(Param("w"), GP64()), GP64() // row is 8 times that of the window
	XORQ(row, row)
	Label(label + "_row")
	at := Load(Param("offsets"), GP64())
	for j := range t.nb {
		VMOVDQU32(Mem{Base: at, Index: row, Scale: 8, Disp: t.bytes*j/64*192 + t.bytes*j%64}, acc[0][j])
		for i := 1; i < p; i++ {
			VMOVDQA32(acc[0][j], acc[i][j])
		}
	}
	first, k := GP64(), Load(Param("taps"), GP64())
	Load(Param("x"), at)
	MOVQ(Mem{Base: at, Index: row, Scale: 1}, first)
	ADDQ(t.xoff, first)
	second := first
	if p > tileColumns {
		second = GP64()
		LEAQ(Mem{Base: first, Index: t.step, Scale: 1}, second)
	}
	Label(label + "_tap")
	const unroll = 4
	for u := range unroll {
		for j := range weights {
			VMOVDQU32(Mem{Base: w, Disp: t.bytes * (u*t.nb + j)}, weights[j])
		}
		for i := range acc {
			VPBROADCASTD(t.pixel(first, second, i, 4*u), value)
			for j := range weights {
				VPDPBUSD(weights[j], value, acc[i][j])
			}
		}
	}
	ADDQ(U32(uint32(t.bytes*t.nb*unroll)), w)
	ADDQ(Imm(4*unroll), first)
	if second != first {
		ADDQ(Imm(4*unroll), second)
	}
	SUBQ(Imm(4*unroll), k)
	JNZ(LabelRef(label + "_tap"))
	Load(Param("scales"), at)
	MOVQ(Mem{Base: at, Index: row, Scale: 1}, at)
	VBROADCASTSS(Mem{Base: at, Index: t.soff, Scale: 1}, value)
	for i := range acc {
		for j := range acc[i] {
			VCVTDQ2PS(acc[i][j], acc[i][j])
			VFMADD231PS(value, acc[i][j], sum[i][j])
		}
	}
	ADDQ(Imm(8), row)
	CMPQ(row, Imm(24))
	JNE(LabelRef(label + "_row"))

	// The sum is the second source of the maximum, so a NaN survives.
	channels := Load(Param("channels"), GP64())
	broadcastParam("floor", floor)
	for j := range t.nb {
		scale, bias := weights[j], acc[0][j]
		VMOVUPS(Mem{Base: channels, Disp: t.bytes * j}, scale)
		VMOVUPS(Mem{Base: channels, Disp: t.bytes * (t.nb + j)}, bias)
		for i := range sum {
			VFMADD213PS(bias, scale, sum[i][j])
			VMAXPS(sum[i][j], floor, sum[i][j])
		}
	}
	y, res, ys := Load(Param("y"), GP64()), Load(Param("res"), GP64()), Load(Param("ys"), GP64())
	TESTQ(res, res)
	JZ(LabelRef(label + "_store"))
	ADDQ(t.yoff, res)
	for i := range sum {
		for j := range sum[i] {
			VADDPS(Mem{Base: res, Disp: t.bytes * j}, sum[i][j], sum[i][j])
		}
		if i < p-1 {
			ADDQ(ys, res)
		}
	}
	Label(label + "_store")
	ADDQ(t.yoff, y)
	for i := range sum {
		for j := range sum[i] {
			VMOVUPS(sum[i][j], Mem{Base: y, Disp: t.bytes * j})
		}
		if i < p-1 {
			ADDQ(ys, y)
		}
	}
}

// intSums writes the sums of a row of integers with AVX-VNNI, 8 output channels of a
// group at a time, all that the registers hold. It has scalar instructions and few
// others, so that a test can run its bytes where there is no AVX-VNNI; intFinish does
// the rest.
func intSums() {
	const name = "intSums8AVXVNNI"
	TEXT(name, NOSPLIT, "func(sums *int32, w *int8, offsets *int32, x *[3]*uint8, tiles, taps, xs uintptr)")
	Doc(
		fmt.Sprintf("%s sums tiles of %d pixels of 8 output channels: [3][%d][8] for each group of %d pixels of xs bytes,", name, tileColumns, groupColumns, groupPixels),
		fmt.Sprintf("[3][%d][8] for one tile that is left. Of each of three rows, x is the first group. w is [3][taps/4][8][4],", tileColumns),
		"taps (a multiple of 8) the contiguous bytes per row and pixel. offsets, [3][8], are added.",
	)
	Pragma("noescape")
	t := intTile{name: name, bytes: 32}
	t.xoff, t.step, t.s1, t.s3, t.s5 = GP64(), GP64(), GP64(), GP64(), GP64()
	Load(Param("xs"), t.s1)
	LEAQ(Mem{Base: t.s1, Index: t.s1, Scale: 2}, t.s3)
	LEAQ(Mem{Base: t.s1, Index: t.s1, Scale: 4}, t.s5)
	LEAQ(Mem{Base: t.s3, Index: t.s1, Scale: 4}, t.step)
	XORQ(t.xoff, t.xoff)
	sums, tiles := Load(Param("sums"), GP64()), Load(Param("tiles"), GP64())
	emit := func(p int) {
		label := fmt.Sprintf("%s_p%d", name, p)
		acc := make([]reg.VecVirtual, p)
		for i := range acc {
			acc[i] = YMM()
		}
		weights, value := YMM(), YMM()
		w, row := Load(Param("w"), GP64()), GP64()
		XORQ(row, row)
		Label(label + "_row")
		at := Load(Param("offsets"), GP64())
		VMOVDQU(Mem{Base: at, Index: row, Scale: 4}, acc[0])
		for _, a := range acc[1:] {
			VMOVDQA(acc[0], a)
		}
		Load(Param("x"), at)
		first, second, k := GP64(), GP64(), Load(Param("taps"), GP64())
		MOVQ(Mem{Base: at, Index: row, Scale: 1}, first)
		ADDQ(t.xoff, first)
		LEAQ(Mem{Base: first, Index: t.step, Scale: 1}, second)
		Label(label + "_tap")
		const unroll = 2
		for u := range unroll {
			VMOVDQU(Mem{Base: w, Disp: 32 * u}, weights)
			for i, a := range acc {
				VPBROADCASTD(t.pixel(first, second, i, 4*u), value)
				dotBytes(weights, value, a)
			}
		}
		ADDQ(Imm(32*unroll), w)
		ADDQ(Imm(4*unroll), first)
		ADDQ(Imm(4*unroll), second)
		SUBQ(Imm(4*unroll), k)
		JNZ(LabelRef(label + "_tap"))
		for i, a := range acc {
			VMOVDQU(a, Mem{Base: sums, Disp: 32 * i})
		}
		ADDQ(U32(uint32(32*p)), sums)
		ADDQ(Imm(8), row)
		CMPQ(row, Imm(24))
		JNE(LabelRef(label + "_row"))
	}
	Label(name + "_group")
	CMPQ(tiles, Imm(2))
	JB(LabelRef(name + "_rest"))
	emit(groupColumns)
	bytes := GP64()
	MOVQ(t.s1, bytes)
	SHLQ(Imm(4), bytes)
	ADDQ(bytes, t.xoff)
	SUBQ(Imm(2), tiles)
	JMP(LabelRef(name + "_group"))
	Label(name + "_rest")
	TESTQ(tiles, tiles)
	JZ(LabelRef(name + "_done"))
	emit(tileColumns)
	Label(name + "_done")
	VZEROUPPER()
	RET()
}

// sumsCode writes a function that tells where intSums lies.
func sumsCode() {
	TEXT("sumsCode", NOSPLIT, "func() *byte")
	Doc("sumsCode returns the address of intSums8AVXVNNI, for the test that runs its bytes.")
	at := GP64()
	LEAQ(Mem{Symbol: Symbol{Name: "·intSums8AVXVNNI"}, Base: reg.StaticBase}, at)
	Store(at, ReturnIndex(0))
	RET()
}

// intFinish writes what follows intSums.
func intFinish() {
	const name = "intFinish8AVX2"
	TEXT(name, NOSPLIT,
		"func(y, res *float32, sums *int32, channels *float32, scales *[3]*float32, tiles, ys uintptr, floor float32)")
	Doc(name + " makes tiles of outputs of the sums of intSums8AVXVNNI, as intRow16VNNI does.")
	Pragma("noescape")
	y, res, ys := Load(Param("y"), GP64()), Load(Param("res"), GP64()), Load(Param("ys"), GP64())
	sums, tiles, soff := Load(Param("sums"), GP64()), Load(Param("tiles"), GP64()), GP64()
	XORQ(soff, soff)
	scale, bias, floor := YMM(), YMM(), YMM()
	at := Load(Param("channels"), GP64())
	VMOVUPS(Mem{Base: at}, scale)
	VMOVUPS(Mem{Base: at, Disp: 32}, bias)
	broadcastParam("floor", floor)
	Label(name + "_group")
	rows := Load(Param("scales"), GP64())
	var worth [3]reg.VecVirtual
	for k := range worth {
		worth[k] = YMM()
		MOVQ(Mem{Base: rows, Disp: 8 * k}, at)
		VBROADCASTSS(Mem{Base: at, Index: soff, Scale: 1}, worth[k])
	}
	ADDQ(Imm(8), soff)
	// The pixels of this group, or of the one tile that is left.
	left, length, third := GP64(), GP64(), GP64()
	MOVQ(U32(groupColumns), left)
	CMPQ(tiles, Imm(2))
	JAE(LabelRef(name + "_whole"))
	MOVQ(U32(tileColumns), left)
	Label(name + "_whole")
	MOVQ(left, length)
	SHLQ(Imm(5), length)
	LEAQ(Mem{Base: sums, Index: length, Scale: 2}, third)
	v, z := YMM(), YMM()
	Label(name + "_pixel")
	VXORPS(z, z, z)
	for k, m := range []Mem{{Base: sums}, {Base: sums, Index: length, Scale: 1}, {Base: third}} {
		VCVTDQ2PS(m, v)
		VFMADD231PS(worth[k], v, z)
	}
	VFMADD213PS(bias, scale, z)
	VMAXPS(z, floor, z)
	TESTQ(res, res)
	JZ(LabelRef(name + "_store"))
	VADDPS(Mem{Base: res}, z, z)
	ADDQ(ys, res)
	Label(name + "_store")
	VMOVUPS(z, Mem{Base: y})
	ADDQ(ys, y)
	ADDQ(Imm(32), sums)
	ADDQ(Imm(32), third)
	DECQ(left)
	JNZ(LabelRef(name + "_pixel"))
	LEAQ(Mem{Base: sums, Index: length, Scale: 2}, sums)
	SUBQ(Imm(2), tiles)
	JA(LabelRef(name + "_group"))
	VZEROUPPER()
	RET()
}

// quantizeRow writes the conversion of a row of floats to groups of bytes, with
// vectors of 16 or, for AVX2, 8.
func quantizeRow(name string, bytesOf int, vector func() reg.VecVirtual) {
	lanes := bytesOf / 4
	TEXT(name, NOSPLIT, "func(dst *uint8, scales *float32, src *float32, groups, channels uintptr, top, zero float32)")
	Doc(
		fmt.Sprintf("%s makes bytes of groups of %d pixels of channels (a multiple of %d) floats, the last two of which", name, groupPixels, lanes),
		"are the first two of the next group. The largest of a group becomes top; zero is 1.5*2^23 plus the byte",
		"of a 0. It writes what a step is worth twice for each group.",
	)
	Pragma("noescape")
	dst, scales, src := Load(Param("dst"), GP64()), Load(Param("scales"), GP64()), Load(Param("src"), GP64())
	groups, channels := Load(Param("groups"), GP64()), Load(Param("channels"), GP64())
	zero, sign, tiny := vector(), vector(), vector()
	broadcastParam("zero", zero)
	bits := GP32()
	MOVL(U32(0x7fffffff), bits)
	broadcastBits := func(v reg.VecVirtual) {
		if lanes == 8 {
			VMOVD(bits, v.AsX())
			VPBROADCASTD(v.AsX(), v)
		} else {
			VPBROADCASTD(bits, v)
		}
	}
	broadcastBits(sign)
	MOVL(U32(tinyBits), bits)
	broadcastBits(tiny)
	low, order := vector(), vector()
	if lanes == 8 {
		MOVL(U32(255), bits)
		broadcastBits(low)
		numbers := GLOBL("packOrder", RODATA|NOPTR)
		for i, n := range []uint32{0, 4, 1, 5, 2, 6, 3, 7} {
			DATA(4*i, U32(n))
		}
		VMOVDQU(numbers, order)
	}
	top := XMM()
	address, err := Param("top").Resolve()
	if err != nil {
		panic(err)
	}
	VMOVSS(address.Addr, top)

	// The largest number of the next group is found while that of this one becomes a
	// step, which takes long.
	next, bytes := GP64(), GP64() // source of the next group; 14 pixels
	MOVQ(src, next)
	MOVQ(channels, bytes)
	IMUL3Q(Imm(4*groupColumns), bytes, bytes)
	largest, steps, worth := vector(), vector(), XMM()
	var v [4]reg.VecVirtual
	for i := range v {
		v[i] = vector()
	}
	at, k := GP64(), GP64()
	find := func(label string) {
		MOVQ(next, at)
		ADDQ(bytes, next)
		MOVQ(channels, k)
		var most [4]reg.VecVirtual
		for i := range most {
			most[i] = vector()
			VMOVAPS(tiny, most[i])
		}
		Label(label)
		for i := range most {
			if lanes == 16 {
				VPANDD(Mem{Base: at, Disp: bytesOf * i}, sign, v[i%2])
			} else {
				VPAND(Mem{Base: at, Disp: bytesOf * i}, sign, v[i%2])
			}
			VPMAXUD(v[i%2], most[i], most[i])
		}
		ADDQ(U32(uint32(4*bytesOf)), at)
		SUBQ(Imm(uint64(lanes/4)), k)
		JNZ(LabelRef(label))
		VPMAXUD(most[0], most[1], most[0])
		VPMAXUD(most[2], most[3], most[2])
		VPMAXUD(most[0], most[2], most[0])
		if lanes == 16 {
			VEXTRACTI64X4(Imm(1), most[0], most[1].AsY())
			VPMAXUD(most[0].AsY(), most[1].AsY(), most[0].AsY())
		}
		VEXTRACTI128(Imm(1), most[0].AsY(), most[1].AsX())
		VPMAXUD(most[0].AsX(), most[1].AsX(), most[0].AsX())
		for _, order := range []uint64{0x4e, 0xb1} {
			VPSHUFD(Imm(order), most[0].AsX(), most[1].AsX())
			VPMAXUD(most[0].AsX(), most[1].AsX(), most[0].AsX())
		}
		VMOVAPS(most[0], largest)
	}
	find(name + "_first")
	Label(name + "_group")
	VDIVSS(top, largest.AsX(), worth)
	VMOVSS(worth, Mem{Base: scales})
	VMOVSS(worth, Mem{Base: scales, Disp: 4})
	ADDQ(Imm(8), scales)
	VDIVSS(largest.AsX(), top, steps.AsX())
	VBROADCASTSS(steps.AsX(), steps)
	CMPQ(groups, Imm(1))
	JE(LabelRef(name + "_last"))
	find(name + "_next")
	Label(name + "_last")
	MOVQ(src, at)
	ADDQ(bytes, src)
	MOVQ(channels, k)
	Label(name + "_bytes")
	for i := range v {
		VMULPS(Mem{Base: at, Disp: bytesOf * i}, steps, v[i])
		VADDPS(zero, v[i], v[i])
		if lanes == 16 {
			VPMOVDB(v[i], Mem{Base: dst, Disp: 16 * i})
		} else {
			VPAND(low, v[i], v[i])
		}
	}
	if lanes == 8 { // which packs the halves of vectors
		VPACKUSDW(v[1], v[0], v[0])
		VPACKUSDW(v[3], v[2], v[2])
		VPACKUSWB(v[2], v[0], v[0])
		VPERMD(v[0], order, v[0])
		VMOVDQU(v[0], Mem{Base: dst})
	}
	ADDQ(U32(uint32(4*bytesOf)), at)
	ADDQ(Imm(uint64(4*lanes)), dst)
	SUBQ(Imm(uint64(lanes/4)), k)
	JNZ(LabelRef(name + "_bytes"))
	DECQ(groups)
	JNZ(LabelRef(name + "_group"))
	VZEROUPPER()
	RET()
}

// tinyBits is 2^-100: groups of smaller numbers count as this, so that no step is 0.
const tinyBits = (127 - 100) << 23
