package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/learn"
	"github.com/sallyport/sallyport/internal/sandbox"
	"github.com/sallyport/sallyport/safedial"
)

// lesson is a profile that is being learned (run --learn).
type lesson struct {
	path    string
	file    *os.File // empty until the end
	present []byte   // the configuration file
	log     *slog.Logger

	// Set by notes and watch.
	own     []netip.AddrPort
	config  *config.File
	profile sandbox.Profile
	service *service // nil: nothing began of which something could be learned

	mu       sync.Mutex
	connects map[netip.AddrPort]*learn.Connect
	sockets  map[string]bool
	lost     int
}

// maxConnects bounds what is kept of connections: a service has few destinations, or is a crawler.
const maxConnects = 4096

// newLesson takes the file while it can be had by whoever we are now: it must not be there yet, and is given to the user
// that we become. Without a path there is no lesson, and none is nil.
func newLesson(f *config.File, path string, log *slog.Logger) (*lesson, error) {
	if path == "" {
		return nil, nil
	}
	present, err := os.ReadFile(f.Path)
	if err != nil {
		return nil, fmt.Errorf("learn: read the configuration: %w", err)
	}
	h, err := heirOf(f)
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrExist) {
		file, err = openEmpty(path)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil, withHint(fmt.Errorf("learn: %s is there already", path), "name a file that does not exist, or remove it: what was learned before is never overwritten")
	}
	if err != nil {
		return nil, fmt.Errorf("learn: make the profile's file: %w", err)
	}
	l := &lesson{path: path, file: file, present: present, log: log, connects: map[netip.AddrPort]*learn.Connect{}, sockets: map[string]bool{}}
	if err := h.give(path); err != nil {
		l.discard()
		return nil, err
	}
	l.begin()
	return l, nil
}

// openEmpty opens the file that a run left of which nothing could be learned. Any other is fs.ErrExist.
func openEmpty(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fs.ErrExist
	}
	st, err := file.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() > 0 || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Nlink > 1 {
		file.Close()
		return nil, fs.ErrExist
	}
	return file, nil
}

// mayLearn refuses what could not be learned from.
func mayLearn(f *config.File, path string) error {
	switch {
	case path == "" || path == "-":
		return &codeError{exitUsage, withHint(fmt.Errorf("run: --learn wants a file, got %q", path), "sallyport run --learn learned.yaml -- CMD; standard output is the service's")}
	case network(f.Sandbox) == "ports":
		return withHint(errors.New("learn: with sandbox.network: ports nobody is asked about connections"), "learn with network: broker, and change it afterwards")
	}
	return nil
}

// discard gives up a lesson of which nothing came. The folder may be closed to us by now: then an empty file stays, which
// the next run takes.
func (l *lesson) discard() {
	_ = l.file.Truncate(0) // a piece of a profile would be taken for one; if it is closed it is whole
	ours, serr := l.file.Stat()
	l.file.Close()
	if there, err := os.Lstat(l.path); serr == nil && (err != nil || !os.SameFile(ours, there)) {
		return // somebody else's, or nobody's
	}
	if err := os.Remove(l.path); err != nil {
		l.log.Warn("nothing was learned, and the empty file stays", "file", l.path, "error", err)
	}
}

// open changes what learning takes: outgoing connections are recorded and pass.
func (l *lesson) open(f *config.File) *config.File {
	if l == nil {
		return f
	}
	opened := *f
	opened.Egress.Rules.Report = true
	return &opened
}

// begin says loudly what does not hold.
func (l *lesson) begin() {
	l.log.Warn("LEARNING: every file that its user may open is open to the service, sallyport's own among them, and connections pass that no destination names. Not for production: use data, keys and credentials that are worth nothing",
		"profile", l.path, "off", "files, execute-written, unix-sockets, what egress.destinations does not name",
		"on", "the gate, privileges, system calls, listening on loopback, the escape-target registry")
}

// notes wraps the broker's hook: who asked for what, and whether it passed.
func (l *lesson) notes(s *server, hook func(sandbox.Attempt, func(sandbox.Way))) func(sandbox.Attempt, func(sandbox.Way)) {
	if l == nil {
		return hook
	}
	l.own = s.doors.own(s.configuration().Ingress.Upstream)
	hosts := hostsFile("/etc/hosts")
	return func(a sandbox.Attempt, done func(sandbox.Way)) {
		hook(a, func(w sandbox.Way) {
			switch {
			case a.Network == "unix":
				l.mu.Lock()
				l.sockets[a.Path] = true
				l.mu.Unlock()
			case a.Network == "tcp" && !slices.Contains(l.own, a.To):
				names := s.behind.Names(a.To.Addr())
				if len(names) == 0 {
					names = hosts[a.To.Addr()]
				}
				l.connect(a.To, names, !w.Via.IsValid())
			}
			done(w)
		})
	}
}

func (l *lesson) connect(to netip.AddrPort, names []string, refused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.connects[to]
	if c == nil {
		if len(l.connects) >= maxConnects {
			l.lost++
			return
		}
		c = &learn.Connect{To: to, Refused: true}
		l.connects[to] = c
	}
	c.Refused = c.Refused && refused
	for _, n := range names {
		if !slices.Contains(c.Names, n) {
			c.Names = append(c.Names, n)
		}
	}
}

// hostsFile reads the names that hosts(5) gives to addresses other than loopback: they are not asked of a name server.
func hostsFile(path string) map[netip.Addr][]string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	names := map[netip.Addr][]string{}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if a, err := netip.ParseAddr(f[0]); err == nil && !a.IsLoopback() {
			names[a.Unmap()] = append(names[a.Unmap()], f[1:]...)
		}
	}
	return names
}

// watch begins when the service has begun.
func (l *lesson) watch(t *terminal, f *config.File, p sandbox.Profile, s *service) {
	if l == nil {
		return
	}
	l.config, l.profile, l.service = f, p, s
	if t.interactive() {
		go l.progress(t)
	}
}

// progress tells a person in front how much there is to learn from.
func (l *lesson) progress(t *terminal) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-l.service.ended:
			return
		case <-tick.C:
			l.mu.Lock()
			connects, sockets := len(l.connects), len(l.sockets)
			l.mu.Unlock()
			t.note("learning: %s, %s, %s; exercise every route, then Ctrl-C", count(l.service.process.Noted(), "path"), count(connects, "connection"), count(sockets, "socket"))
		}
	}
}

// finish writes the profile when all has ended, with run's error or none; it returns that, or its own.
func (l *lesson) finish(ended error) error {
	if l == nil {
		return ended
	}
	if l.service == nil {
		l.discard()
		return ended
	}
	if err := l.write(); err != nil {
		l.discard()
		return fmt.Errorf("learn: %w", err)
	}
	return ended
}

func (l *lesson) write() error {
	f, seen := l.config, l.service.process.Learned()
	var unlock []string
	for _, u := range f.Egress.Rules.Unlock {
		unlock = append(unlock, u.Name)
	}
	r, err := learn.Profile(l.seen(seen), learn.Given{
		Command: l.service.command, Present: l.present, Programs: seen.Programs, Private: private(f, l.profile),
		Read: f.Sandbox.Read, Write: f.Sandbox.Write, Execute: f.Sandbox.Execute, Sockets: f.Sandbox.Sockets,
		Guard: &safedial.Guard{Deny: f.Egress.Rules.Deny, Unlock: unlock, Own: l.own},
	})
	if err != nil {
		return err
	}
	if err := l.put(r.YAML); err != nil {
		return err
	}
	for _, d := range r.Dangers {
		l.log.Warn("dangerous, and left out of the profile", "what", d.What, "why", d.Why)
	}
	if seen.Lost+l.lost > 0 {
		l.log.Warn("more was done than was kept: the profile is incomplete", "paths", seen.Lost, "connections", l.lost)
	}
	l.log.Warn("LEARNED: what ran was not confined; what was learned is confined only once it stands in the configuration",
		"profile", l.path, "read", len(r.Read), "write", len(r.Write), "execute", len(r.Execute), "sockets", len(r.Sockets), "hosts", len(r.Destinations),
		"dangerous", len(r.Dangers), "left_out", r.LeftOut, "next", "read it, put it in place of sandbox and egress, run sallyport check")
	return nil
}

// put fills the file, at once and to the device: whoever finds text in it finds all of it. The service has the user to whom
// the file belongs, so nothing of what it may have written there must be left, and it must still be the same file.
func (l *lesson) put(text []byte) error {
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	if _, err := l.file.WriteAt(text, 0); err != nil {
		return err
	}
	ours, err := l.file.Stat()
	if err != nil {
		return err
	}
	if there, err := os.Lstat(l.path); err != nil || !os.SameFile(ours, there) {
		return fmt.Errorf("%s is not the file that was made at the start: the service may have replaced it", l.path)
	}
	return errors.Join(l.file.Sync(), l.file.Close())
}

// seen is what the walls and the broker saw.
func (l *lesson) seen(s sandbox.Learned) learn.Seen {
	opened := func(list []sandbox.Opened) (out []learn.Opened) {
		for _, o := range list {
			out = append(out, learn.Opened(o))
		}
		return out
	}
	out := learn.Seen{Opened: opened(s.Opened), Needs: map[string][]learn.Opened{}, Listens: s.Listens, Dir: s.Dir, Lost: s.Lost}
	for program, needs := range s.Needs {
		out.Needs[program] = opened(needs)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.connects {
		out.Connects = append(out.Connects, *c)
	}
	slices.SortFunc(out.Connects, func(a, b learn.Connect) int { return a.To.Compare(b.To) })
	for path := range l.sockets {
		out.Sockets = append(out.Sockets, path)
	}
	slices.Sort(out.Sockets)
	return out
}

// private are the files that no profile may give to the service: what only we may read, and what we believe.
func private(f *config.File, p sandbox.Profile) []string {
	list := slices.Concat(p.Deny, []string{f.Keys.Publish, f.Ingress.KeepKeys})
	for _, h := range f.Ingress.Hops {
		list = append(list, h.Keys.File)
	}
	for _, i := range f.Ingress.Issuers {
		list = append(list, i.Keys.File)
	}
	for _, d := range f.Egress.Rules.Destinations {
		list = append(list, d.CA)
	}
	if t := f.Ingress.TLS; t != nil {
		list = append(list, t.ClientCA)
	}
	for _, address := range addresses(f) {
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			list = append(list, path)
		}
	}
	list = slices.DeleteFunc(list, func(s string) bool { return s == "" })
	for i, path := range list {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			list[i] = real // as the walls name what was opened
		}
	}
	return list
}
