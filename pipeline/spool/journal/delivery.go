package journal

import (
	"context"
	"database/sql"
	"time"

	"github.com/diffdenoise/denoised/pipeline/state"
)

// Delivery is one instance to be sent to one destination.
type Delivery struct {
	Instance Instance
	Dest     string
	Attempts int64
	// Failures counts failed attempts between which dest stored other images:
	// 1 after the first failure, 2 and more make the image a suspect.
	Failures int64
	// Unsure: dest may have the image, for the answer to an attempt was lost, or recovery found the file.
	Unsure bool
}

func (t *tx) deliver(instance, series, ord int64, dest string) error {
	_, err := t.exec(`INSERT INTO delivery(instance,dest,series,ord,state) VALUES(?,?,?,?,'queued') ON CONFLICT DO
		NOTHING`, instance, dest, series, ord)
	return err
}

// Which deliveries to list, and in which order.
const (
	oldest = `INDEXED BY delivery_queue JOIN instance i ON i.id=d.instance WHERE d.dest=? AND d.state='queued' AND
		d.failures<2 AND (d.next_at<=? OR d.next_at>?) ORDER BY d.ord LIMIT ?`
	newest = `INDEXED BY delivery_queue JOIN instance i ON i.id=d.instance WHERE d.dest=? AND d.state='queued' AND
		d.failures<2 AND (d.next_at<=? OR d.next_at>?) ORDER BY d.ord DESC LIMIT ?`
	suspects = `INDEXED BY delivery_suspect JOIN instance i ON i.id=d.instance WHERE d.dest=? AND d.state='queued' AND
		d.failures>=2 AND (d.next_at<=? OR d.next_at>?) ORDER BY d.next_at LIMIT ?`
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
	return list(ctx, j, "read forward queue",
		`SELECT d.attempts,d.failures,d.unsure,`+instanceColumns+` FROM delivery d `+which,
		append(append([]any{dest}, due(now)...), n),
		func(scan func(...any) error) (Delivery, error) {
			d := Delivery{Dest: dest}
			err := d.Instance.read(scan, &d.Attempts, &d.Failures, &d.Unsure)
			return d, err
		})
}

// NextDue is when the earliest queued delivery of dest may be sent, of the
// suspects or of the others; ok is false when none is queued.
func (j *Journal) NextDue(ctx context.Context, dest string, suspects bool) (at time.Time, ok bool, err error) {
	query := `SELECT min(next_at) FROM delivery INDEXED BY delivery_queue WHERE dest=? AND state='queued' AND
		failures<2`
	if suspects {
		query = `SELECT min(next_at) FROM delivery INDEXED BY delivery_suspect WHERE dest=? AND state='queued' AND
			failures>=2`
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
	return list(ctx, j, "read forward queue", `SELECT class, syntax FROM (SELECT i.class, i.syntax, d.ord FROM delivery
		d INDEXED BY delivery_queue
		JOIN instance i ON i.id=d.instance WHERE d.dest=? AND d.state='queued' ORDER BY d.ord LIMIT 4096) GROUP BY
		class, syntax ORDER BY min(ord) LIMIT ?`, []any{dest, limit},
		func(scan func(...any) error) (p [2]string, err error) {
			err = scan(&p[0], &p[1])
			return p, err
		})
}

// EndDelivery records the final state of a delivery. status is the DICOM
// status, -1 for none.
func (j *Journal) EndDelivery(instance int64, dest string, s state.Delivery, status int, detail string,
	at time.Time) error {
	return j.change("record delivery", func(t *tx) error {
		_, err := t.exec(`UPDATE delivery SET state=?, status=?, detail=?, attempts=attempts+1, done_at=? WHERE
			instance=? AND dest=?`,
			s, status, clip(detail), nanos(at), instance, dest)
		return err
	})
}

// DamagedDelivery ends a delivery whose file failed its check. file is the one
// that was looked at: if it has been replaced meanwhile nothing changes, for the
// new one has yet to be sent.
func (j *Journal) DamagedDelivery(instance int64, dest, file, detail string, at time.Time) error {
	return j.change("record damaged file", func(t *tx) error {
		_, err := t.exec(`UPDATE delivery SET state='damaged', status=-1, detail=?, attempts=attempts+1, done_at=? WHERE
			instance=?3 AND dest=?4
			AND EXISTS (SELECT 1 FROM instance WHERE id=?3 AND file=?5)`, clip(detail), nanos(at), instance, dest, file)
		return err
	})
}

// RetryDelivery counts an attempt and says when the next may start; failures
// becomes Delivery.Failures. unsure: the answer was lost.
func (j *Journal) RetryDelivery(instance int64, dest string, status int, detail string, failures int64,
	next time.Time, unsure bool) error {
	return j.change("record failed delivery", func(t *tx) error {
		_, err := t.exec(`UPDATE delivery SET status=?, detail=?, attempts=attempts+1, failures=?, next_at=?,
			unsure=max(unsure,?) WHERE instance=? AND dest=? AND state='queued'`,
			status, clip(detail), failures, nanos(next), unsure, instance, dest)
		return err
	})
}

// Doubt marks as unsure what an earlier process may have been sending when it ended: the first n of each queue, and
// the last.
func (j *Journal) Doubt(n int) error {
	return j.change("doubt deliveries that may have been under way", func(t *tx) error {
		_, err := t.exec(`UPDATE delivery SET unsure=1 WHERE state='queued' AND unsure=0 AND (instance,dest) IN (
			SELECT instance, dest FROM (SELECT instance, dest, row_number() OVER (PARTITION BY dest ORDER BY ord) first,
			row_number() OVER (PARTITION BY dest ORDER BY ord DESC) last FROM delivery INDEXED BY delivery_queue WHERE
			state='queued') WHERE first<=? OR last=1)`, n)
		return err
	})
}

// Requeue puts the refused deliveries of a series back; it returns how many.
func (j *Journal) Requeue(series int64) (int64, error) {
	var n int64
	err := j.change("queue refused deliveries again", func(t *tx) error {
		r, err := t.exec(`UPDATE delivery SET state='queued', next_at=0, failures=0 WHERE series=? AND
			state='refused'`, series)
		if err != nil {
			return err
		}
		n, err = r.RowsAffected()
		return err
	})
	return n, err
}

// DeliveryCount is how many deliveries of a series to a destination are in a state.
type DeliveryCount struct {
	Dest     string
	State    state.Delivery
	Count    int64
	Warnings int64  // stored with a warning status
	Detail   string // of one of them, for refused and damaged
}

// DeliveryCounts counts the deliveries of a series.
func (j *Journal) DeliveryCounts(ctx context.Context, series int64) ([]DeliveryCount, error) {
	return list(ctx, j, "count deliveries", `SELECT dest, state, count(*), sum(state='stored' AND status>0), max(detail)
		FROM delivery WHERE series=? GROUP BY dest, state ORDER BY dest, state`,
		[]any{series}, func(scan func(...any) error) (c DeliveryCount, err error) {
			err = scan(&c.Dest, &c.State, &c.Count, &c.Warnings, &c.Detail)
			return c, err
		})
}

// DeliveryRow is one delivery as recorded.
type DeliveryRow struct {
	Instance int64
	Dest     string
	State    state.Delivery
	Attempts int64
	Status   int
	Detail   string
	DoneAt   time.Time
}

// SeriesDeliveries lists the deliveries of a series, at most n.
func (j *Journal) SeriesDeliveries(ctx context.Context, series int64, n int) ([]DeliveryRow, error) {
	return list(ctx, j, "read deliveries", `SELECT instance, dest, state, attempts, status, detail, done_at FROM
		delivery WHERE series=? ORDER BY ord, dest LIMIT ?`,
		[]any{series, n}, func(scan func(...any) error) (d DeliveryRow, err error) {
			var at int64
			err = scan(&d.Instance, &d.Dest, &d.State, &d.Attempts, &d.Status, &d.Detail, &at)
			d.DoneAt = fromNanos(at)
			return d, err
		})
}

// Stuck are the images that only a person can move on: their originals stay in the spool.
type Stuck struct {
	Refused  map[string]int64 // deliveries that ended as refused or damaged, by destination
	Conflict int64            // originals of which other bytes under the same UID were there before
}

// Stuck counts what is stuck.
func (j *Journal) Stuck(ctx context.Context) (Stuck, error) {
	s := Stuck{Refused: map[string]int64{}}
	rows, err := j.db.QueryContext(ctx, `SELECT dest, count(*) FROM delivery INDEXED BY delivery_refused
			WHERE state IN ('refused','damaged') GROUP BY dest
		UNION ALL SELECT '', count(*) FROM instance INDEXED BY instance_conflict WHERE stage='conflict' AND gone=0`)
	if err != nil {
		return s, journalErr("count what is stuck", err)
	}
	defer rows.Close()
	for rows.Next() {
		var dest string
		var n int64
		if err := rows.Scan(&dest, &n); err != nil {
			return s, journalErr("count what is stuck", err)
		}
		if dest == "" {
			s.Conflict = n
		} else {
			s.Refused[dest] = n
		}
	}
	return s, rows.Err()
}
