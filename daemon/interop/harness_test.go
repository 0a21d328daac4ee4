package interop

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/internal/testdata"
)

// TestHarness proves the harness without denoised: what it says of a scanner
// that talks straight to the archives must be true before it may judge us.
func TestHarness(t *testing.T) {
	testdata.Peer(t, "Orthanc", "storescp", "storescu", "dcmsend", "dcmdump", "dciodvfy")
	series := filepath.Join(testdata.Dir(t), "dicom", "series", "acr_siemens_aera_t1")
	files := dicomFiles(t, series)
	archive, bits := startOrthanc(t), startRecorder(t)

	for _, s := range dcmsend(t, archive.dicom, archive.aet, files...) {
		if !s.Answered || s.Status != 0 {
			t.Errorf("dcmsend to Orthanc: %s: %v", s.File, s)
		}
	}
	if got := len(archive.instances()); got != len(files) {
		t.Errorf("Orthanc lists %d instances, sent %d", got, len(files))
	}
	for _, s := range storescu(t, bits.port, bits.aet, files...) {
		if !s.Answered || s.Status != 0 {
			t.Errorf("storescu to storescp: %s: %v", s.File, s)
		}
	}
	objects := bits.objects()
	for uid, a := range archive.instances() {
		fromArchive, err := parsePart10(archive.file(a))
		if err != nil {
			t.Fatalf("file from Orthanc: %v", err)
		}
		if fromArchive.SOPInstanceUID != uid {
			t.Errorf("Orthanc returned %s for %s", fromArchive.SOPInstanceUID, uid)
		}
		if got := once(t, objects, uid); len(got) == 0 {
			t.Errorf("nothing recorded for %s", uid)
		}
	}

	// A change of one character must be seen by both comparisons.
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(t.TempDir(), "changed.dcm")
	if err := os.WriteFile(changed, bytes.Replace(data, []byte("ORIGINAL"), []byte("0RIGINAL"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	before, after := elements(t, files[0]), elements(t, changed)
	for tag := range before {
		if same := before[tag] == after[tag]; same != (tag != "0008,0008") {
			t.Errorf("element %s: equal = %v", tag, same)
		}
	}
	if len(before) < 50 {
		t.Errorf("only %d elements read", len(before))
	}
	known := errorClasses(t, files[0])
	fresh := 0
	for class := range errorClasses(t, changed) {
		if !known[class] {
			fresh++
		}
	}
	if fresh == 0 {
		t.Error("dciodvfy did not object to an image type that does not exist")
	}
}

// dicomFiles returns every regular file below dir, in order.
func dicomFiles(t testing.TB, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("no files below %s", dir)
	}
	return files
}
