package train

import (
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/noise"
)

// meterBatch makes count pieces of side×side for a noise meter, which is to tell of the noise
// of each what is known of it.
func meterBatch(slices []Slice, count, side int, rng *rand.Rand) (*kernels.Batch, error) {
	list, err := pieces(slices, count, side, nil, rng)
	if err != nil {
		return nil, err
	}
	cells, n := side/net.MeterCell, side/net.MeterCell*side/net.MeterCell*net.MeterIn
	b := &kernels.Batch{Count: count, Height: cells, Width: cells,
		Inputs: [][]float32{make([]float32, count*n)},
		Target: make([]float32, count*cells*cells*net.MeterOut), Weight: make([]float32, count*cells*cells)}
	for k := range list {
		p := &list[k]
		var seen net.Cells
		seen.Measure(p.noisy, side, side, noise.Outside(nil, p.noisy, side, side, nil))
		in, scale := net.MeterInput(&seen)
		if scale == 0 {
			continue
		}
		copy(b.Inputs[0][k*n:], in)
		told := net.Tell(p.correlation)
		for cell := range cells * cells {
			x0, y0 := cell%cells*net.MeterCell, cell/cells*net.MeterCell
			sum, blank := 0.0, 0
			for y := y0; y < y0+net.MeterCell; y++ {
				for x, s := range p.sigma[y*side+x0:][:net.MeterCell] {
					sum += float64(s) * float64(s)
					if p.noisy[y*side+x0+x] == 0 {
						blank++
					}
				}
			}
			at := k*cells*cells + cell
			out := b.Target[at*net.MeterOut:][:net.MeterOut]
			net.EncodeLevel(out, math.Sqrt(sum)/net.MeterCell/scale)
			copy(out[net.Levels:], told[:])
			if blank <= net.MeterCell*net.MeterCell/4 {
				b.Weight[at] = 1
			}
		}
	}
	return b, nil
}
