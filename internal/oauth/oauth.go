// Package oauth posts forms to an endpoint of an authorization server (token endpoint, introspection) and reads its answers
// strictly.
//
// A client proves itself by a secret (client_secret_basic), by a key (private_key_jwt, RFC 7523), or by a certificate
// (tls_client_auth, RFC 8705); their files are read again when they change.
//
// The endpoint is dialled through safedial, the host that is named and no other; redirects are not followed. It is https, or
// http on this machine. An answer is one JSON object of at most 64 KiB, read as strictly as a token, within 5 s.
//
// An endpoint that fails is left alone for a while, 250 ms at first and up to 15 s: a request in that time is refused at once,
// and then one goes first to see. What the server refuses is an answer, and no failure.
package oauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/jws"
	"github.com/sallyport/sallyport/safedial"
)

const (
	timeout    = 5 * time.Second
	maxAnswer  = 64 << 10
	maxAtOnce  = 64 // requests to one endpoint; more wait
	firstPause = 250 * time.Millisecond
	lastPause  = 15 * time.Second
)

// Config is one endpoint and who asks it.
type Config struct {
	Endpoint string // https, or http on loopback; required
	ClientID string // required

	// How the client proves itself: exactly one, asked before each request.
	Secret      func() (string, error)
	Key         func() (Key, error)
	Certificate func() (*tls.Certificate, error) // only over https
	Audience    string                           // with Key: of its assertions, the server's name for itself; empty means Endpoint

	Guard *safedial.Guard  // dials; nil allows just the endpoint's host
	Roots *x509.CertPool   // nil means the system's
	Now   func() time.Time // nil means time.Now
}

// Client asks one endpoint. Safe for concurrent use.
type Client struct {
	config  Config
	http    *http.Client
	turns   chan struct{}
	shown   atomic.Pointer[tls.Certificate] // the client's, on connections that are open
	mu      sync.Mutex
	failed  int       // in a row
	openAt  time.Time // before that nobody asks
	because error
}

// Error is why there is no answer. Neither holds anything that was sent or came back, but for the server's error code.
type Error struct {
	Refused string // the server's error code (RFC 6749, section 5.2), when it said no to what was asked; empty when it could not be asked
	Err     error
}

func (e *Error) Error() string {
	if e.Refused != "" {
		return "the authorization server refused: " + e.Refused
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// New checks the configuration. Its error names everything that is wrong.
func New(c Config) (*Client, error) {
	u, err := endpoint(c.Endpoint)
	wrong := []error{err}
	if c.ClientID == "" {
		wrong = append(wrong, errors.New("no client id"))
	}
	switch ways := c.ways(); {
	case ways == 0:
		wrong = append(wrong, errors.New("no client secret, key or certificate"))
	case ways > 1:
		wrong = append(wrong, errors.New("more than one of client secret, key and certificate: which of them proves the client?"))
	case c.Certificate != nil && err == nil && u.Scheme != "https":
		wrong = append(wrong, errors.New("the endpoint is http: no certificate is shown there"))
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Guard == nil {
		// a cluster and the machine around the container run authorization servers, too
		c.Guard = &safedial.Guard{Allow: []string{address(u)}, Unlock: []string{"kubernetes-api", "node-gateway"}}
	}
	if err := c.Guard.Validate(); err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	if c.Audience == "" {
		c.Audience = c.Endpoint
	}
	overTLS := &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12}
	if c.Certificate != nil {
		overTLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate() }
	}
	return &Client{config: c, turns: make(chan struct{}, maxAtOnce), http: &http.Client{
		Transport: &safedial.Transport{Guard: c.Guard, Base: &http.Transport{
			TLSClientConfig:        overTLS,
			TLSHandshakeTimeout:    timeout,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    4,
			IdleConnTimeout:        30 * time.Second,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// endpoint reads the URL of an endpoint.
func endpoint(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return nil, errors.New("no endpoint")
	case err != nil || u.Hostname() == "" || u.Opaque != "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("the endpoint is not an https URL")
	case u.User != nil || strings.Contains(raw, "#"):
		return nil, errors.New("the endpoint has user information or a fragment")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, errors.New("the endpoint is http and not on this machine: whoever is on the way would read the client's secret")
	}
	return u, nil
}

func loopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

func address(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// Close closes the connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Post sends a form, as the client, and returns the answer. The error is an *Error.
func (c *Client) Post(ctx context.Context, form url.Values) (answer map[string]any, err error) {
	err = c.post(ctx, form, "application/json", func(response *http.Response) error {
		answer, _, err = read(response)
		return err
	})
	return answer, err
}

// post is Post for an answer that take reads.
func (c *Client) post(ctx context.Context, form url.Values, accept string, take func(*http.Response) error) error {
	if form = maps.Clone(form); form == nil {
		form = url.Values{}
	}
	secret, err := c.authenticate(form)
	if err != nil {
		return &Error{Err: err}
	}
	failed, err := c.admit()
	if err != nil {
		return &Error{Err: err}
	}
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = c.turn(within, form, secret, accept, take)
	refusal, ok := errors.AsType[*Error](err)
	switch {
	case err == nil || ok:
		c.answered()
	case ctx.Err() != nil:
		c.undecided(failed)
	default:
		c.failure(failed, err)
	}
	if err != nil && !ok {
		return &Error{Err: fmt.Errorf("ask %s: %w", c.config.Endpoint, err)}
	}
	if ok {
		return refusal
	}
	return nil
}

// Resting is why the server is left alone now; nil: it is not.
func (c *Client) Resting() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == 0 {
		return nil
	}
	return c.because
}

// admit says whether the server may be asked now, and how often in a row it has failed. After a failure one goes first,
// for as long as that can take.
func (c *Client) admit() (failed int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == 0 {
		return 0, nil
	}
	now := c.config.Now()
	if now.Before(c.openAt) {
		return 0, fmt.Errorf("%s has failed and is not asked for %s: %w", c.config.Endpoint, c.openAt.Sub(now).Round(time.Millisecond), c.because)
	}
	c.openAt = now.Add(timeout)
	return c.failed, nil
}

func (c *Client) answered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed, c.because = 0, nil
}

// undecided lets the next one go first: that who asked has gone says nothing of the server.
func (c *Client) undecided(failed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if failed > 0 && failed == c.failed {
		c.openAt = c.config.Now()
	}
}

// failure begins a pause. Of those that were under way together the first counts.
func (c *Client) failure(failed int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if failed != c.failed {
		return
	}
	c.failed++
	c.because = err
	pause := min(firstPause<<min(c.failed-1, 10), lastPause)
	c.openAt = c.config.Now().Add(pause - rand.N(pause/10+1)) // that many gates do not ask as one
}

// turn waits for its turn and asks.
func (c *Client) turn(ctx context.Context, form url.Values, secret, accept string, take func(*http.Response) error) error {
	select {
	case c.turns <- struct{}{}:
		defer func() { <-c.turns }()
	case <-ctx.Done():
		return fmt.Errorf("%d requests wait for it: %w", maxAtOnce, ctx.Err())
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.config.Endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	request.GetBody = nil // what was sent once is not sent again on another connection
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", accept)
	if secret != "" {
		// RFC 6749, section 2.3.1: both are form-encoded first
		request.SetBasicAuth(url.QueryEscape(c.config.ClientID), url.QueryEscape(secret))
	}
	response, err := c.http.Do(request)
	if err != nil {
		return withoutURL(err)
	}
	defer response.Body.Close()
	return take(response)
}

// withoutURL takes off what http.Client puts around an error: method and URL, which Post names anyway.
func withoutURL(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}

// read takes the one form of an answer: 200, or a refusal, with a JSON object. It returns how long it was, too.
func read(response *http.Response) (answer map[string]any, length int, err error) {
	data, err := readBody(response, "application/json")
	if err != nil {
		return nil, 0, err
	}
	if answer, err = jws.Object(data); err != nil {
		return nil, 0, fmt.Errorf("read answer: %w", err)
	}
	if response.StatusCode == http.StatusOK {
		return answer, len(data), nil
	}
	return nil, 0, refusedBy(answer)
}

// readBody reads an answer of one media type; one with status 400 is JSON.
func readBody(response *http.Response, want string) ([]byte, error) {
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusBadRequest:
		want = "application/json"
	case http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong:
		// what is said of what was asked, and of nobody else's
		return nil, &Error{Err: fmt.Errorf("status %d", response.StatusCode)}
	default:
		return nil, fmt.Errorf("status %d", response.StatusCode)
	}
	if encoding := response.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return nil, errors.New("the answer is encoded")
	}
	if kind, _, err := mime.ParseMediaType(response.Header.Get("Content-Type")); err != nil || kind != want {
		return nil, fmt.Errorf("status %d, and not %s", response.StatusCode, want)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if len(data) > maxAnswer {
		return nil, errors.New("the answer is longer than 64 KiB")
	}
	return data, nil
}

// refusedBy says what a refusal is about.
func refusedBy(answer map[string]any) error {
	code, _ := answer["error"].(string)
	if slices.Contains([]string{"invalid_request", "invalid_grant", "invalid_scope", "invalid_target", "access_denied", "invalid_token", "unsupported_token_type"}, code) {
		return &Error{Refused: code}
	}
	// the others say that this client is not what the server takes it for, whatever it asks
	return fmt.Errorf("status 400 with error %s", name(code))
}

// name is a code that somebody else wrote, for an operator's eyes.
func name(code string) string {
	if code == "" || len(code) > 60 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return "that is none of OAuth's"
	}
	return code
}

// IsToken says whether a value that came back can be sent as a bearer token: RFC 6750's b64token, of at most 8 KiB.
func IsToken(s string) bool {
	body := strings.TrimRight(s, "=")
	return body != "" && len(s) <= jws.MaxLength &&
		strings.Trim(body, "-._~+/0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}
