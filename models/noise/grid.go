package noise

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/diffdenoise/denoised/internal/numeric"
)

// Settings of Detect.
const (
	minSide   = 48   // shorter axes are taken as measured
	edgeSpan  = 4    // frequencies compared on each side of an edge
	edgeStep  = 1.0  // least drop of the log energy over the edge
	edgeGap   = 2    // frequencies left out at the edge itself
	maxFilled = 0.35 // least share of an axis that can be measured
	nearFull  = 0.96 // a support beyond this share is not worth a crop
)

// Grid is the relation between an image and the k-space that was measured for
// it. Scanners zero-fill: they pad k-space before the Fourier transform, which
// interpolates the image and correlates its noise. On the native grid, the
// smallest that holds the measured k-space, the noise is white again.
//
// A Grid is safe for concurrent use.
type Grid struct {
	Width, Height             int // of the image
	NativeWidth, NativeHeight int // of the measured k-space, at most Width, Height
	kw, kh                    int // largest frequency kept per axis
}

// Filled tells whether the image is larger than its native grid.
func (g *Grid) Filled() bool { return g.NativeWidth < g.Width || g.NativeHeight < g.Height }

// Full returns the grid of a w×h image that was measured as it is.
func Full(w, h int) *Grid {
	return &Grid{Width: w, Height: h, NativeWidth: w, NativeHeight: h, kw: w / 2, kh: h / 2}
}

// Filled returns the grid of a w×h image whose k-space was measured to
// nativeWidth×nativeHeight, odd and at most w×h; even ones lose their last frequency.
func Filled(w, h, nativeWidth, nativeHeight int) *Grid {
	g := Full(w, h)
	if nativeWidth < w {
		g.NativeWidth, g.kw = nativeWidth, (nativeWidth-1)/2
	}
	if nativeHeight < h {
		g.NativeHeight, g.kh = nativeHeight, (nativeHeight-1)/2
	}
	return g
}

// Coarser returns the grid of an image of w×h pixels whose central frequencies, at least those of
// nw×nh pixels, are looked at; nil if its transforms would be slow.
func Coarser(w, h, nw, nh int) *Grid {
	nw, nh = smooth(nw, w), smooth(nh, h)
	if w*h > maxWork/(slowest(w)+slowest(h)) || nw*nh > maxWork/(slowest(nw)+slowest(nh)) {
		return nil
	}
	return Filled(w, h, nw, nh)
}

// squared is the share of the noise of a zero-filled magnitude where there is no
// signal that Crop leaves. Such noise goes like the square of the complex noise, so
// along each axis its power falls to zero over twice the measured frequencies, what
// lies beyond the matrix folded back into it.
func (g *Grid) squared() float64 {
	axis := func(native, full int) float64 { // frequencies
		if native >= full {
			return 1
		}
		// In half supports: the power falls from 1 at 0 to 0 at 2, the matrix ends at
		// full/native, and what is folded back there lands within 1 from the place on.
		share := 0.75
		if from := 2*float64(full)/float64(native) - 1; from < 2 {
			share += (2 - from) * (2 - from) / 4
		}
		return foldedPower * share
	}
	return axis(2*g.kw+1, g.Width) * axis(2*g.kh+1, g.Height)
}

// foldedPower is what the higher powers of the complex noise take from its square.
const foldedPower = 0.97

// maxWork bounds the time of a transform: pixels times the largest prime factors
// of the sides. Only images with a large prime in a side come near it.
const maxWork = 1 << 31

func slowest(n int) int { return slices.Max(factors(n)) }

// Detect finds the rectangle of k-space that was measured, from the energy of
// the Fourier transform of a magnitude image: per axis, the outermost place
// where the mean log energy drops by a clear step and stays down. Supports with
// soft edges are not found, and the image is then taken as it is, as are images
// whose sides have prime factors that make the transform slow (from about 1000).
func Detect(img []float32, w, h int) (*Grid, error) {
	if w < 1 || h < 1 || w > maxPixels/h || len(img) != w*h {
		return nil, fmt.Errorf("detect k-space support of %d×%d pixels: %d values", w, h, len(img))
	}
	g := Full(w, h)
	if w < minSide || h < minSide || w*h > maxWork/(slowest(w)+slowest(h)) {
		return g, nil
	}
	s := spectrum(img, w, h)
	defer planes.Put(s)
	g.kw, g.kh = edge(s.profileX(w, h)), edge(s.profileY(w, h))
	if g.kw == 0 {
		g.kw = w / 2
	} else {
		g.NativeWidth = smooth(2*g.kw+1, w)
	}
	if g.kh == 0 {
		g.kh = h / 2
	} else {
		g.NativeHeight = smooth(2*g.kh+1, h)
	}
	if g.NativeWidth == w {
		g.kw = w / 2
	}
	if g.NativeHeight == h {
		g.kh = h / 2
	}
	return g, nil
}

// smooth returns the least n' >= n without prime factors above 13, at most limit.
func smooth(n, limit int) int {
	for ; n < limit; n++ {
		r := n
		for _, p := range []int{2, 3, 5, 7, 11, 13} {
			for r%p == 0 {
				r /= p
			}
		}
		if r == 1 {
			return n
		}
	}
	return limit
}

// edge returns the largest frequency inside the support, 0 if it has no edge.
// profile[k] is the mean log energy at frequency k.
func edge(profile []float64) int {
	half := len(profile) - 1
	best, at := 0.0, 0
	for k := int(maxFilled * float64(half)); k <= int(nearFull*float64(half)) && k+edgeGap < half; k++ {
		inside := mean(profile[max(k-edgeSpan+1, 1) : k+1])
		outside := mean(profile[k+edgeGap : min(k+edgeGap+edgeSpan, half+1)])
		// what a smooth decay would have dropped by over the same distance
		before := mean(profile[max(k-2*edgeSpan-edgeGap+1, 1):max(k-edgeSpan-edgeGap+1, 2)]) - inside
		if d := inside - outside - max(before, 0); d > best {
			best, at = d, k
		}
	}
	if best < edgeStep {
		return 0
	}
	inside := mean(profile[max(at-edgeSpan+1, 1) : at+1])
	for k := at + edgeGap; k+edgeSpan <= half+1; k++ {
		if mean(profile[k:k+edgeSpan]) > inside-edgeStep {
			return 0 // it comes up again: not the end of the support
		}
	}
	return at
}

func mean(v []float64) float64 {
	s := 0.0
	for _, x := range v {
		s += x
	}
	return s / float64(len(v))
}

// plane is the half spectrum of a real image: [h][w/2+1].
type plane struct {
	re, im []float32
	work   work
}

var planes = sync.Pool{New: func() any { return new(plane) }}

// plans are the tables of the lengths used last.
var plans struct {
	sync.Mutex
	of map[int]*fft
}

// maxPlans bounds the tables that are kept.
const maxPlans = 16

func plan(n int) *fft {
	plans.Lock()
	defer plans.Unlock()
	f := plans.of[n]
	if f == nil {
		if plans.of == nil || len(plans.of) >= maxPlans {
			plans.of = make(map[int]*fft)
		}
		f = newFFT(n)
		plans.of[n] = f
	}
	return f
}

// spectrum returns the transform of img, to be put back into planes.
func spectrum(img []float32, w, h int) *plane {
	p := planes.Get().(*plane)
	m := w/2 + 1
	p.re, p.im = numeric.Grow(p.re, m*h), numeric.Grow(p.im, m*h)
	f := plan(w)
	p.work.size(w)
	// two rows are one complex line
	for y0 := 0; y0 < h; y0 += 2 * lanes {
		n := min(2*lanes, h-y0)
		re, im := p.work.re, p.work.im
		if n < 2*lanes {
			clear(re)
			clear(im)
		}
		for j := range n {
			to := re
			if j&1 == 1 {
				to = im
			}
			for x, v := range img[(y0+j)*w:][:w] {
				to[x*lanes+j/2] = v
			}
		}
		f.transform(&p.work)
		re, im = p.work.re, p.work.im
		for j := range n {
			or, oi := p.re[(y0+j)*m:][:m], p.im[(y0+j)*m:][:m]
			for k := range m {
				a, b := k*lanes+j/2, (w-k)%w*lanes+j/2
				if j&1 == 0 {
					or[k], oi[k] = (re[a]+re[b])/2, (im[a]-im[b])/2
				} else {
					or[k], oi[k] = (im[a]+im[b])/2, (re[b]-re[a])/2
				}
			}
		}
	}
	p.columns(m, h, false)
	return p
}

func (p *plane) columns(m, h int, inverse bool) {
	f := plan(h)
	p.work.size(h)
	for x := 0; x < m; x += lanes {
		n := min(lanes, m-x)
		for y := range h {
			copy(p.work.re[y*lanes:][:n], p.re[y*m+x:][:n])
			copy(p.work.im[y*lanes:][:n], p.im[y*m+x:][:n])
		}
		if inverse {
			f.inverse(&p.work)
		} else {
			f.transform(&p.work)
		}
		for y := range h {
			copy(p.re[y*m+x:][:n], p.work.re[y*lanes:][:n])
			copy(p.im[y*m+x:][:n], p.work.im[y*lanes:][:n])
		}
	}
}

// image writes the inverse transform of p, [h][w/2+1], times scale.
func (p *plane) image(dst []float32, w, h int, scale float32) {
	m := w/2 + 1
	p.columns(m, h, true)
	f := plan(w)
	p.work.size(w)
	for y0 := 0; y0 < h; y0 += 2 * lanes {
		n := min(2*lanes, h-y0)
		re, im := p.work.re, p.work.im
		clear(re)
		clear(im)
		for j := range n {
			ar, ai := p.re[(y0+j)*m:][:m], p.im[(y0+j)*m:][:m]
			for k := range m {
				r, i := ar[k], ai[k]
				if k == 0 || 2*k == w {
					i = 0 // a real image has none there
				}
				a, b := k*lanes+j/2, (w-k)%w*lanes+j/2
				if j&1 == 1 { // times the imaginary unit
					re[a] -= i
					im[a] += r
					if a != b {
						re[b] += i
						im[b] += r
					}
					continue
				}
				re[a] += r
				im[a] += i
				if a != b {
					re[b] += r
					im[b] -= i
				}
			}
		}
		f.inverse(&p.work)
		re, im = p.work.re, p.work.im
		for j := range n {
			from := re
			if j&1 == 1 {
				from = im
			}
			row := dst[(y0+j)*w:][:w]
			for x := range row {
				row[x] = from[x*lanes+j/2] * scale
			}
		}
	}
}

func (p *plane) logEnergy(i int) float64 {
	re, im := float64(p.re[i]), float64(p.im[i])
	return math.Log(re*re + im*im + 1e-30)
}

// band is the share of the other axis' frequencies that a profile averages: not
// the lowest, where the image's borders leak, and within any support.
func band(half int) (lo, hi int) {
	lo = max(half/16, 1)
	return lo, max(int(0.4*float64(half)), lo+1)
}

func (p *plane) profileX(w, h int) []float64 {
	m := w/2 + 1
	out := make([]float64, (w-1)/2+1)
	lo, hi := band(h / 2)
	for k := range out {
		s := 0.0
		for y := lo; y < hi; y++ {
			s += p.logEnergy(y*m+k) + p.logEnergy((h-y)*m+k)
		}
		out[k] = s / float64(2*(hi-lo))
	}
	return out
}

func (p *plane) profileY(w, h int) []float64 {
	m := w/2 + 1
	out := make([]float64, (h-1)/2+1)
	lo, hi := band(w / 2)
	for k := range out {
		s := 0.0
		for x := lo; x < hi; x++ {
			s += p.logEnergy(k*m+x) + p.logEnergy((h-k)%h*m+x)
		}
		out[k] = s / float64(2*(hi-lo))
	}
	return out
}

// move copies the frequencies |kx| <= kw, |ky| <= kh between half spectra of
// different size.
func move(dst []float32, dw, dh int, src []float32, sw, sh, kw, kh int) {
	dm, sm := dw/2+1, sw/2+1
	clear(dst[:dm*dh])
	kw = min(kw, dm-1, sm-1)
	for ky := -kh; ky <= kh; ky++ {
		if ky == -kh && 2*kh == min(dh, sh) && kh > 0 {
			continue // the same row as +kh on the smaller grid
		}
		copy(dst[(ky+dh)%dh*dm:][:kw+1], src[(ky+sh)%sh*sm:][:kw+1])
	}
}

// Crop returns the image on its native grid, with the same mean. The result is
// in dst if that is large enough; dst must not overlap img.
func (g *Grid) Crop(dst, img []float32) []float32 {
	return g.resample(dst, img, g.Width, g.Height, g.NativeWidth, g.NativeHeight)
}

// Fill is the inverse of Crop: it zero-fills an image on the native grid.
func (g *Grid) Fill(dst, native []float32) []float32 {
	return g.resample(dst, native, g.NativeWidth, g.NativeHeight, g.Width, g.Height)
}

func (g *Grid) resample(dst, img []float32, w, h, nw, nh int) []float32 {
	dst = numeric.Grow(dst, nw*nh)
	if !g.Filled() {
		copy(dst, img)
		return dst
	}
	s := spectrum(img, w, h)
	defer planes.Put(s)
	d := planes.Get().(*plane)
	defer planes.Put(d)
	d.re, d.im = numeric.Grow(d.re, (nw/2+1)*nh), numeric.Grow(d.im, (nw/2+1)*nh)
	move(d.re, nw, nh, s.re, w, h, g.kw, g.kh)
	move(d.im, nw, nh, s.im, w, h, g.kw, g.kh)
	d.image(dst, nw, nh, 1/float32(w*h))
	return dst
}

// Mask carries a mask to the native grid: a native pixel is set if any pixel of
// the image that it covers is. A nil mask stays nil. The result is in dst if that
// is large enough; dst must not overlap mask.
func (g *Grid) Mask(dst, mask []bool) []bool {
	if mask == nil {
		return nil
	}
	dst = numeric.Grow(dst, g.NativeWidth*g.NativeHeight)
	if !g.Filled() {
		copy(dst, mask)
		return dst
	}
	clear(dst)
	for y := range g.Height {
		// nearest native row of an image row, and the same for columns
		ny := min((2*y*g.NativeHeight+g.Height)/(2*g.Height), g.NativeHeight-1)
		for x := range g.Width {
			if mask[y*g.Width+x] {
				dst[ny*g.NativeWidth+min((2*x*g.NativeWidth+g.Width)/(2*g.Width), g.NativeWidth-1)] = true
			}
		}
	}
	return dst
}
