package main

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sallytest"
	"github.com/sallyport/sallyport/internal/trace"
)

// TestTelemetryOfBothGates has a service that sends for a request, and looks at what a collector behind TLS was sent: the spans
// of both gates hang together, and no secret is in them.
func TestTelemetryOfBothGates(t *testing.T) {
	collector := sallytest.NewCollector(t)
	secure := httptest.NewTLSServer(collector)
	defer secure.Close()
	issuer := sallytest.NewIssuer(t)
	var sent, received http.Header
	partner := httpServer(t, func(w http.ResponseWriter, r *http.Request) { sent = r.Header.Clone(); io.WriteString(w, "partner") })
	var proxy *url.URL
	const own = "b7ad6b7169203331" // the service's span
	service := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		received = r.Header.Clone()
		out, _ := http.NewRequestWithContext(r.Context(), "GET", partner+"/invoices/88888?secret=query", nil)
		out.Header.Set("X-Sallyport-Capability", r.Header.Get("X-Sallyport-Capability"))
		id, _, _, _ := trace.Parse(r.Header.Get("Traceparent"))
		out.Header.Set("Traceparent", "00-"+id+"-"+own+"-01")
		client := &http.Client{Transport: &http.Transport{Proxy: func(*http.Request) (*url.URL, error) { return proxy, nil }, DisableKeepAlives: true}}
		res, err := client.Do(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		w.WriteHeader(res.StatusCode)
		io.Copy(w, res.Body)
	})
	dir := t.TempDir()
	put(t, filepath.Join(dir, "headers"), "X-Collector-Key: collector-secret\r\nX-Tenant: t\n")
	put(t, filepath.Join(dir, "ca.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
	r := serveGate(t, issuer, fmt.Sprintf(`version: 1
ingress:
  listen: 127.0.0.1:0
  upstream: %s
  issuers: [{issuer: https://auth.example.com, audience: [orders], keys: {jwks_file: jwks.json}, token_types: [JWT, at+jwt]}]
  routes:
    - {name: read, match: "GET /orders/{id}", scopes: [a]}
  assertion: {audience: orders}
egress:
  listen: 127.0.0.1:0
  destinations:
    - {name: partner, hosts: [%q], protocol: http, for: {routes: [read]}, credential: {forward: {audience: orders, scopes: [a]}}}
telemetry:
  otlp: {endpoint: %q, headers_file: %s/headers, ca_file: %[4]s/ca.pem}
  sample: 1
audit: {file: audit.jsonl}
`, service, strings.TrimPrefix(partner, "http://"), secure.URL, dir))
	proxy = &url.URL{Scheme: "http", Host: r.doors.egress.Addr().String()}
	token := issuer.Token(map[string]any{"iss": "https://auth.example.com", "aud": "orders", "scope": "a", "sub": "alice-the-subject", "jti": "the-token-id"})
	request, _ := http.NewRequest("GET", r.at+"/orders/77777?secret=query", nil)
	request.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Fatalf("answered %d", res.StatusCode)
	}
	spans := collector.Await(t, 4)
	id, _, _, _ := trace.Parse(received.Get("Traceparent"))
	out := sallytest.Named(t, spans, id, "egress partner")
	if hex.EncodeToString(out.ParentSpanId) != own || sallytest.Attribute(out, "sallyport.code") != "allowed" || sallytest.Attribute(out, "sallyport.level") != "capability" {
		t.Errorf("%v", out)
	}
	elsewhere, span, _, ok := trace.Parse(sent.Get("Traceparent"))
	if !ok || elsewhere == id || len(out.Links) != 1 || hex.EncodeToString(out.Links[0].TraceId) != elsewhere || hex.EncodeToString(out.Links[0].SpanId) != span {
		t.Errorf("the partner received %q, the span links to %v", sent.Get("Traceparent"), out.Links)
	}
	if h := collector.Header(); h.Get("X-Collector-Key") != "collector-secret" || h.Get("X-Tenant") != "t" {
		t.Errorf("the collector received %v", h)
	}
	assertion := received.Get("Txn-Token")
	for what, secret := range map[string]string{
		"the token": token, "its signature": token[strings.LastIndexByte(token, '.')+1:], "the assertion": assertion, "its signature ": assertion[strings.LastIndexByte(assertion, '.')+1:],
		"the subject": "alice-the-subject", "the token's id": "the-token-id", "a query": "secret=", "a path": "77777", "another's path": "88888", "the capability": received.Get("X-Sallyport-Capability"),
		"the collector's key": "collector-secret",
	} {
		if secret == "" || bytes.Contains(collector.Raw(), []byte(secret)) || strings.Contains(r.said.String(), secret) {
			t.Errorf("%s (%q) is in a span or in the log", what, secret)
		}
	}
}

// TestTelemetryOfNobody holds that a collector that is away keeps nothing from starting, and that files that are wrong do, without
// being repeated.
func TestTelemetryOfNobody(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "wrong"), "Bearer secret-without-name\n")
	put(t, filepath.Join(dir, "right"), "a: b\n")
	for name, c := range map[string]struct {
		config.Telemetry
		want string // in the error; empty: none
	}{
		"away":              {config.Telemetry{Endpoint: "http://127.0.0.1:1", HeadersFile: filepath.Join(dir, "right")}, ""},
		"wrong headers":     {config.Telemetry{Endpoint: "http://127.0.0.1:1", HeadersFile: filepath.Join(dir, "wrong")}, "headers_file: it is not one `name: value`"},
		"no headers":        {config.Telemetry{Endpoint: "http://127.0.0.1:1", HeadersFile: filepath.Join(dir, "none")}, "headers_file: open"},
		"no authority":      {config.Telemetry{Endpoint: "http://127.0.0.1:1", CAFile: filepath.Join(dir, "wrong")}, "ca_file: no certificate"},
		"no such authority": {config.Telemetry{Endpoint: "http://127.0.0.1:1", CAFile: filepath.Join(dir, "none")}, "ca_file: open"},
	} {
		g := &gate{registry: prometheus.NewRegistry()}
		err := g.openTracer(&config.File{Telemetry: &c.Telemetry}, slog.New(slog.DiscardHandler))
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v", name, err)
		}
		g.tracer.Close()
	}
}
