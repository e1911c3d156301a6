package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestPeerThatHasEnded holds that a connection outlives its maker without the maker's rights: another process may have
// been given its number since.
func TestPeerThatHasEnded(t *testing.T) {
	dir := t.TempDir()
	program, socket := filepath.Join(dir, "service"), filepath.Join(dir, "admin.sock")
	if out, err := exec.Command("go", "build", "-o", program, "./testdata/service").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ask := func(c net.Conn) error {
		r := httptest.NewRequest(http.MethodPost, "/reload", nil)
		return mayChange(r.WithContext(context.WithValue(r.Context(), peerKey{}, c)))
	}
	out, err := exec.Command(program, "leave", socket).Output()
	if err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Sscan(string(out), &child); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(child, syscall.SIGKILL) }() // it would end by itself soon
	left, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer left.Close()
	if err := ask(left); err == nil {
		t.Error("a peer that has ended may change the gate")
	}

	// A connection of our own stands for one of the service, which descends from us.
	mine, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if err := ask(accepted); err == nil || !strings.Contains(err.Error(), "the service may not") {
		t.Errorf("our own process counts as a part of what we started: %v", err)
	}
}
