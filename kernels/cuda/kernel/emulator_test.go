//go:build cuda && linux && emulated

package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestEmulator: the emulation finds the mistakes of emu/traps.cc, in both orders or in one of them, and
// none where there is none.
func TestEmulator(t *testing.T) {
	compiler := os.Getenv("CXX")
	if compiler == "" {
		compiler = "g++"
	}
	program := filepath.Join(t.TempDir(), "traps")
	if out, err := exec.Command(compiler, "-std=c++20", "-O1", "-ffp-contract=off", "-o", program, "emu/traps.cc").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := func(name, order string) (out string, ok bool) {
		b, err := exec.Command(program, name, order).CombinedOutput()
		return string(b), err == nil
	}

	for name, want := range map[string]string{
		"some_at_barrier":  "lanes",
		"barriers_apart":   "at the barrier of emu/traps.cc:",
		"operations_apart": "lanes of one warp are at ",
		"too_much_shared":  "49156 bytes of static",
		"odd_address":      "not a multiple of 16",
	} {
		for _, order := range []string{"forward", "reversed"} {
			if out, ok := run(name, order); ok || !strings.Contains(out, want) {
				t.Errorf("%s, %s: ended well is %v with %q, want an end with %q", name, order, ok, out, want)
			}
		}
	}

	list := func(f func(i int) any) string {
		var b strings.Builder
		for i := range 64 {
			fmt.Fprint(&b, f(i), " ")
		}
		return b.String()
	}
	for name, want := range map[string]string{
		"missing_barrier": list(func(i int) any { return 63 - i }),
		"missing_wait":    list(func(i int) any { return i }),
		"early_copy":      list(func(int) any { return 1 }),
	} {
		right := 0
		for _, order := range []string{"forward", "reversed"} {
			out, ok := run(name, order)
			if !ok {
				t.Errorf("%s, %s: %s", name, order, out)
			}
			if out == want {
				right++
			}
		}
		if right == 2 {
			t.Errorf("%s gives what is right in both orders", name)
		}
	}

	product := 0
	for i := range 16 {
		for j := range 8 {
			for k := range 16 {
				product += (i - k) * (2*k + j) * (8*i + j)
			}
		}
	}
	for name, want := range map[string]string{
		"uninitialised": strings.Replace(list(func(int) any { return 1 }), "1", "-nan", 1),
		"right":         list(func(int) any { return fmt.Sprint(product) }),
	} {
		for _, order := range []string{"forward", "reversed"} {
			if out, ok := run(name, order); !ok || out != want {
				t.Errorf("%s, %s: %q, want %q", name, order, out, want)
			}
		}
	}
}
