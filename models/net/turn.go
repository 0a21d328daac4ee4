package net

// Turned returns a w×h image in one of eight positions: mirrored in x (bit 0) and in
// y (bit 1), then with its axes exchanged (bit 2), which makes it h×w.
func Turned(img []float32, w, h, turn int) []float32 {
	out := make([]float32, len(img))
	turns(w, h, turn, func(from, to int) { out[to] = img[from] })
	return out
}

// Unturned is the inverse of Turned; w and h are those of the result.
func Unturned(img []float32, w, h, turn int) []float32 {
	out := make([]float32, len(img))
	turns(w, h, turn, func(from, to int) { out[from] = img[to] })
	return out
}

func turns(w, h, turn int, f func(from, to int)) {
	for r := range h {
		for c := range w {
			x, y := c, r
			if turn&1 == 1 {
				x = w - 1 - x
			}
			if turn&2 == 2 {
				y = h - 1 - y
			}
			if turn&4 == 4 {
				f(r*w+c, x*h+y)
			} else {
				f(r*w+c, y*w+x)
			}
		}
	}
}
