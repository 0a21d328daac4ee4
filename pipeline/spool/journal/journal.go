package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite" // registers the driver "sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// pragmas are asserted after opening: a driver that ignores one would leave
// acknowledged rows undurable without a word.
var pragmas = []struct{ name, set, want string }{
	{"journal_mode", "WAL", "wal"},
	{"synchronous", "FULL", "2"},
	{"foreign_keys", "1", "1"},
	{"busy_timeout", "5000", "5000"},
	{"cache_size", "-2048", "-2048"},
	{"wal_autocheckpoint", "2000", "2000"},
	{"journal_size_limit", "33554432", "33554432"},
}

// Journal is the record of what happened to every instance. Reads may run at
// any time; changes go through one goroutine that commits the changes of all
// callers waiting at that moment as one transaction.
type Journal struct {
	db    *sql.DB // readers
	wdb   *sql.DB // the one writer
	hook  func(step string)
	onTx  func(time.Duration, int)
	queue chan *change
	stop  chan struct{}
	ended chan struct{}
	once  sync.Once
}

type change struct {
	fn   func(*tx) error
	err  error
	done chan struct{}
}

// maxBatch bounds the changes in one transaction.
const maxBatch = 256

// ErrDamaged is in the chain of an error that means the journal cannot be used as it is.
var ErrDamaged = errors.New("journal damaged")

// Open opens or makes the journal at path. found is the version that it had, 0 if
// it was made now; one of an earlier version is migrated first. An error that is
// ErrDamaged means: move it aside and rebuild; ErrNewer: leave it alone.
// hook is called before and after each commit, onCommit (may be nil) with its
// duration and the number of changes in it.
func Open(ctx context.Context, path string, hook func(step string), onCommit func(time.Duration, int),
) (j *Journal, found int, err error) {
	if hook == nil {
		hook = func(string) {}
	}
	if onCommit == nil {
		onCommit = func(time.Duration, int) {}
	}
	q := url.Values{"_txlock": {"immediate"}}
	for _, p := range pragmas {
		q.Add("_pragma", p.name+"("+p.set+")")
	}
	open := func(extra string, conns int) (*sql.DB, error) {
		u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode() + extra}
		db, err := sql.Open("sqlite", u.String())
		if err == nil {
			db.SetMaxOpenConns(conns)
			db.SetMaxIdleConns(conns)
		}
		return db, err
	}
	wdb, err := open("", 1)
	if err != nil {
		return nil, 0, fmt.Errorf("open journal: %w", err)
	}
	defer func() {
		if err != nil {
			wdb.Close()
		}
	}()
	for _, p := range pragmas {
		var got string
		if err := wdb.QueryRowContext(ctx, "PRAGMA "+p.name).Scan(&got); err != nil {
			return nil, 0, journalErr("read journal pragma "+p.name, err)
		}
		if !strings.EqualFold(got, p.want) {
			return nil, 0, fmt.Errorf("open journal: pragma %s is %q, need %q", p.name, got, p.want)
		}
	}
	var check string
	if err := wdb.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&check); err != nil {
		return nil, 0, journalErr("check journal", err)
	}
	if check != "ok" {
		return nil, 0, fmt.Errorf("check journal: %s: %w", check, ErrDamaged)
	}
	var tables int
	if err := wdb.QueryRowContext(ctx, "PRAGMA user_version").Scan(&found); err != nil {
		return nil, 0, journalErr("read journal version", err)
	}
	if err := wdb.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		return nil, 0, journalErr("read journal schema", err)
	}
	switch {
	case found == 0 && tables == 0:
		if _, err := wdb.ExecContext(ctx, fmt.Sprintf("BEGIN;%s;PRAGMA user_version=%d;COMMIT", schema,
			SchemaVersion)); err != nil {
			return nil, 0, journalErr("make journal", err)
		}
	case found > SchemaVersion:
		return nil, 0, fmt.Errorf("open journal %q: it has version %d, this program writes %d: %w", path, found,
			SchemaVersion, ErrNewer)
	case found < oldestVersion:
		return nil, 0, fmt.Errorf("journal has version %d, which never was: %w", found, ErrDamaged)
	case found < SchemaVersion:
		if err := migrate(ctx, wdb, path, found, hook); err != nil {
			return nil, 0, err
		}
	}
	db, err := open("&_pragma=query_only(1)", 4)
	if err != nil {
		return nil, 0, fmt.Errorf("open journal: %w", err)
	}
	conn, err := wdb.Conn(context.WithoutCancel(ctx))
	if err != nil {
		db.Close()
		return nil, 0, journalErr("open journal", err)
	}
	j = &Journal{db: db, wdb: wdb, hook: hook, onTx: onCommit, queue: make(chan *change, maxBatch),
		stop: make(chan struct{}), ended: make(chan struct{})}
	go j.write(&tx{conn: conn, stmts: map[string]*sql.Stmt{}})
	return j, found, nil
}

func journalErr(what string, err error) error {
	var se *sqlite.Error
	if errors.As(err, &se) {
		switch se.Code() & 0xff {
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return fmt.Errorf("%s: %w: %w", what, ErrDamaged, err)
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Close ends the writer after the changes already queued, and closes the files.
func (j *Journal) Close() error {
	j.once.Do(func() { close(j.stop) })
	<-j.ended
	return errors.Join(j.db.Close(), j.wdb.Close())
}

// tx is what a change may use: the writer's connection with its statements.
type tx struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
}

func (t *tx) stmt(query string) (*sql.Stmt, error) {
	if s := t.stmts[query]; s != nil {
		return s, nil
	}
	s, err := t.conn.PrepareContext(context.Background(), query)
	if err == nil {
		t.stmts[query] = s
	}
	return s, err
}

func (t *tx) exec(query string, args ...any) (sql.Result, error) {
	s, err := t.stmt(query)
	if err != nil {
		return nil, err
	}
	return s.Exec(args...)
}

func (t *tx) row(query string, args []any, dest ...any) error {
	s, err := t.stmt(query)
	if err != nil {
		return err
	}
	return s.QueryRow(args...).Scan(dest...)
}

var errClosed = errors.New("journal is closed")

// change runs fn inside a transaction and returns once that is durable. fn may
// run more than once, and only the last run counts; it must change nothing but
// the journal and variables of its own. Its error undoes its changes only.
// There is no way to give up waiting: the caller must know what happened.
func (j *Journal) change(what string, fn func(*tx) error) error {
	c := &change{fn: fn, done: make(chan struct{})}
	select {
	case j.queue <- c:
	case <-j.stop:
		return fmt.Errorf("%s: %w", what, errClosed)
	}
	select {
	case <-c.done:
	case <-j.ended: // it may have been served on the way out
		select {
		case <-c.done:
		default:
			return fmt.Errorf("%s: %w", what, errClosed)
		}
	}
	if c.err != nil {
		return journalErr(what, c.err)
	}
	return nil
}

// write is the writer goroutine; it ends after stop, when the queue is empty.
func (j *Journal) write(t *tx) {
	defer close(j.ended)
	defer func() {
		for _, s := range t.stmts {
			s.Close()
		}
		t.conn.Close()
	}()
	batch := make([]*change, 0, maxBatch)
	for {
		batch = batch[:0]
		select {
		case c := <-j.queue:
			batch = append(batch, c)
		case <-j.stop:
			select {
			case c := <-j.queue:
				batch = append(batch, c)
			default:
				return
			}
		}
	more:
		for len(batch) < maxBatch {
			select {
			case c := <-j.queue:
				batch = append(batch, c)
			default:
				break more
			}
		}
		j.commit(t, batch)
	}
}

// commit tries the batch as one transaction; if any part of it fails, each
// change gets a transaction of its own so that only the guilty one is undone.
func (j *Journal) commit(t *tx, batch []*change) {
	start := time.Now()
	err := j.transaction(t, batch)
	if err != nil && len(batch) > 1 {
		for _, c := range batch {
			c.err = j.transaction(t, []*change{c})
		}
	} else {
		for _, c := range batch {
			c.err = err
		}
	}
	j.onTx(time.Since(start), len(batch))
	for _, c := range batch {
		close(c.done)
	}
}

func (j *Journal) transaction(t *tx, batch []*change) (err error) {
	if _, err := t.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	open := true
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a journal change: %v", p)
		}
		if err != nil && open {
			if _, rerr := t.conn.ExecContext(context.Background(), "ROLLBACK"); rerr != nil &&
				!strings.Contains(rerr.Error(), "no transaction") {
				err = errors.Join(err, rerr)
			}
		}
	}()
	for _, c := range batch {
		if err := c.fn(t); err != nil {
			return err
		}
	}
	j.hook("commit")
	if _, err := t.exec("COMMIT"); err != nil {
		return err
	}
	open = false
	j.hook("committed")
	return nil
}

// maxDetail bounds the bytes of a text that goes on record.
const maxDetail = 500

func clip(detail string) string { return detail[:min(len(detail), maxDetail)] }

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

// list reads rows of a query with read, which is given the Scan of each.
func list[T any](ctx context.Context, j *Journal, what, query string, args []any, read func(scan func(...any) error) (T,
	error)) ([]T, error) {
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

// probeBytes need pages of their own, as an image now and then does.
const probeBytes = 12 << 10

// Writable writes a row and removes it again in one change: it fails when the journal cannot be written, or has no
// room for more.
func (j *Journal) Writable() error {
	return j.change("write to journal", func(t *tx) error {
		// No flag has the key ''.
		if _, err := t.exec(`INSERT INTO flag(key, quality, why, who, at) VALUES('', '', ?, '', 0)`,
			strings.Repeat(".", probeBytes)); err != nil {
			return err
		}
		_, err := t.exec(`DELETE FROM flag WHERE key=''`)
		return err
	})
}
