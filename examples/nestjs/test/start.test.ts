import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { statSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { before, describe, it } from 'node:test';
import { readSettings } from '../dist/settings.js';
import { Sallyport } from './sallyport.js';

const main = join(import.meta.dirname, '..', 'dist', 'main.js');

function start(env: Record<string, string | undefined>, ...args: string[]) {
  const child = spawn(process.execPath, [main, ...args], { env: { PATH: process.env.PATH, ...env } });
  let output = '';
  child.stdout.on('data', (data) => (output += data));
  child.stderr.on('data', (data) => (output += data));
  const exited = once(child, 'exit').then(([code]) => ({ code: code as number | null, output }));
  const listening = new Promise<void>((resolve, reject) => {
    child.stdout.on('data', () => output.includes('listening on') && resolve());
    void exited.then(() => reject(new Error(output)));
  });
  listening.catch(() => undefined);
  return { child, exited, listening };
}

describe('node dist/main.js', { concurrency: 2 }, () => {
  let sallyport: Sallyport;
  let env: Record<string, string | undefined>;
  before(async () => {
    sallyport = await Sallyport.start();
    env = { SALLYPORT_ISSUER: 'sallyport', SALLYPORT_AUDIENCE: 'orders', SALLYPORT_JWKS_FILE: sallyport.jwks, PORT: '0' };
  });

  it('refuses to start without its settings, naming every one that is wrong', async () => {
    const { code, output } = await start({ PORT: 'x' }).exited;
    assert.equal(code, 1, output);
    assert.match(output, /PORT must be.*JWKS_FILE nor.*SALLYPORT_ISSUER is not set.*SALLYPORT_AUDIENCE is not set/);
  });

  it('refuses to start without a key file', async () => {
    const { code, output } = await start({ ...env, SALLYPORT_JWKS_FILE: '/nowhere.json' }).exited;
    assert.equal(code, 1, output);
    assert.match(output, /read sallyport's keys from \/nowhere.json/);
  });

  it('refuses to start with a key file that holds anything but Ed25519 public keys', async () => {
    const file = join(sallyport.folder, 'bad.json');
    writeFileSync(file, JSON.stringify({ keys: [sallyport.jwk, { kty: 'oct', k: 'c2VjcmV0' }] }));
    const { code, output } = await start({ ...env, SALLYPORT_JWKS_FILE: file }).exited;
    assert.equal(code, 1, output);
    assert.match(output, /not an Ed25519 key/);
  });

  for (const args of [[], ['--fastify']]) {
    it(`listens on a unix socket of mode 0660 and ends on SIGTERM ${args}`, async () => {
      const path = join(sallyport.folder, `app${args}.sock`);
      for (let run = 0; run < 2; run++) {
        const { child, exited, listening } = start({ ...env, SALLYPORT_SOCKET: path }, ...args);
        await listening;
        assert.equal(statSync(path).mode & 0o777, 0o660);
        const [response] = await once(request({ socketPath: path, path: '/health' }).end(), 'response');
        assert.equal(response.statusCode, 200);
        response.resume();
        child.kill(run === 0 ? 'SIGKILL' : 'SIGTERM'); // killed, it leaves its socket behind
        assert.equal((await exited).code, run === 0 ? null : 0);
      }
    });
  }
});

describe('readSettings', () => {
  const good = { SALLYPORT_ISSUER: 'sallyport', SALLYPORT_AUDIENCE: 'orders', SALLYPORT_JWKS_FILE: 'jwks.json' };

  it('has defaults for all but whom to believe', () => {
    const { adapter, listen, header, trustDomain } = readSettings(good);
    assert.deepEqual([adapter, listen, header, trustDomain], ['express', { host: '127.0.0.1', port: 3000 }, 'txn-token', 'orders']);
    assert.equal(readSettings({ ...good, SALLYPORT_TRUST_DOMAIN: 'demo.test' }).trustDomain, 'demo.test');
    assert.equal(readSettings(good, ['--fastify']).adapter, 'fastify');
  });

  const faults: [Record<string, string | undefined>, RegExp][] = [
    [{ SALLYPORT_ISSUER: undefined }, /SALLYPORT_ISSUER is not set/],
    [{ SALLYPORT_AUDIENCE: '  ' }, /SALLYPORT_AUDIENCE is not set/],
    [{ SALLYPORT_JWKS_FILE: undefined }, /neither SALLYPORT_JWKS_FILE nor SALLYPORT_JWKS_URI is set/],
    [{ SALLYPORT_JWKS_URI: 'https://keys.test' }, /both set/],
    [{ SALLYPORT_JWKS_FILE: '', SALLYPORT_JWKS_URI: 'http://192.0.2.1/' }, /SALLYPORT_JWKS_URI must be https/],
    [{ SALLYPORT_HEADER: 'a b' }, /not a header name/],
    [{ RATES_URL: 'rates' }, /RATES_URL is not a URL/],
    [{ PORT: '70000' }, /PORT must be/],
    [{ ADAPTER: 'koa' }, /ADAPTER must be/],
  ];
  for (const [change, message] of faults) {
    it(`refuses ${JSON.stringify(change)}`, () => assert.throws(() => readSettings({ ...good, ...change }), message));
  }
});
