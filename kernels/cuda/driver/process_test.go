//go:build cuda && linux && emulated

package driver

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const emulated = true

func init() {
	tasks["devices"] = listDevices
	tasks["work"] = work
	tasks["overrun"] = overrun
}

func listDevices() {
	n, _ := count()
	for i := range n {
		d, err := Open(i, false)
		if err != nil {
			fmt.Println(err)
			return
		}
		info := d.Info()
		fmt.Println(info.Ordinal, info.Name, info.Major, info.Minor, info.SMs, info.SharedPerBlock>>10, info.Memory>>20, d.Close())
	}
}

// work launches three times and says what fails.
func work() {
	d, err := Open(0, false)
	say("open", err)
	m, err := d.Load(image("sm_80"))
	say("load", err)
	f, err := m.Function("selftest_scale")
	say("function", err)
	s, err := d.NewStream()
	say("stream", err)
	p, err := d.Alloc(4)
	say("alloc", err)
	for range 3 {
		say("launch", s.Launch(f, [3]int{1, 1, 1}, [3]int{1, 1, 1}, 0, uint64(p), 0, 1))
	}
	say("sync", s.Sync())
	_, err = d.Alloc(4)
	say("alloc", err)
	say("free", d.Free(p))
	say("destroy", s.Destroy())
	say("unload", m.Unload())
}

// overrun has a kernel write beyond the end of its memory.
func overrun() {
	d, err := Open(0, false)
	say("open", err)
	m, err := d.Load(image("sm_80"))
	say("load", err)
	f, err := m.Function("selftest_scale")
	say("function", err)
	s, err := d.NewStream()
	say("stream", err)
	p, err := d.Alloc(8)
	say("alloc", err)
	say("launch", s.Launch(f, [3]int{1, 1, 1}, [3]int{32, 1, 1}, 0, uint64(p), bits(0), 3))
	say("free", d.Free(p))
}

func say(what string, err error) {
	var e *Error
	switch {
	case errors.As(err, &e) && e.Lost():
		fmt.Print(what, " lost ", e.Code, "; ")
	case errors.As(err, &e):
		fmt.Print(what, " ", e.Code, "; ")
	case err != nil:
		fmt.Print(what, " ", err, "; ")
	}
}

// TestAvailable goes through all that keeps a computer from using a GPU.
func TestAvailable(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text.so")
	if err := os.WriteFile(text, []byte("no library\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	partial := compile(t, "int cuInit(unsigned f) { return 0; } int cuDriverGetVersion(int *v) { *v = 12000; return 0; }")
	old := compile(t, "int cuDriverGetVersion(int *v) { *v = 11000; return 0; }")
	mute := "int cuInit(unsigned f) { return 0; }"
	for _, name := range needed(t) {
		mute += " int " + name + "(void) { return 999; }"
	}
	mute = compile(t, mute)
	for _, c := range []struct{ name, device, library, want string }{
		{"usable", "", "", "<nil>"},
		{"absent", "", dir + "/libcuda.so.1", "no CUDA: no driver is installed: " + dir + "/libcuda.so.1: cannot open shared object file: No such file or directory"},
		{"not a library", "", text, "no CUDA: the driver's library does not load: " + text + ": file too short"},
		{"another library", "", "libc.so.6", "no CUDA: the driver's library is broken: it has no cuInit"},
		{"partial library", "", partial, "no CUDA: the driver's library is broken: it has no cuCtxSetCurrent"},
		{"old library", "", old, "no CUDA: the driver is too old: it supports CUDA 11.0, needed is 11.4"},
		{"without version", "", mute, "no CUDA: the driver's library is broken: it does not tell its version"},
		{"too old", "driver=11030", "", "no CUDA: the driver is too old: it supports CUDA 11.3, needed is 11.4"},
		{"just new enough", "driver=11040", "", "<nil>"},
		{"too old and without device", "driver=10020,fail_init=100", "", "no CUDA: the driver is too old: it supports CUDA 10.2, needed is 11.4"},
		{"no device", "fail_init=100", "", "no CUDA: the driver does not start: no CUDA-capable device is detected (error 100 of cuInit)"},
		{"mismatch", "fail_init=803", "", "no CUDA: the driver does not start: system has unsupported display driver / cuda driver combination (error 803 of cuInit)"},
		{"error without a name", "fail_init=12345", "", "no CUDA: the driver does not start: unknown error (error 12345 of cuInit)"},
		{"no devices", "devices=0", "", "no CUDA: the driver finds no GPU"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := process(t, "available", c.device, c.library); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestDevices(t *testing.T) {
	got := process(t, "devices", "devices=2,cc=9.0,sms=132,memory=1G,name=Big One", "")
	want := "0 Big One 9 0 132 227 1024 <nil>\n1 Big One 9 0 132 227 1024 <nil>"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFailures(t *testing.T) {
	sticky := "launch lost 700; sync lost 700; alloc lost 700; free lost 700; destroy lost 700; unload lost 700;"
	if reversed() { // the launches have not run before Sync
		sticky = "sync lost 700; alloc lost 700; free lost 700; destroy lost 700; unload lost 700;"
	}
	for _, c := range []struct{ device, want string }{
		{"", ""},
		{"fail_launch_after=1:700", sticky},
		{"fail_launch_after=0:701", "launch 701;"},
		{"fail_alloc_after=1", "alloc 2;"},
	} {
		t.Run(c.device, func(t *testing.T) {
			if got := process(t, "work", c.device, ""); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestHang(t *testing.T) {
	began := time.Now()
	if got := process(t, "work", "hang_launch=2:1", ""); got != "" || time.Since(began) < time.Second {
		t.Errorf("got %q after %v", got, time.Since(began))
	}
}

func TestOverrun(t *testing.T) {
	want := "emulated kernel: device memory of 8 bytes was written 0 bytes beyond its end"
	sanitizer := "heap-buffer-overflow kernels/cuda/kernel/emu/selftest.cu"
	if out, err := try(t, "overrun", "", ""); err == nil || !strings.Contains(out, want) && !strings.Contains(out, sanitizer) {
		t.Errorf("error %v, output %s", err, out)
	}
}

// TestEmulatorIsComplete: what package driver calls is exactly what the emulator has, so that a test
// which passes calls nothing else.
func TestEmulatorIsComplete(t *testing.T) {
	f, err := elf.Open(os.Getenv("DENOISED_CUDA_LIB"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, s := range symbols {
		if strings.HasPrefix(s.Name, "cu") && s.Section != elf.SHN_UNDEF && s.Name != "cuInit" {
			have = append(have, s.Name)
		}
	}
	slices.Sort(have)
	if want := needed(t); !slices.Equal(have, want) {
		t.Errorf("the emulator has\n%v\nneeded are\n%v", have, want)
	}
}

// needed are the symbols that the loader insists on, sorted.
func needed(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("names.h")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	_, rest, _ := strings.Cut(string(text), "#define CUSHIM_NEEDED ")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`"(cu\w+)"`).FindAllStringSubmatch(rest, n) {
		names = append(names, m[1])
	}
	return names
}
