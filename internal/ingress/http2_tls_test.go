package ingress

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	rpc "google.golang.org/grpc/status"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// dialTLS connects by TLS and the given protocols.
func (s *stage) dialTLS(certificate *tls.Certificate, protocols ...string) (*tls.Conn, error) {
	config := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", NextProtos: protocols}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	c, err := tls.Dial("tcp", s.addr, config)
	if err == nil {
		s.t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return c, err
}

func openTLS(t testing.TB, protocols []string, change func(*stage)) *stage {
	t.Helper()
	server, _ := clientCertificate(t)
	return open(t, func(s *stage) {
		s.config.Protocols, s.config.State, s.config.PublicURL = protocols, localState(t), publicURL
		s.config.TLS = &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
		if change != nil {
			change(s)
		}
	})
}

// ALPN says which server a connection gets, and what a client says then is held to it.
func TestHTTP2OverTLS(t *testing.T) {
	s := openTLS(t, []string{"http/1.1", "h2"}, nil)
	for _, c := range []struct {
		offers []string
		want   string
	}{{[]string{"h2", "http/1.1"}, "h2"}, {[]string{"http/1.1", "h2"}, "h2"}, {[]string{"h2"}, "h2"}, {[]string{"http/1.1"}, "http/1.1"}, {nil, ""}} {
		conn, err := s.dialTLS(nil, c.offers...)
		if err != nil || conn.ConnectionState().NegotiatedProtocol != c.want {
			t.Fatalf("%v: negotiated %q, %v", c.offers, conn.ConnectionState().NegotiatedProtocol, err)
		}
		if c.want == "h2" {
			p := newH2Peer(t, conn)
			if r := p.read(p.ask(true, ":method", "GET", ":scheme", "https", ":authority", "api.example.com:443", ":path", "/health"), nil); r.status != "200" {
				t.Errorf("%v: answered %+v", c.offers, r)
			}
			raw := string(s.service.Raw())
			if !strings.Contains(raw, "X-Forwarded-Proto: https\r\n") || !strings.Contains(raw, "\r\nHost: api.example.com\r\n") {
				t.Errorf("forwarded %q", raw)
			}
			// that :scheme says otherwise changes nothing of what the connection is
			s.service.Reset()
			if r := p.read(p.ask(true, pseudo("GET", "/health")...), nil); r.status != "200" || !strings.Contains(string(s.service.Raw()), "X-Forwarded-Proto: https\r\n") {
				t.Errorf("answered %+v, forwarded %q", r, s.service.Raw())
			}
			continue
		}
		p := &peer{Conn: conn, t: t, r: newReader("")}
		p.r.Reset(conn)
		p.send(get("/health"))
		if a := p.read("GET"); a.StatusCode != 200 {
			t.Errorf("%v: answered %d", c.offers, a.StatusCode)
		}
	}
	// h2 was agreed upon, and HTTP/1 comes: it must not pass by the strict reader of HTTP/1; nor the other way round
	before := s.service.Requests()
	conn, err := s.dialTLS(nil, "h2")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{Conn: conn, t: t, r: newReader("")}
	p.r.Reset(conn)
	p.send(get("/health"))
	for {
		b, err := p.r.ReadByte()
		if err != nil {
			break
		}
		if b == 'H' {
			t.Error("HTTP/1 was answered on a connection of HTTP/2")
		}
	}
	conn, err = s.dialTLS(nil, "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	p = &peer{Conn: conn, t: t, r: newReader("")}
	p.r.Reset(conn)
	p.send(http2.ClientPreface)
	if a := p.read("PRI"); a.StatusCode != 400 {
		t.Errorf("HTTP/2 on a connection of HTTP/1 was answered %d", a.StatusCode)
	}
	if s.service.Requests() != before {
		t.Error("the service saw something of it")
	}
	only := openTLS(t, []string{"h2"}, nil)
	for _, offers := range [][]string{{"http/1.1"}, nil} { // of the first, crypto/tls makes the second
		if conn, err := only.dialTLS(nil, offers...); err == nil {
			io.WriteString(conn, get("/health"))
			if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("%v: HTTP/1 was served", offers)
			}
		}
	}
}

// P07 and DPoP: proofs are asked for over HTTP/2 as over HTTP/1, for each request.
func TestHTTP2Proofs(t *testing.T) {
	mine, thumbprint := clientCertificate(t)
	other, _ := clientCertificate(t)
	s := openTLS(t, []string{"h2"}, nil)
	token := s.issuer.Token(map[string]any{"scope": "orders:read", "cnf": map[string]any{"x5t#S256": thumbprint}})
	ask := func(c *tls.Certificate, scheme string, more ...string) h2reply {
		t.Helper()
		conn, err := s.dialTLS(c, "h2")
		if err != nil {
			t.Fatal(err)
		}
		p := newH2Peer(t, conn)
		return p.read(p.ask(true, append([]string{":method", "GET", ":scheme", scheme, ":authority", "api.example.com", ":path", "/orders/1"}, more...)...), nil)
	}
	if r := ask(&mine, "https", "authorization", "Bearer "+token); r.status != "200" {
		t.Errorf("with the certificate: %+v", r)
	}
	if r := ask(&mine, "http", "authorization", "Bearer "+token); r.status != "200" {
		t.Errorf("with the certificate, whatever :scheme says: %+v", r)
	}
	for _, c := range []*tls.Certificate{nil, &other} {
		if r := ask(c, "https", "authorization", "Bearer "+token); r.status != "401" || r.code != "certificate_mismatch" {
			t.Errorf("without it: %+v", r)
		}
	}
	holder := sallytest.NewHolder(t, "ES256")
	bound := s.issuer.Token(map[string]any{"scope": "orders:read", "cnf": map[string]any{"jkt": holder.Thumbprint()}})
	proof := holder.Proof("GET", publicURL+"/orders/1", bound, nil)
	if r := ask(nil, "https", "authorization", "DPoP "+bound, "dpop", proof); r.status != "200" {
		t.Errorf("with a proof: %+v", r)
	}
	if r := ask(nil, "https", "authorization", "DPoP "+bound, "dpop", proof); r.status != "401" || r.code != "invalid_dpop_proof" {
		t.Errorf("with a proof that was used: %+v", r)
	}
	if r := ask(nil, "https", "authorization", "Bearer "+bound); r.status != "401" {
		t.Errorf("without a proof: %+v", r)
	}
}

// gRPC over TLS, as it is used.
func TestGRPCOverTLS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &grpcStage{testService: newTestService(t, l)}
	g.stage = openTLS(t, []string{"h2"}, func(s *stage) {
		s.config.Upstream, s.config.Rules.Policy = mustURL(t, "h2c://"+l.Addr().String()), grpcRoutes(t)
	})
	client, _ := g.client("", grpc.WithAuthority("localhost"), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, ServerName: "localhost"})))
	ctx := metadata.AppendToOutgoingContext(bounded(t), "authorization", "Bearer "+g.token("test"))
	if _, err := client.UnaryCall(ctx, &pb.SimpleRequest{ResponseSize: 100_000, Payload: payload(100_000)}); err != nil {
		t.Error(err)
	}
	if _, err := client.EmptyCall(bounded(t), &pb.Empty{}); rpc.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
}

// Protocols that do not fit the listener do not build.
func TestProtocols(t *testing.T) {
	for _, c := range []struct {
		names []string
		tls   bool
		ok    bool
	}{
		{nil, false, true}, {nil, true, true}, {[]string{"http/1.1", "h2c"}, false, true}, {[]string{"h2"}, true, true},
		{[]string{"h2"}, false, false}, {[]string{"h2c"}, true, false}, {[]string{"h3"}, true, false}, {[]string{""}, false, false},
	} {
		if _, err := newProtocols(c.names, c.tls); (err == nil) != c.ok {
			t.Errorf("%q with TLS %t: %v", c.names, c.tls, err)
		}
	}
}
