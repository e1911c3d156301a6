package state

import (
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
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// startSingle starts a cluster of one, for what takes no second server to see.
func startSingle(t *testing.T, o *server.Options) *server.Server {
	t.Helper()
	o.Host, o.Port, o.NoSigs, o.NoLog = "127.0.0.1", -1, true, true
	o.JetStream, o.StoreDir, o.JetStreamMaxStore, o.JetStreamMaxMemory = true, t.TempDir(), 2<<30, 1<<20
	n, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	n.Start()
	t.Cleanup(func() {
		n.Shutdown()
		n.WaitForShutdown()
	})
	if !n.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server does not start")
	}
	return n
}

func openSingle(t *testing.T, c Config) *cluster {
	t.Helper()
	c.Replicas = 1
	s, err := openCluster(c, discard(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

// The user that doc/state.md describes can do all that a replica does.
func TestPermissions(t *testing.T) {
	n := startSingle(t, &server.Options{Users: []*server.User{{Username: "sallyport", Password: "x", Permissions: &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: []string{"$KV.sallyport.>", "$KV.sallyport-once.>", "$JS.API.>", "$JS.FC.>"}},
		Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
	}}}})
	url := []string{fmt.Sprintf("nats://sallyport:x@%s", n.Addr())}
	for round := range 2 {
		s := openSingle(t, Config{URL: url})
		ready(t, s)
		if holds(s, "1") != (round == 1) {
			t.Errorf("round %d: held: %v", round, holds(s, "1"))
		}
		if err := revokeToken(s, "1"); err != nil {
			t.Error(err)
		}
		if first, err := s.Once(t.Context(), "dpop", "x", hour()); first != (round == 0) || err != nil {
			t.Error(first, err)
		}
		fresh(t, s)
		closeStore(t, s)
	}
}

// Everything in the buckets has an end on the servers, too.
func TestServersForgetInTime(t *testing.T) {
	s := openSingle(t, Config{URL: []string{startSingle(t, &server.Options{}).ClientURL()}})
	ready(t, s)
	until := time.Now().Add(time.Hour)
	if err := s.Revoke(t.Context(), Revocation{Issuer: issuerA, Until: until}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Once(t.Context(), "dpop", "x", until); err != nil {
		t.Fatal(err)
	}
	use := digest("use", "dpop", "x")
	for bucket, subject := range map[string]string{
		"KV_sallyport":      "$KV.sallyport." + revocationKey(Revocation{Issuer: issuerA, Until: until}),
		"KV_sallyport-once": fmt.Sprintf("$KV.sallyport-once.%x", use[:]),
	} {
		stream, err := s.js.Stream(t.Context(), bucket)
		if err != nil {
			t.Fatal(err)
		}
		m, err := stream.GetLastMsgForSubject(t.Context(), subject)
		if err != nil {
			t.Fatal(err)
		}
		ttl, err := time.ParseDuration(m.Header.Get("Nats-TTL"))
		if err != nil {
			seconds, serr := strconv.Atoi(m.Header.Get("Nats-TTL"))
			if serr != nil {
				t.Fatal(err, serr)
			}
			ttl = time.Duration(seconds) * time.Second
		}
		if over := ttl - time.Hour - grace; over < -time.Minute || over > 2*time.Second {
			t.Errorf("%s: it is kept for %s", bucket, ttl)
		}
	}
}

// With roots of its own, a store speaks to no server that they do not vouch for, and never in the clear.
func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, serial int64) (string, []byte) {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{{127, 0, 0, 1}}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path, der
	}
	ours, der := file("ours", 1)
	others, _ := file("others", 2)
	secure := startSingle(t, &server.Options{TLS: true, TLSTimeout: 5, TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}})
	plain := startSingle(t, &server.Options{})
	at := func(n *server.Server) []string { return []string{"nats://" + n.Addr().String()} }
	good := openSingle(t, Config{URL: at(secure), CA: ours})
	ready(t, good)
	if err := revokeToken(good, "1"); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]*cluster{
		"another's roots": openSingle(t, Config{URL: at(secure), CA: others}),
		"no roots":        openSingle(t, Config{URL: at(secure)}),
		"in the clear":    openSingle(t, Config{URL: at(plain), CA: ours}),
	} {
		time.Sleep(200 * time.Millisecond)
		if bad.Ready() == nil || bad.conn.IsConnected() {
			t.Errorf("%s: it is connected", name)
		}
	}
	for name, c := range map[string]Config{
		"read the roots":      {URL: at(secure), CA: filepath.Join(t.TempDir(), "absent")},
		"no certificate":      {URL: at(secure), CA: os.Args[0]},
		"read the creden":     {URL: at(secure), Credentials: filepath.Join(t.TempDir(), "absent")},
		"the url of a NATS s": {},
	} {
		if _, err := openCluster(c, discard(), nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// While the buckets are gone nothing is acknowledged, however much was known before.
func TestNothingIsAcknowledgedWithoutBuckets(t *testing.T) {
	n := startSingle(t, &server.Options{})
	s := openSingle(t, Config{URL: []string{n.ClientURL()}})
	ready(t, s)
	s.buckets.Store(nil) // as when the feed has found that somebody has deleted them
	if err := revokeToken(s, "1"); err == nil {
		t.Error("a revocation was acknowledged that is nowhere but here")
	}
	if !holds(s, "1") {
		t.Error("it does not hold here")
	}
	if first, err := s.Once(t.Context(), "dpop", "x", hour()); first || err == nil || strings.Contains(err.Error(), "nil") {
		t.Error(first, err)
	}
}
