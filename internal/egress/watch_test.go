package egress

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/policy"
)

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
