package pipeline

import (
	"fmt"
	"math"

	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// plausible refuses a result that cannot be right. Pixels that must not change are
// put back, whatever the denoiser did to them.
func plausible(in *derive.Frame, out []float32) error {
	stop := func(reason state.Reason, format string, args ...any) error {
		return &PermanentError{Reason: reason, Err: fmt.Errorf(format, args...)}
	}
	if len(out) != len(in.Pixels) {
		return stop(state.ReasonSize, "%d pixels instead of %d", len(out), len(in.Pixels))
	}
	var inLo, inHi, outLo, outHi float32
	seen := false
	for i, v := range out {
		if in.Skip != nil && in.Skip[i] {
			out[i] = in.Pixels[i]
			continue
		}
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return stop(state.ReasonNotNumber, "pixel %d is %v", i, v)
		}
		// Half a step beyond the range still rounds to its end.
		if v < in.Min-0.5 || v > in.Max+0.5 {
			return stop(state.ReasonRange, "pixel %d is %v, stored values go from %v to %v", i, v, in.Min, in.Max)
		}
		x := in.Pixels[i]
		if !seen {
			inLo, inHi, outLo, outHi, seen = x, x, v, v, true
			continue
		}
		inLo, inHi, outLo, outHi = min(inLo, x), max(inHi, x), min(outLo, v), max(outHi, v)
	}
	if seen && inHi > inLo && outHi-outLo < 0.5 {
		return stop(state.ReasonConstant, "all pixels became %v", outLo)
	}
	return nil
}
