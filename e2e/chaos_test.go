package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestKilledReplicas kills parts in any order while tokens are revoked and requests are made: gates, their services, servers
// of the cluster, two of them at once. Whatever was acknowledged holds when they are back, and is on record.
func TestKilledReplicas(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil)
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SALLYPORT_CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SALLYPORT_CHAOS_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	traffic := startTraffic(t, f)

	var kills []kill
	for i, p := range f.at {
		kills = append(kills,
			kill{fmt.Sprint("replica ", i), func() func() { return f.killReplica(t, i, p.pid()) }},
			kill{fmt.Sprint("the service of replica ", i), func() func() { return f.killReplica(t, i, childOf(t, p.pid())) }},
			kill{fmt.Sprint("server ", i), func() func() { return f.killServers(t, i) }})
	}
	kills = append(kills, kill{"servers 0 and 1", func() func() { return f.killServers(t, 0, 1) }})
	random.Shuffle(len(kills), func(i, j int) { kills[i], kills[j] = kills[j], kills[i] })
	for _, k := range kills {
		traffic.grows(t, 3)
		t.Logf("kill %s", k.what)
		begin := k.do()
		time.Sleep(time.Duration(random.IntN(600)) * time.Millisecond)
		begin()
	}
	f.mu.Lock()
	for _, p := range f.at {
		p.awaitListening(t)
	}
	f.mu.Unlock()
	traffic.grows(t, 10)
	traffic.end()
	t.Logf("%d revocations were acknowledged, %d requests answered with 200, %d with revoked tokens refused", len(traffic.revoked), len(traffic.served), traffic.refused)
	traffic.judge(t)
}

// kill is one part, or several.
type kill struct {
	what string
	do   func() (begin func())
}

// killReplica kills a process of a replica, its gate or its service. Either takes the other with it.
func (f *fleet) killReplica(t *testing.T, replica, pid int) (begin func()) {
	p := f.at[replica]
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.exit(t, 20*time.Second)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		p.again(t)
		p.url = fmt.Sprintf("http://%s", p.await(t, "listening")["address"])
	}
}

func (f *fleet) killServers(t *testing.T, list ...int) (begin func()) {
	for _, i := range list {
		f.servers.Kill(i)
	}
	return func() {
		for _, i := range list {
			if err := f.servers.Begin(i); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// childOf finds the only child of a process: the service of a gate.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	stats, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range stats {
		child, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			return child
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

// traffic is requests and revocations, as fast as a few clients make them.
type traffic struct {
	f       *fleet
	stop    chan struct{}
	done    sync.WaitGroup
	mu      sync.Mutex
	revoked []revokedToken
	served  []servedRequest
	refused int // revoked tokens, while parts were killed
	wrong   []string
}

type revokedToken struct {
	token, id string
	at        time.Time // acknowledged
}

type servedRequest struct {
	replica int
	id      string
}

func startTraffic(t *testing.T, f *fleet) *traffic {
	s := &traffic{f: f, stop: make(chan struct{})}
	good, _ := f.token("alice", nil)
	again := func(pause time.Duration, do func()) {
		s.done.Go(func() {
			for {
				select {
				case <-s.stop:
					return
				case <-time.After(pause):
					do()
				}
			}
		})
	}
	for i, p := range f.at {
		again(5*time.Millisecond, func() {
			if a, err := s.get(p, good); err == nil && a.status == http.StatusOK {
				s.mu.Lock()
				s.served = append(s.served, servedRequest{i, a.id()})
				s.mu.Unlock()
			}
		})
		again(20*time.Millisecond, func() {
			token, id := f.token("mallory", nil)
			if err := p.revoke(f.issuer.URL, id); err == nil {
				s.mu.Lock()
				s.revoked = append(s.revoked, revokedToken{token, id, time.Now()})
				s.mu.Unlock()
			}
		})
		// Whoever serves at all knows what was revoked longer ago than what is known may be old.
		again(10*time.Millisecond, func() {
			old := s.any(4 * time.Second)
			if old == nil {
				return
			}
			a, err := s.get(p, old.token)
			s.mu.Lock()
			defer s.mu.Unlock()
			switch {
			case err != nil || a.status >= 500: // it is not there, or does not know
			case a.status == http.StatusUnauthorized:
				s.refused++
			default:
				s.wrong = append(s.wrong, fmt.Sprintf("replica %d answered %d to %s, %v after its revocation", i, a.status, old.id, time.Since(old.at)))
			}
		})
	}
	t.Cleanup(s.end)
	return s
}

// get makes a request of a replica that may be gone.
func (s *traffic) get(p *product, token string) (answer, error) {
	s.f.mu.Lock()
	at := p.url
	s.f.mu.Unlock()
	return (&product{url: at}).try(http.MethodGet, "/echo", token, nil)
}

// any is a token that was revoked so long ago, or nil.
func (s *traffic) any(ago time.Duration) *revokedToken {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(s.revoked) && time.Since(s.revoked[n].at) > ago {
		n++
	}
	if n == 0 {
		return nil
	}
	return &s.revoked[rand.IntN(n)]
}

// grows waits for so many more acknowledged revocations, and for as many answers.
func (s *traffic) grows(t *testing.T, by int) {
	t.Helper()
	count := func() (int, int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.revoked), len(s.served)
	}
	r, q := count()
	eventually(t, 60*time.Second, "revocations are acknowledged and requests answered", func() bool {
		revoked, served := count()
		return revoked >= r+by && served >= q+by
	})
}

func (s *traffic) end() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	s.done.Wait()
}

// judge holds that nothing which was acknowledged is lost.
func (s *traffic) judge(t *testing.T) {
	t.Helper()
	if s.refused == 0 {
		t.Error("no revoked token was used meanwhile: that none was let in shows nothing")
	}
	if len(s.wrong) > 0 {
		t.Errorf("%d revoked tokens were let in:\n%s", len(s.wrong), sample(s.wrong, 10))
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 4}}
	defer client.CloseIdleConnections()
	for i, p := range s.f.at {
		var lost []string
		for _, r := range s.revoked {
			var code string
			eventually(t, 30*time.Second, "a replica knows what is revoked", func() bool {
				code = codeOf(t, client, p.url+"/echo", r.token)
				return code != "standing_unknown"
			})
			if code != "revoked" {
				lost = append(lost, fmt.Sprintf("%s: %s", r.id, code))
			}
		}
		if len(lost) > 0 {
			t.Errorf("replica %d: of %d acknowledged revocations %d are lost:\n%s", i, len(s.revoked), len(lost), sample(lost, 10))
		}
		all, wrong := entries(t, p.whole(t))
		if len(wrong) > 0 {
			t.Errorf("replica %d: its book: %s", i, sample(wrong, 10))
		}
		missing := 0
		for _, r := range s.served {
			if e, ok := all[r.id]; r.replica == i && (!ok || !e.decision.allowed()) {
				missing++
			}
		}
		if missing > 0 {
			t.Errorf("replica %d: the records of %d answered requests are missing", i, missing)
		}
		p.verified(t)
	}
}

// whole is the book without lines that a kill cut short, which verify knows.
func (p *product) whole(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(p.book(t)) {
		if strings.HasPrefix(line, "{") && strings.HasSuffix(line, "}\n") && strings.Count(line, `{"v":`) == 1 {
			b.WriteString(line)
		}
	}
	return b.String()
}

// codeOf is the code of an answer, or its status.
func codeOf(t testing.TB, c *http.Client, url, token string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := c.Do(req)
	if err != nil {
		return err.Error()
	}
	a := readAnswer(resp)
	if a.status == http.StatusOK {
		return "200"
	}
	return a.code()
}
