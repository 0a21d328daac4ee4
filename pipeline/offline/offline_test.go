package offline_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/offline"
)

// halve stands in for a model: every pixel becomes half of it.
func halve(_ context.Context, img dataset.Image, _ evidence.Sums) (*offline.Result, error) {
	px := slices.Clone(img.Pixels)
	for i := range px {
		px[i] /= 2
	}
	return &offline.Result{Pixels: px, Sigma: 3, Share: 1}, nil
}

func options(denoise func(context.Context, dataset.Image, evidence.Sums) (*offline.Result, error)) offline.Options {
	return offline.Options{Method: offline.Method{Denoise: denoise,
		Model: derive.ModelInfo{Name: "half", Version: "1", Hash: "00"}},
		Strength: 1, Quality: "fast", Version: "test"}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func dicom(t *testing.T, v *phantom.Volume, k int, ids phantom.IDs) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := v.WriteDICOM(&b, k, ids); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(t *testing.T, path string) *dcm.Object {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o, err := dcm.Scan(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestFolder: images become derived objects at the same place, everything else a copy
// with a reason, and a failure is one file's.
func TestFolder(t *testing.T) {
	in, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	v, ids := phantom.New(phantom.Spec{Width: 32, Height: 40, Slices: 30, Sigma: 0.04}), phantom.NewIDs("offline")
	for k := range 30 {
		write(t, filepath.Join(in, "series", string(rune('a'+k))+".dcm"), dicom(t, v, k, ids))
	}
	write(t, filepath.Join(in, "notes.txt"), []byte("not an image"))
	broken := errors.New("the model is broken")
	o := options(halve)
	var told []int
	o.Progress = func(done, total int, what string) {
		if total != 31 || what != "files" {
			t.Errorf("%d of %d %s", done, total, what)
		}
		told = append(told, done)
	}
	r, err := offline.Run(t.Context(), in, out, o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Denoised != 30 || r.Unchanged != 1 || r.Failed != 0 || r.Slices != 30 || r.Seconds <= 0 || len(r.Files) != 31 {
		t.Errorf("report %+v", r)
	}
	sorted := slices.IsSortedFunc(r.Files, func(a, b offline.File) int { return strings.Compare(a.In, b.In) })
	if !sorted || r.Files[0].Reason != string(derive.Unparseable) || r.Files[1].Sigma != 3 {
		t.Errorf("files %+v", r.Files[:2])
	}
	if len(told) != 32 || told[0] != 0 || !slices.IsSorted(told) || told[31] != 31 {
		t.Errorf("progress %v", told)
	}
	for k := range 30 {
		name := filepath.Join("series", string(rune('a'+k))+".dcm")
		before, after := open(t, filepath.Join(in, name)), open(t, filepath.Join(out, name))
		was, err := derive.ReadFrame(before, 0)
		if err != nil {
			t.Fatal(err)
		}
		now, err := derive.ReadRaster(after, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range was.Pixels {
			if got := float32(now.Pixels[2*i]) + 256*float32(now.Pixels[2*i+1]); got != float32(int(p/2+0.5)) {
				t.Fatalf("%s: pixel %d is %g, was %g", name, i, got, p)
			}
		}
	}
	// One that fails is copied, and named.
	third := framePixels(t, filepath.Join(in, "series", "c.dcm"))
	o = options(func(ctx context.Context, img dataset.Image, known evidence.Sums,
	) (*offline.Result, error) {
		if slices.Equal(img.Pixels, third) {
			return nil, broken
		}
		return halve(ctx, img, known)
	})
	to := filepath.Join(t.TempDir(), "b")
	if r, err = offline.Run(t.Context(), in, to, o); err != nil || r.Failed != 1 || r.Denoised != 29 {
		t.Fatalf("%v, %+v", err, r)
	}
	i := slices.IndexFunc(r.Files, func(f offline.File) bool { return f.Error != "" })
	if f := r.Files[i]; !strings.HasSuffix(f.In, "c.dcm") || !strings.Contains(f.Error, broken.Error()) ||
		f.Slices != 0 {
		t.Errorf("%+v", f)
	}
	a, errA := os.ReadFile(filepath.Join(in, "series", "c.dcm"))
	b, errB := os.ReadFile(filepath.Join(to, "series", "c.dcm"))
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("what failed is no copy (%v, %v)", errA, errB)
	}
}

func framePixels(t *testing.T, path string) []float32 {
	t.Helper()
	f, err := derive.ReadFrame(open(t, path), 0)
	if err != nil {
		t.Fatal(err)
	}
	return f.Pixels
}

// TestVolume: the results of slices are counted, and one that fails ends it without
// an output.
func TestVolume(t *testing.T) {
	dir := t.TempDir()
	v, err := nifti.New(8, 4, 3, 2, nifti.Int16)
	if err != nil {
		t.Fatal(err)
	}
	for k := range 6 {
		px := make([]float32, 32)
		for i := range px {
			px[i] = float32(100*k + i)
		}
		if _, err := v.SetSlice(k, px); err != nil {
			t.Fatal(err)
		}
	}
	in, out := filepath.Join(dir, "in.nii"), filepath.Join(dir, "out.nii.gz")
	if err := nifti.Write(in, v); err != nil {
		t.Fatal(err)
	}
	r, err := offline.Run(t.Context(), in, out, options(func(ctx context.Context, img dataset.Image,
		known evidence.Sums,
	) (*offline.Result, error) {
		s, err := halve(ctx, img, known)
		switch k := int(img.Pixels[0] / 100); k {
		case 1:
			s.Untouched = true
		case 2:
			s.Gate, s.Share = "too smooth", 0
		case 3:
			s.Gate, s.Share = "a bit smooth", 0.5
		}
		return s, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	if r.Slices != 6 || r.Untouched != 1 || r.Held != 1 || r.InPart != 1 || !strings.Contains(r.Files[0].Remark,
		"frame 3: too smooth") {
		t.Errorf("%+v", r)
	}
	made, err := nifti.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	px := make([]float32, 32)
	if err := made.Slice(px, 5); err != nil || px[2] != 251 {
		t.Errorf("%v, %v", px, err)
	}
	none := filepath.Join(dir, "none.nii")
	_, err = offline.Run(t.Context(), in, none, options(func(_ context.Context, img dataset.Image, _ evidence.Sums,
	) (*offline.Result, error) {
		if img.Pixels[0] == 400 {
			return nil, errors.New("broken")
		}
		return halve(t.Context(), img, nil)
	}))
	if err == nil || !strings.Contains(err.Error(), "slice 1 of volume 1: broken") {
		t.Errorf("a slice that fails: %v", err)
	}
	if _, err := os.Stat(none); err == nil {
		t.Error("there is an output all the same")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := offline.Run(ctx, in, none, options(halve)); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}

// TestClamped: what a file cannot hold has the nearest value that it can, and is counted.
func TestClamped(t *testing.T) {
	dir := t.TempDir()
	n, err := nifti.New(4, 2, 1, 2, nifti.Uint8)
	if err != nil {
		t.Fatal(err)
	}
	for k := range 2 {
		if _, err := n.SetSlice(k, []float32{0, 1, 20, 127, 128, 200, 254, 255}); err != nil {
			t.Fatal(err)
		}
	}
	v, ids := phantom.New(phantom.Spec{Width: 32, Height: 32, Slices: 1, Sigma: 0.04}), phantom.NewIDs("clamped")
	write(t, filepath.Join(dir, "in.dcm"), dicom(t, v, 0, ids))
	if err := nifti.Write(filepath.Join(dir, "in.nii"), n); err != nil {
		t.Fatal(err)
	}
	double := func(_ context.Context, img dataset.Image, _ evidence.Sums) (*offline.Result, error) {
		px := slices.Clone(img.Pixels)
		for i := range px {
			px[i] *= 2
		}
		return &offline.Result{Pixels: px, Share: 1}, nil
	}
	beyond := int64(0)
	for _, p := range framePixels(t, filepath.Join(dir, "in.dcm")) {
		if 2*p > 4095 {
			beyond++
		}
	}
	if beyond == 0 {
		t.Fatal("the phantom has no pixel to clamp")
	}
	for name, want := range map[string]int64{"nii": 8, "dcm": beyond} {
		out := filepath.Join(dir, "out."+name)
		r, err := offline.Run(t.Context(), filepath.Join(dir, "in."+name), out, options(double))
		if err != nil || r.Clamped != want || r.Files[0].Clamped != want {
			t.Errorf("%s: %v, %+v, want %d clamped", name, err, r, want)
		}
	}
	made, err := nifti.Read(filepath.Join(dir, "out.nii"))
	if err != nil {
		t.Fatal(err)
	}
	px := make([]float32, 8)
	if err := made.Slice(px, 1); err != nil || !slices.Equal(px, []float32{0, 2, 40, 254, 255, 255, 255, 255}) {
		t.Errorf("%v, %v", px, err)
	}
}

// TestSeries: every slice is denoised with what all of its series tell, to the bit the same
// however many are in hand at once; what cannot be measured is a copy and tells nothing.
func TestSeries(t *testing.T) {
	in := t.TempDir()
	v, ids := phantom.New(phantom.Spec{Width: 32, Height: 32, Slices: 9, Sigma: 0.04}), phantom.NewIDs("told")
	other := phantom.NewIDs("other")
	for k := range 9 {
		write(t, filepath.Join(in, "one", string(rune('a'+k))+".dcm"), dicom(t, v, k, ids))
	}
	for k := range 2 {
		write(t, filepath.Join(in, "two", string(rune('a'+k))+".dcm"), dicom(t, v, k, other))
	}
	write(t, filepath.Join(in, "notes.txt"), []byte("not an image"))
	bad := framePixels(t, filepath.Join(in, "one", "h.dcm"))
	// sums that depend on the order in which they are added
	tell := func(px []float32) evidence.Sums { return evidence.Sums{1, math.Exp(float64(px[5]) / 7)} }
	measure := func(_ context.Context, img dataset.Image) (evidence.Sums, error) {
		if slices.Equal(img.Pixels, bad) {
			return nil, errors.New("too odd")
		}
		time.Sleep(rand.N(3 * time.Millisecond))
		return tell(img.Pixels), nil
	}
	want := map[string]evidence.Sums{}
	for _, name := range strings.Fields("one/a one/b one/c one/d one/e one/f one/g one/i two/a two/b") {
		want[name[:3]] = want[name[:3]].Plus(tell(framePixels(t, filepath.Join(in, name+".dcm"))))
	}
	for _, cores := range []int{1, 2, 7} {
		before := runtime.GOMAXPROCS(cores)
		t.Cleanup(func() { runtime.GOMAXPROCS(before) })
		var mu sync.Mutex
		heard := map[string]int{}
		o := options(func(ctx context.Context, img dataset.Image, known evidence.Sums,
		) (*offline.Result, error) {
			mu.Lock()
			heard[known.String()]++
			mu.Unlock()
			return halve(ctx, img, known)
		})
		var done, of int
		o.Measure, o.Progress = measure, func(d, total int, _ string) { done, of = d, total }
		r, err := offline.Run(t.Context(), in, filepath.Join(t.TempDir(), "out"), o)
		if err != nil || r.Denoised != 10 || r.Failed != 1 || r.Unchanged != 1 {
			t.Fatalf("%d cores: %v, %+v", cores, err, r)
		}
		if len(heard) != 2 || heard[want["one"].String()] != 8 || heard[want["two"].String()] != 2 {
			t.Errorf("%d cores: heard %v, want 8 times %v, 2 times %v", cores, heard, want["one"], want["two"])
		}
		if done != 24 || of != 24 {
			t.Errorf("%d cores: %d of %d are done", cores, done, of)
		}
		i := slices.IndexFunc(r.Files, func(f offline.File) bool { return f.Error != "" })
		if f := r.Files[i]; !strings.HasSuffix(f.In, "h.dcm") || f.Error != "measure frame 0: too odd" || f.Out == "" {
			t.Errorf("%d cores: %+v", cores, f)
		}
	}
	// One file alone.
	o := options(func(ctx context.Context, img dataset.Image, known evidence.Sums,
	) (*offline.Result, error) {
		if w := tell(img.Pixels); !slices.Equal(known, w) {
			t.Errorf("one file: heard %v, want %v", known, w)
		}
		return halve(ctx, img, known)
	})
	o.Measure = measure
	r, err := offline.Run(t.Context(), filepath.Join(in, "one", "a.dcm"), filepath.Join(t.TempDir(), "a.dcm"), o)
	if err != nil || r.Denoised != 1 {
		t.Errorf("one file: %v, %+v", err, r)
	}
}

// TestVolumeTells: all slices of a NIfTI file, of four dimensions too, are one series; its
// result is the same, byte for byte, on one core and on several.
func TestVolumeTells(t *testing.T) {
	dir := t.TempDir()
	v, err := nifti.New(8, 4, 3, 2, nifti.Float32)
	if err != nil {
		t.Fatal(err)
	}
	tell := func(px []float32) evidence.Sums { return evidence.Sums{math.Exp(float64(px[0]) / 7)} }
	var want evidence.Sums
	for k := range 6 {
		px := make([]float32, 32)
		for i := range px {
			px[i] = float32((100*k*k + i) % 97)
		}
		want = want.Plus(tell(px))
		if _, err := v.SetSlice(k, px); err != nil {
			t.Fatal(err)
		}
	}
	in := filepath.Join(dir, "in.nii")
	if err := nifti.Write(in, v); err != nil {
		t.Fatal(err)
	}
	o := options(func(_ context.Context, img dataset.Image, known evidence.Sums) (*offline.Result, error) {
		if !slices.Equal(known, want) {
			t.Errorf("heard %v, want %v", known, want)
		}
		px := slices.Clone(img.Pixels)
		for i := range px {
			px[i] += float32(known[0])
		}
		return &offline.Result{Pixels: px, Share: 1}, nil
	})
	o.Measure = func(_ context.Context, img dataset.Image) (evidence.Sums, error) {
		time.Sleep(rand.N(3 * time.Millisecond))
		return tell(img.Pixels), nil
	}
	var done, of int
	o.Progress = func(d, total int, _ string) { done, of = d, total }
	var first []byte
	for _, cores := range []int{1, 2, 5} {
		before := runtime.GOMAXPROCS(cores)
		t.Cleanup(func() { runtime.GOMAXPROCS(before) })
		done = 0
		out := filepath.Join(dir, "out.nii")
		if _, err := offline.Run(t.Context(), in, out, o); err != nil {
			t.Fatal(err)
		}
		if done != 12 || of != 12 {
			t.Errorf("%d cores: %d of %d are done", cores, done, of)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		if !bytes.Equal(b, first) {
			t.Errorf("%d cores: other bytes than on one", cores)
		}
	}
	o.Measure = func(_ context.Context, img dataset.Image) (evidence.Sums, error) {
		if img.Pixels[0] == 1600%97 {
			return nil, errors.New("broken")
		}
		return nil, nil
	}
	_, err = offline.Run(t.Context(), in, filepath.Join(dir, "none.nii"), o)
	if err == nil || !strings.Contains(err.Error(), "measure slice 1 of volume 1: broken") {
		t.Errorf("a slice that cannot be measured: %v", err)
	}
}

// TestFrames: the frames of an object are all measured before the first is denoised.
func TestFrames(t *testing.T) {
	const side, count = 16, 5
	const class, sop = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.3.4"
	us := func(tag dcm.Tag, v int) dcm.Node {
		return dcm.Node{Tag: tag, VR: dcm.US, Value: binary.LittleEndian.AppendUint16(nil, uint16(v))}
	}
	var px []byte
	var want evidence.Sums
	tell := func(first float32) evidence.Sums { return evidence.Sums{1, float64(first)} }
	for k := range count {
		want = want.Plus(tell(float32(100 + k)))
		for i := range side * side {
			px = binary.LittleEndian.AppendUint16(px, uint16(100+k+7*i))
		}
	}
	nodes := []dcm.Node{
		dcm.Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\ND`), dcm.Text(dcm.SOPClassUID, dcm.UI, class),
		dcm.Text(dcm.SOPInstanceUID, dcm.UI, sop), dcm.Text(dcm.Modality, dcm.CS, "MR"),
		dcm.Text(dcm.StudyInstanceUID, dcm.UI, "1.2.3"), dcm.Text(dcm.SeriesInstanceUID, dcm.UI, "1.2.3.1"),
		dcm.Text(dcm.NumberOfFrames, dcm.IS, strconv.Itoa(count)),
		dcm.Text(dcm.PhotometricInterpretation, dcm.CS, "MONOCHROME2"),
		us(dcm.SamplesPerPixel, 1), us(dcm.Rows, side), us(dcm.Columns, side), us(dcm.BitsAllocated, 16),
		us(dcm.BitsStored, 12), us(dcm.HighBit, 11), us(dcm.PixelRepresentation, 0),
		dcm.Sequence(dcm.SharedFunctionalGroupsSequence, []dcm.Node{}),
		dcm.Sequence(dcm.PerFrameFunctionalGroupsSequence, slices.Repeat([][]dcm.Node{{}}, count)...),
		{Tag: dcm.PixelData, VR: dcm.OW, Value: px},
	}
	slices.SortFunc(nodes, func(a, b dcm.Node) int { return cmp.Compare(a.Tag, b.Tag) })
	var b bytes.Buffer
	meta := dcm.FileMeta{SOPClassUID: class, SOPInstanceUID: sop, TransferSyntaxUID: dcm.ExplicitVRLittleEndian}
	if _, err := dcm.WriteFileMeta(&b, meta); err != nil {
		t.Fatal(err)
	}
	b.Write(dcm.Encoding{}.Append(nil, nodes...))
	in := filepath.Join(t.TempDir(), "in.dcm")
	write(t, in, b.Bytes())
	var mu sync.Mutex
	order := ""
	o := options(func(ctx context.Context, img dataset.Image, known evidence.Sums) (*offline.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		order += "d"
		if !slices.Equal(known, want) {
			t.Errorf("heard %v, want %v", known, want)
		}
		return halve(ctx, img, known)
	})
	o.Measure = func(_ context.Context, img dataset.Image) (evidence.Sums, error) {
		mu.Lock()
		defer mu.Unlock()
		order += "m"
		return tell(img.Pixels[0]), nil
	}
	r, err := offline.Run(t.Context(), in, filepath.Join(t.TempDir(), "out.dcm"), o)
	if err != nil || r.Denoised != 1 || r.Slices != count || order != "mmmmmddddd" {
		t.Errorf("%v, %+v, order %s", err, r, order)
	}
}

// TestFit: a method is fitted once to every series, to frames from all of it but no more than
// FitSlices, knowing what all of it tells; what it returns denoises that series and no other.
func TestFit(t *testing.T) {
	in, out := t.TempDir(), t.TempDir()
	v := phantom.New(phantom.Spec{Width: 32, Height: 32, Slices: offline.FitSlices + 10, Sigma: 0.04})
	long, short := phantom.NewIDs("long"), phantom.NewIDs("short")
	for k := range v.Noisy {
		write(t, filepath.Join(in, fmt.Sprintf("long%02d.dcm", k)), dicom(t, v, k, long))
	}
	for k := range 3 {
		write(t, filepath.Join(in, fmt.Sprintf("short%d.dcm", k)), dicom(t, v, k, short))
	}
	o := options(halve)
	o.Measure = func(context.Context, dataset.Image) (evidence.Sums, error) { return evidence.Sums{1}, nil }
	fits := map[float64]int{} // by the number of slices that tell
	o.Fit = func(ctx context.Context, images []dataset.Image, known evidence.Sums) (offline.Method, offline.Fit, error) {
		if err := ctx.Err(); err != nil {
			return o.Method, offline.Fit{}, err
		}
		fits[known[0]] += len(images)
		if known[0] == 3 {
			return o.Method, offline.Fit{Slices: len(images), Why: "too few"}, nil
		}
		by := o.Method
		by.Model.Method = "fitted"
		by.Denoise = func(ctx context.Context, img dataset.Image, known evidence.Sums) (*offline.Result, error) {
			r, err := halve(ctx, img, known)
			r.Sigma = 4
			return r, err
		}
		return by, offline.Fit{Slices: len(images), Fitted: true, Before: 0.5, After: 0.4}, nil
	}
	r, err := offline.Run(t.Context(), in, out, o)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[float64]int{float64(len(v.Noisy)): len(v.Noisy) / 2, 3: 3}; !maps.Equal(fits, want) {
		t.Errorf("images that were fitted to: %v, want %v", fits, want)
	}
	if len(r.Fits) != 2 || !r.Fits[0].Fitted || r.Fits[0].Series != long.SeriesInstanceUID || r.Fits[1].Fitted ||
		r.Fits[1].Series != short.SeriesInstanceUID {
		t.Errorf("fits %+v", r.Fits)
	}
	for _, f := range r.Files {
		fitted := strings.HasPrefix(filepath.Base(f.In), "long")
		if !f.Denoised || (f.Sigma == 4) != fitted || (f.Model != nil) != fitted {
			t.Errorf("%s: noise %g, model %v", f.In, f.Sigma, f.Model)
		}
	}
	o.Fit = func(context.Context, []dataset.Image, evidence.Sums) (offline.Method, offline.Fit, error) {
		return offline.Method{}, offline.Fit{}, errors.New("no memory")
	}
	if r, err = offline.Run(t.Context(), in, t.TempDir(), o); err != nil || r.Denoised != len(r.Files) ||
		r.Fits[0].Fitted || r.Fits[0].Why != "no memory" {
		t.Errorf("a fit that fails: %v, %+v", err, r.Fits)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.Fit = func(context.Context, []dataset.Image, evidence.Sums) (offline.Method, offline.Fit, error) {
		cancel()
		return offline.Method{}, offline.Fit{}, ctx.Err()
	}
	if _, err := offline.Run(ctx, in, t.TempDir(), o); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}

// TestByModality: each image goes through the model of its modality, which its derived object and the
// report name; a model that cannot fails the file with its reason, and no other.
func TestByModality(t *testing.T) {
	in, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	v := phantom.New(phantom.Spec{Width: 32, Height: 40, Slices: 1, Sigma: 0.04})
	for modality, class := range map[string]string{"MR": "4", "CR": "1"} {
		file := dicom(t, v, 0, phantom.NewIDs(modality))
		for old, now := range map[string]string{
			"\x08\x00\x16\x00UI\x1a\x001.2.840.10008.5.1.4.1.1.4\x00": "\x08\x00\x16\x00UI\x1a\x00" +
				"1.2.840.10008.5.1.4.1.1." + class + "\x00",
			"\x08\x00\x60\x00CS\x02\x00MR": "\x08\x00\x60\x00CS\x02\x00" + modality,
		} {
			if bytes.Count(file, []byte(old)) != 1 {
				t.Fatalf("the phantom has no %q", old)
			}
			file = bytes.Replace(file, []byte(old), []byte(now), 1)
		}
		write(t, filepath.Join(in, modality+".dcm"), file)
	}
	o := options(halve)
	own := offline.Method{Denoise: halve, Model: derive.ModelInfo{Name: "rays", Version: "2", Hash: "11"}}
	o.For = func(modality string) offline.Method {
		if modality == "CR" {
			return own
		}
		return o.Method
	}
	r, err := offline.Run(t.Context(), in, out, o)
	if err != nil || r.Denoised != 2 || r.Model != o.Model {
		t.Fatalf("report %+v, %v", r, err)
	}
	if cr, mr := r.Files[0], r.Files[1]; cr.Model == nil || *cr.Model != own.Model || mr.Model != nil {
		t.Errorf("the report names %+v and %+v", cr.Model, mr.Model)
	}
	for modality, name := range map[string]string{"CR": "rays 2", "MR": "half 1"} {
		text := open(t, filepath.Join(out, modality+".dcm")).String(dcm.DerivationDescription)
		if !strings.Contains(text, name) {
			t.Errorf("%s: %q does not name %s", modality, text, name)
		}
	}
	own.Denoise = func(context.Context, dataset.Image, evidence.Sums) (*offline.Result, error) {
		return nil, errors.New("none for high")
	}
	if r, err = offline.Run(t.Context(), in, out, o); err != nil || r.Denoised != 1 || r.Failed != 1 ||
		!strings.Contains(r.Files[0].Error, "none for high") || r.Files[0].Model != nil {
		t.Errorf("report %+v, %v", r, err)
	}
}
