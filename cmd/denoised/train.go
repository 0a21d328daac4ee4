package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/safetensors"
	"github.com/diffdenoise/denoised/models/train"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

// Files and folders that train makes under --out, beside checkpoints and weights.
const (
	trainRunFile  = "run.json"
	trainLogFile  = "log.jsonl"
	trainLockFile = ".lock"
	trainModelDir = "model"
)

const (
	// trainSpace is the free disk space that a training needs: two checkpoints of
	// each stage and the report.
	trainSpace = 512 << 20
	// maxRunFile and maxTrainCard bound what is read of run.json and --card.
	maxRunFile   = 1 << 20
	maxTrainCard = 1 << 20
	// trainExamples is how many slices the report shows.
	trainExamples = 4
)

// skipExcluded is the reason of what --exclude names.
const skipExcluded = "excluded"

// trainer is train.Run; tests have a quicker one.
type trainer func(ctx context.Context, on kernels.GraphBackend, set *train.Set, c train.Config) (*train.Result, error)

// training is one call of train.
type training struct {
	data, exclude          []string
	out                    string
	stage, preset, backend string
	resume                 bool
	limit                  time.Duration
	seed                   uint64
	workers, memory        int
	name, card             string
	asJSON                 bool
	asWritten, distil      bool

	cmd *cobra.Command
	run trainer
}

// trainRun is what run.json says about a training.
type trainRun struct {
	Version string   `json:"version"`
	Commit  string   `json:"commit,omitempty"`
	Preset  string   `json:"preset"`
	Seed    uint64   `json:"seed"`
	Data    []string `json:"data"`
	Exclude []string `json:"exclude,omitempty"`
	Memory  int      `json:"memory_mib"`
	// Backends are what it was computed on so far.
	Backends []string `json:"backends,omitempty"`
	// Fingerprint is that of the slices.
	Fingerprint string    `json:"fingerprint"`
	Began       time.Time `json:"began"`
	// Finished are the values of --stage that came to their end.
	Finished []string `json:"finished"`
}

// trainReport is what train prints as JSON; it is stable.
type trainReport struct {
	Out     string         `json:"out"`
	Model   string         `json:"model,omitempty"` // folder
	Hash    string         `json:"model_hash,omitempty"`
	Preset  string         `json:"preset"`
	Seed    uint64         `json:"seed"`
	Data    train.Summary  `json:"data"`
	Stages  []models.Stage `json:"stages"`
	Seconds float64        `json:"seconds"` // of this call
}

func newTrainCmd() *cobra.Command { return trainCmd(train.Run) }

func trainCmd(run trainer) *cobra.Command {
	o := &training{run: run}
	var presets []string
	for _, p := range train.Presets {
		presets = append(presets, p.Name)
	}
	cmd := &cobra.Command{
		Use:   "train --data DIR --out DIR",
		Short: "Train a model on your own images, noisy as they are",
		Long: `Train a model on your own images, noisy as they are.

DIR of --data is a folder (with its subfolders) of NIfTI volumes, DICOM series or
grey PNG images, one of them, or the state_dir of a daemon, whose originals are
then read, also while it runs. Give --data several times for several folders.
What cannot be used is left out and listed with its reason.

Three networks are trained one after the other: a blind-spot network, the student of
the daily work, and a diffusion network that counts from what the student finds. The
model is then in model under --out: try it with denoised denoise --model or denoised eval
--model, and put it into service with denoised model install.

Training can be stopped at any time (Ctrl-C) and goes on with --resume, with the
same result as without the break; also on another --backend, but for rounding.
See docs/training.md.`,
		Example: `  denoised train --data volumes/ --out trained/ --preset tiny
  denoised train --data /var/lib/denoised --out trained/ --time 8h
  denoised train --data volumes/ --out trained/ --resume`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.cmd = cmd
			switch {
			case len(o.data) == 0:
				return usagef("train: no images; name their folder with --data")
			case o.out == "":
				return usagef("train: no output; name a folder with --out")
			case o.stage != train.StageAll && !slices.Contains(train.Stages, o.stage):
				return usagef("train: --stage %q; choose %s or %s", o.stage, strings.Join(train.Stages, ", "), train.StageAll)
			case !slices.Contains(presets, o.preset):
				return usagef("train: --preset %q; choose %s", o.preset, strings.Join(presets, ", "))
			case o.limit < 0:
				return usagef("train: --time %v is negative", o.limit)
			case o.workers < 0 || o.workers > 1024:
				return usagef("train: --workers %d is outside 0 to 1024", o.workers)
			case o.memory < 1 || o.memory > 1<<20:
				return usagef("train: --memory %d MiB is outside 1 to %d", o.memory, 1<<20)
			}
			if err := checkBackend("train", o.backend); err != nil {
				return err
			}
			if o.name != "" {
				if err := models.CheckName(o.name); err != nil {
					return usagef("train: --name: %v", err)
				}
			}
			for _, p := range o.exclude {
				if _, err := path.Match(p, ""); err != nil {
					return usagef("train: --exclude %q is no pattern", p)
				}
			}
			if err := o.do(cmd.Context()); err != nil {
				return fmt.Errorf("train: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.data, "data", nil, "folder or file with the images, or state_dir of a daemon (required, may be repeated)")
	f.StringVarP(&o.out, "out", "o", "", "folder of checkpoints, log, report and model (required)")
	f.StringVar(&o.stage, "stage", train.StageAll, "bsn, student, diffusion or all")
	f.StringVar(&o.preset, "preset", "default", strings.Join(presets, ", "))
	backendFlag(cmd, &o.backend)
	f.BoolVar(&o.resume, "resume", false, "go on with the training in --out")
	f.DurationVar(&o.limit, "time", 0, "stop after this time, to be resumed (default: when it is finished)")
	f.Uint64Var(&o.seed, "seed", 1, "seed of everything random")
	f.IntVar(&o.workers, "workers", 0, "threads; the result is the same for any number (default: one per core)")
	f.IntVar(&o.memory, "memory", train.DefaultMaxBytes>>20, "MiB of images to keep in memory; of more, a part is chosen at random")
	f.StringSliceVar(&o.exclude, "exclude", nil, "files and folders to leave out, by name or pattern such as sub-0*")
	f.StringVar(&o.name, "name", "", "name of the model (default: the one of --card, else that of --out)")
	f.StringVar(&o.card, "card", "", "JSON file with name, version, licence, limits and training.data for the model's card")
	f.BoolVar(&o.asWritten, "as-written", false, "train the diffusion network as arXiv 2504.00264 writes it, to compare with")
	f.BoolVar(&o.distil, "distil", false, "with --stage student: learn from what the networks in --out make of the images")
	f.BoolVar(&o.asJSON, "json", false, "print the result as JSON")
	return cmd
}

// do trains, from the look at --out to the report.
func (o *training) do(ctx context.Context) error {
	if ctx == nil {
		ctx = context.Background()
	}
	began := time.Now()
	on, err := useBackend(o.cmd, o.backend, cpu.Select)
	if err != nil {
		return err
	}
	defer on.close()
	card, err := o.readCard()
	if err != nil {
		return err
	}
	run, unlock, err := o.takeOut()
	if err != nil {
		return err
	}
	defer unlock()
	if now := on.Name(); !slices.Contains(run.Backends, now) {
		if len(run.Backends) > 0 {
			fmt.Fprintf(o.cmd.ErrOrStderr(), "computed on %s so far, from here on on %s: the result is not to the bit that of either alone\n", strings.Join(run.Backends, " and "), now)
		}
		run.Backends = append(run.Backends, now)
	}
	set, err := o.readData(ctx, run)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("stopped before the training began: %w", err)
		}
		return err
	}
	if err := o.writeRun(run); err != nil {
		return err
	}
	log, err := train.OpenLog(filepath.Join(o.out, trainLogFile))
	if err != nil {
		return err
	}
	defer log.Close()
	c := train.Config{Stage: o.stage, Preset: o.preset, Seed: o.seed, Out: o.out, Resume: o.resume, Workers: o.workers, Log: log, AsWritten: o.asWritten, Distil: o.distil}
	if o.limit > 0 {
		c.Deadline = began.Add(o.limit)
	}
	bar := newTrainProgress(o.cmd.ErrOrStderr())
	c.Progress = bar.step
	result, err := o.run(ctx, on.GraphBackend, set, c)
	bar.done()
	if err != nil {
		if reported := o.report(ctx, run, set, nil); reported != nil {
			err = errors.Join(err, reported)
		}
		if errors.Is(err, train.ErrStopped) || ctx.Err() != nil {
			return fmt.Errorf("%w; the checkpoints are in %s: go on with the same command and --resume", err, o.out)
		}
		return fmt.Errorf("%w; what was trained until the last checkpoint is in %s: when that is mended, go on with the same command and --resume", err, o.out)
	}
	r := &trainReport{Out: o.out, Preset: o.preset, Seed: o.seed, Data: set.Summary, Stages: o.stages(result)}
	var m *models.Model
	if result.Networks[models.NetworkStudent] != nil {
		r.Model = filepath.Join(o.out, trainModelDir)
		if m, err = models.Save(r.Model, o.fill(card, run, set, r.Stages), result.Networks, true); err != nil {
			return err
		}
		r.Hash = m.Hash()
	}
	if err := o.report(ctx, run, set, m); err != nil {
		return err
	}
	run.Finished = append(run.Finished, o.stage)
	if err := o.writeRun(run); err != nil {
		return err
	}
	r.Seconds = time.Since(began).Seconds()
	return o.print(r)
}

// takeOut makes --out ready and this call the only one that uses it. It returns
// what run.json says, or a new one.
func (o *training) takeOut() (run *trainRun, unlock func(), err error) {
	if info, err := os.Stat(o.out); err == nil && !info.IsDir() {
		return nil, nil, fmt.Errorf("--out %s is a file; name a folder", o.out)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return nil, nil, fmt.Errorf("make --out: %w", err)
	}
	items, err := os.ReadDir(o.out)
	if err != nil {
		return nil, nil, fmt.Errorf("read --out: %w", err)
	}
	// Nothing is written to a folder that is somebody else's, not even the lock.
	known := func(e os.DirEntry) bool { return e.Name() == trainLockFile || e.Name() == trainRunFile }
	if len(items) > 0 && !slices.ContainsFunc(items, known) {
		return nil, nil, fmt.Errorf("%s is not empty and holds no training; choose another --out", o.out)
	}
	lock, err := spool.Lock(filepath.Join(o.out, trainLockFile))
	switch {
	case errors.Is(err, spool.ErrLocked):
		return nil, nil, fmt.Errorf("another training uses --out %s: wait for it, or choose another folder", o.out)
	case err != nil:
		return nil, nil, fmt.Errorf("write to --out: %w", err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	unlock = func() { lock.Close() }
	old, err := readTrainRun(filepath.Join(o.out, trainRunFile))
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	case old != nil && slices.Contains(old.Finished, o.stage):
		return nil, nil, fmt.Errorf("%s holds a training of stage %s that is finished; choose another --out", o.out, o.stage)
	case old != nil && !o.resume:
		return nil, nil, fmt.Errorf("%s holds a training; go on with it by --resume, or choose another --out", o.out)
	}
	if _, free, err := spool.DirFS(o.out).Free(); err == nil && free < trainSpace {
		return nil, nil, fmt.Errorf("%d MiB are free at %s; a training needs %d MiB", free>>20, o.out, trainSpace>>20)
	}
	if old == nil {
		if o.resume {
			fmt.Fprintf(o.cmd.ErrOrStderr(), "nothing to resume in %s: a new training begins\n", o.out)
		}
		b := thisBuild()
		return &trainRun{Version: b.Version, Commit: b.Revision, Preset: o.preset, Seed: o.seed, Data: o.data, Exclude: o.exclude, Memory: o.memory,
			Began: time.Now().UTC().Truncate(time.Second), Finished: []string{}}, unlock, nil
	}
	for _, was := range []struct{ what, old, now string }{
		{"--preset", old.Preset, o.preset},
		{"--seed", fmt.Sprint(old.Seed), fmt.Sprint(o.seed)},
		{"--memory", fmt.Sprint(old.Memory), fmt.Sprint(o.memory)},
		{"--exclude", fmt.Sprint(old.Exclude), fmt.Sprint(o.exclude)},
	} {
		if was.old != was.now && !(was.what == "--exclude" && len(old.Exclude)+len(o.exclude) == 0) {
			return nil, nil, fmt.Errorf("the training in %s was begun with %s %s, not %s; resume it with the same settings, or choose another --out", o.out, was.what, was.old, was.now)
		}
	}
	return old, unlock, nil
}

func readTrainRun(path string) (*trainRun, error) {
	b, err := readLimited(path, maxRunFile)
	if err != nil {
		return nil, err
	}
	run := new(trainRun)
	if err := json.Unmarshal(b, run); err != nil || run.Preset == "" {
		return nil, fmt.Errorf("%s is not what a training writes; choose another --out", path)
	}
	return run, nil
}

// readLimited reads a file of at most limit bytes.
func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("read %s: more than %d bytes", path, limit)
	}
	return b, err
}

func (o *training) writeRun(run *trainRun) error {
	return writeJSON(filepath.Join(o.out, trainRunFile), run)
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, 0o644, func(f *os.File) error {
		_, err := f.Write(append(b, '\n'))
		return err
	})
}

// readCard reads --card; without it the card is empty.
func (o *training) readCard() (models.Card, error) {
	var c models.Card
	if o.card == "" {
		return c, nil
	}
	b, err := readLimited(o.card, maxTrainCard)
	if err != nil {
		return c, fmt.Errorf("read --card: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, fmt.Errorf("read --card %s: %w", o.card, err)
	}
	return c, nil
}

// readData reads the images, tells what was left out, and holds them against those
// of the run that is resumed.
func (o *training) readData(ctx context.Context, run *trainRun) (*train.Set, error) {
	errOut := o.cmd.ErrOrStderr()
	out, err := realPath(o.out)
	if err != nil {
		return nil, err
	}
	b := train.NewBuilder(train.Options{MaxBytes: int64(o.memory) << 20, Seed: o.seed, Workers: o.workers})
	live := false
	for i, root := range o.data {
		if real, err := realPath(root); err != nil {
			return nil, fmt.Errorf("read --data: %w", err)
		} else if liesIn(out, real) {
			return nil, fmt.Errorf("--out %s lies in --data %s; choose another --out", o.out, root)
		}
		prefix := ""
		if len(o.data) > 1 {
			prefix = fmt.Sprintf("%d:", i+1)
		}
		fmt.Fprintf(errOut, "reading %s\n", root)
		r := datasetReader{
			exclude: o.excluded,
			add: func(v train.Volume) error {
				v.Source = prefix + v.Source
				return b.Add(ctx, v)
			},
			skip: func(s train.Skip) {
				s.Source = prefix + s.Source
				b.Skip(s)
			},
		}
		if err := r.read(ctx, root); err != nil {
			return nil, fmt.Errorf("read --data %s: %w", root, err)
		}
		live = live || r.spool
	}
	set, err := b.Build(ctx)
	if few := (*train.TooFewError)(nil); errors.As(err, &few) {
		return nil, fmt.Errorf("--data %s: %w", strings.Join(o.data, ", "), err)
	}
	if err != nil {
		return nil, err
	}
	if err := set.Summary.Print(errOut); err != nil {
		return nil, err
	}
	switch {
	case run.Fingerprint == "" || run.Fingerprint == set.Fingerprint():
	case live:
		fmt.Fprintln(errOut, "the images are no longer those that the training began with: it goes on with those that are there now")
	default:
		return nil, fmt.Errorf("the images are no longer those that the training in %s began with; bring them back, or choose another --out", o.out)
	}
	run.Fingerprint = set.Fingerprint()
	return set, nil
}

// liesIn tells whether a path lies in a folder, or is it. Neither has links.
func liesIn(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, string(filepath.Separator))+string(filepath.Separator))
}

// excluded tells whether --exclude names a source, or a folder that it lies in: by
// its path, or by one of the names in it.
func (o *training) excluded(source string) bool {
	parts := strings.Split(source, "/")
	for i := range parts {
		for _, pattern := range o.exclude {
			whole, _ := path.Match(strings.TrimSuffix(pattern, "/"), strings.Join(parts[:i+1], "/"))
			name, _ := path.Match(strings.TrimSuffix(pattern, "/"), parts[i])
			if whole || name {
				return true
			}
		}
	}
	return false
}

// stages are those of the model: of the networks that were trained by an earlier
// call the log knows.
func (o *training) stages(r *train.Result) []models.Stage {
	entries, _ := train.ReadLog(filepath.Join(o.out, trainLogFile)) // without it less is known
	list := []models.Stage{}
	for _, name := range train.Stages {
		f := r.Networks[name]
		if f == nil {
			continue
		}
		s := models.Stage{Network: name, Architecture: f.Metadata["format"], Parameters: parameters(f)}
		for _, e := range entries {
			if e.Stage == name {
				s.Steps, s.Loss, s.Scores = e.Step, e.Loss, e.Scores
			}
		}
		if i := slices.IndexFunc(r.Stages, func(t models.Stage) bool { return t.Network == name }); i >= 0 {
			s = r.Stages[i]
		}
		s.Seconds = seconds(entries, name)
		list = append(list, s)
	}
	return list
}

// seconds is the time that the log counts for a stage, or for all if it is empty.
func seconds(entries []train.Entry, stage string) (sum float64) {
	for _, e := range entries {
		if stage == "" || e.Stage == stage {
			sum += e.Seconds
		}
	}
	return sum
}

func parameters(f *safetensors.File) (n int) {
	for _, t := range f.Tensors {
		n += len(t.Data)
	}
	return n
}

// Texts of cards.
const (
	trainMethod = "self-supervised, from noisy images alone: a blind-spot network, a student on recorrupted pairs, and conditional diffusion that counts from the student's result (docs/training.md)"
	trainDistil = "; the student then learned from what the other networks made of the training images"
	trainNoise  = "zero mean, its strength estimated for every pixel and its correlation for the slice, on the grid that was measured; magnitude images may be Rician"
	trainLimits = "For research use, on images like those it was trained on."
)

// fill completes the card of --card.
func (o *training) fill(c models.Card, run *trainRun, set *train.Set, stages []models.Stage) models.Card {
	if o.name != "" {
		c.Name = o.name
	}
	if c.Name == "" {
		c.Name = strings.Map(func(r rune) rune {
			if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r) {
				return r
			}
			return '-'
		}, filepath.Base(o.absOut()))
		if models.CheckName(c.Name) != nil {
			c.Name = "site"
		}
	}
	if c.Version == "" {
		c.Version = "1"
	}
	if c.Licence == "" {
		c.Licence = "not stated"
	}
	if c.Limits == "" {
		c.Limits = trainLimits
	}
	t := &c.Training
	if t.Method == "" {
		t.Method = trainMethod
		if o.distil {
			t.Method += trainDistil
		}
	}
	if t.Noise == "" {
		t.Noise = trainNoise
	}
	if len(t.Data) == 0 {
		t.Data = []models.DataSet{{Name: fmt.Sprintf("%d slices of %d volumes", set.Summary.Slices, set.Summary.Volumes), Source: "of the site", Licence: "not stated"}}
	}
	t.Preset, t.Seed, t.Fingerprint = run.Preset, int64(run.Seed), run.Fingerprint
	t.Version, t.Commit, t.Backends = run.Version, run.Commit, run.Backends
	t.Stages, t.Seconds = stages, 0
	for _, s := range stages {
		t.Seconds += s.Seconds
		if s.Network == models.NetworkStudent {
			t.Steps, t.Batch, t.Crop, t.Loss = s.Steps, s.Batch, s.Crop, s.Loss
			c.Architecture = s.Architecture
		}
		for _, k := range sortedScores(s.Scores) {
			c.Scores = append(c.Scores, models.Score{On: "pieces of the validation, noise added", What: s.Network, Metric: k, Value: s.Scores[k]})
		}
	}
	if c.Created.IsZero() {
		c.Created = time.Now().UTC().Truncate(time.Second)
	}
	return c
}

func (o *training) absOut() string {
	if abs, err := filepath.Abs(o.out); err == nil {
		return abs
	}
	return o.out
}

func sortedScores(m map[string]float64) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// report writes the report; without a model it is that of a training that is not
// finished. It does not need ctx to be alive.
func (o *training) report(ctx context.Context, run *trainRun, set *train.Set, m *models.Model) error {
	entries, err := train.ReadLog(filepath.Join(o.out, trainLogFile))
	if err != nil {
		return err
	}
	r := &train.Report{Program: o.cmd.Root().Version, Preset: run.Preset, Seed: run.Seed, Began: run.Began, Seconds: seconds(entries, ""),
		Summary: set.Summary, Entries: entries}
	if m != nil {
		r.Card = &m.Card
		for i := range min(trainExamples, len(set.Validation)) {
			s := &set.Validation[i*len(set.Validation)/min(trainExamples, len(set.Validation))]
			d, err := m.Denoise(context.WithoutCancel(ctx), models.Image{Width: s.Width, Height: s.Height, Pixels: s.Pixels, Skip: s.Skip}, models.Options{Strength: 1})
			if err != nil {
				return fmt.Errorf("denoise slice %d of %s for the report: %w", s.Index, s.Source, err)
			}
			r.Examples = append(r.Examples, train.Example{Source: s.Source, Index: s.Index, Width: s.Width, Height: s.Height, Before: s.Pixels, After: d.Pixels})
		}
	}
	return r.Write(o.out)
}

func (o *training) print(r *trainReport) error {
	out := o.cmd.OutOrStdout()
	if o.asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NETWORK\tPARAMETERS\tSTEPS\tTIME\tSCORES")
	for _, s := range r.Stages {
		var scores []string
		for _, k := range sortedScores(s.Scores) {
			scores = append(scores, fmt.Sprintf("%s %.4g", k, s.Scores[k]))
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\n", s.Network, s.Parameters, s.Steps, time.Duration(s.Seconds*float64(time.Second)).Round(time.Second), strings.Join(scores, ", "))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "report: %s\n", filepath.Join(r.Out, "report.html"))
	if r.Model == "" {
		_, err := fmt.Fprintf(out, "there is no model before the stages %s are trained\n", strings.Join(train.Stages, ", "))
		return err
	}
	_, err := fmt.Fprintf(out, "model: %s\nnext: denoised eval --data DIR --model %s; denoised model install %s --as NAME\n", r.Model, r.Model, r.Model)
	return err
}

// trainProgress shows how far the stages are: a bar on a terminal, elsewhere a line
// now and then.
type trainProgress struct {
	w     io.Writer
	group *mpb.Progress
	bar   *mpb.Bar
	now   func() time.Time

	mu    sync.Mutex
	stage string
	loss  float64
	first int       // step that this call began the stage with
	began time.Time // when it did
	told  time.Time
}

// tellEvery is the time between two lines of progress.
const tellEvery = 30 * time.Second

func newTrainProgress(w io.Writer) *trainProgress {
	p := &trainProgress{w: w, now: time.Now}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.group = mpb.New(mpb.WithOutput(f), mpb.WithWidth(40))
	}
	return p
}

// step is train.Config.Progress.
func (p *trainProgress) step(s train.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	fresh := s.Stage != p.stage
	if fresh {
		p.stage, p.loss, p.first, p.began, p.told = s.Stage, s.Loss, s.Step-1, now, now
	}
	p.loss += 0.02 * (s.Loss - p.loss) // single steps differ too much
	if p.group != nil {
		if fresh {
			if p.bar != nil {
				p.bar.SetTotal(-1, true)
			}
			p.bar = p.group.AddBar(int64(s.Steps),
				mpb.PrependDecorators(decor.Name(s.Stage+" "), decor.CountersNoUnit("%d / %d")),
				mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return p.lossText() }), decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)))
			p.bar.DecoratorAverageAdjust(now)
			p.bar.SetCurrent(int64(s.Step - 1))
		}
		p.bar.SetCurrent(int64(s.Step))
		return
	}
	if fresh || s.Step == s.Steps || now.Sub(p.told) >= tellEvery {
		p.told = now
		left := ""
		if n := s.Step - p.first; n > 1 && s.Step < s.Steps {
			d := now.Sub(p.began) / time.Duration(n) * time.Duration(s.Steps-s.Step)
			left = fmt.Sprintf(", about %s left", d.Round(time.Second))
		}
		fmt.Fprintf(p.w, "%s: step %d of %d, loss %.4g%s\n", s.Stage, s.Step, s.Steps, p.loss, left)
	}
}

// lossText is called by the bar, in a goroutine of its own.
func (p *trainProgress) lossText() string {
	if !p.mu.TryLock() {
		return "loss …"
	}
	defer p.mu.Unlock()
	return fmt.Sprintf("loss %.4g", p.loss)
}

// done leaves the bar as it is.
func (p *trainProgress) done() {
	if p.group == nil {
		return
	}
	if p.bar != nil {
		p.bar.Abort(false)
	}
	p.group.Wait()
}
