package atomicfile_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/internal/atomicfile"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	put := func(text string, err error) error {
		return atomicfile.Write(path, 0o640, func(f *os.File) error {
			if _, werr := f.WriteString(text); werr != nil {
				return werr
			}
			return err
		})
	}
	if err := put("first", nil); err != nil {
		t.Fatal(err)
	}
	fail := errors.New("no more")
	if err := put("half of the second", fail); !errors.Is(err, fail) {
		t.Errorf("error %v, want %v", err, fail)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "first" {
		t.Errorf("%q, %v, want the first content", b, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", st, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := atomicfile.Write(filepath.Join(dir, "none", "a"), 0o600, func(*os.File) error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing folder: %v", err)
	}
}
