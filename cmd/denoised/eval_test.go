package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models/eval"
)

// runEval runs the command and returns what it printed.
func runEval(t *testing.T, args ...string) (out, errOut string, err error) {
	t.Helper()
	cmd := newEvalCmd()
	var o, e bytes.Buffer
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.ExecuteContext(t.Context())
	return o.String(), e.String(), err
}

// writeVolume writes slices as float32 NIfTI, as many repetitions as there are.
func writeVolume(t *testing.T, path string, side int, repeats ...[][]float32) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	v, err := nifti.New(side, side, len(repeats[0]), len(repeats), nifti.Float32)
	if err != nil {
		t.Fatal(err)
	}
	for r, rep := range repeats {
		for k, px := range rep {
			if _, err := v.SetSlice(r*len(rep)+k, px); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := nifti.Write(path, v); err != nil {
		t.Fatal(err)
	}
}

func encodePNG(t *testing.T, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestEval evaluates a folder in which every kind of image lies, and everything
// that must be left out.
func TestEval(t *testing.T) {
	const side = 64
	dir := t.TempDir()
	spec := phantom.Spec{Seed: 11, Width: side, Height: side, Slices: 4}
	clean := phantom.New(spec)
	writeVolume(t, filepath.Join(dir, "t1.nii.gz"), side, clean.Truth)
	var reps [][][]float32
	for seed := range uint64(4) {
		// the same anatomy, other noise
		noisy := phantom.Spec{Seed: 11, Width: side, Height: side, Slices: 4}
		v := phantom.New(noisy)
		for k, px := range v.Truth {
			for i := range px {
				v.Truth[k][i] += 0.02 * float32(math.Sin(float64(i)*(1.7+float64(seed))*math.Phi*1e3))
			}
		}
		reps = append(reps, v.Truth)
	}
	writeVolume(t, filepath.Join(dir, "b0.nii"), side, reps...)
	ids := phantom.NewIDs("eval")
	for k := range 3 {
		var b bytes.Buffer
		if err := clean.WriteDICOM(&b, k, ids); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "series", fmt.Sprintf("%d.dcm", k)), b.Bytes())
	}
	grey, colour := image.NewGray16(image.Rect(0, 0, side, side)), image.NewRGBA(image.Rect(0, 0, side, side))
	for i, v := range clean.Truth[2] {
		grey.SetGray16(i%side, i/side, color.Gray16{uint16(40000 * min(v, 1.5))})
		colour.Set(i%side, i/side, color.RGBA{uint8(200 * min(v, 1)), 0, 9, 255})
	}
	write(t, filepath.Join(dir, "grey.png"), encodePNG(t, grey))
	write(t, filepath.Join(dir, "colour.png"), encodePNG(t, colour))
	write(t, filepath.Join(dir, "notes.txt"), []byte("nothing to see"))
	nan, flat, small := make([]float32, side*side), make([]float32, side*side), clean.Truth[1][:16*16]
	for i := range nan {
		nan[i], flat[i] = float32(math.NaN()), 7
	}
	writeVolume(t, filepath.Join(dir, "nan.nii"), side, [][]float32{nan, nan, nan})
	writeVolume(t, filepath.Join(dir, "flat.nii"), side, [][]float32{flat, flat, flat})
	writeVolume(t, filepath.Join(dir, "small.nii"), 16, [][]float32{small, small, small})
	dark := slices.Clone(clean.Truth[1])
	for i := range dark {
		dark[i] *= 0.3
	}
	writeVolume(t, filepath.Join(dir, "diffusion.nii"), side, [][]float32{clean.Truth[1]}, [][]float32{dark})

	to := filepath.Join(t.TempDir(), "report")
	args := []string{"--data", dir, "--rows", "Gaussian 6/255,zero-filled 2, magnitude,plain magnitude, 4 %",
		"--slices", "1", "--repetitions", "2"}
	out, errOut, err := runEval(t, append(args, "--out", to)...)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"volumes: simulated noise, 1 slice of 1 set", "MR: simulated noise",
		"PNG: simulated noise", "MR: simulated scanners",
		"repetitions: one measurement against the mean of the others", "b0.nii, k = 3", "zero-filled 2, magnitude",
		"plain magnitude, 4 %",
		"fast", "non-local means", "total variation, estimated", "left out: ", "report.html"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output does not say %q:\n%s", want, out)
		}
	}
	if !strings.Contains(errOut, "steps\n") || strings.Contains(errOut, "\x1b") {
		t.Errorf("progress: %q", errOut)
	}
	data, err := os.ReadFile(filepath.Join(to, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r eval.Report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	reasons := map[string]string{}
	for _, s := range r.Skipped {
		reasons[s.Source] = s.Reason
	}
	for source, want := range map[string]string{
		"colour.png": dataset.Colour, "notes.txt": dataset.NotImage, "nan.nii": eval.SkipPadding,
		"flat.nii":  eval.SkipConstant,
		"small.nii": eval.SkipTooSmall, "diffusion.nii": eval.SkipNotRepeats,
	} {
		if reasons[source] != want {
			t.Errorf("%s: left out for %q, want %q", source, reasons[source], want)
		}
	}
	for _, m := range r.Tables[0].Means {
		if m.Method == eval.Noisy && m.Row == "Gaussian 6/255" && math.Abs(m.PSNR-32.57) > 0.3 {
			t.Errorf("noisy: %.2f dB", m.PSNR)
		}
	}
	if r.Hash == "" || r.Model == "" || r.Seed != 1 {
		t.Errorf("the report does not name the model: %q, %q, seed %d", r.Model, r.Hash, r.Seed)
	}

	// The same again as JSON, without files: equal but for nothing.
	out, _, err = runEval(t, append(args, "--json")...)
	if err != nil || out != string(data) {
		t.Errorf("--json and results.json differ (%v)", err)
	}
}

func TestEvalRefuses(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "notes.txt"), []byte("nothing"))
	v := phantom.New(phantom.Spec{Width: 64, Height: 64, Slices: 2})
	full := t.TempDir()
	writeVolume(t, filepath.Join(full, "v.nii"), 64, v.Truth)
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	twice := filepath.Join(t.TempDir(), "twice.nii")
	writeVolume(t, twice, 64, v.Truth, v.Truth)
	for _, c := range []struct {
		args  []string
		want  string
		usage bool
	}{
		{[]string{}, "no images", true}, // nil would be those of the test
		{[]string{"--data", dir}, "nothing to evaluate", false},
		{[]string{"--data", filepath.Join(dir, "missing")}, "missing", false},
		{[]string{"--data", full, "--rows", "Gaussian 99"}, `"Gaussian 99"`, true},
		{[]string{"--data", full, "--rows", "gamma 100,gamma 100"}, "twice", true},
		{[]string{"--data", full, "--quality", "best"}, "choose fast", true},
		{[]string{"--data", full, "--quality", "fast,fast"}, "twice", true},
		{[]string{"--pair", file}, "A,B", true},
		{[]string{"--pair", file + "," + filepath.Join(full, "v.nii")}, "no images", false},
		{[]string{"--pair", twice + "," + twice}, "holds 2 volumes", false},
		{[]string{"--repeats", filepath.Join(full, "v.nii")}, "needs two", false},
		{[]string{"--repeats", filepath.Join(dir, "missing")}, "missing", false},
		{[]string{"--data", full, "--json", "--markdown"}, "exclude", true},
		{[]string{"--data", full, "--slices", "0"}, "--slices", true},
		{[]string{"--data", full, "--shrink", "9"}, "--shrink", true},
		{[]string{"--data", full, "--repetitions", "0"}, "--repetitions", true},
		{[]string{"--data", full, "--model", filepath.Join(dir, "none")}, "open model", false},
		{[]string{"--data", full, "--out", full}, "lies in the input", false},
		{[]string{"--data", full, "--out", filepath.Join(full, "a", "b")}, "lies in the input", false},
		{[]string{"--data", full, "--out", file}, "is a file", false},
	} {
		_, _, err := runEval(t, c.args...)
		var usage *usageError
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &usage) != c.usage {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}

// TestEvalMeasurements: repetitions and a pair that are named, as Markdown.
func TestEvalMeasurements(t *testing.T) {
	const side = 64
	dir := t.TempDir()
	noisy := func(seed uint64, n int) [][]float32 {
		v := phantom.New(phantom.Spec{Seed: 11, Width: side, Height: side, Slices: n})
		rng := rand.New(rand.NewPCG(seed, 1))
		for _, px := range v.Truth {
			for i := range px {
				px[i] += 0.03 * float32(rng.NormFloat64())
			}
		}
		return v.Truth
	}
	writeVolume(t, filepath.Join(dir, "epi.nii.gz"), side, noisy(1, 3), noisy(2, 3), noisy(3, 3))
	a, b := filepath.Join(dir, "a.nii"), filepath.Join(dir, "b.nii")
	writeVolume(t, a, side, noisy(4, 1))
	writeVolume(t, b, side, noisy(5, 1))
	out, _, err := runEval(t, "--repeats", filepath.Join(dir, "epi.nii.gz"), "--pair", a+","+b, "--slices", "1",
		"--markdown")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\n## repetitions: ", "\n| epi.nii.gz, k = 2 | ",
		"\n## pairs: one measurement against the other, 2 slices of 1 set\n",
		"/a.nii and b.nii, k = 1 | ", "\nPSNR in dB without the reference's own noise, tissue:\n",
		"\nWhat is taken off at edges"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output does not say %q:\n%s", want, out)
		}
	}
}

func TestParseRows(t *testing.T) {
	rows, chains, detectors, err := parseRows(" zero-filled 2, magnitude, zero-filled 2 ,plain magnitude, 4 %," +
		"Poisson 200,flat panel, raw, 3 %")
	if err != nil {
		t.Fatal(err)
	}
	if len(detectors) != 1 || detectors[0].Name != "flat panel, raw, 3 %" {
		t.Errorf("detectors %v", detectors)
	}
	if len(chains) != 1 || chains[0].Name != "plain magnitude, 4 %" {
		t.Errorf("scanners %v", chains)
	}
	var names []string
	for _, r := range rows {
		names = append(names, r.Name)
	}
	if want := []string{"zero-filled 2, magnitude", "zero-filled 2", "Poisson 200"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	if rows, chains, detectors, err := parseRows("  "); rows != nil || chains != nil || detectors != nil || err != nil {
		t.Errorf("an empty list gives %v, %v, %v", rows, chains, err)
	}
}
