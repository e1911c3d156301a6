package bearer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/sallyport/sallyport/internal/oauth"
	"github.com/sallyport/sallyport/safedial"
)

// Transport is an http.RoundTripper that attaches a token to requests, only where it has been confirmed to be for the recipient:
// verified with the recipient's issuer, audience and keys, or introspected. The zero value attaches none.
//
// A request to a recipient whose token cannot be confirmed is not sent: the error is an *Error. Requests to anybody else are
// sent as they are, and so is one that a redirect from another origin leads to a recipient. The requests that are passed in
// are not changed, and no response shows the one that was sent. Safe for concurrent use; its fields must not change once
// it has been used.
type Transport struct {
	// Base makes the requests; it must follow no redirects. Nil means a safedial.Transport that allows the recipients' hosts.
	Base http.RoundTripper
	// Token returns the token for a request with this context. Required where there are recipients.
	Token func(context.Context) (Token, error)
	// Recipients are those that get a token, by their origin: "https://billing.example.com", with a port unless it is 443. Only
	// a loopback address and localhost may be http. Empty means that nobody gets one.
	Recipients map[string]Recipient

	once       sync.Once
	base       http.RoundTripper
	recipients map[string]*recipient
	broken     *Error
}

// Recipient is how a token is confirmed to be for somebody: by exactly one of Verifier and Introspection.
type Recipient struct {
	// Verifier has the recipient's issuer, with the recipient as its audience.
	Verifier *Verifier
	// Introspection is the endpoint of the recipient's authorization server (RFC 7662): https, or http on loopback. What it
	// answers is used for at most 30 s, and must be active, for one of Audience, of Issuer, a bearer token and not bound.
	Introspection string
	ClientID      string                 // at Introspection; required there
	Secret        func() (string, error) // the client's; required there
	Audience      []string               // one of which the answer must name; required there
	Issuer        string                 // which the answer must name; empty means that it need not
	Roots         *x509.CertPool         // of Introspection; nil means the system's
	// Scopes are those that the token must have, each; empty means none in particular.
	Scopes []string
}

// recipient is a Recipient, made ready.
type recipient struct {
	Recipient
	introspector *oauth.Introspector // nil: there is a Verifier
}

// RoundTrip makes one request, as http.RoundTripper asks.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.once.Do(t.build)
	if t.broken != nil {
		return nil, abandon(r, t.broken)
	}
	to := t.recipients[originOf(r.URL)]
	if to == nil || strayed(r) {
		return t.base.RoundTrip(r)
	}
	token, err := t.confirm(r, to)
	if err != nil {
		return nil, abandon(r, err)
	}
	sent := r.Clone(r.Context())
	if sent.Header == nil {
		sent.Header = http.Header{}
	}
	sent.Header.Set("Authorization", "Bearer "+token.Reveal())
	response, err := t.base.RoundTrip(sent)
	if response != nil {
		response.Request = r
	}
	return response, err
}

// abandon closes the body of a request that is not sent.
func abandon(r *http.Request, err error) error {
	if r.Body != nil {
		r.Body.Close()
	}
	return err
}

// CloseIdleConnections closes the connections that no request uses.
func (t *Transport) CloseIdleConnections() {
	t.once.Do(t.build)
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
	for _, to := range t.recipients {
		if to.introspector != nil {
			to.introspector.Close()
		}
	}
}

// confirm returns the token for a request, which is for its recipient.
func (t *Transport) confirm(r *http.Request, to *recipient) (Token, error) {
	if r.Host != "" && !strings.EqualFold(r.Host, r.URL.Host) {
		return Token{}, refuse(codeHost, "the request is for host %s at %s", brief(r.Host), brief(r.URL.Host))
	}
	if target := targetHost(r.URL); !strings.EqualFold(target, r.URL.Host) {
		return Token{}, refuse(codeHost, "the request's target is at host %s, and not at %s", brief(target), brief(r.URL.Host))
	}
	for name := range r.Header {
		if http.CanonicalHeaderKey(name) == "Authorization" {
			return Token{}, refuse(codeOccupied, "the request has an Authorization header already")
		}
	}
	token, err := t.Token(r.Context())
	if err != nil {
		return Token{}, &Error{Code: codeMissing, Err: err}
	}
	if !oauth.IsToken(token.Reveal()) {
		return Token{}, refuse(codeMissing, "no token, or one that no header can carry")
	}
	var scopes []string
	if to.introspector != nil {
		scopes, err = to.introspect(r.Context(), token)
	} else {
		scopes, err = to.verify(r.Context(), token)
	}
	if err != nil {
		return Token{}, err
	}
	for _, scope := range to.Scopes {
		if !slices.Contains(scopes, scope) {
			return Token{}, refuse(codeScope, "no scope %s", brief(scope))
		}
	}
	return token, nil
}

// verify returns the scopes of a token that the recipient's keys show to be for it.
func (r *recipient) verify(ctx context.Context, token Token) ([]string, error) {
	caller, err := r.Verifier.Verify(ctx, token)
	if err != nil {
		return nil, err
	}
	// whatever the verifier makes of it: no proof is made here
	if _, bound := caller.Claims["cnf"]; bound {
		return nil, refuse(codeBound, "cnf is there, and no proof is made")
	}
	return caller.Scopes, nil
}

// introspect returns the scopes of a token that the recipient's authorization server vouches for. It is judged anew each
// time: what is kept is the answer, and not the verdict.
func (r *recipient) introspect(ctx context.Context, token Token) ([]string, error) {
	answer, err := r.introspector.Ask(ctx, oauth.Question{Token: token.Reveal()})
	claims := answer.Claims
	if errors.Is(err, oauth.ErrInactive) {
		return nil, refuse(codeInactive, "the authorization server does not vouch for it")
	}
	if err != nil {
		return nil, &Error{Code: codeIntrospection, Err: err}
	}
	if _, bound := claims["cnf"]; bound {
		return nil, refuse(codeBound, "cnf is there, and no proof is made")
	}
	for name, want := range map[string]string{"token_type": "Bearer", "token_use": "access_token"} {
		if value, there := claims[name]; there {
			if s, ok := value.(string); !ok || !strings.EqualFold(s, want) {
				return nil, refuse(codeType, "%s is not %s", name, want)
			}
		}
	}
	if r.Issuer != "" && claims["iss"] != any(r.Issuer) {
		return nil, refuse(codeIssuer, "the answer's iss is not the issuer")
	}
	if refusal := (&authority{Issuer: Issuer{Audience: r.Audience}}).judgeAudience(claims); refusal != nil {
		return nil, refusal
	}
	scopes, refusal := readScopes("scope", claims)
	if refusal != nil {
		return nil, refusal
	}
	return scopes, nil
}

// build checks the fields. What is wrong with one recipient stops every request, so that it is noticed.
func (t *Transport) build() {
	t.recipients = map[string]*recipient{}
	var wrong []error
	if len(t.Recipients) > 0 && t.Token == nil {
		wrong = append(wrong, errors.New("recipients, and no token for them"))
	}
	guard := &safedial.Guard{Unlock: []string{"kubernetes-api", "node-gateway"}}
	for name, r := range t.Recipients {
		u, err := recipientURL(name)
		made := &recipient{Recipient: r}
		if err == nil {
			made.introspector, err = r.check()
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("recipient %s: %w", brief(name), err))
			continue
		}
		t.recipients[originOf(u)] = made
		guard.Allow = append(guard.Allow, hostPort(u))
	}
	if t.base = t.Base; t.base == nil {
		t.base = &safedial.Transport{Guard: guard}
	}
	if len(wrong) > 0 {
		t.broken = &Error{Code: codeTransport, Err: errors.Join(wrong...)}
	}
}

// check returns the introspector where there is no verifier.
func (r Recipient) check() (*oauth.Introspector, error) {
	if r.Verifier != nil {
		if r.Introspection != "" || r.ClientID != "" || r.Secret != nil || r.Audience != nil || r.Issuer != "" {
			return nil, errors.New("a verifier, and what introspection needs: which of them confirms is not clear")
		}
		return nil, nil
	}
	if len(r.Audience) == 0 || slices.Contains(r.Audience, "") {
		return nil, errors.New("no audience, or an empty one: any token would be taken to be for it")
	}
	return oauth.NewIntrospector(oauth.IntrospectorConfig{
		Config: oauth.Config{Endpoint: r.Introspection, ClientID: r.ClientID, Secret: r.Secret, Roots: r.Roots}, Keep: oauth.MaxKeep,
	})
}

// recipientURL reads an origin.
func recipientURL(name string) (*url.URL, error) {
	u, err := fetchable(name)
	if err != nil {
		return nil, err
	}
	if u.Path != "" || u.RawQuery != "" || u.ForceQuery {
		return nil, errors.New("an origin has no path and no query")
	}
	address, err := netip.ParseAddr(u.Hostname())
	if loopback := u.Hostname() == "localhost" || err == nil && address.IsLoopback(); u.Scheme == "http" && !loopback {
		return nil, errors.New("http, and not on this machine: whoever is on the way would read the token")
	}
	return u, nil
}

// targetHost is the host that a request's target names, before which a Host header counts nothing (RFC 9112, section
// 3.2.2): the URL's, unless URL.Opaque is the target.
func targetHost(u *url.URL) string {
	rest, absolute := strings.CutPrefix(u.Opaque, "//") // (*url.URL).RequestURI puts the scheme before it
	switch {
	case absolute:
		if end := strings.IndexAny(rest, "/?#"); end >= 0 {
			rest = rest[:end]
		}
		return rest
	case u.Opaque == "", u.Opaque[0] == '/':
		return u.Host
	}
	return u.Opaque
}

// originOf is scheme, host and port, in one spelling.
func originOf(u *url.URL) string {
	if u == nil {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// strayed says whether a redirect from another origin led here: who is redirected does not choose where its token goes.
func strayed(r *http.Request) bool {
	for hop := r.Response; hop != nil; hop = hop.Request.Response {
		if hop.Request == nil || hop.Request.URL == nil || originOf(hop.Request.URL) != originOf(r.URL) {
			return true
		}
	}
	return false
}
