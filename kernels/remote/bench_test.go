package remote

import (
	"context"
	"os"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// BenchmarkForward is a network of next to no work, here and on a worker process: the difference is
// the way there and back. Memory is this process's alone.
func BenchmarkForward(b *testing.B) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	w := NewWorker(Options{Program: self, Env: append(os.Environ(), asWorker+"=cpu")})
	w.Start()
	defer func() {
		if err := w.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	}()
	if s := w.Settled(b.Context()); s.State != Ready {
		b.Fatalf("%+v", s)
	}
	local := fallback(b)
	net := kernelstest.RandomNet(1, 1, 0)
	for _, c := range []struct {
		name string
		on   kernels.Backend
	}{{"here", local}, {"worker", NewBackend(w, local)}} {
		n, err := c.on.Load(net.Graph())
		if err != nil {
			b.Fatal(err)
		}
		s := slicesOf(b, n, [2]int{512, 512})[0]
		dst := make([]float32, len(s.y))
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(12 * len(dst)))
			for b.Loop() {
				if err := n.Forward(dst, s.y, s.sigma, s.width, s.height); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	if s := w.Status(); s.FellBack > 0 {
		b.Errorf("%+v", s)
	}
}
