package packaging_test

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/daemon"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/packaging"
)

// installed lists everything the packages put on a machine: path and mode.
var installed = map[string]string{
	"/usr/bin/denoised":                               "-rwxr-xr-x",
	"/usr/lib/systemd/system/denoised.service":        "-rw-r--r--",
	"/usr/lib/sysusers.d/denoised.conf":               "-rw-r--r--",
	"/etc/denoised/denoised.yaml":                     "-rw-r--r--",
	"/usr/share/bash-completion/completions/denoised": "-rw-r--r--",
	"/usr/share/doc/denoised/copyright":               "-rw-r--r--",
	"/usr/share/doc/denoised/install.md":              "-rw-r--r--",
	"/usr/share/doc/denoised/configuration.md":        "-rw-r--r--",
	"/usr/share/doc/denoised/operations.md":           "-rw-r--r--",
	"/usr/share/doc/denoised/CHANGELOG.md":            "-rw-r--r--",
	"/usr/share/doc/denoised/examples/port-104.conf":  "-rw-r--r--",
}

// TestPackages builds both packages twice and looks into them with the tools
// that install them.
func TestPackages(t *testing.T) {
	if testing.Short() {
		t.Skip("builds packages, left out by -short")
	}
	testdata.Peer(t, "git", "dpkg-deb", "rpm", "rpm2cpio")
	root := testdata.Root(t)
	arch := "amd64"
	first, second := t.TempDir(), t.TempDir()
	buildPackages(t, root, arch, first)
	buildPackages(t, root, arch, second, "TZ=Asia/Kolkata", "LANG=de_DE.UTF-8", "USER=other", "HOME="+homeWithCache(t))

	deb, rpm := onlyFile(t, first, "*.deb"), onlyFile(t, first, "*.rpm")
	for _, file := range []string{deb, rpm} {
		again := filepath.Join(second, filepath.Base(file))
		if !bytes.Equal(readFile(t, file), readFile(t, again)) {
			t.Errorf("%s: two builds of the same commit differ", filepath.Base(file))
		}
	}

	t.Run("deb", func(t *testing.T) {
		tree := t.TempDir()
		command(t, "dpkg-deb", "--extract", deb, tree)
		checkTree(t, tree)
		if got := strings.TrimSpace(command(t, "dpkg-deb", "--info", deb, "conffiles")); got != packaging.ConfigPath {
			t.Errorf("conffiles = %q", got)
		}
		for line := range strings.Lines(command(t, "dpkg-deb", "--contents", deb)) {
			if !strings.Contains(line, "root/root") {
				t.Errorf("not owned by root: %s", line)
			}
		}
		for _, script := range []string{"postinst", "prerm", "postrm"} {
			checkScript(t, command(t, "dpkg-deb", "--info", deb, script))
		}
	})

	t.Run("rpm", func(t *testing.T) {
		tree, db := t.TempDir(), t.TempDir()
		command(t, "rpm", "--root", tree, "--dbpath", db, "--install", "--nodeps", "--noscripts", "--ignorearch", rpm)
		if err := os.RemoveAll(filepath.Join(tree, db)); err != nil {
			t.Fatal(err)
		}
		checkTree(t, tree)
		if got := strings.TrimSpace(command(t, "rpm", "--query", "--package", "--configfiles", rpm)); got != packaging.ConfigPath {
			t.Errorf("config files = %q", got)
		}
		flags := command(t, "rpm", "--query", "--package", "--queryformat", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", rpm)
		if !strings.Contains(flags, packaging.ConfigPath+" cn\n") {
			t.Errorf("an upgrade would replace the edited configuration:\n%s", flags)
		}
	})
}

// checkTree compares an unpacked package with what must be in it.
func checkTree(t *testing.T, tree string) {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(tree, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			found[strings.TrimPrefix(path, tree)] = info.Mode().String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range installed {
		if found[path] != mode {
			t.Errorf("%s: mode %q, want %q", path, found[path], mode)
		}
		delete(found, path)
	}
	for path := range found {
		t.Errorf("%s does not belong into the package", path)
	}

	program := filepath.Join(tree, packaging.BinaryPath)
	bin, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer bin.Close()
	for _, segment := range bin.Progs {
		if segment.Type == elf.PT_INTERP {
			t.Error("the program is not static")
		}
	}
	if root := testdata.Root(t); bytes.Contains(readFile(t, program), []byte(root+"/")) {
		t.Errorf("the program holds paths of the machine that built it (%s)", root)
	}
	if _, err := daemon.LoadConfig(filepath.Join(tree, packaging.ConfigPath)); err != nil {
		t.Errorf("installed configuration: %v", err)
	}
	for _, f := range packaging.Files("/usr/lib") {
		if !bytes.Equal(readFile(t, filepath.Join(tree, f.Path)), f.Data) {
			t.Errorf("%s: package and `service install` differ", f.Path)
		}
	}
}

// checkScript lets the shell parse a maintainer script.
func checkScript(t *testing.T, text string) {
	t.Helper()
	cmd := exec.Command("sh", "-n")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, out, text)
	}
}

func buildPackages(t *testing.T, root, arch, out string, env ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(root, "packaging/build.sh"), arch, out)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build packages: %v\n%s", err, text)
	}
}

// homeWithCache returns an empty home folder; Go's caches stay where they are,
// so that only what should not matter differs between the builds.
func homeWithCache(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
		t.Setenv(name, strings.TrimSpace(command(t, "go", "env", name)))
	}
	return t.TempDir()
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, exit.Stderr)
		}
		t.Fatal(err)
	}
	return string(out)
}

func onlyFile(t *testing.T, dir, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) != 1 {
		sort.Strings(files)
		t.Fatalf("%s in %s: %v, %v", pattern, dir, files, err)
	}
	return files[0]
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
