package noise

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"gonum.org/v1/gonum/dsp/fourier"
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

// Detect finds the rectangle of k-space that was measured, from the energy of
// the Fourier transform of a magnitude image: per axis, the outermost place
// where the mean log energy drops by a clear step and stays down. Supports with
// soft edges are not found, and the image is then taken as it is.
func Detect(img []float32, w, h int) (*Grid, error) {
	if w < 1 || h < 1 || w > maxPixels/h || len(img) != w*h {
		return nil, fmt.Errorf("detect k-space support of %d×%d pixels: %d values", w, h, len(img))
	}
	g := Full(w, h)
	if w < minSide || h < minSide {
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
	c          []complex128
	col        []complex128
	row        []float64
	ffts       map[int]*fourier.FFT
	complexFFT map[int]*fourier.CmplxFFT
}

var planes = sync.Pool{New: func() any {
	return &plane{ffts: map[int]*fourier.FFT{}, complexFFT: map[int]*fourier.CmplxFFT{}}
}}

// maxPlans bounds the tables that one pooled plane keeps.
const maxPlans = 8

func (p *plane) real(n int) *fourier.FFT {
	f := p.ffts[n]
	if f == nil {
		if len(p.ffts) >= maxPlans {
			clear(p.ffts)
		}
		f = fourier.NewFFT(n)
		p.ffts[n] = f
	}
	return f
}

func (p *plane) complex(n int) *fourier.CmplxFFT {
	f := p.complexFFT[n]
	if f == nil {
		if len(p.complexFFT) >= maxPlans {
			clear(p.complexFFT)
		}
		f = fourier.NewCmplxFFT(n)
		p.complexFFT[n] = f
	}
	return f
}

// spectrum returns the transform of img, to be put back into planes.
func spectrum(img []float32, w, h int) *plane {
	p := planes.Get().(*plane)
	m := w/2 + 1
	p.c, p.col, p.row = grow(p.c, m*h), grow(p.col, h), grow(p.row, w)
	f := p.real(w)
	for y := range h {
		for x, v := range img[y*w : (y+1)*w] {
			p.row[x] = float64(v)
		}
		f.Coefficients(p.c[y*m:(y+1)*m], p.row)
	}
	p.columns(m, h, false)
	return p
}

func (p *plane) columns(m, h int, inverse bool) {
	f := p.complex(h)
	p.col = grow(p.col, h)
	for x := range m {
		for y := range h {
			p.col[y] = p.c[y*m+x]
		}
		if inverse {
			f.Sequence(p.col, p.col)
		} else {
			f.Coefficients(p.col, p.col)
		}
		for y := range h {
			p.c[y*m+x] = p.col[y]
		}
	}
}

// image writes the inverse transform of p, [h][w/2+1], times scale.
func (p *plane) image(dst []float32, w, h int, scale float64) {
	m := w/2 + 1
	p.columns(m, h, true)
	p.row = grow(p.row, w)
	f := p.real(w)
	for y := range h {
		f.Sequence(p.row, p.c[y*m:(y+1)*m])
		for x, v := range p.row {
			dst[y*w+x] = float32(v * scale)
		}
	}
}

func logEnergy(c complex128) float64 {
	return math.Log(real(c)*real(c) + imag(c)*imag(c) + 1e-30)
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
			s += logEnergy(p.c[y*m+k]) + logEnergy(p.c[(h-y)*m+k])
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
			s += logEnergy(p.c[k*m+x]) + logEnergy(p.c[(h-k)%h*m+x])
		}
		out[k] = s / float64(2*(hi-lo))
	}
	return out
}

// move copies the frequencies |kx| <= kw, |ky| <= kh between half spectra of
// different size.
func move(dst []complex128, dw, dh int, src []complex128, sw, sh, kw, kh int) {
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

// Crop returns the image on its native grid, with the same mean.
func (g *Grid) Crop(img []float32) []float32 {
	if !g.Filled() {
		return slices.Clone(img)
	}
	return resample(img, g.Width, g.Height, g.NativeWidth, g.NativeHeight, g.kw, g.kh)
}

// Fill is the inverse of Crop: it zero-fills an image on the native grid.
func (g *Grid) Fill(native []float32) []float32 {
	if !g.Filled() {
		return slices.Clone(native)
	}
	return resample(native, g.NativeWidth, g.NativeHeight, g.Width, g.Height, g.kw, g.kh)
}

func resample(img []float32, w, h, nw, nh, kw, kh int) []float32 {
	s := spectrum(img, w, h)
	defer planes.Put(s)
	d := planes.Get().(*plane)
	defer planes.Put(d)
	d.c = grow(d.c, (nw/2+1)*nh)
	move(d.c, nw, nh, s.c, w, h, kw, kh)
	out := make([]float32, nw*nh)
	d.image(out, nw, nh, 1/float64(w*h))
	return out
}

// Mask carries a mask to the native grid: a native pixel is set if any pixel of
// the image that it covers is. A nil mask stays nil.
func (g *Grid) Mask(mask []bool) []bool {
	if mask == nil {
		return nil
	}
	if !g.Filled() {
		return slices.Clone(mask)
	}
	out := make([]bool, g.NativeWidth*g.NativeHeight)
	for y := range g.Height {
		// nearest native row of an image row, and the same for columns
		ny := min((2*y*g.NativeHeight+g.Height)/(2*g.Height), g.NativeHeight-1)
		for x := range g.Width {
			if mask[y*g.Width+x] {
				out[ny*g.NativeWidth+min((2*x*g.NativeWidth+g.Width)/(2*g.Width), g.NativeWidth-1)] = true
			}
		}
	}
	return out
}
