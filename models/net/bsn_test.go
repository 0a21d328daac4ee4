package net

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
)

var smallBSN = BSNConfig{Channels: [3]int{4, 6, 8}, Mix: 6}

func graphBackend(t *testing.T) kernels.GraphBackend {
	t.Helper()
	b, err := cpu.Select()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBlindSpot is the proof that a pixel does not see itself, for every hole: after
// a change of one pixel of the input, exactly the outputs within the hole around it
// are the same bit for bit.
func TestBlindSpot(t *testing.T) {
	g := smallBSN.Graph()
	if err := g.Err(); err != nil {
		t.Fatal(err)
	}
	params := g.Init(3)
	for _, p := range params { // some start at zero, and would hide what they see
		for i := range p {
			p[i] += float32(0.05 * math.Sin(float64(i)))
		}
	}
	p, err := graphBackend(t).Compile(g, params)
	if err != nil {
		t.Fatal(err)
	}
	const w, h = 24, 20
	rng := rand.New(rand.NewPCG(1, 2))
	y := make([]float32, w*h)
	for i := range y {
		y[i] = rng.Float32()
	}
	run := func(y []float32, sx, sy int) []float32 {
		out := make([]float32, len(y))
		err := p.Run(out, BSNBatch(y, 1, w, h, sx, sy))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, sx := range []int{1, 3, 5} {
		for _, sy := range []int{1, 3, 5} {
			before := run(y, sx, sy)
			for range 40 {
				px, py := rng.IntN(w), rng.IntN(h)
				other := slices.Clone(y)
				other[py*w+px] += 1000
				after := run(other, sx, sy)
				seen := 0
				for r := range h {
					for c := range w {
						inside := max(c-px, px-c) <= sx/2 && max(r-py, py-r) <= sy/2
						same := math.Float32bits(before[r*w+c]) == math.Float32bits(after[r*w+c])
						if inside && !same {
							t.Fatalf("hole %d×%d: (%d, %d) sees the pixel (%d, %d)", sx, sy, c, r, px, py)
						}
						if !same {
							seen++
						}
					}
				}
				if seen < 60 {
					t.Fatalf("hole %d×%d: only %d outputs see the pixel (%d, %d)", sx, sy, seen, px, py)
				}
			}
			// The next pixel beyond the hole is seen.
			other := slices.Clone(y)
			other[10*w+12] += 1000
			after := run(other, sx, sy)
			for _, at := range []int{10*w + 12 + sx/2 + 1, (10+sy/2+1)*w + 12} {
				if before[at] == after[at] {
					t.Errorf("hole %d×%d is wider than it should be", sx, sy)
				}
			}
		}
	}
}

// TestGraphGradients holds the gradient of whole networks to finite differences of
// their own loss, along the gradient.
func TestGraphGradients(t *testing.T) {
	for name, g := range map[string]*kernels.Graph{
		"blind-spot": smallBSN.Graph(),
		"diffusion":  TeacherConfig{Condition: TeacherCondition, Channels: [3]int{4, 6, 8}, Code: 8}.Graph(),
		"student":    StudentConfig{Channels: 8, Blocks: 2}.Graph(),
	} {
		rng := rand.New(rand.NewPCG(5, 6))
		params := g.Init(9)
		for _, p := range params {
			for i := range p {
				p[i] += float32(0.05 * rng.NormFloat64()) // none is zero
			}
		}
		b := &kernels.Batch{Count: 2, Height: 16, Width: 12, Shifts: make([]int, g.Shifts())}
		for i := range b.Shifts {
			b.Shifts[i] = 1
		}
		for i := range g.Nodes {
			if n := &g.Nodes[i]; n.Op == kernels.OpInput {
				h, w := n.Size(16, 12)
				in := make([]float32, 2*h*w*n.Channels)
				for j := range in {
					in[j] = float32(rng.NormFloat64())
				}
				b.Inputs = append(b.Inputs, in)
			}
		}
		h, w := g.Output().Size(16, 12)
		b.Target = make([]float32, 2*h*w*g.Output().Channels)
		loss := func(params [][]float32) (float64, [][]float32) {
			tr, err := graphBackend(t).Train(g, kernels.NewState(params), kernels.TrainOptions{})
			if err != nil {
				t.Fatal(err)
			}
			l, grad, err := tr.Gradient(b)
			if err != nil {
				t.Fatal(err)
			}
			return l, grad
		}
		_, grad := loss(params)
		norm := 0.0
		for _, p := range grad {
			for _, v := range p {
				norm += float64(v) * float64(v)
			}
		}
		moved := func(step float64) float64 {
			p := make([][]float32, len(params))
			for i := range p {
				p[i] = slices.Clone(params[i])
				for j, v := range grad[i] {
					p[i][j] += float32(step * float64(v) / math.Sqrt(norm))
				}
			}
			l, _ := loss(p)
			return l
		}
		const step = 2e-3
		slope := (moved(step) - moved(-step)) / (2 * step)
		if math.Abs(slope-math.Sqrt(norm)) > 0.02*math.Sqrt(norm) {
			t.Errorf("%s: slope along the gradient is %g, its norm %g", name, slope, math.Sqrt(norm))
		}
	}
}
