package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// State is what a Worker is about.
type State string

// States of a Worker.
const (
	Starting State = "starting" // its process is, and has not said yet that it is ready
	Ready    State = "ready"
	BackOff  State = "back-off" // between the loss of a process and the start of the next
	Off      State = "off"      // not started, stopped, or given up
)

// Options say how a Worker is run. Fields that are zero have the default.
type Options struct {
	Program string   // file to start
	Args    []string // its arguments; it finds the connection at descriptor 3
	Env     []string // its environment; nil: that of this process
	// Version is what Info.Version of the worker must be; empty: anything. Frames hold numbers that mean
	// something else in another release.
	Version string

	// Notify is told what a person may want to know, by one goroutine at a time. It must not block.
	Notify func(Event)

	StartLimit time.Duration // from the start to the first word; 60 s
	Ping       time.Duration // between two looks at whether it answers; 5 s
	PingLimit  time.Duration // for its answer; 20 s
	// A request may take RequestLimit, and what the work in hand takes at Slowest operations a
	// second: 10 s and 2·10¹¹.
	RequestLimit time.Duration
	Slowest      float64
	// Soon is how long a request whose worker was lost waits for the next one; 2 s.
	Soon time.Duration
	// The pause before the next start is FirstPause, 200 ms, and doubles with each failure in a row,
	// up to LongestPause, 5 min. A failure that comes after a worker was ready for GoodWhile, 10
	// min, is the first in a row. After MaxFailures in a row, 24, the worker is given up.
	FirstPause, LongestPause, GoodWhile time.Duration
	MaxFailures                         int

	start func(o *Options, line func(string)) (net.Conn, process, error) // tests
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&o.StartLimit, time.Minute)
	set(&o.Ping, 5*time.Second)
	set(&o.PingLimit, 20*time.Second)
	set(&o.RequestLimit, 10*time.Second)
	set(&o.Soon, 2*time.Second)
	set(&o.FirstPause, 200*time.Millisecond)
	set(&o.LongestPause, 5*time.Minute)
	set(&o.GoodWhile, 10*time.Minute)
	if o.Slowest == 0 {
		o.Slowest = 2e11
	}
	if o.MaxFailures == 0 {
		o.MaxFailures = 24
	}
	if o.Notify == nil {
		o.Notify = func(Event) {}
	}
	if o.start == nil {
		o.start = startProcess
	}
	return o
}

// patience is how long a request may take.
func (o *Options) patience(flop float64) time.Duration {
	return o.RequestLimit + time.Duration(flop/o.Slowest*float64(time.Second))
}

// EventKind tells events apart.
type EventKind int

// Kinds of events.
const (
	EventReady  EventKind = iota // a worker is ready
	EventFailed                  // no worker could be started; told once for each reason, of three at most in a row
	EventLost                    // a worker that was ready is gone
	EventOff                     // given up
	EventLine                    // a line that a worker wrote on its standard error
)

// Event is something that happened to a Worker.
type Event struct {
	Kind EventKind
	Text string
}

// Status is how a Worker is.
type Status struct {
	State     State
	Info      Info    // of the present process, or of the last one that was ready
	PID       int     // 0 if there is none
	Free      int64   // of the device's memory when it was last asked, bytes
	Starts    int64   // of processes, with the first
	Served    int64   // requests that workers answered
	Lost      int64   // requests whose worker was gone before it answered
	Late      int64   // and those that were not answered in time
	NoMemory  int64   // requests that the device had no memory for
	Refused   int64   // requests that failed otherwise
	FellBack  int64   // requests that the fallback did
	Seconds   float64 // that requests waited for workers
	LastError string
}

// Worker is a process that computes, and the one that follows when it ends. Its methods are safe
// for concurrent use.
type Worker struct {
	o      Options
	stop   chan struct{} // closed by Stop
	ended  chan struct{} // closed when nothing runs any more
	once   sync.Once
	events sync.Mutex

	mu      sync.Mutex
	started bool
	changed chan struct{} // closed, and another one made, when the state changes
	session *session      // while Ready
	next    time.Time     // of the start, while BackOff
	status  Status
}

// NewWorker returns a worker that is off.
func NewWorker(o Options) *Worker {
	return &Worker{o: o.withDefaults(), stop: make(chan struct{}), ended: make(chan struct{}), changed: make(chan struct{}), status: Status{State: Off}}
}

// Start starts the process and sees to it from then on. It does not wait. A worker is started once.
func (w *Worker) Start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.started {
		w.started, w.status.State = true, Starting
		go w.supervise()
	}
}

// Stop ends the process and waits until it is gone. What is in hand, and what comes later, goes to
// the fallback.
func (w *Worker) Stop(ctx context.Context) error {
	w.once.Do(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.started {
			w.started = true
			close(w.ended)
		}
		close(w.stop)
	})
	select {
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop the worker: %w", ctx.Err())
	}
}

// Status returns how the worker is.
func (w *Worker) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

// Settled waits until a start has come to something, or to nothing, or ctx ends.
func (w *Worker) Settled(ctx context.Context) Status {
	for {
		w.mu.Lock()
		s, changed := w.status, w.changed
		w.mu.Unlock()
		if s.State != Starting {
			return s
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s
		}
	}
}

// set changes the state.
func (w *Worker) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *Worker) tell(kind EventKind, format string, args ...any) {
	w.events.Lock()
	defer w.events.Unlock()
	w.o.Notify(Event{kind, fmt.Sprintf(format, args...)})
}

// ready returns the session to ask, nil if there is none at present.
func (w *Worker) ready() *session {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.session
}

// soon returns the session that follows one that was lost, nil if none is ready soon.
func (w *Worker) soon(lost *session) *session {
	limit := time.NewTimer(w.o.Soon)
	defer limit.Stop()
	for {
		w.mu.Lock()
		s, changed := w.session, w.changed
		hopeless := w.status.State == Off || w.status.State == BackOff && time.Until(w.next) > w.o.Soon
		w.mu.Unlock()
		switch {
		case s != nil && s != lost:
			return s
		case hopeless:
			return nil
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil
		case <-w.stop:
			return nil
		}
	}
}

// maxReasons is how many different reasons for failures in a row are told.
const maxReasons = 3

// supervise starts one process after the other.
func (w *Worker) supervise() {
	defer close(w.ended)
	failures, told := 0, map[string]bool{}
	for {
		began := time.Now()
		ready, err := w.life()
		if w.stopping() {
			w.set(func() { w.status.State, w.status.PID = Off, 0 })
			return
		}
		if ready && time.Since(began) >= w.o.GoodWhile {
			failures = 0
		}
		failures++
		pause := min(w.o.FirstPause<<min(failures-1, 30), w.o.LongestPause)
		pause = time.Duration(float64(pause) * (0.8 + 0.4*rand.Float64()))
		state := BackOff
		if failures >= w.o.MaxFailures {
			state = Off
		}
		w.set(func() {
			w.status.State, w.status.PID, w.status.LastError = state, 0, err.Error()
			w.next = time.Now().Add(pause)
		})
		switch {
		case state == Off:
			w.tell(EventOff, "given up after %d failures in a row, the last one: %v", failures, err)
			return
		case ready:
			clear(told)
			w.tell(EventLost, "%v; the next start is in %v", err, pause.Round(time.Millisecond))
		case !told[err.Error()] && len(told) < maxReasons:
			told[err.Error()] = true
			w.tell(EventFailed, "%v", err)
		}
		select {
		case <-time.After(pause):
		case <-w.stop:
		}
	}
}

func (w *Worker) stopping() bool {
	select {
	case <-w.stop:
		return true
	default:
		return false
	}
}

// stopLimit is how long a worker may take to end by itself.
const stopLimit = 5 * time.Second

// life is that of one process, from its start to its end. It returns why it ended, and whether it
// had been ready.
func (w *Worker) life() (ready bool, err error) {
	if w.stopping() {
		return false, errors.New("stopped")
	}
	w.set(func() { w.status.State, w.status.Starts = Starting, w.status.Starts+1 })
	began := time.Now()
	said := new(lines)
	conn, p, err := w.o.start(&w.o, func(text string) {
		if said.add(text) {
			w.tell(EventLine, "%s", text)
		}
	})
	if err != nil {
		return false, fmt.Errorf("start %s: %w", w.o.Program, err)
	}
	w.set(func() { w.status.PID = p.pid() })
	over := make(chan struct{}) // closed when the process has ended
	var how error               // how it ended
	go func() {
		how = p.wait()
		close(over)
	}()
	defer func() {
		_ = conn.Close() // for a worker the sign to end
		for range 2 {
			select {
			case <-over:
				if how != nil && errors.Is(err, errEnded) {
					err = fmt.Errorf("%w (%w)%s", err, how, said.lastly())
				}
				return
			case <-time.After(stopLimit):
				p.kill()
			}
		}
		err = fmt.Errorf("%w; process %d cannot be killed and is left behind", err, p.pid())
	}()

	go func() {
		select {
		case <-w.stop:
			_ = conn.Close() // ends everything below
		case <-over:
		}
	}()
	s, err := greet(conn, p.kill, w.o.StartLimit)
	if err != nil {
		if _, refused := errors.AsType[refusal](err); !refused && !errors.Is(err, errEnded) {
			p.kill() // it does not do what it should
		}
		return false, err
	}
	if v := w.o.Version; v != "" && v != s.Info.Version {
		return false, fmt.Errorf("its version is %.100q, this program's %q: install both from one release", s.Info.Version, v)
	}
	go s.read()
	stats, err := s.ping(w.o.PingLimit)
	if err != nil {
		<-s.gone
		return false, err
	}
	w.set(func() {
		w.session, w.status.State, w.status.Info, w.status.Free, w.status.LastError = s, Ready, s.Info, stats.Free, ""
	})
	w.tell(EventReady, "%v, ready after %v", s.Info, time.Since(began).Round(time.Millisecond))
	tick := time.NewTicker(w.o.Ping)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if stats, err := s.ping(w.o.PingLimit); err == nil { // else the session is over
				w.mu.Lock()
				w.status.Free = stats.Free
				w.mu.Unlock()
			}
		case <-s.gone:
			// Whether the next one is soon is known when this one has ended.
			w.set(func() { w.session, w.status.State, w.status.PID, w.next = nil, BackOff, 0, time.Now() })
			return true, errors.Unwrap(s.lost()) // that it is lost the caller knows
		}
	}
}

// Probe starts a worker, asks it what it computes with, and ends it.
func Probe(ctx context.Context, o Options) (Status, error) {
	o.MaxFailures = 1
	w := NewWorker(o)
	w.Start()
	s := w.Settled(ctx)
	err := ctx.Err()
	if err == nil && s.State != Ready {
		err = errors.New(s.LastError)
	}
	return s, errors.Join(err, w.Stop(context.WithoutCancel(ctx)))
}

// String says in a line what is computed with.
func (i Info) String() string {
	if i.Device == "" {
		return i.Backend
	}
	text := i.Device
	if i.Compute != "" {
		text += ", compute capability " + i.Compute
	}
	if i.Memory > 0 {
		text += fmt.Sprintf(", %.1f GiB", float64(i.Memory)/(1<<30))
	}
	if i.Driver != "" {
		text += ", driver " + i.Driver
	}
	if i.Kernels != "" {
		text += ", kernels " + i.Kernels
	}
	return text
}

// lines counts what a worker writes on its standard error, and remembers the last of it. What follows
// the first line of a crash is stacks and registers: then it is that line, and what was said before it.
type lines struct {
	mu      sync.Mutex
	n       int
	last    string
	crashed bool
}

// maxLines is how many lines of one process are passed on: a crash has some hundred.
const maxLines = 1000

// crashes is how the first line of a crash of a Go program begins.
var crashes = []string{"panic: ", "fatal error: ", "runtime: ", "SIG"}

// add notes a line and tells whether to pass it on.
func (l *lines) add(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	if !l.crashed {
		l.crashed = slices.ContainsFunc(crashes, func(start string) bool { return strings.HasPrefix(text, start) })
		if l.crashed && l.last != "" {
			text = l.last + ": " + text
		}
		l.last = text
	}
	return l.n <= maxLines
}

// lastly is the last line, to be put behind an error.
func (l *lines) lastly() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == "" {
		return ""
	}
	return ": " + l.last
}

// process is one that was started.
type process interface {
	pid() int
	kill()       // at once; of one that has ended, nothing
	wait() error // for its end; how it ended. Called once
}
