package gate

import (
	"math"
	"slices"

	"github.com/diffdenoise/denoised/internal/numeric"
	"github.com/diffdenoise/denoised/models/noise"
)

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

// longRun is the variance of the mean of many pixels, times their number.
func (s *scratch) longRun() float64 {
	return max(s.correlationSum(func(r float64) float64 { return r }), 0.2)
}

// free is how many independent values n squares of the noise are worth.
func (s *scratch) free(n float64) float64 {
	return n / max(s.correlationSum(func(r float64) float64 { return r * r }), 1)
}

const reach = noise.Lags // of the correlation, pixels

const (
	classes = 8    // of tissue, by its signal
	air     = 0.08 // of the greatest signal, below it there is no tissue

	unsureLift  = 0.2  // of the lift, in the mean of a class
	faint       = 6    // signal of a class, in standard deviations of the noise, below which
	unsureFaint = 0.15 // standard deviations of it may be taken off
)

// means compares the mean signal of tissue classes before and after, less what chance can
// do. The class of a cell is that of the pixels around it: its own result holds some of
// its noise, and would sort what is too bright by chance into the bright classes.
func (s *scratch) means(in Input) Result {
	c := Result{Name: CheckMean, Limit: limitMean, X: -1, Y: -1}
	s.vals = s.vals[:0]
	for i := 0; i < len(s.around); i += 3 {
		if v := s.around[i]; v == v {
			s.vals = append(s.vals, v)
		}
	}
	if len(s.vals) < classes {
		return c
	}
	least := air * numeric.Nth(s.vals, len(s.vals)*995/1000)
	k := 0
	for _, v := range s.vals {
		if v > least {
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
	var taken, raised, signal, variance, square, n [classes]float64
	for y := range s.hh {
		for x := range s.hw {
			i := y*s.hw + x
			v := s.around[i]
			if !(v > least) || s.inside[i] < 4 {
				continue
			}
			j := 0
			for j < len(bounds) && v >= bounds[j] {
				j++
			}
			sigma := s.sigma(in, 2*y*s.w+2*x)
			taken[j] += float64(s.half[i] * sigma)
			raised[j] += float64(s.raised[i] * sigma)
			square[j] += float64(s.power[i] * sigma * sigma)
			variance[j] += float64(4 * sigma * sigma)
			signal[j] += float64(s.after[i])
			n[j] += 4
		}
	}
	for j := range taken {
		if signal[j] <= 0 {
			continue
		}
		// where the map is too low, the scatter itself tells
		scatter := max(variance[j], square[j]-taken[j]*taken[j]/n[j])
		noise := math.Sqrt(variance[j] * n[j])
		// a result may leave the lift where it is
		shift := max(taken[j]-unsureLift*raised[j],
			-taken[j]-raised[j]) - chance(classes)*math.Sqrt(scatter*s.longRun())
		if signal[j] < faint*noise {
			shift -= unsureFaint * noise
		}
		c.Value = max(c.Value, shift/signal[j])
	}
	return c
}

// offset is a place of a cell relative to another.
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
	unsureShape = 0.1  // of the lift, in a spot or a line
	clipped     = 3    // standard deviations, to which a sum counts for the spread
)

// scan collects the sums of half over one shape, and where they are greatest.
type scan struct {
	spread, limit float64 // of the sums; beyond limit they do not count for their own spread
	sum, n        float64
	most          float32
	x, y          int
}

func (s *scratch) newScan(shape []offset) scan {
	v := s.spread(shape)
	return scan{spread: v, limit: clipped * v, x: -1, y: -1}
}

// add adds a sum, of which no more than slack may be explained by the lift.
func (c *scan) add(v, slack float32, x, y int) {
	v = max(v, -v)
	c.sum, c.n = c.sum+min(float64(v), c.limit), c.n+1
	if v -= slack; v > c.most {
		c.most, c.x, c.y = v, 2*x, 2*y
	}
}

// outlier keeps in r the greatest sum in units of the spread of all, which a denoiser that
// leaves some of the noise makes smaller.
func (c *scan) outlier(r *Result) {
	const few = 32
	if c.n < few {
		return
	}
	own := c.sum / c.n * math.Sqrt(math.Pi/2) / c.spread
	if v := float64(c.most) / (c.spread * min(max(own, leastSpread), mostSpread)); v > r.Value {
		r.Value, r.X, r.Y = v, c.x, c.y
	}
}

// spots scans squares of 4, 8 and 16 pixels a side.
func (s *scratch) spots() Result {
	c := Result{Name: CheckSpot, X: -1, Y: -1}
	hw, hh := s.hw, s.hh
	s.sums = integrate(s.sums, s.half, hw, hh)
	if s.lift.dark > 0 {
		s.lifts = integrate(s.lifts, s.raised, hw, hh)
	}
	places := 0
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
		scan := s.newScan(shape)
		need := leastInside * float64(4*side*side)
		sum := func(t []float64, i, j int) float64 { return t[j+side] - t[j] - t[i+side] + t[i] }
		for y := range hh - side + 1 {
			for x := range hw - side + 1 {
				i, j := y*(hw+1)+x, (y+side)*(hw+1)+x
				if sum(s.counts, i, j) < need {
					continue
				}
				slack := float32(0)
				if s.lift.dark > 0 {
					slack = unsureShape * float32(sum(s.lifts, i, j))
				}
				scan.add(float32(sum(s.sums, i, j)), slack, x, y)
			}
		}
		scan.outlier(&c)
		places += int(scan.n)
	}
	c.Limit = misjudged * chance(places)
	return c
}

// lineLength is the length of the lines that are scanned for, in cells.
const lineLength = 9

// directions are the directions of the lines, in halves of a cell per step.
var directions = []offset{{2, 0}, {2, 1}, {2, 2}, {1, 2}, {0, 2}, {-1, 2}, {-2, 2}, {-2, 1}}

// lines scans lines 2 pixels wide and 18 long in eight directions.
func (s *scratch) lines() Result {
	c := Result{Name: CheckLine, X: -1, Y: -1}
	hw, hh := s.hw, s.hh
	const arm = lineLength / 2
	places := 0
	for _, d := range directions {
		var shape []offset
		var steps [lineLength]int
		for k := -arm; k <= arm; k++ {
			o := offset{(k*d.x + 16) / 2, (k*d.y + 16) / 2} // rounded down, k·d + 16 > 0
			o.x, o.y = o.x-8, o.y-8
			shape = append(shape, o)
			steps[k+arm] = o.y*hw + o.x
		}
		// along itself a line is looked at every other cell
		dx, dy := 1, 2
		if d.y < 2 {
			dx, dy = 2, 1
		}
		scan := s.newScan(shape)
		for y := arm; y < hh-arm; y += dy {
			for x := arm; x < hw-arm; x += dx {
				i := y*hw + x
				first, last := i+steps[0], i+steps[lineLength-1]
				if s.inside[i] < 4 || s.inside[first] < 4 || s.inside[last] < 4 {
					continue
				}
				sum := float32(0)
				for _, o := range steps {
					sum += s.half[i+o]
				}
				scan.add(sum, unsureShape*lineLength/3*(s.raised[first]+s.raised[i]+s.raised[last]), x, y)
			}
		}
		scan.outlier(&c)
		places += int(scan.n)
	}
	c.Limit = misjudged * chance(places)
	return c
}

// window is the side of the windows that strengths are compared in, cells.
const window = 8

// strength is the root mean square of what was taken off, in windows, less what
// chance can add, against the noise.
func (s *scratch) strength() Result {
	c := Result{Name: CheckStrength, Limit: limitStrength, X: -1, Y: -1}
	s.sums = integrate(s.sums, s.power, s.hw, s.hh)
	places := 4 * s.hw * s.hh / (window * window)
	most := 1 + chance(places)*math.Sqrt(1/(2*s.free(4*window*window)))
	row := s.hw + 1
	for y := 0; y+window <= s.hh; y += window / 2 {
		for x := 0; x+window <= s.hw; x += window / 2 {
			i, j := y*row+x, (y+window)*row+x
			n := s.counts[j+window] - s.counts[j] - s.counts[i+window] + s.counts[i]
			if n < 2*window*window {
				continue
			}
			sum := s.sums[j+window] - s.sums[j] - s.sums[i+window] + s.sums[i]
			if v := math.Sqrt(sum/n) / most; v > c.Value {
				c.Value, c.X, c.Y = v, 2*x+window, 2*y+window
			}
		}
	}
	return c
}

const side = numeric.CosineSide // of the blocks that spectra are taken of

// cosines is the discrete cosine transform of 8 points, orthonormal: [u][i].
var cosines = numeric.Cosines[float32]()

// block holds the coefficients of a block, [v][u].
type block [side][side]float32

// transform takes the coefficients of 8×8 pixels.
func (b *block) transform(px *block) {
	var t block // [u][j]
	for j := range side {
		row := &px[j]
		for u := range side {
			sum := float32(0)
			for i, z := range row {
				sum += cosines[u][i] * z
			}
			t[u][j] = sum
		}
	}
	for v := range side {
		for u := range side {
			sum := float32(0)
			for j, z := range &t[u] {
				sum += cosines[v][j] * z
			}
			b[v][u] = sum
		}
	}
}

// leastPower is the least power of the noise at any frequency, of the mean: what a
// correlation was measured to, over a few lags, cannot be taken at its word.
const leastPower = 0.1

// whiter is by how much correlations may be too high: where noise that much nearer to white has more
// power, that counts.
const whiter = 0.1

// noisePowers returns what the coefficients of a block of noise have.
func (s *scratch) noisePowers() (p [side][side]float64) {
	var toLags [side][side]float64 // of one axis: [u][lag]
	for u := range side {
		for i := range side {
			for j := range side {
				toLags[u][max(i-j, j-i)] += float64(cosines[u][i] * cosines[u][j])
			}
		}
	}
	for v := range side {
		for u := range side {
			white := toLags[v][0] * toLags[u][0]
			for dy := range reach + 1 {
				for dx := range reach + 1 {
					p[v][u] += toLags[v][dy] * toLags[u][dx] * s.rho.At(dx, dy)
				}
			}
			p[v][u] = max(p[v][u], p[v][u]+whiter*(white-p[v][u]), leastPower)
		}
	}
	return p
}

const (
	maxBlocks  = 1000 // bounds the time of spectra
	minBlocks  = 8    // fewer say nothing
	someNoise  = 0.5  // power of a frequency that holds noise, of the mean
	mostEdge   = 9    // powers of the noise that anatomy counts for
	freqsGroup = 4    // frequencies of one group
)

// spectra compares powers of blocks over the image. The first result is of what was taken
// off, against those of the noise, in groups of 2×2 frequencies. The second is of the
// result, against those of the image, at the frequencies that hold noise.
func (s *scratch) spectra(in Input) (spectrum, added Result) {
	spectrum = Result{Name: CheckSpectrum, Limit: limitSpectrum, X: -1, Y: -1}
	added = Result{Name: CheckAdded, Limit: limitAdded, X: -1, Y: -1}
	noise := s.noisePowers()
	var power [side][side]float64
	var before, after, n float64
	bw, bh := s.w/side, s.h/side
	step := 1 + bw*bh/maxBlocks
	for k := 0; k < bw*bh; k += step {
		x, y := k%bw*side, k/bw*side
		var z, a, px block
		ok := true
		for j := range side {
			i := (y+j)*s.w + x
			for u := range side {
				ok = ok && s.mark[i+u] == look
				px[j][u] = s.z[i+u]
			}
		}
		for v := y / 2; v < (y+side)/2; v++ {
			for _, lift := range s.raised[v*s.hw+x/2:][:side/2] {
				ok = ok && lift <= 4*lifted
			}
		}
		if !ok {
			continue
		}
		n++
		z.transform(&px)
		inverse := s.inverse[y*s.w+x]
		for j := range side {
			for u, v := range in.After[(y+j)*s.w+x:][:side] {
				px[j][u] = v * inverse
			}
		}
		a.transform(&px)
		for v := range side {
			for u := range side {
				power[v][u] += float64(z[v][u] * z[v][u])
				if u+v > 1 && noise[v][u] >= someNoise {
					b := a[v][u] + z[v][u]
					most := mostEdge * noise[v][u]
					before += min(float64(b*b), most)
					after += min(float64(a[v][u]*a[v][u]), most)
				}
			}
		}
	}
	if n < minBlocks {
		return spectrum, added
	}
	if before > 0 {
		added.Value = after / before
	}
	most := 1 + chance(side*side/freqsGroup)*math.Sqrt(2/(freqsGroup*n))
	for v := 0; v < side; v += 2 {
		for u := 0; u < side; u += 2 {
			sum := 0.0
			for _, o := range [...]offset{{0, 0}, {1, 0}, {0, 1}, {1, 1}} {
				sum += power[v+o.y][u+o.x] / n / noise[v+o.y][u+o.x] / freqsGroup
			}
			spectrum.Value = max(spectrum.Value, sum/most)
		}
	}
	return spectrum, added
}

// gridWindow is the side of the windows that are scanned for patterns, cells.
const gridWindow = 16

// grid scans for patterns that alternate from pixel to pixel: columns, rows and
// checks.
func (s *scratch) grid() Result {
	c := Result{Name: CheckGrid, X: -1, Y: -1}
	p := s.noisePowers()
	unit := [...]float64{math.Sqrt(p[0][side-1]), math.Sqrt(p[side-1][0]), math.Sqrt(p[side-1][side-1])}
	type sums struct {
		patterns [3]float64
		n        int
	}
	const part = gridWindow / 2
	pw, ph := s.hw/part, s.hh/part
	parts := make([]sums, pw*ph)
	for k := range parts {
		x0, y0 := k%pw*part, k/pw*part
		p := &parts[k]
		for y := y0; y < y0+part; y++ {
			var t [3]float32
			for x := x0; x < x0+part; x++ {
				if k := y*s.hw + x; s.raised[k] > 4*lifted || s.inside[k] < 4 {
					continue
				}
				i := 2*y*s.w + 2*x
				a, b, c, d := s.z[i], s.z[i+1], s.z[i+s.w], s.z[i+s.w+1]
				t[0], t[1], t[2] = t[0]+a-b+c-d, t[1]+a+b-c-d, t[2]+a-b-c+d
				p.n += 4
			}
			for k, v := range t {
				p.patterns[k] += float64(v)
			}
		}
	}
	places := 0
	for y := range ph - 1 {
		for x := range pw - 1 {
			a, b, d, e := &parts[y*pw+x], &parts[y*pw+x+1], &parts[(y+1)*pw+x], &parts[(y+1)*pw+x+1]
			n := a.n + b.n + d.n + e.n
			if n < 2*gridWindow*gridWindow {
				continue
			}
			places++
			for k := range unit {
				v := math.Abs(a.patterns[k]+b.patterns[k]+d.patterns[k]+e.patterns[k]) / math.Sqrt(float64(n)) / unit[k]
				if v > c.Value {
					c.Value, c.X, c.Y = v, 2*(x+1)*part, 2*(y+1)*part
				}
			}
		}
	}
	c.Limit = misjudged * chance(3*places)
	return c
}

// Settings of the structure.
const (
	leastEdge = 6 // by how much the means of cells two apart differ at an edge, standard deviations of the noise
	mostFine  = 8 // that a pixel of an edge counts for, standard deviations of the noise
)

// near tells whether one of the 3×3 cells around is not looked at.
func (s *scratch) near(k int) bool {
	n := uint8(0)
	for _, j := range [...]int{k - s.hw, k, k + s.hw} {
		n += s.inside[j-1] + s.inside[j] + s.inside[j+1]
	}
	return n < 36
}

// structure is the share of the result's fine structure at its edges, what differs from the
// 3×3 means, that was taken off, less what chance can do. Blur takes off just that. Chance
// is told from the scatter between parts of the image.
func (s *scratch) structure(in Input) Result {
	c := Result{Name: CheckStructure, Limit: limitStructure, X: -1, Y: -1}
	const parts = 16
	var taken, fine [parts][parts]float64
	w := s.w
	for y := 1; y < s.hh-1; y++ {
		for x := 1; x < s.hw-1; x++ {
			k := y*s.hw + x
			gx, gy := s.after[k+1]-s.after[k-1], s.after[k+s.hw]-s.after[k-s.hw]
			g := gx*gx + gy*gy
			if g < 16*leastEdge*leastEdge*s.least*s.least {
				continue
			}
			i := 2*y*w + 2*x
			inverse := s.inverse[i]
			if g*inverse*inverse < 16*leastEdge*leastEdge || s.near(k) {
				continue
			}
			for _, i := range [...]int{i, i + 1, i + w, i + w + 1} {
				a := in.After
				mean := (a[i-w-1] + a[i-w] + a[i-w+1] + a[i-1] + a[i] + a[i+1] + a[i+w-1] + a[i+w] + a[i+w+1]) / 9
				q := (a[i] - mean) * inverse
				most := min(max(q, -mostFine), mostFine)
				taken[y*parts/s.hh][x*parts/s.hw] += float64(s.z[i] * most)
				fine[y*parts/s.hh][x*parts/s.hw] += float64(q * most)
			}
		}
	}
	var t, f, scatter float64
	for v := range taken {
		for u := range taken[v] {
			t, f = t+taken[v][u], f+fine[v][u]
		}
	}
	if f == 0 {
		return c
	}
	share := t / f
	for v := range taken {
		for u := range taken[v] {
			d := taken[v][u] - share*fine[v][u]
			scatter += d * d
		}
	}
	c.Value = max(math.Abs(share)-chance(1)*math.Sqrt(scatter)/f, 0)
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
	n, out, worst := 0, 0, float32(0)
	for y := range 2 * s.hh {
		for x := range 2 * s.hw {
			i := y*w + x
			if s.mark[i] != look {
				continue
			}
			n++
			if z := s.z[i]; z > -rangeMargin && z < rangeMargin {
				continue // not even outside its own
			}
			sigma := s.sigma(in, i)
			v := in.After[i]
			if s.lift.dark > 0 {
				v = in.Before[i] - s.z[i]*sigma/s.lift.at(v*s.inverse[i]).scale // lifted as the image is
			}
			low, high := in.Before[i], in.Before[i]
			for b := max(y-2, 0); b <= min(y+2, h-1); b++ {
				for a := max(x-2, 0); a <= min(x+2, w-1); a++ {
					if j := b*w + a; s.mark[j] == look {
						low, high = min(low, in.Before[j]), max(high, in.Before[j])
					}
				}
			}
			if d := max(v-high, low-v); d > rangeMargin*sigma {
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

// uncertainty is the median of the stated uncertainty in units of the noise.
func (s *scratch) uncertainty(in Input) Result {
	c := Result{Name: CheckUncertainty, Limit: limitUncertainty, X: -1, Y: -1}
	s.vals = s.vals[:0]
	for i, u := range in.Uncertainty {
		if s.mark[i] == look {
			v := u / s.sigma(in, i)
			if v != v {
				v = float32(math.Inf(1))
			}
			s.vals = append(s.vals, v)
		}
	}
	if len(s.vals) > 0 {
		c.Value = float64(numeric.Nth(s.vals, len(s.vals)/2))
	}
	return c
}
