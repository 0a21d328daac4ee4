package cpu

import (
	"testing"

	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

func TestGraphs(t *testing.T) {
	each(t, func(t *testing.T, b *Backend) {
		if raceEnabled && b.ISA() != ISAs()[0] {
			return // the threads are the same for all, and the reference is slow then
		}
		kernelstest.RunGraphs(t, b, tolerance(b))
	})
}
