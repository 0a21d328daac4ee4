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
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// Files of a model's folder.
const (
	WeightsFile = "weights.safetensors"
	CardFile    = "card.json"
	// GoldenFile holds an input, a noise map and the output that the network
	// must give for them, computed by another implementation. Optional.
	GoldenFile = "golden.safetensors"
)

// DefaultName is the name under which Open finds the embedded model.
const DefaultName = "default"

// maxCard bounds the size of a card in bytes.
const maxCard = 1 << 20

// GoldenTolerance is the relative error (norm of the difference by norm of the
// expected output) that Verify allows.
const GoldenTolerance = 1e-5

//go:embed default
var embedded embed.FS

// ErrHash is the error for weights that are not those that the card describes.
var ErrHash = errors.New("weights do not match the card")

// Card says what a model is and where it comes from.
type Card struct {
	Name          string    `json:"name"`
	Version       string    `json:"version"`
	WeightsSHA256 string    `json:"weights_sha256"` // hex
	Architecture  string    `json:"architecture"`
	Parameters    int       `json:"parameters"`
	Training      Training  `json:"training"`
	Scores        []Score   `json:"scores"`
	Limits        string    `json:"limits,omitempty"` // what it is not for
	Licence       string    `json:"licence"`          // of the weights
	Created       time.Time `json:"created,omitzero"`
}

// Training is how the weights came to be. Commit is empty when it was not
// recorded.
type Training struct {
	Method  string    `json:"method"`
	Seed    int64     `json:"seed"`
	Commit  string    `json:"commit"`
	Steps   int       `json:"steps"`
	Batch   int       `json:"batch"`
	Crop    int       `json:"crop"` // pixels
	Loss    float64   `json:"loss"`
	Seconds float64   `json:"seconds"`
	Data    []DataSet `json:"data"`
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

// Model is a network with its card. It never changes and is safe for concurrent
// use.
type Model struct {
	Card    Card
	hash    string
	student *Student
	files   fs.FS
}

// Name returns the name on the card.
func (m *Model) Name() string { return m.Card.Name }

// Version returns the version on the card.
func (m *Model) Version() string { return m.Card.Version }

// Hash returns the SHA-256 of the weights file, in hex.
func (m *Model) Hash() string { return m.hash }

// Student returns the network.
func (m *Model) Student() *Student { return m.student }

// Default returns the embedded model on the backend that cpu.Select chooses.
func Default() (*Model, error) { return Open(DefaultName) }

// Open returns the embedded model for the name "default" and otherwise the model
// in the folder of that name, on the backend that cpu.Select chooses. Weights
// whose hash is not the one on the card are an error that wraps ErrHash.
func Open(nameOrDir string) (*Model, error) {
	backend, err := cpu.Select()
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
	m := &Model{files: files}
	if m.Card, err = readCard(files); err != nil {
		return nil, fmt.Errorf("open model %s: %w", nameOrDir, err)
	}
	weights, err := readFile(files, WeightsFile, safetensors.MaxFile)
	if err != nil {
		return nil, fmt.Errorf("open model %s: %w", nameOrDir, err)
	}
	if m.hash = hash(weights); m.hash != m.Card.WeightsSHA256 {
		return nil, fmt.Errorf("open model %s: %w: %s has SHA-256 %s, %s says %.64q", nameOrDir, ErrHash, WeightsFile, m.hash, CardFile, m.Card.WeightsSHA256)
	}
	f, err := safetensors.Decode(weights)
	if err == nil {
		m.student, err = NewStudent(f, backend)
	}
	if err != nil {
		return nil, fmt.Errorf("open model %s: %s: %w", nameOrDir, WeightsFile, err)
	}
	if got := m.student.Parameters(); got != m.Card.Parameters {
		return nil, fmt.Errorf("open model %s: network has %d parameters, %s says %d", nameOrDir, got, CardFile, m.Card.Parameters)
	}
	return m, nil
}

// Verification is the outcome of Verify.
type Verification struct {
	Hash string `json:"weights_sha256"`
	// Golden tells whether the model has golden vectors; GoldenError is then the
	// relative error of the network's output.
	Golden      bool    `json:"golden"`
	GoldenError float64 `json:"golden_error"`
}

// Verify reads the weights file again, compares its hash with the card, and
// runs the network on the model's golden vectors, if it has some. It is an
// error if either disagrees.
func (m *Model) Verify() (*Verification, error) {
	weights, err := readFile(m.files, WeightsFile, safetensors.MaxFile)
	if err != nil {
		return nil, fmt.Errorf("verify model %s: %w", m.Name(), err)
	}
	v := &Verification{Hash: hash(weights)}
	if v.Hash != m.Card.WeightsSHA256 || v.Hash != m.hash {
		return v, fmt.Errorf("verify model %s: %w: %s has SHA-256 %s, %s says %.64q", m.Name(), ErrHash, WeightsFile, v.Hash, CardFile, m.Card.WeightsSHA256)
	}
	golden, err := readFile(m.files, GoldenFile, safetensors.MaxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return v, fmt.Errorf("verify model %s: %w", m.Name(), err)
	}
	v.Golden = true
	f, err := safetensors.Decode(golden)
	if err != nil {
		return v, fmt.Errorf("verify model %s: %s: %w", m.Name(), GoldenFile, err)
	}
	y, sigma, want := f.Tensors["input"], f.Tensors["sigma"], f.Tensors["output"]
	if len(y.Shape) != 2 || !shaped(sigma, y.Shape...) || !shaped(want, y.Shape...) {
		return v, fmt.Errorf("verify model %s: %s has shapes %v, %v and %v", m.Name(), GoldenFile, y.Shape, sigma.Shape, want.Shape)
	}
	got := make([]float32, len(y.Data))
	if err := m.student.Forward(got, y.Data, sigma.Data, y.Shape[1], y.Shape[0]); err != nil {
		return v, fmt.Errorf("verify model %s: %w", m.Name(), err)
	}
	if v.GoldenError = relativeError(got, want.Data); !(v.GoldenError <= GoldenTolerance) {
		return v, fmt.Errorf("verify model %s: output is off by %.3g of the golden vector, allowed is %g", m.Name(), v.GoldenError, GoldenTolerance)
	}
	return v, nil
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
		return nil, fmt.Errorf("open model: %w (there is %q, or give a folder with %s and %s)", err, DefaultName, WeightsFile, CardFile)
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
