package pdu

import "encoding/binary"

// PDV is one presentation data value: a fragment of a command or a data set
// (PS3.8 section 9.3.5.1 and annex E.2).
type PDV struct {
	ContextID byte
	Command   bool // else data set
	Last      bool // of the command or data set
	Data      []byte
}

// DataTF carries presentation data values (PS3.8 section 9.3.5).
type DataTF struct{ PDVs []PDV }

// Type returns TypeDataTF.
func (*DataTF) Type() Type { return TypeDataTF }

// Append implements [PDU].
func (p *DataTF) Append(dst []byte) ([]byte, error) {
	size := 0
	for _, v := range p.PDVs {
		size += PDVHeaderSize + len(v.Data)
	}
	if size > 1<<31 {
		return dst, invalid(TypeDataTF, "%d bytes do not fit into one PDU", size)
	}
	dst = Header{TypeDataTF, uint32(size)}.Append(dst)
	for _, v := range p.PDVs {
		h := PDVHeader{Length: uint32(len(v.Data)), ContextID: v.ContextID, Command: v.Command, Last: v.Last}
		dst = append(h.Append(dst), v.Data...)
	}
	return dst, nil
}

// PDVHeader is what stands in front of a fragment. Length counts the bytes of
// the fragment alone; on the wire it also counts the context ID and control byte.
type PDVHeader struct {
	Length    uint32
	ContextID byte
	Command   bool
	Last      bool
}

// Append adds the encoded header to dst.
func (h PDVHeader) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, h.Length+2)
	var control byte
	if h.Command {
		control |= 1
	}
	if h.Last {
		control |= 2
	}
	return append(dst, h.ContextID, control)
}

// ParsePDVHeader reads a header from the first [PDVHeaderSize] bytes of b;
// left is how many bytes of the PDU remain, these included. A fragment that
// does not fit into the PDU is an [*Error]. Reserved control bits are ignored.
func ParsePDVHeader(b []byte, left uint32) (PDVHeader, error) {
	if left < PDVHeaderSize || len(b) < PDVHeaderSize {
		return PDVHeader{}, invalid(TypeDataTF, "%d bytes left are too few for a fragment", left)
	}
	n := binary.BigEndian.Uint32(b)
	if n < 2 || n > left-4 {
		return PDVHeader{}, invalid(TypeDataTF, "fragment length %d is not in 2..%d", n, left-4)
	}
	return PDVHeader{Length: n - 2, ContextID: b[4], Command: b[5]&1 != 0, Last: b[5]&2 != 0}, nil
}

func decodeDataTF(body []byte) (*DataTF, error) {
	p := &DataTF{}
	for len(body) > 0 {
		h, err := ParsePDVHeader(body, uint32(len(body)))
		if err != nil {
			return nil, err
		}
		end := PDVHeaderSize + int(h.Length)
		p.PDVs = append(p.PDVs, PDV{h.ContextID, h.Command, h.Last, body[PDVHeaderSize:end:end]})
		body = body[end:]
	}
	return p, nil
}
