package e2e

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
)

// parts reads a token's header and claims without judging them.
func parts(t testing.TB, token string) (header, claims map[string]any) {
	t.Helper()
	segments := strings.Split(token, ".")
	if len(segments) != 3 {
		t.Fatalf("a token of %d segments", len(segments))
	}
	for i, into := range []*map[string]any{&header, &claims} {
		raw, err := base64.RawURLEncoding.DecodeString(segments[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

// encode is a token segment of v.
func encode(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// unsigned is a token as an attacker writes it who has no key: algorithm none and an empty signature.
func unsigned(t testing.TB, token string) string {
	header, claims := parts(t, token)
	header["alg"] = "none"
	return encode(t, header) + "." + encode(t, claims) + "."
}

// altered is a token with one claim changed and the signature of the original.
func altered(t testing.TB, token, claim string, value any) string {
	_, claims := parts(t, token)
	claims[claim] = value
	segments := strings.Split(token, ".")
	return segments[0] + "." + encode(t, claims) + "." + segments[2]
}
