package ingress

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
	"github.com/sallyport/sallyport/internal/state"
)

// lively is a service with streams of each kind, by libraries that know nothing of ours. What a WebSocket's other side was
// told at its end comes through closed.
func lively(t testing.TB) (service *httptest.Server, closed chan websocket.CloseError) {
	closed = make(chan websocket.CloseError, 16)
	service = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/socket":
			c, err := websocket.Accept(w, r, nil)
			if err != nil {
				return
			}
			defer c.CloseNow()
			c.SetReadLimit(-1)
			go func() { // events in both frames and fragments, some of them long
				long := strings.Repeat("x", 50_000)
				for n := 0; ; n++ {
					text := fmt.Sprint(n)
					if n%3 == 0 {
						text = long
					}
					if c.Write(context.Background(), websocket.MessageText, []byte(text)) != nil {
						return
					}
					if r.URL.RawQuery == "" {
						time.Sleep(time.Millisecond)
					}
				}
			}()
			for {
				if _, _, err := c.Read(context.Background()); err != nil {
					var why websocket.CloseError
					errors.As(err, &why)
					closed <- why
					return
				}
			}
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			for r.Context().Err() == nil {
				io.WriteString(w, "data: tick\n\n")
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		case "/orders/slow":
			<-r.Context().Done()
		case "/orders/flood":
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 32<<10)); err != nil {
					return
				}
			}
		}
	}))
	t.Cleanup(service.Close)
	return service, closed
}

// alive is a stage before a lively service, with a key set that can change and a real store.
type aliveStage struct {
	*stage
	closed chan websocket.CloseError
	jwks   string
}

func openAlive(t testing.TB) *aliveStage { return openAliveBefore(t, nil) }

func openAliveBefore(t testing.TB, change func(*stage)) *aliveStage {
	t.Helper()
	service, closed := lively(t)
	a := &aliveStage{closed: closed, jwks: filepath.Join(t.TempDir(), "jwks.json")}
	a.stage = open(t, func(s *stage) {
		s.config.Upstream, s.config.State = mustURL(t, service.URL), localState(t)
		if change != nil {
			change(s)
		}
		a.stage = s
		a.publish()
		s.config.Rules.Verifier = a.verifier()
	})
	return a
}

func (a *aliveStage) publish() {
	a.t.Helper()
	if err := os.WriteFile(a.jwks, a.issuer.JWKS(), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *aliveStage) verifier() *bearer.Verifier {
	a.t.Helper()
	v, err := bearer.NewVerifier([]bearer.Issuer{{
		Issuer: a.issuer.URL, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{File: a.jwks}, Leeway: 100 * time.Millisecond,
		Algorithms: []string{"ES256", "EdDSA"},
	}}, bearer.Options{Bound: true, Refresh: 50 * time.Millisecond, Remember: 1 << 20})
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(v.Close)
	return v
}

// swap replaces the routes by those that keep returns.
func (a *aliveStage) swap(keep func(policy.Route) (policy.Route, bool)) {
	a.t.Helper()
	var routes []policy.Route
	for _, r := range testRoutes() {
		if r, ok := keep(r); ok {
			routes = append(routes, r)
		}
	}
	p, err := policy.New(routes)
	if err != nil {
		a.t.Fatal(err)
	}
	rules := a.config.Rules
	rules.Policy = p
	if err := a.gateway.Swap(rules); err != nil {
		a.t.Fatal(err)
	}
}

// streams are the routes whose requests the tests below hold open.
func streams(r policy.Route) bool {
	return slices.Contains([]string{"socket", "events", "calls"}, r.Name)
}

// ends of a stream, H23: what happens, to a request on a route, and the code that its outcome has. The token is EdDSA's where
// its key is to be withdrawn, so that others stay.
func ends() []struct {
	name   string
	code   string
	happen func(a *aliveStage)
} {
	return []struct {
		name   string
		code   string
		happen func(a *aliveStage)
	}{
		{"(b) its jti is revoked", "revoked", func(a *aliveStage) { a.revoke(state.Revocation{TokenID: "live"}) }},
		{"(b) its subject is revoked", "revoked", func(a *aliveStage) { a.revoke(state.Revocation{Subject: "liver"}) }},
		{"(c) its key is withdrawn", "key_withdrawn", func(a *aliveStage) { a.issuer.Withdraw(a.issuer.KeyID("EdDSA")); a.publish() }},
		{"(d) its route is removed", "route_removed", func(a *aliveStage) {
			a.swap(func(r policy.Route) (policy.Route, bool) { return r, !streams(r) })
		}},
		{"(d) its route asks for more", "route_removed", func(a *aliveStage) {
			a.swap(func(r policy.Route) (policy.Route, bool) {
				if streams(r) {
					r.AnyCaller, r.Scopes = false, []string{"admin"}
				}
				return r, true
			})
		}},
		{"(d) its route has a condition now", "route_removed", func(a *aliveStage) {
			a.swap(func(r policy.Route) (policy.Route, bool) {
				if streams(r) {
					r.AnyCaller, r.When = false, `claims.sub == "somebody else"`
				}
				return r, true
			})
		}},
		{"(d) its route wants bound tokens now", "route_removed", func(a *aliveStage) {
			a.swap(func(r policy.Route) (policy.Route, bool) {
				r.Bound = r.Public == nil
				return r, true
			})
		}},
		{"(d) its issuer is removed", "key_withdrawn", func(a *aliveStage) {
			other := sallytest.NewIssuer(a.t)
			rules := a.config.Rules
			v, err := bearer.NewVerifier([]bearer.Issuer{{Issuer: other.URL, Audience: []string{"x"}, Keys: bearer.Keys{File: a.jwks}}}, bearer.Options{})
			if err != nil {
				a.t.Fatal(err)
			}
			a.t.Cleanup(v.Close)
			rules.Verifier = v
			if err := a.gateway.Swap(rules); err != nil {
				a.t.Fatal(err)
			}
		}},
	}
}

func (a *aliveStage) liveToken(claims map[string]any) string {
	made := map[string]any{"jti": "live", "sub": "liver"}
	for k, v := range claims {
		made[k] = v
	}
	return a.issuer.TokenWith("EdDSA", made)
}

// within fails the test unless what ends a stream did so within a second.
func within(t testing.TB, since time.Time) {
	t.Helper()
	if took := time.Since(since); took > time.Second {
		t.Errorf("it took %s", took)
	}
}

// H23: a WebSocket that loses what it was let in for is closed within a second, with 1008 to both sides and between two
// frames, and what it lost is its outcome.
func TestWebSocketLosesItsStanding(t *testing.T) {
	for _, c := range ends() {
		t.Run(c.name, func(t *testing.T) {
			a := openAlive(t)
			conn, _, err := a.socket(t.Context(), a.liveToken(nil))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.CloseNow()
			conn.SetReadLimit(-1)
			for range 20 {
				if _, _, err := conn.Read(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			c.happen(a)
			for err == nil {
				_, _, err = conn.Read(t.Context())
			}
			within(t, began)
			var why websocket.CloseError
			if !errors.As(err, &why) || why.Code != websocket.StatusPolicyViolation || why.Reason != c.code {
				t.Errorf("the client is told %v", err)
			}
			if why := <-a.closed; why.Code != websocket.StatusPolicyViolation || why.Reason != c.code {
				t.Errorf("the service is told %v", why)
			}
			if _, o := a.settled(1); o[0].Error != c.code || o[0].Status != 101 {
				t.Errorf("outcome %+v", o[0])
			}
			within(t, began)
			if n := counted(t, a.registry, "sallyport_ingress_ended_total"); n != 1 {
				t.Errorf("%v ended are counted", n)
			}
		})
	}
}

// H23: server-sent events are cut, so that nobody takes them for whole.
func TestEventsLoseTheirStanding(t *testing.T) {
	for _, c := range ends() {
		t.Run(c.name, func(t *testing.T) {
			a := openAlive(t)
			p := a.dial()
			p.send(get("/events", bearerHeader(a.liveToken(nil))))
			res, err := http.ReadResponse(p.r, nil)
			if err != nil || res.StatusCode != 200 {
				t.Fatal(res, err)
			}
			if _, err := bufio.NewReader(res.Body).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			c.happen(a)
			if _, err := io.ReadAll(res.Body); err == nil {
				t.Error("the stream ended well")
			}
			within(t, began)
			if _, o := a.settled(1); o[0].Error != c.code || o[0].Status != 200 {
				t.Errorf("outcome %+v", o[0])
			}
			within(t, began)
		})
	}
}

// H23 (a): a stream outlives its token by the issuer's leeway and no more, even one that began within the leeway.
func TestStreamEndsWithItsToken(t *testing.T) {
	a := openAlive(t)
	expires := time.Unix(time.Now().Unix()+2, 0)
	conn, _, err := a.socket(t.Context(), a.liveToken(map[string]any{"exp": expires.Unix()}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	conn.SetReadLimit(-1)
	for err == nil {
		_, _, err = conn.Read(t.Context())
	}
	if ended := time.Now(); ended.Before(expires) || ended.After(expires.Add(time.Second)) {
		t.Errorf("it ended %s after its token", ended.Sub(expires))
	}
	if why := (websocket.CloseError{}); !errors.As(err, &why) || why.Code != websocket.StatusPolicyViolation || why.Reason != "expired" {
		t.Errorf("the client is told %v", err)
	}
	if _, o := a.settled(1); o[0].Error != "expired" {
		t.Errorf("outcome %+v", o[0])
	}
}

// A reload that changes nothing for a request does not end it, nor does somebody else's revocation.
func TestOthersKeepTheirStanding(t *testing.T) {
	a := openAlive(t)
	conn, _, err := a.socket(t.Context(), a.issuer.Token(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	conn.SetReadLimit(-1)
	a.revoke(state.Revocation{Subject: "liver"})
	a.swap(func(r policy.Route) (policy.Route, bool) { return r, r.Name != "events" })
	a.issuer.Withdraw(a.issuer.KeyID("EdDSA"))
	a.publish()
	until := time.Now().Add(2 * sweepEvery)
	for time.Now().Before(until) {
		if _, _, err := conn.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	conn.Close(websocket.StatusNormalClosure, "")
	if _, o := a.settled(1); o[0].Error != "" {
		t.Errorf("outcome %+v", o[0])
	}
}

// A request whose answer has not begun is answered with what it lost; one whose client does not read ends all the same; and
// a stream to HTTP/1.0, whose end nothing marks but the connection's, ends in a reset.
func TestRequestsLoseTheirStanding(t *testing.T) {
	a := openAlive(t)
	token := a.liveToken(map[string]any{"scope": "orders:read"})
	slow, flood, old := a.dial(), a.dial(), a.dial()
	slow.send(get("/orders/slow", bearerHeader(token)))
	flood.send(get("/orders/flood", bearerHeader(token)))
	old.send(strings.Replace(get("/events", bearerHeader(token)), "HTTP/1.1", "HTTP/1.0", 1))
	if line, err := old.r.ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") {
		t.Fatal(line, err)
	}
	eventually(t, "all are in flight", func() bool { return a.gateway.inFlight.Load() == 3 })
	time.Sleep(200 * time.Millisecond) // until the one that does not read is full
	began := time.Now()
	a.revoke(state.Revocation{TokenID: "live"})
	if r := slow.read("GET"); r.StatusCode != 401 || r.code != "revoked" || !strings.Contains(r.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
		t.Errorf("answered %d %s", r.StatusCode, r.code)
	}
	if _, err := io.ReadAll(old.r); err == nil {
		t.Error("HTTP/1.0: the stream ended well")
	}
	_, o := a.settled(3)
	within(t, began)
	for _, o := range o {
		if o.Error != "revoked" {
			t.Errorf("outcome %+v", o)
		}
	}
}

// A WebSocket whose client does not read is not waited for.
func TestWebSocketOfAClientThatDoesNotRead(t *testing.T) {
	a := openAlive(t)
	p := a.dial()
	p.send(get("/socket?fast", bearerHeader(a.liveToken(nil)), "Connection: Upgrade", "Upgrade: websocket",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
	if r := p.read("GET"); r.StatusCode != 101 {
		t.Fatalf("answered %d", r.StatusCode)
	}
	time.Sleep(300 * time.Millisecond)
	began := time.Now()
	a.revoke(state.Revocation{TokenID: "live"})
	if _, o := a.settled(1); o[0].Error != "revoked" {
		t.Errorf("outcome %+v", o[0])
	}
	within(t, began)
}

// What happens between a request's judgement and its flight is seen by no sweep: the request asks for itself.
func TestLostOnTheWay(t *testing.T) {
	service, _ := lively(t)
	store := &brokenState{}
	var asked atomic.Int32
	s := open(t, func(s *stage) {
		store.Store = localState(t)
		s.config.State, s.config.Upstream = store, mustURL(t, service.URL)
	})
	store.set(func() {
		store.revoked = func(state.Token) (state.Revocation, bool) {
			if asked.Add(1) == 1 {
				s.gateway.sweep() // of a revocation that came after this question: the request is not in flight yet
				return state.Revocation{}, false
			}
			return state.Revocation{TokenID: "x"}, true
		}
	})
	began := time.Now()
	if a, _ := s.ask(get("/orders/slow", bearerHeader(s.token("orders:read")))); a.StatusCode != 401 || a.code != "revoked" {
		t.Errorf("answered %d %s", a.StatusCode, a.code)
	}
	if time.Since(began) > sweepEvery/2 {
		t.Errorf("it was found by a later sweep, after %s", time.Since(began))
	}
}

// A key that was replaced under its name while a request was judged by it has ended that request too.
func TestKeyReplacedOnTheWay(t *testing.T) {
	service, _ := lively(t)
	a := &aliveStage{jwks: filepath.Join(t.TempDir(), "jwks.json")}
	store := &brokenState{}
	a.stage = open(t, func(s *stage) {
		store.Store = localState(t)
		s.config.State, s.config.Upstream = store, mustURL(t, service.URL)
		a.stage = s
		a.publish()
		s.config.Rules.Verifier = a.verifier()
	})
	token := a.token("orders:read")
	store.set(func() {
		store.revoked = func(state.Token) (state.Revocation, bool) {
			store.set(func() { store.revoked = nil })
			other := sallytest.NewIssuer(t)
			set := strings.ReplaceAll(string(other.JWKS()), other.KeyID("ES256"), a.issuer.KeyID("ES256"))
			if err := os.WriteFile(a.jwks, []byte(set), 0o600); err != nil {
				t.Error(err)
			}
			for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(5 * time.Millisecond) {
				if _, err := a.config.Rules.Verifier.Verify(context.Background(), bearer.NewToken(token)); err != nil {
					break
				}
			}
			a.gateway.sweep() // the request is not in flight yet
			return state.Revocation{}, false
		}
	})
	if r, _ := a.ask(get("/orders/slow", bearerHeader(token))); r.StatusCode != 401 || r.code != "key_withdrawn" {
		t.Errorf("answered %d %s", r.StatusCode, r.code)
	}
}

// A condition that reads other headers than before is asked with those.
func TestJudgedAgainByOtherHeaders(t *testing.T) {
	a := openAlive(t)
	p := a.dial()
	p.send(get("/events", bearerHeader(a.liveToken(nil)), "X-Tenant: one"))
	res, err := http.ReadResponse(p.r, nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	change := func(tenant string) {
		a.swap(func(r policy.Route) (policy.Route, bool) {
			if r.Name == "events" {
				r.AnyCaller, r.Headers, r.When = false, []string{"x-tenant"}, fmt.Sprintf("request.header[%q] == %q", "x-tenant", tenant)
			}
			return r, true
		})
	}
	change("one")
	if _, err := bufio.NewReader(res.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	change("two")
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("the stream ended well")
	}
	if _, o := a.settled(1); o[0].Error != "route_removed" {
		t.Errorf("outcome %+v", o[0])
	}
}

// The cost of judging 10,000 requests in flight again.
func BenchmarkSweep(b *testing.B) {
	const live = 10_000
	for _, revoked := range []int{0, 1000} {
		b.Run(fmt.Sprintf("revoked=%d", revoked), func(b *testing.B) {
			s := setStage(b, func(s *stage) { s.config.State = localState(b); s.config.Flight = cause.NewFlight() })
			for n := range revoked {
				s.revoke(state.Revocation{Subject: fmt.Sprint("nobody", n)})
			}
			var claims map[string]any
			if err := json.Unmarshal([]byte(`{"sid":"s"}`), &claims); err != nil {
				b.Fatal(err)
			}
			for n := range live {
				caller := &identity.Caller{
					Issuer: s.issuer.URL, Subject: fmt.Sprint("user", n), Client: "shop", TokenID: fmt.Sprint("id", n), Digest: fmt.Sprint("digest", n),
					KeyID: s.issuer.KeyID("ES256"), IssuedAt: time.Now(), Expires: time.Now().Add(time.Hour), Claims: claims,
				}
				e := s.config.Flight.Begin(cause.Request{ID: fmt.Sprint(n), Route: "events", Caller: caller})
				b.Cleanup(e.Done)
			}
			b.ReportAllocs()
			for b.Loop() {
				s.gateway.sweep()
			}
		})
	}
}
