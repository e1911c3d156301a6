package safedial

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// vector is a case of the shared vectors, which say themselves what they are.
type vector struct{ Host, Verdict, Quote, Entry string }

func vectors(t testing.TB, verdict string) (list []vector) {
	t.Helper()
	content, err := os.ReadFile("../testdata/vectors/addresses.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Vectors []vector }
	if err := json.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	for _, v := range file.Vectors {
		if v.Verdict == verdict {
			list = append(list, v)
		}
	}
	if len(list) < 10 {
		t.Fatalf("only %d vectors are %s", len(list), verdict)
	}
	return list
}

func TestSpecialAddresses(t *testing.T) {
	for _, v := range vectors(t, "special") {
		if reason := special(netip.MustParseAddr(v.Host)); v.Quote == "" || !strings.Contains(reason, v.Quote) {
			t.Errorf("%s: reason %q does not quote %q", v.Host, reason, v.Quote)
		}
	}
	// The controls: a guard that refuses them guards nothing, it only breaks.
	for _, v := range vectors(t, "ordinary") {
		if reason := special(netip.MustParseAddr(v.Host)); reason != "" {
			t.Errorf("%s is refused: %s", v.Host, reason)
		}
	}
	for _, v := range vectors(t, "ambiguous") {
		if ambiguous(v.Host) == "" {
			t.Errorf("%q is not refused for its spelling", v.Host)
		}
	}
}

func TestRegistryIsWhole(t *testing.T) {
	list, err := readBlocks(specialCSV)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Prefix]bool{}
	for _, b := range list {
		if seen[b.prefix] {
			t.Errorf("%s stands twice", b.prefix)
		}
		seen[b.prefix] = true
	}
	for _, broken := range []string{"10.0.0.0/8,Private-Use", "10.0.0.0/33,a,b", "ten,a,b", "10.0.0.1/8,a,b", "10.0.0.0/8,,b", "10.0.0.0/8,a,"} {
		if _, err := readBlocks(broken); err == nil {
			t.Errorf("%q is read", broken)
		}
	}
}

func TestAmbiguousHostsReachNoResolver(t *testing.T) {
	dns := newResolver(t, map[string][]string{})
	guard := &Guard{Resolver: dns.resolver()}
	for _, host := range []string{
		"0177.0.0.1", "0x7f.1", "0x7F000001", "2130706433", "127.1", "127.0.1", "127.0.0.01", "0", "0x", "1.2.3.4.5",
		"127.0.0.1.", "localhost.", "example.com.", "example..com", ".example.com", "exam ple.com", "example.com\x00.allowed.com",
		"example.com\r\n", "a@b", "a#b", "a\\b", "a/b", "a%00b", "ｅｘａｍｐｌｅ.com", "bücher.example", "１２７.0.0.1", "-a.com", "a-.com",
		strings.Repeat("a", 64) + ".com", strings.Repeat("a.", 127) + "com", "", "fe80::1%eth0", "[::1]", "999.1.1.1", "256.256.256.256", "a.0x1",
	} {
		_, err := guard.Dial(t.Context(), "tcp", net.JoinHostPort(host, "80"))
		var denied *DeniedError
		var unsplit *net.AddrError // brackets inside brackets are no host and port at all
		if !errors.As(err, &denied) && !errors.As(err, &unsplit) {
			t.Errorf("%q: %v", host, err)
		}
	}
	if n := dns.count(); n != 0 {
		t.Errorf("%d questions were asked", n)
	}
	for _, host := range []string{"example.com", "EXAMPLE.com", "xn--bcher-kva.example", "_dns.example.com", "a", "0x7g.example", "1.example", "93.184.216.34", "2606:4700::1111", "1e1"} {
		if reason := ambiguous(host); reason != "" {
			t.Errorf("%q: %s", host, reason)
		}
	}
}

func TestDialRefusesWhatNamesResolveTo(t *testing.T) {
	names := map[string][]string{}
	for i, v := range vectors(t, "special") {
		names[string(rune('a'+i%26))+string(rune('a'+i/26))+".example."] = []string{v.Host}
	}
	dns := newResolver(t, names)
	guard := &Guard{Resolver: dns.resolver(), Timeout: 2 * time.Second}
	for name, addresses := range names {
		_, err := guard.Client().Get("http://" + strings.TrimSuffix(name, ".") + "/")
		var denied *DeniedError
		if !errors.As(err, &denied) {
			t.Errorf("%s (%s): %v", name, addresses, err)
			continue
		}
		if want := netip.MustParseAddr(addresses[0]).Unmap(); denied.Address.Unmap() != want || denied.Host+"." != name {
			t.Errorf("%s: refused as %v", name, denied)
		}
	}
}

func TestDialRefusesLiterals(t *testing.T) {
	guard := &Guard{}
	for _, v := range vectors(t, "special") {
		_, err := guard.Client().Get("http://" + net.JoinHostPort(v.Host, "80") + "/")
		var denied *DeniedError
		if !errors.As(err, &denied) {
			t.Errorf("%s: %v", v.Host, err)
		}
	}
}

func TestAllowedDestinationIsResolvedOnceAndServed(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("compression was asked for: %q", r.Header.Get("Accept-Encoding"))
		}
		http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
	}))
	defer server.Close()
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1")
	t.Setenv("http_proxy", "http://192.0.2.1:1")
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	dns := newResolver(t, map[string][]string{"keys.example.": {"127.0.0.1"}})

	guard := &Guard{Allow: []string{"KEYS.example:" + port}, Resolver: dns.resolver()}
	client := guard.Client()
	defer client.CloseIdleConnections()
	response, err := client.Get("http://keys.example:" + port + "/")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusFound {
		t.Errorf("a redirect was followed: status %d", response.StatusCode)
	}
	if n := dns.asked("keys.example.", dnsmessage.TypeA); n != 1 {
		t.Errorf("the name was resolved %d times", n)
	}

	other := &Guard{Allow: []string{"keys.example:1", "other.example:" + port}, Resolver: dns.resolver()}
	_, err = other.Client().Get("http://keys.example:" + port + "/")
	var denied *DeniedError
	if !errors.As(err, &denied) {
		t.Errorf("an entry for another port opened this one: %v", err)
	}
	zero := &Guard{}
	if _, err = zero.Client().Get(server.URL); !errors.As(err, &denied) {
		t.Errorf("the zero guard dialled loopback: %v", err)
	}
}

// An answer that changes between check and use gains nothing: there is one answer.
func TestRebindingIsNotAsked(t *testing.T) {
	dns := newResolver(t, map[string][]string{"rebind.example.": {"127.0.0.1", "93.184.216.34"}})
	dns.mu.Lock()
	dns.rotate = true
	dns.mu.Unlock()
	guard := &Guard{Resolver: dns.resolver(), Timeout: time.Second}
	_, err := guard.Dial(t.Context(), "tcp4", "rebind.example:80")
	var denied *DeniedError
	if !errors.As(err, &denied) || denied.Code != CodeMixedAnswer && denied.Address != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("got %v", err)
	}
	if n := dns.asked("rebind.example.", dnsmessage.TypeA); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestOtherNetworksAreRefused(t *testing.T) {
	guard := &Guard{Allow: []string{"127.0.0.1:9"}}
	if c, err := guard.Dial(t.Context(), "udp", "127.0.0.1:9"); err == nil {
		c.Close()
		t.Error("UDP was dialled")
	}
	if _, err := guard.Dial(t.Context(), "tcp", "no port"); err == nil {
		t.Error("an address without port was dialled")
	}
}
