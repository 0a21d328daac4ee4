package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// Instance is a row of the instance table.
type Instance struct {
	ID, Series, Source int64
	Kind               spool.Kind
	SOP, Class, Syntax string
	Variant            int64
	File               string
	Offset, Size       int64
	CRC                uint32
	Received           time.Time
	Number, Frames     int64
	Quality            state.Quality
	Channel            state.Channel
	Rule               string
	Stage              state.Stage
	Reason             state.Reason
	Detail             string
	Attempts           int64
	Sigma              float64
	Gone               bool
	// Told is for AddDerived and Adopt: what the original tells of its series. It is not read back.
	Told evidence.Sums
}

// ErrExists says that the number of stored variants of this instance is not the expected one.
var ErrExists = errors.New("instance is in the journal already")

// Arrival is what AddOriginal needs to know.
type Arrival struct {
	Series   Series // Key and descriptive fields; Quality, Channel, Rule of this instance
	Instance Instance
	Start    Start    // of the high pass, if the image gets it
	Variants int64    // how many variants the caller believes are there; it becomes this one's number
	Dests    []string // destinations that get the original
	Found    bool     // by recovery: it may have been sent before
	Unwanted bool     // there are destinations, but none takes originals: nothing is owed if it passes
}

// Added is what AddOriginal did.
type Added struct {
	Series   int64
	Instance int64
	Received int64 // originals of the series, this one included
	Expected int64
	Reopened bool
	// Stage and Reason of the instance: those asked for, or what a flag made of them.
	Stage  state.Stage
	Reason state.Reason
}

// rank orders qualities by how much was asked for.
const rank = `CASE %s WHEN 'high' THEN 2 WHEN 'fast' THEN 1 ELSE 0 END`

// AddOriginal records a received file, its series, its deliveries and its place
// in the high lane. What a person asked for the series wins over the quality in
// a. On nil all of it is durable. ErrExists: look with Variants and decide again.
func (j *Journal) AddOriginal(a Arrival) (Added, error) {
	var out Added
	err := j.change("record instance", func(t *tx) error {
		out = Added{}
		s, in := a.Series, a.Instance
		at := nanos(in.Received)
		f, flagged, err := t.flag(s.Key)
		if err != nil {
			return err
		}
		if flagged && in.Stage != state.Conflict {
			decide(f, &in)
			s.Quality, s.Channel, s.Rule = in.Quality, in.Channel, in.Rule
		}
		was := state.SeriesReceiving
		err = t.row(`SELECT id, state FROM series WHERE key=?`, []any{s.Key}, &out.Series, &was)
		if errors.Is(err, sql.ErrNoRows) {
			err = t.row(`INSERT INTO series(key,study,modality,protocol,number,calling,called,host,state,expected,received,
				first_at,opened_at,last_at,quality,channel,rule)
				VALUES(?,?,?,?,?,?,?,?,'receiving',?,0,?,?,?,?,?,?) RETURNING id`,
				[]any{s.Key, s.Study, s.Modality, s.Protocol, s.Number, s.Calling, s.Called, s.Host, s.Expected, at, at,
					at, s.Quality, s.Channel, s.Rule}, &out.Series)
		}
		if err != nil {
			return err
		}
		var n int64
		if err := t.row(`SELECT count(*) FROM instance WHERE series=? AND sop=? AND kind='original'`, []any{out.Series,
			in.SOP}, &n); err != nil {
			return err
		}
		if n != a.Variants {
			return ErrExists
		}
		if err := t.row(`INSERT INTO instance(series,kind,source,sop,variant,class,syntax,file,off,size,crc,received,
				number,frames,added,quality,channel,rule,stage,reason,detail,unwanted)
			VALUES(?,'original',0,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) RETURNING id`,
			[]any{out.Series, in.SOP, a.Variants, in.Class, in.Syntax, in.File, in.Offset, in.Size, int64(in.CRC), at,
				in.Number, in.Frames, at,
				in.Quality, in.Channel, in.Rule, in.Stage, in.Reason, in.Detail, a.Unwanted},
			&out.Instance); err != nil {
			return err
		}
		out.Reopened, out.Stage, out.Reason = was != state.SeriesReceiving, in.Stage, in.Reason
		if err := t.row(`UPDATE series SET received=received+1, last_at=max(last_at,?1), expected=max(expected,?2),
				opened_at=CASE WHEN state='receiving' THEN opened_at ELSE ?1 END,
				reopened=reopened+(state<>'receiving'), state='receiving', complete_by='', complete_at=0,
				rule=CASE WHEN `+fmt.Sprintf(rank, "?3")+`>`+fmt.Sprintf(rank, "quality")+` THEN ?5 ELSE rule END,
				channel=CASE WHEN `+fmt.Sprintf(rank, "?3")+`>`+fmt.Sprintf(rank, "quality")+` THEN ?4 ELSE channel END,
				quality=CASE WHEN `+fmt.Sprintf(rank, "?3")+`>`+fmt.Sprintf(rank, "quality")+` THEN ?3 ELSE quality END
			WHERE id=?6 RETURNING received, expected`,
			[]any{at, s.Expected, s.Quality, s.Channel, s.Rule, out.Series}, &out.Received, &out.Expected); err != nil {
			return err
		}
		for _, d := range a.Dests {
			if err := t.deliver(out.Instance, out.Series, 2*out.Instance, d); err != nil {
				return err
			}
			if a.Found {
				if _, err := t.exec(`UPDATE delivery SET unsure=1 WHERE instance=? AND dest=?`, out.Instance,
					d); err != nil {
					return err
				}
			}
		}
		if in.Quality == state.High {
			return t.startHigh(a.Start, at, `i.id=?`, out.Instance)
		}
		return nil
	})
	return out, err
}

const instanceColumns = `i.id,i.series,i.source,i.kind,i.sop,i.class,i.syntax,i.variant,i.file,i.off,i.size,i.crc,i.received,
	i.number,i.frames,i.quality,i.channel,i.rule,i.stage,i.reason,i.detail,i.attempts,i.sigma,i.gone`

// read fills in from a row of instanceColumns, behind the columns before.
func (i *Instance) read(scan func(...any) error, before ...any) error {
	var received, gone int64
	err := scan(append(before, &i.ID, &i.Series, &i.Source, &i.Kind, &i.SOP, &i.Class, &i.Syntax, &i.Variant, &i.File,
		&i.Offset, &i.Size, &i.CRC, &received, &i.Number, &i.Frames,
		&i.Quality, &i.Channel, &i.Rule, &i.Stage, &i.Reason, &i.Detail, &i.Attempts, &i.Sigma, &gone)...)
	i.Received, i.Gone = fromNanos(received), gone != 0
	return err
}

func (j *Journal) instances(ctx context.Context, where string, args ...any) ([]Instance, error) {
	return list(ctx, j, "read instances", `SELECT `+instanceColumns+` FROM instance i `+where, args,
		func(scan func(...any) error) (in Instance, err error) {
			err = in.read(scan)
			return in, err
		})
}

// Variants lists what is stored under an instance UID in a series, first one first.
func (j *Journal) Variants(ctx context.Context, seriesKey, sop string) ([]Instance, error) {
	return j.instances(ctx, `WHERE series=(SELECT id FROM series WHERE key=?) AND sop=? AND kind='original' ORDER BY
		variant`, seriesKey, sop)
}

// Instance reads one row; nil when there is none.
func (j *Journal) Instance(ctx context.Context, id int64) (*Instance, error) {
	l, err := j.instances(ctx, `WHERE id=?`, id)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return &l[0], nil
}

// SeriesInstances lists the rows of a series in order of arrival, at most n.
func (j *Journal) SeriesInstances(ctx context.Context, series int64, n int) ([]Instance, error) {
	return j.instances(ctx, `WHERE series=? ORDER BY id LIMIT ?`, series, n)
}

// Original is the n-th original of a series, from 1, by instance number, then
// arrival, without those in conflict; nil when there are not so many.
func (j *Journal) Original(ctx context.Context, series int64, n int) (*Instance, error) {
	if n < 1 {
		return nil, nil
	}
	l, err := j.instances(ctx, `WHERE series=? AND kind='original' AND variant=0 ORDER BY number, id LIMIT 1 OFFSET ?`,
		series, n-1)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return &l[0], nil
}

// Derived finds what was made of an original in a quality; nil when there is
// nothing, or its file is gone.
func (j *Journal) Derived(ctx context.Context, original int64, quality state.Quality) (*Instance, error) {
	l, err := j.instances(ctx, `WHERE source>0 AND source=? AND quality=? AND gone=0 ORDER BY id DESC LIMIT 1`,
		original, quality)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return &l[0], nil
}

// StageCount is how many originals of a series are in a stage for a reason.
type StageCount struct {
	Stage  state.Stage
	Reason state.Reason
	Count  int64
}

// StageCounts counts the originals of a series.
func (j *Journal) StageCounts(ctx context.Context, series int64) ([]StageCount, error) {
	return list(ctx, j, "count instances", `SELECT stage, reason, count(*) FROM instance WHERE series=? AND
		kind='original' GROUP BY stage, reason ORDER BY stage, reason`,
		[]any{series}, func(scan func(...any) error) (c StageCount, err error) {
			err = scan(&c.Stage, &c.Reason, &c.Count)
			return c, err
		})
}

// Replace gives an instance whose file was lost or damaged a new file, and
// queues again what could not be done without it.
func (j *Journal) Replace(id int64, with Instance, dests []string, start Start) error {
	return j.change("replace damaged file", func(t *tx) error {
		with := with
		var series int64
		var key string
		var lost bool
		if err := t.row(`SELECT i.series, s.key, i.stage='lost' OR i.stage='failed' AND i.reason='damaged' FROM instance
			i JOIN series s ON s.id=i.series WHERE i.id=?`, []any{id}, &series, &key, &lost); err != nil {
			return err
		}
		if lost {
			f, flagged, err := t.flag(key)
			if err != nil {
				return err
			}
			if flagged {
				decide(f, &with)
			}
			if _, err := t.exec(`UPDATE instance SET stage=?, reason=?, detail=?, attempts=0, next_at=0 WHERE id=?`,
				with.Stage, with.Reason, with.Detail, id); err != nil {
				return err
			}
			for _, d := range dests {
				if err := t.deliver(id, series, 2*id, d); err != nil {
					return err
				}
			}
		}
		if _, err := t.exec(`UPDATE instance SET file=?, off=?, size=?, crc=?, class=?, syntax=?, gone=0 WHERE id=?`,
			with.File, with.Offset, with.Size, int64(with.CRC), with.Class, with.Syntax, id); err != nil {
			return err
		}
		// It has a place in the high lane only if it was asked for.
		if err := t.startHigh(start, nanos(with.Received), `i.id=? AND EXISTS (SELECT 1 FROM high h WHERE
			h.original=i.id AND h.reason IN ('lost','damaged'))`, id); err != nil {
			return err
		}
		_, err := t.exec(`UPDATE delivery SET state='queued', detail='', next_at=0 WHERE instance=? AND
			state='damaged'`, id)
		return err
	})
}

// Forget undoes AddOriginal for an image that could not be acknowledged. Once
// any of it has been used it stays: a copy too many in the queue is harmless.
func (j *Journal) Forget(id int64) (bool, error) {
	var gone bool
	err := j.change("forget instance", func(t *tx) error {
		gone = false
		var n int
		if err := t.row(`SELECT count(*) FROM instance i WHERE i.id=?1 AND (i.stage IN ('denoised','failed') OR
			i.attempts>0
			OR EXISTS (SELECT 1 FROM delivery d WHERE d.instance=?1 AND (d.state<>'queued' OR
			d.attempts>0)))`, []any{id}, &n); err != nil || n > 0 {
			return err
		}
		gone = true
		for _, q := range []string{`UPDATE series SET received=received-1 WHERE id=(SELECT series FROM instance WHERE
			id=?)`, `DELETE FROM high WHERE original=?`, `DELETE FROM delivery WHERE instance=?`,
			`DELETE FROM instance WHERE id=?`} {
			if _, err := t.exec(q, id); err != nil {
				return err
			}
		}
		return nil
	})
	return gone, err
}

// Raise notes a higher quality asked for by sending the same image again. What a
// person asked for the series stands.
func (j *Journal) Raise(id int64, quality state.Quality, channel state.Channel, rule string, start Start,
	at time.Time) error {
	return j.change("raise quality", func(t *tx) error {
		var key string
		if err := t.row(`SELECT s.key FROM series s JOIN instance i ON i.series=s.id WHERE i.id=?`, []any{id},
			&key); err != nil {
			return err
		}
		if _, flagged, err := t.flag(key); err != nil || flagged {
			return err
		}
		_, err := t.exec(`UPDATE series SET quality=?2, channel=?3, rule=?4 WHERE id=(SELECT series FROM instance WHERE
			id=?1) AND `+
			fmt.Sprintf(rank, "?2")+`>`+fmt.Sprintf(rank, "quality"), id, quality, channel, rule)
		if err != nil {
			return err
		}
		r, err := t.exec(`UPDATE instance SET quality=?2, channel=?3, rule=?4,
			stage=CASE WHEN stage='passed' AND reason='off' THEN 'queued' ELSE stage END,
			reason=CASE WHEN stage='passed' AND reason='off' THEN '' ELSE reason END
			WHERE id=?1 AND gone=0 AND
			`+fmt.Sprintf(rank, "?2")+`>`+fmt.Sprintf(rank, "quality"), id, quality, channel, rule)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 || quality != state.High {
			return err
		}
		return t.startHigh(start, nanos(at), `i.id=?`, id)
	})
}

// Bytes is the sum of the data sets whose files are kept.
func (j *Journal) Bytes(ctx context.Context) (int64, error) {
	var n int64
	if err := j.db.QueryRowContext(ctx, `SELECT coalesce(sum(size),0) FROM instance WHERE
		gone=0`).Scan(&n); err != nil {
		return 0, journalErr("add up spool", err)
	}
	return n, nil
}
