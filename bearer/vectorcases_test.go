package bearer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"

	"github.com/sallyport/sallyport/internal/jws"
)

func (k vectorKeys) goodVectors() []vector {
	now := testNow.Unix()
	good := change(k.es256, nil)
	return []vector{
		accepted("good, ES256", good),
		accepted("good, ES384", change(k.es384, nil)),
		accepted("good, EdDSA", change(k.eddsa, nil)),
		accepted("good, RS256", change(k.rs256, nil)),
		accepted("good, PS256", change(k.ps256, nil)),
		accepted("good, by an RSA key that names no alg, RS256", change(k.anyRSA, nil)),
		accepted("good, by an RSA key that names no alg, PS256", change(signer{"rsa", "PS256", k.anyRSA.private}, nil)),
		accepted("the ECDSA twin (r, n-s) of a good token", twin(k.es256, good)),
		accepted("typ in full and in capitals", head(k.es256, object{"typ": "application/AT+JWT"})),
		accepted("aud the second of an array, the second of ours", change(k.es256, object{"aud": []any{"other", "orders"}})),
		accepted("exp within the leeway", change(k.es256, object{"exp": now - 4})),
		accepted("nbf and iat within the leeway", change(k.es256, object{"nbf": now + 5, "iat": now + 5})),
		accepted("no iat", change(k.es256, object{"iat": nil})),
		accepted("the longest lifetime", change(k.es256, object{"iat": now - 1800, "exp": now + 1800})),
		accepted("scope an array", change(k.es256, object{"scope": []any{"orders:read"}})),
		accepted("scope of another claim's name is only a claim", change(k.es256, object{"scp": 1, "scopes": []any{1}, "roles": []any{1, object{"a": 1}}})),
		accepted("white space and escapes in the JSON", k.es256.raw(" {\"alg\":\"ES256\",\r\n \"kid\":\"es\\u0032\\u00356\", \"typ\":\"at+jwt\"}", mustJSON(goodClaims(testNow))+"\n")),
		accepted("no kid, the issuer has one key", k.single.raw(`{"alg":"EdDSA","typ":"at+jwt"}`, mustJSON(with(goodClaims(testNow), object{"iss": "https://single.example.com"})))),
		accepted("strict issuer", k.strictly(nil)),
		accepted("strict issuer, scopes in its own claim", k.strictly(object{"scp": []any{"a", "b"}})),
	}
}

// strictly is a token of the second issuer.
func (k vectorKeys) strictly(changes object) string {
	claims := with(goodClaims(testNow), object{"iss": "https://strict.example.com", "scope": nil, "client_id": nil, "exp": testNow.Unix() + 200})
	return k.strict.raw(`{"alg":"ES256","kid":"es256","typ":"JWT"}`, mustJSON(with(claims, changes)))
}

// twin replaces s of an ECDSA signature by n-s, which verifies as well.
func twin(s signer, token string) string {
	at := strings.LastIndexByte(token, '.') + 1
	r, t := new(big.Int), new(big.Int)
	signature := s.sign(token[:at-1])
	r.SetBytes(signature[:32])
	t.Sub(s.private.Public().(*ecdsa.PublicKey).Params().N, t.SetBytes(signature[32:]))
	return token[:at] + b64(append(r.FillBytes(make([]byte, 32)), t.FillBytes(make([]byte, 32))...))
}

func (k vectorKeys) formVectors() []vector {
	good := change(k.es256, nil)
	header, rest, _ := strings.Cut(good, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	cut := payload[:len(payload)/2] + "\n" + payload[len(payload)/2:]
	long := change(k.es256, object{"pad": strings.Repeat("x", jws.MaxLength)})
	nested := k.es256.raw(mustJSON(with(k.es256.header(), object{"cty": "JWT"})), good)
	return []vector{
		refusedAs(jws.CodeNotCompact, "empty", ""),
		refusedAs(jws.CodeNotCompact, "header only", header),
		refusedAs(jws.CodeNotCompact, "two segments", header+"."+payload),
		refusedAs(jws.CodeNotCompact, "empty signature", header+"."+payload+"."),
		refusedAs(jws.CodeNotCompact, "empty payload", header+".."+signature),
		refusedAs(jws.CodeNotCompact, "empty header", "."+payload+"."+signature),
		refusedAs(jws.CodeNotCompact, "four segments", good+"."+signature),
		refusedAs(jws.CodeNotCompact, "five segments, as a JWE with zip", b64([]byte(`{"alg":"dir","enc":"A128GCM","zip":"DEF"}`))+"..AAAA.AAAA.AAAA"),
		refusedAs(jws.CodeNotCompact, "five segments, as a JWE with PBES2 and 2^31 rounds", b64([]byte(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AAAA"}`))+".AAAA.AAAA.AAAA.AAAA"),
		refusedAs(jws.CodeNotCompact, "flattened JSON serialization", fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, header, payload, signature)),
		refusedAs(jws.CodeNotCompact, "general JSON serialization", fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, payload, header, signature)),
		authentic(jws.CodeBase64, "line end after the token", good+"\n"),
		authentic(jws.CodeBase64, "signature padded", good+"=="),
		refusedAs(jws.CodeBase64, "line end inside the payload", header+"."+cut+"."+signature),
		refusedAs(jws.CodeBase64, "spaces around", " "+good+" "),
		refusedAs(jws.CodeBase64, "NUL after the token", good+"\x00"),
		refusedAs(jws.CodeBase64, "signature in the standard alphabet", header+"."+payload+".+"+signature[1:]),
		authentic(jws.CodeBase64, "trailing bits of the signature not zero", trailing(good)),
		authentic(jws.CodeTooLong, "over 8 KiB", long),
		authentic(jws.CodeHeader, "a nested JWT", nested),
	}
}

// trailing sets a bit after the last byte of a signature of 64 bytes: lenient decoders drop it.
func trailing(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last|1])
}

func (k vectorKeys) jsonVectors() []vector {
	exp := fmt.Sprintf(`"exp":%d`, testNow.Unix()+300)
	raw := func(payload string) string { return k.es256.raw(mustJSON(k.es256.header()), payload) }
	good := mustJSON(goodClaims(testNow))
	more := func(member string) string { return raw(good[:len(good)-1] + "," + member + "}") }
	return []vector{
		authentic(jws.CodeDuplicate, "exp twice, the first expired", text(k.es256, exp, `"exp":1,`+exp)),
		authentic(jws.CodeDuplicate, "exp twice, the second expired", text(k.es256, exp, exp+`,"exp":1`)),
		authentic(jws.CodeDuplicate, "sub twice", more(`"sub":"root"`)),
		authentic(jws.CodeDuplicate, "sub twice, one with an escape", more(`"s\u0075b":"root"`)),
		authentic(jws.CodeDuplicate, "a member twice deep inside", more(`"a":[{"b":{"c":1,"c":2}}]`)),
		authentic(jws.CodeDuplicate, "alg twice", k.es256.raw(`{"alg":"ES256","alg":"ES256","kid":"es256","typ":"at+jwt"}`, good)),
		authentic(jws.CodeJSON, "payload with trailing garbage", raw(good+"x")),
		authentic(jws.CodeJSON, "payload of two objects", raw(good+good)),
		authentic(jws.CodeJSON, "payload an array", raw("["+good+"]")),
		authentic(jws.CodeJSON, "payload an empty array", raw("[]")),
		authentic(jws.CodeJSON, "payload text", raw("hello")),
		authentic(jws.CodeJSON, "payload with a byte order mark", raw("\ufeff"+good)),
		authentic(jws.CodeEncoding, "payload not UTF-8", raw(good[:len(good)-1]+",\"a\":\"\xff\"}")),
		authentic(jws.CodeEncoding, "payload with a lone surrogate", more(`"a":"\ud800"`)),
		authentic(jws.CodeEncoding, "scope with NUL", text(k.es256, `"orders:read orders:write"`, `"admin\u0000"`)),
		authentic(jws.CodeDepth, "payload nested nine deep", more(`"a":`+strings.Repeat("[", 8)+strings.Repeat("]", 8))),
		authentic(jws.CodeNumber, "a number that overflows", more(`"a":1e999`)),
	}
}

func (k vectorKeys) headerVectors() []vector {
	unsigned := func(alg string) string {
		return b64([]byte(mustJSON(with(k.es256.header(), object{"alg": alg})))) + "." + b64([]byte(mustJSON(goodClaims(testNow)))) + "."
	}
	return []vector{
		refusedAs(jws.CodeNotCompact, "alg none, no signature", unsigned("none")),
		refusedAs(jws.CodeNotCompact, "alg nOnE, no signature", unsigned("nOnE")),
		refusedAs(jws.CodeAlgorithm, "alg none, with a signature", unsigned("none")+"AAAA"),
		refusedAs(jws.CodeAlgorithm, "alg None, with a signature", unsigned("None")+"AAAA"),
		refusedAs(jws.CodeAlgorithm, "alg empty", unsigned("")+"AAAA"),
		authentic(jws.CodeAlgorithm, "no alg", head(k.es256, object{"alg": nil})),
		authentic(jws.CodeCritical, "crit of an unknown extension", head(k.es256, object{"crit": []any{"x"}, "x": true})),
		authentic(jws.CodeCritical, "crit b64, b64 false", head(k.es256, object{"crit": []any{"b64"}, "b64": false})),
		authentic(jws.CodeHeader, "the attacker's jwk", head(k.es256, object{"jwk": k.stranger.jwk()})),
		refusedAs(jws.CodeHeader, "the attacker's jwk, and signature", head(k.stranger, object{"jwk": k.stranger.jwk()})),
		authentic(jws.CodeHeader, "jku", head(k.es256, object{"jku": "https://evil.example/jwks"})),
		authentic(jws.CodeHeader, "x5u", head(k.es256, object{"x5u": "https://evil.example/cert"})),
		authentic(jws.CodeHeader, "x5c", head(k.es256, object{"x5c": []any{"AAAA"}})),
		authentic(jws.CodeHeader, "x5t", head(k.es256, object{"x5t": "AAAA"})),
		authentic(jws.CodeKeyIDFormat, "kid a number", head(k.es256, object{"kid": 1})),
		authentic(jws.CodeKeyIDFormat, "kid an array", head(k.es256, object{"kid": []any{"es256"}})),
		authentic(jws.CodeKeyIDFormat, "kid with a line end", head(k.es256, object{"kid": "es256\n"})),
		authentic(jws.CodeEncoding, "kid with NUL", head(k.es256, object{"kid": "es256\x00"})),
		authentic(jws.CodeKeyIDFormat, "kid of 257 bytes", head(k.es256, object{"kid": strings.Repeat("k", 257)})),
		authentic(codeType, "typ dpop+jwt", head(k.es256, object{"typ": "dpop+jwt"})),
		authentic(codeType, "typ logout+jwt", head(k.es256, object{"typ": "logout+jwt"})),
		authentic(codeType, "typ secevent+jwt", head(k.es256, object{"typ": "secevent+jwt"})),
		authentic(codeType, "typ JWT, an ID token", head(k.es256, object{"typ": "JWT"})),
		authentic(codeType, "no typ", head(k.es256, object{"typ": nil})),
		authentic(jws.CodeType, "typ a number", head(k.es256, object{"typ": 1})),
	}
}

func (k vectorKeys) keyVectors() []vector {
	good := change(k.es256, nil)
	dot := strings.LastIndexByte(good, '.')
	resigned := func(s signer, alg string) string {
		input := b64([]byte(mustJSON(with(s.header(), object{"alg": alg})))) + "." + b64([]byte(mustJSON(goodClaims(testNow))))
		return input + "." + b64(s.signAs(alg, input))
	}
	mac := func(secret []byte) string {
		input := b64([]byte(mustJSON(object{"alg": "HS256", "typ": "at+jwt", "kid": "rs256"}))) + "." + b64([]byte(mustJSON(goodClaims(testNow))))
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(input))
		return input + "." + b64(h.Sum(nil))
	}
	der, err := x509.MarshalPKIXPublicKey(k.rs256.private.Public())
	if err != nil {
		panic(err)
	}
	inPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	return []vector{
		refusedAs(codeSignature, "signed by another key under our kid", change(k.stranger, nil)),
		refusedAs(codeSignature, "another payload under a good signature", strings.Split(good, ".")[0]+"."+b64([]byte(mustJSON(with(goodClaims(testNow), object{"sub": "root"}))))+good[dot:]),
		refusedAs(codeSignature, "signature of zeros", good[:dot+1]+b64(make([]byte, 64))),
		refusedAs(codeSignature, "signature one byte short", good[:dot+1]+b64(make([]byte, 63))),
		refusedAs(codeSignature, "signature of one byte", good[:dot+1]+"AA"),
		refusedAs(codeSignature, "signature in ASN.1", good[:dot+1]+b64(k.asn1(good[:dot]))),
		refusedAs(codeAlgorithm, "HS256 keyed with the RSA key in PEM", mac(inPEM)),
		refusedAs(codeAlgorithm, "HS256 keyed with the RSA key in DER", mac(der)),
		refusedAs(codeAlgorithm, "HS256 keyed with the RSA key as a JWK", mac([]byte(mustJSON(k.rs256.jwk())))),
		refusedAs(codeAlgorithm, "HS256 keyed with the RSA modulus", mac(k.rs256.private.Public().(*rsa.PublicKey).N.Bytes())),
		refusedAs(codeAlgorithm, "HS256 keyed with nothing", mac(nil)),
		refusedAs(codeAlgorithm, "ES256 under the kid of a P-384 key", head(signer{"es384", "ES256", k.es256.private}, nil)),
		authentic(codeAlgorithm, "ES384 called ES256, under its kid", resigned(k.es384, "ES256")),
		authentic(codeAlgorithm, "PS256 by a key for RS256", resigned(k.rs256, "PS256")),
		authentic(codeAlgorithm, "RS512 by a key that names no alg", resigned(k.anyRSA, "RS512")),
		authentic(codeAlgorithm, "PS512 by a key that names no alg", resigned(k.anyRSA, "PS512")),
		refusedAs(codeAlgorithm, "ES256K", head(k.es256, object{"alg": "ES256K"})),
		refusedAs(codeAlgorithm, "alg in lower case", head(k.es256, object{"alg": "es256"})),
		authentic(codeKey, "kid unknown", head(k.es256, object{"kid": "nobody"})),
		authentic(codeKey, "kid in other case", head(k.es256, object{"kid": "ES256"})),
		authentic(codeKey, "kid a path", head(k.es256, object{"kid": "../../dev/null"})),
		authentic(codeKey, "kid for a database", head(k.es256, object{"kid": "' OR 1=1 --"})),
		authentic(codeKey, "kid a URL", head(k.es256, object{"kid": "http://evil.example/"})),
		authentic(codeAmbiguous, "no kid, two keys could be meant", head(k.rs256, object{"kid": nil})),
	}
}

// asn1 is a good ECDSA signature in the form that JOSE does not use.
func (k vectorKeys) asn1(input string) []byte {
	digest := sha256.Sum256([]byte(input))
	signature, err := k.es256.private.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		panic(err)
	}
	return signature
}

func (k vectorKeys) claimVectors() []vector {
	now := testNow.Unix()
	claim := func(code, name string, changes object) vector {
		return authentic(code, name, change(k.es256, changes))
	}
	exp := fmt.Sprintf(`"exp":%d`, now+300)
	return []vector{
		claim(codeExpired, "expired", object{"exp": now - 6}),
		claim(codeAbsent, "no exp", object{"exp": nil}),
		claim(codeClaim, "exp null", object{"exp": null}),
		claim(codeClaim, "exp a string", object{"exp": fmt.Sprint(now + 300)}),
		authentic(codeClaim, "exp 1e300", text(k.es256, exp, `"exp":1e300`)),
		claim(codeClaim, "exp negative", object{"exp": -1}),
		authentic(codeClaim, "exp fractional", text(k.es256, exp, exp+".5")),
		claim(codeClaim, "exp 10^18", object{"exp": int64(1e18)}),
		claim(codeNotYet, "nbf to come", object{"nbf": now + 6}),
		claim(codeClaim, "nbf a string", object{"nbf": "1"}),
		claim(codeFuture, "iat to come", object{"iat": now + 6}),
		claim(codeLifetime, "lifetime of a year", object{"iat": now, "exp": now + 365*86400}),
		claim(codeLifetime, "lifetime of an hour and a second", object{"iat": now - 1800, "exp": now + 1801}),
		claim(codeLifetime, "lifetime over an hour, without iat", object{"iat": nil, "exp": now + 3601}),
		claim(codeAbsent, "no aud", object{"aud": nil}),
		claim(codeAudience, "aud of another", object{"aud": "https://other.example.com"}),
		claim(codeAudience, "aud in other case", object{"aud": "https://API.example.com"}),
		claim(codeAudience, "aud that ours begins with", object{"aud": "https://api.example.com.evil.example"}),
		claim(codeClaim, "aud empty", object{"aud": ""}),
		claim(codeClaim, "aud an empty array", object{"aud": []any{}}),
		claim(codeClaim, "aud an array with a number", object{"aud": []any{testAudience, 1}}),
		claim(codeClaim, "aud an object", object{"aud": object{testAudience: 1}}),
		claim(codeAbsent, "a legacy service account token: no exp, no aud", object{"exp": nil, "aud": nil, "iat": nil}),
		claim(codeBound, "bound to a DPoP key", object{"cnf": object{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}),
		claim(codeBound, "bound to a client certificate", object{"cnf": object{"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}}),
		claim(codeScopeForm, "scope with two spaces", object{"scope": "read  write"}),
		claim(codeScopeForm, "scope with a tab", object{"scope": "read\twrite"}),
		claim(codeScopeForm, "scope with a space at the end", object{"scope": "read "}),
		claim(codeScopeForm, "scope an array with a number and an object", object{"scope": []any{1, object{"a": 1}}}),
		claim(codeScopeForm, "scope null", object{"scope": null}),
		claim(codeClaim, "sub a number", object{"sub": 1}),
		claim(codeClaim, "sub with a line end", object{"sub": "alice\r\nX-Role: admin"}),
		authentic(codeAbsent, "strict issuer, no jti", k.strictly(object{"jti": nil})),
		authentic(codeAbsent, "strict issuer, jti null", k.strictly(object{"jti": null})),
		authentic(codeUnexpected, "strict issuer, a claim more", k.strictly(object{"role": "admin"})),
		authentic(codeUnexpected, "strict issuer, a claim more in other case", k.strictly(object{"Sub": "root"})),
		authentic(codeLifetime, "strict issuer, over its own lifetime", k.strictly(object{"exp": testNow.Unix() + 295})),
		authentic(codeExpired, "strict issuer, over its own leeway", k.strictly(object{"exp": testNow.Unix() - 2})),
	}
}

func (k vectorKeys) issuerVectors() []vector {
	named := func(name string, iss any) vector {
		return authentic(codeIssuer, name, change(k.es256, object{"iss": iss}))
	}
	return []vector{
		named("no iss", nil),
		named("iss a number", 1),
		named("iss an array", []any{testIssuer}),
		named("iss unknown", "https://evil.example"),
		named("iss with a slash more", testIssuer+"/"),
		named("iss in other case", "https://AUTH.example.com"),
		named("iss with its port", testIssuer+":443"),
		named("iss with user information", "https://auth.example.com@evil.example"),
		named("iss over http", "http://auth.example.com"),
		named("iss with a letter of another script", "https://\u0430uth.example.com"),
		authentic(codeIssuer, "claims in capitals only", change(k.es256, object{"iss": nil, "aud": nil, "exp": nil, "ISS": testIssuer, "Aud": testAudience, "EXP": testNow.Unix() + 300})),
		refusedAs(codeSignature, "one issuer's key for another's iss", k.es256.raw(`{"alg":"ES256","kid":"es256","typ":"JWT"}`, mustJSON(with(goodClaims(testNow), object{"iss": "https://strict.example.com"})))),
		refusedAs(codeSignature, "another issuer's key for this one's iss", change(k.strict, nil)),
	}
}
