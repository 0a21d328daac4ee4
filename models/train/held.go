package train

import (
	"context"
	"github.com/diffdenoise/denoised/models/net"
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/diffusion"
	"github.com/diffdenoise/denoised/models/noise"
)

// heldOut is what networks are validated on: pieces of slices that they are not
// trained on, with noise added that stays the same all through the training.
type heldOut struct {
	side   int
	scenes []heldScene
}

type heldScene struct {
	scene
	given  []float32 // the noise map that networks are given
	probe  []float32 // random signs, for the divergence
	sx, sy int       // hole
}

// heldScenes is their number, and heldSeed where their noise comes from: not the
// training's seed, so that trainings can be compared.
const (
	heldScenes = 32
	heldSeed   = 0x68656c64
)

func newHeldOut(slices []Slice, side int) (*heldOut, error) {
	h := &heldOut{side: side}
	for k := range heldScenes {
		rng := rand.New(rand.NewPCG(heldSeed, uint64(k)))
		drawn, _, err := drawScene(slices, side, true, rng)
		if err != nil {
			return nil, err
		}
		x, y := (drawn.w-side)/2, (drawn.h-side)/2
		cut := func(img []float32) []float32 { return window(img, drawn.w, x, y, side) }
		drawn.noisy, drawn.clean, drawn.sigma = cut(drawn.noisy), cut(drawn.clean), cut(drawn.sigma)
		drawn.w, drawn.h = side, side
		s := heldScene{scene: drawn}
		s.given = misjudge(s.sigma, side, side, rng)
		s.sx, s.sy = s.correlation.Holes()
		s.probe = make([]float32, side*side)
		for i := range s.probe {
			s.probe[i] = float32(2*rng.IntN(2) - 1)
		}
		h.scenes = append(h.scenes, s)
	}
	return h, nil
}

// denoiser returns what a network makes of an image with the noise of a scene.
type denoiser func(p kernels.Program, y []float32, s *heldScene) ([]float32, error)

// probeStep is the step of the divergence, of the noise.
const probeStep = 0.1

// with returns the validation of a network. Its scores, means over the scenes:
//
//	psnr_db   against the image before the noise was added; its own noise is in it
//	gain_db   by how much that is above the noisy image's
//	sure_db   −10 log10 of Stein's unbiased estimate of the error against the image
//	          without any noise, from the noisy image only (Ramani, Blu, Unser 2008)
//	leak      the slope of the result's error on the noise: the share of the noise
//	          that comes through
//
// What is best is chosen by sure_db, for a site has no clean images to choose by.
// Scenes with correlated noise do not count for it, since the divergence assumes white
// noise, nor do magnitudes, since it assumes that the noise is zero in the mean.
func (h *heldOut) with(b kernels.GraphBackend, g *kernels.Graph, f denoiser) func([][]float32) (map[string]float64, float64, error) {
	return func(params [][]float32) (map[string]float64, float64, error) {
		p, err := b.Compile(g, params)
		if err != nil {
			return nil, 0, err
		}
		type result struct{ psnr, noisy, sure, leak float64 }
		results := make([]result, len(h.scenes))
		errs := make([]error, len(h.scenes))
		each(len(h.scenes), func(k int) {
			s, r := &h.scenes[k], &results[k]
			out, err := f(p, s.noisy, s)
			if err != nil {
				errs[k] = err
				return
			}
			probed := make([]float32, len(out))
			for i, v := range s.noisy {
				probed[i] = v + probeStep*s.sigma[i]*s.probe[i]
			}
			if probed, err = f(p, probed, s); err != nil {
				errs[k] = err
				return
			}
			var square, before, sure, both, power float64
			for i, v := range out {
				n := float64(s.noisy[i] - s.clean[i])
				e, sg := float64(v-s.clean[i]), float64(s.sigma[i])
				square += e * e
				before += n * n
				both += e * n
				power += n * n
				d := float64(s.noisy[i] - v)
				sure += d*d - sg*sg + 2*sg*float64(s.probe[i])*float64(probed[i]-v)/probeStep
			}
			count := float64(len(out))
			r.psnr, r.noisy = decibels(square/count), decibels(before/count)
			r.leak = both / power
			r.sure = math.NaN()
			if s.correlation == noise.White() && !s.lifted {
				r.sure = decibels(max(sure/count, 0.02*before/count))
			}
		})
		for _, err := range errs {
			if err != nil {
				return nil, 0, err
			}
		}
		scores := map[string]float64{}
		white := 0.0
		for _, r := range results {
			n := float64(len(results))
			scores["psnr_db"] += r.psnr / n
			scores["gain_db"] += (r.psnr - r.noisy) / n
			scores["leak"] += r.leak / n
			if !math.IsNaN(r.sure) {
				scores["sure_db"] += r.sure
				white++
			}
		}
		if white == 0 {
			return scores, -scores["psnr_db"], nil
		}
		scores["sure_db"] /= white
		return scores, -scores["sure_db"], nil
	}
}

func decibels(square float64) float64 { return -10 * math.Log10(square) }

func blindDenoiser(p kernels.Program, y []float32, s *heldScene) ([]float32, error) {
	out := make([]float32, len(y))
	err := p.Run(out, net.BSNBatch(y, 1, s.w, s.h, s.sx, s.sy))
	return out, err
}

func studentDenoiser(p kernels.Program, y []float32, s *heldScene) ([]float32, error) {
	return runStudent(p, y, s.given, net.Tell(s.correlation), s.w, s.h)
}

// runStudent is net.Student.Forward with the graph of a student, for even w and h.
func runStudent(p kernels.Program, y, sigma []float32, told net.Told, w, h int) ([]float32, error) {
	cells := w / 2 * (h / 2)
	in, noise := make([]float32, cells*net.StudentIn), make([]float32, cells*kernels.NetOut)
	studentWindow(in, y, sigma, w, h, told)
	if err := p.Run(noise, &kernels.Batch{Count: 1, Height: h / 2, Width: w / 2, Inputs: [][]float32{in}}); err != nil {
		return nil, err
	}
	out := make([]float32, len(y))
	for r := range h {
		for c := range w {
			i := r*w + c
			out[i] = y[i] - noise[(r/2*(w/2)+c/2)*4+2*(r%2)+c%2]
		}
	}
	return out, nil
}

// diffusionDenoiser is one stabilized pair of one step.
func diffusionDenoiser(with *conditions) denoiser {
	return func(p kernels.Program, y []float32, s *heldScene) ([]float32, error) {
		return samplePair(p, with, y, s.given, net.Tell(s.correlation), s.sx, s.sy, s.w, s.h, 1)
	}
}

// conditions makes what a diffusion network is given beside its state.
type conditions struct {
	blind   kernels.Program
	student kernels.Program // nil: as written
}

// channels returns the number of channels of the condition.
func (c *conditions) channels() int {
	if c.student == nil {
		return net.WrittenCondition
	}
	return net.TeacherCondition
}

// of returns the condition of a w×h image and the base that results are counted from.
func (c *conditions) of(y, sigma []float32, told net.Told, sx, sy, w, h int) (given, base []float32, err error) {
	blind := make([]float32, len(y))
	if err := c.blind.Run(blind, net.BSNBatch(y, 1, w, h, sx, sy)); err != nil {
		return nil, nil, err
	}
	if c.student == nil {
		return append(given, blind...), blind, nil
	}
	net.Posterior(blind, y, blind, sigma, w, h)
	if base, err = runStudent(c.student, y, sigma, told, w, h); err != nil {
		return nil, nil, err
	}
	given = make([]float32, len(y)*net.TeacherCondition)
	net.Condition(given, y, base, blind, sigma, told[0], told[1])
	return given, base, nil
}

// samplePair is what models.High does in one position of the image.
func samplePair(teacher kernels.Program, with *conditions, y, sigma []float32, told net.Told, sx, sy, w, h,
	steps int) ([]float32, error) {
	n := len(y)
	given, base, err := with.of(y, sigma, told, sx, sy, w, h)
	if err != nil {
		return nil, err
	}
	unit := make([]float32, n)
	net.Unit(unit, sigma)
	c := &conditioned{p: teacher, w: w, h: h, given: given}
	rng := rand.New(rand.NewPCG(heldSeed, uint64(n)))
	eps, mean, spread := make([]float32, n), make([]float32, n), make([]float32, n)
	for i := range eps {
		eps[i] = float32(rng.NormFloat64())
	}
	if err := diffusion.SRDS(context.Background(), c, mean, spread, eps, steps); err != nil {
		return nil, err
	}
	for i, v := range mean {
		mean[i] = base[i] + unit[i]*v
	}
	return mean, nil
}

// conditioned is a diffusion network with its condition.
type conditioned struct {
	p     kernels.Program
	w, h  int
	given []float32
	state []float32
	code  [net.TimeCode]float32
}

func (c *conditioned) Predict(_ context.Context, v, x []float32, t float64) error {
	net.EncodeTime(c.code[:], t)
	if c.state == nil {
		c.state = make([]float32, len(x))
	}
	net.StateInput(c.state, x, t)
	return c.p.Run(v, &kernels.Batch{Count: 1, Height: c.h, Width: c.w, Inputs: [][]float32{c.state, c.given, c.code[:]}})
}
