package train_test

import (
	"bytes"
	"context"
	"errors"
	"github.com/diffdenoise/denoised/models/store"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/train"
)

// TestFolder: a folder belongs to one training, which goes on with the same settings
// and images, or not at all.
func TestFolder(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	c := train.Config{Out: out, Stage: train.StageBSN, Preset: "tiny", Seed: 3}
	o := train.Origin{Data: []string{"x"}, Memory: 10, Version: "1"}
	set := mustBuild(t, train.Options{Seed: 3}, heads("a", 1, 6, 1), heads("b", 2, 6, 1))
	other := mustBuild(t, train.Options{Seed: 3}, heads("a", 1, 6, 1), heads("c", 3, 6, 1))
	open := func(c train.Config, o train.Origin, want string) *train.Folder {
		t.Helper()
		f, err := train.OpenFolder(c, o)
		if want == "" {
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one line with %q", err, want)
		}
		return nil
	}
	f := open(c, o, "")
	if !f.Fresh {
		t.Error("a new folder is not fresh")
	}
	open(c, o, "another training uses")
	if before := f.On("cpu/x"); len(before) != 0 {
		t.Errorf("computed before on %q", before)
	}
	if changed, err := f.Hold(set, false); changed || err != nil {
		t.Errorf("%v, %v", changed, err)
	}
	full := errors.New("no space left")
	stop := func(_ context.Context, _ kernels.GraphBackend, got *train.Set, in train.Config) (*train.Result, error) {
		if got != set || in.Log == nil || in.Seed != 3 || in.Out != out {
			t.Errorf("it is given %+v", in)
		}
		if err := in.Log.Write(train.Entry{Stage: train.StageBSN, Step: 1, Seconds: 2}); err != nil {
			return nil, err
		}
		return nil, full
	}
	if _, err := f.Train(t.Context(), stop, nil, set, store.Card{}); !errors.Is(err, full) ||
		!strings.Contains(err.Error(), "until the last checkpoint is in "+out) {
		t.Errorf("a training that fails: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(out, "report.md")); err != nil || !bytes.Contains(b,
		[]byte("not finished")) {
		t.Errorf("its report: %v\n%s", err, b)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	open(c, o, "go on with it by --resume")
	c.Resume = true
	for want, change := range map[string]func(c *train.Config, o *train.Origin){
		"--preset tiny, not large":          func(c *train.Config, _ *train.Origin) { c.Preset = "large" },
		"--kind none, not radiograph":       func(_ *train.Config, o *train.Origin) { o.Kind = "radiograph" },
		"--from none, not denoised-default": func(c *train.Config, _ *train.Origin) { c.From = "default" },
		"--seed 3, not 4":                   func(c *train.Config, _ *train.Origin) { c.Seed = 4 },
		"--memory 10, not 20":               func(_ *train.Config, o *train.Origin) { o.Memory = 20 },
		"--exclude [], not [a]":             func(_ *train.Config, o *train.Origin) { o.Exclude = []string{"a"} },
	} {
		c, o := c, o
		change(&c, &o)
		open(c, o, want)
	}
	f = open(c, o, "")
	if f.Fresh {
		t.Error("a folder with a training is fresh")
	}
	if before := f.On("cuda/y"); len(before) != 1 || before[0] != "cpu/x" {
		t.Errorf("computed before on %q", before)
	}
	if changed, err := f.Hold(set, false); changed || err != nil {
		t.Errorf("the same images: %v, %v", changed, err)
	}
	if _, err := f.Hold(other, false); err == nil || !strings.Contains(err.Error(), "no longer those") {
		t.Errorf("other images: %v", err)
	}
	if changed, err := f.Hold(other, true); !changed || err != nil {
		t.Errorf("other images of a spool: %v, %v", changed, err)
	}
	done := func(context.Context, kernels.GraphBackend, *train.Set, train.Config) (*train.Result, error) {
		return &train.Result{}, nil
	}
	made, err := f.Train(t.Context(), done, nil, other, store.Card{})
	if err != nil || made.Model != "" || len(made.Stages) != 0 {
		t.Errorf("%+v, %v", made, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	open(c, o, "is finished; choose another --out")
	c.Stage = train.StageStudent
	if f := open(c, o, ""); f != nil {
		f.Close()
	}
	// run.json of somebody else's, and one that goes on for ever.
	for name, content := range map[string][]byte{"cut": []byte(`{"preset": "ti`), "foreign": []byte(`{"name": 1}`),
		"long": bytes.Repeat([]byte(" "), 2<<20)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "run.json"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		c := c
		c.Out = dir
		want := "is not what a training writes"
		if name == "long" {
			want = "more than 1048576 bytes"
		}
		open(c, o, want)
	}
}
