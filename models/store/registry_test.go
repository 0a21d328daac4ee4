package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// bootstrap is a model with nothing but a student, whose card names no files, and
// with golden vectors of another implementation.
var bootstrap = filepath.Join("..", "testdata", "bootstrap")

// copyBootstrap writes it to a folder.
func copyBootstrap(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(bootstrap)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestDefault(t *testing.T) {
	m, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	if m.Name() == "" || m.Version() == "" || len(m.Hash()) != 64 {
		t.Errorf("name %q, version %q, hash %q", m.Name(), m.Version(), m.Hash())
	}
	if got := m.Student().Parameters(); got != 76564 {
		t.Errorf("%d parameters", got)
	}
	if len(m.Card.Training.Data) == 0 || len(m.Card.Scores) == 0 || m.Card.Licence == "" {
		t.Error("the card is incomplete")
	}
	for _, d := range m.Card.Training.Data {
		if d.Name == "" || d.Source == "" || d.Licence == "" {
			t.Errorf("training data without name, source or licence: %+v", d)
		}
	}
	v, err := m.Verify()
	if err != nil {
		t.Fatal(err)
	}
	if !v.Golden || v.Hash != m.Card.WeightsSHA256 || len(v.Networks) != 4 || !m.Has(NetworkMeter) ||
		!m.Has(NetworkBSN) || !m.Has(NetworkDiffusion) {
		t.Errorf("verification is %+v", v)
	}
}

func TestOpenFolder(t *testing.T) {
	dir := copyBootstrap(t)
	m, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Verify(); err != nil {
		t.Error(err)
	}

	// Weights that change under a running model are found by Verify and by the
	// next Open.
	path := filepath.Join(dir, WeightsFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Verify(); !errors.Is(err, ErrHash) {
		t.Errorf("Verify of changed weights: %v", err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrHash) {
		t.Errorf("Open of changed weights: %v", err)
	}
}

func TestVerifyGolden(t *testing.T) {
	dir := copyBootstrap(t)
	path := filepath.Join(dir, GoldenFile)
	f := readTensors(t, path)
	f.Tensors["output"].Data[100] += 1
	b, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := m.Verify(); err == nil || !(v.GoldenError > net.GoldenTolerance) {
		t.Errorf("wrong golden vector: %+v, %v", v, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if v, err := m.Verify(); err != nil || v.Golden {
		t.Errorf("no golden vector: %+v, %v", v, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		filepath.Join(t.TempDir(), "absent"): "no such file",
		file:                                 "not a folder",
		t.TempDir():                          CardFile,
	} {
		if _, err := Open(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%s) = %v, want an error about %q", name, err, want)
		}
	}
	for what, change := range map[string][2]string{
		"no name":      {`"student-bootstrap"`, `""`},
		"unknown key":  {`"licence"`, `"license"`},
		"parameters":   {`150596`, `150597`},
		"another hash": {`45b5ae9c`, `45b5ae9d`},
		"no JSON":      {`{`, `[`},
	} {
		dir := copyBootstrap(t)
		path := filepath.Join(dir, CardFile)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.ReplaceAll(string(b), change[0], change[1])
		if changed == string(b) {
			t.Fatalf("%s: nothing to change", what)
		}
		if err := os.WriteFile(path, []byte(changed), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestOpenUnknownISA(t *testing.T) {
	t.Setenv("DENOISED_ISA", "sse9")
	if _, err := Default(); err == nil || !strings.Contains(err.Error(), "DENOISED_ISA") {
		t.Errorf("Default() = %v", err)
	}
}

func TestList(t *testing.T) {
	dir := copyBootstrap(t)
	root := filepath.Dir(dir)
	bad := filepath.Join(root, "bad")
	if err := os.MkdirAll(filepath.Join(root, "no card"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(bad, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bad, CardFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := List(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 4 || list[0].Open != DefaultName || list[1].Open != RadiographName || list[2].Open != bad ||
		list[3].Open != dir {
		t.Fatalf("list is of %d", len(list))
	}
	if list[0].Err != nil || list[1].Err != nil || list[2].Err == nil || list[3].Err != nil || list[3].Card.Name == "" {
		t.Errorf("errors are %v, %v, %v, %v", list[0].Err, list[1].Err, list[2].Err, list[3].Err)
	}
	if _, err := List(filepath.Join(root, "absent")); err == nil {
		t.Error("no error for a folder that is not there")
	}
}

func readTensors(t *testing.T, path string) *safetensors.File {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Decode(b)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return f
}

func ExampleModel_Student() {
	m, err := Default()
	if err != nil {
		fmt.Println(err)
		return
	}
	const width, height = 64, 48
	slice, sigma := make([]float32, width*height), make([]float32, width*height)
	for i := range slice {
		slice[i], sigma[i] = 0.5, 0.05
	}
	fmt.Println(m.Student().Forward(slice, slice, sigma, net.Told{}, width, height))
	// Output: <nil>
}
