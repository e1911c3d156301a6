// Command bench compares, in one run: what a connection costs a program bare and inside the walls, what an established
// connection carries, how long Node takes to start, how the egress stands beside other forward proxies, and how fast a
// revocation travels between replicas.
//
// It uses the program as anybody would: it imports nothing of it, but the NATS servers that its tests use too, and the state, to have a million
// revocations in it before it starts. Whatever is compared is alive at the same time, and is
// measured in turns of a fraction of a second, so that all see the same machine; what counts is the ratio, or the
// difference, of the same round. Nothing leaves the machine: all servers are its own, on loopback.
//
//	bench -sallyport build/sallyport -smokescreen build/smokescreen [-format json] [-only NAME,...]
//
// Standard output gets the tables, each with its goals; standard error what is being done. A goal that is missed is said,
// and is no failure; what could not be measured is one.
//
// It is also what it starts, by its first argument: probe (the program inside the walls), proxy (a forward proxy that
// checks nothing), jwt-proxy (a gateway of a few lines) and contained (becomes another program, as in a default container); by its environment it is one of the
// NATS servers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/natstest"
)

func main() {
	if served, err := natstest.Serve(); served {
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if err := dispatch(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func dispatch(args []string, out, progress io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "probe":
			return probe(os.Stdin, out)
		case "proxy":
			return bareProxy(args[1:])
		case "contained":
			return contained(args[1:])
		case "jwt-proxy":
			return jwtProxy(args[1:])
		}
	}
	o := options{out: out, progress: progress}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.sallyport, "sallyport", "build/sallyport", "the sallyport `PROGRAM`")
	flags.StringVar(&o.smokescreen, "smokescreen", "build/smokescreen", "stripe/smokescreen's `PROGRAM`, if it is there")
	flags.StringVar(&o.service, "service", "examples/nestjs", "a built NestJS service's `FOLDER`, if it is there")
	flags.StringVar(&o.preload, "preload", "internal/preload/preload.cjs", "the Node preload's `FILE`")
	flags.StringVar(&o.format, "format", "text", "text or json")
	flags.StringVar(&o.only, "only", "", "`NAMES` of tables, with commas between them: "+strings.Join(names(), ", ")+"; gateways: all that begin so; empty: all")
	flags.StringVar(&o.peersIn, "peers", "build", "the `FOLDER` of gateways that go install has made")
	flags.StringVar(&o.engine, "engine", "", "ingress.engine of sallyport among the gateways: `NAMES` with commas between them, a row each, the first has the goals; empty: what it is by itself")
	flags.StringVar(&o.tokenCache, "token-cache", "", "ingress.token_cache.size of sallyport among the gateways; empty: what it is by itself")
	flags.StringVar(&o.page, "page", "", "write what was measured of gateways to this `FILE` too, as a page")
	flags.IntVar(&o.rounds, "rounds", 0, "so many rounds of each table of gateways; 0: as many as each has by itself")
	flags.BoolVar(&o.brief, "brief", false, "one short round of each, to see that it runs: the figures are worth nothing")
	if err := flags.Parse(args); err != nil {
		return err
	}
	o.only = expand(o.only)
	for name := range strings.SplitSeq(o.only, ",") {
		if o.only != "" && !slices.Contains(names(), name) {
			return fmt.Errorf("-only: there is no table %q, but %s", name, strings.Join(names(), ", "))
		}
	}
	if flags.NArg() > 0 || o.format != "text" && o.format != "json" {
		return errors.New("usage: bench [-format text|json] [-only ...]; see -help")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return compare(ctx, o)
}

// options are the command line.
type options struct {
	sallyport, smokescreen, service, preload string
	format, only                             string
	peersIn, engine, tokenCache, page        string
	brief                                    bool
	rounds                                   int
	out, progress                            io.Writer
}

// turn is how long one measurement takes.
func (o options) turn(d time.Duration) time.Duration {
	if o.brief {
		return d / 25
	}
	return d
}

// group is what is measured together: its tables by their names.
type group struct {
	tables  []string
	measure func(*site) ([]*table, error)
}

func groups() []group {
	return []group{
		{[]string{"connect", "connections"}, measureConnect},
		{[]string{"stream", "round-trips"}, measureStream},
		{[]string{"node", "nest"}, measureNode},
		{[]string{"preload", "preload-http", "preload-fetch", "preload-https"}, measurePreload},
		{[]string{"requests", "tunnels", "tunnel-stream"}, measureEgress},
		{[]string{"revocation"}, measureRevocation},
		{gatewayTables(), measureGateways},
	}
}

// expand writes out the one name that stands for several.
func expand(only string) string {
	if list := strings.Split(only, ","); slices.Contains(list, "gateways") {
		list = slices.DeleteFunc(list, func(name string) bool { return name == "gateways" })
		return strings.Join(append(list, gatewayTables()...), ",")
	}
	return only
}

func names() (all []string) {
	for _, g := range groups() {
		all = append(all, g.tables...)
	}
	return all
}

// wants reports whether a table was asked for.
func (o options) wants(table string) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), table)
}

func compare(ctx context.Context, o options) (err error) {
	s, err := newSite(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r := report{Machine: machine(o)}
	var failures []error
	for _, g := range groups() {
		if !slices.ContainsFunc(g.tables, o.wants) {
			continue
		}
		tables, err := g.measure(s)
		if err != nil {
			failures = append(failures, err)
		}
		r.Tables = append(r.Tables, slices.DeleteFunc(tables, func(t *table) bool { return !o.wants(t.Name) })...)
	}
	r.Seconds = time.Since(s.began).Round(time.Second).Seconds()
	if o.page != "" && len(failures) == 0 {
		failures = append(failures, r.writePage(s))
	}
	return errors.Join(append(failures, r.write(o.out, o.format))...)
}

// site is where everything happens: a folder of its own that the programs inside the walls can read, and this program,
// copied there because it may lie where they cannot.
type site struct {
	options
	ctx     context.Context
	dir     string
	self    string
	schema  string // of sallyport's configuration, once it was asked for
	began   time.Time
	cleanup []func()
}

func newSite(ctx context.Context, o options) (s *site, err error) {
	s = &site{options: o, ctx: ctx, began: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.dir, err = os.MkdirTemp("", "sallyport-bench-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return nil, err
	}
	for _, p := range []*string{&s.sallyport, &s.smokescreen, &s.service, &s.preload, &s.peersIn} {
		if *p, err = filepath.Abs(*p); err != nil {
			return nil, err
		}
	}
	me, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if s.self, err = s.install("bench", me); err != nil {
		return nil, err
	}
	if s.sallyport, err = s.install("sallyport", s.sallyport); err != nil {
		return nil, err
	}
	_, err = s.write("jwks.json", jwks)
	return s, err
}

// install copies a program to where the user of the walls can read it.
func (s *site) install(name, from string) (string, error) {
	to := filepath.Join(s.dir, name)
	b, err := os.ReadFile(from)
	if err != nil {
		return "", err
	}
	return to, os.WriteFile(to, b, 0o755)
}

// beside is where a gateway's program is that go install has made.
func (s *site) beside(name string) string { return filepath.Join(s.peersIn, name) }

// write makes a file, with what stands in it between @ and @ replaced.
func (s *site) write(name, text string, values ...string) (string, error) {
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, []byte(strings.NewReplacer(values...).Replace(text)), 0o644)
}

// later has f called when everything is over, the last first.
func (s *site) later(f func()) { s.cleanup = append(s.cleanup, f) }

// release does what was to be done later: what is compared next has the machine to itself.
func (s *site) release() {
	for _, f := range slices.Backward(s.cleanup) {
		f()
	}
	s.cleanup = nil
}

func (s *site) close() error {
	s.release()
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}

func (s *site) say(format string, a ...any) {
	fmt.Fprintf(s.progress, "%6.1f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, a...))
}
