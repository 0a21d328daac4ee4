package models

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/diffdenoise/denoised/internal/numeric"
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
//     result to the image, as the mean of a stabilized pair (net.Teacher), in several
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
	teacher     *net.Teacher
	done, total int
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
	_, blind, err := m.Graph(store.NetworkBSN)
	if err != nil {
		return nil, err
	}
	g, program, err := m.Graph(store.NetworkDiffusion)
	if err != nil {
		return nil, err
	}
	return &high{HighOptions: o, teacher: net.NewTeacher(g, program, blind, m.Student())}, nil
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
	h.total = across * down * h.Passes * net.Runs(h.Steps)
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
	img := &net.Noisy{Width: tw, Height: th, Told: told.Told,
		Pixels: extended(n.y, width, height, x0-margin, y0-margin, tw, th),
		Sigma:  extended(told.Given, width, height, x0-margin, y0-margin, tw, th)}
	img.HoleX, img.HoleY = told.Map.Correlation.Holes()
	mean, spread := make([]float32, tw*th), make([]float32, tw*th)
	for pass := range h.Passes {
		// positions that keep the axes and such that exchange them take turns
		turn := []int{0, 7, 1, 6, 2, 5, 3, 4}[pass]
		if err := h.pass(ctx, mean, spread, img, turn, rng); err != nil {
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
func (h *high) pass(ctx context.Context, mean, spread []float32, img *net.Noisy, turn int, rng *rand.Rand) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	eps := make([]float32, len(mean))
	for i := range eps {
		eps[i] = float32(rng.NormFloat64())
	}
	before := h.done
	plus, half, err := h.teacher.Sample(img.Turned(turn), eps, h.Steps, func(runs int) error {
		// A device that was lost on the way has begun anew, which does not count again.
		h.done = max(h.done, before+runs)
		if h.Progress != nil {
			h.Progress(h.done, h.total)
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	plus, half = net.Unturned(plus, img.Width, img.Height, turn), net.Unturned(half, img.Width, img.Height, turn)
	for i := range mean {
		mean[i] += plus[i]
		spread[i] += half[i]
	}
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
