package pdu

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/grailbio/go-dicom/dicomio"
)

// ApplicationContext is the only application context name (PS3.7 annex A.2.1).
const ApplicationContext = "1.2.840.10008.3.1.1.1"

// ProtocolVersion1 is bit 0 of the protocol version field, the only version.
const ProtocolVersion1 = 1

// Item types of the associate PDUs (PS3.8 section 9.3.2, PS3.7 annex D.3.3).
const (
	itemApplicationContext = 0x10
	itemContextRQ          = 0x20
	itemContextAC          = 0x21
	itemAbstractSyntax     = 0x30
	itemTransferSyntax     = 0x40
	itemUserInformation    = 0x50
	itemMaxLength          = 0x51
	itemClassUID           = 0x52
	itemVersionName        = 0x55
)

// ContextRQ is a proposed presentation context (PS3.8 section 9.3.2.2).
type ContextRQ struct {
	ID               byte // odd
	AbstractSyntax   string
	TransferSyntaxes []string
}

// ContextResult says what became of a proposed context (PS3.8 table 9-18).
type ContextResult byte

// The results of PS3.8 table 9-18.
const (
	Accepted                     ContextResult = 0
	UserRejection                ContextResult = 1
	NoReason                     ContextResult = 2
	AbstractSyntaxNotSupported   ContextResult = 3
	TransferSyntaxesNotSupported ContextResult = 4
	maxContextResult                           = TransferSyntaxesNotSupported
	maxAETitle                                 = 16
	maxVersionName                             = 16
	maxUID                                     = 64
	maxItem                                    = 1<<16 - 1
)

// String returns the words of the standard.
func (r ContextResult) String() string {
	switch r {
	case Accepted:
		return "acceptance"
	case UserRejection:
		return "user rejection"
	case NoReason:
		return "no reason"
	case AbstractSyntaxNotSupported:
		return "abstract syntax not supported"
	case TransferSyntaxesNotSupported:
		return "transfer syntaxes not supported"
	}
	return fmt.Sprintf("result %d", byte(r))
}

// ContextAC answers one proposed context (PS3.8 section 9.3.3.2).
// TransferSyntax means something only when Result is Accepted.
type ContextAC struct {
	ID             byte
	Result         ContextResult
	TransferSyntax string
}

// UserInformation holds the user items that this implementation knows. Others,
// such as role selection, asynchronous operations, extended negotiation and
// user identity, are skipped when read: leaving them unanswered means their
// defaults (PS3.7 annex D.3.3).
type UserInformation struct {
	MaxLength                 uint32 // bytes of P-DATA-TF that the sender takes; 0 = no limit
	HasMaxLength              bool   // the item was there; set by the decoder, the encoder always writes it
	ImplementationClassUID    string
	ImplementationVersionName string // ≤ 16 bytes, may be empty
}

// AssociateRQ proposes an association (PS3.8 section 9.3.2).
type AssociateRQ struct {
	ProtocolVersion    uint16 // bit set; see ProtocolVersion1
	CalledAETitle      string // ≤ 16 bytes, without padding
	CallingAETitle     string
	ApplicationContext string
	Contexts           []ContextRQ
	User               UserInformation
}

// AssociateAC accepts one (PS3.8 section 9.3.3). The AE titles repeat those of
// the request and are not to be tested by the receiver.
type AssociateAC struct {
	ProtocolVersion    uint16
	CalledAETitle      string
	CallingAETitle     string
	ApplicationContext string
	Contexts           []ContextAC
	User               UserInformation
}

// Type returns TypeAssociateRQ.
func (*AssociateRQ) Type() Type { return TypeAssociateRQ }

// Type returns TypeAssociateAC.
func (*AssociateAC) Type() Type { return TypeAssociateAC }

// encoder writes items whose length is only known once their content is.
type encoder struct {
	*dicomio.Encoder
	err error
}

func newEncoder() *encoder {
	return &encoder{Encoder: dicomio.NewBytesEncoder(binary.BigEndian, dicomio.UnknownVR)}
}

func (e *encoder) fail(format string, args ...any) {
	if e.err == nil {
		e.err = fmt.Errorf(format, args...)
	}
}

// item writes one item: type, reserved byte, 16-bit length, content.
func (e *encoder) item(kind byte, content []byte) {
	if len(content) > maxItem {
		e.fail("item 0x%02X of %d bytes is longer than %d", kind, len(content), maxItem)
		return
	}
	e.WriteByte(kind)
	e.WriteByte(0)
	e.WriteUInt16(uint16(len(content)))
	e.WriteBytes(content)
}

// uid writes an item that holds one UID, which PS3.8 annex F leaves unpadded.
func (e *encoder) uid(kind byte, uid string) {
	if len(uid) > maxUID {
		e.fail("item 0x%02X: UID of %d characters is longer than %d", kind, len(uid), maxUID)
		return
	}
	e.item(kind, []byte(uid))
}

// title writes an AE title padded with spaces to 16 bytes.
func (e *encoder) title(s string) {
	if len(s) > maxAETitle {
		e.fail("AE title of %d bytes is longer than %d", len(s), maxAETitle)
		return
	}
	e.WriteString(s)
	e.WriteString(strings.Repeat(" ", maxAETitle-len(s)))
}

func (e *encoder) nested(f func(*encoder)) []byte {
	in := newEncoder()
	f(in)
	if in.err == nil {
		in.err = in.Error()
	}
	if in.err != nil {
		e.fail("%w", in.err)
		return nil
	}
	return in.Bytes()
}

func (e *encoder) fixed(version uint16, called, calling, app string) {
	e.WriteUInt16(version)
	e.WriteZeros(2)
	e.title(called)
	e.title(calling)
	e.WriteZeros(32)
	e.uid(itemApplicationContext, app)
}

func (e *encoder) user(u UserInformation) {
	if len(u.ImplementationVersionName) > maxVersionName {
		e.fail("implementation version name of %d bytes is longer than %d", len(u.ImplementationVersionName), maxVersionName)
	}
	e.item(itemUserInformation, e.nested(func(e *encoder) {
		e.item(itemMaxLength, binary.BigEndian.AppendUint32(nil, u.MaxLength))
		e.uid(itemClassUID, u.ImplementationClassUID)
		if u.ImplementationVersionName != "" {
			e.item(itemVersionName, []byte(u.ImplementationVersionName))
		}
	}))
}

func (e *encoder) appendTo(dst []byte, t Type) ([]byte, error) {
	if e.err == nil {
		e.err = e.Error()
	}
	if e.err != nil {
		return dst, fmt.Errorf("encode %v: %w", t, e.err)
	}
	body := e.Bytes()
	if len(body) > MaxAssociate {
		return dst, fmt.Errorf("encode %v: %d bytes are more than %d", t, len(body), MaxAssociate)
	}
	return append(Header{t, uint32(len(body))}.Append(dst), body...), nil
}

// Append implements [PDU].
func (p *AssociateRQ) Append(dst []byte) ([]byte, error) {
	e := newEncoder()
	e.fixed(p.ProtocolVersion, p.CalledAETitle, p.CallingAETitle, p.ApplicationContext)
	for _, c := range p.Contexts {
		e.item(itemContextRQ, e.nested(func(e *encoder) {
			e.WriteByte(c.ID)
			e.WriteZeros(3)
			e.uid(itemAbstractSyntax, c.AbstractSyntax)
			for _, ts := range c.TransferSyntaxes {
				e.uid(itemTransferSyntax, ts)
			}
		}))
	}
	e.user(p.User)
	return e.appendTo(dst, TypeAssociateRQ)
}

// Append implements [PDU].
func (p *AssociateAC) Append(dst []byte) ([]byte, error) {
	e := newEncoder()
	e.fixed(p.ProtocolVersion, p.CalledAETitle, p.CallingAETitle, p.ApplicationContext)
	for _, c := range p.Contexts {
		e.item(itemContextAC, e.nested(func(e *encoder) {
			e.WriteByte(c.ID)
			e.WriteByte(0)
			e.WriteByte(byte(c.Result))
			e.WriteByte(0)
			// The item must be there even when it means nothing.
			e.uid(itemTransferSyntax, c.TransferSyntax)
		}))
	}
	e.user(p.User)
	return e.appendTo(dst, TypeAssociateAC)
}

// decoder reads items. It lives only inside guard, which turns a panic of the
// dicomio helpers into an error: their assertions are not meant for the wire.
type decoder struct{ *dicomio.Decoder }

func guard(t Type, body []byte, f func(d decoder) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = invalid(t, "malformed: %v", r)
		}
	}()
	d := decoder{dicomio.NewBytesDecoder(body, binary.BigEndian, dicomio.UnknownVR)}
	d.PushLimit(int64(len(body)))
	if err := f(d); err != nil {
		return err
	}
	if err := d.Finish(); err != nil {
		return invalid(t, "%v", err)
	}
	return nil
}

// items calls f for every item until the current limit. f must consume exactly
// the item's n bytes, or leave all of them, which skips the item.
func (d decoder) items(t Type, f func(kind byte, n int) error) error {
	for !d.EOF() {
		kind := d.ReadByte()
		d.ReadByte()
		n := int64(d.ReadUInt16())
		if err := d.Error(); err != nil {
			return invalid(t, "item header: %v", err)
		}
		start := d.BytesRead()
		d.PushLimit(n)
		// PushLimit clears the error it has just set for a limit beyond the
		// outer one, so ask for the first byte that should be there.
		if n > 0 && d.EOF() {
			return invalid(t, "item 0x%02X of %d bytes reaches beyond the end", kind, n)
		}
		if err := f(kind, int(n)); err != nil {
			return err
		}
		if err := d.Error(); err != nil {
			return invalid(t, "item 0x%02X: %v", kind, err)
		}
		if used := d.BytesRead() - start; used != 0 && used != n {
			return invalid(t, "item 0x%02X: %d of its %d bytes make sense", kind, used, n)
		}
		d.PopLimit() // skips what was not read
		if err := d.Error(); err != nil {
			return invalid(t, "item 0x%02X: %v", kind, err)
		}
	}
	return nil
}

// uid reads a UID without the padding that some peers add.
func (d decoder) uid(n int) string {
	return strings.TrimRight(string(d.ReadBytes(n)), "\x00 ")
}

// title reads a 16-byte AE title; leading and trailing spaces do not count
// (PS3.8 table 9-11). It ends at its first NUL: some peers copy a C string into the
// field, and whatever lay in their memory stands behind it.
func (d decoder) title() string {
	title, _, _ := strings.Cut(string(d.ReadBytes(maxAETitle)), "\x00")
	return strings.Trim(title, " ")
}

func (d decoder) fixed() (version uint16, called, calling string) {
	version = d.ReadUInt16()
	d.Skip(2)
	called = d.title()
	calling = d.title()
	d.Skip(32)
	return version, called, calling
}

func (d decoder) user(t Type, u *UserInformation) error {
	return d.items(t, func(kind byte, n int) error {
		switch kind {
		case itemMaxLength:
			if n != 4 {
				return invalid(t, "maximum length item of %d bytes", n)
			}
			u.MaxLength, u.HasMaxLength = d.ReadUInt32(), true
		case itemClassUID:
			u.ImplementationClassUID = d.uid(n)
		case itemVersionName:
			u.ImplementationVersionName = strings.Trim(string(d.ReadBytes(n)), "\x00 ")
		}
		return nil
	})
}

func decodeAssociateRQ(body []byte) (*AssociateRQ, error) {
	const t = TypeAssociateRQ
	p := &AssociateRQ{}
	err := guard(t, body, func(d decoder) error {
		p.ProtocolVersion, p.CalledAETitle, p.CallingAETitle = d.fixed()
		var seen [256]bool
		return d.items(t, func(kind byte, n int) error {
			switch kind {
			case itemApplicationContext:
				p.ApplicationContext = d.uid(n)
			case itemContextRQ:
				if len(p.Contexts) == MaxContexts {
					return invalid(t, "more than %d presentation contexts", MaxContexts)
				}
				c, err := d.contextRQ(n)
				if err != nil {
					return err
				}
				if c.ID%2 == 0 || seen[c.ID] {
					return invalid(t, "presentation context ID %d is even or given twice", c.ID)
				}
				seen[c.ID] = true
				p.Contexts = append(p.Contexts, c)
			case itemUserInformation:
				return d.user(t, &p.User)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (d decoder) contextRQ(n int) (c ContextRQ, err error) {
	const t = TypeAssociateRQ
	if n < 4 {
		return c, invalid(t, "presentation context of %d bytes", n)
	}
	c.ID = d.ReadByte()
	d.Skip(3)
	abstract := 0
	err = d.items(t, func(kind byte, n int) error {
		switch kind {
		case itemAbstractSyntax:
			abstract++
			c.AbstractSyntax = d.uid(n)
		case itemTransferSyntax:
			if len(c.TransferSyntaxes) == MaxTransferSyntaxes {
				return invalid(t, "more than %d transfer syntaxes in presentation context %d", MaxTransferSyntaxes, c.ID)
			}
			c.TransferSyntaxes = append(c.TransferSyntaxes, d.uid(n))
		}
		return nil
	})
	if err == nil && abstract != 1 {
		err = invalid(t, "presentation context %d has %d abstract syntaxes", c.ID, abstract)
	}
	return c, err
}

func decodeAssociateAC(body []byte) (*AssociateAC, error) {
	const t = TypeAssociateAC
	p := &AssociateAC{}
	err := guard(t, body, func(d decoder) error {
		p.ProtocolVersion, p.CalledAETitle, p.CallingAETitle = d.fixed()
		var seen [256]bool
		return d.items(t, func(kind byte, n int) error {
			switch kind {
			case itemApplicationContext:
				p.ApplicationContext = d.uid(n)
			case itemContextAC:
				if n < 4 {
					return invalid(t, "presentation context of %d bytes", n)
				}
				c := ContextAC{ID: d.ReadByte()}
				d.Skip(1)
				c.Result = ContextResult(d.ReadByte())
				d.Skip(1)
				if c.Result > maxContextResult || c.ID%2 == 0 || seen[c.ID] {
					return invalid(t, "presentation context %d with %v is invalid or given twice", c.ID, c.Result)
				}
				seen[c.ID] = true
				p.Contexts = append(p.Contexts, c)
				at := len(p.Contexts) - 1
				return d.items(t, func(kind byte, n int) error {
					if kind == itemTransferSyntax {
						p.Contexts[at].TransferSyntax = d.uid(n)
					}
					return nil
				})
			case itemUserInformation:
				return d.user(t, &p.User)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}
