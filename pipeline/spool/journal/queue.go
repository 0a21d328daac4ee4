package journal

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/diffdenoise/denoised/pipeline/state"
)

// ErrNotWanted says that an image is not waiting any more for what was made of it.
var ErrNotWanted = errors.New("it was called off")

// No pause is as long as farAhead: a time beyond it was written while the clock
// was wrong, and means now.
const farAhead = time.Hour

// due are the arguments of "next_at<=? OR next_at>?".
func due(now time.Time) []any { return []any{nanos(now), nanos(now.Add(farAhead))} }

// NextSlices returns up to n queued originals of the first series after the
// given series id (wrapping round), oldest first.
func (j *Journal) NextSlices(ctx context.Context, after int64, now time.Time, n int) ([]Instance, error) {
	for _, cond := range []string{">?", "<=?"} {
		var series int64
		err := j.db.QueryRowContext(ctx, `SELECT series FROM instance WHERE stage='queued' AND (next_at<=? OR next_at>?) AND series`+cond+` ORDER BY series LIMIT 1`, append(due(now), after)...).Scan(&series)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return nil, journalErr("read slice queue", err)
		}
		return j.instances(ctx, `WHERE stage='queued' AND (next_at<=? OR next_at>?) AND series=? ORDER BY id LIMIT ?`, append(due(now), series, n)...)
	}
	return nil, nil
}

// NextRetry is when the earliest waiting slice may be tried; zero when none waits.
func (j *Journal) NextRetry(ctx context.Context) (time.Time, error) {
	var at sql.NullInt64
	if err := j.db.QueryRowContext(ctx, `SELECT min(next_at) FROM instance WHERE stage='queued' AND next_at>0`).Scan(&at); err != nil {
		return time.Time{}, journalErr("read slice queue", err)
	}
	return fromNanos(at.Int64), nil
}

// AddDerived records a derived object of the fast lane, marks its original as
// denoised, with d's reason and detail, adds what it told to that of its series, and
// queues the deliveries, all at once.
// ErrNotWanted: nobody waits for it any more, nothing was recorded.
func (j *Journal) AddDerived(original int64, d Instance, dests []string) error {
	return j.change("record derived object", func(t *tx) error {
		var n int
		if err := t.row(`SELECT count(*) FROM instance WHERE id=? AND stage='queued'`, []any{original}, &n); err != nil {
			return err
		}
		if n == 0 {
			return ErrNotWanted
		}
		return t.addDerived(original, d, dests)
	})
}

func (t *tx) addDerived(original int64, d Instance, dests []string) error {
	id, series, err := t.insertDerived(original, d, d.Received)
	if err != nil {
		return err
	}
	if _, err := t.exec(`UPDATE instance SET stage='denoised', reason=?, detail=?, sigma=? WHERE id=?`, d.Reason, clip(d.Detail), d.Sigma, original); err != nil {
		return err
	}
	for _, dest := range dests {
		if err := t.deliver(id, series, 2*original+1, dest); err != nil {
			return err
		}
	}
	return t.tell(original, series, d.Told)
}

// insertDerived records the row of a derived object, or gives the row of the
// same object its new file.
func (t *tx) insertDerived(original int64, d Instance, added time.Time) (id, series int64, err error) {
	if err := t.row(`SELECT series FROM instance WHERE id=?`, []any{original}, &series); err != nil {
		return 0, 0, err
	}
	err = t.row(`INSERT INTO instance(series,kind,source,sop,variant,class,syntax,file,off,size,crc,received,number,frames,added,quality,channel,rule,stage,reason,detail,sigma)
		VALUES(?,'derived',?,?,0,?,?,?,?,?,?,?,?,?,?,?,?,?,'made','','',?) ON CONFLICT DO UPDATE SET file=excluded.file, off=excluded.off, size=excluded.size, crc=excluded.crc, gone=0 RETURNING id`,
		[]any{series, original, d.SOP, d.Class, d.Syntax, d.File, d.Offset, d.Size, int64(d.CRC), nanos(d.Received), d.Number, d.Frames, nanos(added), d.Quality, d.Channel, d.Rule, d.Sigma}, &id)
	return id, series, err
}

// EndSlice gives an original its final stage without a derived object. file is
// the one that was looked at: if it has been replaced meanwhile, or the slice is not
// waited for any more, nothing changes.
func (j *Journal) EndSlice(id int64, file string, stage state.Stage, reason state.Reason, detail string) error {
	return j.change("record result of slice", func(t *tx) error {
		_, err := t.exec(`UPDATE instance SET stage=?, reason=?, detail=? WHERE id=? AND file=? AND stage='queued'`, stage, reason, clip(detail), id, file)
		return err
	})
}

// RetrySlice counts a failed attempt and puts the slice back for later.
func (j *Journal) RetrySlice(id int64, next time.Time, detail string) error {
	return j.change("record failed attempt of slice", func(t *tx) error {
		_, err := t.exec(`UPDATE instance SET attempts=attempts+1, next_at=?, detail=? WHERE id=? AND stage='queued'`, nanos(next), clip(detail), id)
		return err
	})
}

// Depth is the length of a queue and since when the oldest image in it waits.
type Depth struct {
	Count  int64
	Oldest time.Time
}

// Queues are the depths of all queues.
type Queues struct {
	Fast, High Depth
	Forward    map[string]Depth // by destination
}

// Depths reads the length of each queue, and since when its oldest image waits:
// received, in the high lane asked for.
func (j *Journal) Depths(ctx context.Context) (Queues, error) {
	out := Queues{Forward: map[string]Depth{}}
	rows, err := j.db.QueryContext(ctx, `SELECT 1, '', count(*), coalesce(min(received),0) FROM instance WHERE stage='queued'
		UNION ALL SELECT 2, '', count(*), coalesce(min(since),0) FROM high WHERE stage='queued'
		UNION ALL SELECT 3, d.dest, d.n, i.added FROM (SELECT dest, count(*) n, min(ord) o FROM delivery INDEXED BY delivery_queue WHERE state='queued' GROUP BY dest) d JOIN instance i ON i.id=d.o/2`)
	if err != nil {
		return out, journalErr("count queues", err)
	}
	defer rows.Close()
	for rows.Next() {
		var lane int
		var dest string
		var d Depth
		var at int64
		if err := rows.Scan(&lane, &dest, &d.Count, &at); err != nil {
			return out, journalErr("count queues", err)
		}
		d.Oldest = fromNanos(at)
		switch lane {
		case 1:
			out.Fast = d
		case 2:
			out.High = d
		default:
			out.Forward[dest] = d
		}
	}
	return out, rows.Err()
}
