package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/pipeline"
)

// TestRejectedReplacesNothing: neither a link named rejected nor what is in that
// folder already lets a file of a hot folder replace another one.
func TestRejectedReplacesNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, dir, other string)
		done bool
		want []string // in the hot folder
	}{
		{"link to another folder", func(t *testing.T, dir, other string) {
			if err := os.Symlink(other, filepath.Join(dir, "rejected")); err != nil {
				t.Fatal(err)
			}
		}, false, []string{"journal.db", "rejected"}},
		{"link to a file of the same name", func(t *testing.T, dir, other string) {
			if err := os.Mkdir(filepath.Join(dir, "rejected"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(filepath.Join(other, "journal.db"),
				filepath.Join(dir, "rejected", "journal.db")); err != nil {
				t.Fatal(err)
			}
		}, true, []string{"rejected"}},
		{"a file in its place", func(t *testing.T, dir, _ string) {
			if err := os.WriteFile(filepath.Join(dir, "rejected"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, false, []string{"journal.db", "rejected"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, other := t.TempDir(), t.TempDir()
			c.make(t, dir, other)
			live := filepath.Join(other, "journal.db")
			for path, text := range map[string]string{live: "journal", filepath.Join(dir, "journal.db"): "rubbish"} {
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			i := &importer{sizes: map[string][]int64{}, fail: errors.New("not a DICOM file")}
			h := newHotFolders(i.imp, func() bool { return true }, zap.NewNop(), 0)
			root, _, err := openFolder(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			info, err := root.Lstat("journal.db")
			if err != nil {
				t.Fatal(err)
			}
			done, err := h.take(t.Context(), root, "journal.db", pipeline.Fast, info)
			if done != c.done || err == nil {
				t.Errorf("done %v, %v, want %v and an error", done, err, c.done)
			}
			if text, err := os.ReadFile(live); err != nil || string(text) != "journal" {
				t.Errorf("the file outside is %q, %v", text, err)
			}
			if got := names(t, other); len(got) != 1 {
				t.Errorf("in the folder outside: %q", got)
			}
			if got := names(t, dir); !slices.Equal(got, c.want) {
				t.Errorf("in the hot folder: %q, want %q", got, c.want)
			}
		})
	}
}
