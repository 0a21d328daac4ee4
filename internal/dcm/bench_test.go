package dcm_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
)

// BenchmarkScan indexes a 512x512 MR image (525 KB) that lies in a file, as the
// receive path does.
func BenchmarkScan(b *testing.B) {
	name := filepath.Join(b.TempDir(), "mr.dcm")
	if err := os.WriteFile(name, dcmtest.MR(512, 512, 1).File(dcmtest.Form{}), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := dcm.Scan(f, st.Size()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkKeywords evaluates the environment of a rule.
func BenchmarkKeywords(b *testing.B) {
	o, err := dcmtest.MR(64, 64, 1).Scan(dcmtest.Form{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		o.Keywords()
	}
}
