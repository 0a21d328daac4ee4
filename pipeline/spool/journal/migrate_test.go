package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/pipeline/state"
)

// older makes a journal of an earlier version with a series of two originals: one that asked for fast, is denoised
// and has reached the archive with its derived object, and one that asked for high and waits.
func older(t *testing.T, path string, version int, extra string) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("testdata/schema%d.sql", version))
	if err != nil {
		t.Fatal(err)
	}
	added, values := "", ""
	if version >= 3 {
		added, values = ",added", ",5000000000"
	}
	instance := func(id int, kind, quality, stage string, source int) string {
		return fmt.Sprintf(`INSERT INTO instance(id,series,kind,source,sop,variant,class,syntax,file,off,size,crc,received,
			number,frames,quality,channel,rule,stage,reason,detail%s)
			VALUES(%d,1,'%s',%d,'1.2.%d',0,'1','1','f%d',9,9,9,5000000000,%d,1,
			'%s','default','','%s','',''%s);`, added, id, kind, source, id, id, id, quality, stage, values)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, q := range []string{string(text), extra, fmt.Sprintf("PRAGMA user_version=%d", version),
		`INSERT INTO series(id,key,study,modality,protocol,number,calling,called,host,state,expected,received,first_at,
			opened_at,last_at,quality,channel,rule)
			VALUES(1,'1.2','1','MR','t2',4,'MR1','DENOISE','h','complete',0,2,5,5,5,'high','rule','x')`,
		instance(1, "original", "fast", "denoised", 0), instance(2, "original", "high", "queued", 0),
		instance(3, "derived", "fast", "made", 1),
		`INSERT INTO delivery(instance,dest,series,ord,state,attempts,status,done_at)
			VALUES(1,'pacs',1,2,'stored',1,0,7),
			(3,'pacs',1,3,'stored',1,0,7),(2,'pacs',1,4,'queued',0,-1,0)`} {
		if _, err := db.Exec(q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

// columns describes every column and index of a journal, in no order of creation.
func columns(t *testing.T, path string) []string {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query(`SELECT m.name||'.'||c.name||' '||c.type||' '||c."notnull"||' '||c.pk FROM sqlite_schema m
		JOIN pragma_table_info(m.name) c WHERE m.type='table'
		UNION ALL SELECT name||': '||coalesce(sql,'') FROM sqlite_schema WHERE type='index'`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// A journal of an earlier version keeps all it knows: what was delivered is not sent again. It ends with the tables
// of a new one, and the old one lies beside it as it was.
func TestMigrate(t *testing.T) {
	fresh := filepath.Join(t.TempDir(), "j.db")
	openJournal(t, fresh)
	want := columns(t, fresh)
	for name, c := range map[string]struct {
		version int
		extra   string
	}{
		"1": {1, ""}, "2": {2, ""}, "3": {3, ""}, "4": {4, ""},
		"the last of 2": {2, `ALTER TABLE instance ADD COLUMN unwanted INTEGER NOT NULL DEFAULT 0`},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "j.db")
			older(t, path, c.version, c.extra)
			before := columns(t, path)
			j, found, err := Open(t.Context(), path, nil, nil)
			if err != nil || found != c.version {
				t.Fatal(found, err)
			}
			defer j.Close()
			if got := columns(t, path); !slices.Equal(got, want) {
				t.Errorf("columns and indexes:\n%q\nwant\n%q", got, want)
			}
			if got := columns(t, copyName(path, c.version)); !slices.Equal(got, before) {
				t.Errorf("the copy has\n%q\nwant\n%q", got, before)
			}
			due, err := j.NextDeliveries(t.Context(), "pacs", time.Unix(9, 0), 10)
			if err != nil || len(due) != 1 || due[0].Instance.ID != 2 {
				t.Errorf("to be sent: %+v, %v", due, err)
			}
			all, err := j.SeriesDeliveries(t.Context(), 1, 10)
			if err != nil || len(all) != 3 || all[0].State != state.DeliveryStored ||
				all[1].State != state.DeliveryStored {
				t.Errorf("deliveries: %+v, %v", all, err)
			}
			if q, err := j.Depths(t.Context()); err != nil || c.version < 3 && q.High.Count != 1 ||
				!q.Forward["pacs"].Oldest.Equal(time.Unix(5, 0)) {
				t.Errorf("queues: %+v, %v", q, err)
			}
			// It serves as any other.
			if err := j.Lane("fast").Add(2, Instance{SOP: "2.25.1", File: "d", Quality: "fast"}, false,
				[]string{"pacs"}, time.Time{}); err != nil {
				t.Error(err)
			}
			if _, found, err := again(t, j, path); err != nil || found != SchemaVersion {
				t.Errorf("opened again: version %d, %v", found, err)
			}
		})
	}
}

// again closes a journal and opens it once more.
func again(t *testing.T, j *Journal, path string) (*Journal, int, error) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, found, err := Open(context.Background(), path, nil, nil)
	if err == nil {
		t.Cleanup(func() { j.Close() })
	}
	return j, found, err
}

// A migration that is cut short at any step goes on at the next start.
func TestMigrateCutShort(t *testing.T) {
	for stop := 1; ; stop++ {
		path := filepath.Join(t.TempDir(), "j.db")
		older(t, path, 1, "")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		steps := 0
		j, _, err := Open(ctx, path, func(string) {
			if steps++; steps == stop {
				cancel()
			}
		}, nil)
		if err == nil {
			j.Close()
		} else if !errors.Is(err, context.Canceled) {
			t.Fatalf("stopped after step %d: %v", stop, err)
		}
		j, _, err = Open(t.Context(), path, nil, nil)
		if err != nil {
			t.Fatalf("after step %d: %v", stop, err)
		}
		due, err := j.NextDeliveries(t.Context(), "pacs", time.Unix(9, 0), 10)
		if err != nil || len(due) != 1 {
			t.Errorf("after step %d: to be sent %+v, %v", stop, due, err)
		}
		j.Close()
		if stop > steps {
			if steps != 1+SchemaVersion-oldestVersion {
				t.Errorf("%d steps", steps)
			}
			return
		}
	}
}

// A journal that is not what its version says is damaged, and the step that
// finds out changes nothing.
func TestMigrateWhatIsNone(t *testing.T) {
	for name, c := range map[string]struct {
		version int
		extra   string
	}{
		"a table is missing":   {3, ``},
		"a column is there":    {1, `ALTER TABLE delivery ADD COLUMN failures INTEGER NOT NULL DEFAULT 0`},
		"a version never made": {2, ``},
	} {
		path := filepath.Join(t.TempDir(), "j.db")
		older(t, path, c.version, c.extra)
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		query := "SELECT 1"
		switch name {
		case "a table is missing":
			query = "PRAGMA foreign_keys=0; ALTER TABLE series RENAME TO other"
		case "a version never made":
			query = "PRAGMA user_version=-7"
		}
		if _, err := db.Exec(query); err != nil {
			t.Fatal(err)
		}
		db.Close()
		if _, _, err := Open(t.Context(), path, nil, nil); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrNewer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The journal of a newer program is refused and stays what it was.
func TestNewerJournalIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	j := openJournal(t, path)
	if err := j.change("test", func(t *tx) error {
		_, err := t.exec(fmt.Sprintf(`PRAGMA user_version=%d`, SchemaVersion+1))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	j.Close()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(t.Context(), path, nil, nil); !errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged) {
		t.Errorf("error %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !slices.Equal(after, before) {
		t.Errorf("changed: %d bytes, %d before, %v", len(after), len(before), err)
	}
}
