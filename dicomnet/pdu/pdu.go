// Package pdu holds the seven protocol data units of the DICOM upper layer
// (PS3.8 section 9.3) as values, and their codec.
//
// A reader needs two types: [PDU], implemented by AssociateRQ, AssociateAC,
// AssociateRJ, DataTF, ReleaseRQ, ReleaseRP and Abort, and [Error], which
// carries the A-ABORT reason that a bad PDU deserves. [Read] and [Decode] check
// every length against a fixed maximum before it drives a buffer.
package pdu

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Type is the first byte of a PDU.
type Type byte

// The PDU types of PS3.8 section 9.3.1.
const (
	TypeAssociateRQ Type = 0x01
	TypeAssociateAC Type = 0x02
	TypeAssociateRJ Type = 0x03
	TypeDataTF      Type = 0x04
	TypeReleaseRQ   Type = 0x05
	TypeReleaseRP   Type = 0x06
	TypeAbort       Type = 0x07
)

// String returns the standard's name, or the number of an unknown type.
func (t Type) String() string {
	switch t {
	case TypeAssociateRQ:
		return "A-ASSOCIATE-RQ"
	case TypeAssociateAC:
		return "A-ASSOCIATE-AC"
	case TypeAssociateRJ:
		return "A-ASSOCIATE-RJ"
	case TypeDataTF:
		return "P-DATA-TF"
	case TypeReleaseRQ:
		return "A-RELEASE-RQ"
	case TypeReleaseRP:
		return "A-RELEASE-RP"
	case TypeAbort:
		return "A-ABORT"
	}
	return fmt.Sprintf("PDU type 0x%02X", byte(t))
}

// Sizes and limits in bytes. A length outside its limit is refused before
// anything is allocated for it.
const (
	HeaderSize = 6 // type, reserved, length
	// PDVHeaderSize is the length, context ID and control byte in front of a fragment.
	PDVHeaderSize = 6
	// MaxAssociate is the largest A-ASSOCIATE-RQ or -AC accepted. 128 contexts
	// with every known transfer syntax need about 200 KiB.
	MaxAssociate = 1 << 20
	// MinMaxLength is the smallest maximum length a peer may announce, other
	// than 0 for none. Nothing useful fits into less.
	MinMaxLength = 128
	// MaxContexts is how many odd context IDs exist (PS3.8 table 9-13).
	MaxContexts = 128
	// MaxTransferSyntaxes is the most that one proposed context may offer; the
	// standard has fewer than 100. An item takes 4 bytes on the wire and at least
	// 16 in memory.
	MaxTransferSyntaxes = 256

	shortBody    = 4       // A-ASSOCIATE-RJ, A-RELEASE-RQ, A-RELEASE-RP, A-ABORT
	minAssociate = 68      // fixed part of A-ASSOCIATE-RQ and -AC
	readStep     = 4 << 10 // an associate PDU grows by what really arrives
)

// Reasons of an A-ABORT from the service provider (PS3.8 table 9-26).
const (
	ReasonNotSpecified          byte = 0
	ReasonUnrecognizedPDU       byte = 1
	ReasonUnexpectedPDU         byte = 2
	ReasonUnrecognizedParameter byte = 4
	ReasonUnexpectedParameter   byte = 5
	ReasonInvalidParameter      byte = 6
)

// Error is a PDU that breaks PS3.8. Reason is what an A-ABORT should say.
type Error struct {
	Reason byte
	Type   Type
	Text   string
}

// Error names the PDU and what is wrong with it.
func (e *Error) Error() string { return fmt.Sprintf("%v: %s", e.Type, e.Text) }

func invalid(t Type, format string, args ...any) error {
	return &Error{Reason: ReasonInvalidParameter, Type: t, Text: fmt.Sprintf(format, args...)}
}

// PDU is one protocol data unit.
type PDU interface {
	// Type returns the PDU's type byte.
	Type() Type
	// Append adds the encoded PDU, header included, to dst. It fails, leaving
	// dst as it was, when a field does not fit its place in the PDU.
	Append(dst []byte) ([]byte, error)
}

// Header is the fixed start of every PDU. Length counts the bytes after it.
type Header struct {
	Type   Type
	Length uint32
}

// ParseHeader reads a header from the first [HeaderSize] bytes of b. The
// reserved second byte is ignored, as the standard asks.
func ParseHeader(b []byte) Header {
	return Header{Type: Type(b[0]), Length: binary.BigEndian.Uint32(b[2:HeaderSize])}
}

// Append adds the encoded header to dst.
func (h Header) Append(dst []byte) []byte {
	return binary.BigEndian.AppendUint32(append(dst, byte(h.Type), 0), h.Length)
}

// Check refuses a length that no valid PDU of this type has; maxData is the
// maximum length that this side announced for P-DATA-TF. The error is an [*Error].
func (h Header) Check(maxData uint32) error {
	switch h.Type {
	case TypeAssociateRQ, TypeAssociateAC:
		if h.Length < minAssociate || h.Length > MaxAssociate {
			return invalid(h.Type, "length %d is not in %d..%d", h.Length, minAssociate, MaxAssociate)
		}
	case TypeDataTF:
		if h.Length < PDVHeaderSize || h.Length > maxData {
			return invalid(h.Type, "length %d is not in %d..%d", h.Length, PDVHeaderSize, maxData)
		}
	case TypeAssociateRJ, TypeReleaseRQ, TypeReleaseRP, TypeAbort:
		if h.Length != shortBody {
			return invalid(h.Type, "length %d is not %d", h.Length, shortBody)
		}
	default:
		return &Error{Reason: ReasonUnrecognizedPDU, Type: h.Type, Text: "unrecognized"}
	}
	return nil
}

// Read reads one PDU. maxData bounds P-DATA-TF (see [Header.Check]). An end of
// r before the first byte is io.EOF, later io.ErrUnexpectedEOF; a malformed PDU
// is an [*Error].
func Read(r io.Reader, maxData uint32) (PDU, error) {
	var head [HeaderSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	h := ParseHeader(head[:])
	if err := h.Check(maxData); err != nil {
		return nil, err
	}
	body := make([]byte, 0, min(int(h.Length), readStep))
	for len(body) < int(h.Length) {
		step := min(int(h.Length)-len(body), max(readStep, len(body)))
		at := len(body)
		body = append(body, make([]byte, step)...)
		if _, err := io.ReadFull(r, body[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return Decode(h.Type, body)
}

// Decode reads the body, the bytes after the header, of a PDU of type t.
// Fragments of a DataTF share memory with body, all else is copied. Any
// malformed body is an [*Error].
func Decode(t Type, body []byte) (PDU, error) {
	h := Header{Type: t, Length: uint32(min(len(body), 1<<31))}
	if err := h.Check(1 << 30); err != nil {
		return nil, err
	}
	switch t {
	case TypeAssociateRQ:
		return decodeAssociateRQ(body)
	case TypeAssociateAC:
		return decodeAssociateAC(body)
	case TypeAssociateRJ:
		return &AssociateRJ{Result: body[1], Source: body[2], Reason: body[3]}, nil
	case TypeDataTF:
		return decodeDataTF(body)
	case TypeReleaseRQ:
		return &ReleaseRQ{}, nil
	case TypeReleaseRP:
		return &ReleaseRP{}, nil
	default: // Check left only this one
		return &Abort{Source: body[2], Reason: body[3]}, nil
	}
}

// AssociateRJ refuses an association (PS3.8 section 9.3.4).
type AssociateRJ struct{ Result, Source, Reason byte }

// ReleaseRQ asks for an orderly end (PS3.8 section 9.3.6).
type ReleaseRQ struct{}

// ReleaseRP grants it (PS3.8 section 9.3.7).
type ReleaseRP struct{}

// Abort ends an association at once (PS3.8 section 9.3.8). Source 0 is the
// service user, 2 the provider; only the latter gives a reason.
type Abort struct{ Source, Reason byte }

// Type returns TypeAssociateRJ.
func (*AssociateRJ) Type() Type { return TypeAssociateRJ }

// Type returns TypeReleaseRQ.
func (*ReleaseRQ) Type() Type { return TypeReleaseRQ }

// Type returns TypeReleaseRP.
func (*ReleaseRP) Type() Type { return TypeReleaseRP }

// Type returns TypeAbort.
func (*Abort) Type() Type { return TypeAbort }

// Append implements [PDU].
func (p *AssociateRJ) Append(dst []byte) ([]byte, error) {
	return append(Header{TypeAssociateRJ, shortBody}.Append(dst), 0, p.Result, p.Source, p.Reason), nil
}

// Append implements [PDU].
func (*ReleaseRQ) Append(dst []byte) ([]byte, error) {
	return append(Header{TypeReleaseRQ, shortBody}.Append(dst), 0, 0, 0, 0), nil
}

// Append implements [PDU].
func (*ReleaseRP) Append(dst []byte) ([]byte, error) {
	return append(Header{TypeReleaseRP, shortBody}.Append(dst), 0, 0, 0, 0), nil
}

// Append implements [PDU].
func (p *Abort) Append(dst []byte) ([]byte, error) {
	return append(Header{TypeAbort, shortBody}.Append(dst), 0, 0, p.Source, p.Reason), nil
}
