package trace

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"strconv"
	"time"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	uploadTime = 10 * time.Second
	closeTime  = 5 * time.Second
	tries      = 3 // of one upload
	firstPause = time.Second
	maxPause   = 10 * time.Second
	maxAnswer  = 64 << 10
)

// run sends in a goroutine until Close.
func (t *Tracer) run() {
	ctx, cancel := context.WithCancel(context.Background())
	t.stop = cancel
	us := t.who()
	go func() {
		defer close(t.done)
		defer cancel()
		tick := time.NewTicker(every)
		defer tick.Stop()
		var batch []*otlp.Span
		last := ""
		send := func() {
			if len(batch) == 0 {
				return
			}
			err := t.upload(ctx, us, batch)
			if err != nil && err.Error() != last && t.config.Failed != nil {
				t.config.Failed(fmt.Errorf("send spans: %w", err))
			}
			if last = ""; err != nil {
				last = err.Error()
			}
			batch = nil
		}
		for {
			select {
			case s := <-t.spans:
				if batch = append(batch, s.message()); len(batch) >= maxBatch {
					send()
				}
			case <-tick.C:
				send()
			case <-t.closing:
				for len(t.spans) > 0 {
					s := <-t.spans
					batch = append(batch, s.message())
				}
				send()
				return
			}
		}
	}()
}

// Close sends what waits, for at most five seconds.
func (t *Tracer) Close() {
	if t == nil {
		return
	}
	t.once.Do(func() { close(t.closing) })
	select {
	case <-t.done:
	case <-time.After(closeTime):
		t.stop()
		<-t.done
	}
}

// who is what we say of ourselves.
func (t *Tracer) who() *resource.Resource {
	host, _ := os.Hostname() // without it the instance is named all the same
	return &resource.Resource{Attributes: []*common.KeyValue{
		text("service.name", "sallyport"), text("service.version", t.config.Version), text("service.instance.id", rand.Text()), text("host.name", host),
	}}
}

func text(key, value string) *common.KeyValue {
	return &common.KeyValue{Key: key, Value: &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: value}}}
}

// message is the span in the protocol's words.
func (s *Span) message() *otlp.Span {
	m := &otlp.Span{
		TraceId: bytesOf(s.Trace), SpanId: bytesOf(s.ID), ParentSpanId: bytesOf(s.Parent), TraceState: s.State, Name: s.Name,
		Kind:              map[Kind]otlp.Span_SpanKind{Internal: otlp.Span_SPAN_KIND_INTERNAL, Server: otlp.Span_SPAN_KIND_SERVER, Client: otlp.Span_SPAN_KIND_CLIENT}[s.Kind],
		StartTimeUnixNano: uint64(s.Began.UnixNano()), EndTimeUnixNano: uint64(s.Ended.UnixNano()),
		Flags: 1, // sampled
	}
	for _, a := range s.Attributes {
		switch {
		case a.Number != 0:
			m.Attributes = append(m.Attributes, &common.KeyValue{Key: a.Key, Value: &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: a.Number}}})
		case a.Text != "":
			m.Attributes = append(m.Attributes, text(a.Key, a.Text))
		}
	}
	if s.Failed {
		m.Status = &otlp.Status{Code: otlp.Status_STATUS_CODE_ERROR}
	}
	if s.LinkedTrace != "" {
		m.Links = []*otlp.Span_Link{{TraceId: bytesOf(s.LinkedTrace), SpanId: bytesOf(s.LinkedSpan), Flags: 1}}
	}
	return m
}

func bytesOf(id string) []byte {
	b, err := hex.DecodeString(id)
	if err != nil || len(b) == 0 {
		return nil
	}
	return b
}

// upload sends spans, and again where the collector asks for that. What it does not take is lost, and counted.
func (t *Tracer) upload(ctx context.Context, us *resource.Resource, spans []*otlp.Span) error {
	// TracesData is on the wire what ExportTraceServiceRequest is, which comes with a gRPC client.
	body, err := proto.Marshal(&otlp.TracesData{ResourceSpans: []*otlp.ResourceSpans{{
		Resource:   us,
		ScopeSpans: []*otlp.ScopeSpans{{Scope: &common.InstrumentationScope{Name: "sallyport", Version: t.config.Version}, Spans: spans}},
	}}})
	n := float64(len(spans))
	if err != nil {
		t.failed.Add(n)
		return fmt.Errorf("encode: %w", err)
	}
	for try, pause := 1, firstPause; ; try, pause = try+1, 2*pause {
		rejected, wait, err := t.post(ctx, body)
		if err == nil {
			t.rejected.Add(min(float64(rejected), n))
			t.exported.Add(max(n-float64(rejected), 0))
			if rejected > 0 {
				return errors.New("the collector rejected a part of them")
			}
			return nil
		}
		if wait < 0 || try == tries {
			t.failed.Add(n)
			return err
		}
		select {
		case <-time.After(min(max(wait, pause), maxPause)):
		case <-t.closing: // one more try, at once
			try = tries - 1
		case <-ctx.Done():
		}
	}
}

// post sends one request. wait is how long the collector asks to wait before another; negative: there is no use in one.
func (t *Tracer) post(ctx context.Context, body []byte) (rejected int64, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, uploadTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.config.Endpoint+"/v1/traces", bytes.NewReader(body))
	if err != nil {
		return 0, -1, err
	}
	if t.config.Headers != nil {
		own, err := t.config.Headers()
		if err != nil {
			return 0, -1, err
		}
		maps.Copy(r.Header, own)
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("User-Agent", "sallyport/"+t.config.Version)
	res, err := t.config.Client.Do(r)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	switch res.StatusCode {
	case http.StatusOK:
		if err != nil {
			return 0, -1, nil // they were taken
		}
		return rejectedIn(answer), -1, nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After")) // a date is no number: then we choose
		return 0, time.Duration(min(max(seconds, 0), 60)) * time.Second, fmt.Errorf("the collector answered %d", res.StatusCode)
	}
	return 0, -1, fmt.Errorf("the collector answered %d", res.StatusCode)
}

// rejectedIn reads ExportTraceServiceResponse: partial_success (1), and in it rejected_spans (1).
func rejectedIn(answer []byte) int64 {
	partial, _ := field(answer, 1, protowire.BytesType)
	_, n := field(partial, 1, protowire.VarintType)
	return max(int64(n), 0)
}

// field finds the last field of a message with this number and type; zero values where there is none, or what is no message.
func field(m []byte, number protowire.Number, kind protowire.Type) (content []byte, n uint64) {
	for len(m) > 0 {
		num, typ, size := protowire.ConsumeTag(m)
		if size < 0 {
			return nil, 0
		}
		m = m[size:]
		if size = protowire.ConsumeFieldValue(num, typ, m); size < 0 {
			return nil, 0
		}
		if num == number && typ == kind {
			switch kind {
			case protowire.BytesType:
				content, _ = protowire.ConsumeBytes(m)
			case protowire.VarintType:
				n, _ = protowire.ConsumeVarint(m)
			}
		}
		m = m[size:]
	}
	return content, n
}
