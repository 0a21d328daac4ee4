// Package dicomnettest helps to test what speaks DICOM: a scripted [Peer] that
// sends any bytes, a [Recorder] that plays the receiving application, and an
// in-memory [Listener].
package dicomnettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/dicomnet/dimse"
	"github.com/diffdenoise/denoised/dicomnet/pdu"
)

// Listener hands out in-memory connections (net.Pipe): every write waits for
// its read, nothing is buffered, and deadlines follow a testing/synctest clock.
type Listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// NewListener returns an open listener.
func NewListener() *Listener {
	return &Listener{conns: make(chan net.Conn), done: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "memory" }
func (addr) String() string  { return "memory" }

// Dial opens a connection to the listener. Its signature fits
// dicomnet.Dialer.NetDial; network and address do not matter.
func (l *Listener) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		return nil, errors.New("dial memory: connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Object is one object that a [Recorder] was given.
type Object struct {
	Request dicomnet.StoreRequest
	Data    []byte
	Err     error // of the reader; nil means that the object is whole
	Status  dicomnet.Status
}

// Recorder is a Handler that accepts everything, or what its hooks want, and
// remembers it. Set the fields before use; methods are safe for concurrent use.
type Recorder struct {
	// Accept, if set, may refuse an association.
	Accept func(*dicomnet.AssociateRequest) error
	// OnStore, if set, takes the object instead of reading all of it into
	// memory; what it returns is recorded.
	OnStore func(context.Context, *dicomnet.StoreRequest, io.Reader) ([]byte, dicomnet.Status, error)
	// OnEcho, if set, answers C-ECHO.
	OnEcho func() dicomnet.Status

	mu       sync.Mutex
	requests []*dicomnet.AssociateRequest
	objects  []Object
	closed   []error
}

// Associate implements dicomnet.Handler.
func (r *Recorder) Associate(_ context.Context, req *dicomnet.AssociateRequest) (dicomnet.Session, error) {
	if r.Accept != nil {
		if err := r.Accept(req); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, req)
	return &recorded{r}, nil
}

type recorded struct{ r *Recorder }

func (s *recorded) Store(ctx context.Context, req *dicomnet.StoreRequest, rd io.Reader) dicomnet.Status {
	o := Object{Request: *req}
	if s.r.OnStore != nil {
		o.Data, o.Status, o.Err = s.r.OnStore(ctx, req, rd)
	} else if o.Data, o.Err = io.ReadAll(rd); o.Err != nil {
		o.Status = dicomnet.StatusProcessingFailure
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.r.objects = append(s.r.objects, o)
	return o.Status
}

func (s *recorded) Echo(context.Context) dicomnet.Status {
	if s.r.OnEcho != nil {
		return s.r.OnEcho()
	}
	return dicomnet.StatusSuccess
}

func (s *recorded) Close(cause error) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.r.closed = append(s.r.closed, cause)
}

// Objects returns what came so far, cut objects included, in order.
func (r *Recorder) Objects() []Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Object(nil), r.objects...)
}

// Whole returns the objects that came whole and were answered with success.
func (r *Recorder) Whole() []Object {
	var whole []Object
	for _, o := range r.Objects() {
		if o.Err == nil && o.Status.IsSuccess() {
			whole = append(whole, o)
		}
	}
	return whole
}

// Requests returns the accepted association requests, in order.
func (r *Recorder) Requests() []*dicomnet.AssociateRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*dicomnet.AssociateRequest(nil), r.requests...)
}

// Closed returns the causes of the associations that have ended, in order.
func (r *Recorder) Closed() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.closed...)
}

// Reset forgets everything recorded.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests, r.objects, r.closed = nil, nil, nil
}

// Peer is the other end of a connection, played by a test: it sends what it is
// told, however wrong, and says what it wants to get. A failed expectation ends
// the test. One goroutine at a time, except for writes: with an in-memory
// connection Send returns only once the other side has read.
type Peer struct {
	Conn net.Conn
	// Patience bounds every read and write; default 10 s.
	Patience time.Duration
	t        testing.TB
}

// NewPeer wraps a connection, which it closes at the end of the test.
func NewPeer(t testing.TB, conn net.Conn) *Peer {
	t.Cleanup(func() { conn.Close() })
	return &Peer{Conn: conn, Patience: 10 * time.Second, t: t}
}

// SendRaw sends bytes as they are, with one write. Errors are ignored: whether
// the other side still listens is for expectations to tell.
func (p *Peer) SendRaw(b []byte) {
	p.Conn.SetWriteDeadline(time.Now().Add(p.Patience))
	_, _ = p.Conn.Write(b)
}

// Send encodes and sends PDUs, with one write.
func (p *Peer) Send(pdus ...pdu.PDU) {
	p.t.Helper()
	p.SendRaw(Encode(p.t, pdus...))
}

// Encode returns the bytes of PDUs.
func Encode(t testing.TB, pdus ...pdu.PDU) []byte {
	t.Helper()
	var b []byte
	var err error
	for _, x := range pdus {
		if b, err = x.Append(b); err != nil {
			t.Fatalf("encode %v: %v", x.Type(), err)
		}
	}
	return b
}

// Read reads the next PDU, or the error that came instead.
func (p *Peer) Read() (pdu.PDU, error) {
	p.Conn.SetReadDeadline(time.Now().Add(p.Patience))
	return pdu.Read(p.Conn, 1<<30)
}

// Expect reads the next PDU and fails unless it is of type t.
func (p *Peer) Expect(t pdu.Type) pdu.PDU {
	p.t.Helper()
	got, err := p.Read()
	if err != nil {
		p.t.Fatalf("want %v, got %v", t, err)
	}
	if got.Type() != t {
		p.t.Fatalf("want %v, got %v: %+v", t, got.Type(), got)
	}
	return got
}

// ExpectAbort wants an A-ABORT with this source and reason, then the end.
func (p *Peer) ExpectAbort(source, reason byte) {
	p.t.Helper()
	got := p.Expect(pdu.TypeAbort).(*pdu.Abort)
	if got.Source != source || got.Reason != reason {
		p.t.Fatalf("want A-ABORT %d/%d, got %d/%d", source, reason, got.Source, got.Reason)
	}
	p.closeWrite()
	p.ExpectClosed()
}

func (p *Peer) closeWrite() {
	if half, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

// ExpectReject wants an A-ASSOCIATE-RJ with these three numbers.
func (p *Peer) ExpectReject(result, source, reason byte) {
	p.t.Helper()
	got := p.Expect(pdu.TypeAssociateRJ).(*pdu.AssociateRJ)
	if *got != (pdu.AssociateRJ{Result: result, Source: source, Reason: reason}) {
		p.t.Fatalf("want A-ASSOCIATE-RJ %d/%d/%d, got %+v", result, source, reason, got)
	}
}

// ExpectClosed wants the end of the connection, by FIN or RST, and no PDU.
func (p *Peer) ExpectClosed() {
	p.t.Helper()
	got, err := p.Read()
	var ne net.Error
	switch {
	case err == nil:
		p.t.Fatalf("want the connection closed, got %v: %+v", got.Type(), got)
	case errors.As(err, &ne) && ne.Timeout():
		p.t.Fatalf("want the connection closed, it is open after %v", p.Patience)
	}
}

// Request returns a plain association request: one context per abstract
// syntax, with IDs 1, 3, …, in Explicit and Implicit VR Little Endian.
func Request(abstractSyntaxes ...string) *pdu.AssociateRQ {
	rq := &pdu.AssociateRQ{
		ProtocolVersion: pdu.ProtocolVersion1, CalledAETitle: "CALLED", CallingAETitle: "PEER",
		ApplicationContext: pdu.ApplicationContext,
		User:               pdu.UserInformation{MaxLength: 16384, ImplementationClassUID: "1.2.3.4", ImplementationVersionName: "PEER"},
	}
	for i, a := range abstractSyntaxes {
		rq.Contexts = append(rq.Contexts, pdu.ContextRQ{ID: byte(2*i + 1), AbstractSyntax: a,
			TransferSyntaxes: []string{dicomnet.ExplicitVRLittleEndian, dicomnet.ImplicitVRLittleEndian}})
	}
	return rq
}

// Associate sends rq and wants an A-ASSOCIATE-AC.
func (p *Peer) Associate(rq *pdu.AssociateRQ) *pdu.AssociateAC {
	p.t.Helper()
	p.Send(rq)
	return p.Expect(pdu.TypeAssociateAC).(*pdu.AssociateAC)
}

// Command returns the fragment of a whole command set.
func Command(t testing.TB, contextID byte, c *dimse.Command) pdu.PDV {
	t.Helper()
	b, err := c.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return pdu.PDV{ContextID: contextID, Command: true, Last: true, Data: b}
}

// StoreRQ returns a C-STORE-RQ for an object that follows.
func StoreRQ(messageID uint16, class, instance string) *dimse.Command {
	return &dimse.Command{Field: dimse.CStoreRQ, MessageID: messageID, AffectedSOPClassUID: class, AffectedSOPInstanceUID: instance}
}

// SendStore sends one object on a context: the command, then fragments of at
// most size bytes, one per PDU.
func (p *Peer) SendStore(contextID byte, rq *dimse.Command, data []byte, size int) {
	p.t.Helper()
	p.Send(&pdu.DataTF{PDVs: []pdu.PDV{Command(p.t, contextID, rq)}})
	for len(data) > size {
		p.Send(&pdu.DataTF{PDVs: []pdu.PDV{{ContextID: contextID, Data: data[:size]}}})
		data = data[size:]
	}
	p.Send(&pdu.DataTF{PDVs: []pdu.PDV{{ContextID: contextID, Last: true, Data: data}}})
}

// ExpectResponse reads a response of one fragment or more.
func (p *Peer) ExpectResponse() *dimse.Command {
	p.t.Helper()
	var all []byte
	for {
		for _, v := range p.Expect(pdu.TypeDataTF).(*pdu.DataTF).PDVs {
			if !v.Command {
				p.t.Fatal("want a response, got a data set")
			}
			all = append(all, v.Data...)
			if v.Last {
				c, err := dimse.Decode(all)
				if err != nil {
					p.t.Fatal(err)
				}
				return c
			}
		}
	}
}

// ExpectStatus reads a response and fails unless its status is this.
func (p *Peer) ExpectStatus(want dimse.Status) *dimse.Command {
	p.t.Helper()
	c := p.ExpectResponse()
	if c.Status != want {
		p.t.Fatalf("want status %v, got %v", want, c.Status)
	}
	return c
}

// Accept plays the called side: it wants an A-ASSOCIATE-RQ and accepts all its
// contexts with the first transfer syntax offered.
func (p *Peer) Accept() *pdu.AssociateRQ {
	p.t.Helper()
	rq := p.Expect(pdu.TypeAssociateRQ).(*pdu.AssociateRQ)
	p.Send(Acceptance(rq))
	return rq
}

// Acceptance returns what [Peer.Accept] answers.
func Acceptance(rq *pdu.AssociateRQ) *pdu.AssociateAC {
	ac := &pdu.AssociateAC{
		ProtocolVersion: pdu.ProtocolVersion1, CalledAETitle: rq.CalledAETitle, CallingAETitle: rq.CallingAETitle,
		ApplicationContext: pdu.ApplicationContext,
		User:               pdu.UserInformation{MaxLength: 16384, ImplementationClassUID: "1.2.3.4"},
	}
	for _, c := range rq.Contexts {
		ac.Contexts = append(ac.Contexts, pdu.ContextAC{ID: c.ID, TransferSyntax: c.TransferSyntaxes[0]})
	}
	return ac
}

// ReadStore plays the called side of one C-STORE up to its end: it returns the
// request, the data set and the length of every fragment of it.
func (p *Peer) ReadStore() (rq *dimse.Command, data []byte, sizes []int) {
	p.t.Helper()
	var command []byte
	for {
		for _, v := range p.Expect(pdu.TypeDataTF).(*pdu.DataTF).PDVs {
			if v.Command {
				command = append(command, v.Data...)
				continue
			}
			data = append(data, v.Data...)
			sizes = append(sizes, len(v.Data))
			if v.Last {
				rq, err := dimse.Decode(command)
				if err != nil {
					p.t.Fatal(err)
				}
				return rq, data, sizes
			}
		}
	}
}

// Respond answers a request on a context.
func (p *Peer) Respond(contextID byte, rq *dimse.Command, status dimse.Status) {
	p.t.Helper()
	p.Send(&pdu.DataTF{PDVs: []pdu.PDV{Command(p.t, contextID, Response(rq, status))}})
}

// Response returns the response to a request.
func Response(rq *dimse.Command, status dimse.Status) *dimse.Command {
	return &dimse.Command{Field: rq.Field.Response(), MessageIDBeingRespondedTo: rq.MessageID, DataSetType: dimse.NoDataSet,
		Status: status, AffectedSOPClassUID: rq.AffectedSOPClassUID, AffectedSOPInstanceUID: rq.AffectedSOPInstanceUID}
}

// Release asks for an orderly end and wants it.
func (p *Peer) Release() {
	p.t.Helper()
	p.Send(&pdu.ReleaseRQ{})
	p.Expect(pdu.TypeReleaseRP)
	p.Conn.Close()
}

// Pattern returns n bytes in which every position can be told from its neighbours.
func Pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

// Same explains the first difference between two data sets, or returns "".
func Same(got, want []byte) string {
	if bytes.Equal(got, want) {
		return ""
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d of %d is 0x%02X, want 0x%02X", i, len(want), got[i], want[i])
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}
