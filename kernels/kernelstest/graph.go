package kernelstest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
)

// graphCase is a graph and a size to run it at.
type graphCase struct {
	name   string
	h, w   int
	shifts []int
	build  func(g *kernels.Graph)
}

// graphCases are every operation, at awkward sizes and channel counts, between
// convolutions so that gradients pass through it, and small networks of all of them.
func graphCases() []graphCase {
	film := func(c kernels.Convolution, f kernels.Value) kernels.Convolution { c.FiLM = f; return c }
	residual := func(c kernels.Convolution, r kernels.Value) kernels.Convolution { c.Residual = r; return c }
	up := func(c kernels.Convolution) kernels.Convolution { c.Up = true; return c }
	top := func(c kernels.Convolution, n int) kernels.Convolution { c.Top = n; return c }
	var list []graphCase
	for _, a := range []kernels.Activation{kernels.Linear, kernels.ReLU, kernels.LeakyReLU} {
		for _, n := range []int{1, 3, 17, 33} {
			list = append(list, graphCase{fmt.Sprintf("conv3 %d channels activation %d", n, a), 5, 7 + n%4, nil, func(g *kernels.Graph) {
				g.Conv(kernels.Conv3("b", 2, kernels.Linear), g.Conv(kernels.Conv3("a", n, a), g.Input(3)))
			}})
		}
	}
	for t := range 3 {
		list = append(list, graphCase{fmt.Sprintf("conv3 with %d rows above", t), 6, 9, nil, func(g *kernels.Graph) {
			g.Conv(top(kernels.Conv3("b", 5, kernels.LeakyReLU), t), g.Conv(top(kernels.Conv3("a", 4, kernels.LeakyReLU), t), g.Input(1)))
		}})
	}
	return append(list,
		graphCase{"one pixel", 1, 1, nil, func(g *kernels.Graph) {
			g.Conv(kernels.Conv3("b", 2, kernels.Linear), g.Conv(kernels.Conv3("a", 8, kernels.ReLU), g.Input(1)))
		}},
		graphCase{"one row", 1, 23, nil, func(g *kernels.Graph) {
			g.Conv(kernels.Conv3("b", 2, kernels.Linear), g.Conv(kernels.Conv3("a", 8, kernels.ReLU), g.Input(1)))
		}},
		graphCase{"conv1", 3, 5, nil, func(g *kernels.Graph) {
			g.Conv(kernels.Conv1("b", 3, kernels.Linear), g.Conv(kernels.Conv1("a", 19, kernels.LeakyReLU), g.Input(6)))
		}},
		graphCase{"down2", 8, 12, nil, func(g *kernels.Graph) {
			g.Conv(kernels.Conv3("c", 1, kernels.Linear), g.Conv(kernels.Down2("b", 9, kernels.LeakyReLU), g.Conv(kernels.Down2("a", 5, kernels.LeakyReLU), g.Input(2))))
		}},
		graphCase{"up and two sources", 8, 4, nil, func(g *kernels.Graph) {
			x := g.Conv(kernels.Conv3("a", 6, kernels.LeakyReLU), g.Input(1))
			d := g.Conv(kernels.Down2("b", 7, kernels.LeakyReLU), x)
			u := g.Conv(up(kernels.Conv3("c", 5, kernels.LeakyReLU)), d, x)
			g.Conv(kernels.Conv1("d", 2, kernels.Linear), u, x)
		}},
		graphCase{"up and stride 2", 4, 4, nil, func(g *kernels.Graph) {
			x := g.Conv(kernels.Conv3("a", 3, kernels.LeakyReLU), g.Input(2))
			g.Conv(up(kernels.Down2("b", 4, kernels.LeakyReLU)), x)
		}},
		graphCase{"residual", 7, 6, nil, func(g *kernels.Graph) {
			x := g.Conv(kernels.Conv3("a", 8, kernels.Linear), g.Input(2))
			h := g.Conv(kernels.Conv3("b", 11, kernels.ReLU), x)
			h = g.Conv(residual(kernels.Conv3("c", 8, kernels.Linear), x), h)
			g.Conv(residual(kernels.Conv3("d", 8, kernels.Linear), h), h)
		}},
		graphCase{"residual of an input", 5, 5, nil, func(g *kernels.Graph) {
			x := g.Input(3)
			g.Conv(residual(kernels.Conv3("a", 3, kernels.Linear), x), x)
		}},
		graphCase{"film", 6, 4, nil, func(g *kernels.Graph) {
			x, v := g.Input(2), g.Vector(5)
			v = g.Conv(kernels.Conv1("v", 16, kernels.LeakyReLU), v)
			a := g.Conv(kernels.Conv1("fa", 18, kernels.Linear), v)
			h := g.Conv(film(kernels.Conv3("a", 9, kernels.LeakyReLU), a), x)
			b := g.Conv(kernels.Conv1("fb", 8, kernels.Linear), v)
			h = g.Conv(film(kernels.Down2("b", 4, kernels.LeakyReLU), b), g.Conv(kernels.Conv3("p", 3, kernels.Linear), h, h))
			g.Conv(kernels.Conv1("c", 2, kernels.Linear), h)
		}},
		graphCase{"rotations share weights", 8, 6, nil, func(g *kernels.Graph) {
			x := g.Conv(kernels.Conv3("in", 4, kernels.LeakyReLU), g.Input(1))
			var sum kernels.Value
			for k := range 4 {
				h := g.Conv(top(kernels.Conv3("a", 5, kernels.LeakyReLU), 2), g.Rotate(x, k))
				h = g.Rotate(h, (4-k)%4)
				if k == 0 {
					sum = h
				} else {
					sum = g.Conv(kernels.Conv1(fmt.Sprint("mix", k), 5, kernels.LeakyReLU), sum, h)
				}
			}
			g.Conv(kernels.Conv1("out", 1, kernels.Linear), sum)
		}},
		graphCase{"shifts", 7, 6, []int{0, 3, 8}, func(g *kernels.Graph) {
			x := g.Conv(kernels.Conv3("a", 3, kernels.LeakyReLU), g.Input(1))
			y := g.Conv(kernels.Conv1("b", 3, kernels.Linear), g.Shift(x, 0), g.Shift(x, 1))
			g.Conv(kernels.Conv1("c", 2, kernels.Linear), y, g.Shift(x, 2))
		}},
	)
}

// RunGraphs holds a GraphBackend to a float64 reference, in RunPrograms and RunTraining.
func RunGraphs(t *testing.T, b kernels.GraphBackend, tol Tolerance) {
	t.Run("programs", func(t *testing.T) { RunPrograms(t, b, tol) })
	t.Run("training", func(t *testing.T) { RunTraining(t, b, tol) })
}

// RunPrograms is the part of RunGraphs that only runs graphs: every operation, on batches
// of samples that differ, and the refusal of what does not fit.
func RunPrograms(t *testing.T, b kernels.GraphBackend, tol Tolerance) {
	eachGraph(t, func(t *testing.T, g *kernels.Graph, c graphCase) { checkProgram(t, b, g, c, tol) })
	t.Run("refusals", func(t *testing.T) { checkProgramRefusals(t, b) })
}

// RunTraining is the part of RunGraphs that trains graphs: gradients of every operation
// against finite differences of the reference, and steps against AdamW written out.
func RunTraining(t *testing.T, b kernels.GraphBackend, tol Tolerance) {
	eachGraph(t, func(t *testing.T, g *kernels.Graph, c graphCase) { checkGradient(t, b, g, c, tol) })
	t.Run("steps", func(t *testing.T) { checkSteps(t, b) })
	t.Run("no target", func(t *testing.T) { checkTrainingRefusals(t, b) })
}

func eachGraph(t *testing.T, check func(t *testing.T, g *kernels.Graph, c graphCase)) {
	for _, c := range graphCases() {
		t.Run(c.name, func(t *testing.T) {
			g := new(kernels.Graph)
			c.build(g)
			if err := g.Err(); err != nil {
				t.Fatal(err)
			}
			check(t, g, c)
		})
	}
}

// randomBatch fills a batch of n samples for g.
func randomBatch(g *kernels.Graph, rng *rand.Rand, n, h, w int, shifts []int) *kernels.Batch {
	b := &kernels.Batch{Count: n, Height: h, Width: w, Shifts: shifts}
	values := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		return v
	}
	for i := range g.Nodes {
		if node := &g.Nodes[i]; node.Op == kernels.OpInput {
			nh, nw := node.Size(h, w)
			b.Inputs = append(b.Inputs, values(n*nh*nw*node.Channels))
		}
	}
	oh, ow := g.Output().Size(h, w)
	b.Target = values(n * oh * ow * g.Output().Channels)
	b.Weight = make([]float32, n*oh*ow)
	for i := range b.Weight {
		b.Weight[i] = rng.Float32() * 2
	}
	return b
}

// randomParams are those of Init with biases that are not zero.
func randomParams(g *kernels.Graph, rng *rand.Rand) [][]float32 {
	params := g.Init(rng.Uint64())
	for i, p := range params {
		if len(g.Params[i].Shape) == 1 {
			for j := range p {
				p[j] = float32(rng.NormFloat64() * 0.3)
			}
		}
	}
	return params
}

// expectation is what a graph must give for a batch.
type expectation struct {
	params [][]float32
	batch  *kernels.Batch
	out    []float64
	loss   float64
	slopes func() slopes
}

// slopes are, of each parameter, some values and the derivatives of the loss by them.
type slopes struct {
	values      [][]int
	derivatives [][]float64
}

// expectations remembers them by case: they take longer than what is
// tested, and a program has several backends.
var expectations sync.Map

func expect(g *kernels.Graph, c graphCase) *expectation {
	once, _ := expectations.LoadOrStore(c.name, sync.OnceValue(func() *expectation {
		rng := rand.New(rand.NewPCG(uint64(len(c.name)), uint64(c.h*100+c.w)))
		const samples = 3
		e := &expectation{params: randomParams(g, rng)}
		e.batch = randomBatch(g, rng, samples, c.h, c.w, c.shifts)
		p := wide(e.params)
		e.out = referenceRun(g, p, e.batch)
		reference := func() float64 {
			return referenceLoss(referenceRun(g, p, e.batch), e.batch)
		}
		e.loss = reference()
		e.slopes = sync.OnceValue(func() (s slopes) {
			const step = 1e-6
			for i := range p {
				var values []int
				var derivatives []float64
				for range min(len(p[i]), 7) {
					j := rng.IntN(len(p[i]))
					old := p[i][j]
					p[i][j] = old + step
					up := reference()
					p[i][j] = old - step
					down := reference()
					p[i][j] = old
					values, derivatives = append(values, j), append(derivatives, (up-down)/(2*step))
				}
				s.values, s.derivatives = append(s.values, values), append(s.derivatives, derivatives)
			}
			return s
		})
		return e
	}))
	return once.(func() *expectation)()
}

func checkProgram(t *testing.T, b kernels.GraphBackend, g *kernels.Graph, c graphCase, tol Tolerance) {
	t.Helper()
	want := expect(g, c)
	program, err := b.Compile(g, want.params)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]float32, len(want.out))
	for range 2 { // the second run reuses memory
		clear(got)
		if err := program.Run(got, want.batch); err != nil {
			t.Fatal(err)
		}
		if e := distance(got, want.out); !(e <= tol.Output) {
			t.Fatalf("output is off by %g of its norm", e)
		}
	}
}

func checkGradient(t *testing.T, b kernels.GraphBackend, g *kernels.Graph, c graphCase, tol Tolerance) {
	t.Helper()
	want := expect(g, c)
	params, batch := want.params, want.batch
	trainer, err := b.Train(g, kernels.NewState(params), kernels.TrainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	value, gradient, err := trainer.Gradient(batch)
	if err != nil {
		t.Fatal(err)
	}
	// A square doubles a relative error.
	if w := want.loss; !(math.Abs(value-w) <= 2*tol.Output*(1+math.Abs(w))) {
		t.Fatalf("loss %g, want %g", value, w)
	}
	limit := tol.Gradient
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Conv != nil && n.Conv.Activation != kernels.Linear {
			limit = tol.Kinked
		}
	}
	slopes := want.slopes()
	for i := range params {
		norm, diff := 0.0, 0.0
		for k, j := range slopes.values[i] {
			w := slopes.derivatives[i][k]
			norm += w * w
			diff += (w - float64(gradient[i][j])) * (w - float64(gradient[i][j]))
		}
		if !(math.Sqrt(diff) <= limit*(math.Sqrt(norm)+1e-3)) {
			t.Errorf("gradient of %s is off by %g of %g", g.Params[i].Name, math.Sqrt(diff), math.Sqrt(norm))
		}
	}
}

// checkSteps compares steps of training with AdamW in float64 on the backend's own
// gradients, and the result for any number of threads bit by bit.
func checkSteps(t *testing.T, b kernels.GraphBackend) {
	g := new(kernels.Graph)
	x := g.Input(1)
	h := g.Conv(kernels.Conv3("a", 8, kernels.LeakyReLU), x)
	g.Conv(kernels.Conv3("b", 1, kernels.Linear), h)
	rng := rand.New(rand.NewPCG(3, 4))
	params := randomParams(g, rng)
	o := kernels.TrainOptions{Decay: 0.1, Clip: 0.5, EMA: 0.9, Workers: 1}
	one, err := b.Train(g, kernels.NewState(params), o)
	if err != nil {
		t.Fatal(err)
	}
	o.Workers = 3
	many, err := b.Train(g, kernels.NewState(params), o)
	if err != nil {
		t.Fatal(err)
	}
	p, ema := wide(params), wide(params)
	mean, squares := wide(kernels.NewState(params).Mean), wide(kernels.NewState(params).Mean)
	const rate = 0.01
	for step := 1; step <= 5; step++ {
		batch := randomBatch(g, rng, 20, 6, 8, nil)
		_, grads, err := one.Gradient(batch)
		if err != nil {
			t.Fatal(err)
		}
		norm := 0.0
		for _, gr := range grads {
			for _, v := range gr {
				norm += float64(v) * float64(v)
			}
		}
		norm = math.Sqrt(norm)
		clip := min(1, o.Clip/norm)
		keep := min(o.EMA, float64(step)/float64(step+9))
		for i := range p {
			for j := range p[i] {
				v := float64(grads[i][j]) * clip
				mean[i][j] = 0.9*mean[i][j] + 0.1*v
				squares[i][j] = 0.999*squares[i][j] + 0.001*v*v
				if len(g.Params[i].Shape) > 1 {
					p[i][j] -= rate * o.Decay * p[i][j]
				}
				p[i][j] -= rate * mean[i][j] / (1 - math.Pow(0.9, float64(step))) / (math.Sqrt(squares[i][j]/(1-math.Pow(0.999, float64(step)))) + 1e-8)
				ema[i][j] += (1 - keep) * (p[i][j] - ema[i][j])
			}
		}
		_, got, err := one.Step(batch, rate)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(got-norm) > 1e-6*norm {
			t.Fatalf("step %d: norm %g, want %g", step, got, norm)
		}
		if _, _, err := many.Step(batch, rate); err != nil {
			t.Fatal(err)
		}
	}
	s, m := one.State(), many.State()
	for i := range p {
		if e := distance(s.Params[i], p[i]); !(e < 1e-4) {
			t.Errorf("%s is off by %g", g.Params[i].Name, e)
		}
		if e := distance(s.EMA[i], ema[i]); !(e < 1e-4) {
			t.Errorf("mean of %s is off by %g", g.Params[i].Name, e)
		}
		for j := range s.Params[i] {
			if s.Params[i][j] != m.Params[i][j] {
				t.Fatalf("%s differs between one thread and three", g.Params[i].Name)
			}
		}
	}
	if s.Step != 5 {
		t.Errorf("state says step %d, want 5", s.Step)
	}

	// Going on from a state is going on.
	again, err := b.Train(g, s, o)
	if err != nil {
		t.Fatal(err)
	}
	batch := randomBatch(g, rng, 2, 6, 8, nil)
	for _, tr := range []kernels.Trainer{one, again} {
		if _, _, err := tr.Step(batch, rate); err != nil {
			t.Fatal(err)
		}
	}
	u, v := one.State(), again.State()
	for i := range u.Params {
		for j := range u.Params[i] {
			if u.Params[i][j] != v.Params[i][j] || u.EMA[i][j] != v.EMA[i][j] || u.Squares[i][j] != v.Squares[i][j] {
				t.Fatalf("%s differs after going on from a state", g.Params[i].Name)
			}
		}
	}

	// A value that is not finite stops the step and changes nothing.
	batch.Inputs[0][5] = float32(math.NaN())
	if _, _, err := one.Step(batch, rate); err == nil {
		t.Error("NaN in the input passed")
	}
	if w := one.State(); w.Step != u.Step || w.Params[0][0] != u.Params[0][0] {
		t.Error("a failed step changed the state")
	}
}

func checkProgramRefusals(t *testing.T, b kernels.GraphBackend) {
	g, params, good := smallGraph()
	program, err := b.Compile(g, params)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]float32, 24)
	if err := program.Run(dst, good()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*kernels.Batch){
		"no samples":      func(b *kernels.Batch) { b.Count = 0 },
		"odd height":      func(b *kernels.Batch) { b.Height = 3 },
		"negative width":  func(b *kernels.Batch) { b.Width = -6 },
		"huge":            func(b *kernels.Batch) { b.Height, b.Width = 1<<20, 1<<20 },
		"no input":        func(b *kernels.Batch) { b.Inputs = nil },
		"short input":     func(b *kernels.Batch) { b.Inputs[0] = b.Inputs[0][1:] },
		"no shift":        func(b *kernels.Batch) { b.Shifts = nil },
		"shift too large": func(b *kernels.Batch) { b.Shifts[0] = kernels.MaxShift + 1 },
		"negative shift":  func(b *kernels.Batch) { b.Shifts[0] = -1 },
	} {
		batch := good()
		change(batch)
		if err := program.Run(dst, batch); err == nil {
			t.Errorf("%s: passed", name)
		}
	}
	if err := program.Run(dst[1:], good()); err == nil {
		t.Error("short output: passed")
	}
	if _, err := b.Compile(g, params[1:]); err == nil {
		t.Error("a parameter short: passed")
	}
	if _, err := b.Compile(new(kernels.Graph), nil); err == nil {
		t.Error("empty graph: passed")
	}
}

func checkTrainingRefusals(t *testing.T, b kernels.GraphBackend) {
	g, params, good := smallGraph()
	trainer, err := b.Train(g, kernels.NewState(params), kernels.TrainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := trainer.Step(good(), 1); err == nil {
		t.Error("no target: passed")
	}
}

// smallGraph returns a graph with parameters, and what makes a batch for it that lacks a
// target alone.
func smallGraph() (g *kernels.Graph, params [][]float32, good func() *kernels.Batch) {
	g = new(kernels.Graph)
	g.Conv(kernels.Down2("a", 4, kernels.Linear), g.Shift(g.Input(2), 0))
	return g, g.Init(1), func() *kernels.Batch {
		return &kernels.Batch{Count: 1, Height: 4, Width: 6, Inputs: [][]float32{make([]float32, 48)}, Shifts: []int{1}}
	}
}

func wide(p [][]float32) [][]float64 {
	w := make([][]float64, len(p))
	for i := range p {
		for _, v := range p[i] {
			w[i] = append(w[i], float64(v))
		}
	}
	return w
}

func distance(got []float32, want []float64) float64 {
	diff, norm := 0.0, 0.0
	for i, w := range want {
		d := float64(got[i]) - w
		diff += d * d
		norm += w * w
	}
	if diff == 0 {
		return 0
	}
	return math.Sqrt(diff / norm)
}

func referenceLoss(out []float64, b *kernels.Batch) float64 {
	sum := 0.0
	channels := len(b.Target) / len(b.Weight)
	for i, v := range out {
		d := v - float64(b.Target[i])
		sum += d * d * float64(b.Weight[i/channels])
	}
	return sum / float64(len(out))
}

// image is a value of the reference, [h, w, c].
type image struct {
	h, w, c int
	v       []float64
}

func (m *image) at(y, x, c int) float64 {
	if y < 0 || y >= m.h || x < 0 || x >= m.w {
		return 0
	}
	return m.v[(y*m.w+x)*m.c+c]
}

// referenceRun computes g by its definition, in float64.
func referenceRun(g *kernels.Graph, params [][]float64, b *kernels.Batch) []float64 {
	var out []float64
	for k := range b.Count {
		values := make([]*image, len(g.Nodes))
		for i := range g.Nodes {
			n := &g.Nodes[i]
			h, w := n.Size(b.Height, b.Width)
			m := &image{h, w, n.Channels, make([]float64, h*w*n.Channels)}
			values[i] = m
			var from []*image
			for _, v := range n.From {
				from = append(from, values[v])
			}
			for y := range h {
				for x := range w {
					for c := range n.Channels {
						m.v[(y*w+x)*n.Channels+c] = referenceValue(g, n, params, b, k, from, values, y, x, c)
					}
				}
			}
		}
		out = append(out, values[len(values)-1].v...)
	}
	return out
}

func referenceValue(g *kernels.Graph, n *kernels.Node, params [][]float64, b *kernels.Batch, k int, from, values []*image, y, x, c int) float64 {
	h, w := n.Size(b.Height, b.Width)
	switch n.Op {
	case kernels.OpInput:
		return float64(b.Inputs[n.K][((k*h+y)*w+x)*n.Channels+c])
	case kernels.OpShift:
		return from[0].at(y-b.Shifts[n.K], x, c)
	case kernels.OpRotate:
		for range n.K { // one quarter turn counterclockwise takes (y, x) from (x, width-1-y)
			y, x, h, w = x, h-1-y, w, h
		}
		return from[0].at(y, x, c)
	}
	o := n.Conv
	in := g.Params[n.Weight].Shape[1]
	sum := params[n.Bias][c]
	for ky := range o.Size {
		for kx := range o.Size {
			sy, sx := y, x
			switch o.Size {
			case 2:
				sy, sx = 2*y+ky, 2*x+kx
			case 3:
				sy, sx = y-o.Top+ky, x-1+kx
			}
			i := 0
			for s, m := range from {
				for ch := range m.c {
					v := 0.0
					if s == 0 && o.Up {
						if sy >= 0 && sx >= 0 {
							v = m.at(sy/2, sx/2, ch)
						}
					} else {
						v = m.at(sy, sx, ch)
					}
					sum += v * params[n.Weight][((c*in+i)*o.Size+ky)*o.Size+kx]
					i++
				}
			}
		}
	}
	if o.FiLM != kernels.None {
		f := values[o.FiLM]
		sum = sum*(1+f.v[c]) + f.v[o.Out+c]
	}
	if sum < 0 && o.Activation != kernels.Linear {
		sum *= float64(o.Activation.Slope())
	}
	if o.Residual != kernels.None {
		sum += values[o.Residual].at(y, x, c)
	}
	return sum
}
