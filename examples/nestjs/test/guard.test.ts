import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, describe, it } from 'node:test';
import { Controller, Get, Module, UseFilters, type INestApplication } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { SubscribeMessage, WebSocketGateway } from '@nestjs/websockets';
import { WebSocket } from 'ws';
import { AppModule } from '../dist/app.module.js';
import { Callers } from '../dist/caller/callers.js';
import { Scopes } from '../dist/caller/decorators.js';
import { Keys } from '../dist/caller/keys.js';
import { AssertionWsAdapter, type GatewayOptions } from '../dist/caller/ws.adapter.js';
import { ProblemFilter } from '../dist/problem.js';
import { Sallyport } from './sallyport.js';

@Controller('forgotten')
class Forgotten {
  @Get()
  get() {
    return 'nobody said who may call this';
  }
}

@WebSocketGateway<GatewayOptions>({ path: '/messages', scopes: ['orders:read'] })
@UseFilters(ProblemFilter)
class Messages {
  @SubscribeMessage('forgotten')
  forgotten() {
    return { event: 'forgotten', data: 'open' };
  }

  @SubscribeMessage('admin')
  @Scopes('orders:admin')
  admin() {
    return { event: 'admin', data: 'open' };
  }
}

@Module({})
class TestModule {}

describe('the guard alone, without the hook before it', () => {
  let sallyport: Sallyport;
  let app: INestApplication;
  let url: string;

  before(async () => {
    sallyport = await Sallyport.start();
    const keys = await Keys.open({ file: sallyport.jwks });
    const imports = [AppModule.with(sallyport.settings(), keys)];
    const module = { module: TestModule, imports, controllers: [Forgotten], providers: [Messages] };
    app = await NestFactory.create(module, { logger: false });
    app.useWebSocketAdapter(new AssertionWsAdapter(app, app.get(Callers)));
    await app.listen(0, '127.0.0.1');
    url = await app.getUrl();
  });
  after(() => app.close());

  const get = async (path: string, assertion?: string) => {
    const response = await fetch(url + path, { headers: assertion ? { Authorization: `Bearer ${assertion}` } : {} });
    return [response.status, ((await response.json()) as { code?: string }).code];
  };

  it('verifies for itself', async () => {
    assert.deepEqual(await get('/orders'), [401, 'missing_assertion']);
    assert.deepEqual(await get('/orders', await sallyport.mint({ 'tctx.service': 'billing' })), [401, 'service_mismatch']);
    assert.deepEqual(await get('/orders', await sallyport.mint()), [200, undefined]);
    assert.deepEqual(await get('/health'), [200, undefined]);
  });

  it('closes a handler that does not say who may call it', async () => {
    assert.deepEqual(await get('/forgotten', await sallyport.mint()), [403, 'undeclared']);
  });

  it('judges every message of a WebSocket', async () => {
    const ask = async (event: string, assertion: string) => {
      const client = new WebSocket(`${url.replace('http', 'ws')}/messages`, { headers: { Authorization: `Bearer ${assertion}` } });
      await once(client, 'open');
      const answered = once(client, 'message');
      client.send(JSON.stringify({ event }));
      const { event: answer, data } = JSON.parse(String((await answered)[0]));
      client.close();
      return [answer, data.code ?? data];
    };
    assert.deepEqual(await ask('forgotten', await sallyport.mint()), ['problem', 'undeclared']);
    assert.deepEqual(await ask('admin', await sallyport.mint()), ['problem', 'insufficient_scope']);
    assert.deepEqual(await ask('admin', await sallyport.mint({ scope: 'orders:read orders:admin' })), ['admin', 'open']);
  });
});

describe('AssertionWsAdapter', () => {
  const create = (port: number, options: Partial<GatewayOptions>) => () =>
    new AssertionWsAdapter({} as INestApplication, {} as Callers).create(port, options);

  it('refuses gateways that would escape it', () => {
    assert.throws(create(3001, { path: '/ws', scopes: [] }), /listens on every address/);
    assert.throws(create(0, { path: '/ws' }), /the scopes that open it/);
    assert.throws(create(0, { scopes: [] }), /must name its path/);
  });
});
