package bearer

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// authServer is an authorization server on loopback: its metadata, its key set,
// and how often each was asked for.
type authServer struct {
	*httptest.Server
	mu       sync.Mutex
	set      string
	header   http.Header
	status   int
	metadata func(path string) (int, string)
	asked    map[string]int
	instead  http.HandlerFunc // answers for the key set when it is there
}

func newAuthServer(t testing.TB, keys ...object) *authServer {
	a := &authServer{set: jwks(keys...), header: http.Header{}, status: http.StatusOK, asked: map[string]int{}}
	a.Server = httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(a.Close)
	return a
}

func (a *authServer) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.asked[r.URL.Path]++
	set, status, metadata, instead := a.set, a.status, a.metadata, a.instead
	for name, values := range a.header {
		w.Header()[name] = values
	}
	a.mu.Unlock()
	switch {
	case r.URL.Path == "/jwks" && instead != nil:
		instead(w, r)
	case r.URL.Path == "/jwks":
		w.WriteHeader(status)
		io.WriteString(w, set)
	case metadata != nil:
		status, text := metadata(r.URL.Path)
		w.WriteHeader(status)
		io.WriteString(w, text)
	default:
		http.NotFound(w, r)
	}
}

// change does something to the server between two requests.
func (a *authServer) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *authServer) publish(keys ...object) { a.change(func() { a.set = jwks(keys...) }) }

func (a *authServer) count(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked[path]
}

// issuer is this server in a configuration, with its key set's address.
func (a *authServer) issuer() Issuer {
	return Issuer{Issuer: a.URL, Audience: []string{testAudience}, Algorithms: supported(), Keys: Keys{URI: a.URL + "/jwks"}}
}

// token is one of this server's, good at the time of the real clock.
func (a *authServer) token(s signer) string {
	return s.token(with(goodClaims(time.Now()), object{"iss": a.URL}))
}

// quick is the pace of tests: everything that is due is due soon.
var quick = pace{
	refresh: 10 * time.Millisecond, maxStale: time.Hour, missEvery: time.Hour, missBurst: 1,
	retryFirst: 5 * time.Millisecond, retryLast: 20 * time.Millisecond,
}

// seldom refreshes so late that a test sees only what misses cause.
var seldom = pace{
	refresh: time.Hour, maxStale: time.Hour, missEvery: 5 * time.Millisecond, missBurst: 1,
	retryFirst: 5 * time.Millisecond, retryLast: 20 * time.Millisecond,
}

func mustVerifierAt(t testing.TB, p pace, o Options, issuers ...Issuer) *Verifier {
	t.Helper()
	v, err := newVerifier(issuers, o, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func ready(t testing.TB, v *Verifier) {
	t.Helper()
	eventually(t, "ready", func() bool { return v.Ready() == nil })
}

// lockedBuffer is a log that a test may read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestUnavailableUntilTheFirstSet(t *testing.T) {
	s := newSigner("k1", "ES256")
	server := newAuthServer(t, s.jwk())
	server.change(func() { server.status = http.StatusInternalServerError })
	v := mustVerifierAt(t, quick, Options{}, server.issuer())
	eventually(t, "two failures", func() bool { return server.count("/jwks") >= 2 })
	_, err := v.Verify(t.Context(), NewToken(server.token(s)))
	if refusal := refusalOf(t, err, server.token(s)); refusal.Code != codeUnavailable || refusal.Status() != http.StatusServiceUnavailable {
		t.Errorf("got %v", err)
	}
	if err := v.Ready(); err == nil || !strings.Contains(err.Error(), "status 500") || !strings.Contains(err.Error(), server.URL) {
		t.Errorf("not ready, but it does not say who and why: %v", err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+server.token(s))
	Require(v)(nil).ServeHTTP(w, r)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || w.Header().Get("WWW-Authenticate") != "" {
		t.Errorf("answered %d, %v", w.Code, w.Header())
	}
	server.change(func() { server.status = http.StatusOK })
	ready(t, v)
	if code := codeOf(t, v, server.token(s)); code != "" {
		t.Errorf("after recovery: %s", code)
	}
}

func TestRotationIsFoundByAMiss(t *testing.T) {
	old, next := newSigner("k1", "ES256"), newSigner("k2", "ES256")
	server := newAuthServer(t, old.jwk())
	v := mustVerifierAt(t, seldom, Options{}, server.issuer())
	ready(t, v)
	server.publish(old.jwk(), next.jwk())
	if code := codeOf(t, v, server.token(next)); code != codeKey {
		t.Errorf("at once: got %q, for no request waits", code)
	}
	eventually(t, "the new key", func() bool { return codeOf(t, v, server.token(next)) == "" })
	if code := codeOf(t, v, server.token(old)); code != "" {
		t.Errorf("the old key, still published: %s", code)
	}
}

func TestWithdrawalEndsAKey(t *testing.T) {
	gone, stays := newSigner("k1", "ES256"), newSigner("k2", "ES256")
	server := newAuthServer(t, gone.jwk(), stays.jwk())
	var log lockedBuffer
	v := mustVerifierAt(t, quick, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, server.issuer())
	ready(t, v)
	if code := codeOf(t, v, server.token(gone)); code != "" {
		t.Fatal(code)
	}
	server.publish(stays.jwk())
	// without any traffic: only the timer asks
	eventually(t, "a set without the key", func() bool { return len(v.authorities[server.URL].keys.current.Load().keys) == 1 })
	if code := codeOf(t, v, server.token(gone)); code != codeKey {
		t.Errorf("the withdrawn key: %q", code)
	}
	if code := codeOf(t, v, server.token(stays)); code != "" {
		t.Error(code)
	}
	eventually(t, "a word about it", func() bool {
		return strings.Contains(log.String(), "key set replaced") && strings.Contains(log.String(), "k1")
	})
}

func TestSameKidNewKeyReplaces(t *testing.T) {
	old, next := newSigner("k", "ES256"), newSigner("k", "EdDSA")
	server := newAuthServer(t, old.jwk())
	v := mustVerifierAt(t, quick, Options{}, server.issuer())
	ready(t, v)
	server.publish(next.jwk())
	eventually(t, "the new key", func() bool { return codeOf(t, v, server.token(next)) == "" })
	if code := codeOf(t, v, server.token(old)); code != codeAlgorithm {
		t.Errorf("the old key: %q", code)
	}
}

// What a server answers instead of a key set is never a rotation.
func TestBadAnswersLeaveTheKeys(t *testing.T) {
	s := newSigner("k1", "ES256")
	var sent atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Error("a redirect was followed")
		io.WriteString(w, jwks(s.jwk()))
	}))
	defer elsewhere.Close()
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := z.Write(bytes.Repeat([]byte(" "), 50<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		says   string
	}{
		{"500", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500); io.WriteString(w, jwks(s.jwk())) }, "status 500"},
		{"206", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(206); io.WriteString(w, jwks(s.jwk())) }, "status 206"},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, "status 302"},
		{"a redirect to itself", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, "status 307"},
		{"HTML", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<!doctype html>") }, "not JSON"},
		{"nothing", func(w http.ResponseWriter, r *http.Request) {}, "not JSON"},
		{"an empty set", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, jwks()) }, "no usable key"},
		{"a symmetric key", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, jwks(newSigner("k2", "ES256").jwk(), object{"kty": "oct", "k": "AAAA"}))
		}, "symmetric"},
		{"50 MiB", func(w http.ResponseWriter, r *http.Request) {
			one := int64(0)
			for range 50 << 4 {
				n, err := w.Write(bytes.Repeat([]byte(" "), 64<<10))
				one += int64(n)
				if err != nil {
					break
				}
			}
			sent.Store(max(sent.Load(), one))
		}, "longer than 1 MiB"},
		{"a gzip bomb", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb.Bytes())
		}, "encoded as"},
		{"a gzip bomb that is not called one", func(w http.ResponseWriter, r *http.Request) { w.Write(bomb.Bytes()) }, "not UTF-8"},
		{"10,000 keys", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"keys":[`+strings.Repeat(`{"kty":"EC"},`, 9999)+`{"kty":"EC"}]}`)
		}, "10000 keys"},
		{"deep nesting", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"keys":`+strings.Repeat("[", 9000)+strings.Repeat("]", 9000)+`}`)
		}, "deeper"},
		{"deeper nesting", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"keys":`+strings.Repeat("[", 400000)+strings.Repeat("]", 400000)+`}`)
		}, "not JSON"},
		{"a connection that breaks", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, `{"keys":`)
		}, "unexpected EOF"},
		{"a header without end", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
		}, "header"},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := newAuthServer(t, s.jwk())
			var log lockedBuffer
			v := mustVerifierAt(t, quick, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, server.issuer())
			ready(t, v)
			before := server.count("/jwks")
			server.change(func() { server.instead = test.answer })
			eventually(t, "two more fetches", func() bool { return server.count("/jwks") >= before+2 })
			eventually(t, "a word that says "+test.says, func() bool { return strings.Contains(log.String(), test.says) })
			if code := codeOf(t, v, server.token(s)); code != "" {
				t.Errorf("the last keys do not serve: %s", code)
			}
		})
	}
	if n := sent.Load(); n == 0 || n > 20<<20 { // what was read and what the sockets held
		t.Errorf("%d bytes of the long body were taken", n)
	}
}

// While fetching fails the keys serve for as long as MaxStale says after a refresh was due, by the injected clock.
func TestStaleKeysEnd(t *testing.T) {
	s := newSigner("k1", "ES256")
	server := newAuthServer(t, s.jwk())
	var offset atomic.Int64
	start := time.Now()
	now := func() time.Time { return start.Add(time.Duration(offset.Load())) }
	p := quick
	p.maxStale = 10 * time.Minute
	v := mustVerifierAt(t, p, Options{Now: now}, server.issuer())
	ready(t, v)
	server.change(func() { server.status = http.StatusBadGateway })
	before := server.count("/jwks")
	eventually(t, "a failure", func() bool { return server.count("/jwks") >= before+2 })
	token := s.token(with(goodClaims(start), object{"iss": server.URL, "exp": start.Unix() + 3000}))
	for _, test := range []struct {
		after time.Duration
		code  string
	}{{9 * time.Minute, ""}, {11 * time.Minute, codeUnavailable}} {
		offset.Store(int64(test.after))
		if code := codeOf(t, v, token); code != test.code {
			t.Errorf("after %s: got %q, want %q", test.after, code, test.code)
		}
	}
	if err := v.Ready(); err == nil || !strings.Contains(err.Error(), "too old") || !strings.Contains(err.Error(), "status 502") {
		t.Errorf("Ready: %v", err)
	}
	server.change(func() { server.status = http.StatusOK })
	ready(t, v)
}

func TestFloodOfUnknownKidsOverHTTP(t *testing.T) {
	s, stranger := newSigner("k1", "ES256"), newSigner("x", "ES256")
	server := newAuthServer(t, s.jwk())
	v := mustVerifier(t, Options{}, server.issuer()) // the real pace
	ready(t, v)
	start := time.Now()
	claims := mustJSON(with(goodClaims(start), object{"iss": server.URL}))
	signature := "." + b64(stranger.sign("x"))
	for i := range 10000 {
		header := mustJSON(object{"alg": "ES256", "typ": "at+jwt", "kid": fmt.Sprint("random-", i)})
		if code := codeOf(t, v, b64([]byte(header))+"."+b64([]byte(claims))+signature); code != codeKey {
			t.Fatal(code)
		}
	}
	allowed := 3 + int(time.Since(start)/(10*time.Second)) // the first, a burst of two, one more each 10 s
	if n := server.count("/jwks"); n > allowed {
		t.Errorf("%d fetches for 10,000 unknown kids in %s, over %d", n, time.Since(start), allowed)
	}
	if code := codeOf(t, v, server.token(s)); code != "" {
		t.Errorf("a good token after the flood: %s", code)
	}
}

// Only a well-formed kid that is not there is a reason to fetch.
func TestNoFetchForOtherRefusals(t *testing.T) {
	s, stranger := newSigner("k1", "ES256"), newSigner("k1", "ES256")
	server := newAuthServer(t, s.jwk(), newSigner("k2", "ES256").jwk())
	v := mustVerifierAt(t, seldom, Options{}, server.issuer())
	ready(t, v)
	claims := mustJSON(with(goodClaims(time.Now()), object{"iss": server.URL}))
	header := func(changes object) string { return mustJSON(with(s.header(), changes)) }
	for range 200 {
		for name, token := range map[string]string{
			"a bad signature":   server.token(stranger),
			"no kid":            s.raw(header(object{"kid": nil}), claims),
			"kid a path":        s.raw(header(object{"kid": strings.Repeat("../", 100)}), claims),
			"kid an array":      s.raw(header(object{"kid": []any{"x"}}), claims),
			"kid with NUL":      s.raw(header(object{"kid": "x\x00"}), claims),
			"jku":               s.raw(header(object{"kid": "x", "jku": server.URL + "/jwks"}), claims),
			"jwk":               s.raw(header(object{"kid": "x", "jwk": stranger.jwk()}), claims),
			"alg of no key":     s.raw(header(object{"alg": "EdDSA"}), claims),
			"alg none":          s.raw(header(object{"alg": "none", "kid": "x"}), claims),
			"alg HS256":         s.raw(header(object{"alg": "HS256", "kid": "x"}), claims),
			"another issuer":    s.token(with(goodClaims(time.Now()), object{"iss": server.URL + "/"})),
			"an expired token":  s.token(with(goodClaims(time.Now()), object{"iss": server.URL, "exp": 1})),
			"another audience":  s.token(with(goodClaims(time.Now()), object{"iss": server.URL, "aud": "x"})),
			"what is not a JWT": "a.b.c",
		} {
			if code := codeOf(t, v, token); code == "" || code == codeKey {
				t.Fatalf("%s: got %q", name, code)
			}
		}
	}
	time.Sleep(50 * time.Millisecond) // ten times what a miss would take
	if n := server.count("/jwks"); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

func TestFileIsReadAgain(t *testing.T) {
	for name, p := range map[string]pace{"on the timer": quick, "on a miss": seldom} {
		t.Run(name, func(t *testing.T) {
			one, two := newSigner("k1", "ES256"), newSigner("k2", "ES256")
			path := writeFile(t, jwks(one.jwk()))
			v := mustVerifierAt(t, p, Options{}, Issuer{Issuer: testIssuer, Audience: []string{testAudience}, Keys: Keys{File: path}})
			if err := v.Ready(); err != nil {
				t.Errorf("a file is there from the start: %v", err)
			}
			if code := codeOf(t, v, one.token(goodClaims(time.Now()))); code != "" {
				t.Error(code)
			}
			replace := func(content string) {
				if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(path+".new", path); err != nil {
					t.Fatal(err)
				}
			}
			replace("{half")
			if code := codeOf(t, v, two.token(goodClaims(time.Now()))); code != codeKey {
				t.Errorf("got %q", code)
			}
			replace(jwks(two.jwk()))
			eventually(t, "the new file", func() bool { return codeOf(t, v, two.token(goodClaims(time.Now()))) == "" })
			if code := codeOf(t, v, one.token(goodClaims(time.Now()))); code != codeKey {
				t.Errorf("the old key: got %q", code)
			}
		})
	}
}

// A server that never answers holds up neither requests nor Close, and the fetch ends by itself.
func TestServerThatHangs(t *testing.T) {
	s := newSigner("k1", "ES256")
	server := newAuthServer(t, s.jwk())
	stop, hung := make(chan struct{}), make(chan struct{}, 100)
	defer close(stop)
	server.change(func() {
		server.instead = func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"keys":`)
			w.(http.Flusher).Flush()
			hung <- struct{}{}
			select {
			case <-stop:
			case <-r.Context().Done():
			}
		}
	})
	v := mustVerifierAt(t, quick, Options{}, server.issuer())
	<-hung
	if code := codeOf(t, v, server.token(s)); code != codeUnavailable {
		t.Errorf("got %q", code)
	}
	if !testing.Short() {
		<-hung // the second fetch: the first has been given up
		if err := v.Ready(); err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
			t.Errorf("Ready: %v", err)
		}
	}
	v.Close()
	v.Close()
	if err := v.Ready(); errors.Is(err, nil) {
		t.Error("ready")
	}
}

func TestRejectedKeysAreLogged(t *testing.T) {
	s := newSigner("k1", "ES256")
	server := newAuthServer(t, s.jwk(), newSigner("leaked", "ES256").jwk(object{"d": "AQAB"}))
	var log lockedBuffer
	v := mustVerifierAt(t, quick, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, server.issuer())
	ready(t, v)
	eventually(t, "a word about the key", func() bool {
		return strings.Contains(log.String(), "leaked") && strings.Contains(log.String(), "private key")
	})
	before := server.count("/jwks")
	eventually(t, "more fetches", func() bool { return server.count("/jwks") > before+3 })
	if n := strings.Count(log.String(), "private key"); n != 1 {
		t.Errorf("said %d times, though nothing changed", n)
	}
	if !strings.Contains(log.String(), "without TLS") {
		t.Error("plain http is not mentioned")
	}
}
