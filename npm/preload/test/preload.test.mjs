import assert from 'node:assert/strict'
import http from 'node:http'
import { after, before, describe, it } from 'node:test'
import WebSocket from 'ws'
import { background, capability, eventually, idOf, nodes, service, sleep, world } from './lab.mjs'

for (const node of nodes) {
  describe(`node ${node.major}`, { concurrency: false }, () => {
    let w, s, seen = 0
    const fresh = () => {
      const news = w.asked.slice(seen)
      seen = w.asked.length
      return news.filter((r) => !['/tick', '/init', '/consumed', '/lazy'].some((p) => r.url.startsWith(p)))
    }
    let next = 1
    const many = async (path, n, options) => {
      fresh()
      const ids = Array.from({ length: n }, () => next++)
      await Promise.all(ids.map((id) => s.ask(`${path}${path.includes('?') ? '&' : '?'}id=${id}`, id, options)))
      return fresh()
    }
    /** Every one of what was asked for was asked in the name of its request. */
    const exact = (news, least, what) => {
      assert.ok(news.length >= least, `${what}: ${news.length} of ${least} arrived`)
      for (const r of news) {
        assert.equal(r.by, capability(idOf(r.url)), `${what}: ${r.url} by ${r.by}`)
        assert.equal(r.leaked, false, `${what}: the capability went into TLS`)
      }
    }
    before(async () => {
      w = await world()
      s = await service(node, 'service.mjs', w.env)
    })
    after(async () => {
      await s?.stop()
      w?.close()
    })

    it('attributes each request of each client, on kept connections', async () => {
      const names = JSON.parse(await s.ask('/names', 0))
      assert.ok(names.length > 40)
      for (const name of names) {
        exact(await many(`/${name}`, 30), 30, name)
        exact(await many(`/${name}?wait=10`, 10), 10, name)
      }
    })
    it('attributes them when all go at once', async () => {
      const names = JSON.parse(await s.ask('/names', 0))
      fresh()
      await Promise.all(Array.from({ length: 400 }, () => next++).map((id) => s.ask(`/${names[id % names.length]}?id=${id}&wait=${id % 20}`, id)))
      exact(fresh(), 400, 'all at once')
    })
    it('closes the connections of a request with it', async () => {
      await many('/node-own-agent-https', 20)
      await many('/fetch-https', 20)
      await eventually('they are closed', () => !w.opened.some((t) => t.open && t.by !== background))
    })
    for (const name of ['promises', 'timers', 'emitter', 'p-limit', 'p-queue', 'queue-bound', 'promise-pool', 'loader-own', 'once']) {
      it(`follows the cause: ${name}`, async (t) => {
        if (name === 'p-queue' && node.major < 22) return t.skip('p-queue 10 is for Node 22 and newer')
        exact(await many(`/${name}`, 60), 60, name)
      })
    }
    it('follows the cause: a body that is read by events', async () => {
      exact(await many('/body', 40, { method: 'POST', body: 'x'.repeat(100000) }), 40, 'body')
    })
    it('follows the cause: after the response, for a while', async () => {
      const before = w.asked.length
      const late = () => w.asked.slice(before).filter((r) => r.url.startsWith('/afterwards'))
      await many('/afterwards', 20)
      await eventually('two calls of each', () => late().length >= 40)
      exact(late(), 40, 'afterwards')
    })
    it('follows the cause: for longer where the client has gone', async () => {
      const before = w.asked.length
      const late = () => w.asked.slice(before).filter((r) => r.url.startsWith('/left'))
      for (let n = 0; n < 3; n++) {
        const id = next++
        const req = http.get({ port: s.port, host: '127.0.0.1', path: `/left?id=${id}`, headers: { 'X-Sallyport-Capability': capability(id) } }).on('error', () => {})
        setTimeout(() => req.destroy(), 300)
      }
      await eventually('two calls of each', () => late().length === 6)
      exact(late(), 6, 'left')
    })
    it('follows the cause: messages on an upgraded connection', async () => {
      fresh()
      await Promise.all([...Array(12)].map(async () => {
        const id = next++
        const ws = new WebSocket(`ws://127.0.0.1:${s.port}/`, { headers: { 'X-Sallyport-Capability': capability(id) } })
        await new Promise((r) => ws.on('open', r))
        for (let n = 0; n < 3; n++) {
          ws.send(String(id))
          await new Promise((r) => ws.once('message', r))
        }
        ws.close()
      }))
      exact(fresh(), 36, 'ws')
    })
    for (const name of ['callback-pool', 'callback-pool-early', 'own-server', 'own-http2', 'worker', 'worker-early', 'child']) {
      it(`presents nothing where the cause is lost: ${name}`, async () => {
        const held = name === 'callback-pool' ? s.ask(`/callback-hold?id=${next}`, next++) : undefined
        if (held) await sleep(300)
        const news = await many(`/${name}`, 40)
        await held
        assert.ok(news.length >= 40)
        for (const r of news) assert.equal(r.by, undefined, `${r.url} by ${r.by}`)
      })
    }
    it('takes no capability along where undici follows to another origin', async () => {
      const news = await many('/away', 20)
      assert.equal(news.length, 20 * 2 * 2 * (node.major < 22 ? 2 : 3))
      for (const r of news) {
        assert.equal(r.leaked, false, `${r.url}: the capability went into TLS`)
        if (r.by !== undefined || r.url.startsWith('/away')) assert.equal(r.by, capability(idOf(r.url)), r.url)
      }
    })
    it('presents the background in the workers of node:cluster', async () => {
      const other = await service(node, 'cluster.mjs', w.env)
      try {
        const news = () => w.asked.filter((r) => r.url.startsWith('/in-cluster'))
        await eventually('it starts', () => news().length > 0)
        assert.equal(news()[0].by, background)
        fresh()
        await other.ask(`/?id=${next}`, next++)
        exact(fresh(), 1, 'in a worker')
      } finally {
        await other.stop()
      }
    })
    it('presents nothing long after the response', async () => {
      await many('/long-after', 3)
      const late = () => w.asked.filter((r) => r.url.startsWith('/long-after'))
      await eventually('two calls of each', () => late().length === 6)
      for (const r of late()) assert.equal(r.by, undefined)
      await eventually('their connections are closed', () => !w.opened.some((t) => t.open && t.by !== background))
    })
    it('presents nothing for a request that came past the gate', async () => {
      fresh()
      await s.ask('/fetch-http?id=1', undefined)
      await s.ask('/node-https?id=1', undefined)
      await s.ask('/fetch-https?id=1', undefined)
      const news = fresh()
      assert.equal(news.length, 3)
      for (const r of news) assert.equal(r.by, undefined)
    })
    it('presents the background where no request is: when it starts, in timers, in a loop that polls, in what a connection brings', async () => {
      const polled = await many('/polled', 20)
      assert.equal(polled.length, 20)
      for (const r of polled) assert.equal(r.by, background)
      for (const path of ['/tick', '/init', '/consumed']) {
        const news = () => w.asked.filter((r) => r.url.startsWith(path))
        await eventually(`${path} is asked for`, () => news().length > 0)
        for (const r of news()) assert.equal(r.by, background, r.url)
      }
    })
    it('presents nothing in a timer that a request left running', async () => {
      await many('/lazy-interval', 1)
      await sleep(2300)
      const at = w.asked.length
      const news = () => w.asked.slice(at).filter((r) => r.url.startsWith('/lazy'))
      await eventually('it runs still', () => news().length > 1)
      for (const r of news()) assert.equal(r.by, undefined)
    })
    it('attributes a job in a queue of closures to the request that drains it, or to its own, as Node itself does', async () => {
      const news = await many('/queue-unbound', 40)
      assert.equal(news.length, 40)
      // The limit that doc/node.md states: if this fails, the page is wrong, and better news.
      assert.ok(news.some((r) => r.by !== capability(idOf(r.url))))
    })
    it('attributes a batch to one of those that it is for', async () => {
      for (const r of await many('/loader-shared', 40)) {
        const ids = new URL(r.url, 'http://x').searchParams.get('id').split(' ')
        assert.ok(ids.some((id) => r.by === capability(id)), `${r.url} by ${r.by}`)
      }
    })
    it('says that a connection was refused, and why', async () => {
      await s.ask('/refused', next++)
      await s.ask('/refused-fetch', next++)
    })
    it('finds the agent that was there before the package', async () => {
      const other = await service(node, 'order.mjs', w.env)
      try {
        fresh()
        await other.ask(`/?id=${next}`, next++)
        exact(fresh(), 1, 'first')
      } finally {
        await other.stop()
      }
    })
    it('shows the application nothing of it', async () => {
      const { headers, raw, distinct } = JSON.parse(await s.ask('/echo', next++))
      assert.equal(headers['x-sallyport-capability'], undefined)
      assert.equal(distinct['x-sallyport-capability'], undefined)
      assert.ok(!raw.some((v) => /sallyport/i.test(v)))
      assert.equal(s.stderr(), '')
    })
  })
}
