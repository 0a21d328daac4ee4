package journal

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// ErrPurged says that no original of the series is held any more.
var ErrPurged = errors.New("the originals were delivered and removed")

func (t *tx) flag(key string) (f spool.Flag, ok bool, err error) {
	var at int64
	err = t.row(`SELECT quality, why, who, at FROM flag WHERE key=?`, []any{key}, &f.Quality, &f.Why, &f.By, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return spool.Flag{}, false, nil
	}
	f.Key, f.At = key, fromNanos(at)
	return f, err == nil, err
}

// Flagged is what SetFlag found.
type Flagged struct {
	Series    int64 // row of the series; 0: it is not here yet
	Originals int64 // images received, without those in conflict
	Gone      int64 // of these, removed from the spool after delivery
	High      int64 // images that the high pass covers now, finished ones included
}

// SetFlag records what a person asks for a series, which may not be here yet,
// and makes the images that are here follow: with high each that may be
// denoised gets its place in the high lane, with fast those that wait there
// lose it, with off those that nothing was made of yet are passed on as they
// came. What is finished stays. On ErrPurged nothing changes.
func (j *Journal) SetFlag(f spool.Flag, start Start) (Flagged, error) {
	var out Flagged
	err := j.change("record flag", func(t *tx) error {
		out = Flagged{}
		at := nanos(f.At)
		err := t.row(`SELECT id FROM series WHERE key=?`, []any{f.Key}, &out.Series)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if _, err := t.exec(`INSERT INTO flag(key,quality,why,who,at) VALUES(?,?,?,?,?) ON CONFLICT(key) DO UPDATE SET
			quality=excluded.quality, why=excluded.why, who=excluded.who, at=excluded.at`,
			f.Key, f.Quality, f.Why, f.By, at); err != nil {
			return err
		}
		if out.Series == 0 {
			return nil
		}
		const mine = `series=? AND kind='original' AND variant=0 AND gone=0`
		if _, err := t.exec(`UPDATE series SET quality=?, channel='flag', rule='' WHERE id=?`, f.Quality,
			out.Series); err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE instance SET quality=?, channel='flag', rule='' WHERE `+mine, f.Quality,
			out.Series); err != nil {
			return err
		}
		if f.Quality == state.Off {
			_, err = t.exec(`UPDATE instance SET stage='passed', reason='off', detail='' WHERE stage='queued' AND
				`+mine, out.Series)
		} else {
			_, err = t.exec(`UPDATE instance SET stage='queued', reason='', detail='', attempts=0, next_at=0 WHERE
				stage='passed' AND reason='off' AND `+mine, out.Series)
		}
		if err != nil {
			return err
		}
		if f.Quality == state.High {
			err = t.startHigh(start, at, `i.series=?`, out.Series)
		} else {
			_, err = t.exec(`DELETE FROM high WHERE series=? AND stage<>'denoised'`, out.Series)
		}
		if err != nil {
			return err
		}
		err = t.row(`SELECT count(*), coalesce(sum(gone<>0),0), (SELECT count(*) FROM high WHERE series=?1) FROM
			instance WHERE series=?1 AND kind='original' AND variant=0`,
			[]any{out.Series}, &out.Originals, &out.Gone, &out.High)
		if err == nil && f.Quality == state.High && out.High == 0 && out.Gone > 0 && out.Gone == out.Originals {
			return ErrPurged
		}
		return err
	})
	return out, err
}

// Flag reads the flag of a series; nil when there is none.
func (j *Journal) Flag(ctx context.Context, key string) (*spool.Flag, error) {
	l, err := j.flags(ctx, `WHERE key=?`, key)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return &l[0], nil
}

// FlagsAhead counts the flags of other series than key that are not here.
func (j *Journal) FlagsAhead(ctx context.Context, key string) (n int64, err error) {
	if err := j.db.QueryRowContext(ctx, `SELECT count(*) FROM flag f WHERE f.key<>? AND NOT EXISTS (SELECT 1 FROM series
		s WHERE s.key=f.key)`, key).Scan(&n); err != nil {
		return 0, journalErr("count flags", err)
	}
	return n, nil
}

// StaleFlags lists up to n flags set before the given time for series that are
// not here, or not here any more.
func (j *Journal) StaleFlags(ctx context.Context, before time.Time, n int) ([]spool.Flag, error) {
	return j.flags(ctx, `f WHERE at<? AND NOT EXISTS (SELECT 1 FROM series s WHERE s.key=f.key) ORDER BY at LIMIT ?`,
		nanos(before), n)
}

func (j *Journal) flags(ctx context.Context, where string, args ...any) ([]spool.Flag, error) {
	return list(ctx, j, "read flags", `SELECT key, quality, why, who, at FROM flag `+where, args,
		func(scan func(...any) error) (f spool.Flag, err error) {
			var at int64
			err = scan(&f.Key, &f.Quality, &f.Why, &f.By, &at)
			f.At = fromNanos(at)
			return f, err
		})
}

// DropFlag forgets a flag unless its series has come or it was set anew. It
// tells whether it did.
func (j *Journal) DropFlag(f spool.Flag) (bool, error) {
	var gone bool
	err := j.change("forget flag", func(t *tx) error {
		r, err := t.exec(`DELETE FROM flag WHERE key=?1 AND at=?2 AND NOT EXISTS (SELECT 1 FROM series s WHERE
			s.key=?1)`, f.Key, nanos(f.At))
		if err != nil {
			return err
		}
		n, err := r.RowsAffected()
		gone = n > 0
		return err
	})
	return gone, err
}

// decide makes an image follow the flag of its series.
func decide(f spool.Flag, in *Instance) {
	in.Quality, in.Channel, in.Rule = f.Quality, state.ChannelFlag, ""
	switch {
	case f.Quality == state.Off && in.Stage == state.Queued:
		in.Stage, in.Reason, in.Detail = state.Passed, state.ReasonOff, ""
	case f.Quality != state.Off && in.Stage == state.Passed && in.Reason == state.ReasonOff:
		in.Stage, in.Reason, in.Detail = state.Queued, "", ""
	}
}
