package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// lab is one run.
type lab struct {
	root     string // of the repository
	source   string // this folder
	dir      string // everything that the run writes
	engine   *engine
	issuer   *issuer
	secret   secrets
	image    string // of the service
	around   string // image of the neighbours
	progress io.Writer
}

// row is an attack with what it came to in each variant, in the order of variants().
type row struct {
	attack
	outcomes []outcome
}

// perform runs the attacks and removes whatever it made.
func perform(ctx context.Context, chosen []attack, progress io.Writer) (rows []row, err error) {
	l, err := newLab(progress)
	if err != nil {
		return nil, err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, l.engine.clean(clean, l.image, l.around), os.RemoveAll(l.dir))
	}()
	l.say("building sallyport, the neighbours and the attacks")
	if err := l.buildAll(ctx); err != nil {
		return nil, err
	}
	l.say("importing two images from scratch")
	if l.around, err = l.neighbourImage(ctx); err != nil {
		return nil, err
	}
	if l.image, err = l.serviceImage(ctx); err != nil {
		return nil, err
	}
	l.say("starting the neighbours")
	if err := l.startNeighbours(ctx); err != nil {
		return nil, err
	}
	for _, a := range chosen {
		rows = append(rows, row{attack: a})
	}
	return rows, l.attackAll(ctx, rows)
}

func newLab(progress io.Writer) (*lab, error) {
	id := rand.Text()[:8]
	e, err := findEngine("sallyport-lab=" + id)
	if err != nil {
		return nil, err
	}
	root, err := repository()
	if err != nil {
		return nil, err
	}
	i, err := newIssuer()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sallyport-lab-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	return &lab{root: root, source: filepath.Join(root, "e2e", "lab"), dir: dir, engine: e, issuer: i, progress: progress, secret: secrets{
		orders: rand.Text(), shadow: rand.Text(), metadata: rand.Text(), account: rand.Text(), supervisor: rand.Text(), owned: rand.Text(), billing: rand.Text(),
	}}, nil
}

func (l *lab) say(format string, args ...any) {
	fmt.Fprintf(l.progress, "lab: "+format+"\n", args...)
}

// repository finds the folder with go.mod, at or above the working directory.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod at or above the working directory: run the lab in the repository")
		}
		dir = filepath.Dir(dir)
	}
}

// built is where a program was put that the lab has built.
func (l *lab) built(name string) string { return filepath.Join(l.dir, "bin", name) }

func (l *lab) buildAll(ctx context.Context) error {
	for _, need := range []string{"app/dist/main.js", "app/node_modules/@nestjs/core/package.json"} {
		if _, err := os.Stat(filepath.Join(l.source, need)); err != nil {
			return fmt.Errorf("the vulnerable service is not built (make lab does it; by hand: npm ci && npm run build in e2e/lab/app): %w", err)
		}
	}
	c := filepath.Join(l.source, "native") + "/"
	flags := []string{"gcc", "-O1", "-Wall", "-Wextra", "-s"}
	for _, args := range [][]string{
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", l.built("sallyport"), "./cmd/sallyport"},
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", l.built("neighbour"), "./e2e/neighbour"},
		append(slices.Clone(flags), "-static", "-o", l.built("init"), c+"init.c"),
		append(slices.Clone(flags), "-static", "-o", l.built("native"), c+"native.c"),
		append(slices.Clone(flags), "-shared", "-fPIC", "-DSHARED", "-o", l.built("native.so"), c+"native.c"),
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = l.root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", args[0], err, out)
		}
	}
	return l.makeKeys(ctx)
}

// startNeighbours starts what stands around the service, the attacker among it, and billing twice.
func (l *lab) startNeighbours(ctx context.Context) error {
	if err := l.engine.networks(ctx); err != nil {
		return err
	}
	attacker, billing := filepath.Join(l.dir, "attacker"), filepath.Join(l.dir, "billing")
	if err := errors.Join(os.Mkdir(attacker, 0o755), l.configureBilling(billing)); err != nil {
		return err
	}
	all := []container{
		{name: "attacker", at: atAttacker, flags: []string{"-v", attacker + ":/attacker"}, command: []string{"attacker", "/attacker/relay.sock"}},
		{name: "partner", at: atPartner, command: []string{"partner"}},
		{name: "engine", at: atEngine, flags: []string{"-v", l.engine.socket + ":/engine.sock"}, command: []string{"engine", "/engine.sock"}},
		{name: "metadata", at: atMetadata, link: true, command: []string{"metadata", l.secret.metadata}},
		{name: "billing-bare", at: atBillingBare, command: []string{"billing", ":80", l.secret.billing}},
		{name: "billing", at: atBilling, image: l.image, flags: []string{"-v", billing + ":/lab"},
			command: []string{"sallyport", "run", "-c", "/lab/sallyport.yaml", "--", "neighbour", "billing", "127.0.0.1:3000", l.secret.billing}},
		{name: "names", at: atNames, command: []string{"names",
			"attacker.lab=" + labAddress(atAttacker), "partner.lab=" + labAddress(atPartner), "engine.lab=" + labAddress(atEngine),
			"hooks.lab=" + labAddress(atAttacker), "ledger.lab=" + labAddress(atAttacker),
			guardedBilling + "=" + labAddress(atBilling), bareBilling + "=" + labAddress(atBillingBare),
			"cloud.lab=" + linkAddress(atMetadata), "news.lab=" + labAddress(atPartner), "news.lab=" + linkAddress(atMetadata)}},
	}
	errs := make([]error, len(all))
	var wait sync.WaitGroup
	for i, c := range all {
		if c.image == "" {
			c.image = l.around
		}
		wait.Go(func() { errs[i] = l.engine.start(ctx, c) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// attackAll starts every variant, all at once, and sends each every attack, one after the other. What needs a minute begins
// before, and ends after all others.
func (l *lab) attackAll(ctx context.Context, rows []row) error {
	services, err := l.serveAll(ctx)
	if err != nil {
		return err
	}
	for i := range rows {
		rows[i].outcomes = make([]outcome, len(services))
		for _, s := range services {
			if rows[i].early == nil {
				continue
			}
			if err := s.begin(ctx, rows[i].attack); err != nil {
				return fmt.Errorf("%s: %s: %w", s.name, rows[i].name, err)
			}
		}
	}
	for at, s := range services {
		began := time.Now()
		if err := l.attack(ctx, s, at, rows, false); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		l.say("%s: %d attacks in %v", s.name, len(rows), time.Since(began).Round(100*time.Millisecond))
	}
	for at, s := range services {
		if err := l.attack(ctx, s, at, rows, true); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// attack sends a variant the attacks that can be sent when they come, or those that must wait for the end.
func (l *lab) attack(ctx context.Context, s *service, at int, rows []row, late bool) error {
	for i := range rows {
		if waits := rows[i].early != nil || rows[i].quiet && s.key == "guarded"; waits != late {
			continue
		}
		target := s
		if rows[i].name == nameUring && l.engine.refusesUring(ctx) {
			var err error
			if target, err = l.serve(ctx, unconfined(s.variant)); err != nil {
				return err
			}
		}
		var err error
		if rows[i].outcomes[at], err = target.attempt(ctx, rows[i].attack); err != nil {
			return fmt.Errorf("%s: %w", rows[i].name, err)
		}
	}
	return nil
}

// serveAll starts the variants and holds that what is attacked works, for whoever may use it.
func (l *lab) serveAll(ctx context.Context) ([]*service, error) {
	began := time.Now()
	all := variants()
	services, errs := make([]*service, len(all)), make([]error, len(all))
	var wait sync.WaitGroup
	for i, v := range all {
		wait.Go(func() {
			var err error
			if services[i], err = l.serve(ctx, v); err != nil {
				errs[i] = fmt.Errorf("%s: %w", v.name, err)
			}
		})
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, s := range services {
		s.other = services[1] // behind a gate, and it is not ended by any attack
		if s == s.other {
			s.other = services[4]
		}
	}
	l.say("%d services answer after %v", len(services), time.Since(began).Round(100*time.Millisecond))
	return services, services[1].mayInvoice(ctx)
}

// serve starts a variant and waits for it.
func (l *lab) serve(ctx context.Context, v variant) (*service, error) {
	s := &service{lab: l, variant: v}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if err := v.start(ctx, s); err != nil {
		return nil, err
	}
	return s, s.awaitAnswer(ctx)
}

// begin does what an attack begins with, and notes if that was stopped.
func (s *service) begin(ctx context.Context, a attack) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	before, err := s.books()
	if err != nil {
		return err
	}
	a.early(ctx, s)
	after, err := s.books()
	if err == nil && len(s.stolen) == 0 {
		s.foiled = denied(after.own[len(before.own):], nil)
	}
	return err
}

// attempt sends one attack and finds out what became of it.
func (s *service) attempt(ctx context.Context, a attack) (outcome, error) {
	if err := ctx.Err(); err != nil {
		return outcome{}, err
	}
	patience := 20 * time.Second
	if a.early != nil {
		patience += max(0, time.Until(s.stolenAt.Add(lifetime)))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a.ends = a.ends && s.key == "guarded"
	if a.early != nil && s.foiled.by != "" {
		return s.foiled, nil
	}
	if err := s.prelude(); err != nil {
		return outcome{}, err
	}
	got := a.send(ctx, s)
	if a.proof.show(ctx, s, got) {
		return outcome{succeeded: true}, nil
	}
	if a.ends {
		s.awaitRevoked(ctx, len(s.before.own))
	}
	after, err := s.books()
	if err != nil {
		return outcome{}, err
	}
	return judge(a, got, s.before, after), nil
}
