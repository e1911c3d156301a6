package ingress

import (
	"fmt"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/state"
)

// standing establishes that the token has not been revoked, as far as this gate can know, and that it knows enough for the
// route. It is asked of every request, after whatever may be remembered of a token.
func (x *exchange) standing() bool {
	if x.caller == nil {
		return true
	}
	route := x.selection.Route
	if route.TokenID && x.caller.TokenID == "" {
		return x.deny(codeNoTokenID, "the token has no jti, and the route is require_jti: true")
	}
	if x.g.config.State == nil {
		return x.alive()
	}
	if r, ok := x.g.config.State.Revoked(tokenOf(x.caller)); ok {
		return x.deny(codeRevoked, because(r))
	}
	if err := x.g.known(); err != nil && !route.Unprivileged {
		return x.deny(codeStanding, err.Error())
	}
	return x.alive()
}

// tokenOf is what of a caller's token a revocation can name. Of a caller that came through another gate it is the token that
// the first gate was sent.
func tokenOf(c *identity.Caller) state.Token {
	session, _ := c.Claims["sid"].(string)
	key := c.KeyID
	if len(c.Workloads) > 0 {
		key = "" // it is that of the gate which passed the caller on
	}
	return state.Token{
		Issuer: c.Issuer, TokenID: c.TokenID, Digest: c.Digest, Subject: c.Subject, Client: c.Client, Session: session,
		KeyID: key, IssuedAt: c.IssuedAt,
	}
}

// because is the reason of a revocation, for the operator. It holds nothing of the token: what it was found by, who asked for
// that, and why.
func because(r state.Revocation) string {
	by := "issuer"
	for _, s := range []struct{ name, value string }{
		{"jti", r.TokenID}, {"digest", r.Digest}, {"subject", r.Subject}, {"client", r.Client}, {"session", r.Session}, {"key", r.KeyID},
	} {
		if s.value != "" {
			by = s.name
		}
	}
	why := "revoked by its " + by
	if !r.Before.IsZero() {
		why += ", as issued until " + r.Before.UTC().Format(time.RFC3339)
	}
	if r.By != "" {
		why += ", by " + r.By
	}
	if r.Reason != "" {
		why += ": " + r.Reason
	}
	return why
}

// known is nil while what has been revoked is known, else why it is not.
func (g *Gateway) known() error {
	s := g.config.State
	if s == nil {
		return nil
	}
	if err := s.Ready(); err != nil {
		return fmt.Errorf("what has been revoked is not known yet: %w", err)
	}
	if age := s.Age(); age > g.config.MaxFeedAge {
		return fmt.Errorf("what was revoked in the last %s is not known: max_feed_age is %s", age.Round(time.Second), g.config.MaxFeedAge)
	}
	return nil
}

// Ready is nil while every route is served, else why privileged ones are not.
func (g *Gateway) Ready() error { return g.known() }

// noticeStanding says once when it begins, and once when it ends, that privileged routes are refused.
func (g *Gateway) noticeStanding() {
	err := g.known()
	if unknown := err != nil; unknown != g.unknown.Swap(unknown) {
		if unknown {
			g.log.Error("privileged routes are refused: standing is not known", "error", err)
		} else {
			g.log.Info("privileged routes are served again: standing is known")
		}
	}
}
