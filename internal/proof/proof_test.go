package proof

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sallyport/sallyport/internal/sallytest"
)

const (
	token = "header.payload.signature"
	url   = "https://api.example.com/orders/7"
)

func requestOf(h *sallytest.Holder) Request {
	return Request{Method: "GET", URL: url, Token: sha256.Sum256([]byte(token)), Key: h.Thumbprint(), Now: time.Now()}
}

func codeOf(err error) string {
	var refusal *Error
	if errors.As(err, &refusal) {
		return refusal.Code
	}
	return ""
}

func TestVerify(t *testing.T) {
	for _, algorithm := range Algorithms() {
		h := sallytest.NewHolder(t, algorithm)
		shown, err := Verify([]string{h.Proof("GET", url, token, map[string]any{"nonce": "n"})}, requestOf(h))
		if err != nil || len(shown.ID) != 43 || shown.Nonce != "n" || time.Until(shown.Until) < MaxAge {
			t.Errorf("%s: %+v, %v", algorithm, shown, err)
		}
	}
	// the example of RFC 9449, section 7.1
	const rfc = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19." +
		"eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9." +
		"2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
	r := Request{
		Method: "GET", URL: "https://resource.example.org/protectedresource", Key: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
		Token: sha256.Sum256([]byte("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU")), Now: time.Unix(1562262618, 0),
	}
	if _, err := Verify([]string{rfc}, r); err != nil {
		t.Error(err)
	}
}

// P01 and P02, and what else a proof can get wrong.
func TestVerifyRefuses(t *testing.T) {
	h, other := sallytest.NewHolder(t, "ES256"), sallytest.NewHolder(t, "ES256")
	rs := sallytest.NewHolder(t, "RS256")
	good := func(changes map[string]any) string { return h.Proof("GET", url, token, changes) }
	headed := func(header map[string]any) string { return h.ProofWith(header, h.Claims("GET", url, token, nil)) }
	now := time.Now().Unix()
	private, err := h.Key.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var withPrivate = h.Public()
	withPrivate["d"] = strings.Trim(string(private[strings.Index(string(private), `"d":"`)+5:]), `"}`)
	certified := h.Public()
	certified["x5c"] = []string{"AAAA"}
	encrypting := h.Public()
	encrypting["use"] = "enc"
	sum := sha256.Sum256([]byte(token))
	for _, c := range []struct {
		name   string
		header []string
	}{
		{"P01 no proof", nil},
		{"P01 an empty one", []string{""}},
		{"P01 two proofs", []string{good(nil), good(nil)}},
		{"P01 two in one field", []string{good(nil) + ", " + good(nil)}},
		{"P01 iat too old", []string{good(map[string]any{"iat": now - 62})}},
		{"P01 iat ahead", []string{good(map[string]any{"iat": now + 8})}},
		{"P01 no iat", []string{good(map[string]any{"iat": nil})}},
		{"P01 iat a string", []string{good(map[string]any{"iat": "now"})}},
		{"P01 iat a fraction", []string{good(map[string]any{"iat": float64(now) + .5})}},
		{"P01 exp has passed", []string{good(map[string]any{"exp": now - 10})}},
		{"P01 nbf has not come", []string{good(map[string]any{"nbf": now + 10})}},
		{"P01 another method", []string{good(map[string]any{"htm": "POST"})}},
		{"P01 method in lower case", []string{good(map[string]any{"htm": "get"})}},
		{"P01 no method", []string{good(map[string]any{"htm": nil})}},
		{"P01 another host", []string{good(map[string]any{"htu": "https://other.example.com/orders/7"})}},
		{"P01 another port", []string{good(map[string]any{"htu": "https://api.example.com:8443/orders/7"})}},
		{"P01 the port written out", []string{good(map[string]any{"htu": "https://api.example.com:443/orders/7"})}},
		{"P01 another scheme", []string{good(map[string]any{"htu": "http://api.example.com/orders/7"})}},
		{"P01 another path", []string{good(map[string]any{"htu": "https://api.example.com/orders/8"})}},
		{"P01 another encoding", []string{good(map[string]any{"htu": "https://api.example.com/orders/%37"})}},
		{"P01 host in upper case", []string{good(map[string]any{"htu": "https://API.example.com/orders/7"})}},
		{"P01 with a query", []string{good(map[string]any{"htu": url + "?a=b"})}},
		{"P01 with a fragment", []string{good(map[string]any{"htu": url + "#a"})}},
		{"P01 htu a list", []string{good(map[string]any{"htu": []any{url}})}},
		{"P01 no ath", []string{good(map[string]any{"ath": nil})}},
		{"P01 ath of another token", []string{h.Proof("GET", url, token+"x", nil)}},
		{"P01 ath with padding", []string{good(map[string]any{"ath": base64.URLEncoding.EncodeToString(sum[:])})}},
		{"P01 ath in the other alphabet", []string{good(map[string]any{"ath": strings.NewReplacer("-", "+", "_", "/").Replace(base64.RawStdEncoding.EncodeToString(sum[:])) + "+"})}},

		{"P02 alg none", []string{headed(map[string]any{"alg": "none"})}},
		{"P02 alg HS256", []string{headed(map[string]any{"alg": "HS256"})}},
		{"P02 alg of another key", []string{headed(map[string]any{"alg": "ES384"})}},
		{"P02 alg PS256, signed RS256", []string{rs.ProofWith(map[string]any{"alg": "PS256"}, rs.Claims("GET", url, token, nil))}},
		{"P02 private key", []string{headed(map[string]any{"jwk": withPrivate})}},
		{"P02 symmetric key", []string{headed(map[string]any{"alg": "HS256", "jwk": map[string]any{"kty": "oct", "k": "AAAA"}})}},
		{"P02 key with a certificate", []string{headed(map[string]any{"jwk": certified})}},
		{"P02 key for encryption", []string{headed(map[string]any{"jwk": encrypting})}},
		{"P02 no key", []string{headed(map[string]any{"jwk": nil})}},
		{"P02 key of somebody else", []string{other.Proof("GET", url, token, nil)}},
		{"P02 signed by somebody else", []string{other.ProofWith(map[string]any{"jwk": h.Public()}, other.Claims("GET", url, token, nil))}},
		{"P02 typ of a token", []string{headed(map[string]any{"typ": "at+jwt"})}},
		{"P02 typ JWT", []string{headed(map[string]any{"typ": "JWT"})}},
		{"P02 no typ", []string{headed(map[string]any{"typ": nil})}},
		{"P02 typ in upper case", []string{headed(map[string]any{"typ": "DPOP+JWT"})}},
		{"P02 kid beside jwk", []string{headed(map[string]any{"kid": "k"})}},
		{"P02 crit", []string{headed(map[string]any{"crit": []any{"htm"}})}},
		{"P02 no jti", []string{good(map[string]any{"jti": nil})}},
		{"P02 empty jti", []string{good(map[string]any{"jti": ""})}},
		{"P02 jti a number", []string{good(map[string]any{"jti": 1})}},
		{"P02 jti too long", []string{good(map[string]any{"jti": strings.Repeat("j", 257)})}},
		{"P02 nonce a number", []string{good(map[string]any{"nonce": 1})}},
		{"padding behind", []string{good(nil) + "="}},
		{"a space before", []string{" " + good(nil)}},
	} {
		r := requestOf(h)
		if strings.Contains(c.name, "RS256") {
			r.Key = rs.Thumbprint()
		}
		shown, err := Verify(c.header, r)
		if codeOf(err) != CodeInvalid || shown != (Shown{}) {
			t.Errorf("%s: %+v, %v", c.name, shown, err)
		}
		for _, part := range c.header {
			if len(part) > 100 && (strings.Contains(err.Error(), part[40:80]) || strings.Contains(err.Error(), token)) {
				t.Errorf("%s: the error quotes the proof: %v", c.name, err)
			}
		}
	}
	r := requestOf(h)
	r.Key = ""
	if _, err := Verify([]string{good(nil)}, r); err == nil {
		t.Error("a proof of a token that is bound to no key passes")
	}
	if _, err := Verify([]string{good(map[string]any{"jti": strings.Repeat("j", 256)})}, requestOf(h)); err != nil {
		t.Errorf("the longest jti: %v", err)
	}
}

// Two proofs are told apart by key and jti together, and by nothing else.
func TestShownID(t *testing.T) {
	h, other := sallytest.NewHolder(t, "ES256"), sallytest.NewHolder(t, "EdDSA")
	id := func(h *sallytest.Holder, changes map[string]any) string {
		shown, err := Verify([]string{h.Proof("GET", url, token, changes)}, requestOf(h))
		if err != nil {
			t.Fatal(err)
		}
		return shown.ID
	}
	one := id(h, map[string]any{"jti": "a"})
	if id(h, map[string]any{"jti": "a", "nonce": "n", "iat": time.Now().Unix() - 1}) != one {
		t.Error("the same identifier of the same key has two names")
	}
	if id(h, map[string]any{"jti": "b"}) == one || id(other, map[string]any{"jti": "a"}) == one {
		t.Error("two proofs have one name")
	}
}

func TestRead(t *testing.T) {
	const sum = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
	type object = map[string]any
	for _, c := range []struct {
		name string
		cnf  any
		want Binding
		ok   bool
	}{
		{"key", object{"jkt": sum}, Binding{Key: sum}, true},
		{"certificate", object{"x5t#S256": sum}, Binding{Certificate: sum}, true},
		{"both", object{"jkt": sum, "x5t#S256": sum}, Binding{sum, sum}, true},
		{"null", nil, Binding{}, false},
		{"a string", sum, Binding{}, false},
		{"empty", object{}, Binding{}, false},
		{"unknown", object{"jwk": object{}}, Binding{}, false},
		{"unknown thumbprint", object{"x5t": sum}, Binding{}, false},
		{"unknown beside known", object{"jkt": sum, "kid": sum}, Binding{}, false},
		{"another case", object{"JKT": sum}, Binding{}, false},
		{"empty thumbprint", object{"jkt": ""}, Binding{}, false},
		{"short", object{"jkt": sum[:42]}, Binding{}, false},
		{"padded", object{"jkt": sum + "="}, Binding{}, false},
		{"a second spelling", object{"jkt": sum[:42] + "J"}, Binding{}, false},
		{"a line end", object{"jkt": sum[:20] + "\n" + sum[20:]}, Binding{}, false},
		{"a list", object{"jkt": []any{sum}}, Binding{}, false},
	} {
		b, err := Read(object{"cnf": c.cnf})
		if b != c.want || (err == nil) != c.ok || err != nil && codeOf(err) != CodeBinding {
			t.Errorf("%s: %+v, %v", c.name, b, err)
		}
	}
	if b, err := Read(object{}); b != (Binding{}) || err != nil {
		t.Errorf("no cnf: %+v, %v", b, err)
	}
}

func certificate(t *testing.T, from, until time.Time) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// P07: only the certificate itself, while it is valid.
func TestHeld(t *testing.T) {
	now := time.Now()
	mine, other := certificate(t, now.Add(-time.Hour), now.Add(time.Hour)), certificate(t, now.Add(-time.Hour), now.Add(time.Hour))
	sum := sha256.Sum256(mine.Raw)
	b := Binding{Certificate: base64.RawURLEncoding.EncodeToString(sum[:])}
	if !b.Held(mine, now) {
		t.Error("the certificate is the one")
	}
	if b.Held(nil, now) || b.Held(other, now) || b.Held(mine, now.Add(2*time.Hour)) || b.Held(mine, now.Add(-2*time.Hour)) || (Binding{}).Held(mine, now) {
		t.Error("what is not held passes")
	}
}

// P05: a nonce is good for its token, for a while, and for whoever shares the secret.
func TestNonces(t *testing.T) {
	secret := func(s string) *Nonces { return &Nonces{func() ([]byte, error) { return []byte(s), nil }} }
	n, replica, stranger := secret("one"), secret("one"), secret("two")
	broken := &Nonces{func() ([]byte, error) { return nil, errors.New("no key") }}
	mine, other := sha256.Sum256([]byte("mine")), sha256.Sum256([]byte("other"))
	at := time.Unix(1_800_000_000, 0).Truncate(time.Hour).Add(-time.Second) // the hour is about to change
	nonce, err := n.New(mine, at)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := n.New(mine, at); again == nonce {
		t.Error("two nonces are the same")
	}
	for _, c := range []struct {
		name  string
		by    *Nonces
		nonce string
		token [32]byte
		after time.Duration
		ok    bool
	}{
		{"at once", n, nonce, mine, 0, true},
		{"in the next hour", n, nonce, mine, 2 * time.Second, true},
		{"until the last moment", n, nonce, mine, nonceLife, true},
		{"stale", n, nonce, mine, nonceLife + time.Second, false},
		{"much later", n, nonce, mine, 3 * time.Hour, false},
		{"made by a clock that is ahead", n, nonce, mine, -20 * time.Second, true},
		{"made in the future", n, nonce, mine, -time.Minute, false},
		{"for another token", n, nonce, other, 0, false},
		{"by another replica", replica, nonce, mine, time.Second, true},
		{"by somebody with another secret", stranger, nonce, mine, 0, false},
		{"changed", n, nonce[:len(nonce)-2] + "AA", mine, 0, false},
		{"empty", n, "", mine, 0, false},
		{"not base64url", n, nonce + "=", mine, 0, false},
		{"very long", n, strings.Repeat("A", 4000), mine, 0, false},
		{"no secret", broken, nonce, mine, 0, false},
	} {
		age, ok := c.by.Check(c.nonce, c.token, at.Add(c.after))
		if ok != c.ok || ok && age != c.after {
			t.Errorf("%s: %v after %s", c.name, ok, age)
		}
	}
	if _, err := broken.New(mine, at); err == nil {
		t.Error("a nonce without a secret")
	}
	if Old(time.Minute) || !Old(4*time.Minute) {
		t.Error("when a successor is due")
	}
}

// FuzzVerify: whatever is accepted was signed by the key that the token is bound to, so nobody changed a byte of what it says.
func FuzzVerify(f *testing.F) {
	h := sallytest.NewHolder(f, "ES256")
	now := time.Now()
	good := h.Proof("GET", url, token, map[string]any{"nonce": "n", "exp": now.Unix() + 60})
	private, err := jose.JSONWebKey{Key: h.Key.Key}.MarshalJSON()
	if err != nil {
		f.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	f.Add(good)
	f.Add(good + "=")
	f.Add(good[1:])
	f.Add(h.ProofWith(map[string]any{"alg": "none"}, h.Claims("GET", url, token, nil)))
	f.Add(b64([]byte(`{"typ":"dpop+jwt","alg":"ES256","jwk":`+string(private)+`}`)) + good[strings.IndexByte(good, '.'):])
	f.Add("..")
	signed := good[:strings.LastIndexByte(good, '.')+1]
	f.Fuzz(func(t *testing.T, raw string) {
		r := requestOf(h)
		r.Now = now
		shown, err := Verify([]string{raw}, r)
		if err != nil {
			if codeOf(err) != CodeInvalid || shown != (Shown{}) {
				t.Fatalf("%v with %+v", err, shown)
			}
			return
		}
		if !strings.HasPrefix(raw, signed) || shown.Nonce != "n" || shown.ID == "" {
			t.Fatalf("accepted %q as %+v", raw, shown)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	h := sallytest.NewHolder(b, "ES256")
	header, r := []string{h.Proof("GET", url, token, nil)}, requestOf(h)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Verify(header, r); err != nil {
			b.Fatal(err)
		}
	}
}
