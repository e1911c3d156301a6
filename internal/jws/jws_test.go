package jws

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// token builds a compact form around a header and a payload as they are written.
func token(header, payload string) string { return b64(header) + "." + b64(payload) + "." + b64("sig") }

const (
	goodHeader  = `{"alg":"ES256","typ":"at+jwt","kid":"k1"}`
	goodPayload = `{"iss":"https://as","n":1,"f":1.5,"big":12345678901234567890,"x":null,"y":true,"a":["b",{"c":"\ud83d\ude00"}]}`
)

func TestParseReadsEveryPart(t *testing.T) {
	raw := token(goodHeader, goodPayload)
	got, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := Compact{
		Algorithm: "ES256", Type: "at+jwt", KeyID: "k1", HasKeyID: true,
		Payload: map[string]any{
			"iss": "https://as", "n": int64(1), "f": 1.5, "big": 12345678901234567890.0, "x": nil, "y": true,
			"a": []any{"b", map[string]any{"c": "\U0001F600"}},
		},
		SigningInput: []byte(b64(goodHeader) + "." + b64(goodPayload)),
		Signature:    []byte("sig"),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	good := token(goodHeader, goodPayload)
	head, rest, _ := strings.Cut(good, ".")
	body, sig, _ := strings.Cut(rest, ".")
	alg := func(v string) string { return token(`{"alg":`+v+`}`, `{}`) }
	kid := func(v string) string { return token(`{"alg":"ES256","kid":`+v+`}`, `{}`) }
	member := func(m string) string { return token(`{"alg":"ES256",`+m+`}`, `{}`) }
	payload := func(p string) string { return token(goodHeader, p) }

	for _, test := range []struct{ name, token, code string }{
		{"empty", "", CodeNotCompact},
		{"one segment", head, CodeNotCompact},
		{"two segments", head + "." + body, CodeNotCompact},
		{"four segments", good + ".AA", CodeNotCompact},
		{"five segments, a JWE", good + ".AA.AA", CodeNotCompact},
		{"empty header", "." + body + "." + sig, CodeNotCompact},
		{"empty payload", head + ".." + sig, CodeNotCompact},
		{"empty signature", head + "." + body + ".", CodeNotCompact},
		{"only dots", "..", CodeNotCompact},
		{"flattened JSON serialization", `{"payload":"e30","protected":"e30","signature":"AA"}`, CodeNotCompact},
		{"JSON serialization with dots", `{"payload":"e.30","protected":"e30","signature":"A.A"}`, CodeBase64},
		{"over the length", head + "." + strings.Repeat("A", MaxLength) + "." + sig, CodeTooLong},

		{"padding on the signature", good + "==", CodeBase64},
		{"padding on the header", head + "=." + body + "." + sig, CodeBase64},
		{"line end after the token", good + "\n", CodeBase64},
		{"line end inside the payload", head + "." + body[:4] + "\n" + body[4:] + "." + sig, CodeBase64},
		{"carriage return inside the header", head[:4] + "\r" + head[4:] + "." + body + "." + sig, CodeBase64},
		{"space before", " " + good, CodeBase64},
		{"space after", good + " ", CodeBase64},
		{"tab inside", head + ".\t" + body + "." + sig, CodeBase64},
		{"NUL inside", head + ".\x00" + body + "." + sig, CodeBase64},
		{"standard alphabet", head + "." + body + ".-_+/", CodeBase64},
		{"trailing bits not zero", head + "." + body + ".AB", CodeBase64},
		{"impossible length", head + "." + body + ".AAAAA", CodeBase64},
		{"percent encoding", head + "." + body + ".AA%3D", CodeBase64},

		{"header not JSON", token(`alg`, `{}`), CodeJSON},
		{"header an array", token(`[]`, `{}`), CodeJSON},
		{"payload an array", payload(`[]`), CodeJSON},
		{"payload a string", payload(`"{}"`), CodeJSON},
		{"payload null", payload(`null`), CodeJSON},
		{"payload a nested token", payload(good), CodeJSON},
		{"trailing garbage", payload(`{} x`), CodeJSON},
		{"trailing NUL", payload("{}\x00"), CodeJSON},
		{"two objects", payload(`{}{}`), CodeJSON},
		{"trailing comma", payload(`{"a":1,}`), CodeJSON},
		{"comment", payload(`{/**/}`), CodeJSON},
		{"byte order mark", payload("\ufeff{}"), CodeJSON},
		{"unquoted member", payload(`{a:1}`), CodeJSON},
		{"NaN", payload(`{"a":NaN}`), CodeJSON},
		{"leading zero", payload(`{"a":01}`), CodeJSON},
		{"leading plus", payload(`{"a":+1}`), CodeJSON},
		{"mismatched delimiters", payload(`{"a":[1}`), CodeJSON},
		{"control character in a string", payload("{\"a\":\"\n\"}"), CodeJSON},

		{"invalid UTF-8", payload("{\"a\":\"\xff\"}"), CodeEncoding},
		{"overlong UTF-8", payload("{\"a\":\"\xc0\xae\"}"), CodeEncoding},
		{"surrogate in UTF-8", payload("{\"a\":\"\xed\xa0\x80\"}"), CodeEncoding},
		{"lone high surrogate", payload(`{"a":"\ud800"}`), CodeEncoding},
		{"lone high surrogate, then text", payload(`{"a":"\ud800 and more than twelve"}`), CodeEncoding},
		{"lone low surrogate", payload(`{"a":"\udc00"}`), CodeEncoding},
		{"surrogates swapped", payload(`{"a":"\udc00\ud800"}`), CodeEncoding},
		{"high surrogate twice", payload(`{"a":"\ud800\ud800"}`), CodeEncoding},
		{"high surrogate, then another escape", payload(`{"a":"\ud800\n-----"}`), CodeEncoding},
		{"lone surrogate in a member name", payload(`{"\ud800":1}`), CodeEncoding},
		{"NUL in a string", payload(`{"scope":"admin\u0000"}`), CodeEncoding},
		{"NUL after an escaped backslash", payload(`{"a":"\\\u0000"}`), CodeEncoding},
		{"NUL in a member name", payload(`{"sub\u0000":1}`), CodeEncoding},

		{"duplicate claim", payload(`{"exp":1,"exp":2}`), CodeDuplicate},
		{"duplicate claim, one spelled with an escape", payload(`{"sub":1,"s\u0075b":2}`), CodeDuplicate},
		{"duplicate deep inside", payload(`{"a":[{"b":{"c":1,"c":1}}]}`), CodeDuplicate},
		{"duplicate in the header", token(`{"alg":"ES256","alg":"ES256"}`, `{}`), CodeDuplicate},
		{"duplicate empty name", payload(`{"":1,"":1}`), CodeDuplicate},

		{"objects too deep", payload(strings.Repeat(`{"a":`, MaxDepth) + `{}` + strings.Repeat(`}`, MaxDepth)), CodeDepth},
		{"arrays too deep", payload(`{"a":` + strings.Repeat(`[`, MaxDepth) + strings.Repeat(`]`, MaxDepth) + `}`), CodeDepth},
		{"thousands deep", payload(`{"a":` + strings.Repeat(`[`, 2900) + strings.Repeat(`]`, 2900) + `}`), CodeDepth},

		{"number overflows", payload(`{"exp":1e999}`), CodeNumber},
		{"number overflows below", payload(`{"a":[-1e999]}`), CodeNumber},

		{"unknown crit", member(`"crit":["x"],"x":1`), CodeCritical},
		{"b64 false", member(`"crit":["b64"],"b64":false`), CodeCritical},
		{"empty crit", member(`"crit":[]`), CodeCritical},
		{"jwk", member(`"jwk":{"kty":"oct","k":"AA"}`), CodeHeader},
		{"jku", member(`"jku":"https://evil"`), CodeHeader},
		{"x5u", member(`"x5u":"https://evil"`), CodeHeader},
		{"x5c", member(`"x5c":[]`), CodeHeader},
		{"b64 without crit", member(`"b64":true`), CodeHeader},
		{"cty", member(`"cty":"JWT"`), CodeHeader},
		{"zip", member(`"zip":"DEF"`), CodeHeader},
		{"p2c", member(`"p2c":2147483648`), CodeHeader},
		{"ALG beside alg", member(`"ALG":"none"`), CodeHeader},
		{"empty member name", member(`"":1`), CodeHeader},

		{"no alg", token(`{}`, `{}`), CodeAlgorithm},
		{"alg none", alg(`"none"`), CodeAlgorithm},
		{"alg None", alg(`"None"`), CodeAlgorithm},
		{"alg nOnE", alg(`"nOnE"`), CodeAlgorithm},
		{"alg empty", alg(`""`), CodeAlgorithm},
		{"alg null", alg(`null`), CodeAlgorithm},
		{"alg a list", alg(`["ES256"]`), CodeAlgorithm},
		{"alg a number", alg(`256`), CodeAlgorithm},
		{"only ALG", token(`{"ALG":"ES256"}`, `{}`), CodeHeader},
		{"typ a number", member(`"typ":1`), CodeType},
		{"typ null", member(`"typ":null`), CodeType},
		{"typ empty", member(`"typ":""`), CodeType},
		{"kid a number", kid(`1`), CodeKeyIDFormat},
		{"kid a list", kid(`["k1"]`), CodeKeyIDFormat},
		{"kid null", kid(`null`), CodeKeyIDFormat},
		{"kid empty", kid(`""`), CodeKeyIDFormat},
		{"kid with a line end", kid(`"k1\n"`), CodeKeyIDFormat},
		{"kid with a terminal escape", kid(`"\u001b[2J"`), CodeKeyIDFormat},
		{"kid with NUL", kid(`"k1\u0000"`), CodeEncoding},
		{"kid not ASCII", kid(`"ключ"`), CodeKeyIDFormat},
		{"kid too long", kid(`"` + strings.Repeat("k", 257) + `"`), CodeKeyIDFormat},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse(test.token)
			var refusal *Error
			if !errors.As(err, &refusal) {
				t.Fatalf("accepted, want %s", test.code)
			}
			if refusal.Code != test.code {
				t.Errorf("got %v, want code %s", err, test.code)
			}
			for _, part := range []string{head, body, sig} {
				if strings.Contains(err.Error(), part) {
					t.Errorf("the error holds a part of the token: %v", err)
				}
			}
		})
	}
}

// What looks odd but has one reading stays accepted: strictness is no excuse for refusing good tokens.
func TestParseAccepts(t *testing.T) {
	for _, test := range []struct{ name, header, payload string }{
		{"no typ, no kid", `{"alg":"ES256"}`, `{}`},
		{"kid that looks like an attack is only a name", `{"alg":"ES256","kid":"../../dev/null' OR 1=1 http://evil"}`, `{}`},
		{"kid of the longest length", `{"alg":"ES256","kid":"` + strings.Repeat("k", 256) + `"}`, `{}`},
		{"white space around and inside", " {\n\"alg\" : \"ES256\"}\r\n", "\t{ \"a\" : 1 } "},
		{"names that differ by case", `{"alg":"ES256"}`, `{"iss":"a","ISS":"b"}`},
		{"names that differ by normal form", `{"alg":"ES256"}`, "{\"\u00e9\":1,\"e\u0301\":2}"},
		{"the same name at different depths", `{"alg":"ES256"}`, `{"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]}`},
		{"the greatest depth", `{"alg":"ES256"}`, strings.Repeat(`{"a":`, MaxDepth-1) + `{}` + strings.Repeat(`}`, MaxDepth-1)},
		{"escapes", `{"alg":"ES256"}`, `{"a":"\\u0000\\\\\"\/\b\f\n\r\t\u00e9\ud83d\ude00\ud83d\ude00"}`},
		{"a backslash at the end of a string", `{"alg":"ES256"}`, `{"a":"\\","b":"u0000"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := Parse(token(test.header, test.payload)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNumbers(t *testing.T) {
	for _, test := range []struct {
		text string
		want any
	}{
		{"0", int64(0)},
		{"-0", int64(0)},
		{"9223372036854775807", int64(9223372036854775807)},
		{"-9223372036854775808", int64(-9223372036854775808)},
		{"9223372036854775808", 9223372036854775808.0},
		{"1.0", 1.0},
		{"1e3", 1000.0},
		{"1e300", 1e300},
		{"1e-999", 0.0},
	} {
		object, err := Object([]byte(`{"n":` + test.text + `}`))
		if err != nil || object["n"] != test.want {
			t.Errorf("%s: got %T %v, %v; want %T %v", test.text, object["n"], object["n"], err, test.want, test.want)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	raw := token(goodHeader, `{"iss":"https://auth.example.com","sub":"user-1","aud":"https://api.example.com",`+
		`"exp":1793600000,"iat":1793596400,"jti":"8b2c1f","client_id":"shop","scope":"orders:read orders:write"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(raw); err != nil {
			b.Fatal(err)
		}
	}
}

// standard reads a JSON object the lenient way, as most readers do.
func standard(t *testing.T, segment string) map[string]any {
	data, err := base64.RawURLEncoding.DecodeString(segment)
	if err != nil {
		t.Fatalf("encoding/base64 does not read what Parse accepted: %v", err)
	}
	if back := base64.RawURLEncoding.EncodeToString(data); back != segment {
		t.Fatalf("segment %q has a second spelling, %q", segment, back)
	}
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber()
	var object map[string]any
	if err := d.Decode(&object); err != nil {
		t.Fatalf("encoding/json does not read what Parse accepted: %v", err)
	}
	if d.More() {
		t.Fatalf("bytes follow the object")
	}
	return convert(t, object).(map[string]any)
}

// convert puts this package's numbers in the place of json.Number.
func convert(t *testing.T, v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name := range v {
			v[name] = convert(t, v[name])
		}
	case []any:
		for i := range v {
			v[i] = convert(t, v[i])
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, err := v.Float64()
		if err != nil {
			t.Fatalf("number %s was accepted: %v", v, err)
		}
		return f
	}
	return v
}

// A proof names its key in the header and nothing but that beside alg and typ; a token must not.
func TestParseWithKey(t *testing.T) {
	for _, test := range []struct {
		name, header string
		token, proof bool
	}{
		{"token", `{"alg":"ES256","typ":"at+jwt","kid":"k"}`, true, false},
		{"proof", `{"alg":"ES256","typ":"dpop+jwt","jwk":{"kty":"EC"}}`, false, true},
		{"proof with kid", `{"alg":"ES256","typ":"dpop+jwt","jwk":{},"kid":"k"}`, false, false},
		{"proof without jwk", `{"alg":"ES256","typ":"dpop+jwt"}`, true, false},
		{"jwk a string", `{"alg":"ES256","typ":"dpop+jwt","jwk":"{}"}`, false, false},
		{"jwk null", `{"alg":"ES256","typ":"dpop+jwt","jwk":null}`, false, false},
		{"jwk twice", `{"alg":"ES256","jwk":{},"jwk":{}}`, false, false},
		{"jwk with a member twice", `{"alg":"ES256","jwk":{"x":"a","x":"b"}}`, false, false},
		{"crit", `{"alg":"ES256","jwk":{},"crit":["b64"]}`, false, false},
		{"alg none", `{"alg":"none","jwk":{}}`, false, false},
		{"x5c", `{"alg":"ES256","jwk":{},"x5c":[]}`, false, false},
	} {
		raw := token(test.header, `{}`)
		if _, err := Parse(raw); (err == nil) != test.token {
			t.Errorf("%s as a token: %v", test.name, err)
		}
		if c, err := ParseWithKey(raw); (err == nil) != test.proof || err == nil && c.Key == nil {
			t.Errorf("%s as a proof: %v", test.name, err)
		}
	}
}
