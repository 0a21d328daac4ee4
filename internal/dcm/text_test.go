package dcm_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/expr-lang/expr"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/internal/testdata"
)

func TestAppendASCII(t *testing.T) {
	long := strings.Repeat("x", 61)
	for _, c := range []struct {
		name, charset, value, want string
		ok                         bool
	}{
		{"plain", "", "t1_se", "t1_se DN", true},
		{"padded", "ISO_IR 100", "t1_s ", "t1_s DN", true},
		{"latin", "ISO_IR 100", "Sch\xe4del", "Sch\xe4del DN", true},
		{"61 characters", "", long, long + " DN", true},
		{"62 characters", "", long + "y", long + "y", false},
		{"UTF-8", "ISO_IR 192", "头颅", "头颅 DN", true},
		{"UTF-8, 61 characters in 183 bytes", "ISO_IR 192", strings.Repeat("头", 61), strings.Repeat("头", 61) + " DN", true},
		{"UTF-8, 62 characters", "ISO_IR 192", strings.Repeat("头", 62), strings.Repeat("头", 62), false},
		{"cut UTF-8", "ISO_IR 192", "头\xe5", "头\xe5", false},
		{"GB18030", "GB18030", "\xcd\xb7", "\xcd\xb7 DN", true},
		{"GB18030 that ends in a backslash byte", "GB18030", "\x81\x5c", "\x81\x5c DN", true},
		{"cut GB18030", "GB18030", "\xcd\xb7\xcd", "\xcd\xb7\xcd", false},
		{"kanji, back in ASCII", `\ISO 2022 IR 87`, "\x1b$B;3ED\x1b(B", "\x1b$B;3ED\x1b(B DN", true},
		{"kanji, left open", `\ISO 2022 IR 87`, "\x1b$B;3ED", "\x1b$B;3ED", false},
		{"kanji in three bytes of escape", `\ISO 2022 IR 159`, "\x1b$(D;3", "\x1b$(D;3", false},
		{"romaji left open", `ISO 2022 IR 13\ISO 2022 IR 87`, "\x1b$B;3\x1b(J", "\x1b$B;3\x1b(J", false},
		{"Korean is in G1", `\ISO 2022 IR 149`, "\x1b$)C\xb1\xe8", "\x1b$)C\xb1\xe8 DN", true},
		{"Greek is in G1", `ISO 2022 IR 100\ISO 2022 IR 126`, "\x1b-F\xc4", "\x1b-F\xc4 DN", true},
		{"a lone escape", `ISO 2022 IR 6`, "x\x1b", "x\x1b", false},
		{"Shift-JIS under ISO_IR 13", "ISO_IR 13", "\x8e\x52", "\x8e\x52", false},
		{"katakana", "ISO_IR 13", "\xd4\xcf", "\xd4\xcf DN", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := dcm.AppendASCII([]byte(c.value), c.charset, " DN")
			if string(got) != c.want || ok != c.ok {
				t.Errorf("%q, %v", got, ok)
			}
		})
	}
}

// Names as the authors of the files give them, in Unicode.
func TestDecodeRealCharsets(t *testing.T) {
	root := filepath.Join(testdata.Dir(t), "dicom", "charset")
	for name, want := range map[string]string{
		"chrArab": "قباني^لنزار", "chrFren": "Buc^Jérôme", "chrGerm": "Äneas^Rüdiger", "chrGreek": "Διονυσιος",
		"chrHbrw": "שרון^דבורה", "chrRuss": "Люкceмбypг", "chrX1": "Wang^XiaoDong=王^小東=", "chrX2": "Wang^XiaoDong=王^小东=",
		"chrH31": "Yamada^Tarou=山田^太郎=やまだ^たろう", "chrI2": "Hong^Gildong=洪^吉洞=홍^길동",
	} {
		file, err := os.ReadFile(filepath.Join(root, name+".dcm"))
		if err != nil {
			t.Fatal(err)
		}
		o, err := scan(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := o.String(dcm.PatientName); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestValues(t *testing.T) {
	d := dcmtest.MR(16, 16, 3)
	d.Text(dcm.EchoNumbers, dcm.IS, ` 2 \3`).Text(dcm.FlipAngle, dcm.DS, "nan").Text(dcm.WindowCenter, dcm.DS, `1e3\5`).
		SS(dcm.SmallestImagePixelValue, -7).Text(dcm.SoftwareVersions, dcm.LO, `a \b`)
	for _, ts := range []string{dcm.ExplicitVRLittleEndian, dcm.ImplicitVRLittleEndian, dcm.ExplicitVRBigEndian} {
		o, err := d.US(dcm.PixelRepresentation, 1).Scan(dcmtest.Form{TransferSyntaxUID: ts})
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := o.Int(dcm.EchoNumbers); !ok || n != 2 {
			t.Errorf("EchoNumbers %d %v", n, ok)
		}
		if _, ok := o.Float(dcm.FlipAngle); ok {
			t.Error("nan is a number")
		}
		if n, ok := o.Int(dcm.WindowCenter); !ok || n != 1000 {
			t.Errorf("WindowCenter %d %v", n, ok)
		}
		if n, ok := o.Int(dcm.SmallestImagePixelValue); !ok || n != -7 {
			t.Errorf("%s: SmallestImagePixelValue %d %v", ts, n, ok)
		}
		if v := o.Strings(dcm.SoftwareVersions); len(v) != 2 || v[0] != "a" || v[1] != "b" {
			t.Errorf("SoftwareVersions %q", v)
		}
		if _, err := o.Bytes(dcm.PixelData, 511); err == nil {
			t.Error("limit of Bytes not kept")
		}
		if b, err := o.Bytes(dcm.PixelData, 512); err != nil || len(b) != 512 {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		if _, ok := o.Int(0x00099999); ok || o.String(0x00099999) != "" || o.Strings(0x00099999) != nil {
			t.Error("an absent element has a value")
		}
	}
}

// Every keyword has its type whatever the object holds, and a rule compiled
// against the types runs on the values.
func TestKeywords(t *testing.T) {
	types := dcm.KeywordTypes()
	program, err := expr.Compile(`ProtocolName endsWith "_HQ" and ImageType contains "ND" and EchoTime < 20 and Rows == 16 and SeriesNumber == 4`,
		expr.Env(types), expr.AsBool())
	if err != nil {
		t.Fatal(err)
	}
	o, err := dcmtest.MR(16, 16, 0).Scan(dcmtest.Form{})
	if err != nil {
		t.Fatal(err)
	}
	env := o.Keywords()
	if got, err := expr.Run(program, env); err != nil || got != true {
		t.Errorf("rule gives %v, %v", got, err)
	}
	if env["ImageType"] != `ORIGINAL\PRIMARY\M\ND` {
		t.Errorf("ImageType %q", env["ImageType"])
	}
	empty, err := (&dcmtest.DataSet{}).Scan(dcmtest.Form{})
	if err != nil {
		t.Fatal(err)
	}
	for _, values := range []map[string]any{env, empty.Keywords()} {
		if len(values) != len(types) {
			t.Errorf("%d values, %d types", len(values), len(types))
		}
		for name, zero := range types {
			switch zero.(type) {
			case string:
				_ = values[name].(string)
			case int:
				_ = values[name].(int)
			case float64:
				_ = values[name].(float64)
			default:
				t.Errorf("%s has type %T", name, zero)
			}
		}
	}
	if len(types) < 80 {
		t.Errorf("%d keywords", len(types))
	}
}

func TestWriteFileMeta(t *testing.T) {
	var b bytes.Buffer
	m := dcm.FileMeta{SOPClassUID: "1.2.840.10008.5.1.4.1.1.4", SOPInstanceUID: "1.2.3",
		TransferSyntaxUID: dcm.ImplicitVRLittleEndian, SourceAETitle: "MR1"}
	n, err := dcm.WriteFileMeta(&b, m)
	if err != nil || n != int64(b.Len()) || n%2 != 0 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if !bytes.Equal(b.Bytes()[:128], make([]byte, 128)) {
		t.Error("preamble is not zero")
	}
	o, err := scan(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if o.DataSetOffset() != n || o.TransferSyntaxUID() != dcm.ImplicitVRLittleEndian {
		t.Error("offset or transfer syntax")
	}
	for tag, want := range map[dcm.Tag]string{
		dcm.MediaStorageSOPClassUID: m.SOPClassUID, dcm.MediaStorageSOPInstanceUID: "1.2.3",
		dcm.ImplementationClassUIDTag: dcm.ImplementationClassUID, dcm.SourceApplicationEntityTitle: "MR1",
		dcm.ImplementationVersionNameTag: dcm.ImplementationVersionName,
	} {
		if got := o.String(tag); got != want {
			t.Errorf("%v is %q", tag, got)
		}
	}
	if length, _ := o.Int(dcm.FileMetaInformationGroupLength); length != n-144 {
		t.Errorf("group length %d of %d", length, n-144)
	}
	if _, err := dcm.WriteFileMeta(&b, dcm.FileMeta{SOPInstanceUID: strings.Repeat("1", 257)}); err == nil {
		t.Error("an endless UID is accepted")
	}
	if dcm.ImplementationClassUID != dicomnet.ImplementationClassUID || dcm.ImplementationVersionName != dicomnet.ImplementationVersionName {
		t.Error("files and associations name two implementations")
	}
	if len(dcm.ImplementationClassUID) > 64 || len(dcm.ImplementationVersionName) > 16 {
		t.Error("own names too long")
	}
}
