//go:build cuda && linux

package cuda

import (
	"errors"
	"math"
)

// toHalf rounds to an IEEE half, to nearest and ties to even; what is too large becomes an infinity.
func toHalf(f float32) uint16 {
	bits := math.Float32bits(f)
	sign := uint16(bits >> 16 & 0x8000)
	bits &= 0x7fffffff
	switch {
	case bits > 0x7f800000: // NaN
		return sign | 0x7e00
	case bits >= 0x47800000: // 2¹⁶ and above
		return sign | 0x7c00
	case bits < 0x38800000: // below 2⁻¹⁴ halves have the step 2⁻²⁴, as floats have from 0.5 to 1
		sum := math.Float32frombits(bits) + 0.5
		return sign | uint16(math.Float32bits(sum)-math.Float32bits(0.5))
	}
	// The exponent's bias is 112 less; below the last bit that is kept are 13, half of which less one,
	// and that bit itself, are added to round.
	bits += 0x0fff + bits>>13&1 - 112<<23
	return sign | uint16(bits>>13)
}

// errRange is the error of numbers that are finite, and of which a network makes some that are not. On the
// CPU there is room for them.
var errRange = errors.New("values beyond the largest half, 65504")

// overflow returns errRange if a result is not finite though all that it was made of is.
func overflow(result []float32, inputs ...[]float32) error {
	if finite(result) {
		return nil
	}
	for _, in := range inputs {
		if !finite(in) {
			return nil
		}
	}
	return errRange
}

// finite is in the way of every image, so without branches: an exponent of ones, and no other, carries
// into the highest bit.
func finite(v []float32) bool {
	bits := uint32(0)
	for _, f := range v {
		bits |= math.Float32bits(f)&0x7f800000 + 0x00800000
	}
	return bits>>31 == 0
}
