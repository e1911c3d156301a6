package main

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sandbox"
)

// doors are the listeners of a gate. They are opened while ports and folders can still be had.
type doors struct {
	data   net.Listener // ingress.listen; nil where proxies only ask
	admin  net.Listener // admin.listen; nil where there is none
	egress net.Listener // egress.listen; nil where there is none

	forwardAuth net.Listener // ingress.forward_auth.listen; nil where there is none
	extAuthz    net.Listener // ingress.ext_authz.listen; nil where there is none

	program net.Listener // a forward proxy for the program that run starts, alone; nil where there is none
}

func openDoors(f *config.File) (d doors, err error) {
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if f.Ingress.Listen != "" {
		if d.data, err = listen(f.Ingress.Listen, 0o666); err != nil {
			return d, err
		}
	}
	// Whoever asks says who the client is: on a socket that is for our group, at most.
	if a := f.Ingress.ForwardAuth; a != nil {
		if d.forwardAuth, err = listen(a.Listen, 0o660); err != nil {
			return d, err
		}
	}
	if a := f.Ingress.ExtAuthz; a != nil {
		if d.extAuthz, err = listen(a.Listen, 0o660); err != nil {
			return d, err
		}
	}
	if f.Admin.Listen != "" {
		if d.admin, err = listen(f.Admin.Listen, 0o600); err != nil {
			return d, err
		}
	}
	if f.Egress.Listen != "" {
		if d.egress, err = listen(f.Egress.Listen, 0o666); err != nil {
			return d, err
		}
	}
	return d, nil
}

// close is for doors that nobody came to serve: whoever serves a listener closes it.
func (d doors) close() {
	for _, l := range []net.Listener{d.data, d.forwardAuth, d.extAuthz, d.admin, d.egress, d.program} {
		if l != nil {
			l.Close()
		}
	}
}

// openProgram opens a forward proxy for the program, where it is one that asks for it (Node, by its preload) and there is
// none that it could reach. Any port will do: nobody else gets in.
func (d *doors) openProgram(p sandbox.Profile, asks bool) (err error) {
	if d.egress != nil || network(p) != "broker" || !asks {
		return nil
	}
	if d.program, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		return fmt.Errorf("listen for the program: %w", err)
	}
	return nil
}

// asksForProxy reports whether a program is told where a forward proxy is: one that Node runs, or whose profile passes
// the variable on.
func asksForProxy(p sandbox.Profile, program string) bool {
	return p.Preset == "node" || slices.Contains([]string{"node", "nodejs", "npm", "npx", "yarn", "pnpm"}, filepath.Base(program)) ||
		slices.Contains(p.Env.Pass, "SALLYPORT_PROXY")
}

// proxy is where the forward proxy listens, as a program can be told it; not valid where there is none, or none but a
// unix socket.
func (d doors) proxy() netip.AddrPort {
	if d.egress == nil {
		return netip.AddrPort{}
	}
	a, _ := d.egress.Addr().(*net.TCPAddr)
	return a.AddrPort() // of nil: not valid
}

// own lists where we, and the service in front of which we stand, can be reached: no destination may lead there.
func (d doors) own(upstream *url.URL) []netip.AddrPort {
	var own []netip.AddrPort
	for _, l := range []net.Listener{d.data, d.forwardAuth, d.extAuthz, d.admin, d.egress} {
		if l == nil {
			continue
		}
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			own = append(own, netip.AddrPortFrom(a.AddrPort().Addr().Unmap().WithZone(""), uint16(a.Port)))
		}
	}
	if upstream == nil {
		return own
	}
	return append(own, placesOf(upstream.Host)...)
}

// configuredDoors is own for a file whose listeners are not open.
func configuredDoors(f *config.File) []netip.AddrPort {
	var own []netip.AddrPort
	if u := f.Ingress.Upstream; u != nil {
		own = placesOf(u.Host)
	}
	for _, l := range addresses(f) {
		own = append(own, placesOf(l)...)
	}
	return own
}

// addresses are where all listeners of the file are.
func addresses(f *config.File) []string {
	all := []string{f.Ingress.Listen, f.Admin.Listen, f.Egress.Listen}
	if a := f.Ingress.ForwardAuth; a != nil {
		all = append(all, a.Listen)
	}
	if a := f.Ingress.ExtAuthz; a != nil {
		all = append(all, a.Listen)
	}
	return all
}

// placesOf reads "host:port" where the host is an address, "localhost" or nothing, which is every address. A unix socket
// is no such place.
func placesOf(address string) []netip.AddrPort {
	host, digits, err := net.SplitHostPort(address)
	port, perr := strconv.ParseUint(digits, 10, 16)
	if err != nil || perr != nil || port == 0 {
		return nil
	}
	at := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a.Unmap(), uint16(port)) }
	switch host {
	case "":
		return []netip.AddrPort{at(netip.IPv6Unspecified())}
	case "localhost":
		return []netip.AddrPort{at(netip.AddrFrom4([4]byte{127, 0, 0, 1})), at(netip.IPv6Loopback())}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return nil
	}
	return []netip.AddrPort{at(a)}
}
