package pdu

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// golden PDUs, written out byte by byte from PS3.8 section 9.3.
var golden = []struct {
	name string
	pdu  PDU
	hex  string
}{
	{"A-ASSOCIATE-RQ", &AssociateRQ{
		ProtocolVersion: 1, CalledAETitle: "ANY-SCP", CallingAETitle: "ECHOSCU", ApplicationContext: ApplicationContext,
		Contexts: []ContextRQ{{ID: 1, AbstractSyntax: "1.2.840.10008.1.1", TransferSyntaxes: []string{"1.2.840.10008.1.2"}}},
		User:     UserInformation{MaxLength: 16384, HasMaxLength: true, ImplementationClassUID: "1.2.3", ImplementationVersionName: "V1"},
	}, "01000000 00aa 0001 0000" +
		"414e592d534350202020202020202020" + "4543484f534355202020202020202020" + strings.Repeat("00", 32) +
		"10000015 312e322e3834302e31303030382e332e312e312e31" +
		"2000002e 01000000 30000011 312e322e3834302e31303030382e312e31 40000011 312e322e3834302e31303030382e312e32" +
		"50000017 51000004 00004000 52000005 312e322e33 55000002 5631"},
	{"A-ASSOCIATE-AC", &AssociateAC{
		ProtocolVersion: 1, CalledAETitle: "B", CallingAETitle: "A", ApplicationContext: "1.2",
		Contexts: []ContextAC{{ID: 3, Result: TransferSyntaxesNotSupported, TransferSyntax: "1.2.3"}},
		User:     UserInformation{MaxLength: 131072, HasMaxLength: true, ImplementationClassUID: "1.2"},
	}, "02000000 006f 0001 0000" +
		"42202020202020202020202020202020" + "41202020202020202020202020202020" + strings.Repeat("00", 32) +
		"10000003 312e32" + "2100000d 03000400 40000005 312e322e33" + "5000000f 51000004 00020000 52000003 312e32"},
	{"A-ASSOCIATE-RJ", &AssociateRJ{2, 3, 2}, "0300 00000004 00020302"},
	{"P-DATA-TF", &DataTF{[]PDV{{ContextID: 1, Command: true, Last: true, Data: []byte{0xaa}}, {ContextID: 255, Data: []byte{}}}},
		"0400 0000000d 00000003 01 03 aa 00000002 ff 00"},
	{"A-RELEASE-RQ", &ReleaseRQ{}, "0500 00000004 00000000"},
	{"A-RELEASE-RP", &ReleaseRP{}, "0600 00000004 00000000"},
	{"A-ABORT", &Abort{2, 6}, "0700 00000004 00000206"},
}

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGolden(t *testing.T) {
	for _, g := range golden {
		want := unhex(t, g.hex)
		got, err := g.pdu.Append([]byte("kept"))
		if err != nil || !bytes.Equal(got, append([]byte("kept"), want...)) {
			t.Errorf("%s: %v\n got %x\nwant %x", g.name, err, got[4:], want)
		}
		back, err := Read(iotest.OneByteReader(bytes.NewReader(want)), 1<<20)
		if err != nil || !reflect.DeepEqual(back, g.pdu) {
			t.Errorf("%s: read %+v, %v", g.name, back, err)
		}
		for n := range want {
			_, err := Read(bytes.NewReader(want[:n]), 1<<20)
			if n == 0 && err != io.EOF || n > 0 && err != io.ErrUnexpectedEOF {
				t.Errorf("%s cut to %d bytes: %v", g.name, n, err)
			}
		}
	}
}

// Padding and reserved bytes that other implementations send.
func TestTolerance(t *testing.T) {
	b := unhex(t, golden[0].hex)
	b[1] = 0xff                // reserved
	copy(b[26:42], "  SPACES") // calling, with leading spaces and zeros below
	copy(b[34:42], make([]byte, 8))
	b[43] = 0x99 // reserved
	p, err := Decode(TypeAssociateRQ, b[HeaderSize:])
	if err != nil {
		t.Fatal(err)
	}
	rq := p.(*AssociateRQ)
	if rq.CallingAETitle != "SPACES" || rq.CalledAETitle != "ANY-SCP" {
		t.Errorf("AE titles %q, %q", rq.CallingAETitle, rq.CalledAETitle)
	}
	rq.Contexts[0].AbstractSyntax += "\x00" // padded UIDs
	rq.Contexts[0].TransferSyntaxes[0] += " "
	enc, err := rq.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(TypeAssociateRQ, enc[HeaderSize:])
	if err != nil {
		t.Fatal(err)
	}
	c := back.(*AssociateRQ).Contexts[0]
	if c.AbstractSyntax != "1.2.840.10008.1.1" || c.TransferSyntaxes[0] != "1.2.840.10008.1.2" {
		t.Errorf("padded UIDs: %+v", c)
	}
}

// No length is believed: a header alone makes Read allocate next to nothing.
func TestLimitsBeforeAllocation(t *testing.T) {
	for _, h := range []struct {
		header  Header
		invalid bool
	}{
		{Header{TypeAssociateRQ, 1<<32 - 1}, true}, {Header{TypeAssociateRQ, MaxAssociate + 1}, true}, {Header{TypeAssociateRQ, 67}, true},
		{Header{TypeAssociateAC, MaxAssociate + 1}, true}, {Header{TypeDataTF, 1<<20 + 1}, true}, {Header{TypeDataTF, 1<<32 - 1}, true},
		{Header{TypeDataTF, 0}, true}, {Header{TypeDataTF, 5}, true}, {Header{TypeAbort, 5}, true}, {Header{TypeReleaseRQ, 0}, true},
		{Header{TypeReleaseRP, 3}, true}, {Header{TypeAssociateRJ, 1 << 20}, true}, {Header{0, 4}, true}, {Header{8, 4}, true},
		{Header{TypeAssociateRQ, MaxAssociate}, false}, {Header{TypeDataTF, 1 << 20}, false},
	} {
		b := h.header.Append(nil)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Read(bytes.NewReader(b), 1<<20)
		runtime.ReadMemStats(&after)
		var bad *Error
		if errors.As(err, &bad) != h.invalid {
			t.Errorf("%+v: %v", h.header, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
			t.Errorf("%+v: %d bytes allocated", h.header, n)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	long := strings.Repeat("1", 65)
	for _, p := range []PDU{
		&AssociateRQ{CalledAETitle: "SEVENTEEN-LETTERS"}, &AssociateRQ{CallingAETitle: "SEVENTEEN-LETTERS"},
		&AssociateRQ{ApplicationContext: long}, &AssociateRQ{User: UserInformation{ImplementationClassUID: long}},
		&AssociateRQ{User: UserInformation{ImplementationVersionName: "SEVENTEEN-LETTERS"}},
		&AssociateRQ{Contexts: []ContextRQ{{ID: 1, AbstractSyntax: long}}},
		&AssociateAC{Contexts: []ContextAC{{ID: 1, TransferSyntax: long}}},
		&AssociateRQ{Contexts: []ContextRQ{{ID: 1, TransferSyntaxes: make([]string, 70000)}}},
	} {
		if b, err := p.Append([]byte{1}); err == nil || len(b) != 1 {
			t.Errorf("%+v was encoded: %v", p, err)
		}
	}
}

var uids = rapid.StringMatching(`[0-9](\.?[0-9]){0,31}`)

func user() *rapid.Generator[UserInformation] {
	return rapid.Custom(func(t *rapid.T) UserInformation {
		return UserInformation{
			MaxLength: rapid.Uint32().Draw(t, "max"), HasMaxLength: true, ImplementationClassUID: uids.Draw(t, "class"),
			ImplementationVersionName: rapid.StringMatching(`[A-Z0-9_]{0,16}`).Draw(t, "version"),
		}
	})
}

var title = rapid.StringMatching(`([A-Z]([A-Z _.-]{0,14}[A-Z])?)?`)

// contextIDs draws distinct odd numbers.
func contextIDs(t *rapid.T) []byte {
	return rapid.SliceOfNDistinct(rapid.Map(rapid.ByteMax(127), func(b byte) byte { return 2*b + 1 }), 0, 20, rapid.ID[byte]).Draw(t, "ids")
}

func anyPDU() *rapid.Generator[PDU] {
	b := rapid.Byte()
	return rapid.OneOf(
		rapid.Custom(func(t *rapid.T) PDU {
			p := &AssociateRQ{ProtocolVersion: rapid.Uint16().Draw(t, "version"), CalledAETitle: title.Draw(t, "called"),
				CallingAETitle: title.Draw(t, "calling"), ApplicationContext: uids.Draw(t, "app"), User: user().Draw(t, "user")}
			for _, id := range contextIDs(t) {
				p.Contexts = append(p.Contexts, ContextRQ{id, uids.Draw(t, "abstract"), rapid.SliceOfN(uids, 1, 10).Draw(t, "transfer")})
			}
			return p
		}),
		rapid.Custom(func(t *rapid.T) PDU {
			p := &AssociateAC{ProtocolVersion: rapid.Uint16().Draw(t, "version"), CalledAETitle: title.Draw(t, "called"),
				CallingAETitle: title.Draw(t, "calling"), ApplicationContext: uids.Draw(t, "app"), User: user().Draw(t, "user")}
			for _, id := range contextIDs(t) {
				p.Contexts = append(p.Contexts, ContextAC{id, ContextResult(rapid.ByteMax(4).Draw(t, "result")), uids.Draw(t, "transfer")})
			}
			return p
		}),
		rapid.Custom(func(t *rapid.T) PDU { return &AssociateRJ{b.Draw(t, "r"), b.Draw(t, "s"), b.Draw(t, "d")} }),
		rapid.Custom(func(t *rapid.T) PDU { return &Abort{b.Draw(t, "s"), b.Draw(t, "r")} }),
		rapid.Just[PDU](&ReleaseRQ{}), rapid.Just[PDU](&ReleaseRP{}),
		rapid.Custom(func(t *rapid.T) PDU {
			return &DataTF{rapid.SliceOfN(rapid.Custom(func(t *rapid.T) PDV {
				return PDV{b.Draw(t, "id"), rapid.Bool().Draw(t, "command"), rapid.Bool().Draw(t, "last"), rapid.SliceOfN(b, 0, 300).Draw(t, "data")}
			}), 1, 8).Draw(t, "pdvs")}
		}),
	)
}

// What is encoded is decoded to the same value.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anyPDU().Draw(t, "pdu")
		enc, err := p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Read(bytes.NewReader(enc), 1<<20)
		if err != nil {
			t.Fatalf("%v\n%x", err, enc)
		}
		if !reflect.DeepEqual(back, p) {
			t.Fatalf("got %+v, want %+v", back, p)
		}
	})
}

// Any bytes: no panic, an *Error or a PDU; what was decoded and can be encoded
// is decoded to the same again.
func FuzzDecode(f *testing.F) {
	for _, g := range golden {
		b := unhex(f, g.hex)
		f.Add(b[0], b[HeaderSize:])
	}
	f.Fuzz(func(t *testing.T, typ byte, body []byte) {
		p, err := Decode(Type(typ), body)
		if err != nil {
			var bad *Error
			if !errors.As(err, &bad) {
				t.Fatalf("an error of type %T: %v", err, err)
			}
			return
		}
		enc, err := p.Append(nil)
		if err != nil {
			return // longer than the standard allows us to write
		}
		back, err := Decode(Type(typ), enc[HeaderSize:])
		if err != nil {
			t.Fatalf("decoding our own %v: %v", p.Type(), err)
		}
		again, err := back.Append(nil)
		if err != nil || !bytes.Equal(again, enc) {
			t.Fatalf("not stable: %x, then %x", enc, again)
		}
	})
}

func FuzzPDVHeader(f *testing.F) {
	f.Add([]byte{0, 0, 0, 3, 1, 3}, uint32(7))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1, 3}, uint32(1<<32-1))
	f.Fuzz(func(t *testing.T, b []byte, left uint32) {
		h, err := ParsePDVHeader(b, left)
		if err == nil && uint64(h.Length)+PDVHeaderSize > uint64(left) {
			t.Fatalf("a fragment of %d in %d bytes", h.Length, left)
		}
	})
}
