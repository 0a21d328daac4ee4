package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a source that a test fills.
type fake struct {
	list []pipeline.SeriesStatus
	err  error
	flag pipeline.Flag // the last one
	read atomic.Int64  // lists

	mu   sync.Mutex
	subs map[chan pipeline.Event]bool
	came chan struct{} // one for each listener
}

func (f *fake) Series(context.Context) ([]pipeline.SeriesStatus, error) {
	f.read.Add(1)
	return f.list, f.err
}

func (f *fake) SeriesByUID(_ context.Context, uid string) (*pipeline.SeriesStatus, error) {
	for _, s := range f.list {
		if s.UID == uid {
			return &s, f.err
		}
	}
	return nil, errors.Join(f.err, fmt.Errorf("series %q: %w", uid, pipeline.ErrUnknownSeries))
}

func (f *fake) Retry(ctx context.Context, uid string) (int64, error) {
	s, err := f.SeriesByUID(ctx, uid)
	if err != nil {
		return 0, err
	}
	return s.Destinations[0].Refused, nil
}

func (f *fake) Flag(_ context.Context, uid string, w pipeline.Flag) (*pipeline.Flagged, error) {
	f.flag = w
	switch {
	case w.Quality != "high" && w.Quality != "fast" && w.Quality != "off":
		return nil, fmt.Errorf("%w: quality %q", pipeline.ErrFlag, w.Quality)
	case uid == "bad":
		return nil, pipeline.ErrUID
	case uid == "many":
		return nil, pipeline.ErrTooManyFlags
	case uid == "purged":
		return nil, pipeline.ErrPurged
	case uid == "broken":
		return nil, errors.New("secret detail")
	case uid == "full":
		return nil, fmt.Errorf("write flag: secret detail: %w", pipeline.ErrNoSpace)
	}
	return &pipeline.Flagged{Series: uid, Quality: w.Quality, Known: uid == "1.2.3"}, nil
}

func (f *fake) Picture(_ context.Context, uid string, n int, which string, frame int) (*pipeline.Picture, error) {
	switch {
	case uid == "broken":
		return nil, errors.New("secret detail")
	case uid == "vanished":
		return nil, fmt.Errorf("open spool file: %w", &fs.PathError{Op: "open", Path: "secret detail", Err: fs.ErrNotExist})
	case uid != "1.2.3" || n != 2:
		return nil, fmt.Errorf("image %d: %w", n, pipeline.ErrUnknownSeries)
	case which == "high", frame > 3:
		return nil, pipeline.ErrNotShown
	}
	p := &pipeline.Picture{Raster: derive.Raster{Width: 2, Height: 1, Frames: 3, Stored: 12, Signed: which == "original", Pixels: []byte{1, 2, 3, byte(frame)}}}
	if which == "fast" {
		p.Inverse, p.WindowCenter, p.WindowWidth, p.Remark = true, 300, 500, remark
	}
	return p, nil
}

// remark has what a header cannot hold.
const remark = "blended: 71 % of the change kept: σ\r\nX-Evil: 1"

func (f *fake) Events() (<-chan pipeline.Event, func()) {
	c := make(chan pipeline.Event, 4)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[c] = true
	f.came <- struct{}{}
	return c, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subs, c)
	}
}

func (f *fake) send(e pipeline.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.subs {
		c <- e
	}
}

func (f *fake) listeners() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.subs)
}

type rig struct {
	*fake
	status Status
	done   chan struct{}
	url    string
	client *http.Client
}

func start(t *testing.T, heartbeat time.Duration) *rig {
	return startWith(t, heartbeat, time.Nanosecond)
}

func startWith(t *testing.T, heartbeat, pause time.Duration) *rig {
	t.Helper()
	r := &rig{fake: &fake{subs: map[chan pipeline.Event]bool{}, came: make(chan struct{}, 100)},
		status: Status{Ready: true, Version: "1.2.3", Model: "m 1", Started: time.Now(), Problems: []string{}}, done: make(chan struct{})}
	s := httptest.NewServer(New(Options{Source: r.fake, Status: func() Status { return r.status }, Gatherer: prometheus.NewRegistry(), Done: r.done,
		Listen: "127.0.0.1:8042", heartbeat: heartbeat, pause: pause}))
	r.url, r.client = s.URL, s.Client()
	t.Cleanup(s.Close)
	return r
}

func (r *rig) get(t *testing.T, path string) (*http.Response, string) {
	t.Helper()
	resp, err := r.client.Get(r.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestHealth(t *testing.T) {
	r := start(t, 0)
	if resp, body := r.get(t, "/healthz"); resp.StatusCode != 200 || body != "ok\n" {
		t.Errorf("%s %q", resp.Status, body)
	}
	if resp, _ := r.get(t, "/readyz"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	r.status.Ready, r.status.Problems = false, []string{"spool: disk full"}
	resp, body := r.get(t, "/readyz")
	var got Status
	if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != 503 || len(got.Problems) != 1 || got.Problems[0] != "spool: disk full" {
		t.Errorf("%s %v %s", resp.Status, err, body)
	}
	if resp, _ := r.get(t, "/healthz"); resp.StatusCode != 200 {
		t.Errorf("not ready is not dead: %s", resp.Status)
	}
}

func TestSeries(t *testing.T) {
	r := start(t, 0)
	if _, body := r.get(t, "/api/series"); strings.TrimSpace(body) != "[]" {
		t.Errorf("none: %s", body)
	}
	r.list = []pipeline.SeriesStatus{{UID: "1.2.3", Received: 5}, {UID: "?A/B", Received: 1}}
	for path, want := range map[string]int{"/api/series/1.2.3": 200, "/api/series/%3FA%2FB": 200, "/api/series/1.2.4": 404, "/api/other": 404, "/other": 404} {
		if resp, body := r.get(t, path); resp.StatusCode != want {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
	r.err = errors.New("secret detail")
	for _, path := range []string{"/api/series", "/api/series/1.2.3", "/"} {
		if resp, body := r.get(t, path); resp.StatusCode != 500 || strings.Contains(body, "secret") {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
}

// TestFlag: what can be asked for and how, and not by a page elsewhere.
func TestFlag(t *testing.T) {
	r := start(t, 0)
	const good = `{"quality":"high","why":"lesion?","by":"Mx"}`
	for _, c := range []struct {
		uid, contentType, site, body string
		code                         int
	}{
		{"1.2.3", "application/json", "", good, 200},
		{"1.2.3", "application/json; charset=utf-8", "same-origin", `{"quality":"off"}`, 200},
		{"1.2.4", "application/json", "", good, 202},
		{"1.2.3", "application/json", "cross-site", good, 403},
		{"1.2.3", "text/plain", "", good, 415},
		{"1.2.3", "application/x-www-form-urlencoded", "", "quality=high", 415},
		{"1.2.3", "", "", good, 415},
		{"1.2.3", "application/json", "", ``, 400},
		{"1.2.3", "application/json", "", `{`, 400},
		{"1.2.3", "application/json", "", `[]`, 400},
		{"1.2.3", "application/json", "", `null`, 400},
		{"1.2.3", "application/json", "", `{"quality":7}`, 400},
		{"1.2.3", "application/json", "", `{"quality":"best"}`, 400},
		{"1.2.3", "application/json", "", `{"quality":"high","hurry":true}`, 400},
		{"1.2.3", "application/json", "", good + good, 400},
		{"1.2.3", "application/json", "", `{"quality":"high","why":"` + strings.Repeat("x", 1<<20) + `"}`, 413},
		{"bad", "application/json", "", good, 400},
		{"many", "application/json", "", good, 409},
		{"purged", "application/json", "", good, 410},
		{"broken", "application/json", "", good, 500},
		{"full", "application/json", "", good, 507},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/api/series/"+c.uid+"/flag", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.contentType != "" {
			req.Header.Set("Content-Type", c.contentType)
		}
		if c.site != "" {
			req.Header.Set("Sec-Fetch-Site", c.site)
		}
		r.flag = pipeline.Flag{}
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.code || len(body) > 1000 || strings.Contains(string(body), "secret") {
			t.Errorf("%s %q %.60s: %s %.200s %v", c.uid, c.contentType, c.body, resp.Status, body, err)
		}
		if c.code == 200 && c.body == good && r.flag != (pipeline.Flag{Quality: "high", Why: "lesion?", By: "Mx"}) {
			t.Errorf("%+v", r.flag)
		}
		if c.code == 415 && r.flag != (pipeline.Flag{}) {
			t.Errorf("%s reached the pipeline", c.contentType)
		}
	}
	if resp, _ := r.get(t, "/api/series/1.2.3/flag"); resp.StatusCode != 405 {
		t.Errorf("GET: %s", resp.Status)
	}
}

// TestHighOnPage: where the full method is, what may be asked for next, and who
// asked and why.
func TestHighOnPage(t *testing.T) {
	for state, button := range map[string]string{"": "Full method", pipeline.HighWaiting: "Call off", pipeline.HighQueued: "Call off", pipeline.HighRunning: "Call off", pipeline.HighFailed: "Try again",
		pipeline.HighIncomplete: "Try again", pipeline.HighNotPossible: "Try again", pipeline.HighCalledOff: "Full method", pipeline.HighDone: "", pipeline.HighNothing: ""} {
		r := start(t, 0)
		s := pipeline.SeriesStatus{UID: "1.2", Quality: "high", Flag: &pipeline.FlagStatus{Quality: "high", Why: `"><script>`, By: "Mx"}}
		if state != "" {
			s.High = &pipeline.HighStatus{State: state, Images: 9, Done: 4, Failed: 2}
			if state == pipeline.HighRunning {
				s.High.Now, s.High.RemainingSeconds = &pipeline.HighStep{Step: 3, Steps: 20, Frame: 1, Frames: 1, Paused: true}, 75
			}
		}
		r.list = []pipeline.SeriesStatus{s, {UID: "?MR1"}}
		_, page := r.get(t, "/")
		want := []string{"flagged", "high by Mx: &#34;&gt;&lt;script&gt;"}
		switch state {
		case pipeline.HighRunning:
			want = append(want, "running, 4 of 9, step 3 of 20, waits for the fast lane, about 1m15s left")
		case pipeline.HighFailed:
			want = append(want, "2 not made by the high pass", `class="bad"`)
		}
		for _, w := range want {
			if !strings.Contains(page, w) {
				t.Errorf("%s: page lacks %q", state, w)
			}
		}
		if n := strings.Count(page, "<button"); button == "" && n != 0 || button != "" && (n != 1 || !strings.Contains(page, ">"+button+"</button>")) {
			t.Errorf("%s: %d buttons, want %q", state, n, button)
		}
		if m := inline.FindString(page); m != "" {
			t.Errorf("inline: %q", m)
		}
	}
}

// TestPixels: stored values with what is needed to show them.
func TestPixels(t *testing.T) {
	r := start(t, 0)
	const path = "/api/series/1.2.3/instances/2/pixels"
	for query, want := range map[string]string{"": "true false ", "?which=original&frame=1": "true false ", "?which=fast": "false true 300 500"} {
		resp, body := r.get(t, path+query)
		h := resp.Header
		got := h.Get("Denoised-Signed") + " " + h.Get("Denoised-Inverse") + " " + h.Get("Denoised-Window")
		if resp.StatusCode != 200 || body != "\x01\x02\x03\x01" || got != want || h.Get("Denoised-Columns") != "2" || h.Get("Denoised-Rows") != "1" ||
			h.Get("Denoised-Frames") != "3" || h.Get("Denoised-Bits-Stored") != "12" || h.Get("Cache-Control") != "no-store" || h.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%q: %s, %q, %v", query, resp.Status, body, h)
		}
		said, err := url.PathUnescape(h.Get("Denoised-Remark"))
		if (query == "?which=fast") != (said == remark) || (said == "") != (query != "?which=fast") || err != nil || h.Get("X-Evil") != "" {
			t.Errorf("%q: remark %q, %v", query, said, err)
		}
	}
	if _, body := r.get(t, path+"?frame=3"); body != "\x01\x02\x03\x03" {
		t.Errorf("frame 3: %q", body)
	}
	for path, code := range map[string]int{path + "?which=high": 422, path + "?frame=4": 422, path + "?which=best": 400, path + "?frame=0": 400, path + "?frame=x": 400,
		"/api/series/1.2.3/instances/0/pixels": 400, "/api/series/1.2.3/instances/x/pixels": 400, "/api/series/1.2.3/instances/-1/pixels": 400,
		"/api/series/1.2.3/instances/3/pixels": 404, "/api/series/9/instances/2/pixels": 404, "/api/series/broken/instances/2/pixels": 500, "/api/series/vanished/instances/2/pixels": 404, "/api/series/1.2.3/instances/99999999999999999999/pixels": 400} {
		if resp, body := r.get(t, path); resp.StatusCode != code || strings.Contains(body, "secret") {
			t.Errorf("%s: %s %.100q", path, resp.Status, body)
		}
	}
}

// TestCompare: the page of one series, escaped, and nothing inline.
func TestCompare(t *testing.T) {
	r := start(t, 0)
	r.list = []pipeline.SeriesStatus{{UID: "1.2.3", Protocol: "<script>", High: &pipeline.HighStatus{Done: 1}, Instances: []pipeline.InstanceStatus{
		{Kind: "original", Frames: 7}, {Kind: "original", State: "conflict"}, {Kind: "derived"}}}}
	resp, page := r.get(t, "/compare?series=1.2.3")
	for _, want := range []string{`data-series="1.2.3"`, `data-images="1"`, `data-frames="7"`, "&lt;script&gt;", `value="high" selected`, "Research use only"} {
		if !strings.Contains(page, want) {
			t.Errorf("page lacks %q", want)
		}
	}
	if m := inline.FindString(page); m != "" || resp.StatusCode != 200 {
		t.Errorf("%s, inline: %q", resp.Status, m)
	}
	for path, code := range map[string]int{"/compare": 404, "/compare?series=9": 404, "/static/compare.js": 200} {
		if resp, _ := r.get(t, path); resp.StatusCode != code {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// TestRetry: refused images are put back, and not by a page elsewhere.
func TestRetry(t *testing.T) {
	r := start(t, 0)
	r.list = []pipeline.SeriesStatus{{UID: "1.2.3", Destinations: []pipeline.DestinationStatus{{Name: "pacs", Refused: 7}}}}
	for _, c := range []struct {
		method, uid, site string
		code              int
		body              string
	}{
		{"POST", "1.2.3", "", 200, `{"queued":7}`},
		{"POST", "1.2.3", "same-origin", 200, `{"queued":7}`},
		{"POST", "1.2.4", "", 404, `{"error":"no such series"}`},
		{"POST", "1.2.3", "cross-site", 403, ""},
		{"GET", "1.2.3", "", 405, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, r.url+"/api/series/"+c.uid+"/retry", nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.site != "" {
			req.Header.Set("Sec-Fetch-Site", c.site)
		}
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.code || c.body != "" && strings.TrimSpace(string(body)) != c.body {
			t.Errorf("%+v: %s %s %v", c, resp.Status, body, err)
		}
	}
}

// TestGuard: headers on every answer, foreign names and foreign writers refused.
func TestGuard(t *testing.T) {
	r := start(t, 0)
	for _, path := range []string{"/", "/static/live.js", "/api/series", "/healthz", "/none"} {
		resp, _ := r.get(t, path)
		csp := resp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", path, resp.Header)
		}
	}
	for host, want := range map[string]int{"localhost:8042": 200, "127.0.0.1:1": 200, "[::1]:8042": 200, "evil.example": 421, "evil.example:8042": 421, "10.0.0.1:8042": 421} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/api/series", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Host %s: %s", host, resp.Status)
		}
	}
	for header, want := range map[string]int{"cross-site": 403, "same-origin": 405} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/api/series", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Sec-Fetch-Site", header)
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("POST %s: %s", header, resp.Status)
		}
	}
}

var inline = regexp.MustCompile(`(?i)<script(?:[^>]*)>[^<]|<style|\son[a-z]+=|style=`)

// TestPage: what is shown, escaped, and nothing inline.
func TestPage(t *testing.T) {
	r := start(t, 0)
	_, empty := r.get(t, "/")
	r.status.Problems = []string{"destination pacs does not take images"}
	r.status.Destinations = []Destination{{Name: "pacs", Breaker: "open", Queue: Queue{Waiting: 7, OldestSeconds: 61}}}
	r.status.Errors = []LogLine{{Message: "<b>bold</b>", Detail: "a=b"}}
	r.list = []pipeline.SeriesStatus{
		{UID: "1.2", Protocol: `<script>alert(1)</script>`, Received: 12, Expected: 20, Missing: 8, State: "incomplete",
			Denoised: 10, Waiting: 2, Passed: 1, Reasons: map[state.Reason]int64{"phase": 1},
			Destinations: []pipeline.DestinationStatus{{Name: "pacs", Stored: 3, Queued: 9, Refused: 1, Warnings: 2}}},
	}
	_, full := r.get(t, "/")
	_, part := r.get(t, "/part/live")
	for _, page := range []string{empty, full, part} {
		if m := inline.FindString(page); m != "" {
			t.Errorf("inline: %q", m)
		}
	}
	for _, want := range []string{"Research use only", "None yet", "Images are received", "Version 1.2.3"} {
		if !strings.Contains(empty, want) {
			t.Errorf("empty page lacks %q", want)
		}
	}
	for _, want := range []string{"12/20", "not reachable", "1m1s", "&lt;script&gt;", "&lt;b&gt;", "phase: 1", "8 missing", "1 refused by pacs", "2 with a warning of pacs", "something needs a look"} {
		if !strings.Contains(full, want) || !strings.Contains(part, want) {
			t.Errorf("full page lacks %q", want)
		}
	}
	if strings.Contains(part, "<html") || !strings.HasPrefix(full, "<!doctype html>") {
		t.Error("part and page are not what they should be")
	}
	r.status.Ready = false
	if _, page := r.get(t, "/"); !strings.Contains(page, "IMAGES ARE NOT RECEIVED") {
		t.Error("the page does not say that images are not received")
	}
	for _, path := range []string{"/static/live.js", "/static/page.css", "/static/icon.svg"} {
		if resp, body := r.get(t, path); resp.StatusCode != 200 || body == "" {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// TestManyLookers: however many look at the page, what it shows is read once in a
// while, and what is shown is not older than the question.
func TestManyLookers(t *testing.T) {
	r := startWith(t, 0, 400*time.Millisecond)
	r.get(t, "/")
	r.list = []pipeline.SeriesStatus{{UID: "1.2.3", Protocol: "news"}}
	if _, page := r.get(t, "/part/live"); !strings.Contains(page, "news") {
		t.Error("what was before the question is shown")
	}
	before := r.read.Load()
	const n = 40
	var wg sync.WaitGroup
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			resp, err := r.client.Get(r.url + "/part/live")
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "news") {
				t.Errorf("%s, %v", resp.Status, err)
			}
		}()
	}
	wg.Wait()
	if got := r.read.Load() - before; got > n/4 {
		t.Errorf("read %d times for %d", got, n)
	}
}

// TestEvents: events come in their order, with heartbeats between, and a
// stream ends with the daemon.
func TestEvents(t *testing.T) {
	r := start(t, 20*time.Millisecond)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/api/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("content type %s", ct)
	}
	<-r.came
	lines := bufio.NewScanner(resp.Body)
	until := func(prefix string) string {
		t.Helper()
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return rest
			}
		}
		t.Fatalf("the stream ended before %q: %v", prefix, lines.Err())
		return ""
	}
	for i := range 10 {
		r.send(pipeline.Event{Type: "received", Instance: fmt.Sprint(i)})
		if got := until("event: "); got != "received" {
			t.Errorf("event %q", got)
		}
		var e pipeline.Event
		if err := json.Unmarshal([]byte(until("data: ")), &e); err != nil || e.Instance != fmt.Sprint(i) {
			t.Errorf("%+v, %v", e, err)
		}
	}
	until(": alive")
	close(r.done)
	for lines.Scan() {
		if lines.Text() != "" && !strings.HasPrefix(lines.Text(), ":") {
			t.Errorf("after the end: %q", lines.Text())
		}
	}
	if r.listeners() != 0 {
		t.Error("the stream's end did not reach the source")
	}
}

// TestManyStreams: one client more than there is room for is told so, and a
// place is free again when a client has gone.
func TestManyStreams(t *testing.T) {
	r := start(t, 0)
	open := func(ctx context.Context) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/api/events", nil)
		if err != nil {
			return nil, err
		}
		return r.client.Do(req)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range maxStreams {
		resp, err := open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		<-r.came
	}
	resp, err := open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one too many: %s", resp.Status)
	}
	cancel()
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no place became free")
		}
		time.Sleep(5 * time.Millisecond)
	}
}
