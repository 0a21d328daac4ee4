package remote

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// inProcess makes a worker that serves in this process, so that the race detector sees both ends.
func inProcess(t testing.TB, backend kernels.GraphBackend) *Worker {
	t.Helper()
	w := NewWorker(Options{Program: "here", start: func(*Options, func(string)) (net.Conn, process, error) {
		ours, theirs := net.Pipe()
		p := &here{done: make(chan error, 1), conn: theirs}
		go func() {
			err := Serve(context.Background(), theirs, backend, Info{Device: "here"})
			_ = theirs.Close()
			p.done <- err
		}()
		return ours, p, nil
	}})
	w.Start()
	t.Cleanup(func() {
		if err := w.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if s := w.Settled(t.Context()); s.State != Ready {
		t.Fatalf("%+v", s)
	}
	return w
}

// here is a process that is none.
type here struct {
	done chan error
	conn net.Conn
}

func (h *here) pid() int    { return 1 }
func (h *here) kill()       { _ = h.conn.Close() }
func (h *here) wait() error { return <-h.done }

// counted is a fallback that must not be used.
type counted struct {
	kernels.GraphBackend
	t testing.TB
}

func (c counted) Load(g *kernels.Graph, params [][]float32) (kernels.Network, error) {
	n, err := c.GraphBackend.Load(g, params)
	return neverNet{n, c.t}, err
}

func (c counted) Compile(g *kernels.Graph, params [][]float32) (kernels.Program, error) {
	p, err := c.GraphBackend.Compile(g, params)
	return neverProgram{p, c.t}, err
}

type neverNet struct {
	kernels.Network
	t testing.TB
}

func (n neverNet) Forward(dst, y, sigma []float32, width, height int, constants ...float32) error {
	n.t.Errorf("a slice of %d×%d went to the fallback", width, height)
	return n.Network.Forward(dst, y, sigma, width, height, constants...)
}

func (n neverNet) Trace(dst, y, sigma []float32, width, height int, constants ...float32) ([][]float32, error) {
	n.t.Errorf("a trace of %d×%d went to the fallback", width, height)
	return n.Network.Trace(dst, y, sigma, width, height, constants...)
}

type neverProgram struct {
	kernels.Program
	t testing.TB
}

func (p neverProgram) Run(dst []float32, b *kernels.Batch) error {
	p.t.Errorf("%d samples of %d×%d went to the fallback", b.Count, b.Width, b.Height)
	return p.Program.Run(dst, b)
}

// TestBackend: through a socket, every backend is what it is, by the list that holds for all.
func TestBackend(t *testing.T) {
	local := fallback(t)
	w := inProcess(t, local)
	b := NewBackend(w, counted{local, t})
	tol := kernelstest.Single
	tol.Network = local.Tolerance()
	t.Run("Net", func(t *testing.T) { kernelstest.Run(t, b, tol) })
	if !raceEnabled { // the reference is slow then
		t.Run("Graph", func(t *testing.T) { kernelstest.RunGraphs(t, b, tol) })
	}
	s := w.Status()
	if s.Served < 100 || s.FellBack+s.Lost+s.Late+s.NoMemory > 0 {
		t.Errorf("%+v", s)
	}
	if s.Refused > 0 {
		t.Errorf("%d requests were refused: %s", s.Refused, s.LastError)
	}
	if s.Info.Backend != local.Name() || s.Info.Device != "here" || s.Info.Tolerance != local.Tolerance() || b.Tolerance() != local.Tolerance() {
		t.Errorf("%+v", s.Info)
	}
}

// TestSameBits: what comes out of the socket is what the backend behind it gives, bit by bit, also
// in place and with constants.
func TestSameBits(t *testing.T) {
	local := fallback(t)
	b := NewBackend(inProcess(t, local), counted{local, t})
	rng := rand.New(rand.NewPCG(3, 4))
	net := kernelstest.RandomNet(2, 8, 1)
	net.Constants = 2
	head := &net.Layers[0].Conv
	head.In = kernels.NetIn + 2
	head.Weights = randoms(rng, 9*head.In*head.Out)
	far, err := b.Load(net.Graph())
	if err != nil {
		t.Fatal(err)
	}
	near, err := local.Load(net.Graph())
	if err != nil {
		t.Fatal(err)
	}
	const w, h = 37, 22
	y, sigma := randoms(rng, w*h), randoms(rng, w*h)
	for _, constants := range [][]float32{nil, {0.5}, {0.5, float32(math.Inf(1))}} {
		want, got := make([]float32, w*h), slices.Clone(y)
		if err := near.Forward(want, y, sigma, w, h, constants...); err != nil {
			t.Fatal(err)
		}
		if err := far.Forward(got, got, sigma, w, h, constants...); err != nil {
			t.Fatal(err)
		}
		for i := range want {
			if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
				t.Fatalf("constants %v: value %d is %v, want %v", constants, i, got[i], want[i])
			}
		}
	}
}

func randoms(rng *rand.Rand, n int) []float32 {
	s := make([]float32, n)
	for i := range s {
		s[i] = float32(rng.NormFloat64())
	}
	return s
}

// pairGraph is a small network that kernels.Sampler can run.
func pairGraph() *kernels.Graph {
	g := new(kernels.Graph)
	x, condition := g.Input(1), g.Input(2)
	code := g.Conv(kernels.Conv1("code", 12, kernels.Linear), g.Vector(3))
	a := kernels.Conv3("a", 6, kernels.LeakyReLU)
	a.FiLM = code
	g.Conv(kernels.Conv3("b", 1, kernels.Linear), g.Conv(a, x, condition))
	return g
}

// pairInput is what a pair is sampled from.
type pairInput struct {
	eps   []float32
	batch *kernels.Batch
	steps []kernels.SampleStep
}

func newPairInput(w, h, steps int) pairInput {
	rng := rand.New(rand.NewPCG(5, 6))
	p := pairInput{eps: randoms(rng, w*h), batch: &kernels.Batch{Count: 1, Height: h, Width: w, Inputs: [][]float32{nil, randoms(rng, 2*w*h), nil}}}
	for range steps {
		p.steps = append(p.steps, kernels.SampleStep{State: rng.Float32(), Keep: rng.Float32(), Add: rng.Float32(), Vector: randoms(rng, 3)})
	}
	return p
}

// written is what the definition of kernels.Sampler says, word by word, as a batch of two.
func (p *pairInput) written(t *testing.T, program kernels.Program) (mean, spread []float32) {
	t.Helper()
	n := len(p.eps)
	x, v := append(slices.Clone(p.eps), p.eps...), make([]float32, 2*n)
	for i := range n {
		x[n+i] = -x[n+i]
	}
	for _, s := range p.steps {
		state := slices.Clone(x)
		for i := range state {
			state[i] *= s.State
		}
		b := &kernels.Batch{Count: 2, Height: p.batch.Height, Width: p.batch.Width,
			Inputs: [][]float32{state, append(slices.Clone(p.batch.Inputs[1]), p.batch.Inputs[1]...), append(slices.Clone(s.Vector), s.Vector...)}}
		if err := program.Run(v, b); err != nil {
			t.Fatal(err)
		}
		for i := range x {
			x[i] = s.Keep*x[i] + s.Add*v[i]
		}
	}
	for i := range n {
		mean = append(mean, (x[i]+x[n+i])/2)
		spread = append(spread, float32(math.Abs(float64(x[i]-x[n+i])))/2)
	}
	return mean, spread
}

// TestPair: sampling of a pair is what its definition says, on the worker and on the fallback; its
// runs are told and can be waited at, and their error ends it.
func TestPair(t *testing.T) {
	local := fallback(t)
	g := pairGraph()
	params := g.Init(7)
	reference, err := local.Compile(g, params)
	if err != nil {
		t.Fatal(err)
	}
	in := newPairInput(12, 9, 4)
	wantMean, wantSpread := in.written(t, reference)
	idle := NewWorker(Options{}) // never started
	for name, b := range map[string]*Backend{"worker": NewBackend(inProcess(t, local), counted{local, t}), "fallback": NewBackend(idle, local)} {
		t.Run(name, func(t *testing.T) {
			program, err := b.Compile(g, params)
			if err != nil {
				t.Fatal(err)
			}
			sampler := program.(kernels.Sampler)
			mean, spread := make([]float32, len(in.eps)), make([]float32, len(in.eps))
			var told []int
			tell := func(runs int) error { told = append(told, runs); return nil }
			if err := sampler.SamplePair(mean, spread, in.eps, in.batch, in.steps, tell); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(same(mean, wantMean), same(spread, wantSpread)); err != nil {
				t.Error(err)
			}
			if !slices.Equal(told, []int{1, 2, 3, 4, 5, 6, 7, 8}) {
				t.Errorf("told of runs %v", told)
			}
			if err := sampler.SamplePair(mean, spread, in.eps, in.batch, in.steps, nil); err != nil {
				t.Errorf("without a word after each run: %v", err)
			}
			enough := errors.New("enough")
			calls := 0
			err = sampler.SamplePair(mean, spread, in.eps, in.batch, in.steps, func(runs int) error {
				if calls++; runs == 2 {
					return enough
				}
				return nil
			})
			if !errors.Is(err, enough) || calls != 2 {
				t.Errorf("called off after %d runs: %v", calls, err)
			}
			for what, change := range map[string]func(p *pairInput){
				"no steps":         func(p *pairInput) { p.steps = nil },
				"two samples":      func(p *pairInput) { p.batch.Count = 2 },
				"a state":          func(p *pairInput) { p.batch.Inputs[0] = p.eps },
				"a vector":         func(p *pairInput) { p.batch.Inputs[2] = p.steps[0].Vector },
				"no condition":     func(p *pairInput) { p.batch.Inputs[1] = nil },
				"a short vector":   func(p *pairInput) { p.steps[3].Vector = p.steps[3].Vector[1:] },
				"too little noise": func(p *pairInput) { p.eps = p.eps[1:] },
			} {
				bad := newPairInput(12, 9, 4)
				change(&bad)
				if err := sampler.SamplePair(mean, spread, bad.eps, bad.batch, bad.steps, nil); err == nil {
					t.Errorf("%s: passed", what)
				}
			}
			if err := sampler.SamplePair(mean[1:], spread, in.eps, in.batch, in.steps, nil); err == nil {
				t.Error("a short output: passed")
			}
			// It works on after all that.
			if err := sampler.SamplePair(mean, spread, in.eps, in.batch, in.steps, nil); err != nil {
				t.Error(err)
			}
		})
	}
	// A graph without a vector is none to sample with.
	plain := new(kernels.Graph)
	plain.Conv(kernels.Conv3("a", 1, kernels.Linear), plain.Input(1))
	b := NewBackend(idle, local)
	program, err := b.Compile(plain, plain.Init(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := program.(kernels.Sampler).SamplePair(make([]float32, 4), make([]float32, 4), make([]float32, 4), &kernels.Batch{Count: 1, Height: 2, Width: 2, Inputs: [][]float32{nil}}, in.steps, nil); err == nil {
		t.Error("a graph without a vector: passed")
	}
}

// TestMany: thousands of requests from many callers, several networks, all in flight together.
func TestMany(t *testing.T) {
	local := fallback(t)
	w := inProcess(t, local)
	b := NewBackend(w, counted{local, t})
	var wg sync.WaitGroup
	for range 3 {
		far, near := pairOf(t, b)
		list := slicesOf(t, near, [2]int{5, 4}, [2]int{32, 20}, [2]int{17, 40})
		for k := range 40 {
			wg.Go(func() {
				for i := range 25 {
					if err := list[(i+k)%len(list)].forward(far); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	if s := w.Status(); s.Served != 3000 || s.FellBack > 0 {
		t.Errorf("%+v", s)
	}
}

// closing is a backend that tells when a network is not used any more.
type closing struct {
	kernels.GraphBackend
	closed chan struct{}
}

type closingNet struct{ kernels.Network }

func (c *closing) Load(g *kernels.Graph, params [][]float32) (kernels.Network, error) {
	n, err := c.GraphBackend.Load(g, params)
	held := &closingNet{n}
	runtime.AddCleanup(held, func(struct{}) { c.closed <- struct{}{} }, struct{}{})
	return held, err
}

// TestUnload: a network that is not used any more is freed on the worker, others are not.
func TestUnload(t *testing.T) {
	closed := make(chan struct{}, 10)
	local := fallback(t)
	b := NewBackend(inProcess(t, &closing{local, closed}), local)
	kept, near := pairOf(t, b)
	list := slicesOf(t, near, [2]int{8, 6})
	if err := list[0].forward(kept); err != nil {
		t.Fatal(err)
	}
	func() {
		dropped, _ := pairOf(t, b)
		if err := list[0].forward(dropped); err != nil {
			t.Fatal(err)
		}
	}()
	eventually(t, "the network is freed", func() error {
		runtime.GC()
		select {
		case <-closed:
			return nil
		default:
			return errors.New("it is not")
		}
	})
	if err := list[0].forward(kept); err != nil || len(closed) > 0 {
		t.Errorf("the other network: %v, %d more freed", err, len(closed))
	}
}

// TestDeadline: the time that a request may take grows with the work in hand.
func TestDeadline(t *testing.T) {
	o := Options{RequestLimit: time.Second, Slowest: 1e9}.withDefaults()
	if got := o.patience(5e9); got != 6*time.Second {
		t.Errorf("%v for 5 GFLOP", got)
	}
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		go func() {
			r := writer{conn: theirs}
			if err := r.send(kindHello, 0, hello{Protocol: protocol, Parallel: 2}); err != nil {
				t.Error(err)
			}
			buf := make([]byte, 1<<16)
			for { // takes everything and answers nothing
				if _, err := theirs.Read(buf); err != nil {
					return
				}
			}
		}()
		var killed atomic.Bool
		s, err := greet(ours, func() { killed.Store(true); theirs.Close() }, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		go s.read()
		began := time.Now()
		_, err = s.ask(&request{kind: kindForward, header: imageHeader{1, 2, 3}, flop: 5e9}, o.patience)
		var lost *lostError
		if !errors.As(err, &lost) || !lost.late || time.Since(began) != 6*time.Second || !killed.Load() {
			t.Errorf("after %v: %v, killed %v", time.Since(began), err, killed.Load())
		}
		if want := "worker lost: no answer to a slice of 2×3 within 6s"; err.Error() != want {
			t.Errorf("%q, want %q", err, want)
		}
		<-s.gone
	})
}
