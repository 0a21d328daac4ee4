package journal

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// Series is a row of the series table.
type Series struct {
	ID                                    int64
	Key, Study, Modality, Protocol        string
	Number                                int64
	Calling, Called, Host                 string
	State                                 state.Series
	CompleteBy                            state.CompleteBy
	Expected, Received, Reopened          int64
	FirstAt, OpenedAt, LastAt, CompleteAt time.Time
	Quality                               state.Quality
	Channel                               state.Channel
	Rule                                  string
}

// CompleteSeries records that no more instances are waited for.
func (j *Journal) CompleteSeries(id int64, s state.Series, by state.CompleteBy, at time.Time) error {
	return j.change("record complete series", func(t *tx) error {
		_, err := t.exec(`UPDATE series SET state=?, complete_by=?, complete_at=? WHERE id=?`, s, by, nanos(at), id)
		return err
	})
}

const seriesColumns = `s.id,s.key,s.study,s.modality,s.protocol,s.number,s.calling,s.called,s.host,s.state,s.complete_by,
	s.expected,s.received,s.reopened,s.first_at,s.opened_at,s.last_at,s.complete_at,s.quality,s.channel,s.rule`

func (j *Journal) series(ctx context.Context, where string, args ...any) ([]Series, error) {
	return list(ctx, j, "read series", `SELECT `+seriesColumns+` FROM series s `+where, args,
		func(scan func(...any) error) (s Series, err error) {
			var at [4]int64
			err = scan(&s.ID, &s.Key, &s.Study, &s.Modality, &s.Protocol, &s.Number, &s.Calling, &s.Called, &s.Host,
				&s.State, &s.CompleteBy, &s.Expected, &s.Received, &s.Reopened,
				&at[0], &at[1], &at[2], &at[3], &s.Quality, &s.Channel, &s.Rule)
			s.FirstAt, s.OpenedAt = fromNanos(at[0]), fromNanos(at[1])
			s.LastAt, s.CompleteAt = fromNanos(at[2]), fromNanos(at[3])
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

// SeriesStates counts the series by state, and the conflicts and refused deliveries.
func (j *Journal) SeriesStates(ctx context.Context) (map[state.Series]int64, error) {
	out := map[state.Series]int64{}
	rows, err := j.db.QueryContext(ctx, `SELECT state, count(*) FROM series GROUP BY state`)
	if err != nil {
		return nil, journalErr("count series", err)
	}
	defer rows.Close()
	for rows.Next() {
		var s state.Series
		var n int64
		if err := rows.Scan(&s, &n); err != nil {
			return nil, journalErr("count series", err)
		}
		out[s] = n
	}
	return out, rows.Err()
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
