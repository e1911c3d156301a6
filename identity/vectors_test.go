package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

var update = flag.Bool("update", false, "write the vectors anew")

const vectorsPath = "../testdata/vectors/assertions.json"

// vectors is the file that every verifier of assertions is tested with, in whatever language.
type vectors struct {
	Readme      []string        `json:"readme"`
	Now         time.Time       `json:"now"`
	Issuer      string          `json:"issuer"`
	Audience    string          `json:"audience"`
	TrustDomain string          `json:"trust_domain"`
	JWKS        json.RawMessage `json:"jwks"`
	Cases       []vector        `json:"cases"`
}

type vector struct {
	Name      string `json:"name"`
	Assertion string `json:"assertion"`
	Valid     bool   `json:"valid"`
	Code      string `json:"code,omitempty"`
	Ours      bool   `json:"ours,omitempty"`
}

var readme = []string{
	"Assertions that a service behind sallyport must accept or refuse. identity/vectors_test.go writes this file (go test ./identity -update)",
	"and reads it; verifiers in other languages read it too. Verify each assertion at the instant \"now\" with the keys \"jwks\", for the issuer",
	"\"issuer\" the service \"audience\" and the trust domain \"trust_domain\": a case with \"valid\": true is accepted, any other refused. \"code\" is the",
	"reason that Go's identity.Error gives; another verifier need not use the same words. \"ours\": true marks what only a holder of the signing key could have",
	"made: the strict verifier refuses it as not its own, while one on a general JOSE library may accept it without danger.",
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func signRaw(k identity.Key, header, payload string) string {
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(string(ed25519.Sign(k.Private, []byte(input))))
}

// edit changes one piece of compact JSON text, which must be there once.
func edit(text, old, new string) string {
	if strings.Count(text, old) != 1 {
		panic("edit: " + old + " is not once in " + text)
	}
	return strings.Replace(text, old, new, 1)
}

func makeVectors() vectors {
	one, two, stranger := testKey("one"), testKey("two"), testKey("stranger")
	var set struct {
		Keys []map[string]string `json:"keys"`
	}
	for _, k := range []identity.Key{one, two} {
		set.Keys = append(set.Keys, map[string]string{
			"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": k.ID,
			"x": b64(string(k.Private.Public().(ed25519.PublicKey))),
		})
	}
	jwks, err := json.Marshal(set)
	if err != nil {
		panic(err)
	}
	header := `{"alg":"EdDSA","kid":"` + one.ID + `","typ":"txntoken+jwt"}`
	payload := `{"iss":"sallyport","aud":"shop.example","sub":"alice","txn":"01J9ZK3V7Q8V","jti":"01J9ZK3V7Q8W","scope":"orders:read orders:write",` +
		`"req_wl":"gateway,orders","rctx":{"iss":"https://auth.example.com","jti":"at-1","client_id":"shop","sid":"s-1","iat":1803902000},` +
		`"tctx":{"service":"orders","route":"read-order","claims":{"tenant":"acme","roles":["admin"]}},"iat":1803902390,"exp":1803902450}`
	return vectors{readme, testNow, "sallyport", "orders", "shop.example", jwks, slices.Concat(
		validVectors(one, two, header, payload),
		headerVectors(one, stranger, header, payload),
		claimVectors(one, header, payload),
		timeVectors(one, header, payload),
		formVectors(one, two, header, payload),
	)}
}

func validVectors(one, two identity.Key, header, payload string) []vector {
	minimal := `{"iss":"sallyport","aud":"shop.example","sub":"batch","txn":"1","jti":"1","req_wl":"orders","rctx":{"iss":"x","digest":"d"},` +
		`"tctx":{"service":"orders","route":"health"},"iat":1803902400,"exp":1803902401}`
	return []vector{
		{Name: "good", Assertion: signRaw(one, header, payload), Valid: true},
		{Name: "good, by the second key", Assertion: signRaw(two, edit(header, one.ID, two.ID), payload), Valid: true},
		{Name: "minimal", Assertion: signRaw(one, header, minimal), Valid: true},
		{Name: "good, subject in other scripts and with escapes", Assertion: signRaw(one, header, edit(payload, `"alice"`, `"\u00e5lice \"\\ \ud83d\ude00 日本"`)), Valid: true},
		{Name: "good, eight services", Assertion: signRaw(one, header, edit(payload, `"gateway,orders"`, `"a,b,c,d,e,f,g,orders"`)), Valid: true},
		{Name: "good, sid passed on too", Assertion: signRaw(one, header, edit(payload, `"tenant"`, `"sid":"s-1","tenant"`)), Valid: true},
		{Name: "good, at the end of the leeway", Assertion: signRaw(one, header, times(payload, 1803902336, 1803902396)), Valid: true},
		{Name: "good, issued by a clock within the leeway", Assertion: signRaw(one, header, times(payload, 1803902405, 1803902465)), Valid: true},
	}
}

func headerVectors(one, stranger identity.Key, header, payload string) []vector {
	mac := func(key string) string {
		input := b64(edit(header, "EdDSA", "HS256")) + "." + b64(payload)
		h := hmac.New(sha256.New, []byte(key))
		h.Write([]byte(input))
		return input + "." + b64(string(h.Sum(nil)))
	}
	public := string(one.Private.Public().(ed25519.PublicKey))
	good := signRaw(one, header, payload)
	return []vector{
		{Name: "alg none, no signature", Assertion: b64(edit(header, "EdDSA", "none")) + "." + b64(payload) + ".", Code: "token_not_compact"},
		{Name: "alg none, with a signature", Assertion: signRaw(one, edit(header, "EdDSA", "none"), payload), Code: "alg_invalid"},
		{Name: "alg nOnE, of another key", Assertion: signRaw(stranger, edit(header, "EdDSA", "nOnE"), payload), Code: "alg_invalid"},
		{Name: "alg HS256 with the public key's bytes as the secret", Assertion: mac(public), Code: "alg_not_allowed"},
		{Name: "alg HS256 with the public key's x as the secret", Assertion: mac(b64(public)), Code: "alg_not_allowed"},
		{Name: "alg ES256 over an Ed25519 signature", Assertion: signRaw(one, edit(header, "EdDSA", "ES256"), payload), Code: "alg_not_allowed"},
		{Name: "alg eddsa in lower case", Assertion: signRaw(one, edit(header, "EdDSA", "eddsa"), payload), Code: "alg_not_allowed", Ours: true},
		{Name: "alg Ed25519, the other name of the same algorithm", Assertion: signRaw(one, edit(header, "EdDSA", "Ed25519"), payload), Code: "alg_not_allowed", Ours: true},
		{Name: "alg missing", Assertion: signRaw(one, edit(header, `"alg":"EdDSA",`, ""), payload), Code: "alg_invalid"},
		{Name: "alg not a string", Assertion: signRaw(one, edit(header, `"EdDSA"`, `["EdDSA"]`), payload), Code: "alg_invalid"},
		{Name: "typ missing", Assertion: signRaw(one, edit(header, `,"typ":"txntoken+jwt"`, ""), payload), Code: "typ_not_allowed"},
		{Name: "typ of an access token", Assertion: signRaw(one, edit(header, "txntoken+jwt", "at+jwt"), payload), Code: "typ_not_allowed"},
		{Name: "typ JWT", Assertion: signRaw(one, edit(header, "txntoken+jwt", "JWT"), payload), Code: "typ_not_allowed"},
		{Name: "typ in upper case", Assertion: signRaw(one, edit(header, "txntoken+jwt", "TXNTOKEN+JWT"), payload), Code: "typ_not_allowed", Ours: true},
		{Name: "typ with application/ before it", Assertion: signRaw(one, edit(header, "txntoken+jwt", "application/txntoken+jwt"), payload), Code: "typ_not_allowed", Ours: true},
		{Name: "kid missing", Assertion: signRaw(one, edit(header, `"kid":"`+one.ID+`",`, ""), payload), Code: "kid_missing", Ours: true},
		{Name: "kid not a string", Assertion: signRaw(one, edit(header, `"`+one.ID+`"`, "1"), payload), Code: "kid_invalid", Ours: true},
		{Name: "kid unknown", Assertion: signRaw(stranger, edit(header, one.ID, stranger.ID), payload), Code: "kid_unknown"},
		{Name: "kid unknown, a path", Assertion: signRaw(stranger, edit(header, one.ID, "../../dev/null"), payload), Code: "kid_unknown"},
		{Name: "known kid, signed by another key", Assertion: signRaw(stranger, header, payload), Code: "signature_invalid"},
		{Name: "header brings its own key", Assertion: signRaw(stranger, edit(header, `"typ"`, `"jwk":{"kty":"OKP","crv":"Ed25519","x":"`+b64(string(stranger.Private.Public().(ed25519.PublicKey)))+`"},"typ"`), payload), Code: "header_unexpected"},
		{Name: "header names a place of keys", Assertion: signRaw(stranger, edit(header, `"typ"`, `"jku":"https://evil.example/jwks.json","typ"`), payload), Code: "header_unexpected"},
		{Name: "header member more", Assertion: signRaw(one, edit(header, `"typ"`, `"cty":"JWT","typ"`), payload), Code: "header_unexpected", Ours: true},
		{Name: "crit of an unknown extension", Assertion: signRaw(one, edit(header, `"typ"`, `"crit":["exp"],"exp":1,"typ"`), payload), Code: "crit_unsupported"},
		{Name: "header member twice", Assertion: signRaw(one, edit(header, `"typ"`, `"alg":"none","typ"`), payload), Code: "duplicate_member"},
		{Name: "another header over the signature of a good one", Assertion: b64(edit(header, `","kid"`, `" ,"kid"`)) + good[strings.IndexByte(good, '.'):], Code: "signature_invalid"},
	}
}

func claimVectors(one identity.Key, header, payload string) []vector {
	var out []vector
	add := func(name, code, old, new string) {
		out = append(out, vector{Name: name, Assertion: signRaw(one, header, edit(payload, old, new)), Code: code})
	}
	ours := func(name, code, old, new string) {
		add(name, code, old, new)
		out[len(out)-1].Ours = true
	}
	add("iss of another", "issuer_mismatch", `"sallyport"`, `"sallyport2"`)
	add("iss in other case", "issuer_mismatch", `"sallyport"`, `"Sallyport"`)
	add("iss missing", "claim_missing", `"iss":"sallyport",`, "")
	add("iss not a string", "claim_invalid", `"sallyport"`, `["sallyport"]`)
	add("aud of another", "audience_mismatch", `"shop.example"`, `"other.example"`)
	add("aud with a prefix in common", "audience_mismatch", `"shop.example"`, `"shop.example2"`)
	add("aud the service's name", "audience_mismatch", `"shop.example"`, `"orders"`)
	add("aud missing", "claim_missing", `"aud":"shop.example",`, "")
	add("aud empty", "claim_invalid", `"shop.example"`, `""`)
	ours("aud an array", "claim_invalid", `"shop.example"`, `["shop.example"]`)
	ours("aud an array of two", "claim_invalid", `"shop.example"`, `["shop.example","other.example"]`)
	add("aud null", "claim_invalid", `"shop.example"`, `null`)
	add("service another of the same trust domain", "service_mismatch", `"service":"orders"`, `"service":"billing"`)
	add("service with a prefix in common", "service_mismatch", `"service":"orders"`, `"service":"orders2"`)
	add("service in other case", "service_mismatch", `"service":"orders"`, `"service":"Orders"`)
	add("service missing", "claim_missing", `"service":"orders",`, "")
	add("service an array", "claim_invalid", `"service":"orders"`, `"service":["orders"]`)
	add("service null", "claim_invalid", `"service":"orders"`, `"service":null`)
	add("service beside tctx, not in it", "claim_missing", `"tctx":{"service":"orders",`, `"service":"orders","tctx":{`)
	ours("sub missing", "claim_missing", `"sub":"alice",`, "")
	ours("sub a number", "claim_invalid", `"alice"`, `7`)
	ours("sub empty", "claim_invalid", `"alice"`, `""`)
	ours("sub an object", "claim_invalid", `"alice"`, `{"name":"alice"}`)
	ours("sub with a line end", "claim_invalid", `"alice"`, `"alice\nroot"`)
	ours("txn missing", "claim_missing", `"txn":"01J9ZK3V7Q8V",`, "")
	ours("txn a number", "claim_invalid", `"01J9ZK3V7Q8V"`, `1`)
	ours("jti missing", "claim_missing", `"jti":"01J9ZK3V7Q8W",`, "")
	ours("jti a number", "claim_invalid", `"01J9ZK3V7Q8W"`, `1`)
	ours("scope an array", "claim_invalid", `"orders:read orders:write"`, `["orders:read"]`)
	ours("scope empty", "claim_invalid", `"orders:read orders:write"`, `""`)
	ours("scope with two spaces", "claim_invalid", `"orders:read orders:write"`, `"orders:read  orders:write"`)
	ours("scope with a tab", "claim_invalid", `"orders:read orders:write"`, `"orders:read\torders:write"`)
	ours("scope with a space before it", "claim_invalid", `"orders:read orders:write"`, `" orders:read orders:write"`)
	ours("req_wl missing", "claim_missing", `"req_wl":"gateway,orders",`, "")
	ours("req_wl empty", "claim_invalid", `"gateway,orders"`, `""`)
	ours("req_wl an array", "claim_invalid", `"gateway,orders"`, `["gateway","orders"]`)
	ours("req_wl with an empty name", "claim_invalid", `"gateway,orders"`, `"gateway,,orders"`)
	ours("req_wl with a comma behind", "claim_invalid", `"gateway,orders"`, `"gateway,orders,"`)
	ours("req_wl with a space", "claim_invalid", `"gateway,orders"`, `"gateway, orders"`)
	ours("req_wl of nine services", "claim_invalid", `"gateway,orders"`, `"a,b,c,d,e,f,g,h,orders"`)
	ours("rctx missing", "claim_missing", `"rctx":{"iss":"https://auth.example.com","jti":"at-1","client_id":"shop","sid":"s-1","iat":1803902000},`, "")
	ours("rctx a string", "claim_invalid", `{"iss":"https://auth.example.com","jti":"at-1","client_id":"shop","sid":"s-1","iat":1803902000}`, `"alice"`)
	ours("rctx without iss", "claim_missing", `"iss":"https://auth.example.com",`, "")
	ours("rctx without jti and digest", "claim_invalid", `"jti":"at-1",`, "")
	ours("rctx with jti and digest", "claim_invalid", `"jti":"at-1",`, `"jti":"at-1","digest":"d",`)
	ours("rctx with client_id null", "claim_invalid", `"shop"`, `null`)
	ours("rctx with iat a string", "claim_invalid", `1803902000`, `"1803902000"`)
	ours("rctx with a claim more", "claim_unexpected", `"sid":"s-1"`, `"sid":"s-1","act":{"sub":"root"}`)
	ours("tctx missing", "claim_missing", `"tctx":{"service":"orders","route":"read-order","claims":{"tenant":"acme","roles":["admin"]}},`, "")
	ours("tctx an array", "claim_invalid", `{"service":"orders","route":"read-order","claims":{"tenant":"acme","roles":["admin"]}}`, `["orders"]`)
	ours("route missing", "claim_missing", `,"route":"read-order"`, "")
	ours("route empty", "claim_invalid", `"read-order"`, `""`)
	ours("claims an array", "claim_invalid", `{"tenant":"acme","roles":["admin"]}`, `["admin"]`)
	ours("claims empty", "claim_invalid", `{"tenant":"acme","roles":["admin"]}`, `{}`)
	ours("claims with another sid than rctx", "claim_invalid", `"tenant"`, `"sid":"s-2","tenant"`)
	ours("tctx with a claim more", "claim_unexpected", `"route"`, `"method":"GET","route"`)
	ours("claim that no assertion has", "claim_unexpected", `"req_wl"`, `"roles":["admin"],"req_wl"`)
	ours("claims of the form before transaction tokens", "claim_unexpected", `"req_wl"`, `"caller_iss":"https://auth.example.com","req_wl"`)
	ours("nbf, which no assertion has", "claim_unexpected", `"req_wl"`, `"nbf":1803902390,"req_wl"`)
	ours("claim in other case beside the real one", "claim_unexpected", `"req_wl"`, `"Sub":"root","req_wl"`)
	add("sub twice", "duplicate_member", `"sub":"alice"`, `"sub":"alice","sub":"root"`)
	add("aud twice", "duplicate_member", `"aud":"shop.example"`, `"aud":"other.example","aud":"shop.example"`)
	add("service twice", "duplicate_member", `"service":"orders"`, `"service":"billing","service":"orders"`)
	add("exp twice", "duplicate_member", `"exp":1803902450`, `"exp":1803902300,"exp":1803902450`)
	add("sub twice, once escaped", "duplicate_member", `"sub":"alice"`, `"sub":"alice","\u0073ub":"root"`)
	ours("duplicate inside claims", "duplicate_member", `"tenant":"acme"`, `"tenant":"acme","tenant":"other"`)
	ours("lone surrogate", "token_encoding", `"alice"`, `"alice\ud800"`)
	ours("NUL", "token_encoding", `"alice"`, `"alice\u0000"`)
	ours("not UTF-8", "token_encoding", `"alice"`, "\"alice\xff\"")
	return out
}

// times sets iat and exp to numbers or to other JSON.
func times(payload string, iat, exp any) string {
	i, _ := json.Marshal(iat)
	e, _ := json.Marshal(exp)
	return edit(payload, `"iat":1803902390,"exp":1803902450`, `"iat":`+string(i)+`,"exp":`+string(e))
}

func timeVectors(one identity.Key, header, payload string) []vector {
	const now = 1803902400
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	var out []vector
	add := func(name, code string, ours bool, iat, exp any) {
		out = append(out, vector{Name: name, Assertion: signRaw(one, header, times(payload, iat, exp)), Code: code, Ours: ours})
	}
	add("expired a minute ago", "expired", false, now-120, now-60)
	add("expired, just out of the leeway", "expired", false, now-65, now-5)
	add("issued in the future", "not_yet_valid", true, now+60, now+90)
	add("issued in the future, just out of the leeway", "not_yet_valid", true, now+6, now+66)
	add("lives 61 s", "lifetime_too_long", true, now-1, now+60)
	add("lives an hour", "lifetime_too_long", true, now, now+3600)
	add("lives for ever", "lifetime_too_long", true, 1, int64(1)<<62)
	add("exp before iat", "claim_invalid", true, now+3, now+2)
	add("exp the same as iat", "claim_invalid", true, now, now)
	add("exp a string", "claim_invalid", false, now-10, "1803902450")
	add("exp null", "claim_invalid", false, now-10, nil)
	add("exp with a fraction", "claim_invalid", true, now-10, raw("1803902450.5"))
	add("exp with an exponent", "claim_invalid", true, now-10, raw("1.80390245e9"))
	add("exp beyond any number", "number_out_of_range", false, now-10, raw("1e999"))
	add("exp huge", "claim_invalid", true, now-10, raw("1e300"))
	add("exp beyond 64 bits", "claim_invalid", true, now-10, raw("18446744073709551617"))
	add("exp negative", "claim_invalid", false, now-10, -1)
	add("iat a string", "claim_invalid", false, "1803902390", now+50)
	add("iat zero", "claim_invalid", true, 0, now+50)
	out = append(out,
		vector{Name: "exp missing", Assertion: signRaw(one, header, edit(payload, `,"exp":1803902450`, "")), Code: "claim_missing"},
		vector{Name: "iat missing", Assertion: signRaw(one, header, edit(payload, `"iat":1803902390,`, "")), Code: "claim_missing"})
	return out
}

func formVectors(one, two identity.Key, header, payload string) []vector {
	good := signRaw(one, header, payload)
	parts := strings.Split(good, ".")
	raw, _ := base64.RawURLEncoding.DecodeString(parts[2])
	flipped := slices.Clone(raw)
	flipped[0] ^= 1
	// S+L is the other S of the same equation; RFC 8032 requires it to be refused
	twin := slices.Concat(raw[:32], plusOrder(raw[32:]))
	jsonForm, _ := json.Marshal(map[string]string{"protected": parts[0], "payload": parts[1], "signature": parts[2]})
	other := strings.Split(signRaw(one, header, edit(payload, "alice", "bob")), ".")
	last := parts[2][len(parts[2])-1]
	bad := func(name, code, assertion string) vector {
		return vector{Name: name, Assertion: assertion, Code: code}
	}
	return []vector{
		bad("empty", "token_not_compact", ""),
		bad("not a token", "token_not_compact", "hello"),
		bad("two dots alone", "token_not_compact", ".."),
		bad("JSON serialization", "token_not_compact", string(jsonForm)),
		bad("four segments", "token_not_compact", good+".AAAA"),
		bad("five segments, as encrypted", "token_not_compact", good+".AAAA.AAAA"),
		bad("no signature", "token_not_compact", parts[0]+"."+parts[1]+"."),
		bad("no signature and no dot", "token_not_compact", parts[0]+"."+parts[1]),
		bad("no payload", "token_not_compact", parts[0]+".."+parts[2]),
		bad("signature cut short by a byte", "signature_invalid", parts[0]+"."+parts[1]+"."+b64(string(raw[:63]))),
		bad("signature longer by a byte", "signature_invalid", parts[0]+"."+parts[1]+"."+b64(string(raw)+"\x00")),
		bad("signature cut to half", "signature_invalid", parts[0]+"."+parts[1]+"."+b64(string(raw[:32]))),
		bad("signature with a bit flipped", "signature_invalid", parts[0]+"."+parts[1]+"."+b64(string(flipped))),
		bad("signature of zeros", "signature_invalid", parts[0]+"."+parts[1]+"."+b64(strings.Repeat("\x00", 64))),
		bad("signature's twin", "signature_invalid", parts[0]+"."+parts[1]+"."+b64(string(twin))),
		bad("signature of another assertion", "signature_invalid", parts[0]+"."+parts[1]+"."+other[2]),
		bad("payload of another assertion", "signature_invalid", parts[0]+"."+other[1]+"."+parts[2]),
		bad("kid of the other key", "signature_invalid", b64(edit(header, one.ID, two.ID))+"."+parts[1]+"."+parts[2]),
		bad("signature padded", "token_base64", good+"=="),
		bad("header padded", "token_base64", parts[0]+"=."+parts[1]+"."+parts[2]),
		bad("signature with bits left over", "token_base64", good[:len(good)-1]+string(leftOver(last))),
		bad("plus and slash", "token_base64", parts[0]+"."+parts[1]+".+/"+parts[2][2:]),
		bad("line end after it", "token_base64", good+"\n"),
		bad("line end inside", "token_base64", parts[0]+"."+parts[1][:8]+"\n"+parts[1][8:]+"."+parts[2]),
		bad("space before it", "token_base64", " "+good),
		bad("space after it", "token_base64", good+" "),
		bad("scheme before it", "token_base64", "Bearer "+good),
		bad("bytes after the payload's JSON", "token_json", signRaw(one, header, payload+"x")),
		bad("second JSON document after the payload", "token_json", signRaw(one, header, payload+payload)),
		bad("payload an array", "token_json", signRaw(one, header, "["+payload+"]")),
		bad("payload not JSON", "token_json", signRaw(one, header, "alice")),
		bad("header not JSON", "token_json", signRaw(one, header+"}", payload)),
		{Name: "claims nested too deeply", Assertion: signRaw(one, header, edit(payload, `["admin"]`, "[[[[[[]]]]]]")), Code: "nesting_too_deep", Ours: true},
		{Name: "longer than 8 KiB", Assertion: signRaw(one, header, edit(payload, `"acme"`, `"`+strings.Repeat("a", 6000)+`"`)), Code: "token_too_long", Ours: true},
	}
}

// leftOver is the character that decodes as c but for the last bit, which belongs to no byte.
func leftOver(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)^1]
}

// plusOrder adds the order of the Ed25519 group to a little-endian number (RFC 8032, section 5.1).
func plusOrder(s []byte) []byte {
	order := []byte{
		0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
	}
	out, carry := make([]byte, len(s)), 0
	for i := range s {
		sum := int(s[i]) + int(order[i]) + carry
		out[i], carry = byte(sum), sum>>8
	}
	return out
}

func TestVectors(t *testing.T) {
	want := encodeVectors(t, makeVectors())
	if *update {
		if err := os.MkdirAll(filepath.Dir(vectorsPath), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorsPath, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(vectorsPath)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, want) {
		t.Errorf("%s is not what this test makes: run it with -update, and look at the difference", vectorsPath)
	}
	var file vectors
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(path, file.JWKS, 0o644); err != nil {
		t.Fatal(err)
	}
	keys, err := identity.KeysFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v := &identity.Verifier{Issuer: file.Issuer, Audience: file.Audience, TrustDomain: file.TrustDomain, Keys: keys, Now: func() time.Time { return file.Now }}
	names := map[string]bool{}
	seen := map[string]bool{}
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			if names[c.Name] {
				t.Fatal("the name is there twice")
			}
			names[c.Name] = true
			caller, err := v.Verify(c.Assertion)
			if c.Valid {
				if err != nil || caller.Issuer == "" || caller.Expires.IsZero() {
					t.Errorf("refused: %v, %+v", err, caller)
				}
				return
			}
			var e *identity.Error
			if !errors.As(err, &e) || e.Code != c.Code {
				t.Errorf("%v, want code %s", err, c.Code)
			}
			if err != nil && len(c.Assertion) > 20 && strings.Contains(err.Error(), c.Assertion[len(c.Assertion)-20:]) {
				t.Error("the error holds the assertion")
			}
			seen[c.Code] = true
		})
	}
	// Every code that Verify can give has its case.
	codes := []string{
		"token_not_compact", "token_base64", "token_json", "token_encoding", "token_too_long", "duplicate_member", "nesting_too_deep",
		"number_out_of_range", "crit_unsupported", "header_unexpected", "alg_invalid", "kid_invalid", "alg_not_allowed",
		"typ_not_allowed", "kid_missing", "kid_unknown", "signature_invalid", "claim_missing", "claim_invalid", "claim_unexpected",
		"issuer_mismatch", "audience_mismatch", "service_mismatch", "expired", "not_yet_valid", "lifetime_too_long",
	}
	for _, code := range codes {
		if !seen[code] {
			t.Errorf("no case has code %s", code)
		}
	}
	for code := range maps.Keys(seen) {
		if !slices.Contains(codes, code) {
			t.Errorf("code %s is not listed", code)
		}
	}
}

func encodeVectors(t *testing.T, v vectors) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Only bytes that were signed are accepted: a change anywhere in a good assertion is refused.
func FuzzVerify(f *testing.F) {
	known := map[string]bool{}
	for _, c := range makeVectors().Cases {
		f.Add(c.Assertion)
		known[c.Assertion] = c.Valid
	}
	_, v := newPair(testKey("one"), testKey("two"))
	f.Fuzz(func(t *testing.T, assertion string) {
		_, err := v.Verify(assertion)
		if valid := known[assertion]; err == nil && !valid {
			t.Errorf("accepted, and nobody signed it: %s", assertion)
		}
		var e *identity.Error
		if err != nil && (!errors.As(err, &e) || e.Code == "" || e.Detail == "") {
			t.Errorf("an error without code: %v", err)
		}
	})
}

// What is accepted is what Sign makes: a payload that passes, whoever wrote it, says nothing that Sign would not say, and
// Sign says the same of the caller that it was read as, byte for byte from then on.
func FuzzPayload(f *testing.F) {
	one := testKey("one")
	header := `{"alg":"EdDSA","kid":"` + one.ID + `","typ":"txntoken+jwt"}`
	for _, c := range makeVectors().Cases {
		if parts := strings.Split(c.Assertion, "."); len(parts) == 3 {
			if payload, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
				f.Add(string(payload))
			}
		}
	}
	_, v := newPair(one)
	again := func(t *testing.T, c identity.Caller) (string, identity.Caller) {
		s, _ := newPair(one)
		s.Claims = slices.Sorted(maps.Keys(c.Claims))
		s.Lifetime = time.Second // as the end is c's, and its beginning is not in c
		own := len(c.Workloads) - 1
		s.Audience = c.Workloads[own]
		s.Now = func() time.Time { return c.Expires.Add(-time.Second) }
		c.Workloads = c.Workloads[:own]
		assertion, err := s.Sign(c, c.Route, c.RequestID)
		if err != nil {
			t.Fatalf("Sign refuses what Verify accepted: %v", err)
		}
		v := *v
		v.Audience, v.Now = s.Audience, s.Now
		read, err := v.Verify(assertion)
		if err != nil {
			t.Fatalf("Verify refuses what Sign made: %v", err)
		}
		return assertion, read
	}
	f.Fuzz(func(t *testing.T, payload string) {
		c, err := v.Verify(signRaw(one, header, payload))
		if err != nil {
			return
		}
		first, read := again(t, c)
		if want, _ := again(t, read); first != want {
			t.Errorf("%s\nand then %s", first, want)
		}
		// a number among the claims may be written in another way: 1e2 is 100
		c.Claims, read.Claims = nil, nil
		if !reflect.DeepEqual(c, read) {
			t.Errorf("read %+v, and again %+v", c, read)
		}
	})
}
