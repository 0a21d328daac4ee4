package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/packaging"
	"github.com/diffdenoise/denoised/pipeline"
)

// runService runs one `service` verb on the system below root.
func runService(t *testing.T, root string, verb string) (string, error) {
	t.Helper()
	cmd := newServiceCmd()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs([]string{verb, "--root", root})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// TestServiceInstallCUDA: the build that can use a GPU brings what the service must be allowed for it.
func TestServiceInstallCUDA(t *testing.T) {
	const path = "/etc/systemd/system/denoised.service.d/cuda.conf"
	for _, cuda := range []bool{false, true} {
		root := t.TempDir()
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		s := &serviceInstaller{root: root, cuda: cuda, out: &out}
		if err := s.install(t.Context(), self); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(root, path)); (err == nil) != cuda {
			t.Errorf("cuda %v: %v", cuda, err)
		}
		if cuda && !strings.Contains(readUnder(t, root, path), "DeviceAllow=char-nvidia* rw") {
			t.Error("the card is not allowed")
		}
		if err := s.uninstall(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(root, path)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after the end: %v", err)
		}
	}
	// The other program over it: the card is closed again, unless something beside can use it.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, beside := range []bool{false, true} {
		s := &serviceInstaller{root: t.TempDir(), cuda: true, out: io.Discard}
		if err := s.install(t.Context(), self); err != nil {
			t.Fatal(err)
		}
		if beside {
			write(t, s.path("/usr/local/bin/denoised-cuda"), nil)
		}
		s.cuda = false
		if err := s.install(t.Context(), self); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(s.path(path)); (err == nil) != beside {
			t.Errorf("denoised-cuda beside %v: %v", beside, err)
		}
	}
}

func TestServiceInstall(t *testing.T) {
	root := t.TempDir()
	out, err := runService(t, root, "install")
	if err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	unit := readUnder(t, root, "/etc/systemd/system/denoised.service")
	if !strings.Contains(unit, "ExecStart=/usr/local/bin/denoised serve --config /etc/denoised/denoised.yaml\n") {
		t.Errorf("the unit does not start the installed program:\n%s", unit)
	}
	program, err := os.Stat(filepath.Join(root, localBinary))
	if err != nil || program.Mode().Perm() != 0o755 || program.Size() == 0 {
		t.Errorf("program: %v, %v", program, err)
	}
	readUnder(t, root, "/etc/sysusers.d/denoised.conf")

	// The site's edits survive a second installation; an edited unit is set aside.
	edited := strings.Replace(readUnder(t, root, packaging.ConfigPath), "pacs.invalid", "10.1.2.9", 1)
	putUnder(t, root, packaging.ConfigPath, edited)
	putUnder(t, root, "/etc/systemd/system/denoised.service", "[Service]\n")
	if out, err = runService(t, root, "install"); err != nil {
		t.Fatalf("second install: %v\n%s", err, out)
	}
	if got := readUnder(t, root, packaging.ConfigPath); got != edited {
		t.Errorf("the edited configuration was overwritten")
	}
	if got := readUnder(t, root, "/etc/systemd/system/denoised.service"); got != unit {
		t.Errorf("the unit was not brought up to date")
	}
	if got := readUnder(t, root, "/etc/systemd/system/denoised.service.previous"); got != "[Service]\n" {
		t.Errorf("the edited unit was not set aside: %q", got)
	}

	if out, err = runService(t, root, "status"); err != nil || !strings.Contains(out, "/etc/systemd/system/denoised.service") {
		t.Errorf("status: %v\n%s", err, out)
	}

	if out, err = runService(t, root, "uninstall"); err != nil {
		t.Fatalf("uninstall: %v\n%s", err, out)
	}
	for _, gone := range []string{localBinary, "/etc/systemd/system/denoised.service", "/etc/sysusers.d/denoised.conf"} {
		if _, err := os.Stat(filepath.Join(root, gone)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there (%v)", gone, err)
		}
	}
	if got := readUnder(t, root, packaging.ConfigPath); got != edited {
		t.Errorf("uninstalling changed the configuration")
	}
	if _, err = runService(t, root, "uninstall"); err == nil {
		t.Errorf("uninstalling twice must say that there is nothing")
	}
	if _, err = runService(t, root, "status"); err == nil {
		t.Errorf("status of nothing must fail")
	}
}

func TestServiceLeavesPackagesAlone(t *testing.T) {
	root := t.TempDir()
	putUnder(t, root, "/usr/lib/systemd/system/denoised.service", "[Service]\n")
	for _, verb := range []string{"install", "uninstall"} {
		if out, err := runService(t, root, verb); err == nil || !strings.Contains(err.Error(), "package") {
			t.Errorf("%s beside a package: %v\n%s", verb, err, out)
		}
	}
	if _, err := runService(t, root, "status"); err != nil {
		t.Errorf("status of a packaged service: %v", err)
	}
}

func TestServiceStatusReadsSystemd(t *testing.T) {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("systemd runs here, its own answer would be asked")
	}
	s := &serviceInstaller{out: &bytes.Buffer{}}
	if err := s.hasSystemd(); err == nil || !strings.Contains(err.Error(), "denoised serve") {
		t.Errorf("a machine without systemd is told what to do instead, got %v", err)
	}
	if err := s.mayChange(); err == nil {
		t.Errorf("installing without systemd must fail")
	}
}

func TestRunCommandNamesTheReason(t *testing.T) {
	_, err := runCommand(context.Background(), "sh", "-c", "echo first; echo the reason >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("got %v", err)
	}
}

func readUnder(t *testing.T, root, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func putUnder(t *testing.T, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestServiceInstallStrictUmask: what is installed can be read by the service's
// account also where the administrator's umask takes everything from others.
func TestServiceInstallStrictUmask(t *testing.T) {
	root := t.TempDir()
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	if out, err := runService(t, root, "install"); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	for path := packaging.ConfigPath; path != "/"; path = filepath.Dir(path) {
		st, err := os.Stat(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm()&0o004 == 0 || st.IsDir() && st.Mode().Perm()&0o001 == 0 {
			t.Errorf("%s: mode %v", path, st.Mode())
		}
	}
}

// TestPrintStatus: what another machine calls itself cannot steer a terminal.
func TestPrintStatus(t *testing.T) {
	var out bytes.Buffer
	list := []pipeline.SeriesStatus{{UID: "?\x1b[2J", Calling: "MR\x1b]0;x\x07\n1", State: "complete"}}
	if err := printStatus(&out, web.Status{Ready: true}, list); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "MR?]0;x??1") || strings.ContainsAny(out.String(), "\x1b\x07") {
		t.Errorf("%q", out.String())
	}
}
