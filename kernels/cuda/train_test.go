//go:build cuda && linux && emulated

package cuda

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

func TestTrain(t *testing.T) {
	kernelstest.RunTraining(t, open(t, Options{}), kernelstest.Single)
}

// release closes a trainer.
func release(t *testing.T, tr kernels.Trainer) {
	t.Helper()
	if err := tr.(io.Closer).Close(); err != nil {
		t.Error(err)
	}
}

// plainGo returns the processor's backend that the device is compared with.
func plainGo(t *testing.T) *cpu.Backend {
	t.Helper()
	b, err := cpu.New(cpu.Go)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// student is the network of the daily work, small.
func student(channels, blocks int) *kernels.Graph {
	g := new(kernels.Graph)
	h := g.Conv(kernels.Conv3("head", channels, kernels.Linear), g.Input(7))
	for i := range blocks {
		a := g.Conv(kernels.Conv3(fmt.Sprint("a", i), channels, kernels.ReLU), h)
		b := kernels.Conv3(fmt.Sprint("b", i), channels, kernels.Linear)
		b.Residual, b.Start = h, 0.2
		h = g.Conv(b, a)
	}
	g.Conv(kernels.Conv3("tail", 4, kernels.Linear), h)
	return g
}

// unet has all that a diffusion network has: two sources, one of them doubled, halving, and FiLM by a
// vector that the networks computes.
func unet() *kernels.Graph {
	g := new(kernels.Graph)
	x, v := g.Input(2), g.Vector(6)
	v = g.Conv(kernels.Conv1("time", 24, kernels.LeakyReLU), v)
	layer := func(name string, out int, up bool, from ...kernels.Value) kernels.Value {
		c := kernels.Conv3(name, out, kernels.LeakyReLU)
		c.Up, c.FiLM = up, g.Conv(kernels.Conv1(name+".film", 2*out, kernels.Linear), v)
		return g.Conv(c, from...)
	}
	a := layer("a", 18, false, x)
	b := layer("b", 40, false, g.Conv(kernels.Down2("down", 33, kernels.Linear), a))
	a = layer("c", 18, true, b, a)
	g.Conv(kernels.Conv3("out", 1, kernels.Linear), a, x)
	return g
}

// residuals has blocks that are longer than those of a student, with and without FiLM at their ends.
func residuals() *kernels.Graph {
	g := new(kernels.Graph)
	h, v := g.Conv(kernels.Conv3("head", 6, kernels.LeakyReLU), g.Input(2)), g.Vector(3)
	for i, filmed := range []bool{false, true, true, false} {
		x := h
		for k := range 3 {
			h = g.Conv(kernels.Conv3(fmt.Sprint(i, "-", k), 6+k, kernels.LeakyReLU), h)
		}
		last := kernels.Conv3(fmt.Sprint(i, "-last"), 6, kernels.Linear)
		last.Residual = x
		if filmed {
			last.FiLM = g.Conv(kernels.Conv1(last.Name+".film", 12, kernels.Linear), v)
		}
		h = g.Conv(last, h)
	}
	sum := kernels.Conv3("sum", 6, kernels.Linear) // reads the last block three times
	sum.Residual = h
	g.Conv(sum, h, h)
	return g
}

// batchFor returns random numbers for all that a batch has.
func batchFor(g *kernels.Graph, seed uint64, count, h, w int) *kernels.Batch {
	rng := rand.New(rand.NewPCG(seed, 0))
	values := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		return v
	}
	b := &kernels.Batch{Count: count, Height: h, Width: w}
	for i := range g.Nodes {
		if n := &g.Nodes[i]; n.Op == kernels.OpInput {
			nh, nw := n.Size(h, w)
			b.Inputs = append(b.Inputs, values(count*nh*nw*n.Channels))
		}
	}
	oh, ow := g.Output().Size(h, w)
	b.Target = values(count * oh * ow * g.Output().Channels)
	b.Weight = make([]float32, count*oh*ow)
	for i := range b.Weight {
		b.Weight[i] = rng.Float32() + 0.5
	}
	return b
}

// off returns the relative error of parameters.
func off(got, want [][]float32) float64 {
	diff, norm := 0.0, 0.0
	for i := range want {
		for j, w := range want[i] {
			d := float64(got[i][j]) - float64(w)
			diff += d * d
			norm += float64(w) * float64(w)
		}
	}
	return math.Sqrt(diff / norm)
}

// TestTrainSizes compares gradients with those of the processor at sizes that take several blocks of
// threads: every kernel of a convolution, and sums with many parts.
func TestTrainSizes(t *testing.T) {
	thin := new(kernels.Graph)
	thin.Conv(kernels.Conv1("b", 2, kernels.Linear), thin.Conv(kernels.Conv3("a", 32, kernels.LeakyReLU), thin.Input(1)))
	wide := new(kernels.Graph)
	wide.Conv(kernels.Conv1("b", 3, kernels.Linear), wide.Conv(kernels.Conv3("a", 1024, kernels.LeakyReLU), wide.Input(5)))
	d, host := open(t, Options{}), plainGo(t)
	used := map[tile]bool{}
	for _, c := range []struct {
		name        string
		g           *kernels.Graph
		count, h, w int
	}{
		{"student", student(32, 2), 3, 29, 31},
		{"U-Net", unet(), 5, 28, 34},
		{"residuals", residuals(), 2, 9, 10},
		{"many pixels", thin, 1, 131, 141},
		{"more pixels", thin, 1, 3, 11279},
		{"channels", wide, 1, 4, 5},
		{"samples", unet(), 600, 2, 2},
		{"one row", student(8, 1), 1, 1, 1021},
		{"one column", student(8, 1), 1, 1021, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := batchFor(c.g, 1, c.count, c.h, c.w)
			params := c.g.Init(2)
			for i := range params {
				for j := range params[i] {
					params[i][j] += 0.01
				}
			}
			var losses [2]float64
			var gradients [2][][]float32
			for k, backend := range []kernels.GraphBackend{host, d} {
				tr, err := backend.Train(c.g, kernels.NewState(params), kernels.TrainOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if losses[k], gradients[k], err = tr.Gradient(b); err != nil {
					t.Fatal(err)
				}
			}
			if e := math.Abs(losses[1]/losses[0] - 1); !(e < 1e-5) {
				t.Errorf("loss %g, want %g", losses[1], losses[0])
			}
			for i := range params {
				if e := off(gradients[1][i:i+1], gradients[0][i:i+1]); !(e < 1e-4) {
					t.Errorf("gradient of %s is off by %g", c.g.Params[i].Name, e)
				}
			}
			for i := range c.g.Nodes {
				if n := &c.g.Nodes[i]; n.Op == kernels.OpConv {
					h, w := n.Size(c.h, c.w)
					chosen, _ := tileOf(c.count*h*w, quadsOf(n.Channels))
					used[chosen] = true
				}
			}
		})
	}
	for k := range forwards {
		if !used[k] {
			t.Errorf("the kernels with %d pixels and %d channels were not used", k.pixels, k.channels)
		}
	}
}

// TestTrainLikeCPU: some steps end where those of the processor end.
func TestTrainLikeCPU(t *testing.T) {
	d, host := open(t, Options{}), plainGo(t)
	for _, c := range []struct {
		name string
		g    *kernels.Graph
	}{{"student", student(16, 2)}, {"U-Net", unet()}} {
		t.Run(c.name, func(t *testing.T) {
			var states [2]*kernels.State
			for k, backend := range []kernels.GraphBackend{host, d} {
				tr, err := backend.Train(c.g, kernels.NewState(c.g.Init(5)), kernels.TrainOptions{Decay: 0.01, Clip: 1})
				if err != nil {
					t.Fatal(err)
				}
				for step := range uint64(4) {
					if _, _, err := tr.Step(batchFor(c.g, step, 2, 16, 20), 1e-3); err != nil {
						t.Fatal(err)
					}
				}
				states[k] = tr.State()
			}
			if e := off(states[1].Params, states[0].Params); !(e < 1e-4) {
				t.Errorf("parameters are off by %g", e)
			}
			if e := off(states[1].EMA, states[0].EMA); !(e < 1e-4) {
				t.Errorf("mean parameters are off by %g", e)
			}
			if e := off(states[1].Mean, states[0].Mean); !(e < 1e-3) {
				t.Errorf("mean gradients are off by %g", e)
			}
		})
	}
}

// TestTrainResumes: from a state, training goes on to the same bits; it is the same from run to run; and
// changing the shape of the batch and coming back changes nothing.
func TestTrainResumes(t *testing.T) {
	d, g := open(t, Options{}), unet()
	o := kernels.TrainOptions{Decay: 0.01, Clip: 1}
	start := func(s *kernels.State) kernels.Trainer {
		tr, err := d.Train(g, s, o)
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	step := func(tr kernels.Trainer, seed uint64) {
		if _, _, err := tr.Step(batchFor(g, seed, 3, 12, 20), 1e-3); err != nil {
			t.Fatal(err)
		}
	}
	whole := start(kernels.NewState(g.Init(1)))
	step(whole, 1)
	half := whole.State()
	step(whole, 2)

	part := start(half)
	if _, _, err := part.Gradient(batchFor(g, 9, 1, 4, 4)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(part.State(), half) {
		t.Error("a gradient has changed the state")
	}
	step(part, 2)
	if !reflect.DeepEqual(part.State(), whole.State()) {
		t.Error("training that was resumed ended elsewhere")
	}
	if half.Step != 1 || whole.State().Step != 2 {
		t.Errorf("steps %d and %d, want 1 and 2", half.Step, whole.State().Step)
	}
}

// TestTrainWeights: no weights are weights of 1.
func TestTrainWeights(t *testing.T) {
	d, g := open(t, Options{}), student(4, 1)
	tr, err := d.Train(g, kernels.NewState(g.Init(1)), kernels.TrainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := batchFor(g, 1, 2, 5, 6)
	for i := range b.Weight {
		b.Weight[i] = 1
	}
	loss, gradient, err := tr.Gradient(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b.Weight {
		b.Weight[i] = 3
	}
	if _, _, err := tr.Gradient(b); err != nil {
		t.Fatal(err)
	}
	b.Weight = nil
	loss2, gradient2, err := tr.Gradient(b)
	if err != nil {
		t.Fatal(err)
	}
	if loss != loss2 || !reflect.DeepEqual(gradient, gradient2) {
		t.Error("a batch without weights differs from one with weights of 1")
	}
}

// TestTrainNorm: the norm of a gradient is that of the numbers, also of some whose squares single
// precision does not hold, and clipping goes by it.
func TestTrainNorm(t *testing.T) {
	d, g := open(t, Options{}), student(4, 1)
	for _, scale := range []float32{1, 1e-25, 1e25} {
		b := batchFor(g, 1, 2, 5, 6)
		for i := range b.Weight {
			b.Weight[i] *= scale
		}
		const clip = 0.1
		tr, err := d.Train(g, kernels.NewState(g.Init(1)), kernels.TrainOptions{Clip: clip})
		if err != nil {
			t.Fatal(err)
		}
		_, gradient, err := tr.Gradient(b)
		if err != nil {
			t.Fatal(err)
		}
		want := 0.0
		for _, p := range gradient {
			for _, v := range p {
				want += float64(v) * float64(v)
			}
		}
		want = math.Sqrt(want)
		_, norm, err := tr.Step(b, 1e-3)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(norm/want-1) > 1e-9 {
			t.Errorf("gradient times %g: norm is %g, want %g", scale, norm, want)
		}
		clipped := 0.0
		for _, p := range tr.State().Mean { // a tenth of the gradient, after one step
			for _, v := range p {
				clipped += 100 * float64(v) * float64(v)
			}
		}
		if want := min(want, clip); math.Abs(math.Sqrt(clipped)/want-1) > 1e-5 {
			t.Errorf("gradient times %g: clipped to a norm of %g, want %g", scale, math.Sqrt(clipped), want)
		}
		if err := tr.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestTrainNotFinite: a step with numbers that are not finite changes nothing, and the next one is as if
// it had not been.
func TestTrainNotFinite(t *testing.T) {
	d, g := open(t, Options{}), unet()
	tr, err := d.Train(g, kernels.NewState(g.Init(1)), kernels.TrainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	good := batchFor(g, 1, 2, 8, 8)
	if _, _, err := tr.Step(good, 1e-3); err != nil {
		t.Fatal(err)
	}
	before := tr.State()
	for name, spoil := range map[string]func(b *kernels.Batch){
		"NaN in an image":      func(b *kernels.Batch) { b.Inputs[0][17] = float32(math.NaN()) },
		"infinity in a vector": func(b *kernels.Batch) { b.Inputs[1][2] = float32(math.Inf(1)) },
		"NaN in the target":    func(b *kernels.Batch) { b.Target[3] = float32(math.NaN()) },
		"infinity as weight":   func(b *kernels.Batch) { b.Weight[0] = float32(math.Inf(-1)) },
		"too large":            func(b *kernels.Batch) { b.Target[0] = 3e38; b.Target[1] = -3e38 },
	} {
		b := batchFor(g, 1, 2, 8, 8)
		spoil(b)
		if _, _, err := tr.Step(b, 1e-3); err == nil {
			t.Errorf("%s: passed", name)
		}
		after, err := tr.(*trainer).download() // not what the host remembers
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(after, before) {
			t.Errorf("%s: the state has changed", name)
		}
	}
	if _, _, err := tr.Step(good, 1e-3); err != nil {
		t.Errorf("a good step after bad ones: %v", err)
	}
}

// TestTrainRefuses: what cannot be trained is an error at once.
func TestTrainRefuses(t *testing.T) {
	d := open(t, Options{})
	split := new(kernels.Graph)
	x, y := split.Input(3), split.Input(5)
	split.Conv(kernels.Conv1("a", 8, kernels.Linear), x, y)
	split.Conv(kernels.Conv1("a", 8, kernels.Linear), y, x)
	still := new(kernels.Graph)
	still.Rotate(still.Input(1), 1)
	short := student(4, 1)
	state := kernels.NewState(short.Init(1))
	state.Mean = state.Mean[1:]
	for name, c := range map[string]struct {
		g *kernels.Graph
		s *kernels.State
	}{
		"sources of one set of weights differ": {split, kernels.NewState(split.Init(1))},
		"no parameters":                        {still, kernels.NewState(nil)},
		"state of another graph":               {short, state},
		"empty graph":                          {new(kernels.Graph), kernels.NewState(nil)},
	} {
		if _, err := d.Train(c.g, c.s, kernels.TrainOptions{}); err == nil {
			t.Errorf("%s: passed", name)
		}
	}
}

// TestTrainMemory: a batch for which there is no memory is an error that says so, after which smaller ones
// work as before, and all memory is released in the end.
func TestTrainMemory(t *testing.T) {
	d, g := open(t, Options{}), student(32, 2)
	emulated(t, d) // of which we know how much it has
	before := driver.Live()
	tr, err := d.Train(g, kernels.NewState(g.Init(1)), kernels.TrainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	small, large := batchFor(g, 1, 1, 8, 8), &kernels.Batch{Count: 1, Height: 1024, Width: 1024, Inputs: [][]float32{make([]float32, 7<<20)}, Target: make([]float32, 4<<20)}
	loss, gradient, err := tr.Gradient(small)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := tr.Step(large, 1e-3); !errors.Is(err, kernels.ErrMemory) {
		t.Errorf("a batch beyond the memory: %v", err)
	}
	loss2, gradient2, err := tr.Gradient(small)
	if err != nil {
		t.Fatal(err)
	}
	if loss != loss2 || !reflect.DeepEqual(gradient, gradient2) {
		t.Error("the gradient differs afterwards")
	}
	state := tr.State()
	release(t, tr)
	if now := driver.Live(); now != before {
		t.Errorf("alive after Close: %v, before Train: %v", now, before)
	}
	if _, _, err := tr.Step(small, 1e-3); err == nil {
		t.Error("a closed trainer has trained")
	}
	if !reflect.DeepEqual(tr.State(), state) {
		t.Error("a closed trainer has forgotten its state")
	}
}

// TestTrainLost: training on a device that fails ends with the error of that, and does not go on; the state
// is that of before.
func TestTrainLost(t *testing.T) {
	emulated(t, open(t, Options{}))
	runTask(t, "lost in training", "fail_launch_after=60:700")
}

func lostInTraining() error {
	b, err := Open(0, Options{})
	if err != nil {
		return err
	}
	g := student(4, 1)
	tr, err := b.Train(g, kernels.NewState(g.Init(1)), kernels.TrainOptions{})
	if err != nil {
		return err
	}
	batch := batchFor(g, 1, 1, 4, 4)
	if _, _, err := tr.Step(batch, 1e-3); err != nil {
		return fmt.Errorf("the first step: %w", err)
	}
	state := tr.State()
	for range 10 {
		if _, _, err = tr.Step(batch, 1e-3); err != nil {
			break
		}
	}
	_, _, later := tr.Step(batch, 1e-3)
	_, _, other := tr.Gradient(batch)
	_, again := b.Train(g, state, kernels.TrainOptions{})
	for what, err := range map[string]error{"the step that lost it": err, "the next": later, "Gradient": other, "Train": again} {
		if !errors.Is(err, kernels.ErrDevice) {
			return fmt.Errorf("%s: error is %v, want %v", what, err, kernels.ErrDevice)
		}
	}
	if !reflect.DeepEqual(tr.State(), state) {
		return errors.New("the state is not the last one known")
	}
	return nil
}

// TestTrainForgotten: what a trainer that nobody uses any more has on the device is released, by the garbage
// collector or with the backend.
func TestTrainForgotten(t *testing.T) {
	g := student(4, 1)
	b, err := Open(0, Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := driver.Live()
	use := func() {
		tr, err := b.Train(g, kernels.NewState(g.Init(1)), kernels.TrainOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := tr.Step(batchFor(g, 1, 1, 4, 4), 1e-3); err != nil {
			t.Fatal(err)
		}
	}
	use()
	for end := time.Now().Add(10 * time.Second); driver.Live() != before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("alive: %v, before Train: %v", driver.Live(), before)
		}
		runtime.GC()
	}
	use()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// BenchmarkTrain is steps of the student's training as the presets have them: pieces of 48×48 at half
// resolution. It is for a GPU, as those of bench_test.go are.
func BenchmarkTrain(b *testing.B) {
	d, err := Open(0, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	for _, c := range []struct{ channels, count int }{{32, 4}, {32, 8}, {64, 8}, {64, 64}} {
		b.Run(fmt.Sprintf("%d channels/%d pieces", c.channels, c.count), func(b *testing.B) {
			g := student(c.channels, 8)
			tr, err := d.Train(g, kernels.NewState(g.Init(1)), kernels.TrainOptions{Clip: 1})
			if err != nil {
				b.Fatal(err)
			}
			batch := batchFor(g, 1, c.count, 48, 48)
			if _, _, err := tr.Step(batch, 1e-3); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for range b.N {
				if _, _, err := tr.Step(batch, 1e-3); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(3*g.FLOP(48, 48)*float64(c.count*b.N)/b.Elapsed().Seconds()/1e12, "TFLOP/s")
		})
	}
}
