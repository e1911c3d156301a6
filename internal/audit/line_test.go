package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sallyport/sallyport/identity"
	"github.com/sallyport/sallyport/internal/policy"
)

var testTime = time.Date(2027, 3, 1, 13, 0, 0, 123_456_789, time.FixedZone("", 3600))

// decided is what a real policy says about a caller on its one route.
func decided(t testing.TB, caller *identity.Caller) policy.Decision {
	t.Helper()
	p, err := policy.New([]policy.Route{{Name: "read-order", Match: "GET /orders/{id}", Scopes: []string{"orders:read"}}})
	if err != nil {
		t.Fatal(err)
	}
	r := policy.Request{Method: "GET", Path: "/orders/1", Host: "api.example.com"}
	s, d := p.Select(r)
	if d.Code != "" && !d.Allowed() {
		t.Fatalf("no route: %+v", d)
	}
	return p.Decide(s, r, caller, testTime)
}

func caller() *identity.Caller {
	return &identity.Caller{
		Issuer: "https://auth.example.com", Subject: "alice", Client: "shop", TokenID: "t-1", Scopes: []string{"orders:read"},
		Transaction: "req-0", Workloads: []string{"gateway", "cart"},
		Expires: testTime.Add(time.Hour), Claims: map[string]any{"tenant": "acme", "email": "alice@example.com"},
	}
}

func fullRecord(t testing.TB) Record {
	d := decided(t, caller())
	if !d.Allowed() {
		t.Fatalf("%+v", d)
	}
	d.Code, d.Reason = "allowed", "has orders:read"
	return Record{
		ID: "req-1", Time: testTime, Point: "ingress", Decision: d, Method: "GET", Path: "/orders/1", Host: "api.example.com",
		Source: netip.MustParseAddr("192.0.2.7"), Caller: caller(), Detail: map[string]any{"attempt": 1},
	}
}

// lines returns what was written, each line parsed; what does not parse fails the test.
func lines(t testing.TB, data []byte) []map[string]any {
	t.Helper()
	var all []map[string]any
	for _, text := range bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")) {
		m := parseLine(t, string(text))
		if m["kind"] != "checkpoint" {
			all = append(all, m)
		}
	}
	return all
}

func parseLine(t testing.TB, text string) (m map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	return m
}

var placeAtEnd = regexp.MustCompile(`(?m),"chain":"[^"]*","n":[0-9]+,"hash":"[^"]*"}$`)

// unsealed is what was written before there were chains: lines without their place, and no checkpoint.
func unsealed(data string) string {
	var b strings.Builder
	for text := range strings.Lines(placeAtEnd.ReplaceAllString(data, "}")) {
		if !strings.Contains(text, `"kind":"checkpoint"`) {
			b.WriteString(text)
		}
	}
	return b.String()
}

func TestLines(t *testing.T) {
	var b bytes.Buffer
	l := New(&b, Config{Claims: []string{"tenant", "absent"}})
	denied := policy.Deny("insufficient_scope", "lacks orders:write")
	for _, r := range []Record{
		fullRecord(t),
		{ID: "req-2", Time: testTime, Point: "ingress", Decision: denied, Method: "POST", Path: "/orders"},
		{ID: "req-3", Time: testTime, Point: "ingress"},
		{ID: "run-1", Time: testTime, Point: "run", Decision: policy.Decision{Code: "started"}, Detail: map[string]any{
			"enforced": []string{"landlock", "seccomp"}, "limits": struct {
				Files uint64 `json:"files"`
			}{math.MaxUint64}, "error": errors.New("none"), "nothing": nil, "ratio": 0.5, "list": []any{true, int64(-1)},
		}},
	} {
		if err := l.Record(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []Outcome{
		{ID: "req-1", Time: testTime, Status: 200, BytesIn: 1, BytesOut: 1 << 40, Duration: 1234567 * time.Nanosecond},
		{ID: "req-2", Time: testTime, Error: "the service closed the connection"},
	} {
		if err := l.Outcome(o); err != nil {
			t.Fatal(err)
		}
	}
	const start = `{"v":1,"time":"2027-03-01T12:00:00.123456Z","kind":`
	want := start + `"decision","id":"req-1","point":"ingress","decision":"allow","code":"allowed","reason":"has orders:read","route":"read-order",` +
		`"method":"GET","path":"/orders/1","host":"api.example.com","source":"192.0.2.7","issuer":"https://auth.example.com","subject":"alice",` +
		`"client":"shop","token_id":"t-1","claims":{"tenant":"acme"},"transaction":"req-0","workloads":["gateway","cart"],"detail":{"attempt":1}}` + "\n" +
		start + `"decision","id":"req-2","point":"ingress","decision":"deny","code":"insufficient_scope","reason":"lacks orders:write","method":"POST","path":"/orders"}` + "\n" +
		start + `"decision","id":"req-3","point":"ingress","decision":"deny"}` + "\n" +
		start + `"decision","id":"run-1","point":"run","code":"started","detail":{"enforced":["landlock","seccomp"],"error":"none","limits":{"files":18446744073709551615},"list":[true,-1],"nothing":null,"ratio":0.5}}` + "\n" +
		start + `"outcome","id":"req-1","status":200,"bytes_in":1,"bytes_out":1099511627776,"duration_ms":1.235}` + "\n" +
		start + `"outcome","id":"req-2","status":0,"bytes_in":0,"bytes_out":0,"duration_ms":0.000,"error":"the service closed the connection"}` + "\n"
	if got := unsealed(b.String()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestNoID(t *testing.T) {
	var b bytes.Buffer
	l := New(&b, Config{})
	if l.Record(Record{}) == nil || l.Outcome(Outcome{}) == nil || b.Len() != 0 {
		t.Error("a record without id was accepted")
	}
}

// doc/audit.md lists the members that lines have: all of them, and no other.
func TestDocumentedSchema(t *testing.T) {
	data, err := os.ReadFile("../../doc/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|")
	documented := map[string]map[string]bool{}
	for _, section := range strings.Split(string(data), "\n## ")[1:] {
		title, _, _ := strings.Cut(section, "\n")
		members := map[string]bool{}
		for _, m := range row.FindAllStringSubmatch(section, -1) {
			members[m[1]] = true
		}
		documented[title] = members
	}
	var record, outcome, gap line
	full := fullRecord(t)
	full.Detail["x"] = 1
	record.record(full, []string{"tenant"})
	outcome.outcome(Outcome{ID: "1", Error: "x", Detail: map[string]any{"window": 2}})
	gap.gap(fault{err: errors.New("x")}, testTime)
	digest := full
	digest.Caller = &identity.Caller{Issuer: "i", Digest: "d"}
	var nameless line
	nameless.record(digest, nil)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	for range 2 { // the second sees the first
		l := mustOpen(t, Config{File: path, Sign: func() identity.Key { return testKey }})
		if err := l.Record(full); err != nil {
			t.Fatal(err)
		}
		mustClose(t, l)
	}
	sealed := everything(t, read(t, path))
	written := map[string]map[string]any{"decision": sealed[1], "outcome": lines(t, outcome.b)[0], "gap": lines(t, gap.b)[0], "checkpoint": {}}
	maps.Copy(written["decision"], lines(t, record.b)[0])
	maps.Copy(written["decision"], lines(t, nameless.b)[0])
	for _, m := range sealed {
		if m["kind"] == "checkpoint" {
			maps.Copy(written["checkpoint"], m)
		}
	}
	for kind, members := range written {
		for m := range members {
			if !documented["Every line"][m] && !documented["Kind `"+kind+"`"][m] {
				t.Errorf("kind %s: %s is not documented", kind, m)
			}
		}
		for m := range documented["Kind `"+kind+"`"] {
			if _, ok := members[m]; !ok {
				t.Errorf("kind %s: %s is documented and not written", kind, m)
			}
		}
	}
	for m := range documented["Every line"] {
		if _, ok := sealed[1][m]; !ok {
			t.Errorf("%s is documented for every line and not written", m)
		}
	}
	if !documented["Every line"]["v"] {
		t.Error("no table of what every line has")
	}
}

const jwt = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl-_"

func TestRedact(t *testing.T) {
	encode := func(s string) string { // every character
		var b strings.Builder
		for i := range len(s) {
			b.WriteString("%")
			b.WriteByte(hex[s[i]>>4])
			b.WriteByte(hex[s[i]&15])
		}
		return b.String()
	}
	spaced := "eyAiYWxnIjogIkVTMjU2IiB9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
	for _, test := range []struct{ in, want string }{
		{"", ""},
		{"/orders/1", "/orders/1"},
		{jwt, redactedMark},
		{"/x/" + jwt + "/y", "/x/" + redactedMark + "/y"},
		{"Bearer " + jwt + ", Bearer " + jwt, "Bearer " + redactedMark + ", Bearer " + redactedMark},
		{"x" + jwt, "x" + redactedMark},
		{"/x/" + strings.ReplaceAll(jwt, ".", "%2E") + "?", "/x/" + redactedMark + "?"},
		{strings.ReplaceAll(jwt, ".", "%2e"), redactedMark},
		{strings.ReplaceAll(jwt, ".", "%252E"), redactedMark},
		{"a=" + encode(jwt) + "&b=1", "a=" + redactedMark + "&b=1"},
		{"%65y" + jwt[2:], redactedMark},
		{"%2525256" + "5y" + jwt[2:], redactedMark},
		{jwt[:strings.LastIndex(jwt, ".")+1], redactedMark}, // alg none
		{jwt + "==", redactedMark},
		{"eyJhbGciOiJkaXIifQ..aXY.Y2lwaGVy.dGFn", redactedMark}, // JWE
		{"eyJ.x", redactedMark},
		{"eyJhbGciOiJFUzI1NiJ9", "eyJhbGciOiJFUzI1NiJ9"}, // a header alone is no credential
		{spaced, redactedMark},
		{"t=" + spaced, "t=" + redactedMark},
		{"ewogImFsZyI6ICJFUzI1NiJ9." + strings.Repeat("a", 20) + ".sig", redactedMark},
		{"newkeymanagement-service.production-environment.svc", "newkeymanagement-service.production-environment.svc"},
		{"ewok.forest.example.com", "ewok.forest.example.com"},
		{"100%", "100%"},
		{"%zz%6", "%zz%6"},
		{"%65yes.no", "%65yes.no"},
	} {
		if got := redact(test.in); got != test.want {
			t.Errorf("%s\ngot  %s\nwant %s", test.in, got, test.want)
		}
	}
	// linear, or a long path would be a way to keep us busy
	for _, s := range []string{"eyJ", "ewo.", "ewo", "%65", "eyJ/", ".ewo"} {
		long := strings.Repeat(s, 1<<20/len(s))
		start := time.Now()
		redact(long)
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("a MiB of %q took %v", s, d)
		}
	}
}

// No field lets a token through.
func TestNoTokenInAnyField(t *testing.T) {
	var b bytes.Buffer
	l := New(&b, Config{Claims: []string{"c"}})
	in := "before " + jwt + " after"
	r := Record{
		ID: in, Time: testTime, Point: in, Decision: policy.Decision{Code: policy.Code(in), Reason: in, Route: in}, Method: in, Path: in, Host: in,
		Source: netip.MustParseAddr("fe80::1").WithZone(jwt),
		Caller: &identity.Caller{Issuer: in, Subject: in, Client: in, TokenID: in, Transaction: in, Workloads: []string{in, in}, Claims: map[string]any{"c": []any{in, map[string]any{in: in}}}},
		Detail: map[string]any{in: in, "list": []string{in}, "struct": struct{ A *string }{&in}, "error": errors.New(in), "raw": json.RawMessage(`{"x":"` + in + `"}`)},
	}
	if err := l.Record(r); err != nil {
		t.Fatal(err)
	}
	if err := l.Outcome(Outcome{ID: in, Error: in}); err != nil {
		t.Fatal(err)
	}
	lines(t, b.Bytes())
	for _, part := range strings.Split(jwt, ".") {
		if bytes.Contains(b.Bytes(), []byte(part)) {
			t.Errorf("%s is in %s", part, &b)
		}
	}
}

func TestTruncated(t *testing.T) {
	for _, unit := range []string{"a", "\x00", "\U0001f512", "\xff", "%41", "é"} {
		long := strings.Repeat(unit, 100_000)
		deep := any(long)
		for range 100 {
			deep = map[string]any{"d": deep}
		}
		wide := map[string]any{}
		for i := range 1000 {
			wide[strings.Repeat("k", i)] = long
		}
		r := Record{
			ID: long, Time: testTime, Point: long, Decision: policy.Decision{Code: policy.Code(long), Reason: long, Route: long}, Method: long, Path: long,
			Host: long, Source: netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
			Caller: &identity.Caller{Issuer: long, Subject: long, Client: long, TokenID: long, Transaction: "x" + long, Workloads: slices.Repeat([]string{long}, 20), Claims: map[string]any{"c": long, "d": long, "e": deep}},
		}
		for _, detail := range []map[string]any{wide, {"deep": deep}, {long: long}, {"a": long, "b": long}} {
			var e line
			r.Detail = detail
			e.record(r, []string{"c", "d", "e"})
			m := lines(t, e.b)[0]
			if len(e.b) > maxLine {
				t.Errorf("%q: a line of %d bytes", unit, len(e.b))
			}
			if p, _ := m["path"].(string); !strings.HasSuffix(p, truncatedMark) || !utf8.ValidString(p) {
				t.Errorf("%q: path %.20q", unit, p)
			}
		}
		var e line
		if e.outcome(Outcome{ID: long, Error: long}); len(e.b) > maxLine {
			t.Errorf("%q: an outcome of %d bytes", unit, len(e.b))
		}
	}
}

func TestEscaped(t *testing.T) {
	var e line
	in := "a\x00\x1b[31m\x7f\u009b\u202e\u2028\ufeff\"\\\n\t\xff日本\U0001f512"
	e.outcome(Outcome{ID: "1", Error: in})
	if want := `"error":"a\u0000\u001b[31m\u007f\u009b\u202e\u2028\ufeff\"\\\u000a\u0009` + "\ufffd日本\U0001f512" + `"`; !strings.Contains(string(e.b), want) {
		t.Errorf("%s\nhas no %s", e.b, want)
	}
	if got, want := lines(t, e.b)[0]["error"], strings.ToValidUTF8(in, "\ufffd"); got != want {
		t.Errorf("read back %q, want %q", got, want)
	}
}

// Whatever goes in, out comes one bounded line of JSON that holds no token and nothing that a terminal acts on.
func FuzzLine(f *testing.F) {
	f.Add("/orders/", jwt, "/x", "reason")
	f.Add("\x1b]0;x\x07", "eyJ.", "\xff\"\\", "%2565yJ")
	f.Add("%", jwt, "%2", "ewo")
	f.Fuzz(func(t *testing.T, before, token, after, other string) {
		if len(before)+len(token)+len(after)+len(other) > 20_000 {
			return
		}
		in := before + "/" + jwt + "/" + after
		var e line
		e.record(Record{
			ID: other, Time: testTime, Path: in, Host: token, Method: other,
			Detail: map[string]any{before: in, after: []any{token, map[string]any{other: token}}},
			Caller: &identity.Caller{Issuer: token, Claims: map[string]any{"c": in}},
		}, []string{"c"})
		if !json.Valid(e.b) || !utf8.Valid(e.b) {
			t.Fatalf("not JSON: %q", e.b)
		}
		if bytes.IndexByte(e.b, '\n') != len(e.b)-1 || len(e.b) > maxLine {
			t.Errorf("not one bounded line: %q", e.b)
		}
		for _, r := range string(e.b[:len(e.b)-1]) {
			if r < 0x20 || isUnsafe(r) {
				t.Errorf("%U is in the line", r)
			}
		}
		if bytes.Contains(e.b, []byte(jwt[strings.LastIndex(jwt, ".")+1:])) && !strings.Contains(before+token+after+other, "c2lnbmF0dXJl") {
			t.Errorf("the token's signature is in %s", e.b)
		}
	})
}

// FuzzPlain holds that what is written as it is would be written so in any case.
func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "GET", "/v1/things/acme-17", "eyJhbGciOiJub25lIn0.e30.", "ew", "e", "%65yJ", "a\"b", "\x7f", "\u202e", strings.Repeat("a", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var fast, slow line
		fast.quote(s, shortText)
		slow.escape(s, shortText)
		if string(fast.b) != string(slow.b) {
			t.Errorf("%q is written %s, and with care %s", s, fast.b, slow.b)
		}
	})
}

// FuzzTime holds that a time is written as time.Time.AppendFormat would.
func FuzzTime(f *testing.F) {
	f.Add(int64(0), int64(0))
	f.Add(int64(1803902400), int64(999_999_999))
	f.Add(int64(-62167219201), int64(1))
	f.Add(int64(253402300800), int64(0))
	f.Fuzz(func(t *testing.T, sec, nsec int64) {
		at := time.Unix(sec, nsec)
		if got, want := string(appendTime(nil, at)), at.UTC().Format(timePattern); got != want {
			t.Errorf("%d, %d: %s, want %s", sec, nsec, got, want)
		}
	})
}
