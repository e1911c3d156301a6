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
// the last good pair serves; failed, unless nil, hears why, once for each reason.
func CertificateFiles(cert, key string, failed func(error)) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	f := &certificateFiles{cert: cert, key: key, failed: failed}
	if err := f.load(); err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.current(time.Now()), nil }, nil
}

type certificateFiles struct {
	cert, key string
	failed    func(error)

	mu      sync.Mutex
	pair    *tls.Certificate
	looks   [2]look
	checked time.Time
	fault   string // that failed has heard; empty while the files are good
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
		f.report(f.load()) // the last good pair stays
	}
	return f.pair
}

func (f *certificateFiles) report(err error) {
	if err == nil {
		f.fault = ""
	} else if f.fault != err.Error() {
		f.fault = err.Error()
		if f.failed != nil {
			f.failed(err)
		}
	}
}
