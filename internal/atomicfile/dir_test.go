package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

var errDisk = syscall.ENOSPC

// badDisk fails at its n-th step, or does that step and nothing after it, as if
// the machine had lost power.
type badDisk struct {
	osDisk
	n      int // steps until it fails
	dies   bool
	dead   bool
	stays  bool // bad: every step fails from then on, but for removing
	holds  bool // removes nothing
	noSwap bool // cannot exchange names
	names  []string
}

func (d *badDisk) step(name string, do func() error) error {
	if d.dead {
		return errDisk
	}
	d.names = append(d.names, name)
	d.n--
	if d.n == 0 || d.n < 0 && d.stays {
		if !d.dies {
			return fmt.Errorf("%s: %w", name, errDisk)
		}
		d.dead = true
	}
	return do()
}

func (d *badDisk) MkdirTemp(dir, pattern string) (tmp string, err error) {
	err = d.step("mkdir", func() error { tmp, err = d.osDisk.MkdirTemp(dir, pattern); return err })
	return tmp, err
}
func (d *badDisk) SyncFile(f *os.File) error {
	return d.step("sync file", func() error { return d.osDisk.SyncFile(f) })
}
func (d *badDisk) SyncTree(dir string) error {
	return d.step("sync tree", func() error { return d.osDisk.SyncTree(dir) })
}
func (d *badDisk) SyncDir(dir string) error {
	return d.step("sync folder", func() error { return d.osDisk.SyncDir(dir) })
}
func (d *badDisk) Rename(from, to string) error {
	return d.step("rename", func() error { return d.osDisk.Rename(from, to) })
}
func (d *badDisk) Exchange(a, b string) error {
	if d.noSwap {
		return errors.ErrUnsupported
	}
	return d.step("exchange", func() error { return d.osDisk.Exchange(a, b) })
}
func (d *badDisk) RemoveAll(path string) error {
	if d.dead || d.holds {
		return errDisk
	}
	return d.osDisk.RemoveAll(path)
}

func put(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// whole returns the content of a folder, which must be of one piece.
func whole(t *testing.T, dir string) string {
	t.Helper()
	a, err := os.ReadFile(filepath.Join(dir, "a"))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "b")); err != nil || string(b) != string(a) {
		t.Errorf("half a folder: %q and %q, %v", a, b, err)
	}
	return string(a)
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	items, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range items {
		names = append(names, i.Name())
	}
	return names
}

func TestWriteDir(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "m")
	write := func(text string, replace bool) error {
		return WriteDir(at, replace, func(tmp string) error { put(t, tmp, text); return nil })
	}
	if err := write("first", false); err != nil || whole(t, at) != "first" {
		t.Fatalf("%v, %q", err, whole(t, at))
	}
	if err := write("second", false); !errors.Is(err, fs.ErrExist) || whole(t, at) != "first" {
		t.Errorf("over an old folder: %v, %q", err, whole(t, at))
	}
	if err := write("second", true); err != nil || whole(t, at) != "second" {
		t.Errorf("replacing: %v, %q", err, whole(t, at))
	}
	fail := errors.New("no more")
	if err := WriteDir(at, true, func(tmp string) error { put(t, tmp, "half"); return fail }); !errors.Is(err, fail) || whole(t, at) != "second" {
		t.Errorf("a failing fill: %v, %q", err, whole(t, at))
	}
	if names := list(t, dir); !slices.Equal(names, []string{"m"}) {
		t.Errorf("left behind: %q", names)
	}
	if st, err := os.Stat(at); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", st, err)
	}
	file := filepath.Join(at, "a")
	if err := WriteDir(file, true, func(tmp string) error { put(t, tmp, "third"); return nil }); err == nil || whole(t, at) != "second" {
		t.Errorf("in place of a file: %v", err)
	}
	if err := WriteDir(filepath.Join(dir, "none", "m"), false, func(string) error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing folder: %v", err)
	}
}

// TestWriteFails: whichever step fails, or is the last that is done, the file has the
// old content or the new, and after a failure nothing is left beside it.
func TestWriteFails(t *testing.T) {
	for _, dies := range []bool{false, true} {
		for n := 1; n <= 2; n++ {
			dir := t.TempDir()
			path := filepath.Join(dir, "a")
			if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
			d := &badDisk{n: n, dies: dies}
			err := write(d, path, 0o644, func(f *os.File) error { _, err := f.WriteString("new"); return err })
			if d.n > 0 {
				t.Fatalf("only %q were done", d.names)
			}
			b, rerr := os.ReadFile(path)
			if rerr != nil || string(b) != "old" && string(b) != "new" {
				t.Errorf("dies %v, step %d: %q, %v", dies, n, b, rerr)
			}
			if !dies && (!errors.Is(err, errDisk) || string(b) != "old" || len(list(t, dir)) != 1) {
				t.Errorf("step %d failed: %v, %q, %q", n, err, b, list(t, dir))
			}
			if dies && n == 2 && (err != nil || string(b) != "new") {
				t.Errorf("after the last step: %v, %q", err, b)
			}
		}
	}
}

// TestWriteDirFails: whichever step fails, the folder is the old one, of one piece,
// and nothing is left behind.
func TestWriteDirFails(t *testing.T) {
	for _, noSwap := range []bool{false, true} {
		for _, old := range []string{"", "old"} {
			for n := 1; ; n++ {
				dir := t.TempDir()
				at := filepath.Join(dir, "m")
				if old != "" {
					if err := os.Mkdir(at, 0o755); err != nil {
						t.Fatal(err)
					}
					put(t, at, old)
				}
				d := &badDisk{n: n, noSwap: noSwap}
				err := writeDir(d, at, true, func(tmp string) error { put(t, tmp, "new"); return nil })
				if d.n > 0 { // no such step: it went through
					if err != nil || whole(t, at) != "new" || len(list(t, dir)) != 1 {
						t.Errorf("%v, %q, %q", err, whole(t, at), list(t, dir))
					}
					if len(d.names) < 4 {
						t.Errorf("steps %q", d.names)
					}
					break
				}
				where := fmt.Sprintf("noSwap %v, old %q, step %d (%q)", noSwap, old, n, d.names)
				if !errors.Is(err, errDisk) {
					t.Errorf("%s: %v", where, err)
				}
				if got := whole(t, at); got != old {
					t.Errorf("%s: content %q, want the old one", where, got)
				}
				for _, name := range list(t, dir) {
					if name != "m" {
						t.Errorf("%s: left behind %q", where, name)
					}
				}
			}
		}
	}
}

// oldFolder makes a folder with the content "old" in a folder of its own.
func oldFolder(t *testing.T) (dir, at string) {
	t.Helper()
	dir = t.TempDir()
	at = filepath.Join(dir, "m")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, at, "old")
	return dir, at
}

// TestWriteDirNoWayBack: when the step fails and going back fails too, the old folder
// is still somewhere.
func TestWriteDirNoWayBack(t *testing.T) {
	for _, noSwap := range []bool{false, true} {
		for n := 1; ; n++ {
			dir, at := oldFolder(t)
			d := &badDisk{n: n, noSwap: noSwap, stays: true}
			err := writeDir(d, at, true, func(tmp string) error { put(t, tmp, "new"); return nil })
			if d.n > 0 {
				break
			}
			if !errors.Is(err, errDisk) {
				t.Errorf("step %d (%q): %v", n, d.names, err)
			}
			found := false
			for _, name := range list(t, dir) {
				found = found || whole(t, filepath.Join(dir, name)) == "old"
			}
			if !found {
				t.Errorf("noSwap %v, step %d (%q): the old folder is gone, left are %q", noSwap, n, d.names, list(t, dir))
			}
		}
	}
}

// TestWriteDirLeftover: an old folder that cannot be removed does not make a
// success a failure.
func TestWriteDirLeftover(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "m")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, at, "old")
	if err := writeDir(&badDisk{holds: true}, at, true, func(tmp string) error { put(t, tmp, "new"); return nil }); err != nil || whole(t, at) != "new" {
		t.Errorf("%v, %q", err, whole(t, at))
	}
}

// TestWriteDirCrash: at whichever step the machine stops, the folder is the old
// one or the new one; without exchange of names the old one is beside it.
func TestWriteDirCrash(t *testing.T) {
	for _, noSwap := range []bool{false, true} {
		for n := 1; ; n++ {
			dir, at := oldFolder(t)
			d := &badDisk{n: n, dies: true, noSwap: noSwap}
			_ = writeDir(d, at, true, func(tmp string) error { put(t, tmp, "new"); return nil })
			if d.n > 0 {
				break
			}
			got := whole(t, at)
			if got == "" && noSwap {
				for _, name := range list(t, dir) {
					if strings.HasSuffix(name, ".old") {
						got = whole(t, filepath.Join(dir, name))
					}
				}
			}
			if got != "old" && got != "new" {
				t.Errorf("noSwap %v, step %d (%q): content %q of %q", noSwap, n, d.names, got, list(t, dir))
			}
		}
	}
}
