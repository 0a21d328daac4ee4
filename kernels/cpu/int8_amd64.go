//go:build amd64 && !purego

package cpu

import "unsafe"

// intsAVX512 computes in integers with AVX512_VNNI.
var intsAVX512 = integers{
	lanes:    16,
	blocks:   []intBlock{{32, intAssembly(intRow32VNNI)}, {16, intAssembly(intRow16VNNI)}},
	quantize: quantizeAVX512,
	tail:     func() isa { return isa{blocks: []block{{width: 4, run: assembly(dotRow4AVX512), lanes: 16}}} },
}

// intAssembly adapts a generated kernel. The caller has checked the bounds.
func intAssembly(kernel func(y, res *float32, w *int8, offsets *int32, channels *float32, x *[3]*uint8, scales *[3]*float32, tiles, taps, xs, ys uintptr, floor float32)) func(*intRow) {
	return func(r *intRow) {
		for i := range r.x {
			r.bytePointer[i], r.scalePointer[i] = unsafe.SliceData(r.x[i]), unsafe.SliceData(r.scales[i])
		}
		kernel(unsafe.SliceData(r.y), unsafe.SliceData(r.res), unsafe.SliceData(r.w), unsafe.SliceData(r.offsets), unsafe.SliceData(r.channels),
			&r.bytePointer, &r.scalePointer, uintptr(r.tiles), uintptr(3*r.stride), uintptr(r.stride), uintptr(4*r.ys), r.floor)
	}
}

// sumsKernel is the form of intSums8AVXVNNI.
type sumsKernel func(sums *int32, w *int8, offsets *int32, x *[3]*uint8, tiles, taps, xs uintptr)

// sumsTiles is how many tiles intSums8AVXVNNI makes before intFinish8AVX2 reads the
// sums: 5 KB.
const sumsTiles = 8

// intsAVXVNNI computes in integers with AVX-VNNI and AVX2.
func intsAVXVNNI(kernel sumsKernel) *integers {
	return &integers{
		lanes:  8,
		blocks: []intBlock{{8, sumsBlock(kernel)}},
		quantize: func(q *quantizeRow) {
			quantizeRowAVX2(unsafe.SliceData(q.dst), unsafe.SliceData(q.scales), unsafe.SliceData(q.src), uintptr(q.groups), uintptr(q.channels),
				float32(q.top), float32(roundMagic+q.zero))
		},
		tail: setAVX2,
	}
}

// sumsBlock returns the row kernel for 8 channels.
func sumsBlock(kernel sumsKernel) func(*intRow) {
	return func(r *intRow) {
		if r.sums == nil {
			r.sums = aligned[int32](sumsTiles * tileColumns * 3 * 8)
		}
		for t := 0; t < r.tiles; t += sumsTiles {
			n := min(sumsTiles, r.tiles-t)
			for k := range r.x {
				r.bytePointer[k] = unsafe.SliceData(r.x[k][t/2*groupPixels*r.stride:])
				r.scalePointer[k] = unsafe.SliceData(r.scales[k][t:])
			}
			kernel(unsafe.SliceData(r.sums), unsafe.SliceData(r.w), unsafe.SliceData(r.offsets), &r.bytePointer, uintptr(n), uintptr(3*r.stride), uintptr(r.stride))
			var res *float32
			if r.res != nil {
				res = unsafe.SliceData(r.res[t*tileColumns*r.ys:])
			}
			intFinish8AVX2(unsafe.SliceData(r.y[t*tileColumns*r.ys:]), res, unsafe.SliceData(r.sums), unsafe.SliceData(r.channels), &r.scalePointer,
				uintptr(n), uintptr(4*r.ys), r.floor)
		}
	}
}

func quantizeAVX512(q *quantizeRow) {
	quantizeRowAVX512(unsafe.SliceData(q.dst), unsafe.SliceData(q.scales), unsafe.SliceData(q.src), uintptr(q.groups), uintptr(q.channels),
		float32(q.top), float32(roundMagic+q.zero))
}
