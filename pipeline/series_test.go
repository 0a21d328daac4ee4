package pipeline

import (
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/diffdenoise/denoised/pipeline/state"
)

var (
	mr1 = peer{"MR1", "10.0.0.1"}
	mr2 = peer{"MR2", "10.0.0.2"}
)

// at is a time on the test's clock.
func at(sec float64) time.Time {
	return time.Unix(1_000_000, 0).Add(time.Duration(sec * float64(time.Second)))
}

func testTracker() *tracker {
	return newTracker(&Options{Quiet: 20 * time.Second, QuietOpen: 60 * time.Second, MaxSeries: 30 * time.Minute})
}

// never fails the test when a series ends before the given second; then it must end.
func ends(t *testing.T, tr *tracker, series int64, sec float64, end state.Series, by state.CompleteBy) {
	t.Helper()
	if got := tr.due(at(sec - 0.001)); len(got) != 0 {
		t.Errorf("just before %v s: %+v", sec, got)
	}
	if next, ok := tr.next(); !ok || !next.Equal(at(sec)) {
		t.Errorf("next look at %v, want second %v", next, sec)
	}
	got := tr.due(at(sec))
	if len(got) != 1 || got[0].series != series || got[0].state != end || got[0].by != by {
		t.Errorf("at %v s: %+v, want series %d %s by %s", sec, got, series, end, by)
	}
}

func TestSeriesEnds(t *testing.T) {
	for name, c := range map[string]struct {
		do    func(*tracker)
		sec   float64
		state state.Series
		by    state.CompleteBy
	}{
		"quiet without association": {func(tr *tracker) { tr.arrived(at(0), 1, mr1, 1, 0, false) }, 20,
			state.SeriesComplete, state.ByQuiet},
		"quiet counts from the last image": {func(tr *tracker) {
			tr.arrived(at(0), 1, mr1, 1, 0, false)
			tr.arrived(at(15), 1, mr1, 2, 0, false)
		}, 35, state.SeriesComplete, state.ByQuiet},
		"open association waits longer": {func(tr *tracker) {
			tr.associationOpened(7, mr1)
			tr.arrived(at(0), 1, mr1, 1, 0, false)
		}, 60, state.SeriesComplete, state.ByQuiet},
		"somebody else's association does not": {func(tr *tracker) {
			tr.associationOpened(7, mr2)
			tr.arrived(at(0), 1, mr1, 1, 0, false)
		}, 20, state.SeriesComplete, state.ByQuiet},
		"quiet counts from the close": {func(tr *tracker) {
			tr.associationOpened(7, mr1)
			tr.arrived(at(0), 1, mr1, 1, 0, false)
			tr.associationClosed(7, at(30))
		}, 50, state.SeriesComplete, state.ByQuiet},
		"one of two associations closed": {func(tr *tracker) {
			tr.associationOpened(7, mr1)
			tr.associationOpened(8, mr1)
			tr.arrived(at(0), 1, mr1, 1, 0, false)
			tr.associationClosed(7, at(5))
		}, 60, state.SeriesComplete, state.ByQuiet},
		"expected count reached": {func(tr *tracker) {
			tr.associationOpened(7, mr1)
			tr.arrived(at(0), 1, mr1, 1, 2, false)
			tr.arrived(at(3), 1, mr1, 2, 2, false)
		}, 3, state.SeriesComplete, state.ByCount},
		"expected count not reached": {func(tr *tracker) { tr.arrived(at(0), 1, mr1, 1, 2, false) }, 20,
			state.SeriesIncomplete, state.ByQuiet},
		"more than expected means nothing": {func(tr *tracker) { tr.arrived(at(0), 1, mr1, 3, 2, false) }, 20,
			state.SeriesComplete, state.ByQuiet},
		"multi-frame": {func(tr *tracker) { tr.arrived(at(0), 1, mr1, 1, 0, true) }, 0,
			state.SeriesComplete, state.ByFrames},
		"hard limit": {func(tr *tracker) {
			for s := 0.0; s <= 1790; s += 10 {
				tr.arrived(at(s), 1, mr1, 1, 0, false)
			}
		}, 1800, state.SeriesIncomplete, state.ByMax},
	} {
		t.Run(name, func(t *testing.T) {
			tr := testTracker()
			c.do(tr)
			ends(t, tr, 1, c.sec, c.state, c.by)
			if _, ok := tr.next(); ok {
				t.Error("something is left")
			}
			if len(tr.closed)+len(tr.newest) != 0 {
				t.Error("the sender is not forgotten")
			}
		})
	}
}

func TestNextSeriesShortensTheWait(t *testing.T) {
	tr := testTracker()
	tr.associationOpened(7, mr1)
	tr.arrived(at(0), 1, mr1, 1, 0, false)
	tr.arrived(at(2), 2, mr1, 1, 0, false)
	ends(t, tr, 1, 15, state.SeriesComplete, state.ByQuiet) // a quarter of 60 s
	// A late image opens it again, and now the other one is overtaken.
	tr.arrived(at(16), 1, mr1, 2, 0, false)
	ends(t, tr, 2, 17, state.SeriesComplete, state.ByQuiet)
	ends(t, tr, 1, 76, state.SeriesComplete, state.ByQuiet)
}

// Whatever happens, a series ends, no earlier than a quarter of the quiet
// period after its last image and no later than the longest wait.
func TestSeriesAlwaysEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := testTracker()
		now := 0.0
		last := map[int64]float64{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now += rapid.Float64Range(0, 30).Draw(t, "pause")
			for _, c := range tr.due(at(now)) {
				if c.by == state.ByQuiet && now < last[c.series]+5 {
					t.Fatalf("series %d ended %v s after its last image", c.series, now-last[c.series])
				}
				delete(last, c.series)
			}
			id := rapid.Uint64Range(1, 3).Draw(t, "association")
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				tr.associationOpened(id, mr1)
			case 1:
				tr.associationClosed(id, at(now))
			case 2:
				s := rapid.Int64Range(1, 3).Draw(t, "series")
				tr.arrived(at(now), s, mr1, 1, 0, false)
				last[s] = now
			}
		}
		for range 10 {
			next, ok := tr.next()
			if !ok {
				return
			}
			if wait := next.Sub(at(now)); wait > 81*time.Second {
				t.Fatalf("waits for %v", wait)
			}
			if len(tr.due(next)) == 0 {
				t.Fatal("nothing was due when it should")
			}
		}
	})
}

func TestSeriesIsReopened(t *testing.T) {
	o := options(t, nil)
	o.Quiet = time.Millisecond
	p := start(t, o)
	ev, stop := p.Events()
	defer stop()
	receive(t, p, slice(1, 1))
	for e := range ev {
		if e.Type == EventSeries {
			break
		}
	}
	if s := status(t, p, slice(1, 1).series); s.State != state.SeriesComplete || s.CompleteBy != state.ByQuiet {
		t.Fatalf("%s by %s", s.State, s.CompleteBy)
	}
	receive(t, p, slice(1, 2))
	eventually(t, "complete again", func() bool {
		s := status(t, p, slice(1, 1).series)
		return s.Reopened == 1 && s.Received == 2 && s.State == state.SeriesComplete
	})
}

func TestOpenSeriesSurviveARestart(t *testing.T) {
	o := options(t, nil)
	o.Quiet = time.Millisecond
	p, err := Open(t.Context(), o) // never run: nothing ends the series
	if err != nil {
		t.Fatal(err)
	}
	receive(t, p, slice(1, 1))
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = start(t, o)
	eventually(t, "series complete", func() bool {
		return status(t, p,
			slice(1, 1).series).State == state.SeriesComplete
	})
}

// A series whose end could not be recorded is due again; an image that came
// meanwhile opens it anew, without a new start of the hard limit.
func TestPutBack(t *testing.T) {
	o := Options{Quiet: 20 * time.Second, QuietOpen: time.Minute, MaxSeries: 30 * time.Minute}
	begin := at(0)
	for _, late := range []bool{false, true} {
		tr := newTracker(&o)
		tr.arrived(begin, 1, mr1, 1, 9, false)
		end := at(21)
		list := tr.due(end)
		if len(list) != 1 {
			t.Fatal(list)
		}
		if late {
			tr.arrived(end, 1, mr1, 2, 0, false)
		}
		tr.putBack(list[0])
		if got := tr.due(end); late != (len(got) == 0) {
			t.Errorf("late %v: due at once %v", late, got)
		}
		if late {
			if s := tr.series[1]; !s.opened.Equal(begin) || s.expect != 9 || s.received != 2 {
				t.Errorf("%+v", s)
			}
		}
	}
}

// A journal that cannot take the end of a series for a while is asked again.
func TestCompletionIsTriedAgain(t *testing.T) {
	o, _ := highOptions(t, newArchive())
	clk := newFakeClock()
	o.clock, o.Quiet, o.QuietOpen = clk, 20*time.Second, 20*time.Second
	var bad atomic.Bool
	var failed atomic.Int64
	o.hook = func(step string) {
		if step == "commit" && bad.Load() {
			failed.Add(1)
			panic("disk full")
		}
	}
	p := start(t, o)
	im := slice(1, 1)
	receive(t, p, im)
	eventually(t, "delivered", func() bool {
		s := status(t, p, im.series)
		return len(s.Destinations) == 1 && s.Destinations[0].Stored == 2
	})
	bad.Store(true)
	clk.advance(21 * time.Second)
	eventually(t, "the end is not recorded", func() bool { return failed.Load() > 0 })
	bad.Store(false)
	eventually(t, "the end is recorded", func() bool {
		clk.advance(time.Second)
		return status(t, p,
			im.series).State == state.SeriesComplete
	})
}
