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

	"github.com/diffdenoise/denoised/models/noise"
)

// Input is an image before and after, Width×Height values row major, in one unit,
// on the native k-space grid (noise.Detect).
type Input struct {
	Width, Height int
	Before, After []float32
	// Skip marks pixels that are not looked at, those that are no measurement and
	// blanked air (noise.Outside); nil: none.
	Skip []bool
	// Air marks pixels without signal, whose changes are of no account; nil: none. They
	// count only as far as the pixels around them put them into a tissue class.
	Air []bool
	// Noise is the noise of Before: its strength at every pixel and its correlation.
	Noise *noise.Map
	// Uncertainty is the standard deviation that the result itself states for every
	// pixel; nil if it states none.
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

// Limits of the checks, found on good results and on planted failures (docs/gate.md).
const (
	limitMean        = 0.005 // of the signal
	limitSpot        = 6.5   // standard deviations
	limitLine        = 6.8   // standard deviations
	limitStrength    = 1.35  // of the noise's standard deviation, beyond chance
	limitSpectrum    = 1.6   // of the noise's power
	limitCorrelated  = 3.5   // the same, where the noise is correlated
	limitGrid        = 7.0   // standard deviations
	limitStructure   = 1.3   // of the noise's standard deviation, beyond chance
	limitRange       = 0.001 // of the pixels
	limitAdded       = 1.03  // of the fine power before, over the image
	limitUncertainty = 0.6   // of the noise's standard deviation, median
)

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
	rep.finish([]Result{
		s.means(in), s.spots(), s.lines(), s.strength(), s.spectrum(), s.grid(), s.structure(in), s.extrema(in), s.added(in), s.uncertainty(in),
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
		case CheckSpectrum:
			share = math.Sqrt(share)
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

// scratch is the memory of one call of Check.
type scratch struct {
	w, h     int
	z        []float32 // what was taken off in standard deviations of the noise; 0 in skipped pixels
	unit     float32   // the median of the noise's strength where there is any
	lost     []bool    // no measurement
	skip     []bool    // the same, and air
	near     []bool    // a pixel of the 3×3 around is skipped or outside the image
	changed  bool
	rho      noise.Correlation
	half     []float32 // sums of 2×2 pixels of z
	hw, hh   int
	inside   []uint8 // pixels of half that are looked at, of four
	sums     []float64
	tmp, low []float32
	high     []float32
	ring     []float32
	vals     []float32
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// leastSigma is how much less noise than the median a pixel is believed to have:
// below it, a change of any size would be an outlier.
const leastSigma = 0.2

func (s *scratch) prepare(in Input) error {
	s.w, s.h, s.rho, s.changed = in.Width, in.Height, in.Noise.Correlation, false
	n := s.w * s.h
	s.lost, s.skip, s.z, s.unit = grow(s.lost, n), grow(s.skip, n), grow(s.z, n), 0
	s.vals = s.vals[:0]
	for i := range n {
		s.lost[i] = in.Skip != nil && in.Skip[i]
		s.skip[i] = s.lost[i] || in.Air != nil && in.Air[i]
		if s.lost[i] {
			continue
		}
		if d := in.Before[i] + in.After[i] + in.Noise.Sigma[i]; d-d != 0 {
			return fmt.Errorf("check: pixel (%d, %d) is not finite", i%s.w, i/s.w)
		}
		if in.Noise.Sigma[i] > 0 && !s.skip[i] {
			s.vals = append(s.vals, in.Noise.Sigma[i])
		}
	}
	if len(s.vals) > 0 {
		s.unit = nth(s.vals, len(s.vals)/2)
	}
	least := leastSigma * s.unit
	for i := range n {
		s.z[i] = 0
		r := in.Before[i] - in.After[i]
		s.changed = s.changed || r != 0 && !s.lost[i]
		if s.skip[i] {
			continue
		}
		if s.unit > 0 {
			s.z[i] = r / max(in.Noise.Sigma[i], least)
		}
	}
	s.near = grow(s.near, n)
	for y := range s.h {
		for x := range s.w {
			s.near[y*s.w+x] = x == 0 || y == 0 || x == s.w-1 || y == s.h-1
		}
	}
	for i, skip := range s.skip {
		if skip {
			for v := max(i/s.w-1, 0); v <= min(i/s.w+1, s.h-1); v++ {
				for u := max(i%s.w-1, 0); u <= min(i%s.w+1, s.w-1); u++ {
					s.near[v*s.w+u] = true
				}
			}
		}
	}
	s.hw, s.hh = s.w/2, s.h/2
	s.half, s.inside = grow(s.half, s.hw*s.hh), grow(s.inside, s.hw*s.hh)
	for y := range s.hh {
		for x := range s.hw {
			i := 2*y*s.w + 2*x
			s.half[y*s.hw+x] = s.z[i] + s.z[i+1] + s.z[i+s.w] + s.z[i+s.w+1]
			k := uint8(0)
			for _, j := range [...]int{i, i + 1, i + s.w, i + s.w + 1} {
				if !s.skip[j] {
					k++
				}
			}
			s.inside[y*s.hw+x] = k
		}
	}
	return nil
}

// nth returns the value that would be at place k if v were sorted, and partitions v.
func nth(v []float32, k int) float32 {
	for lo, hi := 0, len(v)-1; lo < hi; {
		p := v[lo+(hi-lo)/2]
		i, j := lo, hi
		for i <= j {
			for v[i] < p {
				i++
			}
			for p < v[j] {
				j--
			}
			if i <= j {
				v[i], v[j] = v[j], v[i]
				i++
				j--
			}
		}
		switch {
		case k <= j:
			hi = j
		case k >= i:
			lo = i
		default:
			return v[k]
		}
	}
	return v[k]
}
