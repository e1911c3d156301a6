package ingress

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
)

// T01 to T47: every token of the shared vectors, sent to the gate. What the verifier refuses is a 401 with its reason, on
// record once, and nothing of it reaches the service; what it accepts is let in, again and again.
func TestTokenVectors(t *testing.T) { sendVectors(t, "../../testdata/vectors/tokens.json") }

// T48, and ID tokens: the same for each kind of issuer.
func TestKindVectors(t *testing.T) { sendVectors(t, "../../testdata/vectors/kinds.json") }

func sendVectors(t *testing.T, path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Now     time.Time
		Issuers []struct {
			Issuer      string
			Audience    []string
			Algorithms  []string
			TokenTypes  []string `json:"token_types"`
			MaxLifetime int      `json:"max_lifetime_seconds"`
			Leeway      int      `json:"leeway_seconds"`
			Required    []string
			Only        []string
			ScopeClaim  string `json:"scope_claim"`
			Kind        string
			BoundTo     string `json:"bound_to"`
			TrustDomain string `json:"trust_domain"`
			JWKS        json.RawMessage
		}
		Cases []struct {
			Name, Token, Code string
			Valid             bool
		}
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	clock := func() time.Time { return file.Now }
	var issuers []bearer.Issuer
	for _, i := range file.Issuers {
		keys := filepath.Join(t.TempDir(), "jwks.json")
		if err := os.WriteFile(keys, i.JWKS, 0o600); err != nil {
			t.Fatal(err)
		}
		issuers = append(issuers, bearer.Issuer{
			Issuer: i.Issuer, Audience: i.Audience, Algorithms: i.Algorithms, TokenTypes: i.TokenTypes,
			MaxLifetime: time.Duration(i.MaxLifetime) * time.Second, Leeway: time.Duration(i.Leeway) * time.Second,
			Required: i.Required, Only: i.Only, ScopeClaim: i.ScopeClaim, Keys: bearer.Keys{File: keys},
			Kind: i.Kind, BoundTo: i.BoundTo, TrustDomain: i.TrustDomain,
		})
	}
	verifier, err := bearer.NewVerifier(issuers, bearer.Options{Now: clock, Remember: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(verifier.Close)
	s := open(t, func(s *stage) {
		s.config.Rules.Verifier = verifier
		s.config.Now = clock
	})
	const uses = 3 // of a token that is accepted; the third one is remembered
	accepted := 0
	for _, c := range file.Cases {
		if c.Valid {
			accepted++ // below: the service is untouched until then
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			s := *s
			s.t = t
			status, code := 401, c.Code
			switch { // what is no token to HTTP is refused before
			case strings.Contains(c.Token, "\n"):
				status, code = 400, "bare_lf"
			case strings.Contains(c.Token, "\x00"):
				status, code = 400, "header_value"
			case c.Token == "", strings.ContainsAny(c.Token, " {"):
				status, code = 400, "malformed_authorization"
			}
			s.denied(get("/events", bearerHeader(c.Token)), status, code)
		})
	}
	for _, c := range file.Cases {
		if !c.Valid {
			continue
		}
		for range uses {
			if a, _ := s.ask(get("/events", bearerHeader(c.Token))); a.StatusCode != 200 {
				t.Errorf("%s: answered %d %s", c.Name, a.StatusCode, a.code)
			}
		}
	}
	s.settled(len(file.Cases) + (uses-1)*accepted)
	if n := s.service.Requests(); n != uses*accepted || n < 10 {
		t.Errorf("%d requests reached the service, want %d", n, uses*accepted)
	}
	if hits, _, _, _ := verifier.Remembered(); hits < uint64(accepted)-1 { // one lives by the leeway alone
		t.Errorf("%d hits, want one of each token that is accepted", hits)
	}
}
