package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/event"
)

// admin is the listener for operators: a unix socket that only our user may open, or loopback. It never shares a
// listener with the service's traffic.
//
//	GET  /livez                  one constant byte: the process answers
//	GET  /readyz                 200, or 503 and why: keys, audit log, state, draining
//	GET  /metrics                Prometheus
//	GET  /.well-known/jwks.json  the keys that verify our assertions and the audit log
//	POST /reload                 read the configuration again (unix socket only)
//	GET  /revocations            what is revoked now, newest first
//	POST /revocations            revoke (unix socket only)
//	POST /keys/rotate            make the next signing key, and withdraw one (unix socket only)
//	GET  /alarms                 what the watch has raised, newest first
//	POST /events                 a security event token of an issuer (RFC 8935)
type admin struct {
	gate     *gate
	listener net.Listener
	server   *http.Server
	draining atomic.Bool
	busy     chan struct{} // security events that are being taken
	revoked  *prometheus.CounterVec
	event    *prometheus.CounterVec

	mu         sync.Mutex
	received   *event.Receiver
	receivedBy *config.File // that received was made from
}

type peerKey struct{}

func newAdmin(g *gate, l net.Listener) *admin {
	counter := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"result"})
		g.registry.MustRegister(c)
		return c
	}
	a := &admin{gate: g, listener: l, busy: make(chan struct{}, maxEvents),
		revoked: counter("sallyport_admin_revocations_total", "Revocations asked of the admin listener, by result."),
		event:   counter("sallyport_security_events_total", "Security event tokens pushed to the admin listener, by result."),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte{'.'}) })
	mux.HandleFunc("GET /readyz", a.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /.well-known/jwks.json", a.jwks)
	mux.HandleFunc("POST /reload", a.reload)
	mux.HandleFunc("GET /revocations", a.listRevocations)
	mux.HandleFunc("POST /revocations", a.revoke)
	mux.HandleFunc("POST /keys/rotate", a.rotate)
	mux.HandleFunc("POST /events", a.events)
	mux.HandleFunc("GET /alarms", a.alarms)
	a.server = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c)
		},
	}
	return a
}

// serve runs until ctx ends. Without a listener it only waits.
func (a *admin) serve(ctx context.Context) error {
	if a == nil {
		<-ctx.Done()
		return nil
	}
	stop := context.AfterFunc(ctx, func() {
		sctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = a.server.Shutdown(sctx)
	})
	defer stop()
	if err := a.server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the admin listener: %w", err)
	}
	return nil
}

// drain makes readiness say that no more requests are wanted.
func (a *admin) drain() {
	if a != nil {
		a.draining.Store(true)
	}
}

func (a *admin) ready(w http.ResponseWriter, _ *http.Request) {
	err := a.gate.ready()
	if a.draining.Load() {
		err = errors.Join(errors.New("draining"), err)
	}
	if err != nil {
		problem(w, http.StatusServiceUnavailable, "not_ready", err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte("{\"ready\":true}\n"))
}

func (a *admin) jwks(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "max-age=30")
	_, _ = w.Write(a.gate.ring.JWKS())
}

func (a *admin) reload(w http.ResponseWriter, r *http.Request) {
	if err := mayChange(r); err != nil {
		a.gate.reloads.total.WithLabelValues(byAdmin, "refused").Inc()
		problem(w, http.StatusForbidden, "forbidden", err.Error())
		return
	}
	err := a.gate.reload(r.Context(), byAdmin)
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	p := problemOf(http.StatusUnprocessableEntity, "reload_failed", err.Error())
	if errs, ok := errors.AsType[config.Errors](err); ok {
		p["errors"] = errs // each with file, line and column
	}
	writeProblem(w, http.StatusUnprocessableEntity, p)
}

// mayChange lets a peer change something if the kernel vouches for it: it must have come by the unix socket, which
// only our user can open, and not be the service or a child of it, which has the same user.
func mayChange(r *http.Request) error {
	conn, ok := r.Context().Value(peerKey{}).(*net.UnixConn)
	if !ok {
		return errors.New("changes are taken on the unix socket only (admin.listen: unix:PATH)")
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("ask who the peer is: %w", err)
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return fmt.Errorf("ask who the peer is: %w", err)
	}
	if cerr != nil {
		return fmt.Errorf("ask who the peer is: %w", cerr)
	}
	ours, err := descends(int(cred.Pid), os.Getpid())
	if err != nil {
		return fmt.Errorf("ask who the peer is: %w", err)
	}
	if ours {
		return errors.New("the service may not change the gate in front of it")
	}
	// Last, because what was read of a number is true only of a process that still has it: the service could connect,
	// end, and let somebody else be given its number.
	if err := peerLives(raw); err != nil {
		return fmt.Errorf("ask who the peer is: %w", err)
	}
	return nil
}

// peerLives errs unless the process that connected has not ended (SO_PEERPIDFD, Linux 6.5).
func peerLives(raw syscall.RawConn) error {
	var pidfd int
	var perr error
	if err := raw.Control(func(fd uintptr) { pidfd, perr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD) }); err != nil {
		return err
	}
	if errors.Is(perr, unix.ENOPROTOOPT) {
		return errors.New("this kernel cannot say whether it still lives (Linux 6.5 can): send SIGHUP instead")
	}
	if perr != nil {
		return perr
	}
	defer unix.Close(pidfd)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0); err != nil || n != 0 {
		return errors.Join(errors.New("it has ended"), err)
	}
	return nil
}

// descends reports whether pid is ancestor's child, at any depth. The supervisor adopts orphans, so the chain of a
// double-forked process leads to it too.
func descends(pid, ancestor int) (bool, error) {
	const deepest = 1024
	for range deepest {
		if pid == ancestor {
			return true, nil
		}
		if pid <= 1 {
			return false, nil
		}
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			return false, err
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 2 {
			return false, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
		}
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			return false, err
		}
	}
	return false, fmt.Errorf("process %d has more than %d ancestors", pid, deepest)
}

// problem answers with an RFC 9457 body.
func problem(w http.ResponseWriter, status int, code, detail string) {
	writeProblem(w, status, problemOf(status, code, detail))
}

func problemOf(status int, code, detail string) map[string]any {
	return map[string]any{"type": "about:blank", "title": http.StatusText(status), "status": status, "code": code, "detail": detail}
}

func writeProblem(w http.ResponseWriter, status int, p map[string]any) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(p)
}
