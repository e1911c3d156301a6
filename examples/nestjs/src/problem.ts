import { STATUS_CODES } from 'node:http';
import { Catch, HttpException, Logger, type ArgumentsHost, type ExceptionFilter } from '@nestjs/common';
import { HttpAdapterHost } from '@nestjs/core';
import type { WebSocket } from 'ws';
import type { Identity } from './caller/assertion.js';

/** RFC 9457. */
export interface Problem {
  status: number;
  headers: Record<string, string>;
  body: { type: 'about:blank'; title: string; status: number; code: string; detail?: string; request_id?: string };
}

export const unauthorized = (code: string) => new HttpException({ code }, 401);
export const forbidden = (code: string, scopes?: string[]) => new HttpException({ code, scopes }, 403);
export const notFound = () => new HttpException({ code: 'not_found' }, 404);

const CODES: Record<number, string> = {
  400: 'invalid_request',
  403: 'forbidden',
  404: 'not_found',
  413: 'too_large',
  415: 'unsupported_media_type',
  500: 'internal',
  502: 'bad_gateway',
  503: 'unavailable',
};

/** The answer to an error. What is not an HttpException stays inside: the client learns that something failed. */
export function problemOf(error: unknown): Problem {
  const { statusCode } = error as { statusCode?: number }; // Fastify's own refusals of a request
  let status = error instanceof HttpException ? error.getStatus() : 500;
  if (!(error instanceof HttpException) && statusCode && statusCode >= 400 && statusCode < 500) status = statusCode;
  const said = error instanceof HttpException ? error.getResponse() : {};
  const { code, scopes, message } = (typeof said === 'string' ? { message: said } : said) as {
    code?: string;
    scopes?: string[];
    message?: string | string[];
  };
  const headers: Record<string, string> = { 'Content-Type': 'application/problem+json', 'Cache-Control': 'no-store' };
  if (status === 401) {
    headers['WWW-Authenticate'] = `Bearer realm="orders"${code === 'missing_assertion' ? '' : ', error="invalid_token"'}`;
  }
  if (scopes) {
    headers['WWW-Authenticate'] = `Bearer realm="orders", error="insufficient_scope", scope="${scopes.join(' ')}"`;
  }
  return {
    status,
    headers,
    body: {
      type: 'about:blank',
      title: STATUS_CODES[status] ?? 'Error',
      status,
      code: code ?? CODES[status] ?? 'refused',
      ...(message && { detail: [message].flat().join('; ') }),
    },
  };
}

@Catch()
export class ProblemFilter implements ExceptionFilter {
  private readonly log = new Logger(ProblemFilter.name);

  constructor(private readonly host: HttpAdapterHost) {}

  catch(error: unknown, context: ArgumentsHost): void {
    const { status, headers, body } = problemOf(error);
    if (status === 500) this.log.error(error instanceof Error ? error.stack : String(error));
    if (context.getType() === 'ws') {
      context.switchToWs().getClient<WebSocket>().send(JSON.stringify({ event: 'problem', data: body }));
      return;
    }
    const { httpAdapter } = this.host;
    const response = context.switchToHttp().getResponse<unknown>();
    body.request_id = context.switchToHttp().getRequest<{ caller?: Identity }>().caller?.requestId;
    if (httpAdapter.isHeadersSent(response)) return httpAdapter.end(response);
    for (const [name, value] of Object.entries(headers)) httpAdapter.setHeader(response, name, value);
    httpAdapter.reply(response, body, status);
  }
}
