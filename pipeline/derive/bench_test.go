package derive_test

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

func params() derive.Params {
	return derive.Params{
		Model:    derive.ModelInfo{Name: "student", Version: "1", Hash: "5d41402abc4b2a76b9719d911017c592"},
		Strength: 1, Quality: "fast", Version: "0.1.0",
		Now:        time.Date(2026, 3, 4, 5, 6, 7, 890_000_000, time.UTC),
		SeriesTime: time.Date(2026, 3, 4, 5, 0, 0, 0, time.UTC),
	}
}

// BenchmarkWrite splices the derived object of a 512x512 MR image, pixels given.
func BenchmarkWrite(b *testing.B) {
	file := dcmtest.MR(512, 512, 1).File(dcmtest.Form{})
	pixels := make([]float32, 512*512)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		o, err := dcm.Scan(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := derive.Write(io.Discard, o, params(), func(int) ([]float32, error) { return pixels, nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkInspect includes the scan: what the receive path pays per image.
func BenchmarkInspect(b *testing.B) {
	file := dcmtest.MR(512, 512, 1).File(dcmtest.Form{})
	b.ReportAllocs()
	for b.Loop() {
		o, err := dcm.Scan(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			b.Fatal(err)
		}
		if v := derive.Inspect(o); !v.OK() {
			b.Fatal(v)
		}
	}
}

// BenchmarkReadFrame reads the pixels of a 512x512 MR image.
func BenchmarkReadFrame(b *testing.B) {
	o, err := dcmtest.MR(512, 512, 1).Scan(dcmtest.Form{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := derive.ReadFrame(o, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerify compares a derived 512x512 MR image with its source.
func BenchmarkVerify(b *testing.B) {
	src, err := dcmtest.MR(512, 512, 1).Scan(dcmtest.Form{})
	if err != nil {
		b.Fatal(err)
	}
	var buf bytes.Buffer
	if _, err := derive.Write(&buf, src, params(), func(int) ([]float32, error) { return make([]float32, 512*512), nil }); err != nil {
		b.Fatal(err)
	}
	got, err := dcm.Scan(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := derive.Verify(src, got); err != nil {
			b.Fatal(err)
		}
	}
}
