// Package sandbox starts a program with less power than it would have had, in a default, unprivileged container.
//
//	if err := sandbox.Drop(profile); err != nil { ... } // we become the program's user, for good
//	p, err := sandbox.Launch(ctx, profile, sandbox.Command{Path: "node", Args: []string{"node", "dist/main.js"}})
//	code, err := p.Wait()
//
// It is one straight line in two processes, each step in the file of its name:
//
//	parent:  profile ─ plan ─ start child ─────────────────────── supervise ─ report
//	child:                     drop ─ confine ─ self-test ─ exec
//
// The child is this same binary, started anew; main must call Child before anything else. Four layers stand around
// the program, each of which would still hold if another one fell:
//
//   - it has a user of its own, no capability, no new privileges, and only the descriptors and variables it was given;
//   - Landlock lets it read, write and execute only what the profile names, and nothing that it can write can it
//     execute; it bars it from signalling, tracing and reading processes outside, and from binding TCP ports itself;
//   - a seccomp filter closes, by value, the system calls that go around Landlock or lead out of a container, and the
//     datagram sockets, whose address stands where no filter sees it;
//   - socket(2), connect(2), bind(2) and listen(2) go to the supervisor, the connection broker, which performs them itself:
//     on its own copy of the program's socket, with its own copy of the address. Whatever the program asks for, its
//     listeners are on loopback, and it is connected where Command.Connect says and nowhere else. No such request is
//     answered with "continue", so there is nothing to gain by changing an argument after it was judged.
//
// Before the program begins, the child tries each protection from inside the finished walls. What was asked for and
// does not hold is a gap, and a gap refuses to start unless Profile.AcceptGaps names it.
//
// How far outgoing connections are limited is the network level. "broker": each is judged by its address, and led to
// where the hook says, without the program's help. "ports": nobody is asked, the program has TCP sockets only and
// Landlock lets it connect to one port, at whatever address; it must know its proxy. "none": no internet sockets. If the
// supervisor dies, the kernel answers ENOSYS to whatever was its to decide.
//
// The broker needs no capability and no system call that a default container refuses. It comes by the program's sockets
// in one of two ways, which the start finds out by trying: where pidfd_getfd(2) works it fetches a socket when it is to
// be connected; elsewhere it makes every socket, and keeps a copy until it is connected or listens. A socket of which it
// has no copy (one that somebody sent, or that the program closed and sent itself) connects to nobody.
//
// With Profile.Learn the file rules are off, and what the program opens is noted: the calls that open, execute, make or
// remove files go by the supervisor too, who reads their paths and lets the kernel go on. That decides nothing. So it is
// with Command.Denied, for what starts a program or opens for writing: what it hears of is refused, and all else is left
// to the kernel and the walls, which read the path again.
//
// What it does not do. Landlock guards execve, not mmap: an interpreter that may run can still load a file that was
// written, and the dynamic loader can map one; a directory that is both writable and readable is still data. File
// names and metadata (stat) are visible everywhere, and the mode, times and extended attributes of what the program's
// user owns can be changed wherever it lies. SysV shared memory, queues and semaphores are those of the container's
// IPC namespace. Processes that `docker exec` or a health check starts stand outside the walls. A program that its
// user may not read (mode 0711) has no sockets, because its supervisor cannot read the addresses it asks for. The peer
// of a unix socket sees the supervisor's process id in SO_PEERCRED. A blocking connect cannot be interrupted by a
// signal that the program handles. With network "ports" and no way to fetch, bind gives the program another socket:
// what it set on its own is lost, and epoll must be told of it after bind.
package sandbox

import (
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

// Profile is what is asked for. Unset means closed.
type Profile struct {
	Preset     string   // "node" or empty
	User       string   // "uid:gid" or "uid", numbers; as root, empty means 65532:65532; not root, must be empty or who we are
	Read       []string // files and folders the program may read (never execute unless also in Execute)
	Write      []string // may read and write; what can be written cannot be executed
	Execute    []string // may read and execute
	Deny       []string // must stay closed although they lie in a folder of Read: the supervisor's keys, log and configuration
	Network    string   // "broker" when empty; "ports" and "none" as the configuration documents
	Proxy      uint16   // with network "ports": the one TCP port that may be connected to, at whatever address; 0 is none
	Listen     []Listen // where the program may listen
	Sockets    []string // unix sockets, by their paths, that the program may connect to
	UDP        string   // "none" when empty; "dns" gives sockets that reach the name server of Command.Connect and nobody else
	Env        Env
	Limits     Limits
	AcceptGaps []string // protections that may be missing here, by name
	Dir        string   // working directory; empty means ours

	// Learn lets the program open every file that its user may, and notes what it opens (Process.Learned). The protections
	// "files", "execute-written" and "unix-sockets" are missing then, as if AcceptGaps named them: which unix sockets it may
	// connect to is Command.Connect's to say alone. All else holds. It is for finding out what a profile must say, where nothing is at stake:
	// the program can read what its user can, the supervisor's own files among it.
	Learn bool
}

// Listen is one place where the program may listen: a TCP port on loopback, or a unix socket's path, whose folder
// the program may then write in.
type Listen struct {
	Port uint16
	Unix string
}

// Env is the program's environment: nothing but PATH, HOME, LANG, TZ, and what is said here. Pass takes names of our
// own variables; those by which somebody else's code enters a program (LD_*, NODE_OPTIONS, ...) are refused there
// and must be written out in Set.
type Env struct {
	Pass []string
	Set  map[string]string
}

// Limits are rlimits; zero leaves the default in brackets. They never exceed our own hard limits.
type Limits struct {
	NoFile uint64 // [4096] open descriptors
	NProc  uint64 // [4096] processes and threads of the user: of all containers that run as the same uid, taken together
	Core   uint64 // always 0
}

// Command is the program.
type Command struct {
	Path           string   // a path, or a name to be found in the program's PATH
	Args           []string // Args[0] is the program's own name
	Stdin          *os.File // nil is /dev/null
	Stdout, Stderr io.Writer
	Logger         *slog.Logger // told what the program was refused, and what to change; nil is nobody

	// Connect is asked about each outgoing connection with network "broker" (and unix sockets with "none"), and must
	// call its second argument once, now or later; until then the program's thread waits. It is called from one thread:
	// what takes long belongs into a goroutine. nil refuses everything.
	Connect func(Attempt, func(Way))
	// Denied hears of what the program tried to execute, or to open for writing, and its profile does not allow, and reports
	// whether it is refused for that reason, with EACCES. What it lets go on the walls refuse, as they do where nobody hears.
	// It is called from one thread, before the program has its answer, and must not wait. Not with Profile.Learn, nor where
	// the files are open by an accepted gap. nil: nobody hears, and nobody is asked.
	Denied func(Denied) bool
	// Resolve answers a DNS message that a program's UDP socket (Profile.UDP "dns") was to send; nil is no answer. It may
	// take its time.
	Resolve func(query []byte) []byte
}

// Attempt is one outgoing connection that the program asked for.
type Attempt struct {
	Process int            // the caller's thread, by its number as we see it
	Network string         // "tcp", "unix", or "udp", of which only port 53 is ever asked
	To      netip.AddrPort // tcp and udp: unmapped; 0.0.0.0 and :: are loopback already
	Path    string         // unix: the real path
	Given   bool           // unix: Profile.Sockets names it; another is refused whatever the way, unless a profile is learnt
}

// Way is the answer to an Attempt. The zero value refuses with EACCES.
type Way struct {
	Errno syscall.Errno  // refuse with this number
	Via   netip.AddrPort // tcp and udp: where the socket is connected in place of To, on IPv4 loopback; To itself is direct
	Allow bool           // unix: connect
	// Begun, if set, is told the socket's own address when the connection has begun. Whoever listens at Via may accept it
	// before that.
	Begun func(from netip.AddrPort)
	// Ended, if set, is told how a connection ended up, once: nil is connected.
	Ended func(error)
}

// Protection is one thing the walls do, by its stable name.
type Protection struct {
	Name    string `json:"name"`
	Asked   string `json:"asked"` // empty: not asked for, and no gap if missing
	InForce bool   `json:"in_force"`
	How     string `json:"how"`              // how it was tried
	Detail  string `json:"detail,omitempty"` // why not, or what is worth knowing
}

func (p Protection) gap() bool { return p.Asked != "" && !p.InForce }

// Plan is the profile against this kernel.
type Plan struct {
	Asked       string // the network level that the profile asks for
	Level       string // and the one that holds: "broker", "ports", "none", or "open" where outgoing connections are not limited
	Protections []Protection
}

// Enforced is what holds around a started program.
type Enforced Plan

// GapError names the protections that were asked for and cannot be had here.
type GapError struct{ Gaps []Protection }

func (e *GapError) Error() string {
	parts := make([]string, len(e.Gaps))
	for i, g := range e.Gaps {
		parts[i] = g.Name
		if g.Detail != "" {
			parts[i] += " (" + g.Detail + ")"
		}
	}
	return "protections asked for and not in force here: " + strings.Join(parts, "; ")
}
