//go:build cuda && linux && !emulated

package driver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const emulated = false

// These tests run with what this computer has: a GPU, a driver without one, or nothing.

func TestAvailable(t *testing.T) {
	err := Available()
	n, countErr := count()
	var unavailable *Unavailable
	switch {
	case err == nil:
		if n < 1 || countErr != nil {
			t.Fatalf("count is %d, error %v", n, countErr)
		}
		d, err := Open(0, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", d.Info())
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	case !errors.As(err, &unavailable):
		t.Errorf("error of type %T", err)
	case unavailable.Reason == "" || strings.Contains(unavailable.Reason, "\n"):
		t.Errorf("reason %q is not one line", unavailable.Reason)
	case n != 0 || countErr != err:
		t.Errorf("count is %d, error %v", n, countErr)
	}
}

// TestWhichLibrary: a library that says so when it is loaded is loaded from where the system's linker
// looks, and only when it is asked for; the variable of tests does nothing.
func TestWhichLibrary(t *testing.T) {
	library := compile(t, `#include <stdio.h>
		__attribute__((constructor)) static void loaded(void) { puts("loaded"); fflush(stdout); }`)
	dir := t.TempDir()
	if err := os.Symlink(library, filepath.Join(dir, "libcuda.so.1")); err != nil {
		t.Fatal(err)
	}
	const broken = "no CUDA: the driver's library is broken: it has no cuInit"
	for _, c := range []struct{ task, path, want string }{
		{"nothing", dir, ""},
		{"available", dir, "loaded\n" + broken},
	} {
		t.Setenv("LD_LIBRARY_PATH", c.path)
		if got := process(t, c.task, "", ""); got != c.want {
			t.Errorf("task %s: got %q, want %q", c.task, got, c.want)
		}
	}
	t.Setenv("LD_LIBRARY_PATH", "")
	if got := process(t, "available", "", library); strings.Contains(got, "loaded") {
		t.Error("a program without the tag emulated loads DENOISED_CUDA_LIB")
	}
}
