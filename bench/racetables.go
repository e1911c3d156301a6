package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/sallyport/sallyport/internal/state"
)

// signatureRow is no gateway.
const signatureRow = "the signature check alone"

// everyNew is what tokens cost that were never seen before.
func (r *race) everyNew() error {
	if !r.wants("gateways-new") {
		return nil
	}
	minted, err := r.tokens(es256, r.count(tokensNew))
	if err != nil {
		return err
	}
	t := r.add(&table{
		Name: "gateways-new", By: byRatio, Base: haproxyVerify, Columns: raceColumns(), Title: "The same, a new ES256 token with each request",
	}, named(r.alive[es256], haproxyVerify, haproxyCached, goReverseProxy), func(g *gateway) func() ([]float64, error) {
		next := 0
		return func() ([]float64, error) {
			load := r.steady(minted, &next)
			load.wrap = false
			return r.load(g, load)
		}
	})
	t.Rows = append(t.Rows, &row{Name: signatureRow, Note: "crypto/ecdsa in a loop, on the core of the load", once: func() ([]float64, error) {
		µs, err := r.issuer.signatureAlone(es256, r.turn(500*time.Millisecond))
		return []float64{1e6 / µs, µs, µs / 1000, µs / 1000, 0}, err
	}})
	return r.run(t, 5)
}

// single is the time of one request when nothing else is asked.
func (r *race) single() error {
	if !r.wants("gateways-single") {
		return nil
	}
	minted, err := r.tokens(es256, r.count(tokensMany))
	if err != nil {
		return err
	}
	t := r.add(&table{
		Name: "gateways-single", By: byRatio, Base: haproxyBare, Columns: []column{{"p50", "µs"}, {"p99", "µs"}, {"processor", "µs each"}},
		Title: "One connection, one ES256 token, one request after the other",
	}, r.alive[es256], func(g *gateway) func() ([]float64, error) {
		return func() ([]float64, error) {
			load := r.steady(minted, nil)
			load.connections, load.lasts = 1, r.turn(400*time.Millisecond)
			v, err := r.load(g, load)
			if err != nil {
				return nil, err
			}
			return []float64{v[2] * 1000, v[3] * 1000, v[1]}, nil
		}
	})
	return r.run(t, racers)
}

// constantRate is how long answers take at a rate that we can serve with ease.
func (r *race) constantRate() error {
	const share = 0.7
	ours := r.table(raceName(es256, "one")).row(oursName)
	if !r.wants("gateways-rate") || ours == nil {
		return nil
	}
	minted, err := r.tokens(es256, r.count(tokensMany))
	if err != nil {
		return err
	}
	rate := share * ours.Figures[0].Median
	t := r.add(&table{
		Name: "gateways-rate", By: byRatio, Base: haproxyCached, Columns: []column{{"p99", "ms"}, {"p50", "ms"}, {"answered", "1/s"}, {"processor", "µs each"}},
		Title: fmt.Sprintf("%.0f requests a second, 0.7 of sallyport's own most, as they come due on %d connections: one ES256 token", rate, lanesOpen),
	}, named(r.alive[es256], haproxyBare, haproxyVerify, haproxyCached), func(g *gateway) func() ([]float64, error) {
		return func() ([]float64, error) {
			load := r.steady(minted, nil)
			load.rate = rate
			v, err := r.load(g, load)
			if err != nil {
				return nil, err
			}
			return []float64{v[3], v[2], v[0], v[1]}, nil
		}
	})
	for _, row := range t.Rows {
		if most := r.table(raceName(es256, "one")).row(row.Name); most != nil && most.Figures[0].Median < rate {
			row.Note = "it cannot serve this rate: what waits grows as long as it lasts"
		}
	}
	return r.run(t, racers)
}

// memory is what is resident when nothing happens, and under 64 connections and 10,000 tokens.
func (r *race) memory() error {
	if !r.wants("gateways-memory") {
		return nil
	}
	minted, err := r.tokens(es256, r.count(tokensMany))
	if err != nil {
		return err
	}
	t := r.add(&table{
		Name: "gateways-memory", By: byDifference, Base: haproxyVerify, Columns: []column{{"idle", "MiB"}, {"under load", "MiB"}},
		Title: fmt.Sprintf("Resident memory: started and asked once; and with %d connections open, after each of %d ES256 tokens twice", lanesOpen, minted.len()),
	}, r.alive[es256], func(g *gateway) func() ([]float64, error) {
		return func() ([]float64, error) { return r.residents(g, minted) }
	})
	return r.run(t, 1)
}

func (r *race) residents(g *gateway, minted *tokens) ([]float64, error) {
	if _, err := r.restart(g, string(minted.at(0))); err != nil {
		return nil, err
	}
	time.Sleep(r.turn(500 * time.Millisecond))
	pids, err := processes(g.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	idle, err := resident(pids)
	if err != nil {
		return nil, err
	}
	next := 0
	load := r.steady(minted, &next)
	load.warm, load.requests = 0, 2*minted.len() // a token that comes once need not be remembered
	v, err := r.load(g, load)
	if err != nil {
		return nil, err
	}
	return []float64{idle, v[4]}, nil
}

// restart ends a gateway and starts it again. It returns how long that took, from execve(2) until a good token was let through.
func (r *race) restart(g *gateway, token string) (time.Duration, error) {
	g.kill()
	began := time.Now()
	if err := g.launch(r.all); err != nil {
		return 0, err
	}
	for {
		status, _, err := r.ask(g, token)
		took := time.Since(began)
		if err == nil && status == http.StatusOK {
			return took, nil
		}
		if took > patience {
			return 0, fmt.Errorf("it does not start: %w; %s", answered("a good token", status, err), tail(g.log.Name()))
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// starts is how long it takes from execve(2) until the first token has been verified.
func (r *race) starts() error {
	defer r.end(es256)
	if !r.wants("gateways-start") {
		return nil
	}
	minted, err := r.tokens(es256, r.count(tokensMany))
	if err != nil {
		return err
	}
	list, err := r.admitRoutes()
	if err != nil {
		return err
	}
	defer stop(list)
	t := r.add(&table{
		Name: "gateways-start", By: byDifference, Base: haproxyVerify, Columns: []column{{"start", "ms"}}, Title: "From execve(2) until the first verified token has its answer",
	}, append(r.alive[es256], list[len(list)-1]), func(g *gateway) func() ([]float64, error) {
		return func() ([]float64, error) {
			took, err := r.restart(g, string(minted.at(0)))
			return one(float64(took)/float64(time.Millisecond), err)
		}
	})
	return r.run(t, racers)
}

// parts is what sallyport does beside verifying, turned off.
func (r *race) parts() error {
	if !r.wants("gateways-parts") {
		return nil
	}
	minted, err := r.tokens(es256, r.count(tokensMany))
	if err != nil {
		return err
	}
	list, err := r.admit(r.site.parts())
	if err != nil {
		return err
	}
	defer stop(list)
	t := r.add(&table{
		Name: "gateways-parts", By: byDifference, Base: "all of it", Columns: []column{{"processor", "µs each"}, {"requests", "1/s"}, {"p50", "ms"}, {"p99", "ms"}},
		Title: "What the assertion, the records and the CEL condition cost sallyport: one ES256 token",
	}, list, func(g *gateway) func() ([]float64, error) { return r.processor(g, minted, nil) })
	return r.run(t, racers)
}

// processor is load with what the processor has spent first.
func (r *race) processor(g *gateway, minted *tokens, next *int) func() ([]float64, error) {
	return func() ([]float64, error) {
		v, err := r.load(g, r.steady(minted, next))
		if err != nil {
			return nil, err
		}
		return []float64{v[1], v[0], v[2], v[3]}, nil
	}
}

func stop(list []*gateway) {
	for _, g := range list {
		g.kill()
	}
}

// manyRoutes is the name of the row of sallyport with as many routes as anybody has.
const manyRoutes = "10,000 routes"

// admitRoutes starts sallyport with few and many routes.
func (r *race) admitRoutes() ([]*gateway, error) {
	var list []*gateway
	for _, n := range []struct {
		name string
		more int
	}{{"1 route", 0}, {"100 routes", 99}, {manyRoutes, 9_999}} {
		g := r.growing(n.name, es256)
		g.config = sallyportGate{algorithm: es256, engine: r.engines()[0], cache: r.tokenCache, condition: true, assertion: true, records: "written", routes: n.more}.yaml()
		list = append(list, g)
	}
	fit, err := r.admit(list)
	if err == nil && len(fit) < len(list) {
		err = errors.New("sallyport does not start with many routes")
	}
	return fit, err
}

func (r *race) growing(name, algorithm string) *gateway {
	return r.ourGate(name, "", sallyportGate{algorithm: algorithm, engine: r.engines()[0], condition: true, assertion: true, records: "written"})
}

// growth has the columns of each table that says how the cost of a request grows.
func growth(name, base, title string) *table {
	return &table{Name: name, By: byRatio, Base: base, Title: title, Columns: []column{{"processor", "µs each"}, {"requests", "1/s"}, {"p50", "ms"}, {"p99", "ms"}}}
}

func (r *race) routes() error {
	if !r.wants("gateways-routes") {
		return nil
	}
	minted, err := r.tokens(es256, r.count(tokensMany))
	if err != nil {
		return err
	}
	list, err := r.admitRoutes()
	if err != nil {
		return err
	}
	defer stop(list)
	t := r.add(growth("gateways-routes", "1 route", "sallyport, as routes become many"), list, func(g *gateway) func() ([]float64, error) { return r.processor(g, minted, nil) })
	return r.run(t, 5)
}

// known is what many tokens cost that have been seen before.
func (r *race) known() error {
	if !r.wants("gateways-known") {
		return nil
	}
	counts := []int{10, 1_000, 10_000}
	g := r.growing("known tokens", eddsa) // whose tokens are made the fastest
	if r.knows("token_cache") {
		counts = append(counts, 1_000_000)
		g.config = sallyportGate{algorithm: eddsa, engine: r.engines()[0], cache: "2GiB", condition: true, assertion: true, records: "written"}.yaml()
	}
	minted, err := r.tokens(eddsa, r.count(counts[len(counts)-1]))
	if err != nil {
		return err
	}
	fit, err := r.admit([]*gateway{g})
	if err != nil || len(fit) == 0 {
		return err
	}
	defer stop(fit)
	r.say("  each of %d tokens twice", minted.len())
	next := 0
	for n := 0; n < 2*minted.len(); n += 100_000 { // in pieces, for the records of each to be forgotten
		load := r.steady(minted, &next)
		load.warm, load.requests = 0, min(100_000, 2*minted.len()-n)
		if _, err := r.load(g, load); err != nil {
			return err
		}
	}
	t := growth("gateways-known", "10 tokens", "sallyport, as the tokens that it knows become many, each asked with in turn")
	for _, n := range counts {
		next := 0
		t.Rows = append(t.Rows, &row{Name: thousands(n) + " tokens", once: r.processor(g, minted.first(min(n, minted.len())), &next)})
	}
	if len(counts) < 4 {
		t.Missing = append(t.Missing, "1,000,000 tokens: this sallyport remembers none")
	}
	r.tables = append(r.tables, t)
	delete(r.minted, eddsa)
	return r.run(t, 5)
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// revoked is what revocations cost those who are not revoked.
func (r *race) revoked() error {
	if !r.wants("gateways-revoked") {
		return nil
	}
	minted, err := r.tokens(es256, r.count(tokensMany))
	if err != nil {
		return err
	}
	var list []*gateway
	for _, n := range []int{0, 10_000, 1_000_000} {
		path, err := r.revocations(r.count(n))
		if err != nil {
			return err
		}
		g := r.growing(thousands(n)+" revocations", es256)
		g.config = sallyportGate{algorithm: es256, engine: r.engines()[0], cache: r.tokenCache, condition: true, assertion: true, records: "written", state: path}.yaml()
		list = append(list, g)
	}
	list, err = r.admit(list)
	if err != nil {
		return err
	}
	defer stop(list)
	t := r.add(growth("gateways-revoked", "0 revocations", "sallyport, as revocations become many"), list, func(g *gateway) func() ([]float64, error) { return r.processor(g, minted, nil) })
	return r.run(t, 5)
}

// revocations makes a state file that holds so many, of other tokens of the same issuer.
func (r *race) revocations(n int) (path string, err error) {
	// Where there is a file system in memory: a million of them would be as many syncs.
	dir := r.dir
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		if dir, err = os.MkdirTemp("/dev/shm", "sallyport-bench-"); err != nil {
			return "", err
		}
		r.later(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o777); err != nil {
			return "", err
		}
	}
	path = filepath.Join(dir, strconv.Itoa(n)+".db")
	if n > 100_000 {
		r.say("  %d revocations", n)
	}
	store, err := state.Open(state.Config{Path: path}, nil, nil)
	if err != nil {
		return "", err
	}
	const writers = 256
	failures := make([]error, writers)
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := w; i < n && failures[w] == nil; i += writers {
				failures[w] = store.Revoke(context.Background(), state.Revocation{Issuer: r.issuer.url(), TokenID: "revoked-" + strconv.Itoa(i), Until: time.Now().Add(time.Hour)})
			}
		})
	}
	all.Wait()
	return path, errors.Join(errors.Join(failures...), store.Close())
}
