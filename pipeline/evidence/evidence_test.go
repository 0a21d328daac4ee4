package evidence_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/pipeline/evidence"
)

func TestPlus(t *testing.T) {
	type sums = evidence.Sums
	some := sums{1, -0.5}
	for name, c := range map[string]struct{ a, b, want sums }{
		"both":         {some, sums{2, 0.25}, sums{3, -0.25}},
		"first":        {nil, some, some},
		"nothing":      {some, nil, some},
		"empty":        {some, sums{}, some},
		"other method": {some, sums{1, 2, 3}, sums{1, 2, 3}},
		"not a number": {some, sums{1, math.NaN()}, some},
		"infinite":     {some, sums{math.Inf(1), 1}, some},
		"too many":     {some, make(sums, evidence.Most+1), some},
		"overflow":     {sums{math.MaxFloat64}, sums{math.MaxFloat64}, sums{math.MaxFloat64}},
	} {
		if got := c.a.Plus(c.b); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if !slices.Equal(some, sums{1, -0.5}) {
		t.Errorf("changed: %v", some)
	}
}

func TestText(t *testing.T) {
	for _, s := range []evidence.Sums{nil, {0}, {1. / 3, -math.Pi * 1e9, math.SmallestNonzeroFloat64,
		math.MaxFloat64}} {
		if got, err := evidence.Parse(s.String()); err != nil || !slices.Equal(got, s) {
			t.Errorf("%v became %v, %v", s, got, err)
		}
	}
	for _, text := range []string{"x", "[]", "{}", "[null", `["1"]`, "[1e999]", "[0" + strings.Repeat(",0",
		evidence.Most) + "]"} {
		if got, err := evidence.Parse(text); err == nil {
			t.Errorf("%s: %v", text, got)
		}
	}
}
