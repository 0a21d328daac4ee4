package models

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/diffdenoise/denoised/internal/numeric"
	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/store"
)

// Revision is that of Denoise and High: it changes whenever the same weights give other
// pixels than before, so that derived objects of the two are never taken for one.
const Revision = "6"

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
	// Series is what other slices of the series, or all of them, have told of its noise;
	// the zero value is nothing. The slice itself counts besides.
	Series meter.Series
}

// Result is a denoised slice.
type Result struct {
	Pixels []float32
	// Sigma is the median standard deviation of the noise that was found, in the
	// unit of the image; 0 if none was.
	Sigma float64
	// Series is what this slice by itself tells of the noise of its series.
	Series meter.Series
	// Untouched says why the image came back as it was; empty if it did not.
	Untouched string
	// Uncertainty is the standard deviation of the error at every pixel, in the unit of the
	// image: of tissue, 68 % of the pixels lie within it (docs/quality.md). 0 where nothing can
	// change; nil where it is not known (Denoise, and images that came back as they were).
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

// Denoise takes the noise off one slice on one core:
//
//  1. normalize: the scale is set so that the 99.9th percentile of the measured pixels is 1;
//  2. measure: the noise meter tells how strong the noise is, and how it is correlated;
//  3. predict: the student, told that, predicts the noise, on a coarser grid where the noise has
//     no high frequencies;
//  4. keep means: where there is signal, the mean around each pixel stays; in air what is left of
//     the noise's lift goes;
//  5. limit: the prediction is held to the energy that noise can have;
//  6. judge: the quality gate (package gate) looks at what would be taken off, and lets it
//     through, in part, or not at all;
//  7. out = y + strength·(denoised − y).
//
// Skipped pixels and blanked air (noise.Outside) are returned bit for bit, all
// others stay between the least and the greatest measured value of the slice.
// The result is finite and, on one backend, the same at every call. A pixel that is not finite
// and not skipped is an error, as are sizes that do not fit and a strength
// outside 0 to 1. The image is not changed. Safe for concurrent use.
func (m *Model) Denoise(ctx context.Context, img Image, o Options) (*Result, error) {
	return m.denoise(ctx, img, o, by(m.Student()))
}

// by predicts with the fast network.
func by(f net.Forwarder) predictor {
	return func(_ context.Context, p *predicted, n *normalized, told *meter.Reading) error {
		if err := f.Forward(p.removed, n.y, told.Given, told.Told, n.w, n.h); err != nil {
			return err
		}
		for i, v := range p.removed {
			if !finite(v) {
				return fmt.Errorf("denoise: the network's result is not finite at (%d, %d)", i%n.w, i/n.w)
			}
			p.removed[i] = n.y[i] - v
		}
		return nil
	}
}

// predictor is how Denoise and High differ: it sets what is to be taken off a normalized image
// of known noise, and perhaps how much a pair of samples differs.
type predictor func(ctx context.Context, p *predicted, n *normalized, told *meter.Reading) error

func (m *Model) denoise(ctx context.Context, img Image, o Options, predict predictor) (*Result, error) {
	b := scratches.Get().(*scratch)
	defer scratches.Put(b)
	return b.denoise(ctx, m, img, o, predict)
}

// denoise leaves the values of its steps in b.
func (b *scratch) denoise(ctx context.Context, m *Model, img Image, o Options, predict predictor) (*Result, error) {
	if err := img.check(o.Strength); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	res := &Result{Pixels: slices.Clone(img.Pixels)}
	if o.Strength == 0 {
		res.Untouched = UntouchedStrength
		return res, nil
	}
	n := &b.normalized
	if res.Untouched = n.normalize(img); res.Untouched != "" {
		return res, nil
	}
	told := &b.reading
	if err := m.measure(told, n, o.Series); err != nil {
		return nil, err
	}
	res.Series = told.Series
	defer func() { res.Sigma = told.Map.Median * float64(n.scale) }() // the coarser grid tells more of it
	switch {
	case !(told.Map.Median >= leastNoise):
		res.Untouched = UntouchedNoNoise
		return res, nil
	case told.Map.Median > mostNoise:
		res.Untouched = UntouchedNoisy
		return res, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := &b.predicted
	p.removed, p.spread = numeric.Grow(p.removed, n.w*n.h), p.spread[:0]
	if err := b.inBand(ctx, m, p, n, told, predict); err != nil {
		return nil, err
	}
	b.inAir = numeric.Grow(b.inAir, n.w*n.h)
	if clear(b.inAir); m.Kind() != store.Radiograph { // those have no coils, and their zero means nothing
		b.findAir(n, told)
	}
	b.keepMeans(p, n, told)
	b.darken(p, n, told)
	b.limit(p, n, told)
	share, err := b.judge(res, p, n, told)
	if err != nil || res.Untouched != "" {
		return res, err
	}
	share *= o.Strength
	if len(p.spread) > 0 {
		res.Uncertainty = b.stated(p, n, told.Map.Sigma, share)
		for i := range res.Uncertainty {
			res.Uncertainty[i] *= n.scale
		}
	}
	for i, v := range img.Pixels {
		if !n.outside[i] {
			v := float64(v) - share*float64(p.removed[i])*float64(n.scale)
			res.Pixels[i] = min(max(float32(v), n.least), n.most)
		}
	}
	return res, nil
}

// check says what is wrong with an image or a strength.
func (img *Image) check(strength float64) error {
	w, h := img.Width, img.Height
	switch {
	case w < 1 || h < 1 || w > MaxPixels/h:
		return fmt.Errorf("denoise: %d×%d pixels are outside 1 to %d", w, h, MaxPixels)
	case len(img.Pixels) != w*h || img.Skip != nil && len(img.Skip) != w*h:
		return fmt.Errorf("denoise %d×%d pixels: %d values, %d mask values", w, h, len(img.Pixels), len(img.Skip))
	case !(strength >= 0 && strength <= 1):
		return fmt.Errorf("denoise: strength %g is outside 0 to 1", strength)
	}
	for i, v := range img.Pixels {
		if !finite(v) && (img.Skip == nil || !img.Skip[i]) {
			return fmt.Errorf("denoise: pixel (%d, %d) is not finite", i%w, i/w)
		}
	}
	return nil
}

// scratch is the memory of one call of Denoise: the steps' values, and what they compute with.
type scratch struct {
	normalized normalized
	reading    meter.Reading
	predicted  predicted
	cropped    cropped

	level           []float32 // mean around a pixel, in standard deviations of the noise
	energy, allowed []float32
	after           []float32
	air             []bool
	inAir           []float32 // how surely a pixel is air
	tmp             []float32
	sums            []float64 // of columns
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// predicted is what a network takes off an image, and half the difference of the pair of samples
// that it is the mean of, of length 0 if there are none. Both in the scale of normalized.
type predicted struct{ removed, spread []float32 }

// Bounds of what is taken off.
const (
	leastNoise    = 0.0015 // median, of the 99.9th percentile, a third of 1/255; below it nothing is to be gained
	mostNoise     = 0.2    // beyond it networks shift the mean
	mostRemoved   = 2.5    // of one pixel, in standard deviations of its noise
	windowRemoved = 2      // half the window over which the energy is compared, pixels
	chanceRemoved = 1      // standard deviations of the energy of a window that are left to chance
	mostEnergy    = 4      // times the noise's, whatever chance can do
	minSigma      = 1e-6
	windowMean    = 5 // half the window whose mean stays, pixels
	// Signal of a result, in standard deviations of the noise, from which on and up to which the
	// mean around a pixel counts.
	leastSignal = 1
	mostSignal  = 2.5
	// A magnitude of up to 8 coils has a mean of at most 4 standard deviations of the noise
	// where there is no signal. Up to there all may be taken off.
	highestAir  = 4
	leastTissue = 5.5
)

// keepMeans takes out of what is to be taken off its mean around every pixel where there is signal:
// noise that is zero in the mean has none there. What noise lifts a magnitude of tissue by stays, as
// it does in the mean of many repetitions. In air the lift goes with the noise.
func (b *scratch) keepMeans(p *predicted, n *normalized, told *meter.Reading) {
	size := n.w * n.h
	b.level, b.energy = numeric.Grow(b.level, size), numeric.Grow(b.energy, size)
	for i, v := range p.removed {
		b.level[i] = n.y[i] - v
	}
	b.means(b.level, n.w, n.h, windowRemoved)
	for i, v := range p.removed {
		s := max(told.Map.Sigma[i], minSigma)
		signal := min(max((abs(b.level[i])/s-leastSignal)/(mostSignal-leastSignal), 0), 1)
		if n.outside[i] {
			signal = 0
		}
		signal *= 1 - b.inAir[i]
		b.level[i], b.energy[i] = signal, signal*v
	}
	b.allowed = append(b.allowed[:0], b.level...)
	b.means(b.energy, n.w, n.h, windowMean)
	b.means(b.allowed, n.w, n.h, windowMean)
	for i, signal := range b.level {
		if signal > 0 {
			p.removed[i] -= signal * b.energy[i] / b.allowed[i]
		}
	}
}

// limit holds what is taken off down to what noise can be. Noise of standard deviation sigma has
// the mean square sigma²; where a network takes off more over a 5×5 window than chance explains,
// the rest is anatomy, and all of it is scaled down. Where there may be no signal, what noise
// lifts a magnitude by may go, too.
func (b *scratch) limit(p *predicted, n *normalized, told *meter.Reading) {
	size := n.w * n.h
	b.level = append(b.level[:0], n.y...)
	b.means(b.level, n.w, n.h, windowRemoved)
	b.energy, b.allowed = numeric.Grow(b.energy, size), numeric.Grow(b.allowed, size)
	for i, v := range p.removed {
		b.energy[i] = v * v
	}
	b.means(b.energy, n.w, n.h, windowRemoved)
	// independent values in a window
	const side = 2*windowRemoved + 1
	free := side * side / told.Map.Correlation.Squares()
	chance := float32(min(1+chanceRemoved*math.Sqrt(2/max(free, 0.1)), mostEnergy))
	for i, v := range p.removed {
		s := max(told.Given[i], minSigma)
		mean := b.level[i]
		b.level[i] = mean / max(told.Map.Sigma[i], minSigma)
		lift := max(mean, 0) * min(max((leastTissue-b.level[i])/(leastTissue-highestAir), 0), 1)
		most := mostRemoved*s + lift
		v = min(max(v, -most), most)
		if limit := s*s*chance + lift*lift; b.energy[i] > limit {
			v *= float32(math.Sqrt(float64(limit / b.energy[i])))
		}
		p.removed[i] = v
	}
}

// judge asks the gate about what would be taken off. It returns the share of the change that
// may be sent.
func (b *scratch) judge(res *Result, p *predicted, n *normalized, told *meter.Reading) (share float64, err error) {
	size := n.w * n.h
	b.after, b.air = numeric.Grow(b.after, size), numeric.Grow(b.air, size)
	for i, v := range n.y {
		b.after[i] = v - p.removed[i]
		b.energy[i] = b.after[i]
	}
	b.means(b.energy, n.w, n.h, windowRemoved)
	b.allowed = numeric.Grow(b.allowed, size)
	for i, v := range b.energy {
		// neither the image nor the result shows a signal
		if b.allowed[i] = 0; abs(b.level[i]) < highestAir && abs(v) < told.Map.Sigma[i] {
			b.allowed[i] = 1
		}
	}
	// and so up to the very edge of what is bright, where the rings of a magnitude lie
	b.means(b.allowed, n.w, n.h, windowRemoved+1)
	for i, v := range b.allowed {
		s := told.Map.Sigma[i]
		b.air[i] = v > 0 && abs(n.y[i]) < leastTissue*s && abs(b.after[i]) < mostSignal*s ||
			b.inAir[i] > 0 && b.after[i] <= max(n.y[i], mostSignal*s) // of several coils s may be too small
	}
	in := gate.Input{Width: n.w, Height: n.h, Before: n.y, After: b.after, Skip: n.outside, Air: b.air,
		Noise: &told.Map}
	if len(p.spread) > 0 {
		in.Uncertainty = p.spread
	}
	if res.Gate, err = gate.Check(in); err != nil {
		return 0, fmt.Errorf("denoise: %w", err)
	}
	if res.Gate.Action == gate.PassThrough {
		res.Untouched = UntouchedGate
	}
	return res.Gate.Blend, nil
}

// means replaces v by its means over windows of 2·half+1 pixels a side.
func (b *scratch) means(v []float32, w, h, half int) {
	b.tmp, b.sums = numeric.Grow(b.tmp, w*h), numeric.Grow(b.sums, w)
	noise.Means(v, v, b.tmp, b.sums[:w], w, h, half)
}

func finite(v float32) bool { return v-v == 0 }

func abs(v float32) float32 { return max(v, -v) }

// normalized is an image in the scale that networks know: 1 is the 99.9th percentile of what was
// measured. Skipped pixels hold the least measured value.
type normalized struct {
	w, h               int
	y                  []float32
	scale, least, most float32 // of the image
	outside            []bool  // skipped, or blanked air

	count []uint32
}

// normalize sets n from an image, or says why that cannot be denoised.
func (n *normalized) normalize(img Image) (untouched string) {
	n.w, n.h = img.Width, img.Height
	count := 0
	for i, v := range img.Pixels {
		if img.Skip != nil && img.Skip[i] {
			continue
		}
		if count == 0 {
			n.least, n.most = v, v
		}
		n.least, n.most = min(n.least, v), max(n.most, v)
		count++
	}
	if count == 0 || n.least == n.most {
		return UntouchedEmpty
	}
	if n.scale = n.ranked(img, int(0.999*float64(count-1))); n.scale <= 0 {
		n.scale = n.most // less than one pixel in a thousand is not air
	}
	switch {
	case n.scale <= 0:
		return UntouchedEmpty
	case !finite(n.least/n.scale) || !finite(n.most/n.scale):
		return UntouchedRange
	}
	n.y = numeric.Grow(n.y, len(img.Pixels))
	for i, v := range img.Pixels {
		if img.Skip != nil && img.Skip[i] {
			v = n.least
		}
		n.y[i] = v / n.scale
	}
	n.outside = noise.Outside(n.outside, n.y, n.w, n.h, img.Skip)
	return ""
}

// ranked returns the measured pixel that would be at place k if they were sorted:
// it counts the upper halves of their bits, then the lower ones of those that share
// the upper half.
func (n *normalized) ranked(img Image, k int) float32 {
	n.count = numeric.Grow(n.count, 1<<16)
	find := func() (at uint32) {
		for k >= int(n.count[at]) {
			k -= int(n.count[at])
			at++
		}
		return at
	}
	clear(n.count)
	for i, v := range img.Pixels {
		if img.Skip == nil || !img.Skip[i] {
			n.count[sortable(v)>>16]++
		}
	}
	high := find()
	clear(n.count)
	for i, v := range img.Pixels {
		if s := sortable(v); s>>16 == high && (img.Skip == nil || !img.Skip[i]) {
			n.count[s&0xffff]++
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
