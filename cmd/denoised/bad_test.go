package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models/eval"
	"github.com/diffdenoise/denoised/models/train"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// badImages writes one file of every kind that is no usable image, and returns why
// train and eval must leave them out.
func badImages(t *testing.T, dir string) (forTrain, forEval map[string]string) {
	t.Helper()
	const side = 64
	v := phantom.New(phantom.Spec{Seed: 5, Width: side, Height: side, Slices: 3, Sigma: 0.03})
	nan, flat := make([]float32, side*side), make([]float32, side*side)
	for i := range nan {
		nan[i], flat[i] = float32(math.NaN()), 7
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	writeVolume(t, at("nan.nii"), side, [][]float32{nan, nan, nan})
	writeVolume(t, at("constant.nii"), side, [][]float32{flat, flat, flat})
	writeVolume(t, at("zero.nii"), side, [][]float32{make([]float32, side*side)})
	writeVolume(t, at("good.nii"), side, v.Noisy)
	good, err := os.ReadFile(at("good.nii"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(at("good.nii")); err != nil {
		t.Fatal(err)
	}
	header := func(offset int, value uint16) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint16(b[offset:], value)
		return b
	}
	write(t, at("cut.nii"), good[:len(good)-100])
	write(t, at("deeper.nii"), header(46, 30))                // 30 slices, of which 3 are there
	write(t, at("bits.nii"), header(72, 16))                  // of float32
	write(t, at("type.nii"), header(70, 64))                  // float64 in 32 bits
	write(t, at("far.nii"), header(110, math.MaxInt16&^0x80)) // voxels that begin nowhere
	grey := image.NewGray16(image.Rect(0, 0, side, side))
	for i, p := range v.Noisy[1] {
		grey.SetGray16(i%side, i/side, color.Gray16{Y: uint16(40000 * min(max(p, 0), 1.5))})
	}
	picture := encodePNG(t, grey)
	write(t, at("cut.png"), picture[:len(picture)/2])
	larger := bytes.Clone(picture)
	larger[19] = side + 8 // the width, and so neither the checksum nor the rows fit
	write(t, at("larger.png"), larger)
	image := func() *dcmtest.DataSet { return dcmtest.MR(side, side, 0) }
	whole := image().File(dcmtest.Form{})
	write(t, at("cut.dcm"), whole[:len(whole)-1000])
	write(t, at("rows.dcm"), image().US(dcm.Rows, 80).File(dcmtest.Form{}))
	write(t, at("columns.dcm"), image().US(dcm.Columns, 60).File(dcmtest.Form{}))
	write(t, at("bits.dcm"), image().US(dcm.BitsStored, 17).File(dcmtest.Form{}))
	write(t, at("samples.dcm"), image().US(dcm.SamplesPerPixel, 3).File(dcmtest.Form{}))
	write(t, at("slope.dcm"), image().Text(dcm.RescaleSlope, dcm.DS, "0").File(dcmtest.Form{}))
	both := map[string]string{
		"cut.nii": dataset.Unreadable, "deeper.nii": dataset.Unreadable, "bits.nii": dataset.Unreadable,
		"type.nii": dataset.Unreadable, "far.nii": dataset.Unreadable,
		"cut.png": dataset.Unreadable, "larger.png": dataset.Unreadable,
		"cut.dcm": string(derive.Truncated), "rows.dcm": string(derive.Truncated),
		"columns.dcm": string(derive.Inconsistent), "bits.dcm": string(derive.Inconsistent),
		"samples.dcm": string(derive.Colour), "slope.dcm": string(derive.Inconsistent),
	}
	forTrain, forEval = maps.Clone(both), maps.Clone(both)
	forTrain["nan.nii"], forTrain["constant.nii"], forTrain["zero.nii"] =
		train.SkipNotFinite, train.SkipConstant, train.SkipConstant
	forEval["nan.nii"], forEval["constant.nii"], forEval["zero.nii"] =
		eval.SkipPadding, eval.SkipConstant, eval.SkipConstant
	return forTrain, forEval
}

func checkSkips(t *testing.T, what string, skips []dataset.Skip, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for _, s := range skips {
		got[s.Source] = s.Reason
		if s.Detail == "" {
			t.Errorf("%s: %s is left out as %s without a word more", what, s.Source, s.Reason)
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s left out %v\nwant %v", what, got, want)
	}
}

// TestBadImages: train and eval name every image that they cannot use with its reason,
// go on with the others, whatever their sizes, and say so if there are none.
func TestBadImages(t *testing.T) {
	data := t.TempDir()
	forTrain, forEval := badImages(t, data)
	q := &quick{t: t}
	out := filepath.Join(t.TempDir(), "out")
	_, _, err := q.train("--data", data, "--out", out)
	wantError(t, "nothing but bad images to train on", err, "0 usable slices, at least 9 are needed; left out: ")
	wantError(t, "nothing but bad images to train on", err, "7 unreadable")
	_, _, err = runEval(t, "--data", data)
	wantError(t, "nothing but bad images to evaluate", err, "nothing to evaluate")
	wantError(t, "nothing but bad images to evaluate", err, fmt.Sprintf("%d", len(forEval)))

	for i, side := range []int{64, 96, 80} {
		v := phantom.New(phantom.Spec{Seed: uint64(i), Width: side, Height: side, Slices: 6, Sigma: 0.03})
		writeVolume(t, filepath.Join(data, fmt.Sprintf("sub-%d", i), "t1.nii"), side, v.Noisy)
		grey := image.NewGray16(image.Rect(0, 0, side, side))
		for i, p := range v.Noisy[3] {
			grey.SetGray16(i%side, i/side, color.Gray16{Y: uint16(40000 * min(max(p, 0), 1.5))})
		}
		write(t, filepath.Join(data, "pictures", fmt.Sprintf("%d.png", side)), encodePNG(t, grey))
	}
	stdout, _, err := q.train("--data", data, "--out", out, "--resume", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var trained trainReport
	if err := json.Unmarshal([]byte(stdout), &trained); err != nil {
		t.Fatal(err)
	}
	checkSkips(t, "train", trained.Data.Skipped, forTrain)
	if trained.Data.Slices != 21 {
		t.Errorf("%d slices to train on, want 21", trained.Data.Slices)
	}
	stdout, _, err = runEval(t, "--data", data, "--rows", "Gaussian 6/255", "--slices", "1", "--quality", "fast",
		"--json")
	if err != nil {
		t.Fatal(err)
	}
	var evaluated eval.Report
	if err := json.Unmarshal([]byte(stdout), &evaluated); err != nil {
		t.Fatal(err)
	}
	checkSkips(t, "eval", evaluated.Skipped, forEval)
}

// TestBadModel: a model that is cut, foreign or not there is told in one line that
// names it once.
func TestBadModel(t *testing.T) {
	good := filepath.Join("..", "..", "models", "testdata", "bootstrap")
	weights, err := os.ReadFile(filepath.Join(good, "weights.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	card, err := os.ReadFile(filepath.Join(good, "card.json"))
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "v.nii")
	writeVolume(t, data, 64, phantom.New(phantom.Spec{Width: 64, Height: 64, Slices: 2}).Noisy)
	foreign := bytes.Clone(weights)
	foreign[len(foreign)-1] ^= 1
	for name, c := range map[string]struct {
		weights, card []byte
		want          string
	}{
		"cut":            {weights[:len(weights)/2], card, "does not match the card"},
		"empty":          {[]byte{}, card, "does not match the card"},
		"foreign":        {foreign, card, "does not match the card"},
		"no card":        {weights, nil, "card.json: no such file"},
		"cut card":       {weights, card[:len(card)/2], "read card.json"},
		"no weights":     {nil, card, "weights.safetensors"},
		"checkpoint":     {nil, []byte(`{"format": "denoised-checkpoint-v1"}`), "card.json"},
		"nothing at all": {nil, nil, "card.json"},
	} {
		dir := t.TempDir()
		if c.weights != nil {
			write(t, filepath.Join(dir, "weights.safetensors"), c.weights)
		}
		if c.card != nil {
			write(t, filepath.Join(dir, "card.json"), c.card)
		}
		_, _, err := runEval(t, "--data", data, "--model", dir)
		wantError(t, "eval, "+name, err, c.want)
		out := filepath.Join(t.TempDir(), "out.nii")
		_, err2 := runDenoise(t, data, "--out", out, "--model", dir)
		wantError(t, "denoise, "+name, err2, c.want)
		for _, err := range []error{err, err2} {
			if err != nil && strings.Count(err.Error(), "open model "+dir) != 1 {
				t.Errorf("%s: the model is not named once: %v", name, err)
			}
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: there is an output", name)
		}
	}
}

// TestDiskFull: when no more can be written, train and eval say to which file, and
// leave none by half. A limit of the size of files stands in for the disk.
func TestDiskFull(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no limit of the size of files")
	}
	data, dir := volumes(t, 3), t.TempDir()
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"train", []string{"train", "--data", data, "--out", filepath.Join(dir, "train"), "--preset", "tiny",
			"--time", "500ms"},
			[]string{"write checkpoint", "meter.checkpoint", "go on with the same command and --resume"}},
		{"eval", []string{"eval", "--data", data, "--out", filepath.Join(dir, "eval"), "--rows", "Gaussian 6/255",
			"--slices", "1", "--quality", "fast"}, []string{"write the report", ".png"}},
		{"denoise", []string{"denoise", filepath.Join(data, "head0.nii"), "--out", filepath.Join(dir, "out.nii")},
			[]string{"write " + filepath.Join(dir, "out.nii")}},
	} {
		args := append([]string{"-c", `ulimit -f 16; exec "$@"`, "sh", os.Args[0]}, c.args...)
		cmd := exec.CommandContext(t.Context(), "sh", args...)
		cmd.Env = append(os.Environ(), asProgram+"=1")
		text, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != exitFailed {
			t.Errorf("%s: %v\n%s", c.name, err, text)
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for _, want := range append(c.want, "denoised: "+c.name, "file too large") {
			if !strings.Contains(lines[len(lines)-1], want) {
				t.Errorf("%s does not say %q:\n%s", c.name, want, text)
			}
		}
	}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		whole := slices.Contains([]string{".checkpoint", ".nii"}, filepath.Ext(path))
		if err == nil && (whole || strings.Contains(e.Name(), ".denoised-")) {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
