package derive_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	suyash "github.com/suyashkumar/dicom"
	"github.com/suyashkumar/dicom/pkg/tag"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

var update = flag.Bool("update", false, "rewrite testdata/verdicts.txt")

// corpus lists the real DICOM files, relative to the data folder.
func corpus(t testing.TB) (dir string, files []string) {
	t.Helper()
	dir = testdata.Dir(t)
	for _, sub := range []string{"dicom", "repeats/phantom_pairs", "xray/dicom"} {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(dir, p)
			files = append(files, filepath.ToSlash(rel))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(files)
	return dir, files
}

// TestVerdicts holds the verdict on every real file, damaged and hostile ones
// included, to the recorded table. A changed line is a changed promise.
func TestVerdicts(t *testing.T) {
	dir, files := corpus(t)
	var b strings.Builder
	for _, name := range files {
		file, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		o, _ := scanBytes(file)
		v := derive.Inspect(o)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 || strings.Contains(name, "malformed") && n > 2<<20 {
			t.Errorf("%s: %d bytes allocated", name, n)
		}
		reason := string(v.Reason)
		if v.OK() {
			reason = "ok"
		}
		fmt.Fprintf(&b, "%s\t%s\n", name, reason)
	}
	golden := filepath.Join("testdata", "verdicts.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
		for _, l := range g {
			if !slices.Contains(w, l) {
				t.Errorf("now:      %s", l)
			}
		}
		for _, l := range w {
			if !slices.Contains(g, l) {
				t.Errorf("recorded: %s", l)
			}
		}
	}
}

// denoisable calls visit for every real file that can be denoised.
func denoisable(t *testing.T, visit func(t *testing.T, path string, file []byte, src *dcm.Object)) {
	dir, files := corpus(t)
	n := 0
	for _, name := range files {
		file, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		src, _ := scanBytes(file)
		if !derive.Inspect(src).OK() {
			continue
		}
		n++
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			visit(t, filepath.Join(dir, name), file, src)
		})
	}
	if n < 70 {
		t.Errorf("only %d files", n)
	}
}

// Every denoisable real file: the derived object passes Verify, a second parser
// sees the same geometry, text and private data, and it is refused a second time.
func TestDeriveRealFiles(t *testing.T) {
	denoisable(t, func(t *testing.T, _ string, file []byte, src *dcm.Object) {
		same, _, _ := write(t, src, params(), unchanged(src))
		if !bytes.Equal(pixelBytes(t, same), pixelBytes(t, src)) {
			t.Error("unchanged values changed pixels")
		}
		got, info, out := write(t, src, params(), smooth(src))
		if info.Changed == 0 {
			t.Error("smoothing changed nothing")
		}
		if v := derive.Inspect(got); v.Reason != derive.AlreadyDenoised {
			t.Errorf("the derived object is %v", v)
		}
		compareWithSuyash(t, file, out)
	})
}

// suyashParse reads a pre-scanned file with suyashkumar/dicom the way that is
// safe: text stays raw bytes because SpecificCharacterSet is hidden under an
// unused tag, pixels stay raw, and a panic or a hang is an error.
func suyashParse(file []byte) (suyash.Dataset, error) {
	o, err := scanBytes(file)
	if err != nil {
		return suyash.Dataset{}, err
	}
	file = bytes.Clone(file)
	if e := o.Find(dcm.SpecificCharacterSet); e.OK() {
		file[e.Offset()+2] = 0x04 // (0008,0004) means nothing
	}
	type result struct {
		ds  suyash.Dataset
		err error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("panic: %v", p)
			}
			done <- r
		}()
		r.ds, r.err = suyash.Parse(bytes.NewReader(file), int64(len(file)), nil,
			suyash.SkipProcessingPixelDataValue(), suyash.AllowMissingMetaElementGroupLength(), suyash.AllowMismatchPixelDataLength())
	}()
	select {
	case r := <-done:
		return r.ds, r.err
	case <-time.After(30 * time.Second):
		return suyash.Dataset{}, fmt.Errorf("hangs")
	}
}

// compareWithSuyash compares every element that the list of changes does not
// name, as another parser understands it.
func compareWithSuyash(t *testing.T, src, derived []byte) {
	t.Helper()
	a, err := suyashParse(src)
	if err != nil {
		t.Logf("the source is beyond the second parser: %v", err)
		return
	}
	b, err := suyashParse(derived)
	if err != nil {
		t.Errorf("second parser: %v", err)
		return
	}
	values := func(ds suyash.Dataset) map[tag.Tag]string {
		m := map[tag.Tag]string{}
		for _, e := range ds.Elements {
			m[e.Tag] = fmt.Sprint(e.Value)
		}
		return m
	}
	va, vb := values(a), values(b)
	if vb[tag.PixelData] == "" {
		t.Error("second parser: no pixel data")
	}
	n := 0
	for tg, want := range va {
		switch {
		case tg.Group == 2, tg.Element == 0, tg.Group == 0x7FE0, tg.Group == 0x5200, tg.Group == 0x0008, tg.Group == 0xFFFC, tg == tag.IconImageSequence,
			tg == tag.SeriesInstanceUID, tg == tag.SeriesNumber, tg == tag.ContentQualification, tg == tag.ContributingEquipmentSequence,
			tg == tag.SmallestImagePixelValue, tg == tag.LargestImagePixelValue, tg == tag.SmallestPixelValueInSeries,
			tg == tag.LargestPixelValueInSeries:
			continue
		}
		n++
		if vb[tg] != want {
			t.Errorf("second parser: %v differs", tg)
		}
	}
	if n < 15 {
		t.Errorf("second parser compared only %d elements", n)
	}
}

// valueInMessage is what distinguishes two messages of one class.
var valueInMessage = regexp.MustCompile(`<[^>]*>|= '.'.*$|"[^"]*" in \(.*$`)

// errorClasses runs dciodvfy and returns the kinds of errors, without values
// and positions.
func errorClasses(t *testing.T, program, file string) map[string]bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// the exit status is 1 for any error found; a program that does not run is
	// seen by its missing output
	out, _ := exec.CommandContext(ctx, program, file).CombinedOutput()
	if len(out) == 0 {
		t.Fatalf("%s says nothing", program)
	}
	classes := map[string]bool{}
	for line := range strings.SplitSeq(string(out), "\n") {
		if strings.HasPrefix(line, "Error") && !vfyKnown(line) {
			classes[valueInMessage.ReplaceAllString(line, "")] = true
		}
	}
	return classes
}

// vfyKnown are messages of dciodvfy that contradict the standard: the attributes
// of the MR Pulse Sequence module "may be present otherwise" in derived images
// (PS3.3 C.8.13.4, table C.8-87), and scanners' own derived objects draw the
// same messages.
func vfyKnown(line string) bool {
	return strings.Contains(line, "may not be present otherwise") && strings.Contains(line, "Module=<MRPulseSequence>")
}

// dciodvfy reports no class of errors that the source does not have.
func TestDciodvfy(t *testing.T) {
	testdata.Peer(t, "dciodvfy")
	program := testdata.Path(t, "dciodvfy")
	denoisable(t, func(t *testing.T, path string, _ []byte, src *dcm.Object) {
		_, _, out := write(t, src, params(), smooth(src))
		checkVfy(t, program, path, out)
	})
	for name, d := range map[string]*dcmtest.DataSet{
		"MR": mr(), "enhanced": enhanced(magnitude, magnitude),
		"CR": mr().Text(dcm.Modality, dcm.CS, "CR").Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.1").Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY`),
		"DX": mr().Text(dcm.Modality, dcm.CS, "DX").Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.1.1").
			Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\`).Text(dcm.PresentationIntentType, dcm.CS, "FOR PRESENTATION"),
		"DX processing": mr().Text(dcm.Modality, dcm.CS, "DX").Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.1.1.1").
			Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\`).Text(dcm.PresentationIntentType, dcm.CS, "FOR PROCESSING"),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "source.dcm")
			if err := os.WriteFile(path, d.File(dcmtest.Form{}), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, out := write(t, mustScan(t, d, dcmtest.Form{}), params(), func(int) ([]float32, error) { return make([]float32, 1024), nil })
			checkVfy(t, program, path, out)
		})
	}
	// the check itself: a broken object must be found
	t.Run("control", func(t *testing.T) {
		bad := filepath.Join(t.TempDir(), "bad.dcm")
		if err := os.WriteFile(bad, mr().Text(dcm.ImageType, dcm.CS, "DERIVED").File(dcmtest.Form{}), 0o600); err != nil {
			t.Fatal(err)
		}
		good := filepath.Join(t.TempDir(), "good.dcm")
		if err := os.WriteFile(good, mr().File(dcmtest.Form{}), 0o600); err != nil {
			t.Fatal(err)
		}
		if len(newClasses(t, program, good, bad)) == 0 {
			t.Error("an image type of one value draws no new error")
		}
	})
}

func newClasses(t *testing.T, program, source, derived string) []string {
	t.Helper()
	had := errorClasses(t, program, source)
	var list []string
	for class := range errorClasses(t, program, derived) {
		if !had[class] {
			list = append(list, class)
		}
	}
	return list
}

func checkVfy(t *testing.T, program, source string, derived []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "derived.dcm")
	if err := os.WriteFile(path, derived, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, class := range newClasses(t, program, source, path) {
		t.Errorf("new class of errors: %s", class)
	}
}

// dcentvfy finds patient, study and series consistent over a series and its
// derived one, as far as they were before.
func TestDcentvfy(t *testing.T) {
	testdata.Peer(t, "dcentvfy")
	program := testdata.Path(t, "dcentvfy")
	run := func(t *testing.T, files ...string) []string {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, program, files...).CombinedOutput()
		if _, exited := err.(*exec.ExitError); err != nil && !exited {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	series := map[string][]string{}
	dir, files := corpus(t)
	for _, name := range files {
		if strings.HasPrefix(name, "dicom/series/") || strings.HasPrefix(name, "dicom/enhanced/") {
			series[filepath.Dir(name)] = append(series[filepath.Dir(name)], filepath.Join(dir, name))
		}
	}
	for name, sources := range series {
		t.Run(name, func(t *testing.T) {
			tmp := t.TempDir()
			all := slices.Clone(sources)
			for i, path := range sources {
				file, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				src, _ := scanBytes(file)
				if !derive.Inspect(src).OK() {
					continue
				}
				p := params()
				p.Now = p.Now.Add(time.Duration(i) * time.Second) // slices are made one after another
				_, _, out := write(t, src, p, smooth(src))
				all = append(all, filepath.Join(tmp, fmt.Sprintf("%d.dcm", i)))
				if err := os.WriteFile(all[len(all)-1], out, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := run(t, sources...)
			for _, line := range run(t, all...) {
				if strings.HasPrefix(line, "Error") && !slices.Contains(before, line) {
					t.Errorf("%s", line)
				}
			}
		})
	}
	t.Run("control", func(t *testing.T) {
		tmp := t.TempDir()
		for i, name := range []string{"A", "B"} {
			f := dcmtest.MR(16, 16, uint64(i)).Text(dcm.PatientName, dcm.PN, name).File(dcmtest.Form{})
			if err := os.WriteFile(filepath.Join(tmp, name), f, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out := run(t, filepath.Join(tmp, "A"), filepath.Join(tmp, "B")); !strings.Contains(strings.Join(out, "\n"), "Error") {
			t.Errorf("two names of one patient draw no error: %q", out)
		}
	})
}

// A large enhanced object is derived with the memory of one frame.
func TestWriteLargeObjectInLittleMemory(t *testing.T) {
	const frames = 256
	types := make([]string, frames)
	for i := range types {
		types[i] = magnitude
	}
	d := dcmtest.EnhancedMR(256, 256, frames, types)
	name := filepath.Join(t.TempDir(), "large.dcm")
	if err := os.WriteFile(name, d.File(dcmtest.Form{}), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	o, err := dcm.Scan(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	pixels := make([]float32, 256*256)
	if _, err := derive.Write(io.Discard, o, params(), func(int) ([]float32, error) { return pixels, nil }); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
		t.Errorf("%d bytes allocated for an object of %d", n, st.Size())
	}
}
