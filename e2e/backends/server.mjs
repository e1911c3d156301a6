// One NestJS application on one of four routers, which records what ran: the far side of the differential fuzz.
//
//   node server.mjs express | express-strict | fastify | fastify-lax
//
// When it listens it prints one line, {"url": URL, "control": URL}, and it ends when its standard input does, so that it
// cannot outlive the test that started it.
//
// Whatever runs writes an entry into a journal: {"fuzz", "request", "kind", "name", "method", "url", "params"}, where fuzz and
// request are the header fields X-Fuzz and X-Request-Id, and kind is
//
//   arrived     node's HTTP server parsed a request (or an upgrade)
//   middleware  a middleware of Nest ran: "all" stands on every route, "admin" on those below /admin
//   handler     a handler ran; its name is also in the answer's X-Ran field
//   malformed   node refused to parse what arrived
//
// GET on the control listener waits until nothing is in flight, answers the journal and clears it.

import 'reflect-metadata';
import { createServer } from 'node:http';
import { fileURLToPath } from 'node:url';
import { All, Controller, Delete, Get, Module, Post, Req, Res } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ExpressAdapter } from '@nestjs/platform-express';
import { FastifyAdapter } from '@nestjs/platform-fastify';
import express from 'express';

const adapters = {
  express: () => new ExpressAdapter(),
  // The options must be set on an instance of one's own: after Nest has made its router they have no effect.
  'express-strict': () => new ExpressAdapter(express().enable('case sensitive routing').enable('strict routing')),
  fastify: () => new FastifyAdapter(),
  'fastify-lax': () => new FastifyAdapter({
    routerOptions: {
      ignoreTrailingSlash: true, ignoreDuplicateSlashes: true, caseSensitive: false, useSemicolonDelimiter: true,
    },
  }),
};

const adapter = adapters[process.argv[2]];
if (!adapter) {
  process.stderr.write(`usage: node server.mjs ${Object.keys(adapters).join(' | ')}\n`);
  process.exit(2);
}
const fastify = process.argv[2].startsWith('fastify');
const rest = fastify ? '*' : '*rest'; // each router's own wildcard
const anyRest = fastify ? '*' : '{*rest}'; // takes nothing, too

let journal = [];
let flying = 0;

function note(kind, req, name, params) {
  const { 'x-fuzz': fuzz, 'x-request-id': request } = req.headers;
  journal.push({
    fuzz, request, kind, name, method: req.method, url: req.originalUrl ?? req.url, params,
  });
}

// controller makes a class with one handler, as the decorators would.
function controller(name, verb, path) {
  class Handler {
    run(req, res) {
      note('handler', req.raw ?? req, name, { ...req.params });
      (res.raw ?? res).setHeader('X-Ran', name);
      return { handler: name, params: req.params, url: req.originalUrl ?? req.url };
    }
  }
  Controller()(Handler);
  Req()(Handler.prototype, 'run', 0);
  Res({ passthrough: true })(Handler.prototype, 'run', 1);
  verb(path)(Handler.prototype, 'run', Object.getOwnPropertyDescriptor(Handler.prototype, 'run'));
  return Handler;
}

// Express asks its routes in this order, so the literal ones come before the parameters, and the wildcard last.
const controllers = [
  controller('root', Get, '/'),
  controller('admin-index', Get, '/admin'),
  controller('admin-secret', Get, '/admin/secret'),
  controller('admin-secret-one', Get, '/admin/secret/:id'),
  controller('public-info', Get, '/public/info'),
  controller('public-any', Get, `/public/${rest}`),
  controller('users-me', Get, '/users/me'),
  controller('users-one', Get, '/users/:id'),
  controller('users-keys', Get, '/users/:id/keys'),
  controller('orders-list', Get, '/orders'),
  controller('orders-create', Post, '/orders'),
  controller('orders-one', Get, '/orders/:id'),
  controller('orders-delete', Delete, '/orders/:id'),
  controller('tenants-one', Get, '/tenants/:id'),
  controller('tenants-export', Get, '/tenants/:id/export/:format'),
  controller('files-one', Get, '/files/:name'),
  controller('keys', Get, '/keys'),
  controller('any-method', All, '/any'),
  controller('websocket', Get, '/ws'), // asked for without an upgrade
  controller('socket', Get, '/socket'),
  controller('socket', Get, `/socket/${anyRest}`),
  controller('site', Get, `/${rest}`),
];

class Application {
  configure(consumer) {
    const noting = (name) => (req, _res, next) => {
      note('middleware', req, name);
      next();
    };
    consumer.apply(noting('all')).forRoutes('{*path}');
    consumer.apply(noting('admin')).forRoutes('admin', 'admin/{*path}');
  }
}
Module({ controllers })(Application);

// What stands beside the controllers matches by its own rules: a mount by prefix, the file server by its own path walk.
function mount(app) {
  const raw = (name) => (req, res) => {
    note('handler', req.raw ?? req, name);
    (res.raw ?? res).setHeader('X-Ran', name);
    (res.raw ? res.send : res.end).call(res, name);
  };
  app.use('/graphql', raw('graphql'));
  app.use('/admin/queues', raw('queues'));
  app.use('/static', express.static(fileURLToPath(new URL('static', import.meta.url)), {
    fallthrough: false,
    setHeaders(res) {
      note('handler', res.req, 'static');
      res.setHeader('X-Ran', 'static');
    },
  }));
  app.getHttpAdapter().get('/docs-json', raw('docs'));
}

// The two ways in which WebSocket libraries match: the path of a WHATWG URL (ws), and a raw prefix (socket.io).
function upgrade(req, socket) {
  note('arrived', req);
  let path;
  try {
    path = new URL(req.url, 'ws://localhost').pathname;
  } catch {
    socket.destroy();
    return;
  }
  const name = path === '/ws' ? 'websocket' : req.url.startsWith('/socket') ? 'socket' : undefined;
  if (!name) {
    socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
    return;
  }
  note('handler', req, name);
  socket.end(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Ran: ${name}\r\n\r\n`);
}

function watch(server) {
  server.prependListener('request', (req, res) => {
    flying += 1;
    res.once('close', () => { flying -= 1; });
    note('arrived', req);
  });
  server.on('upgrade', upgrade);
  server.prependListener('clientError', (_err, socket) => {
    journal.push({ kind: 'malformed' });
    if (server.listenerCount('clientError') === 1) socket.destroy(); // Fastify has a listener of its own that answers
  });
}

function answer(res) {
  if (flying > 0) {
    setTimeout(answer, 5, res);
    return;
  }
  const entries = journal;
  journal = [];
  res.setHeader('content-type', 'application/json');
  res.end(JSON.stringify(entries));
}

const app = await NestFactory.create(Application, adapter(), { logger: ['warn', 'error'] });
mount(app);
watch(app.getHttpServer());
await app.listen(0, '127.0.0.1');
const control = createServer((_req, res) => answer(res));
control.listen(0, '127.0.0.1', () => {
  const url = (server) => `http://127.0.0.1:${server.address().port}`;
  process.stdout.write(`${JSON.stringify({ url: url(app.getHttpServer()), control: url(control) })}\n`);
});
process.stdin.on('end', () => process.exit(0)).resume();
