package atomicfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func (osDisk) Exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL): // an old kernel or another file system
		return errors.ErrUnsupported
	}
	return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
}

func (osDisk) SyncDir(dir string) error { return syncDir(dir) }
