package oauth

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/safedial"
)

func configOf(endpoint string) Config {
	return Config{Endpoint: endpoint, ClientID: "a client", Secret: func() (string, error) { return "it's a:secret", nil }}
}

func mustNew(t *testing.T, c Config) *Client {
	t.Helper()
	client, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func TestPostOverTLS(t *testing.T) {
	var user, password, form string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ = r.BasicAuth()
		form = r.PostFormValue("a")
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"b":1}`))
	}))
	t.Cleanup(server.Close)
	c := configOf(server.URL)
	c.Roots = x509.NewCertPool()
	c.Roots.AddCert(server.Certificate())
	answer, err := mustNew(t, c).Post(t.Context(), url.Values{"a": {"x y"}})
	if err != nil || answer["b"] != int64(1) || user != "a+client" || password != "it%27s+a%3Asecret" || form != "x y" {
		t.Errorf("%v, %v; sent %q %q %q", answer, err, user, password, form)
	}
	// a certificate of nobody that we know
	form = ""
	if _, err := mustNew(t, configOf(server.URL)).Post(t.Context(), url.Values{"a": {"b"}}); err == nil || form != "" {
		t.Errorf("an unknown certificate: %v, sent %q", err, form)
	}
}

// TestPostGoesNowhereElse holds that only the endpoint's host is dialled, and that a guard of the caller's has its say.
func TestPostGoesNowhereElse(t *testing.T) {
	c := configOf("http://127.0.0.1:9/token")
	c.Guard = &safedial.Guard{}
	_, err := mustNew(t, c).Post(t.Context(), nil)
	if denied, ok := errors.AsType[*safedial.DeniedError](err); !ok || denied.Code != safedial.CodeSpecialAddress {
		t.Errorf("%v", err)
	}
	c.Guard = &safedial.Guard{Allow: []string{"nonsense"}}
	if _, err := New(c); err == nil {
		t.Error("a guard that cannot be read is taken")
	}
}

func TestErrorsHoldNothing(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(400)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": r.PostFormValue("code"), "error_description": r.PostFormValue("token")})
	}))
	t.Cleanup(server.Close)
	for _, code := range []string{"invalid_grant", "server_error", "the-token-itself", "", strings.Repeat("a", 100)} {
		_, err := mustNew(t, configOf(server.URL)).Post(t.Context(), url.Values{"token": {"the-token-itself"}, "code": {code}})
		e, ok := errors.AsType[*Error](err)
		if !ok || (e.Refused != "") != (code == "invalid_grant") || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, e), "the-token") {
			t.Errorf("%s: %#v", code, err)
		}
	}
}

// TestPause holds that requests which were under way together count as one failure, that one goes first after a pause, and that
// one whose caller has gone counts as none.
func TestPause(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	c := mustNew(t, Config{Endpoint: "http://127.0.0.1:1/", ClientID: "c", Secret: func() (string, error) { return "s", nil }, Now: func() time.Time { return now }})
	for range 10 {
		if _, err := c.admit(); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		c.failure(0, errors.New("down"))
	}
	if c.failed != 1 {
		t.Errorf("10 at once count as %d", c.failed)
	}
	if _, err := c.admit(); err == nil || !strings.Contains(err.Error(), "down") {
		t.Errorf("in the pause: %v", err)
	}
	now = now.Add(firstPause)
	failed, err := c.admit()
	if err != nil || failed != 1 {
		t.Fatalf("after the pause: %d, %v", failed, err)
	}
	if _, err := c.admit(); err == nil {
		t.Error("a second one goes, too")
	}
	c.undecided(0)
	if _, err := c.admit(); err == nil {
		t.Error("somebody who had been under way before lets a second one go")
	}
	c.undecided(failed)
	if failed, err = c.admit(); err != nil {
		t.Errorf("the one that went first was called back, and nobody goes in its place: %v", err)
	}
	c.failure(failed, errors.New("down"))
	now = now.Add(firstPause)
	if _, err := c.admit(); err == nil {
		t.Error("the second pause is not longer")
	}
	for range 30 {
		now = now.Add(lastPause)
		if failed, err = c.admit(); err != nil {
			t.Fatalf("a pause of more than %s: %v", lastPause, err)
		}
		c.failure(failed, errors.New("down"))
	}
	c.answered()
	if failed, err := c.admit(); err != nil || failed != 0 {
		t.Errorf("after an answer: %d, %v", failed, err)
	}
}

func TestIntrospectorKeepsBounds(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		switch token := r.PostFormValue("token"); {
		case strings.HasPrefix(token, "bad"):
			_, _ = w.Write([]byte(`{"active":false,"scope":"x"}`))
		case strings.HasPrefix(token, "short"):
			fmt.Fprintf(w, `{"active":true,"exp":%d}`, now.Unix()+10)
		default:
			_, _ = w.Write([]byte(`{"active":true}`))
		}
	}))
	t.Cleanup(server.Close)
	c := configOf(server.URL)
	c.Now = func() time.Time { return now }
	i, err := NewIntrospector(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	ask := func(token string) bool {
		claims, err := i.Introspect(t.Context(), token)
		if err != nil && !errors.Is(err, ErrInactive) || (err == nil) != (claims != nil) {
			t.Fatalf("%v, %v", claims, err)
		}
		return err == nil
	}
	steps := func(token string, want bool, life time.Duration) {
		t.Helper()
		before := asked.Load()
		for _, after := range []time.Duration{0, life - time.Second} {
			now = now.Add(after)
			if ask(token) != want {
				t.Errorf("%s: not %v", token, want)
			}
		}
		if n := asked.Load() - before; n != 1 {
			t.Errorf("%s: asked %d times within %s", token, n, life)
		}
		now = now.Add(time.Second)
		ask(token)
		if n := asked.Load() - before; n != 2 {
			t.Errorf("%s: asked %d times after %s", token, n, life)
		}
	}
	steps("good", true, activeFor)
	steps("bad", false, inactiveFor)
	steps("short", true, 10*time.Second)

	ask("good")
	for n := range maxInactive + 50 {
		put(i.inactive, maxInactive, [32]byte{byte(n), byte(n >> 8)}, said{nil, now.Add(inactiveFor)}, now)
	}
	if len(i.inactive) != maxInactive {
		t.Errorf("%d that are not active are kept", len(i.inactive))
	}
	before := asked.Load()
	if !ask("good") || asked.Load() != before {
		t.Error("tokens that are not active have driven out one that is")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := i.Introspect(ctx, "another"); !errors.Is(err, context.Canceled) {
		t.Errorf("who has gone: %v", err)
	}
	if !ask("another") {
		t.Error("who comes after somebody who has gone is refused")
	}
}

// FuzzLives: whatever an answer says, a token lives only where active is true itself, for 30 s at most and not beyond exp.
func FuzzLives(f *testing.F) {
	f.Add(`{"active":true,"exp":1800000010}`)
	f.Add(`{"active":"true"}`)
	f.Add(`{"active":true,"exp":1e300}`)
	now := time.Unix(1_800_000_000, 0)
	f.Fuzz(func(t *testing.T, text string) {
		response := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: http.NoBody}
		response.Body = readCloser{strings.NewReader(text)}
		answer, err := read(response)
		if err != nil {
			return
		}
		until, ok := lives(answer, now)
		if !ok {
			return
		}
		var plain struct {
			Active any
			Exp    *json.Number
		}
		if answer["active"] != any(true) || !until.After(now) || until.Sub(now) > activeFor {
			t.Fatalf("%q lives until %s", text, until)
		}
		if err := json.Unmarshal([]byte(text), &plain); err == nil && plain.Exp != nil && answer["exp"] != nil {
			if exp, err := plain.Exp.Int64(); err == nil && until.Unix() > exp && answer["exp"] == any(exp) {
				t.Fatalf("%q lives until %s", text, until)
			}
		}
	})
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }
