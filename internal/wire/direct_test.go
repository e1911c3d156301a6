package wire

import (
	"io"
	"net"
	"testing"
	"time"
)

// Of a connection whose reading was ended nothing more is read: no other request can follow on it.
func TestInterruptedIsNotRested(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	c := New(server, Limits{HeaderBytes: 1 << 10, HeaderFields: 10, HeaderTimeout: time.Minute, BodyTimeout: time.Minute}, nil)
	defer c.Close()
	var buffers Buffers
	c.Direct(&buffers, time.Minute)
	go io.WriteString(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	var h Head
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadHead(&h); err != nil || !c.Rested() {
		t.Fatalf("%+v %v, rested: %t", h, err, c.Rested())
	}
	if c.InterruptRead(); c.Rested() {
		t.Error("another request is waited for")
	}
}
