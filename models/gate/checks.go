package gate

import (
	"math"
	"slices"
)

// longRun is the sum of the correlation: the variance of the mean of many pixels is
// that times the variance by their number.
func (s *scratch) longRun() float64 { return s.correlationSum(func(r float64) float64 { return r }) }

// correlationSum is the sum of f(correlation) over all lags.
func (s *scratch) correlationSum(f func(float64) float64) float64 {
	sum := 0.0
	for dy := -reach; dy <= reach; dy++ {
		for dx := -reach; dx <= reach; dx++ {
			sum += f(s.rho.At(dx, dy))
		}
	}
	return sum
}

const reach = 4 // of the correlation, pixels

const (
	classes = 8    // of tissue, by its signal
	air     = 0.08 // of the greatest signal, below it there is no tissue

	faint      = 6    // signal of a class, in standard deviations of the noise
	unsureLift = 0.15 // standard deviations of the noise
)

// means compares the mean signal of tissue classes before and after, less four times
// what chance can do. The class of a pixel is that of the pixels around it: its own
// result holds some of its noise, and would sort what is too bright by chance into the
// bright classes.
func (s *scratch) means(in Input) Result {
	c := Result{Name: CheckMean, Limit: limitMean, X: -1, Y: -1}
	s.around(in.After)
	s.vals = s.vals[:0]
	for i := 0; i < len(s.low); i += 3 {
		if !s.lost[i] {
			s.vals = append(s.vals, s.low[i])
		}
	}
	if len(s.vals) < 8 {
		return c
	}
	top := nth(s.vals, len(s.vals)*995/1000)
	k := 0
	for _, v := range s.vals {
		if v > air*top {
			s.vals[k] = v
			k++
		}
	}
	if s.vals = s.vals[:k]; k < classes {
		return c
	}
	slices.Sort(s.vals)
	var bounds [classes - 1]float32
	for j := range bounds {
		bounds[j] = s.vals[k*(j+1)/classes]
	}
	var r, signal, variance, square, n [classes]float64
	for i, v := range s.low {
		if s.lost[i] || v <= air*top {
			continue
		}
		j := 0
		for j < len(bounds) && v >= bounds[j] {
			j++
		}
		d := float64(in.Before[i] - in.After[i])
		r[j], square[j], n[j] = r[j]+d, square[j]+d*d, n[j]+1
		signal[j] += float64(in.After[i])
		variance[j] += float64(in.Noise.Sigma[i]) * float64(in.Noise.Sigma[i])
	}
	for j := range r {
		if signal[j] > 0 {
			// where the map is too low, the scatter itself tells
			scatter := max(variance[j], square[j]-r[j]*r[j]/n[j])
			chance := math.Sqrt(scatter*max(s.longRun(), 0.2)) / signal[j]
			shift := math.Abs(r[j])/signal[j] - 4*chance
			if noise := math.Sqrt(variance[j] * n[j]); signal[j] < faint*noise {
				// what noise lifts a magnitude by is not known any better
				shift -= unsureLift * noise / signal[j]
			}
			c.Value = max(c.Value, shift)
		}
	}
	return c
}

// around sets s.low to the means of img over the 9×9 pixels around each but the 5×5
// next to it, without those that are no measurement; 0 where there is none, and where
// more than a few of them are air: there the image tells the signal of neither.
func (s *scratch) around(img []float32) {
	const outer, inner = 4, 2
	n := s.w * s.h
	s.low, s.high, s.tmp, s.ring = grow(s.low, n), grow(s.high, n), grow(s.tmp, n), grow(s.ring, n)
	ring := func(dst []float32, f func(i int) float32) {
		for i := range dst {
			s.tmp[i] = f(i)
		}
		s.sum(dst, s.tmp, outer)
		s.sum(s.ring, s.tmp, inner)
		for i, v := range s.ring {
			dst[i] -= v
		}
	}
	ring(s.high, func(i int) float32 { // measured
		if s.lost[i] {
			return 0
		}
		return 1
	})
	ring(s.low, func(i int) float32 {
		if s.lost[i] {
			return 0
		}
		return img[i]
	})
	for i, count := range s.high {
		if count < 0.5 {
			s.low[i] = 0
		} else {
			s.low[i] /= count
		}
	}
	const few = 0.2
	ring(s.high, func(i int) float32 { // air that is too much
		switch {
		case s.lost[i]:
			return 0
		case s.skip[i]:
			return 1 - few
		}
		return -few
	})
	for i, more := range s.high {
		if more > 0 {
			s.low[i] = 0
		}
	}
}

// sum sets dst to the sums of src over windows of 2·half+1 pixels a side, as far as they
// lie in the image. They slide in double precision.
func (s *scratch) sum(dst, src []float32, half int) {
	w, h := s.w, s.h
	s.sums = grow(s.sums, w)
	clear(s.sums)
	for y := -half; y < h; y++ {
		if in := y + half; in < h {
			for x, v := range src[in*w:][:w] {
				s.sums[x] += float64(v)
			}
		}
		if out := y - half - 1; out >= 0 {
			for x, v := range src[out*w:][:w] {
				s.sums[x] -= float64(v)
			}
		}
		if y < 0 {
			continue
		}
		a := 0.0
		for x := -half; x < w; x++ {
			if in := x + half; in < w {
				a += s.sums[in]
			}
			if out := x - half - 1; out >= 0 {
				a -= s.sums[out]
			}
			if x >= 0 {
				dst[y*w+x] = float32(a)
			}
		}
	}
}

// smooth sets s.low to the 3×3 means of img, with skipped pixels left out.
func (s *scratch) smooth(img []float32) {
	w, h := s.w, s.h
	s.low = grow(s.low, w*h)
	for y := range h {
		for x := range w {
			if i := y*w + x; !s.near[i] {
				u, c, d := img[i-w-1:i-w+2], img[i-1:i+2], img[i+w-1:i+w+2]
				s.low[i] = (u[0] + u[1] + u[2] + c[0] + c[1] + c[2] + d[0] + d[1] + d[2]) / 9
				continue
			}
			sum, n := float32(0), float32(0)
			for v := max(y-1, 0); v <= min(y+1, h-1); v++ {
				for u := max(x-1, 0); u <= min(x+1, w-1); u++ {
					if !s.skip[v*w+u] {
						sum, n = sum+img[v*w+u], n+1
					}
				}
			}
			s.low[y*w+x] = 0
			if n > 0 {
				s.low[y*w+x] = sum / n
			}
		}
	}
}

// offset is a place in half relative to another.
type offset struct{ x, y int }

// spread returns the standard deviation of the sum of half over a shape.
func (s *scratch) spread(shape []offset) float64 {
	// covariance of two sums of 2×2 pixels
	var cov [reach + 1][reach + 1]float64
	for dy := range cov {
		for dx := range cov[dy] {
			for y := -1; y <= 1; y++ {
				for x := -1; x <= 1; x++ {
					cov[dy][dx] += float64((2-x*x)*(2-y*y)) * s.rho.At(2*dx+x, 2*dy+y)
				}
			}
		}
	}
	sum := 0.0
	for _, a := range shape {
		for _, b := range shape {
			if dx, dy := max(a.x-b.x, b.x-a.x), max(a.y-b.y, b.y-a.y); dx <= reach && dy <= reach {
				sum += cov[dy][dx]
			}
		}
	}
	return math.Sqrt(max(sum, 0.05*4*float64(len(shape))))
}

// Settings of the scans.
const (
	leastSpread = 0.7  // of a scan's own spread, in what noise has: a denoiser takes off less
	mostSpread  = 1.25 // and more is for the check of the strength
	leastInside = 0.9  // share of a shape that is looked at
)

// outlier returns the greatest of the sums t over a shape in units of their own
// spread, which a denoiser that leaves some of the noise makes smaller, and where.
func (s *scratch) outlier(c *Result, t []float32, spread float64) {
	s.vals = s.vals[:0]
	for i := 0; i < len(t); i += 3 {
		if v := t[i]; v == v {
			s.vals = append(s.vals, max(v, -v))
		}
	}
	if len(s.vals) < 16 {
		return
	}
	own := float64(nth(s.vals, len(s.vals)/2)) / 0.6745 / spread
	scale := float32(1 / (spread * min(max(own, leastSpread), mostSpread)))
	for i, v := range t {
		if v = max(v, -v) * scale; float64(v) > c.Value { // NaN is not
			c.Value, c.X, c.Y = float64(v), i%s.hw*2, i/s.hw*2
		}
	}
}

// spots scans squares of 4, 8 and 16 pixels a side.
func (s *scratch) spots() Result {
	c := Result{Name: CheckSpot, Limit: limitSpot, X: -1, Y: -1}
	hw, hh := s.hw, s.hh
	// sums over all that is above and to the left, of values and of pixels
	s.sums = grow(s.sums, 2*(hw+1)*(hh+1))
	sum, count := s.sums[:(hw+1)*(hh+1)], s.sums[(hw+1)*(hh+1):]
	clear(sum[:hw+1])
	clear(count[:hw+1])
	for y := range hh {
		a, n := 0.0, 0.0
		i := (y + 1) * (hw + 1)
		sum[i], count[i] = 0, 0
		for x := range hw {
			a, n = a+float64(s.half[y*hw+x]), n+float64(s.inside[y*hw+x])
			sum[i+x+1], count[i+x+1] = sum[i+x-hw]+a, count[i+x-hw]+n
		}
	}
	s.tmp = grow(s.tmp, hw*hh)
	for _, side := range []int{2, 4, 8} {
		if side > hw || side > hh {
			break
		}
		var shape []offset
		for y := range side {
			for x := range side {
				shape = append(shape, offset{x, y})
			}
		}
		for i := range s.tmp {
			s.tmp[i] = float32(math.NaN())
		}
		need := leastInside * float64(4*side*side)
		for y := range hh - side + 1 {
			for x := range hw - side + 1 {
				i, j := y*(hw+1)+x, (y+side)*(hw+1)+x
				if count[j+side]-count[j]-count[i+side]+count[i] >= need {
					s.tmp[y*hw+x] = float32(sum[j+side] - sum[j] - sum[i+side] + sum[i])
				}
			}
		}
		s.outlier(&c, s.tmp, s.spread(shape))
	}
	return c
}

// lineLength is the length of the lines that are scanned for, in pixels of half.
const lineLength = 9

// directions are the directions of the lines, in halves of a pixel per step.
var directions = []offset{{2, 0}, {2, 1}, {2, 2}, {1, 2}, {0, 2}, {-1, 2}, {-2, 2}, {-2, 1}}

// lines scans lines 2 pixels wide and 18 long in eight directions.
func (s *scratch) lines() Result {
	c := Result{Name: CheckLine, Limit: limitLine, X: -1, Y: -1}
	hw, hh := s.hw, s.hh
	s.tmp = grow(s.tmp, hw*hh)
	const arm = lineLength / 2
	if hw <= 2*arm || hh <= 2*arm {
		return c
	}
	for _, d := range directions {
		var shape []offset
		var steps [lineLength]int
		for k := -arm; k <= arm; k++ {
			o := offset{(k*d.x + 16) / 2, (k*d.y + 16) / 2} // rounded down, k·d + 16 > 0
			o.x, o.y = o.x-8, o.y-8
			shape = append(shape, o)
			steps[k+arm] = o.y*hw + o.x
		}
		for i := range s.tmp {
			s.tmp[i] = float32(math.NaN())
		}
		for y := arm; y < hh-arm; y++ {
			for x := arm; x < hw-arm; x++ {
				i := y*hw + x
				if s.inside[i] < 4 || s.inside[i+steps[0]] < 4 || s.inside[i+steps[lineLength-1]] < 4 {
					continue
				}
				sum := float32(0)
				for _, o := range steps {
					sum += s.half[i+o]
				}
				s.tmp[i] = sum
			}
		}
		s.outlier(&c, s.tmp, s.spread(shape))
	}
	return c
}

// window is the side of the windows that strengths are compared in, pixels.
const window = 16

// strength is the root mean square of what was taken off, in windows, less what
// chance can add, against the noise.
func (s *scratch) strength() Result {
	c := Result{Name: CheckStrength, Limit: limitStrength, X: -1, Y: -1}
	// independent values in a window
	free := float64(window*window) / max(s.correlationSum(func(r float64) float64 { return r * r }), 1)
	chance := 1 + 5*math.Sqrt(1/(2*free))
	for y := 0; y+window <= s.h; y += window / 2 {
		for x := 0; x+window <= s.w; x += window / 2 {
			sum, n := 0.0, 0
			for v := y; v < y+window; v++ {
				for u, z := range s.z[v*s.w+x:][:window] {
					if !s.skip[v*s.w+x+u] {
						sum += float64(z) * float64(z)
						n++
					}
				}
			}
			if n < window*window/2 {
				continue
			}
			if v := math.Sqrt(sum/float64(n)) / chance; v > c.Value {
				c.Value, c.X, c.Y = v, x+window/2, y+window/2
			}
		}
	}
	return c
}

const side = 8 // of the blocks that spectra are taken of

// cosines is the discrete cosine transform of 8 points, orthonormal: [u][i].
var cosines = func() (t [side][side]float64) {
	for u := range t {
		for i := range t[u] {
			a := math.Sqrt(2. / side)
			if u == 0 {
				a = math.Sqrt(1. / side)
			}
			t[u][i] = a * math.Cos(math.Pi*float64(u)*(float64(i)+.5)/side)
		}
	}
	return t
}()

// leastPower is the least power of the noise at any frequency, of the mean: what a
// correlation was measured to cannot be taken at its word.
const leastPower = 0.05

// noisePowers returns what the coefficients of a block of noise have.
func (s *scratch) noisePowers() (p [side][side]float64) {
	var toLags [side][side]float64 // of one axis: [u][lag]
	for u := range side {
		for i := range side {
			for j := range side {
				toLags[u][max(i-j, j-i)] += cosines[u][i] * cosines[u][j]
			}
		}
	}
	for v := range side {
		for u := range side {
			for dy := range reach + 1 {
				for dx := range reach + 1 {
					p[v][u] += toLags[v][dy] * toLags[u][dx] * s.rho.At(dx, dy)
				}
			}
			p[v][u] = max(p[v][u], leastPower)
		}
	}
	return p
}

// correlated tells whether the noise is not white.
func (s *scratch) correlated() bool { return max(s.rho.At(1, 0), s.rho.At(0, 1)) > 0.1 }

// maxBlocks bounds the time of spectrum.
const maxBlocks = 2000

// spectrum compares the powers of what was taken off with those of the noise, over
// the image, in groups of 2×2 frequencies.
func (s *scratch) spectrum() Result {
	c := Result{Name: CheckSpectrum, Limit: limitSpectrum, X: -1, Y: -1}
	if s.correlated() {
		c.Limit = limitCorrelated // the spectrum itself is an estimate then
	}
	bw, bh := s.w/side, s.h/side
	step := 1 + bw*bh/maxBlocks
	var power [side][side]float64
	n := 0.0
	for k := 0; k < bw*bh; k += step {
		x, y := k%bw*side, k/bw*side
		var t [side][side]float64 // [u][j]
		ok := true
		for j := range side {
			i := (y+j)*s.w + x
			for _, skip := range s.skip[i:][:side] {
				ok = ok && !skip
			}
			row := s.z[i:][:side]
			for u := range side {
				sum := 0.0
				for i, z := range row {
					sum += cosines[u][i] * float64(z)
				}
				t[u][j] = sum
			}
		}
		if !ok {
			continue
		}
		n++
		for v := range side {
			for u := range side {
				sum := 0.0
				for j, z := range t[u] {
					sum += cosines[v][j] * z
				}
				power[v][u] += sum * sum
			}
		}
	}
	if n < 8 {
		return c
	}
	noise := s.noisePowers()
	chance := 1 + 4*math.Sqrt(2/(4*n))
	for v := 0; v < side; v += 2 {
		for u := 0; u < side; u += 2 {
			sum := 0.0
			for _, o := range [...]offset{{0, 0}, {1, 0}, {0, 1}, {1, 1}} {
				sum += power[v+o.y][u+o.x] / n / noise[v+o.y][u+o.x] / 4
			}
			c.Value = max(c.Value, sum/chance)
		}
	}
	return c
}

// gridWindow is the side of the windows that are scanned for patterns, pixels.
const gridWindow = 32

// grid scans for patterns that alternate from pixel to pixel: columns, rows and
// checks.
func (s *scratch) grid() Result {
	c := Result{Name: CheckGrid, Limit: limitGrid, X: -1, Y: -1}
	if s.correlated() {
		c.Limit = 2 * limitGrid // next to nothing of the noise is that fine, so its power is not known well
	}
	p := s.noisePowers()
	unit := [3]float64{math.Sqrt(p[0][side-1]), math.Sqrt(p[side-1][0]), math.Sqrt(p[side-1][side-1])}
	for y := 0; y+gridWindow <= s.h; y += gridWindow / 2 {
		for x := 0; x+gridWindow <= s.w; x += gridWindow / 2 {
			var even, odd [2]float64 // sums over even and odd columns, of even and odd rows
			n := 0
			for v := y; v < y+gridWindow; v++ {
				i := v*s.w + x
				var a, b float32
				for u := 0; u < gridWindow; u += 2 {
					a, b = a+s.z[i+u], b+s.z[i+u+1]
				}
				for _, skip := range s.skip[i:][:gridWindow] {
					if !skip {
						n++
					}
				}
				even[v&1] += float64(a)
				odd[v&1] += float64(b)
			}
			if n < gridWindow*gridWindow/2 {
				continue
			}
			for k, t := range [...]float64{even[0] + even[1] - odd[0] - odd[1], even[0] + odd[0] - even[1] - odd[1], even[0] + odd[1] - even[1] - odd[0]} {
				if t = math.Abs(t) / math.Sqrt(float64(n)) / unit[k]; t > c.Value {
					c.Value, c.X, c.Y = t, x+gridWindow/2, y+gridWindow/2
				}
			}
		}
	}
	return c
}

// Edges are where the smoothed result changes by several standard deviations of the
// noise over two pixels.
const leastEdge = 4

// structure is the root mean square of what was taken off at the edges of the
// result, less what chance can add, against the noise. Blur takes off just there.
func (s *scratch) structure(in Input) Result {
	c := Result{Name: CheckStructure, Limit: limitStructure, X: -1, Y: -1}
	w := s.w
	s.smooth(in.After)
	sum, n := 0.0, 0.0
	for y := 1; y < s.h-1; y++ {
		for x := 1; x < w-1; x++ {
			i := y*w + x
			gx, gy := s.low[i+1]-s.low[i-1], s.low[i+w]-s.low[i-w]
			least := leastEdge * max(in.Noise.Sigma[i], leastSigma*s.unit)
			if gx*gx+gy*gy < least*least || s.skip[i] {
				continue
			}
			sum, n = sum+float64(s.z[i])*float64(s.z[i]), n+1
		}
	}
	if n < 32 {
		return c
	}
	free := n / max(s.correlationSum(func(r float64) float64 { return r * r }), 1)
	c.Value = math.Sqrt(sum/n) / (1 + 4*math.Sqrt(1/(2*free)))
	return c
}

// rangeMargin is how far a value may lie outside its neighbours', in standard
// deviations of the noise.
const rangeMargin = 2

// extrema is the share of the pixels that lie outside the values that the 5×5
// pixels around had before.
func (s *scratch) extrema(in Input) Result {
	c := Result{Name: CheckRange, Limit: limitRange, X: -1, Y: -1}
	w, h := s.w, s.h
	s.low, s.high = grow(s.low, w*h), grow(s.high, w*h)
	for y := range h {
		row := in.Before[y*w:][:w]
		lo, hi := s.low[y*w:][:w], s.high[y*w:][:w]
		for x := range row {
			a, b := float32(math.Inf(1)), float32(math.Inf(-1))
			for u := max(x-2, 0); u <= min(x+2, w-1); u++ {
				if !s.skip[y*w+u] {
					a, b = min(a, row[u]), max(b, row[u])
				}
			}
			lo[x], hi[x] = a, b
		}
	}
	n, out, worst := 0, 0, float32(0)
	for y := range h {
		for x := range w {
			i := y*w + x
			if s.skip[i] {
				continue
			}
			a, b := s.low[i], s.high[i]
			for v := max(y-2, 0); v <= min(y+2, h-1); v++ {
				a, b = min(a, s.low[v*w+x]), max(b, s.high[v*w+x])
			}
			n++
			margin := rangeMargin * max(in.Noise.Sigma[i], leastSigma*s.unit)
			if d := max(in.After[i]-b, a-in.After[i]); d > margin {
				out++
				if d > worst {
					worst, c.X, c.Y = d, x, y
				}
			}
		}
	}
	if n > 0 {
		c.Value = float64(out) / float64(n)
	}
	return c
}

// added compares the power of the finest differences after with that before.
func (s *scratch) added(in Input) Result {
	c := Result{Name: CheckAdded, Limit: limitAdded, X: -1, Y: -1}
	w := s.w
	second := func(p []float32, i int) float64 {
		return float64(p[i-w-1] - 2*p[i-w] + p[i-w+1] - 2*(p[i-1]-2*p[i]+p[i+1]) + p[i+w-1] - 2*p[i+w] + p[i+w+1])
	}
	var before, after float64
	for y := 1; y < s.h-1; y++ {
		for x := 1; x < w-1; x++ {
			i := y*w + x
			if s.near[i] {
				continue
			}
			// each pixel counts by its noise, and edges no more than a few times that
			limit := 36 * 9 * float64(max(in.Noise.Sigma[i], leastSigma*s.unit)) * float64(max(in.Noise.Sigma[i], leastSigma*s.unit))
			a, b := second(in.Before, i), second(in.After, i)
			before, after = before+min(a*a, limit)/limit, after+min(b*b, limit)/limit
		}
	}
	if before > 0 {
		c.Value = after / before
	}
	return c
}

// uncertainty is the median of the stated uncertainty in units of the noise.
func (s *scratch) uncertainty(in Input) Result {
	c := Result{Name: CheckUncertainty, Limit: limitUncertainty, X: -1, Y: -1}
	s.vals = s.vals[:0]
	for i, u := range in.Uncertainty {
		if !s.skip[i] {
			v := u / max(in.Noise.Sigma[i], leastSigma*s.unit)
			if v != v {
				v = float32(math.Inf(1))
			}
			s.vals = append(s.vals, v)
		}
	}
	if len(s.vals) > 0 {
		c.Value = float64(nth(s.vals, len(s.vals)/2))
	}
	return c
}
