package train

import (
	"bytes"
	"encoding/json"
	"fmt"
	"github.com/diffdenoise/denoised/models/store"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/diffdenoise/denoised/models/safetensors"
)

// maxCard bounds what is read of a card.
const maxCard = 1 << 20

// Texts of cards.
const (
	cardMethod = "self-supervised, from noisy images alone: a blind-spot network, a student on recorrupted pairs, " +
		"and conditional diffusion that counts from the student's result (docs/training.md)"
	cardDistil = "; the student then went on with what the networks make of the training images beside these"
	cardNoise  = "zero mean, its strength estimated for every pixel and its correlation for the slice, " +
		"on the grid that was measured; magnitude images may be Rician"
	cardLimits = "For research use, on images like those it was trained on."
)

// ReadCard reads what a person says about a model to be trained: JSON with the fields
// of a card and no others.
func ReadCard(path string) (c store.Card, err error) {
	b, err := readLimited(path, maxCard)
	if err != nil {
		return c, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// stages are those of the model: of the networks that were trained by an earlier
// call the log knows.
func (f *Folder) stages(r *Result) []store.Stage {
	entries, _ := ReadLog(f.path(logFile)) // without it less is known
	list := []store.Stage{}
	for _, name := range Stages {
		w := r.Networks[name]
		if w == nil {
			continue
		}
		s := store.Stage{Network: name, Architecture: w.Metadata["format"], Parameters: parameters(w)}
		for _, e := range entries {
			if e.Stage == name {
				s.Steps, s.Loss, s.Scores = e.Step, e.Loss, e.Scores
			}
		}
		if i := slices.IndexFunc(r.Stages, func(t store.Stage) bool { return t.Network == name }); i >= 0 {
			s = r.Stages[i]
		}
		s.Seconds = seconds(entries, name)
		list = append(list, s)
	}
	return list
}

// seconds is the time that the log counts for a stage, or for all if it is empty.
func seconds(entries []Entry, stage string) (sum float64) {
	for _, e := range entries {
		if stage == "" || e.Stage == stage {
			sum += e.Seconds
		}
	}
	return sum
}

func parameters(f *safetensors.File) (n int) {
	for _, t := range f.Tensors {
		n += len(t.Data)
	}
	return n
}

// card completes a card.
func (f *Folder) card(c store.Card, set *Set, stages []store.Stage) store.Card {
	if c.Name == "" {
		out := f.config.Out
		if abs, err := filepath.Abs(out); err == nil {
			out = abs
		}
		c.Name = strings.Map(func(r rune) rune {
			if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r) {
				return r
			}
			return '-'
		}, filepath.Base(out))
		if store.CheckName(c.Name) != nil {
			c.Name = "site"
		}
	}
	if c.Version == "" {
		c.Version = "1"
	}
	if c.Licence == "" {
		c.Licence = "not stated"
	}
	if c.Limits == "" {
		c.Limits = cardLimits
	}
	t := &c.Training
	if t.Method == "" {
		t.Method = cardMethod
		if f.config.Distil {
			t.Method += cardDistil
		}
	}
	if t.Noise == "" {
		t.Noise = cardNoise
	}
	if len(t.Data) == 0 {
		what := fmt.Sprintf("%d slices of %d volumes", set.Summary.Slices, set.Summary.Volumes)
		t.Data = []store.DataSet{{Name: what, Source: "of the site", Licence: "not stated"}}
	}
	t.Preset, t.Seed, t.Fingerprint = f.run.Preset, int64(f.run.Seed), f.run.Fingerprint
	t.Version, t.Commit, t.Backends = f.run.Version, f.run.Commit, f.run.Backends
	t.Stages, t.Seconds = stages, 0
	for _, s := range stages {
		t.Seconds += s.Seconds
		if s.Network == StageStudent {
			t.Steps, t.Batch, t.Crop, t.Loss = s.Steps, s.Batch, s.Crop, s.Loss
			c.Architecture = s.Architecture
		}
		for _, k := range sortedKeys(s.Scores) {
			c.Scores = append(c.Scores, store.Score{On: "pieces of the validation, noise added",
				What: s.Network, Metric: k, Value: s.Scores[k]})
		}
	}
	if c.Created.IsZero() {
		c.Created = time.Now().UTC().Truncate(time.Second)
	}
	return c
}
