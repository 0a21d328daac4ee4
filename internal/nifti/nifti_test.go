package nifti_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/internal/nifti"
)

var all = []nifti.Datatype{nifti.Uint8, nifti.Int8, nifti.Int16, nifti.Uint16, nifti.Int32, nifti.Float32, nifti.Float64}

// file makes a file by hand: 3×2×2 voxels in two volumes, an extension, scaling
// and bytes behind the voxels.
func file(order binary.AppendByteOrder, typ nifti.Datatype, size int) []byte {
	h := make([]byte, 348)
	put16 := func(at int, v uint16) { copy(h[at:], order.AppendUint16(nil, v)) }
	put32 := func(at int, v uint32) { copy(h[at:], order.AppendUint32(nil, v)) }
	put32(0, 348)
	for i, d := range []uint16{4, 3, 2, 2, 2, 1, 1, 1} {
		put16(40+2*i, d)
	}
	put16(70, uint16(typ))
	put16(72, uint16(8*size))
	put32(108, math.Float32bits(352+16))
	put32(112, math.Float32bits(2))
	put32(116, math.Float32bits(-1))
	copy(h[148:], "description")
	copy(h[344:], "n+1\x00")
	h = append(h, 1, 0, 0, 0)
	h = append(order.AppendUint32(order.AppendUint32(h, 16), 6), "comment!"...)
	for i := range 24 {
		switch typ {
		case nifti.Uint8, nifti.Int8:
			h = append(h, byte(i))
		case nifti.Int16, nifti.Uint16:
			h = order.AppendUint16(h, uint16(i))
		case nifti.Int32:
			h = order.AppendUint32(h, uint32(i))
		case nifti.Float32:
			h = order.AppendUint32(h, math.Float32bits(float32(i)))
		case nifti.Float64:
			h = order.AppendUint64(h, math.Float64bits(float64(i)))
		}
	}
	return append(h, "tail"...)
}

var sizes = map[nifti.Datatype]int{nifti.Uint8: 1, nifti.Int8: 1, nifti.Int16: 2, nifti.Uint16: 2, nifti.Int32: 4, nifti.Float32: 4, nifti.Float64: 8}

// TestRoundTrip: every type in both byte orders comes back byte for byte, and a
// changed voxel changes its own bytes only.
func TestRoundTrip(t *testing.T) {
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, typ := range all {
			src := file(order, typ, sizes[typ])
			v, err := nifti.Decode(bytes.NewReader(src))
			if err != nil {
				t.Fatalf("%v %v: %v", order, typ, err)
			}
			if v.Width != 3 || v.Height != 2 || v.Depth != 2 || v.Repeats != 2 || v.Slope != 2 || v.Intercept != -1 || v.Type != typ {
				t.Fatalf("%v %v: %+v", order, typ, v)
			}
			buf := make([]float32, 6)
			for k := range v.Slices() {
				if err := v.Slice(buf, k); err != nil {
					t.Fatal(err)
				}
				for i, p := range buf {
					if p != float32(6*k+i) {
						t.Fatalf("%v %v: voxel %d of slice %d is %g", order, typ, i, k, p)
					}
				}
				if err := v.SetSlice(k, buf); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			if err := v.Encode(&out); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), src) {
				t.Fatalf("%v %v: bytes change", order, typ)
			}
			buf[4] = 101
			if err := v.SetSlice(3, buf); err != nil {
				t.Fatal(err)
			}
			if err := v.Slice(buf, 3); err != nil || buf[4] != 101 {
				t.Fatalf("%v %v: stored 101, read %g (%v)", order, typ, buf[4], err)
			}
		}
	}
}

// TestLimitsOfTypes: rounding to nearest, clipping, NaN, and no rounding of
// voxels that float32 cannot hold but nobody changed.
func TestLimitsOfTypes(t *testing.T) {
	v, err := nifti.New(4, 1, 1, 1, nifti.Uint8)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]float32, 4)
	if err := v.SetSlice(0, []float32{-3, 2.6, 1e9, 254.4}); err != nil {
		t.Fatal(err)
	}
	if err := v.Slice(buf, 0); err != nil || buf[0] != 0 || buf[1] != 3 || buf[2] != 255 || buf[3] != 254 {
		t.Errorf("stored %v (%v)", buf, err)
	}
	if err := v.SetSlice(0, []float32{float32(math.NaN()), 0, 0, 0}); err == nil {
		t.Error("NaN stored as uint8")
	}
	if err := v.SetSlice(1, buf); !errors.Is(err, nifti.ErrSlice) {
		t.Errorf("slice 1 of 1: %v", err)
	}
	f := file(binary.LittleEndian, nifti.Int32, 4)
	binary.LittleEndian.PutUint32(f[368:], 1<<30+1)
	w, err := nifti.Decode(bytes.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	six := make([]float32, 6)
	if err := w.Slice(six, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.SetSlice(0, six); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := w.Encode(&out); err != nil || !bytes.Equal(out.Bytes(), f) {
		t.Error("an unchanged voxel of 31 bits is rounded")
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	src := file(binary.LittleEndian, nifti.Int16, 2)
	for _, name := range []string{"a.nii", "b.nii.gz"} {
		v, err := nifti.Decode(bytes.NewReader(src))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := nifti.Write(path, v); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if packed := raw[0] == 0x1f; packed != (name == "b.nii.gz") {
			t.Errorf("%s: compressed is %v", name, packed)
		}
		again, err := nifti.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := again.Encode(&out); err != nil || !bytes.Equal(out.Bytes(), src) {
			t.Errorf("%s: content changes", name)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("%d files in the folder (%v)", len(left), err)
	}
}

func TestRefused(t *testing.T) {
	good := file(binary.LittleEndian, nifti.Int16, 2)
	for name, change := range map[string]func(b []byte) []byte{
		"empty":      func(b []byte) []byte { return nil },
		"cut":        func(b []byte) []byte { return b[:380] },
		"magic":      func(b []byte) []byte { b[344] = 'x'; return b },
		"pair":       func(b []byte) []byte { copy(b[344:], "ni1"); return b },
		"NIfTI-2":    func(b []byte) []byte { binary.LittleEndian.PutUint32(b, 540); return b },
		"axes":       func(b []byte) []byte { b[40] = 9; return b },
		"negative":   func(b []byte) []byte { b[43] = 0xff; return b },
		"huge":       func(b []byte) []byte { copy(b[42:], "\xff\x7f\xff\x7f\xff\x7f\xff\x7f"); return b },
		"rgb":        func(b []byte) []byte { b[70] = 128; return b },
		"bits":       func(b []byte) []byte { b[72] = 8; return b },
		"offset":     func(b []byte) []byte { copy(b[108:], "\x00\x00\xc0\x7f"); return b },
		"bad gzip":   func(b []byte) []byte { return []byte{0x1f, 0x8b, 1, 2, 3} },
		"zero width": func(b []byte) []byte { b[42] = 0; return b },
	} {
		_, err := nifti.Decode(bytes.NewReader(change(bytes.Clone(good))))
		var format *nifti.FormatError
		if !errors.As(err, &format) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, typ := range all {
		f.Add(file(binary.LittleEndian, typ, sizes[typ]))
	}
	b := file(binary.BigEndian, nifti.Int16, 2)
	f.Add(b)
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	if _, err := w.Write(b); err != nil {
		f.Fatal(err)
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(gz.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		v, err := nifti.Decode(bytes.NewReader(data))
		if err != nil {
			return
		}
		buf := make([]float32, v.Width*v.Height)
		for k := range min(v.Slices(), 4) {
			if err := v.Slice(buf, k); err != nil {
				t.Fatal(err)
			}
			if err := v.SetSlice(k, buf); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		if err := v.Encode(&out); err != nil {
			t.Fatal(err)
		}
		if data[0] != 0x1f && !bytes.Equal(out.Bytes(), data) {
			t.Fatal("decode and encode change bytes")
		}
	})
}
