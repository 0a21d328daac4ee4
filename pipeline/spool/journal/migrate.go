package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/diffdenoise/denoised/internal/atomicfile"
)

// oldestVersion is the first schema that the ladder starts from.
const oldestVersion = 1

// ErrNewer is in the chain of an error that means that a newer program wrote the journal. Nothing was touched:
// install that program again, or take the copy that it made of the journal before it changed it.
var ErrNewer = errors.New("the journal was written by a newer version of this program")

// ladder[v] makes schema v+1 of schema v. A step has what was known when it was written, and is never changed after
// its release: the schema that it leads to may be changed by the next one.
var ladder = map[int]func(context.Context, *sql.Tx) error{
	// Failures between which the destination stored other images.
	1: func(ctx context.Context, t *sql.Tx) error {
		return run(ctx, t,
			`ALTER TABLE delivery ADD COLUMN failures INTEGER NOT NULL DEFAULT 0`,
			`CREATE INDEX delivery_suspect ON delivery(dest, next_at) WHERE state='queued' AND failures>=2`)
	},
	// Flags and the high lane. What had asked for high got the fast lane only; now it gets a place in the other too.
	2: func(ctx context.Context, t *sql.Tx) error {
		var n int
		if err := t.QueryRowContext(ctx,
			`SELECT count(*) FROM pragma_table_info('instance') WHERE name='unwanted'`).Scan(&n); err != nil {
			return err
		}
		if n == 0 { // the last programs of version 2 had it
			if err := run(ctx, t, `ALTER TABLE instance ADD COLUMN unwanted INTEGER NOT NULL DEFAULT 0`); err != nil {
				return err
			}
		}
		return run(ctx, t,
			`ALTER TABLE instance ADD COLUMN added INTEGER NOT NULL DEFAULT 0`,
			`UPDATE instance SET added=received`,
			`CREATE TABLE flag (key TEXT PRIMARY KEY, quality TEXT NOT NULL, why TEXT NOT NULL, who TEXT NOT NULL,
				at INTEGER NOT NULL) STRICT, WITHOUT ROWID`,
			`CREATE TABLE high (original INTEGER PRIMARY KEY REFERENCES instance(id), series INTEGER NOT NULL,
				stage TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL, fill INTEGER NOT NULL DEFAULT 0,
				attempts INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL DEFAULT 0, since INTEGER NOT NULL)
				STRICT`,
			`CREATE INDEX high_series ON high(series)`,
			`CREATE INDEX high_queue ON high(series, original) WHERE stage='queued'`,
			`INSERT INTO high(original,series,stage,reason,detail,since) SELECT id,series,'queued','','',received
				FROM instance WHERE quality='high' AND kind='original' AND variant=0 AND gone=0
				AND (stage IN ('queued','denoised') OR stage='failed' AND reason<>'damaged' OR stage='passed'
				AND reason IN ('gate-size','gate-nan','gate-range','gate-constant'))`)
	},
	// What images tell of their series. Those of before have told nothing.
	3: func(ctx context.Context, t *sql.Tx) error {
		return run(ctx, t,
			`ALTER TABLE series ADD COLUMN told TEXT NOT NULL DEFAULT ''`,
			`ALTER TABLE instance ADD COLUMN told INTEGER NOT NULL DEFAULT 0`)
	},
	// Whether a destination may have an image, until now after any attempt. What waits for a person is counted every
	// few seconds.
	4: func(ctx context.Context, t *sql.Tx) error {
		return run(ctx, t,
			`ALTER TABLE delivery ADD COLUMN unsure INTEGER NOT NULL DEFAULT 0`,
			`UPDATE delivery SET unsure=1 WHERE state='queued' AND attempts>0`,
			`CREATE INDEX delivery_refused ON delivery(dest) WHERE state IN ('refused','damaged')`,
			`CREATE INDEX instance_conflict ON instance(id) WHERE stage='conflict' AND gone=0`)
	},
}

func run(ctx context.Context, t *sql.Tx, queries ...string) error {
	for _, q := range queries {
		if _, err := t.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// copyName is where a journal of an earlier version is kept.
func copyName(path string, version int) string { return fmt.Sprintf("%s.before-%d", path, version) }

// migrate brings a journal of the given earlier version to SchemaVersion, each step in a transaction of its own,
// after a copy of all of it was made beside it. Killed at any point the journal is of one version or the next, and
// the next Open goes on. An error that is ErrDamaged: it is not what its version says.
func migrate(ctx context.Context, db *sql.DB, path string, version int, hook func(string)) error {
	// Not the file's own bytes: what was committed last may be in the -wal file.
	err := atomicfile.Write(copyName(path, version), 0o640, func(f *os.File) error {
		_, err := db.ExecContext(ctx, `VACUUM INTO ?`, f.Name())
		return err
	})
	if err != nil {
		return journalErr(fmt.Sprintf("copy journal of version %d before it is migrated", version), err)
	}
	if d, err := os.Open(filepath.Dir(path)); err == nil { // the copy's name, where folders can be synced
		_ = d.Sync()
		d.Close()
	}
	hook("journal-copied")
	for ; version < SchemaVersion; version++ {
		if err := climb(ctx, db, version); err != nil {
			what := fmt.Sprintf("migrate journal from version %d to %d", version, version+1)
			var se *sqlite.Error
			if errors.As(err, &se) && (se.Code()&0xff == sqlite3.SQLITE_ERROR ||
				se.Code()&0xff == sqlite3.SQLITE_CONSTRAINT) {
				return fmt.Errorf("%s: %w: %w", what, ErrDamaged, err)
			}
			return journalErr(what, err)
		}
		hook("journal-migrated")
	}
	return nil
}

// climb makes one step of the ladder.
func climb(ctx context.Context, db *sql.DB, version int) error {
	t, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer t.Rollback() // nothing after Commit
	if err := ladder[version](ctx, t); err != nil {
		return err
	}
	if _, err := t.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version=%d", version+1)); err != nil {
		return err
	}
	return t.Commit()
}
