package noise

import (
	"fmt"
	"math"
	"slices"
	"sync"
)

// Limits and settings of Estimate, found on the rows of docs/quality.md.
const (
	maxPixels  = 1 << 26 // of one image
	maxSamples = 1 << 16 // residuals that statistics are taken from
	minSamples = 48      // fewer residuals than this say nothing
	maxBins    = 24      // of the local mean
	perBin     = 400     // residuals per bin, at least
	tile       = 16      // spacing of the spatial gain's grid, pixels
	reach      = 32      // half the window of one grid point, pixels
	flatShare  = 0.4     // share of the residuals of a bin, flattest first, that count
	prior      = 60.     // residuals that the assumption "gain 1" weighs
	maxGain    = 4.      // spatial gain, and its inverse, at most
)

// Map is the noise of one image.
type Map struct {
	Width, Height int
	// Sigma is the standard deviation of the noise at each pixel, row major, in
	// the image's unit. It is finite and never negative; all zero means that
	// there is no noise that could be measured.
	Sigma []float32
	// Median is the median of Sigma over pixels that are neither skipped nor blank.
	Median float64
}

type buffers struct {
	mean, tmp, vals, a, clean []float32
	blank                     []bool
	samples                   []sample
}

// sample is one residual of the finest scale with what it is sorted by.
type sample struct{ mean, grad, res, fine, x, y float32 }

var pool = sync.Pool{New: func() any { return new(buffers) }}

func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// Estimate measures the noise of a w×h image. Pixels with skip set (nil: none)
// are not looked at, nor are blank ones: areas of the image's least value, at
// least 3×3 pixels, which is what scanners and defacing leave of the air. The
// map has values there all the same, continued from the surroundings.
//
// An error means sizes that do not fit or a pixel that is not finite. It is
// safe for concurrent use and deterministic.
func Estimate(img []float32, w, h int, skip []bool) (*Map, error) {
	if w < 1 || h < 1 || w > maxPixels/h || len(img) != w*h || skip != nil && len(skip) != w*h {
		return nil, fmt.Errorf("estimate noise of %d×%d pixels: %d values, %d mask values", w, h, len(img), len(skip))
	}
	for i, v := range img {
		if f := float64(v); (math.IsNaN(f) || math.IsInf(f, 0)) && (skip == nil || !skip[i]) {
			return nil, fmt.Errorf("estimate noise: pixel (%d, %d) is not finite", i%w, i/w)
		}
	}
	m := &Map{Width: w, Height: h, Sigma: make([]float32, w*h)}
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	n := w * h
	b.tmp, b.mean, b.a, b.blank = grow(b.tmp, n), grow(b.mean, n), grow(b.a, n), grow(b.blank, n)
	outside(b.blank, img, w, h, skip)
	if skip != nil {
		img = b.without(img, skip)
	}
	b.collect(img, w, h)
	if len(b.samples) < minSamples {
		return m, nil
	}
	curve := b.signalCurve()
	gain, gw, gh := b.spatialGain(curve, w, h)
	trust := b.trust(curve, gain, gw)
	curve.toComplex()
	b.vals = b.vals[:0]
	for y := range h {
		gy := min(float64(y)/tile, float64(gh-1))
		y0 := min(int(gy), max(gh-2, 0))
		fy := float32(gy - float64(y0))
		r0, r1 := gain[y0*gw:], gain[min(y0+1, gh-1)*gw:]
		for x := range w {
			gx := min(float32(x)/tile, float32(gw-1))
			x0 := min(int(gx), max(gw-2, 0))
			fx := gx - float32(x0)
			x1 := min(x0+1, gw-1)
			g := (1-fy)*((1-fx)*r0[x0]+fx*r0[x1]) + fy*((1-fx)*r1[x0]+fx*r1[x1])
			i := y*w + x
			m.Sigma[i] = curve.at(b.mean[i]) * g * trust
			if !b.blank[i] && i%7 == 0 {
				b.vals = append(b.vals, m.Sigma[i])
			}
		}
	}
	if len(b.vals) > 0 {
		slices.Sort(b.vals)
		m.Median = float64(b.vals[len(b.vals)/2])
	}
	return m, nil
}

// without returns img with the least measured value in skipped pixels.
func (b *buffers) without(img []float32, skip []bool) []float32 {
	least := float32(math.Inf(1))
	for i, v := range img {
		if !skip[i] {
			least = min(least, v)
		}
	}
	b.clean = append(b.clean[:0], img...)
	for i, s := range skip {
		if s {
			b.clean[i] = least
		}
	}
	return b.clean
}

// outside marks skipped and blank pixels.
func outside(mark []bool, img []float32, w, h int, skip []bool) {
	least := float32(math.Inf(1))
	for i, v := range img {
		mark[i] = skip != nil && skip[i]
		if !mark[i] {
			least = min(least, v)
		}
	}
	for y := 1; y < h-1; y++ {
		for x := 1; x < w-1; x++ {
			i := y*w + x
			if img[i] != least {
				continue
			}
			all := true
			for j := i - w; j <= i+w && all; j += w {
				all = img[j-1] == least && img[j] == least && img[j+1] == least
			}
			if all {
				for j := i - w; j <= i+w; j += w {
					mark[j-1], mark[j], mark[j+1] = true, true, true
				}
			}
		}
	}
}

// fine is the fourth difference: its square's sum is 70.
var fine = [5]float32{1, -4, 6, -4, 1}

// collect computes the finest diagonal residual, the local mean and the local
// gradient, and samples them where all that they need lies inside.
func (b *buffers) collect(img []float32, w, h int) {
	box3(b.mean, img, b.tmp, w, h) // 3×3 mean
	box3(b.a, b.mean, b.tmp, w, h) // and once more: the flatness looks at this
	b.samples = b.samples[:0]
	step := 1
	if n := w * h; n > 2*maxSamples {
		step = int(math.Sqrt(float64(n)/maxSamples)) | 1 // odd, so that no phase is favoured
	}
	for y := 2; y < h-2; y += step {
		row := y * w
		for x := 2; x < w-2; x += step {
			i := row + x
			ok := true
			for j := i - w; j <= i+w && ok; j += w {
				ok = !b.blank[j-1] && !b.blank[j] && !b.blank[j+1]
			}
			if !ok {
				continue
			}
			u, c, d := img[i-w-1:i-w+2], img[i-1:i+2], img[i+w-1:i+w+2]
			r := (u[0] - 2*u[1] + u[2] - 2*(c[0]-2*c[1]+c[2]) + d[0] - 2*d[1] + d[2]) / 6
			f := float32(0)
			for dy, ky := range fine {
				v := img[i+(dy-2)*w-2:][:5]
				f += ky * (v[0] - 4*v[1] + 6*v[2] - 4*v[3] + v[4])
			}
			gx, gy := b.a[i+2]-b.a[i-2], b.a[i+2*w]-b.a[i-2*w]
			b.samples = append(b.samples, sample{mean: b.mean[i], grad: gx*gx + gy*gy, res: r, fine: f / 70, x: float32(x), y: float32(y)})
		}
	}
}

// box3 sets dst to the 3×3 means of src, with the edge repeated.
func box3(dst, src, tmp []float32, w, h int) {
	for y := range h {
		s, t := src[y*w:(y+1)*w], tmp[y*w:(y+1)*w]
		for x := range t {
			t[x] = s[max(x-1, 0)] + s[x] + s[min(x+1, w-1)]
		}
	}
	for y := range h {
		u, c, d := tmp[max(y-1, 0)*w:], tmp[y*w:], tmp[min(y+1, h-1)*w:]
		o := dst[y*w : (y+1)*w]
		for x := range o {
			o[x] = (u[x] + c[x] + d[x]) * (1. / 9)
		}
	}
}

// curve is the noise as a function of the local mean, linear between points.
type curve struct{ mean, sigma []float32 }

func (c *curve) at(m float32) float32 {
	n := len(c.mean)
	if n == 0 {
		return 0
	}
	if m <= c.mean[0] {
		return c.sigma[0]
	}
	if m >= c.mean[n-1] {
		return c.sigma[n-1]
	}
	k, _ := slices.BinarySearch(c.mean, m)
	f := (m - c.mean[k-1]) / (c.mean[k] - c.mean[k-1])
	return c.sigma[k-1] + f*(c.sigma[k]-c.sigma[k-1])
}

func (b *buffers) signalCurve() *curve {
	s := b.samples
	slices.SortFunc(s, func(p, q sample) int { return cmp32(p.mean, q.mean) })
	bins := min(max(len(s)/perBin, 1), maxBins)
	c := &curve{}
	keep := s[:0:0]
	var weight []float32
	for k := range bins {
		part := s[len(s)*k/bins : len(s)*(k+1)/bins]
		slices.SortFunc(part, func(p, q sample) int { return cmp32(p.grad, q.grad) })
		flat := part[:max(int(float64(len(part))*flatShare), min(len(part), minSamples))]
		b.vals = b.vals[:0]
		mean := 0.0
		for _, p := range flat {
			b.vals = append(b.vals, abs(p.res))
			mean += float64(p.mean)
		}
		sg := robust(b.vals)
		for j, p := range flat {
			b.vals[j] = abs(p.fine)
		}
		sg = min(sg, robust(b.vals))
		mu := float32(mean / float64(len(flat)))
		keep = append(keep, flat...)
		// bins closer than the noise are sorted by the noise itself: they are one
		if n := len(c.mean); n > 0 && mu-c.mean[n-1] < max(sg, c.sigma[n-1]) {
			a, b := weight[n-1], float32(len(flat))
			c.sigma[n-1] = float32(math.Sqrt(float64((a*c.sigma[n-1]*c.sigma[n-1] + b*sg*sg) / (a + b))))
			c.mean[n-1] = (a*c.mean[n-1] + b*mu) / (a + b)
			weight[n-1] += b
			continue
		}
		c.mean, c.sigma, weight = append(c.mean, mu), append(c.sigma, sg), append(weight, float32(len(flat)))
	}
	if n := len(c.sigma); n >= 3 {
		o := slices.Clone(c.sigma)
		for k := range n {
			p, q, r := o[max(k-1, 0)], o[k], o[min(k+1, n-1)]
			c.sigma[k] = (p + 2*q + r) / 4
		}
	}
	b.samples = keep
	return c
}

// Tail of the residuals, their 90 % by their 50 % quantile: 2.44 for a normal
// distribution, 2.4 to 2.85 measured for every noise that the networks treat, 3.3
// and more where anatomy or correlated noise is all there is to see.
const tailNoise, tailAnatomy = 2.95, 3.25

// trust is 1 if the residuals in units of the estimate are spread like noise, 0
// if they are not: then nothing is known, and the image is to stay as it is.
func (b *buffers) trust(c *curve, gain []float32, gw int) float32 {
	b.vals = b.vals[:0]
	for _, p := range b.samples {
		if f := c.at(p.mean) * gain[int(p.y)/tile*gw+int(p.x)/tile]; f > 0 {
			b.vals = append(b.vals, abs(p.fine)/f)
		}
	}
	n := len(b.vals)
	if n < minSamples {
		return 0
	}
	slices.Sort(b.vals)
	if b.vals[n/2] == 0 {
		return 0
	}
	tail := b.vals[n*9/10] / b.vals[n/2]
	return min(max((tailAnatomy-tail)/(tailAnatomy-tailNoise), 0), 1)
}

// toComplex turns the spread of a magnitude, which is smaller where there is
// little signal (0.655 of it in air), into that of the real and imaginary parts.
// That is what the networks are trained with. Images whose darkest parts are not
// well above zero, measured by their noise, are no magnitudes and stay as they are.
func (c *curve) toComplex() {
	if len(c.mean) == 0 || c.mean[0] < 1.5*c.sigma[0] {
		return
	}
	for k, s := range c.sigma {
		if s > 0 {
			c.sigma[k] *= koay(c.mean[k] / s)
		}
	}
}

// koayTable is Koay and Basser, J. Magn. Reson. 179 (2006) 317, equations 17 to
// 19, inverted: mean by standard deviation of a Rician magnitude, and the factor
// from the latter to the standard deviation of the complex noise.
var koayTable = [...][2]float32{{1.913, 1.526}, {1.921, 1.443}, {1.996, 1.289}, {2.188, 1.167}, {2.485, 1.094},
	{2.859, 1.054}, {3.281, 1.034}, {4.199, 1.017}, {5.155, 1.011}, {8, 1}}

func koay(ratio float32) float32 {
	t := koayTable[:]
	if ratio <= t[0][0] {
		return t[0][1]
	}
	for k := 1; k < len(t); k++ {
		if ratio < t[k][0] {
			f := (ratio - t[k-1][0]) / (t[k][0] - t[k-1][0])
			return t[k-1][1] + f*(t[k][1]-t[k-1][1])
		}
	}
	return 1
}

func cmp32(a, b float32) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func abs(v float32) float32 { return float32(math.Abs(float64(v))) }

// robust returns the standard deviation of normal values whose absolute values
// are vals, which it reorders: the median, then a variance cut off at 1.5
// standard deviations, which quantised values do not upset.
func robust(vals []float32) float32 {
	if len(vals) == 0 {
		return 0
	}
	slices.Sort(vals)
	sg := float64(vals[len(vals)/2]) / 0.6745
	if sg == 0 {
		for _, v := range vals {
			sg += float64(v)
		}
		sg *= math.Sqrt(math.Pi/2) / float64(len(vals))
	}
	for range 4 {
		const cut, share = 1.5, 0.5515 // variance of a normal cut at ±1.5
		sum, n := 0.0, 0
		for _, v := range vals {
			if float64(v) > cut*sg {
				break
			}
			sum += float64(v) * float64(v)
			n++
		}
		if n == 0 || sum == 0 {
			break
		}
		sg = math.Sqrt(sum / float64(n) / share)
	}
	return float32(sg)
}

// spatialGain returns, on a grid, how much the noise differs from the curve.
func (b *buffers) spatialGain(c *curve, w, h int) ([]float32, int, int) {
	gw, gh := (w+tile-1)/tile+1, (h+tile-1)/tile+1
	cells := make([][]float32, gw*gh)
	for _, p := range b.samples {
		f := c.at(p.mean)
		if f <= 0 {
			continue
		}
		k := int(p.y)/tile*gw + int(p.x)/tile
		cells[k] = append(cells[k], abs(p.res)/f)
	}
	gain := make([]float32, gw*gh)
	for gy := range gh {
		for gx := range gw {
			b.vals = b.vals[:0]
			for y := max(gy-reach/tile, 0); y < min(gy+reach/tile, gh); y++ {
				for x := max(gx-reach/tile, 0); x < min(gx+reach/tile, gw); x++ {
					b.vals = append(b.vals, cells[y*gw+x]...)
				}
			}
			n := float64(len(b.vals))
			g := 1.0
			if n > 0 {
				g = min(max(float64(robust(b.vals)), 1/maxGain), maxGain)
			}
			gain[gy*gw+gx] = float32(math.Exp(math.Log(g) * n / (n + prior)))
		}
	}
	tmp, out := make([]float32, len(gain)), make([]float32, len(gain))
	box3(out, gain, tmp, gw, gh)
	return out, gw, gh
}

// Outside marks the pixels that are not measured: skipped ones and blanked air,
// which is what Estimate leaves out.
func Outside(img []float32, w, h int, skip []bool) []bool {
	mark := make([]bool, w*h)
	outside(mark, img, w, h, skip)
	return mark
}
