package journal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openJournal(t testing.TB, path string) *Journal {
	t.Helper()
	j, _, err := Open(context.Background(), path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func arrival(series string, n int) Arrival {
	return Arrival{Series: Series{Key: series, Quality: "fast"}, Instance: Instance{SOP: fmt.Sprintf("%s.%d", series,
		n), File: fmt.Sprintf("%s-%d", series, n), Stage: state.Queued, Quality: "fast",
		Received: time.Unix(int64(n), 0)}, Dests: []string{"pacs"}}
}

// Many callers share transactions, and a change that fails takes nobody along.
func TestGroupCommit(t *testing.T) {
	var mu sync.Mutex
	commits, changes := 0, 0
	j, found, err := Open(context.Background(), filepath.Join(t.TempDir(), "j.db"), nil, func(_ time.Duration, n int) {
		mu.Lock()
		defer mu.Unlock()
		commits++
		changes += n
	})
	if err != nil || found != 0 {
		t.Fatal(found, err)
	}
	defer j.Close()
	var wg sync.WaitGroup
	const writers, each = 16, 20
	for w := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := range each {
				a := arrival("1.2", w*each+n)
				if n%5 == 4 {
					a.Variants = 7 // wrong: must fail alone
					if _, err := j.AddOriginal(a); !errors.Is(err, ErrExists) {
						t.Errorf("error %v", err)
					}
				} else if _, err := j.AddOriginal(a); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	s, err := j.SeriesByKey(context.Background(), "1.2")
	if err != nil || s.Received != writers*each*4/5 {
		t.Errorf("%+v, %v", s, err)
	}
	if changes != writers*each || commits >= changes {
		t.Errorf("%d changes in %d batches", changes, commits)
	}
}

// What was returned from survives a reopening, and a panic in a change is an error.
func TestJournalKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?#%.db") // nothing of the name is taken for a parameter
	j, _, err := Open(context.Background(), path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.AddOriginal(arrival("1.2", 1)); err != nil {
		t.Fatal(err)
	}
	if err := j.change("test", func(*tx) error { panic("oops") }); err == nil {
		t.Error("a panic is no error")
	}
	if err := j.Writable(); err != nil {
		t.Error(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Writable(); err == nil {
		t.Error("wrote to a closed journal")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	j, found, err := Open(context.Background(), path, nil, nil)
	if err != nil || found != SchemaVersion {
		t.Fatal(found, err)
	}
	defer j.Close()
	list, err := j.NextDeliveries(context.Background(), "pacs", time.Now(), 10)
	if err != nil || len(list) != 1 || list[0].Instance.SOP != "1.2.1" || !list[0].Instance.Received.Equal(time.Unix(1,
		0)) {
		t.Errorf("%+v, %v", list, err)
	}
}

// The n-th original is counted by instance number, then arrival; other kinds and
// conflicts do not count.
func TestOriginal(t *testing.T) {
	j := openJournal(t, filepath.Join(t.TempDir(), "j.db"))
	var ids []int64
	for i, number := range []int64{7, 3, 3, 5} {
		a := arrival("1.2", i+1)
		a.Instance.Number = number
		added, err := j.AddOriginal(a)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, added.Instance)
	}
	other := arrival("1.2", 1)
	other.Variants, other.Instance.Number, other.Instance.Stage = 1, 1, state.Conflict
	if _, err := j.AddOriginal(other); err != nil {
		t.Fatal(err)
	}
	if err := j.Lane("fast").Add(ids[0], Instance{SOP: "2.25.1", Class: "1", Syntax: "1", File: "derived/00/a.dcm",
		Received: time.Unix(9, 0), Quality: "fast", Number: 2}, false, nil, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := j.AddOriginal(arrival("1.3", 9)); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]int64{-1: 0, 0: 0, 1: ids[1], 2: ids[2], 3: ids[3], 4: ids[0], 5: 0, math.MaxInt: 0} {
		in, err := j.Original(t.Context(), 1, n)
		if err != nil || (in == nil) != (want == 0) || in != nil && in.ID != want {
			t.Errorf("original %d: %+v, %v, want row %d", n, in, err, want)
		}
	}
}

// What an original tells is added once, to its series.
func TestTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	j := openJournal(t, path)
	add := func(key string, n int, told evidence.Sums) (series, derived, original int64) {
		t.Helper()
		a, err := j.AddOriginal(arrival(key, n))
		if err != nil {
			t.Fatal(err)
		}
		d := Instance{SOP: fmt.Sprintf("2.25.%d", n), Class: "1", Syntax: "1", File: fmt.Sprintf("derived/00/%d.dcm",
			n), Quality: "fast", Told: told}
		if err := j.Lane("fast").Add(a.Instance, d, false, nil, time.Time{}); err != nil {
			t.Fatal(err)
		}
		made, err := j.Derived(t.Context(), a.Instance, "fast")
		if err != nil || made == nil {
			t.Fatal(made, err)
		}
		return a.Series, made.ID, a.Instance
	}
	is := func(series int64, want evidence.Sums) {
		t.Helper()
		if got, err := j.Told(t.Context(), series); err != nil || !slices.Equal(got, want) {
			t.Errorf("series %d told %v, %v, want %v", series, got, err, want)
		}
	}
	one, _, _ := add("1.2", 1, nil)
	is(one, nil)
	_, derived, original := add("1.2", 2, evidence.Sums{1, 0.25})
	add("1.2", 3, evidence.Sums{2, -1})
	want := evidence.Sums{3, -0.75}
	is(one, want)
	if err := j.Remake(derived, original, Start{}, time.Unix(20, 0)); err != nil {
		t.Fatal(err)
	}
	d := Instance{SOP: "2.25.2", Class: "1", Syntax: "1", File: "derived/00/2.dcm", Quality: "fast",
		Told: evidence.Sums{5, 5}}
	if err := j.Lane("fast").Add(original, d, false, nil, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := j.Lane("fast").Add(original, d, false, nil, time.Time{}); !errors.Is(err, ErrNotWanted) {
		t.Errorf("recorded twice: %v", err)
	}
	is(one, want)
	other, _, _ := add("1.3", 4, evidence.Sums{7})
	is(other, evidence.Sums{7})
	is(99, nil)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = openJournal(t, path)
	is(one, want)
	// Text that is none does not keep images from their end.
	if err := j.change("test", func(t *tx) error {
		_,
			err := t.exec(`UPDATE series SET told='x'`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if got, err := j.Told(t.Context(), one); err == nil {
		t.Errorf("read %v", got)
	}
	add("1.2", 6, evidence.Sums{4, 4})
	is(one, evidence.Sums{4, 4})
}

// Forget undoes only what nobody has used.
func TestForget(t *testing.T) {
	j := openJournal(t, filepath.Join(t.TempDir(), "j.db"))
	a, err := j.AddOriginal(arrival("1.2", 1))
	if err != nil {
		t.Fatal(err)
	}
	b, err := j.AddOriginal(arrival("1.2", 2))
	if err != nil {
		t.Fatal(err)
	}
	if err := j.EndDelivery(b.Instance, "pacs", state.DeliveryStored, 0, "", time.Now()); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[int64]bool{a.Instance: true, b.Instance: false} {
		if gone, err := j.Forget(id); err != nil || gone != want {
			t.Errorf("instance %d forgotten: %v, %v", id, gone, err)
		}
	}
	if s, err := j.SeriesByKey(context.Background(), "1.2"); err != nil || s.Received != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// What came while there was no destination at all is owed to one and stays;
// what the destinations of the time did not want goes.
func TestOnlyWhatIsNotOwedIsPurged(t *testing.T) {
	j := openJournal(t, filepath.Join(t.TempDir(), "j.db"))
	var ids []int64
	for n, unwanted := range []bool{false, true} {
		a := arrival("1.2", n+1)
		a.Dests, a.Unwanted, a.Instance.Stage = nil, unwanted, state.Passed
		added, err := j.AddOriginal(a)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, added.Instance)
	}
	list, err := j.Purgeable(context.Background(), 0, time.Now(), 10)
	if err != nil || len(list) != 1 || list[0].ID != ids[1] {
		t.Errorf("%+v, %v", list, err)
	}
	for i, want := range []int{0, 1} {
		if files, err := j.Purge(ids[i], time.Now()); err != nil || len(files) != want {
			t.Errorf("image %d: purged %v, %v", i, files, err)
		}
	}
}

// A verdict over a file that has been replaced meanwhile says nothing about the new one.
func TestVerdictOverAReplacedFile(t *testing.T) {
	ctx := context.Background()
	j := openJournal(t, filepath.Join(t.TempDir(), "j.db"))
	a := arrival("1.2", 1)
	added, err := j.AddOriginal(a)
	if err != nil {
		t.Fatal(err)
	}
	with := a.Instance
	with.File = "the new one"
	if err := j.Replace(added.Instance, with, nil, Start{}); err != nil {
		t.Fatal(err)
	}
	verdict := func(file string) (delivery state.Delivery, stage state.Stage) {
		t.Helper()
		if err := j.DamagedDelivery(added.Instance, "pacs", file, "rotten", time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := j.Lane("fast").End(added.Instance, file, Result{Stage: state.Failed, Reason: "damaged",
			Detail: ""}); err != nil {
			t.Fatal(err)
		}
		d, err := j.SeriesDeliveries(ctx, added.Series, 10)
		if err != nil || len(d) != 1 {
			t.Fatal(d, err)
		}
		in, err := j.Instance(ctx, added.Instance)
		if err != nil {
			t.Fatal(err)
		}
		return d[0].State, in.Stage
	}
	if d, s := verdict(a.Instance.File); d != state.DeliveryQueued || s != state.Queued {
		t.Errorf("of the old file: delivery %s, stage %s", d, s)
	}
	if d, s := verdict(with.File); d != state.DeliveryDamaged || s != state.Failed {
		t.Errorf("of the new file: delivery %s, stage %s", d, s)
	}
}

// A pause that was written down while the clock was far ahead ends when the clock is right again.
func TestClockThatWasAhead(t *testing.T) {
	ctx := context.Background()
	j := openJournal(t, filepath.Join(t.TempDir(), "j.db"))
	added, err := j.AddOriginal(arrival("1.2", 1))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, c := range []struct {
		next     time.Time
		failures int64
		want     int
	}{{now.Add(20 * time.Minute), 1, 0}, {now.AddDate(1, 0, 0), 1, 1}, {now.Add(20 * time.Minute), 2,
		0}, {now.AddDate(1, 0, 0), 2, 1}} {
		if err := j.RetryDelivery(added.Instance, "pacs", -1, "", c.failures, c.next, false); err != nil {
			t.Fatal(err)
		}
		if err := j.Lane("fast").Retry(added.Instance, c.next, ""); err != nil {
			t.Fatal(err)
		}
		ask := j.NextDeliveries
		if c.failures > 1 {
			ask = j.NextSuspects
		}
		d, err := ask(ctx, "pacs", now, 10)
		if err != nil || len(d) != c.want {
			t.Errorf("%v: %d deliveries, %v", c, len(d), err)
		}
		s, err := j.Lane("fast").Next(ctx, now, 0, 10)
		if err != nil || len(s) != c.want {
			t.Errorf("%v: %d slices, %v", c, len(s), err)
		}
	}
}

// Recovery asks for a row by its file a million times; everything else that runs
// all the time must not read whole tables either.
func TestQueriesUseIndexes(t *testing.T) {
	j := openJournal(t, filepath.Join(t.TempDir(), "j.db"))
	if err := j.IndexFiles(true); err != nil {
		t.Fatal(err)
	}
	const deliveries = `SELECT d.attempts FROM delivery d `
	for _, q := range []string{deliveries + oldest, deliveries + newest, deliveries + suspects, `SELECT id FROM instance
		i WHERE file=?`,
		`SELECT 1 FROM instance i INDEXED BY instance_kept WHERE i.id>? AND ` + settled,
		`SELECT id FROM instance i WHERE source>0 AND source=? AND quality=? AND gone=0 ORDER BY id DESC LIMIT 1`,
		`SELECT id FROM instance i WHERE series=? AND kind='original' AND variant=0 ORDER BY number, id LIMIT 1 OFFSET
			?`} {
		args := make([]any, strings.Count(q, "?"))
		rows, err := j.db.Query("EXPLAIN QUERY PLAN "+q, args...)
		if err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		for rows.Next() {
			var a, b, c int
			var plan string
			if err := rows.Scan(&a, &b, &c, &plan); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(plan, "SCAN") {
				t.Errorf("%s: %s", q, plan)
			}
		}
		rows.Close()
	}
	// The high lane's queue is read whole, for it is short, but never its history.
	var a, b, c int
	var plan string
	if err := j.db.QueryRow("EXPLAIN QUERY PLAN SELECT h.original "+highLane.free).Scan(&a, &b, &c,
		&plan); err != nil || !strings.Contains(plan, "high_queue") {
		t.Errorf("%s %v", plan, err)
	}
	if err := j.IndexFiles(false); err != nil {
		t.Fatal(err)
	}
}
