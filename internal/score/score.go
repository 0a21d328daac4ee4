// Package score measures how far an image is from its reference: [PSNR] and
// [SSIM], the two numbers of docs/quality.md, for whole images and for a marked
// part of them. Images are row major; both must have the same length.
package score

import "math"

// Constants of Wang, Bovik, Sheikh, Simoncelli 2004, section III-C.
const (
	ssimWindow = 11  // pixels across
	ssimSpread = 1.5 // standard deviation of the Gaussian weights, pixels
	ssimK1     = 0.01
	ssimK2     = 0.03
)

// MSE returns the mean squared difference of a and b, NaN if they are empty or
// of different length.
func MSE(a, b []float32) float64 {
	if len(a) != len(b) {
		return math.NaN()
	}
	sum := 0.0
	for i, v := range a {
		d := float64(v) - float64(b[i])
		sum += d * d
	}
	return sum / float64(len(a))
}

// PSNR returns 10 log10(rng²/MSE) in decibels, where rng is the range of the
// scale (1 if 1 stands for white). It is +Inf for equal images and NaN for
// empty images or images of different length.
func PSNR(a, b []float32, rng float64) float64 {
	return 10 * math.Log10(rng*rng/MSE(a, b))
}

// MSEIn is MSE over the pixels that are marked. It is NaN if none is, or if mask
// has another length.
func MSEIn(a, b []float32, mask []bool) float64 {
	if len(a) != len(b) || len(a) != len(mask) {
		return math.NaN()
	}
	sum, n := 0.0, 0
	for i, in := range mask {
		if in {
			d := float64(a[i]) - float64(b[i])
			sum, n = sum+d*d, n+1
		}
	}
	return sum / float64(n)
}

// PSNRIn is PSNR over the pixels that are marked, NaN where MSEIn is.
func PSNRIn(a, b []float32, mask []bool, rng float64) float64 {
	return 10 * math.Log10(rng*rng/MSEIn(a, b, mask))
}

// SSIM returns the mean structural similarity of Wang et al. 2004 (equation 13)
// of two w×h images: 11×11 circular Gaussian weights of spread 1.5, K1 = 0.01,
// K2 = 0.03, the mean taken over the positions where the window lies inside the
// image. An image smaller than the window uses the largest odd window that
// fits. The result lies in [-1, 1], 1 for equal images; it is NaN if the sizes
// do not fit.
func SSIM(a, b []float32, w, h int, rng float64) float64 {
	whole, _ := SSIMIn(a, b, nil, w, h, rng)
	return whole
}

// SSIMIn returns SSIM, and the mean over those positions alone whose middle pixel
// is marked: NaN if there is none, or if mask is nil. Both are NaN if the sizes do
// not fit.
func SSIMIn(a, b []float32, mask []bool, w, h int, rng float64) (whole, inside float64) {
	if w <= 0 || h <= 0 || len(a) != len(b) || w > len(a) || len(a) != w*h || mask != nil && len(mask) != len(a) {
		return math.NaN(), math.NaN()
	}
	size := ssimWindow
	for size > w || size > h {
		size -= 2
	}
	weights := gaussian(size)
	n := w * h
	planes := [5][]float64{}
	for i := range planes {
		planes[i] = make([]float64, n)
	}
	for i := range n {
		x, y := float64(a[i]), float64(b[i])
		planes[0][i], planes[1][i] = x, y
		planes[2][i], planes[3][i], planes[4][i] = x*x, y*y, x*y
	}
	tmp := make([]float64, n)
	for _, p := range planes {
		smooth(p, tmp, w, h, weights)
	}
	c1, c2 := ssimK1*rng*ssimK1*rng, ssimK2*rng*ssimK2*rng
	sum, in, marked := 0.0, 0.0, 0
	outW, outH := w-size+1, h-size+1
	for y := range outH {
		for x := range outW {
			i := y*w + x
			ma, mb := planes[0][i], planes[1][i]
			va, vb, cov := planes[2][i]-ma*ma, planes[3][i]-mb*mb, planes[4][i]-ma*mb
			s, den := 1.0, (ma*ma+mb*mb+c1)*(va+vb+c2)
			if den != 0 { // 0 is rng 0 and two black windows
				s = (2*ma*mb + c1) * (2*cov + c2) / den
			}
			sum += s
			if mask != nil && mask[(y+size/2)*w+x+size/2] {
				in, marked = in+s, marked+1
			}
		}
	}
	return sum / float64(outW*outH), in / float64(marked)
}

func gaussian(size int) []float64 {
	w, sum := make([]float64, size), 0.0
	for i := range w {
		d := float64(i - size/2)
		w[i] = math.Exp(-d * d / (2 * ssimSpread * ssimSpread))
		sum += w[i]
	}
	for i := range w {
		w[i] /= sum
	}
	return w
}

// smooth replaces p by its weighted window means; the value of the window whose
// first pixel is (x, y) is left at (x, y).
func smooth(p, tmp []float64, w, h int, weights []float64) {
	for y := range h {
		row := p[y*w : (y+1)*w]
		for x := 0; x+len(weights) <= w; x++ {
			s := 0.0
			for k, g := range weights {
				s += g * row[x+k]
			}
			tmp[y*w+x] = s
		}
	}
	for y := 0; y+len(weights) <= h; y++ {
		for x := 0; x+len(weights) <= w; x++ {
			s := 0.0
			for k, g := range weights {
				s += g * tmp[(y+k)*w+x]
			}
			p[y*w+x] = s
		}
	}
}
