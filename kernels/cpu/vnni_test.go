//go:build amd64 && !purego && !race

package cpu

import (
	"fmt"
	"testing"
	"unsafe"

	"golang.org/x/sys/cpu"

	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// interpretedSums runs the code of intSums8AVXVNNI within exactly the memory that its
// contract names, so that it is tested where there is no AVX-VNNI.
func interpretedSums(sums *int32, w *int8, offsets *int32, x *[3]*uint8, tiles, taps, xs uintptr) {
	m := new(machine)
	give(m, x, 8*len(x), false)
	for _, p := range x {
		n := (tiles/2*groupPixels + tiles%2*(tileColumns+2)) * xs
		give(m, p, int(n), false)
	}
	give(m, w, int(3*taps*8), false)
	give(m, offsets, 3*8*4, false)
	give(m, sums, int(tiles*tileColumns*3*8*4), true)
	code := unsafe.Slice(sumsCode(), 4096) // RET is well before that
	if err := m.call(code, address(sums), address(w), address(offsets), address(x), uint64(tiles), uint64(taps),
		uint64(xs)); err != nil {
		panic(fmt.Errorf("AVX-VNNI kernel: %w", err))
	}
}

// interpretedVNNI is the set of AVX-VNNI with its kernel interpreted.
func interpretedVNNI(t *testing.T) *Backend {
	if !cpu.X86.HasAVX2 || !cpu.X86.HasFMA {
		t.Skip("no AVX2, which AVX-VNNI comes with")
	}
	s := setAVX2()
	s.name, s.ints = AVXVNNI, intsAVXVNNI(interpretedSums)
	return &Backend{s}
}

// TestAVXVNNI holds the machine code of AVX-VNNI to all that the other kernels of
// integers are.
func TestAVXVNNI(t *testing.T) {
	b := interpretedVNNI(t)
	t.Run("Row", func(t *testing.T) { testIntRows(t, b.isa.ints, 8, 24, 32, 1024) })
	t.Run("Quantize", func(t *testing.T) { testQuantize(t, b.isa.ints) })
	t.Run("Agree", func(t *testing.T) { testIntsAgree(t, b.isa) })
	t.Run("Backend", func(t *testing.T) { kernelstest.Run(t, b, kernelstest.Int8) })
	t.Run("Strips", func(t *testing.T) { testStrips(t, b) })
}
