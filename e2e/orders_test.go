package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.yaml.in/yaml/v4"
)

const (
	ordersDir      = "../examples/nestjs"
	ordersAudience = "https://orders.e2e.test"
	otherAudience  = "https://payroll.e2e.test"
)

// ordersServer is an authorization server that knows the orders service, another service, and these clients: clerk may read
// and write, manager has the role of an administrator too, hasty gets tokens that live for a second.
func ordersServer(t testing.TB) *authServer {
	t.Helper()
	scopes := []string{"orders:read", "orders:write", "orders:admin"}
	return startAuthServer(t,
		[]resource{{ordersAudience, "ES256", scopes}, {otherAudience, "RS256", scopes}},
		client{ID: "clerk"},
		client{ID: "manager", Claims: map[string]any{"roles": []string{"orders-admin"}}},
		client{ID: "hasty", Lifetime: 1},
	)
}

// orders is how the example service starts behind its own configuration, with this authorization server as its issuer.
func orders(t testing.TB, as *authServer, adapter string) launch {
	t.Helper()
	needNode(t, ordersDir)
	if _, err := os.Stat(filepath.Join(ordersDir, "dist", "main.js")); err != nil {
		unavailable(t, "the example service is not built: run `npm ci && npm run build` in "+ordersDir)
	}
	if err := readAll(filepath.Join(ordersDir, "dist"), filepath.Join(ordersDir, "invoices")); err != nil {
		t.Fatal(err)
	}
	dir := enterable(t, ordersDir)
	text, err := os.ReadFile(filepath.Join(dir, "sallyport.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var settings setting
	if err := yaml.Unmarshal(text, &settings); err != nil {
		t.Fatal(err)
	}
	settings = undate(settings).(setting)
	// Its files lie elsewhere than the configuration of a test, which has ports and keys of its own.
	read, ok := settings["sandbox"].(setting)["read"].([]any)
	if !ok {
		t.Fatal("the example's configuration has no sandbox.read")
	}
	for i := range read {
		read[i] = filepath.Join(dir, read[i].(string))
	}
	return launch{
		settings: merge(settings, setting{
			"ingress": setting{"issuers": []setting{{
				"issuer": as.Issuer, "audience": []string{ordersAudience}, "keys": "discovery",
				"claims": setting{"required": []string{"sub", "jti"}}, "leeway": "100ms",
			}}},
			"sandbox": setting{"listen": nil, "env": setting{"set": setting{"SALLYPORT_JWKS_FILE": nil}}},
		}),
		folder:  dir,
		command: []string{"node", "dist/main.js"},
		env:     []string{"ADAPTER=" + adapter},
	}
}

// undate writes the dates of a configuration as the file has them: YAML reads them as instants.
func undate(v any) any {
	switch v := v.(type) {
	case time.Time:
		return v.Format(time.DateOnly)
	case setting:
		for name := range v {
			v[name] = undate(v[name])
		}
	case []any:
		for i := range v {
			v[i] = undate(v[i])
		}
	}
	return v
}

// TestOrders walks through the example service, on both of NestJS's adapters, with the tokens of a real authorization server.
func TestOrders(t *testing.T) {
	t.Parallel()
	as := ordersServer(t)
	for _, adapter := range []string{"express", "fastify"} {
		t.Run(adapter, func(t *testing.T) {
			t.Parallel()
			p := startProduct(t, orders(t, as, adapter))
			t.Run("tokens", func(t *testing.T) { testTokens(t, p, as) })
			t.Run("requests", func(t *testing.T) { testRequests(t, p, as) })
			t.Run("websocket", func(t *testing.T) { testWebSocket(t, p, as) })
			t.Run("events", func(t *testing.T) { testEvents(t, p, as) })
			t.Run("walls", func(t *testing.T) { testWalls(t, p, as) })
			p.signal(t, os.Interrupt)
			if code := p.exit(t, 30*time.Second); code != 0 {
				t.Errorf("exit code %d", code)
			}
			p.complete(t)
		})
	}
}

const newOrder = `{"customer":"Ada","items":[{"article":"TEA-100","quantity":2}]}`

// testTokens sends good and bad tokens. The bad ones must not reach the service: nothing it holds changes, and the record is
// a denial with the reason.
func testTokens(t *testing.T, p *product, as *authServer) {
	clerk := as.token(t, "clerk", ordersAudience, "orders:read", "orders:write")
	expired := as.token(t, "hasty", ordersAudience, "orders:read", "orders:write")
	time.Sleep(1500 * time.Millisecond) // its second, and the leeway
	stranger := ordersServer(t)
	count := func() int {
		t.Helper()
		var list []any
		a := p.fetch(t, http.MethodGet, "/orders", clerk, nil)
		if err := json.Unmarshal(a.body, &list); err != nil || a.status != 200 {
			t.Fatalf("GET /orders: %d, %v: %s", a.status, err, a.body)
		}
		return len(list)
	}
	before := count()
	for _, tt := range []struct {
		name, token string
		status      int
	}{
		{"none", "", 401},
		{"not a token", "let-me-in", 401},
		{"unsigned", unsigned(t, clerk), 401},
		{"expired", expired, 401},
		{"expiry put off", altered(t, expired, "exp", time.Now().Add(time.Hour).Unix()), 401},
		{"a scope more", altered(t, as.token(t, "clerk", ordersAudience, "orders:read"), "scope", "orders:read orders:write"), 401},
		{"another audience", as.token(t, "clerk", otherAudience, "orders:write"), 401},
		{"another authorization server", stranger.token(t, "clerk", ordersAudience, "orders:write"), 401},
		{"the issuer's name, another's key", altered(t, stranger.token(t, "clerk", ordersAudience, "orders:write"), "iss", as.Issuer), 401},
		{"without the scope", as.token(t, "clerk", ordersAudience, "orders:read"), 403},
	} {
		a := p.fetch(t, http.MethodPost, "/orders", tt.token, strings.NewReader(newOrder), "Content-Type", "application/json")
		if a.status != tt.status {
			t.Errorf("%s: status %d, want %d (%s)", tt.name, a.status, tt.status, a.code())
		}
		if challenge := a.header.Get("WWW-Authenticate"); !strings.HasPrefix(challenge, "Bearer ") {
			t.Errorf("%s: challenge %q", tt.name, challenge)
		}
		e := p.entry(t, a.id())
		if e.decision.allowed() || e.decision.Code != a.code() {
			t.Errorf("%s: the answer's code is %s, the record's %+v", tt.name, a.code(), e.decision)
		}
	}
	if after := count(); after != before {
		t.Errorf("%d orders before the bad tokens, %d after", before, after)
	}
	a := p.fetch(t, http.MethodPost, "/orders", clerk, strings.NewReader(newOrder), "Content-Type", "application/json")
	if a.status != http.StatusCreated || !bytes.Contains(a.body, []byte(`"placedBy":"clerk"`)) {
		t.Errorf("a good order: %d %s", a.status, a.body)
	}
	if after := count(); after != before+1 {
		t.Errorf("%d orders before a good one, %d after", before, after)
	}
}

// testRequests uses the service as its callers do.
func testRequests(t *testing.T, p *product, as *authServer) {
	clerk := as.token(t, "clerk", ordersAudience, "orders:read", "orders:write")
	manager := as.token(t, "manager", ordersAudience, "orders:read", "orders:write", "orders:admin")
	noRole := as.token(t, "clerk", ordersAudience, "orders:admin")
	for _, tt := range []struct {
		method, path, token string
		status              int
	}{
		{"GET", "/health", "", 200},
		{"GET", "/orders/o-1001", clerk, 200},
		{"HEAD", "/orders/o-1001", clerk, 200},
		{"GET", "/orders/o-9", clerk, 404},
		{"GET", "/orders?status=shipped", clerk, 200},
		{"DELETE", "/orders/o-1002", clerk, 403},
		{"DELETE", "/orders/o-1002", noRole, 403}, // the scope, and not the role
		{"DELETE", "/orders/o-1002", manager, 204},
		{"DELETE", "/orders/o-1002", manager, 404},
		{"GET", "/invoices/2026-0001.txt", clerk, 200},
		{"GET", "/invoices/2026-0001.txt", "", 401},
		{"GET", "/no/such/route", clerk, 404},
		{"GET", "/metrics", clerk, 404},
		{"GET", "/.well-known/jwks.json", clerk, 404},
		{"GET", "/ORDERS", clerk, 404},
	} {
		a := p.fetch(t, tt.method, tt.path, tt.token, nil)
		if a.status != tt.status {
			t.Errorf("%s %s: status %d, want %d: %.200s", tt.method, tt.path, a.status, tt.status, a.body)
		}
	}

	a := p.fetch(t, http.MethodGet, "/invoices/2026-0001.txt", clerk, nil)
	file, err := os.ReadFile(filepath.Join(ordersDir, "invoices", "2026-0001.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.body, file) {
		t.Errorf("downloaded %q, the file is %q", a.body, file)
	}

	upload := make([]byte, 5<<20)
	if _, err := rand.Read(upload); err != nil {
		t.Fatal(err)
	}
	a = p.fetch(t, http.MethodPost, "/uploads", clerk, bytes.NewReader(upload), "Content-Type", "application/octet-stream")
	sum := sha256.Sum256(upload)
	if a.status != http.StatusCreated || !bytes.Contains(a.body, []byte(hex.EncodeToString(sum[:]))) {
		t.Errorf("upload: %d %s", a.status, a.body)
	}
}

// testWebSocket opens one with a good token, sees an order arrive on it, and is refused without.
func testWebSocket(t *testing.T, p *product, as *authServer) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	clerk := as.token(t, "clerk", ordersAudience, "orders:read", "orders:write")
	open := func(path, token string) (*websocket.Conn, int) {
		t.Helper()
		options := &websocket.DialOptions{HTTPHeader: http.Header{}}
		if token != "" {
			options.HTTPHeader.Set("Authorization", "Bearer "+token)
		}
		c, resp, err := websocket.Dial(ctx, p.url+path, options)
		if resp == nil {
			t.Fatalf("open %s: %v", path, err)
		}
		return c, resp.StatusCode
	}
	for _, tt := range []struct {
		path, token string
		status      int
	}{
		{"/ws", "", 401},
		{"/ws", unsigned(t, clerk), 401},
		{"/ws", as.token(t, "clerk", ordersAudience, "orders:write"), 403},
		{"/x/../ws", clerk, 400},
		{"/orders", clerk, 400}, // a route without upgrades
		{"/ws/", clerk, 400},
	} {
		c, status := open(tt.path, tt.token)
		if c != nil || status/100 != 4 {
			t.Errorf("open %s: status %d", tt.path, status)
		}
	}

	c, _ := open("/ws", clerk)
	if c == nil {
		t.Fatal("a good token opens no WebSocket")
	}
	defer c.CloseNow()
	if err := c.Write(ctx, websocket.MessageText, []byte(`{"event":"count"}`)); err != nil {
		t.Fatal(err)
	}
	if _, message, err := c.Read(ctx); err != nil || !bytes.Contains(message, []byte(`"event":"count"`)) {
		t.Errorf("count: %s, %v", message, err)
	}
	if a := p.fetch(t, http.MethodPost, "/orders", clerk, strings.NewReader(newOrder), "Content-Type", "application/json"); a.status != 201 {
		t.Fatalf("order: %d %s", a.status, a.body)
	}
	if _, message, err := c.Read(ctx); err != nil || !bytes.Contains(message, []byte(`"event":"created"`)) {
		t.Errorf("event: %s, %v", message, err)
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("close: %v", err)
	}
}

// testEvents reads server-sent events as they are sent.
func testEvents(t *testing.T, p *product, as *authServer) {
	clerk := as.token(t, "clerk", ordersAudience, "orders:read", "orders:write")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/orders/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+clerk)
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		t.Fatalf("%s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	if a := p.fetch(t, http.MethodPost, "/orders", clerk, strings.NewReader(newOrder), "Content-Type", "application/json"); a.status != 201 {
		t.Fatalf("order: %d %s", a.status, a.body)
	}
	for s := bufio.NewScanner(resp.Body); ; {
		if !s.Scan() {
			t.Fatalf("the stream ended without the event: %v", s.Err())
		}
		if strings.Contains(s.Text(), "event: created") {
			break
		}
	}
}

// testWalls reads a file of the host through a handler that is careless on purpose, and calls the service's port from
// outside loopback.
func testWalls(t *testing.T, p *product, as *authServer) {
	clerk := as.token(t, "clerk", ordersAudience, "orders:read")
	for _, file := range []string{"/etc/shadow", filepath.Join(p.dir, "var", "keys"), p.audit, p.config} {
		a := p.fetch(t, http.MethodGet, "/invoices/export?file="+file, clerk, nil)
		if a.status == 200 || bytes.Contains(a.body, []byte("root:")) {
			t.Errorf("%s: %d, %d bytes came out", file, a.status, len(a.body))
		}
		if e := p.entry(t, a.id()); !e.decision.allowed() {
			t.Errorf("%s: the walls were not asked: %+v", file, e.decision)
		}
	}
	inside := filepath.Join(filepath.Dir(p.cmd.Dir+"/"), "invoices", "2026-0002.txt")
	if a := p.fetch(t, http.MethodGet, "/invoices/export?file="+inside, clerk, nil); a.status != 200 {
		t.Errorf("the handler that the walls stop cannot read the service's own file either: %d", a.status)
	}
	for _, addr := range outside(t) {
		if dials(addr + ":" + p.port) {
			t.Errorf("the service answers at %s", addr)
		}
	}
}
