package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// highLane makes a second derived object of each image that was asked for in quality high, by the full method, once
// its series is complete. It has one frame in hand, and it stands still, between images and between the steps of one,
// while the fast lane has work. It can only be late: what it has in hand at a stop the next process begins again.
func highLane(s *shared, before *lane) *lane {
	l := &lane{shared: s, quality: High, before: before, event: EventHigh, counts: s.met.highSlices,
		seconds: s.met.highSeconds, drops: true, patience: abandonAfter,
		wake: newSignal(), hand: map[int64]*inHand{}}
	l.able = func(cfg *config) bool { return cfg.highDenoiser("") != nil }
	l.workers = func(*config) int { return 1 }
	l.plan = l.planHigh
	l.result = func(s journal.Slice, perm *PermanentError) journal.Result {
		r := journal.Result{Stage: state.Failed, Reason: state.ReasonError, Fill: true}
		if perm != nil {
			r.Reason = perm.Reason
			r.Fill = r.Reason == state.ReasonPanic || r.Reason == state.ReasonTimeout || r.Reason.Impossible()
		}
		if s.Fill { // not even a copy
			r.Reason, r.Fill = state.ReasonDerive, false
		}
		return r
	}
	return l
}

// abandonAfter is how long a call of the full method is waited for once it is called off or late.
const abandonAfter = 5 * time.Second

// planHigh denoises each frame by the full method, a step of which may take StepTimeout, or makes the copy that stands
// in for an image that it failed for.
func (l *lane) planHigh(ctx context.Context, cfg *config, s journal.Slice) (w work, err error) {
	w.adapt = func(ctx context.Context, by Denoiser) (Denoiser, error) {
		return l.adapt(ctx, cfg, s.Instance, by, s.Fill)
	}
	if w.related, err = l.fastObject(ctx, s.Instance); err != nil {
		return w, err
	}
	if s.Fill {
		w.frame = func(_ context.Context, _ Denoiser, f *derive.Frame, _ evidence.Sums) (*Denoised, error) {
			return &Denoised{Pixels: slices.Clone(f.Pixels)}, nil
		}
		return w, nil
	}
	frame := 0
	w.known = l.known(ctx, s.Instance)
	w.frame = func(ctx context.Context, by Denoiser, f *derive.Frame, known evidence.Sums) (*Denoised, error) {
		high, ok := by.(HighDenoiser)
		if !ok || !high.HasHigh() {
			return nil, &PermanentError{Reason: state.ReasonNotPossible, Err: errors.New(noHigh(by))}
		}
		frame++
		n := frame
		l.giveWay(ctx)
		return l.callHigh(ctx, cfg, high, f, known, func(done, total int) {
			if l.advance(s.Instance, n, done, total) {
				l.bus.send(Event{Time: l.clock.Now(), Type: l.event, SeriesID: s.Instance.Series,
					Instance: s.Instance.SOP, State: "step", Frame: n, Step: done, Steps: total})
			}
		})
	}
	return w, nil
}

// callHigh runs the full method. A step that outlives its time ends the call; while the fast lane works no time passes.
func (l *lane) callHigh(ctx context.Context, cfg *config, by HighDenoiser, f *derive.Frame, known evidence.Sums,
	told func(done, total int)) (*Denoised, error) {
	late := &PermanentError{Reason: state.ReasonTimeout, Err: fmt.Errorf("no step ended within %v", cfg.StepTimeout)}
	return l.call(ctx, cfg.StepTimeout, late, func(ctx context.Context, step func(func())) (*Denoised, error) {
		return by.DenoiseHigh(ctx, f, known, cfg.Strength, func(done, total int) {
			step(func() {
				told(done, total)
				l.giveWay(ctx)
			})
		})
	})
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

// highPossible tells whether the full method can run for images of a modality, or where that is
// empty for any; if not, why.
func (c *config) highPossible(modality string) (ok bool, why string) {
	switch {
	case c.highDenoiser(modality) != nil:
		return true, ""
	case c.Denoiser == nil:
		return false, "no model"
	}
	return false, noHigh(c.denoiser(modality))
}

// HighPossible tells whether the full method can run for images of a modality, or where that is
// empty for any; if not, why.
func (p *Pipeline) HighPossible(modality string) (ok bool, why string) {
	return p.cfg.Load().highPossible(modality)
}

// noHigh says why a model cannot run the full method.
func noHigh(d Denoiser) string { return fmt.Sprintf("model %s has no networks for it", d.Model().Name) }

// highStart is how images of a modality enter the high lane. Where it is not known the lane finds out.
func (p *shared) highStart(modality string) journal.Start {
	if ok, why := p.cfg.Load().highPossible(modality); !ok {
		return journal.Start{Reason: state.ReasonNotPossible, Detail: why}
	}
	return journal.Start{}
}

// fastObject is what the fast lane made of an original, nil if nothing. One whose
// file cannot be read is none: the high object does without the link to it.
func (p *shared) fastObject(ctx context.Context, in journal.Instance) (*derive.Related, error) {
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
		p.log.Warn("fast object not readable, the high one will not refer to it", zap.String("instance", in.SOP),
			zap.String("file", fast.File), zap.Error(err))
		return nil, nil
	}
	return &derive.Related{SOPClassUID: o.String(dcm.SOPClassUID), SOPInstanceUID: o.String(dcm.SOPInstanceUID),
		SeriesInstanceUID: o.String(dcm.SeriesInstanceUID)}, nil
}
