import { Module, ValidationPipe, type DynamicModule } from '@nestjs/common';
import { APP_FILTER, APP_GUARD, APP_PIPE } from '@nestjs/core';
import { TerminusModule } from '@nestjs/terminus';
import { CallerGuard } from './caller/caller.guard.js';
import { Callers } from './caller/callers.js';
import { Keys } from './caller/keys.js';
import { HealthController } from './health.controller.js';
import { InvoicesController } from './invoices.controller.js';
import { OrdersController } from './orders/orders.controller.js';
import { OrdersGateway } from './orders/orders.gateway.js';
import { OrdersService } from './orders/orders.service.js';
import { ProblemFilter } from './problem.js';
import { RatesController } from './rates.controller.js';
import { SETTINGS, type Settings } from './settings.js';
import { UploadsController } from './uploads.controller.js';

@Module({})
export class AppModule {
  static with(settings: Settings, keys: Keys): DynamicModule {
    return {
      module: AppModule,
      imports: [TerminusModule.forRoot({ logger: false })],
      controllers: [OrdersController, InvoicesController, UploadsController, RatesController, HealthController],
      providers: [
        { provide: SETTINGS, useValue: settings },
        { provide: Keys, useValue: keys },
        Callers,
        OrdersService,
        OrdersGateway,
        { provide: APP_GUARD, useClass: CallerGuard },
        { provide: APP_FILTER, useClass: ProblemFilter },
        {
          provide: APP_PIPE,
          useValue: new ValidationPipe({ whitelist: true, forbidNonWhitelisted: true, transform: true }),
        },
      ],
    };
  }
}
