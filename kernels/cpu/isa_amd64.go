//go:build amd64 && !purego

package cpu

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

// native lists the assembly kernels that this machine can run, fastest first.
func native() []isa {
	var list []isa
	if cpu.X86.HasAVX512F {
		list = append(list, isa{AVX512, []block{{32, assembly(convRow32AVX512), gradAssembly(gradRows32AVX512)}, {16, assembly(convRow16AVX512), gradAssembly(gradRows16AVX512)}}, func(rounds int) float64 {
			peakAVX512(uintptr(rounds))
			return float64(rounds) * peakChains * 16 * 2
		}})
	}
	if cpu.X86.HasAVX2 && cpu.X86.HasFMA {
		list = append(list, isa{AVX2, []block{{16, assembly(convRow16AVX2), gradAssembly(gradRows16AVX2)}, {8, assembly(convRow8AVX2), gradAssembly(gradRows8AVX2)}}, func(rounds int) float64 {
			peakAVX2(uintptr(rounds))
			return float64(rounds) * peakChains * 8 * 2
		}})
	}
	return list
}

// peakChains is the number of multiply-adds per round of the peak kernels.
const peakChains = 12

// assembly adapts a generated kernel. The caller has checked the bounds.
func assembly(kernel func(y, res, w, bias *float32, x *[3]*float32, n, rows, taps, xs, ys uintptr, floor, slope float32)) func(*row) {
	return func(r *row) {
		for i, x := range r.x {
			r.rowPointer[i] = unsafe.SliceData(x)
		}
		kernel(unsafe.SliceData(r.y), unsafe.SliceData(r.res), unsafe.SliceData(r.w), unsafe.SliceData(r.bias), &r.rowPointer,
			uintptr(r.n), uintptr(r.rows), uintptr(r.taps), uintptr(4*r.xs), uintptr(4*r.ys), r.floor, r.slope)
	}
}

// gradAssembly is assembly for the kernels of the gradient of weights.
func gradAssembly(kernel func(dw, x, dy *float32, n, h, taps, xs, xrow, ys, yrow, dws uintptr)) func(*gradRows) {
	return func(g *gradRows) {
		kernel(unsafe.SliceData(g.dw), unsafe.SliceData(g.x), unsafe.SliceData(g.dy), uintptr(g.n), uintptr(g.h), uintptr(g.taps),
			uintptr(4*g.xs), uintptr(4*g.xrow), uintptr(4*g.ys), uintptr(4*g.yrow), uintptr(4*g.dws))
	}
}
