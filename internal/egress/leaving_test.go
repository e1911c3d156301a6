package egress

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/sallytest"
)

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
