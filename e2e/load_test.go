package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestLoad mixes good and bad requests for half a minute, on kept and on fresh connections, with clients that break off,
// and then looks for what has leaked: goroutines and descriptors of the program, and tokens into any place where it writes.
// The exact figures are those of the program when it has come to rest before and after.
func TestLoad(t *testing.T) {
	t.Parallel()
	as := ordersServer(t)
	p := startProduct(t, orders(t, as, "express"))
	read := as.token(t, "clerk", ordersAudience, "orders:read")
	write := as.token(t, "clerk", ordersAudience, "orders:read", "orders:write")
	wrong := as.token(t, "clerk", otherAudience, "orders:read")
	tokens := map[string]string{"read": read, "write": write, "wrong": wrong, "forged": altered(t, read, "sub", "mallory")}

	mix := mixture(t, p, tokens)
	storm(t, p, mix, 500*time.Millisecond) // whatever is made once has been made after this
	goroutines, descriptors := p.rest(t)
	length := 30 * time.Second
	if testing.Short() {
		length = 3 * time.Second
	}
	counts := storm(t, p, mix, length)
	t.Logf("at rest before: %v goroutines, %d descriptors; in %v: %v", goroutines, descriptors, length, counts)
	for _, m := range mix {
		if counts[m.name] == 0 {
			t.Errorf("no request of the kind %q ended", m.name)
		}
	}
	// A few may come and go with the kernel's timing; a leak has one for each of thousands of requests.
	eventually(t, 30*time.Second, fmt.Sprintf("it rests at %v goroutines and %d descriptors again", goroutines, descriptors), func() bool {
		g, d := p.rest(t)
		return g <= goroutines+5 && d <= descriptors+5
	})
	p.complete(t)

	_, metrics := p.admin(t, http.MethodGet, "/metrics")
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t, 30*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	sinks := map[string]string{"log": p.output.String(), "metrics": metrics}
	err := filepath.WalkDir(p.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		sinks[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(sinks[p.audit], "/orders") {
		t.Error("the audit log holds none of the requests: that there is no token in it shows nothing")
	}
	for where, text := range sinks {
		for name, token := range tokens {
			segments := strings.Split(token, ".")
			if strings.Contains(text, segments[1]) || strings.Contains(text, segments[2]) {
				t.Errorf("%s holds the token %q, or a part of it", where, name)
			}
		}
	}
}

// rest returns the program's goroutines and descriptors once they have not changed for a while.
func (p *product) rest(t testing.TB) (goroutines float64, descriptors int) {
	t.Helper()
	for same := 0; same < 5; {
		time.Sleep(100 * time.Millisecond)
		g, d := p.metric(t, "go_goroutines"), p.descriptors(t)
		if g == goroutines && d == descriptors {
			same++
		} else {
			same = 0
		}
		goroutines, descriptors = g, d
	}
	return goroutines, descriptors
}

// ingredient is one kind of request of the load.
type ingredient struct {
	name string
	send func() error
}

// mixture is the kinds of requests. Each judges its own answer.
func mixture(t testing.TB, p *product, tokens map[string]string) []ingredient {
	kept := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	fresh := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	t.Cleanup(kept.CloseIdleConnections)
	kind := func(name string, c *http.Client, method, path, token, body string, want int) ingredient {
		return ingredient{name, func() error {
			req, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
			if err != nil {
				return err
			}
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+tokens[token])
				req.Header.Set("Referer", "https://somewhere.example/?access="+tokens[token])
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := c.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			said, err := io.ReadAll(resp.Body)
			if err == nil && resp.StatusCode != want {
				err = fmt.Errorf("%s, not %d: %.200s", resp.Status, want, said)
			}
			if token != "" && bytes.Contains(said, []byte(tokens[token])) {
				err = fmt.Errorf("the answer holds the token: %.200s", said)
			}
			return err
		}}
	}
	return []ingredient{
		kind("list", kept, "GET", "/orders", "read", "", 200),
		kind("one", kept, "GET", "/orders/o-1001", "read", "", 200),
		kind("list, fresh", fresh, "GET", "/orders/o-1001", "write", "", 200),
		kind("health", kept, "GET", "/health", "", "", 200),
		kind("none", kept, "GET", "/orders", "", "", 401),
		kind("forged", kept, "GET", "/orders", "forged", "", 401),
		kind("another audience", fresh, "GET", "/orders", "wrong", "", 401),
		kind("scope", kept, "POST", "/orders", "read", newOrder, 403),
		kind("invalid", kept, "POST", "/orders", "write", `{"customer":`, 400),
		kind("no route", kept, "GET", "/nowhere", "read", "", 404),
		kind("spelling", fresh, "GET", "/orders%2f..%2fhealth", "read", "", 400),
		kind("token in query", fresh, "GET", "/orders?access_token="+tokens["read"], "", "", 401),
		kind("two tokens", fresh, "GET", "/orders?access_token="+tokens["write"], "read", "", 400),
		{"upload", func() error { return upload(kept, p, tokens["write"]) }},
		{"broken upload", func() error { return brokenUpload(p, tokens["write"]) }},
		{"malformed", func() error { return malformed(p) }},
		{"events", func() error { return events(p, tokens["read"]) }},
		{"websocket", func() error { return socket(p, tokens["read"]) }},
	}
}

// storm sends the mixture from several clients at once, and counts what ended as it should.
func storm(t testing.TB, p *product, mix []ingredient, length time.Duration) map[string]int {
	t.Helper()
	var (
		group  sync.WaitGroup
		mu     sync.Mutex
		counts = make(map[string]int)
		failed []string
	)
	until := time.Now().Add(length)
	for i := range 4 * runtime.NumCPU() {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			for n := 0; time.Now().Before(until) || n < len(mix); n++ {
				m := mix[(i+n)%len(mix)]
				if n >= len(mix) {
					m = mix[random.IntN(len(mix))]
				}
				err := m.send()
				mu.Lock()
				if counts[m.name]++; err != nil {
					failed = append(failed, m.name+": "+err.Error())
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if len(failed) > 0 {
		t.Errorf("%d requests did not end as they should:\n%s", len(failed), sample(failed, 10))
	}
	return counts
}

func upload(c *http.Client, p *product, token string) error {
	req, err := http.NewRequest(http.MethodPost, p.url+"/uploads", bytes.NewReader(make([]byte, 256<<10)))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = fmt.Errorf("%s: %.200s", resp.Status, said)
	}
	return err
}

// brokenUpload announces more than it sends, and goes.
func brokenUpload(p *product, token string) error {
	c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = fmt.Fprintf(c, "POST /uploads HTTP/1.1\r\nHost: orders\r\nAuthorization: Bearer %s\r\nContent-Type: application/octet-stream\r\n"+
		"Content-Length: 100000\r\n\r\n%s", token, strings.Repeat("x", 5000))
	return err
}

// malformed sends what is no request, and wants a refusal.
func malformed(p *product) error {
	c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "POST /orders HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"); err != nil {
		return err
	}
	said, err := io.ReadAll(c)
	if err == nil && !bytes.HasPrefix(said, []byte("HTTP/1.1 400 ")) {
		err = fmt.Errorf("%.100q", said)
	}
	return err
}

// events opens a stream and breaks it off.
func events(p *product, token string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/orders/events", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("events: %s", resp.Status)
	}
	return nil
}

// socket opens a WebSocket, uses it and breaks it off.
func socket(p *product, token string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, p.url+"/ws", &websocket.DialOptions{
		HTTPHeader: http.Header{"Authorization": {"Bearer " + token}},
		HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
	if err != nil {
		return err
	}
	defer c.CloseNow()
	if err := c.Write(ctx, websocket.MessageText, []byte(`{"event":"count"}`)); err != nil {
		return err
	}
	_, _, err = c.Read(ctx)
	return err
}

// TestStartup measures the time from exec to listening. The bound is far above what a slow machine needs: the figure is for
// a reader.
func TestStartup(t *testing.T) {
	as := misfitServer(t)
	run := misfit(t, as, "honest", nil)
	serve := run
	serve.command = nil
	for _, tt := range []struct {
		name string
		launch
	}{{"serve", serve}, {"run, with walls", run}} {
		best := time.Hour
		for range 5 {
			p := startProduct(t, tt.launch)
			best = min(best, p.listening.Sub(p.began))
			p.stop()
		}
		t.Logf("%s: from exec to listening %v, the best of 5", tt.name, best.Round(time.Millisecond))
		if best > 5*time.Second {
			t.Errorf("%s: it takes %v to listen", tt.name, best)
		}
	}
}
