package bearer

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/jws"
	"github.com/sallyport/sallyport/internal/oauth"
)

// Introspection is how an issuer is asked about tokens that say nothing by themselves (RFC 7662): opaque ones, and where the
// issuer has no Keys its JWTs too. Unset means closed.
//
// What it answers of an active token is judged, on every request, as if the token said it. An answer that names another
// issuer, no audience of ours, a refresh token or a user without sub is a refusal.
type Introspection struct {
	Endpoint string // https, or http on loopback; required
	ClientID string // required

	// How the client proves itself: exactly one of a file with its secret (client_secret_basic), one with a private key, PEM or
	// JWK (private_key_jwt), and a pair with a certificate and its key, PEM (tls_client_auth). They are read again when they change.
	SecretFile, KeyFile      string
	CertFile, CertificateKey string

	CAFile string        // the roots of Endpoint, PEM; empty means the system's
	Signed bool          // answers must be signed by the issuer's Keys (RFC 9701)
	Cache  time.Duration // how long an answer of an active token is used, at most 30 s; zero: none is
	Prefix string        // which opaque tokens are this issuer's; empty: those that have no other's. One issuer may have none
}

const (
	// maxOpaque is the longest opaque token that anybody is asked about, in bytes: many servers take no longer form.
	maxOpaque = 4 << 10

	// maxUnended is how long a token counts of which the issuer does not say when it ends.
	maxUnended = oauth.MaxKeep
)

// checkIntrospection holds an issuer's introspection to what it needs besides what package oauth checks.
func checkIntrospection(i Issuer) error {
	in := i.Introspection
	switch {
	case in == nil:
		return nil
	case i.Kind != "" && i.Kind != KindOAuth:
		return errors.New("introspection: only an authorization server is asked")
	case in.Signed && i.Keys == (Keys{}):
		return errors.New("introspection: signed answers, and no keys to verify them with")
	case strings.Trim(in.Prefix, "-._~+/0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "":
		return errors.New("introspection: the prefix has a character that no token has")
	case (in.CertFile == "") != (in.CertificateKey == ""):
		return errors.New("introspection: a client certificate is a certificate and its key")
	}
	return nil
}

// checkOpaque refuses a list of issuers of which it is not clear which one an opaque token is of.
func checkOpaque(issuers []Issuer) error {
	var wrong []error
	for n, a := range issuers {
		for _, b := range issuers[:n] {
			if a.Introspection == nil || b.Introspection == nil {
				continue
			}
			p, q := a.Introspection.Prefix, b.Introspection.Prefix
			if p == q || p != "" && q != "" && (strings.HasPrefix(p, q) || strings.HasPrefix(q, p)) {
				wrong = append(wrong, fmt.Errorf("build verifier: issuers %s and %s: the prefixes %q and %q do not tell their opaque tokens apart",
					brief(b.Issuer), brief(a.Issuer), q, p))
			}
		}
	}
	return errors.Join(wrong...)
}

// open makes ready to ask the issuer. The keys, if there are any, must be there already.
func (a *authority) open(o Options, now func() time.Time, log *slog.Logger) error {
	in := a.Introspection
	c := oauth.IntrospectorConfig{
		Config: oauth.Config{Endpoint: in.Endpoint, ClientID: in.ClientID, Audience: a.Issuer.Issuer, Now: now},
		Keep:   in.Cache,
		Told:   a.teller(o.Introspected, log),
	}
	if in.SecretFile != "" {
		c.Secret = oauth.Kept(in.SecretFile, oauth.Secret)
	}
	if in.KeyFile != "" {
		c.Key = oauth.Kept(in.KeyFile, oauth.ReadKey)
	}
	if in.CertFile != "" {
		c.Certificate = oauth.CertificateFiles(in.CertFile, in.CertificateKey)
	}
	if in.Signed {
		c.Open = func(jwt string) (map[string]any, error) { return a.openSigned(jwt, now()) }
	}
	var err error
	if in.CAFile != "" {
		c.Roots, err = readRoots(in.CAFile)
	}
	if err == nil {
		err = c.Readable()
	}
	if err == nil {
		a.asks, err = oauth.NewIntrospector(c)
	}
	if err != nil {
		return fmt.Errorf("introspection: %w", err)
	}
	return nil
}

func readRoots(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("no certificate in %s", path)
	}
	return roots, nil
}

// teller passes results on, and says once when the server cannot be asked, and once when it can again.
func (a *authority) teller(told func(issuer, result string), log *slog.Logger) func(string, error) {
	var failing atomic.Bool
	return func(result string, err error) {
		switch result {
		case oauth.AskedInVain:
			if !failing.Swap(true) {
				log.Error("introspection fails: tokens that are not known are answered 503", "issuer", a.Issuer.Issuer, "error", err)
			}
		case oauth.AskedActive, oauth.AskedInactive, oauth.AskedRefused:
			if failing.Load() && failing.Swap(false) {
				log.Info("introspection answers again", "issuer", a.Issuer.Issuer)
			}
		}
		if told != nil {
			told(a.Issuer.Issuer, result)
		}
	}
}

// openSigned verifies a signed answer.
func (a *authority) openSigned(jwt string, now time.Time) (map[string]any, error) {
	token, err := jws.Parse(jwt)
	if err != nil {
		return nil, fmt.Errorf("read the signed answer: %w", err)
	}
	if _, refusal := prove(jwt, token, a.Algorithms, a.keys.lookup); refusal != nil {
		return nil, fmt.Errorf("verify the signed answer: %w", refusal)
	}
	return oauth.Statement(foldType(token.Type), token.Payload, a.Issuer.Issuer, a.Introspection.ClientID, now, a.Leeway)
}

// keyed reports whether the issuer's keys verify its JWTs. Else it is asked about them.
func (a *authority) keyed() bool { return a.Keys != Keys{} }

// VerifyFrom is Verify for a gate. source is who sent the token: one that sends too many that are not active is refused for a
// while without asking anybody (too_many_unknown_tokens); the zero Addr is nobody in particular. fresh has an authorization
// server asked of which the token's standing depends, whatever it has said before. Only then, and where nothing is known of such
// a token, does it wait: for the server's answer, at most 5 s and no longer than ctx.
func (v *Verifier) VerifyFrom(ctx context.Context, t Token, source netip.Addr, fresh bool) (identity.Caller, error) {
	caller, refusal := v.verifyFrom(ctx, t, source, fresh)
	if refusal != nil {
		return identity.Caller{}, refusal
	}
	return caller, nil
}

func (v *Verifier) verifyFrom(ctx context.Context, t Token, source netip.Addr, fresh bool) (identity.Caller, *Error) {
	a, digest := v.asked(t)
	if a == nil {
		caller, refusal := v.verify(ctx, t)
		if refusal == nil {
			return caller, nil
		}
		if a, digest = v.askedAfter(t, refusal); a == nil {
			return identity.Caller{}, refusal
		}
	}
	answer, err := a.asks.Ask(ctx, oauth.Question{Token: t.Reveal(), Source: source, Fresh: fresh})
	switch {
	case errors.Is(err, oauth.ErrInactive):
		return identity.Caller{}, &Error{Code: codeInactive, Err: err}
	case errors.Is(err, oauth.ErrTooMany):
		return identity.Caller{}, &Error{Code: codeTooMany, Err: err}
	case ctx.Err() != nil:
		return identity.Caller{}, &Error{Code: codeCanceled, Err: ctx.Err()}
	case err != nil:
		return identity.Caller{}, &Error{Code: codeIntrospection, Err: err}
	}
	if refusal := a.judgeAnswer(answer.Claims); refusal != nil {
		return identity.Caller{}, refusal
	}
	claims := maps.Clone(answer.Claims)
	delete(claims, "active") // these are said to us, and not by the token
	delete(claims, "token_type")
	caller, refusal := a.judgeSaid(claims, answer.At.Add(maxUnended), v.now())
	if refusal != nil {
		return identity.Caller{}, refusal
	}
	if err := ctx.Err(); err != nil {
		return identity.Caller{}, &Error{Code: codeCanceled, Err: err}
	}
	caller.Digest = digest
	return caller, nil
}

// asked finds the issuer that is asked about an opaque token, and the token's digest; nil: none is.
func (v *Verifier) asked(t Token) (*authority, string) {
	if v == nil || len(v.asking) == 0 || t.raw == nil || looksSigned(*t.raw) {
		return nil, ""
	}
	if len(*t.raw) > maxOpaque || !oauth.IsToken(*t.raw) {
		return nil, "" // verify says that it is no token
	}
	var found *authority
	for _, a := range v.asking {
		prefix := a.Introspection.Prefix
		if prefix != "" && strings.HasPrefix(*t.raw, prefix) {
			found = a
			break
		}
		if prefix == "" {
			found = a
		}
	}
	return found, digestOf([]byte(*t.raw))
}

// askedAfter is asked for a JWT that verify has refused for want of keys: its issuer may be one that is asked instead. The claim
// of its issuer says only who is asked. The digest is that of what is signed, which has one spelling.
func (v *Verifier) askedAfter(t Token, refusal *Error) (*authority, string) {
	if v == nil || len(v.asking) == 0 || refusal.Code != codeUnavailable && refusal.Code != codeAlgorithm {
		return nil, ""
	}
	token, err := jws.Parse(*t.raw)
	if err != nil {
		return nil, ""
	}
	a, no := v.authorityOf(token.Payload)
	if no != nil || a.asks == nil || a.keyed() {
		return nil, ""
	}
	return a, digestOf(token.SigningInput)
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// looksSigned tells a token that is to be read as a JWS from one that says nothing by itself: three segments, of which the first
// is the beginning of a JSON object.
func looksSigned(raw string) bool {
	if strings.Count(raw, ".") != 2 {
		return false
	}
	head, _, _ := strings.Cut(raw, ".")
	data, _ := base64.RawURLEncoding.DecodeString(head) // what was decoded before an error counts
	return strings.HasPrefix(strings.TrimLeft(string(data), " \t\r\n"), "{")
}

// judgeAnswer refuses an answer about what is no access token. No standard has names for all of these: Amazon Cognito says
// token_use, Keycloak typ.
func (a *authority) judgeAnswer(claims map[string]any) *Error {
	for _, member := range []struct {
		name    string
		allowed []string
	}{
		{"token_type", []string{"bearer", "dpop", "access_token", "urn:ietf:params:oauth:token-type:access_token"}},
		{"token_use", []string{"access", "access_token"}},
	} {
		value, there := claims[member.name]
		if s, ok := value.(string); there && (!ok || !slices.Contains(member.allowed, strings.ToLower(s))) {
			return refuse(codeType, "%s is not that of an access token", member.name)
		}
	}
	if typ, ok := claims["typ"].(string); ok && slices.Contains([]string{"refresh", "offline", "id", "logout"}, strings.ToLower(typ)) {
		return refuse(codeType, "typ %s", brief(typ))
	}
	if typ, _ := claims["token_type"].(string); strings.EqualFold(typ, "DPoP") && claims["cnf"] == nil {
		return refuse(codeBound, "the token is bound to a key, and the answer does not say to which")
	}
	if claims["username"] != nil && claims["sub"] == nil {
		return refuse(codeAbsent, "no sub, and a username: a name that can be given to another is nobody's identity")
	}
	return nil
}

// judgeSaid judges what an issuer said of a token as if the token said it. unended is until when that counts, where it does not
// say when the token ends.
func (a *authority) judgeSaid(claims map[string]any, unended, now time.Time) (identity.Caller, *Error) {
	if iss, there := claims["iss"]; there && iss != any(a.Issuer.Issuer) {
		return identity.Caller{}, refuse(codeIssuer, "the answer's iss is not the issuer that was asked")
	}
	judged := claims
	if _, there := claims["exp"]; !there && !slices.Contains(a.Required, "exp") {
		judged = maps.Clone(claims)
		judged["exp"] = unended.Unix()
		delete(judged, "iat") // there is no lifetime to judge: it is judged by itself
	}
	issued, there, refusal := readTime(claims, "iat")
	if refusal == nil && there && now.Add(a.Leeway).Before(issued) {
		refusal = refuse(codeFuture, "in %s", issued.Sub(now).Round(time.Second))
	}
	if refusal != nil {
		return identity.Caller{}, refusal
	}
	// The answer is about an access token, or would have been refused: of the types that are accepted it has any.
	p := &proof{authority: a, typ: a.TokenTypes[0], claims: judged}
	p.caller, p.unnamed = a.readCaller(judged)
	caller, refusal := p.judge(now)
	if refusal != nil {
		return identity.Caller{}, refusal
	}
	caller.Claims, caller.IssuedAt = claims, issued
	return caller, nil
}

// Still judges a token again that was verified before, perhaps by another Verifier, and waits for nobody: what its issuer said of
// it is judged as it was said. Its error is an *Error.
func (v *Verifier) Still(t Token, c identity.Caller) error {
	a, digest := v.asked(t)
	if a == nil {
		_, refusal := v.verify(context.Background(), t)
		if refusal == nil {
			return nil
		}
		if a, digest = v.askedAfter(t, refusal); a == nil {
			return refusal
		}
	}
	if c.Issuer != a.Issuer.Issuer || c.Digest != digest || c.KeyID != "" {
		return refuse(codeIssuer, "the token was another issuer's, or verified in another way")
	}
	if _, refusal := a.judgeSaid(c.Claims, c.Expires, v.now()); refusal != nil {
		return refusal
	}
	return nil
}

// Introspects reports whether a caller's token is one that its issuer is asked about: such a token can end without anybody being
// told, so who keeps a stream open verifies it again.
func (v *Verifier) Introspects(c identity.Caller) bool {
	return v != nil && v.authorities[c.Issuer] != nil && v.authorities[c.Issuer].asks != nil && c.KeyID == ""
}

// Resting names the issuers whose introspection has failed, and that are not asked for a while.
func (v *Verifier) Resting() []string {
	var list []string
	if v != nil {
		for _, a := range v.asking {
			if a.asks.Resting() != nil {
				list = append(list, a.Issuer.Issuer)
			}
		}
	}
	slices.Sort(list)
	return list
}
