package derive_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

func scanBytes(b []byte) (*dcm.Object, error) { return dcm.Scan(bytes.NewReader(b), int64(len(b))) }

// smooth is a mild denoiser: a horizontal [1 2 1]/4.
func smooth(o *dcm.Object) func(i int) ([]float32, error) {
	return func(i int) ([]float32, error) {
		f, err := derive.ReadFrame(o, i)
		if err != nil {
			return nil, err
		}
		out := make([]float32, len(f.Pixels))
		copy(out, f.Pixels)
		for k := 1; k+1 < len(out); k++ {
			out[k] = (f.Pixels[k-1] + 2*f.Pixels[k] + f.Pixels[k+1]) / 4
		}
		return out, nil
	}
}

// unchanged returns the pixels as they are.
func unchanged(o *dcm.Object) func(i int) ([]float32, error) {
	return func(i int) ([]float32, error) {
		f, err := derive.ReadFrame(o, i)
		if err != nil {
			return nil, err
		}
		return f.Pixels, nil
	}
}

// write derives and scans the result, which must pass Verify.
func write(t testing.TB, o *dcm.Object, p derive.Params, next func(int) ([]float32, error)) (*dcm.Object, derive.Info, []byte) {
	t.Helper()
	var b bytes.Buffer
	info, err := derive.Write(&b, o, p, next)
	if err != nil {
		t.Fatal(err)
	}
	got, err := scanBytes(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != int64(b.Len()) {
		t.Errorf("size %d, wrote %d", info.Size, b.Len())
	}
	if err := derive.Verify(o, got); err != nil {
		t.Fatal(err)
	}
	return got, info, b.Bytes()
}

func mustScan(t testing.TB, d *dcmtest.DataSet, f dcmtest.Form) *dcm.Object {
	t.Helper()
	o, err := d.Scan(f)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func pixelBytes(t testing.TB, o *dcm.Object) []byte {
	t.Helper()
	b, err := o.Bytes(dcm.PixelData, 1<<26)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWriteSingleFrame(t *testing.T) {
	for _, ts := range []string{dcm.ExplicitVRLittleEndian, dcm.ImplicitVRLittleEndian} {
		d := mr().US(dcm.SmallestImagePixelValue, 1).US(dcm.LargestImagePixelValue, 2).
			US(dcm.SmallestPixelValueInSeries, 1).
			Set(dcm.Node{Tag: 0x00080000, VR: dcm.UL, Value: []byte{1, 2, 3, 4}}).
			Set(dcm.Sequence(dcm.IconImageSequence, []dcm.Node{dcm.Text(dcm.Modality, dcm.CS, "X")})).
			Set(dcm.Sequence(dcm.DigitalSignaturesSequence, []dcm.Node{dcm.Text(dcm.Modality, dcm.CS, "X")})).
			Set(dcm.Sequence(dcm.MACParametersSequence, []dcm.Node{dcm.Text(dcm.Modality, dcm.CS, "X")})).
			Set(dcm.Node{Tag: dcm.DataSetTrailingPadding, VR: dcm.OB, Value: make([]byte, 64)}).
			Set(dcm.Sequence(dcm.ContributingEquipmentSequence, []dcm.Node{dcm.Text(dcm.Manufacturer, dcm.LO, "Router")})).
			Text(dcm.TimezoneOffsetFromUTC, dcm.SH, "+0100")
		o := mustScan(t, d, dcmtest.Form{TransferSyntaxUID: ts})
		got, info, _ := write(t, o, params(), smooth(o))

		sop, series := derive.UIDs(o, params())
		if info.SOPInstanceUID != sop || info.SeriesInstanceUID != series || info.TransferSyntaxUID != ts || info.Frames != 1 {
			t.Errorf("info %+v", info)
		}
		for tag, want := range map[dcm.Tag]string{
			dcm.MediaStorageSOPInstanceUID: sop, dcm.SOPInstanceUID: sop, dcm.SeriesInstanceUID: series,
			dcm.SOPClassUID: d.Get(dcm.SOPClassUID), dcm.StudyInstanceUID: d.Get(dcm.StudyInstanceUID),
			dcm.FrameOfReferenceUID: d.Get(dcm.FrameOfReferenceUID), dcm.InstanceNumber: "1",
			dcm.ImageType: `DERIVED\PRIMARY\M\ND\DENOISED`, dcm.SeriesNumber: "10004", dcm.SeriesDescription: "t1_se_tra DN",
			dcm.ContentDate: "20260304", dcm.ContentTime: "060607.890000", dcm.InstanceCreationTime: "060607.890000",
			dcm.SeriesDate: "20260304", dcm.SeriesTime: "060000.000000", dcm.AcquisitionTime: "101114.5",
			dcm.InstanceCreatorUID: dcm.ImplementationClassUID, dcm.Manufacturer: "Phantom Works",
			dcm.SourceApplicationEntityTitle: "PHANTOM",
		} {
			if s := got.String(tag); s != want {
				t.Errorf("%v is %q, want %q", tag, s, want)
			}
		}
		if s := got.String(dcm.DerivationDescription); !strings.Contains(s, "student") || !strings.Contains(s, "strength 1") {
			t.Errorf("DerivationDescription %q", s)
		}
		for _, tag := range []dcm.Tag{0x00080000, dcm.IconImageSequence, dcm.DigitalSignaturesSequence,
			dcm.MACParametersSequence, dcm.DataSetTrailingPadding, dcm.SmallestPixelValueInSeries, dcm.ContentQualification} {
			if got.Has(tag) {
				t.Errorf("%v is still there", tag)
			}
		}
		// the least and most value of the pixels that were written
		least, most := int64(math.MaxInt64), int64(0)
		for b := pixelBytes(t, got); len(b) > 0; b = b[2:] {
			v := int64(binary.LittleEndian.Uint16(b))
			least, most = min(least, v), max(most, v)
		}
		if a, _ := got.Int(dcm.SmallestImagePixelValue); a != least {
			t.Errorf("smallest %d, is %d", a, least)
		}
		if a, _ := got.Int(dcm.LargestImagePixelValue); a != most {
			t.Errorf("largest %d, is %d", a, most)
		}
		// one source image, purpose 121322
		n := 0
		for item := range got.Find(dcm.SourceImageSequence).Children() {
			n++
			if item.Child(dcm.ReferencedSOPInstanceUID).String() != d.Get(dcm.SOPInstanceUID) ||
				item.Child(dcm.SpatialLocationsPreserved).String() != "YES" || item.Child(dcm.ReferencedFrameNumber).OK() {
				t.Error("source image item")
			}
			for c := range item.Child(dcm.PurposeOfReferenceCodeSequence).Children() {
				if c.Child(dcm.CodeValue).String() != "121322" || c.Child(dcm.CodingSchemeDesignator).String() != "DCM" {
					t.Error("purpose of reference")
				}
			}
		}
		if n != 1 {
			t.Errorf("%d source images", n)
		}
		var makers []string
		for item := range got.Find(dcm.ContributingEquipmentSequence).Children() {
			makers = append(makers, item.Child(dcm.Manufacturer).String())
			if about := item.Child(dcm.ContributionDescription); about.OK() && !strings.Contains(about.String(), `"modelSHA256":"5d41`) {
				t.Errorf("contribution %q", about.String())
			}
			if at := item.Child(dcm.ContributionDateTime); at.OK() && at.String() != "20260304060607.890000+0100" {
				t.Errorf("contribution time %q", at.String())
			}
		}
		if fmt.Sprint(makers) != "[Router denoised]" {
			t.Errorf("contributing equipment %v", makers)
		}
		if v := derive.Inspect(got); v.Reason != derive.AlreadyDenoised {
			t.Errorf("the derived object is %v", v)
		}
		if info.Changed == 0 || info.Padding != 0 {
			t.Errorf("info %+v", info)
		}
	}
}

func TestWriteEnhanced(t *testing.T) {
	for name, form := range map[string]dcmtest.Form{
		"explicit": {}, "undefined": {Undefined: true}, "implicit": {TransferSyntaxUID: dcm.ImplicitVRLittleEndian},
		"implicit undefined": {TransferSyntaxUID: dcm.ImplicitVRLittleEndian, Undefined: true},
	} {
		t.Run(name, func(t *testing.T) {
			d := enhanced(magnitude, `ORIGINAL\PRIMARY\T1\NONE`, magnitude).US(dcm.SmallestImagePixelValue, 1)
			for i := range d.Nodes { // a shared derivation must give way to the ones per frame
				if d.Nodes[i].Tag == dcm.SharedFunctionalGroupsSequence {
					d.Nodes[i].Items[0] = append([]dcm.Node{dcm.Sequence(dcm.DerivationImageSequence, []dcm.Node{dcm.Text(dcm.DerivationDescription, dcm.ST, "old")})}, d.Nodes[i].Items[0]...)
				}
			}
			o := mustScan(t, d, form)
			var order []int
			next := smooth(o)
			got, info, _ := write(t, o, params(), func(i int) ([]float32, error) {
				order = append(order, i)
				return next(i)
			})
			if fmt.Sprint(order) != "[0 1 2]" || info.Frames != 3 {
				t.Errorf("frames asked for: %v", order)
			}
			if s := got.String(dcm.ImageType); s != `DERIVED\PRIMARY\M\NONE` {
				t.Errorf("ImageType %q", s)
			}
			if s := got.String(dcm.ContentQualification); s != "RESEARCH" {
				t.Errorf("ContentQualification %q", s)
			}
			if got.Has(dcm.SmallestImagePixelValue) || got.Has(dcm.SourceImageSequence) {
				t.Error("attributes of single frames")
			}
			for item := range got.Find(dcm.SharedFunctionalGroupsSequence).Children() {
				if item.Child(dcm.DerivationImageSequence).OK() {
					t.Error("shared derivation")
				}
			}
			types := []string{`DERIVED\PRIMARY\M\NONE`, `DERIVED\PRIMARY\T1\NONE`, `DERIVED\PRIMARY\M\NONE`}
			i := 0
			for item := range got.Find(dcm.PerFrameFunctionalGroupsSequence).Children() {
				for ft := range item.Child(dcm.MRImageFrameTypeSequence).Children() {
					if s := ft.Child(dcm.FrameType).String(); s != types[i] {
						t.Errorf("frame %d: FrameType %q", i, s)
					}
				}
				for der := range item.Child(dcm.DerivationImageSequence).Children() {
					codes := 0
					for range der.Child(dcm.DerivationCodeSequence).Children() {
						codes++
					}
					if codes != 2 {
						t.Errorf("frame %d: %d derivation codes", i, codes)
					}
					for src := range der.Child(dcm.SourceImageSequence).Children() {
						if n, _ := src.Child(dcm.ReferencedFrameNumber).Int(); n != int64(i+1) {
							t.Errorf("frame %d refers to frame %d", i, n)
						}
					}
				}
				i++
			}
			if i != 3 {
				t.Errorf("%d frames", i)
			}
			evidence := false
			for st := range got.Find(dcm.SourceImageEvidenceSequence).Children() {
				for se := range st.Child(dcm.ReferencedSeriesSequence).Children() {
					for in := range se.Child(dcm.ReferencedSOPSequence).Children() {
						evidence = in.Child(dcm.ReferencedSOPInstanceUID).String() == d.Get(dcm.SOPInstanceUID) &&
							se.Child(dcm.SeriesInstanceUID).String() == d.Get(dcm.SeriesInstanceUID) &&
							st.Child(dcm.StudyInstanceUID).String() == d.Get(dcm.StudyInstanceUID)
					}
				}
			}
			if !evidence {
				t.Error("source image evidence")
			}
			if v := derive.Inspect(got); v.Reason != derive.AlreadyDenoised {
				t.Errorf("the derived object is %v", v)
			}
		})
	}
}

// Parts of one concatenation belong to one series, so the derived parts make a
// concatenation of their own.
func TestConcatenation(t *testing.T) {
	part := func(n string, p derive.Params) (src, got *dcm.Object) {
		d := enhanced(magnitude).Text(dcm.ConcatenationUID, dcm.UI, "1.2.3.4").
			Text(dcm.SOPInstanceUIDOfConcatenationSource, dcm.UI, "1.2.3.5").Text(dcm.SOPInstanceUID, dcm.UI, "1.2.3.6."+n)
		src = mustScan(t, d, dcmtest.Form{})
		got, _, _ = write(t, src, p, smooth(src))
		return src, got
	}
	src, one := part("1", params())
	_, two := part("2", params())
	other := params()
	other.Strength = 0.5
	_, half := part("1", other)
	for _, tag := range []dcm.Tag{dcm.ConcatenationUID, dcm.SOPInstanceUIDOfConcatenationSource} {
		u := one.String(tag)
		if !strings.HasPrefix(u, "2.25.") || u != two.String(tag) || u == half.String(tag) {
			t.Errorf("%v: %q, %q of the next part, %q at another strength", tag, u, two.String(tag), half.String(tag))
		}
		for name, value := range map[string]string{"kept": src.String(tag), "lost": ""} {
			ed, err := one.Edit()
			if err != nil {
				t.Fatal(err)
			}
			ed.Set(dcm.Element{}, dcm.Text(tag, dcm.UI, value))
			var b bytes.Buffer
			if _, err := dcm.WriteFileMeta(&b, dcm.FileMeta{SOPClassUID: one.String(dcm.SOPClassUID),
				SOPInstanceUID: one.String(dcm.SOPInstanceUID), TransferSyntaxUID: one.TransferSyntaxUID()}); err != nil {
				t.Fatal(err)
			}
			if _, err := ed.WriteTo(&b); err != nil {
				t.Fatal(err)
			}
			o, err := scanBytes(b.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			var m *derive.MismatchError
			if err := derive.Verify(src, o); !errors.As(err, &m) || m.Tag != tag {
				t.Errorf("%v %s: %v", tag, name, err)
			}
		}
	}
}

func TestStrengthZeroAndUnchangedPixels(t *testing.T) {
	for name, d := range map[string]*dcmtest.DataSet{
		"MR": mr(), "enhanced": enhanced(magnitude, magnitude),
		"signed": mr().US(dcm.PixelRepresentation, 1).Pixels(func() []uint16 {
			c := dcmtest.Disc(32, 32, 0)
			c[5], c[6] = 0x0FFF, 0xFFFE // negative, with and without an extended sign
			return c
		}()),
	} {
		t.Run(name, func(t *testing.T) {
			o := mustScan(t, d, dcmtest.Form{})
			p := params()
			got, info, _ := write(t, o, p, unchanged(o))
			if !bytes.Equal(pixelBytes(t, got), pixelBytes(t, o)) || info.Changed != 0 {
				t.Error("unchanged values changed the pixels")
			}
			p.Strength = 0
			got, info, _ = write(t, o, p, func(int) ([]float32, error) {
				noise := make([]float32, 1024)
				for i := range noise {
					noise[i] = float32(i)
				}
				return noise, nil
			})
			if !bytes.Equal(pixelBytes(t, got), pixelBytes(t, o)) || info.Changed != 0 {
				t.Error("strength 0 changed the pixels")
			}
		})
	}
}

// Every stored depth, sign and unused-bit habit: values round trip, are rounded
// and clipped, and the bits above BitsStored keep their meaning.
func TestPixelCells(t *testing.T) {
	for _, c := range []struct {
		name     string
		bits     uint16
		signed   uint16
		cell     uint16
		read     float32
		write    float32
		want     uint16
		min, max float32
	}{
		{"12 bit", 12, 0, 0x0123, 0x123, 300.4, 300, 0, 4095},
		{"rounds up", 12, 0, 0x0123, 0x123, 300.5, 301, 0, 4095},
		{"clips above", 12, 0, 0x0123, 0x123, 5000, 4095, 0, 4095},
		{"clips below", 12, 0, 0x0123, 0x123, -3, 0, 0, 4095},
		{"bits above kept", 12, 0, 0x5123, 0x123, 300, 0x5000 | 300, 0, 4095},
		{"signed 12, extended", 12, 1, 0xFFFE, -2, -5, 0xFFFB, -2048, 2047},
		{"signed 12, extended, to positive", 12, 1, 0xFFFE, -2, 5, 5, -2048, 2047},
		{"signed 12, not extended", 12, 1, 0x0FFE, -2, -5, 0x0FFB, -2048, 2047},
		{"signed 12, clips", 12, 1, 0x0FFE, -2, -9999, 0x0800, -2048, 2047},
		{"unsigned 16", 16, 0, 0xFFFE, 65534, 65534.7, 65535, 0, 65535},
		{"signed 16", 16, 1, 0x8001, -32767, -40000, 0x8000, -32768, 32767},
		{"signed 16, half", 16, 1, 0xFFFF, -1, -1.5, 0xFFFF, -32768, 32767},
	} {
		t.Run(c.name, func(t *testing.T) {
			cells := make([]uint16, 1024)
			cells[7] = c.cell
			o := mustScan(t, mr().US(dcm.BitsStored, c.bits).US(dcm.HighBit, c.bits-1).US(dcm.PixelRepresentation, c.signed).Pixels(cells), dcmtest.Form{})
			f, err := derive.ReadFrame(o, 0)
			if err != nil {
				t.Fatal(err)
			}
			if f.Pixels[7] != c.read || f.Min != c.min || f.Max != c.max || f.Skip != nil {
				t.Errorf("read %v in %v..%v", f.Pixels[7], f.Min, f.Max)
			}
			f.Pixels[7] = c.write
			got, _, _ := write(t, o, params(), func(int) ([]float32, error) { return f.Pixels, nil })
			if w := binary.LittleEndian.Uint16(pixelBytes(t, got)[14:]); w != c.want {
				t.Errorf("wrote %#04x, want %#04x", w, c.want)
			}
		})
	}
}

func TestEightBit(t *testing.T) {
	d := dcmtest.MR(17, 17, 0).US(dcm.BitsAllocated, 8).US(dcm.BitsStored, 7).US(dcm.HighBit, 6)
	raw := bytes.Repeat([]byte{0x81, 0x02}, 145)
	d.Set(dcm.Node{Tag: dcm.PixelData, VR: dcm.OW, Value: raw}) // 289 pixels and a padding byte
	o := mustScan(t, d, dcmtest.Form{})
	f, err := derive.ReadFrame(o, 0)
	if err != nil || f.Pixels[0] != 1 || f.Max != 127 {
		t.Fatalf("%v %v", err, f)
	}
	for i := range f.Pixels {
		f.Pixels[i] += 3
	}
	got, _, _ := write(t, o, params(), func(int) ([]float32, error) { return f.Pixels, nil })
	b := pixelBytes(t, got)
	if len(b) != 290 || b[0] != 0x84 || b[1] != 0x05 || b[289] != raw[289] {
		t.Errorf("% x … % x", b[:2], b[288:])
	}
}

func TestPadding(t *testing.T) {
	for _, c := range []struct {
		name        string
		signed      bool
		value, last int16
		rangeLimit  bool
		pixel       []uint16
		skip        []bool
		give        []float32
		want        []uint16
	}{
		{"zero", false, 0, 0, false, []uint16{0, 5, 1}, []bool{true, false, false}, []float32{9, 0.2, 7}, []uint16{0, 1, 7}},
		{"range", false, 10, 20, true, []uint16{10, 20, 15, 30, 5}, []bool{true, true, true, false, false},
			[]float32{99, 99, 99, 19, 11}, []uint16{10, 20, 15, 21, 9}},
		{"range backwards", false, 20, 10, true, []uint16{10, 21, 9}, []bool{true, false, false}, []float32{0, 14, 14}, []uint16{10, 9, 9}},
		{"signed", true, -2000, 0, false, []uint16{0xF830, 5, 0xFFFF}, []bool{true, false, false}, []float32{1, -2000, 3}, []uint16{0xF830, 0xF831, 3}},
		{"wider than the stored bits", false, -2000, 0, false, []uint16{0xF830, 0x0830, 5}, []bool{true, false, false}, []float32{1, 2, 3}, []uint16{0xF830, 2, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := mr()
			if c.signed {
				d.US(dcm.PixelRepresentation, 1)
			}
			d.SS(dcm.PixelPaddingValue, c.value)
			if c.rangeLimit {
				d.SS(dcm.PixelPaddingRangeLimit, c.last)
			}
			d.US(dcm.SmallestImagePixelValue, 0)
			cells := make([]uint16, 1024)
			for i := range cells {
				cells[i] = 100
			}
			copy(cells, c.pixel)
			o := mustScan(t, d.Pixels(cells), dcmtest.Form{})
			f, err := derive.ReadFrame(o, 0)
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range c.skip {
				if f.Skip[i] != want {
					t.Errorf("pixel %d: skip %v", i, f.Skip[i])
				}
			}
			copy(f.Pixels, c.give)
			got, info, _ := write(t, o, params(), func(int) ([]float32, error) { return f.Pixels, nil })
			b := pixelBytes(t, got)
			for i, want := range c.want {
				if w := binary.LittleEndian.Uint16(b[2*i:]); w != want {
					t.Errorf("pixel %d: %#04x, want %#04x", i, w, want)
				}
			}
			n := int64(0)
			for _, s := range c.skip {
				if s {
					n++
				}
			}
			if info.Padding != n {
				t.Errorf("%d padding pixels, want %d", info.Padding, n)
			}
		})
	}
}

// Any cells and any values: padding stays, nothing becomes padding, unchanged
// stays identical, and what is read back is the value rounded and clipped.
func TestPixelProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		bits := uint16(rapid.IntRange(2, 16).Draw(rt, "bits"))
		signed := uint16(rapid.IntRange(0, 1).Draw(rt, "signed"))
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		cells := make([]uint16, 256)
		for i := range cells {
			cells[i] = uint16(rnd.Uint32())
		}
		d := dcmtest.MR(16, 16, 0).US(dcm.BitsStored, bits).US(dcm.HighBit, bits-1).US(dcm.PixelRepresentation, signed).Pixels(cells)
		zero := 0 // the stored value of the smallest real one
		if signed == 1 {
			zero = -1 << (bits - 1)
			d.Text(dcm.RescaleIntercept, dcm.DS, strconv.Itoa(-zero))
		}
		padded := rapid.Bool().Draw(rt, "padded")
		if padded {
			d.US(dcm.PixelPaddingValue, rapid.Uint16().Draw(rt, "padding"))
			if rapid.Bool().Draw(rt, "range") {
				d.US(dcm.PixelPaddingRangeLimit, rapid.Uint16().Draw(rt, "limit"))
			}
		}
		o, err := d.Scan(dcmtest.Form{})
		if err != nil {
			rt.Fatal(err)
		}
		f, err := derive.ReadFrame(o, 0)
		if err != nil {
			rt.Fatal(err)
		}
		give := make([]float32, 256)
		for i := range give {
			give[i] = f.Pixels[i]
			if rnd.IntN(2) == 0 {
				give[i] = float32(rnd.IntN(140001) - 70000)
			}
		}
		var b bytes.Buffer
		if _, err := derive.Write(&b, o, params(), func(int) ([]float32, error) { return give, nil }); err != nil {
			rt.Fatal(err)
		}
		got, err := scanBytes(b.Bytes())
		if err != nil {
			rt.Fatal(err)
		}
		if err := derive.Verify(o, got); err != nil {
			rt.Fatal(err)
		}
		raw, err := got.Bytes(dcm.PixelData, 512)
		if err != nil {
			rt.Fatal(err)
		}
		mask := uint16(1<<bits - 1)
		for i, v := range give {
			cell := binary.LittleEndian.Uint16(raw[2*i:])
			n := float32(cell & mask)
			if signed == 1 && cell&(1<<(bits-1)) != 0 {
				n -= float32(mask) + 1
			}
			n -= float32(zero)
			if f.Skip != nil && f.Skip[i] || v == f.Pixels[i] {
				if cell != cells[i] {
					rt.Fatalf("pixel %d: cell %#04x became %#04x", i, cells[i], cell)
				}
				continue
			}
			if !padded && n != min(max(v, f.Min), f.Max) {
				rt.Fatalf("pixel %d: %v became %v", i, v, n)
			}
			if signed == 0 && (cell^cells[i])&^mask != 0 {
				rt.Fatalf("pixel %d: unused bits changed", i)
			}
		}
	})
}

// One SOP Instance UID in two series, or one series in two studies, makes two objects in two
// derived series, parts of concatenations included.
func TestUIDsTellSeriesApart(t *testing.T) {
	part := func(study, series string) *dcm.Object {
		return mustScan(t, enhanced(magnitude).Text(dcm.StudyInstanceUID, dcm.UI, study).Text(dcm.SeriesInstanceUID,
			dcm.UI, series).
			Text(dcm.ConcatenationUID, dcm.UI, "1.2.3").Text(dcm.SOPInstanceUIDOfConcatenationSource, dcm.UI,
			"1.2.4"), dcmtest.Form{})
	}
	seen := map[string]string{}
	for _, c := range [][2]string{{"1.1", "1.1.1"}, {"1.1", "1.1.2"}, {"1.2", "1.1.1"}, {"1.1.1", "1.1"}} {
		o := part(c[0], c[1])
		got, _, _ := write(t, o, params(), smooth(o))
		for _, tag := range []dcm.Tag{dcm.SOPInstanceUID, dcm.SeriesInstanceUID, dcm.ConcatenationUID,
			dcm.SOPInstanceUIDOfConcatenationSource} {
			if was := seen[got.String(tag)]; was != "" {
				t.Errorf("%v of series %q is also %s", tag, c, was)
			}
			seen[got.String(tag)] = fmt.Sprintf("%v of series %q", tag, c)
		}
	}
}

func TestUIDs(t *testing.T) {
	a, b := mustScan(t, dcmtest.MR(32, 32, 0), dcmtest.Form{}), mustScan(t, dcmtest.MR(32, 32, 1), dcmtest.Form{})
	p := params()
	i1, s1 := derive.UIDs(a, p)
	later := p
	later.Now, later.SeriesTime, later.Version = p.Now.Add(time.Hour), p.Now, "9"
	if i, s := derive.UIDs(a, later); i != i1 || s != s1 {
		t.Error("UIDs depend on the time or the product's version")
	}
	i2, s2 := derive.UIDs(b, p)
	if i2 == i1 || s2 != s1 {
		t.Error("two slices: instances must differ, the series must not")
	}
	seen := map[string]bool{i1: true, s1: true}
	for _, change := range []func(*derive.Params){
		func(p *derive.Params) { p.Strength = 0.5 },
		func(p *derive.Params) { p.Quality = "high" },
		func(p *derive.Params) { p.Model.Hash = "x" },
		func(p *derive.Params) { p.Model.Name = "x" },
		func(p *derive.Params) { p.Model.Version = "x" },
		func(p *derive.Params) { p.Model.Name, p.Model.Version = "student1", "" },
	} {
		q := p
		change(&q)
		i, s := derive.UIDs(a, q)
		for _, u := range []string{i, s} {
			if seen[u] {
				t.Errorf("%s again for %+v", u, q)
			}
			seen[u] = true
			if len(u) > 64 || !strings.HasPrefix(u, "2.25.") || strings.HasPrefix(u, "2.25.0") || strings.Trim(u, "0123456789.") != "" {
				t.Errorf("UID %q", u)
			}
		}
	}
}

// A retry with the same parameters writes the same bytes.
func TestWriteRepeats(t *testing.T) {
	o := mustScan(t, mr(), dcmtest.Form{})
	_, _, a := write(t, o, params(), smooth(o))
	_, _, b := write(t, o, params(), smooth(o))
	if !bytes.Equal(a, b) {
		t.Error("two runs differ")
	}
}

func TestImageTypeAndSeriesNumber(t *testing.T) {
	for _, c := range []struct{ class, modality, in, want string }{
		{"1.2.840.10008.5.1.4.1.1.4", "MR", `ORIGINAL\PRIMARY`, `DERIVED\PRIMARY\OTHER\DENOISED`},
		{"1.2.840.10008.5.1.4.1.1.4", "MR", `ORIGINAL\SECONDARY\M\ND`, `DERIVED\SECONDARY\M\ND\DENOISED`},
		{"1.2.840.10008.5.1.4.1.1.4", "MR", `ORIGINAL`, `DERIVED\PRIMARY\OTHER\DENOISED`},
		{"1.2.840.10008.5.1.4.1.1.1", "CR", `ORIGINAL\PRIMARY`, `DERIVED\PRIMARY\\DENOISED`},
		{"1.2.840.10008.5.1.4.1.1.1", "CR", ``, `DERIVED\PRIMARY\\DENOISED`},
		{"1.2.840.10008.5.1.4.1.1.1.1", "DX", `ORIGINAL\PRIMARY\`, `DERIVED\PRIMARY\\DENOISED`},
	} {
		o := mustScan(t, mr().Text(dcm.SOPClassUID, dcm.UI, c.class).Text(dcm.Modality, dcm.CS, c.modality).Text(dcm.ImageType, dcm.CS, c.in), dcmtest.Form{})
		got, _, _ := write(t, o, params(), smooth(o))
		if s := got.String(dcm.ImageType); s != c.want {
			t.Errorf("%s %q became %q", c.modality, c.in, s)
		}
	}
	for _, c := range []struct {
		number, quality, want string
		offset                int
	}{
		{"4", "fast", "10004", 0}, {"4", "high", "20004", 0}, {"", "fast", "10000", 0}, {"99500", "fast", "9500", 0},
		{"123456789", "fast", "66789", 0}, {"4", "fast", "704", 700}, {"-3", "fast", "10003", 0}, {"1301", "fast", "11301", 0},
		{"99999", "fast", "99998", 99999},
	} {
		p := params()
		p.Quality, p.SeriesNumberOffset = c.quality, c.offset
		o := mustScan(t, mr().Text(dcm.SeriesNumber, dcm.IS, c.number), dcmtest.Form{})
		got, _, _ := write(t, o, p, smooth(o))
		if s := got.String(dcm.SeriesNumber); s != c.want {
			t.Errorf("series number %q became %q, want %q", c.number, s, c.want)
		}
	}
}

func TestSeriesDescriptionIsNotDamaged(t *testing.T) {
	for _, c := range []struct{ charset, in, want string }{
		{"ISO_IR 100", "Sch\xe4del", "Sch\xe4del DN"},
		{"ISO_IR 100", strings.Repeat("x", 63), strings.Repeat("x", 63)},
		{`\ISO 2022 IR 87`, "\x1b$B;3ED", "\x1b$B;3ED"},
		{"ISO_IR 192", "头颅", "头颅 DN"},
		{"ISO_IR 100", "", "DN"},
	} {
		o := mustScan(t, mr().Text(dcm.SpecificCharacterSet, dcm.CS, c.charset).Text(dcm.SeriesDescription, dcm.LO, c.in), dcmtest.Form{})
		got, _, _ := write(t, o, params(), smooth(o))
		b, err := got.Bytes(dcm.SeriesDescription, 256)
		if s := strings.TrimRight(string(b), " "); err != nil || s != c.want {
			t.Errorf("%q became %q", c.in, s)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	o := mustScan(t, mr(), dcmtest.Form{})
	fine := make([]float32, 1024)
	for name, c := range map[string]struct {
		change func(p *derive.Params)
		next   func(int) ([]float32, error)
	}{
		"strength above 1": {func(p *derive.Params) { p.Strength = 1.1 }, nil},
		"strength NaN":     {func(p *derive.Params) { p.Strength = math.NaN() }, nil},
		"no time":          {func(p *derive.Params) { p.Now = time.Time{} }, nil},
		"suffix":           {func(p *derive.Params) { p.SeriesDescriptionSuffix = `a\b` }, nil},
		"offset":           {func(p *derive.Params) { p.SeriesNumberOffset = -1 }, nil},
		"few pixels":       {nil, func(int) ([]float32, error) { return fine[:1023], nil }},
		"NaN":              {nil, func(int) ([]float32, error) { b := bytes32(fine); b[9] = float32(math.NaN()); return b, nil }},
		"infinity":         {nil, func(int) ([]float32, error) { b := bytes32(fine); b[9] = float32(math.Inf(1)); return b, nil }},
		"denoiser fails":   {nil, func(int) ([]float32, error) { return nil, errBroken }},
	} {
		t.Run(name, func(t *testing.T) {
			p := params()
			if c.change != nil {
				c.change(&p)
			}
			next := c.next
			if next == nil {
				next = func(int) ([]float32, error) { return fine, nil }
			}
			_, err := derive.Write(io.Discard, o, p, next)
			if err == nil {
				t.Fatal("no error")
			}
			if name == "denoiser fails" && !errors.Is(err, errBroken) {
				t.Errorf("cause lost: %v", err)
			}
		})
	}
	bad := mustScan(t, mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\P`), dcmtest.Form{})
	var refused *derive.RefusedError
	if _, err := derive.Write(io.Discard, bad, params(), nil); !errors.As(err, &refused) || refused.Verdict.Reason != derive.Phase {
		t.Errorf("phase image: %v", err)
	}
	if _, err := derive.ReadFrame(o, 1); err == nil {
		t.Error("frame 1 of 1")
	}
}

var errBroken = errors.New("broken")

func bytes32(f []float32) []float32 { return append([]float32(nil), f...) }

// Whatever is altered in a derived object that should be the source's is found.
func TestVerifyFindsEveryAlteration(t *testing.T) {
	src := mustScan(t, enhanced(magnitude, magnitude).Text(dcm.PixelPaddingValue, dcm.US, "\x07\x00"), dcmtest.Form{})
	_, _, file := write(t, src, params(), smooth(src))
	derived, err := scanBytes(file)
	if err != nil {
		t.Fatal(err)
	}
	// what describes the derivation is new and compared with nothing
	type span struct{ from, to int64 }
	var ours []span
	for e := range derived.All() {
		switch e.Tag() {
		case dcm.SourceImageEvidenceSequence, dcm.DerivationImageSequence, dcm.ContributingEquipmentSequence:
			ours = append(ours, span{e.Offset(), e.End()})
		}
	}
	kept := 0
	for e := range derived.All() {
		if e.IsSequence() || e.Length() == 0 || e.Tag() == dcm.PixelData {
			continue
		}
		bad := bytes.Clone(file)
		bad[e.ValueOffset()] ^= 1
		o, err := scanBytes(bad)
		if err != nil {
			continue
		}
		if derive.Verify(src, o) == nil {
			// only what the list of changed attributes names may differ, and of
			// that only what has no rule of its own
			switch e.Tag() {
			case dcm.InstanceCreationDate, dcm.InstanceCreationTime, dcm.InstanceCreatorUID, dcm.SeriesDate, dcm.SeriesTime,
				dcm.ContentDate, dcm.ContentTime, dcm.SeriesNumber, dcm.ContentQualification:
				continue
			}
			if slices.ContainsFunc(ours, func(s span) bool { return e.Offset() >= s.from && e.End() <= s.to }) {
				continue
			}
			t.Errorf("a changed %v passes", e.Tag())
		} else {
			kept++
		}
	}
	if kept < 30 {
		t.Errorf("only %d alterations found", kept)
	}

	alter := func(name string, edit func(o *dcm.Object, ed *dcm.Editor)) {
		t.Helper()
		ed, err := derived.Edit()
		if err != nil {
			t.Fatal(err)
		}
		edit(derived, ed)
		out := bytes.NewBuffer(bytes.Clone(file[:derived.DataSetOffset()]))
		if _, err := ed.WriteTo(out); err != nil {
			t.Fatal(err)
		}
		o, err := scanBytes(out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		var m *derive.MismatchError
		if err := derive.Verify(src, o); !errors.As(err, &m) {
			t.Errorf("%s: %v", name, err)
		}
	}
	firstFrame := func(o *dcm.Object) dcm.Element {
		for item := range o.Find(dcm.PerFrameFunctionalGroupsSequence).Children() {
			return item
		}
		return dcm.Element{}
	}
	alter("element added", func(_ *dcm.Object, ed *dcm.Editor) { ed.Set(dcm.Element{}, dcm.Text(dcm.ImageComments, dcm.LT, "x")) })
	alter("element removed", func(_ *dcm.Object, ed *dcm.Editor) { ed.Remove(dcm.Element{}, dcm.PatientID) })
	alter("private removed", func(_ *dcm.Object, ed *dcm.Editor) { ed.Remove(dcm.Element{}, 0x00291001) })
	alter("geometry of a frame", func(o *dcm.Object, ed *dcm.Editor) {
		for p := range firstFrame(o).Child(0x00209113).Children() {
			ed.Set(p, dcm.Text(dcm.ImagePositionPatient, dcm.DS, `0\0\9`))
		}
	})
	alter("group added to a frame", func(o *dcm.Object, ed *dcm.Editor) { ed.Set(firstFrame(o), dcm.Text(dcm.ImageComments, dcm.LT, "x")) })
	alter("group removed from a frame", func(o *dcm.Object, ed *dcm.Editor) { ed.Remove(firstFrame(o), 0x00209113) })
	alter("frame type", func(o *dcm.Object, ed *dcm.Editor) {
		for p := range firstFrame(o).Child(dcm.MRImageFrameTypeSequence).Children() {
			ed.Set(p, dcm.Text(dcm.FrameType, dcm.CS, `DERIVED\PRIMARY\P\NONE`))
		}
	})
	alter("complex component", func(o *dcm.Object, ed *dcm.Editor) {
		for p := range firstFrame(o).Child(dcm.MRImageFrameTypeSequence).Children() {
			ed.Set(p, dcm.Text(dcm.ComplexImageComponent, dcm.CS, "PHASE"))
		}
	})
	alter("a frame more", func(o *dcm.Object, ed *dcm.Editor) {
		ed.AppendItems(o.Find(dcm.PerFrameFunctionalGroupsSequence), []dcm.Node{})
	})
	alter("short pixels", func(_ *dcm.Object, ed *dcm.Editor) {
		ed.Set(dcm.Element{}, dcm.Node{Tag: dcm.PixelData, VR: dcm.OW, Value: make([]byte, 4094)})
	})
	alter("unused bits", func(o *dcm.Object, ed *dcm.Editor) {
		b := bytes.Repeat([]byte{1, 0xF0}, int(o.Find(dcm.PixelData).Length()/2))
		ed.Set(dcm.Element{}, dcm.Node{Tag: dcm.PixelData, VR: dcm.OW, Value: b})
	})
	alter("pixels turned into padding", func(o *dcm.Object, ed *dcm.Editor) {
		b := bytes.Repeat([]byte{7, 0}, int(o.Find(dcm.PixelData).Length()/2))
		ed.Set(dcm.Element{}, dcm.Node{Tag: dcm.PixelData, VR: dcm.OW, Value: b})
	})
	alter("not ours", func(_ *dcm.Object, ed *dcm.Editor) { ed.Remove(dcm.Element{}, dcm.ContributingEquipmentSequence) })
	alter("old UID", func(_ *dcm.Object, ed *dcm.Editor) {
		ed.Set(dcm.Element{}, dcm.Text(dcm.SOPInstanceUID, dcm.UI, src.String(dcm.SOPInstanceUID)))
	})
	alter("original type", func(_ *dcm.Object, ed *dcm.Editor) {
		ed.Set(dcm.Element{}, dcm.Text(dcm.ImageType, dcm.CS, magnitude))
	})
	alter("description rewritten", func(_ *dcm.Object, ed *dcm.Editor) {
		ed.Set(dcm.Element{}, dcm.Text(dcm.SeriesDescription, dcm.LO, "other"))
	})
	if err := derive.Verify(src, src); err == nil {
		t.Error("the source passes as its own derived object")
	}
}

// FuzzWrite: whatever can be scanned and passes Inspect can be derived, and the
// result passes Verify and is refused a second time.
func FuzzWrite(f *testing.F) {
	f.Add(dcmtest.MR(16, 16, 0).File(dcmtest.Form{}))
	f.Add(dcmtest.MR(16, 16, 0).File(dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian}))
	f.Add(dcmtest.EnhancedMR(16, 16, 2, nil).File(dcmtest.Form{}))
	f.Add(dcmtest.EnhancedMR(16, 16, 2, nil).File(dcmtest.Form{Undefined: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, _ := scanBytes(b)
		if v := derive.Inspect(o); !v.OK() {
			return
		}
		var out bytes.Buffer
		if _, err := derive.Write(&out, o, params(), smooth(o)); err != nil {
			t.Fatal(err)
		}
		got, err := scanBytes(out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if err := derive.Verify(o, got); err != nil {
			t.Fatal(err)
		}
		if v := derive.Inspect(got); v.Reason != derive.AlreadyDenoised {
			t.Fatal(v)
		}
	})
}

// TestUntouched: an image in which no noise was found says that it is a copy.
func TestUntouched(t *testing.T) {
	o := mustScan(t, dcmtest.MR(32, 32, 1), dcmtest.Form{})
	for _, c := range []struct {
		next func(int) ([]float32, error)
		want bool
	}{
		{func(i int) ([]float32, error) {
			f, err := derive.ReadFrame(o, i)
			if err != nil {
				return nil, err
			}
			return f.Pixels, nil
		}, true},
		{smooth(o), false},
	} {
		got, _, _ := write(t, o, params(), c.next)
		if said := strings.HasSuffix(got.String(dcm.DerivationDescription), derive.Untouched); said != c.want {
			t.Errorf("DerivationDescription %q, a copy: %v", got.String(dcm.DerivationDescription), c.want)
		}
	}
}

// The link to another derivation: after the source's own references, which stay.
func TestRelated(t *testing.T) {
	other := &derive.Related{SOPClassUID: "1.2.840.10008.5.1.4.1.1.4", SOPInstanceUID: "2.25.7", SeriesInstanceUID: "2.25.8"}
	refs := func(o *dcm.Object, seq, child, leaf dcm.Tag) (uids []string) {
		for item := range o.Find(seq).Children() {
			if child == 0 {
				uids = append(uids, item.Child(leaf).String())
				continue
			}
			for inner := range item.Child(child).Children() {
				uids = append(uids, item.Child(dcm.SeriesInstanceUID).String()+" "+inner.Child(leaf).String())
			}
		}
		return uids
	}
	for _, ts := range []string{dcm.ExplicitVRLittleEndian, dcm.ImplicitVRLittleEndian} {
		for _, own := range []bool{false, true} {
			d := mr()
			var images, series []string
			if own {
				item := []dcm.Node{dcm.Text(dcm.ReferencedSOPClassUID, dcm.UI, "1.2"), dcm.Text(dcm.ReferencedSOPInstanceUID, dcm.UI, "1.2.9")}
				d.Set(dcm.Sequence(dcm.ReferencedImageSequence, item)).
					Set(dcm.Sequence(dcm.ReferencedSeriesSequence, []dcm.Node{dcm.Sequence(dcm.ReferencedInstanceSequence, item), dcm.Text(dcm.SeriesInstanceUID, dcm.UI, "1.2.8")}))
				images, series = []string{"1.2.9"}, []string{"1.2.8 1.2.9"}
			}
			o := mustScan(t, d, dcmtest.Form{TransferSyntaxUID: ts})
			p := params()
			p.Quality, p.Related = "high", other
			got, _, _ := write(t, o, p, smooth(o))
			images = append(images, "2.25.7")
			series = append(series, o.String(dcm.SeriesInstanceUID)+" "+o.String(dcm.SOPInstanceUID), "2.25.8 2.25.7")
			if g := refs(got, dcm.ReferencedImageSequence, 0, dcm.ReferencedSOPInstanceUID); !slices.Equal(g, images) {
				t.Errorf("images %q, want %q", g, images)
			}
			if g := refs(got, dcm.ReferencedSeriesSequence, dcm.ReferencedInstanceSequence, dcm.ReferencedSOPInstanceUID); !slices.Equal(g, series) {
				t.Errorf("series %q, want %q", g, series)
			}
			if s := got.String(dcm.SeriesDescription); s != "t1_se_tra DN HQ" {
				t.Errorf("description %q", s)
			}
			p.Related = nil
			sop, uid := derive.UIDs(o, p)
			if sop != got.String(dcm.SOPInstanceUID) || uid != got.String(dcm.SeriesInstanceUID) {
				t.Error("the link changes the UIDs")
			}
			// Without it nothing is referred to, and a lost reference is noticed.
			plain, _, _ := write(t, o, p, smooth(o))
			if !own && (plain.Has(dcm.ReferencedImageSequence) || plain.Has(dcm.ReferencedSeriesSequence)) {
				t.Error("refers to nothing")
			}
			if own {
				bare, _, _ := write(t, mustScan(t, mr(), dcmtest.Form{TransferSyntaxUID: ts}), p, smooth(o))
				if err := derive.Verify(o, bare); err == nil {
					t.Error("a lost reference was not noticed")
				}
			}
		}
	}
}

// Whatever sequence Write adds items to, it may have arrived as UN (PS3.5 6.2.2); one that
// cannot be read keeps the image untouched, with a reason, and never fails in the writer.
func TestSequencesAsUnknown(t *testing.T) {
	item := []dcm.Node{dcm.Text(dcm.ReferencedSOPClassUID, dcm.UI, "1.2"),
		dcm.Text(dcm.ReferencedSOPInstanceUID, dcm.UI, "1.2.9")}
	for _, tag := range []dcm.Tag{dcm.ReferencedSeriesSequence, dcm.ReferencedImageSequence, dcm.SourceImageSequence,
		dcm.DerivationCodeSequence, dcm.ContributingEquipmentSequence} {
		implicit := dcm.Encoding{Implicit: true}.Append(nil, dcm.Sequence(tag, item))
		for name, c := range map[string]struct {
			d    *dcmtest.DataSet
			form dcmtest.Form
			want derive.Reason
		}{
			"defined":   {mr().Set(dcm.Node{Tag: tag, VR: dcm.UN, Value: implicit[8:]}), dcmtest.Form{}, ""},
			"undefined": {mr().Set(dcm.Sequence(tag, item)), dcmtest.Form{Unknown: true}, ""},
			"opaque": {mr().Set(dcm.Node{Tag: tag, VR: dcm.UN, Value: []byte("no items")}), dcmtest.Form{},
				derive.Inconsistent},
			"empty": {mr().Set(dcm.Node{Tag: tag, VR: dcm.UN}), dcmtest.Form{}, ""},
		} {
			if tag == dcm.SourceImageSequence && name == "opaque" {
				c.want = "" // it is replaced, not added to
			}
			o := mustScan(t, c.d, c.form)
			if v := derive.Inspect(o); v.Reason != c.want {
				t.Errorf("%v %s: %v, want %q", tag, name, v, c.want)
			}
			if c.want != "" {
				continue
			}
			p := params()
			p.Related = &derive.Related{SOPClassUID: "1.2.840.10008.5.1.4.1.1.4", SOPInstanceUID: "2.25.7",
				SeriesInstanceUID: "2.25.8"}
			got, _, _ := write(t, o, p, smooth(o)) // and verifies
			if n := len(slices.Collect(got.Find(tag).Children())); n < 1 {
				t.Errorf("%v %s: no items", tag, name)
			}
		}
	}
}

// A remark is asked for after the pixels are made, stands before the note that
// nothing changed, and may be anything.
func TestRemark(t *testing.T) {
	o := mustScan(t, mr(), dcmtest.Form{})
	for remark, want := range map[string]string{"": derive.Untouched, "quality check: x": "; quality check: x" + derive.Untouched, strings.Repeat("long ", 1000): derive.Untouched, "a\\b\x00ä": derive.Untouched} {
		p, made := params(), false
		p.Remark = func() string {
			if !made {
				t.Error("asked before the pixels were made")
			}
			return remark
		}
		next := unchanged(o)
		got, _, _ := write(t, o, p, func(i int) ([]float32, error) { made = true; return next(i) })
		if s := got.String(dcm.DerivationDescription); !strings.HasSuffix(s, want) || len(s) > 1024 {
			t.Errorf("remark %.20q: %q", remark, s)
		}
	}
}

// A copy keeps every pixel whatever it is given and says why it is one, in each
// frame too, although those descriptions are written before the pixels are made.
func TestCopy(t *testing.T) {
	for name, d := range map[string]*dcmtest.DataSet{"one frame": mr(), "many": enhanced(magnitude, magnitude, magnitude)} {
		o := mustScan(t, d, dcmtest.Form{})
		p := params()
		p.Copy = "the method failed (x)"
		p.Remark = func() string { return "quality check: y" }
		got, info, _ := write(t, o, p, smooth(o))
		if info.Changed != 0 || !bytes.Equal(pixelBytes(t, got), pixelBytes(t, o)) {
			t.Errorf("%s: %d pixels changed", name, info.Changed)
		}
		said := []string{got.String(dcm.DerivationDescription)}
		if name == "many" {
			said = nil
			for item := range got.Find(dcm.PerFrameFunctionalGroupsSequence).Children() {
				for der := range item.Child(dcm.DerivationImageSequence).Children() {
					said = append(said, der.Child(dcm.DerivationDescription).String())
				}
			}
			if len(said) != 3 {
				t.Errorf("%d descriptions", len(said))
			}
		}
		for _, s := range said {
			if !strings.HasSuffix(s, "; the method failed (x)"+derive.Untouched) || strings.Contains(s, "quality check") {
				t.Errorf("%s: %q", name, s)
			}
		}
	}
}
