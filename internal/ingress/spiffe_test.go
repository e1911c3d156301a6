package ingress

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// An authority issues certificates to clients.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = a.make(&x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

func (a *authority) make(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return made, key
}

// svid issues a certificate that is an X.509-SVID but for what change does to it.
func (a *authority) svid(id string, change func(*x509.Certificate)) *tls.Certificate {
	a.t.Helper()
	template := &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			a.t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	if change != nil {
		change(template)
	}
	c, key := a.make(template)
	return &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// replace puts a file in the place of another at once, as a ConfigMap does.
func replace(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// secured is a gate on TLS that requires certificates of an authority in a file.
func secured(t *testing.T, authorities []byte, change func(*stage)) (s *stage, file string, pool *x509.CertPool, faults *atomic.Int64) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile, file := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "clients.pem")
	pool = writePair(t, "gate", certFile, keyFile)
	replace(t, file, authorities)
	faults = &atomic.Int64{}
	s = open(t, func(s *stage) {
		get, err := CertificateFiles(certFile, keyFile, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.config.TLS = &tls.Config{GetCertificate: get, MinVersion: tls.VersionTLS12}
		if err := ClientAuthorities(s.config.TLS, file, func(error) { faults.Add(1) }); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(s)
		}
	})
	return s, file, pool, faults
}

// askTLS asks on a new connection, and reports whether the gate took the certificate.
func (s *stage) askTLS(config *tls.Config, c *tls.Certificate) bool {
	s.t.Helper()
	config = config.Clone()
	if c != nil {
		config.Certificates = []tls.Certificate{*c}
	}
	conn, err := tls.Dial("tcp", s.addr, config)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write([]byte(get("/health"))); err != nil {
		return false
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && strings.HasPrefix(line, "HTTP/1.1 200 ")
}

// Only an X.509-SVID of the trust domain connects, and its ID is on record.
func TestSPIFFE(t *testing.T) {
	const cart, other = "spiffe://example.org/ns/shop/sa/cart", "spiffe://example.org/ns/shop/sa/other"
	a, stranger := newAuthority(t), newAuthority(t)
	for _, ids := range [][]string{nil, {cart}} {
		s, _, pool, _ := secured(t, a.pem(), func(s *stage) { s.config.SPIFFE = &SPIFFE{TrustDomain: "example.org", IDs: ids} })
		cache := tls.NewLRUClientSessionCache(8)
		config := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", ClientSessionCache: cache}
		second := func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }
		for name, c := range map[string]struct {
			cert *tls.Certificate
			in   bool
		}{
			"the workload":         {a.svid(cart, nil), true},
			"with a DNS name":      {a.svid(cart, func(c *x509.Certificate) { c.DNSNames = []string{"cart"} }), true},
			"another workload":     {a.svid(other, nil), ids == nil},
			"none":                 {nil, false},
			"another authority's":  {stranger.svid(cart, nil), false},
			"another trust domain": {a.svid("spiffe://example.com/ns/shop/sa/cart", nil), false},
			"a longer domain":      {a.svid("spiffe://example.org.evil.com/ns/shop/sa/cart", nil), false},
			"no path":              {a.svid("spiffe://example.org", nil), false},
			"https":                {a.svid("https://example.org/ns/shop/sa/cart", nil), false},
			"a query":              {a.svid(cart+"?a=b", nil), false},
			"dots":                 {a.svid("spiffe://example.org/ns/shop/sa/x/../cart", nil), false},
			"an escape":            {a.svid("spiffe://example.org/ns/shop/sa/%63art", nil), false},
			"two URIs":             {a.svid(cart, second), false},
			"no URI":               {a.svid("", func(c *x509.Certificate) { c.DNSNames = []string{"cart"} }), false},
			"an authority":         {a.svid(cart, func(c *x509.Certificate) { c.IsCA = true }), false},
			"no digitalSignature":  {a.svid(cart, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), false},
			"may sign":             {a.svid(cart, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }), false},
			"for servers": {a.svid(cart, func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
			}), false},
		} {
			for range 2 { // the second time with what the first left to resume
				if in := s.askTLS(config, c.cert); in != c.in {
					t.Errorf("%s, ids %v: let in %t, want %t", name, ids, in, c.in)
				}
			}
		}
		eventually(t, "all is on record", func() bool { return strings.Contains(s.audit.String(), `"spiffe_id":"`+cart+`"`) })
	}
}

func TestCheckSPIFFEID(t *testing.T) {
	for _, id := range []string{"spiffe://a/b", "spiffe://example.org/ns/shop/sa/cart", "spiffe://1.2_3-4/A.b-C_d/..."} {
		if err := CheckSPIFFEID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{"", "spiffe://", "spiffe:///a", "spiffe://a", "spiffe://a/", "spiffe://a//b", "spiffe://a/b/", "spiffe://a/./b", "spiffe://a/..", "spiffe://A/b",
		"spiffe://a:1/b", "spiffe://u@a/b", "spiffe://a/b?", "spiffe://a/b#", "spiffe://a/ü", "spiffe://a/%61", "SPIFFE://a/b", "https://a/b", "spiffe://a/" + strings.Repeat("b", 2048), "spiffe://" + strings.Repeat("a", 256) + "/b"} {
		if CheckSPIFFEID(id) == nil {
			t.Errorf("%q is a SPIFFE ID", id)
		}
	}
}

// The authorities of clients change without a restart, in both directions; a file that is not good changes nothing.
func TestClientAuthorities(t *testing.T) {
	a, b := newAuthority(t), newAuthority(t)
	s, file, pool, faults := secured(t, a.pem(), nil)
	config := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	ofA, ofB := a.svid("", nil), b.svid("", nil)
	if !s.askTLS(config, ofA) || s.askTLS(config, ofB) || s.askTLS(config, nil) {
		t.Error("at first not A alone is let in")
	}
	for _, broken := range [][]byte{[]byte("nothing"), b.pem()[:200], append(append([]byte{}, b.pem()...), a.pem()[:100]...), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"})} {
		before := faults.Load()
		replace(t, file, broken)
		eventually(t, "the operator is told", func() bool {
			if !s.askTLS(config, ofA) || s.askTLS(config, ofB) {
				t.Fatalf("%.40q: not A alone is let in", broken)
			}
			return faults.Load() > before
		})
	}
	replace(t, file, append(a.pem(), b.pem()...))
	eventually(t, "both are let in", func() bool { return s.askTLS(config, ofA) && s.askTLS(config, ofB) })
	replace(t, file, b.pem())
	eventually(t, "A is out", func() bool { return !s.askTLS(config, ofA) && s.askTLS(config, ofB) })
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if !s.askTLS(config, ofB) {
		t.Error("without the file B is out")
	}
}

// A hundred changes of everything under load: no handshake fails.
func TestCertificateReloads(t *testing.T) {
	dir := t.TempDir()
	gate, clients := newAuthority(t), newAuthority(t)
	certFile, keyFile, authorityFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "clients.pem")
	loads := atomic.Int64{}
	write := func() {
		c, key := gate.make(&x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, DNSNames: []string{"gate"}})
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		replace(t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
		time.Sleep(time.Millisecond) // in between the two do not fit
		replace(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
		replace(t, authorityFile, append(newAuthority(t).pem(), clients.pem()...))
	}
	write()
	pair := &watched[*tls.Certificate]{paths: []string{certFile, keyFile}, every: time.Millisecond, read: func() (*tls.Certificate, error) {
		loads.Add(1)
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		return &pair, err
	}}
	pool := &watched[*x509.CertPool]{paths: []string{authorityFile}, every: time.Millisecond, read: func() (*x509.CertPool, error) {
		loads.Add(1)
		return authorities(authorityFile)
	}}
	if err := pair.load(); err != nil {
		t.Fatal(err)
	}
	if err := pool.load(); err != nil {
		t.Fatal(err)
	}
	s := open(t, func(s *stage) {
		s.config.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.current(time.Now()), nil }}
		vouch(s.config.TLS, pool)
	})
	roots := x509.NewCertPool()
	roots.AddCert(gate.cert)
	config, client := &tls.Config{RootCAs: roots, ServerName: "gate"}, clients.svid("", nil)
	stop := make(chan struct{})
	var handshakes, failures atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				handshakes.Add(1)
				if !s.askTLS(config, client) {
					failures.Add(1)
				}
			}
		})
	}
	for range 100 {
		before := loads.Load()
		write()
		eventually(t, "the files are read again", func() bool { return loads.Load() >= before+2 })
	}
	close(stop)
	wg.Wait()
	if failures.Load() > 0 || handshakes.Load() < 100 {
		t.Errorf("%d of %d handshakes failed", failures.Load(), handshakes.Load())
	}
}
