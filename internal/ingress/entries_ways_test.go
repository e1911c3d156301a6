package ingress_test

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sallyport/sallyport/bearer"
	"github.com/sallyport/sallyport/bearergrpc"
	"github.com/sallyport/sallyport/internal/extauthz"
	"github.com/sallyport/sallyport/internal/forwardauth"
)

// proxy is the way that the others are held against.
func (h *house) proxy() way {
	address := h.serve(h.gateway.Serve)
	return way{name: "proxy", ask: func(s specimen) verdict { return told(h.exchange(address, wireForm(s))) }}
}

// forwardAuth is one dialect of the questions over HTTP.
func (h *house) forwardAuth(dialect string) way {
	server, err := forwardauth.New(forwardauth.Config{Gateway: h.gateway, Dialect: dialect, From: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	if err != nil {
		h.t.Fatal(err)
	}
	address := h.serve(server.Serve)
	w := way{name: "forward-auth, " + dialect, not: map[string]string{
		"path: nothing":                  "an empty field says nothing: 403 inquiry_malformed",
		"path: space in front":           "HTTP takes spaces off a field's value",
		"path: raw control":              "no field's value holds a control character: 400 header_value",
		"path: raw delete":               "no field's value holds a control character: 400 header_value",
		"path: raw control in the query": "no field's value holds a control character: 400 header_value",
	}}
	names := []string{"X-Forwarded-Method", "X-Forwarded-Uri", "X-Forwarded-Host", "X-Forwarded-Proto"}
	switch dialect {
	case "nginx":
		names = []string{"X-Original-Method", "X-Original-URI", "X-Original-Host", "X-Original-Proto"}
		w.status = func(v verdict) int {
			if v.code != "allowed" && v.status != 401 {
				return 403
			}
			return v.status
		}
	case "envoy":
		w.not = nil
		w.ask = func(s specimen) verdict {
			s.fields = append([]string{"X-Forwarded-Proto: http", "X-Forwarded-For: 127.0.0.1"}, s.fields...)
			return told(h.exchange(address, wireForm(s)))
		}
		return w
	}
	w.ask = func(s specimen) verdict {
		said := []string{names[0] + ": " + s.method, names[1] + ": " + s.target, names[2] + ": " + s.host, names[3] + ": http", "X-Forwarded-For: 127.0.0.1"}
		return told(h.exchange(address, wireForm(specimen{method: "GET", target: "/", host: "sallyport", fields: append(said, s.fields...)})))
	}
	return w
}

// extAuthz is Envoy's question over gRPC: the fields in a map, or as a list of raw ones.
func (h *house) extAuthz(raw bool) way {
	server, err := extauthz.New(extauthz.Config{Gateway: h.gateway})
	if err != nil {
		h.t.Fatal(err)
	}
	client := authv3.NewAuthorizationClient(h.dial(h.serve(server.Serve)))
	w := way{name: "ext_authz"}
	if raw {
		w.name = "ext_authz, raw"
	}
	w.ask = func(s specimen) verdict {
		r := &authv3.AttributeContext_HttpRequest{Method: s.method, Path: s.target, Host: s.host, Scheme: "http", Headers: map[string]string{}, HeaderMap: &corev3.HeaderMap{}}
		for _, f := range s.fields {
			name, value, _ := strings.Cut(f, ":")
			name, value = strings.ToLower(name), strings.Trim(value, " \t") // as Envoy does
			if raw {
				r.HeaderMap.Headers = append(r.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
				continue
			}
			if before, ok := r.Headers[name]; ok {
				value = before + "," + value
			}
			r.Headers[name] = value
		}
		ctx, cancel := context.WithTimeout(h.t.Context(), 30*time.Second)
		defer cancel()
		a, err := client.Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Source:  &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "127.0.0.1"}}}},
			Request: &authv3.AttributeContext_Request{Http: r},
		}})
		if err != nil {
			h.t.Fatalf("%s: %v", s.name, err)
		}
		if a.GetOkResponse() != nil && a.GetStatus().GetCode() == 0 {
			return verdict{"allowed", 200}
		}
		return verdict{a.GetStatus().GetMessage(), int(a.GetDeniedResponse().GetStatus().GetCode())}
	}
	if !raw {
		w.not = map[string]string{
			"condition's header twice":   "the map has one value for each name: Envoy joins them, and the condition sees both as one",
			"empty Authorization beside": "the map has one value for each name: Envoy joins them",
		}
	}
	return w
}

func (h *house) dial(address string) *grpc.ClientConn {
	h.t.Helper()
	c, err := grpc.NewClient("passthrough:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

// require is the middleware behind net/http's own server.
func (h *house) require() way {
	handler := bearer.Require(h.verifier)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	address := h.serve(func(ctx context.Context, l net.Listener) error {
		server := &http.Server{Handler: handler}
		context.AfterFunc(ctx, func() { server.Close() })
		if err := server.Serve(l); err != http.ErrServerClosed {
			return err
		}
		return nil
	})
	return way{name: "bearer.Require", tokens: true, ask: func(s specimen) verdict { return told(h.exchange(address, wireForm(s))) }, not: map[string]string{
		"token: line end after the token":    "net/http takes a bare LF for the end of a line",
		"token: line end inside the payload": "net/http takes a bare LF for the end of a line",
		"token: NUL after the token":         "net/http answers by itself",
	}}
}

// interceptor is the one before the methods of a gRPC server.
func (h *house) interceptor() way {
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(bearergrpc.Unary(bearergrpc.Token(h.verifier), bearergrpc.Methods{"/grpc.health.v1.Health/Check": {}})))
	healthgrpc.RegisterHealthServer(server, healthy{})
	address := h.serve(func(ctx context.Context, l net.Listener) error {
		context.AfterFunc(ctx, server.Stop)
		return server.Serve(l)
	})
	client := healthgrpc.NewHealthClient(h.dial(address))
	return way{name: "bearergrpc", tokens: true, ask: func(s specimen) verdict {
		md := metadata.MD{}
		for _, f := range s.fields {
			name, value, _ := strings.Cut(f, ":")
			md.Append(strings.ToLower(name), strings.Trim(value, " \t"))
		}
		ctx, cancel := context.WithTimeout(h.t.Context(), 30*time.Second)
		defer cancel()
		_, err := client.Check(metadata.NewOutgoingContext(ctx, md), &healthgrpc.HealthCheckRequest{})
		if err == nil {
			return verdict{"allowed", 200}
		}
		return verdict{status.Convert(err).Message(), int(status.Code(err))}
	}, not: map[string]string{
		"token: line end after the token":    "gRPC's metadata holds printable ASCII alone",
		"token: line end inside the payload": "gRPC's metadata holds printable ASCII alone",
		"token: NUL after the token":         "gRPC's metadata holds printable ASCII alone",
		"C04 NBSP":                           "gRPC's metadata holds printable ASCII alone",
		"C04 tab":                            "gRPC's metadata holds printable ASCII alone",
	}, status: func(v verdict) int {
		switch v.status {
		case 200:
			return 200
		case 403:
			return int(codes.PermissionDenied)
		case 503:
			return int(codes.Unavailable)
		}
		return int(codes.Unauthenticated)
	}}
}

type healthy struct {
	healthgrpc.UnimplementedHealthServer
}

func (healthy) Check(context.Context, *healthgrpc.HealthCheckRequest) (*healthgrpc.HealthCheckResponse, error) {
	return &healthgrpc.HealthCheckResponse{}, nil
}
