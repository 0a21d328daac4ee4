//go:build unix

package cpu

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// BenchmarkForward times whole slices of a network of the student's size. The
// metrics count the processor time of this process, not the time on the wall:
// so they hold on a machine that does other work, too.
func BenchmarkForward(b *testing.B) {
	for _, name := range ISAs() {
		be, err := New(name)
		if err != nil {
			b.Fatal(err)
		}
		net := kernelstest.RandomNet(1, 32, 8)
		loaded, err := be.Load(net.Graph())
		if err != nil {
			b.Fatal(err)
		}
		if be.Peak(1) > 0 {
			b.Run(fmt.Sprintf("isa=%s/peak", name), func(b *testing.B) {
				start, flop := processorTime(b), 0.0
				for b.Loop() {
					flop += be.Peak(1_000_000)
				}
				b.ReportMetric(flop/(processorTime(b)-start)/1e9, "GFLOP/s")
			})
		}
		for _, size := range []int{256, 512, 1024, 2048} {
			if name == Go && size > 256 {
				continue
			}
			b.Run(fmt.Sprintf("isa=%s/size=%d", name, size), func(b *testing.B) {
				y, sigma := noise(1, size*size)
				dst := make([]float32, len(y))
				start := processorTime(b)
				for b.Loop() {
					if err := loaded.Forward(dst, y, sigma, size, size); err != nil {
						b.Fatal(err)
					}
				}
				seconds := (processorTime(b) - start) / float64(b.N)
				b.ReportMetric(net.FLOP(size, size)/seconds/1e9, "GFLOP/s")
				b.ReportMetric(1e9*seconds/float64(size*size), "ns/pixel")
			})
		}
	}
}

// processorTime is the seconds that this process has computed.
func processorTime(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// studentGraph is a graph of the student's size: 8 blocks of two convolutions of 32
// channels at half resolution.
func studentGraph() *kernels.Graph {
	g := new(kernels.Graph)
	x := g.Conv(kernels.Conv3("head", 32, kernels.Linear), g.Input(kernels.NetIn))
	for k := range 8 {
		second := kernels.Conv3(fmt.Sprint(k, ".b"), 32, kernels.Linear)
		second.Residual = x
		x = g.Conv(second, g.Conv(kernels.Conv3(fmt.Sprint(k, ".a"), 32, kernels.ReLU), x))
	}
	g.Conv(kernels.Conv3("tail", kernels.NetOut, kernels.Linear), x)
	return g
}

// BenchmarkStep times steps of training on one thread: 4 patches of 64×64.
func BenchmarkStep(b *testing.B) {
	for _, name := range ISAs() {
		be, err := New(name)
		if err != nil {
			b.Fatal(err)
		}
		if name == Go {
			continue
		}
		b.Run(fmt.Sprintf("isa=%s", name), func(b *testing.B) {
			g := studentGraph()
			t, err := be.Train(g, kernels.NewState(g.Init(1)), kernels.TrainOptions{Workers: 1})
			if err != nil {
				b.Fatal(err)
			}
			const n, size = 4, 64
			batch := &kernels.Batch{Count: n, Height: size, Width: size, Inputs: [][]float32{randoms(1, n*size*size)}, Target: randoms(2, n*size*size)}
			if _, _, err := t.Step(batch, 1e-4); err != nil {
				b.Fatal(err)
			}
			start := processorTime(b)
			for b.Loop() {
				if _, _, err := t.Step(batch, 1e-4); err != nil {
					b.Fatal(err)
				}
			}
			seconds := (processorTime(b) - start) / float64(b.N)
			b.ReportMetric(1e3*seconds, "ms/step")
			b.ReportMetric(3*n*g.FLOP(size, size)/seconds/1e9, "GFLOP/s")
		})
	}
}
