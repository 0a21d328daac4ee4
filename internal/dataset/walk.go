package dataset

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// walk calls visit for every file of a tree, in the order of the names
// within a folder, and skip for what cannot be visited. Links are followed; a
// file or folder that two ways lead to is visited once, so loops end. root may
// be a file. The error is that of visit, of ctx, or of the root itself.
func walk(ctx context.Context, root string, visit func(path string) error,
	skip func(path, reason, detail string)) error {
	w := &walker{ctx: ctx, visit: visit, skip: skip, seen: map[string]bool{}}
	info, err := os.Stat(root)
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		return visit(root)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is neither a file nor a folder", root)
	}
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return err
	}
	if _, err := os.ReadDir(root); err != nil {
		return err
	}
	return w.folder(root, real, 0)
}

type walker struct {
	ctx   context.Context
	visit func(path string) error
	skip  func(path, reason, detail string)
	seen  map[string]bool // paths without links
	files int
}

// folder walks a folder whose path without links is real.
func (w *walker) folder(path, real string, depth int) error {
	if w.seen[real] {
		w.skip(path, Link, "it leads to a folder that is read already")
		return nil
	}
	w.seen[real] = true
	if depth > maxDepth {
		w.skip(path, NotAFile, fmt.Sprintf("folders nested deeper than %d", maxDepth))
		return nil
	}
	items, err := os.ReadDir(path)
	if err != nil {
		reason, detail := readReason(err)
		w.skip(path, reason, detail)
		return nil
	}
	for _, item := range items {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		p, r, mode := filepath.Join(path, item.Name()), filepath.Join(real, item.Name()), item.Type()
		if mode&fs.ModeSymlink != 0 {
			target, err := filepath.EvalSymlinks(p)
			if err != nil {
				w.skip(p, Link, "it leads nowhere, or in a circle")
				continue
			}
			info, err := os.Stat(target)
			if err != nil {
				reason, detail := readReason(err)
				w.skip(p, reason, detail)
				continue
			}
			r, mode = target, info.Mode().Type()
		}
		switch {
		case mode.IsDir():
			if err := w.folder(p, r, depth+1); err != nil {
				return err
			}
		case !mode.IsRegular():
			w.skip(p, NotAFile, "a device, socket or pipe")
		case w.seen[r]:
			w.skip(p, Link, "it leads to a file that is read already")
		default:
			if w.files++; w.files > maxFiles {
				return fmt.Errorf("more than %d files in %s; choose a smaller folder", maxFiles, path)
			}
			w.seen[r] = true
			if err := w.visit(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// Inside tells whether a path lies in a folder, or is it, with all links followed as
// far as the path is there. Nothing may be written where it is read from.
func Inside(path, folder string) (bool, error) {
	path, err := realPath(path)
	if err != nil {
		return false, err
	}
	folder, err = realPath(folder)
	if err != nil {
		return false, err
	}
	const separator = string(filepath.Separator)
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, separator)+separator), nil
}

// realPath resolves links as far as the path exists.
func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	rest := ""
	for {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return "", err
		}
		rest = filepath.Join(filepath.Base(path), rest)
		path = filepath.Dir(path)
	}
}
