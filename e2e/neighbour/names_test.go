package main

import (
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// TestNames holds that a name with two addresses changes after the first answer, and back when told to.
func TestNames(t *testing.T) {
	z, err := newZone([]string{"one.lab=10.0.0.1", "two.lab=10.0.0.1", "two.lab=10.0.0.2"})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(name string, kind dnsmessage.Type) string {
		t.Helper()
		query := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
		}
		packed, err := query.Pack()
		if err != nil {
			t.Fatal(err)
		}
		b, err := z.answer(packed)
		if err != nil {
			t.Fatal(err)
		}
		var m dnsmessage.Message
		if err := m.Unpack(b); err != nil || m.ID != 7 {
			t.Fatalf("%v %v", m, err)
		}
		if len(m.Answers) == 0 {
			return m.RCode.String()
		}
		a := m.Answers[0].Body.(*dnsmessage.AResource).A
		return string([]byte{'0' + a[3]})
	}
	for i, step := range []struct {
		name string
		kind dnsmessage.Type
		want string
	}{
		{"one.lab.", dnsmessage.TypeA, "1"},
		{"one.lab.", dnsmessage.TypeA, "1"},
		{"TWO.lab.", dnsmessage.TypeAAAA, "RCodeSuccess"},
		{"two.lab.", dnsmessage.TypeA, "1"},
		{"two.lab.", dnsmessage.TypeA, "2"},
		{"reset.lab.", dnsmessage.TypeA, "RCodeNameError"},
		{"two.lab.", dnsmessage.TypeA, "1"},
	} {
		if got := ask(step.name, step.kind); got != step.want {
			t.Errorf("step %d, %s: %s, want %s", i, step.name, got, step.want)
		}
	}
	if _, err := newZone([]string{"no address"}); err == nil {
		t.Error("a name without an address was taken")
	}
}
