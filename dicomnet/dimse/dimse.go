// Package dimse holds DIMSE command sets (PS3.7 section 6.3, 9.3 and 10.3) and
// the status codes of their responses.
//
// A reader needs two types: [Command], one command set, and [Status]. The data
// set that may follow a command is not this package's business.
package dimse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/grailbio/go-dicom/dicomio"
	"github.com/grailbio/go-dicom/dicomtag"
)

// MaxCommand is the largest command set accepted, in bytes. A C-STORE-RQ has
// fewer than 300.
const MaxCommand = 64 << 10

// Field is the command field (0000,0100) of PS3.7 annex E.
type Field uint16

// Command fields. A response has bit 15 set.
const (
	CStoreRQ  Field = 0x0001
	CStoreRSP Field = 0x8001
	CGetRQ    Field = 0x0010
	CFindRQ   Field = 0x0020
	CMoveRQ   Field = 0x0021
	CEchoRQ   Field = 0x0030
	CEchoRSP  Field = 0x8030
	CCancelRQ Field = 0x0FFF

	NEventReportRQ Field = 0x0100
	NGetRQ         Field = 0x0110
	NSetRQ         Field = 0x0120
	NActionRQ      Field = 0x0130
	NCreateRQ      Field = 0x0140
	NDeleteRQ      Field = 0x0150

	responseBit = 0x8000
)

// IsResponse reports whether f is a response.
func (f Field) IsResponse() bool { return f&responseBit != 0 }

// Response returns the response field of a request.
func (f Field) Response() Field { return f | responseBit }

// String returns the standard's name, or the number of an unknown field.
func (f Field) String() string {
	name := ""
	switch f &^ responseBit {
	case CStoreRQ:
		name = "C-STORE"
	case CGetRQ:
		name = "C-GET"
	case CFindRQ:
		name = "C-FIND"
	case CMoveRQ:
		name = "C-MOVE"
	case CEchoRQ:
		name = "C-ECHO"
	case CCancelRQ:
		return "C-CANCEL-RQ"
	case NEventReportRQ:
		name = "N-EVENT-REPORT"
	case NGetRQ:
		name = "N-GET"
	case NSetRQ:
		name = "N-SET"
	case NActionRQ:
		name = "N-ACTION"
	case NCreateRQ:
		name = "N-CREATE"
	case NDeleteRQ:
		name = "N-DELETE"
	default:
		return fmt.Sprintf("command field 0x%04X", uint16(f))
	}
	if f.IsResponse() {
		return name + "-RSP"
	}
	return name + "-RQ"
}

// NoDataSet is the CommandDataSetType (0000,0800) of a message that is only a
// command; every other value announces a data set.
const NoDataSet uint16 = 0x0101

// Priorities of a C-STORE-RQ (0000,0700).
const (
	PriorityMedium uint16 = 0
	PriorityHigh   uint16 = 1
	PriorityLow    uint16 = 2
)

// Command is one command set. Which fields mean something depends on Field;
// zero strings and, unless named in Has, zero numbers are not encoded.
type Command struct {
	Field                     Field
	MessageID                 uint16 // requests
	MessageIDBeingRespondedTo uint16 // responses
	AffectedSOPClassUID       string
	AffectedSOPInstanceUID    string
	RequestedSOPClassUID      string // N-services
	RequestedSOPInstanceUID   string
	Priority                  uint16
	DataSetType               uint16 // NoDataSet, or anything else for a data set
	Status                    Status // responses
	ErrorComment              string // ≤ 64 characters of ASCII
	MoveOriginatorAETitle     string
	MoveOriginatorMessageID   uint16

	// Has says which elements Decode found.
	Has Elements
}

// Elements tells absent elements from zero ones.
type Elements uint16

// The elements that Decode keeps track of.
const (
	HasField Elements = 1 << iota
	HasMessageID
	HasMessageIDBeingRespondedTo
	HasDataSetType
	HasStatus
	HasPriority
	HasMoveOriginatorMessageID
)

// HasDataSet reports whether a data set follows the command.
func (c *Command) HasDataSet() bool { return c.DataSetType != NoDataSet }

// Append adds the command set, in Implicit VR Little Endian and with its group
// length (PS3.7 section 6.3.1), to dst. Requests carry MessageID, responses
// MessageIDBeingRespondedTo and Status.
func (c *Command) Append(dst []byte) ([]byte, error) {
	e := dicomio.NewBytesEncoder(binary.LittleEndian, dicomio.ImplicitVR)
	uid(e, dicomtag.AffectedSOPClassUID, c.AffectedSOPClassUID)
	uid(e, dicomtag.RequestedSOPClassUID, c.RequestedSOPClassUID)
	us(e, dicomtag.CommandField, uint16(c.Field))
	if c.Field.IsResponse() || c.Field == CCancelRQ {
		us(e, dicomtag.MessageIDBeingRespondedTo, c.MessageIDBeingRespondedTo)
	} else {
		us(e, dicomtag.MessageID, c.MessageID)
	}
	if c.Field == CStoreRQ {
		us(e, dicomtag.Priority, c.Priority)
	}
	us(e, dicomtag.CommandDataSetType, c.DataSetType)
	if c.Field.IsResponse() {
		us(e, dicomtag.Status, uint16(c.Status))
		text(e, dicomtag.ErrorComment, c.ErrorComment)
	}
	uid(e, dicomtag.AffectedSOPInstanceUID, c.AffectedSOPInstanceUID)
	uid(e, dicomtag.RequestedSOPInstanceUID, c.RequestedSOPInstanceUID)
	if c.MoveOriginatorAETitle != "" {
		text(e, dicomtag.MoveOriginatorApplicationEntityTitle, c.MoveOriginatorAETitle)
		us(e, dicomtag.MoveOriginatorMessageID, c.MoveOriginatorMessageID)
	}
	if err := e.Error(); err != nil {
		return dst, fmt.Errorf("encode %v: %w", c.Field, err)
	}
	body := e.Bytes()
	if len(body) > MaxCommand {
		return dst, fmt.Errorf("encode %v: %d bytes are more than %d", c.Field, len(body), MaxCommand)
	}
	dst = append(dst, 0, 0, 0, 0, 4, 0, 0, 0) // (0000,0000) UL
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(body)))
	return append(dst, body...), nil
}

func head(e *dicomio.Encoder, t dicomtag.Tag, n int) {
	e.WriteUInt16(t.Group)
	e.WriteUInt16(t.Element)
	e.WriteUInt32(uint32(n))
}

func us(e *dicomio.Encoder, t dicomtag.Tag, v uint16) {
	head(e, t, 2)
	e.WriteUInt16(v)
}

func padded(e *dicomio.Encoder, t dicomtag.Tag, s string, pad byte) {
	if s == "" {
		return
	}
	head(e, t, len(s)+len(s)%2)
	e.WriteString(s)
	if len(s)%2 == 1 {
		e.WriteByte(pad)
	}
}

func uid(e *dicomio.Encoder, t dicomtag.Tag, s string)  { padded(e, t, s, 0) }
func text(e *dicomio.Encoder, t dicomtag.Tag, s string) { padded(e, t, s, ' ') }

var errNotCommand = errors.New("not a command set")

// Decode reads a command set of at most [MaxCommand] bytes. Elements of group
// 0000 that Command does not hold are skipped; elements of other groups,
// elements given twice and lengths that do not fit are errors. Missing ones are
// not: see Has. UIDs and AE titles come without padding and are otherwise
// unchecked: they are whatever the peer sent.
func Decode(b []byte) (c *Command, err error) {
	if len(b) > MaxCommand {
		return nil, fmt.Errorf("decode command set: %d bytes are more than %d", len(b), MaxCommand)
	}
	defer func() { // dicomio asserts; nothing from the wire may end the process
		if r := recover(); r != nil {
			c, err = nil, fmt.Errorf("decode command set: %v", r)
		}
	}()
	d := dicomio.NewBytesDecoder(b, binary.LittleEndian, dicomio.ImplicitVR)
	d.PushLimit(int64(len(b)))
	c = &Command{}
	seen := make(map[dicomtag.Tag]bool, 16)
	for !d.EOF() {
		tag := dicomtag.Tag{Group: d.ReadUInt16(), Element: d.ReadUInt16()}
		n := d.ReadUInt32()
		if d.Error() != nil || tag.Group != 0 || int64(n) > int64(len(b))-d.BytesRead() {
			return nil, fmt.Errorf("decode command set at byte %d: %w", d.BytesRead(), errNotCommand)
		}
		if seen[tag] {
			return nil, fmt.Errorf("decode command set: element %v is given twice", tag)
		}
		seen[tag] = true
		if err := c.element(d, tag, int(n)); err != nil {
			return nil, err
		}
	}
	if err := d.Finish(); err != nil {
		return nil, fmt.Errorf("decode command set: %w", err)
	}
	if c.Has&HasField == 0 {
		return nil, fmt.Errorf("decode command set: no command field: %w", errNotCommand)
	}
	return c, nil
}

// element reads the n bytes of one element.
func (c *Command) element(d *dicomio.Decoder, tag dicomtag.Tag, n int) error {
	number := func(v *uint16, has Elements) error {
		if n != 2 {
			return fmt.Errorf("decode command set: element %v has %d bytes, not 2", tag, n)
		}
		*v = d.ReadUInt16()
		c.Has |= has
		return nil
	}
	str := func(v *string) error {
		*v = strings.Trim(string(d.ReadBytes(n)), "\x00 ")
		return nil
	}
	switch tag {
	case dicomtag.CommandField:
		return number((*uint16)(&c.Field), HasField)
	case dicomtag.MessageID:
		return number(&c.MessageID, HasMessageID)
	case dicomtag.MessageIDBeingRespondedTo:
		return number(&c.MessageIDBeingRespondedTo, HasMessageIDBeingRespondedTo)
	case dicomtag.Priority:
		return number(&c.Priority, HasPriority)
	case dicomtag.CommandDataSetType:
		return number(&c.DataSetType, HasDataSetType)
	case dicomtag.Status:
		return number((*uint16)(&c.Status), HasStatus)
	case dicomtag.MoveOriginatorMessageID:
		return number(&c.MoveOriginatorMessageID, HasMoveOriginatorMessageID)
	case dicomtag.AffectedSOPClassUID:
		return str(&c.AffectedSOPClassUID)
	case dicomtag.AffectedSOPInstanceUID:
		return str(&c.AffectedSOPInstanceUID)
	case dicomtag.RequestedSOPClassUID:
		return str(&c.RequestedSOPClassUID)
	case dicomtag.RequestedSOPInstanceUID:
		return str(&c.RequestedSOPInstanceUID)
	case dicomtag.MoveOriginatorApplicationEntityTitle:
		return str(&c.MoveOriginatorAETitle)
	case dicomtag.ErrorComment:
		return str(&c.ErrorComment)
	}
	d.Skip(n)
	return nil
}
