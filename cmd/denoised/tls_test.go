package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
)

// TestTLSDestination: an archive with TLS gets images if and only if this
// machine trusts its certificate; if not, check and log say so. What the machine
// trusts is given through SSL_CERT_FILE, which stands for its own list.
func TestTLSDestination(t *testing.T) {
	pair, authority := selfSigned(t)
	archive := startSinkTLS(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	p := newProgram(t, archive.addr)
	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("}]"), []byte(", tls: true}]"), 1)
	if err := os.WriteFile(p.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	check := func() (string, error) {
		cmd := exec.Command(self, "check", "--config", p.config)
		cmd.Env = append(os.Environ(), asProgram+"=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	objects, data := scannerObjects(t, 2)
	t.Setenv("SSL_CERT_DIR", t.TempDir())

	_, other := selfSigned(t)
	t.Setenv("SSL_CERT_FILE", other)
	if out, err := check(); err == nil || !strings.Contains(out, "x509: ") || !strings.Contains(out, "update-ca-certificates") {
		t.Errorf("check of a certificate that nobody vouches for: %v\n%s", err, out)
	}
	p.start()
	p.ready()
	err = push(t.Context(), &dicomnet.Dialer{CalledAETitle: "DENOISE"}, p.dicom, objects, nil, func(o *scuObject, s dicomnet.Status, err error) {
		if err != nil || !s.IsSuccess() {
			t.Errorf("%s: %v, %v", o.uid, s, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the destination is shown as failing", func() error {
		var out, errOut strings.Builder
		if code := run(t.Context(), []string{"status", "--config", p.config}, &out, &errOut); code != exitDone || !strings.Contains(out.String(), "NOT REACHABLE") {
			return fmt.Errorf("exit code %d: %s%s", code, out.String(), errOut.String())
		}
		return nil
	})
	p.signal(os.Interrupt)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, p.log)
	}
	if !strings.Contains(p.log.String(), "x509: ") {
		t.Errorf("the log does not say why:\n%s", p.log)
	}
	if n := archive.count(); n != 0 {
		t.Fatalf("%d objects went to an archive that is not trusted", n)
	}

	// Trusted, after a restart: everything that waited is delivered.
	t.Setenv("SSL_CERT_FILE", authority)
	if out, err := check(); err != nil {
		t.Errorf("check of a trusted certificate: %v\n%s", err, out)
	}
	p.start()
	within(t, "originals and derived images are in the archive", func() error {
		if n := archive.count(); n != 2*len(objects) {
			return fmt.Errorf("%d objects", n)
		}
		return nil
	})
	archive.mu.Lock()
	defer archive.mu.Unlock()
	for uid, want := range data {
		if got := archive.copies[uid]; len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("%s: %d copies, or another one than sent", uid, len(got))
		}
	}
}

// count is how many different objects there are.
func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.copies)
}

// selfSigned makes a certificate for 127.0.0.1 and a PEM file to trust it by.
func selfSigned(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "archive"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "authority.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, path
}
