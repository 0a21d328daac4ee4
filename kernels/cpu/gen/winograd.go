package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// constant returns a number in all lanes of a new register.
func (s isa) constant(bits uint32) reg.VecVirtual {
	v, r := s.vec(), GP32()
	MOVL(U32(bits), r)
	VMOVD(r, v.AsX())
	VBROADCASTSS(v.AsX(), v)
	return v
}

// The bits of numbers that transforms multiply by.
const (
	two   = 0x40000000
	four  = 0x40800000
	five  = 0x40a00000
	eight = 0x41000000
)

// winogradInput writes the transform Bᵀ·d·B of tiles of 6×6 pixels, four apart: rows
// of pixels first, into tmp, then columns.
func winogradInput(s isa) {
	name := "winogradInput" + s.name
	TEXT(name, NOSPLIT, "func(v, tmp *float32, x *[6]*float32, n, channels, vs uintptr)")
	Doc(
		fmt.Sprintf("%s transforms n tiles of 6 rows of 6 pixels of channels floats (a multiple of %d); x is the rows at", name, s.bytes/4),
		"the first pixel of the first tile, and the next tile is 4 pixels further. v is [36][vs/4], of which a tile",
		fmt.Sprintf("takes channels; vs is in bytes. tmp is %d bytes.", 36*s.bytes),
	)
	Pragma("noescape")
	v, tmp, x, vs := Load(Param("v"), GP64()), Load(Param("tmp"), GP64()), Load(Param("x"), GP64()), Load(Param("vs"),
		GP64())
	pixel, n := Load(Param("channels"), GP64()), Load(Param("n"), GP64())
	SHLQ(Imm(2), pixel)
	c4, c5 := s.constant(four), s.constant(five)
	transform := func(load func(k int, v reg.VecVirtual), store func(k int, v reg.VecVirtual)) {
		var d [6]reg.VecVirtual
		for k := range d {
			d[k] = s.vec()
			load(k, d[k])
		}
		a, b, c := s.vec(), s.vec(), s.vec()
		// 4·d0 - 5·d2 + d4 and 4·d1 - 5·d3 + d5
		VMOVAPS(d[4], a)
		VFNMADD231PS(c5, d[2], a)
		VFMADD231PS(c4, d[0], a)
		store(0, a)
		VFNMADD231PS(c5, d[3], d[5])
		VFMADD231PS(c4, d[1], d[5])
		store(5, d[5])
		// d4 - 4·d2 ± (d3 - 4·d1)
		VMOVAPS(d[4], b)
		VFNMADD231PS(c4, d[2], b)
		VMOVAPS(d[3], c)
		VFNMADD231PS(c4, d[1], c)
		VADDPS(c, b, a)
		store(1, a)
		VSUBPS(c, b, b)
		store(2, b)
		// d4 - d2 ± 2·(d3 - d1)
		VSUBPS(d[2], d[4], d[4])
		VSUBPS(d[1], d[3], d[3])
		VADDPS(d[3], d[3], d[3])
		VADDPS(d[3], d[4], a)
		store(3, a)
		VSUBPS(d[3], d[4], d[4])
		store(4, d[4])
	}
	xoff := GP64() // of the tile
	XORQ(xoff, xoff)
	Label(name + "_tile")
	left, from := Load(Param("channels"), GP64()), GP64()
	MOVQ(xoff, from)
	Label(name + "_channels")
	{
		row, rows, at := GP64(), GP64(), GP64()
		MOVQ(U32(6), rows)
		MOVQ(x, row)
		Label(name + "_row")
		MOVQ(Mem{Base: row}, at)
		ADDQ(from, at)
		third := GP64()
		LEAQ(Mem{Base: at, Index: pixel, Scale: 2}, third)
		ADDQ(pixel, third)
		transform(func(k int, d reg.VecVirtual) {
			m := []Mem{{Base: at}, {Base: at, Index: pixel, Scale: 1}, {Base: at, Index: pixel, Scale: 2},
				{Base: third}, {Base: third, Index: pixel, Scale: 1}, {Base: third, Index: pixel, Scale: 2}}[k]
			VMOVUPS(m, d)
		}, func(k int, d reg.VecVirtual) { VMOVUPS(d, Mem{Base: tmp, Disp: s.bytes * k}) })
		ADDQ(Imm(8), row)
		ADDQ(U32(uint32(6*s.bytes)), tmp)
		DECQ(rows)
		JNZ(LabelRef(name + "_row"))
		SUBQ(U32(uint32(36*s.bytes)), tmp)
	}
	{
		// Column k of the tile is v[6·i+k].
		at, six, columns := GP64(), GP64(), GP64()
		MOVQ(v, at)
		MOVQ(vs, six)
		IMUL3Q(Imm(6), six, six)
		MOVQ(U32(6), columns)
		Label(name + "_column")
		third := GP64()
		LEAQ(Mem{Base: at, Index: six, Scale: 2}, third)
		ADDQ(six, third)
		transform(func(k int, d reg.VecVirtual) { VMOVUPS(Mem{Base: tmp, Disp: 6 * s.bytes * k}, d) }, func(k int,
			d reg.VecVirtual) {
			m := []Mem{{Base: at}, {Base: at, Index: six, Scale: 1}, {Base: at, Index: six, Scale: 2},
				{Base: third}, {Base: third, Index: six, Scale: 1}, {Base: third, Index: six, Scale: 2}}[k]
			VMOVUPS(d, m)
		})
		ADDQ(vs, at)
		ADDQ(U32(uint32(s.bytes)), tmp)
		DECQ(columns)
		JNZ(LabelRef(name + "_column"))
		SUBQ(U32(uint32(6*s.bytes)), tmp)
	}
	ADDQ(U32(uint32(s.bytes)), from)
	ADDQ(U32(uint32(s.bytes)), v)
	SUBQ(Imm(uint64(s.bytes/4)), left)
	JNZ(LabelRef(name + "_channels"))
	LEAQ(Mem{Base: xoff, Index: pixel, Scale: 4}, xoff)
	DECQ(n)
	JNZ(LabelRef(name + "_tile"))
	VZEROUPPER()
	RET()
}

// winogradTiles is how many tiles a kernel multiplies at once.
func (s isa) winogradTiles() int { return map[int]int{32: 6, 64: 8}[s.bytes] }

// winogradProducts writes the 36 products of matrices.
func winogradProducts(s isa, nb int) {
	tiles, width := s.winogradTiles(), nb*s.bytes/4
	name := fmt.Sprintf("winogradProducts%d%s", width, s.name)
	TEXT(name, NOSPLIT, "func(m, v, u *float32, channels uintptr)")
	Doc(
		fmt.Sprintf("%s multiplies 36 matrices: m [36][%d][%d] = v [36][%d][channels] · u [36][channels][%d]. channels is a", name, tiles, width, tiles, width),
		"multiple of 4. A cache line follows each matrix of m and v.",
	)
	Pragma("noescape")
	t := tile{isa: s, nb: nb, name: name}
	t.s1, t.s3, t.s5, t.s7 = GP64(), GP64(), GP64(), GP64()
	m, v, u := Load(Param("m"), GP64()), Load(Param("v"), GP64()), Load(Param("u"), GP64())
	Load(Param("channels"), t.s1)
	SHLQ(Imm(2), t.s1)
	LEAQ(Mem{Base: t.s1, Index: t.s1, Scale: 2}, t.s3)
	LEAQ(Mem{Base: t.s1, Index: t.s1, Scale: 4}, t.s5)
	LEAQ(Mem{Base: t.s3, Index: t.s1, Scale: 4}, t.s7)
	left := GP64()
	MOVQ(U32(36), left)
	Label(name + "_matrix")
	acc := make([][]reg.VecVirtual, tiles)
	for i := range acc {
		for range nb {
			a := s.vec()
			acc[i] = append(acc[i], a)
			VXORPS(a.AsX(), a.AsX(), a.AsX())
		}
	}
	weights := make([]reg.VecVirtual, nb)
	for j := range weights {
		weights[j] = s.vec()
	}
	value, at, k := s.vec(), GP64(), Load(Param("channels"), GP64())
	MOVQ(v, at)
	Label(name + "_channel")
	const unroll = 4
	for c := range unroll {
		if c*nb*s.bytes%64 == 0 { // weights come from the second or third cache, page by page
			PREFETCHT0(Mem{Base: u, Disp: 4096 + c*nb*s.bytes})
			if nb*s.bytes > 64 {
				PREFETCHT0(Mem{Base: u, Disp: 4096 + c*nb*s.bytes + 64})
			}
		}
		for j := range weights {
			VMOVUPS(Mem{Base: u, Disp: s.bytes * (c*nb + j)}, weights[j])
		}
		for i := range acc {
			VBROADCASTSS(t.pixel(at, i, c), value)
			for j := range weights {
				VFMADD231PS(weights[j], value, acc[i][j])
			}
		}
	}
	ADDQ(U32(uint32(s.bytes*nb*unroll)), u)
	ADDQ(Imm(4*unroll), at)
	SUBQ(Imm(unroll), k)
	JNZ(LabelRef(name + "_channel"))
	for i := range acc {
		for j := range acc[i] {
			VMOVUPS(acc[i][j], Mem{Base: m, Disp: s.bytes * (i*nb + j)})
		}
	}
	ADDQ(U32(uint32(4*tiles*width+64)), m)
	if tiles == 8 {
		LEAQ(Mem{Base: v, Index: t.s1, Scale: 8}, v)
	} else {
		LEAQ(Mem{Base: v, Index: t.s3, Scale: 2}, v)
	}
	ADDQ(Imm(64), v)
	DECQ(left)
	JNZ(LabelRef(name + "_matrix"))
	VZEROUPPER()
	RET()
}

// winogradOutput writes the transform Aᵀ·m·A to tiles of 4×4 pixels and what follows a
// convolution: columns first, into tmp, then rows.
func winogradOutput(s isa, nb int) {
	tiles, width := s.winogradTiles(), nb*s.bytes/4
	name := fmt.Sprintf("winogradOutput%d%s", width, s.name)
	TEXT(name, NOSPLIT, "func(y, res *[4]*float32, m, tmp, bias *float32, n, ys uintptr, floor float32)")
	Doc(
		fmt.Sprintf("%s makes n tiles of 4 rows of 4 pixels of %d output channels of m as winogradProducts makes it. ys is the stride of", name, width),
		"a pixel of y and res in bytes: y = max(floor, bias + z) + res, and res may be nil.",
		fmt.Sprintf("tmp is %d bytes.", 24*s.bytes),
	)
	Pragma("noescape")
	m, tmp, ys, n := Load(Param("m"), GP64()), Load(Param("tmp"), GP64()), Load(Param("ys"), GP64()), Load(Param("n"),
		GP64())
	c2, c4, c8 := s.constant(two), s.constant(four), s.constant(eight)
	floor := s.vec()
	broadcastParam("floor", floor)
	transform := func(load func(k int, v reg.VecVirtual), store func(k int, v reg.VecVirtual)) {
		var d [6]reg.VecVirtual
		for k := range d {
			d[k] = s.vec()
			load(k, d[k])
		}
		plus, minus := s.vec(), s.vec()
		VADDPS(d[2], d[1], plus)
		VSUBPS(d[2], d[1], minus)
		VADDPS(d[4], d[3], d[1])
		VSUBPS(d[4], d[3], d[2])
		// d1 is now m3 + m4, and d2 is m3 - m4.
		VADDPS(plus, d[0], d[0])
		VADDPS(d[1], d[0], d[0])
		store(0, d[0])
		VMOVAPS(minus, d[3])
		VFMADD231PS(c2, d[2], d[3])
		store(1, d[3])
		VFMADD231PS(c4, d[1], plus)
		store(2, plus)
		VFMADD231PS(c8, d[2], minus)
		VADDPS(d[5], minus, minus)
		store(3, minus)
	}
	yoff := GP64()
	XORQ(yoff, yoff)
	at := GP64()
	Label(name + "_tile")
	for j := range nb {
		label := fmt.Sprintf("%s_v%d", name, j)
		columns := GP64()
		MOVQ(U32(6), columns)
		MOVQ(m, at)
		Label(label + "_column")
		transform(func(k int, d reg.VecVirtual) { VMOVUPS(Mem{Base: at, Disp: (4*tiles*width+64)*6*k + s.bytes*j}, d) },
			func(k int, d reg.VecVirtual) { VMOVUPS(d, Mem{Base: tmp, Disp: 6 * s.bytes * k}) })
		ADDQ(U32(uint32(4*tiles*width+64)), at)
		ADDQ(U32(uint32(s.bytes)), tmp)
		DECQ(columns)
		JNZ(LabelRef(label + "_column"))
		SUBQ(U32(uint32(6*s.bytes)), tmp)

		row, y, res, base, bias := GP64(), GP64(), GP64(), GP64(), s.vec()
		Load(Param("bias"), base)
		VMOVUPS(Mem{Base: base, Disp: s.bytes * j}, bias)
		XORQ(row, row)
		Label(label + "_row")
		Load(Param("y"), base)
		MOVQ(Mem{Base: base, Index: row, Scale: 1}, y)
		ADDQ(yoff, y)
		var out [4]reg.VecVirtual
		transform(func(k int, d reg.VecVirtual) { VMOVUPS(Mem{Base: tmp, Disp: s.bytes * k}, d) }, func(k int,
			d reg.VecVirtual) {
			VADDPS(bias, d, d)
			VMAXPS(d, floor, d) // a NaN survives
			out[k] = d
		})
		ADDQ(U32(uint32(6*s.bytes)), tmp)
		Load(Param("res"), base)
		TESTQ(base, base)
		JZ(LabelRef(label + "_store"))
		MOVQ(Mem{Base: base, Index: row, Scale: 1}, res)
		ADDQ(yoff, res)
		for k := range out {
			VADDPS(Mem{Base: res, Disp: s.bytes * j}, out[k], out[k])
			if k < 3 {
				ADDQ(ys, res)
			}
		}
		Label(label + "_store")
		for k := range out {
			VMOVUPS(out[k], Mem{Base: y, Disp: s.bytes * j})
			if k < 3 {
				ADDQ(ys, y)
			}
		}
		ADDQ(Imm(8), row)
		CMPQ(row, Imm(32))
		JNE(LabelRef(label + "_row"))
		SUBQ(U32(uint32(24*s.bytes)), tmp)
	}
	ADDQ(U32(uint32(4*width)), m)
	LEAQ(Mem{Base: yoff, Index: ys, Scale: 4}, yoff)
	DECQ(n)
	JNZ(LabelRef(name + "_tile"))
	VZEROUPPER()
	RET()
}
