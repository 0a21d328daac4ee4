// Package testdata finds what the fuller tests need and the project does not
// ship: a folder of real images (Dir) and programs of other projects (Peer).
//
// A machine that has neither still passes `go test ./...`: the tests skip and
// say what was missing. Where a skip would hide a requirement, as in CI, the
// environment variable DENOISED_REQUIRE names what must be there, separated by
// commas, and the same tests fail instead:
//
//	DENOISED_REQUIRE=data,peers go test ./...
package testdata

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Names of the environment variables that steer this package.
const (
	// EnvData is the folder of real data; it wins over the default place.
	EnvData = "DENOISED_DATA"
	// EnvRequire lists, separated by commas, what must be present: the words
	// RequireData and RequirePeers. Unknown words fail the test that meets them,
	// so that a typing error cannot switch a requirement off.
	EnvRequire = "DENOISED_REQUIRE"
)

// Words of EnvRequire.
const (
	RequireData  = "data"
	RequirePeers = "peers"
)

// Dir returns the folder of real data: the value of DENOISED_DATA if set, else
// shared/data beside the repository's root. When there is no such folder the
// test is skipped with the reason, or failed if DENOISED_REQUIRE names "data".
// A DENOISED_DATA that points nowhere always fails: somebody meant it.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := dataDir(os.Getenv(EnvData))
	switch {
	case err == nil:
		return dir
	case os.Getenv(EnvData) != "":
		t.Fatalf("real data: %v", err)
	default:
		missing(t, RequireData, err.Error())
	}
	return ""
}

// Peer skips the test unless every named program can be run, or fails it if
// DENOISED_REQUIRE names "peers". Programs in /usr/sbin and /sbin are found
// although an ordinary user's PATH leaves those out; use Path to run one.
func Peer(t testing.TB, names ...string) {
	t.Helper()
	var absent []string
	for _, name := range names {
		if _, err := lookPath(name); err != nil {
			absent = append(absent, name)
		}
	}
	if len(absent) > 0 {
		missing(t, RequirePeers, "programs not installed: "+strings.Join(absent, ", "))
	}
}

// Path returns the path of one program under the rules of Peer.
func Path(t testing.TB, name string) string {
	t.Helper()
	Peer(t, name)
	path, err := lookPath(name)
	if err != nil {
		t.Fatalf("find %s: %v", name, err)
	}
	return path
}

// Root returns the folder that holds the go.mod of this repository, found
// upwards from the test's working directory. Tests that build or read other
// parts of the tree use it.
func Root(t testing.TB) string {
	t.Helper()
	root, err := repositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// missing ends the test for something that is not there: skip, or fail when
// DENOISED_REQUIRE asks for it.
func missing(t testing.TB, what, reason string) {
	t.Helper()
	must, err := required(os.Getenv(EnvRequire), what)
	if err != nil {
		t.Fatal(err)
	}
	if must {
		t.Fatalf("%s (%s requires %q)", reason, EnvRequire, what)
	}
	t.Skip(reason)
}

// required tells whether list, the value of EnvRequire, names what.
func required(list, what string) (bool, error) {
	found := false
	for word := range strings.SplitSeq(list, ",") {
		switch word = strings.TrimSpace(word); word {
		case "":
		case RequireData, RequirePeers:
			found = found || word == what
		default:
			return false, fmt.Errorf("%s: unknown word %q, known are %q and %q", EnvRequire, word, RequireData, RequirePeers)
		}
	}
	return found, nil
}

func dataDir(fromEnv string) (string, error) {
	dir := fromEnv
	if dir == "" {
		root, err := repositoryRoot()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(filepath.Dir(root), "shared", "data")
	}
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no real data at %s (set %s to the folder)", dir, EnvData)
	}
	if err != nil {
		return "", fmt.Errorf("look for real data: %w", err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("real data: %s is not a folder", dir)
	}
	return dir, nil
}

func repositoryRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find repository root: %w", err)
	}
	for dir := start; ; {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil && !nested(dir) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("find repository root: no go.mod above %s", start)
		}
		dir = parent
	}
}

// nested tells whether the go.mod in dir is that of a tool module inside the
// repository and not the repository's own.
func nested(dir string) bool {
	data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	return err != nil || !strings.HasPrefix(string(data), "module github.com/diffdenoise/denoised\n")
}

// lookPath is exec.LookPath that also tries the folders of system programs.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, dirErr := exec.LookPath(filepath.Join(dir, name)); dirErr == nil {
			return path, nil
		}
	}
	return "", err
}
