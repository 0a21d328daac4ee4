package pipeline

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/diffdenoise/denoised/pipeline/spool"
)

// faultFS is a real folder whose operations can fail, and that can lose what
// was not synced, as a disk does when the power goes.
type faultFS struct {
	spool.DirFS
	mu      sync.Mutex
	fail    func(op, name string, n int64) error // n: bytes in this file so far
	free    uint64                               // 0 = plenty
	dead    bool                                 // the power is gone
	unnamed map[string]string                    // renamed and folder not synced: new name -> old name
}

func (f *faultFS) check(op, name string, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return &fs.PathError{Op: op, Path: name, Err: syscall.EIO}
	}
	if f.fail != nil {
		if err := f.fail(op, name, n); err != nil {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
	}
	return nil
}

func (f *faultFS) Create(name string) (spool.File, error) {
	if err := f.check("create", name, 0); err != nil {
		return nil, err
	}
	file, err := f.DirFS.Create(name)
	if err != nil {
		return nil, err
	}
	return &faultFile{File: file, f: f, name: name}, nil
}

func (f *faultFS) Open(name string) (spool.File, error) {
	if err := f.check("open", name, 0); err != nil {
		return nil, err
	}
	return f.DirFS.Open(name)
}

func (f *faultFS) Rename(from, to string) error {
	if err := f.check("rename", to, 0); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unnamed == nil {
		f.unnamed = map[string]string{}
	}
	f.unnamed[to] = from
	return f.DirFS.Rename(from, to)
}

func (f *faultFS) SyncDir(dir string) error {
	if err := f.check("syncdir", dir, 0); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for to := range f.unnamed {
		if path.Dir(to) == dir {
			delete(f.unnamed, to)
		}
	}
	return nil
}

func (f *faultFS) Free() (total, free uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.free > 0 {
		return 100 << 30, f.free, nil
	}
	return 100 << 30, 90 << 30, nil
}

// powerCut makes every operation fail from now on.
func (f *faultFS) powerCut() { f.mu.Lock(); f.dead = true; f.mu.Unlock() }

// powerOn undoes the names that were not durable, each with the given chance.
func (f *faultFS) powerOn(lost func() bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = false
	for to, from := range f.unnamed {
		if lost() {
			if err := f.DirFS.Rename(to, from); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		delete(f.unnamed, to)
	}
	return nil
}

type faultFile struct {
	spool.File
	f    *faultFS
	name string
	n    int64
}

var errShort = errors.New("short")

func (w *faultFile) Write(p []byte) (int, error) {
	if err := w.f.check("write", w.name, w.n+int64(len(p))); err != nil {
		if errors.Is(err, errShort) {
			n, _ := w.File.Write(p[:len(p)/2])
			return n, nil
		}
		n, _ := w.File.Write(p[:len(p)/3]) // torn
		return n, err
	}
	n, err := w.File.Write(p)
	w.n += int64(n)
	return n, err
}

func (w *faultFile) Sync() error {
	if err := w.f.check("sync", w.name, w.n); err != nil {
		return err
	}
	return nil // nothing here survives a real power cut, and need not
}

func (w *faultFile) Close() error {
	err := w.f.check("close", w.name, w.n)
	return errors.Join(err, w.File.Close())
}

func faulty(t testing.TB, a *archive) (Options, *faultFS) {
	o := options(t, a)
	f := &faultFS{DirFS: spool.DirFS(filepath.Join(o.StateDir, "spool"))}
	o.fs = f
	return o, f
}

// A disk that fails gives a clear error, no promise and no file; the next image
// on a good disk is taken.
func TestDiskFaults(t *testing.T) {
	on := func(what string, err error) func(op, name string, n int64) error {
		return func(op, name string, n int64) error {
			if op == what && (op == "syncdir" || strings.HasPrefix(name, "tmp/") || strings.HasPrefix(name, "original/")) {
				return err
			}
			return nil
		}
	}
	for _, c := range []struct {
		name string
		fail func(op, name string, n int64) error
		want error
	}{
		{"disk full on create", on("create", syscall.ENOSPC), ErrNoSpace},
		{"disk full on write", on("write", syscall.ENOSPC), ErrNoSpace},
		{"quota on write", on("write", syscall.EDQUOT), ErrNoSpace},
		{"disk full late", func(op, _ string, n int64) error {
			if op == "write" && n > 300<<10 {
				return syscall.ENOSPC
			}
			return nil
		}, ErrNoSpace},
		{"I/O error on write", on("write", syscall.EIO), syscall.EIO},
		{"short write", on("write", errShort), nil},
		{"sync fails", on("sync", syscall.EIO), syscall.EIO},
		{"sync finds the disk full", on("sync", syscall.ENOSPC), ErrNoSpace},
		{"close fails", on("close", syscall.EIO), syscall.EIO},
		{"rename fails", on("rename", syscall.EIO), syscall.EIO},
		{"folder sync fails", on("syncdir", syscall.EIO), syscall.EIO},
		{"read-only", on("create", syscall.EROFS), syscall.EROFS},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, f := faulty(t, nil)
			o.Denoiser = nil
			p := start(t, o)
			f.mu.Lock()
			f.fail = c.fail
			f.mu.Unlock()
			im := slice(1, 1)
			im.size = 512
			r := bytes.NewReader(im.dataSet())
			err := p.Receive(t.Context(), im.incoming(), r)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if r.Len() > 0 {
				t.Errorf("%d bytes not read", r.Len())
			}
			if n := spoolFiles(t, o.StateDir); n != 0 {
				t.Errorf("%d files left", n)
			}
			if strings.Contains(c.name, "create") || strings.Contains(c.name, "read-only") {
				if h := p.Check(); h.OK {
					t.Error("health is good on a disk that cannot be written")
				}
			}
			f.mu.Lock()
			f.fail = nil
			f.mu.Unlock()
			receive(t, p, im)
			if s := status(t, p, im.series); s.Received != 1 {
				t.Errorf("received %d", s.Received)
			}
			if h := p.Check(); !h.OK {
				t.Errorf("health %+v", h)
			}
		})
	}
}

// A file that cannot be opened for a while is not a damaged one.
func TestOutOfDescriptors(t *testing.T) {
	a := newArchive()
	o, f := faulty(t, a)
	o.Denoiser = nil
	p := start(t, o)
	var tries atomic.Int64
	f.mu.Lock()
	f.fail = func(op, _ string, _ int64) error {
		if op == "open" && tries.Add(1) < 20 {
			return syscall.EMFILE
		}
		return nil
	}
	f.mu.Unlock()
	receive(t, p, slice(1, 1))
	eventually(t, "stored", func() bool { return a.count("pacs") == 1 })
	if n := tries.Load(); n < 20 {
		t.Errorf("opened %d times", n)
	}
}

func TestRefusesAboveWatermark(t *testing.T) {
	o, f := faulty(t, nil)
	o.DiskWarn, o.DiskRefuse = 0.80, 0.90
	p := start(t, o)
	f.mu.Lock()
	f.free = 9 << 30 // of 100 GiB
	f.mu.Unlock()
	im := slice(1, 1)
	if err := p.Receive(t.Context(), im.incoming(), bytes.NewReader(im.dataSet())); !errors.Is(err, ErrNoSpace) {
		t.Errorf("error %v", err)
	}
	if h := p.Check(); h.OK || h.DiskUsed < 0.9 {
		t.Errorf("health %+v", h)
	}
	f.mu.Lock()
	f.free = 11 << 30
	f.mu.Unlock()
	receive(t, p, im)
}

// The power goes at any operation; names that were not synced are lost or kept
// by chance. Whatever was acknowledged is there afterwards, bytes and all.
func TestPowerCuts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a := newArchive()
		o, f := faulty(t, a)
		seed := rapid.Uint64().Draw(rt, "seed")
		rnd := rand.New(rand.NewPCG(seed, 1))
		acked := map[string]image{}
		rounds := rapid.IntRange(1, 3).Draw(rt, "rounds")
		for round := range rounds {
			p, err := Open(t.Context(), o)
			if err != nil {
				rt.Fatal(err)
			}
			left := rapid.IntRange(1, 40).Draw(rt, "operations until the cut")
			f.mu.Lock()
			f.fail = func(string, string, int64) error {
				if left--; left < 0 {
					return syscall.EIO
				}
				return nil
			}
			f.mu.Unlock()
			for i := range 4 {
				im := slice(round+1, i+1)
				if rnd.IntN(4) == 0 { // a repetition
					im = slice(1, 1)
				}
				if err := p.Receive(t.Context(), im.incoming(), bytes.NewReader(im.dataSet())); err == nil {
					acked[im.sop] = im
				}
			}
			f.powerCut()
			if err := p.Close(); err != nil {
				rt.Fatal(err)
			}
			f.mu.Lock()
			f.fail = nil
			f.mu.Unlock()
			if err := f.powerOn(func() bool { return rnd.IntN(2) == 0 }); err != nil {
				rt.Fatal(err)
			}
		}
		p, err := Open(t.Context(), o)
		if err != nil {
			rt.Fatal(err)
		}
		stop := run(p)
		eventually(t, fmt.Sprintf("all %d acknowledged images arrived", len(acked)), func() bool {
			for sop := range acked {
				if len(a.copies("pacs", sop)) == 0 {
					return false
				}
			}
			return true
		})
		stop()
		if err := p.Close(); err != nil {
			rt.Fatal(err)
		}
		for sop := range acked {
			if n := len(a.copies("pacs", sop)); n != 1 {
				rt.Errorf("%s arrived %d times", sop, n)
			}
		}
	})
}
