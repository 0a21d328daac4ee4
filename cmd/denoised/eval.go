package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/diffdenoise/denoised/models/store"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/eval"
	"github.com/diffdenoise/denoised/models/simulate"
)

// Bounds of eval's numbers.
const (
	maxEvalSlices      = 1000
	maxEvalRepetitions = 1000
)

// evaluation is one call of eval.
type evaluation struct {
	data, out           string
	model, kind         string
	compare             []string
	only                []string
	repeats, pairs      []string
	quality, rows       string
	backend             string
	slices, repetitions int
	shrink              int
	seed                uint64
	asJSON, asMarkdown  bool
}

func newEvalCmd() *cobra.Command {
	var o evaluation
	var names []string
	for _, r := range simulate.Rows() {
		names = append(names, "  "+r.Name)
	}
	var chains []string
	for _, r := range simulate.ChainRows() {
		chains = append(chains, "  "+r.Name)
	}
	var detectors []string
	for _, r := range simulate.DetectorRows() {
		detectors = append(detectors, "  "+r.Name)
	}
	cmd := &cobra.Command{
		Use:   "eval --data DIR",
		Short: "Measure the quality of a model on your own images",
		Long: `Measure the quality of a model on your own images.

DIR is a folder (with its subfolders) of NIfTI volumes, DICOM series or grey PNG
images, or one of them. Three protocols are used, whose numbers must not be
compared:

  noise         noise of known kinds is added to slices, which are taken for
                clean; the result is compared with the slice
  scanner       a slice is sent through a simulated scanner: coils, parallel
                imaging, k-space, filters and storage; or a radiograph is taken
                by a simulated detector; the result is compared with what is
                stored without noise
  repetitions   a 4-D NIfTI volume is taken for repetitions of one acquisition;
                one is denoised and compared with the mean of the others.
                --repeats names such files beside DIR, --pair two files of the
                same slices (DICOM, NIfTI or PNG)

Beside the model, non-local means and total variation are scored: at a strength
that they estimate themselves, and told the true noise and tuned for each kind of it
on slices that are not scored. Scores are PSNR and SSIM, of whole slices and in
tissue, how much is taken off at edges against flat tissue, and what became of the
slices at the quality gate.

The tables go to the output. With --out a folder gets results.json, results.csv,
report.md, report.html, plots and image panels (PNG).

Kinds of noise for --rows:
` + strings.Join(names, "\n") + `

scanners:
` + strings.Join(chains, "\n") + `

and detectors of radiographs:
` + strings.Join(detectors, "\n"),
		Example: `  denoised eval --data volumes/ --out report/
  denoised eval --data t1.nii.gz --rows "Rician 6/255,correlated 1.2" --slices 8
  denoised eval --repeats epi.nii.gz --pair first.dcm,second.dcm`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.data == "" && len(o.repeats) == 0 && len(o.pairs) == 0:
				return usagef("eval: no images; name their folder with --data, or --repeats or --pair")
			case o.kind != "" && !slices.Contains(store.Kinds, store.Kind(o.kind)):
				return usagef("eval: --kind %q; choose %s or %s", o.kind, store.MR, store.Radiograph)
			case o.asJSON && o.asMarkdown:
				return usagef("eval: --json and --markdown exclude each other")
			case o.slices < 1 || o.slices > maxEvalSlices:
				return usagef("eval: --slices %d is outside 1 to %d", o.slices, maxEvalSlices)
			case o.shrink < 1 || o.shrink > eval.MaxShrink:
				return usagef("eval: --shrink %d is outside 1 to %d", o.shrink, eval.MaxShrink)
			case o.repetitions < 1 || o.repetitions > maxEvalRepetitions:
				return usagef("eval: --repetitions %d is outside 1 to %d", o.repetitions, maxEvalRepetitions)
			}
			if err := checkBackend("eval", o.backend); err != nil {
				return err
			}
			if err := o.run(cmd); err != nil {
				return fmt.Errorf("eval: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.data, "data", "", "folder or file with the images")
	f.StringArrayVar(&o.repeats, "repeats", nil, "4-D NIfTI file of one acquisition, repeated; may stand several times")
	f.StringArrayVar(&o.pairs, "pair", nil, "A,B: two files of one acquisition, repeated; may stand several times")
	f.StringVarP(&o.out, "out", "o", "", "folder of the report; none: no files are written")
	f.StringVar(&o.model, "model", "",
		"model name or folder (default: by modality, radiograph for CR and DX, else default)")
	f.StringArrayVar(&o.compare, "compare", nil,
		"a model whose fast results are scored beside; may stand several times")
	f.StringVar(&o.kind, "kind", "", "mr or radiograph: what images without a modality are (default: mr)")
	f.StringSliceVar(&o.only, "only", nil,
		"of DIR, files and folders to look at, by name or pattern such as sub-0* (default: all)")
	f.StringVar(&o.quality, "quality", "fast", "fast, high or both as fast,high (high takes long)")
	f.StringVar(&o.rows, "rows", "",
		"kinds of noise and scanners, separated by commas (default: all that fit the images)")
	f.IntVar(&o.slices, "slices", 3, "slices of each volume that are scored")
	f.IntVar(&o.repetitions, "repetitions", 3, "repetitions of each slice that are scored")
	f.IntVar(&o.shrink, "shrink", 1, "make slices smaller by this factor before noise is added, for grainy images")
	f.Uint64Var(&o.seed, "seed", 1, "seed of the simulated noise and of high")
	backendFlag(cmd, &o.backend)
	f.BoolVar(&o.asJSON, "json", false, "print the report as JSON")
	f.BoolVar(&o.asMarkdown, "markdown", false, "print the tables as Markdown")
	return cmd
}

func (o *evaluation) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	rows, chains, detectors, err := parseRows(o.rows)
	if err != nil {
		return err
	}
	on, err := useBackend(cmd, o.backend, cpu.SelectInference)
	if err != nil {
		return err
	}
	defer on.close()
	c := eval.NewCollector(o.slices, o.shrink)
	kind, err := o.collect(ctx, c)
	if err != nil {
		return err
	}
	name := kind.Model()
	if o.model != "" {
		name = findModel(o.model)
	}
	m, err := models.OpenOn(on.GraphBackend, name)
	if err != nil {
		return err
	}
	ours, err := ownMethods(m, o.quality, o.seed)
	if err != nil {
		return err
	}
	cfg := eval.Config{Methods: eval.Classical(), Rows: rows, Chains: chains, Detectors: detectors, Seed: o.seed,
		Repetitions: o.repetitions}
	for _, name := range o.compare {
		other, err := models.OpenOn(on.GraphBackend, findModel(name))
		if err != nil {
			return fmt.Errorf("--compare: %w", err)
		}
		fast, err := ownMethods(other, "fast", o.seed)
		if err != nil {
			return err
		}
		fast[0].Name = "fast, " + name
		cfg.Methods = append(cfg.Methods, fast[0])
	}
	for _, own := range ours {
		cfg.Methods, cfg.Ours = append(cfg.Methods, own), append(cfg.Ours, own.Name)
	}
	bar := &progress{w: cmd.ErrOrStderr()}
	cfg.Progress = func(done, total int) { bar.at(done, total, "steps") }
	report, err := eval.Run(ctx, c, cfg)
	bar.done()
	if err != nil {
		return err
	}
	report.Program, report.Model, report.Hash = cmd.Root().Version, strings.TrimSpace(m.Name()+" "+m.Version()), m.Hash()
	if o.out != "" {
		if err := report.Write(o.out); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	if o.asJSON {
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		return e.Encode(report)
	}
	if o.asMarkdown {
		return report.Markdown(cmd.OutOrStdout())
	}
	return o.print(cmd.OutOrStdout(), report)
}

// collect gives the images to the collector, and says of which kind they are. What is named one by
// one must be of use.
func (o *evaluation) collect(ctx context.Context, c *eval.Collector) (store.Kind, error) {
	kinds := map[store.Kind]bool{}
	read := func(path string, exclude func(string) bool, add func(dataset.Volume), skip func(dataset.Skip)) error {
		if o.out != "" {
			if err := apart(path, o.out); err != nil {
				return err
			}
		}
		_, err := readData(ctx, path, exclude, func(v dataset.Volume) error {
			if v.Modality == "" && store.Kind(o.kind) == store.Radiograph {
				v.Modality = "DX"
			}
			kinds[store.KindOf(v.Modality)] = true
			add(v)
			return nil
		}, skip)
		return err
	}
	if o.data != "" {
		if err := read(o.data, o.excluded, c.Add, c.Skip); err != nil {
			return "", err
		}
	}
	// one reads a file whose volumes are to be repetitions; sources are named by name.
	one := func(path, name string, first int) (volumes int, err error) {
		var why []string
		err = read(path, nil, func(v dataset.Volume) {
			v.Source = fmt.Sprintf("%s#%d", name, first+volumes)
			volumes++
			c.Add(v)
		}, func(s dataset.Skip) { why = append(why, s.Reason+" "+s.Detail) })
		if err == nil && volumes == 0 {
			err = fmt.Errorf("%s: no images: %s", path, strings.Join(why, ", "))
		}
		return volumes, err
	}
	for _, path := range o.repeats {
		n, err := one(path, filepath.Base(path), 0)
		if err != nil {
			return "", err
		}
		if n < 2 {
			return "", fmt.Errorf("--repeats %s: one volume; a score needs two", path)
		}
	}
	for _, pair := range o.pairs {
		a, b, ok := strings.Cut(pair, ",")
		if !ok || a == "" || b == "" || strings.Contains(b, ",") {
			return "", usagef("eval: --pair %q is not A,B", pair)
		}
		name := filepath.Base(filepath.Dir(a)) + "/" + filepath.Base(a) + " and " + filepath.Base(b)
		for k, path := range []string{a, b} {
			n, err := one(path, name, k)
			if err != nil {
				return "", err
			}
			if n != 1 {
				return "", fmt.Errorf("--pair %s: %s holds %d volumes, one is needed", pair, path, n)
			}
		}
	}
	switch {
	case len(kinds) > 1 && o.model == "":
		return "", errors.New("the images are of MR and of radiographs, which have a model each: evaluate them one " +
			"after the other, or name one with --model")
	case kinds[store.Radiograph]:
		return store.Radiograph, nil
	}
	return store.MR, nil
}

// excluded tells whether --only leaves a source out.
func (o *evaluation) excluded(source string) bool { return len(o.only) > 0 && !named(o.only, source) }

// ownMethods are the model's methods for the qualities asked for.
func ownMethods(m *models.Model, quality string, seed uint64) ([]eval.Method, error) {
	var list []eval.Method
	for name := range strings.SplitSeq(quality, ",") {
		name = strings.TrimSpace(name)
		if slices.ContainsFunc(list, func(m eval.Method) bool { return m.Name == name }) {
			return nil, usagef("eval: --quality names %s twice", name)
		}
		var run func(ctx context.Context, img models.Image) (*models.Result, error)
		switch name {
		case "fast":
			run = func(ctx context.Context, img models.Image) (*models.Result, error) {
				return m.Denoise(ctx, img, models.Options{Strength: 1})
			}
		case "high":
			if !m.HasHigh() {
				return nil, noHigh(m)
			}
			run = func(ctx context.Context, img models.Image) (*models.Result, error) {
				return m.High(ctx, img, models.HighOptions{Strength: 1, Seed: seed})
			}
		default:
			return nil, usagef("eval: --quality %q; choose fast, high or fast,high", name)
		}
		list = append(list, eval.FromModel(name, run))
	}
	return list, nil
}

// parseRows finds the rows of a list. Names have commas in them, so the longest
// name that fits is taken. An empty list is nil.
func parseRows(list string) (rows []simulate.Row, chains []simulate.ChainRow, detectors []simulate.DetectorRow,
	err error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil, nil, nil
	}
	parts := strings.Split(list, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	seen := map[string]bool{}
	for len(parts) > 0 {
		n := len(parts)
		for ; n > 0; n-- {
			name := strings.Join(parts[:n], ", ")
			row, err := simulate.Find(name)
			chain, err2 := simulate.FindChain(name)
			detector, err3 := simulate.FindDetector(name)
			if err != nil && err2 != nil && err3 != nil {
				continue
			}
			if seen[name] {
				return nil, nil, nil, usagef("eval: --rows names %q twice", name)
			}
			seen[name] = true
			switch {
			case err == nil:
				rows = append(rows, row...)
			case err2 == nil:
				chains = append(chains, chain)
			default:
				detectors = append(detectors, detector)
			}
			break
		}
		if n == 0 {
			return nil, nil, nil, usagef(
				"eval: --rows: there is no kind of noise, scanner or detector %q; the help lists them", parts[0])
		}
		parts = parts[n:]
	}
	return rows, chains, detectors, nil
}

// apart refuses an output folder that is the input or lies in it.
func apart(in, out string) error {
	inside, err := dataset.Inside(out, in)
	if err != nil {
		return err
	}
	if inside {
		return fmt.Errorf("the output %s lies in the input; choose another --out", out)
	}
	if info, err := os.Stat(out); err == nil && !info.IsDir() {
		return errors.New("the output " + out + " is a file; --out names a folder")
	}
	return nil
}

// print writes the tables and what was left out.
func (o *evaluation) print(w io.Writer, r *eval.Report) error {
	for i := range r.Tables {
		t := &r.Tables[i]
		fmt.Fprintf(w, "%s\n", t.Title())
		for _, g := range r.Grids(t) {
			fmt.Fprintf(w, "\n%s\n", g.Title)
			tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			for _, line := range append([][]string{g.Head}, g.Lines...) {
				fmt.Fprintln(tw, strings.Join(line, "\t"))
			}
			if err := tw.Flush(); err != nil {
				return err
			}
		}
		fmt.Fprintln(w)
	}
	var times []string
	for _, name := range r.Methods {
		if s, ok := r.Seconds[name]; ok {
			times = append(times, fmt.Sprintf("%s %.3f", name, s))
		}
	}
	fmt.Fprintf(w, "seconds per slice: %s\n", strings.Join(times, ", "))
	reasons := map[string]int{}
	for _, s := range r.Skipped {
		reasons[s.Reason]++
	}
	var left []string
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		left = append(left, fmt.Sprintf("%s %d", reason, reasons[reason]))
	}
	if len(left) > 0 {
		hint := ""
		if o.out == "" {
			hint = "; --out or --json lists them"
		}
		fmt.Fprintf(w, "left out: %s%s\n", strings.Join(left, ", "), hint)
	}
	if o.out != "" {
		_, err := fmt.Fprintf(w, "report: %s\n", filepath.Join(o.out, "report.html"))
		return err
	}
	return nil
}
