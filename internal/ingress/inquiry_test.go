package ingress

import (
	"crypto/x509"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/limit"
)

func (s *stage) inquiry(target string, header ...string) Inquiry {
	q := Inquiry{
		Entry: EntryForwardAuth, Method: "GET", Target: target, Host: "api.example.com", Header: http.Header{},
		Source: netip.MustParseAddr("192.0.2.7"),
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		q.Header.Add(name, value)
	}
	return q
}

// An inquiry is answered as the request itself would be, is on record with where it came in, and its outcome says that it is
// not we who forward it.
func TestAsk(t *testing.T) {
	s := setStage(t, func(s *stage) { s.config.Upstream, s.config.AskOnly = nil, true; s.service = nil })
	q := s.inquiry("/orders/7?a=b", bearerHeader(s.token("orders:read")), "X-Forwarded-User: root", "Txn-Token: forged", "Accept: */*", "DPoP: x")
	v := s.gateway.Ask(t.Context(), q)
	if !v.Allowed || v.Code != "allowed" || v.Target != "/orders/7?a=b" {
		t.Fatalf("%+v", v)
	}
	if strings.Join(v.Remove, " ") != "Authorization Dpop X-Forwarded-User" {
		t.Errorf("to be removed: %q", v.Remove)
	}
	for name, want := range map[string]string{
		"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Host": "api.example.com", "X-Forwarded-Proto": "http", "X-Request-Id": v.ID,
	} {
		if got := v.Forward[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if a := v.Forward["Txn-Token"]; len(a) != 1 || strings.Count(a[0], ".") != 2 {
		t.Errorf("the assertion: %q", a)
	}
	if v.Header.Get("Cache-Control") != "no-store" || v.Header.Get("Vary") != "Authorization" {
		t.Errorf("into the answer: %v", v.Header)
	}
	decisions, outcomes := s.settled(1)
	if d := decisions[0]; d.ID != v.ID || d.Decision != "allow" || d.Source != "192.0.2.7" || d.Path != "/orders/7" {
		t.Errorf("recorded %+v", d)
	}
	if o := outcomes[0]; o.Status != 200 || o.Error != "" {
		t.Errorf("the outcome is %+v", o)
	}
	for _, want := range []string{`"entry":"forward_auth"`, `"detail":{"forwarded":false}`} {
		if !strings.Contains(s.audit.String(), want) {
			t.Errorf("%s is not in %s", want, s.audit)
		}
	}
	if s.gateway.inFlight.Load() != 0 {
		t.Error("it is still in flight")
	}
}

// Every denial of the line is one of an inquiry, with the answer that the proxy path gives.
func TestAskIsDenied(t *testing.T) {
	s := open(t, nil)
	token := s.token("orders:read")
	for name, c := range map[string]struct {
		target string
		header []string
		status int
		code   string
	}{
		"no token":      {"/orders/7", nil, 401, "missing_token"},
		"scope":         {"/admin", []string{bearerHeader(token)}, 403, "insufficient_scope"},
		"no route":      {"/nowhere", []string{bearerHeader(token)}, 404, "no_route"},
		"dot segment":   {"/public/../admin", nil, 400, "path_noncanonical"},
		"form":          {"orders/7", nil, 400, "target_form"},
		"spelling":      {"/orders/7", []string{"X_User: root"}, 400, "header_name"},
		"two tokens":    {"/orders/7", []string{bearerHeader(token), bearerHeader(token)}, 400, "multiple_credentials"},
		"a body":        {"/orders/7", []string{bearerHeader(token), "Content-Length: 99999999"}, 413, "body_too_large"},
		"both lengths":  {"/orders/7", []string{bearerHeader(token), "Content-Length: 1", "Transfer-Encoding: chunked"}, 400, "transfer_encoding"},
		"other upgrade": {"/orders/7", []string{bearerHeader(token), "Connection: upgrade", "Upgrade: websocket"}, 400, "upgrade_refused"},
	} {
		t.Run(name, func(t *testing.T) {
			v := s.gateway.Ask(t.Context(), s.inquiry(c.target, c.header...))
			if v.Allowed || v.Status != c.status || string(v.Code) != c.code {
				t.Errorf("%+v, want %d %s", v, c.status, c.code)
			}
			if !strings.Contains(string(v.Body), `"code":"`+c.code+`"`) || v.Header.Get("X-Request-Id") != v.ID {
				t.Errorf("the answer is %v %s", v.Header, v.Body)
			}
			if v.Forward != nil || v.Remove != nil || v.Header.Get("Connection") != "" {
				t.Errorf("%+v", v)
			}
			if c.status == 401 && v.Header.Get("Www-Authenticate") == "" {
				t.Errorf("the challenge: %v", v.Header)
			}
		})
	}
	s.service.Untouched(t)
}

// A fault is denied before anything is believed, the token least of all.
func TestAskWithFault(t *testing.T) {
	s := setStage(t, nil)
	q := s.inquiry("/orders/7", bearerHeader(s.token("orders:read")))
	q.Fault = &Fault{Code: AskerRefused, Reason: "who is that?"}
	if v := s.gateway.Ask(t.Context(), q); v.Allowed || v.Status != 403 || v.Code != AskerRefused {
		t.Errorf("%+v", v)
	}
	if d, _ := s.settled(1); d[0].Reason != "who is that?" || d[0].Subject != "" {
		t.Errorf("recorded %+v", d[0])
	}
}

// No record, no allow; no assertion, no allow; a panic is a denial.
func TestAskFailsClosed(t *testing.T) {
	s := setStage(t, nil)
	q := s.inquiry("/orders/7", bearerHeader(s.token("orders:read")))
	s.audit.fail(errors.New("the disk is full"))
	if v := s.gateway.Ask(t.Context(), q); v.Allowed || v.Status != 503 || v.Code != codeAudit || v.Forward != nil {
		t.Errorf("without a record: %+v", v)
	}
	s.audit.fail(nil)
	s = setStage(t, func(s *stage) { s.config.Rules.Assert.Lifetime = -time.Second })
	q = s.inquiry("/orders/7", bearerHeader(s.token("orders:read")))
	if v := s.gateway.Ask(t.Context(), q); v.Allowed || v.Status != 503 || v.Code != codeAssertion || v.Forward != nil {
		t.Errorf("without an assertion: %+v", v)
	}
	var broken atomic.Bool
	s = setStage(t, func(s *stage) {
		s.config.Now = func() time.Time {
			if broken.Load() {
				panic("no clock")
			}
			return time.Now()
		}
	})
	broken.Store(true)
	if v := s.gateway.Ask(t.Context(), s.inquiry("/orders/7")); v.Allowed {
		t.Errorf("after a panic: %+v", v)
	}
	if (Verdict{}).Allowed {
		t.Error("the zero verdict allows")
	}
}

// A certificate counts where whoever asks says that the client has shown it, and nowhere else.
func TestAskWithCertificate(t *testing.T) {
	s := setStage(t, nil)
	pair, thumbprint := clientCertificate(t)
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	token := s.issuer.Token(map[string]any{"scope": "orders:read", "cnf": map[string]any{"x5t#S256": thumbprint}})
	q := s.inquiry("/orders/7", bearerHeader(token))
	if v := s.gateway.Ask(t.Context(), q); v.Allowed || v.Code != codeCertificate {
		t.Errorf("without it: %+v", v)
	}
	q = s.inquiry("/orders/7", bearerHeader(token))
	q.TLS, q.Certificate = true, leaf
	if v := s.gateway.Ask(t.Context(), q); !v.Allowed || v.Forward.Get("X-Forwarded-Proto") != "https" {
		t.Errorf("with it: %+v", v)
	}
}

// Who asks counts nothing: limits are of the client that the proxy names, and of nobody whom it does not.
func TestAskIsLimited(t *testing.T) {
	s := setStage(t, func(s *stage) {
		s.config.Rules.RateLimits.Source = limit.Rate{Requests: 1, Per: time.Hour}
	})
	token := bearerHeader(s.token("orders:read"))
	if v := s.gateway.Ask(t.Context(), s.inquiry("/orders/7", token)); !v.Allowed {
		t.Fatalf("the first: %+v", v)
	}
	v := s.gateway.Ask(t.Context(), s.inquiry("/orders/7", token))
	if v.Allowed || v.Status != 429 || v.Code != codeRateLimited || v.Header.Get("Retry-After") == "" {
		t.Errorf("the second: %+v", v)
	}
	q := s.inquiry("/orders/7", token)
	q.Source = netip.MustParseAddr("192.0.2.8")
	if v := s.gateway.Ask(t.Context(), q); !v.Allowed {
		t.Errorf("another client's: %+v", v)
	}
}
