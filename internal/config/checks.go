package config

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/sallyport/sallyport/internal/ingress"
)

// notBlank admits any text of one line that says something. It goes into records and headers.
func notBlank(s string) (problem, hint string) {
	switch {
	case strings.TrimSpace(s) == "":
		return "is blank", ""
	case strings.ContainsFunc(s, unicode.IsControl):
		return "holds a line end or another control character", "write it on one line; text after `|` or `>` ends with a line end"
	case strings.TrimSpace(s) != s:
		return "begins or ends with a space", ""
	}
	return "", ""
}

// condition admits a text of any number of lines.
func condition(s string) (problem, hint string) {
	if strings.TrimSpace(s) == "" {
		return "is blank", ""
	}
	return "", ""
}

// upstreamURL admits where a service may be: the gate speaks plain HTTP to it, over loopback or a unix socket.
func upstreamURL(s string) (problem, hint string) {
	u, problem, hint := parseURL(s)
	switch {
	case problem != "":
		return problem, hint
	case onSocket(u):
		if problem, hint := badPath(u.Path); problem != "" {
			return problem, hint
		}
		if len(u.Path) > maxSocketPath {
			return fmt.Sprintf("the socket's path is %d bytes long, and the kernel takes %d", len(u.Path), maxSocketPath), ""
		}
		if strings.HasSuffix(u.Path, "/") || strings.Contains(u.Path, "//") || strings.Contains(u.Path+"/", "/../") {
			return "the path must name a socket, in its shortest form", "for example `unix:///run/app/app.sock`"
		}
	case u.Port() == "0":
		return "port 0 cannot be connected to", ""
	}
	return "", ""
}

// issuerURL admits what RFC 8414, section 2, calls an issuer.
func issuerURL(s string) (problem, hint string) {
	u, problem, hint := parseURL(s)
	switch {
	case problem != "":
		return problem, hint
	case u.RawQuery != "" || u.ForceQuery:
		return "an issuer has no query", "remove what follows `?`"
	}
	return secureURL(u)
}

// fetchURL admits where keys may be fetched.
func fetchURL(s string) (problem, hint string) {
	u, problem, hint := parseURL(s)
	if problem != "" {
		return problem, hint
	}
	return secureURL(u)
}

// secretURL is fetchURL for a place that secrets are sent to.
func secretURL(s string) (problem, hint string) {
	problem, hint = fetchURL(s)
	if problem == "must be https" {
		hint = "http is for loopback hosts only: anyone on the way could read the secret and the tokens"
	}
	return problem, hint
}

// publicURL admits what a client may write before the path of a proof.
func publicURL(s string) (problem, hint string) {
	if _, err := ingress.CheckPublicURL(s); err != nil {
		return strings.TrimPrefix(err.Error(), "public_url: "), "for example `https://api.example.com`, as clients write it"
	}
	return "", ""
}

func secureURL(u *url.URL) (problem, hint string) {
	switch {
	case u.Hostname() == "":
		return "the URL has no host", ""
	case u.Scheme == "https":
		return "", ""
	case u.Scheme == "http" && loopback(u.Hostname()):
		return "", ""
	}
	return "must be https", "http is for loopback hosts only: anyone on the way could put in keys of their own"
}

// neverAlgorithms says why an algorithm that a token may name is not among those that can be accepted.
func neverAlgorithms() map[string]string {
	hints := map[string]string{"none": "`none` is no signature, and never accepted"}
	for _, hs := range []string{"HS256", "HS384", "HS512"} {
		hints[hs] = "HMAC is never accepted: whoever can verify such a token can make one"
	}
	for _, other := range []string{"RS384", "RS512", "PS384", "PS512", "ES512"} {
		hints[other] = "the longer hash adds nothing here; ask the issuer for one of those named"
	}
	return hints
}

// readableHeader keeps from conditions what proves who someone is, and what only the gate may say.
func readableHeader(s string) (problem, hint string) {
	if slices.Contains([]string{"authorization", "proxy-authorization", "cookie", "dpop"}, s) {
		return "holds a secret, which no condition may read", "what the token says is in `claims`"
	}
	if !ingress.Reaches(s) {
		return "never reaches the service as the caller sent it, so no condition may read it", "the caller's address is `request.source`, the name it asked for `request.host`"
	}
	return "", ""
}

// assertionHeader keeps the assertion out of headers that have another meaning on the way.
func assertionHeader(s string) (problem, hint string) {
	taken := []string{"connection", "content-length", "content-type", "cookie", "expect", "forwarded", "host", "keep-alive",
		"proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "via",
		"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"}
	if slices.Contains(taken, strings.ToLower(s)) {
		return s + " has a meaning of its own", "for example `Authorization` or `X-Caller`"
	}
	return "", ""
}

// origin admits an origin as browsers send it (RFC 6454, section 6.2).
func origin(s string) (problem, hint string) {
	if s == "*" {
		return "", ""
	}
	u, problem, hint := parseURL(s)
	switch {
	case problem != "":
		return problem, hint
	case u.Hostname() == "":
		return "the origin has no host", ""
	case u.Scheme == "https" && u.Port() == "443", u.Scheme == "http" && u.Port() == "80":
		return "browsers leave out the scheme's own port", fmt.Sprintf("`%s://%s`", u.Scheme, u.Hostname())
	}
	return "", ""
}

// user admits numbers that are a uid and a gid. Whether root is accepted, accept_gaps says.
func user(s string) (problem, hint string) {
	for part := range strings.SplitSeq(s, ":") {
		if _, err := strconv.ParseUint(part, 10, 31); err != nil {
			return "no such user or group number: " + quote(part), ""
		}
	}
	return "", ""
}

// secretVariable says why a variable should not have its value in the file, or is empty.
func secretVariable(name, value string) string {
	if value == "" {
		return ""
	}
	words := strings.FieldsFunc(strings.ToUpper(name), func(c rune) bool { return c == '_' })
	// What names, places or bounds a secret is none: TOKEN_FILE, KEY_ID, SECRET_TTL.
	harmless := []string{"FILE", "PATH", "DIR", "ID", "NAME", "TTL", "LIFETIME", "ISSUER", "AUDIENCE", "ALGORITHM", "TYPE"}
	if len(words) > 0 && !slices.Contains(harmless, words[len(words)-1]) && !slices.Contains(words, "PUBLIC") {
		for _, w := range words {
			switch w {
			case "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "KEY", "APIKEY", "APITOKEN", "CREDENTIAL", "CREDENTIALS",
				"ACCESSKEY", "SECRETKEY", "PRIVATEKEY", "ACCESSTOKEN", "CLIENTSECRET":
				return "the name says that it holds a secret"
			}
		}
	}
	if strings.Contains(value, "-----BEGIN") && !strings.Contains(value, "-----BEGIN PUBLIC KEY") && !strings.Contains(value, "-----BEGIN CERTIFICATE") {
		return "the value is a private key"
	}
	if strings.HasPrefix(value, "eyJ") && strings.Count(value, ".") >= 2 {
		return "the value is a token"
	}
	if u, err := url.Parse(value); err == nil && u.User != nil {
		if _, ok := u.User.Password(); ok {
			return "the value is a URL with a password"
		}
	}
	return ""
}
