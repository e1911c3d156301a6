package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/sallyport/sallyport/internal/policy"
)

var update = flag.Bool("update", false, "write the goldens, the messages of testdata/*.bad.yml and doc/configuration.md anew")

// testNow is the clock of the fixtures.
func testNow() time.Time { return time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC) }

func parseFixture(path string, data []byte) (*File, error) {
	return parse(source{name: filepath.Base(path), dir: "/etc/sallyport"}, data, testNow())
}

func fixtures(t testing.TB, pattern string, least int) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(paths) < least {
		t.Fatalf("%d fixtures %s, want at least %d (%v)", len(paths), pattern, least, err)
	}
	return paths
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestBad reads every file that must be refused. Its first lines say how: "# want:" an error, "# hint:" the hint of the
// one before, "# schema:" whether an editor that knows the schema would see that something is wrong, too.
func TestBad(t *testing.T) {
	schema := compileSchema(t)
	for _, path := range fixtures(t, "*.bad.yml", 50) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".bad.yml"), func(t *testing.T) {
			data := read(t, path)
			head, body := splitHead(data)
			if *update {
				data = withHead(t, schema, path, body)
				if err := os.WriteFile(path, data, 0o644); err != nil {
					t.Fatal(err)
				}
				head, _ = splitHead(data)
			}
			if got := headOf(t, schema, path, data); got != head {
				t.Errorf("got\n%swant\n%s", got, head)
			}
		})
	}
}

func splitHead(data []byte) (head string, body []byte) {
	for line := range bytes.Lines(data) {
		if !bytes.HasPrefix(line, []byte("# want: ")) && !bytes.HasPrefix(line, []byte("# hint: ")) && !bytes.HasPrefix(line, []byte("# schema: ")) {
			break
		}
		head += string(line)
	}
	return head, data[len(head):]
}

// headOf is what the first lines of a bad file must say.
func headOf(t *testing.T, schema *jsonschema.Schema, path string, data []byte) string {
	t.Helper()
	_, err := parseFixture(path, data)
	var errs Errors
	if !errors.As(err, &errs) || len(errs) == 0 {
		t.Fatalf("got error %v, want Errors", err)
	}
	var b strings.Builder
	for _, e := range errs {
		fmt.Fprintf(&b, "# want: %s\n", strings.TrimPrefix(e.Error(), filepath.Base(path)+":"))
		if e.Hint != "" {
			fmt.Fprintf(&b, "# hint: %s\n", e.Hint)
		}
	}
	node, loadErrs := load(path, data)
	switch {
	case loadErrs != nil:
		b.WriteString("# schema: cannot read it either\n")
	case schema.Validate(instance(t, node)) != nil:
		b.WriteString("# schema: refuses it too\n")
	default:
		b.WriteString("# schema: sees nothing\n")
	}
	return b.String()
}

// withHead puts the lines on top that say how the file is refused; they move the lines that they name.
func withHead(t *testing.T, schema *jsonschema.Schema, path string, body []byte) []byte {
	data := body
	for range 3 {
		data = append([]byte(headOf(t, schema, path, data)), body...)
	}
	return data
}

func TestGood(t *testing.T) {
	schema := compileSchema(t)
	for _, path := range fixtures(t, "*.good.yml", 4) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".good.yml"), func(t *testing.T) {
			data := read(t, path)
			file, err := parseFixture(path, data)
			if err != nil {
				t.Fatal(err)
			}
			node, errs := load(path, data)
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			if err := schema.Validate(instance(t, node)); err != nil {
				t.Errorf("the schema refuses what the parser reads: %v", err)
			}
			file.Ingress.Policy = nil // compiled from Routes, which are shown
			if file.Digest != sha256.Sum256(data) {
				t.Errorf("the digest is %q", file.Digest)
			}
			file.Digest = Digest{}
			var got bytes.Buffer
			enc := json.NewEncoder(&got)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			if err := enc.Encode(prune(file)); err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(path, ".yml")+".json", got.Bytes())
		})
	}
}

// golden compares with a file, or writes it.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is out of date (%v): look at the difference, then run go test -update; got\n%s", path, err, got)
	}
}

// prune makes a value easy to read in a golden: no zero fields, durations and addresses as they are written.
func prune(v any) any {
	switch v := v.(type) {
	case time.Duration:
		return v.String()
	case time.Time:
		return v.Format(time.RFC3339)
	case *url.URL:
		return v.String()
	case netip.Prefix:
		return v.String()
	}
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.Pointer:
		return prune(rv.Elem().Interface())
	case reflect.Slice:
		out := []any{}
		for i := range rv.Len() {
			out = append(out, prune(rv.Index(i).Interface()))
		}
		return out
	case reflect.Struct:
		out := map[string]any{}
		for i := range rv.NumField() {
			if f := rv.Type().Field(i); f.IsExported() && !rv.Field(i).IsZero() {
				out[f.Name] = prune(rv.Field(i).Interface())
			}
		}
		return out
	}
	return v
}

func compileSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource("sallyport.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("sallyport.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// instance is a node as a validator in an editor sees it.
func instance(t testing.TB, n *yaml.Node) any {
	t.Helper()
	data, err := json.Marshal(plainValue(n))
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSchemaIsOfItsDraft(t *testing.T) {
	meta, err := jsonschema.NewCompiler().Compile("https://json-schema.org/draft/2020-12/schema")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	if err := meta.Validate(doc); err != nil {
		t.Error(err)
	}
}

func TestRead(t *testing.T) {
	dir, least := t.TempDir(), read(t, "testdata/least.good.yml")
	path := filepath.Join(dir, "sallyport.yaml")
	if err := os.WriteFile(path, least, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, name := range []string{path, "sallyport.yaml"} {
		f, err := Read(name)
		if err != nil {
			t.Fatal(err)
		}
		if f.Path != path || f.Audit.File != filepath.Join(dir, "audit.jsonl") || f.Keys.Path != filepath.Join(dir, "keys") {
			t.Errorf("Read(%q): path %q, audit file %q, keys %q; want them in %q", name, f.Path, f.Audit.File, f.Keys.Path, dir)
		}
		if want := []string{path, f.Keys.Path, f.Audit.File, f.State.Path}; !reflect.DeepEqual(f.Sandbox.Deny, want) {
			t.Errorf("Read(%q): denied to the program: %q, want %q", name, f.Sandbox.Deny, want)
		}
	}
	if _, err := Read("absent.yaml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v, want os.ErrNotExist", err)
	}
	if _, err := Read(dir); err == nil || errors.As(err, new(Errors)) {
		t.Errorf("a folder: %v, want an error of the file system", err)
	}
	if err := os.WriteFile(path, append(least, "sandbox: {write: [.]}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "the program could write this file") {
		t.Errorf("a program that may write the file itself: %v", err)
	}
}

func TestSizeLimit(t *testing.T) {
	data := append(read(t, "testdata/least.good.yml"), bytes.Repeat([]byte("# more\n"), maxSize/7+1)...)
	if _, err := Parse("big.yml", "/", data[:maxSize]); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	path := filepath.Join(t.TempDir(), "big.yml")
	if err := os.WriteFile(path, data[:maxSize+1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Errorf("one byte more: %v", err)
	}
}

// TestErrorsAreBounded: a hostile file does not make us print without end, nor search without end.
func TestErrorsAreBounded(t *testing.T) {
	var b bytes.Buffer
	for i := range 20_000 {
		fmt.Fprintf(&b, "key%d: 1\n", i)
	}
	_, err := Parse("many.yml", "/", b.Bytes())
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != maxErrors+1 {
		t.Fatalf("%d errors, want %d", len(errs), maxErrors+1)
	}
	if want := "19902 more errors from here on"; errs[maxErrors].Message != want {
		t.Errorf("the last one says %q, want %q", errs[maxErrors].Message, want)
	}
}

func TestErrorsRead(t *testing.T) {
	errs := Errors{
		{File: "a.yml", Line: 1, Column: 1, Message: "one"},
		{File: "a.yml", Line: 2, Column: 3, Key: "ingress.listen", Message: "two", Hint: "three"},
	}
	if got, want := errs.Error(), "a.yml:1:1: one\na.yml:2:3: ingress.listen: two\n    hint: three"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestNoSecretIsRepeated: a secret that somebody wrote in the wrong place must not come back in the message about it.
func TestNoSecretIsRepeated(t *testing.T) {
	for _, path := range fixtures(t, "*.bad.yml", 50) {
		_, body := splitHead(read(t, path))
		_, err := parseFixture(path, body)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestWarnings(t *testing.T) {
	for _, c := range []struct{ name, with, want string }{
		{"expired route", "      public: {reason: r, owner: o, expires: 2027-01-02}\n", "12:46: ingress.routes[0].public.expires: expired: the route is closed since 2027-01-02"},
		{"last day", "      public: {reason: r, owner: o, expires: 2027-01-03}\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := strings.Replace(string(read(t, "testdata/least.good.yml")), "      scopes: [orders:read]\n", c.with, 1)
			f, err := parseFixture("x.yml", []byte(data))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimPrefix(f.Warnings.Error(), "x.yml:"); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if len(f.Ingress.Routes) != 1 || f.Ingress.Routes[0].Public == nil {
				t.Error("the route is gone: it must be there, and closed")
			}
		})
	}
}

// TestEngineWarnings: an engine of HTTP/1 that has no HTTP/1 to speak.
func TestEngineWarnings(t *testing.T) {
	for _, c := range []struct{ name, with, want string }{
		{"it speaks", "", ""},
		{"beside HTTP/2", "  protocols: [http/1.1, h2c]\n", ""},
		{"no caller does", "  protocols: [h2c]\n", "4:11: ingress.engine: says nothing here: callers do not speak HTTP/1"},
		{"the service does not", "  protocols: [http/1.1, h2c]\n  upstream: h2c://127.0.0.1:3000\n", "5:11: ingress.engine: says nothing here: to a service"},
		{"there is no service", "  forward_auth: {listen: 127.0.0.1:9191, dialect: nginx, from: [127.0.0.1/32]}\n", "4:11: ingress.engine: says nothing here: without an upstream"},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := strings.Replace(string(read(t, "testdata/least.good.yml")), "ingress:\n", "ingress:\n"+c.with+"  engine: http1\n", 1)
			if strings.Contains(c.with, "upstream") || strings.Contains(c.with, "forward_auth") {
				data = strings.Replace(data, "  upstream: http://127.0.0.1:3000\n", "", 1)
			}
			if strings.Contains(c.with, "forward_auth") {
				data = strings.Replace(data, "  listen: \":8080\"\n", "", 1)
			}
			f, err := parseFixture("x.yml", []byte(data))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimPrefix(f.Warnings.Error(), "x.yml:"); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if f.Ingress.Engine != "http1" {
				t.Errorf("the engine is %q", f.Ingress.Engine)
			}
		})
	}
}

// TestEgressWarnings: what is legal there and lets through more, or less, than one may think.
func TestEgressWarnings(t *testing.T) {
	const destination = "destinations: [{name: billing, hosts: [\"billing.internal:443\"], for: any}]"
	for _, c := range []struct{ name, with, want string }{
		{"nothing", "egress: {" + destination + "}\n", ""},
		{"report", "egress: {mode: report, " + destination + "}\n", "13:16: egress.mode: what no destination names is recorded, and passes"},
		{"no way out", "sandbox: {network: ports}\n", "13:20: sandbox.network: there is no egress.listen, so the program can connect to nobody"},
		{"no way to the way out", "egress: {listen: \"unix:out.sock\"}\nsandbox: {network: ports}\n", "14:20: sandbox.network: egress.listen is a unix socket, which the program cannot connect to"},
		{"a way out", "egress: {listen: 127.0.0.1:8081}\nsandbox: {network: ports}\n", ""},
		{"no sockets", "egress: {" + destination + "}\nsandbox: {network: none}\n", "14:20: sandbox.network: egress.destinations are for others: the program has no internet socket"},
	} {
		t.Run(c.name, func(t *testing.T) {
			least := string(read(t, "testdata/least.good.yml"))
			if c.name == "no sockets" {
				least = strings.Replace(least, "http://127.0.0.1:3000", "unix:///run/app/app.sock", 1)
			}
			f, err := parseFixture("x.yml", []byte(least+c.with))
			if err != nil {
				t.Fatal(err)
			}
			if got, _, _ := strings.Cut(strings.TrimPrefix(f.Warnings.Error(), "x.yml:"), "\n"); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestSocketByAnotherName: a runtime's socket is refused by every name that leads to it, whether it is there or not.
func TestSocketByAnotherName(t *testing.T) {
	dir := t.TempDir()
	for name, to := range map[string]string{"file": "/var/run/docker.sock", "folder": "/var/run", "chain": "folder", "harmless": "/run/postgresql"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	least := string(read(t, "testdata/least.good.yml"))
	for path, refused := range map[string]bool{
		"file": true, "folder/docker.sock": true, "chain/docker.sock": true, "folder/x/../docker.sock": true, "absent/other.sock": false, "harmless/.s.PGSQL.5432": false,
	} {
		with := least + "sandbox: {sockets: [\"" + path + "\"]}\n"
		_, err := Parse("x.yml", dir, []byte(with))
		if (err != nil) != refused || err != nil && !strings.Contains(err.Error(), "docker-socket") {
			t.Errorf("%s: %v", path, err)
		}
		if f, err := Parse("x.yml", dir, []byte(with+"egress: {unlock: [{name: docker-socket, reason: ours}]}\n")); err != nil || len(f.Egress.Rules.Sockets) != 1 {
			t.Errorf("%s, unlocked: %v", path, err)
		}
	}
}

// TestRoutesAreOfThePolicy: what Routes shows is what Policy decides by.
func TestRoutesAreOfThePolicy(t *testing.T) {
	f, err := parseFixture("x.yml", read(t, "testdata/least.good.yml"))
	if err != nil {
		t.Fatal(err)
	}
	s, d := f.Ingress.Policy.Select(policy.Request{Method: "GET", Path: "/orders/7"})
	if s.Route == nil || s.Route.Name != f.Ingress.Routes[0].Name {
		t.Errorf("selected %+v (%+v), want route %q", s.Route, d, f.Ingress.Routes[0].Name)
	}
}

func TestSuggest(t *testing.T) {
	words := []string{"audience", "issuer", "keys", "max_lifetime"}
	for got, want := range map[string]string{
		"audiance": "audience", "Audience": "audience", "maxLifetime": "max_lifetime", "max-life-time": "max_lifetime",
		"kyes": "keys", "isuer": "issuer", "something": "", "": "", strings.Repeat("a", 1000): "",
	} {
		if want != "" {
			want = "did you mean `" + want + "`?"
		}
		if s := suggest(got, words); s != want {
			t.Errorf("suggest(%q) = %q, want %q", got, s, want)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	path := filepath.Join("testdata", "design.good.yml")
	for b.Loop() {
		if _, err := Read(path); err != nil {
			b.Fatal(err)
		}
	}
}
