package bearer

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// gateKey is a key as a gate publishes it: named by its thumbprint.
func gateKey() (kid string, jwk object) {
	s := newSigner("", "EdDSA")
	s.kid = identity.Thumbprint(s.private.Public().(ed25519.PublicKey))
	return s.kid, s.jwk()
}

// A key is known once it is published, and no longer than it is.
func TestKeySetFollowsWhatIsPublished(t *testing.T) {
	one, first := gateKey()
	two, second := gateKey()
	server := newAuthServer(t, first)
	publish := func(keys ...object) { server.mu.Lock(); defer server.mu.Unlock(); server.set = jwks(keys...) }
	s, err := NewKeySet("gate", Keys{URI: server.URL + "/jwks"}, Options{Refresh: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	knows := func(kid string) bool { _, ok := s.Lookup(kid); return ok }
	eventually(t, "the first key is known", func() bool { return s.Ready() == nil && knows(one) })
	publish(first, second)
	eventually(t, "a new key is known", func() bool { return knows(two) })
	publish(second)
	eventually(t, "a withdrawn key is gone", func() bool { return !knows(one) })
	if !knows(two) {
		t.Error("the other key is gone too")
	}
	publish()
	eventually(t, "the last key is gone", func() bool { return !knows(two) })
	if err := s.Ready(); err != nil {
		t.Errorf("a set of no keys is no failure of ours: %v", err)
	}
}

// What is not an Ed25519 key under its own thumbprint is nobody's.
func TestKeySetTakesOnlyItsKind(t *testing.T) {
	kid, good := gateKey()
	_, misnamed := gateKey()
	server := newAuthServer(t, good, with(misnamed, object{"kid": "gate-key"}), signers()["ES256"].jwk(), signers()["RS256"].jwk())
	s, err := NewKeySet("gate", Keys{URI: server.URL + "/jwks"}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	eventually(t, "the good key is known", func() bool { _, ok := s.Lookup(kid); return ok })
	for _, bad := range []string{"gate-key", "kid-ES256", "kid-RS256", ""} {
		if _, ok := s.Lookup(bad); ok {
			t.Errorf("there is a key %q", bad)
		}
	}
}

func TestKeySetOfAFile(t *testing.T) {
	kid, member := gateKey()
	path := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(path, []byte(jwks(member)), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := NewKeySet("gate", Keys{File: path}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, ok := s.Lookup(kid); !ok || s.Ready() != nil {
		t.Error("the key in the file is not known")
	}
}

func TestKeySetRefuses(t *testing.T) {
	for _, test := range []struct {
		name string
		keys Keys
		says string
	}{
		{"nothing", Keys{}, "0 sources"},
		{"two places", Keys{URI: "https://x.example/jwks", File: "x"}, "2 sources"},
		{"discovery", Keys{Discovery: true}, "no metadata"},
		{"no URL", Keys{URI: "gate"}, "not an http"},
		{"a file that is not there", Keys{File: "/nonexistent/jwks.json"}, "no such file"},
	} {
		if _, err := NewKeySet("https://gate.example", test.keys, Options{}); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want %q", test.name, err, test.says)
		}
	}
	var zero KeySet
	if _, ok := zero.Lookup("x"); ok || zero.Ready() == nil {
		t.Error("the zero value has a key")
	}
	zero.Close()
}
