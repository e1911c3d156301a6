package keys

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/identity"
)

// newFolder configures a ring in folders of its own.
func newFolder(t testing.TB) Config {
	dir := t.TempDir()
	return Config{Path: filepath.Join(dir, "keys"), Publish: filepath.Join(dir, "public", "jwks.json"), RotateEvery: time.Hour, Overlap: 10 * time.Minute}
}

func mustGenerate(t testing.TB, c Config, now time.Time) Info {
	t.Helper()
	info, err := Generate(c, now)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func mustOpen(t testing.TB, c Config) *Ring {
	t.Helper()
	r, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// published reads the file as a service does.
func published(t testing.TB, c Config) func(string) bool {
	t.Helper()
	lookup, err := identity.KeysFile(c.Publish)
	if err != nil {
		t.Fatal(err)
	}
	return func(kid string) bool { _, ok := lookup(kid); return ok }
}

func TestGenerateStoresOneUsableKey(t *testing.T) {
	c := newFolder(t)
	now := time.Now()
	info := mustGenerate(t, c, now)
	if !info.Signing || !info.Activates.IsZero() || !info.Retires.IsZero() || info.Created.Sub(now).Abs() > time.Second {
		t.Errorf("the only key: %+v", info)
	}
	folder, err := os.Stat(c.Path)
	if err != nil || folder.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", folder.Mode(), err)
	}
	file, err := os.Stat(filepath.Join(c.Path, info.ID+".json"))
	if err != nil || file.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", file, err)
	}
	public, err := os.Stat(c.Publish)
	if err != nil || public.Mode().Perm() != 0o644 {
		t.Errorf("published file: %v, %v", public, err)
	}
	r := mustOpen(t, c)
	k := r.Signing()
	if k.ID != info.ID || k.ID != identity.Thumbprint(k.Private.Public().(ed25519.PublicKey)) {
		t.Errorf("signs with %s, generated %s", k.ID, info.ID)
	}
	if !published(t, c)(info.ID) {
		t.Error("not published")
	}
	if bytes.Contains(r.JWKS(), []byte(`"d"`)) {
		t.Error("the published set holds a private part")
	}
	entries, _ := os.ReadDir(c.Path)
	if len(entries) != 1 {
		t.Errorf("the folder holds %v", entries)
	}
}

// An assertion signed with the ring's key is verified with the published file.
func TestSignedIsVerifiedWithPublished(t *testing.T) {
	c := newFolder(t)
	mustGenerate(t, c, time.Now())
	r := mustOpen(t, c)
	lookup, err := identity.KeysFile(c.Publish)
	if err != nil {
		t.Fatal(err)
	}
	s := &identity.Signer{Issuer: "sallyport", Audience: "orders", Key: r.Signing}
	v := &identity.Verifier{Issuer: "sallyport", Audience: "orders", Keys: lookup}
	assertion, err := s.Sign(identity.Caller{Issuer: "i", Subject: "s", TokenID: "t", Expires: time.Now().Add(time.Hour)}, "route", "1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(assertion); err != nil {
		t.Error(err)
	}
}

// The life of two keys, minute by minute: published before it signs, published after it has signed.
func TestRotation(t *testing.T) {
	c := newFolder(t)
	start := time.Now().Add(-30 * time.Minute).Truncate(time.Second)
	first := mustGenerate(t, c, start).ID
	r := mustOpen(t, c)
	maintain := func(at time.Duration) {
		t.Helper()
		if err := r.Maintain(start.Add(at)); err != nil {
			t.Fatal(err)
		}
		if s := r.Signing().ID; !published(t, c)(s) {
			t.Errorf("after %v %s signs and is not published", at, s)
		}
	}
	for m := time.Duration(0); m < 60; m += 5 {
		maintain(m * time.Minute)
		if len(r.List()) != 1 || r.Signing().ID != first {
			t.Fatalf("after %d min: %+v", m, r.List())
		}
	}
	maintain(time.Hour)
	list := r.List()
	if len(list) != 2 || list[1].ID != first || !list[1].Signing || list[0].Signing {
		t.Fatalf("at rotation: %+v", list)
	}
	second := list[0].ID
	if want := start.Add(time.Hour + time.Minute); !list[0].Activates.Equal(want) {
		t.Errorf("activates at %v, want %v", list[0].Activates, want)
	}
	if want := start.Add(time.Hour + 10*time.Minute); !list[1].Retires.Equal(want) {
		t.Errorf("retires at %v, want %v", list[1].Retires, want)
	}
	if in := published(t, c); !in(first) || !in(second) {
		t.Error("at rotation both must be published")
	}
	maintain(time.Hour + 59*time.Second)
	if r.Signing().ID != first {
		t.Error("the new key signs before its time")
	}
	maintain(time.Hour + time.Minute)
	if r.Signing().ID != second || !r.List()[0].Activates.IsZero() {
		t.Errorf("the new key does not sign: %+v", r.List())
	}
	maintain(time.Hour + 9*time.Minute)
	if in := published(t, c); !in(first) || !in(second) {
		t.Error("within the overlap both must be published")
	}
	maintain(time.Hour + 10*time.Minute)
	if in := published(t, c); in(first) || !in(second) {
		t.Error("after the overlap the old one is published still")
	}
	if _, err := os.Stat(filepath.Join(c.Path, first+".json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old key's file: %v", err)
	}
	if list := r.List(); len(list) != 1 || list[0].ID != second || !list[0].Signing {
		t.Errorf("at the end: %+v", list)
	}
}

// A key that an operator makes, with or without publishing it, waits its minute as well; deleting the old file withdraws it.
func TestKeysOfOthers(t *testing.T) {
	for _, publishes := range []bool{true, false} {
		c := newFolder(t)
		start := time.Now().Add(-20 * time.Minute)
		first := mustGenerate(t, c, start).ID
		r := mustOpen(t, c)
		operator := c
		if !publishes {
			operator.Publish = ""
		}
		second := mustGenerate(t, operator, start.Add(10*time.Minute)).ID
		if got := published(t, c)(second); got != publishes {
			t.Fatalf("published by the operator: %v, want %v", got, publishes)
		}
		seen := start.Add(12 * time.Minute)
		if err := r.Maintain(seen); err != nil {
			t.Fatal(err)
		}
		if !published(t, c)(second) {
			t.Error("the operator's key is not published")
		}
		want := first // first published just now: it waits
		if publishes {
			want = second
		}
		if got := r.Signing().ID; got != want {
			t.Errorf("publishes %v: %s signs at first sight, want %s", publishes, got, want)
		}
		if err := os.Remove(filepath.Join(c.Path, first+".json")); err != nil {
			t.Fatal(err)
		}
		if err := r.Maintain(seen.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if in := published(t, c); in(first) || r.Signing().ID != second {
			t.Errorf("the deleted key is published: %v; signs: %s", in(first), r.Signing().ID)
		}
		// all gone: the ring makes a new one
		if err := os.Remove(filepath.Join(c.Path, second+".json")); err != nil {
			t.Fatal(err)
		}
		if err := r.Maintain(seen.Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if s := r.Signing().ID; s == first || s == second || !published(t, c)(s) {
			t.Errorf("after all were deleted %s signs", s)
		}
	}
}

func TestOpenPublishes(t *testing.T) {
	c := newFolder(t)
	info := mustGenerate(t, c, time.Now())
	for name, spoil := range map[string]func() error{
		"absent":     func() error { return os.RemoveAll(filepath.Dir(c.Publish)) },
		"stale":      func() error { return os.WriteFile(c.Publish, []byte(`{"keys":[]}`), 0o644) },
		"unreadable": func() error { return os.Chmod(c.Publish, 0o600) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		mustOpen(t, c)
		if !published(t, c)(info.ID) {
			t.Errorf("%s: not published", name)
		}
		if st, err := os.Stat(c.Publish); err != nil || st.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	// without a change nothing is written
	before, _ := os.Stat(c.Publish)
	r := mustOpen(t, c)
	if err := r.Maintain(time.Now()); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(c.Publish); !os.SameFile(before, after) {
		t.Error("the published file was replaced by itself")
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, c Config, file string) error
		want  string
	}{
		{"no folder", func(_ *testing.T, c Config, _ string) error { return os.RemoveAll(c.Path) }, "no signing key"},
		{"empty folder", func(_ *testing.T, _ Config, file string) error { return os.Remove(file) }, "no signing key"},
		{"readable by the group", func(_ *testing.T, _ Config, file string) error { return os.Chmod(file, 0o640) }, "chmod 600 "},
		{"readable by all", func(_ *testing.T, _ Config, file string) error { return os.Chmod(file, 0o604) }, "chmod 600 "},
		{"folder writable by all", func(_ *testing.T, c Config, _ string) error { return os.Chmod(c.Path, 0o777) }, "chmod 700 "},
		{"not JSON", func(_ *testing.T, _ Config, file string) error { return os.WriteFile(file, []byte("{"), 0o600) }, "not a JWK"},
		{"too long", func(_ *testing.T, _ Config, file string) error {
			return os.WriteFile(file, bytes.Repeat([]byte(" "), maxFileSize+1), 0o600)
		}, "longer than"},
		{"another's name", func(_ *testing.T, c Config, file string) error {
			return os.Rename(file, filepath.Join(c.Path, strings.Repeat("A", 43)+".json"))
		}, "name the file after it"},
		{"unknown file", func(_ *testing.T, c Config, _ string) error {
			return os.WriteFile(filepath.Join(c.Path, "notes.txt"), nil, 0o600)
		}, "notes.txt is no key"},
		{"copy", func(_ *testing.T, _ Config, file string) error { return os.Link(file, file+"~") }, "is no key"},
		{"folder inside", func(_ *testing.T, _ Config, file string) error {
			return errors.Join(os.Remove(file), os.Mkdir(file, 0o700))
		}, "not a regular file"},
		{"symbolic link", func(t *testing.T, _ Config, file string) error {
			other := filepath.Join(t.TempDir(), "key")
			return errors.Join(os.Rename(file, other), os.Symlink(other, file))
		}, "symbolic link"},
		{"FIFO", func(_ *testing.T, _ Config, file string) error {
			return errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600))
		}, "not a regular file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newFolder(t)
			file := filepath.Join(c.Path, mustGenerate(t, c, time.Now()).ID+".json")
			if err := test.spoil(t, c, file); err != nil {
				t.Fatal(err)
			}
			r, err := Open(c)
			if err == nil || r != nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v; want an error with %q", err, test.want)
			}
			if got := errors.Is(err, ErrNoKey); got != (test.want == "no signing key") {
				t.Errorf("ErrNoKey: %v", got)
			}
		})
	}
	t.Run("everything at once", func(t *testing.T) {
		c := newFolder(t)
		a, b := mustGenerate(t, c, time.Now()).ID, mustGenerate(t, c, time.Now()).ID
		for _, id := range []string{a, b} {
			if err := os.Chmod(filepath.Join(c.Path, id+".json"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(c); err == nil || !strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), b) {
			t.Errorf("%v; want both files named", err)
		}
	})
}

func TestConfigRefused(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]Config{
		"algorithm":            {Path: dir, Algorithm: "RS256"},
		"negative rotation":    {Path: dir, RotateEvery: -time.Hour},
		"hasty rotation":       {Path: dir, RotateEvery: time.Minute},
		"short overlap":        {Path: dir, Overlap: time.Minute},
		"too many keys":        {Path: dir, RotateEvery: time.Hour, Overlap: 100 * time.Hour},
		"published among ours": {Path: dir, Publish: filepath.Join(dir, "jwks.json")},
	} {
		if _, err := Generate(c, time.Now()); err == nil {
			t.Errorf("%s: a key was made", name)
		}
		if _, err := Open(c); err == nil || errors.Is(err, ErrNoKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What could not be published does not sign, and what signed goes on.
func TestMaintainWithoutPublishing(t *testing.T) {
	c := newFolder(t)
	start := time.Now()
	first := mustGenerate(t, c, start).ID
	r := mustOpen(t, c)
	// a folder where the file should be cannot be replaced
	if err := errors.Join(os.Remove(c.Publish), os.MkdirAll(filepath.Join(c.Publish, "x"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Duration{time.Hour, time.Hour + 2*time.Minute} {
		if err := r.Maintain(start.Add(at)); err == nil {
			t.Error("no error")
		}
		if r.Signing().ID != first {
			t.Error("a key signs that was not published")
		}
	}
	if err := os.RemoveAll(c.Publish); err != nil {
		t.Fatal(err)
	}
	if err := r.Maintain(start.Add(time.Hour + 3*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if r.Signing().ID == first {
		t.Error("published at last, long after it was made, the new key does not sign")
	}
}

// A clock that was once far ahead leaves a key of the future; it neither signs nor keeps others from being made.
func TestKeyOfTheFuture(t *testing.T) {
	c := newFolder(t)
	now := time.Now()
	future := mustGenerate(t, c, now.AddDate(10, 0, 0)).ID
	r := mustOpen(t, c)
	for m := range time.Duration(5) {
		if err := r.Maintain(now.Add(m * time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.List()) != 2 || r.Signing().ID == future {
		t.Errorf("%+v", r.List())
	}
}

func TestHalfWrittenFileIsNoKey(t *testing.T) {
	c := newFolder(t)
	info := mustGenerate(t, c, time.Now())
	// what a process leaves that ended between writing and renaming
	if err := os.WriteFile(filepath.Join(c.Path, info.ID+".json.tmp"), []byte(`{"kty":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := mustOpen(t, c); len(r.List()) != 1 {
		t.Errorf("%+v", r.List())
	}
}

// Many rings on one folder, in this process and in another, lose no key, make none too many, and never read half a file.
func TestConcurrentProcesses(t *testing.T) {
	if path := os.Getenv("KEYS_TEST_FOLDER"); path != "" {
		c := Config{Path: path, Publish: os.Getenv("KEYS_TEST_PUBLISH"), RotateEvery: time.Hour, Overlap: 10 * time.Minute}
		for range 10 {
			mustGenerate(t, c, time.Now())
			mustOpen(t, c)
		}
		return
	}
	c := newFolder(t)
	mustGenerate(t, c, time.Now())
	other := exec.Command(os.Args[0], "-test.run=^TestConcurrentProcesses$")
	other.Env = append(os.Environ(), "KEYS_TEST_FOLDER="+c.Path, "KEYS_TEST_PUBLISH="+c.Publish)
	var output bytes.Buffer
	other.Stdout, other.Stderr = &output, &output
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	r := mustOpen(t, c)
	for range 3 {
		wg.Go(func() {
			for range 5 {
				mustGenerateIn(t, c)
				if err := r.Maintain(time.Now()); err != nil {
					t.Error(err)
				}
				if k := r.Signing(); len(k.Private) != ed25519.PrivateKeySize {
					t.Error("no signing key")
				}
				var set struct{ Keys []map[string]any }
				data, err := os.ReadFile(c.Publish)
				if err != nil || json.Unmarshal(data, &set) != nil || len(set.Keys) == 0 {
					t.Errorf("published: %q, %v", data, err)
				}
			}
		})
	}
	wg.Wait()
	if err := other.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, &output)
	}
	if err := r.Maintain(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n := len(r.List()); n != 1+10+15 {
		t.Errorf("%d keys, want 26", n)
	}
}

func mustGenerateIn(t *testing.T, c Config) {
	if _, err := Generate(c, time.Now()); err != nil {
		t.Error(err)
	}
}

func BenchmarkSigning(b *testing.B) {
	c := newFolder(b)
	mustGenerate(b, c, time.Now())
	r := mustOpen(b, c)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Signing()
		}
	})
}

// A key that root makes by hand is for the user that sallyport runs as: the owner of the folder.
func TestKeyBelongsToTheFoldersOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	c := newFolder(t)
	if err := errors.Join(os.MkdirAll(c.Path, 0o700), os.Chown(c.Path, 65532, 65533)); err != nil {
		t.Fatal(err)
	}
	info := mustGenerate(t, c, time.Now())
	st, err := os.Stat(filepath.Join(c.Path, info.ID+".json"))
	if err != nil {
		t.Fatal(err)
	}
	if owner := st.Sys().(*syscall.Stat_t); owner.Uid != 65532 || owner.Gid != 65533 || st.Mode().Perm() != 0o600 {
		t.Errorf("owner %d:%d, mode %v", owner.Uid, owner.Gid, st.Mode())
	}
}

// What is derived is the same for all who share the folder, another for another purpose, and another when another key signs.
func TestDerive(t *testing.T) {
	c := Config{Path: filepath.Join(t.TempDir(), "keys")}
	if _, err := Generate(c, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	derive := func(purpose string) string {
		t.Helper()
		r, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := r.Derive(purpose)
		if err != nil || len(secret) != 32 || strings.Contains(string(r.Signing().Private), string(secret)) {
			t.Fatalf("%d bytes, %v", len(secret), err)
		}
		return string(secret)
	}
	one := derive("a")
	if derive("a") != one || derive("b") == one {
		t.Error("a purpose has one secret, of its own")
	}
	if _, err := Generate(c, time.Now().Add(-2*activation)); err != nil {
		t.Fatal(err)
	}
	if derive("a") == one {
		t.Error("the secret outlives its key")
	}
}
