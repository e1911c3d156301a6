package extauthz

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// book is an audit log in memory.
type book struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *book) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }

type record struct{ Code, Decision, Source, Path, Method, Host, Reason string }

func (b *book) last(t *testing.T) (d record) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.SplitSeq(b.b.String(), "\n") {
		if strings.Contains(line, `"kind":"decision"`) {
			d = record{}
			if err := json.Unmarshal([]byte(line), &d); err != nil {
				t.Fatal(err)
			}
		}
	}
	return d
}

type stage struct {
	t      *testing.T
	client authv3.AuthorizationClient
	conn   *grpc.ClientConn
	issuer *sallytest.Issuer
	audit  *book
	stop   func() error
}

// open serves a gateway's answers where network and address say, to those from.
func open(t *testing.T, network, address string, from ...string) *stage {
	t.Helper()
	s := &stage{t: t, issuer: sallytest.NewIssuer(t), audit: &book{}}
	jwks := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(jwks, s.issuer.JWKS(), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := bearer.NewVerifier([]bearer.Issuer{{Issuer: s.issuer.URL, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{File: jwks}}}, bearer.Options{Bound: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	p, err := policy.New([]policy.Route{
		{Name: "read-order", Match: "GET /orders/{id}", Scopes: []string{"orders:read"}},
		{Name: "upload", Match: "POST /upload", AnyCaller: true},
		{Name: "files", Match: "GET /files/{name}", AnyCaller: true, AllowInPath: []string{"%2F"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := identity.Key{ID: identity.Thumbprint(public), Private: private}
	log := audit.New(s.audit, audit.Config{})
	t.Cleanup(func() { log.Close() })
	g, err := ingress.New(ingress.Config{
		AskOnly: true, Audit: log, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		Rules: ingress.Rules{
			Policy: p, Verifier: v, Assert: &identity.Signer{Issuer: "sallyport", Audience: "orders", Key: func() identity.Key { return key }},
			CORS: &ingress.CORS{Origins: []string{"https://app.example.com"}, Methods: []string{"GET"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Gateway: g, Limits: ingress.Limits{DrainTimeout: 5 * time.Second}}
	for _, f := range from {
		c.From = append(c.From, netip.MustParsePrefix(f))
	}
	server, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	s.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	target := "passthrough:" + l.Addr().String()
	if network == "unix" {
		target = "unix:" + address
	}
	if s.conn, err = grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	s.client = authv3.NewAuthorizationClient(s.conn)
	return s
}

func (s *stage) ask(q *authv3.CheckRequest) *authv3.CheckResponse {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	a, err := s.client.Check(ctx, q)
	if err != nil {
		s.t.Fatalf("Check: %v", err)
	}
	if err := a.ValidateAll(); err != nil {
		s.t.Errorf("Envoy would refuse the answer: %v", err)
	}
	return a
}

func (s *stage) token(claims map[string]any) string { return "Bearer " + s.issuer.Token(claims) }

// question is as Envoy writes one: names in lower case, the pseudo-headers among the fields.
func question(method, path string, fields map[string]string) *authv3.CheckRequest {
	h := map[string]string{":method": method, ":path": path, ":authority": "api.example.com", ":scheme": "https", "x-forwarded-proto": "https", "x-request-id": "envoy's"}
	for name, value := range fields {
		h[name] = value
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "192.0.2.7", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 40000}},
		}}},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "7", Method: method, Path: path, Host: "api.example.com", Scheme: "https", Protocol: "HTTP/1.1", Headers: h,
		}},
	}}
}

// values are what an answer sets, each once and in place of what is there.
func values(t *testing.T, list []*corev3.HeaderValueOption) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, o := range list {
		if _, twice := out[o.Header.Key]; twice || o.Header.Key != strings.ToLower(o.Header.Key) {
			t.Errorf("%s: twice, or not in lower case", o.Header.Key)
		}
		out[o.Header.Key] = o.Header.Value
	}
	return out
}

func TestAllowed(t *testing.T) {
	s := open(t, "tcp", "127.0.0.1:0")
	for name, q := range map[string]*authv3.CheckRequest{
		"headers":    question("GET", "/orders/7?x=1", map[string]string{"authorization": s.token(map[string]any{"scope": "orders:read"}), "x-forwarded-user": "root", "txn-token": "forged"}),
		"header map": mapped(question("GET", "/orders/7?x=1", map[string]string{"authorization": s.token(map[string]any{"scope": "orders:read"}), "x-forwarded-user": "root", "txn-token": "forged"})),
	} {
		a := s.ask(q)
		ok := a.GetOkResponse()
		if a.GetStatus().GetCode() != int32(codes.OK) || ok == nil {
			t.Fatalf("%s: %v", name, a)
		}
		set := values(t, ok.Headers)
		if len(set) != 5 || strings.Count(set["txn-token"], ".") != 2 || set["x-forwarded-for"] != "192.0.2.7" || set["x-forwarded-proto"] != "https" ||
			set["x-forwarded-host"] != "api.example.com" || len(set["x-request-id"]) < 20 {
			t.Errorf("%s: to be set: %v", name, set)
		}
		for _, o := range ok.Headers {
			if o.AppendAction != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
				t.Errorf("%s: %s may be appended", name, o.Header.Key)
			}
		}
		if got := strings.Join(ok.HeadersToRemove, " "); got != "authorization x-forwarded-user" {
			t.Errorf("%s: to be removed: %q", name, got)
		}
		if into := values(t, ok.ResponseHeadersToAdd); into["x-request-id"] != set["x-request-id"] || into["cache-control"] != "no-store" || into["vary"] == "" {
			t.Errorf("%s: into the answer: %v", name, into)
		}
		if d := s.audit.last(t); d.Decision != "allow" || d.Source != "192.0.2.7" || d.Path != "/orders/7" || d.Host != "api.example.com" {
			t.Errorf("%s: recorded %+v", name, d)
		}
	}
}

// mapped has the fields where Envoy writes them with encode_raw_headers.
func mapped(q *authv3.CheckRequest) *authv3.CheckRequest {
	r := q.Attributes.Request.Http
	r.HeaderMap = &corev3.HeaderMap{}
	for name, value := range r.Headers {
		r.HeaderMap.Headers = append(r.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
	}
	r.Headers = nil
	return q
}

// H32, and what else Envoy can say in a way that two readers would read differently.
func TestDenied(t *testing.T) {
	s := open(t, "tcp", "127.0.0.1:0")
	good := s.token(map[string]any{"scope": "orders:read"})
	change := func(f func(a *authv3.AttributeContext)) *authv3.CheckRequest {
		q := question("GET", "/orders/7", map[string]string{"authorization": good})
		f(q.Attributes)
		return q
	}
	type http = *authv3.AttributeContext_HttpRequest
	changeHTTP := func(f func(r http)) *authv3.CheckRequest {
		return change(func(a *authv3.AttributeContext) { f(a.Request.Http) })
	}
	field := func(name, value string) *authv3.CheckRequest {
		return question("GET", "/orders/7", map[string]string{"authorization": good, name: value})
	}
	for name, c := range map[string]struct {
		q      *authv3.CheckRequest
		status int32
		code   string
	}{
		"no token":                {question("GET", "/orders/7", nil), 401, "missing_token"},
		"scope":                   {question("GET", "/orders/7", map[string]string{"authorization": s.token(map[string]any{"scope": "other"})}), 403, "insufficient_scope"},
		"no route":                {question("GET", "/nowhere", map[string]string{"authorization": good}), 404, "no_route"},
		"route in the query":      {question("GET", "/nowhere?path=/orders/7", map[string]string{"authorization": good}), 404, "no_route"},
		"escaped slash":           {question("GET", "/orders/a%2fb", map[string]string{"authorization": good}), 400, "path_special"},
		"dot segment":             {question("GET", "/orders/%2e%2e/admin", map[string]string{"authorization": good}), 400, "path_noncanonical"},
		"two tokens":              {question("GET", "/orders/7", map[string]string{"authorization": good + "," + good}), 400, "multiple_credentials"},
		"underscore":              {field("x_forwarded_user", "root"), 400, "header_name"},
		"line in a value":         {field("x-a", "a\r\nx-b: c"), 400, "header_value"},
		"body over the limit":     {question("POST", "/upload", map[string]string{"authorization": good, "content-length": "99999999"}), 413, "body_too_large"},
		"nothing":                 {&authv3.CheckRequest{}, 403, "inquiry_malformed"},
		"keys that fold":          {field("Authorization", good), 403, "inquiry_malformed"},
		"keys that fold, no twin": {field("X-REQUEST-ID", "b"), 403, "inquiry_malformed"},
		"other path":              {field(":path", "/orders/8"), 403, "inquiry_malformed"},
		"other method":            {field(":method", "POST"), 403, "inquiry_malformed"},
		"other authority":         {field(":authority", "other.example.com"), 403, "inquiry_malformed"},
		"other host":              {field("host", "other.example.com"), 403, "inquiry_malformed"},
		"odd pseudo-header":       {field(":protocol", "websocket"), 403, "inquiry_malformed"},
		"query beside the path":   {changeHTTP(func(r http) { r.Query = "path=/orders/8" }), 403, "inquiry_malformed"},
		"fragment":                {changeHTTP(func(r http) { r.Fragment = "x" }), 403, "inquiry_malformed"},
		"no scheme":               {changeHTTP(func(r http) { r.Scheme = "" }), 403, "inquiry_malformed"},
		"no host":                 {changeHTTP(func(r http) { r.Host = ""; delete(r.Headers, ":authority") }), 400, "host_invalid"},
		"both places": {changeHTTP(func(r http) {
			r.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "authorization", Value: good}}}
		}), 403, "inquiry_malformed"},
		"two lines in the map": {mapTwice(good), 400, "multiple_credentials"},
		"value and raw value": {changeHTTP(func(r http) {
			r.Headers = nil
			r.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "authorization", Value: good, RawValue: []byte(good)}}}
		}), 403, "inquiry_malformed"},
		"no source":      {change(func(a *authv3.AttributeContext) { a.Source = nil }), 403, "inquiry_malformed"},
		"source by name": {change(func(a *authv3.AttributeContext) { a.Source.Address.GetSocketAddress().Address = "localhost" }), 403, "inquiry_malformed"},
		"no certificate": {change(func(a *authv3.AttributeContext) { a.Source.Certificate = "none" }), 403, "inquiry_malformed"},
		"preflight": {question("OPTIONS", "/orders/7", map[string]string{
			"origin": "https://app.example.com", "access-control-request-method": "GET"}), 204, "preflight_answered"},
	} {
		t.Run(name, func(t *testing.T) {
			s := *s
			s.t = t
			a := s.ask(c.q)
			d := a.GetDeniedResponse()
			if d == nil || a.GetStatus().GetCode() == 0 || a.GetOkResponse() != nil {
				t.Fatalf("it is no denial: %v", a)
			}
			if int32(d.Status.Code) != c.status || a.Status.Message != c.code || s.audit.last(t).Code != c.code {
				t.Errorf("%d %s, recorded %+v; want %d %s", d.Status.Code, a.Status.Message, s.audit.last(t), c.status, c.code)
			}
			h := values(t, d.Headers)
			if c.status != 204 && !strings.Contains(d.Body, `"code":"`+c.code+`"`) || h["x-request-id"] == "" || h["cache-control"] != "no-store" {
				t.Errorf("the answer is %v %s", h, d.Body)
			}
			if c.status == 401 && !strings.HasPrefix(h["www-authenticate"], "Bearer ") {
				t.Errorf("the challenge: %v", h)
			}
			if strings.Contains(a.String(), good[7:]) {
				t.Error("the answer holds the token")
			}
		})
	}
}

func mapTwice(good string) *authv3.CheckRequest {
	q := mapped(question("GET", "/orders/7", map[string]string{"authorization": good}))
	m := q.Attributes.Request.Http.HeaderMap
	m.Headers = append(m.Headers, &corev3.HeaderValue{Key: "authorization", Value: good})
	return q
}

// What is allowed in the proxy's path is allowed here: an escaped slash on a route that takes it.
func TestEscapedSlash(t *testing.T) {
	s := open(t, "tcp", "127.0.0.1:0")
	if a := s.ask(question("GET", "/files/a%2fb", map[string]string{"authorization": s.token(nil)})); a.GetOkResponse() == nil {
		t.Errorf("%v", a)
	}
}

// A trusted proxy before Envoy says who the client is, and nobody else does.
func TestClientBehindProxies(t *testing.T) {
	s := open(t, "tcp", "127.0.0.1:0")
	for peer, want := range map[string]string{"192.0.2.7": "192.0.2.7", "198.51.100.9": "203.0.113.5"} {
		q := question("GET", "/orders/7", map[string]string{"x-forwarded-for": "203.0.113.5," + peer})
		q.Attributes.Source.Address.GetSocketAddress().Address = peer
		s.ask(q)
		if d := s.audit.last(t); d.Source != want {
			t.Errorf("by %s: recorded %+v, want %s", peer, d, want)
		}
	}
}

// Over a unix socket whoever reaches it may ask, over the network those in from; any other is denied and on record.
func TestWhoMayAsk(t *testing.T) {
	for name, c := range map[string]struct {
		network string
		from    []string
		allowed bool
	}{
		"socket":         {"unix", nil, true},
		"socket, from":   {"unix", []string{"127.0.0.0/8"}, false},
		"loopback":       {"tcp", nil, true},
		"from":           {"tcp", []string{"127.0.0.1/32"}, true},
		"from elsewhere": {"tcp", []string{"192.0.2.0/24"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			address := "127.0.0.1:0"
			if c.network == "unix" {
				address = filepath.Join(t.TempDir(), "ask.sock")
			}
			s := open(t, c.network, address, c.from...)
			a := s.ask(question("GET", "/orders/7", map[string]string{"authorization": s.token(map[string]any{"scope": "orders:read"})}))
			if (a.GetOkResponse() != nil) != c.allowed {
				t.Errorf("%v", a)
			}
			if d := s.audit.last(t); !c.allowed && (d.Code != "asker_refused" || d.Path != "") {
				t.Errorf("recorded %+v", d)
			}
		})
	}
}

// A client on a unix socket of Envoy's has no address.
func TestClientWithoutAddress(t *testing.T) {
	s := open(t, "tcp", "127.0.0.1:0")
	q := question("GET", "/orders/7", map[string]string{"authorization": s.token(map[string]any{"scope": "orders:read"})})
	q.Attributes.Source.Address = &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "/run/x"}}}
	if a := s.ask(q); a.GetOkResponse() == nil || values(t, a.GetOkResponse().Headers)["x-forwarded-for"] != "" || s.audit.last(t).Source != "" {
		t.Errorf("%v", a)
	}
}

// P07: the certificate is what Envoy says that the client has shown, and no header.
func TestCertificate(t *testing.T) {
	s := open(t, "tcp", "127.0.0.1:0")
	mine, other := certificate(t), certificate(t)
	sum := sha256.Sum256(mine)
	token := s.token(map[string]any{"scope": "orders:read", "cnf": map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}})
	encoded := func(der []byte) string {
		return url.PathEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	for name, c := range map[string]struct {
		shown string
		want  string
	}{
		"the one": {encoded(mine), "allowed"}, "another": {encoded(other), "certificate_mismatch"}, "none": {"", "certificate_mismatch"},
	} {
		q := question("GET", "/orders/7", map[string]string{"authorization": token, "x-forwarded-client-cert": "Cert=" + encoded(mine)})
		q.Attributes.Source.Certificate = c.shown
		s.ask(q)
		if d := s.audit.last(t); d.Code != c.want {
			t.Errorf("%s: recorded %+v", name, d)
		}
	}
	q := question("GET", "/orders/7", map[string]string{"authorization": token})
	q.Attributes.Source.Certificate = encoded(mine) + encoded(other)
	if s.ask(q); s.audit.last(t).Code != "inquiry_malformed" {
		t.Errorf("two certificates: recorded %+v", s.audit.last(t))
	}
}

func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// A question larger than one can be is not read, and is no allow.
func TestTooLarge(t *testing.T) {
	s := open(t, "tcp", "127.0.0.1:0")
	q := question("GET", "/orders/7", map[string]string{"authorization": s.token(map[string]any{"scope": "orders:read"})})
	q.Attributes.Request.Http.RawBody = make([]byte, 1<<20)
	if a, err := s.client.Check(t.Context(), q); grpcstatus.Code(err) != codes.ResourceExhausted || a != nil {
		t.Errorf("%v %v", a, err)
	}
}

// Draining, the connection is closed, and nothing new is answered.
func TestDrain(t *testing.T) {
	s := open(t, "tcp", "127.0.0.1:0")
	s.ask(question("GET", "/orders/7", nil))
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if a, err := s.client.Check(t.Context(), question("GET", "/orders/7", nil)); grpcstatus.Code(err) != codes.Unavailable || a != nil {
		t.Errorf("%v %v", a, err)
	}
}

// FuzzQuestion: whatever the bytes of a question are, it is a fault, or an inquiry whose every word is the question's, with
// names that no other field has and an address that the source has.
func FuzzQuestion(f *testing.F) {
	for _, q := range []*authv3.CheckRequest{question("GET", "/orders/7?x", map[string]string{"authorization": "Bearer x"}), mapped(question("GET", "/", nil)), mapTwice("x"), {}} {
		b, err := proto.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		asked := &authv3.CheckRequest{}
		if proto.Unmarshal(b, asked) != nil {
			return
		}
		q := read(asked)
		if q.Fault != nil {
			if q.Header != nil || q.Target != "" || q.Certificate != nil {
				t.Fatalf("a fault, and yet %+v", q)
			}
			return
		}
		r := asked.Attributes.Request.Http
		if q.Method != r.Method || q.Target != r.Path || q.Host != r.Host || q.TLS != (r.Scheme == "https") {
			t.Fatalf("%+v of %v", q, r)
		}
		fields := len(r.Headers) + len(r.HeaderMap.GetHeaders())
		for name, values := range q.Header {
			fields -= len(values)
			if strings.HasPrefix(name, ":") || name == "Host" {
				t.Fatalf("%q is a field", name)
			}
		}
		if fields < 0 {
			t.Fatal("there are more fields than the question has")
		}
		if _, pipe := asked.Attributes.Source.Address.Address.(*corev3.Address_Pipe); q.Source.IsValid() == pipe {
			t.Fatalf("source %v of %v", q.Source, asked.Attributes.Source)
		}
	})
}
