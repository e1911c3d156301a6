package bearer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// recorder is a server that remembers the Authorization headers it got.
type recorder struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newRecorder(t *testing.T, answer http.HandlerFunc) *recorder {
	t.Helper()
	s := &recorder{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, strings.Join(r.Header["Authorization"], "|"))
		s.mu.Unlock()
		if answer != nil {
			answer(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// got returns what was seen, and forgets it.
func (s *recorder) got() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return strings.Join(seen, ",")
}

func give(token string) func(context.Context) (Token, error) {
	return func(context.Context) (Token, error) { return NewToken(token), nil }
}

func clientOf(t *testing.T, transport *Transport) *http.Client {
	t.Helper()
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// refusalBy makes a request and returns the code of the refusal, or "".
func refusalBy(t *testing.T, c *http.Client, r *http.Request, token string) string {
	t.Helper()
	response, err := c.Do(r)
	if err == nil {
		response.Body.Close()
		if response.Request.Header.Get("Authorization") != "" && r.Header.Get("Authorization") == "" {
			t.Error("the response shows the request with its token")
		}
		return ""
	}
	return refusalOf(t, err, token).Code
}

func request(t *testing.T, address string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTransportVerifies(t *testing.T) {
	verifier := mustVerifier(t, Options{Now: clock}, allAlgorithms(t))
	s := signers()["ES256"]
	good := goodClaims(testNow)
	for name, tt := range map[string]struct {
		token string
		want  string // code; empty: it is attached
	}{
		"for it":           {s.token(good), ""},
		"another audience": {s.token(with(good, object{"aud": "https://orders.example.com"})), codeAudience},
		"another issuer":   {s.token(with(good, object{"iss": "https://evil.example.com"})), codeIssuer},
		"scope missing":    {s.token(with(good, object{"scope": "orders:readonly"})), codeScope},
		"no scope":         {s.token(with(good, object{"scope": nil})), codeScope},
		"ended":            {s.token(with(good, object{"exp": testNow.Unix() - 60, "iat": testNow.Unix() - 90})), codeExpired},
		"bound":            {s.token(with(good, object{"cnf": object{"jkt": "x"}})), codeBound},
		"another key":      {newSigner("kid-ES256", "ES256").token(good), codeSignature},
		"nothing":          {"", codeMissing},
		"two lines":        {"a\r\nX-Admin: 1", codeMissing},
	} {
		server := newRecorder(t, nil)
		c := clientOf(t, &Transport{Token: give(tt.token), Recipients: map[string]Recipient{server.URL: {Verifier: verifier, Scopes: []string{"orders:read"}}}})
		r := request(t, server.URL+"/a")
		r.Header.Set("X-Other", "kept")
		if got := refusalBy(t, c, r, tt.token); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
		want := ""
		if tt.want == "" {
			want = "Bearer " + tt.token
		}
		if got := server.got(); got != want {
			t.Errorf("%s: the recipient saw %q", name, got)
		}
		if len(r.Header) != 1 {
			t.Errorf("%s: the request was changed: %v", name, r.Header)
		}
	}
}

func TestTransportAttachesToRecipientsOnly(t *testing.T) {
	verifier := mustVerifier(t, Options{Now: clock}, allAlgorithms(t))
	token := signers()["ES256"].token(goodClaims(testNow))
	server, other := newRecorder(t, nil), newRecorder(t, nil)
	base := &http.Transport{}
	transport := &Transport{Base: base, Token: give(token), Recipients: map[string]Recipient{server.URL: {Verifier: verifier}}}
	c := clientOf(t, transport)

	if got := refusalBy(t, c, request(t, other.URL), token); got != "" || other.got() != "" {
		t.Errorf("somebody else: %s, and saw a token", got)
	}
	r := request(t, other.URL)
	r.Header.Set("Authorization", "Basic abc")
	if got := refusalBy(t, c, r, token); got != "" || other.got() != "Basic abc" {
		t.Errorf("somebody else's own credential: %s", got)
	}
	for _, name := range []string{"Authorization", "authorization"} {
		r = request(t, server.URL)
		r.Header[name] = []string{"Basic abc"}
		if got := refusalBy(t, c, r, token); got != codeOccupied || server.got() != "" {
			t.Errorf("%s there already: %s", name, got)
		}
	}
	r = request(t, server.URL)
	r.Host = "admin.internal"
	if got := refusalBy(t, c, r, token); got != codeHost || server.got() != "" {
		t.Errorf("another Host: %s", got)
	}
	r = request(t, server.URL)
	for _, opaque := range []string{"//admin.internal/a", "//admin.internal?a", "http://admin.internal/a", "//user@" + r.URL.Host + "/", "*"} {
		r.URL.Opaque = opaque
		if got := refusalBy(t, c, r, token); got != codeHost || server.got() != "" {
			t.Errorf("another host in the target %s: %s", opaque, got)
		}
	}
	for _, opaque := range []string{"//" + r.URL.Host + "/a%2Fb", "/a%2Fb"} {
		r.URL.Opaque = opaque
		if got := refusalBy(t, c, r, token); got != "" || server.got() != "Bearer "+token {
			t.Errorf("the recipient's own target %s: %s", opaque, got)
		}
	}
	// the recipient's machine under another name, port or spelling is not the recipient
	port := server.URL[strings.LastIndexByte(server.URL, ':'):]
	for _, address := range []string{"http://localhost" + port, "http://127.0.0.2" + port, "http://user:pw@" + strings.TrimPrefix(server.URL, "http://")} {
		if response, err := c.Do(request(t, address)); err == nil { // where nobody listens is none of it
			response.Body.Close()
		}
		if got := server.got(); strings.Contains(got, token) {
			t.Errorf("%s got the token", address)
		}
	}
	closed := false
	r = request(t, server.URL)
	r.Body = closer{strings.NewReader("x"), &closed}
	r.Host = "admin.internal"
	if _, err := transport.RoundTrip(r); err == nil || !closed {
		t.Errorf("a request that is not sent: %v, body closed: %v", err, closed)
	}
}

type closer struct {
	io.Reader
	closed *bool
}

func (c closer) Close() error { *c.closed = true; return nil }

// TestTransportRedirects: a redirect to another host takes no token along, and none to a recipient that somebody else chose.
func TestTransportRedirects(t *testing.T) {
	verifier := mustVerifier(t, Options{Now: clock}, allAlgorithms(t))
	token := signers()["ES256"].token(goodClaims(testNow))
	var target atomic.Value
	bounce := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/go" {
			http.Redirect(w, r, target.Load().(string), http.StatusTemporaryRedirect)
		}
	}
	first, second, stranger := newRecorder(t, bounce), newRecorder(t, bounce), newRecorder(t, bounce)
	c := clientOf(t, &Transport{Token: give(token), Base: &http.Transport{}, Recipients: map[string]Recipient{
		first.URL: {Verifier: verifier}, second.URL: {Verifier: verifier},
	}})
	attached := "Bearer " + token
	for name, tt := range map[string]struct {
		from, to                string
		first, second, stranger string
	}{
		"within":                 {first.URL, first.URL + "/a", attached + "," + attached, "", ""},
		"to a stranger":          {first.URL, stranger.URL, attached, "", ""},
		"to another recipient":   {first.URL, second.URL, attached, "", ""},
		"a stranger's choice":    {stranger.URL, first.URL, "", "", ""},
		"by a name of this host": {first.URL, strings.Replace(stranger.URL, "127.0.0.1", "localhost", 1), attached, "", ""},
	} {
		target.Store(tt.to)
		if got := refusalBy(t, c, request(t, tt.from+"/go"), token); got != "" {
			t.Errorf("%s: %s", name, got)
		}
		if a, b, d := first.got(), second.got(), stranger.got(); a != tt.first || b != tt.second || strings.Trim(d, ",") != "" {
			t.Errorf("%s: first saw %q, second %q, a stranger %q", name, a, b, d)
		}
	}
}

// TestTransportFollowsRotation: the recipient's key is another from one request to the next.
func TestTransportFollowsRotation(t *testing.T) {
	issuer := allAlgorithms(t)
	verifier := mustVerifier(t, Options{Now: clock, Refresh: 20 * time.Millisecond}, issuer)
	server := newRecorder(t, nil)
	old, young := signers()["ES256"], newSigner("young", "ES256")
	var token atomic.Value
	token.Store(old.token(goodClaims(testNow)))
	c := clientOf(t, &Transport{
		Token:      func(context.Context) (Token, error) { return NewToken(token.Load().(string)), nil },
		Recipients: map[string]Recipient{server.URL: {Verifier: verifier}},
	})
	if got := refusalBy(t, c, request(t, server.URL), ""); got != "" {
		t.Fatal(got)
	}
	if err := os.WriteFile(issuer.Keys.File, []byte(jwks(young.jwk())), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old key is withdrawn", func() bool { return refusalBy(t, c, request(t, server.URL), "") == codeKey })
	server.got()
	token.Store(young.token(goodClaims(testNow)))
	if got := refusalBy(t, c, request(t, server.URL), ""); got != "" || server.got() != "Bearer "+token.Load().(string) {
		t.Errorf("the new key: %s", got)
	}
}

// endpoint is an introspection endpoint.
type endpoint struct {
	*httptest.Server
	asked  atomic.Int32
	answer atomic.Value // func(http.ResponseWriter, *http.Request)
}

func newEndpoint(t *testing.T) *endpoint {
	t.Helper()
	e := &endpoint{}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.asked.Add(1)
		id, secret, _ := r.BasicAuth()
		if r.Method != http.MethodPost || id != "shop" || secret != "shops-secret" || r.PostFormValue("token") == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		e.answer.Load().(func(http.ResponseWriter, *http.Request))(w, r)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) says(body string) { e.responds(200, "application/json", body) }

func (e *endpoint) responds(status int, kind, body string) {
	e.answer.Store(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

func (e *endpoint) recipient() Recipient {
	return Recipient{
		Introspection: e.URL + "/introspect", ClientID: "shop", Secret: func() (string, error) { return "shops-secret", nil },
		Audience: []string{testAudience}, Issuer: testIssuer, Scopes: []string{"orders:read"},
	}
}

func TestTransportIntrospects(t *testing.T) {
	const opaque = "opaque-token-of-alice-0123456789"
	good := object{
		"active": true, "iss": testIssuer, "aud": []string{"x", testAudience}, "scope": "a orders:read", "token_type": "Bearer",
		"exp": time.Now().Unix() + 300,
	}
	type answer struct {
		status     int
		kind, body string
		want       string
	}
	said := func(changes object, want string) answer {
		return answer{200, "application/json", mustJSON(with(good, changes)), want}
	}
	for name, tt := range map[string]answer{
		"active":             said(nil, ""),
		"no end":             said(object{"exp": nil}, ""),
		"a far end":          said(object{"exp": time.Now().Unix() + 315_360_000}, ""),
		"one audience":       said(object{"aud": testAudience}, ""),
		"inactive":           said(object{"active": false}, codeInactive),
		"empty":              {200, "application/json", `{}`, codeInactive},
		"active as a string": said(object{"active": "true"}, codeInactive),
		"active as a number": said(object{"active": 1}, codeInactive),
		"active is null":     said(object{"active": null}, codeInactive),
		"active is a list":   said(object{"active": []bool{true}}, codeInactive),
		"active twice":       {200, "application/json", `{"active":false,"active":true}`, codeIntrospection},
		"a list":             {200, "application/json", `[{"active":true}]`, codeIntrospection},
		"ended":              said(object{"exp": time.Now().Unix() - 1}, codeInactive),
		"end as a string":    said(object{"exp": "9999999999"}, codeInactive),
		"end is null":        said(object{"exp": null}, codeInactive),
		"no audience":        said(object{"aud": nil}, codeAbsent),
		"another audience":   said(object{"aud": "https://orders.example.com"}, codeAudience),
		"audience of a kind": said(object{"aud": object{testAudience: true}}, codeClaim),
		"no issuer":          said(object{"iss": nil}, codeIssuer),
		"another issuer":     said(object{"iss": testIssuer + "/"}, codeIssuer),
		"a refresh token":    said(object{"token_use": "refresh_token"}, codeType),
		"a DPoP token":       said(object{"token_type": "DPoP"}, codeType),
		"bound":              said(object{"cnf": object{"x5t#S256": "x"}}, codeBound),
		"scope missing":      said(object{"scope": "orders:readonly"}, codeScope),
		"no scope":           said(object{"scope": nil}, codeScope),
		"a bad scope":        said(object{"scope": "orders:read  x"}, codeScopeForm),
		"401":                {401, "application/json", mustJSON(good), codeIntrospection},
		"403":                {403, "application/json", mustJSON(good), codeIntrospection},
		"404":                {404, "text/html", "not here", codeIntrospection},
		"429":                {429, "application/json", mustJSON(good), codeIntrospection},
		"500":                {500, "application/json", mustJSON(good), codeIntrospection},
		"a redirect":         {302, "application/json", mustJSON(good), codeIntrospection},
		"HTML":               {200, "text/html", mustJSON(good), codeIntrospection},
		"oversize":           {200, "application/json", mustJSON(with(good, object{"x": strings.Repeat("x", 70<<10)})), codeIntrospection},
	} {
		t.Run(name, func(t *testing.T) {
			e, server := newEndpoint(t), newRecorder(t, nil)
			e.responds(tt.status, tt.kind, tt.body)
			c := clientOf(t, &Transport{Token: give(opaque), Recipients: map[string]Recipient{server.URL: e.recipient()}})
			if got := refusalBy(t, c, request(t, server.URL), opaque); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
			if got := server.got(); (got == "Bearer "+opaque) != (tt.want == "") {
				t.Errorf("the recipient saw %q", got)
			}
			if n := e.asked.Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

// TestTransportKeepsAnswersNotVerdicts: an answer that was fetched for one recipient's scope is judged again for each request.
func TestTransportKeepsAnswersNotVerdicts(t *testing.T) {
	e, server := newEndpoint(t), newRecorder(t, nil)
	e.says(mustJSON(object{"active": true, "iss": testIssuer, "aud": testAudience, "scope": "orders:read"}))
	tokens := 0
	transport := &Transport{
		Token: func(context.Context) (Token, error) {
			return NewToken(fmt.Sprintf("opaque-token-of-alice-%d", tokens)), nil
		},
		Recipients: map[string]Recipient{server.URL: e.recipient()},
	}
	c := clientOf(t, transport)
	for range 5 {
		if got := refusalBy(t, c, request(t, server.URL), ""); got != "" {
			t.Fatal(got)
		}
	}
	if n := e.asked.Load(); n != 1 {
		t.Errorf("asked %d times for one token", n)
	}
	e.says(`{"active":false}`)
	tokens++
	for range 5 {
		if got := refusalBy(t, c, request(t, server.URL), ""); got != codeInactive {
			t.Fatal(got)
		}
	}
	if n := e.asked.Load(); n != 2 {
		t.Errorf("asked %d times for two tokens", n)
	}
	// many at once ask once
	tokens++
	e.answer.Store(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(50 * time.Millisecond)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, mustJSON(object{"active": true, "iss": testIssuer, "aud": testAudience, "scope": "orders:read"}))
	})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got := refusalBy(t, c, request(t, server.URL), ""); got != "" {
				t.Error(got)
			}
		})
	}
	wg.Wait()
	if n := e.asked.Load(); n != 3 {
		t.Errorf("asked %d times for three tokens", n)
	}
}

func TestTransportRefusesItsFields(t *testing.T) {
	verifier := mustVerifier(t, Options{Now: clock}, allAlgorithms(t))
	ask := Recipient{Introspection: "https://auth.example.com/introspect", ClientID: "c", Secret: func() (string, error) { return "s", nil }, Audience: []string{"a"}}
	change := func(f func(*Recipient)) Recipient {
		r := ask
		f(&r)
		return r
	}
	for want, transport := range map[string]*Transport{
		"no token for them":            {Recipients: map[string]Recipient{"https://a.example": {Verifier: verifier}}},
		"not on this machine: whoever": {Token: give("x"), Recipients: map[string]Recipient{"http://a.example": {Verifier: verifier}}},
		"no path and no query":         {Token: give("x"), Recipients: map[string]Recipient{"https://a.example/": {Verifier: verifier}}},
		"not an http or https":         {Token: give("x"), Recipients: map[string]Recipient{"a.example": {Verifier: verifier}}},
		"user information":             {Token: give("x"), Recipients: map[string]Recipient{"https://u@a.example": {Verifier: verifier}}},
		"no audience":                  {Token: give("x"), Recipients: map[string]Recipient{"https://a.example": {}}},
		"which of them":                {Token: give("x"), Recipients: map[string]Recipient{"https://a.example": change(func(r *Recipient) { r.Verifier = verifier })}},
		"no client id":                 {Token: give("x"), Recipients: map[string]Recipient{"https://a.example": change(func(r *Recipient) { r.ClientID = "" })}},
		"no client secret":             {Token: give("x"), Recipients: map[string]Recipient{"https://a.example": change(func(r *Recipient) { r.Secret = nil })}},
		"the client's secret":          {Token: give("x"), Recipients: map[string]Recipient{"https://a.example": change(func(r *Recipient) { r.Introspection = "http://auth.example.com/" })}},
	} {
		asked := false
		transport.Base = roundTripper(func(*http.Request) (*http.Response, error) { asked = true; return nil, errors.New("sent") })
		_, err := transport.RoundTrip(request(t, "https://other.example/"))
		if e, ok := errors.AsType[*Error](err); !ok || e.Code != codeTransport || !strings.Contains(err.Error(), want) || asked {
			t.Errorf("%v, want %q", err, want)
		}
	}
	sent := false
	zero := &Transport{Base: roundTripper(func(r *http.Request) (*http.Response, error) {
		sent = r.Header.Get("Authorization") == ""
		return nil, errors.New("sent")
	})}
	if _, err := zero.RoundTrip(request(t, "https://a.example/")); err == nil || err.Error() != "sent" || !sent {
		t.Errorf("without recipients: %v", err)
	}
	broken := &Transport{Base: zero.Base, Recipients: map[string]Recipient{"https://a.example": {Verifier: verifier}},
		Token: func(context.Context) (Token, error) { return Token{}, errors.New("no session") }}
	if _, err := broken.RoundTrip(request(t, "https://a.example/")); err == nil || !strings.Contains(err.Error(), "no session") {
		t.Errorf("without a token: %v", err)
	}
	if _, err := broken.RoundTrip(&http.Request{}); err == nil {
		t.Error("a request without URL was sent")
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// FuzzOrigin: two URLs have one origin only if a dialler connects them to one place in one way.
func FuzzOrigin(f *testing.F) {
	f.Add("https://a.example", "https://A.example:443/x?y")
	f.Add("http://[::1]:80", "http://[::1]/")
	f.Add("https://a.example", "https://a.example.:443")
	f.Fuzz(func(t *testing.T, a, b string) {
		u, err1 := url.Parse(a)
		v, err2 := url.Parse(b)
		if err1 != nil || err2 != nil {
			t.Skip()
		}
		same := u.Scheme == v.Scheme && strings.EqualFold(hostPort(u), hostPort(v))
		if originOf(u) == originOf(v) && !same {
			t.Fatalf("%q and %q are taken for one origin", a, b)
		}
	})
}
