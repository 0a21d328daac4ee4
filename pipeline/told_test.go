package pipeline

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// listener is a HighDenoiser that notes what it hears of series. Each frame tells {1, its
// first pixel}.
type listener struct {
	halver
	lmu         sync.Mutex
	heard, high []evidence.Sums
	order       string // m: measured, d: denoised
	fail        bool   // to measure
}

func (l *listener) Denoise(_ context.Context, f *derive.Frame, known evidence.Sums, _ float64) (*Denoised, error) {
	l.lmu.Lock()
	defer l.lmu.Unlock()
	l.heard, l.order = append(l.heard, known), l.order+"d"
	d := smooth(f)
	d.Told = evidence.Sums{1, float64(f.Pixels[0])}
	return d, nil
}

func (l *listener) Measure(_ context.Context, f *derive.Frame) (evidence.Sums, error) {
	l.lmu.Lock()
	defer l.lmu.Unlock()
	l.order += "m"
	if l.fail {
		return nil, &PermanentError{"too-odd", errors.New("shape")}
	}
	return evidence.Sums{1, float64(f.Pixels[0])}, nil
}

func (l *listener) HasHigh() bool { return true }

func (l *listener) DenoiseHigh(_ context.Context, f *derive.Frame, known evidence.Sums, _ float64,
	_ func(done, total int)) (*Denoised, error) {
	l.lmu.Lock()
	defer l.lmu.Unlock()
	l.high = append(l.high, known)
	return &Denoised{Pixels: smoother(f).Pixels, Told: evidence.Sums{100, 100}}, nil
}

// last is what was heard last, and by how many calls.
func (l *listener) last(high bool) (evidence.Sums, int) {
	l.lmu.Lock()
	defer l.lmu.Unlock()
	list := l.heard
	if high {
		list = l.high
	}
	if len(list) == 0 {
		return nil, 0
	}
	return list[len(list)-1], len(list)
}

// tells is what images tell by themselves, together.
func tells(list ...image) (all evidence.Sums) {
	for _, im := range list {
		d := im.dataSet()
		all = all.Plus(evidence.Sums{1, float64(binary.LittleEndian.Uint16(d[len(d)-2*16*16:]))})
	}
	return all
}

// told is what the journal of a folder has of series 1.
func told(t testing.TB, state string) evidence.Sums {
	t.Helper()
	j, _, err := journal.Open(t.Context(), filepath.Join(state, "journal.db"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	row, err := j.SeriesByKey(t.Context(), slice(1, 1).series)
	if err != nil || row == nil {
		t.Fatal(row, err)
	}
	s, err := j.Told(t.Context(), row.ID)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestToldBySlices: every slice hears what those of its series before told, over restarts and
// a loss of the journal or of a derived file too; the first waits for nobody.
func TestToldBySlices(t *testing.T) {
	o := options(t, newArchive())
	o.Workers = 1
	l := &listener{}
	o.Denoiser = l
	p, stop := opened(t, o)
	calls := 0
	next := func(what string, im image, want evidence.Sums) {
		t.Helper()
		receive(t, p, im)
		calls++
		eventually(t, what, func() bool {
			s := status(t, p, im.series)
			return s.Waiting == 0 && s.Denoised == s.Received
		})
		if got, n := l.last(false); n != calls || !slices.Equal(got, want) {
			t.Errorf("%s heard %v in call %d, want %v in call %d", what, got, n, want, calls)
		}
	}
	again := func(between func()) {
		t.Helper()
		stop()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		between()
		p, stop = opened(t, o)
	}
	one, two, three, four := slice(1, 1), slice(1, 2), slice(1, 3), slice(1, 4)
	next("first slice", one, nil)
	if s := status(t, p, one.series); s.State != state.SeriesReceiving {
		t.Errorf("the first slice waited until the series was %s", s.State)
	}
	next("second slice", two, tells(one))
	next("another series", slice(2, 1), nil)
	again(func() {})
	next("slice after a restart", three, tells(one, two))
	again(func() {
		if err := os.Remove(filepath.Join(o.StateDir, "journal.db")); err != nil {
			t.Fatal(err)
		}
	})
	file := fileOf(t, p, one.series, 1, spool.Derived, Fast)
	again(func() {
		if err := os.Remove(filepath.Join(o.StateDir, "spool", file)); err != nil {
			t.Fatal(err)
		}
	})
	calls++
	all := tells(one, two, three)
	eventually(t, "made again", func() bool { _, n := l.last(false); return n == calls })
	if got, _ := l.last(false); !slices.Equal(got, all) {
		t.Errorf("made again with %v, want %v", got, all)
	}
	eventually(t, "recorded again", func() bool { return status(t, p, one.series).Denoised == 3 })
	next("slice after that", four, all)
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := told(t, o.StateDir), tells(one, two, three, four); !slices.Equal(got, want) {
		t.Errorf("the series told %v, want %v", got, want)
	}
}

// TestToldToHigh: the high pass hears the whole series and adds nothing.
func TestToldToHigh(t *testing.T) {
	o, _ := highOptions(t, newArchive())
	l := &listener{}
	o.Denoiser = l
	p, stop := opened(t, o)
	uid := hqSeries(t, p, 3)
	eventually(t, "high pass", func() bool { _, n := l.last(true); return n == 3 })
	awaitHigh(t, p, uid, "done")
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	// The fast lane may be behind: what the high lane hears is what was told by then.
	want := tells(slice(1, 1), slice(1, 2), slice(1, 3))
	for i, got := range l.high {
		if len(got) > 0 && (len(got) != len(want) || got[0] > want[0] || got[1] > want[1]) {
			t.Errorf("image %d heard %v, more than %v", i, got, want)
		}
	}
	if got := told(t, o.StateDir); !slices.Equal(got, want) {
		t.Errorf("the series told %v, want %v", got, want)
	}
}

// TestToldByFrames: all frames of an object are measured before the first is denoised, with
// what all of them told and what came before.
func TestToldByFrames(t *testing.T) {
	const count = 7
	o := options(t, newArchive())
	l := &listener{}
	o.Denoiser = l
	p, stop := opened(t, o)
	first := slice(1, 1)
	receive(t, p, first)
	eventually(t, "first object", func() bool { return status(t, p, first.series).Denoised == 1 })
	im, data := slice(1, 2).frames(count)
	if err := p.Receive(t.Context(), im.incoming(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "second object", func() bool { return status(t, p, first.series).Denoised == 2 })
	want := tells(first).Plus(tells(slices.Repeat([]image{slice(1, 2)}, count)...))
	if l.order != "d"+"mmmmmmm"+"ddddddd" {
		t.Errorf("order %s", l.order)
	}
	for _, got := range l.heard[1:] {
		if !slices.Equal(got, want) {
			t.Errorf("heard %v, want %v", got, want)
		}
	}
	// What cannot be measured has failed, and tells nothing.
	l.lmu.Lock()
	l.fail = true
	l.lmu.Unlock()
	im, data = slice(1, 3).frames(count)
	if err := p.Receive(t.Context(), im.incoming(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "third object", func() bool { return status(t, p, first.series).Failed == 1 })
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if got := told(t, o.StateDir); !slices.Equal(got, want) {
		t.Errorf("the series told %v, want %v", got, want)
	}
}
