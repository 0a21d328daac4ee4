package dataset_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// gathered is what a Reader found, with every slice read.
type gathered struct {
	volumes []dataset.Volume
	slices  map[string][]string // by source: size, sum of the pixels
	skips   []dataset.Skip
}

// reason returns why a source was skipped.
func (g *gathered) reason(source string) string {
	for _, s := range g.skips {
		if s.Source == source {
			return s.Reason
		}
	}
	return ""
}

func (g *gathered) sources() (names []string) {
	for _, v := range g.volumes {
		names = append(names, v.Source)
	}
	return names
}

func gather(t *testing.T, root string) *gathered {
	t.Helper()
	g := &gathered{slices: map[string][]string{}}
	r := dataset.Reader{Objects: derive.Images{}, Skip: func(s dataset.Skip) { g.skips = append(g.skips, s) }}
	r.Add = func(v dataset.Volume) error {
		g.volumes = append(g.volumes, v)
		for k := range v.Slices {
			img, err := v.Read(k)
			if err != nil {
				return fmt.Errorf("%s slice %d: %w", v.Source, k, err)
			}
			sum := 0.0
			for i, p := range img.Pixels {
				if img.Skip == nil || !img.Skip[i] {
					sum += float64(p)
				}
			}
			g.slices[v.Source] = append(g.slices[v.Source], fmt.Sprintf("%dx%d %.0f", img.Width, img.Height, sum))
		}
		return nil
	}
	if err := r.Read(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	return g
}

func phantomDICOM(t *testing.T, v *phantom.Volume, k int, ids phantom.IDs) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := v.WriteDICOM(&b, k, ids); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
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

func pngBytes(t *testing.T, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestRead: one folder with everything in it that people have; what can be
// read comes as volumes in the order of their names, the rest with a reason.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	v := phantom.New(phantom.Spec{Width: 64, Height: 48, Slices: 3, Sigma: 0.05})
	wide := phantom.New(phantom.Spec{Width: 80, Height: 48, Slices: 4, Sigma: 0.05})
	ids := phantom.NewIDs("dataset")
	ids.PatientID = "A"
	for k := range 3 {
		write(t, at(fmt.Sprintf("dicom/%d.dcm", 9-k)), phantomDICOM(t, v, k, ids))
	}
	write(t, at("dicom/copy.dcm"), phantomDICOM(t, v, 1, ids))
	other := phantom.NewIDs("another") // another size in the same series
	other.SeriesInstanceUID = ids.SeriesInstanceUID
	write(t, at("dicom/wide.dcm"), phantomDICOM(t, wide, 3, other))
	write(t, at("dicom/cut.dcm"), phantomDICOM(t, v, 2, phantom.NewIDs("cut"))[:3000])

	n, err := nifti.New(64, 48, 2, 3, nifti.Int16)
	if err != nil {
		t.Fatal(err)
	}
	for k := range 6 {
		px := slices.Clone(v.Noisy[k%3])
		for i := range px {
			px[i] *= float32(100 * (k + 1))
		}
		if _, err := n.SetSlice(k, px); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(at("sub-07"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sub-07/four.nii", "sub-07/packed.nii.gz"} {
		if err := nifti.Write(at(name), n); err != nil {
			t.Fatal(err)
		}
	}
	packed, err := os.ReadFile(at("sub-07/packed.nii.gz"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, at("broken/short.nii.gz"), packed[:len(packed)/2])
	plain, err := os.ReadFile(at("sub-07/four.nii"))
	if err != nil {
		t.Fatal(err)
	}
	rgb := bytes.Clone(plain)
	rgb[70], rgb[72] = 128, 24
	write(t, at("broken/rgb.nii"), rgb)
	huge := bytes.Clone(plain[:400])
	for i, d := range []int16{4, 4096, 4096, 64, 1} {
		huge[40+2*i], huge[41+2*i] = byte(d), byte(d>>8)
	}
	write(t, at("broken/huge.nii"), huge)

	grey, deep := image.NewGray(image.Rect(0, 0, 40, 36)), image.NewGray16(image.Rect(0, 0, 40, 36))
	colour := image.NewRGBA(image.Rect(0, 0, 40, 36))
	for i := range 40 * 36 {
		grey.Set(i%40, i/40, color.Gray{uint8(i)})
		deep.Set(i%40, i/40, color.Gray16{uint16(10 * i)})
		colour.Set(i%40, i/40, color.RGBA{uint8(i), 0, 1, 255})
	}
	write(t, at("x/grey.png"), pngBytes(t, grey))
	write(t, at("x/deep.PNG"), pngBytes(t, deep))
	write(t, at("x/colour.png"), pngBytes(t, colour))
	write(t, at("x/half.png"), pngBytes(t, deep)[:90])
	write(t, at("notes.txt"), []byte("nothing"))
	write(t, at("empty"), nil)

	for link, target := range map[string]string{
		"loop":          ".",
		"dicom/up":      "..",
		"ring1":         "ring2",
		"ring2":         "ring1",
		"dangling":      "nowhere",
		"x/again.png":   "grey.png",
		"zlink":         "x/other",
		"zlink2.nii.gz": "sub-07/packed.nii.gz",
	} {
		if err := os.Symlink(target, at(link)); err != nil {
			t.Skipf("no symbolic links here: %v", err)
		}
	}
	write(t, at("x/other/linked.png"), pngBytes(t, deep))

	g := gather(t, dir)
	want := []string{"dicom/7.dcm", "dicom/wide.dcm",
		"sub-07/four.nii#0", "sub-07/four.nii#1", "sub-07/four.nii#2",
		"sub-07/packed.nii.gz#0", "sub-07/packed.nii.gz#1", "sub-07/packed.nii.gz#2",
		"x/deep.PNG", "x/grey.png", "x/other/linked.png"}
	got := g.sources()
	for i, name := range got { // x/again.png comes before its target
		if name == "x/again.png" {
			got[i] = "x/grey.png"
		}
	}
	slices.Sort(got)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("volumes %q\nwant    %q", got, want)
	}
	for _, v := range g.volumes {
		subject := map[string]string{"dicom": "patient A", "sub-07": "sub 7"}[strings.Split(v.Source, "/")[0]]
		if v.Source == "dicom/wide.dcm" {
			subject = "patient PHANTOM"
		}
		if subject != "" && v.Subject != subject {
			t.Errorf("%s is of subject %q, want %q", v.Source, v.Subject, subject)
		}
		if strings.HasPrefix(v.Source, "dicom") && v.Modality != "MR" {
			t.Errorf("%s is of modality %q", v.Source, v.Modality)
		}
	}
	// The series is in the order of its instance numbers, not of the files.
	sums := g.slices["dicom/7.dcm"]
	if len(sums) != 3 {
		t.Fatalf("slices %q, want 3", sums)
	}
	for k := range sums {
		total := 0.0
		for _, p := range v.Noisy[k] {
			total += min(max(float64(int(float64(p)*3000+0.5)), 0), 4095)
		}
		if want := fmt.Sprintf("64x48 %.0f", total); sums[k] != want {
			t.Errorf("slice %d is %s, want %s", k, sums[k], want)
		}
	}
	if a, b := g.slices["sub-07/four.nii#2"], g.slices["sub-07/packed.nii.gz#2"]; len(a) != 2 || !slices.Equal(a, b) || a[0] == a[1] {
		t.Errorf("fourth axis: %v and %v", a, b)
	}
	for source, reason := range map[string]string{
		"dicom/copy.dcm":      "", // or 8.dcm, whichever comes first
		"dicom/cut.dcm":       string(derive.Truncated),
		"broken/short.nii.gz": dataset.Unreadable,
		"broken/rgb.nii":      dataset.Colour,
		"broken/huge.nii":     dataset.TooLarge,
		"x/colour.png":        dataset.Colour,
		"x/half.png":          dataset.Unreadable,
		"notes.txt":           dataset.NotImage,
		"empty":               dataset.NotImage,
		"loop":                dataset.Link,
		"dicom/up":            dataset.Link,
		"ring1":               dataset.Link,
		"ring2":               dataset.Link,
		"dangling":            dataset.Link,
		"zlink":               dataset.Link,
		"zlink2.nii.gz":       dataset.Link,
	} {
		if reason != "" && g.reason(source) != reason {
			t.Errorf("%s: reason %q, want %q", source, g.reason(source), reason)
		}
	}
	if g.reason("dicom/copy.dcm") == "" == (g.reason("dicom/8.dcm") == "") {
		t.Errorf("of a file and its copy not exactly one is a duplicate: %+v", g.skips)
	}
	if again := gather(t, dir); !reflect.DeepEqual(again.slices, g.slices) || !reflect.DeepEqual(again.skips, g.skips) {
		t.Error("reading the folder again gives something else")
	}
}

// TestReadReal: of the real data every volume is read and the DICOM corpus
// gives only what may be denoised.
func TestReadReal(t *testing.T) {
	dir := testdata.Dir(t)
	g := gather(t, filepath.Join(dir, "dicom"))
	for _, v := range g.volumes {
		for _, bad := range []string{"siemens_mosaic", "dti_mosaic", "malformed", "nonimage", "_rgb"} {
			if strings.Contains(v.Source, bad) {
				t.Errorf("%s is read", v.Source)
			}
		}
	}
	n := map[string]int{}
	for _, s := range g.skips {
		n[s.Reason]++
	}
	if len(g.volumes) < 15 || n[dataset.NotImage] == 0 || n[string(derive.Colour)] == 0 ||
		n[string(derive.Mosaic)] == 0 {
		t.Errorf("%d volumes, skipped %v", len(g.volumes), n)
	}
}

func TestSubjectOf(t *testing.T) {
	for name, want := range map[string]string{
		"sub-01/anat/sub-01_T1w.nii.gz":         "sub 1",
		"ms/patient01_study2_FLAIR.nii.gz":      "patient 1",
		"ms/patient01_study1_T1W.nii.gz":        "patient 1",
		`C\Subject_0012\x.nii`:                  "subject 12",
		"subcortical/t1.nii":                    "subcortical/t1.nii",
		"a/./t1.nii":                            "a/t1.nii",
		"compatible7/t1.nii":                    "compatible7/t1.nii",
		"fetal_haste/sub-01_run-1_T2w.nii.gz#3": "sub 1",
	} {
		if got := dataset.SubjectOf(name); got != want {
			t.Errorf("SubjectOf(%q) = %q, want %q", name, got, want)
		}
	}
}

// TestReadScaled: the pixels of a volume are real values, whatever it is stored as.
func TestReadScaled(t *testing.T) {
	dir := t.TempDir()
	real := []float32{-100, 0, 250, 499.5}
	for _, c := range []struct {
		name             string
		typ              nifti.Datatype
		slope, intercept float32
	}{{"a", nifti.Float32, 1, 0}, {"b", nifti.Int16, 0.25, 8000}, {"c", nifti.Uint16, 0.5, -100}, {"d", nifti.Uint16,
		0, 7}} {
		n, err := nifti.New(2, 2, 1, 1, c.typ)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := n.Encode(&b); err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint32(b.Bytes()[112:], math.Float32bits(c.slope))
		binary.LittleEndian.PutUint32(b.Bytes()[116:], math.Float32bits(c.intercept))
		if n, err = nifti.Decode(&b); err != nil {
			t.Fatal(err)
		}
		if _, err := n.SetSlice(0, real); err != nil {
			t.Fatal(err)
		}
		if err := nifti.Write(filepath.Join(dir, c.name+".nii"), n); err != nil {
			t.Fatal(err)
		}
	}
	bad, err := os.ReadFile(filepath.Join(dir, "b.nii"))
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(bad[116:], math.Float32bits(float32(math.NaN())))
	write(t, filepath.Join(dir, "e.nii"), bad)
	g := gather(t, dir)
	want := map[string][]string{"a.nii": {"2x2 650"}, "b.nii": {"2x2 650"}, "c.nii": {"2x2 650"},
		"d.nii": {"2x2 750"}} // it has no scaling, and nothing below 0
	if !reflect.DeepEqual(g.slices, want) {
		t.Errorf("read %v, want %v", g.slices, want)
	}
	if len(g.skips) != 1 || g.skips[0].Reason != dataset.Unreadable || !strings.Contains(g.skips[0].Detail,
		"scl_inter is NaN") {
		t.Errorf("left out %+v", g.skips)
	}
}

// TestInside: what is there is followed through links, what is not yet there lies
// where its folder leads.
func TestInside(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a", "b", "file"), nil)
	if err := os.Symlink(filepath.Join(dir, "a"), filepath.Join(dir, "link")); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	for _, c := range []struct {
		path, folder string
		want         bool
	}{
		{"a", "a", true},
		{"a/b", "a", true},
		{"a/b/file", "a", true},
		{"a/not/yet", "a", true},
		{"a/b/../../c", "a", false},
		{"ab", "a", false},
		{"c", "a", false},
		{"a", "a/b", false},
		{"link/b/new", "a", true},
		{"a/b", "link", true},
		{"a/b", "link/b/file", false},
		{"a/b/file", "link/b/file", true},
	} {
		got, err := dataset.Inside(filepath.Join(dir, c.path), filepath.Join(dir, c.folder))
		if err != nil || got != c.want {
			t.Errorf("%s inside %s: %v, %v", c.path, c.folder, got, err)
		}
	}
	if in, err := dataset.Inside(dir, string(filepath.Separator)); err != nil || !in {
		t.Errorf("everything lies in the root: %v, %v", in, err)
	}
}
