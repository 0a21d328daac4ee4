package transcode

import (
	"bufio"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/suyashkumar/dicom/pkg/tag"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// MaxInflated bounds what a deflated data set may become, in bytes.
const MaxInflated = 4 << 30

// MaxTargets is the most transfer syntaxes that Targets names.
const MaxTargets = 2

// Targets lists the transfer syntaxes that a data set in the given one can be
// written in without loss, the best first; none for compressed and unknown ones.
func Targets(from string) []string {
	switch from {
	case dcm.ExplicitVRLittleEndian:
		return []string{dcm.ImplicitVRLittleEndian}
	case dcm.ImplicitVRLittleEndian:
		return []string{dcm.ExplicitVRLittleEndian}
	case dcm.DeflatedExplicitVRLittleEndian, dcm.ExplicitVRBigEndian:
		return []string{dcm.ExplicitVRLittleEndian, dcm.ImplicitVRLittleEndian}
	}
	return nil
}

// Name is what people call a transfer syntax that Targets can name.
func Name(uid string) string {
	switch uid {
	case dcm.ImplicitVRLittleEndian:
		return "Implicit VR Little Endian"
	case dcm.ExplicitVRLittleEndian:
		return "Explicit VR Little Endian"
	}
	return uid
}

// Error says that a data set cannot be written in another transfer syntax
// because it is not what its own one says.
type Error struct {
	Offset int64 // in the data set, inflated
	Tag    dcm.Tag
	Why    string
}

// Error names the place, without any value of the data set.
func (e *Error) Error() string {
	return fmt.Sprintf("convert data set at byte %d, tag %v: %s", e.Offset, e.Tag, e.Why)
}

// NewReader gives out the data set behind r, which is in the transfer syntax
// from, in the transfer syntax to, one of Targets(from). Its memory is fixed: a
// value goes through in pieces. Sequences and items get undefined lengths, so a
// private sequence stays one also without its VR. Group lengths (gggg,0000), retired
// and wrong behind the conversion, are left out (PS3.5 7.2).
//
// The reader ends with io.EOF only after r has. It fails with an *Error when the
// data set is damaged, after it has read r to its end, and with r's own error, if
// there is one, before that.
func NewReader(r io.Reader, from, to string) io.Reader {
	src := &source{r: r}
	c := &converter{source: src, to: dcm.Encoding{Implicit: to == dcm.ImplicitVRLittleEndian}, limit: -1}
	enc := dcm.Encoding{Implicit: from == dcm.ImplicitVRLittleEndian, BigEndian: from == dcm.ExplicitVRBigEndian}
	in := io.Reader(src)
	if from == dcm.DeflatedExplicitVRLittleEndian {
		in, c.limit = flate.NewReader(src), MaxInflated
	}
	c.in = bufio.NewReaderSize(in, 4<<10)
	c.stack = append(c.stack, frame{end: -1, enc: enc})
	supported := false
	for _, t := range Targets(from) {
		supported = supported || t == to
	}
	if !supported {
		c.err = fmt.Errorf("convert data set from transfer syntax %q to %q: not possible", from, to)
	}
	return c
}

// source remembers how its reader ended, so that its errors are told from those
// of the decompressor.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.err = err
	return n, err
}

// frame is what the converter is inside of: the data set, a sequence or an item.
type frame struct {
	end      int64 // of the source, exclusive; -1: a delimiter, or the end of the source, ends it
	sequence bool
	enc      dcm.Encoding // of the source
	signed   bool         // PixelRepresentation of the data set or item, or of what is around it
}

type converter struct {
	source *source
	in     *bufio.Reader
	to     dcm.Encoding
	limit  int64 // of pos; -1: none
	pos    int64 // bytes taken from in
	stack  []frame
	out    []byte   // waits to be given out
	buf    [24]byte // of out
	head   [12]byte // of an element in the source
	value  int64    // bytes of the value that are still to come
	drop   bool     // and that are not given out
	unit   int      // bytes that are reversed in them, 1: none
	tag    dcm.Tag
	err    error
}

// Read implements io.Reader.
func (c *converter) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if len(c.out) > 0 {
			n := copy(p, c.out)
			c.out = c.out[n:]
			return n, nil
		}
		if c.err != nil {
			return 0, c.err
		}
		if c.value > 0 {
			n, err := c.pass(p)
			c.fail(err)
			if n > 0 {
				return n, nil
			}
			continue
		}
		c.fail(c.step())
	}
}

// fail ends the conversion with err. The source is read to its end first: an
// error of its own, for instance a wrong checksum, is the true reason.
func (c *converter) fail(err error) {
	if err == nil {
		return
	}
	c.err = err
	if c.source.err == nil {
		_, _ = io.Copy(io.Discard, c.source) // the error is in c.source.err
	}
	if c.source.err != nil && c.source.err != io.EOF {
		c.err = c.source.err
	}
}

func (c *converter) bad(format string, args ...any) error {
	return &Error{Offset: c.pos, Tag: c.tag, Why: fmt.Sprintf(format, args...)}
}

// broken turns an error of the input into one of the data set.
func (c *converter) broken(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return c.bad("ends inside an element")
	}
	return c.bad("%v", err) // of the decompressor; the source's own takes its place in fail
}

// take fills b from the input.
func (c *converter) take(b []byte) error {
	n, err := io.ReadFull(c.in, b)
	c.pos += int64(n)
	if err != nil {
		return c.broken(err)
	}
	return c.checkLimit()
}

func (c *converter) checkLimit() error {
	if c.limit >= 0 && c.pos > c.limit {
		return c.bad("inflates to more than %d bytes", c.limit)
	}
	return nil
}

// pass gives out a piece of the value, in the byte order of the target.
func (c *converter) pass(p []byte) (int, error) {
	b := p[:min(int64(len(p)), c.value)]
	switch {
	case c.drop:
		b = c.buf[:min(int64(len(c.buf)), c.value)]
	case c.unit > 1 && len(b) < c.unit:
		b = c.buf[:c.unit] // through out, as p is too short for one
	}
	b = b[:len(b)-len(b)%c.unit]
	if err := c.take(b); err != nil {
		return 0, err
	}
	c.value -= int64(len(b))
	if c.drop {
		return 0, nil
	}
	for u := b; c.unit > 1 && len(u) > 0; u = u[c.unit:] {
		for i, j := 0, c.unit-1; i < j; i, j = i+1, j-1 {
			u[i], u[j] = u[j], u[i]
		}
	}
	if &b[0] == &c.buf[0] {
		c.out = b
		return 0, nil
	}
	return len(b), nil
}

// step takes the next header, or notes the end of something.
func (c *converter) step() error {
	c.out = c.buf[:0]
	c.tag = 0
	top := len(c.stack) - 1
	f := &c.stack[top]
	if f.end >= 0 && c.pos == f.end {
		c.close()
		return nil
	}
	if top == 0 {
		if _, err := c.in.Peek(1); err == io.EOF {
			if c.source.err == nil { // behind deflated data: the padding, and what follows it
				_, _ = io.Copy(io.Discard, c.source)
			}
			return io.EOF
		}
	}
	e, err := c.header(f)
	if err != nil {
		return err
	}
	if f.sequence {
		switch {
		case e.tag == dcm.Item:
			return c.open(e, f.enc)
		case e.tag == dcm.SequenceDelimitationItem && f.end < 0 && e.length == 0:
			c.close()
			return nil
		}
		return c.bad("no item in a sequence")
	}
	switch {
	case e.tag == dcm.ItemDelimitationItem && top > 0 && f.end < 0 && e.length == 0:
		c.close()
		return nil
	case e.tag.Group() == 0xFFFE:
		return c.bad("misplaced item or delimiter")
	}
	return c.element(e, f)
}

// element is the header of one element in the source.
type element struct {
	tag       dcm.Tag
	vr        dcm.VR // 0: not known
	length    int64
	undefined bool
}

// header reads tag, VR and length and checks that the value ends inside f.
func (c *converter) header(f *frame) (element, error) {
	var e element
	if err := c.take(c.head[:8]); err != nil {
		return e, err
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if f.enc.BigEndian {
		order = binary.BigEndian
	}
	e.tag = dcm.Tag(order.Uint16(c.head[:]))<<16 | dcm.Tag(order.Uint16(c.head[2:]))
	c.tag = e.tag
	length := order.Uint32(c.head[4:])
	switch {
	case e.tag.Group() == 0xFFFE:
	case f.enc.Implicit:
		e.vr = lookup(e.tag, f.signed)
	default:
		e.vr = dcm.VR(c.head[4])<<8 | dcm.VR(c.head[5])
		known, long := e.vr.Form()
		if !known {
			return e, c.bad("unknown value representation")
		}
		length = uint32(order.Uint16(c.head[6:]))
		if long {
			if err := c.take(c.head[8:12]); err != nil {
				return e, err
			}
			length = order.Uint32(c.head[8:])
		}
	}
	if length == 0xFFFFFFFF {
		e.undefined = true
		return e, nil
	}
	e.length = int64(length)
	for i := len(c.stack) - 1; i >= 0; i-- {
		if end := c.stack[i].end; end >= 0 {
			if c.pos+e.length > end {
				return e, c.bad("reaches past the end of its item")
			}
			break
		}
	}
	return e, nil
}

// element writes the header of an element of a data set or item, and enters a sequence.
func (c *converter) element(e element, f *frame) error {
	switch {
	case e.undefined && e.tag == dcm.PixelData:
		return c.bad("compressed pixel data in an uncompressed transfer syntax")
	case e.vr == dcm.SQ, e.undefined && (f.enc.Implicit || e.vr == dcm.UN):
		inner := f.enc
		if e.vr == dcm.UN { // CP-246: the content is implicit VR little endian
			inner = dcm.Encoding{Implicit: true}
		}
		return c.open(e, inner)
	case e.undefined:
		return c.bad("undefined length")
	}
	c.value, c.drop, c.unit = e.length, e.tag.Element() == 0, 1
	if c.drop {
		return nil
	}
	if f.enc.BigEndian {
		c.unit = unit(e.vr)
		if e.length%int64(c.unit) != 0 {
			return c.bad("%d bytes are no whole number of values", e.length)
		}
	}
	if e.tag == dcm.PixelRepresentation && e.length == 2 {
		b, err := c.in.Peek(2)
		if err != nil {
			return c.broken(err)
		}
		f.signed = b[0]|b[1] == 1 // 0 or 1, in either byte order
	}
	c.out = c.appendHeader(c.out, e.tag, e.vr, uint32(e.length))
	return nil
}

// open enters a sequence or an item.
func (c *converter) open(e element, inner dcm.Encoding) error {
	if len(c.stack) > 2*dcm.MaxDepth {
		return c.bad("sequences nested too deep")
	}
	n := frame{end: -1, sequence: e.tag != dcm.Item, enc: inner, signed: c.stack[len(c.stack)-1].signed}
	if !e.undefined {
		n.end = c.pos + e.length
	}
	c.stack = append(c.stack, n)
	c.out = c.appendHeader(c.out, e.tag, dcm.SQ, 0xFFFFFFFF)
	return nil
}

// close leaves the innermost sequence or item.
func (c *converter) close() {
	top := len(c.stack) - 1
	t := dcm.ItemDelimitationItem
	if c.stack[top].sequence {
		t = dcm.SequenceDelimitationItem
	}
	c.stack = c.stack[:top]
	c.out = c.appendHeader(c.out, t, 0, 0)
}

// appendHeader writes a header in the target's encoding, which is little endian.
func (c *converter) appendHeader(dst []byte, t dcm.Tag, v dcm.VR, length uint32) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, t.Group())
	dst = binary.LittleEndian.AppendUint16(dst, t.Element())
	if c.to.Implicit || t.Group() == 0xFFFE {
		return binary.LittleEndian.AppendUint32(dst, length)
	}
	known, long := v.Form()
	if !known || !long && length > 0xFFFE { // PS3.5 6.2.2
		v, long = dcm.UN, true
	}
	dst = append(dst, byte(v>>8), byte(v))
	if long {
		dst = append(dst, 0, 0)
		return binary.LittleEndian.AppendUint32(dst, length)
	}
	return binary.LittleEndian.AppendUint16(dst, uint16(length))
}

// unit is how many bytes of a value are one number (PS3.5 7.3); 1 for text, bytes and
// UN, which is never swapped (PS3.5 6.2.2).
func unit(v dcm.VR) int {
	switch v {
	case dcm.US, dcm.SS, dcm.OW, dcm.AT:
		return 2
	case dcm.UL, dcm.SL, dcm.FL, dcm.OF, dcm.OL:
		return 4
	case dcm.FD, dcm.OD, dcm.OV, dcm.UV, dcm.SV:
		return 8
	}
	return 1
}

// lookup finds the VR of an element that was written without one; 0: not known.
// signed is what PixelRepresentation says, which decides between US and SS.
func lookup(t dcm.Tag, signed bool) dcm.VR {
	switch {
	case t.Element() == 0:
		return dcm.UL
	case t.Private():
		if n := t.Element(); n >= 0x10 && n <= 0xFF {
			return dcm.LO // private creator, PS3.5 7.8.1
		}
		return 0
	case t.Group()&0xFF00 == 0x6000 || t.Group()&0xFF00 == 0x5000: // repeating groups, PS3.5 7.6
		t &= 0xFF00FFFF
	}
	info, err := tag.Find(tag.Tag{Group: t.Group(), Element: t.Element()})
	if err != nil {
		return 0
	}
	var v dcm.VR
	for i, s := range info.VRs {
		w := dcm.VR(0)
		if len(s) == 2 {
			w = dcm.VR(s[0])<<8 | dcm.VR(s[1])
		}
		if i == 0 || w == dcm.OW || w == dcm.SS && signed && v == dcm.US {
			v = w
		}
	}
	if known, _ := v.Form(); !known {
		return 0
	}
	return v
}
