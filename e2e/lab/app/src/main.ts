// DELIBERATELY VULNERABLE: see README.md.
import 'reflect-metadata';
import { Module } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { Transport, type MicroserviceOptions } from '@nestjs/microservices';
import { WsAdapter } from '@nestjs/platform-ws';
import { AdminController, HealthController, InternalController, checkPath } from './admin.js';
import { TenantsController } from './claims.js';
import { DebugController, remember } from './debug.js';
import { FetchController } from './fetch.js';
import { FilesController } from './files.js';
import { InvoicesController } from './invoices.js';
import { OrdersController } from './orders.js';
import { EventsGateway, ExportController } from './sockets.js';

@Module({
  controllers: [
    OrdersController, TenantsController, AdminController, HealthController, InternalController,
    FetchController, FilesController, InvoicesController, DebugController, ExportController,
  ],
  providers: [EventsGateway],
})
class AppModule {}

const app = await NestFactory.create(AppModule, { logger: ['error', 'fatal'] });
app.use(checkPath, remember);
app.useWebSocketAdapter(new WsAdapter(app));
// A hybrid application: without inheritAppConfig no global guard would run here either.
app.connectMicroservice<MicroserviceOptions>({ transport: Transport.TCP, options: { host: '0.0.0.0', port: 3001 } });
await app.startAllMicroservices();
await app.listen(3000, '0.0.0.0');
console.log('listening');
