// Package gate decides whether a denoised image may be sent. Check looks at what was
// taken off, which must be noise and nothing else, and at what was left, which must
// not hold anything that the image did not. It knows nothing of how the image was
// denoised. SURE tells from two runs of a denoiser how far its result is from the
// truth that nobody has.
package gate

import (
	"fmt"
	"math"
	"sync"

	"github.com/diffdenoise/denoised/internal/numeric"
	"github.com/diffdenoise/denoised/models/noise"
)

// Input is an image before and after, Width×Height values row major, in one unit, on the
// grid that the noise and its correlation are given on.
type Input struct {
	Width, Height int
	Before, After []float32
	// Skip marks pixels that are not looked at, those that are no measurement and
	// blanked air (noise.Outside); nil: none.
	Skip []bool
	// Air marks pixels without signal, whose changes are of no account; nil: none.
	Air []bool
	// Noise is the noise of Before: its strength at every pixel, as it is where there is
	// signal, and its correlation. The gate finds by itself what noise lifts a magnitude by.
	Noise *noise.Map
	// Uncertainty is half the difference of the pair of samples that the result is the mean of,
	// at every pixel; nil if there is none.
	Uncertainty []float32
}

// Action is what is to be done with a result.
type Action int

// Actions, from the best to the worst.
const (
	OK          Action = iota // send it
	Blend                     // send before + Report.Blend·(after − before)
	PassThrough               // send the image as it was
)

func (a Action) String() string {
	return [...]string{"ok", "blend", "pass through"}[a]
}

// Report is the outcome of Check.
type Report struct {
	Pass   bool   // all checks passed
	Reason string // of the first check that counts most, in words; empty if all passed
	Action Action
	Blend  float64 // share of the change that passes: 1 if OK, 0 if nothing may
	Checks []Result
}

// Result is the outcome of one check.
type Result struct {
	Name         string
	Value, Limit float64 // it passes up to Limit
	Pass         bool
	X, Y         int // where Value was found, or -1 if it is of the whole image
}

// Names of the checks; docs/gate.md says what each looks at.
const (
	CheckMean        = "mean"        // of the tissue classes
	CheckSpot        = "spot"        // a place whose pixels changed to one side
	CheckLine        = "line"        // the same along a line
	CheckStrength    = "strength"    // of what was taken off, against the noise
	CheckSpectrum    = "spectrum"    // of what was taken off, against the noise's
	CheckGrid        = "grid"        // patterns of two pixels
	CheckStructure   = "structure"   // what was taken off follows the image's edges
	CheckRange       = "range"       // new values outside those of the neighbours
	CheckAdded       = "added"       // more noise than before
	CheckUncertainty = "uncertainty" // that the result states
)

// Limits of the checks that chance does not set; docs/gate.md says what each stands for.
const (
	limitMean        = 0.005 // of the signal
	limitStrength    = 1.2   // of the noise's standard deviation, beyond chance: misjudged, and a little
	limitSpectrum    = 1.4   // of the noise's power: the square of it
	limitStructure   = 0.45  // of what the result differs from its 3×3 means by, beyond chance
	limitRange       = 0.001 // of the pixels
	limitAdded       = 1.03  // of the power of the noise's frequencies before
	limitUncertainty = 0.6   // of the noise's standard deviation, median
)

// misjudged is by how much the noise of a place may be stronger than the map says.
const misjudged = 1.15

// chance is what the greatest of n normal values of standard deviation 1 exceeds in one
// image of a thousand.
func chance(n int) float64 { return math.Sqrt2 * math.Erfcinv(1e-3/float64(max(n, 1))) }

// The least share of a change that is worth sending. A shift of the mean is harmless
// once it is small, so where nothing else failed less may be sent.
const (
	leastBlend     = 0.6
	leastMeanBlend = 0.15
)

// Check looks at one slice. An error means sizes that do not fit or values that are
// not finite. It is deterministic and safe for concurrent use.
func Check(in Input) (*Report, error) {
	w, h := in.Width, in.Height
	n := w * h
	switch {
	case w < 1 || h < 1 || len(in.Before) != n || len(in.After) != n || in.Skip != nil && len(in.Skip) != n || in.Air != nil && len(in.Air) != n || in.Uncertainty != nil && len(in.Uncertainty) != n:
		return nil, fmt.Errorf("check %d×%d pixels: %d values before, %d after, %d mask values, %d of uncertainty", w, h, len(in.Before), len(in.After), len(in.Skip), len(in.Uncertainty))
	case in.Noise == nil || in.Noise.Width != w || in.Noise.Height != h || len(in.Noise.Sigma) != n:
		return nil, fmt.Errorf("check %d×%d pixels: no noise map of that size", w, h)
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	if err := s.prepare(in); err != nil {
		return nil, err
	}
	rep := new(Report)
	if !s.changed {
		rep.finish(nil)
		return rep, nil
	}
	if s.unit == 0 {
		rep.Checks = []Result{{Name: CheckStrength, Value: math.Inf(1), Limit: limitStrength, X: -1, Y: -1}}
		rep.Reason, rep.Action = "pixels changed although no noise was found", PassThrough
		return rep, nil
	}
	spectrum, added := s.spectra(in)
	rep.finish([]Result{
		s.means(in), s.spots(), s.lines(), s.strength(), spectrum, s.grid(), s.structure(in), s.extrema(in), added,
		s.uncertainty(in),
	})
	return rep, nil
}

// finish draws the conclusion.
func (r *Report) finish(checks []Result) {
	r.Pass, r.Blend, r.Checks = true, 1, checks
	worst, least := 1.0, leastMeanBlend
	for i := range r.Checks {
		c := &r.Checks[i]
		c.Pass = c.Value <= c.Limit
		if c.Pass {
			continue
		}
		r.Pass = false
		if over := c.Value / c.Limit; r.Reason == "" || over > worst {
			worst, r.Reason = over, c.reason()
		}
		// what was taken off shrinks by the share that is sent, and with it these
		share := c.Limit / c.Value
		if c.Name != CheckMean {
			least = leastBlend
		}
		switch c.Name {
		case CheckRange, CheckGrid, CheckAdded, CheckUncertainty:
			share = 0
		}
		r.Blend = min(r.Blend, share)
	}
	switch {
	case r.Pass:
		r.Action = OK
	case r.Blend >= least:
		r.Action = Blend
	default:
		r.Action, r.Blend = PassThrough, 0
	}
}

// reason says in words what a failed check found.
func (c *Result) reason() string {
	what := map[string]string{
		CheckMean:        "the mean of a tissue shifts",
		CheckSpot:        "a spot appears or vanishes",
		CheckLine:        "a line appears or vanishes",
		CheckStrength:    "more is taken off than noise",
		CheckSpectrum:    "what is taken off has not the frequencies of the noise",
		CheckGrid:        "a pattern of two pixels is added or taken off",
		CheckStructure:   "what is taken off follows the edges",
		CheckRange:       "values appear that the neighbours do not have",
		CheckAdded:       "noise is added",
		CheckUncertainty: "the result is uncertain",
	}[c.Name]
	at := ""
	if c.X >= 0 {
		at = fmt.Sprintf(" at (%d, %d)", c.X, c.Y)
	}
	return fmt.Sprintf("%s%s: %.3g, limit %.3g", what, at, c.Value, c.Limit)
}

// scratch is the memory of one call of Check. A cell is a square of 2×2 pixels.
type scratch struct {
	w, h    int
	rho     noise.Correlation
	unit    float32   // the median of the noise's strength where there is any
	least   float32   // strength that a pixel is believed to have
	changed bool      // any pixel
	mark    []mark    // of every pixel
	inverse []float32 // 1 by the noise of every pixel
	// z is what was taken off without the lift, in standard deviations of the noise; 0 in
	// pixels that are not looked at.
	z []float32

	hw, hh int
	half   []float32 // sums of z over the cells
	power  []float32 // sums of its squares
	after  []float32 // sums of the result over what is looked at of the cells
	around []float32 // mean of the result around each cell, NaN where it is not known
	inside []uint8   // pixels of the cell that are looked at, of four
	raised []float32 // sums of the lift over the cells, standard deviations of the noise
	lift   lift
	gain   []float32 // of the lift, tw×th
	// taken is the share of the lift that was taken off around each cell; seen and expected are
	// sums for it.
	taken, seen, expected []float32
	tw, th                int

	sums, counts, lifts []float64
	vals                []float32
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// mark says what is looked at.
type mark uint8

const (
	look  mark = iota
	aside      // air, and saturated pixels
	lost       // no measurement
)

const (
	// leastSigma is how much less noise than the median a pixel is believed to have:
	// below it, a change of any size would be an outlier.
	leastSigma = 0.2
	// saturated is the least share of the pixels that hold the greatest value of an image
	// that was cut off there. A result within cutBelow standard deviations of it, and not
	// above, differs from what was stored by more than noise.
	saturated = 0.0005
	cutBelow  = 2
	cutAbove  = 0.5
)

// sigma is the noise of a pixel.
func (s *scratch) sigma(in Input, i int) float32 { return max(in.Noise.Sigma[i], s.least) }

func (s *scratch) prepare(in Input) error {
	s.w, s.h, s.rho, s.changed, s.unit = in.Width, in.Height, in.Noise.Correlation, false, 0
	n := s.w * s.h
	s.mark, s.z, s.inverse = numeric.Grow(s.mark, n), numeric.Grow(s.z, n), numeric.Grow(s.inverse, n)
	s.vals = s.vals[:0]
	top, held := float32(math.Inf(-1)), 0
	for i := range n {
		m := look
		if in.Skip != nil && in.Skip[i] {
			s.mark[i] = lost
			continue
		}
		before, after, sigma := in.Before[i], in.After[i], in.Noise.Sigma[i]
		if d := before + after + sigma; d-d != 0 {
			return fmt.Errorf("check: pixel (%d, %d) is not finite", i%s.w, i/s.w)
		}
		if in.Air != nil && in.Air[i] {
			m = aside
		} else {
			s.changed = s.changed || before != after
			if sigma > 0 {
				s.vals = append(s.vals, sigma)
			}
		}
		s.mark[i] = m
		if before > top {
			top, held = before, 0
		}
		if before == top {
			held++
		}
	}
	if !s.changed || len(s.vals) == 0 {
		return nil
	}
	const enough = 1 << 14
	few := s.vals[:0]
	for i := 0; i < len(s.vals); i += 1 + len(s.vals)/enough {
		few = append(few, s.vals[i])
	}
	s.unit = numeric.Nth(few, len(few)/2)
	s.least = leastSigma * s.unit
	if float64(held) < max(saturated*float64(n), 16) {
		top = float32(math.Inf(1))
	}
	for i, m := range s.mark {
		s.z[i] = 0
		sigma := s.sigma(in, i)
		s.inverse[i] = 1 / sigma
		if m != look {
			continue
		}
		if d := in.After[i] - top; d > -cutBelow*sigma && d < cutAbove*sigma {
			s.mark[i] = aside
			continue
		}
		s.z[i] = (in.Before[i] - in.After[i]) * s.inverse[i]
	}
	s.cells(in)
	s.rings()
	s.measureLift()
	s.takeLift(in)
	return nil
}

// cells sums the result over the cells.
func (s *scratch) cells(in Input) {
	s.hw, s.hh = s.w/2, s.h/2
	n := s.hw * s.hh
	s.half, s.power, s.after = numeric.Grow(s.half, n), numeric.Grow(s.power, n), numeric.Grow(s.after, n)
	s.around = numeric.Grow(s.around, n)
	s.inside, s.raised = numeric.Grow(s.inside, n), numeric.Grow(s.raised, n)
	for y := range s.hh {
		for x := range s.hw {
			sum, k := float32(0), uint8(0)
			i := 2*y*s.w + 2*x
			for _, j := range [...]int{i, i + 1, i + s.w, i + s.w + 1} {
				if s.mark[j] == look {
					sum, k = sum+in.After[j], k+1
				}
			}
			s.after[y*s.hw+x], s.inside[y*s.hw+x] = sum, k
		}
	}
}

// integrate sets dst to the sums over all cells above and to the left, (hw+1)×(hh+1).
func integrate[T float32 | uint8](dst []float64, v []T, hw, hh int) []float64 {
	dst = numeric.Grow(dst, (hw+1)*(hh+1))
	clear(dst[:hw+1])
	for y := range hh {
		a, row, above := 0.0, dst[(y+1)*(hw+1):][:hw+1], dst[y*(hw+1):][:hw+1]
		row[0] = 0
		for x, v := range v[y*hw:][:hw] {
			a += float64(v)
			row[x+1] = above[x+1] + a
		}
	}
	return dst
}

// rings sets s.around to the means of the result over 10×10 pixels around each cell but the
// 6×6 next to it, which know nothing of its own noise; NaN where more than a few of them are
// not looked at.
func (s *scratch) rings() {
	const outer, inner, few = 2, 1, 0.2
	s.sums, s.counts = integrate(s.sums, s.after, s.hw, s.hh), integrate(s.counts, s.inside, s.hw, s.hh)
	box := func(t []float64, x, y, half int) float64 {
		x0, x1 := max(x-half, 0), min(x+half+1, s.hw)
		y0, y1 := max(y-half, 0)*(s.hw+1), min(y+half+1, s.hh)*(s.hw+1)
		return t[y1+x1] - t[y1+x0] - t[y0+x1] + t[y0+x0]
	}
	for y := range s.hh {
		for x := range s.hw {
			i := y*s.hw + x
			area := func(half int) int {
				return 4 * (min(x+half+1, s.hw) - max(x-half, 0)) * (min(y+half+1, s.hh) - max(y-half, 0))
			}
			s.around[i] = float32(math.NaN())
			seen := box(s.counts, x, y, outer) - box(s.counts, x, y, inner)
			if seen > 0 && seen >= (1-few)*float64(area(outer)-area(inner)) {
				s.around[i] = float32((box(s.sums, x, y, outer) - box(s.sums, x, y, inner)) / seen)
			}
		}
	}
}
