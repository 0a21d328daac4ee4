package remote

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/diffdenoise/denoised/kernels"
)

// lostError is the error of requests whose worker is gone. Another one may do them.
type lostError struct {
	why  error
	late bool // it had to be killed because it did not answer
}

func (e *lostError) Error() string { return "worker lost: " + e.why.Error() }
func (e *lostError) Unwrap() error { return e.why }

// session is one connection to one worker.
type session struct {
	hello
	conn net.Conn
	in   *bufio.Reader
	out  writer
	kill func() // ends the worker at once
	// slots holds one element for each request in hand.
	slots chan struct{}
	gone  chan struct{} // closed when the session is over and no request is in hand

	mu       sync.Mutex
	why      *lostError // set before gone is closed
	calls    map[uint64]*call
	last     uint64 // number given to a request
	work     float64
	networks map[uint64]*loading
}

// call is a request in hand.
type call struct {
	payload *buffer  // of the result; nil: there is none
	want    int      // floats of it
	header  any      // of the result; nil: there is none
	runs    chan int // told of a pair; nil: of none
	done    chan error
}

// loading is a network on the worker, or on its way there.
type loading struct {
	done chan struct{}
	err  error // once done is closed
}

// greet waits for the first word of a worker and makes a session of its connection.
func greet(conn net.Conn, kill func(), limit time.Duration) (*session, error) {
	if err := errEndian(); err != nil {
		return nil, err
	}
	s := &session{conn: conn, in: bufio.NewReaderSize(conn, 1<<16), out: writer{conn: conn}, kill: kill,
		gone: make(chan struct{}), calls: map[uint64]*call{}, networks: map[uint64]*loading{}}
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	h, err := readHead(s.in)
	if err == nil && h.kind != kindHello {
		err = broken("the first frame is of kind %d", h.kind)
	}
	if err == nil {
		err = h.readOnly(s.in, &s.hello)
	}
	var late net.Error
	switch {
	case errors.As(err, &late) && late.Timeout():
		return nil, fmt.Errorf("it has not said that it is ready within %v", limit)
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%w before it was ready", errEnded)
	case err != nil:
		return nil, err
	case s.Protocol != protocol:
		return nil, fmt.Errorf("its protocol has version %d, this program's %d: install both from one release", s.Protocol, protocol)
	case s.Refused != "":
		return nil, refusal(s.Refused)
	case s.Parallel < 1:
		return nil, broken("it takes %d requests", s.Parallel)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	s.slots = make(chan struct{}, min(s.Parallel, maxParallel))
	return s, nil
}

// refusal is why a worker cannot compute; it then ends by itself.
type refusal string

func (r refusal) Error() string { return string(r) }

// fail ends the session and its worker. The first reason counts.
func (s *session) fail(why error, late bool) {
	s.note(why, late)
	s.kill()
	_ = s.conn.Close() // ends read
}

// end ends the session after an error of its connection. A worker that works as it should then ends
// too.
func (s *session) end(err error) {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, e) {
			err = errEnded
		}
	}
	s.note(err, false)
	_ = s.conn.Close() // ends read
}

func (s *session) note(why error, late bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == nil {
		s.why = &lostError{why, late}
	}
}

// errEnded: the process ended, or ended the connection.
var errEnded = errors.New("it ended")

// lost returns why the session is over, nil if it is not.
func (s *session) lost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == nil {
		return nil
	}
	return s.why
}

// read takes frames until the session is over, and then ends all requests in hand.
func (s *session) read() {
	var err error
	for err == nil {
		err = s.frame()
	}
	if errors.Is(err, errProtocol) {
		s.kill() // who knows what it does
	}
	s.end(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		c.done <- s.why
	}
	s.calls = nil
	close(s.gone)
}

// frame takes one frame.
func (s *session) frame() error {
	h, err := readHead(s.in)
	if err != nil {
		return err
	}
	s.mu.Lock()
	c := s.calls[h.id]
	s.mu.Unlock()
	if c == nil {
		return broken("a frame of kind %d for request %d, which is not in hand", h.kind, h.id)
	}
	var answer error
	switch h.kind {
	case kindProgress:
		var p progress
		if err := h.readOnly(s.in, &p); err != nil {
			return err
		}
		select {
		case c.runs <- p.Runs:
			return nil
		default: // also where none is expected
			return broken("progress that was not waited for")
		}
	case kindFailure:
		f := new(failure)
		if err := h.readOnly(s.in, f); err != nil {
			return err
		}
		answer = f
		if errors.Is(answer, kernels.ErrDevice) {
			return answer // for all requests
		}
	case kindResult:
		if h.floats != c.want {
			return broken("a result of %d floats, want %d", h.floats, c.want)
		}
		if c.header != nil {
			if err := h.readHeader(s.in, c.header); err != nil {
				return err
			}
		} else if h.header != 0 {
			return broken("a result with a header")
		}
		if c.want > 0 {
			if err := c.payload.read(s.in, c.want); err != nil {
				return err
			}
		}
	default:
		return broken("a frame of kind %d", h.kind)
	}
	s.mu.Lock()
	delete(s.calls, h.id)
	s.mu.Unlock()
	c.done <- answer
	return nil
}

// request is what is to be asked of a worker.
type request struct {
	kind    kind
	header  any
	payload [][]float32
	result  int // floats
	answer  any // header of the result
	// flop is the work in it, for the time that it may take.
	flop float64
	// done is that of kernels.SamplePair.
	done func(runs int) error
}

// String names the request for errors.
func (r *request) String() string {
	switch h := r.header.(type) {
	case graphHeader:
		return "a network"
	case imageHeader:
		return fmt.Sprintf("a slice of %d×%d", h.Width, h.Height)
	case batchHeader:
		return fmt.Sprintf("%d samples of %d×%d", h.Count, h.Width, h.Height)
	case pairHeader:
		return fmt.Sprintf("a step of sampling %d×%d", h.Width, h.Height)
	}
	return "a question"
}

// ask sends a request and waits for its result, whose payload is in the buffer that is returned.
// The worker is killed if it takes longer than patience says. An error of r.done ends the request
// and is returned as a *stopError.
func (s *session) ask(r *request, patience func(flop float64) time.Duration) (*buffer, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.gone:
		return nil, s.lost()
	}
	c := &call{want: r.result, header: r.answer, done: make(chan error, 1)}
	if r.result > 0 {
		c.payload = buffers.Get().(*buffer)
	}
	if r.done != nil {
		c.runs = make(chan int, 1)
	}
	s.mu.Lock()
	if s.why != nil {
		s.mu.Unlock()
		return nil, s.lost()
	}
	s.last++
	id := s.last
	s.calls[id] = c
	s.work += r.flop
	limit := patience(s.work) // what came before is perhaps done before
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.work -= r.flop
		s.mu.Unlock()
	}()
	late := time.AfterFunc(limit, func() {
		s.fail(fmt.Errorf("no answer to %v within %v", r, limit.Round(time.Millisecond)), true)
	})
	defer late.Stop()
	if err := s.out.send(r.kind, id, r.header, r.payload...); err != nil {
		if errors.Is(err, errUnsent) {
			s.mu.Lock()
			delete(s.calls, id)
			s.mu.Unlock()
			return nil, err
		}
		s.end(err)
	}
	var stopped error
	for {
		select {
		case runs := <-c.runs:
			if !late.Stop() {
				continue // too late
			}
			if stopped == nil {
				stopped = r.done(runs)
			}
			late.Reset(limit)
			if err := s.out.send(kindProceed, id, proceed{Stop: stopped != nil}); err != nil {
				s.end(err)
			}
		case err := <-c.done:
			if stopped != nil {
				err = &stopError{stopped}
			}
			return c.payload, err
		}
	}
}

// stopError is what made the caller call a request off.
type stopError struct{ error }

func (e *stopError) Unwrap() error { return e.error }

// load makes sure that the worker has a network.
func (s *session) load(id uint64, r func() *request, patience func(flop float64) time.Duration) error {
	s.mu.Lock()
	l, ok := s.networks[id]
	if !ok {
		l = &loading{done: make(chan struct{})}
		s.networks[id] = l
	}
	s.mu.Unlock()
	if !ok {
		if _, l.err = s.ask(r(), patience); errors.Is(l.err, kernels.ErrMemory) {
			s.mu.Lock()
			delete(s.networks, id) // there may be more of it the next time
			s.mu.Unlock()
		}
		close(l.done)
	}
	<-l.done
	return l.err
}

// unload frees a network that nobody will ask for any more.
func (s *session) unload(id uint64, patience func(flop float64) time.Duration) {
	s.mu.Lock()
	l := s.networks[id]
	delete(s.networks, id)
	s.mu.Unlock()
	if l == nil {
		return
	}
	if <-l.done; l.err == nil {
		_, _ = s.ask(&request{kind: kindUnload, header: unloadHeader{id}}, patience) // if it fails the session is over
	}
}

// ping asks the worker how it is.
func (s *session) ping(limit time.Duration) (Stats, error) {
	var st Stats
	_, err := s.ask(&request{kind: kindPing, answer: &st}, func(float64) time.Duration { return limit })
	return st, err
}
