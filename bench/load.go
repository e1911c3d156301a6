package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// load has workers do something again and again for a while, once at least. What one of them does is timed; an error ends
// it. It returns how often, how often a second, and the median in µs.
func load(workers int, d time.Duration, worker func() (do func() error, stop func())) (count, rate, median float64, err error) {
	var mu sync.Mutex
	var times []time.Duration
	var all sync.WaitGroup
	began := time.Now()
	for range workers {
		all.Go(func() {
			do, stop := worker()
			defer stop()
			var own []time.Duration
			var failed error
			for now := time.Now(); failed == nil && (len(own) == 0 || now.Sub(began) < d); {
				failed = do()
				then := time.Now()
				own = append(own, then.Sub(now))
				now = then
			}
			mu.Lock()
			defer mu.Unlock()
			times = append(times, own...)
			if err == nil {
				err = failed
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	if err != nil {
		return 0, 0, 0, err
	}
	slices.Sort(times)
	count = float64(len(times))
	return count, count / took.Seconds(), float64(times[len(times)/2]) / float64(time.Microsecond), nil
}

// client sends the same request again and again over a connection that it keeps as long as the other side does.
type client struct {
	address string
	request []byte
	conn    net.Conn
	read    *bufio.Reader
}

const patience = 10 * time.Second

func (c *client) once() error {
	a, err := c.ask()
	if err == nil && a.status != 200 {
		err = fmt.Errorf("the answer is %d", a.status)
	}
	return err
}

// ask is once, whatever the answer is.
func (c *client) ask() (answer, error) {
	kept := c.conn != nil
	if !kept {
		if err := c.dial(); err != nil {
			return answer{}, err
		}
	}
	a, err := c.exchange()
	if err != nil && kept && a.status == 0 { // closed while it was idle, as it may
		c.close()
		if err := c.dial(); err != nil {
			return answer{}, err
		}
		a, err = c.exchange()
	}
	if err == nil && a.close {
		c.close()
	}
	return a, err
}

func (c *client) dial() error {
	conn, err := net.DialTimeout("tcp4", c.address, patience)
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	c.conn = conn
	if c.read == nil {
		c.read = bufio.NewReaderSize(conn, 4<<10)
	}
	c.read.Reset(conn)
	return nil
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *client) exchange() (answer, error) {
	if _, err := c.conn.Write(c.request); err != nil {
		return answer{}, err
	}
	a, err := readAnswer(c.read)
	if err == nil && a.length > 0 {
		_, err = c.read.Discard(a.length)
	}
	return a, err
}

// answer is the header of an HTTP answer, as far as a load generator wants to know.
type answer struct {
	status int // 0: nothing came
	length int // of the body
	close  bool
}

// readAnswer reads a header to its end. A body must have its length in it.
func readAnswer(r *bufio.Reader) (a answer, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return a, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return a, fmt.Errorf("no answer of HTTP/1: %q", line)
	}
	if a.status, err = strconv.Atoi(string(line[9:12])); err != nil || a.status < 100 {
		return answer{}, fmt.Errorf("no status: %q", line)
	}
	a.close = line[7] == '0'
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return a, fmt.Errorf("a header without end: %w", err)
		}
		name, value, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte{':'})
		value = bytes.TrimSpace(value)
		switch {
		case len(name) == 0:
			return a, nil
		case bytes.EqualFold(name, []byte("Content-Length")):
			if a.length, err = strconv.Atoi(string(value)); err != nil || a.length < 0 {
				return a, fmt.Errorf("no length: %q", line)
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			return a, errors.New("the answer has no length")
		case bytes.EqualFold(name, []byte("Connection")):
			a.close = bytes.EqualFold(value, []byte("close")) || a.close && !bytes.EqualFold(value, []byte("keep-alive"))
		}
	}
}

// tunnel asks a proxy for a tunnel; without proxy it connects.
func tunnel(proxy, to string) (net.Conn, error) {
	if proxy == "" {
		return net.DialTimeout("tcp4", to, patience)
	}
	c, err := net.DialTimeout("tcp4", proxy, patience)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "CONNECT "+to+" HTTP/1.1\r\nHost: "+to+"\r\n\r\n"); err != nil {
		c.Close()
		return nil, err
	}
	r := bufio.NewReaderSize(c, 1<<10)
	a, err := readAnswer(r)
	if err == nil && (a.status < 200 || a.status > 299) {
		err = &refusal{a.status}
	}
	if err == nil && r.Buffered() > 0 {
		err = errors.New("the proxy says more than it was asked")
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// refusal is a proxy's no.
type refusal struct{ status int }

func (r *refusal) Error() string { return fmt.Sprintf("the proxy answers %d", r.status) }

// tunnelOnce opens a tunnel, sends hello, awaits a byte, and closes it.
func tunnelOnce(proxy, to string, hello []byte) error {
	c, err := tunnel(proxy, to)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(hello); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// clientHello is what a TLS client says first, for a server's name.
func clientHello(name string) []byte {
	here, there := net.Pipe()
	defer there.Close()
	go func() {
		tls.Client(here, &tls.Config{ServerName: name}).Handshake()
		here.Close()
	}()
	b := make([]byte, 4<<10)
	n, _ := there.Read(b)
	return b[:n]
}

// serviceAnswer is 200 bytes, and the header that a service of today would send.
func serviceAnswer() []byte {
	body := strings.Repeat("x", 200)
	return []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nCache-Control: no-store\r\nDate: " +
		time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT") + "\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

// upstream answers every request with the same 200 bytes.
func upstream(c net.Conn) {
	defer c.Close()
	said := serviceAnswer()
	r := bufio.NewReaderSize(c, 4<<10)
	for last := false; !last; {
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) <= 2 {
				break
			}
			last = last || bytes.EqualFold(bytes.TrimSpace(line), []byte("Connection: close"))
		}
		if _, err := c.Write(said); err != nil {
			return
		}
	}
}

// echo answers whatever comes first with one byte, and waits for the end.
func echo(c net.Conn) {
	defer c.Close()
	b := make([]byte, 4<<10)
	if n, _ := c.Read(b); n == 0 {
		return
	}
	if _, err := c.Write(b[:1]); err == nil {
		io.Copy(io.Discard, c)
	}
}
