package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// asWorker in the environment makes the test binary a worker; its value says of which kind.
const asWorker = "DENOISED_TEST_WORKER"

func TestMain(m *testing.M) {
	if kind := os.Getenv(asWorker); kind != "" {
		os.Exit(beWorker(kind))
	}
	os.Exit(m.Run())
}

// beWorker is the process of a worker that works, or fails as its kind says.
func beWorker(kind string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conn, err := Inherited(3)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	b, err := cpu.Select()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var backend kernels.GraphBackend = b
	switch kind {
	case "dies":
		fmt.Fprintln(os.Stderr, "no use")
		return 3
	case "refuses":
		if err := Refuse(conn, errors.New("there is no card")); err != nil {
			return 1
		}
		return 1
	case "mute":
		select {}
	case "slow":
		time.Sleep(300 * time.Millisecond)
	case "noise":
		if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")); err != nil {
			return 1
		}
		select {}
	case "descriptors":
		entries, err := os.ReadDir("/proc/self/fd")
		for _, e := range entries {
			target, _ := os.Readlink("/proc/self/fd/" + e.Name()) // the folder itself is closed by now
			fmt.Fprintln(os.Stderr, e.Name(), target)
		}
		if err != nil {
			return 1
		}
	case "hangs", "lost", "memory", "fails", "garbles", "slowly":
		backend = &faulty{GraphBackend: b, kind: kind, conn: conn}
	}
	if err := Serve(ctx, conn, backend, Info{Device: "test device", Version: "test"}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// faulty is a backend whose networks fail.
type faulty struct {
	kernels.GraphBackend
	kind string
	conn net.Conn
}

func (f *faulty) Load(g *kernels.Graph, params [][]float32) (kernels.Network, error) {
	n, err := f.GraphBackend.Load(g, params)
	return &faultyNet{n, f}, err
}

func (f *faulty) Compile(g *kernels.Graph, params [][]float32) (kernels.Program, error) {
	p, err := f.GraphBackend.Compile(g, params)
	return &faultyProgram{p, f}, err
}

func (f *faulty) fail() error {
	switch f.kind {
	case "hangs":
		select {}
	case "lost":
		return fmt.Errorf("launch: error 700: %w", kernels.ErrDevice)
	case "memory":
		return fmt.Errorf("allocate: error 2: %w", kernels.ErrMemory)
	case "fails":
		return errors.New("something else")
	case "garbles":
		if _, err := f.conn.Write(make([]byte, 100)); err != nil {
			return err
		}
	case "slowly":
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

type faultyNet struct {
	kernels.Network
	f *faulty
}

func (n *faultyNet) Forward(dst, y, sigma []float32, width, height int, constants ...float32) error {
	if err := n.f.fail(); err != nil {
		return err
	}
	return n.Network.Forward(dst, y, sigma, width, height, constants...)
}

type faultyProgram struct {
	kernels.Program
	f *faulty
}

func (p *faultyProgram) Run(dst []float32, b *kernels.Batch) error {
	if err := p.f.fail(); err != nil {
		return err
	}
	return p.Program.Run(dst, b)
}

// quick are options for a worker of a kind that fails and recovers fast.
func quick(t *testing.T, kind string) Options {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Program: self, Env: append(os.Environ(), asWorker+"="+kind),
		StartLimit: 20 * time.Second, FirstPause: 5 * time.Millisecond, LongestPause: 20 * time.Millisecond, Soon: 20 * time.Second, RequestLimit: 20 * time.Second,
		MaxFailures: 1 << 20,
	}
}

// started starts a worker for the length of a test, and collects its events.
func started(t *testing.T, o Options) (*Worker, *events) {
	t.Helper()
	e := new(events)
	o.Notify = e.add
	w := NewWorker(o)
	w.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := w.Stop(ctx); err != nil {
			t.Error(err)
		}
		if s := w.Status(); s.State != Off || s.PID != 0 {
			t.Errorf("after the stop: %+v", s)
		}
	})
	return w, e
}

type events struct {
	mu   sync.Mutex
	list []Event
}

func (e *events) add(one Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, one)
}

// of returns the texts of one kind.
func (e *events) of(kind EventKind) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var texts []string
	for _, one := range e.list {
		if one.Kind == kind {
			texts = append(texts, one.Text)
		}
	}
	return texts
}

func (e *events) has(kind EventKind, part string) bool {
	for _, text := range e.of(kind) {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

// eventually waits until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	const limit = 60 * time.Second
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// waitReady returns the status in which the worker was ready, with the number of a process.
func waitReady(t *testing.T, w *Worker) (s Status) {
	t.Helper()
	eventually(t, "the worker is ready", func() error {
		if s = w.Status(); s.State != Ready {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	return s
}

func fallback(t testing.TB) *cpu.Backend {
	t.Helper()
	b, err := cpu.Select()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// slice is an image with its noise map, and what a network makes of it.
type slice struct {
	width, height  int
	y, sigma, want []float32
}

func slicesOf(t testing.TB, local kernels.Network, sizes ...[2]int) []slice {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	var list []slice
	for _, size := range sizes {
		s := slice{width: size[0], height: size[1]}
		n := s.width * s.height
		s.y, s.sigma, s.want = make([]float32, n), make([]float32, n), make([]float32, n)
		for i := range s.y {
			s.y[i], s.sigma[i] = rng.Float32(), 0.1*rng.Float32()
		}
		if err := local.Forward(s.want, s.y, s.sigma, s.width, s.height); err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// pairOf loads a network on a backend and on the fallback alone.
func pairOf(t testing.TB, b *Backend) (remote, local kernels.Network) {
	t.Helper()
	net := kernelstest.RandomNet(1, 16, 2)
	remote, err := b.Load(net.Graph())
	if err != nil {
		t.Fatal(err)
	}
	if local, err = fallback(t).Load(net.Graph()); err != nil {
		t.Fatal(err)
	}
	return remote, local
}

// forward runs a slice and compares with what it must give.
func (s *slice) forward(n kernels.Network) error {
	dst := make([]float32, len(s.y))
	if err := n.Forward(dst, s.y, s.sigma, s.width, s.height); err != nil {
		return err
	}
	return same(dst, s.want)
}

func same(got, want []float32) error {
	for i := range want {
		if got[i] != want[i] {
			return fmt.Errorf("value %d is %v, want %v", i, got[i], want[i])
		}
	}
	return nil
}
