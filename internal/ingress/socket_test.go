package ingress

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport/internal/sallytest"
)

// echo is a service that speaks WebSocket, by a library that knows nothing of ours.
func echo(t *testing.T) *httptest.Server {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	}))
	t.Cleanup(service.Close)
	return service
}

func (s *stage) socket(ctx context.Context, token string) (*websocket.Conn, *http.Response, error) {
	h := http.Header{}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	return websocket.Dial(ctx, "ws://"+s.addr+"/socket", &websocket.DialOptions{
		HTTPHeader: h, HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
}

func say(t *testing.T, c *websocket.Conn, text string) {
	t.Helper()
	if err := c.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if _, b, err := c.Read(t.Context()); err != nil || string(b) != text {
		t.Fatalf("got %q, %v", b, err)
	}
}

// A WebSocket is let through by its token at the upgrade, counted, and ends with the token (H23).
func TestWebSocket(t *testing.T) {
	service := echo(t)
	s := open(t, func(s *stage) {
		s.config.Upstream = mustURL(t, service.URL)
		s.leeway = 100 * time.Millisecond
	})
	if c, res, err := s.socket(t.Context(), ""); err == nil || res.StatusCode != 401 {
		t.Errorf("without a token: %v, %v", c, err)
	}
	c, _, err := s.socket(t.Context(), s.token(""))
	if err != nil {
		t.Fatal(err)
	}
	say(t, c, "hello")
	say(t, c, strings.Repeat("long ", 4000))
	c.Close(websocket.StatusNormalClosure, "")
	_, o := s.settled(2)
	if o[1].Status != 101 || o[1].Error != "" || o[1].BytesIn < 20005 || o[1].BytesOut < 20005 {
		t.Errorf("outcome %+v", o[1])
	}
	c, _, err = s.socket(t.Context(), s.issuer.Token(map[string]any{"exp": time.Now().Unix() + 3}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	say(t, c, "hello")
	if _, _, err := c.Read(t.Context()); err == nil {
		t.Error("the socket outlives its token")
	}
	_, o = s.settled(3)
	if o[2].Error != "expired" || o[2].Status != 101 {
		t.Errorf("outcome %+v", o[2])
	}
}

// Frames that a client sends before its upgrade was granted are kept for the service, and never read as a request.
func TestWebSocketEager(t *testing.T) {
	s := open(t, func(s *stage) {
		s.service = sallytest.NewRecorderFunc(t, func(w io.Writer, r *http.Request) {
			time.Sleep(50 * time.Millisecond)
			io.WriteString(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nwelcome")
			b := make([]byte, 100)
			n, _ := w.(io.Reader).Read(b)
			w.Write(b[:n])
			w.(io.Closer).Close()
		})
	})
	p := s.dial()
	p.send(get("/socket", bearerHeader(s.token("")), "Connection: Upgrade", "Upgrade: websocket") + "GET /admin HTTP/1.1\n\n")
	if a := p.read("GET"); a.StatusCode != 101 {
		t.Fatalf("answered %d", a.StatusCode)
	}
	if b, _ := io.ReadAll(p.r); string(b) != "welcomeGET /admin HTTP/1.1\n\n" {
		t.Errorf("got %q", b)
	}
	p.Close()
	s.settled(1)
}

// A service that does not grant the upgrade leaves a connection on which nothing more may come (H22).
func TestWebSocketNotGranted(t *testing.T) {
	s := open(t, nil)
	p := s.dial()
	p.send(get("/socket", bearerHeader(s.token("")), "Connection: Upgrade", "Upgrade: websocket") + get("/health"))
	if a := p.read("GET"); a.StatusCode != 200 || !a.Close {
		t.Errorf("answered %d %v", a.StatusCode, a.Header)
	}
	if !p.closed() {
		t.Error("the connection is open still")
	}
	if n := s.service.Requests(); n != 1 {
		t.Errorf("%d requests reached the service", n)
	}
}
