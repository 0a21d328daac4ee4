package daemon

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// TestEndToEnd: scanner, daemon with the real model, two archives.
func TestEndToEnd(t *testing.T) {
	both, derivedOnly := startPACS(t), startPACS(t)
	cfg := testConfig(t, both, derivedOnly)
	cfg.Destinations[1].Send = []string{"derived"}
	model, err := openDenoisers(cpuBackend(t), DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, cfg, WithDenoiser(model))
	list := phantomSeries(t, "", 5)
	pushOK(t, d.Daemon, "DENOISE", list)
	eventually(t, "everything is delivered", func() error {
		if both.count() != 10 || derivedOnly.count() != 5 {
			return fmt.Errorf("%d of 10 and %d of 5 objects", both.count(), derivedOnly.count())
		}
		return nil
	})
	if !both.calling["DENOISE"] {
		t.Errorf("calling AE titles at the archive: %v", both.calling)
	}
	known := map[string]bool{}
	for _, i := range list {
		known[i.uid] = true
		if !bytes.Equal(both.get(i.uid), i.data) {
			t.Errorf("original %s is not byte-identical", i.uid)
		}
	}
	var derived []image
	series := map[string]bool{}
	for uid, data := range derivedOnly.objects {
		if known[uid] {
			t.Errorf("original %s went to an archive for derived images", uid)
			continue
		}
		if !bytes.Equal(data, both.get(uid)) {
			t.Errorf("derived %s differs between archives", uid)
		}
		var file bytes.Buffer
		if _, err := dcm.WriteFileMeta(&file, dcm.FileMeta{SOPClassUID: list[0].class, SOPInstanceUID: uid, TransferSyntaxUID: list[0].syntax}); err != nil {
			t.Fatal(err)
		}
		file.Write(data)
		derived = append(derived, imageOf(t, file.Bytes()))
		o, err := dcm.Scan(bytes.NewReader(file.Bytes()), int64(file.Len()))
		if err != nil {
			t.Fatal(err)
		}
		series[o.String(dcm.SeriesInstanceUID)] = true
		if got := o.Strings(dcm.ImageType); len(got) == 0 || got[0] != "DERIVED" {
			t.Errorf("ImageType %v", got)
		}
		if v := derive.Inspect(o); v.Reason != derive.AlreadyDenoised {
			t.Errorf("verdict over a derived image: %+v", v)
		}
	}
	if len(derived) != 5 || len(series) != 1 {
		t.Errorf("%d derived images in %d series", len(derived), len(series))
	}

	// A second pass: the same originals change nothing, derived ones are recognised.
	pushOK(t, d.Daemon, "DENOISE", list)
	pushOK(t, d.Daemon, "DENOISE", derived)
	eventually(t, "the derived series came back", func() error {
		for s := range series {
			st, err := d.pipe.SeriesByUID(t.Context(), s)
			if err != nil {
				return err
			}
			if st.Passed != 5 || st.Reasons[state.Reason(derive.AlreadyDenoised)] != 5 ||
				st.Destinations[0].Stored != 5 {
				return fmt.Errorf("%+v", st)
			}
		}
		return nil
	})
	if both.count() != 10 || derivedOnly.count() != 5 {
		t.Errorf("after the second pass %d and %d objects", both.count(), derivedOnly.count())
	}
	for _, i := range list {
		if both.copies[i.uid] != 1 {
			t.Errorf("original %s was delivered %d times", i.uid, both.copies[i.uid])
		}
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// TestWhoMaySend: called and calling AE titles and addresses.
func TestWhoMaySend(t *testing.T) {
	cfg := testConfig(t)
	cfg.DICOM.Peers = []Peer{
		{AETitle: "ANYWHERE"},
		{AETitle: "HERE", Hosts: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8")}},
		{AETitle: "THERE", Hosts: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
	}
	d := startDaemon(t, cfg)
	for _, c := range []struct {
		calling, called string
		want            *dicomnet.RejectError
	}{
		{"HERE", "DENOISE", nil},
		{"HERE", "DENOISE_HQ", nil},
		{"ANYWHERE", "DENOISE", nil},
		{"HERE", "denoise", dicomnet.RejectCalledAETitle},
		{"STRANGER", "ORTHANC", dicomnet.RejectCalledAETitle},
		{"STRANGER", "DENOISE", dicomnet.RejectCallingAETitle},
		{"THERE", "DENOISE", dicomnet.RejectCallingAETitle},
	} {
		_, _, err := echo(t.Context(), &dicomnet.Dialer{CallingAETitle: c.calling, CalledAETitle: c.called},
			d.DICOMAddr().String())
		var got *dicomnet.RejectError
		switch {
		case c.want == nil && err != nil:
			t.Errorf("%s to %s: %v", c.calling, c.called, err)
		case c.want != nil && (!errors.As(err, &got) || *got != *c.want):
			t.Errorf("%s to %s: %v, want %v", c.calling, c.called, err, c.want)
		}
	}
}

// TestStrangerIsNotRead: a host that no peer may have is closed before it has
// said anything.
func TestStrangerIsNotRead(t *testing.T) {
	cfg := testConfig(t)
	cfg.DICOM.Peers = []Peer{{AETitle: "THERE", Hosts: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	d := startDaemon(t, cfg)
	conn, err := net.Dial("tcp", d.DICOMAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(testLimit)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v, want the connection closed", n, err)
	}
}

// What is not the object's fault is answered so that the scanner tries again.
func TestStoreStatus(t *testing.T) {
	failing := func(op string, e syscall.Errno) error {
		return fmt.Errorf("receive 1.2: write to spool: %w", &fs.PathError{Op: op, Path: "tmp/1.part", Err: e})
	}
	for _, c := range []struct {
		err  error
		want dicomnet.Status
	}{
		{nil, dicomnet.StatusSuccess},
		{failing("write", syscall.EIO), dicomnet.StatusOutOfResources},
		{failing("rename", syscall.EROFS), dicomnet.StatusOutOfResources},
		{failing("open", syscall.EMFILE), dicomnet.StatusOutOfResources},
		{failing("open", syscall.ENFILE), dicomnet.StatusOutOfResources},
		{failing("sync", syscall.ENOSPC), dicomnet.StatusOutOfResources},
		{failing("open", syscall.EACCES), dicomnet.StatusOutOfResources},
		{errors.New("record instance: database or disk is full (13)"), dicomnet.StatusOutOfResources},
		{fmt.Errorf("x: %w", pipeline.ErrNoSpace), dicomnet.StatusOutOfResources},
		{context.Canceled, dicomnet.StatusOutOfResources},
		{fmt.Errorf("x: %w", dicomnet.ErrObjectTooLarge), dicomnet.StatusOutOfResources},
		{fmt.Errorf("x: %w", &pipeline.MismatchError{Attribute: "SOPInstanceUID"}), dicomnet.StatusDataSetMismatch},
		{fmt.Errorf("x: %w", pipeline.ErrEmpty), dicomnet.StatusCannotUnderstand},
		{fmt.Errorf("x: %w", pipeline.ErrUID), dicomnet.StatusCannotUnderstand},
	} {
		if got := storeStatus(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

// TestMismatch: a command that announces another object than it brings is
// refused, and the association goes on.
func TestMismatch(t *testing.T) {
	d := startDaemon(t, testConfig(t))
	list := phantomSeries(t, "", 2)
	wrong := list[0]
	wrong.uid = "1.2.3"
	got, err := pushAll(t.Context(), &dicomnet.Dialer{CalledAETitle: "DENOISE"}, d.DICOMAddr().String(), []image{wrong, list[1]})
	if err != nil || !slices.Equal(got, []dicomnet.Status{dicomnet.StatusDataSetMismatch, dicomnet.StatusSuccess}) {
		t.Errorf("%v, %v", got, err)
	}
}

// turnstile is a denoiser that waits to be let through.
type turnstile struct {
	blur
	entered chan struct{}
	open    chan struct{}
}

func (g turnstile) Denoise(ctx context.Context, f *derive.Frame, known evidence.Sums,
	strength float64) (*pipeline.Denoised, error) {
	g.entered <- struct{}{}
	<-g.open
	return g.blur.Denoise(ctx, f, known, strength)
}

// TestDrain: a stop finishes the slice in hand, and the next start delivers the
// rest, each image once.
func TestDrain(t *testing.T) {
	archive := startPACS(t)
	cfg := testConfig(t, archive)
	cfg.Denoise.Workers = 1
	g := turnstile{entered: make(chan struct{}, 10), open: make(chan struct{})}
	var mu sync.Mutex
	var told []string
	d := startDaemon(t, cfg, WithDenoiser(g), func(d *Daemon) {
		d.notify = func(s string) {
			mu.Lock()
			defer mu.Unlock()
			word, _, _ := strings.Cut(s, "\n")
			told = append(told, word)
		}
	})
	list := phantomSeries(t, "", 3)
	pushOK(t, d.Daemon, "DENOISE", list)
	<-g.entered
	ended := make(chan error, 1)
	go func() { ended <- d.stop() }()
	eventually(t, "it says that it stops", func() error {
		if s := d.Status(); s.Ready || !slices.Contains(s.Problems, "stopping") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	eventually(t, "the port closes", func() error {
		c, err := net.Dial("tcp", d.DICOMAddr().String())
		if err != nil {
			return nil
		}
		return errors.Join(errors.New("still open"), c.Close())
	})
	select {
	case err := <-ended:
		t.Fatalf("stopped with a slice in hand: %v", err)
	default:
	}
	close(g.open)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	if len(told) < 2 || !slices.Contains(told, "READY=1") || told[len(told)-1] != "STOPPING=1" {
		t.Errorf("systemd was told %q", told)
	}
	mu.Unlock()

	startDaemon(t, cfg)
	eventually(t, "the rest is delivered", func() error {
		if archive.count() != 6 {
			return fmt.Errorf("%d of 6", archive.count())
		}
		return nil
	})
	for uid, n := range archive.copies {
		if n != 1 {
			t.Errorf("%s came %d times", uid, n)
		}
	}
}

// TestFailedStart: what a failed start had opened is closed again.
func TestFailedStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"http.listen": func(c *Config) { c.HTTP.Listen = taken.Addr().String() },
		"state_dir":   func(c *Config) { c.StateDir = filepath.Join(file, "state") },
	} {
		cfg := testConfig(t)
		cfg.DICOM.Listen = address
		spoil(cfg)
		d, err := New(cfg, WithDenoiser(blur{}))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Run(t.Context()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatalf("%s: the DICOM port stayed open: %v", name, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cfg := testConfig(t)
	cfg.Denoise.Model = filepath.Join(t.TempDir(), "none")
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "denoise.model") {
		t.Errorf("model that is not there: %v", err)
	}
}

// TestTLS: the second port takes scanners with a certificate, and destinations
// can be asked for the same.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca, cert, key, pool := certificates(t, dir)
	cfg := testConfig(t)
	cfg.DICOM.TLS = TLSConfig{Listen: "127.0.0.1:0", Cert: cert, Key: key, ClientCA: ca}
	d := startDaemon(t, cfg)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	address := d.DICOMTLSAddr().String()
	good := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
	if _, _, err := echo(t.Context(), &dicomnet.Dialer{CalledAETitle: "DENOISE", TLSConfig: good},
		address); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	old := good.Clone()
	old.MaxVersion = tls.VersionTLS11
	for name, c := range map[string]*tls.Config{"without a certificate": {RootCAs: pool}, "TLS 1.1": old, "without TLS": nil} {
		if _, _, err := echo(t.Context(), &dicomnet.Dialer{CalledAETitle: "DENOISE", TLSConfig: c},
			address); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// It ends in an hour: told, and no reason to be unready.
	if s := d.Status(); !s.Ready || !slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, "dicom.tls.cert ends on") }) {
		t.Errorf("certificate that ends soon: %+v", s)
	}
	for after, want := range map[time.Duration]string{-15 * 24 * time.Hour: "", -13 * 24 * time.Hour: "ends on", time.Second: "has ended on"} {
		if f := d.tls.Load(); (want == "") != (f.trouble(f.ends.Add(after)) == "") || !strings.Contains(f.trouble(f.ends.Add(after)), want) {
			t.Errorf("%v after the end: %q", after, f.trouble(f.ends.Add(after)))
		}
	}
	cfg.DICOM.TLS.ClientCA = key
	if _, err := New(cfg, WithDenoiser(blur{})); err == nil || !strings.Contains(err.Error(), "dicom.tls.client_ca") {
		t.Errorf("key as client_ca: %v", err)
	}
}

// certificates makes a certificate for 127.0.0.1 that is its own authority.
func certificates(t *testing.T, dir string) (ca, cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return write("ca.pem", "CERTIFICATE", der), write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", keyDER), pool
}

// TestOverHTTP: the assembled status, and what a dead destination does to it.
func TestOverHTTP(t *testing.T) {
	archive := startPACS(t)
	archive.refuse = dicomnet.StatusOutOfResources
	d := startDaemon(t, testConfig(t, archive))
	base := "http://" + d.HTTPAddr().String()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(path string, code int) []byte {
		t.Helper()
		resp, err := client.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != code {
			t.Fatalf("GET %s: %s, %v\n%s", path, resp.Status, err, body)
		}
		return body
	}
	list := phantomSeries(t, "", 2)
	pushOK(t, d.Daemon, "DENOISE", list)
	var status web.Status
	eventually(t, "the refusing archive is shown, images are received all the same", func() error {
		if err := json.Unmarshal(get("/readyz", http.StatusOK), &status); err != nil {
			return err
		}
		var series []pipeline.SeriesStatus
		if err := json.Unmarshal(get("/api/series", http.StatusOK), &series); err != nil {
			return err
		}
		if len(series) != 1 || series[0].Received != 2 || series[0].Denoised != 2 {
			return fmt.Errorf("%+v", series)
		}
		return nil
	})
	if status.Model != "blur 1" || status.Version != "test" || len(status.Destinations) != 1 {
		t.Errorf("%+v", status)
	}
	text := string(get("/metrics", http.StatusOK))
	for _, want := range []string{"denoised_ready 1", `denoised_stores_total{result="stored"} 2`, "denoised_queue_depth", "go_goroutines", `model="blur 1"`} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if page := string(get("/", http.StatusOK)); !strings.Contains(page, "Research use only") || !strings.Contains(page, "T1_AX_PHANTOM") {
		t.Errorf("page:\n%s", page)
	}
	for _, secret := range []string{"Phantom^Head", "PatientName"} {
		for _, path := range []string{"/", "/api/series", "/metrics", "/readyz"} {
			if bytes.Contains(get(path, http.StatusOK), []byte(secret)) {
				t.Errorf("%s shows patient data", path)
			}
		}
	}
}

// TestListenerLiveness: an accept loop that hangs is noticed.
func TestListenerLiveness(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := watched(inner)
	now := time.Now()
	if err := l.check(now); err != nil {
		t.Errorf("just made: %v", err)
	}
	if err := l.check(now.Add(time.Minute)); err == nil {
		t.Error("nobody accepts for a minute, and that is well")
	}
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		_, _ = l.Accept() // ends with the listener
	}()
	eventually(t, "somebody waits in Accept", func() error { return l.check(time.Now().Add(time.Hour)) })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	<-returned
	if err := l.check(time.Now().Add(time.Minute)); err == nil {
		t.Error("a closed listener is well")
	}
}
