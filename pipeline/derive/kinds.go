package derive

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// kind is what a word of ImageType or FrameType says of the image: one of the three below,
// or the Reason for which such an image stays untouched.
type kind string

const (
	// isMagnitude: the magnitude of the signal itself.
	isMagnitude kind = "magnitude"
	// isAcquired: how it was acquired or is weighted. That is said of phases and maps too, so
	// the pixels must show that it is a magnitude.
	isAcquired kind = "acquisition"
	// isProcessed: what was done to a magnitude that leaves it one.
	isProcessed kind = "processing"
)

// place says where a word counts.
type place string

const (
	anywhere place = ""
	third    place = "as value 3 only"
	inMR     place = "in MR only" // radiographs may mean something else by it
)

// term is a row of the table of kinds: words, from value 3 of ImageType or FrameType on, of one
// vendor and one meaning. In a word # stands for a number and * for anything.
type term struct {
	vendor string
	kind   kind
	place  place
	words  []string
	source string // what says so: a clause, a conformance statement, or images that show it
}

const (
	ps3Classic = "PS3.3 C.8.3.1.1.1"
	ps3Complex = "PS3.3 C.8.13.3.1.1"
	ps3Flavor  = "PS3.3 C.8.16.1.3, C.8.13.1.1.1"
	ps3Derived = "PS3.3 C.8.16.1.4, C.8.13.1.1.1"
	siemens    = "public images of MAGNETOM systems, to syngo MR XA60"
	philips    = "Intera R7, R8 and R9 DICOM Conformance Statement, table 3-28; public images to R11"
	ge         = "public images of GE systems, to MR30"
)

// terms is the table of kinds; docs/derived-objects.md shows it. A word that is not here is of no
// known kind, and its image stays untouched unless the word is admitted.
var terms = []term{
	{"DICOM", isMagnitude, anywhere, []string{"MAGNITUDE"}, ps3Complex},
	{"DICOM", isAcquired, third, []string{"OTHER"}, ps3Classic},
	{"DICOM", isAcquired, third, []string{"ANGIO", "ANGIO_TIME", "ASL", "CARDIAC", "CARDIAC_GATED",
		"CARDRESP_GATED", "CINE", "DIFFUSION", "DIXON", "DYNAMIC", "FLOW_ENCODED", "FLUID_ATTENUATED",
		"FLUOROSCOPY", "FMRI", "LOCALIZER", "MOTION", "MULTIECHO", "NON_PARALLEL", "PARALLEL", "PERFUSION",
		"POST_CONTRAST", "PRE_CONTRAST", "PROTON_DENSITY", "REALTIME", "RESP_GATED", "REST", "STATIC", "STIR",
		"STRESS", "T1", "T2", "T2_STAR", "TAGGING", "TOF", "VOLUME", "WHOLE_BODY"}, ps3Flavor},
	{"DICOM", isAcquired, anywhere, []string{"MIXED"}, ps3Flavor},
	{"DICOM", isProcessed, anywhere, []string{"NONE"}, ps3Derived},
	{"DICOM", kind(Phase), anywhere, []string{"PHASE", "REAL", "IMAGINARY", "COMPLEX"}, ps3Complex},
	{"DICOM", kind(Phase), anywhere, []string{"PHASE MAP", "VELOCITY MAP", "VELOCITY"}, ps3Classic},
	{"DICOM", kind(Phase), inMR, []string{"PHASE SUBTRACT"}, ps3Classic},
	{"DICOM", kind(Map), anywhere, []string{"* MAP", "*_MAP"}, ps3Classic},
	{"DICOM", kind(Map), inMR, []string{"IMAGE ADDITION", "MODULUS SUBTRACT"}, ps3Classic},
	{"DICOM", kind(Map), anywhere, []string{"ADDITION", "ADC", "DIVISION", "MASKED", "MEAN", "MTT",
		"MULTIPLICATION", "QUANTITY", "RCBF", "RCBV", "STD_DEVIATION", "SUBTRACTION", "TTP", "T_TEST",
		"Z_SCORE", "FAT_FRACTION", "WATER_FRACTION"}, ps3Derived},
	{"DICOM", kind(Map), inMR, []string{"DIFFUSION_ANISO", "DIFFUSION_ATTNTD", "MEDIAN", "METABOLITE_MAPS",
		"PERFUSION_ASL", "RANGE", "RMS", "TEMPERATURE"}, ps3Derived},
	{"DICOM", kind(Derived), inMR, []string{"FILTERED"}, ps3Derived},
	{"DICOM", kind(Projection), anywhere, []string{"MPR", "PROJECTION IMAGE", "CURVED MPR", "CURVED_MPR",
		"MAX_IP", "MIN_IP", "AVERAGE_IP", "MAXIMUM", "MINIMUM", "VOLUME_RENDER", "SURFACE_RENDER", "RESAMPLED",
		"STITCHED"}, ps3Classic + "; " + ps3Derived},
	{"Siemens", isMagnitude, anywhere, []string{"M"}, siemens},
	{"Siemens", isAcquired, anywhere, []string{"IN_PHASE", "OPP_PHASE", "OUT_PHASE", "OPPOSED_PHASE", "WATER",
		"FAT", "INV#", "TE#", "IR"}, siemens},
	{"Siemens", isProcessed, anywhere, []string{"ND", "NORM", "DIS2D", "DIS3D", "FIL", "FM", "FM#_#", "SH",
		"SH#_#", "MFSPLIT", "MB", "RETRO", "MOCO", "MOCO_ADV", "MSUM"}, siemens},
	{"Siemens", kind(Phase), anywhere, []string{"P", "R", "I", "IMAG", "PSIR", "PHASE_CONTRAST", "PHASE DIFF",
		"PHASEDIFF", "FIELD MAP PHASE", "VEL"}, siemens},
	{"Siemens", kind(Map), anywhere, []string{"EADC", "FA", "COLFA", "TRACE", "TRACEW", "TENSOR", "TENSOR_B0",
		"TENSORB0", "EXP_ADC", "ADD", "SUB", "STDDEV", "TTEST", "T-TEST", "RELCBF", "CBF", "RELCBV", "CBV",
		"RELMTT", "TMAX", "PBP", "GBP", "T2*", "R2*", "SNR", "GFACTOR", "FIELDMAP", "MAP"}, siemens},
	{"Siemens", kind(Map), inMR, []string{"CALC_BVAL", "CALC_BVALUE", "STDDEV_*", "UNI"}, siemens},
	{"Siemens", kind(Mosaic), anywhere, []string{"MOSAIC*"}, siemens},
	{"Siemens", kind(Projection), anywhere, []string{"MIP", "MINIP", "MNIP", "MIN IP", "MAX IP", "CPR",
		"CSA MPR", "PROJECTION", "VRT", "SSD", "3D RENDER", "VOLUME RENDER"}, siemens},
	{"Siemens", kind(Projection), inMR, []string{"MIP_*", "CPR_STAR", "CSA *", "CSAPARALLEL"}, siemens},
	{"Siemens", kind(Capture), anywhere, []string{"POSDISP", "CSA REPORT", "SCREENSAVE", "SCREEN SAVE",
		"SCREEN_SAVE", "SECONDARY CAPTURE", "GRAPH"}, siemens},
	{"Philips", isMagnitude, anywhere, []string{"M_SE", "M_FFE", "M_IR", "M_PCA", "M_TSE", "M_UNSPECIFIED"}, philips},
	{"Philips", isProcessed, anywhere, []string{"SE", "FFE", "PCA", "UNSPECIFIED"}, philips},
	{"Philips", isAcquired, anywhere, []string{"W", "F", "IP", "OP"}, philips},
	{"Philips", kind(Phase), anywhere, []string{"P_*", "R_*", "I_*", "PHASE CONTRAST", "PHASE_MAP",
		"VELOCITY_MAP"}, philips},
	{"Philips", kind(Phase), inMR, []string{"CR", "CR_*", "CORRECTED_REAL"}, philips},
	{"Philips", kind(Map), anywhere, []string{"*_UNSPECI*", "FF", "FATFRAC", "PDFF", "QSM", "R2_STAR",
		"R2STAR", "STIFFNESS", "ELASTOGRAM", "WAVE", "CONFIDENCE"}, philips},
	{"Philips", kind(Map), inMR, []string{"B0", "B1", "M_B0", "M_B1", "RHO", "T0", "T2_STAR_*", "STD_DEV",
		"DELAY", "MAXENH", "RELENH", "MAXRELENH", "WASHIN", "WASHOUT", "BREVENH", "AREACURV", "MRE"}, philips},
	{"Philips", kind(Derived), anywhere, []string{"DERIVED"}, philips},
	{"GE", isAcquired, third, []string{"EPI"}, ge},
	{"GE", kind(Map), anywhere, []string{"EXPONENTIAL ADC", "ISOTROPIC", "MD", "FAT FRACTION",
		"WATER FRACTION", "KTRANS", "KEP", "VE", "VP", "IAUC", "SUBTRACT"}, ge},
	{"GE", kind(Map), inMR, []string{"AVERAGE"}, ge},
	{"GE", kind(Projection), anywhere, []string{"REFORMATTED"}, ge},
	{"GE", kind(Projection), inMR, []string{"PJN", "COLLAPSE"}, ge},
	{"GE", kind(Capture), inMR, []string{"SSAVE", "VXTL STATE"}, ge},
	{"Canon, Toshiba", isAcquired, third, []string{"GDC"},
		"public images of Vantage Galan to V6.1"},
	{"United Imaging", isProcessed, anywhere, []string{"UCA", "IF"}, "public images of uMR systems"},
	{"United Imaging", kind(Mosaic), anywhere, []string{"VFRAME", "TILED"},
		"private tags of uMR, (0065,xx50) and (0065,xx51)"},
	{"Hitachi, Fujifilm", isAcquired, third, []string{"OTHER"},
		"public images of Hitachi systems"},
	{"Bruker", isMagnitude, anywhere, []string{"MAGNITUDE_IMAGE"}, "ParaVision, RECO_image_type"},
	{"Bruker", isAcquired, third, []string{"NON_PARALLEL"}, "public images of ParaVision"},
	{"Bruker", kind(Phase), inMR, []string{"PHASE_IMAGE", "REAL_IMAGE", "IMAGINARY_IMAGE", "COMPLEX_IMAGE"},
		"ParaVision, RECO_image_type"},
}

// lexicon is the table, by word and by pattern.
type lexicon struct {
	words    map[string]*term
	patterns []pattern
}

type pattern struct {
	form *regexp.Regexp
	term *term
}

var known = newLexicon(terms)

func newLexicon(terms []term) *lexicon {
	x := &lexicon{words: map[string]*term{}}
	for i := range terms {
		for _, w := range terms[i].words {
			if !strings.ContainsAny(w, "*#") || w == "T2*" || w == "R2*" { // these two end in a star themselves
				if _, ok := x.words[w]; !ok {
					x.words[w] = &terms[i]
				}
				continue
			}
			form := strings.NewReplacer(`\*`, ".*", "#", `\d+`).Replace(regexp.QuoteMeta(w))
			x.patterns = append(x.patterns, pattern{regexp.MustCompile("^" + form + "$"), &terms[i]})
		}
	}
	return x
}

// find is the row of a word that stands as value n, from 1; nil if it is of no known kind there.
func (x *lexicon) find(word string, n int) *term {
	word = strings.ToUpper(word)
	t := x.words[word]
	if t == nil {
		for _, p := range x.patterns {
			if p.form.MatchString(word) {
				t = p.term
				break
			}
		}
	}
	if t == nil || t.place == third && n != 3 {
		return nil
	}
	return t
}

// CheckAdmit says why a word cannot be admitted as a kind of image that is denoised: it
// is no value of an image type, or is known and keeps its image untouched.
func CheckAdmit(word string) error {
	if word == "" || len(word) > 64 || clean(word, 64) != word || strings.Contains(word, "?") ||
		strings.TrimSpace(word) != word {
		return fmt.Errorf("%+q is no value of ImageType: 1 to 64 printable characters without backslash", word)
	}
	if t := known.find(word, 3); t != nil {
		switch t.kind {
		case isMagnitude, isAcquired, isProcessed:
		default:
			return fmt.Errorf("%q is known to be no magnitude (%s)", word, t.kind)
		}
	}
	return nil
}

// said is what the image types of an object say together.
type said struct {
	magnitude bool     // each of them
	unknown   []string // words of no known kind
	acquired  []string // words that say how it was acquired
}

// hear adds one image type, of the object or of a frame.
func (s *said) hear(values []string, first bool) {
	magnitude := false
	for i, w := range values {
		if i < 2 || w == "" {
			continue
		}
		switch t := known.find(w, i+1); {
		case t == nil:
			s.unknown = addWord(s.unknown, w)
		case t.kind == isMagnitude:
			magnitude = true
		case t.kind == isAcquired:
			s.acquired = addWord(s.acquired, w)
		}
	}
	s.magnitude = magnitude && (first || s.magnitude)
}

// mostWords bounds the words of one kind that are kept of an object; manyWords, which nobody can admit,
// stands for the others.
const (
	mostWords = 8
	manyWords = "…"
)

func addWord(list []string, w string) []string {
	w = clean(strings.ToUpper(w), 64)
	switch {
	case slices.Contains(list, w):
		return list
	case len(list) == mostWords:
		return append(list, manyWords)
	case len(list) > mostWords:
		return list
	}
	return append(list, w)
}

// inspectKind decides whether an MR image is positively a magnitude: every word of its image
// types is known, and either each of the types says magnitude or the pixels show it. What may
// be admitted instead is returned beside the verdict.
func inspectKind(o *dcm.Object, l *layout) (Verdict, []string) {
	if o.String(dcm.Modality) != "MR" {
		return Verdict{}, nil
	}
	var s said
	first := true
	for e := range o.All() {
		if t := e.Tag(); t == dcm.ImageType && e.Depth() == 0 || t == dcm.FrameType && e.Length() > 0 {
			if values := e.Strings(); len(values) > 0 && values[0] != "" {
				s.hear(values, first)
				first = false
			}
		}
	}
	for e, creator := range o.Private() {
		if siemensTypes(e, creator) {
			magnitude := s.magnitude
			s.hear(e.Strings(), true) // repeats what ImageType says, with more of the processing
			s.magnitude = magnitude
		}
	}
	if len(s.unknown) > 0 {
		return no(UnknownKind, "image type %s", strings.Join(s.unknown, ", ")), s.unknown
	}
	if s.magnitude {
		return Verdict{}, nil
	}
	why, err := l.oddPixels(newCells(o, *l))
	switch {
	case err != nil:
		return no(Truncated, "%v", err), nil
	case why == "":
		return Verdict{}, nil
	case len(s.acquired) == 0:
		return no(UnknownKind, "no image type says magnitude, and %s", why), nil
	}
	words := strings.Join(s.acquired, ", ")
	return no(UnknownKind, "image type %s does not say magnitude, and %s", words, why), s.acquired
}
