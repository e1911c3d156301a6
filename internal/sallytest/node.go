package sallytest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Node is a real Node.js server, whose parser is the one that most services have. It says which requests it has read on
// each connection.
type Node struct {
	Addr    string // "127.0.0.1:port"
	control string
}

// NodeRequest is one request as Node read it, or why it read no further.
type NodeRequest struct {
	Method, URL, Host, Body string
	Authorization           []string
	ID                      string // X-Request-Id
	Error                   string // a code of Node's; else empty
}

const nodeProgram = `
const http = require('http');
const seen = new Map();
const of = (s) => { const k = s.remotePort || s.was; s.was = k; if (!seen.has(k)) seen.set(k, []); return seen.get(k); };
const options = { maxHeaderSize: 65536, requestTimeout: 0, headersTimeout: 0, keepAliveTimeout: 60000 };
const server = http.createServer(options, (q, s) => {
  const all = (name) => q.rawHeaders.filter((_, i) => i % 2 === 1 && q.rawHeaders[i - 1].toLowerCase() === name);
  const r = { Method: q.method, URL: q.url, Host: all('host').join(), Authorization: all('authorization'), ID: all('x-request-id').join(), Body: '', Error: '' };
  const list = of(q.socket);
  list.push(r);
  const body = [];
  q.on('data', (b) => body.push(b));
  q.on('error', (e) => { r.Error = e.code || 'error'; });
  q.on('end', () => { r.Body = Buffer.concat(body).toString('latin1'); s.end('ok'); });
  q.on('close', () => { if (!q.complete) r.Error = r.Error || 'incomplete'; });
});
server.on('connection', (s) => { s.was = s.remotePort; });
server.on('clientError', (e, s) => { of(s).push({ Error: e.code || 'error' }); s.destroy(); });
server.listen(0, '127.0.0.1', () => {
  const control = http.createServer((q, s) => {
    const port = Number(q.url.slice(1));
    const found = port ? seen.get(port) || [] : [...seen.values()].flat();
    if (port) seen.delete(port); else seen.clear();
    s.end(JSON.stringify(found));
  });
  control.listen(0, '127.0.0.1', () => console.log(server.address().port + ' ' + control.address().port));
});
process.stdin.on('end', () => process.exit(0)).resume();
`

// NewNode starts a Node.js server that answers each request 200 with the body "ok". It skips the test where there is no
// Node, except under CI.
func NewNode(t testing.TB) *Node {
	t.Helper()
	path, err := exec.LookPath("node")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no node here:", err)
	}
	cmd := exec.Command(path, "-e", nodeProgram)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("start node: %v", err)
	}
	port, control, _ := strings.Cut(strings.TrimSpace(line), " ")
	return &Node{Addr: "127.0.0.1:" + port, control: "http://127.0.0.1:" + control}
}

// Requests takes what was read on the connection from a port, or on all if that is 0, since it was last asked.
func (n *Node) Requests(t testing.TB, port int) (all []NodeRequest) {
	t.Helper()
	c := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(fmt.Sprintf("%s/%d", n.control, port))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&all); err != nil {
		t.Fatal(err)
	}
	return all
}
