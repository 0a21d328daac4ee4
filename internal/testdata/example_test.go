package testdata_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/internal/testdata"
)

// A test that validates a real object with a program of another project skips
// where either is absent, and fails where DENOISED_REQUIRE names them.
func Example() {
	_ = func(t *testing.T) { // func TestValid(t *testing.T)
		object := filepath.Join(testdata.Dir(t), "dicom", "pydicom_core", "MR_small.dcm")
		validator := testdata.Path(t, "dciodvfy")
		if out, err := exec.Command(validator, object).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	// Output:
}
