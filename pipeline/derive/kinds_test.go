package derive_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

func inspected(t *testing.T, d *dcmtest.DataSet, admit ...string) derive.Verdict {
	t.Helper()
	return derive.Inspect(mustScan(t, d, dcmtest.Form{}), admit...)
}

// example is a word of a row of the table as a scanner writes it.
func example(word string) string {
	if word == "T2*" || word == "R2*" {
		return word
	}
	return strings.NewReplacer("#", "2", "*", "X").Replace(word)
}

// Every word of the table does what its row says, in a classic image and as a frame's type, in
// lower case too; a word for value 3 is unknown elsewhere.
func TestKinds(t *testing.T) {
	kinds := map[string]string{}
	for _, row := range derive.Terms() {
		var want derive.Reason
		switch row.Kind {
		case "magnitude", "acquisition", "processing":
		default:
			want = derive.Reason(row.Kind)
		}
		for _, word := range row.Words {
			if k, ok := kinds[word]; ok && k != row.Kind {
				t.Errorf("%s is %s and %s", word, k, row.Kind)
			}
			kinds[word] = row.Kind
			w := example(word)
			types := []string{`ORIGINAL\PRIMARY\` + w}
			if row.Place != "as value 3 only" {
				types = append(types, `ORIGINAL\PRIMARY\M\ND\`+strings.ToLower(w))
			}
			for _, it := range types {
				if v := inspected(t, mr().Text(dcm.ImageType, dcm.CS, it)); v.Reason != want {
					t.Errorf("%s: %v, want %q", it, v, want)
				}
				if v := inspected(t, enhanced(magnitude, it)); v.Reason != want {
					t.Errorf("frame type %s: %v, want %q", it, v, want)
				}
			}
			if it := `ORIGINAL\PRIMARY\M\` + w; row.Place == "as value 3 only" {
				if v := inspected(t, mr().Text(dcm.ImageType, dcm.CS, it)); v.Reason != derive.UnknownKind {
					t.Errorf("%s: %v", it, v)
				}
			}
			if err := derive.CheckAdmit(w); (err == nil) != (want == "") {
				t.Errorf("admit %s: %v", w, err)
			}
		}
	}
}

// A word of no known kind keeps the image untouched wherever it stands, until it is admitted.
func TestUnknownKinds(t *testing.T) {
	siemensXA := inFirstFrame(enhanced(magnitude), dcm.Text(0x00210011, dcm.LO, "SIEMENS MR SDI 02"),
		dcm.Text(0x00211175, dcm.CS, `ORIGINAL\PRIMARY\M\SWI\NORM`))
	for _, c := range []struct {
		name   string
		d      *dcmtest.DataSet
		form   dcmtest.Form
		admit  []string
		reason derive.Reason
	}{
		{"unknown", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\SWI\ND`), dcmtest.Form{}, nil,
			derive.UnknownKind},
		{"admitted", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M\SWI\ND`), dcmtest.Form{}, []string{"swi"},
			""},
		{"admitted, implicit", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\SWI`),
			dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian}, []string{"OTHERS", "SWI"}, ""},
		{"another word is admitted", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\SWI`), dcmtest.Form{},
			[]string{"SW"}, derive.UnknownKind},
		{"one of two", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\SWI\VSRAD`), dcmtest.Form{}, []string{"SWI"},
			derive.UnknownKind},
		{"two of two", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\SWI\VSRAD`), dcmtest.Form{},
			[]string{"VSRAD", "SWI"}, ""},
		{"Philips perfusion", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\PERFUSION_FFE\PERFUSION\FFE`),
			dcmtest.Form{}, nil, derive.UnknownKind},
		{"Philips R11 B0", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\B0\B0\UNSPECIFIED`), dcmtest.Form{},
			[]string{"B0"}, derive.Map},
		{"a weighting where a map says what it is of",
			mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\T1\T1\UNSPECIFIED`), dcmtest.Form{}, nil, derive.UnknownKind},
		{"frame type", enhanced(magnitude, `ORIGINAL\PRIMARY\T1\FIELD_STRENGTH`), dcmtest.Form{}, nil,
			derive.UnknownKind},
		{"frame type, admitted", enhanced(magnitude, `ORIGINAL\PRIMARY\T1\FIELD_STRENGTH`), dcmtest.Form{},
			[]string{"FIELD_STRENGTH"}, ""},
		{"Siemens text", private(mr(), 0x21, "SIEMENS MR SDI 02", dcm.Text(0x75, dcm.CS, `ORIGINAL\PRIMARY\M\SWI`)),
			dcmtest.Form{}, nil, derive.UnknownKind},
		{"Siemens text, a phase", private(mr(), 0x21, "SIEMENS MR SDI 02",
			dcm.Text(0x75, dcm.CS, `ORIGINAL\PRIMARY\P\DIS2D`)), dcmtest.Form{}, nil, derive.Phase},
		{"Siemens text of a frame", siemensXA, dcmtest.Form{}, nil, derive.UnknownKind},
		{"Siemens text, known", private(mr(), 0x21, "SIEMENS MR SDI 02",
			dcm.Text(0x75, dcm.CS, `ORIGINAL\PRIMARY\M\MB\NORM\DIS2D`)), dcmtest.Form{}, nil, ""},
		{"not a byte of it hides", mr().Text(dcm.ImageType, dcm.CS, "ORIGINAL\\PRIMARY\\M\x00\x01"), dcmtest.Form{},
			nil, derive.UnknownKind},
		{"known is not admitted", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\ADC`), dcmtest.Form{},
			[]string{"ADC"}, derive.Map},
		{"derived is not admitted", mr().Text(dcm.ImageType, dcm.CS, `DERIVED\PRIMARY\SWI`), dcmtest.Form{},
			[]string{"SWI"}, derive.Derived},
		{"other reasons go before", mr().Text(dcm.ImageType, dcm.CS,
			`ORIGINAL\PRIMARY\SWI`).Pixels(make([]uint16, 1023)), dcmtest.Form{}, []string{"SWI"}, derive.Truncated},
		{"no word at all", mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY`), dcmtest.Form{}, nil, ""},
		{"what MR means by it", cr(`ORIGINAL\PRIMARY\CR`), dcmtest.Form{}, nil, ""},
		{"radiographs have no kinds", cr(`ORIGINAL\PRIMARY\SWI`), dcmtest.Form{}, nil, ""},
	} {
		o := mustScan(t, c.d, c.form)
		v := derive.Inspect(o, c.admit...)
		if v.Reason != c.reason {
			t.Errorf("%s: %v, want %q", c.name, v, c.reason)
		}
		if n := derive.Frames(o); (n > 0) != v.OK() {
			t.Errorf("%s: %d frames", c.name, n)
		}
		if v.OK() {
			write(t, o, params(), smooth(o)) // and verifies
		} else if _, err := derive.ReadFrame(o, 0); err == nil {
			t.Errorf("%s: a frame was read", c.name)
		}
	}
	for _, word := range []string{"", "a\\b", "x\x00", "a?b", " SWI", strings.Repeat("x", 65), "é", "ADC", "phase",
		"T1 MAP", "P_SE"} {
		if err := derive.CheckAdmit(word); err == nil {
			t.Errorf("%q can be admitted", word)
		}
	}
}

// shaped is an image of the given values, and of a kind that its image type does not tell.
func shaped(signed bool, value func(rnd *rand.Rand, i int) int) *dcmtest.DataSet {
	rnd := rand.New(rand.NewPCG(1, 2))
	cells := make([]uint16, 64*64)
	for i := range cells {
		cells[i] = uint16(value(rnd, i))
	}
	d := dcmtest.MR(64, 64, 0).US(dcm.BitsStored, 16).US(dcm.HighBit, 15).Text(dcm.ImageType, dcm.CS,
		`ORIGINAL\PRIMARY\OTHER`).Pixels(cells)
	if signed {
		d.US(dcm.PixelRepresentation, 1)
	}
	return d
}

// body is a magnitude: air around a disc.
func body(rnd *rand.Rand, i int) int {
	x, y := i%64-32, i/64-32
	if x*x+y*y < 600 {
		return 800 + int(60*rnd.NormFloat64())
	}
	return int(20 * rnd.ExpFloat64())
}

// What the pixels show counts where no word says magnitude; a signed quantity is none whatever is said.
func TestPixelsTellTheKind(t *testing.T) {
	inside := func(i int) bool { x, y := i%64-32, i/64-32; return x*x+y*y < 600 }
	hz := func(rnd *rand.Rand, i int) int { // a field map in Hz, with air
		if inside(i) {
			return i/64*6 - 190 + int(3*rnd.NormFloat64())
		}
		return 0
	}
	for _, c := range []struct {
		name  string
		d     *dcmtest.DataSet
		other derive.Reason // if the image type is OTHER
		m     derive.Reason // if it is M
	}{
		{"magnitude", shaped(false, body), "", ""},
		{"magnitude, signed", shaped(true, body), "", ""},
		{"a few pixels below 0", shaped(true, func(rnd *rand.Rand, i int) int { return body(rnd, i) - 2 }), "", ""},
		{"no air", shaped(false, func(rnd *rand.Rand, i int) int { return 500 + i%64*8 + int(50*rnd.NormFloat64()) }),
			"", ""},
		{"only air", shaped(false, func(rnd *rand.Rand, i int) int { return int(3 * rnd.ExpFloat64()) }), "", ""},
		{"masked air", shaped(false, func(rnd *rand.Rand, i int) int { return max(0, body(rnd, i)-200) }), "", ""},
		{"shifted by 4 bits", shaped(false, func(rnd *rand.Rand, i int) int { return body(rnd, i) << 4 }), "", ""},
		{"nothing", shaped(false, func(*rand.Rand, int) int { return 0 }), "", ""},
		{"field map in Hz", shaped(true, hz), derive.Phase, derive.Phase},
		{"its offset taken off by an intercept", shaped(false, func(rnd *rand.Rand, i int) int {
			return hz(rnd, i) +
				1000
		}).
			Text(dcm.RescaleIntercept, dcm.DS, "-1000"), derive.Phase, derive.Phase},
		{"its offset not told", shaped(false, func(rnd *rand.Rand, i int) int { return hz(rnd, i) + 1000 }),
			derive.UnknownKind, ""},
		{"phase, air masked", shaped(false, func(rnd *rand.Rand, i int) int {
			if inside(i) {
				return rnd.IntN(4096)
			}
			return 2048
		}), derive.UnknownKind, ""},
		{"phase of noise", shaped(false, func(rnd *rand.Rand, i int) int { return rnd.IntN(4096) }), derive.UnknownKind,
			""},
		{"signed phase", shaped(true, func(rnd *rand.Rand, i int) int { return rnd.IntN(4096) - 2048 }), derive.Phase,
			derive.Phase},
		{"classes", shaped(false, func(rnd *rand.Rand, i int) int { return i / 64 / 8 * 100 }), derive.UnknownKind, ""},
	} {
		if v := inspected(t, c.d); v.Reason != c.other {
			t.Errorf("%s: %v, want %q", c.name, v, c.other)
		}
		if v := inspected(t, c.d.Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M`)); v.Reason != c.m {
			t.Errorf("%s as M: %v, want %q", c.name, v, c.m)
		}
	}
	// what is found among the frames counts, and padding does not
	d := shaped(false, func(rnd *rand.Rand, i int) int {
		if i%3 == 0 {
			return 400
		}
		return body(rnd, i)
	})
	if v := inspected(t, d); v.Reason != derive.UnknownKind {
		t.Errorf("a value in the middle: %v", v)
	}
	if v := inspected(t, d, "other"); !v.OK() {
		t.Errorf("admitted: %v", v)
	}
	if v := inspected(t, d.US(dcm.PixelPaddingValue, 400)); !v.OK() {
		t.Errorf("the same as padding: %v", v)
	}
}

// Units of the real world, and what vendors say elsewhere.
func TestMarksOfKinds(t *testing.T) {
	mapping := func(unit string) *dcmtest.DataSet {
		return mr().Set(dcm.Sequence(0x00409096, []dcm.Node{dcm.Sequence(dcm.MeasurementUnitsCodeSequence,
			[]dcm.Node{dcm.Text(dcm.CodeValue, dcm.SH, unit), dcm.Text(dcm.CodingSchemeDesignator, dcm.SH, "UCUM")})}))
	}
	philips := func(creator, value string) *dcmtest.DataSet {
		return private(mr().Text(dcm.ImageType, dcm.CS, `ORIGINAL\PRIMARY\M_SE\M\SE`), 0x2005, creator,
			dcm.Text(0x10, dcm.CS, value))
	}
	named := func(maker, description string) *dcmtest.DataSet {
		return mr().Text(dcm.Manufacturer, dcm.LO, maker).Text(dcm.SeriesDescription, dcm.LO, description)
	}
	for name, c := range map[string]struct {
		d    *dcmtest.DataSet
		want derive.Reason
	}{
		"no units":           {mapping("1"), ""},
		"arbitrary units":    {mapping("[arb'U]"), ""},
		"milliseconds":       {mapping("ms"), derive.Map},
		"radians":            {mapping("rad"), derive.Phase},
		"hertz":              {mapping("Hz"), derive.Map},
		"GE field map":       {private(mr(), 0x19, "GEMS_ACQU_01", dcm.Text(0x9C, dcm.LO, "B0map")), derive.Map},
		"GE 3D field map":    {private(mr(), 0x19, "GEMS_ACQU_01", dcm.Text(0x9C, dcm.LO, "3db0map")), derive.Map},
		"GE spin echo":       {private(mr(), 0x19, "GEMS_ACQU_01", dcm.Text(0x9C, dcm.LO, "fse-xl")), ""},
		"Philips AI, DD 008": {philips("Philips MR Imaging DD 008", "CS_SENSE_AI"), derive.VendorDenoised},
		"Philips AI, DD 002": {philips("Philips MR Imaging DD 002", "CS_SENSE_AI"), derive.VendorDenoised},
		"Philips AI, in a frame": {inFirstFrame(enhanced(magnitude),
			dcm.Text(0x20050011, dcm.LO, "Philips MR Imaging DD 008"),
			dcm.Text(0x20051110, dcm.CS, "CS_SENSE_AI")), derive.VendorDenoised},
		"Philips CS":   {philips("Philips MR Imaging DD 008", "CS_SENSE"), ""},
		"Philips none": {philips("Philips MR Imaging DD 008", "none"), ""},
		"Siemens steps": {private(mr(), 0x21, "SIEMENS MR SDI 02",
			dcm.Text(0x76, dcm.LO, `ACCAlgo:9\IterativeDenoising:RelStrength=0.850\NormalizeAlgo:PreScan`)),
			derive.VendorDenoised},
		"Siemens steps, plain": {private(mr(), 0x21, "SIEMENS MR SDI 02",
			dcm.Text(0x76, dcm.LO, `ACCAlgo:9\NormalizeAlgo:PreScan`)), ""},
		"Canon AiCE":     {named("CANON_MEC", "T2 FSE AiCE"), derive.VendorDenoised},
		"Canon":          {named("CANON_MEC", "T2 FSE SLICE"), ""},
		"another's AiCE": {named("ACME", "T2 FSE AiCE"), ""},
		"United Imaging": {named("UIH", "t2_fse_DeepRecon"), derive.VendorDenoised},
		"Fujifilm":       {named("FUJIFILM Healthcare", "T2 DLR"), derive.VendorDenoised},
	} {
		if v := inspected(t, c.d); v.Reason != c.want {
			t.Errorf("%s: %v, want %q", name, v, c.want)
		}
	}
}

// The table in the documentation is the one in the code.
func TestKindsAreDocumented(t *testing.T) {
	const name = "../../docs/derived-objects.md"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	const (
		begin = "<!-- kinds: go test ./pipeline/derive -run KindsAreDocumented -update -->\n"
		end   = "<!-- end of kinds -->\n"
	)
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table of kinds", name)
	}
	var b strings.Builder
	b.WriteString("| Vendor | Words of the image type | Taken as | Source |\n|---|---|---|---|\n")
	for _, row := range derive.Terms() {
		words := slices.Clone(row.Words)
		for i := range words {
			words[i] = "`" + words[i] + "`"
		}
		taken := row.Kind
		if row.Place != "" {
			taken += ", " + row.Place
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", row.Vendor, strings.Join(words, " "), taken, row.Source)
	}
	want := head + begin + b.String() + end + tail
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(text) {
		t.Error("the table of kinds in docs/derived-objects.md is out of date: run the command that stands above it")
	}
}
