import 'reflect-metadata';
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createBullBoard } from '@bull-board/api';
import { ExpressAdapter as BoardAdapter } from '@bull-board/express';
import { ApolloDriver, type ApolloDriverConfig } from '@nestjs/apollo';
import { Controller, Get, Injectable, Module, Sse, type INestApplication, type MiddlewareConsumer } from '@nestjs/common';
import { Field, GraphQLModule, ObjectType, Parent, Query, ResolveField, Resolver, Subscription } from '@nestjs/graphql';
import { ServeStaticModule } from '@nestjs/serve-static';
import { DocumentBuilder, SwaggerModule } from '@nestjs/swagger';
import { Caller, CallerContext, protect, Public, SallyportModule, Scopes } from '@sallyport/nestjs';
import { TestSallyport } from '@sallyport/nestjs/testing';
import { createClient } from 'graphql-ws';
import { of } from 'rxjs';
import WebSocket from 'ws';
import { ADAPTERS, ask, start, type Adapter } from './stack/app';

/** What of the application ran. */
const ran: string[] = [];

@Controller('plain')
class Plain {
  @Get()
  get(@Caller('subject') subject: string) {
    ran.push('controller');
    return subject;
  }

  @Sse('events')
  events() {
    ran.push('events');
    return of({ data: 'event' });
  }
}

@ObjectType()
class Order {
  @Field()
  id: string;

  @Field()
  price: string;
}

@Resolver(() => Order)
class Orders {
  constructor(private readonly context: CallerContext) {}

  @Query(() => Order)
  @Scopes('orders:read')
  order(@Caller('subject') subject: string) {
    ran.push('query');
    return { id: `${subject} ${this.context.caller?.subject}` };
  }

  @Query(() => String)
  @Public()
  open(@Caller('subject') subject?: string) {
    return subject ?? 'nobody';
  }

  @ResolveField(() => String)
  price(@Parent() _order: Order) {
    ran.push('field');
    return `price for ${this.context.caller?.subject}`;
  }

  @Subscription(() => String)
  @Scopes('orders:read')
  async *ticks(@Caller('subject') subject: string) {
    ran.push('subscription');
    yield { ticks: `tick for ${subject}` };
  }
}

@Injectable()
class Noted {
  use(_request: unknown, _response: unknown, next: () => void) {
    ran.push('middleware');
    next();
  }
}

/** Everything of a NestJS application that answers, as people mount it. */
function application(sallyport: TestSallyport) {
  @Module({
    imports: [
      SallyportModule.forRoot(sallyport.options),
      GraphQLModule.forRoot<ApolloDriverConfig>({
        driver: ApolloDriver,
        autoSchemaFile: true,
        introspection: true,
        subscriptions: { 'graphql-ws': true },
      }),
      ServeStaticModule.forRoot({ rootPath: join(__dirname, '../test/static'), serveRoot: '/static' }),
    ],
    controllers: [Plain],
    providers: [Orders, Noted],
  })
  class Everything {
    configure(consumer: MiddlewareConsumer) {
      consumer.apply(Noted).forRoutes('plain');
    }
  }
  return Everything;
}

function mount(app: INestApplication, adapter: Adapter): void {
  const document = SwaggerModule.createDocument(app, new DocumentBuilder().setTitle('Everything').build());
  SwaggerModule.setup('docs', app, document);
  app.use('/used', (_request: unknown, response: { end(text: string): void }) => {
    ran.push('app.use');
    response.end('used');
  });
  if (adapter === 'express') {
    const board = new BoardAdapter();
    board.setBasePath('/queues');
    createBullBoard({ queues: [], serverAdapter: board });
    app.use('/queues', board.getRouter());
    app.getHttpAdapter().get('/raw', (_request: unknown, response: { end(text: string): void }) => response.end('raw'));
  }
}

const gql = (query: string) => ({ method: 'POST', body: JSON.stringify({ query }) });

for (const adapter of ADAPTERS) {
  describe(`what guards miss, with ${adapter}`, () => {
    const sallyport = new TestSallyport();
    let open: INestApplication;
    let closed: INestApplication;
    let guardOnly: string;
    let url: string;
    const answered = async (path: string, options: Parameters<typeof ask>[2] = {}) => {
      const { headers = {}, ...rest } = options;
      const json = { 'content-type': 'application/json', ...headers };
      const anonymous = await ask(url, path, { ...rest, headers: json });
      const caller = await ask(url, path, { ...rest, headers: { ...json, ...(await sallyport.headers({ scopes: ['orders:read'] })) } });
      const missed = await ask(guardOnly, path, { ...rest, headers: json });
      return { anonymous, caller, missed };
    };
    /** With the guard alone anybody is answered; with protect, a caller is, and nothing runs for anybody else. */
    const isClosed = async (path: string, status = 200, options: Parameters<typeof ask>[2] = {}) => {
      const { anonymous, caller, missed } = await answered(path, options);
      assert.equal(missed.status, status, `${path} with the guard alone`);
      assert.deepEqual([anonymous.status, anonymous.json?.code], [401, 'missing_assertion'], path);
      assert.equal(caller.status, status, `${path} for a caller`);
    };

    before(async () => {
      const imports = [application(sallyport)];
      ({ app: open, url: guardOnly } = await start(adapter, { imports }, (app) => mount(app, adapter)));
      ({ app: closed, url } = await start(adapter, { imports }, (app) => {
        mount(app, adapter); // before protect, to show that the order does not matter
        protect(app);
      }));
    });
    after(async () => {
      await open.close();
      await closed.close();
      sallyport.close();
    });

    it('controllers: GET, HEAD, server-sent events are the guard\'s', async () => {
      for (const [path, method] of [['/plain', 'GET'], ['/plain', 'HEAD'], ['/plain/events', 'GET']] as const) {
        ran.length = 0;
        const { anonymous, caller, missed } = await answered(path, { method });
        assert.deepEqual([anonymous.status, missed.status, caller.status], [401, 401, 200], path);
        assert.equal(ran.filter((name) => name !== 'middleware').length, 1, 'it ran for the caller alone');
      }
    });

    it('middleware', async () => {
      ran.length = 0;
      await ask(guardOnly, '/plain');
      assert.deepEqual(ran, ['middleware'], 'it runs before the guard');
      await ask(url, '/plain');
      assert.deepEqual(ran, ['middleware'], 'not before protect');
    });

    it('body parser', async () => {
      const bad = { method: 'POST', body: '{', headers: { 'content-type': 'application/json' } };
      if (adapter === 'express') assert.equal((await ask(guardOnly, '/nowhere', bad)).status, 400);
      assert.equal((await ask(url, '/nowhere', bad)).status, 401);
    });

    for (const path of ['/docs', '/docs-json', '/docs-yaml', '/docs/swagger-ui-init.js']) it(`Swagger: ${path}`, () => isClosed(path));
    it('ServeStatic', () => isClosed('/static/file.txt'));
    it('app.use', () => isClosed('/used'));
    if (adapter === 'express') {
      it('the adapter\'s own router', () => isClosed('/raw'));
      it('Bull Board', () => isClosed('/queues/api/queues'));
    }
    it('a 404', () => isClosed('/nowhere', 404));

    it('GraphQL: introspection', () => isClosed('/graphql', 200, gql('{ __schema { types { name } } }')));
    it('GraphQL: __typename', () => isClosed('/graphql', 200, gql('{ __typename }')));
    it('GraphQL: a syntax error', () => isClosed('/graphql', 400, gql('{')));

    it('GraphQL: resolvers are the guard\'s, and answer 200 with an error', async () => {
      ran.length = 0;
      const { anonymous, caller, missed } = await answered('/graphql', gql('{ order { id price } }'));
      assert.equal(anonymous.status, 401);
      assert.deepEqual(caller.json.data, { order: { id: 'ada ada', price: 'price for ada' } });
      assert.equal(missed.status, 200);
      assert.equal(missed.json.data, null);
      assert.equal(missed.json.errors[0].message, 'missing_assertion');
      assert.deepEqual(ran, ['query', 'field'], 'field resolvers have no guard of their own');
      const poor = await ask(url, '/graphql', { ...gql('{ order { id } }'), headers: { 'content-type': 'application/json', ...(await sallyport.headers()) } });
      assert.equal(poor.json.errors[0].message, 'insufficient_scope');
      const some = await ask(guardOnly, '/graphql', { ...gql('{ open }'), headers: { 'content-type': 'application/json' } });
      assert.equal(some.json.data.open, 'nobody');
    });

    it('GraphQL: subscriptions', async () => {
      const subscribe = async (to: string, headers: Record<string, string>) => {
        class Client extends WebSocket {
          constructor(address: string, protocols: string) {
            super(address, protocols, { headers });
          }
        }
        const client = createClient({ url: `${to.replace('http', 'ws')}/graphql`, webSocketImpl: Client, retryAttempts: 0 });
        try {
          return await new Promise<any>((resolve, reject) => client.subscribe({ query: 'subscription { ticks }' }, { next: resolve, error: reject, complete: () => resolve('ended') }));
        } finally {
          void client.dispose();
        }
      };
      const { data } = await subscribe(url, await sallyport.headers({ scopes: ['orders:read'] }));
      assert.equal(data.ticks, 'tick for ada');
      ran.length = 0;
      const refused = new WebSocket(`${url.replace('http', 'ws')}/graphql`, 'graphql-transport-ws');
      const [, response] = await once(refused, 'unexpected-response');
      assert.equal(response.statusCode, 401);
      response.resume();
      const errors = await subscribe(url, await sallyport.headers()).catch((error) => error);
      assert.match(JSON.stringify(errors), /insufficient_scope/);
      const missed = await subscribe(guardOnly, {}).catch((error) => error);
      assert.match(JSON.stringify(missed), /missing_assertion/);
      assert.deepEqual(ran, []);
    });
  });
}
