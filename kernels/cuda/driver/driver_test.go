//go:build cuda && linux && emulated

package driver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// These tests run on the emulated driver, in either of its orders: see "make test-emulated".

// The emulator looks into PTX only for what a module is made for and which kernels it has.
func image(target string) []byte {
	text := ".version 7.0\n.target " + target + "\n.address_size 64\n"
	for _, name := range []string{"parameters", "scale", "reverse", "order", "garbage"} {
		text += ".visible .entry selftest_" + name + "(\n"
	}
	return []byte(text + ".visible .entry unknown_to_the_emulator(\n")
}

// lab is a device with what most tests need.
type lab struct {
	*Device
	t       *testing.T
	module  *Module
	stream  *Stream
	release []func() error
}

func newLab(t *testing.T) *lab {
	t.Helper()
	d, err := Open(0, false)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{Device: d, t: t}
	l.later(d.Close)
	t.Cleanup(func() {
		for _, f := range slices.Backward(l.release) {
			if err := f(); err != nil {
				t.Error(err)
			}
		}
	})
	l.module, err = d.Load(image("sm_75"))
	l.check(err)
	l.later(l.module.Unload)
	l.stream = l.newStream()
	return l
}

func (l *lab) later(f func() error) { l.release = append(l.release, f) }

func (l *lab) check(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) newStream() *Stream {
	l.t.Helper()
	s, err := l.NewStream()
	l.check(err)
	l.later(s.Destroy)
	return s
}

func (l *lab) alloc(bytes int) Ptr {
	l.t.Helper()
	p, err := l.Alloc(bytes)
	l.check(err)
	l.later(func() error { return l.Free(p) })
	return p
}

func (l *lab) pin(bytes int) *Pinned {
	l.t.Helper()
	p, err := l.Pin(bytes)
	l.check(err)
	l.later(p.Free)
	return p
}

func (l *lab) event() *Event {
	l.t.Helper()
	e, err := l.NewEvent()
	l.check(err)
	l.later(e.Destroy)
	return e
}

func (l *lab) function(name string) *Function {
	l.t.Helper()
	f, err := l.module.Function("selftest_" + name)
	l.check(err)
	return f
}

// words reads device memory.
func (l *lab) words(p Ptr, n int) []uint32 {
	l.t.Helper()
	host := l.pin(4 * n)
	l.check(l.stream.CopyOut(host, 0, p, 4*n))
	l.check(l.stream.Sync())
	return words(host.Bytes())
}

func words(b []byte) []uint32 {
	list := make([]uint32, len(b)/4)
	for i := range list {
		list[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return list
}

// put writes numbers to device memory.
func (l *lab) put(p Ptr, numbers ...float32) {
	l.t.Helper()
	host := l.pin(4 * len(numbers))
	copy(host.Float32(), numbers)
	l.check(l.stream.CopyIn(p, host, 0, 4*len(numbers)))
	l.check(l.stream.Sync())
}

func (l *lab) numbers(p Ptr, n int) []float32 {
	l.t.Helper()
	list := make([]float32, n)
	for i, w := range l.words(p, n) {
		list[i] = math.Float32frombits(w)
	}
	return list
}

func (l *lab) same(what string, got, want any) {
	l.t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		l.t.Errorf("%s: got %s, want %s", what, g, w)
	}
}

// code checks that err is the driver's with a code.
func (l *lab) code(err error, code int) {
	l.t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code {
		l.t.Errorf("got error %v, want one of the driver with code %d", err, code)
	}
}

func bits(f float32) uint64 { return uint64(math.Float32bits(f)) }

func TestInfo(t *testing.T) {
	l := newLab(t)
	want := Info{Name: "Emulated GPU", Major: 8, Memory: 256 << 20, SMs: 4, SharedPerBlock: 163 << 10, SharedPerSM: 164 << 10,
		L2: 4 << 20, ClockMHz: 1500, MemoryMHz: 1000, BusBits: 256, Driver: 12020}
	l.same("info", l.Info(), want)
	n, err := count()
	l.check(err)
	l.same("devices", n, 1)
	if _, err := Open(1, false); err == nil {
		t.Error("opened a device that is not there")
	} else {
		l.code(err, 101)
	}
	p := l.alloc(3 << 20)
	free, total, err := l.Memory()
	l.check(err)
	l.same("memory", []int64{free, total}, []int64{253 << 20, 256 << 20})
	l.same("alignment", p%256, 0)
}

func TestCopies(t *testing.T) {
	l := newLab(t)
	const n = 1000
	a, b := l.alloc(n), l.alloc(n)
	in, out := l.pin(n), l.pin(n)
	for i := range in.Bytes() {
		in.Bytes()[i] = byte(i * 7)
	}
	// Bytes 100 to 700 of in go to 150 of a, from there to 50 of b, and from there to 200 of out.
	l.check(l.stream.CopyIn(a+150, in, 100, 600))
	l.check(l.stream.Copy(b+50, a+150, 600))
	clear(out.Bytes())
	l.check(l.stream.CopyOut(out, 200, b+50, 600))
	l.check(l.stream.Sync())
	want := make([]byte, n)
	copy(want[200:], in.Bytes()[100:700])
	if !bytes.Equal(out.Bytes(), want) {
		t.Error("bytes differ after a copy to the device, on it and back")
	}
	l.check(l.stream.Fill(a+4, 0xdeadbeef, 3))
	l.same("filled", fmt.Sprintf("%x", l.words(a, 5)), "[ffffffff deadbeef deadbeef deadbeef ffffffff]")
	l.same("length of floats", len(l.pin(7).Float32()), 1)

	for _, err := range []error{
		l.stream.CopyIn(a, in, 1, n), l.stream.CopyIn(a, in, -1, 2), l.stream.CopyIn(a, in, 0, 0),
		l.stream.CopyIn(a, in, math.MaxInt, 2), l.stream.CopyOut(out, 0, a, n+1), l.stream.CopyOut(out, n, a, 1),
	} {
		if !errors.Is(err, errRange) {
			t.Errorf("copy beyond pinned memory: got error %v", err)
		}
	}
	l.code(l.stream.CopyIn(a+1, in, 0, n), 1)
	l.code(l.stream.Copy(a, b+900, 101), 1)
	l.code(l.stream.Copy(a, b, -1), 1)
	l.code(l.stream.Fill(a+2, 0, 1), 1)
	l.code(l.stream.Fill(a, 0, n/4+1), 1)
}

func TestLaunch(t *testing.T) {
	l := newLab(t)
	out, in := l.alloc(6*4), l.alloc(4)
	l.check(l.stream.Fill(in, 77, 1))
	f := l.function("parameters")
	i, u := int32(-5), uint32(4e9)
	l.check(l.stream.Launch(f, [3]int{2, 3, 4}, [3]int{32, 2, 1}, 0, uint64(out), uint64(uint32(i)), uint64(u), bits(-2.5), uint64(in)))
	l.same("parameters", l.words(out, 6), []uint32{uint32(i), u, math.Float32bits(-2.5), 77, 24, 64})

	for _, c := range []struct {
		grid, block [3]int
		shared      int
	}{
		{[3]int{1, 0, 1}, [3]int{1, 1, 1}, 0},
		{[3]int{1, 1, 1}, [3]int{-1, 1, 1}, 0},
		{[3]int{1 << 32, 1, 1}, [3]int{1, 1, 1}, 0},
		{[3]int{1, 1, 1}, [3]int{1, 1, 1}, -1},
		{[3]int{1, 1, 1}, [3]int{513, 2, 1}, 0},
		{[3]int{1, 1, 1}, [3]int{1, 1, 65}, 0},
		{[3]int{1, 1 << 16, 1}, [3]int{1, 1, 1}, 0},
		{[3]int{1, 1, 1}, [3]int{1, 1, 1}, 48<<10 + 1},
	} {
		err := l.stream.Launch(f, c.grid, c.block, c.shared, uint64(out), 0, 0, 0, uint64(in))
		if err == nil || !strings.Contains(err.Error(), "launch selftest_parameters") {
			t.Errorf("launch with grid %v, block %v, %d shared: error %v", c.grid, c.block, c.shared, err)
		}
	}
	if err := l.stream.Launch(f, [3]int{1, 1, 1}, [3]int{1, 1, 1}, 0, make([]uint64, 65)...); err == nil {
		t.Error("launched with 65 arguments")
	}
}

func TestShared(t *testing.T) {
	l := newLab(t)
	const blocks, threads = 3, 256
	x := l.alloc(4 * blocks * threads)
	f := l.function("reverse")
	launch := func(shared int) error {
		return l.stream.Launch(f, [3]int{blocks, 1, 1}, [3]int{threads, 1, 1}, shared, uint64(x), uint64(shared/4))
	}
	fill := make([]float32, blocks*threads)
	want := make([]float32, blocks*threads)
	for i := range fill {
		fill[i] = float32(i)
		want[i/threads*threads+threads-1-i%threads] = float32(i)
	}
	most := l.Info().SharedPerBlock
	l.code(launch(most), 1) // not allowed yet
	l.code(f.SetShared(most+1), 1)
	l.check(f.SetShared(most))
	for _, shared := range []int{4 * threads, most} {
		l.put(x, fill...)
		l.check(launch(shared))
		l.same(fmt.Sprint(shared, " bytes"), l.numbers(x, len(fill)), want)
	}
	if err := f.SetShared(-1); err == nil {
		t.Error("allowed negative shared memory")
	}

	// No block finds what another has left.
	l.check(l.stream.Launch(l.function("garbage"), [3]int{blocks, 1, 1}, [3]int{threads, 1, 1}, 4*threads, uint64(x)))
	for i, w := range l.words(x, blocks*threads) {
		if w != 0xffffffff {
			t.Fatalf("word %d of fresh shared memory is %#x", i, w)
		}
	}
}

func TestOrder(t *testing.T) {
	l := newLab(t)
	const n = 2 * 40
	out, count := l.alloc(4*n), l.alloc(4)
	l.check(l.stream.Fill(count, 0, 1))
	l.check(l.stream.Launch(l.function("order"), [3]int{2, 1, 1}, [3]int{40, 1, 1}, 0, uint64(out), uint64(count)))
	for i, w := range l.words(out, n) {
		want := i
		if reversed() {
			want = n - 1 - i
		}
		if int(w) != want {
			t.Fatalf("thread %d ran as number %d, want %d", i, w, want)
		}
	}
}

// TestStreamsAreAsynchronous holds the emulator to what makes missing waits visible.
func TestStreamsAreAsynchronous(t *testing.T) {
	l := newLab(t)
	a := l.alloc(4)
	host := l.pin(4)
	clear(host.Bytes())
	other := l.newStream()
	e := l.event()
	l.check(other.Fill(a, 5, 1))
	l.check(e.Record(other))
	if !reversed() {
		return
	}
	l.check(l.stream.CopyOut(host, 0, a, 4))
	l.same("before any wait", words(host.Bytes())[0], 0)
	l.check(l.stream.Sync())
	l.same("without waiting for the other stream", words(host.Bytes())[0], uint32(0xffffffff))
	l.check(l.stream.Wait(e))
	l.check(l.stream.CopyOut(host, 0, a, 4))
	l.check(l.stream.Sync())
	l.same("after waiting", words(host.Bytes())[0], 5)
}

func TestCapture(t *testing.T) {
	l := newLab(t)
	const n = 8
	x, y := l.alloc(4*n), l.alloc(4*n)
	in, out := l.pin(4*n), l.pin(4*n)
	f := l.function("scale")
	factor := float32(3)
	g, err := l.stream.Capture(func() error {
		if err := l.stream.CopyIn(x, in, 0, 4*n); err != nil {
			return err
		}
		// The graph keeps the arguments of now.
		args := []uint64{uint64(x), bits(factor), n}
		err := l.stream.Launch(f, [3]int{1, 1, 1}, [3]int{n, 1, 1}, 0, args...)
		clear(args)
		// Others may allocate meanwhile.
		done := make(chan error)
		go func() {
			p, err := l.Alloc(1)
			done <- errors.Join(err, l.Free(p))
		}()
		return errors.Join(err, l.stream.Copy(y, x, 4*n), l.stream.Fill(x, 0, n), l.stream.CopyOut(out, 0, y, 4*n), <-done)
	})
	l.check(err)
	l.later(g.Free)
	clear(out.Float32())
	l.check(l.stream.Sync())
	l.same("captured work that was not launched", out.Float32(), make([]float32, n))
	for round := range 3 {
		want := make([]float32, n)
		for i := range n {
			in.Float32()[i] = float32(i + 10*round)
			want[i] = factor * float32(i+10*round)
		}
		l.check(g.Launch(l.stream))
		l.check(l.stream.Sync())
		l.same(fmt.Sprint("round ", round), out.Float32(), want)
	}
	l.same("graphs alive", Live().Graphs, 1)
}

func TestCaptureOfTwoStreams(t *testing.T) {
	l := newLab(t)
	side := l.newStream()
	x := l.alloc(8)
	fork, join := l.event(), l.event()
	record := func(joins bool) func() error {
		return func() error {
			err := errors.Join(l.stream.Fill(x, 1, 1), fork.Record(l.stream), side.Wait(fork), side.Copy(x+4, x, 4), join.Record(side),
				l.stream.Fill(x, 2, 1))
			if joins {
				err = errors.Join(err, l.stream.Wait(join))
			}
			return err
		}
	}
	_, err := l.stream.Capture(record(false))
	l.code(err, 904)
	g, err := l.stream.Capture(record(true))
	l.check(err)
	l.later(g.Free)
	l.check(g.Launch(side))
	l.check(side.Sync())
	l.same("result", l.words(x, 2), []uint32{2, 1})
	// The events belong to the graph now, and tell no time.
	_, err = join.Since(fork)
	l.code(err, 907)
	l.check(join.Record(side))
	l.check(l.stream.Wait(join))
	l.check(l.stream.Sync())
}

func TestCaptureThatFails(t *testing.T) {
	l := newLab(t)
	x := l.alloc(4)
	fill := func() error { return l.stream.Fill(x, 1, 1) }

	own := errors.New("own error")
	if _, err := l.stream.Capture(func() error { return errors.Join(fill(), own) }); !errors.Is(err, own) {
		t.Errorf("capture returned %v", err)
	}
	_, err := l.stream.Capture(func() error {
		_, err := l.Alloc(4)
		l.code(err, 900)
		return nil
	})
	l.code(err, 901)
	_, err = l.stream.Capture(func() error {
		_, err := l.stream.Capture(fill)
		return err
	})
	l.code(err, 401)
	func() {
		defer func() { l.same("panic", recover(), "of record") }()
		_, _ = l.stream.Capture(func() error { panic("of record") })
	}()

	// After all that the stream is as usual.
	g, err := l.stream.Capture(fill)
	l.check(err)
	l.check(g.Launch(l.stream))
	l.same("word", l.words(x, 1), []uint32{1})
	l.check(g.Free())
}

func TestEvents(t *testing.T) {
	l := newLab(t)
	begin, end := l.event(), l.event()
	_, err := end.Since(begin)
	l.code(err, 400) // neither was recorded
	x := l.alloc(4)
	l.check(begin.Record(l.stream))
	l.check(l.stream.Launch(l.function("scale"), [3]int{200, 1, 1}, [3]int{256, 1, 1}, 0, uint64(x), bits(1), 1))
	l.check(end.Record(l.stream))
	began := time.Now()
	took, err := end.Since(begin)
	l.check(err)
	if limit := time.Minute + time.Since(began); took <= 0 || took > limit {
		t.Errorf("51200 threads took %v", took)
	}
	back, err := begin.Since(end)
	l.check(err)
	l.same("the other way round", back, -took)
}

func TestOutOfMemory(t *testing.T) {
	l := newLab(t)
	_, err := l.Alloc(257 << 20)
	if !errors.Is(err, ErrOutOfMemory) {
		t.Errorf("got error %v", err)
	}
	var e *Error
	if !errors.As(err, &e) || e.Call != "cuMemAlloc" || e.Lost() {
		t.Errorf("got error %#v", e)
	}
	l.same("error", err, "allocate 269484032 bytes on GPU 0: cuMemAlloc: out of memory (CUDA error 2)")
	for _, n := range []int{0, -1} {
		if _, err := l.Alloc(n); err == nil {
			t.Errorf("allocated %d bytes", n)
		}
		if _, err := l.Pin(n); err == nil {
			t.Errorf("pinned %d bytes", n)
		}
	}
	l.alloc(200 << 20) // what failed has left no trace
}

// TestLost: which errors only a new process gets rid of, by their numbers in the public documentation.
func TestLost(t *testing.T) {
	for code, want := range map[int]bool{
		1: false, 2: false, 100: false, 209: false, 400: false, 600: false, 701: false, 720: false, 801: false, 900: false, 906: false,
		4: true, 201: true, 214: true, 220: true, 226: true, 700: true, 702: true, 719: true, 805: true, 806: true, 810: true, 999: true,
	} {
		if e := (&Error{Code: code}); e.Lost() != want {
			t.Errorf("error %d: lost is %v, want %v", code, e.Lost(), want)
		}
	}
}

func TestModules(t *testing.T) {
	l := newLab(t)
	_, err := l.Load(image("sm_90"))
	l.code(err, 209)
	if err != nil && !strings.Contains(err.Error(), "the PTX is for sm_90") {
		t.Errorf("the error does not say what the compiler said: %v", err)
	}
	_, err = l.Load([]byte("no PTX"))
	l.code(err, 200)
	for _, name := range []string{"missing", "unknown_to_the_emulator", "selftest_scal"} {
		_, err = l.module.Function(name)
		l.code(err, 500)
	}
	m, err := l.Load(image("sm_80"))
	l.check(err)
	f, err := m.Function("selftest_scale")
	l.check(err)
	l.check(m.Unload())
	for _, err := range []error{
		m.Unload(), f.SetShared(1), l.stream.Launch(f, [3]int{1, 1, 1}, [3]int{1, 1, 1}, 0),
		func() error { _, err := m.Function("selftest_scale"); return err }(),
	} {
		if !errors.Is(err, ErrReleased) {
			t.Errorf("after Unload: error %v", err)
		}
	}
}

func TestReleasedTwice(t *testing.T) {
	l := newLab(t)
	p, err := l.Alloc(4)
	l.check(err)
	pinned, err := l.Pin(4)
	l.check(err)
	s, err := l.NewStream()
	l.check(err)
	e, err := l.NewEvent()
	l.check(err)
	l.check(e.Record(s))
	g, err := s.Capture(func() error { return s.Fill(p, 0, 1) })
	l.check(err)

	before := Live()
	for _, release := range []func() error{func() error { return l.Free(p) }, pinned.Free, s.Destroy, e.Destroy, g.Free} {
		l.check(release())
		if err := release(); !errors.Is(err, ErrReleased) {
			t.Errorf("released twice: error %v", err)
		}
	}
	after := Live()
	l.same("released", []int64{int64(before.Allocations - after.Allocations), int64(before.Pinned - after.Pinned), int64(before.Streams - after.Streams),
		int64(before.Events - after.Events), int64(before.Graphs - after.Graphs), before.DeviceBytes - after.DeviceBytes,
		before.PinnedBytes - after.PinnedBytes}, []int64{1, 1, 1, 1, 1, 4, 4})
	if pinned.Bytes() != nil || pinned.Float32() != nil {
		t.Error("pinned memory can be reached after Free")
	}
	for _, err := range []error{
		s.Sync(), s.Fill(0, 0, 1), s.Copy(0, 0, 1), s.CopyIn(0, pinned, 0, 1), l.stream.CopyIn(0, pinned, 0, 1), l.stream.CopyOut(pinned, 0, 0, 1),
		s.Wait(e), l.stream.Wait(e), e.Record(l.stream), e.Record(s), g.Launch(l.stream), l.Free(p + 4),
		s.Launch(l.function("scale"), [3]int{1, 1, 1}, [3]int{1, 1, 1}, 0),
		func() error { _, err := s.Capture(func() error { return nil }); return err }(),
		func() error { _, err := e.Since(e); return err }(),
	} {
		if !errors.Is(err, ErrReleased) {
			t.Errorf("used after its release: error %v", err)
		}
	}
}

func TestCloseNamesWhatIsLeft(t *testing.T) {
	d, err := Open(0, false)
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.Alloc(10)
	if err != nil {
		t.Fatal(err)
	}
	want := "close GPU 0: still alive on it: 1 allocations"
	if err := d.Close(); err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	if err := errors.Join(d.Free(p), d.Close()); err != nil {
		t.Error(err)
	}
	if err := d.Close(); !errors.Is(err, ErrReleased) {
		t.Errorf("closed twice: error %v", err)
	}
	if _, err := d.Alloc(1); !errors.Is(err, ErrReleased) {
		t.Errorf("allocated on a closed device: error %v", err)
	}
	if _, err := d.Pin(1); !errors.Is(err, ErrReleased) {
		t.Errorf("pinned for a closed device: error %v", err)
	}
	if _, err := d.Load(nil); !errors.Is(err, ErrReleased) {
		t.Errorf("loaded on a closed device: error %v", err)
	}
}

// TestConcurrent has goroutines of its own stream and memory each, and all of one stream.
func TestConcurrent(t *testing.T) {
	l := newLab(t)
	f := l.function("scale")
	shared := l.alloc(4)
	var group sync.WaitGroup
	failed := make(chan error, 100)
	for worker := range 8 {
		group.Go(func() {
			for round := range 5 {
				if err := l.work(f, shared, float32(worker+1), float32(round)); err != nil {
					failed <- fmt.Errorf("worker %d, round %d: %w", worker, round, err)
				}
			}
		})
	}
	group.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
}

func (l *lab) work(f *Function, shared Ptr, factor, value float32) (err error) {
	const n = 64
	release := func(f func() error) { err = errors.Join(err, f()) }
	s, err := l.NewStream()
	if err != nil {
		return err
	}
	defer release(s.Destroy)
	x, err := l.Alloc(4 * n)
	if err != nil {
		return err
	}
	defer release(func() error { return l.Free(x) })
	host, err := l.Pin(4 * n)
	if err != nil {
		return err
	}
	defer release(host.Free)
	for i := range host.Float32() {
		host.Float32()[i] = value
	}
	err = errors.Join(s.CopyIn(x, host, 0, 4*n),
		s.Launch(f, [3]int{2, 1, 1}, [3]int{32, 1, 1}, 0, uint64(x), bits(factor), n),
		s.CopyOut(host, 0, x, 4*n), l.stream.Fill(shared, 1, 1), s.Sync())
	if err != nil {
		return err
	}
	for i, v := range host.Float32() {
		if v != factor*value {
			return fmt.Errorf("number %d is %v, want %v", i, v, factor*value)
		}
	}
	return nil
}
