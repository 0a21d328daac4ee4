package spool

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/diffdenoise/denoised/pipeline/evidence"
)

// Stages of an original in the denoise stage.
const (
	StageQueued   = "queued"   // waits for a worker
	StageDenoised = "denoised" // the derived object is durable
	StagePassed   = "passed"   // must not or could not be denoised safely; Reason says why
	StageFailed   = "failed"   // tried and given up; Reason says why
	StageConflict = "conflict" // other bytes under a UID that was there already: kept, never sent
	StageMade     = "made"     // the row is a derived object
	StageLost     = "lost"     // the journal has the row but the file is gone or damaged
)

// States of a delivery.
const (
	DeliveryQueued  = "queued"  // to be sent, or sent again
	DeliveryStored  = "stored"  // the destination answered success or a warning
	DeliveryRefused = "refused" // the destination said that it will never take it
	DeliveryDamaged = "damaged" // our own copy failed its check; not sent
)

// States of a series.
const (
	SeriesReceiving  = "receiving"
	SeriesComplete   = "complete"
	SeriesIncomplete = "incomplete" // the hard limit ended it, or images are known to be missing
)

// Series is a row of the series table.
type Series struct {
	ID                                    int64
	Key, Study, Modality, Protocol        string
	Number                                int64
	Calling, Called, Host                 string
	State, CompleteBy                     string
	Expected, Received, Reopened          int64
	FirstAt, OpenedAt, LastAt, CompleteAt time.Time
	Quality, Channel, Rule                string
}

// Instance is a row of the instance table.
type Instance struct {
	ID, Series, Source     int64
	Kind                   Kind
	SOP, Class, Syntax     string
	Variant                int64
	File                   string
	Offset, Size           int64
	CRC                    uint32
	Received               time.Time
	Number, Frames         int64
	Quality, Channel, Rule string
	Stage, Reason, Detail  string
	Attempts               int64
	Sigma                  float64
	Gone                   bool
	// Told is for AddDerived and Adopt: what the original tells of its series. It is not read back.
	Told evidence.Sums
}

// maxDetail bounds the bytes of a text that goes on record.
const maxDetail = 500

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
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
	Stage, Reason string
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
		if flagged && in.Stage != StageConflict {
			f.decide(&in)
			s.Quality, s.Channel, s.Rule = in.Quality, in.Channel, in.Rule
		}
		var state string
		err = t.row(`SELECT id, state FROM series WHERE key=?`, []any{s.Key}, &out.Series, &state)
		if errors.Is(err, sql.ErrNoRows) {
			err = t.row(`INSERT INTO series(key,study,modality,protocol,number,calling,called,host,state,expected,received,first_at,opened_at,last_at,quality,channel,rule)
				VALUES(?,?,?,?,?,?,?,?,'receiving',?,0,?,?,?,?,?,?) RETURNING id`,
				[]any{s.Key, s.Study, s.Modality, s.Protocol, s.Number, s.Calling, s.Called, s.Host, s.Expected, at, at, at, s.Quality, s.Channel, s.Rule}, &out.Series)
			state = SeriesReceiving
		}
		if err != nil {
			return err
		}
		var n int64
		if err := t.row(`SELECT count(*) FROM instance WHERE series=? AND sop=? AND kind='original'`, []any{out.Series, in.SOP}, &n); err != nil {
			return err
		}
		if n != a.Variants {
			return ErrExists
		}
		if err := t.row(`INSERT INTO instance(series,kind,source,sop,variant,class,syntax,file,off,size,crc,received,number,frames,added,quality,channel,rule,stage,reason,detail,unwanted)
			VALUES(?,'original',0,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) RETURNING id`,
			[]any{out.Series, in.SOP, a.Variants, in.Class, in.Syntax, in.File, in.Offset, in.Size, int64(in.CRC), at, in.Number, in.Frames, at,
				in.Quality, in.Channel, in.Rule, in.Stage, in.Reason, in.Detail, a.Unwanted}, &out.Instance); err != nil {
			return err
		}
		out.Reopened, out.Stage, out.Reason = state != SeriesReceiving, in.Stage, in.Reason
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
		}
		if in.Quality == qualityHigh {
			return t.startHigh(a.Start, at, `i.id=?`, out.Instance)
		}
		return nil
	})
	return out, err
}

func (t *tx) deliver(instance, series, ord int64, dest string) error {
	_, err := t.exec(`INSERT INTO delivery(instance,dest,series,ord,state) VALUES(?,?,?,?,'queued') ON CONFLICT DO NOTHING`, instance, dest, series, ord)
	return err
}

const instanceColumns = `i.id,i.series,i.source,i.kind,i.sop,i.class,i.syntax,i.variant,i.file,i.off,i.size,i.crc,i.received,i.number,i.frames,
	i.quality,i.channel,i.rule,i.stage,i.reason,i.detail,i.attempts,i.sigma,i.gone`

// list reads rows of a query with read, which is given the Scan of each.
func list[T any](ctx context.Context, j *Journal, what, query string, args []any, read func(scan func(...any) error) (T, error)) ([]T, error) {
	rows, err := j.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, journalErr(what, err)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := read(rows.Scan)
		if err != nil {
			return nil, journalErr(what, err)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, journalErr(what, err)
	}
	return out, nil
}

// read fills in from a row of instanceColumns, behind the columns before.
func (i *Instance) read(scan func(...any) error, before ...any) error {
	var received, gone int64
	err := scan(append(before, &i.ID, &i.Series, &i.Source, &i.Kind, &i.SOP, &i.Class, &i.Syntax, &i.Variant, &i.File, &i.Offset, &i.Size, &i.CRC, &received, &i.Number, &i.Frames,
		&i.Quality, &i.Channel, &i.Rule, &i.Stage, &i.Reason, &i.Detail, &i.Attempts, &i.Sigma, &gone)...)
	i.Received, i.Gone = fromNanos(received), gone != 0
	return err
}

func (j *Journal) instances(ctx context.Context, where string, args ...any) ([]Instance, error) {
	return list(ctx, j, "read instances", `SELECT `+instanceColumns+` FROM instance i `+where, args, func(scan func(...any) error) (in Instance, err error) {
		err = in.read(scan)
		return in, err
	})
}

// Variants lists what is stored under an instance UID in a series, first one first.
func (j *Journal) Variants(ctx context.Context, seriesKey, sop string) ([]Instance, error) {
	return j.instances(ctx, `WHERE series=(SELECT id FROM series WHERE key=?) AND sop=? AND kind='original' ORDER BY variant`, seriesKey, sop)
}

// Instance reads one row; nil when there is none.
func (j *Journal) Instance(ctx context.Context, id int64) (*Instance, error) {
	l, err := j.instances(ctx, `WHERE id=?`, id)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return &l[0], nil
}

// Replace gives an instance whose file was lost or damaged a new file, and
// queues again what could not be done without it.
func (j *Journal) Replace(id int64, with Instance, dests []string, start Start) error {
	return j.change("replace damaged file", func(t *tx) error {
		with := with
		var series int64
		var key string
		var lost bool
		if err := t.row(`SELECT i.series, s.key, i.stage='lost' OR i.stage='failed' AND i.reason='damaged' FROM instance i JOIN series s ON s.id=i.series WHERE i.id=?`, []any{id}, &series, &key, &lost); err != nil {
			return err
		}
		if lost {
			f, flagged, err := t.flag(key)
			if err != nil {
				return err
			}
			if flagged {
				f.decide(&with)
			}
			if _, err := t.exec(`UPDATE instance SET stage=?, reason=?, detail=?, attempts=0, next_at=0 WHERE id=?`, with.Stage, with.Reason, with.Detail, id); err != nil {
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
		if err := t.startHigh(start, nanos(with.Received), `i.id=? AND EXISTS (SELECT 1 FROM high h WHERE h.original=i.id AND h.reason IN ('lost','damaged'))`, id); err != nil {
			return err
		}
		_, err := t.exec(`UPDATE delivery SET state='queued', detail='', next_at=0 WHERE instance=? AND state='damaged'`, id)
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
		if err := t.row(`SELECT count(*) FROM instance i WHERE i.id=?1 AND (i.stage IN ('denoised','failed') OR i.attempts>0
			OR EXISTS (SELECT 1 FROM delivery d WHERE d.instance=?1 AND (d.state<>'queued' OR d.attempts>0)))`, []any{id}, &n); err != nil || n > 0 {
			return err
		}
		gone = true
		for _, q := range []string{`UPDATE series SET received=received-1 WHERE id=(SELECT series FROM instance WHERE id=?)`, `DELETE FROM high WHERE original=?`, `DELETE FROM delivery WHERE instance=?`, `DELETE FROM instance WHERE id=?`} {
			if _, err := t.exec(q, id); err != nil {
				return err
			}
		}
		return nil
	})
	return gone, err
}

// Requeue puts the refused deliveries of a series back; it returns how many.
func (j *Journal) Requeue(series int64) (int64, error) {
	var n int64
	err := j.change("queue refused deliveries again", func(t *tx) error {
		r, err := t.exec(`UPDATE delivery SET state='queued', next_at=0, failures=0 WHERE series=? AND state='refused'`, series)
		if err != nil {
			return err
		}
		n, err = r.RowsAffected()
		return err
	})
	return n, err
}

// Raise notes a higher quality asked for by sending the same image again. What a
// person asked for the series stands.
func (j *Journal) Raise(id int64, quality, channel, rule string, start Start, at time.Time) error {
	return j.change("raise quality", func(t *tx) error {
		var key string
		if err := t.row(`SELECT s.key FROM series s JOIN instance i ON i.series=s.id WHERE i.id=?`, []any{id}, &key); err != nil {
			return err
		}
		if _, flagged, err := t.flag(key); err != nil || flagged {
			return err
		}
		_, err := t.exec(`UPDATE series SET quality=?2, channel=?3, rule=?4 WHERE id=(SELECT series FROM instance WHERE id=?1) AND `+
			fmt.Sprintf(rank, "?2")+`>`+fmt.Sprintf(rank, "quality"), id, quality, channel, rule)
		if err != nil {
			return err
		}
		r, err := t.exec(`UPDATE instance SET quality=?2, channel=?3, rule=?4,
			stage=CASE WHEN stage='passed' AND reason='off' THEN 'queued' ELSE stage END,
			reason=CASE WHEN stage='passed' AND reason='off' THEN '' ELSE reason END
			WHERE id=?1 AND gone=0 AND `+fmt.Sprintf(rank, "?2")+`>`+fmt.Sprintf(rank, "quality"), id, quality, channel, rule)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 || quality != qualityHigh {
			return err
		}
		return t.startHigh(start, nanos(at), `i.id=?`, id)
	})
}

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
	if _, err := t.exec(`UPDATE instance SET stage='denoised', reason=?, detail=?, sigma=? WHERE id=?`, d.Reason, clip(d.Detail, maxDetail), d.Sigma, original); err != nil {
		return err
	}
	for _, dest := range dests {
		if err := t.deliver(id, series, 2*original+1, dest); err != nil {
			return err
		}
	}
	return t.tell(original, series, d.Told)
}

// tell adds what an original told to that of its series, once, however often it is denoised.
func (t *tx) tell(original, series int64, told evidence.Sums) error {
	if len(told) == 0 {
		return nil
	}
	var text string
	err := t.row(`SELECT s.told FROM series s JOIN instance i ON i.series=s.id WHERE s.id=? AND i.id=? AND i.told=0`,
		[]any{series, original}, &text)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	have, err := evidence.Parse(text)
	if err != nil {
		have = nil // begins anew: no image waits for it
	}
	if _, err := t.exec(`UPDATE series SET told=? WHERE id=?`, have.Plus(told).String(), series); err != nil {
		return err
	}
	_, err = t.exec(`UPDATE instance SET told=1 WHERE id=?`, original)
	return err
}

// Told reads what the originals of a series that have been denoised told of it.
func (j *Journal) Told(ctx context.Context, series int64) (evidence.Sums, error) {
	var text string
	err := j.db.QueryRowContext(ctx, `SELECT told FROM series WHERE id=?`, series).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, journalErr("read what a series told", err)
	}
	return evidence.Parse(text)
}

// Adopt records a derived object that was found finished and that the journal does
// not know, as AddDerived and AddHigh do, whatever its original waits for by now; fill
// is as in AddHigh. ErrExists: the journal knows another file of this object.
func (j *Journal) Adopt(original int64, d Instance, fill bool, dests []string, at time.Time) error {
	return j.change("take up derived object", func(t *tx) error {
		var n int
		if err := t.row(`SELECT count(*) FROM instance i JOIN instance o ON o.series=i.series WHERE o.id=? AND i.sop=? AND i.kind='derived' AND i.gone=0`, []any{original, d.SOP}, &n); err != nil {
			return err
		}
		switch {
		case n > 0:
			return ErrExists
		case d.Quality == qualityHigh:
			return t.addHigh(original, d, fill, dests, at)
		}
		return t.addDerived(original, d, dests)
	})
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
func (j *Journal) EndSlice(id int64, file, stage, reason, detail string) error {
	return j.change("record result of slice", func(t *tx) error {
		_, err := t.exec(`UPDATE instance SET stage=?, reason=?, detail=? WHERE id=? AND file=? AND stage='queued'`, stage, reason, clip(detail, maxDetail), id, file)
		return err
	})
}

// RetrySlice counts a failed attempt and puts the slice back for later.
func (j *Journal) RetrySlice(id int64, next time.Time, detail string) error {
	return j.change("record failed attempt of slice", func(t *tx) error {
		_, err := t.exec(`UPDATE instance SET attempts=attempts+1, next_at=?, detail=? WHERE id=? AND stage='queued'`, nanos(next), clip(detail, maxDetail), id)
		return err
	})
}

// Delivery is one instance to be sent to one destination.
type Delivery struct {
	Instance Instance
	Dest     string
	Attempts int64
	// Failures counts failed attempts between which dest stored other images:
	// 1 after the first failure, 2 and more make the image a suspect.
	Failures int64
}

// No pause is as long as farAhead: a time beyond it was written while the clock
// was wrong, and means now.
const farAhead = time.Hour

// due are the arguments of "next_at<=? OR next_at>?".
func due(now time.Time) []any { return []any{nanos(now), nanos(now.Add(farAhead))} }

// Which deliveries to list, and in which order.
const (
	oldest   = `INDEXED BY delivery_queue JOIN instance i ON i.id=d.instance WHERE d.dest=? AND d.state='queued' AND d.failures<2 AND (d.next_at<=? OR d.next_at>?) ORDER BY d.ord LIMIT ?`
	newest   = `INDEXED BY delivery_queue JOIN instance i ON i.id=d.instance WHERE d.dest=? AND d.state='queued' AND d.failures<2 AND (d.next_at<=? OR d.next_at>?) ORDER BY d.ord DESC LIMIT ?`
	suspects = `INDEXED BY delivery_suspect JOIN instance i ON i.id=d.instance WHERE d.dest=? AND d.state='queued' AND d.failures>=2 AND (d.next_at<=? OR d.next_at>?) ORDER BY d.next_at LIMIT ?`
)

// NextDeliveries lists what may be sent to dest now, oldest first, without suspects.
func (j *Journal) NextDeliveries(ctx context.Context, dest string, now time.Time, n int) ([]Delivery, error) {
	return j.deliveries(ctx, oldest, dest, now, n)
}

// NewestDelivery lists the last of what NextDeliveries would list, if there is any.
func (j *Journal) NewestDelivery(ctx context.Context, dest string, now time.Time) ([]Delivery, error) {
	return j.deliveries(ctx, newest, dest, now, 1)
}

// NextSuspects lists the suspects that may be tried at dest now, longest due first.
func (j *Journal) NextSuspects(ctx context.Context, dest string, now time.Time, n int) ([]Delivery, error) {
	return j.deliveries(ctx, suspects, dest, now, n)
}

func (j *Journal) deliveries(ctx context.Context, which, dest string, now time.Time, n int) ([]Delivery, error) {
	return list(ctx, j, "read forward queue", `SELECT d.attempts,d.failures,`+instanceColumns+` FROM delivery d `+which, append(append([]any{dest}, due(now)...), n),
		func(scan func(...any) error) (Delivery, error) {
			d := Delivery{Dest: dest}
			err := d.Instance.read(scan, &d.Attempts, &d.Failures)
			return d, err
		})
}

// NextDue is when the earliest queued delivery of dest may be sent, of the
// suspects or of the others; ok is false when none is queued.
func (j *Journal) NextDue(ctx context.Context, dest string, suspects bool) (at time.Time, ok bool, err error) {
	query := `SELECT min(next_at) FROM delivery INDEXED BY delivery_queue WHERE dest=? AND state='queued' AND failures<2`
	if suspects {
		query = `SELECT min(next_at) FROM delivery INDEXED BY delivery_suspect WHERE dest=? AND state='queued' AND failures>=2`
	}
	var n sql.NullInt64
	if err := j.db.QueryRowContext(ctx, query, dest).Scan(&n); err != nil {
		return time.Time{}, false, journalErr("read forward queue", err)
	}
	return fromNanos(n.Int64), n.Valid, nil
}

// Syntaxes lists the pairs of SOP class and transfer syntax queued for dest,
// those of the oldest instances first, looking at no more than 4096 of them.
func (j *Journal) Syntaxes(ctx context.Context, dest string, limit int) ([][2]string, error) {
	return list(ctx, j, "read forward queue", `SELECT class, syntax FROM (SELECT i.class, i.syntax, d.ord FROM delivery d INDEXED BY delivery_queue
		JOIN instance i ON i.id=d.instance WHERE d.dest=? AND d.state='queued' ORDER BY d.ord LIMIT 4096) GROUP BY class, syntax ORDER BY min(ord) LIMIT ?`, []any{dest, limit},
		func(scan func(...any) error) (p [2]string, err error) {
			err = scan(&p[0], &p[1])
			return p, err
		})
}

// EndDelivery records the final state of a delivery. status is the DICOM
// status, -1 for none.
func (j *Journal) EndDelivery(instance int64, dest, state string, status int, detail string, at time.Time) error {
	return j.change("record delivery", func(t *tx) error {
		_, err := t.exec(`UPDATE delivery SET state=?, status=?, detail=?, attempts=attempts+1, done_at=? WHERE instance=? AND dest=?`,
			state, status, clip(detail, maxDetail), nanos(at), instance, dest)
		return err
	})
}

// DamagedDelivery ends a delivery whose file failed its check. file is the one
// that was looked at: if it has been replaced meanwhile nothing changes, for the
// new one has yet to be sent.
func (j *Journal) DamagedDelivery(instance int64, dest, file, detail string, at time.Time) error {
	return j.change("record damaged file", func(t *tx) error {
		_, err := t.exec(`UPDATE delivery SET state='damaged', status=-1, detail=?, attempts=attempts+1, done_at=? WHERE instance=?3 AND dest=?4
			AND EXISTS (SELECT 1 FROM instance WHERE id=?3 AND file=?5)`, clip(detail, maxDetail), nanos(at), instance, dest, file)
		return err
	})
}

// RetryDelivery counts an attempt and says when the next may start; failures
// becomes Delivery.Failures.
func (j *Journal) RetryDelivery(instance int64, dest string, status int, detail string, failures int64, next time.Time) error {
	return j.change("record failed delivery", func(t *tx) error {
		_, err := t.exec(`UPDATE delivery SET status=?, detail=?, attempts=attempts+1, failures=?, next_at=? WHERE instance=? AND dest=? AND state='queued'`,
			status, clip(detail, maxDetail), failures, nanos(next), instance, dest)
		return err
	})
}

// CompleteSeries records that no more instances are waited for.
func (j *Journal) CompleteSeries(id int64, state, by string, at time.Time) error {
	return j.change("record complete series", func(t *tx) error {
		_, err := t.exec(`UPDATE series SET state=?, complete_by=?, complete_at=? WHERE id=?`, state, by, nanos(at), id)
		return err
	})
}

const seriesColumns = `s.id,s.key,s.study,s.modality,s.protocol,s.number,s.calling,s.called,s.host,s.state,s.complete_by,s.expected,s.received,s.reopened,
	s.first_at,s.opened_at,s.last_at,s.complete_at,s.quality,s.channel,s.rule`

func (j *Journal) series(ctx context.Context, where string, args ...any) ([]Series, error) {
	return list(ctx, j, "read series", `SELECT `+seriesColumns+` FROM series s `+where, args, func(scan func(...any) error) (s Series, err error) {
		var at [4]int64
		err = scan(&s.ID, &s.Key, &s.Study, &s.Modality, &s.Protocol, &s.Number, &s.Calling, &s.Called, &s.Host, &s.State, &s.CompleteBy, &s.Expected, &s.Received, &s.Reopened,
			&at[0], &at[1], &at[2], &at[3], &s.Quality, &s.Channel, &s.Rule)
		s.FirstAt, s.OpenedAt, s.LastAt, s.CompleteAt = fromNanos(at[0]), fromNanos(at[1]), fromNanos(at[2]), fromNanos(at[3])
		return s, err
	})
}

// OpenSeries lists the series that are being received.
func (j *Journal) OpenSeries(ctx context.Context) ([]Series, error) {
	return j.series(ctx, `WHERE state='receiving' ORDER BY id`)
}

// RecentSeries lists the n series that changed last, newest first.
func (j *Journal) RecentSeries(ctx context.Context, n int) ([]Series, error) {
	return j.series(ctx, `ORDER BY last_at DESC, id DESC LIMIT ?`, n)
}

// SeriesByKey finds a series; nil when there is none.
func (j *Journal) SeriesByKey(ctx context.Context, key string) (*Series, error) {
	l, err := j.series(ctx, `WHERE key=?`, key)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return &l[0], nil
}

// StageCount is how many originals of a series are in a stage for a reason.
type StageCount struct {
	Stage, Reason string
	Count         int64
}

// StageCounts counts the originals of a series.
func (j *Journal) StageCounts(ctx context.Context, series int64) ([]StageCount, error) {
	return list(ctx, j, "count instances", `SELECT stage, reason, count(*) FROM instance WHERE series=? AND kind='original' GROUP BY stage, reason ORDER BY stage, reason`,
		[]any{series}, func(scan func(...any) error) (c StageCount, err error) {
			err = scan(&c.Stage, &c.Reason, &c.Count)
			return c, err
		})
}

// DeliveryCount is how many deliveries of a series to a destination are in a state.
type DeliveryCount struct {
	Dest, State string
	Count       int64
	Warnings    int64  // stored with a warning status
	Detail      string // of one of them, for refused and damaged
}

// DeliveryCounts counts the deliveries of a series.
func (j *Journal) DeliveryCounts(ctx context.Context, series int64) ([]DeliveryCount, error) {
	return list(ctx, j, "count deliveries", `SELECT dest, state, count(*), sum(state='stored' AND status>0), max(detail) FROM delivery WHERE series=? GROUP BY dest, state ORDER BY dest, state`,
		[]any{series}, func(scan func(...any) error) (c DeliveryCount, err error) {
			err = scan(&c.Dest, &c.State, &c.Count, &c.Warnings, &c.Detail)
			return c, err
		})
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
	l, err := j.instances(ctx, `WHERE series=? AND kind='original' AND variant=0 ORDER BY number, id LIMIT 1 OFFSET ?`, series, n-1)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return &l[0], nil
}

// DeliveryRow is one delivery as recorded.
type DeliveryRow struct {
	Instance int64
	Dest     string
	State    string
	Attempts int64
	Status   int
	Detail   string
	DoneAt   time.Time
}

// SeriesDeliveries lists the deliveries of a series, at most n.
func (j *Journal) SeriesDeliveries(ctx context.Context, series int64, n int) ([]DeliveryRow, error) {
	return list(ctx, j, "read deliveries", `SELECT instance, dest, state, attempts, status, detail, done_at FROM delivery WHERE series=? ORDER BY ord, dest LIMIT ?`,
		[]any{series, n}, func(scan func(...any) error) (d DeliveryRow, err error) {
			var at int64
			err = scan(&d.Instance, &d.Dest, &d.State, &d.Attempts, &d.Status, &d.Detail, &at)
			d.DoneAt = fromNanos(at)
			return d, err
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

// SeriesStates counts the series by state, and the conflicts and refused deliveries.
func (j *Journal) SeriesStates(ctx context.Context) (map[string]int64, error) {
	out := map[string]int64{}
	rows, err := j.db.QueryContext(ctx, `SELECT state, count(*) FROM series GROUP BY state`)
	if err != nil {
		return nil, journalErr("count series", err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		var n int64
		if err := rows.Scan(&s, &n); err != nil {
			return nil, journalErr("count series", err)
		}
		out[s] = n
	}
	return out, rows.Err()
}

// settled: nothing that still needs the file. The original is through the
// denoise stage, it and its derived object have been stored by every
// destination they were queued for, and at least one destination has something
// of them - or it passed and the destinations of the time wanted no originals.
// What came when there was no destination at all is owed to one, and stays. So
// does a series of which an image waits for the high pass. (source>0 lets SQLite
// use the index of derived objects.)
const settled = `i.kind='original' AND i.gone=0 AND i.stage IN ('denoised','passed','failed')
	AND NOT EXISTS (SELECT 1 FROM high h INDEXED BY high_queue WHERE h.series=i.series AND h.stage='queued')
	AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.instance=i.id AND d.state<>'stored')
	AND NOT EXISTS (SELECT 1 FROM instance e JOIN delivery d ON d.instance=e.id WHERE e.source>0 AND e.source=i.id AND d.state<>'stored')
	AND (EXISTS (SELECT 1 FROM delivery d WHERE d.instance=i.id)
	  OR EXISTS (SELECT 1 FROM instance e JOIN delivery d ON d.instance=e.id WHERE e.source>0 AND e.source=i.id)
	  OR i.stage='passed' AND i.unwanted=1)`

// Purgeable lists, oldest first and after id, up to n originals whose last
// delivery ended before the given time.
func (j *Journal) Purgeable(ctx context.Context, after int64, before time.Time, n int) ([]Instance, error) {
	return j.instances(ctx, `INDEXED BY instance_kept WHERE i.id>? AND i.received<? AND `+settled+`
		AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.instance=i.id AND d.done_at>=?)
		AND NOT EXISTS (SELECT 1 FROM instance e JOIN delivery d ON d.instance=e.id WHERE e.source>0 AND e.source=i.id AND d.done_at>=?)
		ORDER BY i.id LIMIT ?`, after, nanos(before), nanos(before), nanos(before), n)
}

// Purge marks an original and what was derived from it as gone and returns the
// files that may now be removed. It checks again that they are settled.
func (j *Journal) Purge(id int64, at time.Time) ([]string, error) {
	var files []string
	err := j.change("purge", func(t *tx) error {
		files = nil
		var ok int
		err := t.row(`SELECT 1 FROM instance i WHERE i.id=? AND `+settled, []any{id}, &ok)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		s, err := t.stmt(`UPDATE instance SET gone=? WHERE (id=? OR source>0 AND source=?) AND gone=0 RETURNING file`)
		if err != nil {
			return err
		}
		rows, err := s.Query(nanos(at), id, id)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var f string
			if err := rows.Scan(&f); err != nil {
				return err
			}
			files = append(files, f)
		}
		return rows.Err()
	})
	return files, err
}

// Compact deletes the rows of series whose files were all purged before the
// given time. Up to n series per call; it returns how many.
func (j *Journal) Compact(before time.Time, n int) (int64, error) {
	var done int64
	err := j.change("compact journal", func(t *tx) error {
		done = 0
		s, err := t.stmt(`SELECT s.id FROM series s WHERE s.last_at<?1 AND s.state<>'receiving'
			AND NOT EXISTS (SELECT 1 FROM instance i WHERE i.series=s.id AND (i.gone=0 OR i.gone>=?1)) ORDER BY s.last_at LIMIT ?2`)
		if err != nil {
			return err
		}
		rows, err := s.Query(nanos(before), n)
		if err != nil {
			return err
		}
		var ids []int64
		for rows.Next() {
			var id int64
			if err := rows.Scan(&id); err != nil {
				rows.Close()
				return err
			}
			ids = append(ids, id)
		}
		rows.Close()
		if err := rows.Err(); err != nil {
			return err
		}
		for _, id := range ids {
			for _, q := range []string{`DELETE FROM delivery WHERE series=?`, `DELETE FROM high WHERE series=?`, `DELETE FROM instance WHERE series=?`, `DELETE FROM series WHERE id=?`} {
				if _, err := t.exec(q, id); err != nil {
					return err
				}
			}
		}
		done = int64(len(ids))
		return nil
	})
	return done, err
}

// Lose marks a row whose file is gone or damaged. The high pass of its series waits
// for it no longer.
func (j *Journal) Lose(id int64, detail string) error {
	return j.change("record lost file", func(t *tx) error {
		if _, err := t.exec(`UPDATE instance SET stage='lost', detail=? WHERE id=?`, detail, id); err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE high SET stage='failed', reason='lost', detail=?, fill=0 WHERE original=? AND stage='queued'`, detail, id); err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE delivery SET state='damaged', detail=? WHERE instance=? AND state='queued'`, detail, id); err != nil {
			return err
		}
		var series int64
		if err := t.row(`SELECT series FROM instance WHERE id=?`, []any{id}, &series); err != nil {
			return err
		}
		return t.settleHigh(series)
	})
}

// Remake queues an original again whose derived file is gone or damaged, and
// gives that file up at the given time. What was on record about it goes too, but for
// why the high pass makes a copy. In the high lane it ends with start's reason, if
// that has one.
func (j *Journal) Remake(derived, original int64, start Start, at time.Time) error {
	return j.change("queue slice again", func(t *tx) error {
		again, args := `UPDATE instance SET stage='queued', reason='', detail='', attempts=0, next_at=0 WHERE id=? AND stage='denoised'`, []any{original}
		var quality string
		if err := t.row(`SELECT quality FROM instance WHERE id=?`, []any{derived}, &quality); err != nil {
			return err
		}
		if quality == qualityHigh {
			again = `UPDATE high SET stage='queued', reason=CASE WHEN fill=1 THEN reason ELSE '' END, detail=CASE WHEN fill=1 THEN detail ELSE '' END, attempts=0, next_at=0 WHERE original=? AND stage='denoised'`
			if start.Reason != "" {
				again, args = `UPDATE high SET stage='failed', reason=?, detail=?, fill=0 WHERE original=? AND stage='denoised'`, []any{start.Reason, clip(start.Detail, maxDetail), original}
			}
		}
		if _, err := t.exec(again, args...); err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE instance SET gone=? WHERE id=?`, nanos(at), derived); err != nil {
			return err
		}
		_, err := t.exec(`DELETE FROM delivery WHERE instance=? AND state IN ('queued','damaged')`, derived)
		return err
	})
}

// IndexFiles makes ByFile fast until it is called with false. Only recovery
// asks by file, so receiving does not pay for the index.
func (j *Journal) IndexFiles(on bool) error {
	return j.change("index files", func(t *tx) error {
		query := `DROP INDEX IF EXISTS instance_file`
		if on {
			query = `CREATE INDEX IF NOT EXISTS instance_file ON instance(file)`
		}
		_, err := t.conn.ExecContext(context.Background(), query)
		return err
	})
}

// Indexed tells whether IndexFiles is on: a recovery has begun and not ended.
func (j *Journal) Indexed(ctx context.Context) (bool, error) {
	var n int
	if err := j.db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE type='index' AND name='instance_file'`).Scan(&n); err != nil {
		return false, journalErr("read journal schema", err)
	}
	return n > 0, nil
}

// ByFile finds the row that owns a file; nil when none does. See IndexFiles.
func (j *Journal) ByFile(ctx context.Context, file string) (*Instance, error) {
	l, err := j.instances(ctx, `WHERE file=?`, file)
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return &l[0], nil
}

// Files calls fn for every row that should have a file, by id.
func (j *Journal) Files(ctx context.Context, fn func(Instance) error) error {
	var after int64
	for {
		l, err := j.instances(ctx, `WHERE gone=0 AND id>? ORDER BY id LIMIT 1000`, after)
		if err != nil {
			return err
		}
		for _, in := range l {
			if err := fn(in); err != nil {
				return err
			}
			after = in.ID
		}
		if len(l) < 1000 {
			return nil
		}
	}
}

// Writable writes a row and removes it again in one change: it fails when the journal cannot be written.
func (j *Journal) Writable() error {
	return j.change("write to journal", func(t *tx) error {
		// A row, so that pages are written; no flag has the key ''.
		if _, err := t.exec(`INSERT INTO flag(key, quality, why, who, at) VALUES('', '', '', '', 0)`); err != nil {
			return err
		}
		_, err := t.exec(`DELETE FROM flag WHERE key=''`)
		return err
	})
}

// Bytes is the sum of the data sets whose files are kept.
func (j *Journal) Bytes(ctx context.Context) (int64, error) {
	var n int64
	if err := j.db.QueryRowContext(ctx, `SELECT coalesce(sum(size),0) FROM instance WHERE gone=0`).Scan(&n); err != nil {
		return 0, journalErr("add up spool", err)
	}
	return n, nil
}
