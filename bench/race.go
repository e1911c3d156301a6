package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lanesOpen  = 64      // connections that a gateway is asked on
	tokensMany = 10_000  // tokens in turn
	tokensNew  = 150_000 // for all rounds of the fastest
	racers     = 7       // rounds of what matters most
)

// race is gateways side by side, and what is around them: the load and the service on the other cores.
type race struct {
	*site
	all     unix.CPUSet
	service *service
	issuer  *issuer
	minted  map[string]*tokens
	alive   map[string][]*gateway // by algorithm: those that were seen to refuse
	out     []string              // left out, or disqualified, and why
	tables  []*table
}

const noGateway = "no gateway"

// gatewayTables are the names of all tables of gateways.
func gatewayTables() []string {
	list := []string{"gateways-goals"}
	for _, a := range algorithms() {
		list = append(list, raceName(a, "one"), raceName(a, "many"))
	}
	return append(list, "gateways-new", "gateways-parts", "gateways-single", "gateways-rate", "gateways-memory", "gateways-start", "gateways-routes", "gateways-known", "gateways-revoked")
}

func raceName(algorithm, pattern string) string {
	return "gateways-" + strings.ToLower(algorithm) + "-" + pattern
}

// measureGateways compares what stands in front of services.
func measureGateways(s *site) (_ []*table, err error) {
	s.say("gateways")
	all, back := aside()
	defer back()
	defer s.release()
	r := &race{site: s, all: all, minted: map[string]*tokens{}, alive: map[string][]*gateway{}, out: s.leftOut()}
	if r.service, err = newService(); err != nil {
		return nil, err
	}
	s.later(r.service.close)
	if err := r.open(); err != nil {
		return nil, err
	}
	var failure error
	for _, step := range []func() error{
		func() error { return r.requests(es256) }, r.everyNew, r.single, r.constantRate, r.memory, r.starts, // the last two end and start gateways
		func() error { return r.requests(rs256) }, func() error { return r.requests(eddsa) },
		r.parts, r.routes, r.known, r.revoked,
	} {
		if err := s.ctx.Err(); err != nil {
			return nil, err
		}
		failure = errors.Join(failure, step())
	}
	r.goals()
	for _, t := range r.tables {
		if t.Name == "gateways-goals" {
			t.Missing = append(r.out, t.Missing...)
		}
	}
	return r.tables, failure
}

// open has the issuer's keys where gateways fetch them.
func (r *race) open() (err error) {
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	if r.issuer, err = newIssuer(r.site, "127.0.0.1:"+ports[0]); err != nil {
		return err
	}
	files := http.FileServer(http.Dir(r.issuer.dir))
	serve := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/.well-known/openid-configuration" {
			u := r.issuer.url()
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"authorization_endpoint":%q,"token_endpoint":%q,"response_types_supported":["code"],`+
				`"subject_types_supported":["public"],"id_token_signing_alg_values_supported":["ES256","RS256","EdDSA"]}`, u, u+"/jwks.json", u+"/a", u+"/t")
			return
		}
		files.ServeHTTP(w, q)
	})
	secure := httptest.NewTLSServer(serve) // for those that fetch keys over TLS only
	r.later(secure.Close)
	r.issuer.secure = secure.URL
	server := &http.Server{Addr: r.issuer.address, Handler: serve}
	go server.ListenAndServe()
	r.later(func() { server.Close() })
	return nil
}

// wanted reports whether any of the tables is.
func (r *race) wanted(names ...string) bool {
	return slices.ContainsFunc(names, r.wants)
}

// tokens makes tokens once.
func (r *race) tokens(algorithm string, n int) (*tokens, error) {
	if t := r.minted[algorithm]; t != nil && t.len() >= n {
		return t.first(n), nil
	}
	r.say("  %d tokens of %s", n, algorithm)
	t, err := r.issuer.many(algorithm, n)
	r.minted[algorithm] = t
	return t, err
}

// running starts the gateways for an algorithm, once, and returns those that refuse what they must.
func (r *race) running(algorithm string) ([]*gateway, error) {
	if list, ok := r.alive[algorithm]; ok {
		return list, nil
	}
	list, err := r.admit(r.site.gateways(algorithm))
	if err != nil {
		return nil, err
	}
	list, err = r.forgetful(list)
	r.alive[algorithm] = list
	return list, err
}

// admit starts gateways and sees them refuse. One that cannot be started is missing; one that lets through what it must refuse is
// disqualified. Neither is an error, unless it is ours.
func (r *race) admit(list []*gateway) (fit []*gateway, failure error) {
	for _, g := range list {
		err := r.enter(g)
		if err != nil && g.log != nil {
			err = fmt.Errorf("%w; %s", err, tail(g.log.Name()))
		}
		if err == nil {
			fit = append(fit, g)
			continue
		}
		failure = errors.Join(failure, r.exclude(g, err))
	}
	return fit, failure
}

// forgetful keeps those of gateways that do not let through what has expired meanwhile.
func (r *race) forgetful(list []*gateway) (fit []*gateway, failure error) {
	stale, err := r.remembered(list)
	if err != nil {
		return nil, err
	}
	for _, g := range list {
		if why := stale[g]; why != nil {
			failure = errors.Join(failure, r.exclude(g, why))
		} else {
			fit = append(fit, g)
		}
	}
	return fit, failure
}

func (r *race) exclude(g *gateway, why error) error {
	g.kill()
	missing := fmt.Sprintf("%s (%s): %v", g.name, g.algorithm, why)
	r.say("  %s", missing)
	r.out = append(r.out, missing)
	if g.ours {
		return errors.New(missing)
	}
	return nil
}

func (r *race) enter(g *gateway) error {
	err := g.start(r.site, r.all, "@service@", r.service.address, "@issuer@", r.issuer.url(), "@jwks@", r.issuer.secure, "@keys@", r.issuer.dir, "@alg@", g.algorithm)
	if err != nil {
		return err
	}
	seen, err := r.prove(g)
	if err == nil {
		r.say("  %s %s: %s", g.name, g.algorithm, seen)
	}
	return err
}

// prove sees a gateway let a good token through and refuse all others, twice each, before and after the good one.
func (r *race) prove(g *gateway) (string, error) {
	if g.algorithm == "" {
		status, reached, err := r.ask(g, "")
		if err != nil || status != http.StatusOK || !reached {
			return "", answered("whatever it is asked", status, err)
		}
		return "lets everything through", nil
	}
	good, err := r.issuer.sign(g.algorithm, r.issuer.claims("good", tokenLife))
	if err != nil {
		return "", err
	}
	refusals, err := r.issuer.refusals(g.algorithm)
	if err != nil {
		return "", err
	}
	for range 2 {
		for _, b := range refusals {
			status, reached, err := r.ask(g, b.token)
			if err != nil {
				return "", fmt.Errorf("asked with %s: %w", b.why, err)
			}
			if status < 400 || status > 499 || reached {
				return "", fmt.Errorf("disqualified: it answers %s with %d", b.why, status)
			}
		}
		if status, reached, err := r.ask(g, good); err != nil || status != http.StatusOK || !reached {
			return "", answered("a good token", status, err)
		}
	}
	return "accepts a good token, and refuses " + whys(refusals), nil
}

// answered says what came of what was asked.
func answered(what string, status int, err error) error {
	if err != nil {
		return fmt.Errorf("asked with %s: %w", what, err)
	}
	return fmt.Errorf("it answers %s with %d", what, status)
}

func whys(list []bad) string {
	var names []string
	for _, b := range list {
		names = append(names, b.why)
	}
	return strings.Join(names, ", ")
}

// remembered sees that what a gateway has let through is refused when it has expired, whatever it remembers.
func (r *race) remembered(list []*gateway) (stale map[*gateway]error, err error) {
	const lasts, grace = 2 * time.Second, 3 * time.Second // sallyport's leeway is a second here
	stale = map[*gateway]error{}
	tokens := map[*gateway]string{}
	for _, g := range list {
		if g.algorithm == "" {
			continue
		}
		token, err := r.issuer.sign(g.algorithm, r.issuer.claims("short", lasts))
		if err != nil {
			return nil, err
		}
		if status, _, err := r.ask(g, token); err != nil || status != http.StatusOK {
			stale[g] = answered("a token that is good for "+lasts.String(), status, err)
			continue
		}
		tokens[g] = token
	}
	time.Sleep(lasts + grace)
	for g, token := range tokens {
		if status, reached, err := r.ask(g, token); err != nil || status < 400 || reached {
			stale[g] = fmt.Errorf("disqualified: %w", answered("a token that it knew, and that has expired,", status, err))
		}
	}
	return stale, nil
}

// ask asks once, on a connection of its own.
func (r *race) ask(g *gateway, token string) (status int, reached bool, err error) {
	request := requestHead
	if token != "" {
		request += "Authorization: Bearer " + token + "\r\n"
	}
	c := &client{address: g.address, request: []byte(request + "\r\n")}
	if err := c.dial(); err != nil {
		return 0, false, err
	}
	defer c.close()
	before := r.service.served.Load()
	a, err := c.exchange()
	if a.status != 0 {
		err = nil // whatever the body is like
	}
	return a.status, r.service.served.Load() > before, err
}

// raceColumns are what load returns.
func raceColumns() []column {
	return []column{{"requests", "1/s"}, {"processor", "µs each"}, {"p50", "ms"}, {"p99", "ms"}, {"memory", "MiB"}}
}

// load asks one gateway for a while.
func (r *race) load(g *gateway, t traffic) ([]float64, error) {
	pids, err := processes(g.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	var spent []float64
	memory := 0.0
	t.address, t.mark = g.address, func() (err error) {
		c, err := cpuTimes(pids)
		spent = append(spent, c)
		if err == nil {
			memory, err = resident(pids)
		}
		return err
	}
	out, err := drive(t)
	if err != nil {
		return nil, err
	}
	return []float64{out.rate, (spent[1] - spent[0]) / out.count, out.p50 / 1000, out.p99 / 1000, memory}, g.forget()
}

// forget empties the file of a gateway's records: it would fill the disk.
func (g *gateway) forget() error {
	if g.records == "" {
		return nil
	}
	return os.Truncate(filepath.Join(g.folder, g.records), 0)
}

// steady is the load of most tables.
func (r *race) steady(t *tokens, next *int) traffic {
	return traffic{connections: lanesOpen, tokens: t, next: next, wrap: true, warm: r.turn(100 * time.Millisecond), lasts: r.turn(800 * time.Millisecond)}
}

// add puts a row for each gateway into a table, and the table among the others.
func (r *race) add(t *table, list []*gateway, once func(g *gateway) func() ([]float64, error)) *table {
	for _, g := range list {
		t.Rows = append(t.Rows, &row{Name: g.name, Note: g.note, checks: !g.ours, once: once(g)})
		g.note = "" // once is enough
	}
	r.tables = append(r.tables, t)
	return t
}

// requests is the race itself: as many as there come, with one token, and with many in turn.
func (r *race) requests(algorithm string) error {
	one, many := raceName(algorithm, "one"), raceName(algorithm, "many")
	if !r.wanted(one, many) && (algorithm != es256 || !r.wanted("gateways-new", "gateways-single", "gateways-rate", "gateways-memory", "gateways-start")) {
		return nil
	}
	list, err := r.running(algorithm)
	if err != nil || !r.wanted(one, many, "gateways-rate") {
		return err
	}
	minted, err := r.tokens(algorithm, r.count(tokensMany))
	if err != nil {
		return err
	}
	if algorithm != es256 {
		defer r.end(algorithm)
	}
	first := r.add(&table{
		Name: one, By: byRatio, Base: haproxyVerify, Columns: raceColumns(),
		Title: fmt.Sprintf("Gateways, one core each: requests on %d kept connections, 200 bytes of answer, one %s token", lanesOpen, algorithm),
	}, list, func(g *gateway) func() ([]float64, error) {
		return func() ([]float64, error) { return r.load(g, r.steady(minted, nil)) }
	})
	second := r.add(&table{
		Name: many, By: byRatio, Base: haproxyVerify, Columns: raceColumns(),
		Title: fmt.Sprintf("The same, %d tokens of %s in turn", minted.len(), algorithm),
	}, list, func(g *gateway) func() ([]float64, error) {
		next := 0
		return func() ([]float64, error) { return r.load(g, r.steady(minted, &next)) }
	})
	if algorithm == es256 {
		first.Rows = append(first.Rows, &row{Name: noGateway, Note: "the load asks the service: more cannot come through any gateway", checks: true, once: func() ([]float64, error) {
			load := r.steady(minted, nil)
			load.address = r.service.address
			out, err := drive(load)
			return []float64{out.rate, 0, out.p50 / 1000, out.p99 / 1000, 0}, err
		}})
	}
	if algorithm == eddsa {
		first.Base, second.Base = goReverseProxy, goReverseProxy
	}
	rounds := racers
	if algorithm != es256 {
		rounds = 5
	}
	return errors.Join(r.run(first, rounds), r.run(second, rounds))
}

// run runs a table and says so.
func (r *race) run(t *table, rounds int) error {
	if !r.wants(t.Name) {
		return nil
	}
	r.say("  %s", t.Name)
	if r.rounds > 0 {
		rounds = r.rounds
	}
	return t.run(r.site, rounds)
}

// end ends the gateways of an algorithm.
func (r *race) end(algorithm string) {
	for _, g := range r.alive[algorithm] {
		g.kill()
	}
	delete(r.alive, algorithm)
}

// table finds one that has been measured.
func (r *race) table(name string) *table {
	i := slices.IndexFunc(r.tables, func(t *table) bool { return t.Name == name && len(t.Rows) > 0 && len(t.Rows[0].rounds) > 0 })
	if i < 0 {
		return nil
	}
	return r.tables[i]
}

// row finds one by its name; nil if it is not there.
func (t *table) row(name string) *row {
	if t == nil {
		return nil
	}
	i := slices.IndexFunc(t.Rows, func(r *row) bool { return r.Name == name })
	if i < 0 {
		return nil
	}
	return t.Rows[i]
}

// named are those of the gateways that have one of the names.
func named(list []*gateway, names ...string) (some []*gateway) {
	for _, g := range list {
		if slices.Contains(names, g.name) || g.ours {
			some = append(some, g)
		}
	}
	return some
}
