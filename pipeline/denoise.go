package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

// PermanentError marks a failure that trying again cannot mend. Reason is a
// stable word for status and metrics.
type PermanentError struct {
	Reason string
	Err    error
}

func (e *PermanentError) Error() string { return e.Reason + ": " + e.Err.Error() }
func (e *PermanentError) Unwrap() error { return e.Err }

// Reasons why a slice failed or did not pass the gate, or why its derived object is
// not the method's plain result; derive.HeldBack and derive.Blended are two more.
const (
	reasonPanic   = "panic"
	reasonTimeout = "timeout"
	reasonError   = "error"
	reasonDerive  = "derive"
	reasonDamaged = "damaged"
	// A derived object was made and is a copy: no noise was found that the model can treat.
	reasonUnchanged = "unchanged"
	gateSize        = "gate-size"
	gateNotNumber   = "gate-nan"
	gateRange       = "gate-range"
	gateConstant    = "gate-constant"
	productName     = "denoised"
	slicePauseUnit  = 2 * time.Second
)

// denoiseAll is the denoise stage. It owns the stage of each original: queued
// becomes denoised (derived object, its row and its deliveries durable at
// once), passed (gate) or failed. Slices are taken from the journal one by one,
// series in turn, so nothing but row numbers waits in memory and a big series
// does not hold up a small one. Killed at any point, the next process finds the
// slice queued and makes the object again.
func (p *Pipeline) denoiseAll(ctx context.Context) {
	cfg := p.cfg.Load()
	if cfg.Denoiser == nil {
		return
	}
	jobs := make(chan spool.Instance)
	tokens := make(chan struct{}, cfg.Workers)
	var mu sync.Mutex
	hand := map[int64]bool{}
	var wg sync.WaitGroup
	for range cfg.Workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for in := range jobs {
				p.slice(ctx, in, tokens)
				mu.Lock()
				delete(hand, in.ID)
				mu.Unlock()
				p.fast.leave()
				p.wakeDenoise.fire()
				p.wakeHigh.fire()
			}
		}()
	}
	defer wg.Wait()
	defer close(jobs)
	var last int64
	for ctx.Err() == nil {
		// The set is copied before the journal is asked: a slice that ends in
		// between is then skipped, never taken twice.
		mu.Lock()
		busy := make(map[int64]bool, len(hand))
		for id := range hand {
			busy[id] = true
		}
		mu.Unlock()
		next, pause, err := p.nextSlice(ctx, last, busy)
		if err != nil && ctx.Err() == nil {
			p.log.Error("slice queue not readable", zap.Error(err))
			pause = firstPause
		}
		if next == nil {
			if wait(ctx, p.clock, pause, p.wakeDenoise) {
				return
			}
			continue
		}
		last = next.Series
		mu.Lock()
		hand[next.ID] = true
		mu.Unlock()
		p.fast.enter()
		select {
		case jobs <- *next:
		case <-ctx.Done():
			p.fast.leave()
			return
		}
	}
}

// nextSlice picks the oldest free slice of the next series in turn; when there
// is none, pause is how long that will stay so unless something arrives.
func (p *Pipeline) nextSlice(ctx context.Context, last int64, busy map[int64]bool) (next *spool.Instance, pause time.Duration, err error) {
	now := p.clock.Now()
	first := int64(-1)
	for after := last; ; {
		list, err := p.jrnl.NextSlices(ctx, after, now, len(busy)+1)
		if err != nil || len(list) == 0 {
			return nil, p.retryPause(ctx, now), err
		}
		for i := range list {
			if !busy[list[i].ID] {
				return &list[i], 0, nil
			}
		}
		after = list[0].Series
		if after == first { // all series asked, all their slices are in hand
			return nil, p.retryPause(ctx, now), nil
		}
		if first < 0 {
			first = after
		}
	}
}

func (p *Pipeline) retryPause(ctx context.Context, now time.Time) time.Duration {
	at, err := p.jrnl.NextRetry(ctx)
	if err != nil || at.IsZero() {
		return time.Minute
	}
	if d := at.Sub(now); d > 0 {
		return min(d, time.Minute) // the clock may change meanwhile
	}
	return slicePauseUnit
}

var errDraining = errors.New("stopping")

// slice takes one original through denoising. Whatever happens in it ends as a
// stage in the journal; nothing leaves it but a log line.
func (p *Pipeline) slice(ctx context.Context, in spool.Instance, tokens chan struct{}) {
	start := time.Now()
	cfg := p.cfg.Load()
	row, by, err := p.derive(ctx, cfg, in, tokens)
	if err == nil {
		p.met.sliceSeconds.WithLabelValues(by.Model().Name).Observe(time.Since(start).Seconds())
		p.met.slices.WithLabelValues(spool.StageDenoised, row.Reason).Inc()
		p.wakeForwarders(cfg.dests(spool.Derived))
		p.bus.send(Event{Time: p.clock.Now(), Type: EventSlice, SeriesID: in.Series, Instance: in.SOP, State: spool.StageDenoised, Detail: row.Reason})
		return
	}
	if errors.Is(err, spool.ErrNotWanted) { // a flag came meanwhile
		p.log.Info("slice called off", zap.String("instance", in.SOP))
		return
	}
	if errors.Is(err, errDraining) || errors.Is(err, errJournal) {
		// Still queued. With a failing journal there is no hurry.
		if errors.Is(err, errJournal) {
			p.log.Error("slice not recorded", zap.String("instance", in.SOP), zap.Error(err))
			wait(ctx, p.clock, firstPause, nil)
		}
		return
	}
	var perm *PermanentError
	reason, stage := reasonError, spool.StageFailed
	if errors.As(err, &perm) {
		reason = perm.Reason
		var refused *derive.RefusedError
		if gated(reason) || errors.As(err, &refused) {
			stage = spool.StagePassed
		}
	}
	if spoiled := errors.Is(err, spool.ErrDamaged); spoiled {
		p.met.integrity.Inc()
		p.log.Error("ALARM: stored original is damaged", zap.String("instance", in.SOP), zap.String("file", in.File), zap.Error(err))
	}
	if perm == nil && in.Attempts+1 < int64(cfg.Attempts) {
		next := p.clock.Now().Add(slicePauseUnit << min(in.Attempts, 6))
		p.log.Warn("slice failed, will be tried again", zap.String("instance", in.SOP), zap.Int64("attempt", in.Attempts+1), zap.Error(err))
		p.retry(ctx, "failed attempt", func() error { return p.jrnl.RetrySlice(in.ID, next, err.Error()) })
		return
	}
	p.log.Warn("slice is forwarded as it came", zap.String("instance", in.SOP), zap.String("stage", stage), zap.String("reason", reason), zap.Error(err))
	if p.retry(ctx, "result of slice", func() error { return p.jrnl.EndSlice(in.ID, in.File, stage, reason, err.Error()) }) {
		p.met.slices.WithLabelValues(stage, reason).Inc()
		p.bus.send(Event{Time: p.clock.Now(), Type: EventSlice, SeriesID: in.Series, Instance: in.SOP, State: stage, Detail: reason})
	}
}

var errJournal = errors.New("journal")

// gated: the result was there and could not be right.
func gated(reason string) bool {
	return slices.Contains([]string{gateSize, gateNotNumber, gateRange, gateConstant}, reason)
}

// params are the same for the same original, model, strength, quality and
// program version, so that the derived object has the same UIDs however often it is
// made. Its pixels are the same if the series has told the same of its noise. Its creation time is therefore the time
// the original
// was received, and its series time stays the source's: when the series was
// first seen would not survive a rebuild of the journal.
func params(cfg *config, by Denoiser, in spool.Instance, q Quality) derive.Params {
	return derive.Params{Model: by.Model(), Strength: cfg.Strength, Quality: string(q), Product: productName,
		Version: cfg.Version, Now: in.Received}
}

// work is what is to be made of one original.
type work struct {
	in      spool.Instance
	quality Quality
	tokens  chan struct{} // one for each frame at a time
	known   evidence.Sums // what the series told
	// measure, if not nil, tells what a frame says of its series. Of several, all are
	// measured before the first is denoised.
	measure func(ctx context.Context, by Denoiser, f *derive.Frame) (*Denoised, error)
	frame   func(ctx context.Context, by Denoiser, f *derive.Frame, known evidence.Sums) (*Denoised, error)
	related *derive.Related
	// adapt, if not nil, chooses what the image is denoised by, given the denoiser of its modality.
	adapt func(ctx context.Context, by Denoiser) (Denoiser, error)
	// fill: a copy, because of this reason.
	fill string
}

// step names the durable step for tests.
func (w *work) step() string {
	if w.quality == High {
		return "high"
	}
	return "derive"
}

// derive makes the derived object of the fast lane.
func (p *Pipeline) derive(ctx context.Context, cfg *config, in spool.Instance, tokens chan struct{},
) (row spool.Instance, by Denoiser, err error) {
	measure := func(ctx context.Context, by Denoiser, f *derive.Frame) (*Denoised, error) {
		return p.callDenoiser(context.WithoutCancel(ctx), cfg, func(ctx context.Context) (*Denoised, error) {
			told, err := by.Measure(ctx, f)
			return &Denoised{Told: told}, err
		})
	}
	if cfg.Strength == 0 {
		measure = nil // nothing will be taken off
	}
	row, by, err = p.make(ctx, cfg, work{in: in, quality: Fast, tokens: tokens, known: p.known(ctx, in),
		measure: measure,
		frame: func(ctx context.Context, by Denoiser, f *derive.Frame, known evidence.Sums) (*Denoised, error) {
			return p.callDenoiser(context.WithoutCancel(ctx), cfg, func(ctx context.Context) (*Denoised, error) {
				return by.Denoise(ctx, f, known, cfg.Strength)
			})
		}})
	if err != nil {
		return row, by, err
	}
	err = p.jrnl.AddDerived(in.ID, row, cfg.dests(spool.Derived))
	if errors.Is(err, spool.ErrNotWanted) {
		return row, by, errors.Join(err, p.store.Remove(row.File))
	}
	if err != nil {
		return row, by, fmt.Errorf("%w: %w", errJournal, err)
	}
	if row.Sigma > 0 {
		p.met.sigma.Observe(row.Sigma)
	}
	return row, by, nil
}

// known is what the series of an original told so far. It is a help, and no image waits for it.
func (p *Pipeline) known(ctx context.Context, in spool.Instance) evidence.Sums {
	told, err := p.jrnl.Told(context.WithoutCancel(ctx), in.Series)
	if err != nil {
		p.log.Warn("image is denoised without what its series told", zap.String("instance", in.SOP), zap.Error(err))
	}
	return told
}

// make makes the derived object of one original durable and returns the row
// that the journal is to have of it, and by what it was made. Errors that are not *PermanentError may be
// tried again.
func (p *Pipeline) make(ctx context.Context, cfg *config, w work) (row spool.Instance, by Denoiser, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PermanentError{Reason: reasonPanic, Err: fmt.Errorf("panic: %v", v)}
		}
	}()
	in := w.in
	f, err := p.store.Open(in.File)
	if err != nil {
		return row, by, err
	}
	defer f.Close()
	if err := spool.Verify(in.File, f, in.Offset, in.Size, in.CRC); err != nil {
		var corrupt *spool.CorruptError
		if errors.Is(err, spool.ErrDamaged) || errors.As(err, &corrupt) {
			return row, by, &PermanentError{Reason: reasonDamaged, Err: fmt.Errorf("%w: %w", spool.ErrDamaged, err)}
		}
		return row, by, err
	}
	o, err := scan(f, in.Offset+in.Size)
	if o == nil {
		return row, by, &PermanentError{Reason: string(reasonUnparseable), Err: err}
	}
	if v := derive.Inspect(o, cfg.Admit...); !v.OK() { // by this version, and by what is admitted now
		return row, by, &PermanentError{Reason: string(v.Reason), Err: &derive.RefusedError{Verdict: v}}
	}
	t, err := p.store.Create()
	if err != nil {
		return row, by, err
	}
	defer t.Discard()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	by = cfg.denoiser(o.String(dcm.Modality))
	if w.adapt != nil {
		if by, err = w.adapt(ctx, by); err != nil {
			return row, by, err
		}
	}
	fr := &frames{p: p, work: w, o: o, by: by, count: derive.Frames(o)}
	if err := fr.measured(ctx); err != nil {
		return row, by, err
	}
	fr.ahead = derive.NewAhead(fr.count, cap(w.tokens), func(i int) (*Denoised, error) { return fr.frame(ctx, i) })
	defer fr.ahead.Wait()
	par := params(cfg, by, in, w.quality)
	if par.FirstUIDs, err = p.firstUIDs(ctx, in, par); err != nil {
		return row, by, err
	}
	par.Related, par.Remark = w.related, fr.checked.Remark
	if w.fill != "" {
		par.Copy = "the method failed (" + w.fill + ")"
	}
	p.hook(w.step() + "-write")
	info, err := derive.Write(t, o, par, fr.next)
	if err != nil {
		var perm *PermanentError
		if errors.As(err, &perm) || errors.Is(err, errDraining) || errors.Is(err, spool.ErrNoSpace) || fr.err != nil {
			return row, by, err
		}
		return row, by, &PermanentError{Reason: reasonDerive, Err: err}
	}
	p.hook(w.step() + "-written")
	sop, _ := derive.UIDs(o, par)
	made, serr := scan(t, t.Offset()+t.Size())
	if serr != nil || made == nil || made.String(dcm.SOPInstanceUID) != sop {
		return row, by, &PermanentError{Reason: reasonDerive,
			Err: fmt.Errorf("derived object does not read back: %w", serr)}
	}
	if err := derive.Verify(o, made); err != nil {
		return row, by, &PermanentError{Reason: reasonDerive, Err: err}
	}
	row = spool.Instance{SOP: sop, Class: made.String(dcm.SOPClassUID), Syntax: made.TransferSyntaxUID(), Offset: t.Offset(), Size: t.Size(), CRC: t.CRC(),
		Received: in.Received, Number: in.Number, Frames: in.Frames, Quality: string(w.quality), Channel: in.Channel,
		Rule: in.Rule, Sigma: fr.sigma(), Told: fr.told,
		File: spool.FileName(spool.Derived, in.File, sop, "")}
	switch {
	case w.fill != "":
		row.Reason = w.fill
	case fr.checked.Reason() != "":
		row.Reason, row.Detail = fr.checked.Reason(), fr.checked.String()
	case info.Changed == 0:
		row.Reason = reasonUnchanged
	}
	rec := spool.Record{Kind: spool.Derived, Quality: string(w.quality), Received: in.Received, Source: in.File,
		Sigma: row.Sigma, Reason: row.Reason, Detail: row.Detail, Fill: w.fill != "", Told: row.Told}
	if err := t.Sync(rec); err != nil {
		return row, by, err
	}
	if err := t.Publish(row.File); err != nil {
		return row, by, err
	}
	if err := p.store.SyncName(row.File); err != nil {
		return row, by, errors.Join(err, p.store.Remove(row.File))
	}
	return row, by, nil
}

// frames denoises the frames of one object ahead of the writer that asks for them. It
// holds at most as many as there are tokens.
type frames struct {
	p *Pipeline
	work
	o       *dcm.Object
	by      Denoiser
	count   int
	ahead   *derive.Ahead[*Denoised]
	sigmas  []float64
	checked derive.Checked // by the model itself
	told    evidence.Sums  // by the frames, if they are measured
	err     error          // the first error of a frame
}

// measured adds what all frames of an object of several tell to what is known.
func (f *frames) measured(ctx context.Context) error {
	if f.measure == nil || f.count == 1 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	ahead := derive.NewAhead(f.count, cap(f.tokens), func(i int) (*Denoised, error) {
		return f.turn(ctx, i, func(ctx context.Context, in *derive.Frame) (*Denoised, error) {
			return f.measure(ctx, f.by, in)
		})
	})
	defer ahead.Wait() // after cancel
	defer cancel()
	for i := range f.count {
		r, err := ahead.Next(i)
		if err != nil {
			return fmt.Errorf("measure: %w", err)
		}
		f.told = f.told.Plus(r.Told)
	}
	f.known = f.known.Plus(f.told)
	return nil
}

func (f *frames) next(i int) ([]float32, error) {
	r, err := f.ahead.Next(i)
	if err != nil {
		f.err = err
		return nil, err
	}
	f.sigmas = append(f.sigmas, r.Sigma)
	f.checked.Add(r.Gate, r.Share)
	if f.measure != nil && f.count == 1 {
		f.told = f.told.Plus(r.Told)
	}
	return r.Pixels, nil
}

func (f *frames) sigma() float64 {
	if len(f.sigmas) == 0 {
		return 0
	}
	s := slices.Clone(f.sigmas)
	slices.Sort(s)
	if m := s[len(s)/2]; !math.IsNaN(m) && !math.IsInf(m, 0) {
		return m
	}
	return 0
}

// frame denoises frame i.
func (f *frames) frame(ctx context.Context, i int) (*Denoised, error) {
	return f.turn(ctx, i, func(ctx context.Context, in *derive.Frame) (*Denoised, error) {
		out, err := f.work.frame(ctx, f.by, in, f.known)
		if err != nil {
			return nil, fmt.Errorf("denoise: %w", err)
		}
		return out, gate(in, out.Pixels)
	})
}

// turn reads frame i and does something with it when a token is free.
func (f *frames) turn(ctx context.Context, i int, do func(context.Context, *derive.Frame) (*Denoised,
	error)) (out *Denoised, err error) {
	defer func() {
		if v := recover(); v != nil {
			out, err = nil, &PermanentError{Reason: reasonPanic, Err: fmt.Errorf("frame %d: panic: %v", i, v)}
		}
	}()
	// An object of one frame that is in hand is finished; one of many stops
	// between frames, since it may take minutes.
	if f.count > 1 {
		select {
		case f.tokens <- struct{}{}:
		case <-ctx.Done():
			return nil, errDraining
		}
		if ctx.Err() != nil {
			<-f.tokens
			return nil, errDraining
		}
	} else {
		f.tokens <- struct{}{}
	}
	defer func() { <-f.tokens }()
	in, err := derive.ReadFrame(f.o, i)
	if err != nil {
		return nil, &PermanentError{Reason: reasonDerive, Err: fmt.Errorf("read frame %d: %w", i, err)}
	}
	if out, err = do(ctx, in); err != nil {
		return nil, fmt.Errorf("frame %d: %w", i, err)
	}
	return out, nil
}

// callDenoiser runs the denoiser on its own goroutine, so that neither its panic
// nor its silence stops a worker. A call that outlives its time is abandoned.
func (p *Pipeline) callDenoiser(ctx context.Context, cfg *config, call func(context.Context) (*Denoised,
	error)) (*Denoised, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.SliceTimeout)
	defer cancel()
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
				r = result{err: &PermanentError{Reason: reasonPanic, Err: fmt.Errorf("panic in denoiser: %v", v)}}
			}
			c <- r
		}()
		r.out, r.err = call(ctx)
	}()
	select {
	case r := <-c:
		if r.err == nil && r.out == nil {
			r.err = errors.New("denoiser returned nothing")
		}
		if r.err != nil && ctx.Err() != nil {
			r.err = fmt.Errorf("after %v: %w", cfg.SliceTimeout, r.err)
		}
		return r.out, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("no result after %v: %w", cfg.SliceTimeout, context.DeadlineExceeded)
	}
}

// gate refuses a result that cannot be right. Pixels that must not change are
// put back, whatever the denoiser did to them.
func gate(in *derive.Frame, out []float32) error {
	stop := func(reason, format string, args ...any) error {
		return &PermanentError{Reason: reason, Err: fmt.Errorf(format, args...)}
	}
	if len(out) != len(in.Pixels) {
		return stop(gateSize, "%d pixels instead of %d", len(out), len(in.Pixels))
	}
	var inLo, inHi, outLo, outHi float32
	seen := false
	for i, v := range out {
		if in.Skip != nil && in.Skip[i] {
			out[i] = in.Pixels[i]
			continue
		}
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return stop(gateNotNumber, "pixel %d is %v", i, v)
		}
		// Half a step beyond the range still rounds to its end.
		if v < in.Min-0.5 || v > in.Max+0.5 {
			return stop(gateRange, "pixel %d is %v, stored values go from %v to %v", i, v, in.Min, in.Max)
		}
		x := in.Pixels[i]
		if !seen {
			inLo, inHi, outLo, outHi, seen = x, x, v, v, true
			continue
		}
		inLo, inHi, outLo, outHi = min(inLo, x), max(inHi, x), min(outLo, v), max(outHi, v)
	}
	if seen && inHi > inLo && outHi-outLo < 0.5 {
		return stop(gateConstant, "all pixels became %v", outLo)
	}
	return nil
}
