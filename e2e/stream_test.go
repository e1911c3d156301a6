package e2e

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// zeros is a reader without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// TestStreams holds that both directions flow while the other is open, and that a client who goes is noticed.
func TestStreams(t *testing.T) {
	t.Parallel()
	as := misfitServer(t)
	p := startProduct(t, misfit(t, as, "honest", nil))
	token := as.token(t, "tester", misfitAudience, "use")

	t.Run("both ways", func(t *testing.T) {
		body, into := io.Pipe()
		req, err := http.NewRequest(http.MethodPost, p.url+"/both", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		go func() { _, _ = into.Write([]byte("a")) }() // the answer's header comes with the first byte
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		one := make([]byte, 1)
		for _, letter := range "abcdefgh" {
			if letter != 'a' {
				if _, err := into.Write([]byte{byte(letter)}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := io.ReadFull(resp.Body, one); err != nil || one[0] != byte(letter) {
				t.Fatalf("sent %q, got %q, %v", letter, one, err)
			}
		}
		into.Close()
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("behind the end: %q, %v", rest, err)
		}
	})

	t.Run("a large body", func(t *testing.T) {
		sent := make([]byte, 8<<20)
		if _, err := rand.Read(sent); err != nil {
			t.Fatal(err)
		}
		a := p.fetch(t, http.MethodPost, "/both", token, bytes.NewReader(sent))
		if a.status != 200 || !bytes.Equal(a.body, sent) {
			t.Errorf("status %d, %d of %d bytes came back", a.status, len(a.body), len(sent))
		}
		if e := p.entry(t, a.id()); e.outcome == nil || e.outcome.BytesIn != int64(len(sent)) || e.outcome.BytesOut < int64(len(sent)) {
			t.Errorf("outcome %+v", e.outcome)
		}
	})

	t.Run("too large a body", func(t *testing.T) {
		// A client that waits for leave to send is told in time; one that does not may find the connection closed.
		a := p.fetch(t, http.MethodPost, "/echo", token, bytes.NewReader(make([]byte, 10<<20+1)), "Expect", "100-continue")
		if a.status != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d", a.status)
		}
		// Nobody knows how long this one is until it is.
		endless := io.LimitReader(zeros{}, 10<<20+1)
		if a, err := p.try(http.MethodPost, "/echo", token, endless); err == nil && a.status != http.StatusRequestEntityTooLarge {
			t.Errorf("without a length: status %d %s", a.status, a.body)
		}
	})

	t.Run("the client goes", func(t *testing.T) {
		req, err := http.NewRequest(http.MethodGet, p.url+"/stream", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, len("data: 0\n\n"))); err != nil {
			t.Fatal(err)
		}
		id := resp.Header.Get("X-Request-Id")
		resp.Body.Close()
		eventually(t, 10*time.Second, "the stream has its outcome", func() bool { return p.entry(t, id).outcome != nil })
	})
	p.complete(t)
}

// TestStreamEndsWithItsToken holds that an open stream is worth no more than the token that opened it.
func TestStreamEndsWithItsToken(t *testing.T) {
	t.Parallel()
	as := misfitServer(t)
	p := startProduct(t, misfit(t, as, "honest", nil))
	for name, request := range map[string]string{
		"events":    "GET /stream HTTP/1.1\r\n",
		"websocket": "GET /socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			token := as.token(t, "hasty", misfitAudience, "use")
			_, claims := parts(t, token)
			expires := time.Unix(int64(claims["exp"].(float64)), 0)
			c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, request+"Host: misfit\r\nAuthorization: Bearer "+token+"\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(c)
			resp, err := http.ReadResponse(in, nil)
			if err != nil || resp.StatusCode >= 400 {
				t.Fatalf("%v, %v", resp, err)
			}
			_, err = io.Copy(io.Discard, in)
			if ended := time.Now(); errors.Is(err, os.ErrDeadlineExceeded) || ended.Before(expires) {
				t.Errorf("it ended at %v (%v), the token at %v", ended, err, expires)
			} else {
				t.Logf("it ended %v after its token", ended.Sub(expires).Round(time.Millisecond))
			}
			if e := p.entry(t, resp.Header.Get("X-Request-Id")); e.outcome == nil || e.outcome.Error != "expired" {
				t.Errorf("outcome %+v", e.outcome)
			}
		})
	}
}
