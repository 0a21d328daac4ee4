package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/diffdenoise/denoised/internal/dcm"
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
