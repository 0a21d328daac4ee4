package train

import (
	"github.com/diffdenoise/denoised/models/net"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/noise"
)

// studentWindow packs an image and its noise map for the graph of a student: both
// are w×h with even sides. dst gets [h/2, w/2, net.StudentIn].
func studentWindow(dst, y, sigma []float32, w, h int, told net.Told) {
	for r := range h / 2 {
		for c := range w / 2 {
			p := dst[(r*(w/2)+c)*net.StudentIn:][:net.StudentIn]
			a := 2*r*w + 2*c
			b := a + w
			p[0], p[1], p[2], p[3] = y[a], y[a+1], y[b], y[b+1]
			p[4] = (sigma[a] + sigma[a+1] + sigma[b] + sigma[b+1]) * (kernels.SigmaScale / 4.0)
			copy(p[kernels.NetIn:], told[:])
		}
	}
}

// unshuffle packs a w×h image as [h/2, w/2, 4].
func unshuffle(dst, y []float32, w, h int) {
	for r := range h / 2 {
		for c := range w / 2 {
			p := dst[(r*(w/2)+c)*4:][:4]
			a := 2*r*w + 2*c
			p[0], p[1], p[2], p[3] = y[a], y[a+1], y[a+w], y[a+w+1]
		}
	}
}

// misjudgeCorrelation returns a correlation as an estimate would be: a little off, and now
// and then unknown.
func misjudgeCorrelation(c noise.Correlation, rng *rand.Rand) noise.Correlation {
	if rng.IntN(16) == 0 {
		return noise.White()
	}
	off := 0.05 * rng.Float64()
	for dy := range c.Rho {
		for dx := range c.Rho[dy] {
			c.Rho[dy][dx] = min(max(c.Rho[dy][dx]+off*rng.NormFloat64(), -1), 1)
		}
	}
	c.Rho[0][0] = 1
	return c
}

// noiseOf is the standard deviation by which the loss of a piece is scaled: the
// mean of the map, within what networks learn.
func noiseOf(sigma []float32) float64 {
	sum := 0.0
	for _, v := range sigma {
		sum += float64(v)
	}
	return min(max(sum/float64(len(sigma)), leastNoise), mostNoise)
}

// studentBatch makes count pieces of side×side for a student, which is to find what
// differs from the target.
func studentBatch(slices []Slice, count, side int, meter kernels.Program, rng *rand.Rand) (*kernels.Batch, error) {
	list, err := pieces(slices, count, side, meter, rng)
	if err != nil {
		return nil, err
	}
	return batchOf(list, side), nil
}

// batchOf packs pieces for a student.
func batchOf(list []piece, side int) *kernels.Batch {
	cells, count := side/2*(side/2), len(list)
	b := &kernels.Batch{Count: count, Height: side / 2, Width: side / 2,
		Inputs: [][]float32{make([]float32, count*cells*net.StudentIn)},
		Target: make([]float32, count*cells*4), Weight: make([]float32, count*cells)}
	each(count, func(k int) {
		p := &list[k]
		removed := make([]float32, side*side)
		for i, v := range p.noisy {
			removed[i] = v - p.target[i]
		}
		studentWindow(b.Inputs[0][k*cells*net.StudentIn:], p.noisy, p.given, side, side, p.told)
		unshuffle(b.Target[k*cells*4:], removed, side, side)
		// The error that is left rises with the noise; without a weight the loudest
		// pieces would be all that counts.
		weight := float32(math.Pow(lossNoise/noiseOf(p.sigma), 1.5))
		for i := range cells {
			b.Weight[k*cells+i] = weight
		}
	})
	return b
}

// lossNoise is the noise at which the loss has the weight 1.
const lossNoise = 6. / 255

func hypot(a, b float32) float32 { return float32(math.Sqrt(float64(a*a + b*b))) }

// each calls f for 0 to n-1 on all cores.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}
