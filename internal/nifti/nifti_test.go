package nifti_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
					if p != float32(2*(6*k+i)-1) {
						t.Fatalf("%v %v: voxel %d of slice %d is %g", order, typ, i, k, p)
					}
				}
				if n, err := v.SetSlice(k, buf); err != nil || n != 0 {
					t.Fatal(n, err)
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
			if _, err := v.SetSlice(3, buf); err != nil {
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
	if n, err := v.SetSlice(0, []float32{-3, 2.6, 1e9, 254.4}); err != nil || n != 2 {
		t.Fatalf("%d clamped, %v", n, err)
	}
	if err := v.Slice(buf, 0); err != nil || buf[0] != 0 || buf[1] != 3 || buf[2] != 255 || buf[3] != 254 {
		t.Errorf("stored %v (%v)", buf, err)
	}
	if _, err := v.SetSlice(0, []float32{float32(math.NaN()), 0, 0, 0}); err == nil {
		t.Error("NaN stored as uint8")
	}
	if _, err := v.SetSlice(1, buf); !errors.Is(err, nifti.ErrSlice) {
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
	if _, err := w.SetSlice(0, six); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := w.Encode(&out); err != nil || !bytes.Equal(out.Bytes(), f) {
		t.Error("an unchanged voxel of 31 bits is rounded")
	}
}

// scaled is a file of 4×1 voxels of a type with the given scaling.
func scaled(t *testing.T, typ nifti.Datatype, slope, intercept float32) *nifti.Volume {
	t.Helper()
	v, err := decodeScaled(t, typ, slope, intercept)
	if err != nil {
		t.Fatalf("%v, slope %g, intercept %g: %v", typ, slope, intercept, err)
	}
	return v
}

func decodeScaled(t *testing.T, typ nifti.Datatype, slope, intercept float32) (*nifti.Volume, error) {
	t.Helper()
	v, err := nifti.New(4, 1, 1, 1, typ)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := v.Encode(&b); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(b.Bytes()[112:], math.Float32bits(slope))
	binary.LittleEndian.PutUint32(b.Bytes()[116:], math.Float32bits(intercept))
	return nifti.Decode(&b)
}

// TestScaling: values are real ones on the way out and in; a slope of 0 and one that is
// no number mean none, whatever the intercept is; an intercept that is no number is
// refused, as are steps that float32 does not tell apart.
func TestScaling(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for _, c := range []struct {
		typ              nifti.Datatype
		slope, intercept float32
		in, out          []float32 // what is stored, and what is read again
		clamped          int
	}{
		{nifti.Int16, 0.5, 100, []float32{0, 100, 100.2, -1e9}, []float32{0, 100, 100, 100 - 16384}, 1},
		{nifti.Int16, -2, 7, []float32{7, 9, 65543, 65545}, []float32{7, 9, 65543, 65543}, 1},
		{nifti.Uint16, 0.25, -1024, []float32{-1024, -1024.25, 0, 16000}, []float32{-1024, -1024, 0, 15359.75}, 2},
		{nifti.Uint8, 10, 5, []float32{5, 2555, 2556, 11}, []float32{5, 2555, 2555, 15}, 0},
		{nifti.Int8, 1, 0, []float32{127, 128, -128, -129}, []float32{127, 127, -128, -128}, 2},
		{nifti.Int32, 1000, 0, []float32{1e12, 3e12, -1, 700}, []float32{1e12, 2147483647000, 0, 1000}, 1},
		{nifti.Int16, 0, 55, []float32{1, 2, 3, 4}, []float32{1, 2, 3, 4}, 0},
		{nifti.Int16, inf, 55, []float32{1, 2, 3, 4}, []float32{1, 2, 3, 4}, 0},
		{nifti.Int16, nan, nan, []float32{1, 2, 3, 4}, []float32{1, 2, 3, 4}, 0},
		{nifti.Float32, 0, nan, []float32{1, 2, inf, 4.5}, []float32{1, 2, inf, 4.5}, 0},
		{nifti.Float32, 1e-10, 5, []float32{1e30, 5, -inf, 6},
			[]float32{float32(math.MaxFloat32*float64(float32(1e-10)) + 5), 5, -inf, 6}, 1},
		{nifti.Float64, 2, 1, []float32{1e30, 5, -inf, 6}, []float32{1e30, 5, -inf, 6}, 0},
	} {
		v := scaled(t, c.typ, c.slope, c.intercept)
		clamped, err := v.SetSlice(0, c.in)
		got := make([]float32, 4)
		if err := v.Slice(got, 0); err != nil {
			t.Fatal(err)
		}
		if err != nil || clamped != c.clamped || !slices.Equal(got, c.out) {
			t.Errorf("%v, slope %g, intercept %g: %v became %v with %d clamped, %v; want %v with %d", c.typ, c.slope,
				c.intercept, c.in, got, clamped, err, c.out, c.clamped)
		}
		if again, err := v.SetSlice(0, got); err != nil || again != 0 {
			t.Errorf("%v: stored again with %d clamped, %v", c.typ, again, err)
		}
	}
	for _, c := range []struct {
		typ              nifti.Datatype
		slope, intercept float32
		want             string
	}{
		{nifti.Int16, 1, nan, "scl_inter is NaN"},
		{nifti.Float32, 2, inf, "scl_inter is +Inf"},
		{nifti.Int16, 1e-3, 1e9, "nearly the same"},
		{nifti.Int8, 1e-40, 1, "nearly the same"},
	} {
		_, err := decodeScaled(t, c.typ, c.slope, c.intercept)
		if format := (*nifti.FormatError)(nil); !errors.As(err, &format) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, slope %g, intercept %g: %v, want %q", c.typ, c.slope, c.intercept, err, c.want)
		}
	}
	// The common scalings of 16 bits, and a zero that lies far out.
	for _, c := range [][2]float32{{0.011, 363}, {1e-6, 1e-3}, {1e-3, 32768}} {
		scaled(t, nifti.Int16, c[0], c[1])
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
			if n, err := v.SetSlice(k, buf); err != nil || n != 0 {
				t.Fatal(n, err)
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
