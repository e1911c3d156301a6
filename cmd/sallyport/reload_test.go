package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/follow"
	"github.com/sallyport/sallyport/internal/sallytest"
)

// running is a gate that serves, as start makes it, with the privileges of the test.
type running struct {
	*server
	dir  string // with sallyport.yaml and what it names
	at   string // the gate's URL
	said *said
}

// said is a log that a test looks into.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) { s.mu.Lock(); defer s.mu.Unlock(); return s.b.Write(p) }

func (s *said) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

// serveGate runs a gate by the configuration, in a folder where jwks.json has the issuer's keys, until the test ends.
func serveGate(t *testing.T, issuer *sallytest.Issuer, settings string) *running {
	t.Helper()
	r := &running{dir: t.TempDir(), said: &said{}}
	put(t, r.path("jwks.json"), string(issuer.JWKS()))
	put(t, r.path("sallyport.yaml"), settings)
	f, err := config.Read(r.path("sallyport.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := openDoors(f)
	if err != nil {
		t.Fatal(err)
	}
	g, err := assemble(f, slog.New(slog.NewJSONHandler(r.said, nil)), d)
	if err != nil {
		t.Fatal(err)
	}
	g.reloads.follower = follow.New(follow.Options{Settle: 5 * time.Millisecond, Poll: time.Second})
	g.reloads.follower.Follow(f.Watched())
	r.server, r.at = &server{gate: g, signals: make(chan os.Signal, 1)}, "http://"+d.data.Addr().String()
	if d.admin != nil {
		r.admin = newAdmin(g, d.admin)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := r.open(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := waitReady(ctx, r.verifier, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *running) path(name string) string { return filepath.Join(r.dir, name) }

func put(t *testing.T, name, what string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(what), 0o600); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// settings is a configuration whose one protected route takes this scope.
func settings(upstream, scope string) string {
	return fmt.Sprintf(`version: 1
ingress:
  listen: 127.0.0.1:0
  upstream: %s
  issuers: [{issuer: https://auth.example.com, audience: [orders], keys: {jwks_file: jwks.json}, token_types: [JWT, at+jwt]}]
  routes:
    - {name: orders, match: GET /orders, scopes: [%q]}
audit: {file: audit.jsonl, durability: buffered}
`, upstream, scope)
}

// inForce tells which configurations a request may be judged by: two while one takes the other's place.
type inForce struct {
	mu   sync.Mutex
	list []string // that have been in force or were about to be, one after the other
}

// since is what has been in force, or was about to be, since there were so many of them; 0: now.
func (f *inForce) since(n int) (list []string, now int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n == 0 {
		n = len(f.list)
	}
	return f.list[n-1:], len(f.list)
}

// coming says that another one is about to be in force, and then that it is.
func (f *inForce) coming(scopes ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, strings.Join(scopes, ""))
}

// TestThousandReloads changes the configuration a thousand times under load, by the file and by SIGHUP, with broken ones in
// between: every request is judged by the one that was in force when it began or ended, and nothing is left behind.
func TestThousandReloads(t *testing.T) {
	const reloads = 1000
	issuer := sallytest.NewIssuer(t)
	upstream := httpServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "orders") })
	r := serveGate(t, issuer, settings(upstream, "a"))
	name := r.path("sallyport.yaml")

	truth := &inForce{list: []string{"a"}}
	var sent, certain atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for n := range 4 {
		load.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}
			defer client.CloseIdleConnections()
			mine := []string{"a", "b"}[n%2]
			token := issuer.Token(map[string]any{"iss": "https://auth.example.com", "aud": "orders", "scope": mine})
			for {
				select {
				case <-stop:
					return
				default:
				}
				request, _ := http.NewRequest("GET", r.at+"/orders", nil)
				request.Header.Set("Authorization", "Bearer "+token)
				_, began := truth.since(0)
				res, err := client.Do(request)
				list, _ := truth.since(began)
				judges := strings.Join(list, "") // in this time
				if err != nil {
					t.Errorf("a request failed: %v", err)
					return
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != 200 && res.StatusCode != 403 {
					t.Errorf("answered %d, %s (%v)", res.StatusCode, body, err)
				}
				other := map[string]string{"a": "b", "b": "a"}[mine]
				if says := map[int]string{200: mine, 403: other}[res.StatusCode]; !strings.Contains(judges, says) {
					t.Errorf("scope %s was answered %d while scope %s was in force", mine, res.StatusCode, judges)
				}
				sent.Add(1)
				if len(judges) == 1 {
					certain.Add(1)
				}
			}
		})
	}
	// some have been served before the count, so that what is made once is there
	served := func(n int64) {
		before := sent.Load()
		eventually(t, "requests are answered", func() bool { return sent.Load() >= before+n || t.Failed() })
	}
	served(100)
	refused := func() float64 {
		return testutil.ToFloat64(r.reloads.total.WithLabelValues(byWatch, "failed"))
	}
	replace := func(what string, n int) {
		if n%2 == 0 {
			put(t, name, what) // in place
			return
		}
		put(t, name+".new", what)
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	var before, after holdings
	scope := "a"
	for n := range reloads {
		if n == reloads/10 {
			before = used()
		}
		switch {
		case n%10 == 9: // broken: half of it, nothing, or a mistake
			whole := settings(upstream, scope)
			had := refused()
			replace([]string{whole[:len(whole)/2+n%7], "", strings.Replace(whole, "scopes:", "scoops:", 1)}[n/10%3], n)
			eventually(t, "a broken file is refused", func() bool { return refused() > had })
		default:
			next := map[string]string{"a": "b", "b": "a"}[scope]
			truth.coming(scope, next)
			if n%3 == 0 { // as a SIGHUP does, which may come before the file is seen to have changed, or after
				put(t, name+".new", settings(upstream, next))
				if err := os.Rename(name+".new", name); err != nil {
					t.Fatal(err)
				}
				r.hangup(t.Context())
			} else {
				replace(settings(upstream, next), n)
			}
			eventually(t, "the configuration is taken", func() bool { return r.reloads.inForce() == sha256.Sum256([]byte(settings(upstream, next))) })
			truth.coming(next)
			scope = next
		}
		served(5) // of which four may have begun before
		if t.Failed() {
			break
		}
	}
	after = used()
	close(stop)
	load.Wait()
	t.Logf("%d requests, %d of them with one possible verdict; %v before, %v after", sent.Load(), certain.Load(), before, after)
	if certain.Load() < reloads/2 {
		t.Errorf("only %d requests were sent while one configuration was in force: that is no test", certain.Load())
	}
	eventually(t, "goroutines and descriptors are given back", func() bool {
		after = used()
		return after.goroutines <= before.goroutines && after.files <= before.files
	})
	if after.heap > before.heap+8<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before.heap, after.heap)
	}
}

// holdings are what a process holds.
type holdings struct {
	goroutines, files int
	heap              uint64
}

func used() holdings {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, _ := os.ReadDir("/proc/self/fd")
	return holdings{runtime.NumGoroutine(), len(files), m.HeapAlloc}
}

// TestReloadOfWhatTheFileNames holds that a key set is taken without a word, as a ConfigMap brings it, and that a broken file is
// said once.
func TestReloadOfWhatTheFileNames(t *testing.T) {
	issuer := sallytest.NewIssuer(t)
	upstream := httpServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "orders") })
	r := serveGate(t, issuer, settings(upstream, "a"))
	get := func() int {
		request, _ := http.NewRequest("GET", r.at+"/orders", nil)
		request.Header.Set("Authorization", "Bearer "+issuer.Token(map[string]any{"iss": "https://auth.example.com", "aud": "orders", "scope": "a"}))
		res, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	if status := get(); status != 200 {
		t.Fatalf("answered %d", status)
	}
	issuer.Rotate("ES256")
	if status := get(); status != 401 {
		t.Fatalf("a key that is not published yet: %d", status)
	}
	put(t, r.path("jwks.json"), string(issuer.JWKS()))
	eventually(t, "the new key is taken", func() bool { return get() == 200 })

	put(t, r.path("sallyport.yaml"), strings.Replace(settings(upstream, "a"), "scopes:", "scoops:", 1))
	eventually(t, "the broken file is refused", func() bool { return strings.Contains(r.said.String(), "sallyport.yaml:7:") })
	put(t, r.path("jwks.json"), string(issuer.JWKS())+"\n") // another reload, which fails for the same reason
	failed := func() float64 { return testutil.ToFloat64(r.reloads.total.WithLabelValues(byWatch, "failed")) }
	eventually(t, "it is refused again", func() bool { return failed() == 2 })
	if n := strings.Count(r.said.String(), "scoops"); n != 1 {
		t.Errorf("said %d times:\n%s", n, r.said)
	}
	if good := testutil.ToFloat64(r.reloads.good); good != 0 || get() != 200 {
		t.Errorf("last reload successful: %v, %d", good, get())
	}
	put(t, r.path("sallyport.yaml"), settings(upstream, "b"))
	eventually(t, "the next good one is taken", func() bool { return get() == 403 })
	eventually(t, "it says that it was taken", func() bool { return testutil.ToFloat64(r.reloads.good) == 1 })

	// The book says who and what.
	if err := r.audit.Reopen(); err != nil { // which writes out what is buffered
		t.Fatal(err)
	}
	book, err := os.ReadFile(r.path("audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	last := r.configuration().Digest.String()
	for line := range bytes.Lines(book) {
		var e struct {
			Point, Code, Reason string
			Detail              struct {
				By     string
				Digest string `json:"config_digest"`
				Before string `json:"config_digest_before"`
			}
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		if e.Point == "run" && strings.HasPrefix(e.Code, "config_") {
			codes = append(codes, e.Code)
			if e.Detail.By != byWatch || len(e.Detail.Before) != 64 || e.Code == "config_refused" && !strings.Contains(e.Reason, "sallyport.yaml:7:") {
				t.Errorf("%s", line)
			}
		}
		if e.Code == "config_reloaded" {
			last = e.Detail.Digest
		}
	}
	if want := "config_reloaded config_refused config_reloaded"; strings.Join(codes, " ") != want || last != r.configuration().Digest.String() {
		t.Errorf("recorded %v, the last of %s, want %s", codes, last, want)
	}
}

// TestEverySettingIsFixedOrTaken holds that a new key of the file is either taken by a reload, or named as what only a restart
// changes.
func TestEverySettingIsFixedOrTaken(t *testing.T) {
	taken := map[string]bool{ // by rules and swap, or by whoever asks for the configuration in force
		"Ingress.Issuers": true, "Ingress.Events": true, "Ingress.Routes": true, "Ingress.Policy": true, "Ingress.Assertion": true,
		"Ingress.Hops": true, "Ingress.CORS": true, "Ingress.RateLimits": true, "Ingress.Metadata": true, "Ingress.TokenCache": true, "Egress.Rules": true,
		"Path": true, "Warnings": true, "Digest": true, // of the file, not in it
	}
	read := func() *config.File {
		f, err := config.Parse("x", "/", []byte(settings("http://127.0.0.1:1", "a")))
		if err != nil {
			t.Fatal(err)
		}
		f.Ingress.Assertion = &config.Assertion{} // that there is one is fixed, and not what it says
		return f
	}
	check := func(name string, field func(*config.File) reflect.Value) {
		a, b := read(), read()
		if !vary(field(b)) {
			t.Errorf("%s: the test cannot make another value of it", name)
			return
		}
		if (fixedDifference(a, b) == "") != taken[name] {
			t.Errorf("%s: cannot change while running: %q; taken by a reload: %t", name, fixedDifference(a, b), taken[name])
		}
	}
	file := reflect.TypeFor[config.File]()
	for i := range file.NumField() {
		name := file.Field(i).Name
		if name != "Ingress" && name != "Egress" {
			check(name, func(f *config.File) reflect.Value { return reflect.ValueOf(f).Elem().Field(i) })
			continue
		}
		for j := range file.Field(i).Type.NumField() {
			check(name+"."+file.Field(i).Type.Field(j).Name, func(f *config.File) reflect.Value { return reflect.ValueOf(f).Elem().Field(i).Field(j) })
		}
	}
}

// vary makes another value of a field.
func vary(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(v.Uint() + 1)
	case reflect.Float64:
		v.SetFloat(v.Float() + 1)
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		if v.Type().Elem().Kind() == reflect.Struct && !vary(v.Elem()) {
			v.SetZero()
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), v.Len()+1, v.Len()+1))
		if v.Type().Elem().Kind() == reflect.String {
			v.Index(0).SetString("x") // [""] and [] look alike
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
	case reflect.Array:
		return vary(v.Index(0))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() && vary(v.Field(i)) {
				return true
			}
		}
		return v.NumField() == 0
	default:
		return false
	}
	return true
}
