package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
)

// Errors of Flag besides ErrUID.
var (
	ErrFlag         = errors.New("invalid flag")
	ErrTooManyFlags = errors.New("too many flags for series that are not here")
	ErrPurged       = journal.ErrPurged
)

// Limits of a flag, in characters.
const (
	MaxWhy    = 200
	maxFlagBy = 64
)

// MaxFlagsAhead is how many series that are not here yet may be flagged. It limits
// who asks, not recovery: after a loss of the journal no series is here yet.
const MaxFlagsAhead = 256

// Flag is what a person asks for a series.
type Flag struct {
	Quality Quality
	Why     string // up to MaxWhy characters; kept in journal and spool, never logged
	By      string // who, or by what means; up to 64 characters
}

// Flagged says what a flag led to.
type Flagged struct {
	Series  string  `json:"series"`
	Quality Quality `json:"quality"`
	Known   bool    `json:"known"`  // images of the series are here; else the flag waits for them, until Until
	Images  int64   `json:"images"` // received
	Purged  int64   `json:"purged"` // of these, not held any more
	High    int64   `json:"high"`   // images of the high pass, finished ones included
	State   string  `json:"state,omitempty"`
	Detail  string  `json:"detail,omitempty"` // as in SeriesStatus.High

	Until time.Time `json:"until,omitzero"`
}

func (f Flag) validate() error {
	if !f.Quality.Valid() {
		return fmt.Errorf("%w: quality %.20q, need off, fast or high", ErrFlag, f.Quality)
	}
	for _, t := range []struct {
		name, text string
		most       int
	}{{"reason", f.Why, MaxWhy}, {"author", f.By, maxFlagBy}} {
		switch {
		case !utf8.ValidString(t.text) || strings.ContainsFunc(t.text, func(r rune) bool { return !unicode.IsPrint(r) }):
			return fmt.Errorf("%w: the %s has characters that cannot be shown", ErrFlag, t.name)
		case utf8.RuneCountInString(t.text) > t.most:
			return fmt.Errorf("%w: the %s is longer than %d characters", ErrFlag, t.name, t.most)
		}
	}
	return nil
}

// dicomUID checks the syntax of PS3.5 9.1.
func dicomUID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || len(part) > 1 && part[0] == '0' || strings.Trim(part, "0123456789") != "" {
			return false
		}
	}
	return true
}

// Flag records what a person asks for a series and makes its images follow: it
// wins over called AE title and rules, for images that are here and for those
// that come later. With Off nothing more is made; with Fast a high pass that is
// not finished is called off; with High it runs once the series is complete, and
// images that failed in it are tried again. Derived objects that exist stay.
//
// A series that is not here yet may be flagged: the flag waits for it for as
// long as retention keeps files. On nil the flag is durable. An error that is
// none of the above, ErrUID, ErrUnknownSeries included, may have left it behind;
// setting it again is always right.
func (p *Pipeline) Flag(ctx context.Context, seriesUID string, f Flag) (*Flagged, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	p.flagMu.Lock()
	defer p.flagMu.Unlock()
	s, err := p.jrnl.SeriesByKey(ctx, seriesUID)
	if err != nil {
		return nil, err
	}
	switch {
	case strings.HasPrefix(seriesUID, "?"):
		return nil, fmt.Errorf("flag %.80q: %w: objects without a series", seriesUID, ErrUID)
	case s == nil && !dicomUID(seriesUID):
		return nil, fmt.Errorf("flag %.80q: %w: no series has it, and it is not numbers with dots between", seriesUID, ErrUID)
	}
	if s == nil {
		n, err := p.jrnl.FlagsAhead(ctx, seriesUID)
		if err != nil {
			return nil, err
		}
		if n >= MaxFlagsAhead {
			return nil, fmt.Errorf("flag series %.80q: %w", seriesUID, ErrTooManyFlags)
		}
	}
	cfg := p.cfg.Load()
	before, err := p.jrnl.Flag(ctx, seriesUID)
	if err != nil {
		return nil, err
	}
	row := spool.Flag{Key: seriesUID, Quality: f.Quality, Why: f.Why, By: f.By, At: p.clock.Now().UTC()}
	if err := p.store.PutFlag(row); err != nil {
		return nil, err
	}
	modality := ""
	if s != nil {
		modality = s.Modality
	}
	got, err := p.jrnl.SetFlag(row, p.highStart(modality))
	if errors.Is(err, ErrPurged) { // nothing was recorded
		err = fmt.Errorf("flag series %.80q: %w", seriesUID, err)
		if before != nil {
			return nil, errors.Join(err, p.store.PutFlag(*before))
		}
		return nil, errors.Join(err, p.store.RemoveFlag(seriesUID))
	}
	if err != nil {
		return nil, err
	}
	if f.Quality != High {
		p.high.callOff(got.Series)
	}
	p.fast.wake.fire()
	p.high.wake.fire()
	// No text that a person wrote: it may name a patient.
	p.log.Info("series flagged", zap.String("series", seriesUID), zap.String("quality", string(f.Quality)), zap.Bool("known", got.Series > 0), zap.Int64("images", got.High))
	p.bus.send(Event{Time: row.At, Type: EventFlag, Series: seriesUID, SeriesID: got.Series, State: string(f.Quality)})
	out := &Flagged{Series: seriesUID, Quality: f.Quality, Known: got.Series > 0, Images: got.Originals, Purged: got.Gone, High: got.High}
	if !out.Known {
		out.Until = row.At.Add(cfg.AfterForward)
		return out, nil
	}
	if s, err = p.jrnl.SeriesByKey(ctx, seriesUID); err != nil || s == nil {
		return out, err
	}
	h, err := p.highStatus(ctx, *s)
	if err != nil {
		return nil, err
	}
	if h != nil {
		out.State, out.Detail = h.State, h.Detail
	}
	return out, nil
}

// recoverFlags makes the journal know the flags of the spool: one whose row was
// never committed, or all of them after a rebuild.
func (p *Pipeline) recoverFlags(ctx context.Context) error {
	return p.store.Flags(func(f spool.Flag) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		have, err := p.jrnl.Flag(ctx, f.Key)
		if err != nil {
			return err
		}
		if have != nil && have.At.Equal(f.At) && have.Quality == f.Quality {
			return nil
		}
		_, err = p.jrnl.SetFlag(f, p.highStart(""))
		if errors.Is(err, ErrPurged) { // Flag was about to take it back
			return p.store.RemoveFlag(f.Key)
		}
		return err
	}, func(name string, err error) error {
		p.met.integrity.Inc()
		p.log.Error("ALARM: flag unusable, set aside", zap.String("file", name), zap.Error(err))
		return p.store.SetAside(name)
	})
}

// dropFlags forgets flags that were set before a time and whose series has not
// come, or is not known any more.
func (p *Pipeline) dropFlags(ctx context.Context, before time.Time) error {
	p.flagMu.Lock()
	defer p.flagMu.Unlock()
	list, err := p.jrnl.StaleFlags(ctx, before, purgeBatch)
	if err != nil {
		return err
	}
	for _, f := range list {
		gone, err := p.jrnl.DropFlag(f)
		if err != nil {
			return err
		}
		if gone {
			if err := p.store.RemoveFlag(f.Key); err != nil {
				return err
			}
		}
	}
	return nil
}
