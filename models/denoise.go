package models

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/noise"
)

// MaxPixels is the most pixels of an Image.
const MaxPixels = 1 << 26

// Image is one slice: Width×Height values, row major, in any unit.
type Image struct {
	Width, Height int
	Pixels        []float32
	// Skip marks pixels that are no measurement (padding); nil means none. They
	// are never looked at, so they may hold anything, and come back bit for bit.
	Skip []bool
}

// Options steer Denoise.
type Options struct {
	// Strength blends: 0 returns the image bit for bit, 1 the network's result.
	Strength float64
}

// Result is a denoised slice.
type Result struct {
	Pixels []float32
	// Sigma is the median standard deviation of the noise that was found, in the
	// unit of the image; 0 if none was.
	Sigma float64
	// NativeWidth and NativeHeight are the size of the k-space that was measured,
	// smaller than the image if that is zero-filled.
	NativeWidth, NativeHeight int
	// Untouched says why the image came back as it was; empty if it did not.
	Untouched string
	// Uncertainty is half the difference of the pair of samples at every pixel, in
	// the unit of the image; nil where none were drawn (Denoise).
	Uncertainty []float32
	// Gate is what the quality gate found; nil if the image did not come that far. A
	// result that it blends or holds back has been blended or held back.
	Gate *gate.Report
}

// Reasons of Result.Untouched.
const (
	UntouchedStrength = "strength is 0"
	UntouchedNoNoise  = "no noise found"
	UntouchedEmpty    = "nothing but air"
	UntouchedNoisy    = "more noise than the network knows"
	UntouchedGate     = "the result did not pass the quality gate"
)

// forwarder is the network; Student is one.
type forwarder interface {
	Forward(dst, y, sigma []float32, rho [2]float32, width, height int) error
}

// Denoise takes the noise off one slice on one core:
//
//  1. the scale is set so that the 99.9th percentile of the measured pixels is 1;
//  2. a zero-filled image goes to its native k-space grid (noise.Detect), where
//     its noise is white;
//  3. noise.Estimate measures the noise there and the network predicts it;
//  4. the prediction is held to the energy that noise can have (restrain);
//  5. the quality gate (package gate) looks at what would be taken off, and lets it
//     through, in part, or not at all;
//  6. it is zero-filled back and taken off the original image, so
//     what lies outside the measured k-space stays as it was;
//  7. out = y + strength·(denoised − y).
//
// Skipped pixels and blanked air (noise.Outside) are returned bit for bit, all
// others stay between the least and the greatest measured value of the slice.
// The result is finite and the same at every call. A pixel that is not finite
// and not skipped is an error, as are sizes that do not fit and a strength
// outside 0 to 1. The image is not changed. Safe for concurrent use.
func (m *Model) Denoise(ctx context.Context, img Image, o Options) (*Result, error) {
	return denoise(ctx, m.Student(), img, o)
}

func denoise(ctx context.Context, net forwarder, img Image, o Options) (*Result, error) {
	return remove(ctx, img, o.Strength, func(ctx context.Context, b *scratch, native []float32, w, h int) error {
		return b.predict(net, native, w, h)
	})
}

// remove is the frame of Denoise and High: all but how the noise is found. find sets
// b.removed, and perhaps b.uncertain, for the image on its native grid, whose noise
// is in b.noise.
func remove(ctx context.Context, img Image, strength float64, find func(ctx context.Context, b *scratch, native []float32, w, h int) error) (*Result, error) {
	w, h := img.Width, img.Height
	switch {
	case w < 1 || h < 1 || w > MaxPixels/h:
		return nil, fmt.Errorf("denoise: %d×%d pixels are outside 1 to %d", w, h, MaxPixels)
	case len(img.Pixels) != w*h || img.Skip != nil && len(img.Skip) != w*h:
		return nil, fmt.Errorf("denoise %d×%d pixels: %d values, %d mask values", w, h, len(img.Pixels), len(img.Skip))
	case !(strength >= 0 && strength <= 1):
		return nil, fmt.Errorf("denoise: strength %g is outside 0 to 1", strength)
	}
	for i, v := range img.Pixels {
		if !finite(v) && (img.Skip == nil || !img.Skip[i]) {
			return nil, fmt.Errorf("denoise: pixel (%d, %d) is not finite", i%w, i/w)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	res := &Result{Pixels: slices.Clone(img.Pixels), NativeWidth: w, NativeHeight: h}
	if strength == 0 {
		res.Untouched = UntouchedStrength
		return res, nil
	}
	b := scratches.Get().(*scratch)
	defer scratches.Put(b)
	scale, least, most := b.prepare(img)
	if scale == 0 {
		res.Untouched = UntouchedEmpty
		return res, nil
	}
	grid, err := noise.Detect(b.y, w, h)
	if err != nil {
		return nil, err
	}
	// A small slice has too few frequencies to tell the edge of k-space from anatomy.
	filled := grid.Filled() && min(w, h) >= leastGrid
	nw, nh := w, h
	if filled {
		nw, nh = grid.NativeWidth, grid.NativeHeight
	}
	res.NativeWidth, res.NativeHeight = nw, nh
	native, mask := b.y, b.outside
	if filled {
		b.native, b.mask = grid.Crop(b.native, b.y), grid.Mask(b.mask, b.outside)
		native, mask = b.native, b.mask
	}
	if err := b.noise.Estimate(native, nw, nh, mask); err != nil {
		return nil, err
	}
	estimated := b.noise.Median
	res.Sigma = estimated * float64(scale)
	b.cautious(filled)
	if b.noise.Median < leastNoise {
		res.Untouched = UntouchedNoNoise
		return res, nil
	}
	if estimated > mostNoise {
		res.Untouched = UntouchedNoisy
		return res, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.removed, b.uncertain = grow(b.removed, nw*nh), b.uncertain[:0]
	if err := find(ctx, b, native, nw, nh); err != nil {
		return nil, err
	}
	if len(b.uncertain) > 0 {
		res.Uncertainty = b.uncertainty(grid, filled, scale)
	}
	if err := b.pass(res, native, mask, nw, nh); err != nil || res.Untouched != "" {
		return res, err
	}
	removed := b.removed
	if filled {
		b.y = grid.Fill(b.y, removed)
		removed = b.y
	}
	for i, v := range img.Pixels {
		if b.outside[i] {
			continue
		}
		v := float64(v) - strength*float64(removed[i])*float64(scale)
		res.Pixels[i] = min(max(float32(v), least), most)
	}
	return res, nil
}

// pass asks the gate about b.removed and does what it says. What a magnitude image
// was lifted by is not held against a result that took it off.
func (b *scratch) pass(res *Result, native []float32, mask []bool, w, h int) error {
	b.again = grow(b.again, w*h)
	b.lowered = grow(b.lowered, w*h)
	for i, v := range native {
		b.again[i], b.lowered[i] = v-b.removed[i], v
		if s := b.noise.Sigma[i]; b.floor && s > 0 {
			b.lowered[i] -= s * float32(noise.RicianBias(float64(max(b.again[i], 0)/s)))
		}
	}
	// Air is not looked at: a network may take off what little it is lifted by.
	b.energy = append(b.energy[:0], native...)
	b.means(b.energy, w, h, windowRemoved)
	b.air = append(b.air[:0], mask...)
	for i, v := range b.energy {
		b.air[i] = b.air[i] || v < signalled*b.noise.Sigma[i]
	}
	in := gate.Input{Width: w, Height: h, Before: b.lowered, After: b.again, Skip: b.air, Noise: &b.noise}
	if len(b.uncertain) > 0 {
		in.Uncertainty = b.uncertain
	}
	var err error
	if res.Gate, err = gate.Check(in); err != nil {
		return fmt.Errorf("denoise: %w", err)
	}
	switch res.Gate.Action {
	case gate.PassThrough:
		res.Untouched = UntouchedGate
	case gate.Blend:
		for i := range b.removed {
			b.removed[i] *= float32(res.Gate.Blend)
		}
	}
	return nil
}

// scratch is the memory of one call of denoise.
type scratch struct {
	y, native, removed   []float32
	uncertain            []float32
	again, lowered       []float32
	energy, allowed, tmp []float32
	floor                bool      // the network took off the lift of a magnitude image
	sums                 []float64 // of columns
	outside, mask, air   []bool
	noise                noise.Map
	count                []uint32
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// predict sets b.removed to what the network takes off y, held to what noise can be.
func (b *scratch) predict(net forwarder, y []float32, w, h int) error {
	if err := net.Forward(b.removed, y, b.noise.Sigma, b.rho(), w, h); err != nil {
		return err
	}
	for i, v := range b.removed {
		if !finite(v) {
			return fmt.Errorf("denoise: the network's result is not finite at (%d, %d)", i%w, i/w)
		}
		b.removed[i] = y[i] - v
	}
	b.restrain(y, w, h)
	return nil
}

// cautious lowers the noise map by what it is too high by where anatomy is fine
// (docs/noise.md), the more the less noise there is: rather some noise left than
// anatomy taken off. Loud noise is known well, and drowns fine anatomy anyway.
func (b *scratch) cautious(filled bool) {
	m := b.noise.Median
	share := caution + (1-caution)*min(max((m-faintNoise)/(loudNoise-faintNoise), 0), 1)
	if filled {
		share = cautionFilled
	}
	share *= min(1, m/faintNoise)
	for i := range b.noise.Sigma {
		b.noise.Sigma[i] *= float32(share)
	}
	b.noise.Median *= share
}

// rho is what the network is told of the noise's correlation.
func (b *scratch) rho() [2]float32 {
	c := &b.noise.Correlation
	return [2]float32{float32(c.At(1, 0)), float32(c.At(0, 1))}
}

// Bounds of what is taken off.
const (
	leastNoise    = 0.0008    // median, of the 99.9th percentile, a fifth of 1/255; below it nothing is to be gained
	caution       = 0.9       // of the estimated noise is treated as such,
	cautionFilled = 0.75      // less on a native grid, whose cut-off corners look like noise
	faintNoise    = 4. / 255  // and less still below this median,
	loudNoise     = 10. / 255 // and above this, it is taken at its word
	leastGrid     = 160       // pixels a side; smaller images are taken as they are
	mostNoise     = 0.2       // median, of the 99.9th percentile; beyond it the network shifts the mean
	mostRemoved   = 2.5       // of one pixel, in standard deviations of its noise
	signalled     = 2         // standard deviations of the noise; air has less in the mean
	windowRemoved = 2         // half the window over which the energy is compared
)

// restrain holds the removed part down to what noise can be. Noise of standard
// deviation sigma has the mean square sigma²; where the network takes off more,
// the rest is anatomy, so the removed part is scaled down to that energy over a
// 5×5 window, and no pixel changes by more than mostRemoved times its noise. Where
// the noise of a magnitude image lifts what has little signal, it may take off that
// much more.
func (b *scratch) restrain(y []float32, w, h int) {
	b.floor = b.liftsAir(y)
	b.energy, b.allowed = grow(b.energy, w*h), grow(b.allowed, w*h)
	for i, v := range b.removed {
		b.energy[i] = v * v
		s := b.noise.Sigma[i]
		b.allowed[i] = s * s
		if b.floor && s > 0 {
			// E[(M−A)²] = 2σ² + 2A² − 2A·E[M]
			a := float64(max(y[i]-v, 0) / s)
			b.allowed[i] *= float32(2 - 2*a*noise.RicianBias(a))
		}
	}
	b.means(b.energy, w, h, windowRemoved)
	b.means(b.allowed, w, h, windowRemoved)
	for i, v := range b.removed {
		most := mostRemoved * b.noise.Sigma[i]
		if b.floor {
			most *= math.Sqrt2
		}
		v = min(max(v, -most), most)
		if e, limit := b.energy[i], b.allowed[i]; e > limit {
			v *= limit / e
		}
		b.removed[i] = v
	}
}

// liftsAir tells whether the image is a magnitude whose lift the network took off:
// the mean of what it took off where next to nothing is left is then 1.25 standard
// deviations of the noise, else 0.
func (b *scratch) liftsAir(y []float32) bool {
	sum, n := 0.0, 0
	for i, v := range b.removed {
		if s := b.noise.Sigma[i]; s > 0 && y[i]-v < s {
			sum += float64(v / s)
			n++
		}
	}
	return n >= 64 && sum > 0.6*float64(n)
}

// means replaces v by its means over windows of 2·half+1 pixels a side, as far as
// they lie in the image. The sums slide, in double precision so that nothing of a
// bright edge stays behind.
func (b *scratch) means(v []float32, w, h, half int) {
	b.tmp, b.sums = grow(b.tmp, w*h), grow(b.sums, w)
	for y := range h {
		row, out := v[y*w:][:w], b.tmp[y*w:][:w]
		s, n := 0.0, min(half, w)
		for _, v := range row[:n] {
			s += float64(v)
		}
		inner := max(w-half, 0)
		for x := range out {
			if x < inner {
				s, n = s+float64(row[x+half]), n+1
			}
			if x > half {
				s, n = s-float64(row[x-half-1]), n-1
			}
			out[x] = float32(s / float64(n))
		}
	}
	clear(b.sums)
	n := min(half, h)
	for x, v := range b.tmp[:n*w] {
		b.sums[x%w] += float64(v)
	}
	for y := range h {
		if y+half < h {
			for x, v := range b.tmp[(y+half)*w:][:w] {
				b.sums[x] += float64(v)
			}
			n++
		}
		if y > half {
			for x, v := range b.tmp[(y-half-1)*w:][:w] {
				b.sums[x] -= float64(v)
			}
			n--
		}
		out, scale := v[y*w:][:w], 1/float64(n)
		for x, s := range b.sums {
			out[x] = float32(s * scale)
		}
	}
}

func finite(v float32) bool { return v-v == 0 }

// prepare fills b.y with the image in the network's scale, skipped pixels set to
// the least value, and b.outside with the pixels that must not change. It returns
// the scale and the range of the measured values. scale is 0 if there is nothing
// to denoise.
func (b *scratch) prepare(img Image) (scale, least, most float32) {
	n := 0
	for i, v := range img.Pixels {
		if img.Skip != nil && img.Skip[i] {
			continue
		}
		if n == 0 {
			least, most = v, v
		}
		least, most = min(least, v), max(most, v)
		n++
	}
	if n == 0 || least == most {
		return 0, least, most
	}
	if scale = b.ranked(img, int(0.999*float64(n-1))); scale <= 0 {
		scale = most // less than one pixel in a thousand is not air
	}
	if scale <= 0 {
		return 0, least, most
	}
	b.y = grow(b.y, len(img.Pixels))
	for i, v := range img.Pixels {
		if img.Skip != nil && img.Skip[i] {
			v = least
		}
		b.y[i] = v / scale
	}
	b.outside = noise.Outside(b.outside, b.y, img.Width, img.Height, img.Skip)
	return scale, least, most
}

// ranked returns the measured pixel that would be at place k if they were sorted:
// it counts the upper halves of their bits, then the lower ones of those that share
// the upper half.
func (b *scratch) ranked(img Image, k int) float32 {
	b.count = grow(b.count, 1<<16)
	find := func() (at uint32) {
		for k >= int(b.count[at]) {
			k -= int(b.count[at])
			at++
		}
		return at
	}
	clear(b.count)
	for i, v := range img.Pixels {
		if img.Skip == nil || !img.Skip[i] {
			b.count[sortable(v)>>16]++
		}
	}
	high := find()
	clear(b.count)
	for i, v := range img.Pixels {
		if s := sortable(v); s>>16 == high && (img.Skip == nil || !img.Skip[i]) {
			b.count[s&0xffff]++
		}
	}
	u := high<<16 | find()
	if u>>31 == 1 {
		return math.Float32frombits(u &^ (1 << 31))
	}
	return math.Float32frombits(^u)
}

// sortable returns bits that are in the order of the values.
func sortable(v float32) uint32 {
	u := math.Float32bits(v)
	return u ^ (uint32(int32(u)>>31) | 1<<31)
}
