// Package offline denoises files: a DICOM file, a folder of files or a NIfTI volume.
// The output is of the same kind. What must not be denoised is copied as it is, with
// its reason; the input is never overwritten, and no output is ever there by half.
package offline

import (
	"context"
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
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
)

// maxFiles bounds the files of one folder.
const maxFiles = 1_000_000

// Method is how slices are denoised, and the model that does it. All fields are required but Measure and Fit.
type Method struct {
	// Denoise makes one slice cleaner; known is what all slices of its series, or volume,
	// tell, itself included. It is called from several goroutines, at most one per core at
	// a time, and neither changes the image nor keeps it.
	Denoise func(ctx context.Context, img dataset.Image, known evidence.Sums) (*Result, error)
	// Measure tells what one slice says of its series; it is called like Denoise, for
	// every slice before the first is denoised. nil: nothing is known of series.
	Measure func(ctx context.Context, img dataset.Image) (evidence.Sums, error)
	Model   derive.ModelInfo
	// Fit returns a method for one series, or volume, that images are some of the slices of, at
	// most FitSlices; known is as in Denoise. It is called once for each, before its first slice is
	// denoised, one at a time, and may use all cores. nil: the method is the same for all.
	Fit func(ctx context.Context, images []dataset.Image, known evidence.Sums) (Method, Fit, error)
}

// FitSlices is the most slices that a method is fitted to, and fitPixels the most pixels that all of them
// have together.
const (
	FitSlices = 48
	fitPixels = FitSlices << 20
)

// Fit says how a method was fitted to a series.
type Fit struct {
	Series string `json:"series"` // its UID, or the file of a volume
	Slices int    `json:"slices"` // that were looked at
	Fitted bool   `json:"fitted"` // or the method stays what it was
	Why    string `json:"why,omitempty"`
	// The error before and after that is to be expected, relative to the power of the noise.
	Before float64 `json:"before,omitempty"`
	After  float64 `json:"after,omitempty"`
}

// Options say what to do with the files. All fields are required but For and Progress.
type Options struct {
	Method
	// For returns the method for images of a modality (0008,0060), if it is not Method for all. It
	// is called from several goroutines.
	For func(modality string) Method
	// Strength and Quality are on record in the derived objects; Denoise has applied them.
	Strength float64
	Quality  string
	Version  string // of the program
	// Progress is told how many of the files or slices are done, beginning with none; each
	// counts twice, measured and denoised, if Method has Measure. Calls do not overlap.
	Progress func(done, total int, what string)
}

// Result is a denoised slice.
type Result struct {
	Pixels []float32
	Sigma  float64 // median noise, in the unit of the pixels
	// Untouched tells that no noise was found that can be treated: Pixels are those of
	// the image.
	Untouched bool
	// Gate says why a quality check did not let all of the result through, empty if it
	// did; Share is the part of the change that it let through then, from 0 to below 1.
	Gate  string
	Share float64
}

// Report is what was done. Its JSON is stable.
type Report struct {
	Model     derive.ModelInfo `json:"model"` // of files that do not name theirs
	Strength  float64          `json:"strength"`
	Quality   string           `json:"quality"`
	Seconds   float64          `json:"seconds"`
	Denoised  int              `json:"denoised"`  // files
	Unchanged int              `json:"unchanged"` // files, copied as they were
	Failed    int              `json:"failed"`    // files, copied as they were if that was possible
	Slices    int              `json:"slices"`    // slices and frames looked at in them
	Untouched int              `json:"untouched"` // of these, left as they were: no noise was found that can be treated
	Held      int              `json:"held"`      // of these, left as they were: a quality check held the result back
	// of these, denoised in part: the share that a quality check let through
	InPart int `json:"in_part"`
	// pixels with the nearest value that their file can hold, not their own
	Clamped int64  `json:"clamped"`
	Fits    []Fit  `json:"fits,omitempty"`
	Files   []File `json:"files"`
}

// File is what became of one file.
type File struct {
	In       string `json:"in"`
	Out      string `json:"out,omitempty"`
	Denoised bool   `json:"denoised"`
	// Model is what it was denoised by, if that is not the report's.
	Model  *derive.ModelInfo `json:"model,omitempty"`
	Reason string            `json:"reason,omitempty"` // why it was copied unchanged, or left out
	Detail string            `json:"detail,omitempty"`
	Error  string            `json:"error,omitempty"`
	Tally
}

// Tally is what became of the slices of a file.
type Tally struct {
	Slices    int    `json:"slices,omitempty"`
	Untouched int    `json:"untouched,omitempty"` // of Slices, and so are the next two
	Held      int    `json:"held,omitempty"`
	InPart    int    `json:"in_part,omitempty"`
	Remark    string `json:"remark,omitempty"` // what the quality check said of the worst slice
	// Sigma is the median noise over the slices: real values of NIfTI, stored steps of DICOM.
	Sigma float64 `json:"sigma,omitempty"`
	// Clamped pixels have the nearest value that the file can hold, not their own.
	Clamped int64 `json:"clamped,omitempty"`
}

// Run denoises the file or folder in into out. Files that cannot be denoised are in the
// report and no error; the error says why nothing, or not all, was looked at.
func Run(ctx context.Context, in, out string, o Options) (*Report, error) {
	r := &run{Options: o, began: time.Now(), slots: make(chan struct{}, runtime.GOMAXPROCS(0)),
		report: Report{Model: o.Model, Strength: o.Strength, Quality: o.Quality, Files: []File{}}}
	info, err := os.Stat(in)
	if err != nil {
		return nil, err
	}
	switch {
	case info.IsDir():
		err = r.folder(ctx, in, out)
	case nifti.IsName(in):
		err = r.volume(ctx, in, out)
	default:
		err = r.file(ctx, in, out)
	}
	if err != nil {
		return nil, err
	}
	r.report.Seconds = time.Since(r.began).Seconds()
	return &r.report, nil
}

// run is one call of Run.
type run struct {
	Options
	began time.Time
	slots chan struct{} // one per core: whoever computes holds one

	mu     sync.Mutex
	report Report
	done   int
}

// step tells of n more of total files or slices that are done.
func (r *run) step(n, total int, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done += n
	if r.Measure != nil {
		total *= 2
	}
	if r.Progress != nil {
		r.Progress(r.done, total, what)
	}
}

func (r *run) add(f File) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Files = append(r.report.Files, f)
	switch {
	case f.Error != "":
		r.report.Failed++
	case f.Denoised:
		r.report.Denoised++
		r.report.Slices += f.Slices
		r.report.Untouched += f.Untouched
		r.report.Held += f.Held
		r.report.InPart += f.InPart
		r.report.Clamped += f.Clamped
	default:
		r.report.Unchanged++
	}
}

// core does something with one slice when a core is free.
func core[T any](ctx context.Context, r *run, do func() (T, error)) (out T, err error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return out, ctx.Err()
	}
	return do()
}

// by is the method for an object.
func (r *run) by(o *dcm.Object) Method {
	if r.For == nil {
		return r.Method
	}
	return r.For(o.String(dcm.Modality))
}

// measure measures one slice when a core is free.
func (r *run) measure(ctx context.Context, by Method, img dataset.Image) (evidence.Sums, error) {
	return core(ctx, r, func() (evidence.Sums, error) { return by.Measure(ctx, img) })
}

// slice denoises one slice when a core is free.
func (r *run) slice(ctx context.Context, by Method, img dataset.Image, known evidence.Sums) (*Result, error) {
	return core(ctx, r, func() (*Result, error) { return by.Denoise(ctx, img, known) })
}

// file denoises a file that is no NIfTI volume.
func (r *run) file(ctx context.Context, in, out string) error {
	if o, err := os.Stat(out); err == nil && o.IsDir() {
		out = filepath.Join(out, filepath.Base(in))
	}
	if err := notSame(in, out); err != nil {
		return err
	}
	if dir, err := os.Stat(filepath.Dir(out)); err != nil || !dir.IsDir() {
		return fmt.Errorf("the folder %s of the output is not there; make it first", filepath.Dir(out))
	}
	if ok, err := dataset.IsDICOM(in); err != nil {
		return err
	} else if !ok {
		return fmt.Errorf("%s is neither a DICOM file (no DICM at byte 128) nor a NIfTI volume (.nii, .nii.gz)", in)
	}
	r.step(0, 1, "files")
	said, err := r.measured(ctx, []string{in})
	if err != nil {
		return err
	}
	r.add(r.object(ctx, in, out, said[0]))
	r.step(1, 1, "files")
	return ctx.Err()
}

// said is what an object tells, and then what all of its series do; err: it could not be measured.
type said struct {
	series string // its UID; empty: it tells nothing
	told   evidence.Sums
	frames int
	fits   bool    // the method of its modality can be fitted
	by     *Method // that was fitted to the series; nil: that of its modality
	err    error
}

// measured looks at all files. What the objects of a series tell is added in the order of the
// files, whichever is measured first.
func (r *run) measured(ctx context.Context, files []string) ([]said, error) {
	all := make([]said, len(files))
	if r.Measure == nil {
		return all, nil
	}
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(cap(r.slots))
	for i, path := range files {
		g.Go(func() error {
			if err := each.Err(); err != nil {
				return err
			}
			all[i] = r.tell(each, path)
			r.step(1, len(files), "files")
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	series := map[string]evidence.Sums{}
	for _, s := range all {
		if s.series != "" {
			series[s.series] = series[s.series].Plus(s.told)
		}
	}
	for i, s := range all {
		if s.series != "" {
			all[i].told = series[s.series]
		}
	}
	return all, r.fit(ctx, files, all)
}

// fit fits methods to the series of files, in the order of their first files.
func (r *run) fit(ctx context.Context, files []string, all []said) error {
	members := map[string][]int{} // files of a series
	for i, s := range all {
		if s.series != "" {
			members[s.series] = append(members[s.series], i)
		}
	}
	for i, s := range all {
		list := members[s.series]
		if s.series == "" || list[0] != i || !s.fits {
			continue
		}
		images, by, err := r.sample(files, all, list)
		if err != nil {
			r.report.Fits = append(r.report.Fits, Fit{Series: s.series, Why: err.Error()})
			continue
		}
		fitted, line, err := by.Fit(ctx, images, s.told)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // the method stays what it is
			fitted, line = by, Fit{Slices: len(images), Why: err.Error()}
		}
		line.Series = s.series
		r.report.Fits = append(r.report.Fits, line)
		for _, k := range list {
			all[k].by = &fitted
		}
	}
	return nil
}

// sample reads some frames of a series, evenly from the first to the last of its files.
func (r *run) sample(files []string, all []said, list []int) (images []dataset.Image, by Method, err error) {
	total := 0
	for _, k := range list {
		total += all[k].frames
	}
	every, at, pixels := max(1, (total+FitSlices-1)/FitSlices), 0, 0
	for _, k := range list {
		first := at
		at += all[k].frames
		if (first+every-1)/every*every >= at {
			continue // none of its frames
		}
		f, o, v, err := scan(files[k])
		if err == nil && !v.OK() {
			err = fmt.Errorf("%s is not what it was", files[k])
		}
		if err == nil && images == nil {
			by = r.by(o)
		}
		for i := (first + every - 1) / every * every; err == nil && i < at; i += every {
			var img dataset.Image
			if img, err = (derive.Images{}).ReadFrame(o, i-first); err == nil {
				images = append(images, img)
				pixels += len(img.Pixels)
			}
		}
		if f != nil {
			f.Close()
		}
		if err != nil {
			return nil, by, err
		}
		if pixels > fitPixels {
			break
		}
	}
	return images, by, nil
}

// tell measures the frames of one DICOM file. It tells nothing of what is not to be denoised.
func (r *run) tell(ctx context.Context, path string) (s said) {
	f, o, v, err := scan(path)
	if f != nil {
		defer f.Close()
	}
	if err != nil || !v.OK() {
		return s // derive says it again
	}
	by := r.by(o)
	if by.Measure == nil {
		return s
	}
	s.series = o.String(dcm.SeriesInstanceUID)
	ctx, cancel := context.WithCancel(ctx)
	n := derive.Frames(o)
	s.frames, s.fits = n, by.Fit != nil
	frames := derive.NewAhead(n, cap(r.slots), func(i int) (evidence.Sums, error) {
		img, err := derive.Images{}.ReadFrame(o, i)
		if err != nil {
			return nil, err
		}
		return r.measure(ctx, by, img)
	})
	defer frames.Wait() // after cancel
	defer cancel()
	for i := range n {
		told, err := frames.Next(i)
		if err != nil {
			return said{err: fmt.Errorf("measure frame %d: %w", i, err)}
		}
		s.told = s.told.Plus(told)
	}
	return s
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

// folder denoises every file of a tree into the same place under out.
func (r *run) folder(ctx context.Context, in, out string) error {
	inside, err := dataset.Inside(out, in)
	if err != nil {
		return err
	}
	if inside {
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
			r.add(File{In: path, Reason: "not-a-file", Detail: "links and devices are left out"})
			return nil
		case len(files) == maxFiles:
			return fmt.Errorf("more than %d files; denoise its subfolders one by one", maxFiles)
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
	r.step(0, len(files), "files")
	said, err := r.measured(ctx, files)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(r.slots))
	for i, path := range files {
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
			r.add(r.object(ctx, path, to, said[i]))
			r.step(1, len(files), "files")
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	slices.SortFunc(r.report.Files, func(a, b File) int { return strings.Compare(a.In, b.In) })
	return nil
}

// object denoises one DICOM file. Whatever stops that, the output is at least
// a copy of the input, and the line says why.
func (r *run) object(ctx context.Context, in, out string, s said) File {
	line := File{In: in, Out: out}
	verdict, err := derive.Verdict{}, s.err
	if err == nil {
		verdict, err = r.derive(ctx, in, out, s, &line)
	}
	if err == nil && verdict.OK() {
		line.Denoised = true
		return line
	}
	line.Tally, line.Model = Tally{}, nil
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

// scan opens a DICOM file and says whether it may be denoised. The caller closes f unless that is nil.
func scan(path string) (f *os.File, o *dcm.Object, v derive.Verdict, err error) {
	if f, err = os.Open(path); err != nil {
		return nil, nil, v, err
	}
	info, err := f.Stat()
	if err != nil {
		return f, nil, v, err
	}
	o, err = dcm.Scan(f, info.Size())
	damage := (*dcm.ScanError)(nil)
	if err != nil && !errors.As(err, &damage) {
		return f, nil, v, err
	}
	if o == nil {
		return f, nil, derive.Verdict{Reason: derive.Unparseable}, nil
	}
	return f, o, derive.Inspect(o), nil
}

func (r *run) derive(ctx context.Context, in, out string, s said, line *File) (derive.Verdict, error) {
	f, o, v, err := scan(in)
	if f != nil {
		defer f.Close()
	}
	if err != nil || !v.OK() {
		return v, err
	}
	by := r.by(o)
	if s.by != nil {
		by = *s.by
	}
	if by.Model != r.Model {
		line.Model = &by.Model
	}
	ctx, cancel := context.WithCancel(ctx)
	frames := derive.NewAhead(derive.Frames(o), cap(r.slots), func(i int) (*Result, error) {
		img, err := derive.Images{}.ReadFrame(o, i)
		if err != nil {
			return nil, err
		}
		return r.slice(ctx, by, img, s.told)
	})
	defer frames.Wait() // after cancel
	defer cancel()
	var t tally
	params := derive.Params{Model: by.Model, Strength: r.Strength, Quality: r.Quality, Version: r.Version, Now: r.began,
		Remark: t.checked.Remark}
	err = atomicfile.Write(out, 0o644, func(w *os.File) error {
		written, err := derive.Write(w, o, params, func(i int) ([]float32, error) {
			done, err := frames.Next(i)
			if err != nil {
				return nil, fmt.Errorf("frame %d: %w", i, err)
			}
			t.add(done)
			return done.Pixels, nil
		})
		if err != nil {
			return err
		}
		t.Clamped = written.Clipped
		made, err := dcm.Scan(w, written.Size)
		if err != nil {
			return err
		}
		return derive.Verify(o, made)
	})
	line.Tally = t.sum()
	return derive.Verdict{}, err
}

// volume denoises a NIfTI volume slice by slice.
func (r *run) volume(ctx context.Context, in, out string) error {
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
	results := make([]Result, n) // without their pixels
	var clamped atomic.Int64
	r.step(0, n, "slices")
	known, err := r.volumeTold(ctx, v)
	if err != nil {
		return err
	}
	by, err := r.volumeFit(ctx, in, v, known)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(r.slots))
	for k := range n {
		g.Go(func() error {
			img, err := dataset.NIfTISlice(v, k)
			if err != nil {
				return err
			}
			s, err := r.slice(ctx, by, img, known)
			if err != nil {
				return fmt.Errorf("slice %d of volume %d: %w", k%v.Depth, k/v.Depth, err)
			}
			results[k] = *s
			results[k].Pixels = nil
			r.step(1, n, "slices")
			beyond, err := v.SetSlice(k, s.Pixels)
			clamped.Add(int64(beyond))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := nifti.Write(out, v); err != nil {
		return err
	}
	t := tally{Tally: Tally{Clamped: clamped.Load()}}
	for i := range results {
		t.add(&results[i])
	}
	r.add(File{In: in, Out: out, Denoised: true, Tally: t.sum()})
	return nil
}

// volumeTold is what all slices of a NIfTI file tell, which is one series.
func (r *run) volumeTold(ctx context.Context, v *nifti.Volume) (all evidence.Sums, err error) {
	if r.Measure == nil {
		return nil, nil
	}
	n := v.Slices()
	told := make([]evidence.Sums, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(r.slots))
	for k := range n {
		g.Go(func() error {
			img, err := dataset.NIfTISlice(v, k)
			if err != nil {
				return err
			}
			if told[k], err = r.measure(ctx, r.Method, img); err != nil {
				return fmt.Errorf("measure slice %d of volume %d: %w", k%v.Depth, k/v.Depth, err)
			}
			r.step(1, n, "slices")
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, t := range told { // in their order, whichever was measured first
		all = all.Plus(t)
	}
	return all, nil
}

// volumeFit is the method for a NIfTI file, fitted to it if it can be.
func (r *run) volumeFit(ctx context.Context, in string, v *nifti.Volume, known evidence.Sums) (Method, error) {
	if r.Fit == nil || r.Measure == nil {
		return r.Method, nil
	}
	var images []dataset.Image
	n := v.Slices()
	for k := 0; k < n; k += max(1, (n+FitSlices-1)/FitSlices) {
		img, err := dataset.NIfTISlice(v, k)
		if err != nil {
			return Method{}, err
		}
		images = append(images, img)
	}
	by, line, err := r.Fit(ctx, images, known)
	if ctx.Err() != nil {
		return Method{}, ctx.Err()
	}
	if err != nil { // the method stays what it is
		by, line = r.Method, Fit{Slices: len(images), Why: err.Error()}
	}
	line.Series = in
	r.report.Fits = append(r.report.Fits, line)
	return by, nil
}

// tally counts the results of the slices of a file, in their order.
type tally struct {
	Tally
	checked derive.Checked
	sigmas  []float64
}

func (t *tally) add(s *Result) {
	t.Slices++
	t.sigmas = append(t.sigmas, s.Sigma)
	t.checked.Add(s.Gate, s.Share)
	switch {
	case s.Gate == "" && s.Untouched:
		t.Untouched++
	case s.Gate != "" && s.Share > 0:
		t.InPart++
	case s.Gate != "":
		t.Held++
	}
}

func (t *tally) sum() Tally {
	if len(t.sigmas) > 0 {
		slices.Sort(t.sigmas)
		t.Sigma = t.sigmas[len(t.sigmas)/2]
	}
	t.Remark = t.checked.String()
	return t.Tally
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
