package dcm_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/internal/testdata"
)

// splice edits and scans the result behind the source's own header.
func splice(t testing.TB, file []byte, edit func(o *dcm.Object, ed *dcm.Editor)) *dcm.Object {
	t.Helper()
	o, err := scan(file)
	if err != nil {
		t.Fatal(err)
	}
	ed, err := o.Edit()
	if err != nil {
		t.Fatal(err)
	}
	edit(o, ed)
	out := bytes.NewBuffer(bytes.Clone(file[:o.DataSetOffset()]))
	n, err := ed.WriteTo(out)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(out.Len())-o.DataSetOffset() {
		t.Errorf("WriteTo returned %d, wrote %d", n, int64(out.Len())-o.DataSetOffset())
	}
	got, err := scan(out.Bytes())
	if err != nil {
		t.Fatalf("scan the result: %v", err)
	}
	if !got.Ordered() {
		t.Error("tags of the result do not ascend")
	}
	return got
}

func dataSet(t testing.TB, o *dcm.Object, file []byte) []byte {
	t.Helper()
	return file[o.DataSetOffset():]
}

func TestSpliceWithoutChangesCopies(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			file := sample().File(form)
			o, err := scan(file)
			if err != nil {
				t.Fatal(err)
			}
			ed, err := o.Edit()
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if _, err := ed.WriteTo(&out); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), dataSet(t, o, file)) {
				t.Error("bytes changed")
			}
		})
	}
}

func TestSpliceReplacesInsertsRemoves(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			file := sample().File(form)
			got := splice(t, file, func(o *dcm.Object, ed *dcm.Editor) {
				ed.Set(dcm.Element{}, dcm.Text(dcm.SeriesDescription, dcm.LO, "longer than it was before"))
				ed.Set(dcm.Element{}, dcm.Text(0x00080001, dcm.SH, "first"))
				ed.Set(dcm.Element{}, dcm.Text(dcm.DerivationDescription, dcm.ST, "new"))
				ed.Set(dcm.Element{}, dcm.Text(0xFFFCFFFC, dcm.OB, "last"))
				ed.Remove(dcm.Element{}, dcm.PatientSex)
				ed.Remove(dcm.Element{}, 0x00080002) // not there
				ed.Set(dcm.Element{}, dcm.Sequence(dcm.SourceImageSequence,
					[]dcm.Node{dcm.Text(dcm.ReferencedSOPInstanceUID, dcm.UI, "1.2.3")}))
			})
			for tag, want := range map[dcm.Tag]string{
				dcm.SeriesDescription: "longer than it was before", dcm.DerivationDescription: "new",
				dcm.PatientName: "Müller^Phantom", dcm.ProtocolName: "T1_HQ", dcm.PatientSex: "",
			} {
				if s := got.String(tag); s != want {
					t.Errorf("%v is %q, want %q", tag, s, want)
				}
			}
			if !got.Has(0x00080001) || !got.Has(0xFFFCFFFC) || got.Has(dcm.PatientSex) {
				t.Error("ends or removal")
			}
			for item := range got.Find(dcm.SourceImageSequence).Children() {
				if s := item.Child(dcm.ReferencedSOPInstanceUID).String(); s != "1.2.3" {
					t.Errorf("nested UID %q", s)
				}
			}
		})
	}
}

// Changes inside items correct every defined length around them.
func TestSpliceInsideItems(t *testing.T) {
	for name, form := range forms {
		if form.Unknown {
			continue
		}
		t.Run(name, func(t *testing.T) {
			file := sample().File(form)
			got := splice(t, file, func(o *dcm.Object, ed *dcm.Editor) {
				for item := range o.Find(dcm.PerFrameFunctionalGroupsSequence).Children() {
					ed.Set(item, dcm.Sequence(dcm.DerivationImageSequence, []dcm.Node{dcm.Text(dcm.DerivationDescription, dcm.ST, "odd")}))
					ed.Set(item, dcm.Text(0x7FDF0010, dcm.LO, "AT THE END"))
					for ft := range item.Child(dcm.MRImageFrameTypeSequence).Children() {
						ed.Set(ft, dcm.Text(dcm.FrameType, dcm.CS, `DERIVED\PRIMARY\M\NONE`))
						ed.Remove(ft, dcm.ComplexImageComponent)
					}
				}
				// both ends of the pixels' neighbours
				ed.Set(dcm.Element{}, dcm.Text(0x52009231, dcm.LO, "between"))
				ed.AppendItems(o.Find(dcm.PerFrameFunctionalGroupsSequence), []dcm.Node{dcm.Text(dcm.FrameType, dcm.CS, "X")})
			})
			n := 0
			for item := range got.Find(dcm.PerFrameFunctionalGroupsSequence).Children() {
				if n++; n == 4 {
					if item.Child(dcm.FrameType).String() != "X" {
						t.Error("appended item")
					}
					continue
				}
				var tags []dcm.Tag
				for c := range item.Children() {
					tags = append(tags, c.Tag())
				}
				if !slices.IsSorted(tags) || len(tags) != 4 {
					t.Errorf("item %d has %v", n, tags)
				}
				for ft := range item.Child(dcm.MRImageFrameTypeSequence).Children() {
					if s := ft.Child(dcm.FrameType).String(); s != `DERIVED\PRIMARY\M\NONE` || ft.Child(dcm.ComplexImageComponent).OK() {
						t.Errorf("frame type %q", s)
					}
				}
			}
			if n != 4 || got.String(0x52009231) != "between" {
				t.Errorf("%d items, %q", n, got.String(0x52009231))
			}
		})
	}
}

// A sequence that arrived as UN (PS3.5 6.2.2, CP-246) takes items like any other, in its own encoding.
func TestSpliceAddsItemsToUnknown(t *testing.T) {
	item := func(uid string) []dcm.Node { return []dcm.Node{dcm.Text(dcm.ReferencedSOPInstanceUID, dcm.UI, uid)} }
	implicit := dcm.Encoding{Implicit: true}.Append(nil,
		dcm.Sequence(dcm.ReferencedImageSequence, item("1.2.1"), item("1.2.2")))
	defined := sample().Set(dcm.Node{Tag: dcm.ReferencedImageSequence, VR: dcm.UN, Value: implicit[8:]})
	undefined := sample().Set(dcm.Sequence(dcm.ReferencedImageSequence, item("1.2.1"), item("1.2.2")))
	for name, file := range map[string][]byte{
		"defined length": defined.File(dcmtest.Form{}), "undefined length": undefined.File(dcmtest.Form{Unknown: true}),
	} {
		got := splice(t, file, func(o *dcm.Object, ed *dcm.Editor) {
			e := o.Find(dcm.ReferencedImageSequence)
			if e.VR() != dcm.UN || !e.TakesItems() {
				t.Errorf("%s: VR %v takes items: %v", name, e.VR(), e.TakesItems())
			}
			ed.AppendItems(e, item("1.2.3"), item("1.2.4"))
		})
		var uids []string
		for i := range got.Find(dcm.ReferencedImageSequence).Children() {
			uids = append(uids, i.Child(dcm.ReferencedSOPInstanceUID).String())
		}
		if !slices.Equal(uids, []string{"1.2.1", "1.2.2", "1.2.3", "1.2.4"}) || got.String(dcm.PatientSex) != "O" {
			t.Errorf("%s: items %q", name, uids)
		}
	}
	opaque, err := sample().Set(dcm.Node{Tag: dcm.ReferencedImageSequence, VR: dcm.UN,
		Value: []byte("no items")}).Scan(dcmtest.Form{})
	if err != nil {
		t.Fatal(err)
	}
	if opaque.Find(dcm.ReferencedImageSequence).TakesItems() || opaque.Find(dcm.SourceImageSequence).TakesItems() {
		t.Error("bytes that are no items, or nothing, take items")
	}
}

func TestSpliceStreamsPixels(t *testing.T) {
	file := dcmtest.MR(16, 16, 0).File(dcmtest.Form{})
	got := splice(t, file, func(o *dcm.Object, ed *dcm.Editor) {
		ed.Stream(o.Find(dcm.PixelData), func(w io.Writer) error {
			for range 512 {
				if _, err := w.Write([]byte{7}); err != nil {
					return err
				}
			}
			return nil
		})
	})
	b, err := got.Bytes(dcm.PixelData, 512)
	if err != nil || !bytes.Equal(b, bytes.Repeat([]byte{7}, 512)) {
		t.Fatal(err)
	}
}

func TestEditorRefuses(t *testing.T) {
	o, err := sample().Scan(dcmtest.Form{})
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(ed *dcm.Editor){
		"twice": func(ed *dcm.Editor) {
			ed.Set(dcm.Element{}, dcm.Text(dcm.Modality, dcm.CS, "MR"))
			ed.Remove(dcm.Element{}, dcm.Modality)
		},
		"a value as an item": func(ed *dcm.Editor) { ed.Set(o.Find(dcm.Modality), dcm.Text(dcm.Modality, dcm.CS, "MR")) },
		"items for a value":  func(ed *dcm.Editor) { ed.AppendItems(o.Find(dcm.Modality), nil) },
		"a long text": func(ed *dcm.Editor) {
			ed.Set(dcm.Element{}, dcm.Text(dcm.Modality, dcm.LT, strings.Repeat("x", 70000)))
		},
		"an unknown VR": func(ed *dcm.Editor) { ed.Set(dcm.Element{}, dcm.Node{Tag: dcm.Modality}) },
		"a short stream": func(ed *dcm.Editor) {
			ed.Stream(o.Find(dcm.PixelData), func(w io.Writer) error { _, err := w.Write([]byte{1}); return err })
		},
		"a failing stream": func(ed *dcm.Editor) {
			ed.Stream(o.Find(dcm.PixelData), func(io.Writer) error { return errDisk })
		},
	} {
		t.Run(name, func(t *testing.T) {
			ed, err := o.Edit()
			if err != nil {
				t.Fatal(err)
			}
			edit(ed)
			if _, err := ed.WriteTo(io.Discard); err == nil {
				t.Error("no error")
			}
		})
	}
	ed, err := o.Edit()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ed.WriteTo(brokenWriter{}); !errors.Is(err, errDisk) {
		t.Errorf("writer's error lost: %v", err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errDisk }

// Any data set, in any form, with any top-level edits: what was not edited is
// the same bytes, what was edited has the new value.
func TestSpliceProperty(t *testing.T) {
	names := make([]string, 0, len(forms))
	for n := range forms {
		names = append(names, n)
	}
	slices.Sort(names)
	text := rapid.StringMatching(`[A-Z a-z]{0,40}`)
	rapid.Check(t, func(rt *rapid.T) {
		form := forms[rapid.SampledFrom(names).Draw(rt, "form")]
		d := dcmtest.MR(16, 16, 0)
		for range rapid.IntRange(0, 6).Draw(rt, "extra") {
			tag := dcm.Tag(rapid.Uint32Range(0x00091001, 0x7FDFFFFF).Draw(rt, "tag"))
			if tag.Element() < 0x1000 {
				continue
			}
			if rapid.Bool().Draw(rt, "nested") {
				d.Set(dcm.Sequence(tag|1<<16, []dcm.Node{dcm.Text(0x00100010, dcm.LO, text.Draw(rt, "inner"))}))
			} else {
				d.Text(tag|1<<16, dcm.LO, text.Draw(rt, "value"))
			}
		}
		file := d.File(form)
		o, err := scan(file)
		if err != nil {
			rt.Fatal(err)
		}
		ed, err := o.Edit()
		if err != nil {
			rt.Fatal(err)
		}
		want := map[dcm.Tag][]byte{}
		for e := range o.Elements() {
			b, err := e.Encoded(1 << 20)
			if err != nil {
				rt.Fatal(err)
			}
			want[e.Tag()] = b
		}
		edited := map[dcm.Tag]string{}
		for range rapid.IntRange(0, 5).Draw(rt, "edits") {
			tag := rapid.SampledFrom([]dcm.Tag{dcm.SeriesDescription, dcm.StudyDescription, dcm.Manufacturer,
				dcm.InstitutionName, 0x00081048, dcm.ProtocolName}).Draw(rt, "edit")
			if _, ok := edited[tag]; ok {
				continue
			}
			delete(want, tag)
			if rapid.Bool().Draw(rt, "remove") {
				ed.Remove(dcm.Element{}, tag)
				edited[tag] = ""
				continue
			}
			s := text.Draw(rt, "new")
			ed.Set(dcm.Element{}, dcm.Text(tag, dcm.LO, s))
			edited[tag] = strings.Trim(s, " ")
		}
		out := bytes.NewBuffer(bytes.Clone(file[:o.DataSetOffset()]))
		if _, err := ed.WriteTo(out); err != nil {
			rt.Fatal(err)
		}
		got, err := scan(out.Bytes())
		if err != nil {
			rt.Fatal(err)
		}
		for e := range got.Elements() {
			if s, ok := edited[e.Tag()]; ok {
				if v, _ := e.Bytes(100); strings.Trim(string(v), " ") != s {
					rt.Fatalf("%v is %q, want %q", e.Tag(), v, s)
				}
				continue
			}
			b, err := e.Encoded(1 << 20)
			if err != nil || !bytes.Equal(b, want[e.Tag()]) {
				rt.Fatalf("%v changed", e.Tag())
			}
			delete(want, e.Tag())
		}
		if len(want) > 0 {
			rt.Fatalf("%d elements lost", len(want))
		}
	})
}

// Every real file that can be edited at all survives a splice without changes.
func TestSpliceRealFiles(t *testing.T) {
	root := filepath.Join(testdata.Dir(t), "dicom")
	n := 0
	if err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		file, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		o, err := scan(file)
		if err != nil || o.Deflated() || !o.Ordered() {
			return nil
		}
		n++
		ed, err := o.Edit()
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if _, err := ed.WriteTo(&out); err != nil {
			return err
		}
		if !bytes.Equal(out.Bytes(), file[o.DataSetOffset():]) {
			t.Errorf("%s changed", filepath.Base(p))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n < 200 {
		t.Errorf("only %d files", n)
	}
}
