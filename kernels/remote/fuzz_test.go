package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// recorded is what the sending of frames leaves.
type recorded struct {
	net.Conn
	sent bytes.Buffer
}

func (r *recorded) Write(b []byte) (int, error) { return r.sent.Write(b) }

// frames returns what send sends.
func frames(t testing.TB, send func(w *writer) error) []byte {
	t.Helper()
	r := new(recorded)
	if err := send(&writer{conn: r}); err != nil {
		t.Fatal(err)
	}
	return r.sent.Bytes()
}

// honest returns frames that a daemon sends: networks, and a request of each kind.
func honest(t testing.TB) [][]byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	net, g := kernelstest.RandomNet(1, 4, 1), pairGraph()
	in := newPairInput(3, 2, 2)
	graph, err := encodeGraph(2, g)
	if err != nil {
		t.Fatal(err)
	}
	var each []float32
	for _, s := range in.steps {
		each = append(append(each, s.State, s.Keep, s.Add), s.Vector...)
	}
	plain, weights := net.Graph()
	header, err := encodeGraph(1, plain)
	if err != nil {
		t.Fatal(err)
	}
	var list [][]byte
	for i, r := range []request{
		{kind: kindLoadNet, header: header, payload: weights},
		{kind: kindLoadGraph, header: graph, payload: g.Init(1)},
		{kind: kindForward, header: imageHeader{1, 3, 2}, payload: [][]float32{randoms(rng, 12)}},
		{kind: kindTrace, header: imageHeader{1, 3, 2}, payload: [][]float32{randoms(rng, 12)}},
		{kind: kindRun, header: batchHeader{Network: 2, Count: 2, Height: 2, Width: 3}, payload: [][]float32{randoms(rng, 2*(6+12+3))}},
		{kind: kindPair, header: pairHeader{batchHeader{2, 1, 2, 3, nil}, 2}, payload: [][]float32{in.eps, in.batch.Inputs[1], each}},
		{kind: kindProceed, header: proceed{Stop: true}},
		{kind: kindPing},
		{kind: kindUnload, header: unloadHeader{1}},
	} {
		list = append(list, frames(t, func(w *writer) error { return w.send(r.kind, uint64(i+1), r.header, r.payload...) }))
	}
	return list
}

// wire is a connection that has all to be read in it already, and forgets what is written to it.
type wire struct {
	net.Conn
	in *bytes.Reader
}

func (w *wire) Read(b []byte) (int, error)        { return w.in.Read(b) }
func (w *wire) Write(b []byte) (int, error)       { return len(b), nil }
func (w *wire) Close() error                      { return nil }
func (w *wire) SetReadDeadline(t time.Time) error { return nil }

// FuzzServe: whatever comes over a connection, a worker ends with an error or serves it.
func FuzzServe(f *testing.F) {
	list := honest(f)
	f.Add(slices.Concat(list...))
	for _, one := range list {
		f.Add(one)
	}
	f.Add(slices.Concat(list[0], list[2], list[2][:len(list[2])-5]))
	b, err := cpu.New(cpu.Go)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		if err := Serve(context.Background(), &wire{in: bytes.NewReader(data)}, small{b}, Info{}); errors.Is(err, io.EOF) {
			t.Error("an end between frames is an error, or one within is none")
		}
	})
}

// small refuses networks that would take long.
type small struct{ kernels.GraphBackend }

func (s small) Compile(g *kernels.Graph, params [][]float32) (kernels.Program, error) {
	p, err := s.GraphBackend.Compile(g, params)
	return smallProgram{p, g}, err
}

type smallProgram struct {
	kernels.Program
	g *kernels.Graph
}

func (p smallProgram) Run(dst []float32, b *kernels.Batch) error {
	if p.g.FLOP(b.Height, b.Width)*float64(b.Count) > 1e7 || b.Height*b.Width*len(p.g.Nodes) > 1e6 {
		return errors.New("that is too much for a test")
	}
	return p.Program.Run(dst, b)
}

// FuzzSession: whatever a worker answers, a request ends with its result or an error.
func FuzzSession(f *testing.F) {
	greeting := frames(f, func(w *writer) error { return w.send(kindHello, 0, hello{Protocol: protocol, Parallel: 4}) })
	for _, k := range []kind{kindResult, kindFailure, kindProgress, kindHello} {
		f.Add(slices.Concat(greeting, frames(f, func(w *writer) error { return w.send(k, 1, failure{Text: "why"}, make([]float32, 6)) })))
	}
	f.Add(slices.Concat(greeting, frames(f, func(w *writer) error {
		return errors.Join(w.send(kindProgress, 1, progress{1}), w.send(kindResult, 1, nil, make([]float32, 6)))
	})))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() { _, _ = io.Copy(io.Discard, theirs) }() // until it is closed
		s, err := greet(&wire{Conn: ours, in: bytes.NewReader(data)}, func() {}, time.Minute)
		if err != nil {
			return
		}
		go func() {
			s.mu.Lock()
			for s.last == 0 { // or nothing would be asked when the answer is read
				s.mu.Unlock()
				time.Sleep(time.Microsecond)
				s.mu.Lock()
			}
			s.mu.Unlock()
			s.read()
		}()
		result, err := s.ask(&request{kind: kindForward, header: imageHeader{1, 3, 2}, result: 6, done: func(int) error { return nil }}, func(float64) time.Duration { return time.Minute })
		if err == nil && len(result.floats) != 6 {
			t.Errorf("a result of %d floats", len(result.floats))
		}
	})
}

// TestDishonest: frames that do not fit what was loaded end the connection, and take no memory.
func TestDishonest(t *testing.T) {
	b := fallback(t)
	good := honest(t)
	send := func(k kind, header any, floats int) []byte {
		return frames(t, func(w *writer) error { return w.send(k, 99, header, make([]float32, floats)) })
	}
	announced := func(k kind, header any, floats uint32) []byte { // but not sent
		f := send(k, header, 0)
		f[20], f[21], f[22], f[23] = byte(floats), byte(floats>>8), byte(floats>>16), byte(floats>>24)
		return f
	}
	deep := make([]nodeHeader, kernels.MaxNodes+1)
	wide := func(outs ...int) []nodeHeader { // convolutions one after the other
		list := []nodeHeader{{Op: kernels.OpInput, Channels: kernels.NetIn}}
		for i, out := range outs {
			c := kernels.Conv3(strconv.Itoa(i), out, kernels.Linear)
			list = append(list, nodeHeader{Op: kernels.OpConv, From: []kernels.Value{kernels.Value(i)}, Conv: &c})
		}
		return list
	}
	for name, data := range map[string][][]byte{
		"magic":                  {[]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")},
		"kind":                   {send(200, nil, 0)},
		"a worker's word":        {send(kindResult, nil, 0)},
		"header too long":        {append([]byte(magic), 0x10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0)},
		"payload too long":       {announced(kindForward, imageHeader{1, 1 << 14, 1 << 14}, 1<<29)},
		"no JSON":                {append((&head{kind: kindForward, header: 3}).append(nil), "???"...)},
		"no network":             {send(kindForward, imageHeader{7, 3, 2}, 12)},
		"a graph as a network":   {good[1], send(kindForward, imageHeader{2, 3, 2}, 12)},
		"a network as a graph":   {good[0], send(kindRun, batchHeader{Network: 1, Count: 1, Height: 2, Width: 2}, 4)},
		"short image":            {good[0], send(kindForward, imageHeader{1, 3, 2}, 11)},
		"too many constants":     {good[0], send(kindForward, imageHeader{1, 3, 2}, 13)},
		"no width":               {good[0], send(kindForward, imageHeader{1, 0, 2}, 0)},
		"overflow":               {good[0], send(kindForward, imageHeader{1, 1 << 62, 4}, 0)},
		"negative":               {good[0], send(kindForward, imageHeader{1, -3, -2}, 12)},
		"the same number twice":  {good[0], good[0], send(kindForward, imageHeader{9, 3, 2}, 12)},
		"short weights":          {send(kindLoadNet, graphHeader{Network: 1, Nodes: wide(4)}, 183)},
		"many layers":            {send(kindLoadNet, graphHeader{Nodes: deep}, 0)},
		"many channels":          {send(kindLoadNet, graphHeader{Nodes: wide(1 << 40)}, 0)},
		"many operations":        {send(kindLoadGraph, graphHeader{Nodes: deep}, 0)},
		"convolution of nothing": {send(kindLoadGraph, graphHeader{Nodes: []nodeHeader{{Op: kernels.OpConv}}}, 0)},
		"value from nowhere": {send(kindLoadGraph,
			graphHeader{Nodes: []nodeHeader{{Op: kernels.OpRotate, From: []kernels.Value{-7}}}}, 0)},
		"rotation of two": {send(kindLoadGraph, graphHeader{Nodes: []nodeHeader{{Op: kernels.OpInput, Channels: 1},
			{Op: kernels.OpRotate, From: []kernels.Value{0, 0}}}}, 0)},
		"unknown operation": {send(kindLoadGraph,
			graphHeader{Nodes: []nodeHeader{{Op: 99, From: []kernels.Value{0}}}}, 0)},
		"empty graph": {send(kindLoadGraph, graphHeader{}, 0)},
		"short parameters": {send(kindLoadGraph,
			graphHeader{Nodes: []nodeHeader{{Op: kernels.OpInput, Channels: 1}}}, 1)},
		"huge batch": {good[1], announced(kindRun,
			batchHeader{Network: 2, Count: 1 << 16, Height: 1 << 13, Width: 1 << 13}, 1<<28)},
		"short batch":        {good[1], send(kindRun, batchHeader{Network: 2, Count: 1, Height: 2, Width: 3}, 20)},
		"pair without steps": {good[1], send(kindPair, pairHeader{batchHeader{2, 1, 2, 3, nil}, 0}, 18)},
		"pair of many steps": {good[1], send(kindPair,
			pairHeader{batchHeader{2, 1, 2, 3, nil}, kernels.MaxSampleSteps + 1}, 18)},
		"pair of two":           {good[1], send(kindPair, pairHeader{batchHeader{2, 2, 2, 3, nil}, 1}, 18)},
		"on with what":          {send(kindProceed, proceed{}, 0)},
		"ping with luggage":     {send(kindPing, nil, 3)},
		"unload nothing":        {send(kindUnload, unloadHeader{3}, 0)},
		"unload with luggage":   {good[0], send(kindUnload, unloadHeader{1}, 3)},
		"too many at a time":    append([][]byte{good[1]}, slices.Repeat(good[5:6], maxParallel+1)...),
		"cut head":              {good[0][:20]},
		"cut header":            {good[0][:30]},
		"cut payload":           {good[0][:len(good[0])-3]},
		"an announced gibibyte": {good[0], announced(kindForward, imageHeader{1, 1 << 13, 1 << 13}, 1<<27)},
		"announced weights": {announced(kindLoadNet, graphHeader{Nodes: wide(1024, 1024)},
			5*1024*9+1024+1024*1024*9+1024)},
		"a graph without methods": {send(kindLoadGraph, graphHeader{Nodes: []nodeHeader{{Op: kernels.OpInput, Channels: -1}}}, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			ended := make(chan error, 1)
			go func() {
				ended <- Serve(context.Background(), theirs, b, Info{})
				_ = theirs.Close()
			}()
			loaded := make(chan struct{}, 4*maxParallel) // an element for each answer
			go func() {
				defer close(loaded)
				for {
					h, err := readHead(ours)
					if err != nil {
						return
					}
					if _, err := io.CopyN(io.Discard, ours, int64(h.header+4*h.floats)); err != nil {
						return
					}
					loaded <- struct{}{}
				}
			}()
			<-loaded // the greeting
			before := allocated()
			for _, frame := range data {
				if _, err := ours.Write(frame); err != nil {
					break // it has seen enough
				}
				if k := frame[4]; len(frame) > headSize && (kind(k) == kindLoadNet || kind(k) == kindLoadGraph) && len(data) > 1 {
					<-loaded // a network must be there before it is used
				}
			}
			waits := strings.HasPrefix(name, "cut ") || strings.Contains(name, "announced") // for the rest of a frame
			if waits {
				_ = ours.Close()
			}
			if err := <-ended; err == nil || waits && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("ended with %v", err)
			}
			if grown := allocated() - before; grown > 16<<20 {
				t.Errorf("took %d MiB", grown>>20)
			}
		})
	}
}

// allocated is how many bytes this process has ever allocated.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
