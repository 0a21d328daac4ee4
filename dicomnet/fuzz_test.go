package dicomnet_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
	. "github.com/diffdenoise/denoised/dicomnet/dicomnettest"
	"github.com/diffdenoise/denoised/dicomnet/dimse"
	"github.com/diffdenoise/denoised/dicomnet/pdu"
)

// script turns fuzz bytes into what a peer sends: mostly valid PDUs in any
// order, with fragments cut anywhere, and now and then raw bytes.
func script(t testing.TB, b []byte) (out []byte) {
	next := func() byte {
		if len(b) == 0 {
			return 0
		}
		v := b[0]
		b = b[1:]
		return v
	}
	message := uint16(0)
	for len(b) > 0 && len(out) < 1<<20 {
		switch op := next(); op % 16 {
		case 0, 1:
			rq := Request(mr, philips, dicomnet.VerificationSOPClass)
			rq.User.MaxLength = uint32(next()) * 64
			out = append(out, Encode(t, rq)...)
		case 2, 3, 4:
			message++
			v := Command(t, next()%8, StoreRQ(message, mr, "1.2.3"))
			if cut := int(next()); cut < len(v.Data) && op%2 == 0 {
				first := v
				first.Data, first.Last, v.Data = v.Data[:cut], false, v.Data[cut:]
				out = append(out, Encode(t, data(first))...)
			}
			out = append(out, Encode(t, data(v))...)
		case 5, 6, 7:
			n := int(next()) * int(next())
			v := pdu.PDV{ContextID: next() % 8, Last: next()%2 == 0, Data: Pattern(n)}
			w := pdu.PDV{ContextID: v.ContextID, Last: next()%4 == 0}
			out = append(out, Encode(t, data(v, w))...)
		case 8:
			out = append(out, Encode(t, data(Command(t, next()%8, &dimse.Command{Field: dimse.Field(next()), MessageID: 1, DataSetType: uint16(next()), AffectedSOPClassUID: dicomnet.VerificationSOPClass})))...)
		case 9:
			out = append(out, Encode(t, &pdu.ReleaseRQ{})...)
		case 10:
			out = append(out, Encode(t, &pdu.ReleaseRP{})...)
		case 11:
			out = append(out, Encode(t, &pdu.Abort{})...)
		case 12:
			out = append(out, Encode(t, &pdu.AssociateRJ{})...)
		case 13:
			out = pdu.Header{Type: pdu.Type(next() % 9), Length: uint32(next())<<24 | uint32(next())}.Append(out)
		case 14:
			out = binary.BigEndian.AppendUint32(out, uint32(next()))
		default:
			n := min(int(next()), len(b))
			out = append(out, b[:n]...)
			b = b[n:]
		}
	}
	return out
}

// FuzzServer plays any sequence of PDUs and bytes to a server: it must not
// panic, must close within its own timeouts, give every session exactly one
// Close, and never take a cut object for whole.
func FuzzServer(f *testing.F) {
	f.Add([]byte{0, 255, 2, 1, 200, 5, 10, 10, 1, 0, 0, 9})
	f.Add([]byte{0, 0, 4, 1, 20, 7, 200, 200, 1, 1, 1, 5, 3, 3, 1, 0, 0, 8, 5, 0x30, 1, 9})
	f.Add([]byte{0, 255, 2, 1, 200, 5, 10, 10, 1, 1, 0, 2, 1, 200})
	f.Add([]byte{15, 20, 'G', 'E', 'T', ' ', '/', ' ', 'H', 'T', 'T', 'P'})
	f.Add([]byte{0, 255, 13, 4, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4096 {
			return
		}
		sent := script(t, b)
		synctest.Test(t, func(t *testing.T) {
			opened, closed := 0, 0
			rec := &Recorder{Accept: func(*dicomnet.AssociateRequest) error { opened++; return nil }}
			srv := &dicomnet.Server{Handler: rec}
			srv.Limits.ObjectBytes = 1 << 20
			l := NewListener()
			served := make(chan error, 1)
			go func() { served <- srv.Serve(l) }()
			conn, err := l.Dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				conn.Write(sent)
			}()
			conn.SetDeadline(time.Now().Add(time.Hour))
			if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the connection is open after an hour: %v", err)
			}
			conn.Close()
			synctest.Wait()
			closed = len(rec.Closed())
			if opened != closed {
				t.Errorf("%d sessions opened, %d closed", opened, closed)
			}
			for _, o := range rec.Objects() {
				if o.Err != nil && o.Status.IsSuccess() {
					t.Errorf("a cut object was taken for whole: %v", o.Err)
				}
			}
			if n := srv.Stats().Panics; n != 0 {
				t.Errorf("%d panics", n)
			}
			srv.Close()
			<-served
		})
	})
}

// FuzzClient answers a requestor with any bytes: it must not panic and must
// report success only with a response.
func FuzzClient(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add([]byte{0, 1}, []byte{9})
	f.Fuzz(func(t *testing.T, answer, response []byte) {
		if len(answer)+len(response) > 4096 {
			return
		}
		first, second := script(t, answer), script(t, response)
		synctest.Test(t, func(t *testing.T) {
			server, client := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer server.Close()
				server.SetDeadline(time.Now().Add(time.Hour))
				p, err := pdu.Read(server, 1<<20)
				if err != nil {
					return
				}
				if len(answer)%2 == 0 {
					first = Encode(t, Acceptance(p.(*pdu.AssociateRQ)))
				}
				go func() {
					server.Write(first)
					server.Write(second)
				}()
				io.Copy(io.Discard, server)
			}()
			d := &dicomnet.Dialer{CalledAETitle: "SCP", NetDial: func(context.Context, string, string) (net.Conn, error) { return client, nil }}
			a, err := d.Dial(t.Context(), "x:1", mrContext)
			if err == nil {
				_, err := store(t, a, Pattern(100_000))
				if err == nil && !bytes.Contains(second, []byte{0x01, 0x80}) {
					t.Error("a store succeeded without a C-STORE-RSP")
				}
				a.Abort()
			}
			<-done
		})
	})
}
