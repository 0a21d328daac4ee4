package dicomnet_test

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
	. "github.com/diffdenoise/denoised/dicomnet/dicomnettest"
)

const (
	mr        = "1.2.840.10008.5.1.4.1.1.4"
	evle      = dicomnet.ExplicitVRLittleEndian
	ivle      = dicomnet.ImplicitVRLittleEndian
	philips   = "1.3.46.670589.11.0.0.12.1" // a private storage class that scanners send
	siemens   = "1.3.12.2.1107.5.9.1"
	studyFind = "1.2.840.10008.5.1.4.1.2.2.1"
)

// site is a running server with its recorder.
type site struct {
	t    testing.TB
	srv  *dicomnet.Server
	rec  *Recorder
	addr string
}

// start runs a server on a loopback port until the test ends.
func start(t testing.TB, change func(*dicomnet.Server, *Recorder)) *site {
	t.Helper()
	rec := &Recorder{}
	srv := &dicomnet.Server{Handler: rec}
	if change != nil {
		change(srv, rec)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-served; err != dicomnet.ErrServerClosed {
			t.Errorf("Serve returned %v", err)
		}
		eventually(t, "all connections end", func() bool { return srv.Stats().Active == 0 })
	})
	return &site{t, srv, rec, l.Addr().String()}
}

// peer opens a connection to play with.
func (s *site) peer() *Peer {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	return NewPeer(s.t, conn)
}

// dial opens an association for MR.
func (s *site) dial(classes ...string) *dicomnet.Association {
	s.t.Helper()
	if len(classes) == 0 {
		classes = []string{mr, dicomnet.VerificationSOPClass}
	}
	var contexts []dicomnet.PresentationContext
	for _, c := range classes {
		contexts = append(contexts, dicomnet.PresentationContext{AbstractSyntax: c, TransferSyntaxes: []string{evle, ivle}})
	}
	d := &dicomnet.Dialer{CallingAETitle: "SCU", CalledAETitle: "SCP"}
	a, err := d.Dial(s.t.Context(), s.addr, contexts)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { a.Abort() })
	return a
}

// storeOne proves that the server is well: one object goes in, whole.
func (s *site) storeOne() {
	s.t.Helper()
	a := s.dial()
	data := Pattern(300_000)
	req := &dicomnet.StoreRequest{SOPClassUID: mr, SOPInstanceUID: "1.2.3.99", TransferSyntaxUID: evle}
	status, err := a.Store(s.t.Context(), req, bytes.NewReader(data))
	if err != nil || !status.IsSuccess() {
		s.t.Fatalf("a normal C-STORE: %v, %v", status, err)
	}
	if err := a.Release(s.t.Context()); err != nil {
		s.t.Fatalf("release: %v", err)
	}
	whole := s.rec.Whole()
	if len(whole) == 0 {
		s.t.Fatal("the object of a normal C-STORE did not reach the handler")
	}
	if diff := Same(whole[len(whole)-1].Data, data); diff != "" {
		s.t.Fatalf("a normal C-STORE: %s", diff)
	}
}

// eventually polls until ok, for at most ten seconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}
