// Package credential obtains what the gate behind attaches to a request: the caller's token where it is meant for the
// destination too, an exchanged one, one of our own, a static secret, a signed assertion.
//
//	source, err := credential.New(credential.Config{
//		Kind: credential.Exchange, TokenEndpoint: "https://auth.example.com/token",
//		ClientID: "orders-gate", ClientSecretFile: "/run/secrets/exchange",
//		Audience: "https://billing.example.com", Scopes: []string{"invoice:write"},
//	}, credential.Options{})
//	if err != nil {
//		return err
//	}
//	defer source.Close()
//	header, err := source.Attach(ctx, credential.Cause{Caller: caller, Token: token})
//	request.Header.Set(header.Name, header.Reveal())
//	answer.Body = header.Scrubber().Body(answer.Body) // a destination that echoes it does not tell the service
//
// # What is established
//
// The service never holds what is attached. Forward attaches the inbound token only where the token itself names the
// destination's audience and has its scopes, and never one that is bound to its sender. Exchange and Service take only what
// was asked for: a bearer access token with an end, whose scope is not wider. Where anything is missing there is an *Error and
// no header: nothing weaker is attached in its place.
//
// # What is kept
//
// A token that was obtained is used until 15 s before its end, an exchanged one at most until the end of the inbound token.
// It is kept for the inbound token that it came from, byte for byte; Forget drops it when that is revoked. Of many requests at
// once one asks. A refusal holds for 2 s, so that a token which the authorization server does not take is not shown to it with each
// request. A file is read again when it has changed; one that cannot be read any more ends what was read.
//
// # Limits
//
// A token that was attached already is not taken back from who received it: keep the lifetimes of what is exchanged
// short. That a destination keeps the secret to itself cannot be established.
package credential

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/leak"
	"github.com/sallyport/sallyport/internal/oauth"
	"github.com/sallyport/sallyport/safedial"
)

// Kind is where a credential comes from.
type Kind string

const (
	Forward   Kind = "forward"   // the caller's own token
	Exchange  Kind = "exchange"  // a token for the same caller, by RFC 8693
	Service   Kind = "service"   // a token of our own, by client credentials (RFC 6749, section 4.4)
	File      Kind = "file"      // a static secret
	Assertion Kind = "assertion" // a statement of the caller that we sign
)

// Config is the credential of one destination. A field that its kind does not use must be empty.
type Config struct {
	Kind Kind // required

	// Audience is whom the token is for. Forward and Assertion: required. Exchange: this or Resource, as the authorization
	// server knows the destination. Service: may be empty.
	Audience string
	// Scopes are what the token must be good for: Forward: the inbound token has each. Exchange: asked for; required.
	// Service: asked for; empty leaves it to the authorization server. Assertion: the most that is said.
	Scopes []string

	TokenEndpoint    string // Exchange, Service: required; https, or http on loopback
	ClientID         string // Exchange, Service: required
	ClientSecretFile string // Exchange, Service: required
	Resource         string // Exchange, Service: RFC 8707; may be empty

	Path   string // File: required
	Header string // File: the header; empty means Authorization
	Prefix string // File: before the secret; where Header is empty too, "Bearer "
}

// Options are what a Source needs besides its Config; every field may be empty.
type Options struct {
	Guard *safedial.Guard  // dials the token endpoint; nil allows just its host
	Roots *x509.CertPool   // of the token endpoint; nil means the system's
	Now   func() time.Time // nil means time.Now
	Max   int              // exchanged tokens that are kept; zero means 10,000; the one that was not used for longest goes
	// Sign states the caller, with those of its scopes that are listed, to the service that is called audience: it is
	// identity.Signer.Next. Required for Assertion.
	Sign func(c Cause, audience string, scopes []string) (string, error)
}

// Cause is for whom a credential is attached.
type Cause struct {
	Caller *identity.Caller // nil: nobody's request, or one on a public route
	Token  bearer.Token     // that proved the caller; zero if none did
	// Route and RequestID are those that the caller was let in with; for Assertion.
	Route, RequestID string
}

// Header is what is attached. It prints as its name and "[redacted]".
type Header struct {
	Name  string
	value *string // behind a pointer, because package fmt prints an unexported string without asking its methods
	scrub *leak.Scrubber
}

// Reveal returns the value, for the request that it is attached to and nobody else.
func (h Header) Reveal() string {
	if h.value == nil {
		return ""
	}
	return *h.value
}

// Scrubber masks the secret in the answer. It is nil, and masks nothing, where the secret is the caller's own.
func (h Header) Scrubber() *leak.Scrubber { return h.scrub }

func (h Header) String() string { return h.Name + ": [redacted]" }

// Format implements fmt.Formatter, for every verb.
func (h Header) Format(f fmt.State, _ rune) { io.WriteString(f, h.String()) }

// MarshalText implements encoding.TextMarshaler, and so does encoding/json.
func (h Header) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// LogValue implements slog.LogValuer.
func (h Header) LogValue() slog.Value { return slog.StringValue(h.String()) }

// Error is why there is nothing to attach. It holds no secret.
type Error struct {
	Code   string // one of the constants; may be told to the service
	Detail string // for the operator
	Err    error
}

// The codes of an Error.
const (
	CodeUnavailable = "credential_unavailable" // it cannot be had now
	CodeRefused     = "credential_refused"     // the authorization server gives none for this caller, or the caller's token has ended
	CodeNoCaller    = "credential_no_caller"   // it is a caller's, and nobody's token proved one
	CodeNotCovered  = "credential_not_covered" // the caller's token does not name this destination, or lacks a scope
	CodeBound       = "credential_bound"       // the caller's token is bound to its sender
)

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Detail, e.Err)
	}
	return e.Code + ": " + e.Detail
}

func (e *Error) Unwrap() error { return e.Err }

// Status is the HTTP status that answers a request without its credential.
func (e *Error) Status() int {
	if e.Code == CodeUnavailable {
		return http.StatusServiceUnavailable
	}
	return http.StatusForbidden
}

// Source obtains the credential of one destination. Safe for concurrent use.
type Source struct {
	config Config
	now    func() time.Time
	sign   func(Cause, string, []string) (string, error)
	secret func() (*content, error) // File
	tokens *tokens                  // Exchange and Service
}

// New checks the configuration; a secret that cannot be read now is an error. It dials nothing. The caller must Close the
// Source. The error names everything that is wrong.
func New(c Config, o Options) (*Source, error) {
	s := &Source{config: c, now: o.Now, sign: o.Sign}
	s.config.Scopes = slices.Clone(c.Scopes)
	if s.now == nil {
		s.now = time.Now
	}
	wrong := c.check(o)
	switch c.Kind {
	case File:
		if c.Header == "" {
			s.config.Header = "Authorization"
			if c.Prefix == "" {
				s.config.Prefix = "Bearer "
			}
		}
		s.config.Header = textproto.CanonicalMIMEHeaderKey(s.config.Header)
		s.secret = secretFile(c.Path)
		if _, err := s.secret(); c.Path != "" && err != nil {
			wrong = append(wrong, err)
		}
	case Exchange, Service:
		secret := secretFile(c.ClientSecretFile)
		if _, err := secret(); c.ClientSecretFile != "" && err != nil {
			wrong = append(wrong, err)
		}
		client, err := oauth.New(oauth.Config{
			Endpoint: c.TokenEndpoint, ClientID: c.ClientID, Guard: o.Guard, Roots: o.Roots, Now: o.Now,
			Secret: func() (string, error) {
				content, err := secret()
				if err != nil {
					return "", err
				}
				return content.secret, nil
			},
		})
		if err != nil {
			wrong = append(wrong, err)
		}
		s.tokens = newTokens(client, s.now, o.Max)
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, fmt.Errorf("credential %s: %w", c.Kind, err)
	}
	return s, nil
}

// check returns what is wrong with the configuration as it is written.
func (c Config) check(o Options) (wrong []error) {
	need := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Errorf(format, args...))
		}
	}
	asks := c.Kind == Exchange || c.Kind == Service
	need(asks || c.TokenEndpoint == "" && c.ClientID == "" && c.ClientSecretFile == "" && c.Resource == "",
		"a token endpoint, client or resource is for exchange and service")
	need(c.Kind == File || c.Path == "" && c.Header == "" && c.Prefix == "", "a path, header or prefix is for file")
	need(!asks || c.ClientSecretFile != "", "no client secret file")
	switch c.Kind {
	case Forward:
		need(c.Audience != "", "no audience: any token of a caller would be handed on, whomever it was made for")
	case Exchange:
		need(c.Audience != "" || c.Resource != "", "neither audience nor resource: the token would be for nobody in particular")
		need(len(c.Scopes) > 0, "no scopes: the token would be as wide as the authorization server allows")
	case Service:
	case File:
		need(c.Path != "", "no path")
		need(c.Audience == "" && len(c.Scopes) == 0, "a file has no audience and no scopes")
		need(attachable(c.Header), "header %q cannot be attached", c.Header)
		need(isField(c.Prefix), "the prefix has a character that no header can carry")
	case Assertion:
		need(c.Audience != "", "no audience")
		need(o.Sign != nil, "there is nothing to sign with")
	default:
		wrong = append(wrong, errors.New("the kind is none of forward, exchange, service, file and assertion"))
	}
	for _, scope := range c.Scopes {
		need(isScope(scope), "scope %q is not a scope token (RFC 6749, section 3.3)", scope)
	}
	return wrong
}

// attachable says whether a header may carry a credential: not one that says how the message is framed or where it goes.
func attachable(name string) bool {
	for i := range len(name) {
		if c := name[i] | 0x20; (c < 'a' || c > 'z') && (c < '0' || c > '9') && name[i] != '-' {
			return false
		}
	}
	return !slices.Contains([]string{
		"Host", "Connection", "Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding", "Te", "Trailer", "Upgrade", "Expect",
		"Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Forwarded", "Range",
	}, textproto.CanonicalMIMEHeaderKey(name))
}

// isField says whether a header can carry s: printable ASCII and spaces.
func isField(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
}

// isScope is RFC 6749's scope-token.
func isScope(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x21 || r > 0x7e || r == '"' || r == '\\' })
}

// Forget drops what was obtained for the callers that match, also what is being obtained now, and returns how much that was.
func (s *Source) Forget(match func(identity.Caller) bool) int {
	if s.tokens == nil {
		return 0
	}
	return s.tokens.forget(match)
}

// Close ends what is being obtained. Nothing must be attached afterwards.
func (s *Source) Close() {
	if s.tokens != nil {
		s.tokens.close()
	}
}
