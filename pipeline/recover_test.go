package pipeline

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/diffdenoise/denoised/pipeline/spool"
)

func TestTwinsAndConflicts(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	p := start(t, o)
	im := slice(1, 1)
	other := im
	other.seed = 99
	receive(t, p, im)
	eventually(t, "original and derived object in the archive", func() bool { return a.count("pacs") == 2 })
	files := spoolFiles(t, o.StateDir)
	receive(t, p, im)
	if n := spoolFiles(t, o.StateDir); n != files {
		t.Errorf("the twin left %d files", n-files)
	}
	for range 2 { // the second is a twin of the conflict
		receive(t, p, other)
	}
	if n := spoolFiles(t, o.StateDir); n != files+1 {
		t.Errorf("%d more files, want the conflicting one", n-files)
	}
	s := status(t, p, im.series)
	if s.Conflict != 1 || s.Received != 2 {
		t.Errorf("%+v", s)
	}
	// The same UID in another series is another image.
	moved := im
	moved.series = "1.2.3.77"
	receive(t, p, moved)
	eventually(t, "the other series too", func() bool { return status(t, p, moved.series).Denoised == 1 })
	eventually(t, "it was sent", func() bool { return len(a.copies("pacs", im.sop)) == 2 })
	if c := a.copies("pacs", im.sop); c[0] != sha256.Sum256(im.dataSet()) || c[1] != sha256.Sum256(moved.dataSet()) {
		t.Error("something else was sent")
	}
}

// A rebuilt journal does not take a conflicting image for the first, even when
// the first is purged.
func TestConflictsSurviveARebuild(t *testing.T) {
	for _, purged := range []bool{false, true} {
		a := newArchive()
		o := options(t, a)
		originalsOnly(&o)
		p, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		im := slice(1, 1)
		other := im
		other.seed = 99
		receive(t, p, im)
		first, err := p.jrnl.Variants(t.Context(), im.series, im.sop)
		if err != nil {
			t.Fatal(err)
		}
		receive(t, p, other)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if purged {
			if err := os.Remove(filepath.Join(o.StateDir, "spool", first[0].File)); err != nil {
				t.Fatal(err)
			}
		}
		if err := Rebuild(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		p = start(t, o)
		s := status(t, p, im.series)
		if s.Conflict != 1 {
			t.Errorf("%+v", s)
		}
		if purged {
			if len(s.Destinations) != 0 {
				t.Errorf("the conflicting image is queued: %+v", s.Destinations)
			}
			continue
		}
		eventually(t, "the first one sent", func() bool { return a.count("pacs") == 1 })
		if c := a.copies("pacs", im.sop); c[0] != sha256.Sum256(im.dataSet()) {
			t.Error("the wrong one was sent")
		}
	}
}

func TestTwinsAtTheSameTime(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			im := slice(1, 1)
			im.seed = uint64(i % 2)
			if err := p.Receive(context.Background(), im.incoming(), bytes.NewReader(im.dataSet())); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	s := status(t, p, slice(1, 1).series)
	if s.Received != 2 || s.Conflict != 1 {
		t.Errorf("%+v", s)
	}
	eventually(t, "one sent", func() bool { return a.count("pacs") == 1 })
}

// fill receives two series and waits until they are delivered.
func fillArchive(t *testing.T, o Options, a *archive) {
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(p)
	for s := range 2 {
		for n := range 3 {
			receive(t, p, slice(s+1, n+1))
		}
	}
	eventually(t, "delivered", func() bool {
		return status(t, p, slice(1, 1).series).Destinations[0].Stored == 6 && status(t, p, slice(2, 1).series).Destinations[0].Stored == 6
	})
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	_ = a
}

// With the journal gone, in whatever way, it is made again from the files, and
// the archive sees the same objects once more.
func TestRebuild(t *testing.T) {
	for name, ruin := range map[string]func(t *testing.T, o Options){
		"missing": func(t *testing.T, o Options) {
			for _, ext := range []string{"", "-wal", "-shm"} {
				os.Remove(filepath.Join(o.StateDir, journalFile+ext))
			}
		},
		"not a database": func(t *testing.T, o Options) {
			if err := os.WriteFile(filepath.Join(o.StateDir, journalFile), bytes.Repeat([]byte("garbage "), 4096), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"damaged page": func(t *testing.T, o Options) {
			f, err := os.OpenFile(filepath.Join(o.StateDir, journalFile), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			for off := int64(4096); off < st.Size(); off += 4096 {
				if _, err := f.WriteAt(bytes.Repeat([]byte{0xA5}, 2048), off); err != nil {
					t.Fatal(err)
				}
			}
		},
		"by command": func(t *testing.T, o Options) {
			if err := Rebuild(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newArchive()
			o := options(t, a)
			fillArchive(t, o, a)
			den := o.Denoiser.(*halver)
			calls := den.count()
			ruin(t, o)
			p := start(t, o)
			eventually(t, "delivered again", func() bool { return len(a.sent()) == 24 })
			for _, uid := range a.sent() {
				c := a.copies("pacs", uid)
				if len(c) != 2 || c[0] != c[1] {
					t.Errorf("%s: %d copies, same %v", uid, len(c), len(c) == 2 && c[0] == c[1])
				}
			}
			if n := den.count() - calls; n != 0 {
				t.Errorf("%d slices denoised again", n)
			}
			s := status(t, p, slice(1, 1).series)
			if s.Received != 3 || s.Denoised != 3 || s.Calling != "MR1" || s.Host != "10.0.0.1" || s.Called != "DENOISE" {
				t.Errorf("%+v", s)
			}
			if name != "missing" {
				old, err := filepath.Glob(filepath.Join(o.StateDir, journalFile+".damaged-*"))
				if err != nil || len(old) == 0 {
					t.Errorf("the old journal was not kept: %v", err)
				}
			}
		})
	}
}

// What is finished and was never delivered is delivered after the journal is lost,
// whatever a person, or the model, says by then, as it would have been with the
// journal. Nothing is made again.
func TestRebuildKeepsFinishedObjects(t *testing.T) {
	for name, c := range map[string]struct {
		flag  Quality // after all is made
		model func(d *teacher, o *Options)
	}{
		"called off":  {flag: Fast},
		"off":         {flag: Off},
		"no networks": {model: func(d *teacher, _ *Options) { d.no = true }},
		"no model":    {model: func(_ *teacher, o *Options) { o.Denoiser = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			a := newArchive()
			a.open = func(int, Destination) error { return io.ErrUnexpectedEOF }
			o, d := highOptions(t, a)
			p, stop := opened(t, o)
			uid := hqSeries(t, p, 2)
			awaitHigh(t, p, uid, HighDone)
			if c.flag != "" {
				setFlag(t, p, uid, c.flag)
			}
			stop()
			before := status(t, p, uid)
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			calls := d.calls() + d.count()
			if c.model != nil {
				c.model(d, &o)
			}
			a.mu.Lock()
			a.open = nil
			a.mu.Unlock()
			if err := Rebuild(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			p = start(t, o)
			eventually(t, "originals and both derived series in the archive", func() bool { return a.count("pacs") == 6 })
			after := status(t, p, uid)
			if after.Denoised != 2 || after.High == nil || after.High.State != before.High.State || after.High.Done != 2 || after.Quality != before.Quality {
				t.Errorf("%+v %+v, want %+v %+v", after, after.High, before, before.High)
			}
			if n := d.calls() + d.count() - calls; n != 0 {
				t.Errorf("%d images denoised again", n)
			}
		})
	}
}

// A rebuild that is cut short again and again still loses nothing.
func TestRebuildCutShort(t *testing.T) {
	a := newArchive()
	a.open = func(int, Destination) error { return io.ErrUnexpectedEOF }
	o, _ := highOptions(t, a)
	p, stop := opened(t, o)
	var err error
	uid := hqSeries(t, p, 3)
	awaitHigh(t, p, uid, HighDone)
	setFlag(t, p, uid, Off)
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	files := spoolFiles(t, o.StateDir)
	if err := moveAside(filepath.Join(o.StateDir, journalFile), time.Now()); err != nil {
		t.Fatal(err)
	}
	cut := 0
	for most := 1; ; most++ {
		left := most
		o.hook = func(step string) {
			if step == "commit" {
				if left--; left < 0 {
					panic("power lost")
				}
			}
		}
		if p, err = Open(t.Context(), o); err == nil {
			break
		}
		cut++
	}
	if s := status(t, p, uid); s.Denoised != 3 || s.High.Done != 3 || spoolFiles(t, o.StateDir) != files || cut < 3 {
		t.Errorf("cut short %d times: %d denoised, %+v, %d files of %d", cut, s.Denoised, s.High, spoolFiles(t, o.StateDir), files)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// A derived file whose row was never committed is taken up, unless off was asked for
// before it could be.
func TestDerivedFileWithoutRow(t *testing.T) {
	for _, q := range []Quality{Fast, Off} {
		o := options(t, nil)
		o.Destinations = nil
		im := slice(1, 1)
		p, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		receive(t, p, im)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		other := o
		other.StateDir = t.TempDir()
		if err := os.CopyFS(other.StateDir, os.DirFS(o.StateDir)); err != nil {
			t.Fatal(err)
		}
		if p, err = Open(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		setFlag(t, p, im.series, q)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if p, err = Open(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		stop := run(p)
		eventually(t, "denoised", func() bool { return status(t, p, im.series).Denoised == 1 })
		name := fileOf(t, p, im.series, 1, spool.Derived, Fast)
		stop()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		made, err := os.ReadFile(filepath.Join(other.StateDir, "spool", name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(o.StateDir, "spool", name)
		if err := os.WriteFile(path, made, 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err = Open(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		_, err = os.Stat(path)
		if s := status(t, p, im.series); (s.Denoised == 1) != (q == Fast) || (err == nil) != (q == Fast) {
			t.Errorf("%s: %+v, file: %v", q, s, err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRecoverySetsDamagedFilesAside(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	originalsOnly(&o)
	fill := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(o.StateDir, "spool", name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	receive(t, p, slice(1, 1))
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	var good []byte
	files, err := filepath.Glob(filepath.Join(o.StateDir, "spool", "original", "*", "*.dcm"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if good, err = os.ReadFile(files[0]); err != nil {
		t.Fatal(err)
	}
	fill("original/00/empty.dcm", nil)
	fill("original/00/short.dcm", good[:len(good)-5])
	fill("original/00/long.dcm", append(bytes.Clone(good), 1))
	fill("original/00/foreign.dcm", bytes.Repeat([]byte{1}, 5000))
	fill("derived/00/wrong-kind.dcm", good)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-9] ^= 4
	fill("original/00/flipped.dcm", flipped)
	fill("original/00/notes.txt", []byte("a person's notes"))
	fill("tmp/1.2.part", good[:500])
	start(t, o)
	left, err := filepath.Glob(filepath.Join(o.StateDir, "spool", "damaged", "*"))
	if err != nil || len(left) != 6 {
		t.Errorf("set aside: %v", left)
	}
	if _, err := os.Stat(filepath.Join(o.StateDir, "spool", "original", "00", "notes.txt")); err != nil {
		t.Error(err)
	}
	if tmp, _ := filepath.Glob(filepath.Join(o.StateDir, "spool", "tmp", "*")); len(tmp) != 0 {
		t.Errorf("left in tmp: %v", tmp)
	}
	eventually(t, "the good one is sent", func() bool { return a.count("pacs") == 1 })
}

// A row whose name was never durable is marked; the sender's repetition, which
// must come since nothing was acknowledged, heals it.
func TestRowWithoutFile(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	receive(t, p, slice(1, 1))
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(o.StateDir, "spool", "original", "*", "*.dcm"))
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	p = start(t, o)
	if s := status(t, p, slice(1, 1).series); s.Lost != 1 {
		t.Errorf("%+v", s)
	}
	receive(t, p, slice(1, 1))
	eventually(t, "original and derived object in the archive", func() bool { return a.count("pacs") == 2 })
	eventually(t, "status", func() bool { s := status(t, p, slice(1, 1).series); return s.Lost == 0 && s.Denoised == 1 })
}

func TestOneProcessPerFolder(t *testing.T) {
	o := options(t, nil)
	start(t, o)
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("error %v", err)
	}
}

func TestRetention(t *testing.T) {
	a := newArchive()
	var alive bool
	a.store = func(_ int, _ Destination, o Outgoing, _ []byte) (uint16, error, bool) {
		if o.SOPInstanceUID == slice(2, 1).sop && !alive {
			return 0xC000, nil, false
		}
		return 0, nil, true
	}
	clk := newFakeClock()
	o, f := faulty(t, a)
	o.clock = clk
	o.DiskWarn, o.DiskRefuse = 0.80, 0.90
	p := start(t, o)
	receive(t, p, slice(1, 1))
	receive(t, p, slice(2, 1))
	eventually(t, "delivered", func() bool {
		return status(t, p, slice(1, 1).series).Destinations[0].Stored == 2 && status(t, p, slice(2, 1).series).Destinations[0].Stored == 1
	})
	clk.advance(60 * time.Hour)
	p.retention.fire()
	receive(t, p, slice(3, 1)) // young
	eventually(t, "delivered", func() bool { return status(t, p, slice(3, 1).series).Destinations[0].Stored == 2 })
	if n := spoolFiles(t, o.StateDir); n != 6 {
		t.Errorf("%d files after 60 h", n)
	}
	clk.advance(12 * time.Hour)
	eventually(t, "the first is purged", func() bool { clk.advance(time.Minute); return spoolFiles(t, o.StateDir) == 4 })
	s := status(t, p, slice(1, 1).series)
	if !s.Instances[0].Purged || !s.Instances[1].Purged || s.Denoised != 1 {
		t.Errorf("%+v", s)
	}
	receive(t, p, slice(1, 1)) // a late twin of a purged image
	if n := len(a.copies("pacs", slice(1, 1).sop)); n != 1 {
		t.Errorf("sent %d times", n)
	}
	// A full disk takes what is delivered, young as it is, and nothing else.
	f.mu.Lock()
	f.free = 15 << 30
	f.mu.Unlock()
	clk.advance(2 * time.Minute)
	eventually(t, "the young one is purged", func() bool { clk.advance(time.Minute); return spoolFiles(t, o.StateDir) == 2 })
	clk.advance(2 * time.Minute)
	if s := status(t, p, slice(2, 1).series); s.Instances[0].Purged || s.Instances[1].Purged {
		t.Error("an image that a destination refused was purged")
	}
	// Much later the rows go too.
	clk.advance(keepRows + 2*time.Hour)
	eventually(t, "rows compacted", func() bool {
		clk.advance(time.Minute)
		l, err := p.Series(t.Context())
		return err == nil && len(l) == 1 && l[0].UID == slice(2, 1).series
	})
}

// Nothing that names a patient may be in logs, metrics, events or status.
func TestNoPatientData(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	a := newArchive()
	o := options(t, a)
	reg := prometheus.NewRegistry()
	o.Logger, o.Registerer = zap.New(core), reg
	o.Denoiser = &halver{do: nil}
	p := start(t, o)
	ev, stop := p.Events()
	defer stop()
	im := slice(1, 1)
	receive(t, p, im)
	bad := im
	bad.seed = 5
	receive(t, p, bad) // conflict: logged
	eventually(t, "delivered", func() bool { return a.count("pacs") == 2 })
	// What a person writes into a flag is shown to who asks for the series, and
	// nowhere else.
	if _, err := p.Flag(t.Context(), im.series, Flag{Quality: Fast, Why: "Secret^Name moved"}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Flag(t.Context(), im.series, Flag{Quality: "Secret", Why: "Secret^Name"}); err == nil {
		t.Error("an unknown quality was taken")
	}
	var all strings.Builder
	for _, e := range logs.All() {
		fmt.Fprintln(&all, e.Message, e.ContextMap())
	}
	shown := status(t, p, im.series)
	if shown.Flag == nil || shown.Flag.Why != "Secret^Name moved" {
		t.Errorf("%+v", shown.Flag)
	}
	shown.Flag = nil
	fmt.Fprintf(&all, "%+v\n", shown)
	for len(ev) > 0 {
		fmt.Fprintf(&all, "%+v\n", <-ev)
	}
	fams, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range fams {
		names[f.GetName()] = true
		fmt.Fprintln(&all, f)
	}
	if !strings.Contains(all.String(), im.sop) {
		t.Error("nothing was looked at")
	}
	if strings.Contains(strings.ToLower(all.String()), "secret") {
		t.Error("patient data shown")
	}
	for _, n := range []string{"received_instances_total", "series_state", "queue_depth", "oldest_job_age_seconds", "slice_seconds", "forward_attempts_total", "spool_bytes", "spool_free_ratio", "noise_sigma"} {
		if !names["denoised_"+n] {
			t.Errorf("no metric %s", n)
		}
	}
}

func TestImport(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	p := start(t, o)
	im := slice(1, 1)
	receive(t, p, im)
	files, _ := filepath.Glob(filepath.Join(o.StateDir, "spool", "original", "*", "*.dcm"))
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	hot := filepath.Join(t.TempDir(), "x.dcm")
	// Another instance with a header that is not ours.
	two := slice(1, 2)
	at := bytes.Index(b, im.dataSet())
	if err := os.WriteFile(hot, append(bytes.Clone(b[:at]), two.dataSet()...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Import(t.Context(), hot, Fast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both in the archive", func() bool { return a.count("pacs") == 4 })
	if c := a.copies("pacs", two.sop); len(c) != 1 || c[0] != sha256.Sum256(two.dataSet()) {
		t.Error("import changed the data set")
	}
	if err := os.WriteFile(hot, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Import(t.Context(), hot, Fast); err == nil {
		t.Error("imported a text file")
	}
	if err := p.Import(t.Context(), hot, "best"); err == nil {
		t.Error("imported with an unknown quality")
	}
}

// heap is the live heap in bytes.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Thousands of images that wait for a dead destination and a busy denoiser cost
// disk, not memory.
func TestMemoryIsFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("stores 10,000 images")
	}
	a := newArchive()
	a.open = func(int, Destination) error { return io.ErrUnexpectedEOF }
	o, _ := faulty(t, a) // syncs nothing
	o.Logger = zap.NewNop()
	hold := make(chan struct{})
	o.Denoiser = &blocked{hold}
	p := start(t, o)
	t.Cleanup(func() { close(hold) })
	var after1000 uint64
	upTo := func(from, to int) {
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for n := from + w; n < to; n += 8 {
					im := slice(n%7+1, n+1)
					if err := p.Receive(t.Context(), im.incoming(), bytes.NewReader(im.dataSet())); err != nil {
						t.Error(err)
						return
					}
				}
			}()
		}
		wg.Wait()
	}
	upTo(0, 1000)
	after1000 = heap()
	upTo(1000, 10000)
	after := heap()
	t.Logf("live heap after 1000 images %d KiB, after 10000 %d KiB", after1000>>10, after>>10)
	if after > after1000+4<<20 {
		t.Errorf("the heap grew from %d to %d KiB", after1000>>10, after>>10)
	}
}

// A big object streams through a buffer.
func TestBigObjectInLittleMemory(t *testing.T) {
	o, f := faulty(t, nil)
	p := start(t, o)
	before := heap()
	var peak uint64
	f.mu.Lock()
	f.fail = func(op, _ string, n int64) error {
		if op == "write" && n>>20%64 == 0 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
		}
		return nil
	}
	f.mu.Unlock()
	im := slice(1, 1)
	head := im.dataSet()
	const size = 256 << 20
	r := io.MultiReader(bytes.NewReader(head), io.LimitReader(zeros{}, size))
	if err := p.Receive(t.Context(), im.incoming(), r); err != nil {
		t.Fatal(err)
	}
	if peak > before+16<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, peak>>20)
	}
	if s := status(t, p, im.series); s.Instances[0].Bytes != size+int64(len(head)) {
		t.Errorf("stored %d bytes", s.Instances[0].Bytes)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
