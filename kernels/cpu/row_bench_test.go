package cpu

import (
	"fmt"
	"testing"

	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// BenchmarkRow times the row kernels on their own, 32 channels in and out, data
// in the first- and second-level cache, beside the peak of the same machine.
func BenchmarkRow(b *testing.B) {
	for _, name := range ISAs() {
		be, err := New(name)
		if err != nil {
			b.Fatal(err)
		}
		if be.Peak(1) > 0 {
			b.Run(fmt.Sprintf("isa=%s/peak", name), func(b *testing.B) {
				flop := 0.0
				for b.Loop() {
					flop += be.Peak(1000)
				}
				b.ReportMetric(flop/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
		for _, n := range []int{128, 130, 121} {
			b.Run(fmt.Sprintf("isa=%s/pixels=%d", name, n), func(b *testing.B) {
				net := kernelstest.RandomNet(1, 32, 1)
				p := packConv(&be.isa, &net.Layers[2].Conv, 32)
				x, halfs, y := aligned[float32](3*(n+2)*32), aligned[uint32](3*(n+2)*16), aligned[float32](n*32)
				var under window
				for k := range 3 {
					under.x[k], under.halfs[k] = x[k*(n+2)*32:], halfs[k*(n+2)*16:]
				}
				r := new(row)
				for b.Loop() {
					p.row(r, y, y, under, n)
				}
				b.ReportMetric(float64(n)*18*32*32*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}
