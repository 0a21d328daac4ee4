package noise

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestSlide4: four rows at once give the bits of one after the other, whatever their length.
func TestSlide4(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for w := range 40 {
		for half := range 12 {
			rows := make([]float32, 4*w)
			for i := range rows {
				rows[i] = float32(rng.NormFloat64()) * float32(int(1)<<rng.IntN(20))
			}
			got, want := make([]float32, 4*w), make([]float32, 4*w)
			slide4(got, rows, w, half)
			for y := range 4 {
				slide(want[y*w:][:w], rows[y*w:][:w], half)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("width %d, half %d: the means differ", w, half)
			}
		}
	}
}
