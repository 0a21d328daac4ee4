package interop

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

// destination is one archive as the configuration names it.
type destination struct {
	name, aet string
	port      int
	send      string // "original", "derived" or both, as in the file
}

// system is one running denoised with a state folder of its own.
type system struct {
	t      testing.TB
	proc   *process
	port   int    // DICOM
	url    string // HTTP
	config string
	state  string
}

// startDenoised runs the program as IT would, `denoised serve --config FILE`,
// and waits until it says that it is ready. AE title DENOISE is denoised, OFF
// only forwarded.
func startDenoised(t testing.TB, destinations ...destination) *system {
	t.Helper()
	dir := t.TempDir()
	s := &system{t: t, port: freePort(t), config: filepath.Join(dir, "denoised.yaml"), state: filepath.Join(dir, "state")}
	web := freePort(t)
	s.url = "http://" + loopback(web)
	var text strings.Builder
	fmt.Fprintf(&text, `state_dir: %s
dicom:
  listen: %q
  ae_titles: {DENOISE: fast, "OFF": "off"}
series: {quiet: 1s, quiet_open: 5s, max: 1m}
http: {listen: %q, users_file: ""}
retention: {after_forward: 72h, disk_warn: 0.98, disk_refuse: 0.99}
destinations:
`, s.state, loopback(s.port), loopback(web))
	for _, d := range destinations {
		fmt.Fprintf(&text, "  - {name: %s, ae_title: %s, address: %q, send: [%s]}\n", d.name, d.aet, loopback(d.port), d.send)
	}
	if err := os.WriteFile(s.config, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	return s
}

func (s *system) start() {
	s.t.Helper()
	s.proc = start(s.t, nil, denoisedProgram(s.t), "serve", "--config", s.config)
	eventually(s.t, 30*time.Second, "denoised is ready", func() error {
		s.proc.mustRun()
		_, err := s.get("/readyz")
		return err
	})
}

func (s *system) get(path string) ([]byte, error) {
	resp, err := http.Get(s.url + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return data, err
}

var queueDepth = regexp.MustCompile(`(?m)^denoised_queue_depth\{lane="([^"]*)"\} (\S+)$`)

// settled waits until nothing waits to be denoised or forwarded, at most limit.
func (s *system) settled(limit time.Duration) {
	s.t.Helper()
	eventually(s.t, limit, "all queues are empty", func() error {
		s.proc.mustRun()
		text, err := s.get("/metrics")
		if err != nil {
			return err
		}
		lanes := queueDepth.FindAllStringSubmatch(string(text), -1)
		if len(lanes) == 0 {
			return errors.New("no denoised_queue_depth among the metrics")
		}
		for _, lane := range lanes {
			if lane[2] != "0" {
				return fmt.Errorf("lane %q: %s waiting", lane[1], lane[2])
			}
		}
		return nil
	})
}

// instances returns the status of every original by SOP Instance UID, as the
// HTTP interface gives it (of the 200 newest series).
func (s *system) instances() map[string]pipeline.InstanceStatus {
	s.t.Helper()
	var list []pipeline.SeriesStatus
	s.getJSON("/api/series", &list)
	out := make(map[string]pipeline.InstanceStatus)
	for _, series := range list {
		maps.Copy(out, s.instancesOf(series.UID))
	}
	return out
}

// instancesOf is instances for one series.
func (s *system) instancesOf(series string) map[string]pipeline.InstanceStatus {
	s.t.Helper()
	var full pipeline.SeriesStatus
	s.getJSON("/api/series/"+url.PathEscape(series), &full)
	out := make(map[string]pipeline.InstanceStatus)
	for _, in := range full.Instances {
		if in.Kind == string(spool.Original) {
			out[in.SOPInstanceUID] = in
		}
	}
	return out
}

func (s *system) getJSON(path string, v any) {
	s.t.Helper()
	data, err := s.get(path)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}
