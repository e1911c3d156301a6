package main

import (
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"
)

// bareProxy is a forward proxy of net/http that checks nothing and writes nothing down: what a few lines of Go can do.
func bareProxy(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: bench proxy ADDRESS")
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 256, MaxIdleConns: 1024, DisableCompression: true}
	server := http.Server{Addr: args[0], ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect {
			bareTunnel(w, r)
			return
		}
		r.Header.Del("Proxy-Connection")
		r.RequestURI = ""
		res, err := transport.RoundTrip(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		maps.Copy(w.Header(), res.Header)
		w.WriteHeader(res.StatusCode)
		io.Copy(w, res.Body)
	})}
	return server.ListenAndServe()
}

func bareTunnel(w http.ResponseWriter, r *http.Request) {
	there, err := net.Dial("tcp", r.RequestURI)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	var both sync.WaitGroup
	half := func(to, from net.Conn) {
		io.Copy(to, from)
		to.(*net.TCPConn).CloseWrite()
	}
	both.Go(func() { half(there, here) })
	both.Go(func() { half(here, there) })
	both.Wait()
}
