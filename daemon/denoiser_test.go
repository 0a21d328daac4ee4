package daemon

import (
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/models"
)

// TestInstalledModel: denoise.model finds the built-in model, an installed one by
// name, and a folder.
func TestInstalledModel(t *testing.T) {
	cfg := DefaultConfig()
	cfg.StateDir = t.TempDir()
	dir := filepath.Join(cfg.StateDir, "models")
	if _, err := models.Install("default", dir, "knee-3t", false); err != nil {
		t.Fatal(err)
	}
	for model, want := range map[string]string{
		"default":                     "default",
		"knee-3t":                     filepath.Join(dir, "knee-3t"),
		filepath.Join(dir, "knee-3t"): filepath.Join(dir, "knee-3t"),
		"not-installed":               "not-installed",
	} {
		cfg.Denoise.Model = model
		if got := cfg.modelPath(); got != want {
			t.Errorf("model %q is %q, want %q", model, got, want)
		}
		if _, err := openDenoiser(cfg.modelPath()); (err != nil) != (model == "not-installed") {
			t.Errorf("model %q: %v", model, err)
		}
	}
}
