package keys

import (
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/jws"
)

const (
	suffix      = ".json"
	maxFileSize = 4 << 10
)

// key is what one file holds.
type key struct {
	id      string
	private ed25519.PrivateKey
	created time.Time // whole milliseconds, UTC
}

func (k key) fileName() string { return k.id + suffix }

// sorted puts the newest first.
func sorted(keys []key) []key {
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(b.created.Compare(a.created), cmp.Compare(a.id, b.id))
	})
	return keys
}

// generate makes a key and stores it in the folder, whose lock is held.
func generate(folder string, others []key, now time.Time) (key, error) {
	if len(others) >= maxKeys {
		return key{}, fmt.Errorf("make a signing key: %s holds %d already", folder, len(others))
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return key{}, fmt.Errorf("make a signing key: %w", err)
	}
	k := key{identity.Thumbprint(public), private, now.UTC().Truncate(time.Millisecond)}
	if err := writeFile(filepath.Join(folder, k.fileName()), encode(k), 0o600); err != nil {
		return key{}, fmt.Errorf("store a signing key: %w", err)
	}
	return k, nil
}

// encode is the file's form: a private JWK (RFC 8037, section 2) with one member of ours, created (RFC 3339).
func encode(k key) []byte {
	b64 := base64.RawURLEncoding
	return fmt.Appendf(nil, `{
  "kty": "OKP",
  "crv": "Ed25519",
  "alg": "EdDSA",
  "use": "sig",
  "kid": "%s",
  "x": "%s",
  "d": "%s",
  "created": "%s"
}
`, k.id, b64.EncodeToString(k.private.Public().(ed25519.PublicKey)), b64.EncodeToString(k.private.Seed()),
		k.created.Format(time.RFC3339Nano))
}

// parse reads what encode writes, and no more. Its errors hold nothing of the file.
func parse(data []byte) (key, error) {
	jwk, err := jws.Object(data)
	if err != nil {
		return key{}, fmt.Errorf("not a JWK: %w", err)
	}
	text := make(map[string]string, len(jwk))
	for name, value := range jwk {
		switch name {
		case "kty", "crv", "alg", "use", "kid", "x", "d", "created":
		default:
			return key{}, errors.New("it has a member other than kty, crv, alg, use, kid, x, d and created")
		}
		s, ok := value.(string)
		if !ok {
			return key{}, fmt.Errorf("%s is not a string", name)
		}
		text[name] = s
	}
	if text["kty"] != "OKP" || text["crv"] != "Ed25519" || text["alg"] != "EdDSA" || text["use"] != "sig" {
		return key{}, errors.New("not an Ed25519 key for signatures (kty OKP, crv Ed25519, alg EdDSA, use sig)")
	}
	b64 := base64.RawURLEncoding.Strict()
	seed, err := b64.DecodeString(text["d"])
	if err != nil || len(seed) != ed25519.SeedSize {
		return key{}, errors.New("d is not 32 bytes in base64url")
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	if text["x"] != b64.EncodeToString(public) {
		return key{}, errors.New("x is not the public part of d")
	}
	if text["kid"] != identity.Thumbprint(public) {
		return key{}, errors.New("kid is not the key's thumbprint")
	}
	created, err := time.Parse(time.RFC3339, text["created"])
	if err != nil || created.UTC().Year() < 1970 || created.UTC().Year() > 9999 {
		return key{}, errors.New("created is not a time (RFC 3339)")
	}
	return key{text["kid"], private, created.UTC().Truncate(time.Millisecond)}, nil
}

// readFolder reads all keys, newest first. Its error names everything that is
// wrong in the folder, one line each; a folder that is not there has no keys.
func readFolder(folder string) ([]key, error) {
	info, err := os.Stat(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the signing keys: %w", err)
	}
	if info.IsDir() && info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("%s can be written by others (mode %04o): run chmod 700 %[1]s", folder, info.Mode().Perm())
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("read the signing keys: %w", err)
	}
	var keys []key
	var errs []error
	for _, e := range entries {
		path := filepath.Join(folder, e.Name())
		if strings.HasSuffix(e.Name(), temporary) {
			continue // another process is writing, or ended while it did
		}
		if !isKeyName(e.Name()) {
			errs = append(errs, fmt.Errorf("%s is no key (<thumbprint>.json): nothing else belongs into this folder", path))
			continue
		}
		k, err := readKey(path)
		switch {
		case errors.Is(err, os.ErrNotExist): // withdrawn by another process since the folder was read
		case err != nil:
			errs = append(errs, err)
		default:
			keys = append(keys, k)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return sorted(keys), nil
}

func isKeyName(name string) bool {
	id, ok := strings.CutSuffix(name, suffix)
	sum, err := base64.RawURLEncoding.Strict().DecodeString(id)
	return ok && err == nil && len(sum) == 32
}

// readKey reads one file, which only its owner may read, and whose name is the key's.
func readKey(path string) (key, error) {
	// O_NONBLOCK, because opening a FIFO would wait for its writer
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return key{}, fmt.Errorf("%s is a symbolic link, which could lead anywhere: put the file itself there", path)
	}
	if err != nil {
		return key{}, fmt.Errorf("read a signing key: %w", err)
	}
	defer file.Close()
	// what was opened is judged, not what now has the name
	info, err := file.Stat()
	if err != nil {
		return key{}, fmt.Errorf("read a signing key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return key{}, fmt.Errorf("%s is not a regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return key{}, fmt.Errorf("%s can be read by others than its owner (mode %04o): run chmod 600 %[1]s, and replace the key if others may have read it",
			path, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFileSize+1))
	if err != nil {
		return key{}, fmt.Errorf("read a signing key: %w", err)
	}
	if len(data) > maxFileSize {
		return key{}, fmt.Errorf("%s is longer than %d bytes: no key is", path, maxFileSize)
	}
	k, err := parse(data)
	if err != nil {
		return key{}, fmt.Errorf("%s: %w", path, err)
	}
	if k.fileName() != filepath.Base(path) {
		return key{}, fmt.Errorf("%s holds the key %s: name the file after it", path, k.id)
	}
	return k, nil
}
