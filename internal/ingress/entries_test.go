package ingress_test

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/ingress"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// One corpus is sent through every way in, each on a real listener, and each must come to the verdict and the code of the reverse
// proxy. What a way in cannot carry is left out by name, with the reason; so is nothing else.

// specimen is one request of the corpus.
type specimen struct {
	name   string
	method string
	target string
	host   string
	fields []string // "Name: value", in order
	token  bool     // it is about the credential alone, so that entry points without routes judge it too
}

// verdict is what an entry point says: a code, "allowed" among them, and the status of the answer.
type verdict struct {
	code   string
	status int
}

// way is one way in.
type way struct {
	name   string
	ask    func(specimen) verdict
	tokens bool              // it judges credentials alone
	not    map[string]string // what it cannot carry, by the specimen's name, and why
	status func(verdict) int // what it makes of the proxy's status; nil: the same
}

// tokenFile is testdata/vectors/tokens.json.
type tokenFile struct {
	Now     time.Time
	Issuers []struct {
		Issuer      string
		Audience    []string
		Algorithms  []string
		TokenTypes  []string `json:"token_types"`
		MaxLifetime int      `json:"max_lifetime_seconds"`
		Leeway      int      `json:"leeway_seconds"`
		Required    []string
		Only        []string
		ScopeClaim  string `json:"scope_claim"`
		JWKS        json.RawMessage
	}
	Cases []struct {
		Name, Token, Code string
		Valid             bool
	}
}

func readVectors(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "testdata", "vectors", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

// corpus is every token and path of the shared vectors, and the rows about credentials, methods, hosts and headers.
func corpus(t *testing.T, tokens tokenFile) []specimen {
	t.Helper()
	var out []specimen
	var good, other string
	for _, c := range tokens.Cases {
		out = append(out, specimen{name: "token: " + c.Name, fields: []string{"Authorization: Bearer " + c.Token}, token: true})
		if c.Valid && good != "" && other == "" {
			other = c.Token
		}
		if c.Valid && good == "" {
			good = c.Token
		}
	}
	bearer := "Authorization: Bearer " + good
	for name, fields := range map[string][]string{
		"C01 none":                   nil,
		"C02 two headers":            {bearer, bearer},
		"C02 two other headers":      {bearer, "Authorization: Bearer " + other},
		"C02 good and bad":           {bearer, "Authorization: Bearer bad"},
		"C02 joined":                 {bearer + ", Bearer " + other},
		"C02 joined with Basic":      {"Authorization: Basic YTpi, Bearer " + good},
		"C03 cookie beside":          {bearer, "Cookie: a=b; access_token=" + good},
		"C03 cookie alone":           {"Cookie: access_token=" + good},
		"C04 lower case":             {"Authorization: bearer " + good},
		"C04 upper case":             {"Authorization: BEARER " + good},
		"C04 two spaces":             {"Authorization: Bearer  " + good},
		"C04 tab":                    {"Authorization: Bearer\t" + good},
		"C04 NBSP":                   {"Authorization: Bearer\u00a0" + good},
		"C04 comma":                  {"Authorization: Bearer," + good},
		"C04 empty":                  {"Authorization: Bearer"},
		"C04 nothing":                {"Authorization:"},
		"C04 token alone":            {"Authorization: " + good},
		"C04 inner space":            {"Authorization: Bearer a b"},
		"C05 Basic":                  {"Authorization: Basic and0OngtLW9hdXRoLWJhc2lj"},
		"C05 Token":                  {"Authorization: Token " + good},
		"C06 DPoP without a proof":   {"Authorization: DPoP " + good},
		"C06 DPoP with some proof":   {"Authorization: DPoP " + good, "DPoP: x.y.z"},
		"lower-case field name":      {"authorization: Bearer " + good},
		"in Proxy-Authorization":     {"Proxy-Authorization: Bearer " + good},
		"in Txn-Token":               {"Txn-Token: " + good},
		"beside a forged assertion":  {bearer, "Txn-Token: x.y.z"},
		"beside identity headers":    {bearer, "X-Forwarded-User: root", "Remote-User: root", "X-Auth-Request-User: root"},
		"empty Authorization beside": {"Authorization:", bearer},
	} {
		out = append(out, specimen{name: name, fields: fields, token: true})
	}
	var paths struct {
		Vectors []struct{ Name, Target string }
	}
	readVectors(t, "paths.json", &paths)
	for _, v := range paths.Vectors {
		out = append(out, specimen{name: "path: " + v.Name, target: v.Target, fields: []string{bearer}})
	}
	for name, target := range map[string]string{
		"H01 a": "/public/../admin", "H01 b": "/public/%2e%2e/admin", "H01 c": "/public/..%2fadmin", "H01 d": "/public/%2e%2e%2fadmin", "H01 e": "/public/.%2e/admin",
		"H02 a": "//admin", "H02 b": "/public//admin", "H02 c": "/./admin", "H02 d": "/admin/.",
		"H03 a": "/public%5c..%5cadmin", "H03 b": `/public\..\admin`, "H03 c": "/public%252e%252e/admin", "H03 d": "/%2561dmin",
		"H05 a": "/admin%00", "H05 b": "/admin%0a", "H05 c": "/admin%20", "H05 d": "/admin/%c0%ae",
		"H07 a": "/admin?path=/public", "H07 b": "/admin?x=/health", "H07 c": "/admin?access_token=x",
		"H08 a": "/ADMIN", "H08 b": "/Admin", "H08 c": "/admin/", "H08 d": "/%61dmin",
		"H09 a": "http://other.example.com/admin", "H09 b": "https://api.example.com/admin", "H10 asterisk": "*",
		"public": "/public/x", "public with a token in the query": "/public/x?access_token=y", "closed": "/closed", "when": "/mine/alice", "when not": "/mine/bob",
		"when an error": "/broken/x", "scope": "/scoped", "special": "/files/a%2Fb", "no special": "/orders/a%2Fb", "semicolon": "/orders/a;b",
	} {
		for _, fields := range [][]string{nil, {bearer}} {
			out = append(out, specimen{name: fmt.Sprintf("%s, %d credentials", name, len(fields)), target: target, fields: fields})
		}
	}
	for _, method := range []string{"HEAD", "POST", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "GE T", "X-HTTP"} {
		out = append(out, specimen{name: "H10 " + method, method: method, target: "/admin", fields: []string{bearer}})
	}
	for _, host := range []string{"ADMIN.Example.COM", "api.example.com.", "api.example.com:443", "api.example.com:80", "api.example.com:8443", "a_b.example.com", "user@api.example.com",
		"0x7f.1", "127.1", "[::1]", "api.example.com/x", "api.example.com,b", "xn--bcher-kva.example", "-a.example.com", "a..b"} {
		out = append(out, specimen{name: "H08 host " + host, host: host, target: "/admin", fields: []string{bearer}})
	}
	for name, fields := range map[string][]string{
		"H12 underscore":             {bearer, "X_Forwarded_User: root"},
		"H12 half an underscore":     {bearer, "X-Forwarded_User: root"},
		"H12 dot":                    {bearer, "X.User: root"},
		"H13 the assertion's header": {bearer, "X-Caller: forged"},
		"H13 capability":             {bearer, "X-Sallyport-Capability: x"},
		"H15 method override":        {bearer, "X-HTTP-Method-Override: DELETE", "X-Rewrite-URL: /public/x"},
		"H18 probe":                  {"User-Agent: kube-probe/1.33"},
		"value with a control":       {bearer, "X-A: a\x01b"},
		"condition's header":         {bearer, "X-Version: 2"},
		"condition's header twice":   {bearer, "X-Version: 2", "X-Version: 3"},
	} {
		out = append(out, specimen{name: name, target: "/beta", fields: fields})
	}
	for i := range out {
		s := &out[i]
		if s.method == "" {
			s.method = "GET"
		}
		if s.target == "" && !strings.HasPrefix(s.name, "path: ") {
			s.target = "/admin"
		}
		if s.host == "" {
			s.host = "api.example.com"
		}
	}
	return out
}

func entryRoutes() []policy.Route {
	public := &policy.Public{Reason: "test", Owner: "tests", Expires: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)}
	return []policy.Route{
		{Name: "any", Match: "GET /{rest...}", AnyCaller: true},
		{Name: "scoped", Match: "GET /scoped", Scopes: []string{"nobody:has"}},
		{Name: "orders", Match: "GET /orders/{id}", AnyCaller: true},
		{Name: "mine", Match: "GET /mine/{id}", When: `claims.sub == path.id`},
		{Name: "broken", Match: "GET /broken/{id}", When: `claims.nothing.at.all == path.id`},
		{Name: "beta", Match: "GET /beta", When: `request.header["x-version"] == "2"`, Headers: []string{"x-version"}},
		{Name: "files", Match: "GET /files/{name}", AnyCaller: true, AllowInPath: []string{"%2F"}},
		{Name: "public", Match: "GET /public/{rest...}", Public: public},
		{Name: "closed", Match: "GET /closed", Public: &policy.Public{Reason: "test", Owner: "tests", Expires: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}},
	}
}

// house is the gate that all ways lead to.
type house struct {
	t        *testing.T
	gateway  *ingress.Gateway
	verifier *bearer.Verifier
	service  *sallytest.Recorder
}

func build(t *testing.T, tokens tokenFile) *house {
	t.Helper()
	h := &house{t: t, service: sallytest.NewRecorder(t)}
	clock := func() time.Time { return tokens.Now }
	var issuers []bearer.Issuer
	for _, i := range tokens.Issuers {
		keys := filepath.Join(t.TempDir(), "jwks.json")
		if err := os.WriteFile(keys, i.JWKS, 0o600); err != nil {
			t.Fatal(err)
		}
		issuers = append(issuers, bearer.Issuer{
			Issuer: i.Issuer, Audience: i.Audience, Algorithms: i.Algorithms, TokenTypes: i.TokenTypes,
			MaxLifetime: time.Duration(i.MaxLifetime) * time.Second, Leeway: time.Duration(i.Leeway) * time.Second,
			Required: i.Required, Only: i.Only, ScopeClaim: i.ScopeClaim, Keys: bearer.Keys{File: keys},
		})
	}
	var err error
	if h.verifier, err = bearer.NewVerifier(issuers, bearer.Options{Now: clock}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.verifier.Close)
	p, err := policy.New(entryRoutes())
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := url.Parse(h.service.URL)
	if err != nil {
		t.Fatal(err)
	}
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := identity.Key{ID: identity.Thumbprint(private.Public().(ed25519.PublicKey)), Private: private}
	log := audit.New(io.Discard, audit.Config{})
	t.Cleanup(func() { log.Close() })
	h.gateway, err = ingress.New(ingress.Config{
		Upstream: upstream, Audit: log, Now: clock,
		Rules: ingress.Rules{
			Policy: p, Verifier: h.verifier, AssertHeader: "X-Caller",
			Assert: &identity.Signer{Issuer: "sallyport", Audience: "orders", Key: func() identity.Key { return key }, Now: clock},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// serve serves on a listener until the test ends.
func (h *house) serve(by func(context.Context, net.Listener) error) string {
	h.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- by(ctx, l) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			h.t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// exchange sends bytes and reads the answer.
func (h *house) exchange(address, raw string) (*http.Response, string) {
	h.t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		h.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, raw); err != nil {
		h.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		h.t.Fatalf("%.80q: %v", raw, err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil && err != io.ErrUnexpectedEOF { // of an answer to HEAD, which has none
		h.t.Fatal(err)
	}
	return res, string(b)
}

// told reads a verdict out of an answer.
func told(res *http.Response, body string) verdict {
	if res.StatusCode < 300 {
		return verdict{"allowed", 200}
	}
	var problem struct{ Code string }
	json.Unmarshal([]byte(body), &problem)
	return verdict{problem.Code, res.StatusCode}
}

func wireForm(s specimen) string {
	return s.method + " " + s.target + " HTTP/1.1\r\nHost: " + s.host + "\r\nConnection: close\r\n" + strings.Join(append(s.fields, ""), "\r\n") + "\r\n"
}

func TestEveryWayInDecidesTheSame(t *testing.T) {
	var tokens tokenFile
	readVectors(t, "tokens.json", &tokens)
	h := build(t, tokens)
	specimens := corpus(t, tokens)
	proxy := h.proxy()
	want, allowed := map[string]verdict{}, 0
	for _, s := range specimens {
		if _, twice := want[s.name]; twice {
			t.Fatalf("%s: twice", s.name)
		}
		v := proxy.ask(s)
		if s.method == "HEAD" && v.status != 200 {
			t.Fatalf("%s: %+v", s.name, v)
		}
		if v.code == "" {
			t.Errorf("%s: answered %d without a code", s.name, v.status)
		}
		if v.code == "allowed" {
			allowed++
		}
		want[s.name] = v
	}
	if n := h.service.Requests(); n != allowed || allowed < 30 || len(want) < 300 || len(want)-allowed < 200 {
		t.Errorf("%d requests, %d allowed, %d reached the service: is the corpus whole?", len(want), allowed, n)
	}
	for _, c := range tokens.Cases { // the vectors say what must be: all ways being wrong in the same way is not right
		if got := want["token: "+c.Name]; c.Valid != (got.code == "allowed") {
			t.Errorf("token: %s: %+v", c.Name, got)
		}
	}
	h.service.Reset()
	for _, w := range []way{
		h.forwardAuth("nginx"), h.forwardAuth("traefik"), h.forwardAuth("caddy"), h.forwardAuth("envoy"),
		h.extAuthz(false), h.extAuthz(true), h.require(), h.interceptor(),
	} {
		t.Run(w.name, func(t *testing.T) {
			asked, left := 0, map[string]bool{}
			for _, s := range specimens {
				if w.tokens && !s.token {
					continue
				}
				if w.not[s.name] != "" {
					left[s.name] = true
					continue
				}
				asked++
				got, must := w.ask(s), want[s.name]
				if w.status != nil {
					must.status = w.status(must)
				}
				if got != must {
					t.Errorf("%s: %+v, and the proxy %+v", s.name, got, must)
				}
			}
			for name := range w.not {
				if !left[name] {
					t.Errorf("%q is left out, and is not in the corpus", name)
				}
			}
			if asked < 150 {
				t.Errorf("only %d were asked", asked)
			}
		})
	}
	if n := h.service.Requests(); n != 0 {
		t.Errorf("%d requests reached the service by a way that only asks", n)
	}
}
