// Package trace sends to a collector what became of some requests (OpenTelemetry, OTLP over HTTP).
//
//	tracer, err := trace.New(trace.Config{Endpoint: "http://127.0.0.1:4318", Client: client, Sample: 0.01})
//	if err != nil {
//		return err
//	}
//	defer tracer.Close()
//	c := tracer.Begin(peer, request.Header)
//	...
//	if c.Sampled {
//		tracer.End(trace.Span{Trace: c.Trace, ID: id, Name: "GET /orders/{id}", Began: began, Ended: time.Now()})
//	}
//
// # Whose trace it is
//
// Every request begins a trace of its own, whatever its traceparent says, and chance alone says whether it is sampled. Only of
// peers that Config.Trust names is the trace continued, and sampled as they say (W3C Trace Context). Who else could choose a
// trace id could have requests of others found under it, and who could choose the flag could fill the collector.
//
// # What it costs
//
// A request that is not sampled costs one random number. The spans of one that is are handed to a goroutine, which sends up to
// 512 of them once a second. Nobody waits for the collector: beyond 2048 spans that wait, spans are dropped and counted.
//
// # What is sent
//
// What callers put into spans: fixed names and values of ours. This package adds who we are, and reads of an answer no more than
// whether spans were taken. The protocol's messages are those of OpenTelemetry's own module; its SDK is not used, since
// nothing of it would be left but the encoding.
package trace

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	maxWaiting = 2048
	maxBatch   = 512
	every      = time.Second
	maxState   = 512 // bytes of a tracestate that is passed on, the least that W3C Trace Context asks for
)

// Config is what a tracer is built from.
type Config struct {
	Endpoint string                      // of the collector; /v1/traces is added
	Client   *http.Client                // required: it decides what may be dialled
	Headers  func() (http.Header, error) // asked for each upload; nil: none
	Sample   float64                     // the part of requests that are sampled, from 0 to 1
	Trust    []netip.Prefix              // peers whose traces are continued; empty: nobody's
	Version  string                      // of this program
	Metrics  prometheus.Registerer       // nil: none
	Failed   func(error)                 // hears why spans were not taken, once for each reason; nil: nobody
}

// Context is what is known of a request's trace when it begins. The zero value is a trace of its own that is not sampled.
type Context struct {
	Sampled bool
	Trace   string // that is continued, 32 hex digits; empty: none is
	Parent  string // the span of it that caused the request, 16 hex digits
	State   string // its tracestate, to be passed on
}

// Kind is what a span is on.
type Kind int

const (
	Internal Kind = iota // something that we did
	Server               // a request that we answered
	Client               // a request that we sent
)

// Span is one thing that took its time.
type Span struct {
	Trace       string // 32 hex digits
	ID          string // 16 hex digits
	Parent      string // 16 hex digits; empty: it is the first of its trace
	Kind        Kind
	Name        string
	Began       time.Time
	Ended       time.Time
	Attributes  []Attribute
	Failed      bool   // the fault is on the span's side
	LinkedTrace string // another trace that goes on from here, with the span there; empty: none
	LinkedSpan  string
	State       string // the trace's tracestate
}

// Attribute is a value of a span: Text, unless Number is set.
type Attribute struct {
	Key    string
	Text   string
	Number int64
}

// Tracer samples and sends. Safe for concurrent use. A nil one samples nothing.
type Tracer struct {
	config    Config
	threshold uint64
	all       bool
	spans     chan Span
	closing   chan struct{}
	done      chan struct{}
	once      sync.Once
	stop      func() // ends an upload that is under way

	exported, dropped, failed, rejected prometheus.Counter
}

// New checks the configuration and begins to send.
func New(c Config) (*Tracer, error) {
	switch {
	case c.Client == nil:
		return nil, errors.New("trace: there is no client")
	case c.Endpoint == "":
		return nil, errors.New("trace: there is no endpoint")
	case !(c.Sample >= 0 && c.Sample <= 1):
		return nil, fmt.Errorf("trace: %v of the requests cannot be sampled", c.Sample)
	}
	spans := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_trace_spans_total",
		Help: "Spans by result: exported, dropped since too many waited, failed to be sent, or rejected by the collector.",
	}, []string{"result"})
	t := &Tracer{
		config: c, all: c.Sample == 1, threshold: uint64(c.Sample*math.MaxInt64) * 2,
		spans: make(chan Span, maxWaiting), closing: make(chan struct{}), done: make(chan struct{}),
		exported: spans.WithLabelValues("exported"), dropped: spans.WithLabelValues("dropped"),
		failed: spans.WithLabelValues("failed"), rejected: spans.WithLabelValues("rejected"),
	}
	if c.Metrics != nil {
		if err := c.Metrics.Register(spans); err != nil {
			return nil, fmt.Errorf("register a metric: %w", err)
		}
	}
	t.run()
	return t, nil
}

// Begin decides about a request by chance, or, of a trusted peer, by what it says.
func (t *Tracer) Begin(peer netip.Addr, h http.Header) Context {
	if t == nil {
		return Context{}
	}
	if len(t.config.Trust) > 0 && t.trusts(peer) {
		if c, ok := continued(h); ok {
			return c
		}
	}
	return Context{Sampled: t.all || rand.Uint64() < t.threshold}
}

// Trusting reports whether some peers' traces are continued: else nobody need find out who the peer is.
func (t *Tracer) Trusting() bool { return t != nil && len(t.config.Trust) > 0 }

func (t *Tracer) trusts(peer netip.Addr) bool {
	for _, p := range t.config.Trust {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}

// continued reads a traceparent, of which there must be one, and the tracestate.
func continued(h http.Header) (c Context, ok bool) {
	if len(h["Traceparent"]) != 1 {
		return c, false
	}
	trace, parent, flags, ok := Parse(h["Traceparent"][0])
	if !ok {
		return c, false
	}
	c = Context{Trace: trace, Parent: parent, Sampled: flags&1 != 0}
	for _, line := range h["Tracestate"] {
		if c.State != "" {
			c.State += ","
		}
		c.State += line
	}
	if len(c.State) > maxState || !printable(c.State) {
		c.State = "" // it may be left out, and not cut
	}
	return c, true
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 && s[i] != '\t' || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// Parse reads the value of a traceparent field (W3C Trace Context, section 3.2) strictly: of version 00 nothing may follow, of
// a later one what follows begins with "-", version ff is none, digits are lower-case and no id is all zeros.
func Parse(v string) (trace, parent string, flags byte, ok bool) {
	const length = len("00-") + 32 + len("-") + 16 + len("-00")
	if len(v) < length || v[2] != '-' || v[35] != '-' || v[52] != '-' {
		return "", "", 0, false
	}
	version, trace, parent := v[:2], v[3:35], v[36:52]
	var flag [1]byte
	switch {
	case !digits(version) || version == "ff", !ID(trace), !ID(parent), !digits(v[53:55]):
		return "", "", 0, false
	case len(v) > length && (version == "00" || v[length] != '-'):
		return "", "", 0, false
	}
	if _, err := hex.Decode(flag[:], []byte(v[53:55])); err != nil {
		return "", "", 0, false
	}
	return trace, parent, flag[0], true
}

// ID reports whether s can be an id: hex digits in lower case that are not all zeros.
func ID(s string) bool {
	zero := true
	for i := range len(s) {
		zero = zero && s[i] == '0'
	}
	return !zero && digits(s)
}

func digits(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}

// End takes a span, and never waits.
func (t *Tracer) End(s Span) {
	if t == nil {
		return
	}
	select {
	case t.spans <- s:
	default:
		t.dropped.Inc()
	}
}
