import * as http from 'node:http';
import * as https from 'node:https';
import type { Duplex } from 'node:stream';
import * as tls from 'node:tls';
import { Module, type DynamicModule } from '@nestjs/common';
import { HttpService, type HttpModuleOptions } from '@nestjs/axios';
import axios, { type InternalAxiosRequestConfig } from 'axios';
import { CallerContext } from './caller';

/** Fields of a request by which whoever fills it in (a body that is spread into it, say) would lead it past the gate. */
const REFUSED = ['socketPath', 'proxy', 'httpAgent', 'httpsAgent', 'transport', 'lookup', 'beforeRedirect', 'insecureHTTPParser'] as const;

/** What a service sends on only by mistake: it belongs to the request that came in. */
const NEVER_SENT = ['txn-token', 'x-sallyport-capability', 'proxy-authorization'];

/**
 * HttpModule of @nestjs/axios, whose requests say on whose behalf they are sent: they return the capability of the request
 * that is being served. An Authorization header is never copied. Under the preload of sallyport run, which does the same for
 * every client, they leave that to it.
 *
 * Refused are a unix socket, a proxy, agents and the like, wherever they come from; redirects are not followed unless that
 * is asked for; a path cannot replace the base URL.
 */
@Module({})
export class SallyportHttpModule {
  static register(options: HttpModuleOptions = {}): DynamicModule {
    const { global, ...defaults } = options as HttpModuleOptions & { global?: boolean };
    refuse(defaults);
    const instance = axios.create({ maxRedirects: 0, allowAbsoluteUrls: !defaults.baseURL, ...defaults });
    // added first, so it runs last: it sees what every other interceptor has made of the request
    instance.interceptors.request.use(attribute);
    return {
      module: SallyportHttpModule,
      global,
      providers: [{ provide: HttpService, useFactory: () => new HttpService(instance as unknown as ServiceInstance) }],
      exports: [HttpService],
    };
  }
}

/** What the installed @nestjs/axios takes: it may read axios's other build, which has types of its own. */
type ServiceInstance = ConstructorParameters<typeof HttpService>[0];

function refuse(config: object): void {
  for (const name of REFUSED) {
    const value: unknown = Reflect.get(config, name);
    if (value !== undefined && value !== false) throw new Error(`SallyportHttpModule: ${name} would lead a request past the gate`);
  }
}

/** Returns the capability of what is served with a request, and leads it to the gate. */
function attribute(config: InternalAxiosRequestConfig): InternalAxiosRequestConfig {
  refuse(config);
  const { adapter, headers } = config;
  if (typeof adapter === 'function' || ([adapter].flat()[0] !== 'http' && [adapter].flat()[0] !== 'xhr')) {
    throw new Error('SallyportHttpModule: another adapter would lead a request past the gate');
  }
  config.adapter = 'http';
  config.proxy = false;
  for (const name of NEVER_SENT) headers.delete(name);
  const { capability, traceparent } = new CallerContext();
  if (traceparent && !headers.has('traceparent')) headers.set('traceparent', traceparent);
  if (process.env.SALLYPORT_SERVICE !== undefined) return config; // the preload says so: it presents the capability itself
  const proxy = process.env.SALLYPORT_PROXY;
  if (!proxy) {
    // sallyport run leads the connection to the gate; where it is encrypted, nothing can be said there
    if (capability && isPlain(config)) headers.set('x-sallyport-capability', capability);
    return config;
  }
  const gate = new URL(proxy);
  config.httpAgent = new ForwardAgent(gate, capability);
  config.httpsAgent = new TunnelAgent(gate, capability);
  return config;
}

/** Says whether a request is for http: and not https:, as axios will send it. */
function isPlain(config: InternalAxiosRequestConfig): boolean {
  const uri = axios.getUri(config as Parameters<typeof axios.getUri>[0]);
  return URL.canParse(uri) && new URL(uri).protocol === 'http:';
}

/** Host and port, the latter unless it is the default that may be left out. */
function authorityOf({ host, port }: { host?: string | null; port?: number | string | null }, unsaid?: number): string {
  const name = host!.includes(':') ? `[${host}]` : host!;
  return Number(port ?? unsaid) === unsaid ? name : `${name}:${port ?? 443}`;
}

/** Sends plain requests to the gate in absolute form. One for each request, so that no connection serves two callers. */
class ForwardAgent extends http.Agent {
  constructor(
    private readonly gate: URL,
    private readonly capability: string | undefined,
  ) {
    super({ keepAlive: false });
  }

  /** Called by node:http for each request before its head is written. */
  addRequest(request: http.ClientRequest, options: http.RequestOptions): void {
    // the URL's, and not the Host header: a service that passes a client's headers on would let it choose
    request.path = `http://${authorityOf(options, 80)}${request.path}`;
    request.setHeader('proxy-connection', 'close');
    if (this.capability) request.setHeader('proxy-authorization', `Bearer ${this.capability}`);
    Object.assign(options, { host: this.gate.hostname, port: this.gate.port });
    (http.Agent.prototype as unknown as { addRequest(...all: unknown[]): void }).addRequest.call(this, request, options);
  }
}

/** Opens a tunnel through the gate for each request, with its capability, and speaks TLS inside it. */
class TunnelAgent extends https.Agent {
  constructor(
    private readonly gate: URL,
    private readonly capability: string | undefined,
  ) {
    super({ keepAlive: false });
  }

  override createConnection(options: tls.ConnectionOptions & { host?: string; port?: number | string }, done: (error: Error | null, socket?: Duplex) => void): undefined {
    const target = authorityOf(options);
    const authorization = this.capability ? { 'Proxy-Authorization': `Bearer ${this.capability}` } : {};
    const { hostname: host, port } = this.gate;
    http
      .request({ host, port, method: 'CONNECT', path: target, headers: { Host: target, ...authorization }, agent: false })
      .on('connect', (response, socket) => {
        if (response.statusCode === 200) {
          done(null, tls.connect({ ...options, socket }));
        } else {
          socket.destroy();
          done(new Error(`the gate refused a connection to ${target}: ${response.statusCode}`));
        }
      })
      .on('error', done)
      .end();
    return undefined;
  }
}
