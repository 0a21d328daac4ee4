//go:build unix

package main

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// TestMessage: the examples of protobuf's description of its encoding.
func TestMessage(t *testing.T) {
	var m, outer message
	m.number(1, 150)
	outer.text(2, "testing")
	outer.bytes(3, m)
	want := "089601" + " 120774657374696e67" + "1a03089601"
	if got := fmt.Sprintf("%x %x", []byte(m), []byte(outer)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestONNX: a network has its convolutions, and the one of bytes rounds what goes into
// each, out of each and out of each sum.
func TestONNX(t *testing.T) {
	net := kernelstest.RandomNet(1, 8, 2)
	extents := make([]extent, len(net.Layers)+1)
	for i := range extents {
		extents[i] = extent{-1, 2}
	}
	plain, rounded := onnx(net, 16, nil), onnx(net, 16, extents)
	for _, c := range []struct {
		model []byte
		op    string
		want  int
	}{
		{plain, "\"\x04Conv", 6}, {plain, "\"\x04Relu", 2}, {plain, "\"\x03Add", 2}, {plain, "\"\x0eQuantizeLinear", 0},
		{rounded, "\"\x04Conv", 6}, {rounded, "\"\x04Relu", 0}, {rounded, "\"\x0eQuantizeLinear", 1 + 6 + 2},
		{rounded, "\"\x10DequantizeLinear", 9 + 2*6},
	} {
		if got := bytes.Count(c.model, []byte(c.op)); got != c.want {
			t.Errorf("%q: %d, want %d", c.op, got, c.want)
		}
	}
}
