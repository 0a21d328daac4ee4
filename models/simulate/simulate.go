// Package simulate adds noise of a known kind to an image. A [Noise] is one kind,
// a [Row] names one; [Rows] are those of the protocol that training and evaluation
// share (docs/evaluation.md).
//
// Images are in units where 1 is the 99.9th percentile of their volume, and k/255
// is k of 255 parts of that. Randomness comes from what the caller passes in only:
// equal sources give equal noise, bit for bit.
package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/dsp/fourier"
)

// Noise makes a noisy image. img is w×h, row major, and is not changed. The
// results are as large: the noisy image, the standard deviation of the noise at
// every pixel, and the image to compare with. The last is img itself unless
// making the noise takes something off it, as zero-filling does; it may be img's
// memory. rng must not be shared with other goroutines.
type Noise func(img []float32, w, h int, rng *rand.Rand) (noisy, sigma, ref []float32)

// Row is one row of a table of scores.
type Row struct {
	Name  string
	Noise Noise
	MR    bool // only magnetic resonance has this kind of noise
	// Magnitude says that the noisy image is a magnitude: Rician.
	Magnitude bool
}

// Level is the standard deviation of the rows that do not name another one: 6/255,
// which gives a noisy PSNR of 32.57 dB.
const Level = 6. / 255

// Rows returns the rows of the protocol: Gaussian, Poisson, gamma and correlated
// noise of arXiv 2504.00264, and what MR adds to them.
func Rows() []Row {
	return []Row{
		{Name: "Gaussian 6/255", Noise: Gaussian(Level)},
		{Name: "Gaussian 2/255", Noise: Gaussian(Level / 3)},
		{Name: "Gaussian 12/255", Noise: Gaussian(2 * Level)},
		{Name: "varying 3 to 12/255", Noise: Varying(Level)},
		{Name: "Poisson 200", Noise: Poisson(200)},
		{Name: "Poisson 700", Noise: Poisson(700)},
		{Name: "gamma 100", Noise: Gamma(100)},
		{Name: "gamma 500", Noise: Gamma(500)},
		{Name: "correlated 0.5", Noise: Correlated(0.5, Level)},
		{Name: "correlated 1.2", Noise: Correlated(1.2, Level)},
		{Name: "Rician 6/255", Noise: Complex(1, Level, true), MR: true, Magnitude: true},
		{Name: "Rician 10/255", Noise: Complex(1, 10./255, true), MR: true, Magnitude: true},
		{Name: "zero-filled 1.31", Noise: Complex(1.31, Level, false), MR: true},
		{Name: "zero-filled 2", Noise: Complex(2, Level, false), MR: true},
		{Name: "zero-filled 1.31, magnitude", Noise: Complex(1.31, Level, true), MR: true, Magnitude: true},
		{Name: "zero-filled 2, magnitude", Noise: Complex(2, Level, true), MR: true, Magnitude: true},
	}
}

// Find returns the rows of the given names in their order.
func Find(names ...string) ([]Row, error) {
	all := Rows()
	rows := make([]Row, 0, len(names))
	for _, name := range names {
		k := slices.IndexFunc(all, func(r Row) bool { return r.Name == name })
		if k < 0 {
			known := make([]string, len(all))
			for i, r := range all {
				known[i] = r.Name
			}
			return nil, fmt.Errorf("there is no noise row %q; there are %q", name, known)
		}
		rows = append(rows, all[k])
	}
	return rows, nil
}

// Gaussian is white noise of one standard deviation.
func Gaussian(sd float64) Noise { return additive(func(_, _ float64) float64 { return sd }) }

// Varying is white noise of half sd around the place (0.3, 0.6) of the image, in
// shares of its width and height, rising to twice sd away from it, as where coils
// see little.
func Varying(sd float64) Noise {
	return additive(func(x, y float64) float64 {
		return sd * (0.5 + 1.5*math.Min(1, (x-.3)*(x-.3)*1.6+(y-.6)*(y-.6)*1.6))
	})
}

func additive(sd func(x, y float64) float64) Noise {
	return func(img []float32, w, h int, rng *rand.Rand) ([]float32, []float32, []float32) {
		y, s := make([]float32, len(img)), make([]float32, len(img))
		for i, v := range img {
			sg := sd(float64(i%w)/float64(w), float64(i/w)/float64(h))
			y[i], s[i] = v+float32(sg*rng.NormFloat64()), float32(sg)
		}
		return y, s, img
	}
}

// exactPoisson is the mean below which counts are drawn one by one; above it the
// normal distribution is close enough.
const exactPoisson = 50

// poisson draws a count of mean m.
func poisson(m float64, rng *rand.Rand) (n float64) {
	if m >= exactPoisson {
		return math.Round(m + math.Sqrt(m)*rng.NormFloat64())
	}
	// Knuth, The Art of Computer Programming 2, 3.4.1
	for q := rng.Float64(); q > math.Exp(-m); n++ {
		q *= rng.Float64()
	}
	return n
}

// Poisson is counting noise with the given count at 1.
func Poisson(peak float64) Noise {
	return func(img []float32, w, h int, rng *rand.Rand) ([]float32, []float32, []float32) {
		y, s := make([]float32, len(img)), make([]float32, len(img))
		for i, v := range img {
			m := max(float64(v), 0) * peak
			n := poisson(m, rng)
			y[i], s[i] = float32(n/peak), float32(math.Sqrt(m)/peak)
		}
		return y, s, img
	}
}

// Gamma multiplies with gamma noise of the given shape and the mean 1, drawn as in
// Marsaglia and Tsang, ACM Trans. Math. Softw. 26 (2000) 363. The shape is at least 1.
func Gamma(shape float64) Noise {
	d := shape - 1./3
	draw := func(rng *rand.Rand) float64 {
		for {
			x := rng.NormFloat64()
			t := math.Pow(1+x/math.Sqrt(9*d), 3)
			if t > 0 && math.Log(rng.Float64()) < x*x/2+d-d*t+d*math.Log(t) {
				return d * t / shape
			}
		}
	}
	return func(img []float32, w, h int, rng *rand.Rand) ([]float32, []float32, []float32) {
		y, s := make([]float32, len(img)), make([]float32, len(img))
		for i, v := range img {
			y[i], s[i] = v*float32(draw(rng)), max(v, -v)/float32(math.Sqrt(shape))
		}
		return y, s, img
	}
}

// reach is how far, in pixels, the smoothing of correlated noise is computed: all
// around images up to twice as large; of larger ones, less than one part in ten
// million of the noise's energy is left out.
const reach = 128

// Correlated is white noise smoothed with a Gaussian of the given spread in
// pixels, then scaled so that this very draw has the standard deviation sd. The
// smoothing is the transfer function exp(−2π²·spread²·f²), f in cycles per pixel,
// along each axis; it goes around the image's borders, so that the noise is the
// same everywhere.
func Correlated(spread, sd float64) Noise {
	return func(img []float32, w, h int, rng *rand.Rand) ([]float32, []float32, []float32) {
		n := make([]float64, len(img))
		for i := range n {
			n[i] = rng.NormFloat64()
		}
		smooth(n, w, h, spread)
		sum := 0.0
		for _, v := range n {
			sum += v * v
		}
		a := 0.0
		if sum > 0 {
			a = sd / math.Sqrt(sum/float64(len(n)))
		}
		y, s := make([]float32, len(n)), make([]float32, len(n))
		for i, v := range n {
			y[i], s[i] = img[i]+float32(a*v), float32(sd)
		}
		return y, s, img
	}
}

// kernel is the transfer function of Correlated on a line of n pixels, at the
// distances 0 to reach, at most half the line.
func kernel(spread float64, n int) []float64 {
	cos := make([]float64, n)
	for i := range cos {
		cos[i] = math.Cos(2 * math.Pi * float64(i) / float64(n))
	}
	k := make([]float64, min(reach, n/2)+1)
	for f := range n {
		at := float64(min(f, n-f)) / float64(n)
		g := math.Exp(-2*math.Pi*math.Pi*spread*spread*at*at) / float64(n)
		for x := range k {
			k[x] += g * cos[f*x%n]
		}
	}
	if last := len(k) - 1; last > 0 && 2*last == n {
		k[last] /= 2 // the pixel at this distance is met on both sides
	}
	return k
}

// smooth replaces n by its circular convolution with the kernel along both axes.
func smooth(n []float64, w, h int, spread float64) {
	k := kernel(spread, w)
	side := len(k) - 1
	row := make([]float64, w+2*side) // with its other end on both sides
	for y := range h {
		line := n[y*w:][:w]
		copy(row[side:], line)
		copy(row, line[w-side:])
		copy(row[side+w:], line[:side])
		for x := range line {
			left, right := row[x:][:side+1], row[x+side:][:side+1]
			s := k[0] * right[0]
			for d := 1; d <= side; d++ {
				s += k[d] * (left[side-d] + right[d])
			}
			line[x] = s
		}
	}
	k = kernel(spread, h)
	src := slices.Clone(n)
	for y := range h {
		out := n[y*w:][:w]
		for x, v := range src[y*w:][:w] {
			out[x] = k[0] * v
		}
		for d := 1; d < len(k); d++ {
			above, below := src[(y-d+h)%h*w:][:w], src[(y+d)%h*w:][:w]
			for x := range out {
				out[x] += k[d] * (above[x] + below[x])
			}
		}
	}
}

// Complex is white noise of standard deviation sd in the real and the imaginary
// part of the image, with k-space zero-filled by the factor fill, at least 1: only
// the central share 1/fill of the frequencies along each axis was measured. With
// magnitude it is Rician noise, without it the real part. The reference has the
// same frequencies as the image, and its magnitude if that is taken.
func Complex(fill, sd float64, magnitude bool) Noise {
	return func(p []float32, w, h int, rng *rand.Rand) ([]float32, []float32, []float32) {
		img, n := make([]complex128, len(p)), make([]complex128, len(p))
		for i, v := range p {
			img[i] = complex(float64(v), 0)
			n[i] = complex(sd*fill*rng.NormFloat64(), sd*fill*rng.NormFloat64())
		}
		if fill > 1 {
			keep := func(fx, fy float64) float64 {
				if math.Abs(fx) > 0.5/fill || math.Abs(fy) > 0.5/fill {
					return 0
				}
				return 1
			}
			filter(img, w, h, keep)
			filter(n, w, h, keep)
		}
		y, s, ref := make([]float32, len(n)), make([]float32, len(n)), make([]float32, len(n))
		for i := range y {
			s[i], ref[i] = float32(sd), float32(real(img[i]))
			c := img[i] + n[i]
			if y[i] = float32(real(c)); magnitude {
				y[i], ref[i] = float32(math.Hypot(real(c), imag(c))), float32(math.Abs(real(img[i])))
			}
		}
		return y, s, ref
	}
}

// filter multiplies the spectrum; frequencies are in cycles per pixel.
func filter(c []complex128, w, h int, f func(fx, fy float64) float64) {
	fw, fh := fourier.NewCmplxFFT(w), fourier.NewCmplxFFT(h)
	for y := range h {
		fw.Coefficients(c[y*w:][:w], c[y*w:][:w])
	}
	col := make([]complex128, h)
	for x := range w {
		for y := range h {
			col[y] = c[y*w+x]
		}
		fh.Coefficients(col, col)
		for y := range h {
			col[y] *= complex(f(fw.Freq(x), fh.Freq(y))/float64(w*h), 0)
		}
		fh.Sequence(col, col)
		for y := range h {
			c[y*w+x] = col[y]
		}
	}
	for y := range h {
		fw.Sequence(c[y*w:][:w], c[y*w:][:w])
	}
}
