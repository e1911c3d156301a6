package ingress

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CORS says which browser origins may read answers. Preflights are answered here and never forwarded.
type CORS struct {
	Origins     []string // exact origins ("https://app.example.com"); "*" only without Credentials
	Methods     []string
	Headers     []string
	Expose      []string
	Credentials bool
	MaxAge      time.Duration
}

// cors is a CORS, checked and written out. Nil allows nothing.
type cors struct {
	any         bool
	origins     []string
	methods     []string
	headers     []string // lower-case
	credentials bool

	methodList, headerList, exposeList, maxAge string // as they are sent
}

func newCORS(c *CORS) (*cors, error) {
	if c == nil {
		return nil, nil
	}
	if len(c.Origins) == 0 {
		return nil, errors.New("cors: there are no origins")
	}
	made := &cors{
		methods: c.Methods, credentials: c.Credentials,
		methodList: strings.Join(c.Methods, ", "),
		headerList: strings.Join(c.Headers, ", "),
		exposeList: strings.Join(c.Expose, ", "),
	}
	for _, o := range c.Origins {
		if o == "*" {
			if c.Credentials {
				return nil, errors.New(`cors: origin "*" with credentials would let every site act as the user`)
			}
			made.any = true
			continue
		}
		u, err := url.Parse(o)
		if err != nil || u.Host == "" || u.Scheme == "" || o != u.Scheme+"://"+u.Host || o != strings.ToLower(o) {
			return nil, fmt.Errorf("cors: %q is no origin, such as https://app.example.com", o)
		}
		made.origins = append(made.origins, o)
	}
	for _, list := range [][]string{c.Methods, c.Headers, c.Expose} {
		for _, name := range list {
			if name == "" || name == "*" || strings.Trim(name, "-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
				return nil, fmt.Errorf("cors: %q is no method or header name", name)
			}
		}
	}
	for _, h := range c.Headers {
		made.headers = append(made.headers, strings.ToLower(h))
	}
	if c.MaxAge > 0 {
		made.maxAge = strconv.FormatInt(int64(c.MaxAge/time.Second), 10)
	}
	return made, nil
}

// isPreflight recognises a CORS-preflight request (Fetch standard, section 3.3.1).
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && len(r.Header["Origin"]) > 0 && len(r.Header["Access-Control-Request-Method"]) > 0
}

// preflight judges a preflight. It is never an allow: what it asks for comes in a request of its own, with its token.
func (x *exchange) preflight() bool {
	c := x.rules.cors
	if c == nil {
		return x.deny(codeCORSRefused, "cors is not configured")
	}
	if !c.allows(x.r.Header["Origin"]) {
		return x.deny(codeCORSRefused, "the origin is not in cors.origins")
	}
	if m := x.r.Header["Access-Control-Request-Method"]; len(m) != 1 || !slices.Contains(c.methods, m[0]) {
		return x.deny(codeCORSRefused, "the method is not in cors.methods")
	}
	for _, list := range x.r.Header["Access-Control-Request-Headers"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.ToLower(strings.Trim(name, " \t")); name != "" && !slices.Contains(c.headers, name) {
				return x.deny(codeCORSRefused, "a header is not in cors.headers")
			}
		}
	}
	return x.deny(codePreflight, "answered from the configuration; nothing is forwarded")
}

func (c *cors) allows(origin []string) bool {
	return len(origin) == 1 && (c.any || slices.Contains(c.origins, origin[0]))
}

// allow lets the page that asks read the answer, if its origin may, and takes away what the service said on it.
func (c *cors) allow(h http.Header, r *http.Request) {
	for name := range h {
		if strings.HasPrefix(name, "Access-Control-") {
			delete(h, name)
		}
	}
	if c == nil {
		return
	}
	if !c.any {
		addVary(h, "Origin") // in every answer, or a cache would hand one origin's to another
	}
	origin := r.Header["Origin"]
	if !c.allows(origin) {
		return
	}
	h.Set("Access-Control-Allow-Origin", origin[0])
	if c.any {
		h.Set("Access-Control-Allow-Origin", "*")
	}
	if c.credentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	if c.exposeList != "" {
		h.Set("Access-Control-Expose-Headers", c.exposeList)
	}
}

// answerPreflight adds what only a preflight is told. allow has run.
func (c *cors) answerPreflight(h http.Header) {
	h.Set("Access-Control-Allow-Methods", c.methodList)
	if c.headerList != "" {
		h.Set("Access-Control-Allow-Headers", c.headerList)
	}
	if c.maxAge != "" {
		h.Set("Access-Control-Max-Age", c.maxAge)
	}
	h.Del("Access-Control-Expose-Headers")
}

// addVary adds a name to Vary, unless it is there or Vary is "*".
func addVary(h http.Header, name string) {
	if !hasToken(h["Vary"], name) && !hasToken(h["Vary"], "*") {
		h.Add("Vary", name)
	}
}
