package extauthz

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/sallyport/sallyport/internal/ingress"
)

// read makes of a question what is asked about. What it cannot read is a fault, and nothing else that it says is believed.
func read(asked *authv3.CheckRequest) ingress.Inquiry {
	q, err := inquiryOf(asked)
	if err != nil {
		return ingress.Inquiry{Entry: ingress.EntryExtAuthz, Fault: &ingress.Fault{Code: ingress.InquiryMalformed, Reason: err.Error()}}
	}
	return q
}

func inquiryOf(asked *authv3.CheckRequest) (q ingress.Inquiry, err error) {
	source, r := asked.GetAttributes().GetSource(), asked.GetAttributes().GetRequest().GetHttp()
	if r == nil {
		return q, errors.New("there is no HTTP request in it")
	}
	q = ingress.Inquiry{Entry: ingress.EntryExtAuthz, Method: r.GetMethod(), Target: r.GetPath(), Host: r.GetHost()}
	if r.GetQuery() != "" || r.GetFragment() != "" {
		return q, errors.New("a query or a fragment stands beside the path, where it is part of it")
	}
	switch r.GetScheme() {
	case "https":
		q.TLS = true
	case "http":
	default:
		return q, errors.New("the scheme is neither http nor https")
	}
	fields, err := fieldsOf(r)
	if err != nil {
		return q, err
	}
	for name, said := range map[string]string{":method": q.Method, ":path": q.Target, ":authority": q.Host, ":scheme": r.GetScheme()} {
		if values, ok := fields[name]; ok && (len(values) != 1 || values[0] != said) {
			return q, fmt.Errorf("%s says something else than the request", name)
		}
		delete(fields, name)
	}
	if q.Header, err = fold(fields, q.Host); err != nil {
		return q, err
	}
	if q.Source, err = addressOf(source); err != nil {
		return q, err
	}
	q.Certificate, err = certificateOf(source.GetCertificate())
	return q, err
}

// fieldsOf lists the fields by the names that Envoy gives them: from one of the two places where it may write them.
func fieldsOf(r *authv3.AttributeContext_HttpRequest) (map[string][]string, error) {
	fields := map[string][]string{}
	for name, value := range r.GetHeaders() {
		fields[name] = []string{value}
	}
	if len(fields) > 0 && len(r.GetHeaderMap().GetHeaders()) > 0 {
		return nil, errors.New("headers and header_map are both there")
	}
	for _, f := range r.GetHeaderMap().GetHeaders() {
		value := f.GetValue()
		if raw := f.GetRawValue(); len(raw) > 0 {
			if value != "" {
				return nil, errors.New("a field has a value and a raw value")
			}
			value = string(raw)
		}
		fields[f.GetKey()] = append(fields[f.GetKey()], value)
	}
	return fields, nil
}

// fold gives each field its canonical name. Two that become one are not a pair of lines, which Envoy would have joined or
// listed under one name: somebody behind us might take either.
func fold(fields map[string][]string, host string) (http.Header, error) {
	h := make(http.Header, len(fields))
	for name, values := range fields {
		folded := textproto.CanonicalMIMEHeaderKey(name)
		if strings.HasPrefix(name, ":") {
			return nil, errors.New("there is a pseudo-header that no request has")
		}
		if _, twice := h[folded]; twice {
			return nil, errors.New("two names of fields differ in letter case alone")
		}
		h[folded] = values
	}
	if said, ok := h["Host"]; ok {
		if len(said) != 1 || said[0] != host {
			return nil, errors.New("host says something else than the request")
		}
		delete(h, "Host")
	}
	return h, nil
}

// addressOf is Envoy's peer: an address, or none at the other end of a unix socket. It must say which.
func addressOf(source *authv3.AttributeContext_Peer) (netip.Addr, error) {
	switch a := source.GetAddress().GetAddress().(type) {
	case *corev3.Address_SocketAddress:
		addr, err := netip.ParseAddr(a.SocketAddress.GetAddress())
		if err != nil {
			return netip.Addr{}, errors.New("the source's address is none")
		}
		return addr.Unmap().WithZone(""), nil
	case *corev3.Address_Pipe:
		return netip.Addr{}, nil
	}
	return netip.Addr{}, errors.New("there is no source")
}

// certificateOf reads what the client has shown to Envoy: PEM, percent-encoded; nil where it has shown none.
func certificateOf(encoded string) (*x509.Certificate, error) {
	if encoded == "" {
		return nil, nil
	}
	text, err := url.PathUnescape(encoded)
	if err != nil {
		return nil, errors.New("the source's certificate is not percent-encoded")
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("the source's certificate is not one certificate in PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, errors.New("the source's certificate cannot be read")
	}
	return c, nil
}
