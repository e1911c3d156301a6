package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/textproto"
	"os"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/trace"
	"github.com/sallyport/sallyport/safedial"
)

// openTracer begins to send traces, where the file names a collector. That need not be there.
func (g *gate) openTracer(f *config.File, log *slog.Logger) error {
	c := f.Telemetry
	if c == nil {
		return nil
	}
	client := clientFor(c.Endpoint)
	if c.CAFile != "" {
		roots, err := readRoots(c.CAFile)
		if err != nil {
			return fmt.Errorf("telemetry.otlp.ca_file: %w", err)
		}
		client.Transport.(*safedial.Transport).Base = &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}}
	}
	var headers func() (http.Header, error)
	if c.HeadersFile != "" {
		if _, err := readHeaderFile(c.HeadersFile); err != nil {
			return withHint(fmt.Errorf("telemetry.otlp.headers_file: %w", err), "a header on a line, `name: value`; readable by the user that sallyport becomes (sandbox.user)")
		}
		headers = func() (http.Header, error) { return readHeaderFile(c.HeadersFile) }
	}
	var err error
	g.tracer, err = trace.New(trace.Config{
		Endpoint: c.Endpoint, Client: client, Headers: headers, Sample: c.Sample, Trust: c.Trust, Version: readVersion().Version,
		Metrics: g.registry, Failed: func(err error) { log.Error("traces are lost", "error", err) },
	})
	return err
}

// readRoots are the system's authorities and those of a file.
func readRoots(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool() // a container may have none
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", path)
	}
	return roots, nil
}

// readHeaderFile reads a header on each line. What is wrong with it is said without repeating it.
func readHeaderFile(path string) (http.Header, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	lines := bytes.TrimSpace(data)
	h, err := textproto.NewReader(bufio.NewReader(io.MultiReader(bytes.NewReader(lines), bytes.NewReader([]byte("\n\n"))))).ReadMIMEHeader()
	if err != nil {
		return nil, errors.New("it is not one `name: value` on each line: " + path)
	}
	return http.Header(h), nil
}
