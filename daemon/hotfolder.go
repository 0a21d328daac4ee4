package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/pipeline"
)

// rejectedFolder is where files go that cannot be taken in.
const rejectedFolder = "rejected"

// hotSweep is how often every hot folder is looked through, for what the file
// system does not tell: shares of other machines never do.
const hotSweep = 10 * time.Second

// hotFolders takes files from folders into the pipeline. A file is removed only
// after its import is durable; if the process dies in between, the file is
// imported again, which changes nothing.
//
// A file counts as whole when this process has seen neither size nor time change,
// nor a notice of a write, for the settling time. How old its time is says
// nothing: copying programs set it as they like, some before the last byte, and
// the clock of a file server may be another. Names that start with a dot or end in .tmp, .part or .partial
// are left alone: writers who rename at the end are never misunderstood.
//
// Others can write to these folders. Everything below one goes through an os.Root,
// so that no link leads out of it; links and special files are not taken, and
// nothing that is there is replaced.
type hotFolders struct {
	imp    func(ctx context.Context, f *os.File, q pipeline.Quality) error
	sound  func() bool // spool and journal work: a failed import is the file's fault
	log    *zap.Logger
	settle time.Duration
	wake   chan struct{} // the folders have changed

	mu      sync.Mutex
	folders []WatchFolder
}

func newHotFolders(imp func(context.Context, *os.File, pipeline.Quality) error, sound func() bool, log *zap.Logger,
	settle time.Duration) *hotFolders {
	return &hotFolders{imp: imp, sound: sound, log: log, settle: settle, wake: make(chan struct{}, 1)}
}

// configure replaces the folders.
func (h *hotFolders) configure(folders []WatchFolder) {
	h.mu.Lock()
	h.folders = folders
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hotFolders) current() []WatchFolder {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.folders
}

// candidate is a file that is being watched until it settles.
type candidate struct {
	size  int64
	mod   time.Time
	since time.Time // looks like this since
	after time.Time // not to be tried before: an import failed for a passing reason
	fails int
}

// run works until ctx ends.
func (h *hotFolders) run(ctx context.Context) error {
	var events chan fsnotify.Event
	var errs chan error
	w, err := fsnotify.NewWatcher()
	if err != nil {
		h.log.Warn("no notices from the file system; hot folders are looked through at intervals", zap.Error(err))
	} else {
		defer w.Close()
		events, errs = w.Events, w.Errors
	}
	seen := map[string]*candidate{} // by path
	missing := map[string]bool{}    // folders that were not there at the last look
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
			timer.Reset(0)
		case e := <-events:
			if c := seen[e.Name]; c != nil {
				c.since = time.Now() // it is being written to, whatever size and time say
			}
			timer.Reset(min(h.settle, hotSweep))
			continue
		case err := <-errs:
			h.log.Warn("notices from the file system were lost", zap.Error(err))
			timer.Reset(0)
			continue
		case <-timer.C:
		}
		next := time.Now().Add(hotSweep)
		here := map[string]bool{}
		folders := h.current()
		if w != nil {
			for _, dir := range w.WatchList() {
				if !slices.ContainsFunc(folders, func(f WatchFolder) bool { return f.Dir == dir }) {
					_ = w.Remove(dir) // it may be gone
				}
			}
		}
		for _, f := range folders {
			if w != nil {
				_ = w.Add(f.Dir) // told below if it is not there; adding again is harmless
			}
			if at := h.sweep(ctx, f, seen, here, missing); at.Before(next) {
				next = at
			}
			if ctx.Err() != nil {
				return nil
			}
		}
		for path := range seen {
			if !here[path] {
				delete(seen, path)
			}
		}
		timer.Reset(max(time.Until(next), 10*time.Millisecond))
	}
}

// maxInHand bounds how many files are remembered at a time; more wait in the
// folder until these are done.
const maxInHand = 10000

// sweep looks through one folder, imports what has settled and returns when to
// look again.
func (h *hotFolders) sweep(ctx context.Context, f WatchFolder, seen map[string]*candidate, here, missing map[string]bool) (next time.Time) {
	next = time.Now().Add(hotSweep)
	root, entries, err := openFolder(f.Dir)
	if err != nil {
		if !missing[f.Dir] {
			missing[f.Dir] = true
			h.log.Error("hot folder cannot be read; it is tried again", zap.String("dir", f.Dir), zap.Error(err))
		}
		return next
	}
	if missing[f.Dir] {
		delete(missing, f.Dir)
		h.log.Info("hot folder is there again", zap.String("dir", f.Dir))
	}
	defer root.Close()
	imported := 0
	for _, e := range entries {
		if ctx.Err() != nil {
			break
		}
		// Links are left alone: they could point at anything, and be turned.
		if !e.Type().IsRegular() || temporary(e.Name()) {
			continue
		}
		info, err := root.Lstat(e.Name())
		if err != nil || !info.Mode().IsRegular() {
			continue // gone or turned meanwhile
		}
		path := filepath.Join(f.Dir, e.Name())
		now := time.Now()
		c := seen[path]
		if c == nil && len(seen) >= maxInHand {
			break
		}
		here[path] = true
		if c == nil || c.size != info.Size() || !c.mod.Equal(info.ModTime()) {
			c = &candidate{size: info.Size(), mod: info.ModTime(), since: now}
			seen[path] = c
		}
		due := c.after
		if quiet := now.Sub(c.since); quiet < h.settle {
			due = now.Add(h.settle - quiet)
		}
		if due.After(now) {
			if due.Before(next) {
				next = due
			}
			continue
		}
		switch done, err := h.take(ctx, root, e.Name(), f.Quality, info); {
		case done:
			delete(seen, path)
			if err == nil {
				imported++
			}
		case err != nil && ctx.Err() == nil:
			c.after = now.Add(min(time.Second<<min(c.fails, 6), time.Minute))
			c.fails++
			if c.after.Before(next) {
				next = c.after
			}
			h.log.Warn("file stays in the hot folder; it is tried again", zap.String("file", fileLabel(path)), zap.Error(scrub(err, path)))
		}
	}
	if imported > 0 {
		h.log.Info("taken from the hot folder", zap.String("dir", f.Dir), zap.Int("files", imported))
	}
	return next
}

func temporary(name string) bool {
	if strings.HasPrefix(name, ".") {
		return true
	}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".tmp", ".part", ".partial":
		return true
	}
	return false
}

// openFolder opens a hot folder and lists it.
func openFolder(dir string) (*os.Root, []fs.DirEntry, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, err
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		root.Close()
		return nil, nil, err
	}
	return root, entries, nil
}

// errChanged: what was imported must be what is removed.
var errChanged = errors.New("it was changed during the import")

// take imports one file and removes it. done: the file is not in the folder any
// more, imported or, with an error, rejected. Else the error is a passing reason.
func (h *hotFolders) take(ctx context.Context, root *os.Root, name string, q pipeline.Quality,
	info fs.FileInfo) (done bool, err error) {
	err = h.importFile(ctx, root, name, q, info)
	var system *fs.PathError // not readable, share gone, too many open files: nothing is wrong with the content
	switch {
	case err == nil:
	case errors.Is(err, pipeline.ErrNoSpace), ctx.Err() != nil, errors.As(err, &system),
		errors.Is(err, errChanged), !h.sound():
		return false, err
	default:
		if rerr := h.reject(root, name, info, err); rerr != nil {
			return false, errors.Join(err, rerr)
		}
		return true, err
	}
	now, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if !os.SameFile(info, now) || now.Size() != info.Size() || !now.ModTime().Equal(info.ModTime()) {
		return false, errChanged
	}
	if err := root.Remove(name); err != nil {
		return false, fmt.Errorf("imported, but not removed: %w", err)
	}
	return true, nil
}

// importFile opens the file that info is of, without waiting should a pipe or a
// device have taken its name, and imports it.
func (h *hotFolders) importFile(ctx context.Context, root *os.Root, name string, q pipeline.Quality,
	info fs.FileInfo) error {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(info, now) {
		return errChanged
	}
	return h.imp(ctx, f, q)
}

// reject moves a file aside, with the reason in a file beside it. Nothing in the
// folder for rejected files is replaced.
func (h *hotFolders) reject(root *os.Root, name string, info fs.FileInfo, why error) error {
	if err := root.Mkdir(rejectedFolder, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make folder for rejected files: %w", err)
	}
	if st, err := root.Lstat(rejectedFolder); err != nil || !st.IsDir() {
		return errors.Join(fmt.Errorf("%q in the hot folder is a link or a file, need a folder: remove it",
			rejectedFolder), err)
	}
	base := name[:min(len(name), 200)] // leaves room for what is added
	target := filepath.Join(rejectedFolder, base)
	for n := 1; ; n++ {
		err := h.rejectAs(root, name, target, info, why)
		if errors.Is(err, fs.ErrExist) && n < 1000 {
			target = filepath.Join(rejectedFolder, fmt.Sprintf("%s.%d", base, n))
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	path := filepath.Join(root.Name(), name)
	h.log.Warn("file rejected", zap.String("file", fileLabel(filepath.Join(root.Name(), target))),
		zap.Error(scrub(why, path)))
	return nil
}

// rejectAs moves a file to target. The error wraps fs.ErrExist if target or its
// reason is there; then, as after any other error, nothing has changed.
func (h *hotFolders) rejectAs(root *os.Root, name, target string, info fs.FileInfo, why error) (err error) {
	// The reason is made first, and only if there is none: it reserves the name.
	reason := target + ".reason.txt"
	f, err := root.OpenFile(reason, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return fmt.Errorf("write the reason: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Remove(reason))
		}
	}()
	_, err = fmt.Fprintf(f, "%s\n%v\n", time.Now().UTC().Format(time.RFC3339), why)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the reason: %w", err)
	}
	if now, err := root.Lstat(name); err != nil || !os.SameFile(info, now) {
		return errors.Join(errChanged, err)
	}
	// A link fails where a rename would replace.
	switch err := root.Link(name, target); {
	case err == nil:
		if err := root.Remove(name); err != nil {
			return errors.Join(fmt.Errorf("move a file to %s: %w", rejectedFolder, err), root.Remove(target))
		}
		return nil
	case errors.Is(err, fs.ErrExist):
		return err
	}
	// A file system without hard links, as many shares are.
	if _, err := root.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		return fs.ErrExist
	}
	if err := root.Rename(name, target); err != nil {
		return fmt.Errorf("move a file to %s: %w", rejectedFolder, err)
	}
	return nil
}

// fileLabel stands for a file in the log. Names of files may be names of
// patients, so only the folder and a short mark are shown.
func fileLabel(path string) string {
	return filepath.Join(filepath.Dir(path), "…"+fingerprint([]byte(filepath.Base(path)))[:8])
}

// scrub takes a file's name out of an error.
func scrub(err error, path string) error {
	return errors.New(strings.ReplaceAll(strings.ReplaceAll(err.Error(), path, fileLabel(path)), filepath.Base(path), "…"))
}
