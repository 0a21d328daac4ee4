package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// lane is a stage that denoises originals in one quality: what is next, how it is made and how that is recorded. There
// are two, see fastLane and highLane. It owns where each original is in the lane: queued becomes denoised (derived
// object, its row and its deliveries durable at once), or an end without a derived object. Slices are taken from the
// journal one by one, so nothing but those in hand waits in memory. Killed at any point, the next process finds a slice
// queued and makes the object again: same UIDs.
type lane struct {
	*shared
	quality Quality
	rows    *journal.Lane
	forward *forwarders
	before  *lane // works only while that one does not; nil: always
	behind  *lane // takes what this one has finished; nil: nobody does

	// able tells whether the lane can work at all, workers how many slices it has in hand at most.
	able    func(*config) bool
	workers func(*config) int
	// plan says how the derived object of a slice is made.
	plan func(context.Context, *config, journal.Slice) (work, error)
	// result is how a slice ends that no attempt is left for. The error is nil if trying again might have helped.
	result func(journal.Slice, *PermanentError) journal.Result
	event  string
	counts *prometheus.CounterVec
	// seconds is how long slices took.
	seconds *prometheus.HistogramVec
	// drops: what is in hand is dropped when the process stops or a flag calls it off; else it is finished.
	drops bool
	// patience is how long a call whose context has ended is waited for.
	patience time.Duration

	wake   signal
	tokens chan struct{} // one for each frame at a time
	busy   traffic

	adapted adapted // what the denoiser is adapted to

	mu   sync.Mutex
	hand map[int64]*inHand // by id of the original
	mean time.Duration     // of a slice, 0 = none was finished yet
}

// inHand is a slice that a lane works on, for people who watch and for flags that call it off.
type inHand struct {
	in     journal.Instance
	cancel context.CancelFunc
	frame  int // from 1
	step   int
	steps  int
	told   time.Time // of the last event about a step
}

// traffic tells whether a lane has work, and lets others wait until it has none.
type traffic struct {
	mu   sync.Mutex
	busy bool
	idle chan struct{} // made while busy and somebody waits; closed when busy ends
}

func (t *traffic) set(busy bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy = busy
	if !busy && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

// wait returns once there is no work or ctx has ended.
func (t *traffic) wait(ctx context.Context) {
	for ctx.Err() == nil {
		t.mu.Lock()
		if !t.busy {
			t.mu.Unlock()
			return
		}
		if t.idle == nil {
			t.idle = make(chan struct{})
		}
		c := t.idle
		t.mu.Unlock()
		select {
		case <-c:
		case <-ctx.Done():
		}
	}
}

func (t *traffic) is() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.busy
}

// slicePauseUnit is the pause after the first failure of a slice; it doubles with each.
const slicePauseUnit = 2 * time.Second

// stepEvents is the least time between two events about steps.
const stepEvents = 200 * time.Millisecond

func (l *lane) begin(in journal.Instance, cancel context.CancelFunc) *inHand {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &inHand{in: in, cancel: cancel}
	l.hand[in.ID] = h
	l.busy.set(true)
	return h
}

func (l *lane) end(h *inHand) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.hand, h.in.ID)
}

// nothing notes that nothing can be taken now. What is in hand is work all the same.
func (l *lane) nothing() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.hand) == 0 {
		l.busy.set(false)
	}
}

// took notes how long a slice took.
func (l *lane) took(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mean == 0 {
		l.mean = d
	}
	l.mean = (3*l.mean + d) / 4
}

// callOff drops what is in hand of a series, if this lane drops anything.
func (l *lane) callOff(series int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.hand {
		if l.drops && h.in.Series == series {
			h.cancel()
		}
	}
}

// advance notes a step of a slice and tells whether watchers should hear of it.
func (l *lane) advance(in journal.Instance, frame, step, steps int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hand[in.ID]
	if h == nil {
		return false
	}
	h.frame, h.step, h.steps = frame, step, steps
	now := time.Now()
	if step < steps && now.Sub(h.told) < stepEvents {
		return false
	}
	h.told = now
	return true
}

// giveWay returns once the lane before this one has no work.
func (l *lane) giveWay(ctx context.Context) {
	if l.before != nil {
		l.before.busy.wait(ctx)
	}
}

// run works until ctx ends and what is in hand is finished or dropped.
func (l *lane) run(ctx context.Context) {
	cfg := l.cfg.Load()
	if !l.able(cfg) {
		return
	}
	slots := make(chan struct{}, l.workers(cfg))
	l.tokens = make(chan struct{}, cap(slots))
	var wg sync.WaitGroup
	defer wg.Wait()
	for last := int64(0); ctx.Err() == nil; {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		l.giveWay(ctx)
		next, pause, err := l.next(ctx, last)
		if err != nil && ctx.Err() == nil {
			l.log.Error("lane not readable", zap.String("lane", string(l.quality)), zap.Error(err))
			pause = firstPause
		}
		if next == nil {
			<-slots
			l.nothing()
			if wait(ctx, l.clock, pause, l.wake) {
				return
			}
			continue
		}
		last = next.Instance.Series
		sctx, cancel := context.WithCancel(ctx)
		h := l.begin(next.Instance, cancel)
		wg.Go(func() {
			l.slice(sctx, *next)
			cancel()
			l.end(h)
			<-slots
			l.wake.fire()
			if l.behind != nil {
				l.behind.wake.fire()
			}
		})
	}
}

// next picks the first slice that is not in hand, where series take turns of the series behind the last one; when
// there is none, pause is how long that will stay so unless something arrives.
func (l *lane) next(ctx context.Context, last int64) (next *journal.Slice, pause time.Duration, err error) {
	now := l.clock.Now()
	// What is in hand is copied before the journal is asked: a slice that ends in between is then skipped, never
	// taken twice.
	l.mu.Lock()
	busy := maps.Clone(l.hand)
	l.mu.Unlock()
	first := int64(-1)
	for after := last; ; {
		list, err := l.rows.Next(ctx, now, after, len(busy)+1)
		if err != nil {
			return nil, 0, err
		}
		for i := range list {
			if busy[list[i].Instance.ID] == nil {
				return &list[i], 0, nil
			}
		}
		if len(list) == 0 || list[0].Instance.Series == first { // all series asked, all their slices are in hand
			pause, err := l.retryPause(ctx, now)
			return nil, pause, err
		}
		after = list[0].Instance.Series
		if first < 0 {
			first = after
		}
	}
}

func (l *lane) retryPause(ctx context.Context, now time.Time) (time.Duration, error) {
	at, err := l.rows.NextRetry(ctx)
	if err != nil || at.IsZero() {
		return time.Minute, err
	}
	if d := at.Sub(now); d > 0 {
		return min(d, time.Minute), nil // the clock may change meanwhile
	}
	return slicePauseUnit, nil
}

var (
	errDraining = errors.New("stopping")
	errJournal  = errors.New("journal")
)

// slice takes one original through the lane. Whatever happens in it ends on record in the journal; nothing leaves it
// but a log line. ctx ends when the slice is to be dropped.
func (l *lane) slice(ctx context.Context, s journal.Slice) {
	start := time.Now()
	cfg := l.cfg.Load()
	in := s.Instance
	log := l.log.With(zap.String("lane", string(l.quality)), zap.String("instance", in.SOP))
	row, by, err := l.derive(ctx, cfg, s)
	switch {
	case err == nil:
		if took := time.Since(start); !s.Fill {
			l.took(took)
			l.seconds.WithLabelValues(by.Model().Name).Observe(took.Seconds())
		}
		if l.quality == Fast && row.Sigma > 0 {
			l.met.sigma.Observe(row.Sigma)
		}
		l.forward.wake(cfg.dests(spool.Derived))
		l.tell(in, state.Denoised, row.Reason)
		return
	case errors.Is(err, journal.ErrNotWanted): // a flag came meanwhile
		log.Info("slice called off")
		return
	case errors.Is(err, errJournal): // still queued; with a failing journal there is no hurry
		log.Error("slice not recorded", zap.Error(err))
		wait(ctx, l.clock, firstPause, nil)
		return
	case errors.Is(err, spool.ErrNoSpace): // no fault of the image's
		log.Error("lane waits for room on the disk", zap.Error(err))
		wait(ctx, l.clock, time.Minute, nil)
		return
	case errors.Is(err, errDraining), l.drops && ctx.Err() != nil: // whether it still waits the journal knows
		return
	}
	var perm *PermanentError
	errors.As(err, &perm)
	if errors.Is(err, spool.ErrDamaged) {
		l.met.integrity.Inc()
		log.Error("ALARM: stored original is damaged", zap.String("file", in.File), zap.Error(err))
	}
	if perm == nil && s.Attempts+1 < int64(cfg.Attempts) {
		next := l.clock.Now().Add(slicePauseUnit << min(s.Attempts, 6))
		log.Warn("slice failed, will be tried again", zap.Int64("attempt", s.Attempts+1), zap.Error(err))
		l.retry(ctx, "failed attempt", func() error { return l.rows.Retry(in.ID, next, err.Error()) })
		return
	}
	r := l.result(s, perm)
	r.Detail = err.Error()
	log.Warn("slice given up", zap.String("stage", string(r.Stage)), zap.String("reason", string(r.Reason)),
		zap.Error(err))
	if l.retry(ctx, "result of slice", func() error { return l.rows.End(in.ID, in.File, r) }) {
		l.tell(in, r.Stage, r.Reason)
	}
}

// tell counts what became of an original and tells watchers.
func (l *lane) tell(in journal.Instance, stage state.Stage, reason state.Reason) {
	l.counts.WithLabelValues(string(stage), string(reason)).Inc()
	l.bus.send(Event{Time: l.clock.Now(), Type: l.event, SeriesID: in.Series, Instance: in.SOP, State: string(stage),
		Detail: string(reason)})
}

// derive makes the derived object of a slice and records it.
func (l *lane) derive(ctx context.Context, cfg *config, s journal.Slice) (row journal.Instance, by Denoiser,
	err error) {
	w, err := l.plan(ctx, cfg, s)
	if err != nil {
		return row, nil, err
	}
	w.in, w.quality, w.tokens = s.Instance, l.quality, l.tokens
	if s.Fill {
		w.fill = s.Reason
	}
	if row, by, err = l.write(ctx, cfg, w); err != nil {
		return row, by, err
	}
	if s.Fill {
		row.Detail = s.Detail
	}
	err = l.rows.Add(s.Instance.ID, row, s.Fill, cfg.dests(spool.Derived), l.clock.Now())
	if errors.Is(err, journal.ErrNotWanted) {
		return row, by, errors.Join(err, l.store.Remove(row.File))
	}
	if err != nil {
		return row, by, fmt.Errorf("%w: %w", errJournal, err)
	}
	return row, by, nil
}

// call runs a denoiser on its own goroutine, so that neither its panic nor its silence stops a lane. It has limit for
// all it does, or, if it calls step, for what it does between two steps; while step's pause runs no time passes.
// late is the error of a call that outlives its time; it is abandoned then.
func (l *lane) call(ctx context.Context, limit time.Duration, late error,
	do func(ctx context.Context, step func(pause func())) (*Denoised, error)) (*Denoised, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(limit, func() { cancel(late) })
	defer watch.Stop()
	step := func(pause func()) {
		if ctx.Err() != nil {
			return
		}
		watch.Stop()
		if pause(); ctx.Err() == nil {
			watch.Reset(limit)
		}
	}
	type result struct {
		out *Denoised
		err error
	}
	c := make(chan result, 1)
	l.stuck.Add(1)
	go func() {
		defer l.stuck.Done()
		var r result
		defer func() {
			if v := recover(); v != nil {
				r = result{err: &PermanentError{Reason: state.ReasonPanic, Err: fmt.Errorf("panic in denoiser: %v", v)}}
			}
			c <- r
		}()
		r.out, r.err = do(ctx, step)
	}()
	var r result
	answered := true
	select {
	case r = <-c:
	case <-ctx.Done():
		t := time.NewTimer(l.patience)
		defer t.Stop()
		select {
		case r = <-c:
		case <-t.C:
			answered = false
		}
	}
	switch {
	case ctx.Err() != nil && (l.drops || !answered):
		if context.Cause(ctx) == late {
			return nil, late
		}
		return nil, errDraining
	case r.err == nil && r.out == nil:
		return nil, errors.New("denoiser returned nothing")
	case r.err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("after %v: %w", limit, r.err)
	}
	return r.out, r.err
}
