import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { connect, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import { HttpService } from '@nestjs/axios';
import { Controller, Get, Inject, Query, type INestApplication } from '@nestjs/common';
import { SallyportModule } from '@sallyport/nestjs';
import { SallyportHttpModule } from '@sallyport/nestjs/http';
import { TestSallyport } from '@sallyport/nestjs/testing';
import { firstValueFrom } from 'rxjs';
import { ask, start } from './stack/app';

@Controller()
class Calls {
  constructor(@Inject(HttpService) readonly http: HttpService) {}

  @Get('call')
  async call(@Query('url') url: string) {
    await new Promise((done) => setTimeout(done, Math.random() * 5));
    return (await firstValueFrom(this.http.get(url, { headers: { 'X-Sallyport-Capability': 'forged', 'Txn-Token': 'leaked' } }))).data;
  }
}

const folder = mkdtempSync(join(tmpdir(), 'sallyport-tls-'));
const file = (name: string) => join(folder, name);
execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=localhost',
  '-addext', 'subjectAltName=DNS:localhost', '-keyout', file('key.pem'), '-out', file('cert.pem')], { stdio: 'ignore' });
const listening = async (server: http.Server) => {
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  return (server.address() as AddressInfo).port;
};

describe('SallyportHttpModule', () => {
  const sallyport = new TestSallyport();
  const asked: http.IncomingHttpHeaders[] = [];
  const answer: http.RequestListener = (request, response) => {
    asked.push(request.headers);
    if (request.url === '/elsewhere') response.writeHead(302, { Location: '/' }).end();
    else response.end(JSON.stringify(request.headers));
  };
  const plain = http.createServer(answer);
  const secure = https.createServer({ key: readFileSync(file('key.pem')), cert: readFileSync(file('cert.pem')) }, answer);
  /** A forward proxy: what the gate behind is to a service. */
  const led: { line: string; headers: http.IncomingHttpHeaders }[] = [];
  const gate = http.createServer((request, response) => {
    led.push({ line: `${request.method} ${request.url}`, headers: request.headers });
    const { 'proxy-authorization': _, ...headers } = request.headers;
    http.request(request.url!, { headers }, (answered) => answered.pipe(response)).on('error', () => response.destroy()).end();
  });
  gate.on('connect', (request, socket) => {
    led.push({ line: `CONNECT ${request.url}`, headers: request.headers });
    if (request.url!.startsWith('refused')) return socket.end('HTTP/1.1 403 Forbidden\r\n\r\n');
    const to = connect(Number(request.url!.split(':')[1]), '127.0.0.1', () => {
      socket.write('HTTP/1.1 200 OK\r\n\r\n');
      socket.pipe(to).pipe(socket);
    });
    to.on('error', () => socket.destroy());
    return undefined;
  });
  let app: INestApplication;
  let url: string;
  let service: HttpService;
  let ports: { plain: number; secure: number; gate: number };
  const call = async (target: string, capability: string | undefined) => {
    const headers = { ...(await sallyport.headers()), Authorization: 'Bearer secret', traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-01` };
    return ask(url, `/call?url=${encodeURIComponent(target)}`, { headers: { ...headers, ...(capability && { 'X-Sallyport-Capability': capability }) } });
  };

  before(async () => {
    ports = { plain: await listening(plain), secure: await listening(secure), gate: await listening(gate) };
    const imports = [SallyportModule.forRoot(sallyport.options), SallyportHttpModule.register({})];
    ({ app, url } = await start('express', { imports, controllers: [Calls] }));
    service = app.get(HttpService, { strict: false });
  });
  afterEach(() => {
    delete process.env.SALLYPORT_PROXY;
    asked.length = led.length = 0;
  });
  after(async () => {
    await app.close();
    for (const server of [plain, secure, gate]) server.close().closeAllConnections();
    sallyport.close();
    rmSync(folder, { recursive: true });
  });

  it('returns the capability of the request that is served, and nothing else of it', async () => {
    const { json } = await call(`http://127.0.0.1:${ports.plain}/`, 'cap-1');
    assert.equal(json['x-sallyport-capability'], 'cap-1');
    assert.match(json.traceparent, /^00-a{32}-b{16}-01$/);
    for (const name of ['authorization', 'txn-token', 'proxy-authorization']) assert.equal(json[name], undefined, name);
  });

  it('keeps requests at the same time apart', async () => {
    const names = Array.from({ length: 30 }, (_, i) => `cap-${i}`);
    for (const proxy of ['', `http://127.0.0.1:${ports.gate}`]) {
      process.env.SALLYPORT_PROXY = proxy;
      led.length = 0;
      const answers = await Promise.all(names.map((name) => call(`http://127.0.0.1:${ports.plain}/${name}`, name)));
      if (!proxy) assert.deepEqual(answers.map(({ json }) => json['x-sallyport-capability']), names);
      else for (const { line, headers } of led) assert.ok(line.endsWith(`/${headers['proxy-authorization']!.slice('Bearer '.length)}`), line);
    }
    assert.equal(led.length, names.length);
  });

  it('presents nothing outside a request, and nothing for one that came past the gate', async () => {
    const { data } = await firstValueFrom(service.get(`http://127.0.0.1:${ports.plain}/`));
    assert.equal(data['x-sallyport-capability'], undefined);
    assert.equal((await call(`http://127.0.0.1:${ports.plain}/`, undefined)).json['x-sallyport-capability'], undefined);
  });

  it('leads plain requests to the gate in absolute form', async () => {
    process.env.SALLYPORT_PROXY = `http://127.0.0.1:${ports.gate}`;
    const { json } = await call(`http://localhost:${ports.plain}/a?b=c`, 'cap-2');
    assert.deepEqual(led.map(({ line }) => line), [`GET http://localhost:${ports.plain}/a?b=c`]);
    assert.equal(led[0]!.headers['proxy-authorization'], 'Bearer cap-2');
    assert.equal(json.host, `localhost:${ports.plain}`);
  });

  it('leads a request to the host of its URL, whatever its Host header is', async () => {
    process.env.SALLYPORT_PROXY = `http://127.0.0.1:${ports.gate}`;
    await firstValueFrom(service.get(`http://127.0.0.1:${ports.plain}/a`, { headers: { Host: 'admin.internal' } }));
    await assert.rejects(firstValueFrom(service.get('http://[::1]:9/a', { headers: { host: 'admin.internal' } })));
    await assert.rejects(firstValueFrom(service.get('http://nowhere.invalid/a', { headers: { host: 'admin.internal' } })));
    assert.deepEqual(led.map(({ line }) => line), [`GET http://127.0.0.1:${ports.plain}/a`, 'GET http://[::1]:9/a', 'GET http://nowhere.invalid/a']);
  });

  it('leads TLS through a tunnel, and says inside it nothing of the capability', async () => {
    process.env.SALLYPORT_PROXY = `http://127.0.0.1:${ports.gate}`;
    const refused = await call(`https://localhost:${ports.secure}/`, 'cap-3');
    assert.equal(refused.status, 500, 'a certificate that nobody vouches for');
    process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
    const { json } = await call(`https://localhost:${ports.secure}/`, 'cap-3');
    delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
    assert.deepEqual(led.map(({ line, headers }) => [line, headers['proxy-authorization']]), Array(2).fill([`CONNECT localhost:${ports.secure}`, 'Bearer cap-3']));
    assert.equal(json['x-sallyport-capability'] ?? json['proxy-authorization'], undefined);
    await assert.rejects(firstValueFrom(service.get('https://refused.test/')), /the gate refused a connection to refused.test:443: 403/);
  });

  it('leaves what the preload does to the preload', async () => {
    process.env.SALLYPORT_PROXY = `http://127.0.0.1:${ports.gate}`;
    process.env.SALLYPORT_SERVICE = String(process.pid);
    try {
      const { json } = await call(`http://127.0.0.1:${ports.plain}/`, 'cap-4');
      assert.equal(json['x-sallyport-capability'], undefined);
      assert.equal(led.length, 0);
    } finally {
      delete process.env.SALLYPORT_SERVICE;
    }
  });

  it('refuses what would lead a request past the gate', async () => {
    const fields = { socketPath: '/var/run/docker.sock', proxy: { host: 'x', port: 1 }, httpAgent: new http.Agent(), httpsAgent: new https.Agent(), transport: http, adapter: 'fetch', lookup: () => undefined };
    for (const [name, value] of Object.entries(fields)) {
      await assert.rejects(firstValueFrom(service.request({ url: `http://127.0.0.1:${ports.plain}/`, [name]: value } as object)), /past the gate/, name);
      if (name !== 'adapter') assert.throws(() => SallyportHttpModule.register({ [name]: value }), /past the gate/, name);
    }
    service.axiosRef.interceptors.request.use((config) => ({ ...config, socketPath: '/var/run/docker.sock' }));
    await assert.rejects(firstValueFrom(service.get(`http://127.0.0.1:${ports.plain}/`)), /socketPath would lead/);
    service.axiosRef.interceptors.request.clear();
    assert.equal(asked.length, 0);
  });

  it('follows no redirect, and lets no path replace the base URL', async () => {
    const { app: other } = await start('express', { imports: [SallyportModule.forRoot(sallyport.options), SallyportHttpModule.register({ baseURL: `http://127.0.0.1:${ports.plain}/base` })] });
    const based = other.get(HttpService, { strict: false });
    await assert.rejects(firstValueFrom(based.get(`http://127.0.0.1:${ports.plain}/elsewhere`, { baseURL: '' })), /302/);
    await firstValueFrom(based.get('http://192.0.2.1/'));
    assert.equal(asked.length, 2);
    await other.close();
  });
});
