package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
)

// file puts a header and n bytes of data together.
func file(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

func TestRoundTrip(t *testing.T) {
	for _, f := range []*File{
		{Tensors: map[string]Tensor{}},
		{Metadata: map[string]string{"a": "b"}, Tensors: map[string]Tensor{}},
		{Tensors: map[string]Tensor{
			"x":      {[]int{2, 3}, []float32{1, -2, 3.5, 0, math.MaxFloat32, float32(math.Inf(-1))}},
			"scalar": {[]int{}, []float32{7}},
			"empty":  {[]int{4, 0}, []float32{}},
			"ünï":    {[]int{1}, []float32{math.SmallestNonzeroFloat32}},
		}},
	} {
		b, err := f.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Read(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, f) {
			t.Errorf("got %+v, want %+v", got, f)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	one := `{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`
	if _, err := Decode(file(one, 4)); err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(file(one+"  ", 4)); err != nil {
		t.Errorf("spaces after the header: %v", err)
	}
	many := new(strings.Builder)
	for i := range MaxTensors + 1 {
		fmt.Fprintf(many, `%c"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}`, "{,"[min(i, 1)], i)
	}
	huge := file(one, 4)
	binary.LittleEndian.PutUint64(huge, math.MaxUint64)
	for what, b := range map[string][]byte{
		"empty":              nil,
		"seven bytes":        make([]byte, 7),
		"huge header":        huge,
		"header beyond file": file(one, 4)[:20],
		"header over limit":  file(strings.Repeat(" ", MaxHeader)+"{}", 0),
		"no object":          file(`[]`, 0),
		"no JSON":            file(`{"x"`, 0),
		"cut":                file(one[:len(one)-1], 4),
		"two documents":      file(one+"{}", 4),
		"missing data":       file(one, 3),
		"extra data":         file(one, 8),
		"gap at the start":   file(`{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8),
		"overlap":            file(`{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8),
		"same place":         file(`{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4),
		"backwards":          file(`{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}`, 4),
		"offsets wrap":       file(`{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551612]}}`, 4),
		"one offset":         file(`{"x":{"dtype":"F32","shape":[1],"data_offsets":[0]}}`, 4),
		"no offsets":         file(`{"x":{"dtype":"F32","shape":[1]}}`, 4),
		"negative shape":     file(`{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}`, 4),
		"shape wraps":        file(`{"x":{"dtype":"F32","shape":[4294967296,4294967296,1],"data_offsets":[0,4]}}`, 4),
		"shape and size":     file(`{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 4),
		"fraction":           file(`{"x":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}`, 4),
		"rank":               file(`{"x":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}`, 4),
		"half precision":     file(`{"x":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}`, 4),
		"twice":              file(`{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4),
		"unknown field":      file(`{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"z":0}}`, 4),
		"metadata":           file(`{"__metadata__":{"a":1}}`, 0),
		"metadata null":      file(`{"__metadata__":null}`, 0),
		"metadata twice":     file(`{"__metadata__":{},"__metadata__":{}}`, 0),
		"too many":           file(many.String()+"}", 0),
	} {
		if _, err := Decode(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: error is %v, want ErrFormat", what, err)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for what, tensors := range map[string]map[string]Tensor{
		"shape and size": {"x": {[]int{2}, []float32{1}}},
		"negative":       {"x": {[]int{-1, -1}, []float32{1}}},
		"rank":           {"x": {[]int{1, 1, 1, 1, 1, 1, 1, 1, 1}, []float32{1}}},
		"reserved name":  {metadataKey: {[]int{1}, []float32{1}}},
	} {
		if _, err := (&File{Tensors: tensors}).Encode(); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// FuzzDecode: whatever decodes encodes to something that decodes to the same.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(file(`{}`, 0))
	f.Add(file(`{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]},"y":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, 12))
	f.Fuzz(func(t *testing.T, b []byte) {
		first, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error %v does not wrap ErrFormat", err)
			}
			return
		}
		once, err := first.Encode()
		if err != nil {
			t.Fatal(err)
		}
		second, err := Decode(once)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := second.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(once, twice) {
			t.Fatal("encoding is not stable")
		}
	})
}

func ExampleFile_Encode() {
	f := &File{Tensors: map[string]Tensor{"bias": {Shape: []int{2}, Data: []float32{1, 2}}}}
	b, err := f.Encode()
	if err != nil {
		fmt.Println(err)
		return
	}
	back, err := Decode(b)
	fmt.Println(back.Tensors["bias"].Data, err)
	// Output: [1 2] <nil>
}
