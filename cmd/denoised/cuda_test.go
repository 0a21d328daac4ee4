//go:build cuda && emulated

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/kernels/remote"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/store"
)

// TestServeOnGPU: the real daemon, the real worker and an emulated device, as it should be and with
// what can be wrong with it. Every slice is delivered; the driver is loaded by the worker and never by
// the daemon, and both end together.
func TestServeOnGPU(t *testing.T) {
	library := os.Getenv("DENOISED_CUDA_LIB")
	if library == "" {
		t.Skip("DENOISED_CUDA_LIB names no emulated driver; make test-emulated makes one")
	}
	for name, c := range map[string]struct {
		device string // DENOISED_EMU
		check  func(w *web.Worker) bool
	}{
		"well": {"", func(w *web.Worker) bool { return w.State == "ready" && w.Done >= 5 && w.OnCPU == 0 && w.Starts == 1 }},
		// Among the slices: the golden vectors, which the worker computes first, take about 100 launches.
		"lost": {"fail_launch_after=550:700", func(w *web.Worker) bool { return w.Starts > 1 && w.Done+w.OnCPU >= 5 }},
		"full": {"fail_alloc_after=0", func(w *web.Worker) bool { return w.Done == 0 && strings.Contains(w.LastError, "memory") }},
		"none": {"fail_init=100", func(w *web.Worker) bool {
			return w.State != "ready" && strings.Contains(w.LastError, "no CUDA-capable device")
		}},
		"too old": {"driver=11000", func(w *web.Worker) bool { return w.State != "ready" && strings.Contains(w.LastError, "too old") }},
		"broken":  {"fail_launch_after=0:1", func(w *web.Worker) bool { return w.Done == 0 && strings.Contains(w.LastError, "golden vectors") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("DENOISED_EMU", c.device)
			archive := startSink(t)
			p := newProgram(t, archive.addr)
			p.start()
			p.ready()
			worker := func() *web.Worker {
				var status web.Status
				if err := getJSON(t.Context(), "http://"+p.http+"/readyz", &status); err != nil {
					t.Fatal(err)
				}
				if !status.Ready || status.Worker == nil {
					t.Fatalf("%+v", status)
				}
				return status.Worker
			}
			within(t, "the worker is ready, or not", func() error {
				if w := worker(); w.State == "starting" {
					return fmt.Errorf("%+v", w)
				}
				return nil
			})
			list, sent := scannerObjects(t, 10)
			sendSome(t.Context(), p.dicom, list, map[string]bool{}, func(int) {})
			checkArchive(t, archive, sent)
			w := worker()
			if !c.check(w) {
				t.Errorf("%#v", *w)
			}
			if loaded(t, p.cmd.Process.Pid, library) {
				t.Error("the daemon has loaded the driver")
			}
			if name == "well" && !loaded(t, w.PID, library) {
				t.Error("the worker has not loaded the driver")
			}
			p.signal(syscall.SIGTERM)
			if err := p.cmd.Wait(); err != nil {
				t.Errorf("after SIGTERM: %v\n%s", err, p.log)
			}
			if w.PID != 0 {
				if err := syscall.Kill(w.PID, 0); !errors.Is(err, syscall.ESRCH) {
					t.Errorf("the worker is still there: %v", err)
				}
			}
		})
	}
}

// loaded tells whether a process has a library in its memory.
func loaded(t *testing.T, pid int, library string) bool {
	t.Helper()
	maps, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(maps, []byte(filepath.Base(library)))
}

// TestBackendCUDA: a verb computes on the device in its own process, and says so.
func TestBackendCUDA(t *testing.T) {
	if os.Getenv("DENOISED_CUDA_LIB") == "" {
		t.Skip("DENOISED_CUDA_LIB names no emulated driver; make test-emulated makes one")
	}
	b, why, err := openBackend(backendAuto, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(why, "computing on Emulated GPU, compute capability ") || !b.onGPU() {
		t.Errorf("%q, %+v", why, b.info)
	}
	if err := b.close(); err != nil {
		t.Error(err)
	}
	out, errOut := new(bytes.Buffer), new(bytes.Buffer)
	if code := run(t.Context(), strings.Fields("bench --size 16 --rounds 1 --batch 2 --steps 2 --backend cuda --json"), out, errOut); code != exitDone {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	var r gpuReport
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Results) != 3 || len(r.SRDS) != 1 || len(r.Series) != 3 || r.Ceilings.Tensor <= 0 {
		t.Errorf("%+v", r)
	}
	for _, x := range r.Results {
		if x.GFLOP <= 0 || x.Device <= 0 || x.Whole <= 0 || len(x.Kernels) < 3 {
			t.Errorf("%+v", x)
		}
	}
	out.Reset()
	if code := run(t.Context(), strings.Fields("bench --size 16 --soak 20 --backend cuda"), out, errOut); code != exitDone {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	if lines := strings.Count(out.String(), "slices of 16×16"); lines != 10 {
		t.Errorf("%d lines:\n%s", lines, out)
	}
}

// TestHighOnGPU: the full method on a worker with an emulated device gives what the CPU gives, but for
// the rounding of halves, and is computed there.
func TestHighOnGPU(t *testing.T) {
	if os.Getenv("DENOISED_CUDA_LIB") == "" {
		t.Skip("DENOISED_CUDA_LIB names no emulated driver; make test-emulated makes one")
	}
	t.Setenv(asProgram, "1")
	w := remote.NewWorker(remote.Options{Program: workerProgram().Path, Args: workerProgram().Args, RequestLimit: 10 * time.Minute})
	w.Start()
	defer func() {
		if err := w.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	if s := w.Settled(t.Context()); s.State != remote.Ready {
		t.Fatalf("%+v", s)
	}
	local, err := cpu.Select()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	img := models.Image{Width: 64, Height: 48, Pixels: make([]float32, 64*48)}
	for i := range img.Pixels {
		img.Pixels[i] = float32(300 + 100*math.Sin(float64(i%64)/9) + 20*rng.NormFloat64())
	}
	var results []*models.Result
	for _, on := range []kernels.Backend{local, remote.NewBackend(w, local)} {
		m, err := models.OpenOn(on, store.DefaultName)
		if err != nil {
			t.Fatal(err)
		}
		r, err := m.High(t.Context(), img, models.HighOptions{Strength: 1, Steps: 2, Passes: 1})
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, r)
	}
	changed, off := 0.0, 0.0
	for i, v := range results[0].Pixels {
		changed += math.Pow(float64(v-img.Pixels[i]), 2)
		off += math.Pow(float64(v-results[1].Pixels[i]), 2)
	}
	if !(math.Sqrt(off/changed) < 0.02) || changed == 0 {
		t.Errorf("the change is off by %g of itself", math.Sqrt(off/changed))
	}
	if s := w.Status(); s.Served < 3 || s.FellBack > 0 {
		t.Errorf("%+v", s)
	}
	t.Logf("the change is off by %.2g of itself; %+v", math.Sqrt(off/changed), w.Status())
}
