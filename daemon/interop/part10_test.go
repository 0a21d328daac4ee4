package interop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// part10 is a DICOM file taken apart by the few lines below, independent of the
// code under test.
type part10 struct {
	SOPClassUID, SOPInstanceUID, TransferSyntaxUID string
	DataSet                                        []byte
}

// parsePart10 reads the meta group of a file (PS3.10 7.1): preamble, DICM, and
// explicit little endian elements of group 2. What follows is the data set.
func parsePart10(file []byte) (part10, error) {
	var p part10
	if len(file) < 132 || string(file[128:132]) != "DICM" {
		return p, errors.New("no DICM at byte 128")
	}
	at := 132
	for at+8 <= len(file) && binary.LittleEndian.Uint16(file[at:]) == 2 {
		element := binary.LittleEndian.Uint16(file[at+2:])
		vr := string(file[at+4 : at+6])
		length, header := int(binary.LittleEndian.Uint16(file[at+6:])), 8
		if strings.Contains("OB OW UN SQ UT", vr) {
			if at+12 > len(file) {
				return p, fmt.Errorf("meta element %04x is cut off", element)
			}
			length, header = int(binary.LittleEndian.Uint32(file[at+8:])), 12
		}
		if length < 0 || at+header+length > len(file) {
			return p, fmt.Errorf("meta element %04x is cut off", element)
		}
		value := strings.TrimRight(string(file[at+header:at+header+length]), "\x00 ")
		switch element {
		case 0x0002:
			p.SOPClassUID = value
		case 0x0003:
			p.SOPInstanceUID = value
		case 0x0010:
			p.TransferSyntaxUID = value
		}
		at += header + length
	}
	if p.TransferSyntaxUID == "" {
		return p, errors.New("no transfer syntax in the meta group")
	}
	p.DataSet = file[at:]
	return p, nil
}
