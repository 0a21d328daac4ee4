package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

// Reasons of what is left out, besides those of the packages that read and use it.
const (
	skipExcluded = "excluded" // --exclude names it
	skipConflict = "conflict" // the spool holds other pixels under the same UID
)

// readData reads --data: files, folders, or the originals in the state folder of a
// daemon; live tells that it is such a one, whose images come and go. excluded may be nil.
func readData(ctx context.Context, root string, excluded func(source string) bool,
	add func(dataset.Volume) error, skip func(dataset.Skip)) (live bool, err error) {
	if root, live, err = dataRoot(root); err != nil {
		return false, err
	}
	r := dataset.Reader{Objects: derive.Images{}, Add: add, Skip: skip, Exclude: func(source string) string {
		switch {
		case excluded != nil && excluded(source):
			return skipExcluded
		case spool.InConflict(source):
			return skipConflict
		}
		return ""
	}}
	return live, r.Read(ctx, root)
}

// dataRoot is the folder of the originals if root is the state folder of a daemon or
// its spool, else root.
func dataRoot(root string) (dir string, live bool, err error) {
	info, err := os.Stat(root)
	if err != nil {
		return "", false, err
	}
	if !info.IsDir() {
		return root, false, nil
	}
	for _, dir := range []string{filepath.Join(root, "spool"), root} {
		original, derived := filepath.Join(dir, string(spool.Original)), filepath.Join(dir, string(spool.Derived))
		if isFolder(filepath.Join(original, "00")) && isFolder(filepath.Join(derived, "00")) {
			return original, true, nil
		}
	}
	return root, false, nil
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
