package oauth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxSecret = 8 << 10

	// assertionLife is how long an assertion of a client is good: it is made for one request.
	assertionLife = time.Minute
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" // RFC 7523, section 2.2
)

// Secret reads a file with one secret: one line of printable ASCII, of at most 8 KiB.
func Secret(data []byte) (string, error) {
	secret := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	switch {
	case len(data) > maxSecret:
		return "", errors.New("longer than 8 KiB")
	case secret == "":
		return "", errors.New("it is empty")
	case strings.ContainsFunc(secret, func(r rune) bool { return r < 0x20 || r > 0x7e }) || strings.TrimSpace(secret) != secret:
		return "", errors.New("it is not one line of printable ASCII without spaces around it")
	}
	return secret, nil
}

// Key signs what a client says of itself (private_key_jwt).
type Key struct {
	private   crypto.Signer
	algorithm jose.SignatureAlgorithm
	id        string // kid; empty: none
}

// ReadKey reads a private key: PEM (PKCS #8, SEC 1 or PKCS #1), or a JWK (RFC 7517) whose kid then names it. An elliptic curve is
// P-256 or P-384 (ES256, ES384) or Ed25519 (EdDSA); RSA has at least 2048 bits and signs RS256, unless the JWK's alg is PS256.
func ReadKey(data []byte) (Key, error) {
	if block, _ := pem.Decode(data); block != nil {
		private, err := parsePrivate(block.Bytes)
		if err != nil {
			return Key{}, err
		}
		return newKey(private, "", "")
	}
	var k jose.JSONWebKey
	if err := json.Unmarshal(data, &k); err != nil || !k.Valid() || k.IsPublic() {
		return Key{}, errors.New("neither a PEM nor a JWK of a private key")
	}
	return newKey(k.Key, k.Algorithm, k.KeyID)
}

func parsePrivate(der []byte) (any, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS1PrivateKey(der)
	if err != nil {
		return nil, errors.New("the PEM holds no private key") // what is wrong with it might be quoted
	}
	return key, nil
}

// newKey finds the algorithm of a key.
func newKey(private any, algorithm, id string) (Key, error) {
	k := Key{id: id}
	switch key := private.(type) {
	case *ecdsa.PrivateKey:
		k.private, k.algorithm = key, map[string]jose.SignatureAlgorithm{"P-256": jose.ES256, "P-384": jose.ES384}[key.Curve.Params().Name]
	case ed25519.PrivateKey:
		k.private, k.algorithm = key, jose.EdDSA
	case *rsa.PrivateKey:
		if key.N.BitLen() < 2048 {
			return Key{}, errors.New("an RSA key of fewer than 2048 bits")
		}
		k.private, k.algorithm = key, jose.RS256
		if algorithm == string(jose.PS256) {
			k.algorithm = jose.PS256
		}
	}
	if k.algorithm == "" || algorithm != "" && algorithm != string(k.algorithm) {
		return Key{}, errors.New("a key of no algorithm among ES256, ES384, EdDSA, RS256 and PS256, or of another than its own alg")
	}
	return k, nil
}

// assert is what a client says of itself to one server, once (RFC 7523, section 3; typ and the one audience as
// draft-ietf-oauth-rfc7523bis has them).
func (k Key) assert(client, audience string, now time.Time) (string, error) {
	if k.private == nil {
		return "", errors.New("there is no key")
	}
	options := new(jose.SignerOptions).WithType("client-authentication+jwt")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: k.algorithm, Key: jose.JSONWebKey{Key: k.private, KeyID: k.id}}, options)
	if err != nil {
		return "", fmt.Errorf("sign the client's assertion: %w", err)
	}
	claims, err := json.Marshal(map[string]any{
		"iss": client, "sub": client, "aud": audience, "jti": rand.Text(), "iat": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
	if err != nil {
		return "", fmt.Errorf("sign the client's assertion: %w", err)
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		return "", fmt.Errorf("sign the client's assertion: %w", err)
	}
	return signed.CompactSerialize()
}

// CertificateFiles returns a function that reads a client certificate and its key, PEM, and reads them again when they have
// changed. While the two do not fit together, as between the writing of one and the other, the last good pair is used.
func CertificateFiles(cert, key string) func() (*tls.Certificate, error) {
	chain := kept(cert, 0o022, func(data []byte) ([]byte, error) { return data, nil })
	private := Kept(key, func(data []byte) ([]byte, error) { return data, nil })
	var mu sync.Mutex
	var pair *tls.Certificate
	var of [2]string
	return func() (*tls.Certificate, error) {
		c, err := chain()
		if err != nil {
			return nil, err
		}
		k, err := private()
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		if now := [2]string{string(c), string(k)}; pair == nil || now != of {
			fresh, err := tls.X509KeyPair(c, k)
			switch {
			case err == nil:
				pair, of = &fresh, now
			case pair == nil:
				return nil, fmt.Errorf("read %s and %s: %w", cert, key, err)
			}
		}
		return pair, nil
	}
}

// ways is how many ways there are in which this client proves itself: it must be one.
func (c Config) ways() int {
	n := 0
	for _, there := range []bool{c.Secret != nil, c.Key != nil, c.Certificate != nil} {
		if there {
			n++
		}
	}
	return n
}

// Readable is why what proves the client cannot be read now; nil: it can.
func (c Config) Readable() error {
	var err error
	switch {
	case c.Secret != nil:
		_, err = c.Secret()
	case c.Key != nil:
		_, err = c.Key()
	case c.Certificate != nil:
		_, err = c.Certificate()
	}
	return err
}

// authenticate adds to a form what proves the client, or returns the secret that does (RFC 6749, section 2.3.1). A certificate
// is shown by the connection; where it has changed, those that showed the one before are closed.
func (c *Client) authenticate(form url.Values) (secret string, err error) {
	switch {
	case c.config.Secret != nil:
		if secret, err = c.config.Secret(); err != nil {
			return "", fmt.Errorf("client secret: %w", err)
		}
		return secret, nil
	case c.config.Key != nil:
		key, err := c.config.Key()
		if err != nil {
			return "", fmt.Errorf("client key: %w", err)
		}
		assertion, err := key.assert(c.config.ClientID, c.config.Audience, c.config.Now())
		if err != nil {
			return "", err
		}
		form.Set("client_assertion_type", assertionType)
		form.Set("client_assertion", assertion)
		return "", nil
	}
	certificate, err := c.config.Certificate()
	if err != nil {
		return "", fmt.Errorf("client certificate: %w", err)
	}
	if c.shown.Swap(certificate) != certificate {
		c.http.CloseIdleConnections()
	}
	form.Set("client_id", c.config.ClientID) // RFC 8705, section 2
	return "", nil
}
