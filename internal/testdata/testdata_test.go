package testdata

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorder is a testing.TB that notes how a helper ended the test. The helper
// runs in its own goroutine, which Skip and Fatal end as the real ones do.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper() {}
func (r *recorder) Skip(args ...any) {
	r.skipped = strings.TrimSpace(strings.Join(toStrings(args), " "))
	panic(r)
}
func (r *recorder) Fatal(args ...any) {
	r.failed = strings.Join(toStrings(args), " ")
	panic(r)
}
func (r *recorder) Fatalf(format string, args ...any) { r.failed = format; panic(r) }

func toStrings(args []any) []string {
	var out []string
	for _, a := range args {
		switch v := a.(type) {
		case string:
			out = append(out, v)
		case error:
			out = append(out, v.Error())
		}
	}
	return out
}

// ending runs f and tells how it ended the recorded test.
func ending(f func(testing.TB)) (r *recorder) {
	r = &recorder{}
	defer func() {
		if v := recover(); v != nil && v != any(r) {
			panic(v)
		}
	}()
	f(r)
	return r
}

func TestPeerSkipsOrFails(t *testing.T) {
	ask := func(tb testing.TB) { Peer(tb, "go", "no-such-program-of-denoised") }
	for _, c := range []struct {
		require       string
		skips, failed bool
	}{
		{"", true, false},
		{"data", true, false},
		{"peers", false, true},
		{" data , peers", false, true},
		{"peer", false, true}, // a typing error must not switch the requirement off
	} {
		t.Setenv(EnvRequire, c.require)
		got := ending(ask)
		if (got.skipped != "") != c.skips || (got.failed != "") != c.failed {
			t.Errorf("%s=%q: skipped %q, failed %q", EnvRequire, c.require, got.skipped, got.failed)
		}
	}
	t.Setenv(EnvRequire, "peers")
	if got := ending(func(tb testing.TB) { Peer(tb, "go") }); got.skipped+got.failed != "" {
		t.Errorf("present program: skipped %q, failed %q", got.skipped, got.failed)
	}
}

func TestDir(t *testing.T) {
	here := t.TempDir()
	t.Setenv(EnvRequire, "")
	t.Setenv(EnvData, here)
	if got := Dir(t); got != here {
		t.Errorf("Dir() = %q, want the folder of %s", got, EnvData)
	}
	t.Setenv(EnvData, filepath.Join(here, "absent"))
	if got := ending(func(tb testing.TB) { Dir(tb) }); got.failed == "" {
		t.Errorf("a %s that points nowhere must fail, skipped %q", EnvData, got.skipped)
	}

	// A repository whose neighbour is not there.
	repo := filepath.Join(here, "repo")
	deep := filepath.Join(repo, "tools")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(repo, "go.mod"), "module github.com/diffdenoise/denoised\n")
	write(t, filepath.Join(deep, "go.mod"), "module github.com/diffdenoise/denoised/tools\n")
	t.Chdir(deep)
	t.Setenv(EnvData, "")
	if got := ending(func(tb testing.TB) { Dir(tb) }); got.skipped == "" {
		t.Errorf("absent data must skip, failed %q", got.failed)
	}
	t.Setenv(EnvRequire, "data")
	if got := ending(func(tb testing.TB) { Dir(tb) }); got.failed == "" {
		t.Error("absent data that is required must fail")
	}
	data := filepath.Join(here, "shared", "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := Dir(t); got != data {
		t.Errorf("Dir() = %q, want %q", got, data)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
