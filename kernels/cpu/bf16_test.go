package cpu

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestRoundBF16 checks rounding against the two neighbours of a number.
func TestRoundBF16(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	up := func(n uint32) float64 { return float64(math.Float32frombits(n << 16)) }
	for range 100000 {
		bits := rng.Uint32()
		switch rng.IntN(4) {
		case 0: // a tie, and just beside it
			bits = bits&0xffff0000 | 0x8000 + uint32(rng.IntN(3)) - 1
		case 1: // near one
			bits = math.Float32bits(1) + bits>>9
		}
		v := math.Float32frombits(bits)
		got := roundBF16(v)
		low, high := bits>>16, bits>>16+1
		exponent := bits >> 23 & 0xff
		switch {
		case v != v:
			if g := up(got); g == g {
				t.Fatalf("NaN %#x gave %v", bits, g)
			}
		case exponent == 0:
			if got != bits>>16&0x8000 {
				t.Fatalf("subnormal %g gave %#x", v, got)
			}
		case got != low && got != high:
			t.Fatalf("%g (%#x) gave %#x, no neighbour", v, bits, got)
		case exponent < 0xfe:
			a, b := math.Abs(float64(v)-up(low)), math.Abs(float64(v)-up(high))
			if a < b && got != low || b < a && got != high || a == b && got&1 != 0 {
				t.Fatalf("%g (%#x) gave %#x of %#x and %#x", v, bits, got, low, high)
			}
		}
	}
	if got := roundBF16(math.MaxFloat32); got != 0x7f80 {
		t.Errorf("the largest number gave %#x, want infinity", got)
	}
}

// pairWeights is bf16.weights in plain Go.
func pairWeights(dst []uint32, src []float32, width int) {
	for i := range dst[:len(src)/2] {
		k, o := i/width, i%width
		dst[i] = roundBF16(src[2*k*width+o]) | roundBF16(src[(2*k+1)*width+o])<<16
	}
}

func randoms(seed uint64, n int) []float32 {
	rng := rand.New(rand.NewPCG(seed, 5))
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(rng.NormFloat64())
	}
	return v
}

// TestBF16Assembly: the instructions round as plain Go does, whatever lies where.
func TestBF16Assembly(t *testing.T) {
	for _, set := range available() {
		if set.bf16 == nil {
			continue
		}
		b := &Backend{set}
		rng := rand.New(rand.NewPCG(3, 4))
		random := func(n int) []float32 {
			v := make([]float32, n)
			for i := range v {
				v[i] = math.Float32frombits(rng.Uint32())
				if i%5 == 0 { // a tie
					v[i] = math.Float32frombits(math.Float32bits(v[i])&0xffff0000 | 0x8000)
				}
			}
			return v
		}
		for n := 0; n <= 200; n += 2 {
			src := random(n)
			got, want := make([]uint32, n/2+1), make([]uint32, n/2+1)
			b.isa.bf16.row(got, src)
			roundPairs(want, src)
			for i := range want {
				if got[i] != want[i] {
					t.Fatalf("%d numbers: pair %d of %g and %g is %#x, want %#x", n, i, src[2*i], src[2*i+1], got[i], want[i])
				}
			}
		}
		for _, width := range []int{16, 32} {
			for _, taps := range []int{2, 4, 36} {
				src := random(taps * width)
				got := make([]uint32, len(src)/2+1)
				b.isa.bf16.weights(got, src, width)
				want := make([]uint32, len(src)/2)
				pairWeights(want, src, width)
				for i, v := range want {
					if got[i] != v {
						t.Fatalf("width %d: pair %d, output %d is %#x, want %#x", width, i/width, i%width, got[i], v)
					}
				}
				if got[len(src)/2] != 0 {
					t.Fatal("wrote beyond the end")
				}
			}
		}
	}
}
