package pipeline

import (
	"context"
	"testing"

	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
)

// The fast lane has work from its first slice to its last: between two of them nothing gives those who wait for its
// end the processor, not even for a moment.
func TestBusyBetweenSlices(t *testing.T) {
	const n = 5
	o := options(t, nil)
	o.Workers = 1
	ended := make(chan int, 1)
	var p *Pipeline
	h := &halver{}
	h.do = func(call int, f *derive.Frame) (*Denoised, error) {
		if call == 1 {
			go func() {
				p.fast.busy.wait(context.Background())
				ended <- h.count()
			}()
		}
		return smooth(f), nil
	}
	o.Denoiser = h
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for k := range n { // of several series, so that each turn asks the journal anew
		receive(t, p, slice(k+1, 1))
	}
	stop := run(p)
	if calls := <-ended; calls != n {
		t.Errorf("no work after %d of %d slices", calls, n)
	}
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// A lane calls off what it has in hand only if it drops anything, and only of the series that was named.
func TestCallOffOfALane(t *testing.T) {
	o := options(t, nil)
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, l := range []*lane{p.fast, p.high} {
		for series, dropped := range map[int64]bool{1: l.drops, 2: false} {
			ctx, cancel := context.WithCancel(t.Context())
			in := journal.Instance{ID: series, Series: series}
			h := l.begin(in, cancel)
			l.callOff(1)
			if (ctx.Err() != nil) != dropped {
				t.Errorf("lane %s, series %d: dropped %v, want %v", l.quality, series, ctx.Err() != nil, dropped)
			}
			l.end(h)
			if l.nothing(); l.busy.is() {
				t.Errorf("lane %s has work with nothing in hand", l.quality)
			}
			cancel()
		}
	}
}
