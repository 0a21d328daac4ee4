package noise

import (
	"fmt"
	"math"
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
		b.filters = filters{near: 1, nearScale: float32(1 / math.Sqrt(g)), farScale: float32(1 / math.Sqrt(max(c.power([]float64{1, -4, 6, -4, 1}, 1), 0.05*4900)))}
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
	m.Width, m.Height, m.Median, m.Sigma = w, h, 0, grow(m.Sigma, n)
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	b.mean, b.a, b.blank = grow(b.mean, n), grow(b.a, n), grow(b.blank, n)
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
	b.vals, b.row = b.vals[:0], grow(b.row, gw+1)
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
		m.Median = float64(nth(b.vals, len(b.vals)/2))
	}
}

// nth returns the value that would be at place k if v were sorted, and partitions
// v about it. NaN compare as nothing; there are none.
func nth(v []float32, k int) float32 {
	for lo, hi := 0, len(v)-1; lo < hi; {
		mid := lo + (hi-lo)/2
		// the median of three as pivot
		a, b, c := v[lo], v[mid], v[hi]
		p := max(min(a, b), min(max(a, b), c))
		i, j := lo, hi
		for i <= j {
			for v[i] < p {
				i++
			}
			for p < v[j] {
				j--
			}
			if i <= j {
				v[i], v[j] = v[j], v[i]
				i++
				j--
			}
		}
		switch {
		case k <= j:
			hi = j
		case k >= i:
			lo = i
		default:
			return v[k]
		}
	}
	return v[k]
}

// order fills b.keys with the samples' places in the order of their local mean,
// equal ones as they come.
func (b *buffers) order() []uint64 {
	n := len(b.samples)
	b.keys, b.keys2 = grow(b.keys, n), grow(b.keys2, n)
	var count [4][256]int
	for i, s := range b.samples {
		k := math.Float32bits(s.mean)
		if k>>31 == 1 {
			k = ^k
		} else {
			k |= 1 << 31
		}
		b.keys[i] = uint64(k)<<32 | uint64(i)
		for d := range count {
			count[d][k>>(8*d)&255]++
		}
	}
	for d := range count {
		sum := 0
		for i, c := range count[d] {
			count[d][i], sum = sum, sum+c
		}
		for _, k := range b.keys {
			at := &count[d][k>>(32+8*d)&255]
			b.keys2[*at] = k
			*at++
		}
		b.keys, b.keys2 = b.keys2, b.keys
	}
	return b.keys
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
	b.tmp = grow(b.tmp, w)
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
			s := sample{mean: b.mean[i], grad: gx*gx + gy*gy + cx*cx + cy*cy, res: r * f.nearScale, fine: q * f.farScale, cell: int32(y/tile*gw + x/tile)}
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

// box3 sets dst to the 3×3 means of src, with the edge repeated. tmp is one row.
func box3(dst, src, tmp []float32, w, h int) {
	tmp = tmp[:w]
	for y := range h {
		u, c, d := src[max(y-1, 0)*w:][:w], src[y*w:][:w], src[min(y+1, h-1)*w:][:w]
		for x := range tmp {
			tmp[x] = u[x] + c[x] + d[x]
		}
		o := dst[y*w:][:w]
		o[0] = (tmp[0] + tmp[0] + tmp[min(1, w-1)]) * (1. / 9)
		for x := 1; x < len(tmp)-1; x++ {
			o[x] = (tmp[x-1] + tmp[x] + tmp[x+1]) * (1. / 9)
		}
		if w > 1 {
			o[w-1] = (tmp[w-2] + tmp[w-1] + tmp[w-1]) * (1. / 9)
		}
	}
}

// curve is the noise as a function of the local mean, linear between points.
type curve struct {
	mean, sigma, weight, old []float32
	scale                    float32 // of a mean above the first point, into segment
	segment                  [256]uint8
}

// index prepares at; to be called after every change of the points.
func (c *curve) index() {
	n := len(c.mean)
	if n < 2 {
		return
	}
	c.scale = float32(len(c.segment)) / (c.mean[n-1] - c.mean[0])
	k := 1
	for i := range c.segment {
		for k < n-1 && c.mean[k] < c.mean[0]+float32(i)/c.scale {
			k++
		}
		c.segment[i] = uint8(k)
	}
}

func (c *curve) at(m float32) float32 {
	n := len(c.mean)
	switch {
	case n == 0:
		return 0
	case !(m > c.mean[0]):
		return c.sigma[0]
	case !(m < c.mean[n-1]):
		return c.sigma[n-1]
	}
	k := int(c.segment[min(max(int((m-c.mean[0])*c.scale), 0), len(c.segment)-1)])
	for k > 1 && m < c.mean[k-1] { // the table's entry may lie a rounding error beyond
		k--
	}
	for c.mean[k] < m {
		k++
	}
	f := (m - c.mean[k-1]) / (c.mean[k] - c.mean[k-1])
	return c.sigma[k-1] + f*(c.sigma[k]-c.sigma[k-1])
}

func (b *buffers) signalCurve() *curve {
	keys := b.order()
	bins := min(max(len(keys)/perBin, 1), maxBins)
	c := &b.curve
	c.mean, c.sigma, c.weight = c.mean[:0], c.sigma[:0], c.weight[:0]
	b.flat = b.flat[:0]
	var near, far float64
	for k := range bins {
		part := keys[len(keys)*k/bins : len(keys)*(k+1)/bins]
		// the flattest ones; where the last of them has equals, as they come
		n := max(int(float64(len(part))*flatShare), min(len(part), minSamples))
		b.vals = b.vals[:0]
		for _, key := range part {
			b.vals = append(b.vals, b.samples[uint32(key)].grad)
		}
		limit, below := nth(b.vals, n-1), 0
		for _, v := range b.vals[:n] {
			if v < limit {
				below++
			}
		}
		equal := n - below
		from := len(b.flat)
		mean := 0.0
		b.vals = b.vals[:0]
		for _, key := range part {
			p := b.samples[uint32(key)]
			if p.grad > limit {
				continue
			}
			if p.grad == limit {
				if equal == 0 {
					continue
				}
				equal--
			}
			b.flat = append(b.flat, p)
			b.vals = append(b.vals, abs(p.res))
			mean += float64(p.mean)
		}
		flat := b.flat[from:]
		sg := robust(b.vals)
		for j, p := range flat {
			b.vals[j] = abs(p.fine)
		}
		fine := robust(b.vals)
		near, far = near+float64(sg), far+float64(fine)
		sg = min(sg, fine)
		mu := float32(mean / float64(len(flat)))
		// bins closer than the noise are sorted by the noise itself: they are one
		if n := len(c.mean); n > 0 && mu-c.mean[n-1] < max(sg, c.sigma[n-1]) {
			a, b := c.weight[n-1], float32(len(flat))
			c.sigma[n-1] = float32(math.Sqrt(float64((a*c.sigma[n-1]*c.sigma[n-1] + b*sg*sg) / (a + b))))
			c.mean[n-1] = (a*c.mean[n-1] + b*mu) / (a + b)
			c.weight[n-1] += b
			continue
		}
		c.mean, c.sigma, c.weight = append(c.mean, mu), append(c.sigma, sg), append(c.weight, float32(len(flat)))
	}
	if n := len(c.sigma); n >= 3 && b.filters.near == 1 {
		c.old = append(c.old[:0], c.sigma...)
		for k := range n {
			p, q, r := c.old[max(k-1, 0)], c.old[k], c.old[min(k+1, n-1)]
			c.sigma[k] = (p + 2*q + r) / 4
		}
	}
	c.index()
	b.samples, b.flat = b.flat, b.samples
	// The map of the correlation may not hold here. The filters then disagree, and
	// the one that sees less is right.
	b.filters.preferFar = b.filters.far > 0 && far < near
	b.filters.disagree = b.filters.far > 0 && b.filters.near == 1 && far < 0.8*near
	return c
}

// Tail of the residuals, their 90 % by their 50 % quantile: 2.44 for a normal
// distribution, 2.4 to 2.85 measured for every noise that the networks treat, 3.3
// and more where anatomy or correlated noise is all there is to see.
const tailNoise, tailAnatomy = 2.95, 3.25

// trust is 1 if the residuals in units of the estimate are spread like noise, 0
// if they are not: then nothing is known, and the image is to stay as it is.
func (b *buffers) trust(c *curve, gain []float32) float32 {
	b.vals = b.vals[:0]
	for _, p := range b.samples {
		if f := c.at(p.mean) * gain[p.cell]; f > 0 {
			b.vals = append(b.vals, abs(p.fine)/f)
		}
	}
	n := len(b.vals)
	if n < minSamples {
		return 0
	}
	high := nth(b.vals, n*9/10)
	middle := nth(b.vals[:n*9/10], n/2)
	if middle == 0 {
		return 0
	}
	tail := high / middle
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

// fromAir is toComplex where the complex noise is known from the air: it is that of
// all that is dark.
func (c *curve) fromAir(sigma float32) {
	const bright = 3 // standard deviations, where magnitudes have the whole noise
	for k, m := range c.mean {
		if m < bright*sigma {
			c.sigma[k] = sigma
		}
	}
}

// envelope cuts off what anatomy adds in some bins. The variance of noise is a
// constant plus a part in proportion to the signal, or to its square; anatomy only
// adds to that, here more and there less. So the law is the one that runs along the
// lower bins, and none lies far above it.
func (c *curve) envelope() {
	const (
		least   = 5    // bins, fewer give no law
		lower   = 0.4  // share of the bins that lie below the law
		outside = 1.25 // times the law is what a bin may have
	)
	n := len(c.mean)
	if n < least || c.mean[0] < 0 {
		return
	}
	base := min(c.sigma[0], c.sigma[1])
	base *= base
	best, law := float32(math.Inf(1)), [2]float32{}
	for p := range 2 {
		power := func(m float32) float32 {
			if p == 1 {
				return m * m
			}
			return m
		}
		c.old = c.old[:0]
		for k := 1; k < n; k++ {
			c.old = append(c.old, max(c.sigma[k]*c.sigma[k]-base, 0)/power(c.mean[k]))
		}
		b := nth(c.old, int(lower*float64(len(c.old))))
		c.old = c.old[:0]
		for k := 1; k < n; k++ {
			c.old = append(c.old, abs(float32(math.Log(float64((c.sigma[k]*c.sigma[k]+1e-12*c.mean[n-1]*c.mean[n-1])/(base+b*power(c.mean[k])+1e-12*c.mean[n-1]*c.mean[n-1]))))))
		}
		if off := nth(c.old, len(c.old)/2); off < best {
			best, law[p], law[1-p] = off, b, 0
		}
	}
	for k, m := range c.mean {
		c.sigma[k] = min(c.sigma[k], outside*float32(math.Sqrt(float64(base+law[0]*m+law[1]*m*m))))
	}
}

// level holds the curve to the noise of the darker places. Noise of long
// correlation has the frequencies of anatomy, and in tissue cannot be told from it.
func (c *curve) level() {
	const most = 1.3
	heaviest := 0
	for k := range (len(c.weight) + 1) / 2 {
		if c.weight[k] > c.weight[heaviest] {
			heaviest = k
		}
	}
	base := c.sigma[heaviest]
	for k, s := range c.sigma {
		c.sigma[k] = min(s, most*base)
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

// RicianBias returns by how much the mean of a Rician magnitude exceeds the signal a,
// both in standard deviations of the complex noise: 1.253 without signal, 1/(2a) where
// there is much (Gudbjartsson and Patz, Magn. Reson. Med. 34 (1995) 910, equation 2).
// a is at least 0.
func RicianBias(a float64) float64 {
	const step = 1. / 16
	k := a / step
	if k >= float64(len(ricianBias)-1) {
		return 1 / (2 * a)
	}
	i := int(k)
	return ricianBias[i] + (k-float64(i))*(ricianBias[i+1]-ricianBias[i])
}

var ricianBias = func() (t [16*8 + 1]float64) {
	for i := range t {
		a := float64(i) / 16
		x := a * a / 4
		// sums of the series of exp(−x)·I0(x) and exp(−x)·I1(x)
		half := x / 2
		term, i0, i1 := math.Exp(-x), 0.0, 0.0
		for k := 0.; k < 80; k++ {
			i0 += term
			i1 += term * half / (k + 1)
			term *= half / (k + 1) * half / (k + 1)
		}
		t[i] = math.Sqrt(math.Pi/2)*((1+2*x)*i0+2*x*i1) - a
	}
	return t
}()

// RicianSignal is the inverse of a + RicianBias(a): the signal of which a magnitude has
// the given mean, both in standard deviations of the complex noise; 0 where the mean is
// no more than that of air.
func RicianSignal(mean float64) float64 {
	k := (mean - RicianBias(0)) / signalStep
	switch {
	case !(k > 0):
		return 0
	case k >= float64(len(ricianSignal)-1):
		return mean - 1/(2*mean)
	}
	i := int(k)
	return ricianSignal[i] + (k-float64(i))*(ricianSignal[i+1]-ricianSignal[i])
}

const signalStep = 1. / 64

var ricianSignal = func() (t [64*6 + 1]float64) {
	for i := range t {
		mean, low, high := RicianBias(0)+signalStep*float64(i), 0.0, 8.0
		for range 40 {
			if a := (low + high) / 2; a+RicianBias(a) > mean {
				high = a
			} else {
				low = a
			}
		}
		t[i] = low
	}
	return t
}()

func abs(v float32) float32 { return float32(math.Abs(float64(v))) }

// robust returns the standard deviation of normal values whose absolute values
// are vals, which it reorders: the median, then a variance cut off at 1.5
// standard deviations, which quantised values do not upset.
func robust(vals []float32) float32 {
	if len(vals) == 0 {
		return 0
	}
	sg := float64(nth(vals, len(vals)/2)) / 0.6745
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

// spatialGain returns, on a grid, how much the noise differs from the curve.
func (b *buffers) spatialGain(c *curve, w, h int) ([]float32, int, int) {
	gw, gh := (w+tile-1)/tile+1, (h+tile-1)/tile+1
	// sorted by cell, so that a row of a window is one piece
	b.first = grow(b.first, gw*gh+2)
	clear(b.first)
	for _, p := range b.samples {
		b.first[p.cell+2]++
	}
	for k := range gw * gh {
		b.first[k+2] += b.first[k+1]
	}
	b.cells = grow(b.cells, len(b.samples))
	for _, p := range b.samples {
		v := float32(-1) // where the curve is 0 there is nothing to compare
		if f := c.at(p.mean); f > 0 {
			v = abs(p.res) / f
			if b.filters.preferFar {
				v = abs(p.fine) / f
			}
		}
		b.cells[b.first[p.cell+1]] = v
		b.first[p.cell+1]++
	}
	b.gain, b.gain2 = grow(b.gain, gw*gh), grow(b.gain2, gw*gh)
	for gy := range gh {
		for gx := range gw {
			b.vals = b.vals[:0]
			for y := max(gy-reach/tile, 0); y < min(gy+reach/tile, gh); y++ {
				lo, hi := max(gx-reach/tile, 0), min(gx+reach/tile, gw)
				for _, v := range b.cells[b.first[y*gw+lo]:b.first[y*gw+hi]] {
					if v >= 0 {
						b.vals = append(b.vals, v)
					}
				}
			}
			n := float64(len(b.vals))
			g := 1.0
			if n > 0 {
				g = min(max(float64(robust(b.vals)), 1/maxGain), maxGain)
			}
			b.gain[gy*gw+gx] = float32(math.Exp(math.Log(g) * n / (n + prior)))
		}
	}
	b.tmp = grow(b.tmp, gw)
	box3(b.gain2, b.gain, b.tmp, gw, gh)
	return b.gain2, gw, gh
}

// Outside marks the pixels that are not measured: skipped ones and blanked air,
// which is what Estimate leaves out. The marks are in dst if that is large
// enough; dst must not overlap skip.
func Outside(dst []bool, img []float32, w, h int, skip []bool) []bool {
	dst = grow(dst, w*h)
	outside(dst, img, w, h, skip)
	return dst
}
