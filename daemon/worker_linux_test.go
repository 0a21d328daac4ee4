package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/kernels/remote"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// workerOf is a program that is a worker of a kind.
func workerOf(t *testing.T, kind string) WorkerProgram {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(asWorker, kind)
	return WorkerProgram{Path: self}
}

// withWorker starts a daemon with the built-in model and a worker, and collects its log.
func withWorker(t *testing.T, cfg *Config, p WorkerProgram, tune func(o *remote.Options)) (*running, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	d := startDaemon(t, cfg, WithDenoiser(nil), WithWorker(p), WithLogger(zap.New(core), zap.NewAtomicLevel()), func(d *Daemon) {
		d.tune = func(o *remote.Options) {
			o.FirstPause, o.LongestPause, o.MaxFailures = 5*time.Millisecond, 20*time.Millisecond, 1<<20
			if tune != nil {
				tune(o)
			}
		}
	})
	return d, logs
}

// TestWorkerKilled: a worker that is killed again and again, and in the middle, while a scanner sends
// a series costs no image: each is delivered once as it came and once denoised.
func TestWorkerKilled(t *testing.T) {
	archive := startPACS(t)
	cfg := testConfig(t, archive)
	cfg.Denoise.Workers = 3
	d, logs := withWorker(t, cfg, workerOf(t, "cpu"), nil)
	list := phantomSeries(t, "", 40)
	done := make(chan struct{})
	var killer sync.WaitGroup
	kills := 0
	killer.Go(func() {
		for next := int64(1); ; {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
			if s := d.worker.Status(); s.State == remote.Ready && s.Served >= next {
				if syscall.Kill(s.PID, syscall.SIGKILL) == nil {
					kills++
				}
				next = s.Served + 3
			}
		}
	})
	pushOK(t, d.Daemon, "DENOISE", list)
	eventually(t, "everything is delivered", func() error {
		if n := archive.count(); n != 2*len(list) {
			return fmt.Errorf("%d of %d objects", n, 2*len(list))
		}
		return nil
	})
	close(done)
	killer.Wait()
	known := map[string]bool{}
	for _, i := range list {
		known[i.uid] = true
		if !bytes.Equal(archive.get(i.uid), i.data) {
			t.Errorf("original %s is not byte-identical", i.uid)
		}
	}
	for uid, data := range archive.objects {
		if archive.copies[uid] != 1 {
			t.Errorf("%s came %d times", uid, archive.copies[uid])
		}
		if known[uid] {
			continue
		}
		var file bytes.Buffer
		if _, err := dcm.WriteFileMeta(&file, dcm.FileMeta{SOPClassUID: list[0].class, SOPInstanceUID: uid, TransferSyntaxUID: list[0].syntax}); err != nil {
			t.Fatal(err)
		}
		file.Write(data)
		o, err := dcm.Scan(bytes.NewReader(file.Bytes()), int64(file.Len()))
		if err != nil {
			t.Fatal(err)
		}
		if v := derive.Inspect(o); v.Reason != derive.AlreadyDenoised {
			t.Errorf("%s is not denoised: %+v", uid, v)
		}
	}
	var status web.Status
	getJSON(t, d, "/readyz", &status)
	s := status.Worker
	if s == nil || kills < 3 || s.Starts < 4 || s.Done == 0 || s.Done+s.OnCPU < int64(len(list))-2 { // the outermost slices may show nothing but air
		t.Errorf("%d kills, %+v", kills, s)
	}
	if logs.FilterMessageSnippet("the worker process is lost").Len() == 0 {
		t.Error("the log says nothing of lost workers")
	}
	for _, e := range logs.FilterMessageSnippet("slice failed").All() {
		t.Errorf("%s %v", e.Message, e.ContextMap())
	}
	t.Logf("%d kills, %d runs by workers, %d here", kills, s.Done, s.OnCPU)
}

// getJSON reads what the status page answers.
func getJSON(t *testing.T, d *running, path string, to any) {
	t.Helper()
	if err := json.Unmarshal(get(t, d, path), to); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, d *running, path string) []byte {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + d.HTTPAddr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// TestWorkerShown: status, status page, metrics, log and check show the worker; a stop ends it.
func TestWorkerShown(t *testing.T) {
	cfg := testConfig(t)
	p := workerOf(t, "cpu")
	d, logs := withWorker(t, cfg, p, nil)
	var status web.Status
	eventually(t, "the worker is ready", func() error {
		getJSON(t, d, "/readyz", &status)
		if s := status.Worker; s == nil || s.State != "ready" {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	s := *status.Worker
	if s.Device != "Test GPU" || s.Driver != "12.4" || s.Memory != 8<<30 || s.PID == 0 || s.Starts != 1 {
		t.Errorf("%+v", s)
	}
	for path, want := range map[string]string{
		"/":        "GPU: Test GPU ready, 0 runs of networks on it, 0 on the CPU instead, started once.",
		"/metrics": "denoised_worker_up 1\n",
	} {
		if body := string(get(t, d, path)); !strings.Contains(body, want) {
			t.Errorf("%s lacks %q:\n%s", path, want, body)
		}
	}
	ready := logs.FilterMessage("images are denoised on a GPU").All()
	if len(ready) != 1 || !strings.HasPrefix(ready[0].ContextMap()["device"].(string), "Test GPU, compute capability 8.9, 8.0 GiB, driver 12.4, kernels sm_80, ready after ") {
		t.Errorf("%+v", ready)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the worker is still there: %v", err)
	}
	for _, c := range []struct {
		backend, kind string
		p             WorkerProgram
		outcome       Outcome
		detail        string
	}{
		{"auto", "cpu", p, Good, "Test GPU, compute capability 8.9, 8.0 GiB, driver 12.4, kernels sm_80"},
		{"auto", "refuses", p, Note, "no NVIDIA driver: images are denoised on the CPU"},
		{"cuda", "refuses", p, Bad, "no NVIDIA driver: images are denoised on the CPU"},
		{"auto", "", WorkerProgram{}, Good, "none: this program was built without"},
		{"cuda", "", WorkerProgram{}, Bad, "there is no denoised-cuda beside it"},
		{"cpu", "cpu", p, Good, "not used"},
	} {
		t.Setenv(asWorker, c.kind)
		cfg.Denoise.Backend = c.backend
		if got := checkWorker(t.Context(), cfg, c.p); got.Outcome != c.outcome || !strings.Contains(got.Detail, c.detail) {
			t.Errorf("%s, %s: %+v", c.backend, c.kind, got)
		}
	}
}

// TestNoGPU: where there is none the daemon starts, works on the CPU, and says so as loudly as the
// configuration asks for.
func TestNoGPU(t *testing.T) {
	for _, c := range []struct {
		backend string
		program bool
		loud    string // problem; empty: none
	}{
		{"auto", false, ""},
		{"auto", true, ""},
		{"cuda", false, noProgram},
		{"cuda", true, "no GPU, images are denoised on the CPU: no NVIDIA driver"},
	} {
		t.Run(fmt.Sprintf("%s program %v", c.backend, c.program), func(t *testing.T) {
			archive := startPACS(t)
			cfg := testConfig(t, archive)
			cfg.Denoise.Backend = c.backend
			p := WorkerProgram{}
			if c.program {
				p = workerOf(t, "refuses")
			}
			d, logs := withWorker(t, cfg, p, func(o *remote.Options) { o.MaxFailures = 3 })
			pushOK(t, d.Daemon, "DENOISE", phantomSeries(t, "", 1))
			eventually(t, "it is delivered", func() error {
				if archive.count() != 2 {
					return fmt.Errorf("%d of 2", archive.count())
				}
				return nil
			})
			var status web.Status
			eventually(t, "it is shown", func() error {
				getJSON(t, d, "/readyz", &status)
				switch {
				case !status.Ready:
					return errors.New("no image is received")
				case c.loud != "" && !slices.Contains(status.Problems, c.loud), c.loud == "" && len(status.Problems) > 0:
					return fmt.Errorf("problems %q", status.Problems)
				case (status.Worker != nil) != c.program, c.program && status.Worker.State != "off":
					return fmt.Errorf("%+v", status.Worker)
				}
				return nil
			})
			warned := false
			for _, e := range logs.FilterLevelExact(zap.WarnLevel).All() {
				warned = warned || strings.Contains(e.Message, "CPU")
			}
			if warned != (c.loud != "") {
				t.Errorf("warned: %v", warned)
			}
			if n := logs.FilterMessageSnippet("it is tried again").Len(); c.program && n != 1 {
				t.Errorf("told %d times", n)
			}
		})
	}
}

// TestWorkerEnvironment: a worker does not talk to systemd in the daemon's name, and its driver keeps
// its files with ours.
func TestWorkerEnvironment(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/nowhere")
	t.Setenv("SOMETHING_ELSE", "1")
	cfg := testConfig(t)
	d, err := New(cfg, WithWorker(WorkerProgram{Path: "/bin/true", Version: "1.2"}), func(d *Daemon) {
		d.tune = func(o *remote.Options) {
			if o.Version != "1.2" {
				t.Errorf("it may have another version than 1.2: %q", o.Version)
			}
			if slices.ContainsFunc(o.Env, func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") }) {
				t.Error("it is given systemd's socket")
			}
			for _, want := range []string{"SOMETHING_ELSE=1", "CUDA_CACHE_PATH=" + filepath.Join(cfg.StateDir, "cuda-cache")} {
				if !slices.Contains(o.Env, want) {
					t.Errorf("it lacks %s", want)
				}
			}
		}
	})
	if err != nil || d.worker == nil {
		t.Fatal(err)
	}
	cfg.Denoise.Backend = "cpu"
	if d, err = New(cfg, WithWorker(WorkerProgram{Path: "/bin/true"})); err != nil || d.worker != nil {
		t.Errorf("backend cpu: %+v, %v", d.worker, err)
	}
}
