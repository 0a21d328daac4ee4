package daemon

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/pipeline"
)

var update = flag.Bool("update", false, "write the expected errors of testdata/badconfig anew")

// TestBadConfig: each file of testdata/badconfig has one mistake (or two, of
// which the first counts); errors.txt has what a person is told.
func TestBadConfig(t *testing.T) {
	dir := filepath.Join("testdata", "badconfig")
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	expected := map[string]string{}
	list := filepath.Join(dir, "errors.txt")
	if !*update {
		f, err := os.Open(list)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			name, _, _ := strings.Cut(s.Text(), ":")
			expected[name] = s.Text()
		}
		if len(expected) != len(files) {
			t.Errorf("%d files, %d expected errors", len(files), len(expected))
		}
	}
	var out strings.Builder
	for _, file := range files {
		name := filepath.Base(file)
		_, err := LoadConfig(file)
		var ce *ConfigError
		if !errors.As(err, &ce) {
			t.Errorf("%s: error is %v, want a *ConfigError", name, err)
			continue
		}
		got := strings.TrimPrefix(err.Error(), dir+string(filepath.Separator))
		fmt.Fprintln(&out, got)
		if *update {
			continue
		}
		if got != expected[name] {
			t.Errorf("got  %s\nwant %s", got, expected[name])
		}
		if ce.File != file || ce.Line < 1 || strings.Contains(got, "\n") {
			t.Errorf("%s: file %q, line %d", name, ce.File, ce.Line)
		}
	}
	if *update {
		if err := os.WriteFile(list, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func load(t *testing.T, text string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "denoised.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return LoadConfig(path)
}

// TestFullConfig sets every key to something else than its default.
func TestFullConfig(t *testing.T) {
	c, err := load(t, `
state_dir: /data/denoised/
dicom:
  listen: "10.1.2.3:104"
  ae_titles: {DN: fast, DN_HQ: high, PASS: off}
  peers:
    - {ae_title: MR1, hosts: [10.1.2.0/24, 10.1.3.17, "fd00::1"]}
    - ae_title: MR 2
  tls: {listen: ":2762", cert: /c.pem, key: /k.pem, client_ca: /ca.pem}
  limits: {associations: 5, per_host: 2, object: 512MiB}
  timeouts: {request: 3s, idle: 1m30s, store: 20m}
  admit: [SWI, "Magnitude_IR"]
series: {quiet: 500ms, quiet_open: 5s, max: 1h}
rules:
  - {name: hq, when: 'ProtocolName endsWith "_HQ"', quality: high}
  - when: |
      ImageType contains "ADC"
    quality: off
destinations:
  - {name: pacs, ae_title: PACS, address: "pacs.hospital.org:104", send: [derived], tls: true}
  - {name: two, ae_title: TWO, address: "[fd00::2]:11112"}
denoise: {backend: cpu, workers: 3, model: /models/a, strength: 0.5}
http: {listen: "[::1]:9000"}
watch:
  - {dir: /srv/in/, quality: high}
  - dir: /srv/two
retention: {after_forward: 24h, disk_warn: 0.5, disk_refuse: 1}
log: {level: debug}
`)
	if err != nil {
		t.Fatal(err)
	}
	if c.StateDir != "/data/denoised" || c.DICOM.Listen != "10.1.2.3:104" || c.HTTP.Listen != "[::1]:9000" || c.Log.Level != "debug" {
		t.Errorf("%+v", c)
	}
	if want := map[string]pipeline.Quality{"DN": "fast", "DN_HQ": "high", "PASS": "off"}; !reflect.DeepEqual(c.DICOM.AETitles, want) {
		t.Errorf("AE titles %v", c.DICOM.AETitles)
	}
	if len(c.DICOM.Peers) != 2 || fmt.Sprint(c.DICOM.Peers[0].Hosts) != "[10.1.2.0/24 10.1.3.17/32 fd00::1/128]" || c.DICOM.Peers[1].AETitle != "MR 2" {
		t.Errorf("peers %v", c.DICOM.Peers)
	}
	if c.DICOM.Limits != (Limits{5, 2, 512 << 20}) || c.DICOM.Timeouts != (Timeouts{3 * time.Second, 90 * time.Second, 20 * time.Minute}) {
		t.Errorf("limits %v, timeouts %v", c.DICOM.Limits, c.DICOM.Timeouts)
	}
	if want := []string{"SWI", "Magnitude_IR"}; !slices.Equal(c.DICOM.Admit, want) ||
		!slices.Equal(c.options().Admit, want) {
		t.Errorf("admit %q, options %q", c.DICOM.Admit, c.options().Admit)
	}
	if c.Series != (SeriesConfig{500 * time.Millisecond, 5 * time.Second, time.Hour}) {
		t.Errorf("series %v", c.Series)
	}
	wantRules := []pipeline.Rule{{Name: "hq", When: `ProtocolName endsWith "_HQ"`, Quality: "high"}, {Name: "#2", When: `ImageType contains "ADC"`, Quality: "off"}}
	if !reflect.DeepEqual(c.Rules, wantRules) {
		t.Errorf("rules %+v", c.Rules)
	}
	wantDest := []Destination{{Name: "pacs", AETitle: "PACS", Address: "pacs.hospital.org:104", Send: []string{"derived"}, TLS: true},
		{Name: "two", AETitle: "TWO", Address: "[fd00::2]:11112", Send: []string{"original", "derived"}}}
	if !reflect.DeepEqual(c.Destinations, wantDest) {
		t.Errorf("destinations %+v", c.Destinations)
	}
	if c.Denoise != (DenoiseConfig{"cpu", 3, "/models/a", "radiograph", 0.5, true}) ||
		c.Retention != (RetentionConfig{24 * time.Hour, 0.5, 1}) {
		t.Errorf("denoise %v, retention %v", c.Denoise, c.Retention)
	}
	if want := []WatchFolder{{"/srv/in", "high"}, {"/srv/two", "fast"}}; !reflect.DeepEqual(c.Watch, want) {
		t.Errorf("watch %v", c.Watch)
	}
	if w := c.Warnings(); len(w) != 0 {
		t.Errorf("warnings %v", w)
	}
	if own := c.ownAETitle(); own != "DN" {
		t.Errorf("own AE title %s", own)
	}
}

// TestEmptyConfig: nothing, only comments and keys without values mean the defaults.
func TestEmptyConfig(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "state_dir:\ndicom:\n  listen:\nrules:\ndestinations: []\n"} {
		c, err := load(t, text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		c.Path, c.sum = "", ""
		if want := DefaultConfig(); !reflect.DeepEqual(c, want) {
			t.Errorf("%q:\ngot  %+v\nwant %+v", text, c, want)
		}
		if w := c.Warnings(); len(w) != 2 {
			t.Errorf("warnings %q", w)
		}
	}
}

func TestUnreadableConfig(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, []byte(strings.Repeat("# \n", maxConfig)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "none.yaml"), dir, big} {
		var ce *ConfigError
		if _, err := LoadConfig(path); !errors.As(err, &ce) || ce.File != path {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// FuzzConfig: no text ends the process, and every refusal is a *ConfigError.
func FuzzConfig(f *testing.F) {
	files, _ := filepath.Glob(filepath.Join("testdata", "badconfig", "*.yaml"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 1<<12 {
			t.Skip("longer texts only take longer")
		}
		var ce *ConfigError
		if c, err := parseConfig("f", text); err != nil && !errors.As(err, &ce) {
			t.Errorf("%T %v", err, err)
		} else if err == nil && (len(c.DICOM.AETitles) == 0 || !isLoopback(c.HTTP.Listen)) {
			t.Errorf("accepted: %+v", c)
		}
	})
}

// TestKeysAreDocumented: docs/configuration.md has a row for every key.
func TestKeysAreDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	var visit func(path string)
	visit = func(path string) {
		below := knownKeys(path)
		if path != "" && len(below) == 0 {
			last := path[strings.LastIndexByte(path, '.')+1:]
			found := false
			for line := range strings.Lines(string(text)) {
				cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " |")
				found = found || strings.HasPrefix(line, "| `") && (strings.Contains(strings.ReplaceAll(cell, "[]", ""), path+"`") || strings.Contains(cell, "."+last+"`") && strings.Contains(cell, path[:strings.LastIndexByte(path, '.')+1]))
			}
			if !found && !strings.HasPrefix(path, "rules.") && !strings.HasPrefix(path, "dicom.peers.") {
				t.Errorf("%s has no row", path)
			}
		}
		for _, key := range below {
			if path == "" {
				visit(key)
			} else {
				visit(path + "." + key)
			}
		}
	}
	visit("")
}
