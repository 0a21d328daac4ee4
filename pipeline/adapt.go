package pipeline

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// Adaptive is a HighDenoiser that can adapt its networks to a series before the high pass of its
// first image.
type Adaptive interface {
	HighDenoiser
	// Adapts tells whether it is to. It never changes.
	Adapts() bool
	// Adapt returns the denoiser for the high pass of one series, of which frames are some, in the
	// order of the series, and known is what all of them told. It may take minutes and keep the
	// frames; ctx and progress are as in DenoiseHigh. Where nothing is gained the denoiser is what
	// it was, and note says why; but for Fitted its Model is the same in either case, so that a series
	// stays one whatever happens. Without frames it returns at once.
	Adapt(ctx context.Context, frames []*derive.Frame, known evidence.Sums,
		progress func(done, total int)) (by HighDenoiser, note string, err error)
}

// adapted is the denoiser of the series that the high lane has in hand, which is one at a time. Nothing of it is kept:
// another process adapts again, perhaps to more of the series. An object that is made stays as it is.
type adapted struct {
	series int64
	model  derive.ModelInfo // of what was adapted
	by     HighDenoiser     // nil: nothing is in hand
}

// Of a series, so many frames are adapted to at most, and about so many pixels.
const (
	mostAdaptFrames = 32
	mostAdaptPixels = 8 << 20
)

// adapt returns the denoiser for the high pass of an image: by, adapted to its series if it is to.
// Adapting is a help, and no image waits for one that fails. A copy asks for nothing but the model.
func (l *lane) adapt(ctx context.Context, cfg *config, in journal.Instance, by Denoiser, fill bool) (Denoiser, error) {
	a, ok := by.(Adaptive)
	if !ok || !a.Adapts() {
		return by, nil
	}
	if h := l.adapted; h.by != nil && h.series == in.Series && h.model == a.Model() {
		return h.by, nil
	}
	if fill {
		h, _, err := a.Adapt(ctx, nil, nil, nil)
		return h, err
	}
	l.adapted = adapted{}
	start := time.Now()
	frames, err := l.adaptFrames(ctx, in.Series)
	call := adaptCall{HighDenoiser: a, to: a, frames: frames}
	if err == nil {
		_, err = l.callHigh(ctx, cfg, &call, nil, l.known(ctx, in),
			func(done, total int) { l.advance(in, 0, done, total) })
	}
	switch {
	case ctx.Err() != nil:
		return nil, errDraining
	case err != nil: // what it is without a series is right, too
		l.log.Warn("networks not adapted to the series", zap.Int64("series", in.Series), zap.Error(err))
		if call.by, call.note, err = a.Adapt(ctx, nil, nil, nil); err != nil {
			return nil, err
		}
	default:
		l.log.Info("networks adapted to the series", zap.Int64("series", in.Series), zap.Int("frames", len(frames)),
			zap.String("result", call.note), zap.Duration("took", time.Since(start)))
	}
	l.adapted = adapted{in.Series, a.Model(), call.by}
	return call.by, nil
}

// adaptFrames reads frames of a series, evenly spread over its denoised images. One that cannot be
// read is left out.
func (l *lane) adaptFrames(ctx context.Context, series int64) (frames []*derive.Frame, err error) {
	counts, err := l.jrnl.StageCounts(ctx, series)
	if err != nil {
		return nil, err
	}
	images := 0
	for _, c := range counts {
		images += int(c.Count)
	}
	most := mostAdaptFrames // fewer of larger frames
	step := func(of int) int { return max(1, (of+most-1)/most) }
	for n := 1; n <= images && len(frames) < most; n += step(images) {
		in, err := l.jrnl.Original(ctx, series, n)
		if err != nil || in == nil {
			return frames, err
		}
		if in.Stage != state.Denoised {
			continue
		}
		o, file, err := l.open(*in)
		if err != nil {
			l.log.Warn("image not adapted to", zap.String("instance", in.SOP), zap.Error(err))
			continue
		}
		derive.Inspect(o, l.cfg.Load().Admit...) // admits what the configuration does
		count := derive.Frames(o)
		for k := 0; k < count && len(frames) < most; k += step(count * images) {
			f, err := derive.ReadFrame(o, k)
			if err != nil {
				l.log.Warn("frame not adapted to", zap.String("instance", in.SOP), zap.Int("frame", k), zap.Error(err))
				break
			}
			most = max(1, min(most, mostAdaptPixels/len(f.Pixels)))
			frames = append(frames, f)
		}
		if err := errors.Join(ctx.Err(), file.Close()); err != nil {
			return nil, err
		}
	}
	return frames, nil
}

// adaptCall runs Adapt under the guard of the full method: its panics, its silence and its pauses.
type adaptCall struct {
	HighDenoiser
	to     Adaptive
	frames []*derive.Frame
	// by and note are the result, if DenoiseHigh returned without an error.
	by   HighDenoiser
	note string
}

func (c *adaptCall) DenoiseHigh(ctx context.Context, _ *derive.Frame, known evidence.Sums, _ float64,
	progress func(done, total int)) (*Denoised, error) {
	by, note, err := c.to.Adapt(ctx, c.frames, known, progress)
	if err != nil {
		return nil, err
	}
	c.by, c.note = by, note
	return &Denoised{}, nil
}
