import { lstatSync, rmSync } from 'node:fs';
import { connect, isIP } from 'node:net';
import type { INestApplication } from '@nestjs/common';

export interface ListenOptions {
  /** A unix socket of mode 0660. Default: SALLYPORT_SOCKET; where neither is there, a port. */
  socket?: string;
  /** Default: PORT, then 3000. */
  port?: number;
  /** A loopback address. Default: 127.0.0.1. */
  host?: string;
}

/**
 * Listens where sallyport reaches the application and nobody outside does: on loopback, or on a unix socket that its
 * group may use. It returns the address. Anything else, a wildcard above all, is refused.
 */
export async function listen(app: INestApplication, options: ListenOptions = {}): Promise<string> {
  const socket = options.socket ?? (options.port === undefined ? process.env.SALLYPORT_SOCKET : undefined);
  if (socket) {
    await listenOn(app, socket);
    return `unix:${socket}`;
  }
  const { host = '127.0.0.1', port = Number(process.env.PORT || 3000) } = options;
  if (!isLoopback(host)) throw new Error(`listen on ${JSON.stringify(host)}: it is not a loopback address, and others would reach it past sallyport`);
  if (!Number.isInteger(port) || port < 0 || port > 65535) throw new Error('listen: the port is not a number from 0 to 65535');
  await app.listen(port, host);
  return app.getUrl();
}

function isLoopback(host: string): boolean {
  return isIP(host) === 4 ? host.startsWith('127.') : host === '::1';
}

async function listenOn(app: INestApplication, path: string): Promise<void> {
  await removeStale(path);
  const before = process.umask(0o117); // the socket is born 0660: owner and group, no moment in between
  try {
    // the form that both adapters understand: with a path alone, Fastify on NestJS 10 takes it for a port
    await app.listen({ path } as unknown as string);
  } finally {
    process.umask(before);
  }
}

/** A socket that nobody listens on was left behind by a process that was killed. */
async function removeStale(path: string): Promise<void> {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isSocket()) return;
  const alive = await new Promise<boolean>((resolve) => {
    const probe = connect(path, () => resolve(true)).on('error', (error: NodeJS.ErrnoException) => resolve(error.code !== 'ECONNREFUSED'));
    probe.on('close', () => undefined);
    probe.on('connect', () => probe.destroy());
  });
  if (alive) throw new Error(`listen on ${path}: another process does`);
  rmSync(path);
}
