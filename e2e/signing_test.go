package e2e

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/keys"
)

// TestSigningKeys rotates the gate's own keys while requests flow to a real NestJS service, which verifies what the gate signs
// with each: no request fails. Then the key that signs is withdrawn as one that has leaked is, and whatever it has signed, or
// will, is refused by the service itself.
func TestSigningKeys(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("a key signs once it has been published for a minute, and that is waited for")
	}
	as := ordersServer(t)
	p := startProduct(t, orders(t, as, "express"))
	token := as.token(t, "clerk", ordersAudience, "orders:read")
	thief := newThief(t, p)
	rotate := func(flags ...string) keys.Info {
		t.Helper()
		var made keys.Info
		out, code := sallyport(t, append([]string{"keys", "rotate", "-c", p.config, "--format", "json"}, flags...)...)
		if err := json.Unmarshal([]byte(out), &made); err != nil || code != 0 {
			t.Fatalf("exit code %d, %v: %s", code, err, out)
		}
		return made
	}

	first := thief.steal(t)
	if status := thief.call(t, first); status != http.StatusOK {
		t.Fatalf("what the key that signs has signed: %d: the refusals below would show nothing", status)
	}
	f := startFlow(t, p, func() string { return token })
	f.more(t, 20)
	made := rotate()
	if made.Signing || made.ID == first.kid {
		t.Errorf("the next key signs already: %+v", made)
	}
	f.more(t, 20)
	// It signs when it has been published for a minute.
	time.Sleep(time.Until(made.Activates))
	var second *stolen
	eventually(t, 15*time.Second, "the next key signs", func() bool {
		second = thief.steal(t)
		return second.kid == made.ID
	})
	f.more(t, 50)
	for name, s := range map[string]*stolen{"new": second, "old": first} {
		if status := thief.call(t, s); status != http.StatusOK {
			t.Errorf("what the %s key signs: %d", name, status)
		}
	}
	if failed := f.stop(); len(failed) > 0 {
		t.Errorf("%d of %d requests failed:\n%s", len(failed), f.served.Load(), sample(failed, 10))
	}
	t.Logf("%d requests in %s", f.served.Load(), time.Since(p.listening).Round(time.Second))

	rotate("--withdraw", second.kid)
	if third := thief.steal(t); third.kid == second.kid {
		t.Error("the withdrawn key signs still")
	}
	eventually(t, 30*time.Second, "the service refuses what the withdrawn key signs", func() bool { return thief.call(t, second) == http.StatusUnauthorized })
	eventually(t, 30*time.Second, "the service takes what is signed by another", func() bool {
		return p.fetch(t, http.MethodGet, "/orders", token, nil).status == http.StatusOK
	})
	if status := thief.call(t, second); status != http.StatusUnauthorized {
		t.Errorf("what the withdrawn key signs, later: %d", status)
	}
	if status := thief.call(t, first); status != http.StatusOK {
		t.Errorf("what the key before it signs, which is published still: %d", status)
	}
	if !strings.Contains(p.book(t), `"code":"keys_rotated"`) {
		t.Error("the rotation is not on record")
	}
	p.complete(t)
	p.verified(t)
}

// thief reads the gate's signing keys, as nobody may, and calls the service where the gate calls it.
type thief struct {
	p      *product
	config keys.Config
}

func newThief(t *testing.T, p *product) *thief {
	return &thief{p: p, config: keys.Config{Path: filepath.Join(p.dir, "var", "keys")}}
}

// stolen is the key that signed when it was stolen.
type stolen struct {
	kid    string
	signer *identity.Signer
}

func (th *thief) steal(t *testing.T) *stolen {
	t.Helper()
	ring, err := keys.Open(th.config)
	if err != nil {
		t.Fatal(err)
	}
	list := ring.List()
	i := slices.IndexFunc(list, func(i keys.Info) bool { return i.Signing })
	if i < 0 {
		t.Fatal("no key signs")
	}
	key := ring.Signing()
	return &stolen{list[i].ID, &identity.Signer{Issuer: "sallyport", Audience: "orders", Key: func() identity.Key { return key }}}
}

// call asks the service as the gate would, and returns its status.
func (th *thief) call(t *testing.T, s *stolen) int {
	t.Helper()
	now := time.Now()
	signed, err := s.signer.Sign(identity.Caller{
		Issuer: "https://issuer.example", Subject: "clerk", Client: "clerk", TokenID: "stolen", Scopes: []string{"orders:read"}, IssuedAt: now, Expires: now.Add(time.Minute),
		Transaction: "t", Workloads: []string{"orders"},
	}, "list-orders", "r")
	if err != nil {
		t.Fatal(err)
	}
	direct := &product{url: "http://127.0.0.1:" + th.p.port}
	return direct.fetch(t, http.MethodGet, "/orders", signed, nil).status
}
