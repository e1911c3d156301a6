package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// variant is one way in which the same service stands in the same container.
type variant struct {
	name      string // a column of the table
	key       string // its member in the JSON
	what      string // for the page
	container string
	at        int    // the last number of its addresses
	port      string // where callers connect
	start     func(context.Context, *service) error
	flags     []string // of its container, beyond those of every variant
	billing   string   // the name of the other service
}

// The names of the other service, behind a sallyport of its own and bare.
const (
	guardedBilling = "billing.lab"
	bareBilling    = "billing-bare.lab"
)

func variants() []variant {
	return []variant{
		{"bare", "bare", "`node dist/main.js` below a small init, and nothing else", "bare", 101, "3000", startBare, nil, bareBilling},
		{"guarded", "guarded", "`sallyport run -- node dist/main.js`", "guarded", 102, "8080", startGuarded, nil, guardedBilling},
		{"without the gate", "without_gate", "the same; requests go past its gate, to the service's own port, and billing has no gate", "without-gate", 105, "9000", startPastGate, nil, bareBilling},
		{"without the walls", "without_walls", "the bare service, with `sallyport serve` in the same container as its gate, and as the proxy in its HTTP_PROXY", "without-walls", 103, "8080", startWithoutWalls, nil, guardedBilling},
		{"without the gate behind", "without_gate_behind", "`sallyport run`, with every target of the lab written down as a destination or a socket, and unlocked", "without-behind", 104, "8080", startWithoutBehind, nil, guardedBilling},
	}
}

// unconfined is the variant in a container without the engine's seccomp filter.
func unconfined(v variant) variant {
	v.container += "-unconfined"
	v.at += 10
	v.flags = []string{"--security-opt", "seccomp=unconfined"}
	return v
}

// service is a variant that runs.
type service struct {
	lab *lab
	variant
	other    *service // another instance
	carried  string   // the token that must not leave
	sentTo   []string // spellings of tokens that must not either
	sent     int      // files uploaded so far
	answered time.Time
	stolen   []http.Header // what the attacker was sent before a minute
	stolenAt time.Time
	foiled   outcome   // how that was stopped, if it was
	before   books     // what was on record before the attack, or the part of it that counts
	shelled  time.Time // when a shell was last to be started
	visited  int       // requests to the attacker's server before what the proof looks for
}

func (s *service) address() string { return labAddress(s.at) }

// dir is the variant's folder on the host.
func (s *service) dir() string { return filepath.Join(s.lab.dir, s.container) }

//go:embed sallyport.yaml
var configuration string

func startBare(ctx context.Context, s *service) error {
	return s.run(ctx, nil, "init", "node", "dist/main.js")
}

func startGuarded(ctx context.Context, s *service) error {
	if err := s.configure(strings.Replace(configuration, guardedBilling, s.billing, 1)); err != nil {
		return err
	}
	return s.run(ctx, nil, guardedCommand()...)
}

// startPastGate is startGuarded with a port that leads to the service's own: a process that the engine starts in the
// container stands outside the walls.
func startPastGate(ctx context.Context, s *service) error {
	if err := startGuarded(ctx, s); err != nil {
		return err
	}
	return s.lab.engine.exec(ctx, s.container, "neighbour", "forward", ":"+s.port, "127.0.0.1:3000")
}

func startWithoutWalls(ctx context.Context, s *service) error {
	if err := s.configure(strings.Replace(configuration, "egress:\n", "egress:\n  listen: 127.0.0.1:8081\n", 1)); err != nil {
		return err
	}
	flags := []string{"-e", "HTTP_PROXY=http://127.0.0.1:8081", "-e", "SALLYPORT_JWKS_FILE=/lab/jwks/jwks.json"}
	if err := s.run(ctx, flags, "init", "node", "dist/main.js"); err != nil {
		return err
	}
	return s.lab.engine.exec(ctx, s.container, "sallyport", "serve", "-c", "/lab/sallyport.yaml")
}

func startWithoutBehind(ctx context.Context, s *service) error {
	before, after, _ := strings.Cut(configuration, "egress:\n")
	_, after, _ = strings.Cut(after, "sandbox:\n")
	if err := s.configure(before + openEgress() + "sandbox:\n  sockets: [/var/run/docker.sock]\n" + after); err != nil {
		return err
	}
	return s.run(ctx, nil, guardedCommand()...)
}

// openEgress is the egress of an operator who opens whatever somebody may ever attack.
func openEgress() string {
	hosts := []string{
		"partner.lab:80", "news.lab:80", "cloud.lab:80", "attacker.lab:80", "hooks.lab:80", "ledger.lab:80", guardedBilling + ":80", labAddress(atAttacker) + ":3128", labAddress(atEngine) + ":2375",
		linkAddress(atMetadata) + ":80", "[" + linkAddress6(atMetadata) + "]:80",
	}
	b := "egress:\n  destinations:\n    - {name: everything, hosts: [\"" + strings.Join(hosts, `", "`) + "\"], for: any, protocol: tcp, direct: true}\n  unlock:\n"
	for _, name := range []string{"docker-api", "docker-socket", "metadata-aws"} {
		b += "    - {name: " + name + ", reason: the lab takes this layer away}\n"
	}
	return b + "\n"
}

func guardedCommand() []string {
	return []string{"sallyport", "run", "-c", "/lab/sallyport.yaml", "--", "node", "dist/main.js"}
}

func (s *service) configure(content string) error {
	return os.WriteFile(filepath.Join(s.dir(), "lab", "sallyport.yaml"), []byte(content), 0o644)
}

// prepare makes the folders that the variant's container mounts. Whoever the service runs as, the file modes let it in:
// what is to hold is held by the layers alone.
func (s *service) prepare() error {
	for _, d := range []string{"lab", "host", "host/proc/sys/kernel", "host/sys/fs/cgroup", "escape"} {
		d = filepath.Join(s.dir(), d)
		if err := errors.Join(os.MkdirAll(d, 0o777), os.Chmod(d, 0o777)); err != nil {
			return err
		}
	}
	if err := s.lab.copyKeys(filepath.Join(s.dir(), "lab", "keys")); err != nil {
		return err
	}
	jwks, err := s.lab.issuer.jwks()
	if err != nil {
		return err
	}
	for path, content := range map[string]string{
		"lab/issuer.jwks.json":              string(jwks),
		"account":                           s.lab.secret.account,
		"host/proc/sys/kernel/core_pattern": "core\n",
		"host/sys/fs/cgroup/release_agent":  "\n",
	} {
		path = filepath.Join(s.dir(), path)
		if err := errors.Join(os.WriteFile(path, []byte(content), 0o666), os.Chmod(path, 0o666)); err != nil {
			return err
		}
	}
	return nil
}

// run starts the container: the same image, mounts, network and flags for every variant, and no capability added.
func (s *service) run(ctx context.Context, more []string, command ...string) error {
	flags := []string{
		"--dns", labAddress(atNames),
		"-v", s.lab.engine.socket + ":/var/run/docker.sock",
		"-v", filepath.Join(s.dir(), "host") + ":/host",
		"-v", filepath.Join(s.dir(), "account") + ":/var/run/secrets/kubernetes.io/serviceaccount/token:ro",
		"-v", filepath.Join(s.dir(), "lab") + ":/lab",
		"-e", "ORDERS_CANARY=" + s.lab.secret.orders,
		"-e", "SUPERVISOR_SECRET=" + s.lab.secret.supervisor,
		"-e", "JWKS_FILE=/lab/issuer.jwks.json",
		"-e", "BILLING_HOST=" + s.billing,
		"-e", "BILLING_TOKEN=" + s.lab.issuer.rs256(claims(map[string]any{
			"aud": "https://billing.lab", "sub": "orders", "client_id": "orders", "scope": "invoice:read invoice:write",
		})),
	}
	return s.lab.engine.start(ctx, container{
		name: s.container, image: s.lab.image, at: s.at, link: true, flags: slices.Concat(flags, more, s.flags), command: command,
	})
}

// awaitAnswer waits until a good token gets its answer: no attack means anything before.
func (s *service) awaitAnswer(ctx context.Context) error {
	var last answer
	for began := time.Now(); time.Since(began) < time.Minute && s.lab.engine.running(ctx, s.container); time.Sleep(100 * time.Millisecond) {
		patience, cancel := context.WithTimeout(ctx, 5*time.Second)
		last = get("/orders", reader)(patience, s)
		cancel()
		if strings.Contains(last.body, s.lab.secret.orders) {
			return nil
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("the service does not answer a good token: %v %.300s\n%s", last.err, last.body, s.lab.engine.logs(ctx, s.container))
}
