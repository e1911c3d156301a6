package ingress

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	rpc "google.golang.org/grpc/status"

	"github.com/sallyport/sallyport/internal/state"
)

// openAliveGRPC is a stage before a gRPC service that ends nothing by itself.
func openAliveGRPC(t testing.TB, change func(*stage)) (*aliveStage, *grpcStage) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &grpcStage{testService: newTestService(t, l)}
	a := openAliveBefore(t, func(s *stage) {
		s.config.Upstream, s.config.Protocols = mustURL(t, "h2c://"+l.Addr().String()), []string{"http/1.1", "h2c"}
		if change != nil {
			change(s)
		}
	})
	g.stage = a.stage
	return a, g
}

// calls are the ways in which a call can be at rest.
func calls() map[string]func(context.Context, pb.TestServiceClient) (recv func() error, err error) {
	return map[string]func(context.Context, pb.TestServiceClient) (func() error, error){
		"both directions, in the middle": func(ctx context.Context, c pb.TestServiceClient) (func() error, error) {
			s, err := c.FullDuplexCall(ctx)
			if err == nil {
				err = s.Send(&pb.StreamingOutputCallRequest{ResponseParameters: sizes(1)})
			}
			if err == nil {
				_, err = s.Recv()
			}
			return func() error { _, err := s.Recv(); return err }, err
		},
		"the service has said nothing": func(ctx context.Context, c pb.TestServiceClient) (func() error, error) {
			s, err := c.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{ResponseParameters: sizes(-1)})
			return func() error { _, err := s.Recv(); return err }, err
		},
		"the client has said nothing": func(ctx context.Context, c pb.TestServiceClient) (func() error, error) {
			s, err := c.StreamingInputCall(ctx)
			return func() error { return s.RecvMsg(new(pb.StreamingInputCallResponse)) }, err
		},
	}
}

// H23: a call that loses what it was let in for ends with UNAUTHENTICATED within a second, the service's side too.
func TestGRPCLosesItsStanding(t *testing.T) {
	for _, c := range ends() {
		for name, begin := range calls() {
			t.Run(c.name+"; "+name, func(t *testing.T) {
				a, g := openAliveGRPC(t, nil)
				client, _ := g.client(a.liveToken(nil))
				recv, err := begin(bounded(t), client)
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "the service is called", func() bool { return g.calls.Load() == 1 })
				began := time.Now()
				c.happen(a)
				err = recv()
				within(t, began)
				if st := rpc.Convert(err); st.Code() != codes.Unauthenticated || !strings.Contains(st.Message(), c.code) {
					t.Errorf("the client is told %v", err)
				}
				if _, o := a.settled(1); o[0].Error != c.code {
					t.Errorf("outcome %+v", o[0])
				}
				within(t, began)
			})
		}
	}
}

// H23 (a): with its token.
func TestGRPCEndsWithItsToken(t *testing.T) {
	a, g := openAliveGRPC(t, nil)
	expires := time.Unix(time.Now().Unix()+2, 0)
	client, _ := g.client(a.liveToken(map[string]any{"exp": expires.Unix()}))
	recv, err := calls()["both directions, in the middle"](bounded(t), client)
	if err != nil {
		t.Fatal(err)
	}
	err = recv()
	if ended := time.Now(); ended.Before(expires) || ended.After(expires.Add(time.Second)) {
		t.Errorf("it ended %s after its token", ended.Sub(expires))
	}
	if st := rpc.Convert(err); st.Code() != codes.Unauthenticated || !strings.Contains(st.Message(), "expired") {
		t.Errorf("the client is told %v", err)
	}
}

// A call that rests is left alone, for longer than BodyTimeout, UpstreamTimeout and IdleTimeout; so is its connection.
func TestGRPCRests(t *testing.T) {
	for name, begin := range calls() {
		t.Run(name, func(t *testing.T) {
			const short = 100 * time.Millisecond
			a, g := openAliveGRPC(t, func(s *stage) {
				l := &s.config.Limits
				l.HeaderTimeout, l.BodyTimeout, l.UpstreamTimeout, l.IdleTimeout = short, short, short, short
			})
			client, _ := g.client(a.liveToken(nil))
			recv, err := begin(bounded(t), client)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the service is called", func() bool { return g.calls.Load() == 1 })
			time.Sleep(10 * short)
			if _, o := a.audit.entries(t); len(o) > 0 {
				t.Fatalf("it was ended: %+v", o)
			}
			a.revoke(state.Revocation{Subject: "liver"})
			if err := recv(); rpc.Code(err) != codes.Unauthenticated {
				t.Error(err)
			}
		})
	}
}

// The service may end a call of which the client says nothing.
func TestGRPCServiceEndsFirst(t *testing.T) {
	a, g := openAliveGRPC(t, nil)
	client, _ := g.client(a.liveToken(nil))
	s, err := client.FullDuplexCall(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.Send(&pb.StreamingOutputCallRequest{ResponseParameters: sizes(-1)})
	if _, err := s.Recv(); rpc.Code(err) != codes.FailedPrecondition {
		t.Errorf("the client is told %v", err)
	}
	within(t, began)
	a.settled(1)
}

// Draining: GOAWAY, calls in flight may end; those that do not are told UNAVAILABLE.
func TestGRPCDrain(t *testing.T) {
	a, g := openAliveGRPC(t, func(s *stage) { s.config.Limits.DrainTimeout = 3 * time.Second })
	client, _ := g.client(a.liveToken(nil))
	recv, err := calls()["both directions, in the middle"](bounded(t), client)
	if err != nil {
		t.Fatal(err)
	}
	ends, err := client.FullDuplexCall(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service is called", func() bool { return g.calls.Load() == 2 })
	idle := a.dialH2()
	eventually(t, "it is let in", func() bool { return a.metric("sallyport_ingress_connections_open", "h2c") == 2 })
	stopped := make(chan error, 1)
	go func() { stopped <- a.stop() }()
	if r := idle.gone(); !r.wasAway || r.away != http2.ErrCodeNo {
		t.Errorf("an idle connection was told %+v", r)
	}
	ends.CloseSend()
	if _, err := ends.Recv(); err != io.EOF {
		t.Errorf("what ended in time was told %v", err)
	}
	if st := rpc.Convert(recv()); st.Code() != codes.Unavailable || !strings.Contains(st.Message(), "stream_terminated") {
		t.Errorf("the client is told %v", st)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	_, o := a.settled(2)
	if o[0].Error+o[1].Error != "stream_terminated" {
		t.Errorf("outcomes %+v", o)
	}
}

// Server-sent events over HTTP/2 flow, and are cut where they lose their standing (H23).
func TestHTTP2Events(t *testing.T) {
	for _, c := range ends()[:4] {
		t.Run(c.name, func(t *testing.T) {
			a := openAliveBefore(t, func(s *stage) { s.config.Protocols = []string{"h2c"} })
			p := a.dialH2()
			stream := p.ask(true, append(pseudo("GET", "/events"), "authorization", "Bearer "+a.liveToken(nil))...)
			if r := p.read(stream, func(r h2reply) bool { return strings.Count(string(r.body), "tick") >= 3 }); r.status != "200" {
				t.Fatalf("answered %+v", r)
			}
			began := time.Now()
			c.happen(a)
			if r := p.read(stream, nil); r.ended || r.reset == 0 {
				t.Errorf("the stream ended well: %+v", r)
			}
			within(t, began)
			if _, o := a.settled(1); o[0].Error != c.code || o[0].Status != 200 {
				t.Errorf("outcome %+v", o[0])
			}
		})
	}
}

// A client that takes nothing is not waited for longer than BodyTimeout, whichever window it keeps shut; nor is one that has lost
// its standing.
func TestHTTP2StalledWindow(t *testing.T) {
	a := openAliveBefore(t, func(s *stage) {
		s.config.Protocols, s.config.Limits.BodyTimeout = []string{"h2c"}, time.Second
	})
	p := a.dialH2()
	stream := p.ask(true, append(pseudo("GET", "/orders/flood"), "authorization", "Bearer "+a.issuer.Token(map[string]any{"scope": "orders:read"}))...)
	r := p.read(stream, nil) // 64 KiB, and no more window
	if r.reset == 0 || len(r.body) != 65535 {
		t.Errorf("%d bytes, %+v", len(r.body), r.reset)
	}
	if _, o := a.settled(1); o[0].Error != "client_gone" {
		t.Errorf("outcome %+v", o[0])
	}
	stream = p.ask(true, pseudo("GET", "/health")...)
	if r := p.read(stream, nil); r.status != "200" { // the connection lives: that window is the connection's, and an empty answer needs none
		t.Errorf("answered %+v", r)
	}
}

// Slow and broken bodies (H24): the service never sees them end well.
func TestHTTP2UploadThatBreaks(t *testing.T) {
	s := openH2(t, func(s *stage) {
		s.config.Limits.BodyBytes, s.config.Limits.BodyTimeout = 1000, time.Second
		s.service = streamingRecorder(t)
	})
	for _, c := range []struct {
		name   string
		length string
		send   func(p *h2peer, stream uint32)
		status string
		code   string
		failed string
	}{
		{"H24 stops in the middle", "", func(p *h2peer, n uint32) { p.framer.WriteData(n, false, []byte("hel")) }, "408", "body_timeout", "body_timeout"},
		{"H24 a byte now and then", "", func(p *h2peer, n uint32) {
			own := http2.NewFramer(p, nil) // the other is its who reads
			go func() {
				for !p.broken.Load() {
					own.WriteData(n, false, []byte("h"))
					time.Sleep(100 * time.Millisecond)
				}
			}()
		}, "408", "body_timeout", "body_timeout"},
		{"over the limit", "", func(p *h2peer, n uint32) { p.framer.WriteData(n, true, make([]byte, 1001)) }, "413", "body_too_large", "body_too_large"},
		{"more than content-length", "2", func(p *h2peer, n uint32) { p.framer.WriteData(n, true, []byte("hello")) }, "", "", "client_gone"},
		{"less than content-length", "9", func(p *h2peer, n uint32) { p.framer.WriteData(n, true, []byte("hello")) }, "", "", "client_gone"},
		{"leaves", "", func(p *h2peer, n uint32) { p.framer.WriteRSTStream(n, http2.ErrCodeCancel); p.Close() }, "", "", "client_gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := *s
			s.t = t
			s.service.Reset()
			before, _ := s.audit.entries(t)
			p := s.dialH2()
			fields := append(pseudo("POST", "/upload"), "authorization", "Bearer "+s.token(""))
			if c.length != "" {
				fields = append(fields, "content-length", c.length)
			}
			stream := p.ask(false, fields...)
			eventually(t, "the head is forwarded", func() bool { return s.service.Requests() == 1 })
			c.send(p, stream)
			if r := p.read(stream, nil); r.status != c.status || r.code != c.code {
				t.Errorf("answered %+v", r)
			}
			_, outcomes := s.settled(len(before) + 1)
			if o := outcomes[len(before)]; o.Error != c.failed {
				t.Errorf("outcome %+v", o)
			}
			if raw := string(s.service.Raw()); strings.HasSuffix(raw, "\r\n0\r\n\r\n") || c.length != "" && strings.HasSuffix(raw, "hello") && c.length == "5" {
				t.Errorf("the service took it for whole: %q", raw)
			}
		})
	}
}

// The library's own client over HTTP/2, so that not only ours has been tried.
func TestHTTP2Client(t *testing.T) {
	s := openH2(t, func(s *stage) { s.service = streamingRecorder(t) })
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
	defer transport.CloseIdleConnections()
	for range 3 {
		req, _ := http.NewRequest("POST", "http://"+s.addr+"/upload", strings.NewReader("hello"))
		req.Host = "api.example.com"
		req.Header.Set("Authorization", "Bearer "+s.token(""))
		res, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if res.Body.Close(); err != nil || res.StatusCode != 200 || res.ProtoMajor != 2 || len(b) != 64 {
			t.Errorf("%v %s %q %v", res.Status, res.Proto, b, err)
		}
	}
	if s.service.Connections() != 1 {
		t.Errorf("the service had %d connections", s.service.Connections())
	}
}
