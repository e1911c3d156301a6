package state

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if child := os.Getenv(childVariable); child != "" {
		beKilled(child)
		return
	}
	goleak.VerifyTestMain(m)
}

const issuerA, issuerB = "https://a.example.com", "https://b.example.com"

func TestValidation(t *testing.T) {
	now := time.Now()
	good := func() Revocation { return Revocation{Issuer: issuerA, TokenID: "t", Until: now.Add(time.Hour)} }
	if err := good().validate(now); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Revocation){
		"issuer is required":         func(r *Revocation) { r.Issuer = "" },
		"until is required":          func(r *Revocation) { r.Until = time.Time{} },
		"is past":                    func(r *Revocation) { r.Until = now.Add(-time.Second) },
		"more than ten years":        func(r *Revocation) { r.Until = now.Add(11 * 366 * 24 * time.Hour) },
		"after 2200":                 func(r *Revocation) { r.Until = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) },
		"before 1970":                func(r *Revocation) { r.Before = time.Unix(-5, 0) },
		"whole seconds":              func(r *Revocation) { r.Before = time.Unix(5, 1) },
		"before is after until":      func(r *Revocation) { r.Before = now.Add(2 * time.Hour).Truncate(time.Second) },
		"revoke by one":              func(r *Revocation) { r.Subject = "s" },
		"token_id is longer":         func(r *Revocation) { r.TokenID = strings.Repeat("x", maxField+1) },
		"reason is longer":           func(r *Revocation) { r.Reason = strings.Repeat("x", maxField+1) },
		"issuer is longer":           func(r *Revocation) { r.Issuer = strings.Repeat("x", maxField+1) },
		"token_id is not UTF-8":      func(r *Revocation) { r.TokenID = "\xff" },
		"by is not UTF-8":            func(r *Revocation) { r.By = "a\xc3" },
		"key_id: revoke by":          func(r *Revocation) { r.TokenID, r.Client, r.KeyID = "", "c", "k" },
		"digest, subject, client, s": func(r *Revocation) { r.Digest = "d" },
	} {
		r := good()
		change(&r)
		err := r.validate(now)
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		} else if want := strings.TrimSuffix(name, ": revoke by"); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"kind":  validateOnce("", "x", now.Add(1), now),
		"kind ": validateOnce(strings.Repeat("k", 65), "x", now.Add(1), now),
		"id":    validateOnce("dpop", "", now.Add(1), now),
		"id ":   validateOnce("dpop", strings.Repeat("x", maxField+1), now.Add(1), now),
		"past":  validateOnce("dpop", "x", now, now),
		"ahead": validateOnce("dpop", "x", now.Add(2*maxAhead), now),
	} {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := validateOnce("dpop", "x", now.Add(1), now); err != nil {
		t.Error(err)
	}
}

func TestUnknownDriver(t *testing.T) {
	if _, err := Open(Config{Driver: "etcd"}, nil, nil); err == nil || !strings.Contains(err.Error(), `driver "etcd" is not known`) {
		t.Error(err)
	}
}

// Parts must not run into each other: two things that differ never have one key.
func TestDigestFrames(t *testing.T) {
	seen := make(map[id][]string)
	for _, parts := range [][]string{{}, {""}, {"", ""}, {"a"}, {"a", ""}, {"", "a"}, {"abc"}, {"a", "bc"}, {"ab", "c"}, {"a", "b", "c"}} {
		d := digest(parts...)
		if other, again := seen[d]; again {
			t.Errorf("%q and %q have one key", parts, other)
		}
		seen[d] = parts
	}
}

func FuzzDecode(f *testing.F) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for _, r := range []Revocation{
		{Issuer: issuerA, Until: at.Add(time.Hour), At: at},
		{Issuer: issuerA, TokenID: "t", Until: at.Add(time.Hour), At: at, By: "admin", Reason: "lost <laptop> \u2028"},
		{Issuer: issuerB, Subject: "s", Before: at.Truncate(time.Second), Until: at.Add(time.Hour), At: at},
	} {
		b, err := encode(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("12345678{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b)
		if err != nil {
			return
		}
		// What is taken can be held, means the same when it is read again, and says when it is forgotten.
		if err := r.form(); err != nil {
			t.Fatal(err)
		}
		again, err := encode(r)
		if err != nil {
			t.Fatal(err)
		}
		s, err := decode(again)
		if err != nil {
			t.Fatalf("%q is written as %q: %v", b, again, err)
		}
		if keyOf(r) != keyOf(s) || !r.At.Equal(s.At) || r.Reason != s.Reason || r.By != s.By || stampOf(b) != stampOf(again) {
			t.Fatalf("%+v became %+v", r, s)
		}
		x := newIndex(func() time.Time { return r.Until })
		x.add(r)
		list, _ := x.list(2)
		if len(list) != 1 || keyOf(list[0]) != keyOf(r) {
			t.Fatalf("%+v is held as %+v", r, list)
		}
	})
}
