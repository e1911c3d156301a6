package sallytest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/internal/sallytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func get(t *testing.T, url string, into any) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode == 200 {
		if err := json.NewDecoder(response.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	return response.StatusCode
}

// A library that knows nothing of ours verifies the tokens with what the issuer publishes.
func TestIssuer(t *testing.T) {
	i := sallytest.NewIssuer(t)
	clock := sallytest.NewClock(time.Unix(1_800_000_000, 0))
	i.Now = clock.Now
	fetch := func() *jose.JSONWebKeySet {
		var metadata struct {
			Issuer  string `json:"issuer"`
			JWKSURI string `json:"jwks_uri"`
		}
		get(t, i.URL+sallytest.PathOAuth, &metadata)
		if metadata.Issuer != i.URL {
			t.Fatalf("issuer %s, want %s", metadata.Issuer, i.URL)
		}
		set := new(jose.JSONWebKeySet)
		get(t, metadata.JWKSURI, set)
		return set
	}
	verify := func(token, algorithm string) (map[string]any, error) {
		signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(algorithm)})
		if err != nil {
			t.Fatal(err)
		}
		data, err := signed.Verify(fetch())
		if err != nil {
			return nil, err
		}
		var claims map[string]any
		return claims, json.Unmarshal(data, &claims)
	}
	for _, algorithm := range []string{"ES256", "ES384", "ES512", "EdDSA", "RS256", "PS256"} {
		claims, err := verify(i.TokenWith(algorithm, map[string]any{"tenant": "acme", "jti": nil}), algorithm)
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		if _, ok := claims["jti"]; ok || claims["tenant"] != "acme" || claims["iss"] != i.URL || claims["exp"] != float64(1_800_000_300) {
			t.Errorf("%s: claims %v", algorithm, claims)
		}
	}
	old, oldID := i.Token(nil), i.KeyID("ES256")
	newID := i.Rotate("ES256")
	if newID == oldID || i.KeyID("ES256") != newID {
		t.Errorf("rotated from %s to %s", oldID, newID)
	}
	for name, token := range map[string]string{"old": old, "new": i.Token(nil)} {
		if _, err := verify(token, "ES256"); err != nil {
			t.Errorf("%s key after the rotation: %v", name, err)
		}
	}
	i.Withdraw(oldID)
	if _, err := verify(old, "ES256"); err == nil {
		t.Error("the withdrawn key is published still")
	}
	before := i.Fetches(sallytest.PathJWKS)
	i.Fail(503)
	if status := get(t, i.URL+sallytest.PathJWKS, nil); status != 503 {
		t.Errorf("status %d, want 503", status)
	}
	i.Fail(0)
	if n := i.Fetches(sallytest.PathJWKS); n != before+1 {
		t.Errorf("%d fetches, want %d", n, before+1)
	}
	i.Publish(`{"kty":"oct","k":"AAAA"}`)
	if keys := string(i.JWKS()); !strings.Contains(keys, `"oct"`) {
		t.Errorf("published %s", keys)
	}
}

func TestRecorder(t *testing.T) {
	r := sallytest.NewRecorder(t)
	r.Untouched(t)
	c, err := net.Dial("tcp", r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const sent = "POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	io.WriteString(c, sent)
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(got), "200 OK"); n != 2 || r.Requests() != 2 || r.Connections() != 1 {
		t.Errorf("%d answers, %d requests, %d connections: %s", n, r.Requests(), r.Connections(), got)
	}
	if string(r.Raw()) != sent || r.Bytes() != len(sent) {
		t.Errorf("recorded %q", r.Raw())
	}
	r.Reset()
	if r.Bytes() != 0 || r.Requests() != 0 {
		t.Error("reset, and not empty")
	}
}

// What is no HTTP is recorded too: the reason for this type.
func TestRecorderRecordsGarbage(t *testing.T) {
	r := sallytest.NewRecorderFunc(t, func(w io.Writer, _ *http.Request) { w.(io.Closer).Close() })
	for n, sent := range []string{"\x16\x03\x01 not http\r\n\r\n and more", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
		r.Reset()
		c, err := net.Dial("tcp", r.Addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, sent)
		c.(*net.TCPConn).CloseWrite()
		io.ReadAll(c)
		c.Close()
		if string(r.Raw()) != sent || r.Requests() != n {
			t.Errorf("recorded %q and %d requests of %q", r.Raw(), r.Requests(), sent)
		}
	}
}

func TestInSubprocess(t *testing.T) {
	if !sallytest.InSubprocess(t, "SALLYTEST_EXTRA=1") {
		if os.Getenv("SALLYTEST_EXTRA") != "" {
			t.Error("the parent has the subprocess's environment")
		}
		return
	}
	if os.Getenv("SALLYTEST_EXTRA") != "1" {
		t.Error("env was not passed on")
	}
	fmt.Println("pid", os.Getpid())
	t.Run("sub", func(t *testing.T) {})
}

// What the subprocess says is the verdict: seen from outside, in a process whose only test is TestVerdict.
func TestInSubprocessVerdict(t *testing.T) {
	for do, want := range map[string]string{"skip": "--- SKIP: TestVerdict", "fail": "--- FAIL: TestVerdict", "exit": "without a verdict", "pass": "--- PASS: TestVerdict"} {
		c := exec.Command(os.Args[0], "-test.run=^TestVerdict$", "-test.v")
		c.Env = append(os.Environ(), "SALLYTEST_VERDICT="+do)
		output, err := c.CombinedOutput()
		if good := do == "skip" || do == "pass"; (err == nil) != good || !strings.Contains(string(output), want) {
			t.Errorf("%s: %v\n%s", do, err, output)
		}
	}
}

func TestVerdict(t *testing.T) {
	do := os.Getenv("SALLYTEST_VERDICT")
	if do == "" || !sallytest.InSubprocess(t) {
		return
	}
	switch do {
	case "skip":
		t.Skip("asked to")
	case "fail":
		t.Fatal("asked to")
	case "exit":
		os.Exit(0)
	}
}

func TestClock(t *testing.T) {
	start := time.Unix(1, 0)
	c := sallytest.NewClock(start)
	c.Advance(time.Hour)
	c.Advance(-time.Minute)
	if got := c.Now().Sub(start); got != 59*time.Minute {
		t.Errorf("advanced %v", got)
	}
}
