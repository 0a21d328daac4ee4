package train

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/diffdenoise/denoised/models/store"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/internal/disk"
	"github.com/diffdenoise/denoised/internal/lockfile"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models"
)

// What a Folder holds beside checkpoints, weights and the report.
const (
	runFile   = "run.json"
	logFile   = "log.jsonl"
	lockName  = ".lock"
	modelName = "model"
)

const (
	// folderSpace is the free disk space that a training needs: two checkpoints of each
	// stage and the report.
	folderSpace = 512 << 20
	maxRunFile  = 1 << 20 // bytes of run.json that are read
	examples    = 4       // slices that the report shows
)

// Origin is what a training was begun with, besides its Config.
type Origin struct {
	Data, Exclude   []string // what was read, and what of it was not looked at
	Kind            string   // of images that was asked for; empty: that of their modality
	Memory          int      // MiB of images
	Version, Commit string   // of the program
}

// record is run.json: what is known of the training in a folder.
type record struct {
	Version string   `json:"version"`
	Commit  string   `json:"commit,omitempty"`
	Preset  string   `json:"preset"`
	Seed    uint64   `json:"seed"`
	Data    []string `json:"data"`
	Exclude []string `json:"exclude,omitempty"`
	Kind    string   `json:"kind,omitempty"`
	// From tells the model that the training goes on from.
	From   string `json:"from,omitempty"`
	Memory int    `json:"memory_mib"`
	// Backends are what it was computed on so far.
	Backends []string `json:"backends,omitempty"`
	// Fingerprint is that of the slices.
	Fingerprint string    `json:"fingerprint"`
	Began       time.Time `json:"began"`
	// Finished are the stages, or StageAll, that came to their end.
	Finished []string `json:"finished"`
}

// Folder is the folder of one training: checkpoints, weights, log, report and the model.
// One process at a time has it, one goroutine at a time uses it.
type Folder struct {
	// Fresh tells that nothing had been trained in it.
	Fresh bool

	config  Config
	program string // version of this call's
	run     *record
	lock    *os.File
}

// OpenFolder makes c.Out ready and this process the only one that uses it, until Close.
// A folder that holds anything but a training is refused, and so are one that is in use,
// one whose training is finished, and one whose training must go on with c.Resume, or
// was begun with another preset, seed, memory or exclusion. The errors name the flags of
// denoised train.
func OpenFolder(c Config, o Origin) (f *Folder, err error) {
	if info, err := os.Stat(c.Out); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("--out %s is a file; name a folder", c.Out)
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return nil, fmt.Errorf("make --out: %w", err)
	}
	items, err := os.ReadDir(c.Out)
	if err != nil {
		return nil, fmt.Errorf("read --out: %w", err)
	}
	// Nothing is written to a folder that is somebody else's, not even the lock.
	known := func(e os.DirEntry) bool { return e.Name() == lockName || e.Name() == runFile }
	if len(items) > 0 && !slices.ContainsFunc(items, known) {
		return nil, fmt.Errorf("%s is not empty and holds no training; choose another --out", c.Out)
	}
	f = &Folder{config: c, program: o.Version}
	f.lock, err = lockfile.Take(filepath.Join(c.Out, lockName))
	switch {
	case errors.Is(err, lockfile.ErrLocked):
		return nil, fmt.Errorf("another training uses --out %s: wait for it, or choose another folder", c.Out)
	case err != nil:
		return nil, fmt.Errorf("write to --out: %w", err)
	}
	opened := f
	defer func() {
		if err != nil {
			opened.Close()
		}
	}()
	old, err := readRecord(f.path(runFile))
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case old != nil && slices.Contains(old.Finished, c.Stage):
		return nil, fmt.Errorf("%s holds a training of stage %s that is finished; choose another --out", c.Out, c.Stage)
	case old != nil && !c.Resume:
		return nil, fmt.Errorf("%s holds a training; go on with it by --resume, or choose another --out", c.Out)
	}
	if _, free, err := disk.Space(c.Out); err == nil && free < folderSpace {
		return nil, fmt.Errorf("%d MiB are free at %s; a training needs %d MiB", free>>20, c.Out, folderSpace>>20)
	}
	from := ""
	if c.From != "" {
		m, err := store.Open(c.From)
		if err != nil {
			return nil, fmt.Errorf("read --from: %w", err)
		}
		from = fmt.Sprintf("%s %s %s", m.Name(), m.Version(), m.Hash())
	}
	if old == nil {
		f.Fresh = true
		f.run = &record{Version: o.Version, Commit: o.Commit, Preset: c.Preset, Seed: c.Seed, Data: o.Data,
			Exclude: o.Exclude, Kind: o.Kind, From: from, Memory: o.Memory,
			Began: time.Now().UTC().Truncate(time.Second), Finished: []string{}}
		return f, nil
	}
	for _, was := range []struct{ what, old, now string }{
		{"--preset", old.Preset, c.Preset},
		{"--seed", fmt.Sprint(old.Seed), fmt.Sprint(c.Seed)},
		{"--kind", cmp.Or(old.Kind, "none"), cmp.Or(o.Kind, "none")},
		{"--from", cmp.Or(old.From, "none"), cmp.Or(from, "none")},
		{"--memory", fmt.Sprint(old.Memory), fmt.Sprint(o.Memory)},
		{"--exclude", fmt.Sprint(old.Exclude), fmt.Sprint(o.Exclude)},
	} {
		if was.old != was.now && !(was.what == "--exclude" && len(old.Exclude)+len(o.Exclude) == 0) {
			return nil, fmt.Errorf("the training in %s was begun with %s %s, not %s; "+
				"resume it with the same settings, or choose another --out", c.Out, was.what, was.old, was.now)
		}
	}
	f.run = old
	return f, nil
}

// Close lets others use the folder.
func (f *Folder) Close() error { return f.lock.Close() }

func (f *Folder) path(name string) string { return filepath.Join(f.config.Out, name) }

func readRecord(path string) (*record, error) {
	b, err := readLimited(path, maxRunFile)
	if err != nil {
		return nil, err
	}
	run := new(record)
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

// save writes run.json.
func (f *Folder) save() error {
	b, err := json.MarshalIndent(f.run, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(f.path(runFile), 0o644, func(w *os.File) error {
		_, err := w.Write(append(b, '\n'))
		return err
	})
}

// On notes what the training is computed on from now on, and returns what it was
// computed on before, if it is something else: then the result is not to the bit that of
// either alone.
func (f *Folder) On(backend string) (before []string) {
	if slices.Contains(f.run.Backends, backend) {
		return nil
	}
	before = slices.Clone(f.run.Backends)
	f.run.Backends = append(f.run.Backends, backend)
	return before
}

// Hold holds the slices against those that the training began with. Only live data may
// have changed.
func (f *Folder) Hold(set *Set, live bool) (changed bool, err error) {
	was := f.run.Fingerprint
	if changed = was != "" && was != set.Fingerprint(); changed && !live {
		return true, fmt.Errorf("the images are no longer those that the training in %s began with; "+
			"bring them back, or choose another --out", f.config.Out)
	}
	f.run.Fingerprint = set.Fingerprint()
	return changed, nil
}

// Runner is Run, or what stands in for it.
type Runner func(ctx context.Context, on kernels.GraphBackend, set *Set, c Config) (*Result, error)

// Trained is what came of a training.
type Trained struct {
	// Model is the folder of the model and Hash its hash, empty where no student is yet.
	Model, Hash string
	// Stages are those of the model, also of earlier calls.
	Stages []store.Stage
}

// Train trains as the Config says and writes log, report and, once there is a student,
// the model; card is what its card begins with.
func (f *Folder) Train(ctx context.Context, run Runner, on kernels.GraphBackend, set *Set, card store.Card,
) (*Trained, error) {
	if err := f.save(); err != nil {
		return nil, err
	}
	log, err := OpenLog(f.path(logFile))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := f.config
	c.Log = log
	result, err := run(ctx, on, set, c)
	if err != nil {
		if reported := f.report(ctx, set, nil); reported != nil {
			err = errors.Join(err, reported)
		}
		if errors.Is(err, ErrStopped) || ctx.Err() != nil {
			return nil, fmt.Errorf("%w; the checkpoints are in %s: go on with the same command and --resume", err,
				c.Out)
		}
		return nil, fmt.Errorf("%w; what was trained until the last checkpoint is in %s: "+
			"when that is mended, go on with the same command and --resume", err, c.Out)
	}
	t := &Trained{Stages: f.stages(result)}
	var m *models.Model
	if result.Networks[StageStudent] != nil {
		t.Model = f.path(modelName)
		saved, err := store.Save(t.Model, f.card(card, set, t.Stages), result.Networks, true)
		if err != nil {
			return nil, err
		}
		m, t.Hash = &models.Model{Model: saved}, saved.Hash()
	}
	if err := f.report(ctx, set, m); err != nil {
		return nil, err
	}
	f.run.Finished = append(f.run.Finished, c.Stage)
	return t, f.save()
}

// report writes the report; without a model it is that of a training that is not
// finished. It does not need ctx to be alive.
func (f *Folder) report(ctx context.Context, set *Set, m *models.Model) error {
	entries, err := ReadLog(f.path(logFile))
	if err != nil {
		return err
	}
	r := &Report{Program: f.program, Preset: f.run.Preset, Seed: f.run.Seed, Began: f.run.Began,
		Seconds: seconds(entries, ""), Summary: set.Summary, Entries: entries}
	if m != nil {
		r.Card = &m.Card
		for i := range min(examples, len(set.Validation)) {
			s := &set.Validation[i*len(set.Validation)/min(examples, len(set.Validation))]
			img := models.Image{Width: s.Width, Height: s.Height, Pixels: s.Pixels, Skip: s.Skip}
			d, err := m.Denoise(context.WithoutCancel(ctx), img, models.Options{Strength: 1})
			if err != nil {
				return fmt.Errorf("denoise slice %d of %s for the report: %w", s.Index, s.Source, err)
			}
			r.Examples = append(r.Examples, Example{Source: s.Source, Index: s.Index, Width: s.Width, Height: s.Height,
				Before: s.Pixels, After: d.Pixels})
		}
	}
	return r.Write(f.config.Out)
}
