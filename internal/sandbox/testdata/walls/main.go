// Command walls is what the tests run: outside the walls as a supervisor, inside them as the program that tries to
// get out.
//
//	walls supervise JSON    Drop, Launch and Wait, as sallyport run does; "enforced: JSON" goes to standard error
//	walls try JSON          Try, and the plan on standard output
//	walls listened JSON     supervise, but with a seccomp listener already installed
//	walls contained JSON    supervise, but where pidfd_getfd is refused, as by a container's own filter
//	walls probe DO...       one line "DO: ok" or "DO: what was refused" for each, see probes
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/sandbox"
)

// Job is what the test asks a supervisor to do.
type Job struct {
	Profile sandbox.Profile
	Path    string
	Args    []string
	Pipes   bool // give the program pipes in place of our own output
	Timeout time.Duration
	// Ways is what the hook answers: "tcp 192.0.2.7:80" or "tcp *" to "direct" or to the address that it is led to, "unix
	// /path" to "allow", "udp *" to an address; a "later " before it answers from another goroutine. All else is refused.
	// "resolve" is what a DNS question by a datagram is answered with. With "denied" it is told what the walls refuse: what
	// begins with its value is refused by whoever hears it, the rest is left to them.
	Ways  map[string]string
	Quiet bool // say nothing of each connection
}

func main() {
	sandbox.Child()
	switch os.Args[1] {
	case "supervise":
		os.Exit(supervise(job()))
	case "try":
		j := job()
		plan, err := sandbox.Try(context.Background(), j.Profile, sandbox.Command{Path: j.Path, Args: j.Args})
		if err != nil {
			fmt.Fprintln(os.Stderr, "try:", err)
			os.Exit(70)
		}
		json.NewEncoder(os.Stdout).Encode(plan)
	case "bare": // what it costs to start two programs like this, without walls
		c := exec.Command(os.Args[2], os.Args[3:]...)
		if err := c.Run(); err != nil {
			panic(err)
		}
	case "contained":
		contained(append([]string{os.Args[0], "supervise"}, os.Args[2:]...))
	case "listened":
		listened(append([]string{os.Args[0], "supervise"}, os.Args[2:]...))
	case "probe":
		for _, do := range os.Args[2:] {
			verb, argument, _ := strings.Cut(do, " ")
			err := fmt.Errorf("no such probe")
			f := probes()[verb]
			if f == nil {
				f = connects()[verb]
			}
			if f == nil {
				f = hostile()[verb]
			}
			if f != nil {
				err = f(argument)
			}
			if err != nil {
				fmt.Printf("%s: %v\n", do, err)
			} else {
				fmt.Printf("%s: ok\n", do)
			}
		}
	}
}

func job() (j Job) {
	if err := json.Unmarshal([]byte(os.Args[2]), &j); err != nil {
		panic(err)
	}
	return j
}

func supervise(j Job) int {
	if err := sandbox.Drop(j.Profile); err != nil {
		fmt.Fprintln(os.Stderr, "drop:", err)
		return 71
	}
	ctx := context.Background()
	if j.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, j.Timeout)
		defer cancel()
	}
	cmd := sandbox.Command{Path: j.Path, Args: j.Args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Connect: j.way}
	if answer, ok := j.Ways["resolve"]; ok {
		cmd.Resolve = func([]byte) []byte { return []byte(answer) }
	}
	if prefix, ok := j.Ways["denied"]; ok {
		cmd.Denied = func(d sandbox.Denied) bool {
			if !j.Quiet {
				fmt.Fprintf(os.Stderr, "denied: %v %s\n", d.Execute, d.Path)
			}
			return strings.HasPrefix(d.Path, prefix)
		}
	}
	if j.Pipes {
		cmd.Stdout, cmd.Stderr = writer{os.Stdout}, writer{os.Stderr}
	}
	before := descriptors() + 2 // the two are the runtime's, for files that it can poll
	// Before the program can ask for one.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	p, err := sandbox.Launch(ctx, j.Profile, cmd)
	if err != nil {
		fmt.Fprintln(os.Stderr, "launch:", err)
		if gap, ok := errors.AsType[*sandbox.GapError](err); ok {
			for _, g := range gap.Gaps {
				fmt.Fprintln(os.Stderr, "gap:", g.Name)
			}
			return 73
		}
		if errors.Is(err, fs.ErrNotExist) {
			return 74
		}
		return 72
	}
	enforced, _ := json.Marshal(p.Enforced())
	fmt.Fprintf(os.Stderr, "enforced: %s\n", enforced)
	go func() {
		for s := range signals {
			if err := p.Signal(s); err != nil {
				fmt.Fprintln(os.Stderr, "signal:", err)
			}
			fmt.Fprintln(os.Stderr, "passed on:", s)
		}
	}()
	code, err := p.Wait()
	if j.Profile.Learn {
		learned, _ := json.Marshal(p.Learned())
		fmt.Fprintf(os.Stderr, "learned: %s\n", learned)
	}
	if n := descriptors(); n > before {
		fmt.Fprintf(os.Stderr, "%d descriptors are left of the program\n", n-before)
		return 78
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "wait:", err)
		return 75
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		fmt.Fprintln(os.Stderr, "a signal after the end:", err)
		return 76
	}
	return code
}

// way is the hook.
func (j Job) way(a sandbox.Attempt, done func(sandbox.Way)) {
	what := a.Network + " " + a.To.String()
	if a.Network == "unix" {
		what = "unix " + a.Path
	}
	if j.Profile.Learn {
		fmt.Fprintln(os.Stderr, "asked:", what)
	}
	text, ok := j.Ways[what]
	if !ok {
		text = j.Ways[a.Network+" *"]
	}
	text, later := strings.CutPrefix(text, "later ")
	w := sandbox.Way{
		Begun: func(from netip.AddrPort) { fmt.Fprintln(os.Stderr, "begun:", what, from.Addr()) },
		Ended: func(err error) { fmt.Fprintln(os.Stderr, "ended:", what, err) },
	}
	if j.Quiet {
		w.Begun, w.Ended = nil, nil
	}
	switch {
	case text == "direct":
		w.Via = a.To
	case text == "allow":
		w.Allow = true
	case text == "busy":
		w.Errno = syscall.ECONNREFUSED
	case text != "":
		w.Via = netip.MustParseAddrPort(text)
	}
	if later {
		time.AfterFunc(20*time.Millisecond, func() { done(w) })
		return
	}
	done(w)
}

type writer struct{ f *os.File }

func (w writer) Write(p []byte) (int, error) { return w.f.Write(p) }

func descriptors() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(names)
}
