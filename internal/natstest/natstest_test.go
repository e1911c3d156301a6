package natstest

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestMain(m *testing.M) {
	if served, err := Serve(); served {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// What a quorum has taken is there when the server that was killed is back, on that server too.
func TestKilledServer(t *testing.T) {
	c, err := Start(Options{Dir: t.TempDir(), Processes: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	put := func(kv jetstream.KeyValue, key string) {
		t.Helper()
		for {
			try, done := context.WithTimeout(ctx, 2*time.Second)
			_, err := kv.PutString(try, key, "value")
			done()
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond) // an election
		}
	}
	kv := bucket(ctx, t, c, 0)
	put(kv, "before")
	c.Kill(1)
	put(kv, "during")
	if err := c.Begin(1); err != nil {
		t.Fatal(err)
	}
	if err := c.Settle(); err != nil {
		t.Fatal(err)
	}
	again := bucket(ctx, t, c, 1)
	for _, key := range []string{"before", "during"} {
		if e, err := again.Get(ctx, key); err != nil || string(e.Value()) != "value" {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func bucket(ctx context.Context, t *testing.T, c *Cluster, at int) jetstream.KeyValue {
	t.Helper()
	conn, err := nats.Connect(c.URLs(at)[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b", Replicas: Size, Storage: jetstream.FileStorage})
	if err != nil {
		t.Fatal(err)
	}
	return kv
}
