package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"time"
)

// caller answers at once, or asks another server first, over HTTP or TLS, on connections that it keeps.
const caller = `const http = require('http'), https = require('https');
const agents = { http: new http.Agent({ keepAlive: true }), https: new https.Agent({ keepAlive: true, rejectUnauthorized: false }) };
http.createServer((q, r) => {
  const to = { '/http': process.env.PLAIN, '/https': process.env.SECURE, '/fetch': process.env.PLAIN }[q.url];
  if (!to) return r.end('ok');
  if (q.url === '/fetch') return fetch(to).then((a) => a.text()).then((text) => r.end(text));
  const m = q.url === '/http' ? http : https;
  m.get(to, { agent: agents[q.url.slice(1)] }, (a) => { a.resume(); a.on('end', () => r.end('ok')); });
}).listen(process.env.PORT, '127.0.0.1', () => console.log('listening'));
`

const callers = 16 // connections that requests to it are sent on

// measurePreload is what it costs a Node service to say which request causes what.
func measurePreload(s *site) ([]*table, error) {
	s.say("the Node preload")
	defer s.release()
	node, err := exec.LookPath("node")
	if err != nil {
		return []*table{{Name: "preload", Title: "The Node preload", Missing: []string{"node is not here"}}}, nil
	}
	script, err := s.write("caller/caller.js", caller)
	if err != nil {
		return nil, err
	}
	place, err := newPlace(s)
	if err != nil {
		return nil, err
	}
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok")) }))
	s.later(secure.Close)
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	proxy := exec.Command(s.self, "proxy", "127.0.0.1:"+ports[0])
	if err := proxy.Start(); err != nil {
		return nil, err
	}
	s.later(func() { end(proxy) })
	env := []string{"PATH=" + os.Getenv("PATH"), "PLAIN=http://" + place.web + "/", "SECURE=" + secure.URL + "/"}
	services := map[string]*peer{"without": {address: "127.0.0.1:" + ports[1]}, "with the preload": {address: "127.0.0.1:" + ports[2]}}
	for name, p := range services {
		cmd := exec.Command(node, script)
		cmd.Env = append(env, "PORT="+port(p.address))
		if name != "without" {
			cmd.Env = append(cmd.Env, "NODE_OPTIONS=--require="+s.preload, "SALLYPORT_PROXY=http://127.0.0.1:"+ports[0])
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		s.later(func() { end(cmd) })
		p.name, p.cmd = name, cmd
		if err := p.await(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	var tables []*table
	var failure error
	for _, c := range []struct{ name, path, title string }{
		{"preload", "/", "A Node service that answers at once"},
		{"preload-http", "/http", "One that asks another over plain HTTP first (node:http, kept connections)"},
		{"preload-fetch", "/fetch", "The same by fetch"},
		{"preload-https", "/https", "The same over TLS: with the preload on a connection, through a forward proxy, for each request that it answers"},
	} {
		t := &table{Name: c.name, Title: c.title, By: byDifference, Base: "without", Columns: []column{{"processor", "µs each"}, {"requests", "1/s"}, {"median", "µs"}}}
		for _, name := range []string{"without", "with the preload"} {
			t.Rows = append(t.Rows, &row{Name: name, once: func() ([]float64, error) {
				return services[name].answers(c.path, s.turn(time.Second))
			}})
		}
		tables = append(tables, t)
		failure = errors.Join(failure, t.run(s, 7))
	}
	return tables, failure
}

// answers are what a service spends of its processor on each, in µs, how many they are a second, and their median in µs.
func (p *peer) answers(path string, d time.Duration) ([]float64, error) {
	request := "GET " + path + " HTTP/1.1\r\nHost: " + p.address + "\r\nX-Sallyport-Capability: 00112233445566778899aabbccddeeff\r\n\r\n"
	before, err := cpuTime(p.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	count, rate, median, err := load(callers, d, func() (func() error, func()) {
		c := &client{address: p.address, request: []byte(request)}
		return c.once, c.close
	})
	if err != nil {
		return nil, err
	}
	after, err := cpuTime(p.cmd.Process.Pid)
	return []float64{(after - before) / count, rate, median}, err
}
