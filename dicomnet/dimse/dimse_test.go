package dimse

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A C-STORE-RQ as PS3.7 section 9.3.1 and annex E write it, element by element.
const storeRQ = "00000000 04000000 46000000" + // group length
	"00000200 06000000 312e322e3300" + // affected SOP class UID 1.2.3, padded
	"00000001 02000000 0100" + // command field
	"00001001 02000000 0700" + // message ID
	"00000007 02000000 0200" + // priority low
	"00000008 02000000 0000" + // a data set follows
	"00000010 08000000 312e322e332e3400"

func TestGolden(t *testing.T) {
	want, err := hex.DecodeString(strings.ReplaceAll(storeRQ, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	c := &Command{Field: CStoreRQ, MessageID: 7, AffectedSOPClassUID: "1.2.3", AffectedSOPInstanceUID: "1.2.3.4", Priority: PriorityLow}
	got, err := c.Append(nil)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v\n got %x\nwant %x", err, got, want)
	}
	back, err := Decode(want)
	c.Has = HasField | HasMessageID | HasPriority | HasDataSetType
	if err != nil || !reflect.DeepEqual(back, c) {
		t.Errorf("decoded %+v, %v", back, err)
	}
}

// element is one command element.
func element(group, elem uint16, value string) []byte {
	b := []byte{byte(group), byte(group >> 8), byte(elem), byte(elem >> 8), byte(len(value)), byte(len(value) >> 8), byte(len(value) >> 16), 0}
	return append(b, value...)
}

func TestDecodeOddities(t *testing.T) {
	field := element(0, 0x100, "\x01\x00")
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, c := range []struct {
		name string
		b    []byte
		ok   bool
	}{
		{"only a command field", field, true},
		{"retired and unknown elements", join(element(0, 1, "\x00\x00\x00\x00"), field, element(0, 0x10, "ACR"), element(0, 0x5110, "1234")), true},
		{"wrong group length", join(element(0, 0, "\xff\xff\xff\xff"), field), true},
		{"any order", join(element(0, 0x1000, "1.2.3"), field), true},
		{"nothing", nil, false},
		{"no command field", element(0, 0x110, "\x01\x00"), false},
		{"another group", join(field, element(8, 0x18, "1.2.3")), false},
		{"an element twice", join(field, field), false},
		{"a number of 4 bytes", element(0, 0x100, "\x01\x00\x00\x00"), false},
		{"a number of 1 byte", element(0, 0x100, "\x01"), false},
		{"cut inside a header", field[:6], false},
		{"cut inside a value", field[:9], false},
		{"a length of 4 GiB", join(field, []byte{0, 0, 0, 0x10, 0xff, 0xff, 0xff, 0xff}), false},
		{"an undefined length at the end", join(field, []byte{0, 0, 2, 0, 0xff, 0xff, 0xff, 0x7f, 1, 2}), false},
		{"too large", make([]byte, MaxCommand+1), false},
		{"text", []byte("GET / HTTP/1.1\r\n\r\n"), false},
	} {
		if got, err := Decode(c.b); (err == nil) != c.ok {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	uid := rapid.StringMatching(`([0-9](\.?[0-9]){0,31})?`)
	rapid.Check(t, func(t *rapid.T) {
		c := &Command{
			Field:       rapid.SampledFrom([]Field{CStoreRQ, CStoreRSP, CEchoRQ, CEchoRSP, NActionRQ, CCancelRQ}).Draw(t, "field"),
			DataSetType: rapid.Uint16().Draw(t, "data"), AffectedSOPClassUID: uid.Draw(t, "class"),
			AffectedSOPInstanceUID: uid.Draw(t, "instance"), RequestedSOPClassUID: uid.Draw(t, "rclass"), RequestedSOPInstanceUID: uid.Draw(t, "rinstance"),
			MoveOriginatorAETitle: rapid.StringMatching(`([A-Z]{1,16})?`).Draw(t, "move"),
			Has:                   HasField | HasDataSetType,
		}
		switch {
		case c.Field.IsResponse():
			c.Status = Status(rapid.Uint16().Draw(t, "status"))
			c.ErrorComment = rapid.StringMatching(`([a-z]([a-z ]{0,60}[a-z])?)?`).Draw(t, "comment")
			c.Has |= HasStatus
			fallthrough
		case c.Field == CCancelRQ:
			c.MessageIDBeingRespondedTo = rapid.Uint16().Draw(t, "id")
			c.Has |= HasMessageIDBeingRespondedTo
		default:
			c.MessageID = rapid.Uint16().Draw(t, "id")
			c.Has |= HasMessageID
		}
		if c.Field == CStoreRQ {
			c.Priority = rapid.Uint16Max(2).Draw(t, "priority")
			c.Has |= HasPriority
		}
		if c.MoveOriginatorAETitle != "" {
			c.MoveOriginatorMessageID = rapid.Uint16().Draw(t, "moveID")
			c.Has |= HasMoveOriginatorMessageID
		}
		b, err := c.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(b)%2 != 0 {
			t.Fatalf("a command set of %d bytes", len(b))
		}
		back, err := Decode(b)
		if err != nil || !reflect.DeepEqual(back, c) {
			t.Fatalf("got %+v, %v\nwant %+v", back, err, c)
		}
	})
}

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		s                         Status
		success, warning, failure bool
		words                     string
	}{
		{0, true, false, false, "0x0000 (success)"},
		{0xB000, false, true, false, "0xB000 (warning: coercion of data elements)"},
		{0xB123, false, true, false, "0xB123 (warning)"},
		{0x0107, false, true, false, "0x0107 (warning)"},
		{0xA700, false, false, true, "0xA700 (out of resources)"},
		{0xA702, false, false, true, "0xA702 (out of resources)"},
		{0xA9FF, false, false, true, "0xA9FF (data set does not match SOP class)"},
		{0xC210, false, false, true, "0xC210 (cannot understand)"},
		{0x0110, false, false, true, "0x0110 (processing failure)"},
		{0x0122, false, false, true, "0x0122 (SOP class not supported)"},
		{0xFE00, false, false, true, "0xFE00 (cancel)"},
		{0xFF00, false, false, false, "0xFF00 (pending)"},
		{0x1234, false, false, true, "0x1234 (failure)"},
	} {
		if c.s.IsSuccess() != c.success || c.s.IsWarning() != c.warning || c.s.IsFailure() != c.failure || c.s.String() != c.words {
			t.Errorf("%v: success %v, warning %v, failure %v", c.s, c.s.IsSuccess(), c.s.IsWarning(), c.s.IsFailure())
		}
	}
}

// Any bytes: no panic; what decodes can be encoded, and decodes to the same.
func FuzzDecode(f *testing.F) {
	b, _ := hex.DecodeString(strings.ReplaceAll(storeRQ, " ", ""))
	f.Add(b)
	f.Add(element(0, 0x100, "\x01\x80"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err != nil {
			return
		}
		enc, err := c.Append(nil)
		if err != nil {
			return
		}
		again, err := Decode(enc)
		if err != nil {
			t.Fatalf("decoding our own command set: %v", err)
		}
		if again.Field != c.Field || again.AffectedSOPInstanceUID != c.AffectedSOPInstanceUID {
			t.Fatalf("got %+v, want %+v", again, c)
		}
	})
}
