package ingress

import (
	"strings"
	"testing"
)

// What is accepted has one reading (checkCanonical says which), and so has every spelling that respelling accepts.
func FuzzCanonicalise(f *testing.F) {
	for _, v := range pathVectors(f) {
		f.Add(v.Target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		c, err := canonicalise(target)
		if err != nil {
			if _, ok := err.(*canonicalError); !ok {
				t.Fatalf("canonicalise(%q): %T is no *canonicalError", target, err)
			}
			return
		}
		checkCanonical(t, target, c)
	})
}

// An accepted host is its own canonical form, and net/url's parser takes it for a host without user or path.
func FuzzCanonicaliseHost(f *testing.F) {
	for _, h := range hostVectors() {
		f.Add(h.in, h.tls)
	}
	f.Fuzz(func(t *testing.T, host string, tls bool) {
		h, err := canonicaliseHost(host, tls)
		if err != nil {
			return
		}
		again, err := canonicaliseHost(h.String(), tls)
		if err != nil || again != h {
			t.Errorf("%q became %q, then %q (%v)", host, h, again, err)
		}
		if strings.ToLower(h.Name) != h.Name || strings.ContainsAny(h.Name, "/@%?#\\ _") || strings.HasSuffix(h.Name, ".") {
			t.Errorf("%q became name %q", host, h.Name)
		}
	})
}
