package cpu

import "math"

// bf16 is how an instruction set that multiplies bf16 numbers makes them.
//
// A bf16 is the upper half of a float32. Two of neighbouring channels are kept in a
// uint32, the first in the low half.
type bf16 struct {
	// row rounds len(src) numbers, a multiple of 2.
	row func(dst []uint32, src []float32)
	// weights rounds the weights of a block, [taps][width], to pairs of taps,
	// [taps/2][width]. taps is even.
	weights func(dst []uint32, src []float32, width int)
}

// roundBF16 rounds to the nearest number, ties to even. As the instructions do, it
// makes subnormal numbers zero and keeps a NaN one.
func roundBF16(v float32) uint32 {
	bits := math.Float32bits(v)
	switch exponent := bits >> 23 & 0xff; {
	case exponent == 0:
		return bits >> 16 & 0x8000
	case exponent == 0xff && bits<<9 != 0:
		return bits>>16 | 0x40
	}
	return (bits + 0x7fff + bits>>16&1) >> 16
}

// roundPairs is bf16.row in plain Go.
func roundPairs(dst []uint32, src []float32) {
	for i := range dst[:len(src)/2] {
		dst[i] = roundBF16(src[2*i]) | roundBF16(src[2*i+1])<<16
	}
}
