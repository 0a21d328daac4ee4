package train

import (
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/net"
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
	probe  []float32 // noise of the strength of the scene's, with random signs, for the divergence
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
			s.probe[i] = float32(2*rng.IntN(2)-1) * s.sigma[i]
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
			moved := make([]float32, len(out))
			for i, v := range s.noisy {
				moved[i] = v + probeStep*s.probe[i]
			}
			probed, err := f(p, moved, s)
			if err != nil {
				errs[k] = err
				return
			}
			risk, err := sure(s.noisy, out, probed, s.probe, probeStep, s.sigma)
			if err != nil {
				errs[k] = err
				return
			}
			var square, before, both, power float64
			for i, v := range out {
				n := float64(s.noisy[i] - s.clean[i])
				e := float64(v - s.clean[i])
				square += e * e
				before += n * n
				both += e * n
				power += n * n
			}
			count := float64(len(out))
			r.psnr, r.noisy = decibels(square/count), decibels(before/count)
			r.leak = both / power
			r.sure = math.NaN()
			if s.correlation == noise.White() && !s.lifted {
				r.sure = decibels(max(risk, 0.02*before/count))
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
	out := make([]float32, len(y))
	return out, studentProgram{p}.Forward(out, y, s.given, net.Tell(s.correlation), s.w, s.h)
}

// studentProgram is a student as it is trained, for even sides.
type studentProgram struct{ kernels.Program }

// Forward implements net.Forwarder.
func (p studentProgram) Forward(dst, y, sigma []float32, told net.Told, w, h int) error {
	cells := w / 2 * (h / 2)
	in, noise := make([]float32, cells*net.StudentIn), make([]float32, cells*kernels.NetOut)
	studentWindow(in, y, sigma, w, h, told)
	if err := p.Run(noise, &kernels.Batch{Count: 1, Height: h / 2, Width: w / 2, Inputs: [][]float32{in}}); err != nil {
		return err
	}
	for r := range h {
		for c := range w {
			i := r*w + c
			dst[i] = y[i] - noise[(r/2*(w/2)+c/2)*4+2*(r%2)+c%2]
		}
	}
	return nil
}

// diffusionDenoiser is one stabilized pair of one step.
func diffusionDenoiser(teacher *net.Teacher) denoiser {
	return func(p kernels.Program, y []float32, s *heldScene) ([]float32, error) {
		with := *teacher
		with.Diffusion = p
		return samplePair(&with, &net.Noisy{Width: s.w, Height: s.h, Pixels: y, Sigma: s.given,
			Told: net.Tell(s.correlation), HoleX: s.sx, HoleY: s.sy})
	}
}

// samplePair is what models.High does in one position of the image, in one step, from noise that
// is the same for all images of a size.
func samplePair(teacher *net.Teacher, img *net.Noisy) ([]float32, error) {
	eps := make([]float32, len(img.Pixels))
	rng := rand.New(rand.NewPCG(heldSeed, uint64(len(eps))))
	for i := range eps {
		eps[i] = float32(rng.NormFloat64())
	}
	mean, _, err := teacher.Sample(img, eps, 1, nil)
	return mean, err
}
