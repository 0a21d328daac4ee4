package disk_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/internal/disk"
)

func TestSpace(t *testing.T) {
	dir := t.TempDir()
	total, free, err := disk.Space(dir)
	if err != nil || total == 0 || free > total {
		t.Errorf("%d of %d bytes are free: %v", free, total, err)
	}
	if _, _, err := disk.Space(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of what is not there: %v", err)
	}
}
