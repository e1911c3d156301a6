import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, describe, it } from 'node:test';
import type { INestApplication, Type } from '@nestjs/common';
import { IoAdapter } from '@nestjs/platform-socket.io';
import { WsAdapter } from '@nestjs/platform-ws';
import { ConnectedSocket, MessageBody, SubscribeMessage, WebSocketGateway } from '@nestjs/websockets';
import { Caller, CallerContext, protect, Public, SallyportModule, Scopes } from '@sallyport/nestjs';
import { TestSallyport } from '@sallyport/nestjs/testing';
import { io } from 'socket.io-client';
import WebSocket from 'ws';
import { ADAPTERS, ask, create, start } from './app';

const connected: string[] = [];

class Events {
  constructor(readonly context: CallerContext) {}

  handleConnection() {
    connected.push(this.context.caller?.subject ?? 'nobody');
  }

  @SubscribeMessage('who')
  who(@ConnectedSocket() _client: unknown, @MessageBody() _body: unknown, @Caller('subject') subject: string) {
    return { event: 'who', data: `${subject} ${this.context.caller?.subject}` };
  }

  @Scopes('admin')
  @SubscribeMessage('admin')
  admin() {
    return { event: 'admin', data: 'open' };
  }
}

@WebSocketGateway({ path: '/ws' })
class Plain extends Events {
  constructor(context: CallerContext) {
    super(context);
  }
}

@WebSocketGateway({ path: '/io' })
class SocketIo extends Events {
  constructor(context: CallerContext) {
    super(context);
  }
}

@WebSocketGateway(3999)
class OwnPort {}

const headersOf = (sallyport: TestSallyport, ...scopes: string[]) => sallyport.headers({ scopes });

/** Sends messages and collects the answers up to the one to the last. */
function answersTo(client: WebSocket, events: string[], last: string): Promise<any[]> {
  return new Promise((resolve) => {
    const answers: any[] = [];
    client.on('message', function collect(data) {
      answers.push(JSON.parse(String(data)));
      if (answers.at(-1).event !== last) return;
      client.off('message', collect);
      resolve(answers);
    });
    for (const event of events) client.send(JSON.stringify({ event }));
  });
}

for (const adapter of ADAPTERS) {
  describe(`WebSocket gateways with ${adapter}`, () => {
    const sallyport = new TestSallyport();
    let app: INestApplication;
    let url: string;
    const begin = (gateway: Type, use: (app: INestApplication) => void) => async () => {
      ({ app, url } = await start(adapter, { imports: [SallyportModule.forRoot(sallyport.options)], providers: [gateway] }, (made) => {
        protect(made);
        use(made);
      }));
    };

    describe('of platform-ws', () => {
      before(begin(Plain, (made) => made.useWebSocketAdapter(new WsAdapter(made))));
      after(() => app.close());
      const open = (headers: Record<string, string> = {}, path = '/ws') => new WebSocket(`${url.replace('http', 'ws')}${path}`, { headers });

      it('refuses an upgrade without an assertion: nothing is open, nothing ran', async () => {
        const before = connected.length;
        for (const path of ['/ws', '/x/../ws', '//evil/ws', '/ws?x']) {
          const [, response] = await once(open({}, path), 'unexpected-response');
          assert.deepEqual([response.statusCode, response.headers['www-authenticate']], [401, 'Bearer'], path);
          let body = '';
          for await (const chunk of response) body += chunk;
          assert.equal(JSON.parse(body).code, 'missing_assertion');
        }
        const [, response] = await once(open(await sallyport.headers({ raw: { iss: 'x' } })), 'unexpected-response');
        assert.equal(response.headers['www-authenticate'], 'Bearer error="invalid_token", error_description="issuer_mismatch"');
        assert.equal(connected.length, before);
      });

      it('opens with one, and judges every message by it', async () => {
        const client = open(await headersOf(sallyport));
        await once(client, 'open');
        assert.equal(connected.at(-1), 'ada');
        const say = (...events: string[]) => answersTo(client, events, 'who');
        assert.deepEqual(await say('who'), [{ event: 'who', data: 'ada ada' }]);
        // before NestJS 12 its filter tells nobody on this adapter: the refused message stays unanswered
        const answers = await say('admin', 'who');
        assert.ok(answers.slice(0, -1).every(({ event, data }) => event === 'exception' && data.code === 'insufficient_scope'), JSON.stringify(answers));
        client.close();
        const other = open(await headersOf(sallyport, 'admin'));
        await once(other, 'open');
        other.send('{"event":"admin"}');
        assert.deepEqual(JSON.parse(String((await once(other, 'message'))[0])), { event: 'admin', data: 'open' });
        other.close();
      });

      it('survives a connection that breaks while it is judged', async () => {
        for (let i = 0; i < 20; i++) {
          const client = open(await headersOf(sallyport));
          client.on('error', () => undefined);
          client.on('upgrade', () => client.terminate());
          setTimeout(() => client.terminate(), i % 5);
        }
        await new Promise((done) => setTimeout(done, 100));
        assert.equal((await ask(url, '/nowhere', { headers: await sallyport.headers() })).status, 404);
      });
    });

    describe('of platform-socket.io', () => {
      before(begin(SocketIo, (made) => made.useWebSocketAdapter(new IoAdapter(made))));
      after(async () => {
        await app.close();
        sallyport.close();
      });

      for (const transport of ['websocket', 'polling'] as const) {
        const open = (extraHeaders: Record<string, string> = {}) =>
          io(url, { path: '/io', transports: [transport], extraHeaders, reconnection: false, forceNew: true });

        it(`refuses a handshake by ${transport} without an assertion`, async () => {
          const before = connected.length;
          const client = open();
          const error = await new Promise<any>((resolve) => client.on('connect_error', resolve));
          assert.match(String(error.description?.message ?? error.description ?? error.context?.status), /401/);
          client.close();
          assert.equal(connected.length, before);
        });

        it(`opens by ${transport} with one, and judges every message by it`, async () => {
          const client = open(await headersOf(sallyport));
          await new Promise<void>((resolve, reject) => client.on('connect', resolve).on('connect_error', reject));
          const say = (event: string) =>
            new Promise<any>((resolve) => {
              client.once('who', resolve).once('exception', resolve).once('admin', resolve);
              client.emit(event, {});
            });
          assert.equal(await say('who'), 'ada ada');
          assert.equal((await say('admin')).code, 'insufficient_scope');
          client.close();
        });
      }
    });
  });
}

describe('an application with a gateway', () => {
  const sallyport = new TestSallyport();
  const imports = [SallyportModule.forRoot(sallyport.options)];
  after(() => sallyport.close());

  it('does not come up without protect', async () => {
    const app = await create('express', { imports, providers: [Plain] });
    app.useWebSocketAdapter(new WsAdapter(app));
    await assert.rejects(app.listen(0, '127.0.0.1'), /Plain: guards see the messages of a WebSocket, not that it is opened; call protect\(app\)/);
    await app.close();
  });

  it('does not come up with a port of its own', async () => {
    await assert.rejects(create('express', { imports, providers: [OwnPort] }), /OwnPort: a gateway with a port of its own \(3999\) listens on every address/);
  });

  it('opens what is allowed as UPGRADE, for messages that are public', async () => {
    @WebSocketGateway({ path: '/open' })
    class Open {
      @Public()
      @SubscribeMessage('hello')
      hello() {
        return { event: 'hello', data: 1 };
      }

      @SubscribeMessage('closed')
      closed() {
        return { event: 'closed', data: 1 };
      }
    }
    const { app, url } = await start('express', { imports, providers: [Open] }, (made) => {
      made.useWebSocketAdapter(new WsAdapter(made));
      protect(made, { allow: ['UPGRADE /open'] });
    });
    const client = new WebSocket(`${url.replace('http', 'ws')}/open`);
    await once(client, 'open');
    const answers = await answersTo(client, ['closed', 'hello'], 'hello');
    assert.ok(answers.slice(0, -1).every(({ data }) => data.code === 'missing_assertion'), JSON.stringify(answers));
    client.close();
    assert.equal((await ask(url, '/open')).status, 401);
    await app.close();
  });
});
