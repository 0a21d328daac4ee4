// Package atomicfile writes files and folders of which there is never half a one:
// [Write] fills a temporary file of the same folder and renames it, [WriteDir]
// does the same with a folder.
package atomicfile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write lets fill write a temporary file beside path, gives it the permissions
// perm, whatever the umask, syncs it and renames it to path. When it returns
// nil the content is durable; the name is after the folder's next sync. On error
// path is what it was and the temporary file is gone.
//
// Writers of one path may run at the same time: the last to finish stays.
func Write(path string, perm fs.FileMode, fill func(*os.File) error) error {
	return write(osDisk{}, path, perm, fill)
}

func write(d disk, path string, perm fs.FileMode, fill func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".denoised-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err = fill(f); err != nil {
		return err
	}
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if err = d.SyncFile(f); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return d.Rename(f.Name(), path)
}
