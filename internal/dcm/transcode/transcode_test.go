package transcode

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
)

// bare encodes a data set without file meta information.
func bare(nodes []dcm.Node, syntax string, f dcmtest.Form) []byte {
	f.TransferSyntaxUID, f.NoHeader = syntax, true
	return (&dcmtest.DataSet{Nodes: nodes}).File(f)
}

func convert(t testing.TB, data []byte, from, to string) []byte {
	t.Helper()
	out, err := io.ReadAll(NewReader(bytes.NewReader(data), from, to))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func deflated(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%2 == 1 {
		b.WriteByte(0) // PS3.5 A.5
	}
	return b.Bytes()
}

// template is a tag with a VR that the dictionary has for it, or none.
type template struct {
	tag dcm.Tag
	vr  dcm.VR
}

var templates = []template{
	{dcm.SpecificCharacterSet, dcm.CS}, {dcm.SOPInstanceUID, dcm.UI}, {dcm.StudyDate, dcm.DA}, {dcm.CodeMeaning,
		dcm.LO},
	{0x00080120, dcm.UR}, {0x00080119, dcm.UC}, {dcm.ReferencedImageSequence, dcm.SQ}, {0x00090010, dcm.LO},
	{0x00091001, dcm.OB}, {0x00091002, dcm.SQ}, {0x00091003, dcm.UN}, {0x00091004, dcm.DS}, {dcm.PatientName, dcm.PN},
	{dcm.EchoTime, dcm.DS}, {dcm.DiffusionBValue, dcm.FD}, {dcm.ContributingEquipmentSequence, dcm.SQ},
	{0x00189073, dcm.FD}, {dcm.InstanceNumber, dcm.IS}, {0x00209158, dcm.LT}, {dcm.Rows, dcm.US}, {0x00280009, dcm.AT},
	{0x00281201, dcm.OW}, {0x0040A043, dcm.SQ}, {0x0040A160, dcm.UT}, {0x00660016, dcm.OF}, {0x60000010, dcm.US},
	{0x60020010, dcm.US}, {0x60003000, dcm.OW}, {0x7FE00009, dcm.OD}, {dcm.PixelData, dcm.OW},
}

// nodes draws the elements of a data set or item.
func nodes(rt *rapid.T, depth int) []dcm.Node {
	var out []dcm.Node
	for _, t := range templates {
		if rapid.IntRange(0, 4).Draw(rt, "leave out") > 0 {
			continue
		}
		n := dcm.Node{Tag: t.tag, VR: t.vr}
		if t.vr == dcm.SQ {
			for range rapid.IntRange(0, 2).Draw(rt, "items") {
				if depth > 0 {
					n.Items = append(n.Items, nodes(rt, depth-1))
				} else {
					n.Items = append(n.Items, nil)
				}
			}
		} else {
			n.Value = rapid.SliceOfN(rapid.Byte(), 0, 4).Draw(rt, "value")
			for len(n.Value)%8 != 0 {
				n.Value = append(n.Value, ' ')
			}
		}
		out = append(out, n)
	}
	return out
}

// asUN is what is left of a data set behind implicit VR.
func asUN(list []dcm.Node) []dcm.Node {
	out := make([]dcm.Node, 0, len(list))
	for _, n := range list {
		if n.VR == dcm.SQ {
			items := make([][]dcm.Node, len(n.Items))
			for i, it := range n.Items {
				items[i] = asUN(it)
			}
			n.Items = items
		} else if lookup(n.Tag, false) == 0 {
			n.VR = dcm.UN
		}
		out = append(out, n)
	}
	return out
}

// The encoder of package dcmtest says what each transfer syntax looks like.
func TestAnyDataSetInAnySyntaxSurvives(t *testing.T) {
	implicit, explicit := dcm.ImplicitVRLittleEndian, dcm.ExplicitVRLittleEndian
	rapid.Check(t, func(rt *rapid.T) {
		d := nodes(rt, 2)
		wantImplicit := bare(d, implicit, dcmtest.Form{Undefined: true})
		wantExplicit := bare(d, explicit, dcmtest.Form{Undefined: true})
		form := dcmtest.Form{Undefined: rapid.Bool().Draw(rt, "undefined"),
			Unknown: rapid.Bool().Draw(rt, "sequences as UN")}
		known := bare(d, explicit, dcmtest.Form{Undefined: form.Undefined})
		little, big := bare(d, explicit, form), bare(d, dcm.ExplicitVRBigEndian,
			dcmtest.Form{Undefined: form.Undefined})
		for _, c := range []struct {
			name, from, to string
			data, want     []byte
		}{
			{"explicit to implicit", explicit, implicit, little, wantImplicit},
			{"and back", implicit, explicit, wantImplicit, bare(asUN(d), explicit, dcmtest.Form{Undefined: true})},
			{"big endian", dcm.ExplicitVRBigEndian, explicit, big, wantExplicit},
			{"big endian to implicit", dcm.ExplicitVRBigEndian, implicit, big, wantImplicit},
			{"deflated", dcm.DeflatedExplicitVRLittleEndian, explicit, deflated(t, known), wantExplicit},
			{"deflated to implicit", dcm.DeflatedExplicitVRLittleEndian, implicit, deflated(t, little), wantImplicit},
		} {
			r := NewReader(iotest.OneByteReader(bytes.NewReader(c.data)), c.from, c.to)
			if rapid.Bool().Draw(rt, "byte by byte") {
				r = iotest.OneByteReader(r)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, c.want) {
				rt.Fatalf("%s: %v\n%x\nwant\n%x\nfrom\n%x", c.name, err, got, c.want, c.data)
			}
		}
		// And once more through both: nothing more is lost.
		once := convert(t, wantImplicit, implicit, explicit)
		if again := convert(t, convert(t, once, explicit, implicit), implicit, explicit); !bytes.Equal(again, once) {
			rt.Fatalf("a second round changes the data set\n%x\n%x", once, again)
		}
	})
}

func TestRepresentationsThatDependOnOthers(t *testing.T) {
	signed := dcm.Node{Tag: dcm.PixelRepresentation, VR: dcm.US, Value: []byte{1, 0}}
	padding := func(v dcm.VR) dcm.Node { return dcm.Node{Tag: dcm.PixelPaddingValue, VR: v, Value: []byte{0x18, 0xFC}} }
	long := dcm.Node{Tag: dcm.ImagePositionPatient, VR: dcm.UN, Value: bytes.Repeat([]byte("1\\"), 40_000)}
	for name, want := range map[string][]dcm.Node{
		"US without a sign": {padding(dcm.US)},
		"SS with a sign":    {signed, padding(dcm.SS)},
		"an item has its own": {dcm.Sequence(dcm.IconImageSequence, []dcm.Node{signed, padding(dcm.SS)}),
			dcm.Sequence(dcm.SharedFunctionalGroupsSequence, []dcm.Node{padding(dcm.US)})},
		"an item has what is around it": {signed,
			dcm.Sequence(0x00409096, []dcm.Node{{Tag: 0x00409216, VR: dcm.SS, Value: []byte{0, 1}}})},
		"too long for its VR": {long},
		"a lookup table":      {{Tag: 0x00283006, VR: dcm.OW, Value: []byte{1, 2}}},
	} {
		data := bare(want, dcm.ImplicitVRLittleEndian, dcmtest.Form{Undefined: true})
		got := convert(t, data, dcm.ImplicitVRLittleEndian, dcm.ExplicitVRLittleEndian)
		if exp := bare(want, dcm.ExplicitVRLittleEndian, dcmtest.Form{Undefined: true}); !bytes.Equal(got, exp) {
			t.Errorf("%s:\n%x\nwant\n%x", name, got[:min(len(got), 200)], exp[:min(len(exp), 200)])
		}
	}
	group := dcm.Node{Tag: 0x00080000, VR: dcm.UL, Value: []byte{1, 0, 0, 0}}
	name := dcm.Text(dcm.PatientName, dcm.PN, "X ")
	data := bare([]dcm.Node{group, name}, dcm.ExplicitVRLittleEndian, dcmtest.Form{})
	got := convert(t, data, dcm.ExplicitVRLittleEndian, dcm.ImplicitVRLittleEndian)
	if want := bare([]dcm.Node{name}, dcm.ImplicitVRLittleEndian, dcmtest.Form{}); !bytes.Equal(got, want) {
		t.Errorf("group length kept: %x, want %x", got, want)
	}
}

func TestDamagedDataSetsAreNotConverted(t *testing.T) {
	const little = dcm.ExplicitVRLittleEndian
	explicit := func(b ...byte) []byte { return b }
	whole := bare([]dcm.Node{dcm.Text(dcm.PatientName, dcm.PN, "AB"), dcm.Sequence(dcm.ReferencedImageSequence,
		[]dcm.Node{dcm.Text(dcm.ReferencedSOPInstanceUID, dcm.UI, "1.2")})}, little, dcmtest.Form{Undefined: true})
	deep := bytes.Repeat([]byte{0x08, 0, 0x40, 0x11, 'S', 'Q', 0, 0, 255, 255, 255, 255,
		0xFE, 0xFF, 0, 0xE0, 255, 255, 255, 255}, 1000)
	bomb := deflated(t, bytes.Repeat([]byte{0}, 1<<20))
	cases := map[string]struct {
		from string
		data []byte
		why  string
	}{
		"implicit that says explicit": {little, explicit(8, 0, 5, 0, 2, 0, 0, 0, 'A', 'B'), "unknown value"},
		"fragments": {little, explicit(0xE0, 0x7F, 0x10, 0, 'O', 'B', 0, 0, 255, 255, 255, 255),
			"compressed"},
		"undefined text": {little, explicit(8, 0, 0x20, 1, 'U', 'R', 0, 0, 255, 255, 255, 255),
			"undefined length"},
		"a sequence of no items": {little, explicit(8, 0, 0x40, 0x11, 'S', 'Q', 0, 0, 8, 0, 0, 0,
			8, 0, 5, 0, 'C', 'S', 0, 0), "no item"},
		"an item outside": {dcm.ExplicitVRLittleEndian, explicit(0xFE, 0xFF, 0, 0xE0, 0, 0, 0, 0), "misplaced"},
		"past the end of its item": {dcm.ExplicitVRLittleEndian, explicit(8, 0, 0x40, 0x11, 'S', 'Q', 0, 0, 16, 0, 0, 0,
			0xFE, 0xFF, 0, 0xE0, 8, 0, 0, 0, 8, 0, 5, 0, 'C', 'S', 2, 0, 'A', 'B'), "past the end"},
		"nested too deep":   {dcm.ExplicitVRLittleEndian, deep, "too deep"},
		"half a number":     {dcm.ExplicitVRBigEndian, explicit(0, 0x28, 0, 0x10, 'U', 'S', 0, 1, 1), "whole number"},
		"not deflated":      {dcm.DeflatedExplicitVRLittleEndian, whole, "flate"},
		"deflated nonsense": {dcm.DeflatedExplicitVRLittleEndian, bomb, "unknown value representation"},
	}
	for n := 1; n < len(whole); n++ {
		if n == 8+2 {
			continue // between two elements
		}
		cases["cut at "+string(rune('0'+n/10))+string(rune('0'+n%10))] = struct {
			from string
			data []byte
			why  string
		}{dcm.ExplicitVRLittleEndian, whole[:n], "ends inside"}
	}
	for name, c := range cases {
		src := bytes.NewReader(c.data)
		_, err := io.Copy(io.Discard, NewReader(src, c.from, dcm.ImplicitVRLittleEndian))
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.why) && n(name) {
			t.Errorf("%s: %v", name, err)
		}
		if src.Len() > 0 {
			t.Errorf("%s: %d bytes not read", name, src.Len())
		}
	}
	rle := NewReader(bytes.NewReader(whole), "1.2.840.10008.1.2.5", dcm.ImplicitVRLittleEndian)
	if _, err := rle.Read(make([]byte, 1)); err == nil {
		t.Error("RLE was converted")
	}
}

// n: cuts in the middle of a nested header may be seen in more than one way.
func n(name string) bool { return !strings.HasPrefix(name, "cut") }

// A wrong checksum of the source is the reason, whatever the damage looks like.
func TestTheSourcesOwnErrorWins(t *testing.T) {
	damaged := errors.New("checksum")
	for _, data := range [][]byte{{1, 2, 3, 4, 5, 6, 7, 8, 9}, {}, bytes.Repeat([]byte{0xFF}, 100_000)} {
		for _, from := range []string{dcm.ExplicitVRLittleEndian, dcm.DeflatedExplicitVRLittleEndian} {
			src := io.MultiReader(bytes.NewReader(data), iotest.ErrReader(damaged))
			r := NewReader(src, from, dcm.ImplicitVRLittleEndian)
			if _, err := io.Copy(io.Discard, r); !errors.Is(err, damaged) {
				t.Errorf("%s, %d bytes: %v", from, len(data), err)
			}
		}
	}
}

func TestMemoryIsFixed(t *testing.T) {
	const size = 64 << 20
	head := append([]byte{0xE0, 0x7F, 0x10, 0, 'O', 'W', 0, 0}, binary.LittleEndian.AppendUint32(nil, size)...)
	buf := make([]byte, 64<<10)
	allocated := testing.AllocsPerRun(1, func() {
		src := io.MultiReader(bytes.NewReader(head), io.LimitReader(zeros{}, size))
		r := NewReader(src, dcm.ExplicitVRLittleEndian, dcm.ImplicitVRLittleEndian)
		var total int64
		for {
			k, err := r.Read(buf)
			if total += int64(k); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if total != 8+size {
			t.Fatalf("%d bytes", total)
		}
	})
	if allocated > 50 {
		t.Errorf("%v allocations", allocated)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func FuzzReader(f *testing.F) {
	mr := dcmtest.MR(4, 4, 1)
	f.Add(mr.File(dcmtest.Form{NoHeader: true}), 0)
	f.Add(mr.File(dcmtest.Form{NoHeader: true, TransferSyntaxUID: dcm.ImplicitVRLittleEndian}), 1)
	f.Add(mr.File(dcmtest.Form{NoHeader: true, TransferSyntaxUID: dcm.ExplicitVRBigEndian}), 2)
	f.Add(deflated(f, mr.File(dcmtest.Form{NoHeader: true})), 3)
	syntaxes := []string{dcm.ExplicitVRLittleEndian, dcm.ImplicitVRLittleEndian, dcm.ExplicitVRBigEndian,
		dcm.DeflatedExplicitVRLittleEndian}
	f.Fuzz(func(t *testing.T, data []byte, which int) {
		from := syntaxes[uint(which)%uint(len(syntaxes))]
		for _, to := range Targets(from) {
			out, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(data), from, to), 1<<20))
			if err != nil || len(out) == 1<<20 {
				continue
			}
			// What came out is a data set: it converts to the other and stays what it is.
			other := Targets(to)[0]
			if _, err := io.Copy(io.Discard, NewReader(bytes.NewReader(out), to, other)); err != nil {
				t.Fatalf("what was written in %s cannot be read: %v", to, err)
			}
		}
	})
}
