package oauth

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
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

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }
