package egress

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/cause"
	"github.com/sallyport/sallyport/internal/credential"
	"github.com/sallyport/sallyport/internal/policy"
)

// mirror answers with what it was sent, in its header and its body, over kept connections.
func mirror(t *testing.T) *server {
	return serve(t, nil, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			io.Copy(io.Discard, request.Body)
			var b strings.Builder
			request.Header.Write(&b)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Echo: %s\r\n\r\n%s", b.Len(), request.Header.Get("Authorization"), b.String())
		}
	})
}

func secret(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// send sends a request in absolute-form on a connection that stays and returns the answer whole.
func send(t *testing.T, c *conn, url string, headers ...string) (res *http.Response, body string, code string) {
	t.Helper()
	io.WriteString(c, "GET "+url+" HTTP/1.1\r\nHost: x.example\r\n"+strings.Join(append(headers, "", ""), "\r\n"))
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p problem
	json.Unmarshal(b, &p)
	return res, string(b), p.Code
}

// TestE15SecretIsAttachedAndStaysThere holds that a credential of ours reaches its destination and no other, and that the
// service does not get it back.
func TestE15SecretIsAttachedAndStaysThere(t *testing.T) {
	const key = "sk-live-4f9a1c77e2b84d60"
	echo, other := mirror(t), mirror(t)
	flight := cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "a", For: anyone(), Hosts: []string{host("a.example", echo.port)}, Protocol: "http",
			Credential: credential.Config{Kind: credential.File, Path: secret(t, key+"\n")}},
		{Name: "b", For: anyone(), Hosts: []string{host("b.example", other.port), host("b.example", echo.port)}, Protocol: "http"},
	}}, withFlight(flight))
	c := s.raw("")
	res, body, _ := send(t, c, "http://a.example:"+echo.port+"/", "Authorization: Bearer placeholder", "Accept-Encoding: gzip")
	masked := "Bearer " + res.Header.Get("X-Echo")[len("Bearer "):]
	if res.StatusCode != 200 || strings.Contains(body, "placeholder") || strings.Contains(body+res.Header.Get("X-Echo"), key) || len(masked) != len("Bearer "+key) ||
		!strings.Contains(body, "Authorization: Bearer ") || !strings.Contains(body, "Accept-Encoding: identity") {
		t.Errorf("%s %q %q", res.Status, res.Header, body)
	}
	// The same destination's connection is kept; what was attached is not.
	for _, url := range []string{"http://b.example:" + other.port + "/", "http://b.example:" + echo.port + "/"} {
		if res, body, _ := send(t, c, url); res.StatusCode != 200 || strings.Contains(body, "Authorization") {
			t.Errorf("%s %q", res.Status, body)
		}
	}
	if _, body, _ := send(t, c, "http://b.example:"+echo.port+"/", "Authorization: Bearer placeholder"); strings.Contains(body, "placeholder") {
		t.Errorf("%q", body)
	}
	if strings.Contains(s.audit.String()+s.log.String(), key) {
		t.Error("the secret is in a record or a log")
	}
	if d := s.decision(0); fmt.Sprint(d.Detail["dropped"]) != "[authorization]" {
		t.Errorf("%+v", d)
	}
}

func TestExchangeIsForOneCaller(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	as := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		subject := r.PostForm.Get("subject_token")
		mu.Lock()
		asked[subject]++
		mu.Unlock()
		if strings.Contains(subject, "refused") {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			io.WriteString(w, `{"error":"invalid_grant"}`)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintf(w, `{"access_token":"exchanged-for-%s","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":300,"scope":"invoice:write"}`, subject)
	}))
	defer as.Close()
	var raw sync.Map
	billing := serve(t, nil, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			raw.Store(request.URL.Path, request.Header.Get("Authorization"))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	flight := cause.NewFlight()
	rules := Rules{Destinations: []Destination{
		{Name: "billing", For: anyone(), Hosts: []string{host("billing.example", billing.port)}, Protocol: "http",
			Credential: credential.Config{Kind: credential.Exchange, TokenEndpoint: as.URL + "/token", ClientID: "gate", ClientSecretFile: secret(t, "a client secret"),
				Audience: "https://billing.example", Scopes: []string{"invoice:write"}}},
		{Name: "own", For: anyone(), Hosts: []string{host("own.example", billing.port)}, Protocol: "http",
			Credential: credential.Config{Kind: credential.Forward, Audience: "https://own.example", Scopes: []string{"w"}}},
	}}
	s := newStage(t, rules, withFlight(flight))
	request := func(name string, scopes ...string) cause.Request {
		r := inbound(name, "r", name, scopes...)
		r.Caller.Claims = map[string]any{"aud": []any{"https://orders.example", "https://own.example"}}
		r.Token = bearer.NewToken("the-inbound-token-of-" + name)
		return r
	}
	alice := flight.Begin(request("alice", "w"))
	c := s.raw("")
	url := "http://billing.example:" + billing.port
	expect := func(path, want string) {
		t.Helper()
		if got, _ := raw.Load(path); got != want {
			t.Errorf("%s was sent %q, want %q", path, got, want)
		}
	}
	if res, body, _ := send(t, c, url+"/alone"); res.StatusCode != 200 {
		t.Fatal(body)
	}
	expect("/alone", "Bearer exchanged-for-the-inbound-token-of-alice")
	bob := flight.Begin(request("bob"))
	if res, _, code := send(t, c, url+"/both"); res.StatusCode != 403 || code != "cause_ambiguous" {
		t.Errorf("%d %s", res.StatusCode, code)
	}
	if res, _, code := send(t, c, url+"/both", "Traceparent: 00-"+alice.Trace+"-00f067aa0ba902b7-01"); res.StatusCode != 403 || code != "cause_ambiguous" {
		t.Errorf("a trace chooses whose credential it is: %d %s", res.StatusCode, code)
	}
	for _, e := range []*cause.Entry{alice, bob, alice} {
		path := "/by-" + e.ID
		if res, body, _ := send(t, c, url+path, "X-Sallyport-Capability: "+e.Capability); res.StatusCode != 200 {
			t.Error(body)
		}
		expect(path, "Bearer exchanged-for-the-inbound-token-of-"+e.ID)
	}
	if res, _, code := send(t, c, url+"/background", "X-Sallyport-Capability: "+flight.Background()); res.StatusCode != 403 || code != "credential_no_caller" {
		t.Errorf("%d %s", res.StatusCode, code)
	}
	refused := flight.Begin(request("refused"))
	if res, _, code := send(t, c, url+"/refused", "X-Sallyport-Capability: "+refused.Capability); res.StatusCode != 403 || code != "credential_refused" {
		t.Errorf("%d %s", res.StatusCode, code)
	}
	own := "http://own.example:" + billing.port
	if res, body, _ := send(t, c, own+"/own", "X-Sallyport-Capability: "+alice.Capability); res.StatusCode != 200 {
		t.Error(body)
	}
	expect("/own", "Bearer the-inbound-token-of-alice")
	if res, _, code := send(t, c, own+"/own-of-bob", "X-Sallyport-Capability: "+bob.Capability); res.StatusCode != 403 || code != "credential_not_covered" {
		t.Errorf("%d %s", res.StatusCode, code)
	}
	mu.Lock()
	if asked["the-inbound-token-of-alice"] != 1 || asked["the-inbound-token-of-bob"] != 1 {
		t.Errorf("asked %v", asked)
	}
	mu.Unlock()

	rules.Resolvers = []string{s.dns.Addr}
	if err := s.proxy.Swap(rules); err != nil {
		t.Fatal(err)
	}
	send(t, c, url+"/kept", "X-Sallyport-Capability: "+alice.Capability)
	mu.Lock()
	if asked["the-inbound-token-of-alice"] != 1 {
		t.Error("what was obtained does not outlive a reload")
	}
	mu.Unlock()

	// One that loses its standing while the beginning of its body is awaited.
	dave := flight.Begin(request("dave"))
	slow := s.raw("POST " + url + "/late HTTP/1.1\r\nHost: x.example\r\nContent-Length: 2\r\nX-Sallyport-Capability: " + dave.Capability + "\r\n\r\na")
	for s.proxy.inFlight.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	flight.Sweep(func(r *cause.Request) *cause.Lost {
		if r.ID == "dave" {
			return &cause.Lost{Code: "revoked"}
		}
		return nil
	})
	io.WriteString(slow, "b")
	if res, p := slow.response(); res.StatusCode != 403 || p.Code != "standing_lost" {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
	mu.Lock()
	if asked["the-inbound-token-of-dave"] != 0 {
		t.Error("a token was exchanged that is revoked")
	}
	mu.Unlock()

	as.Close()
	carol := flight.Begin(request("carol"))
	if res, _, code := send(t, c, url+"/carol", "X-Sallyport-Capability: "+carol.Capability); res.StatusCode != 503 || code != "credential_unavailable" {
		t.Errorf("%d %s", res.StatusCode, code)
	}
	for _, path := range []string{"/both", "/background", "/refused", "/own-of-bob", "/carol"} {
		if got, ok := raw.Load(path); ok {
			t.Errorf("%s reached the destination with %q", path, got)
		}
	}
	if text := s.audit.String() + s.log.String(); strings.Contains(text, "the-inbound-token") || strings.Contains(text, "exchanged-for") {
		t.Error("a token is in a record or a log")
	}
	for _, e := range []*cause.Entry{alice, bob, refused, carol} {
		e.Done()
	}
}

func TestCredentialIsWrong(t *testing.T) {
	for what, d := range map[string]Destination{
		"cannot be seen": {Name: "a", For: anyone(), Hosts: []string{"a.example:443"}, Credential: credential.Config{Kind: credential.File, Path: secret(t, "a secret")}},
		"no audience":    {Name: "a", For: anyone(), Hosts: []string{"a.example:443"}, Originate: true, Credential: credential.Config{Kind: credential.Forward}},
		"no path":        {Name: "a", For: anyone(), Hosts: []string{"a.example:80"}, Protocol: "http", Credential: credential.Config{Kind: credential.File}},
	} {
		p := &Proxy{}
		made, err := p.compile(Rules{Destinations: []Destination{d}})
		if err == nil {
			err = p.sourcesFor(made, nil)
		}
		if err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "credential") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestCapabilitiesAndCredentialsInParallel has many callers at once over kept connections: each is the one that it is.
func TestCapabilitiesAndCredentialsInParallel(t *testing.T) {
	var got sync.Map
	echo := serve(t, nil, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			got.Store(request.URL.Path, request.Header.Get("Authorization"))
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(request.Header.Get("Authorization")), request.Header.Get("Authorization"))
		}
	})
	flight := cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "own", For: policy.For{Routes: []string{"r"}}, Hosts: []string{host("own.example", echo.port)}, Protocol: "http",
			Credential: credential.Config{Kind: credential.Forward, Audience: "https://own.example"}},
	}}, func(c *Config) { c.Flight = flight })
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			c := s.raw("")
			for i := range 20 {
				name := fmt.Sprintf("%d-%d", worker, i)
				token := fmt.Sprintf("token-%x", sha256.Sum256([]byte(name)))
				r := inbound(name, "r", name)
				r.Caller.Claims = map[string]any{"aud": "https://own.example"}
				r.Token = bearer.NewToken(token)
				e := flight.Begin(r)
				res, body, code := send(t, c, "http://own.example:"+echo.port+"/"+name, "X-Sallyport-Capability: "+e.Capability)
				if res.StatusCode != 200 || strings.Contains(body, token) || len(body) != len("Bearer "+token) {
					t.Errorf("%d %s %q", res.StatusCode, code, body)
				}
				if sent, _ := got.Load("/" + name); sent != "Bearer "+token {
					t.Errorf("%s was sent as %v", name, sent)
				}
				e.Done()
			}
		})
	}
	wg.Wait()
	time.Sleep(10 * time.Millisecond)
	decisions, _ := s.audit.entries(t)
	for _, d := range decisions {
		if d.Detail["level"] != "capability" || fmt.Sprint(d.Detail["requests"]) != "["+d.Subject+"]" {
			t.Errorf("%+v", d)
		}
	}
}

// TestAssertionIsForOneRequest holds that what is stated of a caller is of the request in hand: one token in flight twice is
// one caller, and two transactions.
func TestAssertionIsForOneRequest(t *testing.T) {
	var raw sync.Map
	next := serve(t, nil, func(c net.Conn) {
		request, err := http.ReadRequest(bufio.NewReader(c))
		if err == nil {
			raw.Store(request.URL.Path, strings.Join(request.Header["Txn-Token"], "|"))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	})
	flight := cause.NewFlight()
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "next", For: anyone(), Hosts: []string{host("next.example", next.port)}, Protocol: "http",
			Credential: credential.Config{Kind: credential.Assertion, Audience: "billing", Scopes: []string{"a"}}},
	}}, func(c *Config) {
		c.Flight = flight
		c.Sign = func(c credential.Cause, audience string, scopes []string) (string, error) {
			return fmt.Sprintf("%s.%s.%s.%s.%s", c.Caller.Subject, c.Route, c.RequestID, audience, scopes[0]), nil
		}
	})
	a := flight.Begin(inbound("A", "r", "alice", "a"))
	c, url := s.raw(""), "http://next.example:"+next.port
	expect := func(path, want string) {
		t.Helper()
		if got, _ := raw.Load(path); got != want {
			t.Errorf("%s: %v, want %q", path, got, want)
		}
	}
	send(t, c, url+"/alone", "Txn-Token: of-the-service")
	expect("/alone", "alice.r.A.billing.a")
	b := flight.Begin(inbound("B", "r", "alice", "a"))
	if res, _, code := send(t, c, url+"/two"); res.StatusCode != 403 || code != "cause_ambiguous" {
		t.Errorf("%d %s", res.StatusCode, code)
	}
	send(t, c, url+"/b", "X-Sallyport-Capability: "+b.Capability)
	expect("/b", "alice.r.B.billing.a")
	send(t, c, url+"/a", "X-Sallyport-Capability: "+a.Capability)
	expect("/a", "alice.r.A.billing.a")
	a.Done()
	b.Done()
}

// TestSecretIsNotInWhatWentWrong holds that an answer which is none does not carry the credential back in the words of
// the parser, to the service or into a log.
func TestSecretIsNotInWhatWentWrong(t *testing.T) {
	const key = "sk-live-4f9a1c77e2b84d60"
	for _, answer := range []string{"Bearer %s\r\n\r\n", "HTTP/1.1 200 OK\r\nBearer %s\r\n\r\n", "HTTP/1.1 2%s OK\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n"} {
		s, _, h := web(t, func(c *Config) {
			c.Rules.Destinations[0].Credential = credential.Config{Kind: credential.File, Path: secret(t, key)}
		}, answering(fmt.Sprintf(answer, key)))
		_, body, code := send(t, s.raw(""), "http://"+h+"/")
		if code != "bad_answer" || strings.Contains(body, key) {
			t.Errorf("%q: %s", answer, body)
		}
		if err := s.stop(); err != nil || strings.Contains(s.audit.String()+s.log.String(), key) {
			t.Errorf("%q: %v, or the secret is in a record or a log: %s", answer, err, body)
		}
	}
}

// TestSecretIsNotAskedForInPieces holds that a service cannot have an answer that repeats the credential cut where no piece
// is long enough to be known.
func TestSecretIsNotAskedForInPieces(t *testing.T) {
	const key = "sk-live-4f9a1c77e2b84d60"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echo := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "echo.txt", time.Time{}, strings.NewReader(r.Header.Get("Authorization")))
	}))
	echo.Listener = l
	echo.Start()
	defer echo.Close()
	h := host("echo.example", fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "echo", For: anyone(), Hosts: []string{h}, Protocol: "http", Credential: credential.Config{Kind: credential.File, Path: secret(t, key)}},
	}}, nil)
	c := s.raw("")
	for _, headers := range [][]string{{"Range: bytes=7-16"}, {"Range: bytes=0-18,19-40"}, {"Range: bytes=-12", "If-Range: \"x\""}} {
		res, body, _ := send(t, c, "http://"+h+"/", headers...)
		if res.StatusCode != 200 || strings.Contains(body, key[:6]) || strings.Contains(body, key[len(key)-6:]) {
			t.Errorf("%q: %s %q", headers, res.Status, body)
		}
	}
}
