package daemon

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/diffdenoise/denoised/daemon/web"
	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/models"
)

// Outcome is what Check found of one thing.
type Outcome string

// Outcomes.
const (
	Good Outcome = "ok"
	Note Outcome = "note" // works, and a person should know
	Bad  Outcome = "FAIL"
)

// Finding is one line of Check.
type Finding struct {
	What    string  `json:"what"`
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail"` // for Bad with what to do
}

// checkTimeout bounds the look at each destination, probeTimeout that at the GPU, whose driver may
// have to compile first.
const (
	checkTimeout = 15 * time.Second
	probeTimeout = 90 * time.Second
)

// Check tries everything that the configuration names, without changing
// anything but a file that it writes and removes in state_dir and the hot
// folders, and a worker that it starts and ends. It can be run beside the
// daemon. worker is what New would be given.
func Check(ctx context.Context, cfg *Config, worker WorkerProgram) []Finding {
	var out []Finding
	add := func(what string, o Outcome, format string, args ...any) {
		out = append(out, Finding{what, o, fmt.Sprintf(format, args...)})
	}
	add("configuration", Good, "%s", cfg.Path)
	for _, w := range cfg.Warnings() {
		add("configuration", Note, "%s", w)
	}

	files, err := loadTLS(cfg.DICOM.TLS)
	if err != nil {
		add("TLS files", Bad, "%v", err)
		files = &tlsFiles{}
	} else if now := time.Now(); files.trouble(now) != "" {
		outcome := Note
		if now.After(files.ends) {
			outcome = Bad
		}
		add("TLS files", outcome, "%s", files.trouble(now))
	} else if !files.ends.IsZero() {
		add("TLS files", Good, "%s, until %s", cfg.DICOM.TLS.Cert, files.ends.Format(time.DateOnly))
	}
	port := func(what, address string, answers func() bool) {
		l, err := net.Listen("tcp", address)
		switch {
		case err == nil:
			l.Close()
			add(what, Good, "%s is free", address)
		case answers():
			add(what, Good, "%s is served by a running denoised", address)
		default:
			add(what, Bad, "%v: stop the other program, or choose another port", err)
		}
	}
	port("dicom.listen", cfg.DICOM.Listen, func() bool { return answersDICOM(ctx, cfg, cfg.DICOM.Listen) })
	if cfg.DICOM.TLS.Listen != "" {
		// Nobody but a peer with a certificate could ask; that the plain port is ours must do.
		port("dicom.tls.listen", cfg.DICOM.TLS.Listen, func() bool { return answersDICOM(ctx, cfg, cfg.DICOM.Listen) })
	}
	port("http.listen", cfg.HTTP.Listen, func() bool { return answersHTTP(ctx, cfg.HTTP.Listen) })

	out = append(out, checkState(cfg)...)
	for _, w := range cfg.Watch {
		if err := tryWrite(w.Dir); err != nil {
			add("hot folder "+w.Dir, Bad, "%v: make it, and let the service's account read, write and remove there", err)
		} else {
			add("hot folder "+w.Dir, Good, "can be read and written")
		}
	}

	for i, what := range []string{"model", "radiograph model"} {
		key := cfg.models()[i]
		m, err := models.Open(cfg.modelPath(key.model))
		if err != nil {
			add(what, Bad, "%v", err)
			continue
		}
		v, err := m.Verify()
		if err != nil {
			add(what, Bad, "%v", err)
			continue
		}
		golden := "no golden vectors to try"
		if v.Golden {
			golden = fmt.Sprintf("golden vectors to %.1g", v.GoldenError)
		}
		add(what, Good, "%s %s, %s", m.Name(), m.Version(), golden)
		if m.Kind() != key.kind {
			add(what, Note, "%s was trained for images of kind %s, and gets those of kind %s by %s", m.Name(), m.Kind(),
				key.kind, key.key)
		}
		if m.HasHigh() {
			add("quality high", Good, "%s has the networks for it", m.Name())
		} else {
			add("quality high", Note, "%s has no networks for it: what is asked for in it gets the fast result, "+
				"and the high one once a model with the networks runs", m.Name())
		}
	}

	out = append(out, checkWorker(ctx, cfg, worker))

	seen := loopsSeen(ctx, cfg)
	for _, d := range cfg.Destinations {
		dialer := dicomnet.Dialer{CallingAETitle: cfg.ownAETitle(), CalledAETitle: d.AETitle}
		if d.TLS {
			dialer.TLSConfig = files.client
		}
		peer, took, err := echo(ctx, &dialer, d.Address)
		if err != nil {
			add("destination "+d.Name, Bad, "%v: %s", err, echoFix(err, cfg.ownAETitle()))
			continue
		}
		if slices.Contains(seen, d.Name) {
			add("destination "+d.Name, Bad, "loop: %s at %s sends its images to this daemon, nothing is sent to it: "+
				"correct one of the two configurations", d.AETitle, d.Address)
			continue
		}
		if own := readIdentity(cfg.StateDir); own != "" && isInstallation(peer) && peer.VersionName == own {
			add("destination "+d.Name, Bad, "loop: %s at %s is this daemon itself, nothing is sent to it: give the "+
				"address of an archive", d.AETitle, d.Address)
			continue
		}
		add("destination "+d.Name, Good, "%s at %s answers C-ECHO in %v", d.AETitle, d.Address, took.Round(time.Millisecond))
	}
	return out
}

// echo asks a peer whether it answers, and what it calls itself.
func echo(ctx context.Context, d *dicomnet.Dialer, address string) (peer dicomnet.Implementation, took time.Duration,
	err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	began := time.Now()
	a, err := d.Dial(ctx, address, []dicomnet.PresentationContext{{AbstractSyntax: dicomnet.VerificationSOPClass, TransferSyntaxes: []string{dicomnet.ImplicitVRLittleEndian}}})
	if err != nil {
		return peer, 0, err
	}
	peer = a.Peer()
	status, err := a.Echo(ctx)
	if err != nil {
		_ = a.Abort() // as good as done
		return peer, 0, err
	}
	took = time.Since(began)
	if err := a.Release(ctx); err != nil {
		return peer, 0, err
	}
	if !status.IsSuccess() {
		return peer, 0, fmt.Errorf("C-ECHO to %s: the peer answered %v", address, status)
	}
	return peer, took, nil
}

// echoFix says what to do about a destination that does not answer.
func echoFix(err error, own string) string {
	var certificate *tls.CertificateVerificationError
	var noTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &certificate):
		return "add the authority that signed its certificate to those that this machine trusts (update-ca-certificates or update-ca-trust), write the address as the certificate has it, and restart the service"
	case errors.As(err, &noTLS):
		return "it does not speak TLS on this port: give its TLS port, or write tls: false"
	}
	return "check address, port, firewall, and whether it knows AE title " + own + " at this machine's address"
}

// answersDICOM tells whether a DICOM program answers at our own address. It may
// refuse us: this machine need not be one of the peers.
func answersDICOM(ctx context.Context, cfg *Config, address string) bool {
	_, _, err := echo(ctx, &dicomnet.Dialer{CallingAETitle: cfg.ownAETitle(), CalledAETitle: cfg.ownAETitle()},
		local(address))
	var refused *dicomnet.RejectError
	return err == nil || errors.As(err, &refused)
}

func answersHTTP(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+local(address)+"/healthz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// loopsSeen names the destinations that a running daemon sees to lead back to it.
func loopsSeen(ctx context.Context, cfg *Config) (names []string) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+local(cfg.HTTP.Listen)+"/readyz", nil)
	if err != nil {
		return nil
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil // none runs
	}
	defer resp.Body.Close()
	var s web.Status
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&s); err != nil {
		return nil
	}
	for _, d := range s.Destinations {
		if d.Breaker == "loop" {
			names = append(names, d.Name)
		}
	}
	return names
}

// local is where a listener's address can be reached from this machine.
func local(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("localhost", port)
	}
	return address
}

func checkState(cfg *Config) []Finding {
	what := "state_dir " + cfg.StateDir
	existing := cfg.StateDir
	for existing != filepath.Dir(existing) {
		if _, err := os.Stat(existing); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		existing = filepath.Dir(existing)
	}
	var out []Finding
	if existing != cfg.StateDir {
		out = append(out, Finding{what, Note, "not there yet; it is made at the first start"})
	} else {
		began := time.Now()
		if err := tryWrite(cfg.StateDir); err != nil {
			out = append(out, Finding{what, Bad, fmt.Sprintf("%v: run this check as the service's account, which must own the folder", err)})
		} else {
			out = append(out, Finding{what, Good, fmt.Sprintf("a file is on the disk in %v", time.Since(began).Round(100*time.Microsecond))})
		}
		journal := "new"
		if st, err := os.Stat(filepath.Join(cfg.StateDir, "journal.db")); err == nil {
			journal = fmt.Sprintf("%.1f MiB", float64(st.Size())/(1<<20))
		}
		out = append(out, Finding{"journal", Good, journal})
	}
	used, free, err := diskUse(existing)
	switch {
	case err != nil:
		out = append(out, Finding{"disk", Note, err.Error()})
	case used > cfg.Retention.DiskRefuse:
		out = append(out, Finding{"disk", Bad, fmt.Sprintf("%.0f %% full, images are refused above %.0f %%: make room, or raise retention.disk_refuse", 100*used, 100*cfg.Retention.DiskRefuse)})
	case used > cfg.Retention.DiskWarn:
		out = append(out, Finding{"disk", Note, fmt.Sprintf("%.0f %% full, images are refused above %.0f %%", 100*used, 100*cfg.Retention.DiskRefuse)})
	default:
		out = append(out, Finding{"disk", Good, fmt.Sprintf("%.0f %% full, %.1f GiB free", 100*used, float64(free)/(1<<30))})
	}
	return out
}

// tryWrite writes, syncs and removes a file in a folder. The name is one that
// hot folders leave alone.
func tryWrite(dir string) error {
	f, err := os.CreateTemp(dir, ".denoised-check-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString("check")
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}
