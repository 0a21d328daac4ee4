// Package nifti reads and writes NIfTI-1 volumes in one file, plain (.nii) or
// compressed (.nii.gz). A [Volume] keeps the file's bytes: header, extensions
// and whatever follows the voxels are written back byte for byte, and so is
// every voxel that nobody changed. [Volume.Slice] and [Volume.SetSlice] convert
// one slice between stored voxels and real values: scl_slope × stored + scl_inter.
//
// Field offsets and codes are those of nifti1.h (NIfTI-1.1, nifti.nimh.nih.gov); what
// that leaves open about scaling is as NiBabel has it.
package nifti

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"github.com/diffdenoise/denoised/internal/atomicfile"
)

// Limits of what is read.
const (
	// MaxBytes is the most bytes of an uncompressed file.
	MaxBytes = 4 << 30
	// MaxSide is the most voxels along one axis; the format stores 16 bits.
	MaxSide = math.MaxInt16

	headerSize = 348
	maxOffset  = 64 << 20 // header with extensions
)

// Datatype is the NIfTI-1 code of the voxels' type.
type Datatype int16

// The types that can be read and written.
const (
	Uint8   Datatype = 2
	Int16   Datatype = 4
	Int32   Datatype = 8
	Float32 Datatype = 16
	Float64 Datatype = 64
	Int8    Datatype = 256
	Uint16  Datatype = 512
)

var types = map[Datatype]struct {
	name     string
	size     int
	min, max float64 // finite values
}{
	Uint8:   {"uint8", 1, 0, math.MaxUint8},
	Int8:    {"int8", 1, math.MinInt8, math.MaxInt8},
	Int16:   {"int16", 2, math.MinInt16, math.MaxInt16},
	Uint16:  {"uint16", 2, 0, math.MaxUint16},
	Int32:   {"int32", 4, math.MinInt32, math.MaxInt32},
	Float32: {"float32", 4, -math.MaxFloat32, math.MaxFloat32},
	Float64: {"float64", 8, -math.MaxFloat64, math.MaxFloat64},
}

// others names the codes of nifti1.h that are refused.
var others = map[Datatype]string{
	1: "binary", 32: "complex64", 128: "rgb24", 768: "uint32", 1024: "int64",
	1280: "uint64", 1536: "float128", 1792: "complex128", 2048: "complex256", 2304: "rgba32",
}

// String returns the type's name, e.g. "int16".
func (d Datatype) String() string {
	if t, ok := types[d]; ok {
		return t.name
	}
	if n, ok := others[d]; ok {
		return n
	}
	return fmt.Sprintf("datatype %d", int16(d))
}

// Integer tells whether voxels are whole numbers.
func (d Datatype) Integer() bool { return d != Float32 && d != Float64 }

// FormatError says what is wrong with a file.
type FormatError struct {
	Problem string
	Colour  bool // its voxels are colours
	Size    bool // it is larger than what may be read
}

// Error implements error.
func (e *FormatError) Error() string { return "not a readable NIfTI-1 file: " + e.Problem }

func bad(format string, args ...any) error {
	return &FormatError{Problem: fmt.Sprintf(format, args...)}
}

func large(format string, args ...any) error {
	return &FormatError{Problem: fmt.Sprintf(format, args...), Size: true}
}

// Volume is one file in memory. Methods that read may be called at the same
// time; SetSlice may be called at the same time for different slices.
type Volume struct {
	// Width and Height are the first two axes, Depth the third, Repeats the
	// product of all further ones.
	Width, Height, Depth, Repeats int
	// Type is the type of the stored voxels.
	Type Datatype
	// Slope and Intercept turn stored values into real ones: Slope×v + Intercept. A
	// scl_slope of 0, NaN or infinity in the file means none, whatever scl_inter is: 1
	// and 0.
	Slope, Intercept float64

	order  binary.ByteOrder
	prefix []byte // header and extensions, up to vox_offset
	voxels []byte
	suffix []byte // anything behind the voxels
}

// New returns a volume of zeros with a header that states the sizes and
// nothing else.
func New(width, height, depth, repeats int, typ Datatype) (*Volume, error) {
	if _, ok := types[typ]; !ok {
		return nil, fmt.Errorf("new NIfTI volume: voxels of type %v are not supported", typ)
	}
	v := &Volume{Width: width, Height: height, Depth: depth, Repeats: repeats, Type: typ, Slope: 1, order: binary.LittleEndian}
	p := make([]byte, headerSize+4)
	le := binary.LittleEndian
	le.PutUint32(p, headerSize)
	dims := []int{3, width, height, depth, repeats, 1, 1, 1}
	if repeats > 1 {
		dims[0] = 4
	}
	for i, d := range dims {
		if d < 1 || d > MaxSide {
			return nil, fmt.Errorf("new NIfTI volume: size %d of axis %d is outside 1..%d", d, i, MaxSide)
		}
		le.PutUint16(p[40+2*i:], uint16(d))
		le.PutUint32(p[76+4*i:], math.Float32bits(1)) // pixdim
	}
	le.PutUint16(p[70:], uint16(typ))
	le.PutUint16(p[72:], uint16(8*types[typ].size))
	le.PutUint32(p[108:], math.Float32bits(headerSize+4)) // vox_offset
	le.PutUint32(p[112:], math.Float32bits(1))            // scl_slope
	p[123] = 2                                            // millimetres
	copy(p[344:], "n+1\x00")
	v.prefix = p
	n, err := v.bytes(MaxBytes)
	if err != nil {
		return nil, err
	}
	v.voxels = make([]byte, n)
	return v, nil
}

// bytes is the size of the voxels, checked against a limit.
func (v *Volume) bytes(limit int64) (int64, error) {
	n := int64(types[v.Type].size)
	for _, d := range []int{v.Width, v.Height, v.Depth, v.Repeats} {
		n *= int64(d)
		if n > limit {
			return 0, large("%d×%d×%d×%d voxels of %v are more than %d bytes", v.Width, v.Height, v.Depth, v.Repeats, v.Type, limit)
		}
	}
	return n, nil
}

// IsName tells whether a file name ends in .nii or .nii.gz.
func IsName(name string) bool {
	name = strings.ToLower(name)
	return strings.HasSuffix(name, ".nii") || strings.HasSuffix(name, ".nii.gz")
}

// Read reads a file; it is decompressed if its first bytes are gzip's, whatever
// its name. A *FormatError says what is wrong with the content.
func Read(path string) (*Volume, error) { return ReadLimit(path, MaxBytes) }

// ReadLimit is Read for files of at most limit bytes, uncompressed; limit is at
// most MaxBytes. A larger one is refused as soon as its header is read.
func ReadLimit(path string, limit int64) (*Volume, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	v, err := decode(f, min(limit, MaxBytes))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return v, nil
}

// Decode reads a volume from r, plain or gzip. Memory grows with what r
// delivers, never with what the header promises.
func Decode(r io.Reader) (*Volume, error) { return decode(r, MaxBytes) }

func decode(r io.Reader, limit int64) (*Volume, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	r = br
	if head, err := br.Peek(2); err == nil && head[0] == 0x1f && head[1] == 0x8b {
		gz, err := gzip.NewReader(br)
		if err != nil {
			return nil, bad("gzip: %v", err)
		}
		defer gz.Close()
		r = gz
	}
	head := make([]byte, headerSize)
	if n, err := io.ReadFull(r, head); err != nil {
		return nil, bad("%d bytes where the header has %d (%v)", n, headerSize, err)
	}
	v, offset, err := parse(head)
	if err != nil {
		return nil, err
	}
	want, err := v.bytes(limit)
	if err != nil {
		return nil, err
	}
	rest, err := take(r, offset-headerSize)
	if err != nil {
		return nil, bad("the voxels start at byte %d: %v", offset, err)
	}
	v.prefix = append(head, rest...)
	if v.voxels, err = take(r, want); err != nil {
		return nil, bad("%d×%d×%d×%d voxels of %v: %v", v.Width, v.Height, v.Depth, v.Repeats, v.Type, err)
	}
	if v.suffix, err = io.ReadAll(io.LimitReader(r, limit-want+1)); err != nil {
		return nil, bad("after the voxels: %v", err)
	}
	if int64(len(v.suffix)) > limit-want {
		return nil, large("more than %d bytes", limit)
	}
	return v, nil
}

// take reads exactly n bytes in a buffer that grows with what arrives.
func take(r io.Reader, n int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, n))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) < n {
		return nil, fmt.Errorf("the file ends %d bytes early", n-int64(len(b)))
	}
	return b, nil
}

// parse reads the fields that are needed and returns vox_offset.
func parse(h []byte) (*Volume, int64, error) {
	v := &Volume{order: binary.LittleEndian}
	switch {
	case v.order.Uint32(h) == headerSize:
	case binary.BigEndian.Uint32(h) == headerSize:
		v.order = binary.BigEndian
	case v.order.Uint32(h) == 540 || binary.BigEndian.Uint32(h) == 540:
		return nil, 0, bad("it is NIfTI-2; convert it to NIfTI-1")
	default:
		return nil, 0, bad("header size %d instead of %d", v.order.Uint32(h), headerSize)
	}
	switch magic := string(h[344:348]); magic {
	case "n+1\x00":
	case "ni1\x00":
		return nil, 0, bad("header and voxels are in two files (.hdr, .img); convert it to one .nii")
	default:
		return nil, 0, bad("magic %q instead of \"n+1\\x00\"", magic)
	}
	dims := [8]int{}
	for i := range dims {
		dims[i] = int(int16(v.order.Uint16(h[40+2*i:])))
	}
	if dims[0] < 1 || dims[0] > 7 {
		return nil, 0, bad("%d axes", dims[0])
	}
	v.Width, v.Height, v.Depth, v.Repeats = 1, 1, 1, 1
	for i := 1; i <= dims[0]; i++ {
		if dims[i] < 1 {
			return nil, 0, bad("size %d of axis %d", dims[i], i)
		}
		switch i {
		case 1:
			v.Width = dims[i]
		case 2:
			v.Height = dims[i]
		case 3:
			v.Depth = dims[i]
		default:
			if v.Repeats *= dims[i]; v.Repeats > MaxBytes {
				return nil, 0, bad("more than %d volumes", int64(MaxBytes))
			}
		}
	}
	v.Type = Datatype(v.order.Uint16(h[70:]))
	t, ok := types[v.Type]
	if !ok {
		return nil, 0, &FormatError{Problem: fmt.Sprintf("voxels of type %v are not supported (int8/16/32, uint8/16, float32/64 are)", v.Type),
			Colour: v.Type == 128 || v.Type == 2304}
	}
	if bits := int(v.order.Uint16(h[72:])); bits != 8*t.size {
		return nil, 0, bad("%d bits per voxel of type %v", bits, v.Type)
	}
	float := func(at int) float64 { return float64(math.Float32frombits(v.order.Uint32(h[at:]))) }
	offset := float(108)
	if !(offset >= headerSize && offset <= maxOffset) || offset != math.Trunc(offset) {
		return nil, 0, bad("voxels start at byte %g", offset)
	}
	v.Slope, v.Intercept = float(112), float(116)
	switch {
	case v.Slope == 0 || v.Slope-v.Slope != 0:
		v.Slope, v.Intercept = 1, 0
	case v.Intercept-v.Intercept != 0:
		return nil, 0, bad("scl_slope is %g, but scl_inter is %g", v.Slope, v.Intercept)
	case v.Type.Integer() && math.Abs(v.Intercept) > farthestZero*(t.max-t.min)*math.Abs(v.Slope):
		return nil, 0, bad("scl_slope %g and scl_inter %g: all values of type %v are nearly the same", v.Slope,
			v.Intercept, v.Type)
	}
	return v, int64(offset), nil
}

// farthestZero is how many times the range of an integer type the real zero may be
// away: float32 then still tells a thousand values in it apart.
const farthestZero = 1 << 13

// Slices returns the number of slices: Depth × Repeats. Slice k lies at depth
// k mod Depth of volume k / Depth.
func (v *Volume) Slices() int { return v.Depth * v.Repeats }

// ErrSlice is returned for a slice that is not there or a buffer of another size.
var ErrSlice = errors.New("slice number or size does not fit the volume")

func (v *Volume) slice(k, n int) ([]byte, int, error) {
	size := types[v.Type].size
	if k < 0 || k >= v.Slices() || n != v.Width*v.Height {
		return nil, 0, fmt.Errorf("slice %d, %d voxels: %w", k, n, ErrSlice)
	}
	return v.voxels[k*n*size:][:n*size], size, nil
}

// Slice fills dst, Width×Height row major, with the real values of slice k.
func (v *Volume) Slice(dst []float32, k int) error {
	b, size, err := v.slice(k, len(dst))
	if err != nil {
		return err
	}
	for i := range dst {
		dst[i] = v.real(b[i*size:])
	}
	return nil
}

// SetSlice stores src, real values, as slice k. Integer types are rounded to the
// nearest. What the type cannot hold becomes the nearest that it can, and is counted. A
// voxel whose value equals the stored one as float32 keeps its bytes, so what was not
// changed is not rounded. NaN is refused for integer types.
func (v *Volume) SetSlice(k int, src []float32) (clamped int, err error) {
	b, size, err := v.slice(k, len(src))
	if err != nil {
		return 0, err
	}
	t := types[v.Type]
	for i, s := range src {
		cell := b[i*size:]
		old := v.real(cell)
		if s == old || math.Float32bits(s) == math.Float32bits(old) {
			continue
		}
		f := float64(s)
		if v.Slope != 1 || v.Intercept != 0 {
			f = (f - v.Intercept) / v.Slope
		}
		if v.Type.Integer() {
			if math.IsNaN(f) {
				return clamped, fmt.Errorf("slice %d, voxel (%d, %d): NaN cannot be stored as %v", k, i%v.Width,
					i/v.Width, v.Type)
			}
			f = math.RoundToEven(f)
		}
		// Infinity is a value of the types that are no integers.
		if c := min(max(f, t.min), t.max); c != f && (v.Type.Integer() || s-s == 0) {
			f = c
			clamped++
		}
		switch v.Type {
		case Uint8, Int8:
			cell[0] = byte(int(f))
		case Int16, Uint16:
			v.order.PutUint16(cell, uint16(int(f)))
		case Int32:
			v.order.PutUint32(cell, uint32(int64(f)))
		case Float32:
			v.order.PutUint32(cell, math.Float32bits(float32(f)))
		case Float64:
			v.order.PutUint64(cell, math.Float64bits(f))
		}
	}
	return clamped, nil
}

// real is the real value of a voxel. One that is not scaled is as it is, to the bit.
func (v *Volume) real(cell []byte) float32 {
	if v.Type == Float32 && v.Slope == 1 && v.Intercept == 0 {
		return math.Float32frombits(v.order.Uint32(cell))
	}
	return float32(v.Slope*v.stored(cell) + v.Intercept)
}

func (v *Volume) stored(cell []byte) float64 {
	switch v.Type {
	case Uint8:
		return float64(cell[0])
	case Int8:
		return float64(int8(cell[0]))
	case Int16:
		return float64(int16(v.order.Uint16(cell)))
	case Uint16:
		return float64(v.order.Uint16(cell))
	case Int32:
		return float64(int32(v.order.Uint32(cell)))
	case Float32:
		return float64(math.Float32frombits(v.order.Uint32(cell)))
	default:
		return math.Float64frombits(v.order.Uint64(cell))
	}
}

// Encode writes the file, uncompressed.
func (v *Volume) Encode(w io.Writer) error {
	for _, b := range [][]byte{v.prefix, v.voxels, v.suffix} {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// Write writes v to path, compressed if the name ends in .gz: into a temporary
// file of the same folder, synced, then renamed, so that path never holds half
// a volume. The same volume gives the same bytes.
func Write(path string, v *Volume) error {
	return atomicfile.Write(path, 0o644, func(f *os.File) error {
		if !strings.HasSuffix(strings.ToLower(path), ".gz") {
			return v.Encode(f)
		}
		gz := gzip.NewWriter(f)
		if err := v.Encode(gz); err != nil {
			return err
		}
		return gz.Close()
	})
}
