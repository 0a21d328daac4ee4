package train_test

import (
	"bytes"
	"encoding/base64"
	"github.com/diffdenoise/denoised/models/store"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/models/train"
)

func report() *train.Report {
	px := make([]float32, 40*36)
	after := make([]float32, 40*36)
	for i := range px {
		px[i] = float32(i%40) / 40
		after[i] = px[i] * 0.9
	}
	r := &train.Report{
		Program: "1.2", Preset: "tiny", Seed: 7, Began: time.Unix(1e9, 0), Seconds: 61,
		Summary: train.Summary{Train: 90, Validation: 10, Split: "subject", SkippedAll: 2, Fingerprint: "f00d",
			Skipped: []dataset.Skip{{Source: "a|b<script>.nii", Reason: "colour"}, {Source: "c.dcm", Reason: "phase",
				Detail: "why", Slices: 3}}},
		Card: &store.Card{Name: "site", Version: "4", Training: store.Training{Method: "from noisy images alone",
			Noise: "white",
			Stages: []store.Stage{{Network: "bsn", Architecture: "denoised-bsn-v1 4", Parameters: 123, Steps: 30,
				BestStep: 20, Scores: map[string]float64{"psnr_db": 33.25}}}},
			Scores: []store.Score{{On: "validation", What: "denoised", Metric: "PSNR, dB", Value: 35.5}}},
		Examples: []train.Example{{Source: "x.nii", Index: 3, Width: 40, Height: 36, Before: px, After: after}},
	}
	for i := 1; i <= 3; i++ {
		r.Entries = append(r.Entries, train.Entry{Stage: "bsn", Step: 10 * i, Loss: math.Exp(-float64(i)), Rate: 1e-3,
			Scores: map[string]float64{"psnr_db": 30 + float64(i), "noisy_db": 30, "leak_slope": 0.1 * float64(i)}})
	}
	r.Entries = append(r.Entries, train.Entry{Stage: "student", Step: 5, Loss: 0.5, Rate: 1e-3})
	return r
}

// TestReport: the page is one file, the text has its pictures beside it, both say
// the same, and nothing of the data becomes markup.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	if err := report().Write(dir); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "report.html"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Training of site 4", "from noisy images alone", "denoised-bsn-v1 4", "35.500", "phase", "f00d", "1m1s"} {
		if !bytes.Contains(page, []byte(want)) || !bytes.Contains(text, []byte(want)) {
			t.Errorf("%q is not in both reports", want)
		}
	}
	if bytes.Contains(page, []byte("<script")) || bytes.Contains(text, []byte("<script")) || !bytes.Contains(text, []byte(`a\|b`)) {
		t.Error("a name of a file became markup")
	}
	if bytes.Contains(page, []byte("src=\"http")) || bytes.Contains(page, []byte("src=\"loss")) {
		t.Error("the page needs other files")
	}
	names := []string{"loss-bsn.png", "loss-student.png", "quality-bsn-db.png", "quality-bsn-leak_slope.png", "slices.png"}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := png.Decode(bytes.NewReader(b)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(string(text), "]("+name+")") {
			t.Errorf("report.md does not show %s", name)
		}
		if !bytes.Contains(page, []byte(template(b))) {
			t.Errorf("report.html does not hold %s", name)
		}
	}
	items, err := os.ReadDir(dir)
	if err != nil || len(items) != len(names)+2 {
		t.Errorf("files: %v, %v", items, err)
	}
}

// template is how an HTML attribute holds base64.
func template(b []byte) string {
	return strings.ReplaceAll(base64.StdEncoding.EncodeToString(b), "+", "&#43;")
}

// TestReportUnfinished: a training that was stopped has no card and may have no log.
func TestReportUnfinished(t *testing.T) {
	dir := t.TempDir()
	r := report()
	r.Card, r.Entries, r.Examples = nil, nil, nil
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil || !strings.Contains(string(b), "not finished") {
		t.Errorf("%v\n%s", err, b)
	}
	// Losses and scores that no axis can show are left out.
	r.Entries = []train.Entry{{Stage: "bsn", Step: 1, Loss: 0, Scores: map[string]float64{"not_finite": 1}}}
	if err := r.Write(dir); err != nil {
		t.Error(err)
	}
	if err := r.Write(filepath.Join(dir, "none")); err == nil {
		t.Error("a folder that is not there")
	}
}
