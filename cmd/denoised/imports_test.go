package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// TestImports keeps the table of docs/architecture.md true: who may import whom
// among our own folders. The key is the folder at the top, the value what its
// packages may import besides each other.
func TestImports(t *testing.T) {
	const module = "github.com/diffdenoise/denoised/"
	may := map[string]string{
		"cmd":       "daemon dicomnet pipeline models kernels packaging internal",
		"daemon":    "dicomnet pipeline models kernels",
		"dicomnet":  "",
		"pipeline":  "internal",
		"models":    "kernels internal",
		"kernels":   "",
		"packaging": "",
		"internal":  "",
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		path, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue
		}
		top, _, _ := strings.Cut(path, "/")
		allowed, known := may[top]
		if !known {
			t.Errorf("%s is in a folder that the architecture does not name", path)
			continue
		}
		seen[top] = true
		for _, imported := range p.Imports {
			other, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			folder, _, _ := strings.Cut(other, "/")
			if folder != top && !contains(allowed, folder) {
				t.Errorf("%s imports %s; packages in %s may import: %s", path, other, top, allowed)
			}
		}
	}
	for top := range may {
		if !seen[top] {
			t.Errorf("nothing seen of %s", top)
		}
	}
}

func contains(list, word string) bool {
	for w := range strings.FieldsSeq(list) {
		if w == word {
			return true
		}
	}
	return false
}
