package journal

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

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
	AND NOT EXISTS (SELECT 1 FROM instance e JOIN delivery d ON d.instance=e.id WHERE e.source>0 AND e.source=i.id AND
	d.state<>'stored')
	AND (EXISTS (SELECT 1 FROM delivery d WHERE d.instance=i.id)
	  OR EXISTS (SELECT 1 FROM instance e JOIN delivery d ON d.instance=e.id WHERE e.source>0 AND e.source=i.id)
	  OR i.stage='passed' AND i.unwanted=1)`

// Purgeable lists, oldest first and after id, up to n originals whose last
// delivery ended before the given time.
func (j *Journal) Purgeable(ctx context.Context, after int64, before time.Time, n int) ([]Instance, error) {
	return j.instances(ctx, `INDEXED BY instance_kept WHERE i.id>? AND i.received<? AND `+settled+`
		AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.instance=i.id AND d.done_at>=?)
		AND NOT EXISTS (SELECT 1 FROM instance e JOIN delivery d ON d.instance=e.id WHERE e.source>0 AND e.source=i.id
		AND d.done_at>=?)
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
			AND NOT EXISTS (SELECT 1 FROM instance i WHERE i.series=s.id AND (i.gone=0 OR i.gone>=?1)) ORDER BY
			s.last_at LIMIT ?2`)
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
			for _, q := range []string{`DELETE FROM delivery WHERE series=?`, `DELETE FROM high WHERE series=?`, `DELETE
				FROM instance WHERE series=?`, `DELETE FROM series WHERE id=?`} {
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
