package dicomnet_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/diffdenoise/denoised/dicomnet"
	. "github.com/diffdenoise/denoised/dicomnet/dicomnettest"
)

// objectSize is a 512 x 512 image of 16 bit with its header.
const objectSize = 525 << 10

// discard is a session that reads and forgets.
type discard struct{}

func (discard) Associate(context.Context, *dicomnet.AssociateRequest) (dicomnet.Session, error) {
	return discard{}, nil
}
func (discard) Store(_ context.Context, _ *dicomnet.StoreRequest, r io.Reader) dicomnet.Status {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return dicomnet.StatusProcessingFailure
	}
	return dicomnet.StatusSuccess
}
func (discard) Close(error) {}

func benchServer(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &dicomnet.Server{Handler: discard{}}
	go srv.Serve(l)
	b.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

// BenchmarkStore sends objects of 525 KiB over loopback, client and server in
// one process, nothing kept.
func BenchmarkStore(b *testing.B) {
	address := benchServer(b)
	a, err := (&dicomnet.Dialer{CalledAETitle: "SCP"}).Dial(b.Context(), address, mrContext)
	if err != nil {
		b.Fatal(err)
	}
	object := Pattern(objectSize)
	req := &dicomnet.StoreRequest{SOPClassUID: mr, SOPInstanceUID: "1.2.3", TransferSyntaxUID: evle}
	b.SetBytes(objectSize)
	b.ReportAllocs()
	for b.Loop() {
		if status, err := a.Store(b.Context(), req, bytes.NewReader(object)); err != nil || status != 0 {
			b.Fatal(status, err)
		}
	}
	a.Release(b.Context())
}

// BenchmarkAssociation opens and releases an association.
func BenchmarkAssociation(b *testing.B) {
	address := benchServer(b)
	d := &dicomnet.Dialer{CalledAETitle: "SCP"}
	b.ReportAllocs()
	for b.Loop() {
		a, err := d.Dial(b.Context(), address, mrContext)
		if err != nil {
			b.Fatal(err)
		}
		if err := a.Release(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// pattern is a reader of n bytes that needs no memory.
type pattern struct{ n int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.n == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.n))
	p.n -= int64(n)
	return n, nil
}

// Memory does not grow with the object: 2 GiB pass in less than 8 MiB of heap,
// and allocations do not depend on the size.
func TestLargeObjectInConstantMemory(t *testing.T) {
	size := int64(2 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	s := start(t, func(srv *dicomnet.Server, _ *Recorder) { srv.Handler = discard{} })
	a := s.dial()
	req := &dicomnet.StoreRequest{SOPClassUID: mr, SOPInstanceUID: "1.2.3", TransferSyntaxUID: evle}
	send := func(n int64) (allocated uint64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if status, err := a.Store(t.Context(), req, &pattern{n}); err != nil || status != 0 {
			t.Fatalf("%v, %v", status, err)
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	send(1 << 20)
	small, large := send(1<<20), send(size)
	if large > small+64<<10 {
		t.Errorf("%d bytes allocated for 1 MiB, %d for %d MiB", small, large, size>>20)
	}
	if got := s.srv.Stats().Bytes; got != 2<<20+size {
		t.Errorf("%d bytes arrived, want %d", got, 2<<20+size)
	}
}
