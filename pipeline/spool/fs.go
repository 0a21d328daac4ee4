package spool

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/diffdenoise/denoised/internal/disk"
)

// FS is the little of a file system that the spool needs. Names are relative
// to the spool folder, with forward slashes. Implementations are safe for
// concurrent use. Tests replace it to tear writes, fail Sync or fill the disk.
type FS interface {
	// Create makes a new file for reading and writing; it must not exist.
	Create(name string) (File, error)
	// Open opens an existing file for reading.
	Open(name string) (File, error)
	// Rename moves a file, replacing what has the new name.
	Rename(from, to string) error
	// Remove deletes a file.
	Remove(name string) error
	// SyncDir makes the names inside a folder durable.
	SyncDir(dir string) error
	// MkdirAll makes a folder and its parents.
	MkdirAll(dir string) error
	// List names the entries of a folder, in no promised order.
	List(dir string) ([]string, error)
	// Free tells the size of the disk and what an ordinary user may still write, in bytes.
	Free() (total, free uint64, err error)
}

// File is one open spool file.
type File interface {
	io.Writer
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes the file's content durable.
	Sync() error
	// Size is the present length in bytes.
	Size() (int64, error)
}

// DirFS is the FS on a real folder.
type DirFS string

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (d DirFS) path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }

// Create implements FS.
func (d DirFS) Create(name string) (File, error) {
	f, err := os.OpenFile(d.path(name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o640)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Open implements FS.
func (d DirFS) Open(name string) (File, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Rename implements FS.
func (d DirFS) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

// Remove implements FS.
func (d DirFS) Remove(name string) error { return os.Remove(d.path(name)) }

// MkdirAll implements FS.
func (d DirFS) MkdirAll(dir string) error { return os.MkdirAll(d.path(dir), 0o750) }

// List implements FS.
func (d DirFS) List(dir string) ([]string, error) {
	f, err := os.Open(d.path(dir))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// SyncDir implements FS.
func (d DirFS) SyncDir(dir string) error { return syncDir(d.path(dir)) }

// Free implements FS.
func (d DirFS) Free() (total, free uint64, err error) { return disk.Space(string(d)) }

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
