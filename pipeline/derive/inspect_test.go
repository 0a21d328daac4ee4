package derive_test

import (
	"testing"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

func mr() *dcmtest.DataSet { return dcmtest.MR(32, 32, 0) }

func enhanced(types ...string) *dcmtest.DataSet {
	return dcmtest.EnhancedMR(32, 32, len(types), types)
}

const magnitude = `ORIGINAL\PRIMARY\M\NONE`

// private puts an element behind its creator, in a block that is not the first.
func private(d *dcmtest.DataSet, group uint16, creator string, n dcm.Node) *dcmtest.DataSet {
	g := dcm.Tag(group) << 16
	n.Tag = g | 0x1200 | n.Tag
	return d.Text(g|0x12, dcm.LO, creator).Set(n)
}

// cr is a computed radiograph with the given ImageType.
func cr(imageType string) *dcmtest.DataSet {
	return mr().Text(dcm.Modality, dcm.CS, "CR").Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.1").
		Text(dcm.ImageType, dcm.CS, imageType)
}

func inFirstFrame(d *dcmtest.DataSet, n ...dcm.Node) *dcmtest.DataSet {
	for i := range d.Nodes {
		if d.Nodes[i].Tag == dcm.PerFrameFunctionalGroupsSequence {
			// private groups sort in front of (0020,9113) only by luck: keep the order
			item := d.Nodes[i].Items[0]
			d.Nodes[i].Items[0] = append(append(item[:2:2], n...), item[2:]...)
		}
	}
	return d
}

func TestInspect(t *testing.T) {
	us := func(v byte) dcm.Node { return dcm.Node{VR: dcm.US, Value: []byte{v, 0}} }
	for _, c := range []struct {
		name string
		d    *dcmtest.DataSet
		form dcmtest.Form
		want derive.Reason
	}{
		{"MR", mr(), dcmtest.Form{}, ""},
		{"implicit", mr(), dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian}, ""},
		{"constant image", mr().Pixels(make([]uint16, 1024)), dcmtest.Form{}, ""},
		{"signed", mr().US(dcm.PixelRepresentation, 1), dcmtest.Form{}, ""},
		{"8 bit", mr().US(dcm.BitsAllocated, 8).US(dcm.BitsStored, 8).US(dcm.HighBit, 7).Pixels(make([]uint16, 512)), dcmtest.Form{}, ""},
		{"secondary", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\SECONDARY\M_SE\M\SE`), dcmtest.Form{}, ""},
		{"in phase is no phase", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\IN_PHASE`), dcmtest.Form{}, ""},
		{"Siemens", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\NORM\DIS2D\FM3_2\FIL`), dcmtest.Form{}, ""},
		{"CR", cr(`ORIGINAL\PRIMARY`), dcmtest.Form{}, ""},
		{"CR, processed", cr(`DERIVED\PRIMARY`), dcmtest.Form{}, ""},
		{"CR, processed, empty values", cr(`DERIVED\PRIMARY\POST_PROCESSED\\\100000`).Text(dcm.DerivationDescription, dcm.ST, ""), dcmtest.Form{}, ""},
		{"DX, processed", mr().Text(dcm.Modality, dcm.CS, "DX").Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.1.1").
			Text(dcm.ImageType, dcm.CS, `DERIVED\PRIMARY\`), dcmtest.Form{}, ""},
		{"DX", mr().Text(dcm.Modality, dcm.CS, "DX").Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.1.1"), dcmtest.Form{}, ""},
		{"DX processing", mr().Text(dcm.Modality, dcm.CS, "DX").Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.1.1.1"), dcmtest.Form{}, ""},
		{"enhanced", enhanced(magnitude, magnitude), dcmtest.Form{}, ""},
		{"enhanced, undefined lengths", enhanced(magnitude, magnitude), dcmtest.Form{Undefined: true}, ""},
		{"enhanced, implicit", enhanced(magnitude, magnitude), dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian}, ""},

		{"damaged", mr().Set(dcm.Node{Tag: 0x7FE10010, VR: 'Z'<<8 | 'Z'}), dcmtest.Form{}, derive.Unparseable},
		{"no header", mr(), dcmtest.Form{NoHeader: true}, derive.Unparseable},
		{"disorder", &dcmtest.DataSet{Nodes: append(mr().Nodes, dcm.Text(dcm.Modality, dcm.CS, "MR"))}, dcmtest.Form{}, derive.Unparseable},
		{"few pixels", mr().Pixels(make([]uint16, 1023)), dcmtest.Form{}, derive.Truncated},
		{"deflated", mr(), dcmtest.Form{TransferSyntaxUID: dcm.DeflatedExplicitVRLittleEndian}, derive.Deflated},
		{"report", mr().Remove(dcm.PixelData), dcmtest.Form{}, derive.NotAnImage},
		{"secondary capture", mr().Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.7"), dcmtest.Form{}, derive.Capture},
		{"multi-frame capture", mr().Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.7.2"), dcmtest.Form{}, derive.Capture},
		{"screen save", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\SCREEN SAVE`), dcmtest.Form{}, derive.Capture},
		{"CT", mr().Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.2"), dcmtest.Form{}, derive.WrongModality},
		{"MR class, CT modality", mr().Text(dcm.Modality, dcm.CS, "CT"), dcmtest.Form{}, derive.WrongModality},
		{"private class", mr().Text(dcm.SOPClassUID, dcm.UI, "1.3.46.670589.11.0.0.12.1"), dcmtest.Form{}, derive.WrongModality},

		{"our mark", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\DENOISED`), dcmtest.Form{}, derive.AlreadyDenoised},
		{"our equipment", mr().Set(dcm.Sequence(dcm.ContributingEquipmentSequence, []dcm.Node{dcm.Text(dcm.ManufacturerModelName, dcm.LO, "Denoised")})), dcmtest.Form{}, derive.AlreadyDenoised},
		{"our equipment, UN", mr().Set(dcm.Sequence(dcm.ContributingEquipmentSequence, []dcm.Node{dcm.Text(dcm.Manufacturer, dcm.LO, "denoised")})), dcmtest.Form{Unknown: true}, derive.AlreadyDenoised},
		{"other equipment", mr().Set(dcm.Sequence(dcm.ContributingEquipmentSequence, []dcm.Node{dcm.Text(dcm.Manufacturer, dcm.LO, "Router Inc")})), dcmtest.Form{}, ""},
		{"our codes", mr().Set(dcm.Sequence(dcm.DerivationCodeSequence, []dcm.Node{dcm.Text(dcm.CodingSchemeDesignator, dcm.SH, "99DENOISED")})), dcmtest.Form{}, derive.AlreadyDenoised},

		{"Siemens image type", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\ND\DRG`), dcmtest.Form{}, derive.VendorDenoised},
		{"Siemens private", private(mr(), 0x21, "SIEMENS MR SDI 02", dcm.Text(0x75, dcm.CS, `ORIGINAL\PRIMARY\M\DRB`)), dcmtest.Form{}, derive.VendorDenoised},
		{"Siemens private, implicit", private(mr(), 0x21, "SIEMENS MR SDI 02", dcm.Text(0x75, dcm.CS, `ORIGINAL\PRIMARY\M\DRS`)), dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian}, derive.VendorDenoised},
		{"Siemens private, other creator", private(mr(), 0x21, "ACME", dcm.Text(0x75, dcm.CS, `M\DRB`)), dcmtest.Form{}, ""},
		{"Siemens XA sequence", inFirstFrame(enhanced(magnitude), dcm.Text(0x00210011, dcm.LO, "SIEMENS MR SDI 02"),
			dcm.Sequence(0x002111FE, []dcm.Node{dcm.Text(0x00210011, dcm.LO, "SIEMENS MR SDI 02"), dcm.Text(0x00211175, dcm.CS, `M\DRB`)})),
			dcmtest.Form{Undefined: true}, derive.VendorDenoised},
		{"Siemens XA sequence, implicit", inFirstFrame(enhanced(magnitude), dcm.Text(0x00210011, dcm.LO, "SIEMENS MR SDI 02"),
			dcm.Sequence(0x002111FE, []dcm.Node{dcm.Text(0x00210011, dcm.LO, "SIEMENS MR SDI 02"), dcm.Text(0x00211175, dcm.CS, `M\DRB`)})),
			dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian}, derive.VendorDenoised},
		{"GE", private(mr(), 0x43, "GEMS_PARM_01", dcm.Text(0xCA, dcm.LO, `0.75\High`)), dcmtest.Form{}, derive.VendorDenoised},
		{"GE off", private(mr(), 0x43, "GEMS_PARM_01", dcm.Text(0xCA, dcm.LO, `0.00\Off`)), dcmtest.Form{}, ""},
		{"GE empty", private(mr(), 0x43, "GEMS_PARM_01", dcm.Text(0xCA, dcm.LO, ``)), dcmtest.Form{}, ""},
		{"Philips", private(mr(), 0x2005, "Philips MR Imaging DD 002", dcm.Text(0x10, dcm.LO, "CS_SENSE_AI")), dcmtest.Form{}, derive.VendorDenoised},
		{"Philips, another block", private(mr(), 0x2005, "Philips MR Imaging DD 001", dcm.Text(0x10, dcm.DS, "1520")), dcmtest.Form{}, ""},

		{"RGB", mr().US(dcm.SamplesPerPixel, 3).Text(dcm.PhotometricInterpretation, dcm.CS, "RGB"), dcmtest.Form{}, derive.Colour},
		{"palette", mr().Text(dcm.PhotometricInterpretation, dcm.CS, "PALETTE COLOR"), dcmtest.Form{}, derive.Colour},
		{"supplemental palette", mr().Set(dcm.Node{Tag: dcm.RedPaletteColorLookupTableDescriptor, VR: dcm.US, Value: make([]byte, 6)}), dcmtest.Form{}, derive.Colour},
		{"enhanced colour", mr().Text(dcm.SOPClassUID, dcm.UI, "1.2.840.10008.5.1.4.1.1.4.3"), dcmtest.Form{}, derive.Colour},
		{"P", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\P\ND`), dcmtest.Form{}, derive.Phase},
		{"PHASE MAP", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\PHASE MAP\P\FFE`), dcmtest.Form{}, derive.Phase},
		{"Philips R_IR", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\R_IR\R\IR`), dcmtest.Form{}, derive.Phase},
		{"IMAGINARY", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\OTHER\IMAGINARY`), dcmtest.Form{}, derive.Phase},
		{"VELOCITY", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\VELOCITY MAP\P`), dcmtest.Form{}, derive.Phase},
		{"derived phase says phase", mr().Text(dcm.ImageType, dcm.CS, `DERIVED\PRIMARY\P`), dcmtest.Form{}, derive.Phase},
		{"complex component", mr().Text(dcm.ComplexImageComponent, dcm.CS, "REAL"), dcmtest.Form{}, derive.Phase},
		{"GE phase", private(mr(), 0x43, "GEMS_PARM_01", dcm.Node{Tag: 0x2F, VR: dcm.SS, Value: []byte{1, 0}}), dcmtest.Form{}, derive.Phase},
		{"GE imaginary, VR lost", private(mr(), 0x43, "GEMS_PARM_01", dcm.Node{Tag: 0x2F, VR: dcm.UN, Value: []byte{3, 0}}), dcmtest.Form{}, derive.Phase},
		{"GE magnitude", private(mr(), 0x43, "GEMS_PARM_01", dcm.Node{Tag: 0x2F, VR: dcm.SS, Value: []byte{0, 0}}), dcmtest.Form{}, ""},
		{"Philips private phase", private(mr(), 0x2005, "Philips MR Imaging DD 001", dcm.Text(0x11, dcm.CS, "P")), dcmtest.Form{}, derive.Phase},
		{"Philips phase contrast", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\PHASE CONTRAST M\P\PCA`), dcmtest.Form{}, derive.Phase},
		{"Philips Dixon", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\W\W\DERIVED`), dcmtest.Form{}, derive.Derived},
		{"Philips fat fraction", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\FF\FF\DERIVED`), dcmtest.Form{}, derive.Map},
		{"Philips map, cut", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\T2_STAR_UNSPECI\T2_STAR\UNSPECIFIED`), dcmtest.Form{}, derive.Map},
		{"Philips magnitude", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M_UNSPECIFIED\M\UNSPECIFIED`), dcmtest.Form{}, ""},
		{"burned in", mr().Text(dcm.BurnedInAnnotation, dcm.CS, "YES"), dcmtest.Form{}, derive.Capture},
		{"not burned in", mr().Text(dcm.BurnedInAnnotation, dcm.CS, "NO"), dcmtest.Form{}, ""},
		{"was compressed with loss", mr().Text(dcm.LossyImageCompression, dcm.CS, "01"), dcmtest.Form{}, derive.Compressed},
		{"never compressed", mr().Text(dcm.LossyImageCompression, dcm.CS, "00"), dcmtest.Form{}, ""},
		{"signed quantity", mr().Text(dcm.RescaleIntercept, dcm.DS, "-4096"), dcmtest.Form{}, derive.Phase},
		{"radians", mr().Text(dcm.RescaleType, dcm.LO, "mrad"), dcmtest.Form{}, derive.Phase},
		{"hertz", mr().Text(dcm.RescaleType, dcm.LO, "Hz"), dcmtest.Form{}, derive.Map},
		{"normalized", mr().Text(dcm.RescaleType, dcm.LO, "normalized").Text(dcm.RescaleSlope, dcm.DS, "2.36"), dcmtest.Form{}, ""},
		{"ADC", mr().Text(dcm.ImageType, dcm.CS, `DERIVED\PRIMARY\DIFFUSION\ADC\ND`), dcmtest.Form{}, derive.Map},
		{"TRACEW", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\DIFFUSION\TRACEW`), dcmtest.Form{}, derive.Map},
		{"T1 map", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\T1 MAP`), dcmtest.Form{}, derive.Map},
		{"unknown map", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\R2_PRIME_MAP`), dcmtest.Form{}, derive.Map},
		{"RCBF", mr().Text(dcm.ImageType, dcm.CS, `DERIVED\PRIMARY\PERFUSION\RCBF`), dcmtest.Form{}, derive.Map},
		{"MOSAIC", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\ND\MOSAIC`), dcmtest.Form{}, derive.Mosaic},
		{"VFRAME", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\VFRAME`), dcmtest.Form{}, derive.Mosaic},
		{"mosaic by its count", private(mr(), 0x19, "SIEMENS MR HEADER", dcm.Node{Tag: 0x0A, VR: dcm.US, Value: us(36).Value}), dcmtest.Form{}, derive.Mosaic},
		{"MPR", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\MPR`), dcmtest.Form{}, derive.Projection},
		{"MIP", mr().Text(dcm.ImageType, dcm.CS, `DERIVED\PRIMARY\PROJECTION IMAGE`), dcmtest.Form{}, derive.Projection},
		{"calculated projection", mr().Text(dcm.VolumeBasedCalculationTechnique, dcm.CS, "MAX_IP"), dcmtest.Form{}, derive.Projection},
		{"derived", mr().Text(dcm.ImageType, dcm.CS, `DERIVED\SECONDARY\OTHER`), dcmtest.Form{}, derive.Derived},
		{"MR, derived and primary", mr().Text(dcm.ImageType, dcm.CS, `DERIVED\PRIMARY`), dcmtest.Form{}, derive.Derived},
		{"CR, secondary", cr(`DERIVED\SECONDARY`), dcmtest.Form{}, derive.Derived},
		{"CR, one value", cr(`DERIVED`), dcmtest.Form{}, derive.Derived},
		{"CR, another kind of image", cr(`DERIVED\PRIMARY\BONE_SUPPRESSED`), dcmtest.Form{}, derive.Derived},
		{"CR, stitched", cr(`DERIVED\PRIMARY\STITCHED`), dcmtest.Form{}, derive.Projection},
		{"CR, derivation on record", cr(`DERIVED\PRIMARY`).Text(dcm.DerivationDescription, dcm.ST, "lossy 10:1"), dcmtest.Form{}, derive.Derived},
		{"CR, source on record", cr(`DERIVED\PRIMARY`).Set(dcm.Sequence(dcm.SourceImageSequence, []dcm.Node{
			dcm.Text(dcm.ReferencedSOPInstanceUID, dcm.UI, "1.2.3")})), dcmtest.Form{}, derive.Derived},
		{"CR, derivation code on record", cr(`DERIVED\PRIMARY`).Set(dcm.Sequence(dcm.DerivationCodeSequence, []dcm.Node{
			dcm.Text(dcm.CodeValue, dcm.SH, "113062")})), dcmtest.Form{}, derive.Derived},
		{"no image type", mr().Remove(dcm.ImageType), dcmtest.Form{}, derive.Inconsistent},

		{"enhanced phase frame", enhanced(magnitude, `ORIGINAL\PRIMARY\P\NONE`), dcmtest.Form{}, derive.Phase},
		{"enhanced mixed", enhanced(magnitude).Text(dcm.ComplexImageComponent, dcm.CS, "MIXED"), dcmtest.Form{}, derive.Phase},
		{"enhanced derived frame", enhanced(magnitude, `DERIVED\PRIMARY\M\NONE`), dcmtest.Form{}, derive.Derived},
		{"enhanced map", enhanced(`ORIGINAL\PRIMARY\T2\STD_DEVIATION`), dcmtest.Form{}, derive.Map},
		{"enhanced colour frame", inFirstFrame(enhanced(magnitude), dcm.Sequence(0x00209999, []dcm.Node{dcm.Text(dcm.PixelPresentation, dcm.CS, "COLOR")})), dcmtest.Form{}, derive.Colour},
		{"enhanced, groups missing", enhanced(magnitude).Remove(dcm.PerFrameFunctionalGroupsSequence), dcmtest.Form{}, derive.Inconsistent},
		{"enhanced, groups UN", enhanced(magnitude), dcmtest.Form{Unknown: true}, derive.Inconsistent},
		{"enhanced, frames disagree", enhanced(magnitude, magnitude).Text(dcm.NumberOfFrames, dcm.IS, "3"), dcmtest.Form{}, derive.Inconsistent},
		{"enhanced, no frames", enhanced(magnitude).Remove(dcm.NumberOfFrames), dcmtest.Form{}, derive.Inconsistent},
		{"negative frames", enhanced(magnitude).Text(dcm.NumberOfFrames, dcm.IS, "-1"), dcmtest.Form{}, derive.Inconsistent},

		{"enhanced, groups in disorder", inFirstFrame(enhanced(magnitude), dcm.Text(0x00080001, dcm.SH, "x")), dcmtest.Form{}, derive.Unparseable},
		{"enhanced, group length in a group", inFirstFrame(enhanced(magnitude), dcm.Node{Tag: 0x00190000, VR: dcm.UL, Value: make([]byte, 4)}), dcmtest.Form{}, derive.Unparseable},
		{"equipment is no sequence", mr().Set(dcm.Node{Tag: dcm.ContributingEquipmentSequence, VR: dcm.UN, Value: []byte("abcdefgh")}), dcmtest.Form{}, derive.Inconsistent},

		{"compressed", mr(), dcmtest.Form{TransferSyntaxUID: "1.2.840.10008.1.2.4.90", Fragments: [][]byte{{}, {1, 2}}}, derive.Compressed},
		{"unknown syntax", mr(), dcmtest.Form{TransferSyntaxUID: "1.2.840.113619.5.9"}, derive.Compressed},
		{"big endian", mr(), dcmtest.Form{TransferSyntaxUID: dcm.ExplicitVRBigEndian}, derive.BigEndian},
		{"32 bit", mr().US(dcm.BitsAllocated, 32), dcmtest.Form{}, derive.BitDepth},
		{"1 bit", mr().US(dcm.BitsAllocated, 1), dcmtest.Form{}, derive.BitDepth},
		{"float", mr().Remove(dcm.PixelData).Set(dcm.Node{Tag: dcm.FloatPixelData, VR: dcm.OF, Value: make([]byte, 4096)}), dcmtest.Form{}, derive.BitDepth},
		{"high bit", mr().US(dcm.HighBit, 15), dcmtest.Form{}, derive.Inconsistent},
		{"17 bits of 16", mr().US(dcm.BitsStored, 17).US(dcm.HighBit, 16), dcmtest.Form{}, derive.Inconsistent},
		{"more pixels", mr().Pixels(make([]uint16, 1025)), dcmtest.Form{}, derive.Inconsistent},
		{"two rows", mr().Set(dcm.Node{Tag: dcm.Rows, VR: dcm.US, Value: make([]byte, 4)}), dcmtest.Form{}, derive.Inconsistent},
		{"long rows", mr().Set(dcm.Node{Tag: dcm.Rows, VR: dcm.UL, Value: []byte{32, 0, 0, 0}}), dcmtest.Form{}, derive.Inconsistent},
		{"no study", mr().Remove(dcm.StudyInstanceUID), dcmtest.Form{}, derive.Inconsistent},
		{"path as UID", mr().Text(dcm.SeriesInstanceUID, dcm.UI, "../../x"), dcmtest.Form{}, derive.Inconsistent},
		{"small", dcmtest.MR(15, 64, 0), dcmtest.Form{}, derive.TooSmall},
		{"large", mr().US(dcm.Rows, 65535).US(dcm.Columns, 65535), dcmtest.Form{}, derive.TooLarge},
		{"overlay in the cells", mr().US(0x60000100, 16).US(0x60000102, 12), dcmtest.Form{}, derive.Overlay},
		{"overlay of its own", mr().US(0x60000100, 1).US(0x60000102, 0), dcmtest.Form{}, ""},
		{"overlay of its own, implicit", mr().US(0x60000100, 1).US(0x60000102, 0), dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian}, ""},
		{"overlay in the cells, implicit", mr().US(0x60020100, 16).US(0x60020102, 12), dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian}, derive.Overlay},
		{"multi-frame MR", mr().Text(dcm.NumberOfFrames, dcm.IS, "2").Pixels(make([]uint16, 2048)), dcmtest.Form{}, derive.MultiFrame},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := c.d.File(c.form)
			o, _ := scanBytes(file)
			v := derive.Inspect(o)
			if v.Reason != c.want {
				t.Errorf("verdict %q, want %q", v, c.want)
			}
			if v.OK() != (c.want == "") || v.OK() && derive.Frames(o) == 0 || !v.OK() && derive.Frames(o) != 0 {
				t.Errorf("OK %v, frames %d", v.OK(), derive.Frames(o))
			}
			if _, err := derive.ReadFrame(o, 0); (err == nil) != v.OK() {
				t.Errorf("ReadFrame: %v", err)
			}
		})
	}
}
