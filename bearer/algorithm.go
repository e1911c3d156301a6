package bearer

import (
	"errors"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// supported are the algorithms that an issuer's list may name: asymmetric ones, so
// that what verifies a token cannot make one.
var supported = [...]string{"ES256", "ES384", "EdDSA", "RS256", "PS256"}

func defaultAlgorithms() []string { return []string{"ES256", "EdDSA", "RS256", "PS256"} }

func isSupported(algorithm string) bool { return slices.Contains(supported[:], algorithm) }

// checkSignature verifies the signature of a token that jws.Parse has read. The
// library's own errors are not handed on: they may quote what they read.
func checkSignature(raw, algorithm string, by key) error {
	signed, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(algorithm)})
	if err != nil {
		return errors.New("not readable as JWS")
	}
	if _, err := signed.Verify(by.public); err != nil {
		return errors.New("signature does not verify")
	}
	return nil
}
