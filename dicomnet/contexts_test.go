package dicomnet

import (
	"strings"
	"testing"
)

// What is no UID is quoted, so that no byte of it hides in a log or an error.
func TestUIDNames(t *testing.T) {
	for uid, want := range map[string]string{
		VerificationSOPClass: "Verification SOP Class", "1.2.3": "1.2.3", "": `""`, "1.2.3\x00x": `"1.2.3\x00x"`,
		"1.2.3\u200b": `"1.2.3\u200b"`, "a\nb": `"a\nb"`, strings.Repeat("1", 65): `"` + strings.Repeat("1", 64) +
			`"… (65 bytes)`,
	} {
		if got := uidName(uid); got != want {
			t.Errorf("%q: %s, want %s", uid, got, want)
		}
	}
}
