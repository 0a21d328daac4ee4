package packaging_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/daemon"
)

// TestDefaultConfig: the installed file must load, and must say what the
// program does when a key is left out, so that reading it is reading the truth.
func TestDefaultConfig(t *testing.T) {
	written, err := daemon.LoadConfig("etc/denoised.yaml")
	if err != nil {
		t.Fatal(err)
	}
	bare := filepath.Join(t.TempDir(), "bare.yaml")
	text := "destinations:\n  - {name: pacs, ae_title: PACS, address: \"pacs.invalid:104\", send: [original, derived]}\n"
	if err := os.WriteFile(bare, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	implied, err := daemon.LoadConfig(bare)
	if err != nil {
		t.Fatal(err)
	}
	diff(t, "", reflect.ValueOf(written).Elem(), reflect.ValueOf(implied).Elem())
}

// diff reports every exported field in which two configurations differ; an
// empty list is as good as none.
func diff(t *testing.T, path string, a, b reflect.Value) {
	t.Helper()
	switch a.Kind() {
	case reflect.Struct:
		for i := range a.NumField() {
			if f := a.Type().Field(i); f.IsExported() && !strings.EqualFold(f.Name, "Path") {
				diff(t, path+"."+f.Name, a.Field(i), b.Field(i))
			}
		}
	case reflect.Slice, reflect.Map:
		if a.Len() == 0 && b.Len() == 0 {
			return
		}
		fallthrough
	default:
		if !reflect.DeepEqual(a.Interface(), b.Interface()) {
			t.Errorf("%s: the file says %v, the program's default is %v", strings.TrimPrefix(path, "."), a, b)
		}
	}
}

// TestEveryKeyIsExplained: each top-level key of the default file, and each of
// the documented ones, has a comment above it.
func TestEveryKeyIsExplained(t *testing.T) {
	data, err := os.ReadFile("etc/denoised.yaml")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	seen := make(map[string]bool)
	for i, line := range lines {
		key, _, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || strings.HasPrefix(strings.TrimSpace(line), "#") || strings.HasPrefix(strings.TrimSpace(line), "-") {
			continue
		}
		seen[key] = true
		above := strings.TrimSpace(lines[max(i-1, 0)])
		if !strings.HasPrefix(above, "#") && !strings.HasSuffix(strings.TrimSpace(line), ":") {
			t.Errorf("line %d: nothing explains %q", i+1, key)
		}
	}
	for _, key := range []string{"state_dir", "listen", "ae_titles", "peers", "tls", "limits", "timeouts", "series", "rules",
		"destinations", "denoise", "http", "watch", "retention", "log"} {
		if !seen[key] {
			t.Errorf("the default file does not show %q", key)
		}
	}
}
