package sallytest

import (
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Collector takes spans as an OpenTelemetry collector does: OTLP over HTTP, in protobuf.
type Collector struct {
	URL string

	mu       sync.Mutex
	raw      []byte
	header   http.Header // of the last request
	requests int
	spans    []*otlp.ResourceSpans
	answer   func(http.ResponseWriter) bool // nil, or it has not answered: spans are taken
}

// NewCollector starts one that ends with the test.
func NewCollector(t testing.TB) *Collector {
	c := &Collector{}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

// Answer has requests answered otherwise: by what reports whether it has answered.
func (c *Collector) Answer(by func(http.ResponseWriter) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = by
}

// ServeHTTP takes an upload, for tests that bring a server of their own.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	c.mu.Lock()
	c.requests++
	c.header = r.Header.Clone()
	answer := c.answer
	c.mu.Unlock()
	if answer != nil && answer(w) {
		return
	}
	var m otlp.TracesData
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" || proto.Unmarshal(body, &m) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw = append(c.raw, body...)
	c.spans = append(c.spans, m.ResourceSpans...)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// Raw is every byte of what was taken.
func (c *Collector) Raw() []byte { c.mu.Lock(); defer c.mu.Unlock(); return slices.Clone(c.raw) }

// Requests counts uploads.
func (c *Collector) Requests() int { c.mu.Lock(); defer c.mu.Unlock(); return c.requests }

// Header is that of the last upload.
func (c *Collector) Header() http.Header { c.mu.Lock(); defer c.mu.Unlock(); return c.header }

// Resources are what was taken, as it came.
func (c *Collector) Resources() []*otlp.ResourceSpans {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Spans are those that were taken.
func (c *Collector) Spans() (spans []*otlp.Span) {
	for _, r := range c.Resources() {
		for _, s := range r.ScopeSpans {
			spans = append(spans, s.Spans...)
		}
	}
	return spans
}

// Await waits until so many spans are there, and returns them.
func (c *Collector) Await(t testing.TB, n int) []*otlp.Span {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); len(c.Spans()) < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d spans came, want %d", len(c.Spans()), n)
		}
	}
	return c.Spans()
}

// Named finds the one span of this name in a trace.
func Named(t testing.TB, spans []*otlp.Span, trace, name string) *otlp.Span {
	t.Helper()
	var found []*otlp.Span
	for _, s := range spans {
		if s.Name == name && hex.EncodeToString(s.TraceId) == trace {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans %q in trace %s, want one", len(found), name, trace)
	}
	return found[0]
}

// Attribute is the text or the number of a span's attribute; nil: it has none of this name.
func Attribute(s *otlp.Span, key string) any {
	for _, a := range s.Attributes {
		if a.Key == key {
			if text := a.Value.GetStringValue(); text != "" {
				return text
			}
			return a.Value.GetIntValue()
		}
	}
	return nil
}
