package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diffdenoise/denoised/kernels"
)

// TestKill: the worker is killed again and again while many callers want slices. Each gets its
// slice, bit by bit, and no error; most of them from workers.
func TestKill(t *testing.T) {
	w, _ := started(t, quick(t, "slowly"))
	b := NewBackend(w, fallback(t))
	far, near := pairOf(t, b)
	list := slicesOf(t, near, [2]int{40, 30}, [2]int{64, 64}, [2]int{9, 50})
	waitReady(t, w)
	var done atomic.Bool
	var killer sync.WaitGroup
	killer.Go(func() {
		for next := int64(10); !done.Load(); {
			if s := w.Status(); s.State == Ready && s.Served >= next {
				_ = syscall.Kill(s.PID, syscall.SIGKILL) // it may be gone
				next = s.Served + 20
			}
			time.Sleep(time.Millisecond)
		}
	})
	var wg sync.WaitGroup
	for k := range 8 {
		wg.Go(func() {
			for i := range 40 {
				if err := list[(i+k)%len(list)].forward(far); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	done.Store(true)
	killer.Wait()
	s := w.Status()
	if s.Lost == 0 || s.Starts < 5 || s.Served+s.FellBack != 320 {
		t.Errorf("%+v", s)
	}
	t.Logf("%d workers, %d served, %d lost, %d fell back", s.Starts, s.Served, s.Lost, s.FellBack)
}

// TestKillPair: a worker that is killed in the middle of sampling costs time and nothing else.
func TestKillPair(t *testing.T) {
	w, _ := started(t, quick(t, "slowly"))
	local := fallback(t)
	b := NewBackend(w, local)
	g := pairGraph()
	params := g.Init(3)
	near, err := local.Compile(g, params)
	if err != nil {
		t.Fatal(err)
	}
	in := newPairInput(24, 16, 5)
	wantMean, wantSpread := in.written(t, near)
	program, err := b.Compile(g, params)
	if err != nil {
		t.Fatal(err)
	}
	pid := waitReady(t, w).PID
	var told []int
	mean, spread := make([]float32, len(in.eps)), make([]float32, len(in.eps))
	err = program.(kernels.Sampler).SamplePair(mean, spread, in.eps, in.batch, in.steps, func(runs int) error {
		told = append(told, runs)
		if len(told) == 3 {
			return syscall.Kill(pid, syscall.SIGKILL)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(same(mean, wantMean), same(spread, wantSpread)); err != nil {
		t.Error(err)
	}
	if !slices.Equal(told, []int{1, 2, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}) {
		t.Errorf("told of runs %v", told)
	}
	if s := w.Status(); s.Lost != 1 || s.Served != 1 || s.FellBack != 0 || s.Starts != 2 {
		t.Errorf("%+v", s)
	}
}

// TestFaults: whatever a worker does wrong, the caller gets its slice.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		kind  string
		check func(s Status, e *events) bool
	}{
		{"hangs", func(s Status, e *events) bool { return s.Late == 2 && e.has(EventLost, "no answer to a slice") }},
		{"lost", func(s Status, e *events) bool {
			return s.Lost == 2 && e.has(EventLost, "device lost") && e.has(EventLine, "error 700")
		}},
		{"garbles", func(s Status, e *events) bool { return s.Lost == 2 && e.has(EventLost, "breaks the protocol") }},
		{"memory", func(s Status, e *events) bool {
			return s.NoMemory == 1 && s.Starts == 1 && s.State == Ready && strings.Contains(s.LastError, "out of device memory")
		}},
		{"fails", func(s Status, e *events) bool {
			return s.Refused == 1 && s.Starts == 1 && s.State == Ready && s.LastError == "something else"
		}},
	} {
		t.Run(c.kind, func(t *testing.T) {
			o := quick(t, c.kind)
			if c.kind == "hangs" {
				o.RequestLimit = 300 * time.Millisecond
			}
			w, e := started(t, o)
			far, near := pairOf(t, NewBackend(w, fallback(t)))
			list := slicesOf(t, near, [2]int{20, 30})
			waitReady(t, w)
			if err := list[0].forward(far); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is told", func() error {
				if s := w.Status(); s.FellBack != 1 || !c.check(s, e) {
					return fmt.Errorf("%+v, %+v", s, e.list)
				}
				return nil
			})
		})
	}
}

// TestNoStart: a worker that cannot be started is told once, tried again some times, and given up.
// All that time, and after it, there are results.
func TestNoStart(t *testing.T) {
	for kind, why := range map[string]string{
		"dies":    "it ended before it was ready (exit status 3): no use",
		"refuses": "there is no card",
		"noise":   `the peer breaks the protocol: a frame begins with`,
		"mute":    "it has not said that it is ready within 100ms",
		"absent":  "start /nonexistent/program: ",
		"old":     `its version is "test", this program's "next": install both from one release`,
	} {
		t.Run(kind, func(t *testing.T) {
			o := quick(t, kind)
			o.MaxFailures = 3
			switch kind {
			case "mute":
				o.StartLimit = 100 * time.Millisecond
			case "absent":
				o.Program = "/nonexistent/program"
			case "old":
				o.Version = "next"
			}
			w, e := started(t, o)
			far, near := pairOf(t, NewBackend(w, fallback(t)))
			list := slicesOf(t, near, [2]int{20, 30})
			if err := list[0].forward(far); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is given up", func() error {
				if s := w.Status(); s.State != Off || !strings.HasPrefix(s.LastError, why) || s.Starts != 3 {
					return fmt.Errorf("%+v", s)
				}
				return nil
			})
			if err := list[0].forward(far); err != nil {
				t.Fatal(err)
			}
			if s := w.Status(); s.FellBack != 2 || s.Served != 0 {
				t.Errorf("%+v", s)
			}
			eventually(t, "it is told", func() error {
				failed, off := e.of(EventFailed), e.of(EventOff)
				if len(failed) != 1 || !strings.HasPrefix(failed[0], why) || len(off) != 1 || !strings.Contains(off[0], "given up after 3 failures in a row, the last one: "+why) {
					return fmt.Errorf("%q, %q", failed, off)
				}
				return nil
			})
		})
	}
}

// TestSlowStart: while a worker starts nobody waits for it; then it is used.
func TestSlowStart(t *testing.T) {
	w, e := started(t, quick(t, "slow"))
	far, near := pairOf(t, NewBackend(w, fallback(t)))
	list := slicesOf(t, near, [2]int{20, 30})
	if s := w.Status(); s.State != Starting {
		t.Errorf("%+v", s)
	}
	if err := list[0].forward(far); err != nil {
		t.Fatal(err)
	}
	if s := w.Status(); s.FellBack != 1 {
		t.Errorf("%+v", s)
	}
	waitReady(t, w)
	if err := list[0].forward(far); err != nil {
		t.Fatal(err)
	}
	if s := w.Status(); s.Served != 1 || s.FellBack != 1 || !e.has(EventReady, "test device, ready after ") {
		t.Errorf("%+v", s)
	}
}

// TestTerminated: a worker that is told to end finishes what it has in hand.
func TestTerminated(t *testing.T) {
	w, _ := started(t, quick(t, "slowly"))
	far, near := pairOf(t, NewBackend(w, fallback(t)))
	list := slicesOf(t, near, [2]int{20, 30})
	s := waitReady(t, w)
	if err := list[0].forward(far); err != nil { // the network is there then
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := list[0].forward(far); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the slice is in hand", func() error {
		if inHand(w) == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	time.Sleep(5 * time.Millisecond) // of the 20 that it takes; were it too late or early, nothing would fail
	if err := syscall.Kill(s.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	eventually(t, "the next worker is ready", func() error {
		if n := w.Status(); n.State != Ready || n.PID == s.PID {
			return fmt.Errorf("%+v", n)
		}
		return nil
	})
	if n := w.Status(); n.FellBack != 0 || n.Starts != 2 {
		t.Errorf("%+v", n)
	}
}

// inHand is the number of requests that the present worker has.
func inHand(w *Worker) int {
	s := w.ready()
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

// TestStop: a worker ends when its connection does, without being killed; one that does not is
// killed.
func TestStop(t *testing.T) {
	w, e := started(t, quick(t, "cpu"))
	s := waitReady(t, w)
	began := time.Now()
	if err := w.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > stopLimit {
		t.Errorf("it had to be killed, after %v", took)
	}
	if err := syscall.Kill(s.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", s.PID, err)
	}
	if lost := e.of(EventLost); len(lost) > 0 {
		t.Errorf("a wanted end is told as a loss: %q", lost)
	}
	far, near := pairOf(t, NewBackend(w, fallback(t)))
	if err := slicesOf(t, near, [2]int{5, 5})[0].forward(far); err != nil {
		t.Errorf("after the stop: %v", err)
	}
	never := NewWorker(quick(t, "cpu"))
	if err := never.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	again, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := never.Stop(again); err != nil {
		t.Errorf("stopped again: %v", err)
	}
	never.Start()
	if s := never.Status(); s.State != Off {
		t.Errorf("started after its stop: %+v", s)
	}
}

// TestProbe: what a worker computes with, or why there is none.
func TestProbe(t *testing.T) {
	s, err := Probe(t.Context(), quick(t, "cpu"))
	if err != nil || s.Info.Device != "test device" || s.Info.Backend != fallback(t).Name() {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := Probe(t.Context(), quick(t, "refuses")); err == nil || err.Error() != "there is no card" {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Probe(ctx, quick(t, "mute")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// TestBackOff: the pauses between starts grow to a limit and are shuffled; a worker that was ready
// for a good while begins anew.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var starts []time.Time
		lives := 0 // how many processes are ready for a while instead of failing
		o := Options{FirstPause: time.Second, LongestPause: 30 * time.Second, GoodWhile: time.Minute, MaxFailures: 12}
		o.start = func(*Options, func(string)) (net.Conn, process, error) {
			mu.Lock()
			defer mu.Unlock()
			starts = append(starts, time.Now())
			if len(starts) != 8 {
				return nil, nil, errors.New("no card")
			}
			lives++
			ours, theirs := net.Pipe()
			p := &here{done: make(chan error, 1), conn: theirs}
			ctx, cancel := context.WithTimeout(context.Background(), 61*time.Second)
			go func() {
				defer cancel()
				p.done <- Serve(ctx, theirs, fallback(t), Info{})
				_ = theirs.Close()
			}()
			return ours, p, nil
		}
		w := NewWorker(o)
		w.Start()
		<-w.ended
		if s := w.Status(); s.State != Off || s.Starts != 8+12-1 {
			t.Errorf("%+v", s)
		}
		want := []time.Duration{1, 2, 4, 8, 16, 30, 30, 61 + 1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30}
		varies := false
		for i, pause := range want {
			pause *= time.Second
			got := starts[i+1].Sub(starts[i])
			slack := pause / 5
			if i == 7 { // the life itself is exact
				slack = time.Second / 5
			}
			if got < pause-slack || got > pause+slack {
				t.Errorf("pause %d is %v, want about %v", i, got, pause)
			}
			varies = varies || got != pause
		}
		if !varies {
			t.Error("no pause is shuffled")
		}
	})
}

// TestDescriptors: a worker has its connection and nothing else of this process.
func TestDescriptors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// As it is with what a shell, or a library that is not Go's, has left open.
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	w, e := started(t, quick(t, "descriptors"))
	waitReady(t, w)
	sockets := 0
	for _, line := range e.of(EventLine) {
		_, target, _ := strings.Cut(line, " ")
		switch {
		case target == path:
			t.Errorf("it has %s", line)
		case strings.HasPrefix(target, "socket:"):
			sockets++
		}
	}
	if sockets != 1 {
		t.Errorf("it has %d sockets, want its connection alone: %q", sockets, e.of(EventLine))
	}
}

// asDaemon in the environment makes the test binary a process with a worker, of which it prints
// the number.
const asDaemon = "DENOISED_TEST_DAEMON"

// TestOrphan: a worker ends with the process that started it, even if it does not look at its
// connection.
func TestOrphan(t *testing.T) {
	if os.Getenv(asDaemon) != "" {
		w := NewWorker(quick(t, os.Getenv(asDaemon)))
		w.Start()
		for w.Status().PID == 0 {
			time.Sleep(time.Millisecond)
		}
		fmt.Printf("worker %d\n", w.Status().PID)
		select {}
	}
	for _, kind := range []string{"cpu", "mute"} {
		cmd := exec.Command(quick(t, "").Program, "-test.run", "^TestOrphan$")
		cmd.Env = append(os.Environ(), asDaemon+"="+kind)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pid int
		_, err = fmt.Fscanf(out, "worker %d\n", &pid)
		if kill := cmd.Process.Kill(); err != nil || kill != nil {
			t.Fatal(err, kill)
		}
		_ = cmd.Wait() // it was killed
		eventually(t, kind+": the worker is gone", func() error {
			// A process that nobody waits for may stay as a zombie.
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			if err == nil && !strings.Contains(string(stat), ") Z ") {
				return errors.New(string(stat))
			}
			return nil
		})
	}
}

// TestGrowth: thousands of requests and dozens of workers leave no descriptors, goroutines or
// memory behind.
func TestGrowth(t *testing.T) {
	w, _ := started(t, quick(t, "cpu"))
	far, near := pairOf(t, NewBackend(w, fallback(t)))
	list := slicesOf(t, near, [2]int{16, 16})
	waitReady(t, w)
	work := func(requests, kills int) {
		killed := 0
		for i := range requests {
			if err := list[0].forward(far); err != nil {
				t.Fatal(err)
			}
			if kills > 0 && i%(requests/kills) == 0 {
				killed = waitReady(t, w).PID
				_ = syscall.Kill(killed, syscall.SIGKILL) // it may be gone
			}
		}
		eventually(t, "another worker is ready", func() error {
			if s := w.Status(); s.State != Ready || s.PID == killed {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	}
	use := func() (descriptors, goroutines int, heap uint64) {
		runtime.GC()
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return len(entries), runtime.NumGoroutine(), m.HeapAlloc
	}
	work(100, 4)
	d0, g0, h0 := use()
	worker := waitReady(t, w).PID
	work(1000, 0)
	r0 := resident(t, worker)
	work(4000, 0)
	if r := resident(t, worker); r > r0+16<<20 {
		t.Errorf("the worker has %d MiB, had %d", r>>20, r0>>20)
	}
	work(100, 25)
	eventually(t, "all is as before", func() error {
		if d, g, h := use(); d > d0 || g > g0 || h > h0+1<<20 {
			return fmt.Errorf("%d descriptors, %d goroutines, %d bytes of heap; before %d, %d, %d", d, g, h, d0, g0, h0)
		}
		return nil
	})
	if s := w.Status(); s.Served < 4000 {
		t.Errorf("%+v", s)
	}
}

// resident is the memory that a process has, in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// TestLines: what a worker prints is passed on line by line, long lines in parts.
func TestLines(t *testing.T) {
	var got []string
	w := &lineWriter{line: func(s string) { got = append(got, s) }}
	long := strings.Repeat("x", maxLine)
	for _, part := range []string{"one\ntw", "o\n\nthree", "\n" + long + "y\n", "last"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	w.flush()
	if want := []string{"one", "two", "three", long, "y", "last"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	var l lines
	passed := 0
	for range 2 * maxLines {
		if l.add("again") {
			passed++
		}
	}
	if passed != maxLines || l.lastly() != ": again" {
		t.Errorf("%d lines passed on, %q", passed, l.lastly())
	}
}

// TestLastWords: of a crash is told what it was, not what is in the registers.
func TestLastWords(t *testing.T) {
	for said, want := range map[string]string{
		"":         "",
		"one\ntwo": ": two",
		"SIGSEGV: segmentation violation\nPC=0x1 m=4\n\ngs     0x0": ": SIGSEGV: segmentation violation",
		"no such device\nSIGABRT: abort\nPC=0x1 m=4\ngs     0x0":    ": no such device: SIGABRT: abort",
		"panic: index\n\ngoroutine 1 [running]:\nmain.go:1 +0x2":    ": panic: index",
	} {
		var l lines
		for line := range strings.SplitSeq(said, "\n") {
			l.add(line)
		}
		if got := l.lastly(); got != want {
			t.Errorf("%q: %q, want %q", said, got, want)
		}
	}
}
