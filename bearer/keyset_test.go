package bearer

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

func TestReadKeysRejects(t *testing.T) {
	es, ed, rs := signers()["ES256"], signers()["EdDSA"], signers()["RS256"]
	small := func(bits string) object { // an RSA key whose modulus has so many bits
		modulus := map[string]string{"1024": strings.Repeat("f", 256), "2047": "7" + strings.Repeat("f", 511), "16384": strings.Repeat("f", 4096)}[bits]
		n, err := hex.DecodeString(modulus)
		if err != nil || len(n) == 0 {
			t.Fatal(bits)
		}
		return rs.jwk(object{"n": b64(n)})
	}
	for _, test := range []struct {
		name string
		key  any
		says string
	}{
		{"not an object", 1, "not an object"},
		{"null", nil, "not an object"},
		{"no kty", es.jwk(object{"kty": nil}), "parse key"},
		{"unknown kty", es.jwk(object{"kty": "XX"}), "parse key"},
		{"kty in lower case", es.jwk(object{"kty": "ec"}), "parse key"},
		{"EC private key", es.jwk(object{"d": "AQAB"}), "private key"},
		{"RSA private key", rs.jwk(object{"p": "AQAB"}), "private key"},
		{"Ed25519 private key", ed.jwk(object{"d": b64(make([]byte, 32))}), "private key"},
		{"RSA of 1024 bits", small("1024"), "1024 bits"},
		{"RSA of 2047 bits", small("2047"), "2047 bits"},
		{"RSA of 16384 bits", small("16384"), "modulus size"},
		{"RSA exponent 1", rs.jwk(object{"e": "AQ"}), "bad e value"},
		{"RSA exponent 2", rs.jwk(object{"e": "Ag"}), "exponent 2"},
		{"RSA exponent 0", rs.jwk(object{"e": "AA"}), "bad e value"},
		{"RSA exponent of 65 bits", rs.jwk(object{"e": "AQAAAAAAAAAD"}), "bad e value"},
		{"RSA without modulus", rs.jwk(object{"n": nil}), "parse key"},
		{"P-521", newSigner("k", "ES512").jwk(), "P-521"},
		{"secp256k1", es.jwk(object{"crv": "secp256k1"}), "parse key"},
		{"a point that is not on the curve", es.jwk(object{"y": es.jwk()["x"]}), "parse key"},
		{"a P-256 point called P-384", es.jwk(object{"crv": "P-384"}), "parse key"},
		{"X25519", ed.jwk(object{"crv": "X25519"}), "parse key"},
		{"Ed25519 of the wrong length", ed.jwk(object{"x": b64(make([]byte, 31))}), ""},
		{"use enc", es.jwk(object{"use": "enc"}), "use is not sig"},
		{"use a number", es.jwk(object{"use": 1}), "use is not sig"},
		{"key_ops without verify", es.jwk(object{"key_ops": []any{"sign", "encrypt"}}), "key_ops"},
		{"key_ops empty", es.jwk(object{"key_ops": []any{}}), "key_ops"},
		{"key_ops a string", es.jwk(object{"key_ops": "verify"}), "key_ops"},
		{"alg of another type of key", es.jwk(object{"alg": "RS256"}), "in common"},
		{"alg of another curve", es.jwk(object{"alg": "ES384"}), "in common"},
		{"alg that is not used", rs.jwk(object{"alg": "PS512"}), "in common"},
		{"alg for encryption", rs.jwk(object{"alg": "RSA-OAEP"}), "in common"},
		{"alg a number", es.jwk(object{"alg": 1}), "in common"},
		{"kid a number", es.jwk(object{"kid": 1}), "kid"},
		{"kid empty", es.jwk(object{"kid": ""}), "kid"},
		{"kid too long", es.jwk(object{"kid": strings.Repeat("k", 257)}), "kid"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys, rejected, err := readKeys([]byte(mustJSON(object{"keys": []any{test.key, ed.jwk(object{"kid": "good"})}})), supported())
			if err != nil {
				t.Fatalf("one bad key spoils the set: %v", err)
			}
			if len(keys) != 1 || keys[0].id != "good" || len(rejected) != 1 {
				t.Fatalf("keys %v, rejected %v", keys, rejected)
			}
			if got := rejected[0].Error(); !strings.Contains(got, test.says) || !strings.Contains(got, "key 0") {
				t.Errorf("%q does not say which and %q", got, test.says)
			}
		})
	}
}

func TestReadKeysRefusesTheSet(t *testing.T) {
	good := mustJSON(signers()["ES256"].jwk())
	for _, test := range []struct{ name, set, says string }{
		{"empty", `{"keys":[]}`, "no usable key"},
		{"only a bad key", `{"keys":[{"kty":"EC"}]}`, "no usable key"},
		{"no keys", `{}`, "no array"},
		{"keys an object", `{"keys":{}}`, "no array"},
		{"keys null", `{"keys":null}`, "no array"},
		{"a single key", good, "no array"},
		{"an array", `[` + good + `]`, "not an object"},
		{"HTML", `<!doctype html>`, "not JSON"},
		{"nothing", ``, "not JSON"},
		{"keys twice", `{"keys":[` + good + `],"keys":[]}`, "twice"},
		{"a member of a key twice", `{"keys":[{"kty":"EC","kty":"EC"},` + good + `]}`, "twice"},
		{"trailing bytes", `{"keys":[` + good + `]}x`, "not JSON"},
		{"deep", `{"keys":[` + good + `],"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "deeper"},
		{"a symmetric key", `{"keys":[` + good + `,{"kty":"oct","k":"AAAA"}]}`, "symmetric"},
		{"a symmetric key without its value", `{"keys":[` + good + `,{"kty":"oct"}]}`, "symmetric"},
		{"a symmetric key under another type", `{"keys":[` + good + `,{"kty":"EC","k":""}]}`, "symmetric"},
		{"101 keys", `{"keys":[` + strings.Repeat(good+",", 100) + good + `]}`, "101 keys"},
	} {
		t.Run(test.name, func(t *testing.T) {
			keys, _, err := readKeys([]byte(test.set), supported())
			if err == nil || keys != nil {
				t.Fatalf("accepted: %v", keys)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v: does not say %q", err, test.says)
			}
		})
	}
}

func TestReadKeysAccepts(t *testing.T) {
	rs, es := signers()["RS256"], signers()["ES256"]
	for _, test := range []struct {
		name       string
		key        object
		algorithms []string // the issuer's
		want       string
	}{
		{"no alg: what the type can do", rs.jwk(object{"alg": nil}), supported(), "RS256 PS256"},
		{"no alg: less what the issuer's list lacks", rs.jwk(object{"alg": nil}), []string{"PS256", "ES256"}, "PS256"},
		{"alg: only that", rs.jwk(object{"alg": "PS256"}), supported(), "PS256"},
		{"no use, no key_ops", es.jwk(object{"use": nil}), supported(), "ES256"},
		{"key_ops with verify", es.jwk(object{"key_ops": []any{"verify"}}), supported(), "ES256"},
		{"no kid", es.jwk(object{"kid": nil}), supported(), "ES256"},
		{"a certificate that is not looked at", es.jwk(object{"x5c": []any{"AA"}, "x5u": "::", "x5t": "!"}), supported(), "ES256"},
		{"members nobody knows", es.jwk(object{"exp": 1, "x": es.jwk()["x"], "ext": object{"a": []any{}}}), supported(), "ES256"},
		{"RSA exponent 3", rs.jwk(object{"e": "Aw"}), []string{"RS256"}, "RS256"},
	} {
		keys, rejected, err := readKeys([]byte(jwks(test.key)), test.algorithms)
		if err != nil || len(rejected) > 0 || len(keys) != 1 {
			t.Errorf("%s: %v, %v, %v", test.name, keys, rejected, err)
			continue
		}
		if got := strings.Join(keys[0].Algorithms, " "); got != test.want {
			t.Errorf("%s: algorithms %s, want %s", test.name, got, test.want)
		}
	}
	if keys, _, err := readKeys([]byte(jwks(es.jwk(), es.jwk(), es.jwk(object{"kid": "other"}))), supported()); err != nil || len(keys) != 2 {
		t.Errorf("the same key twice and under another kid: %d keys, %v", len(keys), err)
	}
}

// For a point of small order there is a signature of everything, and crypto/ed25519
// accepts it: there are seven such points, and the sign of x. That go-jose refuses
// them as keys is what the verifier relies on.
func TestSmallOrderPoints(t *testing.T) {
	zero, one := make([]byte, 32), append([]byte{1}, make([]byte, 31)...)
	p := append([]byte{0xed}, bytes.Repeat([]byte{0xff}, 31)...)
	p[31] = 0x7f
	order8 := []byte("\x26\xe8\x95\x8f\xc2\xb2\x27\xb0\x45\xc3\xf4\x89\xf2\xef\x98\xf0\xd5\xdf\xac\x05\xd3\xc6\x33\x39\xb1\x38\x02\x88\x6d\x53\xfc\x05")
	negated := []byte("\xc7\x17\x6a\x70\x3d\x4d\xd8\x4f\xba\x3c\x0b\x76\x0d\x10\x67\x0f\x2a\x20\x53\xfa\x2c\x39\xcc\xc6\x4e\xc7\xfd\x77\x92\xac\x03\x7a")
	points := [][]byte{zero, one, order8, negated}
	for _, low := range []byte{0xec, 0xed, 0xee} {
		points = append(points, append([]byte{low}, p[1:]...))
	}
	for _, point := range points {
		for _, sign := range []byte{0, 0x80} {
			k := bytes.Clone(point)
			k[31] |= sign
			_, rejected, err := readKeys([]byte(jwks(object{"kty": "OKP", "crv": "Ed25519", "x": b64(k)})), supported())
			if err == nil || len(rejected) != 1 || !strings.Contains(err.Error(), "low-order") {
				t.Errorf("%x: %v", k, err)
			}
		}
	}
	// what it is about: with the neutral element as key, this signs any message
	forged := append(bytes.Clone(one), zero...)
	for _, message := range []string{"a", "b", "c"} {
		if !ed25519.Verify(one, []byte(message), forged) {
			t.Error("the forgery that this test is about does not work: is this test needed?")
		}
	}
}

func TestFindKey(t *testing.T) {
	es, other, rs := signers()["ES256"], newSigner("other", "ES256"), signers()["RS256"]
	for _, test := range []struct {
		name  string
		keys  []object
		kid   string
		noKid bool
		alg   string
		code  string
	}{
		{name: "by kid", keys: []object{es.jwk(), other.jwk()}, kid: "other", alg: "ES256"},
		{name: "unknown kid", keys: []object{es.jwk()}, kid: "x", alg: "ES256", code: codeKey},
		{name: "kid in other case", keys: []object{es.jwk()}, kid: "KID-ES256", alg: "ES256", code: codeKey},
		{name: "kid of a key that is used with another alg", keys: []object{es.jwk(), rs.jwk()}, kid: rs.kid, alg: "ES256", code: codeAlgorithm},
		{name: "PS256 for a key of RS256", keys: []object{rs.jwk()}, kid: rs.kid, alg: "PS256", code: codeAlgorithm},
		{name: "no kid, one key", keys: []object{es.jwk()}, noKid: true, alg: "ES256"},
		{name: "no kid, one key that fits", keys: []object{es.jwk(), rs.jwk()}, noKid: true, alg: "ES256"},
		{name: "no kid, two keys that fit", keys: []object{es.jwk(), other.jwk()}, noKid: true, alg: "ES256", code: codeAmbiguous},
		{name: "no kid, no key that fits", keys: []object{es.jwk()}, noKid: true, alg: "EdDSA", code: codeAlgorithm},
		{name: "one kid, two types", keys: []object{es.jwk(), rs.jwk(object{"kid": es.kid})}, kid: es.kid, alg: "ES256"},
		{name: "one kid, two keys", keys: []object{es.jwk(), other.jwk(object{"kid": es.kid})}, kid: es.kid, alg: "ES256", code: codeAmbiguous},
		{name: "a key without kid is not meant by a kid", keys: []object{es.jwk(object{"kid": nil}), other.jwk()}, kid: es.kid, alg: "ES256", code: codeKey},
	} {
		keys, _, err := readKeys([]byte(jwks(test.keys...)), supported())
		if err != nil {
			t.Fatal(err)
		}
		found, refusal := (&keySet{keys: keys}).find(test.kid, !test.noKid, test.alg)
		switch {
		case refusal == nil && (test.code != "" || found.Public == nil):
			t.Errorf("%s: found %v, want %q", test.name, found.id, test.code)
		case refusal != nil && refusal.Code != test.code:
			t.Errorf("%s: got %v, want %q", test.name, refusal, test.code)
		}
	}
}

// FuzzReadKeys: whatever a server sends, what comes out of it are at most 100 keys of the types
// and sizes that are used.
func FuzzReadKeys(f *testing.F) {
	for _, alg := range supported() {
		f.Add([]byte(jwks(signers()[alg].jwk())))
	}
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"` + base64.RawURLEncoding.EncodeToString(make([]byte, 32)) + `"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, _, err := readKeys(data, supported())
		if (err == nil) != (len(keys) > 0) || len(keys) > maxKeys {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
		for _, k := range keys {
			if len(k.Algorithms) == 0 || len(k.Algorithms) > 2 || k.Public == nil || k.Thumbprint == "" {
				t.Fatalf("key %+v, %v", k, err)
			}
		}
	})
}
