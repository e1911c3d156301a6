package egress

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// inbound is a request that the gate in front has let in.
func inbound(id, route, subject string, scopes ...string) cause.Request {
	r := cause.Request{ID: id, Route: route, Began: time.Now()}
	if subject != "" {
		r.Caller = &identity.Caller{Issuer: "https://issuer.example", Subject: subject, Digest: "digest of " + subject, Scopes: scopes, Expires: time.Now().Add(time.Hour)}
	}
	return r
}

// withFlight gives a proxy requests in flight.
func withFlight(f *cause.Flight) func(*Config) { return func(c *Config) { c.Flight = f } }

// plain sends a request with headers in absolute-form and returns the status and the code of our own answer.
func (s *stage) plain(url string, headers ...string) (int, string) {
	s.t.Helper()
	host := strings.Split(strings.TrimPrefix(url, "http://"), "/")[0]
	c := s.raw("GET " + url + " HTTP/1.1\r\nHost: " + host + "\r\n" + strings.Join(append(headers, "", ""), "\r\n"))
	defer c.Close()
	res, p := c.response()
	return res.StatusCode, p.Code
}

// A record names the routes of the requests that may have caused an attempt: what is new is new of a route.
func TestRoutesOnRecord(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	flight := cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{{Name: "any", For: anyone(), Hosts: []string{host("any.example", port)}, Protocol: "http"}}}, withFlight(flight))
	a := flight.Begin(inbound("A", "write", "alice"))
	defer a.Done()
	for _, id := range []string{"B", "C"} {
		defer flight.Begin(inbound(id, "read", "bob")).Done()
	}
	s.plain("http://any.example:" + port + "/")
	s.plain("http://any.example:"+port+"/", "X-Sallyport-Capability: "+a.Capability)
	for i, want := range []string{"[read write]", "[write]"} {
		if got := fmt.Sprint(s.decision(i).Detail["routes"]); got != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
}

func TestLadder(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	flight, elsewhere := cause.NewFlight(), cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "write", For: policy.For{Routes: []string{"write"}, Scopes: []string{"w"}}, Hosts: []string{host("write.example", port)}, Protocol: "http"},
		{Name: "any", For: anyone(), Hosts: []string{host("any.example", port)}, Protocol: "http"},
		{Name: "quiet", For: policy.For{Background: true}, Hosts: []string{host("quiet.example", port)}, Protocol: "http"},
	}}, withFlight(flight))
	write, open, quiet := "http://write.example:"+port+"/", "http://any.example:"+port+"/", "http://quiet.example:"+port+"/"
	n := 0
	expect := func(name string, status int, code string, level string, detail map[string]string, subject string) func(int, string) {
		return func(gotStatus int, gotCode string) {
			t.Helper()
			d := s.decision(n)
			n++
			if gotStatus != status || gotCode != code || status == 403 && d.Code != code || d.Detail["level"] != level || d.Subject != subject {
				t.Errorf("%s: %d %q, recorded %+v", name, gotStatus, gotCode, d)
			}
			for _, key := range []string{"requests", "window", "cause"} {
				if got := fmt.Sprint(d.Detail[key]); got != detail[key] && (detail[key] != "" || got != "<nil>") {
					t.Errorf("%s: %s is %s, want %s", name, key, got, detail[key])
				}
			}
			routes, ok := map[string]string{"": "<nil>", "[A]": "[write]", "[B]": "[read]", "[B A]": "[read write]"}[detail["requests"]]
			if got := fmt.Sprint(d.Detail["routes"]); ok && got != routes {
				t.Errorf("%s: the routes are %s, want %s", name, got, routes)
			}
		}
	}
	background := map[string]string{"cause": "background"}

	expect("nothing in flight", 403, "background_not_allowed", "window", background, "")(s.plain(write))
	expect("nothing in flight, any", 200, "", "window", background, "")(s.plain(open))
	expect("nothing in flight, for that", 200, "", "window", background, "")(s.plain(quiet))

	a := flight.Begin(inbound("A", "write", "alice", "r", "w"))
	one := map[string]string{"requests": "[A]", "window": "1"}
	expect("one in flight", 200, "", "window", one, "alice")(s.plain(write))
	expect("one in flight, background", 403, "cause_not_allowed", "window", one, "alice")(s.plain(quiet))
	expect("its capability", 200, "", "capability", map[string]string{"requests": "[A]"}, "alice")(s.plain(write, "Proxy-Authorization: Bearer "+a.Capability))
	basic := base64.StdEncoding.EncodeToString([]byte("any:" + a.Capability))
	expect("as a password", 200, "", "capability", map[string]string{"requests": "[A]"}, "alice")(s.plain(write, "Proxy-Authorization: Basic "+basic))
	expect("in the other header", 200, "", "capability", map[string]string{"requests": "[A]"}, "alice")(s.plain(write, "X-Sallyport-Capability: "+a.Capability))
	expect("background's capability", 403, "background_not_allowed", "capability", background, "")(s.plain(write, "Proxy-Authorization: Bearer "+flight.Background()))
	expect("background's capability, for that", 200, "", "capability", background, "")(s.plain(quiet, "Proxy-Authorization: Bearer "+flight.Background()))

	stolen := elsewhere.Begin(inbound("X", "write", "alice", "r", "w"))
	defer stolen.Done()
	for name, headers := range map[string][]string{
		"of another instance":             {"Proxy-Authorization: Bearer " + stolen.Capability},
		"background of another":           {"Proxy-Authorization: Bearer " + elsewhere.Background()},
		"empty":                           {"Proxy-Authorization: Bearer "},
		"no scheme":                       {"Proxy-Authorization: " + a.Capability},
		"a scheme that is none":           {"Proxy-Authorization: Digest " + a.Capability},
		"one good, one not":               {"Proxy-Authorization: Bearer " + a.Capability, "X-Sallyport-Capability: x"},
		"two":                             {"X-Sallyport-Capability: x", "X-Sallyport-Capability: " + a.Capability},
		"the trace id":                    {"X-Sallyport-Capability: " + a.Trace},
		"as long as a header may be, say": {"X-Sallyport-Capability: " + strings.Repeat(a.Capability, 100)},
	} {
		expect(name, 403, "capability_invalid", "capability", nil, "")(s.plain(open, headers...))
	}

	b := flight.Begin(inbound("B", "read", "bob", "r"))
	both := map[string]string{"requests": "[B A]", "window": "2"}
	expect("one of two may not", 403, "cause_not_allowed", "window", both, "")(s.plain(write))
	expect("whoever may", 200, "", "window", both, "")(s.plain(open))
	traced := map[string]string{"requests": "[A]", "window": "2"}
	parent := "Traceparent: 00-" + a.Trace + "-00f067aa0ba902b7-01"
	expect("a trace does not widen", 403, "cause_not_allowed", "trace", traced, "")(s.plain(write, parent))
	expect("a trace names", 200, "", "trace", traced, "")(s.plain(open, parent))
	expect("a trace of nobody", 200, "", "window", both, "")(s.plain(open, "Traceparent: 00-"+strings.Repeat("ab", 16)+"-00f067aa0ba902b7-01"))
	expect("the capability of the one who may", 200, "", "capability", map[string]string{"requests": "[A]"}, "alice")(s.plain(write, "X-Sallyport-Capability: "+a.Capability))
	expect("the capability of the one who may not", 403, "cause_not_allowed", "capability", map[string]string{"requests": "[B]"}, "bob")(s.plain(write, "X-Sallyport-Capability: "+b.Capability))
	b.Done()
	expect("the other is in its tail", 403, "cause_not_allowed", "window", both, "")(s.plain(write))
	time.Sleep(cause.Tail + 50*time.Millisecond)
	expect("its tail is over", 200, "", "window", one, "alice")(s.plain(write))
	expect("a capability that is over", 403, "capability_invalid", "capability", nil, "")(s.plain(open, "X-Sallyport-Capability: "+b.Capability))
	p := flight.Begin(inbound("P", "write", ""))
	expect("a public request has no scopes", 403, "cause_not_allowed", "capability", map[string]string{"requests": "[P]"}, "")(s.plain(write, "X-Sallyport-Capability: "+p.Capability))
	p.Done()
	a.Done()

	raw := strings.ToLower(string(service.Raw()))
	for _, gone := range []string{a.Trace, a.Trace[:16], a.Capability, "sallyport", "proxy-"} {
		if strings.Contains(raw, gone) {
			t.Errorf("%q reached a destination", gone)
		}
	}
	if strings.Count(raw, "traceparent: 00-"+strings.Repeat("ab", 16)+"-00f067aa0ba902b7-01") != 1 || strings.Count(raw, "-00f067aa0ba902b7-01") != 2 {
		t.Errorf("traces: %s", raw)
	}
}

func TestNothingIsKnownOfRequests(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "write", For: policy.For{Routes: []string{"write"}, Background: true}, Hosts: []string{host("write.example", port)}, Protocol: "http"},
		{Name: "any", For: anyone(), Hosts: []string{host("any.example", port)}, Protocol: "http"},
	}}, nil)
	if status, code := s.plain("http://write.example:" + port + "/"); status != 403 || code != "cause_not_allowed" {
		t.Errorf("%d %s", status, code)
	}
	if status, _ := s.plain("http://any.example:" + port + "/"); status != 200 {
		t.Errorf("%d", status)
	}
	if status, code := s.plain("http://any.example:"+port+"/", "Proxy-Authorization: Bearer x"); status != 403 || code != "capability_invalid" {
		t.Errorf("%d %s", status, code)
	}
	if d := s.decision(0); d.Detail["level"] != "process" {
		t.Errorf("%+v", d)
	}
}

func TestConnectPresentsForWhatIsInside(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	flight := cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "write", For: policy.For{Routes: []string{"write"}}, Hosts: []string{host("write.example", port)}, Protocol: "http"},
	}}, withFlight(flight))
	a, b := flight.Begin(inbound("A", "write", "alice")), flight.Begin(inbound("B", "read", "bob"))
	defer b.Done()
	h := host("write.example", port)
	c := s.raw("CONNECT " + h + " HTTP/1.1\r\nHost: " + h + "\r\nProxy-Authorization: Bearer " + a.Capability + "\r\n\r\n")
	c.established()
	ask := func(headers string) (int, string) {
		t.Helper()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+h+"\r\n"+headers+"\r\n")
		res, p := c.response()
		io.Copy(io.Discard, res.Body)
		return res.StatusCode, p.Code
	}
	if status, code := ask(""); status != 200 {
		t.Errorf("by the tunnel's: %d %s", status, code)
	}
	if status, code := ask("X-Sallyport-Capability: " + b.Capability + "\r\n"); status != 403 || code != "cause_not_allowed" {
		t.Errorf("by its own: %d %s", status, code)
	}
	if status, code := ask("X-Sallyport-Capability: x\r\n"); status != 403 || code != "capability_invalid" {
		t.Errorf("by one that is none: %d %s", status, code)
	}
	a.Done()
	time.Sleep(cause.Tail + 50*time.Millisecond)
	if status, code := ask(""); status != 403 || code != "capability_invalid" {
		t.Errorf("by the tunnel's, which is over: %d %s", status, code)
	}
}

// TestManyWithDifferentRights lets requests with different rights send at once, each by its own capability, and some
// without one: nobody gets what is not theirs, and everybody gets what is.
func TestManyWithDifferentRights(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	flight := cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "w", For: policy.For{Scopes: []string{"w"}}, Hosts: []string{host("w.example", port)}, Protocol: "http"},
		{Name: "r", For: policy.For{Scopes: []string{"r"}}, Hosts: []string{host("r.example", port)}, Protocol: "http"},
	}}, withFlight(flight))
	held := []*cause.Entry{flight.Begin(inbound("R", "x", "reader", "r")), flight.Begin(inbound("W", "x", "writer", "w"))}
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			client := s.client(nil)
			ask := func(h string, e *cause.Entry) int {
				r, _ := http.NewRequest("GET", "http://"+h+".example:"+port+"/", nil)
				if e != nil {
					r.Header.Set("X-Sallyport-Capability", e.Capability)
				}
				res, err := client.Do(r)
				if err != nil {
					t.Error(err)
					return 0
				}
				defer res.Body.Close()
				io.Copy(io.Discard, res.Body)
				return res.StatusCode
			}
			for i := range 25 {
				scope, other := "r", "w"
				if (worker+i)%2 == 0 {
					scope, other = other, scope
				}
				e := flight.Begin(inbound(fmt.Sprint(worker, i), "x", fmt.Sprint(worker, i), scope))
				if got := ask(scope, e); got != 200 {
					t.Errorf("%s by %s: %d", scope, scope, got)
				}
				if got := ask(other, e); got != 403 {
					t.Errorf("%s by %s: %d", other, scope, got)
				}
				if got := ask(scope, nil); got != 403 {
					t.Errorf("%s by the window: %d", scope, got)
				}
				e.Done()
			}
		})
	}
	wg.Wait()
	for _, e := range held {
		e.Done()
	}
}

func TestDirectIsForAny(t *testing.T) {
	d := Destination{Name: "db", Hosts: []string{"db.example:1"}, Protocol: "tcp", Direct: true, For: policy.For{Background: true}}
	if _, _, err := compileDestination(0, d); err == nil || !strings.Contains(err.Error(), "direct") {
		t.Error(err)
	}
	d.For = anyone()
	if _, _, err := compileDestination(0, d); err != nil {
		t.Error(err)
	}
}

// TestServeProgram holds that nobody comes in by the program's forward proxy whom the broker does not know.
func TestServeProgram(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	flight := cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{host("a.example", port)}, Protocol: "http"}}}, withFlight(flight))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.proxy.ServeProgram(ctx, l) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	request := "GET http://a.example:" + port + "/ HTTP/1.1\r\nHost: a.example\r\nProxy-Authorization: Bearer " + flight.Background() + "\r\n\r\n"
	for len(s.proxy.entrances.Load().program) == 0 {
		time.Sleep(time.Millisecond)
	}
	c := s.lead(l.Addr().String())
	io.WriteString(c, request)
	if res, _ := c.response(); res.StatusCode != 200 {
		t.Errorf("the program: %s", res.Status)
	}
	if d := s.decision(0); d.Detail["process"] != 7.0 || d.Detail["via"] != "proxy" {
		t.Errorf("%+v", d)
	}
	stranger := dial(t, l.Addr().String(), request)
	if b, _ := io.ReadAll(stranger.r); len(b) > 0 {
		t.Errorf("a stranger: %q", b)
	}
	if d, _ := s.audit.entries(t); len(d) != 1 {
		t.Errorf("%d records", len(d))
	}
}

const signedToken = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwic3ViIjoiYWxpY2UifQ.MEUCIQDnqAtYx3vVJ0yQz5b1uF7dSg6o2hRkWcXpT9mKe4LZsgIgQ8w"

func TestTraceparent(t *testing.T) {
	for v, want := range map[string][2]string{
		"":   {},
		"00": {},
		"00-" + strings.Repeat("a", 32) + "-" + strings.Repeat("b", 16) + "-01":       {strings.Repeat("a", 32), strings.Repeat("b", 16)},
		"cc-" + strings.Repeat("a", 32) + "-" + strings.Repeat("b", 16) + "-01-extra": {strings.Repeat("a", 32), strings.Repeat("b", 16)},
		"00-" + strings.Repeat("a", 33) + "-" + strings.Repeat("b", 15) + "-01":       {},
	} {
		if trace, parent := traceOf(v); [2]string{trace, parent} != want {
			t.Errorf("%q: %q %q", v, trace, parent)
		}
	}
}

// FuzzClaim: whatever a client presents, it is an attempt's claim only if it is a capability whole.
func FuzzClaim(f *testing.F) {
	f.Add("Bearer x", "", "00-x")
	f.Add("Basic YTpi", "b", "")
	f.Fuzz(func(t *testing.T, authorization, capability, trace string) {
		h := http.Header{}
		for name, v := range map[string]string{"Proxy-Authorization": authorization, "X-Sallyport-Capability": capability, "Traceparent": trace} {
			if v != "" {
				h[name] = []string{v}
			}
		}
		c := claimOf(&http.Request{Method: "GET", Header: h})
		if c.presented != (authorization != "" || capability != "") {
			t.Fatal("presented and not seen")
		}
		if c.capability != "" && (len(c.capability) > maxCapability || capability != "" && c.capability != capability ||
			authorization != "" && credentialsOf(authorization) != c.capability) {
			t.Fatalf("%q of %q and %q", c.capability, authorization, capability)
		}
		if c.trace != "" && (len(c.trace) != 32 || !strings.Contains(trace, c.trace)) {
			t.Fatalf("trace %q", c.trace)
		}
	})
}

func BenchmarkAttribute(b *testing.B) {
	for _, callers := range []int{1, 100} {
		flight := cause.NewFlight()
		var e *cause.Entry
		for i := range callers {
			e = flight.Begin(inbound("id", "r", fmt.Sprint(i), "a"))
		}
		p := &Proxy{config: Config{Flight: flight}}
		for _, capability := range []string{"", e.Capability} {
			b.Run(fmt.Sprintf("callers=%d/capability=%t", callers, capability != ""), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					x := &passage{p: p, claim: claim{presented: capability != "", capability: capability}}
					x.attribute()
					x.release()
				}
			})
		}
	}
}
