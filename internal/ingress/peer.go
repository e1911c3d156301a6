package ingress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/policy"
)

// Why a connection is closed before anything but a PROXY header was read of it.
const (
	codePeerRefused   policy.Code = "peer_refused"         // a process that may not connect
	codeProxyMissing  policy.Code = "proxy_header_missing" // a peer that must say who has connected, and did not
	codeProxyInvalid  policy.Code = "proxy_header_invalid"
	codeProxyTimeout  policy.Code = "proxy_header_timeout"
	peerAddressPrefix             = "uid="
)

// ProxyProtocol is who says, before all else on a connection, who has connected (internal/proxyproto). Everybody in From must; on a
// unix socket, which has no addresses, everybody whom Peers lets in.
type ProxyProtocol struct{ From []netip.Prefix }

// Peers are the processes that may connect to a unix socket: of one of the users, or of one of the primary groups.
type Peers struct{ UIDs, GIDs []uint32 }

// checkDoors refuses what would believe everybody, or let nobody in.
func (c *Config) checkDoors() error {
	if c.Peers != nil && len(c.Peers.UIDs)+len(c.Peers.GIDs) == 0 {
		return errors.New("peers: names nobody")
	}
	if c.ProxyProtocol == nil {
		return nil
	}
	if c.Peers == nil && len(c.ProxyProtocol.From) == 0 {
		return errors.New("proxy_protocol: does not say whose headers are believed")
	}
	if err := checkTrusted(c.ProxyProtocol.From); err != nil {
		return fmt.Errorf("proxy_protocol: %w", err)
	}
	return nil
}

// peerConn is a connection whose other end is somebody else, or better known, than the kernel's address says.
type peerConn struct {
	net.Conn
	remote net.Addr
}

func (c *peerConn) RemoteAddr() net.Addr { return c.remote }

// NetConn is the connection below, as tls.Conn has it.
func (c *peerConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends our direction, where the connection below can.
func (c *peerConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// process is the address of a unix socket's peer: who it was when it connected. As text it goes the way of every other address,
// http.Request.RemoteAddr, which no client writes.
type process struct {
	uid, gid uint32
	pid      int32
}

func (p process) Network() string { return "unix" }
func (p process) String() string {
	return fmt.Sprintf("%s%d gid=%d pid=%d", peerAddressPrefix, p.uid, p.gid, p.pid)
}

// peerUID reads a process's address.
func peerUID(address string) (uid uint32, ok bool) {
	rest, ok := strings.CutPrefix(address, peerAddressPrefix)
	if !ok {
		return 0, false
	}
	digits, _, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), err == nil
}

// processOf asks the kernel who is at the other end.
func processOf(c net.Conn) (process, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return process{}, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return process{}, err
	}
	var credentials *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		credentials, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return process{}, err
	}
	if failed != nil {
		return process{}, os.NewSyscallError("getsockopt SO_PEERCRED", failed)
	}
	return process{credentials.Uid, credentials.Gid, credentials.Pid}, nil
}

// may reports whether a process may connect.
func (p *Peers) may(who process) bool {
	return p == nil || slices.Contains(p.UIDs, who.uid) || slices.Contains(p.GIDs, who.gid)
}
