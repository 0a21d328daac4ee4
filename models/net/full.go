package net

import (
	"fmt"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/diffusion"
	"github.com/diffdenoise/denoised/models/noise"
)

// Noisy is an image with what networks are told of its noise.
type Noisy struct {
	Width, Height int
	// Pixels are [Height, Width] in the scale of a Student, and Sigma is the standard deviation
	// of their noise in it.
	Pixels, Sigma []float32
	Told          Told
	// HoleX and HoleY are how wide a blind-spot network is to look away, in pixels: 1, 3 or 5.
	HoleX, HoleY int
}

// Turned is the image in another position, as the function Turned.
func (n *Noisy) Turned(turn int) *Noisy {
	t := *n
	t.Pixels, t.Sigma = Turned(n.Pixels, n.Width, n.Height, turn), Turned(n.Sigma, n.Width, n.Height, turn)
	if turn&4 == 4 {
		t.Width, t.Height, t.HoleX, t.HoleY, t.Told = n.Height, n.Width, n.HoleY, n.HoleX, n.Told.Turned()
	}
	return &t
}

// Forwarder is a student that is ready to run.
type Forwarder interface {
	// Forward is that of Student.
	Forward(dst, y, sigma []float32, told Told, width, height int) error
}

// Teacher is the full method: the networks that it takes, each on a backend. Its methods change
// nothing and are as safe for concurrent use as the networks. Sides of images are multiples of 4.
type Teacher struct {
	Blind     kernels.Program
	Student   Forwarder       // nil: the method as written (WrittenCondition)
	Diffusion kernels.Program // Condition does without
}

// NewTeacher returns the teacher of a diffusion network, whose condition tells whether it counts
// from what a student makes of the image.
func NewTeacher(g *kernels.Graph, diffusion, blind kernels.Program, student Forwarder) *Teacher {
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Op == kernels.OpInput && n.K == 1 && n.Channels == WrittenCondition {
			student = nil
		}
	}
	return &Teacher{Blind: blind, Student: student, Diffusion: diffusion}
}

// Channels returns the number of channels of the condition.
func (t *Teacher) Channels() int {
	if t.Student == nil {
		return WrittenCondition
	}
	return TeacherCondition
}

// Condition returns what the diffusion network is given beside its state, [Height, Width,
// Channels], and the base that its result is counted from in units of the noise (Unit),
// [Height, Width].
//
// The network is trained on pairs of images with independent noise, so it may be given the noisy
// image itself: it, the base, which is what the student makes of it, the blind-spot prediction
// fused with the pixel (Posterior), the noise map and the correlation of the noise along x and y.
// As written, the blind-spot prediction is base and condition.
func (t *Teacher) Condition(img *Noisy) (condition, base []float32, err error) {
	blind, err := t.blind(img)
	if err != nil {
		return nil, nil, err
	}
	return t.condition(img, blind)
}

func (t *Teacher) blind(img *Noisy) ([]float32, error) {
	blind := make([]float32, len(img.Pixels))
	err := t.Blind.Run(blind, BSNBatch(img.Pixels, 1, img.Width, img.Height, img.HoleX, img.HoleY))
	if err != nil {
		return nil, fmt.Errorf("blind-spot network: %w", err)
	}
	return blind, nil
}

func (t *Teacher) condition(img *Noisy, blind []float32) (condition, base []float32, err error) {
	if t.Student == nil {
		return blind, blind, nil
	}
	fused := blind
	Posterior(fused, img.Pixels, blind, img.Sigma, img.Width, img.Height)
	base = make([]float32, len(img.Pixels))
	if err := t.Student.Forward(base, img.Pixels, img.Sigma, img.Told, img.Width, img.Height); err != nil {
		return nil, nil, fmt.Errorf("student: %w", err)
	}
	condition = make([]float32, len(img.Pixels)*TeacherCondition)
	for i, v := range img.Pixels {
		c := condition[i*TeacherCondition:][:TeacherCondition]
		c[0], c[1], c[2], c[3] = v, base[i], fused[i], kernels.SigmaScale*img.Sigma[i]
		c[4], c[5] = img.Told[0], img.Told[1]
	}
	return condition, base, nil
}

// Runs returns how many runs of networks Sample counts.
func Runs(steps int) int { return 1 + 2*steps }

// Sample denoises an image by stabilized reverse diffusion sampling (SRDS, arXiv 2504.00264): mean is
// that of the two samples that start at eps and -eps, and spread half their absolute difference, what
// the network leaves open at every pixel. For a distribution that is symmetric about its mean the
// former is that mean whatever the number of steps, 1 to diffusion.MaxSteps. All are [Height, Width];
// eps is normal of variance 1.
//
// done is that of kernels.SamplePair, but counts the blind-spot network besides: Runs in all.
func (t *Teacher) Sample(img *Noisy, eps []float32, steps int, done func(runs int) error) (mean, spread []float32,
	err error) {
	if steps < 1 || steps > diffusion.MaxSteps {
		return nil, nil, fmt.Errorf("sample: %d steps, allowed are 1 to %d", steps, diffusion.MaxSteps)
	}
	if done == nil {
		done = func(int) error { return nil }
	}
	blind, err := t.blind(img)
	if err != nil {
		return nil, nil, err
	}
	if err := done(1); err != nil {
		return nil, nil, err
	}
	condition, base, err := t.condition(img, blind)
	if err != nil {
		return nil, nil, err
	}
	mean, spread = make([]float32, len(eps)), make([]float32, len(eps))
	b := &kernels.Batch{Count: 1, Height: img.Height, Width: img.Width, Inputs: [][]float32{nil, condition, nil}}
	err = kernels.SamplePair(t.Diffusion, mean, spread, eps, b, SampleSteps(steps), func(runs int) error {
		return done(1 + runs)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("diffusion network: %w", err)
	}
	unit := make([]float32, len(eps))
	Unit(unit, img.Sigma)
	for i := range mean {
		mean[i] = base[i] + unit[i]*mean[i]
		spread[i] *= unit[i]
	}
	return mean, spread, nil
}

// SampleSteps returns the steps of sampling with a diffusion network: diffusion.Steps, with the
// state as StateInput gives it and the time as EncodeTime does.
func SampleSteps(steps int) []kernels.SampleStep {
	list := make([]kernels.SampleStep, 0, steps)
	for _, s := range diffusion.Steps(steps) {
		code := make([]float32, TimeCode)
		EncodeTime(code, s.T)
		list = append(list, kernels.SampleStep{State: float32(diffusion.Alpha(s.T)), Vector: code, Keep: float32(s.Keep),
			Add: float32(s.Add)})
	}
	return list
}

// Unit writes the standard deviation in which the diffusion is counted: that of the
// noise, but never less than a small share of its mean, so that noise-free places do
// not blow up.
func Unit(dst, sigma []float32) {
	sum := 0.0
	for _, s := range sigma {
		sum += float64(s)
	}
	least := max(float32(0.2*sum/float64(max(len(sigma), 1))), 0.2/255)
	for i, s := range sigma {
		dst[i] = max(s, least)
	}
}

// posteriorWindow is half the window of Posterior: 9×9 pixels.
const posteriorWindow = 4

// Posterior fuses what a blind-spot network predicts for a pixel with the pixel
// itself, as the mean of two normal distributions (Laine et al. 2019, section 3):
//
//	(blind·σ² + y·v) / (v + σ²)   with v = mean of (y − blind)² over 9×9 − σ², at least 0
//
// where v is how far the prediction is off the image. All are w×h.
func Posterior(dst, y, blind, sigma []float32, w, h int) {
	off := make([]float32, len(y))
	for i, v := range y {
		d := v - blind[i]
		off[i] = d * d
	}
	noise.Means(off, off, make([]float32, len(off)), make([]float64, w), w, h, posteriorWindow)
	for i, v := range y {
		variance := sigma[i] * sigma[i]
		model := max(off[i]-variance, 0)
		if variance == 0 {
			dst[i] = v
			continue
		}
		dst[i] = (blind[i]*variance + v*model) / (model + variance)
	}
}
