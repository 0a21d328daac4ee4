package dicomnet

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/dicomnet/dimse"
	"github.com/diffdenoise/denoised/dicomnet/pdu"
	"github.com/diffdenoise/denoised/dicomnet/ul"
)

// serverConn is one connection of a Server, served by one goroutine.
type serverConn struct {
	s    *Server
	t    *transport
	addr net.Addr
	host string

	// Guarded by s.mu.
	holds    bool  // a place among the associations
	reserved int64 // bytes of a large request
	stranger *list.Element

	ctx       context.Context
	log       *zap.Logger
	session   Session
	accepted  map[byte]acceptedContext
	peerMax   uint32
	cmd, rsp  []byte // scratch
	reader    objectReader
	objects   int64
	bytesIn   int64
	startedAt time.Time
}

type acceptedContext struct{ abstract, transfer string }

// serve is the whole life of a connection.
func (c *serverConn) serve() {
	ctx, cancel := context.WithCancel(c.s.ctx)
	c.ctx = ctx
	defer c.s.forget(c)
	defer c.t.recycle()
	defer cancel()
	defer c.t.conn.Close()
	defer func() {
		if r := recover(); r != nil {
			c.panicked("serving the association", r)
			cause := c.t.fail(fmt.Errorf("panic: %v", r))
			if c.session != nil {
				c.closeSession(cause)
			}
		}
	}()

	rq, err := c.request()
	if err != nil {
		c.s.unreserve(c)
		c.s.stats.probes.Add(1)
		c.s.noise.log(c.s.Logger, "connection without an association request", c.addr, err)
		c.t.fail(err)
		c.t.linger(min(c.s.Timeouts.Release, stopLinger))
		return
	}
	err = c.associate(rq)
	c.s.unreserve(c) // the request is garbage from here on
	if err != nil {
		c.s.release(c)
		c.t.linger(c.s.Timeouts.Release)
		return
	}
	err = c.messages()
	c.s.release(c)
	cancel()
	cause := c.finish(err)
	c.closeSession(cause)
	c.t.linger(c.s.Timeouts.Release)
}

func (c *serverConn) panicked(doing string, r any) {
	c.s.stats.panics.Add(1)
	c.s.Logger.Error("panic while "+doing, zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
}

// request waits for the whole A-ASSOCIATE-RQ.
func (c *serverConn) request() (*pdu.AssociateRQ, error) {
	c.t.until = time.Now().Add(c.s.Timeouts.Request)
	if _, err := c.t.step(ul.Event{Kind: ul.TransportIndication}); err != nil {
		return nil, err
	}
	if tc, ok := c.t.conn.(*tls.Conn); ok {
		c.t.conn.SetDeadline(c.t.until)
		if err := tc.HandshakeContext(c.ctx); err != nil {
			c.t.mute = true // there is no channel to abort on
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
	}
	h, err := c.t.header()
	if err != nil {
		return nil, err
	}
	if h.Type != pdu.TypeAssociateRQ {
		return nil, violation(pdu.ReasonUnexpectedPDU, "%v before an association", h.Type)
	}
	if h.Length > smallBuffer && !c.s.reserve(c, int64(h.Length)) {
		return nil, errors.New("too many large association requests at once")
	}
	p, err := c.t.body(h)
	if err != nil {
		return nil, err
	}
	rq := p.(*pdu.AssociateRQ)
	if n := rq.User.MaxLength; rq.User.HasMaxLength && n > 0 && n < pdu.MinMaxLength {
		return nil, violation(pdu.ReasonInvalidParameter, "maximum length %d is less than %d", n, pdu.MinMaxLength)
	}
	return rq, nil
}

// associate answers the request. Without an error the association is established.
func (c *serverConn) associate(rq *pdu.AssociateRQ) error {
	c.log = c.s.Logger.With(zap.Stringer("remote", c.addr),
		zap.String("calling", rq.CallingAETitle), zap.String("called", rq.CalledAETitle))
	var provider *RejectError // refusals by the provider itself, AE-6
	switch {
	case rq.ProtocolVersion&pdu.ProtocolVersion1 == 0:
		provider = RejectProtocolVersion
	case !c.s.acquire(c):
		provider = RejectLocalLimit
	}
	if provider != nil {
		return c.reject(ul.Event{Kind: ul.AssociateRQReceived, Refuse: true}, provider)
	}
	if !c.t.busy() {
		return c.t.fail(errShutdown)
	}
	if _, err := c.t.step(ul.Event{Kind: ul.AssociateRQReceived}); err != nil {
		return err
	}
	switch {
	case rq.ApplicationContext != pdu.ApplicationContext:
		return c.reject(ul.Event{Kind: ul.AssociateReject}, RejectApplicationContext)
	case rq.CallingAETitle == "" || !validTitle(rq.CallingAETitle):
		return c.reject(ul.Event{Kind: ul.AssociateReject}, RejectCallingAETitle)
	case !validTitle(rq.CalledAETitle):
		return c.reject(ul.Event{Kind: ul.AssociateReject}, RejectCalledAETitle)
	case len(rq.Contexts) == 0:
		return c.reject(ul.Event{Kind: ul.AssociateReject}, RejectNoReason)
	}
	req := &AssociateRequest{
		CallingAETitle: rq.CallingAETitle, CalledAETitle: rq.CalledAETitle, RemoteAddr: c.addr,
		MaxPDULength: rq.User.MaxLength, ImplementationClassUID: rq.User.ImplementationClassUID,
		ImplementationVersionName: rq.User.ImplementationVersionName,
	}
	if tc, ok := c.t.conn.(*tls.Conn); ok {
		state := tc.ConnectionState()
		req.TLS = &state
	}
	for _, pc := range rq.Contexts {
		req.Contexts = append(req.Contexts, PresentationContext(pc))
	}
	session, err := c.s.Handler.Associate(c.ctx, req)
	if err != nil {
		return c.refuse(err)
	}
	c.session = session
	c.peerMax = rq.User.MaxLength
	if !rq.User.HasMaxLength {
		c.peerMax = 16 << 10 // mandatory but absent: what most peers take
	}
	if err := c.accept(rq, req.Contexts); err != nil {
		err = c.t.fail(err)
		c.s.stats.aborted.Add(1)
		c.closeSession(err)
		return err
	}
	return nil
}

// validTitle refuses control characters, which no AE title has (PS3.5 6.2). Characters beyond
// ASCII are let through, as titles are compared byte by byte.
func validTitle(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7F })
}

// refuse answers a request that the handler does not want.
func (c *serverConn) refuse(err error) error {
	var rj *RejectError
	if errors.As(err, &rj) {
		return c.reject(ul.Event{Kind: ul.AssociateReject}, rj)
	}
	c.s.stats.rejected.Add(1)
	c.log.Warn("association aborted by the handler", zap.Error(err))
	return c.t.fail(err)
}

func (c *serverConn) reject(ev ul.Event, rj *RejectError) error {
	c.s.release(c)
	c.s.stats.rejected.Add(1)
	c.log.Info("association rejected", zap.Error(rj))
	c.t.out, _ = (&pdu.AssociateRJ{Result: byte(rj.Result), Source: byte(rj.Source), Reason: rj.Reason}).Append(c.t.out[:0])
	if _, err := c.t.step(ev); err != nil {
		c.t.fail(err)
	}
	return rj
}

// accept sends the A-ASSOCIATE-AC.
func (c *serverConn) accept(rq *pdu.AssociateRQ, offered []PresentationContext) error {
	ac := &pdu.AssociateAC{
		ProtocolVersion: pdu.ProtocolVersion1, CalledAETitle: rq.CalledAETitle, CallingAETitle: rq.CallingAETitle,
		ApplicationContext: pdu.ApplicationContext,
		User: pdu.UserInformation{MaxLength: c.s.MaxPDULength,
			ImplementationClassUID: ImplementationClassUID, ImplementationVersionName: c.s.VersionName},
	}
	c.accepted = make(map[byte]acceptedContext, len(offered))
	for _, pc := range offered {
		result, ts := c.s.Negotiate(pc)
		if result == ContextAccepted {
			c.accepted[pc.ID] = acceptedContext{pc.AbstractSyntax, ts}
		} else {
			c.log.Info("presentation context refused", zap.String("abstract_syntax", uidName(pc.AbstractSyntax)),
				zap.Strings("transfer_syntaxes", uidNames(pc.TransferSyntaxes)), zap.Stringer("result", result))
			ts = ImplicitVRLittleEndian // means nothing, but has to be there
		}
		ac.Contexts = append(ac.Contexts, pdu.ContextAC{ID: pc.ID, Result: result, TransferSyntax: ts})
	}
	var err error
	if c.t.out, err = ac.Append(c.t.out[:0]); err != nil {
		return err
	}
	if _, err := c.t.step(ul.Event{Kind: ul.AssociateAccept}); err != nil {
		return err
	}
	c.s.stats.accepted.Add(1)
	c.startedAt = time.Now()
	c.log.Info("association accepted", zap.Int("contexts", len(offered)), zap.Int("accepted", len(c.accepted)),
		zap.Uint32("peer_max_pdu", c.peerMax), zap.String("implementation", rq.User.ImplementationVersionName))
	return nil
}

// messages serves one message after the other. It returns errReleased when the
// peer asked to release.
func (c *serverConn) messages() error {
	for {
		if err := c.t.awaitMessage(c.s.Timeouts.Idle, c.s.Timeouts.Store); err != nil {
			return err
		}
		first, err := c.t.nextFragment()
		if err != nil {
			return err
		}
		if !first.Command {
			return violation(pdu.ReasonUnexpectedParameter, "a data set without a command")
		}
		pc, ok := c.accepted[first.ContextID]
		if !ok {
			return violation(pdu.ReasonInvalidParameter, "presentation context %d is not accepted", first.ContextID)
		}
		if c.cmd, err = c.t.command(first, c.cmd); err != nil {
			return err
		}
		cmd, err := dimse.Decode(c.cmd)
		if err != nil {
			return err
		}
		if err := c.dispatch(cmd, first.ContextID, pc); err != nil {
			return err
		}
	}
}

// dispatch serves one message.
func (c *serverConn) dispatch(cmd *dimse.Command, id byte, pc acceptedContext) error {
	if cmd.Field == dimse.CCancelRQ {
		return nil // nothing here can be cancelled, and it has no response (PS3.7 9.3.2.3)
	}
	if cmd.Field.IsResponse() {
		return violation(pdu.ReasonUnexpectedParameter, "%v without a request", cmd.Field)
	}
	if cmd.Has&dimse.HasMessageID == 0 || cmd.Has&dimse.HasDataSetType == 0 {
		return fmt.Errorf("%v without a message ID or a data set type", cmd.Field)
	}
	c.reader = objectReader{t: c.t, id: id, limit: c.s.Limits.ObjectBytes, last: !cmd.HasDataSet()}
	switch cmd.Field {
	case dimse.CStoreRQ:
		return c.store(cmd, id, pc)
	case dimse.CEchoRQ:
		return c.echo(cmd, id)
	}
	if err := c.drain(); err != nil {
		return err
	}
	return c.respond(cmd, id, StatusUnrecognizedOperation)
}

func (c *serverConn) echo(cmd *dimse.Command, id byte) error {
	if err := c.drain(); err != nil {
		return err
	}
	status := StatusSuccess
	if cmd.AffectedSOPClassUID != VerificationSOPClass {
		status = StatusSOPClassNotSupported
	} else if e, ok := c.session.(Echoer); ok {
		var err error
		if status, err = c.guarded("C-ECHO", func() Status { return e.Echo(c.ctx) }); err != nil {
			c.respond(cmd, id, status)
			return err
		}
	}
	c.s.stats.echoes.Add(1)
	return c.respond(cmd, id, status)
}

// store serves one C-STORE-RQ: check, hand the stream to the session, read what
// the session left, answer.
func (c *serverConn) store(cmd *dimse.Command, id byte, pc acceptedContext) error {
	status, err := c.storeObject(cmd, pc)
	c.bytesIn += c.reader.n
	c.s.stats.bytes.Add(c.reader.n)
	if err == nil {
		err = c.drain()
	}
	panicked := errors.Is(err, errPanic)
	if err != nil && !panicked {
		return err
	}
	if status.IsSuccess() || status.IsWarning() {
		c.s.stats.stored.Add(1)
		c.objects++
	} else {
		c.s.stats.failed.Add(1)
		c.log.Warn("C-STORE failed", zap.String("sop_instance", cmd.AffectedSOPInstanceUID), zap.Stringer("status", status))
	}
	if rspErr := c.respond(cmd, id, status); rspErr != nil {
		return rspErr
	}
	return err
}

var errPanic = errors.New("handler panicked")

func (c *serverConn) storeObject(cmd *dimse.Command, pc acceptedContext) (Status, error) {
	switch {
	case !cmd.HasDataSet():
		return StatusMistypedArgument, nil
	case cmd.AffectedSOPClassUID == "" || cmd.AffectedSOPInstanceUID == "":
		return StatusMissingAttribute, nil
	case cmd.AffectedSOPClassUID != pc.abstract || pc.abstract == VerificationSOPClass:
		return StatusSOPClassNotSupported, nil
	case !validUID(cmd.AffectedSOPInstanceUID):
		cmd.AffectedSOPInstanceUID = "" // nothing to repeat in the answer or the log
		return StatusInvalidSOPInstance, nil
	}
	c.t.grow() // only now: an association that never stores stays small
	r := &c.reader
	switch err := r.advance(); {
	case err == io.EOF:
		return StatusCannotUnderstand, nil // an object has at least its own UIDs
	case err != nil:
		return 0, err
	}
	status, err := c.guarded("C-STORE", func() Status {
		return c.session.Store(c.ctx, &StoreRequest{
			MessageID: cmd.MessageID, SOPClassUID: cmd.AffectedSOPClassUID, SOPInstanceUID: cmd.AffectedSOPInstanceUID,
			TransferSyntaxUID: pc.transfer, Priority: cmd.Priority,
			MoveOriginatorAETitle: cmd.MoveOriginatorAETitle, MoveOriginatorMessageID: cmd.MoveOriginatorMessageID,
		}, handlerReader{r})
	})
	if status.IsPending() {
		status = StatusProcessingFailure // C-STORE has exactly one, final response
	}
	stored := status.IsSuccess() || status.IsWarning()
	switch {
	case err != nil:
		return status, err
	case errors.Is(r.err, ErrObjectTooLarge):
		return StatusOutOfResources, nil // whatever the session made of its read error
	case r.err != nil && r.err != io.EOF:
		return status, r.err // the association is gone, and the object with it
	case stored:
		// A session that claims success must have had every byte.
		if err := r.advance(); err == nil {
			c.log.Error("session returned success without reading the object to its end")
			return StatusProcessingFailure, nil
		} else if err != io.EOF {
			return status, err
		}
	}
	return status, nil
}

// guarded calls a session and turns a panic into 0x0110 and errPanic. Whatever
// the session keeps of the reader is dead afterwards.
func (c *serverConn) guarded(doing string, f func() Status) (status Status, err error) {
	defer func() {
		c.reader.closed = true
		if r := recover(); r != nil {
			c.panicked(doing, r)
			status, err = StatusProcessingFailure, fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	return f(), nil
}

// drain reads the rest of the data set, so that the next message can follow.
// An object beyond the limit is drained for as much again, then given up.
func (c *serverConn) drain() error {
	r := &c.reader
	for {
		if err := r.advance(); err == io.EOF {
			return nil
		} else if errors.Is(err, ErrObjectTooLarge) {
			if r.grace {
				return fmt.Errorf("data set goes on after %d bytes: %w", r.n, err)
			}
			r.grace = true
			r.limit, r.err = r.n+maxDrain, nil
			continue
		} else if err != nil {
			return err
		}
		b, err := c.t.peek()
		if err != nil {
			return err
		}
		n := r.room(len(b))
		c.t.advance(n)
		r.n += int64(n)
	}
}

// maxDrain is how much of an object beyond the limit is read and dropped
// before the association is given up instead.
const maxDrain = 256 << 20

func (c *serverConn) respond(cmd *dimse.Command, id byte, status Status) (err error) {
	rsp := &dimse.Command{
		Field: cmd.Field.Response(), MessageIDBeingRespondedTo: cmd.MessageID, DataSetType: dimse.NoDataSet, Status: status,
	}
	rsp.AffectedSOPClassUID = echoUID(cmd.AffectedSOPClassUID, cmd.RequestedSOPClassUID)
	rsp.AffectedSOPInstanceUID = echoUID(cmd.AffectedSOPInstanceUID, cmd.RequestedSOPInstanceUID)
	c.rsp, err = c.t.sendCommand(id, rsp, c.peerMax, c.rsp)
	return err
}

// echoUID repeats a UID of the request, unless it has not even the form of one.
func echoUID(affected, requested string) string {
	if affected == "" {
		affected = requested
	}
	if !validUID(affected) {
		return ""
	}
	return affected
}

// finish says goodbye as err asks and returns the cause for Session.Close.
func (c *serverConn) finish(err error) (cause error) {
	if err == errReleased {
		c.s.stats.released.Add(1) // before the peer can know
		if _, err = c.t.step(ul.Event{Kind: ul.ReleaseResponse}); err != nil {
			c.t.fail(err)
		}
	} else {
		cause = c.t.fail(err)
		c.s.stats.aborted.Add(1)
	}
	c.log.Info("association ended", zap.Int64("objects", c.objects), zap.Int64("bytes", c.bytesIn),
		zap.Duration("after", time.Since(c.startedAt)), zap.NamedError("cause", cause))
	return cause
}

func (c *serverConn) closeSession(cause error) {
	defer func() {
		if r := recover(); r != nil {
			c.panicked("closing the session", r)
		}
	}()
	s := c.session
	c.session = nil
	s.Close(cause)
}
