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

// Slice is an original that waits in a lane.
type Slice struct {
	Instance Instance
	Attempts int64 // that failed
	// Fill: it failed for Reason, and its derived object is to be a copy.
	Fill   bool
	Reason state.Reason
	Detail string
}

// Result is how an original leaves a lane without a derived object.
type Result struct {
	Stage  state.Stage // Passed or Failed; in the high lane Failed
	Reason state.Reason
	Detail string
	Fill   bool // high: a copy may stand in for it
}

// Lane is one of the two ways in which originals are denoised: Fast, each as it comes, and High, once its series is
// complete and the fast lane is through with it. It knows where in the lane each original is. Its methods are safe for
// concurrent use; on nil what they changed is durable.
type Lane struct {
	j       *Journal
	quality state.Quality
	// The rows of the lane: their table and the column with the id of the original.
	table, key string
	// slice are the columns of a Slice, next that of the time before which it may not be taken. free are the rows
	// that may be taken, i being the original, and order says which comes first.
	slice, next, free, order string
}

// fastLane: whatever waits; of a series the image that came first.
var fastLane = Lane{quality: state.Fast, table: "instance", key: "id",
	slice: `i.attempts, 0, i.reason, i.detail`, next: `i.next_at`,
	free:  `FROM instance i WHERE i.stage='queued'`,
	order: `i.id`}

// highLane: images whose series is complete and which the fast lane has finished, so that it is known whether there
// is a fast object. One series is finished before the next begins, the first complete one first, its copies last.
var highLane = Lane{quality: state.High, table: "high", key: "original",
	slice: `h.attempts, h.fill, h.reason, h.detail`, next: `h.next_at`,
	free: `FROM high h JOIN series s ON s.id=h.series JOIN instance i ON i.id=h.original
	WHERE h.stage='queued' AND s.state<>'receiving' AND i.stage<>'queued'`,
	order: `s.complete_at, h.series, h.fill, i.number, i.id`}

// Lane is the lane of a quality, Fast or High.
func (j *Journal) Lane(q state.Quality) *Lane {
	l := fastLane
	if q == state.High {
		l = highLane
	}
	l.j = j
	return &l
}

// No pause is as long as farAhead: a time beyond it was written while the clock
// was wrong, and means now.
const farAhead = time.Hour

// due are the arguments of "next_at<=? OR next_at>?".
func due(now time.Time) []any { return []any{nanos(now), nanos(now.Add(farAhead))} }

// Next lists up to n originals that may be taken now, in order. In the fast lane series take turns, so that a big one
// does not hold up a small one: they are those of the first series behind the one with the id after, wrapping round.
func (l *Lane) Next(ctx context.Context, now time.Time, after int64, n int) ([]Slice, error) {
	due, where := due(now), ` AND (`+l.next+`<=? OR `+l.next+`>?)`
	if l.quality == state.High {
		return l.list(ctx, where, append(due, n))
	}
	for _, cond := range []string{">?", "<=?"} {
		var series int64
		err := l.j.db.QueryRowContext(ctx, `SELECT i.series `+l.free+where+` AND i.series`+cond+` ORDER BY i.series
			LIMIT 1`,
			append(due, after)...).Scan(&series)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return nil, journalErr("read lane", err)
		}
		return l.list(ctx, where+` AND i.series=?`, append(due, series, n))
	}
	return nil, nil
}

func (l *Lane) list(ctx context.Context, where string, args []any) ([]Slice, error) {
	return list(ctx, l.j, "read lane", `SELECT `+l.slice+`, `+instanceColumns+` `+l.free+where+` ORDER BY `+l.order+`
		LIMIT ?`,
		args, func(scan func(...any) error) (s Slice, err error) {
			err = s.Instance.read(scan, &s.Attempts, &s.Fill, &s.Reason, &s.Detail)
			return s, err
		})
}

// NextRetry is when the earliest image that failed may be tried again; zero when
// none waits for that.
func (l *Lane) NextRetry(ctx context.Context) (time.Time, error) {
	var at sql.NullInt64
	if err := l.j.db.QueryRowContext(ctx, `SELECT min(`+l.next+`) `+l.free+` AND `+l.next+`>0`).Scan(&at); err != nil {
		return time.Time{}, journalErr("read lane", err)
	}
	return fromNanos(at.Int64), nil
}

// Add records a derived object, marks its original as denoised in the lane, with d's reason and detail, and queues the
// deliveries, all at once. In the fast lane what d told is added to that of its series; in the high lane fill says that
// d is a copy. ErrNotWanted: nobody waits for it any more, nothing was recorded.
func (l *Lane) Add(original int64, d Instance, fill bool, dests []string, at time.Time) error {
	return l.j.change("record derived object", func(t *tx) error {
		var n int
		if err := t.row(`SELECT count(*) FROM `+l.table+` WHERE `+l.key+`=? AND stage='queued'`, []any{original},
			&n); err != nil {
			return err
		}
		if n == 0 {
			return ErrNotWanted
		}
		return l.add(t, original, d, fill, dests, at)
	})
}

// add is Add whatever the original waits for.
func (l *Lane) add(t *tx, original int64, d Instance, fill bool, dests []string, at time.Time) error {
	if l.quality == state.High {
		return t.addHigh(original, d, fill, dests, at)
	}
	return t.addFast(original, d, dests)
}

// End ends an original in the lane without a derived object. file is the one that was looked at: if it has been
// replaced meanwhile, or the original is not waited for any more, nothing changes.
func (l *Lane) End(original int64, file string, r Result) error {
	return l.j.change("record result of lane", func(t *tx) error {
		const looked = ` AND stage='queued' AND EXISTS (SELECT 1 FROM instance WHERE id=?1 AND file=?2)`
		if l.quality != state.High {
			_, err := t.exec(`UPDATE instance SET stage=?3, reason=?4, detail=?5 WHERE id=?1`+looked,
				original, file, r.Stage, r.Reason, clip(r.Detail))
			return err
		}
		if _, err := t.exec(`UPDATE high SET stage=?3, reason=?4, detail=?5, fill=?6 WHERE original=?1`+looked,
			original, file, r.Stage, r.Reason, clip(r.Detail), r.Fill); err != nil {
			return err
		}
		var series int64
		if err := t.row(`SELECT series FROM instance WHERE id=?`, []any{original}, &series); err != nil {
			return err
		}
		return t.settleHigh(series)
	})
}

// Retry counts a failed attempt and puts the original back for later.
func (l *Lane) Retry(original int64, next time.Time, detail string) error {
	return l.j.change("record failed attempt", func(t *tx) error {
		_, err := t.exec(`UPDATE `+l.table+` SET attempts=attempts+1, next_at=?, detail=? WHERE `+l.key+`=? AND
			stage='queued'`,
			nanos(next), clip(detail), original)
		return err
	})
}

func (t *tx) addFast(original int64, d Instance, dests []string) error {
	id, series, err := t.insertDerived(original, d, d.Received)
	if err != nil {
		return err
	}
	if _, err := t.exec(`UPDATE instance SET stage='denoised', reason=?, detail=?, sigma=? WHERE id=?`, d.Reason,
		clip(d.Detail), d.Sigma, original); err != nil {
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
	err = t.row(`INSERT INTO instance(series,kind,source,sop,variant,class,syntax,file,off,size,crc,received,number,
		frames,added,quality,channel,rule,stage,reason,detail,sigma)
		VALUES(?,'derived',?,?,0,?,?,?,?,?,?,?,?,?,?,?,?,?,'made','','',?) ON CONFLICT DO UPDATE SET file=excluded.file,
		off=excluded.off, size=excluded.size, crc=excluded.crc, gone=0 RETURNING id`,
		[]any{series, original, d.SOP, d.Class, d.Syntax, d.File, d.Offset, d.Size, int64(d.CRC), nanos(d.Received),
			d.Number, d.Frames, nanos(added), d.Quality, d.Channel, d.Rule, d.Sigma}, &id)
	return id, series, err
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
	rows, err := j.db.QueryContext(ctx, `SELECT 1, '', count(*), coalesce(min(received),0) FROM instance WHERE
		stage='queued'
		UNION ALL SELECT 2, '', count(*), coalesce(min(since),0) FROM high WHERE stage='queued'
		UNION ALL SELECT 3, d.dest, d.n, i.added FROM (SELECT dest, count(*) n, min(ord) o FROM delivery INDEXED BY
		delivery_queue WHERE state='queued' GROUP BY dest) d JOIN instance i ON i.id=d.o/2`)
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
