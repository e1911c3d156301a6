package ingress

import (
	"encoding/base64"
	"errors"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crypto/elliptic"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/sallytest"
	"github.com/sallyport/sallyport/internal/state"
)

// hour is until when a revocation of the tests is to hold.
func hour() time.Time { return time.Now().Add(time.Hour) }

func (s *stage) revoke(r state.Revocation) {
	s.t.Helper()
	if r.Issuer == "" {
		r.Issuer = s.issuer.URL
	}
	r.Until, r.By, r.Reason = hour(), "admin", "test"
	if err := s.config.State.Revoke(s.t.Context(), r); err != nil {
		s.t.Fatal(err)
	}
}

// refused is denied for a gate that has let other requests through before.
func (s *stage) refused(raw string, status int, code string) reply {
	s.t.Helper()
	service := s.service
	before := service.Requests()
	s.service = nil
	defer func() { s.service = service }()
	a, _ := s.denied(raw, status, code)
	if n := service.Requests(); n != before {
		s.t.Errorf("%d requests have reached the service", n-before)
	}
	return a
}

// twin makes the other valid signature of an ES256 token, (r, n-s), which anybody can.
func twin(t *testing.T, token string) string {
	t.Helper()
	at := strings.LastIndexByte(token, '.') + 1
	sig, err := base64.RawURLEncoding.DecodeString(token[at:])
	if err != nil || len(sig) != 64 {
		t.Fatal(len(sig), err)
	}
	s := new(big.Int).SetBytes(sig[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(sig[32:])
	return token[:at] + base64.RawURLEncoding.EncodeToString(sig)
}

// R01, R02, R03 and R07: a token that was good a moment ago is refused from when Revoke returns, at this gate and at another
// with the same store, whatever of it was named, and in whatever other bytes it comes.
func TestRevoked(t *testing.T) {
	s := proving(t, nil)
	second := proving(t, func(two *stage) {
		two.config.State, two.issuer, two.config.Rules.Verifier = s.config.State, s.issuer, s.config.Rules.Verifier
	})
	now := time.Now().Unix()
	token := func(claims map[string]any) string { return s.issuer.Token(claims) }
	digest := func(raw string) string {
		c, err := s.config.Rules.Verifier.Verify(t.Context(), bearer.NewToken(raw))
		if err != nil {
			t.Fatal(err)
		}
		return c.Digest
	}
	nameless := token(map[string]any{"jti": nil, "sub": "r03"})
	named := token(map[string]any{"jti": "r01-named", "sub": "r03"})
	for _, c := range []struct {
		name  string
		r     state.Revocation
		ended []string // tokens
		other []string // tokens that it must not end
	}{
		{"R01 jti", state.Revocation{TokenID: "r01"}, []string{token(map[string]any{"jti": "r01"})}, []string{token(nil), token(map[string]any{"jti": "R01"})}},
		{"R02 sub", state.Revocation{Subject: "r02"}, []string{token(map[string]any{"sub": "r02"})}, []string{token(map[string]any{"sub": "r02x"})}},
		{"R02 client", state.Revocation{Client: "r02-client"}, []string{token(map[string]any{"client_id": "r02-client"})}, []string{token(nil)}},
		{"R02 session", state.Revocation{Session: "r02-sid"}, []string{token(map[string]any{"sid": "r02-sid"})}, []string{token(map[string]any{"sid": "other"})}},
		{"R02 sub, not before", state.Revocation{Subject: "r02-before", Before: time.Unix(now-10, 0)},
			[]string{token(map[string]any{"sub": "r02-before", "iat": now - 11}), token(map[string]any{"sub": "r02-before", "iat": now - 10}), token(map[string]any{"sub": "r02-before", "iat": nil})},
			[]string{token(map[string]any{"sub": "r02-before", "iat": now - 9})}},
		{"R03 by its digest", state.Revocation{Digest: digest(nameless)}, []string{nameless}, []string{token(map[string]any{"jti": nil, "sub": "r03", "exp": now + 200})}},
		{"R03 by its digest, though it has a jti", state.Revocation{Digest: digest(named)}, []string{named}, []string{token(map[string]any{"sub": "r03"})}},
		{"R02 key", state.Revocation{KeyID: s.issuer.KeyID("EdDSA")}, []string{s.issuer.TokenWith("EdDSA", nil)}, []string{token(nil)}},
		{"R02 issuer, not before", state.Revocation{Before: time.Unix(now-100, 0)}, []string{token(map[string]any{"iat": now - 100}), token(map[string]any{"iat": now - 101, "jti": nil})}, []string{token(map[string]any{"iat": now - 99})}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, second := *s, *second
			s.t, second.t = t, t
			for _, raw := range append(c.ended, c.other...) { // R07: whatever could remember it has seen it
				if a, _ := s.ask(get("/orders/1", bearerHeader(raw))); a.StatusCode != 200 {
					t.Fatalf("before: %d %s", a.StatusCode, a.code)
				}
			}
			s.revoke(c.r)
			for _, raw := range c.ended {
				spellings := []string{raw}
				if !strings.Contains(c.name, "key") {
					spellings = append(spellings, twin(t, raw))
				}
				for _, raw := range spellings {
					a := s.refused(get("/orders/1", bearerHeader(raw)), 401, "revoked")
					if challenge := a.Header.Get("WWW-Authenticate"); !strings.Contains(challenge, `error="invalid_token"`) {
						t.Errorf("challenge %q", challenge)
					}
					if strings.Contains(a.body, "admin") {
						t.Errorf("the client is told who revoked: %s", a.body)
					}
					second.refused(get("/orders/1", bearerHeader(raw)), 401, "revoked")
				}
			}
			for _, raw := range c.other {
				if a, _ := s.ask(get("/orders/1", bearerHeader(raw))); a.StatusCode != 200 {
					t.Errorf("ended too much: %d %s", a.StatusCode, a.code)
				}
			}
			if !strings.Contains(s.audit.String(), "by admin: test") {
				t.Error("the record does not say who revoked, and why")
			}
		})
	}
	// A subject of another issuer is somebody else.
	s.revoke(state.Revocation{Issuer: "https://other.example.com", Subject: "carol"})
	if a, _ := s.ask(get("/orders/1", bearerHeader(token(map[string]any{"sub": "carol"})))); a.StatusCode != 200 {
		t.Errorf("another issuer's revocation ended it: %d %s", a.StatusCode, a.code)
	}
}

// R03: a route may take no token that has no name of its own.
func TestRequireTokenID(t *testing.T) {
	s := proving(t, nil)
	s.denied(get("/named", bearerHeader(s.issuer.Token(map[string]any{"jti": nil}))), 401, "jti_required")
	if a, _ := s.ask(get("/named", bearerHeader(s.token("")))); a.StatusCode != 200 {
		t.Errorf("%d %s", a.StatusCode, a.code)
	}
}

// R04: a gate that has not heard of its feed for too long refuses privileged routes, says so once, and serves them again.
func TestFeedIsOld(t *testing.T) {
	store := &brokenState{}
	s := proving(t, func(s *stage) {
		store.Store = s.config.State
		s.config.State, s.config.MaxFeedAge = store, 2*time.Second
	})
	privileged, plain := get("/orders/1", bearerHeader(s.token("orders:read"))), get("/plain", bearerHeader(s.token("")))
	known := func(want float64) func() bool {
		return func() bool { return counted(t, s.registry, "sallyport_ingress_standing_known") == want }
	}
	for range 2 {
		store.set(func() { store.age = 2 * time.Second })
		if a, _ := s.ask(privileged); a.StatusCode != 200 || s.gateway.Ready() != nil {
			t.Errorf("not too old yet: %d %s", a.StatusCode, a.code)
		}
		store.set(func() { store.age = 3 * time.Second })
		s.refused(privileged, 503, "standing_unknown")
		if a, _ := s.ask(plain); a.StatusCode != 200 {
			t.Errorf("privileged: false: %d %s", a.StatusCode, a.code)
		}
		if a, _ := s.ask(get("/health")); a.StatusCode != 200 {
			t.Errorf("public: %d %s", a.StatusCode, a.code)
		}
		if err := s.gateway.Ready(); err == nil || !strings.Contains(err.Error(), "max_feed_age") {
			t.Errorf("ready: %v", err)
		}
		eventually(t, "the metric", known(0))
		eventually(t, "the log", func() bool { return s.gateway.unknown.Load() })
		time.Sleep(2 * sweepEvery)
		store.set(func() { store.age = 0 })
		eventually(t, "it is over", func() bool { return !s.gateway.unknown.Load() })
		eventually(t, "the metric", known(1))
	}
	log := s.log.String()
	if strings.Count(log, "privileged routes are refused") != 2 || strings.Count(log, "served again") != 2 {
		t.Errorf("not one line for each change:\n%s", log)
	}
	// what is known to be revoked is refused whatever the feed's age
	s.revoke(state.Revocation{Subject: "alice"})
	store.set(func() { store.age = time.Hour })
	s.refused(plain, 401, "revoked")
}

// R05: until what was revoked before is in memory, privileged routes are refused and the gate is not ready; after a restart
// it is.
func TestRestartOfTheStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	reopen := func() state.Store {
		store, err := state.Open(state.Config{Path: path}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	first := reopen()
	issuer := sallytest.NewIssuer(t)
	if err := first.Revoke(t.Context(), state.Revocation{Issuer: issuer.URL, Subject: "mallory", Until: hour()}); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	store := &brokenState{ready: errors.New("the snapshot is not loaded")}
	s := proving(t, func(s *stage) {
		store.Store = reopen()
		t.Cleanup(func() { store.Store.Close() })
		s.config.State = store
	})
	s.denied(get("/orders/1", bearerHeader(s.token("orders:read"))), 503, "standing_unknown")
	if err := s.gateway.Ready(); err == nil {
		t.Error("ready without its revocations")
	}
	store.set(func() { store.ready = nil })
	if r, ok := store.Revoked(state.Token{Issuer: issuer.URL, Subject: "mallory"}); !ok || r.Subject != "mallory" {
		t.Error("a revocation is lost in a restart")
	}
	if a, _ := s.ask(get("/orders/1", bearerHeader(s.token("orders:read")))); a.StatusCode != 200 || s.gateway.Ready() != nil {
		t.Errorf("afterwards: %d %s", a.StatusCode, a.code)
	}
}
