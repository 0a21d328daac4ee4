package simulate

import (
	"errors"
	"fmt"
	"math"
	"math/cmplx"
	"math/rand/v2"

	"gonum.org/v1/gonum/dsp/fourier"
)

// Limits of a Chain.
const (
	MaxCoils        = 32
	MaxAcceleration = 4
	MaxFill         = 2.0
	leastPartial    = 0.55
	leastNative     = 16      // columns and rows
	mostCoilPixels  = 1 << 27 // pixels of the matrix times coils: 2 GiB of sensitivities
)

// Filter is an apodization of k-space.
type Filter uint8

// Filters. Hamming is 0.54 + 0.46·cos(πk), Fermi 1/(1 + exp((k − 0.9)/0.05)), where k is
// the distance from the centre of k-space in units of its measured half-width.
const (
	NoFilter Filter = iota
	Hamming
	Fermi
)

// Chain is the way of one slice through a scanner: from tissue through k-space, coils and
// reconstruction to the values that are stored. The zero value of every field leaves its
// step out.
//
// The order is: measured matrix, coils with correlated noise, parallel imaging, combination,
// partial Fourier, filter, zero-filling, magnitude, resampling, edge enhancement, storage.
type Chain struct {
	// NativeWidth and NativeHeight are the measured matrix; 0: that of the image.
	NativeWidth, NativeHeight int
	// Coils is how many coils receive, 1 to MaxCoils; 0 is 1. CoilCorrelation is the
	// correlation of the noise of two neighbours, 0 to 0.9, and falls off with its powers.
	Coils           int
	CoilCorrelation float64
	// Adaptive combines the coils by their sensitivities to one complex image (Roemer 1990);
	// without it the image is the root of the sum of their squares.
	Adaptive bool
	// Acceleration R measures every R-th line along the phase-encoding axis, and unfolds the
	// image by the sensitivities (SENSE, Pruessmann 1999), which combines the coils, too. 1 to
	// MaxAcceleration and at most Coils; 0 is 1.
	Acceleration int
	// AlongX says that phase encoding goes along x, else along y.
	AlongX bool
	// Uniform divides what the coils see more or less of out of the image, and with it
	// makes the noise stronger where they see less.
	Uniform bool
	// Partial is the share of the phase-encoding lines that is measured, more than half of
	// them; 0 is 1. Homodyne weighs the lines without a counterpart twice and takes the real
	// part; else they are zero.
	Partial  float64
	Homodyne bool
	// Filter is applied along each axis, or with Round in the radius.
	Filter Filter
	Round  bool
	// FillX and FillY are by how much zero-filling makes the image larger than the matrix, to
	// the nearest even number of pixels. 1 to MaxFill; 0 is 1, and leaves an odd matrix odd.
	FillX, FillY float64
	// Warp is the greatest displacement, in stored pixels, of a smooth cubic resampling as
	// corrections of gradient fields do it.
	Warp float64
	// Sharpen adds this share of the image less its Gaussian of spread SharpenSpread pixels.
	Sharpen, SharpenSpread float64
	// Noise is the standard deviation of the noise of the stored image in tissue, the root of
	// its mean square over the image, of full scale. 0.001 to 0.2, or 0.
	Noise float64
	// Bits are those of a stored value, 8 to 16; 0 stores floats. Low and High are what the
	// least and the greatest stored value stand for, of full scale; both 0: 0 and 1.2. What
	// lies outside is cut off. The results are in units of full scale again, counted from Low,
	// as whoever reads stored values must count.
	Bits      int
	Low, High float64
}

// Acquired is a slice that went through a Chain.
type Acquired struct {
	Width, Height int
	// Noisy is what is stored. Truth is the same without noise. Sigma is the standard
	// deviation of the noise of each pixel, where it is not near zero. All in full scales.
	Noisy, Truth, Sigma []float32
	// Rho is the autocorrelation of the noise at the lags [dy][dx].
	Rho [5][5]float64
}

// Check says what of the chain cannot be for an image of w×h pixels, by the name of the field.
func (c Chain) Check(w, h int) error {
	nw, nh := c.native(w, h)
	coils, r := max(c.Coils, 1), max(c.Acceleration, 1)
	lines := nh
	if c.AlongX {
		lines = nw
	}
	in := func(v, least, most float64) bool { return v == 0 || v >= least && v <= most }
	switch {
	case w < leastNative || h < leastNative || w > 1<<13 || h > 1<<13:
		return fmt.Errorf("scanner chain: an image of %d×%d pixels, allowed are %d to %d a side",
			w, h, leastNative, 1<<13)
	case nw < leastNative || nw > w:
		return fmt.Errorf("scanner chain: NativeWidth %d is outside %d to the image's %d", nw, leastNative, w)
	case nh < leastNative || nh > h:
		return fmt.Errorf("scanner chain: NativeHeight %d is outside %d to the image's %d", nh, leastNative, h)
	case c.Coils < 0 || coils > MaxCoils:
		return fmt.Errorf("scanner chain: Coils %d is outside 1 to %d", c.Coils, MaxCoils)
	case coils*nw*nh > mostCoilPixels:
		return fmt.Errorf("scanner chain: Coils %d of %d×%d pixels are more than %d together", coils, nw, nh,
			mostCoilPixels)
	case !(c.CoilCorrelation >= 0 && c.CoilCorrelation <= 0.9):
		return fmt.Errorf("scanner chain: CoilCorrelation %g is outside 0 to 0.9", c.CoilCorrelation)
	case c.Acceleration < 0 || r > MaxAcceleration || r > coils:
		return fmt.Errorf("scanner chain: Acceleration %d is outside 1 to %d, or more than the %d coils",
			c.Acceleration, MaxAcceleration, coils)
	case lines%r != 0:
		return fmt.Errorf("scanner chain: Acceleration %d does not divide the %d lines of the matrix", c.Acceleration,
			lines)
	case !in(c.Partial, leastPartial, 1):
		return fmt.Errorf("scanner chain: Partial %g is outside %g to 1", c.Partial, leastPartial)
	case c.Filter > Fermi:
		return fmt.Errorf("scanner chain: there is no Filter %d", c.Filter)
	case !in(c.FillX, 1, MaxFill):
		return fmt.Errorf("scanner chain: FillX %g is outside 1 to %g", c.FillX, MaxFill)
	case !in(c.FillY, 1, MaxFill):
		return fmt.Errorf("scanner chain: FillY %g is outside 1 to %g", c.FillY, MaxFill)
	case !(c.Warp >= 0 && c.Warp <= 8):
		return fmt.Errorf("scanner chain: Warp %g is outside 0 to 8", c.Warp)
	case !(c.Sharpen >= 0 && c.Sharpen <= 2):
		return fmt.Errorf("scanner chain: Sharpen %g is outside 0 to 2", c.Sharpen)
	case c.Sharpen > 0 && !(c.SharpenSpread >= 0.5 && c.SharpenSpread <= 3):
		return fmt.Errorf("scanner chain: SharpenSpread %g is outside 0.5 to 3", c.SharpenSpread)
	case !in(c.Noise, 0.001, 0.2):
		return fmt.Errorf("scanner chain: Noise %g is outside 0.001 to 0.2", c.Noise)
	case c.Bits != 0 && (c.Bits < 8 || c.Bits > 16):
		return fmt.Errorf("scanner chain: Bits %d is outside 8 to 16", c.Bits)
	case c.Bits != 0 && (c.Low != 0 || c.High != 0) && !(c.High-c.Low >= 0.1 && c.High-c.Low <= 100):
		return fmt.Errorf("scanner chain: Low %g and High %g are not 0.1 to 100 apart", c.Low, c.High)
	}
	return nil
}

func (c Chain) native(w, h int) (nw, nh int) {
	if nw, nh = c.NativeWidth, c.NativeHeight; nw == 0 {
		nw = w
	}
	if nh == 0 {
		nh = h
	}
	return nw, nh
}

func atLeast1(v float64) float64 { return max(v, 1) }

// Run sends one image, w×h values of which 1 is full scale, through the chain. Coils, phase
// and noise are drawn from rng.
func (c Chain) Run(img []float32, w, h int, rng *rand.Rand) (*Acquired, error) {
	s, err := c.Scanner(w, h, rng)
	if err != nil {
		return nil, err
	}
	if len(img) != w*h {
		return nil, fmt.Errorf("scanner chain: %d values of %d×%d pixels", len(img), w, h)
	}
	a := &Acquired{Width: s.Width, Height: s.Height, Sigma: s.Sigma, Rho: s.Rho, Truth: s.Signal(img)}
	a.Noisy = s.Acquire(img, rng)
	return a, nil
}

// Scanner is a Chain with its coils, its phase and its displacements drawn, for images of one
// size. It is for one goroutine at a time.
type Scanner struct {
	Width, Height int // of what it stores
	// Sigma is the noise of what it stores, at every pixel, and Rho its correlation at the
	// lags [dy][dx], as far as the filters and the resampling make it.
	Sigma []float32
	Rho   [5][5]float64

	chain      Chain
	w, h       int // of the images that it is given
	nw, nh     int
	coils      [][]complex128 // sensitivities on the matrix
	mixing     [][]float64    // lower triangular: independent to correlated noise of the coils
	phase      []complex128   // of the tissue, on the matrix
	seen       []float32      // what the coils see together, on the matrix
	shade      []float32      // by which the combined image is multiplied, on the matrix
	unfold     [][]complex128 // [coil], weights that unfold, on the matrix; nil where nothing is folded
	fft        plans
	weights    []float64 // of the measured frequencies; nil where they and the size stay as they are
	dx, dy     []float32 // displacement of each stored pixel; nil without
	blur       []float32 // by which resampling there changes the noise; nil without
	level      float64   // complex noise of a coil, standard deviation of its parts
	carried    float64   // what filters and size leave of noise that the image itself has
	gainNative []float32 // noise of the combined image for a level of 1, on the matrix
}

// Scanner draws what a chain leaves open. Images are to be w×h pixels.
func (c Chain) Scanner(w, h int, rng *rand.Rand) (*Scanner, error) {
	if err := c.Check(w, h); err != nil {
		return nil, err
	}
	nw, nh := c.native(w, h)
	c.Coils, c.Acceleration = max(c.Coils, 1), max(c.Acceleration, 1)
	c.FillX, c.FillY = atLeast1(c.FillX), atLeast1(c.FillY)
	if c.Partial == 0 {
		c.Partial = 1
	}
	s := &Scanner{chain: c, fft: plans{}, w: w, h: h, nw: nw, nh: nh,
		Width: filled(nw, c.FillX), Height: filled(nh, c.FillY)}
	s.weigh()
	s.drawCoils(rng)
	s.drawPhase(rng)
	if err := s.combine(); err != nil {
		return nil, err
	}
	if c.Warp > 0 {
		s.drawWarp(rng)
	}
	s.measure(rng)
	return s, nil
}

// filled returns the even number nearest to n·fill, and n itself without filling.
func filled(n int, fill float64) int {
	if fill == 1 {
		return n
	}
	return 2 * int(math.Round(float64(n)*fill/2))
}

// drawCoils places the coils on a circle around the image. Each sees the tissue by a Gaussian
// of the distance, under a phase that turns slowly.
func (s *Scanner) drawCoils(rng *rand.Rand) {
	n := s.chain.Coils
	s.coils = make([][]complex128, n)
	if n == 1 {
		s.coils[0] = make([]complex128, s.nw*s.nh)
		for i := range s.coils[0] {
			s.coils[0][i] = 1
		}
	}
	turn, radius, spread := 2*math.Pi*rng.Float64(), 0.55+0.3*rng.Float64(), 0.45+0.25*rng.Float64()
	for k := range s.coils {
		if n == 1 {
			break
		}
		a := turn + 2*math.Pi*float64(k)/float64(n)
		px, py := 0.5+radius*math.Cos(a), 0.5+radius*math.Sin(a)
		phase, gx, gy := 2*math.Pi*rng.Float64(), 2*rng.NormFloat64(), 2*rng.NormFloat64()
		c := make([]complex128, s.nw*s.nh)
		for y := range s.nh {
			v := (float64(y) + 0.5) / float64(s.nh)
			for x := range s.nw {
				u := (float64(x) + 0.5) / float64(s.nw)
				d := (u-px)*(u-px) + (v-py)*(v-py)
				c[y*s.nw+x] = cmplx.Rect(math.Exp(-d/(2*spread*spread)), phase+gx*u+gy*v)
			}
		}
		s.coils[k] = c
	}
	// sum of squares of 1 in the mean, so that tissue keeps its values
	sum := 0.0
	for _, c := range s.coils {
		for _, v := range c {
			sum += real(v)*real(v) + imag(v)*imag(v)
		}
	}
	scale := complex(1/math.Sqrt(sum/float64(s.nw*s.nh)), 0)
	for _, c := range s.coils {
		for i := range c {
			c[i] *= scale
		}
	}
	// Cholesky of the correlation of noise, rho^|j−k|
	s.mixing = make([][]float64, n)
	for j := range s.mixing {
		s.mixing[j] = make([]float64, j+1)
		for k := range j + 1 {
			v := math.Pow(s.chain.CoilCorrelation, float64(j-k))
			for i := range k {
				v -= s.mixing[j][i] * s.mixing[k][i]
			}
			if j == k {
				s.mixing[j][k] = math.Sqrt(v)
			} else {
				s.mixing[j][k] = v / s.mixing[k][k]
			}
		}
	}
}

// drawPhase draws a phase that varies by some radians over the image.
func (s *Scanner) drawPhase(rng *rand.Rand) {
	s.phase = make([]complex128, s.nw*s.nh)
	p0 := 2 * math.Pi * rng.Float64()
	gx, gy, qx, qy := 2*rng.NormFloat64(), 2*rng.NormFloat64(), rng.NormFloat64(), rng.NormFloat64()
	for y := range s.nh {
		v := float64(y)/float64(s.nh) - 0.5
		for x := range s.nw {
			u := float64(x)/float64(s.nw) - 0.5
			s.phase[y*s.nw+x] = cmplx.Rect(1, p0+gx*u+gy*v+4*qx*u*u+4*qy*v*v)
		}
	}
}

// covariance is that of the noise of two coils.
func (s *Scanner) covariance(j, k int) float64 {
	sum := 0.0
	for i := range min(j, k) + 1 {
		sum += s.mixing[j][i] * s.mixing[k][i]
	}
	return sum
}

// combine prepares what makes one image of the coils', and its noise.
func (s *Scanner) combine() error {
	n, r := len(s.coils), s.chain.Acceleration
	size := s.nw * s.nh
	s.shade, s.gainNative = make([]float32, size), make([]float32, size)
	cov := make([][]complex128, n)
	for j := range cov {
		cov[j] = make([]complex128, n)
		for k := range cov[j] {
			cov[j][k] = complex(s.covariance(j, k), 0)
		}
	}
	power := func(i int) float64 {
		sum := 0.0
		for _, c := range s.coils {
			sum += real(c[i])*real(c[i]) + imag(c[i])*imag(c[i])
		}
		return sum
	}
	if r == 1 {
		weights := make([]complex128, n)
		for i := range size {
			p := math.Sqrt(power(i))
			for k, c := range s.coils {
				weights[k] = cmplx.Conj(c[i]) / complex(p, 0)
			}
			s.shade[i], s.gainNative[i] = float32(p), float32(quadratic(weights, cov))
		}
	} else {
		s.unfold = make([][]complex128, n)
		for k := range s.unfold {
			s.unfold[k] = make([]complex128, size)
		}
		places := make([]int, r)
		weights := make([]complex128, n)
		for i := range size / r {
			// the pixels that fall onto one
			for f := range r {
				places[f] = s.aliased(i, f)
			}
			inverse, err := s.invertible(places)
			if err != nil {
				return err
			}
			for f, at := range places {
				p := math.Sqrt(power(at))
				for k, c := range s.coils {
					u := complex(0, 0)
					for g, other := range places {
						u += inverse[f][g] * cmplx.Conj(c[other])
					}
					s.unfold[k][at] = u * complex(p, 0)
					weights[k] = s.unfold[k][at]
				}
				// a line in r is measured: the mean of as many has r times the variance
				s.shade[at], s.gainNative[at] = float32(p), float32(quadratic(weights, cov)*math.Sqrt(float64(r)))
			}
		}
	}
	s.seen = s.shade
	if s.chain.Uniform {
		s.shade = make([]float32, size)
		for i, p := range s.seen {
			s.gainNative[i] /= p
			s.shade[i] = 1
			for _, u := range s.unfold {
				u[i] /= complex(float64(p), 0)
			}
		}
	}
	return nil
}

// aliased returns the f-th of the pixels that fall onto the folded pixel i.
func (s *Scanner) aliased(i, f int) int {
	r := s.chain.Acceleration
	if s.chain.AlongX {
		folded := s.nw / r
		return i/folded*s.nw + i%folded + f*folded
	}
	return i + f*(s.nh/r)*s.nw
}

// invertible returns the inverse of SᴴS of the coils at some pixels.
func (s *Scanner) invertible(places []int) ([][]complex128, error) {
	r := len(places)
	m := make([][]complex128, r)
	for f := range m {
		m[f] = make([]complex128, 2*r)
		for g := range r {
			for _, c := range s.coils {
				m[f][g] += cmplx.Conj(c[places[f]]) * c[places[g]]
			}
		}
		// what scanners add so that pixels that the coils cannot tell apart do not blow up
		m[f][f] *= 1 + 1e-3
		m[f][r+f] = 1
	}
	for k := range r {
		if cmplx.Abs(m[k][k]) < 1e-12 {
			return nil, errors.New("scanner chain: Acceleration: the coils do not tell pixels apart")
		}
		pivot := m[k][k]
		for c := range m[k] {
			m[k][c] /= pivot
		}
		for f := range r {
			if f == k {
				continue
			}
			by := m[f][k]
			for c := range m[f] {
				m[f][c] -= by * m[k][c]
			}
		}
	}
	for f := range m {
		m[f] = m[f][r:]
	}
	return m, nil
}

// quadratic returns the root of w·cov·wᴴ.
func quadratic(w []complex128, cov [][]complex128) float64 {
	sum := 0.0
	for j, row := range cov {
		for k, c := range row {
			sum += real(w[j] * c * cmplx.Conj(w[k]))
		}
	}
	return math.Sqrt(max(sum, 0))
}

// drawWarp draws displacements that vary slowly and are greatest far from the centre.
func (s *Scanner) drawWarp(rng *rand.Rand) {
	n := s.Width * s.Height
	s.dx, s.dy = make([]float32, n), make([]float32, n)
	var c [8]float64
	for i := range c {
		c[i] = 2*rng.Float64() - 1
	}
	most := 0.0
	at := func(i int) (float64, float64) {
		u, v := float64(i%s.Width)/float64(s.Width)-0.5, float64(i/s.Width)/float64(s.Height)-0.5
		return c[0] + c[1]*u + c[2]*v + 4*c[3]*u*u*u, c[4] + c[5]*u + c[6]*v + 4*c[7]*v*v*v
	}
	for i := range n {
		x, y := at(i)
		most = max(most, math.Abs(x), math.Abs(y))
	}
	for i := range n {
		x, y := at(i)
		s.dx[i], s.dy[i] = float32(x*s.chain.Warp/most), float32(y*s.chain.Warp/most)
	}
}

// measure finds the noise of what the chain stores, from noise alone: its gain and its
// correlation, and with them the level that gives Chain.Noise.
func (s *Scanner) measure(rng *rand.Rand) {
	unit := make([]complex128, s.nw*s.nh)
	for i := range unit {
		unit[i] = complex(rng.NormFloat64(), rng.NormFloat64())
	}
	img := make([]float32, s.Width*s.Height)
	for i, v := range s.reconstruct(unit, nil) {
		img[i] = float32(real(v))
	}
	w, h := s.Width, s.Height
	if s.dx != nil {
		s.blur = s.blurred(img)
	}
	img = s.process(img, false)
	for dy := range s.Rho {
		for dx := range s.Rho[dy] {
			// both diagonals: the filters are even
			s.Rho[dy][dx] = (product(img, w, h, dx, dy) + product(img, w, h, -dx, dy)) / 2
		}
	}
	gain := math.Sqrt(s.Rho[0][0])
	s.carried *= gain * math.Sqrt(float64(s.nw*s.nh)/float64(s.w*s.h))
	for dy := range s.Rho {
		for dx := range s.Rho[dy] {
			s.Rho[dy][dx] /= gain * gain
		}
	}
	s.Rho[0][0] = 1
	s.Sigma = make([]float32, w*h)
	sum := 0.0
	for i := range s.Sigma {
		g := s.stored(s.gainNative, s.nw, s.nh, i)
		if s.blur != nil {
			g *= float64(s.blur[i])
		}
		s.Sigma[i] = float32(g)
		sum += g * g
	}
	mean := math.Sqrt(sum / float64(w*h))
	s.level = s.chain.Noise / (gain * mean)
	for i := range s.Sigma {
		s.Sigma[i] *= float32(s.chain.Noise / mean)
	}
}

// product is the mean product of the pixels of an image and those dx and dy, at least 0, away.
func product(img []float32, w, h, dx, dy int) float64 {
	sum := 0.0
	for y := range h - dy {
		for x := max(0, -dx); x < min(w, w-dx); x++ {
			sum += float64(img[y*w+x]) * float64(img[(y+dy)*w+x+dx])
		}
	}
	return sum / float64((w-max(dx, -dx))*(h-dy))
}

// blurred returns by how much the resampling changes the standard deviation of noise at each
// pixel, of root mean square 1: least half way between pixels, the less the more it is
// correlated. noise is such noise before.
func (s *Scanner) blurred(noise []float32) []float32 {
	var rx, ry [4]float64
	for d := range rx {
		rx[d], ry[d] = product(noise, s.Width, s.Height, d, 0), product(noise, s.Width, s.Height, 0, d)
	}
	variance := func(shift float32, rho *[4]float64) float64 {
		c := cubic(shift - float32(math.Floor(float64(shift))))
		sum := 0.0
		for j, a := range c {
			for k, b := range c {
				sum += float64(a) * float64(b) * rho[max(j-k, k-j)]
			}
		}
		return sum
	}
	out, sum := make([]float32, len(s.dx)), 0.0
	for i := range out {
		v := variance(s.dx[i], &rx) * variance(s.dy[i], &ry)
		out[i] = float32(math.Sqrt(v))
		sum += v
	}
	mean := float32(math.Sqrt(sum / float64(len(out))))
	for i := range out {
		out[i] /= mean
	}
	return out
}

// stored returns the value of a w×h image at the i-th stored pixel. Zero-filling and cutting
// k-space leave the first pixel where it is.
func (s *Scanner) stored(img []float32, w, h, i int) float64 {
	x, y := i%s.Width, i/s.Width
	return bilinear(img, w, h, float64(x)*float64(w)/float64(s.Width), float64(y)*float64(h)/float64(s.Height))
}

func bilinear(img []float32, w, h int, x, y float64) float64 {
	x, y = min(max(x, 0), float64(w-1)), min(max(y, 0), float64(h-1))
	x0, y0 := min(int(x), max(w-2, 0)), min(int(y), max(h-2, 0))
	x1, y1 := min(x0+1, w-1), min(y0+1, h-1)
	fx, fy := x-float64(x0), y-float64(y0)
	top := float64(img[y0*w+x0])*(1-fx) + float64(img[y0*w+x1])*fx
	bottom := float64(img[y1*w+x0])*(1-fx) + float64(img[y1*w+x1])*fx
	return top*(1-fy) + bottom*fy
}

// Signal returns what the scanner stores of an image without any noise.
func (s *Scanner) Signal(img []float32) []float32 { return s.run(img, nil) }

// Acquire returns what the scanner stores of an image, with noise drawn from rng.
func (s *Scanner) Acquire(img []float32, rng *rand.Rand) []float32 { return s.run(img, rng) }

// Carried returns the standard deviation that white noise of the image itself, sigma at each
// of its pixels, has in what is stored.
func (s *Scanner) Carried(sigma []float32) []float32 {
	out := make([]float32, s.Width*s.Height)
	for i := range out {
		v := s.carried * s.stored(sigma, s.w, s.h, i) * s.stored(s.shade, s.nw, s.nh, i)
		if s.blur != nil {
			v *= float64(s.blur[i])
		}
		out[i] = float32(v)
	}
	return out
}

func (s *Scanner) run(img []float32, rng *rand.Rand) []float32 {
	tissue := s.sample(img)
	homodyne := s.chain.Partial < 1 && s.chain.Homodyne
	out := make([]float32, s.Width*s.Height)
	if s.chain.Adaptive || s.unfold != nil || len(s.coils) == 1 {
		for i, g := range s.shade {
			tissue[i] *= complex(float64(g), 0)
		}
		if rng != nil {
			s.addCombined(tissue, rng)
		}
		for i, v := range s.reconstruct(tissue, s.phase) {
			if homodyne {
				out[i] = float32(math.Abs(real(v)))
			} else {
				out[i] = float32(cmplx.Abs(v))
			}
		}
		return s.process(out, true)
	}
	// root of the sum of squares
	squares := make([]float64, len(out))
	var noise [][]complex128
	if rng != nil {
		noise = s.drawNoise(len(tissue), rng)
	}
	coil, phase := make([]complex128, len(tissue)), make([]complex128, len(tissue))
	for k, c := range s.coils {
		for i, v := range tissue {
			coil[i] = v * c[i]
			if noise != nil {
				coil[i] += noise[k][i]
			}
			phase[i] = s.phase[i] * c[i] / complex(cmplx.Abs(c[i]), 0)
		}
		for i, v := range s.reconstruct(coil, phase) {
			squares[i] += real(v) * real(v)
			if !homodyne {
				squares[i] += imag(v) * imag(v)
			}
		}
	}
	for i, v := range squares {
		out[i] = float32(math.Sqrt(v))
	}
	if s.chain.Uniform {
		for i := range out {
			out[i] /= float32(s.stored(s.seen, s.nw, s.nh, i))
		}
	}
	return s.process(out, true)
}

// drawNoise returns the noise of every coil at as many pixels.
func (s *Scanner) drawNoise(size int, rng *rand.Rand) [][]complex128 {
	out := make([][]complex128, len(s.coils))
	for k := range out {
		out[k] = make([]complex128, size)
		for i := range out[k] {
			out[k][i] = complex(s.level*rng.NormFloat64(), s.level*rng.NormFloat64())
		}
	}
	if s.chain.CoilCorrelation > 0 {
		for k := len(out) - 1; k >= 0; k-- {
			for i := range size {
				v := complex(0, 0)
				for j, m := range s.mixing[k] {
					v += complex(m, 0) * out[j][i]
				}
				out[k][i] = v
			}
		}
	}
	return out
}

// addCombined adds the coils' noise as the combination passes it on.
func (s *Scanner) addCombined(tissue []complex128, rng *rand.Rand) {
	if len(s.coils) == 1 || s.unfold == nil {
		// One weight at each pixel by itself: the noise is white, and of known strength.
		for i, g := range s.gainNative {
			tissue[i] += complex(s.level*float64(g)*rng.NormFloat64(), s.level*float64(g)*rng.NormFloat64())
		}
		return
	}
	// what was measured of every coil is folded, and so is its noise
	r := s.chain.Acceleration
	folded := s.nw * s.nh / r
	noise, root := s.drawNoise(folded, rng), complex(math.Sqrt(float64(r)), 0)
	for i := range folded {
		for f := range r {
			at := s.aliased(i, f)
			for k, u := range s.unfold {
				tissue[at] += u[at] * noise[k][i] * root
			}
		}
	}
}

// sample returns the tissue on the matrix: the image under its phase, cut in k-space.
func (s *Scanner) sample(img []float32) []complex128 {
	c := make([]complex128, s.w*s.h)
	for i, v := range img {
		c[i] = complex(float64(v), 0)
	}
	if s.nw != s.w || s.nh != s.h {
		s.fft.transform(c, s.w, s.h, false)
		c = resize(c, s.w, s.h, s.nw, s.nh)
		s.fft.transform(c, s.nw, s.nh, true)
		scale := complex(1/float64(s.w*s.h), 0)
		for i := range c {
			c[i] *= scale
		}
	}
	for i := range c {
		c[i] *= s.phase[i]
	}
	return c
}

// reconstruct takes an image from the matrix to the stored size: partial Fourier, filter and
// zero-filling, in k-space. phase is what homodyne reconstruction takes off before; nil
// takes off none. c is overwritten, and returned where nothing is to be done.
func (s *Scanner) reconstruct(c, phase []complex128) []complex128 {
	if s.weights == nil {
		return c
	}
	if s.chain.Partial < 1 && s.chain.Homodyne {
		for i, p := range phase {
			c[i] *= cmplx.Conj(p)
		}
	}
	s.fft.transform(c, s.nw, s.nh, false)
	for i, g := range s.weights {
		c[i] *= complex(g/float64(s.nw*s.nh), 0)
	}
	if s.Width != s.nw || s.Height != s.nh {
		c = resize(c, s.nw, s.nh, s.Width, s.Height)
	}
	s.fft.transform(c, s.Width, s.Height, true)
	return c
}

// weigh prepares what the measured frequencies are multiplied by: partial Fourier and the filter.
func (s *Scanner) weigh() {
	f := s.chain
	s.carried = 1
	if f.Partial == 1 && f.Filter == NoFilter && s.Width == s.nw && s.Height == s.nh {
		return
	}
	s.weights = make([]float64, s.nw*s.nh)
	wx, wy := s.window(s.nw, f.AlongX), s.window(s.nh, !f.AlongX)
	for y := range s.nh {
		ky := distance(y, s.nh)
		for x := range s.nw {
			g := wx[x] * wy[y]
			if f.Round {
				g *= f.Filter.at(math.Hypot(distance(x, s.nw), ky))
			}
			s.weights[y*s.nw+x] = g
		}
	}
	// The two halves of the spectrum of a real image are one: of them, their mean weight is seen.
	// Those of complex noise are not, and the squares of their weights add.
	one, two := 0.0, 0.0
	for y := range s.nh {
		for x := range s.nw {
			a, b := s.weights[y*s.nw+x], s.weights[(s.nh-y)%s.nh*s.nw+(s.nw-x)%s.nw]
			one, two = one+(a+b)*(a+b)/4, two+(a*a+b*b)/2
		}
	}
	s.carried = math.Sqrt(one / two)
}

// distance returns the frequency k of n, of the half-width.
func distance(k, n int) float64 { return math.Abs(signed(k, n)) / (float64(n) / 2) }

func signed(k, n int) float64 {
	if 2*k > n {
		k -= n
	}
	return float64(k)
}

// window returns the weights of partial Fourier and of the filter along an axis.
func (s *Scanner) window(n int, phaseEncoding bool) []float64 {
	w := make([]float64, n)
	for k := range w {
		w[k] = 1
		if !s.chain.Round {
			w[k] = s.chain.Filter.at(distance(k, n))
		}
		if !phaseEncoding || s.chain.Partial == 1 {
			continue
		}
		// frequencies below −edge are not measured; the weight turns over within some lines
		edge := (s.chain.Partial - 0.5) * float64(n)
		soft := max(edge/4, 1)
		up := min(max((signed(k, n)+edge)/soft, 0), 1) // 0 where nothing is measured
		if s.chain.Homodyne && 2*k != n {              // the highest frequency is its own counterpart
			up += min(max((signed(k, n)-edge+soft)/soft, 0), 1)
		}
		w[k] *= up
	}
	return w
}

func (f Filter) at(k float64) float64 {
	switch f {
	case Hamming:
		return 0.54 + 0.46*math.Cos(math.Pi*min(k, 1))
	case Fermi:
		return 1 / (1 + math.Exp((k-0.9)/0.05))
	}
	return 1
}

// process does what is done to a magnitude: resampling, edge enhancement and storage.
func (s *Scanner) process(img []float32, store bool) []float32 {
	if s.dx != nil {
		img = s.warp(img)
	}
	if a := float32(s.chain.Sharpen); a > 0 {
		low := make([]float64, len(img))
		for i, v := range img {
			low[i] = float64(v)
		}
		smooth(low, s.Width, s.Height, s.chain.SharpenSpread)
		for i, v := range img {
			img[i] = v + a*(v-float32(low[i]))
		}
	}
	if !store {
		return img
	}
	for i, v := range img {
		img[i] = max(v, 0)
	}
	if s.chain.Bits == 0 {
		return img
	}
	low, high := s.chain.Low, s.chain.High
	if low == 0 && high == 0 {
		high = 1.2
	}
	steps := float64(int(1)<<s.chain.Bits - 1)
	for i, v := range img {
		k := math.Round((float64(v) - low) / (high - low) * steps)
		img[i] = float32(min(max(k, 0), steps) / steps * (high - low))
	}
	return img
}

// cubic returns the weights of four pixels at t, 0 to 1, behind the second: cubic convolution
// (Keys 1981).
func cubic(t float32) [4]float32 {
	return [4]float32{
		((-0.5*t+1)*t - 0.5) * t,
		(1.5*t-2.5)*t*t + 1,
		((-1.5*t+2)*t + 0.5) * t,
		(0.5*t - 0.5) * t * t,
	}
}

// warp resamples.
func (s *Scanner) warp(img []float32) []float32 {
	w, h := s.Width, s.Height
	out := make([]float32, len(img))
	for y := range h {
		for x := range w {
			i := y*w + x
			fx, fy := float32(x)+s.dx[i], float32(y)+s.dy[i]
			x0, y0 := int(math.Floor(float64(fx))), int(math.Floor(float64(fy)))
			cx, cy := cubic(fx-float32(x0)), cubic(fy-float32(y0))
			sum := float32(0)
			for j := range 4 {
				row := img[min(max(y0+j-1, 0), h-1)*w:][:w]
				r := float32(0)
				for k := range 4 {
					r += cx[k] * row[min(max(x0+k-1, 0), w-1)]
				}
				sum += cy[j] * r
			}
			out[i] = sum
		}
	}
	return out
}

// plans are the tables of Fourier transforms, by their length.
type plans map[int]*fourier.CmplxFFT

func (p plans) of(n int) *fourier.CmplxFFT {
	if p[n] == nil {
		p[n] = fourier.NewCmplxFFT(n)
	}
	return p[n]
}

// transform is the discrete Fourier transform in place, without a factor.
func (p plans) transform(c []complex128, w, h int, inverse bool) {
	fw, fh := p.of(w), p.of(h)
	for y := range h {
		row := c[y*w:][:w]
		if inverse {
			fw.Sequence(row, row)
		} else {
			fw.Coefficients(row, row)
		}
	}
	col := make([]complex128, h)
	for x := range w {
		for y := range h {
			col[y] = c[y*w+x]
		}
		if inverse {
			fh.Sequence(col, col)
		} else {
			fh.Coefficients(col, col)
		}
		for y := range h {
			c[y*w+x] = col[y]
		}
	}
}

// resize cuts a spectrum, or continues it by zeros, to other sizes.
func resize(c []complex128, w, h, nw, nh int) []complex128 {
	out := make([]complex128, nw*nh)
	mw, mh := min(w, nw), min(h, nh)
	for y := -(mh - 1) / 2; y <= mh/2; y++ {
		for x := -(mw - 1) / 2; x <= mw/2; x++ {
			out[(y+nh)%nh*nw+(x+nw)%nw] = c[(y+h)%h*w+(x+w)%w]
		}
	}
	return out
}
