package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// tileName is the name of a kernel for nb tiles of outputs and np tiles of pixels.
func tileName(nb, np int) string { return fmt.Sprintf("tileRow%dx%d", 16*nb, 16*np) }

// tileRows writes one kernel of AMX: the sums of a row of output pixels, np tiles
// of 16 pixels by nb tiles of 16 output channels at a time. It has scalar
// instructions and those of AMX only, so that a test can run its bytes where there
// is no AMX; finishRows does the rest.
//
// Registers: 0 and 1 sum the first 16 pixels, 2 and 3 the next; 4 and 5 hold input,
// a pixel in each row; 6 and 7 hold weights, a pair of taps in each row.
func tileRows(nb, np int) {
	name := tileName(nb, np)
	TEXT(name, NOSPLIT, "func(config *[64]byte, x *[3]*uint32, w *uint32, sums *float32, tiles, rows, chunks, chunk, xs uintptr)")
	Doc(
		fmt.Sprintf("%s sums tiles times %d pixels of %d output channels, which follow each other in sums.", name, 16*np, 16*nb),
		"x holds the rows of input (1 to 3) at the first tap. Of each, a pixel takes chunks times chunk bytes of",
		"bf16 numbers; xs is the stride of a pixel in bytes. w is [rows*chunks*chunk/4][channels] pairs. config",
		"is that of the tile registers; it may have fewer pixels than 16.",
	)
	Pragma("noescape")
	config, sums := Load(Param("config"), GP64()), Load(Param("sums"), GP64())
	xs, tiles := Load(Param("xs"), GP64()), Load(Param("tiles"), GP64())
	ws, xoff := GP64(), GP64()
	MOVQ(U32(uint32(64*nb)), ws)
	XORQ(xoff, xoff)
	tileConfigure(Mem{Base: config})

	Label(name + "_tile")
	for p := range np {
		for o := range nb {
			tileZero(tileRegister(2*p + o))
		}
	}
	w, rows, left := Load(Param("w"), GP64()), Load(Param("x"), GP64()), Load(Param("rows"), GP64())
	Label(name + "_row")
	x := []reg.Register{GP64(), GP64()}[:np]
	MOVQ(Mem{Base: rows}, x[0])
	ADDQ(xoff, x[0])
	if np > 1 { // 16 pixels further
		MOVQ(xs, x[1])
		SHLQ(Imm(4), x[1])
		ADDQ(x[0], x[1])
	}
	chunks := Load(Param("chunks"), GP64())
	Label(name + "_chunk")
	for o := range nb {
		tileLoad(Mem{Base: w, Index: ws, Scale: 1, Disp: 64 * o}, tileRegister(6+o))
	}
	for p := range np {
		tileLoad(Mem{Base: x[p], Index: xs, Scale: 1}, tileRegister(4+p))
		for o := range nb {
			tileDot(tileRegister(6+o), tileRegister(4+p), tileRegister(2*p+o))
		}
	}
	step := Load(Param("chunk"), GP64())
	for p := range np {
		ADDQ(step, x[p])
	}
	SHLQ(Imm(uint64(3+nb)), step) // a row of 64·nb bytes of weights for four bytes of input
	ADDQ(step, w)
	DECQ(chunks)
	JNZ(LabelRef(name + "_chunk"))
	ADDQ(Imm(8), rows)
	DECQ(left)
	JNZ(LabelRef(name + "_row"))

	for p := range np {
		for o := range nb {
			tileStore(tileRegister(2*p+o), Mem{Base: sums, Index: ws, Scale: 1, Disp: 1024*nb*p + 64*o})
		}
	}
	ADDQ(U32(uint32(1024*nb*np)), sums)
	MOVQ(xs, step)
	SHLQ(Imm(uint64(3+np)), step) // 16·np pixels
	ADDQ(step, xoff)
	DECQ(tiles)
	JNZ(LabelRef(name + "_tile"))
	tileRelease()
	RET()
}

// tileCode writes a function that tells where the kernels lie.
func tileCode() {
	TEXT("tileCode", NOSPLIT, "func(code *[4]*byte)")
	Doc("tileCode returns the addresses of the AMX kernels, for the test that runs their bytes: outputs and", "pixels 16x16, 16x32, 32x16, 32x32.")
	Pragma("noescape")
	code, at := Load(Param("code"), GP64()), GP64()
	for k := range 4 {
		LEAQ(Mem{Symbol: Symbol{Name: "·" + tileName(k/2+1, k%2+1)}, Base: reg.StaticBase}, at)
		MOVQ(at, Mem{Base: code, Disp: 8 * k})
	}
	RET()
}
