package ingress

import (
	"crypto/ed25519"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// A good request: the service sees the canonical target and our assertion, and nothing of the token.
func TestForward(t *testing.T) {
	s := open(t, nil)
	token := s.token("orders:read")
	a, p := s.ask(get("/%6frders/4%32?x=%2a&y", bearerHeader(token), "X-Request-Id: mine", "Cookie: a=b"))
	if a.StatusCode != 200 || a.body != "ok" {
		t.Fatalf("answered %d %q", a.StatusCode, a.body)
	}
	raw := string(s.service.Raw())
	if !strings.HasPrefix(raw, "GET /orders/42?x=%2a&y HTTP/1.1\r\nHost: api.example.com\r\n") {
		t.Errorf("forwarded %q", raw)
	}
	if strings.Contains(raw, token) || strings.Contains(raw, "mine") {
		t.Errorf("the service saw the token or the client's id: %q", raw)
	}
	seen, err := http.ReadRequest(newReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	id := a.Header.Get("X-Request-Id")
	for name, want := range map[string]string{
		"X-Request-Id": id, "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "api.example.com", "Cookie": "a=b",
	} {
		if got := seen.Header.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	v := identity.Verifier{Issuer: "sallyport", Audience: "orders", Keys: func(kid string) (ed25519.PublicKey, bool) { k, ok := s.keys[kid]; return k, ok }}
	caller, err := v.Verify(seen.Header.Get("Txn-Token"))
	if err != nil || caller.Subject != "alice" || caller.Client != "shop" || caller.Transaction != id || !slices.Equal(caller.Workloads, []string{"orders"}) {
		t.Errorf("the service was told %+v, %v", caller, err)
	}
	if had := seen.Header.Values("Authorization"); had != nil {
		t.Errorf("the service got Authorization: %q", had)
	}
	if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Vary") != "Authorization" {
		t.Errorf("a protected answer may be cached: %v", a.Header)
	}
	d, o := s.settled(1)
	if d[0].Decision != "allow" || d[0].Route != "read-order" || d[0].Path != "/orders/42" || d[0].Subject != "alice" || d[0].ID != id {
		t.Errorf("recorded %+v", d[0])
	}
	if o[0].Status != 200 || o[0].BytesOut != 2 || o[0].Error != "" {
		t.Errorf("outcome %+v", o[0])
	}
	p.send(get("/health")) // the connection goes on
	if a := p.read("GET"); a.StatusCode != 200 {
		t.Errorf("second request: %d", a.StatusCode)
	}
}

// H01 to H05, H07 to H10, H12, H18, H22: paths that parsers read differently, methods, hosts, header names. Nothing of
// them reaches the service, with a token that would be good for all of it.
func TestRequestsThatAreRefused(t *testing.T) {
	s := open(t, nil)
	good := bearerHeader(s.token("orders:read orders:write admin"))
	for _, c := range []struct {
		name   string
		raw    string
		status int
		code   string
	}{
		{"H01 dot segments", get("/public/../admin", good), 400, "path_noncanonical"},
		{"H01 escaped dot segments", get("/public/%2e%2e/admin", good), 400, "path_noncanonical"},
		{"H01 escaped slash behind dots", get("/public/..%2fadmin", good), 400, "path_noncanonical"},
		{"H01 all escaped", get("/public/%2e%2e%2fadmin", good), 400, "path_noncanonical"},
		{"H01 half escaped", get("/public/.%2e/admin", good), 400, "path_noncanonical"},
		{"H02 two slashes", get("//admin", good), 400, "path_noncanonical"},
		{"H02 two slashes inside", get("/public//admin", good), 400, "path_noncanonical"},
		{"H02 dot", get("/./admin", good), 400, "path_noncanonical"},
		{"H02 dot at the end", get("/admin/.", good), 400, "path_noncanonical"},
		{"H03 escaped backslash", get("/public%5c..%5cadmin", good), 400, "path_noncanonical"},
		{"H03 backslash", get(`/public\..\admin`, good), 400, "path_noncanonical"},
		{"H03 escaped twice", get("/public/%252e%252e/admin", good), 400, "path_noncanonical"},
		{"H03 letter escaped twice", get("/%2561dmin", good), 400, "path_noncanonical"},
		{"H05 NUL", get("/admin%00", good), 400, "path_noncanonical"},
		{"H05 line feed", get("/admin%0a", good), 400, "path_noncanonical"},
		{"H05 space at the end", get("/admin%20", good), 400, "path_noncanonical"},
		{"H05 raw byte", get("/admin\x80", good), 400, "path_noncanonical"},
		{"H05 overlong", get("/admin%c0%ae", good), 400, "path_noncanonical"},
		{"fragment", get("/admin#x", good), 400, "path_noncanonical"},
		{"semicolon", get("/orders/1;x=y", good), 400, "path_special"},
		{"semicolon behind what is a route", get("/admin;x=y", good), 404, "no_route"},
		{"H07 another path in the query", get("/admin?path=/public"), 401, "missing_token"},
		{"H07 the health check in the query", get("/admin?x=/health"), 401, "missing_token"},
		{"H08 upper case", get("/ADMIN", good), 404, "no_route"},
		{"H08 trailing slash", get("/admin/", good), 404, "no_route"},
		{"H08 host is no host", "GET /admin HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n", 400, "host_invalid"},
		{"H08 host with an underscore", "GET /admin HTTP/1.1\r\nHost: a_b.example\r\n\r\n", 400, "host_invalid"},
		{"H09 absolute form", "GET http://other.host/admin HTTP/1.1\r\nHost: good\r\n" + good + "\r\n\r\n", 400, "target_form"},
		{"H09 absolute form, same host", "GET http://good/admin HTTP/1.1\r\nHost: good\r\n" + good + "\r\n\r\n", 400, "target_form"},
		{"H10 CONNECT", "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", 400, "target_form"},
		{"H10 CONNECT to a path", request("CONNECT", "/admin", "", good), 405, "method_refused"},
		{"H10 asterisk", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target_form"},
		{"H10 TRACE", request("TRACE", "/admin", "", good), 405, "method_refused"},
		{"H10 unknown method", request("BREW", "/admin", "", good), 405, "method_not_allowed"},
		{"H10 lower case", request("get", "/admin", "", good), 400, "method_invalid"},
		{"H10 OPTIONS is no way around", request("OPTIONS", "/admin", "", good), 405, "method_not_allowed"},
		{"H12 underscore", get("/health", "X_Forwarded_User: root"), 400, "header_name"},
		{"H12 one underscore", get("/health", "X-Forwarded_User: root"), 400, "header_name"},
		{"H12 underscores of another proxy", get("/health", "x_auth_request_email: a@b"), 400, "header_name"},
		{"H12 dot", get("/health", "X.Forwarded.User: root"), 400, "header_name"},
		{"H15 path of an open route", get("/admin", "X-Forwarded-Uri: /health", "X-Forwarded-Path: /health"), 401, "missing_token"},
		{"H15 original URL", get("/admin", "X-Original-URL: /health", "X-Original-URI: /health"), 401, "missing_token"},
		{"H15 rewritten URL", get("/admin", "X-Rewrite-URL: /health"), 401, "missing_token"},
		{"H15 prefix", get("/admin", "X-Forwarded-Prefix: /public"), 401, "missing_token"},
		{"H15 another method", get("/admin", "X-Forwarded-Method: OPTIONS", "X-HTTP-Method-Override: OPTIONS"), 401, "missing_token"},
		{"H15 a local client", get("/admin", "X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1"), 401, "missing_token"},
		{"H18 probe", get("/admin", "User-Agent: kube-probe/1.33"), 401, "missing_token"},
		{"H18 another probe", get("/admin", "User-Agent: GoogleHC/1.0"), 401, "missing_token"},
		{"H19 metrics", get("/metrics", good), 404, "no_route"},
		{"H19 liveness", get("/healthz", good), 404, "no_route"},
		{"H19 pprof", get("/debug/pprof/", good), 404, "no_route"},
		{"H19 keys", get("/.well-known/jwks.json", good), 404, "no_route"},
		{"H20 no leading slash", get("Service/Method", good), 400, "target_form"},
		{"H20 grpc path", request("POST", "/a.B/../c.D", "", good), 400, "path_noncanonical"},
		{"H22 h2c", get("/orders/1", good, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), 400, "upgrade_refused"},
		{"H22 WebSocket where there is none", get("/orders/1", good, "Connection: Upgrade", "Upgrade: websocket"), 400, "upgrade_refused"},
		{"H22 WebSocket where there is none, and a request behind it", get("/orders/1", good, "Connection: Upgrade", "Upgrade: websocket") + get("/health"), 400, "upgrade_refused"},
		{"H22 Upgrade to nothing", get("/health", "Connection: Upgrade", "Upgrade:") + get("/health"), 400, "upgrade_refused"},
		{"H22 two protocols", get("/socket", good, "Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"), 400, "upgrade_refused"},
		{"H22 a list of protocols", get("/socket", good, "Connection: Upgrade", "Upgrade: websocket, h2c"), 400, "upgrade_refused"},
		{"H22 Upgrade that Connection does not name", get("/socket", good, "Upgrade: websocket"), 400, "upgrade_refused"},
		{"H22 HTTP/1.0", "GET /socket HTTP/1.0\r\nHost: a\r\n" + good + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400, "upgrade_refused"},
		{"H22 a body", request("GET", "/socket", "x", good, "Connection: Upgrade", "Upgrade: websocket"), 400, "upgrade_refused"},
		{"H25 token in the query of a protected route", get("/orders/1?access_token=abc"), 401, "missing_token"},
		{"H25 token in the query of a public route", get("/health?access_token=abc"), 400, "token_in_query"},
		{"H25 token in a form of 200 MiB", "POST /orders HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 209715200\r\n\r\naccess_token=abc", 413, "body_too_large"},
		{"H25 token in a form", request("POST", "/orders", "access_token=abc", "Content-Type: application/x-www-form-urlencoded"), 401, "missing_token"},
		{"H25 the same, escaped", get("/health?a=b&access%5Ftoken=abc"), 400, "token_in_query"},
		{"H29 condition that cannot be evaluated", get("/broken/1", good), 403, "policy_error"},
		{"H30 condition that is false", get("/mine/bob", good), 403, "condition_false"},
		{"public until 2020", get("/closed"), 403, "public_expired"},
		{"header that a condition reads, twice", get("/beta", good, "X-Version: 2", "X-Version: 3"), 400, "header_repeated"},
		{"header that a condition reads, kept from the service", get("/beta", good, "X-Version: 2", "Connection: close, x-VERSION"), 400, "header_withheld"},
		{"the same on a second line", get("/beta", good, "X-Version: 2", "Connection: keep-alive", "Connection: ,X-Version,"), 400, "header_withheld"},
		{"header that a condition reads, absent", get("/beta", good), 403, "policy_error"},
		{"escaped slash where it is not allowed", get("/orders/1%2F2", good), 400, "path_special"},
		{"target too long", get("/public/"+strings.Repeat("a", 9<<10), good), 414, "target_too_long"},
		{"H24 header line of 64 KiB", get("/health", "X-Long: "+strings.Repeat("a", 64<<10)), 431, "header_too_large"},
		{"H24 10,000 headers", get("/health", strings.TrimSuffix(strings.Repeat("X: y\r\n", 10000), "\r\n")), 431, "header_too_large"},
		{"H24 token of 1 MiB", get("/orders/1", "Authorization: Bearer "+strings.Repeat("a", 1<<20)), 431, "header_too_large"},
		{"H24 token over 8 KiB", get("/orders/1", "Authorization: Bearer "+strings.Repeat("a", 9<<10)), 401, "token_too_long"},
		{"H26 body over the limit", "POST /upload HTTP/1.1\r\nHost: a\r\n" + good + "\r\nContent-Length: 10485761\r\n\r\n", 413, "body_too_large"},

		{"C01 no token", get("/orders/1"), 401, "missing_token"},
		{"C02 two headers", get("/orders/1", good, good), 400, "multiple_credentials"},
		{"C02 joined", get("/orders/1", good+", Bearer b"), 400, "multiple_credentials"},
		{"C03 header and query", get("/orders/1?access_token=bad", good), 400, "multiple_credentials"},
		{"C03 bad header, good query", get("/orders/1?access_token="+s.token("orders:read"), "Authorization: Bearer a.b.c"), 400, "multiple_credentials"},
		{"C03 header and cookie", get("/orders/1", good, "Cookie: access_token=bad"), 400, "multiple_credentials"},
		{"C03 header and cookie behind more than net/http reads", get("/orders/1", good, "Cookie: "+strings.Repeat(";", 3001)+"access_token=bad"), 400, "multiple_credentials"},
		{"C03 header and cookie that net/http leaves out", get("/orders/1", good, `Cookie: access_token=b\d`), 400, "multiple_credentials"},
		{"C04 two spaces", get("/orders/1", strings.Replace(good, "Bearer ", "Bearer  ", 1)), 400, "malformed_authorization"},
		{"C04 tab", get("/orders/1", strings.Replace(good, "Bearer ", "Bearer\t", 1)), 400, "malformed_authorization"},
		{"C04 no-break space", get("/orders/1", strings.Replace(good, "Bearer ", "Bearer\xc2\xa0", 1)), 400, "malformed_authorization"},
		{"C04 comma", get("/orders/1", strings.Replace(good, "Bearer ", "Bearer,", 1)), 400, "malformed_authorization"},
		{"C04 empty", get("/orders/1", "Authorization: Bearer"), 400, "malformed_authorization"},
		{"C04 something behind", get("/orders/1", good+" x"), 400, "malformed_authorization"},
		{"C05 Basic", get("/orders/1", "Authorization: Basic OmV5SmhiR2Np"), 401, "unsupported_scheme"},
		{"C06 DPoP", get("/orders/1", strings.Replace(good, "Bearer ", "DPoP ", 1)), 401, "invalid_dpop_proof"},
		{"token of nobody", get("/orders/1", "Authorization: Bearer a.b.c"), 401, "malformed_token"},
		{"token for another audience", get("/orders/1", bearerHeader(s.issuer.Token(map[string]any{"aud": "other"}))), 401, "wrong_audience"},
		{"token that is over", get("/orders/1", bearerHeader(s.issuer.Token(map[string]any{"iat": 1700000000, "exp": 1700000300}))), 401, "expired"},
		{"scope that is not there", get("/admin", bearerHeader(s.token("orders:read"))), 403, "insufficient_scope"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			if c.code == "malformed_token" || c.code == "token_too_long" {
				// the name is bearer's to choose
				a, _ := s.ask(c.raw)
				if a.StatusCode != c.status {
					t.Errorf("answered %d %s", a.StatusCode, a.code)
				}
				s.service.Untouched(t)
				return
			}
			a, p := s.denied(c.raw, c.status, c.code)
			upgrade := strings.Contains(c.raw, "\r\nUpgrade:")
			if (c.status == 431 || upgrade || c.code == "body_too_large") && !p.closed() {
				t.Error("the connection is open still")
			}
			if upgrade && !a.Close {
				t.Error("the answer does not say that the connection is closed")
			}
		})
	}
}

// RFC 6750, section 3: a challenge with every 401, an error only if a token was sent, the scope that would do.
func TestChallenges(t *testing.T) {
	s := open(t, nil)
	for _, c := range []struct{ name, raw, want string }{
		{"none", get("/orders/1"), `Bearer realm="sallyport"`},
		{"another scheme", get("/orders/1", "Authorization: Basic YTpi"), `Bearer realm="sallyport"`},
		{"bad token", get("/orders/1", "Authorization: Bearer a.b.c"), `Bearer realm="sallyport", error="invalid_token"`},
		{"two", get("/orders/1", "Authorization: Bearer a", "Authorization: Bearer b"), `Bearer realm="sallyport", error="invalid_request"`},
		{"scope", get("/admin", bearerHeader(s.token("orders:read"))), `Bearer realm="sallyport", error="insufficient_scope", scope="admin"`},
		{"no route", get("/nothing"), ""},
	} {
		a, _ := s.ask(c.raw)
		if got := a.Header.Get("WWW-Authenticate"); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if a.Header.Get("Vary") != "Authorization" {
			t.Errorf("%s: Vary %q", c.name, a.Header.Get("Vary"))
		}
	}
	told := open(t, func(s *stage) {
		s.config.ResourceMetadata = "https://api.example.com/.well-known/oauth-protected-resource"
	})
	if a, _ := told.ask(get("/orders/1")); a.Header.Get("WWW-Authenticate") != `Bearer realm="sallyport", resource_metadata="https://api.example.com/.well-known/oauth-protected-resource"` {
		t.Errorf("with resource metadata: %q", a.Header.Get("WWW-Authenticate"))
	}
	if a, _ := s.ask(request("DELETE", "/orders", "")); a.Header.Get("Allow") != "POST" {
		t.Errorf("Allow: %q", a.Header.Get("Allow"))
	}
}

// smuggling is what the corpus of package wire has that must be refused, and what is too long to be written there. What
// goes wrong after the head has passed is in TestUploadThatBreaks.
func smuggling(t *testing.T) []struct{ name, code, raw string } {
	t.Helper()
	const chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	made := []struct{ name, code, raw string }{
		{"too many fields", "header_too_large", get("/", slices.Repeat([]string{"X: 1"}, 100)...)},
		{"too long", "header_too_large", get("/", "X: "+strings.Repeat("a", 33<<10))},
		{"too long without end", "header_too_large", strings.TrimSuffix(get("/", "X: "+strings.Repeat("a", 33<<10)), "\r\n\r\n")},
		{"chunk line too long", "chunk_malformed", chunked + "5;" + strings.Repeat("a", 300) + "\r\nhello\r\n0\r\n\r\n"},
		{"trailer too long", "trailer_malformed", chunked + "0\r\n" + strings.Repeat("X: aaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 100) + "\r\n"},
	}
	b, err := os.ReadFile("../wire/testdata/requests.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if line == "\n" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "- ") {
			continue
		}
		cells := strings.SplitN(strings.TrimSpace(line), " | ", 3)
		raw, err := strconv.Unquote(cells[len(cells)-1])
		if err != nil || len(cells) != 3 {
			t.Fatalf("corpus: %q: %v", line, err)
		}
		made = append(made, struct{ name, code, raw string }{strings.TrimSpace(cells[1]), strings.TrimSpace(cells[0]), raw})
	}
	if len(made) < 100 {
		t.Fatalf("the corpus has %d requests: its form has changed", len(made))
	}
	return made
}

// H11, and everything of the smuggling corpus, on a real socket: 400 or 431, on record with its reason, zero bytes at the
// service, connection closed, even where the second request of a connection is the bad one.
func TestSmuggling(t *testing.T) {
	s := open(t, nil)
	for _, c := range smuggling(t) {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			before, _ := s.audit.entries(t)
			p := s.dial()
			p.send(c.raw)
			a := p.read("GET")
			if a.StatusCode != status(policy.Code(c.code)) || a.code != c.code {
				t.Errorf("answered %d %s, want %s", a.StatusCode, a.code, c.code)
			}
			if !p.closed() {
				t.Error("the connection is open still")
			}
			d, _ := s.settled(len(before) + 1)
			if last := d[len(d)-1]; last.Code != c.code || last.Decision != "deny" || last.Source != "127.0.0.1" {
				t.Errorf("recorded %+v", last)
			}
			s.service.Untouched(t)
		})
	}
	good, bad := get("/orders/1", bearerHeader(s.token("orders:read"))), "GET /admin HTTP/1.1\nHost: a\n\n"
	before, _ := s.audit.entries(t)
	p := s.dial()
	p.send(good + good + bad + good)
	for range 2 {
		if a := p.read("GET"); a.StatusCode != 200 {
			t.Errorf("a good request before a bad one: %d %s", a.StatusCode, a.code)
		}
	}
	if a := p.read("GET"); a.StatusCode != 400 || a.code != "bare_lf" {
		t.Errorf("the bad one: %d %s", a.StatusCode, a.code)
	}
	if !p.closed() {
		t.Error("the connection is open still")
	}
	s.settled(len(before) + 3)
	if n := s.service.Requests(); n != 2 {
		t.Errorf("%d requests reached the service", n)
	}
}

// H13, H15, H16: what only a gate may say is dropped, also when Connection names it, in every spelling, and as trailers.
func TestHeaderHygiene(t *testing.T) {
	s := open(t, nil)
	var spoofs []string
	for _, o := range ours() {
		name := strings.Replace(o.name, "*", "Spoof", 1)
		if name != "Authorization" {
			spoofs = append(spoofs, strings.ToLower(name)+": spoofed", strings.ToUpper(name)+": spoofed")
		}
	}
	spoofs = append(spoofs, "Trailer: X-Sallyport-Assertion", "Keep-Alive: spoofed", "TE: trailers", "Transfer-Encoding: chunked",
		"X-Secret: spoofed", "Connection: X-Secret, X-Request-Id, X-Forwarded-For, Authorization")
	raw := "POST /upload HTTP/1.1\r\nHost: a\r\nX-Kept: kept\r\n" + bearerHeader(s.token("")) + "\r\n" + strings.Join(spoofs[:40], "\r\n") + "\r\n" +
		strings.Join(spoofs[len(spoofs)-6:], "\r\n") + "\r\n\r\n2\r\nhi\r\n0\r\nX-Sallyport-Assertion: spoofed\r\nX-Forwarded-User: spoofed\r\n\r\n"
	for i := 40; i < len(spoofs)-6; i += 40 {
		end := min(i+40, len(spoofs)-6)
		a, _ := s.ask(get("/events", append([]string{bearerHeader(s.token(""))}, spoofs[i:end]...)...))
		if a.StatusCode != 200 {
			t.Fatalf("answered %d %s", a.StatusCode, a.code)
		}
	}
	if a, _ := s.ask(raw); a.StatusCode != 200 {
		t.Fatalf("answered %d %s", a.StatusCode, a.code)
	}
	seen := string(s.service.Raw())
	if strings.Contains(seen, "spoofed") || strings.Contains(strings.ToLower(seen), "trailer") {
		t.Errorf("the service saw %s", seen)
	}
	for _, want := range []string{"X-Kept: kept", "X-Forwarded-For: 127.0.0.1", "X-Request-Id: ", "Txn-Token: ey"} {
		if !strings.Contains(seen, want) {
			t.Errorf("the service did not see %q: %s", want, seen)
		}
	}
}

// A header that we inject is ours alone: a client that sends it means to be somebody else.
func TestIdentitySpoof(t *testing.T) {
	s := open(t, func(s *stage) { s.config.Rules.AssertHeader = "x-sallyport-identity" })
	token := bearerHeader(s.token("orders:read"))
	s.denied(get("/orders/1", token, "X-Sallyport-Identity: root"), 400, "identity_spoof")
	s.denied(get("/health", "x-sallyport-IDENTITY: root"), 400, "identity_spoof")
	if a, _ := s.ask(get("/orders/1", token, "Connection: X-Sallyport-Identity")); a.StatusCode != 200 {
		t.Fatalf("answered %d %s", a.StatusCode, a.code)
	}
	seen, err := http.ReadRequest(newReader(string(s.service.Raw())))
	if err != nil {
		t.Fatal(err)
	}
	if v := seen.Header.Get("X-Sallyport-Identity"); !strings.HasPrefix(v, "ey") || seen.Header.Get("Authorization") != "" {
		t.Errorf("the service saw %v", seen.Header)
	}
}

// What a public route lets through has no token, no caller and no assertion.
func TestPublicRoute(t *testing.T) {
	s := open(t, func(s *stage) {
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, _ *http.Request) { io.WriteString(w, "HTTP/1.1 204 No Content\r\n\r\n") })
	})
	token := s.token("orders:read")
	for _, raw := range []string{get("/health", bearerHeader(token)), get("/public/a/b", "Authorization: nonsense"), request("HEAD", "/health", "")} {
		if a, _ := s.ask(raw); a.StatusCode != 204 || a.Header.Get("Cache-Control") != "" {
			t.Errorf("answered %d %v", a.StatusCode, a.Header)
		}
	}
	if raw := string(s.service.Raw()); strings.Contains(raw, "Authorization") {
		t.Errorf("the service saw %s", raw)
	}
	d, _ := s.settled(3)
	if d[0].Code != "public" || d[0].Subject != "" {
		t.Errorf("recorded %+v", d[0])
	}
}

// The bytes that were judged are the bytes on the wire, whatever net/url thinks of them.
func TestCanonicalOnTheWire(t *testing.T) {
	s := open(t, nil)
	token := bearerHeader(s.token("orders:read"))
	for target, want := range map[string]string{
		"/orders/a%20b":                   "/orders/a%20b",
		"/orders/%e4%bd%a0":               "/orders/%E4%BD%A0",
		"/orders/%7euser%2d1":             "/orders/~user-1",
		"/orders/a+b!$&'()*,=:@":          "/orders/a+b!$&'()*,=:@",
		"/orders/1?":                      "/orders/1?",
		"/orders/1?a=%zz":                 "",
		"/orders/1?a;b":                   "",
		"/orders/1?a[b]=1&a=2&a=3&=&&x|y": "/orders/1?a[b]=1&a=2&a=3&=&&x|y",
		"/orders/1?u=http://h/..//%2e":    "/orders/1?u=http://h/..//%2e",
		"/files/a%2fb":                    "/files/a%2Fb",
	} {
		s.service.Reset()
		a, _ := s.ask(get(target, token))
		if want == "" {
			if a.StatusCode != 400 || s.service.Bytes() != 0 {
				t.Errorf("%s: answered %d, forwarded %q", target, a.StatusCode, s.service.Raw())
			}
			continue
		}
		line, _, _ := strings.Cut(string(s.service.Raw()), "\r\n")
		if line != "GET "+want+" HTTP/1.1" {
			t.Errorf("%s was forwarded as %q (%d %s)", target, line, a.StatusCode, a.code)
		}
	}
}

// What the service says of itself, of caches and of origins does not pass as it is.
func TestAnswerHygiene(t *testing.T) {
	var extra atomic.Value
	s := open(t, func(s *stage) {
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, _ *http.Request) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\nServer: Express\r\nX-Powered-By: Express\r\nAlt-Svc: h3=\":443\"\r\nAccess-Control-Allow-Origin: *\r\n"+
				"access-control-allow-credentials: true\r\nX-Request-Id: theirs\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"+extra.Load().(string)+"Content-Length: 2\r\n\r\nok")
		})
	})
	for _, c := range []struct{ extra, cache, vary string }{
		{"", "no-store", "Authorization"},
		{"CDN-Cache-Control: max-age=60\r\nEXAMPLE-cache-control: public\r\nSurrogate-Control: max-age=60\r\nX-Accel-Expires: 60\r\nEdge-Control: cache-maxage=60s\r\n", "no-store", "Authorization"},
		{"Cache-Control: public, max-age=60\r\nVary: Accept\r\n", "no-store", "Accept,Authorization"},
		{"Cache-Control: no-cache\r\nCache-Control: max-age=3\r\n", "no-store", "Authorization"},
		{"Cache-Control: private, max-age=60\r\nVary: authorization\r\n", "private, max-age=60", "authorization"},
		{"Cache-Control: no-store, no-transform\r\nVary: *\r\n", "no-store, no-transform", "*"},
	} {
		extra.Store(c.extra)
		a, _ := s.ask(get("/events", bearerHeader(s.token(""))))
		for _, name := range []string{"Server", "X-Powered-By", "Alt-Svc", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "X-Hop",
			"Cdn-Cache-Control", "Example-Cache-Control", "Surrogate-Control", "X-Accel-Expires", "Edge-Control"} {
			if v := a.Header.Values(name); len(v) > 0 {
				t.Errorf("%s: %q", name, v)
			}
		}
		if a.Header.Get("X-Request-Id") == "theirs" || len(a.Header.Values("X-Request-Id")) != 1 {
			t.Errorf("X-Request-Id: %q", a.Header.Values("X-Request-Id"))
		}
		if got := strings.Join(a.Header.Values("Cache-Control"), ","); got != c.cache {
			t.Errorf("%q: Cache-Control %q, want %q", c.extra, got, c.cache)
		}
		if got := strings.Join(a.Header.Values("Vary"), ","); got != c.vary {
			t.Errorf("%q: Vary %q, want %q", c.extra, got, c.vary)
		}
	}
}
