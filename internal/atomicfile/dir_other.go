//go:build !linux

package atomicfile

import (
	"errors"
	"runtime"
)

func (osDisk) Exchange(a, b string) error { return errors.ErrUnsupported }

func (osDisk) SyncDir(dir string) error {
	if runtime.GOOS == "windows" { // which has no sync of a folder
		return nil
	}
	return syncDir(dir)
}
