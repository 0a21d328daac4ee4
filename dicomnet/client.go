package dicomnet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/dicomnet/dimse"
	"github.com/diffdenoise/denoised/dicomnet/pdu"
	"github.com/diffdenoise/denoised/dicomnet/ul"
)

// DialTimeouts bounds how long the called side may take.
type DialTimeouts struct {
	Connect  time.Duration // TCP and TLS; default 10 s
	Response time.Duration // for each answer, and for taking each PDU; default 120 s
	Release  time.Duration // for the answer to a release; default 10 s
}

// Dialer opens associations. The zero value works but for CalledAETitle. It is
// safe for concurrent use as long as nobody changes it.
type Dialer struct {
	CallingAETitle string // default DENOISED
	CalledAETitle  string // required, ≤ 16 bytes
	MaxPDULength   uint32 // announced, 4 KiB to 16 MiB; default 131072. What is sent obeys the peer's
	// VersionName is announced as Implementation Version Name, ≤ 16 bytes; default
	// [ImplementationVersionName].
	VersionName string
	TLSConfig   *tls.Config
	Timeouts    DialTimeouts
	Logger      *zap.Logger // default none

	// NetDial opens the transport; default TCP.
	NetDial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Dial connects to address, host:port, and proposes contexts; an ID of 0 is
// given out in order. Errors: *RejectError when the peer refused (see its
// Transient), *AbortError, ErrTimeout, or the network's. An association
// without any accepted context is not an error: see [Association.Accepts].
func (d *Dialer) Dial(ctx context.Context, address string, contexts []PresentationContext) (*Association, error) {
	a, err := d.dial(ctx, address, contexts)
	if err != nil {
		return nil, fmt.Errorf("associate with %q at %s: %w", d.CalledAETitle, address, err)
	}
	return a, nil
}

func (d *Dialer) dial(ctx context.Context, address string, contexts []PresentationContext) (*Association, error) {
	timeouts := d.Timeouts
	orDefault(&timeouts.Connect, 10*time.Second)
	orDefault(&timeouts.Response, 120*time.Second)
	orDefault(&timeouts.Release, 10*time.Second)
	maxPDU := d.MaxPDULength
	if maxPDU == 0 {
		maxPDU = DefaultMaxPDULength
	}
	maxPDU = min(max(maxPDU, minPDULength), maxPDULength)
	log := d.Logger
	if log == nil {
		log = zap.NewNop()
	}
	calling := d.CallingAETitle
	if calling == "" {
		calling = "DENOISED"
	}
	rq := &pdu.AssociateRQ{
		ProtocolVersion: pdu.ProtocolVersion1, CalledAETitle: d.CalledAETitle, CallingAETitle: calling,
		ApplicationContext: pdu.ApplicationContext,
		User: pdu.UserInformation{MaxLength: maxPDU,
			ImplementationClassUID: ImplementationClassUID, ImplementationVersionName: d.VersionName},
	}
	if rq.User.ImplementationVersionName == "" {
		rq.User.ImplementationVersionName = ImplementationVersionName
	}
	var err error
	if rq.Contexts, err = number(contexts); err != nil {
		return nil, err
	}
	first, err := rq.Append(nil)
	if err != nil {
		return nil, err
	}
	conn, err := d.connect(ctx, address, timeouts.Connect)
	if err != nil {
		return nil, err
	}
	a := &Association{
		t: newTransport(conn, maxPDU, timeouts.Response, timeouts.Response), timeouts: timeouts,
		log: log.With(zap.String("called", d.CalledAETitle), zap.String("address", address)),
	}
	a.t.out = first
	if err := a.open(ctx, rq); err != nil {
		return nil, err
	}
	return a, nil
}

// number checks the contexts and gives out missing IDs.
func number(contexts []PresentationContext) ([]pdu.ContextRQ, error) {
	if len(contexts) == 0 || len(contexts) > pdu.MaxContexts {
		return nil, fmt.Errorf("%d presentation contexts are not in 1..%d", len(contexts), pdu.MaxContexts)
	}
	var used [256]bool
	for _, c := range contexts {
		if c.ID != 0 && (c.ID%2 == 0 || used[c.ID]) {
			return nil, fmt.Errorf("presentation context ID %d is even or given twice", c.ID)
		}
		used[c.ID] = true
	}
	next := byte(1)
	out := make([]pdu.ContextRQ, 0, len(contexts))
	for _, c := range contexts {
		if c.ID == 0 {
			for used[next] {
				next += 2
			}
			c.ID = next
			used[next] = true
		}
		if len(c.TransferSyntaxes) == 0 {
			return nil, fmt.Errorf("presentation context for %s offers no transfer syntax", uidName(c.AbstractSyntax))
		}
		out = append(out, pdu.ContextRQ(c))
	}
	return out, nil
}

func (d *Dialer) connect(ctx context.Context, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dial := d.NetDial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	conn, err := dial(ctx, "tcp", address)
	if err == nil && d.TLSConfig != nil {
		cfg := d.TLSConfig.Clone()
		if cfg.ServerName == "" {
			cfg.ServerName, _, _ = net.SplitHostPort(address)
		}
		tc := tls.Client(conn, cfg)
		if err = tc.HandshakeContext(ctx); err != nil {
			conn.Close()
			err = fmt.Errorf("TLS handshake: %w", err)
		}
		conn = tc
	}
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: no connection for %v: %w", ErrTimeout, timeout, err)
	}
	return conn, err
}

// Association is an open association as its requestor. Calls are taken one
// after the other; Abort may come at any time from any goroutine. After any
// error but [ErrNotAccepted] the association is aborted and closed: what was
// being sent may have arrived or not, and only a new association can tell.
type Association struct {
	timeouts DialTimeouts
	log      *zap.Logger
	peerMax  uint32
	peer     Implementation
	accepted []acceptedContextID

	busy   sync.Mutex // held during a call
	t      *transport
	closed bool
	nextID uint16
	cmd    []byte
	data   []byte

	done     context.Context // ends with Abort
	abortAll context.CancelFunc
}

// Implementation is what a peer calls itself (PS3.7 annex D.3.3.2). Nothing of it
// is verified; empty where it said nothing.
type Implementation struct{ ClassUID, VersionName string }

// Peer is what the called side called itself.
func (a *Association) Peer() Implementation { return a.peer }

type acceptedContextID struct {
	acceptedContext
	id byte
}

// open runs the association request, which stands encoded in a.t.out.
func (a *Association) open(ctx context.Context, rq *pdu.AssociateRQ) error {
	a.done, a.abortAll = context.WithCancel(context.Background())
	a.t.step(ul.Event{Kind: ul.AssociateRequest})
	return a.call(ctx, func() error {
		a.t.until = time.Now().Add(a.timeouts.Response)
		if _, err := a.t.step(ul.Event{Kind: ul.TransportConfirm}); err != nil {
			return err
		}
		h, err := a.t.header()
		if err == ErrTimeout {
			err = fmt.Errorf("%w: no answer for %v", ErrTimeout, a.timeouts.Response)
		}
		if err != nil {
			return cut(err)
		}
		if h.Type == pdu.TypeDataTF {
			return violation(pdu.ReasonUnexpectedPDU, "%v before the association", h.Type)
		}
		p, err := a.t.body(h)
		if err != nil {
			return err
		}
		ac, ok := p.(*pdu.AssociateAC)
		if ok {
			// Checked first: an invalid answer is event 19, not 3.
			if err := a.adopt(rq, ac); err != nil {
				return err
			}
		}
		issue, err := a.t.step(ul.Event{Kind: eventOf(p.Type())})
		if err != nil {
			return err
		}
		switch issue {
		case ul.IssueAccepted:
			return nil
		case ul.IssueRejected:
			rj := p.(*pdu.AssociateRJ)
			return &RejectError{RejectResult(rj.Result), RejectSource(rj.Source), rj.Reason}
		case ul.IssueAbort:
			ab := p.(*pdu.Abort)
			return &AbortError{Source: ab.Source, Reason: ab.Reason, ByPeer: true}
		}
		return &AbortError{Source: ul.SourceProvider, Reason: pdu.ReasonUnexpectedPDU,
			Cause: violation(pdu.ReasonUnexpectedPDU, "unexpected %v", p.Type())}
	})
}

// adopt takes what the peer accepted, if it was offered.
func (a *Association) adopt(rq *pdu.AssociateRQ, ac *pdu.AssociateAC) error {
	if n := ac.User.MaxLength; ac.User.HasMaxLength && n > 0 && n < pdu.MinMaxLength {
		return violation(pdu.ReasonInvalidParameter, "maximum length %d is less than %d", n, pdu.MinMaxLength)
	}
	a.peer = Implementation{ac.User.ImplementationClassUID, ac.User.ImplementationVersionName}
	a.peerMax = ac.User.MaxLength
	if !ac.User.HasMaxLength {
		a.peerMax = 16 << 10
	}
	offered := make(map[byte]pdu.ContextRQ, len(rq.Contexts))
	for _, c := range rq.Contexts {
		offered[c.ID] = c
	}
	for _, c := range ac.Contexts {
		o, ok := offered[c.ID]
		if !ok {
			return violation(pdu.ReasonInvalidParameter, "the peer answered presentation context %d, which was not offered", c.ID)
		}
		if c.Result != pdu.Accepted {
			a.log.Info("presentation context refused", zap.String("abstract_syntax", uidName(o.AbstractSyntax)),
				zap.Strings("transfer_syntaxes", uidNames(o.TransferSyntaxes)), zap.Stringer("result", c.Result))
			continue
		}
		found := false
		for _, ts := range o.TransferSyntaxes {
			found = found || ts == c.TransferSyntax
		}
		if !found {
			return violation(pdu.ReasonInvalidParameter, "the peer chose a transfer syntax for context %d that was not offered", c.ID)
		}
		a.accepted = append(a.accepted, acceptedContextID{acceptedContext{o.AbstractSyntax, c.TransferSyntax}, c.ID})
	}
	return nil
}

// call runs f with the association to itself, ended early by ctx or Abort. Any
// error ends the association.
func (a *Association) call(ctx context.Context, f func() error) error {
	a.busy.Lock()
	defer a.busy.Unlock()
	if a.closed {
		return ErrAssociationClosed
	}
	defer context.AfterFunc(ctx, a.t.cancel)()
	defer context.AfterFunc(a.done, a.t.cancel)()
	err := ctx.Err()
	if err == nil {
		err = f()
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	case a.done.Err() != nil:
		err = fmt.Errorf("%w: aborted", ErrAssociationClosed)
	}
	return a.end(err)
}

// end aborts the association because of err, unless it has ended already, and
// closes it.
func (a *Association) end(err error) error {
	a.closed = true
	defer a.abortAll()
	a.t.canceled.Store(false) // the A-ABORT may still go out, if no PDU was cut
	a.t.writing = min(a.t.writing, stopLinger)
	cause := a.t.fail(err)
	a.t.linger(stopLinger)
	return cause
}

// Accepts reports whether the peer takes objects of this SOP class in this
// transfer syntax.
func (a *Association) Accepts(sopClass, transferSyntax string) bool {
	_, ok := a.context(sopClass, transferSyntax)
	return ok
}

func (a *Association) context(sopClass, transferSyntax string) (id byte, ok bool) {
	for _, c := range a.accepted {
		if c.abstract == sopClass && (c.transfer == transferSyntax || transferSyntax == "") {
			return c.id, true
		}
	}
	return 0, false
}

// Echo sends a C-ECHO and returns the peer's status. It needs an accepted
// context for [VerificationSOPClass].
func (a *Association) Echo(ctx context.Context) (Status, error) {
	id, ok := a.context(VerificationSOPClass, "")
	if !ok {
		return 0, fmt.Errorf("C-ECHO: %w", ErrNotAccepted)
	}
	var status Status
	err := a.call(ctx, func() (err error) {
		rq := &dimse.Command{Field: dimse.CEchoRQ, MessageID: a.messageID(0), DataSetType: dimse.NoDataSet,
			AffectedSOPClassUID: VerificationSOPClass}
		if a.cmd, err = a.t.sendCommand(id, rq, a.peerMax, a.cmd); err == nil {
			status, err = a.response(id, rq)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("C-ECHO: %w", err)
	}
	return status, nil
}

// Store sends the object that r holds, the bare data set in
// req.TransferSyntaxUID, and returns the peer's status: the object is stored
// only if that is success or a warning. A MessageID of 0 is given out. An
// error means that nothing is known about the object.
func (a *Association) Store(ctx context.Context, req *StoreRequest, r io.Reader) (Status, error) {
	id, ok := a.context(req.SOPClassUID, req.TransferSyntaxUID)
	if !ok {
		return 0, fmt.Errorf("C-STORE of %s, %s: %w", uidName(req.SOPClassUID), uidName(req.TransferSyntaxUID), ErrNotAccepted)
	}
	var status Status
	err := a.call(ctx, func() (err error) {
		status, err = a.store(id, req, r)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("C-STORE of %s: %w", uidName(req.SOPInstanceUID), err)
	}
	return status, nil
}

func (a *Association) store(id byte, req *StoreRequest, r io.Reader) (Status, error) {
	const head = pdu.HeaderSize + pdu.PDVHeaderSize
	rq := &dimse.Command{
		Field: dimse.CStoreRQ, MessageID: a.messageID(req.MessageID), Priority: req.Priority, DataSetType: 0,
		AffectedSOPClassUID: req.SOPClassUID, AffectedSOPInstanceUID: req.SOPInstanceUID,
		MoveOriginatorAETitle: req.MoveOriginatorAETitle, MoveOriginatorMessageID: req.MoveOriginatorMessageID,
	}
	// One byte more than a fragment is read, to know which fragment is the last:
	// an empty one at the end would make some peers abort. The first is read
	// before anything is sent.
	size := fragmentSize(a.peerMax)
	if a.data == nil {
		a.data = make([]byte, head+size+1)
	}
	n, err := io.ReadFull(r, a.data[head:])
	if n == 0 && err == io.EOF {
		return 0, errors.New("the data set is empty")
	}
	for sent := false; ; {
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return 0, fmt.Errorf("read the data set: %w", err)
		}
		if !sent {
			if a.cmd, err = a.t.sendCommand(id, rq, a.peerMax, a.cmd); err != nil {
				return 0, err
			}
			sent = true
		}
		part := min(n, size)
		h := pdu.Header{Type: pdu.TypeDataTF, Length: uint32(pdu.PDVHeaderSize + part)}.Append(a.data[:0])
		pdu.PDVHeader{Length: uint32(part), ContextID: id, Last: last}.Append(h)
		out := a.t.out
		a.t.out = a.data[:head+part]
		_, err = a.t.step(ul.Event{Kind: ul.DataRequest})
		a.t.out = out
		if err != nil {
			return 0, err
		}
		if last {
			return a.response(id, rq)
		}
		a.data[head] = a.data[head+size]
		n, err = io.ReadFull(r, a.data[head+1:])
		n++
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
}

func (a *Association) messageID(wanted uint16) uint16 {
	if wanted != 0 {
		return wanted
	}
	if a.nextID++; a.nextID == 0 {
		a.nextID = 1
	}
	return a.nextID
}

// response waits for the answer to rq and checks that it is one.
func (a *Association) response(id byte, rq *dimse.Command) (Status, error) {
	a.t.until = time.Now().Add(a.timeouts.Response)
	first, err := a.t.nextFragment()
	if err == nil {
		a.cmd, err = a.t.command(first, a.cmd)
	}
	if err == ErrTimeout {
		err = fmt.Errorf("%w: no response for %v", ErrTimeout, a.timeouts.Response)
	}
	if err != nil {
		return 0, cut(err)
	}
	rsp, err := dimse.Decode(a.cmd)
	if err != nil {
		return 0, err
	}
	wrong := func(format string, args ...any) (Status, error) {
		return 0, violation(pdu.ReasonUnexpectedParameter, format, args...)
	}
	switch {
	case first.ContextID != id:
		return wrong("response on presentation context %d instead of %d", first.ContextID, id)
	case rsp.Field != rq.Field.Response():
		return wrong("%v instead of a response to %v", rsp.Field, rq.Field)
	case rsp.Has&dimse.HasMessageIDBeingRespondedTo == 0 || rsp.MessageIDBeingRespondedTo != rq.MessageID:
		return wrong("response to message %d instead of %d", rsp.MessageIDBeingRespondedTo, rq.MessageID)
	case rsp.Has&dimse.HasStatus == 0:
		return wrong("response without a status")
	case rsp.Status.IsPending():
		return wrong("%v in answer to %v", rsp.Status, rq.Field) // never the last word, and nothing else follows
	case rsp.Has&dimse.HasDataSetType != 0 && rsp.HasDataSet():
		return wrong("response with a data set")
	case rsp.AffectedSOPClassUID != "" && rsp.AffectedSOPClassUID != rq.AffectedSOPClassUID:
		return wrong("response for another SOP class")
	case rsp.AffectedSOPInstanceUID != "" && rsp.AffectedSOPInstanceUID != rq.AffectedSOPInstanceUID:
		return wrong("response for another SOP instance")
	}
	if rsp.Status.IsFailure() || rsp.Status.IsWarning() {
		a.log.Warn("response", zap.Stringer("to", rq.Field), zap.String("sop_instance", rq.AffectedSOPInstanceUID),
			zap.Stringer("status", rsp.Status))
	}
	return rsp.Status, nil
}

// Release ends the association in order and closes it.
func (a *Association) Release(ctx context.Context) error {
	err := a.call(ctx, func() error {
		if _, err := a.t.step(ul.Event{Kind: ul.ReleaseRequest}); err != nil {
			return err
		}
		a.t.until = time.Now().Add(a.timeouts.Release)
		for a.t.m.State() != ul.Sta1 {
			_, err := a.t.nextFragment()
			switch {
			case err == errReleased: // both sides asked at once (AR-8)
				_, err = a.t.step(ul.Event{Kind: ul.ReleaseResponse})
			case err == nil: // late data (AR-6)
				err = a.t.skip()
			}
			if err == ErrTimeout {
				err = fmt.Errorf("%w: no answer for %v", ErrTimeout, a.timeouts.Release)
			}
			if err != nil {
				return cut(err)
			}
		}
		a.closed = true
		a.abortAll()
		return nil
	})
	if err != nil {
		return fmt.Errorf("release the association: %w", err)
	}
	return nil
}

// Abort ends the association at once, also in the middle of a call, which then
// fails, and closes it. It may be called at any time and more than once.
func (a *Association) Abort() error {
	a.abortAll()
	a.busy.Lock()
	defer a.busy.Unlock()
	if !a.closed {
		a.end(ErrAssociationClosed)
	}
	return nil
}
