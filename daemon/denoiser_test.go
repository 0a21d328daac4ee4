package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/store"
	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/derive"
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
		"radiograph":                  "radiograph",
		"knee-3t":                     filepath.Join(dir, "knee-3t"),
		filepath.Join(dir, "knee-3t"): filepath.Join(dir, "knee-3t"),
		"not-installed":               "not-installed",
	} {
		if got := cfg.modelPath(model); got != want {
			t.Errorf("model %q is %q, want %q", model, got, want)
		}
		for key, set := range map[string]*string{"denoise.model": &cfg.Denoise.Model,
			"denoise.radiograph_model": &cfg.Denoise.RadiographModel} {
			cfg.Denoise.Model, cfg.Denoise.RadiographModel = "default", "radiograph"
			*set = model
			_, err := openDenoisers(cpuBackend(t), cfg)
			if model != "not-installed" && err != nil || model == "not-installed" && (err == nil ||
				!strings.HasPrefix(err.Error(), key+": ")) {
				t.Errorf("%s %q: %v", key, model, err)
			}
		}
	}
}

// TestModelByModality: radiographs go through their own model, and the derived object of each image
// names the one that was used.
func TestModelByModality(t *testing.T) {
	archive := startPACS(t)
	cfg := testConfig(t, archive)
	cfg.Destinations[0].Send = []string{"derived"}
	both, err := openDenoisers(cpuBackend(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, cfg, WithDenoiser(both))
	chooser, ok := d.denoiser.(pipeline.Chooser)
	if !ok {
		t.Fatalf("the daemon's denoiser is %T", d.denoiser)
	}
	mr, radiograph := chooser.For("MR").Model(), chooser.For("DX").Model()
	if mr == radiograph || chooser.Model() != mr || chooser.For("CR").Model() != radiograph {
		t.Fatalf("models %+v and %+v", mr, radiograph)
	}
	if s := d.Status(); !strings.HasPrefix(s.Model, mr.Name) || !strings.HasPrefix(s.RadiographModel, radiograph.Name) {
		t.Errorf("status tells of %q and %q", s.Model, s.RadiographModel)
	}
	want := map[string]string{} // hash by class
	for modality, model := range map[string]derive.ModelInfo{"MR": mr, "CR": radiograph, "DX": radiograph} {
		class := map[string]string{"MR": "1.2.840.10008.5.1.4.1.1.4", "CR": "1.2.840.10008.5.1.4.1.1.1",
			"DX": "1.2.840.10008.5.1.4.1.1.1.1"}[modality]
		want[class] = model.Hash
		list := phantomSeries(t, modality, 1)
		pushOK(t, d.Daemon, "DENOISE", []image{reclassed(t, list[0], class, modality)})
	}
	eventually(t, "three derived objects are delivered", func() error {
		if n := archive.count(); n != 3 {
			return fmt.Errorf("%d objects", n)
		}
		return nil
	})
	for uid, data := range archive.objects {
		var file bytes.Buffer
		if _, err := dcm.WriteFileMeta(&file, dcm.FileMeta{SOPClassUID: "1.2.840.10008.5.1.4.1.1.4",
			SOPInstanceUID: uid, TransferSyntaxUID: dicomnet.ExplicitVRLittleEndian}); err != nil {
			t.Fatal(err)
		}
		file.Write(data)
		o, err := dcm.Scan(bytes.NewReader(file.Bytes()), int64(file.Len()))
		if err != nil {
			t.Fatal(err)
		}
		hash := want[o.String(dcm.SOPClassUID)]
		if text := o.String(dcm.DerivationDescription); hash == "" || !strings.Contains(text, hash) {
			t.Errorf("%s: %q does not name the model %.16s", o.String(dcm.Modality), text, hash)
		}
	}
}

// reclassed is an MR image as one of another class and modality.
func reclassed(t *testing.T, i image, class, modality string) image {
	t.Helper()
	element := func(tag [4]byte, vr, value string) []byte {
		if len(value)%2 == 1 {
			value += map[string]string{"UI": "\x00", "CS": " "}[vr]
		}
		return append(append(tag[:], vr...), append([]byte{byte(len(value)), 0}, value...)...)
	}
	file := i.file
	for _, e := range []struct {
		tag          [4]byte
		vr, old, new string
	}{
		{[4]byte{8, 0, 0x16, 0}, "UI", i.class, class},
		{[4]byte{8, 0, 0x60, 0}, "CS", "MR", modality},
	} {
		old := element(e.tag, e.vr, e.old)
		if bytes.Count(file, old) != 1 {
			t.Fatalf("the phantom has %d of %v", bytes.Count(file, old), e.tag)
		}
		file = bytes.Replace(file, old, element(e.tag, e.vr, e.new), 1)
	}
	out := imageOf(t, file)
	out.class = class
	return out
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

// TestCheckKind: a model that gets images of another kind than it was trained for is said so, and
// works.
func TestCheckKind(t *testing.T) {
	for _, c := range []struct {
		mr, radiographs string
		want            []string // of the notes
	}{
		{"default", "radiograph", nil},
		{"default", "default", []string{"images of kind mr, and gets those of kind radiograph"}},
		{"radiograph", "radiograph", []string{"images of kind radiograph, and gets those of kind mr"}},
	} {
		cfg := testConfig(t, startPACS(t))
		cfg.Denoise.Model, cfg.Denoise.RadiographModel = c.mr, c.radiographs
		var got []string
		for _, f := range Check(t.Context(), cfg, WorkerProgram{}) {
			if strings.HasSuffix(f.What, "model") && f.Outcome == Bad {
				t.Errorf("%+v", f)
			}
			if f.Outcome == Note && strings.Contains(f.Detail, "of kind") {
				got = append(got, f.Detail)
			}
		}
		if len(got) != len(c.want) || len(got) == 1 && !strings.Contains(got[0], c.want[0]) {
			t.Errorf("%s and %s: %q, want %q", c.mr, c.radiographs, got, c.want)
		}
	}
}

// TestAdapt: the high pass adapts where the configuration says so and the model can; what nothing is
// gained for stays the model that it was, under the name that a fitted one has.
func TestAdapt(t *testing.T) {
	cfg := DefaultConfig()
	for _, on := range []bool{true, false} {
		cfg.Denoise.HighAdapt = on
		both, err := openDenoisers(cpuBackend(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		chooser := both.(pipeline.Chooser)
		mr, radiograph := chooser.For("MR").(pipeline.Adaptive), chooser.For("DX").(pipeline.Adaptive)
		if mr.Adapts() != on || radiograph.Adapts() {
			t.Errorf("high_adapt %v: MR adapts: %v, radiographs: %v", on, mr.Adapts(), radiograph.Adapts())
		}
		if !on {
			continue
		}
		frame := &derive.Frame{Width: 64, Height: 64, Pixels: make([]float32, 64*64)}
		for i := range frame.Pixels {
			frame.Pixels[i] = float32(100 + i%7)
		}
		for _, frames := range [][]*derive.Frame{nil, {frame, frame}} {
			by, note, err := mr.Adapt(t.Context(), frames, nil, func(int, int) {})
			if err != nil || note == "" {
				t.Fatalf("%d frames: %q, %v", len(frames), note, err)
			}
			want := mr.Model()
			want.Method += " adapted"
			if by.Model() != want || !by.HasHigh() || by.(pipeline.Adaptive).Adapts() {
				t.Errorf("%d frames: %+v, want %+v", len(frames), by.Model(), want)
			}
		}
	}
}
