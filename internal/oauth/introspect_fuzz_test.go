package oauth

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// FuzzLives: whatever an answer says, a token lives only where active is true itself, for 30 s at most and not beyond exp.
func FuzzLives(f *testing.F) {
	f.Add(`{"active":true,"exp":1800000010}`)
	f.Add(`{"active":"true"}`)
	f.Add(`{"active":true,"exp":1e300}`)
	now := time.Unix(1_800_000_000, 0)
	f.Fuzz(func(t *testing.T, text string) {
		response := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: http.NoBody}
		response.Body = readCloser{strings.NewReader(text)}
		answer, _, err := read(response)
		if err != nil {
			return
		}
		until, err := lives(answer, now, MaxKeep)
		if err != nil {
			return
		}
		var plain struct {
			Active any
			Exp    *json.Number
		}
		if answer["active"] != any(true) || !until.After(now) || until.Sub(now) > MaxKeep {
			t.Fatalf("%q lives until %s", text, until)
		}
		if err := json.Unmarshal([]byte(text), &plain); err == nil && plain.Exp != nil && answer["exp"] != nil {
			if exp, err := plain.Exp.Int64(); err == nil && until.Unix() > exp && answer["exp"] == any(exp) {
				t.Fatalf("%q lives until %s", text, until)
			}
		}
	})
}

// FuzzStatement: a signed answer counts only if it is one, of this issuer, for this client, of now.
func FuzzStatement(f *testing.F) {
	f.Add(`{"iss":"i","aud":"c","iat":1800000000,"token_introspection":{"active":true}}`)
	f.Add(`{"iss":"i","aud":["c","d"],"iat":1799999000,"token_introspection":{}}`)
	f.Add(`{"iss":"i","aud":["c",1],"iat":9223372036854775807,"token_introspection":{"active":true},"exp":1}`)
	now := time.Unix(1_800_000_000, 0)
	f.Fuzz(func(t *testing.T, text string) {
		var claims map[string]any
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		if d.Decode(&claims) != nil {
			return
		}
		for name, value := range claims {
			if n, ok := value.(json.Number); ok {
				if i, err := n.Int64(); err == nil {
					claims[name] = i
				}
			}
		}
		if _, err := Statement(signedType, claims, "i", "c", now, 0); err != nil {
			return
		}
		if _, err := Statement("jwt", claims, "i", "c", now, 0); err == nil {
			t.Fatal("another typ")
		}
		iat, ok := claims["iat"].(int64)
		if claims["iss"] != "i" || !ok || iat > now.Unix() || iat < now.Unix()-60 || !strings.Contains(fmt.Sprint(claims["aud"]), "c") {
			t.Fatalf("%s counts", text)
		}
	})
}
