package cpu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/testdata"
)

// TestEncoding disassembles the instructions that the generator has written as
// bytes, and compares them with what it says they are.
func TestEncoding(t *testing.T) {
	testdata.Peer(t, "objdump")
	assembly, err := os.ReadFile("conv_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^\tBYTE +(.*) // (.*)$`)
	var code []byte
	var want []string
	starts := map[int]int{} // place in code to place in want
	for _, m := range line.FindAllStringSubmatch(string(assembly), -1) {
		starts[len(code)] = len(want)
		for _, b := range strings.Split(m[1], "; BYTE ") {
			var v byte
			if _, err := fmt.Sscanf(b, "$0x%x", &v); err != nil {
				t.Fatalf("%s: %v", m[0], err)
			}
			code = append(code, v)
		}
		want = append(want, m[2])
	}
	for _, opcode := range []string{"VDPBF16PS", "VPDPBUSD.VEX", "VCVTNE2PS2BF16", "VCVTNEPS2BF16", "LDTILECFG",
		"TILERELEASE", "TILEZERO", "TILELOADD", "TILESTORED", "TDPBF16PS"} {
		if !strings.Contains(strings.Join(want, "\n"), opcode) {
			t.Errorf("no %s among the bytes", opcode)
		}
	}
	file := filepath.Join(t.TempDir(), "code")
	if err := os.WriteFile(file, code, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-w", "--no-show-raw-insn", file).Output()
	if err != nil {
		t.Fatalf("objdump: %v", err)
	}
	spaces := regexp.MustCompile(`[ \t]+`)
	checked := 0
	for _, m := range regexp.MustCompile(`(?m)^ *([0-9a-f]+):\t(.*)$`).FindAllStringSubmatch(string(out), -1) {
		var at int
		fmt.Sscanf(m[1], "%x", &at)
		k, ok := starts[at]
		if !ok {
			t.Fatalf("an instruction at %#x is not where a line begins: %s", at, m[2])
		}
		if got := strings.TrimSpace(spaces.ReplaceAllString(m[2], " ")); got != unixSyntax(want[k]) {
			t.Errorf("bytes of %q are %q, want %q", want[k], got, unixSyntax(want[k]))
		}
		checked++
	}
	if checked != len(want) {
		t.Errorf("objdump found %d instructions, want %d", checked, len(want))
	}
}

// unixSyntax writes an instruction of Go's assembler as objdump does.
func unixSyntax(s string) string {
	opcode, operands, _ := strings.Cut(s, " ")
	if plain, ok := strings.CutSuffix(opcode, ".VEX"); ok {
		opcode = "{vex} " + plain
	}
	operands = regexp.MustCompile(`(-?\d+)\(`).ReplaceAllStringFunc(operands, func(m string) string {
		var v int
		fmt.Sscanf(m, "%d(", &v)
		return fmt.Sprintf("%#x(", v)
	})
	operands = regexp.MustCompile(`\)\((\w+)\*1\)`).ReplaceAllString(operands, ",$1,1)")
	operands = regexp.MustCompile(`\b(TMM|R)?([A-Z]*)(\d*)\b`).ReplaceAllStringFunc(operands, func(r string) string {
		switch {
		case r == "" || r[0] >= '0' && r[0] <= '9':
			return r
		case strings.HasPrefix(r, "TMM"):
		case r[0] == 'Z' || r[0] == 'Y':
			r = r[:1] + "MM" + r[1:]
		case r[0] != 'R':
			r = "R" + r
		}
		return "%" + strings.ToLower(r)
	})
	return strings.TrimSpace(strings.ToLower(opcode) + " " + strings.ReplaceAll(operands, ", ", ","))
}
