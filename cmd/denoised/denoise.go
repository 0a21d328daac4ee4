package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/daemon"
	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/diffusion"
	"github.com/diffdenoise/denoised/models/store"
	"github.com/diffdenoise/denoised/models/train"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/offline"
)

func newDenoiseCmd() *cobra.Command {
	var (
		out, quality, model, backend string
		strength                     float64
		asJSON, adapt                bool
		steps                        int
		seed                         uint64
	)
	cmd := &cobra.Command{
		Use:   "denoise IN --out OUT",
		Short: "Denoise a DICOM file or folder or a NIfTI volume, offline",
		Long: `Denoise a DICOM file or folder or a NIfTI volume, offline.

IN is a DICOM file, a folder of DICOM files (with its subfolders) or a NIfTI-1
volume (.nii, .nii.gz; 3-D or 4-D, slices along the third axis). OUT is of the
same kind; a folder's tree is mirrored under OUT. DICOM output is derived
objects with new UIDs in a new series; a NIfTI volume keeps its header, so its
type and scaling too, and voxels that are not finite (NaN) stay as they are.

The quality high is the full method: blind-spot network, conditional diffusion and
stabilized sampling. It takes 50 to 100 times as long as fast. With --adapt the fast
network is first fitted to every series or volume, for a minute or two; where that
is not better on slices that are held out, by Stein's estimate of the error, the
network stays as it is.

What must not be denoised (colour, phase, maps, compressed pixels, ...) is
copied unchanged and listed with its reason. The input is never overwritten, and
a file appears under OUT only when it is complete; one of the same name is replaced.`,
		Example: `  denoised denoise series/ --out clean/
  denoised denoise t1.nii.gz --out t1_clean.nii.gz --strength 0.7
  denoised denoise t1.nii.gz --out t1_best.nii.gz --quality high`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case out == "":
				return usagef("denoise: no output; name it with --out")
			case !(strength >= 0 && strength <= 1):
				return usagef("denoise: --strength %g is outside 0 to 1", strength)
			case quality != "fast" && quality != "high":
				return usagef("denoise: --quality %q; choose fast or high", quality)
			case steps < 0 || steps > diffusion.MaxSteps || steps > 0 && quality != "high":
				return usagef("denoise: --steps %d; 1 to %d, with --quality high", steps, diffusion.MaxSteps)
			case adapt && quality != "high":
				return usagef("denoise: --adapt is for --quality high")
			}
			if err := checkBackend("denoise", backend); err != nil {
				return err
			}
			on, err := useBackend(cmd, backend, cpu.SelectInference)
			if err != nil {
				return fmt.Errorf("denoise: %w", err)
			}
			defer on.close()
			// A model that is named is for all images; else each is for its kind of them.
			byKind := map[store.Kind]*models.Model{}
			for _, kind := range store.Kinds {
				name := kind.Model()
				if model != "" {
					name = findModel(model)
				}
				if byKind[kind], err = models.OpenOn(on.GraphBackend, name); err != nil {
					return fmt.Errorf("denoise: %w", err)
				}
			}
			if m := byKind[store.MR]; quality == "high" && !m.HasHigh() {
				return fmt.Errorf("denoise: %w", noHigh(m))
			}
			bar := &progress{w: cmd.ErrOrStderr()}
			methods := map[store.Kind]offline.Method{}
			for kind, m := range byKind {
				methods[kind] = offlineMethod(m, quality, strength, steps, seed)
				if by := methods[kind]; adapt && by.Measure != nil {
					by.Fit = fitted(on.GraphBackend, m, by, strength, steps, seed, cmd.ErrOrStderr())
					methods[kind] = by
				}
			}
			report, err := offline.Run(cmd.Context(), args[0], out, offline.Options{
				Method:   methods[store.MR],
				For:      func(modality string) offline.Method { return methods[store.KindOf(modality)] },
				Strength: strength, Quality: quality, Version: cmd.Root().Version, Progress: bar.at,
			})
			bar.done()
			if err != nil {
				return fmt.Errorf("denoise %s: %w", args[0], err)
			}
			if err := printDenoised(cmd.OutOrStdout(), report, asJSON); err != nil {
				return err
			}
			if n := report.Failed; n > 0 {
				return fmt.Errorf("denoise %s: %d of %d files could not be denoised; the report names them",
					args[0], n, len(report.Files))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&out, "out", "o", "", "where the result goes (required)")
	f.StringVar(&quality, "quality", "fast", "fast or high")
	f.IntVar(&steps, "steps", 0, "of the sampling, with --quality high (default: what measured best)")
	f.Uint64Var(&seed, "seed", 0, "of the noise that sampling starts from, with --quality high")
	f.BoolVar(&adapt, "adapt", false, "with --quality high: fit the network to every series first")
	f.Float64Var(&strength, "strength", 1, "0 (unchanged) to 1 (fully denoised)")
	f.StringVar(&model, "model", "",
		"model name or folder (default: by modality, radiograph for CR and DX, else default)")
	backendFlag(cmd, &backend)
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	return cmd
}

// method tells results of different steps and seeds apart from the daemon's.
func method(steps int, seed uint64) string {
	text := models.Revision
	if steps > 0 && steps != models.DefaultSteps {
		text += fmt.Sprintf(" steps %d", steps)
	}
	if seed != 0 {
		text += fmt.Sprintf(" seed %d", seed)
	}
	return text
}

// noHigh is the error for a model without the networks for quality high.
func noHigh(m *models.Model) error {
	return fmt.Errorf("model %s has a network for --quality fast but none for high; use --quality fast", m.Name())
}

// offlineMethod is a model as package offline wants it.
func offlineMethod(m *models.Model, quality string, strength float64, steps int, seed uint64) offline.Method {
	by := offline.Method{Denoise: slicesBy(m, quality, strength, steps, seed),
		Model: derive.ModelInfo{Name: m.Name(), Version: m.Version(), Hash: m.Hash(), Method: method(steps, seed)}}
	if strength > 0 { // else nothing is made of it
		by.Measure = func(_ context.Context, img dataset.Image) (evidence.Sums, error) {
			s, err := m.Measure(models.Image(img))
			return daemon.Told(s), err
		}
	}
	return by
}

// fitted returns what fits a model's method to a series. Too few slices are no error: the method
// stays what it is.
func fitted(on kernels.GraphBackend, m *models.Model, by offline.Method, strength float64, steps int, seed uint64,
	told io.Writer) func(context.Context, []dataset.Image, evidence.Sums) (offline.Method, offline.Fit, error) {
	return func(ctx context.Context, images []dataset.Image, known evidence.Sums) (offline.Method, offline.Fit, error) {
		list := make([]models.Image, len(images))
		for i, img := range images {
			list[i] = models.Image(img)
		}
		lines := &progress{w: struct{ io.Writer }{told}} // beside the bar of the files
		a, err := train.Adapt(ctx, on, m, list, daemon.Known(known),
			func(done, total int) { lines.at(done, total, "steps of fitting") })
		switch {
		case errors.Is(err, train.ErrTooFew):
			return by, offline.Fit{Slices: len(list), Why: err.Error()}, nil
		case err != nil:
			return by, offline.Fit{}, err
		}
		line := offline.Fit{Slices: a.Slices, Fitted: a.Fitted, Before: a.Before, After: a.After}
		if !a.Fitted {
			line.Why = "not better on the slices that were held out"
			return by, line, nil
		}
		fit := offlineMethod(a.Model, "high", strength, steps, seed)
		fit.Model.Method += " adapted " + a.Hash[:16] // other slices give other weights
		return fit, line, nil
	}
}

// slicesBy denoises slices with a model as the flags say.
func slicesBy(m *models.Model, quality string, strength float64, steps int, seed uint64,
) func(context.Context, dataset.Image, evidence.Sums) (*offline.Result, error) {
	return func(ctx context.Context, img dataset.Image, known evidence.Sums) (*offline.Result, error) {
		series := daemon.Known(known)
		var r *models.Result
		var err error
		if quality == "high" {
			if !m.HasHigh() {
				return nil, noHigh(m)
			}
			r, err = m.High(ctx, models.Image(img), models.HighOptions{Strength: strength, Series: series,
				Steps: steps, Seed: seed})
		} else {
			r, err = m.Denoise(ctx, models.Image(img), models.Options{Strength: strength, Series: series})
		}
		if err != nil {
			return nil, err
		}
		why, share := r.Checked()
		return &offline.Result{Pixels: r.Pixels, Sigma: r.Sigma, Untouched: r.Untouched != "", Gate: why,
			Share: share}, nil
	}
}

func printDenoised(out io.Writer, r *offline.Report, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range r.Files {
		switch {
		case f.Error != "":
			fmt.Fprintf(t, "failed\t%s\t%s\n", f.In, f.Error)
		case !f.Denoised:
			fmt.Fprintf(t, "unchanged\t%s\t%s\n", f.In, strings.TrimSuffix(f.Reason+": "+f.Detail, ": "))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, f := range r.Fits {
		what := f.Why
		if f.Fitted {
			what = fmt.Sprintf("expected error %.3f of the noise's power, was %.3f", f.After, f.Before)
		}
		fmt.Fprintf(out, "fitted to %s, %d slices: %s\n", f.Series, f.Slices, what)
	}
	if r.Clamped > 0 {
		fmt.Fprintf(out, "%d pixels are beyond what their files can hold and have the nearest value that is not\n",
			r.Clamped)
	}
	_, err := fmt.Fprintf(out, "%d files denoised (%d slices; copies of %d without noise that can be treated "+
		"and %d that the quality check held back, %d in part), %d unchanged, %d failed, %.1f s\n",
		r.Denoised, r.Slices, r.Untouched, r.Held, r.InPart, r.Unchanged, r.Failed, r.Seconds)
	return err
}
