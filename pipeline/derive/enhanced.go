package derive

import (
	"strings"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// enhanced changes what Enhanced MR objects have (PS3.3 A.36.2, C.7.6.16, C.8.13):
// the derivation is described per frame, not at the top.
func (s *splice) enhanced() {
	// Exactly four values, so no mark of ours; all frames are derived now, so
	// value 1 is not MIXED (PS3.3 C.8.16.1).
	s.text(dcm.ImageType, dcm.CS, derivedType(s.o.Strings(dcm.ImageType)))
	s.text(dcm.ContentQualification, dcm.CS, "RESEARCH") // PS3.3 C.8.13.2.1.1: no cleared product
	s.evidence()

	for item := range s.o.Find(dcm.SharedFunctionalGroupsSequence).Children() {
		s.frameType(item)
		// a group is either shared or per frame, never both (PS3.3 C.7.6.16.1.1)
		s.ed.Remove(item, dcm.DerivationImageSequence)
	}
	frame := 0
	for item := range s.o.Find(dcm.PerFrameFunctionalGroupsSequence).Children() {
		frame++
		s.frameType(item)
		// Derivation Image macro, PS3.3 C.7.6.16.2.6
		s.ed.Set(item, dcm.Sequence(dcm.DerivationImageSequence, []dcm.Node{
			dcm.Text(dcm.DerivationDescription, dcm.ST, s.derivationDescription()),
			dcm.Sequence(dcm.SourceImageSequence, s.sourceImage(frame)),
			dcm.Sequence(dcm.DerivationCodeSequence, derivationCodes()...),
		}))
	}
}

// frameType makes value 1 of FrameType DERIVED in the functional groups item.
func (s *splice) frameType(item dcm.Element) {
	for t := range item.Child(dcm.MRImageFrameTypeSequence).Children() {
		s.ed.Set(t, dcm.Text(dcm.FrameType, dcm.CS, derivedType(t.Child(dcm.FrameType).Strings())))
	}
}

// derivedType sets value 1 of ImageType or FrameType and completes it to the
// four values that both shall have.
func derivedType(v []string) string {
	for i := len(v); i < 4; i++ {
		v = append(v, []string{"", "PRIMARY", "OTHER", "NONE"}[i])
	}
	v[0] = "DERIVED"
	return strings.Join(v, `\`)
}

// evidence lists the source among the instances that SourceImageSequence refers
// to (PS3.3 C.8.13.2, hierarchical SOP instance reference macro). The frames
// refer to nothing else, so it replaces what the source had.
func (s *splice) evidence() {
	s.ed.Set(dcm.Element{}, dcm.Sequence(dcm.SourceImageEvidenceSequence, []dcm.Node{
		dcm.Sequence(dcm.ReferencedSeriesSequence, []dcm.Node{
			dcm.Sequence(dcm.ReferencedSOPSequence, []dcm.Node{
				dcm.Text(dcm.ReferencedSOPClassUID, dcm.UI, s.o.String(dcm.SOPClassUID)),
				dcm.Text(dcm.ReferencedSOPInstanceUID, dcm.UI, s.o.String(dcm.SOPInstanceUID)),
			}),
			dcm.Text(dcm.SeriesInstanceUID, dcm.UI, s.o.String(dcm.SeriesInstanceUID)),
		}),
		dcm.Text(dcm.StudyInstanceUID, dcm.UI, s.o.String(dcm.StudyInstanceUID)),
	}))
}
