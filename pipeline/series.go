package pipeline

import (
	"time"

	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// nextSeriesShare: once the same sender has begun another series, only this
// part of the quiet period is waited for.
const nextSeriesShare = 4

// peer is a sender as far as series are concerned.
type peer struct{ ae, host string }

// tracker decides when a series is complete. It does no I/O and owns no clock:
// tell it what happened and when, ask what is due. The caller serialises.
type tracker struct {
	quiet, quietOpen, max time.Duration
	series                map[int64]*openSeries
	assocs                map[uint64]peer
	open                  map[peer]int       // associations open now
	closed                map[peer]time.Time // when the last one closed; only for peers with open series
	newest                map[peer]int64     // the series that began last
}

type openSeries struct {
	peer             peer
	opened, last     time.Time
	received, expect int64
	frames           bool
	overtaken        bool // its sender has begun another series since
}

type completion struct {
	series int64
	state  state.Series
	by     state.CompleteBy
	was    *openSeries // for putBack
}

func newTracker(o *Options) *tracker {
	t := &tracker{series: map[int64]*openSeries{}, assocs: map[uint64]peer{}, open: map[peer]int{}, closed: map[peer]time.Time{}, newest: map[peer]int64{}}
	t.configure(o)
	return t
}

func (t *tracker) configure(o *Options) {
	t.quiet, t.quietOpen, t.max = o.Quiet, o.QuietOpen, o.MaxSeries
}

// associationOpened and associationClosed follow the associations of a sender.
func (t *tracker) associationOpened(id uint64, p peer) {
	if _, ok := t.assocs[id]; ok {
		return
	}
	t.assocs[id] = p
	t.open[p]++
}

func (t *tracker) associationClosed(id uint64, now time.Time) {
	p, ok := t.assocs[id]
	if !ok {
		return
	}
	delete(t.assocs, id)
	if t.open[p]--; t.open[p] <= 0 {
		delete(t.open, p)
		for _, s := range t.series {
			if s.peer == p {
				t.closed[p] = now
				break
			}
		}
	}
}

// restore puts back a series that an earlier process was receiving.
func (t *tracker) restore(s journal.Series) {
	t.series[s.ID] = &openSeries{peer: peer{s.Calling, s.Host}, opened: s.OpenedAt, last: s.LastAt, received: s.Received, expect: s.Expected}
}

// arrived notes a durable image; received counts it. A series that was complete
// is open again.
func (t *tracker) arrived(now time.Time, id int64, p peer, received, expect int64, multiframe bool) {
	s := t.series[id]
	if s == nil {
		s = &openSeries{opened: now}
		t.series[id] = s
	}
	s.peer, s.last = p, now
	s.received, s.expect = max(s.received, received), max(s.expect, expect)
	s.frames = s.frames || multiframe
	s.overtaken = false
	if prev := t.newest[p]; prev != id {
		if o := t.series[prev]; o != nil && o.peer == p {
			o.overtaken = true
		}
		t.newest[p] = id
	}
}

// deadline is when s is complete if nothing more happens.
func (t *tracker) deadline(s *openSeries) (at time.Time, by state.CompleteBy) {
	if s.frames {
		return s.last, state.ByFrames
	}
	// More images than announced: the announcement is wrong and means nothing.
	if s.expect > 0 && s.received == s.expect {
		return s.last, state.ByCount
	}
	quiet, from := t.quiet, s.last
	if t.open[s.peer] > 0 {
		quiet = t.quietOpen
	} else if c := t.closed[s.peer]; c.After(from) && !c.After(s.last.Add(t.quietOpen)) {
		from = c
	}
	if s.overtaken {
		quiet, from = quiet/nextSeriesShare, s.last
	}
	at, by = from.Add(quiet), state.ByQuiet
	if end := s.opened.Add(t.max); end.Before(at) {
		return end, state.ByMax
	}
	return at, by
}

// clockSlack is by how much times may lie after now: a minute more is waited then.
const clockSlack = time.Minute

// bound sets what happened after now to now: the clock was ahead then.
func (t *tracker) bound(now time.Time) {
	earlier := func(at *time.Time) {
		if at.After(now.Add(clockSlack)) {
			*at = now
		}
	}
	for _, s := range t.series {
		earlier(&s.opened)
		earlier(&s.last)
	}
	for p, at := range t.closed {
		earlier(&at)
		t.closed[p] = at
	}
}

// due removes and returns the series that are complete at now.
func (t *tracker) due(now time.Time) []completion {
	t.bound(now)
	var out []completion
	for id, s := range t.series {
		at, by := t.deadline(s)
		if at.After(now) {
			continue
		}
		end := state.SeriesComplete
		if by == state.ByMax || by == state.ByQuiet && s.expect > s.received {
			end = state.SeriesIncomplete
		}
		out = append(out, completion{series: id, state: end, by: by, was: s})
		delete(t.series, id)
		t.forget(s.peer)
	}
	return out
}

// putBack undoes due for a series whose completion could not be recorded: it is due
// again, unless an image has come meanwhile.
func (t *tracker) putBack(c completion) {
	s := t.series[c.series]
	if s == nil {
		t.series[c.series] = c.was
		return
	}
	s.opened, s.expect, s.frames = c.was.opened, max(s.expect, c.was.expect), s.frames || c.was.frames
}

// forget drops what is kept of a sender without open series.
func (t *tracker) forget(p peer) {
	for _, s := range t.series {
		if s.peer == p {
			return
		}
	}
	delete(t.closed, p)
	delete(t.newest, p)
}

// next is when due should be asked again; ok is false when nothing is open.
func (t *tracker) next() (at time.Time, ok bool) {
	for _, s := range t.series {
		if d, _ := t.deadline(s); !ok || d.Before(at) {
			at, ok = d, true
		}
	}
	return at, ok
}
