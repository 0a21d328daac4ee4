package journal

import (
	"context"
	"time"

	"github.com/diffdenoise/denoised/pipeline/state"
)

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
	if err := j.db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE type='index' AND
		name='instance_file'`).Scan(&n); err != nil {
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

// Lose marks a row whose file is gone or damaged. The high pass of its series waits
// for it no longer.
func (j *Journal) Lose(id int64, detail string) error {
	return j.change("record lost file", func(t *tx) error {
		if _, err := t.exec(`UPDATE instance SET stage='lost', detail=? WHERE id=?`, detail, id); err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE high SET stage='failed', reason='lost', detail=?, fill=0 WHERE original=? AND
			stage='queued'`, detail, id); err != nil {
			return err
		}
		if _, err := t.exec(`UPDATE delivery SET state='damaged', detail=? WHERE instance=? AND state='queued'`, detail,
			id); err != nil {
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
		again, args := `UPDATE instance SET stage='queued', reason='', detail='', attempts=0, next_at=0 WHERE id=? AND
			stage='denoised'`, []any{original}
		var quality state.Quality
		if err := t.row(`SELECT quality FROM instance WHERE id=?`, []any{derived}, &quality); err != nil {
			return err
		}
		if quality == state.High {
			again = `UPDATE high SET stage='queued', reason=CASE WHEN fill=1 THEN reason ELSE '' END, detail=CASE WHEN
				fill=1 THEN detail ELSE '' END, attempts=0, next_at=0 WHERE original=? AND stage='denoised'`
			if start.Reason != "" {
				again, args = `UPDATE high SET stage='failed', reason=?, detail=?, fill=0 WHERE original=? AND
					stage='denoised'`, []any{start.Reason, clip(start.Detail), original}
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

// Adopt records a derived object that was found finished and that the journal does
// not know, as Lane.Add does, whatever its original waits for by now. ErrExists: the journal knows another file of this
// object.
func (j *Journal) Adopt(original int64, d Instance, fill bool, dests []string, at time.Time) error {
	return j.change("take up derived object", func(t *tx) error {
		var n int
		if err := t.row(`SELECT count(*) FROM instance i JOIN instance o ON o.series=i.series WHERE o.id=? AND i.sop=?
			AND i.kind='derived' AND i.gone=0`, []any{original, d.SOP}, &n); err != nil {
			return err
		}
		switch {
		case n > 0:
			return ErrExists
		}
		return j.Lane(d.Quality).add(t, original, d, fill, dests, at)
	})
}
