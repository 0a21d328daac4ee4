//go:build amd64 && !purego

package cpu

import "unsafe"

// winogradSet makes winograd of generated kernels.
func winogradSet(lanes, tiles int, input func(v, tmp *float32, x *[6]*float32, n, channels, vs uintptr), blocks ...winogradBlock) *winograd {
	return &winograd{lanes: lanes, tiles: tiles, blocks: blocks, input: func(r *winogradBand, n int) {
		for k, x := range r.x {
			r.xPointer[k] = unsafe.SliceData(x)
		}
		input(unsafe.SliceData(r.v), unsafe.SliceData(r.tmp), &r.xPointer, uintptr(n), uintptr(r.stride), uintptr(4*(tiles*r.stride+winogradPad)))
	}}
}

func winogradAssembly(width int, products func(m, v, u *float32, channels uintptr),
	output func(y, res *[4]*float32, m, tmp, bias *float32, n, ys uintptr, floor float32)) winogradBlock {
	return winogradBlock{
		width: width,
		products: func(r *winogradBand) {
			products(unsafe.SliceData(r.m), unsafe.SliceData(r.v), unsafe.SliceData(r.u), uintptr(r.stride))
		},
		output: func(r *winogradBand, n int) {
			for k := range r.y {
				r.yPointer[k], r.resPointer[k] = unsafe.SliceData(r.y[k]), unsafe.SliceData(r.res[k])
			}
			res := &r.resPointer
			if r.res[0] == nil {
				res = nil
			}
			output(&r.yPointer, res, unsafe.SliceData(r.m), unsafe.SliceData(r.tmp), unsafe.SliceData(r.bias), uintptr(n), uintptr(4*r.ys), r.floor)
		},
	}
}

func winogradAVX2() *winograd {
	return winogradSet(8, 6, winogradInputAVX2,
		winogradAssembly(16, winogradProducts16AVX2, winogradOutput16AVX2), winogradAssembly(8, winogradProducts8AVX2, winogradOutput8AVX2))
}

func winogradAVX512() *winograd {
	return winogradSet(16, 8, winogradInputAVX512,
		winogradAssembly(32, winogradProducts32AVX512, winogradOutput32AVX512), winogradAssembly(16, winogradProducts16AVX512, winogradOutput16AVX512))
}
