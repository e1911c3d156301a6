// A NestJS service that knows nothing of sallyport. GET /call/CLIENT/ID asks the destination of that client for
// CLIENT/ID; GET /quiet/CLIENT/ID answers first and asks afterwards. Its own timer asks for tick/0.
import 'reflect-metadata'
import http from 'node:http'
import https from 'node:https'
import { createRequire } from 'node:module'
import { Controller, Get, Module, Param } from '@nestjs/common'
import { NestFactory } from '@nestjs/core'
import axios from 'axios'

const { PORT, PLAIN, SECURE } = process.env
const undici = createRequire(import.meta.url)('undici6')

const node = (agents) => (url) => new Promise((resolve, reject) => {
  const m = url.startsWith('https:') ? https : http
  m.get(url, { agent: agents[m === https ? 1 : 0] }, (res) => {
    let text = ''
    res.on('data', (d) => (text += d))
    res.on('end', () => resolve(text))
    res.on('error', reject)
  }).on('error', reject)
})
const own = axios.create({ httpAgent: new http.Agent({ keepAlive: true }), httpsAgent: new https.Agent({ keepAlive: true }) })
const clients = {
  node: node([undefined, undefined]),
  agents: node([new http.Agent({ keepAlive: true, maxSockets: 8 }), new https.Agent({ keepAlive: true, maxSockets: 8 })]),
  fetch: async (url) => (await fetch(url)).text(),
  axios: async (url) => (await axios.get(url, { responseType: 'text' })).data,
  'axios-agents': async (url) => (await own.get(url, { responseType: 'text' })).data,
  undici: async (url) => (await undici.request(url)).body.text(),
}
const ask = (client, id) => {
  const [name, scheme] = client.split('.')
  return clients[name](`${scheme === 'https' ? SECURE : PLAIN}/${client}/${id}`)
}

class Calls {
  async call(client, id) {
    const text = await ask(client, id)
    return { asked: client, id, length: text.length }
  }

  quiet(client, id) {
    setTimeout(() => ask(client, id).catch(() => {}), 50)
    return { id }
  }

  health() {
    return 'ok'
  }
}
// What the decorators would do.
for (const [name, path] of [['call', 'call/:client/:id'], ['quiet', 'quiet/:client/:id'], ['health', 'health']]) {
  Get(path)(Calls.prototype, name, Object.getOwnPropertyDescriptor(Calls.prototype, name))
  if (name === 'health') continue
  Param('client')(Calls.prototype, name, 0)
  Param('id')(Calls.prototype, name, 1)
}
Controller()(Calls)
class App {}
Module({ controllers: [Calls] })(App)

if (process.env.TICK) setInterval(() => ask(`node.${process.env.TICK}`, 'tick').catch(() => {}), 100)
const app = await NestFactory.create(App, { logger: ['error', 'warn'] })
await app.listen(PORT, '127.0.0.1')
