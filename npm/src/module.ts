import {
  ConfigurableModuleBuilder,
  Inject,
  Logger,
  Module,
  type ConfigurableModuleAsyncOptions,
  type ConfigurableModuleCls,
  type DynamicModule,
  type OnApplicationBootstrap,
  type Provider,
  type Type,
} from '@nestjs/common';
import { APP_FILTER, APP_GUARD, APP_INTERCEPTOR, HttpAdapterHost, ModulesContainer, Reflector } from '@nestjs/core';
import { CallerContext, Callers } from './caller';
import { Door } from './door';
import { SallyportGuard, SallyportInterceptor, SETTINGS } from './guard';
import { KeysFile } from './keys';
import { ProblemFilter } from './problem';
import { readOptions, type SallyportOptions, type Settings } from './options';

/** What is said beside the options, at the place of import. */
export interface SallyportExtras {
  /** Whether every module may inject CallerContext and SallyportGuard. Default: true. */
  isGlobal?: boolean;
  /** Whether the guard stands before every handler. With false, it is for the application to use it. Default: true. */
  guard?: boolean;
}

const GUARDED = Symbol('sallyport guarded');

const built = new ConfigurableModuleBuilder<SallyportOptions>()
  .setClassMethodName('forRoot')
  .setExtras<SallyportExtras>({ isGlobal: true, guard: true }, (definition, { isGlobal, guard }) => ({
    ...definition,
    global: isGlobal,
    providers: [
      ...(definition.providers ?? []),
      { provide: GUARDED, useValue: guard },
      ...(guard ? [{ provide: APP_GUARD, useExisting: SallyportGuard }] : []),
      { provide: APP_INTERCEPTOR, useExisting: SallyportInterceptor },
      { provide: APP_FILTER, useClass: ProblemFilter },
    ],
  }))
  .build();
const { MODULE_OPTIONS_TOKEN } = built;
/** With its type written out: the declaration would else say how this package resolves modules, which others do differently. */
const ConfigurableModuleClass: ConfigurableModuleCls<SallyportOptions, 'forRoot', 'create', SallyportExtras> = built.ConfigurableModuleClass;

const PROVIDERS: Provider[] = [
  { provide: SETTINGS, useFactory: (options: SallyportOptions) => readOptions(options, process.env), inject: [MODULE_OPTIONS_TOKEN] },
  { provide: Callers, useFactory: (settings: Settings) => new Callers(settings, KeysFile.open(settings.jwksFile)), inject: [SETTINGS] },
  { provide: Door, useFactory: (callers: Callers) => new Door(callers), inject: [Callers] },
  Reflector,
  SallyportGuard,
  SallyportInterceptor,
  CallerContext,
];

/**
 * Verifies who calls, before every handler. It does not come up without an issuer, an audience and a readable key set, nor
 * with a gateway that nothing protects.
 */
@Module({ providers: PROVIDERS, exports: [CallerContext, SallyportGuard, SETTINGS, Callers] })
export class SallyportModule extends ConfigurableModuleClass implements OnApplicationBootstrap {
  private readonly log = new Logger(SallyportModule.name);

  constructor(
    @Inject(ModulesContainer) private readonly modules: ModulesContainer,
    @Inject(HttpAdapterHost) private readonly host: HttpAdapterHost,
    @Inject(Door) private readonly door: Door,
    @Inject(SallyportGuard) guard: SallyportGuard,
    @Inject(SallyportInterceptor) interceptor: SallyportInterceptor,
    @Inject(GUARDED) guarded: boolean,
  ) {
    super();
    this.refuseOwnPorts();
    if (guarded) this.guardMessageHandlers(guard, interceptor);
  }

  static override forRoot(options: SallyportOptions & SallyportExtras = {}): DynamicModule {
    return super.forRoot(options);
  }

  static override forRootAsync(options: ConfigurableModuleAsyncOptions<SallyportOptions> & SallyportExtras): DynamicModule {
    return super.forRootAsync(options);
  }

  /** It throws: an application that would answer anybody must not come up. */
  onApplicationBootstrap(): void {
    const type = (this.host.httpAdapter as { getType?(): string } | undefined)?.getType?.();
    if ((type !== 'express' && type !== 'fastify') || this.door.isClosed) return;
    const [gateway] = this.gateways();
    if (gateway) {
      throw new Error(`${gateway.name}: guards see the messages of a WebSocket, not that it is opened; call protect(app)`);
    }
    this.log.warn('what is mounted outside controllers (Swagger, static files, app.use) answers anybody: call protect(app)');
  }

  /** A gateway's own port is another server, which listens on every address. */
  private refuseOwnPorts(): void {
    for (const gateway of this.gateways()) {
      const port: unknown = Reflect.getMetadata('port', gateway);
      if (port) throw new Error(`${gateway.name}: a gateway with a port of its own (${String(port)}) listens on every address; leave the port out`);
    }
  }

  private gateways(): Type[] {
    return this.classes('providers').filter((type) => Reflect.getMetadata('websockets:is_gateway', type) === true);
  }

  /**
   * Puts the guard on each controller that handles messages and on each gateway. A microservice that is connected to an
   * application does not take the application's guards (inheritAppConfig is false unless said), and before NestJS 12 gateways
   * do not either: the global one would be missed. Those of the class itself are taken by every transport, and now is before
   * any of them is bound.
   */
  private guardMessageHandlers(guard: SallyportGuard, interceptor: SallyportInterceptor): void {
    for (const type of [...this.classes('controllers').filter(handlesMessages), ...this.gateways()]) {
      putFirst('__guards__', type, guard, SallyportGuard);
      putFirst('__interceptors__', type, interceptor, SallyportInterceptor);
    }
  }

  private classes(kind: 'providers' | 'controllers'): Type[] {
    return [...this.modules.values()].flatMap((module) => [...module[kind].values()]).flatMap(({ metatype }) => (isClass(metatype) ? [metatype] : []));
  }
}

function isClass(value: unknown): value is Type {
  return typeof value === 'function' && typeof value.prototype === 'object' && value.prototype !== null;
}

/** Says whether a controller has a @MessagePattern, @EventPattern or gRPC handler, its own or inherited. */
function handlesMessages(controller: Type): boolean {
  for (let at: object | null = controller.prototype as object; at && at !== Object.prototype; at = Object.getPrototypeOf(at) as object | null) {
    for (const name of Reflect.ownKeys(at)) {
      const method: unknown = Object.getOwnPropertyDescriptor(at, name)?.value;
      if (typeof method === 'function' && Reflect.hasMetadata('microservices:pattern', method)) return true;
    }
  }
  return false;
}

/** Before the class's own guards, and in the place of another application's, which knows other keys (tests make several). */
function putFirst(key: string, type: Type, instance: object, of: Type): void {
  const others = ((Reflect.getMetadata(key, type) as unknown[] | undefined) ?? []).filter((other) => !(other instanceof of));
  Reflect.defineMetadata(key, [instance, ...others], type);
}
