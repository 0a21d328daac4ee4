package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/dicomnet"
)

func configText(cfg *Config, ae, more string) string {
	return fmt.Sprintf("state_dir: %s\ndicom:\n  listen: %q\n  ae_titles: {%s: fast}\nhttp: {listen: \"127.0.0.1:0\"}\nretention: {disk_warn: 0.99, disk_refuse: 0.999}\n%sdestinations: [{name: pacs, ae_title: PACS, address: \"127.0.0.1:1\"}]\n",
		cfg.StateDir, "127.0.0.1:0", ae, more)
}

// answersTo tells whether the daemon takes associations for a called AE title.
func answersTo(t *testing.T, d *running, ae string) error {
	t.Helper()
	_, _, err := echo(t.Context(), &dicomnet.Dialer{CalledAETitle: ae}, d.DICOMAddr().String())
	return err
}

func refuses(t *testing.T, d *running, ae string) error {
	t.Helper()
	var rejected *dicomnet.RejectError
	if err := answersTo(t, d, ae); !errors.As(err, &rejected) {
		return fmt.Errorf("%s: %v, want a refusal", ae, err)
	}
	return nil
}

func startFromFile(t *testing.T, path string) *running {
	t.Helper()
	cfg, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	return startDaemon(t, cfg)
}

// TestReload: a renamed-over file is noticed; a mistake changes nothing and is
// told; keys that need a restart are named and keep their value.
func TestReload(t *testing.T) {
	base := testConfig(t)
	path := filepath.Join(t.TempDir(), "denoised.yaml")
	replace(t, path, configText(base, "ONE", ""))
	d := startFromFile(t, path)
	if err := errors.Join(answersTo(t, d, "ONE"), refuses(t, d, "TWO")); err != nil {
		t.Fatal(err)
	}

	replace(t, path, configText(base, "TWO", "log: {level: error}\n"))
	eventually(t, "the new AE title is in force", func() error { return errors.Join(answersTo(t, d, "TWO"), refuses(t, d, "ONE")) })

	replace(t, path, configText(base, "THREE", "series: {quiet: soon}\n"))
	eventually(t, "the mistake is told", func() error {
		for _, p := range d.Status().Problems {
			if strings.Contains(p, path+":7: series.quiet") {
				return nil
			}
		}
		return fmt.Errorf("%q", d.Status().Problems)
	})
	if err := errors.Join(answersTo(t, d, "TWO"), refuses(t, d, "THREE")); err != nil {
		t.Errorf("after the mistake: %v", err)
	}
	if !d.Status().Ready {
		t.Error("a mistake in the file made the daemon unready")
	}

	replace(t, path, configText(base, "FOUR", "denoise: {workers: 1}\n"))
	eventually(t, "the key that needs a restart is named", func() error {
		s := d.Status()
		if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "denoise.workers") {
			return fmt.Errorf("%q", s.Problems)
		}
		return answersTo(t, d, "FOUR")
	})
	if w := d.cfg.Load().Denoise.Workers; w != 0 {
		t.Errorf("workers in force: %d", w)
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the missing file is told", func() error {
		if s := d.Status(); !strings.Contains(strings.Join(s.Problems, " "), "no such file") {
			return fmt.Errorf("%q", s.Problems)
		}
		return nil
	})
	if err := answersTo(t, d, "FOUR"); err != nil {
		t.Error(err)
	}
	// Another content, put in place without a rename: SIGHUP or notice, both do.
	if err := os.WriteFile(path, []byte(configText(base, "FIVE", "")), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file that came back is in force", func() error {
		if s := d.Status(); len(s.Problems) > 0 {
			return fmt.Errorf("%q", s.Problems)
		}
		return answersTo(t, d, "FIVE")
	})
}

// TestReloadLink: the file is a link through a folder that is a link, as
// configuration managers lay it out, and the folder's link is turned.
func TestReloadLink(t *testing.T) {
	base := testConfig(t)
	dir := t.TempDir()
	link := func(target, name string) {
		t.Helper()
		tmp := filepath.Join(dir, name+".new")
		if err := os.Symlink(target, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for version, ae := range map[string]string{"v1": "ONE", "v2": "TWO"} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		replace(t, filepath.Join(dir, version, "denoised.yaml"), configText(base, ae, ""))
	}
	link("v1", "..data")
	link(filepath.Join("..data", "denoised.yaml"), "denoised.yaml")
	d := startFromFile(t, filepath.Join(dir, "denoised.yaml"))
	if err := answersTo(t, d, "ONE"); err != nil {
		t.Fatal(err)
	}
	link("v2", "..data")
	eventually(t, "the other folder is in force", func() error { return answersTo(t, d, "TWO") })
	// And a change where the link points to now.
	replace(t, filepath.Join(dir, "v2", "denoised.yaml"), configText(base, "THREE", ""))
	eventually(t, "a change behind the link is in force", func() error { return answersTo(t, d, "THREE") })
}

// TestSettingsComplete: every key of the file is one that reload knows.
func TestSettingsComplete(t *testing.T) {
	known := map[string]bool{}
	for _, s := range settings {
		known[s.key] = true
		if s.restart != (s.keep != nil) {
			t.Errorf("%s: restart %v, keep %v", s.key, s.restart, s.keep != nil)
		}
	}
	for _, top := range knownKeys("") {
		if known[top] {
			continue
		}
		below := knownKeys(top)
		if len(below) == 0 {
			t.Errorf("%s is not a setting", top)
		}
		for _, key := range below {
			if known[top+"."+key] {
				continue
			}
			for _, leaf := range knownKeys(top + "." + key) {
				if k := top + "." + key + "." + leaf; !known[k] {
					t.Errorf("%s is not a setting", k)
				}
			}
			if len(knownKeys(top+"."+key)) == 0 {
				t.Errorf("%s.%s is not a setting", top, key)
			}
		}
	}
}

// TestReloadTLS: taking the TLS port out of the file needs a restart; until then
// the port goes on with its certificate and still asks for the scanner's.
func TestReloadTLS(t *testing.T) {
	dir := t.TempDir()
	ca, cert, key, pool := certificates(t, dir)
	base := testConfig(t)
	path := filepath.Join(dir, "denoised.yaml")
	text := func(ae, tls string) string {
		return strings.Replace(configText(base, ae, ""), "  ae_titles:", tls+"  ae_titles:", 1)
	}
	replace(t, path, text("ONE", fmt.Sprintf("  tls: {listen: \"127.0.0.1:0\", cert: %q, key: %q, client_ca: %q}\n", cert, key, ca)))
	d := startFromFile(t, path)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(ae string, c *tls.Config) error {
		_, _, err := echo(t.Context(), &dicomnet.Dialer{CalledAETitle: ae, TLSConfig: c}, d.DICOMTLSAddr().String())
		return err
	}
	good := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
	if err := ask("ONE", good); err != nil {
		t.Fatal(err)
	}
	replace(t, path, text("TWO", ""))
	eventually(t, "the rest of the file is in force and the restart asked for", func() error {
		if s := d.Status(); !strings.Contains(strings.Join(s.Problems, " "), "dicom.tls.listen") {
			return fmt.Errorf("%q", s.Problems)
		}
		return answersTo(t, d, "TWO")
	})
	if err := ask("TWO", good); err != nil {
		t.Errorf("the TLS port no longer works: %v", err)
	}
	if ask("TWO", &tls.Config{RootCAs: pool}) == nil {
		t.Error("a scanner without a certificate is let in")
	}
}
