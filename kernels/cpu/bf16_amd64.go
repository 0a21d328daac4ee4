//go:build amd64 && !purego

package cpu

import (
	"encoding/binary"
	"unsafe"
)

// bf16AVX512 makes the numbers of both sets that need them.
var bf16AVX512 = bf16{
	row: func(dst []uint32, src []float32) {
		dst = dst[:len(src)/2]
		const step = 32
		n := len(src) / step
		if n > 0 {
			roundRowBF16(unsafe.SliceData(dst), unsafe.SliceData(src), uintptr(n))
		}
		roundPairs(dst[n*step/2:], src[n*step:])
	},
	weights: func(dst []uint32, src []float32, width int) {
		if rows := len(src) / (2 * width); rows > 0 && width%16 == 0 {
			_ = dst[rows*width-1]
			roundWeightsBF16(unsafe.SliceData(dst), unsafe.SliceData(src), uintptr(rows), uintptr(width/16))
		}
	},
}

// pairAssembly is assembly for the kernels of bf16.
func pairAssembly(kernel func(y, res *float32, w *uint32, bias *float32, x *[3]*uint32, n, rows, taps, xs, ys uintptr, floor, slope float32)) func(*row) {
	return func(r *row) {
		for i, x := range r.halfs {
			r.pairPointer[i] = unsafe.SliceData(x)
		}
		kernel(unsafe.SliceData(r.y), unsafe.SliceData(r.res), unsafe.SliceData(r.pairs), unsafe.SliceData(r.bias), &r.pairPointer,
			uintptr(r.n), uintptr(r.rows), uintptr(r.taps/2), uintptr(2*r.xs), uintptr(4*r.ys), r.floor, r.slope)
	}
}

// fastBF16 tells whether AVX512_BF16 is faster than float32: on processors of AMD,
// by 1.8 times on Zen 4. Intel's have AMX for bf16, and do this at half the rate of
// float32.
func fastBF16() bool {
	maker, _ := processor()
	return maker == "AuthenticAMD"
}

// halfVectors tells whether the processor is a Zen 4, which computes 512 bits in two
// halves, but loads only one such vector in a cycle: what loads as often as it
// multiplies is faster with 256.
func halfVectors() bool {
	maker, family := processor()
	return maker == "AuthenticAMD" && family == 0x19
}

// processor returns the maker and the family of the processor.
func processor() (maker string, family uint32) {
	b, d, c, model := processorMaker()
	var name []byte
	for _, v := range []uint32{b, d, c} {
		name = binary.LittleEndian.AppendUint32(name, v)
	}
	return string(name), model>>8&15 + model>>20&255
}
