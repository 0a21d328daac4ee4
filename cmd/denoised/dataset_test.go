package main

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/train"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

// gathered is what readDataset found, with every slice read.
type gathered struct {
	volumes []train.Volume
	slices  map[string][]string // by source: size, sum of the pixels
	skips   []train.Skip
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
	err := readDataset(t.Context(), root, func(v train.Volume) error {
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
	}, func(s train.Skip) { g.skips = append(g.skips, s) })
	if err != nil {
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

func pngBytes(t *testing.T, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestDataset: one folder with everything in it that people have; what can be
// read comes as volumes in the order of their names, the rest with a reason.
func TestDataset(t *testing.T) {
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
		if err := n.SetSlice(k, px); err != nil {
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
		"broken/short.nii.gz": train.SkipUnreadable,
		"broken/rgb.nii":      skipColour,
		"broken/huge.nii":     train.SkipTooLarge,
		"x/colour.png":        skipColour,
		"x/half.png":          train.SkipUnreadable,
		"notes.txt":           skipNotImage,
		"empty":               skipNotImage,
		"loop":                skipLink,
		"dicom/up":            skipLink,
		"ring1":               skipLink,
		"ring2":               skipLink,
		"dangling":            skipLink,
		"zlink":               skipLink,
		"zlink2.nii.gz":       skipLink,
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

// storeObject puts a file into a spool as the daemon does.
func storeObject(t *testing.T, s *spool.Store, kind spool.Kind, raw []byte, series, sop string) (name string) {
	t.Helper()
	f, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Discard()
	if _, err := f.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(spool.Record{Kind: kind}); err != nil {
		t.Fatal(err)
	}
	name = spool.FileName(kind, series, sop, "")
	if err := f.Publish(name); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestDatasetSpool: the state folder of a daemon gives its originals, not what
// it made of them; an image that goes meanwhile is a skip.
func TestDatasetSpool(t *testing.T) {
	state := t.TempDir()
	store, err := spool.OpenStore(spool.DirFS(filepath.Join(state, "spool")), spool.Limits{Refuse: 1, Reserve: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	v := phantom.New(phantom.Spec{Width: 64, Height: 64, Slices: 4, Sigma: 0.05})
	ids := phantom.NewIDs("spooled")
	names := make([]string, 4)
	for k := range 4 {
		raw := phantomDICOM(t, v, k, ids)
		names[k] = storeObject(t, store, spool.Original, raw, ids.SeriesInstanceUID, ids.SOPInstanceUID(k))
	}
	storeObject(t, store, spool.Derived, phantomDICOM(t, v, 0, phantom.NewIDs("ours")), "1.2", "1.2.3")
	write(t, filepath.Join(state, "spool", "tmp", "unfinished"), []byte("half"))
	write(t, filepath.Join(state, "journal.db"), []byte("not for us"))
	for _, root := range []string{state, filepath.Join(state, "spool")} {
		g := gather(t, root)
		if len(g.volumes) != 1 || g.volumes[0].Slices != 4 || len(g.skips) != 0 {
			t.Fatalf("%s: volumes %q, skips %+v", root, g.sources(), g.skips)
		}
	}
	// Retention takes the third image away while the second is read.
	b := train.NewBuilder(train.Options{})
	err = readDataset(t.Context(), state, func(v train.Volume) error {
		read := v.Read
		v.Read = func(k int) (models.Image, error) {
			if k == 2 {
				if err := store.Remove(names[2]); err != nil {
					t.Error(err)
				}
			}
			return read(k)
		}
		return b.Add(context.Background(), v)
	}, b.Skip)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Build(t.Context())
	if err == nil || !strings.Contains(err.Error(), "3 usable slices") || !strings.Contains(err.Error(), "1 gone") {
		t.Errorf("an image that went: %v", err)
	}
}

// TestDatasetReal: of the real data every volume is read and the DICOM corpus
// gives only what may be denoised.
func TestDatasetReal(t *testing.T) {
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
	if len(g.volumes) < 15 || n[skipNotImage] == 0 || n[string(derive.Colour)] == 0 || n[string(derive.Mosaic)] == 0 {
		t.Errorf("%d volumes, skipped %v", len(g.volumes), n)
	}
}
