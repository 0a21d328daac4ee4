package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// PermanentError marks a failure that trying again cannot mend. Reason is a
// stable word for status and metrics.
type PermanentError struct {
	Reason state.Reason
	Err    error
}

func (e *PermanentError) Error() string { return string(e.Reason) + ": " + e.Err.Error() }

func (e *PermanentError) Unwrap() error { return e.Err }

const productName = "denoised"

// params are the same for the same original, model, strength, quality and
// program version, so that the derived object has the same UIDs however often it is
// made. Its pixels are the same if the series has told the same of its noise. Its creation time is therefore the time
// the original was received, and its series time stays the source's: when the series was first seen would not survive a
// rebuild of the journal.
func params(cfg *config, by Denoiser, in journal.Instance, q Quality) derive.Params {
	return derive.Params{Model: by.Model(), Strength: cfg.Strength, Quality: string(q), Product: productName,
		Version: cfg.Version, Now: in.Received}
}

// work is what is to be made of one original.
type work struct {
	in      journal.Instance
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
	fill state.Reason
}

// step names the durable step for tests.
func (w *work) step() string {
	if w.quality == High {
		return "high"
	}
	return "derive"
}

// known is what the series of an original told so far. It is a help, and no image waits for it.
func (p *shared) known(ctx context.Context, in journal.Instance) evidence.Sums {
	told, err := p.jrnl.Told(context.WithoutCancel(ctx), in.Series)
	if err != nil {
		p.log.Warn("image is denoised without what its series told", zap.String("instance", in.SOP), zap.Error(err))
	}
	return told
}

// write makes the derived object of one original durable and returns the row
// that the journal is to have of it, and by what it was made. Errors that are not *PermanentError may be
// tried again.
func (p *shared) write(ctx context.Context, cfg *config, w work) (row journal.Instance, by Denoiser, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PermanentError{Reason: state.ReasonPanic, Err: fmt.Errorf("panic: %v", v)}
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
			return row, by, &PermanentError{Reason: state.ReasonDamaged, Err: fmt.Errorf("%w: %w", spool.ErrDamaged,
				err)}
		}
		return row, by, err
	}
	o, err := scan(f, in.Offset+in.Size)
	if o == nil {
		return row, by, &PermanentError{Reason: state.ReasonUnparseable, Err: err}
	}
	if v := derive.Inspect(o, cfg.Admit...); !v.OK() { // by this version, and by what is admitted now
		return row, by, &PermanentError{Reason: state.Reason(v.Reason), Err: &derive.RefusedError{Verdict: v}}
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
	fr := &frames{work: w, o: o, by: by, count: derive.Frames(o)}
	if err := fr.measured(ctx); err != nil {
		return row, by, err
	}
	fr.ahead = derive.NewAhead(fr.count, cap(w.tokens), func(i int) (*Denoised, error) { return fr.frame(ctx, i) })
	defer fr.ahead.Wait()
	par := params(cfg, by, in, w.quality)
	par.Related, par.Remark = w.related, fr.checked.Remark
	if w.fill != "" {
		par.Copy = "the method failed (" + string(w.fill) + ")"
	}
	p.hook(w.step() + "-write")
	info, err := derive.Write(t, o, par, fr.next)
	if err != nil {
		var perm *PermanentError
		if errors.As(err, &perm) || errors.Is(err, errDraining) || errors.Is(err, spool.ErrNoSpace) || fr.err != nil {
			return row, by, err
		}
		return row, by, &PermanentError{Reason: state.ReasonDerive, Err: err}
	}
	p.hook(w.step() + "-written")
	sop, _ := derive.UIDs(o, par)
	made, serr := scan(t, t.Offset()+t.Size())
	if serr != nil || made == nil || made.String(dcm.SOPInstanceUID) != sop {
		return row, by, &PermanentError{Reason: state.ReasonDerive,
			Err: fmt.Errorf("derived object does not read back: %w", serr)}
	}
	if err := derive.Verify(o, made); err != nil {
		return row, by, &PermanentError{Reason: state.ReasonDerive, Err: err}
	}
	row = journal.Instance{SOP: sop, Class: made.String(dcm.SOPClassUID), Syntax: made.TransferSyntaxUID(),
		Offset: t.Offset(), Size: t.Size(), CRC: t.CRC(),
		Received: in.Received, Number: in.Number, Frames: in.Frames, Quality: w.quality, Channel: in.Channel,
		Rule: in.Rule, Sigma: fr.sigma(), Told: fr.told,
		File: spool.FileName(spool.Derived, in.File, sop, "")}
	switch {
	case w.fill != "":
		row.Reason = w.fill
	case fr.checked.Reason() != "":
		row.Reason, row.Detail = state.Reason(fr.checked.Reason()), fr.checked.String()
	case info.Changed == 0:
		row.Reason = state.ReasonUnchanged
	}
	rec := spool.Record{Kind: spool.Derived, Quality: w.quality, Received: in.Received, Source: in.File,
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
		return out, plausible(in, out.Pixels)
	})
}

// turn reads frame i and does something with it when a token is free.
func (f *frames) turn(ctx context.Context, i int, do func(context.Context, *derive.Frame) (*Denoised,
	error)) (out *Denoised, err error) {
	defer func() {
		if v := recover(); v != nil {
			out, err = nil, &PermanentError{Reason: state.ReasonPanic, Err: fmt.Errorf("frame %d: panic: %v", i, v)}
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
		return nil, &PermanentError{Reason: state.ReasonDerive, Err: fmt.Errorf("read frame %d: %w", i, err)}
	}
	if out, err = do(ctx, in); err != nil {
		return nil, fmt.Errorf("frame %d: %w", i, err)
	}
	return out, nil
}
