package ingress

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// recheck is how often, at most, the files of a certificate are looked at.
const recheck = time.Second

// CertificateFiles reads a certificate and its key, PEM, and returns a tls.Config's GetCertificate that reads them again
// when one of them changes. While what they hold does not fit together, as between the writing of one and the other,
// the last good pair serves; failed, unless nil, hears why, once for each reason.
func CertificateFiles(cert, key string, failed func(error)) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	f := &watched[*tls.Certificate]{paths: []string{cert, key}, every: recheck, failed: failed, read: func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		return &pair, err
	}}
	if err := f.load(); err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.current(time.Now()), nil }, nil
}

// ClientAuthorities has a listener require a certificate that the authorities of a file vouch for, PEM. The file is read again when
// it changes, for handshakes from then on; while it is not good the last good authorities stay, and failed, unless nil, hears why. The
// listener does not name the authorities to clients: those that it began with would be the wrong ones after a change.
func ClientAuthorities(c *tls.Config, file string, failed func(error)) error {
	f := &watched[*x509.CertPool]{paths: []string{file}, every: recheck, failed: failed, read: func() (*x509.CertPool, error) { return authorities(file) }}
	if err := f.load(); err != nil {
		return err
	}
	vouch(c, f)
	return nil
}

// authorities reads certificates. One that cannot be read fails them all: with it its clients would be turned away.
func authorities(file string) (*x509.CertPool, error) {
	rest, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, n := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %s in %s, where only certificates belong", block.Type, file)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in %s: %w", n+1, file, err)
		}
		pool.AddCert(c)
		n++
	}
	switch {
	case bytes.Contains(rest, []byte("-----BEGIN")):
		return nil, fmt.Errorf("behind certificate %d, %s holds what is none", n, file)
	case n == 0:
		return nil, fmt.Errorf("no certificate in %s", file)
	}
	return pool, nil
}

// vouch asks for a certificate and judges it by what the file holds at the time. Sessions are not resumed: an authority that was
// taken away would vouch on.
func vouch(c *tls.Config, f *watched[*x509.CertPool]) {
	c.ClientAuth, c.SessionTicketsDisabled = tls.RequireAnyClientCert, true
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("no client certificate")
		}
		between := x509.NewCertPool()
		for _, c := range state.PeerCertificates[1:] {
			between.AddCert(c)
		}
		_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{
			Roots: f.current(time.Now()), Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		return err
	}
}

// watched is what some files hold, read again when one of them changes.
type watched[T any] struct {
	paths  []string
	read   func() (T, error)
	every  time.Duration // between two looks, at least
	failed func(error)

	mu      sync.Mutex
	held    T
	looks   []os.FileInfo // how the files looked when they were read
	checked time.Time
	fault   string // that failed has heard; empty while the files are good
}

// same reports whether a file looks as it did when it was read: the same file, of the same size and age.
func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func (f *watched[T]) load() error {
	// Looked at before they are read: what changes in between is found the next time.
	looks := make([]os.FileInfo, len(f.paths))
	changed := f.looks == nil
	for i, path := range f.paths {
		var err error
		if looks[i], err = os.Stat(path); err != nil {
			return err
		}
		changed = changed || !same(looks[i], f.looks[i])
	}
	if !changed {
		return nil
	}
	held, err := f.read()
	if err != nil {
		return err
	}
	f.held, f.looks = held, looks
	return nil
}

func (f *watched[T]) current(now time.Time) T {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.checked) >= f.every {
		f.checked = now
		f.report(f.load()) // the last good one stays
	}
	return f.held
}

func (f *watched[T]) report(err error) {
	if err == nil {
		f.fault = ""
	} else if f.fault != err.Error() {
		f.fault = err.Error()
		if f.failed != nil {
			f.failed(err)
		}
	}
}
