package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// metrics are the pipeline's own. No label ever holds anything from an image.
type metrics struct {
	reg        prometheus.Registerer
	registered []prometheus.Collector

	received, receivedBytes, duplicates, conflicts prometheus.Counter
	integrity, lost, rebuilds                      prometheus.Counter
	receiveErrors, slices, highSlices, forwarded   *prometheus.CounterVec
	receiveSeconds, commitSeconds, sigma           prometheus.Histogram
	sliceSeconds, highSeconds                      *prometheus.HistogramVec
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "denoised_" + name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "denoised_" + name, Help: help}, labels)
	}
	fast := prometheus.ExponentialBuckets(0.0005, 2, 16)
	return &metrics{
		received:       counter("received_instances_total", "Images stored durably."),
		receivedBytes:  counter("received_bytes_total", "Bytes of the data sets stored durably."),
		duplicates:     counter("received_duplicates_total", "Images that came again with the same bytes."),
		conflicts:      counter("received_conflicts_total", "Images that came again with other bytes: kept, not forwarded."),
		integrity:      counter("integrity_errors_total", "Spool files found damaged. Any is an alarm."),
		lost:           counter("lost_files_total", "Journal rows found without their file at start."),
		rebuilds:       counter("journal_rebuilds_total", "Times that the journal was rebuilt from the spool."),
		receiveErrors:  counters("receive_errors_total", "Images that were not taken.", "reason"),
		slices:         counters("slices_total", "Images through the denoise stage.", "result", "reason"),
		highSlices:     counters("high_slices_total", "Images through the high lane.", "result", "reason"),
		forwarded:      counters("forward_attempts_total", "Attempts to send an image.", "dest", "status"),
		receiveSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "denoised_receive_seconds", Help: "From the first byte of a data set until it is durable.", Buckets: fast}),
		commitSeconds:  prometheus.NewHistogram(prometheus.HistogramOpts{Name: "denoised_journal_commit_seconds", Help: "Journal transactions.", Buckets: fast}),
		sigma:          prometheus.NewHistogram(prometheus.HistogramOpts{Name: "denoised_noise_sigma", Help: "Median noise of an image in stored units.", Buckets: prometheus.ExponentialBuckets(0.5, 2, 14)}),
		sliceSeconds:   prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "denoised_slice_seconds", Help: "One image through the denoise stage.", Buckets: fast}, []string{"model"}),
		highSeconds:    prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "denoised_high_slice_seconds", Help: "One image through the high lane, waits for the fast lane included.", Buckets: prometheus.ExponentialBuckets(0.1, 2, 14)}, []string{"model"}),
	}
}

// register makes the metrics visible. The gauges read p, which must be open.
func (m *metrics) register(p *Pipeline, reg prometheus.Registerer) error {
	if reg == nil {
		return nil
	}
	m.reg = reg
	for _, c := range []prometheus.Collector{m.received, m.receivedBytes, m.duplicates, m.conflicts, m.integrity, m.lost, m.rebuilds, m.receiveErrors, m.slices, m.highSlices, m.forwarded,
		m.receiveSeconds, m.commitSeconds, m.sigma, m.sliceSeconds, m.highSeconds, &gauges{p: p}} {
		if err := reg.Register(c); err != nil {
			m.unregister()
			return fmt.Errorf("register metrics: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return nil
}

func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.reg.Unregister(c)
	}
	m.registered = nil
}

func (m *metrics) committed(d time.Duration, _ int) { m.commitSeconds.Observe(d.Seconds()) }

// slice counts an image through the denoise stage.
func (m *metrics) slice(stage state.Stage, reason state.Reason) {
	m.slices.WithLabelValues(string(stage), string(reason)).Inc()
}

func (m *metrics) forward(dest, status string) { m.forwarded.WithLabelValues(dest, status).Inc() }

func (m *metrics) receiveFailed(err error) {
	var mismatch *MismatchError
	reason := "error"
	switch {
	case errors.Is(err, ErrNoSpace):
		reason = "no-space"
	case errors.Is(err, ErrTooLarge):
		reason = "too-large"
	case errors.Is(err, ErrEmpty):
		reason = "empty"
	case errors.Is(err, ErrUID):
		reason = "uid"
	case errors.As(err, &mismatch):
		reason = "mismatch"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		reason = "cancelled"
	}
	m.receiveErrors.WithLabelValues(reason).Inc()
}

// gauges reads the present state when it is asked for.
type gauges struct {
	p *Pipeline

	mu    sync.Mutex
	bytes int64     // as of
	asked time.Time // since adding up reads the whole journal
}

// bytesEvery is how old the sum of bytes may be.
const bytesEvery = 5 * time.Minute

// spoolBytes is the sum of the data sets in the spool, a few minutes old.
func (g *gauges) spoolBytes(ctx context.Context) (int64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked.IsZero() || time.Since(g.asked) > bytesEvery {
		n, err := g.p.jrnl.Bytes(ctx)
		if err != nil {
			return 0, err
		}
		g.bytes, g.asked = n, time.Now()
	}
	return g.bytes, nil
}

var (
	descDepth = prometheus.NewDesc("denoised_queue_depth", "Images waiting.", []string{"lane"}, nil)
	descAge   = prometheus.NewDesc("denoised_oldest_job_age_seconds", "Age of the oldest waiting image.",
		[]string{"lane"}, nil)
	descSeries = prometheus.NewDesc("denoised_series_state", "Series by state.", []string{"state"}, nil)
	descFree   = prometheus.NewDesc("denoised_spool_free_ratio", "Free part of the disk that holds the spool.", nil,
		nil)
	descStuck = prometheus.NewDesc("denoised_stuck_images",
		"Images that only a person can move on: refused or damaged, by destination; in conflict.", []string{"why",
			"dest"}, nil)
	descBreaker = prometheus.NewDesc("denoised_forward_breaker_open", "1 while a destination is not being asked.", []string{"dest"}, nil)
	descBytes   = prometheus.NewDesc("denoised_spool_bytes", "Bytes of data sets in the spool.", nil, nil)
)

// Describe implements prometheus.Collector.
func (g *gauges) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descDepth, descAge, descSeries, descFree, descBreaker, descBytes, descStuck} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(c chan<- prometheus.Metric) {
	p := g.p
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	put := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	cfg := p.cfg.Load()
	if depths, err := p.jrnl.Depths(ctx); err == nil {
		lanes := map[string]journal.Depth{"fast": depths.Fast, "high": depths.High}
		for _, d := range cfg.Destinations {
			lanes["forward:"+d.Name] = journal.Depth{}
		}
		for name, d := range depths.Forward {
			lanes["forward:"+name] = d
		}
		for lane, d := range lanes {
			put(descDepth, float64(d.Count), lane)
			age := 0.0
			if d.Count > 0 {
				age = p.clock.Now().Sub(d.Oldest).Seconds()
			}
			put(descAge, age, lane)
		}
	}
	if states, err := p.jrnl.SeriesStates(ctx); err == nil {
		for _, s := range []state.Series{state.SeriesReceiving, state.SeriesComplete, state.SeriesIncomplete} {
			put(descSeries, float64(states[s]), string(s))
		}
	}
	if stuck, err := p.jrnl.Stuck(ctx); err == nil {
		put(descStuck, float64(stuck.Conflict), "conflict", "")
		for _, d := range cfg.Destinations {
			if stuck.Refused[d.Name] == 0 {
				put(descStuck, 0, "refused", d.Name)
			}
		}
		for name, n := range stuck.Refused {
			put(descStuck, float64(n), "refused", name)
		}
	}
	if n, err := g.spoolBytes(ctx); err == nil {
		put(descBytes, float64(n))
	}
	if used, err := p.store.Used(); err == nil {
		put(descFree, 1-used)
	}
	for _, d := range cfg.Destinations {
		open := 0.0
		if s := p.forward.state(d.Name); s == breakerOpen || s == breakerLoop {
			open = 1
		}
		put(descBreaker, open, d.Name)
	}
}
