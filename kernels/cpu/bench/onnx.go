//go:build unix

package main

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/internal/chain"
)

// message is a protobuf message in the making (protobuf.dev/programming-guides/encoding).
type message []byte

func (m *message) number(field int, v int64) {
	*m = binary.AppendUvarint(*m, uint64(field<<3))
	*m = binary.AppendUvarint(*m, uint64(v))
}

func (m *message) bytes(field int, v []byte) {
	*m = binary.AppendUvarint(*m, uint64(field<<3|2))
	*m = binary.AppendUvarint(*m, uint64(len(v)))
	*m = append(*m, v...)
}

func (m *message) text(field int, v string) { m.bytes(field, []byte(v)) }

// Element types of onnx.proto.
const (
	onnxFloat = 1
	onnxUint8 = 2
	onnxInt8  = 3
	onnxInt32 = 6
)

// model is an ONNX graph in the making: GraphProto, and names for what lies between.
type model struct {
	graph message
	names int
}

// node adds an operation and returns the name of its output.
func (g *model) node(op string, attributes []message, inputs ...string) string {
	g.names++
	out := fmt.Sprintf("t%d", g.names)
	g.nodeTo(out, op, attributes, inputs...)
	return out
}

func (g *model) nodeTo(out, op string, attributes []message, inputs ...string) {
	var n message
	for _, in := range inputs {
		n.text(1, in)
	}
	n.text(2, out)
	n.text(3, op+"_"+out)
	n.text(4, op)
	for _, a := range attributes {
		n.bytes(5, a)
	}
	g.graph.bytes(1, n)
}

func integer(name string, v int64) message {
	var a message
	a.text(1, name)
	a.number(3, v)
	a.number(20, 2)
	return a
}

func integers(name string, list ...int64) message {
	var a message
	a.text(1, name)
	for _, v := range list {
		a.number(8, v)
	}
	a.number(20, 7)
	return a
}

// tensor adds a constant and returns its name.
func (g *model) tensor(kind int64, raw []byte, dims ...int64) string {
	g.names++
	name := fmt.Sprintf("c%d", g.names)
	var t message
	for _, d := range dims {
		t.number(1, d)
	}
	t.number(2, kind)
	t.text(8, name)
	t.bytes(9, raw)
	g.graph.bytes(5, t)
	return name
}

func (g *model) floats(v []float32, dims ...int64) string {
	return g.tensor(onnxFloat, littleEndian(v), dims...)
}

func littleEndian(v []float32) []byte {
	var raw []byte
	for _, f := range v {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(f))
	}
	return raw
}

func (g *model) value(field int, name string, dims ...int64) {
	var shape, kind, tensor, info message
	for _, d := range dims {
		var dim message
		dim.number(1, d)
		shape.bytes(1, dim)
	}
	tensor.number(1, onnxFloat)
	tensor.bytes(2, shape)
	kind.bytes(1, tensor)
	info.text(1, name)
	info.bytes(2, kind)
	g.graph.bytes(field, info)
}

// extent is between which numbers a tensor lies.
type extent struct{ low, high float32 }

func extentOf(v []float32) extent {
	e := extent{}
	for _, f := range v {
		e.low, e.high = min(e.low, f), max(e.high, f)
	}
	return e
}

// quantized adds the rounding of x to uint8 and back, and returns its name and step.
func (g *model) quantized(x string, e extent) (string, float32) {
	step := (e.high - e.low) / 255
	zero := min(max(math.Round(float64(-e.low/step)), 0), 255)
	s, z := g.floats([]float32{step}), g.tensor(onnxUint8, []byte{byte(zero)})
	return g.node("DequantizeLinear", nil, g.node("QuantizeLinear", nil, x, s, z), s, z), step
}

// onnx writes a network for images of size×size (even) as ONNX, opset 13: inputs y and
// sigma, output out. With extents, of the input of each layer and of the output of the
// last one, every convolution is of bytes: QuantizeLinear and DequantizeLinear around
// it, weights by output channel, as static quantization makes it.
func onnx(net *chain.Net, size int64, extents []extent) []byte {
	g := new(model)
	g.graph.text(2, "network")
	g.value(11, "y", 1, 1, size, size)
	g.value(11, "sigma", 1, 1, size, size)
	g.value(12, "out", 1, 1, size, size)
	cells := g.node("SpaceToDepth", []message{integer("blocksize", 2)}, "y")
	mean := g.node("AveragePool", []message{integers("kernel_shape", 2, 2), integers("strides", 2, 2)}, "sigma")
	mean = g.node("Mul", nil, mean, g.floats([]float32{kernels.SigmaScale}))
	x := g.node("Concat", []message{integer("axis", 1)}, cells, mean)
	step := float32(0)
	if extents != nil {
		x, step = g.quantized(x, extents[0])
	}
	outputs := []string{x}
	for i := range net.Layers {
		l := &net.Layers[i]
		var w, bias string
		if extents == nil {
			w, bias = g.floats(l.Weights, int64(l.Out), int64(l.In), 3, 3), g.floats(l.Bias, int64(l.Out))
		} else {
			w, bias = g.bytesOf(&l.Conv, step)
		}
		x = g.node("Conv", []message{integers("kernel_shape", 3, 3), integers("pads", 1, 1, 1, 1)}, x, w, bias)
		if extents == nil {
			if l.ReLU {
				x = g.node("Relu", nil, x)
			}
		} else {
			// Rounding from 0 on is the ReLU. What is added is rounded before, too.
			e := extents[i+1]
			if l.Skip > 0 {
				x, _ = g.quantized(x, e)
			} else {
				x, step = g.quantized(x, e)
			}
		}
		if l.Skip > 0 {
			x = g.node("Add", nil, x, outputs[i+1-l.Skip])
			if extents != nil {
				x, step = g.quantized(x, extents[i+1])
			}
		}
		outputs = append(outputs, x)
	}
	noise := g.node("DepthToSpace", []message{integer("blocksize", 2)}, x)
	g.nodeTo("out", "Sub", nil, "y", noise)

	var opset, m message
	opset.number(2, 13)
	m.number(1, 8)
	m.bytes(7, g.graph)
	m.bytes(8, opset)
	return m
}

// bytesOf adds the weights and the bias of a convolution in integers whose input has
// this step.
func (g *model) bytesOf(c *kernels.Conv, step float32) (w, bias string) {
	n := c.In * 9
	raw, sum := make([]byte, len(c.Weights)), []byte(nil)
	steps, both := make([]float32, c.Out), make([]float32, c.Out)
	for o := range c.Out {
		from := c.Weights[o*n:][:n]
		e := extentOf(from)
		s := max(e.high, -e.low) / 127
		steps[o], both[o] = s, s*step
		for i, v := range from {
			raw[o*n+i] = byte(int8(math.RoundToEven(float64(v / s))))
		}
		sum = binary.LittleEndian.AppendUint32(sum, uint32(int32(math.RoundToEven(float64(c.Bias[o]/both[o])))))
	}
	out := int64(c.Out)
	axis := []message{integer("axis", 0)}
	w = g.node("DequantizeLinear", axis, g.tensor(onnxInt8, raw, out, int64(c.In), 3, 3), g.floats(steps, out),
		g.tensor(onnxInt8, make([]byte, c.Out), out))
	bias = g.node("DequantizeLinear", axis, g.tensor(onnxInt32, sum, out), g.floats(both, out), g.tensor(onnxInt32,
		make([]byte, 4*c.Out), out))
	return w, bias
}

func fromLittleEndian(raw []byte) []float32 {
	v := make([]float32, len(raw)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return v
}
