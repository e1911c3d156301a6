import { join } from 'node:path';

/** Where sallyport publishes the keys that verify its assertions. */
export type KeyLocation = { file: string } | { uri: URL };

/** What the service is started with. There are no defaults for whom it believes. */
export interface Settings {
  adapter: 'express' | 'fastify';
  listen: { path: string } | { host: '127.0.0.1'; port: number };
  issuer: string;
  audience: string;
  trustDomain: string;
  header: string;
  keys: KeyLocation;
  ratesUrl?: URL;
  invoices: string;
}

export const SETTINGS = Symbol('settings');

/** Reads the environment; throws one error that names every fault, so that nothing starts half configured. */
export function readSettings(env: NodeJS.ProcessEnv, args: string[] = []): Settings {
  const faults: string[] = [];
  const required = (name: string) => {
    const value = env[name]?.trim() ?? '';
    if (!value) faults.push(`${name} is not set`);
    return value;
  };
  const url = (name: string) => {
    const value = env[name]?.trim();
    if (!value) return undefined;
    if (!URL.canParse(value)) faults.push(`${name} is not a URL`);
    else if (!isTrustedTransport(new URL(value))) faults.push(`${name} must be https, or http on loopback`);
    else return new URL(value);
    return undefined;
  };

  const adapter = args.includes('--fastify') ? 'fastify' : env.ADAPTER || 'express';
  if (adapter !== 'express' && adapter !== 'fastify') faults.push('ADAPTER must be express or fastify');

  const port = Number(env.PORT || 3000);
  if (!Number.isInteger(port) || port < 0 || port > 65535) faults.push('PORT must be a number from 0 to 65535');

  const header = (env.SALLYPORT_HEADER || 'txn-token').toLowerCase();
  if (!/^[a-z0-9-]+$/.test(header)) faults.push('SALLYPORT_HEADER is not a header name');

  const file = env.SALLYPORT_JWKS_FILE;
  if (!file && !env.SALLYPORT_JWKS_URI) faults.push('neither SALLYPORT_JWKS_FILE nor SALLYPORT_JWKS_URI is set');
  if (file && env.SALLYPORT_JWKS_URI) faults.push('SALLYPORT_JWKS_FILE and SALLYPORT_JWKS_URI are both set');
  const uri = url('SALLYPORT_JWKS_URI');

  const issuer = required('SALLYPORT_ISSUER');
  const audience = required('SALLYPORT_AUDIENCE');
  const settings: Settings = {
    adapter: adapter as Settings['adapter'],
    listen: env.SALLYPORT_SOCKET ? { path: env.SALLYPORT_SOCKET } : { host: '127.0.0.1', port },
    issuer,
    audience,
    trustDomain: env.SALLYPORT_TRUST_DOMAIN?.trim() || audience,
    header,
    keys: file ? { file } : { uri: uri! },
    ratesUrl: url('RATES_URL'),
    invoices: join(import.meta.dirname, '..', 'invoices'),
  };
  if (faults.length) throw new Error(faults.join('; '));
  return settings;
}

function isTrustedTransport(url: URL): boolean {
  return url.protocol === 'https:' || (url.protocol === 'http:' && ['127.0.0.1', '[::1]', 'localhost'].includes(url.hostname));
}
