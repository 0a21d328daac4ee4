package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/lockfile"
	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/safetensors"
	"github.com/diffdenoise/denoised/models/store"
	"github.com/diffdenoise/denoised/models/train"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

// quick stands in for the training itself.
type quick struct {
	t     *testing.T
	calls []train.Config
	sets  []*train.Set
	err   error // after one entry in the log
}

func (q *quick) run(ctx context.Context, _ kernels.GraphBackend, set *train.Set, c train.Config) (*train.Result, error) {
	q.calls, q.sets = append(q.calls, c), append(q.sets, set)
	r := &train.Result{Networks: map[string]*safetensors.File{}}
	for _, name := range train.Stages {
		if c.Stage != name && c.Stage != train.StageAll {
			continue
		}
		c.Progress(train.Progress{Stage: name, Step: 1, Steps: 10, Loss: 1})
		if err := c.Log.Write(train.Entry{Stage: name, Step: 10, Loss: 0.5, Rate: 1e-3, Seconds: 60, Scores: map[string]float64{"gain_db": 2.5}}); err != nil {
			return nil, err
		}
		if q.err != nil {
			return nil, q.err
		}
		var f *safetensors.File
		var err error
		switch name {
		case train.StageMeter:
			n := net.MeterConfig{Channels: 4}
			f, err = net.EncodeGraph(n.String(), n.Graph(), n.Graph().Init(c.Seed))
		case train.StageBSN:
			n := net.BSNConfig{Channels: [3]int{4, 4, 4}, Mix: 4}
			f, err = net.EncodeGraph(n.String(), n.Graph(), n.Graph().Init(c.Seed))
		case train.StageDiffusion:
			n := net.TeacherConfig{Condition: net.TeacherCondition, Channels: [3]int{4, 4, 4}, Code: 4}
			f, err = net.EncodeGraph(n.String(), n.Graph(), n.Graph().Init(c.Seed))
		case train.StageStudent:
			var m *models.Model
			if m, err = models.Default(); err == nil {
				f, err = m.Network(store.NetworkStudent)
			}
		}
		if err != nil {
			return nil, err
		}
		r.Networks[name] = f
		r.Stages = append(r.Stages, store.Stage{Network: name, Architecture: f.Metadata["format"], Steps: 10,
			BestStep: 10, Batch: 4, Crop: 64, Scores: map[string]float64{"gain_db": 2.5}})
	}
	return r, ctx.Err()
}

// train runs the verb with q in place of the training.
func (q *quick) train(args ...string) (out, errOut string, err error) {
	q.t.Helper()
	cmd := trainCmd(q.run)
	var o, e bytes.Buffer
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.ExecuteContext(q.t.Context())
	return o.String(), e.String(), err
}

// volumes writes n NIfTI volumes of 6 slices.
func volumes(t *testing.T, n int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for i := range n {
		v, err := phantom.New(phantom.Spec{Seed: uint64(i), Width: 64, Height: 64, Slices: 6, Sigma: 0.04}).NIfTI(false)
		if err != nil {
			t.Fatal(err)
		}
		if err := nifti.Write(filepath.Join(dir, fmt.Sprintf("head%d.nii", i)), v); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func wantError(t *testing.T, what string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v, want one line with %q", what, err, want)
	}
}

// TestTrain: from a folder to a model that is verified, reported, and not written
// over.
func TestTrain(t *testing.T) {
	q := &quick{t: t}
	data, out := volumes(t, 3), filepath.Join(t.TempDir(), "knee 3t")
	write(t, filepath.Join(data, "notes.txt"), []byte("x"))
	card := filepath.Join(t.TempDir(), "card.json")
	write(t, card, []byte(`{"version": "7", "licence": "ours", "training": {"data": [{"name": "knees", "source": "us", "licence": "ours"}]}}`))
	stdout, stderr, err := q.train("--data", data, "--out", out, "--preset", "tiny", "--seed", "5", "--card", card, "--json", "--workers", "1")
	if err != nil {
		t.Fatal(err)
	}
	var r trainReport
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("%v\n%s", err, stdout)
	}
	if r.Model != filepath.Join(out, "model") || r.Data.Slices != 18 || r.Data.Volumes != 3 || len(r.Stages) != 4 ||
		r.Stages[1].Seconds != 60 || r.Seed != 5 {
		t.Errorf("report %+v", r)
	}
	for _, want := range []string{"reading " + data, "18 slices of 3 volumes", "left out: 1 not-an-image", "bsn: step 1 of 10, loss 1\n"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("it does not tell %q:\n%s", want, stderr)
		}
	}
	m, err := models.Open(r.Model)
	if err != nil {
		t.Fatal(err)
	}
	v, err := m.Verify()
	if err != nil || len(v.Networks) != 4 || m.Hash() != r.Hash {
		t.Errorf("%+v, %v", v, err)
	}
	c := m.Card
	if c.Name != "knee-3t" || c.Version != "7" || c.Licence != "ours" || c.Training.Data[0].Name != "knees" || c.Training.Preset != "tiny" || c.Training.Seed != 5 ||
		c.Training.Seconds != 240 || c.Training.Fingerprint != q.sets[0].Fingerprint() ||
		len(c.Training.Stages) != 4 || c.Training.Noise == "" || len(c.Scores) != 4 || c.Created.IsZero() {
		t.Errorf("card %+v", c)
	}
	for _, name := range []string{"report.html", "report.md", "loss-bsn.png", "slices.png", "log.jsonl"} {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
	if g := q.calls[0]; g.Stage != "all" || g.Preset != "tiny" || g.Seed != 5 || g.Resume || g.Workers != 1 || !g.Deadline.IsZero() || g.Out != out {
		t.Errorf("config %+v", g)
	}
	for _, args := range [][]string{{}, {"--resume"}} {
		_, _, err = q.train(append([]string{"--data", data, "--out", out, "--preset", "tiny", "--seed", "5"}, args...)...)
		wantError(t, "over a finished training", err, "is finished; choose another --out")
	}
	if len(q.calls) != 1 {
		t.Errorf("%d trainings were run", len(q.calls))
	}
	// The same again elsewhere: the same slices, the same weights.
	other := filepath.Join(t.TempDir(), "again")
	stdout, _, err = q.train("--data", data, "--out", other, "--preset", "tiny", "--seed", "5", "--name", "n")
	if err != nil || !strings.Contains(stdout, "denoised model install "+filepath.Join(other, "model")) {
		t.Errorf("%v\n%s", err, stdout)
	}
	again, err := models.Open(filepath.Join(other, "model"))
	if err != nil || again.Hash() != m.Hash() || again.Name() != "n" {
		t.Errorf("%v, %s", err, again.Name())
	}
}

// TestTrainResume: a training that was stopped goes on with the same settings and
// images only.
func TestTrainResume(t *testing.T) {
	q := &quick{t: t, err: fmt.Errorf("bsn: %w: 10 of 600 done", train.ErrStopped)}
	data, out := volumes(t, 3), filepath.Join(t.TempDir(), "out")
	args := []string{"--data", data, "--out", out, "--preset", "tiny", "--backend", "cpu"}
	_, _, err := q.train(append(args, "--time", "1h")...)
	wantError(t, "stopped", err, "go on with the same command and --resume")
	if d := time.Until(q.calls[0].Deadline); d < 50*time.Minute || d > time.Hour {
		t.Errorf("the deadline is in %v", d)
	}
	if b, err := os.ReadFile(filepath.Join(out, "report.md")); err != nil || !strings.Contains(string(b), "not finished") {
		t.Errorf("report of a stopped training: %v\n%s", err, b)
	}
	if _, err := os.Stat(filepath.Join(out, "model")); err == nil {
		t.Error("a stopped training left a model")
	}
	_, _, err = q.train(args...)
	wantError(t, "without --resume", err, "--resume")
	_, _, err = q.train(append(args, "--resume", "--seed", "2")...)
	wantError(t, "another seed", err, "--seed 1, not 2")
	_, _, err = q.train("--data", data, "--out", out, "--resume")
	wantError(t, "another preset", err, "--preset tiny, not default")
	_, _, err = q.train(append(args, "--resume", "--exclude", "head1*")...)
	wantError(t, "other slices", err, "--exclude")
	_, _, err = q.train("--data", volumes(t, 2), "--out", out, "--preset", "tiny", "--resume")
	wantError(t, "other images", err, "no longer those")
	if len(q.calls) != 1 {
		t.Errorf("%d trainings were run", len(q.calls))
	}
	q.err = fmt.Errorf("write checkpoint: %w", syscall.ENOSPC)
	_, _, err = q.train(append(args, "--resume")...)
	wantError(t, "a full disk", err, "no space left on device; what was trained until the last checkpoint")
	// As if it had been begun on a card.
	var run map[string]any
	b, err := os.ReadFile(filepath.Join(out, "run.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &run); err != nil {
		t.Fatal(err)
	}
	here, ok := run["backends"].([]any)
	if !ok || len(here) != 1 || !strings.HasPrefix(here[0].(string), "cpu/") {
		t.Fatalf("%s", b)
	}
	backends := []string{"cuda/sm_89", here[0].(string)}
	run["backends"] = backends[:1]
	if b, err = json.Marshal(run); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(out, "run.json"), b)
	q.err = nil
	q.calls, q.sets = q.calls[:1], q.sets[:1]
	_, stderr, err := q.train(append(args, "--resume")...)
	if err != nil || !q.calls[1].Resume || q.sets[1].Fingerprint() != q.sets[0].Fingerprint() {
		t.Errorf("resumed: %v, %+v", err, q.calls[len(q.calls)-1])
	}
	if want := "computed on cuda/sm_89 so far, from here on on " + backends[1]; !strings.Contains(stderr, want) {
		t.Errorf("it does not tell %q:\n%s", want, stderr)
	}
	m, err := models.Open(filepath.Join(out, "model"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m.Card.Training.Backends, backends) {
		t.Errorf("the card names %q, want %q", m.Card.Training.Backends, backends)
	}

	// --resume where there is nothing begins.
	fresh := filepath.Join(t.TempDir(), "fresh")
	_, stderr, err = q.train("--data", data, "--out", fresh, "--preset", "tiny", "--resume", "--stage", "bsn")
	if err != nil || !strings.Contains(stderr, "nothing to resume") {
		t.Errorf("%v\n%s", err, stderr)
	}
	if _, err := os.Stat(filepath.Join(fresh, "model")); err == nil {
		t.Error("a blind-spot network alone is no model")
	}
	// The next stage goes into the same folder.
	if _, _, err := q.train("--data", data, "--out", fresh, "--preset", "tiny", "--resume", "--stage", "student"); err != nil {
		t.Error(err)
	}
}

// TestTrainSpool: a daemon receives more while a training is stopped.
func TestTrainSpool(t *testing.T) {
	state := t.TempDir()
	store, err := spool.OpenStore(spool.DirFS(filepath.Join(state, "spool")), spool.Limits{Refuse: 1, Reserve: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string) {
		v, ids := phantom.New(phantom.Spec{Width: 64, Height: 64, Slices: 6, Sigma: 0.04}), phantom.NewIDs(name)
		for k := range 6 {
			storeObject(t, store, spool.Original, phantomDICOM(t, v, k, ids), ids.SeriesInstanceUID, ids.SOPInstanceUID(k))
		}
	}
	add("a")
	add("b")
	q := &quick{t: t, err: train.ErrStopped}
	out := filepath.Join(t.TempDir(), "out")
	_, _, err = q.train("--data", state, "--out", out)
	wantError(t, "stopped", err, "--resume")
	add("c")
	q.err = nil
	_, stderr, err := q.train("--data", state, "--out", out, "--resume")
	if err != nil || !strings.Contains(stderr, "no longer those") || q.sets[1].Summary.Slices != 18 {
		t.Errorf("%v\n%s", err, stderr)
	}
	// Nothing of the daemon's was touched.
	if _, err := q.sets, store.Probe(); err != nil {
		t.Error(err)
	}
	_, _, err = q.train("--data", state, "--out", filepath.Join(state, "trained"))
	wantError(t, "--out in --data", err, "lies in --data")
}

// TestTrainRefuses: mistakes are told before anything is read or written.
func TestTrainRefuses(t *testing.T) {
	data, dir := volumes(t, 2), t.TempDir()
	out := filepath.Join(dir, "out")
	write(t, filepath.Join(dir, "file"), nil)
	write(t, filepath.Join(dir, "foreign", "thesis.txt"), nil)
	write(t, filepath.Join(dir, "damaged", "run.json"), []byte("{"))
	write(t, filepath.Join(dir, "bad.json"), []byte(`{"nom": 1}`))
	locked := filepath.Join(dir, "locked")
	if err := os.Mkdir(locked, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := lockfile.Take(filepath.Join(locked, ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	q := &quick{t: t}
	for _, c := range []struct {
		args  []string
		want  string
		usage bool
	}{
		{[]string{"--out", out}, "--data", true},
		{[]string{"--data", data}, "--out", true},
		{[]string{"--data", data, "--out", out, "--stage", "teacher"}, "choose meter, bsn, student, diffusion or all",
			true},
		{[]string{"--data", data, "--out", out, "--preset", "small"}, "tiny, default, tune, large", true},
		{[]string{"--data", data, "--out", out, "--kind", "ct"}, "choose mr or radiograph", true},
		{[]string{"--data", data, "--out", out, "--from", "nowhere"}, "read --from", false},
		{[]string{"--data", data, "--out", out, "--backend", "cuda"}, "use --backend auto", false},
		{[]string{"--data", data, "--out", out, "--backend", "tpu"}, "choose auto, cpu or cuda", true},
		{[]string{"--data", data, "--out", out, "--time", "-5s"}, "negative", true},
		{[]string{"--data", data, "--out", out, "--memory", "0"}, "--memory", true},
		{[]string{"--data", data, "--out", out, "--workers", "-1"}, "--workers", true},
		{[]string{"--data", data, "--out", out, "--name", "../x"}, "--name", true},
		{[]string{"--data", data, "--out", out, "--exclude", "[a"}, "no pattern", true},
		{[]string{"--data", data, "--out", out, "--card", filepath.Join(dir, "none.json")}, "read --card", false},
		{[]string{"--data", data, "--out", out, "--card", filepath.Join(dir, "bad.json")}, "unknown field", false},
		{[]string{"--data", data, "--out", filepath.Join(dir, "file")}, "is a file", false},
		{[]string{"--data", data, "--out", filepath.Join(dir, "foreign")}, "holds no training", false},
		{[]string{"--data", data, "--out", filepath.Join(dir, "damaged")}, "is not what a training writes", false},
		{[]string{"--data", data, "--out", locked}, "another training uses", false},
		{[]string{"--data", data, "--out", data}, "holds no training", false},
		{[]string{"--data", data, "--out", filepath.Join(data, "new")}, "lies in --data", false},
		{[]string{"--data", filepath.Join(dir, "nowhere"), "--out", filepath.Join(dir, "a")}, "nowhere", false},
		{[]string{"--data", volumes(t, 1), "--out", filepath.Join(dir, "b")}, "6 usable slices, at least 9 are needed", false},
		{[]string{"--data", filepath.Join(dir, "foreign"), "--out", filepath.Join(dir, "c")}, "left out: 1 not-an-image", false},
		{[]string{"--data", data, "--out", filepath.Join(dir, "d"), "--exclude", "head*.nii"}, "left out: 2 excluded", false},
	} {
		if hasCUDA && slices.Contains(c.args, "cuda") {
			continue // what is refused then depends on the machine
		}
		_, _, err := q.train(c.args...)
		wantError(t, strings.Join(c.args, " "), err, c.want)
		if usage := (*usageError)(nil); errors.As(err, &usage) != c.usage {
			t.Errorf("%v: %T", c.args, err)
		}
	}
	if len(q.calls) > 0 {
		t.Errorf("%d trainings were run", len(q.calls))
	}
	if items, err := os.ReadDir(filepath.Join(dir, "foreign")); err != nil || len(items) != 1 {
		t.Errorf("a folder that is somebody else's was written to: %v", items)
	}
}

// TestTrainFolders: several folders, some of it left out.
func TestTrainFolders(t *testing.T) {
	q := &quick{t: t, err: train.ErrStopped}
	a, b := volumes(t, 3), volumes(t, 3)
	_, stderr, _ := q.train("--data", a, "--data", b, "--out", filepath.Join(t.TempDir(), "out"), "--exclude", "head1.nii")
	if len(q.sets) != 1 {
		t.Fatal(stderr)
	}
	s := q.sets[0].Summary
	if s.Volumes != 4 || s.SkippedAll != 2 || s.Skipped[0].Reason != skipExcluded || s.Skipped[0].Source != "1:head1.nii" {
		t.Errorf("%+v", s)
	}
	o := &training{exclude: []string{"sub-0*", "scans/bad/", "*.png"}}
	for source, want := range map[string]bool{
		"sub-01/t1.nii": true, "x/sub-02/t1.nii": true, "sub-11/t1.nii": false, "scans/bad/a.dcm": true, "scans/good/a.dcm": false,
		"bad/a.dcm": false, "x/y.png": true, "y.png.nii": false,
	} {
		if o.excluded(source) != want {
			t.Errorf("excluded(%q) = %v", source, !want)
		}
	}
}

func TestTrainProgress(t *testing.T) {
	var b strings.Builder
	p := newTrainProgress(&b)
	now := time.Unix(0, 0)
	p.now = func() time.Time { return now }
	for step := 101; step <= 200; step++ {
		p.step(train.Progress{Stage: "bsn", Step: step, Steps: 200, Loss: 1})
		now = now.Add(time.Second)
	}
	p.step(train.Progress{Stage: "student", Step: 1, Steps: 9, Loss: 2})
	p.done()
	want := `bsn: step 101 of 200, loss 1
bsn: step 131 of 200, loss 1, about 1m7s left
bsn: step 161 of 200, loss 1, about 38s left
bsn: step 191 of 200, loss 1, about 9s left
bsn: step 200 of 200, loss 1
student: step 1 of 9, loss 2
`
	if b.String() != want {
		t.Errorf("progress is\n%swant\n%s", b.String(), want)
	}
}

// TestTrainInterrupted: the real program, interrupted while it trains, leaves a
// checkpoint and says how to go on; --resume goes on from there.
func TestTrainInterrupted(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no interrupt signal for other processes")
	}
	data, out := volumes(t, 3), filepath.Join(t.TempDir(), "out")
	start := func(args ...string) (*exec.Cmd, *bufio.Scanner) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], append([]string{"train", "--data", data, "--out", out, "--preset", "tiny"}, args...)...)
		cmd.Env = append(os.Environ(), asProgram+"=1")
		r, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, bufio.NewScanner(r)
	}
	var step int
	for i := range 2 {
		var args []string
		if i > 0 {
			args = []string{"--resume"}
		}
		cmd, lines := start(args...)
		var all []string
		for lines.Scan() {
			all = append(all, lines.Text())
			if strings.HasPrefix(lines.Text(), "bsn: step") && !strings.Contains(strings.Join(all[:len(all)-1], "\n"), "bsn: step") {
				var at int
				if _, err := fmt.Sscanf(lines.Text(), "bsn: step %d of", &at); err != nil || at <= step {
					t.Errorf("%s after step %d", lines.Text(), step)
				}
				if err := cmd.Process.Signal(os.Interrupt); err != nil {
					t.Fatal(err)
				}
			}
		}
		err := cmd.Wait()
		text := strings.Join(all, "\n")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(text, "go on with the same command and --resume") {
			t.Fatalf("%v\n%s", err, text)
		}
		if _, err := fmt.Sscanf(text[strings.Index(text, "last step: ")+len("last step: "):], "%d of", &step); err != nil || step < 1 {
			t.Fatalf("no step in:\n%s", text)
		}
		if _, err := os.Stat(filepath.Join(out, "meter.checkpoint")); err != nil {
			t.Error(err)
		}
	}
	if step < 2 {
		t.Errorf("resumed, and stopped at step %d", step)
	}
}
