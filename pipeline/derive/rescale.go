package derive

import (
	"math"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// rescale turns the stored values of a frame into real ones and back (PS3.3 C.11.1.1.2),
// in steps of one stored value: slope×n + intercept, over the size of the slope. What is
// known of magnitudes, above all that they begin at 0, is true of real values only.
type rescale struct {
	sign float64 // of the slope
	zero float64 // real value, in steps, of the stored value 0
}

// plain is the rescale of frames whose stored values are the real ones, but for their unit.
var plain = rescale{sign: 1}

func (r rescale) real(n int32) float32     { return float32(r.sign*float64(n) + r.zero) }
func (r rescale) stored(v float32) float64 { return r.sign * (float64(v) - r.zero) }

// limits are the real values of a stored range.
func (r rescale) limits(lo, hi int32) (least, most float32) {
	a, b := r.real(lo), r.real(hi)
	return min(a, b), max(a, b)
}

// farthestZero is how many steps the real zero may be away from the stored one:
// float32 then tells real values apart by an eighth of a step.
const farthestZero = 1 << 21

// inspectRescale finds the rescale of every frame: at the top, or in the Pixel Value
// Transformation of a frame or of all (PS3.3 C.7.6.16.2.9). Only the values of an MR
// image are rescaled: those of radiographs have no zero that means anything. A sign or an
// intercept may be of the storage or belong to a signed quantity; the pixels tell.
func inspectRescale(o *dcm.Object, l *layout) Verdict {
	l.rescales = []rescale{plain}
	if o.String(dcm.Modality) != "MR" {
		return Verdict{}
	}
	all, v := readRescale(o.Find(dcm.RescaleSlope), o.Find(dcm.RescaleIntercept), plain)
	if !v.OK() {
		return v
	}
	for item := range o.Find(dcm.SharedFunctionalGroupsSequence).Children() {
		if all, v = transformation(item, all); !v.OK() {
			return v
		}
	}
	l.rescales[0] = all
	frame := 0
	for item := range o.Find(dcm.PerFrameFunctionalGroupsSequence).Children() {
		r, v := transformation(item, all)
		switch {
		case !v.OK():
			return v
		case frame >= l.frames:
			return no(Inconsistent, "more items than frames in %v", dcm.PerFrameFunctionalGroupsSequence)
		case r != all && len(l.rescales) == 1:
			l.rescales = make([]rescale, l.frames)
			for i := range l.rescales {
				l.rescales[i] = all
			}
		}
		if len(l.rescales) > 1 {
			l.rescales[frame] = r
		} else {
			l.rescales[0] = r
		}
		frame++
	}
	return inspectSign(o, l)
}

// transformation is the rescale of a functional group item, or else if it has none.
func transformation(item dcm.Element, otherwise rescale) (rescale, Verdict) {
	for t := range item.Child(dcm.PixelValueTransformationSequence).Children() {
		return readRescale(t.Child(dcm.RescaleSlope), t.Child(dcm.RescaleIntercept), otherwise)
	}
	return otherwise, Verdict{}
}

// readRescale reads a slope and an intercept; without both it is otherwise.
func readRescale(slope, intercept dcm.Element, otherwise rescale) (rescale, Verdict) {
	there := func(e dcm.Element) bool { return e.OK() && e.Length() > 0 && e.String() != "" }
	if !there(slope) && !there(intercept) {
		return otherwise, Verdict{}
	}
	m, b, ok := 1.0, 0.0, true
	if there(slope) {
		if m, ok = slope.Float(); !ok || m == 0 {
			return plain, no(Inconsistent, "rescale slope %s", clean(slope.String(), 16))
		}
	}
	if there(intercept) {
		if b, ok = intercept.Float(); !ok {
			return plain, no(Inconsistent, "rescale intercept %s", clean(intercept.String(), 16))
		}
	}
	r := rescale{sign: math.Copysign(1, m), zero: b / math.Abs(m)}
	if !(math.Abs(r.zero) <= farthestZero) {
		return plain, no(Inconsistent, "rescale slope %g and intercept %g: 0 is too far from what is stored", m, b)
	}
	return r, Verdict{}
}

// inspectSign looks for signed quantities among the images whose values can be below 0.
func inspectSign(o *dcm.Object, l *layout) Verdict {
	negative := false
	for e := range o.All() {
		if e.Tag() == dcm.RescaleIntercept {
			f, ok := e.Float()
			negative = negative || ok && f < 0
		}
	}
	c := newCells(o, *l)
	for _, frame := range l.lookFrames() {
		r := l.rescale(frame)
		if least, _ := r.limits(c.min, c.max); least >= 0 {
			continue
		}
		h, err := l.histogram(c, frame)
		if err != nil {
			return no(Truncated, "%v", err)
		}
		if share := h.below(r); share > 0 {
			return no(Phase, "%.0f %% of the pixels below 0: a signed quantity", 100*share)
		}
		if r != plain {
			negative = false
		}
	}
	if negative { // in a place that is not known
		return no(Phase, "negative rescale intercept: a signed quantity")
	}
	return Verdict{}
}

// rescale is that of a frame, from 0.
func (l *layout) rescale(frame int) rescale {
	switch len(l.rescales) {
	case 0:
		return plain
	case 1:
		return l.rescales[0]
	}
	return l.rescales[frame]
}
