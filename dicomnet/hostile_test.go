package dicomnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/diffdenoise/denoised/dicomnet"
	. "github.com/diffdenoise/denoised/dicomnet/dicomnettest"
	"github.com/diffdenoise/denoised/dicomnet/dimse"
	"github.com/diffdenoise/denoised/dicomnet/pdu"
)

// data wraps fragments into one P-DATA-TF.
func data(pdvs ...pdu.PDV) *pdu.DataTF { return &pdu.DataTF{PDVs: pdvs} }

// frag is a data set fragment on context 1.
func frag(last bool, b []byte) pdu.PDV { return pdu.PDV{ContextID: 1, Last: last, Data: b} }

// raw is a PDU of any type, length and content.
func raw(typ byte, length uint32, body ...byte) []byte {
	return append(pdu.Header{Type: pdu.Type(typ), Length: length}.Append(nil), body...)
}

// element is one command element in implicit VR little endian.
func element(elem uint16, value ...byte) []byte {
	n := len(value)
	return append([]byte{0, 0, byte(elem), byte(elem >> 8), byte(n), byte(n >> 8), byte(n >> 16), 0}, value...)
}

// mutate returns an encoded RQ changed at one place.
func mutate(t testing.TB, rq *pdu.AssociateRQ, change func([]byte) []byte) []byte {
	return change(Encode(t, rq))
}

// associated is how most cases start.
func associated(t testing.TB, p *Peer) { p.Associate(Request(mr, dicomnet.VerificationSOPClass)) }

// TestHostilePeers plays every kind of bad peer. After each of them a normal
// C-STORE must succeed, no cut object may count as stored, and every goroutine
// must be gone. Numbers that are missing here (15, 34, 41 to 44, 46, 48, 51) have
// tests of their own; 47 and 50 are not the network's.
func TestHostilePeers(t *testing.T) {
	payload := Pattern(2000)
	cases := []struct {
		name string
		play func(t *testing.T, s *site, p *Peer)
	}{
		{"01 unknown PDU type first", func(t *testing.T, s *site, p *Peer) {
			p.SendRaw(raw(0x42, 4, 0, 0, 0, 0))
			p.ExpectAbort(0, 0)
		}},
		{"02 HTTP GET", func(t *testing.T, s *site, p *Peer) {
			p.SendRaw([]byte("GET / HTTP/1.1\r\nHost: scanner\r\n\r\n"))
			p.ExpectAbort(0, 0)
		}},
		{"03 TLS hello on the plain port", func(t *testing.T, s *site, p *Peer) {
			p.SendRaw(append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, make([]byte, 508)...))
			p.ExpectAbort(0, 0)
		}},
		{"04 P-DATA before an association", func(t *testing.T, s *site, p *Peer) {
			p.Send(data(frag(true, payload)))
			p.ExpectAbort(0, 0)
		}},
		{"05 A-RELEASE-RQ before an association", func(t *testing.T, s *site, p *Peer) {
			p.Send(&pdu.ReleaseRQ{})
			p.ExpectAbort(0, 0)
		}},
		{"06 RQ of 4 GiB", func(t *testing.T, s *site, p *Peer) {
			p.SendRaw(raw(1, 1<<32-1))
			p.ExpectAbort(0, 0)
		}},
		{"06 RQ of 1 MiB + 1", func(t *testing.T, s *site, p *Peer) {
			p.SendRaw(raw(1, pdu.MaxAssociate+1))
			p.ExpectAbort(0, 0)
		}},
		{"07 RQ of length 0", func(t *testing.T, s *site, p *Peer) {
			p.SendRaw(raw(1, 0))
			p.ExpectAbort(0, 0)
		}},
		{"08 RQ cut by FIN", func(t *testing.T, s *site, p *Peer) {
			b := Encode(t, Request(mr))
			p.SendRaw(b[:len(b)/2])
			p.Conn.(*net.TCPConn).CloseWrite()
			p.ExpectClosed()
		}},
		{"09 item length past the PDU", func(t *testing.T, s *site, p *Peer) {
			p.SendRaw(mutate(t, Request(mr), func(b []byte) []byte { b[6+68+3] = 0xff; b[6+68+2] = 0xff; return b }))
			p.ExpectAbort(0, 0)
		}},
		{"10 protocol version 2 only", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.ProtocolVersion = 2
			p.Send(rq)
			p.ExpectReject(1, 2, 2)
		}},
		{"11 protocol version 0xFFFF", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.ProtocolVersion = 0xffff
			p.Associate(rq)
			p.Release()
		}},
		{"12 wrong application context", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.ApplicationContext = "1.2.3"
			p.Send(rq)
			p.ExpectReject(1, 1, 2)
		}},
		{"13 wrong called AE title", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.CalledAETitle = "NOBODY"
			p.Send(rq)
			p.ExpectReject(1, 1, 7)
		}},
		{"14 unknown calling AE title", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.CallingAETitle = "STRANGER"
			p.Send(rq)
			p.ExpectReject(1, 1, 3)
		}},
		{"14 empty calling AE title", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.CallingAETitle = ""
			p.Send(rq)
			p.ExpectReject(1, 1, 3)
		}},
		{"16 no presentation context", func(t *testing.T, s *site, p *Peer) {
			p.Send(Request())
			p.ExpectReject(1, 1, 1)
		}},
		{"17 unknown, private and other services' SOP classes", func(t *testing.T, s *site, p *Peer) {
			ac := p.Associate(Request(philips, siemens, "1.2.840.10008.5.1.4.1.1.999", studyFind, "not a UID"))
			want := []pdu.ContextResult{pdu.Accepted, pdu.Accepted, pdu.Accepted, pdu.AbstractSyntaxNotSupported, pdu.AbstractSyntaxNotSupported}
			for i, c := range ac.Contexts {
				if c.Result != want[i] {
					t.Errorf("context %d: %v, want %v", c.ID, c.Result, want[i])
				}
			}
			p.SendStore(1, StoreRQ(1, philips, "1.2.3"), payload, 500)
			p.ExpectStatus(dimse.StatusSuccess)
			p.Release()
		}},
		{"18 transfer syntaxes", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr, mr, mr)
			rq.Contexts[0].TransferSyntaxes = []string{"1.2.3.4.5.6.7"}
			rq.Contexts[1].TransferSyntaxes = []string{"rubbish", strings.Repeat("1", 64)}
			rq.Contexts[2].TransferSyntaxes = []string{"rubbish"}
			ac := p.Associate(rq)
			if c := ac.Contexts[0]; c.Result != pdu.Accepted || c.TransferSyntax != "1.2.3.4.5.6.7" {
				t.Errorf("an unknown transfer syntax: %+v", c)
			}
			if c := ac.Contexts[2]; c.Result != pdu.TransferSyntaxesNotSupported {
				t.Errorf("no transfer syntax at all: %+v", c)
			}
			p.SendStore(1, StoreRQ(1, mr, "1.2.3"), payload, 500)
			p.ExpectStatus(dimse.StatusSuccess)
			p.Release()
		}},
		{"19 duplicate context ID", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr, philips)
			rq.Contexts[1].ID = 1
			p.Send(rq)
			p.ExpectAbort(0, 0)
		}},
		{"19 even context ID", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.Contexts[0].ID = 2
			p.Send(rq)
			p.ExpectAbort(0, 0)
		}},
		{"20 128 contexts", func(t *testing.T, s *site, p *Peer) {
			classes := make([]string, 128)
			for i := range classes {
				classes[i] = fmt.Sprintf("1.2.3.%d", i)
			}
			ac := p.Associate(Request(classes...))
			if len(ac.Contexts) != 128 || ac.Contexts[127].Result != pdu.Accepted || ac.Contexts[127].ID != 255 {
				t.Errorf("%d contexts answered", len(ac.Contexts))
			}
			p.SendStore(255, StoreRQ(1, "1.2.3.127", "1.2.3"), payload, 500)
			p.ExpectStatus(dimse.StatusSuccess)
			p.Release()
		}},
		{"20 2000 contexts", func(t *testing.T, s *site, p *Peer) {
			classes := make([]string, 2000)
			for i := range classes {
				classes[i] = fmt.Sprintf("1.2.3.%d", i)
			}
			p.Send(Request(classes...))
			p.ExpectAbort(0, 0)
		}},
		{"20 256 transfer syntaxes", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			for i := range pdu.MaxTransferSyntaxes - 2 {
				rq.Contexts[0].TransferSyntaxes = append(rq.Contexts[0].TransferSyntaxes, fmt.Sprintf("1.2.3.%d", i))
			}
			p.Associate(rq)
			p.Release()
		}},
		{"20 257 transfer syntaxes", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.Contexts[0].TransferSyntaxes = make([]string, pdu.MaxTransferSyntaxes+1)
			p.Send(rq)
			p.ExpectAbort(0, 0)
		}},
		{"21 user identity and unknown items", func(t *testing.T, s *site, p *Peer) {
			extra := append([]byte{0x58, 0, 0, 9, 1, 1, 0, 3, 'b', 'o', 'b', 0, 0}, 0x5f, 0, 0, 2, 1, 2)
			extra = append(extra, 0x54, 0, 0, 4, 0, 0, 1, 1)
			p.SendRaw(mutate(t, Request(mr), func(b []byte) []byte { return withUserItems(b, extra) }))
			p.Expect(pdu.TypeAssociateAC)
			p.Release()
		}},
		{"22 peer takes PDUs of any size", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.User.MaxLength = 0
			p.Associate(rq)
			p.SendStore(1, StoreRQ(1, mr, "1.2.3"), payload, 500)
			p.ExpectStatus(dimse.StatusSuccess)
			p.Release()
		}},
		{"22 peer takes PDUs of 128 bytes", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.User.MaxLength = 128
			p.Associate(rq)
			p.SendStore(1, StoreRQ(1, mr, strings.Repeat("1.", 31)+"11"), payload, 500)
			first := p.Expect(pdu.TypeDataTF).(*pdu.DataTF)
			if n := len(first.PDVs[0].Data) + pdu.PDVHeaderSize; n > 128 || first.PDVs[0].Last {
				t.Fatalf("a response PDU of %d bytes, last %v", n, first.PDVs[0].Last)
			}
			p.Expect(pdu.TypeDataTF)
			p.Release()
		}},
		{"22 peer takes PDUs of 1 byte", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.User.MaxLength = 1
			p.Send(rq)
			p.ExpectAbort(0, 0)
		}},
		{"22 peer takes PDUs of 127 bytes", func(t *testing.T, s *site, p *Peer) {
			rq := Request(mr)
			rq.User.MaxLength = 127
			p.Send(rq)
			p.ExpectAbort(0, 0)
		}},
		{"23 second RQ", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(Request(mr))
			p.ExpectAbort(2, 2)
		}},
		{"23 second RQ of 1 MiB that never comes", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendRaw(raw(1, pdu.MaxAssociate))
			p.ExpectAbort(2, 2)
		}},
		{"23 AC from the requestor", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(&pdu.AssociateAC{ProtocolVersion: 1, ApplicationContext: pdu.ApplicationContext})
			p.ExpectAbort(2, 2)
		}},
		{"23 unknown PDU type in an association", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendRaw(raw(0x77, 4, 0, 0, 0, 0))
			p.ExpectAbort(2, 1)
		}},
		{"24 PDV of length 0", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendRaw(raw(4, 6, 0, 0, 0, 0, 1, 3))
			p.ExpectAbort(2, 6)
		}},
		{"24 PDV of length 1", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendRaw(raw(4, 6, 0, 0, 0, 1, 1, 3))
			p.ExpectAbort(2, 6)
		}},
		{"24 PDV longer than its PDU", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendRaw(raw(4, 8, 0, 0, 0, 200, 1, 3, 0, 0))
			p.ExpectAbort(2, 6)
		}},
		{"24 rest of a PDU too short for a PDV", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendRaw(raw(4, 6+3, 0, 0, 0, 2, 1, 1, 0, 0, 0))
			p.ExpectAbort(2, 6)
		}},
		{"24 empty P-DATA", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendRaw(raw(4, 0))
			p.ExpectAbort(2, 6)
		}},
		{"25 zero-length fragments", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))),
				data(frag(false, nil)), data(frag(false, payload), frag(false, nil)), data(frag(true, nil)))
			p.ExpectStatus(dimse.StatusSuccess)
			if d := Same(s.rec.Whole()[0].Data, payload); d != "" {
				t.Error(d)
			}
			p.Release()
		}},
		{"25 nothing but zero-length fragments", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))), data(frag(false, payload)))
			for range 20 {
				p.Send(data(make100(frag(false, nil))...))
			}
			p.ExpectAbort(2, 6)
		}},
		{"26 P-DATA of 4 GiB", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendRaw(raw(4, 1<<32-1, 0xff, 0xff, 0xff, 0xfb, 1, 0))
			p.ExpectAbort(2, 6)
		}},
		{"27 PDU larger than announced", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))))
			p.SendRaw(raw(4, dicomnet.DefaultMaxPDULength+1))
			p.ExpectAbort(2, 6)
		}},
		{"28 unknown context ID", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendStore(77, StoreRQ(1, mr, "1.2.3"), payload, 500)
			p.ExpectAbort(2, 6)
		}},
		{"28 refused context ID", func(t *testing.T, s *site, p *Peer) {
			p.Associate(Request(mr, studyFind))
			p.SendStore(3, StoreRQ(1, mr, "1.2.3"), payload, 500)
			p.ExpectAbort(2, 6)
		}},
		{"29 data set without a command", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(frag(true, payload)))
			p.ExpectAbort(2, 5)
		}},
		{"29 second command inside a data set", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))), data(frag(false, payload)), data(Command(t, 1, StoreRQ(2, mr, "1.2.4"))))
			p.ExpectAbort(2, 5)
		}},
		{"29 data set inside a command", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			c := Command(t, 1, StoreRQ(1, mr, "1.2.3"))
			c.Last = false
			p.Send(data(c), data(frag(true, payload)))
			p.ExpectAbort(2, 5)
		}},
		{"29 another context inside a data set", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))), data(frag(false, payload)), data(pdu.PDV{ContextID: 3, Last: true, Data: payload}))
			p.ExpectAbort(2, 5)
		}},
		{"30 garbage for a command", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(pdu.PDV{ContextID: 1, Command: true, Last: true, Data: payload}))
			p.ExpectAbort(0, 0)
		}},
		{"30 command of more than 64 KiB", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			big := pdu.PDV{ContextID: 1, Command: true, Data: make([]byte, 40<<10)}
			p.Send(data(big), data(big))
			p.ExpectAbort(2, 6)
		}},
		{"30 command without a message ID", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(pdu.PDV{ContextID: 1, Command: true, Last: true,
				Data: append(element(0x100, 1, 0), element(0x800, 0, 0)...)}))
			p.ExpectAbort(0, 0)
		}},
		{"30 command without a data set type", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(pdu.PDV{ContextID: 1, Command: true, Last: true,
				Data: append(element(0x100, 1, 0), element(0x110, 1, 0)...)}))
			p.ExpectAbort(0, 0)
		}},
		{"30 C-STORE without an instance UID", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendStore(1, StoreRQ(1, mr, ""), payload, 500)
			p.ExpectStatus(dimse.StatusMissingAttribute)
			p.Release()
		}},
		{"30 C-STORE without a data set", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			rq := StoreRQ(1, mr, "1.2.3")
			rq.DataSetType = dimse.NoDataSet
			p.Send(data(Command(t, 1, rq)))
			p.ExpectStatus(dimse.StatusMistypedArgument)
			p.Release()
		}},
		{"31 unknown command field", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, &dimse.Command{Field: 0x0666, MessageID: 9, DataSetType: dimse.NoDataSet})))
			if c := p.ExpectStatus(dimse.StatusUnrecognizedOperation); c.Field != 0x8666 || c.MessageIDBeingRespondedTo != 9 {
				t.Errorf("response %+v", c)
			}
			p.Release()
		}},
		{"31 C-FIND, N-ACTION and N-EVENT-REPORT with data sets", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			for i, f := range []dimse.Field{dimse.CFindRQ, dimse.NActionRQ, dimse.NEventReportRQ, dimse.CMoveRQ, dimse.CGetRQ} {
				rq := &dimse.Command{Field: f, MessageID: uint16(i), AffectedSOPClassUID: mr}
				p.SendStore(1, rq, payload, 300)
				if c := p.ExpectStatus(dimse.StatusUnrecognizedOperation); c.Field != f.Response() || c.MessageIDBeingRespondedTo != uint16(i) {
					t.Errorf("response %+v", c)
				}
			}
			p.Release()
		}},
		{"32 command class is not that of the context", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendStore(1, StoreRQ(1, philips, "1.2.3"), payload, 500)
			p.ExpectStatus(dimse.StatusSOPClassNotSupported)
			p.SendStore(3, StoreRQ(2, dicomnet.VerificationSOPClass, "1.2.3"), payload, 500)
			p.ExpectStatus(dimse.StatusSOPClassNotSupported)
			p.Release()
		}},
		{"33 instance UIDs that are none", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			for _, uid := range []string{"../../x", "/etc/passwd", "1.2\x003", "1.2\n3", strings.Repeat("1", 65), "1..2", ".1", "1.", "é",
				strings.Repeat("1.", 30000) + "1"} {
				p.SendStore(1, StoreRQ(1, mr, uid), payload, 500)
				if c := p.ExpectStatus(dimse.StatusInvalidSOPInstance); c.AffectedSOPInstanceUID != "" {
					t.Errorf("the response repeats %q", c.AffectedSOPInstanceUID)
				}
			}
			p.Release()
		}},
		{"35 empty data set", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3")), frag(true, nil)))
			p.ExpectStatus(dimse.StatusCannotUnderstand)
			p.Release()
		}},
		{"36 data set that no parser should see", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			deep := bytes.Repeat([]byte{0x08, 0, 0x40, 0x11, 'S', 'Q', 0, 0, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0, 0xe0, 0xff, 0xff, 0xff, 0xff}, 20000)
			p.SendStore(1, StoreRQ(1, mr, "1.2.3"), deep, 16000)
			p.ExpectStatus(dimse.StatusSuccess)
			if d := Same(s.rec.Whole()[0].Data, deep); d != "" {
				t.Error(d)
			}
			p.Release()
		}},
		{"37 command and data in one PDU", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3")), frag(false, payload[:7]), frag(true, payload[7:])))
			p.ExpectStatus(dimse.StatusSuccess)
			if d := Same(s.rec.Whole()[0].Data, payload); d != "" {
				t.Error(d)
			}
			p.Release()
		}},
		{"37 one byte per segment, odd fragments", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			c := Command(t, 1, StoreRQ(1, mr, "1.2.3"))
			first, second := c, c
			first.Data, first.Last, second.Data = c.Data[:13], false, c.Data[13:]
			for _, b := range Encode(t, data(first), data(second), data(frag(false, payload[:1]), frag(false, payload[1:4])), data(frag(true, payload[4:333]))) {
				p.SendRaw([]byte{b})
			}
			p.ExpectStatus(dimse.StatusSuccess)
			if d := Same(s.rec.Whole()[0].Data, payload[:333]); d != "" {
				t.Error(d)
			}
			p.Release()
		}},
		{"38 same instance twice", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			for i := range 2 {
				p.SendStore(1, StoreRQ(uint16(i), mr, "1.2.3"), payload[i:], 500)
				p.ExpectStatus(dimse.StatusSuccess)
			}
			p.Release()
		}},
		{"39 pipelined stores", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			var all []byte
			for i := range 20 {
				all = append(all, Encode(t, data(Command(t, 1, StoreRQ(uint16(i), mr, fmt.Sprintf("1.2.%d", i)))), data(frag(true, payload[i:])))...)
			}
			p.SendRaw(all)
			for i := range 20 {
				c := p.ExpectStatus(dimse.StatusSuccess)
				if c.MessageIDBeingRespondedTo != uint16(i) || c.AffectedSOPInstanceUID != fmt.Sprintf("1.2.%d", i) {
					t.Fatalf("response %d: %+v", i, c)
				}
			}
			p.Release()
		}},
		{"40 A-ABORT inside a data set", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))), data(frag(false, payload)), &pdu.Abort{})
			p.ExpectClosed()
		}},
		{"40 FIN inside a data set", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))), data(frag(false, payload)))
			p.Conn.(*net.TCPConn).CloseWrite()
			p.ExpectClosed()
		}},
		{"40 FIN inside a PDU", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))))
			b := Encode(t, data(frag(true, payload)))
			p.SendRaw(b[:1000])
			p.Conn.(*net.TCPConn).CloseWrite()
			p.ExpectClosed()
		}},
		{"40 RST inside a data set", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))), data(frag(false, payload)))
			p.Conn.(*net.TCPConn).SetLinger(0)
			p.Conn.Close()
			eventually(t, "the association to end", func() bool { return len(s.rec.Closed()) == 1 })
		}},
		{"40 A-RELEASE-RQ inside a data set", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, StoreRQ(1, mr, "1.2.3"))), data(frag(false, payload)), &pdu.ReleaseRQ{})
			p.ExpectAbort(0, 0)
		}},
		{"45 oversized object", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.SendStore(1, StoreRQ(1, mr, "1.2.3"), make([]byte, 1<<20+1), 16000)
			p.ExpectStatus(dimse.StatusOutOfResources)
			p.SendStore(1, StoreRQ(2, mr, "1.2.4"), make([]byte, 1<<20), 16000)
			p.ExpectStatus(dimse.StatusSuccess)
			p.Release()
		}},
		{"49 message IDs 0, 0xFFFF, reused; C-CANCEL", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			for _, id := range []uint16{0, 0xffff, 7, 7} {
				p.SendStore(1, StoreRQ(id, mr, "1.2.3"), payload, 500)
				if c := p.ExpectStatus(dimse.StatusSuccess); c.MessageIDBeingRespondedTo != id {
					t.Errorf("message %d answered as %d", id, c.MessageIDBeingRespondedTo)
				}
				p.Send(data(Command(t, 1, &dimse.Command{Field: dimse.CCancelRQ, MessageIDBeingRespondedTo: id, DataSetType: dimse.NoDataSet})))
			}
			p.Release()
		}},
		{"49 response out of the blue", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 1, &dimse.Command{Field: dimse.CStoreRSP, DataSetType: dimse.NoDataSet})))
			p.ExpectAbort(2, 5)
		}},
		{"C-ECHO for another class", func(t *testing.T, s *site, p *Peer) {
			associated(t, p)
			p.Send(data(Command(t, 3, &dimse.Command{Field: dimse.CEchoRQ, AffectedSOPClassUID: mr, DataSetType: dimse.NoDataSet})))
			p.ExpectStatus(dimse.StatusSOPClassNotSupported)
			p.Release()
		}},
	}
	s := start(t, func(srv *dicomnet.Server, rec *Recorder) {
		srv.Limits.ObjectBytes = 1 << 20
		rec.Accept = func(r *dicomnet.AssociateRequest) error {
			switch {
			case r.CalledAETitle == "NOBODY":
				return dicomnet.RejectCalledAETitle
			case r.CallingAETitle == "STRANGER":
				return dicomnet.RejectCallingAETitle
			}
			return nil
		}
	})
	s.storeOne()
	base := goleak.IgnoreCurrent()
	closed := func() bool { return len(s.rec.Closed()) == len(s.rec.Requests()) }
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			eventually(t, "the association before to be closed", closed) // or it would count after the reset
			s.rec.Reset()
			sub := *s
			sub.t = t
			p := sub.peer()
			c.play(t, &sub, p)
			p.Conn.Close()
			eventually(t, "every association to be closed", closed)
			for _, o := range s.rec.Objects() {
				if o.Err != nil && !errors.Is(o.Err, dicomnet.ErrIncomplete) && !errors.Is(o.Err, dicomnet.ErrObjectTooLarge) {
					t.Errorf("a cut object ended with %v", o.Err)
				}
				if o.Err != nil && o.Status.IsSuccess() {
					t.Error("a cut object was taken for whole")
				}
			}
			sub.storeOne()
			goleak.VerifyNone(t, base)
		})
	}
	if n := s.srv.Stats().Panics; n != 0 {
		t.Errorf("%d panics", n)
	}
}

func make100(v pdu.PDV) []pdu.PDV {
	all := make([]pdu.PDV, 100)
	for i := range all {
		all[i] = v
	}
	return all
}

// withUserItems appends items to the user information of an encoded RQ, which
// is its last item.
func withUserItems(b, extra []byte) []byte {
	at := len(b)
	for i := 6 + 68; i < len(b); {
		n := int(b[i+2])<<8 | int(b[i+3])
		if b[i] == 0x50 {
			at = i
		}
		i += 4 + n
	}
	n := int(b[at+2])<<8 | int(b[at+3]) + len(extra)
	b[at+2], b[at+3] = byte(n>>8), byte(n)
	b = append(b, extra...)
	total := len(b) - 6
	b[2], b[3], b[4], b[5] = byte(total>>24), byte(total>>16), byte(total>>8), byte(total)
	return b
}

// Case 15: an address that is not allowed is closed before anything is read.
func TestAddressNotAllowed(t *testing.T) {
	allowed := make(chan bool, 8)
	s := start(t, func(srv *dicomnet.Server, _ *Recorder) {
		srv.AllowAddr = func(net.Addr) bool { return <-allowed }
	})
	allowed <- false
	s.peer().ExpectClosed()
	allowed <- true
	s.storeOne()
	if st := s.srv.Stats(); st.Dropped != 1 || st.Accepted != 1 {
		t.Errorf("stats %+v", st)
	}
}

// Case 34: AE titles are printable text, in logs quoted by the encoder. A control character
// inside is refused; a title ends at its first NUL.
func TestOddAETitles(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	s := start(t, func(srv *dicomnet.Server, _ *Recorder) { srv.Logger = zap.New(core) })
	accepted := []string{"../../etc", "ÄÖÜ", "A/B\\C", "MR1\x00", "MR1\x00\x00 \x00", " MR1",
		"MR1\x00\xcd\xcdXYZ\x01", "MR1\x00A"}
	for _, title := range accepted {
		for _, set := range []func(*pdu.AssociateRQ){
			func(rq *pdu.AssociateRQ) { rq.CallingAETitle = title },
			func(rq *pdu.AssociateRQ) { rq.CalledAETitle = title },
		} {
			rq := Request(mr)
			set(rq)
			p := s.peer()
			p.Associate(rq)
			p.Release()
		}
	}
	for _, title := range []string{"A\nB", "\x1b[31m", "MR1\x7f"} {
		rq := Request(mr)
		rq.CallingAETitle = title
		p := s.peer()
		p.Send(rq)
		p.ExpectReject(1, 1, 3)
		rq = Request(mr)
		rq.CalledAETitle = title
		p = s.peer()
		p.Send(rq)
		p.ExpectReject(1, 1, 7)
	}
	lines := logs.FilterMessage("association accepted").All()
	if len(lines) != 2*len(accepted) {
		t.Error("not every association was logged")
	}
	for _, l := range lines {
		if c, _ := l.ContextMap()["calling"].(string); strings.ContainsAny(c, "\x00 ") {
			t.Errorf("calling title %q keeps its padding", c)
		}
	}
	s.storeOne()
}

// Case 44: a port scan costs at most one log line per minute and leaves nothing.
func TestPortScan(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	s := start(t, func(srv *dicomnet.Server, _ *Recorder) { srv.Logger = zap.New(core) })
	s.storeOne()
	base := goleak.IgnoreCurrent()
	const n = 2000
	for range n {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	eventually(t, "all probes to be over", func() bool { return s.srv.Stats().Probes == n })
	goleak.VerifyNone(t, base)
	if logs.Len() > 1 {
		t.Errorf("%d log lines", logs.Len())
	}
	s.storeOne()
}

// What never becomes an association costs next to no memory, whatever lengths
// it claims.
func TestStrangersCostLittle(t *testing.T) {
	s := start(t, nil)
	for _, b := range [][]byte{
		[]byte("GET / HTTP/1.1\r\n\r\n"), {0x16, 3, 1, 2, 0, 1, 0}, raw(1, 1<<32-1), raw(1, pdu.MaxAssociate), raw(4, 1<<32-1), {1},
	} {
		const n = 100
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		probes := s.srv.Stats().Probes
		for range n {
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			conn.Write(b)
			conn.Close()
		}
		eventually(t, "the connections to end", func() bool { return s.srv.Stats().Probes == probes+n })
		runtime.ReadMemStats(&after)
		if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 64<<10 {
			t.Errorf("%q: %d bytes allocated per connection", b, each)
		}
	}
	s.storeOne()
}

// Silent strangers beyond the limit push out the oldest, never a newcomer.
func TestManySilentConnections(t *testing.T) {
	s := start(t, func(srv *dicomnet.Server, _ *Recorder) { srv.Limits.Connections = 50 })
	var peers []*Peer
	for range 200 {
		peers = append(peers, s.peer())
	}
	s.storeOne()
	peers[0].ExpectClosed()
	if d := s.srv.Stats().Dropped; d < 150 {
		t.Errorf("%d dropped, want at least 150", d)
	}
}

// Strangers that send huge requests share 8 MiB: the oldest of them give way, to
// each other and to an honest peer with a long request.
func TestLargeRequestsShareMemory(t *testing.T) {
	s := start(t, nil)
	s.storeOne()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const n = 40
	var peers []*Peer
	for range n {
		p := s.peer()
		p.SendRaw(append(raw(1, pdu.MaxAssociate), make([]byte, pdu.MaxAssociate-1)...))
		peers = append(peers, p)
	}
	eventually(t, "all but eight to be closed", func() bool { return s.srv.Stats().Dropped >= n-8 })
	peers[0].ExpectClosed()
	classes := make([]string, 128)
	for i := range classes {
		classes[i] = fmt.Sprintf("1.2.3.%d", i)
	}
	p := s.peer()
	p.Associate(Request(classes...))
	p.Release()
	eventually(t, "one more to be closed", func() bool { return s.srv.Stats().Dropped == n-7 })
	eventually(t, "memory to be given back", func() bool {
		runtime.GC()
		runtime.ReadMemStats(&after)
		return after.HeapAlloc < before.HeapAlloc+24<<20
	})
	s.storeOne()
	for _, p := range peers {
		p.Conn.Close()
	}
	eventually(t, "the probes to end", func() bool { return s.srv.Stats().Probes >= n })

	// their places are free again: eight at a time disturb nobody
	dropped := s.srv.Stats().Dropped
	for range 8 {
		s.peer().SendRaw(raw(1, pdu.MaxAssociate))
	}
	s.storeOne()
	if d := s.srv.Stats().Dropped; d != dropped {
		t.Errorf("%d closed for eight", d-dropped)
	}
}

// What a peer puts into its request does not fill the log.
func TestRefusedContextLogsLittle(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	s := start(t, func(srv *dicomnet.Server, _ *Recorder) { srv.Logger = zap.New(core) })
	rq := Request(mr)
	// items of 64 KiB cannot be encoded by this package, but read
	long := bytes.Repeat([]byte{'x'}, 10000)
	item := func(kind byte, b ...byte) []byte {
		return append([]byte{kind, 0, byte(len(b) >> 8), byte(len(b))}, b...)
	}
	context := append([]byte{3, 0, 0, 0}, item(0x30, long...)...)
	for range 5 {
		context = append(context, item(0x40, long...)...)
	}
	b := Encode(t, rq)
	at := bytes.Index(b, []byte{0x50, 0})
	b = append(b[:at:at], append(item(0x20, context...), b[at:]...)...)
	p := s.peer()
	p.SendRaw(append(pdu.Header{Type: pdu.TypeAssociateRQ, Length: uint32(len(b) - pdu.HeaderSize)}.Append(nil), b[pdu.HeaderSize:]...))
	p.Expect(pdu.TypeAssociateAC)
	p.Release()
	eventually(t, "the end to be logged", func() bool { return logs.FilterMessage("association ended").Len() == 1 })
	if logs.FilterMessage("presentation context refused").Len() != 1 {
		t.Fatal("the refusal is not in the log")
	}
	for _, e := range logs.All() {
		if n := len(fmt.Sprint(e.ContextMap())); n > 2000 {
			t.Errorf("%s: %d bytes", e.Message, n)
		}
	}
}

// Case 43: above a limit 2/3/2, below it again service, 1,000 times.
func TestAssociationLimits(t *testing.T) {
	for _, limit := range []dicomnet.Limits{{Associations: 3, PerHost: 99}, {Associations: 99, PerHost: 3}} {
		t.Run(fmt.Sprintf("%d in all, %d per host", limit.Associations, limit.PerHost), func(t *testing.T) {
			s := start(t, func(srv *dicomnet.Server, _ *Recorder) { srv.Limits = limit })
			open := make([]*Peer, 3)
			for i := range open {
				open[i] = s.peer()
				open[i].Associate(Request(mr))
			}
			rounds := 1000
			if testing.Short() {
				rounds = 50
			}
			for i := range rounds {
				p := s.peer()
				p.Send(Request(mr))
				p.ExpectReject(2, 3, 2)
				p.Conn.Close()
				// The place must be free as soon as the peer can know that its
				// association has ended.
				k := i % len(open)
				open[k].Release()
				open[k] = s.peer()
				open[k].Associate(Request(mr))
			}
			st := s.srv.Stats()
			if st.Active != 3 || st.Rejected != int64(rounds) || st.Released != int64(rounds) {
				t.Errorf("stats %+v", st)
			}
		})
	}
}

// Case 46, the network part: what a handler answers goes out, whatever it read.
func TestHandlerStatusAndEarlyReturn(t *testing.T) {
	payload := Pattern(500_000)
	for _, read := range []int64{0, 1, 1000, 499_999, 500_000} {
		for _, status := range []dicomnet.Status{0, 0xB000, 0xA700, 0xC123, 0x0110, 0xFF00} {
			s := start(t, func(_ *dicomnet.Server, rec *Recorder) {
				rec.OnStore = func(_ context.Context, _ *dicomnet.StoreRequest, r io.Reader) ([]byte, dicomnet.Status, error) {
					_, err := io.CopyN(io.Discard, r, read)
					return nil, status, err
				}
			})
			a := s.dial()
			want := status
			if want == 0xFF00 || read < 500_000 && !want.IsFailure() {
				want = dicomnet.StatusProcessingFailure // success is never passed on for an unread object
			}
			for range 3 {
				got, err := a.Store(t.Context(), &dicomnet.StoreRequest{SOPClassUID: mr, SOPInstanceUID: "1.2.3", TransferSyntaxUID: evle}, bytes.NewReader(payload))
				if err != nil || got != want {
					t.Fatalf("read %d, returned %v: peer got %v, %v; want %v", read, status, got, err, want)
				}
			}
			if err := a.Release(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// A panic in a handler costs its association and nothing else.
func TestHandlerPanics(t *testing.T) {
	s := start(t, func(_ *dicomnet.Server, rec *Recorder) {
		rec.OnStore = func(_ context.Context, q *dicomnet.StoreRequest, r io.Reader) ([]byte, dicomnet.Status, error) {
			if q.SOPInstanceUID == "1.2.3.99" {
				b, err := io.ReadAll(r)
				return b, 0, err
			}
			panic("store")
		}
		rec.OnEcho = func() dicomnet.Status { panic("echo") }
		rec.Accept = func(r *dicomnet.AssociateRequest) error {
			if r.CalledAETitle == "PANIC" {
				panic("associate")
			}
			return nil
		}
	})
	p := s.peer()
	associated(t, p)
	p.SendStore(1, StoreRQ(1, mr, "1.2.3"), Pattern(1000), 500)
	p.ExpectStatus(dimse.StatusProcessingFailure)
	p.ExpectAbort(0, 0)

	p = s.peer()
	associated(t, p)
	p.Send(data(Command(t, 3, &dimse.Command{Field: dimse.CEchoRQ, MessageID: 1, AffectedSOPClassUID: dicomnet.VerificationSOPClass, DataSetType: dimse.NoDataSet})))
	p.ExpectStatus(dimse.StatusProcessingFailure)
	p.ExpectAbort(0, 0)

	p = s.peer()
	rq := Request(mr)
	rq.CalledAETitle = "PANIC"
	p.Send(rq)
	p.ExpectAbort(0, 0)

	eventually(t, "sessions to be closed", func() bool { return len(s.rec.Closed()) == 2 })
	if n := s.srv.Stats().Panics; n != 3 {
		t.Errorf("%d panics counted, want 3", n)
	}
	s.storeOne()
}

// What a session keeps of its reader is dead after Store.
func TestReaderIsDeadAfterStore(t *testing.T) {
	kept := make(chan io.Reader, 1)
	s := start(t, func(_ *dicomnet.Server, rec *Recorder) {
		rec.OnStore = func(_ context.Context, _ *dicomnet.StoreRequest, r io.Reader) ([]byte, dicomnet.Status, error) {
			kept <- r
			_, err := io.Copy(io.Discard, r)
			return nil, 0, err
		}
	})
	a := s.dial()
	if _, err := a.Store(t.Context(), &dicomnet.StoreRequest{SOPClassUID: mr, SOPInstanceUID: "1.2.3", TransferSyntaxUID: evle}, bytes.NewReader(Pattern(100))); err != nil {
		t.Fatal(err)
	}
	r := <-kept
	if _, err := r.Read(make([]byte, 1)); err != dicomnet.ErrReaderClosed {
		t.Errorf("Read: %v", err)
	}
	if _, err := r.(io.WriterTo).WriteTo(io.Discard); err != dicomnet.ErrReaderClosed {
		t.Errorf("WriteTo: %v", err)
	}
}

// The connection may die at any byte: no object that was cut is whole.
func TestConnectionCutAtEveryByte(t *testing.T) {
	s := start(t, nil)
	payload := Pattern(300)
	msg := Encode(t, data(Command(t, 1, StoreRQ(1, mr, "1.2.3")), frag(false, payload[:100])), data(frag(false, payload[100:200])), data(frag(true, payload[200:])))
	for n := range len(msg) {
		p := s.peer()
		associated(t, p)
		p.SendRaw(msg[:n])
		p.Conn.Close()
	}
	eventually(t, "all associations to end", func() bool { return len(s.rec.Closed()) == len(msg) })
	if whole := s.rec.Whole(); len(whole) != 0 {
		t.Fatalf("%d cut objects were taken for whole", len(whole))
	}
	s.storeOne()
}
