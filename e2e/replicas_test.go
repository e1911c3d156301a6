package e2e

import (
	"bufio"
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/natstest"
	"github.com/sallyport/sallyport/internal/sallytest"
)

const eventsAudience = "https://misfit.example/events"

// fleet is three gates that share a cluster of three NATS servers, each with a service of its own, and an issuer.
type fleet struct {
	servers *natstest.Cluster
	issuer  *sallytest.Issuer
	at      [3]*product
	dir     string
	mu      sync.Mutex // guards the url of a replica that is started again
}

// startFleet starts all of it. url says where a replica finds the servers; nil: at all three of them.
func startFleet(t *testing.T, url func(f *fleet, replica int) []string) *fleet {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		unavailable(t, "node is not installed")
	}
	f := &fleet{issuer: sallytest.NewIssuer(t), dir: openDir(t)}
	var err error
	if f.servers, err = natstest.Start(natstest.Options{Dir: t.TempDir(), Processes: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.servers.Close)
	if url == nil {
		url = func(f *fleet, i int) []string { return f.servers.URLs(i, (i+1)%3, (i+2)%3) }
	}
	for i := range f.at {
		l := misfit(t, &authServer{Issuer: f.issuer.URL}, "honest", nil)
		l.over = setting{
			"ingress": setting{
				"issuers": []setting{{
					"issuer": f.issuer.URL, "audience": []string{misfitAudience}, "keys": "discovery", "leeway": "100ms",
					"events": setting{"audience": []string{eventsAudience}},
				}},
				"routes": []setting{
					{"name": "read", "match": "GET /{rest...}", "scopes": []string{"use"}},
					{"name": "socket", "match": "GET /socket", "scopes": []string{"use"}, "upgrades": []string{"websocket"}},
					{"name": "unimportant", "match": "GET /both", "scopes": []string{"use"}, "privileged": false},
				},
			},
			"state": setting{"driver": "nats", "url": url(f, i), "max_feed_age": "3s", "path": nil},
		}
		f.at[i] = execProduct(t, l)
	}
	for _, p := range f.at {
		p.awaitListening(t)
	}
	return f
}

// token is a good one of a user; its id is returned too.
func (f *fleet) token(user string, claims map[string]any) (token, id string) {
	id = user + "-" + rand.Text()
	all := map[string]any{"aud": misfitAudience, "scope": "use", "sub": user, "jti": id}
	for name, value := range claims {
		all[name] = value
	}
	return f.issuer.Token(all), id
}

// lines are those of a replica's book that fit.
func (p *product) lines(t testing.TB, fits func(auditLine) bool) (found []auditLine) {
	t.Helper()
	for _, l := range readAudit(t, p.book(t)) {
		if fits(l) {
			found = append(found, l)
		}
	}
	return found
}

// ends holds that a token which is good is refused by all replicas, as revoked, within a second of the time that end
// returns: it does something that ends the token, while they are asked again and again, but for the one whose number is
// alone. id is its jti, or its digest if it has none. How long it took is read in the books: from then until the last request that was let in.
func (f *fleet) ends(t *testing.T, what, token, id string, alone int, end func() time.Time) (since time.Time) {
	t.Helper()
	var code [len(f.at)]string
	ask := func(i int) {
		code[i] = "let in for half a minute"
		for until := time.Now().Add(30 * time.Second); time.Now().Before(until); time.Sleep(2 * time.Millisecond) {
			if a, err := f.at[i].try(http.MethodGet, "/echo", token, nil); err == nil && a.status == http.StatusUnauthorized {
				code[i] = a.code()
				return
			}
		}
	}
	var asked sync.WaitGroup
	for i := range f.at {
		if i != alone {
			asked.Go(func() { ask(i) })
		}
	}
	since = end()
	if alone >= 0 {
		ask(alone)
	}
	asked.Wait()
	for i, p := range f.at {
		if code[i] != "revoked" {
			t.Errorf("%s at replica %d: %s", what, i, code[i])
		}
		let := p.lines(t, func(l auditLine) bool { return l.Point == "ingress" && l.allowed() && l.TokenID+l.Digest == id })
		if len(let) == 0 {
			t.Errorf("%s at replica %d: it never was good there", what, i)
			continue
		}
		lag := let[len(let)-1].Time.Sub(since)
		t.Logf("%s: replica %d let the last request in %v after it", what, i, lag.Round(time.Microsecond))
		if lag > time.Second {
			t.Errorf("%s: replica %d let a request in %v after it", what, i, lag)
		}
	}
	return since
}

// revokedAt is when the last revocation was recorded that a replica was asked for.
func (p *product) revokedAt(t testing.TB) time.Time {
	t.Helper()
	all := p.lines(t, func(l auditLine) bool { return l.Point == "state" && l.Code == "revoked" })
	if len(all) == 0 {
		t.Error("no revocation is on record")
		return time.Time{}
	}
	return all[len(all)-1].Time
}

// good holds that all replicas take a token.
func (f *fleet) good(t *testing.T, what, token string) {
	t.Helper()
	for i, p := range f.at {
		if a := p.fetch(t, http.MethodGet, "/echo", token, nil); a.status != http.StatusOK {
			t.Errorf("%s at replica %d: %d %s", what, i, a.status, a.code())
		}
	}
}

// sallyport runs a command of the program to its end.
func sallyport(t testing.TB, args ...string) (output string, code int) {
	t.Helper()
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// verified holds that the book is as it was written.
func (p *product) verified(t testing.TB) {
	t.Helper()
	if out, code := sallyport(t, "audit", "verify", "-c", p.config); code != 0 {
		t.Errorf("audit verify: exit code %d\n%s", code, out)
	}
}

// live is a request that goes on.
type live struct {
	id    string
	ended chan struct{}
	rest  []byte // what came, after ended
	count atomic.Int64
}

const (
	aStream    = "GET /stream HTTP/1.1\r\n"
	aWebSocket = "GET /socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)

// begin begins one, and reads what comes until it ends.
func (p *product) begin(t testing.TB, request, token string) *live {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, request+"Host: misfit\r\nAuthorization: Bearer "+token+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode >= 400 {
		t.Fatalf("%v, %v", resp, err)
	}
	l := &live{id: resp.Header.Get("X-Request-Id"), ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		var all bytes.Buffer
		buf := make([]byte, 4<<10)
		for {
			n, err := in.Read(buf)
			l.count.Add(int64(n))
			all.Write(buf[:n])
			if err != nil {
				l.rest = all.Bytes()
				return
			}
		}
	}()
	return l
}

// isCut holds that it ends, by the book of its replica within a second of a time, because its token was revoked.
func (l *live) isCut(t *testing.T, what string, p *product, since time.Time) {
	t.Helper()
	select {
	case <-l.ended:
	case <-time.After(30 * time.Second):
		t.Errorf("%s goes on", what)
		return
	}
	e := p.entry(t, l.id)
	if e.outcome == nil || e.outcome.Error != "revoked" {
		t.Errorf("%s: outcome %+v", what, e.outcome)
		return
	}
	lag := e.outcome.Time.Sub(since)
	t.Logf("%s ended %v after it", what, lag.Round(time.Microsecond))
	if lag > time.Second {
		t.Errorf("%s ended %v after it", what, lag)
	}
}

// engineSocket is the socket of a container engine in name, whose other side nobody should reach.
type engineSocket struct {
	path    string
	reached atomic.Int64
}

func startEngineSocket(t *testing.T, dir string) *engineSocket {
	t.Helper()
	r := &engineSocket{path: filepath.Join(dir, "docker.sock")}
	l, err := net.Listen("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Chmod(r.path, 0o666); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.reached.Add(1)
			c.Close()
		}
	}()
	return r
}

// TestQuarantineEverywhere is the whole story: a token whose seventh request has the service try the way to the host is
// worth nothing with the eighth, at whichever replica, and what it had open there ends.
func TestQuarantineEverywhere(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil)
	engine := startEngineSocket(t, f.dir)
	mallory, malloryID := f.token("mallory", nil)
	alice, _ := f.token("alice", nil)
	if a := f.at[0].fetch(t, http.MethodGet, "/fetch?socket="+url.QueryEscape(filepath.Join(f.dir, "none.sock")), alice, nil); !bytes.Contains(a.body, []byte("ENOENT")) {
		t.Fatalf("the service cannot be made to connect: %d %s", a.status, a.body)
	}

	socket := f.at[1].begin(t, aWebSocket, mallory)
	stream := f.at[2].begin(t, aStream, mallory)
	others := f.at[2].begin(t, aStream, alice)
	for range 6 {
		f.good(t, "a good request", mallory)
	}
	// Whose request it was is known if nobody else's could have been it: those that were answered count for two seconds.
	time.Sleep(2100 * time.Millisecond)

	at := f.ends(t, "the quarantined token", mallory, malloryID, 0, func() time.Time {
		// The seventh. It may have its answer, or be ended with its token.
		a, err := f.at[0].try(http.MethodGet, "/fetch?socket="+url.QueryEscape(engine.path), mallory, nil)
		if err == nil && a.status == http.StatusOK && !bytes.Contains(a.body, []byte("EACCES")) {
			t.Errorf("the seventh request: %d %s", a.status, a.body)
		}
		var refused []auditLine
		eventually(t, 10*time.Second, "the refused connect is on record", func() bool {
			refused = f.at[0].lines(t, func(l auditLine) bool { return l.Point == "egress" && !l.outcome() && !l.allowed() })
			return len(refused) == 1
		})
		if l := refused[0]; l.Code != "escape_target" || l.TokenID != malloryID {
			t.Errorf("record %+v", l)
		}
		return refused[0].Time
	})
	socket.isCut(t, "its WebSocket", f.at[1], at)
	if !bytes.HasPrefix(socket.rest, []byte{0x88}) || len(socket.rest) < 4 || socket.rest[2] != 1008>>8 || socket.rest[3] != 1008&0xff {
		t.Errorf("its WebSocket ended without close frame 1008: % x", socket.rest)
	}
	stream.isCut(t, "its stream", f.at[2], at)
	if n := engine.reached.Load(); n != 0 {
		t.Errorf("the container engine was reached %d times", n)
	}
	f.good(t, "another caller's token", alice)
	count := others.count.Load()
	eventually(t, 10*time.Second, "another caller's stream flows", func() bool { return others.count.Load() > count })

	t.Run("story", func(t *testing.T) { testStory(t, f, malloryID) })
	t.Run("event", func(t *testing.T) { testEvent(t, f) })
	testRestart(t, f.at[1], mallory, alice)
	f.good(t, "another caller's token", alice)
	t.Run("selectors", func(t *testing.T) { testSelectors(t, f) })
	for _, p := range f.at {
		p.verified(t)
	}
}

// testStory reads the first replica's book as its operator would.
func testStory(t *testing.T, f *fleet, id string) {
	out, code := sallyport(t, "audit", "query", "--token", id, f.at[0].audit)
	t.Logf("\n%s", out)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	rest := out
	for _, part := range []string{"allow   GET /echo", "allow   GET /fetch", "deny    connect " + filepath.Join(f.dir, "docker.sock") + " | escape_target", "GET /echo | revoked: "} {
		_, after, found := strings.Cut(rest, part)
		if !found {
			t.Errorf("it does not go on with %q", part)
		}
		rest = after
	}
	for _, part := range []string{"alarm   escape-target", "state   revoked", "by watch"} {
		if !strings.Contains(out, part) {
			t.Errorf("it has no %q", part)
		}
	}
}

// testEvent pushes a security event token to one replica: the session is over at all.
func testEvent(t *testing.T, f *fleet) {
	bob, id := f.token("bob", map[string]any{"sid": "session-of-bob"})
	another, _ := f.token("bob", map[string]any{"sid": "another-of-bob"})
	f.good(t, "a token of the session", bob)
	payload, err := json.Marshal(map[string]any{
		"iss": f.issuer.URL, "aud": eventsAudience, "jti": rand.Text(), "iat": time.Now().Unix(),
		"sub_id": map[string]any{"format": "opaque", "id": "session-of-bob"},
		"events": map[string]any{"https://schemas.openid.net/secevent/caep/event-type/session-revoked": map[string]any{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	header := fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"secevent+jwt"}`, f.issuer.KeyID("ES256"))
	set := f.issuer.Sign("ES256", header, string(payload))
	f.ends(t, "a token of the session", bob, id, -1, func() time.Time {
		status, body, err := f.at[1].operate(http.MethodPost, "/events", "application/secevent+jwt", strings.NewReader(set))
		if err != nil || status != http.StatusAccepted {
			t.Errorf("the event: %d %s, %v", status, body, err)
		}
		return f.at[1].revokedAt(t)
	})
	f.good(t, "a token of another session", another)
}

// testSelectors ends tokens by all else that the command line knows, at one replica or another; the last is all of them.
func testSelectors(t *testing.T, f *fleet) {
	digest := func(token string) string {
		sum := sha256.Sum256([]byte(token[:strings.LastIndexByte(token, '.')]))
		return base64.RawURLEncoding.EncodeToString(sum[:])
	}
	carol, carolID := f.token("carol", nil)
	app, appID := f.token("dave", map[string]any{"client_id": "app"})
	bare, _ := f.token("erin", map[string]any{"jti": nil})
	byKey := f.issuer.TokenWith("EdDSA", map[string]any{"aud": misfitAudience, "scope": "use", "sub": "frank", "jti": "of another key"})
	last, lastID := f.token("grace", nil)
	for i, tt := range []struct {
		what, token, id string
		flags           []string
	}{
		{"a token of the user", carol, carolID, []string{"--sub", "carol"}},
		{"a token of the client", app, appID, []string{"--client", "app"}},
		{"a token without jti", bare, digest(bare), []string{"--digest", digest(bare)}},
		{"a token of the key", byKey, "of another key", []string{"--kid", f.issuer.KeyID("EdDSA")}},
		{"a token of the issuer", last, lastID, []string{"--before", "now"}},
	} {
		f.good(t, tt.what, tt.token)
		f.ends(t, tt.what, tt.token, tt.id, -1, func() time.Time {
			out, code := sallyport(t, append([]string{"revoke", "-c", f.at[i%len(f.at)].config, "--reason", "laptop stolen"}, tt.flags...)...)
			if code != 0 {
				t.Errorf("exit code %d\n%s", code, out)
			}
			return f.at[i%len(f.at)].revokedAt(t)
		})
	}
	// The same token with the other signature that fits it as well (n-s for s) is the same token.
	for i, p := range f.at {
		if a := p.fetch(t, http.MethodGet, "/echo", twin(t, bare), nil); a.status != http.StatusUnauthorized || a.code() != "revoked" {
			t.Errorf("the twin of a token without jti at replica %d: %d %s", i, a.status, a.code())
		}
	}
	until := time.Now().Truncate(time.Second).Add(time.Second)
	time.Sleep(time.Until(until))
	for _, user := range []string{"carol", "dave"} {
		fresh, _ := f.token(user, nil)
		f.good(t, "a token that was issued later", fresh)
	}
}

// twin is an ES256 token with the other signature.
func twin(t *testing.T, token string) string {
	t.Helper()
	at := strings.LastIndexByte(token, '.') + 1
	signature, err := base64.RawURLEncoding.DecodeString(token[at:])
	if err != nil || len(signature) != 64 {
		t.Fatal(len(signature), err)
	}
	s := new(big.Int).SetBytes(signature[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(signature[32:])
	return token[:at] + base64.RawURLEncoding.EncodeToString(signature)
}

// testRestart holds that a replica which starts knows what is revoked before it serves anybody.
func testRestart(t *testing.T, p *product, revoked, good string) {
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t, 30*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	p.again(t)
	p.url = fmt.Sprintf("http://%s", p.await(t, "listening")["address"])
	answers := map[string]int{}
	eventually(t, 60*time.Second, "the replica serves", func() bool {
		a, err := p.try(http.MethodGet, "/echo", revoked, nil)
		if err != nil {
			return false
		}
		answers[fmt.Sprint(a.status, " ", a.code())]++
		b, err := p.try(http.MethodGet, "/echo", good, nil)
		return err == nil && b.status == http.StatusOK
	})
	t.Logf("the revoked token got %v", answers)
	for what := range answers {
		if what != "401 revoked" && !strings.HasPrefix(what, "503 ") {
			t.Errorf("the revoked token got %s from a replica that had just started", what)
		}
	}
	p.awaitListening(t)
}
