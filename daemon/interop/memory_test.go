package interop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
)

// rawDataStorage is a SOP class without pixels: such objects pass through.
const rawDataStorage = "1.2.840.10008.5.1.4.1.1.66"

// TestMemoryOfHugeObject pushes one object of 2 GB through the real program.
// Receiving, storing and forwarding it must take no more memory than a small
// one: the same for a scanner's largest object as for its smallest.
func TestMemoryOfHugeObject(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 2 GB, left out by -short")
	}
	const size = 2 << 30
	const allowed = 32 << 20 // for page tables, statistics, a collection that came late

	pacs := startSink(t)
	s := startDenoised(t, destination{"pacs", pacs.aet, pacs.port, "original"})
	deliver := func(uid string, bytes int64) {
		t.Helper()
		sum, n := pushStream(t, s.port, uid, bytes)
		eventually(t, 2*time.Minute, "the object is forwarded", func() error {
			s.proc.mustRun()
			o, err := pacs.received(uid)
			if err != nil {
				return err
			}
			if o.size != n || o.sum != sum || o.copies != 1 {
				t.Fatalf("%d bytes arrived %d times, %d were sent; same bytes: %v", o.size, o.copies, n, o.sum == sum)
			}
			return nil
		})
	}

	deliver("2.25.1", 16<<20) // everything that is set up once is set up now
	before, peakBefore := s.proc.memory()
	deliver("2.25.2", size)
	after, peak := s.proc.memory()
	t.Logf("resident before %d MB (peak %d MB), after %d MB (peak %d MB)", before>>20, peakBefore>>20, after>>20, peak>>20)
	if peak > peakBefore+allowed {
		t.Errorf("an object of %d MB raised the peak from %d MB to %d MB", size>>20, peakBefore>>20, peak>>20)
	}
}

// pushStream sends a generated object with n bytes of payload under uid and
// returns checksum and length of the whole data set.
func pushStream(t testing.TB, port int, uid string, n int64) (sum [sha256.Size]byte, length int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dialer := dicomnet.Dialer{CallingAETitle: "RAW", CalledAETitle: "OFF"}
	a, err := dialer.Dial(ctx, loopback(port), []dicomnet.PresentationContext{
		{AbstractSyntax: rawDataStorage, TransferSyntaxes: []string{explicitLittleEndian}},
	})
	if err != nil {
		t.Fatal(err)
	}
	head := new(bytes.Buffer)
	text := func(group, element uint16, vr, value string) {
		if len(value)%2 == 1 {
			value += map[bool]string{true: "\x00", false: " "}[vr == "UI"]
		}
		_ = binary.Write(head, binary.LittleEndian, [2]uint16{group, element}) // a buffer does not fail
		head.WriteString(vr)
		_ = binary.Write(head, binary.LittleEndian, uint16(len(value)))
		head.WriteString(value)
	}
	text(0x0008, 0x0016, "UI", rawDataStorage)
	text(0x0008, 0x0018, "UI", uid)
	text(0x0020, 0x000d, "UI", uid+".1")
	text(0x0020, 0x000e, "UI", uid+".2")
	text(0x0029, 0x0010, "LO", "DENOISED TEST")
	_ = binary.Write(head, binary.LittleEndian, [2]uint16{0x0029, 0x1010})
	head.WriteString("OB\x00\x00")
	_ = binary.Write(head, binary.LittleEndian, uint32(n))

	h := sha256.New()
	length = int64(head.Len()) + n
	body := io.TeeReader(io.MultiReader(head, io.LimitReader(pattern{}, n)), h)
	status, err := a.Store(ctx, &dicomnet.StoreRequest{SOPClassUID: rawDataStorage, SOPInstanceUID: uid,
		TransferSyntaxUID: explicitLittleEndian}, body)
	if err != nil || !status.IsSuccess() {
		t.Fatalf("push %d bytes: %v, %v", n, status, err)
	}
	if err := a.Release(ctx); err != nil {
		t.Errorf("release: %v", err)
	}
	return [sha256.Size]byte(h.Sum(nil)), length
}

// pattern is an endless stream of bytes that are not all the same.
type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i)
	}
	return len(p), nil
}
