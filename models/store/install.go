package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// modelName is what an installed model may be called.
var modelName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckName reports a name under which no model can be installed.
func CheckName(name string) error {
	switch {
	case slices.Contains(Embedded, name):
		return fmt.Errorf("the name %q is that of a built-in model", name)
	case !modelName.MatchString(name):
		return fmt.Errorf("%.80q is no name of a model: up to 64 letters, digits, dots, - and _, the first a letter or digit", name)
	}
	return nil
}

// Find returns what Open takes for a model that is given by name or folder: a plain
// name is that of a folder in dir, if there is one.
func Find(nameOrDir, dir string) string {
	if dir == "" || CheckName(nameOrDir) != nil {
		return nameOrDir
	}
	path := filepath.Join(dir, nameOrDir)
	if _, err := os.Stat(filepath.Join(path, CardFile)); err != nil {
		return nameOrDir
	}
	return path
}

// Save writes a model to the folder dir, in place of an older one if replace is
// set, and opens it: the card, to which it adds hashes and the student's size, the
// weights by the name of their network, and golden vectors for each. What is
// written is read and verified before it gets its name. On error dir is what it was.
func Save(dir string, card Card, weights map[string]*safetensors.File, replace bool) (*Model, error) {
	backend, err := cpu.Select()
	if err != nil {
		return nil, fmt.Errorf("save model %s: %w", dir, err)
	}
	content := map[string][]byte{}
	for _, n := range networks {
		f, ok := weights[n.name]
		if !ok {
			continue
		}
		golden, err := net.NewGolden(f)
		if err == nil {
			content[n.golden], err = golden.Encode()
		}
		if err == nil {
			content[n.file], err = f.Encode()
		}
		if err != nil {
			return nil, fmt.Errorf("save model %s: network %q: %w", dir, n.name, err)
		}
	}
	student, ok := weights[NetworkStudent]
	if !ok {
		return nil, fmt.Errorf("save model %s: there are no weights of a student", dir)
	}
	s, err := net.NewStudent(student, backend)
	if err != nil {
		return nil, fmt.Errorf("save model %s: %w", dir, err)
	}
	card.Parameters = s.Parameters()
	card.Files = map[string]string{}
	for name, b := range content {
		card.Files[name] = hash(b)
	}
	card.WeightsSHA256 = card.Files[WeightsFile]
	if content[CardFile], err = json.MarshalIndent(card, "", "  "); err != nil {
		return nil, fmt.Errorf("save model %s: %w", dir, err)
	}
	content[CardFile] = append(content[CardFile], '\n')
	if err := writeModel(dir, content, replace); err != nil {
		return nil, fmt.Errorf("save model: %w", err)
	}
	return OpenOn(backend, dir)
}

// Install verifies a model, an embedded one or one in a folder, and copies it to
// the folder name in dir, which is made if it is not there. An empty name is the
// one on the card. A model of that name is an error that wraps fs.ErrExist, unless
// replace is set; it then stays until the new one is verified and complete.
func Install(nameOrDir, dir, name string, replace bool) (*Model, error) {
	m, err := Open(nameOrDir)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = m.Card.Name
	}
	if err := CheckName(name); err != nil {
		return nil, fmt.Errorf("install model %s: %w", nameOrDir, err)
	}
	if _, err := m.Verify(); err != nil {
		return nil, err
	}
	content := map[string][]byte{}
	if content[CardFile], err = readFile(m.files, CardFile, maxCard); err != nil {
		return nil, fmt.Errorf("install model %s: %w", nameOrDir, err)
	}
	for file := range m.Card.hashes() {
		if content[file], err = m.read(file); err != nil {
			return nil, fmt.Errorf("install model %s: %w", nameOrDir, err)
		}
	}
	if m.Card.Files == nil { // such a card does not name the golden vectors
		switch b, err := readFile(m.files, GoldenFile, safetensors.MaxFile); {
		case err == nil:
			content[GoldenFile] = b
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("install model %s: %w", nameOrDir, err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("install model %s: %w", nameOrDir, err)
	}
	to := filepath.Join(dir, name)
	if err := writeModel(to, content, replace); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("install model %s: there is a model %q in %s already: %w", nameOrDir, name, dir, fs.ErrExist)
		}
		return nil, fmt.Errorf("install model %s: %w", nameOrDir, err)
	}
	return OpenOn(m.backend, to)
}

// writeModel writes the files of a model into a folder, whole or not at all. They
// are verified in the place where they will be used.
func writeModel(dir string, content map[string][]byte, replace bool) error {
	return atomicfile.WriteDir(dir, replace, func(tmp string) error {
		for _, name := range sortedNames(content) {
			if err := os.WriteFile(filepath.Join(tmp, name), content[name], 0o644); err != nil {
				return err
			}
			if err := os.Chmod(filepath.Join(tmp, name), 0o644); err != nil { // whatever the umask
				return err
			}
		}
		m, err := Open(tmp)
		if err == nil {
			_, err = m.Verify()
		}
		if err != nil {
			return errors.New(strings.ReplaceAll(err.Error(), tmp, "as written"))
		}
		return nil
	})
}
