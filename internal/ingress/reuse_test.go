package ingress

import (
	"crypto/ed25519"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// reusing is a stage whose assertions serve for five seconds, by a clock that stands still until it is moved.
func reusing(t testing.TB, change func(*stage)) (s *stage, clock *atomic.Int64) {
	clock = new(atomic.Int64)
	began := time.Now()
	s = open(t, func(s *stage) {
		s.config.Now = func() time.Time { return began.Add(time.Duration(clock.Load())) }
		s.config.Rules.AssertReuse = 5 * time.Second
		if change != nil {
			change(s)
		}
	})
	return s, clock
}

// stated asks and returns the assertion that the service received.
func (s *stage) stated(path, token string) string {
	s.t.Helper()
	s.service.Reset()
	if a, _ := s.ask(get(path, bearerHeader(token))); a.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %s %s", path, a.Status, a.code)
	}
	seen, err := http.ReadRequest(newReader(string(s.service.Raw())))
	if err != nil {
		s.t.Fatal(err)
	}
	return seen.Header.Get("Txn-Token")
}

// TestAssertionsThatServeAgain holds for whom one does, and for how long.
func TestAssertionsThatServeAgain(t *testing.T) {
	s, clock := reusing(t, nil)
	token := s.token("orders:read")
	first := s.stated("/orders/1", token)
	if again := s.stated("/orders/2", token); again != first {
		t.Error("the same token on the same route has another assertion")
	}
	if other := s.stated("/files/x", token); other == first {
		t.Error("another route has the same assertion")
	}
	if other := s.stated("/orders/1", s.token("orders:read more")); other == first {
		t.Error("another token has the same assertion")
	}
	clock.Store(int64(5*time.Second - 1))
	if again := s.stated("/orders/1", token); again != first {
		t.Error("an assertion serves for less than it may")
	}
	clock.Store(int64(5 * time.Second))
	second := s.stated("/orders/1", token)
	if second == first {
		t.Error("an assertion serves for longer than it may")
	}
	clock.Store(int64(4 * time.Second)) // a clock that was put back
	if s.stated("/orders/1", token) == second {
		t.Error("an assertion of the future serves")
	}
}

// TestRecordsOfAnAssertionThatServesAgain holds that the log tells which request the service was told of.
func TestRecordsOfAnAssertionThatServesAgain(t *testing.T) {
	s, _ := reusing(t, nil)
	token := s.token("orders:read")
	for range 3 {
		s.stated("/orders/1", token)
	}
	decisions, _ := s.settled(3)
	first := decisions[0]
	if first.Transaction != "" || decisions[1].Transaction != first.ID || decisions[2].Transaction != first.ID || decisions[1].ID == first.ID {
		t.Errorf("%+v", decisions)
	}
	v := identity.Verifier{Issuer: "sallyport", Audience: "orders", Keys: func(kid string) (ed25519.PublicKey, bool) { k, ok := s.keys[kid]; return k, ok }}
	c, err := v.Verify(s.stated("/orders/1", token))
	if err != nil || c.RequestID != first.ID || c.Transaction != first.ID || c.Route != "read-order" {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestEachHasItsOwn holds what is by default.
func TestEachHasItsOwn(t *testing.T) {
	s := open(t, nil)
	token := s.token("orders:read")
	first := s.stated("/orders/1", token)
	if second := s.stated("/orders/1", token); second == first {
		t.Error("two requests have one assertion, and nobody asked for it")
	}
}

// TestWhatEndsAnAssertionThatServesAgain holds that a revoked token, a new key and new rules are not behind what is kept.
func TestWhatEndsAnAssertionThatServesAgain(t *testing.T) {
	var key atomic.Pointer[identity.Key]
	s, clock := reusing(t, func(s *stage) {
		now := s.config.Rules.Assert.Key()
		key.Store(&now)
		s.config.Rules.Assert.Key = func() identity.Key { return *key.Load() }
	})
	token := s.token("orders:read")
	first := s.stated("/orders/1", token)
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key.Store(&identity.Key{ID: identity.Thumbprint(public), Private: private})
	second := s.stated("/orders/1", token)
	if second == first {
		t.Error("a key that signs no more")
	}
	if err := s.gateway.Swap(s.config.Rules); err != nil {
		t.Fatal(err)
	}
	if third := s.stated("/orders/1", token); third == second {
		t.Error("an assertion by the rules of before")
	}
	clock.Store(int64(2 * time.Hour)) // the token has expired, whatever is kept
	if a, _ := s.ask(get("/orders/1", bearerHeader(token))); a.StatusCode != http.StatusUnauthorized || a.code != "expired" {
		t.Errorf("an expired token: %s %s", a.Status, a.code)
	}
}

// TestAboutCaller holds that an assertion serves nobody about whom anything of what it says is different.
func TestAboutCaller(t *testing.T) {
	at := time.Unix(1_900_000_000, 0)
	base := func() *identity.Caller {
		return &identity.Caller{
			Issuer: "i", Subject: "s", Client: "c", TokenID: "t", Digest: "d", Scopes: []string{"a", "b"}, Expires: at, IssuedAt: at,
			Claims: map[string]any{"tenant": "acme", "sid": "1", "level": int64(3), "other": "x", "list": []any{"x"}},
		}
	}
	listed := []string{"tenant", "level", "absent"}
	sameCaller := func(a, b *identity.Caller, listed []string) bool {
		x, plain := aboutCaller(a, listed)
		y, alike := aboutCaller(b, listed)
		return plain && alike && x == y
	}
	if !sameCaller(base(), base(), listed) {
		t.Error("the same")
	}
	for name, change := range map[string]func(*identity.Caller){
		"subject": func(c *identity.Caller) { c.Subject = "" }, "client": func(c *identity.Caller) { c.Client = "x" }, "id": func(c *identity.Caller) { c.TokenID = "x" },
		"scopes": func(c *identity.Caller) { c.Scopes = []string{"a"} }, "scopes' ends": func(c *identity.Caller) { c.Scopes = []string{"a\x01b"} }, "text's ends": func(c *identity.Caller) { c.Subject, c.Client = "sc", "" },
		"expiry": func(c *identity.Caller) { c.Expires = at.Add(1) },
		"issue":  func(c *identity.Caller) { c.IssuedAt = at.Add(1) }, "a claim": func(c *identity.Caller) { c.Claims["tenant"] = "evil" },
		"a claim's type": func(c *identity.Caller) { c.Claims["level"] = "3" }, "a claim more": func(c *identity.Caller) { c.Claims["absent"] = nil },
		"a claim less": func(c *identity.Caller) { delete(c.Claims, "tenant") }, "the session": func(c *identity.Caller) { c.Claims["sid"] = "2" },
	} {
		b := base()
		change(b)
		if sameCaller(base(), b, listed) || sameCaller(b, base(), listed) {
			t.Errorf("another %s passes for the same", name)
		}
	}
	other := base()
	other.Claims["other"] = "not passed on"
	if !sameCaller(base(), other, listed) {
		t.Error("a claim that is not passed on makes a difference")
	}
	if sameCaller(base(), base(), []string{"list"}) {
		t.Error("a claim that is no plain value is taken to be the same")
	}
}

// TestStatementsAreBounded holds that many tokens do not make many statements be kept, and that none is kept for long.
func TestStatementsAreBounded(t *testing.T) {
	k := &statements{keep: time.Second}
	at := time.Unix(1_900_000_000, 0)
	for i := range 3 * maxStatements {
		k.add(statementOf{digest: fmt.Sprint(i)}, &statement{made: at, expires: at.Add(time.Minute)})
		if n := len(k.young) + len(k.old); n > maxStatements {
			t.Fatalf("%d are kept", n)
		}
	}
	last := statementOf{digest: fmt.Sprint(3*maxStatements - 1)}
	if k.find(last, at) == nil || k.find(last, at.Add(time.Second)) != nil || k.find(last, at.Add(-1)) != nil {
		t.Error("the last serves at the wrong time")
	}
	k.add(statementOf{digest: "a"}, &statement{made: at.Add(time.Second), expires: at.Add(time.Minute)})
	k.add(statementOf{digest: "b"}, &statement{made: at.Add(2 * time.Second), expires: at.Add(time.Minute)})
	if len(k.young)+len(k.old) != 2 {
		t.Errorf("%d are kept of three seconds", len(k.young)+len(k.old))
	}
	ends := statementOf{digest: "ends"}
	k.add(ends, &statement{made: at.Add(2 * time.Second), expires: at.Add(2 * time.Second)})
	if k.find(ends, at.Add(2*time.Second)) != nil {
		t.Error("one that has expired serves")
	}
}
