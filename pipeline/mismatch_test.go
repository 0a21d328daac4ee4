package pipeline

import (
	"strings"
	"testing"
)

// What differs is seen, however it hides: behind a NUL, behind 80 bytes that are equal, as a
// letter that looks like another, or as one that no screen shows.
func TestMismatchShowsEveryByte(t *testing.T) {
	long := strings.Repeat("1.", 40) + "1"
	for _, in := range []struct{ command, dataSet string }{
		{"1.2.3", "1.2.3\x00x"}, {"1.2.3", "1.2.3\u200b"}, {"1.2.3", "1.2.\uff13"}, {"1.2.3", "1\u2024" + "2.3"},
		{"1.2.3", "1.2.3\n"}, {long[:64], long[:66]}, {long, long + "1"},
	} {
		s := (&MismatchError{Attribute: "SOPInstanceUID", Command: in.command, DataSet: in.dataSet}).Error()
		before, after, ok := strings.Cut(strings.TrimPrefix(s, "SOPInstanceUID is "), " in the command and ")
		if !ok || before+" in the data set" == after {
			t.Errorf("%+q and %+q look the same: %s", in.command, in.dataSet, s)
		}
		for _, r := range s {
			if (r < ' ' || r > '~') && r != '…' {
				t.Errorf("%U is not shown in %q", r, s)
			}
		}
	}
}
