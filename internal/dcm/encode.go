package dcm

import (
	"encoding/binary"
	"fmt"
)

// Node is a new element: a value, or with VR SQ a list of items. Tags of an
// item must ascend.
type Node struct {
	Tag   Tag
	VR    VR
	Value []byte   // encoded for the byte order of the data set; padded on writing
	Items [][]Node // VR SQ
}

// Text makes a Node of an ASCII value.
func Text(t Tag, v VR, s string) Node { return Node{Tag: t, VR: v, Value: []byte(s)} }

// Sequence makes a Node that holds items.
func Sequence(t Tag, items ...[]Node) Node { return Node{Tag: t, VR: SQ, Items: items} }

// Append encodes nodes behind dst. Sequences and items get defined lengths,
// values of odd length one padding byte (PS3.5 6.2). It must not be given values
// above 65,534 bytes with a VR whose length has 16 bits.
func (enc Encoding) Append(dst []byte, nodes ...Node) []byte {
	for _, n := range nodes {
		if n.VR != SQ {
			dst = enc.appendHeader(dst, n.Tag, n.VR, uint32(len(n.Value)+len(n.Value)&1))
			dst = append(dst, n.Value...)
			if len(n.Value)&1 == 1 {
				dst = append(dst, padding(n.VR))
			}
			continue
		}
		var body []byte
		for _, item := range n.Items {
			content := enc.Append(nil, item...)
			body = enc.appendHeader(body, Item, 0, uint32(len(content)))
			body = append(body, content...)
		}
		dst = enc.appendHeader(dst, n.Tag, SQ, uint32(len(body)))
		dst = append(dst, body...)
	}
	return dst
}

// padding is the byte that makes a value even.
func padding(v VR) byte {
	switch v {
	case UI, OB, OW, UN, OD, OF, OL, OV:
		return 0
	}
	return ' '
}

func (enc Encoding) appendHeader(dst []byte, t Tag, v VR, length uint32) []byte {
	order := binary.AppendByteOrder(binary.LittleEndian)
	if enc.BigEndian {
		order = binary.BigEndian
	}
	dst = order.AppendUint16(dst, t.Group())
	dst = order.AppendUint16(dst, t.Element())
	if enc.Implicit || t.Group() == 0xFFFE {
		return order.AppendUint32(dst, length)
	}
	_, long := v.Form()
	dst = append(dst, byte(v>>8), byte(v))
	if long {
		dst = append(dst, 0, 0)
		return order.AppendUint32(dst, length)
	}
	return order.AppendUint16(dst, uint16(length))
}

// check refuses nodes that Append could not encode.
func (n Node) check() error {
	known, long := n.VR.Form()
	switch {
	case !known:
		return fmt.Errorf("encode %v: unknown value representation", n.Tag)
	case !long && len(n.Value) > 0xFFFE:
		return fmt.Errorf("encode %v: value of %d bytes", n.Tag, len(n.Value))
	}
	return nil
}
