package journal

import (
	"context"
	"fmt"
	"time"

	"github.com/diffdenoise/denoised/pipeline/state"
)

// StopHighAfter is how many images of a series may fail before one succeeds;
// then its high pass is given up.
const StopHighAfter = 5

// Start is the state in which an image enters the high lane: the zero value
// waits, one with a reason has failed at once.
type Start struct {
	Reason state.Reason
	Detail string
}

func (s Start) stage() state.Stage {
	if s.Reason != "" {
		return state.Failed
	}
	return state.Queued
}

// denoisable: the image may be denoised by what its header says, and is held.
var denoisable = `i.kind='original' AND i.variant=0 AND i.gone=0 AND (i.stage IN ('queued','denoised')
	OR i.stage='failed' AND i.reason<>'damaged' OR i.stage='passed' AND i.reason IN (` + state.ImpossibleSQL() + `))`

// startHigh gives the images that fulfil where a place in the high lane. One
// that failed there starts again, others keep their state.
func (t *tx) startHigh(s Start, at int64, where string, args ...any) error {
	_, err := t.exec(`INSERT INTO high(original,series,stage,reason,detail,since) SELECT i.id,i.series,?,?,?,? FROM
		instance i WHERE `+where+` AND `+denoisable+`
		ON CONFLICT(original) DO UPDATE SET stage=excluded.stage, reason=excluded.reason, detail=excluded.detail,
		fill=0, attempts=0, next_at=0, since=excluded.since WHERE high.stage='failed'`,
		append([]any{s.stage(), s.Reason, clip(s.Detail), at}, args...)...)
	return err
}

// RestartHigh is for the start of a process. start tells how images of a modality enter the lane now:
// those that wait for the high pass go on, or, if it has a reason, end with it; those that ended with
// state.ReasonNotPossible under an earlier model start again, unless it has. That goes for images that wait
// to become copies too: made by another model they would be a series of their own.
func (j *Journal) RestartHigh(start func(modality string) Start) error {
	const of = ` AND series IN (SELECT id FROM series WHERE modality=?)`
	return j.change("restart high lane", func(t *tx) error {
		modalities, err := t.highModalities()
		if err != nil {
			return err
		}
		for _, modality := range modalities {
			s := start(modality)
			if s.Reason != "" {
				_, err = t.exec(`UPDATE high SET stage='failed', reason=?, detail=?, fill=0 WHERE stage='queued'`+of,
					s.Reason, clip(s.Detail), modality)
			} else {
				_, err = t.exec(`UPDATE high SET stage='queued', reason='', detail='', attempts=0, next_at=0
					WHERE stage='failed' AND reason='not-possible'
					AND EXISTS (SELECT 1 FROM instance i WHERE i.id=original AND i.gone=0)`+of, modality)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// highModalities are those of the images that RestartHigh may change.
func (t *tx) highModalities() (list []string, err error) {
	s, err := t.stmt(`SELECT DISTINCT modality FROM series WHERE id IN (SELECT series FROM high
		WHERE stage='queued' OR stage='failed' AND reason='not-possible')`)
	if err != nil {
		return nil, err
	}
	rows, err := s.Query()
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var m string
		if err := rows.Scan(&m); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, rows.Err()
}

// High reads the place of an original in the high lane; nil when it has none.
func (j *Journal) High(ctx context.Context, original int64) (*HighRow, error) {
	l, err := j.highRows(ctx, `WHERE original=?`, original)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return &l[0], nil
}

func (t *tx) addHigh(original int64, d Instance, fill bool, dests []string, at time.Time) error {
	id, series, err := t.insertDerived(original, d, at)
	if err != nil {
		return err
	}
	if _, err := t.exec(`INSERT INTO high(original,series,stage,reason,detail,fill,since) VALUES(?,?,'denoised',?,?,?,?)
		ON CONFLICT(original) DO UPDATE SET stage='denoised', reason=excluded.reason, detail=excluded.detail,
		fill=excluded.fill`,
		original, series, d.Reason, clip(d.Detail), fill, nanos(at)); err != nil {
		return err
	}
	for _, dest := range dests {
		if err := t.deliver(id, series, 2*id+1, dest); err != nil {
			return err
		}
	}
	return t.settleHigh(series)
}

// settleHigh looks at a series after one of its images: when the method has
// worked for some and no other waits, those that failed become copies, so that
// the derived series has no holes; when it has failed for StopHighAfter and
// worked for none, the others are not tried.
func (t *tx) settleHigh(series int64) error {
	var queued, good, failed, stopped int64
	if err := t.row(`SELECT coalesce(sum(stage='queued'),0), coalesce(sum(stage='denoised' AND fill=0),0),
		coalesce(sum(stage='failed' AND fill=1),0),
		coalesce(sum(stage='failed' AND reason='stopped'),0) FROM high WHERE
		series=?`, []any{series}, &queued, &good, &failed, &stopped); err != nil {
		return err
	}
	var err error
	switch {
	case queued == 0 && good > 0 && failed > 0 && stopped == 0:
		_, err = t.exec(`UPDATE high SET stage='queued', attempts=0, next_at=0 WHERE series=? AND stage='failed' AND
			fill=1`, series)
	case queued > 0 && good == 0 && failed >= StopHighAfter:
		_, err = t.exec(`UPDATE high SET stage='failed', reason='stopped', detail=? WHERE series=? AND stage='queued'`,
			fmt.Sprintf("not tried: %d images of the series failed and none succeeded", failed), series)
	}
	return err
}

// HighCount is how many images of a series are in a stage of the high lane.
type HighCount struct {
	Stage  state.Stage
	Reason state.Reason
	Fill   bool
	Count  int64
	Detail string // of one of them
}

// HighCounts counts the images of a series in the high lane.
func (j *Journal) HighCounts(ctx context.Context, series int64) ([]HighCount, error) {
	return list(ctx, j, "count high lane", `SELECT stage, reason, fill, count(*), max(detail) FROM high WHERE series=?
		GROUP BY stage, reason, fill ORDER BY stage, reason, fill`,
		[]any{series}, func(scan func(...any) error) (c HighCount, err error) {
			err = scan(&c.Stage, &c.Reason, &c.Fill, &c.Count, &c.Detail)
			return c, err
		})
}

// HighRow is the place of one original in the high lane.
type HighRow struct {
	Original int64
	Stage    state.Stage
	Reason   state.Reason
	Detail   string
	Fill     bool
	Attempts int64
}

// SeriesHigh lists the images of a series in the high lane, at most n.
func (j *Journal) SeriesHigh(ctx context.Context, series int64, n int) ([]HighRow, error) {
	return j.highRows(ctx, `WHERE series=? ORDER BY original LIMIT ?`, series, n)
}

func (j *Journal) highRows(ctx context.Context, where string, args ...any) ([]HighRow, error) {
	return list(ctx, j, "read high lane", `SELECT original, stage, reason, detail, fill, attempts FROM high `+where,
		args, func(scan func(...any) error) (r HighRow, err error) {
			err = scan(&r.Original, &r.Stage, &r.Reason, &r.Detail, &r.Fill, &r.Attempts)
			return r, err
		})
}
