//go:build amd64 && !purego

package cpu

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

const (
	tilePixels = 128 // of one call: the sums of 32 channels are 16 KB
	tileRow    = 32  // bf16 numbers in a row of a tile
)

// tileKernel is the form of the AMX kernels; see tileRow16x16.
type tileKernel func(config *[64]byte, x *[3]*uint32, w *uint32, sums *float32, tiles, rows, chunks, chunk, xs uintptr)

// finishKernel is the form of what follows them.
type finishKernel func(y, res, sums, bias *float32, n, ys uintptr, floor, slope float32)

// hasAMX tells whether the machine has AMX and the kernel lets this process use it.
func hasAMX() bool {
	return cpu.X86.HasAMXTile && cpu.X86.HasAMXBF16 && cpu.X86.HasAVX512F && cpu.X86.HasAVX512BF16 && allowAMX()
}

// tileBlock returns the row kernel of a block of width channels, 16 or 32, made of
// kernels for 16 and for 32 pixels.
//
// The taps of a row are cut into equal chunks of at most what a tile holds, and the
// pixels into tiles of 32. What is left of them is one smaller tile: the registers
// are configured for it, so that nothing outside the row is touched.
func tileBlock(width int, narrow, wide tileKernel, finish finishKernel) func(*row) {
	return func(r *row) {
		t := &r.tiles
		if t.sums == nil {
			t.sums = aligned[float32](tilePixels * 32)
		}
		chunk := tileChunk(r.taps)
		for p := 0; p < r.n; p += tilePixels {
			n := min(tilePixels, r.n-p)
			run := func(kernel tileKernel, at, tiles, first, second int) {
				t.configure(chunk, first, second)
				for i := range r.rows {
					r.pairPointer[i] = unsafe.SliceData(r.halfs[i][(p+at)*r.xs/2:])
				}
				kernel(&t.config, &r.pairPointer, unsafe.SliceData(r.pairs), unsafe.SliceData(t.sums[at*width:]),
					uintptr(tiles), uintptr(r.rows), uintptr(r.taps/chunk), uintptr(2*chunk), uintptr(2*r.xs))
			}
			full := n / 32
			if full > 0 {
				run(wide, 0, full, 16, 16)
			}
			switch rest := n - 32*full; {
			case rest > 16:
				run(wide, 32*full, 1, 16, rest-16)
			case rest > 0:
				run(narrow, 32*full, 1, rest, 0)
			}
			var res *float32
			if r.res != nil {
				res = unsafe.SliceData(r.res[p*r.ys:])
			}
			finish(unsafe.SliceData(r.y[p*r.ys:]), res, unsafe.SliceData(t.sums), unsafe.SliceData(r.bias), uintptr(n), uintptr(4*r.ys), r.floor, r.slope)
		}
	}
}

// tileChunk returns the largest even divisor of an even number of taps that fits
// into the row of a tile.
func tileChunk(taps int) int {
	c := min(taps, tileRow)
	for taps%c != 0 || c%2 != 0 {
		c--
	}
	return c
}

// configure describes the tile registers: sums 0 to 3, input 4 and 5 with a pixel in
// each row, weights 6 and 7 with a pair of taps in each row. Registers of no rows
// are not there.
func (t *tileScratch) configure(chunk, first, second int) {
	t.config = [64]byte{0: 1} // the only palette
	set := func(register, rows, bytes int) {
		if rows > 0 {
			t.config[16+2*register], t.config[48+register] = byte(bytes), byte(rows)
		}
	}
	set(0, first, 64)
	set(1, first, 64)
	set(2, second, 64)
	set(3, second, 64)
	set(4, first, 2*chunk)
	set(5, second, 2*chunk)
	set(6, chunk/2, 64)
	set(7, chunk/2, 64)
}
