package state

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// childVariable is set in a process that is started to be killed.
const childVariable = "STATE_TEST_CHILD"

// beKilled revokes and uses as fast as it can, says what was acknowledged, and does not end. The value is what Open
// takes: "local PATH" or "nats URL,URL".
func beKilled(value string) {
	driver, where, _ := strings.Cut(value, " ")
	c := Config{Driver: driver, Path: where}
	if driver == NATS {
		c = Config{Driver: driver, URL: strings.Split(where, ",")}
	}
	s, err := Open(c, nil, nil)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	run := fmt.Sprint(os.Getpid(), "-", time.Now().UnixNano())
	var out sync.Mutex // a line is written whole, by one write(2)
	say := func(kind, name string) {
		out.Lock()
		defer out.Unlock()
		fmt.Println(kind, name)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				name := fmt.Sprint(run, "/", g, "/", n)
				if err := revokeToken(s, name); err == nil {
					say("revoked", name)
				} else if driver == Local {
					say("error", err.Error())
				}
				if first, err := s.Once(context.Background(), "dpop", name, hour()); err == nil && first {
					say("used", name)
				} else if driver == Local {
					say("error", fmt.Sprint("once: ", first, err))
				}
			}
		})
	}
	wg.Wait()
}

// killed runs a child until it has acknowledged a number of things, kills it in the middle of more, and returns all
// that it acknowledged.
func killed(t *testing.T, value string, after int) (revoked, used []string) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childVariable+"="+value)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	rest := bufio.NewReader(out)
	for n := 0; ; n++ {
		if n == after {
			if err := c.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		line, err := rest.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kind, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch kind {
		case "revoked":
			revoked = append(revoked, name)
		case "used":
			used = append(used, name)
		default:
			t.Errorf("the child says: %s", line)
		}
	}
	_ = c.Wait() // "signal: killed"
	return revoked, used
}

// A process that is killed in the middle of its work has lost nothing that it acknowledged, however often.
func TestKilled(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	var revoked, used []string
	for round := range 6 {
		r, u := killed(t, "local "+path, 50+rand.IntN(400))
		revoked, used = append(revoked, r...), append(used, u...)
		s := openTest(t, path)
		for _, name := range revoked {
			if !holds(s, name) {
				t.Fatalf("round %d: the revocation of %s was acknowledged, and is lost", round, name)
			}
		}
		for _, name := range used {
			if first, err := s.Once(t.Context(), "dpop", name, hour()); first || err != nil {
				t.Fatalf("round %d: %s was used, and is first again: %v", round, name, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d revocations, %d uses", len(revoked), len(used))
}
