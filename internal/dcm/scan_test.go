package dcm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/internal/testdata"
)

func scan(b []byte) (*dcm.Object, error) { return dcm.Scan(bytes.NewReader(b), int64(len(b))) }

// sample has nested sequences in front of the pixels.
func sample() *dcmtest.DataSet {
	return dcmtest.EnhancedMR(16, 16, 3, nil)
}

var forms = map[string]dcmtest.Form{
	"explicit":           {},
	"explicit undefined": {Undefined: true},
	"explicit UN":        {Unknown: true},
	"implicit":           {TransferSyntaxUID: dcm.ImplicitVRLittleEndian},
	"implicit undefined": {TransferSyntaxUID: dcm.ImplicitVRLittleEndian, Undefined: true},
	"big endian":         {TransferSyntaxUID: dcm.ExplicitVRBigEndian},
	"big endian und":     {TransferSyntaxUID: dcm.ExplicitVRBigEndian, Undefined: true},
	"encapsulated":       {TransferSyntaxUID: "1.2.840.10008.1.2.4.70", Fragments: [][]byte{{}, {1, 2, 3, 4}, {5, 6}}},
}

func TestScanEveryForm(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			d := sample().Set(dcm.Node{Tag: 0x00181318, VR: dcm.UV, Value: make([]byte, 8)}).
				Text(0x00204000, dcm.LT, "behind the nest")
			o, err := d.Scan(form)
			if err != nil {
				t.Fatal(err)
			}
			if got := o.String(dcm.SOPInstanceUID); got != d.Get(dcm.SOPInstanceUID) {
				t.Errorf("SOPInstanceUID %q", got)
			}
			if got := o.String(dcm.ImageComments); got != "behind the nest" {
				t.Errorf("ImageComments %q", got)
			}
			if n, ok := o.Int(dcm.Rows); !ok || n != 16 {
				t.Errorf("Rows %d %v", n, ok)
			}
			if f, ok := o.Float(dcm.EchoTime); !ok || f != 12.5 {
				t.Errorf("EchoTime %v %v", f, ok)
			}
			if got := o.String(dcm.PatientName); got != "Müller^Phantom" {
				t.Errorf("PatientName %q", got)
			}
			frames := 0
			e := o.Find(dcm.PerFrameFunctionalGroupsSequence)
			for item := range e.Children() {
				frames++
				ft := item.Child(dcm.MRImageFrameTypeSequence)
				for i := range ft.Children() {
					if got := i.Child(dcm.FrameType).String(); got != `ORIGINAL\PRIMARY\M\NONE` {
						t.Errorf("FrameType %q", got)
					}
				}
			}
			if frames != 3 {
				t.Errorf("%d frames", frames)
			}
			px := o.Find(dcm.PixelData)
			if !px.OK() || px.Encapsulated() != (form.Fragments != nil) {
				t.Errorf("pixel data %v", px.OK())
			}
			if px.End() != o.Size() {
				t.Errorf("pixel data ends at %d of %d", px.End(), o.Size())
			}
			if !o.Ordered() {
				t.Error("not in order")
			}
		})
	}
}

func TestScanDamage(t *testing.T) {
	good := dcmtest.MR(16, 16, 0).File(dcmtest.Form{})
	explicit := func(tail ...byte) []byte {
		d := &dcmtest.DataSet{}
		d.Text(dcm.SOPInstanceUID, dcm.UI, "1.2.3")
		return append(d.File(dcmtest.Form{}), tail...)
	}
	nested := func(levels int) []byte {
		b := explicit()
		for range levels {
			b = append(b, 0x08, 0, 0x15, 0x11, 'S', 'Q', 0, 0, 255, 255, 255, 255, 0xFE, 0xFF, 0, 0xE0, 255, 255, 255, 255)
		}
		return b
	}
	many := explicit()
	for range dcm.MaxElements + 1 {
		many = append(many, 0x09, 0, 0x10, 0, 'L', 'O', 0, 0)
	}
	// the first element is the SOP Instance UID
	if o, err := scan(many[:len(many)-2*8]); err != nil || o.String(dcm.SOPInstanceUID) != "1.2.3" {
		t.Errorf("%d elements: %v", dcm.MaxElements, err)
	}
	for _, c := range []struct {
		name string
		file []byte
		want dcm.Damage
		uid  bool // the SOP Instance UID could be read
	}{
		{"empty", nil, dcm.NoPreamble, false},
		{"text", []byte(strings.Repeat("GET / HTTP/1.1\r\n", 20)), dcm.NoPreamble, false},
		{"no header", dcmtest.MR(16, 16, 0).File(dcmtest.Form{NoHeader: true}), dcm.NoPreamble, true},
		{"no header, implicit", dcmtest.MR(16, 16, 0).File(dcmtest.Form{NoHeader: true,
			TransferSyntaxUID: dcm.ImplicitVRLittleEndian}), dcm.NoPreamble, true},
		{"no header, big endian", dcmtest.MR(16, 16, 0).File(dcmtest.Form{NoHeader: true,
			TransferSyntaxUID: dcm.ExplicitVRBigEndian}), dcm.NoPreamble, true},
		{"meta without preamble", good[132:], dcm.NoPreamble, true},
		{"no transfer syntax", bytes.Replace(good, []byte{2, 0, 0x10, 0, 'U', 'I'}, []byte{2, 0, 0x11, 0, 'U', 'I'}, 1), dcm.NoTransferSyntax, true},
		{"implicit under an explicit name", bytes.Replace(dcmtest.MR(16, 16, 0).File(dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian}),
			[]byte("1.2.840.10008.1.2\x00"), []byte("1.2.840.10008.1.9\x00"), 1), dcm.WrongTransferSyntax, true},
		{"cut in the pixels", good[:len(good)-1], dcm.Truncated, true},
		{"cut in a header", explicit(8, 0, 0x60, 0), dcm.Truncated, true},
		{"4 GiB value", explicit(8, 0, 0x20, 0x11, 'U', 'T', 0, 0, 0xFE, 255, 255, 255), dcm.Truncated, true},
		{"value beyond its item", explicit(8, 0, 0x15, 0x11, 'S', 'Q', 0, 0, 24, 0, 0, 0, 0xFE, 0xFF, 0, 0xE0, 8, 0, 0, 0,
			8, 0, 0x60, 0, 'C', 'S', 8, 0, 1, 2, 3, 4, 5, 6, 7, 8), dcm.BadLength, true},
		{"undefined length of a text", explicit(8, 0, 0x20, 0x11, 'U', 'T', 0, 0, 255, 255, 255, 255), dcm.BadLength, true},
		{"no VR", explicit(8, 0, 0x60, 0, 'Z', 'Z', 2, 0, 'M', 'R'), dcm.BadVR, true},
		{"stray item", explicit(0xFE, 0xFF, 0, 0xE0, 0, 0, 0, 0), dcm.BadStructure, true},
		{"stray delimiter", explicit(0xFE, 0xFF, 0x0D, 0xE0, 0, 0, 0, 0), dcm.BadStructure, true},
		{"element in a sequence", explicit(8, 0, 0x15, 0x11, 'S', 'Q', 0, 0, 8, 0, 0, 0, 8, 0, 0x60, 0, 'C', 'S', 0, 0), dcm.BadStructure, true},
		{"zeros behind", explicit(make([]byte, 16)...), dcm.BadVR, true},
		{"32 levels", nested(32), dcm.Truncated, true},
		{"33 levels", nested(33), dcm.TooDeep, true},
		{"20000 levels", nested(20000), dcm.TooDeep, true},
		{"too many", many, dcm.TooMany, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := scan(c.file)
			var se *dcm.ScanError
			if !errors.As(err, &se) {
				t.Fatalf("error %v", err)
			}
			if se.Damage != c.want {
				t.Errorf("damage %q, want %q", se.Damage, c.want)
			}
			if o.Damage() != se {
				t.Error("the object does not remember its damage")
			}
			if got := o.String(dcm.SOPInstanceUID) != ""; got != c.uid {
				t.Errorf("SOP instance UID read: %v", got)
			}
			if _, err := o.Edit(); err == nil {
				t.Error("a damaged object can be edited")
			}
		})
	}
}

func TestScanDeflated(t *testing.T) {
	b := dcmtest.MR(16, 16, 0).File(dcmtest.Form{TransferSyntaxUID: dcm.DeflatedExplicitVRLittleEndian})
	o, err := scan(b)
	if err != nil || !o.Deflated() || o.Has(dcm.Rows) {
		t.Fatalf("deflated %v, error %v", o.Deflated(), err)
	}
	if o.TransferSyntaxUID() != dcm.DeflatedExplicitVRLittleEndian {
		t.Error(o.TransferSyntaxUID())
	}
}

func TestScanToleratesOddLengths(t *testing.T) {
	d := &dcmtest.DataSet{}
	b := d.Text(dcm.SOPInstanceUID, dcm.UI, "1.2.3").File(dcmtest.Form{})
	b = append(b, 8, 0, 0x60, 0, 'C', 'S', 3, 0, 'M', 'R', ' ', 0x10, 0, 0x20, 0, 'L', 'O', 1, 0, 'x')
	o, err := scan(b)
	if err != nil || o.String(dcm.Modality) != "MR" || o.String(dcm.PatientID) != "x" {
		t.Fatalf("%v, %q", err, o.String(dcm.Modality))
	}
}

func TestScanReportsDisorder(t *testing.T) {
	d := &dcmtest.DataSet{Nodes: []dcm.Node{
		dcm.Text(dcm.Modality, dcm.CS, "MR"), dcm.Text(dcm.SOPInstanceUID, dcm.UI, "1.2"), dcm.Text(dcm.Modality, dcm.CS, "CT"),
	}}
	o, err := d.Scan(dcmtest.Form{})
	if err != nil || o.Ordered() {
		t.Fatalf("ordered %v, %v", o.Ordered(), err)
	}
	if o.String(dcm.SOPInstanceUID) != "1.2" || o.String(dcm.Modality) != "MR" {
		t.Error("values of a disordered object")
	}
	if _, err := o.Edit(); err == nil {
		t.Error("a disordered object can be edited")
	}
}

// Bytes in an implicit data set that begin like a sequence and are none must
// not make the object unreadable.
func TestScanTentativeSequences(t *testing.T) {
	item := []byte{0xFE, 0xFF, 0, 0xE0, 10, 0, 0, 0, 0x21, 0, 0x75, 0x11, 2, 0, 0, 0, 'A', 'B'}
	for name, c := range map[string]struct {
		value []byte
		seq   bool
	}{
		"sequence":  {item, true},
		"two items": {append(bytes.Clone(item), item...), true},
		"cut":       {item[:16], false},
		"lies":      {[]byte{0xFE, 0xFF, 0, 0xE0, 255, 0, 0, 0, 1, 2, 3, 4}, false},
		"nested lie": {append([]byte{0xFE, 0xFF, 0, 0xE0, 24, 0, 0, 0, 0x21, 0, 0x76, 0x11, 16, 0, 0, 0},
			0xFE, 0xFF, 0, 0xE0, 200, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8), true},
	} {
		t.Run(name, func(t *testing.T) {
			d := dcmtest.MR(16, 16, 0).Set(dcm.Node{Tag: 0x002111FE, VR: dcm.UN, Value: c.value})
			for _, ts := range []string{dcm.ImplicitVRLittleEndian, dcm.ExplicitVRLittleEndian} {
				o, err := d.Scan(dcmtest.Form{TransferSyntaxUID: ts})
				if err != nil {
					t.Fatal(err)
				}
				e := o.Find(0x002111FE)
				if e.IsSequence() != c.seq {
					t.Errorf("%s: sequence %v", ts, e.IsSequence())
				}
				if int(e.Length()) != len(c.value) {
					t.Errorf("%s: length %d", ts, e.Length())
				}
				if o.Find(dcm.PixelData).Length() != 512 {
					t.Error("lost the pixels")
				}
			}
		})
	}
}

func TestPrivateCreators(t *testing.T) {
	item := []dcm.Node{dcm.Text(0x00210011, dcm.LO, "INNER"), dcm.Text(0x00211175, dcm.CS, "A")}
	d := &dcmtest.DataSet{}
	d.Text(0x00210010, dcm.LO, "OUTER").
		Set(dcm.Sequence(0x00211001, item, []dcm.Node{dcm.Text(0x00211175, dcm.CS, "B")})).
		Text(0x00211002, dcm.LO, "C").
		Text(0x00211102, dcm.LO, "D")
	o, err := d.Scan(dcmtest.Form{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for e, creator := range o.Private() {
		got = append(got, fmt.Sprintf("%v %s", e.Tag(), creator))
	}
	want := []string{"(0021,1001) OUTER", "(0021,1175) INNER", "(0021,1175) ", "(0021,1002) OUTER", "(0021,1102) "}
	if strings.Join(got, ";") != strings.Join(want, ";") {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// sparse is a 2 GiB file of which only the ends exist.
type sparse struct {
	head []byte
	size int64
	read int64
}

func (s *sparse) ReadAt(b []byte, off int64) (int, error) {
	n := int64(len(b))
	if off+n > s.size {
		n = s.size - off
	}
	clear(b[:n])
	if off < int64(len(s.head)) {
		copy(b[:n], s.head[off:])
	}
	s.read += n
	if n < int64(len(b)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func TestScanOfTwoGigabytesReadsKilobytes(t *testing.T) {
	head := dcmtest.MR(16, 16, 0).File(dcmtest.Form{})
	head = head[:len(head)-512]
	const n = 2 << 30
	binary.LittleEndian.PutUint32(head[len(head)-4:], n)
	s := &sparse{head: head, size: int64(len(head)) + n}
	o, err := dcm.Scan(s, s.size)
	if err != nil {
		t.Fatal(err)
	}
	if got := o.Find(dcm.PixelData).Length(); got != n {
		t.Errorf("pixel data of %d bytes", got)
	}
	if s.read > 64<<10 {
		t.Errorf("read %d bytes", s.read)
	}
}

type failing struct{ after int64 }

var errDisk = errors.New("disk on fire")

func (f failing) ReadAt(b []byte, off int64) (int, error) {
	if off >= f.after {
		return 0, errDisk
	}
	return len(b), nil
}

func TestScanKeepsTheReaderError(t *testing.T) {
	_, err := dcm.Scan(failing{}, 1000)
	var se *dcm.ScanError
	if !errors.Is(err, errDisk) || !errors.As(err, &se) || se.Damage != dcm.ReadFailed {
		t.Fatal(err)
	}
}

// Every prefix of a file with every kind of nesting is scanned without a panic,
// and a cut is always noticed unless it falls between top-level elements.
func TestScanTruncations(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			file := dcmtest.EnhancedMR(16, 16, 1, nil).File(form)
			whole, err := scan(file)
			if err != nil {
				t.Fatal(err)
			}
			ends := map[int64]bool{whole.DataSetOffset(): true}
			for e := range whole.Elements() {
				ends[e.End()] = true
			}
			for n := range file {
				o, err := scan(file[:n])
				if int64(n) >= whole.DataSetOffset() && (err == nil) != ends[int64(n)] {
					t.Fatalf("cut at %d of %d: error %v", n, len(file), err)
				}
				for e := range o.All() {
					if e.Offset() < 0 || e.End() > int64(n) || e.Length() < 0 {
						t.Fatalf("cut at %d: element %v from %d to %d", n, e.Tag(), e.Offset(), e.End())
					}
				}
				o.Keywords()
			}
		})
	}
}

func TestMalformedCorpusStaysSmall(t *testing.T) {
	var files []string
	root := filepath.Join(testdata.Dir(t), "dicom", "malformed")
	if err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(files) < 100 {
		t.Fatalf("%d files", len(files))
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		o, _ := dcm.Scan(f, st.Size())
		o.Keywords()
		for e := range o.All() {
			_ = e.String()
		}
		runtime.ReadMemStats(&after)
		f.Close()
		if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
			t.Errorf("%s: %d bytes allocated", filepath.Base(name), n)
		}
	}
}

// FuzzScan: no input panics, and what is reported lies inside the file.
func FuzzScan(f *testing.F) {
	for _, form := range forms {
		f.Add(dcmtest.EnhancedMR(16, 16, 1, nil).File(form))
	}
	f.Add(dcmtest.MR(16, 16, 0).File(dcmtest.Form{NoHeader: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := scan(b)
		if o == nil {
			t.Fatal("no object")
		}
		for e := range o.All() {
			if e.Offset() < 0 || e.Length() < 0 || e.End() > int64(len(b)) {
				t.Fatalf("element %v from %d to %d of %d", e.Tag(), e.Offset(), e.End(), len(b))
			}
			_, _ = e.Int()
			_ = e.String()
		}
		for e, c := range o.Private() {
			_, _ = e, c
		}
		if err != nil || !o.Ordered() || o.Deflated() {
			return
		}
		ed, err := o.Edit()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if _, err := ed.WriteTo(&out); err != nil || !bytes.Equal(out.Bytes(), b[o.DataSetOffset():]) {
			t.Fatalf("a splice without changes changed something: %v", err)
		}
	})
}
