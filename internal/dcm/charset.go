package dcm

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// charsets are the single values of SpecificCharacterSet (PS3.3 C.12.1.1.2)
// that are decoded for rules and the status page. Text that is written never
// passes through them: derived objects copy the source's bytes.
var charsets = map[string]encoding.Encoding{
	"ISO_IR 100":      charmap.ISO8859_1,
	"ISO_IR 101":      charmap.ISO8859_2,
	"ISO_IR 109":      charmap.ISO8859_3,
	"ISO_IR 110":      charmap.ISO8859_4,
	"ISO_IR 144":      charmap.ISO8859_5,
	"ISO_IR 127":      charmap.ISO8859_6,
	"ISO_IR 126":      charmap.ISO8859_7,
	"ISO_IR 138":      charmap.ISO8859_8,
	"ISO_IR 148":      charmap.ISO8859_9,
	"ISO_IR 203":      charmap.ISO8859_15,
	"ISO_IR 166":      charmap.Windows874,
	"ISO_IR 13":       japanese.ShiftJIS,
	"GB18030":         simplifiedchinese.GB18030,
	"GBK":             simplifiedchinese.GBK,
	"ISO 2022 IR 87":  japanese.ISO2022JP,
	"ISO 2022 IR 149": korean.EUCKR,
}

// decode makes UTF-8 of text in the object's character set. Code extensions are
// decoded as far as one known set covers them; all else becomes U+FFFD.
func (o *Object) decode(b []byte) string {
	plain := true
	for _, c := range b {
		if c >= 0x80 || c == 0x1B {
			plain = false
			break
		}
	}
	if plain {
		return string(b)
	}
	names := strings.Split(trim(ascii(o.Find(SpecificCharacterSet).prefixOrNil(128))), `\`)
	for i := range names {
		names[i] = trim(names[i])
	}
	if len(names) == 1 && names[0] == "ISO_IR 192" {
		return strings.ToValidUTF8(string(b), "\uFFFD")
	}
	for i := len(names) - 1; i >= 0; i-- {
		enc := charsets[names[i]]
		if enc == nil {
			enc = charsets[strings.Replace(names[i], "ISO 2022 IR", "ISO_IR", 1)]
		}
		if enc == nil {
			continue
		}
		in := b
		if names[i] == "ISO 2022 IR 149" {
			in = []byte(strings.ReplaceAll(string(b), "\x1b$)C", ""))
		}
		if out, err := enc.NewDecoder().Bytes(in); err == nil {
			return strings.ToValidUTF8(string(out), "\uFFFD")
		}
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

func (e Element) prefixOrNil(n int64) []byte {
	if !e.OK() {
		return nil
	}
	return e.prefix(n)
}

// CharacterSet is the object's SpecificCharacterSet as it is encoded, padding removed.
func (o *Object) CharacterSet() string {
	return trim(ascii(o.Find(SpecificCharacterSet).prefixOrNil(128)))
}

// AppendASCII appends the ASCII text suffix to value, the raw bytes of an LO
// element, if that keeps every character in front of it intact and the result
// within 64 characters (PS3.5 6.2). Otherwise it returns value as it is and
// false. charset is the object's SpecificCharacterSet.
//
// With code extensions (PS3.5 6.1.2.5) the bytes behind an escape sequence mean
// what it selected; ASCII may follow only when the text returned to it.
func AppendASCII(value []byte, charset, suffix string) ([]byte, bool) {
	text := strings.TrimRight(string(value), " \x00")
	if !asciiState(text, charset) {
		return value, false
	}
	n := len(text)
	if charset == "ISO_IR 192" {
		n = utf8.RuneCountInString(text)
	}
	if n+len(suffix) > 64 {
		return value, false
	}
	return []byte(text + suffix), true
}

// asciiState reports whether a reader of text that knows charset expects ASCII
// at its end.
func asciiState(text, charset string) bool {
	switch charset {
	case "ISO_IR 192":
		return utf8.ValidString(text)
	case "GB18030", "GBK":
		// a lead byte takes the next one with it; four-byte forms are two pairs
		for i := 0; i < len(text); i++ {
			if text[i] >= 0x80 {
				if i++; i >= len(text) {
					return false
				}
			}
		}
		return true
	}
	if i := strings.IndexByte(charset, '\\'); i >= 0 {
		charset = charset[:i] // the initial state
	}
	switch trim(charset) {
	case "ISO 2022 IR 87", "ISO 2022 IR 159": // not allowed as initial set, G0 is unknown
		return false
	case "ISO_IR 13": // single byte in fact; some write Shift-JIS under it
		for i := 0; i < len(text); i++ {
			if text[i] >= 0x80 && (text[i] < 0xA1 || text[i] > 0xDF) {
				return false
			}
		}
	}
	g0 := byte('B')
	for i := 0; i < len(text); i++ {
		if text[i] != 0x1B {
			continue
		}
		rest := text[i+1:]
		switch {
		case len(rest) >= 2 && rest[0] == '(':
			g0 = rest[1]
		case len(rest) >= 3 && rest[0] == '$' && rest[1] == '(':
			g0 = 0
		case len(rest) >= 3 && rest[0] == '$' && (rest[1] == ')' || rest[1] == '-'):
			// designates G1: bytes from 0x80 on
		case len(rest) >= 2 && rest[0] == '$':
			g0 = 0
		case len(rest) >= 2 && (rest[0] == ')' || rest[0] == '-'):
		default:
			return false
		}
	}
	return g0 == 'B'
}
