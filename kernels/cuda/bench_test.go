//go:build cuda && linux && emulated

package cuda

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// Benchmarks are for a GPU; the emulated one takes seconds for an image.

// BenchmarkForward is the student's network on images that several callers bring.
func BenchmarkForward(b *testing.B) {
	d, err := Open(0, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	for _, shape := range []struct{ channels, blocks int }{{32, 8}, {48, 8}, {64, 8}} {
		net := kernelstest.RandomNet(1, shape.channels, shape.blocks)
		n, err := d.Load(net.Graph())
		if err != nil {
			b.Fatal(err)
		}
		for _, side := range []int{256, 512} {
			for _, callers := range []int{1, 32} {
				b.Run(fmt.Sprintf("%d channels/%dx%d/%d callers", shape.channels, side, side, callers), func(b *testing.B) {
					m := newImage(1, side, side)
					if _, err := m.forward(n); err != nil {
						b.Fatal(err)
					}
					b.ResetTimer()
					work := make(chan struct{})
					done := make(chan error, callers)
					for range callers {
						go func() {
							dst := make([]float32, len(m.y))
							var err error
							for range work {
								if e := n.Forward(dst, m.y, m.sigma, side, side); e != nil {
									err = e
								}
							}
							done <- err
						}()
					}
					for range b.N {
						work <- struct{}{}
					}
					close(work)
					for range callers {
						if err := <-done; err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(net.FLOP(side, side)*float64(b.N)/b.Elapsed().Seconds()/1e12, "TFLOP/s")
				})
			}
		}
	}
}

// BenchmarkConvolution is the launches alone of one convolution of a graph, replayed.
func BenchmarkConvolution(b *testing.B) {
	d, err := Open(0, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	const side, repeated = 512, 20
	for _, channels := range []int{16, 32, 48, 64, 128} {
		b.Run(fmt.Sprint(channels), func(b *testing.B) {
			g := new(kernels.Graph)
			x := g.Input(channels)
			for i := range repeated {
				x = g.Conv(kernels.Conv3(fmt.Sprint(i), channels, kernels.ReLU), x)
			}
			g.Conv(kernels.Conv1("out", 1, kernels.Linear), x)
			compiled, err := d.Compile(g, g.Init(1))
			if err != nil {
				b.Fatal(err)
			}
			p := compiled.(*program)
			c, err := p.plan(side, side, 1)
			if err != nil {
				b.Fatal(err)
			}
			defer d.pool.put(c)
			copy(c.given(c.inputs[0]), numbers(rand.New(rand.NewPCG(1, 2)), side*side*channels))
			if err := c.run(); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				err := c.graph.Launch(c.stream)
				if err == nil {
					err = c.stream.Sync()
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(g.FLOP(side, side)*float64(b.N)/b.Elapsed().Seconds()/1e12, "TFLOP/s")
		})
	}
}
