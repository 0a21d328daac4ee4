package eval

import (
	"math"
	"slices"
)

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
	return closed(px, w, h, func(v float32) bool { return bin(v) > at })
}

// signal marks what is not air in an image without noise: the pixels above a tenth of
// its 99.9th percentile, closed as Tissue does it; nil if that is hardly anything.
func signal(px []float32, w, h int) []bool {
	least := leastSignal * percentile(px)
	return closed(px, w, h, func(v float32) bool { return v > least })
}

// leastSignal is the share of the 99.9th percentile above which there is tissue.
const leastSignal = 0.1

// percentile is the 99.9th.
func percentile(px []float32) float32 {
	sorted := slices.Sorted(slices.Values(px))
	return sorted[int(0.999*float64(len(px)-1))]
}

// closed marks the pixels that are in, closed with a disc of 3 pixels; nil if they are
// less than a fiftieth of the image.
func closed(px []float32, w, h int, in func(float32) bool) []bool {
	mask := make([]bool, len(px))
	for i, v := range px {
		mask[i] = in(v)
	}
	mask = near(mask, w, h, closeRadius)
	for i := range mask {
		mask[i] = !mask[i]
	}
	mask = near(mask, w, h, closeRadius)
	for i := range mask {
		mask[i] = !mask[i]
	}
	if float64(count(mask)) < leastTissue*float64(len(px)) {
		return nil
	}
	return mask
}

func count(mask []bool) (n int) {
	for _, in := range mask {
		if in {
			n++
		}
	}
	return n
}

// Shares of the tissue.
const (
	edgeShare = 0.1 // where the reference is steepest
	flatShare = 0.5 // where it is least steep
)

// edges marks the steepest tenth of the tissue of a reference, and the flattest half, by
// Sobel's gradient.
func edges(ref []float32, mask []bool, w, h int) (edge, flat []bool) {
	edge, flat = make([]bool, len(ref)), make([]bool, len(ref))
	steep := make([]float32, len(ref))
	var inside []float32
	for y := 1; y < h-1; y++ {
		for x := 1; x < w-1; x++ {
			i := y*w + x
			if !mask[i] {
				continue
			}
			at := func(dx, dy int) float32 { return ref[i+dy*w+dx] }
			gx := at(1, -1) + 2*at(1, 0) + at(1, 1) - at(-1, -1) - 2*at(-1, 0) - at(-1, 1)
			gy := at(-1, 1) + 2*at(0, 1) + at(1, 1) - at(-1, -1) - 2*at(0, -1) - at(1, -1)
			steep[i] = gx*gx + gy*gy
			inside = append(inside, steep[i])
		}
	}
	if len(inside) == 0 {
		return edge, flat
	}
	slices.Sort(inside)
	low, high := inside[int(flatShare*float64(len(inside)-1))], inside[int((1-edgeShare)*float64(len(inside)-1))]
	for y := 1; y < h-1; y++ {
		for x := 1; x < w-1; x++ {
			i := y*w + x
			edge[i], flat[i] = mask[i] && steep[i] > high, mask[i] && steep[i] <= low
		}
	}
	return edge, flat
}

// saturated marks the pixels that are at the least or the greatest value of their image.
func saturated(marked []bool, px []float32) {
	least, most := slices.Min(px), slices.Max(px)
	for i, v := range px {
		marked[i] = marked[i] || v == least || v == most
	}
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
