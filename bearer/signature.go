package bearer

import (
	"fmt"
	"math"
	"time"

	"github.com/sallyport/sallyport/internal/jws"
)

// VerifySignature shows that a key of a JWK set has signed a token, and that now is within its time, and
// returns its claims. It judges neither issuer nor audience nor type: it is for looking at a token, not for
// letting somebody in. algorithms are as in Issuer. A refusal is an *Error, also when the set holds no key that may
// verify anything; another error is about the algorithms.
func VerifySignature(t Token, set []byte, algorithms []string, now time.Time) (map[string]any, error) {
	a, err := newAuthority(Issuer{Issuer: "any", Audience: []string{"any"}, Algorithms: algorithms, Keys: Keys{File: "given"}})
	if err != nil {
		return nil, fmt.Errorf("verify signature: %w", err)
	}
	keys, _, err := readKeys(set, a.Algorithms)
	if err != nil {
		return nil, &Error{Code: codeUnavailable, Err: err}
	}
	if t.raw == nil {
		return nil, refuse(codeMissing, "no token")
	}
	token, err := jws.Parse(*t.raw)
	if err != nil {
		return nil, malformed(err)
	}
	if _, refusal := prove(*t.raw, token, a.Algorithms, (&keySet{keys: keys}).find); refusal != nil {
		return nil, refusal
	}
	a.MaxLifetime = math.MaxInt64
	if _, _, refusal := a.judgeTime(token.Payload, now); refusal != nil {
		return nil, refusal
	}
	return token.Payload, nil
}
