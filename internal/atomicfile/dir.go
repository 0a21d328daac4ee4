package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteDir lets fill write files into a temporary folder beside dir, syncs them,
// and gives the folder its name. Where dir is there already, it is an error that
// wraps fs.ErrExist unless replace is set; then the old folder stays until the new
// one is in its place. When WriteDir returns nil the new folder and its name are
// durable; what was in its place may still be there under a name that begins with
// ".denoised-" if it could not be removed. On error dir is what it was, where an empty
// folder counts as none, and the temporary folder is gone. Should the way back fail
// too, the error says so, dir is the new folder, and the old one stays beside it.
//
// Where the system can exchange two names (Linux), dir is one of the two folders
// at any moment. Elsewhere a crash between two renames leaves the old one under a
// name that begins with ".denoised-".
func WriteDir(dir string, replace bool, fill func(tmp string) error) error {
	return writeDir(osDisk{}, dir, replace, fill)
}

// disk is the little of a file system that Write and WriteDir need. Tests replace
// it to fail or to stop at any step.
type disk interface {
	// SyncFile makes the content of a file durable.
	SyncFile(f *os.File) error
	MkdirTemp(dir, pattern string) (string, error)
	// SyncTree makes the files of a folder, and their names, durable.
	SyncTree(dir string) error
	// SyncDir makes the names in a folder durable.
	SyncDir(dir string) error
	Rename(from, to string) error
	// Exchange swaps two names, or returns errors.ErrUnsupported.
	Exchange(a, b string) error
	RemoveAll(path string) error
}

func writeDir(d disk, dir string, replace bool, fill func(tmp string) error) (err error) {
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	tmp, err := d.MkdirTemp(parent, ".denoised-*")
	if err != nil {
		return fmt.Errorf("write folder %s: %w", dir, err)
	}
	keep := false // what is at tmp now is the old folder
	defer func() {
		if err != nil && !keep {
			err = errors.Join(err, d.RemoveAll(tmp))
		}
		if err != nil {
			err = fmt.Errorf("write folder %s: %w", dir, err)
		}
	}()
	if err := fill(tmp); err != nil {
		return err
	}
	if err := d.SyncTree(tmp); err != nil {
		return err
	}
	// The first rename replaces an empty folder, which is nobody's.
	items, err := os.ReadDir(dir)
	there := err == nil && len(items) > 0
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case there && !replace:
		return fs.ErrExist
	case !there:
		if err := d.Rename(tmp, dir); err != nil {
			return err
		}
		if err := d.SyncDir(parent); err != nil {
			return errors.Join(err, d.Rename(dir, tmp))
		}
		return nil
	}
	// Put what is there where the new folder is.
	if err := exchange(d, tmp, dir); err != nil {
		return err
	}
	if err := d.SyncDir(parent); err != nil {
		back := exchange(d, tmp, dir)
		keep = back != nil
		return errors.Join(err, back)
	}
	// The new folder is in its place for good: what is left of the old one is no failure.
	_ = d.RemoveAll(tmp)
	return nil
}

// exchange swaps two names, with three renames where the system cannot do it at
// once. After an error both are what they were, unless the error tells of more than
// one step.
func exchange(d disk, a, b string) error {
	err := d.Exchange(a, b)
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	aside := a + ".old"
	if err := d.Rename(b, aside); err != nil {
		return err
	}
	if err := d.Rename(a, b); err != nil {
		return errors.Join(err, d.Rename(aside, b))
	}
	if err := d.Rename(aside, a); err != nil {
		if back := d.Rename(b, a); back != nil {
			return errors.Join(err, back)
		}
		return errors.Join(err, d.Rename(aside, b))
	}
	return nil
}

type osDisk struct{}

func (osDisk) MkdirTemp(dir, pattern string) (string, error) {
	tmp, err := os.MkdirTemp(dir, pattern)
	if err != nil {
		return "", err
	}
	return tmp, os.Chmod(tmp, 0o755)
}

func (d osDisk) SyncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return d.SyncDir(path)
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

func (osDisk) SyncFile(f *os.File) error { return f.Sync() }

func (osDisk) Rename(from, to string) error { return os.Rename(from, to) }

func (osDisk) RemoveAll(path string) error { return os.RemoveAll(path) }

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
