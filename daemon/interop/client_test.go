package interop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/dcm"
)

const (
	implicitLittleEndian = "1.2.840.10008.1.2"
	explicitLittleEndian = "1.2.840.10008.1.2.1"
	secondaryCapture     = "1.2.840.10008.5.1.4.1.1.7"
)

// raw is an object to be pushed byte by byte, whatever it holds.
type raw struct {
	file string
	part10
}

// readRaw takes a file as it is: with a readable meta group the data set behind
// it, else what our own scan says is the data set, at worst the whole file. A
// UID that is missing is made up.
func readRaw(t testing.TB, file string) raw {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p, err := parsePart10(data)
	if err != nil {
		p = part10{DataSet: data}
		if o, _ := dcm.Scan(bytes.NewReader(data), int64(len(data))); o != nil { // a damaged one will do
			p = part10{SOPClassUID: o.String(dcm.SOPClassUID), SOPInstanceUID: o.String(dcm.SOPInstanceUID),
				TransferSyntaxUID: o.TransferSyntaxUID(), DataSet: data[min(max(o.DataSetOffset(), 0), int64(len(data))):]}
		}
	}
	if len(p.DataSet) == 0 { // C-STORE without a data set does not exist
		p.DataSet = data
	}
	if !wellFormed(p.TransferSyntaxUID) {
		p.TransferSyntaxUID = implicitLittleEndian
	}
	if !wellFormed(p.SOPClassUID) {
		p.SOPClassUID = secondaryCapture
	}
	if !wellFormed(p.SOPInstanceUID) {
		sum := sha256.Sum256([]byte(file))
		p.SOPInstanceUID = "2.25." + new(big.Int).SetBytes(sum[:16]).String()
	}
	return raw{file, p}
}

// wellFormed tells whether a UID may stand in a C-STORE request (PS3.5 9.1):
// numbers between dots, 64 characters at most.
func wellFormed(uid string) bool {
	if len(uid) > 64 {
		return false
	}
	for component := range strings.SplitSeq(uid, ".") {
		if component == "" || strings.Trim(component, "0123456789") != "" {
			return false
		}
	}
	return true
}

// push sends objects over as few associations as it takes, a new one whenever
// the last has broken, and reports what was answered to each.
func push(t testing.TB, port int, aet string, objects []raw) []sent {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dialer := dicomnet.Dialer{CallingAETitle: "RAW", CalledAETitle: aet}
	var a *dicomnet.Association
	release := func() {
		if a == nil {
			return
		}
		if err := a.Release(ctx); err != nil {
			t.Errorf("release: %v", err)
		}
		a = nil
	}
	var out []sent
	for i, o := range objects {
		if a != nil && !a.Accepts(o.SOPClassUID, o.TransferSyntaxUID) {
			release() // its contexts were used up, or this one was refused
		}
		if a == nil {
			var err error
			if a, err = dialer.Dial(ctx, loopback(port), contexts(objects[i:])); err != nil {
				t.Fatal(err)
			}
		}
		s := sent{File: o.file, SOPInstanceUID: o.SOPInstanceUID}
		status, err := a.Store(ctx, &dicomnet.StoreRequest{SOPClassUID: o.SOPClassUID, SOPInstanceUID: o.SOPInstanceUID,
			TransferSyntaxUID: o.TransferSyntaxUID}, bytes.NewReader(o.DataSet))
		switch {
		case err == nil:
			s.Status, s.Answered = uint16(status), true
		case errors.Is(err, dicomnet.ErrNotAccepted):
		default:
			t.Logf("%s: %v", o.file, err)
			_ = a.Abort() // it is broken already
			a = nil
		}
		out = append(out, s)
	}
	release()
	return out
}

// contexts returns what the next objects need, as much as one association can
// offer (PS3.8 9.3.2.2: odd numbers up to 255).
func contexts(objects []raw) []dicomnet.PresentationContext {
	var list []dicomnet.PresentationContext
	seen := make(map[string]bool)
	for _, o := range objects {
		if key := o.SOPClassUID + " " + o.TransferSyntaxUID; !seen[key] && len(list) < 128 {
			seen[key] = true
			list = append(list, dicomnet.PresentationContext{AbstractSyntax: o.SOPClassUID, TransferSyntaxes: []string{o.TransferSyntaxUID}})
		}
	}
	return list
}

// sink is a storage SCP that keeps a checksum of each object and nothing else.
type sink struct {
	aet     string
	port    int
	mu      sync.Mutex
	objects map[string]sunk
}

type sunk struct {
	size   int64
	sum    [sha256.Size]byte
	copies int
	at     time.Time // of the last one
}

func startSink(t testing.TB) *sink {
	t.Helper()
	s := &sink{aet: "SINK", objects: make(map[string]sunk)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	server := &dicomnet.Server{Handler: dicomnet.HandlerFunc(
		func(context.Context, *dicomnet.AssociateRequest) (dicomnet.Session, error) {
			return sinkSession{s}, nil
		})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close sink: %v", err)
		}
		if err := <-ended; !errors.Is(err, dicomnet.ErrServerClosed) {
			t.Errorf("sink: %v", err)
		}
	})
	return s
}

// all returns everything that came so far.
func (s *sink) all() map[string]sunk {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.objects)
}

// received returns what came for uid.
func (s *sink) received(uid string) (sunk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[uid]
	if !ok {
		return o, fmt.Errorf("%s did not arrive", uid)
	}
	return o, nil
}

type sinkSession struct{ *sink }

func (s sinkSession) Store(_ context.Context, req *dicomnet.StoreRequest, r io.Reader) dicomnet.Status {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return dicomnet.StatusProcessingFailure
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[req.SOPInstanceUID]
	s.objects[req.SOPInstanceUID] = sunk{size: n, sum: [sha256.Size]byte(h.Sum(nil)), copies: o.copies + 1,
		at: time.Now()}
	return dicomnet.StatusSuccess
}

func (sinkSession) Close(error) {}
