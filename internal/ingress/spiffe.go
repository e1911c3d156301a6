package ingress

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// SPIFFE is what a client's certificate must be besides what an authority vouches for: an X.509-SVID of one trust domain
// (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md).
type SPIFFE struct {
	TrustDomain string   // example.org; required
	IDs         []string // byte for byte; empty: every ID of the domain
}

func (s *SPIFFE) check() error {
	if err := checkTrustDomain(s.TrustDomain); err != nil {
		return err
	}
	for _, id := range s.IDs {
		if err := CheckSPIFFEID(id); err != nil {
			return fmt.Errorf("%q: %w", id, err)
		}
		if !s.within(id) {
			return fmt.Errorf("%q is not of the trust domain", id)
		}
	}
	return nil
}

func (s *SPIFFE) within(id string) bool { return strings.HasPrefix(id, "spiffe://"+s.TrustDomain+"/") }

// require returns a TLS configuration that asks for an SVID, on top of what the given one asks for.
func (s *SPIFFE) require(c *tls.Config) (*tls.Config, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("spiffe: %w", err)
	}
	if c == nil || c.ClientAuth != tls.RequireAndVerifyClientCert && (c.ClientAuth != tls.RequireAnyClientCert || c.VerifyConnection == nil) {
		return nil, errors.New("spiffe: the listener requires no client certificate that an authority vouches for")
	}
	c = c.Clone()
	c.SessionTicketsDisabled = true
	vouched := c.VerifyConnection
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if vouched != nil {
			if err := vouched(state); err != nil {
				return err
			}
		}
		if len(state.PeerCertificates) == 0 {
			return errors.New("no client certificate")
		}
		return s.verify(state.PeerCertificates[0])
	}
	return c, nil
}

// verify judges the leaf by sections 2 to 4 of X509-SVID. That its chain is good has been established.
func (s *SPIFFE) verify(c *x509.Certificate) error {
	if len(c.URIs) != 1 {
		return fmt.Errorf("an X.509-SVID has one URI, not %d", len(c.URIs))
	}
	id := c.URIs[0].String()
	switch err := CheckSPIFFEID(id); {
	case err != nil:
		return fmt.Errorf("the certificate's URI is no SPIFFE ID of a workload: %w", err)
	case c.IsCA:
		return errors.New("the certificate is that of an authority")
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("the certificate's key usage is not digitalSignature")
	case c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("the certificate's key may sign certificates")
	case !s.within(id):
		return errors.New("the SPIFFE ID is of another trust domain")
	case len(s.IDs) > 0 && !slices.Contains(s.IDs, id):
		return errors.New("the SPIFFE ID is not one of those that may connect")
	}
	return nil
}

// CheckSPIFFEID refuses what is no SPIFFE ID of a workload, by section 2 of SPIFFE-ID: it has a path, and nothing that could be
// spelled in two ways.
func CheckSPIFFEID(id string) error {
	if len(id) > 2048 {
		return errors.New("longer than 2048 bytes")
	}
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok {
		return errors.New("does not begin with spiffe://")
	}
	domain, path, ok := strings.Cut(rest, "/")
	if !ok {
		return errors.New("has no path")
	}
	if err := checkTrustDomain(domain); err != nil {
		return err
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, func(r rune) bool { return !isSPIFFE(r) && (r < 'A' || r > 'Z') }) {
			return errors.New("the path's segments are made of letters, digits, `.`, `_` and `-`, and none is empty, `.` or `..`")
		}
	}
	return nil
}

func checkTrustDomain(domain string) error {
	if domain == "" || len(domain) > 255 || strings.ContainsFunc(domain, func(r rune) bool { return !isSPIFFE(r) }) {
		return errors.New("a trust domain is made of a-z, 0-9, `.`, `_` and `-`, at most 255 of them")
	}
	return nil
}

func isSPIFFE(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
}
