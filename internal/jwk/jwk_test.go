package jwk

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/sallyport/sallyport/internal/jws"
)

func object(t testing.TB, key any) map[string]any {
	t.Helper()
	data, err := jose.JSONWebKey{Key: key}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	o, err := jws.Object(data)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func with(o map[string]any, name string, value any) map[string]any {
	o = maps.Clone(o)
	o[name] = value
	return o
}

func TestRead(t *testing.T) {
	es, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := object(t, es.Public())
	for _, c := range []struct {
		name string
		jwk  map[string]any
		want []string // nil: refused
	}{
		{"ES256", public, []string{"ES256"}},
		{"EdDSA", object(t, ed.Public()), []string{"EdDSA"}},
		{"RSA", object(t, rs.Public()), []string{"RS256", "PS256"}},
		{"RSA of one alg", with(object(t, rs.Public()), "alg", "PS256"), []string{"PS256"}},
		{"for signatures", with(public, "use", "sig"), []string{"ES256"}},
		{"nothing", nil, nil},
		{"empty", map[string]any{}, nil},
		{"private", object(t, es), nil},
		{"private, EdDSA", object(t, ed), nil},
		{"private, RSA", object(t, rs), nil},
		{"private member that is null", with(public, "d", nil), nil},
		{"symmetric", object(t, []byte("0123456789012345")), nil},
		{"for encryption", with(public, "use", "enc"), nil},
		{"for signing only", with(public, "key_ops", []any{"sign"}), nil},
		{"alg of another type", with(public, "alg", "EdDSA"), nil},
		{"alg a number", with(public, "alg", int64(1)), nil},
		{"another curve", object(t, p521.Public()), nil},
		{"a point that is on no curve", with(public, "x", public["y"]), nil},
	} {
		k, err := Read(c.jwk)
		if (err == nil) != (c.want != nil) || !slices.Equal(k.Algorithms, c.want) {
			t.Errorf("%s: %v, %v", c.name, k.Algorithms, err)
		}
	}
	// RFC 7638, section 3.1
	var rfc map[string]any
	if err := json.Unmarshal([]byte(`{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`), &rfc); err != nil {
		t.Fatal(err)
	}
	if k, err := Read(rfc); err != nil || k.Thumbprint != "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" {
		t.Errorf("thumbprint %q, %v", k.Thumbprint, err)
	}
}
