import type { IncomingMessage } from 'node:http';
import type { INestApplication } from '@nestjs/common';
import { WsAdapter } from '@nestjs/platform-ws';
import type { ServerOptions, VerifyClientCallbackAsync, WebSocket, WebSocketServer } from 'ws';
import { forbidden, notFound, problemOf, unauthorized } from '../problem.js';
import { pathOf, type Callers } from './callers.js';

/** What @WebSocketGateway() must say. */
export interface GatewayOptions extends ServerOptions {
  path: string;
  scopes: string[];
}

/** Verifies the assertion at the upgrade: guards see messages only, and the connection would be open by then. */
export class AssertionWsAdapter extends WsAdapter {
  constructor(app: INestApplication, private readonly callers: Callers) {
    super(app);
  }

  override create(port: number, options: Partial<GatewayOptions> = {}): WebSocketServer {
    const { scopes, path, ...rest } = options;
    if (port !== 0) throw new Error('a gateway with its own port listens on every address; leave the port out');
    if (!path || !scopes) throw new Error('a gateway must name its path and the scopes that open it');
    const verifyClient: VerifyClientCallbackAsync = ({ req }, done) => {
      this.admit(req, path, scopes).then(
        () => done(true),
        (error: unknown) => {
          const { status, headers, body } = problemOf(error);
          done(false, status, JSON.stringify(body), headers);
        },
      );
    };
    return super.create(port, { ...rest, path, maxPayload: 4096, verifyClient } as object) as WebSocketServer;
  }

  override bindClientConnect(server: WebSocketServer, connected: (client: WebSocket, request: IncomingMessage) => void) {
    server.on('connection', (client, request) => {
      this.callers.opened(client, request);
      connected(client, request);
    });
  }

  private async admit(request: IncomingMessage, path: string, scopes: string[]): Promise<void> {
    const caller = await this.callers.of(request);
    if (!caller) throw unauthorized('missing_assertion');
    if (pathOf(request) !== path) throw notFound(); // the adapter would take //host/ws and /x/../ws too
    if (!scopes.every((scope) => caller.scopes.includes(scope))) throw forbidden('insufficient_scope', scopes);
  }
}
