package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/diffdenoise/denoised/kernels"
)

// Limits of what a worker takes.
const (
	maxParallel = 64   // requests at a time
	maxNetworks = 1024 // loaded at a time
)

// Refuse tells the other end of conn why this process cannot be a worker.
func Refuse(conn net.Conn, why error) error {
	w := writer{conn: conn}
	return w.send(kindHello, 0, hello{Protocol: protocol, Refused: why.Error()})
}

// Serve computes on b what the other end of conn asks for, several requests at a time, until it
// closes the connection or ctx ends. Requests in hand are then finished. Info fields that b can
// tell are filled in. The error wraps kernels.ErrDevice if the device was lost, after which the
// process must end; an error of the peer's is of no use to anybody but the log.
//
// Methods Tolerance() float64 and Memory() (free, total int64, err error) of b, if it has them, go
// into Info and Stats.
func Serve(ctx context.Context, conn net.Conn, b kernels.GraphBackend, info Info) error {
	if err := errEndian(); err != nil {
		return err
	}
	info.Backend = b.Name()
	if t, ok := b.(interface{ Tolerance() float64 }); ok {
		info.Tolerance = t.Tolerance()
	}
	s := &server{backend: b, out: writer{conn: conn}, gone: make(chan struct{}), networks: map[uint64]*network{}, pairs: map[uint64]chan proceed{}}
	if err := s.out.send(kindHello, 0, hello{Protocol: protocol, Info: info, Parallel: maxParallel}); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	// An end of ctx is not an end of what is in hand, so reading is all that it stops.
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })() // a closed one reads nothing either
	err := s.read(bufio.NewReaderSize(conn, 1<<16))
	close(s.gone) // nobody will let a pair go on
	s.inHand.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.lost != nil:
		return s.lost
	case errors.Is(err, io.EOF), ctx.Err() != nil:
		return nil
	}
	return err
}

// server is one call of Serve.
type server struct {
	backend kernels.GraphBackend
	out     writer
	gone    chan struct{} // closed when nothing is read any more
	inHand  sync.WaitGroup

	mu       sync.Mutex
	busy     int // requests in hand
	served   int64
	networks map[uint64]*network
	pairs    map[uint64]chan proceed // that wait to go on
	lost     error                   // the device is
}

// network is something loaded, as a Network or as a Program.
type network struct {
	graph   *kernels.Graph
	network kernels.Network
	program kernels.Program
}

// loaded returns a network.
func (s *server) loaded(id uint64, program bool) (*network, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.networks[id]
	if n == nil || (n.program != nil) != program {
		return nil, broken("network %d is not loaded, or of the other kind", id)
	}
	return n, nil
}

// start runs a request beside the reading of others. work returns the payload of the answer.
func (s *server) start(id uint64, work func() ([][]float32, error), end func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy == maxParallel {
		return broken("more than %d requests at a time", maxParallel)
	}
	s.busy++
	s.inHand.Go(func() {
		payload, err := work()
		s.mu.Lock()
		s.busy--
		s.served++
		if errors.Is(err, kernels.ErrDevice) && s.lost == nil {
			s.lost = err
		}
		lost := s.lost
		s.mu.Unlock()
		if err == nil {
			err = s.out.send(kindResult, id, nil, payload...)
		} else {
			err = s.out.send(kindFailure, id, failureOf(err))
		}
		end()
		if err != nil || lost != nil {
			_ = s.out.conn.Close() // ends the reading, and so Serve
		}
	})
	return nil
}

// read takes frames until there are no more. An end between two frames is io.EOF.
func (s *server) read(r *bufio.Reader) error {
	for {
		h, err := readHead(r)
		if err != nil {
			return err
		}
		switch h.kind {
		case kindLoadNet, kindLoadGraph:
			err = s.load(r, &h)
		case kindUnload:
			err = s.unload(r, &h)
		case kindForward, kindTrace:
			err = s.forward(r, &h)
		case kindRun:
			err = s.run(r, &h)
		case kindPair:
			err = s.pair(r, &h)
		case kindPing:
			err = s.ping(&h)
		case kindProceed:
			err = s.proceed(r, &h)
		default:
			err = broken("a frame of kind %d", h.kind)
		}
		if err != nil {
			return err
		}
	}
}

// expect reads a payload that must have n floats.
func expect(r io.Reader, h *head, b *buffer, n int) error {
	if h.floats != n {
		return broken("frame %d has %d floats, want %d", h.kind, h.floats, n)
	}
	return b.read(r, n)
}

// add keeps a network under a number that is free.
func (s *server) add(id uint64, n *network) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.networks[id] != nil || len(s.networks) == maxNetworks {
		return broken("network %d is loaded already, or there are too many", id)
	}
	s.networks[id] = n
	return nil
}

func (s *server) load(r io.Reader, h *head) error {
	var header graphHeader
	if err := h.readHeader(r, &header); err != nil {
		return err
	}
	g, err := header.decode()
	if err != nil {
		return err
	}
	each, total := lengths(g)
	var params buffer
	if err := expect(r, h, &params, total); err != nil {
		return err
	}
	return s.start(h.id, func() ([][]float32, error) {
		p, _ := split(params.floats, each)
		if err := g.CheckParams(p); err != nil {
			return nil, err
		}
		network := &network{graph: g}
		var err error
		if h.kind == kindLoadNet {
			network.network, err = s.backend.Load(g, p)
		} else {
			network.program, err = s.backend.Compile(g, p)
		}
		if err != nil {
			return nil, err
		}
		return nil, s.add(header.Network, network)
	}, func() {})
}

func (s *server) unload(r io.Reader, h *head) error {
	var header unloadHeader
	if err := h.readOnly(r, &header); err != nil {
		return err
	}
	s.mu.Lock()
	known := s.networks[header.Network] != nil
	delete(s.networks, header.Network)
	s.mu.Unlock()
	if !known {
		return broken("network %d is not loaded", header.Network)
	}
	return s.start(h.id, func() ([][]float32, error) {
		// Backends free on a device what nobody refers to any more, once that is found out. Here
		// that could take days.
		runtime.GC()
		return nil, nil
	}, func() {})
}

// forward does Forward and Trace.
func (s *server) forward(r io.Reader, h *head) error {
	var header imageHeader
	if err := h.readHeader(r, &header); err != nil {
		return err
	}
	width, height := header.Width, header.Height
	if width < 1 || height < 1 || width > kernels.MaxPixels/height {
		return broken("an image of %d×%d", width, height)
	}
	n, err := s.loaded(header.Network, false)
	if err != nil {
		return err
	}
	pixels := width * height
	constants := h.floats - 2*pixels
	if constants < 0 || constants > constantsOf(n.graph) {
		return broken("an image of %d×%d in %d floats", width, height, h.floats)
	}
	trace := h.kind == kindTrace
	if trace && traced(n.graph, width, height) > maxFloats {
		return broken("a trace of %d×%d", width, height)
	}
	in, out := buffers.Get().(*buffer), buffers.Get().(*buffer)
	if err := in.read(r, h.floats); err != nil {
		return err
	}
	return s.start(h.id, func() ([][]float32, error) {
		f, dst := in.floats, out.room(pixels)
		y, sigma, rest := f[:pixels], f[pixels:2*pixels], f[2*pixels:]
		if err := kernels.CheckImage("forward", dst, y, sigma, width, height); err != nil {
			return nil, err
		}
		if !trace {
			return [][]float32{dst}, n.network.Forward(dst, y, sigma, width, height, rest...)
		}
		layers, err := n.network.Trace(dst, y, sigma, width, height, rest...)
		return append([][]float32{dst}, layers...), err
	}, func() {
		buffers.Put(in)
		buffers.Put(out)
	})
}

// traced is the length of what Trace gives: the output and every layer.
func traced(g *kernels.Graph, width, height int) int {
	channels := 0
	for i := range g.Nodes[1:] {
		channels += g.Nodes[1+i].Channels
	}
	return width*height + channels*((width+1)/2)*((height+1)/2)
}

func (s *server) run(r io.Reader, h *head) error {
	var header batchHeader
	if err := h.readHeader(r, &header); err != nil {
		return err
	}
	n, err := s.loaded(header.Network, true)
	if err != nil {
		return err
	}
	inputs, output, err := header.inputLengths(n.graph)
	if err != nil {
		return err
	}
	in, out := buffers.Get().(*buffer), buffers.Get().(*buffer)
	total := 0
	for _, k := range inputs {
		total += k
	}
	if err := expect(r, h, in, total); err != nil {
		return err
	}
	return s.start(h.id, func() ([][]float32, error) {
		b := &kernels.Batch{Count: header.Count, Height: header.Height, Width: header.Width, Shifts: header.Shifts}
		b.Inputs, _ = split(in.floats, inputs)
		if err := n.graph.Check(b, false); err != nil {
			return nil, err
		}
		dst := out.room(output)
		return [][]float32{dst}, n.program.Run(dst, b)
	}, func() {
		buffers.Put(in)
		buffers.Put(out)
	})
}

// errStopped: the other end called a pair off.
var errStopped = errors.New("called off")

func (s *server) pair(r io.Reader, h *head) error {
	var header pairHeader
	if err := h.readHeader(r, &header); err != nil {
		return err
	}
	n, err := s.loaded(header.Network, true)
	if err != nil {
		return err
	}
	inputs, output, err := header.inputLengths(n.graph)
	if err != nil {
		return err
	}
	vector, err := n.graph.SamplingVector()
	if err != nil || header.Count != 1 || header.Steps < 1 || header.Steps > kernels.MaxSampleSteps || 2*output > maxFloats {
		return broken("sampling of %d images of %d×%d in %d steps: %v", header.Count, header.Width, header.Height, header.Steps, err)
	}
	code := inputs[vector]
	inputs[0], inputs[vector] = 0, 0 // what the sampler itself fills
	total := output + header.Steps*(3+code)
	for _, k := range inputs {
		total += k
	}
	in, out := buffers.Get().(*buffer), buffers.Get().(*buffer)
	if err := expect(r, h, in, total); err != nil {
		return err
	}
	next := make(chan proceed, 1)
	s.mu.Lock()
	s.pairs[h.id] = next
	s.mu.Unlock()
	return s.start(h.id, func() ([][]float32, error) {
		eps := in.floats[:output]
		parts, f := split(in.floats[output:], inputs)
		steps := make([]kernels.SampleStep, header.Steps)
		for i := range steps {
			steps[i] = kernels.SampleStep{State: f[0], Keep: f[1], Add: f[2], Vector: f[3 : 3+code : 3+code]}
			f = f[3+code:]
		}
		parts[0], parts[vector] = nil, nil
		b := &kernels.Batch{Count: 1, Height: header.Height, Width: header.Width, Shifts: header.Shifts, Inputs: parts}
		dst := out.room(2 * output)
		mean, spread := dst[:output], dst[output:]
		if _, err := n.graph.CheckSampling(mean, spread, eps, b, steps); err != nil {
			return nil, err
		}
		return [][]float32{dst}, kernels.SamplePair(n.program, mean, spread, eps, b, steps, func(runs int) error {
			if err := s.out.send(kindProgress, h.id, progress{runs}); err != nil {
				return err
			}
			select {
			case p := <-next:
				if p.Stop {
					return errStopped
				}
				return nil
			case <-s.gone:
				return errStopped
			}
		})
	}, func() {
		s.mu.Lock()
		delete(s.pairs, h.id)
		s.mu.Unlock()
		buffers.Put(in)
		buffers.Put(out)
	})
}

func (s *server) proceed(r io.Reader, h *head) error {
	var p proceed
	if err := h.readOnly(r, &p); err != nil {
		return err
	}
	s.mu.Lock()
	next := s.pairs[h.id]
	s.mu.Unlock()
	select {
	case next <- p:
		return nil
	default: // also without such a pair
		return broken("request %d does not wait to go on", h.id)
	}
}

// ping answers at once, whatever is in hand.
func (s *server) ping(h *head) error {
	if h.header != 0 || h.floats != 0 {
		return broken("a ping with something in it")
	}
	s.mu.Lock()
	st := Stats{Served: s.served}
	s.mu.Unlock()
	if m, ok := s.backend.(interface {
		Memory() (free, total int64, err error)
	}); ok {
		var err error
		if st.Free, st.Total, err = m.Memory(); err != nil {
			st.Free, st.Total = 0, 0 // whatever is wrong with the device shows in the requests
		}
	}
	return s.out.send(kindResult, h.id, st)
}
