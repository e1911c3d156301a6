package bearer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/safedial"
)

// newAuthority checks an issuer and fills in its defaults. Its error names everything that is wrong.
func newAuthority(i Issuer) (*authority, error) {
	var wrong []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Errorf(format, args...))
		}
	}
	check(i.Issuer != "", "no name")
	check(len(i.Audience) > 0, "no audience: every token of the issuer would be accepted, whatever it was made for")
	check(!slices.Contains(i.Audience, ""), "an empty audience")
	check(!slices.Contains(i.Required, "") && !slices.Contains(i.Only, ""), "an empty name of a claim")
	check(i.MaxLifetime >= 0, "a negative lifetime")
	check(i.Leeway >= 0 && i.Leeway <= maxLeeway, "a leeway of %s, not 0 to %s", i.Leeway, maxLeeway)
	for _, algorithm := range i.Algorithms {
		check(isSupported(algorithm), "algorithm %s is not one of %s", brief(algorithm), strings.Join(supported(), ", "))
	}
	if err := checkIntrospection(i); err != nil {
		wrong = append(wrong, err)
	}
	if err := checkKeys(i); err != nil && (i.Introspection == nil || i.Keys != Keys{}) {
		wrong = append(wrong, err)
	}

	a := &authority{Issuer: i}
	a.Algorithms = slices.Clone(i.Algorithms)
	a.TokenTypes = nil
	for _, typ := range i.TokenTypes {
		check(typ != "", "an empty token type")
		a.TokenTypes = append(a.TokenTypes, foldType(typ))
	}
	a.applyKind(check)
	if len(a.Algorithms) == 0 {
		a.Algorithms = defaultAlgorithms()
	}
	if a.MaxLifetime == 0 {
		a.MaxLifetime = time.Hour
	}
	if a.Leeway == 0 {
		a.Leeway = 5 * time.Second
	}
	if a.ScopeClaim == "" {
		a.ScopeClaim = "scope"
	}
	return a, errors.Join(wrong...)
}

// checkKeys holds exactly one source of keys to what fetching it needs.
func checkKeys(i Issuer) error {
	sources := 0
	for _, set := range []bool{i.Keys.Discovery, i.Keys.URI != "", i.Keys.File != ""} {
		if set {
			sources++
		}
	}
	if sources != 1 {
		return fmt.Errorf("%d sources of keys, not one of discovery, URI and file", sources)
	}
	if i.Keys.Discovery {
		if _, err := issuerURL(i.Issuer); err != nil {
			return fmt.Errorf("discovery: %w", err)
		}
	}
	if i.Keys.URI != "" {
		if _, err := fetchable(i.Keys.URI); err != nil {
			return fmt.Errorf("key set URI: %w", err)
		}
	}
	return checkPrivate(i.Keys)
}

// destinations are the hosts that the issuers name: what the operator wrote down,
// and so the only ones that may be at a private address.
func destinations(issuers []Issuer) []string {
	var list []string
	for _, i := range issuers {
		address := i.Keys.URI
		if i.Keys.Discovery {
			address = i.Issuer
		}
		u, err := fetchable(address)
		if err != nil {
			continue
		}
		// an entry that cannot be read would refuse the other issuers too
		if guard := (&safedial.Guard{Allow: []string{hostPort(u)}}); guard.Validate() == nil {
			list = append(list, guard.Allow...)
		}
	}
	return list
}
