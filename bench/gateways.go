package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// gateway is a peer in front of a service: the same program and configuration for one algorithm.
type gateway struct {
	peer
	algorithm string // that its tokens are signed by; empty: it looks at no token
	records   string // the file that it records decisions in, under its folder
}

// The names of rows that others are compared with.
const (
	haproxyBare    = "HAProxy, no authentication"
	nginxBare      = "nginx, no authentication"
	haproxyVerify  = "HAProxy jwt_verify"
	haproxyCached  = "HAProxy jwt_verify, stick-table token cache"
	apacheOIDC     = "Apache mod_auth_openidc"
	nginxNJS       = "nginx njs"
	goReverseProxy = "net/http ReverseProxy, golang-jwt"
	oauth2Proxy    = "oauth2-proxy"
)

// gateways are all that can be compared on tokens of one algorithm, ours first. Each has one worker and one core, logs
// nothing that it need not, and keeps its connections to the service.
func (s *site) gateways(algorithm string) []*gateway {
	list := s.ours(algorithm)
	if algorithm == es256 {
		list = append(list,
			&gateway{peer: peer{name: haproxyBare, program: "haproxy", args: haproxyArgs(), config: haproxy("", ""), note: "the floor: looks at no token"}},
			&gateway{peer: peer{name: nginxBare, program: "nginx", args: nginxArgs(), config: nginxConfig("", ""), note: "the floor: looks at no token"}})
	}
	if algorithm != eddsa { // which their versions here do not know
		list = append(list,
			&gateway{algorithm: algorithm, peer: peer{
				name: haproxyVerify, program: "haproxy", args: haproxyArgs(), checks: true,
				config: haproxy("", haproxyRules()),
			}},
			&gateway{algorithm: algorithm, peer: peer{
				name: haproxyCached, program: "haproxy", args: haproxyArgs(), checks: true,
				config: haproxy(haproxyTable, haproxyCacheRules()),
				note:   "its best case: a token that was verified is looked up by its SHA-256 until it expires",
			}},
			&gateway{algorithm: algorithm, peer: peer{
				name: apacheOIDC, program: "apache2", args: []string{"-DFOREGROUND", "-f", "@config@"}, checks: true, config: apacheConfig(),
				note: "MPM event, one process; verifies on each request",
			}},
			&gateway{algorithm: algorithm, peer: peer{
				name: nginxNJS, program: "nginx", args: nginxArgs(), checks: true,
				config: nginxConfig(njsModule, njsLocation), files: map[string]string{"jwt.js": njsScript},
				note: "auth_request to a njs handler that verifies on each request by WebCrypto",
			}})
	}
	list = append(list,
		&gateway{algorithm: algorithm, peer: peer{
			name: goReverseProxy, program: s.self, args: []string{"jwt-proxy", "127.0.0.1:@port@", "@service@", "@alg@", "@keys@/@alg@.pem", "@issuer@"}, checks: true,
			note: "a few lines of Go; verifies on each request",
		}},
		&gateway{algorithm: algorithm, peer: peer{
			name: oauth2Proxy, program: s.beside("oauth2-proxy"), args: []string{"--config", "@config@"}, checks: true, config: oauth2ProxyConfig,
			note: "skip_jwt_bearer_tokens; verifies on each request",
		}})
	for _, g := range list {
		g.place = placeOf(g.name, g.algorithm)
	}
	return list
}

// leftOut are gateways that were to be compared, for which there is no program here, or no configuration that anybody has tried.
func (s *site) leftOut() []string {
	var list []string
	for _, name := range []string{"Ory Oathkeeper", "caddy-jwt", "heimdall"} {
		program := s.beside(strings.ToLower(name[strings.LastIndexByte(name, ' ')+1:]))
		why := "it is not here"
		if b, err := os.ReadFile(program + ".refused"); err == nil {
			why = "go install cannot have it: " + strings.TrimSpace(string(b))
		}
		if _, err := os.Stat(program); err == nil {
			why = "it is here, but no configuration of it has been tried"
		}
		list = append(list, name+": left out: "+why)
	}
	return list
}

// parts are what sallyport does beyond a verifier, each turned off alone, and all.
func (s *site) parts() []*gateway {
	full := sallyportGate{algorithm: es256, condition: true, assertion: true, records: "written"}
	var list []*gateway
	for _, c := range []struct {
		name, note string
		change     func(*sallyportGate)
	}{
		{"all of it", "", func(*sallyportGate) {}},
		{"without the assertion", "", func(g *sallyportGate) { g.assertion = false }},
		{"assertion reused", "ingress.assertion.reuse: 5s", func(g *sallyportGate) { g.reuse = true }},
		{"without the CEL condition", "scopes alone", func(g *sallyportGate) { g.condition = false }},
		{"records buffered", "in the kernel within 100 ms", func(g *sallyportGate) { g.records = "buffered" }},
		{"records to /dev/null", "records cannot be turned off; this one leaves out what the file system costs", func(g *sallyportGate) { g.file = os.DevNull }},
		{"without the three", "no assertion, no condition, records to /dev/null", func(g *sallyportGate) {
			g.assertion, g.condition, g.file = false, false, os.DevNull
		}},
	} {
		gate := full
		gate.engine = s.engines()[0]
		c.change(&gate)
		list = append(list, s.ourGate(c.name, c.note, gate))
	}
	return list
}

// ours are sallyport on each engine that was asked for; the first is the one that goals are for.
func (s *site) ours(algorithm string) (list []*gateway) {
	for i, engine := range s.engines() {
		name := oursName
		if i > 0 {
			name += ", engine " + engine
		}
		note := "a policy with a CEL condition, a record before and after in the kernel, an assertion signed"
		if engine != "" {
			note += "; engine " + engine
		}
		full := sallyportGate{algorithm: algorithm, engine: engine, condition: true, assertion: true, records: "written"}
		list = append(list, s.ourGate(name, note, full))
		full.reuse = true
		list = append(list, s.ourGate(name+reusedSuffix, "the same with ingress.assertion.reuse: 5s", full))
	}
	return list
}

const (
	oursName     = "sallyport"
	reusedSuffix = ", assertion reused"
)

// engines are those of -engine; the empty name is whatever the program does when it is told nothing. Unless it is told, each that it has.
func (s *site) engines() []string {
	if s.engine == "" && s.knows("engine") {
		return []string{"", "http1"}
	}
	return strings.Split(s.engine, ",")
}

// knows reports whether sallyport's configuration has a key of that name.
func (s *site) knows(key string) bool {
	if s.schema == "" {
		out, err := exec.Command(s.sallyport, "check", "--schema").Output()
		if err != nil {
			return false
		}
		s.schema = string(out)
	}
	return strings.Contains(s.schema, strconv.Quote(key))
}

func (s *site) ourGate(name, note string, gate sallyportGate) *gateway {
	gate.cache = s.tokenCache
	records := "audit.jsonl"
	if gate.file != "" {
		records = ""
	}
	return &gateway{algorithm: gate.algorithm, records: records, peer: peer{
		name: name, place: placeOf(name, gate.algorithm), program: s.sallyport, args: []string{"serve", "-c", "@config@"}, ours: true, config: gate.yaml(), note: note,
	}}
}

// sallyportGate is what differs between the configurations of ours.
type sallyportGate struct {
	algorithm string
	engine    string // empty: not written
	cache     string // the size of ingress.token_cache; empty: not written
	condition bool
	assertion bool
	reuse     bool   // the assertion serves several requests
	records   string // audit.durability
	file      string // audit.file; empty: in its folder
	routes    int    // beside the one that is asked for
	state     string // path; empty: in its folder
}

func (g sallyportGate) yaml() string {
	var b strings.Builder
	line := func(when bool, format string, a ...any) {
		if when {
			fmt.Fprintf(&b, format+"\n", a...)
		}
	}
	line(true, "version: 1\ningress:\n  listen: 127.0.0.1:@port@\n  upstream: http://@service@")
	line(g.engine != "", "  engine: %s", g.engine)
	line(g.cache != "", "  token_cache: {size: %s}", g.cache)
	line(true, "  issuers:\n    - {issuer: \"@issuer@\", audience: [bench], keys: {jwks_file: @keys@/%[1]s.json}, algorithms: [%[1]s], leeway: 1s}", g.algorithm)
	line(true, "  routes:\n    - name: thing\n      match: GET /v1/things/{id}\n      scopes: [things:read]")
	line(g.condition, "      when: claims.tenant == path.id.split(\"-\")[0]")
	for i := range g.routes {
		line(true, "    - {name: r%d, match: \"GET /v1/other-%d/{id}\", scopes: [things:read]}", i, i)
	}
	line(g.assertion && !g.reuse, "  assertion: {audience: bench}")
	line(g.assertion && g.reuse, "  assertion: {audience: bench, reuse: 5s}")
	file := g.file
	if file == "" {
		file = "@folder@/audit.jsonl"
	}
	line(true, "audit: {file: %s, durability: %s}", file, g.records)
	line(g.state != "", "state: {driver: local, path: %s}", g.state)
	return b.String()
}

// placeOf is the name of a folder, which any configuration can hold unquoted.
func placeOf(name, algorithm string) string {
	return strings.ToLower(strings.NewReplacer(",", "", "/", "-", " ", "-").Replace(name + " " + algorithm))
}
