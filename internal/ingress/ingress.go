// Package ingress is the gate in front of a service: nothing reaches the service without a verified token that a
// route allows.
//
//	g, err := ingress.New(ingress.Config{
//		Upstream: upstream,
//		Rules:    ingress.Rules{Policy: p, Verifier: v, Assert: signer},
//		Audit:    log,
//	})
//	if err != nil {
//		return err
//	}
//	return g.Serve(ctx, listener)
//
// # The line
//
// Every request goes down one line, Gateway.ServeHTTP, whose steps are the files of this package:
//
//	wire ─ limit ─ canonical ─ route ─ token ─ verify ─ proof ─ standing ─ limit ─ decide ─ record ─ assert ─ forward ─ outcome
//
// A step that does not find what it asks for ends in a denial, and so does one in which the request's context ends
// or the program panics. Only a decision that allows, and that the audit log has accepted, leads on to assert and
// forward; whatever happens then, the outcome is recorded under the same id.
//
// # The wire
//
// net/http reads HTTP/1 leniently. Serve therefore puts a strict reader on each connection (package wire): line ends
// are CRLF, a request has one Host and one length, header names are letters, digits and "-". What it refuses is
// answered, recorded and counted like any other denial, and the connection is closed. ServeHTTP by itself, behind
// another server, judges what that server made of the bytes.
//
// With Config.Engine http1 the second reading is none: package http1 makes the request of what wire has read, and forward
// (engine_forward.go) goes by its connections to the service, of whose answers it takes only what RFC 9112 writes. What a
// client, the service and the records see is the same, but for what net/http adds: a guessed Content-Type, and HTTP/1.0 that
// is kept alive. A service that speaks HTTP/2, and clients that do, stay with net/http.
//
// # HTTP/2 and gRPC
//
// By Config.Protocols Serve speaks HTTP/2 too, over TLS by ALPN or without by prior knowledge; which it is, is found out for
// each connection (accept.go). Its framing is net/http's, what floods is package h2's, and what a request says is held to the
// rules of the wire (http2_request.go). The service is spoken to in HTTP/1.1, whatever the client speaks, or in HTTP/2 if
// its URL begins with h2c: or unix+h2c:. A gRPC call is answered in gRPC where we answer it (grpc.go), and its body is
// bounded by its messages (grpc_message.go).
//
// # What the service receives
//
// The canonical target, the canonical host, and the client's header without what only we may say (header.go): its
// Authorization and Txn-Token are replaced by our assertion, X-Forwarded-For, -Host, -Proto and X-Request-Id are ours.
// Trailers of requests are dropped.
//
// # Hops
//
// The gate behind another service may pass that service's caller on in Txn-Token (package identity). Where Rules.Hops
// names it, that is a credential in place of a bearer token, and never beside one. The caller is the one whom the first
// gate verified, with those of its scopes that both gates list; the transaction keeps its id, and what we tell our
// service ends no later than what we were told.
//
// # Asking
//
// A proxy that forwards its requests itself can ask instead (Ask, inquiry.go): what it says of one goes down the same line, from
// canonical to assert, and has the same verdict, code and answer. What the request becomes is then the proxy's: no body is
// looked at, and nothing ends that was let in.
//
// # What ends
//
// A request is let in for as long as its token, its key and its route are good. Serve watches: when a revocation, a withdrawn
// key, an expiry or new rules (Swap) take that away, the request ends within a second, whatever stream it has become. The
// outcome's error then is why (live.go). Without Serve only Swap and a token's expiry end anything.
//
// # Limits
//
// No HTTP/3, and no WebSocket over HTTP/2. What net/http itself refuses of HTTP/2 is not recorded. A request without Host is refused, in HTTP/1.0 too. The Upgrade of a
// client that merely offers HTTP/2 (h2c) is refused rather than ignored. A service that stops in the middle of an
// answer is waited for as long as the token is valid and the client stays. Whether a browser's page may open a
// WebSocket is not judged by its Origin. The body of a request is never read for a credential. A request that came by a
// hop, and a stream that it becomes, lives no longer than its transaction token, which is a minute. Conditions see of its
// caller the claims that the other gate passes on, and sid.
package ingress

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/access"
	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/http1"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/proof"
	"github.com/sallyport/sallyport/internal/state"
	"github.com/sallyport/sallyport/internal/trace"
	"github.com/sallyport/sallyport/internal/wire"
)

// Config is what a gateway is built from. Rules may change while it runs (Swap), the rest may not.
type Config struct {
	Upstream       *url.URL       // http://127.0.0.1:3000 or unix:///path; h2c://127.0.0.1:3000 or unix+h2c:///path for HTTP/2
	AskOnly        bool           // there is no Upstream: requests are asked about (Ask), and none is forwarded
	TrustedProxies []netip.Prefix // peers whose X-Forwarded-For is believed; empty: nobody's
	TLS            *tls.Config    // nil: plain HTTP
	Protocols      []string       // http/1.1; h2, with TLS; h2c, without: none is by Upgrade; empty: http/1.1 alone
	SPIFFE         *SPIFFE        // what clients' certificates must be; nil: what TLS says. It needs TLS, and there that they are required
	ProxyProtocol  *ProxyProtocol // nil: nobody's PROXY header is read
	Peers          *Peers         // who may connect to a unix socket; nil: whoever its file lets
	Engine         string         // what speaks HTTP/1: net/http, or http1, which is ours; empty: net/http
	Limits         Limits
	Rules          Rules
	Audit          *audit.Log
	Flight         *cause.Flight         // the requests in flight, for the gate behind to see; nil: nobody else looks
	Metrics        prometheus.Registerer // nil: none
	Access         *access.Log           // nil: none
	Tracer         *trace.Tracer         // nil: nothing is traced
	Logger         *slog.Logger          // nil: none
	Realm          string                // for WWW-Authenticate; empty means "sallyport"
	// ResourceMetadata is the URL of the protected resource's metadata (RFC 9728), named in WWW-Authenticate; empty: none.
	ResourceMetadata string
	// PublicURL is what clients' URLs of this gate begin with: scheme, host, port, and the path that a proxy in front takes
	// away. A DPoP proof names it. Empty: none can, and tokens that are bound to a key are refused.
	PublicURL string
	// NonceSecret is what the nonces of DPoP proofs are derived from; replicas that have the same know each other's. Nil: a
	// secret of this process.
	NonceSecret func() ([]byte, error)
	// State is asked for revocations and for proofs that were used before. Nil: no standing is asked, and tokens that are
	// bound to a key are refused.
	State      state.Store
	Bus        state.Bus        // between replicas, for RateLimits.Shared; nil: each counts alone
	MaxFeedAge time.Duration    // how old what State knows may be on privileged routes; zero means 10 s
	Now        func() time.Time // nil means time.Now
}

// Rules are the part of the configuration that a reload replaces, whole.
type Rules struct {
	Policy       *policy.Policy
	Verifier     *bearer.Verifier // with Options.Bound, where proofs are to be accepted
	Assert       *identity.Signer // nil: the service receives no statement of the caller
	AssertHeader string           // Txn-Token when empty; the bare assertion, but "Bearer <assertion>" in Authorization, which stands beside Txn-Token
	// AssertReuse is for how long an assertion serves further requests of the same token on the same route, at most half of its
	// lifetime. What it names as request and transaction is the first of them; the records of the others say so. Zero: each has its own.
	AssertReuse time.Duration
	Hops        []Hop      // the gates whose transaction tokens are believed; empty: a client's Txn-Token is dropped
	CORS        *CORS      // nil: every preflight is refused
	RateLimits  RateLimits // besides those of routes
	Metadata    *Metadata  // told by the gate itself on the Policy's MetadataRoute; nil: not told
}

// Limits bound what one client can make us hold. Zero means the default in brackets.
type Limits struct {
	HeaderBytes     int           // [32 KiB] request line and header fields
	HeaderFields    int           // [100]
	BodyBytes       int64         // [10 MiB] of a body, or of each message of a gRPC call
	HeaderTimeout   time.Duration // [10 s] from the first byte of a request to the end of its header
	BodyTimeout     time.Duration // [60 s] without a single byte of progress, or in all with less than 500 bytes for each second more
	IdleTimeout     time.Duration // [120 s] between two requests of a connection
	UpstreamTimeout time.Duration // [30 s] until the service's response header
	Requests        int           // [1024] in flight at once; more are answered 503
	Connections     int           // [4096] open at once; more wait in the kernel's queue
	Streams         int           // [250] open at once on one HTTP/2 connection; more are refused
	DrainTimeout    time.Duration // [20 s] for requests in flight at shutdown
}

// WithDefaults is what holds where nothing is said.
func (l Limits) WithDefaults() Limits {
	setDefault(&l.HeaderBytes, 32<<10)
	setDefault(&l.HeaderFields, 100)
	setDefault(&l.BodyBytes, 10<<20)
	setDefault(&l.HeaderTimeout, 10*time.Second)
	setDefault(&l.BodyTimeout, 60*time.Second)
	setDefault(&l.IdleTimeout, 120*time.Second)
	setDefault(&l.UpstreamTimeout, 30*time.Second)
	setDefault(&l.Requests, 1024)
	setDefault(&l.Connections, 4096)
	setDefault(&l.Streams, 250)
	setDefault(&l.DrainTimeout, 20*time.Second)
	return l
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// wire is the part that holds on the connection.
func (l Limits) wire() wire.Limits {
	return wire.Limits{HeaderBytes: l.HeaderBytes, HeaderFields: l.HeaderFields, HeaderTimeout: l.HeaderTimeout, BodyTimeout: l.BodyTimeout}
}

// check refuses limits that are none.
func (l Limits) check() error {
	for _, v := range []int64{
		int64(l.HeaderBytes), int64(l.HeaderFields), l.BodyBytes, int64(l.HeaderTimeout), int64(l.BodyTimeout),
		int64(l.IdleTimeout), int64(l.UpstreamTimeout), int64(l.Requests), int64(l.Connections), int64(l.Streams), int64(l.DrainTimeout),
	} {
		if v < 0 {
			return errors.New("a limit is negative")
		}
	}
	return nil
}

const defaultFeedAge = 10 * time.Second

// Gateway is the gate: an http.Handler, and a server around it.
type Gateway struct {
	config    Config
	log       *slog.Logger
	now       func() time.Time
	rules     atomic.Pointer[rules]
	transport *transport
	client    *http1.Client // of the engine; nil: net/http is
	speaks    protocols
	metrics   *metrics
	inFlight  atomic.Int64
	nonces    proof.Nonces
	live      live
	epoch     atomic.Uint64 // how often requests in flight were judged again
	unknown   atomic.Bool   // standing, when it was last looked at
	counters  atomic.Pointer[counters]
	sharing   *sharing
}

// rules are Rules, checked and made ready.
type rules struct {
	Rules
	headers  []string // that the policy reads, in canonical form
	hops     map[string]hop
	cors     *cors
	limiter  *limiter
	metadata []byte

	statements *statements
}

// New checks the configuration and builds a gateway. A gateway without policy, verifier or audit log does not build.
func New(c Config) (*Gateway, error) {
	if c.Audit == nil {
		return nil, errors.New("ingress: there is no audit log")
	}
	if err := c.Limits.check(); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	if err := checkTrusted(c.TrustedProxies); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	if err := c.checkDoors(); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	if c.SPIFFE != nil {
		asks, err := c.SPIFFE.require(c.TLS)
		if err != nil {
			return nil, fmt.Errorf("ingress: %w", err)
		}
		c.TLS = asks
	}
	c.Limits = c.Limits.WithDefaults()
	setDefault(&c.Realm, "sallyport")
	if strings.ContainsAny(c.Realm, "\"\\") || !isValue(c.Realm) {
		return nil, errors.New("ingress: the realm has a character that cannot stand in a challenge")
	}
	if strings.ContainsAny(c.ResourceMetadata, "\"\\ ") || !isValue(c.ResourceMetadata) {
		return nil, errors.New("ingress: the resource metadata's URL has a character that cannot stand in a challenge")
	}
	var err error
	if c.PublicURL, err = CheckPublicURL(c.PublicURL); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	if c.MaxFeedAge < 0 {
		return nil, errors.New("ingress: max_feed_age is negative")
	}
	setDefault(&c.MaxFeedAge, defaultFeedAge)
	if c.NonceSecret == nil {
		c.NonceSecret = ownSecret()
	}
	g := &Gateway{config: c, log: c.Logger, now: c.Now, nonces: proof.Nonces{Secret: c.NonceSecret}, sharing: newSharing(c.Bus)}
	g.live.exchanges, g.live.wake, g.live.unwatch = map[*exchange]struct{}{}, make(chan struct{}, 1), func() {}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if g.now == nil {
		g.now = time.Now
	}
	if g.config.Flight == nil {
		g.config.Flight = cause.NewFlight()
	}
	if err := g.Swap(c.Rules); err != nil {
		return nil, err
	}
	if g.speaks, err = newProtocols(c.Protocols, c.TLS != nil); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	if g.transport, err = newTransport(c); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	if g.client, err = newClient(&c); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	if g.metrics, err = newMetrics(c.Metrics, g); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	return g, nil
}

// Swap replaces the rules for requests that begin from now on. Those in flight are judged again by the new ones, and ended
// where these would not let them in; when Swap returns they have been.
func (g *Gateway) Swap(r Rules) error {
	if r.Policy == nil {
		return errors.New("ingress: there is no policy")
	}
	if r.Verifier == nil {
		return errors.New("ingress: there is no token verifier")
	}
	made := &rules{Rules: r, statements: &statements{keep: r.AssertReuse}}
	var err error
	if made.AssertHeader, err = checkAssertHeader(r.AssertHeader); err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	if made.hops, err = newHops(r); err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	if made.cors, err = newCORS(r.CORS); err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	if made.metadata, err = newMetadata(r, g.config.PublicURL); err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	made.headers = canonicalNames(r.Policy.Headers())
	for _, name := range made.headers {
		if !Reaches(name) || name == made.AssertHeader {
			return fmt.Errorf("ingress: a condition reads %s, which a client may send and the service never sees", name)
		}
	}
	g.live.swapping.Lock()
	defer g.live.swapping.Unlock()
	if made.limiter, err = g.limiter(r); err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	g.live.unwatch()
	g.live.unwatch = r.Verifier.Withdrawn(g.withdrawn)
	if g.rules.Swap(made) != nil {
		g.again(made)
	}
	return nil
}
