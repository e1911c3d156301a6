import assert from 'node:assert/strict';
import { once } from 'node:events';
import { statSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, describe, it } from 'node:test';
import { setTimeout as wait } from 'node:timers/promises';
import { Controller, Get, UseGuards } from '@nestjs/common';
import { AnyScope, Caller, listen, protect, Public, SallyportGuard, SallyportModule, Scopes, type SallyportOptions } from '@sallyport/nestjs';
import { TestSallyport } from '@sallyport/nestjs/testing';
import { readOptions } from '../dist/options';
import { ADAPTERS, ask, create, start } from './stack/app';

@Controller()
class Root {
  @Get()
  who(@Caller('subject') subject: string) {
    return subject ?? 'nobody';
  }
}

const sallyport = new TestSallyport();
process.once('exit', () => sallyport.close());
const VARIABLES = ['ISSUER', 'AUDIENCE', 'TRUST_DOMAIN', 'HEADER', 'JWKS_FILE', 'SOCKET'].map((name) => `SALLYPORT_${name}`);
const clear = () => {
  for (const name of [...VARIABLES, 'PORT']) delete process.env[name];
};
clear();
afterEach(clear);

describe('the start', () => {
  const faults: [SallyportOptions, RegExp][] = [
    [{}, /neither audience nor SALLYPORT_AUDIENCE is set; neither issuer nor SALLYPORT_ISSUER is set; neither jwksFile nor SALLYPORT_JWKS_FILE is set/],
    [{ ...sallyport.options, issuer: '' }, /issuer is empty/],
    [{ ...sallyport.options, audience: undefined }, /neither audience nor/],
    [{ ...sallyport.options, audience: ' ' }, /audience is empty/],
    [{ ...sallyport.options, trustDomain: '' }, /trustDomain is empty/],
    [{ ...sallyport.options, header: 'a b' }, /not a header name/],
    [{ ...sallyport.options, undeclared: 'anybody' as 'nobody' }, /undeclared is neither/],
    [{ ...sallyport.options, jwksFile: '/nowhere.json' }, /read the published keys: .*nowhere/],
    [{ ...sallyport.options, jwksFile: '/dev/null' }, /not a regular file/],
  ];
  for (const [options, message] of faults) {
    it(`fails with ${JSON.stringify(options)}`, async () => {
      await assert.rejects(create('express', { imports: [SallyportModule.forRoot(options)] }), message);
      await assert.rejects(create('express', { imports: [SallyportModule.forRootAsync({ useFactory: () => options })] }), message);
    });
  }

  it('fails with a key file that holds no key, or anything but public Ed25519 keys', async () => {
    const { jwksFile } = new TestSallyport().options;
    for (const text of ['', '{}', '{"keys":[]}', '{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}']) {
      writeFileSync(jwksFile, text);
      await assert.rejects(create('express', { imports: [SallyportModule.forRoot({ ...sallyport.options, jwksFile })] }), /read the published keys/);
    }
  });

  it('takes what is not said from the environment that sallyport run gives', async () => {
    const { issuer, audience, jwksFile } = sallyport.options;
    Object.assign(process.env, { SALLYPORT_ISSUER: issuer, SALLYPORT_AUDIENCE: audience, SALLYPORT_JWKS_FILE: jwksFile });
    assert.deepEqual(readOptions({}, process.env), { issuer, audience, trustDomain: audience, header: 'txn-token', jwksFile, undeclared: 'caller' });
    const { app, url } = await start('express', { imports: [SallyportModule.forRoot()], controllers: [Root] });
    assert.equal((await ask(url, '/', { headers: await sallyport.headers() })).text, 'ada');
    assert.equal((await ask(url, '/')).status, 401);
    await app.close();
  });

  it('takes Authorization, where it is said, as "Bearer <assertion>" and nothing else', async () => {
    const other = new TestSallyport({ header: 'Authorization' });
    const { app, url } = await start('fastify', { imports: [SallyportModule.forRootAsync({ useFactory: async () => other.options })], controllers: [Root] });
    const code = async (Authorization: string) => (await ask(url, '/', { headers: { Authorization } })).json?.code;
    assert.equal((await ask(url, '/', { headers: await other.headers() })).text, 'ada');
    assert.deepEqual([await code('Bearer '), await code('Basic eDp5'), await code(`Bearer  ${await other.mint()}`)], ['malformed_header', 'malformed_header', 'token_base64']);
    await app.close();
    other.close();
  });

  it('can close what declares nothing', async () => {
    const { app, url } = await start('express', { imports: [SallyportModule.forRoot({ ...sallyport.options, undeclared: 'nobody' })], controllers: [Root] });
    assert.equal((await ask(url, '/', { headers: await sallyport.headers() })).json.code, 'undeclared');
    assert.equal((await ask(url, '/')).json.code, 'missing_assertion');
    await app.close();
  });

  it('can leave the guard to the application', async () => {
    @Controller('guarded')
    @UseGuards(SallyportGuard)
    class Guarded extends Root {}
    const { app, url } = await start('express', { imports: [SallyportModule.forRoot({ ...sallyport.options, guard: false })], controllers: [Root, Guarded] });
    assert.equal((await ask(url, '/')).text, 'nobody');
    assert.equal((await ask(url, '/guarded')).status, 401);
    await app.close();
  });
});

describe('the decorators', () => {
  const on = (...decorators: MethodDecorator[]) => () => {
    const descriptor = { value: () => undefined };
    for (const decorate of decorators) decorate({}, 'x', descriptor);
  };
  it('refuse what contradicts itself, and what no token can have', () => {
    assert.throws(on(Public(), Scopes('a')), /one of them is a mistake/);
    assert.throws(on(AnyScope('a'), Public()), /one of them is a mistake/);
    assert.throws(() => AnyScope(), /nobody could call/);
    assert.throws(() => Scopes('a b'), /"a b" is not a scope/);
    assert.throws(() => Scopes(''), /"" is not a scope/);
    on(Scopes('a'), AnyScope('b', 'c'), Scopes())();
  });
});

describe('the key file', () => {
  it('is followed: a new key, a withdrawn key, a broken file, no file, no key', async () => {
    const gate = new TestSallyport();
    const { app, url } = await start('express', { imports: [SallyportModule.forRoot(gate.options)], controllers: [Root] });
    const status = async (assertion: string) => (await ask(url, '/', { headers: { 'Txn-Token': assertion } })).status;
    const first = await gate.mint();
    assert.equal(await status(first), 200);
    gate.rotate();
    const second = await gate.mint();
    await wait(1_010);
    assert.deepEqual([await status(first), await status(second)], [200, 200]);
    gate.rotate({ withdraw: true });
    await wait(1_010);
    assert.deepEqual([await status(first), await status(second), await status(await gate.mint())], [401, 401, 200]);
    gate.publish('{"keys":[');
    await wait(1_010);
    assert.equal(await status(await gate.mint()), 200, 'the last good set stays');
    gate.publish('{"keys":[]}');
    await wait(1_010);
    assert.equal(await status(await gate.mint()), 401, 'an empty set withdraws every key');
    gate.publish();
    await wait(1_010);
    assert.equal(await status(await gate.mint()), 200);
    gate.close();
    await wait(1_010);
    assert.equal(await status(await gate.mint()), 200, 'the last good set stays without a file');
    await app.close();
  });
});

describe('listen', () => {
  const imports = [SallyportModule.forRoot(sallyport.options)];

  it('refuses what others would reach', async () => {
    const app = await create('express', { imports });
    for (const host of ['0.0.0.0', '::', '', '192.0.2.1', 'localhost', '127.evil', '*']) {
      await assert.rejects(listen(app, { port: 0, host }), /is not a loopback address/, host);
    }
    await assert.rejects(listen(app, { port: 70_000 }), /not a number/);
    await app.close();
  });

  for (const adapter of ADAPTERS) {
    it(`listens on loopback, and on a unix socket of mode 0660, with ${adapter}`, async () => {
      const app = await create(adapter, { imports });
      assert.match(await listen(app, { port: 0 }), /^http:\/\/127\.0\.0\.1:/);
      await app.close();
      const path = join(sallyport.options.jwksFile, '..', `${adapter}.sock`);
      process.env.SALLYPORT_SOCKET = path;
      const stale = createServer().listen(path);
      await once(stale, 'listening');
      const second = await create(adapter, { imports, controllers: [Root] });
      protect(second);
      await assert.rejects(listen(second), /another process does/);
      stale.unref().close();
      assert.equal(await listen(second), `unix:${path}`);
      assert.equal(statSync(path).mode & 0o777, 0o660);
      const [response] = await once(http.request({ socketPath: path, headers: await sallyport.headers() }).end(), 'response');
      assert.equal(response.statusCode, 200);
      response.resume();
      await second.close();
    });
  }
});
