package identity

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/internal/jws"
)

const (
	maxKeys      = 100
	maxKeysBytes = 64 << 10
	// rereadEvery bounds how often the file is looked at, and so how long a new or withdrawn key goes unseen.
	rereadEvery = time.Second
)

// KeysFile reads published keys (a JWKS file that sallyport writes) and reads
// them again when they change: the file is looked at when a key is asked for,
// at most once a second. While it cannot be read or is not a key set, the last
// good set stays.
//
// The file is held to its form: a JWK set (RFC 7517) of 1 to 100 Ed25519 public
// keys (RFC 8037), each named by its thumbprint, with no private part and no
// other member than kty, crv, x, kid, use and alg. Read anew it may be empty:
// then every key was withdrawn. A change is seen by the file's identity, size
// or modification time; sallyport replaces the file, which changes the first.
//
// The function returned is safe for concurrent use.
func KeysFile(path string) (func(kid string) (ed25519.PublicKey, bool), error) {
	start := time.Now()
	f, err := openKeysFile(path, func() time.Duration { return time.Since(start) })
	if err != nil {
		return nil, err
	}
	return f.lookup, nil
}

// keysFile is a file and the last good set that it held.
type keysFile struct {
	path    string
	elapsed func() time.Duration // monotonic
	checked atomic.Int64         // elapsed at the last look, nanoseconds
	set     atomic.Pointer[keySet]
}

// keySet is what one version of the file held.
type keySet struct {
	version os.FileInfo
	keys    map[string]ed25519.PublicKey
}

func openKeysFile(path string, elapsed func() time.Duration) (*keysFile, error) {
	f := &keysFile{path: path, elapsed: elapsed}
	f.checked.Store(int64(elapsed()))
	set, err := readKeySet(path)
	if err != nil {
		return nil, fmt.Errorf("read the published keys: %w", err)
	}
	if len(set.keys) == 0 {
		return nil, fmt.Errorf("read the published keys: %s holds no key", path)
	}
	f.set.Store(set)
	return f, nil
}

func (f *keysFile) lookup(kid string) (ed25519.PublicKey, bool) {
	now, last := int64(f.elapsed()), f.checked.Load()
	// one of those who come at the same time looks; the others do not wait
	if now-last >= int64(rereadEvery) && f.checked.CompareAndSwap(last, now) {
		f.reread()
	}
	key, ok := f.set.Load().keys[kid]
	return key, ok
}

// reread replaces the set if the file has changed and can be read.
func (f *keysFile) reread() {
	old := f.set.Load().version
	now, err := os.Stat(f.path)
	if err != nil || os.SameFile(old, now) && old.ModTime().Equal(now.ModTime()) && old.Size() == now.Size() {
		return
	}
	if set, err := readKeySet(f.path); err == nil {
		f.set.Store(set)
	}
}

func readKeySet(path string) (*keySet, error) {
	// before it is opened, because opening a FIFO would wait for its writer
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	version, err := file.Stat()
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, maxKeysBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxKeysBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxKeysBytes)
	}
	keys, err := parseKeys(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &keySet{version, keys}, nil
}

// parseKeys reads a JWK set as KeysFile describes it.
func parseKeys(data []byte) (map[string]ed25519.PublicKey, error) {
	set, err := jws.Object(data)
	if err != nil {
		return nil, fmt.Errorf("not a JWK set: %w", err)
	}
	list, ok := set["keys"].([]any)
	if !ok || len(set) != 1 {
		return nil, errors.New(`not a JWK set: an object with the one member "keys", an array, is expected`)
	}
	if len(list) > maxKeys {
		return nil, fmt.Errorf("%d keys, over %d", len(list), maxKeys)
	}
	keys := make(map[string]ed25519.PublicKey, len(list))
	for i, element := range list {
		jwk, _ := element.(map[string]any)
		public, err := parseKey(jwk)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i, err)
		}
		kid := Thumbprint(public)
		if jwk["kid"] != kid {
			return nil, fmt.Errorf("key %d: kid is not its thumbprint, %s", i, kid)
		}
		if _, ok := keys[kid]; ok {
			return nil, fmt.Errorf("key %d: %s is there twice", i, kid)
		}
		keys[kid] = public
	}
	return keys, nil
}

func parseKey(jwk map[string]any) (ed25519.PublicKey, error) {
	for name, value := range jwk {
		switch name {
		case "kty", "crv", "x", "kid":
		case "use":
			if value != "sig" {
				return nil, errors.New(`use is not "sig"`)
			}
		case "alg":
			// RFC 9864 gave the same algorithm a second name
			if value != algorithm && value != "Ed25519" {
				return nil, errors.New(`alg is not "EdDSA"`)
			}
		case "d":
			return nil, errors.New("it holds a private part: this file is for public keys; replace the key, whoever could read the file has it")
		default:
			return nil, errors.New("it has a member other than kty, crv, x, kid, use and alg")
		}
	}
	if jwk["kty"] != "OKP" || jwk["crv"] != "Ed25519" {
		return nil, errors.New("not an Ed25519 key")
	}
	x, _ := jwk["x"].(string)
	public, err := base64.RawURLEncoding.Strict().DecodeString(x)
	if err != nil || len(public) != ed25519.PublicKeySize {
		return nil, errors.New("x is not 32 bytes in base64url")
	}
	return public, nil
}
