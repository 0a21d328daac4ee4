package dcm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Limits of a scan. A file beyond one of them is reported as damaged, with the
// elements in front of the limit.
const (
	// MaxDepth is the deepest nesting of sequences.
	MaxDepth = 32
	// MaxElements counts elements, items, delimiters and pixel data fragments of a
	// file. Philips Enhanced MR has about 140 a frame, so this is some 1,700 frames.
	// An entry of the index takes 32 bytes: 8 to 10 MB for a file at the limit,
	// twice that while the index grows for the last time. A usual image has 300.
	MaxElements = 250_000

	headSize   = 32 << 10 // kept with the Object: most routing values lie in it
	windowSize = 16 << 10 // reused for everything behind the head
)

// Damage says what kind of defect a scan met.
type Damage uint8

// The kinds of damage.
const (
	// NoPreamble: the file does not start with 128 bytes and "DICM" (PS3.10 7.1).
	NoPreamble Damage = iota + 1
	// NoTransferSyntax: the file meta information lacks TransferSyntaxUID.
	NoTransferSyntax
	// WrongTransferSyntax: the data set is visibly not encoded as its TransferSyntaxUID says.
	WrongTransferSyntax
	// Truncated: an element reaches past the end of the file.
	Truncated
	// BadLength: an element reaches past the end of the item that holds it, or
	// has an undefined length where none is allowed.
	BadLength
	// BadVR: two bytes that are no value representation.
	BadVR
	// BadStructure: items or delimiters where none can be, or a group that no data set holds.
	BadStructure
	// TooDeep: more than MaxDepth nested sequences.
	TooDeep
	// TooMany: more than MaxElements elements.
	TooMany
	// ReadFailed: the underlying reader returned an error.
	ReadFailed
)

var damageText = [...]string{
	NoPreamble:          "no DICM preamble",
	NoTransferSyntax:    "no transfer syntax in the file meta information",
	WrongTransferSyntax: "data set not encoded as its transfer syntax says",
	Truncated:           "element reaches past the end of the file",
	BadLength:           "element reaches past the end of its item",
	BadVR:               "unknown value representation",
	BadStructure:        "misplaced item, delimiter or group",
	TooDeep:             "sequences nested too deep",
	TooMany:             "too many elements",
	ReadFailed:          "read failed",
}

// String describes d in a few words.
func (d Damage) String() string {
	if int(d) < len(damageText) && d != 0 {
		return damageText[d]
	}
	return "no damage"
}

// ScanError tells where and why a scan stopped or what it had to assume.
// NoPreamble, NoTransferSyntax and WrongTransferSyntax do not stop it.
type ScanError struct {
	Damage Damage
	Offset int64 // of the element in the file
	Tag    Tag   // zero when no tag could be read
	Err    error // only with ReadFailed
}

// Error describes the damage without any value of the file.
func (e *ScanError) Error() string {
	s := fmt.Sprintf("scan data set at byte %d, tag %v: %v", e.Offset, e.Tag, e.Damage)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the error of the reader, if that was the cause.
func (e *ScanError) Unwrap() error { return e.Err }

// Encoding is how elements are written: one of the three uncompressed forms of
// PS3.5 annex A.
type Encoding struct {
	Implicit  bool
	BigEndian bool
}

func (enc Encoding) order() binary.ByteOrder {
	if enc.BigEndian {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// flags of an element
const (
	flagUndefined = 1 << iota // undefined length: the value ends with a delimiter
	flagImplicit              // encoded without VR
	flagBigEndian
	flagSequence  // holds items that were scanned
	flagFragments // encapsulated pixel data
)

// element is one entry of the index. Entries are in file order, children right
// behind their parent.
type element struct {
	off    int64 // of the tag
	length int64 // of the value, delimiter of an undefined length included
	tag    Tag
	next   int32 // index of the first entry that is not inside this one
	vr     VR
	hdr    uint8 // bytes from off to the value
	depth  uint8 // number of sequences around it
	flags  uint8
}

func (e *element) value() int64 { return e.off + int64(e.hdr) }
func (e *element) end() int64   { return e.off + int64(e.hdr) + e.length }

// container is what the scan is inside of: the data set, a sequence or an item.
type container struct {
	end       int64 // exclusive, -1 for an undefined length
	limit     int64 // nearest known end around it
	elem      int32 // its entry, -1 for the data set
	sequence  bool
	tentative bool // opaque bytes that look like a sequence: on damage they are opaque again
	enc       Encoding
}

type scanner struct {
	r      io.ReaderAt
	size   int64
	head   []byte
	win    []byte // bytes of the file from winOff on
	winOff int64
	buf    []byte // storage of windows behind the head
	elems  []element
	stack  []container
	seen   int
}

// Scan indexes the Part-10 file of size bytes behind r. The Object keeps r and
// reads values from it later, so r must stay open as long as the Object is used.
//
// Scan always returns an Object. When the file is damaged it holds the elements
// in front of the damage and the error is a *ScanError; the same error is later
// available from [Object.Damage]. A deflated data set is recognised and not read.
func Scan(r io.ReaderAt, size int64) (*Object, error) {
	s := &scanner{r: r, size: size, elems: make([]element, 0, 320), stack: make([]container, 0, 16)}
	o := &Object{r: r, size: size}
	err := s.scan(o)
	o.head, o.elems = s.head, s.elems
	if o.metaCount > len(o.elems) {
		o.metaCount = len(o.elems)
	}
	o.index()
	if err == nil && o.assumed != nil {
		err = o.assumed
	}
	if err != nil {
		var se *ScanError
		if !errors.As(err, &se) {
			se = &ScanError{Damage: ReadFailed, Err: err}
		}
		o.damage = se
		return o, se
	}
	return o, nil
}

func (s *scanner) scan(o *Object) error {
	n := min(s.size, headSize)
	if n < 0 {
		n = 0
	}
	s.head = make([]byte, n)
	if k, err := s.r.ReadAt(s.head, 0); err != nil && (err != io.EOF || int64(k) < n) {
		s.head = s.head[:k]
		s.size = int64(k)
		if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			return &ScanError{Damage: ReadFailed, Err: err}
		}
	}
	s.win = s.head

	pos := int64(132)
	if len(s.head) < 132 || string(s.head[128:132]) != "DICM" {
		o.assumed = &ScanError{Damage: NoPreamble}
		pos = 0
		if len(s.head) >= 4 && string(s.head[:4]) == "DICM" {
			pos = 4
		}
		if !s.plausible(pos) {
			return o.assumed
		}
	}
	pos, err := s.meta(o, pos)
	o.metaCount = len(s.elems)
	o.dataOffset = pos
	if err != nil {
		return err
	}
	enc := Encoding{}
	switch o.transferSyntax {
	case ImplicitVRLittleEndian:
		enc.Implicit = true
	case ExplicitVRBigEndian:
		enc.BigEndian = true
	case DeflatedExplicitVRLittleEndian:
		o.deflated = true
		return nil
	}
	if err := s.settle(o, pos, &enc); err != nil {
		return err
	}
	o.enc = enc
	return s.dataSet(pos, enc)
}

// plausible tells whether a file without preamble may nevertheless start with
// file meta information or a data set.
func (s *scanner) plausible(pos int64) bool {
	b := s.head[min(pos, int64(len(s.head))):]
	if len(b) < 8 {
		return false
	}
	g := binary.LittleEndian.Uint16(b)
	return g == 2 || g == 8 || binary.BigEndian.Uint16(b) == 8
}

// meta reads the file meta information: group 2, always explicit little endian
// (PS3.10 7.1). It goes by the group of the tags; the group length is not trusted.
func (s *scanner) meta(o *Object, pos int64) (int64, error) {
	for {
		if s.size-pos < 8 {
			return pos, nil
		}
		b, err := s.need(pos, 8)
		if err != nil {
			return pos, err
		}
		if binary.LittleEndian.Uint16(b) != 2 {
			break
		}
		e, err := s.header(pos, Encoding{}, s.size)
		if err != nil {
			return pos, err
		}
		if e.flags&flagUndefined != 0 {
			return pos, &ScanError{Damage: BadLength, Offset: pos, Tag: e.tag}
		}
		e.next = int32(len(s.elems) + 1)
		s.elems = append(s.elems, e)
		if e.tag == TransferSyntaxUID && e.length <= 128 {
			v, err := s.need(e.value(), int(e.length))
			if err != nil {
				return pos, err
			}
			o.transferSyntax = trim(string(v))
		}
		pos = e.end()
	}
	if o.transferSyntax == "" && o.assumed == nil {
		o.assumed = &ScanError{Damage: NoTransferSyntax, Offset: pos}
	}
	return pos, nil
}

// settle compares the first element of the data set with the encoding that the
// transfer syntax promises and corrects enc when they visibly disagree, so that
// routing values can still be read; the disagreement is recorded.
func (s *scanner) settle(o *Object, pos int64, enc *Encoding) error {
	if s.size-pos < 8 {
		return nil
	}
	b, err := s.need(pos, 8)
	if err != nil {
		return err
	}
	looks := Encoding{}
	if le, be := binary.LittleEndian.Uint16(b), binary.BigEndian.Uint16(b); be < le {
		looks.BigEndian = true
	}
	known, _ := (VR(b[4])<<8 | VR(b[5])).Form()
	looks.Implicit = !known
	if looks.Implicit && looks.BigEndian {
		return nil // no such syntax: let the walk find out
	}
	if looks == *enc {
		return nil
	}
	if o.transferSyntax != "" && o.assumed == nil {
		o.assumed = &ScanError{Damage: WrongTransferSyntax, Offset: pos}
	}
	*enc = looks
	return nil
}

// need returns n ≤ windowSize bytes of the file at pos. The caller has checked
// that they lie inside the file. The slice is valid until the next call.
func (s *scanner) need(pos int64, n int) ([]byte, error) {
	if i := pos - s.winOff; i >= 0 && i+int64(n) <= int64(len(s.win)) {
		return s.win[i : i+int64(n)], nil
	}
	if pos+int64(n) <= int64(len(s.head)) {
		return s.head[pos : pos+int64(n)], nil
	}
	if s.buf == nil {
		s.buf = make([]byte, windowSize)
	}
	want := min(int64(windowSize), s.size-pos)
	k, err := s.r.ReadAt(s.buf[:want], pos)
	s.win, s.winOff = s.buf[:k], pos
	if k < n {
		if err == nil || err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, &ScanError{Damage: Truncated, Offset: pos}
		}
		return nil, &ScanError{Damage: ReadFailed, Offset: pos, Err: err}
	}
	return s.win[:n], nil
}

// header reads tag, VR and length at pos and checks that the value ends at or
// before limit. For an undefined length the entry's length is 0 for now.
func (s *scanner) header(pos int64, enc Encoding, limit int64) (element, error) {
	e := element{off: pos, hdr: 8}
	short := func() error {
		d := BadLength
		if limit == s.size {
			d = Truncated
		}
		return &ScanError{Damage: d, Offset: pos, Tag: e.tag}
	}
	if limit-pos < 8 {
		return e, short()
	}
	n := int64(12)
	if limit-pos < n {
		n = limit - pos
	}
	b, err := s.need(pos, int(n))
	if err != nil {
		return e, err
	}
	var length uint32
	if enc.BigEndian {
		e.flags |= flagBigEndian
		e.tag = Tag(binary.BigEndian.Uint16(b))<<16 | Tag(binary.BigEndian.Uint16(b[2:]))
	} else {
		e.tag = Tag(binary.LittleEndian.Uint16(b))<<16 | Tag(binary.LittleEndian.Uint16(b[2:]))
	}
	switch {
	case e.tag.Group() == 0xFFFE:
		if enc.Implicit {
			e.flags |= flagImplicit
		}
		length = enc.order().Uint32(b[4:])
	case enc.Implicit:
		e.flags |= flagImplicit
		e.vr = dictionary[e.tag]
		length = binary.LittleEndian.Uint32(b[4:])
	default:
		e.vr = VR(b[4])<<8 | VR(b[5])
		known, long := e.vr.Form()
		if !known {
			return e, &ScanError{Damage: BadVR, Offset: pos, Tag: e.tag}
		}
		if long {
			if len(b) < 12 {
				return e, short()
			}
			e.hdr = 12
			length = enc.order().Uint32(b[8:])
		} else {
			length = uint32(enc.order().Uint16(b[6:]))
		}
	}
	if length == 0xFFFFFFFF {
		e.flags |= flagUndefined
		return e, nil
	}
	e.length = int64(length)
	if e.length > limit-e.value() {
		return e, short()
	}
	return e, nil
}

// dataSet walks the data set from pos to the end of the file.
func (s *scanner) dataSet(pos int64, enc Encoding) error {
	s.stack = append(s.stack[:0], container{end: s.size, limit: s.size, elem: -1, enc: enc})
	for {
		next, err := s.step(pos)
		if err == nil {
			if next < 0 {
				return nil
			}
			pos = next
			continue
		}
		var se *ScanError
		if !errors.As(err, &se) || se.Damage == ReadFailed || se.Damage == TooMany {
			return err
		}
		if next = s.giveUp(); next < 0 {
			s.closeAll(pos)
			return err
		}
		pos = next
	}
}

// giveUp turns the innermost tentative sequence back into opaque bytes and
// returns where to go on, or -1 when there is none.
func (s *scanner) giveUp() int64 {
	for i := len(s.stack) - 1; i > 0; i-- {
		c := s.stack[i]
		if !c.tentative {
			continue
		}
		e := &s.elems[c.elem]
		e.flags &^= flagSequence
		e.next = c.elem + 1
		s.elems = s.elems[:c.elem+1]
		s.stack = s.stack[:i]
		return c.end
	}
	return -1
}

// closeAll ends the open sequences and items of a damaged file at pos, so that
// the entries read so far form a tree.
func (s *scanner) closeAll(pos int64) {
	for i := len(s.stack) - 1; i > 0; i-- {
		e := &s.elems[s.stack[i].elem]
		if e.flags&flagUndefined != 0 {
			e.length = pos - e.value()
		}
		e.next = int32(len(s.elems))
	}
}

// step reads the one thing at pos and returns where the next one is, or -1 at
// the end of the data set.
func (s *scanner) step(pos int64) (int64, error) {
	top := len(s.stack) - 1
	c := s.stack[top]
	if c.end == pos {
		if top == 0 {
			return -1, nil
		}
		s.elems[c.elem].next = int32(len(s.elems))
		s.stack = s.stack[:top]
		return pos, nil
	}
	e, err := s.header(pos, c.enc, c.limit)
	if err != nil {
		return 0, err
	}
	bad := func(d Damage) (int64, error) {
		return 0, &ScanError{Damage: d, Offset: pos, Tag: e.tag}
	}
	if s.seen++; s.seen > MaxElements {
		s.closeAll(pos)
		return bad(TooMany)
	}
	e.depth = uint8(s.depth())

	if c.sequence {
		switch {
		case e.tag == Item:
			return s.open(e, container{enc: c.enc}), nil
		case e.tag == SequenceDelimitationItem && c.end < 0 && e.length == 0:
			return s.closeUndefined(e.value()), nil
		}
		return bad(BadStructure)
	}
	if e.tag.Group() == 0xFFFE {
		if e.tag == ItemDelimitationItem && c.end < 0 && e.length == 0 && e.flags&flagUndefined == 0 {
			return s.closeUndefined(e.value()), nil
		}
		return bad(BadStructure)
	}
	if g := e.tag.Group(); g == 0 || g == 2 {
		return bad(BadStructure)
	}
	undefined := e.flags&flagUndefined != 0
	switch {
	case undefined && e.tag == PixelData:
		if e.vr != OB && e.vr != OW && e.vr != UN {
			return bad(BadLength)
		}
		return s.fragments(e, c)
	case e.vr == SQ, undefined && (e.vr == UN || c.enc.Implicit):
		inner := container{sequence: true, enc: c.enc}
		if e.vr == UN { // CP-246: the content is implicit VR little endian
			inner.enc = Encoding{Implicit: true}
		}
		if e.depth >= MaxDepth {
			return bad(TooDeep)
		}
		return s.open(e, inner), nil
	case undefined:
		return bad(BadLength)
	case e.length >= 8 && (e.vr == UN || e.vr == 0) && e.depth < MaxDepth:
		b, err := s.need(e.value(), 8)
		if err != nil {
			return 0, err
		}
		if binary.LittleEndian.Uint32(b) == 0xE000FFFE { // an item tag: perhaps a sequence
			return s.open(e, container{sequence: true, tentative: true, enc: Encoding{Implicit: true}}), nil
		}
	}
	e.next = int32(len(s.elems) + 1)
	s.elems = append(s.elems, e)
	return e.end(), nil
}

// depth counts the sequences around the current position.
func (s *scanner) depth() int { return len(s.stack) / 2 }

// open records e and enters it.
func (s *scanner) open(e element, c container) int64 {
	outer := s.stack[len(s.stack)-1]
	c.elem = int32(len(s.elems))
	c.end, c.limit = -1, outer.limit
	if e.flags&flagUndefined == 0 {
		c.end = e.end()
		c.limit = c.end
	}
	e.flags |= flagSequence
	e.next = c.elem + 1
	s.elems = append(s.elems, e)
	s.stack = append(s.stack, c)
	return e.value()
}

// closeUndefined leaves the innermost container, whose delimiter ends at pos.
func (s *scanner) closeUndefined(pos int64) int64 {
	top := len(s.stack) - 1
	e := &s.elems[s.stack[top].elem]
	e.length = pos - e.value()
	e.next = int32(len(s.elems))
	s.stack = s.stack[:top]
	return pos
}

// fragments skips encapsulated pixel data (PS3.5 A.4): items of defined length
// up to a sequence delimiter. Items are always little endian there.
func (s *scanner) fragments(e element, c container) (int64, error) {
	e.flags |= flagFragments
	e.next = int32(len(s.elems) + 1)
	for pos := e.value(); ; {
		f, err := s.header(pos, Encoding{}, c.limit)
		if err != nil {
			return 0, err
		}
		if s.seen++; s.seen > MaxElements {
			s.closeAll(e.off)
			return 0, &ScanError{Damage: TooMany, Offset: pos, Tag: e.tag}
		}
		switch {
		case f.tag == SequenceDelimitationItem && f.length == 0:
			e.length = f.value() - e.value()
			s.elems = append(s.elems, e)
			return e.end(), nil
		case f.tag != Item || f.flags&flagUndefined != 0:
			return 0, &ScanError{Damage: BadStructure, Offset: pos, Tag: f.tag}
		}
		pos = f.end()
	}
}
