package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/pipeline"
)

// TestHotFolder: files that are there at the start, that come by rename and by
// writing, and that are no images; the folder is a destination's worth of series.
func TestHotFolder(t *testing.T) {
	archive := startPACS(t)
	cfg := testConfig(t, archive)
	dir := filepath.Join(t.TempDir(), "in")
	cfg.Watch = []WatchFolder{{Dir: dir, Quality: pipeline.Fast}}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	list := phantomSeries(t, "", 4)
	put := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("before.dcm", list[0].file)
	put("rubbish.dcm", []byte("this is not DICOM"))
	put(".hidden", list[3].file)
	put("later.part", list[3].file)
	if err := os.Symlink(filepath.Join(dir, ".hidden"), filepath.Join(dir, "link.dcm")); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, cfg)
	replace(t, filepath.Join(dir, "renamed.dcm"), string(list[1].file))
	put("written.dcm", list[2].file)
	put("empty.dcm", nil)
	eventually(t, "three originals and three derived are delivered", func() error {
		if archive.count() != 6 {
			return fmt.Errorf("%d objects", archive.count())
		}
		return nil
	})
	for _, i := range list[:3] {
		if !bytes.Equal(archive.get(i.uid), i.data) {
			t.Errorf("%s is not byte-identical", i.uid)
		}
	}
	eventually(t, "only what is to be left alone is left", func() error {
		left := names(t, dir)
		if want := []string{".hidden", "later.part", "link.dcm", "rejected"}; !slices.Equal(left, want) {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
	if got, want := names(t, filepath.Join(dir, "rejected")), []string{"empty.dcm", "empty.dcm.reason.txt", "rubbish.dcm", "rubbish.dcm.reason.txt"}; !slices.Equal(got, want) {
		t.Errorf("rejected: %q", got)
	}
	reason, err := os.ReadFile(filepath.Join(dir, "rejected", "rubbish.dcm.reason.txt"))
	if err != nil || !strings.Contains(string(reason), "not a DICOM file") {
		t.Errorf("reason %q, %v", reason, err)
	}
	for _, l := range d.recent.recent() {
		if strings.Contains(l.Message+l.Detail, "rubbish") {
			t.Errorf("a file's name is in the log: %+v", l)
		}
	}

	// The same name again, and a rename of the part that is complete now.
	put("rubbish.dcm", []byte("neither is this"))
	if err := os.Rename(filepath.Join(dir, "later.part"), filepath.Join(dir, "later.dcm")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are dealt with", func() error {
		if _, err := os.Stat(filepath.Join(dir, "rejected", "rubbish.dcm.1")); err != nil {
			return err
		}
		if archive.get(list[3].uid) == nil {
			return errors.New("not there yet")
		}
		return nil
	})
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// importer records what is imported and may fail.
type importer struct {
	mu    sync.Mutex
	sizes map[string][]int64
	fail  error
}

func (i *importer) imp(_ context.Context, f *os.File, _ pipeline.Quality) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	name := filepath.Base(f.Name())
	i.sizes[name] = append(i.sizes[name], st.Size())
	return i.fail
}

func (i *importer) set(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fail = err
}

func (i *importer) got(name string) []int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.sizes[name])
}

func startHotFolders(t *testing.T, settle time.Duration, sound bool, folders ...WatchFolder) (*hotFolders, *importer) {
	t.Helper()
	i := &importer{sizes: map[string][]int64{}}
	h := newHotFolders(i.imp, func() bool { return sound }, zap.NewNop(), settle)
	h.configure(folders)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return h, i
}

// TestSlowWriter: a file that grows is not taken before it has been quiet. Nor
// is one whose time is old and whose size is full from the first byte, as
// copying programs make them.
func TestSlowWriter(t *testing.T) {
	t.Run("grows", func(t *testing.T) { slowWriter(t, false) })
	t.Run("allocated, with an old time", func(t *testing.T) { slowWriter(t, true) })
}

func slowWriter(t *testing.T, allocated bool) {
	dir := t.TempDir()
	_, i := startHotFolders(t, 400*time.Millisecond, true, WatchFolder{Dir: dir})
	path := filepath.Join(dir, "slow.dcm")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	disguise := func() {
		if old := time.Unix(315532800, 0); allocated {
			if err := errors.Join(f.Truncate(12000), os.Chtimes(path, old, old)); err != nil {
				t.Fatal(err)
			}
		}
	}
	disguise()
	// Twelve writes over more than the settling time, each well within it.
	tick := time.NewTicker(80 * time.Millisecond)
	defer tick.Stop()
	for range 12 {
		if _, err := f.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		disguise()
		<-tick.C
	}
	if got := i.got("slow.dcm"); len(got) > 0 {
		t.Fatalf("taken while it was being written: %v", got)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file is removed", func() error {
		if left := names(t, dir); len(left) > 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
	if got := i.got("slow.dcm"); !slices.Equal(got, []int64{12000}) {
		t.Errorf("imported with sizes %v", got)
	}
}

// TestImportLater: for a passing reason a file stays, and is taken when the
// reason is gone. That goes for a full disk, for a file that cannot be read, and
// for any error while the spool is not sound.
func TestImportLater(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		sound bool
	}{"full disk": {fmt.Errorf("import: %w", pipeline.ErrNoSpace), true},
		"not readable": {fmt.Errorf("import: %w", &fs.PathError{Op: "open", Path: "a.dcm", Err: fs.ErrPermission}), true}, "journal": {errors.New("database is locked"), false}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, i := startHotFolders(t, 10*time.Millisecond, c.sound, WatchFolder{Dir: dir})
			i.set(c.err)
			replace(t, filepath.Join(dir, "a.dcm"), "x")
			eventually(t, "it was tried", func() error {
				if len(i.got("a.dcm")) == 0 {
					return errors.New("not yet")
				}
				return nil
			})
			if left := names(t, dir); !slices.Contains(left, "a.dcm") {
				t.Fatalf("left: %q", left)
			}
			i.set(nil)
			eventually(t, "it is taken", func() error {
				if left := names(t, dir); len(left) > 0 {
					return fmt.Errorf("%q", left)
				}
				return nil
			})
		})
	}
}

// TestFolderComes: a folder that is not there, or is added later, is used once
// it is there.
func TestFolderComes(t *testing.T) {
	parent := t.TempDir()
	h, i := startHotFolders(t, 10*time.Millisecond, true)
	dir := filepath.Join(parent, "in")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	replace(t, filepath.Join(dir, "a.dcm"), "x")
	h.configure([]WatchFolder{{Dir: filepath.Join(parent, "none")}, {Dir: dir}})
	eventually(t, "a file in the new folder is taken", func() error {
		if len(i.got("a.dcm")) != 1 {
			return errors.New("not yet")
		}
		return nil
	})
}
