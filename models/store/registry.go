package store

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	mr "github.com/diffdenoise/denoised/models/default"
	"github.com/diffdenoise/denoised/models/net"
	radiograph "github.com/diffdenoise/denoised/models/radiograph"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// Files of a model's folder.
const (
	WeightsFile   = "weights.safetensors"   // of the student
	MeterFile     = "meter.safetensors"     // of the noise meter; optional
	BSNFile       = "bsn.safetensors"       // of the blind-spot network; optional
	DiffusionFile = "diffusion.safetensors" // of the diffusion network; optional
	CardFile      = "card.json"
	// GoldenFile holds an input, a noise map and the output that the student must
	// give for them, computed by another implementation. Optional, as are the
	// other networks' golden files.
	GoldenFile          = "golden.safetensors"
	MeterGoldenFile     = "meter.golden.safetensors"
	BSNGoldenFile       = "bsn.golden.safetensors"
	DiffusionGoldenFile = "diffusion.golden.safetensors"
)

// Names of the networks of a model.
const (
	NetworkStudent   = "student"
	NetworkMeter     = "meter"
	NetworkBSN       = "bsn"
	NetworkDiffusion = "diffusion"
)

// networks are the parts that a model can have, in the order in which they are
// trained and shown.
var networks = []struct{ name, file, golden, format string }{
	{NetworkStudent, WeightsFile, GoldenFile, "denoised-student-"},
	{NetworkMeter, MeterFile, MeterGoldenFile, "denoised-meter-"},
	{NetworkBSN, BSNFile, BSNGoldenFile, "denoised-bsn-"},
	{NetworkDiffusion, DiffusionFile, DiffusionGoldenFile, "denoised-diffusion-"},
}

// Names under which Open finds the embedded models: that of MR, and that of radiographs.
const (
	DefaultName    = "default"
	RadiographName = "radiograph"
)

// Embedded are the names of the embedded models.
var Embedded = []string{DefaultName, RadiographName}

// embedded returns the files of the embedded model of that name.
func embedded(name string) (files fs.FS, ok bool) {
	switch name {
	case DefaultName:
		return mr.Files, true
	case RadiographName:
		return radiograph.Files, true
	}
	return nil, false
}

// ErrHash is the error for a file that is not the one that the card describes.
var ErrHash = errors.New("file does not match the card")

// ErrNoNetwork is the error for a network that a model does not have.
var ErrNoNetwork = errors.New("the model has no such network")

// Model is a student, with the networks of its training if it has them, and their
// card. It never changes and is safe for concurrent use.
type Model struct {
	Card    Card
	hash    string
	student *net.Student
	files   fs.FS
	backend kernels.Backend

	mu       sync.Mutex
	compiled map[string]compiled // by Graph
}

// Name returns the name on the card.
func (m *Model) Name() string { return m.Card.Name }

// Version returns the version on the card.
func (m *Model) Version() string { return m.Card.Version }

// Hash tells models apart, in hex: the SHA-256 of the weights file, or of the
// hashes of all networks where there are several.
func (m *Model) Hash() string { return m.hash }

// Kind is that of the images that the model is for. Cards that do not tell are of MR.
func (m *Model) Kind() Kind { return cmp.Or(m.Card.Training.Kind, MR) }

// Has tells whether the model has a network of that name.
func (m *Model) Has(network string) bool { return slices.Contains(m.Card.Networks(), network) }

// Network reads the weights of a network and compares their hash with the card.
// The error wraps ErrNoNetwork if the model does not have it.
func (m *Model) Network(network string) (*safetensors.File, error) {
	for _, n := range networks {
		if n.name != network {
			continue
		}
		if !m.Has(network) {
			break
		}
		b, err := m.read(n.file)
		if err != nil {
			return nil, fmt.Errorf("model %s: %w", m.Name(), err)
		}
		f, err := safetensors.Decode(b)
		if err != nil {
			return nil, fmt.Errorf("model %s: %s: %w", m.Name(), n.file, err)
		}
		return f, nil
	}
	return nil, fmt.Errorf("model %s: network %q: %w", m.Name(), network, ErrNoNetwork)
}

// read returns the content of a file that the card names.
func (m *Model) read(name string) ([]byte, error) {
	want, ok := m.Card.hashes()[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	b, err := readFile(m.files, name, safetensors.MaxFile)
	if err != nil {
		return nil, err
	}
	if got := hash(b); got != want {
		return nil, fmt.Errorf("%w: %s has SHA-256 %s, %s says %.64q", ErrHash, name, got, CardFile, want)
	}
	return b, nil
}

// Student returns the network.
func (m *Model) Student() *net.Student { return m.student }

// WithStudent returns the model with another student, of a weights file. Name, card and hash stay
// those of the model.
func (m *Model) WithStudent(f *safetensors.File) (*Model, error) {
	student, err := net.NewStudent(f, m.backend)
	if err != nil {
		return nil, err
	}
	return &Model{Card: m.Card, hash: m.hash, student: student, files: m.files, backend: m.backend}, nil
}

// Graph returns a network of the model, other than the student, on the model's
// backend: the same one at every call. The error wraps ErrNoNetwork if the model
// does not have it.
func (m *Model) Graph(network string) (*kernels.Graph, kernels.Program, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c, ok := m.compiled[network]; ok {
		return c.graph, c.program, nil
	}
	f, err := m.Network(network)
	if err != nil {
		return nil, nil, err
	}
	g, p, err := net.Compile(f, m.backend)
	if err != nil {
		return nil, nil, fmt.Errorf("model %s: network %q: %w", m.Name(), network, err)
	}
	if m.compiled == nil {
		m.compiled = map[string]compiled{}
	}
	m.compiled[network] = compiled{g, p}
	return g, p, nil
}

// compiled is a network that Graph has made.
type compiled struct {
	graph   *kernels.Graph
	program kernels.Program
}

// Default returns the embedded model of MR on the backend that cpu.SelectInference
// chooses.
func Default() (*Model, error) { return Open(DefaultName) }

// Open returns the embedded model of a name in Embedded and otherwise the model
// in the folder of that name, on the backend that cpu.SelectInference chooses. Weights
// whose hash is not the one on the card are an error that wraps ErrHash.
func Open(nameOrDir string) (*Model, error) {
	backend, err := cpu.SelectInference()
	if err != nil {
		return nil, fmt.Errorf("open model %s: %w", nameOrDir, err)
	}
	return OpenOn(backend, nameOrDir)
}

// OpenOn is Open on a given backend.
func OpenOn(backend kernels.Backend, nameOrDir string) (*Model, error) {
	files, err := modelFiles(nameOrDir)
	if err != nil {
		return nil, err
	}
	m := &Model{files: files, backend: backend}
	if m.Card, err = readCard(files); err != nil {
		return nil, fmt.Errorf("open model %s: %w", nameOrDir, err)
	}
	for _, n := range networks {
		if !m.Has(n.name) {
			continue
		}
		b, err := m.read(n.file)
		if err != nil {
			return nil, fmt.Errorf("open model %s: %w", nameOrDir, err)
		}
		f, err := safetensors.Decode(b)
		switch {
		case err != nil:
		case !strings.HasPrefix(f.Metadata["format"], n.format):
			err = fmt.Errorf("weights are of format %.60q, want %s…", f.Metadata["format"], n.format)
		case n.name == NetworkStudent:
			m.student, err = net.NewStudent(f, backend)
		default:
			_, _, err = net.DecodeGraph(f)
		}
		if err != nil {
			return nil, fmt.Errorf("open model %s: %s: %w", nameOrDir, n.file, err)
		}
	}
	if got := m.student.Parameters(); got != m.Card.Parameters {
		return nil, fmt.Errorf("open model %s: network has %d parameters, %s says %d", nameOrDir, got, CardFile, m.Card.Parameters)
	}
	m.hash = m.Card.identity()
	return m, nil
}

// Verification is the outcome of Verify.
type Verification struct {
	Hash string `json:"weights_sha256"` // of the student
	// Golden tells whether the student has golden vectors; GoldenError is then the
	// relative error of its output.
	Golden      bool    `json:"golden"`
	GoldenError float64 `json:"golden_error"`
	// Networks are all networks of the model.
	Networks []NetworkVerification `json:"networks"`
}

// NetworkVerification is what Verify found of one network.
type NetworkVerification struct {
	Network     string  `json:"network"`
	Hash        string  `json:"sha256"`
	Golden      bool    `json:"golden"`
	GoldenError float64 `json:"golden_error"`
}

// Verify reads all files again, compares their hashes with the card, and runs each
// network on its golden vectors, if it has some. It is an error if any disagrees.
func (m *Model) Verify() (*Verification, error) {
	v := new(Verification)
	for _, name := range sortedNames(m.Card.hashes()) {
		if _, err := m.read(name); err != nil {
			return v, fmt.Errorf("verify model %s: %w", m.Name(), err)
		}
	}
	for _, n := range networks {
		if !m.Has(n.name) {
			continue
		}
		one, err := m.verify(n.name, n.file, n.golden)
		v.Networks = append(v.Networks, one)
		if n.name == NetworkStudent {
			v.Hash, v.Golden, v.GoldenError = one.Hash, one.Golden, one.GoldenError
		}
		if err != nil {
			return v, fmt.Errorf("verify model %s: %w", m.Name(), err)
		}
	}
	return v, nil
}

func (m *Model) verify(network, file, goldenFile string) (NetworkVerification, error) {
	v := NetworkVerification{Network: network, Hash: m.Card.hashes()[file]}
	weights, err := m.Network(network)
	if err != nil {
		return v, err
	}
	// A card without Files does not name the golden file, one with Files does.
	if _, named := m.Card.Files[goldenFile]; m.Card.Files != nil && !named {
		return v, nil
	}
	b, err := readFile(m.files, goldenFile, safetensors.MaxFile)
	if errors.Is(err, fs.ErrNotExist) && m.Card.Files == nil {
		return v, nil
	}
	if err != nil {
		return v, err
	}
	golden, err := safetensors.Decode(b)
	if err != nil {
		return v, fmt.Errorf("%s: %w", goldenFile, err)
	}
	v.Golden = true
	if v.GoldenError, err = net.CheckGolden(weights, golden, m.backend); err != nil {
		return v, fmt.Errorf("%s: %w", goldenFile, err)
	}
	limit := net.GraphTolerance(m.backend)
	if network == NetworkStudent {
		limit = net.StudentTolerance(m.backend)
	}
	if !(v.GoldenError <= limit) {
		return v, fmt.Errorf("%s: the output of the network %s is off by %.3g of the golden vector, allowed is %g", goldenFile, network, v.GoldenError, limit)
	}
	return v, nil
}

func sortedNames[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

// Entry is a model that List found.
type Entry struct {
	Open string // what Open takes
	Card Card
	Err  error // why the card cannot be read
}

// List returns the embedded models and those in the folders directly within dir
// that have a card. An empty dir lists only the embedded ones.
func List(dir string) ([]Entry, error) {
	candidates := slices.Clone(Embedded)
	if dir != "" {
		items, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("list models: %w", err)
		}
		for _, item := range items {
			if strings.HasPrefix(item.Name(), ".") {
				continue // what a crash may leave of an installation
			}
			path := filepath.Join(dir, item.Name())
			if _, err := os.Stat(filepath.Join(path, CardFile)); err == nil {
				candidates = append(candidates, path)
			}
		}
	}
	var list []Entry
	for _, name := range candidates {
		e := Entry{Open: name}
		files, err := modelFiles(name)
		if err == nil {
			e.Card, err = readCard(files)
		}
		e.Err = err
		list = append(list, e)
	}
	return list, nil
}

// modelFiles finds the folder of a model.
func modelFiles(nameOrDir string) (fs.FS, error) {
	if files, ok := embedded(nameOrDir); ok {
		return files, nil
	}
	info, err := os.Stat(nameOrDir)
	if err != nil {
		return nil, fmt.Errorf("open model: %w (there are %q; give the name of an installed model, or a folder with "+
			"%s and %s)", err, Embedded, WeightsFile, CardFile)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open model: %s is not a folder (give one with %s and %s)", nameOrDir, WeightsFile, CardFile)
	}
	return os.DirFS(nameOrDir), nil
}

// readFile reads a file of at most limit bytes.
func readFile(files fs.FS, name string, limit int64) ([]byte, error) {
	f, err := files.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: more than %d bytes", name, limit)
	}
	return b, nil
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
