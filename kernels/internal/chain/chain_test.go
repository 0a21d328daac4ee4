package chain_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/internal/chain"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// TestThereAndBack: a chain is what is found in its graph.
func TestThereAndBack(t *testing.T) {
	for blocks := range 4 {
		want := kernelstest.RandomNet(uint64(blocks), 3+blocks, blocks)
		got, err := chain.Of(want.Graph())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d blocks: the chain of its graph is another one", blocks)
		}
	}
}

// TestNoChain: graphs that are something else.
func TestNoChain(t *testing.T) {
	head := func(g *kernels.Graph) kernels.Value {
		return g.Conv(kernels.Conv3("head", 8, kernels.ReLU), g.Input(kernels.NetIn+1))
	}
	tail := func(g *kernels.Graph, change func(c *kernels.Convolution), from ...kernels.Value) {
		c := kernels.Conv3("tail", kernels.NetOut, kernels.Linear)
		change(&c)
		g.Conv(c, from...)
	}
	as := func(change func(c *kernels.Convolution)) func(g *kernels.Graph) {
		return func(g *kernels.Graph) { tail(g, change, head(g)) }
	}
	same := func(*kernels.Convolution) {}
	for what, c := range map[string]struct {
		build func(g *kernels.Graph)
		want  string // in the error; empty: it is a chain
	}{
		"head and tail": {as(same), ""},
		"nothing":       {func(*kernels.Graph) {}, "empty"},
		"an input":      {func(g *kernels.Graph) { g.Input(kernels.NetIn) }, "0 layers"},
		"few channels":  {func(g *kernels.Graph) { tail(g, same, g.Input(kernels.NetIn-1)) }, "begins with 4"},
		"many constants": {func(g *kernels.Graph) { tail(g, same, g.Input(kernels.NetIn+kernels.MaxConstants+1)) },
			"begins with 18"},
		"a vector": {func(g *kernels.Graph) { g.Conv(kernels.Conv1("a", 4, kernels.Linear), g.Vector(6)) },
			"begins with 6"},
		"wide":       {as(func(c *kernels.Convolution) { c.Out = 5 }), "output channels is 5"},
		"pointwise":  {as(func(c *kernels.Convolution) { c.Size, c.Top = 1, 0 }), "tail is more"},
		"rows above": {as(func(c *kernels.Convolution) { c.Top = 2 }), "tail is more"},
		"leaky":      {as(func(c *kernels.Convolution) { c.Activation = kernels.LeakyReLU }), "tail is more"},
		"two sources": {func(g *kernels.Graph) { h := head(g); tail(g, same, h, h) },
			"not a convolution of the value before"},
		"a branch": {func(g *kernels.Graph) { head(g); tail(g, same, 0) }, "not a convolution of the value before"},
		"a rotation": {func(g *kernels.Graph) { tail(g, same, g.Rotate(head(g), 2)) },
			"operation 2: not a convolution"},
		"two inputs": {func(g *kernels.Graph) { h := head(g); g.Input(4); tail(g, same, h) },
			"operation 2: not a convolution"},
		"the input as residual": {func(g *kernels.Graph) {
			x := g.Input(8)
			c := kernels.Conv3("a", 8, kernels.Linear)
			c.Residual = x
			tail(g, same, g.Conv(c, x))
		}, "a is more"},
	} {
		g := new(kernels.Graph)
		c.build(g)
		_, err := chain.Of(g, g.Init(1))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error is %v, want one about %q", what, err, c.want)
		}
	}
}
