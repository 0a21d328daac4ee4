// Package dcmtest builds DICOM files for tests.
//
// A [DataSet] is a list of elements that a test changes as it likes;
// [DataSet.File] encodes it in any uncompressed transfer syntax, or with the
// deliberate oddities of [Form].
package dcmtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// DataSet is the content of a file under construction. Its methods return it.
type DataSet struct{ Nodes []dcm.Node }

// Form says how a DataSet is encoded.
type Form struct {
	// TransferSyntaxUID is the one of the header, empty for explicit VR little endian.
	TransferSyntaxUID string
	// Undefined encodes sequences and items with undefined lengths.
	Undefined bool
	// Unknown encodes sequences as VR UN of undefined length, content implicit
	// (CP-246); explicit transfer syntaxes only.
	Unknown bool
	// Fragments, when not nil, replaces PixelData by these encapsulated fragments.
	Fragments [][]byte
	// NoHeader leaves preamble and file meta information out.
	NoHeader bool
}

// Set replaces or inserts an element.
func (d *DataSet) Set(n dcm.Node) *DataSet {
	i, found := slices.BinarySearchFunc(d.Nodes, n.Tag, func(m dcm.Node, t dcm.Tag) int {
		switch {
		case m.Tag < t:
			return -1
		case m.Tag > t:
			return 1
		}
		return 0
	})
	if found {
		d.Nodes[i] = n
	} else {
		d.Nodes = slices.Insert(d.Nodes, i, n)
	}
	return d
}

// Text sets a text element.
func (d *DataSet) Text(t dcm.Tag, v dcm.VR, s string) *DataSet { return d.Set(dcm.Text(t, v, s)) }

// US sets a 16-bit element. Binary values are kept little endian and are
// swapped by File where the transfer syntax asks for it.
func (d *DataSet) US(t dcm.Tag, v uint16) *DataSet {
	return d.Set(dcm.Node{Tag: t, VR: dcm.US, Value: binary.LittleEndian.AppendUint16(nil, v)})
}

// SS sets a signed 16-bit element.
func (d *DataSet) SS(t dcm.Tag, v int16) *DataSet {
	return d.Set(dcm.Node{Tag: t, VR: dcm.SS, Value: binary.LittleEndian.AppendUint16(nil, uint16(v))})
}

// Remove drops an element.
func (d *DataSet) Remove(t dcm.Tag) *DataSet {
	d.Nodes = slices.DeleteFunc(d.Nodes, func(n dcm.Node) bool { return n.Tag == t })
	return d
}

// Get returns the text of an element, empty if absent.
func (d *DataSet) Get(t dcm.Tag) string {
	for _, n := range d.Nodes {
		if n.Tag == t {
			return strings.TrimRight(string(n.Value), " \x00")
		}
	}
	return ""
}

// Pixels sets PixelData to 16-bit cells.
func (d *DataSet) Pixels(cells []uint16) *DataSet {
	b := make([]byte, 0, 2*len(cells))
	for _, c := range cells {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return d.Set(dcm.Node{Tag: dcm.PixelData, VR: dcm.OW, Value: b})
}

// MR is a valid MR Image Storage object, 12 of 16 bits, with a bright disc in
// noise. Objects of equal size and seed are equal.
func MR(rows, columns int, seed uint64) *DataSet {
	d := &DataSet{}
	uid := func(kind, n uint64) string { return fmt.Sprintf("2.25.4711.%d.%d", kind, n) }
	d.Text(dcm.SpecificCharacterSet, dcm.CS, "ISO_IR 100").
		Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\ND`).
		Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.4").
		Text(dcm.SOPInstanceUID, dcm.UI, uid(1, seed+1)).
		Text(dcm.StudyDate, dcm.DA, "20260102").
		Text(dcm.SeriesDate, dcm.DA, "20260102").
		Text(dcm.AcquisitionDate, dcm.DA, "20260102").
		Text(dcm.ContentDate, dcm.DA, "20260102").
		Text(dcm.StudyTime, dcm.TM, "101112").
		Text(dcm.SeriesTime, dcm.TM, "101113").
		Text(dcm.AcquisitionTime, dcm.TM, "101114.5").
		Text(dcm.ContentTime, dcm.TM, "101115").
		Text(dcm.AccessionNumber, dcm.SH, "A1").
		Text(dcm.Modality, dcm.CS, "MR").
		Text(dcm.Manufacturer, dcm.LO, "Phantom Works").
		Text(0x00080090, dcm.PN, "").
		Text(dcm.StudyDescription, dcm.LO, "Phantom").
		Text(dcm.SeriesDescription, dcm.LO, "t1_se_tra").
		Text(dcm.ManufacturerModelName, dcm.LO, "P1").
		Text(dcm.PatientName, dcm.PN, "M\xfcller^Phantom").
		Text(dcm.PatientID, dcm.LO, "P-1").
		Text(dcm.PatientBirthDate, dcm.DA, "").
		Text(dcm.PatientSex, dcm.CS, "O").
		Text(dcm.ScanningSequence, dcm.CS, "SE").
		Text(dcm.SequenceVariant, dcm.CS, "NONE").
		Text(dcm.ScanOptions, dcm.CS, "").
		Text(dcm.MRAcquisitionType, dcm.CS, "2D").
		Text(dcm.SliceThickness, dcm.DS, "5").
		Text(dcm.RepetitionTime, dcm.DS, "500").
		Text(dcm.EchoTime, dcm.DS, "12.5").
		Text(dcm.EchoTrainLength, dcm.IS, "1").
		Text(dcm.ProtocolName, dcm.LO, "T1_HQ").
		Text(dcm.PatientPosition, dcm.CS, "HFS").
		Text(dcm.StudyInstanceUID, dcm.UI, uid(2, 1)).
		Text(dcm.SeriesInstanceUID, dcm.UI, uid(3, 1)).
		Text(dcm.StudyID, dcm.SH, "1").
		Text(dcm.SeriesNumber, dcm.IS, "4").
		Text(dcm.InstanceNumber, dcm.IS, fmt.Sprint(seed+1)).
		Text(dcm.ImagePositionPatient, dcm.DS, fmt.Sprintf(`-100\-100\%d`, 5*seed)).
		Text(dcm.ImageOrientationPatient, dcm.DS, `1\0\0\0\1\0`).
		Text(dcm.FrameOfReferenceUID, dcm.UI, uid(4, 1)).
		Text(0x00201040, dcm.LO, "").
		US(dcm.SamplesPerPixel, 1).
		Text(dcm.PhotometricInterpretation, dcm.CS, "MONOCHROME2").
		US(dcm.Rows, uint16(rows)).
		US(dcm.Columns, uint16(columns)).
		Text(dcm.PixelSpacing, dcm.DS, `0.5\0.5`).
		US(dcm.BitsAllocated, 16).
		US(dcm.BitsStored, 12).
		US(dcm.HighBit, 11).
		US(dcm.PixelRepresentation, 0).
		Text(dcm.WindowCenter, dcm.DS, "600").
		Text(dcm.WindowWidth, dcm.DS, "1200").
		Text(0x00290010, dcm.LO, "PHANTOM WORKS").
		Set(dcm.Node{Tag: 0x00291001, VR: dcm.OB, Value: []byte{1, 2, 3, 4}})
	return d.Pixels(Disc(rows, columns, seed))
}

// Disc is a noisy disc with values from 0 to about 1100, row major.
func Disc(rows, columns int, seed uint64) []uint16 {
	rnd := rand.New(rand.NewPCG(seed, 7))
	cells := make([]uint16, rows*columns)
	for y := range rows {
		for x := range columns {
			v := 30.0
			dy, dx := float64(2*y-rows)/float64(rows), float64(2*x-columns)/float64(columns)
			if dx*dx+dy*dy < 0.6 {
				v = 900
			}
			cells[y*columns+x] = uint16(max(0, v+40*rnd.NormFloat64()))
		}
	}
	return cells
}

// EnhancedMR is an Enhanced MR Image Storage object with the functional groups
// that a derivation touches; frameTypes gives FrameType per frame, nil for
// magnitude images.
func EnhancedMR(rows, columns, frames int, frameTypes []string) *DataSet {
	d := MR(rows, columns, 0)
	d.Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.4.1").
		Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\NONE`).
		Text(dcm.ContentQualification, dcm.CS, "PRODUCT").
		Text(dcm.NumberOfFrames, dcm.IS, fmt.Sprint(frames)).
		Text(dcm.ComplexImageComponent, dcm.CS, "MAGNITUDE").
		Text(dcm.LossyImageCompression, dcm.CS, "00").
		Remove(dcm.ImagePositionPatient).Remove(dcm.ImageOrientationPatient).Remove(dcm.PixelSpacing)
	var cells []uint16
	var perFrame [][]dcm.Node
	for i := range frames {
		cells = append(cells, Disc(rows, columns, uint64(i))...)
		ft := `ORIGINAL\PRIMARY\M\NONE`
		if frameTypes != nil {
			ft = frameTypes[i]
		}
		perFrame = append(perFrame, []dcm.Node{
			dcm.Sequence(dcm.MRImageFrameTypeSequence, []dcm.Node{
				dcm.Text(dcm.FrameType, dcm.CS, ft),
				dcm.Text(dcm.ComplexImageComponent, dcm.CS, "MAGNITUDE"),
			}),
			dcm.Sequence(0x00209113, []dcm.Node{
				dcm.Text(dcm.ImagePositionPatient, dcm.DS, fmt.Sprintf(`0\0\%d`, i)),
			}),
		})
	}
	d.Set(dcm.Sequence(dcm.SharedFunctionalGroupsSequence, []dcm.Node{
		dcm.Sequence(0x00209116, []dcm.Node{dcm.Text(dcm.ImageOrientationPatient, dcm.DS, `1\0\0\0\1\0`)}),
		dcm.Sequence(0x00289110, []dcm.Node{dcm.Text(dcm.PixelSpacing, dcm.DS, `0.5\0.5`)}),
	}))
	d.Set(dcm.Sequence(dcm.PerFrameFunctionalGroupsSequence, perFrame...))
	return d.Pixels(cells)
}

// File encodes the data set behind a Part-10 header.
func (d *DataSet) File(f Form) []byte {
	ts := f.TransferSyntaxUID
	if ts == "" {
		ts = dcm.ExplicitVRLittleEndian
	}
	e := encoder{form: f}
	switch ts {
	case dcm.ImplicitVRLittleEndian:
		e.enc.Implicit = true
	case dcm.ExplicitVRBigEndian:
		e.enc.BigEndian = true
	}
	var b bytes.Buffer
	if !f.NoHeader {
		// a bytes.Buffer does not fail and the UIDs of tests are short
		_, _ = dcm.WriteFileMeta(&b, dcm.FileMeta{SOPClassUID: d.Get(dcm.SOPClassUID),
			SOPInstanceUID: d.Get(dcm.SOPInstanceUID), TransferSyntaxUID: ts, SourceAETitle: "PHANTOM"})
	}
	return e.nodes(b.Bytes(), d.Nodes, e.enc)
}

// Scan encodes and scans the data set; the error is Scan's.
func (d *DataSet) Scan(f Form) (*dcm.Object, error) {
	b := d.File(f)
	return dcm.Scan(bytes.NewReader(b), int64(len(b)))
}

type encoder struct {
	form Form
	enc  dcm.Encoding
}

func (e encoder) nodes(dst []byte, nodes []dcm.Node, enc dcm.Encoding) []byte {
	for _, n := range nodes {
		switch {
		case n.Tag == dcm.PixelData && e.form.Fragments != nil:
			dst = append(dst, 0xE0, 0x7F, 0x10, 0, 'O', 'B', 0, 0, 255, 255, 255, 255)
			for _, f := range e.form.Fragments {
				dst = append(dst, 0xFE, 0xFF, 0x00, 0xE0)
				dst = binary.LittleEndian.AppendUint32(dst, uint32(len(f)))
				dst = append(dst, f...)
			}
			dst = append(dst, 0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0)
		case n.VR == dcm.SQ && (e.form.Undefined || e.form.Unknown):
			dst = e.undefined(dst, n, enc)
		case n.VR == dcm.SQ:
			items := make([][]byte, len(n.Items))
			var body []byte
			for i, it := range n.Items {
				items[i] = e.nodes(nil, it, enc)
				body = e.tagged(body, dcm.Item, enc, uint32(len(items[i])))
				body = append(body, items[i]...)
			}
			dst = e.tagged(dst, n.Tag, enc, uint32(len(body)))
			dst = append(dst, body...)
		default:
			m := n
			if enc.BigEndian {
				m.Value = swapped(n)
			}
			dst = enc.Append(dst, m)
		}
	}
	return dst
}

// tagged writes a sequence's or an item's header.
func (e encoder) tagged(dst []byte, t dcm.Tag, enc dcm.Encoding, length uint32) []byte {
	dst = enc.Append(dst, dcm.Sequence(t)) // without VR for the tags of group FFFE
	order := binary.ByteOrder(binary.LittleEndian)
	if enc.BigEndian {
		order = binary.BigEndian
	}
	order.PutUint32(dst[len(dst)-4:], length)
	return dst
}

func (e encoder) undefined(dst []byte, n dcm.Node, enc dcm.Encoding) []byte {
	const forever = 0xFFFFFFFF
	inner := enc
	dst = e.tagged(dst, n.Tag, enc, forever)
	if e.form.Unknown && !enc.Implicit {
		copy(dst[len(dst)-8:], "UN")
		inner = dcm.Encoding{Implicit: true}
	}
	for _, it := range n.Items {
		dst = e.tagged(dst, dcm.Item, inner, forever)
		dst = e.nodes(dst, it, inner)
		dst = e.tagged(dst, dcm.ItemDelimitationItem, inner, 0)
	}
	return e.tagged(dst, dcm.SequenceDelimitationItem, inner, 0)
}

// swapped reverses the bytes of binary values.
func swapped(n dcm.Node) []byte {
	size := 0
	switch n.VR {
	case dcm.US, dcm.SS, dcm.OW, dcm.AT:
		size = 2
	case dcm.UL, dcm.SL, dcm.FL, dcm.OF, dcm.OL:
		size = 4
	case dcm.FD, dcm.OD, dcm.OV, dcm.SV, dcm.UV:
		size = 8
	default:
		return n.Value
	}
	v := slices.Clone(n.Value)
	for i := 0; i+size <= len(v); i += size {
		slices.Reverse(v[i : i+size])
	}
	return v
}
