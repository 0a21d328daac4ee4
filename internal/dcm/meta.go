package dcm

import (
	"encoding/binary"
	"fmt"
	"io"
)

// ImplementationClassUID names this implementation in file meta information
// (PS3.10 7.1) and is the InstanceCreatorUID of derived objects. Package dicomnet
// gives the same one in associations (PS3.7 D.3.3.2).
const ImplementationClassUID = "2.25.164903740383080889927073056748225862983"

// ImplementationVersionName goes with ImplementationClassUID; at most 16 characters.
const ImplementationVersionName = "DENOISED_1"

// maxMetaValue bounds what WriteFileMeta accepts. A UID has at most 64
// characters, but an object whose UID is too long is stored all the same.
const maxMetaValue = 256

// FileMeta is what the file meta information says about the data set behind it.
type FileMeta struct {
	SOPClassUID, SOPInstanceUID, TransferSyntaxUID string
	SourceAETitle                                  string // optional
}

// WriteFileMeta writes a Part-10 header (PS3.10 7.1): 128 zero bytes, "DICM" and
// group 2. A sender's own preamble is never kept, since it may be an executable.
// It returns the number of bytes written, in one Write.
func WriteFileMeta(w io.Writer, m FileMeta) (int64, error) {
	for _, v := range []struct{ name, value string }{
		{"SOP class UID", m.SOPClassUID}, {"SOP instance UID", m.SOPInstanceUID},
		{"transfer syntax UID", m.TransferSyntaxUID}, {"source AE title", m.SourceAETitle},
	} {
		if len(v.value) > maxMetaValue {
			return 0, fmt.Errorf("write file meta information: %s has %d bytes, limit %d", v.name, len(v.value), maxMetaValue)
		}
	}
	enc := Encoding{}
	group := enc.Append(nil,
		Node{Tag: FileMetaInformationVersion, VR: OB, Value: []byte{0, 1}},
		Text(MediaStorageSOPClassUID, UI, m.SOPClassUID),
		Text(MediaStorageSOPInstanceUID, UI, m.SOPInstanceUID),
		Text(TransferSyntaxUID, UI, m.TransferSyntaxUID),
		Text(ImplementationClassUIDTag, UI, ImplementationClassUID),
		Text(ImplementationVersionNameTag, SH, ImplementationVersionName),
	)
	if m.SourceAETitle != "" {
		group = enc.Append(group, Text(SourceApplicationEntityTitle, AE, m.SourceAETitle))
	}
	b := make([]byte, 128, 160+len(group))
	b = append(b, "DICM"...)
	b = enc.Append(b, Node{Tag: FileMetaInformationGroupLength, VR: UL,
		Value: binary.LittleEndian.AppendUint32(nil, uint32(len(group)))})
	b = append(b, group...)
	n, err := w.Write(b)
	if err != nil {
		return int64(n), fmt.Errorf("write file meta information: %w", err)
	}
	return int64(n), nil
}
