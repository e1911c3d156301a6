package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/sallyport/sallyport/internal/audit"
)

// query packs a question.
func query(t testing.TB, name string, kind dnsmessage.Type, edns int) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	if edns > 0 {
		var h dnsmessage.ResourceHeader
		h.SetEDNS0(edns, 0, false)
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ask puts a question over TCP.
func ask(t testing.TB, c net.Conn, name string, kind dnsmessage.Type) dnsmessage.Message {
	t.Helper()
	q := query(t, name, kind, 0)
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)); err != nil {
		t.Fatal(err)
	}
	return hear(t, c)
}

func hear(t testing.TB, c net.Conn) (m dnsmessage.Message) {
	t.Helper()
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	if err := m.Unpack(b); err != nil || m.ID != 4711 || !m.Response {
		t.Fatalf("%+v %v", m, err)
	}
	return m
}

// counter reads a metric's value by one of its labels' values.
func counter(t testing.TB, r *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			match := label == "" && f.GetName() == name
			for _, l := range m.GetLabel() {
				match = match || f.GetName() == name && l.GetValue() == label
			}
			if match {
				total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return total
}

// answerOf asks by Answer.
func answerOf(t testing.TB, s *stage, q []byte, tcp bool) (m dnsmessage.Message, size int) {
	t.Helper()
	b := s.proxy.Answer(t.Context(), q, tcp)
	if err := m.Unpack(b); err != nil || m.ID != 4711 || !m.Response || !m.RecursionAvailable {
		t.Fatalf("%+v %v", m, err)
	}
	return m, len(b)
}

func addresses(m dnsmessage.Message) (list []string) {
	for _, a := range m.Answers {
		switch b := a.Body.(type) {
		case *dnsmessage.AResource:
			list = append(list, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			list = append(list, netip.AddrFrom16(b.AAAA).String())
		}
	}
	return list
}

func TestAnswer(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{
		{Name: "a", For: anyone(), Hosts: []string{"both.com:443", "four.com:443", "single:80", "none.com:1", "mixed.com:443", "imds.com:80", "gone.com:443"}},
	}}, nil)
	s.dns.Set("both.com", "192.0.2.101", "192.0.2.102", "2001:db8::1")
	s.dns.Set("four.com", "192.0.2.3")
	s.dns.Set("single", "10.0.0.1")
	s.dns.Set("none.com")
	s.dns.Set("mixed.com", "93.184.216.34", "10.0.0.5")
	s.dns.Set("imds.com", "169.254.169.254")
	const (
		ok       = dnsmessage.RCodeSuccess
		nxdomain = dnsmessage.RCodeNameError
	)
	for _, c := range []struct {
		name  string
		kind  dnsmessage.Type
		rcode dnsmessage.RCode
		want  string
	}{
		{"both.com.", dnsmessage.TypeA, ok, "192.0.2.101 192.0.2.102"},
		{"BOTH.com.", dnsmessage.TypeA, ok, "192.0.2.101 192.0.2.102"},
		{"both.com.", dnsmessage.TypeAAAA, ok, "2001:db8::1"},
		{"four.com.", dnsmessage.TypeA, ok, "192.0.2.3"},
		{"four.com.", dnsmessage.TypeAAAA, ok, ""}, // it exists: NXDOMAIN would end musl's and glibc's search
		{"four.com.", 65, ok, ""},                  // HTTPS
		{"four.com.", 64, ok, ""},                  // SVCB
		{"four.com.", dnsmessage.TypeMX, ok, ""},
		{"four.com.", 255, ok, ""},
		{"single.", dnsmessage.TypeA, ok, "10.0.0.1"},
		{"single.cluster.local.", dnsmessage.TypeA, nxdomain, ""}, // what a search domain makes of it: the program goes on
		{"localhost.", dnsmessage.TypeA, ok, "127.0.0.1"},
		{"a.localhost.", dnsmessage.TypeAAAA, ok, "::1"},
		{"gone.com.", dnsmessage.TypeA, ok, "127.0.0.1"},
		{"denied.com.", dnsmessage.TypeA, nxdomain, ""},
		{"denied.com.", dnsmessage.TypeTXT, nxdomain, ""},
		{"sub.four.com.", dnsmessage.TypeA, nxdomain, ""},
		{"com.", dnsmessage.TypeA, nxdomain, ""},
		{".", dnsmessage.TypeNS, nxdomain, ""},
		{"1.2.0.192.in-addr.arpa.", dnsmessage.TypePTR, nxdomain, ""},
		{"mixed.com.", dnsmessage.TypeA, nxdomain, ""},
		{"imds.com.", dnsmessage.TypeA, nxdomain, ""},
	} {
		for _, tcp := range []bool{false, true} {
			m, _ := answerOf(t, s, query(t, c.name, c.kind, 0), tcp)
			if got := strings.Join(addresses(m), " "); m.RCode != c.rcode || got != c.want || m.Truncated {
				t.Errorf("%s %s: %s %q, want %s %q", c.name, c.kind, m.RCode, got, c.rcode, c.want)
			}
		}
	}
	for _, name := range []string{"denied.com", "sub.four.com", "com", "", "localhost", "single.cluster.local"} {
		if n := s.dns.Asked(name); n != 0 && name != "" {
			t.Errorf("%s was looked up", name)
		}
	}
	codes := map[string]string{}
	d, _ := s.audit.entries(t)
	for _, e := range d {
		if codes[e.Host] != "" && e.Host != "" {
			t.Errorf("%s is recorded twice", e.Host)
		}
		codes[e.Host] = e.Code
	}
	if codes["mixed.com"] != "mixed_answer" || codes["imds.com"] != "escape_target" || codes["denied.com"] != "name_not_allowed" || codes["single.cluster.local"] != "" {
		t.Errorf("recorded %v", codes)
	}
	s.dns.Set("none.com")
	if m, _ := answerOf(t, s, query(t, "none.com.", dnsmessage.TypeA, 0), true); m.RCode == nxdomain && len(m.Answers) > 0 {
		t.Errorf("%+v", m)
	}
}

func TestAnswerIsCutToWhatFits(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"many.com:443"}}}}, nil)
	var list []string
	for i := range 60 {
		list = append(list, fmt.Sprintf("198.51.100.%d", i+1))
	}
	s.dns.Set("many.com", list...)
	for _, c := range []struct {
		edns, want int
		tcp        bool
	}{{0, 0, false}, {4096, 60, false}, {100, 0, false}, {0, 60, true}} {
		q := query(t, "many.com.", dnsmessage.TypeA, c.edns)
		m, size := answerOf(t, s, q, c.tcp)
		if len(m.Answers) != c.want || m.Truncated != (c.want == 0) {
			t.Errorf("%+v: %d answers, truncated %t", c, len(m.Answers), m.Truncated)
		}
		if limit := max(512, min(c.edns, 1232)); !c.tcp && size > limit {
			t.Errorf("%+v: %d bytes", c, size)
		}
		if (c.edns > 0) != (len(m.Additionals) == 1) {
			t.Errorf("%+v: %+v", c, m.Additionals)
		}
	}
}

func TestMalformedQuestions(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"a.com:443"}}}}, nil)
	good := query(t, "a.com.", dnsmessage.TypeA, 512)
	change := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	for name, c := range map[string]struct {
		query []byte
		rcode dnsmessage.RCode
	}{
		"two questions":     {change(func(b []byte) []byte { b[5] = 2; return b }), dnsmessage.RCodeFormatError},
		"no question":       {change(func(b []byte) []byte { b[5] = 0; return b[:12] }), dnsmessage.RCodeFormatError},
		"another opcode":    {change(func(b []byte) []byte { b[2] |= 5 << 3; return b }), dnsmessage.RCodeNotImplemented},
		"another class":     {change(func(b []byte) []byte { b[12+7+3] = 3; return b }), dnsmessage.RCodeRefused},
		"cut":               {change(func(b []byte) []byte { return b[:len(b)-3] }), dnsmessage.RCodeFormatError},
		"said to be cut":    {change(func(b []byte) []byte { b[2] |= 2; return b }), dnsmessage.RCodeFormatError},
		"a name that loops": {change(func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }), dnsmessage.RCodeFormatError},
	} {
		if m, _ := answerOf(t, s, c.query, false); m.RCode != c.rcode || len(m.Answers) > 0 {
			t.Errorf("%s: %s", name, m.RCode)
		}
	}
	for name, b := range map[string][]byte{"nothing": nil, "an answer": change(func(b []byte) []byte { b[2] |= 0x80; return b }), "half a header": good[:7]} {
		if a := s.proxy.Answer(t.Context(), b, false); a != nil {
			t.Errorf("%s is answered", name)
		}
	}
	if n := s.dns.Asked(""); n != 0 {
		t.Errorf("%d questions went on", n)
	}
}

func TestQuestionsOverTCPAndUDP(t *testing.T) {
	s := newStage(t, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"a.com:443", "b.com:443"}}}}, nil)
	s.dns.Set("a.com", "192.0.2.101", "2001:db8::1")
	c := s.lead("192.0.2.53:53")
	// As glibc does with use-vc: both at once, and then byte by byte.
	var both []byte
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		q := query(t, "a.com.", kind, 1232)
		both = append(append(both, 0, byte(len(q))), q...)
	}
	c.Write(both)
	if got := addresses(hear(t, c)); fmt.Sprint(got) != "[192.0.2.101]" {
		t.Errorf("%v", got)
	}
	if got := addresses(hear(t, c)); fmt.Sprint(got) != "[2001:db8::1]" {
		t.Errorf("%v", got)
	}
	for _, b := range both {
		c.Write([]byte{b})
	}
	hear(t, c)
	hear(t, c)
	if n := s.dns.Asked("a.com"); n != 1 {
		t.Errorf("resolved %d times", n)
	}
	udp, err := net.Dial("udp", s.way(Attempt{Network: "udp", To: netip.MustParseAddrPort("192.0.2.53:53")}).Via.String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	udp.SetDeadline(time.Now().Add(10 * time.Second))
	udp.Write(query(t, "b.com.", dnsmessage.TypeA, 0))
	b := make([]byte, 600)
	n, err := udp.Read(b)
	var m dnsmessage.Message
	if err != nil || m.Unpack(b[:n]) != nil || fmt.Sprint(addresses(m)) != "[127.0.0.1]" {
		t.Errorf("%v %+v", err, m)
	}
}

func TestManyDeniedNamesDoNotFillTheLog(t *testing.T) {
	s := newStage(t, Rules{}, nil)
	for i := range 2000 {
		s.proxy.Answer(t.Context(), query(t, fmt.Sprintf("%d.evil.com.", i), dnsmessage.TypeA, 0), false)
	}
	d, _ := s.audit.entries(t)
	if len(d) < denialBurst || len(d) > denialBurst+200 {
		t.Errorf("%d records", len(d))
	}
	if n := counter(t, s.registry, "sallyport_egress_dns_answers_total", "name_not_allowed"); n != 2000 {
		t.Errorf("counted %v", n)
	}
}

// FuzzAnswer: whatever is asked, the answer is a message with the question's id that fits, and nothing is asked of
// anybody for a name that no destination has.
func FuzzAnswer(f *testing.F) {
	s := newStage(f, Rules{Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"a.com:443"}}}}, func(c *Config) { c.Audit = audit.New(io.Discard, audit.Config{}) })
	f.Add(query(f, "a.com.", dnsmessage.TypeA, 0))
	f.Add(query(f, "a.com.", dnsmessage.TypeAAAA, 4096))
	f.Add(query(f, "b.com.", dnsmessage.TypeTXT, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, tcp := range []bool{false, true} {
			a := s.proxy.Answer(t.Context(), b, tcp)
			if a == nil {
				continue
			}
			var m dnsmessage.Message
			if err := m.Unpack(a); err != nil || !m.Response || len(b) < 12 || m.ID != binary.BigEndian.Uint16(b) || !tcp && len(a) > mostUDP {
				t.Errorf("%d bytes, %+v, %v", len(a), m, err)
			}
			if len(m.Answers) > 0 && !strings.EqualFold(m.Questions[0].Name.String(), "a.com.") && !strings.HasSuffix(strings.ToLower(m.Questions[0].Name.String()), "localhost.") {
				t.Errorf("%+v", m)
			}
		}
		if s.dns.Asked("") != s.dns.Asked("a.com") {
			t.Error("another name was looked up")
		}
	})
}

// FuzzParseHost: a host that is read has one spelling, which is read as itself.
func FuzzParseHost(f *testing.F) {
	for _, seed := range []string{"example.com:443", "[::1]:443", "127.0.0.1:80", "[example.com]:443", "127.1:80", "a:b:c", "[::ffff:127.0.0.1]:80", "EXAMPLE.com:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseHost(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(h.Name, "\x00 \t\r\n@/\\#?%[]") || h.Name == "" || h.Port == 0 || h.Name != strings.ToLower(h.Name) {
			t.Errorf("%q is read as %+v", s, h)
		}
		again, err := parseHost(h.String())
		if err != nil || again != h {
			t.Errorf("%q is read as %+v, and that as %+v, %v", s, h, again, err)
		}
		if _, err := netip.ParseAddr(h.Name); err == nil {
			return
		}
		if last := h.Name[strings.LastIndexByte(h.Name, '.')+1:]; strings.Trim(last, "0123456789") == "" {
			t.Errorf("%q is a name to us, and an address to others", s)
		}
	})
}

func TestReportModeLooksNothingUpWithoutRecord(t *testing.T) {
	s := newStage(t, Rules{Report: true}, nil)
	const many = 2 * denialBurst
	for i := range many {
		name := fmt.Sprintf("%d.new.com", i)
		s.dns.Set(name, "192.0.2.1")
		answerOf(t, s, query(t, name+".", dnsmessage.TypeA, 0), false)
	}
	if d, _ := s.audit.entries(t); len(d) != many {
		t.Errorf("%d names were looked up, %d are on record", many, len(d))
	}
	s.audit.fail(errors.New("no space left"))
	s.dns.Set("unwritten.com", "192.0.2.1")
	for range 2 {
		m, _ := answerOf(t, s, query(t, "unwritten.com.", dnsmessage.TypeA, 0), false)
		if m.RCode == dnsmessage.RCodeSuccess || s.dns.Asked("unwritten.com") > 0 {
			t.Errorf("looked up without a record: %v", m.RCode)
		}
	}
}

func TestRefusedNamesAreOnRecordAsRefused(t *testing.T) {
	for _, report := range []bool{false, true} {
		s := newStage(t, Rules{Report: report, Destinations: []Destination{{Name: "a", For: anyone(), Hosts: []string{"imds.com:80", "bank.com:80"}}}}, nil)
		s.dns.Set("imds.com", "169.254.169.254")
		for n, c := range []struct{ name, code string }{
			{"imds.com.", "escape_target"}, {"a b.com.", "ambiguous_host"}, {"secret\x00.com.", "ambiguous_host"},
			{"127.1.", "ambiguous_host"}, {".", "ambiguous_host"}, {"ban\u212a.com.", "ambiguous_host"}, // KELVIN SIGN, lower case "k"
		} {
			if m, _ := answerOf(t, s, query(t, c.name, dnsmessage.TypeA, 0), true); m.RCode != dnsmessage.RCodeNameError {
				t.Errorf("%q: %v", c.name, m.RCode)
			}
			if d := s.decision(n); d.Decision != "deny" || d.Code != c.code {
				t.Errorf("report %t, %q: %+v", report, c.name, d)
			}
		}
		s.stop()
	}
}
