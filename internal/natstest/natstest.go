// Package natstest is for tests and measurements only: a real NATS JetStream cluster of three servers, which can be cut off
// from one another, ended and killed.
//
//	servers, err := natstest.Start(natstest.Options{Dir: t.TempDir()})
//	...
//	defer servers.Close()
//	store := open(servers.URLs(0, 1, 2))
//	servers.Isolate(1, true)     // from the others; its clients stay
//	servers.Kill(2)              // with Processes
//	err = servers.Begin(2)       // with what it had on disk
//
// Whatever passes between two servers, or between one and its clients, passes through a Link, of which nobody learns a way
// around. With Processes each server is a process of its own: the program itself, started again. So its main function, or
// TestMain, begins with
//
//	if served, err := natstest.Serve(); served { ... return }
//
// The servers sync nothing to disk that the system does not sync by itself: they lose nothing when they are killed, and may
// when the machine is.
package natstest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Size is how many servers a cluster has.
const Size = 3

// patience is for a server to begin, and for a cluster to agree. An election takes up to ten seconds.
const patience = 60 * time.Second

// Options are what a cluster is made of.
type Options struct {
	Dir       string // what the servers keep; required
	Processes bool   // each is a process of its own, which can be killed
}

// Cluster is three servers. Its methods are not for concurrent use; those of its links are.
type Cluster struct {
	// Node has the servers of this process. An ended one stays in its place; with Processes all are nil.
	Node [Size]*server.Server

	options Options
	config  [Size]node
	process [Size]*child
	route   [Size][Size]*Link // from, to
	client  [Size]*Link
	held    []int // descriptors that keep the ports for the servers
}

// node is the configuration of one server.
type node struct {
	Name        string
	Port        int // for clients
	ClusterPort int
	Store       string
	Routes      []string
}

// Start starts a cluster and waits until it has agreed who leads.
func Start(o Options) (c *Cluster, err error) {
	c = &Cluster{options: o}
	defer func() {
		if err != nil {
			c.Close()
			c = nil
		}
	}()
	for i := range Size {
		n := &c.config[i]
		*n = node{Name: fmt.Sprintf("n%d", i), Store: filepath.Join(o.Dir, fmt.Sprint(i))}
		if n.Port, err = c.port(); err != nil {
			return c, err
		}
		if n.ClusterPort, err = c.port(); err != nil {
			return c, err
		}
		if c.client[i], err = NewLink(loopback(n.Port)); err != nil {
			return c, err
		}
	}
	for i := range Size {
		for j := range Size {
			if i == j {
				continue
			}
			if c.route[i][j], err = NewLink(loopback(c.config[j].ClusterPort)); err != nil {
				return c, err
			}
			c.config[i].Routes = append(c.config[i].Routes, "nats-route://"+c.route[i][j].Address())
		}
	}
	for i := range Size {
		if err := c.Begin(i); err != nil {
			return c, err
		}
	}
	return c, c.Settle()
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// port reserves one: a socket is bound to it and does not listen. The kernel gives such a port to nobody who asks for any,
// and lets those have it who ask for it by number with SO_REUSEADDR, as Go does.
func (c *Cluster) port() (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("reserve a port: %w", err)
	}
	c.held = append(c.held, fd)
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return 0, fmt.Errorf("reserve a port: %w", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, fmt.Errorf("reserve a port: %w", err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("reserve a port: %w", err)
	}
	return bound.(*syscall.SockaddrInet4).Port, nil
}

// serverOptions is a configuration as the server has it.
func (n node) serverOptions() *server.Options {
	return &server.Options{
		ServerName: n.Name, Host: "127.0.0.1", Port: n.Port, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: n.Store, JetStreamMaxMemory: 64 << 20, JetStreamMaxStore: 32 << 30,
		// Nobody learns of a way around the links.
		Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: n.ClusterPort, NoAdvertise: true, Advertise: "127.0.0.1:1", PoolSize: -1},
		Routes:  server.RoutesFromStr(strings.Join(n.Routes, ",")),
	}
}

func (n node) start() (*server.Server, error) {
	s, err := server.NewServer(n.serverOptions())
	if err != nil {
		return nil, fmt.Errorf("make a NATS server: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		s.Shutdown()
		return nil, errors.New("a NATS server does not start")
	}
	return s, nil
}

// Begin starts a server that has ended, with what it had on disk.
func (c *Cluster) Begin(i int) (err error) {
	if !c.options.Processes {
		c.Node[i], err = c.config[i].start()
		return err
	}
	c.process[i], err = startChild(c.config[i])
	return err
}

// End ends a server as its operator would.
func (c *Cluster) End(i int) {
	if s := c.Node[i]; s != nil {
		s.Shutdown()
		s.WaitForShutdown()
	}
	if p := c.process[i]; p != nil {
		p.end()
	}
}

// Kill kills a server that is a process of its own, at whatever it does.
func (c *Cluster) Kill(i int) { c.process[i].kill() }

// Close ends everything. What was on disk stays.
func (c *Cluster) Close() {
	for i := range Size {
		c.End(i)
	}
	for i := range Size {
		c.client[i].close()
		for j := range Size {
			c.route[i][j].close()
		}
	}
	for _, fd := range c.held {
		_ = syscall.Close(fd) // it is ours, and open
	}
	c.held = nil
}

// URLs are where clients reach the servers named, in the order of their names.
func (c *Cluster) URLs(at ...int) []string {
	var urls []string
	for _, i := range at {
		urls = append(urls, "nats://"+c.client[i].Address())
	}
	return urls
}

// Client is what a server's clients come through.
func (c *Cluster) Client(i int) *Link { return c.client[i] }

// Isolate cuts a server off from the others, or joins it to them again. Its clients stay.
func (c *Cluster) Isolate(i int, cut bool) {
	for j := range Size {
		if i != j {
			c.route[i][j].Cut(cut)
			c.route[j][i].Cut(cut)
		}
	}
}

// Settle waits until the servers have a leader that all follow.
func (c *Cluster) Settle() error {
	until := time.Now().Add(patience)
	for time.Now().Before(until) {
		if c.settled() {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.New("the NATS servers do not become a cluster")
}

func (c *Cluster) settled() bool {
	leaders := 0
	for i, n := range c.Node {
		switch {
		case n == nil && !keeps(c.URLs(i)[0], fmt.Sprint("settled-", i)):
			return false
		case n == nil:
		case !n.JetStreamIsCurrent():
			return false
		case n.JetStreamIsLeader():
			leaders++
		}
	}
	return leaders == 1 || c.options.Processes
}

// keeps reports whether something can be given to a server that all of them are to keep.
func keeps(url, name string) bool {
	conn, err := nats.Connect(url, nats.Timeout(2*time.Second), nats.NoReconnect())
	if err != nil {
		return false
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{name}, Replicas: Size, Storage: jetstream.MemoryStorage})
	if err != nil {
		return false
	}
	return js.DeleteStream(ctx, name) == nil
}

// Leader is the server of this process that leads a stream; -1 while none does.
func (c *Cluster) Leader(stream string) int {
	for i, n := range c.Node {
		if n != nil && n.Running() && n.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
			return i
		}
	}
	return -1
}

// serverVariable holds the configuration of the server that a process was started to be.
const serverVariable = "NATSTEST_SERVER"

// Serve is a server if the process was started to be one, until its standard input ends; not even a killed test leaves one
// behind. Else it returns false at once.
func Serve() (served bool, err error) {
	text, ok := os.LookupEnv(serverVariable)
	if !ok {
		return false, nil
	}
	var n node
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		return true, fmt.Errorf("read the server's configuration: %w", err)
	}
	s, err := n.start()
	if err != nil {
		return true, err
	}
	if _, err := fmt.Println("ready"); err != nil {
		return true, err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	s.Shutdown()
	s.WaitForShutdown()
	return true, err
}

// child is a server in a process of its own.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{}
}

func startChild(n node) (*child, error) {
	text, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start a NATS server: %w", err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serverVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start a NATS server: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a NATS server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a NATS server: %w", err)
	}
	p := &child{cmd: cmd, stdin: stdin, ended: make(chan struct{})}
	said := make(chan bool, 1)
	go func() {
		defer close(p.ended)
		line := make([]byte, len("ready\n"))
		_, err := io.ReadFull(stdout, line)
		said <- err == nil
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait() // it was killed, mostly
	}()
	select {
	case ok := <-said:
		if ok {
			return p, nil
		}
		p.kill()
		return nil, errors.New("a NATS server ended before it was ready: does the program begin with natstest.Serve?")
	case <-time.After(patience):
		p.kill()
		return nil, errors.New("a NATS server does not start")
	}
}

func (p *child) end() {
	_ = p.stdin.Close() // which is what it waits for
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		p.kill()
	}
}

func (p *child) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}
