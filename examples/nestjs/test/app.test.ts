import assert from 'node:assert/strict';
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer, request, type IncomingHttpHeaders, type Server } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import { Logger, type INestApplication } from '@nestjs/common';
import { WebSocket } from 'ws';
import { createApp, listen } from '../dist/app.js';
import { Sallyport, segment } from './sallyport.js';

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
  json: any;
}

for (const adapter of ['express', 'fastify'] as const) {
  describe(`the orders API on ${adapter}`, () => {
    let sallyport: Sallyport;
    let app: INestApplication;
    let port: number;
    let good: string;
    let rates: Server;
    const asked: { url?: string; headers: IncomingHttpHeaders }[] = [];

    before(async () => {
      rates = createServer(({ url, headers }, response) => {
        asked.push({ url, headers });
        if (url?.includes('XXX')) response.writeHead(302, { Location: '/' }).end();
        else response.end('{"base":"EUR","rates":{"USD":1.1}}');
      }).listen(0, '127.0.0.1');
      await once(rates, 'listening');
      const ratesUrl = new URL(`http://127.0.0.1:${(rates.address() as AddressInfo).port}/latest`);
      sallyport = await Sallyport.start();
      const settings = sallyport.settings(adapter, { ratesUrl });
      app = await createApp(settings);
      Logger.overrideLogger(false);
      port = Number(new URL(await listen(app, settings)).port);
    });
    beforeEach(async () => {
      good = await sallyport.mint(); // it lives for a minute
    });
    after(async () => {
      await app.close();
      rates.close();
    });

    /** No client that repairs a path stands between the test and the service. */
    async function send(line: string, assertion?: string | string[], body?: unknown, type = 'application/json'): Promise<Answer> {
      const [method, path] = line.split(' ');
      const headers: Record<string, string | string[]> = {};
      if (assertion !== undefined) headers.Authorization = [assertion].flat().map((a) => `Bearer ${a}`);
      if (body !== undefined) headers['Content-Type'] = type;
      const sent = request({ port, host: '127.0.0.1', method, path, headers });
      sent.end(body === undefined || typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body));
      const [response] = await once(sent, 'response');
      let text = '';
      for await (const chunk of response) text += chunk;
      const json = text && String(response.headers['content-type']).includes('json') ? JSON.parse(text) : undefined;
      return { status: response.statusCode, headers: response.headers, text, json };
    }

    function isProblem({ status, headers, json }: Answer, expected: number, code: string): void {
      assert.deepEqual([status, json?.code, json?.status], [expected, code, expected]);
      assert.match(headers['content-type']!, /^application\/problem\+json/);
      assert.equal(headers['x-powered-by'], undefined);
      if (expected === 401) assert.match(headers['www-authenticate']!, /^Bearer realm="orders"/);
    }

    const order = { customer: 'Joan', items: [{ article: 'CUP-001', quantity: 3 }] };

    it('answers a good assertion', async () => {
      const { status, json, headers } = await send('GET /orders', good);
      assert.equal(status, 200);
      assert.deepEqual(json.map(({ id }: { id: string }) => id).slice(0, 2), ['o-1001', 'o-1002']);
      assert.equal(headers['x-powered-by'], undefined);
      assert.equal((await send('GET /orders?status=shipped', good)).json.length, 1);
      assert.equal((await send('GET /orders/o-1001', good)).json.customer, 'Ada');
      isProblem(await send('GET /orders/o-9', good), 404, 'not_found');
    });

    it('places and deletes an order', async () => {
      const { status, json } = await send('POST /orders', good, order);
      assert.equal(status, 201);
      assert.deepEqual([json.total, json.placedBy, json.status], [3870, 'ada', 'open']);
      const admin = await sallyport.mint({ scope: 'orders:admin', 'tctx.claims': { roles: ['orders-admin'] } });
      assert.equal((await send(`DELETE /orders/${json.id}`, admin)).status, 204);
      isProblem(await send(`GET /orders/${json.id}`, good), 404, 'not_found');
    });

    const bodies: [string, unknown][] = [
      ['a price from the client', { ...order, total: 1 }],
      ['an unknown article', { ...order, items: [{ article: 'GOLD', quantity: 1 }] }],
      ['a fraction of an article', { ...order, items: [{ article: 'CUP-001', quantity: 0.5 }] }],
      ['no items', { ...order, items: [] }],
      ['a list', [order]],
      ['half a document', '{"customer":'],
    ];
    for (const [name, body] of bodies) {
      it(`refuses an order with ${name}`, async () => isProblem(await send('POST /orders', good, body), 400, 'invalid_request'));
    }

    it('refuses requests without an assertion, on every path and with every method', async () => {
      const lines = [
        'GET /', 'GET /orders', 'HEAD /orders', 'OPTIONS /orders', 'GET /orders/o-1001', 'POST /orders', 'DELETE /orders/o-1001',
        'GET /orders/events', 'GET /invoices/2026-0001.txt', 'GET /invoices/export?file=/etc/hostname', 'POST /uploads',
        'GET /rates?base=EUR', 'GET /docs', 'GET /docs/', 'GET /docs-json', 'GET /docs-yaml', 'GET /docs/swagger-ui.css',
        'GET /docs/swagger-ui-init.js', 'GET /DOCS', 'GET /ws', 'GET /no/such/path', 'POST /health/', 'GET /HEALTH', 'GET //health',
        'GET /health/../orders', 'GET /%68ealth', 'GET /orders?/health', 'GET /orders;/health',
      ];
      for (const line of lines) {
        const answer = await send(line);
        assert.equal(answer.status, 401, line);
        assert.equal(answer.headers['www-authenticate'], 'Bearer realm="orders"', line);
        if (!line.startsWith('HEAD')) isProblem(answer, 401, 'missing_assertion');
      }
    });

    it('reads no body of someone unknown', async () => {
      isProblem(await send('POST /orders', undefined, '{"customer":'), 401, 'missing_assertion');
      const socket = connect(port, '127.0.0.1');
      socket.write('POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n');
      const [answer] = await once(socket, 'data'); // though the body never comes
      assert.match(String(answer), /^HTTP\/1.1 401 /);
      socket.destroy();
    });

    it('refuses assertions that do not hold', async () => {
      const now = Math.floor(Date.now() / 1000);
      const hs256 = `${segment(sallyport.header({ alg: 'HS256' }))}.${segment(sallyport.claims())}`;
      const none = `${segment(sallyport.header({ alg: 'none' }))}.${segment(sallyport.claims())}`;
      const cases: [string | string[], string][] = [
        [await sallyport.mint({ 'tctx.service': 'billing' }), 'service_mismatch'],
        [await sallyport.mint({ iss: 'https://issuer.test' }), 'issuer_mismatch'],
        [await sallyport.mint({ iat: now - 120, exp: now - 60 }), 'expired'],
        [await sallyport.mint({}, { typ: 'at+jwt' }), 'typ_not_allowed'],
        [`${none}.`, 'token_not_compact'],
        [`${none}.AAAA`, 'alg_not_allowed'],
        [`${hs256}.${createHmac('sha256', JSON.stringify(sallyport.jwk)).update(hs256).digest('base64url')}`, 'alg_not_allowed'],
        [await (await Sallyport.start()).mint({}, { kid: sallyport.jwk.kid }), 'signature_invalid'],
        ['', 'malformed_header'], // Node trims the value
        [[good, good], 'multiple_assertions'],
      ];
      for (const [assertion, code] of cases) {
        for (const path of ['/orders', '/docs', '/health']) {
          const answer = await send(`GET ${path}`, assertion);
          isProblem(answer, 401, code);
          assert.match(answer.headers['www-authenticate']!, /error="invalid_token"/);
          assert.ok(!answer.text.includes('eyJ'), 'the answer holds the assertion');
        }
      }
    });

    it('asks for scopes and roles', async () => {
      const reader = await sallyport.mint({ scope: 'orders:read' });
      const answer = await send('POST /orders', reader, order);
      isProblem(answer, 403, 'insufficient_scope');
      assert.equal(answer.headers['www-authenticate'], 'Bearer realm="orders", error="insufficient_scope", scope="orders:write"');
      assert.equal(answer.json.request_id, 'request-1');
      isProblem(await send('GET /orders', await sallyport.mint({ scope: 'orders:reader xorders:read' })), 403, 'insufficient_scope');
      isProblem(await send('GET /orders', await sallyport.mint({ scope: undefined })), 403, 'insufficient_scope');
      const clerk = await sallyport.mint({ scope: 'orders:admin' });
      isProblem(await send('DELETE /orders/o-1001', clerk), 403, 'insufficient_role');
      const roleOnly = await sallyport.mint({ 'tctx.claims': { roles: ['orders-admin'] } });
      isProblem(await send('DELETE /orders/o-1001', roleOnly), 403, 'insufficient_scope');
      assert.equal((await send('GET /orders/o-1001', good)).status, 200);
    });

    it('tells anybody that it is alive, and that only', async () => {
      assert.equal((await send('GET /health')).json.status, 'ok');
      assert.equal((await send('GET /health?path=/etc/shadow')).json.status, 'ok');
    });

    it('shows its documentation to callers', async () => {
      for (const path of ['/docs', '/docs/swagger-ui.css', '/docs/swagger-ui-init.js']) {
        assert.equal((await send(`GET ${path}`, good)).status, 200, path);
      }
      assert.ok((await send('GET /docs-json', good)).json.paths['/orders/{id}'].delete);
    });

    it('hands out invoices by name only', async () => {
      const { status, text, headers } = await send('GET /invoices/2026-0001.txt', good);
      assert.equal(status, 200);
      assert.match(text, /^Invoice 2026-0001/);
      assert.match(headers['content-disposition']!, /^attachment/);
      isProblem(await send('GET /invoices/2099-0001.txt', good), 404, 'not_found');
      for (const name of ['..%2f..%2f..%2fetc%2fpasswd', '%2fetc%2fpasswd', 'shadow']) {
        isProblem(await send(`GET /invoices/${name}`, good), 400, 'invalid_request');
      }
    });

    it('exports any file that the process may read: walls are needed', async () => {
      const file = join(sallyport.folder, 'secret');
      writeFileSync(file, 'a secret');
      assert.equal((await send(`GET /invoices/export?file=${file}`, good)).text, 'a secret');
      isProblem(await send(`GET /invoices/export?file=${file}x`, good), 404, 'not_found');
      isProblem(await send(`GET /invoices/export?file=${sallyport.folder}`, good), 404, 'not_found');
      isProblem(await send('GET /invoices/export?file=/etc&file=/', good), 400, 'invalid_request');
      isProblem(await send('GET /invoices/export?file=http://127.0.0.1:1/', good), 403, 'address_forbidden');
    });

    it('counts an upload as it streams', async () => {
      const body = randomBytes(3_000_000);
      const { status, json } = await send('POST /uploads', good, body, 'application/octet-stream');
      assert.equal(status, 201);
      assert.deepEqual(json, { bytes: body.length, sha256: createHash('sha256').update(body).digest('hex') });
      isProblem(await send('POST /uploads', good, {}), 415, 'unsupported_media_type');
      isProblem(await send('POST /uploads', good, Buffer.alloc(11 << 20), 'application/octet-stream'), 413, 'too_large');
    });

    it('asks for rates at its own address, and tells that service nothing of the caller', async () => {
      assert.equal((await send('GET /rates?base=EUR', good)).json.rates.USD, 1.1);
      assert.equal(asked.at(-1)!.url, '/latest?base=EUR');
      assert.equal(asked.at(-1)!.headers.authorization, undefined);
      isProblem(await send('GET /rates?base=http://127.0.0.1/', good), 400, 'invalid_request');
      const before = asked.length;
      isProblem(await send('GET /rates?base=XXX', good), 502, 'bad_gateway'); // a redirect is not followed
      assert.equal(asked.length, before + 1);
    });

    it('streams what happens to orders', async () => {
      const sent = request({ port, host: '127.0.0.1', path: '/orders/events', headers: { Authorization: `Bearer ${good}` } }).end();
      const [response] = await once(sent, 'response');
      assert.match(response.headers['content-type'], /^text\/event-stream/);
      const { json } = await send('POST /orders', good, order);
      let text = '';
      for await (const chunk of response) if ((text += chunk).includes(json.id)) break;
      assert.match(text, /event: created\n/);
    });

    /** The status of a refused upgrade, or the open WebSocket. */
    function upgrade(path: string, assertion?: string): Promise<WebSocket | Answer> {
      const headers = assertion === undefined ? {} : { Authorization: `Bearer ${assertion}` };
      const client = new WebSocket(`ws://127.0.0.1:${port}${path}`, { headers });
      return new Promise((resolve, reject) => {
        client.once('open', () => resolve(client));
        client.once('error', reject);
        client.once('unexpected-response', async (_request, response) => {
          let text = '';
          for await (const chunk of response) text += chunk;
          resolve({ status: response.statusCode!, headers: response.headers, text, json: JSON.parse(text) });
        });
      });
    }

    it('opens a WebSocket to those who may read, and pushes what happens', async () => {
      const client = (await upgrade('/ws', good)) as WebSocket;
      const pushed = once(client, 'message');
      const { json } = await send('POST /orders', good, order);
      assert.deepEqual(JSON.parse(String((await pushed)[0])), { event: 'created', data: json });
      const answered = once(client, 'message');
      client.send('{"event":"count"}');
      const { event, data } = JSON.parse(String((await answered)[0]));
      assert.ok(event === 'count' && data >= 3);
      client.close();
      await once(client, 'close');
    });

    it('opens no WebSocket to anybody else', async () => {
      isProblem((await upgrade('/ws')) as Answer, 401, 'missing_assertion');
      isProblem((await upgrade('/ws', await sallyport.mint({ 'tctx.service': 'billing' }))) as Answer, 401, 'service_mismatch');
      isProblem((await upgrade('/ws', await sallyport.mint({}, { typ: 'JWT' }))) as Answer, 401, 'typ_not_allowed');
      isProblem((await upgrade('/ws', await sallyport.mint({ scope: 'orders:write' }))) as Answer, 403, 'insufficient_scope');
      await assert.rejects(upgrade('/health'), /socket hang up/);
      for (const target of ['//evil/ws', '/x/../ws', '/%2e/ws', 'http://evil/ws']) {
        const socket = connect(port, '127.0.0.1');
        socket.write(
          `GET ${target} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n` +
            `Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}\r\nAuthorization: Bearer ${good}\r\n\r\n`,
        );
        const [answer] = await once(socket, 'data');
        assert.match(String(answer), /^HTTP\/1.1 404 /, target);
        socket.destroy();
      }
    });
  });
}

describe('shutting down', () => {
  for (const adapter of ['express', 'fastify'] as const) {
    it(`ends event streams and WebSockets on ${adapter}`, async () => {
      const sallyport = await Sallyport.start();
      const settings = sallyport.settings(adapter, { header: 'x-caller' });
      const app = await createApp(settings);
      const { port } = new URL(await listen(app, settings));
      const headers = { 'X-Caller': await sallyport.mint() }; // in a header of its own, without a scheme
      const [events] = await once(request({ port, host: '127.0.0.1', path: '/orders/events', headers }).end(), 'response');
      const client = new WebSocket(`ws://127.0.0.1:${port}/ws`, { headers });
      await once(client, 'open');
      const ended = Promise.all([once(events.resume(), 'end'), once(client, 'close')]);
      await app.close();
      const [, [code]] = await ended;
      assert.equal(code, 1001);
    });
  }
});
