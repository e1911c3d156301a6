package bearer

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/jws"
)

// FuzzLooksSigned: whatever reads as a JWT is never taken for an opaque token, and what is taken for one has no dots in between
// that would make it a JWT for a more lenient reader.
func FuzzLooksSigned(f *testing.F) {
	good := signers()["ES256"]
	f.Add(good.raw(`{"alg":"ES256","typ":"at+jwt"}`, `{"iss":"a"}`))
	f.Add(good.raw("\t\n "+strings.Repeat(" ", 100)+`{"alg":"ES256"}`, `{}`))
	f.Add("v4.local.abc")
	f.Add("a..b")
	f.Add("eyJ9.e30.")
	f.Fuzz(func(t *testing.T, raw string) {
		signed := looksSigned(raw)
		if _, err := jws.Parse(raw); err == nil && !signed {
			t.Fatalf("%q is a JWT, and would be handed to somebody as an opaque token", raw)
		}
		if signed && strings.Count(raw, ".") != 2 {
			t.Fatalf("%q is taken for a JWT", raw)
		}
	})
}
