package store

import (
	"slices"
	"strings"
	"testing"
)

// TestKindOf: what a modality is of, and by which embedded model it is denoised.
func TestKindOf(t *testing.T) {
	for modality, want := range map[string]struct {
		kind  Kind
		model string
	}{
		"MR": {MR, "default"},
		"CR": {Radiograph, "radiograph"},
		"DX": {Radiograph, "radiograph"},
		"CT": {MR, "default"}, // which nothing admits
		"":   {MR, "default"},
		"cr": {MR, "default"}, // no modality of DICOM
	} {
		if k := KindOf(modality); k != want.kind || k.Model() != want.model {
			t.Errorf("modality %q is %q by model %q, want %q by %q", modality, k, k.Model(), want.kind, want.model)
		}
	}
}

// TestEmbedded: every embedded model is opened by its name and verified, says what it is for, and is
// another one than the others; its name cannot be taken by an installed one.
func TestEmbedded(t *testing.T) {
	hashes := map[string]bool{}
	for _, kind := range Kinds {
		m, err := Open(kind.Model())
		if err != nil {
			t.Fatal(err)
		}
		v, err := m.Verify()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range v.Networks {
			if !n.Golden {
				t.Errorf("%s: network %s has no golden vectors", kind.Model(), n.Network)
			}
		}
		if !m.Has(NetworkMeter) || hashes[m.Hash()] || m.Card.Licence == "" || len(m.Card.Scores) == 0 {
			t.Errorf("%s: networks %v, hash %.8s, licence %q, %d scores", kind.Model(), m.Card.Networks(), m.Hash(),
				m.Card.Licence, len(m.Card.Scores))
		}
		if k := m.Kind(); k != kind {
			t.Errorf("%s was trained on %q", kind.Model(), k)
		}
		hashes[m.Hash()] = true
		if err := CheckName(kind.Model()); err == nil || !strings.Contains(err.Error(), "built-in") {
			t.Errorf("CheckName(%q) = %v", kind.Model(), err)
		}
		if got := Find(kind.Model(), t.TempDir()); got != kind.Model() || !slices.Contains(Embedded, got) {
			t.Errorf("Find(%q) = %q", kind.Model(), got)
		}
	}
}
