package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/evidence"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var meta = dcm.FileMeta{SOPClassUID: "1.2.840.10008.5.1.4.1.1.4", SOPInstanceUID: "1.2.3.4", TransferSyntaxUID: dcm.ExplicitVRLittleEndian, SourceAETitle: "MR1"}

func store(t testing.TB) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := OpenStore(DirFS(dir), Limits{Refuse: 0.999}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// put stores data the way the receive path does.
func put(t testing.TB, s *Store, name string, data []byte, rec Record) *Temp {
	t.Helper()
	f, err := s.Receive(context.Background(), meta, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(rec); err != nil {
		t.Fatal(err)
	}
	if err := f.Publish(name); err != nil {
		t.Fatal(err)
	}
	if err := s.SyncName(name); err != nil {
		t.Fatal(err)
	}
	return f
}

// What goes in comes out: record, header and data set, however the reader cuts it.
func TestRoundTrip(t *testing.T) {
	s, _ := store(t)
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		data := rapid.SliceOfN(rapid.Byte(), 1, 4000).Draw(rt, "data")
		rec := Record{Kind: Original, Calling: rapid.StringN(0, 16, 16).Draw(rt, "calling"), Called: "DENOISE", Host: rapid.StringN(0, 64, 64).Draw(rt, "host"),
			Quality: "high", Received: time.Unix(0, rapid.Int64Range(0, 1<<60).Draw(rt, "time")).UTC()}
		name := FileName(Original, "1.2.3", fmt.Sprint(n), s.Salt())
		f, err := s.Receive(context.Background(), meta, iotest.OneByteReader(bytes.NewReader(data)))
		if err != nil {
			rt.Fatal(err)
		}
		if err := errors.Join(f.Sync(rec), f.Publish(name), s.SyncName(name)); err != nil {
			rt.Fatal(err)
		}
		file, err := s.Open(name)
		if err != nil {
			rt.Fatal(err)
		}
		defer file.Close()
		got, off, err := ReadRecord(name, file)
		if err != nil {
			rt.Fatal(err)
		}
		rec.Version, rec.Size, rec.CRC = 1, int64(len(data)), f.CRC()
		if got.Received.Equal(rec.Received) {
			got.Received = rec.Received
		}
		if got.Calling != strings.ToValidUTF8(rec.Calling, "\ufffd") || got.Size != rec.Size || got.CRC != rec.CRC || got.Received != rec.Received || off != f.Offset() {
			rt.Fatalf("record %+v at %d, want %+v at %d", got, off, rec, f.Offset())
		}
		back, err := io.ReadAll(NewReader(name, file, off, got.Size, got.CRC))
		if err != nil || !bytes.Equal(back, data) {
			rt.Fatalf("%d bytes back, %v", len(back), err)
		}
		o, _ := dcm.Scan(file, off+got.Size)
		if o.String(dcm.MediaStorageSOPInstanceUID) != meta.SOPInstanceUID || o.TransferSyntaxUID() != meta.TransferSyntaxUID || o.DataSetOffset() != off {
			rt.Fatal("not a Part-10 file with our header")
		}
	})
}

// Any damage to the data set is found before the last piece is out, and a clean
// one comes out whole, whatever its size.
func TestReaderHoldsBack(t *testing.T) {
	for _, size := range []int{1, 5, readPart - 1, readPart, readPart + 1, 2*readPart - 1, 2 * readPart, 3*readPart + 7} {
		data := bytes.Repeat([]byte("abcdefg"), size/7+1)[:size]
		s, dir := store(t)
		f := put(t, s, "original/00/x.dcm", data, Record{Kind: Original})
		file, err := s.Open("original/00/x.dcm")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(NewReader("x", file, f.Offset(), f.Size(), f.CRC())); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
		if err := Verify("x", file, f.Offset(), f.Size(), f.CRC()); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		file.Close()
		path := filepath.Join(dir, "original/00/x.dcm")
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, size / 2, size - 1} {
			bad := bytes.Clone(raw)
			bad[int(f.Offset())+at] ^= 1
			got, err := io.ReadAll(NewReader("x", bytes.NewReader(bad), f.Offset(), f.Size(), f.CRC()))
			if !errors.Is(err, ErrDamaged) || len(got) >= size {
				t.Errorf("%d bytes, damage at %d: %d came out, %v", size, at, len(got), err)
			}
		}
		short := raw[:len(raw)-1]
		if got, err := io.ReadAll(NewReader("x", bytes.NewReader(short), f.Offset(), f.Size(), f.CRC())); !errors.Is(err, ErrDamaged) || len(got) >= size {
			t.Errorf("%d bytes, cut: %d came out, %v", size, len(got), err)
		}
	}
}

func TestReadRecordTrustsNothing(t *testing.T) {
	s, dir := store(t)
	put(t, s, "original/00/x.dcm", []byte("data"), Record{Kind: Original})
	raw, err := os.ReadFile(filepath.Join(dir, "original/00/x.dcm"))
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		b := bytes.Clone(raw)
		for range rapid.IntRange(1, 4).Draw(rt, "changes") {
			b[rapid.IntRange(128, len(b)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "to")
		}
		b = b[:rapid.IntRange(0, len(b)).Draw(rt, "length")]
		rec, off, err := ReadRecord("x", bytes.NewReader(b))
		var corrupt *CorruptError
		if err == nil && (off > int64(len(b)) || rec.Size < 0) || err != nil && !errors.As(err, &corrupt) {
			rt.Fatalf("%+v at %d, %v", rec, off, err)
		}
	})
}

func TestWhatIsNotPart10(t *testing.T) {
	s, _ := store(t)
	f, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Discard()
	if _, err := f.Write(bytes.Repeat([]byte{3}, 200)); !errors.Is(err, errNotPart10) {
		t.Errorf("error %v", err)
	}
	g, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Discard()
	if _, err := g.Write([]byte("too short")); err != nil {
		t.Fatal(err)
	}
	if err := g.Sync(Record{}); err == nil {
		t.Error("synced half a header")
	}
}

func TestReceiveErrors(t *testing.T) {
	s, dir := store(t)
	s.SetLimits(Limits{MaxObject: 100, Refuse: 0.999})
	broken := errors.New("peer aborted")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		r    io.Reader
		want error
	}{
		"empty":     {context.Background(), strings.NewReader(""), ErrEmpty},
		"too large": {context.Background(), strings.NewReader(strings.Repeat("x", 101)), ErrTooLarge},
		"aborted":   {context.Background(), io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken)), broken},
		"cancelled": {ctx, strings.NewReader("abc"), context.Canceled},
		"stuck":     {context.Background(), stuck{}, io.ErrNoProgress},
	} {
		if _, err := s.Receive(c.ctx, meta, c.r); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if l, err := os.ReadDir(filepath.Join(dir, tmpDir)); err != nil || len(l) != 0 {
		t.Errorf("left: %v, %v", l, err)
	}
	f, err := s.Receive(context.Background(), meta, strings.NewReader(strings.Repeat("x", 100)))
	if err != nil {
		t.Fatalf("exactly the limit: %v", err)
	}
	f.Discard()
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestNamesAreHashes(t *testing.T) {
	a := FileName(Original, "../../etc", "passwd\x00", "s")
	if strings.Contains(a, "..") || strings.Count(a, "/") != 2 {
		t.Error(a)
	}
	if b := FileName(Original, "../../etc", "passwd", "\x00s"); a == b {
		t.Error("two instances with one name")
	}
	s, _ := store(t)
	if a, b := s.Salt(), s.Salt(); a == b {
		t.Error("salt repeats")
	}
}

// slowDirs counts folder syncs and makes them wait.
type slowDirs struct {
	DirFS
	mu    sync.Mutex
	n     int
	begun chan struct{}
	gate  chan struct{}
	err   error
}

func (d *slowDirs) SyncDir(dir string) error {
	if d.gate == nil || dir != "original/00" {
		return nil
	}
	d.mu.Lock()
	d.n++
	d.mu.Unlock()
	d.begun <- struct{}{}
	<-d.gate
	return d.err
}

// Callers that come while a folder sync runs share the next one, and only that.
func TestFolderSyncsCoalesce(t *testing.T) {
	fsys := &slowDirs{DirFS: DirFS(t.TempDir())}
	s, err := OpenStore(fsys, Limits{Refuse: 0.999}, nil)
	if err != nil {
		t.Fatal(err)
	}
	fsys.begun, fsys.gate, fsys.err = make(chan struct{}), make(chan struct{}), errors.New("no")
	errs := make(chan error)
	call := func() { errs <- s.SyncName("original/00/x.dcm") }
	go call()
	<-fsys.begun
	const more = 10
	for range more {
		go call()
	}
	for { // until all of them wait for the next round; it must not start before the first ends
		s.mu.Lock()
		d := s.dirs["original/00"]
		s.mu.Unlock()
		d.mu.Lock()
		waiting := d.next != nil
		d.mu.Unlock()
		if waiting {
			break
		}
	}
	fsys.gate <- struct{}{}
	done := 0
	for done < 1+more {
		select {
		case err := <-errs:
			if err == nil {
				t.Error("the error did not reach its caller")
			}
			done++
		case <-fsys.begun:
			fsys.gate <- struct{}{}
		}
	}
	if fsys.n < 2 || fsys.n > 1+more {
		t.Errorf("%d syncs for %d callers", fsys.n, 1+more)
	}
	fsys.gate = nil
	if err := s.SyncName("original/00/x.dcm"); err != nil {
		t.Error(err)
	}
}

func openJournal(t testing.TB, path string) *Journal {
	t.Helper()
	j, _, err := OpenJournal(context.Background(), path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func arrival(series string, n int) Arrival {
	return Arrival{Series: Series{Key: series, Quality: "fast"}, Instance: Instance{SOP: fmt.Sprintf("%s.%d", series, n), File: fmt.Sprintf("%s-%d", series, n), Stage: StageQueued, Quality: "fast",
		Received: time.Unix(int64(n), 0)}, Dests: []string{"pacs"}}
}

// Many callers share transactions, and a change that fails takes nobody along.
func TestGroupCommit(t *testing.T) {
	var mu sync.Mutex
	commits, changes := 0, 0
	j, fresh, err := OpenJournal(context.Background(), filepath.Join(t.TempDir(), "j.db"), nil, func(_ time.Duration, n int) {
		mu.Lock()
		defer mu.Unlock()
		commits++
		changes += n
	})
	if err != nil || !fresh {
		t.Fatal(fresh, err)
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
	j, _, err := OpenJournal(context.Background(), path, nil, nil)
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
	j, fresh, err := OpenJournal(context.Background(), path, nil, nil)
	if err != nil || fresh {
		t.Fatal(fresh, err)
	}
	defer j.Close()
	list, err := j.NextDeliveries(context.Background(), "pacs", time.Now(), 10)
	if err != nil || len(list) != 1 || list[0].Instance.SOP != "1.2.1" || !list[0].Instance.Received.Equal(time.Unix(1, 0)) {
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
	other.Variants, other.Instance.Number, other.Instance.Stage = 1, 1, StageConflict
	if _, err := j.AddOriginal(other); err != nil {
		t.Fatal(err)
	}
	if err := j.AddDerived(ids[0], Instance{SOP: "2.25.1", Class: "1", Syntax: "1", File: "derived/00/a.dcm", Received: time.Unix(9, 0), Quality: "fast", Number: 2}, nil); err != nil {
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
		if err := j.AddDerived(a.Instance, d, nil); err != nil {
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
	if err := j.AddDerived(original, d, nil); err != nil {
		t.Fatal(err)
	}
	if err := j.AddDerived(original, d, nil); !errors.Is(err, ErrNotWanted) {
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

func TestOtherVersionsAreNotTouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j.db")
	j := openJournal(t, path)
	if err := j.change("test", func(t *tx) error { _, err := t.exec(`PRAGMA user_version=99`); return err }); err != nil {
		t.Fatal(err)
	}
	j.Close()
	if _, _, err := OpenJournal(context.Background(), path, nil, nil); !errors.Is(err, ErrJournal) {
		t.Errorf("error %v", err)
	}
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
	if err := j.EndDelivery(b.Instance, "pacs", DeliveryStored, 0, "", time.Now()); err != nil {
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

func ExampleStore() {
	dir, err := os.MkdirTemp("", "spool")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	s, err := OpenStore(DirFS(dir), Limits{Refuse: 1}, nil)
	if err != nil {
		panic(err)
	}
	t, err := s.Receive(context.Background(), meta, strings.NewReader("the data set"))
	if err != nil {
		panic(err)
	}
	name := FileName(Original, "series UID", "instance UID", s.Salt())
	err = errors.Join(t.Sync(Record{Kind: Original, Received: time.Now()}), t.Publish(name), s.SyncName(name))
	fmt.Println(t.Size(), err)
	// Output: 12 <nil>
}

// What came while there was no destination at all is owed to one and stays;
// what the destinations of the time did not want goes.
func TestOnlyWhatIsNotOwedIsPurged(t *testing.T) {
	j := openJournal(t, filepath.Join(t.TempDir(), "j.db"))
	var ids []int64
	for n, unwanted := range []bool{false, true} {
		a := arrival("1.2", n+1)
		a.Dests, a.Unwanted, a.Instance.Stage = nil, unwanted, StagePassed
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
	verdict := func(file string) (delivery, stage string) {
		t.Helper()
		if err := j.DamagedDelivery(added.Instance, "pacs", file, "rotten", time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := j.EndSlice(added.Instance, file, StageFailed, "damaged", ""); err != nil {
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
	if d, s := verdict(a.Instance.File); d != DeliveryQueued || s != StageQueued {
		t.Errorf("of the old file: delivery %s, stage %s", d, s)
	}
	if d, s := verdict(with.File); d != DeliveryDamaged || s != StageFailed {
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
	}{{now.Add(20 * time.Minute), 1, 0}, {now.AddDate(1, 0, 0), 1, 1}, {now.Add(20 * time.Minute), 2, 0}, {now.AddDate(1, 0, 0), 2, 1}} {
		if err := j.RetryDelivery(added.Instance, "pacs", -1, "", c.failures, c.next); err != nil {
			t.Fatal(err)
		}
		if err := j.RetrySlice(added.Instance, c.next, ""); err != nil {
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
		s, err := j.NextSlices(ctx, 0, now, 10)
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
	for _, q := range []string{deliveries + oldest, deliveries + newest, deliveries + suspects, `SELECT id FROM instance i WHERE file=?`,
		`SELECT 1 FROM instance i INDEXED BY instance_kept WHERE i.id>? AND ` + settled,
		`SELECT id FROM instance i WHERE source>0 AND source=? AND quality=? AND gone=0 ORDER BY id DESC LIMIT 1`,
		`SELECT id FROM instance i WHERE series=? AND kind='original' AND variant=0 ORDER BY number, id LIMIT 1 OFFSET ?`} {
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
	if err := j.db.QueryRow("EXPLAIN QUERY PLAN SELECT h.original "+highReady).Scan(&a, &b, &c, &plan); err != nil || !strings.Contains(plan, "high_queue") {
		t.Errorf("%s %v", plan, err)
	}
	if err := j.IndexFiles(false); err != nil {
		t.Fatal(err)
	}
}
