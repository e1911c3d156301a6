// A service that node:cluster multiplies: its workers serve.
import cluster from 'node:cluster'
import http from 'node:http'

if (cluster.isPrimary) {
  cluster.fork().on('message', (port) => console.log('listening', port))
} else {
  fetch(`${process.env.PLAIN}/in-cluster?id=start`).catch(() => {})
  process.on('disconnect', () => process.exit())
  const server = http.createServer((req, res) => fetch(`${process.env.PLAIN}${req.url}`).then(() => res.end()))
  server.listen(0, '127.0.0.1', () => process.send(server.address().port))
}
