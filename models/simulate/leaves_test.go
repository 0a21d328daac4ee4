package simulate

import (
	"slices"
	"testing"
)

// TestLeaves: images of any size are within 0 and 1, reach 1, follow the seed, differ among
// themselves, and are mostly even: neighbours are alike far more often than not.
func TestLeaves(t *testing.T) {
	for _, size := range [][2]int{{1, 1}, {7, 64}, {96, 96}, {160, 130}} {
		w, h := size[0], size[1]
		bodies := 0
		for seed := range uint64(8) {
			img := Leaves(w, h, newRand(seed))
			if len(img) != w*h || !slices.Equal(img, Leaves(w, h, newRand(seed))) {
				t.Fatalf("%d×%d: %d values, or not those of the seed", w, h, len(img))
			}
			if least, most := slices.Min(img), slices.Max(img); !(least >= 0 && most <= 1) || w > 1 && most < 1 {
				t.Errorf("%d×%d, seed %d: values from %g to %g", w, h, seed, least, most)
			}
			if w < 96 {
				continue
			}
			if slices.Equal(img, Leaves(w, h, newRand(seed+100))) {
				t.Errorf("seeds %d and %d give one image", seed, seed+100)
			}
			edges, dark := 0, 0
			for i, v := range img {
				if i%w > 0 && max(v-img[i-1], img[i-1]-v) > 0.1 {
					edges++
				}
				if v == 0 {
					dark++
				}
			}
			if edges > len(img)/4 {
				t.Errorf("%d×%d, seed %d: %d edges in %d pixels", w, h, seed, edges, len(img))
			}
			if dark > len(img)/8 {
				bodies++
			}
		}
		if w >= 96 && (bodies == 0 || bodies == 8) {
			t.Errorf("%d×%d: %d of 8 are bodies in air", w, h, bodies)
		}
	}
}
