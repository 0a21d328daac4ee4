// Package remote computes in a process of its own, so that whatever happens to a device, its
// driver or the code that runs on it ends that process and no other.
//
// A Worker starts the process, sees to it, and starts another one when it ends. A Backend sends
// what it is asked to compute to the worker, and computes on a fallback what the worker cannot do
// for whatever reason: its callers see no error that the fallback can avoid. In the process, Serve
// answers from any other backend. The two talk over a socket in frames (frame.go); nothing of the
// protocol is meant to outlive a release.
package remote

import (
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/diffdenoise/denoised/kernels"
)

// Backend computes on a Worker or, when that cannot, on a fallback. Conv3x3 and Train are the
// fallback's. It is a kernels.GraphBackend; its networks are kernels.Networks, its programs
// kernels.Samplers.
type Backend struct {
	worker   *Worker
	fallback kernels.GraphBackend
	last     atomic.Uint64 // number given to a network
}

// NewBackend returns a backend. The worker need not be ready, or started.
func NewBackend(w *Worker, fallback kernels.GraphBackend) *Backend {
	return &Backend{worker: w, fallback: fallback}
}

// Name implements kernels.Backend.
func (b *Backend) Name() string { return "worker or " + b.fallback.Name() }

// Tolerance is how far an output of a network may be off: that of the worker or the fallback,
// whichever is greater.
func (b *Backend) Tolerance() float64 {
	tolerance := b.worker.Status().Info.Tolerance
	if t, ok := b.fallback.(interface{ Tolerance() float64 }); ok {
		tolerance = max(tolerance, t.Tolerance())
	}
	return tolerance
}

// Conv3x3 implements kernels.Backend.
func (b *Backend) Conv3x3(dst, src, residual []float32, height, width int, c *kernels.Conv) error {
	return b.fallback.Conv3x3(dst, src, residual, height, width, c)
}

// Train implements kernels.GraphBackend.
func (b *Backend) Train(g *kernels.Graph, s *kernels.State, o kernels.TrainOptions) (kernels.Trainer, error) {
	return b.fallback.Train(g, s, o)
}

// Load implements kernels.Backend.
func (b *Backend) Load(g *kernels.Graph, params [][]float32) (kernels.Network, error) {
	local, err := b.fallback.Load(g, params)
	if err != nil {
		return nil, err
	}
	h, graph, err := b.hold(kindLoadNet, g, params)
	if err != nil {
		return local, nil
	}
	return &remoteNet{held: h, graph: graph, local: local, flop: graph.FLOP(1, 1)}, nil
}

// Compile implements kernels.GraphBackend.
func (b *Backend) Compile(g *kernels.Graph, params [][]float32) (kernels.Program, error) {
	local, err := b.fallback.Compile(g, params)
	if err != nil {
		return nil, err
	}
	h, graph, err := b.hold(kindLoadGraph, g, params)
	if err != nil {
		return local, nil
	}
	return &remoteProgram{held: h, graph: graph, local: local}, nil
}

// held is a network as far as a worker has it, or will have it when it is asked for first.
type held struct {
	b    *Backend
	id   uint64
	load func() *request
	at   *atomic.Pointer[session] // where it was last used
}

// hold gives a network a number, and returns the graph that workers are told of. Workers are also told
// when it is not used any more. The error is that of encodeGraph.
func (b *Backend) hold(k kind, g *kernels.Graph, params [][]float32) (*held, *kernels.Graph, error) {
	h := &held{b: b, id: b.last.Add(1), at: new(atomic.Pointer[session])}
	header, err := encodeGraph(h.id, g)
	if err != nil {
		return nil, nil, err
	}
	graph, err := header.decode()
	if err != nil {
		return nil, nil, err
	}
	var kept [][]float32
	for _, values := range params {
		kept = append(kept, slices.Clone(values))
	}
	h.load = func() *request { return &request{kind: k, header: header, payload: kept} }
	type told struct {
		id uint64
		at *atomic.Pointer[session]
	}
	runtime.AddCleanup(h, func(t told) {
		if s := t.at.Load(); s != nil {
			go s.unload(t.id, b.worker.o.patience)
		}
	}, told{h.id, h.at})
	return h, graph, nil
}

// ask has a worker do a request. If that is lost it asks the next one, if there is one soon. done
// is false if the fallback must do it; err is then nil.
func (h *held) ask(r *request, use func(result []float32)) (done bool, err error) {
	w := h.b.worker
	s := w.ready()
	for try := 0; s != nil; try++ {
		began := time.Now()
		var result *buffer
		err := s.load(h.id, h.load, w.o.patience)
		if err == nil {
			h.at.Store(s)
			result, err = s.ask(r, w.o.patience)
		}
		if err == nil {
			use(result.floats[:r.result])
			buffers.Put(result)
		}
		w.count(err, time.Since(began))
		var lost *lostError
		var stopped *stopError
		switch {
		case err == nil:
			return true, nil
		case errors.As(err, &stopped):
			return true, stopped.error
		case !errors.As(err, &lost) || try > 0:
			s = nil
		default:
			s = w.soon(s)
		}
	}
	w.mu.Lock()
	w.status.FellBack++
	w.mu.Unlock()
	return false, nil
}

// count notes what became of a request.
func (w *Worker) count(err error, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.status
	s.Seconds += took.Seconds()
	var lost *lostError
	var stopped *stopError
	switch {
	case err == nil, errors.As(err, &stopped):
		s.Served++
	case errors.As(err, &lost) && lost.late:
		s.Late++
	case errors.As(err, &lost):
		s.Lost++
	case errors.Is(err, kernels.ErrMemory):
		s.NoMemory++
		s.LastError = err.Error()
	default:
		s.Refused++
		s.LastError = err.Error()
	}
}

// remoteNet is a kernels.Network.
type remoteNet struct {
	*held
	graph *kernels.Graph
	local kernels.Network
	flop  float64 // of four pixels
}

// Forward implements kernels.Network.
func (n *remoteNet) Forward(dst, y, sigma []float32, width, height int, constants ...float32) error {
	if err := n.check("forward", dst, y, sigma, width, height, constants); err != nil {
		return err
	}
	done, err := n.ask(n.request(kindForward, y, sigma, width, height, constants, len(dst)), func(result []float32) { copy(dst, result) })
	if done {
		return err
	}
	return n.local.Forward(dst, y, sigma, width, height, constants...)
}

// Trace implements kernels.Network.
func (n *remoteNet) Trace(dst, y, sigma []float32, width, height int, constants ...float32) ([][]float32, error) {
	if err := n.check("trace", dst, y, sigma, width, height, constants); err != nil {
		return nil, err
	}
	var layers [][]float32
	if total := traced(n.graph, width, height); total <= maxFloats {
		done, err := n.ask(n.request(kindTrace, y, sigma, width, height, constants, total), func(result []float32) {
			at := copy(dst, result)
			for i := range n.graph.Nodes[1:] {
				k := n.graph.Nodes[1+i].Channels * ((width + 1) / 2) * ((height + 1) / 2)
				layers = append(layers, slices.Clone(result[at:at+k]))
				at += k
			}
		})
		if done {
			return layers, err
		}
	}
	return n.local.Trace(dst, y, sigma, width, height, constants...)
}

func (n *remoteNet) check(op string, dst, y, sigma []float32, width, height int, constants []float32) error {
	if most := constantsOf(n.graph); len(constants) > most {
		return &kernels.ShapeError{Op: op, What: "number of constants", Got: len(constants), Want: most}
	}
	return kernels.CheckImage(op, dst, y, sigma, width, height)
}

func (n *remoteNet) request(k kind, y, sigma []float32, width, height int, constants []float32, result int) *request {
	return &request{kind: k, header: imageHeader{n.id, width, height},
		payload: [][]float32{y, sigma, constants}, result: result, flop: n.flop * float64((width+1)/2*((height+1)/2))}
}

// remoteProgram is a kernels.Sampler.
type remoteProgram struct {
	*held
	graph *kernels.Graph
	local kernels.Program
}

// Run implements kernels.Program.
func (p *remoteProgram) Run(dst []float32, b *kernels.Batch) error {
	if err := p.graph.Check(b, false); err != nil {
		return err
	}
	h := batchHeader{p.id, b.Count, b.Height, b.Width, b.Shifts}
	_, output, err := h.inputLengths(p.graph)
	if err != nil { // too large for a frame
		return p.local.Run(dst, b)
	}
	if len(dst) != output {
		return &kernels.ShapeError{Op: "graph", What: "length of the output", Got: len(dst), Want: output}
	}
	done, err := p.ask(&request{kind: kindRun, header: h, payload: b.Inputs, result: output,
		flop: float64(b.Count) * p.graph.FLOP(b.Height, b.Width)}, func(result []float32) { copy(dst, result) })
	if done {
		return err
	}
	return p.local.Run(dst, b)
}

// SamplePair implements kernels.Sampler. If the worker is lost on the way, sampling begins anew.
func (p *remoteProgram) SamplePair(mean, spread, eps []float32, b *kernels.Batch, steps []kernels.SampleStep,
	done func(runs int) error) error {
	if _, err := p.graph.CheckSampling(mean, spread, eps, b, steps); err != nil {
		return err
	}
	if done == nil {
		done = func(int) error { return nil }
	}
	h := pairHeader{batchHeader{p.id, 1, b.Height, b.Width, b.Shifts}, len(steps)}
	payload := append([][]float32{eps}, b.Inputs...) // of which two are nil and add nothing
	var each []float32
	for _, s := range steps {
		each = append(append(each, s.State, s.Keep, s.Add), s.Vector...)
	}
	r := &request{kind: kindPair, header: h, payload: append(payload, each),
		result: 2 * len(eps), flop: 2 * p.graph.FLOP(b.Height, b.Width), done: done}
	if 2*len(eps) <= maxFloats {
		made, err := p.ask(r, func(result []float32) {
			copy(mean, result)
			copy(spread, result[len(eps):])
		})
		if made {
			return err
		}
	}
	return kernels.SamplePair(p.local, mean, spread, eps, b, steps, done)
}
