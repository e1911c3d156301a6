package jws

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// FuzzParse holds what is accepted against the lenient readers behind us: each
// segment has one spelling, go-jose and encoding/json read the same content,
// and no token that differs in one byte has the same content.
func FuzzParse(f *testing.F) {
	f.Add(token(goodHeader, goodPayload), 3, byte('B'))
	f.Add(token(`{"alg":"ES256"}`, `{}`), 30, byte('='))
	f.Add(token(`{"alg":"RS256"} `, ` {"a":["\ud83d\ude00",1e3,-0,{"":[[]]}]}`), 0, byte('\n'))
	f.Add(token(goodHeader, `{"exp":1,"exp":2}`), 1, byte('_'))
	for _, vector := range vectors(f) {
		f.Add(vector, len(vector)-1, byte('A'))
	}
	f.Fuzz(func(t *testing.T, raw string, at int, by byte) {
		c, err := Parse(raw)
		if err != nil {
			var refusal *Error
			if !errors.As(err, &refusal) || refusal.Code == "" || !reflect.DeepEqual(c, Compact{}) {
				t.Fatalf("a refusal without code or with content: %v, %v", c, err)
			}
			return
		}
		segments := strings.Split(raw, ".")
		if len(segments) != 3 || string(c.SigningInput) != segments[0]+"."+segments[1] {
			t.Fatalf("signing input %q of %q", c.SigningInput, raw)
		}
		if base64.RawURLEncoding.EncodeToString(c.Signature) != segments[2] {
			t.Fatalf("signature %x is not %q", c.Signature, segments[2])
		}
		header := standard(t, segments[0])
		if header["alg"] != c.Algorithm || (c.HasKeyID && header["kid"] != c.KeyID) || (c.Type != "" && header["typ"] != c.Type) {
			t.Fatalf("header %v was read as %+v", header, c)
		}
		if payload := standard(t, segments[1]); !reflect.DeepEqual(payload, c.Payload) {
			t.Fatalf("payload %v was read as %v", payload, c.Payload)
		}
		jose, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(c.Algorithm)})
		if err != nil {
			t.Fatalf("go-jose refuses what Parse accepts: %v", err)
		}
		if got := jose.Signatures[0].Protected; got.Algorithm != c.Algorithm || got.KeyID != c.KeyID {
			t.Fatalf("go-jose reads the header as %+v, Parse as %+v", got, c)
		}
		if got := base64.RawURLEncoding.EncodeToString(jose.UnsafePayloadWithoutVerification()); got != segments[1] {
			t.Fatalf("go-jose reads another payload: %q", got)
		}
		mutate(t, raw, at, by)
	})
}

// mutate replaces one byte of an accepted token: it is refused, or says something else.
func mutate(t *testing.T, raw string, at int, by byte) {
	if at < 0 || at >= len(raw) || raw[at] == by {
		return
	}
	mutant := raw[:at] + string([]byte{by}) + raw[at+1:]
	if _, err := Parse(mutant); err != nil {
		return
	}
	if lenient(mutant) == lenient(raw) {
		t.Fatalf("%q and %q are both accepted and decode to the same bytes", raw, mutant)
	}
}

// lenient decodes the segments of a token and joins them with a byte no segment boundary can be confused with.
func lenient(raw string) string {
	var parts []string
	for segment := range strings.SplitSeq(raw, ".") {
		data, _ := base64.RawURLEncoding.DecodeString(segment)
		parts = append(parts, base64.StdEncoding.EncodeToString(data))
	}
	return strings.Join(parts, ".")
}

// FuzzObject holds Object against encoding/json: what it accepts is read the
// same there, and is accepted again when it is written anew.
func FuzzObject(f *testing.F) {
	for _, seed := range []string{goodHeader, goodPayload, `{"a":1,"a":2}`, `{"a":"\ud800"}`, `{"a":[[[[[[[[]]]]]]]]}`, `{"a":1e400}`, "{}\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		object, err := Object(data)
		if err != nil {
			return
		}
		if got := standard(t, base64.RawURLEncoding.EncodeToString(data)); !reflect.DeepEqual(got, object) {
			t.Fatalf("encoding/json reads %v, Object %v", got, object)
		}
		again, err := json.Marshal(object)
		if err != nil {
			t.Fatalf("a value that cannot be written: %v", err)
		}
		if _, err := Object(again); err != nil {
			t.Fatalf("%s is refused when written anew as %s: %v", data, again, err)
		}
	})
}

// vectors reads the tokens that every implementation of this project is held to.
func vectors(f *testing.F) []string {
	data, err := os.ReadFile("../../testdata/vectors/tokens.json")
	if err != nil {
		f.Fatal(err)
	}
	var file struct {
		Cases []struct {
			Token string `json:"token"`
		} `json:"cases"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		f.Fatal(err)
	}
	var tokens []string
	for _, c := range file.Cases {
		tokens = append(tokens, c.Token)
	}
	return tokens
}
