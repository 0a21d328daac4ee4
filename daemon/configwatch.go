package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

// configDebounce is how long the folder must be quiet before the file is read:
// editors and tools write, rename and chmod in several steps.
const configDebounce = 200 * time.Millisecond

// configWatch notices that the content of the configuration file has changed.
// It watches folders, not the file: editors replace files by renaming, and a
// link may be turned to another file. Only another content counts, so that
// whatever else happens in the folder is no reason to reload.
type configWatch struct {
	path    string
	last    string // fingerprint of what is in force
	gone    bool   // it could not be read at the last look
	changed func()
	log     *zap.Logger
}

func (w *configWatch) run(ctx context.Context) error {
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		// Without it the file can still be taken over by SIGHUP.
		w.log.Warn("changes of the configuration are not noticed; use systemctl reload", zap.Error(err))
		<-ctx.Done()
		return nil
	}
	defer fs.Close()
	w.look(fs)
	timer := time.NewTimer(0) // once at the start: it may have changed since it was read
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-fs.Events:
			if !ok {
				return fmt.Errorf("watch %s: the watcher ended", w.path)
			}
			timer.Reset(configDebounce)
		case err, ok := <-fs.Errors:
			if !ok {
				return fmt.Errorf("watch %s: the watcher ended", w.path)
			}
			w.log.Warn("watch the configuration", zap.Error(err))
			timer.Reset(configDebounce) // events may have been lost
		case <-timer.C:
			// A file that is gone is a reason too: reading it fails, and that is told.
			now := w.look(fs)
			gone := now == ""
			if gone != w.gone || !gone && now != w.last {
				w.gone = gone
				if !gone {
					w.last = now
				}
				w.changed()
			}
		}
	}
}

// look makes sure that the right folders are watched and returns a fingerprint
// of the content, empty while there is none.
func (w *configWatch) look(fs *fsnotify.Watcher) string {
	folders := map[string]bool{filepath.Dir(w.path): true}
	// Every link on the way may be turned.
	for path, n := w.path, 0; n < 16; n++ {
		target, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
		folders[filepath.Dir(path)] = true
	}
	if real, err := filepath.EvalSymlinks(w.path); err == nil {
		folders[filepath.Dir(real)] = true
	}
	for _, old := range fs.WatchList() {
		if !folders[old] {
			_ = fs.Remove(old) // it may be gone
		}
	}
	for folder := range folders {
		if err := fs.Add(folder); err != nil {
			w.log.Debug("watch folder", zap.String("folder", folder), zap.Error(err))
		}
	}
	text, err := os.ReadFile(w.path)
	if err != nil {
		return ""
	}
	return fingerprint(text)
}
