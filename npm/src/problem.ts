import { STATUS_CODES } from 'node:http';
import type { ServerResponse } from 'node:http';
import { Catch, HttpException, type ArgumentsHost, type ExceptionFilter } from '@nestjs/common';
import { AssertionError } from './strict';

/** The body of a refusal (RFC 9457), the same as sallyport's own. */
export interface Problem {
  title: string;
  status: number;
  code: string;
  request_id?: string;
}

/** A refusal: 401 or 403, with the challenge of RFC 6750. It is an HttpException, so that filters treat it as one. */
export class SallyportException extends HttpException {
  constructor(
    readonly problem: Problem,
    readonly challenge: string,
    options?: { cause?: unknown },
  ) {
    super(problem, problem.status, options);
    this.message = problem.code;
  }

  /** The headers of the answer. */
  get headers(): Record<string, string> {
    return { 'WWW-Authenticate': this.challenge, 'Content-Type': 'application/problem+json', 'Cache-Control': 'no-store' };
  }
}

/** 401: who calls is not known. An error that is not about the assertion is thrown as it is, and becomes a 500. */
export function unauthorized(error: unknown): SallyportException {
  if (!(error instanceof AssertionError)) throw error;
  const { code } = error;
  // no error attribute for what is missing, because no credential was there to be wrong (RFC 6750, section 3.1)
  const challenge = code === 'missing_assertion' ? 'Bearer' : `Bearer error="invalid_token", error_description="${code}"`;
  return new SallyportException(problem(401, code), challenge, { cause: error });
}

/** 403: it is known who calls, and they may not. */
export function forbidden(code: string, scopes: readonly string[], requestId: string | undefined): SallyportException {
  const scope = scopes.length > 0 ? `, scope="${scopes.join(' ')}"` : '';
  return new SallyportException(problem(403, code, requestId), `Bearer error="insufficient_scope"${scope}`);
}

export function missing(): AssertionError {
  return new AssertionError('missing_assertion', 'no assertion came');
}

/** Answers as sallyport does: NestJS's own filter would call the problem plain JSON. A filter of the application's goes first. */
@Catch(SallyportException)
export class ProblemFilter implements ExceptionFilter<SallyportException> {
  catch(refusal: SallyportException, host: ArgumentsHost): unknown {
    if (host.getType<string>() !== 'http') return refusal; // GraphQL makes an error of it
    const { problem, headers } = refusal;
    const response: Response = host.getArgByIndex(1);
    if ('raw' in response) return response.code(problem.status).headers(headers).send(JSON.stringify(problem));
    return response.writeHead(problem.status, headers).end(JSON.stringify(problem));
  }
}

type Response = ServerResponse | FastifyReply;

/** What of Fastify's reply is used. */
export interface FastifyReply {
  raw: ServerResponse;
  code(status: number): FastifyReply;
  headers(headers: Record<string, string>): FastifyReply;
  send(body: string): FastifyReply;
}

function problem(status: number, code: string, requestId?: string): Problem {
  return { title: STATUS_CODES[status]!, status, code, ...(requestId !== undefined && { request_id: requestId }) };
}
