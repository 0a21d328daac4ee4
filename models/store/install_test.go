package store

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// threeNetworks are a student, a blind-spot and a diffusion network, the latter
// two small and untrained.
func threeNetworks(t *testing.T) map[string]*safetensors.File {
	t.Helper()
	m, err := Open(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	student, err := m.Network(NetworkStudent)
	if err != nil {
		t.Fatal(err)
	}
	bsn := net.BSNConfig{Channels: [3]int{4, 6, 8}, Mix: 4}
	teacher := net.TeacherConfig{Condition: 3, Channels: [3]int{4, 6, 8}, Code: 8}
	nets := map[string]*safetensors.File{NetworkStudent: student}
	g := bsn.Graph()
	if nets[NetworkBSN], err = net.EncodeGraph(bsn.String(), g, g.Init(1)); err != nil {
		t.Fatal(err)
	}
	g = teacher.Graph()
	params := g.Init(2)
	for _, p := range params { // nothing that starts at zero
		for i := range p {
			p[i] += 0.01
		}
	}
	if nets[NetworkDiffusion], err = net.EncodeGraph(teacher.String(), g, params); err != nil {
		t.Fatal(err)
	}
	return nets
}

func saved(t *testing.T, dir string) *Model {
	t.Helper()
	m, err := Save(dir, Card{Name: "site", Version: "3", Training: Training{Preset: "tiny", Noise: "white", Version: "1.2",
		Stages: []Stage{{Network: NetworkBSN, Steps: 10}}}}, threeNetworks(t), false)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestSave: what was saved is opened and verified with all its networks, on every
// instruction set.
func TestSave(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	m := saved(t, dir)
	for _, isa := range cpu.ISAs() {
		backend, err := cpu.New(isa)
		if err != nil {
			t.Fatal(err)
		}
		m, err := OpenOn(backend, dir)
		if err != nil {
			t.Fatal(err)
		}
		v, err := m.Verify()
		if err != nil || len(v.Networks) != 3 || !v.Golden {
			t.Fatalf("%s: %+v, %v", isa, v, err)
		}
		for _, n := range v.Networks {
			limit := net.GoldenTolerance
			if n.Network == NetworkStudent {
				limit = backend.Tolerance()
			}
			if !n.Golden || !(n.GoldenError <= limit) || len(n.Hash) != 64 {
				t.Errorf("%s: %+v", isa, n)
			}
			if isa != cpu.Go && n.GoldenError == 0 {
				t.Errorf("%s: %s agrees to the bit with plain Go: was it run?", isa, n.Network)
			}
		}
	}
	if m.Card.Training.Stages[0].Network != NetworkBSN || m.Card.Parameters != 150596 || len(m.Card.Files) != 6 {
		t.Errorf("card %+v", m.Card)
	}
	d, err := Open(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	if m.Card.WeightsSHA256 != m.Card.Files[WeightsFile] || m.Hash() == m.Card.WeightsSHA256 || d.Hash() != d.Card.WeightsSHA256 {
		t.Errorf("a model with more networks has the hash of its student")
	}
	for name, has := range map[string]bool{NetworkStudent: true, NetworkBSN: true, NetworkDiffusion: true, "other": false} {
		if m.Has(name) != has {
			t.Errorf("Has(%q) = %v", name, m.Has(name))
		}
	}
	if d.Has(NetworkBSN) {
		t.Error("a model of a student has a blind-spot network")
	}
	if _, err := d.Network(NetworkBSN); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("Network of a model without it: %v", err)
	}
	g, p, err := m.Graph(NetworkBSN)
	if err != nil || g.Shifts() != 3 || p == nil {
		t.Errorf("Graph: %v", err)
	}
	if again, _, err := m.Graph(NetworkBSN); err != nil || again != g {
		t.Errorf("Graph makes the network a second time (%v)", err)
	}
	if _, _, err := m.Graph("other"); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("Graph of no network: %v", err)
	}
	if _, err := Save(dir, Card{Name: "x", Version: "1"}, threeNetworks(t), false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Save over a model: %v", err)
	}
	if _, err := Save(dir, Card{Version: "1"}, threeNetworks(t), true); err == nil {
		t.Error("Save without a name")
	}
	if m, err := Open(dir); err != nil || m.Name() != "site" {
		t.Errorf("after a Save that failed: %v", err)
	}
	if m, err := Save(dir, Card{Name: "x", Version: "1"}, threeNetworks(t), true); err != nil || m.Name() != "x" {
		t.Errorf("Save in place of a model: %v", err)
	}
	nets := threeNetworks(t)
	delete(nets, NetworkStudent)
	if _, err := Save(filepath.Join(dir, "y"), Card{Name: "y", Version: "1"}, nets, true); err == nil {
		t.Error("Save without a student")
	}
}

// TestTampered: one changed, missing, cut or exchanged file of a model is found
// when it is opened or, for golden vectors, verified.
func TestTampered(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	m := saved(t, dir)
	for _, name := range slices.Sorted(maps.Keys(m.Card.Files)) {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flipped := slices.Clone(whole)
		flipped[len(flipped)/2] ^= 4
		for what, b := range map[string][]byte{"changed": flipped, "cut": whole[:len(whole)-7], "empty": {}, "missing": nil} {
			if b == nil {
				err = os.Remove(path)
			} else {
				err = os.WriteFile(path, b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, verr := m.Verify()
			_, oerr := Open(dir)
			if golden := strings.Contains(name, "golden"); verr == nil || oerr == nil && !golden || oerr != nil && golden {
				t.Errorf("%s %s: Verify %v, Open %v", name, what, verr, oerr)
			}
			if b != nil && !errors.Is(verr, ErrHash) || b == nil && !errors.Is(verr, fs.ErrNotExist) {
				t.Errorf("%s %s: Verify %v", name, what, verr)
			}
		}
		if err := os.WriteFile(path, whole, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Verify(); err != nil {
		t.Errorf("with everything back: %v", err)
	}
}

// TestOtherArchitecture: weights of another network under the right hash.
func TestOtherArchitecture(t *testing.T) {
	nets := threeNetworks(t)
	for what, change := range map[string]func(){
		"student for bsn":      func() { nets[NetworkBSN] = nets[NetworkStudent] },
		"bsn for student":      func() { nets[NetworkStudent] = nets[NetworkBSN] },
		"unknown architecture": func() { nets[NetworkBSN].Metadata["format"] = "denoised-bsn-v9 1" },
		"another size":         func() { nets[NetworkBSN].Metadata["format"] = "denoised-bsn-v1 4-6-9-4" },
		"huge":                 func() { nets[NetworkBSN].Metadata["format"] = "denoised-bsn-v1 4-6-900000000-4" },
		"negative":             func() { nets[NetworkDiffusion].Metadata["format"] = "denoised-diffusion-v2 3 -4-6-8 8" },
		"one tensor too many":  func() { nets[NetworkBSN].Tensors["more"] = safetensors.Tensor{Shape: []int{1}, Data: []float32{1}} },
		"one too few":          func() { delete(nets[NetworkDiffusion].Tensors, "out.bias") },
	} {
		nets = threeNetworks(t)
		change()
		dir := filepath.Join(t.TempDir(), "m")
		if _, err := Save(dir, Card{Name: "m", Version: "1"}, nets, false); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something was written", what)
		}
	}
}

// TestCardFiles: what a card may say of files.
func TestCardFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	m := saved(t, dir)
	for what, change := range map[string]func(c *Card){
		"out of the folder": func(c *Card) { c.Files["../x"] = c.WeightsSHA256 },
		"a subfolder":       func(c *Card) { c.Files["a/x"] = c.WeightsSHA256 },
		"hidden":            func(c *Card) { c.Files[".x"] = c.WeightsSHA256 },
		"the card":          func(c *Card) { c.Files[CardFile] = c.WeightsSHA256 },
		"no student":        func(c *Card) { delete(c.Files, WeightsFile) },
		"two hashes":        func(c *Card) { c.WeightsSHA256 = strings.Repeat("0", 64) },
		"too many": func(c *Card) {
			for i := range 20 {
				c.Files[strings.Repeat("x", i+1)] = c.WeightsSHA256
			}
		},
		"not there": func(c *Card) { c.Files["diffusion.safetensors"] = strings.Repeat("0", 64) },
	} {
		card := m.Card
		card.Files = maps.Clone(card.Files)
		change(&card)
		b, err := json.Marshal(card)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, CardFile), b, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestInstall(t *testing.T) {
	root := t.TempDir()
	from, models := filepath.Join(root, "m"), filepath.Join(root, "state", "models")
	saved(t, from)
	m, err := Install(from, models, "", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Verify(); err != nil || m.Name() != "site" || !m.Has(NetworkDiffusion) {
		t.Errorf("installed: %v", err)
	}
	if got := Find("site", models); got != filepath.Join(models, "site") {
		t.Errorf("Find: %s", got)
	}
	for _, name := range []string{DefaultName, "other", from, "../m", ""} {
		if got := Find(name, models); got != name {
			t.Errorf("Find(%q) = %q", name, got)
		}
	}
	if _, err := Install(from, models, "", false); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), `"site"`) {
		t.Errorf("a second time: %v", err)
	}
	if _, err := Install(from, models, "other.one", false); err != nil {
		t.Errorf("under another name: %v", err)
	}
	// A model whose card names no files keeps its golden vectors.
	m, err = Install(bootstrap, models, "site", true)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := m.Verify(); err != nil || !v.Golden || m.Has(NetworkBSN) {
		t.Errorf("in place of another: %+v, %v", v, err)
	}
	if _, err := os.Stat(filepath.Join(models, "site", BSNFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("files of the replaced model are left")
	}
	for _, name := range []string{DefaultName, "../up", "a/b", ".hidden", strings.Repeat("x", 65), "a b"} {
		if _, err := Install(from, models, name, true); err == nil {
			t.Errorf("installed under %q", name)
		}
	}
	// A damaged source replaces nothing.
	if err := os.Truncate(filepath.Join(from, DiffusionFile), 100); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(from, models, "other.one", true); !errors.Is(err, ErrHash) {
		t.Errorf("a damaged model: %v", err)
	}
	if m, err := Open(filepath.Join(models, "other.one")); err != nil || !m.Has(NetworkDiffusion) {
		t.Errorf("the installed one: %v", err)
	}
	list, err := List(models)
	if err != nil || len(list) != len(Embedded)+2 {
		t.Errorf("List finds %d models, %v", len(list), err)
	}
	items, err := os.ReadDir(models)
	if err != nil || len(items) != 2 {
		t.Errorf("left behind: %v, %v", items, err)
	}
}
