// Package safetensors reads and writes named arrays of numbers in the
// safetensors format, in the part of it that networks here need: float32.
//
// A file is eight bytes of header length (little endian), the header (JSON:
// name to dtype, shape and offsets), and the numbers:
//
//	| n uint64 | n bytes of JSON | data, little endian, no gaps, no overlaps |
//
// A File is the contents; Decode takes nothing in the bytes for granted.
package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
)

// Limits of what Decode accepts, all checked before memory is taken.
const (
	MaxFile    = 1 << 30 // bytes
	MaxHeader  = 1 << 20 // bytes
	MaxTensors = 4096
	MaxRank    = 8
)

// ErrFormat is in the chain of every error about the contents of a file.
var ErrFormat = errors.New("not a valid safetensors file")

// File is a set of named tensors.
type File struct {
	Metadata map[string]string // free text about the file, may be nil
	Tensors  map[string]Tensor
}

// Tensor is an array of float32, the last dimension contiguous.
type Tensor struct {
	Shape []int
	Data  []float32
}

// entry is a tensor in the header.
type entry struct {
	DType   string   `json:"dtype"`
	Shape   []uint64 `json:"shape"`
	Offsets []uint64 `json:"data_offsets"`
}

const metadataKey = "__metadata__"

// Read reads a whole file from r, at most MaxFile bytes.
func Read(r io.Reader) (*File, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read safetensors: %w", err)
	}
	return Decode(b)
}

// Decode parses a file. Errors about its contents wrap ErrFormat.
func Decode(b []byte) (*File, error) {
	if len(b) > MaxFile {
		return nil, bad("more than %d bytes", MaxFile)
	}
	if len(b) < 8 {
		return nil, bad("%d bytes are too short for a header", len(b))
	}
	n := binary.LittleEndian.Uint64(b)
	if n > MaxHeader {
		return nil, bad("header of %d bytes, allowed are %d", n, MaxHeader)
	}
	if n > uint64(len(b)-8) {
		return nil, bad("header of %d bytes in a file of %d", n, len(b))
	}
	header, data := b[8:8+n], b[8+n:]
	metadata, entries, err := decodeHeader(header)
	if err != nil {
		return nil, err
	}

	// In the order of their data the tensors must follow each other without a
	// gap, so that each byte belongs to exactly one of them.
	names := slices.SortedFunc(maps.Keys(entries), func(a, b string) int {
		return slices.Compare(entries[a].Offsets, entries[b].Offsets)
	})
	f := &File{Metadata: metadata, Tensors: make(map[string]Tensor, len(entries))}
	end := uint64(0)
	for _, name := range names {
		e := entries[name]
		if e.Offsets[0] != end {
			return nil, bad("tensor %.80q begins at %d, want %d", name, e.Offsets[0], end)
		}
		count := uint64(1)
		shape := make([]int, len(e.Shape))
		for i, d := range e.Shape {
			if d > MaxFile || count*d > MaxFile {
				return nil, bad("tensor %.80q has an oversized shape", name)
			}
			count *= d
			shape[i] = int(d)
		}
		if e.Offsets[1] < end || e.Offsets[1] > uint64(len(data)) || e.Offsets[1]-end != 4*count {
			return nil, bad("tensor %.80q of %d numbers lies at %d to %d in %d bytes of data", name, count, e.Offsets[0], e.Offsets[1], len(data))
		}
		values := make([]float32, count)
		for i := range values {
			values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[end+4*uint64(i):]))
		}
		f.Tensors[name] = Tensor{shape, values}
		end = e.Offsets[1]
	}
	if end != uint64(len(data)) {
		return nil, bad("%d bytes of data belong to no tensor", uint64(len(data))-end)
	}
	return f, nil
}

// decodeHeader reads the JSON with its own loop over the names, because a
// decoder into a map would let a second entry of a name replace the first.
func decodeHeader(header []byte) (map[string]string, map[string]entry, error) {
	d := json.NewDecoder(bytes.NewReader(header))
	d.DisallowUnknownFields()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, nil, bad("header is not a JSON object")
	}
	var metadata map[string]string
	entries := make(map[string]entry)
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, nil, bad("header: %v", err)
		}
		if name == metadataKey {
			if metadata != nil {
				return nil, nil, bad("two entries %s", metadataKey)
			}
			if err := d.Decode(&metadata); err != nil {
				return nil, nil, bad("header: metadata: %v", err)
			}
			if metadata == nil {
				return nil, nil, bad("header: metadata is not an object")
			}
			continue
		}
		var e entry
		if err := d.Decode(&e); err != nil {
			return nil, nil, bad("header: tensor %.80q: %v", name, err)
		}
		_, twice := entries[name]
		switch {
		case twice:
			return nil, nil, bad("two tensors are called %.80q", name)
		case len(entries) == MaxTensors:
			return nil, nil, bad("more than %d tensors", MaxTensors)
		case e.DType != "F32":
			return nil, nil, bad("tensor %.80q is of type %.20q, only F32 is read", name, e.DType)
		case len(e.Shape) > MaxRank:
			return nil, nil, bad("tensor %.80q has %d dimensions, allowed are %d", name, len(e.Shape), MaxRank)
		case len(e.Offsets) != 2:
			return nil, nil, bad("tensor %.80q has %d offsets, want 2", name, len(e.Offsets))
		}
		entries[name] = e
	}
	if t, err := d.Token(); err != nil || t != json.Delim('}') {
		return nil, nil, bad("header does not end: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) { // spaces may follow
		return nil, nil, bad("bytes after the header's JSON")
	}
	return metadata, entries, nil
}

// Encode returns the file as bytes: tensors in the order of their names, the
// data aligned to eight bytes. Equal files give equal bytes.
func (f *File) Encode() ([]byte, error) {
	header := make(map[string]any, len(f.Tensors)+1)
	if f.Metadata != nil {
		header[metadataKey] = f.Metadata
	}
	if len(f.Tensors) > MaxTensors {
		return nil, fmt.Errorf("encode safetensors: %d tensors, allowed are %d", len(f.Tensors), MaxTensors)
	}
	at := uint64(0)
	names := slices.Sorted(maps.Keys(f.Tensors))
	for _, name := range names {
		t := f.Tensors[name]
		count, shape := 1, make([]uint64, len(t.Shape))
		for i, d := range t.Shape {
			if d < 0 || d > MaxFile || count*d > MaxFile {
				return nil, fmt.Errorf("encode safetensors: tensor %q has shape %v", name, t.Shape)
			}
			count *= d
			shape[i] = uint64(d)
		}
		if count != len(t.Data) || len(t.Shape) > MaxRank || name == metadataKey {
			return nil, fmt.Errorf("encode safetensors: tensor %q has shape %v and %d numbers", name, t.Shape, len(t.Data))
		}
		header[name] = entry{"F32", shape, []uint64{at, at + 4*uint64(count)}}
		at += 4 * uint64(count)
	}
	h, err := json.Marshal(header)
	if err != nil {
		return nil, fmt.Errorf("encode safetensors: %w", err)
	}
	for len(h)%8 != 0 {
		h = append(h, ' ')
	}
	if len(h) > MaxHeader || at > MaxFile-MaxHeader-8 {
		return nil, fmt.Errorf("encode safetensors: header of %d and data of %d bytes are too large", len(h), at)
	}
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 8+len(h)+int(at)), uint64(len(h)))
	b = append(b, h...)
	for _, name := range names {
		for _, v := range f.Tensors[name].Data {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
	}
	return b, nil
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}
