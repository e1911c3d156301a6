package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The algorithms that tokens are signed by.
const (
	es256 = "ES256"
	rs256 = "RS256"
	eddsa = "EdDSA"
)

func algorithms() []string { return []string{es256, rs256, eddsa} }

// issuer makes tokens, and has its keys where gateways look for them: at its address, and in files.
type issuer struct {
	address string // host:port
	secure  string // URL of the same over TLS, by a certificate that nobody knows
	dir     string
	keys    map[string]crypto.Signer // by algorithm; its kid is the algorithm
	foreign map[string]crypto.Signer // of somebody else
}

func (i *issuer) url() string { return "http://" + i.address }

// newIssuer makes keys and writes their files: jwks.json with all of them, ALGORITHM.json and ALGORITHM.pem with one.
func newIssuer(s *site, address string) (*issuer, error) {
	i := &issuer{address: address, dir: filepath.Join(s.dir, "issuer")}
	var err error
	if i.keys, err = newKeys(); err != nil {
		return nil, err
	}
	if i.foreign, err = newKeys(); err != nil {
		return nil, err
	}
	var all []map[string]string
	for _, a := range algorithms() {
		k, err := jwkOf(a, i.keys[a].Public())
		if err != nil {
			return nil, err
		}
		all = append(all, k)
		if err := i.writeKey(s, a, k); err != nil {
			return nil, err
		}
	}
	return i, writeJSON(s, "issuer/jwks.json", map[string]any{"keys": all})
}

func newKeys() (map[string]crypto.Signer, error) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	return map[string]crypto.Signer{es256: p256, rs256: rsa2048, eddsa: ed}, err
}

func jwkOf(algorithm string, public crypto.PublicKey) (map[string]string, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	k := map[string]string{"kid": algorithm, "alg": algorithm, "use": "sig"}
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		point, err := p.Bytes() // 4, x, y
		if err != nil {
			return nil, err
		}
		k["kty"], k["crv"], k["x"], k["y"] = "EC", "P-256", b64(point[1:33]), b64(point[33:])
	case *rsa.PublicKey:
		k["kty"], k["n"], k["e"] = "RSA", b64(p.N.Bytes()), b64(big.NewInt(int64(p.E)).Bytes())
	case ed25519.PublicKey:
		k["kty"], k["crv"], k["x"] = "OKP", "Ed25519", b64(p)
	}
	return k, nil
}

func (i *issuer) writeKey(s *site, algorithm string, jwk map[string]string) error {
	key := i.keys[algorithm]
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if _, err := s.write("issuer/"+algorithm+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))); err != nil {
		return err
	}
	return writeJSON(s, "issuer/"+algorithm+".json", map[string]any{"keys": []any{jwk}})
}

func writeJSON(s *site, name string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	_, err = s.write(name, string(b))
	return err
}

// claims are those of a good token. Each has an id of its own.
func (i *issuer) claims(id string, lasts time.Duration) jwt.MapClaims {
	now := time.Now()
	return jwt.MapClaims{
		"iss": i.url(), "aud": "bench", "sub": "user-" + id, "client_id": "bench", "jti": id, "iat": now.Unix(), "exp": now.Add(lasts).Unix(),
		"scope": "things:read things:list", "tenant": "acme",
	}
}

const tokenLife = 55 * time.Minute

// sign makes a token.
func (i *issuer) sign(algorithm string, claims jwt.MapClaims) (string, error) {
	return signBy(i.keys[algorithm], algorithm, claims)
}

func signBy(key crypto.Signer, algorithm string, claims jwt.MapClaims) (string, error) {
	t := jwt.NewWithClaims(jwt.GetSigningMethod(algorithm), claims)
	t.Header["kid"], t.Header["typ"] = algorithm, "at+jwt"
	return t.SignedString(key)
}

// tokens are many, in one piece.
type tokens struct {
	text []byte
	ends []uint32
}

func (t *tokens) len() int { return len(t.ends) }

func (t *tokens) at(i int) []byte {
	start := uint32(0)
	if i > 0 {
		start = t.ends[i-1]
	}
	return t.text[start:t.ends[i]]
}

// many makes n tokens that differ.
func (i *issuer) many(algorithm string, n int) (*tokens, error) {
	parts := make([]tokens, runtime.NumCPU())
	var failed error
	var mu sync.Mutex
	var all sync.WaitGroup
	for p := range parts {
		all.Go(func() {
			for k := p; k < n; k += len(parts) {
				text, err := i.sign(algorithm, i.claims(strconv.Itoa(k)+"-"+algorithm, tokenLife))
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
				parts[p].text = append(parts[p].text, text...)
				parts[p].ends = append(parts[p].ends, uint32(len(parts[p].text)))
			}
		})
	}
	all.Wait()
	var t tokens
	for _, p := range parts {
		base := uint32(len(t.text))
		t.text = append(t.text, p.text...)
		for _, e := range p.ends {
			t.ends = append(t.ends, base+e)
		}
	}
	return &t, failed
}

// bad is a token that must be refused, and why.
type bad struct{ why, token string }

// refusals are tokens that no gateway may let through.
func (i *issuer) refusals(algorithm string) ([]bad, error) {
	good, err := i.sign(algorithm, i.claims("forged", tokenLife))
	if err != nil {
		return nil, err
	}
	signature := []byte(good)
	at := len(signature) - 20 // inside the signature, and not its last character, of which some bits may be unused
	if signature[at] == 'A' {
		signature[at] = 'B'
	} else {
		signature[at] = 'A'
	}
	list := []bad{{"no token", ""}, {"a bad signature", string(signature)}}
	for _, c := range []struct {
		why    string
		change func(jwt.MapClaims)
		key    crypto.Signer
	}{
		{"an expired token", func(c jwt.MapClaims) {
			c["iat"], c["exp"] = time.Now().Add(-time.Hour).Unix(), time.Now().Add(-time.Minute).Unix()
		}, i.keys[algorithm]},
		{"another audience", func(c jwt.MapClaims) { c["aud"] = "another" }, i.keys[algorithm]},
		{"another issuer", func(c jwt.MapClaims) { c["iss"] = "http://127.0.0.1:1" }, i.keys[algorithm]},
		{"another key", func(jwt.MapClaims) {}, i.foreign[algorithm]},
	} {
		claims := i.claims("refused", tokenLife)
		c.change(claims)
		text, err := signBy(c.key, algorithm, claims)
		if err != nil {
			return nil, err
		}
		list = append(list, bad{c.why, text})
	}
	return list, nil
}

// signatureAlone is what verifying a token's signature takes and nothing else, in µs.
func (i *issuer) signatureAlone(algorithm string, d time.Duration) (float64, error) {
	message := make([]byte, 400)
	digest := sha256.Sum256(message)
	var verify func() bool
	switch key := i.keys[algorithm].(type) {
	case *ecdsa.PrivateKey:
		signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			return 0, err
		}
		verify = func() bool { d := sha256.Sum256(message); return ecdsa.VerifyASN1(&key.PublicKey, d[:], signature) }
	case *rsa.PrivateKey:
		signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
		if err != nil {
			return 0, err
		}
		verify = func() bool {
			d := sha256.Sum256(message)
			return rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, d[:], signature) == nil
		}
	case ed25519.PrivateKey:
		signature := ed25519.Sign(key, message)
		verify = func() bool { return ed25519.Verify(key.Public().(ed25519.PublicKey), message, signature) }
	}
	n, began := 0, time.Now()
	for ; n == 0 || time.Since(began) < d; n++ {
		if !verify() {
			return 0, fmt.Errorf("a good %s signature is refused", algorithm)
		}
	}
	return float64(time.Since(began)) / float64(time.Microsecond) / float64(n), nil
}

// first are the first n of them.
func (t *tokens) first(n int) *tokens { return &tokens{t.text, t.ends[:n]} }
