package bearer

import (
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// judgeType wants a type that is accepted; typ is folded.
func (a *authority) judgeType(typ string) *Error {
	if !slices.Contains(a.TokenTypes, typ) {
		return refuse(codeType, "typ %s", brief(typ))
	}
	return nil
}

// readCaller reads out of authentic claims who is calling.
func (a *authority) readCaller(claims map[string]any) (identity.Caller, *Error) {
	scopes, refusal := readScopes(a.ScopeClaim, claims)
	if refusal != nil {
		return identity.Caller{}, refusal
	}
	names := map[string]string{}
	for _, name := range []string{"sub", "client_id", "azp", "jti"} {
		if names[name], refusal = readName(claims, name); refusal != nil {
			return identity.Caller{}, refusal
		}
	}
	client := names["client_id"]
	if client == "" {
		client = names["azp"]
	}
	return identity.Caller{
		Issuer: a.Issuer.Issuer, Subject: names["sub"], Client: client, Scopes: scopes, TokenID: names["jti"], Claims: claims,
	}, nil
}

// foldType makes the two spellings of a media type one (RFC 7515, section 4.1.9).
func foldType(typ string) string {
	return strings.TrimPrefix(strings.ToLower(typ), "application/")
}

// judgeAudience wants one of the audiences, exactly (RFC 7519, section 4.1.3).
func (a *authority) judgeAudience(claims map[string]any) *Error {
	value, ok := claims["aud"]
	if !ok {
		return refuse(codeAbsent, "no aud")
	}
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	if len(list) == 0 {
		return refuse(codeClaim, "aud is empty")
	}
	named := false
	for _, element := range list {
		audience, ok := element.(string)
		if !ok || audience == "" {
			return refuse(codeClaim, "aud is not a string or an array of strings, none of them empty")
		}
		named = named || slices.Contains(a.Audience, audience)
	}
	if !named {
		return refuse(codeAudience, "aud has none of %q", a.Audience)
	}
	return nil
}

// judgeTime wants now between nbf, iat and exp, give or take the leeway, and the
// lifetime within its limit (RFC 7519, sections 4.1.4 to 4.1.6).
func (a *authority) judgeTime(claims map[string]any, now time.Time) (issued, expires time.Time, refusal *Error) {
	fail := func(code, format string, args ...any) (time.Time, time.Time, *Error) {
		return time.Time{}, time.Time{}, refuse(code, format, args...)
	}
	expires, there, refusal := readTime(claims, "exp")
	if refusal != nil {
		return time.Time{}, time.Time{}, refusal
	}
	if !there {
		return fail(codeAbsent, "no exp")
	}
	if !now.Before(expires.Add(a.Leeway)) {
		return fail(codeExpired, "%s ago", now.Sub(expires).Round(time.Second))
	}
	begins, there, refusal := readTime(claims, "nbf")
	if refusal != nil {
		return time.Time{}, time.Time{}, refusal
	}
	if there && now.Add(a.Leeway).Before(begins) {
		return fail(codeNotYet, "in %s", begins.Sub(now).Round(time.Second))
	}
	issued, there, refusal = readTime(claims, "iat")
	if refusal != nil {
		return time.Time{}, time.Time{}, refusal
	}
	if there && now.Add(a.Leeway).Before(issued) {
		return fail(codeFuture, "in %s", issued.Sub(now).Round(time.Second))
	}
	from := now
	if there {
		from = issued
	}
	if there && !issued.Before(expires) {
		return fail(codeClaim, "iat is not before exp")
	}
	if lifetime := expires.Sub(from); lifetime > a.MaxLifetime {
		return fail(codeLifetime, "%s, more than %s", lifetime.Round(time.Second), a.MaxLifetime)
	}
	return issued, expires, nil
}

// lastSecond is the end of the year 9999: what is later is no date.
const lastSecond = 253402300799

// readTime reads a NumericDate (RFC 7519, section 2) that is a whole number of
// seconds and written as one.
func readTime(claims map[string]any, name string) (at time.Time, there bool, refusal *Error) {
	value, there := claims[name]
	if !there {
		return time.Time{}, false, nil
	}
	seconds, ok := value.(int64)
	if !ok || seconds <= 0 || seconds > lastSecond {
		return time.Time{}, true, refuse(codeClaim, "%s is not a whole number of seconds since 1970", name)
	}
	return time.Unix(seconds, 0), true, nil
}

// judgePresence wants the required claims there, and in a closed list no other.
func (a *authority) judgePresence(claims map[string]any) *Error {
	for _, name := range a.Required {
		if claims[name] == nil {
			return refuse(codeAbsent, "no %s", brief(name))
		}
	}
	if len(a.Only) == 0 {
		return nil
	}
	judged := []string{"iss", "aud", "exp", "nbf", "iat"}
	var unexpected []string
	for name := range claims {
		if !slices.Contains(a.Only, name) && !slices.Contains(a.Required, name) && !slices.Contains(judged, name) {
			unexpected = append(unexpected, name)
		}
	}
	if len(unexpected) > 0 {
		slices.Sort(unexpected)
		return refuse(codeUnexpected, "%s", brief(strings.Join(unexpected, " ")))
	}
	return nil
}

// readName reads a claim that names somebody or something; empty when it is not
// there. It goes into records and headers, so it holds no control characters.
func readName(claims map[string]any, name string) (string, *Error) {
	value, there := claims[name]
	if !there {
		return "", nil
	}
	s, ok := value.(string)
	if !ok || s == "" || strings.ContainsFunc(s, isControl) {
		return "", refuse(codeClaim, "%s is not a string without control characters, or empty", name)
	}
	return s, nil
}

// readScopes reads a claim of scope tokens (RFC 6749, section 3.3): a string, one
// space between two of them, or an array of strings, one in each. Absent and empty
// are no scope.
func readScopes(name string, claims map[string]any) ([]string, *Error) {
	value, there := claims[name]
	if !there {
		return nil, nil
	}
	var list []string
	switch value := value.(type) {
	case string:
		if value == "" {
			return nil, nil
		}
		list = strings.Split(value, " ")
	case []any:
		for _, element := range value {
			s, ok := element.(string)
			if !ok {
				return nil, refuse(codeScopeForm, "%s has an element that is not a string", brief(name))
			}
			list = append(list, s)
		}
	default:
		return nil, refuse(codeScopeForm, "%s is neither a string nor an array", brief(name))
	}
	for _, scope := range list {
		if !isScope(scope) {
			return nil, refuse(codeScopeForm, "%s has an empty element or one with a character that no scope has", brief(name))
		}
	}
	return list, nil
}

// isScope is RFC 6749's scope-token.
func isScope(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

func isControl(r rune) bool { return r < 0x20 || 0x7f <= r && r < 0xa0 }
