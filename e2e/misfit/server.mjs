// A service that misbehaves on demand, without packages: what the tests of the whole product put behind `sallyport run`.
//
//   PORT=3000 node server.mjs [honest | wildcard | exit | crash | silent | late]
//
// How it starts: honest listens on 127.0.0.1, wildcard on 0.0.0.0, exit ends at once with code 7, crash ends itself with a
// signal, silent runs and never listens, late listens after a second.

import { accessSync, constants, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { createServer, request } from 'node:http';

const port = Number(process.env.PORT);
const server = createServer((req, res) => {
  const answer = answers[new URL(req.url, 'http://localhost').pathname];
  if (!answer) {
    res.writeHead(404).end();
    return;
  }
  answer(req, res);
});

const json = (res, value) => {
  res.setHeader('content-type', 'application/json');
  res.end(JSON.stringify(value));
};

// attempt says what came of a try to leave the corner.
function attempt(act) {
  try {
    return { ok: true, value: String(act()).slice(0, 200) };
  } catch (err) {
    return { ok: false, value: err.code ?? String(err) };
  }
}

// posts says what a listener on a unix socket answers; any success is one.
const posts = (socketPath, path) => new Promise((resolve) => {
  const req = request({ socketPath, path, method: 'POST' }, (res) => {
    res.resume();
    resolve({ ok: res.statusCode < 400, value: String(res.statusCode) });
  });
  req.once('error', (err) => resolve({ ok: false, value: err.code }));
  req.end();
});

// answers are what it does with a request, by path.
const answers = {
  // What arrived.
  '/echo'(req, res) {
    let bytes = 0;
    req.on('data', (chunk) => { bytes += chunk.length; });
    req.on('end', () => json(res, { method: req.method, url: req.url, headers: req.rawHeaders, bytes }));
  },
  // What can be had from inside.
  async '/escape'(req, res) {
    const { searchParams: q } = new URL(req.url, 'http://localhost');
    json(res, {
      uid: process.getuid(),
      environment: Object.keys(process.env).sort(),
      shadow: attempt(() => readFileSync('/etc/shadow')),
      rootHome: attempt(() => readdirSync('/root')),
      processes: attempt(() => readFileSync('/proc/1/environ')),
      supervisor: attempt(() => readFileSync(`/proc/${process.ppid}/environ`)),
      write: attempt(() => writeFileSync(q.get('write'), 'x')),
      audit: attempt(() => writeFileSync(q.get('audit'), 'x', { flag: 'a' })),
      keys: attempt(() => readdirSync(q.get('keys'))),
      kill: attempt(() => process.kill(process.ppid, 0)),
      reload: await posts(q.get('admin'), '/reload'),
      application: attempt(() => accessSync(new URL(import.meta.url).pathname, constants.R_OK)),
    });
  },
  // Streams until the client goes.
  '/stream'(req, res) {
    res.writeHead(200, { 'content-type': 'text/event-stream' });
    let n = 0;
    const timer = setInterval(() => res.write(`data: ${n++}\n\n`), 50);
    res.once('close', () => clearInterval(timer));
  },
  // Sends back what it gets, as it gets it.
  '/both'(req, res) {
    res.writeHead(200, { 'content-type': 'application/octet-stream' });
    req.pipe(res);
  },
  // A slow answer, which a drain has to wait for.
  '/slow'(_req, res) {
    setTimeout(() => res.end('slow but complete\n'), 1500);
  },
  // Never answers.
  '/hang'() {},
  // Closes without an answer.
  '/close'(req) {
    req.socket.destroy();
  },
  // Closes in the middle of the answer.
  '/early'(req) {
    req.socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this', () => req.socket.destroy());
  },
  // Answers what is not HTTP.
  '/garbage'(req) {
    req.socket.end('SSH-2.0-OpenSSH_9.2\r\n');
  },
  // Answers two framings at once.
  '/two-lengths'(req) {
    req.socket.end('HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde');
  },
  // Answers more header than anybody wants.
  '/huge-header'(req) {
    req.socket.end(`HTTP/1.1 200 OK\r\nX-Huge: ${'x'.repeat(4 << 20)}\r\nContent-Length: 0\r\n\r\n`);
  },
  // Calls whatever its caller names, an address (url) or a socket, and says what came of it.
  '/fetch'(req, res) {
    const { searchParams: q } = new URL(req.url, 'http://localhost');
    const call = q.has('socket') ? request({ socketPath: q.get('socket'), path: '/version' }) : request(q.get('url'));
    call.once('response', (answer) => { answer.resume(); json(res, { status: answer.statusCode }); });
    call.once('error', (err) => json(res, { error: err.code }));
    call.end();
  },
  // Ends while a request is in flight.
  '/die'() {
    process.exit(9);
  },
};

// Whatever the supervisor says, an upgrade is echoed.
server.on('upgrade', (req, socket) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
  socket.pipe(socket);
});

const starts = {
  honest: () => server.listen(port, '127.0.0.1'),
  wildcard: () => server.listen(port, '0.0.0.0', () => console.error('bound', JSON.stringify(server.address()))),
  exit: () => process.exit(7),
  crash: () => process.kill(process.pid, 'SIGSEGV'),
  silent: () => setInterval(() => {}, 1000),
  late: () => setTimeout(() => server.listen(port, '127.0.0.1'), 1000),
};

server.on('error', (err) => {
  console.error('listen:', err.code);
  process.exit(1);
});
process.on('SIGTERM', () => {
  console.error('told to end');
  process.exit(0);
});
// Whatever a test does to its supervisor, it is gone after ten minutes.
setTimeout(() => process.exit(99), 600_000).unref();
starts[process.argv[2] ?? 'honest']();
