// Package train trains the networks from noisy images alone. A [Builder] makes a
// [Set] of slices out of volumes, whatever they were read from.
package train

import (
	"container/heap"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/store"
)

// Limits of what a Set takes.
const (
	// DefaultMaxBytes is the memory that the slices of a Set may have.
	DefaultMaxBytes = 2 << 30
	// MinSide is the least number of rows and columns.
	MinSide = 32
	// MinSlices is the least number of training slices.
	MinSlices = 8

	maxScaled     = 64   // slices of a volume that its scale is taken from
	maxSkips      = 2000 // entries of a Summary
	minTissue     = 0.02 // share of the pixels above tissueLevel; below it a slice is air
	tissueLevel   = 0.1  // of the volume's scale
	maxNotFinite  = 0.5  // share of the pixels
	maxNegative   = 0.01 // share of the pixels below -negativeLevel
	negativeLevel = 0.05 // of the volume's scale
	minValues     = 12   // fewer different values are labels
	tooNoisy      = 0.2  // median noise, of the scale; models.Denoise leaves such slices alone
	validation    = 0.1  // share of the slices, about
	maxValidation = 0.4  // share of the slices that one subject may bring into it
)

// Slice is one training image on its native grid. It is never changed, and
// safe for concurrent use.
type Slice struct {
	// Pixels are Width×Height values, row major; 1 is the 99.9th percentile of
	// the volume, and a few are above it.
	Pixels        []float32
	Width, Height int
	// Skip marks pixels that are no measurement: padding, not finite, or air that
	// the scanner set to one value. They hold the least value of the slice.
	Skip []bool
	// Noise is what noise.Estimate found; Median is 0 if there was nothing to find.
	Noise *noise.Map
	// Source names the volume, Index the slice in it, from 0.
	Source string
	Index  int
	// Cropped tells that the image was zero-filled and larger than Width×Height.
	Cropped bool
	// Radiograph tells that its noise is that of a detector, not of a receiver behind k-space.
	Radiograph bool
	air        float32 // what noise.Air found
}

// sliceBytes counts pixels, noise map and mask.
func sliceBytes(width, height int) int64 { return int64(width) * int64(height) * (4 + 4 + 1) }

// Set is what a network is trained on.
type Set struct {
	// Train and Validation have no subject in common where there is more than
	// one. Both are in the order of Source and Index.
	Train, Validation []Slice
	// Kind is that of all of them.
	Kind        store.Kind
	Summary     Summary
	fingerprint string
}

// Fingerprint is the same for sets of the same slices, split the same way.
func (s *Set) Fingerprint() string { return s.fingerprint }

// Summary says what became of the data; its JSON is stable.
type Summary struct {
	Volumes    int `json:"volumes"`    // that gave at least one slice
	Subjects   int `json:"subjects"`   // of these
	Slices     int `json:"slices"`     // used: Train + Validation
	Train      int `json:"train"`      // slices
	Validation int `json:"validation"` // slices
	// by what the two were told apart: "subject", "volume" or "slice"
	Split   string `json:"split"`
	Cropped int    `json:"cropped"`  // slices that were zero-filled
	NoNoise int    `json:"no_noise"` // slices in which no noise was found
	// median over the slices of the noise's median, 1 is the scale
	Noise       float64        `json:"noise"`
	Bytes       int64          `json:"bytes"`             // of the slices in memory
	Left        int            `json:"left_out_for_size"` // slices left out at random to stay within the limit
	SkippedAll  int            `json:"skipped"`           // files, volumes and slices left out for a reason
	Skipped     []dataset.Skip `json:"skips"`             // the first of them
	Fingerprint string         `json:"fingerprint"`
}

// Reasons of what is left out that this package gives; readers have their own, and
// Unreadable and TooLarge of dataset are given by both.
const (
	SkipConstant      = "constant"       // every pixel has the same value
	SkipNotFinite     = "not-finite"     // mostly NaN or infinite
	SkipTooSmall      = "too-small"      // fewer than MinSide pixels a side
	SkipAir           = "air"            // nearly nothing but air
	SkipSigned        = "signed"         // phase, a map or a filtered image: magnitudes are not negative
	SkipLabels        = "labels"         // a mask or segmentation: few different values
	SkipNoise         = "noise"          // more noise than image
	SkipOtherModality = "other-modality" // of another modality than most
)

// readFailed is the reason of an error of Volume.Read.
func readFailed(err error) (reason, detail string) {
	if own := (*dataset.SkipError)(nil); errors.As(err, &own) {
		return own.Reason, own.Detail
	}
	return dataset.Unreadable, err.Error()
}

// Options of a Builder. The zero value is ready.
type Options struct {
	// MaxBytes bounds the memory of the slices; 0: DefaultMaxBytes. Where there
	// are more, a part chosen by the seed is kept, whatever order they come in.
	MaxBytes int64
	// Seed chooses that part and the subjects of the validation.
	Seed uint64
	// Kind of the images; empty: that of their modality, or MR where none is known.
	Kind store.Kind
	// Workers is how many slices are prepared at a time; 0: one per core.
	Workers int
	// Progress, if not nil, is told how many slices of the set are prepared.
	// Calls do not overlap.
	Progress func(done, total int)
}

// Builder makes a Set out of volumes that come one by one. It is used by one
// goroutine at a time.
type Builder struct {
	o       Options
	kept    keep
	count   []uint32 // values of a volume, by their upper bits
	summary Summary
}

// NewBuilder returns an empty Builder.
func NewBuilder(o Options) *Builder {
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	return &Builder{o: o, count: make([]uint32, 1<<countBits)}
}

// Skip records something that a reader leaves out.
func (b *Builder) Skip(s dataset.Skip) {
	b.summary.SkippedAll++
	if len(b.summary.Skipped) < maxSkips {
		b.summary.Skipped = append(b.summary.Skipped, s)
	}
}

// Add takes the usable slices of a volume, whose name should not change from run to
// run. Volumes of one subject, or without one of one name, are never on both sides of
// the split; the subject is hashed, not kept. Some slices are read twice and some not
// at all, in rising order. What is not usable is recorded with
// its reason; only the end of ctx is an error. Memory stays within the limit of
// the Options, plus the slice that is being read.
func (b *Builder) Add(ctx context.Context, v dataset.Volume) error {
	if v.Subject == "" {
		v.Subject = v.Source
	}
	scale, err := b.scale(ctx, v)
	if err != nil {
		return err
	}
	if scale == 0 {
		return nil // recorded
	}
	skips := map[string]*dataset.Skip{} // one line per reason
	note := func(reason, detail string, k int) {
		s := skips[reason]
		if s == nil {
			if v.Slices > 1 {
				detail = strings.TrimSuffix(fmt.Sprintf("slice %d: %s", k, detail), ": ")
			}
			s = &dataset.Skip{Source: v.Source, Reason: reason, Detail: detail}
			skips[reason] = s
		}
		s.Slices++
	}
	for k := range v.Slices {
		if err := ctx.Err(); err != nil {
			return err
		}
		rank := b.rank(v.Source, k)
		if b.kept.closed(rank) {
			b.summary.Left++
			continue
		}
		img, err := v.Read(k)
		if err != nil {
			reason, detail := readFailed(err)
			note(reason, detail, k)
			continue
		}
		if reason, detail := clean(&img, scale); reason != "" {
			note(reason, detail, k)
			continue
		}
		b.summary.Left += b.kept.add(candidate{rank: rank, subject: v.Subject, modality: v.Modality,
			slice: Slice{Pixels: img.Pixels, Width: img.Width, Height: img.Height, Skip: img.Skip, Source: v.Source, Index: k}}, b.o.MaxBytes)
	}
	for _, reason := range sortedKeys(skips) {
		b.Skip(*skips[reason])
	}
	return nil
}

// rank is a random number of the slice: the lowest are kept.
func (b *Builder) rank(source string, k int) uint64 {
	return seededHash(b.o.Seed, fmt.Sprintf("slice %q %d", source, k))
}

func seededHash(seed uint64, text string) uint64 {
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(text), seed))
	return binary.LittleEndian.Uint64(sum[:])
}

// countBits of a float32, made sortable, tell values apart that differ by one
// in two thousand; whole numbers up to 4096 are told apart exactly.
const countBits = 20

// scale is the 99.9th percentile over at most maxScaled slices spread over the
// volume, 0 if it is not positive; then the volume is recorded as skipped.
func (b *Builder) scale(ctx context.Context, v dataset.Volume) (float32, error) {
	clear(b.count)
	total := 0
	failed, constant := error(nil), true
	var first float32
	n := min(v.Slices, maxScaled)
	for i := range n {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		img, err := v.Read(i * v.Slices / n)
		if err != nil {
			failed = err
			continue
		}
		for j, p := range img.Pixels {
			if !finite(p) || img.Skip != nil && img.Skip[j] {
				continue
			}
			u := math.Float32bits(p)
			u ^= uint32(int32(u)>>31) | 1<<31
			b.count[u>>(32-countBits)]++
			if total == 0 {
				first = p
			}
			constant = constant && p == first
			total++
		}
	}
	skip := dataset.Skip{Source: v.Source, Slices: v.Slices}
	switch {
	case total == 0 && failed != nil:
		skip.Reason, skip.Detail = readFailed(failed)
	case total == 0:
		skip.Reason, skip.Detail = SkipNotFinite, "no pixel holds a number"
	case constant:
		skip.Reason, skip.Detail = SkipConstant, fmt.Sprintf("every pixel is %g", first)
	}
	if skip.Reason != "" {
		b.Skip(skip)
		return 0, nil
	}
	rest, least, most := total-int(0.999*float64(total-1)), float32(0), float32(0)
	for u := len(b.count) - 1; u >= 0; u-- {
		if b.count[u] == 0 {
			continue
		}
		least = uncount(u)
		if most == 0 {
			most = least
		}
		if rest -= int(b.count[u]); rest <= 0 {
			break
		}
	}
	if least <= 0 {
		least = most // less than one pixel in a thousand is not air
	}
	if least <= 0 {
		skip.Reason, skip.Detail = SkipSigned, "no pixel is above 0"
		b.Skip(skip)
		return 0, nil
	}
	return least, nil
}

// uncount is the value of a place in Builder.count that is next to zero.
func uncount(u int) float32 {
	v := uint32(u) << (32 - countBits)
	if v>>31 == 1 {
		return math.Float32frombits(v &^ (1 << 31))
	}
	return math.Float32frombits(^v)
}

// clean scales the image, makes what is not finite a part of its mask and sets
// masked pixels to the least value. It returns why the slice cannot be used.
func clean(img *dataset.Image, scale float32) (reason, detail string) {
	w, h := img.Width, img.Height
	switch {
	case w < MinSide || h < MinSide:
		return SkipTooSmall, fmt.Sprintf("%d×%d pixels, at least %d a side are needed", w, h, MinSide)
	case w > models.MaxPixels/h:
		return dataset.TooLarge, fmt.Sprintf("%d×%d pixels", w, h)
	case len(img.Pixels) != w*h || img.Skip != nil && len(img.Skip) != w*h:
		return dataset.Unreadable, fmt.Sprintf("%d×%d pixels, %d values, %d mask values", w, h, len(img.Pixels),
			len(img.Skip))
	}
	least, most := float32(math.Inf(1)), float32(math.Inf(-1))
	masked, lost, negative, tissue := 0, 0, 0, 0
	values := make(map[float32]struct{}, minValues)
	for i, v := range img.Pixels {
		if img.Skip != nil && img.Skip[i] {
			masked++
			continue
		}
		if v /= scale; !finite(v) {
			if img.Skip == nil {
				img.Skip = make([]bool, w*h)
			}
			img.Skip[i] = true
			lost++
			continue
		}
		img.Pixels[i] = v
		least, most = min(least, v), max(most, v)
		if v < -negativeLevel {
			negative++
		}
		if v > tissueLevel {
			tissue++
		}
		if len(values) < minValues {
			values[v] = struct{}{}
		}
	}
	n := w*h - masked
	share := func(part int) float64 { return float64(part) / float64(max(n, 1)) }
	switch {
	case n == 0:
		return SkipAir, "nothing but padding"
	case share(lost) > maxNotFinite:
		return SkipNotFinite, fmt.Sprintf("%.0f %% of the pixels are no number", 100*share(lost))
	case least == most:
		return SkipConstant, ""
	case share(negative) > maxNegative:
		return SkipSigned, fmt.Sprintf("%.0f %% of the pixels are clearly negative, so it is no magnitude image", 100*share(negative))
	case float64(tissue) < minTissue*float64(w*h):
		return SkipAir, fmt.Sprintf("%.1f %% of the pixels are more than air", 100*float64(tissue)/float64(w*h))
	case len(values) < minValues:
		return SkipLabels, fmt.Sprintf("%d different values: a mask or segmentation", len(values))
	}
	if img.Skip != nil {
		for i, s := range img.Skip {
			if s {
				img.Pixels[i] = least
			}
		}
	}
	return "", ""
}

func finite(v float32) bool { return v-v == 0 }

// candidate is a slice that will be in the set unless one of lower rank needs
// its memory.
type candidate struct {
	rank              uint64
	subject, modality string
	slice             Slice
}

// keep is the slices of lowest rank that fit a limit, the highest on top.
type keep struct {
	items []candidate
	bytes int64
	full  bool   // at least one was left out
	first uint64 // the lowest rank of those
}

// closed tells that a slice of this rank cannot be kept.
func (k *keep) closed(rank uint64) bool { return k.full && rank >= k.first }

// Len implements sort.Interface.
func (k *keep) Len() int { return len(k.items) }

// Less implements sort.Interface.
func (k *keep) Less(i, j int) bool { return k.items[i].rank > k.items[j].rank }

// Swap implements sort.Interface.
func (k *keep) Swap(i, j int) { k.items[i], k.items[j] = k.items[j], k.items[i] }

// Push implements heap.Interface.
func (k *keep) Push(x any) { k.items = append(k.items, x.(candidate)) }

// Pop implements heap.Interface.
func (k *keep) Pop() any {
	n := len(k.items) - 1
	c := k.items[n]
	k.items[n] = candidate{}
	k.items = k.items[:n]
	return c
}

// add takes c and returns how many slices had to go for it. What is kept does
// not depend on the order in which they come.
func (k *keep) add(c candidate, limit int64) (gone int) {
	heap.Push(k, c)
	k.bytes += sliceBytes(c.slice.Width, c.slice.Height)
	for k.bytes > limit && len(k.items) > 1 {
		out := heap.Pop(k).(candidate)
		k.bytes -= sliceBytes(out.slice.Width, out.slice.Height)
		k.full, k.first = true, out.rank // the ranks of those kept are lower
		gone++
	}
	return gone
}

// TooFewError tells that there is not enough to train on.
type TooFewError struct {
	Slices, Need int
	Summary      Summary
}

// Error says how many are needed and why the others were left out.
func (e *TooFewError) Error() string {
	text := fmt.Sprintf("%d usable slices, at least %d are needed", e.Slices, e.Need)
	if why := e.Summary.Reasons(); why != "" {
		text += "; left out: " + why
		if s := e.Summary.Skipped[0]; s.Detail != "" {
			text += fmt.Sprintf("; the first, %s, because: %s", s.Source, s.Detail)
		}
	}
	return text
}

// Reasons lists the reasons of what was skipped with their numbers, the most
// frequent first: "3 colour, 1 too-small". A file counts as one.
func (s *Summary) Reasons() string {
	n := map[string]int{}
	for _, k := range s.Skipped {
		n[k.Reason] += max(k.Slices, 1)
	}
	keys := sortedKeys(n)
	slices.SortStableFunc(keys, func(a, b string) int { return n[b] - n[a] })
	for i, k := range keys {
		keys[i] = fmt.Sprintf("%d %s", n[k], k)
	}
	if more := s.SkippedAll - len(s.Skipped); more > 0 {
		keys = append(keys, fmt.Sprintf("%d more", more))
	}
	return strings.Join(keys, ", ")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Build takes every slice to its native grid, estimates its noise, and splits.
// Where the modalities differ, the most frequent one stays, with the slices whose
// modality is not known. The error is a *TooFewError or that of ctx. The Builder
// cannot be used again.
//
// The crop to the native grid is decided for the slices of one volume together.
func (b *Builder) Build(ctx context.Context) (*Set, error) {
	items := b.kept.items
	b.kept.items = nil
	slices.SortFunc(items, func(a, c candidate) int {
		if d := strings.Compare(a.slice.Source, c.slice.Source); d != 0 {
			return d
		}
		return a.slice.Index - c.slice.Index
	})
	items, kind := b.oneModality(items)
	for i := range items {
		items[i].slice.Radiograph = kind == store.Radiograph
	}
	if err := b.prepare(ctx, items); err != nil {
		return nil, err
	}
	items = b.images(items)
	if len(items) <= MinSlices {
		b.summary.Slices = len(items)
		return nil, &TooFewError{Slices: len(items), Need: MinSlices + 1, Summary: b.summary}
	}
	s := &Set{Summary: b.summary, Kind: kind}
	held := s.split(items, b.o.Seed)
	sources := map[string]bool{}
	levels := make([]float64, 0, len(items))
	for i := range items {
		c := &items[i].slice
		sources[c.Source] = true
		levels = append(levels, c.Noise.Median)
		s.Summary.Bytes += sliceBytes(c.Width, c.Height)
		if c.Cropped {
			s.Summary.Cropped++
		}
		if c.Noise.Median == 0 {
			s.Summary.NoNoise++
		}
		if held[i] {
			s.Validation = append(s.Validation, *c)
		} else {
			s.Train = append(s.Train, *c)
		}
	}
	slices.Sort(levels)
	s.Summary.Noise = levels[len(levels)/2]
	s.Summary.Volumes, s.Summary.Slices = len(sources), len(items)
	s.Summary.Train, s.Summary.Validation = len(s.Train), len(s.Validation)
	s.fingerprint = s.digest()
	s.Summary.Fingerprint = s.fingerprint
	return s, nil
}

// oneModality leaves the most frequent modality and what has none, and tells of which kind they are.
func (b *Builder) oneModality(items []candidate) ([]candidate, store.Kind) {
	n := map[string]int{}
	for _, c := range items {
		if c.modality != "" {
			n[c.modality]++
		}
	}
	most := ""
	for _, m := range sortedKeys(n) {
		if n[m] > n[most] || most == "" {
			most = m
		}
	}
	out := map[string]*dataset.Skip{} // by source
	items = slices.DeleteFunc(items, func(c candidate) bool {
		if c.modality == "" || c.modality == most {
			return false
		}
		k := out[c.slice.Source]
		if k == nil {
			k = &dataset.Skip{Source: c.slice.Source, Reason: SkipOtherModality,
				Detail: fmt.Sprintf("%s among %s; train a model for each", c.modality, most)}
			out[c.slice.Source] = k
		}
		k.Slices++
		return true
	})
	for _, source := range sortedKeys(out) {
		b.Skip(*out[source])
	}
	if b.o.Kind != "" {
		return items, b.o.Kind
	}
	return items, store.KindOf(most)
}

// images leaves out slices that are mostly noise.
func (b *Builder) images(items []candidate) []candidate {
	out := map[string]*dataset.Skip{} // by source
	items = slices.DeleteFunc(items, func(c candidate) bool {
		if c.slice.Noise.Median <= tooNoisy {
			return false
		}
		k := out[c.slice.Source]
		if k == nil {
			k = &dataset.Skip{Source: c.slice.Source, Reason: SkipNoise,
				Detail: fmt.Sprintf("slice %d: the noise is %.0f %% of the brightest tissue", c.slice.Index, 100*c.slice.Noise.Median)}
			out[c.slice.Source] = k
		}
		k.Slices++
		return true
	})
	for _, source := range sortedKeys(out) {
		b.Skip(*out[source])
	}
	return items
}

// prepare crops the slices and estimates their noise, in the way of
// models.Denoise, but with one decision for a volume: all of its slices were
// measured on the grid that most of them show. Progress counts each slice twice.
func (b *Builder) prepare(ctx context.Context, items []candidate) error {
	var mu sync.Mutex
	done := 0
	each := func(f func(i int) error) error {
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(b.o.Workers)
		for i := range items {
			g.Go(func() error {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := f(i); err != nil {
					return fmt.Errorf("prepare slice %d of %s: %w", items[i].slice.Index, items[i].slice.Source, err)
				}
				mu.Lock()
				defer mu.Unlock()
				if done++; b.o.Progress != nil {
					b.o.Progress(done, 2*len(items))
				}
				return nil
			})
		}
		return g.Wait()
	}
	grids := make([]*noise.Grid, len(items))
	err := each(func(i int) (err error) {
		s := &items[i].slice
		if s.Radiograph { // there is no k-space behind it
			grids[i] = noise.Full(s.Width, s.Height)
			return nil
		}
		grids[i], err = noise.Detect(s.Pixels, s.Width, s.Height)
		return err
	})
	if err != nil {
		return err
	}
	vote(items, grids)
	series := make([]*seriesNoise, len(items))
	for i := range items {
		s := &items[i].slice
		if i > 0 && items[i-1].slice.Source == s.Source && grids[i] == grids[i-1] {
			series[i] = series[i-1]
		} else {
			series[i] = new(seriesNoise)
		}
		series[i].slices = append(series[i].slices, s)
	}
	return each(func(i int) error {
		items[i].slice.crop(grids[i])
		return series[i].add()
	})
}

// vote gives the slices of one volume and size the grid that most of them have,
// of equally frequent ones the largest. A grid with sides below MinSide is not
// believed.
func vote(items []candidate, grids []*noise.Grid) {
	type volume struct {
		source        string
		width, height int
	}
	type native struct{ width, height int }
	votes := map[volume]map[native]int{}
	of := func(i int) volume {
		s := &items[i].slice
		return volume{s.Source, s.Width, s.Height}
	}
	for i, g := range grids {
		if g.NativeWidth < MinSide || g.NativeHeight < MinSide {
			g = noise.Full(g.Width, g.Height)
			grids[i] = g
		}
		if votes[of(i)] == nil {
			votes[of(i)] = map[native]int{}
		}
		votes[of(i)][native{g.NativeWidth, g.NativeHeight}]++
	}
	chosen := map[volume]*noise.Grid{}
	for i, g := range grids {
		v := of(i)
		n := votes[v]
		best := chosen[v]
		if best == nil {
			chosen[v] = g
			continue
		}
		a, b := n[native{g.NativeWidth, g.NativeHeight}], n[native{best.NativeWidth, best.NativeHeight}]
		if a > b || a == b && g.NativeWidth*g.NativeHeight > best.NativeWidth*best.NativeHeight {
			chosen[v] = g
		}
	}
	for i := range grids {
		grids[i] = chosen[of(i)]
	}
}

// crop takes the slice to its native grid.
func (s *Slice) crop(grid *noise.Grid) {
	outside := noise.Outside(nil, s.Pixels, s.Width, s.Height, s.Skip)
	if grid.Filled() {
		full := s.Pixels
		s.Pixels = grid.Crop(nil, full)
		s.air, outside = noise.Air(grid, full, s.Pixels, outside), grid.Mask(nil, outside)
		s.Width, s.Height, s.Cropped = grid.NativeWidth, grid.NativeHeight, true
	}
	if s.Skip = outside; !slices.Contains(outside, true) {
		s.Skip = nil
	}
}

// seriesNoise is the slices of a volume on one grid. The correlation of their noise
// is that of the scanner's filters, and more slices tell it better than one.
type seriesNoise struct {
	slices []*Slice
	mu     sync.Mutex
	ready  int // slices that are cropped
}

// add says that one more slice is cropped. With the last one the noise of all is
// estimated.
func (n *seriesNoise) add() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ready++; n.ready < len(n.slices) {
		return nil
	}
	var all noise.Series
	for _, s := range n.slices {
		if err := all.Add(s.Pixels, s.Width, s.Height, s.Skip); err != nil {
			return err
		}
	}
	c := all.Correlation()
	for _, s := range n.slices {
		s.Noise = new(noise.Map)
		if err := s.Noise.EstimateWith(noise.Known{Correlation: &c, Air: s.air}, s.Pixels, s.Width, s.Height, s.Skip); err != nil {
			return err
		}
	}
	return nil
}

// split decides which slices are for validation: whole subjects in the order of
// a seeded hash until a tenth of the slices is reached. A subject that would
// bring too many is passed over if another does not. Where there is only one
// subject, its volumes are told apart, and where there is only one volume, its
// last slices are taken.
func (s *Set) split(items []candidate, seed uint64) (held []bool) {
	subjects, volumes := map[string]int{}, map[string]int{}
	for _, c := range items {
		subjects[c.subject]++
		volumes[c.slice.Source]++
	}
	s.Summary.Subjects = len(subjects)
	held = make([]bool, len(items))
	groups, of := subjects, func(c *candidate) string { return c.subject }
	s.Summary.Split = "subject"
	if len(subjects) == 1 {
		groups, of = volumes, func(c *candidate) string { return c.slice.Source }
		s.Summary.Split = "volume"
	}
	if len(groups) == 1 {
		s.Summary.Split = "slice"
		for i := len(items) - max(1, int(math.Round(validation*float64(len(items))))); i < len(items); i++ {
			held[i] = true
		}
		return held
	}
	names := sortedKeys(groups)
	slices.SortStableFunc(names, func(a, b string) int {
		x, y := seededHash(seed, "subject "+a), seededHash(seed, "subject "+b)
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	chosen, n := map[string]bool{}, 0
	for _, name := range names {
		if float64(n) >= validation*float64(len(items)) {
			break
		}
		if float64(n+groups[name]) <= maxValidation*float64(len(items)) {
			chosen[name] = true
			n += groups[name]
		}
	}
	if n == 0 { // each is large: the smallest, of equal ones the first
		best := names[0]
		for _, name := range names {
			if groups[name] < groups[best] {
				best = name
			}
		}
		chosen[best] = true
	}
	for i := range items {
		held[i] = chosen[of(&items[i])]
	}
	return held
}

// digest hashes every pixel, what it belongs to, and the split.
func (s *Set) digest() string {
	h := sha256.New()
	var buf []byte
	for _, part := range [][]Slice{s.Train, s.Validation} {
		fmt.Fprintf(h, "part of %d\n", len(part))
		for i := range part {
			c := &part[i]
			fmt.Fprintf(h, "%q %d %d %d\n", c.Source, c.Index, c.Width, c.Height)
			buf = writePixels(h, buf, c.Pixels)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

func writePixels(h hash.Hash, buf []byte, v []float32) []byte {
	buf = buf[:0]
	for _, p := range v {
		buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(p))
	}
	h.Write(buf) // never fails
	return buf
}

// Print writes the summary for a person.
func (s *Summary) Print(w io.Writer) error {
	text := fmt.Sprintf("%d slices of %d volumes: %d to train on, %d for validation (told apart by %s), %.0f MiB\n",
		s.Slices, s.Volumes, s.Train, s.Validation, s.Split, float64(s.Bytes)/(1<<20))
	if s.Cropped > 0 {
		text += fmt.Sprintf("%d slices were zero-filled and are used at the size they were measured in\n", s.Cropped)
	}
	if s.NoNoise > 0 {
		text += fmt.Sprintf("%d slices show no noise that can be measured\n", s.NoNoise)
	}
	if s.Left > 0 {
		text += fmt.Sprintf("%d slices left out at random to stay within the memory limit\n", s.Left)
	}
	if s.SkippedAll > 0 {
		text += fmt.Sprintf("left out: %s\n", s.Reasons())
	}
	_, err := io.WriteString(w, text)
	return err
}
