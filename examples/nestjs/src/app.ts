import { lstatSync, rmSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { ConsoleLogger, type INestApplication } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ExpressAdapter, type NestExpressApplication } from '@nestjs/platform-express';
import { FastifyAdapter } from '@nestjs/platform-fastify';
import { DocumentBuilder, SwaggerModule } from '@nestjs/swagger';
import express from 'express';
import { AppModule } from './app.module.js';
import { rawRequest } from './caller/caller.guard.js';
import { Callers } from './caller/callers.js';
import { Keys } from './caller/keys.js';
import { AssertionWsAdapter } from './caller/ws.adapter.js';
import type { Settings } from './settings.js';
import { UPLOAD_TYPE } from './uploads.controller.js';

export async function createApp(settings: Settings): Promise<INestApplication> {
  const keys = await Keys.open(settings.keys);
  const adapter = settings.adapter === 'fastify' ? fastifyAdapter() : expressAdapter();
  const app = await NestFactory.create<NestExpressApplication>(AppModule.with(settings, keys), adapter, {
    logger: new ConsoleLogger({ json: true, logLevels: ['log', 'warn', 'error', 'fatal'] }),
    abortOnError: false,
  });

  const callers = app.get(Callers);
  // Before all else, or what is mounted below would answer anybody. It returns no promise: Fastify's adapter would go
  // on when one resolves.
  type Either = IncomingMessage | { raw: IncomingMessage };
  adapter.setOnRequestHook((request: Either, _response: unknown, done: (error?: Error) => void) => {
    callers.admit(rawRequest(request)).then(() => done(), done);
  });
  app.useWebSocketAdapter(new AssertionWsAdapter(app, callers));
  const description = new DocumentBuilder().setTitle('Orders').setVersion('1').addBearerAuth().build();
  SwaggerModule.setup('docs', app, () => SwaggerModule.createDocument(app, description));
  app.enableShutdownHooks(['SIGINT', 'SIGTERM'], { useProcessExit: true });
  return app;
}

/** Listens where sallyport reaches it and nobody outside does. Returns the address. */
export async function listen(app: INestApplication, { listen: where }: Settings): Promise<string> {
  if ('path' in where) {
    removeStaleSocket(where.path);
    const before = process.umask(0o117); // the socket is born 0660: owner and group, no moment in between
    try {
      await app.listen(where.path);
    } finally {
      process.umask(before);
    }
    return `unix:${where.path}`;
  }
  await app.listen(where.port, where.host);
  return app.getUrl();
}

/** Express ignores case and trailing slashes unless told before its router is built; sallyport's routes do not. */
function expressAdapter(): ExpressAdapter {
  const instance = express();
  instance.disable('x-powered-by');
  instance.enable('case sensitive routing');
  instance.enable('strict routing');
  return new ExpressAdapter(instance);
}

function fastifyAdapter(): FastifyAdapter {
  const adapter = new FastifyAdapter({ bodyLimit: 100 * 1024 });
  // Left unread: the handler reads it as it comes, and counts.
  const unlimited = { bodyLimit: Number.MAX_SAFE_INTEGER };
  adapter.getInstance().addContentTypeParser(UPLOAD_TYPE, unlimited, (_request, _body, done) => done(null));
  return adapter;
}

function removeStaleSocket(path: string): void {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket()) rmSync(path);
}
