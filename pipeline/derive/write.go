package derive

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/diffdenoise/denoised/internal/dcm"
)

const (
	productName   = "denoised"   // Manufacturer and model of ContributingEquipment; the loop guard
	imageTypeMark = "DENOISED"   // last value of ImageType in single-frame objects
	codingScheme  = "99DENOISED" // private coding scheme of DerivationCodeSequence

	seriesNumberLimit = 99999
	qualityHigh       = "high"
)

// Untouched ends the DerivationDescription of a copy (Params.Copy), and of a
// single-frame object in which no pixel got another value, as when no noise was found.
const Untouched = "; no pixel of this image was changed"

// ModelInfo names the network that made the pixels.
type ModelInfo struct {
	Name, Version string
	Hash          string // SHA-256 over the weights of all its networks, hexadecimal
	// Method tells apart what the same weights are used for in different ways, so that
	// other pixels have other UIDs: the revision of the program's method, and what a
	// person chose otherwise than by default.
	Method string `json:",omitempty"`
	// Fitted is the SHA-256 of the student's weights that were fitted to the series, hexadecimal;
	// empty: none were. It is written down and has no part in the UIDs, so that a series stays one when
	// another process fits to it again, perhaps to more of its images.
	Fitted string `json:",omitempty"`
}

// Params says how the pixels of a derived object were made. Model, Strength and
// Quality decide its UIDs.
type Params struct {
	Model    ModelInfo
	Strength float64 // 0 to 1; 0 keeps every pixel as it is
	Quality  string  // "fast" or "high"
	Product  string  // name in descriptions, empty for "denoised"
	Version  string  // of the product

	// Now becomes the content and creation time. It should be kept in the journal,
	// so that a retry writes the same bytes.
	Now time.Time
	// SeriesTime becomes SeriesDate and SeriesTime, which must be equal in all
	// objects of the derived series: the time at which the series was first seen.
	// Zero means the source's own SeriesDate and SeriesTime, which are equal too.
	SeriesTime time.Time

	// Related is another derived object of the same source, nil if there is none.
	Related *Related
	// Copy, if not empty, says why the object is a copy of its source: every pixel
	// stays as it is, whatever next returns, and each DerivationDescription says so.
	Copy string
	// Remark, if not nil, is asked once the pixels of a single-frame object are
	// made; what it returns ends the DerivationDescription. That of an object of many
	// frames is written before its pixels are known.
	Remark func() string

	SeriesDescriptionSuffix string // printable ASCII without backslash; empty for " DN" (fast) or " DN HQ" (high)
	SeriesNumberOffset      int    // added to SeriesNumber; 0 for 10000 (fast) or 20000 (high)
}

// Related names an object that shows the same image, denoised by other means.
type Related struct{ SOPClassUID, SOPInstanceUID, SeriesInstanceUID string }

// Info describes a derived object that Write has written.
type Info struct {
	SOPClassUID, SOPInstanceUID, SeriesInstanceUID, TransferSyntaxUID string

	Size   int64 // bytes of the file
	Frames int
	// Changed, Clipped and Padding count pixels: with a new value, cut to the
	// stored range, and left alone as padding.
	Changed, Clipped, Padding int64
}

func (p *Params) validate() error {
	switch {
	case !(p.Strength >= 0 && p.Strength <= 1):
		return fmt.Errorf("strength %v is not between 0 and 1", p.Strength)
	case p.Now.IsZero():
		return errors.New("no time given")
	case p.SeriesNumberOffset < 0 || p.SeriesNumberOffset > seriesNumberLimit:
		return fmt.Errorf("series number offset %d is not between 0 and %d", p.SeriesNumberOffset, seriesNumberLimit)
	}
	if p.Product == "" {
		p.Product = productName
	}
	if p.SeriesDescriptionSuffix == "" {
		p.SeriesDescriptionSuffix = " DN"
		if p.Quality == qualityHigh {
			p.SeriesDescriptionSuffix = " DN HQ"
		}
	}
	if s := p.SeriesDescriptionSuffix; len(s) > 64 || clean(s, 64) != s || strings.Contains(s, "?") {
		return errors.New("series description suffix is not printable ASCII of at most 64 characters")
	}
	if p.SeriesNumberOffset == 0 {
		p.SeriesNumberOffset = 10000
		if p.Quality == qualityHigh {
			p.SeriesNumberOffset = 20000
		}
	}
	return nil
}

// Write splices the derived object of o and writes it to w as a Part-10 file in
// the source's transfer syntax. next(i) returns the denoised values of frame i, in the
// unit of ReadFrame; it is called once per frame, in order, so an object of any size needs
// the memory of one frame. Values are rounded to nearest and clipped; padding
// is never changed; a value that is not finite is an error. Strength is recorded,
// not applied, but 0 keeps every pixel whatever next returns, as does Copy.
//
// The error is a *RefusedError if Inspect objects. After any error what was
// written must be thrown away.
func Write(w io.Writer, o *dcm.Object, p Params, next func(i int) ([]float32, error)) (Info, error) {
	v, l := inspect(o)
	if !v.OK() {
		return Info{}, &RefusedError{v}
	}
	if err := p.validate(); err != nil {
		return Info{}, fmt.Errorf("write derived object: %w", err)
	}
	ed, err := o.Edit()
	if err != nil {
		return Info{}, err
	}
	sop, series := UIDs(o, p)
	info := Info{SOPClassUID: o.String(dcm.SOPClassUID), SOPInstanceUID: sop, SeriesInstanceUID: series,
		TransferSyntaxUID: o.TransferSyntaxUID(), Frames: l.frames}

	px := &pixelWriter{cells: newCells(o, l), l: l, keep: p.Strength == 0 || p.Copy != "", next: next}
	if l.frames == 1 { // the smallest and largest value stand in front of the pixels
		if err := px.make(0); err != nil {
			return Info{}, err
		}
	}
	s := splice{o: o, ed: ed, p: p, sop: sop, series: series, pixelsMade: l.frames == 1, untouched: p.Copy != "" || l.frames == 1 && px.st.changed == 0}
	s.common()
	if info.SOPClassUID == classEnhancedMR {
		s.enhanced()
	} else {
		s.single()
	}
	s.extremes(px, l)
	ed.Stream(l.pixels, px.writeTo)

	meta := dcm.FileMeta{SOPClassUID: info.SOPClassUID, SOPInstanceUID: sop, TransferSyntaxUID: info.TransferSyntaxUID}
	if ae := clean(o.String(dcm.SourceApplicationEntityTitle), 17); len(ae) <= 16 {
		meta.SourceAETitle = ae
	}
	head, err := dcm.WriteFileMeta(w, meta)
	if err != nil {
		return Info{}, err
	}
	body, err := ed.WriteTo(w)
	if err != nil {
		return Info{}, fmt.Errorf("write derived object: %w", err)
	}
	info.Size = head + body
	info.Changed, info.Clipped, info.Padding = px.st.changed, px.st.clipped, px.st.padding
	return info, nil
}

// pixelWriter turns denoised values into the bytes of PixelData, one frame at a time.
type pixelWriter struct {
	cells *cells
	l     layout
	keep  bool
	next  func(i int) ([]float32, error)
	raw   []byte
	ready int // frames made
	st    stats
}

// make fills raw with frame i.
func (p *pixelWriter) make(i int) error {
	if p.raw == nil {
		p.raw = make([]byte, p.l.frameBytes())
	}
	if err := p.l.pixels.ReadAt(p.raw, int64(i)*p.l.frameBytes()); err != nil {
		return fmt.Errorf("read frame %d: %w", i, err)
	}
	pixels, err := p.next(i)
	if err != nil {
		return fmt.Errorf("denoise frame %d: %w", i, err)
	}
	if len(pixels) != p.l.pixelsPerFrame() {
		return fmt.Errorf("denoise frame %d: %d pixels, %d expected", i, len(pixels), p.l.pixelsPerFrame())
	}
	r := p.l.rescale(i)
	if p.keep {
		pixels = p.source(r)
	}
	if err := p.cells.encode(p.raw, pixels, r, &p.st); err != nil {
		return fmt.Errorf("denoise frame %d: %w", i, err)
	}
	p.ready = i + 1
	return nil
}

// source is the frame in raw as real values.
func (p *pixelWriter) source(r rescale) []float32 {
	v := make([]float32, p.l.pixelsPerFrame())
	for k := range v {
		v[k] = r.real(p.cells.value(p.cells.cell(p.raw, k)))
	}
	return v
}

func (p *pixelWriter) writeTo(w io.Writer) error {
	for i := range p.l.frames {
		if p.ready <= i {
			if err := p.make(i); err != nil {
				return err
			}
		}
		if _, err := w.Write(p.raw); err != nil {
			return err
		}
	}
	// the padding byte of an odd length
	if n := p.l.frameBytes() * int64(p.l.frames); n < p.l.pixels.Length() {
		var b [1]byte
		if err := p.l.pixels.ReadAt(b[:], n); err != nil {
			return err
		}
		_, err := w.Write(b[:])
		return err
	}
	return nil
}

// splice makes the attribute changes. Each method names the clauses it follows;
// docs/derived-objects.md has the whole table.
type splice struct {
	o           *dcm.Object
	ed          *dcm.Editor
	p           Params
	sop, series string
	pixelsMade  bool // of a single frame: before anything else is written
	untouched   bool // no pixel gets another value, as far as that is known by now
}

func (s *splice) text(t dcm.Tag, v dcm.VR, value string) {
	s.ed.Set(dcm.Element{}, dcm.Text(t, v, value))
}

// common changes what is the same in all classes.
func (s *splice) common() {
	now := s.p.Now.In(s.zone())
	s.text(dcm.InstanceCreationDate, dcm.DA, now.Format("20060102"))
	s.text(dcm.InstanceCreationTime, dcm.TM, now.Format("150405.000000"))
	s.text(dcm.InstanceCreatorUID, dcm.UI, dcm.ImplementationClassUID)
	s.text(dcm.ContentDate, dcm.DA, now.Format("20060102"))
	s.text(dcm.ContentTime, dcm.TM, now.Format("150405.000000"))
	if !s.p.SeriesTime.IsZero() {
		at := s.p.SeriesTime.In(s.zone())
		s.text(dcm.SeriesDate, dcm.DA, at.Format("20060102"))
		s.text(dcm.SeriesTime, dcm.TM, at.Format("150405.000000"))
	}
	s.text(dcm.SOPInstanceUID, dcm.UI, s.sop)
	s.text(dcm.SeriesInstanceUID, dcm.UI, s.series)
	s.text(dcm.SeriesNumber, dcm.IS, strconv.Itoa(seriesNumber(s.o, s.p.SeriesNumberOffset)))
	s.seriesDescription()
	s.concatenation()
	s.related()
	s.contributingEquipment(now)

	// What cannot be true of other pixels: signatures (PS3.15 C), a thumbnail, and
	// lengths of groups that have changed. Padding behind the pixels serves nobody.
	for _, t := range removed {
		s.ed.Remove(dcm.Element{}, t)
	}
	for e := range s.o.Elements() {
		if t := e.Tag(); isGroupLength(t) {
			s.ed.Remove(dcm.Element{}, t)
		}
	}
	for _, t := range stalePrivate(s.o) {
		s.ed.Remove(dcm.Element{}, t)
	}
}

var removed = []dcm.Tag{
	dcm.SmallestPixelValueInSeries, dcm.LargestPixelValueInSeries,
	dcm.SmallestImagePixelValueInPlane, dcm.LargestImagePixelValueInPlane,
	dcm.IconImageSequence, dcm.MACParametersSequence, dcm.DigitalSignaturesSequence, dcm.DataSetTrailingPadding,
}

func isGroupLength(t dcm.Tag) bool { return t.Element() == 0 && t.Group() > 2 }

// stalePrivate lists private elements that repeat or check the pixels. All other
// private elements stay: they hold diffusion gradients, timing and coil data.
func stalePrivate(o *dcm.Object) []dcm.Tag {
	var list []dcm.Tag
	for e, creator := range o.Private() {
		if e.Depth() > 0 {
			continue
		}
		t := e.Tag()
		switch block := t.Group(); {
		case creator == "INTELERAD MEDICAL SYSTEMS" && block == 0x0029 && t.Element()&0xFF == 0x20, // MD5 of the frames
			creator == "INTELERAD MEDICAL SYSTEMS" && block == 0x3F01 && t.Element()&0xFF == 0x07, // pixels
			creator == "GEMS_SENO_02" && block == 0x0045 && t.Element()&0xFF == 0x3F,              // vignette pixels
			creator == "SPI-P Release 1" && block == 0x7FE1 && t.Element()&0xFF == 0x10:           // pixels
			list = append(list, t)
		}
	}
	return list
}

// zone is the object's time zone (PS3.3 C.12.1.1.8), else that of the given time.
func (s *splice) zone() *time.Location {
	z := s.o.String(dcm.TimezoneOffsetFromUTC)
	if len(z) == 5 && (z[0] == '+' || z[0] == '-') {
		h, err1 := strconv.Atoi(z[1:3])
		m, err2 := strconv.Atoi(z[3:])
		if err1 == nil && err2 == nil && h <= 14 && m < 60 {
			sec := h*3600 + m*60
			if z[0] == '-' {
				sec = -sec
			}
			return time.FixedZone(z, sec)
		}
	}
	return s.p.Now.Location()
}

// seriesNumber is the source's plus offset, kept within five digits, which is
// what archives and people handle, and never the source's own. Scanners number
// up to four digits, Philips 101, 201, … 1301 in one examination, so that
// offsets of tens of thousands meet no other series.
func seriesNumber(o *dcm.Object, offset int) int {
	n, _ := o.Int(dcm.SeriesNumber)
	n %= seriesNumberLimit + 1
	return (int(max(n, -n)) + offset) % (seriesNumberLimit + 1)
}

// seriesDescription appends the suffix where that keeps the text intact. The
// bytes of the source's text are not decoded.
func (s *splice) seriesDescription() {
	old, err := s.o.Bytes(dcm.SeriesDescription, 4096)
	if err != nil && s.o.Has(dcm.SeriesDescription) {
		return
	}
	suffix := s.p.SeriesDescriptionSuffix
	if strings.Trim(string(old), " \x00") == "" {
		suffix = strings.TrimSpace(suffix)
		old = nil
	}
	if text, ok := dcm.AppendASCII(old, s.o.CharacterSet(), suffix); ok {
		s.ed.Set(dcm.Element{}, dcm.Node{Tag: dcm.SeriesDescription, VR: dcm.LO, Value: text})
	}
}

// concatenation moves a part of a divided multi-frame object into a concatenation
// of derived parts, since all parts of one belong to one series (PS3.3
// C.7.6.16.2.2.4): a reader that joins parts by their UID would mix denoised
// frames with the source's.
func (s *splice) concatenation() {
	for t, kind := range concatenationUIDs {
		if u := s.o.String(t); u != "" {
			s.text(t, dcm.UI, s.p.uid(kind, s.o, u))
		}
	}
}

// concatenationUIDs says what the UIDs of a concatenation identify, for Params.uid.
var concatenationUIDs = map[dcm.Tag]string{
	dcm.ConcatenationUID: "concatenation", dcm.SOPInstanceUIDOfConcatenationSource: "instance",
}

// contributingEquipment says who changed the pixels (PS3.3 C.12.1). The general
// equipment stays the scanner's.
func (s *splice) contributingEquipment(now time.Time) {
	about, err := json.Marshal(struct {
		Model    string  `json:"model"`
		Version  string  `json:"modelVersion"`
		Hash     string  `json:"modelSHA256"`
		Quality  string  `json:"quality"`
		Strength float64 `json:"strength"`
		Fitted   string  `json:"fittedSHA256,omitempty"`
	}{clean(s.p.Model.Name, 128), clean(s.p.Model.Version, 64), clean(s.p.Model.Hash, 64), clean(s.p.Quality,
		16), s.p.Strength,
		clean(s.p.Model.Fitted, 64)})
	if err != nil { // no value of these types fails
		about = nil
	}
	item := []dcm.Node{
		dcm.Text(dcm.Manufacturer, dcm.LO, productName),
		dcm.Text(dcm.ManufacturerModelName, dcm.LO, clean(s.p.Product, 64)),
		dcm.Text(dcm.SoftwareVersions, dcm.LO, clean(s.p.Version, 64)),
		dcm.Text(dcm.ContributionDateTime, dcm.DT, now.Format("20060102150405.000000-0700")),
		dcm.Text(dcm.ContributionDescription, dcm.ST, string(about)),
		dcm.Sequence(dcm.PurposeOfReferenceCodeSequence, code("109102", "DCM", "Processing Equipment")),
	}
	s.append(dcm.ContributingEquipmentSequence, item)
}

// extended lists the top-level sequences that append adds items to. Inspect lets no image
// through in which one of them cannot take any.
var extended = []dcm.Tag{
	dcm.ReferencedSeriesSequence, dcm.ReferencedImageSequence, dcm.DerivationCodeSequence,
	dcm.ContributingEquipmentSequence,
}

// append adds items to a sequence of extended, behind those that are there.
func (s *splice) append(t dcm.Tag, items ...[]dcm.Node) {
	e := s.o.Find(t)
	if !e.OK() || e.Length() == 0 {
		s.ed.Set(dcm.Element{}, dcm.Sequence(t, items...))
		return
	}
	s.ed.AppendItems(e, items...)
}

func code(value, scheme, meaning string) []dcm.Node {
	return []dcm.Node{
		dcm.Text(dcm.CodeValue, dcm.SH, value),
		dcm.Text(dcm.CodingSchemeDesignator, dcm.SH, scheme),
		dcm.Text(dcm.CodeMeaning, dcm.LO, meaning),
	}
}

// derivationCodes are our own term, since no DICOM code says denoising, and the
// nearest of CID 7203.
func derivationCodes() [][]dcm.Node {
	return [][]dcm.Node{
		code("DENOISE", codingScheme, "Noise reduction by neural network"),
		code("113087", "DCM", "Smoothing"),
	}
}

func (s *splice) derivationDescription() string {
	text := fmt.Sprintf("%s %s: noise reduction by neural network %s %s (networks SHA-256 %s), quality %s, strength %s",
		s.p.Product, s.p.Version, s.p.Model.Name, s.p.Model.Version, s.p.Model.Hash, s.p.Quality,
		strconv.FormatFloat(s.p.Strength, 'g', 4, 64))
	if s.p.Model.Fitted != "" {
		text += "; student fitted to this series (SHA-256 " + clean(s.p.Model.Fitted, 64) + ")"
	}
	if s.p.Copy != "" {
		text += "; " + clean(s.p.Copy, 300)
	} else if s.p.Remark != nil && s.pixelsMade {
		if t := s.p.Remark(); t != "" {
			text += "; " + clean(t, 300)
		}
	}
	if s.untouched {
		// The derived series stays whole, and says which of its images are copies.
		text += Untouched
	}
	return clean(text, 1024)
}

// sourceImage is an item of SourceImageSequence (PS3.3 C.12.4.1, purpose CID 7202).
// frame counts from 1; 0 refers to the whole object.
func (s *splice) sourceImage(frame int) []dcm.Node {
	n := []dcm.Node{
		dcm.Text(dcm.ReferencedSOPClassUID, dcm.UI, s.o.String(dcm.SOPClassUID)),
		dcm.Text(dcm.ReferencedSOPInstanceUID, dcm.UI, s.o.String(dcm.SOPInstanceUID)),
	}
	if frame > 0 {
		n = append(n, dcm.Text(dcm.ReferencedFrameNumber, dcm.IS, strconv.Itoa(frame)))
	}
	return append(n,
		dcm.Text(dcm.SpatialLocationsPreserved, dcm.CS, "YES"),
		dcm.Sequence(dcm.PurposeOfReferenceCodeSequence, code("121322", "DCM", "Source image for image processing operation")))
}

// related links the object to another derivation of the same source: the image
// by ReferencedImageSequence (PS3.3 C.12.4; no term of CID 7201 fits, so the
// purpose is our own), and the series of both by the Common Instance Reference
// module (C.12.2). In an Enhanced MR object image references stand in functional
// groups, and only the module is written. Items of the source stay in front.
func (s *splice) related() {
	r := s.p.Related
	if r == nil {
		return
	}
	instance := func(class, uid string) []dcm.Node {
		return []dcm.Node{dcm.Text(dcm.ReferencedSOPClassUID, dcm.UI, class), dcm.Text(dcm.ReferencedSOPInstanceUID, dcm.UI, uid)}
	}
	if s.o.String(dcm.SOPClassUID) != classEnhancedMR {
		s.append(dcm.ReferencedImageSequence, append(instance(r.SOPClassUID, r.SOPInstanceUID),
			dcm.Sequence(dcm.PurposeOfReferenceCodeSequence, code("FAST", codingScheme, "Same image, denoised with quality fast"))))
	}
	series := func(uid string, item []dcm.Node) []dcm.Node {
		return []dcm.Node{dcm.Sequence(dcm.ReferencedInstanceSequence, item), dcm.Text(dcm.SeriesInstanceUID, dcm.UI, uid)}
	}
	s.append(dcm.ReferencedSeriesSequence,
		series(s.o.String(dcm.SeriesInstanceUID), instance(s.o.String(dcm.SOPClassUID), s.o.String(dcm.SOPInstanceUID))),
		series(r.SeriesInstanceUID, instance(r.SOPClassUID, r.SOPInstanceUID)))
}

// single changes what only single-frame classes have at the top level.
func (s *splice) single() {
	// DERIVED since the pixels changed; value 2 still says PRIMARY, because they
	// show the acquisition (PS3.3 C.7.6.1.1.2).
	v := s.o.Strings(dcm.ImageType)
	if len(v) == 0 {
		v = []string{""}
	}
	if len(v) == 1 {
		v = append(v, "PRIMARY")
	}
	v[0] = "DERIVED"
	if len(v) == 2 { // value 3 has a defined meaning, ours comes behind it
		third := ""
		if s.o.String(dcm.Modality) == "MR" {
			third = "OTHER" // type 1 there (PS3.3 C.8.3.1.1.1)
		}
		v = append(v, third)
	}
	s.text(dcm.ImageType, dcm.CS, strings.Join(append(v, imageTypeMark), `\`))

	s.text(dcm.DerivationDescription, dcm.ST, s.derivationDescription())
	s.append(dcm.DerivationCodeSequence, derivationCodes()...)
	s.ed.Set(dcm.Element{}, dcm.Sequence(dcm.SourceImageSequence, s.sourceImage(0)))
}

// extremes recomputes the smallest and largest pixel value where the source has
// them, with the VR that PixelRepresentation asks for (PS3.3 C.7.6.3.1); a
// multi-frame object is written before they are known, so they go.
func (s *splice) extremes(px *pixelWriter, l layout) {
	for _, t := range []dcm.Tag{dcm.SmallestImagePixelValue, dcm.LargestImagePixelValue} {
		if !s.o.Has(t) {
			continue
		}
		if l.frames > 1 || !px.st.any {
			s.ed.Remove(dcm.Element{}, t)
			continue
		}
		n, v := px.st.least, dcm.US
		if t == dcm.LargestImagePixelValue {
			n = px.st.most
		}
		if l.signed {
			v = dcm.SS
		}
		s.ed.Set(dcm.Element{}, dcm.Node{Tag: t, VR: v, Value: binary.LittleEndian.AppendUint16(nil, uint16(n))})
	}
}
