package main

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// jwtProxy is a gateway of a few lines of net/http and golang-jwt, as services write them: it verifies the token on each request, forwards,
// and records nothing.
func jwtProxy(args []string) error {
	if len(args) != 5 {
		return errors.New("usage: bench jwt-proxy ADDRESS SERVICE ALGORITHM PUBLIC-KEY ISSUER")
	}
	address, service, algorithm := args[0], &url.URL{Scheme: "http", Host: args[1]}, args[2]
	key, err := readPublicKey(args[3])
	if err != nil {
		return err
	}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{algorithm}), jwt.WithIssuer(args[4]), jwt.WithAudience("bench"), jwt.WithExpirationRequired())
	proxy := &httputil.ReverseProxy{
		Rewrite:    func(r *httputil.ProxyRequest) { r.SetURL(service) },
		Transport:  &http.Transport{MaxIdleConnsPerHost: 256, MaxIdleConns: 1024, DisableCompression: true},
		BufferPool: &buffers{},
	}
	server := http.Server{Addr: address, ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			http.Error(w, "no token", http.StatusUnauthorized)
			return
		}
		if _, err := parser.Parse(text, func(*jwt.Token) (any, error) { return key, nil }); err != nil {
			http.Error(w, "the token is refused", http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	return server.ListenAndServe()
}

func readPublicKey(path string) (crypto.PublicKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New(path + " is no PEM")
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}

// buffers is a pool, without which ReverseProxy makes one for each answer.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if a, ok := b.pool.Get().(*[32 << 10]byte); ok {
		return a[:]
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(s []byte) { b.pool.Put((*[32 << 10]byte)(s)) }
