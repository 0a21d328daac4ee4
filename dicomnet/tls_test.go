package dicomnet_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
	. "github.com/diffdenoise/denoised/dicomnet/dicomnettest"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.key = a.newKey()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

// issue makes a certificate for a host name, valid until the given time.
func (a *authority) issue(name string, until time.Time) tls.Certificate {
	key := a.newKey()
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// Case 48: with TLS, only the right peers get in, and the others cost nothing.
func TestTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	good := time.Now().Add(time.Hour)
	s := start(t, func(srv *dicomnet.Server, _ *Recorder) {
		srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ours.issue("scp", good)},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool()}
		srv.Timeouts.Request = 500 * time.Millisecond
	})
	client := ours.issue("scanner", good)
	for _, c := range []struct {
		name string
		cfg  *tls.Config
		ok   bool
	}{
		{"good, TLS 1.3", &tls.Config{RootCAs: ours.pool(), ServerName: "scp", Certificates: []tls.Certificate{client}}, true},
		{"good, TLS 1.2", &tls.Config{RootCAs: ours.pool(), ServerName: "scp", Certificates: []tls.Certificate{client}, MaxVersion: tls.VersionTLS12}, true},
		{"TLS 1.1", &tls.Config{RootCAs: ours.pool(), ServerName: "scp", Certificates: []tls.Certificate{client}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
		{"no client certificate", &tls.Config{RootCAs: ours.pool(), ServerName: "scp"}, false},
		{"expired client certificate", &tls.Config{RootCAs: ours.pool(), ServerName: "scp", Certificates: []tls.Certificate{ours.issue("scanner", time.Now().Add(-time.Hour))}}, false},
		{"client certificate of another authority", &tls.Config{RootCAs: ours.pool(), ServerName: "scp", Certificates: []tls.Certificate{theirs.issue("scanner", good)}}, false},
		{"server of another authority", &tls.Config{RootCAs: theirs.pool(), ServerName: "scp", Certificates: []tls.Certificate{client}}, false},
		{"server of another name", &tls.Config{RootCAs: ours.pool(), ServerName: "pacs", Certificates: []tls.Certificate{client}}, false},
		{"no TLS", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &dicomnet.Dialer{CalledAETitle: "SCP", TLSConfig: c.cfg}
			a, err := d.Dial(t.Context(), s.addr, mrContext)
			if (err == nil) != c.ok {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				return
			}
			if status, err := store(t, a, Pattern(1_000_000)); err != nil || status != 0 {
				t.Errorf("%v, %v", status, err)
			}
			if err := a.Release(t.Context()); err != nil {
				t.Error(err)
			}
			if rq := s.rec.Requests(); rq[len(rq)-1].TLS.PeerCertificates[0].Subject.CommonName != "scanner" {
				t.Error("the handler does not see the certificate")
			}
		})
	}
	t.Run("silent connections do not hold up others", func(t *testing.T) {
		var silent []*Peer
		for range 20 {
			silent = append(silent, s.peer())
		}
		shaken, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: ours.pool(), ServerName: "scp", Certificates: []tls.Certificate{client}})
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, NewPeer(t, shaken))
		var d net.Dialer
		plain, err := d.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		p := NewPeer(t, plain)
		p.Send(Request(mr)) // plain DICOM on the TLS port: an alert, not a PDU
		if got, err := p.Read(); err == nil {
			t.Errorf("got %v on the TLS port", got.Type())
		}
		a, err := (&dicomnet.Dialer{CalledAETitle: "SCP", TLSConfig: &tls.Config{RootCAs: ours.pool(), ServerName: "scp", Certificates: []tls.Certificate{client}}}).Dial(t.Context(), s.addr, mrContext)
		if err != nil {
			t.Fatal(err)
		}
		a.Abort()
		for _, p := range silent {
			p.ExpectClosed()
		}
	})
}
