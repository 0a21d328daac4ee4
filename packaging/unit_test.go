package packaging_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/packaging"
)

// maxExposure is the worst mark from systemd's own review that the unit may
// get, on its scale from 0 (sealed) to 10 (wide open).
const maxExposure = 2.0

func TestUnitExposure(t *testing.T) {
	analyze := testdata.Path(t, "systemd-analyze")
	for _, c := range []struct {
		name   string
		dropIn string
		loses  string // what the drop-in opens
	}{
		{"as installed", "", ""},
		{"with port 104", "systemd/port-104.conf", "✗ PrivateUsers="},
		{"with a card", "systemd/cuda.conf", "✗ PrivateDevices="},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			units := filepath.Join(root, "etc/systemd/system")
			copyFile(t, "systemd/denoised.service", filepath.Join(units, packaging.UnitName))
			if c.dropIn != "" {
				copyFile(t, c.dropIn, filepath.Join(units, packaging.UnitName+".d", filepath.Base(c.dropIn)))
			}
			out, err := exec.Command(analyze, "security", "--offline=true", "--root="+root, "--no-pager",
				"--threshold="+strconv.Itoa(maxExposure*10), packaging.UnitName).CombinedOutput()
			t.Logf("%s", lastLine(out))
			if err != nil {
				t.Fatalf("exposure above %.1f: %v\n%s", maxExposure, err, out)
			}
			m := regexp.MustCompile(`exposure level for denoised.service: ([0-9.]+)`).FindSubmatch(out)
			if m == nil {
				t.Fatalf("no mark in:\n%s", out)
			}
			if mark, _ := strconv.ParseFloat(string(m[1]), 64); mark > maxExposure {
				t.Errorf("exposure %.1f, at most %.1f", mark, maxExposure)
			}
			if !bytes.Contains(out, []byte(c.loses)) {
				t.Errorf("the drop-in was not read:\n%s", out)
			}
		})
	}
}

// TestUnitVerifies lets systemd parse the unit: it names unknown keys and
// values that it would ignore at start.
func TestUnitVerifies(t *testing.T) {
	analyze := testdata.Path(t, "systemd-analyze")
	unit, err := os.ReadFile("systemd/denoised.service")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// The program itself is not installed here.
	unit = bytes.ReplaceAll(unit, []byte(packaging.BinaryPath), []byte("/bin/true"))
	path := filepath.Join(dir, packaging.UnitName)
	if err := os.WriteFile(path, unit, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte(packaging.UnitName)) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestUnitSaysWhy holds the unit to its own rule: every group of sandbox
// settings begins with a comment that gives the reason.
func TestUnitSaysWhy(t *testing.T) {
	f, err := os.Open("systemd/denoised.service")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	explained, sandbox := false, false
	seen := 0
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "# The whole file system is read-only"):
			sandbox, explained = true, true
		case strings.HasPrefix(line, "["), line == "":
			sandbox, explained = sandbox && line == "", false
		case strings.HasPrefix(line, "#"):
			explained = true
		case sandbox:
			seen++
			if !explained {
				t.Errorf("no reason given for %s", line)
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Errorf("only %d sandbox lines found, is the test reading the right part?", seen)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
