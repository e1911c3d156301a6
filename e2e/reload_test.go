package e2e

import (
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestServe runs the gate alone: the service may come and go, and the configuration may change, for better only.
func TestServe(t *testing.T) {
	t.Parallel()
	as := misfitServer(t)
	l := misfit(t, as, "honest", nil)
	l.command = nil
	p := startProduct(t, l)
	token := as.token(t, "tester", misfitAudience, "use")

	a := p.fetch(t, http.MethodGet, "/echo", token, nil)
	if a.status != http.StatusBadGateway {
		t.Errorf("without a service: %d %s", a.status, a.code())
	}
	if e := p.entry(t, a.id()); e.outcome == nil || e.outcome.Status != http.StatusBadGateway || e.outcome.Error == "" {
		t.Errorf("without a service: outcome %+v", e.outcome)
	}
	if status, body := p.admin(t, http.MethodGet, "/readyz"); status != 200 {
		t.Errorf("readiness is not the service's: %d %s", status, body)
	}

	good, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	// hangup writes a configuration and asks for it by signal; the program says how that went.
	hangup := func(text, says string) {
		t.Helper()
		if err := os.WriteFile(p.config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		before := strings.Count(p.output.String(), says)
		p.signal(t, syscall.SIGHUP)
		eventually(t, 30*time.Second, says, func() bool { return strings.Count(p.output.String(), says) > before })
	}
	status := func(path, token string) int {
		t.Helper()
		return p.fetch(t, http.MethodGet, path, token, nil).status
	}
	const stays = "the old configuration stays"
	for name, text := range map[string]string{
		"empty":           "",
		"half written":    string(good[:len(good)/2]),
		"unknown key":     strings.Replace(string(good), "routes:", "rotues:", 1),
		"second document": string(good) + "---\nversion: 1\n",
		"another port":    strings.Replace(string(good), "listen: 127.0.0.1:0", "listen: 127.0.0.1:1", 1),
		"dead issuer":     strings.Replace(string(good), "issuer: "+as.Issuer, "issuer: http://127.0.0.1:1", 1),
	} {
		if text == string(good) {
			t.Fatalf("%s: the file is the good one", name)
		}
		hangup(text, stays)
		if got := status("/echo", token); got != http.StatusBadGateway {
			t.Errorf("after a reload with a file that is %s, a good request gets %d", name, got)
		}
		if got := status("/echo", ""); got != http.StatusUnauthorized {
			t.Errorf("after a reload with a file that is %s, a request without a token gets %d", name, got)
		}
	}
	hangup(strings.ReplaceAll(string(good), "- use", "- other"), "configuration reloaded")
	if got := status("/echo", token); got != http.StatusForbidden {
		t.Errorf("after the scope was changed, the old one gets %d", got)
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t, 20*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	p.complete(t)
}

// TestBadStart holds that what cannot work does not start, with a message that says where to look.
func TestBadStart(t *testing.T) {
	t.Parallel()
	as := misfitServer(t)
	somebody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { somebody.Close() })
	taken := somebody.Addr().String()
	for _, tt := range []struct {
		name string
		over setting
		says string
	}{
		{"no audience", setting{"ingress": setting{"issuers": []setting{{"issuer": as.Issuer, "keys": "discovery"}}}}, "audience"},
		{"an unknown key", setting{"ingress": setting{"routse": []string{}}}, "sallyport.yaml:"},
		{"a route that asks for nothing", setting{"ingress": setting{"routes": []setting{{"name": "a", "match": "GET /a"}}}}, "scopes"},
		{"everybody is a trusted proxy", setting{"ingress": setting{"trusted_proxies": []string{"0.0.0.0/0"}}}, "trusted_proxies"},
		{"the admin listener for everybody", setting{"admin": setting{"listen": "0.0.0.0:9000"}}, "admin.listen"},
		{"a port that is taken", setting{"ingress": setting{"listen": taken}}, "listen on " + taken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := misfit(t, as, "honest", nil)
			l.over = tt.over
			p := execProduct(t, l)
			if code := p.exit(t, 30*time.Second); code != 1 {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(p.output.String(), tt.says) {
				t.Errorf("it does not say %q:\n%s", tt.says, p.output.String())
			}
			if dials("127.0.0.1:" + p.port) {
				t.Error("the service was started")
			}
		})
	}
}
