package dicomnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"

	"github.com/diffdenoise/denoised/dicomnet"
	. "github.com/diffdenoise/denoised/dicomnet/dicomnettest"
	"github.com/diffdenoise/denoised/dicomnet/dimse"
	"github.com/diffdenoise/denoised/dicomnet/pdu"
)

// answering plays a called AE on a loopback port for one connection.
func answering(t *testing.T, play func(p *Peer)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		play(NewPeer(t, conn))
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func dialTo(t *testing.T, address string) (*dicomnet.Association, error) {
	t.Helper()
	a, err := (&dicomnet.Dialer{CalledAETitle: "SCP"}).Dial(t.Context(), address, mrContext)
	if err == nil {
		t.Cleanup(func() { a.Abort() })
	}
	return a, err
}

// Case 51, association: what a called AE can answer, and what comes of it.
func TestDialAnswers(t *testing.T) {
	var rejected *dicomnet.RejectError
	var aborted *dicomnet.AbortError
	for _, c := range []struct {
		name string
		play func(p *Peer)
		want func(err error) bool
	}{
		{"rejected for now", func(p *Peer) {
			p.Expect(pdu.TypeAssociateRQ)
			p.Send(&pdu.AssociateRJ{Result: 2, Source: 3, Reason: 2})
			p.ExpectClosed()
		}, func(err error) bool { return errors.As(err, &rejected) && rejected.Transient() }},
		{"rejected for good", func(p *Peer) {
			p.Expect(pdu.TypeAssociateRQ)
			p.Send(&pdu.AssociateRJ{Result: 1, Source: 1, Reason: 7})
			p.ExpectClosed()
		}, func(err error) bool {
			return errors.As(err, &rejected) && !rejected.Transient() && *rejected == *dicomnet.RejectCalledAETitle
		}},
		{"aborted", func(p *Peer) {
			p.Expect(pdu.TypeAssociateRQ)
			p.Send(&pdu.Abort{Source: 2, Reason: 1})
			p.ExpectClosed()
		}, func(err error) bool { return errors.As(err, &aborted) && aborted.ByPeer && aborted.Reason == 1 }},
		{"closed", func(p *Peer) {
			p.Expect(pdu.TypeAssociateRQ)
			p.Conn.Close()
		}, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{"unknown context", func(p *Peer) {
			ac := Acceptance(p.Expect(pdu.TypeAssociateRQ).(*pdu.AssociateRQ))
			ac.Contexts[0].ID = 99
			p.Send(ac)
			p.ExpectAbort(2, 6)
		}, func(err error) bool { return errors.As(err, &aborted) && !aborted.ByPeer && aborted.Reason == 6 }},
		{"transfer syntax that was not offered", func(p *Peer) {
			ac := Acceptance(p.Expect(pdu.TypeAssociateRQ).(*pdu.AssociateRQ))
			ac.Contexts[0].TransferSyntax = "1.2.840.10008.1.2.4.90"
			p.Send(ac)
			p.ExpectAbort(2, 6)
		}, func(err error) bool { return errors.As(err, &aborted) }},
		{"maximum length 64", func(p *Peer) {
			ac := Acceptance(p.Expect(pdu.TypeAssociateRQ).(*pdu.AssociateRQ))
			ac.User.MaxLength = 64
			p.Send(ac)
			p.ExpectAbort(2, 6)
		}, func(err error) bool { return errors.As(err, &aborted) }},
		{"release instead", func(p *Peer) {
			p.Expect(pdu.TypeAssociateRQ)
			p.Send(&pdu.ReleaseRQ{})
			p.ExpectAbort(2, 2)
		}, func(err error) bool { return errors.As(err, &aborted) && aborted.Reason == 2 }},
		{"data instead", func(p *Peer) {
			p.Expect(pdu.TypeAssociateRQ)
			p.Send(data(frag(true, []byte{1})))
			p.ExpectAbort(2, 2)
		}, func(err error) bool { return errors.As(err, &aborted) }},
		{"an HTTP server", func(p *Peer) {
			p.Expect(pdu.TypeAssociateRQ)
			p.SendRaw([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			p.ExpectAbort(2, 1)
		}, func(err error) bool { return errors.As(err, &aborted) && aborted.Reason == 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			a, err := dialTo(t, answering(t, c.play))
			if err == nil {
				a.Abort()
				t.Fatal("no error")
			}
			if !c.want(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Case 51, responses: a store counts only with the right answer.
func TestStoreAnswers(t *testing.T) {
	respond := func(change func(c *dimse.Command)) func(p *Peer) {
		return func(p *Peer) {
			p.Accept()
			rq, _, _ := p.ReadStore()
			c := Response(rq, dimse.StatusSuccess)
			change(c)
			p.Send(data(Command(t, 1, c)))
			p.Read()
		}
	}
	for _, c := range []struct {
		name   string
		play   func(p *Peer)
		status dicomnet.Status
		broken bool
	}{
		{"success", respond(func(*dimse.Command) {}), 0, false},
		{"warning", respond(func(c *dimse.Command) { c.Status = 0xB000 }), 0xB000, false},
		{"refused", respond(func(c *dimse.Command) { c.Status = 0xA700 }), 0xA700, false},
		{"without UIDs", respond(func(c *dimse.Command) { c.AffectedSOPClassUID, c.AffectedSOPInstanceUID = "", "" }), 0, false},
		{"wrong message ID", respond(func(c *dimse.Command) { c.MessageIDBeingRespondedTo++ }), 0, true},
		{"wrong class", respond(func(c *dimse.Command) { c.AffectedSOPClassUID = "1.2" }), 0, true},
		{"wrong instance", respond(func(c *dimse.Command) { c.AffectedSOPInstanceUID = "1.2" }), 0, true},
		{"of another service", respond(func(c *dimse.Command) { c.Field = dimse.CEchoRSP }), 0, true},
		{"a request", respond(func(c *dimse.Command) { c.Field = dimse.CEchoRQ }), 0, true},
		{"with a data set", respond(func(c *dimse.Command) { c.DataSetType = 0 }), 0, true},
		{"pending", respond(func(c *dimse.Command) { c.Status = 0xFF00 }), 0, true},
		{"on another context", func(p *Peer) {
			p.Accept()
			rq, _, _ := p.ReadStore()
			p.Send(data(Command(t, 5, Response(rq, 0))))
			p.Read()
		}, 0, true},
		{"in pieces", func(p *Peer) {
			p.Accept()
			rq, _, _ := p.ReadStore()
			v := Command(t, 1, Response(rq, 0xB007))
			first := v
			first.Data, first.Last, v.Data = v.Data[:11], false, v.Data[11:]
			p.Send(data(first), data(v))
			p.Read()
		}, 0xB007, false},
		{"abort instead", func(p *Peer) { p.Accept(); p.ReadStore(); p.Send(&pdu.Abort{}); p.ExpectClosed() }, 0, true},
		{"release instead", func(p *Peer) { p.Accept(); p.ReadStore(); p.Send(&pdu.ReleaseRQ{}); p.Read() }, 0, true},
		{"closed instead", func(p *Peer) { p.Accept(); p.ReadStore(); p.Conn.Close() }, 0, true},
		{"closed inside the data set", func(p *Peer) { p.Accept(); p.Expect(pdu.TypeDataTF); p.Conn.Close() }, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			a, err := dialTo(t, answering(t, c.play))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Abort()
			status, err := store(t, a, Pattern(100_000))
			if (err != nil) != c.broken || status != c.status {
				t.Fatalf("got %v, %v", status, err)
			}
			if c.broken {
				if _, err := store(t, a, Pattern(10)); !errors.Is(err, dicomnet.ErrAssociationClosed) {
					t.Errorf("the association is not closed: %v", err)
				}
			}
		})
	}
}

// A peer that closes after its last response has everything: only the release fails.
func TestPeerClosesAfterLastResponse(t *testing.T) {
	a, err := dialTo(t, answering(t, func(p *Peer) {
		p.Accept()
		rq, _, _ := p.ReadStore()
		p.Respond(1, rq, 0)
		p.Conn.Close()
	}))
	if err != nil {
		t.Fatal(err)
	}
	if status, err := store(t, a, Pattern(1000)); err != nil || status != 0 {
		t.Fatalf("%v, %v", status, err)
	}
	if err := a.Release(t.Context()); err == nil {
		t.Error("the release was not answered, and succeeded")
	}
}

// Both sides ask for release at once (PS3.8 section 7.2.2.7).
func TestReleaseCollision(t *testing.T) {
	a, err := dialTo(t, answering(t, func(p *Peer) {
		p.Accept()
		p.Expect(pdu.TypeReleaseRQ)
		p.Send(data(frag(true, []byte{1})), &pdu.ReleaseRQ{}) // late data, too
		p.Expect(pdu.TypeReleaseRP)
		p.Send(&pdu.ReleaseRP{})
		p.ExpectClosed()
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// Whatever the peer's maximum and the object's size: the bytes arrive, no PDU
// is too large, no fragment empty, all but the last even.
func TestFragmentation(t *testing.T) {
	for _, peerMax := range []uint32{0, 128, 129, 16378, 16384, 28672, 1 << 20} {
		size := int(peerMax)
		if peerMax == 0 || peerMax > dicomnet.DefaultMaxPDULength {
			size = dicomnet.DefaultMaxPDULength
		}
		chunk := (size - 6) &^ 1
		for _, n := range []int{1, 2, chunk - 1, chunk, chunk + 1, 2 * chunk, 3*chunk + 1} {
			want := Pattern(n)
			got := make(chan []byte, 1)
			address := answering(t, func(p *Peer) {
				ac := Acceptance(p.Expect(pdu.TypeAssociateRQ).(*pdu.AssociateRQ))
				ac.User.MaxLength = peerMax
				p.Send(ac)
				rq, data, sizes := p.ReadStore()
				for i, s := range sizes {
					if s == 0 || s > chunk || i < len(sizes)-1 && s != chunk {
						t.Errorf("maximum %d, object of %d: fragments of %v", peerMax, n, sizes)
					}
				}
				got <- data
				p.Respond(1, rq, 0)
				p.Expect(pdu.TypeReleaseRQ)
				p.Send(&pdu.ReleaseRP{})
			})
			a, err := dialTo(t, address)
			if err != nil {
				t.Fatal(err)
			}
			r := iotest.HalfReader(bytes.NewReader(want))
			if status, err := a.Store(t.Context(), &dicomnet.StoreRequest{SOPClassUID: mr, SOPInstanceUID: "1.2.3", TransferSyntaxUID: evle}, r); err != nil || status != 0 {
				t.Fatalf("%v, %v", status, err)
			}
			if d := Same(<-got, want); d != "" {
				t.Errorf("maximum %d: %s", peerMax, d)
			}
			if err := a.Release(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// countWrites counts the writes on a connection.
type countWrites struct {
	net.Conn
	sizes *[]int
}

func (c countWrites) Write(b []byte) (int, error) {
	*c.sizes = append(*c.sizes, len(b))
	return c.Conn.Write(b)
}

// One write per PDU, command and data in PDUs of their own.
func TestOneWritePerPDU(t *testing.T) {
	s := start(t, nil)
	var sizes []int
	d := &dicomnet.Dialer{CalledAETitle: "SCP", NetDial: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return countWrites{conn, &sizes}, err
	}}
	a, err := d.Dial(t.Context(), s.addr, mrContext)
	if err != nil {
		t.Fatal(err)
	}
	const n = dicomnet.DefaultMaxPDULength
	if _, err := store(t, a, Pattern(2*n)); err != nil {
		t.Fatal(err)
	}
	if err := a.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(sizes) != 6 || sizes[2] != n+6 || sizes[3] != n+6 || sizes[4] != 12+12 || sizes[5] != 10 {
		t.Errorf("writes of %v: want RQ, command, two full PDUs, the rest, release", sizes)
	}
}

// Failures of the caller: nothing is sent that could look like an object.
func TestStoreMisuse(t *testing.T) {
	s := start(t, nil)
	a := s.dial()
	req := &dicomnet.StoreRequest{SOPClassUID: "1.2.3", SOPInstanceUID: "1.2.3", TransferSyntaxUID: evle}
	if _, err := a.Store(t.Context(), req, bytes.NewReader(Pattern(10))); !errors.Is(err, dicomnet.ErrNotAccepted) {
		t.Errorf("a class that was not offered: %v", err)
	}
	if status, err := store(t, a, Pattern(10)); err != nil || status != 0 {
		t.Errorf("the association did not survive that: %v, %v", status, err)
	}
	if _, err := store(t, a, nil); err == nil {
		t.Error("an empty object was sent")
	}
	a = s.dial()
	broken := io.MultiReader(bytes.NewReader(Pattern(500_000)), iotest.ErrReader(errors.New("disk on fire")))
	req.SOPClassUID = mr
	if _, err := a.Store(t.Context(), req, broken); err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("a reader that fails: %v", err)
	}
	eventually(t, "the associations to end", func() bool { return len(s.rec.Closed()) == 2 })
	if n := len(s.rec.Whole()); n != 1 {
		t.Errorf("%d whole objects, want 1", n)
	}
	for _, contexts := range [][]dicomnet.PresentationContext{
		nil, make([]dicomnet.PresentationContext, 129),
		{{ID: 2, AbstractSyntax: mr, TransferSyntaxes: []string{evle}}},
		{{ID: 3, AbstractSyntax: mr, TransferSyntaxes: []string{evle}}, {ID: 3, AbstractSyntax: mr, TransferSyntaxes: []string{evle}}},
		{{AbstractSyntax: mr}},
	} {
		if _, err := (&dicomnet.Dialer{CalledAETitle: "SCP"}).Dial(t.Context(), s.addr, contexts); err == nil {
			t.Errorf("contexts %v were taken", contexts)
		}
	}
	if _, err := (&dicomnet.Dialer{CalledAETitle: "AETITLETHATISTOOLONG"}).Dial(t.Context(), s.addr, mrContext); err == nil {
		t.Error("an AE title of 20 characters was taken")
	}
}

// Client and server together: contexts, echo, many objects, IDs given out.
func TestRoundTrip(t *testing.T) {
	s := start(t, nil)
	a := s.dial(mr, studyFind, philips, dicomnet.VerificationSOPClass)
	if !a.Accepts(mr, evle) || a.Accepts(mr, ivle) || a.Accepts(studyFind, evle) || !a.Accepts(philips, evle) {
		t.Error("accepted contexts are wrong")
	}
	if status, err := a.Echo(t.Context()); err != nil || status != 0 {
		t.Errorf("echo: %v, %v", status, err)
	}
	for i := range 300 {
		class := []string{mr, philips}[i%2]
		req := &dicomnet.StoreRequest{SOPClassUID: class, SOPInstanceUID: fmt.Sprintf("1.2.%d", i), TransferSyntaxUID: evle,
			Priority: 1, MoveOriginatorAETitle: "MOVER", MoveOriginatorMessageID: 7}
		if status, err := a.Store(t.Context(), req, bytes.NewReader(Pattern(i+1))); err != nil || status != 0 {
			t.Fatalf("%v, %v", status, err)
		}
	}
	if err := a.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if err := a.Release(t.Context()); !errors.Is(err, dicomnet.ErrAssociationClosed) {
		t.Errorf("a second release: %v", err)
	}
	whole := s.rec.Whole()
	if len(whole) != 300 {
		t.Fatalf("%d objects", len(whole))
	}
	for i, o := range whole {
		if d := Same(o.Data, Pattern(i+1)); d != "" {
			t.Errorf("object %d: %s", i, d)
		}
		want := dicomnet.StoreRequest{MessageID: uint16(i + 2), SOPClassUID: []string{mr, philips}[i%2], SOPInstanceUID: fmt.Sprintf("1.2.%d", i),
			TransferSyntaxUID: evle, Priority: 1, MoveOriginatorAETitle: "MOVER", MoveOriginatorMessageID: 7}
		if o.Request != want {
			t.Errorf("request %+v, want %+v", o.Request, want)
		}
	}
	eventually(t, "the session to be closed", func() bool { return len(s.rec.Closed()) == 1 })
	if cause := s.rec.Closed()[0]; cause != nil {
		t.Errorf("released with cause %v", cause)
	}
	st := s.srv.Stats()
	if st.Stored != 300 || st.Echoes != 1 || st.Released != 1 || st.Bytes != 300*301/2 || st.Failed+st.Aborted+st.Panics != 0 {
		t.Errorf("stats %+v", st)
	}
}

// The transfer syntax of choice among what is offered.
func TestAcceptStorage(t *testing.T) {
	const j2k, evbe, ge = "1.2.840.10008.1.2.4.90", dicomnet.ExplicitVRBigEndian, "1.2.840.113619.5.2"
	for _, c := range []struct {
		class  string
		offer  []string
		result dicomnet.ContextResult
		want   string
	}{
		{mr, []string{ivle, evle, evbe}, 0, evle},
		{mr, []string{evbe, ivle}, 0, ivle},
		{mr, []string{ge, evbe, ivle}, 0, ivle},
		{mr, []string{evbe, j2k}, 0, j2k},
		{mr, []string{j2k, "1.2.840.10008.1.2.4.50"}, 0, j2k},
		{mr, []string{evbe}, 0, evbe},
		{mr, []string{ge}, 0, ge},
		{mr, []string{"1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.201"}, 0, "1.2.840.10008.1.2.4.201"},
		{mr, nil, 4, ""},
		{mr, []string{"x"}, 4, ""},
		{dicomnet.VerificationSOPClass, []string{ivle}, 0, ivle},
		{"1.2.840.10008.5.1.4.1.1.88.22", []string{evle}, 0, evle}, // Enhanced SR
		{"1.2.840.10008.5.1.1.29", []string{evle}, 0, evle},        // retired hardcopy storage
		{"1.2.840.10008.5.1.4.1.1.200.2", []string{evle}, 0, evle}, // newer than the dictionary
		{"1.2.840.10008.5.1.4.1.1.12.77", []string{evle}, 0, evle}, // nameless in the dictionary
		{"1.2.840.10008.5.1.4.38.1", []string{evle}, 0, evle},      // hanging protocol storage
		{"1.2.840.10008.1.20.1", []string{evle}, 3, ""},            // storage commitment
		{"1.2.840.10008.5.1.4.31", []string{evle}, 3, ""},          // worklist
		{"1.2.840.10008.5.1.1.9", []string{evle}, 3, ""},           // print
		{"1.2.840.10008.3.1.2.3.3", []string{evle}, 3, ""},         // MPPS
		{"1.2.840.10008.5.1.4.1.1.200.4", []string{evle}, 3, ""},   // protocol approval FIND
		{"1.2.840.10008.5.1.4.1.1.201.3", []string{evle}, 3, ""},   // inventory MOVE
		{"1.2.840.10008.1.2.1", []string{evle}, 3, ""},             // a transfer syntax
		{"1.2.840.10008.4.2", []string{evle}, 3, ""},               // a service class
		{siemens, []string{evle}, 0, evle},
	} {
		result, ts := dicomnet.AcceptStorage(dicomnet.PresentationContext{AbstractSyntax: c.class, TransferSyntaxes: c.offer})
		if result != c.result || ts != c.want {
			t.Errorf("%s in %v: %v %s, want %v %s", c.class, c.offer, result, ts, c.result, c.want)
		}
	}
}
