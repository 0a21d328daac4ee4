package dcm

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"math"
	"sort"
	"strconv"
	"strings"
	"sync"
)

// maxText is the most that String reads of one value. Longer values are cut.
const maxText = 16 << 10

// Object is the index of one stored file. It is immutable after Scan and safe
// for concurrent use as far as its reader is (an *os.File is).
type Object struct {
	r              io.ReaderAt
	size           int64
	head           []byte // the file's first bytes
	elems          []element
	metaCount      int     // elems[:metaCount] are group 2
	top            []int32 // entries of the data set's own elements
	ordered        bool    // their tags strictly ascend
	enc            Encoding
	transferSyntax string
	dataOffset     int64
	deflated       bool
	assumed        *ScanError
	damage         *ScanError

	once  sync.Once
	notes any
}

// Remember returns what compute returned the first time it was called for o.
// One package may keep what it learned about the Object here: the derived
// objects' rules do.
func (o *Object) Remember(compute func() any) any {
	o.once.Do(func() { o.notes = compute() })
	return o.notes
}

// index lists the top-level elements.
func (o *Object) index() {
	o.ordered = true
	var last Tag
	for i := int32(o.metaCount); int(i) < len(o.elems); i = o.elems[i].next {
		o.top = append(o.top, i)
		if t := o.elems[i].tag; t <= last {
			o.ordered = false
		} else {
			last = t
		}
	}
}

// Size is the length of the file in bytes.
func (o *Object) Size() int64 { return o.size }

// TransferSyntaxUID is the one of the file meta information, empty if absent.
func (o *Object) TransferSyntaxUID() string { return o.transferSyntax }

// DataSetOffset is the position of the first byte behind the file meta
// information: what follows is the data set as it was sent.
func (o *Object) DataSetOffset() int64 { return o.dataOffset }

// Encoding is how the data set's own elements are encoded.
func (o *Object) Encoding() Encoding { return o.enc }

// Deflated reports a deflated data set, of which nothing was read (PS3.5 A.5).
func (o *Object) Deflated() bool { return o.deflated }

// Ordered reports whether the top-level tags strictly ascend, as PS3.5 7.1
// demands. An Editor refuses other objects.
func (o *Object) Ordered() bool { return o.ordered }

// Damage is the *ScanError that Scan returned, nil for a sound file.
func (o *Object) Damage() *ScanError { return o.damage }

// Element is a handle to one element of an Object: cheap to copy, valid as long
// as the Object. The zero Element is none: it has no children, no text and no
// number; its other methods must not be called.
type Element struct {
	o *Object
	i int32
}

// OK reports whether e is an element at all.
func (e Element) OK() bool { return e.o != nil }

func (e Element) raw() *element { return &e.o.elems[e.i] }

// Tag returns the tag, FFFE,E000 for an item.
func (e Element) Tag() Tag { return e.raw().tag }

// VR is the encoded VR, or for an implicit data set the dictionary's, or zero.
func (e Element) VR() VR {
	v := e.raw().vr
	if v == usOrSS {
		if n, _ := e.o.Int(PixelRepresentation); n == 1 {
			return SS
		}
		return US
	}
	return v
}

// Offset is the position of the tag in the file.
func (e Element) Offset() int64 { return e.raw().off }

// ValueOffset is the position of the value in the file.
func (e Element) ValueOffset() int64 { return e.raw().value() }

// Length is the value's length in bytes; with an undefined length it includes
// the delimiter.
func (e Element) Length() int64 { return e.raw().length }

// End is the position behind the element.
func (e Element) End() int64 { return e.raw().end() }

// Depth is the number of sequences around the element.
func (e Element) Depth() int { return int(e.raw().depth) }

// IsSequence reports whether the element holds items that were scanned.
func (e Element) IsSequence() bool { return e.raw().flags&flagSequence != 0 }

// Encapsulated reports pixel data in fragments.
func (e Element) Encapsulated() bool { return e.raw().flags&flagFragments != 0 }

// Children yields the items of a sequence or the elements of an item, in file order.
func (e Element) Children() iter.Seq[Element] {
	return func(yield func(Element) bool) {
		if !e.OK() {
			return
		}
		r := e.raw()
		if r.flags&flagSequence == 0 {
			return
		}
		for j := e.i + 1; j < r.next; j = e.o.elems[j].next {
			if !yield(Element{e.o, j}) {
				return
			}
		}
	}
}

// Child returns the first child of an item that has tag t.
func (e Element) Child(t Tag) Element {
	for c := range e.Children() {
		if c.Tag() == t {
			return c
		}
	}
	return Element{}
}

// Private yields every private data element at any depth with its private
// creator, looked up in the data set or item that holds it (PS3.5 7.8.1). The
// creator is empty if its block is not reserved.
func (o *Object) Private() iter.Seq2[Element, string] {
	return func(yield func(Element, string) bool) {
		var reserved [MaxDepth + 2]map[uint32]string // by depth: block -> creator
		for i := o.metaCount; i < len(o.elems); i++ {
			e := &o.elems[i]
			if e.tag == Item {
				clear(reserved[e.depth])
				continue
			}
			if !e.tag.Private() {
				continue
			}
			n := e.tag.Element()
			switch {
			case n >= 0x10 && n <= 0xFF:
				if reserved[e.depth] == nil {
					reserved[e.depth] = map[uint32]string{}
				}
				reserved[e.depth][uint32(e.tag)] = Element{o, int32(i)}.String()
			case n >= 0x1000:
				block := uint32(e.tag)&0xFFFF0000 | uint32(n>>8)
				if !yield(Element{o, int32(i)}, reserved[e.depth][block]) {
					return
				}
			}
		}
	}
}

// Elements yields the data set's own elements in file order.
func (o *Object) Elements() iter.Seq[Element] {
	return func(yield func(Element) bool) {
		for _, i := range o.top {
			if !yield(Element{o, i}) {
				return
			}
		}
	}
}

// All yields every element and item at every depth in file order.
func (o *Object) All() iter.Seq[Element] {
	return func(yield func(Element) bool) {
		for i := o.metaCount; i < len(o.elems); i++ {
			if !yield(Element{o, int32(i)}) {
				return
			}
		}
	}
}

// Find returns the first top-level element with tag t, group 2 included.
func (o *Object) Find(t Tag) Element {
	if t.Group() == 2 {
		for i := range o.elems[:o.metaCount] {
			if o.elems[i].tag == t {
				return Element{o, int32(i)}
			}
		}
		return Element{}
	}
	if o.ordered {
		k := sort.Search(len(o.top), func(k int) bool { return o.elems[o.top[k]].tag >= t })
		if k < len(o.top) && o.elems[o.top[k]].tag == t {
			return Element{o, o.top[k]}
		}
		return Element{}
	}
	for _, i := range o.top {
		if o.elems[i].tag == t {
			return Element{o, i}
		}
	}
	return Element{}
}

// Has reports whether the data set has an element t, empty or not.
func (o *Object) Has(t Tag) bool { return o.Find(t).OK() }

// Bytes reads the value of t. It is an error if t is absent or its value is
// longer than limit bytes.
func (o *Object) Bytes(t Tag, limit int) ([]byte, error) {
	e := o.Find(t)
	if !e.OK() {
		return nil, fmt.Errorf("read %v: no such element", t)
	}
	return e.Bytes(limit)
}

// Bytes reads the value of e, or fails if it is longer than limit bytes.
func (e Element) Bytes(limit int) ([]byte, error) {
	r := e.raw()
	if r.length > int64(limit) {
		return nil, fmt.Errorf("read %v: %d bytes, limit %d", r.tag, r.length, limit)
	}
	b := make([]byte, r.length)
	if err := e.o.readAt(b, r.value()); err != nil {
		return nil, fmt.Errorf("read %v: %w", r.tag, err)
	}
	return b, nil
}

// ReadAt fills b with the value's bytes from off on, which must all lie in it.
func (e Element) ReadAt(b []byte, off int64) error {
	r := e.raw()
	if off < 0 || off > r.length-int64(len(b)) {
		return fmt.Errorf("read %v: bytes %d to %d of %d", r.tag, off, off+int64(len(b)), r.length)
	}
	if err := e.o.readAt(b, r.value()+off); err != nil {
		return fmt.Errorf("read %v: %w", r.tag, err)
	}
	return nil
}

// Encoded reads the whole element, header included, at most limit bytes.
func (e Element) Encoded(limit int) ([]byte, error) {
	r := e.raw()
	n := r.end() - r.off
	if n > int64(limit) {
		return nil, fmt.Errorf("read %v: %d bytes, limit %d", r.tag, n, limit)
	}
	b := make([]byte, n)
	if err := e.o.readAt(b, r.off); err != nil {
		return nil, fmt.Errorf("read %v: %w", r.tag, err)
	}
	return b, nil
}

// EqualEncoding reports whether two elements, of one object or two, are the same
// bytes, header included.
func (e Element) EqualEncoding(f Element) (bool, error) {
	a, b := e.raw(), f.raw()
	left := a.end() - a.off
	if left != b.end()-b.off {
		return false, nil
	}
	ha, hb := e.o.head, f.o.head
	if a.end() <= int64(len(ha)) && b.end() <= int64(len(hb)) {
		return string(ha[a.off:a.end()]) == string(hb[b.off:b.end()]), nil
	}
	const chunk = 32 << 10
	n := min(left, chunk)
	buf := make([]byte, 2*n)
	for pos := int64(0); pos < left; pos += n {
		k := min(n, left-pos)
		x, y := buf[:k], buf[n:n+k]
		if err := e.o.readAt(x, a.off+pos); err != nil {
			return false, fmt.Errorf("read %v: %w", a.tag, err)
		}
		if err := f.o.readAt(y, b.off+pos); err != nil {
			return false, fmt.Errorf("read %v: %w", b.tag, err)
		}
		if string(x) != string(y) {
			return false, nil
		}
	}
	return true, nil
}

// Undefined reports an undefined length.
func (e Element) Undefined() bool { return e.raw().flags&flagUndefined != 0 }

// readAt fills b with the file's bytes from off on.
func (o *Object) readAt(b []byte, off int64) error {
	if end := off + int64(len(b)); end <= int64(len(o.head)) {
		copy(b, o.head[off:end])
		return nil
	}
	n, err := o.r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// prefix reads at most limit bytes of the value, without a copy where it can.
func (e Element) prefix(limit int64) []byte {
	r := e.raw()
	n := min(r.length, limit)
	if end := r.value() + n; end <= int64(len(e.o.head)) {
		return e.o.head[r.value():end]
	}
	b := make([]byte, n)
	if e.o.readAt(b, r.value()) != nil {
		return nil
	}
	return b
}

// trim removes the padding of a text value (PS3.5 6.2).
func trim(s string) string { return strings.Trim(s, " \x00") }

// String is the text value of t in UTF-8, values joined by backslashes, padding
// removed; numbers of binary VRs are formatted. It is empty for an absent,
// empty or non-text element. See [Element.String].
func (o *Object) String(t Tag) string {
	return o.Find(t).String()
}

// Strings splits String at the backslashes and trims each value; nil if empty.
func (o *Object) Strings(t Tag) []string {
	return o.Find(t).Strings()
}

// Strings is the element's text split into its values; nil if empty.
func (e Element) Strings() []string {
	s := e.String()
	if s == "" {
		return nil
	}
	v := strings.Split(s, `\`)
	for i := range v {
		v[i] = trim(v[i])
	}
	return v
}

// String is the element's text value in UTF-8. Characters that the declared
// character set does not have become U+FFFD; values longer than 16 KiB are cut.
func (e Element) String() string {
	if !e.OK() {
		return ""
	}
	switch v := e.VR(); v {
	case AE, AS, CS, DA, DS, DT, IS, TM, UI, UR:
		return trim(ascii(e.prefix(maxText)))
	case LO, LT, PN, SH, ST, UC, UT:
		return trim(e.o.decode(e.prefix(maxText)))
	case UN, 0:
		// implicit data sets and unknown elements: text if it looks like it
		b := e.prefix(256)
		if e.Length() > 256 || e.IsSequence() {
			return ""
		}
		s := trim(string(b))
		for i := 0; i < len(s); i++ {
			if s[i] < ' ' || s[i] > '~' {
				return ""
			}
		}
		return s
	case US, SS, UL, SL, UV, SV:
		if n, ok := e.Int(); ok {
			return strconv.FormatInt(n, 10)
		}
	case FL, FD:
		if f, ok := e.Float(); ok {
			return strconv.FormatFloat(f, 'g', -1, 64)
		}
	}
	return ""
}

// ascii makes valid UTF-8 of a value whose VR allows only the default repertoire.
func ascii(b []byte) string {
	for _, c := range b {
		if c >= 0x80 {
			return strings.ToValidUTF8(string(b), "\uFFFD")
		}
	}
	return string(b)
}

// Int is the first value of t as an integer: IS, DS without a fraction, or a
// binary integer. False if there is none.
func (o *Object) Int(t Tag) (int64, bool) {
	return o.Find(t).Int()
}

// Int is the first value of e as an integer.
func (e Element) Int() (int64, bool) {
	if !e.OK() {
		return 0, false
	}
	switch v := e.VR(); v {
	case US, SS, UL, SL, UV, SV:
		n := 2
		if v == UL || v == SL {
			n = 4
		} else if v == UV || v == SV {
			n = 8
		}
		b := e.prefix(int64(n))
		if len(b) < n {
			return 0, false
		}
		order := e.order()
		switch v {
		case US:
			return int64(order.Uint16(b)), true
		case SS:
			return int64(int16(order.Uint16(b))), true
		case UL:
			return int64(order.Uint32(b)), true
		case SL:
			return int64(int32(order.Uint32(b))), true
		}
		u := order.Uint64(b)
		return int64(u), v == SV || u <= math.MaxInt64
	case IS, DS:
		s := firstValue(e.prefix(64))
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n, true
		}
		if f, err := strconv.ParseFloat(s, 64); err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
			return int64(f), true
		}
	}
	return 0, false
}

// Float is the first value of t as a number; false if there is none or it is
// not finite.
func (o *Object) Float(t Tag) (float64, bool) {
	return o.Find(t).Float()
}

// Float is the first value of e as a finite number.
func (e Element) Float() (float64, bool) {
	if !e.OK() {
		return 0, false
	}
	var f float64
	switch e.VR() {
	case FL:
		b := e.prefix(4)
		if len(b) < 4 {
			return 0, false
		}
		f = float64(math.Float32frombits(e.order().Uint32(b)))
	case FD:
		b := e.prefix(8)
		if len(b) < 8 {
			return 0, false
		}
		f = math.Float64frombits(e.order().Uint64(b))
	case DS, IS:
		var err error
		if f, err = strconv.ParseFloat(firstValue(e.prefix(64)), 64); err != nil {
			return 0, false
		}
	default:
		n, ok := e.Int()
		return float64(n), ok
	}
	return f, !math.IsNaN(f) && !math.IsInf(f, 0)
}

// order is the byte order that this element is encoded in.
func (e Element) order() binary.ByteOrder {
	if e.raw().flags&flagBigEndian != 0 {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

func firstValue(b []byte) string {
	s := string(b)
	if i := strings.IndexByte(s, '\\'); i >= 0 {
		s = s[:i]
	}
	return trim(s)
}
