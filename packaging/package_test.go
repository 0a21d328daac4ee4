package packaging_test

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

// installedCUDA is the same of the packages with the CUDA backend.
var installedCUDA = map[string]string{
	"/usr/bin/denoised-cuda":                               "-rwxr-xr-x",
	"/usr/lib/systemd/system/denoised.service.d/cuda.conf": "-rw-r--r--",
	"/usr/share/doc/denoised-cuda/copyright":               "-rw-r--r--",
	"/usr/share/doc/denoised-cuda/gpu.md":                  "-rw-r--r--",
}

// TestPackages builds all packages twice and looks into them with the tools
// that install them.
func TestPackages(t *testing.T) {
	if testing.Short() {
		t.Skip("builds packages, left out by -short")
	}
	testdata.Peer(t, "git", "make", "gcc", "objdump", "dpkg-deb", "rpm", "rpm2cpio")
	root := testdata.Root(t)
	arch := runtime.GOARCH
	first, second := t.TempDir(), t.TempDir()
	buildPackages(t, root, arch, first)
	buildPackages(t, root, arch, second, "TZ=Asia/Kolkata", "LANG=de_DE.UTF-8", "USER=other", "HOME="+homeWithCache(t))

	deb, rpm := onlyFile(t, first, "denoised[_\\-][0-9]*.deb"), onlyFile(t, first, "denoised[_\\-][0-9]*.rpm")
	cudaDeb, cudaRPM := onlyFile(t, first, "denoised-cuda*.deb"), onlyFile(t, first, "denoised-cuda*.rpm")
	for _, file := range []string{deb, rpm, cudaDeb, cudaRPM} {
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

	t.Run("cuda", func(t *testing.T) {
		tree, other, db := t.TempDir(), t.TempDir(), t.TempDir()
		command(t, "dpkg-deb", "--extract", cudaDeb, tree)
		checkFiles(t, tree, installedCUDA)
		command(t, "rpm", "--root", other, "--dbpath", db, "--install", "--nodeps", "--noscripts", "--ignorearch", cudaRPM)
		if err := os.RemoveAll(filepath.Join(other, db)); err != nil {
			t.Fatal(err)
		}
		checkFiles(t, other, installedCUDA)
		for _, script := range []string{"postinst", "postrm"} {
			checkScript(t, command(t, "dpkg-deb", "--info", cudaDeb, script))
		}
		// It must start where there is no driver, and be the worker that the daemon calls.
		program := filepath.Join(tree, "usr/bin/denoised-cuda")
		checkPaths(t, program)
		bin, err := elf.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		defer bin.Close()
		symbols, err := bin.ImportedSymbols()
		if err != nil {
			t.Fatal(err)
		}
		// The oldest C library that has them all: versions of one length sort as text.
		glibc := ""
		for _, s := range symbols {
			if v, ok := strings.CutPrefix(s.Version, "GLIBC_2."); ok && len(v) == 2 {
				glibc = max(glibc, v)
			}
		}
		for what, text := range map[string]string{"deb": command(t, "dpkg-deb", "--field", cudaDeb, "Depends"), "rpm": command(t, "rpm", "--dbpath", db, "-qp", "--requires", cudaRPM)} {
			if glibc == "" || !strings.Contains(text, "(>= 2."+glibc+")") && !strings.Contains(text, "glibc >= 2."+glibc+"\n") {
				t.Errorf("the program has symbols of glibc 2.%s, the %s asks for %q", glibc, what, text)
			}
		}
		needed, err := bin.ImportedLibraries()
		if err != nil {
			t.Fatal(err)
		}
		for _, library := range needed {
			if strings.Contains(library, "cuda") {
				t.Errorf("the program needs %s to start", library)
			}
		}
		command(t, program, "worker", "--help")
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

// TestCUDAScripts runs the maintainer scripts of denoised-cuda as the package managers do: each
// change of what is installed restarts the service once.
func TestCUDAScripts(t *testing.T) {
	dir := t.TempDir()
	log, booted := filepath.Join(dir, "log"), filepath.Join(dir, "systemd")
	if err := os.Mkdir(booted, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte("#!/bin/sh\necho \"$@\" >>'"+log+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what     string
		calls    [][]string
		restarts int
	}{
		{"deb installed", [][]string{{"cuda-postinstall.sh", "configure", ""}}, 1},
		{"deb upgraded", [][]string{{"cuda-postremove.sh", "upgrade", "2"}, {"cuda-postinstall.sh", "configure", "1"}}, 1},
		{"deb removed and purged", [][]string{{"cuda-postremove.sh", "remove"}, {"cuda-postremove.sh", "purge"}}, 1},
		{"rpm installed", [][]string{{"cuda-postinstall.sh", "1"}}, 1},
		{"rpm upgraded", [][]string{{"cuda-postinstall.sh", "2"}, {"cuda-postremove.sh", "1"}}, 1},
		{"rpm removed", [][]string{{"cuda-postremove.sh", "0"}}, 1},
	} {
		if err := os.WriteFile(log, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, call := range c.calls {
			text := strings.ReplaceAll(string(readFile(t, filepath.Join("scripts", call[0]))), "/run/systemd/system", booted)
			cmd := exec.Command("sh", append([]string{"-s", "--"}, call[1:]...)...)
			cmd.Stdin, cmd.Env = strings.NewReader(text), append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %v\n%s", c.what, call, err, out)
			}
		}
		if n := strings.Count(string(readFile(t, log)), "try-restart denoised.service\n"); n != c.restarts {
			t.Errorf("%s: %d restarts, want %d", c.what, n, c.restarts)
		}
	}
}

// checkFiles compares the files of an unpacked package with what must be there.
func checkFiles(t *testing.T, tree string, want map[string]string) {
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
	for path, mode := range want {
		if found[path] != mode {
			t.Errorf("%s: mode %q, want %q", path, found[path], mode)
		}
		delete(found, path)
	}
	for path := range found {
		t.Errorf("%s does not belong into the package", path)
	}
}

// checkPaths looks for paths of the machine that built a program.
func checkPaths(t *testing.T, program string) {
	t.Helper()
	if root := testdata.Root(t); bytes.Contains(readFile(t, program), []byte(root+"/")) {
		t.Errorf("%s holds paths of the machine that built it (%s)", program, root)
	}
}

// checkTree looks into an unpacked package of the program.
func checkTree(t *testing.T, tree string) {
	t.Helper()
	checkFiles(t, tree, installed)

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
	checkPaths(t, program)
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
