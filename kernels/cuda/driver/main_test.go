//go:build cuda && linux

package driver

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gorgonia.org/cu"
)

func TestMain(m *testing.M) {
	if task := os.Getenv("DRIVER_TEST_TASK"); task != "" {
		tasks[task]()
		os.Exit(0)
	}
	if emulated && os.Getenv("DENOISED_CUDA_LIB") == "" {
		fmt.Println("tests with the tag emulated need the emulated driver: run make test-emulated, or set DENOISED_CUDA_LIB")
		os.Exit(1)
	}
	code := m.Run()
	if left := Live(); left != (Counts{}) && code == 0 {
		fmt.Printf("still alive after all tests: %+v\n", left)
		code = 1
	}
	os.Exit(code)
}

// tasks are run by the test program in a process of their own, since a driver starts once, and
// loses a context for good. Each prints what the test expects.
var tasks = map[string]func(){
	"available": func() {
		err := Available()
		var unavailable *Unavailable
		if err != nil && !errors.As(err, &unavailable) {
			fmt.Printf("of type %T: ", err)
		}
		fmt.Println(err)
		if n, again := count(); again != err || (n > 0) != (err == nil) {
			fmt.Println("count says otherwise:", n, again)
		}
		if _, again := Open(0, false); err != nil && again != err {
			fmt.Println("Open says otherwise:", again)
		}
	},
	"nothing": func() {},
}

// reversed tells which of its two orders the emulator runs things in.
func reversed() bool { return strings.Contains(os.Getenv("DENOISED_EMU"), "order=reversed") }

// process runs a task with an emulated device, or another library, in the order of this process.
func process(t *testing.T, task, device, library string) string {
	t.Helper()
	out, err := try(t, task, device, library)
	if err != nil {
		t.Errorf("task %s with device %q: %v", task, device, err)
	}
	return out
}

// try is process for a task that may end its process.
func try(t *testing.T, task, device, library string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if reversed() {
		device = strings.TrimPrefix(device+",order=reversed", ",")
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "DRIVER_TEST_TASK="+task, "DENOISED_EMU="+device, "GORACE=atexit_sleep_ms=0")
	if library != "" {
		cmd.Env = append(cmd.Env, "DENOISED_CUDA_LIB="+library)
	}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// compile makes a shared library of C source. Who has built this test has a compiler.
func compile(t *testing.T, source string) string {
	t.Helper()
	out, err := exec.Command("go", "env", "CC").Output()
	if err != nil {
		t.Fatal(err)
	}
	library := filepath.Join(t.TempDir(), "lib.so")
	cc := exec.Command(strings.TrimSpace(string(out)), "-shared", "-fPIC", "-x", "c", "-o", library, "-")
	cc.Stdin = strings.NewReader(source)
	if out, err := cc.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return library
}

// TestNotLinked: a program that needed libcuda.so.1 would not start where there is none.
func TestNotLinked(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libraries, err := f.ImportedLibraries()
	if err != nil || len(libraries) == 0 {
		t.Fatalf("libraries %v, error %v", libraries, err)
	}
	for _, l := range libraries {
		if strings.HasPrefix(l, "libcuda") {
			t.Errorf("the program needs %s", l)
		}
	}
}

// count is the number of GPUs.
func count() (int, error) {
	if err := Available(); err != nil {
		return 0, err
	}
	n, err := cu.NumDevices()
	return n, wrap("cuDeviceGetCount", err)
}
