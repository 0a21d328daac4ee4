package derive

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unicode"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// Reason is a stable word that says why an image stays untouched. Empty means
// that it can be denoised. The words appear in the journal, the API and metrics.
type Reason string

// The reasons, about in the order in which Inspect looks for them.
const (
	Unparseable     Reason = "unparseable"      // the file cannot be walked to its end with certainty
	Truncated       Reason = "truncated"        // the file or its pixel data ends early
	Deflated        Reason = "deflated"         // deflated transfer syntax, not inflated
	NotAnImage      Reason = "not-an-image"     // no pixel data: reports, raw data, presentation states
	Capture         Reason = "capture"          // secondary capture, screen save, burned in annotation
	WrongModality   Reason = "modality"         // a SOP class other than MR, Enhanced MR, CR, DX
	AlreadyDenoised Reason = "already-denoised" // by this product
	VendorDenoised  Reason = "vendor-denoised"  // by the scanner's own reconstruction
	Colour          Reason = "colour"           // more than one sample, a palette or colour frames
	Phase           Reason = "phase"            // phase, real, imaginary, velocity: signed quantities
	Map             Reason = "map"              // computed maps and pixel arithmetic
	Mosaic          Reason = "mosaic"           // several slices tiled in one image
	Projection      Reason = "projection"       // projections, reformats, renderings
	Derived         Reason = "derived"          // ImageType or FrameType value 1 is not ORIGINAL, see processedRadiograph
	Compressed      Reason = "compressed"       // encapsulated pixel data, or compressed with loss before
	BigEndian       Reason = "big-endian"       // explicit VR big endian
	BitDepth        Reason = "bit-depth"        // not 8 or 16 bits allocated, or float pixels
	Overlay         Reason = "overlay"          // overlay planes in unused bits of the pixel cells
	MultiFrame      Reason = "multi-frame"      // several frames in a single-frame class
	TooSmall        Reason = "too-small"        // fewer than MinSide pixels a side
	TooLarge        Reason = "too-large"        // more than MaxPixels pixels in a frame
	Inconsistent    Reason = "inconsistent"     // attributes contradict each other or are missing
	UnknownKind     Reason = "unknown-kind"     // not positively a magnitude image, and not admitted
)

// Limits of the images that are denoised.
const (
	// MinSide is the least number of rows and of columns.
	MinSide = 16
	// MaxPixels is the most pixels of one frame: 4 bytes each in memory.
	MaxPixels = 1 << 25
	// MaxFrames is the most frames of one object.
	MaxFrames = 65535
)

// Verdict is what Inspect found. Detail explains Reason to a person and holds
// neither names nor identifiers of a patient.
type Verdict struct {
	Reason Reason
	Detail string
}

// OK reports that the image can be denoised.
func (v Verdict) OK() bool { return v.Reason == "" }

// String is "ok" or the reason with its detail.
func (v Verdict) String() string {
	switch {
	case v.OK():
		return "ok"
	case v.Detail == "":
		return string(v.Reason)
	}
	return string(v.Reason) + ": " + v.Detail
}

// SOP classes that are denoised (PS3.4 B.5) and those that get a reason of their own.
const (
	classMR           = "1.2.840.10008.5.1.4.1.1.4"
	classEnhancedMR   = "1.2.840.10008.5.1.4.1.1.4.1"
	classMRColour     = "1.2.840.10008.5.1.4.1.1.4.3"
	classCR           = "1.2.840.10008.5.1.4.1.1.1"
	classDXPresent    = "1.2.840.10008.5.1.4.1.1.1.1"
	classDXProcessing = "1.2.840.10008.5.1.4.1.1.1.1.1"
	classCapture      = "1.2.840.10008.5.1.4.1.1.7" // and below: the multi-frame ones
)

// layout is how the pixel data lies in the file.
type layout struct {
	rows, columns, frames int
	alloc, stored         int
	signed                bool
	pixels                dcm.Element
	rescales              []rescale // one for all frames, or one for each; only of what Inspect has nothing against
}

func (l *layout) pixelsPerFrame() int { return l.rows * l.columns }
func (l *layout) frameBytes() int64   { return int64(l.rows) * int64(l.columns) * int64(l.alloc/8) }

// Inspect decides whether the object may be denoised. When it is not sure that
// it may, it may not: unsure means untouched. An MR image must positively be a magnitude.
//
// admit lists words of image types that count as magnitudes too, whatever their case, see
// CheckAdmit. An object that was let through by one stays so for Frames, ReadFrame and Write.
func Inspect(o *dcm.Object, admit ...string) Verdict {
	i := inspectOnce(o)
	if i.verdict.Reason == UnknownKind && i.admissible(admit) {
		i.admitted.Store(true)
	}
	v, _ := inspect(o)
	return v
}

func no(r Reason, format string, args ...any) Verdict {
	return Verdict{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// inspection is what Inspect found, kept with the Object: frames are read one by
// one, and an enhanced object has tens of thousands of elements to look at.
type inspection struct {
	verdict  Verdict
	layout   layout      // also if only the kind is not known
	kinds    []string    // words that must all be admitted then; none: it cannot be admitted
	admitted atomic.Bool // they are
}

// admissible reports whether the words that stand against the image are among admit.
func (i *inspection) admissible(admit []string) bool {
	for _, k := range i.kinds {
		if !slices.ContainsFunc(admit, func(a string) bool { return strings.EqualFold(a, k) }) {
			return false
		}
	}
	return len(i.kinds) > 0
}

func inspectOnce(o *dcm.Object) *inspection {
	return o.Remember(func() any {
		i := &inspection{}
		i.verdict, i.layout, i.kinds = inspectAll(o)
		return i
	}).(*inspection)
}

func inspect(o *dcm.Object) (Verdict, layout) {
	i := inspectOnce(o)
	switch {
	case i.admitted.Load():
		return Verdict{}, i.layout
	case i.verdict.OK():
		return i.verdict, i.layout
	}
	return i.verdict, layout{}
}

func inspectAll(o *dcm.Object) (Verdict, layout, []string) {
	checks := []func(*dcm.Object) Verdict{
		inspectFile, inspectClass, inspectHistory, inspectContent, inspectFrameGroups, inspectIdentity,
	}
	for _, check := range checks {
		if v := check(o); !v.OK() {
			return v, layout{}, nil
		}
	}
	v, l := pixelLayout(o)
	if v.OK() {
		v = inspectRescale(o, &l)
	}
	if !v.OK() {
		return v, layout{}, nil
	}
	v, kinds := inspectKind(o, &l)
	return v, l, kinds
}

// inspectFile: could the file be read to its end, and can it be rebuilt?
func inspectFile(o *dcm.Object) Verdict {
	if d := o.Damage(); d != nil {
		r := Unparseable
		if d.Damage == dcm.Truncated {
			r = Truncated
		}
		return no(r, "%v at byte %d", d.Damage, d.Offset)
	}
	if o.Deflated() {
		return no(Deflated, "")
	}
	if !o.Ordered() {
		return no(Unparseable, "tags do not ascend")
	}
	return Verdict{}
}

// inspectClass: is it an image of a kind that this product knows?
func inspectClass(o *dcm.Object) Verdict {
	class := o.String(dcm.SOPClassUID)
	if !o.Has(dcm.PixelData) && !o.Has(dcm.FloatPixelData) && !o.Has(dcm.DoubleFloatPixelData) {
		return no(NotAnImage, "no pixel data, SOP class %s", clean(class, 64))
	}
	if class == classCapture || strings.HasPrefix(class, classCapture+".") {
		return no(Capture, "")
	}
	modality := o.String(dcm.Modality)
	want := map[string]string{classMR: "MR", classEnhancedMR: "MR", classMRColour: "MR", classCR: "CR",
		classDXPresent: "DX", classDXProcessing: "DX"}[class]
	switch {
	case want == "":
		return no(WrongModality, "SOP class %s", clean(class, 64))
	case class == classMRColour:
		return no(Colour, "enhanced MR colour image")
	case modality != want:
		return no(WrongModality, "modality %q in a %s class", clean(modality, 16), want)
	}
	return Verdict{}
}

// inspectHistory: has somebody denoised it already?
func inspectHistory(o *dcm.Object) Verdict {
	if namesUs(o) {
		return no(AlreadyDenoised, "by this product")
	}
	for e, creator := range o.Private() {
		t := e.Tag()
		low := t.Element() & 0xFF
		switch {
		case siemensTypes(e, creator):
			if w := siemensDenoised(e.Strings()); w != "" {
				return no(VendorDenoised, "Siemens %s", w)
			}
		case t.Group() == 0x0021 && low == 0x76 && strings.HasPrefix(creator, "SIEMENS MR"):
			// steps of the reconstruction, with parameters
			for _, w := range e.Strings() {
				step, _, _ := strings.Cut(w, ":")
				if strings.EqualFold(step, "IterativeDenoising") || strings.HasPrefix(step, "DeepResolve") {
					return no(VendorDenoised, "Siemens %s", clean(step, 32))
				}
			}
		case t.Group() == 0x0043 && low == 0xCA && creator == "GEMS_PARM_01":
			if w := geDenoised(e); w != "" {
				return no(VendorDenoised, "GE %s", w)
			}
		case t.Group() == 0x2005 && low == 0x10 && philipsMR(creator):
			// DD 008, in some copies DD 002: the kind of acceleration, CS_SENSE_AI or none
			if w := e.String(); slices.Contains(strings.Split(strings.ToUpper(w), "_"), "AI") {
				return no(VendorDenoised, "Philips %s", clean(w, 32))
			}
		}
	}
	if w := tradeName(o); w != "" {
		return no(VendorDenoised, "%s in its name", w)
	}
	for e := range o.All() {
		if t := e.Tag(); t == dcm.ImageType || t == dcm.FrameType {
			if w := siemensDenoised(e.Strings()); w != "" {
				return no(VendorDenoised, "image type %s", w)
			}
		}
	}
	return Verdict{}
}

// tradeNames are what makers call their networks that denoise, of whose use no attribute is
// known to tell. The protocols of the makers have them in their names.
var tradeNames = []struct {
	maker string // in Manufacturer
	names []string
}{
	{"CANON", []string{"AICE", "PIQE"}}, {"TOSHIBA", []string{"AICE", "PIQE"}},
	{"UIH", []string{"DEEPRECON", "UAIFI"}}, {"UNITED IMAGING", []string{"DEEPRECON", "UAIFI"}},
	{"FUJIFILM", []string{"DLR"}}, {"HITACHI", []string{"DLR"}},
}

// tradeName finds a word of tradeNames in what the image is called.
func tradeName(o *dcm.Object) string {
	if o.String(dcm.Modality) != "MR" {
		return ""
	}
	maker := strings.ToUpper(o.String(dcm.Manufacturer))
	for _, t := range tradeNames {
		if !strings.Contains(maker, t.maker) {
			continue
		}
		for _, tag := range []dcm.Tag{dcm.SeriesDescription, dcm.ProtocolName, dcm.ScanOptions, dcm.ImageComments} {
			text := strings.ToUpper(o.String(tag))
			for _, w := range strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) }) {
				if slices.Contains(t.names, w) {
					return w
				}
			}
		}
	}
	return ""
}

// siemensTypes reports the image type text of Siemens, which repeats ImageType with more words: at the
// top, or per frame inside (0021,xxFE) in XA objects.
func siemensTypes(e dcm.Element, creator string) bool {
	t := e.Tag()
	return t.Group() == 0x0021 && t.Element()&0xFF == 0x75 && strings.HasPrefix(creator, "SIEMENS MR")
}

// philipsMR reports the private creators of Philips MR: their number changes with the release.
func philipsMR(creator string) bool {
	const prefix = "PHILIPS MR IMAGING DD "
	return len(creator) > len(prefix) && strings.EqualFold(creator[:len(prefix)], prefix)
}

// siemensDenoised finds the Deep Resolve marks: gain, boost, sharp.
func siemensDenoised(values []string) string {
	for _, v := range values {
		switch v {
		case "DRG", "DRB", "DRS":
			return v
		}
	}
	return ""
}

// geDenoised reads the AIR Recon DL setting: strength and level, e.g. "0.75\High".
// It is unused when empty, zero or named off.
func geDenoised(e dcm.Element) string {
	for _, v := range e.Strings() {
		switch strings.ToUpper(v) {
		case "", "OFF", "NONE", "NO", "DISABLED":
			continue
		}
		if f, err := strconv.ParseFloat(v, 64); err == nil && f == 0 {
			continue
		}
		return clean(strings.Join(e.Strings(), "/"), 32)
	}
	if e.Length() > 0 && e.String() == "" {
		return "setting unreadable"
	}
	return ""
}

// namesUs reports the marks that Write leaves.
func namesUs(o *dcm.Object) bool {
	if slices.Contains(o.Strings(dcm.ImageType), imageTypeMark) || o.String(dcm.InstanceCreatorUID) == dcm.ImplementationClassUID {
		return true
	}
	// ContributingEquipmentSequence at any depth, in whatever encoding it was scanned
	for e := range o.All() {
		switch e.Tag() {
		case dcm.Manufacturer, dcm.ManufacturerModelName:
			if e.Depth() > 0 && strings.EqualFold(e.String(), productName) {
				return true
			}
		case dcm.CodingSchemeDesignator:
			if e.String() == codingScheme {
				return true
			}
		}
	}
	return false
}

// imageType judges ImageType or FrameType by its words and by value 1 (PS3.3 C.7.6.1.1.2, C.8.3.1.1.1, C.8.16.1).
func imageType(values []string, mr bool) Verdict {
	var derived Verdict
	for i, w := range values {
		if i < 2 {
			continue
		}
		t := known.find(w, i+1)
		if t == nil || t.place == inMR && !mr {
			continue
		}
		switch t.kind {
		case isMagnitude, isAcquired, isProcessed:
		case kind(Derived): // another value may say what it is
			derived = no(Derived, "image type value %d is %s", i+1, clean(w, 16))
		default:
			return no(Reason(t.kind), "image type value %d is %s", i+1, clean(w, 16))
		}
	}
	if len(values) > 0 && values[0] != "ORIGINAL" {
		return no(Derived, "image type value 1 is %s", clean(values[0], 16))
	}
	return derived
}

// inspectContent: do the pixels show what a denoiser was made for?
func inspectContent(o *dcm.Object) Verdict {
	if n, ok := o.Int(dcm.SamplesPerPixel); ok && n != 1 {
		return no(Colour, "%d samples per pixel", n)
	}
	if p := o.String(dcm.PhotometricInterpretation); p != "MONOCHROME1" && p != "MONOCHROME2" {
		if p == "" {
			return no(Inconsistent, "no photometric interpretation")
		}
		return no(Colour, "photometric interpretation %s", clean(p, 16))
	}
	if o.Has(dcm.RedPaletteColorLookupTableDescriptor) {
		return no(Colour, "supplemental palette")
	}
	// "sufficient burned in annotation to identify the patient" is a screen, not a scan
	if o.String(dcm.BurnedInAnnotation) == "YES" {
		return no(Capture, "burned in annotation")
	}
	if o.String(dcm.LossyImageCompression) == "01" {
		return no(Compressed, "with loss, at some time in its past")
	}
	types := o.Strings(dcm.ImageType)
	mr := o.String(dcm.Modality) == "MR"
	if mr && len(types) == 0 {
		return no(Inconsistent, "no image type")
	}
	// What frames and private attributes say is more precise than value 1 of
	// ImageType, so a plain DERIVED comes last.
	var derived Verdict
	for e := range o.All() {
		var v Verdict
		switch e.Tag() {
		case dcm.ImageType:
			if e.Depth() == 0 {
				v = imageType(e.Strings(), mr)
				if v.Reason == Derived && !mr && processedRadiograph(o) {
					v = Verdict{}
				}
			}
		case dcm.FrameType:
			// copies inside private sequences may be empty
			if types := e.Strings(); len(types) > 0 && types[0] != "" {
				v = imageType(types, mr)
			}
		case dcm.ComplexImageComponent:
			if c := e.String(); c != "" && c != "MAGNITUDE" {
				v = no(Phase, "complex image component %s", clean(c, 16))
			}
		case dcm.PixelPresentation:
			if c := e.String(); c != "" && c != "MONOCHROME" {
				v = no(Colour, "pixel presentation %s", clean(c, 16))
			}
		case dcm.VolumeBasedCalculationTechnique:
			if c := e.String(); c != "" && c != "NONE" {
				v = no(Projection, "volume based calculation %s", clean(c, 16))
			}
		case dcm.RescaleType:
			if mr {
				v = unit("rescale type", e.String())
			}
		case dcm.MeasurementUnitsCodeSequence:
			for item := range e.Children() { // of a real world value mapping
				if u := item.Child(dcm.CodeValue).String(); mr && v.OK() {
					v = unit("real world value mapping in", u)
				}
			}
		}
		switch {
		case v.OK():
		case v.Reason == Derived:
			derived = v
		default:
			return v
		}
	}
	if v := inspectPrivate(o); !v.OK() {
		return v
	}
	return derived
}

// processedRadiograph reports a CR or DX image that calls itself DERIVED\PRIMARY
// although it is the exposure itself. DERIVED says that the pixel values come
// from those of another image, PRIMARY that the image is a direct result of the
// examination (PS3.3 C.7.6.1.1.2). Many readers write both on every image, the
// other one being raw data that never leaves them. Where a source or a kind of
// derivation is on record (C.7.6.1.1.3, C.12.4), or value 3 has a word that is
// not known to be harmless, it may be a subtraction, a composite or a lossy copy.
func processedRadiograph(o *dcm.Object) bool {
	types := o.Strings(dcm.ImageType)
	if len(types) < 2 || types[0] != "DERIVED" || types[1] != "PRIMARY" {
		return false
	}
	for _, w := range types[2:] {
		if w != "" && w != "POST_PROCESSED" && strings.Trim(w, "0123456789") != "" {
			return false
		}
	}
	for _, t := range []dcm.Tag{dcm.DerivationDescription, dcm.SourceImageSequence, dcm.DerivationCodeSequence} {
		if e := o.Find(t); e.OK() && e.Length() > 0 {
			return false
		}
	}
	return true
}

// unit: an MR magnitude has no unit, or one that means nothing (PS3.3 C.11.1.1.2, C.7.6.16.2.11);
// any other means a measured quantity.
func unit(where, s string) Verdict {
	switch strings.ToUpper(s) {
	case "", "US", "UNSPECIFIED", "NORMALIZED", "NONE", "1", "NO UNITS", "ARB", "ARBITRARY", "AU", "A.U.", "[ARB'U]",
		"{ARB}", "{COUNTS}":
		return Verdict{}
	case "RAD", "MRAD", "DEG", "DEGREE", "DEGREES", "CM/S", "MM/S", "M/S":
		return no(Phase, "%s %s", where, clean(s, 16))
	}
	return no(Map, "%s %s", where, clean(s, 16))
}

// inspectPrivate reads the vendors' own marks for complex parts and mosaics,
// because GE and older Siemens do not show them in ImageType.
func inspectPrivate(o *dcm.Object) Verdict {
	for e, creator := range o.Private() {
		t := e.Tag()
		low := t.Element() & 0xFF
		switch {
		case t.Group() == 0x0043 && low == 0x2F && creator == "GEMS_PARM_01":
			// raw data type: 0 magnitude, 1 phase, 2 real, 3 imaginary
			if n, ok := smallInt(e); ok && n >= 1 && n <= 3 {
				return no(Phase, "GE raw data type %d", n)
			}
		case t.Group() == 0x0019 && low == 0x0A && creator == "SIEMENS MR HEADER":
			if n, ok := smallInt(e); ok && n > 1 {
				return no(Mosaic, "%d images in the mosaic", n)
			}
		case t.Group() == 0x2005 && low == 0x11 && strings.EqualFold(creator, "Philips MR Imaging DD 001"):
			switch w := e.String(); w {
			case "P", "R", "I":
				return no(Phase, "Philips image type %s", w)
			}
		case t.Group() == 0x0019 && (low == 0x9C || low == 0x9E) && creator == "GEMS_ACQU_01":
			// name of the pulse sequence: its images are a field map in Hz and a magnitude, of one image type
			switch w := e.String(); strings.ToUpper(w) {
			case "B0MAP", "B0RF", "3DB0MAP":
				return no(Map, "GE pulse sequence %s", clean(w, 16))
			}
		case siemensTypes(e, creator):
			if v := imageType(e.Strings(), true); !v.OK() && v.Reason != Derived {
				return v
			}
		}
	}
	return Verdict{}
}

// smallInt reads a 16-bit value even when its VR was lost on the way.
func smallInt(e dcm.Element) (int64, bool) {
	if n, ok := e.Int(); ok {
		return n, true
	}
	if v := e.VR(); (v == dcm.UN || v == 0) && e.Length() == 2 {
		var b [2]byte
		if e.ReadAt(b[:], 0) == nil {
			return int64(int16(binary.LittleEndian.Uint16(b[:]))), true
		}
	}
	return 0, false
}

// inspectFrameGroups: can the functional groups be edited (PS3.3 C.7.6.16)?
func inspectFrameGroups(o *dcm.Object) Verdict {
	frames := int64(1)
	if o.Has(dcm.NumberOfFrames) {
		n, ok := o.Int(dcm.NumberOfFrames)
		if !ok || n < 1 || n > MaxFrames {
			return no(Inconsistent, "number of frames")
		}
		frames = n
	}
	if o.String(dcm.SOPClassUID) != classEnhancedMR {
		if frames != 1 {
			return no(MultiFrame, "%d frames", frames)
		}
		return Verdict{}
	}
	if !o.Has(dcm.NumberOfFrames) {
		return no(Inconsistent, "no number of frames")
	}
	for _, t := range []dcm.Tag{dcm.SharedFunctionalGroupsSequence, dcm.PerFrameFunctionalGroupsSequence} {
		e := o.Find(t)
		if !e.OK() && t == dcm.SharedFunctionalGroupsSequence {
			continue // all groups may be per frame
		}
		if !e.OK() || !e.IsSequence() || e.VR() != dcm.SQ {
			return no(Inconsistent, "functional groups missing or not a sequence")
		}
		n := int64(0)
		for item := range e.Children() {
			n++
			if !ascending(item) {
				return no(Unparseable, "tags of a functional group do not ascend or have a group length")
			}
			ft := item.Child(dcm.MRImageFrameTypeSequence)
			if !ft.OK() {
				continue
			}
			if !ft.IsSequence() || ft.VR() != dcm.SQ {
				return no(Inconsistent, "frame type is not a sequence")
			}
			for types := range ft.Children() {
				if !ascending(types) {
					return no(Unparseable, "tags of a frame type do not ascend or have a group length")
				}
			}
		}
		if t == dcm.SharedFunctionalGroupsSequence && n > 1 || t == dcm.PerFrameFunctionalGroupsSequence && n != frames {
			return no(Inconsistent, "%d items in %v for %d frames", n, t, frames)
		}
	}
	return Verdict{}
}

// ascending reports whether the tags of an item ascend, so that elements can be
// inserted in their place, and no group length among them would become wrong.
func ascending(item dcm.Element) bool {
	var last dcm.Tag
	for e := range item.Children() {
		if e.Tag() <= last || isGroupLength(e.Tag()) {
			return false
		}
		last = e.Tag()
	}
	return true
}

// inspectIdentity: a derived object needs the source's UIDs, and sequences that
// it can add items to.
func inspectIdentity(o *dcm.Object) Verdict {
	for _, t := range []dcm.Tag{dcm.SOPInstanceUID, dcm.StudyInstanceUID, dcm.SeriesInstanceUID} {
		u := o.String(t)
		if u == "" || len(u) > 64 || strings.Trim(u, "0123456789.") != "" {
			return no(Inconsistent, "%v missing or not a UID", t)
		}
	}
	for _, t := range extended {
		if e := o.Find(t); e.OK() && e.Length() > 0 && !e.TakesItems() {
			return no(Inconsistent, "%v is not a sequence", t)
		}
	}
	return Verdict{}
}

// pixelLayout checks that the pixel module (PS3.3 C.7.6.3) describes the pixel
// data that is there.
func pixelLayout(o *dcm.Object) (Verdict, layout) {
	var l layout
	fail := func(v Verdict) (Verdict, layout) { return v, layout{} }
	l.pixels = o.Find(dcm.PixelData)
	if !l.pixels.OK() {
		return fail(no(BitDepth, "float pixel data"))
	}
	if l.pixels.Encapsulated() {
		return fail(no(Compressed, "transfer syntax %s", clean(o.TransferSyntaxUID(), 64)))
	}
	if o.Encoding().BigEndian {
		return fail(no(BigEndian, ""))
	}
	if ts := o.TransferSyntaxUID(); ts != dcm.ExplicitVRLittleEndian && ts != dcm.ImplicitVRLittleEndian {
		return fail(no(Compressed, "transfer syntax %s", clean(ts, 64)))
	}
	get := func(t dcm.Tag) int {
		e := o.Find(t)
		if !e.OK() || e.VR() != dcm.US || e.Length() != 2 {
			return -1
		}
		n, _ := e.Int()
		return int(n)
	}
	l.rows, l.columns = get(dcm.Rows), get(dcm.Columns)
	l.alloc, l.stored = get(dcm.BitsAllocated), get(dcm.BitsStored)
	high, rep := get(dcm.HighBit), get(dcm.PixelRepresentation)
	l.frames = 1
	if n, ok := o.Int(dcm.NumberOfFrames); ok {
		l.frames = int(n)
	}
	l.signed = rep == 1
	switch {
	case get(dcm.SamplesPerPixel) != 1, l.rows < 0, l.columns < 0, l.alloc < 0, l.stored < 0, rep < 0, rep > 1:
		return fail(no(Inconsistent, "image pixel attributes missing or not single numbers"))
	case l.alloc != 8 && l.alloc != 16:
		return fail(no(BitDepth, "%d bits allocated", l.alloc))
	case l.stored < 2 || l.stored > l.alloc || high != l.stored-1:
		return fail(no(Inconsistent, "%d bits stored of %d, high bit %d", l.stored, l.alloc, high))
	case l.rows < MinSide || l.columns < MinSide:
		return fail(no(TooSmall, "%d x %d pixels", l.columns, l.rows))
	case l.pixelsPerFrame() > MaxPixels:
		return fail(no(TooLarge, "%d x %d pixels", l.columns, l.rows))
	}
	if v := l.pixels.VR(); v != dcm.OW && v != dcm.OB {
		return fail(no(Inconsistent, "pixel data has VR %v", v))
	}
	want := l.frameBytes() * int64(l.frames)
	switch n := l.pixels.Length(); {
	case n < want:
		return fail(no(Truncated, "%d bytes of pixel data, %d expected", n, want))
	case n != want+want&1:
		return fail(no(Inconsistent, "%d bytes of pixel data, %d expected", n, want))
	}
	for e := range o.Elements() {
		t := e.Tag()
		if t.Group()&0xFF00 != 0x6000 || t.Private() {
			continue
		}
		n, ok := smallInt(e) // the dictionary has no overlays
		if t.Element() == 0x0100 && (!ok || n != 1) || t.Element() == 0x0102 && (!ok || n != 0) {
			return fail(no(Overlay, "overlay plane in the pixel cells"))
		}
	}
	return Verdict{}, l
}

// clean makes text safe for logs: printable ASCII, at most n bytes.
func clean(s string, n int) string {
	b := make([]byte, 0, n)
	for i := 0; i < len(s) && len(b) < n; i++ {
		if c := s[i]; c >= ' ' && c <= '~' && c != '\\' {
			b = append(b, c)
		} else {
			b = append(b, '?')
		}
	}
	return string(b)
}
