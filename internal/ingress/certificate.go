package ingress

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// recheck is how often, at most, the files of a certificate are looked at.
const recheck = time.Second

// CertificateFiles reads a certificate and its key, PEM, and returns a tls.Config's GetCertificate that reads them again
// when one of them changes. While what they hold does not fit together, as between the writing of one and the other,
// the last good pair serves.
func CertificateFiles(cert, key string) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	f := &certificateFiles{cert: cert, key: key}
	if err := f.load(); err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.current(time.Now()), nil }, nil
}

type certificateFiles struct {
	cert, key string

	mu      sync.Mutex
	pair    *tls.Certificate
	looks   [2]look
	checked time.Time
}

// look is how a file looked when it was read.
type look struct {
	modified time.Time
	size     int64
}

func lookAt(path string) (look, error) {
	st, err := os.Stat(path)
	if err != nil {
		return look{}, err
	}
	return look{st.ModTime(), st.Size()}, nil
}

func (f *certificateFiles) load() error {
	// Looked at before they are read: what changes in between is found the next time.
	var looks [2]look
	for i, path := range []string{f.cert, f.key} {
		var err error
		if looks[i], err = lookAt(path); err != nil {
			return err
		}
	}
	if looks == f.looks {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return err
	}
	f.pair, f.looks = &pair, looks
	return nil
}

func (f *certificateFiles) current(now time.Time) *tls.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.checked) >= recheck {
		f.checked = now
		_ = f.load() // the last good pair stays
	}
	return f.pair
}
