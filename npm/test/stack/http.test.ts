import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Body, Controller, Get, Injectable, Module, Post, type INestApplication } from '@nestjs/common';
import { AnyScope, Caller, CallerContext, protect, Public, SallyportModule, Scopes } from '@sallyport/nestjs';
import { TestSallyport } from '@sallyport/nestjs/testing';
import { ADAPTERS, ask, create, start } from './app';

@Injectable()
class Deep {
  constructor(private readonly context: CallerContext) {}

  async subject() {
    await new Promise((done) => setTimeout(done, 2));
    return this.context.caller?.subject ?? 'nobody';
  }
}

@Controller('orders')
class Orders {
  constructor(private readonly deep: Deep) {}

  @Get()
  @Scopes('orders:read')
  list(@Caller() caller: Caller, @Caller('subject') subject: string) {
    return { subject, scopes: caller.scopes, claims: caller.claims, route: caller.route, expires: caller.expires instanceof Date };
  }

  @Post()
  @Scopes('orders:read')
  @Scopes('orders:write')
  create(@Body() body: unknown) {
    return body;
  }

  @Get('any')
  @AnyScope('orders:read', 'orders:admin')
  any() {
    return 'any';
  }

  @Get('undeclared')
  undeclared() {
    return this.deep.subject();
  }

  @Get('public')
  @Public('a test')
  open(@Caller() caller?: Caller) {
    return caller?.subject ?? 'nobody';
  }
}

@Controller('open')
@Public('all of it but one')
class Open {
  @Get()
  all() {
    return 'all';
  }

  @Get('closed')
  @Scopes('admin')
  closed() {
    return 'closed';
  }
}

@Module({ controllers: [Orders, Open], providers: [Deep] })
class OrdersModule {}

for (const adapter of ADAPTERS) {
  describe(`HTTP with ${adapter}`, () => {
    const sallyport = new TestSallyport({ audience: 'orders', trustDomain: 'example' });
    let app: INestApplication;
    let url: string;
    let ran = 0;
    const get = async (path: string, caller?: Parameters<TestSallyport['headers']>[0]) =>
      ask(url, path, { headers: caller ? await sallyport.headers(caller) : {} });

    before(async () => {
      ({ app, url } = await start(adapter, { imports: [SallyportModule.forRoot(sallyport.options), OrdersModule] }, (made) => {
        made.use((_request: unknown, _response: unknown, next: () => void) => {
          ran++;
          next();
        });
      }));
    });
    after(async () => {
      await app.close();
      sallyport.close();
    });

    it('lets a caller in who has the scopes, and says who calls', async () => {
      const { status, json } = await get('/orders', { scopes: ['orders:read'], claims: { tenant: 'acme' }, route: 'list' });
      assert.equal(status, 200);
      assert.deepEqual(json, { subject: 'ada', scopes: ['orders:read'], claims: { tenant: 'acme' }, route: 'list', expires: true });
    });

    it('answers 401 with a challenge and a problem where no assertion came', async () => {
      const { status, headers, json } = await get('/orders');
      assert.deepEqual([status, headers['www-authenticate'], json], [401, 'Bearer', { title: 'Unauthorized', status: 401, code: 'missing_assertion' }]);
      assert.match(headers['content-type']!, /^application\/problem\+json/);
    });

    it('answers 403 with the scopes that it takes', async () => {
      const { status, headers, json } = await get('/orders', { scopes: ['orders:write'], requestId: 'r-1' });
      assert.equal(status, 403);
      assert.equal(headers['www-authenticate'], 'Bearer error="insufficient_scope", scope="orders:read"');
      assert.deepEqual(json, { title: 'Forbidden', status: 403, code: 'insufficient_scope', request_id: 'r-1' });
    });

    it('asks for every scope of Scopes, and one of AnyScope', async () => {
      const post = async (...scopes: string[]) =>
        (await ask(url, '/orders', { method: 'POST', headers: { ...(await sallyport.headers({ scopes })), 'content-type': 'application/json' }, body: '{"a":1}' })).status;
      assert.deepEqual([await post('orders:read'), await post('orders:write'), await post('orders:write', 'orders:read')], [403, 403, 201]);
      const any = async (...scopes: string[]) => (await get('/orders/any', { scopes })).status;
      assert.deepEqual([await any(), await any('orders:write'), await any('orders:admin')], [403, 403, 200]);
    });

    it('opens what declares nothing to every caller, and to nobody else', async () => {
      assert.equal((await get('/orders/undeclared')).status, 401);
      assert.equal((await get('/orders/undeclared', { subject: 'bob' })).text, 'bob');
    });

    it('opens what is public to anybody, but not to a bad assertion', async () => {
      assert.equal((await get('/orders/public')).text, 'nobody');
      assert.equal((await get('/orders/public', {})).text, 'ada');
      const { status, json } = await get('/orders/public', { raw: { aud: 'another' } });
      assert.deepEqual([status, json.code], [401, 'audience_mismatch']);
    });

    it('takes a handler at its own word where its class says otherwise', async () => {
      assert.equal((await get('/open')).status, 200);
      assert.equal((await get('/open/closed')).status, 401);
      assert.equal((await get('/open/closed', {})).status, 403);
    });

    it('keeps the callers of requests at the same time apart', async () => {
      const names = Array.from({ length: 20 }, (_, i) => `caller-${i}`);
      assert.deepEqual(await Promise.all(names.map(async (subject) => (await get('/orders/undeclared', { subject })).text)), names);
    });

    it('refuses a header that comes twice, or in another form', async () => {
      const [one, two] = [await sallyport.mint(), await sallyport.mint()];
      const code = async (value: string | string[], name = 'Txn-Token') => (await ask(url, '/orders/undeclared', { headers: { [name]: value } })).json?.code;
      assert.equal(await code([one, two]), 'multiple_assertions');
      assert.equal(await code(`${one}, ${two}`), 'token_not_compact');
      assert.equal(await code(`Bearer ${one}`), 'token_base64');
      assert.equal(await code(`Bearer ${one}`, 'Authorization'), 'missing_assertion');
      assert.equal(await code(one, 'txn_token'), 'missing_assertion');
    });

    it('says why an assertion does not hold', async () => {
      const now = Math.floor(Date.now() / 1000);
      const other = new TestSallyport(sallyport.options);
      const cases: [Parameters<TestSallyport['headers']>[0], string][] = [
        [{ raw: { iss: 'another' } }, 'issuer_mismatch'],
        [{ raw: { tctx: { service: 'billing', route: 'r' } } }, 'service_mismatch'],
        [{ raw: { iat: now - 90, exp: now - 30 } }, 'expired'],
        [{ raw: { iat: now + 30, exp: now + 60 } }, 'not_yet_valid'],
        [{ raw: { exp: now + 3600 } }, 'lifetime_too_long'],
        [{ raw: { roles: ['admin'] } }, 'claim_unexpected'],
        [{ header: { typ: 'at+jwt' } }, 'typ_not_allowed'],
        [{ header: { kid: undefined } }, 'kid_missing'],
      ];
      for (const [caller, code] of cases) {
        const { status, headers, json } = await get('/orders/undeclared', caller);
        assert.deepEqual([status, json.code, headers['www-authenticate']], [401, code, `Bearer error="invalid_token", error_description="${code}"`]);
      }
      const { json } = await ask(url, '/orders/undeclared', { headers: await other.headers() });
      assert.equal(json.code, 'kid_unknown');
      other.close();
    });

    it('without protect leaves what stands outside controllers open', async () => {
      const before = ran;
      await get('/nowhere');
      assert.equal(ran, before + 1);
    });
  });

  describe(`protect with ${adapter}`, () => {
    const sallyport = new TestSallyport();
    let app: INestApplication;
    let url: string;
    const ran: string[] = [];

    before(async () => {
      ({ app, url } = await start(adapter, { imports: [SallyportModule.forRoot(sallyport.options), OrdersModule] }, (made) => {
        made.use('/mounted', (_request: unknown, response: { end(text: string): void }) => {
          ran.push('mounted');
          response.end('mounted');
        });
        protect(made, { allow: ['GET /orders/public', 'GET /assets/*'] });
      }));
      const router = app.getHttpAdapter();
      assert.ok(router);
    });
    after(async () => {
      await app.close();
      sallyport.close();
    });

    it('stands before app.use, also what was added before it', async () => {
      const refused = await ask(url, '/mounted');
      assert.deepEqual([refused.status, refused.json.code, ran.length], [401, 'missing_assertion', 0]);
      assert.equal((await ask(url, '/mounted', { headers: await sallyport.headers() })).text, 'mounted');
    });

    it('stands before the body parser', async () => {
      const { status, json } = await ask(url, '/orders', { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{' });
      assert.deepEqual([status, json.code], [401, 'missing_assertion']);
    });

    it('refuses what is not there like what is', async () => {
      assert.equal((await ask(url, '/nowhere')).status, 401);
      assert.equal((await ask(url, '/nowhere', { headers: await sallyport.headers() })).status, 404);
    });

    it('lets through what is allowed, and nothing that is like it', async () => {
      assert.equal((await ask(url, '/orders/public?x')).text, 'nobody');
      assert.equal((await ask(url, '/orders/public', { method: 'HEAD' })).status, 200);
      assert.equal((await ask(url, '/assets/a/b.css')).status, 404);
      const spellings = ['/orders/public/', '/ORDERS/public', '/orders//public', '/orders/%70ublic', '/orders/public;x', 'http://h/orders/public', '/orders/x/../public'];
      const below = ['/assets/../orders/undeclared', '/assets/%2e%2e/orders', '/assets/..%2forders', '/assets//x', '/assets\\x', '/assets', '/ASSETS/x', '/assets/x;y'];
      for (const path of [...spellings, ...below]) assert.equal((await ask(url, path)).status, 401, path);
      assert.equal((await ask(url, '/orders/public', { method: 'DELETE' })).status, 401);
    });

    it('does not let a bad assertion through to what is allowed', async () => {
      const { json } = await ask(url, '/orders/public', { headers: await sallyport.headers({ raw: { iss: 'x' } }) });
      assert.equal(json.code, 'issuer_mismatch');
    });

    it('leaves the rest to the guard', async () => {
      assert.equal((await ask(url, '/orders', { headers: await sallyport.headers() })).status, 403);
      const allowed = await ask(url, '/orders', { headers: await sallyport.headers({ scopes: ['orders:read'] }) });
      assert.equal(allowed.json.subject, 'ada');
    });

    it('stands at every address where Fastify listens', async () => {
      if (adapter !== 'fastify') return;
      const made = await create(adapter, { imports: [SallyportModule.forRoot(sallyport.options), OrdersModule] });
      protect(made);
      await made.listen(0, 'localhost');
      const addresses = (made.getHttpAdapter().getInstance() as { addresses(): { address: string; port: number }[] }).addresses();
      for (const { address, port } of addresses) {
        const base = `http://${address.includes(':') ? `[${address}]` : address}:${port}`;
        const response = await fetch(`${base}/nowhere`);
        assert.deepEqual([response.status, ((await response.json()) as { code: string }).code], [401, 'missing_assertion'], address);
        assert.match(response.headers.get('content-type')!, /^application\/problem\+json/);
        assert.equal((await fetch(`${base}/nowhere`, { headers: await sallyport.headers() })).status, 404);
      }
      await made.close();
    });
  });
}

describe('protect', () => {
  it('refuses rules that could mean something else', async () => {
    const sallyport = new TestSallyport();
    const app = await create('express', { imports: [SallyportModule.forRoot(sallyport.options)] });
    for (const rule of ['/health', 'GET health', 'get /health', 'GET /a/../b', 'GET /a%2fb', 'GET /a*', 'GET //x', 'GET /a;b', 'GET ', '* /x', 'GET /x y']) {
      assert.throws(() => protect(app, { allow: [rule] }), /is not "METHOD \/path"/, rule);
    }
    await app.close();
    sallyport.close();
  });

  it('refuses an application without the module', async () => {
    const app = await create('express', {});
    assert.throws(() => protect(app), /does not import SallyportModule/);
    await app.close();
  });
});
