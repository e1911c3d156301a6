package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/natstest"
)

const replicaConfig = `version: 1
ingress:
  listen: 127.0.0.1:@gate@
  upstream: http://@web@
  issuers:
    - {issuer: "https://issuer.example", audience: [bench], keys: {jwks_file: @dir@/jwks.json}, algorithms: [EdDSA]}
  routes:
    - {name: things, match: GET /v1/things, scopes: []}
audit: {file: @folder@/audit.jsonl}
state: {driver: nats, url: ["@nats@"]}
admin: {listen: "unix:@folder@/admin.sock"}
`

const (
	everywhereWithin = 1000.0 // ms, of a hundred revocations the slowest but one
	revocationsARun  = 100
	loaders          = 8 // connections to each replica that the load is sent on
)

// replica is one of the gates that share the servers.
type replica struct {
	address string
	admin   *http.Client // at its unix socket
}

// measureRevocation is how long it takes until what one of three replicas was told to revoke is refused by both others.
func measureRevocation(s *site) (_ []*table, err error) {
	s.say("revocation, on three replicas")
	defer s.release()
	t := &table{
		Name: "revocation", Title: "Revoking a token at one of three replicas, until both others have refused it",
		Columns: []column{{"p50", "ms"}, {"p99", "ms"}, {"acknowledged, p50", "ms"}, {"other requests", "1/s"}},
	}
	if !s.wants(t.Name) {
		return nil, nil
	}
	servers, err := natstest.Start(natstest.Options{Dir: filepath.Join(s.dir, "nats"), Processes: true})
	if err != nil {
		return nil, err
	}
	s.later(servers.Close)
	place, err := newPlace(s)
	if err != nil {
		return nil, err
	}
	var replicas []*replica
	for i := range natstest.Size {
		// Each asks another server, as replicas in different places would.
		r, err := s.startReplica(fmt.Sprint("replica-", i), "@web@", place.web, "@nats@", servers.URLs(i)[0])
		if err != nil {
			return nil, err
		}
		replicas = append(replicas, r)
	}
	for _, r := range replicas {
		if err := r.await(); err != nil {
			return nil, err
		}
	}
	for _, l := range []struct {
		name   string
		target int // requests a second, of all replicas
	}{
		{"no other request", 0}, {"1,000 others a second", 1000}, {"5,000 others a second", 5000},
	} {
		t.Rows = append(t.Rows, &row{Name: l.name, once: func() ([]float64, error) { return s.revocations(replicas, l.target) }})
	}
	err = t.run(s, 5)
	for _, r := range t.Rows {
		r.Goal = &goal{fmt.Sprintf("p99 at most %.0f ms", everywhereWithin), r.Figures[1].Median <= everywhereWithin}
	}
	return []*table{t}, err
}

func (s *site) startReplica(name string, values ...string) (*replica, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(s.dir, name)
	config, err := s.write(filepath.Join(name, "sallyport.yaml"), replicaConfig, append(values, "@gate@", ports[0], "@dir@", s.dir, "@folder@", folder)...)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(folder, 0o777); err != nil { // for whoever it becomes
		return nil, err
	}
	log, err := os.Create(filepath.Join(folder, "output"))
	if err != nil {
		return nil, err
	}
	s.later(func() { log.Close() })
	cmd := exec.Command(s.sallyport, "serve", "-c", config)
	cmd.Dir, cmd.Stdout, cmd.Stderr = folder, log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.later(func() { end(cmd) })
	return &replica{"127.0.0.1:" + ports[0], &http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(folder, "admin.sock"))
		},
	}}}, nil
}

// await waits until it knows what is revoked.
func (r *replica) await() error {
	var last error
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(20 * time.Millisecond) {
		answer, err := r.admin.Get("http://sallyport/readyz")
		if last = err; err != nil {
			continue
		}
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			return nil
		}
		last = errors.New(string(body))
	}
	return fmt.Errorf("a replica does not become ready: %w", last)
}

// revocations revokes one token after the other while others are served, and returns what the columns say.
func (s *site) revocations(replicas []*replica, target int) ([]float64, error) {
	stop := s.others(replicas, target)
	count := revocationsARun
	if s.brief {
		count = 2
	}
	var acked, everywhere []time.Duration
	var failure error
	for n := range count {
		// Each replica is told in its turn.
		a, e, err := revokeOne(replicas[n%len(replicas)], slices.Concat(replicas[:n%len(replicas)], replicas[n%len(replicas)+1:]))
		if err != nil {
			failure = err
			break
		}
		acked, everywhere = append(acked, a), append(everywhere, e)
	}
	rate, err := stop()
	if err := errors.Join(failure, err); err != nil {
		return nil, err
	}
	slices.Sort(acked)
	slices.Sort(everywhere)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return []float64{ms(everywhere[count/2]), ms(everywhere[(count-1)*99/100]), ms(acked[count/2]), rate}, nil
}

// revokeOne revokes a token at one replica, while the others are asked with it again and again. It returns how long that took until
// it was acknowledged, and until both others had refused it.
func revokeOne(at *replica, others []*replica) (acked, everywhere time.Duration, err error) {
	id := rand.Text()
	request := withToken(token(id))
	good := make(chan error, len(others)) // each once
	refused := make(chan error, len(others))
	var last atomic.Int64
	for _, r := range others {
		go func() {
			c := &client{address: r.address, request: request}
			defer c.close()
			err := c.once()
			good <- err
			for err == nil {
				var a answer
				if a, err = c.ask(); err == nil && a.status == http.StatusUnauthorized {
					now := time.Now().UnixNano()
					for old := last.Load(); old < now && !last.CompareAndSwap(old, now); old = last.Load() {
					}
					break
				} else if err == nil && a.status != http.StatusOK {
					err = fmt.Errorf("the answer is %d", a.status)
				}
			}
			refused <- err
		}()
	}
	for range others {
		err = errors.Join(err, <-good)
	}
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	answer, err := at.admin.Post("http://sallyport/revocations", "application/json",
		strings.NewReader(fmt.Sprintf(`{"issuer":"https://issuer.example","token_id":%q}`, id)))
	if err != nil {
		return 0, 0, err
	}
	body, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	acked = time.Since(began)
	if answer.StatusCode != http.StatusOK {
		return 0, 0, fmt.Errorf("the revocation: %s: %s", answer.Status, body)
	}
	for range others {
		err = errors.Join(err, <-refused)
	}
	return acked, time.Unix(0, last.Load()).Sub(began), err
}

// others are requests that have nothing to do with it, so many a second in all if the machine gives that, until stop is
// called; it returns how many there were a second.
func (s *site) others(replicas []*replica, target int) (stop func() (rate float64, err error)) {
	var served atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	done := make(chan struct{})
	began := time.Now()
	request := withToken(token(rand.Text()))
	for i := range loaders * len(replicas) {
		if target == 0 {
			break
		}
		all.Go(func() {
			c := &client{address: replicas[i%len(replicas)].address, request: request}
			defer c.close()
			for n := 0; ; n++ {
				time.Sleep(time.Until(began.Add(time.Duration(n*loaders*len(replicas)+i) * time.Second / time.Duration(target))))
				select {
				case <-done:
					return
				default:
				}
				if err := c.once(); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				served.Add(1)
			}
		})
	}
	return func() (float64, error) {
		rate := float64(served.Load()) / time.Since(began).Seconds()
		close(done)
		all.Wait()
		if err := failed.Load(); err != nil {
			return 0, fmt.Errorf("the other requests: %w", *err)
		}
		return rate, nil
	}
}

func withToken(token string) []byte {
	return []byte("GET /v1/things HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\nAuthorization: Bearer " + token + "\r\n\r\n")
}

// token is one that the keys of jwks verify: the pair of RFC 8037, appendix A, which everybody knows.
func token(id string) string {
	seed, err := base64.RawURLEncoding.DecodeString("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
	if err != nil {
		panic(err) // a constant
	}
	now := time.Now().Unix()
	claims, err := json.Marshal(map[string]any{
		"iss": "https://issuer.example", "aud": "bench", "sub": "bench", "client_id": "bench", "jti": id, "iat": now, "exp": now + 600,
	})
	if err != nil {
		panic(err) // strings and numbers
	}
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64([]byte(`{"alg":"EdDSA","kid":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k","typ":"at+jwt"}`)) + "." + b64(claims)
	return input + "." + b64(ed25519.Sign(ed25519.NewKeyFromSeed(seed), []byte(input)))
}
