package safedial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// listen returns a listener at address that answers with its own name.
func listen(t *testing.T, address string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(l.Addr().String()))
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return netip.MustParseAddrPort(l.Addr().String())
}

// The name's second answer, at another machine, comes too late: between check and
// connection nobody asks again.
func TestRebindingBetweenCheckAndDial(t *testing.T) {
	first := listen(t, "127.0.0.1:0")
	second := listen(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), first.Port()).String())
	dns := newResolver(t, map[string][]string{"a.example.": {"127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.2"}})
	dns.mu.Lock()
	dns.rotate = true
	dns.mu.Unlock()
	guard := alone(t, &Guard{Resolver: dns.resolver(), Allow: []string{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), 1).String(), "127.0.0.1/32"}})

	to, err := guard.Resolve(t.Context(), "a.example", first.Port())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := guard.DialAddr(t.Context(), "a.example", to)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if got := conn.RemoteAddr().String(); got != first.String() || len(to) != 1 || to[0] != first {
		t.Errorf("judged %v, connected to %s", to, got)
	}
	if n := dns.asked("a.example.", dnsmessage.TypeA); n != 1 {
		t.Errorf("asked %d times", n)
	}
	// the next connection is judged by the next answer
	if _, err := guard.Dial(t.Context(), "tcp", net.JoinHostPort("a.example", portOf(second))); !denied(err, CodeSpecialAddress) {
		t.Errorf("the second answer: %v", err)
	}
	if n := dns.asked("a.example.", dnsmessage.TypeA); n != 2 {
		t.Errorf("asked %d times for two connections", n)
	}
}

func portOf(a netip.AddrPort) string { _, p, _ := net.SplitHostPort(a.String()); return p }

func denied(err error, code string) bool {
	var d *DeniedError
	return errors.As(err, &d) && d.Code == code
}

// The last check is made in the kernel's socket, on the address that it is about to
// use: what became an escape target after the first check is not connected to.
func TestControlHasTheLastWord(t *testing.T) {
	to := listen(t, "127.0.0.1:0")
	guard := &Guard{Allow: []string{"127.0.0.0/8"}}
	r, err := guard.prepared()
	if err != nil {
		t.Fatal(err)
	}
	var looks atomic.Int32
	r.around = &surroundings{period: -1, read: func() here {
		if looks.Add(1) == 1 {
			return here{}
		}
		return here{targets: []target{{entries: registry().computed[computedRoutes], address: to.Addr()}}}
	}}
	conn, err := guard.DialAddr(t.Context(), "", []netip.AddrPort{to})
	if err == nil {
		conn.Close()
	}
	if !denied(err, CodeEscapeTarget) || looks.Load() != 2 {
		t.Errorf("looked %d times: %v", looks.Load(), err)
	}
	for network, target := range map[string]string{"tcp4": "169.254.169.254:80", "tcp6": "[::1]:80"} {
		if err := alone(t, &Guard{}).control("a.example", network, target); err == nil {
			t.Errorf("%s passes", target)
		}
	}
	for _, network := range []string{"udp4", "tcp", "unix", ""} {
		if err := (&Guard{}).control("a.example", network, "93.184.216.34:80"); !denied(err, CodeNotTCP) {
			t.Errorf("%q: %v", network, err)
		}
	}
	if err := (&Guard{}).control("a.example", "tcp4", "nowhere"); err == nil {
		t.Error("no address passes")
	}
}

func TestDialAddrJudgesAllBeforeItTriesOne(t *testing.T) {
	to := listen(t, "127.0.0.1:0")
	guard := alone(t, &Guard{Allow: []string{"127.0.0.1/32"}})
	_, err := guard.DialAddr(t.Context(), "a.example", []netip.AddrPort{to, netip.MustParseAddrPort("10.0.0.5:80")})
	if !denied(err, CodeSpecialAddress) {
		t.Errorf("got %v", err)
	}
	if _, err := guard.DialAddr(t.Context(), "a.example", nil); err == nil {
		t.Error("nothing was dialled, without an error")
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
	conn, err := guard.DialAddr(t.Context(), "", []netip.AddrPort{mapped})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestDialTakesTheFamilyThatIsAskedFor(t *testing.T) {
	to := listen(t, "127.0.0.1:0")
	dns := newResolver(t, map[string][]string{"both.example.": {"127.0.0.1", "::1"}, "four.example.": {"127.0.0.1"}})
	guard := alone(t, &Guard{Resolver: dns.resolver(), Allow: []string{"127.0.0.0/8", "::1/128"}})
	conn, err := guard.Dial(t.Context(), "tcp4", net.JoinHostPort("both.example", portOf(to)))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if conn, err := guard.Dial(t.Context(), "tcp6", net.JoinHostPort("four.example", portOf(to))); err == nil {
		conn.Close()
		t.Error("an IPv4 address was dialled over tcp6")
	}
	// nobody listens at ::1: the other family is tried
	conn, err = guard.Dial(t.Context(), "tcp", net.JoinHostPort("both.example", portOf(to)))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := guard.Dial(t.Context(), "tcp", net.JoinHostPort("nobody.example", portOf(to))); err == nil || errors.As(err, new(*DeniedError)) {
		t.Errorf("a name without addresses: %v", err)
	}
	for _, network := range []string{"udp", "udp4", "unix", "ip", "", "tcp7"} {
		if _, err := guard.Dial(t.Context(), network, "127.0.0.1:9"); !denied(err, CodeNotTCP) {
			t.Errorf("%q: %v", network, err)
		}
	}
}

func TestTimeoutBoundsResolutionToo(t *testing.T) {
	silent := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	begun := time.Now()
	if _, err := (&Guard{Resolver: silent, Timeout: 50 * time.Millisecond}).Dial(t.Context(), "tcp", "a.example:80"); err == nil {
		t.Error("dialled")
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
}

// half is one end of a connection that knows whether it was closed.
type half struct {
	net.Conn
	closed atomic.Bool
}

func (h *half) Close() error { h.closed.Store(true); return nil }

func TestRace(t *testing.T) {
	a, b, c := netip.MustParseAddrPort("[fd00::1]:1"), netip.MustParseAddrPort("[fd00::2]:1"), netip.MustParseAddrPort("10.0.0.1:1")
	if got := alternate([]netip.AddrPort{a, b, c}); got[0] != a || got[1] != c || got[2] != b {
		t.Errorf("ordered %v", got)
	}

	t.Run("a silent address costs the stagger", func(t *testing.T) {
		want := &half{}
		begun := time.Now()
		conn, err := race(t.Context(), []netip.AddrPort{a, c}, func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			if to == a {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return want, nil
		})
		if err != nil || conn != want || time.Since(begun) < stagger || want.closed.Load() {
			t.Errorf("%v, %v after %s", conn, err, time.Since(begun))
		}
	})
	t.Run("a connection that comes too late is closed", func(t *testing.T) {
		late, soon := &half{}, &half{}
		conn, err := race(t.Context(), []netip.AddrPort{a, c}, func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			if to == a {
				<-ctx.Done()
				return late, nil
			}
			return soon, nil
		})
		if err != nil || conn != soon || !late.closed.Load() {
			t.Errorf("%v, %v", conn, err)
		}
	})
	t.Run("failures lead to the next at once, and the first is told", func(t *testing.T) {
		tried := 0
		begun := time.Now()
		_, err := race(t.Context(), []netip.AddrPort{a, b, c}, func(_ context.Context, to netip.AddrPort) (net.Conn, error) {
			tried++ // one at a time
			return nil, errors.New(to.String())
		})
		if tried != 3 || err == nil || err.Error() != a.String() || time.Since(begun) > stagger {
			t.Errorf("tried %d: %v", tried, err)
		}
	})
	t.Run("a refusal ends it", func(t *testing.T) {
		tried := 0
		_, err := race(t.Context(), []netip.AddrPort{a, b, c}, func(context.Context, netip.AddrPort) (net.Conn, error) {
			tried++
			return nil, &DeniedError{Code: CodeEscapeTarget}
		})
		if tried != 1 || !denied(err, CodeEscapeTarget) {
			t.Errorf("tried %d: %v", tried, err)
		}
	})
	t.Run("the caller's context ends it", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := race(ctx, []netip.AddrPort{a, b, c}, func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		cancel()
		if _, err := race(ctx, []netip.AddrPort{a, b}, nil); err == nil {
			t.Error("dialled after the end")
		}
	})
}

// One guard serves all connections of a program.
func TestManyAtOnce(t *testing.T) {
	to := listen(t, "127.0.0.1:0")
	dns := newResolver(t, map[string][]string{"a.example.": {"127.0.0.1"}})
	guard := &Guard{Resolver: dns.resolver(), Allow: []string{"a.example:" + portOf(to)}, Own: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:1")}}
	failed := make(chan error)
	for range 20 {
		go func() {
			conn, err := guard.Dial(t.Context(), "tcp", net.JoinHostPort("a.example", portOf(to)))
			if err == nil {
				conn.Close()
			}
			failed <- err
		}()
	}
	for range 20 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}
