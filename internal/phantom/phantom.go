// Package phantom makes MR-like series out of nothing: an axial head with
// folded cortex, ventricles, deep nuclei, vessels, skull and scalp, under coil
// shading, with Rician noise, zero-filled k-space and noise that varies over the
// image where asked for. A [Spec] says what is wanted, the [Volume] it gives
// knows the truth and writes valid MR Image Storage objects. It is made for tests
// and the demo: it looks like an MR image, it is not anybody's head.
package phantom

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/diffdenoise/denoised/internal/nifti"
	"gonum.org/v1/gonum/dsp/fourier"
)

// Spec describes a series. The zero value is a 256×256 series of 12 slices
// without noise. Equal specs give equal volumes, bit for bit, on one platform.
type Spec struct {
	Seed                  uint64
	Width, Height, Slices int     // 0: 256, 256, 12; at most 2048, 2048, 512
	Sigma                 float64 // of the noise in each of the real and imaginary part, fraction of the 99.9th percentile; 0 to 1
	Shading               bool    // the signal falls off from one side to the other, as under surface coils
	GFactor               bool    // the noise varies smoothly between about 0.5 and 1.8 times Sigma
	ZeroFill              float64 // matrix by measured k-space lines, per axis; 0 and 1: none, at most 4
	Blank                 bool    // air is set to exactly 0, as some scanners do
}

// Volume is a series. Slices are Width×Height, row major, in units where the
// 99.9th percentile of the whole truth is 1.
type Volume struct {
	Spec  Spec // with its defaults filled in
	Truth [][]float32
	Noisy [][]float32
}

const (
	maxSide   = 2048
	maxSlices = 512
	oversub   = 2 // samples per pixel and axis, for partial volume
)

// New makes the volume. It panics if the spec is outside its limits, which are
// fixed numbers in the program's own code and never input.
func New(s Spec) *Volume {
	for _, d := range []struct {
		v   *int
		def int
		max int
	}{{&s.Width, 256, maxSide}, {&s.Height, 256, maxSide}, {&s.Slices, 12, maxSlices}} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < 1 || *d.v > d.max {
			panic(fmt.Sprintf("phantom: size %d is outside 1 to %d", *d.v, d.max))
		}
	}
	if s.ZeroFill == 0 {
		s.ZeroFill = 1
	}
	if !(s.ZeroFill >= 1 && s.ZeroFill <= 4 && s.Sigma >= 0 && s.Sigma <= 1) {
		panic(fmt.Sprintf("phantom: zero fill %g or sigma %g out of range", s.ZeroFill, s.Sigma))
	}
	v := &Volume{Spec: s}
	n := s.Width * s.Height
	all := make([]float32, 0, n*s.Slices)
	v.Truth, v.Noisy = make([][]float32, s.Slices), make([][]float32, s.Slices)
	each(s.Slices, func(k int) { v.Truth[k] = limit(s.draw(k), s.Width, s.Height, s.ZeroFill) })
	for _, t := range v.Truth {
		all = append(all, t...)
	}
	slices.Sort(all)
	scale := all[int(0.999*float64(len(all)-1))]
	if scale <= 0 {
		scale = 1
	}
	each(s.Slices, func(k int) {
		for i := range v.Truth[k] {
			v.Truth[k][i] /= scale
		}
		v.Noisy[k] = s.measure(v.Truth[k], k)
	})
	return v
}

// each calls f for 0 to n-1 on all cores and returns when all are done.
func each(n int, f func(k int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for k := int(next.Add(1)) - 1; k < n; k = int(next.Add(1)) - 1 {
				f(k)
			}
		})
	}
	wg.Wait()
}

// measure adds complex noise to the truth and takes the magnitude.
func (s Spec) measure(truth []float32, k int) []float32 {
	out := slices.Clone(truth)
	if s.Sigma > 0 {
		rng := rand.New(rand.NewPCG(s.Seed, 0x6e6f697365<<16|uint64(k)))
		noise := make([]complex128, len(truth))
		for i := range noise {
			g := s.Sigma
			if s.GFactor {
				u, w := s.at(i)
				g *= 0.5 + 1.3*math.Exp(-3*((u-0.15)*(u-0.15)+(w+0.1)*(w+0.1)))
			}
			noise[i] = complex(g*rng.NormFloat64(), g*rng.NormFloat64())
		}
		lowpass(noise, s.Width, s.Height, s.ZeroFill)
		for i, c := range noise {
			// the low pass takes the share 1/ZeroFill² of the noise's energy
			c *= complex(s.ZeroFill, 0)
			out[i] = float32(math.Hypot(float64(truth[i])+real(c), imag(c)))
		}
	}
	if s.Blank {
		for i := range out {
			u, w := s.at(i)
			if r := s.head(u, w, s.height(k)); r > 1.06 {
				out[i] = 0
			}
		}
	}
	return out
}

// limit returns the magnitude of an image after the low pass of zero filling.
func limit(img []float32, w, h int, fill float64) []float32 {
	if fill == 1 {
		return img
	}
	c := make([]complex128, len(img))
	for i, v := range img {
		c[i] = complex(float64(v), 0)
	}
	lowpass(c, w, h, fill)
	for i, v := range c {
		img[i] = float32(math.Abs(real(v)))
	}
	return img
}

// lowpass keeps the centred part of k-space, 1/fill of each axis.
func lowpass(c []complex128, w, h int, fill float64) {
	if fill == 1 {
		return
	}
	fw, fh := fourier.NewCmplxFFT(w), fourier.NewCmplxFFT(h)
	kw, kh := int(float64(w)/fill/2), int(float64(h)/fill/2)
	for y := range h {
		fw.Coefficients(c[y*w:(y+1)*w], c[y*w:(y+1)*w])
	}
	col := make([]complex128, h)
	for x := range w {
		for y := range h {
			col[y] = c[y*w+x]
		}
		fh.Coefficients(col, col)
		for y := range h {
			if min(x, w-x) > kw || min(y, h-y) > kh {
				col[y] = 0
			}
		}
		fh.Sequence(col, col)
		for y := range h {
			c[y*w+x] = col[y] / complex(float64(w*h), 0)
		}
	}
	for y := range h {
		fw.Sequence(c[y*w:(y+1)*w], c[y*w:(y+1)*w])
	}
}

// at returns the place of pixel i: the shorter side spans -1 to 1, y down.
func (s Spec) at(i int) (u, v float64) {
	half := float64(min(s.Width, s.Height)) / 2
	return (float64(i%s.Width) + 0.5 - float64(s.Width)/2) / half, (float64(i/s.Width) + 0.5 - float64(s.Height)/2) / half
}

// height is where slice k lies: -1 at the skull base, 1 at the vertex.
func (s Spec) height(k int) float64 {
	if s.Slices == 1 {
		return 0.1
	}
	return -0.55 + 1.35*float64(k)/float64(s.Slices-1)
}

// head is the distance from the middle of the head in units of its outline:
// below 1 inside.
func (s Spec) head(u, v, z float64) float64 {
	r := math.Sqrt(max(1-0.8*z*z*max(z, 0), 0.05))
	a, b := 0.69*r, 0.86*r
	dv := v + 0.03
	if dv > 0 {
		a *= 1 - 0.06*dv // narrower behind
	}
	t := math.Atan2(dv/b, u/a)
	wobble := 1 + 0.012*math.Sin(3*t+float64(s.Seed%7)) + 0.01*math.Cos(2*t)
	return math.Hypot(u/a, dv/b) / wobble
}

// signal of the tissues, T1 weighted.
const (
	air     = 0.0
	scalp   = 0.86
	marrow  = 0.62
	bone    = 0.06
	csf     = 0.17
	grey    = 0.50
	white   = 0.76
	nucleus = 0.57
	vessel  = 1.05
	muscle  = 0.42
)

// draw samples the anatomy of slice k.
func (s Spec) draw(k int) []float32 {
	z := s.height(k)
	a := newAnatomy(s, z)
	out := make([]float32, s.Width*s.Height)
	half := float64(min(s.Width, s.Height)) / 2
	for i := range out {
		u, v := s.at(i)
		if s.head(u, v, z) > 1.1 {
			continue
		}
		sum := 0.0
		for j := range oversub * oversub {
			du := (float64(j%oversub) + 0.5) / oversub
			dv := (float64(j/oversub) + 0.5) / oversub
			sum += a.signal(u+(du-0.5)/half, v+(dv-0.5)/half)
		}
		sum /= oversub * oversub
		if s.Shading {
			d := math.Hypot(u+0.7, v+0.75)
			sum *= 0.55 + 0.75*math.Exp(-d*d/1.1)
		}
		out[i] = float32(sum)
	}
	return out
}

type blob struct{ u, v, r, signal float64 }

type anatomy struct {
	s      Spec
	z      float64
	blobs  []blob      // small round things: vessels across the slice, lesions
	curves [][]float64 // vessels in the slice: u0, v0, length, angle, bend, radius
	seed   uint64
}

func newAnatomy(s Spec, z float64) *anatomy {
	a := &anatomy{s: s, z: z, seed: s.Seed}
	rng := rand.New(rand.NewPCG(s.Seed, 0x76657373))
	// vessels run through the slices, so their places move slowly with z
	for range 34 {
		t, r := 2*math.Pi*rng.Float64(), 0.25+0.62*math.Sqrt(rng.Float64())
		drift, width := 0.12*rng.NormFloat64(), 0.006+0.008*rng.Float64()
		lo := -0.8 + 1.4*rng.Float64()
		on := z > lo && z < lo+0.9
		if on {
			t += drift * z
			a.blobs = append(a.blobs, blob{0.62 * r * math.Cos(t), 0.76*r*math.Sin(t) - 0.03, width, vessel})
		}
	}
	for range 7 { // small lesions in the white matter
		u, v, zz := 0.34*rng.NormFloat64(), 0.34*rng.NormFloat64(), -0.4+rng.Float64()
		if d := math.Abs(z - zz); d < 0.12 {
			a.blobs = append(a.blobs, blob{u, v, 0.022 * (1 - d/0.12), 0.4})
		}
	}
	for range 14 {
		c := []float64{0.5 * rng.NormFloat64(), 0.5 * rng.NormFloat64(), 0.15 + 0.3*rng.Float64(),
			2 * math.Pi * rng.Float64(), 4 * rng.NormFloat64(), 0.0035 + 0.004*rng.Float64()}
		if math.Abs(z-(-0.5+1.2*rng.Float64())) < 0.3 {
			a.curves = append(a.curves, c)
		}
	}
	return a
}

func inEllipse(u, v, cu, cv, a, b, angle float64) bool {
	c, s := math.Cos(angle), math.Sin(angle)
	x, y := (u-cu)*c+(v-cv)*s, -(u-cu)*s+(v-cv)*c
	return x*x/(a*a)+y*y/(b*b) < 1
}

// signal is the tissue at one point.
func (a *anatomy) signal(u, v float64) float64 {
	z, r := a.z, a.s.head(u, v, a.z)
	r += 0.006 * (a.noise(5*u, 5*v, z) - 0.5)
	if r > 1 {
		return air
	}
	texture := 1 + 0.05*(a.noise(9*u, 9*v, 5*z+7)-0.5)
	switch {
	case r > 0.985:
		return 0.45 // skin
	case r > 0.925:
		if z < -0.1 && math.Abs(u) > 0.35 && r < 0.965 {
			return muscle * (1 + 0.35*(a.noise(40*u, 12*v, 3*z)-0.5))
		}
		return scalp * (1 + 0.18*(a.noise(22*u, 22*v, 4*z)-0.5))
	case r > 0.905:
		return bone
	case r > 0.875:
		if a.noise(7*u, 7*v, 2*z+3) > 0.38 {
			return marrow * texture
		}
		return bone
	case r > 0.855:
		return bone
	}
	if s, ok := a.base(u, v, r); ok {
		return s
	}
	// the brain's surface and its folds: ridges of two bands of noise
	fold := a.noise(8*u+1.6*(a.noise(4*u, 4*v, 2*z)-0.5), 8*v+1.6*(a.noise(4*u+9, 4*v, 2*z)-0.5), 3.2*z) - 0.5
	fine := a.noise(13*u+3, 13*v+1.5*fold, 5*z) - 0.5
	depth := 0.835 - r + 0.02*fine
	line := math.Abs(fold + 0.25*fine)
	reach := 0.3 + 0.12*a.noise(3*u, 3*v, z)
	cut := 1 - depth/reach // 1 at the surface, 0 at the bottom of the sulci
	mid := math.Abs(u + 0.008*math.Sin(9*v))
	switch {
	case depth < 0, mid < 0.007 && (z > 0.25 || math.Abs(v) > 0.3):
		return csf
	}
	for _, b := range a.blobs {
		if d := math.Hypot(u-b.u, v-b.v); d < b.r {
			return b.signal
		}
	}
	for _, c := range a.curves {
		if onCurve(c, u, v) {
			return 0.95
		}
	}
	if s, ok := a.inner(u, v); ok {
		return s * texture
	}
	if cut > 0 {
		if line < 0.032*cut+0.004 {
			return csf * 1.2
		}
		if line < 0.05+0.08*cut {
			return grey * texture
		}
	}
	if depth < 0.055+0.015*fine || mid < 0.03 && (z > 0.25 || math.Abs(v) > 0.33) {
		return grey * texture
	}
	return white * texture * (1 + 0.03*(a.noise(30*u, 30*v, 9*z)-0.5))
}

// inner: ventricles and deep nuclei.
func (a *anatomy) inner(u, v float64) (float64, bool) {
	z, m := a.z, math.Abs(u)
	size := 1 - 2.6*(z-0.12)*(z-0.12)
	if size <= 0.1 {
		return 0, false
	}
	size = math.Sqrt(size)
	switch {
	case inEllipse(m, v, 0.085, -0.16, 0.042*size, 0.15*size, -0.35),
		inEllipse(m, v, 0.125, 0.2, 0.045*size, 0.16*size, 0.45),
		z < 0.15 && inEllipse(m, v, 0, 0.03, 0.014, 0.11*size, 0):
		if z > 0 && inEllipse(m, v, 0.12, 0.17, 0.018*size, 0.05*size, 0.45) {
			return 0.6, true // choroid plexus
		}
		return csf, true
	case inEllipse(m, v, 0.145, -0.15, 0.042*size, 0.1*size, -0.35),
		inEllipse(m, v, 0.1, 0.075, 0.075*size, 0.105*size, 0.3):
		return nucleus, true
	case inEllipse(m, v, 0.265, -0.03, 0.055*size, 0.15*size, 0.12):
		if m < 0.245 {
			return 0.66, true // pallidum
		}
		return nucleus, true
	}
	return 0, false
}

// base: cerebellum and brain stem of the lowest slices.
func (a *anatomy) base(u, v, r float64) (float64, bool) {
	if a.z > -0.28 || r > 0.83 {
		return 0, false
	}
	if inEllipse(u, v, 0, 0.08, 0.13, 0.12, 0) {
		return 0.7 * (1 + 0.05*(a.noise(12*u, 12*v, a.z)-0.5)), true
	}
	if inEllipse(u, v, 0, 0.23, 0.05, 0.035, 0) {
		return csf, true
	}
	if inEllipse(u, v, 0, 0.42, 0.42, 0.26, 0) {
		if !inEllipse(u, v, 0, 0.42, 0.405, 0.245, 0) {
			return csf, true
		}
		// folia: fine lines around the white core
		d := math.Hypot(u/1.5, v-0.3)
		leaf := math.Sin(95*d + 4*a.noise(9*u, 9*v, a.z))
		if a.noise(6*u+2, 6*v, 2*a.z) > 0.56 && d < 0.22 {
			return white, true
		}
		return grey + 0.11*leaf, true
	}
	return 0, false
}

// onCurve tells whether a point lies on a bent line of constant radius.
func onCurve(c []float64, u, v float64) bool {
	cs, sn := math.Cos(c[3]), math.Sin(c[3])
	x, y := (u-c[0])*cs+(v-c[1])*sn, -(u-c[0])*sn+(v-c[1])*cs
	if x < 0 || x > c[2] {
		return false
	}
	bend := c[4] * x * (c[2] - x)
	slope := c[4] * (c[2] - 2*x)
	return math.Abs(y-bend) < c[5]*math.Sqrt(1+slope*slope)*(1-0.6*x/c[2])
}

// noise is smooth random values between 0 and 1 with a spread about 0.5, one
// independent value per unit of each axis.
func (a *anatomy) noise(x, y, z float64) float64 {
	x0, y0, z0 := math.Floor(x), math.Floor(y), math.Floor(z)
	fx, fy, fz := x-x0, y-y0, z-z0
	ease := func(t float64) float64 { return t * t * t * (t*(6*t-15) + 10) }
	ex, ey, ez := ease(fx), ease(fy), ease(fz)
	sum := 0.0
	for c := range 8 {
		dx, dy, dz := float64(c&1), float64(c>>1&1), float64(c>>2)
		h := mix(a.seed ^ mix(uint64(int64(x0+dx))*0x9e3779b97f4a7c15^mix(uint64(int64(y0+dy))*0xbf58476d1ce4e5b9^mix(uint64(int64(z0+dz))))))
		g := float64(int64(h>>11))/(1<<52)*(fx-dx) + float64(int64(h*0x94d049bb133111eb>>11))/(1<<52)*(fy-dy) + float64(int64(mix(h)>>11))/(1<<52)*(fz-dz)
		g -= (fx - dx) + (fy - dy) + (fz - dz) // gradients between -1 and 1
		wx, wy, wz := 1-ex, 1-ey, 1-ez
		if dx == 1 {
			wx = ex
		}
		if dy == 1 {
			wy = ey
		}
		if dz == 1 {
			wz = ez
		}
		sum += g * wx * wy * wz
	}
	return min(max(0.5+0.9*sum, 0), 1)
}

// mix scrambles 64 bits (splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// storedMax is the stored value of signal 1 in DICOM and NIfTI: it leaves a
// quarter of 12 bits for what is brighter.
const storedMax = 3000

func stored(v float32) uint16 {
	return uint16(min(max(math.Round(float64(v)*storedMax), 0), 4095))
}

// NIfTI returns the noisy or the true slices as a volume of int16, signal 1
// stored as 3000.
func (v *Volume) NIfTI(truth bool) (*nifti.Volume, error) {
	s := v.Spec
	out, err := nifti.New(s.Width, s.Height, s.Slices, 1, nifti.Int16)
	if err != nil {
		return nil, err
	}
	buf := make([]float32, s.Width*s.Height)
	for k := range s.Slices {
		src := v.Noisy[k]
		if truth {
			src = v.Truth[k]
		}
		for i, p := range src {
			buf[i] = float32(stored(p))
		}
		if _, err := out.SetSlice(k, buf); err != nil {
			return nil, err
		}
	}
	return out, nil
}
