package bearer

import (
	"slices"

	"github.com/sallyport/sallyport/internal/jwk"
)

// supported are the algorithms that an issuer's list may name.
func supported() []string { return jwk.Algorithms() }

func defaultAlgorithms() []string { return []string{"ES256", "EdDSA", "RS256", "PS256"} }

func isSupported(algorithm string) bool { return slices.Contains(supported(), algorithm) }
