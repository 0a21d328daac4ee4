// Package chain is the form in which backends compute a network that kernels.Backend.Load takes: 3×3
// convolutions one after the other at half resolution. They find it in the graph by Of; who uses a
// backend does not know it.
package chain

import (
	"fmt"

	"github.com/diffdenoise/denoised/kernels"
)

// maxLayers is the most layers of a Net.
const maxLayers = 512

// Layer is a convolution within a Net.
type Layer struct {
	kernels.Conv
	// Skip, if not 0, adds as residual the output of the layer Skip places
	// before this one: 1 adds the layer's own input, 2 closes a block of two
	// convolutions. The channels of the two agree, and such a layer has no ReLU.
	Skip int
}

// Net is a chain of layers, each of which reads the one before.
type Net struct {
	Constants int // 0 to kernels.MaxConstants, the last inputs of the first layer
	Layers    []Layer
}

// Of returns the chain that a graph with its parameters is, or why it is none. The weights are those of
// params, not copies.
func Of(g *kernels.Graph, params [][]float32) (*Net, error) {
	if err := g.CheckParams(params); err != nil {
		return nil, err
	}
	in := &g.Nodes[0]
	if in.Op != kernels.OpInput || in.Vector || in.Channels < kernels.NetIn ||
		in.Channels > kernels.NetIn+kernels.MaxConstants {
		return nil, fmt.Errorf("graph begins with %d channels, want an image of %d and up to %d constants", in.Channels,
			kernels.NetIn, kernels.MaxConstants)
	}
	if n := len(g.Nodes) - 1; n < 1 || n > maxLayers {
		return nil, fmt.Errorf("graph has %d layers, allowed are 1 to %d", n, maxLayers)
	}
	n := &Net{Constants: in.Channels - kernels.NetIn}
	for i := 1; i < len(g.Nodes); i++ {
		node := &g.Nodes[i]
		c := node.Conv
		switch {
		case node.Op != kernels.OpConv || len(node.From) != 1 || int(node.From[0]) != i-1:
			return nil, fmt.Errorf("graph, operation %d: not a convolution of the value before", i)
		case c.Size != 3 || c.Top != 1 || c.Up || c.FiLM != kernels.None || c.Activation == kernels.LeakyReLU ||
			c.Residual == 0:
			return nil, fmt.Errorf("graph, operation %d: %s is more than a centred 3×3 convolution, ReLU and the "+
				"residual of a layer", i, c.Name)
		}
		l := Layer{Conv: kernels.Conv{In: g.Nodes[i-1].Channels, Out: c.Out, Weights: params[node.Weight],
			Bias: params[node.Bias], ReLU: c.Activation == kernels.ReLU}}
		if c.Residual != kernels.None {
			l.Skip = i - int(c.Residual)
		}
		n.Layers = append(n.Layers, l)
	}
	if out := g.Output().Channels; out != kernels.NetOut {
		return nil, &kernels.ShapeError{Op: "graph", What: "number of output channels", Got: out, Want: kernels.NetOut}
	}
	return n, nil
}

// FLOP returns the floating-point operations of one Forward, as kernels.Graph.FLOP counts them.
func (n *Net) FLOP(width, height int) float64 {
	g, _ := n.Graph()
	return g.FLOP((height+1)/2, (width+1)/2)
}

// Graph is the inverse of Of. A layer that no graph can have is an error of the graph.
func (n *Net) Graph() (*kernels.Graph, [][]float32) {
	g, params := new(kernels.Graph), [][]float32(nil)
	x := g.Input(kernels.NetIn + n.Constants)
	for i := range n.Layers {
		l := &n.Layers[i]
		c := kernels.Conv3(fmt.Sprint(i), l.Out, kernels.Linear)
		if l.ReLU {
			c.Activation = kernels.ReLU
		}
		if l.Skip != 0 {
			c.Residual = kernels.Value(i + 1 - l.Skip)
		}
		x = g.Conv(c, x)
		params = append(params, l.Weights, l.Bias)
	}
	return g, params
}
