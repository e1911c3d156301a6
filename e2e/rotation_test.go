package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestRotation rotates the authorization server's keys while requests flow: no good request fails once the new key is
// published, and a withdrawn key stops.
func TestRotation(t *testing.T) {
	t.Parallel()
	as := ordersServer(t)
	p := startProduct(t, orders(t, as, "express"))
	scopes := []string{"orders:read"}

	var token atomic.Pointer[string]
	take := func() string {
		fresh := as.token(t, "clerk", ordersAudience, scopes...)
		token.Store(&fresh)
		return fresh
	}
	old := take()
	f := startFlow(t, p, func() string { return *token.Load() })

	// The server publishes a key ahead of its use, as servers do. Any token with a key that the gate does not know, good or
	// not, makes it look; without one it looks every five minutes.
	replaced := func() int { return strings.Count(p.output.String(), `"msg":"key set replaced"`) }
	learn := func() {
		t.Helper()
		sets := replaced()
		header, claims := parts(t, old)
		header["kid"] = fmt.Sprintf("nobody's, %d", sets)
		stranger := encode(t, header) + "." + encode(t, claims) + "." + strings.Split(old, ".")[2]
		if a := p.fetch(t, http.MethodGet, "/orders", stranger, nil); a.status != http.StatusUnauthorized {
			t.Errorf("a key that nobody published: %d", a.status)
		}
		eventually(t, 30*time.Second, "the gate has the new key set", func() bool { return replaced() > sets })
	}
	as.publish(t)
	learn()
	as.rotate(t)
	fresh := take()
	if a, b := kid(t, old), kid(t, fresh); a == b {
		t.Fatalf("both tokens are signed by %s", a)
	}
	f.more(t, 50)
	if a := p.fetch(t, http.MethodGet, "/orders", old, nil); a.status != 200 {
		t.Errorf("a token of the old key while that is published: %d %s", a.status, a.code())
	}

	as.retire(t)
	learn()
	if a := p.fetch(t, http.MethodGet, "/orders", old, nil); a.status != http.StatusUnauthorized {
		t.Errorf("a token of the withdrawn key: %d", a.status)
	} else if e := p.entry(t, a.id()); e.decision.allowed() || e.decision.Code != a.code() {
		t.Errorf("its record: %+v, the answer's code %s", e.decision, a.code())
	}
	f.more(t, 50)
	if failed := f.stop(); len(failed) > 0 {
		t.Errorf("%d good requests failed:\n%s", len(failed), sample(failed, 10))
	}

	// A server that signs with a key at once: denied at first, and good within the time that an unknown key may take.
	as.rotate(t)
	fresh = take()
	eventually(t, 30*time.Second, "a key that was not published before is accepted", func() bool {
		return p.fetch(t, http.MethodGet, "/orders", fresh, nil).status == 200
	})
	p.complete(t)
}

func kid(t testing.TB, token string) any {
	header, _ := parts(t, token)
	return header["kid"]
}

// flow is good requests, one after the other, on some kept connections.
type flow struct {
	done   chan struct{}
	group  sync.WaitGroup
	served atomic.Int64
	mu     sync.Mutex
	failed []string
}

func startFlow(t testing.TB, p *product, token func() string) *flow {
	f := &flow{done: make(chan struct{})}
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 4}}
	t.Cleanup(c.CloseIdleConnections)
	for range 3 {
		f.group.Go(func() {
			for {
				select {
				case <-f.done:
					return
				case <-time.After(5 * time.Millisecond):
				}
				if err := get(c, p.url+"/orders", token()); err != nil {
					f.mu.Lock()
					f.failed = append(f.failed, err.Error())
					f.mu.Unlock()
				}
				f.served.Add(1)
			}
		})
	}
	t.Cleanup(func() { f.stop() })
	return f
}

func get(c *http.Client, url, token string) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s, %s", resp.Status, resp.Header.Get("WWW-Authenticate"))
	}
	return nil
}

// more waits for so many more requests.
func (f *flow) more(t testing.TB, n int64) {
	t.Helper()
	until := f.served.Load() + n
	eventually(t, 60*time.Second, "requests flow", func() bool { return f.served.Load() >= until })
}

// stop ends the flow and returns what failed.
func (f *flow) stop() []string {
	select {
	case <-f.done:
	default:
		close(f.done)
	}
	f.group.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}
