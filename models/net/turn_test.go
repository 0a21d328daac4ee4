package net

import (
	"slices"
	"testing"
)

func TestTurned(t *testing.T) {
	const w, h = 5, 3
	img := make([]float32, w*h)
	for i := range img {
		img[i] = float32(i)
	}
	seen := map[string]bool{}
	for turn := range 8 {
		got := Turned(img, w, h, turn)
		if !slices.Equal(Unturned(got, w, h, turn), img) {
			t.Errorf("position %d does not come back", turn)
		}
		key := ""
		for _, v := range got {
			key += string(rune('a' + int(v)))
		}
		seen[key] = true
	}
	if len(seen) != 8 {
		t.Errorf("%d positions, want 8", len(seen))
	}
	if got := Turned(img, w, h, 4)[1]; got != img[w] { // row 0, column 1 of the exchanged image
		t.Errorf("axes are not exchanged: %v", got)
	}
}
