import assert from 'node:assert/strict';
import type { AddressInfo, Server } from 'node:net';
import { createServer } from 'node:net';
import { after, describe, it } from 'node:test';
import { Controller, Get, Inject, Injectable, type CanActivate } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ClientProxyFactory, EventPattern, MessagePattern, Payload, Transport } from '@nestjs/microservices';
import { Caller, CallerContext, protect, Public, SallyportModule, Scopes, TXN_TOKEN } from '@sallyport/nestjs';
import { TestSallyport } from '@sallyport/nestjs/testing';
import { firstValueFrom } from 'rxjs';
import { ask, create, start } from './app';

const ran: unknown[] = [];

class Inherited {
  @MessagePattern('inherited')
  inherited() {
    ran.push('inherited');
    return 'inherited';
  }
}

@Injectable()
class Messages extends Inherited {
  constructor(@Inject(CallerContext) private readonly context: CallerContext) {
    super();
  }

  @MessagePattern('who')
  who(@Payload() message: object, @Caller('subject') subject: string) {
    ran.push(message);
    return `${subject} ${this.context.caller?.subject} ${Object.keys(message)}`;
  }

  @MessagePattern('admin')
  @Scopes('admin')
  admin() {
    ran.push('admin');
    return 'admin';
  }

  @EventPattern('event')
  event(_message: unknown) {
    ran.push('event');
  }

  @MessagePattern('public')
  @Public('a test')
  open(@Caller() caller?: Caller) {
    return caller?.subject ?? 'nobody';
  }

  @Get('over-http')
  get(@Caller('subject') subject: string) {
    return subject;
  }
}
Controller()(Messages);

async function freePort(): Promise<number> {
  const server: Server = createServer().listen(0, '127.0.0.1');
  await new Promise((done) => server.once('listening', done));
  const { port } = server.address() as AddressInfo;
  await new Promise((done) => server.close(done));
  return port;
}

async function callable(port: number) {
  const client = ClientProxyFactory.create({ transport: Transport.TCP, options: { host: '127.0.0.1', port } });
  await client.connect();
  const send = (pattern: string, message: unknown = {}): Promise<any> => firstValueFrom(client.send(pattern, message as object)).catch((error) => error);
  return { client, send };
}

/** What anybody on the port may try, and what a caller with an assertion gets. */
async function holds(port: number, sallyport: TestSallyport): Promise<void> {
  const { client, send } = await callable(port);
  try {
    const before = ran.length;
    for (const pattern of ['who', 'admin', 'inherited']) {
      assert.equal((await send(pattern)).code, 'missing_assertion', pattern);
      assert.equal((await send(pattern, 'a string')).code, 'missing_assertion', pattern);
      assert.equal((await send(pattern, { [TXN_TOKEN]: 1 })).code, 'malformed_header', pattern);
      assert.equal((await send(pattern, { [TXN_TOKEN]: await sallyport.mint({ raw: { iss: 'x' } }) })).code, 'issuer_mismatch', pattern);
    }
    client.emit('event', {});
    assert.equal(await send('public'), 'nobody');
    assert.equal((await send('admin', { [TXN_TOKEN]: await sallyport.mint() })).code, 'insufficient_scope');
    assert.equal(ran.length, before, 'a handler ran');
    assert.equal(await send('who', { a: 1, [TXN_TOKEN]: await sallyport.mint() }), 'ada ada a');
    assert.equal(await send('admin', { [TXN_TOKEN]: await sallyport.mint({ scopes: ['admin'] }) }), 'admin');
    assert.equal(await send('public', { [TXN_TOKEN]: await sallyport.mint() }), 'ada');
  } finally {
    client.close();
  }
}

describe('RPC', () => {
  const sallyport = new TestSallyport();
  const metadata = { imports: [SallyportModule.forRoot(sallyport.options)], controllers: [Messages] };
  after(() => sallyport.close());

  for (const [name, hybrid] of [
    ['by default, which takes no guard of the application', undefined],
    ['with inheritAppConfig false', { inheritAppConfig: false }],
    ['with inheritAppConfig true', { inheritAppConfig: true }],
  ] as const) {
    for (const order of ['before', 'after']) {
      it(`in a hybrid application ${name}, connected ${order} protect`, async () => {
        const port = await freePort();
        const app = await create('express', metadata);
        if (order === 'after') protect(app);
        app.connectMicroservice({ transport: Transport.TCP, options: { host: '127.0.0.1', port } }, hybrid as object);
        if (order === 'before') protect(app);
        await app.startAllMicroservices();
        await app.listen(0, '127.0.0.1');
        await holds(port, sallyport);
        await app.close();
      });
    }
  }

  it('in a hybrid application that did not call protect', async () => {
    const port = await freePort();
    const { app, url } = await start('fastify', metadata, async (made) => {
      made.connectMicroservice({ transport: Transport.TCP, options: { host: '127.0.0.1', port } });
      await made.startAllMicroservices();
    });
    await holds(port, sallyport);
    assert.equal((await ask(url, '/over-http')).status, 401);
    assert.equal((await ask(url, '/over-http', { headers: await sallyport.headers() })).text, 'ada');
    await app.close();
  });

  it('in an application that is a microservice and nothing else', async () => {
    const port = await freePort();
    class AppModule {}
    const { Module } = await import('@nestjs/common');
    Module(metadata)(AppModule);
    const app = await NestFactory.createMicroservice(AppModule, { transport: Transport.TCP, options: { host: '127.0.0.1', port }, logger: false });
    await app.listen();
    await holds(port, sallyport);
    await app.close();
  });

  it('before the guards of the controller itself, and by the keys of the application that serves', async () => {
    const asked: string[] = [];
    const { Module, UseGuards } = await import('@nestjs/common');
    class Own implements CanActivate {
      canActivate() {
        asked.push('own');
        return true;
      }
    }
    Injectable()(Own);
    class Guarded {
      who() {
        return 'who';
      }
    }
    MessagePattern('who')(Guarded.prototype, 'who', Object.getOwnPropertyDescriptor(Guarded.prototype, 'who')!);
    Controller()(Guarded);
    UseGuards(Own)(Guarded);
    void Module;
    const ports = [await freePort(), await freePort()];
    const gates = [new TestSallyport(), new TestSallyport()];
    const apps = [];
    for (const i of [0, 1]) {
      const app = await create('express', { imports: [SallyportModule.forRoot(gates[i]!.options)], controllers: [Guarded], providers: [Own] });
      app.connectMicroservice({ transport: Transport.TCP, options: { host: '127.0.0.1', port: ports[i] } });
      await app.startAllMicroservices();
      apps.push(app);
    }
    for (const i of [0, 1]) {
      const { client, send } = await callable(ports[i]!);
      asked.length = 0;
      assert.equal((await send('who')).code, 'missing_assertion');
      assert.deepEqual(asked, []);
      assert.equal((await send('who', { [TXN_TOKEN]: await gates[1 - i]!.mint() })).code, 'kid_unknown');
      assert.equal(await send('who', { [TXN_TOKEN]: await gates[i]!.mint() }), 'who');
      assert.deepEqual(asked, ['own']);
      client.close();
    }
    for (const app of apps) await app.close();
    for (const gate of gates) gate.close();
  });
});
