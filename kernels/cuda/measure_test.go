//go:build cuda && linux && emulated

package cuda

import (
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// TestMeasure: what is timed is what is computed, down to the last operation.
func TestMeasure(t *testing.T) {
	b := open(t, Options{})
	net := kernelstest.RandomNet(1, 32, 2)
	n, err := b.Load(net.Graph())
	if err != nil {
		t.Fatal(err)
	}
	g := new(kernels.Graph)
	x := g.Conv(kernels.Conv3("a", 16, kernels.ReLU), g.Input(1))
	x = g.Rotate(g.Shift(x, 0), 1)
	g.Conv(kernels.Conv1("b", 2, kernels.Linear), x)
	p, err := b.Compile(g, g.Init(1))
	if err != nil {
		t.Fatal(err)
	}
	const height, width, count = 12, 20, 2
	for _, c := range []struct {
		what     any
		flop     float64
		launches map[string]int
	}{
		{n, net.FLOP(width, height), map[string]int{"net_head_1": 1, "net_block_flat_2": 2, "net_tail": 1}},
		{p, g.FLOP(height, width), map[string]int{"op_import": 1, "conv3_1": 1, "op_shift": 1, "op_rotate": 1, "point_1": 1}},
	} {
		m, err := b.Measure(c.what, height, width, count, 1)
		if err != nil {
			t.Fatal(err)
		}
		if want := c.flop * count; m.FLOP != want {
			t.Errorf("%T: %g operations, want %g", c.what, m.FLOP, want)
		}
		if m.Device <= 0 || m.Bytes <= 0 {
			t.Errorf("%T: %v for %g bytes", c.what, m.Device, m.Bytes)
		}
		for _, k := range m.Kernels {
			if c.launches[k.Kernel] != k.Launches || k.Time <= 0 {
				t.Errorf("%T: %d launches of %s in %v, want %d", c.what, k.Launches, k.Kernel, k.Time, c.launches[k.Kernel])
			}
			delete(c.launches, k.Kernel)
		}
		for name := range c.launches {
			t.Errorf("%T: %s was not timed", c.what, name)
		}
	}
	if _, err := b.Measure(n, height, width, maxBatch+1, 1); err == nil {
		t.Error("too large a batch passed")
	}
	if _, err := b.Measure("slice", height, width, 1, 1); err == nil {
		t.Error("something that is no network passed")
	}
	c, err := b.Ceilings()
	if err != nil {
		t.Fatal(err)
	}
	if c.Tensor <= 0 || c.Single <= 0 || c.Copy <= 0 {
		t.Errorf("ceilings %+v", c)
	}
}
