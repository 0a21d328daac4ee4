package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/diffdenoise/denoised/pipeline/state"
)

// What is put is there, the last one for each series, whatever the words.
func TestFlagFiles(t *testing.T) {
	s, dir := store(t)
	rapid.Check(t, func(rt *rapid.T) {
		want := map[string]Flag{}
		for range rapid.IntRange(1, 3).Draw(rt, "flags") {
			f := Flag{Key: rapid.SampledFrom([]string{"1.2.3", "1.2.4", "../x", "?A", ""}).Draw(rt, "key"),
				Quality: rapid.SampledFrom([]state.Quality{"high", "fast", "off"}).Draw(rt, "quality"),
				Why:     rapid.StringN(0, 200, 800).Draw(rt, "why"), By: rapid.StringN(0, 64, 256).Draw(rt, "by"),
				At: time.Unix(0, rapid.Int64Range(0, 1<<60).Draw(rt, "at")).UTC()}
			f.Why, f.By = strings.ToValidUTF8(f.Why, ""), strings.ToValidUTF8(f.By, "")
			if rapid.IntRange(0, 4).Draw(rt, "remove") == 0 {
				if err := s.RemoveFlag(f.Key); err != nil {
					rt.Fatal(err)
				}
				delete(want, f.Key)
				continue
			}
			if err := s.PutFlag(f); err != nil {
				rt.Fatal(err)
			}
			want[f.Key] = f
		}
		got := map[string]Flag{}
		err := s.Flags(func(f Flag) error { got[f.Key] = f; return nil }, func(name string, err error) error { return err })
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			rt.Fatalf("%v: %v, want %v", err, got, want)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "tmp", "*")); len(left) != 0 {
			rt.Errorf("left: %v", left)
		}
		for key := range want {
			if err := s.RemoveFlag(key); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

// A file that is not what was written is told from one that cannot be read, and
// no byte of it is believed.
func TestDamagedFlagFiles(t *testing.T) {
	s, dir := store(t)
	f := Flag{Key: "1.2.3", Quality: "high", Why: "x", At: time.Unix(1, 0).UTC()}
	if err := s.PutFlag(f); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, flagName("1.2.3"))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func() (n int, bad error) {
		if err := s.Flags(func(Flag) error { n++; return nil }, func(_ string, err error) error { bad = err; return nil }); err != nil {
			t.Fatal(err)
		}
		return n, bad
	}
	for i := range good {
		b := slices.Clone(good)
		b[i] ^= 4
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var corrupt *CorruptError
		if n, bad := read(); n != 0 || !errors.As(bad, &corrupt) {
			t.Fatalf("byte %d: %d flags, %v", i, n, bad)
		}
	}
	for _, b := range [][]byte{nil, good[:len(good)-1], append(slices.Clone(good), 'x'), []byte("{}\n00000000\n")} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if n, bad := read(); n != 0 || bad == nil {
			t.Errorf("%q: %d flags, %v", b, n, bad)
		}
	}
	// Under another series' name it says nothing about either.
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, filepath.Join(dir, flagName("1.2.4"))); err != nil {
		t.Fatal(err)
	}
	if n, bad := read(); n != 0 || bad == nil {
		t.Errorf("renamed: %d flags, %v", n, bad)
	}
}

// A disk that fails leaves the old flag.
func TestFlagOnABadDisk(t *testing.T) {
	s, dir := store(t)
	f := Flag{Key: "1.2.3", Quality: "high", At: time.Unix(1, 0).UTC()}
	if err := s.PutFlag(f); err != nil {
		t.Fatal(err)
	}
	s.fs = noRename{s.fs}
	f.Quality = "off"
	if err := s.PutFlag(f); !errors.Is(err, os.ErrPermission) {
		t.Errorf("error %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "tmp", "*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	err := s.Flags(func(f Flag) error {
		if f.Quality != "high" {
			t.Errorf("%+v", f)
		}
		return nil
	}, func(_ string, err error) error { return err })
	if err != nil {
		t.Error(err)
	}
}

type noRename struct{ FS }

func (noRename) Rename(string, string) error { return os.ErrPermission }
