package interop

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/testdata"
)

// buildDir receives the program under test; TestMain removes it.
var buildDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "denoised-interop-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		buildDir = dir
		// Most of the time is spent waiting for other programs.
		if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// build makes the program once, the way it is shipped, and only if a test gets
// as far as wanting it.
var build = sync.OnceValues(func() (string, error) {
	program := filepath.Join(buildDir, "denoised")
	cmd := exec.Command("go", "build", "-trimpath", "-o", program, "github.com/diffdenoise/denoised/cmd/denoised")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build denoised: %w\n%s", err, out)
	}
	return program, nil
})

func denoisedProgram(t testing.TB) string {
	t.Helper()
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// process is a program that runs until the test ends.
type process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	log  *syncBuffer
	done chan struct{} // closed when the process has ended
	err  error         // of Wait, valid after done
}

// startPeer is start for a program whose end is of no interest: it is killed.
func startPeer(t testing.TB, env []string, name string, args ...string) *process {
	t.Helper()
	p := start(t, env, name, args...)
	t.Cleanup(func() { // before start's own
		_ = p.cmd.Process.Kill() // it may have ended already
		<-p.done
	})
	return p
}

// start runs a program in the background. When the test ends the program is
// asked to stop and, if the test failed, its last output is shown.
func start(t testing.TB, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: filepath.Base(name), log: &syncBuffer{}, done: make(chan struct{})}
	p.cmd = exec.Command(name, args...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop(10 * time.Second)
		if t.Failed() {
			t.Logf("last output of %s:\n%s", p.name, p.log.tail(6000))
		}
	})
	return p
}

// stop asks the process to end and kills it if it has not after grace. It tells
// how the process ended; stopping twice is harmless.
func (p *process) stop(grace time.Duration) error {
	select {
	case <-p.done:
		return p.err
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("stop %s: %v", p.name, err)
	}
	select {
	case <-p.done:
	case <-time.After(grace):
		p.t.Errorf("%s did not stop within %v", p.name, grace)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	return p.err
}

// mustRun fails the test if the process has ended by itself.
func (p *process) mustRun() {
	p.t.Helper()
	select {
	case <-p.done:
		p.t.Fatalf("%s ended: %v\n%s", p.name, p.err, p.log.tail(6000))
	default:
	}
}

// waitTCP waits until somebody listens on addr, at most limit.
func (p *process) waitTCP(addr string, limit time.Duration) {
	p.t.Helper()
	eventually(p.t, limit, p.name+" listens on "+addr, func() error {
		p.mustRun()
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// memory returns the resident memory of the process and its highest value so
// far, in bytes.
func (p *process) memory() (now, peak int64) {
	p.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		kb, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "VmRSS:":
			now = kb << 10
		case "VmHWM:":
			peak = kb << 10
		}
	}
	return now, peak
}

// cpu returns the processor time that the process has used so far, to a hundredth of a second.
func (p *process) cpu() time.Duration {
	p.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	// After the name, which may hold anything, field 3 of proc(5) follows; utime and stime are 14 and 15, in units
	// of USER_HZ, which is 100 on every architecture that Go runs on.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	ticks := 0
	for _, f := range fields[14-3 : 16-3] {
		n, err := strconv.Atoi(f)
		if err != nil {
			p.t.Fatalf("processor time of %s: %v", p.name, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100)
}

// eventually calls check until it returns nil, and fails the test with its last
// error after limit.
func eventually(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	eventuallyEvery(t, 20*time.Millisecond, limit, what, check)
}

// eventuallyEvery is eventually for a check that is work for what it looks at.
func eventuallyEvery(t testing.TB, every, limit time.Duration, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		case <-tick.C:
		}
	}
}

// lastPort is the last port that freePort looked at.
var lastPort atomic.Int32

func init() { lastPort.Store(15000 + rand.Int32N(10000)) }

// freePort returns a loopback TCP port that nobody used a moment ago, never the same twice. It is below
// those that systems give to clients, of which there are many here at the same time.
func freePort(t testing.TB) int {
	t.Helper()
	for range 5000 {
		port := int(lastPort.Add(1))
		if l, err := net.Listen("tcp", loopback(port)); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// run runs a program of another project to its end and returns its output.
func run(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testdata.Path(t, name), args...)
	// Without it DCMTK waits 40 ms for every acknowledgement of TCP.
	cmd.Env = append(os.Environ(), "TCP_NODELAY=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// syncBuffer collects the output of a process while others look at it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) tail(n int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	data := s.b.Bytes()
	return string(data[max(0, len(data)-n):])
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
