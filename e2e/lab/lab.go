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
	for _, v := range variants() {
		if err := l.attackAll(ctx, v, rows); err != nil {
			return nil, fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return rows, nil
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
		orders: rand.Text(), shadow: rand.Text(), metadata: rand.Text(), account: rand.Text(), supervisor: rand.Text(), owned: rand.Text(),
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
	return nil
}

// startNeighbours starts what stands around the service, the attacker among it.
func (l *lab) startNeighbours(ctx context.Context) error {
	if err := l.engine.networks(ctx); err != nil {
		return err
	}
	attacker := filepath.Join(l.dir, "attacker")
	if err := os.Mkdir(attacker, 0o755); err != nil {
		return err
	}
	all := []container{
		{name: "attacker", at: atAttacker, flags: []string{"-v", attacker + ":/attacker"}, command: []string{"attacker", "/attacker/relay.sock"}},
		{name: "partner", at: atPartner, command: []string{"partner"}},
		{name: "engine", at: atEngine, flags: []string{"-v", l.engine.socket + ":/engine.sock"}, command: []string{"engine", "/engine.sock"}},
		{name: "metadata", at: atMetadata, link: true, command: []string{"metadata", l.secret.metadata}},
		{name: "names", at: atNames, command: []string{"names",
			"attacker.lab=" + labAddress(atAttacker), "partner.lab=" + labAddress(atPartner), "engine.lab=" + labAddress(atEngine),
			"cloud.lab=" + linkAddress(atMetadata), "news.lab=" + labAddress(atPartner), "news.lab=" + linkAddress(atMetadata)}},
	}
	errs := make([]error, len(all))
	var wait sync.WaitGroup
	for i, c := range all {
		c.image = l.around
		wait.Go(func() { errs[i] = l.engine.start(ctx, c) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// attackAll starts a variant and sends it every attack, one after the other.
func (l *lab) attackAll(ctx context.Context, v variant, rows []row) error {
	began := time.Now()
	s, err := l.serve(ctx, v)
	if err != nil {
		return err
	}
	for i := range rows {
		target := s
		if rows[i].name == nameUring && l.engine.refusesUring(ctx) {
			if target, err = l.serve(ctx, unconfined(v)); err != nil {
				return err
			}
		}
		o, err := target.attempt(ctx, rows[i].attack)
		if err != nil {
			return fmt.Errorf("%s: %w", rows[i].name, err)
		}
		rows[i].outcomes = append(rows[i].outcomes, o)
	}
	l.say("%s: %d attacks in %v", v.name, len(rows), time.Since(began).Round(100*time.Millisecond))
	return nil
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

// attempt sends one attack and finds out what became of it.
func (s *service) attempt(ctx context.Context, a attack) (outcome, error) {
	if err := ctx.Err(); err != nil {
		return outcome{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	before, err := s.records()
	if err != nil {
		return outcome{}, err
	}
	got := a.send(ctx, s)
	if a.proof.show(ctx, s, got) {
		return outcome{succeeded: true}, nil
	}
	after, err := s.records()
	if err != nil {
		return outcome{}, err
	}
	return judge(a, got, before, after), nil
}
