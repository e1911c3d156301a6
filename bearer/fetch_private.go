package bearer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/oauth"
	"github.com/sallyport/sallyport/safedial"
)

// fetchPrivately returns the function that fetches a key set from a server with roots of its own, or one that wants to know who
// asks: a cluster's API server is both. The files are read at each fetch, since a cluster replaces them while we run.
func fetchPrivately(keys Keys, guard *safedial.Guard) func(context.Context) (document, error) {
	return func(ctx context.Context) (document, error) {
		base := &http.Transport{
			TLSHandshakeTimeout: fetchTimeout, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
			IdleConnTimeout: time.Second, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		}
		if keys.CAFile != "" {
			pem, err := readFile(keys.CAFile)
			if err != nil {
				return document{}, fmt.Errorf("roots of the key server: %w", err)
			}
			base.TLSClientConfig.RootCAs = x509.NewCertPool()
			if !base.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem.data) {
				return document{}, fmt.Errorf("roots of the key server: no certificate in %s", keys.CAFile)
			}
		}
		token := ""
		if keys.TokenFile != "" {
			read, err := readFile(keys.TokenFile)
			if err != nil {
				return document{}, fmt.Errorf("token for the key server: %w", err)
			}
			if token = strings.TrimRight(string(read.data), "\r\n"); !oauth.IsToken(token) {
				return document{}, fmt.Errorf("token for the key server: %s holds none", keys.TokenFile)
			}
		}
		client := guard.Client()
		client.Transport = &safedial.Transport{Guard: guard, Base: base}
		return getAs(ctx, client, keys.URI, token)
	}
}

// checkPrivate refuses roots and a token where nobody would prove anything by the ones, or could read the other on the way.
func checkPrivate(k Keys) error {
	if k.CAFile == "" && k.TokenFile == "" {
		return nil
	}
	if !strings.HasPrefix(k.URI, "https://") {
		return errors.New("roots or a token for the key server: only with an https URI of the key set")
	}
	return nil
}
