// Package learn turns what a service was seen to do into a profile.
//
// It decides what a person would not want to decide a thousand times, and leaves the rest to a person: files of one folder
// become the folder, what every program of the kind has anyway is not there to begin with, and what is dangerous is never
// allowed, whatever the service did, but written down as a comment with its reason. The table of dangers is dangers.csv;
// where connections lead is judged by safedial.
//
// What it does not know: what the service did not do. A route that nobody called opens nothing here.
package learn

import (
	"net/netip"

	"github.com/sallyport/sallyport/safedial"
)

// Seen is what a service did beyond what it needs to begin with.
type Seen struct {
	Opened   []Opened
	Needs    map[string][]Opened // by a program that it executed: interpreters, loaders and libraries that the program needs
	Connects []Connect
	Sockets  []string // real paths of unix sockets that it connected to
	Listens  []string // addresses that it asked to listen on, and was refused
	Dir      string   // its working directory, where the profile must let it look into that; else empty
	Lost     int      // paths that were not kept
}

// Opened is one path that it opened, executed, or changed something at; making or removing a file is writing in its folder.
type Opened struct {
	Path    string // real and absolute; /proc/self and /proc/[pid] for processes
	Read    bool
	Write   bool
	Execute bool
	Folder  bool // it is one
	Made    bool // it made this folder
	Block   bool // a block device
	Refused bool // its mode refused the service's user
	Gone    bool // nothing is there any more
	Given   bool // the service has it anyway, and it is here since it may be dangerous
}

// Connect is one place that it connected to.
type Connect struct {
	To      netip.AddrPort
	Names   []string // that the address was looked up by; none where it used the address
	Refused bool     // and it was not let
}

// Given is what the profile is written into.
type Given struct {
	Command  []string // what ran
	Present  []byte   // the configuration file that it ran with; what is not learned is kept
	Programs []string // what it may execute to begin with, by real paths
	Private  []string // real paths of what is sallyport's alone
	Read     []string // what the present profile names, as absolute paths
	Write    []string
	Execute  []string
	Sockets  []string
	Guard    *safedial.Guard // judges addresses and sockets
}

// Result is the profile.
type Result struct {
	YAML         []byte // the sections sandbox and egress, with comments
	Read         []string
	Write        []string
	Execute      []string
	Sockets      []string
	Destinations []string // their hosts
	Dangers      []Danger // left out
	LeftOut      int      // so many other things are, for reasons that the comments say
}

// Profile is the straight line: first what is written, because nothing of it may be executed, then what is executed,
// because it may be read, then what is read, then connections.
func Profile(s Seen, g Given) (Result, error) {
	p := &profile{given: g, seen: s}
	p.dangers()
	p.writes()
	p.executes()
	p.reads()
	p.sockets()
	if err := p.connections(); err != nil {
		return Result{}, err
	}
	text, err := p.yaml()
	if err != nil {
		return Result{}, err
	}
	return Result{
		YAML: text, Read: p.read, Write: p.write, Execute: p.execute, Sockets: p.unix, Destinations: p.hosts(),
		Dangers: p.danger, LeftOut: len(p.left),
	}, nil
}

// profile is the work in hand.
type profile struct {
	given Given
	seen  Seen

	read, write, execute, unix []string
	old                        []destination // of the file, and seen to be used
	unused                     []destination // of the file, and not seen
	fresh                      []destination
	danger                     []Danger
	left                       []Danger // left out, for another reason than danger
	wrote                      []Opened // what it wrote, allowed or not
	neverRun                   []string // what is dangerous to execute
	dangerAt                   []string // what is dangerous to read or write
	said                       map[string]bool
}

// warn leaves something dangerous out.
func (p *profile) warn(what, why string) {
	if p.once("!" + what + why) {
		p.danger = append(p.danger, Danger{what, why})
	}
}

// leave leaves something out that is not dangerous by itself.
func (p *profile) leave(what, why string) {
	if p.once(what + why) {
		p.left = append(p.left, Danger{what, why})
	}
}

func (p *profile) once(key string) bool {
	if p.said == nil {
		p.said = map[string]bool{}
	}
	if p.said[key] {
		return false
	}
	p.said[key] = true
	return true
}
