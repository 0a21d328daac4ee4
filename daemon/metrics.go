package daemon

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/kernels/remote"
)

// metrics are those of the process and its ports; the pipeline has its own.
type metrics struct {
	d *Daemon

	mu      sync.Mutex
	servers []*dicomnet.Server
	good    float64   // 1: the last reload was taken over
	at      time.Time // of the last configuration in force
}

func newMetrics(d *Daemon) *metrics { return &metrics{d: d, good: 1, at: time.Now()} }

// watch adds a server to what is counted.
func (m *metrics) watch(s *dicomnet.Server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers = append(m.servers, s)
}

func (m *metrics) reloaded(good bool, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.good = 0
	if good {
		m.good, m.at = 1, at
	}
}

var (
	descInfo         = prometheus.NewDesc("denoised_build_info", "1, with the version and the model.", []string{"version", "model"}, nil)
	descReady        = prometheus.NewDesc("denoised_ready", "1 while images can be received.", nil, nil)
	descReload       = prometheus.NewDesc("denoised_config_last_reload_successful", "0 while a changed configuration is not in force because of a mistake.", nil, nil)
	descReloadAt     = prometheus.NewDesc("denoised_config_last_reload_success_timestamp_seconds", "When the configuration in force was read.", nil, nil)
	descActive       = prometheus.NewDesc("denoised_associations_active", "Associations that are open.", nil, nil)
	descAssociations = prometheus.NewDesc("denoised_associations_total", "Associations by how they ended or were refused.", []string{"result"}, nil)
	descConnections  = prometheus.NewDesc("denoised_connections_total", "Transport connections, with those that never became an association.", []string{"result"}, nil)
	descStores       = prometheus.NewDesc("denoised_stores_total", "C-STORE requests answered.", []string{"result"}, nil)
	descEchoes       = prometheus.NewDesc("denoised_echoes_total", "C-ECHO requests answered.", nil, nil)
	descWorker       = prometheus.NewDesc("denoised_worker_up", "1 while a process that computes on a GPU is ready. Absent where there is none to start.", nil, nil)
	descStarts       = prometheus.NewDesc("denoised_worker_starts_total", "Starts of that process.", nil, nil)
	descRequests     = prometheus.NewDesc("denoised_worker_requests_total", "Runs of networks that it was asked for.", []string{"result"}, nil)
	descFallbacks    = prometheus.NewDesc("denoised_worker_fallbacks_total", "Runs of networks that the CPU did because that process could not.", nil, nil)
	descSeconds      = prometheus.NewDesc("denoised_worker_request_seconds_total", "Time that was waited for its answers.", nil, nil)
	descFree         = prometheus.NewDesc("denoised_worker_memory_free_bytes", "Free memory of the GPU.", nil, nil)
	descPanics       = prometheus.NewDesc("denoised_dicom_panics_total", "Bugs that ended an association. Any is an alarm.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descInfo, descReady, descReload, descReloadAt, descActive, descAssociations, descConnections, descStores, descEchoes, descPanics,
		descWorker, descStarts, descRequests, descFallbacks, descSeconds, descFree} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(c chan<- prometheus.Metric) {
	status := m.d.Status()
	m.mu.Lock()
	defer m.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v int64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	ready := 0.0
	if status.Ready {
		ready = 1
	}
	gauge(descInfo, 1, status.Version, status.Model)
	gauge(descReady, ready)
	gauge(descReload, m.good)
	gauge(descReloadAt, float64(m.at.Unix()))
	var sum dicomnet.Stats
	for _, s := range m.servers {
		t := s.Stats()
		sum.Connections += t.Connections
		sum.Dropped += t.Dropped
		sum.Probes += t.Probes
		sum.Accepted += t.Accepted
		sum.Rejected += t.Rejected
		sum.Released += t.Released
		sum.Aborted += t.Aborted
		sum.Active += t.Active
		sum.Stored += t.Stored
		sum.Failed += t.Failed
		sum.Echoes += t.Echoes
		sum.Panics += t.Panics
	}
	gauge(descActive, float64(sum.Active))
	count(descAssociations, sum.Accepted, "accepted")
	count(descAssociations, sum.Rejected, "rejected")
	count(descAssociations, sum.Released, "released")
	count(descAssociations, sum.Aborted, "aborted")
	count(descConnections, sum.Connections, "accepted")
	count(descConnections, sum.Dropped, "dropped")
	count(descConnections, sum.Probes, "no-association")
	count(descStores, sum.Stored, "stored")
	count(descStores, sum.Failed, "failed")
	count(descEchoes, sum.Echoes)
	count(descPanics, sum.Panics)
	if m.d.worker == nil {
		return
	}
	w, up := m.d.worker.Status(), 0.0
	if w.State == remote.Ready {
		up = 1
	}
	gauge(descWorker, up)
	if up == 1 {
		gauge(descFree, float64(w.Free))
	}
	count(descStarts, w.Starts)
	count(descRequests, w.Served, "done")
	count(descRequests, w.Lost, "lost")
	count(descRequests, w.Late, "late")
	count(descRequests, w.NoMemory, "no-memory")
	count(descRequests, w.Refused, "failed")
	count(descFallbacks, w.FellBack)
	c <- prometheus.MustNewConstMetric(descSeconds, prometheus.CounterValue, w.Seconds)
}
