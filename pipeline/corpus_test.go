package pipeline

import (
	"crypto/sha256"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// Every real object, malformed ones included, is either not a DICOM file or
// arrives as it is; nothing of it stops the others.
func TestRealObjects(t *testing.T) {
	root := testdata.Dir(t)
	a := newArchive()
	o := options(t, a)
	o.Logger = zap.NewNop()
	p := start(t, o)
	want := map[string]map[[32]byte]bool{} // UID -> data sets under it
	taken, left := 0, 0
	err := filepath.WalkDir(filepath.Join(root, "dicom"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !d.Type().IsRegular() {
			return err
		}
		if st, err := d.Info(); err != nil || st.Size() > 64<<20 {
			return err
		}
		if err := p.Import(t.Context(), path, Fast); err != nil {
			left++
			if !strings.Contains(err.Error(), "DICOM file") && !strings.Contains(err.Error(), "UID") && !strings.Contains(err.Error(), "empty") {
				t.Errorf("%s: %v", path, err)
			}
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		in, off, err := fileMeta(f, int64(len(b)))
		if err != nil {
			return err
		}
		if want[in.SOPInstanceUID] == nil {
			want[in.SOPInstanceUID] = map[[32]byte]bool{}
		}
		want[in.SOPInstanceUID][sha256.Sum256(b[off:])] = true
		taken++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "everything denoised and delivered", func() bool {
		h := p.Check()
		return h.Denoise.Waiting == 0 && h.Forward["pacs"].Waiting == 0
	})
	var denoised, failed, conflict int64
	reasons := map[state.Reason]int64{}
	list, err := p.Series(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		denoised, failed, conflict = denoised+s.Denoised, failed+s.Failed, conflict+s.Conflict
		for r, n := range s.Reasons {
			reasons[r] += n
		}
	}
	t.Logf("%d files taken, %d left, %d UIDs; in the last %d series: %d denoised, %d failed, %d conflicts, reasons %v", taken, left, len(want), len(list), denoised, failed, conflict, reasons)
	for uid, sets := range want {
		c := a.copies("pacs", uid)
		if len(c) == 0 {
			t.Errorf("%s did not arrive", uid)
		}
		for _, x := range c {
			if !sets[x] {
				t.Errorf("%s arrived with other bytes", uid)
			}
		}
	}
	if failed > 0 {
		t.Errorf("%d slices failed", failed)
	}
}
