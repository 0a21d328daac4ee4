package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/score"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

func runDenoise(t *testing.T, args ...string) (denoiseReport, error) {
	t.Helper()
	cmd := newDenoiseCmd()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(append(args, "--json"))
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(context.Background())
	var r denoiseReport
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatalf("report: %v\n%s", err, out.Bytes())
		}
	}
	return r, err
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDenoiseFolder: images become derived objects nearer to the truth in the
// mirrored tree; everything else is copied byte for byte with a reason; a second
// pass leaves the derived objects alone.
func TestDenoiseFolder(t *testing.T) {
	in, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	v := phantom.New(phantom.Spec{Seed: 1, Width: 128, Height: 128, Slices: 2, Sigma: 0.04})
	ids := phantom.NewIDs("folder")
	for k := range 2 {
		var b bytes.Buffer
		if err := v.WriteDICOM(&b, k, ids); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(in, "series", string(rune('a'+k))+".dcm"), b.Bytes())
	}
	write(t, filepath.Join(in, "notes.txt"), []byte("not an image"))
	write(t, filepath.Join(in, "empty"), nil)
	r, err := runDenoise(t, in, "--out", out)
	if err != nil {
		t.Fatal(err)
	}
	if r.Denoised != 2 || r.Unchanged != 2 || r.Failed != 0 || r.Slices != 2 {
		t.Errorf("report %+v", r)
	}
	for k := range 2 {
		raw, err := os.ReadFile(filepath.Join(out, "series", string(rune('a'+k))+".dcm"))
		if err != nil {
			t.Fatal(err)
		}
		o, err := dcm.Scan(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			t.Fatal(err)
		}
		if verdict := derive.Inspect(o); verdict.Reason != derive.AlreadyDenoised {
			t.Errorf("the derived object is %v", verdict)
		}
		if o.String(dcm.SOPInstanceUID) == ids.SOPInstanceUID(k) {
			t.Error("the derived object has the source's UID")
		}
	}
	for _, name := range []string{"notes.txt", "empty"} {
		a, errA := os.ReadFile(filepath.Join(in, name))
		b, errB := os.ReadFile(filepath.Join(out, name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s is not copied (%v, %v)", name, errA, errB)
		}
	}
	for _, f := range r.Files {
		if !f.Denoised && f.Reason == "" {
			t.Errorf("%s has no reason", f.In)
		}
	}
	again, err := runDenoise(t, out, "--out", filepath.Join(t.TempDir(), "again"))
	if err != nil || again.Denoised != 0 || again.Unchanged != 4 {
		t.Errorf("second pass: %v, %+v", err, again)
	}
}

// TestDenoiseVolume: a NIfTI volume comes closer to the truth and keeps its
// header; strength 0 is the same file again.
func TestDenoiseVolume(t *testing.T) {
	dir := t.TempDir()
	v := phantom.New(phantom.Spec{Seed: 2, Width: 128, Height: 112, Slices: 3, Sigma: 0.04})
	n, err := v.NIfTI(false)
	if err != nil {
		t.Fatal(err)
	}
	in := filepath.Join(dir, "in.nii")
	if err := nifti.Write(in, n); err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(in)
	if err != nil {
		t.Fatal(err)
	}
	same := filepath.Join(dir, "same.nii")
	if _, err := runDenoise(t, in, "--out", same, "--strength", "0"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(same); err != nil || !bytes.Equal(b, source) {
		t.Errorf("strength 0 changes the file (%v)", err)
	}
	out := filepath.Join(dir, "out.nii.gz")
	r, err := runDenoise(t, in, "-o", out)
	if err != nil {
		t.Fatal(err)
	}
	if r.Slices != 3 || r.Files[0].Sigma < 60 || r.Files[0].Sigma > 240 {
		t.Errorf("report %+v", r)
	}
	clean, err := nifti.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	var whole bytes.Buffer
	if err := clean.Encode(&whole); err != nil || !bytes.Equal(whole.Bytes()[:352], source[:352]) {
		t.Error("the header changes")
	}
	px, noisy := make([]float32, 128*112), make([]float32, 128*112)
	for k := range 3 {
		if err := clean.Slice(px, k); err != nil {
			t.Fatal(err)
		}
		if err := n.Slice(noisy, k); err != nil {
			t.Fatal(err)
		}
		truth := slices.Clone(v.Truth[k])
		for i := range truth {
			truth[i] *= 3000
		}
		if gain := score.PSNR(px, truth, 3000) - score.PSNR(noisy, truth, 3000); gain < 1 {
			t.Errorf("slice %d: gain %.2f dB", k, gain)
		}
	}
	if b, err := os.ReadFile(in); err != nil || !bytes.Equal(b, source) {
		t.Error("the input changed")
	}
}

func TestDenoiseRefuses(t *testing.T) {
	dir := t.TempDir()
	n, err := nifti.New(32, 32, 1, 1, nifti.Int16)
	if err != nil {
		t.Fatal(err)
	}
	in := filepath.Join(dir, "a.nii")
	if err := nifti.Write(in, n); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{in}, "--out"},
		{[]string{in, "--out", in}, "is the input"},
		{[]string{dir, "--out", filepath.Join(dir, "sub")}, "lies in the input"},
		{[]string{in, "--out", filepath.Join(dir, "b.dcm")}, ".nii"},
		{[]string{in, "--out", filepath.Join(dir, "b.nii"), "--strength", "2"}, "--strength"},
		{[]string{in, "--out", filepath.Join(dir, "b.nii"), "--quality", "high", "--model", filepath.Join("..", "..", "models", "testdata", "bootstrap")}, "use --quality fast"},
		{[]string{in, "--out", filepath.Join(dir, "b.nii"), "--steps", "3"}, "--quality high"},
		{[]string{in, "--out", filepath.Join(dir, "b.nii"), "--quality", "best"}, "choose fast or high"},
		{[]string{in, "--out", filepath.Join(dir, "b.nii"), "--backend", "cuda"}, "use --backend auto"},
		{[]string{filepath.Join(dir, "none.nii"), "--out", filepath.Join(dir, "b.nii")}, "none.nii"},
		{[]string{in, "--out", filepath.Join(dir, "b.nii"), "--model", filepath.Join(dir, "none")}, "model"},
	} {
		_, err := runDenoise(t, c.args...)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v, want one line with %q", c.args, err, c.want)
		}
	}
}
