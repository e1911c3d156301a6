package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
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
