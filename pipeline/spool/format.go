package spool

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// One file of the spool, drawn in bytes. It is an ordinary DICOM Part-10 file
// (PS3.10 7.1), any viewer opens it; nothing of lines 1 to 3 is ever sent.
//
//	0        +-----------------------------------------------------------+
//	         | 128 zero bytes, "DICM"                                    |
//	132      | (0002,0000) UL  length of the rest of group 2             |
//	144      | (0002,0001) ... (0002,0016)  as any writer makes them     |
//	         | (0002,0100) UI  creatorUID                                |
//	D-recLen | (0002,0102) OB  recLen bytes: Record as JSON, then spaces |
//	D        +-----------------------------------------------------------+
//	         | the data set: byte for byte as it came over the wire      |
//	D+size   +-----------------------------------------------------------+
//
// The Record is written last (size and CRC are known only then) and before the
// file is synced. A file under its final name is therefore complete; if its
// CRC-32C does not match, the disk has lost something.
const (
	recLen      = 768
	creatorUID  = "2.25.112233768501982846523401978216537265413" // of the private information below
	preludeLen  = 128 + 4
	maxGroupLen = 64 << 10 // a longer group 2 is not ours
)

// Kind says what a file is; it is also the folder that the file lies in.
type Kind string

// Kinds of files.
const (
	Original Kind = "original" // as received
	Derived  Kind = "derived"  // made by us
)

// Record is what a file says about itself so that the journal can be rebuilt.
type Record struct {
	Version int    `json:"v"`
	Kind    Kind   `json:"kind"`
	Calling string `json:"calling,omitempty"`
	Called  string `json:"called,omitempty"`
	Host    string `json:"host,omitempty"`
	// quality asked for by the called AE title or the folder; derived: the one it has
	Quality  state.Quality `json:"quality,omitempty"`
	Received time.Time     `json:"received"`
	Source   string        `json:"source,omitempty"` // derived: file name of the original
	Sigma    float64       `json:"sigma,omitempty"`  // derived: median noise in stored units
	Reason   state.Reason  `json:"reason,omitempty"` // derived: why it is not the method's plain result
	// derived: the same in words, left out where there is no room for them
	Detail string `json:"detail,omitempty"`
	// derived, high: a copy of the original, which could not be denoised
	Fill bool `json:"fill,omitempty"`
	// derived, fast: what the original tells of its series
	Told evidence.Sums `json:"told,omitempty"`
	Size int64         `json:"size"` // of the data set
	CRC  uint32        `json:"crc"`  // CRC-32C of the data set
}

// CorruptError tells of a spool file that is not what was written.
type CorruptError struct {
	File   string
	Offset int64 // where it was noticed
	Why    string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("spool file %s, offset %d: %s", e.File, e.Offset, e.Why)
}

// header turns a Part-10 header as others write it into ours: it waits until
// group 2 is complete, appends the two private elements and corrects the length.
type header struct{ buf []byte }

var errNotPart10 = errors.New("not a DICOM Part-10 header")

// add takes p and returns the finished header and the bytes of p behind it once
// enough has come.
func (h *header) add(p []byte) (head, rest []byte, err error) {
	h.buf = append(h.buf, p...)
	end, err := groupEnd(h.buf)
	if err != nil || end < 0 || len(h.buf) < end {
		return nil, nil, err
	}
	rest = h.buf[end:]
	head = make([]byte, 0, end+len(creatorUID)+recLen+32)
	head = append(head, h.buf[:end]...)
	head = append(head, 0x02, 0, 0x00, 0x01, 'U', 'I')
	uid := []byte(creatorUID)
	if len(uid)%2 == 1 {
		uid = append(uid, 0)
	}
	head = binary.LittleEndian.AppendUint16(head, uint16(len(uid)))
	head = append(head, uid...)
	head = append(head, 0x02, 0, 0x02, 0x01, 'O', 'B', 0, 0)
	head = binary.LittleEndian.AppendUint32(head, recLen)
	head = append(head, bytes.Repeat([]byte{' '}, recLen)...)
	binary.LittleEndian.PutUint32(head[preludeLen+8:], uint32(len(head)-preludeLen-12))
	return head, rest, nil
}

// groupEnd returns the offset behind group 2, or -1 while b is too short to tell.
func groupEnd(b []byte) (int, error) {
	if len(b) < preludeLen+12 {
		return -1, nil
	}
	if string(b[128:132]) != "DICM" || !bytes.Equal(b[132:140], []byte{2, 0, 0, 0, 'U', 'L', 4, 0}) {
		return 0, errNotPart10
	}
	n := binary.LittleEndian.Uint32(b[140:144])
	if n > maxGroupLen {
		return 0, errNotPart10
	}
	return preludeLen + 12 + int(n), nil
}

func (r Record) encode() ([]byte, error) {
	r.Version = 1
	r.Calling, r.Called, r.Host = clip(r.Calling, 16), clip(r.Called, 16), clip(r.Host, 64)
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(b) > recLen && r.Detail != "" {
		r.Detail = ""
		return r.encode()
	}
	if len(b) > recLen {
		return nil, fmt.Errorf("spool record of %d bytes, at most %d", len(b), recLen)
	}
	return append(b, bytes.Repeat([]byte{' '}, recLen-len(b))...), nil
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// ReadRecord reads the Record of a spool file and where its data set starts.
// A file that is not one of ours gives a *CorruptError.
func ReadRecord(name string, r io.ReaderAt) (rec Record, dataSet int64, err error) {
	bad := func(off int64, why string) (Record, int64, error) {
		return Record{}, 0, &CorruptError{File: name, Offset: off, Why: why}
	}
	var start [preludeLen + 12]byte
	if _, err := r.ReadAt(start[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			return bad(0, "shorter than its header")
		}
		return Record{}, 0, fmt.Errorf("read header of spool file %s: %w", name, err)
	}
	end, err := groupEnd(start[:])
	if err != nil || end < preludeLen+12+recLen {
		return bad(preludeLen, "not a header of the spool")
	}
	var raw [recLen + 12]byte
	if _, err := r.ReadAt(raw[:], int64(end-len(raw))); err != nil {
		if errors.Is(err, io.EOF) {
			return bad(int64(end), "shorter than its header")
		}
		return Record{}, 0, fmt.Errorf("read record of spool file %s: %w", name, err)
	}
	if !bytes.HasPrefix(raw[:], []byte{2, 0, 2, 1, 'O', 'B'}) {
		return bad(int64(end-len(raw)), "has no spool record")
	}
	if err := json.Unmarshal(raw[12:], &rec); err != nil || rec.Version != 1 || rec.Size < 0 {
		return bad(int64(end-recLen), "spool record unreadable")
	}
	return rec, int64(end), nil
}
