package credential

import (
	"context"
	"crypto/sha256"
	"net/url"
	"slices"
	"strings"
)

// RFC 8693, sections 2.1 and 3.
const (
	grantExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"
)

// assertionHeader carries a transaction token to the next gate.
const assertionHeader = "Txn-Token"

// Attach returns the header to attach to a request that c has caused, or an *Error. It waits for an authorization server
// where nothing is kept, for at most 5 s.
func (s *Source) Attach(ctx context.Context, c Cause) (Header, error) {
	header, refusal := s.attach(ctx, c)
	if refusal != nil {
		return Header{}, refusal
	}
	return header, nil
}

func (s *Source) attach(ctx context.Context, c Cause) (Header, *Error) {
	switch s.config.Kind {
	case Forward:
		return s.forward(c)
	case Exchange:
		return s.exchange(ctx, c)
	case Service:
		return s.service(ctx)
	case File:
		return s.file()
	case Assertion:
		return s.assertion(c)
	}
	return Header{}, &Error{Code: CodeUnavailable, Detail: "no kind"}
}

func header(name, prefix, secret string) Header {
	value := prefix + secret
	return Header{Name: name, value: &value}
}

// forward hands the caller's own token on, where that token says that it is for the destination too.
func (s *Source) forward(c Cause) (Header, *Error) {
	if refusal := s.callerOf(c); refusal != nil {
		return Header{}, refusal
	}
	if _, bound := c.Caller.Claims["cnf"]; bound {
		return Header{}, &Error{Code: CodeBound, Detail: "the token is bound by cnf: handed on, it would be refused or its binding undone"}
	}
	if !names(c.Caller.Claims["aud"], s.config.Audience) {
		return Header{}, &Error{Code: CodeNotCovered, Detail: "aud of the caller's token does not have " + s.config.Audience}
	}
	for _, scope := range s.config.Scopes {
		if !slices.Contains(c.Caller.Scopes, scope) {
			return Header{}, &Error{Code: CodeNotCovered, Detail: "the caller's token lacks scope " + scope}
		}
	}
	return header("Authorization", "Bearer ", c.Token.Reveal()), nil
}

// callerOf wants a caller whose token is there and lives.
func (s *Source) callerOf(c Cause) *Error {
	if c.Caller == nil || c.Token.Reveal() == "" {
		return &Error{Code: CodeNoCaller, Detail: "no caller's token"}
	}
	if len(c.Caller.Workloads) > 0 {
		return &Error{Code: CodeNoCaller, Detail: "the caller came by another gate's statement, which is no access token"}
	}
	if !s.now().Before(c.Caller.Expires) {
		return &Error{Code: CodeRefused, Detail: "the caller's token has ended"}
	}
	return nil
}

// names says whether aud, a string or an array of them, has an audience.
func names(aud any, audience string) bool {
	if list, ok := aud.([]any); ok {
		return slices.Contains(list, any(audience))
	}
	return aud == any(audience)
}

// exchange gives the caller's token for one that is for the destination.
func (s *Source) exchange(ctx context.Context, c Cause) (Header, *Error) {
	if refusal := s.callerOf(c); refusal != nil {
		return Header{}, refusal
	}
	caller, token := *c.Caller, c.Token
	return s.tokens.get(ctx, wanted{
		key: sha256.Sum256([]byte(token.Reveal())), caller: &caller, last: caller.Expires, scopes: s.config.Scopes, exchanged: true,
		form: func() url.Values {
			form := s.form(grantExchange)
			form.Set("subject_token", token.Reveal())
			form.Set("subject_token_type", typeAccessToken)
			form.Set("requested_token_type", typeAccessToken)
			return form
		},
	})
}

// service asks for a token of our own.
func (s *Source) service(ctx context.Context) (Header, *Error) {
	return s.tokens.get(ctx, wanted{scopes: s.config.Scopes, ahead: true, form: func() url.Values { return s.form("client_credentials") }})
}

// form is what every request to the token endpoint has.
func (s *Source) form(grant string) url.Values {
	form := url.Values{"grant_type": {grant}}
	for name, value := range map[string]string{
		"audience": s.config.Audience, "resource": s.config.Resource, "scope": strings.Join(s.config.Scopes, " "),
	} {
		if value != "" {
			form.Set(name, value)
		}
	}
	return form
}

func (s *Source) file() (Header, *Error) {
	content, err := s.secret()
	if err != nil {
		return Header{}, &Error{Code: CodeUnavailable, Detail: "secret file", Err: err}
	}
	h := header(s.config.Header, s.config.Prefix, content.secret)
	h.scrub = content.scrub
	return h, nil
}

// assertion states the caller, with no more scopes than the destination is to see.
func (s *Source) assertion(c Cause) (Header, *Error) {
	if c.Caller == nil {
		return Header{}, &Error{Code: CodeNoCaller, Detail: "no caller"}
	}
	if !s.now().Before(c.Caller.Expires) {
		return Header{}, &Error{Code: CodeRefused, Detail: "the caller's token has ended"}
	}
	signed, err := s.sign(c, s.config.Audience, slices.Clone(s.config.Scopes))
	if err != nil {
		return Header{}, &Error{Code: CodeUnavailable, Detail: "sign the assertion", Err: err}
	}
	return header(assertionHeader, "", signed), nil
}
