package noise

import (
	"fmt"
	"math"
	"sync"

	"github.com/diffdenoise/denoised/internal/numeric"
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
	flatShare  = 0.2     // share of the residuals of a bin, flattest first, that count
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
	// Correlation is how the noise of neighbouring pixels goes together. It is the
	// same all over the image.
	Correlation Correlation
}

type buffers struct {
	mean, tmp, vals, a, clean []float32
	blank                     []bool
	samples, flat             []sample
	keys, keys2               []uint64
	cells                     []float32 // residuals in units of the curve, by grid cell
	first                     []int     // where the cells begin
	gain, gain2, row          []float32
	sums                      []float64
	curve                     curve
	blocks                    []block
	blockMeans                []float32
	inside                    []bool
	places                    []place
	filters                   filters
}

// filters are the two residuals that the noise is measured with. Both are
// products of one difference along x and one along y.
type filters struct {
	near, far           int     // spacing of the second differences, pixels; far 0: fourth differences
	nearScale, farScale float32 // to the standard deviation of the noise
	preferFar           bool    // the far one sees less noise
	disagree            bool    // much less, so the correlation is another
}

// choose takes the finest filters that still see a good part of the noise. White
// noise is in all of them alike, and the finest see the least of the anatomy.
// Correlated noise is not in the finest ones.
func (b *buffers) choose(c Correlation) {
	second := []float64{1, -2, 1}
	if g := c.power(second, 1); g > 0.6*36 {
		b.filters = filters{near: 1, nearScale: float32(1 / math.Sqrt(g)),
			farScale: float32(1 / math.Sqrt(max(c.power([]float64{1, -4, 6, -4, 1}, 1), 0.05*4900)))}
		return
	}
	near := 1
	for near < 2 && c.power(second, near) < 0.1*36 {
		near++
	}
	b.filters = filters{near: near, far: near + 1,
		nearScale: float32(1 / math.Sqrt(max(c.power(second, near), 0.05*36))),
		farScale:  float32(1 / math.Sqrt(max(c.power(second, near+1), 0.05*36)))}
}

// power returns the variance, per variance of the noise, that a difference along
// both axes sees. Its taps lie step pixels apart.
func (c *Correlation) power(taps []float64, step int) float64 {
	var auto [5]float64 // autocorrelation of the taps
	for d := range len(taps) {
		for i := d; i < len(taps); i++ {
			auto[d] += taps[i] * taps[i-d]
		}
		if d > 0 {
			auto[d] *= 2 // both directions
		}
	}
	sum := 0.0
	for dy := range len(taps) {
		for dx := range len(taps) {
			sum += auto[dx] * auto[dy] * c.At(dx*step, dy*step)
		}
	}
	return sum
}

// sample is what the near and the far filter see at a pixel, scaled so that noise has
// its own standard deviation in both; what they are sorted by; and the cell of the
// spatial gain that the pixel lies in.
type sample struct {
	mean, grad, res, fine float32
	cell                  int32
}

var pool = sync.Pool{New: func() any { return new(buffers) }}

// Estimate measures the noise of a w×h image. Pixels with skip set (nil: none)
// are not looked at, nor are blank ones: areas of the image's least value, at
// least 3×3 pixels, which is what scanners and defacing leave of the air. The
// map has values there all the same, continued from the surroundings.
//
// An error means sizes that do not fit or a pixel that is not finite. It is
// safe for concurrent use and deterministic.
func Estimate(img []float32, w, h int, skip []bool) (*Map, error) {
	m := new(Map)
	if err := m.Estimate(img, w, h, skip); err != nil {
		return nil, err
	}
	return m, nil
}

func check(img []float32, w, h int, skip []bool) error {
	if w < 1 || h < 1 || w > maxPixels/h || len(img) != w*h || skip != nil && len(skip) != w*h {
		return fmt.Errorf("estimate noise of %d×%d pixels: %d values, %d mask values", w, h, len(img), len(skip))
	}
	for i, v := range img {
		if v-v != 0 && (skip == nil || !skip[i]) { // NaN or infinite
			return fmt.Errorf("estimate noise: pixel (%d, %d) is not finite", i%w, i/w)
		}
	}
	return nil
}

// Estimate is the function Estimate into the memory of m.
func (m *Map) Estimate(img []float32, w, h int, skip []bool) error {
	if err := check(img, w, h, skip); err != nil {
		return err
	}
	m.estimate(img, w, h, skip, Known{})
	return nil
}

// Known is what is known of the noise of an image otherwise; the zero value is nothing.
type Known struct {
	// Correlation is that of its series, which many slices tell better than one.
	Correlation *Correlation
	// Air is the standard deviation of the complex noise as Air found it; 0: not known.
	Air float32
}

// EstimateWith is Estimate with what is known otherwise.
func (m *Map) EstimateWith(k Known, img []float32, w, h int, skip []bool) error {
	if err := check(img, w, h, skip); err != nil {
		return err
	}
	m.estimate(img, w, h, skip, k)
	return nil
}

func (m *Map) estimate(img []float32, w, h int, skip []bool, known Known) {
	n := w * h
	m.Width, m.Height, m.Median, m.Sigma = w, h, 0, numeric.Grow(m.Sigma, n)
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	b.mean, b.a, b.blank = numeric.Grow(b.mean, n), numeric.Grow(b.a, n), numeric.Grow(b.blank, n)
	outside(b.blank, img, w, h, skip)
	if skip != nil {
		img = b.without(img, skip)
	}
	if known.Correlation != nil {
		m.Correlation = *known.Correlation
	} else {
		b.flatBlocks(img, w, h)
		m.Correlation = correlate(b.blocks, &b.vals)
	}
	b.choose(m.Correlation)
	b.collect(img, w, h)
	if len(b.samples) < minSamples {
		clear(m.Sigma)
		return
	}
	curve := b.signalCurve()
	if b.filters.disagree && known.Correlation == nil {
		// noise of the air that is not the noise of the signal
		m.Correlation = White()
		m.Correlation.Trust = 0
		b.choose(m.Correlation)
		b.collect(img, w, h)
		curve = b.signalCurve()
	}
	gain, gw, gh := b.spatialGain(curve, w, h)
	// A correlation that was found is evidence of noise; the residuals' spread does
	// not tell noise of a long one from anatomy.
	trust := float32(m.Correlation.Trust)
	if b.filters.far == 0 || trust < 1 && b.filters.near == 1 {
		trust = b.trust(curve, gain)
	}
	if trust == 0 {
		clear(m.Sigma)
		return
	}
	if known.Air > 0 {
		curve.fromAir(known.Air)
	} else {
		curve.toComplex()
	}
	curve.envelope()
	if b.filters.near > 1 {
		curve.level()
	}
	curve.index()
	for i := range gain {
		gain[i] *= trust
	}
	b.vals, b.row = b.vals[:0], numeric.Grow(b.row, gw+1)
	pick := 0 // every seventh pixel counts for the median
	for y := range h {
		gy := min(float32(y)/tile, float32(gh-1))
		y0 := min(int(gy), max(gh-2, 0))
		fy := gy - float32(y0)
		r0, r1 := gain[y0*gw:][:gw], gain[min(y0+1, gh-1)*gw:][:gw]
		for x := range r0 {
			b.row[x] = (1-fy)*r0[x] + fy*r1[x]
		}
		b.row[gw] = b.row[gw-1]
		mean, sigma := b.mean[y*w:][:w], m.Sigma[y*w:][:w]
		for x0 := 0; x0 < w; x0 += tile {
			g, slope := b.row[x0/tile], (b.row[x0/tile+1]-b.row[x0/tile])/tile
			for x := x0; x < min(x0+tile, w); x++ {
				sigma[x] = curve.at(mean[x]) * (g + slope*float32(x-x0))
			}
		}
		for ; pick < (y+1)*w; pick += 7 {
			if !b.blank[pick] {
				b.vals = append(b.vals, m.Sigma[pick])
			}
		}
	}
	if len(b.vals) > 0 {
		m.Median = float64(numeric.Nth(b.vals, len(b.vals)/2))
	}
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

// fine is the fourth difference.
var fine = [5]float32{1, -4, 6, -4, 1}

// collect computes the residuals, the local mean and the local gradient, and
// samples them where all that they need lies inside.
func (b *buffers) collect(img []float32, w, h int) {
	b.tmp = numeric.Grow(b.tmp, w)
	box3(b.mean, img, b.tmp, w, h) // 3×3 mean
	box3(b.a, b.mean, b.tmp, w, h) // and once more: the flatness looks at this
	f := &b.filters
	if f.far > 0 {
		// correlated noise is in the 3×3 mean nearly as in the image
		b.mean, b.a = b.a, b.mean
		box3(b.a, b.mean, b.tmp, w, h)
	}
	gw := (w+tile-1)/tile + 1
	b.samples = b.samples[:0]
	step := 1
	if n := w * h; n > 2*maxSamples {
		step = int(math.Sqrt(float64(n)/maxSamples)) | 1 // odd, so that no phase is favoured
	}
	margin := max(2, f.far)
	for y := margin; y < h-margin; y += step {
		row := y * w
		for x := margin; x < w-margin; x += step {
			i := row + x
			ok := true
			for j := i - w; j <= i+w && ok; j += w {
				ok = !b.blank[j-1] && !b.blank[j] && !b.blank[j+1]
			}
			if !ok {
				continue
			}
			r := second(img, i, w, f.near)
			q := float32(0)
			if f.far == 0 {
				for dy, ky := range fine {
					v := img[i+(dy-2)*w-2:][:5]
					q += ky * (v[0] - 4*v[1] + 6*v[2] - 4*v[3] + v[4])
				}
			} else {
				q = second(img, i, w, f.far)
			}
			gx, gy := b.a[i+2]-b.a[i-2], b.a[i+2*w]-b.a[i-2*w]
			cx, cy := b.a[i+2]-2*b.a[i]+b.a[i-2], b.a[i+2*w]-2*b.a[i]+b.a[i-2*w]
			s := sample{mean: b.mean[i], grad: gx*gx + gy*gy + cx*cx + cy*cy, res: r * f.nearScale,
				fine: q * f.farScale, cell: int32(y/tile*gw + x/tile)}
			if d := s.mean + s.grad + s.res + s.fine; d-d == 0 { // values near the end of the range overflow
				b.samples = append(b.samples, s)
			}
		}
	}
}

// second is the second difference along both axes, of pixels d apart.
func second(img []float32, i, w, d int) float32 {
	u, c, l := i-d*w, i, i+d*w
	return img[u-d] - 2*img[u] + img[u+d] - 2*(img[c-d]-2*img[c]+img[c+d]) + img[l-d] - 2*img[l] + img[l+d]
}

func abs(v float32) float32 { return float32(math.Abs(float64(v))) }

// robust returns the standard deviation of normal values whose absolute values
// are vals, which it reorders: the median, then a variance cut off at 1.5
// standard deviations, which quantised values do not upset.
func robust(vals []float32) float32 {
	if len(vals) == 0 {
		return 0
	}
	sg := float64(numeric.Nth(vals, len(vals)/2)) / 0.6745
	if sg == 0 {
		for _, v := range vals {
			sg += float64(v)
		}
		sg *= math.Sqrt(math.Pi/2) / float64(len(vals))
	}
	for range 4 {
		const cut, share = 1.5, 0.5515 // variance of a normal cut at ±1.5
		sum, n, limit := 0.0, 0, cut*sg
		for _, v := range vals {
			if f := float64(v); f <= limit {
				sum += f * f
				n++
			}
		}
		if n == 0 || sum == 0 {
			break
		}
		sg = math.Sqrt(sum / float64(n) / share)
	}
	return float32(sg)
}

// Outside marks the pixels that are not measured: skipped ones and blanked air,
// which is what Estimate leaves out. The marks are in dst if that is large
// enough; dst must not overlap skip.
func Outside(dst []bool, img []float32, w, h int, skip []bool) []bool {
	dst = numeric.Grow(dst, w*h)
	outside(dst, img, w, h, skip)
	return dst
}
