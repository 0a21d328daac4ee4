package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/store"
	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
)

// sharp knows the full method too.
type sharp struct{ blur }

func (sharp) HasHigh() bool { return true }

func (s sharp) DenoiseHigh(ctx context.Context, f *derive.Frame, known evidence.Sums, strength float64,
	progress func(done, total int)) (*pipeline.Denoised, error) {
	progress(1, 2)
	twice := *f
	for range 2 {
		r, err := s.Denoise(ctx, &twice, known, strength)
		if err != nil {
			return nil, err
		}
		twice.Pixels = r.Pixels
	}
	progress(2, 2)
	return &pipeline.Denoised{Pixels: twice.Pixels, Sigma: 1}, nil
}

// TestFlagged: a series of the high AE title and one flagged over HTTP get three
// series in the archive; one that a person wants off stays alone.
func TestFlagged(t *testing.T) {
	archive := startPACS(t)
	d := startDaemon(t, testConfig(t, archive), WithDenoiser(sharp{}))
	base := "http://" + d.HTTPAddr().String()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	do := func(method, path, body string, code int, to any) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, bytes.NewBufferString(body))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != code {
			t.Fatalf("%s %s: %s, %v\n%.300s", method, path, resp.Status, err, data)
		}
		if to != nil {
			if err := json.Unmarshal(data, to); err != nil {
				t.Fatal(err)
			}
		}
		return resp
	}
	uid := func(name string) string { return phantom.NewIDs(t.Name() + name).SeriesInstanceUID }
	flagPath := func(name string) string { return "/api/series/" + uid(name) + "/flag" }
	const n = 3
	lists := map[string][]image{}
	for _, name := range []string{"hq", "flagged", "off"} {
		lists[name] = phantomSeries(t, name, n)
	}
	var got pipeline.Flagged
	do("POST", flagPath("off"), `{"quality":"off","why":"test object"}`, http.StatusAccepted, &got)
	if got.Known || got.Until.IsZero() {
		t.Errorf("%+v", got)
	}
	pushOK(t, d.Daemon, "DENOISE_HQ", lists["hq"])
	pushOK(t, d.Daemon, "DENOISE", lists["flagged"])
	pushOK(t, d.Daemon, "DENOISE_HQ", lists["off"])
	do("POST", flagPath("flagged"), `{"quality":"high","why":"lesion?","by":"Mx"}`, http.StatusOK, &got)
	if !got.Known || got.High != n || got.Images != n {
		t.Errorf("%+v", got)
	}
	eventually(t, "three series each, and one", func() error {
		if c := archive.count(); c != 3*n+3*n+n {
			return fmt.Errorf("%d objects", c)
		}
		return nil
	})
	for name, quality := range map[string]pipeline.Quality{"hq": "high", "flagged": "high", "off": "off"} {
		eventually(t, name, func() error {
			var s pipeline.SeriesStatus
			do("GET", "/api/series/"+uid(name), "", http.StatusOK, &s)
			if s.Quality != quality || (s.High != nil) != (quality == "high") || s.High != nil && (s.High.State != pipeline.HighDone || s.High.Done != n) || (s.Flag != nil) != (name != "hq") {
				return fmt.Errorf("%s: %+v %+v", name, s, s.High)
			}
			return nil
		})
	}
	var status web.Status
	do("GET", "/readyz", "", http.StatusOK, &status)
	if status.High.NotPossible != "" || status.High.Now != nil {
		t.Errorf("%+v", status.High)
	}
	for _, which := range []string{"original", "fast", "high"} {
		resp := do("GET", "/api/series/"+uid("flagged")+"/instances/2/pixels?which="+which, "", http.StatusOK, nil)
		if h := resp.Header; h.Get("Denoised-Columns") != "64" || h.Get("Denoised-Rows") != "64" || resp.ContentLength != 64*64*2 {
			t.Errorf("%s: %v", which, h)
		}
	}
	do("GET", "/compare?series="+uid("flagged"), "", http.StatusOK, nil)
}

// TestModelAsDenoiser: what a model can do is what the pipeline is told, and a
// model without the networks says so.
func TestModelAsDenoiser(t *testing.T) {
	m, err := models.Open("default")
	if err != nil {
		t.Fatal(err)
	}
	n, err := openDenoisers(cpuBackend(t), DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	h, ok := n.(pipeline.HighDenoiser)
	if !ok || h.HasHigh() != m.HasHigh() {
		t.Fatalf("high: %v, the model says %v", ok && h.HasHigh(), m.HasHigh())
	}
	v := phantom.New(phantom.Spec{Seed: 1, Width: 48, Height: 48, Slices: 1, Sigma: 0.05})
	f := &derive.Frame{Width: 48, Height: 48, Min: 0, Max: 4095, Pixels: make([]float32, 48*48)}
	for i := range f.Pixels {
		f.Pixels[i] = 1000 * v.Noisy[0][i]
	}
	steps := 0
	r, err := h.DenoiseHigh(t.Context(), f, nil, 1, func(done, total int) {
		if steps++; done != steps || total < done {
			t.Errorf("step %d of %d after %d calls", done, total, steps)
		}
	})
	if !h.HasHigh() {
		if !errors.Is(err, store.ErrNoNetwork) {
			t.Errorf("error %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Pixels) != len(f.Pixels) || steps == 0 {
		t.Errorf("%d pixels, %d steps", len(r.Pixels), steps)
	}
}
