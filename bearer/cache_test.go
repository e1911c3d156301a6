package bearer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// remembering is a verifier that remembers, of one issuer, at a time that can be set.
func remembering(t testing.TB, size int64, change ...func(*Issuer)) (*Verifier, *atomic.Int64) {
	issuer, now := allAlgorithms(t), &atomic.Int64{}
	now.Store(testNow.UnixNano())
	for _, c := range change {
		c(&issuer)
	}
	return mustVerifier(t, Options{Now: func() time.Time { return time.Unix(0, now.Load()) }, Remember: size}, issuer), now
}

// use verifies a token and reports whether that took a check of its signature.
func use(t testing.TB, v *Verifier, token string) (code string, checked bool) {
	t.Helper()
	_, before, _, _ := v.Remembered()
	code = codeOf(t, v, token)
	_, after, _, _ := v.Remembered()
	return code, after > before
}

func TestTheSecondUseIsRemembered(t *testing.T) {
	v, _ := remembering(t, 1<<20)
	token := signers()["ES256"].token(goodClaims(testNow))
	for i, want := range []bool{true, true, false, false} {
		if code, checked := use(t, v, token); code != "" || checked != want {
			t.Errorf("use %d: code %q, signature checked %v", i+1, code, checked)
		}
	}
	hits, misses, entries, bytes := v.Remembered()
	if hits != 2 || misses != 2 || entries != 1 || bytes < 500 {
		t.Errorf("%d hits, %d misses, %d entries, %d bytes", hits, misses, entries, bytes)
	}
	none, _ := remembering(t, 0)
	for range 4 {
		if code := codeOf(t, none, token); code != "" {
			t.Error(code)
		}
	}
	if hits, misses, entries, bytes := none.Remembered(); hits+misses+uint64(entries)+uint64(bytes) != 0 {
		t.Error("something is remembered where nothing is to be")
	}
	if _, err := NewVerifier([]Issuer{allAlgorithms(t)}, Options{Remember: -1}); err == nil {
		t.Error("a negative size was taken")
	}
}

// What is remembered ends with the token, without leeway; after the issuer's longest lifetime; after five minutes; and where the
// clock was put back.
func TestHowLongItIsRemembered(t *testing.T) {
	for _, test := range []struct {
		name     string
		expires  time.Duration
		lifetime time.Duration
		issued   bool
		at       time.Duration
		checked  bool
	}{
		{"before exp", 100 * time.Second, 0, true, 100*time.Second - 1, false},
		{"from exp on", 100 * time.Second, 0, true, 100 * time.Second, true}, // and accepted, by the leeway
		{"before five minutes", time.Hour - 10*time.Second, 0, true, 5*time.Minute - 1, false},
		{"after five minutes", time.Hour - 10*time.Second, 0, true, 5 * time.Minute, true},
		{"before the longest lifetime", time.Minute, time.Minute, false, time.Minute - 1, false},
		{"after the longest lifetime", time.Minute, time.Minute, false, time.Minute, true},
		{"the clock put back", time.Minute, 0, true, -time.Second, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			v, now := remembering(t, 1<<20, func(i *Issuer) { i.MaxLifetime = test.lifetime })
			claims := with(goodClaims(testNow), object{"exp": testNow.Add(test.expires).Unix()})
			if !test.issued {
				delete(claims, "iat")
			}
			token := signers()["EdDSA"].token(claims)
			for range 2 {
				use(t, v, token)
			}
			now.Store(testNow.Add(test.at).UnixNano())
			if code, checked := use(t, v, token); code != "" || checked != test.checked {
				t.Errorf("code %q, signature checked %v", code, checked)
			}
		})
	}
	// while it is remembered, its time is judged all the same
	v, now := remembering(t, 1<<20)
	token := signers()["EdDSA"].token(with(goodClaims(testNow), object{"nbf": testNow.Unix()}))
	use(t, v, token)
	use(t, v, token)
	now.Store(testNow.Add(-6 * time.Second).UnixNano())
	if code := codeOf(t, v, token); code != codeNotYet {
		t.Errorf("before its nbf: %q", code)
	}
}

func TestAChangeOfKeysIsNotRememberedOver(t *testing.T) {
	one, two, other := newSigner("k", "ES256"), newSigner("k", "ES256"), newSigner("other", "ES256")
	file := writeFile(t, jwks(one.jwk()))
	v := mustVerifier(t, Options{Now: clock, Remember: 1 << 20}, Issuer{Issuer: testIssuer, Audience: []string{testAudience}, Keys: Keys{File: file}})
	token := one.token(goodClaims(testNow))
	for range 3 {
		use(t, v, token)
	}
	for _, test := range []struct {
		name    string
		keys    []object
		code    string
		checked bool
	}{
		{"the same keys", []object{one.jwk()}, "", false},
		{"another key beside it: it is known by its thumbprint", []object{other.jwk(), one.jwk()}, "", false},
		{"another key under its kid", []object{two.jwk()}, codeSignature, true},
		{"the first key again", []object{one.jwk()}, "", true}, // what is remembered is of the first, and what is said of now
		{"the same key under another kid", []object{one.jwk(object{"kid": "other"})}, codeKey, false},
		{"the key for something else", []object{one.jwk(object{"use": "enc"}), other.jwk()}, codeKey, false},
		{"two keys under its kid", []object{one.jwk(), two.jwk()}, codeAmbiguous, false},
		{"withdrawn", []object{other.jwk()}, codeKey, false},
	} {
		if err := os.WriteFile(file, []byte(jwks(test.keys...)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := v.authorities[testIssuer].keys.update(context.Background()); err != nil {
			t.Fatal(err)
		}
		code, checked := use(t, v, token)
		if code != test.code || checked && !test.checked {
			t.Errorf("%s: code %q, signature checked %v", test.name, code, checked)
		}
	}
}

// What else of keys is seen at once: that they are too old, what they are used with, and what they are called.
func TestWhatKeysAreIsNotRememberedOver(t *testing.T) {
	rs := newSigner("k", "RS256")
	file, now := writeFile(t, jwks(rs.jwk(object{"alg": nil}))), &atomic.Int64{}
	now.Store(testNow.Unix())
	v := mustVerifier(t, Options{Now: func() time.Time { return time.Unix(now.Load(), 0) }, Remember: 1 << 20},
		Issuer{Issuer: testIssuer, Audience: []string{testAudience}, Keys: Keys{File: file}})
	publish := func(keys ...object) {
		t.Helper()
		if err := os.WriteFile(file, []byte(jwks(keys...)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := v.authorities[testIssuer].keys.update(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	claims := with(goodClaims(testNow), object{"exp": testNow.Unix() + 3500})
	named, nameless := rs.token(claims), rs.raw(`{"alg":"RS256","typ":"at+jwt"}`, mustJSON(claims))
	for range 2 {
		use(t, v, named)
		use(t, v, nameless)
	}
	publish(rs.jwk(object{"alg": "PS256"}))
	if code, _ := use(t, v, named); code != codeAlgorithm {
		t.Errorf("the key is for PS256 now: %q", code)
	}
	publish(rs.jwk(object{"kid": "new"}))
	if caller, err := v.Verify(context.Background(), NewToken(nameless)); err != nil || caller.KeyID != "new" {
		t.Errorf("the key is called new now: %q, %v", caller.KeyID, err)
	}
	publish(rs.jwk())
	for range 2 { // at a time when they will be too old before it is forgotten
		now.Store(testNow.Unix() + 3480)
		use(t, v, named)
	}
	v.authorities[testIssuer].keys.current.Load().staleAt = time.Unix(now.Load()+10, 0)
	if code, checked := use(t, v, named); code != "" || checked {
		t.Errorf("before the keys are too old: %q, checked %v", code, checked)
	}
	now.Add(10)
	if code, _ := use(t, v, named); code != codeUnavailable {
		t.Errorf("the keys are too old: %q", code)
	}
}

// Each byte counts: a token that differs anywhere is another one.
func TestTheNameIsOfEveryByte(t *testing.T) {
	c := newCache(1 << 20)
	token := signers()["RS256"].token(goodClaims(testNow))
	names := map[name]bool{c.nameOf(token): true}
	for i := range len(token) {
		names[c.nameOf(token[:i]+string(token[i]^1)+token[i+1:])] = true
		names[c.nameOf(token[:i])] = true
	}
	if len(names) != 2*len(token)+1 {
		t.Errorf("%d names of %d tokens", len(names), 2*len(token)+1)
	}
	if other := newCache(1 << 20); other.nameOf(token) == c.nameOf(token) {
		t.Error("two verifiers give a token the same name")
	}
}

// Tokens that are used once push nothing out, however many there are; and what is remembered stays within its bytes.
func TestTheCacheIsBounded(t *testing.T) {
	const size = 4 << 20
	v, _ := remembering(t, size)
	s := signers()["ES256"]
	hot := plant(t, v, s, 0)
	for i := range 20_000 {
		raw := fmt.Sprintf("%d", i)
		p := &proof{name: v.cache.nameOf(raw), authority: v.authorities[testIssuer], claims: goodClaims(testNow)}
		v.cache.keep(p, testNow)
	}
	if code, checked := use(t, v, hot); checked {
		t.Errorf("pushed out by tokens that were used once; %q", code)
	}
	if _, _, entries, _ := v.Remembered(); entries > 2 { // two traces may be alike
		t.Errorf("%d entries of tokens that were used once", entries-1)
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	most := 0
	for i := range 6000 {
		plant(t, v, s, i)
		if i%50 == 0 {
			plant(t, v, s, 7) // is used again and again
		}
		if _, _, entries, bytes := v.Remembered(); bytes > size {
			t.Fatalf("%d bytes of %d", bytes, size)
		} else {
			most = max(most, entries)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if most < size/4096 {
		t.Errorf("no more than %d entries", most)
	}
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	if t.Logf("%d entries, heap grown by %d bytes", most, grown); grown > size*5/4 {
		t.Errorf("the heap has grown by %d bytes, of %d", grown, size)
	}
	runtime.KeepAlive(v)
}

// One token with much in it takes no more than its share.
func TestALargeTokenIsNotRemembered(t *testing.T) {
	v, _ := remembering(t, 256<<10)
	var list []any
	for range 1500 {
		list = append(list, []any{})
	}
	token := signers()["EdDSA"].token(with(goodClaims(testNow), object{"x": list}))
	for range 3 {
		if code, checked := use(t, v, token); code != "" || !checked {
			t.Errorf("code %q, checked %v", code, checked)
		}
	}
	if _, _, entries, _ := v.Remembered(); entries != 0 {
		t.Error("it is remembered")
	}
}

// Who waits for another's check shares what that has shown, and nothing else: neither its refusal, nor its end, nor its panic.
func TestFlights(t *testing.T) {
	v, _ := remembering(t, 1<<20)
	token := signers()["ES256"].token(goodClaims(testNow))
	n := v.cache.nameOf(token)
	s := v.cache.shard(n)
	good := func() (*proof, *Error) { return v.establish(token) }
	for _, test := range []struct {
		name        string
		leads       func() (*proof, *Error)
		ctx         func() (context.Context, context.CancelFunc)
		code        string
		established int
	}{
		{"the leader shows it", good, nil, "", 0},
		{"the leader is refused", func() (*proof, *Error) { return nil, refuse(codeSignature, "") }, nil, "", 1},
		{"the leader panics", func() (*proof, *Error) { panic("as the test wants it") }, nil, "", 1},
		{"who waits goes", nil, func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.Background(), time.Millisecond)
		}, codeCanceled, 0},
		{"the leader's proof is of a key that has gone", func() (*proof, *Error) {
			p, refusal := good()
			p.epoch.Store(99)
			p.key.Thumbprint = "another"
			return p, refusal
		}, nil, "", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			begun, finish, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
			go func() {
				defer close(ended)
				defer func() { recover() }()
				s.once(context.Background(), n, func() (*proof, *Error) {
					close(begun)
					<-finish
					if test.leads == nil {
						return nil, refuse(codeSignature, "")
					}
					return test.leads()
				})
			}()
			<-begun
			ctx, cancel := context.Background(), context.CancelFunc(func() {})
			if test.ctx != nil {
				ctx, cancel = test.ctx()
			}
			defer cancel()
			if test.ctx == nil {
				time.AfterFunc(20*time.Millisecond, func() { close(finish) })
			}
			established := 0
			p, refusal := s.once(ctx, n, func() (*proof, *Error) { established++; return good() })
			if test.code == "" && (refusal != nil || p == nil || p.name != n) || test.code != "" && (refusal == nil || refusal.Code != test.code || p != nil) {
				t.Errorf("%v, %v", p, refusal)
			}
			if established != test.established {
				t.Errorf("established %d times", established)
			}
			if test.ctx != nil {
				close(finish)
			}
			<-ended
			if len(s.flights) != 0 {
				t.Error("the flight has not ended")
			}
		})
	}
	// a leader whose request has ended is refused, and what it has shown lets others in by their own right only
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	var refusal *Error
	if _, err := v.Verify(ended, NewToken(token)); !errors.As(err, &refusal) || refusal.Code != codeCanceled {
		t.Errorf("%v", err)
	}
}

// What a handler does to its caller is not done to the next one's.
func TestRequireGivesEachItsOwn(t *testing.T) {
	v, _ := remembering(t, 1<<20)
	token := signers()["ES256"].token(with(goodClaims(testNow), object{"realm": object{"roles": []any{"reader"}}}))
	handler := Require(v)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := identity.FromContext(r.Context())
		fmt.Fprint(w, c.Scopes, c.Claims["realm"], c.Claims["admin"])
		c.Scopes[0] = "admin"
		c.Claims["admin"] = true
		c.Claims["realm"].(map[string]any)["roles"].([]any)[0] = "admin"
	}))
	for i := range 4 {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if got := w.Body.String(); strings.Contains(got, "admin") || strings.Contains(got, "true") || !strings.Contains(got, "reader") {
			t.Errorf("request %d: %s", i+1, got)
		}
	}
	if hits, _, _, _ := v.Remembered(); hits != 2 {
		t.Errorf("%d hits", hits)
	}
}

// A hit makes nothing for the collector.
func TestAHitAllocatesNothing(t *testing.T) {
	v, _ := remembering(t, 1<<20)
	token := NewToken(plant(t, v, signers()["ES256"], 1))
	ctx := context.Background()
	if n := testing.AllocsPerRun(200, func() {
		if _, err := v.Verify(ctx, token); err != nil {
			t.Fatal(err)
		}
	}); n >= 1 && !raceDetector() {
		t.Errorf("%v allocations", n)
	}
}

// raceDetector reports whether the test was built with -race, under which pools forget at random.
func raceDetector() bool {
	info, ok := readBuildSetting("-race")
	on, err := strconv.ParseBool(info)
	return ok && err == nil && on
}
