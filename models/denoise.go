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

// Revision is that of Denoise and High: it changes whenever the same weights give other
// pixels than before, so that derived objects of the two are never taken for one.
const Revision = "3"

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

// Checked says why the quality gate did not let all of the result through, empty if it
// did, and the share of the change that it let through.
func (r *Result) Checked() (why string, share float64) {
	if r.Gate == nil || r.Gate.Action == gate.OK {
		return "", 1
	}
	return r.Gate.Reason, r.Gate.Blend
}

// Reasons of Result.Untouched.
const (
	UntouchedStrength = "strength is 0"
	UntouchedNoNoise  = "no noise found"
	UntouchedEmpty    = "nothing but air"
	UntouchedNoisy    = "more noise than the network knows"
	UntouchedRange    = "values too far apart for the network"
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
// The result is finite and, on one backend, the same at every call. A pixel that is not finite
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
	switch {
	case scale == 0:
		res.Untouched = UntouchedEmpty
		return res, nil
	case !finite(least/scale) || !finite(most/scale):
		res.Untouched = UntouchedRange
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
	known := noise.Known{}
	if filled {
		known.Air = noise.Air(grid, b.y, native, b.outside)
	}
	if err := b.noise.EstimateWith(known, native, nw, nh, mask); err != nil {
		return nil, err
	}
	res.Sigma = b.noise.Median * float64(scale)
	if b.cautious(filled) < leastNoise {
		res.Untouched = UntouchedNoNoise
		return res, nil
	}
	if b.noise.Median > mostNoise {
		res.Untouched = UntouchedNoisy
		return res, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.look(native, mask, nw, nh)
	b.removed, b.uncertain = grow(b.removed, nw*nh), b.uncertain[:0]
	if err := find(ctx, b, native, nw, nh); err != nil {
		return nil, err
	}
	b.restrain(nw, nh)
	share, err := b.pass(res, native, mask, nw, nh, filled)
	if err != nil || res.Untouched != "" {
		return res, err
	}
	if len(b.uncertain) > 0 {
		res.Uncertainty = b.uncertainty(grid, filled, scale*float32(share*strength))
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

// look measures what the image says of itself, before any network: the mean around
// every pixel, whether noise lifts it where there is no signal, as it does a magnitude,
// and the signal, in standard deviations of the noise.
func (b *scratch) look(y []float32, mask []bool, w, h int) {
	b.signal = append(b.signal[:0], y...)
	b.means(b.signal, w, h, windowRemoved)
	b.level = grow(b.level, w*h)
	air, below := 0, 0
	for i, m := range b.signal {
		s := max(b.noise.Sigma[i], minSigma)
		b.level[i] = m / s
		switch r := b.level[i]; {
		case mask[i]:
		case r < lowestAir:
			below++
		case r <= highestAir:
			air++
		}
	}
	b.lifted = air >= leastAir && 4*below < air
	for i, r := range b.level {
		if b.lifted {
			b.signal[i] = float32(noise.RicianSignal(float64(r)))
		} else {
			b.signal[i] = max(r, 0)
		}
	}
}

// pass asks the gate about b.removed and does what it says. It returns the share of
// the change that it lets through. What noise lifts a magnitude by, at the signal that
// the image itself shows, is not held against a result that took it off; in air, which
// is where the image shows no signal, less than that may be taken off.
func (b *scratch) pass(res *Result, native []float32, mask []bool, w, h int, filled bool) (share float64, err error) {
	b.again, b.lowered, b.air = grow(b.again, w*h), grow(b.lowered, w*h), grow(b.air, w*h)
	b.judged = noise.Map{Width: w, Height: h, Median: b.noise.Median, Correlation: b.noise.Correlation, Sigma: grow(b.judged.Sigma, w*h)}
	trusted, air := float32(1), float32(mostNone)
	if filled {
		trusted = judgedFilled
	}
	if b.lifted {
		air = highestAir
	}
	for i, v := range native {
		b.again[i], b.lowered[i], b.air[i] = v-b.removed[i], v, b.level[i] < air
		if b.lifted {
			b.lowered[i] -= b.noise.Sigma[i] * float32(noise.RicianBias(float64(b.signal[i])))
		}
		b.judged.Sigma[i] = trusted * b.noise.Sigma[i]
	}
	in := gate.Input{Width: w, Height: h, Before: b.lowered, After: b.again, Skip: mask, Air: b.air, Noise: &b.judged}
	if len(b.uncertain) > 0 {
		in.Uncertainty = b.uncertain
	}
	if res.Gate, err = gate.Check(in); err != nil {
		return 0, fmt.Errorf("denoise: %w", err)
	}
	switch res.Gate.Action {
	case gate.PassThrough:
		res.Untouched = UntouchedGate
	case gate.Blend:
		for i := range b.removed {
			b.removed[i] *= float32(res.Gate.Blend)
		}
	}
	return res.Gate.Blend, nil
}

// scratch is the memory of one call of denoise.
type scratch struct {
	y, native, removed   []float32
	sigma                []float32 // of the noise that is to be taken off
	uncertain            []float32
	level, signal        []float32 // mean around a pixel, and the signal in it, in standard deviations of the noise
	lifted               bool      // noise lifts what has no signal: a magnitude
	again, lowered       []float32
	energy, allowed, tmp []float32
	sums                 []float64 // of columns
	outside, mask, air   []bool
	noise, judged        noise.Map // as estimated, and as results are held against it
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
	if err := net.Forward(b.removed, y, b.sigma, b.rho(), w, h); err != nil {
		return err
	}
	for i, v := range b.removed {
		if !finite(v) {
			return fmt.Errorf("denoise: the network's result is not finite at (%d, %d)", i%w, i/w)
		}
		b.removed[i] = y[i] - v
	}
	return nil
}

// cautious sets b.sigma to what is to be taken off of the noise that was estimated:
// less than that, for estimates are too high where anatomy is fine (docs/noise.md), the
// more the less noise there is. Rather some noise left than anatomy taken off. Loud
// noise is known well, and drowns fine anatomy anyway. It returns the median.
func (b *scratch) cautious(filled bool) float64 {
	m := b.noise.Median
	share := caution + (1-caution)*min(max((m-faintNoise)/(loudNoise-faintNoise), 0), 1)
	if filled {
		share = cautionFilled
	}
	share *= min(1, m/faintNoise)
	b.sigma = grow(b.sigma, len(b.noise.Sigma))
	for i, s := range b.noise.Sigma {
		b.sigma[i] = s * float32(share)
	}
	return m * share
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
	cautionFilled = 0.7       // less on a native grid, whose cut-off corners look like noise
	faintNoise    = 4. / 255  // and less still below this median,
	loudNoise     = 10. / 255 // and above this, it is taken at its word
	leastGrid     = 160       // pixels a side; smaller images are taken as they are
	mostNoise     = 0.2       // median, of the 99.9th percentile; beyond it the network shifts the mean
	mostRemoved   = 2.5       // of one pixel, in standard deviations of its noise
	judgedFilled  = 0.85      // of the estimated noise is what results on a native grid are held against
	windowRemoved = 2         // half the window over which the energy is compared, and the signal looked for
	chanceRemoved = 1         // of the noise's energy, left to chance where there is no signal: three standard deviations of the mean of a window, at cautious noise
	minSigma      = 1e-6      // where there is no noise, all is signal
)

// The mean of a window, in standard deviations of the noise. Of a magnitude's air it is
// 1.25 with a spread of 0.13, of other images' 0 with a spread of 0.2.
const (
	lowestAir   = 0.8 // of a magnitude; estimates are rather too high
	highestAir  = 1.5
	leastTissue = 1.7
	highestNone = 0.4 // of other images
	mostNone    = 0.55
	leastSome   = 0.7
	leastAir    = 64 // pixels, fewer say nothing
)

// restrain holds the removed part down to what noise can be. Noise of standard
// deviation sigma has the mean square sigma²; where the network takes off more over a
// 5×5 window, the rest is anatomy, and the removed part is scaled down. A magnitude may
// be taken off its lift, too, at the signal that the image shows. Where it shows none,
// more is left to chance: all that is taken off there is noise.
func (b *scratch) restrain(w, h int) {
	b.energy, b.allowed = grow(b.energy, w*h), grow(b.allowed, w*h)
	for i, v := range b.removed {
		b.energy[i] = v * v
		b.allowed[i] = b.sigma[i] * b.sigma[i] * b.lift(i)
	}
	b.means(b.energy, w, h, windowRemoved)
	b.means(b.allowed, w, h, windowRemoved)
	none, some := float32(highestNone), float32(leastSome)
	if b.lifted {
		none, some = highestAir, leastTissue
	}
	for i, v := range b.removed {
		empty := min(max((some-b.level[i])/(some-none), 0), 1)
		most := b.sigma[i] * (mostRemoved*float32(math.Sqrt(float64(b.lift(i)))) + empty)
		v = min(max(v, -most), most)
		if e, limit := b.energy[i], b.allowed[i]*(1+chanceRemoved*empty); e > limit {
			v *= float32(math.Sqrt(float64(limit / e)))
		}
		b.removed[i] = v
	}
}

// lift is the mean square of what noise does to a pixel, in that of the complex noise:
// E[(M−A)²] = 2 + 2A² − 2A·E[M] of a magnitude, which is 2 without signal and 1 with
// much of it, else 1.
func (b *scratch) lift(i int) float32 {
	if !b.lifted {
		return 1
	}
	a := float64(b.signal[i])
	return float32(2 - 2*a*noise.RicianBias(a))
}

// means replaces v by its means over windows of 2·half+1 pixels a side (noise.Means).
func (b *scratch) means(v []float32, w, h, half int) {
	b.tmp, b.sums = grow(b.tmp, w*h), grow(b.sums, w)
	noise.Means(v, v, b.tmp, b.sums[:w], w, h, half)
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
