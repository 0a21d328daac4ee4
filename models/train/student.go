package train

import (
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models"
)

// studentWindow packs an image and its noise map for the graph of a student: both
// are w×h with even sides. dst gets [h/2, w/2, models.StudentIn].
func studentWindow(dst, y, sigma []float32, w, h int, rhoX, rhoY float32) {
	for r := range h / 2 {
		for c := range w / 2 {
			p := dst[(r*(w/2)+c)*models.StudentIn:][:models.StudentIn]
			a := 2*r*w + 2*c
			b := a + w
			p[0], p[1], p[2], p[3] = y[a], y[a+1], y[b], y[b+1]
			p[4] = (sigma[a] + sigma[a+1] + sigma[b] + sigma[b+1]) * (kernels.SigmaScale / 4.0)
			p[5], p[6] = rhoX, rhoY
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

// knownCorrelation returns the correlation along x and y that a network is told, as
// an estimate would be: often a little off, and now and then unknown.
func knownCorrelation(s *scene, rng *rand.Rand) (x, y float32) {
	if rng.IntN(8) == 0 {
		return 0, 0
	}
	jitter := func(v float64) float32 { return float32(min(max(v+0.05*rng.NormFloat64(), -0.5), 0.95)) }
	return jitter(s.correlation.At(1, 0)), jitter(s.correlation.At(0, 1))
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
func studentBatch(slices []Slice, count, side int, rng *rand.Rand) (*kernels.Batch, error) {
	list, err := pieces(slices, count, side, rng)
	if err != nil {
		return nil, err
	}
	cells := side / 2 * (side / 2)
	b := &kernels.Batch{Count: count, Height: side / 2, Width: side / 2,
		Inputs: [][]float32{make([]float32, count*cells*models.StudentIn)},
		Target: make([]float32, count*cells*4), Weight: make([]float32, count*cells)}
	each(count, func(k int) {
		p := &list[k]
		removed := make([]float32, side*side)
		for i, v := range p.noisy {
			removed[i] = v - p.target[i]
		}
		studentWindow(b.Inputs[0][k*cells*models.StudentIn:], p.noisy, p.given, side, side, p.rhoX, p.rhoY)
		unshuffle(b.Target[k*cells*4:], removed, side, side)
		// The error that is left rises with the noise; without a weight the loudest
		// pieces would be all that counts.
		weight := float32(math.Pow(lossNoise/noiseOf(p.sigma), 1.5))
		for i := range cells {
			b.Weight[k*cells+i] = weight
		}
	})
	return b, nil
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
