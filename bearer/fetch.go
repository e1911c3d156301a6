package bearer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/internal/jws"
	"github.com/sallyport/sallyport/safedial"
)

const (
	maxDocument  = 1 << 20 // bytes of a metadata document or key set
	fetchTimeout = 5 * time.Second
)

// document is a key set as it was fetched.
type document struct {
	data   []byte
	maxAge time.Duration // as Cache-Control says; negative when it does not
}

// fetchFrom returns the function that fetches an issuer's key set.
func fetchFrom(issuer string, keys Keys, guard *safedial.Guard) func(context.Context) (document, error) {
	client := guard.Client()
	switch {
	case keys.CAFile != "" || keys.TokenFile != "":
		return fetchPrivately(keys, guard)
	case keys.File != "":
		return func(context.Context) (document, error) { return readFile(keys.File) }
	case keys.URI != "":
		return func(ctx context.Context) (document, error) { return get(ctx, client, keys.URI) }
	default:
		return func(ctx context.Context) (document, error) {
			uri, err := discover(ctx, client, issuer)
			if err != nil {
				return document{}, err
			}
			return get(ctx, client, uri)
		}
	}
}

func readFile(path string) (document, error) {
	// not to wait for the other end of a named pipe
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return document{}, fmt.Errorf("read key set: %w", err)
	}
	defer f.Close()
	// before reading, because a device may never end
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return document{}, fmt.Errorf("read key set %s: not a regular file", path)
	}
	data, err := readAll(f)
	if err != nil {
		return document{}, fmt.Errorf("read key set %s: %w", path, err)
	}
	return document{data, -1}, nil
}

// discover returns the jwks_uri in the issuer's metadata: RFC 8414, then OpenID
// Connect Discovery 1.0. The metadata must name the issuer byte for byte (RFC 8414,
// section 3.3), otherwise one tenant of a host could answer for another.
func discover(ctx context.Context, client *http.Client, issuer string) (string, error) {
	var failed []error
	for _, address := range metadataURLs(issuer) {
		uri, err := readMetadata(ctx, client, issuer, address)
		if err == nil {
			return uri, nil
		}
		failed = append(failed, err)
	}
	return "", errors.Join(failed...)
}

// metadataURLs returns where an issuer's metadata may be. The issuer has been checked by issuerURL.
func metadataURLs(issuer string) []string {
	u, err := issuerURL(issuer)
	if err != nil {
		return nil
	}
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	root := u.Scheme + "://" + u.Host
	return []string{
		root + "/.well-known/oauth-authorization-server" + path, // RFC 8414, section 3.1: inserted
		root + path + "/.well-known/openid-configuration",       // OpenID Connect Discovery, section 4: appended
	}
}

// issuerURL reads an issuer whose metadata is to be fetched (RFC 8414, section 2).
func issuerURL(issuer string) (*url.URL, error) {
	u, err := fetchable(issuer)
	if err == nil && (u.RawQuery != "" || u.ForceQuery) {
		return nil, fmt.Errorf("%s has a query", brief(issuer))
	}
	return u, err
}

// fetchable reads an absolute http or https URL without user information and fragment.
func fetchable(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Hostname() == "" || u.Opaque != "" {
		return nil, fmt.Errorf("%s is not an http or https URL", brief(address))
	}
	if u.User != nil || strings.Contains(address, "#") {
		return nil, fmt.Errorf("%s has user information or a fragment", brief(address))
	}
	return u, nil
}

func readMetadata(ctx context.Context, client *http.Client, issuer, address string) (string, error) {
	fetched, err := get(ctx, client, address)
	if err != nil {
		return "", err
	}
	metadata, err := jws.Object(fetched.data)
	if err != nil {
		return "", fmt.Errorf("read metadata %s: %w", address, err)
	}
	if named, _ := metadata["issuer"].(string); named != issuer {
		return "", fmt.Errorf("read metadata %s: it is of issuer %s", address, brief(named))
	}
	uri, _ := metadata["jwks_uri"].(string)
	if err := checkKeysURI(issuer, uri); err != nil {
		return "", fmt.Errorf("read metadata %s: jwks_uri: %w", address, err)
	}
	return uri, nil
}

// checkKeysURI refuses a jwks_uri that anybody on the way could answer, unless the
// operator named the issuer itself so: same scheme, host and port.
func checkKeysURI(issuer, uri string) error {
	keys, err := fetchable(uri)
	if err != nil {
		return err
	}
	if keys.Scheme == "https" {
		return nil
	}
	if own, err := issuerURL(issuer); err != nil || own.Scheme != "http" || hostPort(own) != hostPort(keys) {
		return fmt.Errorf("%s is neither https nor on the issuer's own host", brief(uri))
	}
	return nil
}

// hostPort is the destination of a URL, as net.Dial takes it.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	host := u.Hostname()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port
}

// get fetches a JSON document. Only a plain 200 is an answer: a redirect, a part
// and an encoding are refused, so that the limit counts what is read.
func get(ctx context.Context, client *http.Client, address string) (document, error) {
	return getAs(ctx, client, address, "")
}

// getAs is get by whoever a token says; nobody if it is empty.
func getAs(ctx context.Context, client *http.Client, address, token string) (document, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return document{}, fmt.Errorf("fetch: %w", err)
	}
	request.Header.Set("Accept", "application/json, application/jwk-set+json")
	request.Header.Set("Accept-Encoding", "identity")
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	request.Close = true // one fetch in minutes is no reason to keep a connection
	response, err := client.Do(request)
	if err != nil {
		return document{}, fmt.Errorf("fetch: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return document{}, fmt.Errorf("fetch %s: status %d", address, response.StatusCode)
	}
	if encoding := response.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return document{}, fmt.Errorf("fetch %s: encoded as %s", address, brief(encoding))
	}
	data, err := readAll(response.Body)
	if err != nil {
		return document{}, fmt.Errorf("fetch %s: %w", address, err)
	}
	return document{data, maxAge(response.Header.Values("Cache-Control"))}, nil
}

// readAll reads at most maxDocument bytes, and fails if there are more.
func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err == nil && len(data) > maxDocument {
		err = errors.New("longer than 1 MiB")
	}
	return data, err
}

// maxAge reads max-age, no-cache and no-store (RFC 9111, section 5.2.2); negative
// when none of them is there. The shortest wins.
func maxAge(headers []string) time.Duration {
	age := time.Duration(-1)
	for directive := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		var said time.Duration
		switch strings.ToLower(name) {
		case "no-cache", "no-store":
		case "max-age":
			seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
			if err != nil {
				continue
			}
			said = time.Duration(seconds) * time.Second
		default:
			continue
		}
		if age < 0 || said < age {
			age = said
		}
	}
	return age
}
