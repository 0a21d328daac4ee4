package eval

import "math"

// Sizes of Tissue.
const (
	otsuBins    = 256
	closeRadius = 3    // pixels
	leastTissue = 0.02 // of an image
)

// Tissue marks what is not air in an image of 1 = 99.9th percentile: the pixels
// above Otsu's threshold (IEEE Trans. Syst. Man Cybern. 9 (1979) 62), closed with
// a disc of 3 pixels. It is nil if that is less than a fiftieth of the image, or
// if nothing in it differs.
func Tissue(px []float32, w, h int) []bool {
	var count [otsuBins]int
	bin := func(v float32) int { return int(min(max(v, 0), 1) * (otsuBins - 1)) }
	for _, v := range px {
		count[bin(v)]++
	}
	total, n := 0.0, float64(len(px))
	for b, c := range count {
		total += float64(b) * float64(c)
	}
	best, at := 0.0, -1
	below, sum := 0.0, 0.0 // pixels below the threshold, and the sum of their bins
	for b, c := range count[:otsuBins-1] {
		below, sum = below+float64(c), sum+float64(b)*float64(c)
		if below == 0 || below == n {
			continue
		}
		d := sum/below - (total-sum)/(n-below)
		if v := below * (n - below) * d * d; v > best {
			best, at = v, b
		}
	}
	if at < 0 {
		return nil
	}
	mask := make([]bool, len(px))
	for i, v := range px {
		mask[i] = bin(v) > at
	}
	mask = near(mask, w, h, closeRadius)
	for i := range mask {
		mask[i] = !mask[i]
	}
	mask = near(mask, w, h, closeRadius)
	in := 0
	for i := range mask {
		if mask[i] = !mask[i]; mask[i] {
			in++
		}
	}
	if float64(in) < leastTissue*n {
		return nil
	}
	return mask
}

// near marks the pixels with a marked one within the radius.
func near(mask []bool, w, h, radius int) []bool {
	out := make([]bool, len(mask))
	for dy := -radius; dy <= radius; dy++ {
		half := int(math.Sqrt(float64(radius*radius - dy*dy)))
		for y := max(0, -dy); y < min(h, h-dy); y++ {
			row, to := mask[(y+dy)*w:][:w], out[y*w:][:w]
			last := -half - 1 // the last marked pixel at or before x+half
			for x := range min(half, w) {
				if row[x] {
					last = x
				}
			}
			for x := range w {
				if x+half < w && row[x+half] {
					last = x + half
				}
				if last >= x-half && last >= 0 {
					to[x] = true
				}
			}
		}
	}
	return out
}
