package train

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/store"
)

// Settings of Adapt.
const (
	adaptMost   = 512 // pixels a side of a slice, its middle
	adaptSteps  = 400
	adaptBatch  = 6
	adaptSide   = 96
	adaptRate   = 2e-4
	adaptWarmUp = 20 // steps
	leastFitted = 5  // slices to fit to; fewer tell too little
	leastHeld   = 3  // slices to compare on
	heldEvery   = 3  // one slice of so many is held out
	surer       = 2  // standard errors that the gain must be above 0
	// A magnitude's noise is Gaussian where the signal is more than so many standard deviations of it.
	leastGaussian = 5
)

// ErrTooFew is the error for a series that nothing can be fitted to.
var ErrTooFew = errors.New("too few slices with noise to fit a network to")

// Adapted is what Adapt found.
type Adapted struct {
	// Model is the given one, with the fitted student if that is the better one.
	Model  *models.Model
	Fitted bool
	Hash   string // of the fitted student's weights file, SHA-256 in hex; empty if it is not used
	Slices int    // that were looked at
	// Before and After are Stein's estimates (sure) of the mean squared error of the given and the
	// fitted student, relative to the power of the noise, over the slices that are held out.
	Before, After float64
}

// Adapt fits the student of a model to one series, of which images are some slices and known is
// what all of them tell of its noise. It goes on learning from the series itself, and from noisy
// images alone: an estimate of each slice, the mean of the student's results in eight positions,
// gets new noise of the strength and the correlation that the meter tells, and the estimate is to
// be found under it (noise re-synthesis). In air, where a magnitude's noise is not Gaussian, the
// student is held to what it does. One slice in three is held out; unless the fitted student is
// the better one there, by Stein's estimate and two standard errors over the slices, the model
// comes back as it was.
//
// It takes a minute or two of all cores. The result is the same for any number of them. The error
// wraps ErrTooFew where fewer than eight slices are large enough and have noise that is surely
// known; others are those of Denoise, and of ctx.
func Adapt(ctx context.Context, backend kernels.GraphBackend, m *models.Model, images []models.Image,
	known meter.Series, progress func(done, total int)) (*Adapted, error) {
	f, err := m.Network(store.NetworkStudent)
	if err != nil {
		return nil, fmt.Errorf("adapt: %w", err)
	}
	g, params, err := net.StudentGraph(f)
	if err != nil {
		return nil, fmt.Errorf("adapt: %w", err)
	}
	fit, held, err := prepare(ctx, m, images, known)
	if err != nil {
		return nil, fmt.Errorf("adapt: %w", err)
	}
	if len(fit) < leastFitted || len(held) < leastHeld {
		return nil, fmt.Errorf("adapt: %w: %d", ErrTooFew, len(fit)+len(held))
	}
	before, err := newFitting(backend, g, params)
	if err != nil {
		return nil, fmt.Errorf("adapt: %w", err)
	}
	if err := eachSlice(ctx, fit, before.estimate); err != nil {
		return nil, fmt.Errorf("adapt: %w", err)
	}
	fitted, err := fitTo(ctx, backend, g, params, fit, progress)
	if err != nil {
		return nil, fmt.Errorf("adapt: %w", err)
	}
	after, err := newFitting(backend, g, fitted)
	if err != nil {
		return nil, fmt.Errorf("adapt: %w", err)
	}
	out := &Adapted{Model: m, Slices: len(fit) + len(held)}
	if better, err := out.compare(ctx, before, after, held); err != nil || !better {
		return out, err
	}
	file, err := net.EncodeGraph(f.Metadata["architecture"], g, fitted)
	if err != nil {
		return nil, fmt.Errorf("adapt: %w", err)
	}
	file.Metadata["format"] = net.StudentFormat
	if out.Model, err = m.WithStudent(file); err != nil {
		return nil, fmt.Errorf("adapt: %w", err)
	}
	b, err := file.Encode()
	if err != nil {
		return nil, fmt.Errorf("adapt: %w", err)
	}
	out.Fitted, out.Hash = true, fmt.Sprintf("%x", sha256.Sum256(b))
	return out, nil
}

// fittedSlice is a slice that Adapt makes use of, with even sides.
type fittedSlice struct {
	w, h     int
	y        []float32
	noise    noise.Map
	told     net.Told
	estimate []float32
	gaussian []bool // the noise is Gaussian
}

// prepare returns the slices to fit to and those that are held out.
func prepare(ctx context.Context, m *models.Model, images []models.Image, known meter.Series) (fit, held []*fittedSlice,
	err error) {
	for _, img := range images {
		p, err := m.Prepare(ctx, img, known)
		if err != nil {
			return nil, nil, err
		}
		if p == nil || min(p.Width, p.Height) < least {
			continue
		}
		s := &fittedSlice{w: min(p.Width/2*2, adaptMost), h: min(p.Height/2*2, adaptMost), noise: p.Noise, told: p.Told}
		middle := func(img []float32) []float32 {
			return part(img, p.Width, (p.Width-s.w)/2, (p.Height-s.h)/2, s.w, s.h)
		}
		s.y, s.noise.Sigma = middle(p.Pixels), middle(p.Noise.Sigma)
		s.noise.Width, s.noise.Height = s.w, s.h
		means := make([]float32, len(s.y))
		noise.Means(means, s.y, make([]float32, len(s.y)), make([]float64, s.w), s.w, s.h, 2)
		s.gaussian = make([]bool, len(s.y))
		for i, v := range means {
			s.gaussian[i] = v > leastGaussian*s.noise.Sigma[i]
		}
		if (len(fit)+len(held))%heldEvery == heldEvery/2 {
			held = append(held, s)
		} else {
			fit = append(fit, s)
		}
	}
	return fit, held, nil
}

// fitTo returns the parameters after training on the estimates.
func fitTo(ctx context.Context, backend kernels.GraphBackend, g *kernels.Graph, params [][]float32, fit []*fittedSlice,
	progress func(done, total int)) ([][]float32, error) {
	side := adaptSide
	for _, s := range fit {
		side = min(side, s.w, s.h)
	}
	trainer, err := backend.Train(g, kernels.NewState(params), kernels.TrainOptions{Decay: 1e-4, Clip: clip})
	if err != nil {
		return nil, err
	}
	for step := range adaptSteps {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rate := adaptRate * min(float64(step+1)/adaptWarmUp, math.Cos(math.Pi/2*float64(step)/adaptSteps)+0.02)
		b := renoised(fit, side, rand.New(rand.NewPCG(adaptSteps, uint64(step))))
		if _, _, err := trainer.Step(b, rate); err != nil {
			return nil, err
		}
		if progress != nil {
			progress(step+1, adaptSteps)
		}
	}
	return trainer.State().EMA, nil
}

// renoised makes a batch of pieces of the estimates with new noise.
func renoised(slices []*fittedSlice, side int, rng *rand.Rand) *kernels.Batch {
	list, seeds := make([]piece, adaptBatch), drawSeeds(adaptBatch, rng)
	each(adaptBatch, func(k int) {
		rng := rand.New(rand.NewPCG(seeds[k], uint64(k)))
		s := slices[rng.IntN(len(slices))]
		x, y := rng.IntN(s.w-side+1), rng.IntN(s.h-side+1)
		m := s.noise
		m.Width, m.Height, m.Sigma = side, side, window(s.noise.Sigma, s.w, x, y, side)
		noisy, target := make([]float32, side*side), window(s.estimate, s.w, x, y, side)
		m.Draw(noisy, rng)
		for i, v := range target {
			if at := (y+i/side)*s.w + x + i%side; s.gaussian[at] {
				noisy[i] += v
			} else {
				noisy[i] = s.y[at]
			}
		}
		turn, told := rng.IntN(8), s.told
		if turn&4 == 4 {
			told = told.Turned()
		}
		turned := func(img []float32) []float32 { return net.Turned(img, side, side, turn) }
		sigma := turned(m.Sigma)
		list[k] = piece{noisy: turned(noisy), target: turned(target), sigma: sigma, given: sigma, told: told}
	})
	return batchOf(list, side)
}

// fitting is a student before or after the fitting.
type fitting struct{ student studentProgram }

func newFitting(backend kernels.GraphBackend, g *kernels.Graph, params [][]float32) (*fitting, error) {
	p, err := backend.Compile(g, params)
	if err != nil {
		return nil, err
	}
	return &fitting{studentProgram{p}}, nil
}

// estimate sets what the student makes of a slice in eight positions.
func (f *fitting) estimate(_ int, s *fittedSlice) error {
	s.estimate = make([]float32, len(s.y))
	for turn := range 8 {
		w, h, told := s.w, s.h, s.told
		if turn&4 == 4 {
			w, h, told = h, w, told.Turned()
		}
		out := make([]float32, len(s.y))
		err := f.student.Forward(out, net.Turned(s.y, s.w, s.h, turn), net.Turned(s.noise.Sigma, s.w, s.h, turn), told, w, h)
		if err != nil {
			return err
		}
		for i, v := range net.Unturned(out, s.w, s.h, turn) {
			s.estimate[i] += v / 8
		}
	}
	return nil
}

// risk is Stein's estimate of the student's mean squared error on a slice, relative to the noise's
// power; 0 where nothing can be told.
func (f *fitting) risk(k int, s *fittedSlice) (float64, error) {
	b, moved := make([]float32, len(s.y)), make([]float32, len(s.y))
	s.noise.Draw(b, rand.New(rand.NewPCG(adaptSteps, uint64(k))))
	for i, v := range s.y {
		moved[i] = v + probeStep*b[i]
	}
	fy, fyb := make([]float32, len(s.y)), make([]float32, len(s.y))
	if err := f.student.Forward(fy, s.y, s.noise.Sigma, s.told, s.w, s.h); err != nil {
		return 0, err
	}
	if err := f.student.Forward(fyb, moved, s.noise.Sigma, s.told, s.w, s.h); err != nil {
		return 0, err
	}
	gaussian := func(img []float32) (part []float32) {
		for i, v := range img {
			if s.gaussian[i] {
				part = append(part, v)
			}
		}
		return part
	}
	sigma := gaussian(s.noise.Sigma)
	power := 0.0
	for _, v := range sigma {
		power += float64(v) * float64(v)
	}
	if power == 0 {
		return 0, nil
	}
	mse, err := sure(gaussian(s.y), gaussian(fy), gaussian(fyb), gaussian(b), probeStep, sigma)
	return mse / power * float64(len(sigma)), err
}

// compare tells whether the student is better after the fitting than before.
func (a *Adapted) compare(ctx context.Context, before, after *fitting, held []*fittedSlice) (better bool, err error) {
	gains := make([]float64, len(held))
	risks := make([][2]float64, len(held))
	err = eachSlice(ctx, held, func(k int, s *fittedSlice) error {
		for j, f := range []*fitting{before, after} {
			r, err := f.risk(k, s)
			if err != nil {
				return err
			}
			risks[k][j] = r
		}
		gains[k] = risks[k][0] - risks[k][1]
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("adapt: %w", err)
	}
	n := float64(len(held))
	mean, square := 0.0, 0.0
	for k, gain := range gains {
		mean += gain / n
		a.Before += risks[k][0] / n
		a.After += risks[k][1] / n
	}
	for _, gain := range gains {
		square += (gain - mean) * (gain - mean)
	}
	return mean > surer*math.Sqrt(square/(n*(n-1))), nil
}

// eachSlice calls f for all slices on all cores, until ctx ends.
func eachSlice(ctx context.Context, slices []*fittedSlice, f func(k int, s *fittedSlice) error) error {
	errs := make([]error, len(slices))
	each(len(slices), func(k int) {
		if errs[k] = ctx.Err(); errs[k] == nil {
			errs[k] = f(k, slices[k])
		}
	})
	return errors.Join(errs...)
}
