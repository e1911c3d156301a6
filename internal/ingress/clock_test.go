package ingress

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// A clock that steps, either way, is believed at once: nothing that was decided before outlives it.
func TestClockSteps(t *testing.T) {
	begin := time.Now().Truncate(time.Second)
	clock := sallytest.NewClock(begin)
	s := open(t, func(s *stage) {
		keys := filepath.Join(t.TempDir(), "jwks.json")
		if err := os.WriteFile(keys, s.issuer.JWKS(), 0o600); err != nil {
			t.Fatal(err)
		}
		verifier, err := bearer.NewVerifier([]bearer.Issuer{{
			Issuer: s.issuer.URL, Audience: []string{sallytest.Audience}, Keys: bearer.Keys{File: keys},
		}}, bearer.Options{Now: clock.Now, Remember: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(verifier.Close)
		routes := append(testRoutes(), policy.Route{
			Name: "brief", Match: "GET /brief", Public: &policy.Public{Reason: "test", Owner: "tests", Expires: begin.Add(time.Minute)},
		})
		s.config.Now, s.config.Rules.Verifier = clock.Now, verifier
		if s.config.Rules.Policy, err = policy.New(routes); err != nil {
			t.Fatal(err)
		}
	})
	token := bearerHeader(s.issuer.Token(map[string]any{
		"iat": begin.Unix(), "exp": begin.Add(5 * time.Minute).Unix(),
	}))
	p := s.dial() // one connection: what it was allowed before counts for nothing
	for n, c := range []struct {
		step         time.Duration
		token, brief int
	}{
		{0, 200, 200}, {59 * time.Second, 200, 200}, {time.Minute, 200, 403}, {time.Hour, 401, 403}, {0, 200, 200}, {-time.Hour, 401, 200}, {time.Second, 200, 200},
	} {
		clock.Advance(begin.Add(c.step).Sub(clock.Now()))
		p.send(get("/events", token))
		if a := p.read("GET"); a.StatusCode != c.token {
			t.Errorf("at %s with a token: %d %s", c.step, a.StatusCode, a.code)
		}
		p.send(get("/brief"))
		if a := p.read("GET"); a.StatusCode != c.brief {
			t.Errorf("at %s on a public route: %d %s", c.step, a.StatusCode, a.code)
		}
		s.settled(2*n + 2)
	}
}
