// The world around one service under test: a destination over HTTP and TLS that notes what it is asked, a forward proxy
// that notes in whose name each tunnel is opened, and the service itself, a real Node process with the preload.
import { spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import net from 'node:net'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
export const preload = join(here, '../../../internal/preload/preload.cjs')
export const background = 'BACKGROUND0000000000000000'

const arch = process.arch === 'arm64' ? 'arm64' : 'x64'

/** The Node versions that the preload is for. */
export const nodes = [20, 22, 24].map((major) => {
  const path = join(here, `../node_modules/node${major}-${arch}/bin/node`)
  if (!existsSync(path)) throw new Error(`${path} is not there: npm ci`)
  return { major, path }
})

export const capability = (id) => `CAP${String(id).padStart(23, '0')}`

/** Starts the world. asked is every request that reached a destination: {url, by, tunnel, leaked}. */
export async function world() {
  const asked = []
  const tunnels = new Map() // the port that the proxy connects from: in whose name
  const opened = []
  let sockets = 0
  const answer = (secure) => async (req, res) => {
    const given = req.headers['x-sallyport-capability']
    const by = secure ? tunnels.get(req.socket.remotePort) : given
    asked.push({ url: req.url, by, secure, tunnelled: tunnels.has(req.socket.remotePort), leaked: secure && given !== undefined })
    for await (const _ of req);
    const wait = Number(new URL(req.url, 'http://x').searchParams.get('wait') ?? 0)
    if (wait) await new Promise((r) => setTimeout(r, wait))
    if (req.url.startsWith('/redirect?')) res.writeHead(302, { location: req.url.replace('/redirect?', '/redirected?') })
    if (req.url.startsWith('/away?')) res.writeHead(302, { location: `${secure ? env.PLAIN : env.SECURE}${req.url.replace('/away?', '/arrived?')}` })
    res.end(JSON.stringify({ url: req.url }))
  }
  const tls = { key: readFileSync(join(here, 'localhost.key')), cert: readFileSync(join(here, 'localhost.crt')) }
  const plain = http.createServer({ keepAliveTimeout: 30000 }, answer(false))
  const secure = https.createServer({ ...tls, keepAliveTimeout: 30000 }, answer(true))
  secure.on('connection', () => sockets++)
  const proxy = http.createServer()
  proxy.on('connect', (req, client, head) => {
    const [host, port] = req.url.split(':')
    const by = req.headers['proxy-authorization']?.replace('Bearer ', '')
    if (host === 'refused.example') {
      client.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 29\r\n\r\n{"code":"destination_unknown"}')
      return
    }
    const up = net.connect(Number(port), '127.0.0.1', () => {
      const tunnel = { by, target: req.url, open: true }
      const port = up.localPort
      tunnels.set(port, by)
      up.on('close', () => tunnels.delete(port)) // somebody else may have it next
      opened.push(tunnel)
      client.write('HTTP/1.1 200 Connection Established\r\n\r\n')
      up.write(head)
      up.pipe(client)
      client.pipe(up)
      client.on('close', () => (tunnel.open = false))
    })
    const end = () => (up.destroy(), client.destroy())
    up.on('error', end)
    client.on('error', end)
    up.on('close', end)
  })
  // A server of lines over raw TCP, as databases are: it echoes each after a while.
  const lines = net.createServer((c) => {
    c.on('error', () => {})
    c.on('data', (d) => setTimeout(() => c.writable && c.write(d), 5))
  })
  for (const s of [plain, secure, proxy, lines]) await new Promise((r) => s.listen(0, '127.0.0.1', r))
  const env = {
    PLAIN: `http://localhost:${plain.address().port}`, SECURE: `https://localhost:${secure.address().port}`, LINES: String(lines.address().port),
    SALLYPORT_PROXY: `http://127.0.0.1:${proxy.address().port}`, SALLYPORT_BACKGROUND: background,
    NODE_EXTRA_CA_CERTS: join(here, 'localhost.crt'),
  }
  return {
    asked, opened, env,
    tlsConnections: () => sockets,
    close() {
      for (const s of [plain, secure, proxy]) s.closeAllConnections?.()
      for (const s of [plain, secure, proxy, lines]) s.close()
    },
  }
}

/** Starts a service, and waits until it listens. */
export async function service(node, program, env, args = []) {
  const child = spawn(node.path, [...args, join(here, program)], {
    env: { PATH: process.env.PATH, NODE_OPTIONS: `--require=${preload}`, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let err = ''
  child.stderr.on('data', (d) => (err += d))
  const port = await new Promise((resolve, reject) => {
    let out = ''
    child.stdout.on('data', (d) => {
      out += d
      const m = /listening (\d+)/.exec(out)
      if (m) resolve(Number(m[1]))
    })
    child.on('exit', (code) => reject(new Error(`the service ended with ${code}: ${err}`)))
  })
  const agent = new http.Agent({ keepAlive: true, maxSockets: 64 })
  return {
    port, child,
    stderr: () => err,
    /** Sends a request as the gate does. */
    ask(path, id, { method = 'GET', body, headers = {} } = {}) {
      return new Promise((resolve, reject) => {
        const by = id === undefined ? {} : { 'X-Sallyport-Capability': capability(id) }
        const req = http.request({ port, host: '127.0.0.1', path, method, agent, headers: { ...by, ...headers } }, (res) => {
          let text = ''
          res.on('data', (d) => (text += d))
          res.on('end', () => (res.statusCode === 200 ? resolve(text) : reject(new Error(`${path}: ${res.statusCode} ${text}`))))
        })
        req.on('error', reject)
        req.end(body)
      })
    },
    async stop() {
      agent.destroy()
      child.removeAllListeners('exit')
      const ended = new Promise((r) => child.on('exit', r))
      child.kill('SIGKILL')
      await ended
    },
  }
}

/** The id of the request that a URL was asked for. */
export const idOf = (url) => new URL(url, 'http://x').searchParams.get('id')

export const sleep = (ms) => new Promise((r) => setTimeout(r, ms))

/** Waits until something is so. */
export async function eventually(what, is) {
  const end = Date.now() + 20000
  while (!is()) {
    if (Date.now() > end) throw new Error(`not so: ${what}`)
    await sleep(20)
  }
}
