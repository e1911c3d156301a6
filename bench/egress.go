package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	requesters = 32 // connections that requests are sent on
	tunnellers = 16 // tunnels that are opened at once
	noProxy    = "no proxy"
)

// measureEgress compares forward proxies.
func measureEgress(s *site) ([]*table, error) {
	s.say("forward proxies")
	all, back := aside()
	defer back()
	defer s.release()
	place, err := newPlace(s)
	if err != nil {
		return nil, err
	}
	requests, tunnels, streams := egressTables()
	tables := []*table{requests, tunnels, streams}
	var failure error
	for _, p := range append(s.peers(), &peer{name: noProxy}) {
		seen, err := p.admit(s, all, place)
		if err != nil {
			missing := fmt.Sprintf("%s: %v", p.name, err)
			for _, t := range tables {
				t.Missing = append(t.Missing, missing)
			}
			if p.ours {
				failure = errors.Join(failure, errors.New(missing))
			}
			continue
		}
		turn := s.turn(500 * time.Millisecond)
		requests.add(p, seen, func() ([]float64, error) { return p.requests(place, turn) })
		tunnels.add(p, "", func() ([]float64, error) { return p.tunnels(place.echo, []byte{'?'}, turn) })
		if p.name == "sallyport" {
			hello := clientHello("localhost")
			named := &peer{name: "sallyport, by name", address: p.address, cmd: p.cmd}
			tunnels.add(named, "protocol tls: the name is looked up, and must be the one that the ClientHello asks for; said apart", func() ([]float64, error) {
				return named.tunnels("localhost:"+port(place.echo), hello, turn)
			})
		}
		c, err := place.stream(p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		s.later(func() { c.Close() })
		streams.add(p, "", func() ([]float64, error) { return p.stream(c, turn/2) })
	}
	for _, t := range tables {
		s.say("  %s", t.Name)
		failure = errors.Join(failure, t.run(s, 9))
	}
	return tables, failure
}

// admit starts a peer and sees that it does what it is compared for. It returns what was seen.
func (p *peer) admit(s *site, all unix.CPUSet, w *place) (string, error) {
	if p.name == noProxy {
		return "", nil
	}
	err := p.start(s, all, "@web@", port(w.web), "@echo@", port(w.echo), "@sink@", port(w.sink))
	seen := ""
	if err == nil {
		seen, err = p.prove(w.web, w.denied, w.reached.Load)
	}
	if err != nil && p.log != nil {
		err = fmt.Errorf("%w; %s", err, tail(p.log.Name()))
	}
	s.say("  %s: %s", p.name, cmp.Or(seen, "not here"))
	if p.note != "" {
		seen = p.note + "; " + seen
	}
	return seen, err
}

func egressTables() (requests, tunnels, streams *table) {
	cpu := column{"processor", "µs each"}
	requests = &table{
		Name: "requests", By: byRatio, Columns: []column{{"requests", "1/s"}, {"median", "µs"}, cpu},
		Title: fmt.Sprintf("Forward proxies, one core each: plain HTTP requests on %d kept connections, 200 bytes of answer", requesters),
	}
	tunnels = &table{
		Name: "tunnels", By: byRatio, Columns: []column{{"tunnels", "1/s"}, {"median", "µs"}, cpu},
		Title: fmt.Sprintf("Forward proxies: tunnels opened with CONNECT, a byte there and back, and closed; %d at once", tunnellers),
	}
	streams = &table{
		Name: "tunnel-stream", By: byRatio, Columns: []column{{"throughput", "MB/s"}, {"processor", "ms for a GB"}},
		Title: "Forward proxies: what one tunnel carries",
	}
	return requests, tunnels, streams
}

// add adds a peer's row. Ours has the goal: at least as fast as the fastest that checks.
func (t *table) add(p *peer, note string, once func() ([]float64, error)) {
	const asFast = 1.0
	r := &row{Name: p.name, Note: note, checks: p.checks, once: once}
	if p.ours {
		r.limit = new(asFast)
	}
	t.Rows = append(t.Rows, r)
}

// place is where the proxies lead.
type place struct {
	web, denied, echo, sink string
	reached                 atomic.Int64 // how many connections came to the denied address
	come                    chan net.Conn
}

func newPlace(s *site) (*place, error) {
	w := &place{come: make(chan net.Conn)}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	w.web, w.echo, w.sink = "127.0.0.1:"+ports[0], "127.0.0.1:"+ports[1], "127.0.0.1:"+ports[2]
	w.denied = "127.0.0.9:" + ports[0]
	serves := map[string]func(net.Conn){
		w.web:  func(c net.Conn) { go upstream(c) },
		w.echo: func(c net.Conn) { go echo(c) },
		w.sink: func(c net.Conn) { w.come <- c },
		w.denied: func(c net.Conn) {
			w.reached.Add(1)
			go upstream(c)
		},
	}
	for address, serve := range serves {
		l, err := net.Listen("tcp4", address)
		if err != nil {
			return nil, err
		}
		s.later(func() { l.Close() })
		go accept(l, serve)
	}
	return w, nil
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// requests are a second's, their median in µs, and what the proxy's processor has spent on each.
func (p *peer) requests(w *place, d time.Duration) ([]float64, error) {
	to, request := p.address, getRequest(w.web)
	if to == "" {
		to = w.web
	}
	return p.spending(func() (float64, float64, float64, error) {
		return load(requesters, d, func() (func() error, func()) {
			c := &client{address: to, request: request}
			return c.once, c.close
		})
	})
}

func (p *peer) tunnels(to string, hello []byte, d time.Duration) ([]float64, error) {
	return p.spending(func() (float64, float64, float64, error) {
		return load(tunnellers, d, func() (func() error, func()) {
			return func() error { return tunnelOnce(p.address, to, hello) }, func() {}
		})
	})
}

// spending adds what the proxy's processor has spent on each.
func (p *peer) spending(do func() (count, rate, median float64, err error)) ([]float64, error) {
	var before, after float64
	var err error
	if p.cmd != nil {
		if before, err = cpuTime(p.cmd.Process.Pid); err != nil {
			return nil, err
		}
	}
	count, rate, median, err := do()
	if err == nil && p.cmd != nil {
		after, err = cpuTime(p.cmd.Process.Pid)
	}
	return []float64{rate, median, (after - before) / max(count, 1)}, err
}

// stream opens a tunnel to a sink, and returns the far end.
func (w *place) stream(p *peer) (net.Conn, error) {
	c, err := tunnel(p.address, w.sink)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Time{})
	go sink(c)
	select {
	case far := <-w.come:
		return far, nil
	case <-time.After(patience):
		return nil, errors.New("the tunnel leads nowhere")
	}
}

// stream is what a tunnel carries, in MB a second, and what the proxy's processor has spent on a GB, in ms.
func (p *peer) stream(c net.Conn, d time.Duration) ([]float64, error) {
	values, err := p.spending(func() (float64, float64, float64, error) {
		began := time.Now()
		rate, err := pour(c, d)
		return rate * time.Since(began).Seconds(), rate, 0, err
	})
	if err != nil {
		return nil, err
	}
	return []float64{values[0], values[2]}, nil // µs for a MB is ms for a GB
}
