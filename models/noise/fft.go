package noise

import (
	"math"

	"github.com/diffdenoise/denoised/internal/numeric"
)

// lanes is how many lines a transform works on at a time: they lie side by side,
// so that the innermost loops run over contiguous values with one twiddle factor.
const lanes = 16

// fft computes discrete Fourier transforms of n points, of lanes lines at once, in
// single precision (Stockham's self-sorting form; any n, fast if its prime factors
// are small). It never changes.
type fft struct {
	n        int
	factors  []int
	cos, sin []float32 // of -2πk/n
}

func newFFT(n int) *fft {
	f := &fft{n: n, factors: factors(n), cos: make([]float32, n), sin: make([]float32, n)}
	for k := range n {
		s, c := math.Sincos(-2 * math.Pi * float64(k) / float64(n))
		f.cos[k], f.sin[k] = float32(c), float32(s)
	}
	return f
}

// factors splits n into 4s, at most one 2, and odd primes.
func factors(n int) []int {
	var out []int
	for n%4 == 0 {
		out, n = append(out, 4), n/4
	}
	for p := 2; n > 1; p++ {
		if p*p > n {
			p = n
		}
		for n%p == 0 {
			out, n = append(out, p), n/p
		}
	}
	return out
}

// work is room for lines and their transforms: [n][lanes], real and imaginary.
type work struct{ re, im, re2, im2 []float32 }

func (w *work) size(n int) {
	n *= lanes
	w.re, w.im, w.re2, w.im2 = numeric.Grow(w.re, n), numeric.Grow(w.im, n), numeric.Grow(w.re2, n),
		numeric.Grow(w.im2, n)
}

// inverse is transform without the minus sign of the exponent; neither scales.
func (f *fft) inverse(w *work) {
	w.re, w.im, w.re2, w.im2 = w.im, w.re, w.im2, w.re2
	f.transform(w)
	w.re, w.im, w.re2, w.im2 = w.im, w.re, w.im2, w.re2
}

// transform replaces the lines in w.re, w.im by their transforms.
func (f *fft) transform(w *work) {
	n, s := f.n, lanes // points of this stage, and values between two of them
	for _, r := range f.factors {
		m := n / r
		step := f.n / n // of the twiddle table
		for p := range m {
			switch r {
			case 4:
				f.radix4(w, p, m, s, step)
			case 2:
				f.radix2(w, p, m, s, step)
			default:
				f.radix(w, r, p, m, s, step)
			}
		}
		w.re, w.im, w.re2, w.im2 = w.re2, w.im2, w.re, w.im
		n, s = m, s*r
	}
}

func (f *fft) radix4(w *work, p, m, s, step int) {
	in := func(v []float32, k int) []float32 { return v[(p+k*m)*s:][:s] }
	out := func(v []float32, j int) []float32 { return v[(4*p+j)*s:][:s] }
	ar, br, cr, dr := in(w.re, 0), in(w.re, 1), in(w.re, 2), in(w.re, 3)
	ai, bi, ci, di := in(w.im, 0), in(w.im, 1), in(w.im, 2), in(w.im, 3)
	r0, r1, r2, r3 := out(w.re2, 0), out(w.re2, 1), out(w.re2, 2), out(w.re2, 3)
	i0, i1, i2, i3 := out(w.im2, 0), out(w.im2, 1), out(w.im2, 2), out(w.im2, 3)
	t := p * step
	c1, s1, c2, s2, c3, s3 := f.cos[t], f.sin[t], f.cos[2*t], f.sin[2*t], f.cos[3*t], f.sin[3*t]
	for k := range s {
		pr, pi := ar[k]+cr[k], ai[k]+ci[k]
		mr, mi := ar[k]-cr[k], ai[k]-ci[k]
		qr, qi := br[k]+dr[k], bi[k]+di[k]
		nr, ni := br[k]-dr[k], bi[k]-di[k]
		r0[k], i0[k] = pr+qr, pi+qi
		xr, xi := mr+ni, mi-nr
		r1[k], i1[k] = xr*c1-xi*s1, xr*s1+xi*c1
		xr, xi = pr-qr, pi-qi
		r2[k], i2[k] = xr*c2-xi*s2, xr*s2+xi*c2
		xr, xi = mr-ni, mi+nr
		r3[k], i3[k] = xr*c3-xi*s3, xr*s3+xi*c3
	}
}

func (f *fft) radix2(w *work, p, m, s, step int) {
	ar, ai := w.re[p*s:][:s], w.im[p*s:][:s]
	br, bi := w.re[(p+m)*s:][:s], w.im[(p+m)*s:][:s]
	r0, i0 := w.re2[2*p*s:][:s], w.im2[2*p*s:][:s]
	r1, i1 := w.re2[(2*p+1)*s:][:s], w.im2[(2*p+1)*s:][:s]
	c, sn := f.cos[p*step], f.sin[p*step]
	for k := range s {
		xr, xi := ar[k]-br[k], ai[k]-bi[k]
		r0[k], i0[k] = ar[k]+br[k], ai[k]+bi[k]
		r1[k], i1[k] = xr*c-xi*sn, xr*sn+xi*c
	}
}

// radix is one stage of any prime factor.
func (f *fft) radix(w *work, r, p, m, s, step int) {
	for j := range r {
		yr, yi := w.re2[(r*p+j)*s:][:s], w.im2[(r*p+j)*s:][:s]
		clear(yr)
		clear(yi)
		for k := range r {
			// both the stage's own factor, j·k/r, and the one towards the next stage
			t := (j*k%r*(f.n/r) + p*j*step) % f.n
			c, sn := f.cos[t], f.sin[t]
			xr, xi := w.re[(p+k*m)*s:][:s], w.im[(p+k*m)*s:][:s]
			for q := range s {
				yr[q] += xr[q]*c - xi[q]*sn
				yi[q] += xr[q]*sn + xi[q]*c
			}
		}
	}
}
