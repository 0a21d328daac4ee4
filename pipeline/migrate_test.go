package pipeline

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An upgrade sends nothing again, and a downgrade touches nothing.
func TestJournalOfAnotherVersion(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(p)
	im := slice(1, 1)
	receive(t, p, im)
	delivered := func(p *Pipeline) bool {
		s := status(t, p, im.series)
		return len(s.Destinations) == 1 && s.Destinations[0].Stored == 2
	}
	eventually(t, "delivered", func() bool { return delivered(p) })
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	change := func(query string) {
		t.Helper()
		db, err := sql.Open("sqlite", filepath.Join(o.StateDir, journalFile))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(query); err != nil {
			t.Fatal(err)
		}
	}
	change(`DROP INDEX delivery_refused; DROP INDEX instance_conflict; ALTER TABLE delivery DROP COLUMN unsure;
		ALTER TABLE series DROP COLUMN told; ALTER TABLE instance DROP COLUMN told; PRAGMA user_version=3`)
	if p, err = Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if !delivered(p) {
		t.Errorf("after the upgrade: %+v", status(t, p, im.series).Destinations)
	}
	if due, err := p.jrnl.NextDeliveries(t.Context(), "pacs", time.Now(), 10); err != nil || len(due) != 0 {
		t.Errorf("to be sent again: %d, %v", len(due), err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	change(`PRAGMA user_version=1000`)
	if p, err = Open(t.Context(), o); !errors.Is(err, ErrNewerJournal) {
		t.Fatalf("opened a journal of a newer program: %v", err)
	}
	if !strings.Contains(err.Error(), "1000") {
		t.Errorf("the error does not say which version: %v", err)
	}
	files, err := os.ReadDir(o.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.Contains(f.Name(), "damaged") {
			t.Errorf("moved aside: %s", f.Name())
		}
	}
	if _, err := os.Stat(filepath.Join(o.StateDir, journalFile+".before-3")); err != nil {
		t.Errorf("the copy: %v", err)
	}
}
