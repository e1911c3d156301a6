package config

import (
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sallyport/sallyport/internal/audit"
	"github.com/sallyport/sallyport/internal/credential"
	"github.com/sallyport/sallyport/internal/egress"
)

// FuzzParse: whatever the bytes, Parse gives a file or Errors, each with a place inside the bytes and one line of text;
// what it reads means the same when it is read again, and the schema admits it.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"*.bad.yml", "*.good.yml"} {
		for _, path := range fixtures(f, pattern, 4) {
			f.Add(read(f, path))
		}
	}
	schema := compileSchema(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parseFixture("fuzz.yml", data)
		if err != nil {
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 || file != nil {
				t.Fatalf("file %v with error %#v", file, err)
			}
			lines := bytes.Split(data, []byte("\n"))
			for _, e := range errs {
				if e.Line < 1 || e.Line > len(lines) {
					t.Fatalf("%v: the file has %d lines", e, len(lines))
				}
				if e.Column < 1 || utf8.Valid(data) && e.Column > utf8.RuneCount(lines[e.Line-1])+1 {
					t.Fatalf("%v: line %d has %d characters", e, e.Line, utf8.RuneCount(lines[e.Line-1]))
				}
				if e.Message == "" || strings.ContainsAny(e.Error()+e.Hint, "\n\r\x1b") {
					t.Fatalf("not one line of text: %q, hint %q", e.Error(), e.Hint)
				}
			}
			return
		}
		again, err := parseFixture("fuzz.yml", data)
		if err != nil || !reflect.DeepEqual(unpoliced(file), unpoliced(again)) {
			t.Fatalf("the second time: %v\n%+v\n%+v", err, file, again)
		}
		node, errs := load("fuzz.yml", data)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		if err := schema.Validate(instance(t, node)); err != nil {
			t.Fatalf("the schema refuses what the parser reads: %v", err)
		}
		in := file.Ingress
		if len(in.Issuers) == 0 || (in.Listen == "") != (in.Upstream == nil) || in.Listen == "" && len(in.asked()) == 0 || in.Policy == nil {
			t.Fatalf("read without what is required: %+v", in)
		}
		if f := in.ForwardAuth; f != nil && (f.Dialect == "" || len(f.From) == 0 && !strings.HasPrefix(f.Listen, "unix:")) {
			t.Fatalf("anybody may ask: %+v", f)
		}
		for _, i := range file.Ingress.Issuers {
			if len(i.Audience) == 0 || i.Issuer == "" {
				t.Fatalf("an issuer that accepts what it should not: %+v", i)
			}
		}
		places := map[string]bool{}
		for _, d := range file.Egress.Rules.Destinations {
			for _, h := range d.Hosts {
				host, port, err := net.SplitHostPort(h)
				if err != nil || host == "" || port == "" || strings.ContainsAny(h, "*@/ ") || places[h] {
					t.Fatalf("destination %+v", d)
				}
				places[h] = true
			}
			if d.Name == "" || len(d.Hosts) == 0 || len(d.Methods)+len(d.Paths) > 0 && !d.Originate && d.Protocol != "http" {
				t.Fatalf("a destination that opens more than it says: %+v", d)
			}
		}
		for i := range file.Egress.Rules.Destinations {
			file.Egress.Rules.Destinations[i].CA = ""                          // a file, which need not be there
			file.Egress.Rules.Destinations[i].Credential = credential.Config{} // it has files too
		}
		if _, err := egress.New(egress.Config{Rules: file.Egress.Rules, Limits: file.Egress.Limits, Audit: audit.New(io.Discard, audit.Config{})}); err != nil {
			t.Fatalf("the gate behind cannot be built from it: %v", err)
		}
		for _, p := range file.Ingress.TrustedProxies {
			if p.Bits() < 7 {
				t.Fatalf("believed proxies: %v", p)
			}
		}
	})
}
