package derive_test

import (
	"testing"

	"github.com/diffdenoise/denoised/pipeline/derive"
)

// What a check says of one frame and of many: the worst counts, with its place.
func TestChecked(t *testing.T) {
	type frame struct {
		why   string
		share float64
	}
	for _, c := range []struct {
		frames         []frame
		reason, remark string
	}{
		{nil, "", ""},
		{[]frame{{"", 1}, {"", 1}}, "", ""},
		{[]frame{{"a spot vanishes", 0}}, derive.HeldBack, "quality check: a spot vanishes"},
		{[]frame{{"the mean shifts", 0.396}}, derive.Blended, "quality check: 39 % of the change kept: the mean shifts"},
		{[]frame{{"", 1}, {"x", 0.999}, {"y", 0.5}}, derive.Blended, "quality check: of 3 frames 0 held back, 2 kept in part; frame 2: 99 % of the change kept: x"},
		{[]frame{{"x", 0.5}, {"", 1}, {"y", 0}, {"z", 0}}, derive.HeldBack, "quality check: of 4 frames 2 held back, 1 kept in part; frame 3: y"},
		{[]frame{{"y", 0}, {"x", 0.5}}, derive.HeldBack, "quality check: of 2 frames 1 held back, 1 kept in part; frame 1: y"},
	} {
		var got derive.Checked
		for _, f := range c.frames {
			got.Add(f.why, f.share)
		}
		if got.Reason() != c.reason || got.Remark() != c.remark {
			t.Errorf("%v: %q, %q", c.frames, got.Reason(), got.Remark())
		}
	}
}
