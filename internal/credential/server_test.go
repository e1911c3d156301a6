package credential

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/sallytest"
)

const clientSecret = "client-secret:with/odd chars%"

// server is a token endpoint whose answers the test chooses.
type server struct {
	URL string
	mu  sync.Mutex
	n   int
	ask []url.Values
	// answer writes what the nth request gets; nil means a good token
	answer func(w http.ResponseWriter, r *http.Request, n int)
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.URL = h.URL + "/token"
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, secret, _ := r.BasicAuth()
	id, _ = url.QueryUnescape(id)
	secret, _ = url.QueryUnescape(secret)
	if err := r.ParseForm(); err != nil || r.Method != http.MethodPost || id != "orders" || secret != clientSecret {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.mu.Lock()
	s.n++
	n, answer := s.n, s.answer
	s.ask = append(s.ask, r.PostForm)
	s.mu.Unlock()
	if answer == nil {
		answer = good(nil)
	}
	answer(w, r, n)
}

func (s *server) set(answer func(http.ResponseWriter, *http.Request, int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *server) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

func (s *server) form(t *testing.T, n int) url.Values {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n >= len(s.ask) {
		t.Fatalf("only %d requests", len(s.ask))
	}
	return s.ask[n]
}

func tokenNumber(n int) string { return "issued-token-" + string(rune('a'+n-1)) }

// good is a good answer with changes; a nil value takes a member away.
func good(changes map[string]any) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, r *http.Request, n int) {
		answer := map[string]any{"access_token": tokenNumber(n), "token_type": "Bearer", "expires_in": 300}
		if r.PostForm.Get("grant_type") == grantExchange {
			answer["issued_token_type"] = typeAccessToken
		}
		for name, value := range changes {
			if answer[name] = value; value == nil {
				delete(answer, name)
			}
		}
		write(w, 200, answer)
	}
}

func write(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer)
}

func text(status int, kind, body string) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, _ *http.Request, _ int) {
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

func secretIn(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func start(t *testing.T, c Config, o Options) *Source {
	t.Helper()
	s, err := New(c, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func exchangeOf(t *testing.T, s *server) Config {
	return Config{
		Kind: Exchange, TokenEndpoint: s.URL, ClientID: "orders", ClientSecretFile: secretIn(t, clientSecret+"\n"),
		Audience: "https://billing.example.com", Scopes: []string{"invoice:read", "invoice:write"},
	}
}

func serviceOf(t *testing.T, s *server) Config {
	return Config{Kind: Service, TokenEndpoint: s.URL, ClientID: "orders", ClientSecretFile: secretIn(t, clientSecret), Scopes: []string{"invoice:read"}}
}

func newClock() *sallytest.Clock {
	return sallytest.NewClock(time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC))
}

// causeOf is a caller with a token of its own for 10 minutes.
func causeOf(clock *sallytest.Clock, name string) Cause {
	return Cause{
		Caller: &identity.Caller{
			Issuer: "https://auth.example.com", Subject: name, Scopes: []string{"orders:read", "invoice:read"}, Expires: clock.Now().Add(10 * time.Minute),
			Claims: map[string]any{"aud": []any{"https://orders.example.com", "https://billing.example.com"}},
		},
		Token: bearer.NewToken("inbound-token-of-" + name),
	}
}
