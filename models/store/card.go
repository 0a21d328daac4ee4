package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// maxCard bounds the size of a card in bytes.
const maxCard = 1 << 20

// maxFiles bounds the files that a card names.
const maxFiles = 16

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
	Noise  string `json:"noise,omitempty"`
	Preset string `json:"preset,omitempty"`
	// Kind is that of the images; older cards do not tell, theirs are of MR.
	Kind Kind `json:"kind,omitempty"`
	// From is the model that the training went on from, with its hash.
	From    string  `json:"from,omitempty"`
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
