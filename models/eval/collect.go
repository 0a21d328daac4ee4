package eval

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/store"
)

// Reasons of what is not evaluated, besides those of package dataset.
const (
	SkipTooSmall   = "too-small"
	SkipMixedSize  = "mixed-size"
	SkipConstant   = "constant"
	SkipNoSignal   = "no-signal"    // all values but a few are 0 or below
	SkipPadding    = "padding"      // most pixels are no measurement or not finite
	SkipNotRepeats = "not-repeated" // volumes of one file that are no repetitions of each other
	SkipTooMany    = "too-many"     // more than the memory is meant to hold
)

// Limits of what is evaluated.
const (
	MinSide = 32      // pixels of a slice's width and height
	MaxSide = 1 << 13 // likewise
	// maxKept bounds the pixels that a Collector holds.
	maxKept = 1 << 29
	// percentilePixels is how many pixels of a volume its percentile is taken from,
	// evenly spread.
	percentilePixels = 1 << 21
)

// slice is one image, 1 = 99.9th percentile of its volume.
type slice struct {
	name   string
	w, h   int
	px     []float32
	mask   []bool
	own    float64 // its own noise, as it is estimated
	volume string
}

// set is what tables have their own lines for: slices, or a slice's repetitions.
type set struct {
	name     string
	group    string
	test     []*slice
	tune     []*slice // for the classical methods, never scored
	repeated bool
	// magnitude says that nothing speaks against it.
	magnitude bool
	// repeats[r][i] is repetition r of test slice i, tuneRepeats of the tuning ones.
	// All have one scale: the mean of the repetitions' percentiles.
	repeats, tuneRepeats [][]*slice
	scale                float32 // of a repetition, before it is brought to that
}

// Collector chooses and keeps slices. It is used by one goroutine at a time.
type Collector struct {
	perVolume int
	shrink    int
	skipped   []dataset.Skip
	sets      []*set
	singles   map[string][]*slice // images that are a volume of their own, by folder and group
	open      []*set              // repetitions of one source, not yet complete
	openName  string
	kept      int
}

// MaxShrink is the most that a Collector makes slices smaller by.
const MaxShrink = 8

// NewCollector returns a Collector that takes the given number of slices of every
// volume, at least 1, evenly spread over the middle 70 % of its depth. Images that
// are a volume of their own count as the slices of one if they lie in one folder.
//
// shrink, from 1 to MaxShrink, makes slices that noise is added to smaller by that
// factor first, taking the mean of shrink×shrink pixels: where images are grainy,
// that makes better references of them. Repetitions are left as they are.
func NewCollector(perVolume, shrink int) *Collector {
	return &Collector{perVolume: max(perVolume, 1), shrink: min(max(shrink, 1), MaxShrink), singles: map[string][]*slice{}}
}

// shrunk takes the means of n×n pixels; a rest at the right and lower border is
// left out. A mean of skipped pixels is skipped.
func shrunk(img dataset.Image, n int) dataset.Image {
	out := dataset.Image{Width: img.Width / n, Height: img.Height / n}
	out.Pixels = make([]float32, out.Width*out.Height)
	if img.Skip != nil {
		out.Skip = make([]bool, len(out.Pixels))
	}
	for i := range out.Pixels {
		x, y := i%out.Width*n, i/out.Width*n
		sum := 0.0
		for v := y; v < y+n; v++ {
			for u := x; u < x+n; u++ {
				sum += float64(img.Pixels[v*img.Width+u])
				if img.Skip != nil && img.Skip[v*img.Width+u] {
					out.Skip[i] = true
				}
			}
		}
		out.Pixels[i] = float32(sum / float64(n*n))
	}
	return out
}

// Skip records what was left out before it came to the Collector.
func (c *Collector) Skip(s dataset.Skip) { c.skipped = append(c.skipped, s) }

// Groups of what is not MR, or not known to be.
const (
	xray = "X-ray"
	pngs = "PNG"
)

// Groups of what was measured several times.
const (
	repetitions = "repetitions"
	pairs       = "pairs"
)

// groupOf names the group of sets that a volume is averaged with.
func groupOf(v dataset.Volume) string {
	switch {
	case store.KindOf(v.Modality) == store.Radiograph:
		return xray
	case v.Modality != "":
		return v.Modality
	case strings.HasSuffix(strings.ToLower(v.Source), ".png"):
		return pngs
	}
	return "volumes"
}

// margin is the share of a volume's depth that is left out at either end.
const margin = 0.15

// places returns the n slices of a depth that are scored, and at most two between
// them that are tuned on. At least one slice is left for those if there are two.
func places(depth, n int, margin float64) (test, tune []int) {
	low := int(margin * float64(depth))
	middle := depth - 2*low
	n = min(n, max(middle-1, 1))
	for i := range n {
		test = append(test, low+int((float64(i)+0.5)/float64(n)*float64(middle)))
	}
	for i := range n + 1 {
		k := min(low+int(float64(i)/float64(n)*float64(middle)), depth-1)
		if !slices.Contains(test, k) && !slices.Contains(tune, k) {
			tune = append(tune, k)
		}
	}
	if len(tune) > 2 { // those in the middle show most
		tune = tune[len(tune)/2-1:][:2]
	}
	return test, tune
}

// Add takes slices of a volume; repetitions of one acquisition follow each other.
// Skipped pixels become 0. What is wrong with it is recorded, not returned.
func (c *Collector) Add(v dataset.Volume) {
	base, repetition, _ := cutRepetition(v.Source)
	if base != c.openName {
		c.closeRepeats()
	}
	no := func(reason, format string, args ...any) {
		c.Skip(dataset.Skip{Source: v.Source, Reason: reason, Detail: fmt.Sprintf(format, args...)})
	}
	if v.Slices < 1 || v.Read == nil {
		no(SkipNoSignal, "no slices")
		return
	}
	test, tune := places(v.Slices, c.perVolume, margin)
	chosen := map[int]*slice{}
	var (
		values      []float32
		first       dataset.Image
		least, most = float32(math.Inf(1)), float32(math.Inf(-1))
		padded      []int
	)
	for k := range v.Slices {
		img, err := v.Read(k)
		if err != nil {
			no(dataset.Unreadable, "slice %d: %v", k, err)
			return
		}
		if n := c.shrink; n > 1 && repetition < 0 && img.Width >= n && img.Height >= n && img.Width <= MaxSide && img.Height <= MaxSide &&
			len(img.Pixels) == img.Width*img.Height && (img.Skip == nil || len(img.Skip) == len(img.Pixels)) {
			img = shrunk(img, n)
		}
		switch n := len(img.Pixels); {
		case k > 0 && (img.Width != first.Width || img.Height != first.Height):
			no(SkipMixedSize, "slice %d has %d×%d pixels, the first %d×%d", k, img.Width, img.Height, first.Width, first.Height)
			return
		case img.Width < MinSide || img.Height < MinSide:
			no(SkipTooSmall, "%d×%d pixels; at least %d×%d are needed", img.Width, img.Height, MinSide, MinSide)
			return
		case img.Width > MaxSide || img.Height > MaxSide:
			no(dataset.TooLarge, "%d×%d pixels; at most %d×%d are read", img.Width, img.Height, MaxSide, MaxSide)
			return
		case n != img.Width*img.Height || img.Skip != nil && len(img.Skip) != n:
			no(dataset.Unreadable, "slice %d of %d×%d pixels has %d values", k, img.Width, img.Height, n)
			return
		}
		first = img
		skipped := 0
		for i, p := range img.Pixels {
			if p-p != 0 || img.Skip != nil && img.Skip[i] {
				img.Pixels[i] = 0
				skipped++
			} else {
				least, most = min(least, p), max(most, p)
			}
		}
		stride := max(v.Slices*len(img.Pixels)/percentilePixels, 1)
		for i := k % stride; i < len(img.Pixels); i += stride {
			values = append(values, img.Pixels[i])
		}
		if !slices.Contains(test, k) && !slices.Contains(tune, k) {
			continue
		}
		if 2*skipped > len(img.Pixels) {
			padded = append(padded, k)
			continue
		}
		if c.kept += len(img.Pixels); c.kept > maxKept {
			no(SkipTooMany, "the slices so far have more than %d pixels", maxKept)
			return
		}
		chosen[k] = &slice{name: sliceName(base, v.Slices, k), w: img.Width, h: img.Height, px: img.Pixels, volume: base}
	}
	if len(padded) > 0 {
		no(SkipPadding, "most pixels of slices %d are no measurement or not finite", padded)
	}
	if least > most {
		return
	}
	if least == most {
		no(SkipConstant, "all values are equal")
		return
	}
	slices.Sort(values)
	scale := values[int(0.999*float64(len(values)-1))]
	if !(scale > 0) {
		no(SkipNoSignal, "the 99.9th percentile is %g", scale)
		return
	}
	group := groupOf(v)
	s := &set{name: base, group: group, magnitude: group != xray && group != pngs, scale: scale}
	keep := func(list []int) (kept []*slice) {
		for _, k := range list {
			p := chosen[k]
			if p == nil {
				continue
			}
			for i := range p.px {
				p.px[i] /= scale
			}
			if p.mask = Tissue(p.px, p.w, p.h); p.mask == nil {
				no(SkipConstant, "slice %d shows nothing", k)
				continue
			}
			p.own = ownNoise(p)
			kept = append(kept, p)
		}
		return kept
	}
	if repetition >= 0 {
		s.repeated = true
		// Slices stay where they are in all repetitions, so none may be left out alone.
		s.test, s.tune = keep(test), keep(tune)
		c.open, c.openName = append(c.open, s), base
		return
	}
	s.test, s.tune = keep(test), keep(tune)
	switch {
	case len(s.test) == 0:
		if len(s.tune) > 0 {
			no(SkipConstant, "none of the chosen slices shows anything")
		}
	case v.Slices == 1:
		key := path.Dir(base) + "\x00" + s.group
		c.singles[key] = append(c.singles[key], s.test[0])
	default:
		c.sets = append(c.sets, s)
	}
}

// ownNoise estimates the noise that a slice has already, as models.Denoise does;
// 0 if none is found.
func ownNoise(p *slice) float64 {
	grid, err := noise.Detect(p.px, p.w, p.h)
	if err != nil {
		return 0
	}
	px, mask := p.px, noise.Outside(nil, p.px, p.w, p.h, nil)
	if grid.Filled() {
		px, mask = grid.Crop(nil, px), grid.Mask(nil, mask)
	}
	m, err := noise.Estimate(px, grid.NativeWidth, grid.NativeHeight, mask)
	if err != nil {
		return 0
	}
	return m.Median
}

func sliceName(base string, depth, k int) string {
	if depth == 1 {
		return base
	}
	return fmt.Sprintf("%s slice %d", base, k)
}

// cutRepetition splits "name#3" into its parts; the number is -1 without one.
func cutRepetition(source string) (base string, n int, ok bool) {
	if at := strings.LastIndexByte(source, '#'); at > 0 {
		if n, err := strconv.Atoi(source[at+1:]); err == nil && n >= 0 {
			return source[:at], n, true
		}
	}
	return source, -1, false
}

// Bounds of what is taken for repetitions of each other: the mean of each by that
// of all, and its correlation with the mean of the others.
const (
	repeatBrightness  = 0.1
	repeatCorrelation = 0.9
)

// closeRepeats makes a set of the repetitions of one source.
func (c *Collector) closeRepeats() {
	list := c.open
	c.open, c.openName = nil, ""
	if len(list) == 0 {
		return
	}
	name := list[0].name
	no := func(reason, format string, args ...any) {
		c.Skip(dataset.Skip{Source: name, Reason: reason, Detail: fmt.Sprintf(format, args...)})
	}
	s := &set{name: name, group: repetitions, magnitude: list[0].magnitude, repeated: true}
	if len(list) == 2 {
		s.group = pairs
	}
	names := func(list []*slice) (n []string) {
		for _, p := range list {
			n = append(n, p.name)
		}
		return n
	}
	for _, r := range list {
		if len(r.test) == 0 || !slices.Equal(names(r.test), names(list[0].test)) || !slices.Equal(names(r.tune), names(list[0].tune)) ||
			r.test[0].w != list[0].test[0].w || r.test[0].h != list[0].test[0].h {
			no(SkipNotRepeats, "its volumes do not have the same slices")
			return
		}
		s.repeats = append(s.repeats, r.test)
		s.tuneRepeats = append(s.tuneRepeats, r.tune)
	}
	if len(s.repeats) < 2 {
		no(SkipNotRepeats, "one volume could be read; a score needs two")
		return
	}
	scale := float32(0)
	for _, r := range list {
		scale += r.scale / float32(len(list))
	}
	for _, r := range list {
		for _, p := range slices.Concat(r.test, r.tune) {
			for i := range p.px {
				p.px[i] *= r.scale / scale
			}
		}
	}
	for i := range s.repeats[0] {
		means := make([]float64, len(s.repeats))
		all := 0.0
		for r := range s.repeats {
			for _, v := range s.repeats[r][i].px {
				means[r] += float64(v)
			}
			all += means[r] / float64(len(s.repeats))
		}
		for r := range s.repeats {
			if q := means[r] / all; !(math.Abs(q-1) <= repeatBrightness) {
				no(SkipNotRepeats, "volume %d is %.2f times as bright as the mean of all", r, q)
				return
			}
			if q := correlation(s.repeats[r][i].px, meanOf(s.repeats, i, r)); !(q >= repeatCorrelation) {
				no(SkipNotRepeats, "volume %d has the correlation %.3f with the mean of the others; at least %g is needed", r, q, repeatCorrelation)
				return
			}
		}
	}
	s.test, s.tune = s.repeats[0], s.tuneRepeats[0]
	c.sets = append(c.sets, s)
}

// meanOf is the mean over all repetitions of slice i but one.
func meanOf(repeats [][]*slice, i, without int) []float32 {
	sum := make([]float64, len(repeats[0][i].px))
	n := 0
	for r := range repeats {
		if r == without {
			continue
		}
		n++
		for k, v := range repeats[r][i].px {
			sum[k] += float64(v)
		}
	}
	mean := make([]float32, len(sum))
	for k, v := range sum {
		mean[k] = float32(v / float64(max(n, 1)))
	}
	return mean
}

func correlation(a, b []float32) float64 {
	var sa, sb, saa, sbb, sab float64
	for i := range a {
		x, y := float64(a[i]), float64(b[i])
		sa, sb, saa, sbb, sab = sa+x, sb+y, saa+x*x, sbb+y*y, sab+x*y
	}
	n := float64(len(a))
	return (sab - sa*sb/n) / math.Sqrt((saa-sa*sa/n)*(sbb-sb*sb/n))
}

// finish makes sets of single images and returns all sets in the order of their
// names.
func (c *Collector) finish() []*set {
	c.closeRepeats()
	for key, list := range c.singles {
		dir, group, _ := strings.Cut(key, "\x00")
		slices.SortFunc(list, func(a, b *slice) int { return cmp.Compare(a.name, b.name) })
		name := dir
		switch {
		case len(list) == 1:
			name = list[0].name
		case dir == ".":
			name = "images"
		}
		s := &set{name: name, group: group, magnitude: group != xray && group != pngs}
		test, tune := places(len(list), c.perVolume, 0)
		for _, k := range test {
			s.test = append(s.test, list[k])
		}
		for _, k := range tune {
			s.tune = append(s.tune, list[k])
		}
		c.sets = append(c.sets, s)
	}
	clear(c.singles)
	slices.SortFunc(c.sets, func(a, b *set) int { return cmp.Compare(a.name, b.name) })
	return c.sets
}
