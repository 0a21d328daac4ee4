package journal

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// The high lane's own rules: what may enter, what settles a series, what a flag
// undoes. The pipeline's tests show the same from outside.
func TestHighLane(t *testing.T) {
	j := openJournal(t, filepath.Join(t.TempDir(), "j.db"))
	ctx := context.Background()
	var ids []int64
	add := func(n int, stage state.Stage, reason state.Reason) {
		t.Helper()
		a := arrival("1.2", n)
		a.Instance.Quality, a.Instance.Stage, a.Instance.Reason = "high", stage, reason
		added, err := j.AddOriginal(a)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, added.Instance)
	}
	add(1, state.Queued, "")
	add(2, state.Queued, "")
	add(3, state.Passed, "phase")
	add(4, state.Failed, "damaged")
	count := func() map[string]int64 {
		t.Helper()
		list, err := j.HighCounts(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]int64{}
		for _, c := range list {
			m[fmt.Sprintf("%s %s %v", c.Stage, c.Reason, c.Fill)] = c.Count
		}
		return m
	}
	expect := func(when string, want map[string]int64) {
		t.Helper()
		if got := count(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	expect("only what may be denoised enters", map[string]int64{"queued  false": 2})
	next := func() *Slice {
		t.Helper()
		h, err := j.Lane("high").Next(ctx, time.Unix(100, 0), 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(h) == 0 {
			return nil
		}
		return &h[0]
	}
	if next() != nil {
		t.Error("taken before the series is complete")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(j.CompleteSeries(1, state.SeriesComplete, "quiet", time.Unix(50, 0)))
	if next() != nil {
		t.Error("taken before the fast lane is through")
	}
	for _, id := range ids[:2] {
		must(j.Lane("fast").End(id, fileOf(t, j, id), Result{Stage: state.Passed, Reason: "gate-nan", Detail: ""}))
	}
	h := next()
	if h == nil || h.Instance.ID != ids[0] || h.Fill {
		t.Fatalf("%+v", h)
	}
	must(j.Lane("high").Retry(ids[0], time.Unix(200, 0), "later"))
	if h := next(); h == nil || h.Instance.ID != ids[1] {
		t.Errorf("%+v", h)
	}
	if at, err := j.Lane("high").NextRetry(ctx); err != nil || !at.Equal(time.Unix(200, 0)) {
		t.Errorf("%v %v", at, err)
	}
	must(j.Lane("high").End(ids[0], "another file", Result{state.Failed, "error", "", true}))
	expect("a verdict over a replaced file changes nothing", map[string]int64{"queued  false": 2})
	must(j.Lane("high").End(ids[0], fileOf(t, j, ids[0]), Result{state.Failed, "error", "", true}))
	expect("one failed", map[string]int64{"failed error true": 1, "queued  false": 1})
	d := Instance{SOP: "2.25.1", Class: "1", Syntax: "1", File: "derived/00/a.dcm", Received: time.Unix(9, 0),
		Quality: "high"}
	must(j.Lane("high").Add(ids[1], d, false, []string{"late"}, time.Unix(60, 0)))
	expect("the other worked, so the first becomes a copy", map[string]int64{"denoised  false": 1,
		"queued error true": 1})
	if err := j.Lane("high").Add(ids[1], d, false, nil, time.Unix(60, 0)); !errors.Is(err, ErrNotWanted) {
		t.Errorf("twice: %v", err)
	}
	if h := next(); h == nil || h.Instance.ID != ids[0] || !h.Fill || h.Reason != "error" {
		t.Errorf("%+v", h)
	}
	q, err := j.Depths(ctx)
	if err != nil || q.High.Count != 1 || q.Forward["late"].Count != 1 || !q.Forward["late"].Oldest.Equal(time.Unix(60,
		0)) {
		t.Errorf("%+v %v", q, err)
	}
	// Its derived file lost, the finished one waits again, and only there.
	must(j.Remake(5, ids[1], Start{}, time.Unix(70, 0)))
	expect("remade", map[string]int64{"queued  false": 1, "queued error true": 1})
	got, err := j.SetFlag(spool.Flag{Key: "1.2", Quality: "off", At: time.Unix(80, 0)}, Start{})
	must(err)
	if got.Originals != 4 || got.High != 0 || got.Gone != 0 {
		t.Errorf("%+v", got)
	}
	expect("called off", map[string]int64{})
	got, err = j.SetFlag(spool.Flag{Key: "1.2", Quality: "high", At: time.Unix(90, 0)},
		Start{Reason: state.ReasonNotPossible, Detail: "no networks"})
	must(err)
	if got.High != 2 {
		t.Errorf("%+v", got)
	}
	expect("not possible", map[string]int64{"failed not-possible false": 2})
	must(j.RestartHigh(func(modality string) Start {
		if modality == "CR" {
			return Start{}
		}
		return Start{Reason: state.ReasonNotPossible}
	}))
	expect("only for another modality", map[string]int64{"failed not-possible false": 2})
	must(j.RestartHigh(always(Start{})))
	expect("possible again", map[string]int64{"queued  false": 2})
	must(j.RestartHigh(always(Start{Reason: state.ReasonNotPossible})))
	expect("and not", map[string]int64{"failed not-possible false": 2})
	must(j.RestartHigh(always(Start{})))
	must(j.Lane("high").End(ids[0], fileOf(t, j, ids[0]), Result{state.Failed, "error", "", true}))
	d.Reason = "blended"
	must(j.Lane("high").Add(ids[1], d, false, nil, time.Unix(100, 0)))
	d.SOP, d.Reason, d.Detail = "2.25.2", "error", "why"
	must(j.Lane("high").Add(ids[0], d, true, nil, time.Unix(100, 0)))
	expect("a result and a copy", map[string]int64{"denoised blended false": 1, "denoised error true": 1})
	must(j.Remake(5, ids[1], Start{}, time.Unix(110, 0)))
	must(j.Remake(6, ids[0], Start{}, time.Unix(110, 0)))
	expect("what was said of the result goes with it", map[string]int64{"queued  false": 1, "queued error true": 1})
	must(j.RestartHigh(always(Start{Reason: state.ReasonNotPossible})))
	expect("no copies without networks", map[string]int64{"failed not-possible false": 2})
	must(j.RestartHigh(always(Start{})))
	must(j.Lane("high").Add(ids[0], d, true, nil, time.Unix(120, 0)))
	must(j.Remake(6, ids[0], Start{Reason: state.ReasonNotPossible}, time.Unix(130, 0)))
	expect("lost while there are no networks", map[string]int64{"failed not-possible false": 1, "queued  false": 1})
}

// always is the same for every modality.
func always(s Start) func(string) Start { return func(string) Start { return s } }

func fileOf(t testing.TB, j *Journal, id int64) string {
	t.Helper()
	in, err := j.Instance(context.Background(), id)
	if err != nil || in == nil {
		t.Fatal(in, err)
	}
	return in.File
}
