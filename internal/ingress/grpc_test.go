package ingress

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	rpc "google.golang.org/grpc/status"

	"github.com/sallyport/sallyport/identity"
)

// gRPC's interoperability cases, by its own library on both sides.
func TestGRPC(t *testing.T) {
	g := openGRPC(t, nil)
	client, conn := g.client(g.token("test"))
	ctx := bounded(t)
	t.Run("empty unary, and who calls", func(t *testing.T) {
		if _, err := client.EmptyCall(ctx, &pb.Empty{}); err != nil {
			t.Fatal(err)
		}
		md := *g.metadata.Load()
		if len(md["txn-token"]) != 1 || len(md["authorization"]) != 0 || len(md["x-request-id"]) != 1 {
			t.Fatalf("the service was told %v", md)
		}
		v := identity.Verifier{Issuer: "sallyport", Audience: "orders", Keys: func(id string) (ed25519.PublicKey, bool) { k, ok := g.keys[id]; return k, ok }}
		if c, err := v.Verify(md["txn-token"][0]); err != nil || c.Subject == "" {
			t.Errorf("the assertion: %+v, %v", c, err)
		}
	})
	t.Run("large unary", func(t *testing.T) {
		out, err := client.UnaryCall(ctx, &pb.SimpleRequest{ResponseSize: 8 << 20, Payload: payload(8 << 20)})
		if err != nil || len(out.GetPayload().GetBody()) != 8<<20 {
			t.Fatalf("%d bytes, %v", len(out.GetPayload().GetBody()), err)
		}
	})
	t.Run("client stream", func(t *testing.T) {
		stream, err := client.StreamingInputCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 30 { // more in all than a body may have; no message does
			if err := stream.Send(&pb.StreamingInputCallRequest{Payload: payload(1 << 20)}); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := stream.CloseAndRecv(); err != nil || out.AggregatedPayloadSize != 30<<20 {
			t.Fatalf("%v, %v", out, err)
		}
	})
	t.Run("server stream", func(t *testing.T) {
		stream, err := client.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{ResponseParameters: sizes(31415, 9, 2653, 58979, 0)})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{31415, 9, 2653, 58979, 0} {
			if m, err := stream.Recv(); err != nil || len(m.GetPayload().GetBody()) != want {
				t.Fatalf("%d bytes, %v", len(m.GetPayload().GetBody()), err)
			}
		}
		if _, err := stream.Recv(); err != io.EOF {
			t.Error(err)
		}
	})
	t.Run("ping pong", func(t *testing.T) {
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 100 {
			if err := stream.Send(&pb.StreamingOutputCallRequest{ResponseParameters: sizes(int32(n)), Payload: payload(n)}); err != nil {
				t.Fatal(err)
			}
			if m, err := stream.Recv(); err != nil || len(m.GetPayload().GetBody()) != n {
				t.Fatalf("%v, %v", m, err)
			}
		}
		stream.CloseSend()
		if _, err := stream.Recv(); err != io.EOF {
			t.Error(err)
		}
	})
	t.Run("empty stream", func(t *testing.T) {
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		stream.CloseSend()
		if _, err := stream.Recv(); err != io.EOF {
			t.Error(err)
		}
	})
	t.Run("metadata", func(t *testing.T) {
		var header, trailer metadata.MD
		out := metadata.AppendToOutgoingContext(ctx, "echo-initial", "one", "echo-trailing-bin", "\x00\xab\xff")
		if _, err := client.UnaryCall(out, &pb.SimpleRequest{ResponseSize: 1}, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(header["echo-initial"]) != "[one]" || fmt.Sprint(trailer["echo-trailing-bin"]) != "[\x00\xab\xff]" || len(header["x-request-id"]) != 1 {
			t.Errorf("header %v, trailer %v", header, trailer)
		}
	})
	t.Run("status with details", func(t *testing.T) {
		_, err := client.UnaryCall(ctx, &pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.ResourceExhausted), Message: "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"}})
		st := rpc.Convert(err)
		if st.Code() != codes.ResourceExhausted || !strings.Contains(st.Message(), "non-BMP 😈") || len(st.Details()) != 1 || st.Details()[0].(*errdetails.BadRequest).FieldViolations[0].Description != "über" {
			t.Errorf("%v, %v", st, st.Details())
		}
	})
	t.Run("deadline", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		_, err := client.UnaryCall(short, &pb.SimpleRequest{ResponseSize: -1})
		if rpc.Code(err) != codes.DeadlineExceeded {
			t.Error(err)
		}
		if left := time.Duration(g.deadline.Load()); left <= 0 || left > 300*time.Millisecond {
			t.Errorf("the service was given %v", left)
		}
		<-g.ended
	})
	t.Run("cancel", func(t *testing.T) {
		for range 30 { // the service's library must not take it for abuse
			one, cancel := context.WithCancel(ctx)
			stream, err := client.FullDuplexCall(one)
			if err != nil {
				t.Fatal(err)
			}
			stream.Send(&pb.StreamingOutputCallRequest{ResponseParameters: sizes(1)})
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			cancel()
			if _, err := stream.Recv(); rpc.Code(err) != codes.Canceled {
				t.Fatal(err)
			}
			if err := <-g.ended; rpc.Code(err) != codes.Canceled {
				t.Fatalf("the service was told %v", err)
			}
		}
	})
	t.Run("unimplemented", func(t *testing.T) {
		if _, err := client.UnimplementedCall(ctx, &pb.Empty{}); rpc.Code(err) != codes.Unimplemented || strings.Contains(err.Error(), "sallyport") {
			t.Errorf("by the service: %v", err)
		}
		_, err := pb.NewUnimplementedServiceClient(conn).UnimplementedCall(ctx, &pb.Empty{})
		if rpc.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "no_route") {
			t.Errorf("by the gate: %v", err)
		}
	})
}

// A denial is one of gRPC, and the service sees nothing.
func TestGRPCDenied(t *testing.T) {
	g := openGRPC(t, func(s *stage) { s.config.Limits.BodyBytes = 1 << 20 })
	ctx := bounded(t)
	good := g.token("test")
	for _, c := range []struct {
		name, token string
		call        func(context.Context, pb.TestServiceClient, *metadata.MD) error
		code        codes.Code
		says        string
		calls       int64
	}{
		{"no token", "", empty, codes.Unauthenticated, "missing_token", 0},
		{"a token that is none", "nonsense", empty, codes.Unauthenticated, "token_not_compact", 0},
		{"forged", good[:len(good)-4] + "AAAA", empty, codes.Unauthenticated, "signature", 0},
		{"without the scope", g.token("other"), empty, codes.PermissionDenied, "insufficient_scope", 0},
		{"a condition", good, func(ctx context.Context, c pb.TestServiceClient, md *metadata.MD) error {
			_, err := c.CacheableUnaryCall(ctx, &pb.SimpleRequest{}, grpc.Trailer(md))
			return err
		}, codes.PermissionDenied, "condition_false", 0},
		{"H12 a name with a dot", good, func(ctx context.Context, c pb.TestServiceClient, md *metadata.MD) error {
			return empty(metadata.AppendToOutgoingContext(ctx, "x.user", "root"), c, md)
		}, codes.InvalidArgument, "header_name", 0},
		{"a message over the limit", good, func(ctx context.Context, c pb.TestServiceClient, md *metadata.MD) error {
			_, err := c.UnaryCall(ctx, &pb.SimpleRequest{Payload: payload(1<<20 + 1)}, grpc.Trailer(md))
			return err
		}, codes.ResourceExhausted, "body_too_large", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, _ := g.client(c.token)
			before, _ := g.audit.entries(t)
			var header metadata.MD
			err := c.call(ctx, client, &header)
			st := rpc.Convert(err)
			if st.Code() != c.code || !strings.Contains(st.Message(), c.says) {
				t.Errorf("answered %v", err)
			}
			if len(header["x-request-id"]) != 1 || len(header["x-sallyport-code"]) != 1 {
				t.Errorf("told %v", header)
			}
			decisions, outcomes := g.settled(len(before) + 1)
			d, o := decisions[len(before)], outcomes[len(before)]
			if d.ID != header["x-request-id"][0] || o.Status < 400 {
				t.Errorf("recorded %+v, %+v", d, o)
			}
		})
	}
	if n := g.calls.Load(); n > 1 { // that with the message is known to be too large on the way
		t.Errorf("the service was called %d times", n)
	}
}

func empty(ctx context.Context, c pb.TestServiceClient, md *metadata.MD) error {
	_, err := c.EmptyCall(ctx, &pb.Empty{}, grpc.Trailer(md))
	return err
}

// What says that it is gRPC and is not never reaches a gRPC service (H20).
func TestGRPCMalformed(t *testing.T) {
	g := openGRPC(t, func(s *stage) { s.config.Limits.BodyBytes = 100 })
	token := "Bearer " + g.token("test")
	const path = "/grpc.testing.TestService/EmptyCall"
	for _, c := range []struct {
		name    string
		fields  []string
		body    []byte
		status  string
		grpc    string
		code    string
		reaches bool
	}{
		{"gRPC-Web", append(pseudo("POST", path), "content-type", "application/grpc-web", "te", "trailers"), nil, "415", "", "grpc_content_type", false},
		{"gRPC-Web text", append(pseudo("POST", path), "content-type", "application/grpc-web-text+proto", "te", "trailers"), nil, "415", "", "grpc_content_type", false},
		{"two content types", append(pseudo("POST", path), "content-type", "application/grpc", "content-type", "text/plain", "te", "trailers"), nil, "415", "", "grpc_content_type", false},
		{"no te", append(pseudo("POST", path), "content-type", "application/grpc"), nil, "200", "3", "grpc_malformed", false},
		{"GET", append(pseudo("GET", path), "content-type", "application/grpc", "te", "trailers"), nil, "200", "3", "grpc_malformed", false},
		{"a query", append(pseudo("POST", path+"?a"), "content-type", "application/grpc", "te", "trailers"), nil, "200", "3", "grpc_malformed", false},
		{"H20 no slash", append(pseudo("POST", path[1:]), "content-type", "application/grpc", "te", "trailers"), nil, "", "", "", false},
		{"H20 dots", append(pseudo("POST", "/grpc.testing.TestService/../TestService/EmptyCall"), "content-type", "application/grpc", "te", "trailers"), nil, "200", "3", "path_noncanonical", false},
		{"another case", append(pseudo("POST", "/grpc.testing.testservice/EmptyCall"), "content-type", "application/grpc+proto", "te", "trailers"), nil, "200", "12", "no_route", false},
		{"a flag that is none", append(pseudo("POST", path), "content-type", "application/grpc", "te", "trailers"), []byte("\x02\x00\x00\x00\x00"), "200", "3", "grpc_malformed", true},
		{"half a message", append(pseudo("POST", path), "content-type", "application/grpc", "te", "trailers"), []byte("\x00\x00\x00\x00\x09a"), "200", "3", "grpc_malformed", true},
		{"too large a message", append(pseudo("POST", path), "content-type", "application/grpc", "te", "trailers"), []byte("\x00\x00\x00\x00\x65"), "200", "8", "body_too_large", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := g.dialH2()
			stream := p.ask(c.body == nil, append(c.fields, "authorization", token)...)
			if c.body != nil {
				p.framer.WriteData(stream, true, c.body)
			}
			r := p.read(stream, nil)
			if r.status != c.status || r.header.Get("Grpc-Status") != c.grpc || c.code != "" && r.code != c.code && r.header.Get("X-Sallyport-Code") != c.code {
				t.Errorf("answered %+v", r)
			}
		})
	}
	if n := g.calls.Load(); n != 0 {
		t.Errorf("the service was called %d times", n)
	}
	a, _ := g.ask(request("POST", path, "\x00\x00\x00\x00\x00", "Content-Type: application/grpc", "Te: trailers", "Authorization: "+token))
	if a.code != "grpc_content_type" {
		t.Errorf("over HTTP/1: %d %s", a.StatusCode, a.code)
	}
}

// A thousand calls at once on one connection, each answered.
func TestGRPCConcurrent(t *testing.T) {
	const n = 1000
	g := openGRPC(t, func(s *stage) { s.config.Limits.Streams, s.config.Limits.Requests = n, 2*n })
	client, _ := g.client(g.token("test"))
	ctx := bounded(t)
	var ready, done sync.WaitGroup
	ready.Add(n)
	faults := make(chan error, n)
	for i := range n {
		done.Go(func() {
			stream, err := client.FullDuplexCall(ctx)
			if err == nil {
				err = stream.Send(&pb.StreamingOutputCallRequest{ResponseParameters: sizes(int32(i))})
			}
			if err == nil {
				_, err = stream.Recv()
			}
			ready.Done()
			ready.Wait() // all are open
			if err == nil {
				err = stream.CloseSend()
			}
			if err == nil {
				if _, err = stream.Recv(); err == io.EOF {
					err = nil
				}
			}
			if err != nil {
				faults <- err
			}
		})
	}
	done.Wait()
	close(faults)
	for err := range faults {
		t.Error(err)
		break
	}
	if c := g.metric("sallyport_ingress_connections_total", "h2c"); c != 1 || g.metric("sallyport_ingress_http2_floods_total", "") != 0 {
		t.Errorf("%v connections", c)
	}
	g.settled(n)
}

// On a unix socket too.
func TestGRPCUnix(t *testing.T) {
	socket := t.TempDir() + "/app.sock"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := &grpcStage{testService: newTestService(t, l)}
	g.stage = openH2(t, func(s *stage) {
		s.config.Upstream, s.config.Rules.Policy = mustURL(t, "unix+h2c://"+socket), grpcRoutes(t)
	})
	client, _ := g.client(g.token("test"))
	if _, err := client.EmptyCall(bounded(t), &pb.Empty{}); err != nil {
		t.Error(err)
	}
}

// A service that cannot be reached, and one that goes in the middle, are UNAVAILABLE.
func TestGRPCServiceGone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	service := &testService{ended: make(chan error, 1)}
	server := grpc.NewServer()
	pb.RegisterTestServiceServer(server, service)
	done := make(chan struct{})
	go func() { server.Serve(l); close(done) }()
	g := openGRPC(t, func(s *stage) { s.config.Upstream = mustURL(t, "h2c://"+l.Addr().String()) })
	client, _ := g.client(g.token("test"))
	stream, err := client.FullDuplexCall(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	stream.Send(&pb.StreamingOutputCallRequest{ResponseParameters: sizes(1)})
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	server.Stop()
	<-done
	if _, err := stream.Recv(); rpc.Code(err) != codes.Unavailable {
		t.Errorf("in the middle: %v", err)
	}
	if _, err := client.EmptyCall(bounded(t), &pb.Empty{}); rpc.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "upstream_unreachable") {
		t.Errorf("when it is gone: %v", err)
	}
	if errors.Is(err, io.EOF) {
		t.Error(err)
	}
	_, outcomes := g.settled(2)
	if outcomes[0].Error != "upstream_bad_answer" || outcomes[1].Error != "upstream_unreachable" {
		t.Errorf("recorded %+v", outcomes)
	}
}
