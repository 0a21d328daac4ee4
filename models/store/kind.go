package store

// Kind is a kind of images that one model is for.
type Kind string

// Kinds. What an image is of decides which noise it has: that of a receiver behind k-space, or that
// of counted quanta.
const (
	MR         Kind = "mr"
	Radiograph Kind = "radiograph"
)

// Kinds are all of them.
var Kinds = []Kind{MR, Radiograph}

// Model is the name of the embedded model for images of that kind.
func (k Kind) Model() string {
	if k == Radiograph {
		return RadiographName
	}
	return DefaultName
}

// KindOf returns the kind of an image of that DICOM modality (0008,0060): computed (CR) and digital
// (DX) radiography are radiographs, all else is MR.
func KindOf(modality string) Kind {
	switch modality {
	case "CR", "DX":
		return Radiograph
	}
	return MR
}
