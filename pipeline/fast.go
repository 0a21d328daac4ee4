package pipeline

import (
	"context"
	"errors"
	"fmt"

	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// fastLane denoises slices as they arrive, one on each core, by the student. What it has in hand it finishes.
func fastLane(s *shared) *lane {
	l := &lane{shared: s, quality: Fast, event: EventSlice, counts: s.met.slices, seconds: s.met.sliceSeconds,
		wake: newSignal(), hand: map[int64]*inHand{}}
	l.able = func(cfg *config) bool { return cfg.Denoiser != nil }
	l.workers = func(cfg *config) int { return cfg.Workers }
	l.plan = l.planFast
	l.result = func(_ journal.Slice, perm *PermanentError) journal.Result {
		switch {
		case perm == nil:
			return journal.Result{Stage: state.Failed, Reason: state.ReasonError}
		case perm.Reason.Impossible(), errors.As(perm, new(*derive.RefusedError)):
			return journal.Result{Stage: state.Passed, Reason: perm.Reason}
		}
		return journal.Result{Stage: state.Failed, Reason: perm.Reason}
	}
	return l
}

// planFast denoises each frame within SliceTimeout, a stop or not.
func (l *lane) planFast(ctx context.Context, cfg *config, s journal.Slice) (work, error) {
	late := fmt.Errorf("no result after %v: %w", cfg.SliceTimeout, context.DeadlineExceeded)
	call := func(ctx context.Context, do func(context.Context) (*Denoised, error)) (*Denoised, error) {
		return l.call(context.WithoutCancel(ctx), cfg.SliceTimeout, late,
			func(ctx context.Context, _ func(func())) (*Denoised, error) { return do(ctx) })
	}
	w := work{known: l.known(ctx, s.Instance)}
	if cfg.Strength != 0 { // else nothing will be taken off
		w.measure = func(ctx context.Context, by Denoiser, f *derive.Frame) (*Denoised, error) {
			return call(ctx, func(ctx context.Context) (*Denoised, error) {
				told, err := by.Measure(ctx, f)
				return &Denoised{Told: told}, err
			})
		}
	}
	w.frame = func(ctx context.Context, by Denoiser, f *derive.Frame, known evidence.Sums) (*Denoised, error) {
		return call(ctx, func(ctx context.Context) (*Denoised, error) {
			return by.Denoise(ctx, f, known, cfg.Strength)
		})
	}
	return w, nil
}
