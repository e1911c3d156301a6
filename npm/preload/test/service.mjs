// A service that knows nothing of sallyport: each route calls out in another way, with the id that it was asked with.
import { AsyncLocalStorage, AsyncResource } from 'node:async_hooks'
import { fork } from 'node:child_process'
import { EventEmitter, once } from 'node:events'
import http, { request as namedRequest } from 'node:http'
import http2 from 'node:http2'
import https from 'node:https'
import { createRequire } from 'node:module'
import net from 'node:net'
import { Worker } from 'node:worker_threads'
import Keepalive from 'agentkeepalive'
import axios from 'axios'
import DataLoader from 'dataloader'
import got from 'got'
import nodeFetch from 'node-fetch'
import PLimit from 'p-limit'
import { WebSocketServer } from 'ws'

const require = createRequire(import.meta.url)
const { PLAIN, SECURE, LINES } = process.env
const major = Number(process.versions.node.split('.')[0])
const sleep = (ms) => new Promise((r) => setTimeout(r, ms))
const own = new AsyncLocalStorage() // the application's own: it must see what it would see without us

const both = (name, call) => ({ [`${name}-http`]: (id, x) => call(`${PLAIN}/${name}?id=${id}${x}`), [`${name}-https`]: (id, x) => call(`${SECURE}/${name}?id=${id}${x}`) })

const node = (agents, options = {}) => (url) => new Promise((resolve, reject) => {
  const m = url.startsWith('https') ? https : http
  const before = own.getStore()
  const req = m.request(url, { agent: agents?.[m === https ? 1 : 0], ...options }, (res) => {
    if (own.getStore() !== before) reject(new Error('the application lost its own context'))
    res.resume()
    res.on('end', () => resolve())
  })
  req.on('error', reject)
  req.end()
})
const keptAlive = [new http.Agent({ keepAlive: true }), new https.Agent({ keepAlive: true })]
const narrow = [new http.Agent({ keepAlive: true, maxSockets: 1 }), new https.Agent({ keepAlive: true, maxSockets: 1, maxTotalSockets: 1 })]
const foreign = [new Keepalive(), new Keepalive.HttpsAgent()]
const withAgents = axios.create({ httpAgent: new http.Agent({ keepAlive: true }), httpsAgent: new https.Agent({ keepAlive: true }) })

export const clients = {
  ...both('node', node()),
  ...both('node-own-agent', node(keptAlive)),
  ...both('node-narrow-agent', node(narrow)),
  ...both('node-no-agent', (url) => node()(url + '&noagent').then(() => node([false, false])(url))),
  ...both('node-array-headers', (url) => node(undefined, { headers: ['Accept', 'text/plain', 'Host', new URL(url).host] })(url)),
  ...both('agentkeepalive', node(foreign)),
  ...both('fetch', async (url) => (await fetch(url)).text()),
  ...both('fetch-post', async (url) => (await fetch(url, { method: 'POST', body: 'x', headers: { accept: 'a' } })).text()),
  ...both('axios', (url) => axios.get(url)),
  ...both('axios-agents', (url) => withAgents.get(url)),
  ...both('axios-fetch', (url) => axios.get(url, { adapter: 'fetch' })),
  ...both('redirect', (url) => axios.get(url)),
  ...both('got', (url) => got(url, { retry: { limit: 0 } }).text()),
  ...both('node-fetch', async (url) => (await nodeFetch(url)).text()),
  'named-import-http': (id) => new Promise((resolve, reject) => namedRequest(`${PLAIN}/named?id=${id}`, (res) => res.resume().on('end', resolve)).on('error', reject).end()),
}
const away = {} // what undici itself follows to another origin
for (const version of [6, 7, 8]) {
  if (version === 8 && major < 22) continue
  const undici = require(`undici${version}`)
  const agent = new undici.Agent({ connections: 2, connect: { timeout: 5000 } })
  const pool = new undici.Pool(PLAIN, { connections: 1 })
  const follows = version === 6 ? { dispatcher: agent, maxRedirections: 1 } : { dispatcher: agent.compose(undici.interceptors.redirect({ maxRedirections: 1 })) }
  away[version] = { PLAIN: (id) => undici.request(`${PLAIN}/away?id=${id}`, follows), SECURE: (id) => undici.request(`${SECURE}/away?id=${id}`, follows) }
  Object.assign(clients, both(`undici${version}`, async (url) => (await undici.request(url)).body.dump()))
  Object.assign(clients, both(`undici${version}-fetch`, async (url) => (await undici.fetch(url)).text()))
  Object.assign(clients, both(`undici${version}-agent`, async (url) => (await undici.request(url, { dispatcher: agent })).body.dump()))
  clients[`undici${version}-pool-http`] = async (id, x) => (await pool.request({ path: `/pool?id=${id}${x}`, method: 'GET' })).body.dump()
}

const call = (id, what = 'x') => fetch(`${PLAIN}/${what}?id=${id}`).then((r) => r.text())

// What is shared between requests.
const bus = new EventEmitter()
bus.on('work', (id, done) => call(id).then(done))
const limit = PLimit(1)
const queue = { jobs: [], running: false }
async function drain() {
  if (queue.running) return
  queue.running = true
  for (let job; (job = queue.jobs.shift()); ) await job()
  queue.running = false
}
const enqueue = (job) => new Promise((resolve, reject) => {
  queue.jobs.push(() => job().then(resolve, reject))
  drain()
})
const polled = []
setInterval(() => {
  for (const { id, done } of polled.splice(0)) call(id, 'polled').then(done)
}, 5).unref()
setInterval(() => call('timer', 'tick').catch(() => {}), 20).unref()
call('init', 'init').catch(() => {})
https.get(`${SECURE}/init?id=init`, (res) => res.resume())

// A pool of one connection with callbacks, as older database clients are. The first request opens it.
let line
let waiting = []
function query(text, callback) {
  line ??= net.connect(Number(LINES), '127.0.0.1').on('data', (d) => {
    for (const _ of d.toString().match(/\n/g) ?? []) waiting.shift()()
  })
  waiting.push(callback)
  line.write(text + '\n')
}
// The same, opened when the program starts, and one that only brings, as a queue's consumer has it.
const early = net.connect(Number(LINES), '127.0.0.1').on('data', (d) => {
  for (const _ of d.toString().match(/\n/g) ?? []) early.waiting.shift()()
})
early.waiting = []
net.connect(Number(LINES), '127.0.0.1', function () {
  this.write('\n')
}).on('data', () => call('consumed', 'consumed').catch(() => {}))
// Servers of the service's own, of which the gate knows nothing.
const lines = net.createServer((c) => c.on('data', async (d) => {
  await call(String(d), 'past')
  c.end()
})).listen(0, '127.0.0.1')
const streams = http2.createServer((req, res) => call(req.url.slice(1), 'past').then(() => res.end())).listen(0, '127.0.0.1')
const earlyWorker = new Worker(`const { parentPort } = require('node:worker_threads')
  parentPort.on('message', (id) => setTimeout(() => parentPort.postMessage(id), 3))`, { eval: true }).setMaxListeners(0)
earlyWorker.unref()
let everySoOften
const batches = new DataLoader(async (ids) => {
  await call(ids.join('+'), 'batch')
  return ids
}, { cache: false })
let worker, child

export const patterns = {
  away: async (id) => {
    for (const { PLAIN, SECURE } of Object.values(away)) for (const go of [PLAIN, SECURE]) await (await go(id)).body.dump()
  },
  async promises(id) {
    await sleep(id % 7)
    await Promise.all([1, 2, 3].map((n) => sleep(n).then(() => call(id))))
    await Promise.resolve().then(() => call(id)).finally(() => call(id))
  },
  timers: (id) => new Promise((resolve) => setTimeout(() => setImmediate(() => process.nextTick(() => queueMicrotask(() => call(id).then(resolve)))), id % 5)),
  emitter: (id) => new Promise((resolve) => bus.emit('work', id, resolve)),
  body: (id, x, req) => new Promise((resolve, reject) => {
    let size = 0
    req.on('data', (d) => (size += d.length))
    req.on('end', () => call(id).then(resolve, reject))
  }),
  afterwards(id, x, req, res) {
    res.on('finish', () => call(id, 'afterwards'))
    res.on('close', () => setTimeout(() => call(id, 'afterwards'), 20))
  },
  'long-after'(id) {
    setTimeout(() => call(id, 'long-after'), 2600)
    setTimeout(() => https.get(`${SECURE}/long-after?id=${id}`, (res) => res.resume()), 2600)
  },
  async left(id) {
    await sleep(2300)
    await call(id, 'left')
    https.get(`${SECURE}/left?id=${id}`, (res) => res.resume())
  },
  'p-limit': (id) => limit(() => call(id)),
  async 'p-queue'(id) {
    const { default: PQueue } = await import('p-queue')
    this.jobs ??= new PQueue({ concurrency: 1 })
    await this.jobs.add(() => call(id))
  },
  'queue-bound': (id) => enqueue(AsyncResource.bind(() => call(id))),
  'queue-unbound': (id) => enqueue(() => call(id)),
  polled: (id) => new Promise((done) => polled.push({ id, done })),
  'callback-pool': (id) => new Promise((resolve) => query(id, () => call(id, 'callback').then(resolve))),
  async 'callback-hold'(id) { // opens the connection, and is in flight while others use it
    line = undefined
    waiting = []
    await new Promise((resolve) => query(id, resolve))
    await sleep(1500)
  },
  'callback-pool-early': (id) => new Promise((resolve) => {
    early.waiting.push(() => call(id, 'callback').then(resolve))
    early.write(id + '\n')
  }),
  'own-server': (id) => new Promise((resolve) => net.connect(lines.address().port, '127.0.0.1', function () {
    this.write(id)
  }).on('close', resolve).resume()),
  'own-http2': (id) => new Promise((resolve) => {
    const session = http2.connect(`http://127.0.0.1:${streams.address().port}`)
    session.request({ ':path': '/' + id }).on('close', () => session.close(resolve)).resume().end()
  }),
  'worker-early': (id) => new Promise((resolve) => {
    earlyWorker.on('message', function heard(done) {
      if (done === id) (earlyWorker.off('message', heard), call(id, 'heard').then(resolve))
    })
    earlyWorker.postMessage(id)
  }),
  'promise-pool': async (id) => {
    await new Promise((resolve) => query(id, resolve))
    await call(id)
  },
  'lazy-interval'(id) {
    everySoOften ??= setInterval(() => call('lazy', 'lazy').catch(() => {}), 50).unref()
  },
  'loader-own': (id) => new DataLoader(async (ids) => (await call(id), ids)).loadMany([1, 2]),
  'loader-shared': (id) => batches.load(id),
  async worker(id) {
    worker ??= new Worker(`const { parentPort } = require('node:worker_threads')
      parentPort.on('message', async (id) => { await (await fetch(process.env.PLAIN + '/worker?id=' + id)).text(); parentPort.postMessage(id) })`, { eval: true }).setMaxListeners(0)
    worker.postMessage(id)
    await new Promise((resolve) => worker.on('message', function heard(done) {
      if (done === id) (worker.off('message', heard), call(id, 'heard').then(resolve))
    }))
  },
  async child(id) {
    child ??= fork(new URL('child.cjs', import.meta.url)).setMaxListeners(0)
    child.send(id)
    await new Promise((resolve) => child.on('message', function heard(done) {
      if (done === id) (child.off('message', heard), call(id, 'heard').then(resolve))
    }))
  },
  async once(id) {
    const here = new EventEmitter()
    setTimeout(() => here.emit('go'), 3)
    await once(here, 'go')
    await call(id)
  },
  refused: () => new Promise((resolve, reject) => https.get('https://refused.example/').on('error', (e) => (e.code === 'EACCES' && e.message.includes('destination_unknown') ? resolve() : reject(e)))),
  'refused-fetch': () => fetch('https://refused.example/').then(() => { throw new Error('it was let through') }, (e) => { if (e.cause?.code !== 'EACCES') throw e }),
  echo: (id, x, req) => JSON.stringify({ headers: req.headers, raw: req.rawHeaders, distinct: req.headersDistinct, env: { ...process.env } }),
}

const server = http.createServer((req, res) => own.run({}, async () => {
  const url = new URL(req.url, 'http://x')
  const id = url.searchParams.get('id')
  const wait = url.searchParams.get('wait')
  try {
    const name = url.pathname.slice(1)
    const handler = clients[name] ?? patterns[name]
    const text = name === 'names' ? JSON.stringify(Object.keys(clients)) : await handler.call(patterns, id, wait ? `&wait=${wait}` : '', req, res)
    res.end(typeof text === 'string' ? text : 'ok')
  } catch (e) {
    res.writeHead(500).end(String(e.stack ?? e))
  }
}))
const sockets = new WebSocketServer({ server })
sockets.on('connection', (ws) => ws.on('message', async (id) => {
  await call(id, 'ws')
  ws.send('ok')
}))
server.keepAliveTimeout = 30000
server.listen(0, '127.0.0.1', () => console.log('listening', server.address().port))
