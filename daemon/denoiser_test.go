package daemon

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/store"
	"github.com/diffdenoise/denoised/pipeline/evidence"
)

// TestInstalledModel: denoise.model finds the built-in model, an installed one by
// name, and a folder.
func TestInstalledModel(t *testing.T) {
	cfg := DefaultConfig()
	cfg.StateDir = t.TempDir()
	dir := filepath.Join(cfg.StateDir, "models")
	if _, err := store.Install("default", dir, "knee-3t", false); err != nil {
		t.Fatal(err)
	}
	for model, want := range map[string]string{
		"default":                     "default",
		"knee-3t":                     filepath.Join(dir, "knee-3t"),
		filepath.Join(dir, "knee-3t"): filepath.Join(dir, "knee-3t"),
		"not-installed":               "not-installed",
	} {
		cfg.Denoise.Model = model
		if got := cfg.modelPath(); got != want {
			t.Errorf("model %q is %q, want %q", model, got, want)
		}
		if _, err := openDenoiser(cpuBackend(t), cfg.modelPath()); (err != nil) != (model == "not-installed") {
			t.Errorf("model %q: %v", model, err)
		}
	}
}

// TestDenoised: what the quality gate says of a result reaches the pipeline, and only
// what it held back, in part or whole.
func TestDenoised(t *testing.T) {
	const why = "the mean shifts"
	for name, c := range map[string]struct {
		gate  *gate.Report
		want  string
		share float64
	}{
		"no gate":      {},
		"ok":           {gate: &gate.Report{Pass: true, Action: gate.OK, Blend: 1}},
		"ok, a remark": {gate: &gate.Report{Reason: why, Action: gate.OK, Blend: 1}},
		"blend":        {gate: &gate.Report{Reason: why, Action: gate.Blend, Blend: 0.7}, want: why, share: 0.7},
		"pass through": {gate: &gate.Report{Reason: why, Action: gate.PassThrough}, want: why},
	} {
		got, err := denoised(&models.Result{Pixels: []float32{1, 2}, Sigma: 3, Gate: c.gate}, nil)
		if err != nil || got.Gate != c.want || got.Share != c.share || got.Sigma != 3 || len(got.Pixels) != 2 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	said := meter.Series{Weight: 2, Lags: [7]float64{1, -0.5, 0.333333}, Cells: 3, Along: [2][8]float64{{1: 0.5,
		7: 0.25}, {0: 123.456}}}
	got, err := denoised(&models.Result{Series: said}, nil)
	if err != nil || Known(got.Told) != said {
		t.Errorf("told %+v, %v, want %+v", got, err, said)
	}
	for _, other := range []evidence.Sums{nil, {1}, make(evidence.Sums, evidence.Most)} {
		if s := Known(other); s != (meter.Series{}) {
			t.Errorf("%v became %+v", other, s)
		}
	}
	if e := Told(meter.Series{}); e != nil {
		t.Errorf("nothing became %v", e)
	}
	fail := errors.New("no memory")
	if got, err := denoised(nil, fail); got != nil || !errors.Is(err, fail) {
		t.Errorf("%+v, %v", got, err)
	}
}
