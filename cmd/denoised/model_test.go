package main

import (
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/store"
)

func runModel(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newModelCmd()
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

func TestModelList(t *testing.T) {
	none := t.TempDir()
	out, err := runModel(t, "list", "--dir", none)
	if err != nil || !strings.Contains(out, "default") || !strings.Contains(out, "denoised-default") {
		t.Errorf("list: %v\n%s", err, out)
	}
	out, err = runModel(t, "list", "--json", "--dir", none)
	if err != nil {
		t.Fatal(err)
	}
	var items []struct {
		Open string
		Card store.Card
	}
	if err := json.Unmarshal([]byte(out), &items); err != nil {
		t.Fatal(err)
	}
	if len(items) != 2 || items[0].Open != "default" || items[0].Card.Parameters != 76564 ||
		items[1].Open != "radiograph" || items[1].Card.Name != "denoised-radiograph" {
		t.Errorf("list --json: %d models", len(items))
	}
}

func TestModelShow(t *testing.T) {
	out, err := runModel(t, "show")
	if err != nil {
		t.Fatal(err)
	}
	var card store.Card
	if err := json.Unmarshal([]byte(out), &card); err != nil {
		t.Fatal(err)
	}
	if card.Name == "" || len(card.Training.Data) == 0 {
		t.Errorf("show: %+v", card)
	}
}

func TestModelVerify(t *testing.T) {
	out, err := runModel(t, "verify", "default")
	if err != nil {
		t.Fatal(err)
	}
	for _, isa := range cpu.ISAs() {
		if !strings.Contains(out, "cpu/"+string(isa)+": student weights") {
			t.Errorf("verify does not speak of %s:\n%s", isa, out)
		}
	}
	if strings.Count(out, "golden vectors agree") != 4*len(cpu.ISAs()) {
		t.Errorf("verify:\n%s", out)
	}
}

func TestModelRefuses(t *testing.T) {
	for _, args := range [][]string{{"show", "/nonexistent"}, {"verify", "/nonexistent"}, {"list", "--dir", "/nonexistent"}, {"install", "/nonexistent", "--dir", t.TempDir()}, {"install", "default", "--as", "../x"}, {"show", "a", "b"}} {
		if _, err := runModel(t, args...); err == nil {
			t.Errorf("model %v: no error", args)
		}
	}
}

// TestModelInstall: an installed model is listed, shown and verified by its folder,
// and replaced only on request.
func TestModelInstall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "models")
	out, err := runModel(t, "install", "default", "--as", "knee-3t", "--dir", dir)
	if err != nil || !strings.Contains(out, "is installed as knee-3t") {
		t.Fatalf("install: %v\n%s", err, out)
	}
	if _, err := runModel(t, "install", "default", "--as", "knee-3t", "--dir", dir); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("a second time: %v", err)
	}
	if out, err := runModel(t, "install", "default", "--as", "knee-3t", "--dir", dir, "--force"); err != nil {
		t.Errorf("--force: %v\n%s", err, out)
	}
	out, err = runModel(t, "list", "--dir", dir)
	if err != nil || !strings.Contains(out, filepath.Join(dir, "knee-3t")) {
		t.Errorf("list: %v\n%s", err, out)
	}
	out, err = runModel(t, "verify", filepath.Join(dir, "knee-3t"))
	if err != nil || !strings.Contains(out, "golden vectors agree") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	// Without --as it gets the name of the card.
	out, err = runModel(t, "install", filepath.Join(dir, "knee-3t"), "--dir", dir)
	if err != nil || !strings.Contains(out, "is installed as denoised-default") {
		t.Errorf("install under its own name: %v\n%s", err, out)
	}
}
