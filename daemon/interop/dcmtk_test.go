package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// sent is what a sender reports of one file.
type sent struct {
	File           string
	SOPInstanceUID string
	Status         uint16
	Answered       bool // a C-STORE response came; else the sender never sent it
}

func (s sent) String() string {
	if !s.Answered {
		return "not sent"
	}
	return fmt.Sprintf("0x%04X", s.Status)
}

// dcmsend pushes files with DCMTK's dcmsend, compressed ones as they are, and
// returns its report for each. Files that DCMTK cannot read are not in it.
func dcmsend(t testing.TB, port int, aet string, files ...string) []sent {
	t.Helper()
	report := filepath.Join(t.TempDir(), "report.txt")
	args := []string{"-q", "-dn", "-nh", "-nuc", "-aet", "SCANNER", "-aec", aet, "-to", "30", "-td", "120",
		"--create-report-file", report, "127.0.0.1", strconv.Itoa(port)}
	out, err := run(t, "dcmsend", append(args, files...)...)
	data, readErr := os.ReadFile(report)
	if readErr != nil {
		t.Fatalf("dcmsend left no report (%v): %v\n%s", readErr, err, out)
	}
	return parseReport(t, string(data))
}

var dimseStatus = regexp.MustCompile(`^0x([0-9a-fA-F]{4})`)

// parseReport reads dcmsend's report file: blocks of "Name : value" lines.
func parseReport(t testing.TB, report string) []sent {
	t.Helper()
	var out []sent
	for line := range strings.Lines(report) {
		name, value, ok := strings.Cut(line, " : ")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(name) {
		case "Filename":
			out = append(out, sent{File: value})
		case "SOP Instance":
			out[len(out)-1].SOPInstanceUID = value
		case "DIMSE Status":
			if m := dimseStatus.FindStringSubmatch(value); m != nil {
				status, err := strconv.ParseUint(m[1], 16, 16)
				if err != nil {
					t.Fatal(err)
				}
				out[len(out)-1].Status, out[len(out)-1].Answered = uint16(status), true
			}
		}
	}
	return out
}

// storescu pushes files with DCMTK's storescu, which sends one context for each
// storage class whether needed or not, as many scanners do.
func storescu(t testing.TB, port int, aet string, files ...string) []sent {
	t.Helper()
	args := []string{"-v", "-nh", "-aet", "SCANNER", "-aec", aet, "-to", "30", "-td", "120", "127.0.0.1", strconv.Itoa(port)}
	out, err := run(t, "storescu", append(args, files...)...)
	var list []sent
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "I: Sending file: "); ok {
			list = append(list, sent{File: name})
		}
		if status, ok := strings.CutPrefix(strings.TrimSpace(line), "I: Received Store Response ("); ok && len(list) > 0 {
			last := &list[len(list)-1]
			last.Answered = true
			if status = strings.TrimSuffix(status, ")"); status != "Success" {
				last.Status = 0xC000 // the number is not printed, that it failed is
			}
		}
	}
	if len(list) == 0 {
		t.Fatalf("storescu sent nothing: %v\n%s", err, out)
	}
	return list
}

// elements returns the top-level elements of a DICOM file as DCMTK prints them:
// tag such as "0010,0010" to the text of the element with everything inside it.
// Pixel data is left out, it is compared elsewhere.
func elements(t testing.TB, file string) map[string]string {
	t.Helper()
	out, err := run(t, "dcmdump", "-q", "+L", "-Un", file)
	if err != nil {
		t.Fatalf("dcmdump %s: %v", file, err)
	}
	list := make(map[string]string)
	tag := ""
	for line := range strings.Lines(out) {
		// The end marks of sequences stand at the margin too and belong to them.
		if strings.HasPrefix(line, "(") && len(line) > 10 && !strings.HasPrefix(line, "(fffe,") {
			tag = line[1:10]
		}
		if tag == "" || tag == "7fe0,0010" || strings.HasPrefix(tag, "0002,") {
			continue
		}
		list[tag] += line
	}
	return list
}

var (
	quotedValue = regexp.MustCompile(`= <[^<>]*>`)
	valueNumber = regexp.MustCompile(`\[\d+\]`)
	character   = regexp.MustCompile(`Character invalid.*`)
)

// errorClasses returns the kinds of error that dciodvfy finds in a file: its
// messages without the values they quote, so that the same mistake in another
// object is the same class.
func errorClasses(t testing.TB, file string) map[string]bool {
	t.Helper()
	out, _ := run(t, "dciodvfy", file) // its exit status says nothing that the text does not
	classes := make(map[string]bool)
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); strings.Contains(line, "Error - ") && !mistaken(line) {
			classes[errorClass(line)] = true
		}
	}
	return classes
}

// mistaken are errors that dciodvfy finds in every derived enhanced MR object,
// those of the scanners included: attributes of the MR Pulse Sequence module
// are required for original images only, but "may be present otherwise"
// (PS3.3 C.8.13.4, table C.8-87).
func mistaken(line string) bool {
	return strings.Contains(line, "may not be present otherwise") && strings.Contains(line, "Module=<MRPulseSequence>")
}

func errorClass(line string) string {
	// A source whose own UID is illegal must be referred to by that UID.
	line, _, _ = strings.Cut(line, " - \"")
	line = quotedValue.ReplaceAllString(line, "= <>")
	line = valueNumber.ReplaceAllString(line, "[]")
	return character.ReplaceAllString(line, "Character invalid")
}

func TestErrorClass(t *testing.T) {
	const kind = "Error - Value invalid for this VR - (0x0008,0x0020) DA Study Date  DA "
	a := errorClass(kind + "[1] = <00010101> - Character invalid for this VR = '0' (0x30)")
	b := errorClass(kind + "[2] = <20200x01> - Character invalid for this VR = 'x' (0x78)")
	if a != b {
		t.Errorf("same kind, two classes:\n%s\n%s", a, b)
	}
	const missing = "Error - Missing attribute Type 2C Conditional Element=<Laterality> Module=<GeneralSeries>"
	if got := errorClass(missing); got != missing {
		t.Errorf("the element and module are part of the class, got %s", got)
	}
}
