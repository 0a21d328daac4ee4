package models

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/diffusion"
	"github.com/diffdenoise/denoised/models/noise"
)

// HighOptions steer High.
type HighOptions struct {
	// Strength is as in Options.
	Strength float64
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
	return m.Has(NetworkBSN) && m.Has(NetworkDiffusion)
}

// High takes the noise off one slice by the full method (arXiv 2504.00264, in the
// leak-free form of docs/quality.md):
//
//  1. to 3. as Denoise;
//  4. a blind-spot network predicts every pixel from its surroundings, across a hole
//     as wide as the noise's correlation asks for, and the prediction is fused with
//     the pixel (Posterior);
//  5. a diffusion network, given the image, that prediction, the student's result and
//     the noise, samples what is missing from the student's result to the image, as
//     the mean of a stabilized pair (diffusion.SRDS), in several positions of the
//     image, which are averaged;
//  6. to 9. as 4. to 7. of Denoise.
//
// The promises are those of Denoise; it takes 50 to 100 times as long. The result
// is the same for the same seed. A model without the networks is an error that wraps
// ErrNoNetwork.
func (m *Model) High(ctx context.Context, img Image, o HighOptions) (*Result, error) {
	if o.Steps == 0 {
		o.Steps = DefaultSteps
	}
	if o.Passes == 0 {
		o.Passes = DefaultPasses
	}
	if o.Steps < 1 || o.Steps > diffusion.MaxSteps || o.Passes < 1 || o.Passes > maxPasses {
		return nil, fmt.Errorf("denoise: %d steps and %d passes, allowed are 1 to %d and 1 to %d", o.Steps, o.Passes, diffusion.MaxSteps, maxPasses)
	}
	h := &high{HighOptions: o, student: m.student}
	var err error
	if _, h.blind, err = m.Graph(NetworkBSN); err != nil {
		return nil, err
	}
	g, teacher, err := m.Graph(NetworkDiffusion)
	if err != nil {
		return nil, err
	}
	h.teacher = teacher
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Op == kernels.OpInput && n.K == 1 {
			h.condition = n.Channels
		}
	}
	return remove(ctx, img, o.Strength, h.find)
}

// high is one call of High.
type high struct {
	HighOptions
	student        *Student
	blind, teacher kernels.Program
	condition      int // channels that teacher is given
	done, total    int
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

func (h *high) find(ctx context.Context, b *scratch, native []float32, width, height int) error {
	across, down := (width+tileSide-1)/tileSide, (height+tileSide-1)/tileSide
	h.total = across * down * h.Passes * (1 + 2*h.Steps)
	b.uncertain = grow(b.uncertain, width*height)
	rng := rand.New(rand.NewPCG(h.Seed, pixelHash(native)))
	for j := range down {
		for i := range across {
			x0, y0, x1, y1 := i*width/across, j*height/down, (i+1)*width/across, (j+1)*height/down
			if err := h.tile(ctx, b, native, width, height, x0, y0, x1-x0, y1-y0, rng); err != nil {
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
func (h *high) tile(ctx context.Context, b *scratch, native []float32, width, height, x0, y0, w, ht int, rng *rand.Rand) error {
	tw, th := roundUp(w, 4)+2*margin, roundUp(ht, 4)+2*margin
	y := extended(native, width, height, x0-margin, y0-margin, tw, th)
	sigma := extended(b.sigma, width, height, x0-margin, y0-margin, tw, th)
	mean, spread := make([]float32, tw*th), make([]float32, tw*th)
	for pass := range h.Passes {
		// positions that keep the axes and such that exchange them take turns
		turn := []int{0, 7, 1, 6, 2, 5, 3, 4}[pass]
		if err := h.pass(ctx, mean, spread, y, sigma, &b.noise.Correlation, turn, tw, th, rng); err != nil {
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
			b.removed[to], b.uncertain[to] = native[to]-v, spread[from]*scale
		}
	}
	return nil
}

// pass adds the result in one position of the image to mean and the spread of its
// pair to spread.
func (h *high) pass(ctx context.Context, mean, spread, y, sigma []float32, c *noise.Correlation, turn, w, ht int, rng *rand.Rand) error {
	n := w * ht
	sx, sy := c.Holes()
	rhoX, rhoY := float32(c.At(1, 0)), float32(c.At(0, 1))
	tw, th := w, ht
	if turn&4 == 4 {
		sx, sy, rhoX, rhoY, tw, th = sy, sx, rhoY, rhoX, ht, w
	}
	y, sigma = Turned(y, w, ht, turn), Turned(sigma, w, ht, turn)
	if err := ctx.Err(); err != nil {
		return err
	}
	blind, unit := make([]float32, n), make([]float32, n)
	if err := h.blind.Run(blind, BSNBatch(y, 1, tw, th, sx, sy)); err != nil {
		return fmt.Errorf("blind-spot network: %w", err)
	}
	h.reached(h.done + 1)
	Unit(unit, sigma)
	base, p := blind, &conditioned{high: h, w: tw, h: th, given: blind}
	if h.condition != WrittenCondition {
		Posterior(blind, y, blind, sigma, tw, th)
		base, p.given = make([]float32, n), make([]float32, n*TeacherCondition)
		if err := h.student.Forward(base, y, sigma, [2]float32{rhoX, rhoY}, tw, th); err != nil {
			return fmt.Errorf("student: %w", err)
		}
		Condition(p.given, y, base, blind, sigma, rhoX, rhoY)
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
	plus, half = Unturned(plus, w, ht, turn), Unturned(half, w, ht, turn)
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
	code  [TimeCode]float32
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
		code := make([]float32, TimeCode)
		EncodeTime(code, s.T)
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
	EncodeTime(p.code[:], t)
	p.state = grow(p.state, len(x))
	StateInput(p.state, x, t)
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
		row := img[mirrored(y0+r, height)*width:][:width]
		for c := range w {
			out[r*w+c] = row[mirrored(x0+c, width)]
		}
	}
	return out
}

// mirrored returns the place within 0 to n-1 that i falls on when a line of n is
// mirrored at its ends, again and again.
func mirrored(i, n int) int {
	if n == 1 {
		return 0
	}
	if i = i % (2*n - 2); i < 0 {
		i += 2*n - 2
	}
	return min(i, 2*n-2-i)
}

// Turned returns a w×h image in one of eight positions: mirrored in x (bit 0) and in
// y (bit 1), then with its axes exchanged (bit 2), which makes it h×w.
func Turned(img []float32, w, h, turn int) []float32 {
	out := make([]float32, len(img))
	turns(w, h, turn, func(from, to int) { out[to] = img[from] })
	return out
}

// Unturned is the inverse of Turned; w and h are those of the result.
func Unturned(img []float32, w, h, turn int) []float32 {
	out := make([]float32, len(img))
	turns(w, h, turn, func(from, to int) { out[from] = img[to] })
	return out
}

func turns(w, h, turn int, f func(from, to int)) {
	for r := range h {
		for c := range w {
			x, y := c, r
			if turn&1 == 1 {
				x = w - 1 - x
			}
			if turn&2 == 2 {
				y = h - 1 - y
			}
			if turn&4 == 4 {
				f(r*w+c, x*h+y)
			} else {
				f(r*w+c, y*w+x)
			}
		}
	}
}

func roundUp(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }

// uncertainty brings b.uncertain to the image's grid and unit. It is smooth enough
// for the values that zero-filling puts below zero to be cut off.
func (b *scratch) uncertainty(grid *noise.Grid, filled bool, scale float32) []float32 {
	u := b.uncertain
	if filled {
		u = grid.Fill(nil, u)
	}
	out := make([]float32, len(u))
	for i, v := range u {
		out[i] = float32(math.Max(0, float64(v))) * scale
	}
	return out
}
