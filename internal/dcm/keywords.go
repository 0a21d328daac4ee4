package dcm

// keyword is a name that rules may use, with the type its value always has.
type keyword struct {
	name string
	tag  Tag
	kind byte // 's' text, 'i' integer, 'f' number
}

var keywords = []keyword{
	{"AccessionNumber", AccessionNumber, 's'},
	{"AcquisitionContrast", AcquisitionContrast, 's'},
	{"AcquisitionDate", AcquisitionDate, 's'},
	{"AcquisitionNumber", AcquisitionNumber, 'i'},
	{"AcquisitionTime", AcquisitionTime, 's'},
	{"BitsAllocated", BitsAllocated, 'i'},
	{"BitsStored", BitsStored, 'i'},
	{"BodyPartExamined", BodyPartExamined, 's'},
	{"BurnedInAnnotation", BurnedInAnnotation, 's'},
	{"Columns", Columns, 'i'},
	{"ComplexImageComponent", ComplexImageComponent, 's'},
	{"ContentDate", ContentDate, 's'},
	{"ContentQualification", ContentQualification, 's'},
	{"ContentTime", ContentTime, 's'},
	{"ContrastBolusAgent", ContrastBolusAgent, 's'},
	{"DeviceSerialNumber", DeviceSerialNumber, 's'},
	{"DiffusionBValue", DiffusionBValue, 'f'},
	{"EchoNumbers", EchoNumbers, 'i'},
	{"EchoTime", EchoTime, 'f'},
	{"EchoTrainLength", EchoTrainLength, 'i'},
	{"FlipAngle", FlipAngle, 'f'},
	{"FrameOfReferenceUID", FrameOfReferenceUID, 's'},
	{"HighBit", HighBit, 'i'},
	{"ImageComments", ImageComments, 's'},
	{"ImageLaterality", ImageLaterality, 's'},
	{"ImageOrientationPatient", ImageOrientationPatient, 's'},
	{"ImagePositionPatient", ImagePositionPatient, 's'},
	{"ImageType", ImageType, 's'},
	{"ImagedNucleus", ImagedNucleus, 's'},
	{"ImagesInAcquisition", ImagesInAcquisition, 'i'},
	{"ImagingFrequency", ImagingFrequency, 'f'},
	{"InPlanePhaseEncodingDirection", InPlanePhaseEncodingDirection, 's'},
	{"InstanceNumber", InstanceNumber, 'i'},
	{"InstitutionName", InstitutionName, 's'},
	{"InstitutionalDepartmentName", InstitutionalDepartmentName, 's'},
	{"InversionTime", InversionTime, 'f'},
	{"KVP", KVP, 'f'},
	{"LossyImageCompression", LossyImageCompression, 's'},
	{"MRAcquisitionType", MRAcquisitionType, 's'},
	{"MagneticFieldStrength", MagneticFieldStrength, 'f'},
	{"Manufacturer", Manufacturer, 's'},
	{"ManufacturerModelName", ManufacturerModelName, 's'},
	{"Modality", Modality, 's'},
	{"NumberOfAverages", NumberOfAverages, 'f'},
	{"NumberOfFrames", NumberOfFrames, 'i'},
	{"NumberOfPhaseEncodingSteps", NumberOfPhaseEncodingSteps, 'i'},
	{"NumberOfTemporalPositions", NumberOfTemporalPositions, 'i'},
	{"PatientAge", PatientAge, 's'},
	{"PatientPosition", PatientPosition, 's'},
	{"PatientSex", PatientSex, 's'},
	{"PatientWeight", PatientWeight, 'f'},
	{"PercentPhaseFieldOfView", PercentPhaseFieldOfView, 'f'},
	{"PercentSampling", PercentSampling, 'f'},
	{"PerformedProcedureStepDescription", PerformedProcedureStepDescription, 's'},
	{"PhotometricInterpretation", PhotometricInterpretation, 's'},
	{"PixelBandwidth", PixelBandwidth, 'f'},
	{"PixelRepresentation", PixelRepresentation, 'i'},
	{"PixelSpacing", PixelSpacing, 's'},
	{"PresentationIntentType", PresentationIntentType, 's'},
	{"ProtocolName", ProtocolName, 's'},
	{"PulseSequenceName", PulseSequenceName, 's'},
	{"ReceiveCoilName", ReceiveCoilName, 's'},
	{"RepetitionTime", RepetitionTime, 'f'},
	{"RequestedProcedureDescription", RequestedProcedureDescription, 's'},
	{"RescaleIntercept", RescaleIntercept, 'f'},
	{"RescaleSlope", RescaleSlope, 'f'},
	{"RescaleType", RescaleType, 's'},
	{"Rows", Rows, 'i'},
	{"SOPClassUID", SOPClassUID, 's'},
	{"SOPInstanceUID", SOPInstanceUID, 's'},
	{"SamplesPerPixel", SamplesPerPixel, 'i'},
	{"ScanOptions", ScanOptions, 's'},
	{"ScanningSequence", ScanningSequence, 's'},
	{"SequenceName", SequenceName, 's'},
	{"SequenceVariant", SequenceVariant, 's'},
	{"SeriesDate", SeriesDate, 's'},
	{"SeriesDescription", SeriesDescription, 's'},
	{"SeriesInstanceUID", SeriesInstanceUID, 's'},
	{"SeriesNumber", SeriesNumber, 'i'},
	{"SeriesTime", SeriesTime, 's'},
	{"SliceLocation", SliceLocation, 'f'},
	{"SliceThickness", SliceThickness, 'f'},
	{"SoftwareVersions", SoftwareVersions, 's'},
	{"SourceApplicationEntityTitle", SourceApplicationEntityTitle, 's'},
	{"SpacingBetweenSlices", SpacingBetweenSlices, 'f'},
	{"StationName", StationName, 's'},
	{"StudyDate", StudyDate, 's'},
	{"StudyDescription", StudyDescription, 's'},
	{"StudyID", StudyID, 's'},
	{"StudyInstanceUID", StudyInstanceUID, 's'},
	{"StudyTime", StudyTime, 's'},
	{"TemporalPositionIdentifier", TemporalPositionIdentifier, 'i'},
	{"TransferSyntaxUID", TransferSyntaxUID, 's'},
	{"TransmitCoilName", TransmitCoilName, 's'},
	{"ViewPosition", ViewPosition, 's'},
	{"WindowCenter", WindowCenter, 'f'},
	{"WindowWidth", WindowWidth, 'f'},
}

// Keywords is the environment of a rule: every name of [KeywordTypes] with the
// object's value. Text with several values stays joined by backslashes, numbers
// are the first value, and what is absent or unreadable has the zero value.
func (o *Object) Keywords() map[string]any {
	m := make(map[string]any, len(keywords))
	for _, k := range keywords {
		e := o.Find(k.tag)
		switch k.kind {
		case 'i':
			n, _ := e.Int()
			m[k.name] = int(n)
		case 'f':
			f, _ := e.Float()
			m[k.name] = f
		default:
			m[k.name] = e.String()
		}
	}
	return m
}

// KeywordTypes is the environment with zero values: what a rule may name and
// the type (string, int or float64) that each name has.
func KeywordTypes() map[string]any {
	m := make(map[string]any, len(keywords))
	for _, k := range keywords {
		switch k.kind {
		case 'i':
			m[k.name] = 0
		case 'f':
			m[k.name] = 0.0
		default:
			m[k.name] = ""
		}
	}
	return m
}
