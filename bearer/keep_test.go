package bearer

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A restart while the authorization server is down finds the last keys, as old as they are.
func TestKeptKeysServeAfterARestart(t *testing.T) {
	s := newSigner("k1", "ES256")
	server := newAuthServer(t, s.jwk())
	folder := t.TempDir()
	p := quick
	p.maxStale = 10 * time.Minute
	first := mustVerifierAt(t, p, Options{Keep: folder}, server.issuer())
	ready(t, first)
	eventually(t, "the file", func() bool { return len(keptFiles(t, folder)) == 1 })
	first.Close()
	path := keptFiles(t, folder)[0]
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	server.change(func() { server.status = http.StatusBadGateway })

	for _, test := range []struct {
		name   string
		change func(t *testing.T)
		after  time.Duration
		issuer func(*Issuer)
		code   string
	}{
		{name: "as it was kept"},
		{name: "too old", after: 11 * time.Minute, code: codeUnavailable},
		{name: "from the future", after: -time.Minute, code: codeUnavailable},
		{name: "writable by others", change: func(t *testing.T) { mustDo(t, os.Chmod(path, 0o622)) }, code: codeUnavailable},
		{name: "a link", change: func(t *testing.T) {
			mustDo(t, os.Rename(path, path+".real"))
			mustDo(t, os.Symlink(path+".real", path))
		}, code: codeUnavailable},
		{name: "cut off", change: func(t *testing.T) { mustDo(t, os.WriteFile(path, good[:len(good)/2], 0o600)) }, code: codeUnavailable},
		{name: "of another issuer", change: func(t *testing.T) {
			mustDo(t, os.WriteFile(path, []byte(strings.Replace(string(good), server.URL, "https://evil.example", 1)), 0o600))
		}, code: codeUnavailable},
		{name: "from another address", issuer: func(i *Issuer) { i.Keys.URI += "?other" }, code: codeUnavailable},
		{name: "gone", change: func(t *testing.T) { mustDo(t, os.Remove(path)) }, code: codeUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			mustDo(t, os.RemoveAll(path))
			mustDo(t, os.WriteFile(path, good, 0o600))
			if test.change != nil {
				test.change(t)
			}
			issuer := server.issuer()
			if test.issuer != nil {
				test.issuer(&issuer)
			}
			now := func() time.Time { return time.Now().Add(test.after) }
			before := server.count("/jwks")
			v := mustVerifierAt(t, p, Options{Keep: folder, Now: now}, issuer)
			eventually(t, "two failures", func() bool { return server.count("/jwks") >= before+2 })
			token := s.token(with(goodClaims(now()), object{"iss": server.URL}))
			if test.code == "" {
				eventually(t, "the kept keys", func() bool { return codeOf(t, v, token) == "" })
			} else if code := codeOf(t, v, token); code != test.code {
				t.Errorf("got %q, want %q", code, test.code)
			}
		})
	}
}

// While the server can be asked, what was kept is not looked at: no restart brings a withdrawn key back.
func TestKeptKeysAreNotUsedWhenTheServerAnswers(t *testing.T) {
	gone, next := newSigner("k1", "ES256"), newSigner("k2", "ES256")
	server := newAuthServer(t, gone.jwk())
	folder := t.TempDir()
	first := mustVerifierAt(t, quick, Options{Keep: folder}, server.issuer())
	ready(t, first)
	eventually(t, "the file", func() bool { return len(keptFiles(t, folder)) == 1 })
	first.Close()
	server.publish(next.jwk())
	second := mustVerifierAt(t, seldom, Options{Keep: folder}, server.issuer())
	for second.Ready() != nil {
		if code := codeOf(t, second, server.token(gone)); code == "" {
			t.Fatal("the withdrawn key serves")
		}
	}
	if code := codeOf(t, second, server.token(gone)); code != codeKey {
		t.Errorf("the withdrawn key: %q", code)
	}
}

func keptFiles(t *testing.T, folder string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "keys-*.json"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
