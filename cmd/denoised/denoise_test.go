package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/score"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/offline"
)

func runDenoise(t *testing.T, args ...string) (offline.Report, error) {
	t.Helper()
	cmd := newDenoiseCmd()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(append(args, "--json"))
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(context.Background())
	var r offline.Report
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

// scaledTypes writes the same real values, 0 to about 800, as three types: as they are,
// and as integers whose scaling puts the real zero far below or just at their least.
func scaledTypes(t *testing.T, dir string) (files []string) {
	t.Helper()
	const w, h, depth = 128, 112, 2
	v := phantom.New(phantom.Spec{Seed: 3, Width: w, Height: h, Slices: depth, Sigma: 0.04})
	for _, c := range []struct {
		typ              nifti.Datatype
		slope, intercept float32
	}{
		{nifti.Float32, 1, 0}, {nifti.Int16, 0.0125, 409.6}, {nifti.Uint16, 0.0125, -0.5}, {nifti.Float64, 3, -700},
		{nifti.Int16, -0.0125, 409.6},
	} {
		n, err := nifti.New(w, h, depth, 1, c.typ)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := n.Encode(&b); err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint32(b.Bytes()[112:], math.Float32bits(c.slope))
		binary.LittleEndian.PutUint32(b.Bytes()[116:], math.Float32bits(c.intercept))
		if n, err = nifti.Decode(&b); err != nil {
			t.Fatal(err)
		}
		for k := range depth {
			px := slices.Clone(v.Noisy[k])
			for i := range px {
				px[i] *= 600
			}
			if clamped, err := n.SetSlice(k, px); err != nil || clamped > 0 {
				t.Fatal(clamped, err)
			}
		}
		name := filepath.Join(dir, fmt.Sprintf("%v%+g.nii", c.typ, c.slope))
		if err := nifti.Write(name, n); err != nil {
			t.Fatal(err)
		}
		files = append(files, name)
	}
	return files
}

// sameResults denoises files that hold the same real values, and demands results that
// differ by no more than limit, headers that stay, and a change worth the name.
func sameResults(t *testing.T, files []string, limit float64) {
	t.Helper()
	var first []float32
	for _, in := range files {
		out := filepath.Join(t.TempDir(), "out.nii")
		r, err := runDenoise(t, in, "--out", out)
		if err != nil {
			t.Fatal(err)
		}
		before, err := nifti.Read(in)
		if err != nil {
			t.Fatal(err)
		}
		after, err := nifti.Read(out)
		if err != nil {
			t.Fatal(err)
		}
		if after.Type != before.Type || after.Slope != before.Slope || after.Intercept != before.Intercept {
			t.Errorf("%s: %v %g %g became %v %g %g", in, before.Type, before.Slope, before.Intercept, after.Type,
				after.Slope, after.Intercept)
		}
		var px, old []float32
		buf := make([]float32, after.Width*after.Height)
		for k := range after.Slices() {
			if err := before.Slice(buf, k); err != nil {
				t.Fatal(err)
			}
			old = append(old, buf...)
			if err := after.Slice(buf, k); err != nil {
				t.Fatal(err)
			}
			px = append(px, buf...)
		}
		if first == nil {
			first = px
		}
		worst, change := 0.0, 0.0
		for i := range px {
			worst = max(worst, math.Abs(float64(px[i]-first[i])))
			change = max(change, math.Abs(float64(px[i]-old[i])))
		}
		t.Logf("%s: sigma %.2f, at most %.3f off, changed by at most %.1f", filepath.Base(in), r.Files[0].Sigma,
			worst, change)
		if worst > limit || change < 10*limit || r.Untouched+r.Held > 0 {
			t.Errorf("%s: at most %g off, changed by at most %g, %d slices untouched and %d held back", in, worst,
				change, r.Untouched, r.Held)
		}
	}
}

// TestDenoiseScaled: a volume is denoised in real values, whatever it is stored as.
func TestDenoiseScaled(t *testing.T) {
	sameResults(t, scaledTypes(t, t.TempDir()), 3)
}

// TestDenoiseScaledCase is the same with files that another program has scaled.
func TestDenoiseScaledCase(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testdata.Dir(t), "..", "cases", "04-*", "*.nii.gz"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("there is no folder cases beside the real data")
	}
	sameResults(t, files, 3)
}

// TestDenoiseOffset: an MR image is denoised in real values: an offset of what is stored
// changes nothing but what is stored.
func TestDenoiseOffset(t *testing.T) {
	dir := t.TempDir()
	v := phantom.New(phantom.Spec{Seed: 4, Width: 128, Height: 128, Slices: 1, Sigma: 0.04})
	var first []int
	for name, c := range map[string]struct {
		signed    bool
		intercept int
	}{"plain": {false, 0}, "offset": {false, -1024}, "signed": {true, 2000}} {
		cells := make([]uint16, 128*128)
		for i, p := range v.Noisy[0] {
			cells[i] = uint16(int(3000*p) - c.intercept)
		}
		d := dcmtest.MR(128, 128, 0).US(dcm.BitsStored, 16).US(dcm.HighBit,
			15).Pixels(cells).Text(dcm.RescaleIntercept, dcm.DS, fmt.Sprint(c.intercept))
		if c.signed {
			d.US(dcm.PixelRepresentation, 1)
		}
		in, out := filepath.Join(dir, name+".dcm"), filepath.Join(dir, name+"-out.dcm")
		write(t, in, d.File(dcmtest.Form{}))
		r, err := runDenoise(t, in, "--out", out)
		if err != nil || r.Denoised != 1 || r.Untouched+r.Held > 0 {
			t.Fatalf("%s: %v, %+v", name, err, r)
		}
		raw, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		o, err := dcm.Scan(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			t.Fatal(err)
		}
		made, err := derive.ReadRaster(o, 0)
		if err != nil {
			t.Fatal(err)
		}
		real, changed := make([]int, len(cells)), 0
		for i := range real {
			n := binary.LittleEndian.Uint16(made.Pixels[2*i:])
			if n != cells[i] {
				changed++
			}
			if real[i] = int(n) + c.intercept; c.signed {
				real[i] = int(int16(n)) + c.intercept
			}
		}
		if first == nil {
			first = real
		}
		if !slices.Equal(real, first) || changed < len(real)/2 {
			t.Errorf("%s: another result, %d of %d pixels changed", name, changed, len(real))
		}
	}
}

// TestDenoiseAdapt: --adapt fits to every volume, or says why it did not; the report tells which.
func TestDenoiseAdapt(t *testing.T) {
	v := phantom.New(phantom.Spec{Seed: 3, Width: 64, Height: 64, Slices: 9, Sigma: 0.06})
	for slices, want := range map[int]string{2: "too few slices", 9: ""} {
		dir := t.TempDir()
		n, err := nifti.New(64, 64, slices, 1, nifti.Float32)
		if err != nil {
			t.Fatal(err)
		}
		for k := range slices {
			if _, err := n.SetSlice(k, v.Noisy[k]); err != nil {
				t.Fatal(err)
			}
		}
		in := filepath.Join(dir, "in.nii")
		if err := nifti.Write(in, n); err != nil {
			t.Fatal(err)
		}
		r, err := runDenoise(t, in, "--out", filepath.Join(dir, "out.nii"), "--quality", "high", "--adapt")
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Fits) != 1 || !strings.Contains(r.Fits[0].Why, want) {
			t.Fatalf("%d slices: fits %+v", slices, r.Fits)
		}
		if f := r.Fits[0]; slices == 9 && (f.Before <= 0 || f.Fitted && f.After >= f.Before) {
			t.Errorf("fit %+v", f)
		}
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
		{[]string{in, "--out", filepath.Join(dir, "b.nii"), "--adapt"}, "--quality high"},
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
