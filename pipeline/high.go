package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// The high lane makes a second derived object of each image that was asked for
// in quality high, by the full method, once its series is complete. It has one
// worker and one frame in hand, and it stands still, between images and between
// the steps of one, while the fast lane has work.

// traffic tells the high lane when the fast one has nothing to do.
type traffic struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // made while n > 0 and somebody waits; closed when n is 0 again
}

func (t *traffic) enter() { t.mu.Lock(); t.n++; t.mu.Unlock() }

func (t *traffic) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

// wait returns once nothing is in hand or ctx has ended.
func (t *traffic) wait(ctx context.Context) {
	for ctx.Err() == nil {
		t.mu.Lock()
		if t.n == 0 {
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

func (t *traffic) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n > 0
}

// highLane is what the lane has in hand, for people who watch and for flags that
// call it off.
type highLane struct {
	mu     sync.Mutex
	in     *journal.Instance // nil: nothing
	cancel context.CancelFunc
	frame  int // from 1
	step   int
	steps  int
	told   time.Time     // of the last event about a step
	mean   time.Duration // of an image, 0 = none was finished yet
}

// stepEvents is the least time between two events about steps.
const stepEvents = 200 * time.Millisecond

func (h *highLane) begin(in *journal.Instance, cancel context.CancelFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.in, h.cancel, h.frame, h.step, h.steps = in, cancel, 0, 0, 0
}

func (h *highLane) end() { h.begin(nil, nil) }

// took notes how long an image took.
func (h *highLane) took(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mean == 0 {
		h.mean = d
	}
	h.mean = (3*h.mean + d) / 4
}

// stop drops the image in hand if it is of the series.
func (h *highLane) stop(series int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.in != nil && h.in.Series == series {
		h.cancel()
	}
}

// advance notes a step and tells whether watchers should hear of it.
func (h *highLane) advance(frame, step, steps int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.frame, h.step, h.steps = frame, step, steps
	now := time.Now()
	if step < steps && now.Sub(h.told) < stepEvents {
		return false
	}
	h.told = now
	return true
}

// denoiser is the one for images of a modality; nil if nothing is plugged in. Where the modality is
// not known it is the plugged-in one.
func (c *config) denoiser(modality string) Denoiser {
	if d, ok := c.Denoiser.(Chooser); ok && modality != "" {
		return d.For(modality)
	}
	return c.Denoiser
}

// highDenoiser is the denoiser for images of a modality if it knows the full method.
func (c *config) highDenoiser(modality string) HighDenoiser {
	if d, ok := c.denoiser(modality).(HighDenoiser); ok && d.HasHigh() {
		return d
	}
	return nil
}

// HighPossible tells whether the full method can run for images of a modality, or where that is
// empty for any; if not, why.
func (p *Pipeline) HighPossible(modality string) (ok bool, why string) {
	cfg := p.cfg.Load()
	switch {
	case cfg.highDenoiser(modality) != nil:
		return true, ""
	case cfg.Denoiser == nil:
		return false, "no model"
	}
	return false, noHigh(cfg.denoiser(modality))
}

// noHigh says why a model cannot run the full method.
func noHigh(d Denoiser) string { return fmt.Sprintf("model %s has no networks for it", d.Model().Name) }

// highStart is how images of a modality enter the high lane. Where it is not known the lane finds out.
func (p *Pipeline) highStart(modality string) journal.Start {
	if ok, why := p.HighPossible(modality); !ok {
		return journal.Start{Reason: state.ReasonNotPossible, Detail: why}
	}
	return journal.Start{}
}

// denoiseHigh is the stage of the high lane. It owns the rows of the table high:
// queued becomes denoised (derived object, its row and its deliveries durable at
// once) or failed. Finished images stay finished; killed at any point, the next
// process finds the one in hand queued and makes the object again.
func (p *Pipeline) denoiseHigh(ctx context.Context) {
	if p.cfg.Load().highDenoiser("") == nil {
		return
	}
	for ctx.Err() == nil {
		p.fast.wait(ctx)
		next, pause, err := p.nextHigh(ctx)
		if err != nil && ctx.Err() == nil {
			p.log.Error("high lane not readable", zap.Error(err))
			pause = firstPause
		}
		if next == nil {
			if wait(ctx, p.clock, pause, p.wakeHigh) {
				return
			}
			continue
		}
		p.highSlice(ctx, *next)
	}
}

func (p *Pipeline) nextHigh(ctx context.Context) (next *journal.HighSlice, pause time.Duration, err error) {
	now := p.clock.Now()
	if next, err = p.jrnl.NextHigh(ctx, now); next != nil || err != nil {
		return next, 0, err
	}
	at, err := p.jrnl.NextHighRetry(ctx)
	if err != nil || at.IsZero() {
		return nil, time.Minute, err
	}
	return nil, min(max(at.Sub(now), time.Millisecond), time.Minute), nil // the clock may change meanwhile
}

// highSlice takes one original through the high lane.
func (p *Pipeline) highSlice(ctx context.Context, h journal.HighSlice) {
	cfg := p.cfg.Load()
	in := h.Instance
	start := time.Now()
	hctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.high.begin(&in, cancel)
	defer p.high.end()
	tell := func(stage state.Stage, reason state.Reason) {
		p.met.highSlices.WithLabelValues(string(stage), string(reason)).Inc()
		p.bus.send(Event{Time: p.clock.Now(), Type: EventHigh, SeriesID: in.Series, Instance: in.SOP, State: string(stage), Detail: string(reason)})
	}
	row, by, err := p.deriveHigh(hctx, cfg, h)
	if err == nil {
		if !h.Fill {
			p.high.took(time.Since(start))
			p.met.highSeconds.WithLabelValues(by.Model().Name).Observe(time.Since(start).Seconds())
		}
		p.wakeForwarders(cfg.dests(spool.Derived))
		tell(state.Denoised, row.Reason)
		return
	}
	switch {
	case errors.Is(err, journal.ErrNotWanted):
		p.log.Info("high pass called off", zap.String("instance", in.SOP))
		return
	case errors.Is(err, errJournal):
		p.log.Error("result of the high pass not recorded", zap.String("instance", in.SOP), zap.Error(err))
		wait(ctx, p.clock, firstPause, nil)
		return
	case errors.Is(err, spool.ErrNoSpace): // no fault of the image's
		p.log.Error("high pass waits for room on the disk", zap.String("instance", in.SOP), zap.Error(err))
		wait(ctx, p.clock, time.Minute, nil)
		return
	case hctx.Err() != nil: // stopping, or called off: whether it still waits the journal knows
		return
	}
	var perm *PermanentError
	reason, fill := state.ReasonError, true
	if errors.As(err, &perm) {
		reason = perm.Reason
		fill = reason == state.ReasonPanic || reason == state.ReasonTimeout || reason.Impossible()
	}
	if errors.Is(err, spool.ErrDamaged) {
		p.met.integrity.Inc()
		p.log.Error("ALARM: stored original is damaged", zap.String("instance", in.SOP), zap.String("file", in.File), zap.Error(err))
	}
	if h.Fill { // not even a copy
		reason, fill = state.ReasonDerive, false
	}
	if perm == nil && h.Attempts+1 < int64(cfg.Attempts) {
		next := p.clock.Now().Add(slicePauseUnit << min(h.Attempts, 6))
		p.log.Warn("high pass of an image failed, will be tried again", zap.String("instance", in.SOP), zap.Int64("attempt", h.Attempts+1), zap.Error(err))
		p.retry(ctx, "failed attempt", func() error { return p.jrnl.RetryHigh(in.ID, next, err.Error()) })
		return
	}
	p.log.Warn("high pass of an image failed", zap.String("instance", in.SOP), zap.String("reason", string(reason)), zap.Error(err))
	if p.retry(ctx, "result of the high pass", func() error { return p.jrnl.EndHigh(in.ID, in.File, reason, err.Error(), fill) }) {
		tell(state.Failed, reason)
	}
}

// deriveHigh makes the derived object of one original by the full method, or
// the copy that stands in for it, and records it.
func (p *Pipeline) deriveHigh(ctx context.Context, cfg *config, h journal.HighSlice) (row journal.Instance, by Denoiser,
	err error) {
	in := h.Instance
	w := work{in: in, quality: High, tokens: make(chan struct{}, 1)} // one frame in hand
	w.adapt = func(ctx context.Context, by Denoiser) (Denoiser, error) { return p.adapt(ctx, cfg, in, by, h.Fill) }
	if w.related, err = p.fastObject(ctx, in); err != nil {
		return row, nil, err
	}
	if h.Fill {
		w.fill = h.Reason
		w.frame = func(_ context.Context, _ Denoiser, f *derive.Frame, _ evidence.Sums) (*Denoised, error) {
			return &Denoised{Pixels: slices.Clone(f.Pixels)}, nil
		}
	} else {
		frame := 0
		w.known = p.known(ctx, in)
		w.frame = func(ctx context.Context, by Denoiser, f *derive.Frame, known evidence.Sums) (*Denoised, error) {
			high, ok := by.(HighDenoiser)
			if !ok || !high.HasHigh() {
				return nil, &PermanentError{Reason: state.ReasonNotPossible, Err: errors.New(noHigh(by))}
			}
			frame++
			p.fast.wait(ctx)
			return p.callHigh(ctx, cfg, high, f, known, func(done, total int) {
				if p.high.advance(frame, done, total) {
					p.bus.send(Event{Time: p.clock.Now(), Type: EventHigh, SeriesID: in.Series, Instance: in.SOP, State: "step", Frame: frame, Step: done, Steps: total})
				}
			})
		}
	}
	if row, by, err = p.make(ctx, cfg, w); err != nil {
		return row, by, err
	}
	if h.Fill {
		row.Detail = h.Detail
	}
	err = p.jrnl.AddHigh(in.ID, row, h.Fill, cfg.dests(spool.Derived), p.clock.Now())
	if errors.Is(err, journal.ErrNotWanted) {
		return row, by, errors.Join(err, p.store.Remove(row.File))
	}
	if err != nil {
		return row, by, fmt.Errorf("%w: %w", errJournal, err)
	}
	return row, by, nil
}

// fastObject is what the fast lane made of an original, nil if nothing. One whose
// file cannot be read is none: the high object does without the link to it.
func (p *Pipeline) fastObject(ctx context.Context, in journal.Instance) (*derive.Related, error) {
	fast, err := p.jrnl.Derived(ctx, in.ID, Fast)
	if err != nil || fast == nil {
		return nil, err
	}
	o, file, err := p.open(*fast)
	if err == nil {
		defer file.Close()
		if uid := o.String(dcm.SOPInstanceUID); uid != fast.SOP {
			err = fmt.Errorf("its header has UID %.64q", uid)
		}
	}
	if err != nil {
		p.log.Warn("fast object not readable, the high one will not refer to it", zap.String("instance", in.SOP), zap.String("file", fast.File), zap.Error(err))
		return nil, nil
	}
	return &derive.Related{SOPClassUID: o.String(dcm.SOPClassUID), SOPInstanceUID: o.String(dcm.SOPInstanceUID), SeriesInstanceUID: o.String(dcm.SeriesInstanceUID)}, nil
}

// abandonAfter is how long a call whose context has ended is waited for.
const abandonAfter = 5 * time.Second

// callHigh runs the full method on its own goroutine, as callDenoiser does. A
// step that outlives its time ends the call; while the fast lane works no time
// passes.
func (p *Pipeline) callHigh(ctx context.Context, cfg *config, by HighDenoiser, in *derive.Frame, known evidence.Sums,
	told func(done, total int)) (*Denoised, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := &PermanentError{Reason: state.ReasonTimeout, Err: fmt.Errorf("no step ended within %v", cfg.StepTimeout)}
	limit := time.AfterFunc(cfg.StepTimeout, func() { cancel(late) })
	defer limit.Stop()
	progress := func(done, total int) {
		if ctx.Err() != nil {
			return
		}
		limit.Stop()
		told(done, total)
		p.fast.wait(ctx)
		if ctx.Err() == nil {
			limit.Reset(cfg.StepTimeout)
		}
	}
	type result struct {
		out *Denoised
		err error
	}
	c := make(chan result, 1)
	p.stuck.Add(1)
	go func() {
		defer p.stuck.Done()
		var r result
		defer func() {
			if v := recover(); v != nil {
				r = result{err: &PermanentError{Reason: state.ReasonPanic, Err: fmt.Errorf("panic in denoiser: %v", v)}}
			}
			c <- r
		}()
		r.out, r.err = by.DenoiseHigh(ctx, in, known, cfg.Strength, progress)
	}()
	var r result
	select {
	case r = <-c:
	case <-ctx.Done():
		t := time.NewTimer(abandonAfter)
		defer t.Stop()
		select {
		case r = <-c:
		case <-t.C:
		}
	}
	switch {
	case ctx.Err() != nil:
		if cause := context.Cause(ctx); cause == error(late) {
			return nil, cause
		}
		return nil, errDraining
	case r.err == nil && r.out == nil:
		return nil, errors.New("denoiser returned nothing")
	}
	return r.out, r.err
}
