package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// asked is an introspection endpoint that counts, and an Introspector of it with a clock of its own.
type asked struct {
	*Introspector
	t       *testing.T
	count   atomic.Int32
	mu      sync.Mutex
	now     time.Time
	results map[string]int
	answer  func(w http.ResponseWriter, token string)
}

func (a *asked) tick(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = a.now.Add(d)
}

func (a *asked) clock() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now
}

func newAsked(t *testing.T, keep time.Duration) *asked {
	t.Helper()
	a := &asked{t: t, now: time.Unix(1_800_000_000, 0), results: map[string]int{}}
	a.answer = func(w http.ResponseWriter, token string) {
		switch {
		case strings.HasPrefix(token, "bad"):
			fmt.Fprint(w, `{"active":false,"scope":"x"}`)
		case strings.HasPrefix(token, "short"):
			fmt.Fprintf(w, `{"active":true,"exp":%d}`, a.clock().Unix()+10)
		case strings.HasPrefix(token, "long"):
			fmt.Fprintf(w, `{"active":true,"exp":%d}`, a.clock().AddDate(10, 0, 0).Unix())
		case strings.HasPrefix(token, "odd"):
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"unsupported_token_type"}`)
		case strings.HasPrefix(token, "huge"):
			w.WriteHeader(413)
		default:
			fmt.Fprint(w, `{"active":true}`)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.count.Add(1)
		w.Header().Set("Content-Type", "application/json")
		a.answer(w, r.PostFormValue("token"))
	}))
	t.Cleanup(server.Close)
	c := IntrospectorConfig{Config: configOf(server.URL), Keep: keep}
	c.Now = a.clock
	c.Told = func(result string, _ error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.results[result]++
	}
	var err error
	if a.Introspector, err = NewIntrospector(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// ask asks, and reports whether the token is active.
func (a *asked) ask(q Question) bool {
	a.t.Helper()
	answer, err := a.Ask(a.t.Context(), q)
	if err != nil && !errors.Is(err, ErrInactive) || (err == nil) != (answer.Claims != nil) {
		a.t.Fatalf("%v, %v", answer, err)
	}
	return err == nil
}

func TestIntrospectorKeeps(t *testing.T) {
	a := newAsked(t, MaxKeep)
	steps := func(token string, want bool, life time.Duration) {
		t.Helper()
		before := a.count.Load()
		for _, after := range []time.Duration{0, life - time.Second} {
			a.tick(after)
			if a.ask(Question{Token: token}) != want {
				t.Errorf("%s: not %v", token, want)
			}
		}
		if n := a.count.Load() - before; n != 1 {
			t.Errorf("%s: asked %d times within %s", token, n, life)
		}
		a.tick(time.Second)
		a.ask(Question{Token: token})
		if n := a.count.Load() - before; n != 2 {
			t.Errorf("%s: asked %d times after %s", token, n, life)
		}
	}
	steps("good", true, MaxKeep)
	steps("bad", false, inactiveFor)
	steps("short", true, 10*time.Second)
	steps("long", true, MaxKeep)

	// every byte counts
	a.ask(Question{Token: "good"})
	before := a.count.Load()
	for _, other := range []string{"good=", "Good", "goo", "goodd"} {
		a.ask(Question{Token: other})
	}
	if n := a.count.Load() - before; n != 4 {
		t.Errorf("4 tokens that are nearly one were asked for %d times", n)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Ask(ctx, Question{Token: "another"}); !errors.Is(err, context.Canceled) {
		t.Errorf("who has gone: %v", err)
	}
	if !a.ask(Question{Token: "another"}) {
		t.Error("who comes after somebody who has gone is refused")
	}
	if a.results[AskedInVain] != 0 {
		t.Error("who has gone counts as a failure of the server")
	}
}

// TestIntrospectorFresh holds that a fresh question is never answered by what was known before, that its answer counts for the
// others, and that one which is not active any more is forgotten at once.
func TestIntrospectorFresh(t *testing.T) {
	a := newAsked(t, MaxKeep)
	for range 3 {
		a.ask(Question{Token: "good", Fresh: true})
	}
	a.ask(Question{Token: "good"})
	if n := a.count.Load(); n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
	a.answer = func(w http.ResponseWriter, _ string) { fmt.Fprint(w, `{"active":false}`) }
	if !a.ask(Question{Token: "good"}) {
		t.Error("what was said is not used")
	}
	if a.ask(Question{Token: "good", Fresh: true}) || a.ask(Question{Token: "good"}) {
		t.Error("a token that has ended is active")
	}
	a.tick(inactiveFor)
	if a.ask(Question{Token: "good"}) {
		t.Error("a token that has ended is active again when nobody knows that it is not")
	}
	a.tick(inactiveFor)
	a.answer = func(w http.ResponseWriter, _ string) { fmt.Fprint(w, `{"active":true}`) }
	a.ask(Question{Token: "good"})
	a.Forget()
	before := a.count.Load()
	if a.ask(Question{Token: "good"}); a.count.Load() != before+1 {
		t.Error("what was to be forgotten is used")
	}

	none := newAsked(t, 0)
	for range 3 {
		none.ask(Question{Token: "good"})
	}
	if n := none.count.Load(); n != 3 {
		t.Errorf("with nothing kept it was asked %d times, want 3", n)
	}
}

// TestIntrospectorOneQuestion holds that those who ask for one token at once share a question, that a leader who goes fails
// nobody, and that a fresh question shares none that began before it.
func TestIntrospectorOneQuestion(t *testing.T) {
	a := newAsked(t, MaxKeep)
	hold := make(chan struct{})
	a.answer = func(w http.ResponseWriter, _ string) {
		<-hold
		fmt.Fprint(w, `{"active":true}`)
	}
	leaving, leave := context.WithCancel(t.Context())
	led := make(chan error, 1)
	go func() { _, err := a.Ask(leaving, Question{Token: "t"}); led <- err }()
	waitFor(t, func() bool { return a.count.Load() == 1 })
	results := make(chan error, 12)
	for range 8 {
		go func() { _, err := a.Ask(t.Context(), Question{Token: "t"}); results <- err }()
	}
	for range 4 {
		go func() { _, err := a.Ask(t.Context(), Question{Token: "t", Fresh: true}); results <- err }()
	}
	hasty, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := a.Ask(hasty, Question{Token: "t"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a follower with a deadline of its own: %v", err)
	}
	leave()
	if err := <-led; !errors.Is(err, context.Canceled) {
		t.Errorf("the leader: %v", err)
	}
	close(hold)
	for range 12 {
		if err := <-results; err != nil {
			t.Errorf("a follower: %v", err)
		}
	}
	// the leader's, that of whoever took its place, and at most one for each fresh one
	if n := a.count.Load(); n < 2 || n > 2+4 {
		t.Errorf("asked %d times", n)
	}
}

// TestFreshQuestionIsLater holds that a fresh question is not answered by one that began before it, which the end of the token
// may have overtaken.
func TestFreshQuestionIsLater(t *testing.T) {
	a := newAsked(t, MaxKeep)
	hold := make(chan struct{})
	a.answer = func(w http.ResponseWriter, _ string) {
		if a.count.Load() > 1 {
			fmt.Fprint(w, `{"active":false}`)
			return
		}
		<-hold // the token ends while this is on its way
		fmt.Fprint(w, `{"active":true}`)
	}
	results := make(chan error, 2)
	go func() { _, err := a.Ask(t.Context(), Question{Token: "t"}); results <- err }()
	waitFor(t, func() bool { return a.count.Load() == 1 })
	late := make(chan error, 1)
	go func() { _, err := a.Ask(t.Context(), Question{Token: "t", Fresh: true}); late <- err }()
	time.Sleep(20 * time.Millisecond) // until it waits
	close(hold)
	if err := <-results; err != nil {
		t.Errorf("the first: %v", err)
	}
	if err := <-late; !errors.Is(err, ErrInactive) {
		t.Errorf("a fresh question was answered by what was said before it: %v", err)
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come")
		}
	}
}

// TestIntrospectorFlood is row I08: tokens that nobody has issued, a million of them, take a bounded memory, cost the server a
// bounded number of questions, and stand in nobody's way.
func TestIntrospectorFlood(t *testing.T) {
	a := newAsked(t, MaxKeep)
	a.ask(Question{Token: "good"})
	attacker := netip.MustParseAddr("192.0.2.1")
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	asked, refused := a.count.Load(), 0
	for n := range floodSize {
		_, err := a.Ask(t.Context(), Question{Token: fmt.Sprintf("bad-%d", n), Source: attacker})
		switch {
		case errors.Is(err, ErrTooMany):
			refused++
		case !errors.Is(err, ErrInactive):
			t.Fatal(err)
		}
	}
	if n := int(a.count.Load() - asked); n != tries || refused != floodSize-tries {
		t.Errorf("the server was asked %d times and %d refused, want %d", n, refused, tries)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d tokens have taken %d bytes", floodSize, grown)
	}
	asked = a.count.Load()
	if !a.ask(Question{Token: "good", Source: attacker}) || a.count.Load() != asked {
		t.Error("a token that is active was driven out")
	}
	// a token that was known is asked for, also of a source that is not asked for any more, and also when what was said is old
	a.tick(2 * MaxKeep)
	for range 2000 {
		_, _ = a.Ask(t.Context(), Question{Token: fmt.Sprint("bad", a.count.Load()), Source: attacker})
	}
	if _, err := a.Ask(t.Context(), Question{Token: "bad-new", Source: attacker}); !errors.Is(err, ErrTooMany) {
		t.Errorf("the budget is not spent: %v", err)
	}
	if !a.ask(Question{Token: "good", Source: attacker}) || !a.ask(Question{Token: "good", Fresh: true, Source: attacker}) {
		t.Error("a token that was active is refused for its source")
	}
	if !a.ask(Question{Token: "unheard", Source: netip.MustParseAddr("192.0.2.2")}) {
		t.Error("another source is refused")
	}
	a.tick(tryEvery)
	if !a.ask(Question{Token: "unheard-2", Source: attacker}) {
		t.Error("after a while nothing more may be tried")
	}
	a.mu.Lock()
	kept, used := len(a.inactive.kept), a.inactive.used
	a.mu.Unlock()
	if kept > maxInactive/entryCost || used > maxInactive {
		t.Errorf("%d entries of %d bytes", kept, used)
	}
}

// TestManyAtOnce holds that a source which sends very many tokens at a time is asked for little beyond its budget, and that
// nobody else waits behind them.
func TestManyAtOnce(t *testing.T) {
	a := newAsked(t, MaxKeep)
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release)
	plain := a.answer
	a.answer = func(w http.ResponseWriter, token string) {
		if strings.HasPrefix(token, "bad") {
			<-hold
		}
		plain(w, token)
	}
	const many = 4 * tries
	attacker := netip.MustParseAddr("192.0.2.1")
	ended := make(chan error, many)
	for n := range many {
		go func() {
			_, err := a.Ask(t.Context(), Question{Token: fmt.Sprint("bad-", n), Source: attacker})
			ended <- err
		}()
	}
	waitFor(t, func() bool {
		a.Introspector.mu.Lock()
		defer a.Introspector.mu.Unlock()
		return a.begun == many && a.count.Load() == maxOfSource
	})
	if !a.ask(Question{Token: "good", Source: netip.MustParseAddr("192.0.2.2")}) || !a.ask(Question{Token: "other"}) {
		t.Error("a token of another source is refused")
	}
	release()
	refused := 0
	for range many {
		switch err := <-ended; {
		case errors.Is(err, ErrTooMany):
			refused++
		case !errors.Is(err, ErrInactive):
			t.Fatal(err)
		}
	}
	if n := many - refused; n < tries || n > tries+maxOfSource {
		t.Errorf("%d were asked for", n)
	}
	a.mu.Lock()
	told := a.results[TooMany]
	a.mu.Unlock()
	if told != refused || len(a.queues) != 0 {
		t.Errorf("%d refused, told of %d; %d queues are left", refused, told, len(a.queues))
	}
}

// TestForgetMeanwhile holds that an answer which was under way when all was to be forgotten is used by nobody but who asked.
func TestForgetMeanwhile(t *testing.T) {
	a := newAsked(t, MaxKeep)
	hold := make(chan struct{})
	a.answer = func(w http.ResponseWriter, _ string) { <-hold; fmt.Fprint(w, `{"active":true}`) }
	led := make(chan bool, 1)
	go func() { led <- a.ask(Question{Token: "t"}) }()
	waitFor(t, func() bool { return a.count.Load() == 1 })
	a.Forget()
	close(hold)
	if !<-led || !a.ask(Question{Token: "t"}) || a.count.Load() != 2 {
		t.Errorf("asked %d times, want 2", a.count.Load())
	}
	if !a.ask(Question{Token: "t"}) || a.count.Load() != 2 {
		t.Error("what was said after that is not kept")
	}
}

// TestNegativesAreBounded holds the same where every one was asked for, from as many sources as there are.
func TestNegativesAreBounded(t *testing.T) {
	a := newAsked(t, MaxKeep)
	now := a.clock()
	a.remember(a.nameOf("good"), said{answer: Answer{Claims: map[string]any{}}, until: now.Add(MaxKeep)}, 100, netip.Addr{}, 0)
	for n := range 3 * maxSources {
		source := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
		a.remember(a.nameOf(fmt.Sprint("bad", n)), said{err: ErrInactive, until: now.Add(inactiveFor)}, 0, source, 0)
	}
	if n := len(a.inactive.kept); n > maxInactive/entryCost || n != a.inactive.order.Len() || a.inactive.used > maxInactive || len(a.budget.spent) > maxSources {
		t.Errorf("%d entries of %d bytes, and %d sources", n, a.inactive.used, len(a.budget.spent))
	}
	if s, ok := a.active.get(a.nameOf("good"), now); !ok || s.err != nil {
		t.Error("a token that is active was driven out")
	}
	stranger := netip.MustParseAddr("192.0.2.9")
	if a.budget.left(stranger, now) {
		t.Error("more sources than can be told apart have a budget of their own each")
	}
	if !a.budget.left(netip.Addr{}, now) || !a.budget.left(stranger, now.Add(time.Minute)) {
		t.Error("nobody in particular, or somebody after a while, has no budget")
	}
	a.tick(time.Minute)
	a.remember(a.nameOf("bad"), said{err: ErrInactive, until: a.clock().Add(inactiveFor)}, 0, stranger, 0)
	if n := len(a.budget.spent); n != 1 {
		t.Errorf("after a minute %d sources have spent something", n)
	}
	host, neighbour := netip.MustParseAddr("2001:db8:1:1::1"), netip.MustParseAddr("2001:db8:1:1:ffff::2")
	for range tries {
		a.budget.spend(host, a.clock())
	}
	if a.budget.left(neighbour, a.clock()) || !a.budget.left(netip.MustParseAddr("2001:db8:1:2::1"), a.clock()) {
		t.Error("a host is not one source with all addresses of its /64, or another network is")
	}
}

// TestIntrospectorBytes holds that what is kept of active tokens is bounded in bytes.
func TestIntrospectorBytes(t *testing.T) {
	a := newAsked(t, MaxKeep)
	a.answer = func(w http.ResponseWriter, _ string) {
		fmt.Fprintf(w, `{"active":true,"x":%q}`, strings.Repeat("x", 60<<10))
	}
	for n := range 80 {
		a.ask(Question{Token: fmt.Sprint("t", n)})
	}
	if a.active.used > maxActive || len(a.active.kept) < 10 || len(a.active.kept) > 100 || a.active.order.Len() != len(a.active.kept) {
		t.Errorf("%d answers of %d bytes are kept", len(a.active.kept), a.active.used)
	}
}

// TestIntrospectorAnswers is rows I01 and I02 at the endpoint: what is no answer is none, and what is not true is not active.
func TestIntrospectorAnswers(t *testing.T) {
	answers := map[string]struct {
		status int
		kind   string
		body   string
		active error // nil: there is no answer
	}{
		"{}":                 {200, "application/json", `{}`, ErrInactive},
		"active as text":     {200, "application/json", `{"active":"true"}`, ErrInactive},
		"active as a number": {200, "application/json", `{"active":1}`, ErrInactive},
		"active null":        {200, "application/json", `{"active":null}`, ErrInactive},
		"active a list":      {200, "application/json", `{"active":[true]}`, ErrInactive},
		"Active":             {200, "application/json", `{"Active":true}`, ErrInactive},
		"exp past":           {200, "application/json", `{"active":true,"exp":1799999999}`, ErrInactive},
		"exp as text":        {200, "application/json", `{"active":true,"exp":"1900000000"}`, ErrInactive},
		"active twice":       {200, "application/json", `{"active":false,"active":true}`, nil},
		"a list":             {200, "application/json", `[{"active":true}]`, nil},
		"more behind":        {200, "application/json", `{"active":true} {"active":true}`, nil},
		"HTML":               {200, "text/html", `<html>`, nil},
		"HTML as JSON":       {200, "application/json", `<html>`, nil},
		"a signed one":       {200, "application/token-introspection+jwt", `e30.e30.e30`, nil},
		"201":                {201, "application/json", `{"active":true}`, nil},
		"204":                {204, "application/json", ``, nil},
		"302":                {302, "application/json", `{"active":true}`, nil},
		"400 of another":     {400, "application/json", `{"error":"invalid_client"}`, nil},
		"401":                {401, "application/json", `{"active":true}`, nil},
		"403":                {403, "application/json", `{"active":false}`, nil},
		"404":                {404, "application/json", `{"active":false}`, nil},
		"429":                {429, "application/json", `{}`, nil},
		"500":                {500, "application/json", `{"active":true}`, nil},
		"oversize":           {200, "application/json", `{"active":true,"x":"` + strings.Repeat("x", maxAnswer) + `"}`, nil},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			a := newAsked(t, MaxKeep)
			a.answer = func(w http.ResponseWriter, _ string) {
				w.Header().Set("Content-Type", answer.kind)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(answer.status)
				fmt.Fprint(w, answer.body)
			}
			said, err := a.Ask(t.Context(), Question{Token: "t"})
			if said.Claims != nil || err == nil || errors.Is(err, ErrInactive) != (answer.active != nil) {
				t.Fatalf("%v, %v", said, err)
			}
			resting := a.Resting() != nil
			if resting != (answer.active == nil) {
				t.Errorf("the server is left alone: %v", resting)
			}
			if n := a.count.Load(); n != 1 {
				t.Errorf("asked %d times", n)
			}
			// whatever it was, it does not stay
			a.tick(lastPause)
			a.answer = func(w http.ResponseWriter, _ string) { fmt.Fprint(w, `{"active":true}`) }
			if !a.ask(Question{Token: "t"}) {
				t.Error("a good token is refused for ever")
			}
		})
	}
	a := newAsked(t, MaxKeep)
	for range 3 {
		for _, token := range []string{"odd", "huge"} {
			if _, err := a.Ask(t.Context(), Question{Token: token}); err == nil || errors.Is(err, ErrInactive) {
				t.Errorf("%s: %v", token, err)
			}
		}
	}
	if a.Resting() != nil {
		t.Errorf("a token that the server does not take closes it for all others: %v", a.Resting())
	}
	if n := a.count.Load(); n != 1+3 {
		t.Errorf("asked %d times: a refusal is an answer, and kept", n)
	}
}

// FuzzLives: whatever an answer says, a token lives only where active is true itself, for 30 s at most and not beyond exp.
func FuzzLives(f *testing.F) {
	f.Add(`{"active":true,"exp":1800000010}`)
	f.Add(`{"active":"true"}`)
	f.Add(`{"active":true,"exp":1e300}`)
	now := time.Unix(1_800_000_000, 0)
	f.Fuzz(func(t *testing.T, text string) {
		response := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: http.NoBody}
		response.Body = readCloser{strings.NewReader(text)}
		answer, _, err := read(response)
		if err != nil {
			return
		}
		until, err := lives(answer, now, MaxKeep)
		if err != nil {
			return
		}
		var plain struct {
			Active any
			Exp    *json.Number
		}
		if answer["active"] != any(true) || !until.After(now) || until.Sub(now) > MaxKeep {
			t.Fatalf("%q lives until %s", text, until)
		}
		if err := json.Unmarshal([]byte(text), &plain); err == nil && plain.Exp != nil && answer["exp"] != nil {
			if exp, err := plain.Exp.Int64(); err == nil && until.Unix() > exp && answer["exp"] == any(exp) {
				t.Fatalf("%q lives until %s", text, until)
			}
		}
	})
}

// FuzzStatement: a signed answer counts only if it is one, of this issuer, for this client, of now.
func FuzzStatement(f *testing.F) {
	f.Add(`{"iss":"i","aud":"c","iat":1800000000,"token_introspection":{"active":true}}`)
	f.Add(`{"iss":"i","aud":["c","d"],"iat":1799999000,"token_introspection":{}}`)
	f.Add(`{"iss":"i","aud":["c",1],"iat":9223372036854775807,"token_introspection":{"active":true},"exp":1}`)
	now := time.Unix(1_800_000_000, 0)
	f.Fuzz(func(t *testing.T, text string) {
		var claims map[string]any
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		if d.Decode(&claims) != nil {
			return
		}
		for name, value := range claims {
			if n, ok := value.(json.Number); ok {
				if i, err := n.Int64(); err == nil {
					claims[name] = i
				}
			}
		}
		if _, err := Statement(signedType, claims, "i", "c", now, 0); err != nil {
			return
		}
		if _, err := Statement("jwt", claims, "i", "c", now, 0); err == nil {
			t.Fatal("another typ")
		}
		iat, ok := claims["iat"].(int64)
		if claims["iss"] != "i" || !ok || iat > now.Unix() || iat < now.Unix()-60 || !strings.Contains(fmt.Sprint(claims["aud"]), "c") {
			t.Fatalf("%s counts", text)
		}
	})
}
