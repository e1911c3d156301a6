package sandbox

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// trials are places where the supervisor listens during the self-test: what the child must not get through to, and the
// one that it must be led to.
type trials struct {
	Abstract string // an abstract unix socket
	Path     string // a unix socket with a path; empty where there is no folder to put one
	TCP, UDP uint16 // ports on 127.0.0.1

	descriptors []int
	folder      string
}

// trialAddress is led to the TCP socket of the trials. It is nobody's (RFC 5737): whoever reaches it was led.
func trialAddress() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 9)
}

// newTrials listens. The caller must close them.
func newTrials(s *spec) (t trials, err error) {
	defer func() {
		if err != nil {
			t.close()
			err = fmt.Errorf("prepare the self-test: %w", err)
		}
	}()
	t.Abstract = "@sallyport-self-test-" + rand.Text()
	if err := t.listen(unix.AF_UNIX, unix.SOCK_STREAM, &unix.SockaddrUnix{Name: t.Abstract}); err != nil {
		return t, err
	}
	for _, folder := range trialFolders(s) {
		dir, err := os.MkdirTemp(folder, ".sallyport-self-test-")
		if err != nil {
			continue
		}
		t.folder, t.Path = dir, filepath.Join(dir, "s")
		if err := t.listen(unix.AF_UNIX, unix.SOCK_STREAM, &unix.SockaddrUnix{Name: t.Path}); err != nil {
			return t, err
		}
		break
	}
	if s.Network == networkNone {
		return t, nil
	}
	here := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	for _, kind := range []struct {
		kind int
		port *uint16
	}{{unix.SOCK_STREAM, &t.TCP}, {unix.SOCK_DGRAM, &t.UDP}} {
		if err := t.listen(unix.AF_INET, kind.kind, here); err != nil {
			return t, err
		}
		at, err := localAddress(t.descriptors[len(t.descriptors)-1])
		if err != nil {
			return t, err
		}
		*kind.port = at.Port()
	}
	return t, nil
}

// trialFolders are where a socket may be put: anywhere that the child could find it.
func trialFolders(s *spec) []string {
	folders := []string{"/dev/shm", os.TempDir()}
	for _, r := range s.Rules {
		if r.Access&accessWrite != 0 {
			folders = append(folders, r.Path)
		}
	}
	return folders
}

func (t *trials) listen(family, kind int, at unix.Sockaddr) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	t.descriptors = append(t.descriptors, fd)
	if err := unix.Bind(fd, at); err != nil || kind != unix.SOCK_STREAM {
		return err
	}
	return unix.Listen(fd, 16)
}

func (t *trials) close() {
	for _, fd := range t.descriptors {
		unix.Close(fd)
	}
	if t.folder != "" {
		_ = os.RemoveAll(t.folder) // an empty folder at most, with a name that says whose it is
	}
}

// hook leads the one address, and refuses the rest, as the program's own hook is not asked yet.
func (t *trials) hook(a Attempt, done func(Way)) {
	if a.Network == "tcp" && a.To == trialAddress() {
		done(Way{Via: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), t.TCP)})
		return
	}
	done(Way{})
}

// tryBroker looks that what no destination names is refused, with or without waiting, and that what is led arrives where
// it was led.
func tryBroker(s *spec) (a attempt) {
	here := &unix.SockaddrInet4{Port: int(s.Trials.TCP), Addr: [4]byte{127, 0, 0, 1}}
	mapped := &unix.SockaddrInet6{Port: int(s.Trials.TCP), Addr: [16]byte{10: 0xff, 11: 0xff, 12: 127, 15: 1}}
	name := fmt.Sprintf("127.0.0.1:%d", s.Trials.TCP)
	a.refused("connect "+name, connectTo(unix.AF_INET, 0, here), unix.EACCES)
	a.refused("connect "+name+" without waiting", connectTo(unix.AF_INET, unix.SOCK_NONBLOCK, here), unix.EACCES)
	if err := connectTo(unix.AF_INET6, 0, mapped); !errors.Is(err, unix.EAFNOSUPPORT) {
		a.refused("connect [::ffff:127.0.0.1]", err, unix.EACCES)
	}
	metadata := &unix.SockaddrInet4{Port: 80, Addr: [4]byte{169, 254, 169, 254}}
	a.refused("connect 169.254.169.254:80", connectTo(unix.AF_INET, unix.SOCK_NONBLOCK, metadata), unix.EACCES)
	to := trialAddress()
	fd, err := tryInet(unix.AF_INET)
	if err == nil {
		defer unix.Close(fd)
		err = connectSoon(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	}
	led := ""
	if err == nil {
		if peer, perr := unix.Getpeername(fd); perr == nil {
			if sa, ok := peer.(*unix.SockaddrInet4); ok && sa.Port == int(s.Trials.TCP) {
				led = "led"
			}
		}
	}
	a.holds("connect "+to.String()+" is led to the supervisor", led != "", fmt.Sprintf("connect %s was not led to the supervisor: %v", to, err))
	a.note = "each socket is made by the supervisor, which keeps a copy until it is connected"
	if s.Custody == custodyFetch {
		a.note = "each socket is fetched by the supervisor when it is to be connected (pidfd_getfd)"
	}
	return a
}

func connectTo(family, flags int, to unix.Sockaddr) error {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return connectSoon(fd, to)
}

// connectSoon connects, or fails within a second: where a wall is missing nobody may answer.
func connectSoon(fd int, to unix.Sockaddr) error {
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return err
	}
	return unix.Connect(fd, to)
}

// tryConnect looks that a port which was not given cannot be connected to.
func tryConnect(s *spec) (a attempt) {
	here := &unix.SockaddrInet4{Port: int(s.Trials.TCP), Addr: [4]byte{127, 0, 0, 1}}
	a.refused(fmt.Sprintf("connect 127.0.0.1:%d", s.Trials.TCP), connectTo(unix.AF_INET, 0, here), unix.EACCES)
	return a
}

func tryUnixSockets(s *spec) (a attempt) {
	if s.Trials.Path == "" {
		a.how = append(a.how, "nowhere to put a socket for the test")
	} else {
		a.refused("connect to a unix socket of the supervisor's by its path", connectTo(unix.AF_UNIX, 0, &unix.SockaddrUnix{Name: s.Trials.Path}), unix.EACCES)
	}
	for _, path := range []string{"/run/docker.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/podman/podman.sock"} {
		if unix.Access(path, unix.F_OK) == nil {
			// Whatever stops it will do here: what it may not read it may not connect to either.
			a.refused("connect "+path, connectTo(unix.AF_UNIX, 0, &unix.SockaddrUnix{Name: path}))
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	a.refused("socket(AF_UNIX, SOCK_DGRAM)", err, unix.EACCES)
	return a
}

// tryUDP looks that no datagram leaves: there is no socket for it, or one that reaches the name server alone.
func tryUDP(s *spec) (a attempt) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if !s.UDP {
		if err == nil {
			unix.Close(fd)
		}
		a.refused("socket(AF_INET, SOCK_DGRAM)", err, unix.EACCES)
		return a
	}
	if err != nil {
		a.holds("socket(AF_INET, SOCK_DGRAM)", false, fmt.Sprintf("there is no UDP socket for name resolution: %v", err))
		return a
	}
	defer unix.Close(fd)
	here := &unix.SockaddrInet4{Port: int(s.Trials.UDP), Addr: [4]byte{127, 0, 0, 1}}
	a.refused("sendto", unix.Sendto(fd, []byte("x"), 0, here), unix.EACCES)
	a.refused("sendmsg", unix.Sendmsg(fd, []byte("x"), nil, here, 0), unix.EACCES)
	a.refused("connect of a datagram socket", unix.Connect(fd, here), unix.EACCES)
	return a
}
