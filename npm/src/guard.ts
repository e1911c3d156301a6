import { Inject, Injectable, type CallHandler, type CanActivate, type ExecutionContext, type NestInterceptor } from '@nestjs/common';
import { Reflector } from '@nestjs/core';
import { Observable } from 'rxjs';
import { admit, Callers, serve, servingOf, type Incoming } from './caller';
import type { Caller } from './assertion';
import { REQUIREMENT, type Requirement } from './decorators';
import type { Settings } from './options';
import { forbidden, missing, SallyportException, unauthorized } from './problem';

export const SETTINGS = Symbol('sallyport settings');

/**
 * Runs before every handler that NestJS guards: HTTP, GraphQL resolvers, WebSocket messages, RPC. It refuses by exceptions,
 * never by false, which would be a 403 without a reason.
 */
@Injectable()
export class SallyportGuard implements CanActivate {
  constructor(
    @Inject(Callers) private readonly callers: Callers,
    @Inject(Reflector) private readonly reflector: Reflector,
    @Inject(SETTINGS) private readonly settings: Pick<Settings, 'undeclared'>,
  ) {}

  async canActivate(context: ExecutionContext): Promise<boolean> {
    try {
      admit(context, this.judge(this.requirementOf(context), await this.callerOf(context)));
    } catch (error) {
      throw inTransport(context, error instanceof SallyportException ? error : unauthorized(error));
    }
    return true;
  }

  private requirementOf(context: ExecutionContext): Requirement | undefined {
    return this.reflector.getAllAndOverride(REQUIREMENT, [context.getHandler(), context.getClass()]);
  }

  private judge(requirement: Requirement | undefined, caller: Caller | undefined): Caller | undefined {
    if (requirement?.public) return caller;
    if (!caller) throw missing();
    if (!requirement && this.settings.undeclared === 'nobody') throw forbidden('undeclared', [], caller.requestId);
    const { all = [], any = [] } = requirement ?? {};
    const has = (scope: string) => caller.scopes.includes(scope);
    if (!all.every(has)) throw forbidden('insufficient_scope', all, caller.requestId);
    for (const one of any) {
      if (!one.some(has)) throw forbidden('insufficient_scope', one, caller.requestId);
    }
    return caller;
  }

  private async callerOf(context: ExecutionContext): Promise<Caller | undefined> {
    if (context.getType() === 'rpc') return this.callers.ofMessage(context.getArgByIndex(0));
    if (context.getType() === 'ws') return this.callerOfClient(context.getArgByIndex(0));
    const request = requestOf(context);
    return request && this.callers.of(request);
  }

  private callerOfClient(client: WebSocketClient): Promise<Caller | undefined> {
    if (client.request?.rawHeaders) return this.callers.of(client.request);
    return this.callers.ofSocket(client._socket ?? client);
  }
}

/** socket.io's Socket has the request that opened it; a WebSocket of ws has the connection, under a name that is its own. */
interface WebSocketClient {
  request?: Incoming;
  _socket?: object;
}

/** Lets CallerContext know the caller, where protect(app) has not done so already: for messages and subscriptions too. */
@Injectable()
export class SallyportInterceptor implements NestInterceptor {
  constructor(@Inject(SallyportGuard) private readonly guard: SallyportGuard) {}

  async intercept(context: ExecutionContext, next: CallHandler): Promise<Observable<unknown>> {
    const what = servingOf(requestOf(context), await this.guard['callerOf'](context));
    return new Observable((subscriber) => serve(what, () => next.handle().subscribe(subscriber)));
  }
}

/** Node's own request (or one of the copies that hold its headers): Express extends it, Fastify wraps it, GraphQL puts it into its context. */
function requestOf(context: ExecutionContext): Incoming | undefined {
  const type = context.getType<string>();
  if (type !== 'http' && type !== 'graphql') return undefined; // a transport that nobody thought of has no caller
  const first: unknown = context.getArgByIndex(type === 'http' ? 0 : 2);
  const places = type === 'http' ? [[]] : [['req'], ['request'], ['reply', 'request'], ['req', 'extra', 'request'], ['extra', 'request']];
  for (const place of places) {
    const found = place.reduce<unknown>((at, name) => (at as Record<string, unknown> | undefined)?.[name], first);
    const raw = (found as { raw?: unknown } | undefined)?.raw ?? found;
    if (Array.isArray((raw as Incoming | undefined)?.rawHeaders)) return raw as Incoming;
  }
  return undefined;
}

/** A refusal in the words of its transport: WebSocket and RPC filters turn any other exception into "Internal server error". */
function inTransport(context: ExecutionContext, refusal: SallyportException): Error {
  switch (context.getType<string>()) {
    case 'http':
      setChallenge(context.getArgByIndex(1), refusal.challenge);
      return refusal;
    case 'ws': {
      const { WsException } = require('@nestjs/websockets') as typeof import('@nestjs/websockets');
      return new WsException(refusal.problem);
    }
    case 'rpc': {
      const { RpcException } = require('@nestjs/microservices') as typeof import('@nestjs/microservices');
      return new RpcException(refusal.problem);
    }
    default:
      return refusal;
  }
}

/** Before the exception is thrown, so that the challenge is there whichever filter answers. */
function setChallenge(response: { header?: unknown; setHeader?: unknown }, challenge: string): void {
  const set = (response.setHeader ?? response.header) as (this: unknown, name: string, value: string) => void;
  set.call(response, 'WWW-Authenticate', challenge);
}
