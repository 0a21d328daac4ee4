package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/daemon"
	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/phantom"
)

// program is the real daemon as a process of its own.
type program struct {
	t           *testing.T
	path        string // of the program
	config      string
	dicom, http string
	cmd         *exec.Cmd
	log         *bytes.Buffer // of the last process; read it after wait
}

// newProgram writes a configuration for an archive on loopback.
func newProgram(t *testing.T, archive net.Addr) *program {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, path: self, config: filepath.Join(dir, "c.yaml"), dicom: freeAddress(t), http: freeAddress(t)}
	text := fmt.Sprintf(`state_dir: %s
dicom: {listen: %q}
http: {listen: %q}
series: {quiet: 300ms, quiet_open: 1s}
retention: {disk_warn: 0.99, disk_refuse: 0.999}
destinations: [{name: pacs, ae_title: PACS, address: %q}]
`, filepath.Join(dir, "state"), p.dicom, p.http, archive)
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.LoadConfig(p.config); err != nil {
		t.Fatal(err)
	}
	return p
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start starts a process and does not wait for it to be ready.
func (p *program) start() {
	p.t.Helper()
	p.log = &bytes.Buffer{}
	p.cmd = exec.Command(p.path, "serve", "--config", p.config)
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	p.cmd.Stderr, p.cmd.Stdout = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill() // it may end by itself meanwhile
			_ = p.cmd.Wait()
		}
	})
}

func (p *program) signal(s os.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
}

// ready waits until images are received.
func (p *program) ready() {
	p.t.Helper()
	within(p.t, "the daemon is ready", func() error {
		resp, err := http.Get("http://" + p.http + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

func within(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// sink is an archive that keeps every copy of what it gets, and can do
// something at a moment of its choice.
type sink struct {
	addr net.Addr

	mu     sync.Mutex
	copies map[string][][]byte
	stores int
	before func(n int) // called before the nth C-STORE is answered
}

func startSink(t *testing.T) *sink {
	t.Helper()
	return startSinkTLS(t, nil)
}

// startSinkTLS is startSink, with TLS unless c is nil.
func startSinkTLS(t *testing.T, c *tls.Config) *sink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{addr: l.Addr(), copies: map[string][][]byte{}}
	server := &dicomnet.Server{TLSConfig: c, Handler: dicomnet.HandlerFunc(func(context.Context, *dicomnet.AssociateRequest) (dicomnet.Session, error) { return s, nil })}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, dicomnet.ErrServerClosed) {
			t.Error(err)
		}
	})
	return s
}

func (s *sink) Close(error) {}

func (s *sink) Store(_ context.Context, req *dicomnet.StoreRequest, r io.Reader) dicomnet.Status {
	data, err := io.ReadAll(r)
	if err != nil {
		return dicomnet.StatusProcessingFailure
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copies[req.SOPInstanceUID] = append(s.copies[req.SOPInstanceUID], data)
	s.stores++
	if s.before != nil {
		s.before(s.stores)
	}
	return dicomnet.StatusSuccess
}

func (s *sink) at(f func(n int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

// scannerObjects makes the images that a scanner has to send.
func scannerObjects(t *testing.T, n int) ([]*scuObject, map[string][]byte) {
	t.Helper()
	v := phantom.New(phantom.Spec{Seed: 3, Width: 64, Height: 64, Slices: n, Sigma: 0.05})
	ids := phantom.NewIDs(t.Name())
	var list []*scuObject
	data := map[string][]byte{}
	for i := range n {
		var b bytes.Buffer
		if err := v.WriteDICOM(&b, i, ids); err != nil {
			t.Fatal(err)
		}
		o, err := dcm.Scan(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil {
			t.Fatal(err)
		}
		uid := o.String(dcm.SOPInstanceUID)
		bare := b.Bytes()[o.DataSetOffset():]
		data[uid] = bare
		list = append(list, &scuObject{name: fmt.Sprint(i), class: o.String(dcm.SOPClassUID), uid: uid, syntax: o.TransferSyntaxUID(),
			open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(bare)), nil }})
	}
	return list, data
}

// sendSome sends what has not been acknowledged, until the process dies or all
// is done, and notes what was acknowledged.
func sendSome(ctx context.Context, address string, list []*scuObject, acknowledged map[string]bool, after func(n int)) {
	var rest []*scuObject
	for _, o := range list {
		if !acknowledged[o.uid] {
			rest = append(rest, o)
		}
	}
	// An error is the process's end, which is what the test is about.
	_ = push(ctx, &dicomnet.Dialer{CallingAETitle: "SCANNER", CalledAETitle: "DENOISE", Timeouts: dicomnet.DialTimeouts{Response: 20 * time.Second}}, address, rest, nil,
		func(o *scuObject, status dicomnet.Status, err error) {
			if err == nil && status.IsSuccess() {
				acknowledged[o.uid] = true
				after(len(acknowledged))
			}
		})
}

// checkArchive waits for everything and holds it against what was sent.
func checkArchive(t *testing.T, s *sink, sent map[string][]byte) {
	t.Helper()
	within(t, "every image and one derived image of each are in the archive", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.copies) < 2*len(sent) {
			return fmt.Errorf("%d of %d", len(s.copies), 2*len(sent))
		}
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.copies) != 2*len(sent) {
		t.Errorf("the archive has %d objects, want %d", len(s.copies), 2*len(sent))
	}
	sources := map[string]bool{}
	again := 0
	for uid, copies := range s.copies {
		again += len(copies) - 1
		for _, c := range copies[1:] {
			if !bytes.Equal(c, copies[0]) {
				t.Errorf("%s came with different bytes", uid)
			}
		}
		if want, ok := sent[uid]; ok {
			if !bytes.Equal(copies[0], want) {
				t.Errorf("original %s was changed", uid)
			}
			continue
		}
		var file bytes.Buffer
		if _, err := dcm.WriteFileMeta(&file, dcm.FileMeta{SOPClassUID: "1.2", SOPInstanceUID: uid, TransferSyntaxUID: dicomnet.ExplicitVRLittleEndian}); err != nil {
			t.Fatal(err)
		}
		file.Write(copies[0])
		o, err := dcm.Scan(bytes.NewReader(file.Bytes()), int64(file.Len()))
		if err != nil {
			t.Errorf("%s: %v", uid, err)
			continue
		}
		source := sourceUID(o)
		if sent[source] == nil || sources[source] {
			t.Errorf("%s is derived from %q, which was not sent or has a derived image already", uid, source)
		}
		sources[source] = true
	}
	t.Logf("%d objects, %d of them delivered a second time under the same UID with the same bytes", len(s.copies), again)
}

// TestKill: the process is killed at moments of receiving, denoising, forwarding
// and recovering. The scanner sends again what was not acknowledged, as scanners
// do. In the end each image is in the archive, unchanged, with one derived image.
func TestKill(t *testing.T) {
	archive := startSink(t)
	p := newProgram(t, archive.addr)
	list, sent := scannerObjects(t, 24)
	acknowledged := map[string]bool{}
	kill := func() { p.signal(syscall.SIGKILL) }

	// Each life is offered four images more than the one before, so that there is
	// always something left to be acknowledged.
	for life, moment := range []struct {
		acks     int // kill after this many more images are acknowledged; 0: not by that
		forwards int // kill before this many more are answered by the archive; 0: not by that
	}{{acks: 1}, {forwards: 1}, {acks: 3}, {forwards: 3}, {acks: 4}, {forwards: 5}} {
		p.start()
		p.ready()
		if moment.forwards > 0 {
			archive.mu.Lock()
			goal := archive.stores + moment.forwards
			archive.mu.Unlock()
			archive.at(func(n int) {
				if n == goal {
					kill()
				}
			})
		}
		had := len(acknowledged)
		sendSome(t.Context(), p.dicom, list[:4*(life+1)], acknowledged, func(n int) {
			if moment.acks > 0 && n == had+moment.acks {
				kill()
			}
		})
		dead := make(chan struct{})
		go func() {
			defer close(dead)
			_ = p.cmd.Wait() // killed, and that is no news
		}()
		select {
		case <-dead:
		case <-time.After(60 * time.Second):
			kill()
			<-dead
			t.Fatalf("life %d, %+v: nothing killed the process\n%s", life, moment, p.log)
		}
		archive.at(nil)
	}
	// Killed while it recovers.
	p.start()
	within(t, "its port is open", func() error {
		c, err := net.Dial("tcp", p.dicom)
		if err != nil {
			return err
		}
		return c.Close()
	})
	kill()
	_ = p.cmd.Wait() // killed

	p.start()
	p.ready()
	within(t, "the rest is sent", func() error {
		sendSome(t.Context(), p.dicom, list, acknowledged, func(int) {})
		if len(acknowledged) < len(list) {
			return fmt.Errorf("%d of %d acknowledged", len(acknowledged), len(list))
		}
		return nil
	})
	checkArchive(t, archive, sent)
	p.signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, p.log)
	}
}

// TestTerminate: SIGTERM in the middle of an association ends the process with
// exit code 0, and the next one delivers the rest.
func TestTerminate(t *testing.T) {
	archive := startSink(t)
	p := newProgram(t, archive.addr)
	list, sent := scannerObjects(t, 10)
	acknowledged := map[string]bool{}
	p.start()
	p.ready()
	sendSome(t.Context(), p.dicom, list, acknowledged, func(n int) {
		if n == 4 {
			p.signal(syscall.SIGTERM)
		}
	})
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("SIGTERM: %v\n%s", err, p.log)
	}
	if !bytes.Contains(p.log.Bytes(), []byte("whatever was accepted is on disk")) {
		t.Errorf("the log does not say how it ended:\n%s", p.log)
	}
	if n := len(acknowledged); n < 4 {
		t.Errorf("%d acknowledged", n)
	}
	p.start()
	p.ready()
	sendSome(t.Context(), p.dicom, list, acknowledged, func(int) {})
	if len(acknowledged) != len(list) {
		t.Fatalf("%d of %d acknowledged after the restart", len(acknowledged), len(list))
	}
	checkArchive(t, archive, sent)
	// A second signal while a drain lasts ends it at once; with nothing in hand the
	// first one is enough.
	p.signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the second process: %v\n%s", err, p.log)
	}
}
