// Package lockfile keeps a folder to one process: who holds its lock file may use it.
package lockfile

import (
	"errors"
	"fmt"
	"os"
)

// ErrLocked means that another process holds the lock.
var ErrLocked = errors.New("another process uses this folder")

// Take makes the file at path, unless it is there, and locks it for this process until
// the returned file is closed or the process ends, however it ends. It does not wait:
// the error wraps ErrLocked if another process, or another call in this one, holds it.
func Take(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
