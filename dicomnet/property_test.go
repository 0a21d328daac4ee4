package dicomnet_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/diffdenoise/denoised/dicomnet"
	. "github.com/diffdenoise/denoised/dicomnet/dicomnettest"
	"github.com/diffdenoise/denoised/dicomnet/dimse"
	"github.com/diffdenoise/denoised/dicomnet/pdu"
)

// No test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pieces cuts b anywhere.
func pieces(t *rapid.T, b []byte, most int, what string) (out [][]byte) {
	for len(b) > 0 {
		n := min(len(b), rapid.IntRange(1, most).Draw(t, what))
		out = append(out, b[:n])
		b = b[n:]
	}
	return out
}

// However a message is cut into fragments, PDUs and TCP segments, and however
// the session reads it, the object that arrives is the one that was sent.
func TestAnyFragmentation(t *testing.T) {
	var read func(r io.Reader) ([]byte, error)
	s := start(t, func(_ *dicomnet.Server, rec *Recorder) {
		rec.OnStore = func(_ context.Context, _ *dicomnet.StoreRequest, r io.Reader) ([]byte, dicomnet.Status, error) {
			b, err := read(r)
			return b, 0, err
		}
	})
	rapid.Check(t, func(rt *rapid.T) {
		s.rec.Reset()
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			rt.Fatal(err)
		}
		defer conn.Close()
		p := NewPeer(t, conn)
		associated(t, p)

		object := Pattern(rapid.IntRange(1, 400_000).Draw(rt, "size"))
		most := rapid.SampledFrom([]int{3000, 20_000, 131_066}).Draw(rt, "fragment")
		var pdvs []pdu.PDV
		whole := Command(t, 1, StoreRQ(1, mr, "1.2.3"))
		for _, b := range pieces(rt, whole.Data, 200, "command") {
			pdvs = append(pdvs, pdu.PDV{ContextID: 1, Command: true, Data: b})
		}
		pdvs[len(pdvs)-1].Last = true
		for _, b := range pieces(rt, object, most, "data") {
			pdvs = append(pdvs, frag(false, b))
		}
		pdvs[len(pdvs)-1].Last = true
		var wire []byte
		for len(pdvs) > 0 {
			n, size := 0, 0
			want := rapid.IntRange(1, 5).Draw(rt, "per PDU")
			for n < len(pdvs) && n < want && size+len(pdvs[n].Data)+6 <= dicomnet.DefaultMaxPDULength {
				size += len(pdvs[n].Data) + 6
				n++
			}
			wire = append(wire, Encode(t, data(pdvs[:n]...))...)
			pdvs = pdvs[n:]
		}
		switch step := rapid.SampledFrom([]int{0, 1, 7, 4096, 200_000, 1 << 20}).Draw(rt, "read"); step {
		case 0:
			read = func(r io.Reader) ([]byte, error) {
				var b bytes.Buffer
				_, err := r.(io.WriterTo).WriteTo(&b)
				return b.Bytes(), err
			}
		default:
			read = func(r io.Reader) ([]byte, error) {
				var all []byte
				b := make([]byte, step)
				for {
					n, err := r.Read(b)
					if all = append(all, b[:n]...); err == io.EOF {
						return all, nil
					} else if err != nil {
						return all, err
					}
				}
			}
		}
		for _, b := range pieces(rt, wire, rapid.SampledFrom([]int{1000, 100_000, 1 << 20}).Draw(rt, "segment size"), "segment") {
			p.SendRaw(b)
		}
		p.ExpectStatus(dimse.StatusSuccess)
		p.Release()
		if d := Same(s.rec.Whole()[0].Data, object); d != "" {
			rt.Fatal(d)
		}
	})
}
