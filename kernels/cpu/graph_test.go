package cpu

import (
	"testing"

	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

func TestGraphs(t *testing.T) {
	each(t, func(t *testing.T, b *Backend) { kernelstest.RunGraphs(t, b, tolerance(b)) })
}
