package dcm

import "fmt"

// Tag is a data element tag: group<<16 | element (PS3.5 7.1).
type Tag uint32

// Group is the upper half of t.
func (t Tag) Group() uint16 { return uint16(t >> 16) }

// Element is the lower half of t.
func (t Tag) Element() uint16 { return uint16(t) }

// Private reports whether t belongs to a private group (PS3.5 7.8).
func (t Tag) Private() bool { return t.Group()&1 == 1 }

// String formats t as "(gggg,eeee)".
func (t Tag) String() string { return fmt.Sprintf("(%04X,%04X)", t.Group(), t.Element()) }

// Tags that the daemon reads or writes; the names are the keywords of PS3.6.
const (
	FileMetaInformationGroupLength Tag = 0x00020000
	FileMetaInformationVersion     Tag = 0x00020001
	MediaStorageSOPClassUID        Tag = 0x00020002
	MediaStorageSOPInstanceUID     Tag = 0x00020003
	TransferSyntaxUID              Tag = 0x00020010
	ImplementationClassUIDTag      Tag = 0x00020012
	ImplementationVersionNameTag   Tag = 0x00020013
	SourceApplicationEntityTitle   Tag = 0x00020016

	SpecificCharacterSet                 Tag = 0x00080005
	ImageType                            Tag = 0x00080008
	InstanceCreationDate                 Tag = 0x00080012
	InstanceCreationTime                 Tag = 0x00080013
	InstanceCreatorUID                   Tag = 0x00080014
	SOPClassUID                          Tag = 0x00080016
	SOPInstanceUID                       Tag = 0x00080018
	StudyDate                            Tag = 0x00080020
	SeriesDate                           Tag = 0x00080021
	AcquisitionDate                      Tag = 0x00080022
	ContentDate                          Tag = 0x00080023
	AcquisitionDateTime                  Tag = 0x0008002A
	StudyTime                            Tag = 0x00080030
	SeriesTime                           Tag = 0x00080031
	AcquisitionTime                      Tag = 0x00080032
	ContentTime                          Tag = 0x00080033
	AccessionNumber                      Tag = 0x00080050
	Modality                             Tag = 0x00080060
	PresentationIntentType               Tag = 0x00080068
	Manufacturer                         Tag = 0x00080070
	InstitutionName                      Tag = 0x00080080
	CodeValue                            Tag = 0x00080100
	CodingSchemeDesignator               Tag = 0x00080102
	CodeMeaning                          Tag = 0x00080104
	TimezoneOffsetFromUTC                Tag = 0x00080201
	StationName                          Tag = 0x00081010
	StudyDescription                     Tag = 0x00081030
	SeriesDescription                    Tag = 0x0008103E
	InstitutionalDepartmentName          Tag = 0x00081040
	ManufacturerModelName                Tag = 0x00081090
	ReferencedSeriesSequence             Tag = 0x00081115
	ReferencedImageSequence              Tag = 0x00081140
	ReferencedInstanceSequence           Tag = 0x0008114A
	ReferencedSOPClassUID                Tag = 0x00081150
	ReferencedSOPInstanceUID             Tag = 0x00081155
	ReferencedFrameNumber                Tag = 0x00081160
	ReferencedSOPSequence                Tag = 0x00081199
	DerivationDescription                Tag = 0x00082111
	SourceImageSequence                  Tag = 0x00082112
	FrameType                            Tag = 0x00089007
	DerivationImageSequence              Tag = 0x00089124
	SourceImageEvidenceSequence          Tag = 0x00089154
	PixelPresentation                    Tag = 0x00089205
	VolumeBasedCalculationTechnique      Tag = 0x00089207
	ComplexImageComponent                Tag = 0x00089208
	AcquisitionContrast                  Tag = 0x00089209
	DerivationCodeSequence               Tag = 0x00089215
	PatientName                          Tag = 0x00100010
	PatientID                            Tag = 0x00100020
	PatientBirthDate                     Tag = 0x00100030
	PatientSex                           Tag = 0x00100040
	PatientAge                           Tag = 0x00101010
	PatientWeight                        Tag = 0x00101030
	ContrastBolusAgent                   Tag = 0x00180010
	BodyPartExamined                     Tag = 0x00180015
	ScanningSequence                     Tag = 0x00180020
	SequenceVariant                      Tag = 0x00180021
	ScanOptions                          Tag = 0x00180022
	MRAcquisitionType                    Tag = 0x00180023
	SequenceName                         Tag = 0x00180024
	SliceThickness                       Tag = 0x00180050
	KVP                                  Tag = 0x00180060
	RepetitionTime                       Tag = 0x00180080
	EchoTime                             Tag = 0x00180081
	InversionTime                        Tag = 0x00180082
	NumberOfAverages                     Tag = 0x00180083
	ImagingFrequency                     Tag = 0x00180084
	ImagedNucleus                        Tag = 0x00180085
	EchoNumbers                          Tag = 0x00180086
	MagneticFieldStrength                Tag = 0x00180087
	SpacingBetweenSlices                 Tag = 0x00180088
	NumberOfPhaseEncodingSteps           Tag = 0x00180089
	EchoTrainLength                      Tag = 0x00180091
	PercentSampling                      Tag = 0x00180093
	PercentPhaseFieldOfView              Tag = 0x00180094
	PixelBandwidth                       Tag = 0x00180095
	DeviceSerialNumber                   Tag = 0x00181000
	SoftwareVersions                     Tag = 0x00181020
	ProtocolName                         Tag = 0x00181030
	ReceiveCoilName                      Tag = 0x00181250
	TransmitCoilName                     Tag = 0x00181251
	AcquisitionMatrix                    Tag = 0x00181310
	InPlanePhaseEncodingDirection        Tag = 0x00181312
	FlipAngle                            Tag = 0x00181314
	PatientPosition                      Tag = 0x00185100
	ViewPosition                         Tag = 0x00185101
	ContentQualification                 Tag = 0x00189004
	PulseSequenceName                    Tag = 0x00189005
	ConcatenationUID                     Tag = 0x00209161
	MRImageFrameTypeSequence             Tag = 0x00189226
	DiffusionBValue                      Tag = 0x00189087
	ContributingEquipmentSequence        Tag = 0x0018A001
	ContributionDateTime                 Tag = 0x0018A002
	ContributionDescription              Tag = 0x0018A003
	StudyInstanceUID                     Tag = 0x0020000D
	SeriesInstanceUID                    Tag = 0x0020000E
	StudyID                              Tag = 0x00200010
	SeriesNumber                         Tag = 0x00200011
	AcquisitionNumber                    Tag = 0x00200012
	InstanceNumber                       Tag = 0x00200013
	ImagePositionPatient                 Tag = 0x00200032
	ImageOrientationPatient              Tag = 0x00200037
	FrameOfReferenceUID                  Tag = 0x00200052
	ImageLaterality                      Tag = 0x00200062
	TemporalPositionIdentifier           Tag = 0x00200100
	SOPInstanceUIDOfConcatenationSource  Tag = 0x00200242
	NumberOfTemporalPositions            Tag = 0x00200105
	ImagesInAcquisition                  Tag = 0x00201002
	SliceLocation                        Tag = 0x00201041
	ImageComments                        Tag = 0x00204000
	SamplesPerPixel                      Tag = 0x00280002
	PhotometricInterpretation            Tag = 0x00280004
	NumberOfFrames                       Tag = 0x00280008
	Rows                                 Tag = 0x00280010
	Columns                              Tag = 0x00280011
	PixelSpacing                         Tag = 0x00280030
	BitsAllocated                        Tag = 0x00280100
	BitsStored                           Tag = 0x00280101
	HighBit                              Tag = 0x00280102
	PixelRepresentation                  Tag = 0x00280103
	SmallestImagePixelValue              Tag = 0x00280106
	LargestImagePixelValue               Tag = 0x00280107
	SmallestPixelValueInSeries           Tag = 0x00280108
	LargestPixelValueInSeries            Tag = 0x00280109
	SmallestImagePixelValueInPlane       Tag = 0x00280110
	LargestImagePixelValueInPlane        Tag = 0x00280111
	PixelPaddingValue                    Tag = 0x00280120
	PixelPaddingRangeLimit               Tag = 0x00280121
	SpatialLocationsPreserved            Tag = 0x0028135A
	BurnedInAnnotation                   Tag = 0x00280301
	WindowCenter                         Tag = 0x00281050
	WindowWidth                          Tag = 0x00281051
	RescaleIntercept                     Tag = 0x00281052
	RescaleSlope                         Tag = 0x00281053
	RescaleType                          Tag = 0x00281054
	RedPaletteColorLookupTableDescriptor Tag = 0x00281101
	LossyImageCompression                Tag = 0x00282110
	PixelValueTransformationSequence     Tag = 0x00289145
	RequestedProcedureDescription        Tag = 0x00321060
	PerformedProcedureStepDescription    Tag = 0x00400254
	MeasurementUnitsCodeSequence         Tag = 0x004008EA
	PurposeOfReferenceCodeSequence       Tag = 0x0040A170
	IconImageSequence                    Tag = 0x00880200
	MACParametersSequence                Tag = 0x4FFE0001
	SharedFunctionalGroupsSequence       Tag = 0x52009229
	PerFrameFunctionalGroupsSequence     Tag = 0x52009230
	FloatPixelData                       Tag = 0x7FE00008
	DoubleFloatPixelData                 Tag = 0x7FE00009
	PixelData                            Tag = 0x7FE00010
	DigitalSignaturesSequence            Tag = 0xFFFAFFFA
	DataSetTrailingPadding               Tag = 0xFFFCFFFC

	// Item, ItemDelimitationItem and SequenceDelimitationItem structure
	// sequences (PS3.5 7.5).
	Item                     Tag = 0xFFFEE000
	ItemDelimitationItem     Tag = 0xFFFEE00D
	SequenceDelimitationItem Tag = 0xFFFEE0DD
)

// Transfer syntaxes that the scanner treats specially (PS3.5 annex A). Every
// other one is explicit VR little endian with encapsulated pixel data.
const (
	ImplicitVRLittleEndian         = "1.2.840.10008.1.2"
	ExplicitVRLittleEndian         = "1.2.840.10008.1.2.1"
	DeflatedExplicitVRLittleEndian = "1.2.840.10008.1.2.1.99"
	ExplicitVRBigEndian            = "1.2.840.10008.1.2.2"
)

// VR is a value representation, its two characters as a big-endian number
// (PS3.5 6.2). Zero means that the element was encoded without one and is not
// in this package's dictionary.
type VR uint16

// String is the two characters of v, or "--".
func (v VR) String() string {
	if v == 0 {
		return "--"
	}
	return string([]byte{byte(v >> 8), byte(v)})
}

// The value representations of PS3.5 table 6.2-1.
const (
	AE VR = 'A'<<8 | 'E'
	AS VR = 'A'<<8 | 'S'
	AT VR = 'A'<<8 | 'T'
	CS VR = 'C'<<8 | 'S'
	DA VR = 'D'<<8 | 'A'
	DS VR = 'D'<<8 | 'S'
	DT VR = 'D'<<8 | 'T'
	FD VR = 'F'<<8 | 'D'
	FL VR = 'F'<<8 | 'L'
	IS VR = 'I'<<8 | 'S'
	LO VR = 'L'<<8 | 'O'
	LT VR = 'L'<<8 | 'T'
	OB VR = 'O'<<8 | 'B'
	OD VR = 'O'<<8 | 'D'
	OF VR = 'O'<<8 | 'F'
	OL VR = 'O'<<8 | 'L'
	OV VR = 'O'<<8 | 'V'
	OW VR = 'O'<<8 | 'W'
	PN VR = 'P'<<8 | 'N'
	SH VR = 'S'<<8 | 'H'
	SL VR = 'S'<<8 | 'L'
	SQ VR = 'S'<<8 | 'Q'
	SS VR = 'S'<<8 | 'S'
	ST VR = 'S'<<8 | 'T'
	SV VR = 'S'<<8 | 'V'
	TM VR = 'T'<<8 | 'M'
	UC VR = 'U'<<8 | 'C'
	UI VR = 'U'<<8 | 'I'
	UL VR = 'U'<<8 | 'L'
	UN VR = 'U'<<8 | 'N'
	UR VR = 'U'<<8 | 'R'
	US VR = 'U'<<8 | 'S'
	UT VR = 'U'<<8 | 'T'
	UV VR = 'U'<<8 | 'V'
)

// Form says whether v is one of PS3.5 table 6.2-1, and whether the length behind it
// has 32 bits, after two reserved bytes, instead of 16 (PS3.5 7.1.2).
func (v VR) Form() (known, long bool) {
	switch v {
	case AE, AS, AT, CS, DA, DS, DT, FD, FL, IS, LO, LT, PN, SH, SL, SS, ST, TM, UI, UL, US:
		return true, false
	case OB, OD, OF, OL, OV, OW, SQ, SV, UC, UN, UR, UT, UV:
		return true, true
	}
	return false, false
}

// usOrSS stands in the dictionary for the elements whose VR follows
// PixelRepresentation.
const usOrSS VR = 'x'<<8 | 's'

// dictionary gives the VR of elements that the daemon interprets when the
// transfer syntax is implicit. It is no copy of PS3.6: an element that is not
// here is copied, never read.
var dictionary = func() map[Tag]VR {
	d := map[Tag]VR{}
	add := func(v VR, tags ...Tag) {
		for _, t := range tags {
			d[t] = v
		}
	}
	add(AE, SourceApplicationEntityTitle)
	add(AS, PatientAge)
	add(CS, SpecificCharacterSet, ImageType, Modality, PresentationIntentType, FrameType, PixelPresentation,
		VolumeBasedCalculationTechnique, ComplexImageComponent, AcquisitionContrast, PatientSex, BodyPartExamined,
		ScanningSequence, SequenceVariant, ScanOptions, MRAcquisitionType, InPlanePhaseEncodingDirection,
		PatientPosition, ViewPosition, ContentQualification, ImageLaterality, PhotometricInterpretation,
		SpatialLocationsPreserved, BurnedInAnnotation, LossyImageCompression)
	add(DA, InstanceCreationDate, StudyDate, SeriesDate, AcquisitionDate, ContentDate, PatientBirthDate)
	add(TM, InstanceCreationTime, StudyTime, SeriesTime, AcquisitionTime, ContentTime)
	add(DT, AcquisitionDateTime, ContributionDateTime)
	add(UI, MediaStorageSOPClassUID, MediaStorageSOPInstanceUID, TransferSyntaxUID, InstanceCreatorUID, SOPClassUID,
		SOPInstanceUID, ReferencedSOPClassUID, ReferencedSOPInstanceUID, StudyInstanceUID, SeriesInstanceUID,
		FrameOfReferenceUID, ConcatenationUID, SOPInstanceUIDOfConcatenationSource)
	add(SH, AccessionNumber, CodeValue, CodingSchemeDesignator, TimezoneOffsetFromUTC, StationName, SequenceName,
		ImagedNucleus, ReceiveCoilName, TransmitCoilName, PulseSequenceName, StudyID)
	add(LO, Manufacturer, InstitutionName, CodeMeaning, StudyDescription, SeriesDescription,
		InstitutionalDepartmentName, ManufacturerModelName, PatientID, ContrastBolusAgent, DeviceSerialNumber,
		SoftwareVersions, ProtocolName, RescaleType, RequestedProcedureDescription, PerformedProcedureStepDescription)
	add(ST, DerivationDescription, ContributionDescription)
	add(LT, ImageComments)
	add(PN, PatientName)
	add(DS, PatientWeight, SliceThickness, KVP, RepetitionTime, EchoTime, InversionTime, NumberOfAverages,
		ImagingFrequency, MagneticFieldStrength, SpacingBetweenSlices, PercentSampling, PercentPhaseFieldOfView,
		PixelBandwidth, FlipAngle, ImagePositionPatient, ImageOrientationPatient, SliceLocation, PixelSpacing,
		WindowCenter, WindowWidth, RescaleIntercept, RescaleSlope)
	add(IS, EchoNumbers, NumberOfPhaseEncodingSteps, EchoTrainLength, ReferencedFrameNumber, SeriesNumber,
		AcquisitionNumber, InstanceNumber, TemporalPositionIdentifier, NumberOfTemporalPositions, ImagesInAcquisition,
		NumberOfFrames)
	add(FD, DiffusionBValue)
	add(US, AcquisitionMatrix, SamplesPerPixel, Rows, Columns, BitsAllocated, BitsStored, HighBit, PixelRepresentation)
	add(usOrSS, SmallestImagePixelValue, LargestImagePixelValue, SmallestPixelValueInSeries,
		LargestPixelValueInSeries, SmallestImagePixelValueInPlane, LargestImagePixelValueInPlane, PixelPaddingValue,
		PixelPaddingRangeLimit, RedPaletteColorLookupTableDescriptor)
	add(OW, PixelData)
	add(SQ, ReferencedSeriesSequence, ReferencedImageSequence, ReferencedInstanceSequence, ReferencedSOPSequence, SourceImageSequence, DerivationImageSequence,
		SourceImageEvidenceSequence, DerivationCodeSequence, MRImageFrameTypeSequence, ContributingEquipmentSequence,
		PixelValueTransformationSequence, MeasurementUnitsCodeSequence,
		PurposeOfReferenceCodeSequence, IconImageSequence, MACParametersSequence, SharedFunctionalGroupsSequence,
		PerFrameFunctionalGroupsSequence, DigitalSignaturesSequence)
	return d
}()
