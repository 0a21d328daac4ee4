package journal

import (
	"context"
	"time"
)

// Bound sets times that lie after now to now, and returns whether there were any: they were written while the
// system clock was ahead. Series would stay open, and nothing would be purged, until the clock came to them. It looks
// at
// all rows only if a series was changed after now. Times until which a queue waits are judged where they are read.
func (j *Journal) Bound(ctx context.Context, now time.Time) (bool, error) {
	var ahead bool
	at := nanos(now)
	if err := j.db.QueryRowContext(ctx, `SELECT coalesce(max(last_at), 0)>? FROM series`, at).Scan(&ahead); err != nil {
		return false, journalErr("look for times after now", err)
	}
	if !ahead {
		return false, nil
	}
	return true, j.change("set times after now to now", func(t *tx) error {
		for _, q := range []string{
			`UPDATE series SET first_at=min(first_at,?1), opened_at=min(opened_at,?1), last_at=min(last_at,?1),
				complete_at=min(complete_at,?1) WHERE last_at>?1`,
			`UPDATE instance SET received=min(received,?1), added=min(added,?1), gone=min(gone,?1)
				WHERE received>?1 OR added>?1 OR gone>?1`,
			`UPDATE delivery SET done_at=?1 WHERE done_at>?1`,
			`UPDATE flag SET at=?1 WHERE at>?1`,
			`UPDATE high SET since=?1 WHERE since>?1`,
		} {
			if _, err := t.exec(q, at); err != nil {
				return err
			}
		}
		return nil
	})
}
