package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/kernels/cpu"
)

// TestBenchJSON runs the smallest bench and checks the arithmetic that ties its
// numbers together; the times themselves are whatever the machine gives.
func TestBenchJSON(t *testing.T) {
	var out, errs bytes.Buffer
	cmd := newBenchCmd()
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs([]string{"--size", "24,16", "--rounds", "1", "--cores", "2", "--json"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	var report benchReport
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	isas := max(1, len(cpu.ISAs())-1) // plain Go only where it is alone
	if len(report.Peaks) != isas || len(report.Results) != isas*2*3 {
		t.Fatalf("%d peaks and %d results for %d instruction sets", len(report.Peaks), len(report.Results), isas)
	}
	flop := map[string]float64{"student": 76032 * 2 * 64 / 1e9, "plain32": 76320 * 2 * 64 / 1e9,
		"layer32": 9216 * 2 * 64 / 1e9}
	for _, r := range report.Results {
		if r.Size == 16 && (r.GFLOP < 0.999*flop[r.Net] || r.GFLOP > 1.001*flop[r.Net]) {
			t.Errorf("%s has %v GFLOP, want %v", r.Net, r.GFLOP, flop[r.Net])
		}
		if r.OneCore <= 0 || r.OneBest > r.OneCore || r.PerPixel <= 0 || r.Flatness <= 0 {
			t.Errorf("implausible: %+v", r)
		}
		if (r.NCores > 0) != (r.Net != "layer32") {
			t.Errorf("time with two cores: %+v", r)
		}
	}
}

func TestBenchTable(t *testing.T) {
	var out bytes.Buffer
	cmd := newBenchCmd()
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs([]string{"--size", "8", "--rounds", "1", "--cores", "1", "--isa", "go"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"student", "plain32", "layer32", "denoised-default"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestBenchRefuses(t *testing.T) {
	for _, args := range []string{"--size 0", "--size 100000", "--rounds 0", "--cores 0", "--isa sse9", "--backend tpu", "--model /nonexistent", "extra"} {
		cmd := newBenchCmd()
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		cmd.SetArgs(strings.Fields(args))
		if err := cmd.Execute(); err == nil {
			t.Errorf("bench %s: no error", args)
		}
	}
}
