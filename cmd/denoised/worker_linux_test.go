package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/diffdenoise/denoised/daemon/web"
)

// TestServeWithWorker: the real daemon finds the program beside it, starts it as its worker, and
// loses it again and again while images come. They are all delivered. The worker ends with the
// daemon, however that ends.
func TestServeWithWorker(t *testing.T) {
	if hasCUDA {
		t.Skip("this build is its own worker")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "denoised")
	if os.Link(self, program) != nil { // another file system, perhaps
		data, err := os.ReadFile(self)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(program, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\nexec '" + program + "' \"$@\" --backend cpu\n"
	if err := os.WriteFile(filepath.Join(dir, cudaProgram), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	archive := startSink(t)
	p := newProgram(t, archive.addr)
	p.path = program
	status := func() *web.Worker {
		var s web.Status
		if err := getJSON(t.Context(), "http://"+p.http+"/readyz", &s); err != nil {
			t.Fatal(err)
		}
		if s.Worker == nil {
			t.Fatalf("no worker: %+v", s)
		}
		return s.Worker
	}
	ready := func() *web.Worker {
		within(t, "the worker is ready", func() error {
			if w := status(); w.State != "ready" {
				return fmt.Errorf("%+v", w)
			}
			return nil
		})
		return status()
	}
	gone := func(pid int) {
		t.Helper()
		within(t, "the worker is gone", func() error {
			// Whoever is to wait for it now may leave a zombie.
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			if err == nil && !strings.Contains(string(stat), ") Z ") {
				return errors.New(string(stat))
			}
			return nil
		})
	}
	// Where everybody may put programs nobody knows whose it is.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	p.start()
	p.ready()
	var open web.Status
	if err := getJSON(t.Context(), "http://"+p.http+"/readyz", &open); err != nil || open.Worker != nil {
		t.Fatalf("%v, %+v", err, open.Worker)
	}
	p.signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, p.log)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.start()
	p.ready()
	first := ready()
	list, sent := scannerObjects(t, 12)
	acknowledged := map[string]bool{}
	sendSome(t.Context(), p.dicom, list, acknowledged, func(n int) {
		if n%3 == 0 {
			if w := status(); w.PID != 0 {
				_ = syscall.Kill(w.PID, syscall.SIGKILL) // it may be gone
			}
		}
	})
	checkArchive(t, archive, sent)
	last := ready()
	if last.Starts < 2 || last.PID == first.PID || last.Done+last.OnCPU < 12 {
		t.Errorf("%+v", last)
	}
	p.signal(syscall.SIGKILL)
	_ = p.cmd.Wait() // killed
	gone(last.PID)

	p.start()
	p.ready()
	again := ready()
	p.signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, p.log)
	}
	gone(again.PID)
}

// TestWorkerByHand: it says that it is not for people.
func TestWorkerByHand(t *testing.T) {
	for args, want := range map[string]string{
		"worker --help":           "The daemon starts this by itself",
		"worker --socket 2":       "it is started by the daemon, not by hand",
		"worker --backend auto":   "choose cpu or cuda",
		"worker --backend nobody": "choose auto, cpu or cuda",
	} {
		var out bytes.Buffer
		run(t.Context(), strings.Fields(args), &out, &out)
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: %q, want %q", args, out.String(), want)
		}
	}
}
