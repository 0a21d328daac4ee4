//go:build amd64 && !purego

package cpu

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

// native lists the assembly kernels that this machine can run, fastest first.
func native() []isa {
	var list []isa
	if hasAMX() {
		list = append(list, amx(tileRow16x16, tileRow16x32, tileRow32x16, tileRow32x32))
	}
	if cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL && cpu.X86.HasAVX512VNNI && cpu.X86.HasAVX2 && cpu.X86.HasFMA {
		s := setAVX512()
		s.name, s.ints = AVX512VNNI, &intsAVX512
		if halfVectors() {
			s.blocks[1].run = assembly(convRow16AVX2) // the same bits
		}
		s.peak = func(rounds int) float64 {
			peakVNNI(uintptr(rounds))
			return float64(rounds) * peakChains * 64 * 2
		}
		list = append(list, s)
	}
	grad32, grad16 := gradAssembly(gradRows32AVX512), gradAssembly(gradRows16AVX512)
	if cpu.X86.HasAVX512F && cpu.X86.HasAVX512BF16 {
		list = append(list, isa{
			name:   AVX512BF16,
			blocks: []block{{width: 32, run: pairAssembly(convRow32BF16), grad: grad32}, {width: 16, run: pairAssembly(convRow16BF16), grad: grad16}},
			peak: func(rounds int) float64 {
				peakBF16(uintptr(rounds))
				return float64(rounds) * peakChains * 32 * 2
			},
			bf16: &bf16AVX512,
		})
	}
	if cpu.X86.HasAVX512F {
		s := setAVX512()
		s.name, s.wino = AVX512Winograd, winogradAVX512()
		list = append(list, s, setAVX512())
	}
	if cpu.X86.HasAVX2 && cpu.X86.HasFMA {
		if cpu.X86.HasAVXVNNI {
			s := setAVX2()
			s.name, s.ints = AVXVNNI, intsAVXVNNI(intSums8AVXVNNI)
			list = append(list, s)
		}
		s := setAVX2()
		s.name, s.wino = AVX2Winograd, winogradAVX2()
		list = append(list, s, setAVX2())
	}
	return list
}

func setAVX512() isa {
	return isa{
		name: AVX512,
		blocks: []block{
			{width: 32, run: assembly(convRow32AVX512), grad: gradAssembly(gradRows32AVX512)},
			{width: 16, run: assembly(convRow16AVX512), grad: gradAssembly(gradRows16AVX512)},
		},
		peak: func(rounds int) float64 {
			peakAVX512(uintptr(rounds))
			return float64(rounds) * peakChains * 16 * 2
		},
	}
}

func setAVX2() isa {
	return isa{
		name:   AVX2,
		blocks: []block{{width: 16, run: assembly(convRow16AVX2), grad: gradAssembly(gradRows16AVX2)}, {width: 8, run: assembly(convRow8AVX2), grad: gradAssembly(gradRows8AVX2)}},
		peak: func(rounds int) float64 {
			peakAVX2(uintptr(rounds))
			return float64(rounds) * peakChains * 8 * 2
		},
	}
}

// amx returns the instruction set made of the four AMX kernels, by outputs and
// pixels. There is no peak: it would say nothing about a kernel that loads as often
// as it multiplies.
func amx(k16x16, k16x32, k32x16, k32x32 tileKernel) isa {
	return isa{
		name: AMX,
		blocks: []block{
			{width: 32, run: tileBlock(32, k32x16, k32x32, finishRow32), grad: gradAssembly(gradRows32AVX512)},
			{width: 16, run: tileBlock(16, k16x16, k16x32, finishRow16), grad: gradAssembly(gradRows16AVX512)},
		},
		bf16: &bf16AVX512,
	}
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
