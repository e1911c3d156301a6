package ingress

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/sallyport/sallyport/internal/sallytest"
	"github.com/sallyport/sallyport/internal/trace"
)

const (
	theirTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	theirSpan  = "00f067aa0ba902b7"
)

// traced is a stage that sends spans to a collector.
func traced(t *testing.T, change func(*trace.Config)) (*stage, *sallytest.Collector, *trace.Tracer) {
	t.Helper()
	collector := sallytest.NewCollector(t)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c := trace.Config{Endpoint: collector.URL, Client: &http.Client{Transport: transport}, Sample: 1}
	if change != nil {
		change(&c)
	}
	tracer, err := trace.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tracer.Close)
	return open(t, func(s *stage) { s.config.Tracer = tracer }), collector, tracer
}

// received is what the service was sent in a header field of the last request; empty: nothing.
func (s *stage) received(name string) (value string) {
	for line := range strings.SplitSeq(string(s.service.Raw()), "\r\n") {
		if n, v, ok := strings.Cut(line, ": "); ok && strings.EqualFold(n, name) {
			value = v
		}
	}
	return value
}

func TestTrace(t *testing.T) {
	s, collector, _ := traced(t, nil)
	token := s.token("orders:read")
	headers := []string{"Authorization: Bearer " + token, "traceparent: 00-" + theirTrace + "-" + theirSpan + "-00", "tracestate: a=1", "baggage: user=alice", "b3: 1"}
	if a, _ := s.ask(get("/orders/77777?secret=query", headers...)); a.StatusCode != 200 {
		t.Fatalf("answered %d", a.StatusCode)
	}
	spans := collector.Await(t, 3)
	parent := s.received("traceparent")
	id, upstream, flags, ok := trace.Parse(parent)
	if !ok || id == theirTrace || flags != 1 || s.received("tracestate")+s.received("baggage")+s.received("b3") != "" {
		t.Errorf("the service received %q", s.service.Raw())
	}
	var server, client *otlp.Span
	for _, span := range spans {
		switch span.Kind {
		case otlp.Span_SPAN_KIND_SERVER:
			server = span
		case otlp.Span_SPAN_KIND_CLIENT:
			client = span
		}
	}
	verify := sallytest.Named(t, spans, id, "verify")
	if server == nil || client == nil || server.Name != "GET /orders/{id}" || len(server.ParentSpanId) != 0 || hex.EncodeToString(server.TraceId) != id {
		t.Fatalf("%v", spans)
	}
	if hex.EncodeToString(client.SpanId) != upstream || !bytes.Equal(client.ParentSpanId, server.SpanId) || !bytes.Equal(verify.ParentSpanId, server.SpanId) {
		t.Errorf("the spans do not hang together: %v", spans)
	}
	if verify.StartTimeUnixNano < server.StartTimeUnixNano-1e6 || client.StartTimeUnixNano < verify.EndTimeUnixNano || server.EndTimeUnixNano < client.StartTimeUnixNano {
		t.Errorf("the spans do not follow one another: %v", spans)
	}
	for key, want := range map[string]any{
		"http.request.method": "GET", "http.route": "/orders/{id}", "http.response.status_code": int64(200), "sallyport.route": "read-order",
		"sallyport.code": "allowed", "sallyport.issuer": s.issuer.URL, "network.protocol.version": "1.1", "url.scheme": "http",
	} {
		if got := sallytest.Attribute(server, key); got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}

	// Refused ones have a trace too, but have gone nowhere; what a client makes up is not in it.
	if a, _ := s.ask("WHATEVER /orders/77777 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); a.code != "method_not_allowed" {
		t.Errorf("refused with %q", a.code)
	}
	spans = collector.Await(t, 4)
	if last := spans[3]; last.Name != "_OTHER" || last.Kind != otlp.Span_SPAN_KIND_SERVER || sallytest.Attribute(last, "sallyport.code") != "method_not_allowed" || bytes.Equal(last.TraceId, server.TraceId) {
		t.Errorf("%v", last)
	}

	signature := token[strings.LastIndexByte(token, '.')+1:]
	raw, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil {
		t.Fatal(err)
	}
	assertion := s.received("txn-token")
	for what, secret := range map[string]string{
		"the token": token, "its signature": signature, "its signature's bytes": string(raw), "the query": "secret", "the query's value": "query", "the path's value": "77777",
		"the subject": "alice", "the assertion": assertion, "its signature ": assertion[strings.LastIndexByte(assertion, '.')+1:],
		"the capability": s.received("x-sallyport-capability"), "the client's trace": theirTrace, "a method": "WHATEVER",
	} {
		if secret == "" {
			t.Errorf("%s: there is none to look for", what)
		}
		if bytes.Contains(collector.Raw(), []byte(secret)) {
			t.Errorf("%s is in a span", what)
		}
	}
}

// TestTraceOfTrustedPeer holds that what a trusted peer says of its trace is taken, and that of nobody else; nor its baggage.
func TestTraceOfTrustedPeer(t *testing.T) {
	for name, c := range map[string]struct {
		trust    string
		flags    string
		want     string // of the service's traceparent; empty: another than theirs
		sampled  bool
		newState string
	}{
		"trusted, sampled":   {"127.0.0.0/8", "01", theirTrace, true, "a=1"},
		"trusted, unsampled": {"127.0.0.0/8", "00", theirTrace, false, "a=1"},
		"another":            {"10.0.0.0/8", "01", "", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, collector, tracer := traced(t, func(c2 *trace.Config) { c2.Sample = 0; c2.Trust = []netip.Prefix{netip.MustParsePrefix(c.trust)} })
			s.ask(get("/orders/7", "Authorization: Bearer "+s.token("orders:read"), "traceparent: 00-"+theirTrace+"-"+theirSpan+"-"+c.flags, "tracestate: a=1", "baggage: user=alice"))
			id, span, flags, ok := trace.Parse(s.received("traceparent"))
			if !ok || (id == theirTrace) != (c.want == theirTrace) || span == theirSpan || (flags == 1) != c.sampled || s.received("tracestate") != c.newState || s.received("baggage") != "" {
				t.Errorf("the service received %q", s.service.Raw())
			}
			if !c.sampled {
				s.settled(1)
				tracer.Close()
				if n := len(collector.Spans()); n > 0 {
					t.Errorf("%d spans", n)
				}
				return
			}
			server := sallytest.Named(t, filter(collector.Await(t, 3), otlp.Span_SPAN_KIND_SERVER), theirTrace, "GET /orders/{id}")
			if hex.EncodeToString(server.ParentSpanId) != theirSpan || server.TraceState != "a=1" {
				t.Errorf("%v", server)
			}
		})
	}
}

func filter(spans []*otlp.Span, kind otlp.Span_SpanKind) (of []*otlp.Span) {
	for _, s := range spans {
		if s.Kind == kind {
			of = append(of, s)
		}
	}
	return of
}

// TestExemplar holds that the histogram names the trace of a sampled request, to those who ask for OpenMetrics.
func TestExemplar(t *testing.T) {
	s, _, _ := traced(t, nil)
	s.ask(get("/orders/7", "Authorization: Bearer "+s.token("orders:read")))
	s.settled(1)
	id, _, _, _ := trace.Parse(s.received("traceparent"))
	scrape := func(accept string) string {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("Accept", accept)
		promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{EnableOpenMetrics: true}).ServeHTTP(w, r)
		return w.Body.String()
	}
	exemplar := fmt.Sprintf("trace_id=%q", id)
	eventually := 0
	for !strings.Contains(scrape("application/openmetrics-text"), exemplar) {
		if eventually++; eventually > 1000 {
			t.Fatalf("no exemplar %s", exemplar)
		}
	}
	if strings.Contains(scrape("text/plain"), "trace_id") {
		t.Error("an exemplar where nobody could read it")
	}
}

// TestNoTracer holds that without a tracer whether to trace is the service's to say.
func TestNoTracer(t *testing.T) {
	s := open(t, nil)
	s.ask(get("/orders/7", "Authorization: Bearer "+s.token("orders:read"), "traceparent: 00-"+theirTrace+"-"+theirSpan+"-00", "tracestate: a=1"))
	if id, _, flags, ok := trace.Parse(s.received("traceparent")); !ok || id == theirTrace || flags != 1 || s.received("tracestate") != "" {
		t.Errorf("the service received %q", s.service.Raw())
	}
}
