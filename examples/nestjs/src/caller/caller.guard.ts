import type { IncomingMessage } from 'node:http';
import { Injectable, type CanActivate, type ExecutionContext } from '@nestjs/common';
import { Reflector } from '@nestjs/core';
import { forbidden, unauthorized } from '../problem.js';
import { Callers } from './callers.js';
import type { Identity } from './assertion.js';

/** Runs before every handler, HTTP and WebSocket. A handler that says nothing of who may call it is closed. */
@Injectable()
export class CallerGuard implements CanActivate {
  constructor(
    private readonly callers: Callers,
    private readonly reflector: Reflector,
  ) {}

  async canActivate(context: ExecutionContext): Promise<boolean> {
    const carrier = context.getArgByIndex<{ caller?: Identity }>(0); // the request, or the WebSocket client
    const caller = (carrier.caller = await this.callerOf(context));
    const said = <T>(name: string) =>
      this.reflector.getAllAndOverride<T | undefined>(name, [context.getHandler(), context.getClass()]);

    if (said<boolean>('public')) return true;
    if (!caller) throw unauthorized('missing_assertion');
    const scopes = said<string[]>('scopes');
    if (!scopes) throw forbidden('undeclared');
    if (!scopes.every((scope) => caller.scopes.includes(scope))) throw forbidden('insufficient_scope', scopes);
    const roles = said<string[]>('roles');
    if (roles && !roles.some((role) => caller.roles.includes(role))) throw forbidden('insufficient_role');
    return true;
  }

  private callerOf(context: ExecutionContext): Promise<Identity | undefined> {
    switch (context.getType<string>()) {
      case 'http':
        return this.callers.of(rawRequest(context.switchToHttp().getRequest()));
      case 'ws':
        return this.callers.ofClient(context.switchToWs().getClient());
      default:
        throw forbidden('undeclared'); // a transport that nobody thought of
    }
  }
}

/** Node's own request: Express extends it, Fastify wraps it. */
export function rawRequest(request: IncomingMessage | { raw: IncomingMessage }): IncomingMessage {
  return 'raw' in request ? request.raw : request;
}
