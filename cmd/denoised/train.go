package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/diffdenoise/denoised/models/store"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/train"
)

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
	kind, from             string
	asJSON                 bool
	asWritten, distil      bool

	cmd *cobra.Command
	run train.Runner // tests have a quicker one than train.Run
}

// trainReport is what train prints as JSON; it is stable.
type trainReport struct {
	Out     string        `json:"out"`
	Model   string        `json:"model,omitempty"` // folder
	Hash    string        `json:"model_hash,omitempty"`
	Preset  string        `json:"preset"`
	Seed    uint64        `json:"seed"`
	Data    train.Summary `json:"data"`
	Stages  []store.Stage `json:"stages"`
	Seconds float64       `json:"seconds"` // of this call
}

func newTrainCmd() *cobra.Command { return trainCmd(train.Run) }

func trainCmd(run train.Runner) *cobra.Command {
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
			case o.kind != "" && !slices.Contains(store.Kinds, store.Kind(o.kind)):
				return usagef("train: --kind %q; choose %s or %s", o.kind, store.MR, store.Radiograph)
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
				if err := store.CheckName(o.name); err != nil {
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
	f.StringArrayVar(&o.data, "data", nil,
		"folder or file with the images, or state_dir of a daemon (required, may be repeated)")
	f.StringVarP(&o.out, "out", "o", "", "folder of checkpoints, log, report and model (required)")
	f.StringVar(&o.stage, "stage", train.StageAll, "meter, bsn, student, diffusion or all")
	f.StringVar(&o.kind, "kind", "", "mr or radiograph: which noise the images have (default: by their modality, mr "+
		"where none is known)")
	f.StringVar(&o.from, "from", "", "model, by name or folder, whose networks the training goes on from (preset tune)")
	f.StringVar(&o.preset, "preset", "default", strings.Join(presets, ", "))
	backendFlag(cmd, &o.backend)
	f.BoolVar(&o.resume, "resume", false, "go on with the training in --out")
	f.DurationVar(&o.limit, "time", 0, "stop after this time, to be resumed (default: when it is finished)")
	f.Uint64Var(&o.seed, "seed", 1, "seed of everything random")
	f.IntVar(&o.workers, "workers", 0, "threads; the result is the same for any number (default: one per core)")
	f.IntVar(&o.memory, "memory", train.DefaultMaxBytes>>20,
		"MiB of images to keep in memory; of more, a part is chosen at random")
	f.StringSliceVar(&o.exclude, "exclude", nil, "files and folders to leave out, by name or pattern such as sub-0*")
	f.StringVar(&o.name, "name", "", "name of the model (default: the one of --card, else that of --out)")
	f.StringVar(&o.card, "card", "",
		"JSON file with name, version, licence, limits and training.data for the model's card")
	f.BoolVar(&o.asWritten, "as-written", false,
		"train the diffusion network as arXiv 2504.00264 writes it, to compare with")
	f.BoolVar(&o.distil, "distil", false, "with --stage student: learn from what the networks in --out make of the images")
	f.BoolVar(&o.asJSON, "json", false, "print the result as JSON")
	return cmd
}

// do trains, from the look at --out to the report.
func (o *training) do(ctx context.Context) error {
	began := time.Now()
	on, err := useBackend(o.cmd, o.backend, cpu.Select)
	if err != nil {
		return err
	}
	defer on.close()
	var card store.Card
	if o.card != "" {
		if card, err = train.ReadCard(o.card); err != nil {
			return fmt.Errorf("read --card: %w", err)
		}
	}
	if o.name != "" {
		card.Name = o.name
	}
	bar := newTrainProgress(o.cmd.ErrOrStderr())
	c := train.Config{Stage: o.stage, Preset: o.preset, Seed: o.seed, Out: o.out, Resume: o.resume, Workers: o.workers,
		From: findModel(o.from), AsWritten: o.asWritten, Distil: o.distil, Progress: bar.step}
	if o.limit > 0 {
		c.Deadline = began.Add(o.limit)
	}
	b := thisBuild()
	folder, err := train.OpenFolder(c, train.Origin{Data: o.data, Exclude: o.exclude, Kind: o.kind, Memory: o.memory,
		Version: b.Version, Commit: b.Revision})
	if err != nil {
		return err
	}
	defer folder.Close()
	if folder.Fresh && o.resume {
		fmt.Fprintf(o.cmd.ErrOrStderr(), "nothing to resume in %s: a new training begins\n", o.out)
	}
	if before := folder.On(on.Name()); len(before) > 0 {
		fmt.Fprintf(o.cmd.ErrOrStderr(), "computed on %s so far, from here on on %s: "+
			"the result is not to the bit that of either alone\n", strings.Join(before, " and "), on.Name())
	}
	set, err := o.readData(ctx, folder)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("stopped before the training began: %w", err)
		}
		return err
	}
	made, err := folder.Train(ctx, o.run, on.GraphBackend, set, card)
	bar.done()
	if err != nil {
		return err
	}
	return o.print(&trainReport{Out: o.out, Model: made.Model, Hash: made.Hash, Preset: o.preset, Seed: o.seed,
		Data: set.Summary, Stages: made.Stages, Seconds: time.Since(began).Seconds()})
}

// readData reads the images, tells what was left out, and holds them against those
// of the run that is resumed.
func (o *training) readData(ctx context.Context, folder *train.Folder) (*train.Set, error) {
	errOut := o.cmd.ErrOrStderr()
	b := train.NewBuilder(train.Options{MaxBytes: int64(o.memory) << 20, Seed: o.seed, Workers: o.workers,
		Kind: store.Kind(o.kind)})
	live := false
	for i, root := range o.data {
		if inside, err := dataset.Inside(o.out, root); err != nil {
			return nil, fmt.Errorf("read --data: %w", err)
		} else if inside {
			return nil, fmt.Errorf("--out %s lies in --data %s; choose another --out", o.out, root)
		}
		prefix := ""
		if len(o.data) > 1 {
			prefix = fmt.Sprintf("%d:", i+1)
		}
		fmt.Fprintf(errOut, "reading %s\n", root)
		spooled, err := readData(ctx, root, o.excluded, func(v dataset.Volume) error {
			v.Source = prefix + v.Source
			return b.Add(ctx, v)
		}, func(s dataset.Skip) {
			s.Source = prefix + s.Source
			b.Skip(s)
		})
		if err != nil {
			return nil, fmt.Errorf("read --data %s: %w", root, err)
		}
		live = live || spooled
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
	changed, err := folder.Hold(set, live)
	if err != nil {
		return nil, err
	}
	if changed {
		fmt.Fprintln(errOut, "the images are no longer those that the training began with: "+
			"it goes on with those that are there now")
	}
	return set, nil
}

// excluded tells whether --exclude names a source, or a folder that it lies in: by
// its path, or by one of the names in it.
func (o *training) excluded(source string) bool { return named(o.exclude, source) }

// named tells whether one of the patterns is that of a source, of a folder that it lies in, or of one
// of the names in its path.
func named(patterns []string, source string) bool {
	parts := strings.Split(source, "/")
	for i := range parts {
		for _, pattern := range patterns {
			whole, _ := path.Match(strings.TrimSuffix(pattern, "/"), strings.Join(parts[:i+1], "/"))
			name, _ := path.Match(strings.TrimSuffix(pattern, "/"), parts[i])
			if whole || name {
				return true
			}
		}
	}
	return false
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
		for _, k := range slices.Sorted(maps.Keys(s.Scores)) {
			scores = append(scores, fmt.Sprintf("%s %.4g", k, s.Scores[k]))
		}
		took := time.Duration(s.Seconds * float64(time.Second)).Round(time.Second)
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\n", s.Network, s.Parameters, s.Steps, took, strings.Join(scores, ", "))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "report: %s\n", filepath.Join(r.Out, "report.html"))
	if r.Model == "" {
		_, err := fmt.Fprintf(out, "there is no model before the stages %s are trained\n", strings.Join(train.Stages, ", "))
		return err
	}
	_, err := fmt.Fprintf(out, "model: %[1]s\n"+
		"next: denoised eval --data DIR --model %[1]s; denoised model install %[1]s --as NAME\n", r.Model)
	return err
}
