package bearer_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// TestSignedAnswers holds signed answers to RFC 9701, section 5.
func TestSignedAnswers(t *testing.T) {
	as := sallytest.NewIssuer(t)
	other := sallytest.NewIssuer(t)
	now := time.Now().Unix()
	good := as.Claims(nil)
	good["active"] = true
	signed := func(header, claims map[string]any) string { return as.SignedAnswer("gate", good, header, claims) }
	const media = "application/token-introspection+jwt"
	for name, tt := range map[string]struct {
		kind, body string
		ok         bool
	}{
		"as it is":             {media, signed(nil, nil), true},
		"with a character set": {media + "; charset=utf-8", signed(nil, nil), true},
		"the long typ":         {media, signed(map[string]any{"typ": media}, nil), true},
		"aud a list":           {media, signed(nil, map[string]any{"aud": []string{"gate", "other"}}), true},
		"plain":                {"application/json", `{"active":true}`, false},
		"plain, as signed":     {media, `{"active":true}`, false},
		"signed, as plain":     {"application/json", signed(nil, nil), false},
		"as another JWT":       {"application/jwt", signed(nil, nil), false},
		"alg none":             {media, "eyJhbGciOiJub25lIn0." + strings.Split(signed(nil, nil), ".")[1] + ".", false},
		"typ at+jwt":           {media, signed(map[string]any{"typ": "at+jwt"}, nil), false},
		"no typ":               {media, signed(map[string]any{"typ": nil}, nil), false},
		"another iss":          {media, signed(nil, map[string]any{"iss": "https://other.example"}), false},
		"no iss":               {media, signed(nil, map[string]any{"iss": nil}), false},
		"another aud":          {media, signed(nil, map[string]any{"aud": "other"}), false},
		"no aud":               {media, signed(nil, map[string]any{"aud": nil}), false},
		"old":                  {media, signed(nil, map[string]any{"iat": now - 120}), false},
		"ahead":                {media, signed(nil, map[string]any{"iat": now + 120}), false},
		"no iat":               {media, signed(nil, map[string]any{"iat": nil}), false},
		"iat as text":          {media, signed(nil, map[string]any{"iat": fmt.Sprint(now)}), false},
		"expired":              {media, signed(nil, map[string]any{"exp": now - 30}), false},
		"no answer":            {media, signed(nil, map[string]any{"token_introspection": nil}), false},
		"an answer in text":    {media, signed(nil, map[string]any{"token_introspection": `{"active":true}`}), false},
		"active outside":       {media, signed(nil, map[string]any{"token_introspection": map[string]any{}, "active": true}), false},
		"another's key":        {media, other.SignedAnswer("gate", good, map[string]any{"kid": as.KeyID("ES256")}, map[string]any{"iss": as.URL}), false},
		"encrypted":            {media, "eyJhbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIn0..AAAA.AAAA.AAAA", false},
		"a key of its own":     {media, signed(map[string]any{"jwk": map[string]any{}}, nil), false},
		"a line end":           {media, signed(nil, nil) + "\n", false},
	} {
		v := verifierFor(t, asking(t, as, func(i *bearer.Issuer) { i.Introspection.Signed, i.Keys = true, bearer.Keys{Discovery: true} }))
		as.Answer(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept") != media {
				t.Errorf("asked for %s", r.Header.Get("Accept"))
			}
			w.Header().Set("Content-Type", tt.kind)
			fmt.Fprint(w, tt.body)
		})
		_, err := v.Verify(t.Context(), bearer.NewToken("opaque"))
		want := "introspection_unavailable"
		if name == "active outside" {
			want = "token_inactive"
		}
		if tt.ok && err != nil || !tt.ok && codeOf(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	as.Answer(nil)
	v := verifierFor(t, asking(t, as, func(i *bearer.Issuer) { i.Introspection.Signed, i.Keys = true, bearer.Keys{Discovery: true} }))
	caller, err := v.Verify(t.Context(), bearer.NewToken(as.Opaque(nil)))
	if err != nil || caller.KeyID != "" {
		t.Errorf("%v %+v", err, caller)
	}
	plain := verifierFor(t, asking(t, as, nil))
	as.Answer(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", media)
		fmt.Fprint(w, signed(nil, nil))
	})
	if _, err := plain.Verify(t.Context(), bearer.NewToken("opaque")); codeOf(err) != "introspection_unavailable" {
		t.Errorf("a signed answer that was not asked for: %v", err)
	}
}
