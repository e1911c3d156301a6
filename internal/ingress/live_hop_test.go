package ingress

import (
	"bufio"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/policy"
	"github.com/sallyport/sallyport/internal/state"
)

// A request that came by a hop is asked of, and ended, by the token that the first gate was sent, and by the hop's own key and
// rules; and lives as long as none of these ends.
func TestHopLosesItsStanding(t *testing.T) {
	for _, c := range []struct {
		name, code string
		happen     func(s *stage, n neighbour)
	}{
		{"R02 the first token's jti", "revoked", func(s *stage, _ neighbour) { s.revoke(state.Revocation{Issuer: firstIssuer, TokenID: "at-1"}) }},
		{"R02 the first token's session", "revoked", func(s *stage, _ neighbour) { s.revoke(state.Revocation{Issuer: firstIssuer, Session: "s-1"}) }},
		{"R02 the first token's client, as issued until then", "revoked", func(s *stage, _ neighbour) {
			s.revoke(state.Revocation{Issuer: firstIssuer, Client: "shop", Before: time.Now().Truncate(time.Second)})
		}},
		{"H23 (c) the hop's key", "key_withdrawn", func(_ *stage, n neighbour) { n.publish(t) }},
		{"H23 (d) the hop", "key_withdrawn", func(s *stage, _ neighbour) {
			rules := s.config.Rules
			rules.Hops = nil
			if err := s.gateway.Swap(rules); err != nil {
				t.Fatal(err)
			}
		}},
		{"H23 (d) what the hop may say", "route_removed", func(s *stage, _ neighbour) {
			rules := s.config.Rules
			hop := rules.Hops[0]
			hop.Scopes = []string{"orders:list"}
			rules.Hops = []Hop{hop}
			p, err := policy.New([]policy.Route{{Name: "events", Match: "GET /events", Scopes: []string{"orders:read"}}})
			if err != nil {
				t.Fatal(err)
			}
			rules.Policy = p
			if err := s.gateway.Swap(rules); err != nil {
				t.Fatal(err)
			}
		}},
		{"H23 (d) whose callers it may pass on", "route_removed", func(s *stage, _ neighbour) {
			rules := s.config.Rules
			hop := rules.Hops[0]
			hop.Callers = []string{"https://other.example.com"}
			rules.Hops = []Hop{hop}
			if err := s.gateway.Swap(rules); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			service, _ := lively(t)
			s, n := hopStage(t, func(s *stage) {
				s.config.Upstream, s.config.State = mustURL(t, service.URL), localState(t)
			})
			p := s.dial()
			token := n.next(t, n.caller("orders:read"))
			p.send(get("/events", token))
			res, err := http.ReadResponse(p.r, nil)
			if err != nil || res.StatusCode != 200 {
				t.Fatal(res, err)
			}
			body := bufio.NewReader(res.Body)
			for until := time.Now().Add(2 * sweepEvery); time.Now().Before(until); {
				if _, err := body.ReadString('\n'); err != nil {
					t.Fatalf("it ended by itself: %v", err)
				}
			}
			began := time.Now()
			c.happen(s, n)
			if _, err := io.ReadAll(body); err == nil {
				t.Error("the stream ended well")
			}
			// identity.KeysFile looks at a file every second at most
			if took := time.Since(began); took > 2*time.Second || c.code != "key_withdrawn" && took > time.Second {
				t.Errorf("it took %s", took)
			}
			if _, o := s.settled(1); o[0].Error != c.code {
				t.Errorf("outcome %+v", o[0])
			}
			if c.code == "revoked" {
				if a, _ := s.ask(get("/events", token)); a.StatusCode != 401 || a.code != "revoked" {
					t.Errorf("the next request: %d %s", a.StatusCode, a.code)
				}
			}
		})
	}
}

// P08: another gate's word is bound to nothing that a client can show here.
func TestHopOnABoundRoute(t *testing.T) {
	s, n := hopStage(t, func(s *stage) {
		p, err := policy.New(append(testRoutes(), policy.Route{Name: "bound", Match: "GET /bound", AnyCaller: true, Bound: true}))
		if err != nil {
			t.Fatal(err)
		}
		s.config.Rules.Policy = p
	})
	s.denied(get("/bound", n.next(t, n.caller("orders:read"))), 401, "binding_required")
}
