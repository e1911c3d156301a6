package ingress

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net/url"
	"strings"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/proof"
)

// proof establishes that who sends a bound token holds what it is bound to (RFC 9449, RFC 8705), and that a route which wants
// bound tokens gets no other. Nothing of it is kept: it is asked of every request.
func (x *exchange) proof() bool {
	if x.caller == nil {
		return true
	}
	if x.byHop() {
		// The first gate has asked for it, and here nobody can show it again: what is sent is another gate's word.
		if x.selection.Route.Bound {
			return x.deny(codeUnbound, "the caller came by a hop, and the route is sender_constrained: required")
		}
		return x.alive()
	}
	bound, err := proof.Read(x.caller.Claims)
	if err != nil {
		return x.denyProof(err)
	}
	switch {
	case bound == proof.Binding{} && x.dpop:
		return x.deny(codeInvalidProof, "the scheme is DPoP, and the token is not bound to a key")
	case bound == proof.Binding{} && x.selection.Route.Bound:
		return x.deny(codeUnbound, "the token is bound to nothing, and the route is sender_constrained: required")
	case bound.Key == "" && x.dpop:
		return x.deny(codeInvalidProof, "the scheme is DPoP, and the token is bound to a certificate only")
	case bound.Key != "" && !x.dpop:
		return x.deny(codeBinding, "the token is bound to a key, and was sent as Bearer (RFC 9449, section 7.2)")
	case bound.Certificate != "" && !bound.Held(x.certificate(), x.g.now()):
		return x.deny(codeCertificate, "the connection has not the certificate that the token is bound to")
	case bound.Key != "" && !x.shows(bound):
		return false
	}
	x.bound = bound
	return x.alive()
}

// shows verifies the DPoP proof, its nonce where the route wants one, and last, since it is remembered, that it is used for
// the first time.
func (x *exchange) shows(bound proof.Binding) bool {
	g, now, token := x.g, x.g.now(), x.token.Hash()
	if g.config.PublicURL == "" {
		return x.deny(codeBinding, "the token is bound to a key, and without ingress.public_url no proof can be of this gate")
	}
	shown, err := proof.Verify(x.r.Header["Dpop"], proof.Request{
		Method: x.r.Method, URL: g.config.PublicURL + pathOf(x.r.RequestURI), Token: token, Key: bound.Key, Now: now,
	})
	if err != nil {
		return x.denyProof(err)
	}
	if x.selection.Route.Nonce {
		age, ok := g.nonces.Check(shown.Nonce, token, now)
		if !ok || proof.Old(age) {
			if x.nonce, err = g.nonces.New(token, now); err != nil {
				g.log.Error("make a nonce: the request is refused", "request", x.id, "error", err)
				return x.deny(codeReplay, "no nonce can be made")
			}
		}
		if !ok {
			return x.deny(codeNonce, "the proof has no nonce of ours, or a stale one, or one for another token")
		}
	}
	return x.once(shown)
}

// once asks all replicas whether the proof was used before. Where that cannot be known it is taken for used.
func (x *exchange) once(shown proof.Shown) bool {
	err := errors.New("there is no state")
	first := false
	if x.g.config.State != nil {
		first, err = x.g.config.State.Once(x.r.Context(), "dpop", shown.ID, shown.Until)
	}
	switch {
	case x.r.Context().Err() != nil:
		return x.alive()
	case err != nil:
		x.g.log.Error("ask whether a proof is used for the first time: the request is refused", "request", x.id, "error", err)
		return x.deny(codeReplay, "it is not known whether the proof was used before: "+err.Error())
	case !first:
		return x.deny(codeInvalidProof, "the proof was used before")
	}
	return true
}

// certificate is what the client showed in the handshake of this very connection. What was shown in an earlier one, whose
// session was resumed, is not; nor is what a header says.
func (x *exchange) certificate() *x509.Certificate {
	state := x.r.TLS
	if x.wire != nil {
		if s, ok := x.wire.TLSState(); ok {
			state = &s
		}
	}
	if state == nil || state.DidResume || len(state.PeerCertificates) == 0 {
		return nil
	}
	return state.PeerCertificates[0]
}

func (x *exchange) denyProof(err error) bool {
	var refused *proof.Error
	if !errors.As(err, &refused) {
		return x.deny(codeInvalidProof, err.Error())
	}
	return x.deny(policy.Code(refused.Code), refused.Detail)
}

// provenBy is how a request showed what its token is bound to, for the record; empty: it is bound to nothing.
func provenBy(b proof.Binding) string {
	var how []string
	if b.Key != "" {
		how = append(how, "dpop")
	}
	if b.Certificate != "" {
		how = append(how, "certificate")
	}
	return strings.Join(how, "+")
}

// ownSecret is for nonces that nobody else need know.
func ownSecret() func() ([]byte, error) {
	secret := make([]byte, 32)
	rand.Read(secret)
	return func() ([]byte, error) { return secret, nil }
}

// CheckPublicURL returns what the URL of each request begins with, as clients write it in a proof: no path ends in "/" twice.
func CheckPublicURL(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.ContainsAny(s, "#\\ \"") {
		return "", errors.New("public_url: not an http or https URL without user, query and fragment")
	}
	h, err := canonicaliseHost(u.Host, u.Scheme == "https")
	if err != nil || h.String() != u.Host {
		return "", errors.New("public_url: write the host in lower case, without a default port")
	}
	return strings.TrimSuffix(s, "/"), nil
}
