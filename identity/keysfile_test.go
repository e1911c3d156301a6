package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func jwk(t testing.TB, seed byte) (kid, member string) {
	t.Helper()
	public := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	kid = Thumbprint(public)
	return kid, fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":"%s","kid":"%s","use":"sig","alg":"EdDSA"}`, base64.RawURLEncoding.EncodeToString(public), kid)
}

func jwks(members ...string) string { return `{"keys":[` + strings.Join(members, ",") + `]}` }

// replace writes as sallyport does: a new file under the old name.
func replace(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestParseKeysRefuses(t *testing.T) {
	kid, good := jwk(t, 0)
	_, other := jwk(t, 1)
	with := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%s has no %s", good, old)
		}
		return jwks(strings.Replace(good, old, new, 1))
	}
	var many []string
	for i := range byte(maxKeys + 1) {
		_, m := jwk(t, i)
		many = append(many, m)
	}
	for _, test := range []struct{ name, data, want string }{
		{"empty file", "", "not a JWK set"},
		{"array", "[]", "not a JWK set"},
		{"no keys", "{}", "not a JWK set"},
		{"bare key", good, "not a JWK set"},
		{"other member", `{"keys":[],"next":1}`, "not a JWK set"},
		{"other case", strings.Replace(jwks(good), "keys", "Keys", 1), "not a JWK set"},
		{"keys twice", `{"keys":[],"keys":[` + good + `]}`, "duplicate_member"},
		{"trailing bytes", jwks(good) + "x", "not a JWK set"},
		{"second document", jwks(good) + jwks(good), "not a JWK set"},
		{"half written", jwks(good)[:80], "not a JWK set"},
		{"null key", jwks("null"), "not an Ed25519 key"},
		{"string key", jwks(`"` + kid + `"`), "not an Ed25519 key"},
		{"private part", with(`"use"`, `"d":"AAAA","use"`), "private part"},
		{"symmetric", jwks(`{"kty":"oct","k":"c2VjcmV0"}`), "other than"},
		{"RSA", with(`"OKP"`, `"RSA"`), "not an Ed25519 key"},
		{"X25519", with(`"Ed25519"`, `"X25519"`), "not an Ed25519 key"},
		{"for encryption", with(`"sig"`, `"enc"`), "use"},
		{"other algorithm", with(`"EdDSA"`, `"ES256"`), "alg"},
		{"x5c", with(`"use"`, `"x5c":[],"use"`), "other than"},
		{"x padded", with(`","kid"`, `=","kid"`), "32 bytes"},
		{"x short", jwks(`{"kty":"OKP","crv":"Ed25519","x":"AAAA","kid":"` + kid + `"}`), "32 bytes"},
		{"kid another's", with(kid[:8], "AAAAAAAA"), "thumbprint"},
		{"kid missing", with(`,"kid":"`+kid+`"`, ""), "thumbprint"},
		{"x twice", with(`"kid"`, `"x":"`+strings.Repeat("A", 43)+`","kid"`), "duplicate_member"},
		{"same key twice", jwks(good, other, good), "twice"},
		{"too many", jwks(many...), "over 100"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys, err := parseKeys([]byte(test.data))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, %v; want an error with %q", keys, err, test.want)
			}
		})
	}
	if keys, err := parseKeys([]byte(jwks(many[:maxKeys]...))); err != nil || len(keys) != maxKeys {
		t.Errorf("%d keys: %d, %v", maxKeys, len(keys), err)
	}
}

func TestKeysFileFollowsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jwks.json")
	one, first := jwk(t, 1)
	two, second := jwk(t, 2)
	replace(t, path, jwks(first))
	var elapsed atomic.Int64
	f, err := openKeysFile(path, func() time.Duration { return time.Duration(elapsed.Load()) })
	if err != nil {
		t.Fatal(err)
	}
	expect := func(when string, kids ...string) {
		t.Helper()
		for _, kid := range []string{one, two} {
			want := false
			for _, k := range kids {
				want = want || k == kid
			}
			if _, ok := f.lookup(kid); ok != want {
				t.Errorf("%s: key %.6s known: %v, want %v", when, kid, ok, want)
			}
		}
	}
	later := func() { elapsed.Add(int64(rereadEvery)) }

	expect("at first", one)
	replace(t, path, jwks(first, second))
	expect("within a second of the last look", one)
	later()
	expect("a key published", one, two)
	replace(t, path, `{"keys":[`)
	later()
	expect("a broken file", one, two)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	later()
	expect("no file", one, two)
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	later()
	expect("a FIFO that nobody writes", one, two)
	replace(t, path, jwks(second))
	later()
	expect("a key withdrawn", two)
	// written in place, of another size
	if err := os.WriteFile(path, []byte(jwks(first, second)), 0o644); err != nil {
		t.Fatal(err)
	}
	later()
	expect("written in place", one, two)
	replace(t, path, jwks())
	later()
	expect("all withdrawn")
}

func TestKeysFileRefusesAtFirst(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": jwks(), "broken": "{", "long": strings.Repeat(" ", maxKeysBytes) + jwks()} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := KeysFile(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, path := range []string{filepath.Join(dir, "absent"), dir} {
		if _, err := KeysFile(path); err == nil {
			t.Errorf("%s was read", path)
		}
	}
}

// A lookup is never without the keys that are published throughout, while the file is replaced under it.
func TestKeysFileUnderConcurrentLookups(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jwks.json")
	one, first := jwk(t, 1)
	_, second := jwk(t, 2)
	replace(t, path, jwks(first))
	var elapsed atomic.Int64
	f, err := openKeysFile(path, func() time.Duration { return time.Duration(elapsed.Add(int64(rereadEvery))) })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, ok := f.lookup(one); !ok {
					t.Error("the key was gone")
					return
				}
			}
		})
	}
	for i := range 100 {
		content := jwks(first)
		if i%2 == 0 {
			content = jwks(first, second)
		}
		replace(t, path, content)
	}
	close(done)
	wg.Wait()
}

// What is accepted is a set that can be written down again, each key under its own name.
func FuzzParseKeys(f *testing.F) {
	_, a := jwk(f, 0)
	_, b := jwk(f, 1)
	f.Add([]byte(jwks(a, b)))
	f.Add([]byte(jwks()))
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"` + strings.Repeat("A", 43) + `","kid":"x","d":"y"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parseKeys(data)
		if err != nil {
			if keys != nil {
				t.Error("keys beside an error")
			}
			return
		}
		if strings.Contains(string(data), `"d"`) {
			t.Error("a private part was accepted")
		}
		var members []string
		for kid, public := range keys {
			if kid != Thumbprint(public) {
				t.Errorf("%s is not the thumbprint", kid)
			}
			m, err := json.Marshal(map[string]string{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(public), "kid": kid})
			if err != nil {
				t.Fatal(err)
			}
			members = append(members, string(m))
		}
		again, err := parseKeys([]byte(jwks(members...)))
		if err != nil || len(again) != len(keys) {
			t.Errorf("again: %d keys of %d, %v", len(again), len(keys), err)
		}
	})
}

func BenchmarkKeysFile(b *testing.B) {
	path := filepath.Join(b.TempDir(), "jwks.json")
	kid, member := jwk(b, 1)
	if err := os.WriteFile(path, []byte(jwks(member)), 0o644); err != nil {
		b.Fatal(err)
	}
	lookup, err := KeysFile(path)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, ok := lookup(kid); !ok {
				b.Fail()
			}
		}
	})
}
