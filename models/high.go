package models

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/internal/numeric"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/diffusion"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/store"
)

// HighOptions steer High.
type HighOptions struct {
	// Strength and Series are as in Options.
	Strength float64
	Series   meter.Series
	// Steps of the sampling of one pair; 0: DefaultSteps.
	Steps int
	// Passes is how many positions of the image, of eight, are sampled and averaged;
	// 0: DefaultPasses.
	Passes int
	// Seed chooses the noise that sampling starts from.
	Seed uint64
	// Progress, if not nil, is told how many calls of networks are done, after each
	// or after a few; never fewer than before. Calls come from the goroutine that
	// called High.
	Progress func(done, total int)
}

// What High does if it is not told otherwise; docs/quality.md has what more would
// gain.
const (
	DefaultSteps  = 2 // with one, both samples of a pair are the same
	DefaultPasses = 4
	maxPasses     = 8
)

// HasHigh tells whether the model has the networks that High needs.
func (m *Model) HasHigh() bool {
	return m.Has(store.NetworkBSN) && m.Has(store.NetworkDiffusion)
}

// High takes the noise off one slice by the full method (arXiv 2504.00264, in the
// leak-free form of docs/quality.md):
//
//  1. and 2. as Denoise;
//  3. a blind-spot network predicts every pixel from its surroundings, across a hole
//     as wide as the noise's correlation asks for, and the prediction is fused with
//     the pixel (net.Posterior); a diffusion network, given the image, that prediction,
//     the student's result and the noise, samples what is missing from the student's
//     result to the image, as the mean of a stabilized pair (diffusion.SRDS), in several
//     positions of the image, which are averaged; on the grid of Denoise;
//  4. to 7. as Denoise.
//
// The promises are those of Denoise; it takes 50 to 100 times as long. The result
// is the same for the same seed. A model without the networks is an error that wraps
// ErrNoNetwork.
func (m *Model) High(ctx context.Context, img Image, o HighOptions) (*Result, error) {
	h, err := m.newHigh(o)
	if err != nil {
		return nil, err
	}
	return m.denoise(ctx, img, Options{Strength: o.Strength, Series: o.Series}, h.predict)
}

// high is one call of High.
type high struct {
	HighOptions
	student        *net.Student
	blind, teacher kernels.Program
	condition      int // channels that teacher is given
	done, total    int
}

// newHigh makes the networks ready, and refuses what is not allowed.
func (m *Model) newHigh(o HighOptions) (*high, error) {
	if o.Steps == 0 {
		o.Steps = DefaultSteps
	}
	if o.Passes == 0 {
		o.Passes = DefaultPasses
	}
	if o.Steps < 1 || o.Steps > diffusion.MaxSteps || o.Passes < 1 || o.Passes > maxPasses {
		return nil, fmt.Errorf("denoise: %d steps and %d passes, allowed are 1 to %d and 1 to %d", o.Steps, o.Passes, diffusion.MaxSteps, maxPasses)
	}
	h := &high{HighOptions: o, student: m.Student()}
	var err error
	if _, h.blind, err = m.Graph(store.NetworkBSN); err != nil {
		return nil, err
	}
	g, teacher, err := m.Graph(store.NetworkDiffusion)
	if err != nil {
		return nil, err
	}
	h.teacher = teacher
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Op == kernels.OpInput && n.K == 1 {
			h.condition = n.Channels
		}
	}
	return h, nil
}

// Images are cut into tiles that are done one after the other, so that memory does
// not grow with the image: a tile takes about 300 MB.
const (
	tileSide = 512
	// margin is how far a tile reaches beyond what is taken from it, into the image or,
	// at its border, into its mirror image, so that no network sees zeros beside it. A
	// multiple of what they divide sizes by.
	margin = 24
)

func (h *high) predict(ctx context.Context, p *predicted, n *normalized, told *meter.Reading) error {
	width, height := n.w, n.h
	across, down := (width+tileSide-1)/tileSide, (height+tileSide-1)/tileSide
	h.total = across * down * h.Passes * (1 + 2*h.Steps)
	p.spread = numeric.Grow(p.spread, width*height)
	rng := rand.New(rand.NewPCG(h.Seed, pixelHash(n.y)))
	for j := range down {
		for i := range across {
			x0, y0, x1, y1 := i*width/across, j*height/down, (i+1)*width/across, (j+1)*height/down
			if err := h.tile(ctx, p, n, told, x0, y0, x1-x0, y1-y0, rng); err != nil {
				return err
			}
		}
	}
	return nil
}

// pixelHash is FNV-1a of an image, so that no two slices of a series start from the same noise:
// what a pair does not cancel would be a pattern through all of them.
func pixelHash(img []float32) uint64 {
	h := uint64(14695981039346656037)
	for _, v := range img {
		h = (h ^ uint64(math.Float32bits(v))) * 1099511628211
	}
	return h
}

// tile finds the noise of the w×h pixels at (x0, y0).
func (h *high) tile(ctx context.Context, p *predicted, n *normalized, told *meter.Reading, x0, y0, w, ht int,
	rng *rand.Rand) error {
	width, height := n.w, n.h
	tw, th := roundUp(w, 4)+2*margin, roundUp(ht, 4)+2*margin
	y := extended(n.y, width, height, x0-margin, y0-margin, tw, th)
	sigma := extended(told.Given, width, height, x0-margin, y0-margin, tw, th)
	mean, spread := make([]float32, tw*th), make([]float32, tw*th)
	for pass := range h.Passes {
		// positions that keep the axes and such that exchange them take turns
		turn := []int{0, 7, 1, 6, 2, 5, 3, 4}[pass]
		if err := h.pass(ctx, mean, spread, y, sigma, told, turn, tw, th, rng); err != nil {
			return err
		}
	}
	scale := 1 / float32(h.Passes)
	for r := range ht {
		for c := range w {
			from, to := (r+margin)*tw+c+margin, (y0+r)*width+x0+c
			v := mean[from] * scale
			if !finite(v) {
				return fmt.Errorf("denoise: the networks' result is not finite at (%d, %d)", x0+c, y0+r)
			}
			p.removed[to], p.spread[to] = n.y[to]-v, spread[from]*scale
		}
	}
	return nil
}

// pass adds the result in one position of the image to mean and the spread of its
// pair to spread.
func (h *high) pass(ctx context.Context, mean, spread, y, sigma []float32, told *meter.Reading, turn, w, ht int,
	rng *rand.Rand) error {
	n := w * ht
	sx, sy := told.Map.Correlation.Holes()
	lags := told.Told
	tw, th := w, ht
	if turn&4 == 4 {
		sx, sy, lags, tw, th = sy, sx, lags.Turned(), ht, w
	}
	y, sigma = net.Turned(y, w, ht, turn), net.Turned(sigma, w, ht, turn)
	if err := ctx.Err(); err != nil {
		return err
	}
	blind, unit := make([]float32, n), make([]float32, n)
	if err := h.blind.Run(blind, net.BSNBatch(y, 1, tw, th, sx, sy)); err != nil {
		return fmt.Errorf("blind-spot network: %w", err)
	}
	h.reached(h.done + 1)
	net.Unit(unit, sigma)
	base, p := blind, &conditioned{high: h, w: tw, h: th, given: blind}
	if h.condition != net.WrittenCondition {
		net.Posterior(blind, y, blind, sigma, tw, th)
		base, p.given = make([]float32, n), make([]float32, n*net.TeacherCondition)
		if err := h.student.Forward(base, y, sigma, lags, tw, th); err != nil {
			return fmt.Errorf("student: %w", err)
		}
		net.Condition(p.given, y, base, blind, sigma, lags[0], lags[1])
	}
	eps, plus, half := make([]float32, n), make([]float32, n), make([]float32, n)
	for i := range eps {
		eps[i] = float32(rng.NormFloat64())
	}
	if err := p.sample(ctx, plus, half, eps); err != nil {
		return err
	}
	for i := range plus {
		plus[i] = base[i] + unit[i]*plus[i]
		half[i] *= unit[i]
	}
	plus, half = net.Unturned(plus, w, ht, turn), net.Unturned(half, w, ht, turn)
	for i := range mean {
		mean[i] += plus[i]
		spread[i] += half[i]
	}
	return nil
}

// reached tells how many calls of a network are done.
func (h *high) reached(done int) {
	h.done = done
	if h.Progress != nil {
		h.Progress(h.done, h.total)
	}
}

// conditioned is the diffusion network with its condition.
type conditioned struct {
	*high
	w, h  int
	given []float32
	state []float32
	code  [net.TimeCode]float32
}

// sample does diffusion.SRDS, on the network's device if that can.
func (p *conditioned) sample(ctx context.Context, mean, spread, eps []float32) error {
	sampler, ok := p.teacher.(kernels.Sampler)
	if !ok {
		return diffusion.SRDS(ctx, p, mean, spread, eps, p.Steps)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var steps []kernels.SampleStep
	for _, s := range diffusion.Steps(p.Steps) {
		code := make([]float32, net.TimeCode)
		net.EncodeTime(code, s.T)
		// The state is given as StateInput has it.
		steps = append(steps, kernels.SampleStep{State: float32(diffusion.Alpha(s.T)), Vector: code, Keep: float32(s.Keep), Add: float32(s.Add)})
	}
	before := p.done
	b := &kernels.Batch{Count: 1, Height: p.h, Width: p.w, Inputs: [][]float32{nil, p.given, nil}}
	err := sampler.SamplePair(mean, spread, eps, b, steps, func(step int) error {
		// Each step is two calls. A device that was lost on the way has begun anew, which does not
		// count again.
		p.reached(max(p.done, before+2*step))
		return ctx.Err()
	})
	if err != nil {
		return fmt.Errorf("diffusion network: %w", err)
	}
	return nil
}

// Predict implements diffusion.Predictor.
func (p *conditioned) Predict(ctx context.Context, v, x []float32, t float64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	net.EncodeTime(p.code[:], t)
	p.state = numeric.Grow(p.state, len(x))
	net.StateInput(p.state, x, t)
	err := p.teacher.Run(v, &kernels.Batch{Count: 1, Height: p.h, Width: p.w, Inputs: [][]float32{p.state, p.given, p.code[:]}})
	if err != nil {
		return fmt.Errorf("diffusion network: %w", err)
	}
	p.reached(p.done + 1)
	return nil
}

// extended returns the w×h pixels at (x0, y0) of an image that is continued by
// mirroring on all sides.
func extended(img []float32, width, height, x0, y0, w, h int) []float32 {
	out := make([]float32, w*h)
	for r := range h {
		row := img[numeric.Mirror(y0+r, height)*width:][:width]
		for c := range w {
			out[r*w+c] = row[numeric.Mirror(x0+c, width)]
		}
	}
	return out
}

func roundUp(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }
