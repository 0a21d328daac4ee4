package dicomnet

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/diffdenoise/denoised/dicomnet/dimse"
	"github.com/diffdenoise/denoised/dicomnet/pdu"
	"github.com/diffdenoise/denoised/dicomnet/ul"
)

const (
	// smallBuffer serves a connection until its association is accepted, so
	// that strangers cost little.
	smallBuffer = 4 << 10
	// largeBuffer serves an accepted association: two announced PDUs per read. All
	// but a few percent of receiving is system calls, so their number counts.
	largeBuffer = 256<<10 + smallBuffer
	// minRate is what a peer inside a message must deliver on average over
	// Timeouts.Progress, bytes per second.
	minRate = 1 << 10
	// maxEmptyFragments bounds how many fragments without data may follow each other.
	maxEmptyFragments = 1024
	// stopLinger is how long a closing server waits for a peer to close.
	stopLinger = time.Second
	// maxLinger bounds what is read and dropped while the peer closes.
	maxLinger = 4 << 20
)

// phase says what an interrupt may do to a transport.
type phase int

const (
	phaseOpening phase = iota // nothing promised: close
	phaseWaiting              // between messages: wake the reader
	phaseBusy                 // inside a message: let it finish
	phaseEnding               // nothing more to say: close
)

// transport is one connection with its protocol machine, its one read buffer
// and the clock rules for waiting. All methods but interrupt belong to one
// goroutine. Nothing is allocated per PDU.
type transport struct {
	conn    net.Conn
	m       *ul.Machine
	maxData uint32 // largest P-DATA-TF taken, as announced

	buf   []byte
	large *[largeBuffer]byte // what buf is after grow
	r, w  int                // buf[r:w] is read from the connection and not yet used

	pduLeft  uint32 // bytes of the current P-DATA-TF after the current fragment
	fragLeft uint32 // bytes of the current fragment

	out     []byte // PDUs to write, reused
	writing time.Duration
	mute    bool // a write failed, perhaps in the middle of a PDU: never write again

	// Clock rules. Outside a message: until. Inside: objectLeft is the time
	// left to wait for the whole message, windowLeft that for the next
	// windowBytes of it. Only waiting for the peer counts, not a slow disk.
	until      time.Time
	inMessage  bool
	objectLeft time.Duration
	window     time.Duration
	windowLeft time.Duration
	windowNeed int

	canceled atomic.Bool // every wait is over at once

	mu    sync.Mutex
	phase phase
	stop  bool
}

func newTransport(conn net.Conn, maxData uint32, writing, window time.Duration) *transport {
	return &transport{
		conn: conn, m: ul.New(), maxData: maxData, buf: make([]byte, smallBuffer),
		writing: writing, window: window,
	}
}

// largeBuffers keeps buffers between associations: modalities that open one per
// image would otherwise pay for clearing a new one each time.
var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// grow replaces the small buffer, keeping what was read ahead.
func (t *transport) grow() {
	if t.large != nil {
		return
	}
	t.large = largeBuffers.Get().(*[largeBuffer]byte)
	t.w = copy(t.large[:], t.buf[t.r:t.w])
	t.r = 0
	t.buf = t.large[:]
}

// recycle gives the large buffer back. The transport must not be used again.
func (t *transport) recycle() {
	if t.large != nil {
		largeBuffers.Put(t.large)
		t.large, t.buf = nil, nil
	}
}

// busy marks the end of the opening phase. It returns false when the transport
// was interrupted before.
func (t *transport) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phase = phaseBusy
	return !t.stop
}

// interrupt ends a transport that waits and asks a busy one to end after its
// message. Safe to call from any goroutine.
func (t *transport) interrupt() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop = true
	switch t.phase {
	case phaseOpening, phaseEnding:
		t.raw().Close()
	case phaseWaiting:
		t.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// cancel ends every wait for the peer, now and later, with ErrTimeout. Safe to
// call from any goroutine.
func (t *transport) cancel() {
	t.canceled.Store(true) // before the deadline: a wait sees one or the other
	t.raw().SetDeadline(time.Unix(1, 0))
}

// awaitMessage waits, at most idle, for the first byte of the next message and
// then starts its clocks: at most total for all of it.
func (t *transport) awaitMessage(idle, total time.Duration) error {
	t.inMessage = false
	t.mu.Lock()
	if t.stop {
		t.mu.Unlock()
		return errShutdown
	}
	if t.r == t.w && t.pduLeft == 0 {
		t.phase = phaseWaiting
		t.conn.SetReadDeadline(time.Now().Add(idle))
		t.mu.Unlock()
		err := t.receive()
		t.mu.Lock()
		if err != nil && t.stop && errors.Is(err, ErrTimeout) {
			err = errShutdown
		}
		if err != nil {
			t.phase = phaseBusy
			t.mu.Unlock()
			if errors.Is(err, ErrTimeout) {
				err = fmt.Errorf("%w: no message for %v", ErrTimeout, idle)
			}
			return err
		}
	}
	t.phase = phaseBusy
	t.mu.Unlock()
	t.inMessage = true
	t.objectLeft = total
	t.resetWindow()
	return nil
}

func (t *transport) resetWindow() {
	t.windowLeft = t.window
	t.windowNeed = max(1, int(t.window.Seconds()*minRate))
}

// receive reads once into the buffer under the deadline already set.
func (t *transport) receive() error {
	if t.r == t.w {
		t.r, t.w = 0, 0
	} else if t.w == len(t.buf) {
		t.w = copy(t.buf, t.buf[t.r:t.w])
		t.r = 0
	}
	n, err := t.conn.Read(t.buf[t.w:])
	t.w += n
	return readError(n, err)
}

// readError makes one error of what Read returned; bytes count more than an error.
func readError(n int, err error) error {
	switch {
	case n > 0 || err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrTimeout
	}
	return err
}

// timed runs read, which returns the count of bytes it got, under the clock rules.
func (t *transport) timed(read func() (int, error)) error {
	if !t.inMessage {
		t.conn.SetReadDeadline(t.until)
		if t.canceled.Load() {
			return ErrTimeout
		}
		n, err := read()
		return readError(n, err)
	}
	wait := min(t.objectLeft, t.windowLeft)
	start := time.Now()
	t.conn.SetReadDeadline(start.Add(wait))
	n, err := read()
	spent := time.Since(start)
	t.objectLeft -= spent
	t.windowLeft -= spent
	t.windowNeed -= n
	if t.windowNeed <= 0 {
		t.resetWindow()
	}
	err = readError(n, err)
	if errors.Is(err, ErrTimeout) {
		if t.objectLeft <= 0 {
			return fmt.Errorf("%w: the message took too long", ErrTimeout)
		}
		return fmt.Errorf("%w: less than %d bytes per second for %v", ErrTimeout, minRate, t.window)
	}
	return err
}

// fill reads at least one more byte into the buffer.
func (t *transport) fill() error {
	return t.timed(func() (int, error) {
		before := t.w - t.r
		err := t.receive()
		return t.w - t.r - before, err
	})
}

// need returns the next n ≤ len(buf) bytes without using them up.
func (t *transport) need(n int) ([]byte, error) {
	for t.w-t.r < n {
		had := t.w > t.r
		if len(t.buf)-t.r < n {
			t.w = copy(t.buf, t.buf[t.r:t.w])
			t.r = 0
		}
		if err := t.fill(); err != nil {
			if err == io.EOF && had {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return t.buf[t.r : t.r+n], nil
}

// header reads the header of the next PDU and checks its length.
func (t *transport) header() (pdu.Header, error) {
	b, err := t.need(pdu.HeaderSize)
	if err != nil {
		return pdu.Header{}, err
	}
	h := pdu.ParseHeader(b)
	if err := h.Check(t.maxData); err != nil {
		return h, err
	}
	t.r += pdu.HeaderSize
	return h, nil
}

// body reads and decodes the rest of a PDU that is not P-DATA-TF. Memory grows
// only with what really arrives.
func (t *transport) body(h pdu.Header) (pdu.PDU, error) {
	n := int(h.Length)
	if n <= len(t.buf) {
		b, err := t.need(n)
		if err != nil {
			return nil, cut(err)
		}
		t.r += n
		return pdu.Decode(h.Type, b)
	}
	var all []byte
	for len(all) < n {
		if t.r == t.w {
			if err := t.fill(); err != nil {
				return nil, cut(err)
			}
		}
		take := min(n-len(all), t.w-t.r)
		all = append(all, t.buf[t.r:t.r+take]...)
		t.r += take
	}
	return pdu.Decode(h.Type, all)
}

func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// eventOf is the event that the arrival of a PDU means.
func eventOf(typ pdu.Type) ul.EventKind {
	switch typ {
	case pdu.TypeAssociateRQ:
		return ul.AssociateRQReceived
	case pdu.TypeAssociateAC:
		return ul.AssociateACReceived
	case pdu.TypeAssociateRJ:
		return ul.AssociateRJReceived
	case pdu.TypeDataTF:
		return ul.DataReceived
	case pdu.TypeReleaseRQ:
		return ul.ReleaseRQReceived
	case pdu.TypeReleaseRP:
		return ul.ReleaseRPReceived
	default:
		return ul.AbortReceived
	}
}

// nextFragment advances to the next fragment, into the next PDU if
// needed. Its bytes are then fragLeft. errReleased means that the peer asked to
// release instead; all other errors leave the association to be ended by fail.
func (t *transport) nextFragment() (pdu.PDVHeader, error) {
	if t.pduLeft == 0 {
		h, err := t.header()
		if err != nil {
			return pdu.PDVHeader{}, err
		}
		switch h.Type {
		case pdu.TypeDataTF:
		case pdu.TypeAssociateRQ: // unexpected whatever it says, so its 1 MiB stays unread
			return pdu.PDVHeader{}, t.control(&pdu.AssociateRQ{})
		case pdu.TypeAssociateAC:
			return pdu.PDVHeader{}, t.control(&pdu.AssociateAC{})
		default:
			p, err := t.body(h)
			if err != nil {
				return pdu.PDVHeader{}, err
			}
			return pdu.PDVHeader{}, t.control(p)
		}
		if _, err := t.step(ul.Event{Kind: ul.DataReceived}); err != nil {
			return pdu.PDVHeader{}, err
		}
		t.pduLeft = h.Length
	}
	if t.pduLeft < pdu.PDVHeaderSize {
		_, err := pdu.ParsePDVHeader(nil, t.pduLeft)
		return pdu.PDVHeader{}, err
	}
	b, err := t.need(pdu.PDVHeaderSize)
	if err != nil {
		return pdu.PDVHeader{}, cut(err)
	}
	h, err := pdu.ParsePDVHeader(b, t.pduLeft)
	if err != nil {
		return h, err
	}
	t.r += pdu.PDVHeaderSize
	t.pduLeft -= pdu.PDVHeaderSize + h.Length
	t.fragLeft = h.Length
	return h, nil
}

// control handles a PDU other than P-DATA-TF during an association.
func (t *transport) control(p pdu.PDU) error {
	issue, err := t.step(ul.Event{Kind: eventOf(p.Type())})
	if err != nil {
		return err
	}
	switch issue {
	case ul.IssueRelease:
		return errReleased
	case ul.IssueReleased:
		return nil
	case ul.IssueAbort:
		a := p.(*pdu.Abort)
		return &AbortError{Source: a.Source, Reason: a.Reason, ByPeer: true}
	default:
		return &AbortError{Source: ul.SourceProvider, Reason: pdu.ReasonUnexpectedPDU,
			Cause: violation(pdu.ReasonUnexpectedPDU, "unexpected %v", p.Type())}
	}
}

// take consumes up to len(p) bytes of the current fragment into p, straight
// from the connection when nothing is buffered and p is large.
func (t *transport) take(p []byte) (int, error) {
	if uint32(len(p)) > t.fragLeft {
		p = p[:t.fragLeft]
	}
	if t.r == t.w && len(p) >= len(t.buf)/2 {
		var n int
		err := t.timed(func() (int, error) {
			var err error
			n, err = t.conn.Read(p)
			return n, err
		})
		t.fragLeft -= uint32(n)
		return n, cut(err)
	}
	b, err := t.peek()
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	t.advance(n)
	return n, nil
}

// peek returns buffered bytes of the current fragment, at least one.
func (t *transport) peek() ([]byte, error) {
	if t.r == t.w {
		if err := t.fill(); err != nil {
			return nil, cut(err)
		}
	}
	return t.buf[t.r:min(t.w, t.r+int(t.fragLeft))], nil
}

// skip uses up the current fragment.
func (t *transport) skip() error {
	for t.fragLeft > 0 {
		b, err := t.peek()
		if err != nil {
			return err
		}
		t.advance(len(b))
	}
	return nil
}

// advance uses up n bytes of the current fragment.
func (t *transport) advance(n int) {
	t.r += n
	t.fragLeft -= uint32(n)
}

// command assembles the rest of a command set whose first fragment is first.
// The result is valid until the next call.
func (t *transport) command(first pdu.PDVHeader, into []byte) ([]byte, error) {
	into = into[:0]
	for h, empty := first, 0; ; {
		if !h.Command || h.ContextID != first.ContextID {
			return into, violation(pdu.ReasonUnexpectedParameter, "a fragment of another message inside a command")
		}
		if len(into)+int(h.Length) > dimse.MaxCommand {
			return into, violation(pdu.ReasonInvalidParameter, "command set of more than %d bytes", dimse.MaxCommand)
		}
		if empty++; h.Length > 0 {
			empty = 0
		}
		if empty > maxEmptyFragments {
			return into, violation(pdu.ReasonInvalidParameter, "too many empty fragments")
		}
		for t.fragLeft > 0 {
			b, err := t.peek()
			if err != nil {
				return into, err
			}
			into = append(into, b...)
			t.advance(len(b))
		}
		if h.Last {
			return into, nil
		}
		var err error
		if h, err = t.nextFragment(); err != nil {
			return into, err
		}
	}
}

// step runs one event through the protocol machine and does what it asks for.
// PDUs other than aborts and release must stand in t.out. It returns what the
// machine tells its user, 0 if nothing.
func (t *transport) step(ev ul.Event) (issue ul.EffectKind, err error) {
	effects, err := t.m.Step(ev)
	if err != nil {
		return 0, err
	}
	for _, e := range effects {
		switch e.Kind {
		case ul.SendAbort:
			t.out, _ = (&pdu.Abort{Source: e.Source, Reason: e.Reason}).Append(t.out[:0])
			// The association is over whether or not the peer gets to know.
			_ = t.flush()
		case ul.SendReleaseRQ:
			t.out, _ = (&pdu.ReleaseRQ{}).Append(t.out[:0])
			err = t.flush()
		case ul.SendReleaseRP:
			t.out, _ = (&pdu.ReleaseRP{}).Append(t.out[:0])
			err = t.flush()
		case ul.SendAssociateRQ, ul.SendAssociateAC, ul.SendAssociateRJ, ul.SendData:
			err = t.flush()
		case ul.CloseTransport:
			t.conn.Close()
		case ul.IssueAssociate, ul.IssueAccepted, ul.IssueRejected, ul.IssueData, ul.IssueRelease,
			ul.IssueReleased, ul.IssueAbort, ul.IssueProviderAbort:
			issue = e.Kind
		}
		if err != nil {
			return issue, err
		}
	}
	return issue, nil
}

// flush writes t.out with one Write: a header and a body in two would wait for
// the peer's delayed acknowledgement, 40 ms each time.
func (t *transport) flush() error {
	if t.mute {
		return ErrAssociationClosed
	}
	t.conn.SetWriteDeadline(time.Now().Add(t.writing))
	if t.canceled.Load() {
		return ErrTimeout
	}
	_, err := t.conn.Write(t.out)
	t.mute = err != nil
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: the peer took no data for %v", ErrTimeout, t.writing)
	}
	return err
}

// sendCommand writes one command set as one Write, in as many fragments as the
// peer's maximum length asks for.
func (t *transport) sendCommand(contextID byte, c *dimse.Command, peerMax uint32, scratch []byte) ([]byte, error) {
	scratch, err := c.Append(scratch[:0])
	if err != nil {
		return scratch, err
	}
	t.out = t.out[:0]
	for rest := scratch; ; {
		n := min(len(rest), fragmentSize(peerMax))
		t.out = pdu.Header{Type: pdu.TypeDataTF, Length: uint32(pdu.PDVHeaderSize + n)}.Append(t.out)
		t.out = pdu.PDVHeader{Length: uint32(n), ContextID: contextID, Command: true, Last: n == len(rest)}.Append(t.out)
		t.out = append(t.out, rest[:n]...)
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
	}
	_, err = t.step(ul.Event{Kind: ul.DataRequest})
	return scratch, err
}

// fragmentSize is how many data bytes, an even number, go into one P-DATA-TF.
func fragmentSize(peerMax uint32) int {
	if peerMax == 0 || peerMax > DefaultMaxPDULength {
		peerMax = DefaultMaxPDULength
	}
	return int(peerMax-pdu.PDVHeaderSize) &^ 1
}

// fail ends the association because of err, as PS3.8 asks: what the peer did
// wrong is an A-ABORT from the provider, anything else one from the user. It
// returns the cause to report.
func (t *transport) fail(err error) error {
	var broken *pdu.Error
	var wrong *protocolError
	var aborted *AbortError
	var ne net.Error
	switch {
	case errors.As(err, &aborted):
		return err // both sides know already
	case errors.As(err, &broken):
		return t.abort(ul.Event{Kind: ul.InvalidPDU, Reason: broken.Reason}, err)
	case errors.As(err, &wrong):
		return t.abort(ul.Event{Kind: ul.InvalidPDU, Reason: wrong.reason}, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.As(err, &ne):
		t.step(ul.Event{Kind: ul.TransportClosed})
		return fmt.Errorf("connection lost: %w", err)
	default:
		return t.abort(ul.Event{Kind: ul.AbortRequest}, err)
	}
}

func (t *transport) abort(ev ul.Event, cause error) error {
	if t.m.State() == ul.Sta2 && ev.Kind == ul.AbortRequest {
		// The request never came: table 9-10 has ARTIM close the transport.
		t.step(ul.Event{Kind: ul.ARTIMExpired})
		return cause
	}
	source, reason := ul.SourceUser, byte(0)
	if ev.Kind == ul.InvalidPDU && t.m.State() != ul.Sta2 {
		source, reason = ul.SourceProvider, ev.Reason
	}
	if _, err := t.step(ev); err != nil {
		return cause
	}
	return &AbortError{Source: source, Reason: reason, Cause: cause}
}

// linger is Sta13: it waits, at most d, until the peer has closed, so that the
// last PDU is not lost in a reset, and closes. What still comes is dropped
// unparsed, which covers AA-6; AA-7 would only repeat the A-ABORT.
func (t *transport) linger(d time.Duration) {
	if t.m.State() == ul.Sta13 && !t.mute {
		t.mu.Lock()
		t.phase = phaseEnding
		if t.stop {
			d = min(d, stopLinger)
		}
		t.mu.Unlock()
		if half, ok := t.conn.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
		t.conn.SetReadDeadline(time.Now().Add(d))
		for n := 0; n < maxLinger; {
			k, err := t.conn.Read(t.buf)
			n += k
			if err != nil {
				break
			}
		}
		t.step(ul.Event{Kind: ul.TransportClosed})
	}
	t.conn.Close()
}

// raw is the connection to close from another goroutine: for TLS the one
// below, because closing TLS may wait for a write.
func (t *transport) raw() net.Conn {
	if tc, ok := t.conn.(*tls.Conn); ok {
		return tc.NetConn()
	}
	return t.conn
}
