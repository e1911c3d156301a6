package identity_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// hop is the pair of gates orders and billing: what the first signs for the second, and how that reads it.
func hop() (*identity.Signer, *identity.Verifier) {
	s, v := newPair(testKey("one"))
	s.Claims = []string{"tenant", "scope", "scp"}
	v.Audience = "billing"
	return s, v
}

// What the next gate reads is the caller that the first one let in, no wider and no longer.
func TestNextKeepsTheCaller(t *testing.T) {
	s, v := hop()
	c := alice()
	c.Claims["scope"], c.Claims["scp"] = "orders:read orders:write", []any{"orders:read"}
	c.Transaction, c.Workloads, c.Expires = "txn-1", []string{"gateway"}, testNow.Add(20*time.Second)
	assertion, err := s.Next(c, "billing", []string{"orders:write", "invoice:write", "invoice:read"}, "create-order", "req-2")
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Verify(assertion)
	if err != nil {
		t.Fatal(err)
	}
	want := c
	want.Scopes = []string{"orders:write"}
	want.Claims = map[string]any{"tenant": "acme", "sid": "s-1"}
	want.KeyID, want.Route, want.RequestID, want.Workloads = testKey("one").ID, "create-order", "req-2", []string{"gateway", "orders"}
	want.Expires = time.Unix(testNow.Unix()+20, 0)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	_, ours := newPair(testKey("one"))
	if _, err := ours.Verify(assertion); codeOf(err) != "service_mismatch" {
		t.Errorf("our own service takes what is for the next one: %v", err)
	}
	own, err := s.Sign(c, "create-order", "req-2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(own); codeOf(err) != "service_mismatch" {
		t.Errorf("the next one takes what is for our own service: %v", err)
	}
}

// Down a chain of gates nothing is added to what the first caller had but workloads, and the ninth gate signs nothing.
func TestChain(t *testing.T) {
	c := alice()
	names := strings.Split("a,b,c,d,e,f,g,h", ",")
	for i, name := range names {
		s := &identity.Signer{Issuer: name, Audience: name, TrustDomain: "shop.example", Now: func() time.Time { return testNow }, Key: func() identity.Key { return testKey(name) }}
		next := "end"
		if i+1 < len(names) {
			next = names[i+1]
		}
		assertion, err := s.Next(c, next, []string{"orders:read"}, "r", "req-"+name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		v := &identity.Verifier{Issuer: name, Audience: next, TrustDomain: "shop.example", Now: s.Now, Keys: lookup(testKey(name))}
		read, err := v.Verify(assertion)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !slices.Equal(read.Workloads, names[:i+1]) || read.Transaction != "req-a" || read.RequestID != "req-"+name || !slices.Equal(read.Scopes, []string{"orders:read"}) ||
			read.Subject != c.Subject || read.Issuer != c.Issuer || read.TokenID != c.TokenID || !read.IssuedAt.Equal(c.IssuedAt) || read.Expires.After(c.Expires) {
			t.Fatalf("%s: %+v", name, read)
		}
		c = read
	}
	s, _ := newPair(testKey("one"))
	for what, sign := range map[string]func() (string, error){
		"Sign": func() (string, error) { return s.Sign(c, "r", "req-9") },
		"Next": func() (string, error) { return s.Next(c, "on", nil, "r", "req-9") },
	} {
		if _, err := sign(); err == nil || !strings.Contains(err.Error(), "8 services") {
			t.Errorf("%s for a ninth service: %v", what, err)
		}
	}
}

func TestNextRefuses(t *testing.T) {
	for _, test := range []struct {
		name, service string
		change        func(*identity.Signer, *identity.Caller)
		want          string
	}{
		{"no trust domain", "billing", func(s *identity.Signer, _ *identity.Caller) { s.TrustDomain = "" }, "no trust domain"},
		{"our own service", "orders", nil, "our own"},
		{"no service", "", nil, "name of a service"},
		{"a service that reads as two", "billing,admin", nil, "name of a service"},
		{"nobody", "billing", func(_ *identity.Signer, c *identity.Caller) { *c = identity.Caller{} }, "no expiry"},
		{"a caller whose token has ended", "billing", func(_ *identity.Signer, c *identity.Caller) { c.Expires = testNow.Add(-6 * time.Second) }, "has ended"},
	} {
		s, _ := hop()
		c := alice()
		if test.change != nil {
			test.change(s, &c)
		}
		if _, err := s.Next(c, test.service, nil, "r", "1"); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

// Without a list no scope passes, and a list never gives one that the caller has not.
func TestNextNeverWidens(t *testing.T) {
	for _, test := range []struct{ has, listed, want []string }{
		{[]string{"a", "b"}, nil, nil},
		{[]string{"a", "b"}, []string{"b", "c"}, []string{"b"}},
		{[]string{"a"}, []string{"c"}, nil},
		{nil, []string{"a"}, nil},
		{[]string{"a", "b"}, []string{"b", "a"}, []string{"a", "b"}},
		{[]string{"orders:read"}, []string{"orders", "orders:*", "*"}, nil},
	} {
		s, v := hop()
		c := alice()
		c.Scopes = test.has
		assertion, err := s.Next(c, "billing", test.listed, "r", "1")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := v.Verify(assertion); err != nil || !slices.Equal(got.Scopes, test.want) {
			t.Errorf("of %q with %q listed: %q, %v", test.has, test.listed, got.Scopes, err)
		}
	}
}
