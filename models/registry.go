package models

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// Files of a model's folder.
const (
	WeightsFile   = "weights.safetensors"   // of the student
	BSNFile       = "bsn.safetensors"       // of the blind-spot network; optional
	DiffusionFile = "diffusion.safetensors" // of the diffusion network; optional
	CardFile      = "card.json"
	// GoldenFile holds an input, a noise map and the output that the student must
	// give for them, computed by another implementation. Optional, as are the
	// other networks' golden files.
	GoldenFile          = "golden.safetensors"
	BSNGoldenFile       = "bsn.golden.safetensors"
	DiffusionGoldenFile = "diffusion.golden.safetensors"
)

// Names of the networks of a model.
const (
	NetworkStudent   = "student"
	NetworkBSN       = "bsn"
	NetworkDiffusion = "diffusion"
)

// networks are the parts that a model can have, in the order in which they are
// trained and shown.
var networks = []struct{ name, file, golden, format string }{
	{NetworkStudent, WeightsFile, GoldenFile, "denoised-student-"},
	{NetworkBSN, BSNFile, BSNGoldenFile, "denoised-bsn-"},
	{NetworkDiffusion, DiffusionFile, DiffusionGoldenFile, "denoised-diffusion-"},
}

// DefaultName is the name under which Open finds the embedded model.
const DefaultName = "default"

// maxCard bounds the size of a card in bytes.
const maxCard = 1 << 20

// GoldenTolerance is the relative error (norm of the difference by norm of the
// expected output, which is the noise for a student) that Verify allows backends
// with float32 throughout. Others say theirs: for a student by a method Tolerance, for
// graphs by a method GraphTolerance.
const GoldenTolerance = 1e-5

// goldenTolerance returns what Verify allows a student on a backend.
func goldenTolerance(on kernels.Backend) float64 {
	if b, ok := on.(interface{ Tolerance() float64 }); ok {
		return b.Tolerance()
	}
	return GoldenTolerance
}

// graphTolerance returns what Verify allows the other networks.
func graphTolerance(on kernels.Backend) float64 {
	if b, ok := on.(interface{ GraphTolerance() float64 }); ok {
		return b.GraphTolerance()
	}
	return GoldenTolerance
}

//go:embed default
var embedded embed.FS

// maxFiles bounds the files that a card names.
const maxFiles = 16

// ErrHash is the error for a file that is not the one that the card describes.
var ErrHash = errors.New("file does not match the card")

// ErrNoNetwork is the error for a network that a model does not have.
var ErrNoNetwork = errors.New("the model has no such network")

// Card says what a model is and where it comes from.
type Card struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// WeightsSHA256 is that of WeightsFile, in hex. Files has those of all files
	// but the card, by name; cards of models with nothing but a student may leave
	// it out.
	WeightsSHA256 string            `json:"weights_sha256"`
	Files         map[string]string `json:"files,omitempty"`
	Architecture  string            `json:"architecture"` // of the student
	Parameters    int               `json:"parameters"`   // of the student
	Training      Training          `json:"training"`
	Scores        []Score           `json:"scores"`
	Limits        string            `json:"limits,omitempty"` // what it is not for
	Licence       string            `json:"licence"`          // of the weights
	Created       time.Time         `json:"created,omitzero"`
}

// Training is how the weights came to be. Commit is empty when it was not
// recorded.
type Training struct {
	Method string `json:"method"`
	// Noise says what the training takes for granted about it.
	Noise   string  `json:"noise,omitempty"`
	Preset  string  `json:"preset,omitempty"`
	Seed    int64   `json:"seed"`
	Version string  `json:"version,omitempty"` // of the program
	Commit  string  `json:"commit"`            // of the program
	Steps   int     `json:"steps"`             // of the student
	Batch   int     `json:"batch"`
	Crop    int     `json:"crop"` // pixels
	Loss    float64 `json:"loss"`
	Seconds float64 `json:"seconds"` // of all stages
	// Backends are what it was computed on; several if it was resumed on another one.
	Backends []string `json:"backends,omitempty"`
	// Stages are the networks in the order in which they were trained.
	Stages []Stage `json:"stages,omitempty"`
	// Fingerprint is that of the slices, see train.Set.
	Fingerprint string    `json:"fingerprint,omitempty"`
	Data        []DataSet `json:"data"`
}

// Stage is the training of one network.
type Stage struct {
	Network      string             `json:"network"`
	Architecture string             `json:"architecture"`
	Parameters   int                `json:"parameters"`
	Steps        int                `json:"steps"`
	BestStep     int                `json:"best_step,omitempty"` // whose weights were taken
	Batch        int                `json:"batch,omitempty"`
	Crop         int                `json:"crop,omitempty"` // pixels
	Loss         float64            `json:"loss,omitempty"` // of the last steps
	Seconds      float64            `json:"seconds,omitempty"`
	Scores       map[string]float64 `json:"scores,omitempty"` // of the validation
}

// DataSet is something that a model was trained on.
type DataSet struct {
	Name    string `json:"name"`
	Source  string `json:"source"`
	Licence string `json:"licence"`
}

// Score is one measurement of a model.
type Score struct {
	On     string  `json:"on"`     // which images
	What   string  `json:"what"`   // of what, e.g. "noisy input"
	Metric string  `json:"metric"` // e.g. "PSNR, dB"
	Value  float64 `json:"value"`
}

// Model is a student, with the networks of its training if it has them, and their
// card. It never changes and is safe for concurrent use.
type Model struct {
	Card    Card
	hash    string
	student *Student
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

// Networks are the names of the model's networks.
func (c *Card) Networks() []string {
	var names []string
	for _, n := range networks {
		if _, ok := c.hashes()[n.file]; ok {
			names = append(names, n.name)
		}
	}
	return names
}

// hashes are those of all files that the card describes. Cards without Files tell
// nothing of golden vectors.
func (c *Card) hashes() map[string]string {
	if c.Files != nil {
		return c.Files
	}
	return map[string]string{WeightsFile: c.WeightsSHA256}
}

// identity is Model.Hash.
func (c *Card) identity() string {
	all := ""
	for _, n := range networks[1:] {
		if h, ok := c.Files[n.file]; ok {
			all += n.name + " " + h + "\n"
		}
	}
	if all == "" {
		return c.WeightsSHA256
	}
	return hash([]byte(NetworkStudent + " " + c.WeightsSHA256 + "\n" + all))
}

// Student returns the network.
func (m *Model) Student() *Student { return m.student }

// Default returns the embedded model on the backend that cpu.SelectInference
// chooses.
func Default() (*Model, error) { return Open(DefaultName) }

// Open returns the embedded model for the name "default" and otherwise the model
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
			m.student, err = NewStudent(f, backend)
		default:
			_, _, err = DecodeGraph(f)
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
	if v.GoldenError, err = checkGolden(weights, golden, m.backend); err != nil {
		return v, fmt.Errorf("%s: %w", goldenFile, err)
	}
	limit := graphTolerance(m.backend)
	if network == NetworkStudent {
		limit = goldenTolerance(m.backend)
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

// List returns the embedded model and those in the folders directly within dir
// that have a card. An empty dir lists only the embedded one.
func List(dir string) ([]Entry, error) {
	candidates := []string{DefaultName}
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
	if nameOrDir == DefaultName {
		return fs.Sub(embedded, "default")
	}
	info, err := os.Stat(nameOrDir)
	if err != nil {
		return nil, fmt.Errorf("open model: %w (there is %q; give the name of an installed model, or a folder with %s and %s)", err, DefaultName, WeightsFile, CardFile)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open model: %s is not a folder (give one with %s and %s)", nameOrDir, WeightsFile, CardFile)
	}
	return os.DirFS(nameOrDir), nil
}

func readCard(files fs.FS) (Card, error) {
	var c Card
	b, err := readFile(files, CardFile, maxCard)
	if err != nil {
		return c, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, fmt.Errorf("read %s: %w", CardFile, err)
	}
	if c.Name == "" || c.Version == "" {
		return c, fmt.Errorf("read %s: name or version is missing", CardFile)
	}
	if c.Files == nil {
		return c, nil
	}
	if len(c.Files) > maxFiles {
		return c, fmt.Errorf("read %s: it names %d files, at most %d are allowed", CardFile, len(c.Files), maxFiles)
	}
	for name := range c.Files {
		// Names are joined with folders: nothing may lead out of them.
		if !fs.ValidPath(name) || strings.ContainsAny(name, `/\:`) || strings.HasPrefix(name, ".") || name == CardFile {
			return c, fmt.Errorf("read %s: %.60q is no name of a model's file", CardFile, name)
		}
	}
	switch h, ok := c.Files[WeightsFile]; {
	case !ok:
		return c, fmt.Errorf("read %s: files does not name %s", CardFile, WeightsFile)
	case c.WeightsSHA256 == "":
		c.WeightsSHA256 = h
	case c.WeightsSHA256 != h:
		return c, fmt.Errorf("read %s: weights_sha256 and files give %s different hashes", CardFile, WeightsFile)
	}
	return c, nil
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

// relativeError is the norm of got-want by the norm of want. It is NaN if got
// has one.
func relativeError(got, want []float32) float64 {
	diff, norm := 0.0, 0.0
	for i := range want {
		d := float64(got[i]) - float64(want[i])
		diff += d * d
		norm += float64(want[i]) * float64(want[i])
	}
	if diff == 0 {
		return 0
	}
	return math.Sqrt(diff / norm)
}
