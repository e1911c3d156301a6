package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
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

// ends waits until the other side has ended a connection, and returns how long that took.
func ends(t *testing.T, c net.Conn, patience time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	c.SetReadDeadline(began.Add(patience))
	if _, err := io.Copy(io.Discard, c); err != nil && time.Since(began) >= patience {
		t.Fatal("the tunnel stays open")
	}
	return time.Since(began)
}

func TestOpaqueTunnelEndsForWhoMayNot(t *testing.T) {
	db := serve(t, nil, echo)
	flight := cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "db", For: policy.For{Scopes: []string{"w"}}, Hosts: []string{host("db.example", db.port)}, Protocol: "tcp"},
		{Name: "log", For: anyone(), Hosts: []string{host("log.example", db.port)}, Protocol: "tcp"},
	}}, withFlight(flight))
	a := flight.Begin(inbound("A", "write", "alice", "w"))
	narrow, open := s.connect(host("db.example", db.port)), s.connect(host("log.example", db.port))
	talk(t, narrow, "one")
	talk(t, open, "one")
	same := flight.Begin(inbound("B", "write", "carol", "w", "r")) // entitled: the tunnel stays
	talk(t, narrow, "two")
	h := host("db.example", db.port)
	mine := s.raw("CONNECT " + h + " HTTP/1.1\r\nHost: " + h + "\r\nProxy-Authorization: Bearer " + a.Capability + "\r\n\r\n")
	mine.established()
	talk(t, mine, "mine")

	b := flight.Begin(inbound("C", "read", "bob", "r"))
	// Before Begin returned: the service has not seen the request yet.
	if _, err := narrow.Write([]byte("x")); err == nil {
		ends(t, narrow, time.Second)
	}
	talk(t, open, "three")
	talk(t, mine, "still mine")
	o := s.outcome(0)
	if o.Error != "cause_not_allowed" || fmt.Sprint(o.Detail["requests"]) != "[C B A]" || fmt.Sprint(o.Detail["window"]) != "3" {
		t.Errorf("%+v", o)
	}
	if c := s.raw("CONNECT " + h + " HTTP/1.1\r\nHost: " + h + "\r\n\r\n"); true {
		if res, p := c.response(); res.StatusCode != 403 || p.Code != "cause_not_allowed" {
			t.Errorf("a new one: %d %+v", res.StatusCode, p)
		}
	}
	for _, e := range []*cause.Entry{a, b, same} {
		e.Done()
	}
	if took := ends(t, mine, 4*time.Second); took < time.Second {
		t.Errorf("the tunnel of a capability had no tail: %s", took)
	}
	talk(t, open, "background")
	for i := range 2 {
		if o := s.outcome(i); o.Error == "cause_over" {
			return
		}
	}
	if o := s.outcome(2); o.Error != "cause_over" {
		t.Errorf("%+v", o)
	}
}

func TestOpaqueTunnelEndsWithTheLastRequest(t *testing.T) {
	ca := newAuthority(t)
	server := serve(t, ca.config(t, "api.example"), echo)
	flight := cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "api", For: policy.For{Routes: []string{"write"}}, Hosts: []string{host("api.example", server.port)}},
	}}, withFlight(flight))
	a := flight.Begin(inbound("A", "write", "alice"))
	c := s.connect(host("api.example", server.port))
	client := tls.Client(c, &tls.Config{ServerName: "api.example", RootCAs: ca.pool})
	talk(t, client, "hello")
	a.Done()
	time.Sleep(cause.Tail / 2)
	talk(t, client, "in the tail")
	if took := ends(t, client, 3*time.Second); took > cause.Tail {
		t.Errorf("after %s", took)
	}
	if o := s.outcome(0); o.Error != "background_not_allowed" {
		t.Errorf("%+v", o)
	}
}

func TestWhatIsOpenEndsWithItsStanding(t *testing.T) {
	slow := make(chan struct{})
	t.Cleanup(func() { close(slow) })
	web := serve(t, nil, func(c net.Conn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
		select {
		case <-slow:
		case <-time.After(5 * time.Second):
		}
	})
	db := serve(t, nil, echo)
	flight := cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "web", For: anyone(), Hosts: []string{host("web.example", web.port)}, Protocol: "http"},
		{Name: "db", For: anyone(), Hosts: []string{host("db.example", db.port)}, Protocol: "tcp"},
	}}, withFlight(flight))
	a, b := flight.Begin(inbound("A", "write", "alice")), flight.Begin(inbound("B", "read", "bob"))
	defer b.Done()
	tunnel := func(capability string) *conn {
		h := host("db.example", db.port)
		c := s.raw("CONNECT " + h + " HTTP/1.1\r\nHost: " + h + "\r\n" + capability + "\r\n")
		c.established()
		talk(t, c, "ping")
		return c
	}
	hers := tunnel("Proxy-Authorization: Bearer " + a.Capability + "\r\n")
	somebodys, his := tunnel(""), tunnel("Proxy-Authorization: Bearer "+b.Capability+"\r\n")
	answer := s.raw("GET http://web.example:" + web.port + "/ HTTP/1.1\r\nHost: web.example:" + web.port + "\r\nProxy-Authorization: Bearer " + a.Capability + "\r\n\r\n")
	if res, err := http.ReadResponse(answer.r, nil); err != nil || res.StatusCode != 200 {
		t.Fatal(err)
	}
	a.Done()
	time.Sleep(cause.Tail + 50*time.Millisecond) // held, though the request is over

	revoke := func(subject string) int {
		return flight.Sweep(func(r *cause.Request) *cause.Lost {
			if r.Caller.Subject == subject {
				return &cause.Lost{Code: "revoked", Reason: "a test"}
			}
			return nil
		})
	}
	revoke("alice")
	if took := ends(t, hers, time.Second); took > time.Second {
		t.Errorf("after %s", took)
	}
	if took := ends(t, answer, time.Second); took > time.Second {
		t.Errorf("an answer after %s", took)
	}
	talk(t, somebodys, "ping")
	talk(t, his, "ping")
	revoke("bob")
	ends(t, his, time.Second)
	ends(t, somebodys, time.Second)
	for i := range 4 {
		if o := s.outcome(i); o.Error != "standing_lost" {
			t.Errorf("%+v", o)
		}
	}
	if status, code := s.plain("http://web.example:"+web.port+"/", "X-Sallyport-Capability: "+b.Capability); status != 403 || code != "standing_lost" {
		t.Errorf("a new one: %d %s", status, code)
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

// TestTunnelsComeAndGo opens and closes tunnels while requests begin, end and lose their standing.
func TestTunnelsComeAndGo(t *testing.T) {
	db := serve(t, nil, echo)
	flight := cause.NewFlight()
	h := host("db.example", db.port)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "db", For: policy.For{Scopes: []string{"w"}, Background: true}, Hosts: []string{h}, Protocol: "tcp"}}}, withFlight(flight))
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 15 {
				scope := "w"
				if i%5 == 4 {
					scope = "r"
				}
				e := flight.Begin(inbound("id", "x", fmt.Sprint(worker, i), scope))
				capability := ""
				if i%2 == 0 {
					capability = "X-Sallyport-Capability: " + e.Capability + "\r\n"
				}
				c := s.raw("CONNECT " + h + " HTTP/1.1\r\nHost: " + h + "\r\n" + capability + "\r\n")
				if res, err := http.ReadResponse(c.r, &http.Request{Method: http.MethodConnect}); err == nil && res.StatusCode == 200 {
					io.WriteString(c, "ping")
					if i%3 == 0 {
						flight.Sweep(func(r *cause.Request) *cause.Lost {
							if r.Caller.Subject == e.Caller.Subject {
								return &cause.Lost{Code: "revoked"}
							}
							return nil
						})
						ends(t, c, 5*time.Second)
					}
				}
				c.Close()
				e.Done()
			}
		})
	}
	wg.Wait()
	if !s.settled(5 * time.Second) {
		t.Error("something stays open")
	}
	if n := s.proxy.watch.opaque.Load(); n != 0 || len(s.proxy.watch.open) != 0 {
		t.Errorf("%d are watched", n)
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

// TestE14InboundTokenLeaves sends an inbound token out in many spellings, each of which stays inside.
func TestE14InboundTokenLeaves(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	flight := cause.NewFlight()
	patient := serve(t, nil, func(c net.Conn) { // answers when it has read everything
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}
	})
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "a", For: anyone(), Hosts: []string{host("a.example", port), host("a.example", patient.port)}, Protocol: "http"},
	}, Report: true}, withFlight(flight))
	r := inbound("A", "write", "alice")
	r.Token = bearer.NewToken(signedToken)
	e := flight.Begin(r)
	encoded := base64.StdEncoding.EncodeToString([]byte("token=" + signedToken))
	escaped := strings.NewReplacer(".", "%2E", "e", "%65").Replace(signedToken)
	send := func(line, headers, body string) (int, string) {
		t.Helper()
		c := s.raw(line + " HTTP/1.1\r\nHost: ignored.example\r\n" + headers + "\r\n" + body)
		defer c.Close()
		res, p := c.response()
		return res.StatusCode, p.Code
	}
	root := "GET http://a.example:" + port + "/"
	post, later := "POST http://a.example:"+port+"/", "POST http://a.example:"+patient.port+"/"
	length := func(s string) string { return fmt.Sprintf("Content-Length: %d\r\n", len(s)) }
	long := strings.Repeat("x", 100<<10) + signedToken + strings.Repeat("y", 1000)
	chunks := fmt.Sprintf("%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", len(signedToken[:90]), signedToken[:90], len(signedToken[90:]), signedToken[90:])
	for name, got := range map[string]func() (int, string){
		"query":         func() (int, string) { return send(root+"?t="+signedToken, "", "") },
		"escaped":       func() (int, string) { return send(root+"?t="+escaped, "", "") },
		"path":          func() (int, string) { return send(root+"a/"+signedToken, "", "") },
		"header":        func() (int, string) { return send(root, "X-Note: "+signedToken+"\r\n", "") },
		"cookie":        func() (int, string) { return send(root, "Cookie: t="+encoded+"\r\n", "") },
		"authorization": func() (int, string) { return send(root, "Authorization: Bearer "+signedToken+"\r\n", "") },
		"in two headers": func() (int, string) {
			return send(root, "X-A: "+signedToken[:120]+"\r\nX-B: "+signedToken[120:]+"\r\n", "")
		},
		"body":            func() (int, string) { b := `{"token":"` + signedToken + `"}`; return send(post, length(b), b) },
		"base64 body":     func() (int, string) { return send(post, length(encoded), encoded) },
		"far in the body": func() (int, string) { return send(later, length(long), long) },
		"chunks":          func() (int, string) { return send(later, "Transfer-Encoding: chunked\r\n", chunks) },
	} {
		if status, code := got(); status != 403 || code != "token_leaving" {
			t.Errorf("%s: %d %s", name, status, code)
		}
	}
	if raw := string(service.Raw()); strings.Contains(raw, signedToken[len(signedToken)-20:]) || strings.Contains(raw, encoded[len(encoded)-40:]) {
		t.Errorf("it has left: %.2000s", raw)
	}
	found := 0
	decisions, outcomes := s.audit.entries(t)
	for _, d := range decisions {
		if d.Code == "token_leaving" && d.Decision == "deny" && strings.Contains(d.Reason, "request A") {
			found++
		}
	}
	for _, o := range outcomes {
		if o.Error == "token_leaving" {
			found++
		}
	}
	if found < 11 {
		t.Errorf("%d of 11 are recorded", found)
	}
	if strings.Contains(s.audit.String()+s.log.String(), signedToken[100:]) {
		t.Error("the token is in a record or a log")
	}
	e.Done()
	if status, code := send(post, length("hello"), "hello"); status != 200 {
		t.Errorf("what is no token: %d %s", status, code)
	}
}

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

// TestUpgradesWhileOthersLoseTheirStanding holds that a request which becomes a tunnel is judged as one or the other. It is
// for the race detector.
func TestUpgradesWhileOthersLoseTheirStanding(t *testing.T) {
	flight := cause.NewFlight()
	s, _, h := web(t, withFlight(flight), func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			echo(c)
		}
	})
	s.proxy.rules.Load().destinations["web"].For = policy.For{Routes: []string{"a"}}
	mine := flight.Begin(inbound("1", "a", "ada"))
	defer mine.Done()
	ended := make(chan struct{})
	var sweeping sync.WaitGroup
	sweeping.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-ended:
				return
			default:
			}
			e := flight.Begin(inbound("other", "b", fmt.Sprint("other", n)))
			flight.Sweep(func(r *cause.Request) *cause.Lost {
				if r.ID == "other" {
					return &cause.Lost{Code: "revoked"}
				}
				return nil
			})
			e.Done()
		}
	})
	for range 100 {
		c := s.raw("GET http://" + h + "/ HTTP/1.1\r\nHost: x\r\nX-Sallyport-Capability: " + mine.Capability + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if res, _ := c.response(); res.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%d", res.StatusCode)
		}
		c.Close()
	}
	close(ended)
	sweeping.Wait()
}
