package credential

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestAnswers holds what an authorization server may answer to the one form.
func TestAnswers(t *testing.T) {
	jwt := func(claims string) string {
		b64 := base64.RawURLEncoding.EncodeToString
		return b64([]byte(`{"alg":"ES256"}`)) + "." + b64([]byte(claims)) + "." + b64([]byte("super-secret-signature"))
	}
	oauthError := func(status int, code string) func(http.ResponseWriter, *http.Request, int) {
		return func(w http.ResponseWriter, r *http.Request, _ int) {
			write(w, status, map[string]any{"error": code, "error_description": r.PostForm.Get("subject_token")})
		}
	}
	now := newClock().Now().Unix()
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request, int)
		want   string
	}{
		"good":                   {good(nil), "Bearer issued-token-a"},
		"lower case":             {good(map[string]any{"token_type": "bearer"}), "Bearer issued-token-a"},
		"narrower":               {good(map[string]any{"scope": "invoice:read"}), "Bearer issued-token-a"},
		"no scope":               {good(map[string]any{"scope": ""}), "Bearer issued-token-a"},
		"a JWT type":             {good(map[string]any{"issued_token_type": typeJWT}), "Bearer issued-token-a"},
		"no end":                 {good(map[string]any{"expires_in": nil}), "Bearer issued-token-a"},
		"a far end":              {good(map[string]any{"expires_in": int64(1) << 62}), "Bearer issued-token-a"},
		"more members":           {good(map[string]any{"refresh_token": "r", "x": []any{1}}), "Bearer issued-token-a"},
		"wider":                  {good(map[string]any{"scope": "invoice:read invoice:delete"}), CodeUnavailable},
		"scope is a number":      {good(map[string]any{"scope": 1}), CodeUnavailable},
		"token is wider":         {good(map[string]any{"access_token": jwt(`{"scope":"invoice:delete"}`)}), CodeUnavailable},
		"token is wider, a list": {good(map[string]any{"access_token": jwt(`{"scope":["invoice:read","invoice:delete"]}`)}), CodeUnavailable},
		"token has ended":        {good(map[string]any{"access_token": jwt(fmt.Sprintf(`{"exp":%d}`, now))}), CodeUnavailable},
		"no token":               {good(map[string]any{"access_token": nil}), CodeUnavailable},
		"empty token":            {good(map[string]any{"access_token": ""}), CodeUnavailable},
		"token with a line":      {good(map[string]any{"access_token": "issued\r\nX-Admin: 1"}), CodeUnavailable},
		"token is an object":     {good(map[string]any{"access_token": map[string]any{}}), CodeUnavailable},
		"a long token":           {good(map[string]any{"access_token": strings.Repeat("a", 9000)}), CodeUnavailable},
		"a short token":          {good(map[string]any{"access_token": "a"}), CodeUnavailable},
		"no type":                {good(map[string]any{"token_type": nil}), CodeUnavailable},
		"DPoP":                   {good(map[string]any{"token_type": "DPoP"}), CodeUnavailable},
		"N_A":                    {good(map[string]any{"token_type": "N_A"}), CodeUnavailable},
		"no issued type":         {good(map[string]any{"issued_token_type": nil}), CodeUnavailable},
		"a refresh token":        {good(map[string]any{"issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}), CodeUnavailable},
		"end as a string":        {good(map[string]any{"expires_in": "300"}), CodeUnavailable},
		"end is a fraction":      {good(map[string]any{"expires_in": 1.5}), CodeUnavailable},
		"end is past":            {good(map[string]any{"expires_in": -1}), CodeUnavailable},
		"twice": {text(200, "application/json", `{"access_token":"issued-token","access_token":"b","token_type":"Bearer","expires_in":9,"issued_token_type":"`+typeJWT+`"}`),
			CodeUnavailable},
		"an array":         {text(200, "application/json", `[]`), CodeUnavailable},
		"nothing":          {text(200, "application/json", ``), CodeUnavailable},
		"HTML":             {text(200, "text/html", `<html>issued-token</html>`), CodeUnavailable},
		"JSON as HTML":     {text(200, "text/html", `{"access_token":"issued-token","token_type":"Bearer"}`), CodeUnavailable},
		"no content":       {text(204, "application/json", ``), CodeUnavailable},
		"created":          {text(201, "application/json", `{}`), CodeUnavailable},
		"500":              {text(500, "application/json", `{"error":"invalid_grant"}`), CodeUnavailable},
		"429":              {text(429, "application/json", `{}`), CodeUnavailable},
		"oversize":         {text(200, "application/json", `{"x":"`+strings.Repeat("a", 70<<10)+`"}`), CodeUnavailable},
		"deep":             {text(200, "application/json", strings.Repeat(`{"a":`, 50)+"1"+strings.Repeat("}", 50)), CodeUnavailable},
		"refused":          {oauthError(400, "invalid_grant"), CodeRefused},
		"refused target":   {oauthError(400, "invalid_target"), CodeRefused},
		"refused request":  {oauthError(400, "invalid_request"), CodeRefused},
		"unknown client":   {oauthError(401, "invalid_client"), CodeUnavailable},
		"client may not":   {oauthError(400, "unauthorized_client"), CodeUnavailable},
		"an odd code":      {oauthError(400, "issued-token"), CodeUnavailable},
		"refused, in HTML": {text(400, "text/html", "no"), CodeUnavailable},
		"hangs up":         {func(w http.ResponseWriter, _ *http.Request, _ int) { panic(http.ErrAbortHandler) }, CodeUnavailable},
		"redirects": {func(w http.ResponseWriter, r *http.Request, n int) {
			if r.URL.Path == "/token" {
				http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
				return
			}
			good(nil)(w, r, n)
		}, CodeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			clock, server := newClock(), newServer(t)
			server.set(tt.answer)
			s := start(t, exchangeOf(t, server), Options{Now: clock.Now})
			if got := attach(t, s, causeOf(clock, "alice")); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			if n := server.requests(); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestDeadServer holds that a server which fails does not keep every request waiting.
func TestDeadServer(t *testing.T) {
	clock, server := newClock(), newServer(t)
	server.set(text(500, "text/plain", ""))
	s := start(t, exchangeOf(t, server), Options{Now: clock.Now})
	for i := range 50 {
		if got := attach(t, s, causeOf(clock, fmt.Sprint(i))); got != CodeUnavailable {
			t.Fatal(got)
		}
	}
	if n := server.requests(); n != 1 {
		t.Errorf("%d of 50 requests were sent on to a server that fails", n)
	}
	for range 100 { // the pauses grow to 15 s
		clock.Advance(time.Second)
		attach(t, s, causeOf(clock, "x"))
	}
	if n := server.requests(); n < 8 || n > 14 {
		t.Errorf("%d requests in 100 s", n)
	}
	server.set(nil)
	clock.Advance(15 * time.Second)
	if got := attach(t, s, causeOf(clock, "x")); !strings.HasPrefix(got, "Bearer ") {
		t.Errorf("after it came back: %s", got)
	}
	if got := attach(t, s, causeOf(clock, "y")); !strings.HasPrefix(got, "Bearer ") {
		t.Errorf("after it came back, the next: %s", got)
	}
}

// TestSlowServer holds that nobody waits longer than it likes, and nobody longer than 5 s.
func TestSlowServer(t *testing.T) {
	clock, server := newClock(), newServer(t)
	release := make(chan struct{})
	server.set(func(w http.ResponseWriter, r *http.Request, n int) { <-release })
	s := start(t, exchangeOf(t, server), Options{Now: clock.Now})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := s.Attach(ctx, causeOf(clock, "a")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("impatient: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("impatient, and waited %s", took)
	}
	if got := attach(t, s, causeOf(clock, "a")); got != CodeUnavailable {
		t.Errorf("patient: %s", got)
	}
	if took := time.Since(began); took < 4*time.Second || took > 9*time.Second {
		t.Errorf("patient, and waited %s", took)
	}
	close(release)
}

func TestOneAsksForMany(t *testing.T) {
	clock, server := newClock(), newServer(t)
	release := make(chan struct{})
	server.set(func(w http.ResponseWriter, r *http.Request, n int) {
		<-release
		good(nil)(w, r, n)
	})
	s := start(t, exchangeOf(t, server), Options{Now: clock.Now})
	first, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Attach(first, causeOf(clock, "alice")); !errors.Is(err, context.Canceled) {
			t.Errorf("who left: %v", err)
		}
	})
	for server.requests() == 0 {
		time.Sleep(time.Millisecond)
	}
	leave() // who asked first goes, and the others get their token
	for range 100 {
		wg.Go(func() {
			if got := attach(t, s, causeOf(clock, "alice")); got != "Bearer issued-token-a" {
				t.Errorf("of many: %s", got)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	close(release)
	wg.Wait()
	if n := server.requests(); n != 1 {
		t.Errorf("%d requests for one token", n)
	}
}

func TestRefusalHoldsShortly(t *testing.T) {
	clock, server := newClock(), newServer(t)
	server.set(text(400, "application/json", `{"error":"invalid_grant"}`))
	s := start(t, exchangeOf(t, server), Options{Now: clock.Now})
	for range 10 {
		if got := attach(t, s, causeOf(clock, "alice")); got != CodeRefused {
			t.Fatal(got)
		}
	}
	if n := server.requests(); n != 1 {
		t.Errorf("%d requests for one refusal", n)
	}
	clock.Advance(2 * time.Second)
	server.set(nil)
	if got := attach(t, s, causeOf(clock, "alice")); got != "Bearer issued-token-b" {
		t.Errorf("2 s later: %s", got)
	}
}

func TestKeepsSoMany(t *testing.T) {
	clock, server := newClock(), newServer(t)
	s := start(t, exchangeOf(t, server), Options{Now: clock.Now, Max: 3})
	for _, name := range []string{"a", "b", "c", "a", "d"} {
		attach(t, s, causeOf(clock, name))
	}
	if n := server.requests(); n != 4 || len(s.tokens.held) != 3 || s.tokens.used.Len() != 3 {
		t.Errorf("%d requests, %d kept", n, len(s.tokens.held))
	}
	attach(t, s, causeOf(clock, "a"))
	if n := server.requests(); n != 4 {
		t.Error("the one that was used lately is gone")
	}
	attach(t, s, causeOf(clock, "b"))
	if n := server.requests(); n != 5 {
		t.Error("the one that was not used for longest is still there")
	}
}

func TestService(t *testing.T) {
	clock, server := newClock(), newServer(t)
	s := start(t, serviceOf(t, server), Options{Now: clock.Now})
	for range 3 {
		if got := attach(t, s, Cause{}); got != "Bearer issued-token-a" {
			t.Fatal(got)
		}
	}
	if form := server.form(t, 0); form.Get("grant_type") != "client_credentials" || form.Get("scope") != "invoice:read" || form.Has("subject_token") {
		t.Errorf("asked with %v", form)
	}
	// from three quarters of its life on it is obtained anew while the old one serves
	clock.Advance(225 * time.Second)
	if got := attach(t, s, Cause{}); got != "Bearer issued-token-a" {
		t.Errorf("at three quarters: %s", got)
	}
	for deadline := time.Now().Add(5 * time.Second); attach(t, s, Cause{}) != "Bearer issued-token-b"; {
		if time.Now().After(deadline) {
			t.Fatal("no new one")
		}
		time.Sleep(time.Millisecond)
	}
	if n := server.requests(); n != 2 {
		t.Errorf("%d requests", n)
	}
	// and while that fails
	server.set(text(500, "text/plain", ""))
	clock.Advance(284 * time.Second)
	for range 20 {
		if got := attach(t, s, Cause{}); got != "Bearer issued-token-b" {
			t.Fatalf("while the server fails: %s", got)
		}
		time.Sleep(time.Millisecond)
	}
	clock.Advance(time.Second)
	if got := attach(t, s, Cause{}); got != CodeUnavailable {
		t.Errorf("after the end: %s", got)
	}
	if n := server.requests(); n != 4 {
		t.Errorf("%d requests, want one that failed before the end and one after", n)
	}
}

// FuzzReadAnswer: whatever a server answers, a token comes with a form that a header can carry and an end within an hour.
func FuzzReadAnswer(f *testing.F) {
	f.Add("tok", "Bearer", typeJWT, "invoice:read", int64(300))
	f.Add("a.b.c", "bearer", "", "", int64(-1))
	now := newClock().Now()
	f.Fuzz(func(t *testing.T, token, kind, issued, scope string, seconds int64) {
		answer := map[string]any{"access_token": token, "token_type": kind, "issued_token_type": issued, "scope": scope, "expires_in": seconds}
		got, life, err := readAnswer(answer, []string{"invoice:read"}, true, now)
		if err != nil {
			if got != "" || life != 0 || len(token) > 12 && strings.Contains(err.Error(), token) {
				t.Fatalf("an error with a token: %q, %s, %v", got, life, err)
			}
			return
		}
		if got != token || strings.ContainsAny(got, " \r\n,;\"") || life <= 0 || life > time.Hour || strings.TrimSpace(strings.ReplaceAll(scope, "invoice:read", "")) != "" {
			t.Fatalf("%q for %s, scope %q", got, life, scope)
		}
	})
}
