package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/kernels/remote"
)

// WorkerProgram is how a process is started that computes on a GPU. This process never touches one.
type WorkerProgram struct {
	Path    string // empty: there is none
	Args    []string
	Version string // that it must have; empty: any
}

// WithWorker lets the daemon compute on a GPU, by a process of that program.
func WithWorker(p WorkerProgram) Option { return func(d *Daemon) { d.program = p } }

// worker is the process that computes on a GPU, as far as the daemon is concerned.
type worker struct {
	*remote.Worker
	wanted bool // by the configuration, so that none is a problem
}

// options are those of a worker process.
func (p WorkerProgram) options(env ...string) remote.Options {
	own := slices.DeleteFunc(os.Environ(), func(v string) bool {
		// What systemd tells is for this process.
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}, name)
	})
	return remote.Options{Program: p.Path, Args: p.Args, Env: append(own, env...), Version: p.Version}
}

// openBackend returns what networks are to run on.
func (d *Daemon) openBackend(cfg *Config) (kernels.Backend, error) {
	local, err := cpu.SelectInference()
	if err != nil {
		return nil, err
	}
	wanted := cfg.Denoise.Backend == "cuda"
	switch {
	case cfg.Denoise.Backend == "cpu":
		return local, nil
	case d.program.Path == "":
		if wanted {
			d.noProgram = noProgram
		}
		return local, nil
	}
	var env []string
	if os.Getenv(cachePath) == "" {
		// The driver keeps there what it has compiled; a service's home is often not its to write to.
		env = append(env, cachePath+"="+filepath.Join(cfg.StateDir, "cuda-cache"))
	}
	o := d.program.options(env...)
	d.worker = &worker{wanted: wanted}
	o.Notify = d.worker.told(d.log.Named("worker"))
	if d.tune != nil {
		d.tune(&o)
	}
	d.worker.Worker = remote.NewWorker(o)
	return remote.NewBackend(d.worker.Worker, local), nil
}

// cachePath is the variable that tells the driver where to keep what it has compiled.
const cachePath = "CUDA_CACHE_PATH"

// noProgram is the problem of who wants a GPU and has no program for it.
const noProgram = "denoise.backend is cuda, but this program was built without it and there is no denoised-cuda beside it: images are denoised on the CPU"

// told returns what writes a worker's events to the log.
func (w *worker) told(log *zap.Logger) func(remote.Event) {
	ready := false // once; a GPU that was there is missed
	return func(e remote.Event) {
		missed := zapcore.InfoLevel
		if w.wanted || ready {
			missed = zapcore.WarnLevel
		}
		switch e.Kind {
		case remote.EventReady:
			ready = true
			log.Info("images are denoised on a GPU", zap.String("device", e.Text))
		case remote.EventFailed:
			log.Log(missed, "no GPU, images are denoised on the CPU; it is tried again", zap.String("why", e.Text))
		case remote.EventLost:
			log.Warn("the worker process is lost; what it had in hand waits a moment for the next one, or is done on the CPU", zap.String("why", e.Text))
		case remote.EventOff:
			log.Log(missed, "no GPU, images are denoised on the CPU until the next start of the service", zap.String("why", e.Text))
		case remote.EventLine:
			log.Info("the worker process says", zap.String("line", e.Text))
		}
	}
}

// workerStatus adds the worker to what a person sees.
func (d *Daemon) workerStatus(s *web.Status) {
	if d.noProgram != "" {
		s.Problems = append(s.Problems, d.noProgram)
	}
	if d.worker == nil {
		return
	}
	w := d.worker.Status()
	s.Worker = &web.Worker{
		State: string(w.State), Free: w.Free, Starts: w.Starts, Done: w.Served, OnCPU: w.FellBack, PID: w.PID, LastError: w.LastError,
		Device: w.Info.Device, Driver: w.Info.Driver, Compute: w.Info.Compute, Memory: w.Info.Memory, Kernels: w.Info.Kernels, Version: w.Info.Version,
	}
	if w.LastError != "" && w.State != remote.Ready && (d.worker.wanted || w.Info.Backend != "") && !d.stopping.Load() {
		s.Problems = append(s.Problems, "no GPU, images are denoised on the CPU: "+w.LastError)
	}
}

// checkWorker tries the GPU.
func checkWorker(ctx context.Context, cfg *Config, p WorkerProgram) Finding {
	const what = "GPU"
	missing := Note
	if cfg.Denoise.Backend == "cuda" {
		missing = Bad
	}
	switch {
	case cfg.Denoise.Backend == "cpu":
		return Finding{what, Good, "not used, as denoise.backend says"}
	case p.Path == "" && missing == Bad:
		return Finding{what, Bad, noProgram}
	case p.Path == "":
		return Finding{what, Good, "none: this program was built without, and there is no denoised-cuda beside it"}
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	// It leaves nothing behind, and least of all files of another account.
	s, err := remote.Probe(ctx, p.options("CUDA_CACHE_DISABLE=1"))
	if err != nil {
		return Finding{what, missing, fmt.Sprintf("%v: images are denoised on the CPU; see docs/gpu.md", err)}
	}
	text := s.Info.String()
	if s.Free > 0 {
		text += fmt.Sprintf(", %.1f GiB free", float64(s.Free)/(1<<30))
	}
	return Finding{what, Good, text}
}
