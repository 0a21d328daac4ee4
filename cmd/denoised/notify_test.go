package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestNotify: what systemd is told from the start over a reload to the end, in
// order, with the watchdog fed in between.
func TestNotify(t *testing.T) {
	archive := startSink(t)
	p := newProgram(t, archive.addr)
	// Sockets have short names; the test's own folder may be too deep.
	dir, err := os.MkdirTemp("", "dn")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "300000")
	p.start()

	told := map[string]string{}
	var order []string
	// until reads messages until one says what.
	until := func(what string) {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				t.Fatalf("waiting for %s: %v\nso far %q", what, err, order)
			}
			found := false
			for l := range strings.SplitSeq(string(b[:n]), "\n") {
				key, value, _ := strings.Cut(l, "=")
				told[key] = value
				if key == "READY" || key == "RELOADING" || key == "STOPPING" {
					order = append(order, key)
				}
				found = found || key == what
			}
			if found {
				return
			}
		}
	}
	until("READY")
	if !strings.HasPrefix(told["STATUS"], "images are received") {
		t.Errorf("status %q", told["STATUS"])
	}
	until("WATCHDOG")
	until("WATCHDOG")
	p.signal(syscall.SIGHUP)
	until("RELOADING")
	if told["MONOTONIC_USEC"] == "" {
		t.Error("a reload without the time that systemd wants")
	}
	until("READY")
	p.signal(syscall.SIGTERM)
	until("STOPPING")
	if want := []string{"READY", "RELOADING", "READY", "STOPPING"}; !slices.Equal(order, want) {
		t.Errorf("systemd was told %q", order)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, p.log)
	}
}

// TestRun: failures and mistakes have their own exit codes.
func TestRun(t *testing.T) {
	var out, errOut strings.Builder
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"version"}, exitDone},
		{[]string{"--help"}, exitDone},
		{[]string{"check", "--config", "/none"}, exitFailed},
		{[]string{"check"}, exitUsage},
		{[]string{"check", "--config"}, exitUsage},
		{[]string{"nothing"}, exitUsage},
	} {
		errOut.Reset()
		if got := run(context.Background(), c.args, &out, &errOut); got != c.want {
			t.Errorf("%q: exit code %d, want %d: %s", c.args, got, c.want, errOut.String())
		}
		if n := strings.Count(errOut.String(), "\n"); c.want == exitDone && n != 0 || c.want != exitDone && n != 1 {
			t.Errorf("%q: %d lines on standard error: %s", c.args, n, errOut.String())
		}
	}
	if err := usagef("a %d", 1); fmt.Sprint(err) != "a 1" || !errors.As(err, new(*usageError)) {
		t.Error(err)
	}
}

// TestJournal: what systemd's journal reads carries its level, so that
// journalctl -p warning shows warnings, and why the service does not start.
func TestJournal(t *testing.T) {
	p := newProgram(t, startSink(t).addr)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	serve := func(config string) (*exec.Cmd, string) {
		path := filepath.Join(t.TempDir(), "journal")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var st syscall.Stat_t
		if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "serve", "--config", config)
		cmd.Env = append(os.Environ(), asProgram+"=1", fmt.Sprintf("JOURNAL_STREAM=%d:%d", st.Dev, st.Ino))
		cmd.Stderr = f
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if cmd.ProcessState == nil {
				_ = cmd.Process.Kill() // it may end by itself meanwhile
				_ = cmd.Wait()
			}
		})
		return cmd, path
	}
	cmd, log := serve(p.config)
	p.ready()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		if !strings.HasPrefix(l, `<6>{"level":"info"`) && !strings.HasPrefix(l, `<4>{"level":"warn"`) {
			t.Errorf("line %s", l)
		}
	}
	if !strings.Contains(string(text), "<4>") {
		t.Errorf("no warning in\n%s", text)
	}
	cmd, log = serve("/none")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != exitFailed {
		t.Error(err)
	}
	if text, err := os.ReadFile(log); err != nil || !strings.HasPrefix(string(text), "<3>denoised: /none: ") {
		t.Errorf("%q, %v", text, err)
	}
}
