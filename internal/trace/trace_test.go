package trace_test

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/internal/sallytest"
	"github.com/sallyport/sallyport/internal/trace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID  = "00f067aa0ba902b7"
)

func newTracer(t testing.TB, change func(*trace.Config)) *trace.Tracer {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c := trace.Config{Endpoint: "http://127.0.0.1:1", Client: &http.Client{Transport: transport}, Sample: 1, Version: "v0"}
	change(&c)
	tracer, err := trace.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tracer.Close)
	return tracer
}

func TestParse(t *testing.T) {
	for value, want := range map[string]bool{
		"00-" + traceID + "-" + spanID + "-01":                  true,
		"00-" + traceID + "-" + spanID + "-00":                  true,
		"cc-" + traceID + "-" + spanID + "-01-what-comes":       true,
		"00-" + traceID + "-" + spanID + "-01-":                 false,
		"cc-" + traceID + "-" + spanID + "-01.x":                false,
		"ff-" + traceID + "-" + spanID + "-01":                  false,
		"00-" + strings.ToUpper(traceID) + "-" + spanID + "-01": false,
		"00-" + strings.Repeat("0", 32) + "-" + spanID + "-01":  false,
		"00-" + traceID + "-" + strings.Repeat("0", 16) + "-01": false,
		"00-" + traceID + "-" + spanID + "-0":                   false,
		"00-" + traceID + "-" + spanID + "-0x":                  false,
		"0x-" + traceID + "-" + spanID + "-01":                  false,
		"00_" + traceID + "_" + spanID + "_01":                  false,
		" 00-" + traceID + "-" + spanID + "-01":                 false,
		"00-" + traceID[:31] + "g-" + spanID + "-01":            false,
		"": false,
		"00-" + traceID + "-" + spanID + "-01, 00-" + traceID + "-": false,
	} {
		gotTrace, gotSpan, flags, ok := trace.Parse(value)
		if ok != want || ok && (gotTrace != traceID || gotSpan != spanID || flags > 1) {
			t.Errorf("%q: %q %q %d %t", value, gotTrace, gotSpan, flags, ok)
		}
	}
}

// FuzzParse holds that what is read is what stands there, and that the ids can be used.
func FuzzParse(f *testing.F) {
	f.Add("00-" + traceID + "-" + spanID + "-01")
	f.Add("cc-" + traceID + "-" + spanID + "-01-x")
	f.Fuzz(func(t *testing.T, v string) {
		id, span, _, ok := trace.Parse(v)
		if !ok {
			if id != "" || span != "" {
				t.Errorf("%q: refused, and yet %q %q", v, id, span)
			}
			return
		}
		if !trace.ID(id) || !trace.ID(span) || len(id) != 32 || len(span) != 16 || !strings.HasPrefix(v[2:], "-"+id+"-"+span+"-") {
			t.Errorf("%q: %q %q", v, id, span)
		}
	})
}

func TestSampling(t *testing.T) {
	peer := netip.MustParseAddr("10.1.2.3")
	said := http.Header{"Traceparent": {"00-" + traceID + "-" + spanID + "-01"}, "Tracestate": {"a=1", "b=2"}}
	for name, c := range map[string]struct {
		sample   float64
		from, to int // of 1000
	}{"none": {0, 0, 0}, "all": {1, 1000, 1000}, "half": {0.5, 400, 600}} {
		tracer := newTracer(t, func(o *trace.Config) { o.Sample = c.sample })
		n := 0
		for range 1000 {
			got := tracer.Begin(peer, said)
			if got.Sampled {
				n++
			}
			if got.Trace != "" || got.State != "" {
				t.Fatalf("%s: a stranger's trace is continued: %+v", name, got)
			}
		}
		if n < c.from || n > c.to {
			t.Errorf("%s: %d of 1000", name, n)
		}
	}
	tracer := newTracer(t, func(o *trace.Config) { o.Sample = 0; o.Trust = []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")} })
	if got, want := tracer.Begin(peer, said), (trace.Context{Sampled: true, Trace: traceID, Parent: spanID, State: "a=1,b=2"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for name, h := range map[string]http.Header{
		"none":      {},
		"two":       {"Traceparent": {said["Traceparent"][0], said["Traceparent"][0]}},
		"malformed": {"Traceparent": {"00-x"}, "Tracestate": {"a=1"}},
	} {
		if got := tracer.Begin(peer, h); got != (trace.Context{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := tracer.Begin(netip.MustParseAddr("10.1.3.1"), said); got != (trace.Context{}) {
		t.Errorf("a neighbour: %+v", got)
	}
	if got := tracer.Begin(netip.Addr{}, said); got != (trace.Context{}) {
		t.Errorf("nobody: %+v", got)
	}
	long := http.Header{"Traceparent": said["Traceparent"], "Tracestate": {strings.Repeat("a", 513)}}
	if got := tracer.Begin(peer, long); got.State != "" || got.Trace != traceID {
		t.Errorf("a long tracestate: %+v", got)
	}
	var none *trace.Tracer
	if got := none.Begin(peer, said); got != (trace.Context{}) || none.Trusting() {
		t.Errorf("no tracer: %+v", got)
	}
	none.End(trace.Span{})
	none.Close()
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]trace.Config{
		"no client": {Endpoint: "http://127.0.0.1:1"}, "no endpoint": {Client: http.DefaultClient},
		"a share beyond one": {Endpoint: "http://127.0.0.1:1", Client: http.DefaultClient, Sample: 1.1},
	} {
		if _, err := trace.New(c); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}

func count(t *testing.T, r *prometheus.Registry, result string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "sallyport_trace_spans_total" && m.Label[0].GetValue() == result {
				return m.Counter.GetValue()
			}
		}
	}
	return 0
}

func TestSend(t *testing.T) {
	collector, registry := sallytest.NewCollector(t), prometheus.NewRegistry()
	tracer := newTracer(t, func(c *trace.Config) {
		c.Endpoint, c.Metrics = collector.URL, registry
		c.Headers = func() (http.Header, error) { return http.Header{"X-Key": {"secret"}}, nil }
	})
	began := time.Unix(1_800_000_000, 5)
	tracer.End(trace.Span{
		Trace: traceID, ID: spanID, Parent: "00f067aa0ba902b8", Kind: trace.Server, Name: "GET /", Began: began, Ended: began.Add(time.Second), Failed: true,
		Attributes: []trace.Attribute{{Key: "text", Text: "x"}, {Key: "number", Number: 200}, {Key: "nothing"}}, LinkedTrace: traceID, LinkedSpan: spanID,
	})
	s := collector.Await(t, 1)[0]
	sallytest.Named(t, collector.Spans(), traceID, "GET /")
	if s.StartTimeUnixNano != uint64(began.UnixNano()) || s.EndTimeUnixNano-s.StartTimeUnixNano != 1e9 || s.Kind != 2 || s.Status.GetCode() != 2 || len(s.Links) != 1 || len(s.ParentSpanId) != 8 {
		t.Errorf("%v", s)
	}
	if len(s.Attributes) != 2 || sallytest.Attribute(s, "text") != "x" || sallytest.Attribute(s, "number") != int64(200) {
		t.Errorf("%v", s.Attributes)
	}
	if h := collector.Header(); h.Get("X-Key") != "secret" || h.Get("User-Agent") != "sallyport/v0" {
		t.Errorf("%v", h)
	}
	if r := collector.Resources()[0].Resource.Attributes; r[0].Key != "service.name" || r[0].Value.GetStringValue() != "sallyport" {
		t.Errorf("%v", r)
	}
	tracer.Close() // the upload has been counted
	if n := count(t, registry, "exported"); n != 1 {
		t.Errorf("%v exported", n)
	}
}

// TestRefusals holds what becomes of spans that a collector does not take, or not yet.
func TestRefusals(t *testing.T) {
	collector, registry := sallytest.NewCollector(t), prometheus.NewRegistry()
	failures := make(chan error, 10)
	tracer := newTracer(t, func(c *trace.Config) {
		c.Endpoint, c.Metrics, c.Failed = collector.URL, registry, func(err error) { failures <- err }
	})
	collector.Answer(func(w http.ResponseWriter) bool {
		if collector.Requests() > 1 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	tracer.End(trace.Span{Trace: traceID, ID: spanID, Name: "again"})
	collector.Await(t, 1)
	collector.Answer(func(w http.ResponseWriter) bool { w.Write([]byte{0x0a, 0x02, 0x08, 0x01}); return true }) // partial_success {rejected_spans: 1}
	tracer.End(trace.Span{Trace: traceID, ID: spanID, Name: "rejected"})
	if err := <-failures; !strings.Contains(err.Error(), "rejected") {
		t.Error(err)
	}
	collector.Answer(func(w http.ResponseWriter) bool { w.WriteHeader(http.StatusUnauthorized); return true })
	for range 2 { // said once
		before := collector.Requests()
		tracer.End(trace.Span{Trace: traceID, ID: spanID, Name: "refused"})
		for collector.Requests() == before {
			time.Sleep(time.Millisecond)
		}
	}
	if err := <-failures; !strings.Contains(err.Error(), "401") {
		t.Error(err)
	}
	tracer.Close()
	if len(failures) > 0 {
		t.Errorf("said again: %v", <-failures)
	}
	for result, want := range map[string]float64{"exported": 1, "rejected": 1, "failed": 2, "dropped": 0} {
		if got := count(t, registry, result); got != want {
			t.Errorf("%v %s, want %v", got, result, want)
		}
	}
}

// TestNobodyWaits holds that a collector that hangs costs spans and no time.
func TestNobodyWaits(t *testing.T) {
	collector, registry := sallytest.NewCollector(t), prometheus.NewRegistry()
	hang := make(chan struct{})
	collector.Answer(func(http.ResponseWriter) bool { <-hang; return false })
	tracer := newTracer(t, func(c *trace.Config) { c.Endpoint, c.Metrics = collector.URL, registry })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 10_000 {
			tracer.End(trace.Span{Trace: traceID, ID: spanID})
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("End waits")
	}
	if n := count(t, registry, "dropped"); n < 10_000-2048-2*512 {
		t.Errorf("%v dropped", n)
	}
	close(hang)
	tracer.Close()
	if got := count(t, registry, "dropped") + count(t, registry, "exported") + count(t, registry, "failed"); got != 10_000 {
		t.Errorf("%v accounted for", got)
	}
}

// BenchmarkUnsampled is what a request costs whose spans are not sent.
func BenchmarkUnsampled(b *testing.B) {
	tracer := newTracer(b, func(c *trace.Config) { c.Sample = 1e-17 })
	h := http.Header{"Traceparent": {"00-" + traceID + "-" + spanID + "-01"}}
	peer := netip.MustParseAddr("192.0.2.1")
	b.ReportAllocs()
	for b.Loop() {
		if tracer.Begin(peer, h).Sampled {
			b.Fatal("sampled")
		}
	}
}

// BenchmarkUnsampledTrusting is the same where some peers are trusted, of which this is none.
func BenchmarkUnsampledTrusting(b *testing.B) {
	tracer := newTracer(b, func(c *trace.Config) {
		c.Sample, c.Trust = 1e-17, []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24"), netip.MustParsePrefix("10.1.3.0/24")}
	})
	h := http.Header{"Traceparent": {"00-" + traceID + "-" + spanID + "-01"}}
	peer := netip.MustParseAddr("192.0.2.1")
	b.ReportAllocs()
	for b.Loop() {
		if tracer.Begin(peer, h).Sampled {
			b.Fatal("sampled")
		}
	}
}
