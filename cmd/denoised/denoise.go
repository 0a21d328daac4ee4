package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/diffusion"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// maxDenoiseFiles bounds the files of one folder.
const maxDenoiseFiles = 1_000_000

// denoiseReport is what denoise did; its JSON is stable.
type denoiseReport struct {
	Model     derive.ModelInfo `json:"model"`
	Strength  float64          `json:"strength"`
	Quality   string           `json:"quality"`
	Seconds   float64          `json:"seconds"`
	Denoised  int              `json:"denoised"`  // files
	Unchanged int              `json:"unchanged"` // files, copied as they were
	Failed    int              `json:"failed"`    // files, copied as they were if that was possible
	Slices    int              `json:"slices"`    // slices and frames looked at in them
	Untouched int              `json:"untouched"` // of these, left as they were: no noise was found that can be treated
	Held      int              `json:"held"`      // of these, left as they were: a quality check held the result back
	InPart    int              `json:"in_part"`   // of these, denoised in part: the share that a quality check let through
	Files     []denoisedFile   `json:"files"`
}

// denoisedFile is one line of the report.
type denoisedFile struct {
	In       string `json:"in"`
	Out      string `json:"out,omitempty"`
	Denoised bool   `json:"denoised"`
	Reason   string `json:"reason,omitempty"` // why it was copied unchanged, or left out
	Detail   string `json:"detail,omitempty"`
	Error    string `json:"error,omitempty"`
	tally
}

// tally is what became of the slices of a file.
type tally struct {
	Slices    int     `json:"slices,omitempty"`
	Untouched int     `json:"untouched,omitempty"` // of Slices, and so are the next two
	Held      int     `json:"held,omitempty"`
	InPart    int     `json:"in_part,omitempty"`
	Remark    string  `json:"remark,omitempty"` // what the quality check said of the worst slice
	Sigma     float64 `json:"sigma,omitempty"`  // median noise over the slices, stored units
}

// count counts the results of the slices of a file, in their order.
func count(results []*models.Result) (t tally) {
	var checked derive.Checked
	sigmas := make([]float64, len(results))
	for i, r := range results {
		sigmas[i] = r.Sigma
		why, share := r.Checked()
		checked.Add(why, share)
		switch {
		case why == "" && r.Untouched != "":
			t.Untouched++
		case why != "" && share > 0:
			t.InPart++
		case why != "":
			t.Held++
		}
	}
	t.Slices, t.Sigma, t.Remark = len(results), median(sigmas), checked.String()
	return t
}

func newDenoiseCmd() *cobra.Command {
	var (
		out, quality, model, backend string
		strength                     float64
		asJSON                       bool
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
objects with new UIDs in a new series; a NIfTI volume keeps its header, and
voxels that are not finite (NaN) stay as they are.

The quality high is the full method: blind-spot network, conditional diffusion and
stabilized sampling. It takes 50 to 100 times as long as fast.

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
			}
			if err := checkBackend("denoise", backend); err != nil {
				return err
			}
			on, err := useBackend(cmd, backend, cpu.SelectInference)
			if err != nil {
				return fmt.Errorf("denoise: %w", err)
			}
			defer on.close()
			m, err := models.OpenOn(on.GraphBackend, findModel(model))
			if err != nil {
				return fmt.Errorf("denoise: open model %s: %w", model, err)
			}
			if quality == "high" && !m.HasHigh() {
				return fmt.Errorf("denoise: model %s has a network for --quality fast but none for high; use --quality fast", m.Name())
			}
			d := &denoiseRun{cmd: cmd, model: m, strength: strength, high: models.HighOptions{Strength: strength, Steps: steps, Seed: seed}, slots: make(chan struct{}, runtime.GOMAXPROCS(0)),
				report: denoiseReport{Model: derive.ModelInfo{Name: m.Name(), Version: m.Version(), Hash: m.Hash(), Method: method(steps, seed)},
					Strength: strength, Quality: quality, Files: []denoisedFile{}}}
			started := time.Now()
			d.started = started
			if err := d.run(cmd.Context(), args[0], out); err != nil {
				return fmt.Errorf("denoise %s: %w", args[0], err)
			}
			d.report.Seconds = time.Since(started).Seconds()
			if err := d.print(asJSON); err != nil {
				return err
			}
			if n := d.report.Failed; n > 0 {
				return fmt.Errorf("denoise %s: %d of %d files could not be denoised; the report names them", args[0], n, len(d.report.Files))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&out, "out", "o", "", "where the result goes (required)")
	f.StringVar(&quality, "quality", "fast", "fast or high")
	f.IntVar(&steps, "steps", 0, "of the sampling, with --quality high (default: what measured best)")
	f.Uint64Var(&seed, "seed", 0, "of the noise that sampling starts from, with --quality high")
	f.Float64Var(&strength, "strength", 1, "0 (unchanged) to 1 (fully denoised)")
	f.StringVar(&model, "model", models.DefaultName, "model name or folder")
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

// denoiseRun is one call of denoise.
type denoiseRun struct {
	cmd      *cobra.Command
	high     models.HighOptions // for the quality high
	model    *models.Model
	strength float64
	started  time.Time
	slots    chan struct{} // one per core: whoever computes holds one

	mu     sync.Mutex
	report denoiseReport
}

func (d *denoiseRun) run(ctx context.Context, in, out string) error {
	if ctx == nil {
		ctx = context.Background()
	}
	info, err := os.Stat(in)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		return d.folder(ctx, in, out)
	case nifti.IsName(in):
		return d.volume(ctx, in, out)
	}
	if o, err := os.Stat(out); err == nil && o.IsDir() {
		out = filepath.Join(out, filepath.Base(in))
	}
	if err := notSame(in, out); err != nil {
		return err
	}
	if dir := filepath.Dir(out); !isFolder(dir) {
		return fmt.Errorf("the folder %s of the output is not there; make it first", dir)
	}
	if ok, err := isPart10(in); err != nil {
		return err
	} else if !ok {
		return fmt.Errorf("%s is neither a DICOM file (no DICM at byte 128) nor a NIfTI volume (.nii, .nii.gz)", in)
	}
	bar := newDenoiseProgress(d.cmd.ErrOrStderr(), 1, "files")
	defer bar.done()
	d.add(d.object(ctx, in, out))
	bar.step()
	return ctx.Err()
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// isPart10 looks for the prefix of PS3.10 7.1.
func isPart10(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var b [132]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil
		}
		return false, err
	}
	return string(b[128:]) == "DICM", nil
}

// notSame refuses an output that is the input.
func notSame(in, out string) error {
	a, err := os.Stat(in)
	if err != nil {
		return err
	}
	b, err := os.Stat(out)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if os.SameFile(a, b) {
		return fmt.Errorf("the output %s is the input; choose another --out", out)
	}
	if b.IsDir() {
		return fmt.Errorf("the output %s is a folder; name a file", out)
	}
	return nil
}

func (d *denoiseRun) add(f denoisedFile) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.report.Files = append(d.report.Files, f)
	switch {
	case f.Error != "":
		d.report.Failed++
	case f.Denoised:
		d.report.Denoised++
		d.report.Slices += f.Slices
		d.report.Untouched += f.Untouched
		d.report.Held += f.Held
		d.report.InPart += f.InPart
	default:
		d.report.Unchanged++
	}
}

// folder denoises every file of a tree into the same place under out.
func (d *denoiseRun) folder(ctx context.Context, in, out string) error {
	root, err := realPath(in)
	if err != nil {
		return err
	}
	target, err := realPath(out)
	if err != nil {
		return err
	}
	if target == root || strings.HasPrefix(target, root+string(filepath.Separator)) {
		return fmt.Errorf("the output %s lies in the input; choose another --out", out)
	}
	if o, err := os.Stat(out); err == nil && !o.IsDir() {
		return fmt.Errorf("the output %s is a file but the input is a folder; choose another --out", out)
	}
	var files []string
	err = filepath.WalkDir(in, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case e.IsDir():
			return nil
		case !e.Type().IsRegular():
			d.add(denoisedFile{In: path, Reason: "not-a-file", Detail: "links and devices are left out"})
			return nil
		case len(files) == maxDenoiseFiles:
			return fmt.Errorf("more than %d files; denoise its subfolders one by one", maxDenoiseFiles)
		}
		files = append(files, path)
		return nil
	})
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("no files in the folder")
	}
	bar := newDenoiseProgress(d.cmd.ErrOrStderr(), len(files), "files")
	defer bar.done()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(d.slots))
	for _, path := range files {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			rel, err := filepath.Rel(in, path)
			if err != nil {
				return err
			}
			to := filepath.Join(out, rel)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			if err := notSame(path, to); err != nil {
				return err
			}
			d.add(d.object(ctx, path, to))
			bar.step()
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	slices.SortFunc(d.report.Files, func(a, b denoisedFile) int { return strings.Compare(a.In, b.In) })
	return nil
}

// realPath resolves links as far as the path exists.
func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	rest := ""
	for {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return "", err
		}
		rest = filepath.Join(filepath.Base(path), rest)
		path = filepath.Dir(path)
	}
}

// object denoises one DICOM file. Whatever stops that, the output is at least
// a copy of the input, and the line says why.
func (d *denoiseRun) object(ctx context.Context, in, out string) denoisedFile {
	line := denoisedFile{In: in, Out: out}
	verdict, err := d.derive(ctx, in, out, &line)
	if err == nil && verdict.OK() {
		line.Denoised = true
		return line
	}
	line.tally = tally{}
	line.Reason, line.Detail = string(verdict.Reason), verdict.Detail
	if err != nil {
		line.Error = err.Error()
	}
	if err := copyFile(in, out); err != nil {
		line.Out = ""
		line.Error = strings.TrimPrefix(line.Error+"; copy: "+err.Error(), "; ")
	}
	return line
}

func (d *denoiseRun) derive(ctx context.Context, in, out string, line *denoisedFile) (derive.Verdict, error) {
	f, err := os.Open(in)
	if err != nil {
		return derive.Verdict{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return derive.Verdict{}, err
	}
	o, err := dcm.Scan(f, info.Size())
	if o == nil || err != nil {
		damage := (*dcm.ScanError)(nil)
		if err != nil && !errors.As(err, &damage) {
			return derive.Verdict{}, err
		}
		if o == nil {
			return derive.Verdict{Reason: derive.Unparseable}, nil
		}
	}
	if v := derive.Inspect(o); !v.OK() {
		return v, nil
	}
	frames := newFrameQueue(ctx, d, o)
	defer frames.stop()
	params := derive.Params{Model: d.report.Model, Strength: d.strength, Quality: d.report.Quality,
		Version: d.cmd.Root().Version, Now: d.started, Remark: func() string { return remark(frames.results) }}
	err = atomicfile.Write(out, 0o644, func(w *os.File) error {
		written, err := derive.Write(w, o, params, frames.next)
		if err != nil {
			return err
		}
		made, err := dcm.Scan(w, written.Size)
		if err != nil {
			return err
		}
		return derive.Verify(o, made)
	})
	line.tally = count(frames.results)
	return derive.Verdict{}, err
}

// frameQueue denoises the frames of an object ahead of whoever takes them in
// order: at most one per core is held.
type frameQueue struct {
	d       *denoiseRun
	o       *dcm.Object
	ctx     context.Context
	cancel  context.CancelFunc
	ahead   []chan frameResult // of frames next … next+len-1
	results []*models.Result   // of those that were taken, without their pixels
	start   int                // first frame that nobody works on
	frames  int
	work    sync.WaitGroup
}

type frameResult struct {
	*models.Result
	err error
}

func newFrameQueue(ctx context.Context, d *denoiseRun, o *dcm.Object) *frameQueue {
	q := &frameQueue{d: d, o: o, frames: derive.Frames(o)}
	q.ctx, q.cancel = context.WithCancel(ctx)
	return q
}

func (q *frameQueue) next(i int) ([]float32, error) {
	for q.start < q.frames && len(q.ahead) < cap(q.d.slots) {
		c, k := make(chan frameResult, 1), q.start
		q.ahead = append(q.ahead, c)
		q.start++
		q.work.Go(func() { c <- q.frame(k) })
	}
	if len(q.ahead) == 0 {
		return nil, fmt.Errorf("frame %d of %d is not there", i, q.frames)
	}
	r := <-q.ahead[0]
	q.ahead = q.ahead[1:]
	if r.err != nil {
		return nil, fmt.Errorf("frame %d: %w", i, r.err)
	}
	q.results = append(q.results, &models.Result{Sigma: r.Sigma, Untouched: r.Untouched, Gate: r.Gate})
	return r.Pixels, nil
}

func (q *frameQueue) frame(i int) frameResult {
	f, err := derive.ReadFrame(q.o, i)
	if err != nil {
		return frameResult{err: err}
	}
	r, err := q.d.slice(q.ctx, models.Image{Width: f.Width, Height: f.Height, Pixels: f.Pixels, Skip: f.Skip})
	return frameResult{r, err}
}

// stop ends what is still being worked on.
func (q *frameQueue) stop() {
	q.cancel()
	q.work.Wait()
}

// remark is what a derived object says of what the quality check did to its frames.
func remark(results []*models.Result) string {
	var checked derive.Checked
	for _, r := range results {
		checked.Add(r.Checked())
	}
	return checked.Remark()
}

// slice denoises one slice when a core is free.
func (d *denoiseRun) slice(ctx context.Context, img models.Image) (*models.Result, error) {
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if d.report.Quality == "high" {
		return d.model.High(ctx, img, d.high)
	}
	return d.model.Denoise(ctx, img, models.Options{Strength: d.strength})
}

// volume denoises a NIfTI volume slice by slice.
func (d *denoiseRun) volume(ctx context.Context, in, out string) error {
	if !nifti.IsName(out) {
		return fmt.Errorf("the output %s of a NIfTI volume must end in .nii or .nii.gz", out)
	}
	if err := notSame(in, out); err != nil {
		return err
	}
	v, err := nifti.Read(in)
	if err != nil {
		return err
	}
	n := v.Slices()
	results := make([]*models.Result, n)
	bar := newDenoiseProgress(d.cmd.ErrOrStderr(), n, "slices")
	defer bar.done()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(d.slots))
	for k := range n {
		g.Go(func() error {
			img, err := niftiSlice(v, k)
			if err != nil {
				return err
			}
			r, err := d.slice(ctx, img)
			if err != nil {
				return fmt.Errorf("slice %d of volume %d: %w", k%v.Depth, k/v.Depth, err)
			}
			results[k] = &models.Result{Sigma: r.Sigma, Untouched: r.Untouched, Gate: r.Gate}
			bar.step()
			return v.SetSlice(k, r.Pixels)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := nifti.Write(out, v); err != nil {
		return err
	}
	d.add(denoisedFile{In: in, Out: out, Denoised: true, tally: count(results)})
	return nil
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// copyFile copies a file; the copy appears when it is complete.
func copyFile(in, out string) error {
	f, err := os.Open(in)
	if err != nil {
		return err
	}
	defer f.Close()
	return atomicfile.Write(out, 0o644, func(w *os.File) error {
		_, err := io.Copy(w, f)
		return err
	})
}

func (d *denoiseRun) print(asJSON bool) error {
	out := d.cmd.OutOrStdout()
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(d.report)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range d.report.Files {
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
	r := &d.report
	_, err := fmt.Fprintf(out, "%d files denoised (%d slices; copies of %d without noise that can be treated and %d that the quality check held back, %d in part), %d unchanged, %d failed, %.1f s\n",
		r.Denoised, r.Slices, r.Untouched, r.Held, r.InPart, r.Unchanged, r.Failed, r.Seconds)
	return err
}

// denoiseProgress is a bar on a terminal and a line at every tenth elsewhere.
type denoiseProgress struct {
	bar   *mpb.Bar
	group *mpb.Progress

	mu    sync.Mutex
	w     io.Writer
	what  string
	n, at int
}

func newDenoiseProgress(w io.Writer, n int, what string) *denoiseProgress {
	p := &denoiseProgress{w: w, n: n, what: what}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.group = mpb.New(mpb.WithOutput(f), mpb.WithWidth(60))
		p.bar = p.group.AddBar(int64(n),
			mpb.PrependDecorators(decor.CountersNoUnit("%d / %d "+what)),
			mpb.AppendDecorators(decor.AverageETA(decor.ET_STYLE_GO)))
	}
	return p
}

// step says that one more is done. Safe for concurrent use.
func (p *denoiseProgress) step() {
	if p.bar != nil {
		p.bar.Increment()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at++
	if p.n >= 20 && p.at*10/p.n != (p.at-1)*10/p.n {
		fmt.Fprintf(p.w, "%d of %d %s\n", p.at, p.n, p.what)
	}
}

// done removes what is left of a bar that did not come to its end.
func (p *denoiseProgress) done() {
	if p.bar != nil {
		p.bar.Abort(false)
		p.group.Wait()
	}
}
