package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/natstest"
)

// revoke ends one token at the admin listener of a replica, and returns whether that is acknowledged.
func (p *product) revoke(issuer, id string) error {
	status, body, err := p.operate(http.MethodPost, "/revocations", "application/json", strings.NewReader(fmt.Sprintf(`{"issuer":%q,"token_id":%q}`, issuer, id)))
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%d %s", status, body)
	}
	return err
}

// TestPartition cuts a replica off from the servers, and the rest not: it closes before it would have to guess, says so, and
// knows all that was revoked meanwhile when it opens again. What is not privileged stays open, unless the replica knows.
func TestPartition(t *testing.T) {
	t.Parallel()
	var way [natstest.Size]*natstest.Link // of the first replica to the servers
	f := startFleet(t, func(f *fleet, i int) []string {
		if i > 0 {
			return f.servers.URLs(i, (i+1)%3, (i+2)%3)
		}
		var urls []string
		for at := range way {
			link, err := natstest.NewLink(strings.TrimPrefix(f.servers.URLs(at)[0], "nats://"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(link.Close)
			way[at] = link
			urls = append(urls, "nats://"+link.Address())
		}
		return urls
	})
	cut := func(cut bool) {
		for _, link := range way {
			link.Cut(cut)
		}
	}
	alone, other := f.at[0], f.at[1]
	alice, _ := f.token("alice", nil)
	before, beforeID := f.token("before", nil)
	meanwhile, meanwhileID := f.token("meanwhile", nil)
	f.good(t, "a token", before)
	f.ends(t, "a token that was revoked before", before, beforeID, -1, func() time.Time {
		if err := other.revoke(f.issuer.URL, beforeID); err != nil {
			t.Error(err)
		}
		return other.revokedAt(t)
	})
	answers := func(path, token string) string {
		t.Helper()
		a := alone.fetch(t, http.MethodGet, path, token, nil)
		if a.status == http.StatusOK {
			return "200"
		}
		return fmt.Sprint(a.status, " ", a.code())
	}
	is := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	is("together", answers("/echo", alice), "200")

	const refused, again = "privileged routes are refused: standing is not known", "privileged routes are served again: standing is known"
	says := func(what string) int { return strings.Count(alone.output.String(), what) }
	refusedBefore, againBefore := says(refused), says(again)
	cut(true)
	began := time.Now()
	if err := other.revoke(f.issuer.URL, meanwhileID); err != nil {
		t.Fatalf("the rest cannot revoke: %v", err)
	}
	eventually(t, 30*time.Second, "the privileged routes are closed", func() bool { return answers("/echo", alice) == "503 standing_unknown" })
	closed := time.Since(began)
	t.Logf("closed %v after the cut; max_feed_age is 3s", closed.Round(time.Millisecond))
	if closed > 6*time.Second {
		t.Errorf("closed only %v after the cut", closed)
	}
	is("a route that is not privileged", answers("/both", alice), "200")
	for _, path := range []string{"/both", "/echo"} {
		is("what is known holds at "+path, answers(path, before), "401 revoked")
	}
	if status, body := alone.admin(t, http.MethodGet, "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "max_feed_age") {
		t.Errorf("readiness: %d %s", status, body)
	}
	if v := alone.metric(t, "sallyport_ingress_standing_known"); v != 0 {
		t.Errorf("sallyport_ingress_standing_known is %v", v)
	}
	if v := alone.metric(t, "sallyport_state_feed_age_seconds"); v <= 3 {
		t.Errorf("sallyport_state_feed_age_seconds is %v", v)
	}
	eventually(t, 10*time.Second, "the log says so", func() bool { return says(refused) > refusedBefore })
	if a := other.fetch(t, http.MethodGet, "/echo", alice, nil); a.status != http.StatusOK {
		t.Errorf("at a replica that is not cut off: %d %s", a.status, a.code())
	}
	unheard, unheardID := f.token("unheard", nil)
	if err := alone.revoke(f.issuer.URL, unheardID); err == nil {
		t.Error("a revocation that the others cannot know was acknowledged")
	}
	is("it holds where it was asked for", answers("/both", unheard), "401 revoked")

	cut(false)
	opened := "503 standing_unknown"
	eventually(t, 60*time.Second, "it opens again", func() bool { opened = answers("/echo", meanwhile); return opened != "503 standing_unknown" })
	is("the first answer to what was revoked meanwhile", opened, "401 revoked")
	eventually(t, 10*time.Second, "others are served", func() bool { return answers("/echo", alice) == "200" })
	eventually(t, 10*time.Second, "the log says so", func() bool { return says(again) > againBefore })
	if status, body := alone.admin(t, http.MethodGet, "/readyz"); status != http.StatusOK {
		t.Errorf("readiness: %d %s", status, body)
	}

	eventually(t, 30*time.Second, "the others are told what could not be acknowledged", func() bool {
		return other.fetch(t, http.MethodGet, "/echo", unheard, nil).status == http.StatusUnauthorized
	})

	testLonelyStart(t, alone, cut, answers, alice, meanwhile)
	alone.verified(t)
}

// testLonelyStart starts a replica where it cannot ask: it waits, and serves nobody who needs standing.
func testLonelyStart(t *testing.T, alone *product, cut func(bool), answers func(path, token string) string, good, revoked string) {
	is := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	alone.signal(t, syscall.SIGKILL)
	alone.exit(t, 10*time.Second)
	cut(true)
	alone.again(t)
	alone.url = fmt.Sprintf("http://%s", alone.await(t, "listening")["address"])
	alone.await(t, "the service is listening")
	eventually(t, 30*time.Second, "the issuer's keys are there", func() bool { return !strings.HasSuffix(answers("/echo", good), "keys_unavailable") })
	is("after a start without servers", answers("/echo", revoked), "503 standing_unknown")
	is("a good token after a start without servers", answers("/echo", good), "503 standing_unknown")
	if status, body := alone.admin(t, http.MethodGet, "/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("readiness after a start without servers: %d %s", status, body)
	}
	cut(false)
	opened := ""
	eventually(t, 60*time.Second, "it opens", func() bool { opened = answers("/echo", revoked); return opened != "503 standing_unknown" })
	is("the first answer after the start", opened, "401 revoked")
	alone.awaitListening(t)
}
