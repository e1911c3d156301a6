package ingress

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// HTTP/1 in, HTTP/2 out: a service that speaks HTTP/2 alone serves clients that do not, also where it answers before it has
// read what they send.
func TestHTTP1ToHTTP2(t *testing.T) {
	service := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Early") == "" {
			io.Copy(io.Discard, r.Body)
		}
		w.Header().Set("X-Seen", r.Method+" "+r.Host+r.RequestURI+" "+r.Proto+" te="+r.Header.Get("Te"))
		io.WriteString(w, "done")
	}))
	service.Config.Protocols = new(http.Protocols)
	service.Config.Protocols.SetUnencryptedHTTP2(true)
	service.Start()
	t.Cleanup(service.Close)
	s := open(t, func(s *stage) {
		s.config.Upstream = mustURL(t, strings.Replace(service.URL, "http:", "h2c:", 1))
	})
	token := bearerHeader(s.token("orders:read"))
	p := s.dial()
	for range 2 { // and the connection stays
		p.send(get("/orders/a%2Cb?c=%20", token))
		if a := p.read("GET"); a.StatusCode != 200 || a.Header.Get("X-Seen") != "GET api.example.com/orders/a%2Cb?c=%20 HTTP/2.0 te=" {
			t.Fatalf("answered %d, the service saw %q", a.StatusCode, a.Header.Get("X-Seen"))
		}
		p.send(request("POST", "/upload", "hello", token))
		if a := p.read("POST"); a.StatusCode != 200 || a.body != "done" {
			t.Fatalf("answered %d %q", a.StatusCode, a.body)
		}
	}
	began := time.Now()
	p.send("POST /upload HTTP/1.1\r\nHost: api.example.com\r\n" + token + "\r\nX-Early: 1\r\nContent-Length: 100\r\n\r\nhello")
	if a := p.read("POST"); a.StatusCode != 200 || a.body != "done" || !a.Close || !p.closed() {
		t.Errorf("answered %d %q, close: %t", a.StatusCode, a.body, a.Close)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	_, outcomes := s.settled(5)
	for _, o := range outcomes {
		if o.Error != "" {
			t.Errorf("outcome %+v", o)
		}
	}
	a, _ := s.ask(get("/socket", token, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
	if a.StatusCode != 502 {
		t.Errorf("a WebSocket was answered %d", a.StatusCode)
	}
}
