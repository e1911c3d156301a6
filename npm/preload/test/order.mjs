// A service in which Node's own undici is loaded first, and used by the package's request alone.
import http from 'node:http'
import { createRequire } from 'node:module'

void globalThis.Request // as axios does when it looks for what is there
const undici = createRequire(import.meta.url)('undici6')
const server = http.createServer(async (req, res) => {
  const id = new URL(req.url, 'http://x').searchParams.get('id')
  const { body } = await undici.request(`${process.env.PLAIN}/first?id=${id}`)
  res.end(await body.text())
})
server.listen(0, '127.0.0.1', () => console.log('listening', server.address().port))
