package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/kernels/remote"
	"github.com/diffdenoise/denoised/pipeline"
)

// stopTimeout bounds the whole stop: below TimeoutStopSec of the unit.
const stopTimeout = 60 * time.Second

// Daemon is the assembled process. New makes it, Run runs it once; the other
// methods are safe for concurrent use.
type Daemon struct {
	version  string
	log      *zap.Logger
	recent   *recentLog
	level    zap.AtomicLevel
	denoiser pipeline.Denoiser
	program  WorkerProgram
	notify   func(state string) // to systemd
	settle   time.Duration      // for hot folders
	reg      *prometheus.Registry
	metrics  *metrics
	started  time.Time

	cfg     atomic.Pointer[Config]
	tls     atomic.Pointer[tlsFiles]
	restart atomic.Pointer[[]string] // keys whose new value waits for a restart
	failed  atomic.Pointer[string]   // why the last reload failed

	associations atomic.Uint64
	self         string // our version name in associations; set by start
	loops        *loops
	health       health
	worker       *worker                 // nil: everything is computed in this process
	noProgram    string                  // why there is none although it is wanted
	tune         func(o *remote.Options) // tests
	reloads      chan struct{}           // asks for a reload; holds one
	ran          atomic.Bool
	ready        chan struct{} // closed when everything serves

	// Set by start, before anything that uses them runs.
	pipe      *pipeline.Pipeline
	dicom     *watchedListener
	dicomTLS  *watchedListener // nil without TLS
	http      net.Listener
	hot       *hotFolders
	fatal     chan error // a part that must run has ended
	stopping  atomic.Bool
	endEvents chan struct{} // closed to end the streams of events
}

// Option changes a Daemon before it starts.
type Option func(*Daemon)

// WithLogger logs to l, whose level follows the configuration's log.level
// through level. Without it nothing is logged.
func WithLogger(l *zap.Logger, level zap.AtomicLevel) Option {
	return func(d *Daemon) { d.log, d.level = l, level }
}

// WithVersion sets what the program calls itself.
func WithVersion(v string) Option { return func(d *Daemon) { d.version = v } }

// WithDenoiser replaces the configured model, and with it the worker.
func WithDenoiser(n pipeline.Denoiser) Option { return func(d *Daemon) { d.denoiser = n } }

// New prepares a daemon: it opens the model and reads the TLS files, and leaves
// no trace if it fails. Run does the rest.
func New(cfg *Config, opts ...Option) (*Daemon, error) {
	d := &Daemon{
		version: "unknown", log: zap.NewNop(), level: zap.NewAtomicLevel(), recent: newRecentLog(), started: time.Now(),
		notify: func(state string) { _, _ = systemd.SdNotify(false, state) }, // without systemd there is nobody to tell
		settle: 3 * time.Second, reg: prometheus.NewRegistry(),
		reloads: make(chan struct{}, 1), ready: make(chan struct{}), fatal: make(chan error, 8), endEvents: make(chan struct{}),
	}
	d.loops = newLoops(d.whoAnswers)
	for _, o := range opts {
		o(d)
	}
	d.log = d.log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return zapcore.NewTee(c, d.recent) }))
	if err := d.setLevel(cfg.Log.Level); err != nil {
		return nil, err
	}
	d.cfg.Store(cfg)
	files, err := loadTLS(cfg.DICOM.TLS)
	if err != nil {
		return nil, err
	}
	d.tls.Store(files)
	if d.denoiser == nil {
		backend, err := d.openBackend(cfg)
		if err != nil {
			return nil, fmt.Errorf("denoise.backend: %w", err)
		}
		if d.denoiser, err = openDenoisers(backend, cfg); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *Daemon) setLevel(level string) error {
	l, err := zapcore.ParseLevel(level)
	if err != nil {
		return fmt.Errorf("log level: %w", err)
	}
	d.level.SetLevel(l)
	return nil
}

// Ready is closed when all ports serve. It stays open if the start fails.
func (d *Daemon) Ready() <-chan struct{} { return d.ready }

// DICOMAddr is where scanners send to; valid once Ready is closed.
func (d *Daemon) DICOMAddr() net.Addr { return d.dicom.Addr() }

// DICOMTLSAddr is the TLS port, nil if there is none; valid once Ready is closed.
func (d *Daemon) DICOMTLSAddr() net.Addr {
	if d.dicomTLS == nil {
		return nil
	}
	return d.dicomTLS.Addr()
}

// HTTPAddr is the status page; valid once Ready is closed.
func (d *Daemon) HTTPAddr() net.Addr { return d.http.Addr() }

// Reload asks for the configuration file to be read again. It does not wait.
func (d *Daemon) Reload() {
	select {
	case d.reloads <- struct{}{}:
	default: // one is asked for already
	}
}

// stopper is something that was started: stop ends it and waits for the end,
// at most as long as ctx.
type stopper struct {
	name string
	stop func(ctx context.Context) error
}

// Run starts everything, serves until ctx ends or a part that must run fails,
// and stops everything in reverse order: no new associations, objects in flight
// are stored and answered, slices in hand are finished. A start that fails
// stops what it had started. Run may be called once.
func (d *Daemon) Run(ctx context.Context) (err error) {
	if !d.ran.CompareAndSwap(false, true) {
		return errors.New("the daemon has run already")
	}
	var running []stopper
	defer func() {
		d.stopping.Store(true)
		d.notify(systemd.SdNotifyStopping)
		stopCtx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		for _, s := range slices.Backward(running) {
			began := time.Now()
			if e := s.stop(stopCtx); e != nil {
				err = errors.Join(err, fmt.Errorf("stop %s: %w", s.name, e))
			}
			d.log.Debug("stopped", zap.String("part", s.name), zap.Duration("took", time.Since(began)))
		}
		if err == nil {
			d.log.Info("stopped; whatever was accepted is on disk")
		}
	}()
	started := func(name string, stop func(context.Context) error) {
		running = append(running, stopper{name, stop})
	}
	if err := d.start(ctx, started); err != nil {
		return err
	}
	close(d.ready)
	d.notify(systemd.SdNotifyReady + "\nSTATUS=" + d.statusLine())
	d.log.Info("ready", zap.Stringer("dicom", d.DICOMAddr()), zap.Stringer("http", d.HTTPAddr()))
	for {
		select {
		case <-ctx.Done():
			d.log.Info("stopping: finishing what is in hand")
			return nil
		case err := <-d.fatal:
			d.log.Error("stopping because a part failed", zap.Error(err))
			return err
		case <-d.reloads:
			d.reload()
		}
	}
}

// start brings the parts up in order. The ports come first: they are what fails
// when a second daemon runs, and scanners may knock while the journal recovers.
func (d *Daemon) start(ctx context.Context, started func(string, func(context.Context) error)) error {
	cfg := d.cfg.Load()
	for _, w := range cfg.Warnings() {
		d.log.Warn(w)
	}
	listen := func(key, address string) (net.Listener, error) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w (is another denoised running?)", key, err)
		}
		started(key, func(context.Context) error {
			if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		})
		return l, nil
	}
	l, err := listen("dicom.listen", cfg.DICOM.Listen)
	if err != nil {
		return err
	}
	d.dicom = watched(l)
	if cfg.DICOM.TLS.Listen != "" {
		if l, err = listen("dicom.tls.listen", cfg.DICOM.TLS.Listen); err != nil {
			return err
		}
		d.dicomTLS = watched(l)
	}
	if d.http, err = listen("http.listen", cfg.HTTP.Listen); err != nil {
		return err
	}

	d.metrics = newMetrics(d)
	d.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), d.metrics)
	if d.noProgram != "" {
		d.log.Warn(d.noProgram)
	}
	if d.worker != nil {
		// It is not waited for: until it is ready the CPU does its work.
		d.worker.Start()
		started("worker", d.worker.Stop)
	}
	o := cfg.options()
	o.Version, o.Denoiser, o.Registerer = d.version, d.denoiser, d.reg
	o.Logger = d.log.Named("pipeline")
	o.Sender = &sender{calling: cfg.ownAETitle(), tls: func() *tls.Config { return d.tls.Load().client },
		self: func() string { return d.self }, loops: d.loops, log: d.log.Named("forward")}
	d.notify("STATUS=starting: bringing spool and journal into agreement")
	if d.pipe, err = pipeline.Open(ctx, o); err != nil {
		return fmt.Errorf("open state_dir %s: %w", cfg.StateDir, err)
	}
	started("journal", func(context.Context) error { return d.pipe.Close() })
	if d.self, err = identity(cfg.StateDir); err != nil {
		d.log.Warn("a new identity is used until the next start", zap.Error(err))
	}
	d.health.set(d.pipe.Check(), time.Now())

	d.startHTTP(started)
	started("pipeline", d.background("pipeline", func(ctx context.Context) error { return d.pipe.Run(ctx) }))
	d.startDICOM(cfg, started)

	d.hot = newHotFolders(d.pipe.ImportFile, func() bool { return d.pipe.Check().OK }, d.log.Named("watch"), d.settle)
	d.hot.configure(cfg.Watch)
	started("watch", d.background("watch", d.hot.run))
	if cfg.Path != "" {
		w := &configWatch{path: cfg.Path, last: cfg.sum, changed: d.Reload, log: d.log.Named("config")}
		started("configuration watch", d.background("configuration watch", w.run))
	}
	started("health", d.background("health", d.watchHealth))
	return nil
}

// background runs a part until it is stopped. A part that ends before that
// stops the daemon.
func (d *Daemon) background(name string, run func(context.Context) error) (stop func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := run(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("ended by itself")
			}
			d.fail(fmt.Errorf("%s: %w", name, err))
			err = nil // reported already
		}
		done <- err
	}()
	return func(limit context.Context) error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-limit.Done():
			return fmt.Errorf("still busy: %w", limit.Err())
		}
	}
}

// fail stops the daemon.
func (d *Daemon) fail(err error) {
	select {
	case d.fatal <- err:
	default:
	}
}

// startDICOM serves the DICOM ports.
func (d *Daemon) startDICOM(cfg *Config, started func(string, func(context.Context) error)) {
	serve := func(name string, l *watchedListener, s *dicomnet.Server) {
		s.Handler, s.AllowAddr, s.VersionName = d, d.allowAddr, d.self
		s.Limits = dicomnet.Limits{Associations: cfg.DICOM.Limits.Associations, PerHost: cfg.DICOM.Limits.PerHost, ObjectBytes: cfg.DICOM.Limits.Object}
		s.Timeouts = dicomnet.Timeouts{Request: cfg.DICOM.Timeouts.Request, Idle: cfg.DICOM.Timeouts.Idle, Store: cfg.DICOM.Timeouts.Store}
		s.Logger = d.log.Named("dicom")
		d.metrics.watch(s)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := s.Serve(l); !errors.Is(err, dicomnet.ErrServerClosed) {
				d.fail(fmt.Errorf("%s: %w", name, err))
			}
		}()
		started(name, func(ctx context.Context) error {
			err := s.Shutdown(ctx)
			<-done
			return err
		})
	}
	if d.dicomTLS != nil {
		serve("DICOM port with TLS", d.dicomTLS, &dicomnet.Server{TLSConfig: d.serverTLS()})
	}
	serve("DICOM port", d.dicom, &dicomnet.Server{})
}

// startHTTP serves the status page. It is stopped after the DICOM ports and the
// pipeline, so that a drain can be watched.
func (d *Daemon) startHTTP(started func(string, func(context.Context) error)) {
	srv := &http.Server{
		Handler: web.New(web.Options{
			Source: d.pipe, Status: d.Status, Gatherer: d.reg, Done: d.endEvents, Logger: d.log.Named("web"), Listen: d.http.Addr().String(),
		}),
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 60 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: zap.NewStdLog(d.log.Named("http")),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(d.http); !errors.Is(err, http.ErrServerClosed) {
			d.fail(fmt.Errorf("status page: %w", err))
		}
	}()
	var once sync.Once
	started("status page", func(ctx context.Context) error {
		once.Do(func() { close(d.endEvents) })
		err := srv.Shutdown(ctx)
		if err != nil {
			err = errors.Join(err, srv.Close())
		}
		<-done
		return err
	})
}
