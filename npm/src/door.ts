import * as http from 'node:http';
import * as https from 'node:https';
import type { Duplex } from 'node:stream';
import type { INestApplication } from '@nestjs/common';
import type { Caller } from './assertion';
import { Callers, serve, servingOf } from './caller';
import { missing, SallyportException, unauthorized, type FastifyReply } from './problem';

export interface ProtectOptions {
  /**
   * What anybody may ask for, as in sallyport.yaml: `GET /health`, or `GET /assets/*` for what lies below. The path is
   * compared byte for byte with the one that was sent. GET opens HEAD too; `UPGRADE /ws` opens a WebSocket.
   */
  allow?: string[];
}

/**
 * Stands before everything that the application's server answers: controllers, and what NestJS's guards do not see
 * (Swagger, static files, Bull Board, app.use, body parsers, WebSocket upgrades, socket.io's polling). Without a verified
 * assertion nothing runs but what is allowed by name. Call it before the application listens; where, does not matter.
 */
export function protect(app: INestApplication, options: ProtectOptions = {}): void {
  let door: Door;
  try {
    door = app.get(Door, { strict: false });
  } catch (cause) {
    throw new Error('protect(app): the application does not import SallyportModule', { cause });
  }
  door.close(app, (options.allow ?? []).map(parseRule));
}

type Rule = (method: string, path: string) => boolean;

/** Reads "GET /path" or "GET /below/*". A path with dot segments or escapes could be meant for something else. */
function parseRule(text: string): Rule {
  const [, method, path, below] = /^([A-Z]+) (\/|(?:\/[A-Za-z0-9._~!$&'()+,=:@-]+)+\/?)(\*?)$/.exec(text) ?? [];
  if (!method || !path || /\/\.\.?(\/|$)/.test(path) || (below && !path.endsWith('/'))) {
    throw new Error(`protect(app): ${JSON.stringify(text)} is not "METHOD /path" or "METHOD /path/*"`);
  }
  const methods = method === 'GET' ? ['GET', 'HEAD'] : [method];
  return (asked, at) => methods.includes(asked) && (below ? isPlain(at) && at.startsWith(path) : at === path);
}

/** Says whether no router could take a path for one that lies elsewhere. */
function isPlain(path: string): boolean {
  return /^(\/[A-Za-z0-9._~!$&'()+,=:@-]+)+\/?$/.test(path) && !/\/\.\.?(\/|$)/.test(path);
}

/** The events by which Node's server hands over a request, and how each is refused. */
const EVENTS = new Set(['request', 'checkContinue', 'checkExpectation', 'upgrade', 'connect']);

export class Door {
  private rules: Rule[] | undefined;

  constructor(private readonly callers: Callers) {}

  get isClosed(): boolean {
    return this.rules !== undefined;
  }

  close(app: INestApplication, rules: Rule[]): void {
    const server: unknown = app.getHttpServer();
    if (!(server instanceof http.Server) && !(server instanceof https.Server)) {
      throw new Error('protect(app): only HTTP/1.1 servers of Node are protected');
    }
    const first = !this.rules;
    this.rules = rules;
    if (!first) return;
    this.stand(server);
    this.standInFastify(app);
  }

  /**
   * Every listener is behind this, whoever adds it and whenever: engine.io takes the others away and puts itself first, so
   * a first middleware would not be the first.
   */
  private stand(server: http.Server): void {
    const emit = server.emit.bind(server) as (...all: unknown[]) => boolean;
    server.emit = (event: string, ...args: unknown[]): boolean => {
      if (!EVENTS.has(event)) return emit(event, ...args);
      const [request, answer] = args as [http.IncomingMessage, http.ServerResponse | Duplex];
      const go = (caller: Caller | undefined) => void serve(servingOf(request, caller), () => emit(event, ...args));
      if (answer instanceof http.ServerResponse) this.admit(request, request.method!).then(go, (error) => refuse(answer, error));
      else this.admitUpgrade(event, request, answer, go);
      return true;
    };
  }

  private admitUpgrade(event: string, request: http.IncomingMessage, socket: Duplex, go: (caller: Caller | undefined) => void): void {
    // Node has taken its own listener away, and nobody has added another yet: a connection that breaks now would end the process
    const ignore = () => undefined;
    socket.on('error', ignore);
    this.admit(request, event.toUpperCase()).then(
      (caller) => {
        socket.off('error', ignore);
        if (socket.destroyed) return;
        this.callers.opened(socket, caller);
        go(caller);
      },
      (error) => refuseUpgrade(socket, error),
    );
  }

  /** Fastify makes a second server, with no listener to stand before, where a name has two addresses. */
  private standInFastify(app: INestApplication): void {
    const adapter = app.getHttpAdapter();
    if (adapter.getType() !== 'fastify') return;
    const fastify = adapter.getInstance() as Fastify;
    fastify.addHook('onRequest', async ({ raw }, reply) => {
      try {
        await this.admit(raw, raw.method!);
      } catch (error) {
        const { status, headers, body } = answerTo(error);
        return reply.code(status).headers(headers).send(body);
      }
    });
  }

  /** Rejects with what the client is told. */
  private async admit(request: http.IncomingMessage, method: string): Promise<Caller | undefined> {
    try {
      const caller = await this.callers.of(request);
      const path = request.url!.split('?', 1)[0]!;
      if (caller || this.rules?.some((allows) => allows(method, path))) return caller;
      throw missing();
    } catch (error) {
      throw unauthorized(error);
    }
  }
}

/** What of Fastify is used. */
interface Fastify {
  addHook(name: 'onRequest', hook: (request: { raw: http.IncomingMessage }, reply: FastifyReply) => Promise<unknown>): void;
}

function refuse(response: http.ServerResponse, error: unknown): void {
  const { status, headers, body } = answerTo(error);
  response.writeHead(status, headers).end(body);
}

function refuseUpgrade(socket: Duplex, error: unknown): void {
  const { status, headers, body } = answerTo(error);
  const lines = Object.entries({ ...headers, Connection: 'close', 'Content-Length': String(body.length) }).map(([n, v]) => `${n}: ${v}\r\n`);
  socket.end(`HTTP/1.1 ${status} ${http.STATUS_CODES[status]}\r\n${lines.join('')}\r\n${body}`);
}

function answerTo(error: unknown): { status: number; headers: Record<string, string>; body: string } {
  if (error instanceof SallyportException) {
    return { status: error.problem.status, headers: error.headers, body: JSON.stringify(error.problem) };
  }
  // not about the assertion: the client learns that something failed, and nothing ran
  const problem = { title: http.STATUS_CODES[500]!, status: 500, code: 'internal' };
  return { status: 500, headers: { 'Content-Type': 'application/problem+json', 'Cache-Control': 'no-store' }, body: JSON.stringify(problem) };
}
