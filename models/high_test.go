package models

import (
	"context"
	"errors"
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

func TestPosterior(t *testing.T) {
	const w, h = 40, 30
	rng := rand.New(rand.NewPCG(1, 2))
	n := w * h
	y, blind, sigma, out := make([]float32, n), make([]float32, n), make([]float32, n), make([]float32, n)
	const noise, off = 0.1, 0.05 // of the pixel, and of the prediction
	truth := 0.5
	for i := range y {
		y[i] = float32(truth + noise*rng.NormFloat64())
		blind[i] = float32(truth + off*rng.NormFloat64())
		sigma[i] = noise
	}
	Posterior(out, y, blind, sigma, w, h)
	sum := 0.0
	for _, v := range out {
		sum += (float64(v) - truth) * (float64(v) - truth)
	}
	best := off * off * noise * noise / (off*off + noise*noise)
	if got := sum / float64(n); got > 1.3*best || got < 0.7*best {
		t.Errorf("mean square error %g, the best possible is %g", got, best)
	}
	clear(sigma)
	Posterior(out, y, blind, sigma, w, h)
	if !slices.Equal(out, y) {
		t.Error("without noise the pixel is not kept")
	}
	Posterior(out, y, y, sigma, w, h)
	if !slices.Equal(out, y) {
		t.Error("a perfect prediction without noise does not give the pixel")
	}
}

func TestTurned(t *testing.T) {
	const w, h = 5, 3
	img := make([]float32, w*h)
	for i := range img {
		img[i] = float32(i)
	}
	seen := map[string]bool{}
	for turn := range 8 {
		got := Turned(img, w, h, turn)
		if !slices.Equal(Unturned(got, w, h, turn), img) {
			t.Errorf("position %d does not come back", turn)
		}
		key := ""
		for _, v := range got {
			key += string(rune('a' + int(v)))
		}
		seen[key] = true
	}
	if len(seen) != 8 {
		t.Errorf("%d positions, want 8", len(seen))
	}
	if got := Turned(img, w, h, 4)[1]; got != img[w] { // row 0, column 1 of the exchanged image
		t.Errorf("axes are not exchanged: %v", got)
	}
}

func TestExtended(t *testing.T) {
	img := []float32{1, 2, 3}
	got := extended(img, 3, 1, -3, -2, 12, 5)
	want := []float32{2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2, 1}
	for r := range 5 {
		if row := got[r*12:][:12]; !slices.Equal(row, want) {
			t.Errorf("row %d is %v, want %v", r, row, want)
		}
	}
}

// TestHighRefuses: what High cannot do is an error, and a model without the networks
// says so.
func TestHighRefuses(t *testing.T) {
	student, err := Open(DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	img := Image{Width: 8, Height: 8, Pixels: make([]float32, 64)}
	for _, o := range []HighOptions{{Strength: 1, Steps: -1}, {Strength: 1, Steps: 1 << 20}, {Strength: 1, Passes: 9}, {Strength: 2}} {
		if _, err := student.High(t.Context(), img, o); err == nil {
			t.Errorf("%+v passed", o)
		}
	}
	if !student.HasHigh() {
		if _, err := student.High(t.Context(), img, HighOptions{Strength: 1}); !errors.Is(err, ErrNoNetwork) {
			t.Errorf("model without the networks: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := student.High(ctx, img, HighOptions{Strength: 1}); err == nil {
		t.Error("cancelled call passed")
	}
}

// sampling is a backend whose programs can sample on its device: it does so as the interface says,
// and begins anew the first time, as it may after it has lost a device.
type sampling struct {
	kernels.GraphBackend
	calls int
}

type samplingProgram struct {
	kernels.Program
	on *sampling
}

func (s *sampling) Compile(g *kernels.Graph, params [][]float32) (kernels.Program, error) {
	p, err := s.GraphBackend.Compile(g, params)
	return samplingProgram{p, s}, err
}

func (p samplingProgram) SamplePair(mean, spread, eps []float32, b *kernels.Batch, steps []kernels.SampleStep, done func(step int) error) error {
	if p.on.calls++; p.on.calls == 1 {
		if err := done(1); err != nil {
			return err
		}
	}
	states := [2][]float32{slices.Clone(eps), slices.Clone(eps)}
	for i := range eps {
		states[1][i] *= -1
	}
	for k, s := range steps {
		for _, x := range states {
			in, v := slices.Clone(x), make([]float32, len(x))
			for i := range in {
				in[i] *= s.State
			}
			if err := p.Run(v, &kernels.Batch{Count: 1, Height: b.Height, Width: b.Width, Inputs: [][]float32{in, b.Inputs[1], s.Vector}}); err != nil {
				return err
			}
			for i := range x {
				x[i] = s.Keep*x[i] + s.Add*v[i]
			}
		}
		if err := done(k + 1); err != nil {
			return err
		}
	}
	for i, plus := range states[0] {
		mean[i], spread[i] = (plus+states[1][i])/2, float32(math.Abs(float64(plus-states[1][i])))/2
	}
	return nil
}

// TestHighSampler: a backend that samples on its device gives what the steps one by one give, and is
// told and stopped as they are.
func TestHighSampler(t *testing.T) {
	device := &sampling{GraphBackend: graphBackend(t)}
	plain, err := OpenOn(device.GraphBackend, DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	there, err := OpenOn(device, DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	img := Image{Width: 40, Height: 36, Pixels: make([]float32, 40*36)}
	for i := range img.Pixels {
		img.Pixels[i] = float32(300 + 100*math.Sin(float64(i%40)/5) + 15*rng.NormFloat64())
	}
	o := HighOptions{Strength: 1, Steps: 3, Passes: 2}
	want, err := plain.High(t.Context(), img, o)
	if err != nil {
		t.Fatal(err)
	}
	if want.Untouched != "" {
		t.Fatalf("the image came back as it was: %s", want.Untouched)
	}
	var told []int
	o.Progress = func(done, total int) {
		if told = append(told, done); total != 2*(1+2*3) {
			t.Errorf("%d calls in all", total)
		}
	}
	got, err := there.High(t.Context(), img, o)
	if err != nil {
		t.Fatal(err)
	}
	if device.calls != 2 {
		t.Errorf("%d pairs were sampled on the device, want 2", device.calls)
	}
	if len(got.Uncertainty) != len(want.Uncertainty) {
		t.Fatalf("%d values of uncertainty, want %d: %s", len(got.Uncertainty), len(want.Uncertainty), got.Untouched)
	}
	for i, v := range want.Pixels {
		if math.Abs(float64(got.Pixels[i]-v)) > 0.01 || math.Abs(float64(got.Uncertainty[i]-want.Uncertainty[i])) > 0.01 {
			t.Fatalf("pixel %d is %v ± %v, want %v ± %v", i, got.Pixels[i], got.Uncertainty[i], v, want.Uncertainty[i])
		}
	}
	if want := []int{1, 3, 3, 5, 7, 8, 10, 12, 14}; !slices.Equal(told, want) {
		t.Errorf("told of calls %v, want %v", told, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Progress = func(done, _ int) {
		if done == 10 {
			cancel()
		}
	}
	if _, err := there.High(ctx, img, o); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}
