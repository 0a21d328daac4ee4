package spool

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

// schemaVersion is stored in user_version. A journal of another version is
// moved aside and rebuilt from the files.
const schemaVersion = 4

// Times are Unix nanoseconds, 0 = never. Words are the constants of rows.go.
const schema = `
CREATE TABLE series (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE,            -- series UID, or ?<calling AE> for objects that have none
  study TEXT NOT NULL, modality TEXT NOT NULL, protocol TEXT NOT NULL, number INTEGER NOT NULL,
  calling TEXT NOT NULL, called TEXT NOT NULL, host TEXT NOT NULL,
  state TEXT NOT NULL, complete_by TEXT NOT NULL DEFAULT '',
  expected INTEGER NOT NULL, received INTEGER NOT NULL,
  first_at INTEGER NOT NULL, opened_at INTEGER NOT NULL, last_at INTEGER NOT NULL, complete_at INTEGER NOT NULL DEFAULT 0,
  reopened INTEGER NOT NULL DEFAULT 0,
  quality TEXT NOT NULL, channel TEXT NOT NULL, rule TEXT NOT NULL,
  told TEXT NOT NULL DEFAULT ''        -- evidence.Sums of its originals, those with told=1
) STRICT;
CREATE INDEX series_recent ON series(last_at);
CREATE INDEX series_open ON series(id) WHERE state='receiving';
CREATE TABLE instance (
  id INTEGER PRIMARY KEY,              -- grows with arrival
  series INTEGER NOT NULL REFERENCES series(id),
  kind TEXT NOT NULL,
  source INTEGER NOT NULL,             -- derived: id of the original; else 0
  sop TEXT NOT NULL, variant INTEGER NOT NULL, -- 0 first bytes under this UID, 1... other bytes (conflict)
  class TEXT NOT NULL, syntax TEXT NOT NULL,
  file TEXT NOT NULL, off INTEGER NOT NULL, size INTEGER NOT NULL, crc INTEGER NOT NULL,
  received INTEGER NOT NULL, number INTEGER NOT NULL, frames INTEGER NOT NULL,
  added INTEGER NOT NULL,              -- since when it may be sent: its receipt; for a high derived object when that was made
  quality TEXT NOT NULL, channel TEXT NOT NULL, rule TEXT NOT NULL,
  stage TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL DEFAULT 0,
  sigma REAL NOT NULL DEFAULT 0,
  gone INTEGER NOT NULL DEFAULT 0,     -- when the file was purged
  unwanted INTEGER NOT NULL DEFAULT 0, -- there were destinations and none of them takes originals
  told INTEGER NOT NULL DEFAULT 0,     -- what it told is in the sums of its series
  UNIQUE (series, sop, kind, variant)
) STRICT;
CREATE INDEX instance_queue ON instance(series, id) WHERE stage='queued';
CREATE INDEX instance_kept ON instance(id) WHERE gone=0 AND kind='original';
CREATE INDEX instance_source ON instance(source) WHERE source>0;
CREATE TABLE delivery (
  instance INTEGER NOT NULL REFERENCES instance(id),
  dest TEXT NOT NULL,
  series INTEGER NOT NULL,
  ord INTEGER NOT NULL,                -- 2*original id, +1 for fast: oldest first, original before derived; 2*own id+1 for high
  state TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0, -- in a row, with images of others stored in between
  status INTEGER NOT NULL DEFAULT -1,  -- last DICOM status, -1 = none yet
  detail TEXT NOT NULL DEFAULT '', done_at INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (instance, dest)
) STRICT, WITHOUT ROWID;
CREATE INDEX delivery_queue ON delivery(dest, ord) WHERE state='queued';
CREATE INDEX delivery_suspect ON delivery(dest, next_at) WHERE state='queued' AND failures>=2;
CREATE INDEX delivery_series ON delivery(series, dest, state);
CREATE TABLE flag (                    -- what a person asked for; the file in spool/flag says the same
  key TEXT PRIMARY KEY,                -- series UID, which may not be here yet
  quality TEXT NOT NULL, why TEXT NOT NULL, who TEXT NOT NULL, at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE high (                    -- originals that get, or got, the high pass
  original INTEGER PRIMARY KEY REFERENCES instance(id),
  series INTEGER NOT NULL,
  stage TEXT NOT NULL,                 -- queued, denoised, failed
  reason TEXT NOT NULL, detail TEXT NOT NULL,
  fill INTEGER NOT NULL DEFAULT 0,     -- failed: a copy may stand in; queued and denoised: it is to be one, or is one
  attempts INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL DEFAULT 0,
  since INTEGER NOT NULL               -- when it was asked for
) STRICT;
CREATE INDEX high_series ON high(series);
CREATE INDEX high_queue ON high(series, original) WHERE stage='queued';
`

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

// ErrJournal is in the chain of an error that means the journal cannot be used as it is.
var ErrJournal = errors.New("journal damaged")

// OpenJournal opens or makes the journal at path. fresh tells that it was made
// now. An error that is ErrJournal means: move it aside and rebuild.
// hook is called before and after each commit, onCommit (may be nil) with its
// duration and the number of changes in it.
func OpenJournal(ctx context.Context, path string, hook func(step string), onCommit func(time.Duration, int)) (j *Journal, fresh bool, err error) {
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
		return nil, false, fmt.Errorf("open journal: %w", err)
	}
	defer func() {
		if err != nil {
			wdb.Close()
		}
	}()
	for _, p := range pragmas {
		var got string
		if err := wdb.QueryRowContext(ctx, "PRAGMA "+p.name).Scan(&got); err != nil {
			return nil, false, journalErr("read journal pragma "+p.name, err)
		}
		if !strings.EqualFold(got, p.want) {
			return nil, false, fmt.Errorf("open journal: pragma %s is %q, need %q", p.name, got, p.want)
		}
	}
	var check string
	if err := wdb.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&check); err != nil {
		return nil, false, journalErr("check journal", err)
	}
	if check != "ok" {
		return nil, false, fmt.Errorf("check journal: %s: %w", check, ErrJournal)
	}
	var version, tables int
	if err := wdb.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return nil, false, journalErr("read journal version", err)
	}
	if err := wdb.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		return nil, false, journalErr("read journal schema", err)
	}
	switch {
	case version == 0 && tables == 0:
		fresh = true
		if _, err := wdb.ExecContext(ctx, fmt.Sprintf("BEGIN;%s;PRAGMA user_version=%d;COMMIT", schema, schemaVersion)); err != nil {
			return nil, false, journalErr("make journal", err)
		}
	case version != schemaVersion:
		return nil, false, fmt.Errorf("journal has version %d, this program writes %d: %w", version, schemaVersion, ErrJournal)
	}
	db, err := open("&_pragma=query_only(1)", 4)
	if err != nil {
		return nil, false, fmt.Errorf("open journal: %w", err)
	}
	conn, err := wdb.Conn(context.WithoutCancel(ctx))
	if err != nil {
		db.Close()
		return nil, false, journalErr("open journal", err)
	}
	j = &Journal{db: db, wdb: wdb, hook: hook, onTx: onCommit, queue: make(chan *change, maxBatch), stop: make(chan struct{}), ended: make(chan struct{})}
	go j.write(&tx{conn: conn, stmts: map[string]*sql.Stmt{}})
	return j, fresh, nil
}

func journalErr(what string, err error) error {
	var se *sqlite.Error
	if errors.As(err, &se) {
		switch se.Code() & 0xff {
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return fmt.Errorf("%s: %w: %w", what, ErrJournal, err)
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
			if _, rerr := t.conn.ExecContext(context.Background(), "ROLLBACK"); rerr != nil && !strings.Contains(rerr.Error(), "no transaction") {
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
