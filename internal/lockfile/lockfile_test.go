package lockfile_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/internal/lockfile"
)

// TestTake: one at a time, and the next when it is closed.
func TestTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := lockfile.Take(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockfile.Take(path); !errors.Is(err, lockfile.ErrLocked) {
		t.Errorf("a second lock: %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lockfile.Take(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := lockfile.Take(filepath.Join(path, "in a file")); err == nil || errors.Is(err, lockfile.ErrLocked) {
		t.Errorf("a lock inside a file: %v", err)
	}
	if _, err := lockfile.Take(filepath.Join(t.TempDir(), "no", "folder")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a lock in no folder: %v", err)
	}
}
