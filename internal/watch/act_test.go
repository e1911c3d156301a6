package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/state"
)

// A token without jti is ended by its digest; the subject too, if the rule says so; nobody, if it may have been several.
func TestWhomQuarantineEnds(t *testing.T) {
	rule := Rule{Name: "r", Says: "s", Point: "egress", Codes: []string{"escape_target"}, Do: []string{doQuarantine}, Subject: 15 * time.Minute}
	p := newPost(t, Config{Rules: []Rule{rule}})
	r := out("escape_target", "t-1", nil)
	r.Caller.TokenID = ""
	p.see(r)
	p.pass(2 * time.Minute)
	p.see(out("escape_target", "", map[string]any{"requests": []string{"a", "b"}}))
	list := p.raised()
	if len(list) != 2 || len(p.ended) != 2 {
		t.Fatalf("%+v, %+v", list, p.ended)
	}
	token, subject := p.ended[0], p.ended[1]
	if token.TokenID != "" || token.Digest != "digest-t-1" || token.Subject != "" {
		t.Errorf("%+v", token)
	}
	if at := p.at.Add(-2 * time.Minute); subject.Subject != "alice" || subject.Digest != "" || !subject.Before.Equal(at.Add(15*time.Minute)) || !subject.Until.After(subject.Before) {
		t.Errorf("%+v", subject)
	}
	if list[1].Not == "" || len(list[1].Did) > 0 || !slices.Equal(list[1].Requests, []string{"a", "b"}) {
		t.Errorf("%+v", list[1])
	}
}

// A store that is down is said so, in the alarm's record.
func TestQuarantineThatFails(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	p.failing = errors.New("no quorum")
	p.see(out("escape_target", "t-1", nil))
	if list := p.raised(); len(list) != 1 || !strings.Contains(list[0].Not, "no quorum") || !strings.Contains(fmt.Sprint(p.records[0].Detail["not"]), "no quorum") {
		t.Errorf("%+v", list)
	}
}

func TestWebhook(t *testing.T) {
	var tries atomic.Int32
	got := make(chan Alarm, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		var a Alarm
		if r.Header.Get("Authorization") != "Bearer s3cret" || json.NewDecoder(r.Body).Decode(&a) != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		got <- a
	}))
	defer server.Close()
	client := server.Client()
	defer client.CloseIdleConnections()
	p := newPost(t, Config{Rules: Rules(), Webhook: &Webhook{URL: server.URL, Client: client, Secret: func() (string, error) { return "s3cret", nil }}})
	p.see(out("escape_target", "t-1", nil))
	select {
	case a := <-got:
		if a.Rule != "escape-target" || a.TokenID != "t-1" || !slices.Equal(a.Did, []string{"quarantine"}) {
			t.Errorf("%+v", a)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was sent")
	}
}

// A webhook that does not answer must not keep the program from ending.
func TestEndsBesideASlowWebhook(t *testing.T) {
	called := make(chan struct{}, 100)
	stuck := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or it is not noticed that the client goes
		called <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(stuck.Close)
	p := newPost(t, Config{Rules: Rules(), Webhook: &Webhook{URL: stuck.URL, Client: stuck.Client()}})
	for i := range 20 {
		p.see(out("escape_target", fmt.Sprint("t-", i), nil))
	}
	<-called
	began := time.Now()
	p.stop()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if len(p.ended) != 20 || len(p.records) != 20 {
		t.Errorf("%d are ended, %d on record", len(p.ended), len(p.records))
	}
}

// A store that does not answer holds up nobody else's end: a revocation holds here before it is stored.
func TestSlowStoreHoldsUpNobody(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	asked, answered := make(chan string, 10), make(chan struct{})
	p.config.Revoke = func(_ context.Context, r state.Revocation) error {
		asked <- r.TokenID
		<-answered
		return nil
	}
	for _, token := range []string{"t-1", "t-2"} {
		p.see(out("escape_target", token, nil))
	}
	for range 2 {
		select {
		case <-asked:
		case <-time.After(5 * time.Second):
			t.Error("one waits for the other")
		}
	}
	close(answered)
	p.stop()
	if len(p.records) != 2 {
		t.Errorf("%d on record", len(p.records))
	}
}

// Each token that causes what a rule ends tokens for is ended, however soon after another, and once.
func TestEveryTokenIsEnded(t *testing.T) {
	p := newPost(t, Config{Rules: Rules()})
	p.see(out("escape_target", "", nil)) // nobody's, and it must not be anybody's cover
	for range 3 {
		for _, token := range []string{"t-1", "t-2", "t-3"} {
			p.see(out("escape_target", token, nil))
		}
		p.see(out("escape_target", "", nil))
	}
	var ended []string
	alarms := p.raised()
	for _, r := range p.ended {
		ended = append(ended, r.TokenID)
	}
	slices.Sort(ended)
	if !slices.Equal(ended, []string{"t-1", "t-2", "t-3"}) || len(alarms) != 4 {
		t.Errorf("ended %q, %d alarms", ended, len(alarms))
	}
}
