// Package web is the HTTP interface of the daemon: health, metrics, the state of
// series as JSON and as a stream of events, and the status page. It changes
// nothing but that series can be flagged and refused images put back into the
// queue.
//
// The two types a reader needs are [Options], which says where everything comes
// from, and [Status], which is how the daemon is.
package web

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/pipeline"
)

// Source is what the pages show. *pipeline.Pipeline is one.
type Source interface {
	Series(ctx context.Context) ([]pipeline.SeriesStatus, error)
	// SeriesByUID fails with pipeline.ErrUnknownSeries.
	SeriesByUID(ctx context.Context, uid string) (*pipeline.SeriesStatus, error)
	// Retry puts refused deliveries of a series back into the queue and tells how many.
	Retry(ctx context.Context, uid string) (int64, error)
	// Picture reads a frame of image n of a series, both counted from 1: which is
	// original, fast or high. It fails with pipeline.ErrUnknownSeries or
	// pipeline.ErrNotShown.
	Picture(ctx context.Context, uid string, n int, which string, frame int) (*pipeline.Picture, error)
	// Flag says in what quality a series is wanted. Errors are those of
	// pipeline.Pipeline.Flag.
	Flag(ctx context.Context, uid string, f pipeline.Flag) (*pipeline.Flagged, error)
	// Events may lose some when they are not read; it never blocks the sender.
	Events() (<-chan pipeline.Event, func())
}

// Options is what New needs.
type Options struct {
	Source   Source
	Status   func() Status
	Gatherer prometheus.Gatherer
	Done     <-chan struct{} // closed: streams of events end
	Logger   *zap.Logger     // default none
	Listen   string          // the listener's address: its host is a name that requests may use

	heartbeat time.Duration // of event streams; default 15 s. Tests only
	pause     time.Duration // between two readings of what the page shows; default 1 s. Tests only
}

// Status says how the daemon is. It holds no patient data.
type Status struct {
	Ready    bool     `json:"ready"`    // images can be received
	Problems []string `json:"problems"` // why not, and what else a person should look at
	Version  string   `json:"version"`
	Model    string   `json:"model"`
	// RadiographModel is the one for images of CR and DX; empty: Model.
	RadiographModel string        `json:"radiographModel,omitempty"`
	Started         time.Time     `json:"started"`
	DiskUsed        float64       `json:"diskUsed"`         // fraction
	DiskRefuse      float64       `json:"diskRefuse"`       // above it images are refused
	Worker          *Worker       `json:"worker,omitempty"` // nil: everything is computed in the daemon itself
	Denoise         Queue         `json:"denoise"`
	High            High          `json:"high"`
	Destinations    []Destination `json:"destinations"`
	Errors          []LogLine     `json:"errors"` // last warnings and errors, newest first
}

// Worker is the process that computes on a GPU. What it cannot do the daemon does on the CPU.
type Worker struct {
	State     string `json:"state"` // starting, ready, back-off or off
	Device    string `json:"device,omitempty"`
	Compute   string `json:"compute,omitempty"` // its compute capability
	Driver    string `json:"driver,omitempty"`
	Memory    int64  `json:"memoryBytes,omitempty"`
	Free      int64  `json:"freeBytes,omitempty"`
	Kernels   string `json:"kernels,omitempty"` // the compiled code in use
	Version   string `json:"version,omitempty"` // of the program
	PID       int    `json:"pid,omitempty"`
	Starts    int64  `json:"starts"`
	Done      int64  `json:"done"`  // runs of a network on the GPU
	OnCPU     int64  `json:"onCPU"` // and on the CPU instead
	LastError string `json:"lastError,omitempty"`
}

// String is a line about the worker.
func (w Worker) String() string {
	text := w.State
	if w.Device != "" {
		text = w.Device + " " + w.State
	}
	if w.State != "ready" {
		text += ", the CPU does its work"
	}
	if w.Free > 0 {
		text += fmt.Sprintf(", %.1f of %.1f GiB free", float64(w.Free)/(1<<30), float64(w.Memory)/(1<<30))
	}
	text += fmt.Sprintf(", %d runs of networks on it, %d on the CPU instead, started ", w.Done, w.OnCPU)
	if w.Starts == 1 {
		text += "once"
	} else {
		text += fmt.Sprintf("%d times", w.Starts)
	}
	if w.LastError != "" {
		text += "; last error: " + w.LastError
	}
	return text
}

// Queue is what waits for a stage.
type Queue struct {
	Waiting       int64   `json:"waiting"`
	OldestSeconds float64 `json:"oldestSeconds"`
}

// High is the lane of the full method.
type High struct {
	Queue
	NotPossible string             `json:"notPossible,omitempty"` // why the model cannot run it
	Now         *pipeline.HighStep `json:"now,omitempty"`         // the image in hand
}

// Destination is where images go.
type Destination struct {
	Name    string `json:"name"`
	AETitle string `json:"aeTitle"`
	Address string `json:"address"`
	// closed: being used, open: not asked for a while, half-open: being tried, loop: it leads back here; empty before
	// the first attempt
	Breaker string `json:"breaker"`
	Queue
}

// LogLine is a line of the log.
type LogLine struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Message string    `json:"message"`
	Detail  string    `json:"detail,omitempty"`
	Times   int       `json:"times"` // that it was said; Time and Detail are the last one's
}

//go:embed static
var static embed.FS

//go:embed page.html
var pageText string

//go:embed compare.html
var compareText string

// maxStreams is how many streams of events may be open at a time.
const maxStreams = 64

// maxPictures is how many images are read for answers at a time; others wait.
const maxPictures = 4

type server struct {
	Options
	page, compare *template.Template
	streams       chan struct{} // a place for each open stream
	pictures      chan struct{} // a place for each image being read

	looking sync.Mutex // one reads what the page shows, the others wait for it
	looked  time.Time  // when the reading of seen began
	seen    view
}

// New returns the handler of all paths.
func New(o Options) http.Handler {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.heartbeat == 0 {
		o.heartbeat = 15 * time.Second
	}
	if o.pause == 0 {
		o.pause = time.Second
	}
	s := &server{Options: o, streams: make(chan struct{}, maxStreams), pictures: make(chan struct{}, maxPictures)}
	s.page = template.Must(template.New("page").Funcs(template.FuncMap{
		"age":     func(t time.Time) string { return time.Since(t).Round(time.Second).String() },
		"clock":   func(t time.Time) string { return t.Local().Format("15:04:05") },
		"percent": func(x float64) string { return fmt.Sprintf("%.0f %%", 100*x) },
		"seconds": func(x float64) string { return (time.Duration(x) * time.Second).String() },
		"rows":    rows,
	}).Parse(pageText))
	s.compare = template.Must(template.New("compare").Parse(compareText))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /compare", s.comparison)
	mux.HandleFunc("GET /api/series/{uid}/instances/{n}/pixels", s.pixels)
	mux.HandleFunc("GET /{$}", s.index)
	mux.HandleFunc("GET /part/live", s.live)
	mux.Handle("GET /static/", http.FileServerFS(static))
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{ErrorLog: zap.NewStdLog(o.Logger), MaxRequestsInFlight: 8, Timeout: 20 * time.Second}))
	mux.HandleFunc("GET /api/series", s.series)
	mux.HandleFunc("GET /api/series/{uid}", s.oneSeries)
	mux.HandleFunc("POST /api/series/{uid}/retry", s.retry)
	mux.HandleFunc("POST /api/series/{uid}/flag", s.flag)
	mux.HandleFunc("GET /api/events", s.events)
	return http.NewCrossOriginProtection().Handler(s.guard(mux))
}

// policy lets the page use its own files and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// guard sets the headers that all answers have, and refuses requests under
// other names than this machine's: a page elsewhere whose name has been made to
// resolve to this machine must not read anything.
func (s *server) guard(next http.Handler) http.Handler {
	own, _, _ := net.SplitHostPort(s.Listen)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		host = strings.Trim(host, "[]")
		if ip := net.ParseIP(host); host != "localhost" && host != own && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "ask for this page as localhost or 127.0.0.1; a reverse proxy must not pass the Host header on", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *server) json(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.Logger.Debug("answer", zap.Error(err)) // the client has gone
	}
}

// problem is the answer to what cannot be done.
type problem struct {
	Error string `json:"error"`
}

func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, pipeline.ErrUnknownSeries) {
		s.json(w, http.StatusNotFound, problem{"no such series"})
		return
	}
	if r.Context().Err() == nil {
		s.Logger.Error("request failed", zap.String("path", r.Pattern), zap.Error(err))
	}
	if errors.Is(err, pipeline.ErrNoSpace) {
		s.json(w, http.StatusInsufficientStorage, problem{"the disk is full, nothing was recorded: make room, then ask again"})
		return
	}
	s.json(w, http.StatusInternalServerError, problem{"it could not be done: see the log"})
}

// healthz: the process answers.
func (s *server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}

// readyz: images can be received, else 503. The body is a Status either way.
func (s *server) readyz(w http.ResponseWriter, _ *http.Request) {
	st := s.Status()
	code := http.StatusOK
	if !st.Ready {
		code = http.StatusServiceUnavailable
	}
	s.json(w, code, st)
}

func (s *server) series(w http.ResponseWriter, r *http.Request) {
	list, err := s.Source.Series(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if list == nil {
		list = []pipeline.SeriesStatus{}
	}
	s.json(w, http.StatusOK, list)
}

func (s *server) oneSeries(w http.ResponseWriter, r *http.Request) {
	one, err := s.Source.SeriesByUID(r.Context(), r.PathValue("uid"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.json(w, http.StatusOK, one)
}

// Retried is the answer to a retry.
type Retried struct {
	Queued int64 `json:"queued"` // deliveries
}

func (s *server) retry(w http.ResponseWriter, r *http.Request) {
	n, err := s.Source.Retry(r.Context(), r.PathValue("uid"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.Logger.Info("refused images put back into the queue", zap.String("series", r.PathValue("uid")), zap.Int64("deliveries", n))
	s.json(w, http.StatusOK, Retried{n})
}

// Wish is the body of a flag: application/json, at most maxWish bytes.
type Wish struct {
	Quality pipeline.Quality `json:"quality"`
	Why     string           `json:"why"`
	By      string           `json:"by"` // who says so; nobody checks it
}

const maxWish = 4 << 10

// flag says in what quality a series is wanted. The answer is a
// pipeline.Flagged: 200 for a series that is here, 202 for one that is not yet.
// 400: not a wish, 409: no more flags for series that are not here, 410: the
// originals are gone, 413 and 415: body too long or of another type, 507: the disk
// is full.
func (s *server) flag(w http.ResponseWriter, r *http.Request) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		s.json(w, http.StatusUnsupportedMediaType, problem{"send application/json"})
		return
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxWish))
	d.DisallowUnknownFields()
	var wish Wish
	err := d.Decode(&wish)
	if err == nil && d.More() {
		err = errors.New("more than one JSON value")
	}
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		s.json(w, http.StatusRequestEntityTooLarge, problem{fmt.Sprintf("more than %d bytes", maxWish)})
		return
	case err != nil:
		s.json(w, http.StatusBadRequest, problem{`not like {"quality": "high", "why": "..."}: ` + err.Error()})
		return
	}
	if wish.By == "" {
		wish.By = "HTTP"
	}
	got, err := s.Source.Flag(r.Context(), r.PathValue("uid"), pipeline.Flag{Quality: wish.Quality, Why: wish.Why, By: wish.By})
	switch {
	case err == nil && !got.Known:
		s.json(w, http.StatusAccepted, got)
	case err == nil:
		s.json(w, http.StatusOK, got)
	case errors.Is(err, pipeline.ErrFlag), errors.Is(err, pipeline.ErrUID):
		s.json(w, http.StatusBadRequest, problem{err.Error()})
	case errors.Is(err, pipeline.ErrTooManyFlags):
		s.json(w, http.StatusConflict, problem{err.Error()})
	case errors.Is(err, pipeline.ErrPurged):
		s.json(w, http.StatusGone, problem{err.Error()})
	default:
		s.fail(w, r, err)
	}
}

// pixels answers with the stored values of one frame, 16 bit little endian, row
// by row. n counts the images of the series from 1, in the order of their instance
// numbers; which is original (if not given), fast or high; frame counts from 1. The
// headers say how many columns, rows and frames there are, how many bits are
// stored, whether the values are signed, whether small values are shown bright,
// the window of the object, if it has one, and, percent-encoded, why it is not the
// plain result of its method, if it is not. 404: there is no such image, or it is
// not held any more; 422: its pixels cannot be read here.
func (s *server) pixels(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.PathValue("n"))
	frame := 1
	if f := r.FormValue("frame"); err == nil && f != "" {
		frame, err = strconv.Atoi(f)
	}
	which := r.FormValue("which")
	switch which {
	case "":
		which = "original"
	case "original", "fast", "high":
	default:
		err = errors.New("which")
	}
	if err != nil || n < 1 || frame < 1 {
		s.json(w, http.StatusBadRequest, problem{"need .../instances/N/pixels?which=original, fast or high, and frame from 1"})
		return
	}
	select {
	case s.pictures <- struct{}{}:
		defer func() { <-s.pictures }()
	case <-r.Context().Done():
		return
	}
	p, err := s.Source.Picture(r.Context(), r.PathValue("uid"), n, which, frame)
	switch {
	case err == nil:
	case errors.Is(err, pipeline.ErrUnknownSeries):
		s.json(w, http.StatusNotFound, problem{"no such image"})
		return
	case errors.Is(err, fs.ErrNotExist): // removed since it was looked up, or lost
		s.Logger.Warn("file of an image is not there", zap.Error(err))
		s.json(w, http.StatusNotFound, problem{"the image is not held any more"})
		return
	case errors.Is(err, pipeline.ErrNotShown):
		s.json(w, http.StatusUnprocessableEntity, problem{err.Error()})
		return
	default:
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.Itoa(len(p.Pixels)))
	for name, v := range map[string]int{"Columns": p.Width, "Rows": p.Height, "Frames": p.Frames, "Bits-Stored": p.Stored} {
		h.Set("Denoised-"+name, strconv.Itoa(v))
	}
	h.Set("Denoised-Signed", strconv.FormatBool(p.Signed))
	h.Set("Denoised-Inverse", strconv.FormatBool(p.Inverse))
	if p.WindowWidth > 0 {
		h.Set("Denoised-Window", fmt.Sprintf("%g %g", p.WindowCenter, p.WindowWidth))
	}
	if p.Remark != "" {
		h.Set("Denoised-Remark", url.PathEscape(p.Remark))
	}
	if _, err := w.Write(p.Pixels); err != nil {
		s.Logger.Debug("answer", zap.Error(err)) // the client has gone
	}
}

// comparison is the page that shows a series before and after.
func (s *server) comparison(w http.ResponseWriter, r *http.Request) {
	one, err := s.Source.SeriesByUID(r.Context(), r.FormValue("series"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	v := struct {
		pipeline.SeriesStatus
		Images int
		Frames int64
	}{SeriesStatus: *one, Frames: 1}
	for _, in := range one.Instances {
		if in.Kind == "original" && in.State != "conflict" {
			v.Images++
			v.Frames = max(v.Frames, in.Frames)
		}
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := s.compare.Execute(w, v); err != nil {
		s.Logger.Debug("page", zap.Error(err)) // the client has gone
	}
}

// events streams what happens (text/event-stream, one JSON object an event, the
// type of which is the event's name). A client that does not read for ten
// seconds is dropped; nothing else waits for it.
func (s *server) events(w http.ResponseWriter, r *http.Request) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		w.Header().Set("Retry-After", "10")
		s.json(w, http.StatusServiceUnavailable, problem{fmt.Sprintf("%d clients are listening already", maxStreams)})
		return
	}
	rc := http.NewResponseController(w)
	send := func(format string, args ...any) bool {
		if err := rc.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return false
		}
		if _, err := fmt.Fprintf(w, format, args...); err != nil {
			return false
		}
		return rc.Flush() == nil
	}
	events, stop := s.Source.Events()
	defer stop()
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	if !send("retry: 2000\n: connected\n\n") {
		return
	}
	tick := time.NewTicker(s.heartbeat)
	defer tick.Stop()
	for id := 1; ; id++ {
		select {
		case <-r.Context().Done():
			return
		case <-s.Done:
			return
		case <-tick.C:
			if !send(": alive\n\n") {
				return
			}
		case e, ok := <-events:
			if !ok {
				return
			}
			data, err := json.Marshal(e)
			if err != nil {
				s.Logger.Error("event", zap.Error(err))
				return
			}
			if !send("id: %d\nevent: %s\ndata: %s\n\n", id, e.Type, data) {
				return
			}
		}
	}
}

// view is what the page shows.
type view struct {
	Status
	Series []pipeline.SeriesStatus
}

// look reads what the page shows, at most once in a pause, however many ask. Who asks
// in between waits for the next reading, so that nobody is shown what was before the
// event that made him ask; who does not ask for news gets the last one.
func (s *server) look(ctx context.Context, news bool) (view, error) {
	after := time.Now()
	if !news {
		after = after.Add(-s.pause)
	}
	s.looking.Lock()
	defer s.looking.Unlock()
	if s.looked.After(after) {
		return s.seen, nil
	}
	t := time.NewTimer(time.Until(s.looked.Add(s.pause)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return view{}, ctx.Err()
	}
	at := time.Now()
	list, err := s.Source.Series(ctx)
	if err != nil {
		return view{}, err
	}
	s.looked, s.seen = at, view{s.Status(), list}
	return s.seen, nil
}

func (s *server) index(w http.ResponseWriter, r *http.Request) { s.render(w, r, "page", false) }

// live is the part of the page that changes.
func (s *server) live(w http.ResponseWriter, r *http.Request) { s.render(w, r, "live", true) }

func (s *server) render(w http.ResponseWriter, r *http.Request, name string, news bool) {
	v, err := s.look(r.Context(), news)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := s.page.ExecuteTemplate(w, name, v); err != nil {
		s.Logger.Debug("page", zap.Error(err)) // the client has gone
	}
}

// row is a line of the series table.
type row struct {
	pipeline.SeriesStatus
	Alarm   bool   // a person must look
	Trouble string // what went otherwise than wanted
	// HighText is where the high pass is; Ask the quality that the row's button asks
	// for, empty for none, and AskText its label.
	HighText, Ask, AskText string
}

// wish is what a person may want for a series next.
func wish(s pipeline.SeriesStatus) (quality, label string) {
	if strings.HasPrefix(s.UID, "?") {
		return "", "" // no series
	}
	if s.High == nil {
		return "high", "Full method"
	}
	switch s.High.State {
	case pipeline.HighWaiting, pipeline.HighQueued, pipeline.HighRunning:
		return "fast", "Call off"
	case pipeline.HighFailed, pipeline.HighIncomplete, pipeline.HighNotPossible:
		return "high", "Try again"
	case pipeline.HighCalledOff:
		return "high", "Full method"
	}
	return "", ""
}

// highText says in a few words where the high pass of a series is.
func highText(h *pipeline.HighStatus) string {
	if h == nil {
		return ""
	}
	text := strings.ReplaceAll(h.State, "-", " ")
	if h.Images > 0 && h.State != pipeline.HighNotPossible {
		text = fmt.Sprintf("%s, %d of %d", text, h.Done, h.Images)
	}
	if r := h.Remarks(); r != "" {
		text += ", " + r
	}
	if n := h.Now; n != nil {
		if n.Steps > 0 {
			text += fmt.Sprintf(", step %d of %d", n.Step, n.Steps)
		}
		if n.Frames > 1 && n.Frame > 0 {
			text += fmt.Sprintf(" of frame %d of %d", n.Frame, n.Frames)
		}
		if n.Paused {
			text += ", waits for the fast lane"
		}
	}
	if s := h.RemainingSeconds; s >= 1 && (h.State == pipeline.HighRunning || h.State == pipeline.HighQueued) {
		text += ", about " + (time.Duration(s) * time.Second).String() + " left"
	}
	return text
}

func rows(list []pipeline.SeriesStatus) []row {
	out := make([]row, 0, len(list))
	for _, s := range list {
		r := row{SeriesStatus: s}
		var t []string
		count := func(n int64, what string, alarm bool) {
			if n > 0 {
				t = append(t, fmt.Sprintf("%d %s", n, what))
				r.Alarm = r.Alarm || alarm
			}
		}
		count(s.Failed, "failed", true)
		count(s.Lost, "lost", true)
		count(s.Conflict, "in conflict", true)
		for _, d := range s.Destinations {
			count(d.Refused, "refused by "+d.Name, true)
			count(d.Damaged, "damaged for "+d.Name, true)
			count(d.Warnings, "with a warning of "+d.Name, false)
		}
		if s.State == "incomplete" {
			count(s.Missing, "missing", true)
		}
		if h := s.High; h != nil {
			count(h.Copies, "that the high pass failed for", false)
			if h.State == pipeline.HighFailed || h.State == pipeline.HighIncomplete {
				count(h.Failed, "not made by the high pass", true)
			}
		}
		r.HighText = highText(s.High)
		r.Ask, r.AskText = wish(s)
		r.Trouble = strings.Join(t, ", ")
		out = append(out, r)
	}
	return out
}
