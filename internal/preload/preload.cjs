'use strict'

// Tells the gate behind a service which request caused what the service sends. sallyport gives this file to Node with
// --require; the application knows nothing of it.
//
// The gate in front hands each request over with a capability in a header. Here that header is taken off and becomes the
// cause of everything that runs for the request (AsyncLocalStorage). What the application sends over HTTP presents the
// capability of its cause: a plain request in a header of its own, which the gate takes off; TLS with CONNECT at the
// gate's forward proxy, on connections that serve this one cause and are closed with it.
//
// One rule stands above all others: nothing is presented for a request that did not cause it. Where the cause is not
// known, nothing is presented, and the gate goes by the requests in flight. So whatever fails in here costs an
// attribution; it neither breaks the application nor lends it another request's.

const { AsyncLocalStorage } = require('node:async_hooks')
const http = require('node:http')
const https = require('node:https')
const Module = require('node:module')
const net = require('node:net')
const path = require('node:path')
const { Duplex } = require('node:stream')
const tls = require('node:tls')
const { isMainThread } = require('node:worker_threads')

const NAME = 'x-sallyport-capability'
const HEADER = 'X-Sallyport-Capability'

// How long after its response a request may still cause something, in ms, and after it ended without a whole one. The gate
// waits for 2000 and 30000, and begins later: what is sent in the last moment arrives in time.
const TAIL = 1500
const UNANSWERED = 29500

const kCause = Symbol('sallyport.cause') // on what one cause alone uses: requests, responses, pooled connections
const kScope = Symbol('sallyport.scope') // on requests sent: the scope that they were made in, where their events belong
const kLent = Symbol('sallyport.lent') // on connections that no request opened: whether one has used it
const kSeen = Symbol('sallyport.seen') // on what undici dispatches: it is decided whose it is

/** A request that was let in, or one of the two that are none: background and unknown. */
class Cause {
  static made = 0

  constructor(capability) {
    this.capability = capability // what is presented; empty: nothing is
    this.id = Cause.made++ // names its connections in a pool; the capability would be readable there
    this.ended = 0 // when it had its response, or 0
    this.tail = TAIL
    this.connections = undefined // through tunnels: a Set
    this.pools = undefined // of undici, by the agent that they stand in for: a Map
  }

  /** Whether it can still cause something. */
  lives() {
    return this.ended === 0 || performance.now() - this.ended < this.tail
  }

  /** Whether a connection of its own may wait for its next request. Of the unknown no two belong together. */
  keeps() {
    return this !== unknown && this.ended === 0
  }

  hold(socket) {
    if (this === unknown || this === background) return // the one keeps none, the other outlives them
    const held = (this.connections ??= new Set())
    held.add(socket)
    socket.once('close', () => held.delete(socket))
  }

  /** It has its response, or its connection has ended: what it left open and idle is closed; what is in use closes when it comes free. */
  end(answered) {
    if (this.ended !== 0 || this === unknown || this === background) return
    this.ended = performance.now()
    if (!answered) this.tail = UNANSWERED
    for (const socket of this.connections ?? []) if (!socket._httpMessage) socket.destroy()
    for (const pool of this.pools?.values() ?? []) pool.close().catch(() => {})
    this.pools = undefined
  }
}

const storage = new AsyncLocalStorage() // of the cause; undefined outside of every request
const unknown = new Cause('')
let background = unknown // until it is known that requests can be told from what is none

/** The cause of what is running. */
function current() {
  const cause = storage.getStore()
  if (cause === undefined) return background
  return cause.lives() ? cause : unknown
}

/** Runs in a scope. */
function within(scope, fn, self, args) {
  return storage.getStore() === scope ? Reflect.apply(fn, self, args) : storage.run(scope, Reflect.apply, fn, self, args)
}

/** Runs where it is not known who caused what follows: what is shared must not carry the scope of whoever came first. */
function shared(fn, self, args) {
  return storage.getStore() === undefined ? Reflect.apply(fn, self, args) : within(unknown, fn, self, args)
}

/** Replaces a function. The replacement calls the one that it is given, whatever else it does. */
function wrap(holder, name, make) {
  const original = holder[name]
  const made = make(original)
  Object.defineProperty(made, 'name', { value: original.name, configurable: true })
  Object.defineProperty(made, 'length', { value: original.length, configurable: true })
  const now = Object.getOwnPropertyDescriptor(holder, name)
  Object.defineProperty(holder, name, { configurable: true, writable: true, enumerable: now?.enumerable ?? false, value: made })
}

/** Takes the capability off a request that came in. A request without one came past the gate: nobody knows whose it is. */
function take(req) {
  const value = req.headers[NAME]
  if (value === undefined) return unknown
  delete req.headers[NAME]
  const raw = req.rawHeaders
  const count = Object.getOwnPropertySymbols(req).find((s) => s.description === 'kHeadersCount') // of raw, which headersDistinct is read from
  for (let i = raw.length - 2; i >= 0; i -= 2) {
    if (raw[i].toLowerCase() !== NAME) continue
    if (count === undefined) raw[i + 1] = ''
    else if (raw.splice(i, 2)) req[count] -= 2
  }
  return /^[A-Za-z0-9_-]{16,128}$/.test(value) ? new Cause(value) : unknown
}

/** Gives each request that comes in a scope of its own, and its events, its response's and an upgraded socket's to it. */
function enterRequests() {
  const carries = new Set(['request', 'checkContinue', 'checkExpectation', 'upgrade', 'connect'])
  for (const Server of [http.Server, https.Server]) {
    wrap(Server.prototype, 'emit', (emit) => function (event, req, second, head) {
      if (!carries.has(event)) return Reflect.apply(emit, this, arguments)
      let cause = unknown
      try {
        // A handler of checkContinue emits the same request once more.
        cause = req[kCause] ?? take(req)
        req[kCause] = cause
        if (second instanceof http.ServerResponse) second[kCause] = cause
        else if (second !== undefined) own(second, cause)
      } catch (e) {
        warn(e)
      }
      return within(cause, emit, this, arguments)
    })
  }
  wrap(http.IncomingMessage.prototype, 'emit', (emit) => function () {
    return this[kScope] === undefined && this[kCause] === undefined ? Reflect.apply(emit, this, arguments) : within(scopeOf(this), emit, this, arguments)
  })
  wrap(http.ServerResponse.prototype, 'emit', (emit) => function (event) {
    const cause = this[kCause]
    if (cause === undefined) return Reflect.apply(emit, this, arguments)
    if (event === 'close') cause.end(this.writableFinished)
    return within(cause, emit, this, arguments)
  })
}

/** Gives a socket that changed its protocol to its request, which lasts as long as it. */
function own(socket, cause) {
  if (socket[kCause] !== undefined) return
  socket[kCause] = cause
  const emit = socket.emit
  socket.emit = function () {
    return within(cause, emit, this, arguments)
  }
  socket.once('close', () => cause.end(false))
}

const outside = { scope: undefined }

/** The scope that a message's events belong to. */
function scopeOf(message) {
  const scope = message[kScope]
  return scope === undefined ? message[kCause] : scope === outside ? undefined : scope
}

/** Notes the cause of a request that is being sent, once, and presents it where the request can be seen by the gate. */
function mark(req) {
  if (req[kCause] !== undefined) return req[kCause]
  const cause = current()
  req[kScope] = storage.getStore() ?? outside
  req[kCause] = cause
  const elsewhere = req.socketPath || typeof req.agent?.connect === 'function' // a socket; an agent that knows a proxy (agent-base)
  if (req.protocol !== 'http:' || cause.capability === '' || elsewhere) return cause
  if (!req._header) {
    req.setHeader(HEADER, cause.capability)
  } else if (!req._headerSent && req._header.endsWith('\r\n\r\n')) {
    // The head was made already: its headers were an array, or hold Expect.
    req._header = req._header.slice(0, -2) + HEADER + ': ' + cause.capability + '\r\n\r\n'
  }
  return cause
}

/** Has what node:http and node:https send present its cause. */
function presentRequests() {
  for (const [module, name] of [[http, 'request'], [http, 'get'], [https, 'request'], [https, 'get']]) {
    wrap(module, name, (send) => function () {
      const req = Reflect.apply(send, this, arguments)
      attempt(() => mark(req))
      return req
    })
  }
  wrap(http.ClientRequest.prototype, 'emit', (emit) => function (event, message) {
    const scope = this[kScope]
    if (scope === undefined) return Reflect.apply(emit, this, arguments)
    if (message instanceof http.IncomingMessage) message[kScope] = scope
    return within(scopeOf(this), emit, this, arguments)
  })
  // Agents call these; most agents of applications are of these classes. The cause travels in the options, which
  // an agent copies and hands from one to the next, also when a connection comes free in another request's scope.
  wrap(http.Agent.prototype, 'addRequest', (add) => function (req, options, ...rest) {
    const given = attempt(() => {
      const cause = mark(req)
      const may = req.protocol === 'https:' && typeof options === 'object' && options !== null && !options.socketPath && !options.socket
      const tagged = may ? { ...options, [kCause]: cause } : options
      // A class with names of its own could pool what must stay apart.
      return !may || this.getName({ ...tagged, ...this.options })?.endsWith(suffix(cause)) ? tagged : options
    })
    return Reflect.apply(add, this, [req, given ?? options, ...rest])
  })
  wrap(https.Agent.prototype, 'getName', (getName) => function (options) {
    const name = Reflect.apply(getName, this, arguments)
    return options?.[kCause] === undefined ? name : name + suffix(options[kCause])
  })
  wrap(https.Agent.prototype, 'createConnection', (create) => function (options, done) {
    const cause = options?.[kCause]
    if (cause === undefined) return Reflect.apply(create, this, arguments)
    if (this.createConnection !== https.Agent.prototype.createConnection || typeof done !== 'function') {
      // A class of its own, which may want the connection at once.
      const socket = secure(this, options, new Late(cause, options.host, options.port))
      socket[kCause] = cause
      cause.hold(socket)
      return socket
    }
    tunnel(cause, options.host, options.port, (error, raw) => {
      if (error) return done(error)
      let socket
      try {
        socket = secure(this, options, raw)
        socket[kCause] = cause
        cause.hold(socket)
      } catch (e) {
        raw.destroy()
        return done(e)
      }
      done(null, socket)
    })
  })
  wrap(http.Agent.prototype, 'keepSocketAlive', (keep) => function (socket) {
    return socket[kCause] !== undefined && !socket[kCause].keeps() ? false : Reflect.apply(keep, this, arguments)
  })
}

function suffix(cause) {
  return ':sallyport-' + cause.id
}

/** Speaks TLS through a tunnel as https.Agent does on a connection, whose cache of sessions it shares: by the host alone. */
function secure(agent, options, raw) {
  const key = options._agentKey && agent.getName({ ...options, [kCause]: undefined })
  const session = key && agent._getSession?.(key)
  const socket = tls.connect({ ...(session ? { session } : {}), ...options, socket: raw })
  if (key && agent._cacheSession) {
    socket.on('session', (made) => agent._cacheSession(key, made))
    socket.once('close', (failed) => failed && agent._evictSession(key))
  }
  return socket
}

/** Opens a connection through the gate's forward proxy in the name of a cause, and calls done with it or an error. */
function tunnel(cause, host, port, done) {
  const name = String(host)
  const target = (name.includes(':') && !name.startsWith('[') ? `[${name}]` : name) + ':' + (port || 443)
  const raw = net.connect({ host: proxy.hostname, port: Number(proxy.port), noDelay: true })
  let head = Buffer.alloc(0)
  const finish = (error) => {
    raw.removeListener('data', read)
    raw.removeListener('error', finish)
    raw.removeListener('close', closed)
    raw.pause()
    raw.on('error', () => {}) // whoever has it sees it close
    if (error) raw.destroy()
    done(error, raw)
  }
  const refused = (why) => finish(Object.assign(new Error(`connect ${target}: ${why}`), { code: 'EACCES', syscall: 'connect', host: name, port: Number(port || 443) }))
  const closed = () => refused('the gate closed the connection')
  const read = (chunk) => {
    head = Buffer.concat([head, chunk])
    const end = head.indexOf('\r\n\r\n')
    if (end < 0 && head.length < 16384) return
    const [, status] = /^HTTP\/1\.[01] (\d{3})/.exec(head.subarray(0, 32).toString('latin1')) ?? []
    const reason = /"code":"([a-z0-9_]{1,64})"/.exec(head.toString('latin1'))?.[1]
    if (status !== '200' || end !== head.length - 4) return refused(`the gate refused: ${reason ?? status ?? 'no answer'}`)
    finish(null)
  }
  raw.on('data', read)
  raw.on('error', finish)
  raw.on('close', closed)
  const proof = cause.capability === '' ? '' : `Proxy-Authorization: Bearer ${cause.capability}\r\n`
  raw.write(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n${proof}\r\n`)
}

/** A tunnel that is there before it is open. What is written meanwhile waits. */
class Late extends Duplex {
  constructor(cause, host, port) {
    super()
    this.open = (done) => tunnel(cause, host, port, done)
  }

  _construct(ready) {
    this.open((error, raw) => {
      if (error) return ready(error)
      this.raw = raw
      raw.on('data', (chunk) => this.push(chunk) || raw.pause())
      raw.on('end', () => this.push(null))
      raw.on('error', (e) => this.destroy(e))
      raw.on('close', () => this.destroy())
      ready()
    })
  }

  _read() {
    this.raw.resume()
  }

  _write(chunk, _, done) {
    this.raw.write(chunk, done)
  }

  _final(done) {
    this.raw.end(done)
  }

  _destroy(error, done) {
    this.raw?.destroy()
    done(error)
  }
}

/**
 * Keeps the scope of whoever opened a connection or started a process out of what is heard from there: both are pooled,
 * and what they say next may be for another request. HTTP's own messages get theirs back above.
 */
function loosenShared() {
  for (const [holder, name] of [[net.Socket.prototype, 'connect'], [tls, 'connect']]) {
    wrap(holder, name, (connect) => function () {
      const socket = shared(connect, this, arguments)
      attempt(() => loosen(socket))
      return socket
    })
  }
  wrap(net.Socket.prototype, 'write', (write) => function () {
    if (this[kLent] === false && storage.getStore() !== undefined) this[kLent] = true
    return Reflect.apply(write, this, arguments)
  })
  // What comes to another server of the service's comes past the gate. Those of HTTP have an emit of their own, above.
  wrap(net.Server.prototype, 'emit', (emit) => function (event, socket) {
    if (event !== 'connection' && event !== 'secureConnection') return Reflect.apply(emit, this, arguments)
    attempt(() => own(socket, unknown))
    return within(unknown, emit, this, arguments)
  })
  const threads = require('node:worker_threads')
  const Worker = threads.Worker
  threads.Worker = new Proxy(Worker, {
    construct: (target, args, self) => within(unknown, Reflect.construct, undefined, [target, args, self]),
  })
  const { ChildProcess } = require('node:child_process')
  wrap(ChildProcess.prototype, 'spawn', (spawn) => function (options) {
    return [options?.stdio].flat().includes('ipc') ? within(unknown, spawn, this, arguments) : Reflect.apply(spawn, this, arguments)
  })
  // From whoever started this process.
  wrap(process, 'emit', (emit) => function (event) {
    return event === 'message' ? within(unknown, emit, this, arguments) : Reflect.apply(emit, this, arguments)
  })
}

/** What a connection brings that was opened outside of every request is the background's, until a request sends something on it. */
function loosen(socket) {
  if (storage.getStore() !== undefined || socket[kLent] !== undefined) return
  socket[kLent] = false
  const emit = socket.emit
  socket.emit = function () {
    return this[kLent] ? within(unknown, emit, this, arguments) : Reflect.apply(emit, this, arguments)
  }
}

const undiciClasses = new WeakSet() // that are wrapped already

/** Has what undici sends present its cause: fetch, which Node loads when it is used first, and the package. */
function presentDispatches() {
  let loaded = false
  const load = () => {
    if (loaded) return
    loaded = true
    attempt(() => {
      void globalThis.Request // loads undici, which then has made its agent
      const agent = globalThis[Symbol.for('undici.globalDispatcher.1')]
      if (agent) wrapDispatcher(baseOf(agent))
    })
  }
  wrap(globalThis, 'fetch', (fetch) => function () {
    load()
    return Reflect.apply(fetch, this, arguments)
  })
  for (const name of ['WebSocket', 'EventSource']) {
    const got = Object.getOwnPropertyDescriptor(globalThis, name)
    if (!got?.get || !got.configurable) continue
    Object.defineProperty(globalThis, name, {
      ...got,
      get() {
        load()
        return Reflect.apply(got.get, this, [])
      },
    })
  }
  wrap(Module, '_load', (loadModule) => function (request) {
    const exported = Reflect.apply(loadModule, this, arguments)
    if (typeof request === 'string' && request.endsWith('dispatcher-base')) {
      attempt(() => wrapDispatcher(exported))
      load() // the package uses the agent of Node's own undici, if that was there first
    }
    return exported
  })
}

/** The class of undici in which dispatch is defined, which all of its agents share. */
function baseOf(dispatcher) {
  for (let p = dispatcher; p; p = Object.getPrototypeOf(p)) {
    if (Object.hasOwn(p, 'dispatch') && p.constructor?.name === 'DispatcherBase') return p.constructor
  }
  return undefined
}

function wrapDispatcher(Base) {
  if (typeof Base?.prototype?.dispatch !== 'function' || undiciClasses.has(Base)) return
  undiciClasses.add(Base)
  wrap(Base.prototype, 'dispatch', (dispatch) => function (options, handler) {
    // The outermost alone decides: what an agent hands on to its pools may wait there, and go out in another's scope.
    const seen = options?.[kSeen]
    if (typeof options !== 'object' || options === null || (seen && isSame(seen.origin, options.origin))) return Reflect.apply(dispatch, this, arguments)
    // What was seen and is for another origin follows a redirect, in the name of the same cause.
    const cause = seen === undefined ? current() : seen.cause.lives() ? seen.cause : unknown
    const given = { ...options, [kSeen]: { cause, origin: options.origin } }
    if (seen) given.headers = withoutHeader(given.headers)
    const standIn = attempt(() => route(this, given, cause))
    if (standIn === undefined) return Reflect.apply(dispatch, this, [given, handler])
    try {
      return Reflect.apply(dispatch, standIn, [given, handler])
    } finally {
      if (!cause.keeps()) standIn.close().catch(() => {}) // when this one is done
    }
  })
}

/** Whether two origins are the same; one that is not named is its dispatcher's own. */
function isSame(one, other) {
  return one === other || one === undefined || other === undefined || String(one).replace(/\/$/, '') === String(other).replace(/\/$/, '')
}

/** Presents the cause in the headers of a plain request, or returns the agent through which one over TLS must go. */
function route(dispatcher, given, cause) {
  const kind = dispatcher.constructor.name
  if (!['Agent', 'Pool', 'BalancedPool', 'RoundRobinPool', 'Client'].includes(kind)) return undefined
  const origin = given.origin ?? part(dispatcher, 'url')
  const protocol = origin === undefined ? '' : new URL(origin).protocol
  if (protocol === 'http:' && cause.capability !== '') {
    given.headers = withHeader(given.headers, cause.capability)
  } else if (protocol === 'https:' && kind === 'Agent') {
    return poolOf(dispatcher, cause)
  }
  return undefined
}

/** Adds our header to those that undici takes: a flat list, pairs to iterate over, or an object. */
function withHeader(headers, capability) {
  if (headers === undefined || headers === null) return { [HEADER]: capability }
  if (Array.isArray(headers)) return [...headers, HEADER, capability]
  if (typeof headers[Symbol.iterator] !== 'function') return { ...headers, [HEADER]: capability }
  const flat = []
  for (const [name, value] of headers) flat.push(name, value)
  flat.push(HEADER, capability)
  return flat
}

/** Takes it off again. */
function withoutHeader(headers) {
  if (headers === undefined || headers === null) return headers
  const flat = Array.isArray(headers) ? headers : [...(typeof headers[Symbol.iterator] === 'function' ? headers : Object.entries(headers))].flat()
  return flat.filter((_, i) => String(flat[i - (i % 2)]).toLowerCase() !== NAME)
}

/** A part of an object of undici's, whose names are symbols. */
function part(object, description) {
  const symbol = Object.getOwnPropertySymbols(object).find((s) => s.description === description)
  return symbol && object[symbol]
}

/** The agent that stands in for another in one cause. It is set up in the same way, and connects through tunnels. */
function poolOf(agent, cause) {
  const options = part(agent, 'options')
  const connect = options?.connect
  if (options === undefined || typeof connect === 'function' || connect?.socketPath) return undefined // its own way to connect
  const pools = cause.keeps() ? (cause.pools ??= new Map()) : new Map()
  let pool = pools.get(agent)
  if (pool === undefined) {
    pool = new agent.constructor({ ...options, connect: connector(agent, options.allowH2 === true, connect ?? {}, cause) })
    pools.set(agent, pool)
  }
  return pool
}

/** Keeps the last hundred. */
function put(map, key, value) {
  map.delete(key)
  if (map.set(key, value).size > 100) map.delete(map.keys().next().value)
}

const sessions = new WeakMap() // of TLS, by agent: one for each host, of the last hundred

/** Connects as undici's own connector does, through a tunnel. */
function connector(agent, h2, options, cause) {
  const cache = sessions.get(agent) ?? sessions.set(agent, new Map()).get(agent)
  return (to, done) => {
    if (to.protocol === 'http:') return plainly(to, done) // a redirect led here
    tunnel(cause, to.hostname, to.port, (error, raw) => {
      if (error) return done(error, null)
      let socket
      try {
        const servername = to.servername || (net.isIP(to.hostname) ? undefined : to.hostname)
        const key = `${servername ?? to.hostname}:${to.port || 443}`
        socket = tls.connect({
          highWaterMark: 16384, session: cache.get(key), ...options, ALPNProtocols: h2 ? ['http/1.1', 'h2'] : ['http/1.1'],
          servername: options.servername ?? servername, host: to.hostname, socket: raw,
        })
        socket.on('session', (session) => put(cache, key, session))
        socket.once('close', (failed) => failed && cache.delete(key))
      } catch (e) {
        raw.destroy()
        return done(e, null)
      }
      const timer = setTimeout(() => socket.destroy(Object.assign(new Error('connect timeout'), { code: 'UND_ERR_CONNECT_TIMEOUT' })), options.timeout ?? 10000)
      const settle = (failed) => {
        clearTimeout(timer)
        socket.removeListener('secureConnect', secured)
        socket.removeListener('error', settle)
        done(failed ?? null, failed ? null : socket)
      }
      const secured = () => settle()
      socket.once('secureConnect', secured)
      socket.once('error', settle)
    })
  }
}

function plainly(to, done) {
  const socket = net.connect({ host: to.hostname, port: Number(to.port || 80), noDelay: true, highWaterMark: 65536 })
  const settle = (failed) => {
    socket.removeListener('connect', connected)
    socket.removeListener('error', settle)
    done(failed ?? null, failed ? null : socket)
  }
  const connected = () => settle()
  socket.once('connect', connected)
  socket.once('error', settle)
}

/** Runs what must not throw: on an error there is no result, and so no attribution. */
function attempt(fn) {
  try {
    return fn()
  } catch (e) {
    warn(e)
    return undefined
  }
}

let warned = false

function warn(e) {
  if (warned) return
  warned = true
  process.emitWarning(`sallyport cannot tell which request causes what: ${e?.message}`, { code: 'SALLYPORT_PRELOAD' })
}

/** The gate's forward proxy; undefined where there is none, and then there is nothing to do. */
function readProxy(text) {
  try {
    const url = new URL(text)
    return url.protocol === 'http:' && url.port !== '' ? url : undefined
  } catch {
    return undefined
  }
}

/** Whether this is a program that only starts another: the one after it is the service. */
function startsAnother() {
  return /^(npm|npx|yarn|pnpm|pnpx|corepack)(-cli)?(\.[cm]?js)?$/.test(path.basename(process.argv[1] ?? ''))
}

/**
 * The capability of what no request causes. It is for the service's own process: a thread or a process that it starts
 * works on what it is told, and whoever told it is not known there. Workers of node:cluster are services themselves.
 */
function takeBackground() {
  const capability = process.env.SALLYPORT_BACKGROUND
  if (!capability || !isMainThread) return unknown
  const first = process.env.SALLYPORT_SERVICE
  // Node has taken NODE_UNIQUE_ID, by which it knows a worker, out of the environment.
  if (first !== undefined && first !== String(process.pid) && !require('node:cluster').isWorker) return unknown
  process.env.SALLYPORT_SERVICE ??= String(process.pid)
  const cause = new Cause(capability)
  cause.pools = new WeakMap() // it never ends: its pools go with their agents
  return cause
}

const proxy = readProxy(process.env.SALLYPORT_PROXY)

if (proxy !== undefined && !startsAnother()) {
  try {
    enterRequests()
    loosenShared()
    // Only now: where requests have no scope, what they cause would look like background.
    background = takeBackground()
  } catch (e) {
    warn(e)
  }
  for (const present of [presentRequests, presentDispatches]) attempt(present)
  attempt(() => Module.syncBuiltinESMExports())
}
