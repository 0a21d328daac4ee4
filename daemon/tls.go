package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"
)

// tlsFiles is what the files of dicom.tls hold, read anew at each reload so
// that a renewed certificate needs no restart.
type tlsFiles struct {
	server *tls.Config // nil: no TLS port
	client *tls.Config // towards destinations with TLS

	ends time.Time // of the certificate; zero without one
}

// endsSoon is how long before its end a certificate is told of.
const endsSoon = 14 * 24 * time.Hour

// trouble says what is wrong, or soon will be, with the certificate's time.
func (f *tlsFiles) trouble(now time.Time) string {
	const fix = "renew it, then systemctl reload denoised"
	switch {
	case f.ends.IsZero() || now.Add(endsSoon).Before(f.ends):
		return ""
	case now.Before(f.ends):
		return fmt.Sprintf("the certificate dicom.tls.cert ends on %s: %s", f.ends.Format(time.DateOnly), fix)
	}
	return fmt.Sprintf("the certificate dicom.tls.cert has ended on %s, scanners refuse it: %s", f.ends.Format(time.DateOnly), fix)
}

// loadTLS reads the files that the configuration names. Destinations are checked
// against the authorities that the machine trusts, by the host of their address.
func loadTLS(c TLSConfig) (*tlsFiles, error) {
	f := &tlsFiles{client: &tls.Config{MinVersion: tls.VersionTLS12}}
	if c.Cert == "" {
		return f, nil
	}
	cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("read dicom.tls.cert and dicom.tls.key: %w", err)
	}
	f.ends = cert.Leaf.NotAfter
	f.client.Certificates = []tls.Certificate{cert}
	if c.Listen == "" {
		return f, nil
	}
	f.server = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	if c.ClientCA != "" {
		pem, err := os.ReadFile(c.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("read dicom.tls.client_ca: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read dicom.tls.client_ca: %s holds no certificate in PEM form", c.ClientCA)
		}
		f.server.ClientCAs, f.server.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	return f, nil
}

// serverTLS is the configuration of the TLS port; each handshake uses the files
// as they were read last.
func (d *Daemon) serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return d.tls.Load().server, nil },
	}
}
