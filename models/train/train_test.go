package train

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/safetensors"
	"github.com/diffdenoise/denoised/models/store"
)

// small is a preset that trains in seconds.
var small = Preset{
	Name: "small",
	Networks: Networks{
		BSN:       net.BSNConfig{Channels: [3]int{8, 8, 8}, Mix: 8},
		Diffusion: net.TeacherConfig{Condition: net.TeacherCondition, Channels: [3]int{8, 8, 8}, Code: 8},
		Student:   net.StudentConfig{Channels: 16, Blocks: 1},
		Meter:     net.MeterConfig{Channels: 8},
	},
	Steps: [4]int{10, 10, 10, 10}, Batch: [4]int{2, 2, 2, 2}, Side: [4]int{32, 32, 32, 32}, Every: 5,
	Rate: [4]float64{1e-3, 1e-3, 1e-3, 1e-3},
}

func backend(t *testing.T) kernels.GraphBackend {
	t.Helper()
	b, err := cpu.Select()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// phantomSet is a set of noisy phantom slices.
func phantomSet(t *testing.T) *Set {
	t.Helper()
	b := NewBuilder(Options{})
	for seed := range uint64(3) {
		v := phantom.New(phantom.Spec{Seed: seed + 1, Slices: 6, Width: 96, Height: 96})
		err := b.Add(t.Context(), dataset.Volume{Source: string(rune('a' + seed)), Slices: 6,
			Read: func(k int) (dataset.Image, error) {
				px := make([]float32, 96*96)
				rng := rand.New(rand.NewPCG(seed, uint64(k)))
				for i, x := range v.Truth[k] {
					px[i] = float32(math.Hypot(float64(x)+0.03*rng.NormFloat64(), 0.03*rng.NormFloat64()))
				}
				return dataset.Image{Width: 96, Height: 96, Pixels: px}, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := b.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func withSmall(t *testing.T) {
	t.Helper()
	old := Presets
	Presets = append(slices.Clone(Presets), small)
	t.Cleanup(func() { Presets = old })
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// named is a backend by another name.
type named struct {
	kernels.GraphBackend
	name string
}

func (b named) Name() string { return b.name }

// TestRunOnAnother: a training that is resumed on another backend goes on, and its log tells which
// one computed what.
func TestRunOnAnother(t *testing.T) {
	withSmall(t)
	set, dir := phantomSet(t), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := Config{Stage: StageBSN, Preset: "small", Seed: 7, Out: dir, Resume: true, Progress: func(p Progress) {
		if p.Step == small.Every+1 {
			cancel()
		}
	}}
	var err error
	if c.Log, err = OpenLog(filepath.Join(dir, "log.jsonl")); err != nil {
		t.Fatal(err)
	}
	defer c.Log.Close()
	if _, err := Run(ctx, named{backend(t), "first"}, set, c); !errors.Is(err, ErrStopped) {
		t.Fatalf("the error is %v, want %v", err, ErrStopped)
	}
	if _, err := Run(t.Context(), named{backend(t), "second"}, set, c); err != nil {
		t.Fatal(err)
	}
	entries, err := ReadLog(filepath.Join(dir, "log.jsonl"))
	if err != nil || len(entries) < 2 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for i, e := range entries {
		if want := map[bool]string{true: "first", false: "second"}[i == 0]; e.Backend != want {
			t.Errorf("step %d was computed on %q, want %q", e.Step, e.Backend, want)
		}
	}
}

// TestRunResumes: training that is stopped and resumed ends in the same bytes as
// training in one go, all stages, and for any number of threads.
func TestRunResumes(t *testing.T) {
	withSmall(t)
	set := phantomSet(t)
	whole, parts := t.TempDir(), t.TempDir()
	r, err := Run(t.Context(), backend(t), set, Config{Stage: StageAll, Preset: "small", Seed: 7, Out: whole, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(Stages); len(r.Stages) != n || len(r.Networks) != n {
		t.Fatalf("%d stages and %d networks, want %d", len(r.Stages), len(r.Networks), n)
	}
	stops := 0
	for range 40 {
		// Every call is cancelled after seven steps, anywhere in a stage.
		ctx, cancel := context.WithCancel(t.Context())
		steps := 0
		_, err = Run(ctx, backend(t), set, Config{Stage: StageAll, Preset: "small", Seed: 7, Out: parts, Resume: true, Workers: 3, Progress: func(Progress) {
			if steps++; steps == 7 {
				cancel()
			}
		}})
		cancel()
		if err == nil {
			break
		}
		if !errors.Is(err, ErrStopped) && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		stops++
	}
	if err != nil {
		t.Fatal(err)
	}
	if stops < 3 {
		t.Fatalf("only %d stops", stops)
	}
	for _, name := range Stages {
		file := name + ".safetensors"
		if !slices.Equal(read(t, filepath.Join(whole, file)), read(t, filepath.Join(parts, file))) {
			t.Errorf("%s differs after resuming", file)
		}
	}
	// Another seed gives other weights.
	if _, err := Run(t.Context(), backend(t), set, Config{Stage: StageBSN, Preset: "small", Seed: 8, Out: parts}); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(read(t, filepath.Join(whole, "bsn.safetensors")), read(t, filepath.Join(parts, "bsn.safetensors"))) {
		t.Error("the seed makes no difference")
	}
}

// counting is a backend whose trainers must be closed.
type counting struct {
	kernels.GraphBackend
	made, closed int
}

type countedTrainer struct {
	kernels.Trainer
	of *counting
}

func (b *counting) Train(g *kernels.Graph, s *kernels.State, o kernels.TrainOptions) (kernels.Trainer, error) {
	tr, err := b.GraphBackend.Train(g, s, o)
	b.made++
	return &countedTrainer{tr, b}, err
}

func (t *countedTrainer) Close() error {
	t.of.closed++
	return nil
}

// TestRunCloses: a stage leaves no trainer open that holds memory of a device.
func TestRunCloses(t *testing.T) {
	withSmall(t)
	b := &counting{GraphBackend: backend(t)}
	if _, err := Run(t.Context(), b, phantomSet(t), Config{Stage: StageBSN, Preset: "small", Seed: 7, Out: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if b.made != 1 || b.closed != 1 {
		t.Errorf("%d trainers were made and %d closed, want 1 and 1", b.made, b.closed)
	}
}

// TestCheckpointRefused: a checkpoint of another training, or a damaged one, is an
// error and stays as it is.
func TestCheckpointRefused(t *testing.T) {
	withSmall(t)
	set := phantomSet(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "bsn.checkpoint")
	run := func(change func(*Config)) error {
		c := Config{Stage: StageBSN, Preset: "small", Seed: 1, Out: dir, Resume: true}
		change(&c)
		_, err := Run(t.Context(), backend(t), set, c)
		return err
	}
	if err := run(func(*Config) {}); err != nil {
		t.Fatal(err)
	}
	good := read(t, path)
	for name, change := range map[string]func(*Config){
		"another seed":   func(c *Config) { c.Seed = 2 },
		"another preset": func(c *Config) { c.Preset = "tiny" },
	} {
		if err := run(change); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f, err := safetensors.Decode(good)
	if err != nil {
		t.Fatal(err)
	}
	spoilt := map[string][]byte{"truncated": good[:len(good)/2], "empty": {}, "text": []byte("no checkpoint at all, but longer than a header")}
	for name, spoil := range map[string]func(f *safetensors.File){
		"no step":        func(f *safetensors.File) { f.Metadata["step"] = "many" },
		"step too late":  func(f *safetensors.File) { f.Metadata["step"] = "1000" },
		"tensor missing": func(f *safetensors.File) { delete(f.Tensors, "squares.mix.b.weight") },
		"not a number": func(f *safetensors.File) {
			x := f.Tensors["params.mix.b.weight"]
			x.Data = slices.Clone(x.Data)
			x.Data[0] = float32(math.NaN())
			f.Tensors["params.mix.b.weight"] = x
		},
	} {
		c := &safetensors.File{Metadata: maps.Clone(f.Metadata), Tensors: maps.Clone(f.Tensors)}
		spoil(c)
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		spoilt[name] = b
	}
	for name, b := range spoilt {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := run(func(*Config) {}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want an error that names the file", name, err)
		}
		if !slices.Equal(read(t, path), b) {
			t.Errorf("%s: the checkpoint was changed", name)
		}
	}
}

// TestWeightsRefused: weights of a finished stage that are damaged, or of another network,
// are an error, whoever needs them, and stay as they are.
func TestWeightsRefused(t *testing.T) {
	withSmall(t)
	set, dir := phantomSet(t), t.TempDir()
	run := func(stage string) error {
		_, err := Run(t.Context(), backend(t), set, Config{Stage: stage, Preset: "small", Seed: 1, Out: dir,
			Resume: true})
		return err
	}
	if err := run(StageAll); err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(dir, name+".safetensors") }
	good := map[string][]byte{}
	for _, name := range Stages {
		good[name] = read(t, path(name))
	}
	for _, name := range Stages {
		f, err := safetensors.Decode(good[name])
		if err != nil {
			t.Fatal(err)
		}
		changed := func(change func(f *safetensors.File)) []byte {
			c := &safetensors.File{Metadata: maps.Clone(f.Metadata), Tensors: maps.Clone(f.Tensors)}
			change(c)
			b, err := c.Encode()
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		some := slices.Sorted(maps.Keys(f.Tensors))[0]
		next := Stages[(slices.Index(Stages, name)+1)%len(Stages)]
		for what, b := range map[string][]byte{
			"cut":             good[name][:len(good[name])/2],
			"empty":           {},
			"text":            []byte("no weights at all, but longer than a header"),
			"of another":      good[next],
			"tensor missing":  changed(func(f *safetensors.File) { delete(f.Tensors, some) }),
			"tensor too many": changed(func(f *safetensors.File) { f.Tensors["more"] = safetensors.Tensor{Shape: []int{1}, Data: []float32{1}} }),
			"other shape": changed(func(f *safetensors.File) {
				f.Tensors[some] = safetensors.Tensor{Shape: []int{1}, Data: []float32{1}}
			}),
			"NaN": changed(func(f *safetensors.File) {
				x := f.Tensors[some]
				x.Data = slices.Clone(x.Data)
				x.Data[0] = float32(math.NaN())
				f.Tensors[some] = x
			}),
		} {
			if err := os.WriteFile(path(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, stage := range []string{StageAll, StageDiffusion} {
				if name == StageDiffusion && stage == StageDiffusion {
					continue // which would write them
				}
				if err := run(stage); err == nil || !strings.Contains(err.Error(), path(name)) ||
					strings.Contains(err.Error(), "\n") {
					t.Errorf("%s of %s, training %s: %v, want one line that names the file", name, what, stage, err)
				}
			}
			if !slices.Equal(read(t, path(name)), b) {
				t.Errorf("%s, %s: the weights were changed", name, what)
			}
		}
		if err := os.WriteFile(path(name), good[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(StageAll); err != nil {
		t.Errorf("the right weights again: %v", err)
	}
}

// TestCheckpointUnwritable: a checkpoint that cannot be written leaves the old one.
func TestCheckpointUnwritable(t *testing.T) {
	withSmall(t)
	dir := t.TempDir()
	c := Config{Stage: StageBSN, Preset: "small", Seed: 1, Out: filepath.Join(dir, "gone")}
	if _, err := Run(t.Context(), backend(t), phantomSet(t), c); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestRunRefuses(t *testing.T) {
	withSmall(t)
	set := phantomSet(t)
	dir := t.TempDir()
	for name, c := range map[string]Config{
		"no such preset":     {Stage: StageAll, Preset: "huge", Out: dir},
		"no such stage":      {Stage: "teacher", Preset: "small", Out: dir},
		"earlier stage gone": {Stage: StageDiffusion, Preset: "small", Out: dir},
	} {
		if _, err := Run(t.Context(), backend(t), set, c); err == nil {
			t.Errorf("%s: passed", name)
		}
	}
	if _, err := Run(t.Context(), backend(t), &Set{Train: set.Train}, Config{Stage: StageBSN, Preset: "small", Out: dir}); err == nil {
		t.Error("nothing to validate on: passed")
	}
	c := Config{Stage: StageBSN, Preset: "small", Out: dir, Deadline: time.Now()}
	if _, err := Run(t.Context(), backend(t), set, c); !errors.Is(err, ErrStopped) {
		t.Errorf("past the deadline: %v", err)
	}
}

// TestStudentLearns is the band of a training curve: within a moment the loss of a
// small student falls, and not to where no network could get.
func TestStudentLearns(t *testing.T) {
	preset := small
	preset.Steps[1], preset.Batch[1], preset.Every = 150, 4, 30
	tr := &training{Config: Config{Stage: StageStudent}, preset: preset, set: phantomSet(t), backend: backend(t)}
	s, err := tr.stage(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	var losses []float64
	c := Config{Seed: 3, Log: &Log{write: func(e Entry) error { losses = append(losses, e.Loss); return nil }}}
	if _, err := s.run(t.Context(), backend(t), t.TempDir(), c); err != nil {
		t.Fatal(err)
	}
	if last := losses[len(losses)-1] / losses[0]; last < 0.02 || last > 0.7 {
		t.Errorf("the loss fell to %.2f of its start, want 0.02 to 0.7 (%.3g)", last, losses)
	}
}

// TestSmallValidation: where the slices to validate on are smaller than those to train
// on, pieces are as small, instead of being looked for in vain.
func TestSmallValidation(t *testing.T) {
	of := func(side int) []Slice {
		return []Slice{{Pixels: slices.Repeat([]float32{0.5}, side*side), Width: side, Height: side}}
	}
	preset := small
	preset.Side = [4]int{96, 96, 96, 96}
	tr := &training{preset: preset, set: &Set{Train: of(128), Validation: of(48)}}
	if side := tr.side(0); side != 48 {
		t.Errorf("pieces of %d, want 48", side)
	}
	if h, err := newHeldOut(tr.set.Validation, tr.side(0)); err != nil || len(h.scenes) != heldScenes {
		t.Errorf("%v, %v", h, err)
	}
}

// TestBestIsTold: loss and scores are those of the weights that are kept, also when a
// training goes on after its last step.
func TestBestIsTold(t *testing.T) {
	preset := small
	preset.Steps[1], preset.Every = 30, 10
	tr := &training{Config: Config{Stage: StageStudent}, preset: preset, set: phantomSet(t), backend: backend(t)}
	s, err := tr.stage(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	scores := []float64{2, 1, 3}
	validate := s.validate
	n := 0
	s.validate = func(p [][]float32) (map[string]float64, float64, error) {
		if _, _, err := validate(p); err != nil {
			return nil, 0, err
		}
		n++
		return map[string]float64{"of": float64(n), "none": math.NaN()}, scores[n-1], nil
	}
	dir := t.TempDir()
	first, err := s.run(t.Context(), backend(t), dir, Config{Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.run(t.Context(), backend(t), dir, Config{Seed: 3, Resume: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*trained{first, again} {
		if r.step != 20 || r.loss == 0 || r.loss != first.loss || !maps.Equal(r.scores, map[string]float64{"of": 2}) {
			t.Errorf("step %d, loss %g, scores %v", r.step, r.loss, r.scores)
		}
	}
}

// TestRecorrupt: the noises of the two are uncorrelated, as strong as promised, and
// nothing happens where the noise is unknown.
func TestRecorrupt(t *testing.T) {
	const n = 128
	m := &noise.Map{Width: n, Height: n, Sigma: make([]float32, n*n), Median: 0.1, Correlation: noise.Gaussian(0.8, 0.8).Correlation()}
	y := make([]float32, n*n)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range m.Sigma {
		m.Sigma[i] = 0.05 + 0.1*float32(i%n)/n
	}
	m.Draw(y, rng) // the image is 0, so this is its noise
	input, target := recorrupt(y, m, tau, rng)
	var a, b, ab, own float64
	for i := range y {
		a += float64(input[i]) * float64(input[i])
		b += float64(target[i]) * float64(target[i])
		ab += float64(input[i]) * float64(target[i])
		own += float64(y[i]) * float64(y[i])
	}
	if c := ab / math.Sqrt(a*b); math.Abs(c) > 0.05 {
		t.Errorf("correlation of the two noises is %.3f", c)
	}
	if r := a / own; math.Abs(r-(1+tau*tau)) > 0.1 {
		t.Errorf("the input's noise is %.2f of the image's, want %.2f", r, 1+tau*tau)
	}
	if r := b / own; math.Abs(r-(1+1/(tau*tau))) > 0.5 {
		t.Errorf("the target's noise is %.2f of the image's, want %.2f", r, 1+1/(tau*tau))
	}
	if input, target := recorrupt(y, &noise.Map{}, tau, rng); !slices.Equal(input, y) || !slices.Equal(target, y) {
		t.Error("an image of unknown noise was changed")
	}
}

// TestCorrupt: the noise has the strength that the map says, whatever its kind.
func TestCorrupt(t *testing.T) {
	const n = 96
	clean := make([]float32, n*n)
	for i := range clean {
		clean[i] = 0.3 + 0.4*float32(i%n)/n
	}
	low, high := 0, 0
	for seed := range uint64(60) {
		s := corrupt(clean, n, n, true, rand.New(rand.NewPCG(seed, 1)))
		sum := 0.0
		for i, v := range s.noisy {
			d := float64(v-clean[i]) / float64(s.sigma[i])
			sum += d * d
			if s.sigma[i] <= 0 || v-v != 0 {
				t.Fatalf("seed %d: noise %g, value %g", seed, s.sigma[i], v)
			}
		}
		if r := math.Sqrt(sum / (n * n)); r < 0.85 || r > 1.15 {
			t.Errorf("seed %d: the noise is %.2f of what the map says", seed, r)
		}
		if c := s.correlation.At(1, 0); c > 0.3 {
			high++
		} else if c == 0 {
			low++
		}
	}
	if low < 15 || high < 5 {
		t.Errorf("of 60 scenes %d have white and %d correlated noise", low, high)
	}
}

// TestPiecesSame: equal seeds give equal pieces on any number of threads, which the
// batches of a training rest on.
func TestPiecesSame(t *testing.T) {
	set := phantomSet(t)
	a, err := pieces(set.Train, 5, 32, nil, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := pieces(set.Train, 5, 32, nil, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	for k := range a {
		if len(a[k].noisy) != 32*32 || !slices.Equal(a[k].noisy, b[k].noisy) || !slices.Equal(a[k].given, b[k].given) {
			t.Fatalf("piece %d differs", k)
		}
	}
}

// TestDistil: the student of a model goes on with what its networks make of the images; the others
// are part of the result as they are, unless the model is for images of another kind.
func TestDistil(t *testing.T) {
	withSmall(t)
	set := phantomSet(t)
	c := Config{Stage: StageAll, Preset: small.Name, Seed: 1, Out: t.TempDir()}
	first, err := Run(t.Context(), backend(t), set, c)
	if err != nil {
		t.Fatal(err)
	}
	model := filepath.Join(t.TempDir(), "model")
	card := store.Card{Name: "first", Version: "1", Licence: "none"}
	if _, err := store.Save(model, card, first.Networks, false); err != nil {
		t.Fatal(err)
	}
	c.Stage, c.Distil = StageStudent, true
	if _, err := Run(t.Context(), backend(t), set, c); err == nil || !strings.Contains(err.Error(), "From") {
		t.Errorf("without a model: %v", err)
	}
	for _, kind := range store.Kinds {
		set := *set
		set.Kind = kind
		c.From, c.Out, c.Distil = model, t.TempDir(), kind == store.MR
		second, err := Run(t.Context(), backend(t), &set, c)
		if err != nil {
			t.Fatal(err)
		}
		same := func(network string) bool {
			a, b := first.Networks[network], second.Networks[network]
			return b != nil && slices.Equal(a.Tensors["head.weight"].Data, b.Tensors["head.weight"].Data)
		}
		if second.Networks[StageStudent] == nil || same(StageStudent) {
			t.Errorf("%s: the student has not learned", kind)
		}
		want := kind == store.MR
		if (second.Networks[StageMeter] != nil) != want || (second.Networks[StageDiffusion] != nil) != want {
			t.Errorf("%s: networks %v", kind, slices.Collect(maps.Keys(second.Networks)))
		}
	}
}
