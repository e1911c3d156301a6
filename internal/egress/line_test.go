package egress

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/sallytest"
)

func TestPlainRequest(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "api", For: anyone(), Hosts: []string{host("api.example", port)}, Protocol: "http"}}}, nil)
	if status, body := s.get("http://api.example:" + port + "/a?b=c"); status != 200 || body != "ok" {
		t.Errorf("got %d %q", status, body)
	}
	d, o := s.decision(0), s.outcome(0)
	if d.Decision != "allow" || d.Point != "egress" || d.Host != "api.example" || d.Path != "/a" || d.Detail["destination"] != "api" || d.Detail["level"] != "process" {
		t.Errorf("recorded %+v", d)
	}
	if o.ID != d.ID || o.Status != 200 || o.BytesOut != 2 || o.Error != "" {
		t.Errorf("outcome %+v", o)
	}
	if raw := string(service.Raw()); !strings.HasPrefix(raw, "GET /a?b=c HTTP/1.1\r\nHost: api.example:"+port+"\r\n") {
		t.Errorf("the destination saw %q", raw)
	}
}

func TestKeptConnectionIsUsedAgain(t *testing.T) {
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "api", For: anyone(), Hosts: []string{host("api.example", port)}, Protocol: "http"}}}, nil)
	client := s.client(nil)
	for range 5 {
		res, err := client.Get("http://api.example:" + port + "/")
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	if n := service.Connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
	if n := s.dns.Asked("api.example"); n != 1 {
		t.Errorf("resolved %d times", n)
	}
	if d, _ := s.audit.entries(t); len(d) != 5 {
		t.Errorf("%d records", len(d))
	}
}

func TestUnknownDestination(t *testing.T) {
	s := newStage(t, Rules{}, nil)
	status, body := s.get("http://other.example/")
	if status != 403 || !strings.Contains(body, `"code":"destination_unknown"`) || !strings.Contains(body, "other.example:80") {
		t.Errorf("got %d %q", status, body)
	}
	if n := s.dns.Asked(""); n != 0 {
		t.Errorf("a denied name was looked up %d times", n)
	}
	if d := s.decision(0); d.Decision != "deny" || d.Code != "destination_unknown" || d.Host != "other.example" {
		t.Errorf("recorded %+v", d)
	}
}

func TestConnectTLS(t *testing.T) {
	ca := newAuthority(t)
	server := serve(t, ca.config(t, "api.example"), echo)
	s := newStage(t, Rules{Destinations: []Destination{{Name: "api", For: anyone(), Hosts: []string{host("api.example", server.port)}}}}, nil)
	c := s.connect(host("api.example", server.port))
	client := tls.Client(c, &tls.Config{ServerName: "api.example", RootCAs: ca.pool})
	talk(t, client, "hello")
	client.Close()
	if d, o := s.decision(0), s.outcome(0); d.Decision != "allow" || d.Detail["via"] != "connect" || o.BytesIn == 0 || o.BytesOut == 0 {
		t.Errorf("%+v %+v", d, o)
	}
}

func TestConnectTCP(t *testing.T) {
	server := serve(t, nil, func(c net.Conn) { io.WriteString(c, "hello "); echo(c) })
	s := newStage(t, Rules{Destinations: []Destination{{Name: "db", For: anyone(), Hosts: []string{host("db.example", server.port)}, Protocol: "tcp"}}}, nil)
	c := s.connect(host("db.example", server.port))
	b := make([]byte, 6)
	if _, err := io.ReadFull(c.r, b); err != nil {
		t.Fatal(err) // the destination speaks first
	}
	talk(t, c, "ping")
	c.Conn.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) != 0 {
		t.Errorf("%q %v", rest, err)
	}
	if o := s.outcome(0); o.BytesIn != 4 || o.BytesOut != 10 || o.Error != "" {
		t.Errorf("%+v", o)
	}
}

func TestLed(t *testing.T) {
	ca := newAuthority(t)
	secure := serve(t, ca.config(t, "api.example"), echo)
	db := serve(t, nil, func(c net.Conn) { io.WriteString(c, "hello "); echo(c) })
	service := sallytest.NewRecorder(t)
	_, port, _ := net.SplitHostPort(service.Addr)
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "api", For: anyone(), Hosts: []string{host("api.example", secure.port)}},
		{Name: "db", For: anyone(), Hosts: []string{host("127.0.0.1", db.port)}, Protocol: "tcp"},
		{Name: "web", For: anyone(), Hosts: []string{host("web.example", port)}, Protocol: "http", Methods: []string{"GET"}, Paths: []string{"/a/{id}"}},
	}}, nil)

	c := s.lead("127.0.0.1:" + secure.port)
	client := tls.Client(c, &tls.Config{ServerName: "api.example", RootCAs: ca.pool})
	talk(t, client, "hello")
	client.Close()

	c = s.lead("127.0.0.1:" + db.port)
	b := make([]byte, 6)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	talk(t, c, "ping")
	c.Close()

	c = s.lead("127.0.0.1:" + port)
	io.WriteString(c, "GET /a/1 HTTP/1.1\r\nHost: web.example:"+port+"\r\n\r\n")
	if res, _ := c.response(); res.StatusCode != 200 {
		t.Errorf("got %s", res.Status)
	} else {
		io.Copy(io.Discard, res.Body)
	}
	io.WriteString(c, "GET /b/1 HTTP/1.1\r\nHost: web.example:"+port+"\r\n\r\n")
	if res, p := c.response(); res.StatusCode != 403 || p.Code != "path_not_allowed" {
		t.Errorf("got %s %+v", res.Status, p)
	}
	io.WriteString(c, "POST /a/1 HTTP/1.1\r\nHost: web.example:"+port+"\r\nContent-Length: 0\r\n\r\n")
	if res, p := c.response(); res.StatusCode != 403 || p.Code != "method_not_allowed" {
		t.Errorf("got %s %+v", res.Status, p)
	}
	io.WriteString(c, "GET /a/1 HTTP/1.1\r\nHost: other.example\r\n\r\n")
	if res, p := c.response(); res.StatusCode != http.StatusMisdirectedRequest || p.Code != "host_mismatch" {
		t.Errorf("got %s %+v", res.Status, p)
	}
	c.Close()

	if c = s.lead("127.0.0.1:9"); c != nil {
		t.Error("a port of no destination was led")
	}
}
