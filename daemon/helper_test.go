package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/kernels/remote"
	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
)

// asWorker in the environment makes the test binary a worker; its value says of which kind.
const asWorker = "DENOISED_TEST_WORKER"

func TestMain(m *testing.M) {
	if kind := os.Getenv(asWorker); kind != "" {
		os.Exit(beWorker(kind))
	}
	goleak.VerifyTestMain(m)
}

// beWorker is a worker process: one that computes on the CPU, or one that cannot.
func beWorker(kind string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conn, err := remote.Inherited(3)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if kind == "refuses" {
		if err := remote.Refuse(conn, errors.New("no NVIDIA driver")); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 1
	}
	b, err := cpu.SelectInference()
	if err == nil {
		err = remote.Serve(ctx, conn, b, remote.Info{Device: "Test GPU", Driver: "12.4", Compute: "8.9", Kernels: "sm_80", Memory: 8 << 30})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// cpuBackend is what models run on in tests.
func cpuBackend(t *testing.T) *cpu.Backend {
	t.Helper()
	b, err := cpu.SelectInference()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const testLimit = 60 * time.Second

// eventually waits until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(testLimit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, testLimit, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// pacs is an archive that remembers data sets and may be told to fail.
type pacs struct {
	addr net.Addr

	mu      sync.Mutex
	objects map[string][]byte // data sets by SOP instance UID
	copies  map[string]int
	calling map[string]bool
	refuse  dicomnet.Status
}

func startPACS(t *testing.T) *pacs {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &pacs{addr: l.Addr(), objects: map[string][]byte{}, copies: map[string]int{}, calling: map[string]bool{}}
	s := &dicomnet.Server{Handler: p}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, dicomnet.ErrServerClosed) {
			t.Error(err)
		}
	})
	return p
}

func (p *pacs) Associate(_ context.Context, req *dicomnet.AssociateRequest) (dicomnet.Session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calling[req.CallingAETitle] = true
	return p, nil
}

func (p *pacs) Store(_ context.Context, req *dicomnet.StoreRequest, r io.Reader) dicomnet.Status {
	data, err := io.ReadAll(r)
	if err != nil {
		return dicomnet.StatusProcessingFailure
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != 0 {
		return p.refuse
	}
	p.objects[req.SOPInstanceUID] = data
	p.copies[req.SOPInstanceUID]++
	return dicomnet.StatusSuccess
}

func (p *pacs) Close(error) {}

func (p *pacs) get(uid string) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.objects[uid]
}

func (p *pacs) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.objects)
}

// image is an object to be sent.
type image struct {
	uid, class, syntax string
	file, data         []byte // Part-10, bare
}

func imageOf(t *testing.T, file []byte) image {
	t.Helper()
	o, err := dcm.Scan(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	return image{o.String(dcm.SOPInstanceUID), o.String(dcm.SOPClassUID), o.TransferSyntaxUID(), file, file[o.DataSetOffset():]}
}

// phantomSeries makes a small series of its own for a name.
func phantomSeries(t *testing.T, name string, slices int) []image {
	t.Helper()
	v := phantom.New(phantom.Spec{Seed: 1, Width: 64, Height: 64, Slices: slices, Sigma: 0.06})
	ids := phantom.NewIDs(t.Name() + name)
	var list []image
	for i := range slices {
		var b bytes.Buffer
		if err := v.WriteDICOM(&b, i, ids); err != nil {
			t.Fatal(err)
		}
		list = append(list, imageOf(t, b.Bytes()))
	}
	return list
}

// pushAll sends images over one association and returns the statuses.
func pushAll(ctx context.Context, d *dicomnet.Dialer, address string, list []image) ([]dicomnet.Status, error) {
	contexts := map[dicomnet.StoreRequest]bool{}
	var want []dicomnet.PresentationContext
	for _, i := range list {
		key := dicomnet.StoreRequest{SOPClassUID: i.class, TransferSyntaxUID: i.syntax}
		if !contexts[key] {
			contexts[key] = true
			want = append(want, dicomnet.PresentationContext{AbstractSyntax: i.class, TransferSyntaxes: []string{i.syntax}})
		}
	}
	a, err := d.Dial(ctx, address, want)
	if err != nil {
		return nil, err
	}
	var statuses []dicomnet.Status
	for _, i := range list {
		s, err := a.Store(ctx, &dicomnet.StoreRequest{SOPClassUID: i.class, SOPInstanceUID: i.uid, TransferSyntaxUID: i.syntax}, bytes.NewReader(i.data))
		if err != nil {
			return statuses, err
		}
		statuses = append(statuses, s)
	}
	return statuses, a.Release(ctx)
}

func pushOK(t *testing.T, d *Daemon, called string, list []image) {
	t.Helper()
	statuses, err := pushAll(t.Context(), &dicomnet.Dialer{CallingAETitle: "SCANNER", CalledAETitle: called}, d.DICOMAddr().String(), list)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range statuses {
		if !s.IsSuccess() {
			t.Fatalf("image %d: %v", i, s)
		}
	}
}

// testConfig works on free ports and a folder of the test.
func testConfig(t *testing.T, destinations ...*pacs) *Config {
	t.Helper()
	c := DefaultConfig()
	c.StateDir = filepath.Join(t.TempDir(), "state")
	c.DICOM.Listen, c.HTTP.Listen = "127.0.0.1:0", "127.0.0.1:0"
	c.Series = SeriesConfig{Quiet: 200 * time.Millisecond, QuietOpen: time.Second, Max: time.Minute}
	c.Retention.DiskWarn, c.Retention.DiskRefuse = 0.99, 0.999
	for i, p := range destinations {
		c.Destinations = append(c.Destinations, Destination{Name: fmt.Sprintf("pacs%d", i), AETitle: "PACS", Address: p.addr.String(), Send: []string{"original", "derived"}})
	}
	return c
}

// running is a daemon in a test.
type running struct {
	*Daemon
	stop func() error // asks for the end and waits for it; the second call does nothing
}

// blur is a denoiser for tests of everything around it.
type blur struct{}

func (blur) Model() derive.ModelInfo {
	return derive.ModelInfo{Name: "blur", Version: "1", Hash: fmt.Sprintf("%x", sha256.Sum256(nil))}
}

func (blur) Measure(context.Context, *derive.Frame) (evidence.Sums, error) { return nil, nil }

func (blur) Denoise(_ context.Context, f *derive.Frame, _ evidence.Sums, _ float64) (*pipeline.Denoised, error) {
	out := make([]float32, len(f.Pixels))
	for i, v := range f.Pixels {
		out[i] = (2*v + f.Pixels[(i+1)%len(out)]) / 3
	}
	return &pipeline.Denoised{Pixels: out, Sigma: 1}, nil
}

func startDaemon(t *testing.T, c *Config, opts ...Option) *running {
	t.Helper()
	log := zaptest.NewLogger(t, zaptest.WrapOptions(zap.AddStacktrace(zap.PanicLevel)), zaptest.Level(zap.WarnLevel))
	fast := func(d *Daemon) { d.settle = 100 * time.Millisecond }
	d, err := New(c, append([]Option{WithLogger(log, zap.NewAtomicLevel()), WithVersion("test"), WithDenoiser(blur{}), fast}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	select {
	case <-d.Ready():
	case err := <-ended:
		cancel()
		t.Fatal(err)
	case <-time.After(testLimit):
		t.Fatal("the daemon does not start")
	}
	var once sync.Once
	stop := func() (err error) {
		once.Do(func() {
			cancel()
			err = <-ended
		})
		return err
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return &running{d, stop}
}

// replace puts a file in place as careful editors do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}
